"""Seeds until claims are decided: which are asked for, of which rows, in which order, and when it ends."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ablations import reproduce, run
from ablations.commands.deciding import Decider, cells, matters_of_seeds
from ablations.commands.options import TrainingOptions, duration
from ablations.commands.parts import questions_of
from ablations.records.record import Record, read_records, write_record
from ablations.registry import all_ablations, get_ablation
from ablations.report.results import Results
from ablations.runner import scheduler
from ablations.runner.machine import Machine
from ablations.scales import get_scale
from ablations.spec import TOP1, Ablation, Row
from ablations.tables.guideline2 import guideline2
from replk_lightning.recipes import mobilenetv2_100ep

HERE = Machine(accelerator="cpu").processor
FOLDER = Path("runs/smoke")
SMOKE = TrainingOptions(scale="smoke", accelerator="cpu")
LEADS = {"k3-shortcut": 60.0, "k13-shortcut": 70.0, "k3-plain": 60.0, "k13-plain": 60.0}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPLK_CPU_PLAN", "fixed")


def record(run, top1, hardware=f"{HERE}, 1 threads", seconds=5.0, status="done"):
    """Stands in for training."""
    write_record(
        Record(
            ablation=run.ablation.name, row=run.row.key, kind=run.kind, status=status, model=run.row.model,
            metrics={} if status == "failed" else {"top1": top1, "miou": top1}, scale=run.scale.name, seed=run.seed,
            options=run.scale.options_for(run.row), recipe=vars(run.recipe), data=run.data_name, hardware=hardware,
            seconds=seconds, reason="the loss became nan" if status == "failed" else None,
            pretraining=vars(run.pretraining.recipe) if run.kind == "transfer" else None,
        ),
        FOLDER / run.ablation.name / "runs",
    )  # fmt: skip


def wobble(run):
    """Clear leads with shortcuts, noise without."""
    noise = (0.0, 0.4, -0.3, 0.2, -0.1)[run.seed % 5] * (1 if "13" in run.row.key else -1)
    return LEADS.get(run.row.key, 50.0) + noise * (1 if "shortcut" in run.row.key else 10)


class Trainer:
    """Writes records and remembers of what."""

    def __init__(self, top1=wobble, **details):
        self.top1, self.details, self.trained = top1, details, []

    def __call__(self, runs):
        for each in runs:
            record(each, self.top1(each), **self.details)
        self.trained += [(each.row.key, each.seed) for each in runs]
        return True


def decider(*names, most=5, budget=None, said=None, questions=None):
    questions = questions or questions_of([get_ablation(name) for name in names], SMOKE)
    say = (said if said is not None else []).append
    return Decider(questions, FOLDER, HERE, most=most, budget=budget, say=say)


def runs_of(*seeds):
    (question, *_) = [q for q in questions_of([guideline2], SMOKE) if "costs" in q.claim.sentence]
    return [each for seed in seeds for each in question.runs(seed)]


def test_every_claim_about_trained_nets_names_rows_of_its_table():
    for ablation in all_ablations().values():
        for claim in matters_of_seeds(ablation):
            asked = cells(claim)
            assert asked
            assert {row for row, _ in asked} <= {row.key for row in ablation.rows}
            numbers = {metric.key: {} for metric in ablation.metrics}
            for row, source in asked:
                for metric in ablation.metrics:
                    numbers[metric.key] |= {row: 1.5} if metric.source == source else {}
            assert claim.margin(numbers) is not None, "the cells are enough"
            row, source = sorted(asked)[0]
            for metric in ablation.metrics:
                if metric.source == source:
                    del numbers[metric.key][row]
            assert claim.margin(numbers) is None, "and none is too many"


def test_what_is_timed_or_counted_is_no_matter_of_seeds():
    assert matters_of_seeds(get_ablation("guideline1")) == []
    assert len(matters_of_seeds(guideline2)) == 3


def test_a_claim_of_two_tables_asks_for_runs_of_both_kinds():
    question = questions_of([get_ablation("guideline4")], SMOKE)[1]
    asked = [(each.ablation.name, each.row.key, each.kind) for each in question.runs(2)]
    assert sorted(asked) == [
        ("table5", row, kind) for row in ("replknet3", "replknet31") for kind in ("train", "transfer")
    ]


def test_seeds_come_until_a_word_falls_and_only_to_rows_of_open_claims():
    train, said = Trainer(), []
    decider("guideline2", said=said).decide(train)
    seeds = Counter(row for row, _ in train.trained)
    assert seeds["k3-shortcut"] == seeds["k13-shortcut"]
    assert seeds["k3-plain"] == seeds["k13-plain"] == 5, "noise decides nothing"
    assert {"holds", "undecided"} <= set(re.findall("holds|undecided", "\n".join(said)))
    assert sorted(seed for row, seed in train.trained if row == "k3-plain") == [0, 1, 2, 3, 4]
    assert re.fullmatch(r"[12] of 3 claims are decided; \d+ s spent", said[-1])
    again = Trainer()
    decider("guideline2").decide(again)
    assert again.trained == []


def test_rows_that_only_decided_claims_name_get_no_more_seeds():
    questions = [q for q in questions_of([guideline2], SMOKE) if "costs" not in q.claim.sentence]
    train = Trainer()
    decider(questions=questions).decide(train)
    assert Counter(row for row, _ in train.trained) == dict.fromkeys(["k3-plain", "k13-plain"], 5) | dict.fromkeys(
        ["k3-shortcut", "k13-shortcut"], 3
    )


def test_the_decision_that_is_likely_cheapest_comes_first():
    gains = {
        "k3-shortcut": (60, 60, 60),
        "k13-shortcut": (62, 66, 64),
        "k3-plain": (60, 60, 60),
        "k13-plain": (59, 55, 56),
    }
    for each in runs_of(0, 1, 2):
        slow = 100.0 if "plain" in each.row.key else 1.0
        record(each, float(gains[each.row.key][each.seed]), seconds=slow)
    steps = decider("guideline2", most=60).steps()
    likely = {step.question.claim.sentence: (step.more, step.seconds) for step in steps}
    assert all(more for more, _ in likely.values())
    assert [seconds for _, seconds in likely.values()] == sorted(seconds for _, seconds in likely.values())
    more, seconds = likely["with shortcuts, 13×13 is better than 3×3"]
    assert seconds == more * (1 + 1)
    more, seconds = likely["without shortcuts, 13×13 is worse than 3×3"]
    assert seconds == more * (100 + 100)
    few = decider("guideline2", most=3 + min(more for more, _ in likely.values())).steps()
    assert [step.more is None for step in few] == sorted(step.more is None for step in few)
    assert few[-1].more is None


def test_seeds_of_another_processor_are_passed_over_and_do_not_count():
    for each in runs_of(0, 1, 2):
        record(each, wobble(each), hardware="Another, 8 threads")
    train, said = Trainer(), []
    there = decider("guideline2", most=3, said=said)
    there.announce()
    assert "not measured here" in said[0]
    there.decide(train)
    assert sorted({seed for _, seed in train.trained}) == [3, 4, 5]


def test_a_seed_that_is_half_there_is_completed_first():
    first, *_ = runs_of(0)
    record(first, 50.0)
    steps = decider("guideline2").steps()
    assert {step.seed for step in steps} == {0}
    assert all(first.row.key not in {each.row.key for each in step.runs} for step in steps)


def test_runs_that_fail_count_as_seeds():
    train = Trainer(status="failed")
    decider("guideline2", most=4).decide(train)
    assert Counter(seed for _, seed in train.trained) == dict.fromkeys(range(4), 4)


def test_seeds_that_others_hold_are_left_to_them_and_what_cannot_be_trained_is_given_up():
    asked = []
    decider("guideline2", most=3).decide(lambda runs: asked.append(runs[0].seed) or True)
    assert asked == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    asked.clear()
    decider("guideline2", most=3).decide(lambda runs: asked.append(runs[0].seed) and False)
    assert asked == [0, 0, 0]


def test_what_it_may_cost_is_said_first_and_the_budget_is_kept():
    for each in runs_of(0, 1, 2):
        record(each, wobble(each), seconds=30.0)
    said = []
    there = decider("guideline2", budget=50.0, said=said)
    there.announce()
    assert said[-2] == "2 claims are open; expected: 8 runs, about 4 min; 2 of them may stay undecided"
    assert said[-1] == "at most 5 seeds a claim and 50 s; to train all of them: 8 runs, about 4 min"
    there.decide(lambda _: pytest.fail("two rows take a minute"))
    assert re.search(r"the budget of 50 s ends here: \d+ s are spent, and seed 3 of .* may take 60 s", said[-1])


def test_estimates_are_corrected_by_what_they_come_to_here(monkeypatch):
    for each in runs_of(0):
        record(each, 50.0, seconds=1000.0)
    there = decider("guideline2", budget=3000.0)
    train = Trainer(seconds=1000.0)
    there.decide(train)
    assert len({seed for _, seed in train.trained}) == 4, "they take no time"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("10h", 36000), ("2d", 172800), ("1.5h", 5400), ("20", 20)]
)
def test_budgets_are_times(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--budget", "10h"], "--budget goes with --until-decided"),
        (["--max-seeds", "4"], "--max-seeds goes with --until-decided"),
        (["--until-decided", "--seeds", "3"], "--until-decided takes no --seeds: claims say what to train"),
        (["--until-decided", "--from-scratch"], "--until-decided takes no --from-scratch"),
        (["--until-decided", "--devices", "2"], "--until-decided trains each run on one device: leave out --devices"),
        (["--jobs", "2", "--num-nodes", "2"], "--jobs trains each run on one device: leave out --devices"),
        (["--jobs", "none"], "'none' is no whole number above 0"),
        (["--until-decided", "--budget", "ten"], "'ten' is no time: write 90m, 10h, 2d or a number of seconds"),
        (["--until-decided", "--budget", "0h"], "'0h' is no time"),
        (["--until-decided", "--max-seeds", "0"], "'0' is no whole number above 0"),
    ],
)
@pytest.mark.parametrize("main", [lambda flags: run.main(["guideline2", *flags]), reproduce.main])
def test_flags_that_do_not_go_together_get_one_sentence(main, flags, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_a_table_without_such_claims_is_one_sentence(capsys):
    assert run.main(["guideline1", "--until-decided", "--scale", "smoke", "--accelerator", "cpu"]) == 2
    assert "there is no claim here that seeds can decide: none is about trained nets." in capsys.readouterr().err


def test_claims_that_cannot_be_trained_for_here_are_named(capsys, monkeypatch):
    lonely = Ablation(
        "lonely", "", "", "Table 0", mobilenetv2_100ep, (TOP1,), (Row("k4", "mobilenetv2_lk", kernel_size=4),)
    )
    lonely.claim("four is more than fifty")(lambda top1: top1["k4"] - 50)
    monkeypatch.setattr("ablations.commands.run.get_ablation", lambda _: lonely)
    monkeypatch.setattr("ablations.commands.deciding.paper_values", lambda _: {"top1": {}})
    assert run.main(["lonely", "--until-decided", "--scale", "smoke", "--accelerator", "cpu"]) == 2
    output = capsys.readouterr()
    assert output.out.startswith("skipped: four is more than fifty: ")
    assert "there is no claim here that seeds can decide: " in output.err


def test_a_dry_run_says_what_is_open_and_leaves_nothing(capsys):
    assert run.main(["guideline2", "--until-decided", "--dry-run", "--scale", "smoke", "--accelerator", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "3 claims are open; expected: 12 runs, time unknown; 3 of them have fewer than 3 seeds, and may" in told
    assert not Path("runs").exists()


def test_a_table_is_trained_until_decided(capsys):
    command = ["guideline2", "--until-decided", "--max-seeds", "4", "--scale", "smoke", "--accelerator", "cpu"]
    assert run.main(command) == 0
    told = capsys.readouterr().out
    assert re.search(r"seed 0 of .*: \d+ s spent\n  Table 2: ", told)
    assert "written to runs/smoke/guideline2/table.md" in told
    results = Results(guideline2, read_records(FOLDER / "guideline2/runs"))
    (setting,) = results.settings("train")
    assert setting.hardware == HERE
    assert 3 <= len(results.seeds(setting)) <= 4
    assert run.main(command) == 0
    assert "no claim is open that has fewer than 4 seeds: nothing to add" in capsys.readouterr().out


def test_all_tables_are_decided_one_after_another_and_what_fails_stops_no_other(capsys, monkeypatch):
    def execute(runs, folder, machine, render):
        if runs[0].ablation.name == "table11":
            raise RuntimeError("out of memory")
        Trainer()(runs)

    monkeypatch.setattr(scheduler, "execute", execute)
    here = ["--scale", "smoke", "--accelerator", "cpu", "--until-decided", "--max-seeds", "3", "--budget", "10h"]
    assert reproduce.main([*here, "--only", "guideline2", "table11"]) == 2
    output = capsys.readouterr()
    assert "failed: table11: RuntimeError: out of memory" in output.err
    assert "measured now: 12" in output.out
    assert re.search(r"Table 2: with shortcuts, 13×13 is better than 3×3: holds \(3 seeds\)", output.out)


def test_stale_records_do_not_count(monkeypatch):
    for each in runs_of(0):
        record(each, 50.0)
    scale = get_scale("smoke", guideline2)
    recipe = {"mobilenetv2": {**scale.recipe["mobilenetv2"], "epochs": 2}}
    monkeypatch.setitem(guideline2.__dict__, "scales", {"smoke": replace(scale, recipe=recipe)})
    assert {step.seed for step in decider("guideline2").steps()} == {1}
