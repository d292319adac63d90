import pytest
import torch

from replk_lightning.data import create_data, scene_objects
from replk_lightning.data.scenes import compose, normalise

SIZE = 48


@pytest.fixture
def data(monkeypatch):
    """Both splits are the test's: a thousand scenes instead of five thousand."""
    monkeypatch.setattr(scene_objects, "compose", lambda split, size, objects: compose("test", size, objects=objects))
    return create_data("scenes-objects", image_size=SIZE, batch_size=4, train_images=40, test_images=12)


def test_targets_are_what_the_scenes_hold(data):
    scenes = compose("test", SIZE, objects=3)
    assert (data.train_size, len(data.splits.val), data.num_classes) == (40, 12, 10)
    for number in range(12):
        image, target = data.splits.val[number]
        there = scenes.classes[number] >= 0
        assert torch.equal(image, normalise(scenes.images[number]))
        assert torch.equal(target["labels"], scenes.classes[number][there])
        assert torch.equal(target["boxes"], scenes.boxes[number][there].float())
        for position, mask in enumerate(target["masks"]):
            assert torch.equal(mask, (scenes.instances[number] == position + 1).to(torch.uint8))


def test_batches_are_lists(data):
    images, targets = next(iter(data.train_dataloader()))
    assert len(images) == len(targets) == 4
    assert images[0].shape == (3, SIZE, SIZE)
    assert images[0].dtype == torch.float32
    for target in targets:
        count = len(target["labels"])
        assert 0 < count <= 3
        assert target["boxes"].shape == (count, 4)
        assert target["masks"].shape == (count, SIZE, SIZE)
        assert (target["boxes"].dtype, target["labels"].dtype, target["masks"].dtype) == (
            torch.float32, torch.int64, torch.uint8,
        )  # fmt: skip


def test_boxes_move_with_the_scene(data):
    torch.manual_seed(0)
    moved = set()
    for number in range(40):
        _, target = data.splits.train[number]
        still = compose("test", SIZE, objects=3).boxes[number]
        for box, mask in zip(target["boxes"].int(), target["masks"], strict=True):
            left, top, right, bottom = box.tolist()
            assert mask.sum() == mask[top:bottom, left:right].sum() > 0
            assert mask[:, left].any()
            assert mask[bottom - 1].any()
        moved.add((target["boxes"][0] - still[0]).tolist()[0])
    assert min(moved) < 0 < max(moved)
    assert all(abs(by) <= SIZE // 8 for by in moved)


def test_the_fingerprint_is_that_of_the_scenes_kept(data):
    assert data.fingerprint == data.fingerprint
    fewer = create_data("scenes-objects", image_size=SIZE, train_images=39, test_images=12)
    assert fewer.fingerprint != data.fingerprint
