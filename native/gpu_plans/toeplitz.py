"""Plans of the tensor-core kernels: stride 1, no dilation, fp16, bf16 and tf32; the layout of their shared memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil

from native.activation import ACTIVATIONS
from native.geometry import ALONE, Pair, size_class
from native.gpu_plans.problem import BLOCK, Launch, Problem, Target, up


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


def _filter_layout(p: Problem, kernel: Pair, padding: Pair, twice: bool) -> dict[str, int]:
    """The constants of a filter: diagonal blocks d = q − 8/e · j, its rows in shared memory; `twice`: two copies."""
    (kh, kw), (py, px) = kernel, padding
    e = 16 // p.dtype.itemsize  # elements of a block of input columns
    low, high = -((px + e - 1) // e), (kw - 1 - px + 7) // e
    left = 7 - px - e * low
    taps = up(left + e + px + e * high, 2)
    weights = taps * (4 << twice if p.tf32 else 2)
    copy = up(kh * weights, 128) + 64 if e == 8 else 0  # the second copy starts 16 banks away, or lies within
    return {
        "KH": kh, "KW": kw, "PY": py, "PX": px, "DLO": low, "DHI": high, "LEFT": left, "TAPS": taps,
        "WPITCH": weights, "WCOPY": copy,
    }  # fmt: skip


def forward_layout(p: Problem, tile: Tile, twice: bool) -> dict[str, int]:
    """The constants of toeplitz_forward.cu for a tile, with its shared memory; `twice`: two copies of taps."""
    oh, ow = p.output
    e = 16 // p.dtype.itemsize
    filters = _filter_layout(p, p.kernel, p.padding, twice)
    kh, low, high = filters["KH"], filters["DLO"], filters["DHI"]
    blocks_in, blocks_out = ceil(p.width / e), ceil(ow / 8)
    tiled = blocks_out > tile.columns
    columns = min(tile.columns, blocks_out)
    first = low if tiled else 0
    last = 8 // e * (columns - 1) + high
    count = last - low + 1 if tiled else max(1, min(blocks_in, last + 1))
    im = 16 // tile.images
    groups = min(tile.groups, ceil(oh / (tile.rows * im)))
    tile_rows = groups * tile.rows * im
    staged = max(1, min(tile_rows + kh - 1, p.height + 2 * (im - 1)))
    units = count | 1  # 16-byte units of a row, odd: eight rows of a matrix lie in different banks
    image = _image_units(staged, units, tile.images)
    return filters | {
        "NI": tile.images, "IM": im, "IG": tile.image_groups, "RB": tile.rows, "QT": columns, "QF": first, "QN": count,
        "WARPS_ROWS": min(tile.warps, groups), "WARPS_IMAGES": tile.image_warps, "TILE_ROWS": tile_rows,
        "STAGED_ROWS": staged, "PITCH": units * 16, "IMAGE": image * 16, "TWICE": int(twice), "MIN_BLOCKS": tile.blocks,
    }  # fmt: skip


PLANES = {"CHANNELS": 1, "LAST": 0, "BESIDE": 1, "SLOT": 0, "YPITCH": 0, "YIMAGE": 0, "FILTER": 0}
PIXELS = {"VECTOR": 16, "STORE": 4}  # of rows of planes, which channels_last has none of
BETWEEN = 7  # rows of zeros around planes of x, as of eight taps one may meet a pixel
WARPS = 16  # of a block of channels_last, at most; of a multiprocessor, with 64 accumulators a thread


def last_layout(c: dict[str, int], beside: int, itemsize: int) -> dict[str, int]:
    """What differs from the constants `c` of planes in channels_last, with `beside` channels computed side by side."""
    y_pitch, y_image = _weight_strides(c["TILE_ROWS"], c["QT"], c["NI"], itemsize)
    images = c["NI"] * c["IG"] * c["WARPS_IMAGES"]
    return {
        "CHANNELS": BLOCK // itemsize, "LAST": 1, "BESIDE": beside, "SLOT": images * max(c["IMAGE"], y_image),
        "YPITCH": y_pitch, "YIMAGE": y_image, "FILTER": c["WCOPY"] + c["KH"] * c["WPITCH"],
        "MIN_BLOCKS": max(1, c["MIN_BLOCKS"] // beside),
    }  # fmt: skip


def small_layout(p: Problem, c: dict[str, int]) -> dict[str, int]:
    """What a pair adds to the constants `c`: its smaller filter, centred in the other."""
    small = p.small
    if small is None:
        return {}
    (kh, kw), (py, px) = p.kernel, p.padding
    padding = py - (kh - small[0]) // 2, px - (kw - small[1]) // 2
    filters = _filter_layout(p, small, padding, bool(c["TWICE"]))
    bytes_each = filters["WCOPY"] + filters["KH"] * filters["WPITCH"]
    named = {f"SMALL_{name}": value for name, value in filters.items()}
    return named | {"SMALL_FILTER": bytes_each, "SMALL_AT": up(_shared_of_one(c, True), 16)}


def _shared_of_one(c: dict[str, int], pair: bool) -> int:
    """Bytes of planes, then the filters; of a `pair` in channels_last, outputs of the smaller ones lie there first."""
    images = c["NI"] * c["IG"] * c["WARPS_IMAGES"]
    slot = c["SLOT"] if c["LAST"] else images * c["IMAGE"]
    slots = c["CHANNELS"] + c["BESIDE"] * c["LAST"]
    filters = c["CHANNELS"] * (c["WCOPY"] + c["KH"] * c["WPITCH"])
    parked = (c["CHANNELS"] - c["BESIDE"]) * images * c["YIMAGE"] if pair else 0  # the others have slots
    return slots * slot + max(filters, parked)


def forward_shared(c: dict[str, int]) -> int:
    """Bytes of shared memory: planes, the filters and, of a pair, the smaller ones."""
    if "SMALL_AT" in c:
        return c["SMALL_AT"] + c["CHANNELS"] * c["SMALL_FILTER"]
    return _shared_of_one(c, False)


def _classed(p: Problem) -> Problem:
    """The problem whose tile all maps of p's size class have."""
    return replace(p, height=size_class(p.height), width=size_class(p.width))


def _layouts(p: Problem) -> Iterator[dict[str, int]]:
    """Constants worth trying, the best first; those of all maps of p's size class, but for how rows are aligned."""
    rows = {"VECTOR": _vector(p.width * p.dtype.itemsize), "STORE": next(v for v in (4, 2, 1) if p.output[1] % v == 0)}
    p = _classed(p)
    for tile, twice in product(_tiles(p), (True, False) if p.tf32 else (True,)):
        planes = forward_layout(p, tile, twice) | PLANES
        if not p.last:
            yield planes | rows
            continue
        warps = planes["WARPS_ROWS"] * planes["WARPS_IMAGES"]
        for beside in (8, 4, 2, 1):
            if beside == 1 or (beside * warps <= WARPS and beside <= BLOCK // p.dtype.itemsize):
                yield planes | PIXELS | last_layout(planes, beside, p.dtype.itemsize)


def _tiles(p: Problem) -> Iterator[Tile]:
    """Tiles worth trying, the best first (tuned on an H100): whole planes, more blocks at a time, then fewer rows."""
    oh, ow = p.output
    columns = min(4 if p.tf32 and ow > 64 else 8, ceil(ow / 8))
    small = p.kernel[0] <= 7
    large = p.kernel[0] > 17
    if columns > 4:
        images, rows, warps, resident = (8, 2, 8, 2) if large else (2, 1, 4, 4) if small else (4, 2, 4, 4)
    elif columns > 2:
        images, rows, warps, resident = (16, 2, 8, 2) if large else (4, 2, 4, 2)
    else:
        images, rows, warps, resident = (8, 2, 4, 4) if small else (16, 2, 8, 2)
    most = 1 << (p.batch - 1).bit_length()  # images, rounded up to a power of two
    image_groups = 2 if columns <= 2 and p.kernel[0] >= 21 and most >= 32 else 1
    shapes = [(n, ceil(oh / (rows * (16 // n)))) for n in (images, 8, 4, 2, 1, 16) if n <= most]
    residence = ((resident, True), (2, True), (2, False), (1, True))  # blocks at a time; warps side by side on images
    for fewer, (blocks, beside) in product((oh, 16, 8, 4, 2, 1), residence):
        for n, groups in shapes:
            groups = min(fewer, groups)
            image_warps = max(1, min(most // (n * image_groups), warps // groups)) if beside else 1
            even = ceil(groups / ceil(groups / warps))  # every pass busy
            yield Tile(n, image_groups, image_warps, rows, groups, even, columns, blocks)
    if p.last:  # by way of planes, and fast
        return
    for rows, groups, n in product((2, 1), (8, 4, 2, 1), (4, 2, 1)):  # a filter that leaves little room
        if n <= most and groups <= ceil(oh * n / (16 * rows)):
            yield Tile(n, 1, 1, rows, groups, groups, columns, 1)


def launch(p: Problem, flip: bool, names: tuple[str, str, str], bias: bool, target: Target) -> Launch | None:
    """The forward launch (with `flip`, the input gradient's over dy); None if no tile fits shared memory.

    That of a pair takes and writes two tensors more, small_w and small_y.
    """
    x, w, y = names
    pair = ("small_w", "small_y") if p.small else ()
    oh, ow = p.output
    for constants in _layouts(p):
        constants |= small_layout(p, constants)
        shared = forward_shared(constants)
        if target.blocks_with(shared) < constants["MIN_BLOCKS"]:
            continue
        images = constants["NI"] * constants["IG"] * constants["WARPS_IMAGES"]
        tiles = ceil(oh / constants["TILE_ROWS"]) * ceil(ow / (8 * constants["QT"]))
        threads = 32 * constants["WARPS_ROWS"] * constants["WARPS_IMAGES"] * constants["BESIDE"]
        constants |= {"FLIP": int(flip), "HAS_BIAS": int(bias), "ACTIVATION": ACTIVATIONS[p.activation]}
        return Launch("toeplitz_forward.cu", tuple(constants.items()), _element(p),
                      (p.channels // constants["CHANNELS"], ceil(p.batch / images), tiles), threads, shared,
                      (x, w, "bias" if bias else w, *pair, y, p.batch, p.channels, p.height, p.width, oh, ow),
                      outputs=2 if pair else 1)  # fmt: skip
    return None


def _element(p: Problem) -> str:
    return "ELEMENT_TF32" if p.tf32 else p.element


def _vector(row: int) -> int:
    """The largest copy that rows of `row` bytes are aligned to."""
    return next(v for v in (16, 8, 4, 2) if row % v == 0)


def _image_units(rows: int, units: int, images: int) -> int:
    """A plane's stride in units of 16 bytes: the eight (image, row) pairs of a matrix lie in different banks."""
    return rows * units + (units * (8 // min(images, 8)) - rows * units) % 8


MANY = 13  # products of a kernel row of the weight gradient; filters of more than 80 columns may have more


def _weight_warps(kernel_rows: int, products: int, columns: int) -> Pair:
    """(kernel rows a warp, warps a block): 8 warps, two blocks at a time, where registers allow (tuned on an H100)."""
    upw = ceil(kernel_rows / 8)
    if products > MANY:  # 16 warps, or two blocks, would spill; 8 alone on a multiprocessor may have 255 registers
        return min(2, upw), 8
    if kernel_rows > 8 and upw * products * 4 + columns * 4 <= 104:
        return upw, 8
    return min(ceil(kernel_rows / 16), max(1, 64 // (4 * products))), 16


def _pairs(p: Problem) -> int:
    """(image, row) pairs in the inner dimension of one product of the weight gradient."""
    return 8 if p.tf32 else 16


def _weight_strides(rows: int, blocks: int, images: int, size: int) -> Pair:
    """Bytes between rows of `blocks` blocks of 8 columns, and between images, for reads without bank conflicts.

    16 bits: ldmatrix reads eight (image, row) pairs, 16 bytes each. tf32: a warp reads four pairs, 32 bytes each.
    """
    if size == 2:
        units = blocks | 1
        return units * 16, _image_units(rows, units, images) * 16
    pitch = blocks if images > 2 or blocks % 4 == images == 2 else blocks | 1
    image = rows * pitch
    image = image + (2 - image) % 4 if images == 2 and pitch % 2 else image | 1
    return pitch * 32, image * 32


def weight_layout(p: Problem, images: int, tile_rows: int) -> dict[str, int]:
    """The constants of toeplitz_weight.cu: `images` of the pairs of the inner dimension, rows of dy a step."""
    (oh, ow), (kh, kw), (py, px) = p.output, p.kernel, p.padding
    size = p.dtype.itemsize
    im = _pairs(p) // images
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
    x_pitch, x_image = _weight_strides(x_rows, count, images, size)
    g_pitch, g_image = _weight_strides(rows, 2 * columns, images, size)
    products = high - low + 1
    upw, total = _weight_warps(kh, products, columns)
    warps = min(total, ceil(kh / upw))
    alone = products > MANY or (total == 16 and (kh > 8 or products > 7))  # on its multiprocessor
    return {
        "KH": kh, "KW": kw, "PY": py, "PX": px, "NI": images, "IM": im,
        "QA": columns, "QF": first, "QN": count, "MLO": low, "MHI": high, "TILE_ROWS": rows, "X_ROWS": x_rows,
        "X_PITCH": x_pitch, "X_IMAGE": x_image, "G_PITCH": g_pitch, "G_IMAGE": g_image,
        "BUFFERS": 1,
        "UB": upw * warps, "UPW": upw, "WARPS_U": warps, "SLICES": total // warps, "HALVES": int(im > 1 and alone),
        "MIN_BLOCKS": 1 if alone else 2,
    }  # fmt: skip


def _weight_arguments(p: Problem, chunk: int) -> tuple[str | int, ...]:
    return ("x", "dy", "partial", p.batch, p.channels, chunk, p.height, p.width, *p.output)


def weight_launch(p: Problem, chunk: int, target: Target) -> Launch | None:
    """The weight gradient's first phase, partial sums of `chunk` images each; None if no tile fits shared memory."""
    most = 1 << (min(p.batch, chunk) - 1).bit_length()
    small = max(p.height, p.width) <= ALONE  # constants where registers are short
    sizes = (p.height, p.width, *p.output) if small else (0, 0, 0, 0)
    own = dict(zip(("HEIGHT", "WIDTH", "OUT_HEIGHT", "OUT_WIDTH"), sizes, strict=True))
    own |= {"X_VECTOR": _vector(p.width * p.dtype.itemsize), "G_VECTOR": _vector(p.output[1] * p.dtype.itemsize)}
    classed = _classed(p)
    rows = classed.output[0]
    while True:
        for images in (16, 8, 4, 2, 1):
            if images > min(most, _pairs(p)):
                continue
            c = weight_layout(classed, images, rows) | own
            warps = c["WARPS_U"] * c["SLICES"]
            buffer, sums = images * (c["X_IMAGE"] + c["G_IMAGE"]), warps * (128 + c["UPW"] * c["KW"]) * 4
            shared = max(buffer, sums)
            if target.blocks_with(shared) >= 2 or (images == 1 and shared <= target.shared):
                if (
                    c["MIN_BLOCKS"] == 1 and 2 * buffer <= target.shared
                ):  # alone on the multiprocessor: load while computing
                    c["BUFFERS"], shared = 2, max(2 * buffer, sums)
                return Launch("toeplitz_weight.cu", tuple(c.items()), _element(p),
                              (p.channels, ceil(p.batch / chunk), ceil(p.kernel[0] / c["UB"])), 32 * warps, shared,
                              _weight_arguments(p, chunk))  # fmt: skip
        if rows == 1:
            return None
        rows = ceil(rows / 2)


def last_weight_layout(p: Problem, images: int, x_rows: int, resident: int) -> dict[str, int]:
    """The constants of toeplitz_weight_last.cu but G_ROWS: images a step, rows of x a tile, blocks at a time."""
    (oh, ow), (kh, kw), (py, px) = p.output, p.kernel, p.padding
    e = BLOCK // p.dtype.itemsize  # columns of a block of x, and channels
    blocks = ceil(p.width / e)
    columns = ceil(blocks / ceil(blocks / 8))  # blocks of a tile, at most 8, tiles alike
    low, high = 8 // e * (1 - ceil(kw / 8)), columns - 1  # d = s/e − 8/e · v/8
    if columns == blocks:  # not tiled: blocks that meet no column of dy are zeros
        low, high = max(low, -((px + e - 1) // e)), min(high, (ow + 6 - px) // e)
    v_tiles, u_blocks = ceil(kw / 16), ceil(kh / 8)
    warps = ceil(u_blocks / (16 // v_tiles))  # of a channel, with at most 64 accumulators
    upw = ceil(u_blocks / warps)
    light = upw * v_tiles <= (1 if p.tf32 else 4)  # twice the warps have registers enough
    most = min(WARPS, (2 * WARPS if light else WARPS) // resident)
    return {
        "KH": kh, "KW": kw, "PY": py, "PX": px, "NI": images, "CHANNELS": e,
        "X_ROWS": x_rows, "BETWEEN": BETWEEN, "QN": columns, "PITCH": 16 * (columns | 1),
        "I_ROWS": min(oh, x_rows + kh - 1), "G_PITCH": 16 * (high - low + 1 + ceil(7 / e)), "LEFT": 7 - px - e * low,
        "DLO": low, "DHI": high, "UPW": upw, "WARPS_U": warps, "SLICES": max(1, most // (e * warps)),
        "MIN_BLOCKS": resident,
    }  # fmt: skip


def last_weight_rows(c: dict[str, int], rows: int) -> dict[str, int]:
    """The constants `c` with `rows` rows of dy at a time; in 16 bits their second copy starts 16 banks away."""
    copy = up(rows * c["G_PITCH"], 128) + 64 if c["CHANNELS"] == 8 else 0
    return c | {"G_ROWS": rows, "G_COPY": copy, "G_SLOT": copy + rows * c["G_PITCH"]}


def last_weight_shared(c: dict[str, int]) -> int:
    """Bytes of shared memory: planes of x, zeros, planes of dy; in the end, the sums of all slices but the first."""
    sums = (c["SLICES"] - 1) * c["WARPS_U"] * c["UPW"] * ceil(c["KW"] / 16) * 4 * 128
    planes = c["NI"] * (c["X_ROWS"] + BETWEEN) * c["PITCH"] + c["G_SLOT"]
    return max(c["CHANNELS"] * planes + BETWEEN * c["PITCH"], c["CHANNELS"] * sums)


def _last_weight_layouts(p: Problem, chunk: int, target: Target) -> Iterator[dict[str, int]]:
    """Constants worth trying, the best first: whole planes of x, more blocks at a time, more images a step."""
    most = min(p.batch, chunk)
    rows = {ceil(p.height / 2**k) for k in range(p.height.bit_length() + 1)}
    steps = {ceil(most / k) for k in range(1, most + 1)}
    for x_rows, blocks, images in product(sorted(rows, reverse=True), (2, 1), sorted(steps, reverse=True)):
        c = last_weight_layout(p, images, x_rows, blocks)
        planes = c["CHANNELS"] * images * (x_rows + BETWEEN) * c["PITCH"]
        limit = target.half if blocks == 2 else target.shared
        if blocks * c["CHANNELS"] * c["WARPS_U"] > WARPS or (images > 1 and x_rows < p.height):
            continue  # too many registers; a tile is of one image
        if planes > (limit // 2 if images > 1 else limit):
            continue  # rather fewer images and more rows of dy at a time
        staged = images * c["I_ROWS"]
        for passes in range(1, staged + 1):
            c = last_weight_rows(c, ceil(staged / passes))
            if last_weight_shared(c) <= limit and c["G_ROWS"] >= min(staged, 4):
                yield c
                break


def last_weight_chunk(p: Problem, most: int) -> int:
    """Images a block: `most`, or fewer where two blocks of 16 bytes a pixel a multiprocessor of an H100 are not there.

    A chunk's maps remain three times what its sums cost, which are written and read.
    """
    chunk, (oh, ow) = most, p.output
    maps, sums = p.dtype.itemsize * (p.height * p.width + oh * ow), 2 * 4 * p.kernel[0] * p.kernel[1]
    blocks = p.channels // p.block_channels
    while blocks * ceil(p.batch / chunk) < 256 and chunk // 2 * maps >= 3 * sums:
        chunk //= 2
    return chunk


def last_weight_launch(p: Problem, chunk: int, target: Target) -> Launch | None:
    """The weight gradient's first phase in channels_last; None for filters as large as 64×64."""
    c = next(_last_weight_layouts(_classed(p), chunk, target), None)
    if c is None:
        return None
    return Launch("toeplitz_weight_last.cu", tuple(c.items()), _element(p),
                  (p.channels // c["CHANNELS"], ceil(p.batch / chunk), 1),
                  32 * c["CHANNELS"] * c["WARPS_U"] * c["SLICES"],
                  last_weight_shared(c), _weight_arguments(p, chunk))  # fmt: skip
