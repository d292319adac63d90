"""What a recipe is: everything that decides a training run besides the model, the data and the seed."""

import math
from dataclasses import asdict, dataclass, replace
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

ABOVE_ZERO = ("batch_size", "gpus", "resolution", "lr")
SHARES = ("drop_path", "dropout", "label_smoothing", "mixup_switch_prob", "random_erasing", "ema")


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
        """A copy with some fields replaced; raises RecipeError naming an unknown field, or one of a wrong value."""
        unknown = sorted(set(overrides) - set(asdict(self)))
        if unknown:
            raise RecipeError(f"a recipe has no field {', '.join(unknown)}; it has {', '.join(asdict(self))}")
        hints = get_type_hints(type(self))
        for name, value in overrides.items():
            wanted = "" if _is_of(value, hints[name]) else _said(hints[name])
            if not wanted and ((name in ABOVE_ZERO and value == 0) or (name in SHARES and (value or 0) > 1)):
                wanted = "a number above 0" if name in ABOVE_ZERO else "a number from 0 to 1"
            if wanted:
                raise RecipeError(f"a recipe's {name} cannot be {value!r}: give it {wanted}")
        changed = replace(self, **overrides)
        if changed.batch_size < changed.gpus:
            raise RecipeError(f"a batch of {changed.batch_size} is less than an image for each of {changed.gpus} gpus")
        return changed


def _said(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) is UnionType:
        return " or ".join(map(_said, get_args(hint)))
    names = {int: "a whole number, not negative", float: "a number, not negative", type(None): "null"}
    return names.get(hint) or (hint.__name__ if isinstance(hint, type) else str(hint))


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value, perhaps out of JSON, is what a field holds; numbers are finite and not negative."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return value in options
    if get_origin(hint) is UnionType:
        return any(_is_of(value, each) for each in options)
    if get_origin(hint) is tuple:
        each = options[:1] * len(value) if isinstance(value, list | tuple) and Ellipsis in options else options
        return isinstance(value, list | tuple) and len(value) == len(each) and all(map(_is_of, value, each))
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        return number and 0 <= value < math.inf
    return isinstance(value, hint)
