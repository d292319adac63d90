"""The average precision that DetectTask logs, beside one computed step by step from COCO's definition."""

import lightning
import numpy as np
import pytest
import torch

from replk_lightning.tasks.detect import DetectTask

CLASSES, SIDE = 3, 40
TINY = {
    "model": "replknet_3",
    "recipe": "cascade_mask_rcnn_3x",
    "num_classes": CLASSES,
    "model_options": {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)},
    "recipe_overrides": {"channels": 8, "fc": 8, "head_convs": 1, "drop_path": 0.0},
}


def overlap(found, truth, crowd):
    """Intersection over union of two masks; over the found one alone if the other is a crowd."""
    both = np.logical_and(found, truth).sum()
    whole = found.sum() if crowd else np.logical_or(found, truth).sum()
    return both / whole if whole else 0.0


def box_overlap(found, truth, crowd):
    width = min(found[2], truth[2]) - max(found[0], truth[0])
    height = min(found[3], truth[3]) - max(found[1], truth[1])
    both = max(0.0, width) * max(0.0, height)
    own, other = ((box[2] - box[0]) * (box[3] - box[1]) for box in (found, truth))
    return both / (own if crowd else own + other - both)


def matches(found, truth, crowds, threshold, measure):
    """For each found object, the best first: 1 if it is right, 0 if wrong, None if a crowd explains it."""
    taken, verdicts = set(), []
    for each in found:
        ious = [measure(each, other, crowd) for other, crowd in zip(truth, crowds, strict=True)]
        free = [n for n in range(len(truth)) if not crowds[n] and n not in taken and ious[n] >= threshold]
        if free:
            best = max(free, key=lambda n: ious[n])
            taken.add(best)
            verdicts.append(1)
        else:
            verdicts.append(None if any(crowds[n] and ious[n] >= threshold for n in range(len(truth))) else 0)
    return verdicts


def average_precision(predictions, targets, key, measure, thresholds):
    """Mean over classes and thresholds of the precision at 101 recalls, with 100 detections a picture and class."""
    precisions = []
    for threshold in thresholds:
        for label in range(CLASSES):
            scored, objects = [], 0
            for prediction, target in zip(predictions, targets, strict=True):
                scores = prediction["scores"].numpy()
                chosen = [n for n in np.argsort(-scores, kind="stable") if prediction["labels"][n] == label][:100]
                there = [n for n in range(len(target["labels"])) if target["labels"][n] == label]
                crowds = [bool(target["iscrowd"][n]) for n in there]
                objects += len(there) - sum(crowds)
                truth = [target[key][n].double().numpy() for n in there]
                found = [prediction[key][n].double().numpy() for n in chosen]
                verdicts = matches(found, truth, crowds, threshold, measure)
                scored += [(scores[n], verdict) for n, verdict in zip(chosen, verdicts, strict=True)]
            if not objects:
                continue
            ranked = [verdict for _, verdict in sorted(scored, key=lambda pair: -pair[0]) if verdict is not None]
            right = np.cumsum(ranked) if ranked else np.array([])
            recall, precision = right / objects, right / (np.arange(len(right)) + 1)
            reached = [precision[recall >= least] for least in np.linspace(0, 1, 101)]
            precisions.append(np.mean([values.max() if len(values) else 0.0 for values in reached]))
    return 100 * np.mean(precisions)


def random_pictures(seed):
    """Ten objects of each class over five pictures and some crowds; detections near some of them, and anywhere."""
    random = np.random.RandomState(seed)
    predictions, targets = [], []
    for picture in range(5):
        labels = np.repeat(np.arange(CLASSES), 2)
        crowd = int(picture % 2 == 0)
        labels = np.append(labels, np.zeros(crowd, dtype=int))
        crowds = np.append(np.zeros(6, dtype=int), np.ones(crowd, dtype=int))
        low = random.uniform(0, SIDE / 2, (len(labels), 2))
        boxes = np.hstack([low, low + random.uniform(6, SIDE / 2, low.shape)])
        nearby = np.repeat(np.arange(len(labels)), random.randint(0, 4, len(labels)))
        found = boxes[nearby] + random.normal(0, 1.5, (len(nearby), 4))
        many = 130 if picture == 0 else 3  # more than are counted
        low = random.uniform(0, SIDE - 10, (many, 2))
        found = np.vstack([found, np.hstack([low, low + random.uniform(2, 10, low.shape)])]).clip(0, SIDE)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        guessed = np.append(labels[nearby], np.zeros(many, dtype=int))
        scores = random.permutation(len(found)) / 1000 + 0.01 * picture / 1000
        predictions.append(pack(found, guessed, random) | {"scores": torch.tensor(scores, dtype=torch.float32)})
        targets.append(pack(boxes, labels, random) | {"iscrowd": torch.tensor(crowds)})
    return predictions, targets


def pack(boxes, labels, random):
    masks = np.zeros((len(boxes), SIDE, SIDE), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().astype(int), strict=True):
        mask[top:bottom, left:right] = random.rand(bottom - top, right - left) < 0.95
    boxes = torch.tensor(boxes, dtype=torch.float32)
    return {"boxes": boxes, "labels": torch.tensor(labels), "masks": torch.from_numpy(masks)}


@pytest.fixture(scope="module")
def task():
    task = DetectTask(**TINY)
    task.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return task


@pytest.mark.filterwarnings("ignore:Encountered more than 100 detections")
@pytest.mark.parametrize("seed", range(4))
def test_the_logged_average_precision_is_cocos(task, monkeypatch, seed):
    predictions, targets = random_pictures(seed)
    logged = {}
    monkeypatch.setattr(task, "log_dict", lambda values, **_: logged.update(values))
    for batch in (slice(0, 2), slice(2, 5)):
        monkeypatch.setattr(task, "forward", lambda images, batch=batch: predictions[batch])
        task.validation_step((torch.zeros(1, 3, 8, 8), targets[batch]), 0)
    task.on_validation_epoch_end()
    thresholds = np.linspace(0.5, 0.95, 10)
    for name, key, measure in (("box", "boxes", box_overlap), ("mask", "masks", overlap)):
        for suffix, chosen in (("", thresholds), ("50", thresholds[:1]), ("75", thresholds[5:6])):
            expected = average_precision(predictions, targets, key, measure, chosen)
            assert logged[f"val_{name}_ap{suffix}"] == pytest.approx(expected, abs=1e-4)
            assert 0 < expected < 100


def test_perfect_detections_have_a_precision_of_one_hundred(task, monkeypatch):
    _, targets = random_pictures(0)
    logged = {}
    monkeypatch.setattr(task, "log_dict", lambda values, **_: logged.update(values))
    perfect = [target | {"scores": torch.ones(len(target["labels"]))} for target in targets]
    monkeypatch.setattr(task, "forward", lambda images: perfect)
    task.validation_step((torch.zeros(1, 3, 8, 8), targets), 0)
    task.on_validation_epoch_end()
    assert logged["val_box_ap"] == pytest.approx(100)
    assert logged["val_mask_ap"] == pytest.approx(100)
