"""What the commands of `python -m replk_lightning` share."""

import argparse
from typing import NoReturn

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


class OneLineErrors(argparse.ArgumentParser):
    """Says what is wrong without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        """One sentence and 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)
