"""Pictures and masks of one's own: two folders of files with equal names, and a list of classes if there is one.

Layouts: `root/images/train` and `root/masks/train`, or `root/train/images` and `root/train/masks`, and the same for
`val` (or `validation`, `valid`, `test`). `annotations` or `labels` may stand for `masks`. Folders below are walked too.

A mask is an image of one channel, by a palette or not, without loss (PNG, …), as large as its picture, whose numbers
are the classes from 0; 255 is ignored. What the classes are called stands in `root/classes.txt`, one a line, or
`root/classes.json`, a list. Without either there are as many classes as the masks' largest number says.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from replk_lightning.atomic import write_atomically
from replk_lightning.data.base import DataError, Splits, fingerprint
from replk_lightning.data.decoding import UnreadableImageError, decode, upright_size
from replk_lightning.data.folders import walk
from replk_lightning.data.imagefolder import VALIDATION_NAMES
from replk_lightning.data.scenes import cache_folder
from replk_lightning.data.segmentation import IGNORED, Labelled, LabelledFiles, SegmentAugmentation, label_of

IMAGES, MASKS = "images", ("masks", "annotations", "labels")
LISTS = ("classes.txt", "classes.json")
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")


class Masks(LabelledFiles):
    """Segmentation of one's own (picture, mask) pairs, which lie as the module's docstring says.

    Every mask is read once to see that it fits. What was seen is kept in the cache folder; a change of any file's name,
    size or time makes it be read again.
    """

    def __init__(
        self, root: str | Path, augmentation: SegmentAugmentation, batch_size: int = 2, num_workers: int = 4
    ) -> None:
        self.root = Path(root).expanduser()
        super().__init__(f"masks-{self.root.resolve().name}", augmentation, batch_size, num_workers)
        self.classes = np.arange(256, dtype=np.uint8)

    def find(self, train: bool) -> Sequence[Labelled]:
        """Pairs of one split, by name."""
        return self.pairs[train]

    def load(self) -> Splits:
        """Find both splits, and look at every mask. Raises DataError for what does not fit."""
        self.names = read_classes(self.root)
        self.pairs = {train: pairs_in(*find_split(self.root, train)) for train in (True, False)}
        numbers = look_at([*self.pairs[True], *self.pairs[False]], self.root, self.num_workers)
        self.class_count = count_classes(self.root, self.names, numbers)
        return super().load()


def find_split(root: Path, train: bool) -> tuple[Path, Path]:
    """The folders of one split's pictures and masks. Raises DataError if there are none."""
    for split in ("train",) if train else VALIDATION_NAMES:
        for masks in MASKS:
            for pair in ((root / IMAGES / split, root / masks / split), (root / split / IMAGES, root / split / masks)):
                if all(folder.is_dir() for folder in pair):
                    return pair
    split = "train" if train else "val"
    layouts = f"{IMAGES}/{split} and {MASKS[0]}/{split}, or {split}/{IMAGES} and {split}/{MASKS[0]}"
    raise DataError(f"{root} lacks pictures with masks for {split}: put them into {layouts}.")


def pairs_in(images: Path, masks: Path) -> list[Labelled]:
    """Pictures and masks of equal names but for their endings, by name.

    Raises DataError where a picture has no mask or there are two of one name; warns of masks without a picture.
    """
    pictures, labels = _by_stem(images), _by_stem(masks)
    if not pictures:
        raise DataError(f"{images} holds no image: put files such as {images / '1.jpg'} there.")
    missing = [stem for stem in pictures if stem not in labels]
    if missing:
        raise DataError(
            f"{images / pictures[missing[0]]} has no mask ({len(missing)} of {len(pictures)} pictures have none): put "
            f"{masks / missing[0]}.png there, or take the picture away."
        )
    if lossy := [name for name in labels.values() if name.lower().endswith(LOSSY)]:
        raise DataError(f"{masks / lossy[0]} is a JPEG, which changes numbers of classes: save masks as PNG.")
    if alone := [name for stem, name in labels.items() if stem not in pictures]:
        rank_zero_warn(f"{masks}: left out {len(alone)} masks that have no picture, as {alone[0]}.")
    return [Labelled(name, str(images / name), str(masks / labels[stem])) for stem, name in pictures.items()]


def _by_stem(folder: Path) -> dict[str, str]:
    names = walk(folder).names
    stems = [str(PurePath(name).with_suffix("")) for name in names]
    for (stem, name), (other, another) in pairwise(sorted(zip(stems, names, strict=True))):
        if stem == other:
            raise DataError(f"{folder} holds {name} and {another}, which have one name: take one of them away.")
    return dict(sorted(zip(stems, names, strict=True)))


def read_classes(root: Path) -> tuple[str, ...] | None:
    """What the classes are called; None where no list of them is there. Raises DataError for a list that is none."""
    found = [root / name for name in LISTS if (root / name).is_file()]
    if not found:
        return None
    try:
        text = found[0].read_text(encoding="utf-8-sig")  # some editors begin with a mark
        names = (
            json.loads(text) if found[0].suffix == ".json" else [line.strip() for line in text.rstrip().splitlines()]
        )
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{found[0]} cannot be read as a list of classes ({error}).") from error
    if len(found) > 1:
        raise DataError(f"{root} holds two lists of classes, {' and '.join(LISTS)}: take one of them away.")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{found[0]} is no list of classes: write their names, one a line, or as a list in JSON.")
    if not 1 < len(names) <= IGNORED:
        raise DataError(f"{found[0]} names {len(names)} classes: a mask can tell 2 to {IGNORED}.")
    return tuple(names)


class Seen(NamedTuple):
    """What a look at one pair of files tells: a mask's numbers, and what is wrong with it if anything is."""

    numbers: list[int]
    fault: str


class Look(Dataset[Seen]):
    """A look at each of some pairs. Files that cannot be read are left to when they are needed."""

    def __init__(self, pairs: Sequence[Labelled]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Seen:
        _, picture, mask = self.pairs[index]
        try:
            image = decode(mask)
            width, height = upright_size(str(picture))
        except UnreadableImageError:
            return Seen([], "")
        try:
            numbers = np.flatnonzero(np.bincount(label_of(image).ravel())).tolist()
        except UnreadableImageError as reason:
            coloured = image.mode not in ("I", "F") and not image.mode.startswith("I;")
            remedy = "give each colour the number of its class" if coloured else "number the classes from 0"
            return Seen([], f"{reason}: {remedy}, and save that as an 8-bit PNG of one channel")
        if image.size != (width, height):
            return Seen([], f"it has {image.width}×{image.height} pixels and its picture {width}×{height}")
        return Seen(numbers, "")


def look_at(pairs: Sequence[Labelled], root: Path, workers: int) -> dict[int, str]:
    """Every number in the masks, and a mask that holds it. Raises DataError naming a mask that does not fit."""
    kept = cache_folder().parent / "masks" / f"{fingerprint(_states(pairs))}.json"
    with suppress(OSError, ValueError, AttributeError):  # not there, or cut short
        return {int(number): name for number, name in json.loads(kept.read_text(encoding="utf-8")).items()}
    rank_zero_info(f"{root}: looking at {len(pairs)} masks, once")
    numbers, faults = dict[int, str](), list[str]()
    loader = DataLoader(
        Look(pairs),
        batch_size=None,
        num_workers=min(workers, os.cpu_count() or 1),
        generator=torch.Generator(),  # the global one is for training
    )
    for pair, seen in zip(pairs, loader, strict=True):
        mask = os.fsdecode(pair.label)
        if seen.fault:
            faults.append(f"{mask}: {seen.fault}")
        for number in seen.numbers:
            numbers.setdefault(number, mask)
    if faults:
        raise DataError(f"{faults[0]} ({len(faults)} of {len(pairs)} masks do not fit).")
    with suppress(OSError):  # a disk that cannot be written costs the next run another look
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(numbers))
    return numbers


def _states(pairs: Sequence[Labelled]) -> Iterator[bytes]:
    for pair in pairs:
        for path in (str(pair.image), str(pair.label)):
            with suppress(OSError):  # a link to nothing
                state = os.stat(path)
                yield f"{path}\0{state.st_size}\0{state.st_mtime_ns}".encode(errors="surrogateescape")


def count_classes(root: Path, names: Sequence[str] | None, numbers: Mapping[int, str]) -> int:
    """Classes that `names` or the masks' numbers say. Raises DataError where there is one only or they disagree."""
    classes = sorted(set(numbers) - {IGNORED})
    if classes in ([], [0]):
        both = f"0 and {IGNORED}, which is ignored" if IGNORED in numbers and classes else f"{[*numbers]}"
        raise DataError(f"The masks in {root} hold no numbers but {both}: write 1 for what is to be found.")
    largest = classes[-1]
    if names is not None:
        if largest >= len(names):
            raise DataError(
                f"{numbers[largest]} holds the number {largest}, and the list in {root} names {len(names)} classes, 0 "
                f"to {len(names) - 1}: add to the list, or write {IGNORED} for what is to be ignored."
            )
        return len(names)
    rank_zero_info(f"{root}: {largest + 1} classes, as its masks' largest number is {largest}")
    if unused := largest + 1 - len(classes):
        rank_zero_warn(f"{root}: no mask holds {unused} of the {largest + 1} numbers from 0 to {largest}.")
    return largest + 1
