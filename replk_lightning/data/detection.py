"""What stands on a picture, for detection: torchvision's targets, and how they change with the picture.

A target is a dictionary: `boxes` float32 (n, 4): left, top, right, bottom in pixels, the last two exclusive; `labels`
int64 (n,) from 0; `masks` uint8 (n, H, W), where objects have masks; and, in COCO's, `iscrowd` int64 (n,), 1 for a
crowd.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Target = dict[str, Tensor]
Sample = tuple[Tensor, Target]
"""An image, float32 (C, H, W), and its target."""


def as_lists(samples: Sequence[Sample]) -> tuple[list[Tensor], list[Target]]:
    """Collate: pictures of different sizes stay as they are."""
    return [image for image, _ in samples], [target for _, target in samples]


def mirrored(image: Tensor, target: Target) -> Sample:
    """Left becomes right."""
    width = image.shape[-1]
    left, top, right, bottom = target["boxes"].unbind(dim=1)
    boxes = torch.stack([width - right, top, width - left, bottom], dim=1)
    return image.flip(-1), target | {"boxes": boxes} | _masks(target, lambda masks: masks.flip(-1))


def resized(image: Tensor, target: Target, short: int, longest: int) -> Sample:
    """The short side becomes `short`, or less where the long one would exceed `longest`."""
    height, width = image.shape[-2:]
    scale = min(short / min(height, width), longest / max(height, width))
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    ratios = torch.tensor([size[1] / width, size[0] / height]).repeat(2)
    larger = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    masks = _masks(target, lambda masks: F.interpolate(masks[:, None], size=size, mode="nearest-exact")[:, 0])
    return larger, target | {"boxes": target["boxes"] * ratios} | masks


def cropped(image: Tensor, target: Target, top: int, left: int, height: int, width: int) -> Sample:
    """A rectangle of the picture; boxes are cut, and what lies outside is left out."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    image = image[:, rows, columns]
    limits = torch.tensor([image.shape[2], image.shape[1]], dtype=torch.float32).repeat(2)
    offset = torch.tensor([left, top], dtype=torch.float32).repeat(2)
    boxes = torch.minimum((target["boxes"] - offset).clamp(min=0), limits)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    cut = target | {"boxes": boxes} | _masks(target, lambda masks: masks[:, rows, columns])
    return image, {name: values[inside] for name, values in cut.items()}


def _masks(target: Target, change: Callable[[Tensor], Tensor]) -> Target:
    return {"masks": change(target["masks"])} if "masks" in target else {}
