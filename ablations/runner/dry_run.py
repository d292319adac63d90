"""What would run, in words: models, recipes, steps, where the weights come from, and what is recorded already."""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path

from ablations.runner.machine import Machine, check_words
from ablations.runner.preflight import build_on_meta, by_data, recorded
from ablations.runner.runs import Run, Transfer
from ablations.spec import Row
from replk_lightning.data import TRAIN_SIZES, DataError, ImageData
from replk_lightning.data.hub import offline
from replk_lightning.recipes import get_recipe

PRETRAINED_ON = {"replknet_pretrain_22k": "imagenet-22k", "xl_semi_supervised": "megdata73m"}
"""What the paper pre-trained on by recipe, where it was not ImageNet-1K."""


def dry_run(
    runs: Sequence[Run], machine: Machine, results: Path, named: Collection[str] = (), idle: Sequence[Row] = ()
) -> str:
    """Every run with its model, options, parameters, recipe and steps, and the rows that nothing is trained for.

    The scale's own data may be missing: a laptop can plan what a cluster will run. Data `named` by the user must be
    here, or in the hub. Raises SpecError where a record in `results` is another experiment's, as training would.
    """
    check_words(machine)
    counted: dict[str, int] = {}
    lines = []
    for group in by_data(runs):
        with nullcontext() if group[0].data in named else offline():
            lines += describe_group(group, machine, results, named, counted)
    if idle:
        lines.append(f"nothing to train at this scale: {', '.join(row.key for row in idle)}")
    return "\n".join(lines)


def describe_group(
    runs: Sequence[Run], machine: Machine, results: Path, named: Collection[str], counted: dict[str, int]
) -> list[str]:
    """What `dry_run` says of runs that share their data; the nets counted already are in `counted`."""
    data = runs[0].make_data()
    try:
        size = data.train_size
        found = f"{size or 'unknown number of'} images, fingerprint {data.fingerprint}"
    except DataError as missing:
        if runs[0].data in named:
            raise
        size = TRAIN_SIZES.get(runs[0].data.partition(":")[0])
        found = f"{size or 'unknown number of'} images, not here ({missing})"
    lines = [f"data: {data.name}, {found}"]
    for run in runs:
        lines.append(describe(run, machine, size, count_parameters(run, data, counted)))
        folder = results / run.ablation.name
        if recorded(run, folder):
            lines.append(f"  record  {folder / 'runs' / run.record_name}: there already, so nothing is run")
    return lines


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
