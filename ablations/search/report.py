"""A study's trials as one JSON file, and the tables and figures that follow from it alone."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial

from ablations.report.formats import csv_text, markdown_table
from ablations.report.plots import save_figure
from ablations.search.objectives import LATENCY_BATCH, OBJECTIVES, Sweep, counts_cpu_time, finished, milliseconds
from ablations.search.plots import Dot, Plane, history, importances, trade_offs
from ablations.spec import SpecError
from replk_lightning.atomic import write_atomically

SCHEMA = 1
TRIALS = "trials.json"
REMEASURED_ROUNDS = 101
KEPT = (
    "point", "options", "accuracy", "miou", "latency", "macs", "parameters", "seconds", "same_as", "reason", "seed",
    "data", "data_fingerprint", "hardware", "commit", "versions",
)  # fmt: skip
"""What is kept of a trial's attributes."""

Document = dict[str, Any]


def report(study: optuna.Study, sweep: Sweep, folder: Path, remeasure: bool = False) -> str:
    """Write what the study's trials say into `folder`, with the tables and figures; returns a line about it.

    With `remeasure` the nets of all complete trials are timed in one pass, whatever the objectives are.
    """
    if remeasure:
        _remeasure(study, sweep)
    document = collect(study, sweep)
    write_atomically(folder / TRIALS, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for name, text in rendered(document).items():
        write_atomically(folder / name, text)
    for name, figure in figures(document).items():
        save_figure(figure, folder / name)
    return f"{summary(document)}; written to {folder}"


def _remeasure(study: optuna.Study, sweep: Sweep) -> None:
    trials = finished(study.get_trials(deepcopy=False))
    if not trials:
        return
    points = {str(trial.number): trial.user_attrs["point"] for trial in trials}
    classes = sweep.run(sweep.space.start).make_data().num_classes
    measured = milliseconds(sweep, points, classes, REMEASURED_ROUNDS)
    side = sweep.run(sweep.space.start).recipe.resolution
    how = {"rounds": REMEASURED_ROUNDS, "batch_size": LATENCY_BATCH, "resolution": side, "hardware": sweep.hardware}
    study.set_user_attr("remeasured", {"milliseconds": measured, "cpu_time": counts_cpu_time(sweep), **how})


def collect(study: optuna.Study, sweep: Sweep) -> Document:
    """Everything that the tables and figures show, as JSON."""
    remeasured = dict(study.user_attrs.get("remeasured", {}))
    again = remeasured.pop("milliseconds", {})
    trials = []
    for trial in study.get_trials(deepcopy=False):
        kept = {key: trial.user_attrs[key] for key in KEPT if key in trial.user_attrs}
        if str(trial.number) in again:
            kept["latency_remeasured"] = again[str(trial.number)]
        trials.append({"number": trial.number, "state": trial.state.name.lower(), **kept})
    return {
        "schema": SCHEMA,
        "study": study.study_name,
        "space": sweep.space.name,
        "notes": sweep.space.notes,
        "scale": sweep.scale.name,
        "data": sweep.run(sweep.space.start).data_name,
        "objectives": list(sweep.objectives),
        "choices": list(sweep.space.choices),
        "first": [dict(point) for point in sweep.space.first],
        "importances": _importances(study, sweep, again),
        "remeasured": remeasured,
        "trials": trials,
    }


def _importances(study: optuna.Study, sweep: Sweep, again: dict[str, float]) -> dict[str, dict[str, float]]:
    """Shares of each objective's variance by choice, where there are enough trials that differ.

    `again` are the remeasured latencies by trial's number, if there are any.
    """
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = {}
    for index, name in enumerate(sweep.objectives):
        target = _value(index, again if name == "latency" else {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                shares = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
            except (ValueError, RuntimeError):
                continue
        found[name] = {choice: round(share, 4) for choice, share in shares.items()}
    return found


def _value(index: int, again: dict[str, float]) -> Callable[[FrozenTrial], float]:
    """An objective's value of a trial, or what was measured again of it or of the trial of the same model."""
    return lambda trial: again.get(str(trial.user_attrs.get("same_as", trial.number)), trial.values[index])


def read(folder: Path) -> Document:
    """The document in `folder`; raises SpecError where there is none that this version reads."""
    path = folder / TRIALS
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} holds no trials of a sweep ({error}).") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise SpecError(f"{path} was written by another version of this package.")
    return document


def complete(document: Document) -> list[dict[str, Any]]:
    """The complete trials, each model once; its latency is the remeasured one where there is one."""
    done = [t for t in document["trials"] if t["state"] == "complete" and "same_as" not in t]
    return [t | {"latency": t["latency_remeasured"]} if "latency_remeasured" in t else t for t in done]


def measures(document: Document) -> list[str]:
    """What every complete trial has a number for, the objectives first."""
    trials = complete(document)
    names = [*document["objectives"], *(name for name in OBJECTIVES if name not in document["objectives"])]
    return [name for name in names if trials and all(name in trial for trial in trials)]


def front(trials: Sequence[dict[str, Any]], objectives: Sequence[str]) -> set[int]:
    """Numbers of the trials that no other one surpasses: as good in every objective and better in one."""
    signs = [1 if OBJECTIVES[name].more_is_better else -1 for name in objectives]
    scores = {t["number"]: [sign * t[name] for sign, name in zip(signs, objectives, strict=True)] for t in trials}

    def beaten(ours: list[float]) -> bool:
        return any(o != ours and all(a >= b for a, b in zip(o, ours, strict=True)) for o in scores.values())

    return {number for number, score in scores.items() if not beaten(score)}


def shown(document: Document) -> list[str]:
    """The measures that the front is drawn in: the objectives, and latency where it was measured."""
    names = list(document["objectives"])
    return names + [n for n in ("latency",) if n not in names and n in measures(document)]


def rendered(document: Document) -> dict[str, str]:
    """`{file name: content}` of the tables."""
    trials, names = complete(document), measures(document)
    best = front(trials, shown(document)) if trials else set()
    head = ["trial", *document["choices"], *names, "seconds", "front", "first"]
    rows = [
        [t["number"], *t["point"].values(), *(t[n] for n in names), t.get("seconds", ""), int(t["number"] in best),
         int(t["point"] in document["first"])]
        for t in trials
    ]  # fmt: skip
    pareto = [head] + [row for row in rows if row[-2]]
    return {"trials.csv": csv_text([head, *rows]), "pareto.csv": csv_text(pareto), "table.md": _markdown(document)}


def _markdown(document: Document) -> str:
    trials, names = complete(document), measures(document)
    best = front(trials, shown(document)) if trials else set()
    head = ["kernels" if document["space"] == "kernels" else ", ".join(document["choices"])]
    head += [OBJECTIVES[name].label for name in names] + ["on the front", named(document)]
    first = document["objectives"][0]
    rows = [
        [_point(t), *(f"{t[n]:.{OBJECTIVES[n].digits}f}" for n in names), "yes" if t["number"] in best else "",
         "yes" if t["point"] in document["first"] else ""]
        for t in sorted(trials, key=lambda t: t[first], reverse=OBJECTIVES[first].more_is_better)
    ]  # fmt: skip
    parts = [f"# Sweep over {document['space']}", f"S{summary(document)[1:]}.", document["notes"]]
    parts.append(_latency_text(document))
    parts += [markdown_table(head, rows), *_importance_text(document), "## Where the numbers come from"]
    return "\n\n".join(part for part in [*parts, _origins(document)] if part) + "\n"


def named(document: Document) -> str:
    """What the points are that the space names to be tried first."""
    return "the paper's" if document["space"] in ("kernels", "mobilenet") else "tried first"


def summary(document: Document) -> str:
    """A line: how many trials ended how."""
    trials, done = document["trials"], complete(document)
    counts = {
        "pruned": sum(t["state"] == "pruned" for t in trials),
        "failed": sum(t["state"] == "fail" and "reason" in t for t in trials),
        "taken up again by another worker": sum(t["state"] == "fail" and "reason" not in t for t in trials),
    }
    others = "".join(f", {count} {what}" for what, count in counts.items() if count)
    return f"study {document['study']}: {len(done)} trials complete{others}"


def _latency_text(document: Document) -> str:
    how = document["remeasured"]
    if not how or "latency" not in measures(document):
        return ""
    return (
        f"Latency is that of the deployed net at {how['resolution']}², batch {how['batch_size']}, "
        f"on {how['hardware']}: all nets in one pass, taking turns batch by batch, "
        f"the median of {how['rounds']} rounds each"
        + (
            ", in CPU time of the one thread, which other work on the machine does not stretch."
            if how["cpu_time"]
            else "."
        )
        + (" The search saw what was measured in each trial." if "latency" in document["objectives"] else "")
    )


def _importance_text(document: Document) -> list[str]:
    return [
        f"Of the variance of {OBJECTIVES[name].label}, fANOVA gives "
        + ", ".join(f"{share:.0%} to {choice}" for choice, share in shares.items())
        + "."
        for name, shares in document["importances"].items()
    ]


def _origins(document: Document) -> str:
    trials = complete(document)
    lines = [f"- {document['data']}, scale {document['scale']}, seed {', '.join(_all(trials, 'seed'))}"]
    seconds = sum(t.get("seconds", 0.0) for t in trials)
    lines.append(f"- {len(trials)} models, {seconds:.0f} s of training, on {'; '.join(_all(trials, 'hardware'))}")
    lines.append(f"- commit {', '.join(_all(trials, 'commit'))}, data {', '.join(_all(trials, 'data_fingerprint'))}")
    lines += [f"- trial {t['number']}: {t['reason']}" for t in document["trials"] if "reason" in t]
    return "\n".join(lines)


def _all(trials: Sequence[dict[str, Any]], key: str) -> list[str]:
    return sorted({str(t[key]) for t in trials if t.get(key) is not None})


def _point(trial: dict[str, Any]) -> str:
    return "-".join(str(value) for value in trial["point"].values())


def figures(document: Document) -> dict[str, Figure]:
    """`{file name: figure}` of what there is to see."""
    trials, names = complete(document), measures(document)
    if not trials:
        return {}
    where = f"{document['data']}, scale {document['scale']}, {len(trials)} models of the space {document['space']}"
    best = front(trials, shown(document))
    y, *others = shown(document) if len(shown(document)) > 1 else [document["objectives"][0], "macs"]
    planes = [
        Plane(
            OBJECTIVES[x].label,
            OBJECTIVES[y].label,
            [_dot(t, x, y, best, document) for t in trials],
            named(document),
            right_is_better=OBJECTIVES[x].more_is_better,
        )
        for x in others
        if x in names and x != y
    ]
    drawn = {"sweeps.png": trade_offs(planes, f"Trade-offs ({where})")} if planes else {}
    values = {OBJECTIVES[n].label: [(t["number"], t[n]) for t in trials] for n in document["objectives"]}
    drawn["history.png"] = history(
        values, [OBJECTIVES[n].more_is_better for n in document["objectives"]], f"History ({where})"
    )
    if document["importances"]:
        shares = {OBJECTIVES[n].label: of for n, of in document["importances"].items()}
        drawn["importances.png"] = importances(shares, "What the choices matter (fANOVA)")
    return drawn


def _dot(trial: dict[str, Any], x: str, y: str, best: set[int], document: Document) -> Dot:
    name = _point(trial) if trial["point"] in document["first"] else None
    return Dot(trial[x], trial[y], name, trial["number"] in best)
