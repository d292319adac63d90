from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from replk_lightning.data import DataError, create_data, data_for_recipe, segmentation
from replk_lightning.data.ade20k import ARCHIVE, Ade20k
from replk_lightning.data.cityscapes import Cityscapes
from replk_lightning.data.scene_masks import SceneMasks, labels_of
from replk_lightning.data.scenes import compose_dense, normalise
from replk_lightning.data.segmentation import (
    IGNORED,
    MOST_OF_ONE_CLASS,
    Recolouring,
    SegmentAugmentation,
    fit,
    largest_share,
)
from replk_lightning.recipes import get_recipe
from replk_lightning.tasks.segment import SegmentTask

SIZE = 48
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}

# Scenes


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=["digits", "lobes"])
def shapes(request):
    return request.param


def drawn(split, shapes="digits", count=40):
    return compose_dense(split, SIZE, shapes, count)


def masks(shapes="digits", **options):
    return SceneMasks(shapes, **{"image_size": SIZE, "batch_size": 5, "train_images": 40, "test_images": 12, **options})


def test_labels_are_the_shapes_seen(shapes):
    scenes = drawn("test", shapes, 12)
    labels = labels_of(scenes)
    assert labels.dtype == torch.uint8
    for number in range(8):
        for y in range(SIZE):
            for x in range(SIZE):
                seen = int(scenes.instances[number, y, x])
                assert labels[number, y, x] == (1 + scenes.classes[number, seen - 1] if seen else 0)


def test_validation_gives_the_scenes_as_they_are(shapes):
    data, scenes = masks(shapes), drawn("test", shapes, 12)
    name, classes = {"digits": ("scenes-masks", 11), "lobes": ("scenes-solid-masks", 9)}[shapes]
    assert (data.name, data.train_size, len(data.splits.val), data.num_classes) == (name, 40, 12, classes)
    batches = list(data.val_dataloader())
    assert [len(images) for images, _ in batches] == [5, 5, 2]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(images, normalise(scenes.images))
    assert torch.equal(labels, labels_of(scenes).long())


def test_images_and_labels_move_together():
    torch.manual_seed(0)
    scenes = drawn("train")
    shift = SIZE // 8
    images, labels = masks().splits.train.__getitems__(list(range(16)))
    still, truth = normalise(scenes.images[:16]), labels_of(scenes)[:16].long()
    moves = set()
    for number in range(16):
        fits = []
        for down in range(-shift, shift + 1):
            for right in range(-shift, shift + 1):
                expected = torch.full((SIZE, SIZE), IGNORED)
                rows = slice(max(0, down), SIZE + min(0, down)), slice(max(0, -down), SIZE - max(0, down))
                columns = slice(max(0, right), SIZE + min(0, right)), slice(max(0, -right), SIZE - max(0, right))
                expected[rows[0], columns[0]] = truth[number, rows[1], columns[1]]
                moved = still[number][:, rows[1], columns[1]]
                if torch.equal(labels[number], expected) and torch.equal(images[number][:, rows[0], columns[0]], moved):
                    fits.append((down, right))
        assert len(fits) == 1
        moves.add(fits[0])
    assert len(moves) > 8
    assert torch.equal(labels == IGNORED, labels > 10)


@pytest.mark.parametrize(("shapes", "augment"), [("digits", False), ("lobes", False), ("lobes", True)])
def test_scenes_are_not_shifted_unless_asked_and_solid_ones_never(shapes, augment):
    scenes = drawn("train", shapes)
    images, labels = masks(shapes, augment=augment).splits.train.__getitems__([3, 1])
    assert torch.equal(images, normalise(scenes.images[[3, 1]]))
    assert torch.equal(labels, labels_of(scenes)[[3, 1]].long())


def test_there_are_as_many_scenes_as_asked_for(shapes):
    assert masks(shapes, train_images=7).train_size == 7
    prints = [masks(shapes, train_images=count).fingerprint for count in (40, 40, 39)]
    assert prints[0] == prints[1] != prints[2]


def test_scenes_follow_a_recipe():
    recipe = get_recipe("upernet_ade20k_80k", batch_size=6, gpus=2)
    data = data_for_recipe("scenes-masks", recipe, image_size=SIZE, train_images=9, test_images=4)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (3, 3, SIZE, SIZE)
    assert labels.shape == (3, SIZE, SIZE)


# Files

HEIGHT, WIDTH = 20, 34
CITYSCAPES = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip


def write(image: Path, label: Path, pixels: np.ndarray, classes: np.ndarray) -> None:
    for path, values in ((image, pixels), (label, classes)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)


def brightness(level: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), level, dtype=np.uint8)


def city(root, split, name, number=0, classes=None):
    stem = f"{name}_{number:06}_000019"
    image = root / "leftImg8bit" / split / name / f"{stem}_leftImg8bit.png"
    label = root / "gtFine" / split / name / f"{stem}_gtFine_labelIds.png"
    columns = np.broadcast_to(np.arange(WIDTH, dtype=np.uint8), (HEIGHT, WIDTH))  # ids 0 to 33
    write(image, label, brightness(10 * number), columns if classes is None else classes)
    return image, label


@pytest.fixture
def cities(tmp_path):
    for split in ("train", "val"):
        for number, name in enumerate(("zurich", "aachen", "bochum")):
            city(tmp_path, split, name, number)
    return tmp_path


def ade(root, split, number):
    stem = f"ADE_{split[:5]}_{number:08}"
    classes = (np.arange(HEIGHT * WIDTH) % 151).astype(np.uint8).reshape(HEIGHT, WIDTH)
    image, label = root / "images" / split / f"{stem}.jpg", root / "annotations" / split / f"{stem}.png"
    write(image, label, brightness(40 * number), classes)
    return image, label


@pytest.fixture
def ade_root(tmp_path):
    for split in ("training", "validation"):
        for number in (2, 1):
            ade(tmp_path, split, number)
    return tmp_path


def plain(**options):
    sizes = {"crop": (16, 24), "resize": (HEIGHT, WIDTH), "scales": (1.0, 1.0), "hflip": 0.0}
    return SegmentAugmentation(**{**sizes, **PLAIN, **options})


def test_cityscapes_has_the_official_19_classes(cities):
    data = create_data(f"cityscapes:{cities}", augmentation=plain(), num_workers=0)
    assert (data.num_classes, data.train_size, data.batch_size, data.image_size) == (19, 3, 2, 24)
    samples = list(data.val_dataloader())
    assert [round(255 * image.mean().item()) for image, _ in samples] == [10, 20, 0]  # aachen, bochum, zurich
    for image, label in samples:
        assert image.shape == (1, 3, HEIGHT, WIDTH)
        assert label.shape == (1, HEIGHT, WIDTH)
        assert label.dtype == torch.int64
        assert label[0, 5].tolist() == [CITYSCAPES.get(column, IGNORED) for column in range(WIDTH)]
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 16, 24)
    assert labels.shape == (2, 16, 24)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_cityscapes_unlabelled_values_are_ignored(tmp_path):
    city(tmp_path, "train", "ulm")
    city(tmp_path, "val", "ulm", classes=np.full((HEIGHT, WIDTH), 255, np.uint8))
    data = Cityscapes(tmp_path, plain(), num_workers=0)
    assert (data.splits.val[0][1] == IGNORED).all()


def test_ade20k_ignores_other_and_has_150_classes(ade_root):
    data = create_data(f"ade20k:{ade_root}", augmentation=plain(), num_workers=0)
    assert (data.num_classes, data.train_size) == (150, 2)
    samples = list(data.val_dataloader())
    assert [round(255 * image.mean().item()) for image, _ in samples] == [40, 80]
    expected = [IGNORED, *range(150)] * 5
    assert samples[0][1].flatten().tolist() == expected[: HEIGHT * WIDTH]


def test_ade20k_comes_from_the_hub_where_no_folder_is_named(ade_root, monkeypatch):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    files = ade(ade_root, "validation", 1)
    row = {"image": {"bytes": files[0].read_bytes()}, "annotation": {"bytes": files[1].read_bytes()}}
    rows = datasets.Dataset.from_list([row] * 3, features=features)
    asked = []

    def open_splits(name, *_, revision, **__):
        asked.append((name, revision))
        return {"train": rows, "validation": rows.select([0])}

    monkeypatch.setattr("replk_lightning.data.ade20k.open_splits", open_splits)
    data = create_data("ade20k", augmentation=plain(), num_workers=0)
    assert data.train_size == 3
    assert set(asked) == {("zhoubolei/scene_parse_150", "refs/convert/parquet")}
    local = Ade20k(ade_root, augmentation=plain(), num_workers=0)
    for found, expected in zip(data.splits.val[0], local.splits.val[0], strict=True):
        assert torch.equal(found, expected)
    assert len(data.fingerprint) == 16


def test_what_is_missing_is_named_with_what_to_download(cities, tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match=r"no Cityscapes images: unpack leftImg8bit_trainvaltest\.zip and gtFine_"
    ) as told:
        Cityscapes(tmp_path / "nowhere", plain()).setup()
    assert str(told.value).count(". ") == 0
    (cities / "leftImg8bit" / "val").rename(cities / "elsewhere")
    with pytest.raises(DataError, match="leftImg8bit/val exists"):
        Cityscapes(cities, plain()).setup()
    (cities / "elsewhere").rename(cities / "leftImg8bit" / "val")
    city(cities, "val", "ulm")[1].unlink()
    with pytest.raises(DataError, match=r"ulm_000000_000019_gtFine_labelIds\.png is missing: unpack gtFine_"):
        Cityscapes(cities, plain()).setup()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cityscapes holds no Cityscapes images: unpack"):
        create_data("cityscapes", augmentation=plain()).setup()  # where it is looked for unless a folder is named


def test_what_ade20k_lacks_is_named(ade_root):
    nowhere = ade_root / "nowhere"
    with pytest.raises(DataError, match=f"{nowhere} holds no ADE20K images: unpack {ARCHIVE} .*images/training"):
        Ade20k(nowhere, augmentation=plain()).setup()
    ade(ade_root, "validation", 5)[1].unlink()
    with pytest.raises(DataError, match=rf"ADE_valid_00000005\.png is missing: unpack {ARCHIVE} whole"):
        Ade20k(ade_root, augmentation=plain()).setup()


@pytest.mark.parametrize("name", ["cityscapes:somewhere", "ade20k"])
def test_recipes_of_other_tasks_are_refused(name):
    with pytest.raises(DataError, match="needs a recipe of segmentation"):
        create_data(name)
    with pytest.raises(DataError, match="is for segmentation, and the recipe replknet_120ep is for classification"):
        data_for_recipe(name, get_recipe("replknet_120ep"))
    with pytest.raises(DataError, match="does not take these options"):
        create_data(name, augmentation=plain(), image_size=3)


def damage_image(image, label):
    image.write_bytes(b"no picture")


def damage_label(image, label):
    label.write_bytes(label.read_bytes()[:50])


def other_size(image, label):
    Image.fromarray(np.zeros((HEIGHT, WIDTH - 1), np.uint8)).save(label)


def coloured_label(image, label):
    Image.fromarray(brightness(7)).save(label)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_image, "UnidentifiedImageError"),
        (damage_label, "truncated"),
        (other_size, r"the image is \(20, 34\), its label \(20, 33\)"),
        (coloured_label, "a label has one channel of numbers up to 255, not RGB"),
    ],
)
def test_an_unreadable_pair_is_left_out_of_validation_and_replaced_in_training(cities, damage, reason):
    damage(*city(cities, "val", "aachen", 1))
    damage(*city(cities, "train", "aachen", 1))
    data = Cityscapes(cities, plain(), num_workers=0)
    name = r"skipped unreadable image aachen_000001_000019_leftImg8bit\.png"
    with pytest.warns(UserWarning, match=rf"{name} .*{reason}"):
        means = [image.mean().item() for image, _ in data.val_dataloader()]
    assert means == pytest.approx([20 / 255, 0])  # bochum's, zurich's
    with pytest.warns(UserWarning, match=rf"{name} .*{reason}.*the next one takes its place"):
        assert data.splits.train[0][0].shape == (3, 16, 24)


def test_the_fingerprint_changes_with_names_and_sizes(cities):
    before = Cityscapes(cities, plain()).fingerprint
    assert Cityscapes(cities, plain()).fingerprint == before
    city(cities, "train", "zurich", 0, np.zeros((HEIGHT, WIDTH), np.uint8))
    changed = Cityscapes(cities, plain()).fingerprint
    city(cities, "val", "ulm")
    assert len({before, changed, Cityscapes(cities, plain()).fingerprint}) == 3


def test_files_follow_a_recipe(cities):
    recipe = get_recipe("upernet_ade20k_160k_xl", crop=(16, 24), resize=(10, 100), scales=(0.75, 1.5))
    data = data_for_recipe(f"cityscapes:{cities}", recipe, num_workers=0)
    assert data.batch_size == 2
    assert data.augmentation == SegmentAugmentation(
        crop=(16, 24), resize=(10, 100), scales=(0.75, 1.5), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    image, label = data.splits.val[2]
    assert image.shape == (3, 10, 17)
    assert label.shape == (HEIGHT, WIDTH)
    assert (image == -1).all()  # black


def test_a_segmenter_trains_and_is_measured_on_cityscapes_batches(cities, tmp_path):
    overrides = {
        "crop": (16, 24), "resize": (16, 64), "channels": 16, "auxiliary_channels": 8, "gpus": 1, "batch_size": 2,
        "iterations": 0, "epochs": 1, "multi_scale": (1.0,), "evaluation": "slide",
    }  # fmt: skip
    name = "deeplabv3plus_cityscapes_80k"
    data = data_for_recipe(f"cityscapes:{cities}", get_recipe(name, **overrides), num_workers=0)
    options = {"model_options": {"width": 0.1}, "recipe_overrides": overrides}
    task = SegmentTask("mobilenetv2_lk", name, data.num_classes, **options)
    run = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=2,
        enable_model_summary=False, log_every_n_steps=1, default_root_dir=tmp_path,
    )  # fmt: skip
    run.fit(task, data)
    assert 0 <= run.callback_metrics["val_miou"] <= 100
    assert run.test(task, data, verbose=False)[0].keys() == {"test_miou", "test_miou_ms"}


# Changes


def blocks(height=60, width=90, side=15):
    """Labels in blocks, and an image whose colours are 20, 30 and 40 times the class."""
    random = torch.Generator().manual_seed(0)
    small = torch.randint(6, (height // side, width // side), generator=random, dtype=torch.uint8)
    label = small.repeat_interleave(side, 0).repeat_interleave(side, 1)
    return torch.stack([20 * label, 30 * label, 40 * label]), label


@pytest.fixture
def own_colours(monkeypatch):
    monkeypatch.setattr(segmentation, "Recolouring", lambda **_: v2.Identity())


def differing(image, label):
    """Share of the pixels that count whose colours are another class's."""
    counts = label != IGNORED
    expected = torch.stack([20 * label, 30 * label, 40 * label])
    return ((255 * image - expected).abs() > 5).any(0)[counts].float().mean().item()


def test_image_and_label_are_cropped_and_flipped_together(own_colours):
    torch.manual_seed(0)
    image, label = blocks()
    seen = set()
    for _ in range(20):
        x, y = plain(crop=(32, 40), resize=(60, 90), hflip=0.5).train(image, label)
        assert x.shape == (3, 32, 40)
        assert y.shape == (32, 40)
        assert type(x) is type(y) is torch.Tensor
        assert differing(x, y) == 0
        assert (y != IGNORED).all()
        seen.add(y.numpy().tobytes())
    assert len(seen) > 10


@pytest.mark.parametrize("scales", [(0.5, 0.5), (2.0, 2.0), (0.5, 2.0)])
@pytest.mark.parametrize("crop", [(32, 40), (20, 100), (200, 300)])
@pytest.mark.parametrize("along", [0, 1])
def test_image_and_label_are_scaled_together(own_colours, scales, crop, along):
    torch.manual_seed(0)
    ramp = torch.arange((60, 90)[along], dtype=torch.uint8)  # classes and half the brightness: the row or the column
    label = (ramp[:, None] if along == 0 else ramp).expand(60, 90)
    for _ in range(5):
        x, y = plain(crop=crop, resize=(60, 90), scales=scales, hflip=0.5).train(torch.stack([2 * label] * 3), label)
        assert x.shape == (3, *crop)
        assert y.shape == crop
        counts = y != IGNORED
        assert (255 * x[0] / 2 - y)[counts].abs().max() <= 1.01  # rows or columns of the image as it was
        if scales[0] == scales[1]:
            height, width = round(60 * scales[0]), round(90 * scales[0])
            assert counts.sum() == min(height, crop[0]) * min(width, crop[1])


def test_scaling_makes_no_new_classes():
    torch.manual_seed(0)
    image, label = blocks()
    label = 20 * (label % 2)
    for scale in (0.7, 1.6):
        _, y = plain(crop=(100, 150), resize=(60, 90), scales=(scale, scale)).train(image, label)
        assert y.unique().tolist() == [0, 20, IGNORED]


def test_flipping_is_the_mirror_image(own_colours):
    image, label = blocks()
    x, y = plain(crop=(60, 90), resize=(60, 90), hflip=1.0).train(image, label)
    assert torch.equal(y, label.long().flip(1))
    assert torch.allclose(x, image.flip(2) / 255)


def test_what_a_crop_adds_is_ignored_and_black(own_colours):
    torch.manual_seed(0)
    label = torch.randint(6, (10, 12), dtype=torch.uint8)
    image = torch.stack([20 * label + 1] * 3)
    x, y = plain(crop=(25, 16), resize=(10, 12)).train(image, label)
    inside = y != IGNORED
    assert y[inside].tolist() == label.flatten().tolist()
    assert (x[:, inside] > 0).all()
    assert not x[:, ~inside].any()


def test_crops_of_almost_one_class_are_drawn_anew(own_colours):
    torch.manual_seed(0)
    label = torch.zeros(40, 100, dtype=torch.uint8)
    label[:, 80:] = 1  # of all crops, one in eight shows enough of both
    augmentation = plain(crop=(20, 20), resize=(40, 100))
    shares = [
        largest_share(augmentation.train(torch.zeros(3, 40, 100, dtype=torch.uint8), label)[1]) for _ in range(60)
    ]
    assert sum(share < MOST_OF_ONE_CLASS for share in shares) > 30
    alone = augmentation.train(torch.zeros(3, 40, 100, dtype=torch.uint8), torch.full((40, 100), 3, dtype=torch.uint8))
    assert (alone[1] == 3).all()


def test_ignored_pixels_have_no_share():
    assert largest_share(torch.tensor([[0, 0, 1], [1, IGNORED, IGNORED]])) == 0.5
    assert largest_share(torch.tensor([[2, IGNORED]])) == 1
    assert largest_share(torch.full((2, 2), IGNORED)) == 1


def test_colours_change_and_their_order_does_not():
    torch.manual_seed(0)
    image, label = torch.empty(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)
    image[0], image[1], image[2] = 200, 40, 40
    changed = [plain(crop=(8, 8), resize=(8, 8)).train(image, label)[0] for _ in range(40)]
    assert all((x[0] >= x[1:]).all() for x in changed)
    assert len({x.numpy().tobytes() for x in changed}) > 20
    assert all(x.min() >= 0 and x.max() <= 1 for x in changed)
    turned = [Recolouring(brightness=(1, 1), contrast=(1, 1), saturation=(1, 1), hue=(0.1, 0.1), p=1)(image)]
    assert turned[0][1].float().mean() == pytest.approx(40 + 0.6 * 160, abs=2)  # six tenths of the way to yellow


@pytest.mark.parametrize(
    ("size", "bounds", "ratio", "expected"),
    [
        ((1024, 2048), (512, 2048), 1.0, [512, 1024]),
        ((300, 400), (512, 2048), 1.0, [512, 683]),
        ((400, 300), (512, 2048), 1.0, [683, 512]),
        ((100, 1000), (512, 2048), 1.0, [205, 2048]),
        ((1024, 2048), (1024, 2048), 0.5, [512, 1024]),
        ((1024, 2048), (2048, 1024), 2.0, [2048, 4096]),
        ((1, 1000), (5, 100), 1.0, [1, 100]),
    ],
)
def test_images_keep_their_shape_within_bounds(size, bounds, ratio, expected):
    assert fit(size, bounds, ratio) == expected


def test_evaluation_resizes_the_image_and_keeps_the_label():
    image, label = blocks()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    augmentation = SegmentAugmentation(crop=(8, 8), resize=(30, 90), mean=mean, std=std)
    x, y = augmentation.evaluate(image, label)
    assert x.shape == (3, 30, 45)
    assert torch.equal(y, label.long())
    x, _ = SegmentAugmentation(crop=(8, 8), resize=(60, 90), mean=mean, std=std).evaluate(image, label)
    for channel in range(3):
        expected = (image[channel] / 255 - mean[channel]) / std[channel]
        assert torch.allclose(x[channel], expected, atol=1e-6)
