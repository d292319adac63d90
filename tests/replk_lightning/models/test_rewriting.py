"""Merging, deploying and loading: the state of the process does not leak in, and nothing that modules carry is lost."""

import pytest
import timm
import torch
from model_samples import TINY, randomise, relative
from process_states import STATES, default_dtype
from timm.layers import StdConv2d, SyncBatchNormAct
from timm.utils import freeze, reparameterize_model
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torchvision.ops import FrozenBatchNorm2d

from native import DepthwiseConv2d
from replk_lightning import deploy, load_official
from replk_lightning.models.blocks import RepLKBlock
from replk_lightning.models.reparam import ConvBN, LargeKernelConv
from replk_lightning.models.replknet import RepLKNet

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def net(name="replknet_7", seed=0, **options):
    torch.manual_seed(seed)
    return randomise(timm.create_model(name, **TINY | options), seed).eval()


@pytest.fixture(params=STATES)
def state(request):
    return STATES[request.param]


def assert_same(ours, theirs):
    """Bit for bit, on the CPU."""
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert (value.device.type, value.dtype) == ("cpu", theirs[key].dtype)
        assert torch.equal(value, theirs[key])


def test_merging_does_not_depend_on_the_state_of_the_process(state):
    layer, right = (LargeKernelConv(4, 9, small_kernel=5) for _ in range(2))
    right.load_state_dict(randomise(layer).state_dict())
    right.reparameterize()
    with state():
        layer.reparameterize()
    assert_same(layer, right)
    layer(torch.randn(1, 4, 16, 16)).sum().backward()  # no tensor of inference mode is left


@pytest.mark.parametrize("form", [deploy, reparameterize_model])
def test_copies_do_not_depend_on_the_state_of_the_process(form, state):
    model = net()
    with state():
        ours = form(model)
    assert_same(ours, form(model))
    if form is deploy:  # timm's own copy is one of inference mode
        ours(IMAGES).sum().backward()


@torch.inference_mode()
def test_a_net_of_inference_mode_deploys_to_one_that_trains():
    fast = deploy(net())
    with torch.inference_mode(False):
        fast(IMAGES.clone()).sum().backward()


@pytest.mark.parametrize("form", [nn.Module.eval, reparameterize_model, deploy])
def test_loading_does_not_depend_on_the_state_of_the_process(form, state, tmp_path):
    right = form(net(seed=1))
    torch.save({"model": right.state_dict()}, tmp_path / "file.pth")
    model = deploy(net(seed=2)) if form is deploy else net(seed=2)
    with state():
        load_official(model, tmp_path / "file.pth")
    assert_same(model, right)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("name", "options"), [("replknet_3", TINY), ("mobilenetv2_lk", {"width": 0.1})])
def test_models_are_built_and_trained_in_a_default_dtype(name, options, dtype):
    with default_dtype(dtype):
        model = timm.create_model(name, **options | {"num_classes": 4})
        model.reset_classifier(3)
        assert {p.dtype for p in model.parameters()} == {dtype}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        model(torch.randn(4, 3, 32, 32)).float().square().mean().backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(p.grad is not None for p in model.parameters())


class TwoNets(nn.Module):
    """Two nets whose outputs lie side by side."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return torch.stack([self.first(x), self.second(x)])


def share_head(a, b):
    b.head = a.head


def share_norm(a, b):
    b.norm = a.norm


def share_head_weight(a, b):
    b.head.weight = a.head.weight


def share_pointwise(a, b):
    b.stages[0].blocks[0].pw1 = a.stages[0].blocks[0].pw1


def share_pointwise_convolution(a, b):
    b.stages[0].blocks[0].pw1.conv = a.stages[0].blocks[0].pw1.conv


def share_branch(a, b):
    b.stages[0].blocks[0].large_kernel.lkb_origin.conv = a.stages[0].blocks[0].large_kernel.lkb_origin.conv


def share_large_kernel(a, b):
    b.stages[0].blocks[0].large_kernel = a.stages[0].blocks[0].large_kernel


def share_stage(a, b):
    b.stages[1] = a.stages[1]


@pytest.mark.parametrize(
    "share",
    [
        share_head,
        share_norm,
        share_head_weight,
        share_pointwise,
        share_pointwise_convolution,
        share_branch,
        share_large_kernel,
        share_stage,
    ],
)
@torch.no_grad()
def test_what_two_nets_share_is_folded_for_each(share):
    a, b = net(seed=1).double(), net(seed=2).double()
    share(a, b)
    both = TwoNets(a, b)
    assert relative(deploy(both)(IMAGES.double()), both(IMAGES.double())) < 1e-10
    assert relative(reparameterize_model(both)(IMAGES.double()), both(IMAGES.double())) < 1e-10


@torch.no_grad()
def test_a_convolution_that_comes_twice_is_folded_for_each_norm():
    conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    layers = randomise(nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3))).double().eval()
    layers[3].running_mean += 1
    fast = deploy(layers)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert relative(fast(IMAGES.double()), layers(IMAGES.double())) < 1e-12


@pytest.mark.parametrize("form", [deploy, reparameterize_model])
def test_frozen_parameters_stay_frozen(form):
    model = net().requires_grad_(False)
    assert not any(p.requires_grad for p in form(model).parameters())
    model.head.requires_grad_(True)
    assert [name for name, p in form(model).named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert all(p.requires_grad for p in form(net()).parameters())


def pruned(conv):
    prune.l1_unstructured(conv, "weight", 0.5)
    prune.random_structured(conv, "weight", 0.3, dim=0)


def weight_normalised(conv):
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(conv)


COMPUTED = {
    "pruned": pruned,
    "weight norm": parametrizations.weight_norm,
    "old weight norm": weight_normalised,
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": old_spectral_norm,
}
CONVOLUTIONS = (
    "stem.0.conv",
    "stages.0.blocks.0.pw1.conv",
    "stages.0.blocks.0.large_kernel.lkb_origin.conv",
    "stages.1.blocks.0.large_kernel.small_conv.conv",
    "head",
)


@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_become_plain_ones(kind):
    model = net().double()
    for name in CONVOLUTIONS:
        COMPUTED[kind](model.get_submodule(name))
    model.get_submodule(CONVOLUTIONS[0]).requires_grad_(False)
    model.stem[0].bn.requires_grad_(False)
    model(IMAGES.double())  # leaves weights that are no leaves, which torch does not copy
    with torch.no_grad():
        expected = model(IMAGES.double())
        before = {key: value.clone() for key, value in model.state_dict().items()}
        fast = deploy(model)
        assert relative(fast(IMAGES.double()), expected) < 1e-10
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        merged = reparameterize_model(model, inplace=True)
        assert relative(merged(IMAGES.double()), expected) < 1e-10
    assert fast.state_dict().keys() == deploy(net()).state_dict().keys()
    frozen = {name for name, p in fast.named_parameters() if not p.requires_grad}
    assert frozen == {"stem.0.conv.weight", "stem.0.conv.bias"}


@torch.no_grad()
def test_a_mask_does_not_reach_the_layer_that_shares_its_weight():
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    layers[1].weight = layers[0].weight
    prune.l1_unstructured(layers[0], "weight", 0.5)
    x = torch.randn(2, 4)
    assert relative(deploy(layers)(x), layers(x)) < 1e-6


HOOKS = ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook")


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("name", ["stem.0.bn", "stages.0.blocks.0.prelkb_bn", "stages.0.blocks.0.pw1", "norm", "head"])
def test_hooks_on_what_is_folded_are_refused_by_name(kind, name):
    model = net()
    getattr(model.get_submodule(name), kind)(lambda *_: None)
    with pytest.raises(ValueError, match=rf"^{name}(\.\w+)? carries hooks, .* remove them"):
        deploy(model)


@pytest.mark.parametrize("branch", ["lkb_origin", "lkb_origin.conv", "small_conv.bn"])
def test_hooks_on_a_branch_are_refused_and_the_layer_is_left_alone(branch):
    model = net()
    layer = model.train().stages[0].blocks[0].large_kernel
    layer.get_submodule(branch).register_forward_hook(lambda *_: None)
    before = list(layer.state_dict())
    with pytest.raises(ValueError, match=f"^{branch} carries hooks"):
        layer.reparameterize()
    assert list(layer.state_dict()) == before
    assert layer.training
    with pytest.raises(ValueError, match=rf"^stages\.0\.blocks\.0\.large_kernel\.{branch} carries hooks"):
        deploy(model)


@torch.no_grad()
def test_hooks_around_what_is_folded_see_what_they_saw():
    seen = []
    model = net().double()
    for name in ("stem.0", "stages.0", "stages.0.blocks.0", "stages.0.blocks.0.large_kernel", "transitions.0"):
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    fast = deploy(model)
    model(IMAGES.double())
    expected, seen[:] = list(seen), []
    fast(IMAGES.double())
    assert len(seen) == 5
    assert all(relative(ours, theirs) < 1e-10 for ours, theirs in zip(seen, expected, strict=True))


def test_merging_keeps_the_mode():
    layer = LargeKernelConv(4, 7, small_kernel=3).train()
    layer.reparameterize()
    assert layer.training
    assert layer.lkb_reparam.training
    assert not deploy(layer).training


class Reversed(nn.Sequential):
    """Its children run from the last to the first."""

    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


def frozen_norm(channels):
    norm = FrozenBatchNorm2d(channels)
    norm.running_mean.normal_()
    norm.weight.uniform_(0.5, 1.5)
    return norm


def batch_statistics(channels):
    norm = nn.BatchNorm2d(channels)
    norm.running_mean = norm.running_var = None
    return norm


FOREIGN = {
    "a norm with an activation": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), SyncBatchNormAct(3)), 1),
    "a convolution that standardises": (lambda: nn.Sequential(StdConv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)), 1),
    "a sequence of its own order": (lambda: Reversed(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), 1),
    "a norm of each batch": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), batch_statistics(3)), 1),
    "a frozen norm": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), frozen_norm(3)), 0),
}


@pytest.mark.parametrize("kind", FOREIGN)
@torch.no_grad()
def test_foreign_layers_are_folded_only_where_they_are_what_they_seem(kind):
    build, left = FOREIGN[kind]
    torch.manual_seed(0)
    layers = build().eval()
    if kind == "a norm with an activation":
        layers[1].act, layers[1].drop = nn.ReLU(), nn.Identity()
    fast = deploy(layers)
    assert relative(fast(IMAGES), layers(IMAGES)) < 1e-5
    assert sum("Norm" in type(module).__name__ for module in fast.modules()) == left


@torch.no_grad()
def test_a_net_that_timm_froze_merges():
    model = net()
    expected = model(IMAGES)
    freeze(model)
    assert relative(reparameterize_model(model)(IMAGES), expected) < 1e-5
    assert relative(deploy(model)(IMAGES), expected) < 1e-5


def test_a_norm_that_cannot_be_merged_is_refused():
    layer = LargeKernelConv(4, 7, small_kernel=3)
    layer.small_conv.bn.running_mean = layer.small_conv.bn.running_var = None
    with pytest.raises(ValueError, match="running statistics"):
        layer.reparameterize()


class Doubled(DepthwiseConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def changed_branch(kind):
    model = net()
    branch = model.stages[0].blocks[0].large_kernel.small_conv
    if kind == "activation":
        branch.add_module("nonlinear", nn.ReLU())
    elif kind == "another norm":
        branch.bn = nn.GroupNorm(1, branch.conv.out_channels)
    elif kind == "no norm":
        branch.bn = nn.Identity()
    elif kind == "subclass":
        branch.conv = Doubled(branch.conv.out_channels, 5, bias=False)
    elif kind == "wrapped":  # as adapters of low rank do
        branch.conv = nn.Sequential(branch.conv)
    return model


@pytest.mark.parametrize("kind", ["activation", "another norm", "no norm", "subclass", "wrapped"])
def test_a_branch_that_is_no_longer_a_convolution_and_its_norm_is_refused_by_name(kind):
    with pytest.raises(ValueError, match=r"^stages\.0\.blocks\.0\.large_kernel\.small_conv holds .* can be merged$"):
        deploy(changed_branch(kind))


def test_a_forward_that_was_set_on_what_is_folded_is_refused():
    model = net()
    layer = model.stages[0].blocks[0].large_kernel.lkb_origin.bn
    layer.forward = lambda x: x
    with pytest.raises(ValueError, match=r"lkb_origin\.bn has a forward of its own"):
        deploy(model)


class NormTwice(RepLKBlock):
    def forward(self, x):
        return super().forward(x) + self.prelkb_bn(x)


class Logits(RepLKNet):
    def forward_head(self, x, pre_logits=False):
        return super().forward_head(x, pre_logits) + x.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("kind", [NormTwice, Logits, "pooling"])
@torch.no_grad()
def test_what_a_subclass_computes_stays(kind):
    model = net()
    if kind is NormTwice:
        model.stages[0].blocks[0].__class__ = NormTwice
    elif kind is Logits:
        model.__class__ = Logits
    else:
        model.global_pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
    assert relative(deploy(model)(IMAGES), model(IMAGES)) < 1e-5


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize(
    ("name", "options"), [("replknet_7", TINY), ("replknet_xl", TINY), ("mobilenetv2_lk", {"width": 0.1})]
)
def test_every_module_takes_full_backward_hooks(name, options, features_only, kind):
    model = timm.create_model(name, features_only=features_only, **options)
    reached, called = set(), set()
    for each, module in model.named_modules():
        if features_only and not each:
            continue  # torch's hooks want no lists
        module.register_forward_hook(lambda *_, each=each: reached.add(each))
        getattr(module, kind)(lambda *_, each=each: called.add(each))
    y = model(IMAGES.clone().requires_grad_())
    (sum(map(torch.sum, y)) if features_only else y.sum()).backward()
    assert len(reached) > 50
    assert called == reached
    assert all(p.grad is not None for name, p in model.named_parameters() if name.rpartition(".")[0] in reached)


def test_conv_bn_with_an_activation_takes_hooks_on_each_part():
    layer = ConvBN(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU())
    for module in layer:
        module.register_full_backward_hook(lambda *_: None)
    layer(IMAGES.clone().requires_grad_()).sum().backward()
    assert layer.conv.weight.grad is not None
