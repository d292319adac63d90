"""python -m ablations.run NAME: train what is missing of one table of the paper, and print the table."""

import argparse
import logging
import sys
from pathlib import Path

import timm
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

from ablations.count import count, time_rows
from ablations.records import Record, hardware, read_record, record_name, write_record
from ablations.render import render
from ablations.scales import SCALES
from ablations.spec import Ablation, Row, SpecError, all_ablations, get_ablation
from ablations.train import Machine, Run, forget, train
from replk_lightning.data import DataError

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
    p.add_argument("--throughput", type=int, metavar="BATCH", help="also time the nets at this batch size")
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


def describe(run: Run) -> str:
    """One paragraph for --dry-run: model, options, parameters, data, recipe, steps."""
    data, recipe = run.make_data(), run.recipe
    options = {"in_chans": data.in_chans, "num_classes": data.num_classes, **run.scale.options_for(run.row)}
    with torch.device("meta"):
        net = timm.create_model(run.row.model, **options)
    parameters = sum(p.numel() for p in net.parameters())
    batches = None if data.train_size is None else max(1, data.train_size // recipe.batch_size)
    steps = "unknown (a stream)" if batches is None else f"{batches * recipe.epochs} ({batches} an epoch)"
    fields = {k: v for k, v in vars(recipe).items() if v not in (None, 0.0, False)}
    return "\n".join(
        [
            f"{run.ablation.name} {run.row.key}, scale {run.scale.name}, seed {run.seed}",
            f"  model   {run.row.model} {options}, {parameters:,} parameters",
            f"  data    {run.data}, {data.train_size or 'unknown number of'} images, fingerprint {data.fingerprint}",
            f"  recipe  {', '.join(f'{k}={v}' for k, v in fields.items())}",
            f"  steps   {steps}",
        ]
    )


def check_models(runs: list[Run]) -> None:
    """Build every model without memory, so that a wrong option is told before the first run and not after it."""
    for run in runs:
        data = run.make_data()
        try:
            with torch.device("meta"):
                timm.create_model(run.row.model, in_chans=data.in_chans, **run.scale.options_for(run.row))
        except (ValueError, TypeError, RuntimeError) as error:
            raise SpecError(f"row {run.row.key!r} makes no model: {error}") from error


def execute(runs: list[Run], folder: Path, machine: Machine) -> bool:
    """Train every run that has no record, rendering after each; returns whether all of them finished well."""
    missing = [run for run in runs if not (folder / "runs" / run.record_name).exists()]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them recorded already")
    check_models(missing)
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


def measure(ablation: Ablation, rows: tuple[Row, ...], folder: Path, batch_size: int | None) -> None:
    """Count, and time where asked, every row that has no such record yet."""
    runs = folder / "runs"
    if ablation.has("count"):
        for row in rows:
            if not (runs / record_name(row.key, "count")).exists():
                write_record(count(ablation, row), runs)
    if batch_size and ablation.has("throughput"):
        missing = [r for r in rows if not (runs / record_name(r.key, "throughput", hardware=hardware())).exists()]
        for record in time_rows(ablation, missing, batch_size):
            write_record(record, runs)


def run_ablation(arguments: argparse.Namespace) -> int:
    """Everything the command asks for; the exit status."""
    ablation = get_ablation(arguments.name)
    runs = plan(ablation, arguments)
    if arguments.dry_run:
        print("\n".join(describe(run) for run in runs))
        return 0
    scale = SCALES[arguments.scale]
    folder = (arguments.results or scale.results) / ablation.name
    devices = arguments.devices or ("auto" if scale.name == "paper" else "1")
    machine = Machine(arguments.accelerator, devices, arguments.num_nodes, arguments.strategy, arguments.precision)
    measure(ablation, ablation.select(arguments.rows), folder, arguments.throughput)
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
    except (SpecError, DataError) as error:
        print(f"ablations.run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
