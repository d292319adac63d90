"""One optimizer step of every recipe of the paper that a row uses, with the true model at the true resolution.

`nox -s slow -- tests/ablations/tables/test_paper_step.py -s` prints seconds and memory. Pictures are random, of the
size and form that the recipe's data have; RepLKNets recompute their blocks in the backward pass to keep memory small. A
step that would not fit into the memory that is free now is skipped, with the sum.
"""

import gc
import time
import warnings
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import Dataset

from ablations.registry import all_ablations
from ablations.runner.plan import plan
from ablations.runner.preflight import build_on_meta
from ablations.runner.runs import TASK
from ablations.runner.train import EXPECTED_WARNINGS
from ablations.scales import PAPER
from replk_lightning.data import ImageData
from replk_lightning.data.base import Splits
from replk_lightning.data.detection import as_lists
from replk_lightning.data.targets import Targets, soften, stack
from replk_lightning.models import RepLKNet
from replk_lightning.recipes import RECIPES, DetectRecipe, SegmentRecipe
from replk_lightning.tasks.multitask import MultiTaskClassify

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(f"ignore:{text}") for text in EXPECTED_WARNINGS)]

LONG_SIDE = 1333
GB = 1e9
ADAMW, SGD = 16, 12  # bytes a parameter: weight, gradient, and the optimizer's two or one
LIBRARIES = 1.0  # GB of a process that has imported everything
# GB on top, estimates; measured at most in all: 1.1 with MobileNetV2, 2.3 with RepLKNet-31B at 224², 2.8 at 384²
ACTIVATIONS = {
    "mobilenetv2_100ep": 0.5,
    "replknet_120ep": 0.5,
    "replknet_300ep": 0.5,
    "replknet_finetune_384": 1.0,
    "replknet_22k_finetune_224": 0.5,
    "replknet_22k_finetune_384": 1.0,
    "xl_semi_supervised": 1.0,
    "xl_finetune_320": 1.5,
    "deeplabv3plus_cityscapes_80k": 4.0,
    "upernet_ade20k_80k": 3.0,
    "upernet_ade20k_160k": 3.0,
    "upernet_ade20k_160k_640": 4.5,
    "upernet_ade20k_160k_xl": 6.0,
    "upernet_cityscapes_80k": 6.0,
    "fcos_2x": 4.0,
    "cascade_mask_rcnn_3x": 5.0,
    "cascade_mask_rcnn_3x_22k": 5.0,
    "cascade_mask_rcnn_3x_31l": 6.0,
    "cascade_mask_rcnn_3x_xl": 8.0,
}


def planned():
    """{recipe: the first run at scale paper that uses it}; detectors at their largest training size."""
    found = {}
    for ablation in all_ablations().values():
        for run in plan(ablation, ablation.rows, PAPER):
            if run.recipe.trains:
                found.setdefault(run.recipe.name, run)
    largest = replace(PAPER, transfer={head: {"train_sizes": (800,)} for head in ("fcos", "cascade_mask_rcnn")})
    return {name: replace(run, scale=largest) for name, run in found.items()}


RUNS = planned()


class Pictures(Dataset):
    """Random samples of the form of a recipe's data, two of them."""

    def __init__(self, recipe, num_classes):
        self.recipe, self.num_classes = recipe, num_classes
        random = torch.Generator().manual_seed(0)
        if isinstance(recipe, SegmentRecipe):
            self.images = torch.randn(2, 3, *recipe.crop, generator=random)
            self.labels = torch.randint(num_classes, (2, *recipe.crop), generator=random)
            self.labels[:, :9] = 255  # some pixels do not count
        else:
            size = (recipe.test_size, LONG_SIDE) if isinstance(recipe, DetectRecipe) else (recipe.resolution,) * 2
            self.images = torch.randn(2, 3, *size, generator=random)
            self.labels = torch.randint(num_classes, (2,), generator=random)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image, label = self.images[index], self.labels[index]
        if not isinstance(self.recipe, DetectRecipe):
            return image, label
        boxes = torch.tensor([[50.0, 60, 400, 300], [600, 200, 1200, 780], [20, 500, 120, 640]])
        masks = torch.zeros(len(boxes), *image.shape[-2:], dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        return image, {"boxes": boxes, "labels": torch.arange(3) * 7, "masks": masks}


def taught(samples):
    """Collate for `MultiTaskClassify`: the first image labelled by a person, the second by a teacher."""
    images, labels = zip(*samples, strict=True)
    soft = soften(torch.randn(1, 1000, generator=torch.Generator().manual_seed(1)).softmax(1), 10)
    return torch.stack(images), {TASK: stack([Targets.of_labels(labels[0][None]), soft])}


class Made(ImageData):
    """`Pictures` as a data module."""

    def __init__(self, recipe, batch_size, supervised):
        super().__init__("made", in_chans=3, image_size=recipe.resolution, batch_size=batch_size, num_workers=0)
        self.recipe = recipe
        self.collate = as_lists if isinstance(recipe, DetectRecipe) else taught if supervised else None

    def load(self):
        classes = getattr(self.recipe, "num_classes", 1000)
        pictures = Pictures(self.recipe, classes)
        return Splits(pictures, pictures, num_classes=classes, train_size=2, fingerprint=lambda: "0" * 16)


def needed(run, data):
    """GB that the step takes at its peak."""
    each = ADAMW if run.recipe.optimizer == "adamw" else SGD
    parameters = sum(p.numel() for p in build_on_meta(run, data).parameters())
    return LIBRARIES + each * parameters / GB + ACTIVATIONS[run.recipe.name]


def in_proc(file, field):
    """GB that a field of /proc's `file` says; NaN outside Linux."""
    path = Path("/proc") / file
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 / GB for line in lines if line.startswith(field)), float("nan"))


def reset_peak():
    """Forget the peak, on Linux."""
    gc.collect()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.parametrize("name", sorted(RUNS, key=ACTIVATIONS.__getitem__))
def test_one_step_at_the_true_size(name, tmp_path, monkeypatch):
    run = RUNS[name]
    monkeypatch.chdir(tmp_path)
    # two pictures where a batch norm sees one pixel a picture, or pictures are mixed; else one
    batch_size = 1 if isinstance(run.recipe, DetectRecipe) else 2
    data = Made(run.recipe, batch_size, supervised=run.row.supervision is not None)
    data.setup()  # before a net is built on the meta device, where its pictures would have no pixels
    wanted, free = needed(run, data), in_proc("meminfo", "MemAvailable")
    if wanted > free:  # never, where it is not known
        pytest.skip(f"{name} on {run.row.model} needs about {wanted:.1f} GB; {free:.1f} GB are free")
    reset_peak()
    start, cpu = time.monotonic(), time.process_time()
    task, before = one_step(run, data)
    stem, weight = next((n, p) for n, p in task.model.named_parameters() if p.ndim > 1)
    assert weight.grad.isfinite().all(), stem
    assert weight.grad.abs().max() > 0, stem  # the gradient has come down to the first layer
    moved = [not torch.equal(p, before[n]) for n, p in task.model.named_parameters() if n in before]
    assert any(moved)
    took = f"{time.monotonic() - start:.0f} s, {time.process_time() - cpu:.0f} s of them on a core"
    most = in_proc("self/status", "VmHWM")
    print(f"\n{name}: {run.row.model}, batch {batch_size}, {took}, {most:.1f} GB at most")


def one_step(run, data):
    """The task after one step of its recipe, and the smaller weights as they were before."""
    torch.manual_seed(0)
    task = run.make_task(data)
    assert isinstance(task, MultiTaskClassify) == (run.row.supervision is not None)
    for module in task.modules():
        if isinstance(module, RepLKNet):
            module.set_grad_checkpointing()
    before = {n: p.detach().clone() for n, p in task.model.named_parameters() if p.numel() < 1e6}
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer.fit(task, data)
    assert trainer.global_step == 1
    assert torch.isfinite(trainer.callback_metrics["train_loss"])
    return task, before


def test_every_recipe_that_a_row_uses_is_here():
    assert set(RUNS) == set(ACTIVATIONS) == set(RECIPES) - {"replknet_pretrain_22k"}
