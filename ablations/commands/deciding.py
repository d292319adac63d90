"""Seeds until claims are decided: the decision that is likely cheapest first, and no row that no open claim names.

A claim is open while its verdict is neither `holds` nor `fails`, or has fewer than three seeds, in the setting that
this command trains in. A seed that another processor or other code has used says nothing there, and is passed over.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from pathlib import Path

from ablations.paper import paper_values
from ablations.records.record import Record
from ablations.report.estimate import Estimates, spoken
from ablations.report.results import Results, Setting, records_of
from ablations.report.verdicts import Judged, verdict, with_margin
from ablations.runner.machine import Machine
from ablations.runner.preflight import preflight
from ablations.runner.runs import Run, with_needs
from ablations.spec import Ablation, Claim

DECIDED = ("holds", "fails")
FEWEST = 3
"""Seeds from which a word may end it: who stops at the first of two would be wrong more often (see posterior.py)."""


class _Asked(dict[str, float]):
    """Numbers by row that note which rows were looked up."""

    def __init__(self, ablation: Ablation, metric: str) -> None:
        known = paper_values(ablation)[metric]
        super().__init__({row.key: known.get(row.key, 1.0) for row in ablation.rows})
        self.asked: set[str] = set()

    def __getitem__(self, row: str) -> float:
        self.asked.add(row)
        return super().__getitem__(row)


def cells(claim: Claim) -> set[tuple[str, str]]:
    """The numbers that `claim` looks up: pairs of a row and what its number comes from, a `Metric`'s source."""
    metrics = [claim.ablation.metric(name) for name in inspect.signature(claim.function).parameters]
    columns = {metric.key: _Asked(claim.ablation, metric.key) for metric in metrics}
    claim.function(**columns)
    return {(row, metric.source) for metric in metrics for row in columns[metric.key].asked}


def matters_of_seeds(ablation: Ablation) -> list[Claim]:
    """Its claims about trained nets; what is counted or timed no seed decides."""
    sources = {claim.sentence: {source for _, source in cells(claim)} for claim in ablation.claims}
    trained = {"train", "transfer"}
    return [c for c in ablation.claims if sources[c.sentence] & trained and "timing" not in sources[c.sentence]]


@dataclass(frozen=True)
class Question:
    """A claim that seeds can decide, and its runs: `runs(seed)` is all that it names, each after what it needs."""

    claim: Claim
    planned: Callable[[int], Sequence[Run]] = field(repr=False, compare=False)

    def runs(self, seed: int) -> list[Run]:
        """The runs of `seed` that the claim's numbers come from, with those that leave a record and come before."""
        asked, home = cells(self.claim), self.claim.ablation
        if home.has("train"):  # where its verdict is looked up, by the seeds that are there
            asked |= {(row, "train") for row, source in asked if source == "transfer"}
        known = {(run.ablation.name, run.record_name): run for run in self.planned(seed)}
        named = [run for run in known.values() if (run.row.key, run.kind) in asked]
        named = [run for run in named if run.ablation in home.homes]
        order = {(each.ablation.name, each.record_name): None for run in named for each in with_needs(run)}
        return [known[key] for key in order if key in known]

    @cached_property
    def lacks(self) -> list[str]:
        """Rows that the claim names and that this scale does not train."""
        planned = {(run.row.key, run.kind) for run in self.runs(0)}
        trained = {(row, source) for row, source in cells(self.claim) if source in ("train", "transfer")}
        return sorted({row for row, _ in trained - planned})

    def setting(self, processor: str) -> Setting:
        """Where its verdict is looked up."""
        kind = "train" if self.claim.ablation.has("train") else "transfer"
        run = next(run for run in self.runs(0) if run.kind == kind)
        return Setting(kind, run.scale.name, run.data_name, processor)


@dataclass(frozen=True)
class Step:
    """What comes next for an open claim.

    Attributes:
        found: what is known of it.
        seed, runs: the next seed, and what is to be trained of it.
        more: how many seeds may decide it, this one included; None where that is not foreseen.
        seconds: of these seeds, by the estimates; of one where they are not foreseen.
        tried: the seeds that it has.
    """

    question: Question
    found: Judged
    seed: int
    runs: list[Run]
    more: int | None
    seconds: float
    tried: int

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Sorts the decision that is likely cheapest first, and what is not foreseen last, fewest seeds first."""
        return (False, self.seconds, 0) if self.more else (True, self.tried, self.seconds)


class Decider:
    """Adds seeds to open claims in `folder`, where the results of all ablations lie.

    Args:
        questions: what may be asked.
        processor: as `Setting` names it.
        most: how many seeds a claim may have.
        budget: seconds that the command may take; None for as many as it needs.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        folder: Path,
        processor: str,
        *,
        most: int,
        budget: float | None,
        say: Callable[[str], object],
    ) -> None:
        self.questions, self.folder, self.processor = list(questions), folder, processor
        self.most, self.budget, self.say = most, budget, say
        self.estimates = Estimates.of(folder)
        self.started = time.monotonic()
        self.trained = self.expected = 0.0  # seconds that seeds took, and that they were estimated to take
        self.passed: set[tuple[str, str, int]] = set()  # claims and seeds that came to nothing
        self.results: dict[str, Results] = {}

    def decide(self, train: Callable[[list[Run]], bool]) -> None:
        """Add seeds until all is decided, has `most` seeds, or the next would exceed the budget.

        `train` leaves a record of every run, or says False where it could not and would not the next time either.
        """
        while steps := self.steps():
            step = steps[0]
            seconds = self.estimates.total(step.runs) * self.pace
            if self.budget is not None and self.spent + seconds > self.budget:
                self.say(
                    f"the budget of {spoken(self.budget)} ends here: {spoken(self.spent)} are spent, and seed "
                    f"{step.seed} of {', '.join(run.row.key for run in step.runs)} may take {spoken(seconds)}"
                )
                return
            begun = time.monotonic()
            done = train(step.runs)
            if all(self.estimates.seconds_of(run) is not None for run in step.runs):
                self.trained += time.monotonic() - begun
                self.expected += self.estimates.total(step.runs)
            self._learn(step, done)
        decided = sum(self._judge(question).word in DECIDED for question in self.questions)
        self.say(f"{decided} of {len(self.questions)} claims are decided; {self._clock()}")

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def pace(self) -> float:
        """Seconds that one of the estimates' took here so far."""
        return self.trained / self.expected if self.expected else 1.0

    def _learn(self, step: Step, done: bool) -> None:
        """Note what came of a seed, and say what is known of the claims that it was trained for."""
        self.estimates, homes = Estimates.of(self.folder), {run.ablation.name for run in step.runs}
        for name in [n for n, results in self.results.items() if homes & {h.name for h in results.ablation.homes}]:
            del self.results[name]
        if not done:
            self.questions.remove(step.question)
        elif self._missing(step.question, step.seed):  # another command is working on it
            self.passed.add((*_name(step.question), step.seed))
        trained = {(run.ablation.name, run.record_name) for run in step.runs}
        self.say(f"seed {step.seed} of {', '.join(dict.fromkeys(r.row.key for r in step.runs))}: {self._clock()}")
        for question in self.questions:
            if trained & {(run.ablation.name, run.record_name) for run in question.runs(step.seed)}:
                self.say(f"  {self.line(question)}")

    def _clock(self) -> str:
        rest = f" of {spoken(self.budget)}" if self.budget is not None else ""
        return f"{spoken(self.spent)}{rest} spent"

    def announce(self) -> None:
        """Say what is known of every claim, and what the open ones may cost."""
        for question in self.questions:
            self.say(self.line(question))
        steps = self.steps()
        if not steps:
            self.say(f"no claim is open that has fewer than {self.most} seeds: nothing to add")
            return
        fewest = min(FEWEST, self.most)
        new = [step for step in steps if not step.more and step.tried < fewest]
        long = [step for step in steps if not step.more and step.tried >= fewest]
        likely = self._runs((step, step.more or (fewest if step in new else self.most) - step.tried) for step in steps)
        most = self._runs((step, self.most - step.tried) for step in steps)
        rest = f"; {len(new)} of them have fewer than {fewest} seeds, and may need more than these" if new else ""
        rest += f"; {len(long)} of them may stay undecided" if long else ""
        within = f" and {spoken(self.budget)}" if self.budget is not None else ""
        self.say(f"{len(steps)} claims are open; expected: {self._cost(likely)}{rest}")
        self.say(f"at most {self.most} seeds a claim{within}; to train all of them: {self._cost(most)}")

    def _cost(self, runs: list[Run]) -> str:
        return f"{len(runs)} runs, {self.estimates.spoken(runs)}"

    def _runs(self, wanted: Iterable[tuple[Step, int]]) -> list[Run]:
        """All runs that so many more seeds of each claim take, those that claims share once."""
        runs: dict[tuple[str, str], Run] = {}
        for step, seeds in wanted:
            open_seeds = (missing for seed in count() if (missing := self._missing(step.question, seed)))
            for missing in islice(open_seeds, seeds):
                runs |= {(run.ablation.name, run.record_name): run for run in missing}
        return list(runs.values())

    def line(self, question: Question) -> str:
        """The claim and what is known of it here."""
        found = self._judge(question)
        text = with_margin(found) if found.verdict else "not measured here"
        return f"{question.claim.ablation.source}: {question.claim.sentence}: {text}"

    def steps(self) -> list[Step]:
        """What comes next of each open claim, the decision that is likely cheapest first."""
        steps = [self._step(question) for question in self.questions]
        return sorted((step for step in steps if step), key=lambda step: step.rank)

    def _step(self, question: Question) -> Step | None:
        found, tried = self._judge(question), self._tried(question)
        if (found.word in DECIDED and tried >= FEWEST) or tried >= self.most:
            return None
        seed, runs = next((s, missing) for s in count() if (missing := self._missing(question, s)))
        more = self._foreseen(found, tried)
        seconds = (more or 1) * self.estimates.total(question.runs(0))
        return Step(question, found, seed, runs, more, seconds, tried)

    def _foreseen(self, found: Judged, tried: int) -> int | None:
        """How many more seeds may decide it; None if that is unknown or more than it may have."""
        more = 1 if found.word in DECIDED else found.verdict and found.verdict.more_seeds
        more = more and max(more, FEWEST - tried)
        return more if more and tried + more <= self.most else None

    def _judge(self, question: Question) -> Judged:
        results, setting = self._results(question.claim.ablation), question.setting(self.processor)
        if setting not in results.current.by_setting:
            return Judged(question.claim, setting, None, False)
        return verdict(question.claim, results.current, setting)

    def _results(self, ablation: Ablation) -> Results:
        if ablation.name not in self.results:
            everything = Results(ablation, records_of(ablation, self.folder / ablation.name))
            self.results[ablation.name] = everything
        return self.results[ablation.name]

    def _records(self, question: Question, seed: int) -> list[tuple[Run, Record | None]]:
        results = self._results(question.claim.ablation)
        known = {(record.ablation, record.filename): record for record in results.records}
        return [(run, known.get((run.ablation.name, run.record_name))) for run in question.runs(seed)]

    def _missing(self, question: Question, seed: int) -> list[Run]:
        """What is to be trained of `seed`; nothing where it is complete, or cannot become so in this setting."""
        if (*_name(question), seed) in self.passed:
            return []
        found = self._records(question, seed)
        return [] if any(r and not self._counts(question, r) for _, r in found) else [run for run, r in found if not r]

    def _tried(self, question: Question) -> int:
        """Seeds of which all runs have records in this setting, failed ones and those passed over included."""
        seeds = {r.seed for r in self._results(question.claim.ablation).records if r.seed is not None}
        complete = [s for s in seeds if all(r and self._counts(question, r) for _, r in self._records(question, s))]
        return len(complete) + sum(passed[:2] == _name(question) for passed in self.passed)

    def _counts(self, question: Question, record: Record) -> bool:
        """Whether `record` is of this setting's processor and of today's code."""
        current = self._results(question.claim.ablation).current.records
        return Setting.of(record).hardware == self.processor and any(record is each for each in current)


def answerable(questions: Sequence[Question], machine: Machine) -> tuple[list[Question], dict[str, str]]:
    """Those whose runs can be trained on `machine`, and why others' cannot, by claim; raises SpecError for flags."""
    why = {
        question.claim.sentence: f"the scale trains no {', '.join(question.lacks)}"
        for question in questions
        if question.lacks
    }
    asked = [question for question in questions if not question.lacks]
    runs = {(run.ablation.name, run.record_name): run for question in asked for run in question.runs(0)}
    found = {(f.run.ablation.name, f.run.record_name): f.error for f in preflight(list(runs.values()), machine)}
    for question in asked:
        errors = [found[run.ablation.name, run.record_name] for run in question.runs(0)]
        if error := next((error for error in errors if error), None):
            why[question.claim.sentence] = str(error)
    return [question for question in asked if question.claim.sentence not in why], why


def _name(question: Question) -> tuple[str, str]:
    return question.claim.ablation.name, question.claim.sentence
