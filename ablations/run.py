"""python -m ablations.run NAME: train what is missing of one table of the paper, and print the table."""

import argparse
import sys

from ablations.commands.options import OneLineErrors, RunOptions, add_training, key_and_path
from ablations.registry import listing
from ablations.runner.signals import interruptible


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = OneLineErrors(prog="python -m ablations.run", description=__doc__)
    p.add_argument("name", nargs="?", help="an ablation; see --list")
    p.add_argument("--list", action="store_true", help="name every ablation and stop")
    p.add_argument("--rows", nargs="+", metavar="KEY", help="only these rows of the table")
    p.add_argument(
        "--init",
        nargs="+",
        default=[],
        metavar="KEY=PATH",
        type=key_and_path,
        help="checkpoints that fine-tuned rows start from",
    )
    p.add_argument(
        "--timing", action="store_true", help="measure the columns that time this machine, and train nothing"
    )
    add_training(p, seeds="10 at small (up to 9 are committed), else 0")
    return p


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a wrong argument gives one sentence and 2, Ctrl-C 130, SIGTERM 143."""
    p = parser()
    arguments = p.parse_args(argv)
    if arguments.list:
        print(listing())
        return 0
    if not arguments.name:
        print("name an ablation, or use --list to see them.", file=sys.stderr)
        return 2
    options = RunOptions.of(arguments)
    if options.contradiction:
        p.error(options.contradiction)
    with interruptible() as interruption:
        try:
            from ablations.commands.run import perform  # takes seconds, which --list and --help need not wait for

            return perform(options)
        except KeyboardInterrupt:
            print("stopped; what is finished is kept, the same command goes on from there.", file=sys.stderr)
            return interruption.status


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a file or pipe on Windows may lack × and ±
    sys.exit(main())
