"""Depthwise convolutions for CPUs, generated at run time as LLVM IR (llvmlite): the CPU's counterpart of NVRTC.

One tile does all three functions. With vectors of V channels (16 floats of AVX-512, 8 of AVX2, 4 of NEON) it keeps
M × T sums in registers and adds, over rows r and columns s,

    A[m, t] += X[m, r, s] · F[r, s − t]

- forward:     m is one of M images, t an output column, r a kernel row, and F[r, ·] that row of the filter;
- grad_input:  the forward of the gradient with the filter turned by 180°;
- grad_weight: m is one of M kernel rows, t a tap, r an output row, and F[r, ·] that row of the gradient.

A value of X serves T sums and a value of F serves M: a step loads M + T vectors for M · T multiply-adds. Columns and
rows outside the map are never visited; where a tile reaches past the end of F's row, the row goes on with zeros.
Channels, images and columns that do not divide by V, M and T: the last tile overlaps its neighbour and computes the
same values again. Sums run in a fixed order, whatever the number of threads.

Limits: float32, stride and dilation 1, at least V channels; x86-64 with FMA or 64-bit ARM.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from llvmlite import ir
from torch import Tensor

from native import cpu_ir
from native.cpu_ir import GEOMETRY, I64, Code, Integer, lanes
from native.cpu_threads import in_parallel
from native.geometry import Pair

Numbers = dict[str, int]
Rows = tuple[ir.Value, Integer]  # the first row's address and the floats from row to row

PIECE = 256  # products that one sum of a weight gradient holds, where a row is no longer
PLANES = 1 << 19  # bytes of images worked on at once: half of the second cache of most processors


# --- the tile --------------------------------------------------------------------------------------------------------


@functools.cache
def _tile_shapes() -> list[Pair]:
    """(M, T) whose sums, M values of X and one of F fit the vector registers."""
    registers = cpu_ir.registers()
    return [(m, t) for m in range(1, 5) for t in range(1, registers) if m * t + m + 1 <= registers]


def _cycles(m: int, t: int, units: int, columns: int, width: int, band: int, pad: int) -> float:
    """Cycles, about, for all tiles of a row: a model that picks within some 6 % of the fastest tile.

    A step takes two multiply-adds or two loads a cycle, but five cycles at least (a sum waits for its last addition),
    and one for the loop. Above 20 sums the compiler spills.
    """
    if m * t > 20:
        return float("inf")
    total = 0.0
    for j in range(0, columns, t):
        visited = min(width, j + t - 1 - pad + band) - max(0, j - pad)
        total += max(0, visited) * (max(m * t, m + t, 10) / 2 + 1) + m * t
    return total * -(-units // m)


# --- code generation -------------------------------------------------------------------------------------------------


def _gather_unit(code: Code, m: int, t: int, n: ir.Value, c: ir.Value, plane: ir.Value, f_row: ir.Value) -> None:
    """Copy channels c … of the filter to `rows` and of m images from n on to `planes`; with their lengths in floats."""
    x, filters, *_, planes, rows = code.pointers
    g = code.given
    with code.loop(I64(0), g["taps_high"]) as u:
        source = code.pointer(filters, g["first_tap"], code.mul(u, g["taps_wide"], g["tap_step"]), c)
        target = code.pointer(rows, code.mul(u, f_row), (t - 1) * lanes())
        code.gather(source, target, g["taps_wide"], g["tap_step"])
    pixels = code.mul(g["height"], g["width"])
    for i in range(m):
        source = code.pointer(x, code.mul(code.add(n, i), pixels, g["channels"]), c)
        code.gather(source, code.pointer(planes, code.mul(plane, i)), pixels, g["channels"])


@functools.cache
def _forward_code(m: int, t: int) -> Callable[..., None]:
    """Machine code: (x NHWC, filters (Kh, Kw, C), bias, y NHWC, planes, rows, …, first unit, last).

    `planes` holds the m images of a unit, `rows` the filter with t − 1 columns left and right, which come zeroed.
    """
    code, v = Code(f"forward_{m}x{t}", ("x", "filters", "bias", "y", "planes", "rows")), lanes()
    *_, bias, y, planes, rows = code.pointers
    g = code.given
    groups = code.parts(g["images"], m)
    plane, x_row = code.mul(g["height"], g["width"], v), code.mul(g["width"], v)
    f_row = code.mul(code.add(g["taps_wide"], 2 * (t - 1)), v)
    with code.loop(code.first, code.last) as unit:
        block = code.divide(unit, groups)
        n = code.least(code.mul(code.rest(unit, groups), m), code.sub(g["images"], m))
        c = code.least(code.mul(block, v), code.sub(g["channels"], v))
        _gather_unit(code, m, t, n, c, plane, f_row)
        start = [[code.load(code.pointer(bias, c))] * t] * m
        with code.loop(I64(0), g["out_height"]) as row:
            top = code.sub(row, g["pad_high"])  # kernel row r sees input row top + r
            taps = (code.most(I64(0), code.sub(0, top)), code.least(g["taps_high"], code.sub(g["height"], top)))
            with code.loop(I64(0), code.parts(g["out_width"], t)) as part:
                j = code.least(code.mul(part, t), code.sub(g["out_width"], t))
                left = code.sub(j, g["pad_wide"])
                end = code.least(g["width"], code.add(left, t - 1, g["taps_wide"]))
                sums = code.tile(
                    start,
                    code.pointer(planes, code.mul(top, x_row)),
                    x_row,
                    plane,
                    code.pointer(rows, code.mul(code.sub(t - 1, left), v)),
                    f_row,
                    taps,
                    (code.most(I64(0), left), end),
                )
                for i in range(m):
                    pixel = code.mul(code.add(n, i), g["out_height"])
                    pixel = code.add(code.mul(code.add(pixel, row), g["out_width"]), j)
                    for k in range(t):
                        code.store(sums[i][k], code.pointer(y, code.mul(code.add(pixel, k), g["channels"]), c))
    return code.compile()


def _add_taps(
    code: Code, m: int, t: int, part: ir.Value, strip: ir.Value, image: Rows, gradient: Rows, sums: ir.Value
) -> None:
    """Add what an image gives to m × t taps: tile (part, strip) of `sums`; `image` and `gradient` with row lengths."""
    (planes, x_row), (rows, f_row), g, v = image, gradient, code.given, lanes()
    top = code.sub(code.mul(part, m), g["pad_high"])  # output row i sees input row top + i
    left = code.sub(code.mul(strip, t), g["pad_wide"])
    first = code.most(I64(0), code.sub(1 - m, top))
    last = code.least(g["out_height"], code.sub(g["height"], top))
    end = code.least(g["width"], code.add(left, t - 1, g["out_width"]))
    cell = code.mul(code.add(code.mul(part, code.parts(g["taps_wide"], t)), strip), m * t * v)
    kept = [[code.pointer(sums, cell, (i * t + k) * v) for k in range(t)] for i in range(m)]
    # one sum of all products would err like a random walk over the map
    height = code.most(I64(1), code.divide(I64(PIECE), g["width"]))
    with code.loop(I64(0), code.parts(code.most(I64(0), code.sub(last, first)), height)) as piece:
        start = code.add(first, code.mul(piece, height))
        result = code.tile(
            [[code.zeros] * t] * m,
            code.pointer(planes, code.mul(code.add(top, m - 1), x_row)),
            x_row,
            x_row,
            code.pointer(rows, code.mul(code.sub(t - 1, left), v)),
            f_row,
            (start, code.least(last, code.add(start, height))),
            (code.most(I64(0), left), end),
        )
        for i in range(m):
            for k in range(t):
                code.store(code.build.fadd(code.load(kept[i][k]), result[i][k]), kept[i][k])


@functools.cache
def _grad_weight_code(m: int, t: int) -> Callable[..., None]:
    """Machine code: (x NHWC, grad NHWC, gradient (Kh, Kw, C), planes, rows, sums, …, first block, last).

    `planes` holds an image with m − 1 rows above and below, `rows` its gradient with t − 1 columns left and right, all
    zeroed before; `sums` the tiles (⌈Kh/m⌉, ⌈Kw/t⌉, m, t, V) of a block.
    """
    code, v = Code(f"grad_weight_{m}x{t}", ("x", "grad", "gradient", "planes", "rows", "sums")), lanes()
    x, grad, gradient, planes, rows, sums = code.pointers
    g = code.given
    high, wide = code.parts(g["taps_high"], m), code.parts(g["taps_wide"], t)
    x_row, f_row = code.mul(g["width"], v), code.mul(code.add(g["out_width"], 2 * (t - 1)), v)
    with code.loop(code.first, code.last) as block:
        c = code.least(code.mul(block, v), code.sub(g["channels"], v))
        code.clear(sums, code.mul(high, wide, m * t))
        with code.loop(I64(0), g["images"]) as n:
            pixels = code.mul(g["height"], g["width"])
            source = code.pointer(x, code.mul(n, pixels, g["channels"]), c)
            code.gather(source, code.pointer(planes, code.mul(x_row, m - 1)), pixels, g["channels"])
            with code.loop(I64(0), g["out_height"]) as i:
                pixel = code.mul(code.add(code.mul(n, g["out_height"]), i), g["out_width"])
                target = code.pointer(rows, code.mul(i, f_row), (t - 1) * v)
                source = code.pointer(grad, code.mul(pixel, g["channels"]), c)
                code.gather(source, target, g["out_width"], g["channels"])
            with code.loop(I64(0), high) as part, code.loop(I64(0), wide) as strip:
                _add_taps(code, m, t, part, strip, (planes, x_row), (rows, f_row), sums)
        with code.loop(I64(0), g["taps_high"]) as u, code.loop(I64(0), g["taps_wide"]) as k:
            cell = code.add(code.mul(code.divide(u, m), wide), code.divide(k, t))
            cell = code.add(code.mul(cell, m * t), code.mul(code.rest(u, m), t), code.rest(k, t))
            target = code.pointer(gradient, code.mul(code.add(code.mul(u, g["taps_wide"]), k), g["channels"]), c)
            code.store(code.load(code.pointer(sums, code.mul(cell, v))), target)
    return code.compile()


# --- the three functions ---------------------------------------------------------------------------------------------


def _run(
    function: Callable[..., None], units: int, shared: list[Tensor], scratch: list[int], geometry: Numbers
) -> None:
    """The function on all units, in as many parts as torch has threads, each with zeroed scratch of its own."""
    numbers = (ctypes.c_int64 * len(GEOMETRY))(*(geometry[name] for name in GEOMETRY))
    threads = min(torch.get_num_threads(), units)
    bounds = [units * i // threads for i in range(threads + 1)]

    def part(i: int) -> None:
        own = [torch.zeros(size, dtype=torch.float32, device="cpu") for size in scratch]
        function(*(tensor.data_ptr() for tensor in (*shared, *own)), numbers, bounds[i], bounds[i + 1])

    if threads == 1:
        part(0)
    else:
        in_parallel(part, threads)


def _geometry(x: Tensor, out_size: Sequence[int], taps: Pair, padding: Pair, turned: bool = False) -> Numbers:
    """The integers of `GEOMETRY`; `turned` reads the filter from its last tap to its first."""
    c = x.shape[1]
    order = ((taps[0] * taps[1] - 1) * c, -c) if turned else (0, c)
    return dict(zip(GEOMETRY, (*x.shape, *out_size, *taps, *padding, *order), strict=True))


@functools.cache
def _forward_tile(images: int, columns: int, size: Pair, taps: int, pad: int) -> Pair:
    fitting = [(m, t) for m, t in _tile_shapes() if m <= images and t <= columns]
    planes = 4 * lanes() * size[0] * size[1]
    resident = [(m, t) for m, t in fitting if m == 1 or m * planes <= PLANES]
    return min(resident, key=lambda s: _cycles(s[0], s[1], images, columns, size[1], taps, pad))


@functools.cache
def _grad_weight_tile(rows: int, columns: int, width: int, out_width: int, pad: int) -> Pair:
    fitting = [(m, t) for m, t in _tile_shapes() if m <= rows and t <= columns]
    return min(fitting, key=lambda s: _cycles(s[0], s[1], rows, columns, width, out_width, pad))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair, turned: bool) -> Tensor:
    """The forward, with the filter turned by 180° or not."""
    x, (n, c, h, w), (kh, kw) = x.contiguous(memory_format=torch.channels_last), x.shape, weight.shape[2:]
    size = (h + 2 * padding[0] - kh + 1, w + 2 * padding[1] - kw + 1)
    m, t = _forward_tile(n, size[1], (h, w), kw, padding[1])
    filters = weight.reshape(c, kh * kw).t().contiguous()
    bias = x.new_zeros(c) if bias is None else bias.contiguous()
    y = torch.empty((n, c, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    scratch = [m * h * w * lanes(), kh * (kw + 2 * (t - 1)) * lanes()]
    units = -(-c // lanes()) * -(-n // m)
    geometry = _geometry(x, size, (kh, kw), padding, turned)
    _run(_forward_code(m, t), units, [x, filters, bias, y], scratch, geometry)
    return y


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """x (N, C, H, W), weight (C, 1, Kh, Kw), bias (C,) or None → (N, C, H', W'), channels_last."""
    return _convolve(x, weight, bias, padding, turned=False)


def grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Gradient by x, of `input_shape`, channels_last; padding below the kernel's size."""
    padding = (weight.shape[2] - 1 - padding[0], weight.shape[3] - 1 - padding[1])
    return _convolve(grad, weight, None, padding, turned=True)


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient by weight, (C, 1, Kh, Kw), for the output's gradient (N, C, H', W')."""
    x, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad))
    (_, c, h, w), (oh, ow), (kh, kw), v = x.shape, grad.shape[2:], kernel_size, lanes()
    m, t = _grad_weight_tile(kh, kw, w, ow, padding[1])
    gradient = x.new_empty(kh * kw, c)
    tiles = -(-kh // m) * -(-kw // t) * m * t
    scratch = [(h + 2 * (m - 1)) * w * v, oh * (ow + 2 * (t - 1)) * v, tiles * v]
    geometry = _geometry(x, (oh, ow), kernel_size, padding)
    _run(_grad_weight_code(m, t), -(-c // v), [x, grad, gradient], scratch, geometry)
    return gradient.t().contiguous().view(c, 1, kh, kw)
