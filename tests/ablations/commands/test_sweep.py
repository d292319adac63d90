"""Sweeps by one worker: what is tried, what is refused, and what is left behind."""

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine

from ablations import sweep as command
from ablations.commands.options import SweepOptions
from ablations.commands.sweep import amount, check, sweep_of
from ablations.records.record import Record
from ablations.search.objectives import finished
from ablations.search.report import figures, front, read, rendered
from ablations.search.space import PAPERS_KERNELS, get_space
from ablations.search.storage import enqueue, open_storage, open_study
from ablations.search.worker import Worker
from ablations.spec import SpecError
from replk_lightning.measure.complexity import Complexity
from replk_lightning.models import create_model

ROOT = Path(__file__).resolve().parents[3]
STORAGE = SweepOptions.storage


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, request):
    """Away from the checkout and, but where a test is about them, without pictures and with a quicker count."""
    monkeypatch.chdir(tmp_path)
    if "whole" not in request.fixturenames:
        monkeypatch.setattr("ablations.search.report.save_figure", lambda *_: None)
        monkeypatch.setattr("ablations.search.evaluate.complexity", count)


@pytest.fixture(autouse=True)
def no_fsync():
    """A trial is some thirty transactions, and waiting for the disk at each is most of a test."""

    def connect(connection, _):
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", connect)
    yield
    event.remove(Engine, "connect", connect)


@pytest.fixture
def whole():
    """Nothing is left out."""


def count(model, size, *, folded, kernel_sizes, **options):
    """Not the truth, but larger for larger kernels."""
    create_model(model, kernel_sizes=kernel_sizes, **options)
    return Complexity(10_000 + sum(k * k for k in kernel_sizes), 1000 * sum(kernel_sizes))


def words(*arguments):
    return ["--scale", "smoke", "--device", "cpu", *map(str, arguments)]


def sweep(*arguments):
    return command.main(words(*arguments))


def options(*arguments):
    return SweepOptions.of(command.parser().parse_args(words(*arguments)))


def parsed(*arguments):
    return sweep_of(options(*arguments))


def studies():
    return {name: optuna.load_study(study_name=name, storage=STORAGE) for name in optuna.get_all_study_names(STORAGE)}


def only_study():
    (study,) = studies().values()
    return study


SIZES = ("--objectives", "macs", "parameters")

USERS = """
from ablations.spaces import Space
from ablations.tables.table5 import table5

def options(kernel, last):
    return {"kernel_sizes": (kernel, kernel, kernel, 3 if kernel == 3 else last)}

space = Space("mine", table5, "replknet_31b", options, {"kernel": [3, 5], "last": range(3, 6, 2)})
"""


def test_the_papers_nets_come_first_and_the_front_is_written(capsys, whole):
    assert sweep(*SIZES, "--trials", 7) == 0
    study = only_study()
    assert [trial.user_attrs["point"] for trial in study.trials[:5]] == PAPERS_KERNELS
    assert "7 trials complete" in capsys.readouterr().out
    folder = Path("runs/sweeps") / study.study_name
    document = read(folder)
    by_optuna = {trial.number for trial in study.best_trials}
    assert front(document["trials"], ["macs", "parameters"]) == by_optuna == {0}
    lines = (folder / "pareto.csv").read_text().splitlines()
    assert lines[0].startswith("trial,k1,k2,k3,k4,macs,parameters")
    assert lines[1].startswith("0,3,3,3,3,")
    assert len(lines) == 2
    assert all((folder / name).stat().st_size > 5000 for name in ("sweeps.png", "history.png", "importances.png"))


def test_a_study_that_has_what_is_asked_for_is_left_alone_and_can_be_continued(capsys):
    for trials, total in ((5, 5), (5, 5), (3, 5), (6, 6)):
        assert sweep(*SIZES, "--trials", trials) == 0
        assert len(finished(only_study().trials)) == total
    assert "5 of 5 trials complete" in capsys.readouterr().out


def test_two_workers_of_one_command_share_the_study(capfd):
    assert sweep("--objectives", "macs", "latency", "--trials", 6, "--jobs", 2) == 0
    assert len(finished(only_study().trials)) == 6
    told = capfd.readouterr().out
    assert "6 trials complete" in told
    assert "latency: timed while other trials train; --remeasure times all nets in one pass" in told
    assert told.count("trial ") >= 6


def test_one_objective_is_searched_with_pruning(monkeypatch):
    assert sweep("--trials", 1) == 0
    first = only_study().trials[0]
    assert first.intermediate_values == {0: first.value}
    assert first.value == pytest.approx(first.user_attrs["accuracy"], abs=1e-3)
    assert {"seconds", "hardware", "commit", "versions", "seed", "macs", "parameters"} <= first.user_attrs.keys()

    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda **_: optuna.pruners.ThresholdPruner(lower=101))
    # a pruned trial was trained and is no sign of a wrong space
    monkeypatch.setattr("ablations.search.worker.BARREN", 1)
    work = Worker._one
    monkeypatch.setattr(Worker, "_one", lambda self, run: work(self, run) and stop())

    def stop():
        raise KeyboardInterrupt

    assert sweep("--trials", 2) == 130
    second = only_study().trials[1]
    assert second.state == TrialState.PRUNED
    assert "accuracy" not in second.user_attrs
    assert not list(Path("runs/sweeps").rglob("*.ckpt"))


def test_what_diverges_fails_with_its_reason_and_the_sweep_goes_on(capsys):
    ours = parsed("--objectives", "accuracy", "macs")
    hot = {**ours.scale.recipe["replknet"], "lr": 1e30}
    ours = replace(ours, scale=replace(ours.scale, recipe={"replknet": hot}))
    study = open_study(ours, open_storage(STORAGE, 30), 2)
    enqueue(study, ours)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ablations.search.worker.BARREN", 2)
        with pytest.raises(SpecError, match=r"the last 2 trials gave no new result.*NaN"):
            Worker(study, ours, trials=2).work()
    assert [trial.state for trial in study.trials[:2]] == [TrialState.FAIL] * 2
    assert "NaN" in study.trials[0].user_attrs["reason"]
    assert "fail: the" in capsys.readouterr().out
    enqueue(study, ours)  # a point that failed by itself is not tried again
    assert len(study.trials) == len(PAPERS_KERNELS)


def test_models_beyond_the_budget_are_never_trained(monkeypatch, capsys):
    trained = []

    def fake(run, *_):
        trained.append(run.row.options["kernel_sizes"])
        return run_record(run)

    monkeypatch.setattr("ablations.runner.scheduler.train", fake)
    assert sweep("--objectives", "accuracy", "macs", "--max-parameters", "11K", "--trials", 5) == 0
    document = read(next(Path("runs/sweeps").iterdir()))
    rejected = [trial for trial in document["trials"] if trial["state"] == "pruned"]
    assert len(rejected) >= 2
    assert all(trial["parameters"] > 0.011 and "more than 11,000" in trial["reason"] for trial in rejected)
    assert len(trained) == 5
    assert "12,044 parameters, more than 11,000" in capsys.readouterr().out
    monkeypatch.setattr("ablations.search.worker.BARREN", 3)
    assert sweep("--objectives", "accuracy", "macs", "--max-macs", "1", "--trials", 3) == 2
    assert "the last 3 trials gave no new result" in capsys.readouterr().err
    assert len(trained) == 5


def run_record(run):
    options = {"status": "done", "metrics": {"top1": 50.0}, "seconds": 1.0, "hardware": "a machine"}
    return Record(ablation="", row=run.row.key, kind="train", model=run.row.model, options={}, **options)


def test_another_space_budget_or_objective_is_another_study_and_says_so(capsys):
    names = {parsed(*rest).name for rest in ([], SIZES, ["--max-macs", "1G"], ["--seed", 1], ["--data", "mnist5k"])}
    assert len(names) == 5
    assert parsed().name == parsed().name
    ours = parsed(*SIZES)
    space = replace(ours.space, choices={**ours.space.choices, "k4": range(3, 16, 2)}, first=())
    assert replace(ours, space=space).name.rpartition("-")[0] == ours.prefix
    storage = open_storage(STORAGE, 30)
    open_study(ours, storage, 1)
    assert "new study kernels-smoke-generated-" in capsys.readouterr().out
    open_study(replace(ours, space=space, max_macs=1e9), storage, 1)
    assert f"it differs from {ours.name} in space, budget" in capsys.readouterr().out
    open_study(ours, storage, 1)
    assert "0 of 1 trials complete" in capsys.readouterr().out


def test_a_model_is_trained_once_under_whatever_names(capsys):
    Path("mine.py").write_text(USERS)
    assert sweep("--space", "mine.py", *SIZES, "--trials", 3) == 0
    document = read(next(Path("runs/sweeps").iterdir()))
    done = [t for t in document["trials"] if t["state"] == "complete" and "same_as" not in t]
    assert len({json.dumps(t["options"]) for t in done}) == len(done) == 3
    twins = [t for t in document["trials"] if "same_as" in t]
    by_number = {t["number"]: t for t in done}
    assert all(t["options"] == by_number[t["same_as"]]["options"] for t in twins)
    assert sweep("--space", "mine.py", *SIZES, "--trials", 5) == 2
    assert "space 'mine' has 4 points" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("space = 3", "mine.py names no space"),
        ("import nonesuch", "mine.py does not run: ModuleNotFoundError: No module named 'nonesuch'"),
        ("def f(:", "mine.py does not run: SyntaxError"),
        (USERS.replace("[3, 5]", "[]"), "gives 'kernel' no range or list"),
        (USERS.replace("[3, 5]", "[3, 3]"), "names a value of 'kernel' twice"),
        (USERS.replace("[3, 5]", "[{}]"), "values of 'kernel' are numbers"),
        (USERS.replace("range(3, 6, 2)", "range(5, 2, -2)"), "the range of 'last' goes down"),
        (USERS.replace("def options(kernel, last)", "def options(kernel)"), "gives no options of a model at"),
        (USERS.replace("return {", "return {1, "), "does not run: SyntaxError"),
        (USERS.replace('"kernel_sizes"', '"kernels"'), "no model 'replknet_31b' with"),
        (USERS.replace("[3, 5]", "[4, 6]"), "odd"),
        (USERS.replace("range(3, 6, 2)}", 'range(3, 6, 2)}, [{"kernel": 7, "last": 3}]'), "does not hold"),
    ],
)
def test_a_wrong_file_gets_one_sentence_and_2(capsys, text, sentence):
    Path("mine.py").write_text(text)
    assert sweep("--space", "mine.py", *SIZES, "--trials", 3) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--space", "kernel"], "there is no space 'kernel'; choose from kernels, mobilenet"),
        (["--space", "none.py"], "there is no file none.py"),
        (["--objectives", "speed"], "there is no objective 'speed'; choose from accuracy, miou, latency"),
        (["--trials", "0"], "--trials is a positive number"),
        (["--timeout", "-1"], "--timeout is a number of seconds, 0 or more, and not -1"),
        (["--timeout", "nan"], "--timeout is a number of seconds, 0 or more, and not nan"),
        (["--space", "mobilenet", "--trials", "91"], "has 90 points"),
        (["--max-macs", "much"], "--max-macs is a number"),
        (["--seed", "-1"], "a seed is a whole number"),
        (["--scale", "tiny"], "there is no scale 'tiny'"),
        (["--data", "imagefolder:nowhere"], "no folder nowhere"),
        (["--storage", "here.db"], "the storage"),
        (["--storage", "sqlite:////proc/none/x.db"], "cannot be made"),
        (["--storage", "oracel://user:secret@host/db"], "the storage oracel://host/db cannot be opened"),
        (["--results", "/proc/none"], "cannot be written to /proc/none"),
        (["--device", "abacus"], "the trainer does not take these flags"),
    ],
)
def test_a_wrong_argument_gets_one_sentence_and_2(capsys, arguments, sentence):
    assert sweep(*arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert "secret" not in error


def test_budgets_have_units():
    assert [amount("--max-macs", text) for text in (None, "12", "1.5G", "300k")] == [None, 12, 1.5e9, 3e5]


@pytest.fixture
def interruptible():
    """SIGINT interrupts, whatever started this process and whatever other tests have left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_its_status_and_the_trial_is_tried_again(monkeypatch, number, status):
    with monkeypatch.context() as patch:
        patch.setattr("ablations.search.evaluate.Trial._require_budget", lambda *_: signal.raise_signal(number))
        assert sweep(*SIZES, "--trials", 6) == status
    assert [t.state for t in only_study().trials[:1]] == [TrialState.FAIL]
    assert sweep(*SIZES, "--trials", 6) == 0
    done = finished(only_study().trials)
    assert len(done) == 6
    assert sum(trial.user_attrs["point"] == PAPERS_KERNELS[0] for trial in done) == 1


def test_miou_is_that_of_the_net_carried_over():
    assert sweep("--objectives", "miou", "--trials", 1) == 0
    trial = only_study().trials[0]
    assert trial.value == pytest.approx(trial.user_attrs["miou"], abs=1e-3)
    assert set(trial.intermediate_values) == {0}
    assert {"accuracy", "miou"} <= trial.user_attrs.keys()
    assert not list(Path("runs").rglob("*.pt"))


def test_latency_is_relative_to_the_first_net(monkeypatch):
    rounds = iter([{"start": 2.0, "this": 2.0}, {"start": 6.0, "this": 9.0}])
    monkeypatch.setattr("ablations.search.evaluate.milliseconds", lambda *_: next(rounds))
    assert sweep("--objectives", "latency", "macs", "--trials", 2) == 0
    assert [trial.values[0] for trial in only_study().trials[:2]] == [2.0, 3.0]


def test_latency_of_all_nets_is_measured_in_one_pass(monkeypatch):
    monkeypatch.setattr("ablations.search.report.REMEASURED_ROUNDS", 2)
    assert sweep(*SIZES, "--trials", 2, "--remeasure") == 0
    document = read(next(Path("runs/sweeps").iterdir()))
    assert all(trial["latency_remeasured"] > 0 for trial in document["trials"][:2])
    assert "the median of 2 rounds each" in rendered(document)["table.md"]


def test_mobilenets_space_holds_the_guidelines_nets():
    ours = parsed("--space", "mobilenet")
    check(ours, options("--space", "mobilenet"))
    nets = [ours.space.options_at(point) for point in ours.space.first]
    assert {"kernel_size": 13, "small_kernel": 3, "shortcut": True} in nets
    assert {"kernel_size": 13, "small_kernel": None, "shortcut": False} in nets
    assert get_space("mobilenet").options_at({"kernel": 3, "branch": 5, "shortcut": True})["small_kernel"] is None


def test_the_front_holds_whatever_nothing_surpasses():
    values = [(90, 5), (90, 5), (91, 6), (89, 5), (80, 1), (80, 2)]
    trials = [{"number": n, "accuracy": a, "latency": ms} for n, (a, ms) in enumerate(values)]
    assert front(trials, ["accuracy", "latency"]) == {0, 1, 2, 4}
    assert front(trials, ["accuracy"]) == {2}


def test_help_needs_neither_torch_nor_optuna():
    code = "import sys\nfrom ablations.sweep import parser\nparser().format_help()\n"
    code += "sys.exit(bool({'torch', 'optuna', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


class Silent(WSGIRequestHandler):
    def log_message(self, *_):
        pass


def test_optuna_dashboard_shows_the_studies():
    dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    assert sweep(*SIZES, "--trials", 1) == 0
    storage = optuna.storages.RDBStorage(STORAGE)
    with make_server("127.0.0.1", 0, dashboard.wsgi(storage), handler_class=Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(f"{address}/api/studies") as answer:
            (summary,) = json.load(answer)["study_summaries"]
        with urllib.request.urlopen(f"{address}/dashboard/") as answer:
            page = answer.read()
        server.shutdown()
    storage.engine.dispose()
    assert summary["study_name"] == only_study().study_name
    assert b"<title>" in page


def test_committed_sweeps_are_current():
    folder = ROOT / "results" / "sweeps"
    document = read(folder)
    for name, text in rendered(document).items():
        assert (folder / name).read_text() == text, f"{name} does not follow from trials.json"
    assert {"sweeps.png", "history.png", "importances.png"} == set(figures(document))
    assert len([t for t in document["trials"] if t["state"] == "complete"]) >= 30
    assert all(point in [t["point"] for t in document["trials"]] for point in PAPERS_KERNELS)
