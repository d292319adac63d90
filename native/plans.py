"""Which kernels compute a depthwise convolution, with which constants, on which grid: shared by the GPU and the emulator.

A plan is a list of launches. The layout of shared memory is decided here, once, and reaches the kernels as compiler
constants, so the ``.cu`` files hold no formula twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch

Pair = tuple[int, int]

ELEMENTS = {torch.float16: "ELEMENT_F16", torch.bfloat16: "ELEMENT_BF16", torch.float32: "ELEMENT_F32"}
MAX_KERNEL = 63  # rows or columns; beyond, torch
DIRECT_SHARED = 48 * 1024  # bytes a block may use on every GPU without asking


@dataclass(frozen=True)
class Problem:
    """One depthwise convolution: x (batch, channels, height, width), filters (kh, kw), y (batch, channels, *output)."""

    dtype: torch.dtype
    batch: int
    channels: int
    height: int
    width: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def output(self) -> Pair:
        """(rows, columns) of y."""
        sizes = zip((self.height, self.width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)
        return rows, columns


@dataclass(frozen=True)
class Launch:
    """One kernel launch; arguments are tensor names or C ints (a float-typed count as ``("i64", n)``)."""

    source: str
    constants: tuple[tuple[str, int], ...]
    element: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    arguments: tuple[str | int | tuple[str, int], ...]

    @property
    def entry(self) -> str:
        """The kernel's name: that of its file."""
        return self.source.removesuffix(".cu")


@dataclass(frozen=True)
class Plan:
    """Launches in order; ``workspace`` is the number of floats of the tensor named "partial" between them."""

    launches: tuple[Launch, ...]
    workspace: int = 0


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def why_no_plan(p: Problem) -> str | None:
    """One sentence that names what no kernel here covers; None if a plan exists."""
    if p.dtype not in ELEMENTS:
        return f"The CUDA kernels take float16, bfloat16 or float32, not {str(p.dtype).removeprefix('torch.')}."
    if max(p.kernel) > MAX_KERNEL:
        return f"The CUDA kernels take filters up to {MAX_KERNEL}x{MAX_KERNEL}, not {p.kernel[0]}x{p.kernel[1]}."
    if max(p.stride) > 8 or max(p.dilation) > 16:
        return "The CUDA kernels take strides up to 8 and dilations up to 16."
    if _direct_forward_tile(p, p.output, (1, 1)) is None or _direct_weight_tile(p) is None:
        return "The CUDA kernels hold a kernel's reach in shared memory; dilation times kernel size is too large here."
    return None


def _direct_forward_tile(p: Problem, output: Pair, zeros: Pair, rows: int = 4) -> dict[str, int] | None:
    """The largest tile of an output that fits shared memory: images, rows and the strides between them."""
    reach = (p.kernel[0] - 1) * p.dilation[0], (p.kernel[1] - 1) * p.dilation[1]
    weights = p.kernel[0] * _up(p.kernel[1], 4) * 4
    height = (p.height - 1) * zeros[0] + 1
    columns = min(64, _up(output[1], 8))
    while columns >= 8:
        pitch = _up((columns - 8) * p.stride[1] + _up(7 * p.stride[1] + reach[1] + 1, 4), 4)
        tile_rows = _up(output[0], rows)
        while tile_rows >= rows:
            staged = max(1, min(height, (tile_rows - 1) * p.stride[0] + reach[0] + 1))
            image = _up(staged * pitch + staged // (rows * p.stride[0]) * 4 + 4, 32) + 16
            images = min(p.batch, 32, (DIRECT_SHARED - weights) // (image * 4))
            if images >= 1:
                return {"columns": columns, "pitch": pitch, "rows": tile_rows, "staged": staged, "image": image, "images": images}
            tile_rows = _up(tile_rows // 2, rows) if tile_rows > rows else 0
        columns = _up(columns // 2, 8) if columns > 8 else 0
    return None


def _direct(p: Problem, output: Pair, zeros: Pair, flip: bool, names: tuple[str, str, str], bias: bool) -> Launch:
    tile = _direct_forward_tile(p, output, zeros)
    assert tile is not None, "why_no_plan() has been asked"
    rows, threads = 4, 256
    units = tile["columns"] // 8 * tile["images"] * (tile["rows"] // rows)
    threads = min(threads, _up(units, 32))
    constants = {
        "KH": p.kernel[0], "KW": p.kernel[1], "SY": p.stride[0], "SX": p.stride[1], "DY": p.dilation[0], "DX": p.dilation[1],
        "ZY": zeros[0], "ZX": zeros[1], "FLIP": int(flip), "TC": tile["columns"], "PITCH": tile["pitch"],
        "WPITCH": _up(p.kernel[1], 4), "ROWS": rows, "THREADS": threads, "VECTOR": int(output[1] % 8 == 0), "HAS_BIAS": int(bias),
    }  # fmt: skip
    tiles = ceil(output[0] / tile["rows"]) * ceil(output[1] / tile["columns"])
    x, w, y = names
    return Launch(
        "direct_forward.cu", tuple(constants.items()), ELEMENTS[p.dtype],
        (p.channels, ceil(p.batch / tile["images"]), tiles), threads,
        tile["images"] * tile["image"] * 4 + p.kernel[0] * _up(p.kernel[1], 4) * 4,
        (x, w, "bias" if bias else w, y, p.batch, p.channels, p.height, p.width, *output, *p.padding,
         tile["images"], tile["rows"], tile["staged"], tile["image"]),
    )  # fmt: skip


def forward(p: Problem, bias: bool) -> Plan:
    """Tensors: x, w, bias (if any), y."""
    return Plan((_direct(p, p.output, (1, 1), False, ("x", "w", "y"), bias),))


def _transposed(p: Problem) -> Problem:
    """The forward problem over dy that gives dx: flipped filter, padding d·(K − 1) − p, dy's pixels a stride apart."""
    rows, columns = p.output
    padding = tuple(d * (k - 1) - q for d, k, q in zip(p.dilation, p.kernel, p.padding, strict=True))
    return Problem(p.dtype, p.batch, p.channels, rows, columns, p.kernel, (1, 1), (padding[0], padding[1]), p.dilation)


def grad_input(p: Problem) -> Plan:
    """Tensors: dy, w, dx."""
    t = _transposed(p)
    return Plan((_direct(t, (p.height, p.width), p.stride, True, ("dy", "w", "dx"), False),))


def _direct_weight_tile(p: Problem) -> dict[str, int] | None:
    """Rows and columns of dy that fit shared memory with the rows of x they need."""
    groups, reach = ceil(p.kernel[1] / 8), (p.kernel[0] - 1) * p.dilation[0]
    columns = min(64, _up(p.output[1], 4))
    while columns >= 4:
        pitch = _up(columns * p.stride[1] + 8 * groups * p.dilation[1], 4)
        pitch += 0 if pitch % 8 else 4  # odd in units of 16 bytes: lanes on neighbouring kernel rows read different banks
        rows = p.output[0]
        while rows >= 1:
            staged = max(1, min(p.height, (rows - 1) * p.stride[0] + reach + 1))
            size = max(staged * pitch * 4 + rows * (columns + 4) * 4, 512 * 9 * 4)
            if size <= DIRECT_SHARED:
                return {"columns": columns, "pitch": pitch, "rows": rows, "staged": staged, "shared": size}
            rows //= 2
        columns = _up(columns // 2, 4) if columns > 4 else 0
    return None


IMAGES_A_CHUNK = 16  # of the weight gradient's partial sums: fixed, so results depend on no GPU and no split


def _sum_partials(p: Problem, chunks: int) -> Launch:
    count = p.channels * p.kernel[0] * p.kernel[1]
    return Launch("sum_partials.cu", (("THREADS", 256),), ELEMENTS[p.dtype], (ceil(count / 256), 1, 1), 256, 0,
                  ("partial", "dw", ("i64", count), chunks))  # fmt: skip


def grad_weight(p: Problem) -> Plan:
    """Tensors: x, dy, partial (workspace), dw."""
    tile = _direct_weight_tile(p)
    assert tile is not None, "why_no_plan() has been asked"
    units = p.kernel[0] * ceil(p.kernel[1] / 8)
    threads = 256 if units <= 256 else 512
    constants = {
        "KH": p.kernel[0], "KW": p.kernel[1], "SY": p.stride[0], "SX": p.stride[1], "DY": p.dilation[0], "DX": p.dilation[1],
        "TC": tile["columns"], "PITCH": tile["pitch"], "THREADS": threads, "SLICES": min(threads // units, 16),
    }  # fmt: skip
    chunks = ceil(p.batch / IMAGES_A_CHUNK)
    launch = Launch(
        "direct_weight.cu", tuple(constants.items()), ELEMENTS[p.dtype], (p.channels, chunks, 1), threads, tile["shared"],
        ("x", "dy", "partial", p.batch, p.channels, p.height, p.width, *p.output, *p.padding,
         IMAGES_A_CHUNK, tile["rows"], tile["staged"]),
    )  # fmt: skip
    return Plan((launch, _sum_partials(p, chunks)), chunks * p.channels * p.kernel[0] * p.kernel[1])


PLANS: dict[str, Callable[..., Plan]] = {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}
