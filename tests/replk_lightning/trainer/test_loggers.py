import random
import sys
from types import ModuleType, SimpleNamespace

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core.imports import RequirementCache

from replk_lightning.trainer import loggers
from replk_lightning.trainer.loggers import LoggerError, NamingTrainer, loggers_called, opened


class Wandb(ModuleType):
    """As much of W&B as Lightning asks for: one run a process at a time, which draws a random name."""

    run = None

    def __init__(self):
        super().__init__("wandb")
        self.runs = []

    def init(self, **options):
        if options["name"] == "nobody":
            raise RuntimeError("api_key not configured\n(no-tty)")
        self.run = SimpleNamespace(options=options, seen=[], finish=self._finish, draw=random.random())
        self.run.log = self.run.seen.append
        self.run.config = SimpleNamespace(update=lambda *_, **__: None)
        self.runs.append(self.run)
        return self.run

    def _finish(self):
        self.run = None


@pytest.fixture
def wandb(monkeypatch):
    module = Wandb()
    for name, content in {"wandb.sdk.lib": {"RunDisabled": Wandb}, "wandb.wandb_run": {"Run": Wandb}}.items():
        part = ModuleType(name)
        vars(part).update(content)
        monkeypatch.setitem(sys.modules, name, part)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return module


def test_loggers_of_a_training_share_its_folder_and_each_part_has_a_number(tmp_path):
    for number in (0, 1):
        with opened(["csv", "csv"], tmp_path, "table/row") as (logger,):
            logger.log_metrics({"loss": 1.0}, 1)
            logger.save()
        assert (tmp_path / "table" / "row" / f"version_{number}" / "metrics.csv").exists()


def test_a_wandb_run_ends_with_its_training_also_where_that_fails(tmp_path, wandb):
    def train(name):
        with opened(["wandb", "csv"], tmp_path, name) as made:
            assert [type(each).__name__ for each in made] == ["CSVLogger", "WandbLogger"]
            made[1].log_metrics({"loss": 1.0}, 3)
            assert wandb.run is wandb.runs[-1]
            raise KeyboardInterrupt

    for name in ("table/a", "table/b"):
        with pytest.raises(KeyboardInterrupt):
            train(name)
        assert wandb.run is None
    assert [run.options["name"] for run in wandb.runs] == ["table/a", "table/b"]
    assert {run.options["dir"] for run in wandb.runs} == {str(tmp_path)}
    assert all(run.seen == [{"loss": 1.0, "trainer/global_step": 3}] for run in wandb.runs)


def test_a_logger_that_cannot_start_is_one_sentence(tmp_path, wandb):
    sentence = r"the logger wandb cannot start: api_key not configured \(no-tty\)$"
    with pytest.raises(LoggerError, match=sentence), opened(["wandb"], tmp_path, "nobody"):
        pytest.fail("trained")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, name):
    nowhere = RequirementCache(f"{name}-that-is-nowhere")
    for where in (
        "lightning.pytorch.loggers.wandb._WANDB_AVAILABLE",
        "lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE",
        "lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE",
    ):
        monkeypatch.setattr(where, nowhere)
    with pytest.raises(LoggerError, match=f"^the logger {name} needs a package: pip install {name}\\.$"):
        loggers_called(["csv", name], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*barebones")
def test_a_trainer_takes_names_beside_loggers(tmp_path, wandb):
    quiet = {"accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False}
    own = CSVLogger(tmp_path / "own")
    trainer = NamingTrainer(["wandb", own, "csv"], tmp_path, **quiet)
    assert isinstance(trainer, L.Trainer)
    assert trainer.loggers[2] is own
    assert trainer.log_dir == str(tmp_path / "lightning_logs" / "version_0")
    assert wandb.runs[0].options["name"] is None
    assert NamingTrainer("csv", **quiet, fast_dev_run=True).loggers[0].__class__.__name__ == "DummyLogger"
    assert NamingTrainer(False, **quiet).loggers == []
    assert set(loggers.KINDS) == set(loggers.LoggerName.__args__)


@pytest.mark.parametrize("names", ["banana", ["csv", "banana"], "CSV"])
def test_a_logger_that_is_not_known_is_named_with_those_that_are(tmp_path, names):
    with pytest.raises(LoggerError, match=r"there is no logger '(banana|CSV)': choose from csv, tensorboard, wandb\."):
        NamingTrainer(logger=names, default_root_dir=tmp_path)
    with pytest.raises(LoggerError, match="there is no logger"):
        loggers_called(names, tmp_path)


def test_one_name_is_one_logger(tmp_path):
    (logger,) = loggers_called("csv", tmp_path)
    assert type(logger).__name__ == "CSVLogger"
