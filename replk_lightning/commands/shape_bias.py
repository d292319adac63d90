"""The shape bias of any ImageNet-1K classifier on Geirhos's cue-conflict stimuli, as Figure 5 shows it.

The folder given by --stimuli holds files such as cat7-elephant1.png (shape, then texture) at any depth. For each class
of shape: the share of decisions for the shape among those for the shape or the texture.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from replk_lightning.commands import options

if TYPE_CHECKING:
    from replk_lightning.nets import Net

NAME = "shape-bias"
CLASSES = 1000
"""Of ImageNet-1K, which the 16 classes of the stimuli are made of."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = options.parser(NAME, __doc__)
    p.add_argument("--stimuli", required=True, type=Path, help="the folder of stimuli")
    options.add_random(p)
    options.add_device(p)
    return p


def require_imagenet(net: "Net") -> None:
    """Raises ModelError unless the net tells ImageNet-1K's classes apart in pictures of three channels."""
    from replk_lightning.models import ModelError
    from replk_lightning.tasks.classify import ClassifyTask

    if net.trained is None:
        classes = getattr(net.net, "num_classes", 0)
    else:
        task = net.trained.task
        classes = task.hparams["num_classes"] if type(task) is ClassifyTask else 0
    if classes != CLASSES:
        what = f"has {classes} classes" if classes else "is no classifier of one task"
        raise ModelError(f"{net.name} {what}: shape bias needs one of ImageNet-1K's {CLASSES} classes.")
    if net.in_chans != 3:
        raise ModelError(f"{net.name} sees {net.in_chans} channels, which the stimuli do not have.")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    from replk_lightning.measure.shape_bias import find_stimuli, measure_stimuli

    device = options.chosen_device(arguments)
    count = len(find_stimuli(arguments.stimuli))
    net = options.opened(arguments)
    require_imagenet(net)
    print(f"pictures: {net.preprocessing}")
    progress = sys.stderr.isatty()
    bias = measure_stimuli(net.net.to(device), arguments.stimuli, net.preprocessing, progress=progress)
    for name, share in bias.per_class.items():
        print(f"{name:12}{100 * share:6.1f} %")
    mean = "none, for no decision was for either" if math.isnan(bias.mean) else f"{100 * bias.mean:.1f} %"
    print(f"{count} stimuli found: {100 * bias.either:.1f} % of the decisions are for the shape or the texture")
    print(f"shape bias, mean over classes: {mean}")


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a wrong argument gives one sentence and 2, Ctrl-C 130."""
    return options.answer(NAME, run, parser().parse_args(argv), None)
