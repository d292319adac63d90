"""ADE20K's scene parsing: 20,210 images to train and 2,000 to validate on, 150 classes (Tables 5 and 8)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from replk_lightning.data.base import DataError
from replk_lightning.data.folders import walk
from replk_lightning.data.hub import open_splits
from replk_lightning.data.segmentation import IGNORED, Labelled, LabelledFiles, SegmentAugmentation

HUB, REVISION = "zhoubolei/scene_parse_150", "refs/convert/parquet"
ARCHIVE = "ADEChallengeData2016.zip"


class Ade20k(LabelledFiles):
    """The official folders, or the hub's copy of them where no folder is named.

    Args:
        root: `ADEChallengeData2016`, with `images/{training,validation}/*.jpg` and `annotations/…/*.png`.

    A file's 0 ("other") is ignored; 1 to 150 are classes 0 to 149, called by the first of the names that the archive's
    own list gives each.
    """

    class_count = 150

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        augmentation: SegmentAugmentation,
        batch_size: int = 2,
        num_workers: int = 4,
    ) -> None:
        super().__init__("ade20k", augmentation, batch_size, num_workers)
        self.root = None if root is None else Path(root).expanduser()
        self.classes = np.full(256, IGNORED, np.uint8)
        self.classes[1:151] = np.arange(150)
        self.names = tuple(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines())

    def find(self, train: bool) -> Sequence[Labelled]:
        """Pairs of files sorted by name, or rows of the hub's parquet files."""
        if self.root is None:
            return HubPairs("train" if train else "validation")
        split = "training" if train else "validation"
        folder = self.root / "images" / split
        images = [folder / name for name in walk(folder).names]
        if not images:
            raise DataError(
                f"{self.root} holds no ADE20K images: unpack {ARCHIVE} and name its folder, "
                f"so that {self.root / 'images' / split} exists."
            )
        labels = [self.root / "annotations" / split / path.relative_to(folder).with_suffix(".png") for path in images]
        missing = [label for label in labels if not label.is_file()]
        if missing:
            raise DataError(f"{missing[0]} is missing: unpack {ARCHIVE} whole.")
        return [Labelled(path.name, str(path), str(label)) for path, label in zip(images, labels, strict=True)]


class HubPairs(Sequence[Labelled]):
    """One split of the hub's copy, encoded as it is stored. Raises DataError where the hub cannot be reached."""

    def __init__(self, split: str) -> None:
        import datasets

        rows: Any = open_splits(HUB, None, streaming=False, revision=REVISION)[split]
        undecoded = datasets.Image(decode=False)
        self.split = split
        self.rows = rows.cast_column("image", undecoded).cast_column("annotation", undecoded)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        return Labelled(f"{HUB} {self.split} {index}", row["image"]["bytes"], row["annotation"]["bytes"])
