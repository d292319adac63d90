"""What the commands that look at one net share: their flags, the lines they begin with, and errors in one sentence."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from replk_lightning.arguments import INTERRUPTED, OneLineErrors, positive

if TYPE_CHECKING:
    import torch

    from replk_lightning.nets import Net

NAMES = """NAME is any model of timm's, hf-hub:OWNER/NAME and local-dir:PATH among them, with the weights that timm has
for it; NAME@FILE is one with weights from a file; FILE is a checkpoint of `fit`, of an ablation or of timm's train.py.
Pictures are prepared as the model's pretrained_cfg or the checkpoint's recipe says, which is printed."""


def parser(command: str, description: str | None) -> OneLineErrors:
    """A parser with --model."""
    p = OneLineErrors(
        prog=f"python -m replk_lightning {command}",
        description=f"{description}\n{NAMES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", required=True, metavar="NAME|FILE", help="the net; see above")
    return p


def add_random(p: argparse.ArgumentParser) -> None:
    """--random and --seed."""
    p.add_argument("--random", action="store_true", help="leave the weights random though there are trained ones")
    p.add_argument("--seed", type=_seed, default=0, help="of random weights (default: 0)")


def add_device(p: argparse.ArgumentParser) -> None:
    """--device."""
    p.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")


def add_size(p: argparse.ArgumentParser, default: str) -> None:
    """--size, of one number or two."""
    p.add_argument(
        "--size", type=positive, nargs="+", metavar="N", help=f"height and width, or both in one ({default})"
    )


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return int(text)


def size_of(arguments: argparse.Namespace, default: tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    from replk_lightning.models import ModelError

    if arguments.size is None:
        return default
    if len(arguments.size) > 2:
        raise ModelError("--size takes a height and a width, or one number for both.")
    return arguments.size[0], arguments.size[-1]


def refused(net: "Net", size: tuple[int, int], error: Exception) -> str:
    """The sentence for a net that fails on pictures of `size`."""
    (height, width), own = size, net.preprocessing.size
    reason = str(error).partition("\n")[0].rstrip(".")
    remedy = f"give its own size, --size {own[0]} {own[1]}"
    return f"{net.name} fails on pictures of {height}×{width} pixels ({reason}): {remedy}."


def opened(arguments: argparse.Namespace) -> "Net":
    """The net that was asked for; says which weights it has."""
    from replk_lightning.models import ModelError
    from replk_lightning.nets import brings_weights, open_net

    if arguments.random and brings_weights(arguments.model):
        raise ModelError(f"{arguments.model} brings its weights, and --random asks for others: leave one of them out.")
    net = open_net(arguments.model, pretrained=not arguments.random, seed=arguments.seed)
    print(f"{net.name}: weights {net.weights}")
    if net.random:
        why = "--random was given" if arguments.random else f"timm has none for {net.name}"
        print(f"warning: {why}: what follows is of random weights, not of a trained net", file=sys.stderr)
    return net


def chosen_device(arguments: argparse.Namespace) -> "torch.device":
    """The device of --device; raises ModelError where it cannot be used."""
    from replk_lightning.devices import default_device, device_called

    return device_called(arguments.device or str(default_device()))


def answer(
    name: str, run: Callable[[argparse.Namespace], None], arguments: argparse.Namespace, out: Path | None
) -> int:
    """The exit status of `run`: 2 and one sentence for what a user got wrong, 130 after Ctrl-C."""
    try:
        run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ValueError as error:
        if not _is_a_sentence(error):
            raise
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{name}: {out} cannot be written: {error.strerror or error}.", file=sys.stderr)
        return 2
    return 0


def _is_a_sentence(error: ValueError) -> bool:
    """Whether an error's message is for the one who typed the command."""
    from replk_lightning.data import DataError
    from replk_lightning.measure.erf import FieldError
    from replk_lightning.models import ModelError
    from replk_lightning.models.weights import CheckpointError
    from replk_lightning.recipes import RecipeError

    return isinstance(error, DataError | FieldError | ModelError | CheckpointError | RecipeError)
