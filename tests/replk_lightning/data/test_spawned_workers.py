"""Windows and macOS start workers anew: what a loader gives them goes through pickle."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from replk_lightning.data import data_for_recipe
from replk_lightning.recipes import get_recipe


def pictures(folder, count=3, classes=None):
    folder.mkdir(parents=True)
    for i in range(count):
        shape = (40, 40) if classes else (40, 40, 3)
        pixels = np.random.RandomState(i).randint(0, classes or 255, shape).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def image_folder(root):
    for split in ("train", "val"):
        for name in ("a", "b"):
            pictures(root / split / name)
    return f"imagefolder:{root}", "replknet_300ep"


def masks(root):
    for split in ("train", "val"):
        pictures(root / "images" / split)
        pictures(root / "masks" / split, classes=3)
    return f"masks:{root}", "upernet_ade20k_160k"


def coco(root):
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        pictures(root / f"{split}2017", 1)
        image = {"id": 1, "file_name": "0.png", "width": 40, "height": 40}
        found = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 10, 12], "area": 120, "iscrowd": 0}
        outline = {"segmentation": [[5, 6, 15, 6, 15, 18, 5, 18]]}
        content = {"images": [image], "annotations": [found | outline], "categories": [{"id": 1, "name": "thing"}]}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content), encoding="utf-8")
    return f"coco:{root}", "fcos_2x"


def generated(root):
    return "generated", "mobilenetv2_100ep"


@pytest.mark.parametrize("make", [image_folder, masks, coco, generated])
def test_what_workers_are_given_can_be_sent(make, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name, recipe = make(tmp_path / "set")
    data = data_for_recipe(name, get_recipe(recipe), num_workers=0)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for part in (loader.dataset, loader.collate_fn, loader.worker_init_fn):
            pickle.loads(pickle.dumps(part))
