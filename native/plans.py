"""Which kernels compute a depthwise convolution, with which constants, on which grid: shared by the GPU and the emulator.

A plan is a list of launches. The layout of shared memory is decided here, once, and reaches the kernels as compiler
constants, so the ``.cu`` files hold no formula twice.
"""

from collections.abc import Callable, Iterator, Sequence
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


def problem(shape: Sequence[int], dtype: torch.dtype, kernel, stride, padding, dilation) -> Problem:
    """The problem of an x of `shape` (N, C, H, W)."""
    return Problem(dtype, *shape, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Target:
    """A GPU as a plan sees it: compute capability as 10 · major + minor, shared memory of a multiprocessor in bytes."""

    capability: int = 90
    shared: int = 227 * 1024

    def tensor_cores(self, dtype: torch.dtype) -> bool:
        """Whether matrix instructions take this type."""
        return dtype == torch.float16 or (dtype == torch.bfloat16 and self.capability >= 80)


ANY_GPU = Target()


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
    zero_rows = 2 * (rows - 1) * p.stride[0] if p.dilation == (1, 1) else 0
    weights = (p.kernel[0] + zero_rows) * _up(p.kernel[1], 4) * 4
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
                return {"columns": columns, "pitch": pitch, "rows": tile_rows, "staged": staged, "image": image,
                        "images": images, "shared": images * image * 4 + weights}  # fmt: skip
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
        tile["shared"],
        (x, w, "bias" if bias else w, y, p.batch, p.channels, p.height, p.width, *output, *p.padding,
         tile["images"], tile["rows"], tile["staged"], tile["image"]),
    )  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """What a block of toeplitz_forward.cu computes."""

    images: int  # in the 16 rows of a product: 16, 8, 4, 2 or 1 (the others are output rows)
    image_groups: int  # of `images`, a warp
    image_warps: int  # warps side by side on other images
    rows: int  # groups of 16 / images output rows, a warp
    groups: int  # of rows, a block
    warps: int  # side by side on other rows
    columns: int  # blocks of 8, a warp and a block
    blocks: int  # resident on a multiprocessor, at least


def _forward_layout(p: Problem, tile: Tile) -> dict[str, int]:
    """The constants of toeplitz_forward.cu for a tile, layout of shared memory included."""
    oh, ow = p.output
    (kh, kw), (py, px) = p.kernel, p.padding
    low, high = -((px + 7) // 8), (kw - 1 - px + 7) // 8  # diagonal blocks d = q − j that meet the filter
    blocks_in, blocks_out = ceil(p.width / 8), ceil(ow / 8)
    tiled = blocks_out > tile.columns
    columns = min(tile.columns, blocks_out)
    first = low if tiled else 0
    count = columns + high - low if tiled else max(1, min(blocks_in, columns + high))
    im = 16 // tile.images
    groups = min(tile.groups, ceil(oh / (tile.rows * im)))
    tile_rows = groups * tile.rows * im
    staged = max(1, min(tile_rows + kh - 1, p.height + 2 * (im - 1)))
    units = count | 1  # 16-byte units of a row, odd: eight rows of a matrix lie in different banks
    image = _image_units(staged, units, tile.images)
    left = 7 - px - 8 * low
    weights = _up(left + 8 + px + 8 * high, 2) * 2
    copy = _up(kh * weights, 128) + 64  # the second copy starts 16 banks away
    return {
        "KH": kh, "KW": kw, "PY": py, "PX": px, "H": p.height, "W": p.width, "OH": oh, "OW": ow,
        "NI": tile.images, "IM": im, "IG": tile.image_groups, "RB": tile.rows, "QT": columns, "QF": first, "QN": count,
        "DLO": low, "DHI": high, "WARPS_ROWS": min(tile.warps, groups), "WARPS_IMAGES": tile.image_warps,
        "TILE_ROWS": tile_rows, "STAGED_ROWS": staged, "PITCH": units * 16, "IMAGE": image * 16, "LEFT": left,
        "WPITCH": weights, "WCOPY": copy, "VECTOR": _vector(p.width),
        "STORE": next(v for v in (4, 2, 1) if ow % v == 0), "MIN_BLOCKS": tile.blocks,
    }  # fmt: skip


def _forward_shared(c: dict[str, int]) -> int:
    return c["NI"] * c["IG"] * c["WARPS_IMAGES"] * c["IMAGE"] + c["WCOPY"] + c["KH"] * c["WPITCH"]


def _tiles(p: Problem) -> Iterator[Tile]:
    """Tiles worth trying, the best first (tuned on an H100): whole planes, more blocks at a time, then fewer rows."""
    oh, ow = p.output
    columns = min(8, ceil(ow / 8))
    small = p.kernel[0] <= 7
    if columns > 4:
        images, rows, warps, resident = (2, 1, 4, 4) if small else (4, 2, 4, 4)
    elif columns > 2:
        images, rows, warps, resident = (4, 2, 4, 4) if p.kernel[0] <= 17 else (8, 4, 4, 2)
    else:
        images, rows, warps, resident = (8, 2, 4, 4) if small else (16, 2, 8, 2)
    most = 1 << (p.batch - 1).bit_length()  # images, rounded up to a power of two
    image_groups = 2 if columns <= 2 and p.kernel[0] >= 21 and most >= 32 else 1
    shapes = [(n, ceil(oh / (rows * (16 // n)))) for n in (images, 8, 4, 2, 1, 16) if n <= most]
    for fewer, blocks in ((f, b) for f in (oh, 16, 8, 4, 2, 1) for b in sorted({resident, 2, 1}, reverse=True)):
        for n, groups in shapes:
            image_warps = max(1, min(most // (n * image_groups), warps // groups))
            yield Tile(n, image_groups, image_warps, rows, min(fewer, groups), warps, columns, blocks)


def _toeplitz(p: Problem, flip: bool, names: tuple[str, str, str], bias: bool, shared_limit: int) -> Launch | None:
    """The tensor-core launch, or None where it does not apply: fp32, a stride, a dilation, too much shared memory."""
    if p.dtype == torch.float32 or p.stride != (1, 1) or p.dilation != (1, 1):
        return None
    x, w, y = names
    oh, ow = p.output
    for tile in _tiles(p):
        constants = _forward_layout(p, tile)
        shared = _forward_shared(constants)
        if shared > shared_limit // tile.blocks:
            continue
        images = constants["NI"] * constants["IG"] * constants["WARPS_IMAGES"]
        tiles = ceil(oh / constants["TILE_ROWS"]) * ceil(ow / (8 * constants["QT"]))
        threads = 32 * constants["WARPS_ROWS"] * constants["WARPS_IMAGES"]
        constants |= {"FLIP": int(flip), "HAS_BIAS": int(bias)}
        return Launch("toeplitz_forward.cu", tuple(constants.items()), ELEMENTS[p.dtype],
                      (p.channels, ceil(p.batch / images), tiles), threads, shared,
                      (x, w, "bias" if bias else w, y, p.batch, p.channels))  # fmt: skip
    return None


def forward(p: Problem, bias: bool, target: Target = ANY_GPU) -> Plan:
    """Tensors: x, w, bias (if any), y."""
    names = ("x", "w", "y")
    launch = _toeplitz(p, False, names, bias, target.shared) if target.tensor_cores(p.dtype) else None
    return Plan((launch or _direct(p, p.output, (1, 1), False, names, bias),))


def _transposed(p: Problem) -> Problem:
    """The forward problem over dy that gives dx: flipped filter, padding d·(K − 1) − p, dy's pixels a stride apart."""
    rows, columns = p.output
    padding = tuple(d * (k - 1) - q for d, k, q in zip(p.dilation, p.kernel, p.padding, strict=True))
    return Problem(p.dtype, p.batch, p.channels, rows, columns, p.kernel, (1, 1), (padding[0], padding[1]), p.dilation)


def grad_input(p: Problem, target: Target = ANY_GPU) -> Plan:
    """Tensors: dy, w, dx."""
    t, names = _transposed(p), ("dy", "w", "dx")
    launch = _toeplitz(t, True, names, False, target.shared) if p.stride == (1, 1) and target.tensor_cores(p.dtype) else None
    return Plan((launch or _direct(t, (p.height, p.width), p.stride, True, names, False),))


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


def _direct_weight(p: Problem, chunks: int) -> Launch:
    tile = _direct_weight_tile(p)
    assert tile is not None, "why_no_plan() has been asked"
    units = p.kernel[0] * ceil(p.kernel[1] / 8)
    threads = 256 if units <= 256 else 512
    constants = {
        "KH": p.kernel[0], "KW": p.kernel[1], "SY": p.stride[0], "SX": p.stride[1], "DY": p.dilation[0], "DX": p.dilation[1],
        "TC": tile["columns"], "PITCH": tile["pitch"], "THREADS": threads, "SLICES": min(threads // units, 16),
    }  # fmt: skip
    return Launch(
        "direct_weight.cu", tuple(constants.items()), ELEMENTS[p.dtype], (p.channels, chunks, 1), threads, tile["shared"],
        ("x", "dy", "partial", p.batch, p.channels, p.height, p.width, *p.output, *p.padding,
         IMAGES_A_CHUNK, tile["rows"], tile["staged"]),
    )  # fmt: skip


def _vector(width: int) -> int:
    """The largest copy, in bytes, that rows of `width` 16-bit elements are aligned to."""
    return next(v for v in (16, 8, 4, 2) if width * 2 % v == 0)


def _image_units(rows: int, units: int, images: int) -> int:
    """A plane's stride in units of 16 bytes: the eight (image, row) pairs of a matrix lie in different banks."""
    return rows * units + (units * (8 // min(images, 8)) - rows * units) % 8


def _weight_warps(kernel_rows: int, products: int, columns: int) -> Pair:
    """(kernel rows a warp, warps a block): 8 warps, two blocks at a time, where registers allow (tuned on an H100)."""
    upw = ceil(kernel_rows / 8)
    if kernel_rows > 8 and upw * products * 4 + columns * 4 <= 104:
        return upw, 8
    return min(ceil(kernel_rows / 16), max(1, 64 // (4 * products))), 16


def _weight_layout(p: Problem, images: int, tile_rows: int) -> dict[str, int]:
    """The constants of toeplitz_weight.cu: `images` of the 16 pairs of the inner dimension, rows of dy a step."""
    (oh, ow), (kh, kw), (py, px) = p.output, p.kernel, p.padding
    im = 16 // images
    blocks = ceil(ow / 16)
    tiled, columns = blocks > 4, min(blocks, 4)
    low, high = -((px + 7) // 8), (kw - 1 - px + 15) // 8  # m = q − 2 j that meet the filter
    if not tiled:
        low, high = max(low, -2 * (columns - 1)), min(high, ceil(p.width / 8) - 1)
    high = max(high, low)
    first = low if tiled else 0
    count = max(1, 2 * columns - 1 + high - first if tiled else min(ceil(p.width / 8), 2 * columns - 1 + high))
    rows = _up(min(tile_rows, oh), im)
    x_rows = max(1, min(rows + kh - 1, p.height + 2 * (im - 1)))
    x_units, g_units = count | 1, 2 * columns | 1
    products = high - low + 1
    upw, total = _weight_warps(kh, products, columns)
    warps = min(total, ceil(kh / upw))
    return {
        "KH": kh, "KW": kw, "PY": py, "PX": px, "H": p.height, "W": p.width, "OH": oh, "OW": ow, "NI": images, "IM": im,
        "QA": columns, "QF": first, "QN": count, "MLO": low, "MHI": high, "TILE_ROWS": rows, "X_ROWS": x_rows,
        "X_PITCH": x_units * 16, "X_IMAGE": _image_units(x_rows, x_units, images) * 16,
        "G_PITCH": g_units * 16, "G_IMAGE": _image_units(rows, g_units, images) * 16,
        "X_VECTOR": _vector(p.width), "G_VECTOR": _vector(ow), "BUFFERS": 1, "UB": upw * warps, "UPW": upw,
        "WARPS_U": warps, "SLICES": total // warps, "MIN_BLOCKS": 16 // total,
    }  # fmt: skip


def _toeplitz_weight(p: Problem, chunks: int, shared_limit: int) -> Launch | None:
    """The tensor-core launch, or None where it does not apply."""
    if p.stride != (1, 1) or p.dilation != (1, 1):
        return None
    most = 1 << (min(p.batch, IMAGES_A_CHUNK) - 1).bit_length()
    rows = p.output[0]
    while True:
        for images in (16, 8, 4, 2, 1):
            if images > most:
                continue
            c = _weight_layout(p, images, rows)
            warps = c["WARPS_U"] * c["SLICES"]
            buffer, sums = images * (c["X_IMAGE"] + c["G_IMAGE"]), warps * (128 + c["UPW"] * c["KW"]) * 4
            shared = max(buffer, sums)
            if shared <= shared_limit // 2 or (images == 1 and shared <= shared_limit):
                if c["MIN_BLOCKS"] == 1 and 2 * buffer <= shared_limit:  # alone on the multiprocessor: load while computing
                    c["BUFFERS"], shared = 2, max(2 * buffer, sums)
                return Launch("toeplitz_weight.cu", tuple(c.items()), ELEMENTS[p.dtype],
                              (p.channels, chunks, ceil(p.kernel[0] / c["UB"])), 32 * warps, shared,
                              ("x", "dy", "partial", p.batch, p.channels, IMAGES_A_CHUNK))  # fmt: skip
        if rows == 1:
            return None
        rows = ceil(rows / 2)


def grad_weight(p: Problem, target: Target = ANY_GPU) -> Plan:
    """Tensors: x, dy, partial (workspace), dw."""
    chunks = ceil(p.batch / IMAGES_A_CHUNK)
    launch = _toeplitz_weight(p, chunks, target.shared) if target.tensor_cores(p.dtype) else None
    return Plan((launch or _direct_weight(p, chunks), _sum_partials(p, chunks)), chunks * p.channels * p.kernel[0] * p.kernel[1])


PLANS: dict[str, Callable[..., Plan]] = {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}
