"""python -m replk_lightning predict: what a trained net finds in the pictures of a folder.

The checkpoint says which task it is of. The folder given by --out then holds `predictions.json`, and for segmentation
and detection an overlay of each picture at the picture's own size, `NAME.png` for a picture NAME. Classes are numbered
as in training, and named where the checkpoint has the names of the data's classes.

predictions.json: `task`, `model`, `recipe`, `num_classes`; `images`, a list with `file`, `width` and `height` of each
picture and what was found: `classes`, `names` and `probabilities`; or `segments` of `class`, `name`, `share` of the
pixels and `mask`; or `objects` of `class`, `name`, `score`, `box` (left, top, right, bottom in pixels) and `mask`,
masks as COCO's compressed runs; and `unreadable`, a list of `file` and `reason`.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from replk_lightning.arguments import INTERRUPTED, OneLineErrors, positive
from replk_lightning.atomic import write_atomically
from replk_lightning.data import DataError
from replk_lightning.data.decoding import UnreadableImageError, decode_rgb
from replk_lightning.data.pools import FolderImages
from replk_lightning.devices import default_device, device_called
from replk_lightning.models import ModelError
from replk_lightning.models.weights import CheckpointError
from replk_lightning.predict.predictors import Finder, finder_for
from replk_lightning.recipes import RecipeError
from replk_lightning.tasks.factory import load_task

PREDICTIONS = "predictions.json"
Picture = tuple[str, Image.Image]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = OneLineErrors(
        prog="python -m replk_lightning predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--ckpt", "--ckpt_path", required=True, type=Path, help="a checkpoint that `fit` wrote: last.ckpt")
    p.add_argument("--images", required=True, type=Path, help="a folder of pictures, and of folders of pictures")
    p.add_argument("--out", required=True, type=Path, help="folder of predictions.json and the overlays")
    p.add_argument("--top-k", type=positive, default=5, help="classes of a picture, in classification (default: 5)")
    p.add_argument("--score", type=_share, default=0.3, help="least score of an object, in detection (default: 0.3)")
    p.add_argument("--batch-size", type=positive, default=1, help="pictures at a time (default: 1)")
    p.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    return p


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return number


def open_folder(folder: Path, out: Path) -> FolderImages:
    """The pictures in `folder`; raises DataError where there are none or `out` would be among them."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: name one that holds pictures with --images.")
    pictures = FolderImages(folder)
    if any(out.resolve().is_relative_to(place) for place in pictures.reached):
        raise DataError(
            f"{out} lies in {folder}, where what is written would be taken for pictures: name another --out."
        )
    return pictures


def decoded(path: Path) -> Image.Image:
    """The picture in a file, as 8-bit RGB; raises UnreadableImageError, for a very large one too."""
    if not path.is_file():  # opening a pipe would wait for ever
        raise UnreadableImageError("it is not a file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return decode_rgb(str(path))


class Folder:
    """Everything found in the pictures of a folder, and the overlays written beside.

    Attributes:
        images: an entry of JSON for each picture.
        unreadable: `file` and `reason` of each that could not be read or was too much for the net.
    """

    def __init__(self, finder: Finder, pictures: FolderImages, out: Path) -> None:
        self.finder, self.pictures, self.out = finder, pictures, out
        self.images: list[dict[str, Any]] = []
        self.unreadable: list[dict[str, str]] = []

    def predict(self, batch_size: int) -> None:
        """Look at all pictures. Raises OSError where an overlay cannot be written."""
        names = [self.pictures.name(index) for index in range(len(self.pictures))]
        with tqdm(total=len(names), unit="picture", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
            for start in range(0, len(names), batch_size):
                part = names[start : start + batch_size]
                self._look_at(list(self._readable(part)))
                bar.update(len(part))

    def _readable(self, names: list[str]) -> Iterator[Picture]:
        for name in names:
            try:
                yield name, decoded(self.pictures.root / name)
            except UnreadableImageError as reason:
                self.unreadable.append({"file": name, "reason": str(reason)})

    @torch.inference_mode()
    def _look_at(self, batch: list[Picture]) -> None:
        if not batch:
            return
        try:
            found = self.finder.find([picture for _, picture in batch])
        except (RuntimeError, ValueError, AssertionError, MemoryError) as error:  # a picture of one pixel, or too large
            if len(batch) > 1:
                for each in batch:
                    self._look_at([each])
                return
            reason = f"the net fails on it: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            self.unreadable.append({"file": batch[0][0], "reason": reason})
            return
        for (name, picture), (values, overlay) in zip(batch, found, strict=True):
            self.images.append({"file": name, "width": picture.width, "height": picture.height, **values})
            if overlay is not None:
                path = self.out / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                to_pil_image(overlay).save(path)


def run(arguments: argparse.Namespace) -> None:
    """Look at all pictures, write what was found, and say how much it is. Raises DataError where nothing was read."""
    trained = load_task(arguments.ckpt)
    pictures = open_folder(arguments.images, arguments.out)
    device = device_called(arguments.device or str(default_device()))
    finder = finder_for(trained, device, arguments.top_k, arguments.score)
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = Folder(finder, pictures, arguments.out)
    folder.predict(arguments.batch_size)
    options = trained.task.hparams
    about = {name: options[name] for name in ("model", "recipe", "num_classes") if name in options}
    found = {"images": folder.images, "unreadable": folder.unreadable}
    content = json.dumps({"task": finder.kind, **about, **found}, indent=1)  # escapes names that are no UTF-8
    write_atomically(arguments.out / PREDICTIONS, content + "\n")
    print(f"{len(folder.images)} pictures, {finder.kind}: {arguments.out / PREDICTIONS}")
    if folder.unreadable:
        print(f"{len(folder.unreadable)} could not be read; they are listed there as unreadable.")
    if not folder.images:
        raise DataError(f"none of the {len(pictures)} pictures in {arguments.images} could be read.")


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a wrong argument gives one sentence and 2, Ctrl-C 130."""
    arguments = parser().parse_args(argv)
    try:
        run(arguments)
    except (CheckpointError, DataError, ModelError, RecipeError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"predict: {arguments.out} cannot be written: {error.strerror or error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
