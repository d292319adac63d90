"""Records and paper.toml in, `results/NAME/table.md`, `table.csv` and figures out: a pure function of its inputs."""

import csv
import io
import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ablations.paper import Values, paper_values
from ablations.records.record import FROM_SCRATCH, Record, read_records
from ablations.registry import all_ablations
from ablations.report.plots import save_figure
from ablations.runner.staleness import staleness
from ablations.spec import ADDITION, Ablation, Claim, Drawing, Metric, Row
from replk_lightning.files import write_atomically

NOT_RUN = "—"
STALE = " †"


@dataclass(frozen=True)
class Setting:
    """A column of our numbers: what its records have in common.

    Of a timing, `hardware` is all that a record says; of a training the processor alone, whose threads and instruction
    set change what comes of it as another seed would.
    """

    kind: str
    scale: str | None
    data: str | None
    hardware: str | None

    @classmethod
    def of(cls, record: Record) -> "Setting":
        """The setting of one record."""
        hardware = record.hardware
        if hardware and record.kind != "timing":
            hardware = hardware.partition(",")[0]
        return cls(record.kind, record.scale, record.data, hardware)

    def describe(self, seeds: Iterable[int]) -> str:
        """For the head of a column."""
        if self.kind == "count":
            return "computed here"
        if self.kind == "timing":
            return f"measured here on {self.hardware}"
        return f"ours: {self.data}, scale {self.scale}, {name_seeds(sorted(seeds))}, {self.hardware}"


class Results:
    """Our numbers for one ablation, grouped by setting."""

    def __init__(self, ablation: Ablation, records: list[Record]) -> None:
        self.ablation = ablation
        self.by_setting: dict[Setting, dict[tuple[str, int | None], Record]] = {}
        for record in records:
            self.by_setting.setdefault(Setting.of(record), {})[record.row, record.seed] = record

    @property
    def records(self) -> list[Record]:
        """All of them."""
        return [record for records in self.by_setting.values() for record in records.values()]

    @cached_property
    def stale(self) -> "dict[tuple[str, ...], list[Record]]":
        """Records of other code, recipes or data than today's, by what has changed."""
        found: dict[tuple[str, ...], list[Record]] = {}
        for record in self.records:
            if changes := staleness(record, self.ablation.homes):
                found.setdefault(changes, []).append(record)
        return found

    def is_stale(self, setting: Setting, row: Row, metric: Metric) -> bool:
        """Whether a number in the cell of `row` and `metric` is older than what it measures."""
        rows = row.gain or (row.key,)
        old = [record for records in self.stale.values() for record in records]
        return any(Setting.of(r) == setting and r.row in rows and metric.key in r.metrics for r in old)

    @cached_property
    def current(self) -> "Results":
        """The same without what is stale."""
        old = [record for records in self.stale.values() for record in records]
        records = [record for record in self.records if record not in old]
        return Results(self.ablation, records) if old else self

    def settings(self, kind: str | None = None) -> list[Setting]:
        """Settings of one kind, or all, in a fixed order."""
        found = [setting for setting in self.by_setting if kind in (None, setting.kind)]
        return sorted(found, key=lambda s: (s.kind, s.scale or "", s.data or "", s.hardware or ""))

    def seeds(self, setting: Setting) -> list[int]:
        """The seeds that any row of `setting` has."""
        return sorted({seed for _, seed in self.by_setting[setting] if seed is not None})

    def samples(self, setting: Setting, row: Row, metric: Metric) -> list[float]:
        """One value a seed."""
        if row.gain:
            ahead, behind = (self._by_seed(setting, key, metric) for key in row.gain)
            return [ahead[seed] - behind[seed] for seed in sorted(ahead.keys() & behind.keys(), key=str)]
        return [value for _, value in sorted(self._by_seed(setting, row.key, metric).items(), key=str)]

    def _by_seed(self, setting: Setting, key: str, metric: Metric) -> dict[int | None, float]:
        found = self.by_setting[setting].items()
        return {
            seed: r.metrics[metric.key]
            for (row, seed), r in found
            if row == key and r.status == "done" and metric.key in r.metrics
        }

    def failures(self, setting: Setting, row: Row) -> int:
        """How many seeds of `row` failed."""
        return sum(key == row.key and r.status == "failed" for (key, _), r in self.by_setting[setting].items())

    def first(self, setting: Setting, row: Row) -> Record | None:
        """The finished record of `row` with the lowest seed."""
        done = [r for (key, _), r in self.by_setting[setting].items() if key == row.key and r.status == "done"]
        return min(done, key=lambda r: r.seed or 0, default=None)

    def values(self, settings: Iterable[Setting], seeds: Collection[int] = ()) -> Values:
        """Means over `seeds`, or over all, where the setting has seeds."""
        samples: dict[str, dict[str, list[float]]] = {}
        for setting in settings:
            for (row, its_seed), record in self.by_setting[setting].items():
                if record.status == "done" and (not seeds or its_seed is None or its_seed in seeds):
                    for metric, value in record.metrics.items():
                        samples.setdefault(metric, {}).setdefault(row, []).append(value)
        return {metric: {row: statistics.fmean(v) for row, v in rows.items()} for metric, rows in samples.items()}


def verdict(claim: Claim, results: Results, setting: Setting) -> str:
    """`holds`, `fails`, `undecided (2 of 3 seeds)`, or `—` where numbers are missing; † where stale ones decide."""
    found, current = _verdict(claim, results, setting), results.current
    if current is results or (setting in current.by_setting and found == _verdict(claim, current, setting)):
        return found
    return found if found == NOT_RUN else found + STALE


def _verdict(claim: Claim, results: Results, setting: Setting) -> str:
    settings, decided = together(results, setting), by_seed(claim, results, setting)
    if results.seeds(setting) and not decided:
        return NOT_RUN
    on_means = claim.holds(results.values(settings, decided))
    if all(held == on_means for held in decided.values()):
        return _yes_no(on_means)
    return f"undecided ({sum(decided.values())} of {len(decided)} seeds)"


def by_seed(claim: Claim, results: Results, setting: Setting) -> dict[int, bool]:
    """Whether the claim holds, by every seed that decides it: others lack rows, and must not weigh in a mean."""
    settings = together(results, setting)
    found = {seed: claim.holds(results.values(settings, [seed])) for seed in results.seeds(setting)}
    return {seed: held for seed, held in found.items() if held is not None}


def together(results: Results, setting: Setting) -> set[Setting]:
    """Whose numbers a claim sees beside those of `setting`; counts belong to no machine and serve every setting."""
    return {setting, *partners(results, setting), *results.settings("count")}


def partners(results: Results, setting: Setting) -> list[Setting]:
    """Where the nets trained in `setting` were carried over to."""
    transfers = results.settings("transfer") if setting.kind == "train" else []
    carried = [s for s in transfers if not (s.data or "").endswith(FROM_SCRATCH)]
    return [s for s in carried if (s.scale, s.hardware) == (setting.scale, setting.hardware)]


def _yes_no(holds: bool | None) -> str:
    return NOT_RUN if holds is None else "holds" if holds else "fails"


def rendered(ablation: Ablation, folder: Path) -> dict[str, str]:
    """`{file name: content}` of the tables, and a figure's numbers, that follow from the ablation's records."""
    results = Results(ablation, records_of(ablation, folder))
    return _texts(results, draw(results, folder))


def _texts(results: Results, drawing: Drawing | None) -> dict[str, str]:
    files = {"table.md": render_markdown(results), "table.csv": render_csv(results)}
    return files | ({f"{results.ablation.name}.csv": csv_text(drawing.numbers)} if drawing else {})


def runs_of(ablation: Ablation, folder: Path) -> list[Path]:
    """Where the records behind `folder`, the results of `ablation`, lie."""
    return [folder.with_name(home.name) / "runs" for home in ablation.records_of] or [folder / "runs"]


def records_of(ablation: Ablation, folder: Path) -> list[Record]:
    """The records behind `folder` of the rows that `ablation` shows."""
    shown = {row.key for row in ablation.rows}
    return [r for runs in runs_of(ablation, folder) for r in read_records(runs) if r.row in shown]


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
        head.append(f"{metric.label}, paper")
        columns.append([_number(paper[metric.key].get(row.key), metric) for row in ablation.rows])
        settings = results.settings(metric.source)
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


def judged(results: Results) -> list[Setting]:
    """The settings that claims are evaluated in: a column each."""
    main = "train" if results.ablation.has("train") else "transfer"
    return results.settings(main) + results.settings("timing") or results.settings("count")


def _claims(results: Results) -> str:
    paper = paper_values(results.ablation)
    settings = judged(results)
    head = ["claim", "paper's numbers", *(s.describe(results.seeds(s)) for s in settings)]
    rows = [
        [claim.sentence, _yes_no(claim.holds(paper)), *(verdict(claim, results, s) for s in settings)]
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


def csv_text(lines: Iterable[Iterable[Any]]) -> str:
    """A CSV file, one line a row."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def markdown_table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, first column left, the others right."""
    lines = [" | ".join(head), " | ".join(["---"] + ["---:"] * (len(head) - 1))]
    return "\n".join(f"| {line} |" for line in [*lines, *(" | ".join(row) for row in rows)])


def _cell(results: Results, setting: Setting, row: Row, metric: Metric) -> str:
    samples = results.samples(setting, row, metric)
    if not samples:
        return "failed" if results.failures(setting, row) else NOT_RUN
    text = _number(statistics.fmean(samples), metric)
    if len(samples) > 1:
        text += f" ± {_number(statistics.stdev(samples), metric)}"
    if failures := results.failures(setting, row):
        text += f" ({failures} failed)"
    return text + STALE if results.is_stale(setting, row, metric) else text


def _number(value: float | None, metric: Metric) -> str:
    return NOT_RUN if value is None else f"{value:.{metric.digits}f}"


def name_seeds(seeds: list[int]) -> str:
    """`seed 3`, `seeds 0–2` or `seeds 0, 2`, of seeds in order."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]}–{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
