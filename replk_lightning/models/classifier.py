"""What both families share with every classifier of timm: a pooled linear head, and how it is replaced."""

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from replk_lightning.models.layout import LAYOUTS, in_fast_layout


def _name(layout: torch.memory_format) -> str:
    names = {each: name for name, each in LAYOUTS.items()}
    if layout not in names:
        raise ValueError(f"memory_format is {layout}: give torch.channels_last, torch.contiguous_format or None")
    return names[layout]


class Classifier(nn.Module):
    """Average pool, dropout and linear `head` behind the features that a subclass computes.

    Attributes:
        num_features: Channels of the features.
        num_classes: Outputs; 0 for no head.
        memory_format: Layout in which the net computes, torch.channels_last or torch.contiguous_format; None for the
            one in which its device is fast by rule: channels_last on CPUs and, in 16 bits, on GPUs.
    """

    num_features: int
    head_hidden_size: int
    num_classes: int
    layout: str | None = None
    """Name of `memory_format` in LAYOUTS; a string, for torch.save takes no memory formats."""

    def __init_subclass__(cls, **options: object) -> None:
        """A class may set a `memory_format` for all its nets; by its name, as the property is this class's."""
        super().__init_subclass__(**options)
        if isinstance(wanted := cls.__dict__.get("memory_format"), torch.memory_format):
            del cls.memory_format
            cls.layout = _name(wanted)

    @property
    def memory_format(self) -> torch.memory_format | None:
        """See the class."""
        return None if self.layout is None else LAYOUTS[self.layout]

    @memory_format.setter
    def memory_format(self, wanted: torch.memory_format | None) -> None:
        self.layout = None if wanted is None else _name(wanted)

    def add_head(self, num_features: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        """Build pooling ("avg", "max", …, or "" for none), dropout and head; the end of a subclass's constructor."""
        self.num_features = self.head_hidden_size = num_features
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self.new_head()

    def new_head(self) -> nn.Module:
        """A fresh head for `num_classes`."""
        if self.num_classes == 0:
            return nn.Identity()
        like = next(self.parameters())
        features = self.num_features * self.global_pool.feat_mult()
        return nn.Linear(features, self.num_classes, device=like.device, dtype=like.dtype)

    def get_classifier(self) -> nn.Module:
        """The linear head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one of `num_classes` outputs (0: none) and, if named, the pooling."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head = self.new_head()
        for part in (self.global_pool, self.head):
            part.train(self.training)

    def no_weight_decay(self) -> set[str]:
        """No names beyond biases and other 1-D parameters, which timm exempts by itself."""
        return set()

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, num_features, h, w)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify (N, num_features, h, w) → (N, num_classes); with `pre_logits`, pool only."""
        x = self.head_drop(self.global_pool(in_fast_layout(x, self.memory_format)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def classifiers(model: nn.Module) -> dict[str, Classifier]:
    """The nets of this package that a module holds or is, by their names in it."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Classifier)}
