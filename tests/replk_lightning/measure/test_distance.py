import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from replk_lightning.data.segmentation import IGNORED
from replk_lightning.measure.distance import (
    DistanceBands,
    distance_to_outline,
    distance_to_outline_by_definition,
    miou,
    miou_by_distance,
)
from replk_lightning.models.segmenters import Logits
from replk_lightning.tasks.segment import SegmentTask

CLASSES = 4
TINY = {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1)}
EDGES = (0, 2, 4, 50)


class Echo(torch.nn.Module):
    """A segmenter whose images are its logits."""

    def forward(self, images):
        return Logits(images, None)


@pytest.fixture
def task():
    overrides = {"channels": 8, "auxiliary_channels": 8}
    made = SegmentTask("replknet_3", "upernet_ade20k_80k", CLASSES, CLASSES, None, TINY, recipe_overrides=overrides)
    made.model = Echo()
    return made


@pytest.fixture
def trainer(tmp_path):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip


def blobs(count=6, size=20):
    """Labels (N, H, W): three squares of other classes on class 0, and pixels that do not count."""
    random = torch.Generator().manual_seed(3)
    labels = torch.zeros(count, size, size, dtype=torch.long)
    for picture in labels:
        for each in range(1, CLASSES):
            top, left, side = (int(torch.randint(n, (), generator=random)) for n in (14, 14, 10))
            picture[top : top + side + 2, left : left + side + 2] = each
        picture[torch.rand(picture.shape, generator=random) < 0.05] = IGNORED
    return labels


def noisy(labels, size=None):
    """Logits that prefer the right class a little, as a loader's samples with the labels."""
    random = torch.Generator().manual_seed(4)
    samples = []
    for picture in labels:
        right = torch.nn.functional.one_hot(picture.clamp(max=CLASSES - 1), CLASSES).permute(2, 0, 1).float()
        logits = right + torch.randn(right.shape, generator=random)
        samples.append((logits[:, : size or None, : size or None], picture))
    return samples


def test_distances_are_those_of_the_definition():
    labels = blobs()
    labels[1] = 2  # no other class
    labels[2] = IGNORED
    labels[3, :, 4:] = 1
    labels[3, :, :4] = IGNORED
    found = distance_to_outline(labels)
    torch.testing.assert_close(found, distance_to_outline_by_definition(labels))
    assert found.dtype == torch.float32
    assert found[1:4].isinf().all()
    assert found[0][labels[0] != IGNORED].isfinite().all()
    torch.testing.assert_close(distance_to_outline(labels.to(torch.uint8)), found)


def test_a_pixel_beside_an_outline_is_one_away_and_ignored_pixels_are_none():
    labels = torch.tensor([[[0, 0, 0, IGNORED, 1, 1]]])
    inf = torch.inf
    assert distance_to_outline(labels).tolist() == [[[4, 3, 2, inf, 2, 3]]]
    assert distance_to_outline(labels.where(labels != IGNORED, 1)).tolist() == [[[3, 2, 1, 1, 2, 3]]]


@pytest.mark.parametrize("size", [None, 13])
def test_one_band_gives_what_validation_gives(trainer, task, size):
    loader = DataLoader(noisy(blobs(), size), batch_size=4)
    validated = trainer.validate(task, loader, verbose=False)[0]["val_miou"]
    found = miou_by_distance(trainer, task, loader, (0,))
    assert found == {"miou_0": pytest.approx(validated, rel=1e-6), "share_0": 100}
    assert 10 < validated < 90
    assert trainer.validate(task, loader, verbose=False)[0]["val_miou"] == validated


def test_bands_share_out_the_pixels_and_are_each_measured_alone(trainer, task):
    labels = blobs()
    labels[-1] = 1  # infinitely far from an outline
    samples = noisy(labels)
    found = miou_by_distance(trainer, task, DataLoader(samples, batch_size=4), EDGES)
    distances = distance_to_outline_by_definition(labels)
    classes = torch.stack([logits.argmax(0) for logits, _ in samples])
    counted = (labels != IGNORED).sum()
    for low, high in zip(EDGES, (*EDGES[1:], None), strict=True):
        inside = (labels != IGNORED) & (distances >= low) & (True if high is None else distances < high)
        shares = [
            ((classes == c) & (labels == c))[inside].sum() / ((classes == c) | (labels == c))[inside].sum()
            for c in labels[inside].unique()
        ]
        assert found[f"miou_{low}"] == pytest.approx(100 * sum(shares).item() / len(shares), rel=1e-5)
        assert found[f"share_{low}"] == pytest.approx(100 * (inside.sum() / counted).item(), rel=1e-5)
    assert sum(found[f"share_{low}"] for low in EDGES) == pytest.approx(100)


def test_the_bands_confusion_is_together_the_whole_sets(trainer, task):
    samples = noisy(blobs())
    bands, whole = DistanceBands(EDGES), MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORED)
    for logits, labels in samples:
        whole.update(logits.argmax(0), labels)
    trainer.callbacks.append(bands)
    for _ in range(2):  # the second counts anew
        trainer.validate(task, DataLoader(samples, batch_size=4), verbose=False)
        assert torch.equal(bands.confusion.sum(0), whole.compute())


def test_a_band_without_pixels_has_no_miou(trainer, task):
    loader = DataLoader(noisy(blobs()), batch_size=4)
    found = miou_by_distance(trainer, task, loader, (0, 100))
    assert "miou_100" not in found
    assert found["share_100"] == 0
    nothing = [(logits, torch.full_like(labels, IGNORED)) for logits, labels in noisy(blobs())]
    assert miou_by_distance(trainer, task, DataLoader(nothing), (0,)) == {"share_0": 0}


def test_a_class_that_is_found_and_never_right_is_left_out():
    confusion = torch.tensor([[3, 1, 0], [0, 2, 2], [0, 0, 0]])
    assert miou(confusion) == pytest.approx((3 / 4 + 2 / 5) / 2)
