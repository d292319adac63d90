import os
import signal
from collections import Counter
from dataclasses import replace

import pytest

from ablations.records.record import read_records
from ablations.runner.locks import HeldError, locked
from ablations.runner.runs import Run, transfer_of
from ablations.scales import SMOKE
from ablations.tables.appendix_a import appendix_a
from ablations.tables.guideline2 import guideline2
from ablations.tables.guideline3 import guideline3

RUN = """
import sys, time
from pathlib import Path
from ablations.runner import scheduler
from ablations.run import main
train = scheduler.train

def told(run, *others):
    with open("trained", "a") as file:
        file.write(run.row.key + "\\n")
    {then}
    return train(run, *others)

scheduler.train = told
sys.exit(main(["guideline2", "--scale", "smoke", "--accelerator", "cpu", *{more}]))
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_of(ablation, key):
    return Run(
        ablation,
        ablation.select([key])[0],
        replace(SMOKE, transfer=guideline3.scales["smoke"].transfer),
        "generated",
        0,
    )


def code(then="pass", *more):
    return RUN.format(then=then, more=list(more))


def test_a_lock_is_one_processes_and_names_it(tmp_path):
    run = run_of(guideline2, "k3-plain")
    with locked(run, tmp_path):
        with pytest.raises(HeldError, match=f"process {os.getpid()} on "), locked(run, tmp_path):
            pytest.fail("locked twice")
        with locked(run_of(guideline2, "k13-plain"), tmp_path), locked(replace(run, seed=1), tmp_path):
            pass
    with locked(run, tmp_path):
        pass


def test_a_lock_covers_the_same_results_of_another_working_folder(tmp_path, monkeypatch):
    run = run_of(guideline2, "k3-plain")
    with locked(run, tmp_path / "results"):
        (tmp_path / "there").mkdir()
        monkeypatch.chdir(tmp_path / "there")
        with pytest.raises(HeldError), locked(run, tmp_path / "results"):
            pytest.fail("locked twice")


def test_what_a_run_starts_from_is_locked_with_it(tmp_path):
    run = run_of(guideline3, "k3")
    transfer = transfer_of(run, "scenes-masks-smoke", None)
    assert transfer.needs == (run,)
    with locked(run, tmp_path), pytest.raises(HeldError), locked(transfer, tmp_path):
        pytest.fail("the transfer would train its pre-training, which another command trains")
    taught = run_of(appendix_a, "pseudo")
    (teacher,) = taught.needs
    assert teacher.row.key == "tenth"
    with locked(taught, tmp_path), pytest.raises(HeldError), locked(teacher, tmp_path):
        pytest.fail("the teacher is being trained")


def test_two_commands_share_the_runs(forks, tmp_path):
    both = [forks.start(tmp_path, code("time.sleep(1)")) for _ in range(2)]
    assert [child.wait() for child in both] == [0, 0], [child.err for child in both]
    trained = Counter((tmp_path / "trained").read_text().split())
    assert trained == dict.fromkeys((row.key for row in guideline2.rows), 1)
    records = read_records(tmp_path / "runs/smoke/guideline2/runs")
    assert sorted(record.row for record in records) == sorted(trained)
    assert forks.start(tmp_path, code()).wait() == 0
    assert Counter((tmp_path / "trained").read_text().split()) == trained


def test_a_command_leaves_what_another_holds_and_says_whose_it_is(forks, tmp_path):
    first = forks.start(tmp_path, code("time.sleep(600)", "--rows", "k3-plain"))
    while not (tmp_path / "trained").exists():
        assert first.wait(0.01) is None, first.err
    second = forks.start(tmp_path, code("pass", "--rows", "k3-plain", "k13-plain"))
    assert second.wait() == 0, second.err
    assert f"k3-plain, seed 0, is left to process {first.pid} on " in second.out
    assert [record.row for record in read_records(tmp_path / "runs/smoke/guideline2/runs")] == ["k13-plain"]
    first.send(signal.SIGKILL)
    first.wait()
    third = forks.start(tmp_path, code("pass", "--rows", "k3-plain", "k13-plain"))
    assert third.wait() == 0, third.err
    assert len(read_records(tmp_path / "runs/smoke/guideline2/runs")) == 2


def test_several_processes_do_not_skip_what_is_held(forks, tmp_path):
    first = forks.start(tmp_path, code("time.sleep(600)", "--rows", "k3-plain"))
    while not (tmp_path / "trained").exists():
        assert first.wait(0.01) is None, first.err
    second = forks.start(tmp_path, code("pass", "--rows", "k3-plain", "--devices", "2"))
    assert second.wait() == 2, second.err
    assert f"process {first.pid} on " in second.err.splitlines()[-1]
    assert "wait for it, or use --rows" in second.err.splitlines()[-1]
    first.send(signal.SIGKILL)
    first.wait()
