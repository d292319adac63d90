"""The kernels on the emulator: right in every dtype, without a fault, each byte read and written once."""

import dataclasses
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from native import aten, depthwise_conv2d, emulator, gpu_plans, layout
from native.accuracy import NUMBERS, Case, compare, tf32_allowed
from native.check import CASES
from native.layers import taps_on_pixels
from native.report import Variant, issued_over_useful, target, variants

pytestmark = pytest.mark.skipif(emulator.why_not_here() is not None, reason="not Linux, or no C++ compiler")

# One dtype a case: together they take every kernel, every copy width, every way to store. The rest is `slow`.
SAMPLE = [
    (Case((16, 16), (31, 31), batch=16), "float16"),
    (Case((20, 70), (4, 9), padding=(0, 7)), "bfloat16"),
    (Case((14, 28), (51, 5)), "float16"),
    (Case((7, 7), (13, 13), batch=17), "bfloat16"),
    (Case((9, 13), (3, 3)), "float32"),
    (Case((33, 21), (7, 7), stride=(2, 2)), "float16"),
    (Case((19, 18), (3, 5), stride=(2, 1), dilation=(1, 3), bias=False), "float32"),
    (Case((16, 16), (31, 31), batch=9), "tf32"),
    (Case((20, 70), (4, 9), padding=(0, 7)), "tf32"),
    (Case((14, 14), (13, 13), batch=5, channels=16, last=True), "float16"),
    (Case((9, 21), (4, 9), channels=24, padding=(0, 7), bias=False, last=True), "bfloat16"),
    (Case((9, 70), (51, 35), batch=1, channels=8, last=True), "float16"),
    (Case((12, 12), (5, 5), channels=12, last=True), "float16"),  # no eights: by way of planes
    (Case((14, 14), (13, 13), batch=5, channels=8, last=True), "tf32"),
    (Case((9, 21), (4, 9), channels=12, padding=(0, 7), bias=False, last=True), "tf32"),
    (Case((33, 70), (5, 7), batch=1, channels=8, last=True), "float16"),  # sizes within their class
    (Case((14, 14), (13, 13), batch=5, channels=8, last=True), "float32"),
    (Case((20, 17), (4, 9), stride=(2, 1), channels=12, padding=(0, 7), bias=False, last=True), "float32"),
    (Case((33, 21), (7, 7), stride=(2, 2), channels=8, last=True), "float16"),
    (Case((19, 18), (3, 5), dilation=(1, 3), channels=16, last=True), "bfloat16"),
    (Case((35, 41), (7, 7), batch=1), "float16"),
    (Case((9, 60), (5, 127), batch=1, channels=1), "float16"),
    (Case((20, 12), (101, 101), batch=1, channels=1), "float32"),  # more kernel rows than a block has threads for
]


@pytest.mark.parametrize(("case", "number"), SAMPLE, ids=lambda v: str(v))
def test_error_is_at_most_twice_torchs(case, number):
    for result in compare("emulated", case, number, "cpu"):
        assert result.holds, result


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_in_every_dtype(case, number):
    test_error_is_at_most_twice_torchs(case, number)


LARGE = [
    Case((64, 64), (101, 101), batch=1, channels=1),
    Case((110, 104), (101, 101), batch=1, channels=1, padding=(0, 0)),
    Case((12, 12), (101, 101), batch=1, channels=8, last=True),
    Case((30, 30), (127, 127), batch=1, channels=1),
    Case((33, 34), (65, 5), batch=1),  # of one channel, oneDNN's weight gradient crashes
    Case((40, 9), (127, 1), batch=1, channels=1),
    Case((14, 90), (21, 127), batch=1),
    Case((4, 130), (3, 127), batch=1, padding=(1, 1)),
]


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_the_largest_filters_in_every_dtype(case, number):
    test_error_is_at_most_twice_torchs(case, number)


@st.composite
def cases(draw):
    kernel = draw(st.tuples(st.integers(1, 51), st.integers(1, 51)) | st.integers(1, 51).map(lambda k: (k, k)))
    # Half of the cases are the tensor cores': neither stride nor dilation.
    plain, ones = draw(st.booleans()), (1, 1)
    stride, dilation = (ones if plain else draw(st.tuples(st.integers(1, m), st.integers(1, m))) for m in (2, 3))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(draw(st.integers(max(1, r), max(70, r))) for r in reach)
    last = draw(st.booleans())
    channels = draw(st.sampled_from([8, 16, 24]) if last else st.integers(1, 3))
    batch = draw(st.integers(1, 9 if last else 33))
    return Case(size, kernel, batch, channels, stride, padding, dilation, draw(st.booleans()), last)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases(), st.sampled_from([*NUMBERS]))
def test_any_geometry(case, number):
    test_error_is_at_most_twice_torchs(case, number)


def operands(number, n, size, kernel):
    dtype = NUMBERS[number]
    x, grad = (torch.randn(n, 2, size, size).to(dtype) for _ in range(2))
    return x, torch.randn(2, 1, kernel, kernel).to(dtype), grad, ((1, 1), (kernel // 2,) * 2, (1, 1))


@pytest.mark.parametrize(
    ("size", "number"),
    [(64, "float32"), (28, "float16"), (14, "float16"), (7, "float16"), (28, "tf32"), (7, "tf32")],
)
def test_global_memory_is_read_and_written_once(size, number):
    x, w, grad, geometry = operands(number, 2, size, 5)
    with tf32_allowed(number == "tf32"):
        _, forward = emulator.forward(x, w, None, *geometry)
        _, backward = emulator.grad_input(grad, w, x.shape, *geometry)
        _, weight = emulator.grad_weight(grad, x, (5, 5), *geometry)
        blocks = gpu_plans.forward(gpu_plans.problem(x.shape, x.dtype, (5, 5), *geometry), False).launches[0].grid[1]
    for report in (forward, backward):
        assert report.read_bytes == x.nbytes + w.nbytes * blocks  # each block of images reads its filters
        assert report.written_bytes == x.nbytes
    workspace = w.numel() * 4
    assert weight.read_bytes == x.nbytes + grad.nbytes + workspace
    assert weight.written_bytes == w.nbytes + workspace


def channels_last(*tensors):
    return [t.contiguous(memory_format=torch.channels_last) for t in tensors]


@pytest.mark.parametrize(("n", "size", "kernel"), [(2, 14, 13), (3, 7, 5)])
@pytest.mark.parametrize("number", ["float16", "tf32", "float32"])
def test_channels_last_moves_no_byte_twice_and_stays(n, size, kernel, number):
    x, grad = channels_last(*(torch.randn(n, 16, size, size).to(NUMBERS[number]) for _ in "xg"))
    w = torch.randn(16, 1, kernel, kernel).to(x.dtype)
    geometry = ((1, 1), (kernel // 2,) * 2, (1, 1))
    with tf32_allowed(number == "tf32"):
        p = gpu_plans.in_layout("forward", gpu_plans.problem(x.shape, x.dtype, (kernel, kernel), *geometry), True)
        both = emulator.forward(x, w, None, *geometry), emulator.grad_input(grad, w, x.shape, *geometry)
        _, report = emulator.grad_weight(grad, x, (kernel, kernel), *geometry)
    plan = gpu_plans.grad_weight(gpu_plans.in_layout("grad_weight", p, True))
    assert report.faults == ()
    assert report.read_bytes == x.nbytes + grad.nbytes + plan.workspace * 4
    assert report.written_bytes == w.nbytes + plan.workspace * 4
    blocks = gpu_plans.forward(p, False).launches[0].grid[1]
    for y, report in both:
        assert layout.is_last(y)
        assert report.faults == ()
        assert report.read_bytes == x.nbytes + w.nbytes * blocks
        assert report.written_bytes == x.nbytes


STAGING = re.compile(r"low_halves|high_halves|round_to_tf32|load_shared<u32>\(at|park_row|store_shared\(at")


@pytest.mark.parametrize(("n", "size", "kernel"), [(2, 28, 29), (4, 14, 13), (17, 7, 13)])
@pytest.mark.parametrize("number", ["float16", "tf32"])
def test_channels_last_has_no_bank_conflict_but_the_filters(n, size, kernel, number):
    (x,) = channels_last(torch.randn(n, 8, size, size).to(NUMBERS[number]))
    w = torch.randn(8, 1, kernel, kernel).to(x.dtype)
    with tf32_allowed(number == "tf32"):
        y, report = emulator.forward(x, w, None, (1, 1), (kernel // 2,) * 2, (1, 1))
    assert y.isfinite().all()
    seen = set()
    for source, line, _, conflicts in report.lines:
        text = (emulator.KERNELS / source).read_text().splitlines()[line - 1]
        if found := HOT.search(text) or STAGING.search(text):
            assert conflicts == 0, (source, line)
            seen.add(found[0])
    halves = {"low_halves", "high_halves"} if number == "float16" else {"round_to_tf32"}
    assert {*halves, "store_shared(at", "load_matrices"} <= seen


@pytest.mark.parametrize(("function", "last"), [(f, last) for f in gpu_plans.PLANS for last in (False, True)])
def test_maps_of_a_size_class_share_a_kernel(function, last):
    """A detector's pictures come in every size; kernels are compiled for classes of them."""
    kernels = set()
    for height, width in ((97, 90), (98, 92), (104, 96)):
        p = gpu_plans.problem((1, 16, height, width), torch.float16, (13, 13), (1, 1), (6, 6), (1, 1))
        p = gpu_plans.in_layout(function, p, last)
        assert p.last == last
        step, *_ = gpu_plans.plan(function, p, False).launches
        kernels.add((step.constants, step.shared))
    assert len({shared for _, shared in kernels}) == 1
    alike = {tuple(c for c in constants if not c[0].endswith(("VECTOR", "STORE"))) for constants, _ in kernels}
    assert len(alike) == 1
    assert len(kernels) == (1 if last else 3)  # rows of planes are aligned to 4, 8 or 16 bytes


@pytest.mark.parametrize(("n", "size", "kernel"), [(2, 28, 29), (4, 14, 13), (17, 7, 13), (1, 24, 50)])
@pytest.mark.parametrize("number", ["float16", "tf32"])
def test_the_weight_gradient_in_channels_last_has_no_bank_conflict(n, size, kernel, number):
    maps = (torch.randn(n, 8, s, s).to(NUMBERS[number]) for s in (size, size + kernel % 2 - 1))
    x, grad = channels_last(*maps)
    with tf32_allowed(number == "tf32"):
        dw, report = emulator.grad_weight(grad, x, (kernel, kernel), (1, 1), ((kernel - 1) // 2,) * 2, (1, 1))
    assert dw.isfinite().all()
    assert {source for source, *_ in report.lines} == {"toeplitz_weight_last.cu"}
    assert report.shared_conflicts == 0


def test_the_weight_gradient_takes_two_layouts():
    x, grad = (torch.randn(2, 8, 9, 10).half() for _ in "xg")
    geometry = ((1, 1), (2, 2), (1, 1))
    runs = [
        emulator.grad_weight(g, m, (5, 5), *geometry)
        for m, g in ((x, *channels_last(grad)), (*channels_last(x), grad), channels_last(x, grad))
    ]
    assert [report.lines[0][0] for _, report in runs] == ["toeplitz_weight.cu", *["toeplitz_weight_last.cu"] * 2]
    assert torch.equal(runs[1][0], runs[2][0])
    assert torch.allclose(runs[0][0], runs[1][0], rtol=1e-2, atol=1e-2)


def test_filters_beyond_all_kernels_have_a_layout_too():
    """The frequency domain takes them, and asks in which layout ours would be."""
    p = gpu_plans.problem((2, 8, 320, 320), torch.float16, (257, 257), (1, 1), (128, 128), (1, 1))
    assert not any(gpu_plans.in_layout(function, p, True).last for function in gpu_plans.PLANS)


def test_what_no_kernel_of_channels_last_takes_goes_through_planes():
    p = gpu_plans.problem((2, 16, 14, 14), torch.float16, (13, 13), (1, 1), (6, 6), (1, 1))
    assert gpu_plans.in_layout("forward", p, True).last
    assert gpu_plans.in_layout("grad_input", p, True).last
    assert not gpu_plans.in_layout("forward", p, False).last
    assert gpu_plans.in_layout("grad_weight", p, True).last
    for function in gpu_plans.PLANS:
        assert not gpu_plans.in_layout(function, dataclasses.replace(p, channels=12), True).last
        for change in ({"dtype": torch.float32, "channels": 12}, {"stride": (2, 2)}, {"dilation": (2, 2)}):
            assert gpu_plans.in_layout(function, dataclasses.replace(p, **change), True).last
    strict = dataclasses.replace(p, dtype=torch.float32, kernel=(31, 31), padding=(15, 15), height=64, width=64)
    assert gpu_plans.in_layout("forward", strict, True).last
    assert not gpu_plans.in_layout("forward", strict, True, target(75)).last  # too few threads would be at work
    wider = dataclasses.replace(p, kernel=(31, 31), padding=(15, 15), height=56, width=56)
    assert not gpu_plans.in_layout("forward", wider, True, target(75)).last
    alone = gpu_plans.in_layout("grad_weight", wider, True, target(75))
    assert alone.last  # of the three functions
    assert gpu_plans.why_no_plan(alone, target(75)) is None
    wide = dataclasses.replace(p, height=4096, width=4096, kernel=(51, 51), padding=(25, 25), batch=1)
    assert gpu_plans.why_no_plan(wide) is None or not gpu_plans.in_layout("forward", wide, True).last


HOT = re.compile(r"load_matrices|load_shared<(u32|uint2|float4)>")  # what the loops read


@pytest.mark.parametrize(
    ("number", "n", "size", "kernel", "last"),
    [
        ("float16", 3, 28, 29, False),
        ("tf32", 2, 56, 7, False),
        *(("float32", *shape, last) for shape in ((2, 32, 31), (8, 14, 13)) for last in (False, True)),
    ],
)
def test_hot_loops_have_no_bank_conflicts(number, n, size, kernel, last):
    x, w, grad, geometry = operands(number, n, size, kernel)
    if last:
        x, w, grad = x.repeat(1, 2, 1, 1), w.repeat(2, 1, 1, 1), grad.repeat(1, 2, 1, 1)
        x, grad = channels_last(x, grad)
    with tf32_allowed(number == "tf32"):
        runs = (emulator.forward(x, w, None, *geometry), emulator.grad_weight(grad, x, (kernel, kernel), *geometry))
    for result, report in runs:
        assert result.isfinite().all()
        hot = 0
        for source, line, wavefronts, conflicts in report.lines:
            if HOT.search((emulator.KERNELS / source).read_text().splitlines()[line - 1]):
                assert conflicts == 0, (source, line)
                hot += wavefronts
        # What is left is the planes', the filter's and the sums' staging, outside the loops.
        assert hot > 0
        assert report.shared_conflicts < 0.1 * report.shared_wavefronts


@pytest.mark.parametrize("number", ["float16", "tf32"])
@pytest.mark.parametrize(("function", "bounds"), [("forward", (1.0, 1.2, 1.3)), ("grad_weight", (1.0, 1.4, 1.5))])
def test_few_multiply_adds_are_wasted_at_31(function, bounds, number):
    for capability in (80, 90):
        ratios = {v.name: issued_over_useful(v) for v in variants(capability, (number,))}
        for size, bound in zip((16, 32, 64), bounds, strict=True):
            assert 0.999 <= ratios[f"{function}-{size}x{size}-k31"] <= bound, (capability, size)


@pytest.mark.parametrize(("number", "n", "size", "kernel"), [("tf32", 16, 16, 7), ("float16", 4, 64, 31)])
def test_counted_multiply_adds_are_those_of_the_formula(number, n, size, kernel):
    x, w, grad, geometry = operands(number, n, size, kernel)
    with tf32_allowed(number == "tf32"):
        p = gpu_plans.problem(x.shape, x.dtype, (kernel, kernel), *geometry)
        reports = (emulator.forward(x, w, None, *geometry)[1], emulator.grad_weight(grad, x, p.kernel, *geometry)[1])
    useful = n * 2 * taps_on_pixels(size, kernel) ** 2
    for report, plan in zip(reports, (gpu_plans.forward(p, False), gpu_plans.grad_weight(p)), strict=True):
        assert report.mma / useful == pytest.approx(issued_over_useful(Variant("", p, plan.launches[0])))


@pytest.mark.parametrize("number", ["float16", "tf32"])
def test_counted_multiply_adds_in_channels_last_are_those_of_the_formula(number):
    for n, size, kernel in ((2, 14, 27), (1, 40, 21)):
        x, grad = channels_last(*(torch.randn(n, 8, size, size).to(NUMBERS[number]) for _ in "xg"))
        geometry = ((1, 1), (kernel // 2,) * 2, (1, 1))
        with tf32_allowed(number == "tf32"):
            p = gpu_plans.problem(x.shape, x.dtype, (kernel,) * 2, *geometry)
            p = gpu_plans.in_layout("grad_weight", p, True)
            _, report = emulator.grad_weight(grad, x, p.kernel, *geometry)
        ratio = issued_over_useful(Variant("", p, gpu_plans.grad_weight(p).launches[0]))
        assert report.mma / (n * 8 * taps_on_pixels(size, kernel) ** 2) == pytest.approx(ratio)


def test_chunks_in_channels_last_are_smaller_only_where_blocks_are_few():
    p = gpu_plans.problem((64, 128, 56, 56), torch.float16, (31, 31), (1, 1), (15, 15), (1, 1))
    for change, blocks in (
        ({}, 16 * 16),
        ({"channels": 1024}, 128 * 4),
        ({"height": 7, "width": 7, "kernel": (13, 13), "padding": (6, 6)}, 16 * 4),  # sums as large as the maps
    ):
        plan = gpu_plans.grad_weight(dataclasses.replace(p, last=True, **change))
        assert plan.launches[0].grid[0] * plan.launches[0].grid[1] == blocks


@pytest.mark.parametrize(
    ("number", "last"), [(number, last) for number in ("float16", "tf32", "float32") for last in (False, True)]
)
def test_weight_gradient_is_the_sum_of_fixed_chunks(number, last):
    x, _, grad, geometry = operands(number, 18, 8, 3)
    if last:
        x, grad = channels_last(*(t.repeat(1, 4, 1, 1) for t in (x, grad)))
    with tf32_allowed(number == "tf32"):
        first, _ = emulator.grad_weight(grad, x, (3, 3), *geometry)
        again, _ = emulator.grad_weight(grad, x, (3, 3), *geometry)
    assert torch.equal(first, again)


def test_tf32_is_used_only_where_torch_allows_it():
    x, w, _, geometry = operands("float32", 1, 8, 3)
    geometry_of = (x.shape, torch.float32, (3, 3), *geometry)
    for allowed, entry in ((False, "direct_forward"), (True, "toeplitz_forward")):
        with tf32_allowed(allowed):
            p = gpu_plans.problem(*geometry_of)
            y = depthwise_conv2d(x, w, backend="emulated")
        assert p.tf32 == allowed
        assert gpu_plans.forward(p, False).launches[0].entry == entry
        assert gpu_plans.forward(p, False, gpu_plans.Target(75, 64 * 1024)).launches[0].entry == "direct_forward"
        exact = torch.nn.functional.conv2d(x.double(), w.double(), None, 1, 1, 1, 2)
        error = float((y.double() - exact).norm() / exact.norm())
        assert (1e-5 < error < 1e-3) if allowed else error < 1e-6
    # torch's default: tf32 for convolutions, not for matrix products.
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    assert before[0] == "tf32"
    assert not gpu_plans.problem(*geometry_of).tf32


@pytest.mark.parametrize(("number", "columns", "rows"), [("float16", 14, 0), ("tf32", 10, 0), ("float32", 0, 3)])
def test_a_nan_reaches_little_further_than_the_filter(number, columns, rows):
    dtype, width, kernel, pad = NUMBERS[number], 70, 9, 7
    for r, s in ((0, 0), (5, 17), (11, width - 1), (8, 24)):
        x, w = torch.ones(2, 2, 12, width, dtype=dtype), torch.ones(2, 1, kernel, kernel, dtype=dtype)
        x[1, 0, r, s] = torch.nan
        with tf32_allowed(number == "tf32"):
            y = depthwise_conv2d(x, w, padding=pad, backend="emulated")
        sees = torch.zeros_like(y, dtype=torch.bool)
        first, left = r + pad - kernel + 1, s + pad - kernel + 1  # the outputs whose filter lies over the pixel
        sees[1, 0, max(0, first) : r + pad + 1, max(0, left) : s + pad + 1] = True
        assert y[sees].isnan().all()
        sees[1, 0, max(0, first - rows) : r + pad + rows + 1, max(0, left - columns) : s + pad + columns + 1] = True
        assert y[~sees].isfinite().all()


ELSEWHERE = [(75, "float16"), (75, "float32"), (80, "tf32")]  # tiles that an H100 would not get


@pytest.mark.parametrize(("capability", "number"), ELSEWHERE)
def test_the_tiles_of_smaller_gpus_are_right(capability, number):
    x, w, grad, geometry = operands(number, 4, 64, 31)
    p = dataclasses.replace(gpu_plans.problem(x.shape, x.dtype, (31, 31), *geometry), tf32=number == "tf32")
    y, dw = (torch.full_like(t, torch.nan) for t in (x, w))
    here, elsewhere = (
        (gpu_plans.forward(p, False, t), gpu_plans.grad_weight(p, t)) for t in (target(capability), target(90))
    )
    assert here[0] != elsewhere[0]
    tensors = {"x": x, "w": w, "y": y}, {"x": x, "dy": grad, "dw": dw}
    exact = (
        aten.forward(x.double(), w.double(), None, *geometry),
        aten.grad_weight(grad.double(), x.double(), p.kernel, *geometry),
    )
    for result, plan, named, right in zip((y, dw), here, tensors, exact, strict=True):
        assert emulator.run(plan, named).faults == ()
        error = float((result.double() - right).norm() / right.norm())
        assert error < {"float16": 4e-4, "tf32": 5e-4, "float32": 1e-6}[number]


def test_the_tiles_of_smaller_gpus_are_right_in_channels_last():
    n, c, size, kernel = 1, 8, 64, 31
    x, grad = channels_last(*(torch.randn(n, c, size, size).half() for _ in "xg"))
    geometry = ((1, 1), (kernel // 2,) * 2, (1, 1))
    p = gpu_plans.in_layout("grad_weight", gpu_plans.problem(x.shape, x.dtype, (kernel,) * 2, *geometry), True)
    here, elsewhere = (gpu_plans.grad_weight(p, target(capability)) for capability in (75, 90))
    assert [dict(plan.launches[0].constants)["X_ROWS"] for plan in (here, elsewhere)] == [32, 64]
    dw = torch.full((c, 1, kernel, kernel), torch.nan).half()
    assert emulator.run(here, {"x": x, "dy": grad, "dw": dw}).faults == ()
    right = aten.grad_weight(grad.double(), x.double(), p.kernel, *geometry)
    assert float((dw.double() - right).norm() / right.norm()) < 4e-4


def test_a_filter_that_leaves_little_shared_memory_has_tiles_of_few_rows():
    """101 by 101 in fp16 on a Turing, whose multiply-add kernel could not hold both."""
    x, w, _, geometry = operands("float16", 1, 24, 101)
    x, w = x[:, :1], w[:1]
    p, y = gpu_plans.problem(x.shape, x.dtype, (101, 101), *geometry), torch.full_like(x, torch.nan)
    plan = gpu_plans.forward(p, False, target(75))
    assert plan.launches[0].entry == "toeplitz_forward"
    assert emulator.run(plan, {"x": x, "w": w, "y": y}).faults == ()
    exact = aten.forward(x.double(), w.double(), None, *geometry)
    assert float((y.double() - exact).norm() / exact.norm()) < 4e-4


def test_a_misaligned_or_strided_input_is_taken():
    x = torch.randn(1, 2, 9, 18).half()[:, :, :, 1::2].requires_grad_(False)
    w = torch.randn(2 * 9 + 1).half()[1:].reshape(2, 1, 3, 3)
    y, report = emulator.forward(x, w, None, (1, 1), (1, 1), (1, 1))
    expected = torch.nn.functional.conv2d(x.double(), w.double(), None, 1, 1, 1, 2)
    assert report.faults == ()
    assert torch.allclose(y.double(), expected, atol=1e-2)


def test_a_network_trains_a_step_as_through_torch():
    def step(backend):
        torch.manual_seed(0)
        x = torch.randn(2, 3, 12, 12)
        stem, w1, w2, head = (
            torch.nn.Parameter(torch.randn(s) * 0.2) for s in ((8, 3, 3, 3), (8, 1, 13, 13), (8, 1, 5, 5), (5, 8))
        )
        h = torch.nn.functional.conv2d(x, stem, padding=1)
        h = h + torch.relu(depthwise_conv2d(h, w1, backend=backend) + depthwise_conv2d(h, w2, backend=backend))
        loss = torch.nn.functional.cross_entropy(h.mean((2, 3)) @ head.T, torch.tensor([1, 3]))
        loss.backward()
        return loss, [p.grad for p in (stem, w1, w2, head)]

    (ours, ours_grads), (theirs, their_grads) = step("emulated"), step("torch")
    assert torch.allclose(ours, theirs, rtol=1e-5)
    for a, b in zip(ours_grads, their_grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
