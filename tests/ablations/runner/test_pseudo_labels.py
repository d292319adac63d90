"""Rows under other supervision: what they train on, that they repeat themselves, and that they can be interrupted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tqdm import tqdm
from unplugged import UnpluggedBar, UnpluggedError

from ablations import run as runner
from ablations.records.record import read_record
from ablations.registry import all_ablations
from ablations.runner.machine import Machine
from ablations.runner.runs import TASK, Run
from ablations.runner.scheduler import Scheduler
from ablations.runner.train import train
from ablations.scales import SMOKE
from ablations.spec import Supervision
from ablations.tables.appendix_a import appendix_a
from ablations.tables.table6 import table6
from replk_lightning.data.label_shards import read_labels
from replk_lightning.data.pools import labels_of, stratified
from replk_lightning.pseudo_label import load_teacher

CPU = Machine(accelerator="cpu")
SHARE = 0.1


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_of(key, epochs=1, seed=5):
    (row,) = appendix_a.select([key])
    recipe = {"replknet": {**SMOKE.recipe["replknet"], "epochs": epochs, "batch_size": 16}}
    return Run(appendix_a, row, replace(SMOKE, recipe=recipe), "generated", seed)


def trained(*runs, bar=None):
    """The records of `runs`, after what they need."""
    told = []
    Scheduler(CPU, bar or tqdm(disable=True), lambda run, record: told.append(record)).work(runs)
    return told


def test_the_ablation_runs_and_all_rows_end_in_one_column(capsys):
    assert runner.main(["appendix_a", "--scale", "smoke", "--accelerator", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "5 runs, 0 of them recorded already" in out
    assert out.count("top-1 (%), ours: generated") == 1
    records = {path.name.split(".")[0]: read_record(path) for path in Path("runs/smoke/appendix_a/runs").glob("*.json")}
    assert set(records) == {"tenth", "pseudo", "all", "tenth-reparam", "all-reparam"}
    assert records["tenth"].supervision == {"labelled": SHARE, "teacher": None}
    assert records["pseudo"].supervision == {"labelled": SHARE, "teacher": "tenth"}
    assert 0 <= records["pseudo"].metrics["pseudo_top1"] <= 100
    assert {record.data_fingerprint for record in records.values()} == {records["tenth"].data_fingerprint}
    left = [path.suffix for path in Path("runs/appendix_a").rglob("*")]
    assert set(left) <= {".lock"}  # neither checkpoints nor labels stay behind
    assert runner.main(["appendix_a", "--scale", "smoke", "--accelerator", "cpu"]) == 0
    assert "5 runs, 5 of them recorded already" in capsys.readouterr().out


def test_a_record_under_other_supervision_is_not_taken_for_this_one(capsys, monkeypatch):
    command = ["appendix_a", "--scale", "smoke", "--accelerator", "cpu", "--rows", "tenth"]
    assert runner.main(command) == 0
    monkeypatch.setattr(appendix_a.rows[0], "supervision", Supervision(0.5))
    assert runner.main(command) == 2
    assert "another recipe, model or labels" in capsys.readouterr().err


def test_a_row_sees_the_labels_it_says_and_an_epoch_is_as_long_as_the_sets():
    run = run_of("tenth")
    data = run.make_data()
    mixed = run.make_training_data(data)
    labels = labels_of(data)
    chosen = stratified(labels, SHARE)
    assert mixed.splits.train.sizes == [len(chosen)] == [8]  # two gratings of each class
    drawn = torch.cat([targets[TASK].classes[:, 0] for _, targets in mixed.train_dataloader()])
    assert len(drawn) == mixed.train_size == data.train_size == 64
    assert torch.equal(drawn.bincount(), torch.full((4,), 16))
    assert run_of("all").make_training_data(data).splits.train.sizes == [64]


def test_a_taught_row_gets_the_teachers_labels_where_people_were_not_asked(asked):
    run, teacher = run_of("pseudo"), run_of("tenth")
    (record,) = trained(run)
    assert asked == [("tenth", run.seed), ("pseudo", run.seed)]
    net = load_teacher(f"{TASK}={teacher.weights}")
    data = run.make_data()
    targets = read_labels(run.labels).targets[TASK]
    labels, kept = labels_of(data), stratified(labels_of(data), SHARE)
    assert targets.human.nonzero().flatten().tolist() == kept.tolist()
    assert torch.equal(targets.classes[kept, 0].long(), labels[kept])
    still = data.at_size(data.image_size)
    still.augment = False
    rest = (~targets.human).nonzero().flatten()
    wanted = net.probabilities(still.splits.train.__getitems__(rest.tolist())[0])
    assert torch.allclose(targets.rows(rest).dense(4), wanted, atol=1e-3)
    right = (wanted.argmax(1) == labels[rest]).double().mean()
    assert record.metrics["pseudo_top1"] == pytest.approx(100 * right.item(), abs=1e-3)
    assert not teacher.folder.exists()
    assert run.make_training_data(data).splits.train.sizes == [64]
    teacher.weights.unlink()
    trained(run)
    assert asked[2:] == [("pseudo", run.seed)], "its labels are there"


def weights(run):
    return torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"]


def test_an_interrupted_taught_run_ends_with_the_weights_of_an_unbroken_one(monkeypatch):
    run = run_of("pseudo", epochs=3)
    (unbroken,) = trained(run)
    expected = weights(run)
    teacher = run_of("tenth", epochs=3)
    content = teacher.weights.read_bytes()
    monkeypatch.setattr("ablations.runner.runs.WORK", Path("again"))
    teacher.weights.parent.mkdir(parents=True)
    teacher.weights.write_bytes(content)  # so that it is the pupil's epochs that are counted
    with pytest.raises(UnpluggedError):
        trained(run, bar=UnpluggedBar(total=3))
    (resumed,) = trained(run)
    assert resumed.metrics == unbroken.metrics
    actual = weights(run)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_pre_training_and_fine_tuning_are_in_the_dry_run(capsys):
    arguments = ["appendix_a", "--scale", "paper", "--data", "generated", "--dry-run"]
    assert runner.main(arguments) == 0
    out = capsys.readouterr().out
    assert "labels  people's for 10% of the images; for the rest, soft ones of the row 'tenth'" in out
    pretraining = next(line for line in out.splitlines() if "name=xl_semi_supervised" in line)
    for field in (
        "epochs=15",
        "batch_size=2048",
        "lr=0.0015",
        "drop_path=0.2",
        "mean=(0.5, 0.5, 0.5)",
        "std=(0.5, 0.5",
    ):
        assert field in pretraining
    assert "mixup=" not in pretraining
    assert "cutmix=" not in pretraining
    finetuning = next(line for line in out.splitlines() if "name=xl_finetune_320" in line)
    for field in ("resolution=320", "epochs=30", "lr=0.0001", "layer_decay=0.4", "decay_by_stage=True"):
        assert field in finetuning


def test_the_fine_tuning_needs_weights_and_takes_a_pre_trainings(capsys):
    arguments = ["appendix_a", "--scale", "smoke", "--accelerator", "cpu", "--rows"]
    assert runner.main([*arguments, "finetuned"]) == 0  # at scale paper only
    assert "0 runs" in capsys.readouterr().out
    run = run_of("all")
    train(run, CPU, tqdm(disable=True))
    pretrained = weights(run)
    tuned = replace(run, row=appendix_a.select(["finetuned"])[0], init=str(run.folder / "last.ckpt"))
    task = tuned.make_task(run.make_data())
    fresh = task.model.head.weight.clone()
    task.setup("fit")
    assert torch.equal(task.model.stem[0][0].weight, pretrained["model.stem.0.conv.weight"])
    assert torch.equal(task.model.head.weight, fresh)


def test_appendices_come_after_tables_and_figures_and_additions_last():
    names = list(all_ablations())
    assert names[-4:] == ["appendix_a", "distance", "since", "since_shape"]
    assert names.index(table6.name) < names.index("figure1") < names.index("appendix_a")
    assert appendix_a.source == "Appendix A"
