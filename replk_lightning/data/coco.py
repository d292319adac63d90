"""COCO, the photographs with boxes and masks of Table 9, and data sets of one's own in its format."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from replk_lightning.data.augment import Augmentation
from replk_lightning.data.base import DataError, ImageData, Splits, fingerprint
from replk_lightning.data.decoding import DecodedImages, Encoded, UnreadableImageError
from replk_lightning.data.detection import Sample, Target, as_lists, cropped, mirrored, resized
from replk_lightning.data.imagefolder import VALIDATION_NAMES

ARCHIVES = "train2017.zip, val2017.zip and annotations_trainval2017.zip of cocodataset.org"

EXPORTED = "_annotations.coco.json"
"""What annotation tools call the file that lies beside a split's pictures."""

SMALLER = (400, 500, 600)
"""Short sides that a photograph may have before it is cropped."""
LONGEST = 1333
CUT = (384, 600)
"""Smallest and largest side of a crop."""


class Coco(ImageData):
    """COCO's official folders, or those that annotation tools export in its format.

    Official: `root/annotations/instances_{train,val}2017.json` and the photographs in `root/train2017` and
    `root/val2017`. Exported: `root/train/_annotations.coco.json` beside its photographs, and the same in `val` (or
    `validation`, `valid`, `test`).

    Args:
        image_size: the short side that a detector will compute at. Pictures keep their own size here: the detector
            resizes them, in training to another size every time, and gives its boxes and masks in their pixels.
        augmentation: its `hflip`, `random_crop`, `mean` and `std` are used.
        masks: whether every object must have one. By default targets have masks where all objects of a split do.

    Categories are numbered from 0 in the order of their ids (COCO's have gaps); one that has no object and is only the
    supercategory of others, as exports begin with, is none. In training, crowds and boxes without area are left out,
    and pictures with nothing else; in validation, crowds are marked. Loaders give a list of images, float32 (3, H, W),
    and a list of targets (see boxes.py). The fingerprint is that of the annotations.
    """

    collate = staticmethod(as_lists)

    def __init__(
        self,
        root: str | Path = "coco",
        image_size: int = 800,
        batch_size: int = 2,
        augmentation: Augmentation | None = None,
        num_workers: int = 4,
        masks: bool | None = None,
    ) -> None:
        super().__init__("coco", in_chans=3, image_size=image_size, batch_size=batch_size, num_workers=num_workers)
        self.root = Path(root).expanduser()
        self.augmentation = augmentation or Augmentation()
        self.masks = masks

    def load(self) -> Splits:
        """Read the annotations; no picture is opened yet."""
        files = [AnnotationFile.find(self.root, train) for train in (True, False)]
        categories = categories_of(files)
        train, val = (Annotations(file, list(categories), self.masks) for file in files)
        return Splits(
            CocoImages(train, self.augmentation, train=True),
            CocoImages(val, self.augmentation, train=False),
            num_classes=len(categories),
            train_size=len(train),
            fingerprint=partial(_fingerprint, train, val),
            class_names=tuple(categories.values()),
        )


@dataclass(frozen=True)
class AnnotationFile:
    """One split as it lies on disk: its file, what is in it, and the folder of its pictures."""

    path: Path
    content: Any
    folder: Path
    train: bool

    @classmethod
    def find(cls, root: Path, train: bool) -> Self:
        """Read one split of `root`. Raises DataError naming what is missing."""
        split = "train" if train else "val"
        path, folder = root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017"
        for name in () if path.is_file() else ("train",) if train else VALIDATION_NAMES:
            if (root / name / EXPORTED).is_file():
                path, folder = root / name / EXPORTED, root / name
                break
        try:
            with path.open(encoding="utf-8-sig") as file:  # some tools begin with a mark
                content = json.load(file)
        except OSError as error:
            other = f"name a folder that holds train/{EXPORTED} and valid/{EXPORTED}"
            raise DataError(f"There is no {path}: unpack {ARCHIVES} into {root}, or {other}.") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is damaged ({error}): unpack it again.") from error
        if not folder.is_dir():
            raise DataError(f"There is no folder {folder}: unpack {ARCHIVES} into {root}.")
        return cls(path, content, folder, train)

    @contextmanager
    def in_cocos_format(self) -> Iterator[None]:
        """What the content lacks, as one sentence."""
        try:
            yield
        except DataError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.path} is not COCO's format ({error!r}).") from error


def categories_of(files: Sequence[AnnotationFile]) -> dict[int, str]:
    """The name of every category by its id, in the order of the ids. Raises DataError where the files disagree."""
    found, used = [], set()
    for file in files:
        with file.in_cocos_format():
            ordered = sorted(file.content["categories"], key=lambda category: category["id"])
            require_unique(file, "categories", (category["id"] for category in ordered))
            found.append(
                {each["id"]: (str(each.get("name", each["id"])), each.get("supercategory")) for each in ordered}
            )
            used |= {each["category_id"] for each in file.content["annotations"]}
    if any(other != found[0] for other in found[1:]):
        both = " and ".join(str(file.path) for file in files)
        raise DataError(f"{both} name different categories: take both of one version of the data set.")
    above = {
        identity
        for identity, (name, _) in found[0].items()
        if identity not in used
        and any(supercategory == name for other, (_, supercategory) in found[0].items() if other != identity)
    }
    for identity in above:
        rank_zero_warn(
            f"{files[0].path}: left out category {identity}, {found[0][identity][0]!r}, which has no object and is "
            "only the supercategory of others."
        )
    return {identity: name for identity, (name, _) in found[0].items() if identity not in above}


def require_unique(file: AnnotationFile, what: str, ids: Iterable[Any]) -> None:
    """Raises DataError where an id comes twice, as in files that were put together: its annotations are of either."""
    for before, identity in pairwise(ids):
        if before == identity:
            raise DataError(f"{file.path} has two {what} of the id {identity!r}: number them anew.")


class Annotations:
    """One split: every picture's file and what is on it. Raises DataError naming what is missing.

    Args:
        file: the split; of one to train on, what nothing can be learned from is left out.
        categories: ids in the order of the labels.
        masks: True where every object must have one, False where none is wanted, None for those of all objects or none.

    What is on a picture lies as JSON in one array of bytes: worker processes would copy millions of Python objects,
    page by page, as they count references to them.
    """

    def __init__(self, file: AnnotationFile, categories: Sequence[int], masks: bool | None) -> None:
        self.folder, self.categories = file.folder, list(categories)
        with file.in_cocos_format():
            pictures, found = self._collect(file)
            sizes = [(int(each.get("width") or 0), int(each.get("height") or 0)) for each in pictures]
        if not pictures:
            raise DataError(f"{file.path} names no picture with a box.")
        lacking = [(each["id"], name) for name, objects in found for each in objects if lacks_mask(each["shape"])]
        if masks and lacking:
            identity, name = lacking[0]
            raise DataError(
                f"{file.path}: annotation {identity} on {name} has no mask ({len(lacking)} have none), and the head of "
                "the recipe learns from masks: draw them, or take a recipe of boxes alone, as fcos_2x."
            )
        self.masks = not lacking if masks is None else masks
        self.names = np.array([os.fsencode(name) for name, _ in found])
        self.sizes = np.array(sizes)
        found_bytes = [json.dumps([_kept(each) for each in objects]).encode() for _, objects in found]
        self.ends = np.cumsum([len(each) for each in found_bytes])
        self.bytes = np.frombuffer(b"".join(found_bytes), dtype=np.uint8)

    def _collect(self, file: AnnotationFile) -> tuple[list[Any], list[tuple[str, list[Any]]]]:
        content, train = file.content, file.train
        number = {identity: label for label, identity in enumerate(self.categories)}
        objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for each in content["annotations"]:
            crowd = int(each.get("iscrowd", 0))
            if len(each["bbox"]) != 4 or not all(math.isfinite(number) for number in each["bbox"]):
                raise ValueError(f"annotation {each.get('id')} has the box {each['bbox']!r:.60}")
            if train and (crowd or min(each["bbox"][2:]) <= 0):
                continue
            if each["category_id"] not in number:
                raise DataError(
                    f"{file.path}: annotation {each.get('id')} is of the category {each['category_id']!r}, which is "
                    "not listed: add it to the categories."
                )
            kept = {"box": each["bbox"], "label": number[each["category_id"]], "crowd": crowd}
            objects[each["image_id"]].append(kept | {"shape": each.get("segmentation"), "id": each.get("id")})
        pictures = sorted(content["images"], key=lambda picture: picture["id"])
        require_unique(file, "pictures", (picture["id"] for picture in pictures))
        if not all(isinstance(picture["file_name"], str) for picture in pictures):
            raise TypeError("file_name")
        if unknown := objects.keys() - {picture["id"] for picture in pictures}:
            lost = sum(len(objects[identity]) for identity in unknown)
            rank_zero_warn(
                f"{file.path}: left out {lost} annotations of {len(unknown)} pictures that it does not list."
            )
        if train:
            pictures = [picture for picture in pictures if objects.get(picture["id"])]
        return pictures, [(picture["file_name"], objects.get(picture["id"], [])) for picture in pictures]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Encoded:
        path = str(self.folder / os.fsdecode(self.names[index]))
        return Encoded(path, path, index)

    def target(self, index: int, height: int, width: int) -> Target:
        """What is on picture `index` of that size."""
        start = self.ends[index - 1] if index else 0
        objects = json.loads(self.bytes[start : self.ends[index]].tobytes())
        boxes = torch.tensor([each["box"] for each in objects], dtype=torch.float32).reshape(-1, 4)
        target = {
            "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
            "labels": torch.tensor([each["label"] for each in objects], dtype=torch.int64),
            "iscrowd": torch.tensor([each["crowd"] for each in objects], dtype=torch.int64),
        }
        if self.masks:
            masks = np.zeros((len(objects), height, width), dtype=np.uint8)
            for mask, each in zip(masks, objects, strict=True):
                mask[:] = drawn(each["shape"], height, width)
            target["masks"] = torch.from_numpy(masks)
        return target

    def require_size(self, index: int, height: int, width: int) -> None:
        """Raises UnreadableImageError where picture `index`, upright, is not as large as its annotations say."""
        said = tuple(self.sizes[index].tolist())
        if 0 in said or said == (width, height):
            return
        reason = f"it has {width}×{height} pixels and its annotations are for {said[0]}×{said[1]}"
        if said == (height, width):
            reason += (
                ", as where a tool ignored its EXIF orientation: exchange width and height if the boxes are of the "
                "picture as it is seen, or annotate it anew"
            )
        raise UnreadableImageError(reason)

    def parts(self) -> Iterator[bytes]:
        """Names of the files and what is on them."""
        yield b"\0".join(self.names.tolist())
        yield self.bytes.tobytes()


def _kept(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "id"}


def lacks_mask(shape: Any) -> bool:
    """Whether COCO's `segmentation` shows nothing: it is empty, or has no polygon of three points."""
    if isinstance(shape, dict):
        return not shape.get("counts")
    return not (polygons(shape) if isinstance(shape, list) else shape)


def polygons(shape: list[Any]) -> list[Any]:
    """Of the parts of a shape those of at least three points; COCO's tools take other four numbers for a box."""
    return [part for part in shape if not isinstance(part, list) or len(part) >= 6]


def drawn(shape: Any, height: int, width: int) -> np.ndarray:
    """COCO's polygons, counted runs or compressed runs → mask, uint8 (height, width)."""
    from faster_coco_eval.core import mask

    runs = mask.segmToRle(polygons(shape) if isinstance(shape, list) else shape, width, height)
    return np.asarray(mask.decode(runs))


class CocoImages(DecodedImages):
    """Photographs and their targets; see reading.py for those that cannot be read.

    Training flips and crops with torch's global generator.
    """

    def __init__(self, annotations: Annotations, augmentation: Augmentation, train: bool) -> None:
        super().__init__(annotations, self._to_tensor, train)
        self.annotations = annotations
        self.augmentation = augmentation

    def _to_tensor(self, image: Image.Image) -> Tensor:
        return normalize(pil_to_tensor(image).float() / 255, list(self.augmentation.mean), list(self.augmentation.std))

    def finish(self, image: Image.Image, sample: Encoded) -> Sample:
        """float32 (3, H, W), normalised, and the target.

        Raises UnreadableImageError for another size than the annotations', and for masks that cannot be drawn.
        """
        self.annotations.require_size(sample.label, image.height, image.width)
        pixels = self.transform(image)
        try:
            target = self.annotations.target(sample.label, *pixels.shape[-2:])
        except Exception as error:  # what COCO's tools make of polygons and runs that are none
            raise UnreadableImageError(f"annotations, {type(error).__name__}: {error}") from error
        if not self.train:
            return pixels, target
        if torch.rand(()) < self.augmentation.hflip:
            pixels, target = mirrored(pixels, target)
        if self.augmentation.random_crop and torch.rand(()) < 0.5:
            pixels, target = random_crop(pixels, target)
        return pixels, target


def random_crop(image: Tensor, target: Target) -> Sample:
    """A rectangle of 384 to 600 pixels a side out of the picture made 400, 500 or 600 high or wide, as DETR's."""
    short = SMALLER[int(torch.randint(len(SMALLER), ()))]
    image, target = resized(image, target, short, LONGEST)
    sides = [min(int(torch.randint(CUT[0], CUT[1] + 1, ())), length) for length in image.shape[-2:]]
    corner = [int(torch.randint(length - side + 1, ())) for length, side in zip(image.shape[-2:], sides, strict=True)]
    return cropped(image, target, *corner, *sides)


def _fingerprint(*splits: Annotations) -> str:
    return fingerprint(part for annotations in splits for part in annotations.parts())
