import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import nms

from replk_lightning.deploy import deploy
from replk_lightning.models import ModelError
from replk_lightning.models.cascade import CascadeHeads, box_losses, create_cascade_mask_rcnn
from replk_lightning.models.fcos import create_fcos
from replk_lightning.models.pyramid import Resize

TINY = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
SIZES = {"channels": 16, "head_convs": 1, "train_sizes": (64,), "test_size": 64, "max_size": 64}
STAGES = {"fc": 16, "proposals": (40, 20), "rois": 16, "detections": 5}
K = 4


def picture(random, classes=K):
    """Noise with one bright square, and its target."""
    image = torch.randn(3, 64, 64, generator=random)
    image[:, 12:44, 8:40] += 3
    target = {
        "boxes": torch.tensor([[8.0, 12.0, 40.0, 44.0]]),
        "labels": torch.tensor([classes - 1]),
        "masks": torch.zeros(1, 64, 64, dtype=torch.uint8),
    }
    target["masks"][:, 12:44, 8:40] = 1
    return image, target


@pytest.fixture
def cascade():
    torch.manual_seed(0)
    return create_cascade_mask_rcnn("replknet_3", K, **SIZES, **STAGES, **TINY)


def test_boxes_train_fcos_and_cascade_says_that_it_needs_masks(cascade):
    image, target = picture(torch.Generator().manual_seed(0))
    del target["masks"]
    assert create_fcos("replknet_3", K, **SIZES, **TINY).train()([image], [target])
    with pytest.raises(ModelError, match="trains with masks"):
        cascade.train()([image], [target])


@pytest.mark.parametrize("create", [create_fcos, partial(create_cascade_mask_rcnn, **STAGES)])
def test_every_layer_takes_full_backward_hooks(create):
    torch.manual_seed(0)
    image, target = picture(torch.Generator().manual_seed(0))
    net = create("replknet_3", K, **SIZES, **TINY).train()
    called = set()
    for name, layer in net.named_modules():
        if isinstance(layer, nn.ReLU) or list(layer.parameters(recurse=False)):
            layer.register_full_backward_hook(lambda *_, name=name: called.add(name))
    image.requires_grad_()  # a layer without it is hooked with a warning
    sum(net([image, image], [target, target]).values()).backward()
    assert {"backbone.net.model.stem.0.bn", "backbone.fpn.inner_blocks.0.0"} <= called
    assert any("head" in name for name in called)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("replknet_3", TINY),
        ("mobilenetv2_lk", {"width": 0.1}),
        ("resnet10t", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1), "strict_img_size": False}),
    ],
)
def test_both_heads_stand_on_any_net_with_strides(model, options):
    torch.manual_seed(0)
    image, target = picture(torch.Generator().manual_seed(0))
    fcos = create_fcos(model, K, **SIZES, **options)
    for net in (fcos, create_cascade_mask_rcnn(model, K, **SIZES, **STAGES, **options)):
        losses = net.train()([image, image], [target, target])
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        unused = [name for name, each in net.named_parameters() if each.grad is None]
        assert not unused, "distributed training stops at parameters without gradients"
        with torch.no_grad():
            found = net.eval()([image[:, :48, :56]])[0]
        assert found["boxes"].shape == (len(found["labels"]), 4)
        assert ((found["labels"] >= 0) & (found["labels"] < K)).all()
        if "masks" in found:
            assert found["masks"].shape == (len(found["labels"]), 1, 48, 56)


def test_replknet_xl_normalises_the_maps_that_the_pyramid_takes():
    options = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "kernel_sizes": (5, 5, 5, 3)}
    net = create_cascade_mask_rcnn("replknet_xl", K, **SIZES, **STAGES, **options)
    norms = [name for name, module in net.named_modules() if name.endswith("norm") and list(module.parameters())]
    assert norms == [f"backbone.net.model.stages.{stage}.norm" for stage in range(4)]


def test_a_net_without_the_strides_is_told():
    with pytest.raises(ModelError, match=r"vit_tiny_patch16_224 lacks a feature map .* strides \[16,"):
        create_fcos("vit_tiny_patch16_224", K)


def test_a_picture_without_objects_trains_both_heads(cascade):
    image, target = picture(torch.Generator().manual_seed(0))
    empty = {name: values[:0] for name, values in target.items()}
    for net in (cascade, create_fcos("replknet_3", K, **SIZES, **TINY)):
        for targets in ([empty, empty], [empty, target]):
            losses = net.train()([image, image], targets)
            assert all(loss.isfinite() for loss in losses.values())


def test_training_sizes_are_drawn_and_tests_have_their_own():
    resize = Resize((32, 48, 64), 80, 200)
    image, target = picture(torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    drawn = {tuple(resize.train()([image], [target])[0].image_sizes[0]) for _ in range(30)}
    assert drawn == {(32, 32), (48, 48), (64, 64)}
    images, targets = resize.eval()([image], [target])
    assert images.image_sizes == [(80, 80)]
    assert images.tensors.shape == (1, 3, 96, 96)
    assert torch.allclose(targets[0]["boxes"], target["boxes"] * 80 / 64)
    back = resize.postprocess([{"boxes": targets[0]["boxes"]}], [(80, 80)], [(64, 64)])
    assert torch.allclose(back[0]["boxes"], target["boxes"])


def decoded_by_hand(offsets, box, weights):
    """Inverse of (dx, dy) = shift of the centre over the side, (dw, dh) = logarithm of the growth, each weighted."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    dx, dy, dw, dh = (offset / weight for offset, weight in zip(offsets, weights, strict=True))
    x, y = (left + right) / 2 + dx * width, (top + bottom) / 2 + dy * height
    width, height = width * math.exp(dw), height * math.exp(dh)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def test_boxes_are_decoded_class_by_class():
    heads = CascadeHeads(K, 16, 1, 16, 16, 5)
    random = torch.Generator().manual_seed(0)
    boxes = torch.rand(6, 4, generator=random) * 20
    boxes[:, 2:] += boxes[:, :2] + 1
    offsets = torch.randn(6, 4 * K, generator=random)
    for stage, weights in enumerate([(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]):
        decoded = heads.decode(stage, offsets, boxes)
        for region in range(6):
            for label in range(K):
                four = offsets[region, 4 * label : 4 * label + 4].tolist()
                expected = decoded_by_hand(four, boxes[region].tolist(), weights)
                assert decoded[region, label].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def generalised_iou(a, b):
    """Intersection over union less the share of the smallest box around both that neither covers."""
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return both / union - (hull - union) / hull


def test_the_losses_of_a_box_head_are_those_of_their_definition():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(8, K + 1, generator=random)
    labels = torch.tensor([0, K, 3, K, K, 1, 3, K])
    low = torch.rand(8, K, 2, generator=random) * 20
    decoded = torch.cat([low, low + 1 + 20 * torch.rand(8, K, 2, generator=random)], dim=-1)
    low = torch.rand(8, 2, generator=random) * 20
    truth = torch.cat([low, low + 1 + 20 * torch.rand(8, 2, generator=random)], dim=-1)
    classes, boxes = box_losses(logits, decoded, labels, truth)
    by_hand = [-logits[n].double().softmax(0)[labels[n]].log().item() for n in range(8)]
    assert classes.item() == pytest.approx(sum(by_hand) / 8, rel=1e-5)
    positive = [n for n in range(8) if labels[n] < K]
    by_hand = [1 - generalised_iou(decoded[n, labels[n]].tolist(), truth[n].tolist()) for n in positive]
    assert boxes.item() == pytest.approx(sum(by_hand) / 8, rel=1e-5)


def test_each_stage_wants_more_overlap(cascade):
    heads = cascade.roi_heads
    _, target = picture(torch.Generator().manual_seed(0))  # 32 pixels a side
    shifted = [target["boxes"][0] + torch.tensor([by, 0, by, 0]) for by in (1.0, 6.5, 9.0, 14.0)]
    # IoU (32 - by) / (32 + by): 0.94, 0.66, 0.56, 0.39
    for stage, positives in enumerate([3, 2, 1]):
        sample = heads.sample(stage, torch.stack(shifted), target)
        order = sample.boxes[:, 0].argsort()
        labels = sample.labels[order].tolist()
        assert labels == [K - 1] * (positives + 1) + [K] * (4 - positives)  # the object's own box is one more
        assert sample.is_object[order].tolist() == [True, False, False, False, False]


def test_a_sample_holds_a_quarter_of_positives_at_most():
    heads = CascadeHeads(K, 16, 1, 16, 8, 5)
    _, target = picture(torch.Generator().manual_seed(0))
    boxes = torch.cat([target["boxes"].expand(20, 4), torch.tensor([[50.0, 50, 60, 60]]).expand(20, 4)])
    sample = heads.sample(0, boxes, target)
    assert len(sample.boxes) == 8
    assert (sample.labels < K).sum() == 2


@torch.no_grad()
def test_testing_averages_logits_over_stages_and_masks_over_heads(cascade):
    heads = cascade.eval().roi_heads
    for parameter in heads.parameters():
        parameter.normal_(std=0.3)
    heads.score_threshold = 0.3
    torch.manual_seed(1)
    features = {str(level): torch.randn(1, 16, 16 // 2**level, 16 // 2**level) for level in range(4)}
    start = torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 50], [0, 0, 64, 64]])
    found = heads(features, [start], [(64, 64)])[0][0]

    boxes, logits = start, []
    for stage in range(3):
        one = heads.box_heads[stage](heads.box_pool(features, [boxes], [(64, 64)]))
        logits.append(one[0])
        each = heads.decode(stage, one[1], boxes)
        likely = one[0][:, :K].argmax(1)
        boxes = torch.stack([each[n, likely[n]] for n in range(3)]).clamp(0, 64)
    scores = (sum(logits) / 3).softmax(1)
    expected = []
    for label in range(K):
        chosen = (scores[:, label] > 0.3).nonzero().flatten()
        clipped = each[chosen, label].clamp(0, 64)
        for n in nms(clipped, scores[chosen, label], 0.5):
            expected.append((scores[chosen[n], label].item(), label, clipped[n]))
    expected = sorted(expected, key=lambda one: -one[0])[:5]
    assert len(expected) > 0
    assert found["scores"].tolist() == pytest.approx([one[0] for one in expected], rel=1e-5)
    assert found["labels"].tolist() == [one[1] for one in expected]
    assert torch.allclose(found["boxes"], torch.stack([one[2] for one in expected]), atol=1e-4)
    regions = heads.mask_pool(features, [found["boxes"]], [(64, 64)])
    for n, label in enumerate(found["labels"]):
        masks = [torch.sigmoid(head(regions)[n, label]) for head in heads.mask_heads]
        assert torch.allclose(found["masks"][n, 0], sum(masks) / 3, atol=1e-5)


def test_masks_are_compared_with_what_is_inside_their_box(cascade):
    heads = cascade.roi_heads.train()
    _, target = picture(torch.Generator().manual_seed(0))
    features = {str(level): torch.randn(1, 16, 16 // 2**level, 16 // 2**level) for level in range(4)}
    sample = heads.sample(0, torch.tensor([[8.0, 12.0, 40.0, 44.0]]), target)
    loss = heads._mask_loss(0, features, [sample], [(64, 64)], [target])
    logits = heads.mask_heads[0](heads.mask_pool(features, [sample.boxes], [(64, 64)]))[:, K - 1]
    inside = torch.ones_like(logits)  # the square fills its box
    assert loss.item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, inside).item(), abs=0.02)


@torch.no_grad()
def test_a_deployed_detector_finds_the_same(cascade):
    torch.manual_seed(0)
    image, target = picture(torch.Generator().manual_seed(0))
    for _ in range(3):
        cascade.train()([image, image], [target, target])  # so that batch norms have something to fold
    cascade.roi_heads.score_threshold = 0.0
    found, again = cascade.eval()([image])[0], deploy(cascade)([image])[0]
    assert len(found["scores"]) == 5
    assert torch.allclose(found["scores"], again["scores"], atol=1e-5)
    assert torch.allclose(found["boxes"], again["boxes"], atol=1e-2)
    assert torch.allclose(found["masks"], again["masks"], atol=1e-4)
