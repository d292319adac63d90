"""Plans of the tensor-core kernels: stride 1, no dilation, fp16 and bf16; the layout of their shared memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from native.plans.problem import ELEMENTS, Launch, Pair, Problem, Target, up

RESERVED = 1024  # bytes of shared memory that the driver keeps of each block


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


def forward_layout(p: Problem, tile: Tile) -> dict[str, int]:
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
    weights = up(left + 8 + px + 8 * high, 2) * 2
    copy = up(kh * weights, 128) + 64  # the second copy starts 16 banks away
    return {
        "KH": kh, "KW": kw, "PY": py, "PX": px, "H": p.height, "W": p.width, "OH": oh, "OW": ow,
        "NI": tile.images, "IM": im, "IG": tile.image_groups, "RB": tile.rows, "QT": columns, "QF": first, "QN": count,
        "DLO": low, "DHI": high, "WARPS_ROWS": min(tile.warps, groups), "WARPS_IMAGES": tile.image_warps,
        "TILE_ROWS": tile_rows, "STAGED_ROWS": staged, "PITCH": units * 16, "IMAGE": image * 16, "LEFT": left,
        "WPITCH": weights, "WCOPY": copy, "VECTOR": _vector(p.width),
        "STORE": next(v for v in (4, 2, 1) if ow % v == 0), "MIN_BLOCKS": tile.blocks,
    }  # fmt: skip


def forward_shared(c: dict[str, int]) -> int:
    """Bytes of shared memory: planes, then two copies of the filter."""
    return c["NI"] * c["IG"] * c["WARPS_IMAGES"] * c["IMAGE"] + c["WCOPY"] + c["KH"] * c["WPITCH"]


def _tiles(p: Problem) -> Iterator[Tile]:
    """Tiles worth trying, the best first (tuned on an H100): whole planes, more blocks at a time, then fewer rows."""
    oh, ow = p.output
    columns = min(8, ceil(ow / 8))
    small = p.kernel[0] <= 7
    large = p.kernel[0] > 17
    if columns > 4:
        images, rows, warps, resident = (8, 2, 8, 2) if large else (2, 1, 4, 4) if small else (4, 2, 4, 4)
    elif columns > 2:
        images, rows, warps, resident = (8, 2, 8, 2) if large else (4, 2, 4, 2)
    else:
        images, rows, warps, resident = (8, 2, 4, 4) if small else (16, 2, 8, 2)
    most = 1 << (p.batch - 1).bit_length()  # images, rounded up to a power of two
    image_groups = 2 if columns <= 2 and p.kernel[0] >= 21 and most >= 32 else 1
    shapes = [(n, ceil(oh / (rows * (16 // n)))) for n in (images, 8, 4, 2, 1, 16) if n <= most]
    for fewer, blocks in ((f, b) for f in (oh, 16, 8, 4, 2, 1) for b in sorted({resident, 2, 1}, reverse=True)):
        for n, groups in shapes:
            groups = min(fewer, groups)
            image_warps = max(1, min(most // (n * image_groups), warps // groups))
            even = ceil(groups / ceil(groups / warps))  # every pass busy
            yield Tile(n, image_groups, image_warps, rows, groups, even, columns, blocks)


def launch(p: Problem, flip: bool, names: tuple[str, str, str], bias: bool, target: Target) -> Launch | None:
    """The forward launch (with `flip`, the input gradient's over dy); None if no tile fits shared memory."""
    x, w, y = names
    oh, ow = p.output
    for tile in _tiles(p):
        constants = forward_layout(p, tile)
        shared = forward_shared(constants)
        if (shared + RESERVED) * tile.blocks > target.shared + RESERVED:
            continue
        images = constants["NI"] * constants["IG"] * constants["WARPS_IMAGES"]
        tiles = ceil(oh / constants["TILE_ROWS"]) * ceil(ow / (8 * constants["QT"]))
        threads = 32 * constants["WARPS_ROWS"] * constants["WARPS_IMAGES"]
        constants |= {"FLIP": int(flip), "HAS_BIAS": int(bias)}
        return Launch("toeplitz_forward.cu", tuple(constants.items()), ELEMENTS[p.dtype],
                      (p.channels, ceil(p.batch / images), tiles), threads, shared,
                      (x, w, "bias" if bias else w, y, p.batch, p.channels))  # fmt: skip
    return None


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


def weight_layout(p: Problem, images: int, tile_rows: int) -> dict[str, int]:
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
    rows = up(min(tile_rows, oh), im)
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
        "WARPS_U": warps, "SLICES": total // warps, "MIN_BLOCKS": 1 if total == 16 and kh > 8 else 2,
    }  # fmt: skip


def weight_launch(p: Problem, chunk: int, target: Target) -> Launch | None:
    """The weight gradient's first phase, partial sums of `chunk` images each; None if no tile fits shared memory."""
    most = 1 << (min(p.batch, chunk) - 1).bit_length()
    rows = p.output[0]
    while True:
        for images in (16, 8, 4, 2, 1):
            if images > most:
                continue
            c = weight_layout(p, images, rows)
            warps = c["WARPS_U"] * c["SLICES"]
            buffer, sums = images * (c["X_IMAGE"] + c["G_IMAGE"]), warps * (128 + c["UPW"] * c["KW"]) * 4
            shared = max(buffer, sums)
            if 2 * (shared + RESERVED) <= target.shared + RESERVED or (images == 1 and shared <= target.shared):
                if (
                    c["MIN_BLOCKS"] == 1 and 2 * buffer <= target.shared
                ):  # alone on the multiprocessor: load while computing
                    c["BUFFERS"], shared = 2, max(2 * buffer, sums)
                return Launch("toeplitz_weight.cu", tuple(c.items()), ELEMENTS[p.dtype],
                              (p.channels, ceil(p.batch / chunk), ceil(p.kernel[0] / c["UB"])), 32 * warps, shared,
                              ("x", "dy", "partial", p.batch, p.channels, chunk))  # fmt: skip
        if rows == 1:
            return None
        rows = ceil(rows / 2)
