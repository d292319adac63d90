"""Trained tasks on pictures of any size: what each finds, as plain values for JSON and as an overlay.

A picture comes as it was decoded, 8-bit RGB of height H and width W, and everything found is in its pixels.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.transforms.v2 import functional as T

from replk_lightning.data.segmentation import fit
from replk_lightning.models.weights import CheckpointError
from replk_lightning.predict.draw import draw_classes, draw_objects
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.factory import Trained
from replk_lightning.tasks.multitask import MultiTaskClassify
from replk_lightning.tasks.segment import SegmentTask


class Found(NamedTuple):
    """What is known of a picture: values for JSON, and the overlay, uint8 (3, H, W), where there is one."""

    values: dict[str, Any]
    overlay: Tensor | None


class Finder(ABC):
    """A trained task that looks at pictures.

    Attributes:
        kind: what it does: classification, segmentation or detection.
    """

    kind: str

    def __init__(self, trained: Trained, device: torch.device) -> None:
        self.trained, self.device = trained, device

    @abstractmethod
    def prepare(self, picture: Image.Image) -> Tensor:
        """The picture as the recipe evaluates it: float32 (C, h, w)."""

    @abstractmethod
    def find(self, pictures: Sequence[Image.Image]) -> list[Found]:
        """What is in each picture."""

    def named(self, label: int) -> dict[str, str]:
        """`name` of a class, where the checkpoint has names."""
        names = self.trained.class_names
        return {"name": names[label]} if names else {}

    def normalised(self, picture: Tensor) -> Tensor:
        """uint8 (3, H, W) → float32 as in training."""
        return T.normalize(picture.float() / 255, list(self.trained.mean), list(self.trained.std))


class Classes(Finder):
    """Classification: the most probable classes of a picture, of each task where a net has several.

    Args:
        top_k: how many.
    """

    kind = "classification"

    def __init__(self, trained: Trained, device: torch.device, top_k: int) -> None:
        super().__init__(trained, device)
        self.top_k = top_k
        self.transform = trained.view()
        self.mode = "L" if len(trained.mean) == 1 else "RGB"

    def prepare(self, picture: Image.Image) -> Tensor:
        """Resized and cropped to the recipe's resolution."""
        return self.transform(picture.convert(self.mode))

    def find(self, pictures: Sequence[Image.Image]) -> list[Found]:
        """`classes`, `names` if known, `probabilities`, the most probable first; in `tasks` by name if several."""
        task: Any = self.trained.task
        images = torch.stack([self.prepare(picture) for picture in pictures]).to(self.device)
        if isinstance(task, MultiTaskClassify):
            several = {name: logits.softmax(dim=1) for name, logits in task.logits(images).items()}
            firsts = dict(zip(task.tasks, itertools.accumulate(task.tasks.values(), initial=0), strict=False))
            return [Found({"tasks": {name: self._top(p[n], firsts[name]) for name, p in several.items()}}, None)
                    for n in range(len(pictures))]  # fmt: skip
        return [Found(self._top(each), None) for each in task(images).softmax(dim=1)]

    def _top(self, probabilities: Tensor, first: int = 0) -> dict[str, list[Any]]:
        """`first`: number that the net gives the task's class 0."""
        values, found = probabilities.float().cpu().topk(min(self.top_k, len(probabilities)))
        classes = found.tolist()
        names = [name for label in classes for name in self.named(first + label).values()]
        return {"classes": classes, **({"names": names} if names else {}), "probabilities": rounded(values)}


class Segments(Finder):
    """Segmentation: the class of every pixel."""

    kind = "segmentation"

    def prepare(self, picture: Image.Image) -> Tensor:
        """As large as the recipe's evaluation has it, in sides that the head takes."""
        task: Any = self.trained.task
        image = T.pil_to_tensor(picture)
        size = [task.allowed(side) for side in fit(image.shape[-2:], task.recipe.resize, 1.0)]
        return self.normalised(T.resize(image, size))

    def find(self, pictures: Sequence[Image.Image]) -> list[Found]:
        """`segments`, the largest first: class, name if known, share of the pixels, and mask as COCO's runs."""
        images = [self.prepare(picture) for picture in pictures]
        of_shape: dict[torch.Size, list[int]] = {}
        for number, image in enumerate(images):
            of_shape.setdefault(image.shape, []).append(number)
        found: dict[int, Found] = {}
        for numbers in of_shape.values():
            probabilities = self.trained.task(torch.stack([images[n] for n in numbers]).to(self.device))
            for number, each in zip(numbers, probabilities, strict=True):
                found[number] = self._found(pictures[number], each)
        return [found[number] for number in range(len(pictures))]

    def _found(self, picture: Image.Image, probabilities: Tensor) -> Found:
        aligned = self.trained.task.recipe.align_corners  # type: ignore[attr-defined] # a SegmentRecipe
        classes = classes_at(probabilities, (picture.height, picture.width), aligned).cpu()
        labels, counts = classes.unique(return_counts=True)
        largest_first = sorted(zip(counts.tolist(), labels.tolist(), strict=True), key=lambda pair: -pair[0])
        segments = [
            {"class": label, **self.named(label), "share": round(count / classes.numel(), 6)}
            | {"mask": runs(classes == label)}
            for count, label in largest_first
        ]
        overlay = draw_classes(T.pil_to_tensor(picture), classes, self.trained.class_names)
        return Found({"segments": segments}, overlay)


class Objects(Finder):
    """Detection: boxes, and masks where the head has them.

    Args:
        score: the least of an object that is named.
    """

    kind = "detection"

    def __init__(self, trained: Trained, device: torch.device, score: float) -> None:
        super().__init__(trained, device)
        self.score = score
        # not after the net: objects below would be pasted into masks of the picture's size first
        net: Any = trained.task.model
        if isinstance(net, FCOS):
            net.score_thresh = score
        else:
            net.roi_heads.score_threshold = score

    def prepare(self, picture: Image.Image) -> Tensor:
        """At its own size; the detector resizes it."""
        return self.normalised(T.pil_to_tensor(picture))

    def find(self, pictures: Sequence[Image.Image]) -> list[Found]:
        """`objects`, the surest first: class, name if known, score, box, and mask as COCO's runs."""
        found = self.trained.task([self.prepare(picture).to(self.device) for picture in pictures])
        return [self._found(*pair) for pair in zip(pictures, found, strict=True)]

    def _found(self, picture: Image.Image, found: dict[str, Tensor]) -> Found:
        found = {name: values.cpu() for name, values in found.items()}
        labels = found["labels"].tolist()
        columns = {
            "class": labels,
            **({"name": [self.trained.class_names[label] for label in labels]} if self.trained.class_names else {}),
            "score": rounded(found["scores"]),
            "box": [rounded(box, 2) for box in found["boxes"]],
        }
        if "masks" in found:
            columns["mask"] = [runs(mask) for mask in found["masks"]]
        objects = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return Found({"objects": objects}, draw_objects(T.pil_to_tensor(picture), found, self.trained.class_names))


def finder_for(trained: Trained, device: torch.device, top_k: int, score: float) -> Finder:
    """The finder of a trained task, on `device`; raises CheckpointError for a net that does not look at colours."""
    task, channels = trained.task.to(device), trained.task.hparams["in_chans"]
    if channels not in ((1, 3) if isinstance(task, ClassifyTask) else (3,)) or channels != len(trained.mean):
        raise CheckpointError(f"the checkpoint's net sees {channels} channels, which pictures do not have.")
    if isinstance(task, SegmentTask):
        return Segments(trained, device)
    if isinstance(task, DetectTask):
        return Objects(trained, device, score)
    return Classes(trained, device, top_k)


def classes_at(probabilities: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """The most probable class of each pixel, int64 (H, W), of probabilities (K, h, w) brought to `size`.

    Class by class, as K maps of a large picture need not fit in memory.
    """
    best = torch.full(size, -1.0, device=probabilities.device)
    classes = torch.zeros(size, dtype=torch.int64, device=probabilities.device)
    for label, each in enumerate(probabilities.float()):
        found = F.interpolate(each[None, None], size=size, mode="bilinear", align_corners=align_corners)[0, 0]
        better = found > best
        best = torch.where(better, found, best)
        classes[better] = label
    return classes


def runs(mask: Tensor) -> dict[str, Any]:
    """A mask (H, W) as COCO's compressed run lengths: `size` and `counts`."""
    import numpy as np
    from faster_coco_eval.core.mask import encode

    found = encode(np.asfortranarray(mask.to(torch.uint8).numpy()))
    counts = found["counts"]
    return {"size": list(mask.shape), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def rounded(values: Tensor, digits: int = 6) -> list[float]:
    """Numbers as JSON is to show them."""
    return [round(value, digits) for value in values.double().tolist()]
