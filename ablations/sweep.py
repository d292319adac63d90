"""python -m ablations.sweep: search a space of models for what is accurate, fast or small.

Start the same command as often as there are devices, on one machine or many that share --storage: all work on one
study. `optuna-dashboard URL` shows it in a browser.
"""

import argparse
import sys
from pathlib import Path

from ablations.runner.signals import interruptible

STORAGE = "sqlite:///runs/sweeps.db"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m ablations.sweep", description=__doc__)
    p.add_argument("--space", default="kernels", help="kernels, mobilenet, or a Python file (see ablations/spaces.py)")
    p.add_argument(
        "--objectives",
        nargs="+",
        default=["accuracy"],
        metavar="NAME",
        help="accuracy, miou, latency, macs, parameters; one is searched by TPE with pruning, several by NSGA-II",
    )
    p.add_argument("--trials", type=int, default=30, help="complete trials in all, by all workers (default: 30)")
    p.add_argument("--timeout", type=float, metavar="SECONDS", help="start no trial after this time")
    p.add_argument("--storage", default=STORAGE, metavar="URL", help=f"any of SQLAlchemy's (default: {STORAGE})")
    p.add_argument("--scale", default="small", help="smoke, small or paper, as for ablations.run (default: small)")
    p.add_argument("--data", help="a data set instead of the scale's: mnist5k, imagefolder:PATH, hf:NAME, …")
    p.add_argument("--transfer-data", help="likewise for segmentation")
    p.add_argument("--max-parameters", metavar="N", help="train no larger model: 5M, 300K, …, as in deployment")
    p.add_argument("--max-macs", metavar="N", help="likewise for multiply-adds an image: 1.5G, 20M, …")
    p.add_argument("--seed", type=int, default=0, help="of every trial's training (default: 0)")
    p.add_argument("--heartbeat", type=int, default=30, metavar="SECONDS", help="a worker is dead after three without")
    p.add_argument("--results", type=Path, help="folder of tables and figures (default: runs/sweeps/STUDY)")
    p.add_argument("--remeasure", action="store_true", help="at the end time all complete trials' nets in one pass")
    p.add_argument("--accelerator", "--device", default="auto", help="cpu, gpu, … (default: auto)")
    p.add_argument("--precision", help="any of Lightning's (default: bf16-mixed on GPUs, 32-true on CPUs)")
    return p


def main(argv: list[str] | None = None) -> int:
    """Parse and search; a wrong argument gives one sentence and 2, Ctrl-C 130, SIGTERM 143."""
    arguments = parser().parse_args(argv)
    from ablations.commands.sweep import search  # torch and optuna take seconds, and --help needs neither
    from ablations.spec import SpecError
    from replk_lightning.data import DataError
    from replk_lightning.models import ModelError

    with interruptible() as interruption:
        try:
            search(arguments)
        except (SpecError, DataError, ModelError) as error:
            print(f"ablations.sweep: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return interruption.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
