"""Shape bias: how often a network decides by an object's shape where its texture says otherwise (Sec. 5.2, Figure 5).

The definition is that of Geirhos et al., "ImageNet-trained CNNs are biased towards texture", arXiv:1811.12231: among
the decisions for either cue, the share of those for the shape. Their 1,280 cue-conflict stimuli are a folder that the
user downloads; `scenes-cue-conflict` needs none.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from replk_lightning.data import DataError
from replk_lightning.data.augment import Augmentation, Preprocessing
from replk_lightning.data.decoding import UnreadableImageError, decode_rgb, warn_unreadable
from replk_lightning.data.folders import walk
from replk_lightning.models.rewriting import plain_state

_STIMULUS = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")  # shape, its number, texture, its number


class StimuliError(DataError):
    """A folder holds no stimuli; the message is one sentence that names it and the remedy."""


class ShapeBias(NamedTuple):
    """What a network's decisions on cue-conflict pictures say.

    Attributes:
        per_class: class (of the shape) → share of shape decisions among those for either cue; a class without any
            such decision is left out.
        mean: over the classes (the vertical line of Figure 5); NaN if there are none.
        either: share of all decisions that are for one of the two cues.
    """

    per_class: dict[str, float]
    mean: float
    either: float


def shape_bias(decisions: Sequence[str], shapes: Sequence[str], textures: Sequence[str]) -> ShapeBias:
    """Shape bias of one decision a picture, given its cues; pictures whose cues are equal are dropped."""
    counts: dict[str, list[int]] = {}  # shape → decisions for the shape, for the texture
    conflicts = 0
    for decision, shape, texture in zip(decisions, shapes, textures, strict=True):
        if shape == texture:
            continue
        conflicts += 1
        if decision in (shape, texture):
            counts.setdefault(shape, [0, 0])[decision == texture] += 1
    per_class = {name: by_shape / (by_shape + other) for name, (by_shape, other) in sorted(counts.items())}
    mean = float(np.mean(list(per_class.values()))) if per_class else float("nan")
    return ShapeBias(per_class, mean, sum(map(sum, counts.values())) / max(1, conflicts))


@cache
def imagenet_classes() -> Mapping[str, list[int]]:
    """The 16 classes of the stimuli → the ImageNet-1K indices that count as each; a published mapping, kept as data."""
    classes: dict[str, list[int]] = json.loads(Path(__file__).with_name("imagenet_16.json").read_text(encoding="utf-8"))
    return classes


def decide(probabilities: Tensor) -> list[str]:
    """One of the 16 classes for each row of ImageNet probabilities (N, 1000): the largest mean over its indices."""
    names, indices = zip(*imagenet_classes().items(), strict=True)
    means = torch.stack([probabilities[:, chosen].mean(1) for chosen in indices], dim=1)
    return [names[n] for n in means.argmax(1).tolist()]


@plain_state()
def measure_stimuli(
    model: nn.Module, folder: Path, preprocessing: Preprocessing | None = None, *, progress: bool = False
) -> ShapeBias:
    """Shape bias of an ImageNet-1K classifier on Geirhos's stimuli, each where the model is and in its dtype.

    Args:
        folder: anything that holds files such as `cat7-elephant1.png` (shape, then texture), at any depth.
        preprocessing: of the model's pictures (default: 224 pixels and ImageNet's normalisation).
        progress: show a bar.

    Raises:
        StimuliError: `folder` holds no such file, or none that can be read; damaged ones are left out with a warning.
    """
    stimuli = find_stimuli(folder)
    bar = tqdm(stimuli, unit="image", dynamic_ncols=True, disable=not progress)
    preprocessing = preprocessing or Augmentation().preprocessing(224)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        decisions = [
            (decide(F.softmax(model(image).float(), dim=-1))[0], shape, texture)
            for image, shape, texture in _pictures(bar, preprocessing, next(model.parameters()))
        ]
    finally:
        for module in training:
            module.training = True
    if not decisions:
        raise StimuliError(f"none of the {len(stimuli)} stimuli in {folder} can be read: unpack them again.")
    return shape_bias(*zip(*decisions, strict=True))


def _pictures(
    stimuli: Iterable[tuple[Path, str, str]], preprocessing: Preprocessing, like: Tensor
) -> Iterator[tuple[Tensor, str, str]]:
    """(1, 3, H, W) on the device and in the dtype of `like`, shape and texture of every stimulus that can be read."""
    with torch.device("cpu"):
        transform = preprocessing.transform()
    for path, shape, texture in stimuli:
        try:
            with torch.device("cpu"):
                image = transform(decode_rgb(str(path)))
        except UnreadableImageError as reason:
            warn_unreadable(str(path), reason)
            continue
        yield image[None].to(like), shape, texture


def find_stimuli(folder: Path) -> list[tuple[Path, str, str]]:
    """(file, shape, texture) of every stimulus under `folder`, sorted. Raises StimuliError if there is none."""
    found = []
    if not folder.is_dir():
        raise StimuliError(f"there is no folder {folder}: name the one that holds the stimuli.")
    for path in sorted(folder / name for name in walk(folder, [".png"]).names):
        name = _STIMULUS.match(path.stem)
        if name and set(name.groups()) <= imagenet_classes().keys():
            found.append((path, name[1], name[2]))
    if not found:
        raise StimuliError(
            f"{folder} holds no stimulus such as cat7-elephant1.png: unpack the style-transfer stimuli of "
            "github.com/rgeirhos/texture-vs-shape there."
        )
    return found
