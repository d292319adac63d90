"""The effective receptive field of any net on a folder of pictures, as Table 10 and Figure 1 measure and draw it.

Pictures are squeezed to --size (the paper's 1024 pixels) instead of being cropped. The folder given by --out then holds
`erf.png`, the contribution scores (Appendix B, Eq. 1 and 2, on the last map before its norm), and `erf.json`: `model`,
`weights`, `preprocessing`, `pictures` and `unreadable` ones, and `r`, the share of the picture's area that the smallest
centred square takes up which holds more than t of the scores, for each t. Of a segmenter or a detector the backbone is
looked at; tokens of a Vision Transformer are laid out as the map that they are.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replk_lightning.arguments import positive
from replk_lightning.commands import options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from replk_lightning.data.augment import Preprocessing
    from replk_lightning.data.pools import FolderImages
    from replk_lightning.nets import Net

NAME = "erf"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = options.parser(NAME, __doc__)
    p.add_argument("--images", required=True, type=Path, help="a folder of pictures, and of folders of pictures")
    p.add_argument("--out", required=True, type=Path, help="folder of erf.png and erf.json")
    p.add_argument(
        "--count", type=positive, default=50, help="pictures at most, from all over the folder (default: 50)"
    )
    options.add_size(p, "default: 1024, as in the paper")
    options.add_random(p)
    options.add_device(p)
    return p


class Pictures:
    """Some pictures of a folder as a net of `channels` wants them; `seen` and `unreadable` fill while they are read."""

    def __init__(self, folder: "FolderImages", count: int, preprocessing: "Preprocessing", channels: int) -> None:
        last = len(folder) - 1
        count = min(count, len(folder))
        self.folder, self.mode = folder, "L" if channels == 1 else "RGB"
        self.chosen = [round(last * n / max(1, count - 1)) for n in range(count)]
        self.transform = preprocessing.transform()
        self.seen: list[str] = []
        self.unreadable: list[dict[str, str]] = []

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator["Tensor"]:
        from replk_lightning.data.decoding import UnreadableImageError
        from replk_lightning.predict.command import decoded

        for index in self.chosen:
            name = self.folder.name(index)
            try:
                picture = decoded(self.folder.root / name).convert(self.mode)
            except UnreadableImageError as reason:
                self.unreadable.append({"file": name, "reason": str(reason)})
                continue
            self.seen.append(name)
            yield self.transform(picture)


def looked_at(net: "Net") -> "nn.Module":
    """What gives the map: the net itself, or the backbone of a segmenter or detector."""
    from replk_lightning.models.backbone import LastMap
    from replk_lightning.tasks.classify import ClassifyTask

    if net.trained is None or isinstance(net.trained.task, ClassifyTask):
        return net.net
    return LastMap(net.net.get_submodule("backbone"))


def run(arguments: argparse.Namespace) -> None:
    """Measure, write and say the area ratios. Raises FieldError where there is no field."""
    from replk_lightning.atomic import write_atomically
    from replk_lightning.measure.erf import THRESHOLDS, FieldError, area_ratio
    from replk_lightning.measure.field_picture import draw_field
    from replk_lightning.predict.command import open_folder

    folder = open_folder(arguments.images, arguments.out)
    device = options.chosen_device(arguments)
    size = options.size_of(arguments, (1024, 1024))
    arguments.out.mkdir(parents=True, exist_ok=True)
    net = options.opened(arguments)
    if net.in_chans not in (1, 3) or len(net.preprocessing.mean) != net.in_chans:
        numbers = len(net.preprocessing.mean)
        raise FieldError(
            f"{net.name} sees {net.in_chans} channels and normalises {numbers}: pictures have one or three of both."
        )
    preprocessing = replace(net.preprocessing, size=size, crop_pct=1.0, crop_mode="squash")
    print(f"pictures: {preprocessing}")
    pictures = Pictures(folder, arguments.count, preprocessing, net.in_chans)
    matrix = measured(net, pictures, size, device)
    ratios = dict(zip(map(str, THRESHOLDS), area_ratio(matrix), strict=True))
    about: dict[str, Any] = {"model": net.name, "weights": net.weights, "preprocessing": asdict(preprocessing)}
    content = {**about, "pictures": pictures.seen, "unreadable": pictures.unreadable, "r": ratios}
    write_atomically(arguments.out / "erf.json", json.dumps(content, indent=1) + "\n")
    write_atomically(arguments.out / "erf.png", draw_field(matrix, f"{net.name}, weights {net.weights}", ratios))
    print("t    " + "".join(f"{float(t):>8.0%}" for t in ratios))
    print("r (%)" + "".join(f"{100 * r:8.2f}" for r in ratios.values()))
    if pictures.unreadable:
        print(f"{len(pictures.unreadable)} pictures could not be read; they are listed in erf.json as unreadable.")
    print(f"{len(pictures.seen)} of {len(folder)} pictures: {arguments.out / 'erf.png'}, {arguments.out / 'erf.json'}")


def measured(net: "Net", pictures: Pictures, size: tuple[int, int], device: Any) -> Any:
    """The contribution scores; raises FieldError, for a size that the net does not take too."""
    from replk_lightning.measure.erf import FieldError, contribution

    try:
        return contribution(looked_at(net).to(device), pictures, progress=sys.stderr.isatty())
    except FieldError:
        if pictures.seen:
            raise
        raise FieldError(f"none of the {len(pictures)} pictures in {pictures.folder.root} can be read.") from None
    except (RuntimeError, AssertionError, ValueError) as error:
        raise FieldError(options.refused(net, size, error)) from error


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a wrong argument gives one sentence and 2, Ctrl-C 130."""
    arguments = parser().parse_args(argv)
    return options.answer(NAME, run, arguments, arguments.out)
