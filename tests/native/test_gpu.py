"""The GPU's host side: what can be said and compiled without one, and, marked gpu, the kernels on one."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import native
from native import accuracy, aten, cache, check, fft, gpu, gpu_auto, gpu_plans, report
from native.layout import is_last

GEOMETRY = ((1, 1), (2, 2), (1, 1))


def problem(dtype=torch.float16, kernel=(5, 5), size=16, dilation=(1, 1), stride=(1, 1)):
    pads = tuple(k // 2 * d for k, d in zip(kernel, dilation, strict=True))
    return gpu_plans.problem((4, 3, size, size), dtype, kernel, stride, pads, dilation)


def test_why_not_is_a_sentence_or_none():
    why = native.dispatch.why_not("nvrtc")
    assert why is None or why.endswith(".")
    if not torch.cuda.is_available():
        assert why is not None
        x, w = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3)
        with pytest.raises(RuntimeError, match="nvrtc"):
            native.depthwise_conv2d(x, w, backend="nvrtc")
        assert "measured" not in native.dispatch.backends()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dtype": torch.float64}, "float64"),
        ({"kernel": (129, 3), "size": 140}, "129x3"),
        ({"stride": (9, 9)}, "strides"),
    ],
)
def test_what_no_kernel_covers_is_named(changes, word):
    assert word in str(gpu_plans.why_no_plan(problem(**changes)))
    assert gpu_plans.why_no_plan(problem()) is None


@pytest.mark.parametrize("number", accuracy.NUMBERS)
@pytest.mark.parametrize("kernel", [(101, 101), (127, 127), (65, 5), (5, 127), (127, 1)])
def test_large_filters_have_plans_where_they_fit(kernel, number):
    p = problem(accuracy.NUMBERS[number], kernel, 64)
    p = dataclasses.replace(p, tf32=number == "tf32")
    for size in (16, 64, 200):
        assert gpu_plans.why_no_plan(dataclasses.replace(p, height=size, width=size), report.target(90)) is None
    for capability in (75, 86):
        fits = kernel != (127, 127) if capability == 86 else min(kernel) < 101
        fits |= capability == 86 and number in ("float16", "bfloat16", "tf32")
        fits |= capability == 75 and number == "float16" and kernel == (101, 101)
        why = gpu_plans.why_no_plan(p, report.target(capability))
        assert (why is None) == fits, why
        assert fits or f"filters of {kernel[0]}x{kernel[1]}" in why


def test_every_kernel_row_of_a_large_filter_has_a_block():
    for rows in (63, 64, 101, 127):
        (step, _) = gpu_plans.grad_weight(problem(torch.float32, (rows, 127), 128)).launches
        constants = dict(step.constants)
        assert constants["SLICES"] >= 1
        assert constants["UB"] * 16 <= step.threads
        assert (step.grid[2] - 1) * constants["UB"] < rows <= step.grid[2] * constants["UB"]


def test_tensor_cores_take_halves_at_stride_1_only():
    assert gpu_plans.forward(problem(), False).launches[0].entry == "toeplitz_forward"
    assert gpu_plans.forward(problem(torch.float32), False).launches[0].entry == "direct_forward"
    assert gpu_plans.forward(problem(stride=(2, 2)), False).launches[0].entry == "direct_forward"
    turing = gpu_plans.Target(75, 64 * 1024)
    assert gpu_plans.forward(problem(torch.bfloat16), False, turing).launches[0].entry == "direct_forward"
    assert gpu_plans.grad_weight(problem(), turing).launches[0].entry == "toeplitz_weight"


@pytest.mark.parametrize("capability", report.ARCHITECTURES)
def test_every_plan_fits_the_gpu(capability):
    target = report.target(capability)
    for v in report.variants(capability, tuple(accuracy.NUMBERS)):
        assert v.launch.shared <= target.shared
        assert v.launch.threads <= 512
        assert max(v.launch.grid[1:]) <= gpu_plans.GRID_LIMIT


def test_a_cubin_is_compiled_once_and_an_error_holds_the_log(tmp_path, monkeypatch):
    cuda = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    step = gpu_plans.grad_weight(problem(torch.float32)).launches[1]
    code = gpu.compile_cubin(step, 80)
    assert len(list(cache.folder("kernels").iterdir())) == 1
    monkeypatch.setattr(cuda, "Program", None)  # from here on it cannot be compiled
    assert gpu.compile_cubin(step, 80) == code
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = dataclasses.replace(step, element="ELEMENT_F32=1", constants=(("THREADS", "no"),))
    with pytest.raises(gpu.CompilationError, match=r"sum_partials\.cu for sm_80:\n"):
        gpu.compile_cubin(broken, 80)


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", None], ids=["emptied", "cut short", "a bit turned"])
def test_a_damaged_cubin_is_compiled_again_and_heals(tmp_path, monkeypatch, damage):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    step = gpu_plans.grad_weight(problem(torch.float32)).launches[1]
    code = gpu.compile_cubin(step, 80)
    (kept,) = cache.folder("kernels").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(bytes([whole[0] ^ 1]) + whole[1:] if damage is None else damage)
    assert gpu.compile_cubin(step, 80) == code
    assert kept.read_bytes() == whole


@pytest.mark.parametrize("home", ["a file", "nobody's"])
def test_nothing_kept_is_needed(tmp_path, monkeypatch, home):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    (tmp_path / "file").write_text("no folder can be made under it")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") if home == "a file" else "")
    if home == "nobody's":
        monkeypatch.setattr(Path, "home", no_home)
    step = gpu_plans.grad_weight(problem(torch.float32)).launches[1]
    assert gpu.compile_cubin(step, 80).startswith(b"\x7fELF")


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_more_tiles_than_a_grid_has_are_named():
    """Forward, 4096 pixels a side, 51 by 51 (one of the two planar kernels needs a block for every few pixels)."""
    fits, large = (gpu_plans.problem((1, 1, side, side), torch.float32, (51, 51), (1, 1), (25, 25), (1, 1))
                   for side in (1024, 16384))  # fmt: skip
    assert gpu_plans.why_no_plan(fits) is None
    assert "16384x16384 needs more" in gpu_plans.why_no_plan(large)
    many = gpu_plans.problem((65536, 1, 8, 8), torch.float16, (3, 3), (1, 1), (1, 1), (1, 1))
    assert "65535 images" in gpu_plans.why_no_plan(many)


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory):
    """A folder with a libcuda that writes down what it is asked to do."""
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler on this machine")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("fake_cuda.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", folder / "libcuda.so.1", source, "-ldl"], check=True)
    return folder


LAUNCH = """
import sys, threading, time
import torch, native
start = time.process_time()
from native import gpu, gpu_plans
near, p = (
    gpu_plans.problem((5, 3, rows, 64), torch.float16, (31, 31), (1, 1), (15, 15), (1, 1)) for rows in (59, 64)
)
(step,) = gpu_plans.forward(p, True).launches
try:
    gpu._load(gpu_plans.forward(near, True).launches[0], 1, 90)  # another height shares the kernel
    ready = gpu._load(step, 1, 90)
    print(time.process_time() - start, "cuda.core" in sys.modules)
    launch = lambda: ready.launch({"x": 1 << 40, "w": 512, "bias": 768, "y": 1024}, 85)
    launch()
    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
except RuntimeError as error:
    print(error)
"""


def launched(folder, tmp_path, script=LAUNCH, sizes="8888444444", **more):
    """Lines of the driver's log, and what was printed; sizes of x, w, bias, y; N, C, H, W, H', W'."""
    log = tmp_path / "log"
    environment = {"LD_LIBRARY_PATH": str(folder), "FAKE_CUDA_LOG": str(log), "FAKE_CUDA_SIZES": sizes, **more}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines(), done.stdout


def test_the_driver_is_asked_for_the_planned_launch(fake_driver, tmp_path):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    p = gpu_plans.problem((5, 3, 64, 64), torch.float16, (31, 31), (1, 1), (15, 15), (1, 1))
    (step,) = gpu_plans.forward(p, True).launches
    constants, shared = dict(step.constants), step.shared
    images = constants["NI"] * constants["IG"] * constants["WARPS_IMAGES"]
    gpu.compile_cubin(step, 90)  # on the disk from here on, if it was not
    kernel = (
        f"cuLaunchKernel kernel 0x30 grid 3 {-(-5 // images)} 1 block {step.threads} 1 1 shared {shared} stream 0x55 "
        "extra (nil) arguments 1099511627776 512 768 1024 5 3 64 64 64 64"
    )
    log, printed = launched(fake_driver, tmp_path)
    assert log == [
        "cuDevicePrimaryCtxRetain device 1",
        "cuCtxSetCurrent context 0x10",
        "cuLibraryLoadData code \x7fELF\x02 options 0 0",
        "cuLibraryGetKernel library 0x20 name toeplitz_forward",
        f"cuKernelSetAttribute attribute 8 value {shared} kernel 0x30 device 1",
        kernel,
        "cuCtxSetCurrent context 0x10",  # of the second thread, which had none
        kernel,
    ]
    seconds, slow_import = printed.split()
    assert slow_import == "False"
    assert float(seconds) < 0.5  # 0.04 on a quiet machine


PAIR = """
import torch
from native import gpu, gpu_plans
p = gpu_plans.problem((5, 3, 64, 64), torch.float16, (31, 31), (1, 1), (15, 15), (1, 1))
(step,) = gpu_plans.forward(gpu_plans.with_small(p, (5, 5), False), False).launches
gpu._load(step, 1, 90).launch({"x": 1 << 40, "w": 512, "small_w": 768, "small_y": 1024, "y": 1280}, 85)
"""


def test_the_driver_gets_both_filters_and_both_outputs_of_a_pair(fake_driver, tmp_path):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    p = gpu_plans.problem((5, 3, 64, 64), torch.float16, (31, 31), (1, 1), (15, 15), (1, 1))
    (step,) = gpu_plans.forward(gpu_plans.with_small(p, (5, 5), False), False).launches
    gpu.compile_cubin(step, 90)
    log, _ = launched(fake_driver, tmp_path, PAIR, "888888444444")
    assert log[-1].endswith("arguments 1099511627776 512 512 768 1024 1280 5 3 64 64 64 64")


@pytest.mark.parametrize(("function", "word"), [("cuLibraryLoadData", "load toe"), ("cuLaunchKernel", "launch toe")])
def test_what_the_driver_refuses_is_a_sentence(fake_driver, tmp_path, function, word):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    p = gpu_plans.problem((5, 3, 64, 64), torch.float16, (31, 31), (1, 1), (15, 15), (1, 1))
    gpu.compile_cubin(gpu_plans.forward(p, True).launches[0], 90)
    _, printed = launched(fake_driver, tmp_path, FAKE_CUDA_FAILS=function)
    assert f"The driver refused to {word}plitz_forward: CUDA_ERROR_INVALID_VALUE." in printed


class Way:
    """A module that computes what torch does, or `wrong`, and counts its calls."""

    CompilationError = gpu.CompilationError

    def __init__(self, wrong=False, error=None):
        self.calls, self.wrong, self.error, self.prepared = 0, wrong, error, []

    def forward(self, x, *others):
        self.calls += 1
        if self.error:
            raise self.error
        y = aten.forward(x, *others)
        return y.index_fill(2, torch.tensor(5), 0) if self.wrong else y

    def problem_of(self, function, map, *geometry):
        shape, kernel, *rest = geometry
        p = gpu_plans.problem(shape, map.dtype, kernel, *rest)
        return gpu_plans.in_layout(function, p, is_last(map))

    def prepare(self, *what):
        self.prepared.append(what)

    def target(self, _):
        return gpu_plans.ANY_GPU

    def driver_version(self):
        return 13000

    def kernels_digest(self):
        return "digest"


@pytest.fixture
def some_gpu(tmp_path, monkeypatch):
    """A process that believes in a GPU; returns what starts another one with these two ways and their times."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=0: "Some GPU")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def start(ours, theirs, times=(1.0, 2.0)):
        monkeypatch.setattr(gpu_auto, "gpu", ours)
        monkeypatch.setattr(gpu_auto, "aten", theirs)
        monkeypatch.setattr(gpu_auto, "_chosen", {})
        monkeypatch.setattr(gpu_auto, "_milliseconds", lambda call, _=1: times[call.args[0] is theirs])
        gpu_auto._folder.cache_clear()

    yield start
    gpu_auto._folder.cache_clear()


X, W = torch.linspace(-1, 1, 200).reshape(1, 2, 10, 10), torch.linspace(1, 2, 50).reshape(2, 1, 5, 5)


def kept(folder):
    """What is on the disk."""
    return [json.loads(path.read_text())["choice"] for path in folder.rglob("*.json")]


@pytest.mark.parametrize(
    ("times", "wrong", "choice"),
    [((1, 2), False, "nvrtc"), ((2, 1), False, "torch"), ((1, 1.02), False, "torch"), ((1, 2), True, "torch")],
)
def test_the_clearly_faster_right_one_is_chosen_and_remembered(tmp_path, some_gpu, times, wrong, choice):
    ours, theirs = Way(wrong), Way()
    some_gpu(ours, theirs, times)
    with pytest.warns(RuntimeWarning, match="forward in float32 is wrong") if wrong else contextlib.nullcontext():
        assert torch.equal(gpu_auto.forward(X, W, None, *GEOMETRY), aten.forward(X, W, None, *GEOMETRY))
    assert kept(tmp_path) == [choice]
    some_gpu(Way(error=RuntimeError("not asked")) if choice == "torch" else Way(), again := Way())
    gpu_auto.forward(X, W, None, *GEOMETRY)
    assert again.calls == (choice == "torch")


@pytest.mark.parametrize(
    ("error", "remembered", "asked"),
    [(gpu.CompilationError("NVRTC refused"), ["torch"], 1), (RuntimeError("The driver refused"), [], 1),
     (torch.OutOfMemoryError("CUDA out of memory"), [], 2)],
)  # fmt: skip
def test_only_what_will_not_pass_is_remembered(tmp_path, some_gpu, error, remembered, asked):
    ours = Way(error=error)
    some_gpu(ours, Way())
    quiet = isinstance(error, torch.OutOfMemoryError)
    with contextlib.nullcontext() if quiet else pytest.warns(RuntimeWarning, match=str(error)):
        for _ in range(2):
            assert gpu_auto.forward(X, W, None, *GEOMETRY).shape == X.shape
    assert kept(tmp_path) == remembered
    assert ours.calls == asked


def test_numbers_that_are_not_finite_condemn_no_kernel(tmp_path, some_gpu):
    some_gpu(Way(), Way())
    gpu_auto.forward(X / 0, W, None, *GEOMETRY)
    assert kept(tmp_path) == []
    gpu_auto.forward(X, W, None, *GEOMETRY)
    assert kept(tmp_path) == ["nvrtc"]


def test_a_choice_is_of_kernels_layout_bias_and_tf32(tmp_path, some_gpu, monkeypatch):
    ours = Way()
    some_gpu(ours, Way())
    last = X.contiguous(memory_format=torch.channels_last)
    for x, bias in ((X, None), (last, None), (X, W[:, 0, 0, 0])):
        gpu_auto.forward(x, W, bias, *GEOMETRY)
    with accuracy.tf32_allowed(True):
        gpu_auto.forward(X, W, None, *GEOMETRY)
    assert len(kept(tmp_path)) == 4
    some_gpu(newer := Way(), Way())
    monkeypatch.setattr(newer, "kernels_digest", lambda: "another")
    gpu_auto.forward(X, W, None, *GEOMETRY)
    assert len(kept(tmp_path)) == 5


def test_nearby_shapes_share_a_choice(tmp_path, some_gpu):
    some_gpu(Way(), Way())
    for height in (65, 70, 72):
        gpu_auto.forward(torch.ones(1, 2, height, 40), W, None, *GEOMETRY)
    assert len(kept(tmp_path)) == 1


def test_the_first_who_finds_decides_for_all(tmp_path, some_gpu):
    ours, theirs = Way(), Way()
    some_gpu(ours, theirs)
    call = gpu_auto._Call("forward", problem(torch.float32), (X, W, None, *GEOMETRY))
    assert gpu_auto._decide(call, 0) == ("nvrtc", True)
    some_gpu(ours, theirs, times=(2.0, 1.0))  # another process measures otherwise, but after the first
    found, recall = [], gpu_auto.autotune.recall
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_auto.autotune, "recall", lambda *a: recall(*a) if found else found.append(a))
        assert gpu_auto._decide(call, 0) == ("nvrtc", True)
    assert kept(tmp_path) == ["nvrtc"]


def test_a_choice_that_is_read_is_loaded_at_once_and_never_in_a_graph(some_gpu, monkeypatch):
    some_gpu(Way(), Way())
    gpu_auto.forward(X, W, None, *GEOMETRY)
    some_gpu(ours := Way(), theirs := Way())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    gpu_auto.forward(X, W, None, *GEOMETRY)
    assert (ours.prepared, ours.calls, theirs.calls) == ([], 0, 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    gpu_auto.forward(X, W, None, *GEOMETRY)
    assert [what[0] for what in ours.prepared] == ["forward"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    gpu_auto.forward(X, W, None, *GEOMETRY)  # known from here on
    assert (ours.calls, theirs.calls) == (2, 1)


def test_in_channels_last_the_kernel_of_that_layout_is_loaded(some_gpu):
    x = torch.randn(2, 8, 9, 9).half().contiguous(memory_format=torch.channels_last)
    w = torch.randn(8, 1, 5, 5).half()
    for layout in (torch.channels_last, torch.contiguous_format):
        some_gpu(Way(), Way())
        gpu_auto.forward(x.contiguous(memory_format=layout), w, None, *GEOMETRY)
        some_gpu(ours := Way(), Way())
        gpu_auto.forward(x.contiguous(memory_format=layout), w, None, *GEOMETRY)
        ((function, prepared, *_),) = ours.prepared
        assert (function, prepared.last) == ("forward", layout == torch.channels_last)


def test_what_cannot_be_kept_is_measured_by_each_process(tmp_path, some_gpu, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", no_home)
    ours = Way()
    some_gpu(ours, Way())
    for _ in range(3):
        gpu_auto.forward(X, W, None, *GEOMETRY)
    assert list(gpu_auto._chosen.values()) == ["nvrtc"]
    assert list(tmp_path.rglob("*.json")) == []


LARGE = torch.linspace(-1, 1, 2 * 32**2).sin().reshape(1, 2, 32, 32), torch.linspace(1, 2, 2 * 31**2).cos()
LARGE_GEOMETRY = ((1, 1), (15, 15), (1, 1))


@pytest.fixture
def by_fft(some_gpu, monkeypatch):
    """Starts another process in which the frequency domain is a way that takes so many seconds."""

    def start(ours, theirs, way, seconds):
        some_gpu(ours, theirs)
        monkeypatch.setattr(gpu_auto, "fft", way)
        times = {id(ours): 1.0, id(theirs): 2.0, id(way): seconds}
        monkeypatch.setattr(gpu_auto, "_milliseconds", lambda call, _=1: times[id(call.args[0])])
        way.period, way.channel_bytes, way.MEMORY = fft.period, fft.channel_bytes, fft.MEMORY
        return gpu_auto.forward(LARGE[0], LARGE[1].reshape(2, 1, 31, 31), None, *LARGE_GEOMETRY)

    return start


@pytest.mark.parametrize(("seconds", "choice"), [(0.5, "fft"), (1.5, "nvrtc")])
def test_the_frequency_domain_is_taken_where_it_is_fastest(tmp_path, by_fft, seconds, choice):
    by_fft(Way(), Way(), way := Way(), seconds)
    assert (kept(tmp_path), way.calls > 1) == ([choice], True)
    by_fft(Way(), again := Way(), way := Way(), 9.0)  # another process asks nobody
    assert (again.calls, way.calls) == (0, int(choice == "fft"))
    gpu_auto.forward(X, W, None, *GEOMETRY)
    assert way.calls == int(choice == "fft")  # a small kernel is none of its business


def test_a_frequency_domain_that_is_not_right_is_left_out_and_one_that_fails_now_is_asked_later(tmp_path, by_fft):
    by_fft(Way(), Way(), Way(error=torch.OutOfMemoryError("CUDA out of memory")), 0.5)
    assert (kept(tmp_path), list(gpu_auto._chosen.values())) == ([], ["nvrtc"])
    by_fft(Way(), Way(), Way(wrong=True), 0.5)
    assert kept(tmp_path) == ["nvrtc"]


def test_where_no_kernel_takes_a_filter_torch_has_the_frequency_domain_for_a_rival(tmp_path, by_fft, monkeypatch):
    monkeypatch.setattr(gpu_plans, "MAX_KERNEL", 29)
    gpu_plans.why_no_plan.cache_clear(), gpu_auto._fft_may_win.cache_clear()
    by_fft(ours := Way(), Way(), way := Way(), 0.5)
    assert (kept(tmp_path), ours.calls, way.calls > 1) == (["fft"], 0, True)
    x, w = LARGE[0], LARGE[1].reshape(2, 1, 31, 31)
    ours.why_not = lambda x, w=None, *geometry: w if w is None else "The CUDA kernels take filters up to 29x29."
    assert gpu_auto.why_not(x, w, *LARGE_GEOMETRY) is None
    assert "29x29" in gpu_auto.why_not(x, w, (2, 2), *LARGE_GEOMETRY[1:])
    gpu_plans.why_no_plan.cache_clear(), gpu_auto._fft_may_win.cache_clear()


@pytest.mark.parametrize(
    ("number", "size", "kernel", "asked"),
    [("float16", 64, 101, False), ("float16", 128, 101, True), ("float16", 128, 31, False), ("float32", 64, 31, True),
     ("float32", 56, 13, False), ("float64", 64, 31, False), ("float32", 4096, 101, False)],  # 2.3 GB a channel
)  # fmt: skip
def test_the_frequency_domain_is_timed_where_it_may_win_and_memory_is_enough(number, size, kernel, asked):
    p = problem(getattr(torch, number), (kernel, kernel), size)
    assert gpu_auto._fft_may_win(p, gpu_plans.ANY_GPU) == asked
    assert not gpu_auto._fft_may_win(dataclasses.replace(p, stride=(2, 2)), gpu_plans.ANY_GPU)
    assert not gpu_auto._fft_may_win(dataclasses.replace(p, batch=2**16), gpu_plans.ANY_GPU)


@pytest.mark.parametrize("function", ["forward", "grad_input", "grad_weight"])
@pytest.mark.parametrize("tf32", [False, True])
def test_two_channels_tell_right_from_wrong(function, tf32):
    x, g, w = torch.randn(3, 5, 9, 9), torch.randn(3, 5, 9, 9), torch.randn(5, 1, 5, 5)
    if tf32:
        x, g, w = map(accuracy.round_to_tf32, (x, g, w))
    arguments = {
        "forward": (x, w, torch.randn(5)), "grad_input": (g, w, tuple(x.shape)), "grad_weight": (g, x, (5, 5)),
    }[function] + GEOMETRY  # fmt: skip
    right = getattr(aten, function)(*arguments)
    assert accuracy.on_two_channels(function, right, arguments, tf32).holds
    wrong = right.clone()
    wrong.flatten()[-1] += 0.1 * right.abs().max()
    assert not accuracy.on_two_channels(function, wrong, arguments, tf32).holds


needs_gpu = pytest.mark.gpu
missing = pytest.mark.skipif(gpu.why_not() is not None, reason=gpu.why_not() or "")


@needs_gpu
@missing
@pytest.mark.parametrize("number", accuracy.NUMBERS)
@pytest.mark.parametrize("case", check.CASES, ids=str)
def test_on_the_gpu_errors_are_at_most_twice_torchs(case, number):
    for result in accuracy.compare("nvrtc", case, number, "cuda"):
        assert result.holds, result


@needs_gpu
@missing
@pytest.mark.parametrize("number", accuracy.NUMBERS)
def test_on_the_gpu_weight_gradients_are_the_same_bits_and_auto_is_right(number):
    dtype = accuracy.NUMBERS[number]
    with accuracy.tf32_allowed(number == "tf32"):
        _same_bits_and_right(dtype)


def _same_bits_and_right(dtype):
    x, g = (torch.randn(70, 8, 28, 28, device="cuda").to(dtype) for _ in "xg")
    first = gpu.grad_weight(g, x, (5, 5), *GEOMETRY)
    assert all(torch.equal(first, gpu.grad_weight(g, x, (5, 5), *GEOMETRY)) for _ in range(20))
    w = torch.randn(8, 1, 5, 5, device="cuda").to(dtype)
    auto, exact = native.depthwise_conv2d(x, w), aten.forward(x.double(), w.double(), None, *GEOMETRY)
    assert torch.allclose(auto.double(), exact, rtol=2e-2, atol=0.1)


@needs_gpu
@missing
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script_method:DeprecationWarning"
)  # inductor's own, while it is imported
def test_on_the_gpu_streams_graphs_and_compile():
    x = torch.randn(4, 8, 20, 20, device="cuda").half()
    w = torch.randn(8, 1, 5, 5, device="cuda").half()
    expected = gpu.forward(x, w, None, *GEOMETRY)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = gpu.forward(x, w, None, *GEOMETRY)
    side.synchronize()
    assert torch.equal(late, expected)
    captured = torch.cuda.CUDAGraph()
    static = x.clone()
    with torch.cuda.graph(captured):
        y = gpu.forward(static, w, None, *GEOMETRY)
        d = gpu.grad_weight(y, static, (5, 5), *GEOMETRY)
    static.copy_(2 * x)
    captured.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, gpu.forward(2 * x, w, None, *GEOMETRY))
    assert torch.equal(d, gpu.grad_weight(y, static, (5, 5), *GEOMETRY))
    compiled = torch.compile(lambda a: native.depthwise_conv2d(a, w, backend="nvrtc") + 1, fullgraph=True)
    assert torch.allclose(compiled(x), expected + 1, atol=1e-2)


@needs_gpu
@missing
def test_on_the_gpu_autocast_trains():
    layer = native.DepthwiseConv2d(8, 13).cuda()
    x = torch.randn(4, 8, 20, 20, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
    y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None and x.grad.isfinite().all() and layer.weight.grad is not None  # noqa: PT018
