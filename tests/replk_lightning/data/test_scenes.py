import numpy as np
import pytest
import torch

from replk_lightning.data import create_data
from replk_lightning.data.scenes import MEAN, STD, TEXTURES, box_of, cache_folder, compose


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def several():
    return compose("test", 48, objects=4)


def test_a_scene_has_class_mask_and_box_of_every_object(several):
    assert several.images.shape == (1000, 3, 48, 48)
    assert several.images.dtype == several.instances.dtype == torch.uint8
    count = (several.classes >= 0).sum(1)
    assert set(count.tolist()) == {1, 2, 3, 4}
    assert torch.equal(several.instances.flatten(1).amax(1), count.to(torch.uint8))
    assert torch.equal(several.classes >= 0, several.textures >= 0)
    for n in range(100):
        for m in range(4):
            seen = several.instances[n] == m + 1
            left, top, right, bottom = several.boxes[n, m].tolist()
            if m >= count[n]:
                assert (left, top, right, bottom) == (-1,) * 4
                assert not seen.any()
                continue
            inside = torch.zeros_like(seen)
            inside[top:bottom, left:right] = True
            assert seen.any()
            assert not (seen & ~inside).any()
            edges = (seen[top], seen[bottom - 1], seen[:, left], seen[:, right - 1])
            assert all(edge.any() for edge in edges)


def test_a_box_is_left_top_right_bottom():
    mask = torch.zeros(6, 9, dtype=torch.bool)
    mask[2:4, 5:8] = True
    assert box_of(mask).tolist() == [5, 2, 8, 4]


def test_every_digit_is_a_lone_object_once_and_brighter_than_what_lies_behind():
    alone = compose("test", 32)
    assert alone.classes[:, 0].bincount().tolist() == [100] * 10
    seen = (alone.instances == 1)[:, None].expand_as(alone.images)
    assert alone.images[seen].float().mean() > alone.images[~seen].float().mean() + 0.25 * 255
    assert len(alone.textures.unique()) == len(TEXTURES)


def test_cues_agree_in_training_and_never_in_the_test():
    agree, conflict = compose("train", 24, "agree"), compose("test", 24, "conflict")
    assert torch.equal(agree.classes, agree.textures)
    assert len(agree.images) == 4000
    pairs = torch.zeros(10, 10, dtype=torch.int64)
    pairs.index_put_((conflict.classes[:, 0], conflict.textures[:, 0]), torch.tensor(1), accumulate=True)
    assert pairs.diagonal().sum() == 0
    others = pairs[~torch.eye(10, dtype=torch.bool)]
    assert (others.min(), others.max()) == (11, 12), "a texture stands for a shape more often than another"
    for scenes in (agree, conflict):
        assert torch.equal(scenes.images[:, 0], scenes.images[:, 2]), "colour would tell the texture"


def test_the_seed_decides_and_the_cache_changes_nothing():
    first = compose("test", 20, seed=1)
    files = list((cache_folder()).glob("test-20-*.npz"))
    assert len(files) == 1
    kept = compose("test", 20, seed=1)
    files[0].write_bytes(files[0].read_bytes()[:1000])  # cut short
    again = compose("test", 20, seed=1)
    for a, b, c in zip(first, kept, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert not torch.equal(first.images, compose("test", 20, seed=2).images)
    assert not [path for path in cache_folder().iterdir() if path.name.startswith("tmp")]


def test_a_disk_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert len(compose("test", 16).images) == 1000


def test_the_splits_share_no_pixel_of_a_photograph(monkeypatch):
    import replk_lightning.data.scenes as scenes

    columns = np.broadcast_to(np.arange(300, dtype=np.uint16), (200, 300))
    monkeypatch.setattr(scenes, "photograph", lambda _: columns)
    train, test = scenes._region("any", test=False), scenes._region("any", test=True)
    assert not set(train.ravel()) & set(test.ravel())
    assert train.shape[1] + test.shape[1] == 300


@pytest.mark.parametrize("name", ["scenes", "scenes-cue-conflict"])
def test_as_a_data_set(name):
    data = create_data(name, image_size=24)
    assert (data.name, data.num_classes, data.in_chans, data.train_size) == (name, 10, 3, 4000)
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype, labels.shape) == ((64, 3, 24, 24), torch.float32, (64,))
    shown = torch.cat([images for images, _ in data.val_dataloader()])
    assert len(shown) == 1000
    assert shown.mean().item() == pytest.approx(0, abs=0.2)
    assert 0.5 < shown.std().item() < 1.1  # textures are faint where they are a cue


def test_the_fingerprint_knows_variant_and_size():
    prints = {create_data(n, image_size=s).fingerprint for n in ("scenes", "scenes-cue-conflict") for s in (16, 24)}
    assert len(prints) == 4


def test_normalisation_is_that_of_the_pixels():
    images = compose("train", 24).images.float() / 255
    assert images.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert images.std().item() == pytest.approx(STD, abs=0.02)
