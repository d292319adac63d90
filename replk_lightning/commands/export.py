"""Any net as a file that other programs run: ONNX (--out net.onnx) or TorchScript by trace (--out net.pt).

The file holds the deployed net (branches merged, batch norms folded) unless --as-trained, takes `images`, float32
(N, C, H, W) prepared as printed, and gives `logits`: (N, classes), of a segmenter (N, classes, H, W). Batch, height and
width are left free where the net allows. Before the file stays it is run, ONNX by onnxruntime, on other batches and
sizes, and compared with the net in float64: its error may be twice that of torch in float32. Detectors are refused.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replk_lightning.commands import options

if TYPE_CHECKING:
    from torch import nn

    from replk_lightning.data.augment import Preprocessing
    from replk_lightning.nets import Net

NAME = "export"
SUFFIXES = (".onnx", ".pt")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = options.parser(NAME, __doc__)
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help="name.onnx or name.pt")
    options.add_size(p, "to export with; default: the net's own, or its recipe's")
    p.add_argument("--as-trained", action="store_true", help="write the net with its branches and batch norms")
    options.add_random(p)
    return p


def check(out: Path) -> None:
    """Raises ExportError for a file of no known kind, and where ONNX is not installed."""
    from replk_lightning.export import ExportError, missing

    if out.suffix not in SUFFIXES:
        raise ExportError(f"{out} is neither ONNX nor TorchScript: end its name with {' or '.join(SUFFIXES)}.")
    if out.suffix == ".onnx" and (absent := missing()):
        raise ExportError(f'{", ".join(absent)} not installed: pip install "replk-lightning[onnx]".')


def tensor_net(net: "Net") -> "nn.Module":
    """What gives one tensor; raises ExportError for a detector."""
    from replk_lightning.export import ExportError, MainLogits
    from replk_lightning.tasks.detect import DetectTask
    from replk_lightning.tasks.segment import SegmentTask

    task = None if net.trained is None else net.trained.task
    if isinstance(task, DetectTask):
        raise ExportError(f"{net.name} is a detector, which gives as many boxes as it finds: it cannot be exported.")
    return MainLogits(net.net).eval() if isinstance(task, SegmentTask) else net.net


def about(net: "Net", preprocessing: "Preprocessing") -> dict[str, Any]:
    """Whose net it is, how its pictures are prepared, and its classes' names where they are known."""
    from replk_lightning.tasks.multitask import MultiTaskClassify

    found = {"model": net.name, "weights": net.weights, "preprocessing": asdict(preprocessing)}
    if net.trained is not None and net.trained.class_names:
        found["classes"] = list(net.trained.class_names)
    if net.trained is not None and isinstance(net.trained.task, MultiTaskClassify):
        found["tasks"] = dict(net.trained.task.tasks)  # how many of the logits are each one's, in this order
    return found


def run(arguments: argparse.Namespace) -> None:
    """Write, and print what was compared."""
    check(arguments.out)
    from timm.utils import reparameterize_model

    from native.copying import copied
    from replk_lightning.deploy import deploy
    from replk_lightning.export import MORE, TIMES, export

    net = options.opened(arguments)
    size = options.size_of(arguments, net.preprocessing.size)
    whole = tensor_net(net)
    preprocessing = replace(net.preprocessing, size=size)
    print(f"pictures: {preprocessing}")
    form = whole if arguments.as_trained else deploy(reparameterize_model(copied(whole), inplace=True))
    done = export(whole, arguments.out, size, in_chans=net.in_chans, form=form, about=about(net, preprocessing))
    print(f"form: {'as trained' if arguments.as_trained else 'deployed'}")
    print(f"free: {', '.join(done.free) or 'nothing'}" + (f" (no more: {done.why_not})" if done.why_not else ""))
    print(f"{'images':20}{'error':>10}{'of torch':>10}{'ratio':>8}")
    for each in done.compared:
        print(f"{'×'.join(map(str, each.shape)):20}{each.error:10.1e}{each.torch_error:10.1e}{each.ratio:8.2f}")
    print(f"{arguments.out}: every error against float64 is within {TIMES} × torch's + {MORE:.1e}")


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a wrong argument gives one sentence and 2, Ctrl-C 130."""
    arguments = parser().parse_args(argv)
    return options.answer(NAME, run, arguments, arguments.out)
