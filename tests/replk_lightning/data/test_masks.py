"""Pictures and masks of one's own: layouts, pairs, lists of classes, masks that do not fit."""

import json
import logging
import os
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from replk_lightning.data import DataError, create_data, data_for_recipe, masks
from replk_lightning.data.masks import Look
from replk_lightning.data.segmentation import IGNORED, SegmentAugmentation
from replk_lightning.recipes import get_recipe
from replk_lightning.tasks.segment import SegmentTask

HEIGHT, WIDTH = 20, 34
PLAIN = SegmentAugmentation(
    crop=(16, 24), resize=(HEIGHT, WIDTH), scales=(1.0, 1.0), hflip=0.0, mean=(0, 0, 0), std=(1, 1, 1)
)
LAYOUTS = [
    "images/{split} masks/{split}",
    "{split}/images {split}/masks",
    "images/{split} annotations/{split}",
    "{split}/images {split}/labels",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/replk-lightning/masks"


def numbers(classes=3) -> np.ndarray:
    return (np.arange(HEIGHT * WIDTH) % classes).astype(np.uint8).reshape(HEIGHT, WIDTH)


def save(path: Path, values) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path)
    return path


def dataset(root: Path, mask=None, layout=LAYOUTS[0], val="val", ending=".png") -> Path:
    """Two pairs a split, 1.jpg with 1.png in the folder `a` and 2.gif with 2.png."""
    for split in ("train", val):
        images, labels = (root / part for part in layout.format(split=split).split())
        for number, name in ((1, "a/1.jpg"), (2, "2.gif")):
            save(images / name, np.full((HEIGHT, WIDTH, 3), 40 * number, np.uint8))
            save((labels / name).with_suffix(ending), numbers() if mask is None else mask)
    return root


def load(root: Path, **options):
    return create_data(f"masks:{root}", augmentation=PLAIN, num_workers=0, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("val", ["val", "valid"])
def test_pictures_and_masks_are_paired_by_name_in_each_layout(tmp_path, layout, val):
    data = load(dataset(tmp_path / "own", layout=layout, val=val))
    assert (data.name, data.num_classes, data.train_size, data.class_names) == ("masks-own", 3, 2, None)
    samples = list(data.val_dataloader())
    assert [round(255 * image.mean().item(), -1) for image, _ in samples] == [80, 40]  # 2.gif, a/1.jpg
    assert all(torch.equal(label[0], torch.from_numpy(numbers()).long()) for _, label in samples)
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, labels.shape, labels.dtype) == ((2, 3, 16, 24), (2, 16, 24), torch.int64)


def test_names_that_are_no_utf_8_are_paired_and_counted_in_the_fingerprint(tmp_path):
    root = dataset(tmp_path)
    before = load(root).fingerprint
    for kind in ("images", "masks"):
        picture = next((root / kind / "train").rglob("*.*"))
        os.rename(picture, os.fsencode(picture.parent) + b"/\xff" + os.fsencode(picture.suffix))
    data = load(root)
    assert len(data.splits.train) == len(load(root).splits.train)
    assert data.fingerprint != before


def test_255_is_ignored_and_masks_may_have_a_palette_or_one_bit(tmp_path):
    holed = numbers()
    holed[:3] = IGNORED
    coloured = Image.fromarray(holed)
    coloured.putpalette(np.random.RandomState(0).randint(0, 255, 768, dtype=np.uint8).tobytes())
    data = load(dataset(tmp_path / "palette", coloured))
    assert data.num_classes == 3
    assert (data.splits.val[0][1].numpy() == holed).all()
    one_bit = load(dataset(tmp_path / "bits", Image.fromarray(numbers(2) > 0)))
    assert one_bit.num_classes == 2
    assert (one_bit.splits.val[0][1].numpy() == numbers(2)).all()
    assert load(dataset(tmp_path / "wide", numbers().astype(np.uint16), ending=".tif")).num_classes == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "\ufeffsky\r\nwild sea \r\nland\r\nunseen\r\n\r\n"),
        ("classes.json", '["sky", "wild sea", "land", "unseen"]'),
    ],
)
def test_a_list_names_the_classes_also_those_that_no_mask_holds(tmp_path, name, content):
    root = dataset(tmp_path / "own")
    (root / name).write_bytes(content.encode())
    data = load(root)
    assert (data.num_classes, data.class_names) == (4, ("sky", "wild sea", "land", "unseen"))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"classes.txt": "a\nb\n"}, r"holds the number 2, and the list in .* names 2 classes, 0 to 1: add to the list"),
        ({"classes.txt": "a\n\nb\n"}, "is no list of classes: write their names, one a line"),
        ({"classes.txt": "\n"}, "names 0 classes: a mask can tell 2 to 255"),
        ({"classes.txt": "a\n" * 256}, "names 256 classes"),
        ({"classes.txt": "a\nb\nc", "classes.json": "[]"}, "holds two lists of classes, classes.txt and classes.json"),
        ({"classes.json": '{"a": 1}'}, "is no list of classes"),
        ({"classes.json": "[1, 2]"}, "is no list of classes"),
        ({"classes.json": "["}, "cannot be read as a list of classes"),
        ({"classes.txt": b"\xff\xfe"}, "cannot be read as a list of classes"),
    ],
)
def test_a_list_that_does_not_fit_is_one_sentence(tmp_path, files, sentence):
    root = dataset(tmp_path / "own")
    for name, content in files.items():
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=sentence) as told:
        load(root).setup()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), r"not RGB: give each colour the number of its class, and save"),
        (np.zeros((HEIGHT, WIDTH, 4), np.uint8), r"not RGBA: give each colour"),
        (numbers().astype(np.float32), r"not F: number the classes from 0"),
        (numbers().astype(np.uint16) * 200, r"not I;16: number the classes from 0"),
        (numbers()[:, 1:], r"2\.png: it has 33×20 pixels and its picture 34×20 \(4 of 4 masks do not fit\)"),
        (numbers().T, r"it has 20×34 pixels and its picture 34×20"),
        (255 * numbers(2), r"hold no numbers but 0 and 255, which is ignored: write 1 for what is to be found"),
        (0 * numbers(), r"hold no numbers but \[0\]: write 1"),
        (0 * numbers() + 255, r"hold no numbers but \[255\]: write 1"),
    ],
)  # fmt: skip
def test_masks_that_do_not_fit_are_one_sentence(tmp_path, mask, sentence, cache):
    with pytest.raises(DataError, match=sentence) as told:
        load(dataset(tmp_path / "own", mask, ending=".tif" if mask.dtype == np.float32 else ".png")).setup()
    assert "\n" not in str(told.value)


def test_jpeg_masks_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"2\.jpg is a JPEG, which changes numbers of classes: save masks as PNG"):
        load(dataset(tmp_path / "own", ending=".jpg")).setup()


def test_pictures_without_masks_and_two_of_one_name_are_told(tmp_path):
    root = dataset(tmp_path / "own")
    mask = root / "masks/train/a/1.png"
    mask.rename(root / "masks/train/a/9.png")
    with pytest.raises(
        DataError, match=r"a/1\.jpg has no mask \(1 of 2 pictures have none\): put .*masks/train/a/1\.png"
    ):
        load(root).setup()
    mask.write_bytes((root / "masks/train/a/9.png").read_bytes())
    with pytest.warns(UserWarning, match=r"left out 1 masks that have no picture, as a/9\.png"):
        load(root).setup()
    save(root / "images/val/2.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    (root / "masks/train/a/9.png").unlink()
    with pytest.raises(DataError, match=r"images/val holds 2\.gif and 2\.png, which have one name"):
        load(root).setup()


@pytest.mark.parametrize("split", ["train", "val"])
def test_folders_that_are_missing_are_told(tmp_path, split):
    root = dataset(tmp_path / "own")
    (root / "masks" / split).rename(root / "elsewhere")
    where = f"images/{split} and masks/{split}, or {split}/images and {split}/masks"
    with pytest.raises(DataError, match=f"lacks pictures with masks for {split}: put them into {where}"):
        load(root).setup()
    with pytest.raises(DataError, match="write masks:ROOT"):
        create_data("masks")
    with pytest.raises(DataError, match="needs a recipe of segmentation"):
        create_data(f"masks:{root}")


def test_masks_are_looked_at_once_until_a_file_changes(tmp_path, monkeypatch, caplog, cache):
    looks = []
    look = Look.__getitem__
    monkeypatch.setattr(Look, "__getitem__", lambda self, index: looks.append(index) or look(self, index))
    root = dataset(tmp_path / "own")
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        assert load(root).num_classes == load(root).num_classes == 3
    assert len(looks) == 4
    assert "3 classes, as its masks' largest number is 2" in caplog.text
    with pytest.warns(UserWarning, match="no mask holds 3 of the 7 numbers from 0 to 6"):
        assert load(dataset(tmp_path / "own", 2 * numbers(4))).num_classes == 7
    assert len(looks) == 8
    for kept in cache.iterdir():
        kept.write_text("{")
    with pytest.warns(UserWarning, match="no mask holds"):
        load(root).setup()
    assert len(looks) == 12


def test_a_look_changes_no_random_number(tmp_path):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    create_data(f"masks:{dataset(tmp_path / 'own')}", augmentation=PLAIN, num_workers=1).setup()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_disk_that_cannot_be_written_costs_another_look_only(tmp_path, monkeypatch):
    def full(*_):
        raise OSError

    monkeypatch.setattr(masks, "write_atomically", full)
    assert load(dataset(tmp_path / "own")).num_classes == 3


def test_damaged_files_are_named_when_they_are_read(tmp_path):
    root = dataset(tmp_path / "own")
    (root / "masks/val/a/1.png").write_bytes(b"no picture")
    (root / "images/train/2.gif").write_bytes(b"no picture")
    data = load(root)
    assert data.num_classes == 3
    with pytest.warns(UserWarning, match=r"skipped unreadable image a/1\.jpg"):
        assert len(list(data.val_dataloader())) == 1
    with pytest.warns(UserWarning, match=r"skipped unreadable image 2\.gif .* takes its place"):
        assert len(next(iter(data.train_dataloader()))[0]) == 2


def test_pictures_and_masks_on_their_side_fit(tmp_path):
    root = dataset(tmp_path / "own", numbers())
    exif = Image.Exif()
    exif[274] = 6
    on_its_side = Image.new("RGB", (HEIGHT, WIDTH))
    for split in ("train", "val"):
        on_its_side.save(root / f"images/{split}/a/1.jpg", exif=exif)
    assert [label.shape[1:] for _, label in load(root).val_dataloader()] == [(HEIGHT, WIDTH)] * 2


def test_a_recipe_of_segmentation_trains_on_them(tmp_path):
    overrides = {
        "crop": (16, 24), "resize": (16, 64), "channels": 16, "auxiliary_channels": 8, "gpus": 1, "batch_size": 2,
        "iterations": 0, "epochs": 1,
    }  # fmt: skip
    root = dataset(tmp_path / "own")
    (root / "classes.json").write_text(json.dumps(["sky", "sea", "land"]))
    name = "deeplabv3plus_cityscapes_80k"
    data = data_for_recipe(f"masks:{root}", get_recipe(name, **overrides), num_workers=0)
    assert data.augmentation.crop == (16, 24)
    task = SegmentTask(
        "mobilenetv2_lk", name, data.num_classes, model_options={"width": 0.1}, recipe_overrides=overrides
    )
    run = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=1,
        enable_model_summary=False, log_every_n_steps=1, default_root_dir=tmp_path,
    )  # fmt: skip
    run.fit(task, data)
    assert 0 <= run.callback_metrics["val_miou"] <= 100
