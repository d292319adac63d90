"""Files that are there whole or not at all, whenever the process or the machine dies."""

import glob
import os
import platform
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file at `path` by `content` in one step, so that a reader or a crash sees the old or the new one.

    What a killed writer left of the same file is cleared away. Raises OSError, for example where the disk is full; the
    old file is then left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{path.name}.{platform.node()}."
    for leftover in path.parent.glob(f"{glob.escape(own)}*"):
        if not _lives(leftover.name.removeprefix(own)):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f"{own}{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name without the content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _lives(process: str) -> bool:
    """Whether a process of this machine runs; True where that cannot be known."""
    if os.name != "posix" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
