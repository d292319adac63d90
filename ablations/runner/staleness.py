"""Whether a record is of today's code: its model, options, recipe, labels and data, compared with what would run now.

Everything is compared with the specification and with fingerprints that are kept in `fingerprints.toml`, so that
rendering reads no data and gives the same on every machine.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from ablations.records.fingerprint import built, data_fingerprints
from ablations.records.record import FROM_SCRATCH, Record
from ablations.scales import PAPER, SCALES, get_scale
from ablations.spec import Ablation, Row, Scale, SpecError
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
        options = get_scale(PAPER.name, home).options_for(row)
        return _changes("model", record.model, row.model) + _changes("options", record.options, options)
    scale = home.scales.get(record.scale or "", SCALES.get(record.scale or ""))
    if scale is None:
        return (f"there is no scale {record.scale}",)
    # weights that were given are measured as they are; which ones makes no difference to the recipe
    given = (record.recipe or {}).get("epochs") == 0
    try:
        recipe = home.recipe_of(row, scale, given) if record.kind == "train" else home.transfer_of(row, scale)
        if recipe is None or (not home.has("transfer") and record.kind == "transfer"):
            return ("the row is no longer carried over",)
        return changes_since(record, home, row, scale, recipe)
    except SpecError as no_entry:
        return (str(no_entry).partition(";")[0],)


def defined_by(record: Record) -> str | None:
    """Fingerprint of the net that today's code builds from what `record` says of it; None if it builds none."""
    head = record.recipe if record.kind == "transfer" else None
    return built(record.model, record.options, record.data, head)


def changes_since(record: Record, ablation: Ablation, row: Row, scale: Scale, recipe: Recipe) -> tuple[str, ...]:
    """What of `row` at `scale`, trained by `recipe`, is not what `record` was measured with, a short phrase each."""
    changes = _changes("model", record.model, row.model)
    changes += _changes("options", record.options, scale.options_for(row))
    changes += _recipe_changes("", record.recipe, recipe)
    changes += _changes("labels", record.supervision, asdict(row.supervision) if row.supervision else None)
    if record.pretraining:
        changes += _recipe_changes("pre-training's ", record.pretraining, ablation.recipe_of(row, scale))
    if record.model_fingerprint and defined_by(record) != record.model_fingerprint:
        changes += ("the model's definition",)
    data = (record.data or "").removesuffix(FROM_SCRATCH)
    if record.kind == "transfer":  # a set's first few images have its name, and the scale's name for them alone tells
        own = scale.transfer_data.get(type(recipe), "")
        data = own if own.removesuffix("-smoke") == data else data
    now = data_fingerprints().get(data, {}).get(str((record.recipe or {}).get("resolution")))
    return changes + (("the data",) if now and record.data_fingerprint != now else ())


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
