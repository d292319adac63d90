from importlib import import_module

import pytest
import timm
import torch
import torch.distributed as dist
from model_samples import REPLKNETS, TINY, randomise, relative
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import replk_lightning
from native import DepthwiseConv2d
from replk_lightning import deploy
from replk_lightning.models.reparam import LargeKernelConv

MOBILENETS = {
    "mobilenet": {"kernel_size": 3},
    "mobilenet 13×13": {"kernel_size": 13, "small_kernel": 3, "stem_stride": 1},
    "mobilenet without shortcuts": {"kernel_size": 5, "shortcut": False},
    "mobilenet for grey pictures, dilated": {"dilation": 4, "in_chans": 1},
    "mobilenet for segmentation": {"kernel_size": 9, "small_kernel": 3, "output_stride": 8, "dilate_large": True},
}
MODELS = {name: (name, TINY) for name in REPLKNETS} | {
    name: ("mobilenetv2_lk", {"width": 0.35, "num_classes": 10} | options) for name, options in MOBILENETS.items()
}
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}


def sample(model, dtype=torch.float64, **options):
    torch.manual_seed(0)
    name, defaults = MODELS[model]
    net = randomise(timm.create_model(name, **defaults | options)).to(dtype).eval()
    return net, torch.randn(2, defaults.get("in_chans", 3), 64, 64, dtype=dtype)


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_classifier_stays_the_same_function_without_batch_norms(name, dtype):
    model, x = sample(name, dtype)
    fast = deploy(model)
    assert relative(fast(x), model(x)) < BOUNDS[dtype]
    assert norms(fast) == []
    assert all(layer.merged for layer in fast.modules() if isinstance(layer, LargeKernelConv))
    assert {p.dtype for p in fast.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_feature_extractor_stays_the_same_function(name, dtype):
    model, x = sample(name, dtype, features_only=True)
    fast = deploy(model)
    assert max(relative(a, b) for a, b in zip(fast(x), model(x), strict=True)) < BOUNDS[dtype]
    # RepLKNet-XL's norms on its outputs have no layer behind them.
    assert norms(fast) == ([f"model.stages.{i}.norm" for i in range(4)] if name == "replknet_xl" else [])


@torch.no_grad()
def test_the_argument_is_left_alone():
    model, x = sample("replknet_31b")
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = deploy(model)
    assert model.training
    assert not fast.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()
    assert not {p.data_ptr() for p in fast.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert relative(fast(x), model.eval()(x)) < 1e-10


def test_a_trained_model_deploys():
    model, x = sample("mobilenet 13×13", torch.float32)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    fast = deploy(model)
    with torch.no_grad():
        assert relative(fast(x), model.eval()(x)) < 1e-5


def activations(model):
    return {name: layer.activation for name, layer in model.named_modules() if getattr(layer, "activation", None)}


@pytest.mark.parametrize(("name", "activation"), [("replknet_31b", "relu"), ("mobilenet 13×13", "relu6")])
@torch.no_grad()
def test_depthwise_layers_compute_the_activation_behind_them(name, activation):
    model, x = sample(name)
    fast = deploy(model)
    depthwise = [name for name, layer in fast.named_modules() if isinstance(layer, DepthwiseConv2d)]
    assert activations(fast) == dict.fromkeys(depthwise, activation)
    assert activations(model) == {}
    assert activations(deploy(fast)) == activations(fast)
    assert relative(deploy(fast)(x), model(x)) < 1e-10


@torch.no_grad()
def test_what_is_watched_keeps_its_own_activation():
    model, x = sample("replknet_31b")
    seen = []
    block = model.stages[0].blocks[0]
    block.lk_nonlinear.register_forward_hook(lambda module, args, output: seen.append(args[0].min()))
    fast = deploy(model)
    fast(x)
    assert seen[0] < 0
    assert "stages.0.blocks.0.large_kernel.lkb_reparam" not in activations(fast)


class OfMyOwn(LargeKernelConv):
    def forward(self, x):
        return super().forward(x) - x


REPLACED = {
    "sequence": lambda: nn.Sequential(DepthwiseConv2d(TINY["dims"][0], 5, bias=False), nn.BatchNorm2d(TINY["dims"][0])),
    "bare": lambda: DepthwiseConv2d(TINY["dims"][0], 5),
    "identity": nn.Identity,
    "subclass": lambda: OfMyOwn(TINY["dims"][0], 5),
}


@pytest.mark.parametrize("replaced", REPLACED)
@torch.no_grad()
def test_a_large_kernel_that_was_replaced_is_no_obstacle(replaced):
    model, x = sample("replknet_31b")
    model.stages[0].blocks[0].large_kernel = randomise(REPLACED[replaced]()).double().eval()
    fast = deploy(model)
    assert relative(fast(x), model(x)) < 1e-10
    assert norms(fast) == []


@torch.no_grad()
def test_a_probe_between_sees_what_it_saw():
    seen = []
    probe = nn.Identity()
    probe.register_forward_hook(lambda module, args, output: seen.append(float(output.min())))
    model = nn.Sequential(DepthwiseConv2d(8, 5), probe, nn.ReLU()).eval()
    x = torch.randn(2, 8, 9, 9)
    model(x)
    deploy(model)(x)
    assert seen[0] == pytest.approx(seen[1])
    assert seen[1] < 0


def test_fusing_freezes_and_thaws_nothing():
    model = nn.Sequential(DepthwiseConv2d(8, 5), nn.ReLU()).eval()
    model[0].weight.requires_grad_(False)
    fast = deploy(model)
    assert activations(fast) == {"0": "relu"}
    assert [p.requires_grad for p in fast.parameters()] == [False, True]


@torch.no_grad()
def test_a_layer_that_two_places_share_is_fused_in_one_only():
    conv, norm = DepthwiseConv2d(8, 5), nn.BatchNorm2d(8)
    model = randomise(nn.Sequential(nn.Sequential(conv, norm, nn.ReLU()), nn.Sequential(conv, norm))).double().eval()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    fast = deploy(model)
    assert activations(fast) == {"0.0": "relu"}
    assert relative(fast(x), model(x)) < 1e-10


@torch.no_grad()
def test_deploying_twice_or_after_merging_changes_nothing():
    model, x = sample("replknet_13")
    once = deploy(model)
    assert torch.equal(deploy(once)(x), once(x))
    merged = timm.utils.reparameterize_model(model)
    assert relative(deploy(merged)(x), model(x)) < 1e-10


@pytest.mark.parametrize("pooling", ["avg", "max", "catavgmax"])
@torch.no_grad()
def test_the_last_norm_folds_only_through_an_average(pooling):
    model, x = sample("replknet_7", global_pool=pooling)
    fast = deploy(model)
    assert relative(fast(x), model(x)) < 1e-10
    assert norms(fast) == ([] if pooling == "avg" else ["norm"])


@torch.no_grad()
def test_a_model_without_head_keeps_its_last_norm():
    model, x = sample("replknet_7", num_classes=0)
    fast = deploy(model)
    assert relative(fast(x), model(x)) < 1e-10
    assert norms(fast) == ["norm"]


@torch.no_grad()
def test_models_inside_other_modules_deploy_and_foreign_norms_keep_their_activation():
    class Segmentor(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model("replknet_7", features_only=True, **TINY)
            self.decoder = nn.Sequential(
                nn.Conv2d(32, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 8, 1), BatchNormAct2d(8), nn.Conv2d(8, 5, 1),
            )  # fmt: skip

        def forward(self, x):
            return self.decoder(self.backbone(x)[-1])

    model = randomise(Segmentor()).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fast = deploy(model)
    assert relative(fast(x), model(x)) < 1e-10
    assert norms(fast) == ["decoder.4"]


def test_weights_lie_channels_last():
    model, _ = sample("replknet_7")
    fast = deploy(model)
    assert fast.stem[0].conv.weight.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_weights_and_net_take_the_layout_that_was_measured_and_a_net_that_has_one_keeps_it(monkeypatch):
    model, x = sample("replknet_7")
    asked = []
    measured = lambda net, images: asked.append((net, images)) or torch.contiguous_format  # noqa: E731
    monkeypatch.setattr(import_module("replk_lightning.deploy"), "fastest_layout", measured)
    fast = deploy(model, x)
    assert fast.memory_format is torch.contiguous_format
    assert fast.stem[0].conv.weight.is_contiguous()
    assert fast.forward_features(x).is_contiguous()
    assert relative(fast(x), model(x)) < 1e-5
    ((net, images),) = asked
    assert net is fast
    assert images is x
    assert model.memory_format is None
    model.memory_format = torch.channels_last
    assert deploy(model, x).memory_format is torch.channels_last
    assert deploy(nn.Sequential(nn.Conv2d(3, 4, 3)), x)
    assert len(asked) == 1


def test_both_layouts_of_a_deployed_net_are_timed():
    model, x = sample("replknet_7")
    assert deploy(nn.Sequential(model), x)[0].memory_format in (torch.channels_last, torch.contiguous_format)


@torch.no_grad()
def test_half_precision_deploys_as_well_as_it_runs():
    model, x = sample("replknet_13")
    exact = model(x)
    half = sample("replknet_13", torch.bfloat16)[0]
    error = relative(deploy(half)(x.bfloat16()), exact)
    assert error < 2 * relative(half(x.bfloat16()), exact)


def test_synchronised_batch_norms_fold():
    model, x = sample("mobilenet")
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    fast = deploy(synchronised)
    assert norms(fast) == []
    with torch.no_grad():
        assert relative(fast(x), sample("mobilenet")[0](x)) < 1e-10


@torch.no_grad()
def test_of_a_net_in_parallel_the_net_inside_deploys(tmp_path):
    dist.init_process_group("gloo", init_method=(tmp_path / "processes").as_uri(), rank=0, world_size=1)
    try:
        model, x = sample("replknet_7")
        fast = deploy(nn.parallel.DistributedDataParallel(model))
        assert relative(fast(x), model(x)) < 1e-10
        assert isinstance(fast, type(model))
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated", "ignore:.torch.jit.trace_method. is deprecated")
def test_a_traced_net_is_refused():
    model, x = sample("mobilenet")
    with pytest.raises(TypeError, match=r"TorchScript cannot be rewritten: deploy the net first"):
        deploy(nn.Sequential(torch.jit.trace(model, x)))


def test_the_package_exports_what_it_promises():
    assert replk_lightning.deploy is deploy
    assert replk_lightning.__version__
    assert set(REPLKNETS) | {"mobilenetv2_lk"} <= set(timm.list_models())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_layout_that_was_set_is_that_of_weights_and_activations(layout):
    model = timm.create_model("replknet_3", dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), num_classes=3).eval()
    model.memory_format = layout
    deployed = deploy(nn.Sequential(model))
    seen = []
    for module in deployed.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, x, y: seen.extend((x[0], y)))
    deployed(torch.randn(2, 3, 64, 64))
    maps = [each for each in seen if each.shape[2] > 1 and each.shape[1] > 1]
    assert maps
    assert all(each.is_contiguous(memory_format=layout) for each in maps[1:])
