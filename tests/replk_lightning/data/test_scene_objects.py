import pytest
import torch

from replk_lightning.data import create_data
from replk_lightning.data.scenes import OBJECTS, compose_dense, normalise

SIZE = 48


NAMES = {"digits": "scenes-objects", "lobes": "scenes-solid-objects"}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=NAMES)
def shapes(request):
    return request.param


@pytest.fixture
def data(shapes):
    return create_data(NAMES[shapes], image_size=SIZE, batch_size=4, train_images=40, test_images=12)


def test_targets_are_what_the_scenes_hold(data, shapes):
    scenes = compose_dense("test", SIZE, shapes, 12)
    classes = {"digits": 10, "lobes": 8}[shapes]
    assert (data.name, data.train_size, len(data.splits.val), data.num_classes) == (NAMES[shapes], 40, 12, classes)
    for number in range(12):
        image, target = data.splits.val[number]
        there = scenes.classes[number] >= 0
        assert torch.equal(image, normalise(scenes.images[number]))
        assert torch.equal(target["labels"], scenes.classes[number][there])
        assert torch.equal(target["boxes"], scenes.boxes[number][there].float())
        for position, mask in enumerate(target["masks"]):
            assert torch.equal(mask, (scenes.instances[number] == position + 1).to(torch.uint8))


def test_batches_are_lists(data, shapes):
    images, targets = next(iter(data.train_dataloader()))
    assert len(images) == len(targets) == 4
    assert images[0].shape == (3, SIZE, SIZE)
    assert images[0].dtype == torch.float32
    for target in targets:
        count = len(target["labels"])
        assert 0 < count <= (OBJECTS if shapes == "digits" else 1)
        assert target["boxes"].shape == (count, 4)
        assert target["masks"].shape == (count, SIZE, SIZE)
        assert (target["boxes"].dtype, target["labels"].dtype, target["masks"].dtype) == (
            torch.float32, torch.int64, torch.uint8,
        )  # fmt: skip


def test_boxes_move_with_the_scene_unless_it_is_solid(data, shapes):
    torch.manual_seed(0)
    scenes = compose_dense("train", SIZE, shapes, 40)
    moved = set()
    for number in range(40):
        _, target = data.splits.train[number]
        still = scenes.boxes[number]
        for box, mask in zip(target["boxes"].int(), target["masks"], strict=True):
            left, top, right, bottom = box.tolist()
            assert mask.sum() == mask[top:bottom, left:right].sum() > 0
            assert mask[:, left].any()
            assert mask[bottom - 1].any()
        moved.add((target["boxes"][0] - still[0]).tolist()[0])
    if shapes == "lobes":
        assert moved == {0}
        return
    assert min(moved) < 0 < max(moved)
    assert all(abs(by) <= SIZE // 8 for by in moved)


def test_the_fingerprint_is_that_of_the_scenes_kept(data, shapes):
    assert data.fingerprint == data.fingerprint
    fewer = create_data(NAMES[shapes], image_size=SIZE, train_images=39, test_images=12)
    assert fewer.fingerprint != data.fingerprint
