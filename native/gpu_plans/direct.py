"""Plans of the multiply-add kernels: any geometry, fp32 accumulation, every element type."""

from math import ceil

from native.activation import ACTIVATIONS
from native.geometry import Pair
from native.gpu_plans.problem import Launch, Problem, Target, up

ROWS = 4  # output rows a thread of direct_forward.cu
SHARED = 48 * 1024  # bytes a block may use on every GPU without asking
BUSY = 256  # threads of a multiprocessor; with fewer, channels_last goes through planes
THREADS = 512  # of a block of direct_weight.cu, at most


def _geometry(p: Problem) -> dict[str, int]:
    (kh, kw), (sy, sx), (dy, dx) = p.kernel, p.stride, p.dilation
    return {"KH": kh, "KW": kw, "SY": sy, "SX": sx, "DY": dy, "DX": dx, "CHANNELS": p.block_channels}


def forward_tile(p: Problem, output: Pair, zeros: Pair, rows: int, limit: int = SHARED) -> dict[str, int] | None:
    """The largest tile of an output that fits `limit` bytes a channel: images, rows and the strides between them."""
    reach = (p.kernel[0] - 1) * p.dilation[0], (p.kernel[1] - 1) * p.dilation[1]
    zero_rows = 2 * (rows - 1) * p.stride[0] if p.dilation == (1, 1) else 0
    weights = (p.kernel[0] + zero_rows) * up(p.kernel[1], 4) * 4
    height = (p.height - 1) * zeros[0] + 1
    columns = min(64, up(output[1], 8))
    while columns >= 8:
        pitch = up((columns - 8) * p.stride[1] + up(7 * p.stride[1] + reach[1] + 1, 4), 4)
        tile_rows = up(output[0], rows)
        while tile_rows >= rows:
            staged = max(1, min(height, (tile_rows - 1) * p.stride[0] + reach[0] + 1))
            size = staged * pitch + staged // (rows * p.stride[0]) * 4 + 4
            skew = tile_rows // rows * 4 % 32  # of an image's last group of rows
            for least, offset in ((8, 4), (1, skew)):  # lanes on neighbouring images, or on neighbouring rows
                image = up(size - offset, 32) + offset  # whose reads lie in different banks
                images = min(p.batch, 32, (limit - weights) // (image * 4)) // least * least
                if images >= 1:
                    return {"columns": columns, "pitch": pitch, "rows": tile_rows, "staged": staged, "image": image,
                            "images": images, "images_first": int(least == 8),
                            "shared": p.block_channels * (images * image * 4 + weights)}  # fmt: skip
            tile_rows = up(tile_rows // 2, rows) if tile_rows > rows else 0
        columns = up(columns // 2, 8) if columns > 8 else 0
    return None


def _tuned_tile(p: Problem, output: Pair, zeros: Pair, target: Target) -> tuple[dict[str, int], int, int] | None:
    """Tile, rows and threads, tuned on an H100: short ones while memory is the limit, long ones for large kernels."""
    large = min(max(SHARED, target.shared // 3), target.half)
    tuned = (2, SHARED * 2 // 3, 128) if p.kernel[0] <= 13 else (ROWS, large, 256)
    if p.last:  # a block stages several channels
        tuned = tuned[0], target.half, 256
    short = max(p.kernel) > 63 or p.last  # of memory, most of which are filters: the most threads count
    tried = (tuned, (ROWS, SHARED, 256), *([(ROWS, target.half, 256)] if short else ()), (ROWS, target.shared, 256))
    found = ((tile, rows, threads) for rows, limit, threads in tried
             if (tile := forward_tile(p, output, zeros, rows, limit // p.block_channels)))  # fmt: skip
    best = max(found, key=lambda option: _resident(p, option, target), default=None) if short else next(found, None)
    return best if best and (not p.last or _resident(p, best, target) >= BUSY) else None


def _threads(p: Problem, tile: dict[str, int], rows: int, most: int) -> int:
    """Threads of a block: one for each group of rows and 8 columns of a channel, in whole warps."""
    places = tile["columns"] // 8 * tile["images"] * (tile["rows"] // rows)
    return min(most, up(places, 8) * p.block_channels if p.last else up(places, 32))


def _resident(p: Problem, option: tuple[dict[str, int], int, int], target: Target) -> int:
    """Threads that a multiprocessor holds of a tile's blocks: of 128 registers, 512 at the most."""
    return min(512, target.blocks_with(option[0]["shared"]) * _threads(p, *option))


def covers(p: Problem, output: Pair, zeros: Pair, target: Target) -> bool:
    """Whether the reach of a filter fits shared memory, forward or, with `zeros`, as `launch` takes them, back."""
    return _tuned_tile(p, output, zeros, target) is not None


def launch(
    p: Problem, output: Pair, zeros: Pair, flip: bool, names: tuple[str, str, str], bias: bool, target: Target
) -> Launch:
    """The forward launch; with `flip` and `zeros` (dy's pixels so far apart), the input gradient's over dy."""
    found = _tuned_tile(p, output, zeros, target)
    assert found is not None, "why_no_plan() has been asked"
    tile, rows, threads = found
    threads = _threads(p, tile, rows, threads)
    constants = _geometry(p) | {
        "ZY": zeros[0], "ZX": zeros[1], "FLIP": int(flip), "TC": tile["columns"], "PITCH": tile["pitch"],
        "WPITCH": up(p.kernel[1], 4), "ROWS": rows, "THREADS": threads,
        "VECTOR": int(not p.last and output[1] % 8 == 0), "IMAGES_FIRST": tile["images_first"], "HAS_BIAS": int(bias),
        "ACTIVATION": ACTIVATIONS[p.activation],
    }  # fmt: skip
    tiles = ceil(output[0] / tile["rows"]) * ceil(output[1] / tile["columns"])
    x, w, y = names
    return Launch(
        "direct_forward.cu", tuple(constants.items()), p.element,
        (p.channels // p.block_channels, ceil(p.batch / tile["images"]), tiles), threads,
        tile["shared"],
        (x, w, "bias" if bias else w, y, p.batch, p.channels, p.height, p.width, *output, *p.padding,
         tile["images"], tile["rows"], tile["staged"], tile["image"]),
    )  # fmt: skip


def _weight_rows(p: Problem) -> int:
    """Kernel rows of a block of the weight gradient, shared out evenly: a thread for each and 8 of its columns."""
    most = THREADS // p.block_channels // ceil(p.kernel[1] / 8)
    return ceil(p.kernel[0] / ceil(p.kernel[0] / most))


def weight_tile(p: Problem, target: Target) -> dict[str, int] | None:
    """Rows and columns of dy that fit shared memory with the rows of x they need."""
    groups, reach = ceil(p.kernel[1] / 8), (_weight_rows(p) - 1) * p.dilation[0]
    limits = (target.half, target.shared) if p.last else (min(SHARED, target.half), SHARED, target.shared)
    for limit in limits:
        columns = min(64, up(p.output[1], 4))
        while columns >= 4:
            pitch = up(columns * p.stride[1] + 8 * groups * p.dilation[1], 4)
            # Lanes on neighbouring kernel rows read different banks: odd in units of 16 bytes; and see row_offset().
            pitch += (4 - pitch) % 16 if groups == 2 else 0 if pitch % 8 else 4
            fewer = [ceil(p.output[0] / 2**k) for k in range(p.output[0].bit_length() + 1)]
            whole = [(rows, p.height) for rows in fewer[:4]]  # x is read once
            tiled = [(rows, max(1, min(p.height, (rows - 1) * p.stride[0] + reach + 1))) for rows in fewer]
            for rows, staged in whole + tiled:
                skew = (staged + 1) // 2 * 8 if groups == 2 else 0
                tile = ((staged + 1) * pitch + skew + rows * (columns + 4)) * 4
                size = max(p.block_channels * tile, THREADS * 9 * 4)
                if size <= limit:
                    return {"columns": columns, "pitch": pitch, "rows": rows, "staged": staged, "shared": size}
            columns = up(columns // 2, 4) if columns > 4 else 0
    return None


def weight_launch(p: Problem, chunk: int, target: Target) -> Launch:
    """The weight gradient's first phase: partial sums of `chunk` images each."""
    tile = weight_tile(p, target)
    assert tile is not None, "why_no_plan() has been asked"
    rows = _weight_rows(p)
    units = rows * ceil(p.kernel[1] / 8) * p.block_channels
    threads = THREADS // 2 if units <= THREADS // 2 else THREADS
    constants = _geometry(p) | {
        "TC": tile["columns"], "PITCH": tile["pitch"], "THREADS": threads, "UB": rows,
        "SLICES": min(threads // units, 16),
    }  # fmt: skip
    return Launch(
        "direct_weight.cu", tuple(constants.items()), p.element,
        (p.channels // p.block_channels, ceil(p.batch / chunk), ceil(p.kernel[0] / rows)), threads, tile["shared"],
        ("x", "dy", "partial", p.batch, p.channels, p.height, p.width, *p.output, *p.padding,
         chunk, tile["rows"], tile["staged"]),
    )  # fmt: skip
