"""python -m ablations.sweep: search a space of models for what is accurate, fast or small.

Start it with --jobs as many as there are devices, and on any number of machines that share --storage: all work on one
study. `optuna-dashboard URL` shows it in a browser.
"""

import argparse
import sys
from pathlib import Path

from ablations.commands.options import STORAGE, OneLineErrors, SweepOptions, add_data, add_jobs, add_machine
from ablations.runner.signals import interruptible


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = OneLineErrors(prog="python -m ablations.sweep", description=__doc__)
    p.add_argument(
        "--space",
        default="kernels",
        help="kernels, mobilenet, spatial, or a Python file (see ablations/search/space.py)",
    )
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
    add_data(p)
    p.add_argument("--max-parameters", metavar="N", help="train no larger model: 5M, 300K, …, as in deployment")
    p.add_argument("--max-macs", metavar="N", help="likewise for multiply-adds an image: 1.5G, 20M, …")
    p.add_argument("--seed", type=int, default=0, help="of every trial's training (default: 0)")
    p.add_argument("--heartbeat", type=int, default=30, metavar="SECONDS", help="a worker is dead after three without")
    p.add_argument("--results", type=Path, help="folder of tables and figures (default: runs/sweeps/STUDY)")
    p.add_argument("--remeasure", action="store_true", help="at the end time all complete trials' nets in one pass")
    add_machine(p)
    add_jobs(p, "trials", "1, as trials side by side are timed beside each other")
    p.set_defaults(jobs=1)
    return p


def main(argv: list[str] | None = None) -> int:
    """Parse and search; a wrong argument gives one sentence and 2, Ctrl-C 130, SIGTERM 143."""
    options = SweepOptions.of(parser().parse_args(argv))
    with interruptible() as interruption:
        try:
            from ablations.commands.sweep import perform  # torch and optuna take seconds, and --help needs neither

            return perform(options)
        except KeyboardInterrupt:
            return interruption.status


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a file or pipe on Windows may lack × and ±
    sys.exit(main())
