"""`pretrained=True` by timm's own machinery: from a file, and over HTTP from this machine."""

import functools
import hashlib
import http.server
import re
import shutil
import threading

import pytest
import timm
import torch

from replk_lightning.models import ModelError, create_model
from replk_lightning.models.weights import CheckpointError

TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
WRONG = "tiny-00000000.pth"  # a name that promises another hash
RELEASED = {
    "replknet_31b": ["in1k", "in1k_384", "in22k_ft_in1k", "in22k_ft_in1k_384"],
    "replknet_31l": ["in22k_ft_in1k_384"],
    "replknet_xl": ["meg73m_ft_in1k"],
}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return timm.create_model("replknet_31b", **TINY).eval()


def openmmlab(state):
    """As OpenMMLab names and wraps a classifier's weights."""
    renamed = {}
    for name, tensor in state.items():
        part, rest = name.split(".", 1)
        other = {"head": f"head.fc.{rest}", "norm": f"backbone.stages.3.norm.{rest}"}
        renamed[other.get(part, f"backbone.{name}")] = tensor
    return {"meta": {"mmpretrain_version": "1.0"}, "state_dict": renamed}


@pytest.fixture(scope="module")
def address(net, tmp_path_factory):
    """A file as OpenMMLab has it, on a server of this machine, its name with eight digits of its hash."""
    folder = tmp_path_factory.mktemp("served")
    path = folder / "tiny.pth"
    torch.save(openmmlab(net.state_dict()), path)
    shutil.copy(path, folder / WRONG)
    path = path.rename(folder / f"tiny-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{path.name}"
    server.shutdown()
    server.server_close()


def same(a, b, but=()):
    pairs = [(name, a.state_dict()[name], b.state_dict()[name]) for name in a.state_dict() if not name.startswith(but)]
    return all(torch.equal(ours, theirs) for _, ours, theirs in pairs)


@pytest.mark.parametrize(("name", "tags"), RELEASED.items())
def test_the_releases_nets_are_listed_with_where_they_are_and_how_they_are_evaluated(name, tags):
    assert [full.split(".")[1] for full in timm.list_pretrained(f"{name}.*")] == sorted(tags)
    assert timm.get_pretrained_cfg(name).tag == tags[0]
    for tag in tags:
        cfg = timm.get_pretrained_cfg(f"{name}.{tag}")
        assert cfg.license == "mit"
        assert cfg.url.endswith(".pth")
        assert len(cfg.url.removesuffix(".pth").rpartition("-")[2]) == 8
        assert re.fullmatch(r"https://drive\.google\.com/file/d/[\w-]{33}/view", cfg.origin_url)
        side = 320 if name == "replknet_xl" else 384 if tag.endswith("384") else 224
        assert cfg.input_size == (3, side, side)
        assert (cfg.crop_pct, cfg.crop_mode) == ((1.0, "squash") if side == 384 else (0.875, "center"))
        assert cfg.mean[0] == (0.5 if name == "replknet_xl" else 0.485)
        assert cfg.num_classes == 1000


def test_small_nets_of_table_5_have_no_weights_and_say_so():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for replknet_7"):
        timm.create_model("replknet_7", pretrained=True)


def test_weights_come_over_http_checked_by_their_hash(address, net, tmp_path):
    timm.models.set_pretrained_check_hash(True)
    try:
        made = functools.partial(timm.create_model, "replknet_31b", pretrained=True, **TINY)
        assert same(net, made(pretrained_cfg_overlay={"url": address}, cache_dir=tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == [address.rpartition("/")[2]]
        wrong = f"{address.rpartition('/')[0]}/{WRONG}"
        with pytest.raises(RuntimeError, match="invalid hash value"):
            made(pretrained_cfg_overlay={"url": wrong}, cache_dir=tmp_path)
    finally:
        timm.models.set_pretrained_check_hash(False)


def test_weights_come_from_a_file_and_head_and_stem_are_adapted_as_timm_does(net, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(net.state_dict(), path)
    overlay = {"file": str(path)}
    made = functools.partial(timm.create_model, pretrained=True, pretrained_cfg_overlay=overlay, **TINY)
    assert same(net, made("replknet_31b"))
    ten = made("replknet_31b.in22k_ft_in1k", num_classes=10, in_chans=1)
    assert ten.head.weight.shape == (10, 32)
    assert torch.allclose(ten.stem[0].conv.weight, net.stem[0].conv.weight.sum(1, keepdim=True))
    assert same(net, ten, but=("head.", "stem.0.conv."))
    features = made("replknet_31b", features_only=True)
    assert same(features.model, net)
    headless = made("replknet_31b", num_classes=0)
    assert same(headless, net)


def from_file(path, name="replknet_31b", **options):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **TINY | options)


@pytest.mark.parametrize("num_classes", [1000, 10])
@pytest.mark.parametrize(
    "options",
    [{"small_kernel": 3}, {"dw_ratio": 2.0}, {"kernel_sizes": (13, 13, 13, 13)}, {"depths": (1, 1, 2, 1)}],
    ids=str,
)
def test_a_net_of_other_options_is_refused_however_many_classes(net, tmp_path, options, num_classes):
    """timm alone leaves out what does not fit, without a word, as soon as the classes differ."""
    torch.save(net.state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="build the model with the options of the checkpoint; "):
        from_file(tmp_path / "net.pth", num_classes=num_classes, **options)


def test_xl_may_normalise_maps_that_the_release_does_not(tmp_path):
    right = timm.create_model("replknet_xl", **TINY)
    torch.save(right.state_dict(), tmp_path / "net.pth")
    again = from_file(tmp_path / "net.pth", "replknet_xl", norm_outputs=True)
    assert same(right, again)
    assert torch.equal(again.stages[0].norm.weight, torch.ones(8))


@pytest.mark.parametrize("name", ["replknet_31b", "replknet_31l"])
def test_weights_of_22k_classes_are_a_browsers_and_load_from_its_file(name, tmp_path):
    with pytest.raises(OSError, match=rf"fetch {name}\.in22k: open https://drive\S+ in a browser, .*dict\(file=PATH"):
        create_model(f"{name}.in22k", pretrained=True, **TINY)
    right = timm.create_model(name, num_classes=21841, **TINY)
    state = {key.replace("head.", "head.cls_22k."): value for key, value in right.state_dict().items()}
    torch.save(state, tmp_path / "22k.pth")
    assert same(right, from_file(tmp_path / "22k.pth", f"{name}.in22k"))


def test_what_cannot_be_fetched_is_told(address, tmp_path):
    overlay = {"url": address.replace("tiny-", "none-")}
    with pytest.raises(OSError, match=r"none-\S+ cannot be fetched \(File not found\): open https://drive"):
        timm.create_model("replknet_31b", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path, **TINY)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none"):
        from_file(tmp_path / "none")


@pytest.mark.parametrize("page", ["<!DOCTYPE html>", ""])
def test_a_web_page_in_place_of_weights_is_told(page, tmp_path):
    served, cache = tmp_path / "tiny.pth", tmp_path / "cache"
    served.write_text(page)
    overlay = {"url": served.as_uri()}
    with pytest.raises(
        ModelError, match=r"cannot be read as a checkpoint of tensors: .* deleting its copy in \S+cache"
    ):
        create_model("replknet_31b", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=str(cache), **TINY)
    with pytest.raises(RuntimeError, match="as a checkpoint of tensors: download it again or save"):
        from_file(served)
