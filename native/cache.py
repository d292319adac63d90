"""Files kept between runs: under ``$XDG_CACHE_HOME/replk_lightning`` (``~/.cache`` by default). Each may be deleted."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def folder(*names: str) -> Path:
    """The folder of that name, whether it exists or not.

    Raises:
        RuntimeError: nobody has a home directory here.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "replk_lightning", *names)


def folder_if_any(*names: str) -> Path | None:
    """`folder`, or None where nobody has a home directory."""
    try:
        return folder(*names)
    except RuntimeError:
        return None


def slug(text: str) -> str:
    """`text` as the name of a file."""
    return re.sub(r"[^\w.+-]+", "-", text)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A file of this thread's own to fill and to `replace` `path` with: whole or not at all, whoever else does so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    try:
        yield own
    finally:
        own.unlink(missing_ok=True)
