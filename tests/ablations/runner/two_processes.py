"""What test_processes.py asks of two processes and of one: a script, so that all are forked from what is imported once.

`python two_processes.py FOLDER SCENARIO…` runs each scenario in two processes over gloo, in the environment that
torchrun makes, or in one where it is called `alone:SCENARIO`, and leaves `FOLDER/SCENARIO.RANK.pt` with what it gives.
"""

import multiprocessing
import os
import random
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm
from unplugged import UnpluggedBar, UnpluggedError

from ablations.run import main
from ablations.runner.machine import Machine
from ablations.runner.runs import Run
from ablations.runner.train import train
from ablations.scales import SMOKE
from ablations.tables.guideline2 import guideline2
from replk_lightning.data import DataError, ImageData
from replk_lightning.data.base import Splits
from replk_lightning.data.detection import as_lists
from replk_lightning.data.generated import Generated
from replk_lightning.data.segmentation import IGNORED, SegmentationData
from replk_lightning.data.tensor_images import TensorImages
from replk_lightning.distributed import wait_for_all
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.segment import SegmentTask
from replk_lightning.trainer.callbacks import EffectiveReceptiveField, KernelNorms, MergeBeforeValidation
from replk_lightning.trainer.sync_batch_norm import SyncedBatchNorm

LIMIT = float(os.environ.get("SECONDS_FOR_ALL", 240))
"""Seconds until what hangs is ended."""
BATCH = 16
SEED = 5


def processes() -> int:
    return int(os.environ["WORLD_SIZE"])


def machine(sync_bn: bool = True, precision: str = "32-true") -> Machine:
    strategy = "ddp" if processes() > 1 else "auto"
    return Machine("cpu", str(processes()), 1, strategy, precision, sync_bn=sync_bn and processes() > 1)


class Still(Run):
    """On 70 and 33 pictures, which two processes cannot share evenly, and which nothing moves or drops: what is drawn
    for an image belongs to the process that draws it. In double precision, as this net multiplies the round-off of a
    step by a hundred and more in the next: in single precision it would leave itself if only a batch were permuted."""

    moving = False

    def make_data(self) -> ImageData:
        batch = self.recipe.batch_size // self.recipe.gpus
        return Generated(train_images=70, val_images=33, batch_size=batch, augment=self.moving)


class Moving(Still):
    moving = True


def run_of(kind: type[Still], epochs: int, ema: float | None = 0.9) -> Still:
    recipe = {"gpus": processes(), "epochs": epochs, "batch_size": BATCH, "lr": 0.005, "ema": ema}
    recipe |= {} if kind.moving else {"dropout": 0.0}
    scale = replace(SMOKE, recipe={"mobilenetv2": {**SMOKE.recipe["mobilenetv2"], **recipe}})
    return kind(guideline2, guideline2.rows[0], scale, "generated", SEED)


def trained(run: Still, sync_bn: bool = True, bar: tqdm | None = None) -> dict[str, object]:
    """Every step's loss and labels in this process, and what is left at the end."""
    losses, labels = [], []
    step, log = ClassifyTask.training_step, ClassifyTask.log_training_loss

    def looked_at(task, batch, number):
        labels.append((batch[1].tolist(), batch[0].sum((1, 2, 3)).tolist()))
        return step(task, batch, number)

    def noted(task, loss, size):
        losses.append(loss.item())
        log(task, loss, size)

    ClassifyTask.training_step, ClassifyTask.log_training_loss = looked_at, noted
    try:
        record = train(run, machine(sync_bn, "32-true" if run.moving else "64-true"), bar or tqdm(disable=True))
    finally:
        ClassifyTask.training_step, ClassifyTask.log_training_loss = step, log
    checkpoint = torch.load(run.folder / "last.ckpt", weights_only=True)
    found = {"losses": losses, "batches": labels, "metrics": record.metrics, "hardware": record.hardware}
    return found | {"weights": checkpoint["state_dict"]}


def curves():
    return trained(run_of(Still, epochs=2))


def own_statistics():
    return trained(run_of(Still, epochs=2), sync_bn=False)


def resume():
    run = run_of(Moving, epochs=3, ema=None)
    unbroken = trained(run)
    wait_for_all()  # both have read the checkpoint
    if rank_zero_only.rank == 0:
        (run.folder / "last.ckpt").unlink()
    wait_for_all()
    try:
        trained(run, bar=UnpluggedBar(total=3))
    except UnpluggedError:
        return {"unbroken": unbroken, "resumed": trained(run)}
    return {}


class Tensors(SegmentationData):
    def load(self):
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(5, 3, 32, 32, generator=generator)
        labels = torch.randint(0, 4, (5, 32, 32), generator=generator)
        labels[:, :2] = IGNORED
        held = TensorDataset(images, labels)
        return Splits(held, held, num_classes=4, train_size=5, fingerprint=lambda: "")


class Boxed(ImageData):
    collate = staticmethod(as_lists)

    def load(self):
        generator = torch.Generator().manual_seed(1)
        samples = []
        for number in range(5):
            corner = torch.randint(0, 16, (3, 2), generator=generator).float()
            boxes = torch.cat([corner, corner + 8 + 4 * torch.rand(3, 2, generator=generator)], 1)
            labels = torch.randint(0, 3, (3,), generator=generator)
            samples.append((torch.full((3, 32, 32), number / 8), target(boxes, labels)))
        return Splits(samples, samples, num_classes=3, train_size=5, fingerprint=lambda: "")


def target(boxes, labels):
    masks = torch.zeros(len(boxes), 32, 32, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return {"boxes": boxes, "labels": labels, "masks": masks}


class Guesses(nn.Module):
    """Detections that depend on the picture alone: its boxes, moved, with scores and now and then another class."""

    def __init__(self, samples):
        super().__init__()
        self.samples = samples

    def forward(self, images):
        return [self.guess(round(8 * image[0, 0, 0].item())) for image in images]

    def guess(self, number):
        generator = torch.Generator().manual_seed(number)
        boxes = self.samples[number][1]["boxes"]
        boxes = boxes + 3 * torch.rand(boxes.shape, generator=generator)
        labels = self.samples[number][1]["labels"].clone()
        labels[0] = number % 3
        found = target(boxes, labels)
        return {
            **found,
            "scores": torch.rand(len(boxes), generator=generator),
            "masks": found["masks"][:, None].float(),
        }


def metrics():
    """Each metric of nets that nobody trained, over sets that two processes cannot share evenly."""
    options = {"in_chans": 3, "image_size": 32, "num_workers": 0}
    torch.manual_seed(0)
    classify = ClassifyTask("mobilenetv2_lk", "mobilenetv2_100ep", num_classes=7, model_options={"width": 0.1})
    classify.model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 7))
    nn.init.normal_(classify.model[2].weight, std=10.0)  # so that one image's loss is far from another's
    masks = SegmentTask("mobilenetv2_lk", "deeplabv3plus_cityscapes_80k", 4, model_options={"width": 0.1})
    boxes = DetectTask("resnet18", "cascade_mask_rcnn_3x", 3, recipe_overrides={"channels": 8, "fc": 8})
    boxed = Boxed("boxed", batch_size=2, **options)
    boxes.model = Guesses(boxed.splits.val)
    found = {}
    for task, data in (
        (classify, Generated(num_classes=7, val_images=33, batch_size=8)),
        (masks, Tensors("tensors", batch_size=2, **options)),
        (boxes, boxed),
    ):
        trainer = L.Trainer(**machine().trainer_options(), logger=False, enable_progress_bar=False)
        steps = []
        counted = type(task).counted
        task.counted = lambda number, task=task, counted=counted, steps=steps: (
            steps.append(counted(task, number)) or steps[-1]
        )
        results = trainer.validate(task, data, verbose=False)[0]
        found |= {name: float(value) for name, value in results.items()} | {f"steps_{data.name}": steps}
    return found


def batch_norm():
    """Outputs, gradients and statistics of unequal shares of one batch, against nn.BatchNorm2d on the whole."""
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    whole, weights = torch.randn(5, 3, 4, 4).double() * 3 + 7, torch.randn(5, 3, 4, 4).double()
    share = slice(0, 1) if rank_zero_only.rank == 0 else slice(1, 5)
    torch.distributed.init_process_group("gloo")
    worst = {}
    for name, layer in (
        ("plain", nn.BatchNorm2d(3)),
        ("timm", BatchNormAct2d(3)),
        ("all", nn.BatchNorm2d(3, momentum=None)),
    ):
        alone, x = layer.double(), whole.clone().requires_grad_()
        nn.init.normal_(alone.weight)
        synced = SyncedBatchNorm(on_cpu=True).apply(nn.Sequential(type(layer)(3, momentum=layer.momentum).double()))
        synced[0].load_state_dict(alone.state_dict())
        part = whole[share].clone().requires_grad_()
        for _ in range(2):
            expected, actual = alone(x), synced(part)
        (expected * weights).sum().backward()
        (actual * weights[share]).sum().backward()
        gradient = synced[0].weight.grad.clone()
        torch.distributed.all_reduce(gradient)
        pairs = [(actual, expected[share]), (part.grad, x.grad[share]), (gradient, alone.weight.grad)]
        pairs += [(synced[0].running_mean, alone.running_mean), (synced[0].running_var, alone.running_var)]
        pairs += [(synced.eval()(part), alone.eval()(x)[share])]
        worst[name] = max((a - b).abs().max().item() for a, b in pairs)
    return worst


def callbacks():
    """A training without the public callbacks and one with them; batch norms know their own process's images alone."""
    found = {}
    for name, ours in {
        "without": [],
        "with": [EffectiveReceptiveField(images=2), KernelNorms(), MergeBeforeValidation()],
    }.items():
        L.seed_everything(SEED)
        options = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
        task = ClassifyTask("replknet_13", "mobilenetv2_100ep", 4, model_options=options)
        flags = {"max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False, "num_sanity_val_steps": 0}
        logger = CSVLogger(name, name=None, version="log")
        trainer = L.Trainer(**machine(sync_bn=False).trainer_options(), **flags, logger=logger, callbacks=ours)
        trainer.fit(task, Generated(train_images=32, val_images=16, batch_size=8))
        found[name] = {
            "weights": task.state_dict(),
            "val_loss": trainer.callback_metrics["val_loss"].item(),
            "norms": sum("kernel_norm/" in key for key in trainer.callback_metrics),
        }
    return found


def command(*words: str) -> int:
    more = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--sync-bn"]
    return main([*words, "--scale", "smoke", "--results", "results", *more])


def carried_over():
    return {"codes": [command("guideline3", "--rows", "k3"), command("table9", "--rows", "replknet31b-fcos")]}


def not_a_number():
    """In one of the two processes."""
    log = ClassifyTask.log_training_loss
    if rank_zero_only.rank == 1:
        ClassifyTask.log_training_loss = lambda task, loss, size: log(task, loss * torch.nan, size)
    return {"code": command("guideline2", "--rows", "k3-shortcut")}


def no_data():
    """In one of the two processes, in the midst of training."""

    def gone(self, indices):
        raise DataError("The disk of this machine is gone: mount it again.")

    if rank_zero_only.rank == 1:
        TensorImages.__getitems__ = gone
    return {"code": command("guideline2", "--rows", "k3-shortcut")}


def different_runs():
    row = ("k3-shortcut", "k3-plain")[rank_zero_only.rank]
    return {"code": command("guideline2", "--rows", row)}


def worker(scenario: str, rank: int, world: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    if world > 1:
        os.environ["TORCHELASTIC_RUN_ID"] = "test"
    rank_zero_only.rank = rank  # read from the environment at import otherwise
    place = folder / f"{scenario}.{world}"
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    log = os.open(folder / f"{scenario}.{world}.{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.save(globals()[scenario](), folder / f"{scenario}.{world}.{rank}.pt")


def free_port() -> int:
    """Below those that a system hands out itself, of which another scenario's connections could take it meanwhile."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run_all(folder: Path, scenarios: list[str]) -> None:
    context = multiprocessing.get_context("fork")
    started = []
    for scenario in scenarios:
        name, world = (scenario.removeprefix("alone:"), 1) if scenario.startswith("alone:") else (scenario, 2)
        port = free_port()
        started += [context.Process(target=worker, args=(name, rank, world, port, folder)) for rank in range(world)]
    for each in started:
        each.start()
    end = time.monotonic() + LIMIT
    for each in started:
        each.join(max(0, end - time.monotonic()))
        if each.is_alive():
            each.kill()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(Path(sys.argv[1]), sys.argv[2:])
