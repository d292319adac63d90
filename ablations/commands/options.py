"""The flags that commands share, and what was given as typed values: argparse's Namespace ends here."""

import argparse
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, Self

SCALES = "smoke: seconds, generated; small: minutes a run, scenes-solid; paper: GPU days, imagenet-1k"
MOST_JOBS = 8
"""Runs at a time where no number is named: a gigabyte each."""

MAX_SEEDS = 20
LOGGERS = ("csv", "tensorboard", "wandb")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
STORAGE = "sqlite:///runs/sweeps.db"


class OneLineErrors(argparse.ArgumentParser):
    """Says what is wrong without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        """One sentence and 2."""
        self.exit(2, f"{self.prog.split()[-1]}: {message}; see --help.\n")


def add_data(parser: argparse.ArgumentParser) -> None:
    """What is trained on, of all commands."""
    parser.add_argument("--scale", default="small", help=f"{SCALES} (default: small)")
    parser.add_argument("--data", help="a data set instead of the scale's: mnist5k, fashion-mnist, imagefolder:PATH, …")
    parser.add_argument("--transfer-data", help="likewise for segmentation or detection: ade20k:PATH, coco:PATH, …")


def add_machine(parser: argparse.ArgumentParser) -> None:
    """What is trained on one device, of all commands."""
    parser.add_argument("--accelerator", "--device", default="auto", help="cpu, gpu, … (default: auto)")
    parser.add_argument("--precision", help="any of Lightning's (default: bf16-mixed on GPUs, 32-true on CPUs)")
    parser.add_argument(
        "--logger",
        nargs="+",
        default=[],
        choices=LOGGERS,
        help="where curves go, into runs/logs; records stay as they are",
    )


def add_jobs(parser: argparse.ArgumentParser, what: str, default: str) -> None:
    """How many at a time, of all commands; `default` says how many it is where none are named."""
    how = "on a CPU with a share of its threads each, on GPUs on a device each, or shared"
    parser.add_argument(
        "--jobs", type=at_least_one, metavar="N", help=f"N {what} at a time: {how} (default: {default})"
    )


def add_training(parser: argparse.ArgumentParser, seeds: str) -> None:
    """What `run` and `reproduce` have in common; `seeds` says which are the default."""
    add_data(parser)
    parser.add_argument("--seeds", type=int, nargs="+", help=f"default: {seeds}")
    parser.add_argument(
        "--until-decided", action="store_true", help="add seeds to the rows that undecided claims name, cheapest first"
    )
    parser.add_argument(
        "--max-seeds", type=at_least_one, metavar="N", help=f"with it: no more seeds a claim (default: {MAX_SEEDS})"
    )
    parser.add_argument("--budget", type=duration, metavar="TIME", help="with it: stop before 90m, 10h, 2d, … are over")
    parser.add_argument("--results", type=Path, help="default: results/, or runs/smoke/ at scale smoke")
    parser.add_argument(
        "--from-scratch", action="store_true", help="segment or detect without pre-training, in columns of their own"
    )
    parser.add_argument("--dry-run", action="store_true", help="print every run and do nothing")
    add_machine(parser)
    parser.add_argument("--devices", help="how many devices a node (default: all at scale paper, else 1)")
    parser.add_argument("--num-nodes", type=int, default=1)
    parser.add_argument("--strategy", default="auto", help="any of Lightning's: ddp, fsdp, …")
    add_jobs(parser, "runs", f"at scale small on a CPU its threads, at most {MOST_JOBS}, else 1")
    parser.add_argument(
        "--submitit",
        nargs="*",
        type=key_and_value,
        metavar="KEY=VALUE",
        help="a job of SLURM for each run, with submitit's parameters: slurm_partition=gpu timeout_min=600 …",
    )
    parser.add_argument("--sync-bn", action="store_true", help="BatchNorm over the batches of all devices together")


def at_least_one(text: str) -> int:
    """A number of things, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def duration(text: str) -> float:
    """`90m`, `10h`, `2d`, `30s` or `30` → seconds, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([smhd]?)", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 90m, 10h, 2d or a number of seconds")
    return float(match[1]) * SECONDS[match[2]]


def key_and_path(text: str) -> tuple[str, str]:
    """`KEY=PATH`, for argparse."""
    key, _, path = text.partition("=")
    if not (key and path):
        raise argparse.ArgumentTypeError(f"{text!r} names no checkpoint of a row: write KEY=PATH")
    return key, path


def key_and_value(text: str) -> tuple[str, str]:
    """`KEY=VALUE`, for argparse."""
    key, _, value = text.partition("=")
    if not (key and value):
        raise argparse.ArgumentTypeError(f"{text!r} is no parameter of submitit: write KEY=VALUE")
    return key, value


@dataclass(frozen=True)
class Options:
    """What was given on a command line; None or nothing stands for a default that depends on the scale."""

    scale: str = "small"
    data: str | None = None
    transfer_data: str | None = None
    results: Path | None = None
    accelerator: str = "auto"
    precision: str | None = None
    logger: tuple[str, ...] = ()

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Self:
        """The fields' flags out of what argparse has parsed."""
        given = {f.name: getattr(arguments, f.name, f.default) for f in fields(cls)}
        typed: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        return cls(**typed)


@dataclass(frozen=True)
class TrainingOptions(Options):
    """What `run` and `reproduce` have in common; `rows` and `init` are of the former alone."""

    rows: tuple[str, ...] | None = None
    init: tuple[tuple[str, str], ...] = ()
    seeds: tuple[int, ...] | None = None
    from_scratch: bool = False
    dry_run: bool = False
    devices: str | None = None
    num_nodes: int = 1
    strategy: str = "auto"
    sync_bn: bool = False
    jobs: int | None = None
    submitit: tuple[tuple[str, str], ...] | None = None
    until_decided: bool = False
    max_seeds: int | None = None
    budget: float | None = None

    @property
    def one_device(self) -> bool:
        """Whether each run has one: several would have to agree on what comes next, and when the time is over."""
        return (self.jobs or 1) > 1 or self.until_decided or self.submitit is not None

    @property
    def contradiction(self) -> str | None:
        """What was given that does not go together, in a sentence."""
        if self.one_device and (self.num_nodes > 1 or self.devices not in (None, "1")):
            flag = "--jobs" if (self.jobs or 1) > 1 else "--until-decided" if self.until_decided else "--submitit"
            return f"{flag} trains each run on one device: leave out --devices and --num-nodes"
        if self.submitit is not None and (self.jobs or 1) > 1:
            return "--submitit leaves to the cluster how many run at a time: leave out --jobs"
        if self.submitit is not None and self.until_decided:
            return (
                "--until-decided needs the numbers of one processor, and a cluster's jobs may have any: no --submitit"
            )
        if not self.until_decided:
            given = [name for name in ("max_seeds", "budget") if getattr(self, name) is not None]
            return f"--{given[0].replace('_', '-')} goes with --until-decided" if given else None
        chosen = [name for name in ("rows", "seeds", "from_scratch", "timing") if getattr(self, name, None)]
        return f"--until-decided takes no --{chosen[0].replace('_', '-')}: claims say what to train" if chosen else None


@dataclass(frozen=True)
class RunOptions(TrainingOptions):
    """Flags of `python -m ablations.run NAME`."""

    name: str = ""
    timing: bool = False


@dataclass(frozen=True)
class ReproduceOptions(TrainingOptions):
    """Flags of `python -m ablations.reproduce`."""

    only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SweepOptions(Options):
    """Flags of `python -m ablations.sweep`; `timeout` and `heartbeat` are seconds."""

    space: str = "kernels"
    objectives: tuple[str, ...] = ("accuracy",)
    trials: int = 30
    timeout: float | None = None
    storage: str = STORAGE
    max_parameters: str | None = None
    max_macs: str | None = None
    seed: int = 0
    heartbeat: int = 30
    jobs: int = 1
    remeasure: bool = False
