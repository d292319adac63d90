"""All tables and figures on one page, `results/README.md`: a pure function of the records and `paper.toml`."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from ablations.paper import paper_values
from ablations.records.record import Record
from ablations.registry import all_ablations
from ablations.report.discrepancies import DISCREPANCIES, Discrepancy, describe
from ablations.report.forest import WORDS, forest
from ablations.report.formats import NOT_RUN, STALE, csv_text, markdown_table
from ablations.report.plots import save_figure
from ablations.report.render import stale, stale_note
from ablations.report.results import Results, Setting, records_of
from ablations.report.verdicts import evidence, judged, verdict, verdict_lines, verdicts, with_margin
from ablations.spec import Claim, Number
from replk_lightning.atomic import write_atomically

INDEX = "README.md"
VERDICTS = "verdicts.csv"
FOREST = "verdicts.png"
INTRODUCTION = """# Every table and figure of the paper, measured here

Every sentence of the paper is a margin: above zero it holds. With several seeds the margin has a 95 % interval and a
probability of being above zero: a sentence `holds` at 99.5 %, `fails` at 0.5 %, and is `undecided` between, with the
seeds that would decide it if margin and spread stay as they are. The picture shows all of them
([verdicts.csv](verdicts.csv)), the table one a table or figure and the number that says most; all numbers and where
they come from are behind the links. `paper` is the paper's, on ImageNet-1K, Cityscapes, ADE20K or COCO and, where speed
is measured, a 2080 Ti; ours are on the data named beside them, and only their order can be compared. Spread is the
standard deviation over seeds. — is not measured here, or not printed in the paper.

Written by `python -m ablations.reproduce` from the records beside it; `nox -s tables_are_current` compares."""

Everything = dict[str, Results]


def load(folder: Path) -> Everything:
    """The records of every ablation under `folder`."""
    return {name: Results(a, records_of(a, folder / name)) for name, a in all_ablations().items()}


def index(folder: Path) -> str:
    """The page that belongs to the results in `folder`."""
    return _page(folder, load(folder))


def _page(folder: Path, everything: Everything) -> str:
    parts = [INTRODUCTION]
    if (folder / FOREST).exists():
        parts.append(f"![The paper's sentences as margins, ours and the paper's]({FOREST})")
    parts.append(summary(everything))
    if old := [results for results in everything.values() if results.stale]:
        notes = [f"{_link(results)}: " + stale_note(results) for results in old]
        parts += ["## Older than the code", "\n\n".join(notes)]
    parts += _optional("## Pictures", pictures(folder, everything))
    parts += _optional("## Accuracy against speed, searched", sweeps(folder))
    parts += _optional("## What does not reproduce at this scale", failures(everything))
    parts += _optional("## Not decided here, for want of seeds", undecided(everything))
    parts += _optional("## Not decided here, for want of numbers", without_numbers(everything))
    parts += ["## Where the paper, its code and our counts differ", discrepancies(everything)]
    parts += _optional("## What it took", costs(everything))
    return "\n\n".join(parts) + "\n"


def write_index(folder: Path) -> Path:
    """Write the page, the verdicts and their picture into `folder`; returns the page's path."""
    everything = load(folder)
    found = verdicts(list(everything.values()))
    if any(judged.word in WORDS for _, judged in found):
        save_figure(forest(found), folder / FOREST)
    for path, text in _texts(folder, everything).items():
        write_atomically(path, text)
    return folder / INDEX


def _texts(folder: Path, everything: Everything) -> dict[Path, str]:
    """The page, and every verdict as CSV."""
    lines = verdict_lines(list(everything.values()))
    return {folder / INDEX: _page(folder, everything), folder / VERDICTS: csv_text(lines)}


def _optional(head: str, body: str) -> list[str]:
    return [head, body] if body else []


def summary(everything: Everything) -> str:
    """The table of all tables."""
    head = ["", "the paper says", "here", "claims", "its number", "paper", "ours", "measured on"]
    lines = []
    for results in everything.values():
        ablation, claim = results.ablation, results.ablation.headline
        settings = _shown(results, claim)
        here = [str(verdict(claim, results, s)) for s in settings] or [NOT_RUN]
        ours = [_ours(claim, results, s) for s in settings] or [NOT_RUN]
        where = [_where(s) for s in settings] or [NOT_RUN]
        counts = [_holding(results, s) for s in settings] or [NOT_RUN]
        paper = claim.value(paper_values(ablation))
        lines.append(
            [
                _link(results),
                claim.sentence,
                "<br>".join(here),
                "<br>".join(counts),
                claim.number.label if claim.number else NOT_RUN,
                _format(paper, claim.number),
                "<br>".join(ours),
                "<br>".join(where),
            ]
        )
    return left_aligned(markdown_table(head, lines))


def headlines(folder: Path, names: Iterable[str]) -> str:
    """The verdicts of these ablations' main claims, a line each, for a terminal."""
    everything = load(folder)
    lines = []
    for results in (everything[name] for name in names):
        claim = results.ablation.headline
        found = [f"{verdict(claim, results, s)} on {_where(s)}" for s in _shown(results, claim)]
        lines.append(f"{results.ablation.source:<11} {claim.sentence}: {'; '.join(found) or NOT_RUN}")
    return "\n".join(lines)


def _link(results: Results) -> str:
    return f"[{results.ablation.source}]({results.ablation.name}/table.md)"


def left_aligned(table: str) -> str:
    """The Markdown table with every column to the left: this one's hold sentences."""
    return table.replace("---:", "---")


def _shown(results: Results, claim: Claim) -> list[Setting]:
    """The settings that decide the claim or have its number."""
    return [
        s
        for s in judged(results)
        if verdict(claim, results, s).verdict or claim.value(results.values(evidence(results, s))) is not None
    ]


def _holding(results: Results, setting: Setting) -> str:
    """How many of the ablation's claims hold, of those that have their numbers."""
    words = [found.word for c in results.ablation.claims if (found := verdict(c, results, setting)).verdict]
    return f"{words.count('holds')} of {len(words)} hold" if words else NOT_RUN


def _ours(claim: Claim, results: Results, setting: Setting) -> str:
    """Mean and deviation over seeds of the claim's number."""
    settings = evidence(results, setting)
    each = [[seed] for seed in results.seeds(setting)] or [[]]
    found = [claim.value(results.values(settings, seeds)) for seeds in each]
    samples = [value for value in found if value is not None]
    if not samples:
        return NOT_RUN
    text = _format(statistics.fmean(samples), claim.number)
    if len(samples) > 1:
        text += f" ± {_format(statistics.stdev(samples), claim.number)}"
    now = results.current
    fresh = claim.value(now.values(evidence(now, setting) & now.by_setting.keys()))
    return text if fresh == claim.value(results.values(settings)) else text + STALE


def _format(value: float | None, number: Number | None) -> str:
    return NOT_RUN if value is None or number is None else f"{value:.{number.digits}f}"


def _where(setting: Setting) -> str:
    if setting.kind == "count":
        return "computed"
    if setting.kind == "timing":
        return f"{setting.hardware}"
    return f"{setting.data}, scale {setting.scale}, {setting.hardware}"


def pictures(folder: Path, everything: Everything) -> str:
    """Every figure that is there, the operator's latency over kernel size first."""
    parts = [
        f"Latency over kernel size, {path.stem}:\n\n![{path.stem}]({path.relative_to(folder).as_posix()})"
        for path in sorted((folder / "native").glob("*.png"))
    ]
    for name, results in everything.items():
        if (folder / name / f"{name}.png").exists():
            title = results.ablation.title.rstrip(".").removeprefix(f"{results.ablation.source}: ")
            parts.append(f"{_link(results)}: {title}.\n\n![{title}]({name}/{name}.png)")
    return "\n\n".join(parts)


def sweeps(folder: Path) -> str:
    """Links to the studies under `sweeps/`, with their figures."""
    found = sorted((folder / "sweeps").rglob("table.md"))
    parts = [f"- [{path.parent.name}]({path.relative_to(folder).as_posix()})" for path in found]
    images = sorted((folder / "sweeps").rglob("*.png"))
    return "\n\n".join(
        ["\n".join(parts), *(f"![{p.stem}]({p.relative_to(folder).as_posix()})" for p in images)]
    ).strip()


def failures(everything: Everything) -> str:
    """Every sentence that fails, with its margin and where."""
    return _of_word(everything, "fails")


def undecided(everything: Everything) -> str:
    """Every sentence that more seeds would decide, likewise."""
    return _of_word(everything, "undecided", "one seed")


def _of_word(everything: Everything, *words: str) -> str:
    lines: dict[str, list[str]] = {}
    for results, found in verdicts(list(everything.values())):
        if found.word in words:
            where = found.setting.hardware if found.setting.kind == "timing" else found.setting.data
            head = f"- {_link(results)}: {found.claim.sentence}"
            lines.setdefault(head, []).append(f"{with_margin(found)} on {where}")
    return "\n".join(f"{head}: {'; '.join(said)}." for head, said in lines.items())


def without_numbers(everything: Everything) -> str:
    """Sentences that no setting has the numbers for, a line a table."""
    lines = []
    for results in everything.values():
        open_ = [c.sentence for c in results.ablation.claims if _nowhere(c, results)]
        if open_:
            lines.append(f"- {_link(results)}: {'; '.join(open_)}.")
    return "\n".join(lines)


def _nowhere(claim: Claim, results: Results) -> bool:
    return not any(verdict(claim, results, setting).verdict for setting in judged(results))


def discrepancies(everything: Everything) -> str:
    """The list of differences with their numbers."""
    return "\n".join(_describe(one, everything) for one in DISCREPANCIES)


def _describe(one: Discrepancy, everything: Everything) -> str:
    paper, ours = {}, {}
    for name, row, metric in one.cells:
        results = everything[name]
        what = f"{results.ablation.select([row])[0].label}, {results.ablation.metric(metric).label}"
        printed = paper_values(results.ablation)[metric].get(row)
        counted = results.values(results.settings("count")).get(metric, {}).get(row)
        if printed is not None and counted is not None:
            paper[what], ours[what] = printed, counted
    return describe(one, paper, ours)


def costs(everything: Everything) -> str:
    """Records and hours of training, by scale and hardware."""
    spent: dict[str, list[Record]] = {}
    for results in everything.values():
        if results.ablation.records_of:
            continue
        for record in results.records:
            if record.scale:
                spent.setdefault(f"scale {record.scale} on {record.hardware}", []).append(record)
    lines = [
        f"- {where}: {len(records)} runs, {_hours(records)} of training" for where, records in sorted(spent.items())
    ]
    return "\n".join(lines)


def _hours(records: Iterable[Record]) -> str:
    return f"{sum(r.seconds or 0 for r in records) / 3600:.1f} hours"


def outdated(folder: Path) -> list[Path]:
    """Files under `folder` that do not follow from the records beside them: tables, figures' numbers, the index."""
    pages = _texts(folder, load(folder))
    return stale(folder) + [
        page for page, text in pages.items() if not page.exists() or page.read_text(encoding="utf-8") != text
    ]
