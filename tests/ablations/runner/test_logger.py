"""Loggers by name: where curves go beside a run's record, which is the same with them and without."""

import csv
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from ablations import run as command
from ablations import sweep
from ablations.commands.options import LOGGERS, SweepOptions
from ablations.commands.sweep import sweep_of
from ablations.records.record import read_record
from ablations.runner import scheduler
from replk_lightning.trainer import loggers

RECORD = "guideline2/runs/k3-shortcut.smoke.generated.seed0.json"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def smoke(*arguments):
    return command.main(["guideline2", "--scale", "smoke", "--accelerator", "cpu", "--rows", "k3-shortcut", *arguments])


class Draws(loggers.CSVLogger):
    """A logger that draws random numbers when it starts, as any may."""

    @property
    def experiment(self):
        random.random()
        return super().experiment


def test_a_logger_changes_no_record_and_its_files_stay_when_the_run_is_over(capsys, monkeypatch):
    assert smoke("--results", "without") == 0
    monkeypatch.setitem(loggers.KINDS, "csv", Draws)
    assert smoke("--results", "with", "--logger", "csv") == 0
    records = [asdict(read_record(Path(folder, RECORD))) | {"seconds": None} for folder in ("without", "with")]
    assert records[0] == records[1]
    folder = Path("runs/logs/guideline2/k3-shortcut.smoke.generated.seed0/version_0")
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    (top1,) = {float(row["val_top1"]) for row in rows if row["val_top1"]}
    assert top1 == pytest.approx(records[0]["metrics"]["top1"], abs=1e-3)
    capsys.readouterr()
    assert smoke("--results", "without", "--logger", "csv") == 0
    assert "1 recorded already" in capsys.readouterr().out.replace("1 of them", "1")
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]


def missing(names, *_):
    raise loggers.LoggerError(f"the logger {names[0]} needs a package: pip install {names[0]}.")


@pytest.mark.parametrize("words", [["guideline2", "--scale", "smoke"], ["table8", "--scale", "smoke", "--jobs", "2"]])
def test_a_logger_that_is_not_installed_is_told_before_anything_is_trained(capsys, monkeypatch, words):
    monkeypatch.setattr(scheduler, "train", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr("ablations.runner.machine.loggers_called", missing)
    assert command.main([*words, "--accelerator", "cpu", "--logger", "wandb"]) == 2
    assert capsys.readouterr().err == "ablations.run: the logger wandb needs a package: pip install wandb.\n"
    assert sweep.main(["--scale", "smoke", "--accelerator", "cpu", "--logger", "tensorboard", "--trials", "1"]) == 2
    error = capsys.readouterr().err
    assert error == "ablations.sweep: the logger tensorboard needs a package: pip install tensorboard.\n"


def test_words_are_the_same_everywhere(capsys):
    assert set(LOGGERS) == set(loggers.KINDS)
    for parser in (command.parser(), sweep.parser()):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--logger", "nonesuch"])
        assert "choose from" in capsys.readouterr().err


def test_a_sweep_logs_its_trials_and_is_the_same_study():
    plain, logged = (sweep_of(SweepOptions(scale="smoke", logger=names)) for names in ((), ("csv",)))
    assert logged.machine.loggers == ("csv",)
    assert logged.name == plain.name
