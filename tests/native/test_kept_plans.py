"""python -m native plan: what is kept is listed, timed again and, where it was spoilt, replaced."""

import json

import pytest
import torch
from torch import nn

import native
from native import autotune, kept_plans, layer_choice
from native.__main__ import main


@pytest.fixture(autouse=True)
def some_choices(empty_cache, monkeypatch):
    """A folder with choices of three classes, each by the ways at hand, and the times that each takes from now on."""
    fastest = ["first"]

    def measure(ways, *_):
        names = list(ways)
        best = names[0] if fastest[0] == "first" else names[-1]
        return {name: 1e-3 if name == best else 2e-3 for name in names}, fastest[0] != "busy"

    monkeypatch.setattr(autotune, "measure", measure)
    threads = torch.get_num_threads()
    layer = native.DepthwiseConv2d(40, 5)
    x = torch.randn(3, 40, 9, 34, requires_grad=True)
    native.depthwise_conv2d(x, layer.weight, layer.bias, backend="cpu").sum().backward()
    stock = native.accelerate(nn.Conv2d(16, 16, 9, padding=4, groups=16)).model
    layer_choice.operator_wins(stock, torch.randn(2, 16, 9, 9, requires_grad=True), stock.weight, stock.bias)
    yield fastest
    torch.set_num_threads(threads)


def kept():
    (folder,) = kept_plans.folders().values()
    return {choice.shape_class: choice for choice in kept_plans.choices_in(folder).values()}


def test_what_is_kept_is_listed(capsys):
    assert main(["plan"]) == 0
    said = capsys.readouterr().out
    assert f"{torch.get_num_threads()} threads" in said
    for function in ("forward", "grad_input", "grad_weight", "layer dx dw"):
        assert any(line.startswith(f"  {function} torch.float32 nchw n") for line in said.splitlines()), said
    assert "1.000 ms, 1.00× the first" in said


def test_every_class_can_be_computed_again():
    for shape_class in kept():
        assert kept_plans.measured_again(shape_class).shape_class == shape_class


def test_a_check_names_what_would_be_chosen_otherwise_and_changes_nothing(some_choices, capsys):
    before = kept()
    assert main(["plan", "--check"]) == 0
    some_choices[0] = "last"
    assert main(["plan", "--check", "--only", "grad_input"]) == 1
    said = capsys.readouterr().out
    assert said.count("    now ") == 1
    assert kept() == before


def test_what_was_spoilt_is_replaced(some_choices, capsys):
    before = kept()
    some_choices[0] = "last"
    assert main(["plan", "--remeasure"]) == 0
    assert "    replaced by " in capsys.readouterr().out
    after = kept()
    assert after.keys() == before.keys()
    assert all(after[name].choice != before[name].choice for name in before)


def test_a_busy_machine_and_classes_of_other_versions_are_left_alone(some_choices, capsys):
    before = kept()
    some_choices[0] = "busy"
    assert kept_plans.measured_again(next(iter(before))).busy
    assert main(["plan", "--remeasure"]) == 0
    assert capsys.readouterr().out.count("the machine is busy") == len(before)
    assert kept() == before
    (folder,) = kept_plans.folders().values()
    (folder / "old.json").write_text(json.dumps({"class": "of old", "choice": "a", "milliseconds": {"a": 1.0}}))
    (folder / "broken.json").write_text("{")
    assert main(["plan", "--check", "--only", "of old"]) == 0
    assert "another version" in capsys.readouterr().out


def test_what_was_measured_on_a_busy_machine_is_listed_and_measured_again(some_choices, capsys):
    (folder,) = kept_plans.folders().values()
    path, choice = next(iter(kept_plans.choices_in(folder).items()))
    path.write_text(json.dumps({**json.loads(path.read_text()), "busy": True}))
    assert main(["plan"]) == 0
    assert capsys.readouterr().out.count("measured on a busy machine") == 1
    assert main(["plan", "--remeasure"]) == 0
    assert kept()[choice.shape_class] == choice


def test_nothing_kept_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert main(["plan"]) == 0
    assert "nothing is kept" in capsys.readouterr().out


def test_nobody_at_home_is_said(capsys, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(kept_plans.Path, "home", home)
    assert main(["plan"]) == 0
    assert "without a home directory: set XDG_CACHE_HOME" in capsys.readouterr().out
