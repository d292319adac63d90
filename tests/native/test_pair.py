"""Two filters on one input: the kernel that reads it once, who takes it, and what the op makes of it."""

import contextlib
import dataclasses
import importlib
import itertools
import re

import pytest
import torch

import native
from native import accuracy, aten, bench_pair, emulator, gpu, gpu_auto, gpu_plans, layout, report
from native.geometry import same_padding
from native.layers import STAGES

OPS = torch.ops.replk
ONE = (1, 1)
compiled = pytest.mark.skipif(report.why_not() is not None, reason=report.why_not() or "")
emulated = pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler on this machine")


def operands(number, shape, kernel, small, last=False):
    x, w, v = (
        torch.randn(size).to(accuracy.NUMBERS[number])
        for size in (shape, (shape[1], 1, *kernel), (shape[1], 1, *small))
    )
    return x.contiguous(memory_format=layout.memory_format(last)), w, v


def problem(number="float16", channels=16, size=56, kernel=31):
    p = gpu_plans.problem(
        (64, channels, size, size), accuracy.NUMBERS[number], (kernel,) * 2, ONE, (kernel // 2,) * 2, ONE
    )
    return dataclasses.replace(p, tf32=number == "tf32")


def by_torch(x, w, v):
    return aten.two_calls(aten.forward, x, w, v)


def holds(results, number, x, w, v):
    """Whether both results are at most twice as far from float64 as torch's."""
    exact = by_torch(x.double(), w.double(), v.double())
    rounded = [accuracy.round_to_tf32(t) for t in (x, w, v)] if number == "tf32" else (x, w, v)
    errors = (
        [accuracy.relative_error(each, right) for each, right in zip(pair, exact, strict=True)]
        for pair in (results, by_torch(*rounded))
    )
    return all(ours <= 2 * torchs for ours, torchs in zip(*errors, strict=True))


LOOPS = re.compile(
    r"load_matrices|load_shared<u|low_halves|high_halves|round_to_tf32|park_row|store_shared\(at|to \+ \(BE"
)


@emulated
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("number", ["float16", "bfloat16", "tf32"])
def test_one_kernel_is_right_and_reads_x_once(number, last):
    x, w, v = operands(number, (3, 8 if last else 2, 14, 14), (13, 13), (5, 5), last)
    with accuracy.tf32_allowed(number == "tf32"):
        y, small_y, counts = emulator.forward_pair(x, w, v)
    assert holds((y, small_y), number, x, w, v)
    assert counts.faults == ()
    assert (counts.read_bytes, counts.written_bytes) == (x.nbytes + w.nbytes + v.nbytes, 2 * x.nbytes)
    assert layout.is_last(y) == layout.is_last(small_y) == last
    lines = (emulator.KERNELS / "toeplitz_forward.cu").read_text().splitlines()
    hot = [conflicts for _, line, _, conflicts in counts.lines if LOOPS.search(lines[line - 1])]
    assert len(hot) >= (4 if last else 2)
    assert not any(hot)  # what is left is the staging of filters


@emulated
@pytest.mark.parametrize(
    ("shape", "kernel", "small", "last"),
    [((1, 8, 20, 70), (9, 9), (3, 3), True),  # tiles of columns
     ((17, 8, 7, 7), (13, 13), (3, 3), True),
     ((1, 2, 18, 70), (5, 51), (3, 5), False)],
)  # fmt: skip
def test_tiles_and_rectangles_are_right(shape, kernel, small, last):
    x, w, v = operands("float16", shape, kernel, small, last)
    *results, counts = emulator.forward_pair(x, w, v)
    assert counts.faults == ()
    assert holds(results, "float16", x, w, v)


BARRIERS = ("        block_barrier();\n        convolve<Small>", "N, C);\n        block_barrier();\n    }\n#endif")


@emulated
@pytest.mark.parametrize("text", BARRIERS)
def test_without_a_barrier_the_emulator_finds_fault(text):
    x, w, v = operands("float16", (17, 8, 7, 7), (13, 13), (3, 3), last=True)
    p = gpu_plans.problem(x.shape, x.dtype, (13, 13), ONE, (6, 6), ONE)
    (step,) = gpu_plans.forward(gpu_plans.with_small(p, (3, 3), True), False).launches
    source = (emulator.KERNELS / step.source).read_text()
    assert text in source
    tensors = {"x": x, "w": w, "small_w": v, "small_y": torch.empty_like(x), "y": torch.empty_like(x)}
    mutant = source.replace(text, text.replace("        block_barrier();\n", ""))
    assert emulator.launch(step, tensors, ("small_y", "y"), mutant).faults


def test_a_pair_has_a_plan_where_tensor_cores_and_memory_allow():
    target = report.target(90)
    for number in ("float16", "bfloat16", "tf32"):
        for last in (False, True):
            pair = gpu_plans.with_small(problem(number), (5, 5), last, target)
            assert (pair.last, pair.small) == (last, (5, 5))
            assert gpu_plans.forward(pair, False, target).launches[0].outputs == 2
    assert gpu_plans.with_small(problem("float32"), (5, 5), False, target) is None
    assert gpu_plans.with_small(problem(channels=12), (5, 5), True, target) is None
    for small in ((33, 5), (4, 4)):
        assert gpu_plans.with_small(problem(), small, False, target) is None
    assert gpu_plans.with_small(problem(), (5, 5), True, report.target(75)) is None  # a planar kernel has room there
    assert gpu_plans.with_small(problem(), (5, 5), False, report.target(75)) is not None


def variants(capability, numbers, sizes, layouts):
    """A pair's kernel at stages of RepLKNet-31, where there is one."""
    target = report.target(capability)
    for (size, channels, kernel), number, last in itertools.product(STAGES, numbers, layouts):
        p = problem(number, channels, size, kernel)
        if size in sizes and (pair := gpu_plans.with_small(p, (5, 5), last, target)):
            yield report.Variant("", pair, gpu_plans.forward(pair, False, target).launches[0]), capability


@compiled
@pytest.mark.parametrize("capability", [80, 90])
def test_the_compiler_spills_nothing(capability):
    rows = report.read_all([*variants(capability, ("float16",), (56,), (False, True))])
    assert len(rows) == 2
    assert not any(row["stack"] or row["spills"] for row in rows), rows


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("capability", report.ARCHITECTURES)
def test_the_compiler_spills_nothing_at_any_stage(capability):
    numbers, sizes = ("float16", "bfloat16", "tf32"), [size for size, *_ in STAGES]
    rows = report.read_all([*variants(capability, numbers, sizes, (False, True))])
    assert len(rows) >= len(sizes)  # the smallest GPUs have room for planes alone
    assert not any(row["stack"] or row["spills"] for row in rows), rows


# --- the op ----------------------------------------------------------------------------------------------------------


def gradients(pair, x, w, v):
    leaves = [t.detach().clone().requires_grad_() for t in (x, w, v)]
    y, small_y = pair(*leaves)
    (y.square().sum() + small_y.sin().sum()).backward()
    return [y, small_y, *(leaf.grad for leaf in leaves)]


def test_the_op_and_its_gradients_are_those_of_two_calls():
    x, w, v = operands("float32", (2, 2, 9, 9), (5, 5), (3, 3))
    ours = gradients(lambda *t: native.depthwise_conv2d_pair(*t, backend="reference"), x, w, v)
    theirs = gradients(lambda x, w, v: [native.depthwise_conv2d(x, f, backend="reference") for f in (w, v)], x, w, v)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@emulated
def test_the_op_takes_the_kernel_and_autocasts():
    x, w, v = operands("float32", (2, 8, 9, 9), (5, 5), (3, 3), last=True)
    with torch.autocast("cpu", torch.bfloat16):
        results = native.depthwise_conv2d_pair(x, w, v, backend="emulated")
    assert {(y.dtype, layout.is_last(y)) for y in results} == {(torch.bfloat16, True)}
    assert holds(results, "bfloat16", *(t.bfloat16() for t in (x, w, v)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last):
    x, w, v = (t.requires_grad_() for t in operands("float32", (2, 4, 7, 6), (5, 3), (3, 3), last))
    torch.library.opcheck(OPS.depthwise_conv2d_pair.default, (x, w, v, "reference"))
    assert [y.shape for y in native.depthwise_conv2d_pair(x[:0], w, v, backend="reference")] == [(0, 4, 7, 6)] * 2


def test_on_a_cpu_auto_is_two_calls(monkeypatch):
    monkeypatch.setattr(native.pair, "_pair", None)
    x, w, v = operands("float32", (1, 2, 9, 9), (5, 5), (3, 3))
    ours, theirs = native.depthwise_conv2d_pair(x, w, v), [native.depthwise_conv2d(x, f) for f in (w, v)]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# --- the host's side of a GPU ----------------------------------------------------------------------------------------


@emulated
@pytest.mark.parametrize("last", [False, True])
def test_the_planned_launch_gets_its_tensors(monkeypatch, last):
    """On a GPU whose launches are emulated."""
    run = lambda name, p, tensors: emulator.run(gpu_plans.plan(name, p, "bias" in tensors), tensors)  # noqa: E731
    monkeypatch.setattr(gpu, "_run", run)
    monkeypatch.setattr(gpu, "_target_of", lambda _: gpu_plans.ANY_GPU)
    x, w, v = operands("float16", (3, 8, 14, 14), (13, 13), (5, 5), last)
    results = gpu.forward_pair(x, w, v)
    assert holds(results, "float16", x, w, v)
    assert [layout.is_last(y) for y in results] == [last, last]
    assert gpu.forward_pair(x.double(), w.double(), v.double()) is None


class Ours:
    """`native.gpu` as far as auto asks it, computed by torch; wrong in the second output if `wrong`."""

    CompilationError = gpu.CompilationError

    def __init__(self, wrong):
        self.wrong, self.calls = wrong, 0

    def pair_problem_of(self, x, w, v):
        p = gpu_plans.problem(x.shape, x.dtype, w.shape[2:], ONE, same_padding(w.shape[2:], ONE), ONE)
        return gpu_plans.with_small(p, tuple(v.shape[2:]), False)

    def forward_pair(self, x, w, v):
        self.calls += 1
        y, small_y = by_torch(x, w, v)
        return y, small_y * (2 if self.wrong else 1)

    def target(self, _):
        return gpu_plans.ANY_GPU


@pytest.mark.parametrize(
    ("milliseconds", "wrong", "taken"), [(1, False, True), (3, False, False), (1.99, False, False), (1, True, False)]
)
def test_auto_takes_the_kernel_where_it_is_right_and_clearly_faster(monkeypatch, milliseconds, wrong, taken):
    ours = Ours(wrong)
    two = lambda x, w, *_: aten.forward(x, w, None, ONE, same_padding(w.shape[2:], ONE), ONE)  # noqa: E731
    for name, value in (("gpu", ours), ("forward", two), ("_chosen", {}), ("_folder", lambda _: None)):
        monkeypatch.setattr(gpu_auto, name, value)
    monkeypatch.setattr(gpu_auto, "_milliseconds", lambda call, _=1: milliseconds if call.args[0] is ours else 2)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    x, w, v = operands("float16", (2, 2, 9, 9), (7, 7), (3, 3))
    with pytest.warns(RuntimeWarning, match="forward_pair in float16 is") if wrong else contextlib.nullcontext():
        results = gpu_auto.forward_pair(x, w, v)
    assert all(torch.equal(a, b) for a, b in zip(results, by_torch(x, w, v), strict=True))
    assert list(gpu_auto._chosen.values()) == ["nvrtc" if taken else "torch"]
    before = ours.calls
    gpu_auto.forward_pair(x, w, v)
    assert ours.calls - before == taken
    assert gpu_auto.forward_pair(x.double(), w.double(), v.double()) is None


@pytest.mark.gpu
@pytest.mark.skipif(gpu.why_not() is not None, reason=gpu.why_not() or "")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("number", ["float16", "bfloat16", "tf32"])
def test_on_the_gpu_both_outputs_are_right(number, last):
    for shape, kernel in (((9, 16, 28, 28), 29), ((17, 16, 7, 7), 13), ((2, 16, 20, 70), 31)):
        operands_here = [t.cuda() for t in operands(number, shape, (kernel, kernel), (5, 5), last)]
        with accuracy.tf32_allowed(number == "tf32"):
            for backend in ("nvrtc", "auto"):
                results = native.depthwise_conv2d_pair(*operands_here, backend=backend)
                assert holds([y.cpu() for y in results], number, *(t.cpu() for t in operands_here))


@emulated
def test_the_bench_times_both_ways_in_both_layouts(monkeypatch):
    timed = {}

    def instead(contestants, rounds):
        timed.update({name: calls[0]() for name, calls in contestants.items()})
        return dict.fromkeys(contestants, 1.5)

    monkeypatch.setattr(bench_pair, "gpu", importlib.import_module("native.emulator.backend"))
    monkeypatch.setattr(bench_pair, "interleaved_on_gpu", instead)
    row = bench_pair.bench("float16", (1, 8, 7, 7), 7, 3, rounds=1, device="cpu")
    assert row == dict.fromkeys(bench_pair.WAYS, "1.5000")
    assert [layout.is_last(both[1]) for both in timed.values()] == [False, False, True, True]
    for one, two in (bench_pair.WAYS[:2], bench_pair.WAYS[2:]):
        assert all(torch.allclose(a, b, atol=1e-2) for a, b in zip(timed[one], timed[two], strict=True))
    strict = bench_pair.bench("float32", (1, 4, 7, 7), 7, 3, rounds=1, device="cpu")
    assert [name for name, ms in strict.items() if not ms] == ["one_ms", "one_channels_last_ms"]


def test_without_a_gpu_the_bench_says_so(capsys, monkeypatch):
    monkeypatch.setattr(gpu, "why_not", lambda: "torch sees no NVIDIA GPU here.")
    assert bench_pair.main([]) == 1
    assert capsys.readouterr().out == "torch sees no NVIDIA GPU here.\n"


@pytest.mark.parametrize("used", [0, 1])
def test_of_an_output_that_no_loss_has_seen_there_is_no_gradient(used):
    x, *filters = (each.double().requires_grad_() for each in operands("float32", (2, 3, 9, 9), (7, 7), (3, 3)))
    native.depthwise_conv2d_pair(x, *filters, backend="torch")[used].sum().backward()
    assert filters[1 - used].grad is None
    gx, gw = torch.autograd.grad(by_torch(x, *filters)[used].sum(), (x, filters[used]))
    assert torch.allclose(x.grad, gx)
    assert torch.allclose(filters[used].grad, gw)
