"""The generated code against the definition: every tile shape, every edge that overlaps, any number of threads."""

import pytest
import torch

from native import reference

pytest.importorskip("llvmlite", reason="llvmlite has no wheel for this platform")
from native import cpu_codegen, cpu_ir

GEOMETRIES = {  # (N, C, H, W), kernel, padding
    "same": ((4, 32, 14, 14), (5, 5), (2, 2)),
    "nothing divides": ((3, 37, 13, 11), (7, 5), (3, 2)),
    "kernel beyond the map": ((2, 16, 5, 6), (13, 13), (6, 6)),
    "even, rectangular": ((1, 17, 9, 20), (4, 6), (1, 3)),
    "no padding": ((2, 16, 12, 9), (3, 3), (0, 0)),
    "a tall strip": ((2, 16, 30, 5), (21, 3), (10, 1)),
    "one pixel": ((5, 16, 1, 1), (3, 3), (1, 1)),
    "one tap": ((2, 16, 6, 6), (1, 1), (0, 0)),
}


def problem(shape, kernel, padding):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    weight = torch.randn(shape[1], 1, *kernel, dtype=torch.float64, generator=generator)
    bias = torch.randn(shape[1], dtype=torch.float64, generator=generator)
    y = reference.forward(x, weight, bias, (1, 1), padding, (1, 1))
    return x, weight, bias, y, torch.randn(y.shape, dtype=torch.float64, generator=generator)


def compare(result, exact):
    assert result.shape == exact.shape
    assert ((result.double() - exact).norm() / exact.norm()).item() < 1e-6


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_three_functions_are_the_definition(name):
    shape, kernel, padding = GEOMETRIES[name]
    x, weight, bias, y, grad = problem(shape, kernel, padding)
    geometry = ((1, 1), padding, (1, 1))
    compare(cpu_codegen.forward(x.float(), weight.float(), bias.float(), *geometry), y)
    gx = cpu_codegen.grad_input(grad.float(), weight.float(), shape, *geometry)
    compare(gx, reference.grad_input(grad, weight, shape, *geometry))
    gw = cpu_codegen.grad_weight(grad.float(), x.float(), kernel, *geometry)
    compare(gw, reference.grad_weight(grad, x, kernel, *geometry))


def test_a_nan_reaches_at_most_19_columns_further_than_the_filter():
    for r, s in ((0, 0), (4, 21), (8, 59)):
        x, weight = torch.ones(2, 16, 9, 60), torch.ones(16, 1, 5, 7)
        x[1, 3, r, s] = torch.nan
        y = cpu_codegen.forward(x, weight, None, (1, 1), (2, 3), (1, 1))
        sees = torch.zeros_like(y, dtype=torch.bool)  # the outputs whose filter lies over the pixel
        sees[1, 3, max(0, r - 2) : r + 3, max(0, s - 3) : s + 4] = True
        assert y[sees].isnan().all()
        sees[1, 3, max(0, r - 2) : r + 3, max(0, s - 22) : s + 23] = True
        assert y[~sees].isfinite().all()


@pytest.mark.parametrize(("m", "t"), [(1, 1), (1, 13), (2, 7), (3, 5), (4, 4)])
def test_every_tile_gives_the_same(m, t, monkeypatch):
    shape, kernel, padding = (5, 20, 17, 16), (15, 14), (7, 6)
    x, weight, bias, y, grad = problem(shape, kernel, padding)
    monkeypatch.setattr(cpu_codegen, "_forward_tile", lambda *_: (m, t))
    monkeypatch.setattr(cpu_codegen, "_grad_weight_tile", lambda *_: (m, t))
    geometry = ((1, 1), padding, (1, 1))
    compare(cpu_codegen.forward(x.float(), weight.float(), bias.float(), *geometry), y)
    gw = cpu_codegen.grad_weight(grad.float(), x.float(), kernel, *geometry)
    compare(gw, reference.grad_weight(grad, x, kernel, *geometry))


def test_the_bits_do_not_depend_on_the_threads():
    shape, kernel, padding = GEOMETRIES["nothing divides"]
    x, weight, _, _, grad = (tensor.float() for tensor in problem(shape, kernel, padding))
    geometry, before = ((1, 1), padding, (1, 1)), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                (cpu_codegen.forward(x, weight, None, *geometry), cpu_codegen.grad_weight(grad, x, kernel, *geometry))
            )
    finally:
        torch.set_num_threads(before)
    for y, gw in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(gw, results[0][1])


@pytest.mark.parametrize(("features", "lanes"), [({"avx2": True, "fma": True}, 8), ({}, 4)])
def test_narrower_vectors_compute_the_same(features, lanes, monkeypatch):
    caches = (cpu_ir.lanes, cpu_codegen._tile_shapes, cpu_codegen._forward_code, cpu_codegen._grad_weight_code)
    caches += (cpu_codegen._forward_tile, cpu_codegen._grad_weight_tile)
    monkeypatch.setattr(cpu_ir, "features", lambda: features)
    for cache in caches:
        cache.cache_clear()
    try:
        assert cpu_ir.lanes() == lanes
        test_the_three_functions_are_the_definition("nothing divides")
    finally:
        for cache in caches:
            cache.cache_clear()


def test_tiles_fit_the_registers_and_the_map():
    for m, t in cpu_codegen._tile_shapes():
        assert m * t + m + 1 <= 32
    m, t = cpu_codegen._forward_tile(3, 5, (5, 5), 3, 1)
    assert m <= 3
    assert t <= 5
