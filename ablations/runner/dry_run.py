"""What can go wrong is told before the first run, in one sentence, and not hours into it."""

import re
import tempfile
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from ablations.records.record import read_record
from ablations.runner.runs import Transfer
from ablations.runner.staleness import changes_since
from ablations.runner.train import Machine, Run
from ablations.spec import Row, SpecError
from replk_lightning.data import TRAIN_SIZES, DataError, ImageData
from replk_lightning.data.hub import offline
from replk_lightning.recipes import get_recipe

PRETRAINED_ON = {"replknet_pretrain_22k": "imagenet-22k", "xl_semi_supervised": "megdata73m"}
"""What the paper pre-trained on by recipe, where it was not ImageNet-1K."""


def check(runs: Sequence[Run], machine: Machine) -> None:
    """Raise SpecError, DataError or ModelError for anything that would stop one of `runs`."""
    check_machine(machine)
    for run in runs:
        check_start(run)
        check_shards(run, machine)
    for data, group in by_data(runs):
        data.setup()
        for run in group:
            build_on_meta(run, data)


def check_start(run: Run) -> None:
    """Raise SpecError if `run` lacks what it starts from."""
    provided = run.init or (isinstance(run, Transfer) and (run.pretraining or run.from_scratch))
    if run.recipe.starts_from and not provided:
        raise SpecError(
            f"row {run.row.key!r} fine-tunes what {run.recipe.starts_from} trained: "
            f"give its checkpoint with {_init_of(run)}."
        )
    if run.row.published and not run.init:
        raise SpecError(f"row {run.row.key!r} is a published net: give its weights with {_init_of(run)}.")
    if run.init and not Path(run.init).is_file():
        raise SpecError(f"there is no checkpoint {run.init}, which row {run.row.key!r} is to start from.")


def _init_of(run: Run) -> str:
    return f"python -m ablations.run {run.ablation.name} --init {run.row.key}=PATH"


def check_shards(run: Run, machine: Machine) -> None:
    """Raise SpecError if `run` needs its weights whole and `machine` shards them."""
    carried = isinstance(run, Transfer) or run.ablation.transfer_of(run.row, run.scale) is not None
    if "fsdp" in machine.strategy and (run.recipe.ema is not None or carried):
        raise SpecError(
            f"row {run.row.key!r} cannot be trained with {machine.strategy}, whose weights lie in shards: "
            "Lightning neither averages them nor clips their gradient, and no run can start from them; use ddp."
        )


def by_data(runs: Sequence[Run]) -> list[tuple[ImageData, list[Run]]]:
    """Runs by the data that they share, which is made once."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.data, []).append(run)
    return [(group[0].make_data(), group) for group in groups.values()]


def check_folder(folder: Path) -> None:
    """Raise SpecError if records cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SpecError(
            f"results cannot be written to {folder} ({error.strerror}); name a folder with --results."
        ) from None


def check_machine(machine: Machine) -> None:
    """Raise SpecError for flags that Lightning's Trainer refuses."""
    if any(word in machine.strategy for word in ("spawn", "fork", "notebook")):
        raise SpecError(f"strategy {machine.strategy!r} starts no command of its own; use ddp or fsdp.")
    try:
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(**machine.trainer_options(), **quiet)
        started_by = getattr(trainer.strategy, "cluster_environment", None)
        if started_by is not None:  # torchrun or SLURM, which may have started more processes or fewer
            started_by.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise SpecError(f"the trainer does not take these flags: {str(error).splitlines()[0]}") from error


def check_words(machine: Machine) -> None:
    """Raise SpecError for a flag that no machine can take; a laptop may plan what a cluster will run."""
    known = {
        "accelerator": ["auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators())],
        "strategy": ["auto", *StrategyRegistry.available_strategies()],
    }
    for flag, words in known.items():
        if (word := getattr(machine, flag)) not in words:
            raise SpecError(f"there is no {flag} {word!r}; choose from {', '.join(w for w in words if '_' not in w)}.")
    if machine.num_nodes < 1 or not re.fullmatch(r"auto|-1|[1-9]\d*|\d+,(\d+(,\d+)*)?", machine.devices):
        raise SpecError(
            f"there are no {machine.devices!r} devices on {machine.num_nodes} nodes: "
            "--devices takes auto, -1, a number above 0 or a list such as 0,1, and --num-nodes a number above 0."
        )


def build_on_meta(run: Run, data: ImageData) -> nn.Module:
    """The run's model, without memory for its weights; raises ModelError."""
    with torch.device("meta"):
        return run.make_model(data)


def recorded(run: Run, folder: Path) -> bool:
    """Whether `run` has a readable record; raises SpecError if it is another experiment's."""
    path = folder / "runs" / run.record_name
    record = read_record(path) if path.exists() else None
    if record is None:
        return False
    if changes := changes_since(record, run):
        raise SpecError(
            f"{path} was measured with another recipe, model or labels ({'; '.join(changes)}); "
            "delete it, or name a folder with --results."
        )
    return True


def dry_run(runs: Sequence[Run], machine: Machine, named: Collection[str] = (), idle: Sequence[Row] = ()) -> str:
    """Every run with its model, options, parameters, recipe and steps, and the rows that nothing is trained for.

    The scale's own data may be missing: a laptop can plan what a cluster will run. Data `named` by the user must be
    here, or in the hub.
    """
    check_words(machine)
    counted: dict[str, int] = {}
    lines = []
    for data, group in by_data(runs):
        with nullcontext() if group[0].data in named else offline():
            lines += describe_group(data, group, machine, named, counted)
    if idle:
        lines.append(f"nothing to train at this scale: {', '.join(row.key for row in idle)}")
    return "\n".join(lines)


def describe_group(
    data: ImageData, runs: Sequence[Run], machine: Machine, named: Collection[str], counted: dict[str, int]
) -> list[str]:
    """What `dry_run` says of the runs that share `data`; the nets counted already are in `counted`."""
    try:
        size = data.train_size
        found = f"{size or 'unknown number of'} images, fingerprint {data.fingerprint}"
    except DataError as missing:
        if runs[0].data in named:
            raise
        size = TRAIN_SIZES.get(runs[0].data.partition(":")[0])
        found = f"{size or 'unknown number of'} images, not here ({missing})"
    return [
        f"data: {data.name}, {found}",
        *(describe(run, machine, size, count_parameters(run, data, counted)) for run in runs),
    ]


def count_parameters(run: Run, data: ImageData, counted: dict[str, int]) -> int:
    """Parameters of the run's model as it is trained; each distinct one is built once and kept in `counted`."""
    net = (run.row.model, run.scale.options_for(run.row), data.name, isinstance(run, Transfer) and run.recipe)
    if repr(net) not in counted:
        counted[repr(net)] = sum(p.numel() for p in build_on_meta(run, data).parameters())
    return counted[repr(net)]


def describe(run: Run, machine: Machine, train_size: int | None, parameters: int) -> str:
    """One run's part of `dry_run`."""
    recipe = run.recipe
    fields = {k: v for k, v in vars(recipe).items() if v not in (None, 0.0, False)}
    processes = machine.processes or recipe.gpus
    batch = recipe.batch_size // recipe.gpus * processes
    where = f"{batch} images each on {processes} devices, learning rate {recipe.scaled_lr(batch):g}"
    labels = [f"  labels  {run.row.supervision}"] if run.row.supervision else []
    start = origin(run)
    return "\n".join(
        [
            f"{run.ablation.name} {run.row.key}, scale {run.scale.name}, seed {run.seed}",
            f"  model   {run.row.model} {run.scale.options_for(run.row)}, {parameters:,} parameters",
            *([f"  start   {start}"] if start else []),
            *labels,
            f"  recipe  {', '.join(f'{k}={v}' for k, v in fields.items())}",
            f"  steps   {f'{steps(run, batch, train_size)}, {where}' if recipe.trains else 'none, measured as it is'}",
        ]
    )


def steps(run: Run, batch: int, train_size: int | None) -> str:
    """How many optimizer steps `run` takes, of `batch` images each."""
    if "max_steps" in run.recipe.length:
        return str(run.recipe.length["max_steps"])
    if not train_size:
        return "unknown without the data's size"
    batches = max(1, train_size // batch)
    return f"{batches * run.recipe.epochs} ({batches} an epoch)"


def origin(run: Run) -> str | None:
    """Where the weights that `run` starts from come of; None where it starts from nothing."""
    if run.init:
        return f"from {run.init}"
    if isinstance(run, Transfer) and run.from_scratch:
        return "from scratch, without pre-training"
    if isinstance(run, Transfer) and run.pretraining:
        return "from what this row's classifier ends with"
    if run.row.published and not run.recipe.starts_from:
        return f"from the published weights, given with --init {run.row.key}=PATH"
    if not run.recipe.starts_from:
        return None
    first = get_recipe(run.recipe.starts_from)
    data = PRETRAINED_ON.get(first.name, "imagenet-1k")
    long = f"{TRAIN_SIZES[data] // first.batch_size * first.epochs} steps of {first.batch_size} images"
    before = f"{first.name} on {data}, {long} on {first.gpus} devices"
    return f"from the result of {before}, given with --init {run.row.key}=PATH"
