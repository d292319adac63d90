"""Whether a record is of today's code: its model, options, recipe, labels and data, compared with what would run now.

Everything is compared with the specification and with fingerprints that are kept in `fingerprints.toml`, so that
rendering reads no data and gives the same on every machine.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from ablations.records.fingerprint import data_fingerprints, defined_by
from ablations.records.record import FROM_SCRATCH, Record, read_record
from ablations.runner.runs import Run, Transfer, transfer_of
from ablations.scales import SCALES
from ablations.spec import Ablation, SpecError
from replk_lightning.recipes import Recipe


def staleness(record: Record, homes: Iterable[Ablation]) -> tuple[str, ...]:
    """What has changed since `record` was measured, a short phrase each; nothing for a record that is current.

    What a record does not say (its model's fingerprint, in the first ones) is not compared.
    """
    home = next((home for home in homes if home.name == record.ablation), None)
    row = next((row for row in home.rows if row.key == record.row), None) if home else None
    if home is None or row is None:
        return ("the row is gone",)
    if record.kind in ("count", "timing"):
        return _changes("model", record.model, row.model) + _changes("options", record.options, row.options)
    scale = home.scales.get(record.scale or "", SCALES.get(record.scale or ""))
    if scale is None:
        return (f"there is no scale {record.scale}",)
    given = record.kind == "train" and home.measure and (record.recipe or {}).get("epochs") == 0
    # weights that were given are measured as they are; which ones makes no difference to the recipe
    run = Run(home, row, scale, record.data or scale.data, record.seed or 0, "given" if given else None)
    if record.kind == "transfer":
        data = record.data or ""
        transfer = transfer_of(run, data.removesuffix(FROM_SCRATCH), None, data.endswith(FROM_SCRATCH))
        if transfer is None:
            return ("the row is no longer carried over",)
        run = transfer
    return changes_since(record, run)


def changes_since(record: Record, run: Run) -> tuple[str, ...]:
    """What of `run` is not what `record` was measured with, a short phrase each."""
    changes = _changes("model", record.model, run.row.model)
    changes += _changes("options", record.options, run.scale.options_for(run.row))
    changes += _recipe_changes("", record.recipe, run.recipe)
    changes += _changes("labels", record.supervision, run.supervision)
    if isinstance(run, Transfer) and run.pretraining and record.pretraining:
        changes += _recipe_changes("pre-training's ", record.pretraining, run.pretraining.recipe)
    if record.model_fingerprint and defined_by(record) != record.model_fingerprint:
        changes += ("the model's definition",)
    now = data_fingerprints().get(_spec_of(run), {}).get(str((record.recipe or {}).get("resolution")))
    if now and record.data_fingerprint != now:
        changes += ("the data",)
    return changes


def _spec_of(run: Run) -> str:
    """The scale's name for the data of `run`, which tells a set from its first few images where the record does not."""
    if isinstance(run, Transfer):
        own = run.scale.transfer_data.get(type(run.recipe), "")
        return own if own.removesuffix("-smoke") == run.data else run.data
    return run.data


def _recipe_changes(what: str, then: Mapping[str, Any] | None, recipe: Recipe) -> tuple[str, ...]:
    """Fields that differ; one that did not exist then counts as its default."""
    then = then or {}
    defaults = {f.name: f.default for f in fields(recipe) if f.default is not MISSING}
    now = {name: v for name, v in asdict(recipe).items() if name in then or v != defaults.get(name, MISSING)}
    return tuple(f"{what}{change}" for change in _fields_changed(then, now))


def _changes(what: str, then: Any, now: Any) -> tuple[str, ...]:
    then, now = json.loads(json.dumps(then)), json.loads(json.dumps(now))
    if isinstance(then, dict) and isinstance(now, dict):
        return _fields_changed(then, now)
    return () if then == now else (f"{what} {_said(then)}, now {_said(now)}",)


def _fields_changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    then, now = json.loads(json.dumps(then)), json.loads(json.dumps(now))
    names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    return tuple(f"{name} {_said(then.get(name))}, now {_said(now.get(name))}" for name in names)


def _said(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False).strip('"')


def recorded(run: Run, folder: Path) -> bool:
    """Whether `run` has a readable record; raises SpecError if it is another experiment's."""
    path = folder / "runs" / run.record_name
    record = read_record(path) if path.exists() else None
    if record is None:
        return False
    if changes := changes_since(record, run):
        raise SpecError(
            f"{path} was measured with another recipe, model or labels ({'; '.join(changes)}); "
            "delete it, or name a folder with --results."
        )
    return True
