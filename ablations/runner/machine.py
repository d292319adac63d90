"""Where to train: flags of Lightning's Trainer, and whether it takes them."""

import re
from dataclasses import asdict, dataclass
from typing import Any, get_args

import lightning as L
import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT_STR, _PRECISION_INPUT_STR_ALIAS
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from ablations.records.provenance import hardware
from ablations.spec import SpecError
from replk_lightning.devices import default_device
from replk_lightning.trainer.checkpoint_io import AtomicCheckpointIO
from replk_lightning.trainer.loggers import loggers_called
from replk_lightning.trainer.sync_batch_norm import SyncedBatchNorm


@dataclass(frozen=True)
class Machine:
    """Where to train: flags of Lightning's Trainer."""

    accelerator: str = "auto"
    devices: str = "1"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str | None = None
    sync_bn: bool = False
    loggers: tuple[str, ...] = ()

    def trainer_options(self) -> dict[str, Any]:
        """Keyword arguments for `lightning.Trainer`."""
        options = asdict(self)
        del options["loggers"]  # each run has its own
        if self.accelerator == "auto" and not self._on_gpu:
            options["accelerator"] = "cpu"  # Lightning would take a Mac's MPS, which nobody has tried here
        plugins: list[Any] = [AtomicCheckpointIO()]
        plugins += [SyncedBatchNorm(on_cpu=not self._on_gpu)] if options.pop("sync_bn") else []
        return {**options, "precision": self.precision or self._precision(), "plugins": plugins}

    @property
    def processes(self) -> int | None:
        """Devices on all nodes; None where Lightning is to find out."""
        return int(self.devices) * self.num_nodes if self.devices.isdigit() else None

    @property
    def device(self) -> torch.device:
        """Where this process computes what Lightning does not."""
        return torch.device("cpu") if self.accelerator == "cpu" else default_device()

    @property
    def processor(self) -> str:
        """What records call the device that trains here where it is one, as far as it tells settings apart."""
        return hardware("gpu" if self._on_gpu else "cpu").partition(",")[0]

    @property
    def _on_gpu(self) -> bool:
        return self.accelerator != "cpu" and torch.cuda.is_available()

    def _precision(self) -> str:
        # bf16 pays on tensor cores; on CPUs the convolutions here are faster in float32
        return "bf16-mixed" if self._on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def check_machine(machine: Machine) -> None:
    """Raise SpecError for flags that Lightning's Trainer refuses, LoggerError for loggers that are not installed."""
    if any(word in machine.strategy for word in ("spawn", "fork", "notebook")):
        raise SpecError(f"strategy {machine.strategy!r} starts no command of its own; use ddp or fsdp.")
    loggers_called(machine.loggers, ".")
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
        "precision": [None, *get_args(_PRECISION_INPUT_STR), *get_args(_PRECISION_INPUT_STR_ALIAS)],
    }
    for flag, words in known.items():
        if (word := getattr(machine, flag)) not in words:
            told = ", ".join(w for w in words if w and "_" not in w)
            raise SpecError(f"there is no {flag} {word!r}; choose from {told}.")
    if machine.num_nodes < 1 or not re.fullmatch(r"auto|-1|[1-9]\d*|\d+,(\d+(,\d+)*)?", machine.devices):
        raise SpecError(
            f"there are no {machine.devices!r} devices on {machine.num_nodes} nodes: "
            "--devices takes auto, -1, a number above 0 or a list such as 0,1, and --num-nodes a number above 0."
        )
