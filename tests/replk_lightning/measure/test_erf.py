"""The effective receptive field against loops over float64 numbers, and against fields that are known."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.nest import Nest
from torch import nn

import replk_lightning
from replk_lightning.measure.erf import FieldError, area_ratio, contribution, photographs, square_shares
from replk_lightning.models import RepLKNet, create_model


def sides_by_growing_squares(matrix, thresholds):
    """Table 10's squares from their definition: sum every square anew, in Python's floats."""
    height, width = matrix.shape
    total = sum(float(value) for value in matrix.ravel())
    sides = []
    for t in thresholds:
        side = None
        for i in range((min(height, width) + 1) // 2):
            top, left = height // 2 - i, width // 2 - i
            inside = matrix[top : top + 2 * i + 1, left : left + 2 * i + 1]
            if sum(float(value) for value in inside.ravel()) / total > t:
                side = 2 * i + 1
                break
        sides.append(side)
    return sides


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_area_ratios_equal_growing_squares_to_the_pixel(height, width, seed):
    matrix = np.random.default_rng(seed).exponential(size=(height, width)) ** 2
    thresholds = (0.0, 0.123, 0.2, 0.3, 0.5, 0.77, 0.99)
    sides = sides_by_growing_squares(matrix, thresholds)
    expected = [1.0 if side is None else side**2 / matrix.size for side in sides]
    assert area_ratio(matrix, thresholds) == expected


def test_the_papers_example():
    # 20 % of the scores in a 103×103 area of 1024×1024: 1.0 %
    matrix = np.zeros((1024, 1024))
    matrix[512 - 51 : 512 + 52, 512 - 51 : 512 + 52] = 1
    matrix[0] = 103 * 103 / 1024 * 3.99
    (ratio,) = area_ratio(matrix, [0.2])
    assert ratio == (103 / 1024) ** 2
    assert round(100 * ratio, 1) == 1.0


def test_an_even_field_fills_its_area():
    shares = square_shares(np.ones((9, 9)))
    assert np.allclose(shares, [(side / 9) ** 2 for side in (1, 3, 5, 7, 9)])
    assert area_ratio(np.ones((9, 9)), [0.5]) == [49 / 81]


def first_principles(net, images, relu, reduce):
    """Eq. 1 and 2 written out, in float64, one derivative after another."""
    net = net.double().eval()
    total = torch.zeros(images.shape[-2:], dtype=torch.float64)
    for image in images.double():
        x = image[None].requires_grad_()
        features = net.forward_features(x)
        centre = features[0, :, features.shape[2] // 2, features.shape[3] // 2]
        jacobian = torch.stack([torch.autograd.grad(value, x, retain_graph=True)[0][0] for value in centre])
        if relu:
            jacobian = jacobian[centre > 0]
        total += jacobian.sum(0).clamp_min(0).sum(0)
    if reduce == "mean":
        total /= len(images)
    scores = torch.log10(total + 1)
    return (scores / scores.max()).numpy()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("size", [(96, 96), (64, 80)])
def test_contribution_equals_equations_1_and_2(relu, reduce, size):
    torch.manual_seed(0)
    net = RepLKNet((7, 5, 5, 3), (1, 1, 1, 1), (8, 8, 16, 16), num_classes=0)
    images = torch.randn(3, 3, *size)
    ours = contribution(net, images.split(2), relu=relu, reduce=reduce, before_norm=False)
    exact = first_principles(net, images, relu, reduce)
    assert ours.dtype == np.float64
    assert ours.max() == 1
    np.testing.assert_allclose(ours, exact, atol=1e-4)
    assert area_ratio(ours) == area_ratio(exact)


def test_batches_make_no_difference_and_the_net_is_left_alone():
    net = create_model("resnet18").train()
    net.layer1.eval()
    net.fc.requires_grad_(False)
    images = torch.randn(4, 3, 64, 64)
    whole = contribution(net, [images])
    assert np.array_equal(whole, contribution(net, list(images)))
    assert net.training
    assert not net.layer1.training
    assert net.conv1.weight.requires_grad
    assert not net.fc.weight.requires_grad
    assert net.conv1.weight.grad is None


def test_a_field_is_as_large_as_the_kernels_make_it():
    class Known(nn.Module):
        def __init__(self, kernel):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, kernel, padding=kernel // 2)
            nn.init.ones_(self.conv.weight)

        def forward(self, x):
            return self.conv(x)

    for kernel in (3, 7, 13):
        matrix = contribution(Known(kernel), [torch.randn(3, 33, 33)])
        assert (matrix > 0).sum() == kernel**2
        assert area_ratio(matrix, [0.999]) == [kernel**2 / 33**2]


def test_an_image_of_nan_is_named_and_skipped():
    net = create_model("resnet18").eval()
    images = torch.randn(3, 3, 64, 64)
    expected = contribution(net, images[[0, 2]].split(1))
    images[1, 0, 5, 5] = torch.nan
    with pytest.warns(UserWarning, match="image 1 or its"):
        assert np.array_equal(contribution(net, [images]), expected)
    with pytest.raises(FieldError, match="no image gave finite"):
        contribution(net, [])


def tiny_replknet():
    torch.manual_seed(0)
    net = RepLKNet((7, 5, 5, 3), (1, 1, 1, 1), (8, 8, 16, 16), num_classes=3).eval()
    net.norm.running_var.uniform_(0.1, 2)
    net.norm.weight.data.uniform_(-1, 1)
    return net


def test_the_map_is_the_one_before_the_last_norm_unless_asked_otherwise():
    net, images = tiny_replknet().double(), torch.randn(2, 3, 96, 96).double()
    after, before = contribution(net, [images], before_norm=False), contribution(net, [images])
    assert not np.allclose(before, after)
    np.testing.assert_allclose(contribution(replk_lightning.deploy(net), [images]), before, atol=1e-10)
    net.norm = nn.Identity()  # the map before it is then what forward_features gives
    assert np.array_equal(contribution(net, [images], before_norm=False), before)


@pytest.mark.parametrize("before_norm", [True, False])
def test_maps_of_timms_nets_that_lie_nhwc(before_norm):
    torch.manual_seed(0)
    options = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    swin = create_model("swin_tiny_patch4_window7_224", img_size=128, num_classes=0, **options).eval()
    nn.init.uniform_(swin.norm.weight)  # over a fresh LayerNorm's channels the gradients sum to zero

    class Planes(nn.Module):
        def forward(self, x):
            if not before_norm:
                return swin.forward_features(x).permute(0, 3, 1, 2)
            return swin.forward_intermediates(x, indices=1, intermediates_only=True)[0]

    images = torch.randn(2, 3, 128, 128)
    ours, right = (contribution(net, [images], before_norm=before_norm) for net in (swin, Planes()))
    np.testing.assert_allclose(ours, right, atol=1e-6)
    assert area_ratio(ours) == area_ratio(right)


def test_a_map_that_is_turned_around_for_its_norm():
    torch.manual_seed(0)
    nest = Nest(img_size=64, embed_dims=(8, 8, 16), num_heads=(1, 1, 1), depths=(1, 1, 1)).eval()
    planes = nn.Sequential(nest.patch_embed, nest.levels)
    images = torch.randn(2, 3, 64, 64)
    assert np.array_equal(contribution(nest, [images]), contribution(planes, [images]))


@pytest.mark.parametrize("before_norm", [True, False])
def test_tokens_are_laid_out_as_the_map_that_they_are(before_norm):
    torch.manual_seed(0)
    vit = create_model("test_vit", img_size=(32, 48)).eval()

    class Planes(nn.Module):
        def forward(self, x):
            entered = []
            with vit.norm.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])):
                left = vit.forward_features(x)
            tokens = (entered[0] if before_norm else left)[:, vit.num_prefix_tokens :]
            return tokens.permute(0, 2, 1).reshape(1, -1, 2, 3)

    images = [torch.randn(3, 32, 48)]
    ours = contribution(vit, images, before_norm=before_norm)
    assert np.allclose(ours, contribution(Planes(), images), atol=1e-6)


def test_a_map_of_another_layout_is_refused():
    class Last(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).permute(0, 2, 3, 1)

    with pytest.raises(FieldError, match=r"Last gives a map \(1, 8, 8, 24\) of other sides than the picture's"):
        contribution(Last(3, 24, 4, 4), [torch.randn(3, 32, 32)])


@pytest.mark.parametrize("state", ["float64", "float16", "meta", "autocast", "inference", "deterministic"])
def test_the_state_of_the_process_makes_no_difference(state):
    net = tiny_replknet()
    pictures = list(photographs(64, (0.4, 0.5, 0.6), 0.2))[:2]
    expected = contribution(net, pictures)
    around = {
        "meta": torch.device("meta"),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode(),
    }
    try:
        torch.use_deterministic_algorithms(state == "deterministic")
        torch.set_default_dtype(getattr(torch, state) if state.startswith("float") else torch.float32)
        with around.get(state, nullcontext()):
            assert np.array_equal(contribution(net, list(photographs(64, (0.4, 0.5, 0.6), 0.2))[:2]), expected)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)


def test_a_net_without_a_feature_map_is_told():
    with pytest.raises(FieldError, match="Sequential gives no feature map"):
        contribution(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), [torch.randn(3, 2, 2)])


def test_a_name_is_built_with_its_pretrained_weights(monkeypatch):
    asked, net = [], create_model("resnet18")

    def create(name, pretrained=False):
        asked.append((name, pretrained))
        return net

    monkeypatch.setattr("replk_lightning.measure.erf.timm.create_model", create)
    contribution("resnet18", [torch.randn(3, 64, 64)])
    assert asked == [("resnet18", True)]


def test_photographs_have_the_size_asked_for():
    images = list(photographs(48, 0.35, 0.165))
    assert len(images) == 15
    assert {image.shape for image in images} == {(3, 48, 48)}
    assert all(image.dtype == torch.float32 and image.std() > 0.1 for image in images)
