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

Limits: float32, stride and dilation 1, at least V channels.
"""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from llvmlite import binding, ir
from torch import Tensor

from native.geometry import Pair

Geometry = dict[str, int]

I64, FLOAT, POINTER = ir.IntType(64), ir.FloatType(), ir.PointerType()
GEOMETRY = (  # the integers that every generated function takes, in this order
    *("images", "channels", "height", "width", "out_height", "out_width"),
    *("taps_high", "taps_wide", "pad_high", "pad_wide", "first_tap", "tap_step"),
)
PIECE = 256  # products that one sum of a weight gradient holds, where a row is no longer
PLANES = 1 << 19  # bytes of images worked on at once: half of the second cache of most processors


# --- the machine -----------------------------------------------------------------------------------------------------


def _target_machine() -> binding.TargetMachine:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    return target.create_target_machine(binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(), opt=3)


@functools.cache
def _features() -> dict[str, bool]:
    return binding.get_host_cpu_features()


@functools.cache
def lanes() -> int:
    """Floats in a vector of this processor."""
    return 16 if _features().get("avx512f") else 8 if _features().get("avx2") and _features().get("fma") else 4


@functools.cache
def _tile_shapes() -> list[Pair]:
    """(M, T) whose sums, M values of X and one of F fit the vector registers."""
    registers = 32 if _features().get("avx512f") or _features().get("neon") else 16
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


class Code:
    """A function under construction: integers, loops, and vectors at an offset counted in floats."""

    def __init__(self, name: str, pointers: tuple[str, ...]):
        self.vector = ir.VectorType(FLOAT, lanes())
        self.zeros = self.vector([0.0] * lanes())
        self.module = ir.Module(name)
        kinds = [POINTER] * (len(pointers) + 1) + [I64, I64]
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.variables = ir.IRBuilder(self.function.append_basic_block("variables"))
        self.build = ir.IRBuilder(self.function.append_basic_block("body"))
        *self.pointers, geometry, self.first, self.last = self.function.args
        for pointer in self.pointers:
            pointer.add_attribute("noalias")
        addresses = [self.build.gep(geometry, [I64(i)], source_etype=I64) for i in range(len(GEOMETRY))]
        self.given = {name: self.build.load(a, typ=I64) for name, a in zip(GEOMETRY, addresses, strict=True)}

    @contextlib.contextmanager
    def loop(self, first, last) -> Iterator[ir.Value]:
        """``for i in range(first, last)``."""
        counter = self.variables.alloca(I64)
        head, body, after = (self.function.append_basic_block(name) for name in ("head", "loop", "after"))
        self.build.store(first, counter)
        self.build.branch(head)
        self.build.position_at_end(head)
        i = self.build.load(counter, typ=I64)
        self.build.cbranch(self.build.icmp_signed("<", i, last), body, after)
        self.build.position_at_end(body)
        yield i
        self.build.store(self.build.add(i, I64(1)), counter)
        self.build.branch(head)
        self.build.position_at_end(after)

    def add(self, *terms) -> ir.Value:
        """The sum of integers."""
        return functools.reduce(self.build.add, [I64(t) if isinstance(t, int) else t for t in terms])

    def sub(self, a, b) -> ir.Value:
        """a − b."""
        return self.build.sub(*(I64(t) if isinstance(t, int) else t for t in (a, b)))

    def mul(self, *factors) -> ir.Value:
        """The product of integers."""
        return functools.reduce(self.build.mul, [I64(f) if isinstance(f, int) else f for f in factors])

    def least(self, a, b) -> ir.Value:
        """The smaller integer."""
        return self.build.select(self.build.icmp_signed("<", a, b), a, b)

    def most(self, a, b) -> ir.Value:
        """The larger integer."""
        return self.build.select(self.build.icmp_signed(">", a, b), a, b)

    def divide(self, a, b) -> ir.Value:
        """a // b of natural numbers."""
        return self.build.udiv(a, I64(b) if isinstance(b, int) else b)

    def rest(self, a, b) -> ir.Value:
        """a % b of natural numbers."""
        return self.build.urem(a, I64(b) if isinstance(b, int) else b)

    def parts(self, whole, size) -> ir.Value:
        """How many parts of `size` cover `whole`."""
        return self.divide(self.add(whole, size, -1), size)

    def pointer(self, base: ir.Value, *floats) -> ir.Value:
        """The address so many floats after `base`."""
        return self.build.gep(base, [self.add(*floats)], source_etype=FLOAT)

    def load(self, pointer: ir.Value) -> ir.Value:
        """The vector at an address."""
        return self.build.load(pointer, typ=self.vector, align=4)

    def store(self, value: ir.Value, pointer: ir.Value) -> None:
        """A vector to an address."""
        self.build.store(value, pointer, align=4)

    def gather(self, source: ir.Value, target: ir.Value, count, step) -> None:
        """`count` vectors that lie `step` floats apart, side by side into `target`."""
        with self.loop(I64(0), count) as i:
            value = self.load(self.pointer(source, self.mul(i, step)))
            self.store(value, self.pointer(target, self.mul(i, lanes())))

    def clear(self, target: ir.Value, count) -> None:
        """`count` vectors of zeros."""
        with self.loop(I64(0), count) as i:
            self.store(self.zeros, self.pointer(target, self.mul(i, lanes())))

    def tile(self, start: list[list], x, x_row, x_unit, f, f_row, rows, columns) -> list[list[ir.Value]]:
        """start[m][t] + Σ X[m, r, s] · F[r, s − t] over the bounds `rows` and `columns`; distances in floats."""
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        multiply_add = ir.Function(self.module, kind, f"llvm.fma.v{lanes()}f32")
        sums = [[self.variables.alloca(self.vector) for _ in row] for row in start]
        cells = [(m, t) for t in range(len(start[0])) for m in range(len(start))]
        for m, t in cells:
            self.build.store(start[m][t], sums[m][t])
        with self.loop(*rows) as r:
            x_here, f_here = self.pointer(x, self.mul(r, x_row)), self.pointer(f, self.mul(r, f_row))
            with self.loop(*columns) as s:
                at = self.mul(s, lanes())
                xs = [self.load(self.pointer(x_here, at, self.mul(m, x_unit))) for m in range(len(start))]
                fs = [self.load(self.pointer(f_here, at, -t * lanes())) for t in range(len(start[0]))]
                for m, t in cells:
                    old = self.build.load(sums[m][t], typ=self.vector)
                    self.build.store(self.build.call(multiply_add, [xs[m], fs[t], old]), sums[m][t])
        return [[self.build.load(cell, typ=self.vector) for cell in row] for row in sums]

    def compile(self) -> Callable[..., None]:
        """The function as machine code; a call holds no interpreter's lock."""
        self.build.ret_void()
        self.variables.branch(self.function.basic_blocks[1])
        module = binding.parse_assembly(str(self.module))
        passes = binding.create_pass_builder(_target_machine(), binding.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(module, passes)
        engine = binding.create_mcjit_compiler(module, _target_machine())
        engine.finalize_object()
        kinds = [ctypes.c_void_p] * (len(self.pointers) + 1) + [ctypes.c_int64] * 2
        function = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(self.function.name))
        function.engine = engine  # type: ignore[attr-defined]  # the code lives as long as its engine
        return function


@functools.cache
def _forward_code(m: int, t: int) -> Callable[..., None]:
    """Machine code: (x NHWC, filters (Kh, Kw, C), bias, y NHWC, planes, rows, …, first unit, last).

    `planes` holds the m images of a unit, `rows` the filter with t − 1 columns left and right, which come zeroed.
    """
    code, v = Code(f"forward_{m}x{t}", ("x", "filters", "bias", "y", "planes", "rows")), lanes()
    x, filters, bias, y, planes, rows = code.pointers
    g = code.given
    groups = code.parts(g["images"], m)
    plane, x_row = code.mul(g["height"], g["width"], v), code.mul(g["width"], v)
    f_row = code.mul(code.add(g["taps_wide"], 2 * (t - 1)), v)
    with code.loop(code.first, code.last) as unit:
        block = code.divide(unit, groups)
        n = code.least(code.mul(code.rest(unit, groups), m), code.sub(g["images"], m))
        c = code.least(code.mul(block, v), code.sub(g["channels"], v))
        with code.loop(I64(0), g["taps_high"]) as u:
            source = code.pointer(filters, g["first_tap"], code.mul(u, g["taps_wide"], g["tap_step"]), c)
            code.gather(source, code.pointer(rows, code.mul(u, f_row), (t - 1) * v), g["taps_wide"], g["tap_step"])
        pixels = code.mul(g["height"], g["width"])
        for i in range(m):
            source = code.pointer(x, code.mul(code.add(n, i), pixels, g["channels"]), c)
            code.gather(source, code.pointer(planes, code.mul(plane, i)), pixels, g["channels"])
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


def _add_taps(code: Code, m: int, t: int, part, strip, image, gradient, sums) -> None:
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


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """torch's OpenMP runtime, if it is GNU's: its workers spin for a while, and would fight with threads of our own."""
    for path in Path(torch.__file__).parent.glob("lib/libgomp*"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    return None


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "depthwise")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def _in_parallel(part: Callable[[int], None], threads: int) -> None:
    """part(0), …, part(threads − 1), each by one thread."""
    openmp = _openmp()
    if openmp is None:
        list(_pool(threads).map(part, range(threads)))
        return
    left, errors = iter(range(threads)), []

    def work(_: object) -> None:
        for i in left:  # the interpreter's lock gives each number to one thread, however many come
            try:
                part(i)
            except Exception as error:
                errors.append(error)

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)
    openmp.GOMP_parallel(callback, None, ctypes.c_uint(threads), ctypes.c_uint(0))
    if errors:
        raise errors[0]


def _run(
    function: Callable[..., None], units: int, shared: list[Tensor], scratch: list[int], geometry: Geometry
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
        _in_parallel(part, threads)


def _geometry(x: Tensor, out_size, taps: Pair, padding: Pair, turned: bool = False) -> Geometry:
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
