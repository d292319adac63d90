"""The kernels on the emulator: right in every dtype, without a fault, each byte read and written once."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from native import depthwise_conv2d, emulator, plans
from native.check import CASES, Case, compare
from native.report import Variant, issued_over_useful, variants

pytestmark = pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler on this machine")

# One dtype a case: together they take every kernel, every copy width, every way to store. The rest is `slow`.
SAMPLE = [
    (Case((16, 16), (31, 31), batch=16), torch.float16),
    (Case((20, 70), (4, 9), padding=(0, 7)), torch.bfloat16),
    (Case((14, 28), (51, 5)), torch.float16),
    (Case((7, 7), (13, 13), batch=17), torch.bfloat16),
    (Case((9, 13), (3, 3)), torch.float32),
    (Case((33, 21), (7, 7), stride=(2, 2)), torch.float16),
    (Case((19, 18), (3, 5), stride=(2, 1), dilation=(1, 3), bias=False), torch.float32),
]


@pytest.mark.parametrize(("case", "dtype"), SAMPLE, ids=lambda v: str(v))
def test_error_is_at_most_twice_torchs(case, dtype):
    for result in compare("emulated", case, dtype, "cpu"):
        assert result.holds, result


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_in_every_dtype(case, dtype):
    test_error_is_at_most_twice_torchs(case, dtype)


@st.composite
def cases(draw):
    kernel = draw(st.tuples(st.integers(1, 51), st.integers(1, 51)) | st.integers(1, 51).map(lambda k: (k, k)))
    stride, dilation = (draw(st.tuples(st.integers(1, m), st.integers(1, m))) for m in (2, 3))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(draw(st.integers(max(1, r), max(70, r))) for r in reach)
    return Case(
        size, kernel, draw(st.integers(1, 33)), draw(st.integers(1, 3)), stride, padding, dilation, draw(st.booleans())
    )


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_any_geometry(case, dtype):
    test_error_is_at_most_twice_torchs(case, dtype)


def operands(dtype, n, size, kernel):
    x, grad = (torch.randn(n, 2, size, size).to(dtype) for _ in range(2))
    return x, torch.randn(2, 1, kernel, kernel).to(dtype), grad, ((1, 1), (kernel // 2,) * 2, (1, 1))


@pytest.mark.parametrize(
    ("size", "dtype"), [(64, torch.float32), (28, torch.float16), (14, torch.float16), (7, torch.float16)]
)
def test_global_memory_is_read_and_written_once(size, dtype):
    x, w, grad, geometry = operands(dtype, 2, size, 5)
    _, forward = emulator.forward(x, w, None, *geometry)
    _, backward = emulator.grad_input(grad, w, x.shape, *geometry)
    blocks = plans.forward(plans.problem(x.shape, dtype, (5, 5), *geometry), False).launches[0].grid[1]
    for report in (forward, backward):
        assert report.read_bytes == x.nbytes + w.nbytes * blocks  # each block of images reads its filters
        assert report.written_bytes == x.nbytes
    _, weight = emulator.grad_weight(grad, x, (5, 5), *geometry)
    workspace = w.numel() * 4
    assert weight.read_bytes == x.nbytes + grad.nbytes + workspace
    assert weight.written_bytes == w.nbytes + workspace


def test_hot_loops_have_no_bank_conflicts():
    x, w, grad, geometry = operands(torch.float16, 8, 32, 13)
    for result, report in (emulator.forward(x, w, None, *geometry), emulator.grad_weight(grad, x, (13, 13), *geometry)):
        assert result.isfinite().all()
        # What is left is the filter's and the sums' staging, outside the loops.
        assert report.shared_conflicts < 0.05 * report.shared_wavefronts


@pytest.mark.parametrize("function", ["forward", "grad_weight"])
@pytest.mark.parametrize(("size", "bound"), [(16, 1.0), (32, 1.4), (64, 1.55)])
def test_few_multiply_adds_are_wasted_at_31(function, size, bound):
    ratios = {v.name: issued_over_useful(v) for v in variants(90, (torch.float16,))}
    bound = {"forward": {32: 1.25, 64: 1.3}}.get(function, {}).get(size, bound)
    assert 0.999 <= ratios[f"{function}-{size}x{size}-k31"] <= bound


def test_counted_multiply_adds_are_those_of_the_formula():
    x, w, _, geometry = operands(torch.float16, 16, 16, 7)
    _, report = emulator.forward(x, w, None, *geometry)
    p = plans.problem(x.shape, x.dtype, (7, 7), *geometry)
    launch = plans.forward(p, False).launches[0]
    useful = 16 * 2 * sum(min(15, i + 3) - max(0, i - 3) + 1 for i in range(16)) ** 2
    assert report.mma / useful == pytest.approx(issued_over_useful(Variant("", p, launch)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_weight_gradient_is_the_sum_of_fixed_chunks(dtype):
    x, _, grad, geometry = operands(dtype, 18, 8, 3)
    first, _ = emulator.grad_weight(grad, x, (3, 3), *geometry)
    again, _ = emulator.grad_weight(grad, x, (3, 3), *geometry)
    assert torch.equal(first, again)


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
