import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from faster_coco_eval.core.mask import decode
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from replk_lightning.data.augment import Augmentation
from replk_lightning.predict.command import decoded, main
from replk_lightning.predict.draw import colour_of, draw_classes, draw_objects, heart
from replk_lightning.predict.predictors import Objects, classes_at, rounded, runs
from replk_lightning.tasks.base import CLASS_NAMES, PIXELS
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.factory import Trained, load_task
from replk_lightning.tasks.multitask import MultiTaskClassify
from replk_lightning.tasks.segment import SegmentTask

TINY = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
SHORT = {"gpus": 1, "batch_size": 2, "drop_path": 0.0, "channels": 16}
SEGMENT = {**SHORT, "auxiliary_channels": 8, "crop": (32, 32), "resize": (32, 64)}
DETECT = {**SHORT, "head_convs": 1, "train_sizes": (64,), "test_size": 64, "max_size": 96}
STAGES = {"fc": 16, "proposals": (40, 20), "rois": 16, "detections": 10, "random_crop": False}
K = 4


def saved(task, path, **more):
    """A checkpoint with what Lightning's have of these, of a net that finds something in noise."""
    norms = [module for module in task.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        getattr(task.model, "backbone", task.model).train()(torch.randn(2, task.hparams["in_chans"], 64, 64))
    for name, values in task.model.state_dict().items():
        if "head" in name and values.is_floating_point():
            if values.ndim > 1 and not name.endswith(
                ("rpn.head.bbox_pred.weight", ".boxes.weight")
            ):  # boxes stay inside
                torch.nn.init.normal_(values, std=0.3)
            elif "cls_logits" in name:
                values.zero_()  # else FCOS starts with finding nothing
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), **more}, path)
    return path


def task_of(kind):
    torch.manual_seed(0)
    if kind == "classification":
        return ClassifyTask("mobilenetv2_lk", "mobilenetv2_100ep", K, model_options={"width": 0.1},
                            recipe_overrides={"resolution": 32})  # fmt: skip
    if kind == "upernet":
        return SegmentTask("replknet_3", "upernet_cityscapes_80k", K, model_options=TINY, recipe_overrides=SEGMENT)
    if kind == "deeplabv3plus":
        return SegmentTask("mobilenetv2_lk", "deeplabv3plus_cityscapes_80k", K, model_options={"width": 0.1},
                           recipe_overrides=SEGMENT)  # fmt: skip
    if kind == "fcos":
        return DetectTask("replknet_3", "fcos_2x", K, model_options=TINY, recipe_overrides=DETECT)
    overrides = {**DETECT, **STAGES}
    return DetectTask("replknet_3", "cascade_mask_rcnn_3x", K, model_options=TINY, recipe_overrides=overrides)


def noise(*size):
    random = np.random.default_rng(sum(size))
    return Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture
def pictures(tmp_path):
    """Three pictures of different sizes, colour modes and formats, one of them in a folder below."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    noise(40, 56).save(folder / "a.jpg")
    noise(37, 29).convert("L").save(folder / "below" / "b.png")
    noise(40, 56).save(folder / "c.png")
    return folder


def predicted(tmp_path, checkpoint, pictures, *more):
    out = tmp_path / "out"
    assert main(["--ckpt", str(checkpoint), "--images", str(pictures), "--out", str(out), "--device=cpu", *more]) == 0
    return json.loads((out / "predictions.json").read_text())


@pytest.mark.parametrize("kind", ["upernet", "deeplabv3plus"])
def test_segments_are_those_of_the_evaluation_at_the_pictures_size(tmp_path, pictures, kind):
    checkpoint = saved(task_of(kind), tmp_path / "last.ckpt")
    found = predicted(tmp_path, checkpoint, pictures)
    assert (found["task"], found["num_classes"], found["unreadable"]) == ("segmentation", K, [])
    assert [each["file"] for each in found["images"]] == ["a.jpg", "below/b.png", "c.png"]
    trained = load_task(checkpoint)
    size = {"upernet": (32, 45), "deeplabv3plus": (32, 48)}[kind]  # DeepLab's decoder wants multiples of eight
    for each in found["images"]:
        picture = decoded(pictures / each["file"])
        assert (each["height"], each["width"]) == (picture.height, picture.width)
        masks = [decode(segment["mask"]) for segment in each["segments"]]
        assert (sum(masks) == 1).all()
        shares = [segment["share"] for segment in each["segments"]]
        assert shares == pytest.approx([mask.mean() for mask in masks], abs=1e-6)
        assert shares == sorted(shares, reverse=True)
        overlay = decoded(tmp_path / "out" / f"{each['file']}.png")
        classes = torch.from_numpy(
            sum(s["class"] * m.astype(np.int64) for s, m in zip(each["segments"], masks, strict=True))
        )
        assert torch.equal(pil_to_tensor(overlay), draw_classes(pil_to_tensor(picture), classes))
        if (picture.height, picture.width) == (40, 56):
            image = pil_to_tensor(picture)[None]
            smaller = F.interpolate(image.float(), size, mode="bilinear", antialias=True).round() / 255
            mean, std = (torch.tensor(each)[:, None, None] for each in (trained.mean, trained.std))
            with torch.no_grad():
                probabilities = trained.task((smaller - mean) / std)
            aligned = trained.task.recipe.align_corners
            expected = F.interpolate(probabilities, (40, 56), mode="bilinear", align_corners=aligned)[0].argmax(0)
            assert (classes == expected).float().mean() > 0.95  # bytes are rounded after one pass or after each
            assert aligned == (kind == "upernet")


@pytest.mark.parametrize("kind", ["fcos", "cascade"])
def test_objects_are_the_detections_above_the_score(tmp_path, pictures, kind):
    checkpoint = saved(task_of(kind), tmp_path / "last.ckpt")
    trained, names = load_task(checkpoint), ["a.jpg", "below/b.png", "c.png"]
    with torch.no_grad():
        finder = Objects(trained, torch.device("cpu"), 0.05)
        everything = {name: trained.task([finder.prepare(decoded(pictures / name))])[0] for name in names}
    scores = torch.cat([expected["scores"] for expected in everything.values()]).sort().values
    score = float(scores[len(scores) // 2 - 1 :][:2].mean())
    found = predicted(tmp_path, checkpoint, pictures, f"--score={score}")
    assert found["task"] == "detection"
    count = 0
    for each in found["images"]:
        picture, expected = decoded(pictures / each["file"]), everything[each["file"]]
        kept = expected["scores"] > score
        assert [o["class"] for o in each["objects"]] == expected["labels"][kept].tolist()
        assert [o["score"] for o in each["objects"]] == pytest.approx(expected["scores"][kept].tolist(), abs=1e-4)
        boxes = expected["boxes"][kept].flatten().tolist()
        assert [v for o in each["objects"] for v in o["box"]] == pytest.approx(boxes, abs=0.1)
        if kind == "cascade":
            masks = np.array([decode(o["mask"]) for o in each["objects"]]).reshape(-1, picture.height, picture.width)
            assert (masks != expected["masks"][kept].numpy()).sum() <= 0.01 * masks.size
        overlay = decoded(tmp_path / "out" / f"{each['file']}.png")
        assert overlay.size == picture.size
        drawn = overlay.tobytes() != picture.tobytes()
        assert drawn == bool(each["objects"])
        count += len(each["objects"])
    assert 0 < count < len(scores)


@pytest.mark.parametrize("channels", [1, 3])
def test_classes_are_the_most_probable(tmp_path, pictures, channels):
    overrides = {"resolution": 32}
    task = ClassifyTask("mobilenetv2_lk", "mobilenetv2_100ep", K, channels, None, {"width": 0.1}, overrides)
    more = {PIXELS: {"mean": [0.2], "std": [0.4]}} if channels == 1 else {}
    checkpoint = saved(task, tmp_path / "last.ckpt", **more)
    found = predicted(tmp_path, checkpoint, pictures, "--top-k=2", "--batch-size=3")
    assert found["task"] == "classification"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.json"]
    trained = load_task(checkpoint)
    looks = {"mean": (0.2,), "std": (0.4,), "crop_pct": 1.0} if channels == 1 else {}
    transform = Augmentation(**looks).eval_transform(32)
    for each in found["images"]:
        picture = decoded(pictures / each["file"]).convert("L" if channels == 1 else "RGB")
        with torch.no_grad():
            values, classes = trained.task(transform(picture)[None]).softmax(1)[0].topk(2)
        assert each["classes"] == classes.tolist()
        assert each["probabilities"] == pytest.approx(values.tolist(), abs=1e-4)


def test_several_tasks_have_their_own_classes(tmp_path, pictures):
    torch.manual_seed(0)
    task = MultiTaskClassify({"birds": 3, "cars": 2}, "mobilenetv2_lk", "mobilenetv2_100ep",
                             model_options={"width": 0.1}, recipe_overrides={"resolution": 32})  # fmt: skip
    found = predicted(tmp_path, saved(task, tmp_path / "last.ckpt"), pictures)
    for each in found["images"]:
        assert sorted(each["tasks"]["birds"]["classes"]) == [0, 1, 2]
        assert sum(each["tasks"]["cars"]["probabilities"]) == pytest.approx(1, abs=1e-4)


NAMES = ["ant", "bee", "cat", "dog"]


@pytest.mark.parametrize("kind", ["classification", "upernet", "fcos"])
def test_classes_have_the_names_of_the_checkpoint(tmp_path, pictures, kind):
    checkpoint = saved(task_of(kind), tmp_path / "last.ckpt", **{CLASS_NAMES: NAMES})
    named = predicted(tmp_path, checkpoint, pictures, "--score=0")
    plain = predicted(tmp_path, saved(task_of(kind), tmp_path / "old.ckpt"), pictures, "--score=0")
    for each, same in zip(named["images"], plain["images"], strict=True):
        if kind == "classification":
            assert each.pop("names") == [NAMES[label] for label in each["classes"]]
        else:
            found = each["segments" if kind == "upernet" else "objects"]
            assert found
            assert [one.pop("name") for one in found] == [NAMES[one["class"]] for one in found]
        assert each == same  # without names it is as before


def test_names_of_several_tasks_are_counted_through(tmp_path, pictures):
    task = MultiTaskClassify({"birds": 2, "cars": 2}, "mobilenetv2_lk", "mobilenetv2_100ep",
                             model_options={"width": 0.1}, recipe_overrides={"resolution": 32})  # fmt: skip
    found = predicted(tmp_path, saved(task, tmp_path / "last.ckpt", **{CLASS_NAMES: NAMES}), pictures)
    for each in found["images"]:
        birds = each["tasks"]["birds"]
        assert birds["names"] == [NAMES[label] for label in birds["classes"]]
        assert sorted(each["tasks"]["cars"]["names"]) == ["cat", "dog"]


def test_names_that_are_not_one_for_each_class_are_not_used(tmp_path):
    for wrong in (["a"], "abcd", {"a": 1}):
        assert (
            load_task(saved(task_of("classification"), tmp_path / "x.ckpt", **{CLASS_NAMES: wrong})).class_names is None
        )


def test_names_are_written_over_pictures():
    picture = pil_to_tensor(noise(60, 80))
    classes = torch.zeros(60, 80, dtype=torch.int64)
    classes[:, 40:] = 3
    tinted, titled = draw_classes(picture, classes), draw_classes(picture, classes, NAMES)
    changed = (tinted != titled).any(0)
    for first in (0, 40):
        rows, columns = changed[:, first : first + 40].nonzero().float().mean(0).tolist()
        assert (rows, columns) == pytest.approx((30, 20), abs=5)
    left, above = heart(classes == 3)
    assert (left, above) in {(x, y) for x in (59, 60) for y in (29, 30)}
    found = {"boxes": torch.tensor([[4.0, 20, 70, 50]]), "labels": torch.tensor([3]), "scores": torch.tensor([0.9])}
    assert not torch.equal(draw_objects(picture, found), draw_objects(picture, found, NAMES))


def test_what_cannot_be_read_is_listed_and_stops_nothing(tmp_path, pictures, monkeypatch, capsys):
    whole = (pictures / "a.jpg").read_bytes()
    (pictures / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "text.png").write_text("<html>")
    (pictures / "empty.bmp").touch()
    os.mkfifo(pictures / "pipe.png")
    (pictures / "gone.png").symlink_to(pictures / "nowhere.png")
    noise(200, 300).save(pictures / "bomb.png")
    noise(1, 400).save(pictures / "line.png")
    with open(os.fsencode(pictures) + b"/\xff.png", "wb") as file:
        noise(8, 8).save(file, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    checkpoint = saved(task_of("fcos"), tmp_path / "last.ckpt")
    found = predicted(tmp_path, checkpoint, pictures, "--batch-size=4")
    reasons = {each["file"]: each["reason"] for each in found["unreadable"]}
    assert reasons.keys() == {"cut.jpg", "text.png", "empty.bmp", "pipe.png", "gone.png", "bomb.png", "line.png"}
    assert reasons["pipe.png"] == reasons["gone.png"] == "it is not a file"
    assert "DecompressionBomb" in reasons["bomb.png"]
    assert "400×1 pixels" in reasons["line.png"]
    assert {each["file"] for each in found["images"]} == {"a.jpg", "below/b.png", "c.png", "\udcff.png"}
    assert "7 could not be read" in capsys.readouterr().out


class Hostile:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no checkpoint"),
        (b"<html>", "is not a checkpoint of this package's tasks: name one that `fit` wrote"),
        ({"conv.weight": torch.zeros(3)}, "is not a checkpoint of this package's tasks"),
        ({"hyper_parameters": {"recipe": "fcos_2x"}, "state_dict": Hostile()}, "is not a checkpoint"),
        (
            {"hyper_parameters": {"model": "resnet18", "recipe": "fcos_9x"}, "state_dict": {}},
            "there is no recipe 'fcos_9x'",
        ),
        ({"hyper_parameters": {"recipe": "fcos_2x", "x": 1}, "state_dict": {}}, "does not fit the recipe fcos_2x"),
    ],
)
def test_what_is_no_checkpoint_of_ours_gets_one_sentence_and_2(
    tmp_path, pictures, capsys, monkeypatch, content, sentence
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    assert main(["--ckpt", str(path), "--images", str(pictures), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("predict: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert not (tmp_path / "executed").exists()


def test_folders_that_will_not_do_get_one_sentence_and_2(tmp_path, pictures, capsys):
    checkpoint = ["--ckpt", str(saved(task_of("classification"), tmp_path / "last.ckpt")), "--device=cpu"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    wrong = [
        (tmp_path / "nowhere", tmp_path / "out", "there is no folder"),
        (tmp_path / "empty", tmp_path / "out", "holds no image"),
        (pictures, pictures / "out", "name another --out"),
        (pictures, tmp_path / "file", "cannot be written"),
    ]
    for images, out, sentence in wrong:
        assert main([*checkpoint, "--images", str(images), "--out", str(out)]) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "empty" / "x.png").touch()
    assert main([*checkpoint, "--images", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
    assert "none of the 1 pictures" in capsys.readouterr().err
    for flag in ("--score=2", "--top-k=0", "--batch-size=x"):
        with pytest.raises(SystemExit, match="2"):
            main([*checkpoint, "--images", str(pictures), "--out", "out", flag])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("size", [(9, 7), (20, 31), (5, 3)])
def test_classes_of_large_pictures_are_found_one_by_one(size, aligned):
    probabilities = torch.rand(6, 9, 7, generator=torch.Generator().manual_seed(0)).softmax(0)
    larger = F.interpolate(probabilities[None], size, mode="bilinear", align_corners=aligned)[0]
    assert torch.equal(classes_at(probabilities, size, aligned), larger.argmax(0))


def test_runs_hold_the_mask():
    mask = torch.rand(13, 7, generator=torch.Generator().manual_seed(0)) > 0.6
    found = json.loads(json.dumps(runs(mask)))
    assert found["size"] == [13, 7]
    assert np.array_equal(decode(found), mask.numpy())
    assert decode(runs(torch.zeros(3, 2))).sum() == 0


def test_pixels_are_tinted_by_their_class():
    picture, classes = pil_to_tensor(noise(6, 5)), torch.arange(30).view(6, 5) % 3
    drawn = draw_classes(picture, classes)
    for y in range(6):
        for x in range(5):
            tint = torch.tensor(colour_of(int(classes[y, x])))
            expected = (picture[:, y, x].float() + tint) / 2
            assert (drawn[:, y, x] - expected).abs().max() < 1


def test_each_of_150_classes_has_its_colour():
    colours = {colour_of(label) for label in range(150)}
    assert len(colours) == 150
    assert colour_of(7) == colour_of(7)


def test_objects_that_overlap_are_both_seen():
    picture = torch.zeros(3, 40, 40, dtype=torch.uint8)
    masks = torch.zeros(2, 40, 40, dtype=torch.uint8)
    masks[0, 5:30, 5:30] = masks[1, 20:38, 20:38] = 1
    boxes = torch.tensor([[5.0, 5, 30, 30], [20, 20, 38, 38]])
    found = {"boxes": boxes, "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.8]), "masks": masks}
    drawn = draw_objects(picture, found)
    assert (drawn[:, 25, 25] > 0).any()  # in both
    assert torch.equal(drawn[:, 0, 39], picture[:, 0, 39])
    nothing = {name: values[:0] for name, values in found.items()}
    assert torch.equal(draw_objects(picture, nothing), picture)


def test_nets_of_other_channels_are_told(tmp_path, pictures, capsys):
    task = ClassifyTask("mobilenetv2_lk", "mobilenetv2_100ep", K, 2, None, {"width": 0.1}, {"resolution": 32})
    checkpoint = saved(task, tmp_path / "x.ckpt", **{PIXELS: {"mean": [0.5] * 2, "std": [0.5] * 2}})
    assert main(["--ckpt", str(checkpoint), "--images", str(pictures), "--out", str(tmp_path / "out")]) == 2
    assert "sees 2 channels" in capsys.readouterr().err
    assert isinstance(load_task(checkpoint), Trained)
    assert rounded(torch.tensor([0.1]), 3) == [0.1]
