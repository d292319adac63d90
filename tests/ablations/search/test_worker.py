"""Sweeps by several processes on one study, in an SQLite file and in PostgreSQL, some of them killed."""

import glob
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sweep_workers import HEARTBEAT, sweep, take, work

from ablations.search.objectives import finished
from ablations.search.space import PAPERS_KERNELS
from ablations.search.storage import open_storage, open_study
from ablations.search.worker import Worker

pwd = pytest.importorskip("pwd", reason="workers are forked and killed here, which is for POSIX")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ablations.search.worker"])  # torch is imported once for all workers


def binaries():
    """The folder of PostgreSQL's server programs, or None."""
    folders = [str(Path(initdb).parent)] if (initdb := shutil.which("initdb")) else []
    if shutil.which("pg_config"):
        folders.append(subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True).stdout.strip())
    folders += sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
    return next((f for f in folders if all(os.access(f"{f}/{p}", os.X_OK) for p in ("initdb", "postgres"))), None)


def other_user():
    """As whom the server runs: it refuses to be root."""
    if os.getuid() != 0:
        return {}
    names = {user.pw_name for user in pwd.getpwall()}
    name = next((name for name in ("postgres", "nobody") if name in names), None)
    if name is None:
        pytest.skip("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def postgresql():
    """URL of an empty database of a server of our own on the loopback."""
    pytest.importorskip("psycopg", reason="psycopg, PostgreSQL's driver, is not installed")
    folder, user = binaries(), other_user()
    if folder is None:
        pytest.skip("PostgreSQL's server is not installed")
    home = Path(tempfile.mkdtemp(prefix="replk-postgresql-"))
    if user:
        shutil.chown(home, user["user"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    initdb = [f"{folder}/initdb", "-D", home / "data", "-A", "trust", "-U", "sweeper", "--no-sync", "-E", "UTF8"]
    made = subprocess.run(initdb, cwd=home, capture_output=True, text=True, **user)
    assert made.returncode == 0, made.stderr
    options = ["-h", "127.0.0.1", "-p", str(port), "-k", home, "-F"]
    server = subprocess.Popen(
        [f"{folder}/postgres", "-D", home / "data", *options], cwd=home, stderr=subprocess.DEVNULL, **user
    )
    url = f"postgresql+psycopg://sweeper@127.0.0.1:{port}/postgres"
    try:
        wait(lambda: answers(port), "the server", alive=lambda: server.poll() is None)
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # at once, whoever is connected
        server.wait(30)
        shutil.rmtree(home, ignore_errors=True)


def answers(port):
    import psycopg

    try:
        psycopg.connect(host="127.0.0.1", port=port, user="sweeper", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True


def wait(condition, what, seconds=120, alive=lambda: True):
    deadline = time.monotonic() + seconds
    while not condition():
        assert alive(), f"{what} ended by itself"
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sweeps.db"
    return request.getfixturevalue("postgresql")


def start(url, trials, log, seconds, gate=None):
    process = PROCESSES.Process(target=work, args=(url, trials, log, seconds, gate), daemon=True)
    process.start()
    return process


def lines(log):
    return [tuple(line.split()) for line in log.read_text().splitlines()] if log.exists() else []


def test_a_killed_workers_trial_is_taken_up_by_the_others(url, tmp_path):
    """Three workers, the first killed in its first trial: nothing is lost, and nothing counted twice."""
    trials, log = 10, tmp_path / "log"
    doomed = start(url, trials, log, seconds=600)
    wait(lambda: lines(log), "the first trial", alive=doomed.is_alive)
    gate = PROCESSES.Barrier(2)
    others = [start(url, trials, log, 0.2, gate) for _ in range(2)]
    wait(lambda: any(word == "end" for word, *_ in lines(log)), "another's trial", alive=others[0].is_alive)
    os.kill(doomed.pid, signal.SIGKILL)
    for process in others:
        process.join(180)
        assert process.exitcode == 0
    doomed.join(10)
    assert doomed.exitcode == -signal.SIGKILL

    storage = optuna.storages.RDBStorage(url)
    study = optuna.load_study(study_name=sweep().name, storage=storage)
    everything = study.get_trials(deepcopy=False)
    storage.engine.dispose()
    done = finished(everything)
    assert len(done) == trials
    assert not [trial for trial in everything if trial.state == TrialState.RUNNING]
    points = Counter(json.dumps(trial.user_attrs["point"]) for trial in done)
    assert set(points.values()) == {1}
    assert all(points[json.dumps(point)] == 1 for point in PAPERS_KERNELS)

    lost = next(int(number) for word, pid, number in lines(log) if word == "begin" and int(pid) == doomed.pid)
    assert everything[lost].state == TrialState.FAIL
    retried = [trial for trial in done if lost in trial.system_attrs.get("retry_history", [])]
    assert [trial.user_attrs["point"] for trial in retried] == [everything[lost].user_attrs["point"]]
    ends = Counter(number for word, _, number in lines(log) if word == "end")
    assert sum(ends.values()) == len(ends) == trials  # every trial was worked on once, and none beyond what was asked
    assert len({pid for word, pid, _ in lines(log) if word == "end"}) == 2


def test_a_trial_on_its_way_back_into_the_queue_is_waited_for(tmp_path, monkeypatch):
    """Between failing a dead worker's trial and queueing it again, another worker would draw a new point."""
    study = open_study(sweep(), open_storage(f"sqlite:///{tmp_path}/sweeps.db", 30), 1)
    study.enqueue_trial(PAPERS_KERNELS[0])
    study.optimize(lambda trial: 1 / 0, n_trials=1, catch=ZeroDivisionError)
    (lost,) = study.trials
    worker = Worker(study, sweep(), trials=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "_wait", lambda: worker._requeue([lost.number]))
    worker.work()
    (done,) = finished(study.trials)
    assert done.system_attrs["retry_history"] == [lost.number]
    assert len(study.trials) == 2


def test_no_two_workers_take_the_same_trial_from_the_queue(url):
    """With optuna's own storage on SQLite, three processes take a quarter of the queue twice."""
    storage = open_storage(url, HEARTBEAT)
    study = optuna.create_study(study_name="queue", storage=storage)
    for number in range(30):
        study.enqueue_trial({"x": number})
    storage.engine.dispose()
    gate, taken = PROCESSES.Barrier(3), PROCESSES.Queue()
    processes = [PROCESSES.Process(target=take, args=(url, 12, gate, taken), daemon=True) for _ in range(3)]
    for process in processes:
        process.start()
    numbers = sorted(number for _ in processes for number in taken.get(timeout=180))
    for process in processes:
        process.join(30)
    assert numbers == list(range(36))
