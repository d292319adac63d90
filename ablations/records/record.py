"""One JSON file a run: what was measured, of what, with what, where. Written atomically, never rewritten."""

import json
import re
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from ablations.records.schema import misfit
from replk_lightning.atomic import write_atomically

SCHEMA = 1
FROM_SCRATCH = ", from scratch"
"""What a record's data end with where a net was not pre-trained before its transfer."""

Kind = Literal["train", "transfer", "count", "timing"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement of one row.

    `train` and `transfer` records have a scale, data and a seed; `parts` says in how many parts the run was trained,
    and `pretraining` is the recipe that a `transfer` starts from. `count` records are arithmetic on the paper's model,
    of no machine; `timing` records hold what was measured on `hardware`. `status` is `done` or `failed`, with the
    `reason`. Fields that came later are None in older ones.
    """

    ablation: str
    row: str
    kind: Kind
    status: Literal["done", "failed"]
    metrics: dict[str, float]
    model: str
    options: dict[str, Any]
    scale: str | None = None
    data: str | None = None
    seed: int | None = None
    reason: str | None = None
    recipe: dict[str, Any] | None = None
    supervision: dict[str, Any] | None = None
    pretraining: dict[str, Any] | None = None
    model_fingerprint: str | None = None
    data_fingerprint: str | None = None
    hardware: str | None = None
    seconds: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    parts: int | None = None
    schema: int = SCHEMA

    @property
    def filename(self) -> str:
        """Unique for the measurement; a record that exists is not measured again."""
        return record_name(self.row, self.kind, self.scale, self.data, self.seed, self.hardware)


def record_name(
    row: str,
    kind: Kind,
    scale: str | None = None,
    data: str | None = None,
    seed: int | None = None,
    hardware: str | None = None,
) -> str:
    """`k13-plain.small.scenes-solid.seed0.json`, `k13.count.json`, `swin-b.timing.nvidia-h100.json`."""
    if kind == "count":
        return f"{row}.count.json"
    if kind == "timing":
        return f"{row}.timing.{_slug(hardware or '')}.json"
    row = f"{row}.transfer" if kind == "transfer" else row
    return f"{row}.{scale}.{_slug(data or '')}.seed{seed}.json"


def arrays_path(record: Record, folder: Path) -> Path:
    """Where the arrays that a figure needs of `record` lie: beside it in `folder`."""
    return folder / record.filename.replace(".json", ".npz")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_record(record: Record, folder: Path) -> Path:
    """Write `record` into `folder`, whole or not at all."""
    path = folder / record.filename
    write_atomically(path, _text(record))
    return path


def _text(record: Record) -> str:
    return json.dumps(asdict(record), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_record(path: Path) -> Record | None:
    """The record at `path`; None, with a warning that names the file, if it is damaged or of another schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("schema") != SCHEMA:
            raise ValueError(f"schema {content.get('schema')!r:.40}; this version reads {SCHEMA}")
        return _checked(Record(**content))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        warnings.warn(f"{path} is not a readable record and is ignored ({error})", stacklevel=2)
        return None


def _checked(record: Record) -> Record:
    """`record` if every field has its type; raises ValueError."""
    for name, hint in get_type_hints(Record).items():
        if wrong := misfit(getattr(record, name), hint, name):
            raise ValueError(wrong)
    if record.kind in ("train", "transfer") and None in (record.scale, record.data, record.seed):
        raise ValueError(f"a {record.kind} record has a scale, data and a seed")
    _text(record).encode()  # JSON can spell halves of characters, which no file can hold
    return record


def read_records(folder: Path) -> list[Record]:
    """Every readable record in `folder`, ordered by file name."""
    records = (read_record(path) for path in sorted(folder.glob("*.json")))
    return [record for record in records if record is not None]
