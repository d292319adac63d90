"""Two processes do together what one does; see two_processes.py for what they do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from filelock import FileLock
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ablations.registry import get_ablation
from ablations.runner.machine import Machine, check_machine
from ablations.runner.plan import plan
from ablations.runner.preflight import preflight, require
from ablations.scales import get_scale
from ablations.spec import SpecError
from replk_lightning.data.samplers import EvaluationShare, TrainShare, counts

ROOT = Path(__file__).resolve().parents[3]
PATHS = os.pathsep.join((str(ROOT), str(ROOT / "tests/ablations")))
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
ALONE = ("alone:curves", "alone:metrics")
TOGETHER = ("curves", "own_statistics", "resume", "metrics", "batch_norm", "carried_over", "not_a_number", "no_data",
            "different_runs", "callbacks")  # fmt: skip


class Outcome(SimpleNamespace):
    """What the scenarios left in `folder`."""

    def of(self, scenario, world=2):
        paths = [self.folder / f"{scenario}.{world}.{rank}.pt" for rank in range(world)]
        assert all(path.exists() for path in paths), self.said(scenario, world)
        return [torch.load(path, weights_only=False) for path in paths]

    def said(self, scenario, world=2):
        return [(self.folder / f"{scenario}.{world}.{rank}.txt").read_text() for rank in range(world)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "processes"
    script = Path(__file__).with_name("two_processes.py")
    with FileLock(folder.with_suffix(".lock")):  # once for all of pytest's processes
        if not folder.exists():
            subprocess.run([sys.executable, script, folder, *ALONE, *TOGETHER], env=ENVIRONMENT, check=True)
    return Outcome(folder=folder)


def test_two_processes_learn_as_one_does_with_the_same_total_batch(outcome):
    (alone,), pair = outcome.of("curves", 1), outcome.of("curves")
    for step, (labels, sums) in enumerate(alone["batches"]):
        shares = [process["batches"][step] for process in pair]
        assert [label for both in zip(*(share[0] for share in shares), strict=True) for label in both] == labels
        assert [total for both in zip(*(share[1] for share in shares), strict=True) for total in both] == sums
    mean = torch.tensor([process["losses"] for process in pair], dtype=torch.float64).mean(0)
    assert len(mean) == len(alone["losses"]) == 8
    torch.testing.assert_close(mean, torch.tensor(alone["losses"], dtype=torch.float64), rtol=1e-9, atol=0)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(pair[0]["weights"][name], weight, rtol=1e-7, atol=1e-9, msg=name)
    assert pair[0]["metrics"] == pytest.approx(alone["metrics"], abs=1.01e-4)  # records round to four digits
    assert pair[0]["hardware"] == f"2 × {alone['hardware']}"


def test_statistics_of_its_own_lead_each_process_elsewhere(outcome):
    (alone,), pair = outcome.of("curves", 1), outcome.of("own_statistics")
    mean = torch.tensor([process["losses"] for process in pair]).mean(0)
    assert (mean - torch.tensor(alone["losses"])).abs().max() > 1e-3


def test_synchronised_batch_norm_is_that_of_the_whole_batch_however_it_is_shared(outcome):
    for worst in outcome.of("batch_norm"):
        assert set(worst) == {"plain", "timm", "all"}
        assert max(worst.values()) < 1e-12, worst


def test_no_image_counts_twice_in_any_metric(outcome):
    (alone,), pair = outcome.of("metrics", 1), outcome.of("metrics")
    names = {"val_top1", "val_top5", "val_loss", "val_miou", "val_box_ap", "val_box_ap50", "val_mask_ap"}
    assert names <= set(alone)
    for process in pair:
        for name in (name for name in alone if name.startswith("val_")):
            assert process[name] == pytest.approx(alone[name], rel=1e-5 if name == "val_loss" else 1e-9), name
    assert alone["val_loss"] > 3  # an image's loss is not another's, so weights count
    assert all(0 < alone[name] < 100 for name in ("val_top1", "val_miou", "val_box_ap", "val_mask_ap"))
    # the second process has one batch less of its own, and takes a step all the same
    assert [process["steps_generated"] for process in pair] == [[True] * 3, [True, True, False]]
    assert [process["steps_tensors"] for process in pair] == [[True] * 3, [True, True, False]]
    assert [process["steps_boxed"] for process in pair] == [[True] * 2, [True, False]]


def test_the_public_callbacks_change_nothing_and_rank_0_draws(outcome):
    for process in outcome.of("callbacks"):
        without, with_them = process["without"], process["with"]
        assert all(torch.equal(with_them["weights"][name], weight) for name, weight in without["weights"].items())
        assert with_them["val_loss"] == pytest.approx(without["val_loss"], rel=1e-4)  # merged of the same statistics
        assert (without["norms"], with_them["norms"]) == (0, 9)
    drawn = (outcome.folder / "callbacks.2").rglob("erf/*.png")
    assert sorted(path.name for path in drawn) == ["epoch=0-step=2.png", "epoch=1-step=4.png"]


def test_processes_draw_differently_and_go_on_exactly(outcome):
    first, second = outcome.of("resume")
    moved = [process["unbroken"]["batches"] for process in (first, second)]
    assert moved[0] != moved[1]
    for process in (first, second):
        assert process["resumed"]["batches"] == process["unbroken"]["batches"][-8:]
    unbroken, resumed = first["unbroken"]["weights"], first["resumed"]["weights"]
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


def test_nets_are_carried_over_once_and_their_records_written_once(outcome):
    assert [process["codes"] for process in outcome.of("carried_over")] == [[0, 0], [0, 0]]
    folder = outcome.folder / "carried_over.2"
    records = [json.loads(path.read_text()) for path in folder.glob("results/*/runs/*seed*.json")]
    assert sorted((record["ablation"], record["kind"]) for record in records) == [
        ("guideline3", "train"),
        ("guideline3", "transfer"),
        ("table9", "transfer"),
    ]
    assert all(record["hardware"].startswith("2 × ") for record in records)
    first, second = outcome.said("carried_over")
    # four trainings: two nets, and each carried over
    assert first.count("(linear scaling)") == 4
    assert "linear scaling" not in second
    assert "written to" not in second


def test_a_loss_that_is_no_number_in_one_process_ends_both_and_is_recorded(outcome):
    first, _ = outcome.of("not_a_number")
    assert first["code"] == 2
    assert "k3-shortcut, seed 0: failed, the loss became NaN" in outcome.said("not_a_number")[0]
    (path,) = (outcome.folder / "not_a_number.2").glob("results/guideline2/runs/*seed*.json")
    assert json.loads(path.read_text())["status"] == "failed"


def test_an_error_in_one_process_ends_both_with_a_sentence(outcome):
    assert [process["code"] for process in outcome.of("no_data")] == [2, 2]
    first, second = outcome.said("no_data")
    assert "process 0 of 2: another process has ended; what it says is the reason." in first
    assert "process 1 of 2: The disk of this machine is gone: mount it again." in second
    assert "Traceback" not in first + second


def test_processes_that_would_train_different_runs_are_told_so(outcome):
    assert [process["code"] for process in outcome.of("different_runs")] == [2, 2]
    said = outcome.said("different_runs")
    assert all("process 1 k3-plain.smoke.generated.seed0.json" in text for text in said)
    assert "Traceback" not in "".join(said)


def test_torchrun_trains_a_row_once(tmp_path):
    torchrun = ["torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--standalone"]
    command = ["ablations.run", "guideline2", "--scale", "smoke", "--rows", "k3-shortcut", "--accelerator", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", *command, "--devices", "2", "--strategy", "ddp", "--sync-bn"],
        capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(linear scaling)") == done.stdout.count("written to") == 1
    (path,) = tmp_path.glob("runs/smoke/guideline2/runs/*seed*.json")
    record = json.loads(path.read_text())
    assert record["status"] == "done"
    assert record["hardware"].startswith("2 × ")


@pytest.fixture
def slurm(monkeypatch):
    place = {"JOB_ID": "1", "JOB_NAME": "train", "NTASKS": "8", "NTASKS_PER_NODE": "4", "PROCID": "5", "LOCALID": "1",
             "NODEID": "1", "NNODES": "2", "JOB_NODELIST": "node[1-2]"}  # fmt: skip
    for name, value in place.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(rank_zero_only, "rank", rank_zero_only.rank)  # set back afterwards


def test_slurm_says_which_process_this_is(slurm):
    machine = Machine("cpu", "4", num_nodes=2, strategy="ddp")
    check_machine(machine)
    assert rank_zero_only.rank == 5
    trainer = L.Trainer(**machine.trainer_options(), logger=False, enable_checkpointing=False)
    assert isinstance(trainer.strategy.cluster_environment, SLURMEnvironment)
    assert (trainer.world_size, trainer.global_rank, trainer.node_rank, trainer.local_rank) == (8, 5, 1, 1)
    assert not trainer.is_global_zero


def test_slurm_with_other_devices_than_tasks_is_told(slurm):
    with pytest.raises(SpecError, match=r"does not take these flags.*ntasks"):
        check_machine(Machine("cpu", "2", num_nodes=2, strategy="ddp"))


def test_fsdp_on_a_cpu_is_told_to_need_a_gpu():
    with pytest.raises(SpecError, match=r"does not take these flags.*`fsdp` requires a GPU"):
        check_machine(Machine("cpu", "2", strategy="fsdp"))


def planned(name, row):
    ablation = get_ablation(name)
    return plan(ablation, ablation.select([row]), get_scale("smoke", ablation))


def test_fsdp_is_refused_where_weights_have_to_be_whole(monkeypatch):
    monkeypatch.setattr("ablations.runner.preflight.check_machine", lambda _: None)  # which would ask for a GPU here
    require(preflight(planned("table11", "k9"), Machine(strategy="fsdp")))
    with pytest.raises(SpecError, match=r"row 'k3' cannot be trained with fsdp.*use ddp"):
        require(preflight(planned("guideline3", "k3"), Machine(strategy="fsdp")))


@pytest.mark.parametrize(
    ("size", "batch_size", "processes"), [(33, 8, 2), (32, 8, 2), (5, 1, 3), (1, 4, 3), (17, 4, 4)]
)
def test_shares_are_disjoint_complete_and_take_equally_many_steps(size, batch_size, processes, monkeypatch):
    seen, steps = [], set()
    for rank in range(processes):
        monkeypatch.setattr("replk_lightning.data.samplers.process", lambda rank=rank: (rank, processes))
        share = EvaluationShare(size, batch_size)
        loader = torch.utils.data.DataLoader(range(size), batch_size=batch_size, sampler=share)
        batches = [batch.tolist() for batch in loader]
        steps.add(len(batches))
        seen += [image for number, batch in enumerate(batches) if counts(loader, number) for image in batch]
    assert sorted(seen) == list(range(size))
    assert len(steps) == 1


def test_the_order_of_one_process_is_torchs_own():
    share, own = TrainShare(10), torch.utils.data.RandomSampler(range(10))
    torch.manual_seed(3)
    expected = list(own)
    torch.manual_seed(3)
    assert list(share) == expected


def test_the_shares_of_a_step_are_one_processes_batch(monkeypatch):
    torch.manual_seed(3)
    whole = list(TrainShare(11))
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda objects: None)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("replk_lightning.data.samplers.process", lambda rank=rank: (rank, 2))
        torch.manual_seed(3)
        shares.append(list(TrainShare(11)))
    assert [image for pair in zip(*shares, strict=True) for image in pair] == whole[:10]
