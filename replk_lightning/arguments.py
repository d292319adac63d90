"""What the commands of `python -m replk_lightning` share."""

import argparse
import os
from typing import NoReturn

import torch

from replk_lightning.models import ModelError

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


class OneSentence(argparse.ArgumentParser):
    """Says what is wrong without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        """One sentence and 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def default_device() -> str:
    """This process's GPU, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def device_called(name: str) -> torch.device:
    """The device, if it can be used; raises ModelError."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device
