"""Soft targets against their definition, spelled out class by class."""

import math

import pytest
import torch

from replk_lightning.data.targets import Targets, soften, stack
from replk_lightning.tasks.multitask import soft_cross_entropy

CLASSES = 7


def probabilities(count=5, classes=CLASSES, seed=0):
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(1)


def spelled_out(targets, row, classes):
    """The definition: listed shares as they are, the rest evenly over the unlisted, divided by the sum."""
    listed = {}
    for label, share in zip(targets.classes[row].tolist(), targets.shares[row].tolist(), strict=True):
        if share > 0:
            listed[label] = listed.get(label, 0.0) + share
    unlisted = [label for label in range(classes) if label not in listed]
    whole = listed | {label: targets.rest[row].item() / len(unlisted) for label in unlisted}
    total = sum(whole.values())
    return [whole[label] / total if total else 0.0 for label in range(classes)]


@pytest.mark.parametrize("top_k", [1, 3, 6, 7, 20, None])
def test_dense_follows_the_definition(top_k):
    targets = soften(probabilities(), top_k)
    dense = targets.dense(CLASSES)
    expected = torch.tensor([spelled_out(targets, row, CLASSES) for row in range(5)])
    assert torch.allclose(dense, expected, atol=1e-6)
    assert torch.allclose(dense.sum(1), torch.ones(5))


@pytest.mark.parametrize("top_k", [2, None])
def test_listed_classes_keep_the_teachers_probabilities_to_float16(top_k):
    wanted = probabilities()
    targets = soften(wanted, top_k)
    assert targets.shares.dtype == targets.rest.dtype == torch.float16
    best = wanted.sort(dim=1, descending=True)
    width = top_k or CLASSES
    assert torch.equal(targets.classes.long(), best.indices[:, :width])
    assert torch.equal(targets.shares, best.values[:, :width].half())
    rest = 1 - best.values[:, :width].sum(1) if top_k else torch.zeros(5)
    assert torch.allclose(targets.rest.float(), rest, atol=1e-3)


def test_all_classes_give_the_teacher_back():
    wanted = probabilities()
    assert torch.allclose(soften(wanted, None).dense(CLASSES), wanted, atol=2e-3)


def test_a_probability_too_small_for_float16_is_padding_and_takes_its_part_of_the_rest():
    targets = Targets(
        torch.tensor([[2, 4]], dtype=torch.int32),
        torch.tensor([[0.75, 0.0]]).half(),
        torch.tensor([0.25]).half(),
        torch.tensor([False]),
    )
    assert targets.dense(6).tolist() == [pytest.approx([0.05, 0.05, 0.75, 0.05, 0.05, 0.05])]


def test_human_labels_are_one_hot_and_unknown_ones_nothing():
    targets = Targets.of_labels(torch.tensor([2, -1]))
    assert targets.dense(4).tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert targets.known.tolist() == targets.human.tolist() == [True, False]


def test_stacking_pads_to_the_widest_and_changes_no_probability():
    parts = [soften(probabilities(3), 2), Targets.of_labels(torch.tensor([0, 6])), soften(probabilities(4, seed=1), 5)]
    together = stack(parts)
    assert together.classes.shape == (9, 5)
    assert torch.allclose(together.dense(CLASSES), torch.cat([part.dense(CLASSES) for part in parts]), atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_follows_the_definition(smoothing):
    targets = stack([soften(probabilities(4), 3), Targets.of_labels(torch.tensor([5, 0, -1]))])
    logits = torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(3))
    losses = soft_cross_entropy(logits, targets, smoothing)
    for row in range(7):
        wanted = spelled_out(targets, row, CLASSES)
        if targets.human[row]:  # only people's labels are smoothed
            wanted = [(1 - smoothing) * share + smoothing / CLASSES for share in wanted]
        total = sum(math.exp(logit) for logit in logits[row].tolist())
        expected = -sum(
            share * math.log(math.exp(logit) / total) for share, logit in zip(wanted, logits[row].tolist(), strict=True)
        )
        assert losses[row].item() == pytest.approx(expected, abs=1e-5)
    assert losses[6] == 0


def test_hard_labels_give_torchs_own_loss():
    labels = torch.tensor([3, 0, 6])
    logits = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(3))
    for smoothing in (0.0, 0.1):
        expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        assert torch.allclose(soft_cross_entropy(logits, Targets.of_labels(labels), smoothing).mean(), expected)
