"""What is known about an image's classes, one table a task: a human's label, a teacher's soft label, or nothing.

Shapes: N images, k listed classes, C classes of the task.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Targets(NamedTuple):
    """One task's targets for N images.

    `classes` (N, k) are listed with the probabilities `shares` (N, k); `rest` (N,) is what all other classes have
    together, and `human` (N,) says that a person gave the label: one class, share 1. An image about which the task
    knows nothing has shares and rest 0. Listed classes of share 0 are padding.
    """

    classes: Tensor
    shares: Tensor
    rest: Tensor
    human: Tensor

    @classmethod
    def of_labels(cls, labels: Tensor) -> "Targets":
        """Human labels (N,) of int64; a negative one is unknown."""
        known = labels >= 0
        shares = known.to(torch.float16)
        return cls(labels.clamp(min=0).to(torch.int32)[:, None], shares[:, None], torch.zeros_like(shares), known)

    @classmethod
    def unknown(cls, count: int, width: int = 1) -> "Targets":
        """`count` images of which nothing is known, with room for `width` classes each."""
        shares = torch.zeros(count, width, dtype=torch.float16)
        human = torch.zeros(count, dtype=torch.bool)
        return cls(torch.zeros(count, width, dtype=torch.int32), shares, torch.zeros(count, dtype=torch.float16), human)

    @property
    def known(self) -> Tensor:
        """Whether the task knows anything, (N,) of bool."""
        return (self.shares.float().sum(1) + self.rest.float()) > 0

    def rows(self, positions: Tensor) -> "Targets":
        """The images at `positions`."""
        return Targets(*(part[positions] for part in self))

    def dense(self, num_classes: int) -> Tensor:
        """Probabilities (N, C) of float32.

        The rest is spread evenly over all classes that are not listed with a share above 0 (it is dropped if there are
        none), and the whole divided by its sum, as float16 has rounded its parts; images without targets stay 0.
        """
        listed = torch.zeros(len(self.rest), num_classes, device=self.rest.device)
        listed.scatter_add_(1, self.classes.long(), self.shares.float())
        others = (listed == 0).float()
        spread = self.rest.float() / others.sum(1).clamp(min=1)
        whole = listed + spread[:, None] * others
        return whole / whole.sum(1, keepdim=True).clamp(min=torch.finfo(whole.dtype).tiny)

    def save_to(self, other: "Targets", positions: Tensor) -> None:
        """Write these rows into `other`, of at least this width, at `positions`."""
        width = self.classes.shape[1]
        other.classes[positions, :width] = self.classes
        other.shares[positions, :width] = self.shares
        other.rest[positions] = self.rest
        other.human[positions] = self.human


def stack(parts: Sequence[Targets]) -> Targets:
    """All rows one after another, padded to the widest."""
    width = max(part.classes.shape[1] for part in parts)
    padded = [
        part._replace(**{name: F.pad(getattr(part, name), (0, width - part.classes.shape[1]))
                         for name in ("classes", "shares")})
        for part in parts
    ]  # fmt: skip
    return Targets(*(torch.cat(columns) for columns in zip(*padded, strict=True)))


def soften(probabilities: Tensor, top_k: int | None) -> Targets:
    """A teacher's probabilities (N, C) as targets: the `top_k` largest (None: all) and the rest, all in float16."""
    classes = probabilities.shape[1]
    kept = classes if top_k is None else min(top_k, classes)
    shares, order = probabilities.float().topk(kept, dim=1)
    rest = (1 - shares.sum(1)).clamp(min=0) if kept < classes else torch.zeros(len(shares), device=shares.device)
    human = torch.zeros(len(shares), dtype=torch.bool, device=shares.device)
    return Targets(order.to(torch.int32), shares.half(), rest.half(), human)
