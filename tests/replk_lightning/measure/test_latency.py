import csv

import pytest
import torch
from process_states import STATES
from torch._dynamo.testing import CompileCounter

from replk_lightning.measure import latency
from replk_lightning.measure.latency import Form, depthwise_share, medians, throughput, training_seconds


def test_nets_are_timed_side_by_side():
    tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "kernel_sizes": (3, 3, 3, 3)}
    rates = throughput({"ours": ("replknet_3", 32, tiny), "baseline": ("resnet10t", 32, {})}, batch_size=1, rounds=1)
    assert set(rates) == {"ours", "baseline"}
    assert all(rate > 0 for rate in rates.values())


def test_depthwise_layers_take_some_of_the_time():
    tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}
    for stock in (False, True):
        for precision in ("fp32", "bf16"):
            share = depthwise_share("replknet_31b", 64, 1, stock=stock, precision=precision, rounds=1, **tiny)
            assert 0 < share < 100


def test_every_net_that_is_compiled_is_compiled_for_its_own_shape(monkeypatch):
    """torch gives up on the ninth that shares code, and takes the second size of a picture for a dynamic one."""
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, **options: compile_(net, backend=counter, **options))
    jobs = {str(side): ("test_resnet", side, {}) for side in range(32, 41)}
    assert all(rate > 0 for rate in throughput(jobs, 1, 1, torch.device("cpu"), compiled=True).values())
    assert counter.frame_count == len(jobs)


@pytest.mark.parametrize("stock", [False, True])
def test_the_share_of_a_compiled_net_is_of_its_own_time(stock, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net, **_: compiled.append(net) or net)
    tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}
    assert depthwise_share("replknet_31b", 64, 1, stock=stock, compiled=True, rounds=1, **tiny) > 0
    assert len(compiled) == 1


def test_steps_take_turns_and_the_first_round_does_not_count():
    calls = []
    steps = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    assert set(medians(steps, 2, torch.device("cpu"))) == {"a", "b"}
    assert calls == ["a", "b"] * 3


def test_a_training_step_is_timed():
    tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}
    form = Form("bf16", "nchw")
    assert training_seconds({"net": ("replknet_3", 64, tiny)}, [form], rounds=1)["net", form] > 0


@pytest.mark.parametrize("state", STATES)
def test_timings_are_of_float32_whatever_the_state_of_the_process(state):
    tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "kernel_sizes": (3, 3, 3, 3)}
    job = {"ours": ("replknet_3", 64, tiny)}
    with STATES[state]():
        assert throughput(job, batch_size=1, rounds=1, device=torch.device("cpu"))["ours"] > 0
        seconds = training_seconds(job, [Form()], rounds=1, device=torch.device("cpu"))
        assert seconds["ours", Form()] > 0


@pytest.mark.parametrize("precision", latency.PRECISIONS)
def test_a_step_computes_in_the_precision_and_layout_it_is_named_after(precision, monkeypatch):
    """Inference casts the net; training leaves it in float32 and computes under autocast."""
    seen = []
    create = latency._create

    def watched(*arguments):
        net = create(*arguments)
        net.stem.conv.register_forward_hook(lambda layer, given, out: seen.append((layer.weight, given[0], out)))
        return net

    monkeypatch.setattr(latency, "_create", watched)
    monkeypatch.setattr(latency, "deploy", lambda net: net)
    jobs, form, device = {"net": ("mobilenetv2_lk", 32, {"width": 0.1})}, Form(precision, "nchw"), torch.device("cpu")
    kind = latency.PRECISIONS[precision]
    latency.inference_seconds(jobs, [form], 2, 1, device)
    weight, images, out = seen[-1]
    assert (weight.dtype, images.dtype, out.dtype) == (kind, kind, kind)
    if precision != "fp16":  # torch's batch norm knows no halves on CPUs
        training_seconds(jobs, [form], 2, 1, device)
        weight, images, out = seen[-1]
        assert (weight.dtype, images.dtype, out.dtype) == (torch.float32, torch.float32, kind)


def test_the_command_writes_each_row_as_it_is_measured(monkeypatch, tmp_path, capsys):
    tiny = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "kernel_sizes": (3, 3, 3, 3)}
    create = latency.timm.create_model
    monkeypatch.setattr(latency.timm, "create_model", lambda name, **_: create("replknet_3", **tiny))
    monkeypatch.setattr(latency, "BASELINES", {"ours": "replknet_3", "Swin": "swin"})
    path = tmp_path / "new" / "nets.csv"
    flags = ["--sides", "64", "32", "--precision", "fp32", "bf16", "--batch-size", "1", "--rounds", "1"]
    assert latency.main([*flags, "--csv", str(path)]) == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["net"], row["pass"], row["side"], row["precision"]) for row in rows] == [
        *((n, "inference", side, p) for p in ("fp32", "bf16") for side in ("64", "32") for n in ("ours", "Swin")),
        *((n, "training", "64", p) for p in ("fp32", "bf16") for n in latency.TRAINED),
    ]
    assert all(float(row["ms"]) > 0 and row["layout"] == "channels_last" for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    before = path.read_text()
    assert latency.main([*flags, "--csv", str(path)]) == 0
    assert (capsys.readouterr().out, path.read_text()) == ("", before)
