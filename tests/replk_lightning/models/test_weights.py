import argparse
import gzip
import re

import numpy as np
import pytest
import timm
import torch
from model_samples import TINY, randomise
from safetensors.torch import save_file
from timm.utils import reparameterize_model
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from replk_lightning import deploy, load_official
from replk_lightning.models.weights import CheckpointError, load_backbone, load_weights


def tiny(seed=0, name="replknet_7", **options):
    torch.manual_seed(seed)
    return randomise(timm.create_model(name, **TINY | options), seed)


def openmmlab(state):
    """The names of OpenMMLab's classifiers."""
    names = {}
    for key, value in state.items():
        if key.startswith("head."):
            names[key.replace("head.", "head.fc.")] = value
        else:
            names["backbone." + re.sub(r"^norm\.", "stages.3.norm.", key)] = value
    return names


CONTAINERS = {
    "flat": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {}}, "scaler": {"scale": 1.0}},
    "args": lambda state: {"model": state, "args": argparse.Namespace(model="RepLKNet-31B", lr=4e-3)},
    "ema": lambda state: {"model": {k: v * 0 for k, v in state.items()}, "model_ema": state},
    "state_dict": lambda state: {"state_dict": state, "meta": {"epoch": 1}},
    "module": lambda state: {"module": state},
    "parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "hyper_parameters": {}},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "22k head": lambda state: {k.replace("head.", "head.cls_22k."): v for k, v in state.items()},
    "openmmlab": lambda state: {"meta": {}, "state_dict": openmmlab(state)},
    "without batch counts": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    "averaged": lambda state: averaged(state),
    "average of a parallel, compiled net": lambda state: {"model_ema": averaged(prefixed(state, "module._orig_mod."))},
    "compiled, parallel": lambda state: prefixed(state, "_orig_mod.module."),
    "timm's script": lambda state: {
        "epoch": 3,
        "arch": "replknet_7",
        "state_dict": other(state),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "version": 2,
        "args": argparse.Namespace(lr=0.1),
        "state_dict_ema": prefixed(state, "module."),
        "metric": np.float64(80.5),
    },
    "Lightning's average": lambda state: {
        "current_model_state": prefixed(other(state), "model."),
        "state_dict": prefixed(state, "model."),
        "averaging_state": {"n_averaged": torch.tensor(7)},
        "callbacks": {"best": torch.tensor(0.5)},
    },
    "a container in a container": lambda state: {"state_dict": {"model": other(state), "ema": averaged(state)}},
    "names that nobody knows": lambda state: {"weights": prefixed(state, "student.nets.0.")},
    "beside a head's": lambda state: (
        prefixed(state, "backbone.net.model.") | {"decode_head.norm.weight": torch.ones(2)}
    ),
    "beside a loss's": lambda state: {"state_dict": prefixed(state, "net.") | {"criterion.weight": torch.ones(3)}},
    "average before its net": lambda state: prefixed(state, "ema_model.module.") | prefixed(other(state), "model."),
    "average behind its net": lambda state: prefixed(other(state), "model.") | prefixed(averaged(state), "ema."),
    "average beside its net": lambda state: prefixed(averaged(state), "ema.") | other(state),
    "parts compiled": lambda state: {re.sub(r"^(stages\.\d+)", r"\1._orig_mod", k): v for k, v in state.items()},
    "parts wrapped": lambda state: {
        re.sub(r"(blocks\.\d+)", r"\1._fsdp_wrapped_module._checkpoint_wrapped_module", k): v for k, v in state.items()
    },
    "numpy's numbers": lambda state: {
        "model": state,
        "best": np.float32(0.5),
        "curve": np.arange(3.0),
        "epoch": np.int64(3),
        "shuffle": np.random.RandomState(0).get_state(),
        "done": np.bool_(True),
    },
}


def prefixed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def other(state):
    return {key: value + 1 for key, value in state.items()}


def averaged(state):
    """What torch's AveragedModel of the net saves."""
    return prefixed(state, "module.") | {"n_averaged": torch.tensor(5)}


def assert_holds(model, state):
    """The model's parameters and statistics are the file's."""
    ours = model.state_dict()
    assert all(torch.equal(ours[key], state[key]) for key in ours if "num_batches" not in key)


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_loads(container, tmp_path):
    state = tiny(1).state_dict()
    torch.save(CONTAINERS[container](state), tmp_path / "file.pth")
    model = tiny(2, features_only=True).model if container == "beside a head's" else tiny(2)
    assert load_official(model, tmp_path / "file.pth") is model
    assert_holds(model, state)


def test_safetensors_load(tmp_path):
    state = tiny(1).state_dict()
    save_file(openmmlab(state), tmp_path / "file.safetensors")
    assert_holds(load_official(tiny(2), str(tmp_path / "file.safetensors")), state)


def test_safetensors_are_known_by_what_they_are(tmp_path):
    state = tiny(1).state_dict()
    save_file(state, tmp_path / "pytorch_model.bin")
    assert_holds(load_official(tiny(2), tmp_path / "pytorch_model.bin"), state)


@pytest.mark.parametrize("pair", [("student.", "teacher."), ("model.", "module.")])
def test_two_nets_side_by_side_are_refused(pair, tmp_path):
    state = tiny(1).state_dict()
    torch.save(prefixed(state, pair[0]) | prefixed(other(state), pair[1]), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=rf"unexpected: {pair[1]}stem"):
        load_official(tiny(2), tmp_path / "file.pth")


def test_a_compiled_model_loads(tmp_path):
    state = tiny(1).state_dict()
    torch.save(state, tmp_path / "file.pth")
    model = tiny(2)
    compiled = torch.compile(model, backend="eager")
    assert load_official(compiled, tmp_path / "file.pth") is compiled
    assert_holds(model, state)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "folder"])
def test_parts_of_a_checkpoint_are_refused(name, tmp_path):
    if name == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"several files: save its state_dict into one$"):
        load_official(tiny(), tmp_path / name)


def test_a_packed_checkpoint_is_told(tmp_path):
    (tmp_path / "file.pth").write_bytes(gzip.compress(b"0" * 99))
    with pytest.raises(CheckpointError, match=r"gzip has packed it: unpack it first$"):
        load_official(tiny(), tmp_path / "file.pth")


def test_merged_files_merge_the_model(tmp_path):
    merged = reparameterize_model(tiny(1).eval())
    torch.save(merged.state_dict(), tmp_path / "merged.pth")
    model = load_official(tiny(2).eval(), tmp_path / "merged.pth")
    x = torch.randn(1, 3, 32, 32)
    assert "stages.0.blocks.0.large_kernel.lkb_reparam.bias" in model.state_dict()
    assert torch.equal(model(x), merged(x))


def test_mobilenet_loads_too(tmp_path):
    options = {"width": 0.35, "kernel_size": 5, "num_classes": 4}
    models = [randomise(timm.create_model("mobilenetv2_lk", **options), seed) for seed in (1, 2)]
    torch.save({"model": models[0].state_dict()}, tmp_path / "file.pth")
    assert_holds(load_official(models[1], tmp_path / "file.pth"), models[0].state_dict())


@pytest.mark.parametrize("container", ["flat", "openmmlab", "22k head"])
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1,)])
def test_feature_extractors_take_the_trunk_of_a_classifier(container, out_indices, tmp_path):
    state = tiny(1).state_dict()
    torch.save(CONTAINERS[container](state), tmp_path / "file.pth")
    extractor = load_official(tiny(2, features_only=True, out_indices=out_indices), tmp_path / "file.pth")
    assert_holds(extractor.model, state)


def test_xl_keeps_fresh_output_norms_unless_the_file_has_them(tmp_path):
    classifier = tiny(1, "replknet_xl")
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    extractor = tiny(2, "replknet_xl", features_only=True)
    before = extractor.model.stages[2].norm.weight.clone()
    load_official(extractor, tmp_path / "classifier.pth")
    assert torch.equal(extractor.model.stages[2].norm.weight, before)
    assert torch.equal(
        extractor.model.stages[2].blocks[0].pw1.conv.weight, classifier.stages[2].blocks[0].pw1.conv.weight
    )

    dense = tiny(3, "replknet_xl", features_only=True).model.state_dict()
    segmentor = {f"backbone.{k}": v for k, v in dense.items()} | {"decode_head.conv_seg.bias": torch.zeros(150)}
    torch.save({"state_dict": segmentor}, tmp_path / "segmentor.pth")
    assert_holds(load_official(extractor, tmp_path / "segmentor.pth").model, dense)


def test_a_head_of_another_size_is_an_error_unless_left_out(tmp_path):
    pretrained = tiny(1, num_classes=218).state_dict()
    torch.save({k.replace("head.", "head.cls_22k."): v for k, v in pretrained.items()}, tmp_path / "22k.pth")
    model = tiny(2)
    own_head = model.head.weight.clone()
    with pytest.raises(
        CheckpointError, match=r"head=False.*head.weight \(218, 32\) in the file, \(10, 32\) in the model"
    ):
        load_official(model, tmp_path / "22k.pth")
    load_official(model, tmp_path / "22k.pth", head=False)
    assert torch.equal(model.head.weight, own_head)
    assert torch.equal(model.norm.weight, pretrained["norm.weight"])


def test_a_wrong_file_is_described_and_changes_nothing(tmp_path):
    state = tiny(1).state_dict()
    renamed = {k.replace("stages.0.", "layers.0."): v for k, v in state.items()} | {
        "stem.1.conv.weight": torch.zeros(2, 2)
    }
    torch.save(renamed, tmp_path / "file.pth")
    model = tiny(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_official(model, tmp_path / "file.pth")
    error, message = caught.value, str(caught.value)
    stage = [k for k in state if k.startswith("stages.0.") and "num_batches" not in k]
    assert error.missing == stage
    assert len(error.unexpected) == len([k for k in state if k.startswith("stages.0.")])
    assert error.misshaped == ["stem.1.conv.weight (2, 2) in the file, (8, 1, 3, 3) in the model"]
    assert stage[9] in message
    assert stage[10] not in message
    assert f"and {len(stage) - 10} more" in message
    assert "unexpected: layers.0." in message
    assert "mis-shaped: stem.1.conv.weight" in message
    assert "RepLKNet" in message
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_merged_file_that_does_not_fit_merges_nothing(tmp_path):
    torch.save(reparameterize_model(tiny(1, num_classes=3)).state_dict(), tmp_path / "merged.pth")
    model = tiny(2)
    with pytest.raises(CheckpointError, match="mis-shaped"):
        load_official(model, tmp_path / "merged.pth")
    assert not model.stages[0].blocks[0].large_kernel.merged


def test_entries_that_are_no_tensors_are_unexpected(tmp_path):
    torch.save(tiny(1).state_dict() | {"epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"unexpected: epoch$"):
        load_official(tiny(2), tmp_path / "file.pth")


class Malicious:
    """Pickles to a call."""

    def __reduce__(self):
        return print, ("executed",)


def test_only_data_is_unpickled(tmp_path, capsys):
    torch.save({"model": Malicious()}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_official(tiny(), tmp_path / "file.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>"])
def test_a_file_that_is_no_checkpoint_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_official(tiny(), tmp_path / name)


def test_a_lone_tensor_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        load_official(tiny(), tmp_path / "file.pth")


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_a_file_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=name):
        load_official(tiny(), tmp_path / name)


def test_timm_loads_foreign_names_through_the_same_filter(tmp_path):
    state = tiny(1).state_dict()
    torch.save({"state_dict": openmmlab(state)}, tmp_path / "file.pth")
    overlay = {"file": str(tmp_path / "file.pth"), "num_classes": 10}
    model = timm.create_model("replknet_7", pretrained=True, pretrained_cfg_overlay=overlay, **TINY)
    assert_holds(model, state)


@pytest.mark.parametrize("name", ["page.pth", "page.safetensors"])
def test_a_web_page_saved_as_a_checkpoint_is_told(tmp_path, name):
    (tmp_path / name).write_text("<!DOCTYPE html>\nNot found")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_official(timm.create_model("replknet_3", **TINY), tmp_path / name)


def test_keys_that_are_no_names_are_told(tmp_path):
    torch.save({1: torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="save a state_dict"):
        load_official(timm.create_model("replknet_3", **TINY), tmp_path / "x.pth")


def test_the_average_that_torch_saves_loads(tmp_path):
    average = torch.optim.swa_utils.AveragedModel(tiny(1))
    average.update_parameters(tiny(1))
    torch.save(average.state_dict(), tmp_path / "file.pth")
    assert_holds(load_official(tiny(2), tmp_path / "file.pth"), average.module.state_dict())


FORMS = {"as trained": lambda net: net, "merged": reparameterize_model, "deployed": deploy}


@pytest.mark.parametrize("name", ["replknet_7", "mobilenetv2_lk"])
@pytest.mark.parametrize("own", FORMS)
@pytest.mark.parametrize("file", FORMS)
def test_a_form_loads_or_is_named_as_what_it_is(file, own, name, tmp_path):
    options = TINY if name == "replknet_7" else {"width": 0.1, "num_classes": 10}
    right, model = (FORMS[form](timm.create_model(name, **options).eval()) for form in (file, own))
    torch.save({"model_ema": averaged(right.state_dict())}, tmp_path / "file.pth")
    if file == own or (file, own) == ("merged", "as trained"):
        assert_holds(load_official(model, tmp_path / "file.pth"), right.state_dict())
        return
    before = {key: value.clone() for key, value in model.state_dict().items()}
    remedy = "deploy the model first" if file == "deployed" else "into a fresh model"
    with pytest.raises(CheckpointError, match=f"a net that is {file}, but this .* is {own}: .*{remedy}"):
        load_official(model, tmp_path / "file.pth")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("wrap", [lambda state: state, averaged, lambda state: {"net": state}])
def test_timm_loads_a_merged_file(wrap, tmp_path):
    merged = reparameterize_model(tiny(1).eval())
    torch.save(wrap(merged.state_dict()), tmp_path / "file.pth")
    overlay = {"file": str(tmp_path / "file.pth"), "num_classes": 10}
    model = timm.create_model("replknet_7", pretrained=True, pretrained_cfg_overlay=overlay, **TINY).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), merged(x))
    options = {key: value for key, value in TINY.items() if key != "num_classes"}
    features = timm.create_model(
        "replknet_7", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **options
    ).eval()
    assert torch.equal(features(x)[-1], merged.forward_intermediates(x, intermediates_only=True)[-1])


def test_timm_names_a_deployed_file(tmp_path):
    torch.save(deploy(tiny(1)).state_dict(), tmp_path / "file.pth")
    overlay = {"file": str(tmp_path / "file.pth"), "num_classes": 10}
    with pytest.raises(CheckpointError, match=r"deployed, but .* deploy the model first"):
        timm.create_model("replknet_7", pretrained=True, pretrained_cfg_overlay=overlay, **TINY)


@pytest.mark.parametrize("wrap", [lambda conv: prune.l1_unstructured(conv, "weight", 0.5), weight_norm])
def test_computed_weights_are_named(wrap, tmp_path):
    model = tiny(1)
    wrap(model.stem[0].conv)
    torch.save(model.state_dict(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"pruned or parametrized, as stem\.0\.conv\..*: make them plain"):
        load_official(tiny(2), tmp_path / "file.pth")
    assert_holds(load_official(model, tmp_path / "file.pth"), model.state_dict())


def test_what_cannot_be_unpickled_safely_is_named(tmp_path):
    torch.save({"model": tiny(1).state_dict(), "split": re.compile("x")}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"for it also holds re\._compile: save its state_dict alone"):
        load_official(tiny(2), tmp_path / "file.pth")
    torch.save(tiny(1), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"for it also holds .* and \d+ more kinds: save its state_dict alone"):
        load_official(tiny(2), tmp_path / "file.pth")


@pytest.mark.parametrize("container", ["flat", "averaged", "timm's script", "names that nobody knows", "compiled"])
def test_nets_of_timm_load_from_the_same_containers(container, tmp_path):
    right, net = (timm.create_model("test_resnet", num_classes=4) for _ in range(2))
    torch.save(CONTAINERS[container](right.state_dict()), tmp_path / "file.pth")
    load_weights(net, str(tmp_path / "file.pth"))
    assert_holds(net, right.state_dict())
    features = timm.create_model("test_resnet", features_only=True)
    load_backbone(features, tmp_path / "file.pth")
    assert torch.equal(features.state_dict()["conv1.0.weight"], right.conv1[0].weight)


def test_nets_of_timm_name_what_does_not_fit(tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=4).state_dict() | {"x": torch.ones(1)}, tmp_path / "f.pth")
    net = timm.create_model("test_resnet", num_classes=5)
    with pytest.raises(CheckpointError, match=r"ResNet.*unexpected: x; mis-shaped: fc\.weight \(4, .*, fc\.bias"):
        load_weights(net, str(tmp_path / "f.pth"))
    torch.save(net.state_dict() | {"fc.bias": "no tensor"}, tmp_path / "f.pth")
    with pytest.raises(CheckpointError, match=r"missing: fc\.bias"):
        load_weights(net, str(tmp_path / "f.pth"))
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_weights(net, str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match="does not fit this ResNet"):
        load_weights(net, str(tmp_path / "f.npz"))
