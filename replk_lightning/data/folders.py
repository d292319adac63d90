"""The one walk over folders of pictures: what is a picture there, what is hidden, and where links lead.

Hidden is what begins with a dot, as `.ipynb_checkpoints` and the `._1.jpg` of macOS, and the folders in which systems
keep copies of their own, as `__MACOSX`, at any depth.
"""

import os
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from replk_lightning.data.decoding import endings

HIDDEN = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
BY_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini")
"""Files that file managers leave behind, which nobody misses."""

Identity = tuple[int, int]


@dataclass
class Walk:
    """What a walk found.

    Attributes:
        root: where it began.
        names: files relative to the root, sorted.
        folders: those directly below the root, sorted; a link that was not followed is none.
        others: how many files were left out, by the ending of their name.
        again: links to folders that are walked elsewhere.
        closed: folders that may not be read.
        reached: real paths of the root and of what followed links lead to.
    """

    root: Path
    names: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    again: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    reached: list[Path] = field(default_factory=list)

    def warn(self) -> None:
        """Say what was left out, if anything was; of several processes one speaks."""
        parts = [f"{count} named *{ending}" if ending else f"{count} without an ending"
                 for ending, count in sorted(self.others.items())]  # fmt: skip
        parts += [f"the link {name}, whose folder is there already" for name in self.again]
        parts += [f"the folder {name}, which may not be read" for name in self.closed]
        if parts:
            rank_zero_warn(f"{self.root}: left out {', '.join(parts)}.")


def walk(root: Path, wanted: Collection[str] | None = None) -> Walk:
    """All pictures below `root` by the endings of their names, without hidden ones; warns of what is left out.

    Args:
        wanted: endings in lower case, of one dot or more (default: those of all that Pillow reads here).

    Links to files and folders are followed, each real folder once: where it lies if that is below `root`, else under
    the first link to it. A link to a folder that it lies in leads nowhere.
    """
    found = _Walker(root, tuple(endings() if wanted is None else wanted)).walk()
    found.warn()
    return found


class _Walker:
    def __init__(self, root: Path, wanted: tuple[str, ...]) -> None:
        self.found, self.wanted = Walk(root), wanted
        above = root.resolve().parents
        self.seen = {identity for folder in above if (identity := _identity(folder))}
        self.links: deque[str] = deque()

    def walk(self) -> Walk:
        found = self.found
        self._enter("")
        while self.links:  # only now, so that a folder is found where it lies and not under a link
            self._follow(self.links.popleft())
        found.names.sort()
        found.folders.sort()
        found.again.sort()
        return found

    def _follow(self, link: str) -> None:
        path = self.found.root / link
        if path.parent.resolve().is_relative_to(path.resolve()):
            return
        if _identity(path) in self.seen:
            self.found.again.append(link)
        else:
            self._enter(link)

    def _enter(self, start: str) -> None:
        """Walk the real folders below `start`, and note the links in them."""
        links, waiting = list[str](), [start]
        self.found.reached.append((self.found.root / start).resolve())
        while waiting:
            folder = waiting.pop()
            identity = _identity(self.found.root / folder)
            if identity is None or identity in self.seen:
                continue
            self.seen.add(identity)
            if folder and os.sep not in folder:
                self.found.folders.append(folder)
            try:
                entries = list(os.scandir(self.found.root / folder))
            except OSError:
                self.found.closed.append(folder or str(self.found.root))
                continue
            for entry in entries:
                self._look(entry, os.path.join(folder, entry.name), links, waiting)
        self.links.extend(sorted(links))

    def _look(self, entry: os.DirEntry[str], name: str, links: list[str], waiting: list[str]) -> None:
        if entry.name.startswith(".") or entry.name in HIDDEN:
            return
        if entry.is_dir():
            (links if entry.is_symlink() else waiting).append(name)
        elif entry.name.lower().endswith(self.wanted):
            self.found.names.append(name)
        elif entry.name.lower() not in BY_SYSTEMS:
            self.found.others[os.path.splitext(entry.name)[1].lower()] += 1


def _identity(folder: Path) -> Identity | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino
