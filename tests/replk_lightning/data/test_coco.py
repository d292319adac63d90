import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from replk_lightning.data import DataError, create_data, data_for_recipe
from replk_lightning.data.coco import ARCHIVES, Coco, drawn, random_crop
from replk_lightning.data.detection import cropped, mirrored, resized
from replk_lightning.recipes import get_recipe
from replk_lightning.tasks.detect import DetectTask

WIDTH, HEIGHT = 40, 30
SQUARE = {"bbox": [5, 6, 10, 12], "segmentation": [[5, 6, 15, 6, 15, 18, 5, 18]], "iscrowd": 0}
HOLED = {"bbox": [20, 3, 8, 8], "segmentation": [[20, 3, 28, 3, 28, 11, 20, 11]], "iscrowd": 0}
RUNS = [40 * 30 - 60, 60]  # the last two columns
CROWD = {"bbox": [38, 0, 2, 30], "segmentation": {"counts": RUNS, "size": [HEIGHT, WIDTH]}, "iscrowd": 1}


def write(root: Path, split: str, annotations: list[dict], pictures: int = 3) -> None:
    """A split in COCO's format with categories 1, 5 and 90, ids of pictures from 7, all of one size."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"{split}2017").mkdir()
    images = [
        {"id": 7 + n, "file_name": f"{n:012}.jpg", "width": WIDTH, "height": HEIGHT} for n in reversed(range(pictures))
    ]
    for n, image in enumerate(reversed(images)):
        pixels = np.full((HEIGHT, WIDTH, 3), 60 * n, dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{split}2017" / image["file_name"])
    content = {
        "images": images,
        "categories": [{"id": identity, "name": str(identity)} for identity in (90, 1, 5)],
        "annotations": [{"id": n, **each} for n, each in enumerate(annotations)],
    }
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path):
    annotations = [
        {**SQUARE, "image_id": 7, "category_id": 90},
        {**HOLED, "image_id": 7, "category_id": 1},
        {**CROWD, "image_id": 7, "category_id": 5},
        {**SQUARE, "image_id": 9, "category_id": 5},
        {**SQUARE, "image_id": 9, "category_id": 5, "bbox": [5, 6, 0, 12]},
        {**CROWD, "image_id": 8, "category_id": 5},
    ]
    write(tmp_path, "train", annotations)
    write(tmp_path, "val", annotations)
    return tmp_path


def test_training_leaves_out_crowds_empty_boxes_and_pictures_without_objects(root):
    data = create_data(f"coco:{root}", batch_size=2, num_workers=0)
    assert data.train_size == 2
    assert data.num_classes == 3
    data.augmentation = data.augmentation.__class__(hflip=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    data._splits = None
    images, targets = next(iter(data.train_dataloader()))
    assert isinstance(images, list)
    order = np.argsort([float(image.mean()) for image in images])
    first, last = (targets[n] for n in order)
    assert images[order[0]].shape == (3, HEIGHT, WIDTH)
    assert images[order[1]].mean() == pytest.approx(120 / 255, abs=0.01)
    assert first["boxes"].tolist() == [[5, 6, 15, 18], [20, 3, 28, 11]]
    assert first["labels"].tolist() == [2, 0]
    assert last["labels"].tolist() == [1]
    assert first["masks"].dtype == torch.uint8
    assert first["masks"].shape == (2, HEIGHT, WIDTH)
    assert first["masks"][0].sum() == 10 * 12
    assert first["masks"][0, 6:18, 5:15].all()


def test_validation_keeps_all_pictures_and_marks_crowds(root):
    data = Coco(root, batch_size=3, num_workers=0)
    images, targets = next(iter(data.val_dataloader()))
    assert len(images) == 3
    assert targets[0]["iscrowd"].tolist() == [0, 0, 1]
    assert targets[0]["masks"][2, :, :38].sum() == 0
    assert targets[0]["masks"][2, :, 38:].all()
    assert targets[1]["iscrowd"].tolist() == [1]
    assert len(targets[2]["labels"]) == 2


def test_pictures_are_normalised_by_the_recipe(root):
    recipe = get_recipe("cascade_mask_rcnn_3x_xl")
    data = data_for_recipe(f"coco:{root}", recipe, num_workers=0)
    assert data.augmentation.random_crop
    assert data.batch_size == 4
    images, _ = next(iter(data.val_dataloader()))
    assert images[0].mean() == pytest.approx(-1, abs=0.02)  # black at mean and deviation 0.5
    assert not data_for_recipe(f"coco:{root}", get_recipe("fcos_2x")).augmentation.random_crop


def test_an_unreadable_picture_is_left_out_of_validation_and_replaced_in_training(root):
    for split in ("train", "val"):
        (root / f"{split}2017" / f"{0:012}.jpg").write_bytes(b"no picture")
    data = Coco(root, num_workers=0)
    with pytest.warns(UserWarning, match="skipped unreadable image"):
        targets = [target for _, targets in data.val_dataloader() for target in targets]
    assert [target["iscrowd"].tolist() for target in targets] == [[1], [0, 0]]
    with pytest.warns(UserWarning, match="the next one takes its place"):
        assert data.splits.train[0][1]["labels"].tolist() == [1]


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=f"instances_train2017.json: unpack {ARCHIVES} into"):
        Coco(tmp_path / "nowhere").setup()
    write(tmp_path, "train", [{**SQUARE, "image_id": 7, "category_id": 1}])
    with pytest.raises(DataError, match=r"instances_val2017\.json"):
        Coco(tmp_path).setup()
    write(tmp_path, "val", [])
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no folder .*val2017"):
        Coco(tmp_path).setup()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"unpack {ARCHIVES} into coco"):
        create_data("coco").setup()  # where it is looked for unless a folder is named


@pytest.mark.parametrize("content", ["{", '{"images": []}', '{"images": [], "categories": [], "annotations": [{}]}'])
def test_damaged_annotations_are_told(root, content):
    (root / "annotations" / "instances_train2017.json").write_text(content)
    with pytest.raises(DataError, match=r"instances_train2017\.json"):
        Coco(root).setup()


def test_the_fingerprint_changes_with_the_annotations(root):
    before = Coco(root).fingerprint
    assert Coco(root).fingerprint == before
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace("[5, 6, 10, 12]", "[5, 6, 10, 11]"))
    assert Coco(root).fingerprint != before


def test_masks_come_from_polygons_and_runs():
    holes = drawn([[1, 1, 3, 1, 3, 3, 1, 3], [5, 5, 8, 5, 8, 7, 5, 7]], 10, 12)
    assert holes.sum() == 4 + 6
    assert holes[5:7, 5:8].all()
    runs = drawn({"counts": [2, 3, 115], "size": [10, 12]}, 10, 12)
    assert np.flatnonzero(runs.T).tolist() == [2, 3, 4]  # column by column


def sample():
    image = torch.zeros(3, HEIGHT, WIDTH)
    image[:, 6:18, 5:15] = 1
    masks = (image[:1] > 0).to(torch.uint8)
    return image, {"boxes": torch.tensor([[5.0, 6, 15, 18]]), "labels": torch.tensor([1]), "masks": masks}


def around(mask):
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]


@pytest.mark.parametrize(
    "change",
    [
        mirrored,
        lambda image, target: resized(image, target, 60, 1000),
        lambda image, target: cropped(image, target, 10, 8, 15, 20),
    ],
)
def test_box_mask_and_picture_change_together(change):
    image, target = change(*sample())
    box = target["boxes"][0].tolist()
    assert around(target["masks"][0] > 0) == box
    assert around(image[0] > 0.5) == box
    assert target["masks"].shape[1:] == image.shape[1:]


def test_what_a_crop_leaves_outside_is_gone():
    _, target = cropped(*sample(), 20, 0, 10, 20)
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 10, 20)


def test_the_long_side_is_bounded():
    image, _ = resized(*sample(), 60, 60)
    assert image.shape[1:] == (45, 60)


def test_random_crops_have_the_releases_sizes():
    torch.manual_seed(0)
    for _ in range(10):
        image, target = random_crop(*sample())
        assert min(image.shape[1:]) >= 384
        assert max(image.shape[1:]) <= 600
        assert target["masks"].shape[1:] == image.shape[1:]


def test_a_detector_trains_and_is_measured_on_cocos_batches(root, tmp_path):
    overrides = {
        "channels": 16, "head_convs": 1, "fc": 16, "train_sizes": (48, 64), "test_size": 64, "max_size": 96,
        "random_crop": False, "proposals": (30, 15), "rois": 16, "drop_path": 0.0, "batch_size": 2, "gpus": 1,
    }  # fmt: skip
    tiny = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
    data = data_for_recipe(f"coco:{root}", get_recipe("cascade_mask_rcnn_3x", **overrides), num_workers=1)
    task = DetectTask(
        "replknet_3", "cascade_mask_rcnn_3x", data.num_classes, model_options=tiny, recipe_overrides=overrides
    )
    run = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=2,
        enable_model_summary=False, log_every_n_steps=1, default_root_dir=tmp_path,
    )  # fmt: skip
    run.fit(task, data)
    assert 0 <= run.callback_metrics["val_mask_ap"] <= run.callback_metrics["val_mask_ap50"] <= 100
    found = run.predict(task, data)
    assert [tuple(each["masks"].shape[1:]) for batch in found for each in batch] == [(HEIGHT, WIDTH)] * 3
