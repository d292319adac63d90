"""python -m ablations.run NAME: train what is missing of one table of the paper, and print the table."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from tqdm import tqdm

from ablations.count import count, time_rows
from ablations.records import Record, hardware, read_record, record_name, write_record
from ablations.render import render
from ablations.scales import SCALES
from ablations.spec import Ablation, Row, SpecError, all_ablations, get_ablation
from ablations.train import Machine, Run, forget, train
from replk_lightning.data import DataError, ImageData
from replk_lightning.models import ModelError, create_model

INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m ablations.run", description=__doc__)
    p.add_argument("name", nargs="?", help="an ablation; see --list")
    p.add_argument("--list", action="store_true", help="name every ablation and stop")
    scales = "; ".join(f"{s.name}: {s.cost}, {s.data}" for s in SCALES.values())
    p.add_argument("--scale", default="small", help=f"{scales} (default: small)")
    p.add_argument("--data", help="a data set instead of the scale's: mnist5k, imagefolder:PATH, hf:NAME, …")
    p.add_argument("--seeds", type=int, nargs="+", help="default: 3 at small (0 to 2 are committed), else 0")
    p.add_argument("--rows", nargs="+", metavar="KEY", help="only these rows of the table")
    p.add_argument("--results", type=Path, help="default: results/, or runs/smoke/ at scale smoke")
    p.add_argument("--dry-run", action="store_true", help="print every run and do nothing")
    p.add_argument("--timing", action="store_true", help="also measure the columns that time this machine")
    p.add_argument("--accelerator", "--device", default="auto", help="cpu, gpu, … (default: auto)")
    p.add_argument("--devices", help="how many devices a node (default: all at scale paper, else 1)")
    p.add_argument("--num-nodes", type=int, default=1)
    p.add_argument("--strategy", default="auto", help="any of Lightning's: ddp, fsdp, …")
    p.add_argument("--precision", help="any of Lightning's (default: bf16-mixed on GPUs, 32-true on CPUs)")
    return p


def plan(ablation: Ablation, arguments: argparse.Namespace) -> list[Run]:
    """Every training run that the command names, seeds outermost so that whole tables come early."""
    if arguments.scale not in SCALES:
        raise SpecError(f"there is no scale {arguments.scale!r}; choose from {', '.join(SCALES)}.")
    scale = SCALES[arguments.scale]
    rows = [row for row in ablation.select(arguments.rows) if row.trained]
    data = arguments.data or scale.data
    return [Run(ablation, row, scale, data, seed) for seed in arguments.seeds or scale.seeds for row in rows]


def dry_run(runs: list[Run], data_named: bool) -> str:
    """Every run with its model, options, parameters, recipe and steps.

    The scale's own data may be missing: a laptop can plan what a cluster will run. Data named by the user must be here.
    """
    data = runs[0].make_data()  # the runs share their data
    try:
        size = data.train_size
        found = f"{size or 'unknown number of'} images, fingerprint {data.fingerprint}"
    except DataError as missing:
        if data_named:
            raise
        size, found = None, f"not here ({missing})"
    return "\n".join([f"data: {data.name}, {found}", *(describe(run, data, size) for run in runs)])


def describe(run: Run, data: ImageData, train_size: int | None) -> str:
    """One run's part of `dry_run`."""
    recipe = run.recipe
    parameters = sum(p.numel() for p in build_on_meta(run, data).parameters())
    fields = {k: v for k, v in vars(recipe).items() if v not in (None, 0.0, False)}
    batches = max(1, train_size // recipe.batch_size) if train_size else None
    steps = f"{batches * recipe.epochs} ({batches} an epoch)" if batches else "unknown without the data's size"
    return "\n".join(
        [
            f"{run.ablation.name} {run.row.key}, scale {run.scale.name}, seed {run.seed}",
            f"  model   {run.row.model} {run.scale.options_for(run.row)}, {parameters:,} parameters",
            f"  recipe  {', '.join(f'{k}={v}' for k, v in fields.items())}",
            f"  steps   {steps}",
        ]
    )


def build_on_meta(run: Run, data: ImageData) -> nn.Module:
    """The run's model without memory, so that a wrong option is told before the first run and not after it."""
    with torch.device("meta"):
        return create_model(run.row.model, in_chans=data.in_chans, **run.scale.options_for(run.row))


def execute(runs: list[Run], folder: Path, machine: Machine) -> bool:
    """Train every run that has no record, rendering after each; returns whether all of them finished well."""
    missing = [run for run in runs if not (folder / "runs" / run.record_name).exists()]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them recorded already")
    if missing:
        data = missing[0].make_data()
        data.setup()  # data that are not here, or a wrong option below, are told before anything is trained
        for run in missing:
            build_on_meta(run, data)
    with tqdm(total=sum(run.recipe.epochs for run in missing), unit="epoch", position=0, dynamic_ncols=True) as bar:
        done = 0
        for run in missing:
            bar.set_description(f"{run.row.key}, seed {run.seed}")
            record = train(run, machine, bar)
            done += run.recipe.epochs
            bar.update(done - bar.n)
            save(record, run, folder)
    recorded = [read_record(folder / "runs" / run.record_name) for run in runs]
    failures = [record for record in recorded if record and record.status == "failed"]
    for record in failures:
        print(f"{record.row}, seed {record.seed}: failed, {record.reason}", file=sys.stderr)
    return not failures


@rank_zero_only
def save(record: Record, run: Run, folder: Path) -> None:
    """Write the record, render the table with it, and drop the checkpoint."""
    write_record(record, folder / "runs")
    render(run.ablation, folder)
    forget(run)


def measure(ablation: Ablation, rows: Sequence[Row], folder: Path, timing: bool) -> None:
    """Count, and time where asked, every row that has no such record yet."""
    runs = folder / "runs"
    if ablation.has("count"):
        for row in rows:
            if not (runs / record_name(row.key, "count")).exists():
                write_record(count(ablation, row), runs)
    if timing and ablation.timing:
        missing = [r for r in rows if not (runs / record_name(r.key, "timing", hardware=hardware())).exists()]
        for record in time_rows(ablation, missing) if missing else ():
            write_record(record, runs)


def run_ablation(arguments: argparse.Namespace) -> int:
    """Everything the command asks for; the exit status."""
    ablation = get_ablation(arguments.name)
    runs = plan(ablation, arguments)
    if arguments.dry_run:
        print(dry_run(runs, data_named=arguments.data is not None))
        return 0
    scale = SCALES[arguments.scale]
    folder = (arguments.results or scale.results) / ablation.name
    devices = arguments.devices or ("auto" if scale.name == "paper" else "1")
    machine = Machine(arguments.accelerator, devices, arguments.num_nodes, arguments.strategy, arguments.precision)
    measure(ablation, ablation.select(arguments.rows), folder, arguments.timing)
    finished = execute(runs, folder, machine)
    print(render(ablation, folder))
    print(f"written to {folder / 'table.md'}")
    return 0 if finished else 2


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a wrong argument gives one sentence and 2, Ctrl-C 130."""
    arguments = parser().parse_args(argv)
    if arguments.list:
        for ablation in all_ablations().values():
            print(f"{ablation.name:<12} {ablation.source:<9} {len(ablation.rows):>2} rows  {ablation.title}")
        return 0
    if not arguments.name:
        print("name an ablation, or use --list to see them.", file=sys.stderr)
        return 2
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        return run_ablation(arguments)
    except (SpecError, DataError, ModelError) as error:
        print(f"ablations.run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
