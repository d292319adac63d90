"""Nets in folders and on the hub: what is saved comes back bit by bit, with every constructor argument."""

import json
import types
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from torch import nn

import replk_lightning
from replk_lightning.data import create_data
from replk_lightning.hub import HubError, from_pretrained, push_to_hub, save_pretrained
from replk_lightning.models.weights import CheckpointError, trunk_of

TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
NETS = {
    "kernels of one's own": ("replknet_3", {**TINY, "kernel_sizes": (9, (5, 7), 3, 3), "small_kernel": 3}),
    "without branches": ("replknet_xl", {**TINY, "num_classes": 7}),
    "MobileNetV2": (
        "mobilenetv2_lk",
        {"width": 0.1, "kernel_size": 13, "small_kernel": 3, "shortcut": False, "strides": (1, 2, 2, 1, 1, 1, 1)},
    ),
    "grey pictures": ("mobilenetv2_lk", {"width": 0.1, "dilation": 2, "in_chans": 1, "num_features": 64}),
    "timm's": ("test_convnext", {"kernel_sizes": 5}),
    "timm's ResNet": ("test_resnet", {"num_classes": 3}),
}


def net_called(name):
    torch.manual_seed(0)
    net = timm.create_model(NETS[name][0], **NETS[name][1])
    for buffer in net.buffers():
        buffer.copy_(torch.rand_like(buffer, dtype=torch.float32))  # else means are 0 and nobody would miss them
    return net.eval()


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", NETS)
def test_a_folder_gives_the_same_net(tmp_path, name):
    net = net_called(name)
    folder = save_pretrained(net, tmp_path / "net")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for again in (from_pretrained(folder), timm.create_model(f"local-dir:{folder}", pretrained=True)):
        assert same(net, again)
        x = torch.randn(2, NETS[name][1].get("in_chans", 3), 64, 64)
        assert torch.equal(again.eval()(x), net(x))
    for argument, value in NETS[name][1].items():
        assert config(folder)["model_args"][argument] == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.to(memory_format=torch.channels_last),
        lambda net: net.half(),
        lambda net: timm.utils.reparameterize_model(net),
        nn.DataParallel,
        torch.compile,
        timm.utils.ModelEmaV3,
        torch.optim.swa_utils.AveragedModel,
    ],
    ids=["channels_last", "halves", "merged", "in parallel", "compiled", "timm's average", "torch's average"],
)
def test_what_was_done_to_a_net_is_no_obstacle(tmp_path, change):
    net = change(net_called("kernels of one's own"))
    again = from_pretrained(save_pretrained(net, tmp_path))
    plain = trunk_of(net)
    assert again.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.to(again.state_dict()[name].dtype))


def test_a_new_head_is_saved_and_another_one_is_new(tmp_path):
    net = net_called("MobileNetV2")
    net.reset_classifier(5)
    assert same(net, from_pretrained(save_pretrained(net, tmp_path)))
    other = from_pretrained(tmp_path, num_classes=3, in_chans=1)
    assert other.head.weight.shape[0] == 3
    stem = net.stem.conv.weight.sum(1, keepdim=True)  # timm's way to grey pictures
    assert torch.equal(other.stem.conv.weight, stem)
    assert torch.equal(other.state_dict()["stem.bn.running_mean"], net.state_dict()["stem.bn.running_mean"])


def test_saving_draws_no_random_numbers(tmp_path):
    net = net_called("MobileNetV2")
    before = torch.get_rng_state()
    save_pretrained(net, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_weights_are_saved_as_what_they_are(tmp_path):
    net = net_called("timm's ResNet")
    net.bn1.bias = nn.Parameter(net.bn1.weight.detach())  # one memory, two names
    assert same(net, from_pretrained(save_pretrained(net, tmp_path)))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lambda: replk_lightning.deploy(net_called("MobileNetV2")), "is deployed.*save it before it is deployed"),
        (lambda: replk_lightning.models.replknet.RepLKNet((3, 3), (1, 1), (8, 8)), "build it by timm.create_model"),
        (lambda: nn.Linear(2, 2), "this Linear was built is not known"),
    ],
)
def test_what_cannot_come_back_whole_is_refused(tmp_path, net, words):
    with pytest.raises(HubError, match=words):
        save_pretrained(net(), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_layer_that_no_argument_gives_is_refused(tmp_path):
    net = net_called("MobileNetV2")
    net.head = nn.Sequential(nn.Linear(net.num_features, 4), nn.ReLU())
    with pytest.raises(HubError, match="is not what its constructor's arguments give"):
        save_pretrained(net, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda net: setattr(net.stages[0].blocks[0], "lk_nonlinear", nn.SiLU()),
            r"lk_nonlinear is SiLU\(\), not ReLU",
        ),
        (lambda net: setattr(net.norm, "eps", 0.1), r"norm is BatchNorm2d\(32, eps=0.1"),
        (lambda net: setattr(net, "head", nn.Linear(32, 7)), "size mismatch for head.weight.*reset_classifier"),
    ],
    ids=["activation", "number", "head"],
)
def test_what_the_weights_do_not_show_is_refused_too(tmp_path, change, words):
    net = net_called("kernels of one's own")
    change(net)
    with pytest.raises(HubError, match=words) as refused:
        save_pretrained(net, tmp_path)
    assert "\n" not in str(refused.value)


def test_what_training_alone_sees_may_have_changed(tmp_path):
    net = net_called("kernels of one's own")
    net.head_drop = nn.Dropout(0.5)
    assert same(net, from_pretrained(save_pretrained(net, tmp_path)))


def test_arguments_that_json_does_not_hold_are_refused_in_a_sentence(tmp_path):
    net = timm.create_model("test_convnext", act_layer=nn.SiLU)
    with pytest.raises(HubError, match="test_convnext cannot be saved: "):
        save_pretrained(net, tmp_path)


def test_a_setting_of_pictures_that_timm_does_not_know_is_named(tmp_path):
    with pytest.raises(HubError, match="data_config has no 'meen'"):
        save_pretrained(net_called("MobileNetV2"), tmp_path, data_config={"meen": 0.5})


DAMAGES = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"holds no model\.safetensors"),
    "cut off": (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "cannot be read .*damaged"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read .*damaged"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "cannot be read .*damaged"),
    "transformers'": (lambda folder: (folder / "config.json").write_text('{"model_type": "resnet"}'), "not saved by"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_told_in_a_sentence(tmp_path, damage):
    save_pretrained(net_called("MobileNetV2"), tmp_path)
    spoil, words = DAMAGES[damage]
    spoil(tmp_path)
    with pytest.raises(HubError, match=words) as refused:
        from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)


def test_an_option_that_there_is_not_is_named(tmp_path):
    save_pretrained(net_called("MobileNetV2"), tmp_path)
    with pytest.raises(HubError, match=r"unexpected keyword argument 'banana'.*or has no such option"):
        from_pretrained(tmp_path, banana=1)


def test_timms_words_before_a_name_are_taken(tmp_path, monkeypatch):
    net = net_called("MobileNetV2")
    save_pretrained(net, tmp_path)
    assert same(net, from_pretrained(f"local-dir:{tmp_path}"))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / filename))
    assert same(net, from_pretrained("hf-hub:me/net"))


def test_folders_that_hold_no_net_are_named(tmp_path):
    with pytest.raises(HubError, match=r"holds no config\.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "nobodys", "pretrained_cfg": {}}))
    with pytest.raises(HubError, match="import the package that has it"):
        from_pretrained(tmp_path)


def test_a_net_that_the_hub_does_not_give_is_told(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for wrong in ("nothing-of-the-kind", tmp_path / "none", "./none", tmp_path / "file", ""):
        with pytest.raises(HubError, match="neither a folder nor a name on the hub: write OWNER/NAME"):
            from_pretrained(wrong)

    def unplugged(*_, **__):
        raise OSError("no route to the hub\nand much more")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", unplugged)
    with pytest.raises(HubError, match=r"me/net cannot be fetched \(no route to the hub\): look at"):
        from_pretrained("me/net")


def test_other_options_than_the_saved_ones_are_refused(tmp_path):
    save_pretrained(net_called("kernels of one's own"), tmp_path)
    with pytest.raises(CheckpointError, match="build the model with the options of the checkpoint"):
        from_pretrained(tmp_path, dw_ratio=2.0, num_classes=3)


def record(seed, top1, **changes):
    return {
        "ablation": "guideline3", "row": "k9", "seed": seed, "scale": "small", "data": "scenes-solid", "kind": "train",
        "data_fingerprint": "0a62", "commit": "abc", "hardware": "a CPU", "status": "done", "model": "mobilenetv2_lk",
        "recipe": {"name": "mobilenetv2_100ep", "resolution": 56, "interpolation": "bicubic", "mean": [0.5] * 3,
                   "std": [0.25] * 3},
        "options": {"width": 0.1}, "metrics": {"top1": top1, "loss": 0.1},
    } | changes  # fmt: skip


def written(folder, records):
    paths = [folder / f"{number}.json" for number in range(len(records))]
    for path, content in zip(paths, records, strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_the_card_says_what_the_records_say(tmp_path):
    records = written(tmp_path, [record(1, 98.0), record(0, 99.0), record(2, 97.0)])
    folder = save_pretrained(net_called("MobileNetV2"), tmp_path / "net", records=records, licence="apache-2.0")
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "timm"
    assert "| top1 | 98.00 | 95.52 to 100.48 | 3 |" in card.text  # 4.303 of Student's, 1 / √3
    assert "python -m ablations.run guideline3 --scale small --rows k9 --seeds 0 1 2" in card.text
    assert "`scenes-solid` (fingerprint 0a62)" in card.text
    assert "kernel_size=13" in card.text


def test_one_seed_has_no_interval_and_no_record_is_said(tmp_path):
    net = net_called("MobileNetV2")
    (path,) = written(tmp_path, [record(0, 99.0)])
    text = (save_pretrained(net, tmp_path, records=path) / "README.md").read_text()
    assert "| top1 | 99.00 | — | 1 |" in text
    assert "Nothing is recorded of its training." in (save_pretrained(net, tmp_path) / "README.md").read_text()


def test_a_record_may_name_the_side_of_square_pictures(tmp_path):
    options = {"img_size": 64, "dims": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    net = timm.create_model("replknet_3", **options)
    (path,) = written(tmp_path, [record(0, 99.0, model="replknet_3", options=options)])
    assert same(net, from_pretrained(save_pretrained(net, tmp_path, records=path)))


def preparation(folder):
    settings = from_pretrained(folder).pretrained_cfg
    return {key: settings[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")}


def test_pictures_are_prepared_as_the_run_prepared_them(tmp_path):
    """A net that saw scenes of 56² would be judged on crops of 224² otherwise."""
    net = net_called("MobileNetV2")
    folder = save_pretrained(net, tmp_path, records=written(tmp_path, [record(0, 98.0)]))
    scenes = create_data("scenes-solid")
    assert preparation(folder) == {
        "input_size": (3, 56, 56), "mean": [scenes.mean] * 3, "std": [scenes.std] * 3,
        "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center",
    }  # fmt: skip
    folder = save_pretrained(net, tmp_path, records=written(tmp_path, [record(0, 98.0, data="imagenet-1k")]))
    assert preparation(folder) == {
        "input_size": (3, 56, 56), "mean": [0.5] * 3, "std": [0.25] * 3,
        "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([record(0, 1.0), record(1, 1.0, row="k3")], "one row, scale and set"),
        ([record(0, 1.0, model="replknet_3")], "another net, whose name, replknet_3, differs"),
        ([record(0, 1.0, options={"width": 0.25})], "another net, whose width differs"),
        ([record(0, 1.0, status="failed")], "no record of a finished run"),
        ([record(0, 1.0, kind="transfer")], "the record of a transfer"),
        ([{"top1": 1.0}], "no record of a finished run"),
        ([[]], "no record of a finished run"),
    ],
)
def test_records_of_something_else_are_refused_and_nothing_is_written(tmp_path, records, words):
    with pytest.raises(HubError, match=words):
        save_pretrained(net_called("MobileNetV2"), tmp_path / "net", records=written(tmp_path, records))
    assert not (tmp_path / "net").exists()


def test_a_record_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(HubError, match=r"none\.json cannot be read as a record"):
        save_pretrained(net_called("MobileNetV2"), tmp_path, records=[tmp_path / "none.json"])


@pytest.mark.parametrize("has_card", [False, True])
def test_pushing_uploads_the_folder_and_keeps_a_card(monkeypatch, has_card):
    calls, found = [], []

    def create_repo(self, repo_id, **options):
        calls.append((repo_id, options))
        return types.SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, repo_id, folder_path, **options):
        calls.append((repo_id, options))
        found.append((sorted(path.name for path in Path(folder_path).iterdir()), from_pretrained(folder_path)))
        return types.SimpleNamespace(commit_url="the address")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(HfApi, "file_exists", lambda self, repo_id, name, revision: has_card)
    net = net_called("MobileNetV2")
    assert push_to_hub(net, "net", private=True, revision="dev") == "the address"
    assert calls == [
        ("net", {"private": True, "exist_ok": True}),
        ("me/net", {"revision": "dev", "commit_message": "Add model", "ignore_patterns": ["README.md"] * has_card}),
    ]
    ((names, again),) = found
    assert names == ["README.md", "config.json", "model.safetensors"]
    assert same(net, again)


def test_a_push_that_the_hub_does_not_take_is_told(monkeypatch):
    def unplugged(*_, **__):
        raise ConnectionError("no route to the hub\nand much more")

    monkeypatch.setattr(HfApi, "create_repo", unplugged)
    with pytest.raises(HubError, match=r"me/net cannot be pushed \(no route to the hub\): look at its name"):
        push_to_hub(net_called("MobileNetV2"), "me/net")
