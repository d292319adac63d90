"""What every spatial layer keeps: shapes, its merged form, its cost, and its place in RepLKNet."""

from pathlib import Path

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.functional import conv2d

import replk_lightning
from replk_lightning.models.spatial import Place, SpatialLayer, get_spatial, spatial_layers
from replk_lightning.models.weights import CheckpointError

SMALL = {"dims": (8, 16, 16, 24), "depths": (1, 1, 1, 1), "img_size": 64}
every_layer = pytest.mark.parametrize("name", spatial_layers())


def trained(module: nn.Module) -> nn.Module:
    """In float64, its norms and biases away from where they start."""
    generator = torch.Generator().manual_seed(1)
    for _, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return module.double().eval()


@every_layer
def test_it_keeps_the_maps_shape_and_every_parameter_learns(name):
    torch.manual_seed(0)
    layer = get_spatial(name)(Place(16, 13, 5, side=14))
    x = torch.randn(2, 16, 14, 10)
    y = layer(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert [key for key, each in layer.named_parameters() if each.grad is None] == []


@every_layer
@pytest.mark.parametrize("dilation", [1, 2])
def test_merged_it_is_the_same_function(name, dilation):
    torch.manual_seed(0)
    try:
        layer = trained(get_spatial(name)(Place(16, 13, 5, dilation, side=14)))
    except ValueError as error:
        if dilation == 1 or "dilation" not in str(error):
            raise
        pytest.skip(f"{name} refuses dilation: {error}")
    x = torch.randn(2, 16, 14, 18, dtype=torch.float64)
    before = layer(x)
    if hasattr(layer, "reparameterize"):
        kept = len(list(layer.parameters()))  # tensors: a merged filter may have more numbers, no longer shared
        layer.reparameterize()
        layer.reparameterize()
        assert len(list(layer.parameters())) < kept
    torch.testing.assert_close(layer(x), before, rtol=1e-10, atol=1e-10)


@every_layer
def test_its_cost_is_that_of_the_merged_layers_taps_on_the_map(name):
    place = Place(16, 13, 5, side=14)
    layer = get_spatial(name)(place)
    if hasattr(layer, "reparameterize"):
        layer.reparameterize()
    counted = 0

    def count(conv, inputs):
        nonlocal counted
        ones = torch.ones_like(inputs[0][:1])
        weight = torch.ones_like(conv.weight)
        counted += conv2d(ones, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups).sum().long().item()

    convolutions = [each for each in layer.modules() if isinstance(each, nn.Conv2d)]
    own = {id(each) for conv in convolutions for each in conv.parameters()}
    if any(each.ndim > 1 and id(each) not in own for each in layer.parameters()):
        pytest.skip(f"{name} computes with weights that are no convolution's; its own test counts them")
    for conv in convolutions:
        conv.register_forward_pre_hook(count)
    layer(torch.randn(1, 16, 14, 14))
    assert layer.multiply_adds(place) == counted


@every_layer
def test_replknet_has_it_by_name_and_deploys_it(name):
    torch.manual_seed(0)
    net = trained(timm.create_model("replknet_13", spatial=name, **SMALL))
    assert {type(block.large_kernel) for stage in net.stages for block in list(stage.blocks)[::2]} == {
        get_spatial(name)
    }
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(replk_lightning.deploy(net)(x), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(reparameterize_model(net)(x), expected, rtol=1e-10, atol=1e-10)


@every_layer
@pytest.mark.parametrize("change", [lambda net: net, reparameterize_model], ids=["as trained", "merged"])
def test_a_file_of_it_gives_the_net_again(name, change, tmp_path):
    net = change(trained(timm.create_model("replknet_13", spatial=name, **SMALL)).float())
    torch.save(net.state_dict(), tmp_path / "net.pth")
    x = torch.randn(1, 3, 64, 64)
    fresh = timm.create_model("replknet_13", spatial=name, **SMALL)
    loaded = replk_lightning.load_official(fresh, tmp_path / "net.pth").eval()
    saved = replk_lightning.from_pretrained(replk_lightning.save_pretrained(net, tmp_path / "saved")).eval()
    assert torch.equal(loaded(x), net(x))
    assert torch.equal(saved(x), net(x))


@every_layer
def test_files_of_other_forms_are_refused_with_the_remedy(name, tmp_path):
    net = timm.create_model("replknet_13", spatial=name, **SMALL)
    torch.save(replk_lightning.deploy(net).state_dict(), tmp_path / "deployed.pth")
    with pytest.raises(CheckpointError, match=r"is deployed, but .* is as trained: deploy the model"):
        replk_lightning.load_official(net, tmp_path / "deployed.pth")
    torch.save(net.state_dict(), tmp_path / "trained.pth")
    if hasattr(get_spatial(name), "reparameterize"):
        with pytest.raises(CheckpointError, match=r"as trained, but .* is merged: load .* a fresh"):
            replk_lightning.load_official(reparameterize_model(net), tmp_path / "trained.pth")


@every_layer
def test_torch_fx_traces_it(name):
    layer = get_spatial(name)(Place(16, 13, 5, side=14)).eval()
    x = torch.randn(2, 16, 14, 10)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), layer(x))


@every_layer
def test_it_says_what_it_is(name):
    layer = get_spatial(name)
    assert layer.title
    assert layer.paper
    assert layer.merges_to
    assert len(layer.kernel_sizes) == 4


def test_an_unknown_one_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="no spatial layer 'slack': use one of"):
        timm.create_model("replknet_13", spatial="slack")


def test_a_global_filter_spans_the_longer_side_of_oblong_pictures():
    net = timm.create_model("replknet_13", spatial="global", **SMALL | {"img_size": (64, 96)})
    filters = [stage.blocks[0].large_kernel.everything.conv.kernel_size for stage in net.stages]
    assert filters == [(47, 47), (23, 23), (11, 11), (5, 5)]


def test_pictures_without_pixels_are_refused():
    with pytest.raises(ValueError, match="img_size is 0: use the side of the pictures"):
        timm.create_model("replknet_13", spatial="global", **SMALL | {"img_size": 0})


def test_one_that_cannot_be_merged_says_why():
    net = timm.create_model("replknet_13", spatial="replk", **SMALL)
    net.stages[0].blocks[0].large_kernel.small_conv.bn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"small_conv\.bn carries hooks"):
        reparameterize_model(net)


def test_contributings_example_is_a_layer_like_any_other(monkeypatch):
    monkeypatch.setattr(SpatialLayer, "known", dict(SpatialLayer.known))
    guide = (Path(__file__).parents[4] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    exec(compile(guide.split("```python\n")[1].split("```")[0], "pooling.py", "exec"), {"__name__": "pooling"})
    test_it_keeps_the_maps_shape_and_every_parameter_learns("pooling")
    test_merged_it_is_the_same_function("pooling", 1)
    test_its_cost_is_that_of_the_merged_layers_taps_on_the_map("pooling")
    test_replknet_has_it_by_name_and_deploys_it("pooling")
    test_it_says_what_it_is("pooling")
