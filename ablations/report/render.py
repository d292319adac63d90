"""Records and paper.toml in, `results/NAME/table.md`, `table.csv` and figures out: a pure function of its inputs."""

import statistics
from pathlib import Path
from typing import Any

from ablations.paper import Values, paper_values
from ablations.registry import all_ablations
from ablations.report.formats import NOT_RUN, STALE, csv_text, markdown_table, name_seeds, number
from ablations.report.plots import save_figure
from ablations.report.results import Results, Setting, records_of, runs_of
from ablations.report.verdicts import judged, margin, verdict, with_margin
from ablations.spec import ADDITION, Ablation, Drawing, Metric, Row
from replk_lightning.atomic import write_atomically


def rendered(ablation: Ablation, folder: Path) -> dict[str, str]:
    """`{file name: content}` of the tables, and a figure's numbers, that follow from the ablation's records."""
    results = Results(ablation, records_of(ablation, folder))
    return _texts(results, draw(results, folder))


def _texts(results: Results, drawing: Drawing | None) -> dict[str, str]:
    files = {"table.md": render_markdown(results), "table.csv": render_csv(results)}
    return files | ({f"{results.ablation.name}.csv": csv_text(drawing.numbers)} if drawing else {})


def draw(results: Results, folder: Path) -> Drawing | None:
    """The ablation's figure, of the setting with the most records; None if it has none or nothing to show yet."""
    settings = results.settings("train")
    if not (results.ablation.draw and settings):
        return None
    setting = max(settings, key=lambda s: len(results.by_setting[s]))
    return results.ablation.draw(results, setting, runs_of(results.ablation, folder)[0])


def render(ablation: Ablation, folder: Path) -> str:
    """Write the tables and the figure of `ablation` into `folder`; returns the Markdown."""
    results = Results(ablation, records_of(ablation, folder))
    drawing = draw(results, folder)
    files = _texts(results, drawing)
    for name, content in files.items():
        write_atomically(folder / name, content)
    if drawing:
        save_figure(drawing.figure, folder / f"{ablation.name}.png")
    return files["table.md"]


def stale(results: Path) -> list[Path]:
    """Committed tables under `results` that do not follow from the records beside them."""
    return [
        results / name / file
        for name, ablation in all_ablations().items()
        if (results / name).is_dir()
        for file, content in rendered(ablation, results / name).items()
        if not (results / name / file).exists() or (results / name / file).read_text(encoding="utf-8") != content
    ]


def render_markdown(results: Results) -> str:
    """The table, the claims and where our numbers come from."""
    ablation = results.ablation
    whence = f"{ablation.source} {'to' if ablation.source == ADDITION else 'of'} the paper."
    parts = [f"# {ablation.title}", f"{whence} {ablation.notes}", _table(results)]
    if results.stale:
        parts.append(stale_note(results))
    if ablation.claims:
        parts += ["## Claims", _claims(results)]
    origins = _origins(results)
    if origins:
        parts += ["## Where our numbers come from", origins]
    return "\n\n".join(parts) + "\n"


def _table(results: Results) -> str:
    ablation, paper = results.ablation, paper_values(results.ablation)
    head, columns = [ablation.source], [[row.label for row in ablation.rows]]
    for metric in ablation.metrics:
        settings = results.settings(metric.source)
        if metric.source == "timing" and not paper[metric.key]:  # only some machines measure it
            settings = [setting for setting in settings if metric.key in results.values([setting])]
            if not settings:
                continue
        head.append(f"{metric.label}, paper")
        columns.append([number(paper[metric.key].get(row.key), metric) for row in ablation.rows])
        for setting in settings:
            head.append(f"{metric.label}, {setting.describe(results.seeds(setting))}")
            columns.append([_cell(results, setting, row, metric) for row in ablation.rows])
            if metric.deviation:
                head.append("deviation (%)")
                columns.append([_deviation(results, setting, row, metric, paper) for row in ablation.rows])
        if not settings:
            head.append(f"{metric.label}, ours")
            columns.append([NOT_RUN] * len(ablation.rows))
    return markdown_table(head, list(zip(*columns, strict=True)))


def _deviation(results: Results, setting: Setting, row: Row, metric: Metric, paper: Values) -> str:
    printed, ours = paper[metric.key].get(row.key), results.samples(setting, row, metric)
    return f"{100 * (ours[0] / printed - 1):+.1f}" if printed and ours else NOT_RUN


def stale_note(results: Results) -> str:
    """What † stands for: which records are older than what they measure, and what has changed since."""
    lines = ["† measured before this changed:", ""]
    for changes, records in results.stale.items():
        rows = list(dict.fromkeys(f"`{r.row}`" + (f" ({r.kind})" if r.kind != "train" else "") for r in records))
        seeds = sorted({r.seed for r in records if r.seed is not None})
        where = f", {name_seeds(seeds)}" if seeds else ""
        lines.append(f"- {', '.join(rows)}{where}: {'; '.join(changes)}")
    return "\n".join(lines)


def _claims(results: Results) -> str:
    paper = paper_values(results.ablation)
    settings = judged(results)
    head = ["claim", "paper's margin", *(s.describe(results.seeds(s)) for s in settings)]
    rows = [
        [
            claim.sentence,
            f"{margin(printed)} {claim.unit}" if (printed := claim.margin(paper)) is not None else NOT_RUN,
            *(with_margin(verdict(claim, results, setting)) for setting in settings),
        ]
        for claim in results.ablation.claims
    ]
    return markdown_table(head, rows)


def _origins(results: Results) -> str:
    lines = []
    for setting in results.settings():
        records = list(results.by_setting[setting].values())
        line = f"- {setting.describe(results.seeds(setting))}: {len(records)} records"
        seconds = [r.seconds for r in records if r.seconds is not None]
        if seconds:
            machines = sorted({r.hardware for r in records if r.hardware})
            line += f", {sum(seconds):.0f} s in all on {'; '.join(machines)}"
        commits = sorted({r.commit for r in records if r.commit})
        if commits:
            line += f", commit {', '.join(commits)}"
        prints = sorted({r.data_fingerprint for r in records if r.data_fingerprint})
        if prints:
            line += f", data {', '.join(prints)}"
        lines.append(line)
        lines += [f"  - {r.row}, seed {r.seed}: failed, {r.reason}" for r in records if r.status == "failed"]
    return "\n".join(lines)


def render_csv(results: Results) -> str:
    """Long form: one line a row, metric and source, unrounded."""
    lines: list[list[Any]] = [["row", "metric", "source", "scale", "data", "hardware", "seeds", "mean", "std", "stale"]]
    paper = paper_values(results.ablation)
    for row in results.ablation.rows:
        for metric in results.ablation.metrics:
            if row.key in paper[metric.key]:
                lines.append([row.key, metric.key, "paper", "", "", "", "", paper[metric.key][row.key], "", ""])
            for setting in results.settings(metric.source):
                samples = results.samples(setting, row, metric)
                if samples:
                    spread = statistics.stdev(samples) if len(samples) > 1 else ""
                    where = [setting.scale, setting.data, setting.hardware, len(samples)]
                    old = "stale" if results.is_stale(setting, row, metric) else ""
                    lines.append([row.key, metric.key, "ours", *where, statistics.fmean(samples), spread, old])
    return csv_text(lines)


def _cell(results: Results, setting: Setting, row: Row, metric: Metric) -> str:
    samples = results.samples(setting, row, metric)
    if not samples:
        return "failed" if results.failures(setting, row) else NOT_RUN
    text = number(statistics.fmean(samples), metric)
    if len(samples) > 1:
        text += f" ± {number(statistics.stdev(samples), metric)}"
    if failures := results.failures(setting, row):
        text += f" ({failures} failed)"
    return text + STALE if results.is_stale(setting, row, metric) else text
