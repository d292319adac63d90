"""What a recipe is: everything that decides a training run besides the model, the data and the seed."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class RecipeError(ValueError):
    """There is no such recipe or field; the message is one sentence with the choices."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run besides the model, the data and the seed.

    `lr` holds at `batch_size` images a step over all devices and is scaled linearly for any other total. With
    `layer_decay`, each layer group learns that much slower than the one after it: the model's fine groups, or its
    stages with `decay_by_stage`. `starts_from` names the recipe whose result a fine-tuning begins with; with `new_head`
    its classifier is not taken over.
    """

    name: str
    epochs: int
    batch_size: int
    gpus: int
    resolution: int = 224
    optimizer: Literal["sgd", "adamw"]
    lr: float
    min_lr: float = 0.0
    momentum: float = 0.9
    weight_decay: float
    decay_norm_and_bias: bool = False
    warmup_epochs: float
    layer_decay: float | None = None
    decay_by_stage: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_switch_prob: float = 0.5
    auto_augment: str | None = None
    random_erasing: float = 0.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    ema: float | None = None
    starts_from: str | None = None
    new_head: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def scaled_lr(self, total_batch: int) -> float:
        """Learning rate for `total_batch` images a step (linear scaling)."""
        return self.lr * total_batch / self.batch_size

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.epochs > 0

    @property
    def length(self) -> dict[str, Any]:
        """How long to train, for `lightning.Trainer`."""
        return {"max_epochs": self.epochs}

    def with_overrides(self, **overrides: Any) -> Self:
        """A copy with some fields replaced; raises RecipeError naming an unknown field."""
        unknown = sorted(set(overrides) - set(asdict(self)))
        if unknown:
            raise RecipeError(f"a recipe has no field {', '.join(unknown)}; it has {', '.join(asdict(self))}")
        return replace(self, **overrides)
