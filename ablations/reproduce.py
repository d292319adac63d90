"""python -m ablations.reproduce: what is missing of every table and figure, the cheap first, and one page of them all.

Counts come first, then timings, then training: seeds outermost, so that every table has a verdict before any has its
second seed, and within a seed the table that is estimated to take least. What cannot run here is named with the reason
before anything starts. Ctrl-C or a kill at any moment costs at most an epoch: the same command goes on.
"""

import argparse
import logging
import sys

from ablations.commands.reproduce import KNOWN, reproduce
from ablations.runner.signals import interruptible


def parser() -> argparse.ArgumentParser:
    """The flags of this command; all others are `ablations.run`'s."""
    p = argparse.ArgumentParser(
        prog="python -m ablations.reproduce",
        description=__doc__,
        epilog="Every other flag of python -m ablations.run is passed on: --data, --devices, --strategy, …",
    )
    p.add_argument("--scale", default="small", help="smoke, small or paper (default: small)")
    p.add_argument("--only", nargs="+", metavar="NAME", help="these ablations; see python -m ablations.run --list")
    p.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2 at scale small, else 0")
    p.add_argument("--dry-run", action="store_true", help="say what would be run and how long it may take, and stop")
    return p


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a wrong argument gives one sentence and 2, as a failure; Ctrl-C 130, SIGTERM 143."""
    own, rest = parser().parse_known_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with interruptible() as interruption:
        try:
            return reproduce(own, rest, interruption)
        except KNOWN as error:
            print(f"ablations.reproduce: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return interruption.status


if __name__ == "__main__":
    sys.exit(main())
