"""Whether the paper's sentences hold on our numbers: margins, how sure the seeds make us, and the words for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ablations.paper import paper_values
from ablations.records.record import FROM_SCRATCH
from ablations.report.formats import NOT_RUN, STALE
from ablations.report.posterior import Verdict, judge
from ablations.report.results import Results, Setting
from ablations.spec import Claim

HEAD = ["ablation", "claim", "setting", "seeds", "margin", "low", "high", "probability", "verdict", "paper_margin"]
"""Columns of `verdicts.csv`; margins are in the claim's unit, low and high are the central 95 % interval's ends."""


@dataclass(frozen=True)
class Judged:
    """A claim in a setting: `verdict` is None where numbers are missing, `stale` says that old ones decide the word."""

    claim: Claim
    setting: Setting
    verdict: Verdict | None
    stale: bool

    @property
    def word(self) -> str:
        """`holds`, `fails`, `undecided`, `one seed`, or `—` where numbers are missing."""
        return self.verdict.word if self.verdict else NOT_RUN

    def __str__(self) -> str:
        """The word and how sure it is: `undecided (P = 0.80; about 6 more seeds)`."""
        return self.word + _sureness(self.verdict) + STALE * self.stale


def _sureness(verdict: Verdict | None) -> str:
    if verdict is None or verdict.seeds < 2:
        return ""
    if verdict.word != "undecided":
        return f" ({verdict.seeds} seeds)"
    more = verdict.more_seeds
    return f" (P = {verdict.probability:.2f}; {f'about {more}' if more else 'many'} more seeds)"


def with_margin(found: Judged) -> str:
    """The verdict, the margin and its interval: `holds (5 seeds): +1.23 (0.40 to 2.86) points`."""
    if found.verdict is None:
        return NOT_RUN
    text = f"{found}: {margin(found.verdict.margin)}"
    if not math.isnan(found.verdict.probability):
        text += f" ({margin(found.verdict.low)} to {margin(found.verdict.high)})"
    return f"{text} {found.claim.unit}"


def margin(value: float | None) -> str:
    """With its sign, or `—`."""
    return NOT_RUN if value is None else f"{value:+.2f}".replace("-", "−")


def verdict(claim: Claim, results: Results, setting: Setting) -> Judged:
    """What our numbers of `setting` say of `claim`; stale where those of today's code alone say another word."""
    found, current = _verdict(claim, results, setting), results.current
    now = found if current is results else None
    if current is not results and setting in current.by_setting:
        now = _verdict(claim, current, setting)
    same = found is None or (now is not None and now.word == found.word)
    return Judged(claim, setting, found, not same)


def _verdict(claim: Claim, results: Results, setting: Setting) -> Verdict | None:
    settings, seeds = evidence(results, setting), results.seeds(setting)
    if not seeds:
        found = claim.margin(results.values(settings))
        return None if found is None else Verdict(float(found))
    each = [results.values(settings, [seed]) for seed in seeds]
    complete = [values for values in each if claim.margin(values) is not None]  # others lack rows
    return judge(claim, complete) if complete else None


def evidence(results: Results, setting: Setting) -> set[Setting]:
    """Whose numbers a claim sees beside those of `setting`; counts belong to no machine and serve every setting."""
    return {setting, *partners(results, setting), *results.settings("count")}


def partners(results: Results, setting: Setting) -> list[Setting]:
    """Where the nets trained in `setting` were carried over to."""
    transfers = results.settings("transfer") if setting.kind == "train" else []
    carried = [s for s in transfers if not (s.data or "").endswith(FROM_SCRATCH)]
    return [s for s in carried if (s.scale, s.hardware) == (setting.scale, setting.hardware)]


def judged(results: Results) -> list[Setting]:
    """The settings that claims are evaluated in: a column each."""
    main = "train" if results.ablation.has("train") else "transfer"
    return results.settings(main) + results.settings("timing") or results.settings("count")


def verdicts(everything: Sequence[Results]) -> list[tuple[Results, Judged]]:
    """Every claim in every setting that has its numbers."""
    return [
        (results, found)
        for results in everything
        for claim in results.ablation.claims
        for setting in judged(results)
        if (found := verdict(claim, results, setting)).verdict
    ]


def verdict_lines(everything: Sequence[Results]) -> list[list[Any]]:
    """`verdicts.csv`, head first."""
    lines: list[list[Any]] = [HEAD]
    for results, found in verdicts(everything):
        assert found.verdict
        numbers = (found.verdict.margin, found.verdict.low, found.verdict.high, found.verdict.probability)
        shown = ["" if math.isnan(number) else round(number, 3) for number in numbers]
        paper = found.claim.margin(paper_values(results.ablation))
        where = found.setting.describe(results.seeds(found.setting))
        lines.append(
            [
                results.ablation.name,
                found.claim.sentence,
                where,
                found.verdict.seeds or "",
                *shown,
                found.word + STALE * found.stale,
                "" if paper is None else round(float(paper), 3),
            ]
        )
    return lines
