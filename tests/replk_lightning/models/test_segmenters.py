import pytest
import torch

from replk_lightning.deploy import deploy
from replk_lightning.measure.complexity import complexity, segmenter_complexity
from replk_lightning.models import ModelError
from replk_lightning.models.backbone import Backbone, last_of, last_of_each
from replk_lightning.models.segmenters import create_segmenter, deeplabv3plus, upernet
from replk_lightning.recipes import get_recipe

TINY = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
WIDTHS = {"channels": 16, "auxiliary_channels": 8}
SWIN = ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1), "img_size": 64})
K = 5

# Tables 5, 8 and 7: net, recipe; parameters in millions and multiply-adds in billions, merged, the paper's.
SEGMENTERS = [
    ("replknet_3", "upernet_ade20k_80k", 104.1, 1119),
    ("replknet_7", "upernet_ade20k_80k", 104.6, 1123),
    ("replknet_13", "upernet_ade20k_80k", 106.0, 1130),
    ("replknet_25", "upernet_ade20k_80k", 110.6, 1159),
    ("replknet_31b", "upernet_ade20k_80k", 111.7, 1170),
    ("replknet_31b", "upernet_ade20k_160k_640", 112, 1829),
    ("replknet_31l", "upernet_ade20k_160k_640", 207, 2404),
    ("replknet_xl", "upernet_ade20k_160k_xl", 374, 3431),
    ("replknet_31b", "upernet_cityscapes_80k", None, 2315),
]


@pytest.mark.parametrize(("model", "recipe", "parameters", "macs"), SEGMENTERS)
def test_the_segmenters_of_tables_5_7_and_8(model, recipe, parameters, macs):
    counted = segmenter_complexity(model, get_recipe(recipe), merged=True)
    assert counted.macs / 1e9 == pytest.approx(macs, rel=0.01)
    if parameters is None:  # the paper's 110 M are 1.6 % fewer, though only the classifier differs from ADE20K's
        assert counted.parameters == 111_749_011
    else:
        assert counted.parameters / 1e6 == pytest.approx(parameters, rel=0.01)


def test_merging_a_segmenter_spares_the_small_kernels_and_folding_the_norms():
    recipe = get_recipe("upernet_ade20k_80k", count_size=(64, 64), channels=16)
    trained, merged, folded = (
        segmenter_complexity("replknet_31b", recipe, **how, **TINY)
        for how in ({}, {"merged": True}, {"folded": True})
    )  # fmt: skip
    backbone = [complexity("replknet_31b", (3, 64, 64), merged=merged, **TINY) for merged in (False, True)]
    assert trained.parameters - merged.parameters == backbone[0].parameters - backbone[1].parameters > 0
    assert trained.macs - merged.macs == backbone[0].macs - backbone[1].macs > 0
    assert folded.macs == merged.macs
    assert folded.parameters < merged.parameters


def test_swin_is_counted_at_the_pictures_size():
    counted = segmenter_complexity("swin_tiny_patch4_window7_224", get_recipe("upernet_ade20k_80k"))
    assert counted.macs / 1e9 == pytest.approx(945, rel=0.01)  # Swin's own paper


def build(head, model, **options):
    torch.manual_seed(0)
    return {"upernet": upernet, "deeplabv3plus": deeplabv3plus}[head](model, K, **WIDTHS, **options)


@pytest.mark.parametrize(
    ("head", "model", "options"),
    [
        ("upernet", "replknet_3", TINY),
        ("upernet", "replknet_xl", {**TINY, "kernel_sizes": (5, 5, 5, 3)}),
        ("upernet", "resnet10t", {}),
        ("upernet", *SWIN),
        ("deeplabv3plus", "mobilenetv2_lk", {"width": 0.1}),
        ("deeplabv3plus", "mobilenetv2_lk", {"width": 0.1, "output_stride": 16}),
        ("deeplabv3plus", "replknet_7", TINY),
        ("deeplabv3plus", "resnet18", {}),
    ],
)
def test_logits_have_the_images_size_and_the_auxiliary_ones_are_trainings(head, model, options):
    net = build(head, model, **options)
    size = (64, 64) if model == SWIN[0] else (64, 96)
    images = torch.randn(2, 3, *size)
    main, auxiliary = net.train()(images)
    assert main.shape == auxiliary.shape == (2, K, *size)
    (main.square().mean() + auxiliary.square().mean()).backward()
    unused = [name for name, each in net.named_parameters() if each.grad is None]
    assert not unused, "distributed training stops at parameters without gradients"
    with torch.no_grad():
        main, auxiliary = net.eval()(images)
    assert main.shape == (2, K, *size)
    assert auxiliary is None


def test_aligned_corners_keep_the_corners_of_the_logits():
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for aligned in (True, False):
            net = build("upernet", "replknet_3", align_corners=aligned, **TINY).eval()
            small, large = net.decode_head(net.backbone(images)), net(images).main
            assert small.shape[-2:] == (16, 16)
            assert net.decode_head.psp_modules.align_corners == aligned
            corners = [large[..., row, column] - small[..., row, column] for row in (0, -1) for column in (0, -1)]
            inside = large[..., 21, 42] - small[..., 5, 10]  # 63 × 5/15 = 21, 63 × 10/15 = 42
            assert all(each.abs().max() < 1e-5 for each in corners)
            assert (inside.abs().max() < 1e-5) == aligned


def test_a_recipe_says_the_head():
    recipe = get_recipe("deeplabv3plus_cityscapes_80k", channels=16, auxiliary_channels=8, head_dropout=0.25)
    net = create_segmenter("mobilenetv2_lk", recipe, K, in_chans=1, width=0.1).train()
    assert [layer.p for layer in net.modules() if isinstance(layer, torch.nn.Dropout2d)] == [0.25, 0.25]
    assert net.decode_head.classifier[1].weight.shape == (K, 16, 1, 1)
    assert net(torch.randn(2, 1, 64, 64)).main.shape == (2, K, 64, 64)
    recipe = get_recipe("upernet_ade20k_80k", channels=24, auxiliary_channels=8, align_corners=True)
    net = create_segmenter("replknet_3", recipe, K, **TINY)
    assert net.decode_head.classifier[1].weight.shape == (K, 24, 1, 1)
    assert net.align_corners


@pytest.mark.parametrize(
    ("build", "model", "options"),
    [
        (upernet, "vit_tiny_patch16_224", {}),
        (upernet, "mobilenetv2_lk", {"output_stride": 8}),
    ],
)
def test_a_net_without_the_strides_is_told(build, model, options):
    with pytest.raises(ModelError, match=rf"^{model} lacks a feature map .* it has strides \[.*\]\.$"):
        build(model, K, **options)


def test_a_net_that_has_no_output_stride_is_told():
    with pytest.raises(ModelError, match=r"vit_tiny_patch16_224.*output_stride"):
        deeplabv3plus("vit_tiny_patch16_224", K)


def test_the_fcn_head_takes_full_backward_hooks():
    net = build("deeplabv3plus", "mobilenetv2_lk", width=0.1).train()
    for layer in net.auxiliary_head.layers:
        layer.register_full_backward_hook(lambda *_: None)
    net(torch.randn(2, 3, 64, 64)).auxiliary.sum().backward()


def test_swins_maps_are_turned():
    model, options = SWIN
    torch.manual_seed(0)
    backbone = Backbone(model, last_of_each((4, 32)), **options).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        turned, own = backbone(images), backbone.net(images)
    assert backbone.channels == [24, 192]
    assert [tuple(each.shape) for each in turned] == [(1, 24, 16, 16), (1, 192, 2, 2)]
    assert [tuple(each.shape) for each in own] == [(1, 16, 16, 24), (1, 2, 2, 192)]
    assert turned[0][0, 7, 3, 5] == own[0][0, 3, 5, 7]


def test_of_several_maps_of_one_stride_the_last_is_taken():
    assert last_of([2, 4, 4, 8], 4) == 2
    with pytest.raises(LookupError):
        last_of([2, 4], 8)


@torch.no_grad()
@pytest.mark.parametrize(
    ("head", "model", "options"),
    [
        ("upernet", "replknet_31b", TINY),
        ("upernet", "replknet_xl", {**TINY, "kernel_sizes": (5, 5, 5, 3)}),
        ("deeplabv3plus", "mobilenetv2_lk", {"width": 0.1, "small_kernel": 3, "kernel_size": 9}),
    ],
)
def test_a_deployed_segmenter_gives_the_same_logits(head, model, options):
    net = build(head, model, **options).train()
    images = torch.randn(2, 3, 64, 64)
    for _ in range(3):
        net(images)  # so that batch norms have something to fold
    net = net.double().eval()
    expected, found = net(images.double()).main, deploy(net)(images.double()).main
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10 * expected.abs().max())
    assert sum(each.numel() for each in deploy(net).parameters()) < sum(each.numel() for each in net.parameters())
