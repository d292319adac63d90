"""python -m replk_lightning fit, validate, test, predict, pseudo-label, erf, shape-bias, complexity, export or timm."""

import sys

from replk_lightning.commands import COMMANDS, run_command


def main() -> int:
    """Run the command; Lightning is imported for its own only."""
    if sys.argv[1:] and sys.argv[1] in COMMANDS:
        return run_command(sys.argv[1], sys.argv[2:])
    from replk_lightning import cli

    return cli.main()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a file or pipe on Windows may lack × and ±
    sys.exit(main())
