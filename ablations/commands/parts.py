"""What `run` and `reproduce` work on: rows of ablations, their runs, and where their results lie."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import torch

from ablations.commands.deciding import Decider, Question, answerable, matters_of_seeds
from ablations.commands.options import MAX_SEEDS, MOST_JOBS, TrainingOptions
from ablations.report.render import render
from ablations.runner.locks import writing
from ablations.runner.machine import Machine
from ablations.runner.plan import plan
from ablations.runner.profile import is_timed
from ablations.runner.runs import Run
from ablations.runner.scheduler import Batch, say
from ablations.runner.side_by_side import Crew
from ablations.scales import get_scale
from ablations.spec import Ablation, Row, Scale, SpecError


@dataclass
class Part:
    """An ablation's share of a command: the rows that are wanted, all their runs, and what is to be done of them."""

    ablation: Ablation
    rows: list[Row]
    scale: Scale
    folder: Path
    runs: list[Run]
    missing: list[Run] = field(default_factory=list)
    recorded: int = 0

    @property
    def batch(self) -> Batch:
        """Its runs, to be trained."""
        return Batch(self.runs, self.folder, partial(render_alone, self.ablation, self.folder))

    def add(self, runs: Sequence[Run]) -> Batch:
        """Note those of `runs` that are of its ablation, and that they are wanted; returns them to be trained."""
        mine = [run for run in runs if run.ablation is self.ablation]
        self.runs += mine
        return self.batch.of(mine)

    @property
    def untimed(self) -> list[Row]:
        """The rows to time here that have not all been timed on this hardware."""
        if self.ablation.timing is None:
            return []
        only = None if self.scale.timed is None else self.scale.timed.get(self.ablation.name, ())
        rows = [row for row in self.rows if only is None or row.key in only]
        return [] if is_timed(self.ablation, rows, self.folder) else rows


def parts_of(shown: Sequence[Ablation], options: TrainingOptions) -> list[Part]:
    """A part for every ablation whose runs `shown` show; raises SpecError."""
    wanted: dict[str, tuple[Ablation, set[str]]] = {}
    for ablation in shown:
        for home in ablation.homes:
            keys = {row.key for row in ablation.select(list(options.rows or ())) if not row.gain}
            wanted.setdefault(home.name, (home, set()))[1].update(keys)
    return [_part(home, [row for row in home.rows if row.key in keys], options) for home, keys in wanted.values()]


def _part(ablation: Ablation, rows: list[Row], options: TrainingOptions) -> Part:
    scale = get_scale(options.scale, ablation)
    runs = plan(
        ablation,
        rows,
        scale,
        seeds=options.seeds or (),
        data=options.data,
        transfer_data=options.transfer_data,
        init=dict(options.init),
        from_scratch=options.from_scratch,
    )
    return Part(ablation, rows, scale, (options.results or scale.results) / ablation.name, runs)


def questions_of(shown: Sequence[Ablation], options: TrainingOptions) -> list[Question]:
    """The claims of `shown` that seeds can decide; raises SpecError."""

    @cache
    def planned(seed: int) -> list[Run]:
        return [run for part in parts_of(shown, replace(options, seeds=(seed,))) for run in part.runs]

    return [Question(claim, planned) for ablation in shown for claim in matters_of_seeds(ablation)]


def decider_of(shown: Sequence[Ablation], options: TrainingOptions, machine: Machine, results: Path) -> Decider:
    """What adds seeds to the open claims of `shown`, whose results lie in `results`; names the claims that it cannot.

    Raises SpecError if that is all of them.
    """
    questions, why = answerable(questions_of(shown, options), machine)
    for claim, reason in why.items():
        say(f"skipped: {claim}: {reason}")
    if not questions:
        reason = next(iter(why.values()), "none is about trained nets")
        raise SpecError(f"there is no claim here that seeds can decide: {reason.rstrip('.')}.")
    return Decider(
        questions, results, machine.processor, most=options.max_seeds or MAX_SEEDS, budget=options.budget, say=say
    )


def jobs_on(machine: Machine, scale: str) -> int:
    """Runs at a time where no number was named.

    Nets of `small` leave a second thread half idle: side by side they are done sooner (measured with `--jobs 1` and 2).
    """
    together = scale == "small" and machine.device.type == "cpu" and machine.processes == 1
    return min(MOST_JOBS, torch.get_num_threads()) if together else 1


def crew_of(options: TrainingOptions, machine: Machine) -> Crew:
    """Who trains; raises SpecError for jobs of a cluster where submitit is missing, or does not take what was given."""
    if options.submitit is None:
        return Crew(machine, options.jobs or jobs_on(machine, options.scale))
    try:
        from ablations.runner.cluster import Cluster
    except ModuleNotFoundError as missing:
        if missing.name != "submitit":
            raise
        raise SpecError("--submitit needs a package: pip install 'replk-lightning[cluster]'.") from None
    return Crew(machine, workers=Cluster(options.submitit))


def machine_of(options: TrainingOptions) -> Machine:
    """Where `run` and `reproduce` train."""
    devices = options.devices or ("auto" if options.scale == "paper" and not options.one_device else "1")
    return Machine(
        options.accelerator,
        devices,
        options.num_nodes,
        options.strategy,
        options.precision,
        options.sync_bn,
        options.logger,
    )


def render_alone(ablation: Ablation, folder: Path) -> str:
    """Render into `folder` while no other command does; returns the table."""
    with writing(folder):
        return render(ablation, folder)
