import numpy as np
import pytest
import torch

from replk_lightning.data import create_data
from replk_lightning.data import scenes as scenes_module
from replk_lightning.data.fashion_mnist import DEBIAN
from replk_lightning.data.scenes import MEAN, STD, TEXTURES, box_of, cache_folder, compose


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=["digits", "lobes"])
def several(request):
    return compose("test", 48, objects=4, shapes=request.param, count=300)


WITHOUT = pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")


@pytest.fixture(scope="module", params=["lobes", pytest.param("garments", marks=WITHOUT)])
def solid(request):
    return compose("test", 48, shapes=request.param, count=400)


def test_a_scene_has_class_mask_and_box_of_every_object(several):
    assert several.images.shape == (300, 3, 48, 48)
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
    alone = compose("test", 32, count=1000)
    assert alone.classes[:, 0].bincount().tolist() == [100] * 10
    seen = (alone.instances == 1)[:, None].expand_as(alone.images)
    assert alone.images[seen].float().mean() > alone.images[~seen].float().mean() + 0.25 * 255
    assert len(alone.textures.unique()) == len(TEXTURES)


def test_cues_agree_in_training_and_never_in_the_test():
    agree, conflict = compose("train", 24, "agree", count=4000), compose("test", 24, "conflict", count=1000)
    assert torch.equal(agree.classes, agree.textures)
    assert agree.classes[:, 0].bincount().tolist() == [400] * 10
    pairs = torch.zeros(10, 10, dtype=torch.int64)
    pairs.index_put_((conflict.classes[:, 0], conflict.textures[:, 0]), torch.tensor(1), accumulate=True)
    assert pairs.diagonal().sum() == 0
    others = pairs[~torch.eye(10, dtype=torch.bool)]
    assert (others.min(), others.max()) == (11, 12), "a texture stands for a shape more often than another"
    for scenes in (agree, conflict):
        assert torch.equal(scenes.images[:, 0], scenes.images[:, 2]), "colour would tell the texture"


def test_the_seed_decides_and_the_cache_changes_nothing():
    first = compose("test", 20, seed=1, count=100)
    files = list((cache_folder()).glob("test-20-*.npz"))
    assert len(files) == 1
    kept = compose("test", 20, seed=1, count=100)
    files[0].write_bytes(files[0].read_bytes()[:1000])  # cut short
    again = compose("test", 20, seed=1, count=100)
    for a, b, c in zip(first, kept, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert not torch.equal(first.images, compose("test", 20, seed=2, count=100).images)
    assert not [path for path in cache_folder().iterdir() if path.name.startswith("tmp")]


def test_a_disk_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert len(compose("test", 16, count=50).images) == 50


def test_the_splits_share_no_pixel_of_a_photograph(monkeypatch):
    columns = np.broadcast_to(np.arange(300, dtype=np.uint16), (200, 300))
    monkeypatch.setattr(scenes_module, "photograph", lambda _: columns)
    train, test = (scenes_module._region("any", test) for test in (False, True))
    assert not set(train.ravel()) & set(test.ravel())
    assert train.shape[1] + test.shape[1] == 300


def test_there_are_12000_scenes_to_train_and_4000_to_test_on_equally_many_of_each_digit(monkeypatch):
    drawn = []

    def note(composer, n, _):
        drawn.append(int(composer.classes[n % len(composer.classes)]))

    monkeypatch.setattr(scenes_module._Composer, "_compose_one", note)
    for split, count in (("train", 12000), ("test", 4000)):
        assert len(compose(split, 2).images) == count
        assert np.bincount(drawn).tolist() == [count // 10] * 10
        drawn.clear()


def test_fewer_scenes_are_the_first_of_all():
    for some, more in zip(compose("test", 8, count=30), compose("test", 8, count=50), strict=True):
        assert torch.equal(some, more[:30])


@pytest.fixture
def few(monkeypatch):
    """Splits of 640 and 160 scenes."""
    monkeypatch.setattr(scenes_module, "TRAIN_SCENES", 640)
    monkeypatch.setattr(scenes_module, "TEST_SCENES", 160)
    monkeypatch.setattr(scenes_module, "VERSION", "few")  # kept apart from whole ones


@pytest.mark.parametrize(("name", "classes"), [("scenes", 10), ("scenes-cue-conflict", 10), ("scenes-solid", 8)])
def test_as_a_data_set(few, name, classes):
    data = create_data(name, image_size=24)
    assert (data.name, data.num_classes, data.in_chans, data.train_size) == (name, classes, 3, 640)
    assert len(data.class_names) == classes
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype, labels.shape) == ((64, 3, 24, 24), torch.float32, (64,))
    shown = torch.cat([images for images, _ in data.val_dataloader()])
    assert len(shown) == 160
    if name != "scenes-solid":  # whose backgrounds are as bright as their shapes
        assert shown.mean().item() == pytest.approx(0, abs=0.2)
    assert 0.5 < shown.std().item() < 1.4  # textures are faint where they are a cue


def test_solid_scenes_stay_where_they_are(few):
    shifts = [create_data(name, image_size=24).splits.train.shift for name in ("scenes-solid", "scenes")]
    assert shifts == [0, 3]


def test_the_fingerprint_knows_variant_and_size(few):
    names = ("scenes", "scenes-cue-conflict", "scenes-solid")
    assert len({create_data(name, image_size=size).fingerprint for name in names for size in (16, 24)}) == 6


def test_normalisation_is_that_of_the_pixels():
    images = compose("train", 24, count=4000).images.float() / 255
    assert images.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert images.std().item() == pytest.approx(STD, abs=0.02)


def means(scenes):
    """Of each scene the mean of what is seen of its shape and of what lies behind, both float64 (N,), in [0, 1]."""
    seen = (scenes.instances == 1).double()[:, None]
    pixels = scenes.images.double() / 255
    return tuple((pixels * part).sum((1, 2, 3)) / (3 * part.sum((1, 2, 3))) for part in (seen, 1 - seen))


def test_in_solid_scenes_neither_side_is_the_brighter(solid):
    inside, outside = means(solid)
    assert (inside - outside).abs().min() > 0.15, "a side cannot be told from the other"
    brighter = inside > outside
    assert brighter.double().mean().item() == pytest.approx(0.5, abs=0.08)  # three deviations of 400 coins
    for number in solid.classes.unique():
        assert 0.2 < brighter[solid.classes[:, 0] == number].double().mean() < 0.8
    bright, dark = torch.where(brighter, inside, outside), torch.where(brighter, outside, inside)
    for side in (bright, dark):  # a level means the same wherever it lies
        assert side[brighter].mean().item() == pytest.approx(side[~brighter].mean().item(), abs=0.03)


def test_solid_scenes_have_equally_many_of_each_class_and_every_texture(solid):
    counts = solid.classes[:, 0].bincount().tolist()
    assert counts in ([50] * 8, [40] * 10)  # lobes, garments
    assert len(solid.textures.unique()) == len(TEXTURES)


def test_the_same_photographs_lie_behind_and_in_front_of_solid_scenes_only(monkeypatch):
    found = []
    for shapes in ("lobes", "digits"):
        composer = scenes_module._Composer("test", 16, "independent", 1, 0, shapes, (0.75, 1.0))
        behind = {id(composer._ground(0, 0)) for _ in range(200)}
        found.append(behind == {id(region) for region in composer.textures})
    assert found == [True, False]


def test_a_pixel_far_from_an_outline_looks_the_same_inside_and_outside(solid):
    """Of all pixels at once: no brightness is more frequent on one side by much."""
    shares = []
    for side in (solid.instances == 1, solid.instances == 0):
        pixels = solid.images.double().mean(1)[side]
        shares.append(torch.histc(pixels, 16, 0, 255) / len(pixels))
    assert (shares[0] - shares[1]).abs().sum() / 2 < 0.1
