"""Boxes of one's own in COCO's format: without masks, as annotation tools export them, of pictures on their side."""

import json
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from faster_coco_eval.core.mask import encode
from PIL import Image

from replk_lightning.data import DataError, create_data, data_for_recipe
from replk_lightning.data.coco import EXPORTED, Coco
from replk_lightning.recipes import get_recipe
from replk_lightning.tasks.detect import DetectTask

WIDTH, HEIGHT = 40, 30
BOX = {"id": 11, "image_id": 0, "category_id": 1, "bbox": [5, 6, 10, 12], "iscrowd": 0}
POLYGON = [[5, 6, 15, 6, 15, 18, 5, 18]]
NAMES = ({"id": 1, "name": "cat"}, {"id": 2, "name": "dog"})
SPLITS = ("train", "valid")


def export(root: Path, annotations, categories=NAMES, splits=SPLITS, sizes=(WIDTH, HEIGHT), **picture) -> Path:
    """Two pictures a split, as tools of annotation lay them."""
    width, height = sizes
    for split in splits:
        (root / split).mkdir(parents=True)
        for n in range(2):
            Image.new("RGB", (WIDTH, HEIGHT), (90 * n,) * 3).save(root / split / f"{n}.jpg", **picture)
        images = [{"id": n, "file_name": f"{n}.jpg", "width": width, "height": height} for n in range(2)]
        content = {"info": {}, "images": images, "categories": list(categories), "annotations": annotations}
        (root / split / EXPORTED).write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    "splits", [("train", "valid"), ("train", "val"), ("train", "test"), ("train", "valid", "test")]
)
def test_exports_of_annotation_tools_are_read(tmp_path, splits):
    data = Coco(export(tmp_path, [BOX | {"segmentation": POLYGON}], splits=splits), num_workers=0)
    assert (data.num_classes, data.train_size, data.class_names) == (2, 1, ("cat", "dog"))
    assert data.splits.val.annotations.folder.name == splits[1]
    _, target = data.splits.val[0]
    assert target["boxes"].tolist() == [[5, 6, 15, 18]]
    assert target["masks"].sum() == 120


def test_an_exports_first_category_that_only_groups_the_others_is_none(tmp_path):
    grouped = [{"id": 0, "name": "animals", "supercategory": "none"}]
    grouped += [each | {"supercategory": "animals"} for each in NAMES]
    data = Coco(export(tmp_path / "a", [BOX], grouped), num_workers=0)
    with pytest.warns(UserWarning, match="left out category 0, 'animals', which has no object"):
        data.setup()
    assert data.class_names == ("cat", "dog")
    assert data.splits.train[0][1]["labels"].tolist() == [0]
    used = Coco(export(tmp_path / "b", [BOX, BOX | {"category_id": 0}], grouped), num_workers=0)
    assert used.class_names == ("animals", "cat", "dog")
    own = [each | {"supercategory": each["name"]} for each in NAMES]  # as COCO's person
    assert Coco(export(tmp_path / "c", [BOX], own), num_workers=0).class_names == ("cat", "dog")


def test_a_category_without_a_name_is_called_by_its_id(tmp_path):
    assert Coco(export(tmp_path, [BOX], [{"id": 1}, {"id": 7}]), num_workers=0).class_names == ("1", "7")


def test_annotations_of_pictures_that_are_not_listed_are_named(tmp_path):
    root = export(tmp_path, [BOX, BOX | {"image_id": 7}, BOX | {"image_id": 7}], splits=("train",))
    export(tmp_path, [BOX], splits=("valid",))
    with pytest.warns(UserWarning, match="left out 2 annotations of 1 pictures that it does not list"):
        assert Coco(root, num_workers=0).train_size == 1


def test_a_file_may_begin_with_a_mark(tmp_path):
    path = export(tmp_path, [BOX]) / "train" / EXPORTED
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    assert Coco(tmp_path).train_size == 1


def test_splits_that_name_other_categories_are_told(tmp_path):
    export(tmp_path, [BOX], splits=("train",))
    export(tmp_path, [BOX], [NAMES[0], {"id": 2, "name": "cow"}], splits=("valid",))
    with pytest.raises(DataError, match="name different categories: take both of one version"):
        Coco(tmp_path).setup()


def test_what_an_export_lacks_is_named(tmp_path):
    export(tmp_path, [BOX], splits=("train",))
    with pytest.raises(DataError, match=r"or name a folder that holds train/_annot.* and valid/_annot"):
        Coco(tmp_path).setup()


@pytest.mark.parametrize(
    "lacking", [{}, *({"segmentation": s} for s in ([], None, {}, [[]], [[1, 2, 3, 4]], {"counts": []}))]
)
def test_boxes_need_no_masks(tmp_path, lacking):
    root = export(tmp_path, [BOX | lacking, BOX | {"id": 12, "segmentation": POLYGON}])
    for data in (create_data(f"coco:{root}"), data_for_recipe(f"coco:{root}", get_recipe("fcos_2x"))):
        _, target = data.splits.train[0]
        assert target["boxes"].shape == (2, 4)
        assert "masks" not in target
    with pytest.raises(DataError, match=r"annotation 11 on 0\.jpg has no mask \(1 have none\).* as fcos_2x\.") as told:
        data_for_recipe(f"coco:{root}", get_recipe("cascade_mask_rcnn_3x")).setup()
    assert f"{root / 'train' / EXPORTED}: " in str(told.value)


def test_a_crowd_that_is_not_trained_on_needs_no_mask_in_training(tmp_path):
    whole, crowd = BOX | {"segmentation": POLYGON}, BOX | {"id": 12, "iscrowd": 1}
    export(tmp_path, [whole, crowd], splits=("train",))
    export(tmp_path, [whole], splits=("valid",))
    data = data_for_recipe(f"coco:{tmp_path}", get_recipe("cascade_mask_rcnn_3x"))
    assert len(data.splits.train.annotations.target(0, HEIGHT, WIDTH)["masks"]) == 1


def runs_of(mask):
    ends = torch.cat([torch.zeros(1), mask.T.flatten(), torch.zeros(1)]).diff().nonzero().flatten().tolist()
    return torch.tensor([0, *ends, mask.numel()]).diff().tolist()


@pytest.mark.parametrize("crowd", [0, 1])
def test_runs_are_masks_too_compressed_or_not(tmp_path, crowd):
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[6:18, 5:15] = 1
    packed = encode(mask.T.contiguous().to(torch.uint8).numpy().T)["counts"]
    text = packed if isinstance(packed, str) else packed.decode()
    shapes = [{"size": [HEIGHT, WIDTH], "counts": counts} for counts in (text, runs_of(mask))]
    root = export(
        tmp_path, [BOX | {"id": n, "iscrowd": crowd, "segmentation": s} for n, s in enumerate([*shapes, POLYGON])]
    )
    if crowd:
        export(root / "else", [BOX | {"segmentation": POLYGON}], splits=("train",))
        (root / "train" / EXPORTED).write_text((root / "else/train" / EXPORTED).read_text())
    _, target = Coco(root, num_workers=0).splits.val[0]
    assert target["iscrowd"].tolist() == [crowd] * 3
    assert (target["masks"] == mask.to(torch.uint8)).all()


def test_a_detector_of_boxes_trains_and_is_measured_without_masks(tmp_path):
    overrides = {
        "channels": 16, "head_convs": 1, "train_sizes": (48, 64), "test_size": 64, "max_size": 96, "drop_path": 0.0,
        "batch_size": 2, "gpus": 1,
    }  # fmt: skip
    root = export(tmp_path / "data", [BOX, BOX | {"id": 2, "image_id": 1, "segmentation": []}])
    (root / "valid/1.jpg").write_bytes(b"no picture")
    data = data_for_recipe(f"coco:{root}", get_recipe("fcos_2x", **overrides), num_workers=0)
    tiny = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
    task = DetectTask("replknet_3", "fcos_2x", data.num_classes, model_options=tiny, recipe_overrides=overrides)
    run = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=1,
        enable_model_summary=False, log_every_n_steps=1, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"skipped unreadable image .*1\.jpg"):
        run.fit(task, data)
    assert 0 <= run.callback_metrics["val_box_ap"] <= 100


def test_random_crops_of_boxes_need_no_masks(tmp_path):
    augmentation = {"hflip": 1.0, "random_crop": True}
    data = Coco(export(tmp_path, [BOX]), num_workers=0)
    data.augmentation = data.augmentation.__class__(**augmentation)
    torch.manual_seed(0)
    shapes = {tuple(data.splits.train[0][0].shape[1:]) for _ in range(8)}
    assert len(shapes) > 1


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def test_pictures_on_their_side_fit_annotations_of_what_people_saw(tmp_path):
    data = Coco(export(tmp_path, [BOX], sizes=(HEIGHT, WIDTH), exif=exif(6)), num_workers=0)
    image, target = data.splits.val[0]
    assert image.shape == (3, WIDTH, HEIGHT)
    assert target["boxes"].shape == (1, 4)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((WIDTH, HEIGHT), r"it has 30×40 pixels and its annotations are for 40×30, as where a tool ignored its EXIF"),
        ((WIDTH, WIDTH), r"it has 30×40 pixels and its annotations are for 40×40\)"),
    ],
)
def test_annotations_of_another_size_are_named_and_not_used(tmp_path, sizes, reason):
    data = Coco(export(tmp_path, [BOX], sizes=sizes, exif=exif(6)), num_workers=0)
    with pytest.warns(UserWarning, match=rf"skipped unreadable image .*0\.jpg \({reason}"):
        assert data.splits.val[0] is None
    with pytest.raises(DataError, match="None of the 1 images"), pytest.warns(UserWarning, match=reason):
        data.splits.train[0]


@pytest.mark.parametrize("unknown", [None, 0])
def test_a_size_that_annotations_do_not_say_is_not_compared(tmp_path, unknown):
    data = Coco(export(tmp_path, [BOX], sizes=(unknown, unknown)), num_workers=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.splits.val[0][0].shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        ("images", {"id": 0, "file_name": "other.jpg"}, r"two pictures of the id 0: number them anew"),
        ("categories", {"id": 1, "name": "bird"}, r"two categories of the id 1: number them anew"),
        ("annotations", BOX | {"id": 12, "category_id": 7}, r"annotation 12 is of the category 7, which is not listed"),
    ],
)
def test_what_files_put_together_confuse_is_named(tmp_path, part, entry, message):
    root = export(tmp_path, [BOX])
    path = root / "train" / EXPORTED
    content = json.loads(path.read_text())
    content[part].append(entry)
    for split in SPLITS if part == "categories" else ["train"]:
        (root / split / EXPORTED).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        Coco(root, num_workers=0).setup()
