"""Fashion-MNIST from folders, Debian's package and the hub, and its garments in scenes; mostly on small stand-ins."""

import gzip
import struct

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from replk_lightning.data import DataError, create_data, fashion_mnist
from replk_lightning.data.fashion_mnist import DEBIAN, GARMENTS, garments
from replk_lightning.data.hub import offline
from replk_lightning.data.scenes import compose_dense
from replk_lightning.data.shapes import SHAPES, SOLID, silhouette

installed = pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
stand_in = pytest.mark.filterwarnings("ignore:What .* holds is not the .* split of Fashion-MNIST as published")


def idx(values):
    """An array of bytes in the form of the files: number of dimensions, lengths in four bytes each, values."""
    return struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def pictures(count):
    """Squares in the middle, larger for each class, and `count` labels that go round."""
    labels = np.arange(count) % 10
    images = np.zeros((count, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[8 - label // 2 : 20 + label // 2, 6:22] = 50 + label
    return images, labels


def write(folder, start, count, packed=False):
    folder.mkdir(exist_ok=True)
    for what, values in zip(("images-idx3", "labels-idx1"), pictures(count), strict=True):
        content = idx(values)
        path = folder / f"{start}-{what}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "garments", "train", 40)
    write(tmp_path / "garments", "t10k", 20, packed=True)
    return tmp_path / "garments"


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No package, nothing downloaded, no network."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with offline():
        yield


@stand_in
def test_files_are_read_as_they_are_and_gzipped(folder):
    data = create_data(f"fashion-mnist:{folder}", image_size=28, augment=False)
    assert (data.name, data.num_classes, data.in_chans, data.train_size) == ("fashion-mnist", 10, 1, 40)
    assert data.class_names == GARMENTS
    for dataset, count in ((data.splits.train, 40), (data.splits.val, 20)):
        images, labels = dataset.__getitems__(list(range(count)))
        expected = pictures(count)
        assert torch.equal(labels, torch.from_numpy(expected[1]))
        assert (images[:, 0] * data.std + data.mean).numpy() * 255 == pytest.approx(expected[0], abs=1e-3)


@stand_in
def test_the_hub_has_the_same(folder, monkeypatch):
    images, labels = pictures(20)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    rows = {"image": [Image.fromarray(image.astype(np.uint8)) for image in images], "label": labels}
    split = datasets.Dataset.from_dict(rows, features=features)
    asked = []
    monkeypatch.setattr(fashion_mnist, "DEBIAN", folder / "none")
    monkeypatch.setattr(fashion_mnist, "open_splits", lambda *name, **_: asked.append(name) or {"test": split})
    for ours, theirs in zip(garments("test"), garments("test", folder), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert asked == [("zalando-datasets/fashion_mnist", None)]


def test_other_pictures_of_the_same_names_are_named(folder):
    with pytest.warns(UserWarning, match=r"garments holds is not the test split of Fashion-MNIST as published \("):
        garments("test", folder)


@pytest.mark.parametrize("name", ["fashion-mnist", "scenes-garments", "scenes-garments-masks"])
def test_what_is_nowhere_is_told_in_one_sentence_with_the_three_ways(nowhere, name):
    with pytest.raises(DataError, match=r"dataset-fashion-mnist, .* fashion-mnist:PATH .* zalando-datasets") as told:
        create_data(name).setup()
    assert str(told.value).count(". ") == 0


@pytest.mark.parametrize("packed", [False, True])
def test_missing_and_damaged_files_are_named(folder, packed):
    with pytest.raises(DataError, match=r"none has no train-images-idx3-ubyte, gzipped or not: .*t10k-labels-idx1-"):
        create_data(f"fashion-mnist:{folder / 'none'}").setup()
    write(folder, "train", 40, packed)
    path = folder / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    if packed:
        (folder / "train-images-idx3-ubyte").unlink()
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no such file", whole[:3] + b"\xff" + whole[4:], whole + b"more"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte cannot be read, fetch it again: .+\.$"):
            create_data(f"fashion-mnist:{folder}").setup()


@pytest.mark.parametrize(
    ("images", "labels"),
    [(np.zeros((3, 32, 32)), np.zeros(3)), (np.zeros((3, 28, 28)), np.zeros(4)), (np.zeros((2, 28, 28)), [3, 10])],
)
def test_files_of_another_set_are_refused(folder, images, labels):
    for what, values in (("images-idx3", images), ("labels-idx1", np.asarray(labels))):
        (folder / f"train-{what}-ubyte").write_bytes(idx(values))
    with pytest.raises(DataError, match="does not hold Fashion-MNIST's train split"):
        garments("train", folder)


def test_a_silhouette_is_the_largest_piece_without_holes():
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:20, 6:16] = 200
    pixels[8:12, 8:12] = 0  # a hole
    pixels[22:25, 20:23] = 200  # a speck
    pixels[4:20, 20:28] = 5  # what lies behind is not quite black
    expected = np.zeros((28, 28))
    expected[4:20, 6:16] = 255
    assert np.array_equal(silhouette(pixels), expected)


@stand_in
def test_scenes_of_garments_without_the_set_itself(folder, nowhere, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", folder)
    scenes = compose_dense("test", 48, "garments", 30)
    assert scenes.classes[:, 0].tolist() == [n % 10 for n in range(30)]  # in turn, whatever their order
    assert (scenes.classes >= 0).all()
    for name, names in (("masks", ("background", *GARMENTS)), ("objects", GARMENTS)):
        data = create_data(f"scenes-garments-{name}", image_size=48, train_images=20, test_images=30)
        assert (data.name, data.class_names, data.num_classes) == (f"scenes-garments-{name}", names, len(names))
        assert len(data.splits.val) == 30
    assert torch.equal(data.splits.val[0][1]["boxes"][0].long(), scenes.boxes[0, 0])


@installed
def test_the_installed_set_is_the_published_one():
    data = create_data("fashion-mnist", image_size=28, augment=False)
    train = data.splits.train
    assert train.labels.bincount().tolist() == [6000] * 10
    assert data.splits.val.labels.bincount().tolist() == [1000] * 10
    assert train.padded.mean().item() == pytest.approx(0, abs=1e-3)
    assert train.padded.std().item() == pytest.approx(1, abs=1e-3)


@installed
def test_classes_and_shapes_agree():
    shapes, (images, labels) = SHAPES["garments"](test=True), garments("test")
    assert np.bincount(shapes.classes).tolist() == [SOLID[True] // 10] * 10
    known = {image.tobytes(): int(label) for image, label in zip(images[:, 0].numpy(), labels, strict=True)}
    assert [known[pixels.tobytes()] for pixels in shapes.pixels] == shapes.classes.tolist()
    assert len({pixels.tobytes() for pixels in shapes.pixels}) == SOLID[True]
    again = SHAPES["garments"](test=True)
    assert np.array_equal(again.pixels, shapes.pixels)
    wide = [[np.ptp(np.nonzero(shapes.draw(n, 56) > 0.5)[1]) for n in np.flatnonzero(shapes.classes == k)[:20]]
            for k in (GARMENTS.index("Trouser"), GARMENTS.index("Sneaker"))]  # fmt: skip
    assert np.median(wide[0]) < 0.7 * np.median(wide[1])
