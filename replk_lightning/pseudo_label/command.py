"""python -m replk_lightning pseudo-label: soft labels of teachers for a folder or data set of images.

Each teacher labels one task. The folder given by --out then holds sharded Parquet, which any of its readers
understands and `replk_lightning.data.multitask` trains on. A run that is killed loses at most the shard at hand; the
same command goes on. Several processes share the work by --rank and --world, or under torchrun.
"""

import argparse
import os
import sys
from pathlib import Path

from replk_lightning.arguments import INTERRUPTED, OneLineErrors, positive
from replk_lightning.data import DataError
from replk_lightning.data.label_shards import UNREADABLE
from replk_lightning.data.pools import Pool, open_pool
from replk_lightning.devices import default_device, device_called
from replk_lightning.models import ModelError
from replk_lightning.models.weights import CheckpointError
from replk_lightning.pseudo_label.labelling import HumanLabels, PseudoLabelError, label
from replk_lightning.pseudo_label.teachers import TASK, load_teachers
from replk_lightning.recipes import RecipeError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = OneLineErrors(prog="python -m replk_lightning pseudo-label", description=__doc__)
    p.add_argument(
        "--teacher", nargs="+", action="extend", default=[], metavar="[TASK=]NAME",
        help="a timm model, NAME@WEIGHTS for one with weights from a file, or a checkpoint of fit or timm's train.py",
    )  # fmt: skip
    p.add_argument("--images", required=True, help="a folder, hf:NAME, or a data set of this package")
    p.add_argument("--out", required=True, type=Path, help="folder of the shards")
    p.add_argument(
        "--labels", metavar="TASK", help="the human labels (class folders, a label column) are this task's: keep them"
    )
    p.add_argument("--label-column", help="column of the human labels (default: the only one of class labels)")
    p.add_argument("--split", default="train", help="of a data set (default: train)")
    p.add_argument("--top-k", type=_top_k, default=10, metavar="K", help="classes kept an image, or all (default: 10)")
    p.add_argument("--shard-size", type=positive, default=4096, help="images a file (default: 4096)")
    p.add_argument("--batch-size", type=positive, default=64)
    p.add_argument(
        "--workers", type=_not_negative, help="processes that read images (default: 8 beside a GPU, none beside a CPU)"
    )
    p.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    p.add_argument("--rank", type=_not_negative, default=int(os.environ.get("RANK", 0)), help="of this process, from 0")
    p.add_argument("--world", type=positive, default=int(os.environ.get("WORLD_SIZE", 1)), help="number of processes")
    return p


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return number


def _top_k(text: str) -> int | None:
    return None if text == "all" else positive(text)


def human_labels(pool: Pool, task: str | None) -> dict[str, HumanLabels]:
    """The pool's own labels under the name of their task. Raises DataError if it has none."""
    if task is None:
        return {}
    if pool.num_classes is None:
        raise DataError(f"{pool.spec} has no labels for task {task}: put the images into class folders.")
    return {task: HumanLabels(pool.labels, pool.num_classes)}


def run(arguments: argparse.Namespace) -> None:
    """Label what is missing and say what was done."""
    if not (arguments.teacher or arguments.labels):
        raise PseudoLabelError("nothing to write: name a --teacher, or the task of human --labels.")
    if arguments.rank >= arguments.world:
        raise PseudoLabelError(f"rank {arguments.rank} does not exist among {arguments.world} processes.")
    if arguments.labels and not TASK.fullmatch(arguments.labels):
        raise PseudoLabelError(f"{arguments.labels!r} cannot name a task: use letters, digits and underscores.")
    pool = open_pool(arguments.images, arguments.split, arguments.label_column)
    device = device_called(arguments.device or str(default_device()))
    beside = 0 if device.type == "cpu" else 8
    summary = label(
        pool,
        load_teachers(arguments.teacher),
        arguments.out,
        human=human_labels(pool, arguments.labels),
        top_k=arguments.top_k,
        shard_size=arguments.shard_size,
        batch_size=arguments.batch_size,
        workers=beside if arguments.workers is None else arguments.workers,
        device=device,
        rank=arguments.rank,
        world=arguments.world,
        split=arguments.split,
    )
    print(summary)
    if summary.unreadable:
        print(f"{len(summary.unreadable)} images could not be read; they are listed in {arguments.out / UNREADABLE}:")
        for name, reason in summary.unreadable[:10]:
            print(f"  {name}: {reason}")


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a wrong argument gives one sentence and 2, Ctrl-C 130."""
    arguments = parser().parse_args(argv)
    try:
        run(arguments)
    except (PseudoLabelError, DataError, ModelError, CheckpointError, RecipeError) as error:
        print(f"pseudo-label: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pseudo-label: {arguments.out} cannot be written: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
