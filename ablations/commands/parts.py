"""What `run` and `reproduce` work on: rows of ablations, their runs, and where their results lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablations.commands.options import TrainingOptions
from ablations.report.render import render
from ablations.runner.locks import writing
from ablations.runner.machine import Machine
from ablations.runner.plan import plan
from ablations.runner.runs import Run
from ablations.scales import get_scale
from ablations.spec import Ablation, Row, Scale


@dataclass
class Part:
    """An ablation's share of a command: the rows that are wanted, and all their runs."""

    ablation: Ablation
    rows: list[Row]
    scale: Scale
    folder: Path
    runs: list[Run]


def parts_of(
    shown: Sequence[Ablation],
    options: TrainingOptions,
    *,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] = (),
    init: Sequence[tuple[str, str]] = (),
) -> list[Part]:
    """A part for every ablation whose runs `shown` show, of `rows` or all; raises SpecError."""
    wanted: dict[str, tuple[Ablation, set[str]]] = {}
    for ablation in shown:
        for home in ablation.homes:
            keys = {row.key for row in ablation.select(list(rows or ())) if not row.gain}
            wanted.setdefault(home.name, (home, set()))[1].update(keys)
    return [_part(home, keys, options, seeds, init) for home, keys in wanted.values()]


def _part(
    ablation: Ablation, keys: set[str], options: TrainingOptions, seeds: Sequence[int], init: Sequence[tuple[str, str]]
) -> Part:
    scale, rows = get_scale(options.scale, ablation), [row for row in ablation.rows if row.key in keys]
    runs = plan(
        ablation,
        rows,
        scale,
        seeds=options.seeds or seeds,
        data=options.data,
        transfer_data=options.transfer_data,
        init=dict(init),
        from_scratch=options.from_scratch,
    )
    return Part(ablation, rows, scale, (options.results or scale.results) / ablation.name, runs)


def machine_of(options: TrainingOptions) -> Machine:
    """Where `run` and `reproduce` train."""
    devices = options.devices or ("auto" if options.scale == "paper" else "1")
    return Machine(
        options.accelerator, devices, options.num_nodes, options.strategy, options.precision, options.sync_bn
    )


def render_alone(ablation: Ablation, folder: Path) -> str:
    """Render into `folder` while no other command does; returns the table."""
    with writing(folder):
        return render(ablation, folder)
