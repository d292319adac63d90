"""A CSV that is written row by row: what was measured stays, whenever the measuring ends, and is not measured again."""

import csv
import functools
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def code() -> str:
    """Names the code that is measured, whose numbers say nothing of any other: a column of most tables."""
    digest = hashlib.sha256()
    for package in ("native", "replk_lightning"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Rows:
    """The rows of a table, each on the disk as soon as it is added; a table that was cut off is gone on with.

    Args:
        path: Of the table; its folder is made if need be. A file with other columns is kept beside it. None keeps
            nothing.
        fields: Its columns.
        key: Those that say what a row is of.
    """

    def __init__(self, path: Path | None, fields: Sequence[str], key: Sequence[str]):
        self.path, self.fields, self.key = path, tuple(fields), tuple(key)
        self.done = set()
        if path and path.is_file():
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]  # without a row that was cut off
            table = csv.DictReader(whole.splitlines())
            if tuple(table.fieldnames or ()) == self.fields:
                self.done = {self._name(row) for row in table}
                if whole != text:
                    path.write_text(whole, encoding="utf-8", newline="\n")
                return
            if whole:
                other = hashlib.sha256(whole.partition("\n")[0].encode()).hexdigest()[:8]
                before = path.with_stem(f"{path.stem}-before-{other}")
                path.replace(before)
                print(f"{path} has other columns: it is {before.name} from now on.", file=sys.stderr)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(self.fields, "w")

    def __contains__(self, row: Mapping[str, object]) -> bool:
        """Whether there is a row of what `row` is of."""
        return self._name(row) in self.done

    def add(self, row: Mapping[str, object]) -> None:
        """Write a row."""
        if self.path:
            self._write([row[field] for field in self.fields], "a")
        self.done.add(self._name(row))

    def _name(self, row: Mapping[str, object]) -> tuple[str, ...]:
        return tuple(str(row[field]) for field in self.key)

    def _write(self, values: Sequence[object], mode: str) -> None:
        assert self.path
        with self.path.open(mode, newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(values)
