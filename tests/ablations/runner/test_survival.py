import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from ablations.records.record import read_record

TRAIN_FIRST = """
import os, shutil, signal, sys
from dataclasses import replace
from pathlib import Path
from ablations.runner import preflight, scheduler, train
from ablations.run import main
from ablations.tables.guideline3 import guideline3

scale = guideline3.scales["smoke"]
guideline3.scales = {"smoke": replace(
    scale,
    recipe={"mobilenetv2": {**scale.recipe["mobilenetv2"], "epochs": 2}},
    transfer={"deeplabv3plus": {**scale.transfer["deeplabv3plus"], "epochs": 2}},
)}
forget = scheduler.forget

def keep_what_is_forgotten(run):
    if (run.folder / "last.ckpt").exists():
        shutil.copy(run.folder / "last.ckpt", "copying")
        os.rename("copying", f"{run.kind}.ckpt")
    forget(run)

scheduler.forget = train.forget = keep_what_is_forgotten
preflight.build_on_meta = lambda *_: None  # of every model first, which is a third of so small a run
"""
FAIL = """
step, how = {step}, {how!r}
real, count = {{"replace": os.replace, "fsync": os.fsync}}, {{"replace": 0, "fsync": 0}}

def failing(name):
    def call(*arguments):
        count[name] += 1
        if count[name] == step and how == "full disk" and name == "fsync":
            raise OSError(28, "No space left on device", "a file")
        if count[name] == step and how == "killed before" and name == "replace":
            os.kill(os.getpid(), signal.SIGKILL)
        real[name](*arguments)
        if count[name] == step and how == "killed after" and name == "replace":
            os.kill(os.getpid(), signal.SIGKILL)
    return call

os.replace, os.fsync = failing("replace"), failing("fsync")
"""
RUN = """
sys.exit(main(["guideline3", "--scale", "smoke", "--rows", "k3", "--accelerator", "cpu", *{more}]))
"""
RESULTS = Path("runs/smoke/guideline3")
RECORDS = {kind: f"k3.{name}.seed0.json" for kind, name in (
    ("train", "smoke.generated"), ("transfer", "transfer.smoke.scenes-masks"),
)}  # fmt: skip


def code(*more, fail=""):
    return TRAIN_FIRST + fail + RUN.format(more=list(more))


def outcome(folder):
    """Final weights of both runs, their metrics, and the table but for what varies from run to run."""
    weights = {kind: torch.load(folder / f"{kind}.ckpt", weights_only=True)["state_dict"] for kind in RECORDS}
    weights["kept"] = torch.load(next((folder / "runs/weights").rglob("*.pt")), weights_only=True)["state_dict"]
    records = {kind: read_record(folder / RESULTS / "runs" / name) for kind, name in RECORDS.items()}
    assert all(record.status == "done" for record in records.values())
    table = (folder / RESULTS / "table.csv").read_text()
    return weights, {kind: record.metrics for kind, record in records.items()}, table


def assert_nothing_is_lost(folder, expected):
    weights, metrics, table = outcome(folder)
    for kind, state in expected[0].items():
        assert state.keys() == weights[kind].keys()
        assert all(torch.equal(value, weights[kind][name]) for name, value in state.items()), kind
    assert (metrics, table) == expected[1:]
    names = {path.name for path in (folder / RESULTS).rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert names == {*RECORDS.values(), "table.md", "table.csv"}
    assert not list((folder / "runs" / "guideline3").rglob("*.ckpt"))


@pytest.fixture(scope="module")
def unbroken(forks, tmp_path_factory):
    """What comes of the command when nobody disturbs it, and how many seconds that takes."""
    folder, start = tmp_path_factory.mktemp("unbroken"), time.monotonic()
    child = forks.start(folder, code())
    assert child.wait() == 0, child.err
    seconds = time.monotonic() - start
    assert {read_record(folder / RESULTS / "runs" / name).parts for name in RECORDS.values()} == {1}
    return outcome(folder), seconds


def kill_at_random(forks, tmp_path, unbroken, kills, seed):
    """Kill a command and start it again, over and over; whenever it ends, it is with what it should end with."""
    draw, (expected, seconds) = random.Random(seed), unbroken
    done, interrupted = 0, 0
    while kills > 0:
        folder = tmp_path / f"round{done}"
        folder.mkdir()
        status, start, before = None, time.monotonic(), kills
        while status != 0:
            child = forks.start(folder, code())
            status = child.after(draw.uniform(0, seconds)) if kills > 0 else child.wait()
            assert status in (0, -signal.SIGKILL), child.err
            kills -= status != 0
        if kills == before:  # the first run of all also made the data, and the machine may be less busy now
            seconds = min(seconds, time.monotonic() - start)
        assert_nothing_is_lost(folder, expected)
        done += 1
        interrupted += any(read_record(folder / RESULTS / "runs" / name).parts > 1 for name in RECORDS.values())
    return interrupted


def test_twenty_kills_lose_nothing(forks, tmp_path, unbroken):
    assert kill_at_random(forks, tmp_path, unbroken, 20, seed=0) > 0


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing(forks, tmp_path, unbroken):
    assert kill_at_random(forks, tmp_path, unbroken, 200, seed=1) > 10


def test_killed_or_out_of_disk_at_every_file_nothing_is_lost(forks, tmp_path, unbroken):
    modes = ("killed before", "full disk", "killed after")
    statuses = {"killed before": -signal.SIGKILL, "killed after": -signal.SIGKILL, "full disk": 2}
    seen = set()
    for attempt in range(60):
        how, step = modes[attempt % 3], 1 + attempt % 4
        child = forks.start(tmp_path, code(fail=FAIL.format(step=step, how=how)))
        status = child.wait()
        if status == 0:
            break
        assert status == statuses[how], child.err
        seen.add(how)
        if how == "full disk":
            assert child.err.splitlines()[-1].startswith("ablations.run: a file: No space left on device; what is")
            assert "Traceback" not in child.err
        for path in (tmp_path / RESULTS).glob("runs/*.json"):
            json.loads(path.read_text())
    assert status == 0
    assert seen == set(modes)
    assert_nothing_is_lost(tmp_path, unbroken[0])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_the_next_start_goes_on(forks, tmp_path, unbroken, number, status):
    child = forks.start(tmp_path, code())
    checkpoint = tmp_path / "runs" / "guideline3" / RECORDS["train"].removesuffix(".json") / "last.ckpt"
    while not checkpoint.exists():
        assert child.wait(0.01) is None, child.err
    child.send(number)
    assert child.wait() == status, child.err
    assert "Traceback" not in child.err
    assert "the same command goes on" in child.err
    assert forks.start(tmp_path, code()).wait() == 0
    assert_nothing_is_lost(tmp_path, unbroken[0])


def test_a_signal_before_anything_is_trained_stops_cleanly(forks, tmp_path):
    child = forks.start(
        tmp_path, TRAIN_FIRST + "preflight.build_on_meta = lambda *_: os.kill(os.getpid(), 15)\n" + RUN.format(more=[])
    )
    assert child.wait() == 143
    assert "Traceback" not in child.err


def test_a_checkpoint_larger_than_allowed_is_one_sentence(forks, tmp_path, unbroken):
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
    child = forks.start(tmp_path, code(fail=limit))
    assert child.wait() == 2
    assert "File too large; what is finished is kept" in child.err.splitlines()[-1]
    assert "Traceback" not in child.err
    assert not [path for path in tmp_path.rglob(".last.ckpt*") if path.suffix != ".lock"]
    assert forks.start(tmp_path, code()).wait() == 0
    assert_nothing_is_lost(tmp_path, unbroken[0])


def test_results_that_become_unwritable_are_one_sentence(forks, tmp_path, unbroken):
    blocked = "scheduler.write_record = lambda *_: open('/proc/record.json', 'w')\n"
    child = forks.start(tmp_path, code(fail=blocked))
    assert child.wait() == 2
    assert "what is finished is kept, the same command goes on" in child.err.splitlines()[-1]
    assert forks.start(tmp_path, code()).wait() == 0
    assert_nothing_is_lost(tmp_path, unbroken[0])
