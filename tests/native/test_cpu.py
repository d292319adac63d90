"""Every way of the CPU plan against the definition, the cropping against brute force, and the choice on disk."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from native import aten, autotune, cache, cpu, reference

pytestmark = pytest.mark.usefixtures("empty_cache")
GEOMETRIES = {  # (N, C, H, W), kernel, stride, padding, dilation
    "same": ((2, 16, 9, 9), (5, 5), (1, 1), (2, 2), (1, 1)),
    "large kernel": ((2, 20, 28, 28), (31, 31), (1, 1), (15, 15), (1, 1)),
    "kernel beyond the map": ((3, 16, 7, 7), (31, 31), (1, 1), (15, 15), (1, 1)),
    "even kernel": ((1, 8, 6, 11), (4, 6), (1, 1), (2, 3), (1, 1)),
    "stride 2": ((2, 16, 13, 12), (7, 7), (2, 2), (3, 3), (1, 1)),
    "stride 3 and 4, unread rest": ((1, 4, 12, 15), (3, 4), (3, 4), (0, 1), (1, 1)),
    "dilation": ((2, 8, 14, 9), (5, 3), (1, 1), (4, 2), (2, 2)),
    "stride and dilation": ((2, 3, 15, 10), (3, 5), (2, 1), (3, 4), (3, 2)),
    "large map, stride and dilation": ((1, 2, 40, 41), (4, 3), (2, 1), (3, 2), (2, 3)),
    "padding beyond the kernel": ((1, 2, 4, 5), (3, 3), (1, 1), (4, 5), (1, 1)),
    "one pixel": ((2, 3, 1, 1), (5, 5), (1, 1), (2, 2), (1, 1)),
    "one channel": ((3, 1, 8, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    "a row": ((2, 8, 1, 40), (1, 31), (1, 1), (0, 15), (1, 1)),
}


def problem(shape, kernel, stride, padding, dilation, dtype=torch.float32, memory_format=torch.channels_last):
    """x, weight, the output's gradient, and the three results in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    weight = torch.randn(shape[1], 1, *kernel, dtype=torch.float64, generator=generator)
    geometry = (stride, padding, dilation)
    y = reference.forward(x, weight, None, *geometry)
    grad = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    exact = {
        "forward": y,
        "grad_input": reference.grad_input(grad, weight, shape, *geometry),
        "grad_weight": reference.grad_weight(grad, x, kernel, *geometry),
    }
    x, grad = (t.to(dtype=dtype, memory_format=memory_format) for t in (x, grad))
    return x, weight.to(dtype), grad, exact


def error(result, exact):
    return ((result.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def arguments(function, x, weight, grad):
    return {
        "forward": (x, weight, None),
        "grad_input": (grad, weight, tuple(x.shape)),
        "grad_weight": (grad, x, tuple(weight.shape[2:])),
    }[function]


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("function", ["forward", "grad_input", "grad_weight"])
def test_every_way_is_the_definition(function, name):
    shape, kernel, *geometry = GEOMETRIES[name]
    x, weight, grad, exact = problem(shape, kernel, *geometry)
    ways = cpu._ways(function, x.dtype, shape[1], shape[2:], kernel, *geometry)
    for way, call in ways.items():
        result = call(*arguments(function, x, weight, grad), *geometry)
        assert result.shape == exact[function].shape, way
        assert error(result, exact[function]) < 2e-6, way


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_plan_is_the_definition(name, memory_format):
    shape, kernel, *geometry = GEOMETRIES[name]
    x, weight, grad, exact = problem(shape, kernel, *geometry, memory_format=memory_format)
    for function in ("forward", "grad_input", "grad_weight"):
        result = getattr(cpu, function)(*arguments(function, x, weight, grad), *geometry)
        assert result.shape == exact[function].shape
        assert error(result, exact[function]) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_err_no_more_than_twice_torchs_own(dtype):
    shape, kernel, *geometry = GEOMETRIES["large kernel"]
    x, weight, grad, exact = problem(shape, kernel, *geometry, dtype=dtype)
    for function in ("forward", "grad_input", "grad_weight"):
        call = arguments(function, x, weight, grad)
        ours = getattr(cpu, function)(*call, *geometry)
        torchs = getattr(aten, function)(*call, *geometry)
        assert ours.dtype == dtype
        assert error(ours, exact[function]) <= 2 * error(torchs, exact[function]) + 1e-14


def test_the_weight_gradient_of_a_large_map_errs_no_more_than_twice_torchs_own():
    shape, kernel, *geometry = (2, 16, 64, 64), (5, 5), (1, 1), (2, 2), (1, 1)
    x, _, grad, exact = problem(shape, kernel, *geometry, memory_format=torch.contiguous_format)
    torchs = error(aten.grad_weight(grad, x, kernel, *geometry), exact["grad_weight"])
    ways = cpu._ways("grad_weight", x.dtype, shape[1], shape[2:], kernel, *geometry)
    for way in ways.keys() - {"channels_last"}:
        # in one sum, not in pieces: three times torch's by groups with AVX2, six times generated
        assert error(ways[way](grad, x, kernel, *geometry), exact["grad_weight"]) <= 2 * torchs + 2**-24, way


@pytest.mark.parametrize(
    ("memory_format", "other"), [(torch.contiguous_format, "channels_last"), (torch.channels_last, "nchw")]
)
def test_of_torchs_weight_gradients_the_plan_takes_the_layouts_own(memory_format, other, monkeypatch):
    shape, kernel, *geometry = GEOMETRIES["large kernel"]
    x, _, grad, _ = problem(shape, kernel, *geometry, memory_format=memory_format)
    offered = []
    monkeypatch.setattr(autotune, "choose", lambda _, ways, *rest: offered.extend(ways) or offered[0])
    cpu.grad_weight(grad, x, kernel, *geometry)
    assert {"channels_last", "nchw"} - set(offered) == {other}


def test_no_way_has_onednn_generate_16_bit_code_for_minutes():
    geometry = ((31, 31), (1, 1), (15, 15), (1, 1))
    few, many = (cpu._ways("forward", torch.bfloat16, channels, (56, 56), *geometry) for channels in (16, 32))
    assert "channels_last" not in few
    assert "channels_last" in many
    x, weight = torch.zeros(4, 64, 8, 8), torch.zeros(64, 1, 31, 31)
    assert cpu._part("forward", (x, weight, None))[0].shape[1] > 16  # what is tried first is of the many


def test_the_bias_is_added_once_by_every_way():
    shape, kernel, *geometry = GEOMETRIES["large kernel"]
    x, weight, _, exact = problem(shape, kernel, *geometry)
    bias = torch.arange(shape[1], dtype=torch.float32)
    for way, call in cpu._ways("forward", x.dtype, shape[1], shape[2:], kernel, *geometry).items():
        assert error(call(x, weight, bias, *geometry), exact["forward"] + bias[:, None, None]) < 2e-6, way


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 4), st.integers(0, 12), st.integers(1, 4))
def test_idle_taps_touch_nothing_and_the_output_keeps_its_size(size, taps, stride, padding, dilation):
    outputs = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    if outputs < 1:
        return
    idle = cpu.idle_taps(size, taps, stride, padding, dilation)
    pixels = {
        u: [reference.seen(i, u, stride, padding, dilation) in range(size) for i in range(outputs)] for u in range(taps)
    }
    cropped = [*range(idle), *range(taps - idle, taps)]
    assert not any(any(pixels[u]) for u in cropped)
    left, pad = taps - 2 * idle, padding - idle * dilation
    assert pad >= 0
    assert (size + 2 * pad - dilation * (left - 1) - 1) // stride + 1 == outputs


def test_a_kernel_beyond_the_map_is_cropped_to_what_can_touch_it():
    assert cpu.idle_taps(7, 31, 1, 15, 1) == 9  # 31 − 18 = 13 = 2 · 7 − 1
    assert cpu.idle_taps(16, 31, 1, 15, 1) == 0


# --- the choice ------------------------------------------------------------------------------------------------------


def slow_and_quick():
    """Two ways to the same tensor: the first spins 100 times longer."""

    def way(spins):
        def call(x):
            for _ in range(spins):
                x.sum()
            return x

        return call

    return {"slow": way(300), "quick": way(3)}


def pick(shape_class="a class"):
    autotune.forget()
    x = torch.ones(100)
    return autotune.choose(shape_class, slow_and_quick(), "slow", (x,), (x,))


def kept_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_faster_way_is_chosen_and_kept(empty_cache):
    assert pick() == "quick"
    (path,) = kept_files(empty_cache)
    entry = json.loads(path.read_text())
    assert entry["choice"] == "quick"
    assert entry["class"] == "a class"


def test_a_choice_on_disk_stands_however_it_would_be_measured_now(empty_cache):
    pick()
    (path,) = kept_files(empty_cache)
    path.write_text(json.dumps({**json.loads(path.read_text()), "choice": "slow"}))
    assert pick() == "slow"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"choice": "quick"}', '{"class": "a class", "choice": "gone"}', "\0"])
def test_a_broken_file_is_measured_anew_and_replaced(empty_cache, text):
    pick()
    (path,) = kept_files(empty_cache)
    path.write_text(text)
    assert pick() == "quick"
    assert json.loads(path.read_text())["choice"] == "quick"


def test_a_deleted_folder_is_harmless(empty_cache):
    pick()
    (path,) = kept_files(empty_cache)
    path.unlink()
    path.parent.rmdir()
    assert pick() == "quick"
    assert kept_files(empty_cache) == [path]


def test_of_two_processes_that_measure_at_once_the_first_writer_decides(empty_cache):
    pick()
    (path,) = kept_files(empty_cache)
    first = json.dumps({**json.loads(path.read_text()), "choice": "slow"})
    path.write_text(first)
    choice = autotune.remember(path.parent, "a class", "quick", {"slow": 2.0, "quick": 1.0}, slow_and_quick())
    assert choice == "slow"
    assert kept_files(empty_cache) == [path]
    assert path.read_text() == first


def test_where_nothing_can_be_written_the_fixed_rule_holds(empty_cache, monkeypatch):
    blocked = empty_cache / "file"
    blocked.write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    autotune.forget()
    assert pick() == "slow"


def test_measuring_can_be_switched_off(empty_cache, monkeypatch):
    monkeypatch.setenv("REPLK_CPU_PLAN", "fixed")
    assert pick() == "slow"
    assert kept_files(empty_cache) == []


def test_measuring_leaves_the_random_state_and_its_arguments_alone():
    shape, kernel, *geometry = GEOMETRIES["large kernel"]
    x, weight, grad, _ = problem(shape, kernel, *geometry)
    copies = [t.clone() for t in (x, weight, grad)]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    cpu.forward(x, weight, None, *geometry)
    cpu.grad_input(grad, weight, shape, *geometry)
    cpu.grad_weight(grad, x, kernel, *geometry)
    assert torch.equal(torch.get_rng_state(), before)
    for tensor, copy in zip((x, weight, grad), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_a_second_process_computes_the_same_bits(monkeypatch):
    shape, kernel, *geometry = GEOMETRIES["large kernel"]
    x, _, grad, _ = problem(shape, kernel, *geometry)
    first = cpu.grad_weight(grad, x, kernel, *geometry)
    autotune.forget()
    monkeypatch.setattr(autotune, "measure", lambda *_: pytest.fail("measured again"))
    assert torch.equal(cpu.grad_weight(grad, x, kernel, *geometry), first)


def test_a_way_is_fast_enough_to_be_chosen_only_if_it_beats_stock_beyond_noise():
    assert autotune.fastest({"stock": 1.0, "other": 0.97}) == "stock"
    assert autotune.fastest({"stock": 1.0, "other": 0.90}) == "other"


def test_the_processor_has_a_name():
    assert autotune.cpu_name().strip()
    assert os.sep not in cache.slug(autotune.cpu_name())
