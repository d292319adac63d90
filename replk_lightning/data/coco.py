"""COCO, the photographs with boxes and masks of Table 9, as its two folders and two files of annotations."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from .augment import Augmentation
from .base import DataError, ImageData, Splits, fingerprint
from .boxes import Sample, Target, as_lists, cropped, mirrored, resized
from .reading import DecodedImages, Encoded, UnreadableImageError

ARCHIVES = "train2017.zip, val2017.zip and annotations_trainval2017.zip of cocodataset.org"

SMALLER = (400, 500, 600)
"""Short sides that a photograph may have before it is cropped."""
LONGEST = 1333
CUT = (384, 600)
"""Smallest and largest side of a crop."""


class Coco(ImageData):
    """`root/annotations/instances_{train,val}2017.json` and the photographs in `root/train2017` and `root/val2017`.

    Args:
        image_size: the short side that a detector will compute at. Pictures keep their own size here: the detector
            resizes them, in training to another size every time, and gives its boxes and masks in their pixels.
        augmentation: its `hflip`, `random_crop`, `mean` and `std` are used.

    Categories are numbered from 0 in the order of their ids (COCO's have gaps). In training, crowds and boxes without
    area are left out, and pictures with nothing else; in validation, crowds are marked. Loaders give a list of images,
    float32 (3, H, W), and a list of targets (see boxes.py). The fingerprint is that of the annotations.
    """

    collate = staticmethod(as_lists)

    def __init__(
        self,
        root: str | Path = "coco",
        image_size: int = 800,
        batch_size: int = 2,
        augmentation: Augmentation | None = None,
        num_workers: int = 4,
    ) -> None:
        super().__init__("coco", in_chans=3, image_size=image_size, batch_size=batch_size, num_workers=num_workers)
        self.root = Path(root).expanduser()
        self.augmentation = augmentation or Augmentation()

    def load(self) -> Splits:
        """Read the annotations; no picture is opened yet."""
        train, val = (Annotations(self.root, split, train=split == "train") for split in ("train", "val"))
        if train.categories != val.categories:
            raise DataError(f"{self.root}: the two files of annotations name different categories; take both of 2017.")
        return Splits(
            CocoImages(train, self.augmentation, train=True),
            CocoImages(val, self.augmentation, train=False),
            num_classes=len(train.categories),
            train_size=len(train),
            fingerprint=partial(_fingerprint, train, val),
        )


class Annotations:
    """One split: every picture's file and what is on it. Raises DataError naming what is missing.

    Args:
        root: holds `annotations` and the photographs.
        split: "train" or "val".
        train: leave out what nothing can be learned from.

    What is on a picture lies as JSON in one array of bytes: worker processes would copy millions of Python objects,
    page by page, as they count references to them.
    """

    def __init__(self, root: Path, split: str, train: bool) -> None:
        self.folder = root / f"{split}2017"
        content = _read(root / "annotations" / f"instances_{split}2017.json")
        if not self.folder.is_dir():
            raise DataError(f"There is no folder {self.folder}: unpack {ARCHIVES} into {root}.")
        try:
            self.categories = sorted(category["id"] for category in content["categories"])
            names, found = self._collect(content, train)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{root}: instances_{split}2017.json is not COCO's format ({error!r}).") from error
        if not names:
            raise DataError(f"{root}: instances_{split}2017.json names no picture with a box.")
        self.names = np.array([os.fsencode(name) for name in names])
        self.ends = np.cumsum([len(each) for each in found])
        self.bytes = np.frombuffer(b"".join(found), dtype=np.uint8)

    def _collect(self, content: Mapping[str, Any], train: bool) -> tuple[list[str], list[bytes]]:
        number = {identity: label for label, identity in enumerate(self.categories)}
        objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for each in content["annotations"]:
            crowd = int(each.get("iscrowd", 0))
            if len(each["bbox"]) != 4 or not all(math.isfinite(number) for number in each["bbox"]):
                raise ValueError(f"annotation {each['id']} has the box {each['bbox']!r:.60}")
            if train and (crowd or min(each["bbox"][2:]) <= 0):
                continue
            kept = {"box": each["bbox"], "label": number[each["category_id"]], "crowd": crowd}
            objects[each["image_id"]].append(kept | {"shape": each["segmentation"]})
        pictures = sorted(content["images"], key=lambda picture: picture["id"])
        if not all(isinstance(picture["file_name"], str) for picture in pictures):
            raise TypeError("file_name")
        if train:
            pictures = [picture for picture in pictures if objects.get(picture["id"])]
        found = [json.dumps(objects.get(picture["id"], [])).encode() for picture in pictures]
        return [picture["file_name"] for picture in pictures], found

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
        masks = np.zeros((len(objects), height, width), dtype=np.uint8)
        for mask, each in zip(masks, objects, strict=True):
            mask[:] = drawn(each["shape"], height, width)
        return {
            "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
            "labels": torch.tensor([each["label"] for each in objects], dtype=torch.int64),
            "masks": torch.from_numpy(masks),
            "iscrowd": torch.tensor([each["crowd"] for each in objects], dtype=torch.int64),
        }

    def parts(self) -> Iterator[bytes]:
        """Names of the files and what is on them."""
        yield b"\0".join(self.names.tolist())
        yield self.bytes.tobytes()


def drawn(shape: Any, height: int, width: int) -> np.ndarray:
    """COCO's polygons, counted runs or compressed runs → mask, uint8 (height, width)."""
    from faster_coco_eval.core import mask

    return mask.decode(mask.segmToRle(shape, width, height))


class CocoImages(DecodedImages):
    """Photographs and their targets; an unreadable one is replaced by the next (see reading.py).

    Training flips and crops with torch's global generator.
    """

    def __init__(self, annotations: Annotations, augmentation: Augmentation, train: bool) -> None:
        super().__init__(annotations, self._to_tensor)
        self.annotations = annotations
        self.augmentation = augmentation
        self.train = train

    def _to_tensor(self, image: Image.Image) -> Tensor:
        return normalize(pil_to_tensor(image).float() / 255, list(self.augmentation.mean), list(self.augmentation.std))

    def finish(self, image: Image.Image, sample: Encoded) -> Sample:
        """float32 (3, H, W), normalised, and the target. Raises UnreadableImageError for masks that cannot be drawn."""
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


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise DataError(f"There is no {path}: unpack {ARCHIVES} into {path.parents[1]}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}): unpack it again.") from error


def _fingerprint(*splits: Annotations) -> str:
    return fingerprint(part for annotations in splits for part in annotations.parts())
