from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from model_samples import REPLKNETS, TINY, randomise, relative
from timm.data import resolve_data_config
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay

from native import DepthwiseConv2d
from replk_lightning.models import RepLKNet
from replk_lightning.models.blocks import ConvFFN, RepLKBlock
from replk_lightning.models.reparam import LargeKernelConv
from replk_lightning.models.spatial import Place


class Definition:
    """The network of Fig. 4 in functional form, from nothing but a state_dict with the release's names."""

    def __init__(self, state, depths):
        self.state, self.depths = state, depths

    def norm(self, x, name):
        s = SimpleNamespace(**{k: self.state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")})
        return F.batch_norm(x, s.running_mean, s.running_var, s.weight, s.bias, training=False, eps=1e-5)

    def conv_bn(self, x, name, stride=1):
        weight = self.state[f"{name}.conv.weight"]
        groups = 1 if weight.shape[1] == x.shape[1] else x.shape[1]
        return self.norm(F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups), f"{name}.bn")

    def rep_lk_block(self, x, name):
        y = F.relu(self.conv_bn(self.norm(x, f"{name}.prelkb_bn"), f"{name}.pw1"))
        z = self.conv_bn(y, f"{name}.large_kernel.lkb_origin")
        if f"{name}.large_kernel.small_conv.conv.weight" in self.state:
            z = z + self.conv_bn(y, f"{name}.large_kernel.small_conv")
        return x + self.conv_bn(F.relu(z), f"{name}.pw2")

    def conv_ffn(self, x, name):
        y = F.gelu(self.conv_bn(self.norm(x, f"{name}.preffn_bn"), f"{name}.pw1"))
        return x + self.conv_bn(y, f"{name}.pw2")

    def stages(self, x):
        for i, stride in enumerate((2, 1, 1, 2)):
            x = F.relu(self.conv_bn(x, f"stem.{i}", stride))
        maps = []
        for s, depth in enumerate(self.depths):
            for b in range(depth):
                x = self.rep_lk_block(x, f"stages.{s}.blocks.{2 * b}")
                x = self.conv_ffn(x, f"stages.{s}.blocks.{2 * b + 1}")
            maps.append(x)
            if s + 1 < len(self.depths):
                x = F.relu(self.conv_bn(x, f"transitions.{s}.0"))
                x = F.relu(self.conv_bn(x, f"transitions.{s}.1", stride=2))
        return maps

    def logits(self, x):
        pooled = self.norm(self.stages(x)[-1], "norm").mean((2, 3))
        return pooled @ self.state["head.weight"].T + self.state["head.bias"]


def tiny(name, **options):
    torch.manual_seed(0)
    return randomise(timm.create_model(name, **TINY | options)).double().eval()


def on_meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


@pytest.mark.parametrize("name", REPLKNETS)
@torch.no_grad()
def test_logits_and_maps_equal_the_definition(name):
    model = tiny(name)
    definition = Definition(model.state_dict(), TINY["depths"])
    x = torch.randn(2, 3, 72, 64, dtype=torch.float64)
    assert relative(model(x), definition.logits(x)) < 1e-12
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [relative(a, b) < 1e-12 for a, b in zip(maps, definition.stages(x), strict=True)] == [True] * 4


def official_keys(depths, small):
    def conv_bn(name):
        return [f"{name}.conv.weight", *bn(f"{name}.bn")]

    def bn(name):
        return [f"{name}.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    keys = [k for i in range(4) for k in conv_bn(f"stem.{i}")]
    for s, depth in enumerate(depths):
        for j in range(0, 2 * depth, 2):
            block, ffn = f"stages.{s}.blocks.{j}", f"stages.{s}.blocks.{j + 1}"
            branches = ["large_kernel.lkb_origin"] + ["large_kernel.small_conv"] * small
            keys += bn(f"{block}.prelkb_bn") + bn(f"{ffn}.preffn_bn")
            keys += [k for part in ("pw1", "pw2", *branches) for k in conv_bn(f"{block}.{part}")]
            keys += [k for part in ("pw1", "pw2") for k in conv_bn(f"{ffn}.{part}")]
    keys += [k for s in range(len(depths) - 1) for i in range(2) for k in conv_bn(f"transitions.{s}.{i}")]
    return {*keys, *bn("norm"), "head.weight", "head.bias"}


@pytest.mark.parametrize(("name", "small"), [(n, n not in ("replknet_3", "replknet_xl")) for n in REPLKNETS])
def test_parameter_names_are_the_official_ones(name, small):
    assert set(on_meta(name).state_dict()) == official_keys((2, 2, 18, 2), small)


@pytest.mark.parametrize(
    ("name", "kernels", "dims", "small", "ratio"),
    [
        ("replknet_3", (3, 3, 3, 3), (128, 256, 512, 1024), None, 1),
        ("replknet_7", (7, 7, 7, 7), (128, 256, 512, 1024), 5, 1),
        ("replknet_13", (13, 13, 13, 13), (128, 256, 512, 1024), 5, 1),
        ("replknet_25", (25, 25, 25, 13), (128, 256, 512, 1024), 5, 1),
        ("replknet_31b", (31, 29, 27, 13), (128, 256, 512, 1024), 5, 1),
        ("replknet_31l", (31, 29, 27, 13), (192, 384, 768, 1536), 5, 1),
        ("replknet_xl", (27, 27, 27, 13), (256, 512, 1024, 2048), None, 1.5),
    ],
)
def test_registered_models_have_the_papers_hyper_parameters(name, kernels, dims, small, ratio):
    model = on_meta(name)
    assert [len(stage.blocks) for stage in model.stages] == [4, 4, 36, 4]
    for stage, kernel, dim in zip(model.stages, kernels, dims, strict=True):
        for block in stage.blocks[::2]:
            conv = block.large_kernel.lkb_origin.conv
            assert isinstance(conv, DepthwiseConv2d)
            assert (conv.kernel_size, conv.groups) == ((kernel, kernel), int(dim * ratio))
            branch = getattr(block.large_kernel, "small_conv", None)
            assert (branch and branch.conv.kernel_size) == (small and (small, small))
        assert stage.blocks[1].pw1.conv.out_channels == 4 * dim
    assert model.head.out_features == 1000


def test_every_depthwise_convolution_is_the_operator():
    convs = [m for m in on_meta("replknet_31b").modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    assert len(convs) == 2 + 2 * 24 + 3
    assert {type(conv) for conv in convs} == {DepthwiseConv2d}


def test_stochastic_depth_rises_over_24_pairs():
    model = on_meta("replknet_31b", drop_path_rate=0.5)
    blocks = [m for m in model.modules() if isinstance(m, RepLKBlock | ConvFFN)]
    rates = [block.drop_path.drop_prob for block in blocks]
    assert rates[::2] == rates[1::2] == pytest.approx([0.5 * i / 23 for i in range(24)])


@torch.no_grad()
def test_drop_path_drops_whole_branches():
    model = RepLKNet((3,), (1,), (4,), drop_path_rate=0.0).eval()
    block = RepLKBlock(4, Place(4, 3), drop_path=0.999999).train()
    x = torch.randn(8, 4, 5, 5)
    assert torch.equal(block(x), x)
    assert not torch.equal(model.stages[0](x), x)


@pytest.mark.parametrize("name", REPLKNETS)
def test_feature_extractors_give_four_maps(name):
    model = tiny(name, features_only=True)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.channels() == [8, 16, 24, 32]
    maps = model(torch.randn(1, 3, 64, 96, dtype=torch.float64))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 24), (16, 8, 12), (24, 4, 6), (32, 2, 3)]
    assert not any(key.startswith(("model.head", "model.norm")) for key in model.state_dict())


@pytest.mark.parametrize(("stride", "reductions"), [(32, [4, 8, 16, 32]), (16, [4, 8, 16, 16]), (8, [4, 8, 8, 8])])
@torch.no_grad()
def test_maps_of_a_smaller_output_stride_hold_those_of_the_net(stride, reductions):
    model, features = (tiny("replknet_7", features_only=True, **options) for options in ({}, {"output_stride": stride}))
    assert features.feature_info.reduction() == reductions
    assert features.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    for own, finer, reduction, full in zip(model(x), features(x), reductions, (4, 8, 16, 32), strict=True):
        assert finer.shape[-2:] == (64 // reduction, 96 // reduction)
        step = full // reduction
        assert relative(finer[..., ::step, ::step], own) < 1e-12


def test_a_net_of_five_stages_keeps_its_strides():
    five = {"kernel_sizes": (3,) * 5, "depths": (1,) * 5, "dims": (8,) * 5}
    assert [each["reduction"] for each in on_meta("replknet_3", **five).feature_info] == [4, 8, 16, 32, 64]


@torch.no_grad()
def test_only_xl_normalises_its_maps():
    model = tiny("replknet_xl", features_only=True)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    definition = Definition({k.removeprefix("model."): v for k, v in model.state_dict().items()}, TINY["depths"])
    expected = [definition.norm(y, f"stages.{i}.norm") for i, y in enumerate(definition.stages(x))]
    assert max(relative(a, b) for a, b in zip(model(x), expected, strict=True)) < 1e-12
    assert not any(".norm." in key for key in on_meta("replknet_xl").state_dict())
    assert not any(".norm." in key for key in on_meta("replknet_31l", features_only=True).state_dict())


@pytest.mark.parametrize(("indices", "reductions", "stages"), [((0, 2), [4, 16], 3), ((-1,), [32], 4), ((1,), [8], 2)])
@torch.no_grad()
def test_out_indices_choose_and_prune(indices, reductions, stages):
    whole, part = (tiny("replknet_7", features_only=True, **o) for o in ({}, {"out_indices": indices}))
    assert part.feature_info.reduction() == reductions
    assert (len(part.model.stages), len(part.model.transitions)) == (stages, stages - 1)
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = [whole(x)[i] for i in indices]
    assert all(torch.equal(a, b) for a, b in zip(part(x), expected, strict=True))


@torch.no_grad()
def test_intermediates_come_with_the_final_features():
    model = tiny("replknet_7")
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    final, maps = model.forward_intermediates(x, indices=2, norm=True)
    assert torch.equal(final, model.forward_features(x))
    assert len(maps) == 2
    assert torch.equal(maps[-1], final)
    early, maps = model.forward_intermediates(x, indices=[0], stop_early=True)
    assert torch.equal(early, maps[0])
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NHWC")


@torch.no_grad()
def test_the_head_can_be_replaced_and_removed():
    model = tiny("replknet_7", drop_rate=0.5)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert relative(model(x), model.get_classifier()(pooled)) < 1e-14
    model.reset_classifier(7)
    assert model.get_classifier().weight.shape == (7, 32)
    assert model(x).dtype == torch.float64
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))


def test_a_new_head_is_made_as_the_net_is():
    model = tiny("replknet_7").requires_grad_(False).eval().to("meta", torch.float64)
    model.reset_classifier(3, "max")
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}
    assert not any(module.training for module in model.modules())
    with torch.device("meta"):
        model = tiny("replknet_7").eval().to_empty(device="cpu")
        model.reset_classifier(3)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", ["replknet_7", "mobilenetv2_lk"])
@pytest.mark.parametrize("features_only", [False, True])
def test_timm_chooses_device_and_dtype(name, features_only):
    model = timm.create_model(name, device="meta", dtype=torch.float64, features_only=features_only)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}


def test_options_of_timm_pass_through():
    model = timm.create_model(
        "replknet_31b", dims=(4, 8), depths=(1, 2), kernel_sizes=(9, (7, 5)), in_chans=1, num_classes=3
    )
    assert model(torch.randn(2, 1, 20, 20)).shape == (2, 3)
    assert model.stages[1].blocks[0].large_kernel.lkb_origin.conv.kernel_size == (7, 5)
    assert model.transitions[0][0].conv.weight.shape == (8, 4, 1, 1)
    features = timm.create_model("replknet_31b", dims=(4, 8), depths=(1, 1), kernel_sizes=(9, 7), features_only=True)
    assert features.feature_info.channels() == [4, 8]


@pytest.mark.parametrize("size", [1, 7, 28])
def test_small_grey_pictures_train(size):
    model = RepLKNet((31, 13), (1, 1), (4, 8), in_chans=1, num_classes=5, drop_path_rate=0.1)
    model(torch.randn(4, 1, size, size)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("in_chans", [1, 3])
def test_cpus_compute_channels_last(in_chans):
    model = RepLKNet((7, 7), (1, 1), (4, 8), in_chans=in_chans).eval()
    layouts = []
    for layer in model.modules():
        if isinstance(layer, LargeKernelConv):
            layer.register_forward_hook(
                lambda _, inputs, __: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    model(torch.randn(2, in_chans, 32, 32))
    assert layouts == [True, True]


def test_checkpointing_keeps_the_gradients():
    plain, saving = (tiny("replknet_7").train() for _ in range(2))
    saving.set_grad_checkpointing()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for model in (plain, saving):
        model(x).square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-10, atol=1e-12)
    assert all(stage.grad_checkpointing for stage in saving.stages)
    saving.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in saving.stages)


def official_layer(name):
    """The release's layer of a parameter: the stem, 12 groups of two pairs with their transitions, the rest."""
    part, stage, *path = name.split(".")
    if part == "stages":
        return (1, 2, 3, 12)[int(stage)] + int(path[1]) // 4
    return (1, 2, 11)[int(stage)] if part == "transitions" else {"stem": 0}.get(part, 13)


def test_layer_decay_groups_are_the_official_ones():
    model = on_meta("replknet_31b")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers == {name: official_layer(name) for name, _ in model.named_parameters()}
    assert set(layers.values()) == set(range(14))
    stages = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert stages["stem.0.conv.weight"] == 0
    assert stages["stages.2.blocks.35.pw2.conv.weight"] == stages["transitions.2.1.bn.bias"] == 3
    assert stages["norm.weight"] == stages["head.bias"] == 5


def test_timm_decays_by_layer_and_spares_biases():
    model = on_meta("replknet_31b")
    assert model.no_weight_decay() == set()
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
    assert sorted({g["lr_scale"] for g in groups}) == pytest.approx([0.7**i for i in range(13, -1, -1)])
    assert all((p.ndim > 1) == (g["weight_decay"] > 0) for g in groups for p in g["params"])


def test_no_branch_is_written_0_for_timm_which_drops_none():
    tiny = {"depths": (1,) * 4, "dims": (8,) * 4}
    net = timm.create_model("replknet_31b", small_kernel=0, **tiny)
    assert net.state_dict().keys() == RepLKNet(small_kernel=None, **tiny).state_dict().keys()
    assert not [name for name in net.state_dict() if "small_conv" in name]


@pytest.mark.parametrize(
    ("name", "size", "mean", "crop", "mode"),
    [
        ("replknet_31b", 224, 0.485, 0.875, "center"),
        ("replknet_31b.in1k_384", 384, 0.485, 1.0, "squash"),
        ("replknet_31l", 384, 0.485, 1.0, "squash"),
        ("replknet_xl", 320, 0.5, 0.875, "center"),
    ],
)
def test_data_settings_are_the_official_evaluation(name, size, mean, crop, mode):
    config = resolve_data_config(model=on_meta(name))
    assert config["input_size"] == (3, size, size)
    assert (config["mean"][0], config["crop_pct"], config["crop_mode"]) == (mean, crop, mode)
    assert config["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_sizes": (4,), "depths": (1,), "dims": (8,)}, "kernel_sizes is 4"),
        ({"small_kernel": 4}, "small_kernel is 4"),
        ({"kernel_sizes": (3, 3)}, "one entry for each stage"),
        ({"dims": (8, 16)}, "one entry for each stage"),
        ({"output_stride": 4}, "output_stride is 4: use 8, 16 or 32"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta("replknet_31b", **options)


@pytest.mark.parametrize(("name", "options"), [("replknet_7", TINY), ("mobilenetv2_lk", {"width": 0.1})])
@torch.no_grad()
def test_a_head_is_kept_only_behind_the_features_that_it_is_made_for(name, options):
    x = torch.randn(1, 3, 64, 64)
    model = timm.create_model(name, **options).eval()
    expected, maps = model(x), model.forward_intermediates(x, intermediates_only=True)
    model.prune_intermediate_layers([len(maps) - 1], prune_head=False)
    assert torch.equal(model(x), expected)
    model.prune_intermediate_layers([1], prune_head=False)
    assert model.num_classes == 0
    assert torch.equal(model(x), maps[1])


@pytest.mark.parametrize(("name", "options"), [("replknet_7", TINY), ("mobilenetv2_lk", {"width": 0.1})])
@torch.no_grad()
def test_timms_hooks_see_the_same_maps(name, options):
    hooked, own = (
        (torch.manual_seed(0), timm.create_model(name, features_only=True, feature_cls=kind, **options).eval())[1]
        for kind in ("hook", "getter")
    )
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(hooked(x), own(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "kind"), [("replknet_7", "list"), ("mobilenetv2_lk", "dict"), ("replknet_xl", "hook")]
)
def test_extractors_that_would_miss_maps_are_refused(name, kind):
    with pytest.raises(ValueError, match=f"feature_cls is '{kind}', which does not give {name}'s maps"):
        timm.create_model(name, features_only=True, feature_cls=kind)
