import re
from dataclasses import replace
from pathlib import Path

import pytest

from ablations.commands import reproduce
from ablations.commands.parts import Part, parts_of
from ablations.commands.reproduce import Report, batches
from ablations.records.record import Record, write_record
from ablations.registry import all_ablations, get_ablation
from ablations.report.estimate import Estimates, spoken
from ablations.reproduce import main, parsed
from ablations.runner import scheduler
from ablations.runner.machine import Machine
from ablations.runner.side_by_side import Crew
from ablations.scales import SMOKE
from ablations.tables.figure6 import figure6
from ablations.tables.guideline2 import guideline2
from ablations.tables.table11 import table11


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPLK_CPU_PLAN", "fixed")


def smoke(*arguments):
    return main(["--scale", "smoke", "--accelerator", "cpu", *arguments])


def recorded(runs, folder, *_, status="done"):
    """Stands in for training: records without numbers."""
    for run in runs:
        write_record(
            Record(
                ablation=run.ablation.name, row=run.row.key, kind=run.kind, status=status, metrics={"top1": 50.0},
                model=run.row.model, options=run.scale.options_for(run.row), recipe=vars(run.recipe), seconds=5.0,
                supervision=run.supervision, scale=run.scale.name, data="generated", seed=run.seed, hardware="a CPU",
                reason="the loss became nan" if status == "failed" else None,
            ),
            folder / "runs",
        )  # fmt: skip


def test_a_figure_is_trained_rendered_and_put_on_the_page_once(capfd):
    assert smoke("--only", "figure6") == 0
    first = capfd.readouterr().out
    assert re.search(r"figure6 +Figure 6 +3 of 3 runs to do, time unknown", first)
    assert re.search(r"Figure 6 +the merged kernel .*: one seed on generated, scale smoke", first)
    assert "measured now: 3" in first
    for name in ("README.md", "figure6/table.md", "figure6/figure6.csv", "figure6/figure6.png"):
        assert Path("runs/smoke", name).stat().st_size

    assert smoke("--only", "figure6") == 0
    second = capfd.readouterr().out
    assert "0 of 3 runs to do" in second
    assert "measured now: 0" in second


def test_a_dry_run_tells_the_plan_and_leaves_nothing(capsys):
    assert smoke("--only", "figure1", "guideline2", "--dry-run") == 0
    told = capsys.readouterr().out
    assert re.search(r"guideline2 +Table 2 +4 of 4 runs to do", told)
    assert re.search(r"table10 +Table 10 +8 of 8 runs to do", told), "figure 1 shows table 10's runs"
    assert "in all: 12 runs, time unknown" in told
    assert not Path("runs").exists()


def parts(*flags):
    options = parsed(["--scale", "smoke", *flags])
    return parts_of([get_ablation(name) for name in options.only or all_ablations()], options)


def test_the_cheap_come_first_and_seeds_last():
    wanted = parts("--only", "table11", "guideline2", "--seeds", "5", "3")
    for part in wanted:
        part.missing = part.runs
    seconds = {("smoke", "train", "table11", None): [9.0], ("smoke", "train", "guideline2", None): [2.0]}
    order = [(part.ablation.name, {run.seed for run in runs}) for part, runs in batches(wanted, Estimates(seconds))]
    assert order == [("guideline2", {5}), ("table11", {5}), ("guideline2", {3}), ("table11", {3})]


def test_estimates_are_of_the_same_row_else_of_the_same_net():
    recorded(parts("--only", "guideline2")[0].runs[:1], Path("here/guideline2"))
    estimates = Estimates.of(Path("here"))
    runs = parts("--only", "guideline2")[0].runs
    assert estimates.seconds_of(runs[0]) == 5
    assert estimates.spoken(runs) == "about 20 s", "the other rows have the same model"
    (field,) = parts("--only", "table10")[0].runs[:1]
    assert estimates.seconds_of(field) is None
    assert estimates.spoken([*runs, field]) == "about 20 s and 1 of unknown length"
    assert [spoken(s) for s in (40, 720, 11100)] == ["40 s", "12 min", "3 h 5 min"]


def test_an_ablation_that_fails_stops_no_other(capsys, monkeypatch):
    def execute(runs, folder, machine, render):
        if runs[0].ablation is guideline2:
            raise RuntimeError("out of memory")
        recorded(runs, folder)

    monkeypatch.setattr(scheduler, "execute", execute)
    assert smoke("--only", "guideline2", "table11") == 2
    output = capsys.readouterr()
    assert "failed: guideline2: RuntimeError: out of memory" in output.err
    assert "measured now: 4" in output.out
    assert "| 50.00 |" in Path("runs/smoke/table11/table.md").read_text()


class Others:
    """Workers that leave records without numbers, but for one row."""

    how = "2 at a time"

    def work_on(self, parts, work, bar):
        for part in parts:
            lost = part.runs[0].row.key == "k3-plain"
            recorded([] if lost else part.runs, part.folder)
            yield part, ([], "out of memory" if lost else None)


def test_several_at_a_time_take_the_runs_of_all_tables_together(capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "crew_of", lambda _, machine: Crew(machine, workers=Others()))
    assert smoke("--only", "guideline2", "table11") == 2
    output = capsys.readouterr()
    assert "8 runs, 0 of them recorded already, 2 at a time" in output.out
    assert "failed: guideline2 k3-plain, seed 0: out of memory" in output.err
    assert "measured now: 7" in output.out
    assert smoke("--only", "table11") == 0, "nothing is left to do"


def test_a_run_that_diverged_is_told_and_kept(capsys, monkeypatch):
    monkeypatch.setattr(scheduler, "execute", lambda runs, folder, *_: recorded(runs, folder, status="failed"))
    for _ in range(2):
        assert smoke("--only", "guideline2") == 2
        assert "failed: guideline2 k13-plain, seed 0: the loss became nan" in capsys.readouterr().err


def test_what_is_interrupted_is_shown_and_goes_on(capsys, monkeypatch):
    def interrupted(runs, folder, *_):
        recorded(runs[:1], folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduler, "execute", interrupted)
    assert smoke("--only", "guideline2") == 130
    assert "Table 2" in Path("runs/smoke/README.md").read_text()
    monkeypatch.setattr(scheduler, "execute", recorded)
    assert smoke("--only", "guideline2") == 0
    assert "3 of 4 runs to do" in capsys.readouterr().out


def test_data_and_checkpoints_that_are_missing_are_told_and_skipped(capsys):
    here = ["--scale", "paper", "--results", "here", "--accelerator", "cpu", "--devices", "1", "--dry-run"]
    assert main([*here, "--only", "guideline2", "table6", "--data", "imagefolder:/nowhere"]) == 0
    told = capsys.readouterr().out
    assert "skipped: guideline2, table6: There is no folder /nowhere" in told
    assert "skipped: table6: row 'replknet31b-384' fine-tunes what replknet_300ep trained" in told
    assert "in all: 0 runs" in told


def test_records_of_another_recipe_are_told_and_left_alone(capsys, monkeypatch):
    monkeypatch.setattr(scheduler, "execute", recorded)
    assert smoke("--only", "table11") == 0
    path = Path("runs/smoke/table11/runs/k9.smoke.generated.seed0.json")
    old = path.read_text().replace('"epochs": 1', '"epochs": 2')
    path.write_text(old)
    assert smoke("--only", "table11") == 0
    assert "skipped: table11: " in capsys.readouterr().out
    assert path.read_text() == old
    assert "† measured before this changed" in Path("runs/smoke/table11/table.md").read_text()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--only", "guideline9"], "there is no ablation 'guideline9'"),
        (["--scale", "huge"], "there is no scale 'huge'"),
        (["--seeds", "-1"], "seeds are whole numbers"),
        (["--strategy", "ddp_spawn"], "starts no command of its own"),
        (["--precision", "17"], "the trainer does not take these flags"),
    ],
)
def test_wrong_words_get_one_sentence(flags, sentence, capsys):
    assert main(["--accelerator", "cpu", *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--rows", "k3"], "--rows is not for all tables; --rows, --init, --list and --timing are for ablations.run"),
        (["--list"], "--list is not for all tables"),
        (["guideline2"], "tables are named with --only guideline2"),
        (["--seeds", "one"], "argument --seeds: invalid int value: 'one'"),
    ],
)
def test_wrong_flags_get_one_sentence_without_the_usage(flags, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ablations.reproduce: ")
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_some_rows_are_timed_at_smoke_and_once(monkeypatch):
    times = []
    (part,) = parts("--only", "guideline1")
    timed = replace(
        part.ablation, timing=lambda rows: times.append(len(rows)) or {r.key: {"ours_ms": 1.0} for r in rows}
    )
    part = Part(timed, part.rows, SMOKE, Path("here/guideline1"), [])
    for _ in range(2):
        report = Report()
        reproduce.carry_out([part], Crew(Machine(accelerator="cpu")), Estimates({}), report)
        assert report.failed == {}
    assert times == [2]
    assert part.untimed == []


def test_every_table_has_its_part_at_every_scale():
    names = {part.ablation.name for part in parts()}
    assert {guideline2.name, table11.name, figure6.name} < names
    assert "figure1" not in names, "its runs are table 10's"
