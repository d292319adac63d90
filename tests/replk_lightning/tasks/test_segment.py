from itertools import pairwise

import lightning as L
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from replk_lightning.data.segmentation import IGNORED
from replk_lightning.models.segmenters import Logits
from replk_lightning.models.weights import CheckpointError
from replk_lightning.recipes import RecipeError
from replk_lightning.tasks.base import NonFiniteLossError
from replk_lightning.tasks.optim import warmup_poly
from replk_lightning.tasks.segment import SegmentTask, pixel_cross_entropy, slide

TINY = {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1)}
SHORT = {
    "iterations": 0, "epochs": 1, "batch_size": 4, "gpus": 1, "warmup_iterations": 5, "drop_path": 0.0, "channels": 16,
    "auxiliary_channels": 8, "head_dropout": 0.0, "crop": (32, 32), "resize": (32, 32),
}  # fmt: skip
K = 3


def tiny_task(num_classes=K, init=None, in_chans=3, **overrides):
    torch.manual_seed(0)
    return SegmentTask(
        "replknet_3", "upernet_ade20k_80k", num_classes, in_chans, init, TINY, recipe_overrides={**SHORT, **overrides}
    )


def scene(label, left, top):
    """A dark picture with one bright rectangle of 12 × 16 pixels, its class one more than the bright channel."""
    image, labels = torch.zeros(3, 32, 32), torch.zeros(32, 32, dtype=torch.long)
    image[label - 1, top : top + 12, left : left + 16] = 2
    labels[top : top + 12, left : left + 16] = label
    labels[:2] = IGNORED
    return image, labels


SCENES = [scene(1, 4, 8), scene(2, 12, 16), scene(2, 0, 20), scene(1, 16, 4)]


class FewScenes(L.LightningDataModule):
    batch_size = 4

    def __init__(self, repeats):
        super().__init__()
        self.repeats = repeats

    def train_dataloader(self):
        return DataLoader(SCENES * self.repeats, batch_size=4)

    def val_dataloader(self):
        return DataLoader(SCENES, batch_size=1)


def trainer(folder, **options):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1, default_root_dir=folder,
        max_epochs=1, **options
    )  # fmt: skip


def fit(task, folder, repeats=1, **options):
    run = trainer(folder, **options)
    run.fit(task, FewScenes(repeats))
    return run


def test_a_few_scenes_are_learned_by_heart(tmp_path):
    task = tiny_task(lr=1e-2)
    images, labels = next(iter(DataLoader(SCENES, batch_size=4)))
    before = pixel_cross_entropy(task.train().model(images).main, labels)
    logged = fit(task, tmp_path, 100).callback_metrics
    assert pixel_cross_entropy(task.train().model(images).main, labels) < 0.1 * before
    assert logged["val_miou"] > 70  # of one class everywhere: 25
    found = task.eval().predict_step((images, labels), 0)
    assert found.shape == labels.shape
    assert (found == labels)[labels != IGNORED].float().mean() > 0.9


def test_the_auxiliary_loss_has_the_recipes_weight(tmp_path):
    batch = next(iter(DataLoader(SCENES, batch_size=4)))
    losses = {}
    for weight in (0.0, 0.4, 1.0):
        task = tiny_task(auxiliary_weight=weight)
        task.log_training_loss = lambda loss, size: None
        losses[weight] = task.train().training_step(batch, 0).item()
    assert losses[0.4] - losses[0.0] == pytest.approx(0.4 * (losses[1.0] - losses[0.0]), rel=1e-4)
    assert losses[1.0] - losses[0.0] > 0.1


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteLossError, match="loss became NaN or infinite"):
        fit(tiny_task(lr=1e30), tmp_path, 6)


def test_a_loss_that_nobody_looked_at_stops_the_run_before_validation(tmp_path):
    task = tiny_task()
    task._finite = torch.zeros((), dtype=torch.bool)
    with pytest.raises(NonFiniteLossError):
        fit(task, tmp_path)


# Windows


def starts(length, window):
    """Multiples of two thirds of the window until one reaches the end; that one is moved back to it."""
    if length <= window:
        return [0]
    found, step = [], round(window * 2 / 3)
    while not found or found[-1] + window < length:
        found.append(min(len(found) * step, length - window))
    return found


def mean_of_windows(predict, images, window):
    """Pixel by pixel: every window is asked, and those that see the pixel are averaged."""
    height, width = images.shape[-2:]
    windows = [(top, left) for top in starts(height, window[0]) for left in starts(width, window[1])]
    found = {
        (top, left): predict(images[:, :, top : top + window[0], left : left + window[1]]) for top, left in windows
    }
    rows = []
    for y in range(height):
        pixels = []
        for x in range(width):
            seen = [
                found[top, left][:, :, y - top, x - left]
                for top, left in windows
                if top <= y < top + window[0] and left <= x < left + window[1]
            ]
            pixels.append(sum(seen) / len(seen))
        rows.append(torch.stack(pixels, dim=-1))
    return torch.stack(rows, dim=-2)


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((12, 12), (12, 12)),
        ((13, 20), (12, 12)),
        ((20, 36), (12, 12)),
        ((28, 21), (12, 9)),
        ((7, 30), (12, 10)),
        ((5, 6), (12, 12)),
        ((9, 9), (1, 2)),
    ],
)
def test_windows_are_averaged(size, window):
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def predict(part):
        # what a window says of a pixel depends on all that the window sees
        return torch.cat([part * part.mean((-2, -1), keepdim=True), part.cumsum(-1), part.cumsum(-2)[:, :1]], dim=1)

    found = slide(predict, images, window)
    assert found.shape == (2, 7, *size)
    assert torch.allclose(found, mean_of_windows(predict, images, window), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", range(1, 60))
def test_windows_cover_a_side_with_enough_overlap(length):
    asked = []
    slide(
        lambda part: asked.append(part[0, 0, 0].tolist()) or part,
        torch.arange(length * 1.0).expand(1, 1, 1, -1),
        (1, 9),
    )
    assert [pixels[0] for pixels in asked] == starts(length, 9)
    assert asked[0][0] == 0
    assert asked[-1][-1] == length - 1
    assert all(len(pixels) == min(9, length) for pixels in asked)
    assert all(len({*one} & {*next_}) >= 3 for one, next_ in pairwise(asked))


def test_a_recipe_may_predict_in_windows():
    whole, slid = tiny_task().eval(), tiny_task(evaluation="slide").eval()
    images = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(slid(images[..., :32]), whole(images[..., :32]))
        left, right = (whole.model(images[..., at : at + 32]).main for at in (0, 16))
        expected = torch.cat([left[..., :16], (left[..., 16:] + right[..., :16]) / 2, right[..., 16:]], dim=-1)
        assert torch.allclose(slid(images), expected.softmax(1), atol=1e-6)
        assert not torch.allclose(slid(images), whole(images), atol=1e-4)


# Losses and measures


def test_the_loss_is_the_mean_over_pixels_that_count():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, K, 6, 5, generator=random, requires_grad=True)
    labels = torch.randint(K, (2, 6, 5), generator=random)
    labels[torch.rand(2, 6, 5, generator=random) < 0.3] = IGNORED
    loss = pixel_cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels, ignore_index=IGNORED).item(), rel=1e-6)
    loss.backward()
    assert (logits.grad.abs().sum(1) > 0).equal(labels != IGNORED)


def test_the_loss_is_zero_where_nothing_counts():
    logits = torch.randn(2, K, 4, 4, requires_grad=True)
    loss = pixel_cross_entropy(logits, torch.full((2, 4, 4), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


class Echo(nn.Module):
    """A segmenter whose images are its logits."""

    def forward(self, images):
        return Logits(images, None)


def echo_task(num_classes, **overrides):
    task = tiny_task(num_classes, in_chans=num_classes, **overrides)
    task.model = Echo()
    return task


def mean_iou(predictions, labels, num_classes):
    """In percent, over the classes that are predicted or there, in the pixels that count of all images together."""
    shares = []
    for each in range(num_classes):
        both = either = 0
        for found, truth in zip(predictions, labels, strict=True):
            counts = truth != IGNORED
            both += int(((found == each) & (truth == each) & counts).sum())
            either += int((((found == each) | (truth == each)) & counts).sum())
        if either:
            shares.append(both / either)
    return 100 * sum(shares) / len(shares)


def random_set(size=(9, 7), label_size=(9, 7), count=5, num_classes=6):
    """Logits that prefer the right class a little; class 4 is neither there nor predicted, class 5 only ignored."""
    random = torch.Generator().manual_seed(1)
    samples = []
    for number in range(count):
        logits = torch.randn(num_classes, *size, generator=random)
        logits[4:] = -20
        labels = torch.randint(min(number + 1, 4), label_size, generator=random)
        labels[torch.rand(label_size, generator=random) < 0.2] = IGNORED
        if size == label_size:
            logits.scatter_add_(0, labels.clamp(max=3)[None], torch.ones(1, *size))
            logits[5, labels == IGNORED] = 30
        samples.append((logits, labels))
    return samples


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_mean_iou_is_that_of_the_whole_set(tmp_path, batch_size):
    samples = random_set()
    task = echo_task(6)
    logged = trainer(tmp_path).validate(task, DataLoader(samples, batch_size=batch_size), verbose=False)[0]
    predictions, labels = [logits.argmax(0) for logits, _ in samples], [labels for _, labels in samples]
    assert any((found == 5).any() for found in predictions)
    assert logged["val_miou"] == pytest.approx(mean_iou(predictions, labels, 6), rel=1e-5)
    assert 10 < logged["val_miou"] < 90
    again = trainer(tmp_path).validate(task, DataLoader(samples[:2], batch_size=batch_size), verbose=False)[0]
    assert again["val_miou"] == pytest.approx(mean_iou(predictions[:2], labels[:2], 6), rel=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
def test_probabilities_are_brought_to_the_labels_size(tmp_path, aligned):
    samples, task = random_set(label_size=(21, 11)), echo_task(6, align_corners=aligned)
    logged = trainer(tmp_path).validate(task, DataLoader(samples, batch_size=1), verbose=False)[0]
    larger = [enlarged(logits[None].softmax(1), (21, 11), aligned)[0].argmax(0) for logits, _ in samples]
    assert logged["val_miou"] == pytest.approx(mean_iou(larger, [labels for _, labels in samples], 6), rel=1e-5)


def enlarged(maps, size, aligned):
    return F.interpolate(maps, size, mode="bilinear", align_corners=aligned)


def averaged_over_scales(task, images, ratios, aligned=False):
    """Mean probabilities of the image at every scale, and of its mirror image turned back."""
    height, width = images.shape[-2:]
    found = []
    for ratio in ratios:
        size = (round(ratio * height), round(ratio * width))
        scaled = F.interpolate(images, size, mode="bilinear", antialias=ratio < 1)
        for probabilities in (
            task.model(scaled).main.softmax(1),
            task.model(scaled.flip(3)).main.softmax(1).flip(3),
        ):
            assert probabilities.shape[-2:] == size
            found.append(enlarged(probabilities, (height, width), aligned))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("aligned", [False, True])
@torch.no_grad()
def test_scales_and_mirror_images_are_averaged(aligned):
    ratios = (0.5, 1.0, 1.75)
    task = tiny_task(multi_scale=ratios, align_corners=aligned).eval()
    for parameter in task.model.decode_head.parameters():
        parameter.normal_(std=0.3)
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found = task._multi_scale(images)
    assert torch.allclose(found, averaged_over_scales(task, images, ratios, aligned), atol=1e-5)
    assert not torch.allclose(found, averaged_over_scales(task, images, ratios, not aligned), atol=1e-4)
    assert torch.allclose(found.sum(1), torch.ones(2, 32, 48), atol=1e-5)
    assert torch.allclose(task._multi_scale(images.flip(3)), found.flip(3), atol=1e-5)
    assert not torch.allclose(task(images.flip(3)), task(images).flip(3), atol=1e-3)


def test_tests_log_one_scale_and_several(tmp_path):
    ratios, samples = (0.5, 2.0), random_set(size=(8, 12), label_size=(8, 12))
    task = echo_task(6, multi_scale=ratios)
    logged = trainer(tmp_path).test(task, DataLoader(samples, batch_size=1), verbose=False)[0]
    labels = [labels for _, labels in samples]
    assert logged["test_miou"] == pytest.approx(mean_iou([logits.argmax(0) for logits, _ in samples], labels, 6))
    averaged = [averaged_over_scales(task, logits[None], ratios)[0].argmax(0) for logits, _ in samples]
    assert logged["test_miou_ms"] == pytest.approx(mean_iou(averaged, labels, 6))
    assert logged["test_miou_ms"] != pytest.approx(logged["test_miou"])


@torch.no_grad()
def test_scaled_sides_suit_deeplabs_decoder():
    torch.manual_seed(0)
    options = {"recipe_overrides": {**SHORT, "multi_scale": (0.8, 1.1)}, "model_options": {"width": 0.1}}
    task = SegmentTask("mobilenetv2_lk", "deeplabv3plus_cityscapes_80k", K, **options).eval()
    assert task._multi_scale(torch.randn(1, 3, 40, 56)).shape == (1, K, 40, 56)
    assert [task.allowed(side) for side in (1.0, 32.0, 44.1, 61.6)] == [8, 32, 48, 64]


# Schedule and start


def test_the_schedule_warms_up_and_falls_by_a_power():
    assert [warmup_poly(step, 100, 4, 1.0, 0.0) for step in range(4)] == [0.25, 0.5, 0.75, 1]
    assert warmup_poly(4, 100, 4, 0.9, 0.01) == 1
    assert warmup_poly(52, 100, 4, 1.0, 0.0) == pytest.approx(0.5)
    assert warmup_poly(52, 100, 4, 0.9, 0.01) == pytest.approx(0.01 + 0.99 * 0.5**0.9)
    assert warmup_poly(100, 100, 4, 0.9, 0.01) == warmup_poly(120, 100, 4, 0.9, 0.01) == 0.01
    assert warmup_poly(0, 10, 0, 1.0, 0.0) == 1
    task = tiny_task(warmup_iterations=1500, power=0.9, min_lr=1e-4)
    assert task.share_of_peak(149, 80_000, 0.01) == pytest.approx(0.1)
    assert task.share_of_peak(40_750, 80_000, 0.01) == pytest.approx(0.01 + 0.99 * 0.5**0.9)
    assert task.share_of_peak(80_000, 80_000, 0.01) == pytest.approx(0.01)


def test_the_optimizer_follows_the_schedule(tmp_path):
    rates = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(tiny_task(lr=1e-3, warmup_iterations=2), tmp_path, 6, callbacks=[Watch()])
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_recipes_of_other_tasks_are_refused():
    with pytest.raises(RecipeError, match="replknet_120ep is no recipe of SegmentTask; choose one of deeplabv3plus"):
        SegmentTask(recipe="replknet_120ep")


def test_training_starts_from_a_classifiers_checkpoint(tmp_path):
    torch.manual_seed(3)
    classifier = timm.create_model("replknet_3", num_classes=7, **TINY)
    torch.save(classifier.state_dict(), tmp_path / "net.pth")
    task = tiny_task(init=str(tmp_path / "net.pth"))
    own, before = dict(task.model.backbone.net.model.named_parameters()), task.model.decode_head.state_dict()
    there = dict(classifier.named_parameters())
    assert not torch.equal(own["stem.0.conv.weight"], there["stem.0.conv.weight"])
    task.setup("fit")
    assert len(own) > 20
    assert all(torch.equal(parameter, there[name]) for name, parameter in own.items())
    assert all(torch.equal(each, before[name]) for name, each in task.model.decode_head.state_dict().items())
    tiny_task(init=str(tmp_path / "no.pth")).setup("validate")


def test_a_checkpoint_of_another_net_is_told(tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.pth")
    (tmp_path / "page.pth").write_text("<html>")
    for name in ("resnet.pth", "page.pth"):
        with pytest.raises(CheckpointError, match=name):
            tiny_task(init=str(tmp_path / name)).setup("fit")
