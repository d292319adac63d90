"""python -m ablations.reproduce: what is missing of every table and figure, the cheap first, and one page of them all.

Counts come first, then timings, then training: seeds outermost, so that every table has a verdict before any has its
second seed, and within a seed the table that is estimated to take least. What cannot run here is named with the reason
before anything starts. Ctrl-C or a kill at any moment costs at most an epoch: the same command goes on.
"""

import sys
from collections.abc import Sequence

from ablations.commands.options import OneLineErrors, ReproduceOptions, add_training
from ablations.runner.signals import interruptible


def parser() -> OneLineErrors:
    """The command line."""
    p = OneLineErrors(prog="python -m ablations.reproduce", description=__doc__)
    p.add_argument("--only", nargs="+", metavar="NAME", help="these ablations; see python -m ablations.run --list")
    add_training(p, seeds="0 1 2 at small, else 0")
    return p


def parsed(argv: Sequence[str] | None = None) -> ReproduceOptions:
    """What was given; exits with a sentence for what is not for this command."""
    p = parser()
    arguments, others = p.parse_known_args(argv)
    if others and others[0].startswith("-"):
        p.error(f"{others[0]} is not for all tables; --rows, --init, --list and --timing are for ablations.run")
    if others:
        p.error(f"tables are named with --only {others[0]}")
    options = ReproduceOptions.of(arguments)
    if options.contradiction:
        p.error(options.contradiction)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; a wrong argument gives one sentence and 2, as a failure; Ctrl-C 130, SIGTERM 143."""
    options = parsed(argv)
    with interruptible() as interruption:
        try:
            from ablations.commands.reproduce import perform  # takes seconds, which --help need not wait for

            return perform(options, interruption)
        except KeyboardInterrupt:
            return interruption.status


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a file or pipe on Windows may lack × and ±
    sys.exit(main())
