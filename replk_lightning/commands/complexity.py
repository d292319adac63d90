"""Parameters and multiply-adds of any net for one picture, as trained, merged and deployed (Tables 5 to 9 and 11).

Nothing is computed or downloaded but a checkpoint or a config of the hub. Merged, the branches of large kernels, and of
timm's nets that are re-parameterized, are one; deployed, batch norms are folded into the layers beside them too. The
paper's "FLOPs" are multiply-adds of the merged net. Counted are convolutions, linear layers and matrix products;
auxiliary heads, which only train, are not.
"""

import argparse
from typing import TYPE_CHECKING

from replk_lightning.commands import options

if TYPE_CHECKING:
    from replk_lightning.measure.complexity import Complexity
    from replk_lightning.nets import Net

NAME = "complexity"
FORMS = {"as trained": {}, "merged": {"merged": True}, "deployed": {"merged": True, "folded": True}}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = options.parser(NAME, __doc__)
    options.add_size(p, "default: the net's own, or its recipe's")
    return p


def counted(net: "Net", size: tuple[int, int], **form: bool) -> "Complexity":
    """The net, a segmenter or a detector, for one picture of `size`."""
    from dataclasses import replace
    from typing import Any

    from replk_lightning.measure.complexity import complexity, detector_complexity
    from replk_lightning.tasks.detect import DetectTask
    from replk_lightning.tasks.segment import SegmentTask

    task: Any = None if net.trained is None else net.trained.task
    if isinstance(task, DetectTask):
        recipe = replace(task.recipe, num_classes=task.hparams["num_classes"])
        model_options = task.hparams["model_options"] or {}
        return detector_complexity(task.hparams["model"], recipe, size=size, **form, **model_options)
    if isinstance(task, SegmentTask):
        setattr(task.model, "auxiliary_head", None)  # noqa: B010  (mypy: a Module's attributes are Modules)
    return complexity(net.net, (net.in_chans, *size), **form)


def run(arguments: argparse.Namespace) -> None:
    """Count and print."""
    from contextlib import nullcontext

    import torch

    from replk_lightning.models import ModelError
    from replk_lightning.nets import brings_weights, open_net

    with nullcontext() if brings_weights(arguments.model) else torch.device("meta"):
        net = open_net(arguments.model, pretrained=False)
    size = options.size_of(arguments, net.preprocessing.size)
    try:
        found = {name: counted(net, size, **form) for name, form in FORMS.items()}
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(options.refused(net, size, error)) from error
    print(f"{net.name}, one picture of {net.in_chans}×{size[0]}×{size[1]}")
    print(f"{'':12}{'parameters':>14}{'multiply-adds':>20}")
    for name, (parameters, macs) in found.items():
        print(f"{name:12}{parameters:14,}{macs:20,}")


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a wrong argument gives one sentence and 2, Ctrl-C 130."""
    return options.answer(NAME, run, parser().parse_args(argv), None)
