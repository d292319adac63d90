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
from native import accuracy, aten, cache, check, gpu, gpu_auto, gpu_plans, report

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
    [({"dtype": torch.float64}, "float64"), ({"kernel": (65, 3), "size": 70}, "65x3"), ({"stride": (9, 9)}, "strides")],
)
def test_what_no_kernel_covers_is_named(changes, word):
    assert word in str(gpu_plans.why_no_plan(problem(**changes)))
    assert gpu_plans.why_no_plan(problem()) is None


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
        assert max(v.launch.grid[1:]) <= gpu.GRID_LIMIT


def test_a_cubin_is_compiled_once_and_an_error_holds_the_log(tmp_path, monkeypatch):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    step = gpu_plans.grad_weight(problem(torch.float32)).launches[1]
    code = gpu.compile_cubin(step, 80)
    (kept,) = cache.folder("kernels").iterdir()
    assert kept.read_bytes() == code
    kept.write_bytes(b"kept")
    assert gpu.compile_cubin(step, 80) == b"kept"
    broken = dataclasses.replace(step, element="ELEMENT_F32=1", constants=(("THREADS", "no"),))
    with pytest.raises(RuntimeError, match=r"sum_partials\.cu for sm_80:\n"):
        gpu.compile_cubin(broken, 80)


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
import sys, time
import torch, native
start = time.process_time()
from native import gpu, gpu_plans
p = gpu_plans.problem((5, 3, 64, 64), torch.float16, (31, 31), (1, 1), (15, 15), (1, 1))
(step,) = gpu_plans.forward(p, True).launches
try:
    ready = gpu._load(step, 1, 90)
    print(time.process_time() - start, "cuda.core" in sys.modules)
    ready.launch({"x": 1 << 40, "w": 512, "bias": 768, "y": 1024}, 85)
except RuntimeError as error:
    print(error)
"""


def launched(folder, tmp_path, **more):
    """Lines of the driver's log, and what was printed."""
    log = tmp_path / "log"
    sizes = "888844"  # x, w, bias, y; N, C
    environment = {"LD_LIBRARY_PATH": str(folder), "FAKE_CUDA_LOG": str(log), "FAKE_CUDA_SIZES": sizes, **more}
    command = [sys.executable, "-c", LAUNCH]
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
    log, printed = launched(fake_driver, tmp_path)
    assert log == [
        "cuDevicePrimaryCtxRetain device 1",
        "cuCtxSetCurrent context 0x10",
        "cuLibraryLoadData code \x7fELF\x02 options 0 0",
        "cuLibraryGetKernel library 0x20 name toeplitz_forward",
        f"cuKernelSetAttribute attribute 8 value {shared} kernel 0x30 device 1",
        f"cuLaunchKernel kernel 0x30 grid 3 {-(-5 // images)} 1 block {step.threads} 1 1 shared {shared} stream 0x55 "
        "extra (nil) arguments 1099511627776 512 768 1024 5 3",
    ]
    seconds, slow_import = printed.split()
    assert slow_import == "False"
    assert float(seconds) < 0.5  # 0.04 on a quiet machine


@pytest.mark.parametrize(("function", "word"), [("cuLibraryLoadData", "load toe"), ("cuLaunchKernel", "launch toe")])
def test_what_the_driver_refuses_is_a_sentence(fake_driver, tmp_path, function, word):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    p = gpu_plans.problem((5, 3, 64, 64), torch.float16, (31, 31), (1, 1), (15, 15), (1, 1))
    gpu.compile_cubin(gpu_plans.forward(p, True).launches[0], 90)
    _, printed = launched(fake_driver, tmp_path, FAKE_CUDA_FAILS=function)
    assert f"The driver refused to {word}plitz_forward: CUDA_ERROR_INVALID_VALUE." in printed


class Fake:
    """A module that counts its calls."""

    def __init__(self):
        self.calls = 0

    def forward(self, x, weight, bias, stride, padding, dilation):
        self.calls += 1
        return aten.forward(x, weight, bias, stride, padding, dilation)


@pytest.mark.parametrize(("times", "right", "winner"), [((1, 2), True, 0), ((2, 1), True, 1), ((1, 2), False, 1)])
def test_the_faster_right_one_is_chosen_and_remembered(tmp_path, monkeypatch, times, right, winner):
    ours, theirs = contestants = Fake(), Fake()
    monkeypatch.setattr(gpu_auto, "gpu", ours)
    monkeypatch.setattr(gpu_auto, "aten", theirs)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gpu_auto, "_is_right", lambda *_: right)
    monkeypatch.setattr(gpu_auto, "_milliseconds", lambda call: times[call.args[0] is theirs])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(gpu_auto, "_chosen", {})
    x, w = torch.randn(1, 2, 8, 8), torch.randn(2, 1, 5, 5)
    for _ in range(2):
        for m in contestants:
            m.calls = 0
        assert gpu_auto.forward(x, w, None, *GEOMETRY).shape == x.shape
        gpu_auto._chosen.clear()  # the second time it is read from the disk
    assert [m.calls for m in contestants] == [winner == 0, winner == 1]
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert json.loads(file.read_text())["choice"] == ("nvrtc", "torch")[winner]


def test_a_kernel_that_does_not_compile_is_torchs(monkeypatch):
    def broken(*_):
        raise RuntimeError("NVRTC could not compile it")

    with pytest.warns(RuntimeWarning, match="could not compile"):
        assert gpu_auto._times(broken) == {}
    monkeypatch.setattr(gpu_auto, "compare", broken)
    gpu_auto._is_right.cache_clear()
    with pytest.warns(RuntimeWarning, match="do not run here"):
        assert not gpu_auto._is_right(0, "float16", "forward")
    gpu_auto._is_right.cache_clear()


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
