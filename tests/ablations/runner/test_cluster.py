"""Runs as jobs of submitit, on its executors that need no cluster."""

import sys
from pathlib import Path

import pytest

from ablations import run as command
from ablations.records.record import read_records
from ablations.runner import scheduler
from ablations.tables.guideline2 import guideline2

pytestmark = pytest.mark.filterwarnings(  # submitit leaves files open
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
TABLE = ["guideline2", "--scale", "smoke", "--accelerator", "cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows():
    return sorted(record.row for record in read_records(Path("runs/smoke/guideline2/runs")))


def test_jobs_leave_the_same_records(capsys):
    assert command.main([*TABLE, "--submitit", "cluster=debug"]) == 0
    assert "4 runs, 0 of them recorded already, as jobs (debug)" in capsys.readouterr().out
    assert rows() == sorted(row.key for row in guideline2.rows)
    assert command.main([*TABLE, "--submitit", "cluster=debug"]) == 0
    output = capsys.readouterr().out
    assert "4 runs, 4 of them recorded already" in output
    assert "| one seed: " in output


@pytest.mark.slow
def test_a_job_is_a_process_of_its_own():
    assert command.main([*TABLE, "--rows", "k3-plain", "--submitit", "cluster=local", "timeout_min=10"]) == 0
    assert rows() == ["k3-plain"]
    assert list(Path("runs/submitit").glob("*_log.out"))


def test_a_job_that_fails_is_told_by_its_run(capsys, monkeypatch):
    def train(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(scheduler, "train", train)
    assert command.main([*TABLE, "--rows", "k3-plain", "k13-plain", "--submitit", "cluster=debug"]) == 2
    error = capsys.readouterr().err
    assert "guideline2 k3-plain, seed 0: RuntimeError: out of memory" in error
    assert "guideline2 k13-plain, seed 0: RuntimeError: out of memory" in error


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (
            ["cluster=mainframe"],
            "submitit does not take these parameters: AutoExecutor doesn't know any executor named",
        ),
        (["cluster=debug", "colour=red"], "submitit does not take these parameters: "),
    ],
)
def test_wrong_parameters_are_one_sentence(parameters, sentence, capsys):
    assert command.main([*TABLE, "--submitit", *parameters]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_without_the_package_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "ablations.runner.cluster", raising=False)
    assert command.main([*TABLE, "--submitit"]) == 2
    assert capsys.readouterr().err == (
        "ablations.run: --submitit needs a package: pip install 'replk-lightning[cluster]'.\n"
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--submitit", "--jobs", "2"], "--submitit leaves to the cluster how many run at a time: leave out --jobs"),
        (["--submitit", "--until-decided"], "--until-decided needs the numbers of one processor"),
        (["--submitit", "--devices", "2"], "--submitit trains each run on one device"),
        (["--submitit", "gpu"], "'gpu' is no parameter of submitit: write KEY=VALUE"),
    ],
)
def test_flags_that_do_not_go_together_get_one_sentence(flags, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([*TABLE, *flags])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
