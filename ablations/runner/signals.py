"""Ctrl-C and SIGTERM end a command alike: what is finished is kept, and the exit status says which it was."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """The signal that stopped the command."""

    def __init__(self) -> None:
        self.signal = signal.SIGINT

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGTERM: from here on it is a Ctrl-C of another exit status."""
        self.signal = signal.SIGTERM
        raise KeyboardInterrupt

    @property
    def status(self) -> int:
        """As shells report it: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + self.signal


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """SIGTERM raises KeyboardInterrupt in the block; afterwards both signals' handlers are what they were."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, interruption.terminate)
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # Lightning leaves Ctrl-C ignored
