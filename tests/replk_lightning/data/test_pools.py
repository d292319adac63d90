"""Images to be labelled, wherever they lie: names, labels, fingerprints and views."""

import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from replk_lightning.data import Augmentation, DataError, create_data
from replk_lightning.data.decoding import UnreadableImageError
from replk_lightning.data.pools import Preparation, open_pool, pool_of

AUGMENTATION = Augmentation(mean=(0, 0, 0), std=(1, 1, 1))
VIEW = Preparation(16, AUGMENTATION.eval_transform(16))


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (value, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for n, name in enumerate(("dog/a.png", "cat/deep/b.png", "c.png", "cat/d.PNG", ".hidden/e.png", "cat/.f.png")):
        save(root / name, 10 * n)
    return root


def saved_set(folder, side=20):
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    pictures = [Image.fromarray(np.full((side, side, 3), value, dtype=np.uint8)) for value in (0, 20, 40)]
    rows = datasets.Dataset.from_dict({"photo": pictures, "kind": [0, 1, -1]}, features=features)
    datasets.DatasetDict({"train": rows, "extra": rows.select_columns("kind")}).save_to_disk(folder)
    return folder


def test_a_folder_is_walked_and_its_first_level_are_classes(folder):
    pool = open_pool(str(folder))
    assert [pool.name(n) for n in range(len(pool))] == ["c.png", "cat/d.PNG", "cat/deep/b.png", "dog/a.png"]
    assert pool.labels.tolist() == [-1, 0, 0, 1]
    assert pool.num_classes == 2
    (view,) = pool.views(2, [VIEW])
    assert view.shape == (3, 16, 16)
    assert torch.allclose(view[0], torch.full((16, 16), 10 / 255))


def test_a_folders_fingerprint_follows_its_names_and_not_the_place(folder, tmp_path):
    first = open_pool(str(folder)).fingerprint()
    moved = folder.rename(tmp_path / "moved")
    assert open_pool(str(moved)).fingerprint() == first
    (moved / "dog/a.png").rename(moved / "dog/b.png")
    assert open_pool(str(moved)).fingerprint() != first


def test_training_images_come_with_their_position(folder):
    pool = open_pool(str(folder))
    (folder / "cat/d.PNG").write_bytes(b"damaged")
    training = pool.training(16, AUGMENTATION)
    assert [training[n][1] for n in (0, 2, 3)] == [0, 2, 3]
    with pytest.warns(UserWarning, match="skipped unreadable .* takes its place"):
        assert training[1][1] == 2  # the next one, and its position
    with pytest.raises(UnreadableImageError):
        pool.views(1, [VIEW])


def test_a_saved_set_keeps_its_label_column(tmp_path):
    pool = open_pool(str(saved_set(tmp_path / "set")))
    assert pool.labels.tolist() == [0, 1, -1]
    assert pool.num_classes == 2
    assert pool.name(2).startswith("row 2 of ")
    assert torch.allclose(pool.views(1, [VIEW])[0], torch.tensor(20 / 255))
    assert open_pool(str(saved_set(tmp_path / "again"))).fingerprint() == pool.fingerprint()
    assert open_pool(str(saved_set(tmp_path / "other", side=200))).fingerprint() != pool.fingerprint()


def test_the_training_images_of_a_folder_set_are_a_pool(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "0.png", 90)
    where = f"imagefolder:{tmp_path}"
    pool = open_pool(where)
    assert (len(pool), pool.name(1), pool.labels.tolist(), pool.num_classes) == (2, "dog/0.png", [0, 1], 2)
    assert pool.fingerprint() == create_data(where).fingerprint


def test_a_set_in_memory_shows_its_images_without_augmentation_at_any_size():
    pool = open_pool("generated")
    small, large = pool.views(5, [Preparation(32, None), Preparation(48, None)])
    assert torch.equal(small, create_data("generated", image_size=32, augment=False).splits.train[5][0])
    assert large.shape == (3, 48, 48)
    assert pool.name(5) == "generated/5"
    assert pool.training(32, AUGMENTATION)[5][1] == 5


def test_pools_can_be_sent_to_worker_processes(folder, tmp_path):
    for pool in (open_pool(str(folder)), open_pool(str(saved_set(tmp_path / "set"))), open_pool("generated")):
        again = pickle.loads(pickle.dumps(pool))
        assert again.name(1) == pool.name(1)
        assert again.fingerprint() == pool.fingerprint()


@pytest.mark.parametrize(
    ("spec", "options", "sentence"),
    [
        ("nowhere", {}, "There is no folder nowhere and no data set of that name"),
        ("hf:", {}, "The data set hf needs its dataset"),
        ("{set}", {"split": "test"}, "has no split 'test'; it has train, extra"),
        ("{set}", {"split": "extra"}, "needs exactly one column of images; it has the columns kind"),
        ("{set}", {"label_column": "class"}, "needs a label column 'class'"),
        ("{empty}", {}, "holds no image"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(tmp_path, spec, options, sentence):
    (tmp_path / "empty").mkdir()
    spec = spec.format(set=saved_set(tmp_path / "set"), empty=tmp_path / "empty")
    with pytest.raises(DataError, match=sentence):
        open_pool(spec, **options)


def test_a_stream_has_no_positions(tmp_path):
    saved = tmp_path / "set"
    pictures = [Image.new("RGB", (20, 20))] * 2
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1]}, features=features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(saved)
    stream = create_data("hf:set", path=saved, streaming=True)
    with pytest.raises(DataError, match="come as a stream"):
        pool_of(stream)
