import math
import re

import lightning as L
import pytest
import timm
import torch
from torch.utils.data import DataLoader

from replk_lightning.models.weights import CheckpointError, load_backbone
from replk_lightning.recipes import RecipeError
from replk_lightning.tasks.base import NonFiniteLossError
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.optim import warmup_multistep

TINY = {"dims": (8, 16, 32, 32), "depths": (1, 1, 1, 1)}
SHORT = {
    "epochs": 1, "batch_size": 2, "gpus": 1, "milestones": (), "warmup_steps": 0, "drop_path": 0.0, "channels": 32,
    "head_convs": 1, "fc": 32, "train_sizes": (64,), "test_size": 64, "max_size": 64, "random_crop": False,
    "proposals": (30, 15), "rois": 16, "detections": 10,
}  # fmt: skip
HEADS = ("fcos_2x", "cascade_mask_rcnn_3x")


def tiny_task(recipe, **overrides):
    torch.manual_seed(0)
    return DetectTask("replknet_3", recipe, 3, model_options=TINY, recipe_overrides={**SHORT, **overrides})


def scene(label, left, top):
    """A dark picture with one bright square of 24 pixels, its class the colour channel that is bright."""
    image = torch.zeros(3, 64, 64)
    image[label, top : top + 24, left : left + 24] = 2
    masks = (image[label] > 0).to(torch.uint8)[None]
    box = torch.tensor([[left, top, left + 24, top + 24]], dtype=torch.float32)
    return image, {"boxes": box, "labels": torch.tensor([label]), "masks": masks}


SCENES = [scene(0, 4, 8), scene(2, 32, 30)]


class TwoScenes(L.LightningDataModule):
    batch_size = 2

    def __init__(self, repeats):
        super().__init__()
        self.repeats = repeats

    def train_dataloader(self):
        return DataLoader(
            SCENES * self.repeats, batch_size=2, collate_fn=lambda samples: tuple(zip(*samples, strict=True))
        )

    def val_dataloader(self):
        return DataLoader(SCENES, batch_size=2, collate_fn=lambda samples: tuple(zip(*samples, strict=True)))


def fit(task, folder, repeats=1, **options):
    run = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1, default_root_dir=folder,
        max_epochs=1, **options
    )  # fmt: skip
    run.fit(task, TwoScenes(repeats))
    return run


@pytest.mark.parametrize(("recipe", "steps"), [("fcos_2x", 50), ("cascade_mask_rcnn_3x", 60)])
def test_two_scenes_are_learned_by_heart(tmp_path, recipe, steps):
    task = tiny_task(recipe, lr=3e-3, clip_norm=10.0, weight_decay=0.0)
    before = sum(task.train().model(*map(list, zip(*SCENES, strict=True))).values()).item()
    logged = fit(task, tmp_path, steps).callback_metrics
    assert logged["train_loss"] < 0.6 * before
    assert logged["val_box_ap50"] > 70
    if task.recipe.head == "cascade_mask_rcnn":
        assert logged["val_mask_ap50"] > 70
    found = task.eval().predict_step(tuple(map(list, zip(*SCENES, strict=True))), 0)
    for each, (image, target) in zip(found, SCENES, strict=True):
        best = each["scores"].argmax()
        assert each["labels"][best] == target["labels"][0]
        if "masks" in each:
            assert each["masks"].dtype == torch.uint8
            assert each["masks"].shape == (len(each["labels"]), *image.shape[1:])


@pytest.mark.parametrize("recipe", HEADS)
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, recipe):
    task = tiny_task(recipe, lr=1e30, clip_norm=None)
    with pytest.raises(NonFiniteLossError, match="loss became NaN or infinite"):
        fit(task, tmp_path, 3)


def test_a_loss_that_nobody_looked_at_stops_the_run_before_validation(tmp_path):
    task = tiny_task("fcos_2x")
    task._finite = torch.zeros((), dtype=torch.bool)
    with pytest.raises(NonFiniteLossError):
        fit(task, tmp_path)


def test_the_gradient_is_clipped_to_the_recipes_norm(tmp_path, monkeypatch):
    norms = []

    def measure(self, optimizer):
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in self.parameters() if p.grad is not None)))

    monkeypatch.setattr(DetectTask, "on_before_zero_grad", measure)
    fit(tiny_task("fcos_2x", clip_norm=0.01), tmp_path, 3)
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_the_schedule_warms_up_and_falls_at_the_milestones():
    task = tiny_task("fcos_2x", epochs=24, milestones=(16, 22), warmup_steps=500)
    assert task.share_of_peak(499, 24_000, 1.0) == pytest.approx(1 / 3)  # constant, as released
    assert task.share_of_peak(500, 24_000, 1.0) == task.share_of_peak(15_999, 24_000, 1.0) == 1
    assert task.share_of_peak(16_000, 24_000, 1.0) == pytest.approx(0.1)
    assert task.share_of_peak(22_000, 24_000, 1.0) == pytest.approx(0.01)
    assert warmup_multistep(0, (), 10, 0.001) == pytest.approx(0.001)
    assert warmup_multistep(5, (), 10, 0.0) == pytest.approx(0.5)


def test_recipes_of_other_tasks_are_refused():
    with pytest.raises(RecipeError, match="replknet_120ep is no recipe of DetectTask; choose one of fcos_2x"):
        DetectTask(recipe="replknet_120ep")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("replknet_3", TINY),
        ("replknet_xl", {**TINY, "kernel_sizes": (5, 5, 5, 3)}),
        ("mobilenetv2_lk", {"width": 0.1}),
        ("resnet10t", {}),
        ("convnext_atto", {"dims": (8, 8, 8, 8)}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1)}),
    ],
)
@pytest.mark.parametrize("container", ["flat", "model_ema", "lightning"])
def test_a_classifiers_checkpoint_starts_a_backbone(tmp_path, name, options, container):
    torch.manual_seed(0)
    classifier = timm.create_model(name, num_classes=7, **options).eval()
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = classifier.state_dict()
    if container == "lightning":
        state = {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3}
    torch.save({"model_ema": state} if container == "model_ema" else state, tmp_path / "net.pth")
    features = timm.create_model(name, features_only=True, **options).eval()
    assert load_backbone(features, tmp_path / "net.pth") is features
    sums = {float(each.detach().double().sum()) for each in classifier.parameters()}
    for key, parameter in features.named_parameters():
        if not re.match(r"model\.stages\.\d\.norm\.", key):  # XL's own for dense prediction
            assert float(parameter.detach().double().sum()) in sums, key


def test_a_checkpoint_of_another_net_is_told(tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.pth")
    features = timm.create_model("resnet18", features_only=True)
    before = features.conv1.weight.clone()
    with pytest.raises(CheckpointError, match="does not fit the feature extractor"):
        load_backbone(features, tmp_path / "resnet.pth")
    assert torch.equal(features.conv1.weight, before)


def test_training_starts_from_the_checkpoint(tmp_path):
    classifier = timm.create_model("replknet_3", num_classes=7, **TINY)
    torch.save(classifier.state_dict(), tmp_path / "net.pth")
    task = DetectTask(
        "replknet_3", "fcos_2x", 3, init=str(tmp_path / "net.pth"), model_options=TINY, recipe_overrides=SHORT
    )
    task.setup("fit")
    assert torch.equal(task.model.backbone.net.model.stem[0].conv.weight, classifier.stem[0].conv.weight)
    again = DetectTask(
        "replknet_3", "fcos_2x", 3, init=str(tmp_path / "no.pth"), model_options=TINY, recipe_overrides=SHORT
    )
    again.setup("validate")
