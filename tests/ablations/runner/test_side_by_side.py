"""Several runs at a time: who trains what, on which threads and devices, and what becomes of them if one is killed."""

import os
import pickle
import signal
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from ablations import run as command
from ablations.commands.parts import render_alone
from ablations.records.record import read_records
from ablations.runner import side_by_side
from ablations.runner.machine import Machine
from ablations.runner.plan import plan
from ablations.runner.scheduler import Batch
from ablations.runner.side_by_side import Crew, Place, Processes, Told, groups, train_group, visible_devices
from ablations.scales import get_scale
from ablations.spec import SpecError
from ablations.tables.appendix_a import appendix_a
from ablations.tables.guideline2 import guideline2
from ablations.tables.guideline3 import guideline3

CPU = Machine(accelerator="cpu")
MANY = [str(seed) for seed in range(40)]
RUN = """
import sys
from ablations.run import main
sys.exit(main(["guideline2", "--scale", "smoke", "--accelerator", "cpu", *{more}]))
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(side_by_side, "PLACE", [Place(0, [0])])


def batch_of(ablation, *seeds, rows=()):
    runs = plan(ablation, ablation.select(list(rows)), get_scale("smoke", ablation), seeds=seeds)
    return Batch(runs, Path("here") / ablation.name, lambda: None)


def test_a_run_is_the_same_in_another_process():
    for run in [*batch_of(guideline3, 4).runs, *batch_of(appendix_a, 4).runs]:
        again = pickle.loads(pickle.dumps(run))
        assert again == run
        assert (again.ablation, again.row, type(again)) == (run.ablation, run.row, type(run))
    assert pickle.loads(pickle.dumps(guideline2)) is guideline2
    pickle.dumps(render_alone)


def test_runs_that_need_the_same_net_stay_together():
    parts = [
        [(run.row.key, run.kind) for run in part.runs] for part in groups(batch_of(guideline3, 0, rows=["k3", "k9"]))
    ]
    assert parts == [[(key, "train"), (key, "transfer")] for key in ("k3", "k9")]
    taught = groups(batch_of(appendix_a, 0, 1))
    assert all(len({run.seed for run in part.runs}) == 1 for part in taught)
    together = [{run.row.key for run in part.runs} for part in taught]
    assert sum({"tenth", "pseudo"} <= keys for keys in together) == 2
    assert len(groups(batch_of(guideline2, 0, 1))) == 8


def test_threads_are_shared_and_devices_taken_in_turn(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_devices() == ["3", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_devices() == ["0", "1"]
    with Processes(CPU, 3) as processes:
        assert processes.threads == 2
        assert set(processes.epochs) == {0}
    with Processes(CPU, 9) as processes:
        assert processes.threads == 1


def test_epochs_are_counted_where_the_command_sees_them():
    counted = [0, 7]
    bar = Told(Place(1, counted))
    bar.update(2)
    bar.update()
    assert (bar.n, counted, bar.disable) == (3, [0, 10], True)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (SpecError("there is no such row."), "there is no such row."),
        (OSError(28, "No space left on device", "a file"), "a file: No space left on device"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
    ],
)
def test_what_goes_wrong_with_a_run_is_a_sentence(monkeypatch, error, sentence, capsys):
    def work(*_):
        raise error

    monkeypatch.setattr(side_by_side.Scheduler, "work", work)
    assert train_group(batch_of(guideline2, 0), CPU) == ([], sentence)
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, RuntimeError), "where it is a fault of ours"


def test_a_process_that_was_killed_is_one_sentence(monkeypatch):
    killed = Future()
    killed.set_exception(BrokenProcessPool())
    monkeypatch.setattr(Processes, "submit", lambda *_: killed)
    with Crew(CPU, 2) as crew:
        for _ in range(2):
            with pytest.raises(SpecError, match=r"one of the 2 processes was killed.*with fewer --jobs"):
                crew.execute([batch_of(guideline2, 0)])
            assert crew._processes is None, "others are started for what comes next"


class Done:
    """Workers that have done their work already."""

    how = "2 at a time"

    def work_on(self, parts, work, bar):
        for part in parts:
            yield part, (["k3 is left to another"], "out of memory" if part.runs[0].row.key == "k3-plain" else None)


def test_what_fails_is_told_by_its_run_and_stops_no_other(capsys):
    crew = Crew(CPU, workers=Done())
    crew.execute([batch_of(guideline2, 0)])
    assert crew.wrong == {"guideline2 k3-plain, seed 0": "out of memory"}
    output = capsys.readouterr()
    assert "4 runs, 0 of them recorded already, 2 at a time" in output.out
    assert output.out.count("k3 is left to another") == 4


def test_two_at_a_time_give_what_one_does(capsys, monkeypatch):
    monkeypatch.setattr(side_by_side, "tqdm", bars := Bars())
    table = ["guideline2", "--scale", "smoke", "--accelerator", "cpu"]
    assert command.main([*table, "--jobs", "2", "--logger", "csv"]) == 0
    assert "4 runs, 0 of them recorded already, 2 at a time" in capsys.readouterr().out
    assert len(list(Path("runs/logs/guideline2").glob("*/version_0/metrics.csv"))) == 4
    records = read_records(Path("runs/smoke/guideline2/runs"))
    assert sorted(record.row for record in records) == sorted(row.key for row in guideline2.rows)
    assert all(f", {max(1, torch.get_num_threads() // 2)} threads" in record.hardware for record in records)
    assert [(bar.n, bar.total) for bar in bars.made] == [(4, 4)]
    assert not list(Path("runs/guideline2").rglob("*.ckpt"))
    assert command.main([*table, "--jobs", "2"]) == 0
    assert "4 runs, 4 of them recorded already, 2 at a time" in capsys.readouterr().out


class Bars:
    """tqdm, and the bars that were made."""

    def __init__(self):
        self.made = []

    def __call__(self, **details):
        self.made.append(tqdm(**details))
        return self.made[-1]


def workers_of(pid):
    """Processes below `pid` that train, which import this package."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended since
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and "spawn_main" in (process / "cmdline").read_text():
                found.append(int(process.name))
    return sorted(found)


def gone(pid):
    """Whether a process has ended, be it not waited for."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes there are")
@pytest.mark.parametrize(
    ("name", "whose", "status"),
    [
        ("SIGKILL", "command", -9),
        ("SIGTERM", "command", 143),
        pytest.param("SIGINT", "command", 130, marks=pytest.mark.slow),
        pytest.param("SIGKILL", "worker", 2, marks=pytest.mark.slow),
    ],
)
def test_whoever_is_killed_nobody_is_left_and_nothing_lost(forks, tmp_path, name, whose, status):
    child = forks.start(tmp_path, RUN.format(more=["--jobs", "2", "--seeds", *MANY]))
    records = tmp_path / "runs/smoke/guideline2/runs"
    while not list(records.glob("*.json")):
        assert child.wait(0.05) is None, child.err
    workers = workers_of(child.pid)
    assert len(workers) == 2
    os.kill(child.pid if whose == "command" else workers[0], getattr(signal, name))
    assert child.wait() == status, child.err
    deadline = time.monotonic() + 20
    while not all(map(gone, workers)):
        assert time.monotonic() < deadline, "a process outlived the command"
        time.sleep(0.05)
    assert "Traceback" not in child.err
    if status == 2:
        assert "ablations.run: one of the 2 processes was killed, perhaps for want of memory; " in child.err
    elif name != "SIGKILL":
        assert "the same command goes on from there" in child.err
    found = read_records(records)
    assert {record.status for record in found} == {"done"}
    seeds = [str(max(record.seed for record in found) + 1)]
    again = forks.start(tmp_path, RUN.format(more=["--rows", "k3-plain", "--seeds", *seeds]))
    assert again.wait() == 0, again.err
    assert "is left to" not in again.out
