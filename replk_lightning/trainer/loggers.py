"""Lightning's loggers by short names, the same words for every command: tensorboard, wandb, csv."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

LoggerName = Literal["csv", "tensorboard", "wandb"]

KINDS: dict[str, Any] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger, "wandb": WandbLogger}
"""What each name makes; all but the first need the package of their name."""


class LoggerError(ValueError):
    """A logger is not known, its package is not installed, or it cannot start; one sentence says which and why."""


def loggers_called(names: Iterable[str], folder: str | Path, name: str | None = None) -> list[Any]:
    """The loggers of these names, once each, which write nothing yet.

    Files go to `folder/name/version_N`, by default `folder/lightning_logs/version_N`, N being the first number that is
    free, and W&B's to `folder/wandb`. There the run is called `name`; the project is that of WANDB_PROJECT, and
    WANDB_MODE=offline keeps everything here. Raises LoggerError.
    """
    given = {names} if isinstance(names, str) else set(names)
    if unknown := given - KINDS.keys():
        raise LoggerError(f"there is no logger {min(unknown)!r}: choose from {', '.join(KINDS)}.")
    wanted = [kind for kind in KINDS if kind in given]  # CSV first, which warns of a folder that holds something
    where: dict[str, Any] = {"save_dir": str(folder), "name": name or "lightning_logs"}
    version = CSVLogger(**where).version
    options = {"csv": where | {"version": version}, "wandb": {"save_dir": str(folder), "name": name}}
    return [_made(kind, options.get(kind, options["csv"])) for kind in wanted]


def _made(kind: str, options: dict[str, Any]) -> Any:
    try:
        return KINDS[kind](**options)
    except ModuleNotFoundError as error:  # Lightning's own check, in its own words
        raise LoggerError(f"the logger {kind} needs a package: pip install {kind}.") from error


@contextmanager
def opened(names: Sequence[str], folder: Path, name: str) -> Iterator[list[Any]]:
    """`loggers_called` for one training that is seeded in the block: W&B's run ends with it."""
    loggers = loggers_called(names, folder, name)
    try:
        start(loggers)
        yield loggers
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger) and logger._experiment is not None:
                logger.experiment.finish()  # the next training would go on writing into this one's run


def start(loggers: Iterable[Any]) -> None:
    """Let loggers open their files and connections, which may draw random numbers; raises LoggerError."""
    for logger in loggers:
        try:
            Path(logger.save_dir).mkdir(parents=True, exist_ok=True)
            _ = logger.experiment
        except Exception as error:  # each library has its own
            name = next(name for name, kind in KINDS.items() if isinstance(logger, kind))
            raise LoggerError(f"the logger {name} cannot start: {' '.join(str(error).split())}") from error


class NamingTrainer(L.Trainer):
    """Lightning's Trainer, whose loggers may be named; raises LoggerError."""

    def __init__(
        self,
        logger: Logger | LoggerName | list[Logger | LoggerName] | bool | None = None,  # errors tell of the first kind
        default_root_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        given: list[Any] = logger if isinstance(logger, list) else [logger]
        names = [each for each in given if isinstance(each, str)]
        named = loggers_called(names, default_root_dir or ".") if names else []
        made: Any = [*named, *(each for each in given if not isinstance(each, str))] if named else logger
        super().__init__(logger=made, default_root_dir=default_root_dir, **kwargs)
        start(each for each in named if each in self.loggers)  # a fast_dev_run has none
