"""The frequency domain: the definition in every dtype and layout, in little memory, the same bits always."""

import pytest
import torch

from native import accuracy, aten, fft, gpu_auto, gpu_plans

GEOMETRIES = [  # map, kernel, padding
    ((16, 16), (31, 31), (15, 15)), ((9, 13), (3, 3), (1, 1)), ((20, 30), (4, 9), (0, 7)), ((12, 12), (3, 2), (3, 2)),
    ((5, 6), (9, 11), (8, 9)), ((6, 6), (2, 3), (9, 4)), ((7, 40), (1, 33), (0, 0)),
]  # fmt: skip
FUNCTIONS = ("forward", "grad_input", "grad_weight")


def arguments(function, size, kernel, padding, dtype=torch.float64, channels=3):
    geometry = ((1, 1), padding, (1, 1))
    x, w, b = (torch.randn(s).to(dtype) for s in ((2, channels, *size), (channels, 1, *kernel), (channels,)))
    g = torch.randn(aten.forward(x, w, None, *geometry).shape).to(dtype)
    return {"forward": (x, w, b), "grad_input": (g, w, tuple(x.shape)), "grad_weight": (g, x, kernel)}[
        function
    ] + geometry


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_it_is_the_definition(function, geometry):
    given = arguments(function, *geometry)
    result, exact = getattr(fft, function)(*given), getattr(aten, function)(*given)
    assert torch.equal(getattr(fft, function)(*given), result)
    assert result.shape == exact.shape
    assert accuracy.relative_error(result, exact) < 1e-14


@pytest.mark.parametrize("number", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_of_a_large_kernel_it_errs_no_more_than_twice_torch(function, number):
    given = arguments(function, (33, 34), (31, 31), (15, 15), accuracy.NUMBERS[number])
    result = getattr(fft, function)(*given)
    assert result.dtype == accuracy.NUMBERS[number]
    assert accuracy.on_two_channels(function, result, given, False).holds


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_channel_at_a_time_is_enough_memory(function, monkeypatch):
    given = arguments(function, (12, 10), (7, 5), (3, 2), torch.float32)
    together = getattr(fft, function)(*given)
    sizes, spectrum = [], fft._spectrum
    monkeypatch.setattr(fft, "_spectrum", lambda x, *rest: sizes.append(x.shape[-3]) or spectrum(x, *rest))
    monkeypatch.setattr(fft, "MEMORY", 1)
    assert accuracy.relative_error(getattr(fft, function)(*given), together.double()) < 1e-6  # vectors fill otherwise
    assert sizes == [1] * 6


def test_the_layout_stays():
    x, w, *rest = arguments("forward", (8, 8), (5, 5), (2, 2), torch.float32)
    for layout in (torch.channels_last, torch.contiguous_format):
        assert fft.forward(x.contiguous(memory_format=layout), w, *rest).is_contiguous(memory_format=layout)


def test_periods_hold_the_map_and_one_padding_and_have_small_factors():
    assert fft.period((64, 56), (101, 31), (50, 15)) == (120, 72)
    assert [fft._smooth(n) for n in (1, 11, 13, 97, 4097)] == [1, 12, 14, 98, 4116]


def test_a_batch_that_needs_much_memory_is_not_the_frequency_domains():
    """Choices are shared by batches of 32 and more; what one of them decided must not take another's memory."""
    few, many = (
        gpu_plans.problem((n, 64, 96, 96), torch.float16, (101, 101), (1, 1), (50, 50), (1, 1)) for n in (32, 4096)
    )
    assert [gpu_auto._fft_takes(p) for p in (few, many)] == [True, False]


def test_a_choice_knows_the_layout_that_the_kernel_works_in():
    x = torch.empty(2, 24, 9, 9, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    names = set()
    for channels in (24, 20):  # one class of channels, and eights or not
        p = gpu_plans.problem((2, channels, 9, 9), x.dtype, (5, 5), (1, 1), (2, 2), (1, 1))
        call = gpu_auto._Call("forward", gpu_plans.in_layout("forward", p, True), (x[:, :channels], None, None))
        names.add(call.shape_class)
    assert len(names) == 2
