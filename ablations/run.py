"""python -m ablations.run NAME: train what is missing of one table of the paper, and print the table."""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

from ablations.checks import check, check_folder, dry_run, recorded
from ablations.count import count, time_rows
from ablations.records import Record, arrays_path, hardware, read_record, record_name, write_record
from ablations.render import render
from ablations.scales import SCALES
from ablations.spec import Ablation, Row, Scale, SpecError, all_ablations, get_ablation
from ablations.train import ARRAYS, Machine, Run, forget, train
from ablations.transfer import Transfer, pretrained, transfer_of
from replk_lightning.data import DataError
from replk_lightning.models import ModelError
from replk_lightning.models.checkpoints import CheckpointError

INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m ablations.run", description=__doc__)
    p.add_argument("name", nargs="?", help="an ablation; see --list")
    p.add_argument("--list", action="store_true", help="name every ablation and stop")
    scales = "; ".join(f"{s.name}: {s.cost}, {s.data}" for s in SCALES.values())
    p.add_argument("--scale", default="small", help=f"{scales} (default: small)")
    p.add_argument("--data", help="a data set instead of the scale's: mnist5k, imagefolder:PATH, hf:NAME, …")
    p.add_argument("--transfer-data", help="likewise for segmentation or detection: ade20k:PATH, coco:PATH, …")
    p.add_argument("--seeds", type=int, nargs="+", help="default: 3 at small (0 to 2 are committed), else 0")
    p.add_argument("--rows", nargs="+", metavar="KEY", help="only these rows of the table")
    p.add_argument("--results", type=Path, help="default: results/, or runs/smoke/ at scale smoke")
    p.add_argument(
        "--init", nargs="+", default=[], metavar="KEY=PATH", help="checkpoints that fine-tuned rows start from"
    )
    p.add_argument(
        "--from-scratch", action="store_true", help="segment or detect without pre-training, in columns of their own"
    )
    p.add_argument("--dry-run", action="store_true", help="print every run and do nothing")
    p.add_argument(
        "--timing", action="store_true", help="measure the columns that time this machine, and train nothing"
    )
    p.add_argument("--accelerator", "--device", default="auto", help="cpu, gpu, … (default: auto)")
    p.add_argument("--devices", help="how many devices a node (default: all at scale paper, else 1)")
    p.add_argument("--num-nodes", type=int, default=1)
    p.add_argument("--strategy", default="auto", help="any of Lightning's: ddp, fsdp, …")
    p.add_argument("--precision", help="any of Lightning's (default: bf16-mixed on GPUs, 32-true on CPUs)")
    return p


def get_scale(name: str, ablation: Ablation) -> Scale:
    """The scale called `name`, as `ablation` has it; raises SpecError naming the choices."""
    if name not in SCALES:
        raise SpecError(f"there is no scale {name!r}; choose from {', '.join(SCALES)}.")
    return ablation.scales.get(name, SCALES[name])


def plan(ablation: Ablation, rows: Sequence[Row], arguments: argparse.Namespace) -> list[Run]:
    """Every training run of `rows` that the command names, seeds outermost so that whole tables come early."""
    scale = get_scale(arguments.scale, ablation)
    seeds = list(dict.fromkeys(arguments.seeds or scale.seeds))
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise SpecError(f"seeds are whole numbers from 0 to 2³² − 1, not {min(seeds)}.")
    init = dict(entry.partition("=")[::2] for entry in arguments.init)
    ablation.select(list(init))
    if arguments.from_scratch and (init or not ablation.has("transfer")):
        reason = "--init names what to start from" if init else f"{ablation.name} carries nothing over"
        raise SpecError(f"--from-scratch is for segmentation and detection without pre-training; {reason}.")
    rows = [row for row in rows if row.trained or ablation.measure]
    rows = [row for row in rows if not row.published or scale.name == "paper"]
    data = arguments.data or scale.data
    runs: list[Run] = []
    for seed in seeds:
        for row in rows:
            run = Run(ablation, row, scale, data, seed, None if ablation.has("transfer") else init.get(row.key))
            transfer = transfer_of(run, arguments.transfer_data, init.get(row.key), arguments.from_scratch)
            runs += [run] if ablation.has("train") and not arguments.from_scratch else []
            runs += [transfer] if transfer else []
    return runs


def execute(runs: list[Run], folder: Path, machine: Machine) -> None:
    """Train every run that has no record, rendering after each."""
    missing = [run for run in runs if not recorded(run, folder)]
    check(missing, machine)
    say(f"{len(runs)} runs, {len(runs) - len(missing)} of them recorded already")
    total = sum(run.recipe.epochs for run in missing)
    with tqdm(total=total, unit="epoch", position=0, dynamic_ncols=True, disable=not missing) as bar:
        done = 0
        for run in missing:
            bar.set_description(f"{run.row.key}, seed {run.seed}")
            if isinstance(run, Transfer) and run.pretraining:
                run = replace(run, init=pretrained(run.pretraining, machine))
            record = train(run, machine, bar)
            done += run.recipe.epochs
            bar.update(done - bar.n)
            save(record, run, folder)


@rank_zero_only
def say(text: str) -> None:
    """Print once, whatever the number of processes."""
    print(text)


@rank_zero_only
def save(record: Record, run: Run, folder: Path) -> None:
    """Write the record and its arrays, render the table with them, and drop the checkpoint."""
    if (run.folder / ARRAYS).exists():
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        shutil.copy(run.folder / ARRAYS, arrays_path(record, folder / "runs"))
    write_record(record, folder / "runs")
    render(run.ablation, folder)
    forget(run)


@rank_zero_only
def measure(ablation: Ablation, rows: Sequence[Row], folder: Path, timing: bool) -> None:
    """Count every row that has no such record yet; where asked, time all rows anew unless all have been timed."""
    runs = folder / "runs"
    if ablation.has("count"):
        for row in rows:
            path = runs / record_name(row.key, "count")
            record = read_record(path) if path.exists() else None
            if record is None or not ablation.keys("count") <= set(record.metrics):
                write_record(count(ablation, row), runs)
    if timing and ablation.timing:
        timed = all((runs / record_name(row.key, "timing", hardware=hardware())).exists() for row in rows)
        for record in () if timed else time_rows(ablation, rows):
            write_record(record, runs)


@rank_zero_only
def conclude(shown: Ablation, parts: list[tuple[Ablation, list[Run]]], results: Path) -> int:
    """Render, print the table and name what failed; the exit status. Records lie in the folders of `parts`."""
    for ablation, _ in parts:
        if ablation is not shown:
            render(ablation, results / ablation.name)
    print(render(shown, results / shown.name))
    print(f"written to {results / shown.name / 'table.md'}")
    paths = [results / ablation.name / "runs" / run.record_name for ablation, runs in parts for run in runs]
    failures = [record for record in map(read_record, paths) if record and record.status == "failed"]
    for record in failures:
        print(f"{record.row}, seed {record.seed}: failed, {record.reason}", file=sys.stderr)
    return 2 if failures else 0


def run_ablation(arguments: argparse.Namespace) -> int:
    """Everything the command asks for; the exit status."""
    shown = get_ablation(arguments.name)
    wanted = {row.key for row in shown.select(arguments.rows) if not row.gain}
    parts = [(home, [row for row in home.rows if row.key in wanted]) for home in shown.homes]
    runs = [[] if arguments.timing else plan(home, rows, arguments) for home, rows in parts]
    scale = get_scale(arguments.scale, shown.homes[0])
    devices = arguments.devices or ("auto" if scale.name == "paper" else "1")
    machine = Machine(arguments.accelerator, devices, arguments.num_nodes, arguments.strategy, arguments.precision)
    if arguments.dry_run:
        planned = [run for part in runs for run in part]
        busy = {id(run.row) for run in planned}
        idle = [row for _, rows in parts for row in rows if id(row) not in busy]
        print(dry_run(planned, machine, {arguments.data, arguments.transfer_data} - {None}, idle))
        return 0
    results = arguments.results or scale.results
    for (home, rows), its_runs in zip(parts, runs, strict=True):
        check_folder(results / home.name)
        measure(home, rows, results / home.name, arguments.timing)
        execute(its_runs, results / home.name, machine)
    return conclude(shown, [(home, part) for (home, _), part in zip(parts, runs, strict=True)], results) or 0


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
    except (SpecError, DataError, ModelError, CheckpointError) as error:
        print(f"ablations.run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
