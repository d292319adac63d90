"""What can go wrong is told before the first run, in one sentence, and not hours into it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ablations.runner.machine import Machine, check_machine
from ablations.runner.runs import Run, Transfer
from ablations.spec import SpecError
from replk_lightning.data import ImageData


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


def build_on_meta(run: Run, data: ImageData) -> nn.Module:
    """The run's model, without memory for its weights; raises ModelError."""
    with torch.device("meta"):
        return run.make_model(data)
