"""The CUDA kernels on NVIDIA GPUs: compiled by NVRTC (through cuda.core) at first use, kept on disk.

Launches go to torch's current stream of the tensor's device and may be captured in a CUDA graph once a first call
(outside the capture) has compiled them. Importing this module needs neither a driver nor cuda-python. What is on disk
is loaded and launched with the driver's own functions (cuda.bindings): to import cuda.core takes longer than all the
rest of a start, and torch imports cuda.bindings anyway.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from native import cache, gpu_plans, layout
from native.geometry import Pair, same_padding

KERNELS = Path(__file__).parent / "kernels"
DIGEST = hashlib.sha256().digest_size  # bytes after the machine code in a file


@functools.cache
def _why_not_here() -> str | None:
    """Why no CUDA kernel can run on this machine, or None."""
    try:
        from cuda.bindings import driver  # noqa: F401  (only whether it is there)

        importlib.metadata.version("cuda-core")
    except (ImportError, RuntimeError) as error:  # of a package that is not there, metadata raises an ImportError too
        return f"cuda-python is missing or broken ({error}): pip install cuda-core cuda-bindings."
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU here: it needs a driver, and a torch built for CUDA."
    return None


@functools.cache
def target(device: int) -> gpu_plans.Target:
    """What plans need to know of a GPU."""
    properties = torch.cuda.get_device_properties(device)
    shared = properties.shared_memory_per_block_optin  # type: ignore[attr-defined] # not in torch's stub
    return gpu_plans.Target(10 * properties.major + properties.minor, shared)


def why_not(
    x: Tensor | None = None,
    weight: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> str | None:
    """One sentence on why the CUDA kernels cannot compute this (without arguments: anything here); None if they can."""
    if why := _why_not_here():
        return why
    device = torch.cuda.current_device() if x is None or x.device.index is None else x.device.index
    if x is not None and x.device.type != "cuda":
        return f"The CUDA kernels need a tensor on a GPU, and x is on {x.device}."
    if target(device).capability < 75:
        return f"The CUDA kernels need compute capability 7.5 or newer; {torch.cuda.get_device_name(device)} is older."
    if x is None or weight is None:
        return None
    return gpu_plans.why_no_plan(
        gpu_plans.problem(x.shape, x.dtype, weight.shape[2:], stride, padding, dilation), target(device)
    )


# --- compile ---------------------------------------------------------------------------------------------------------


class CompilationError(RuntimeError):
    """NVRTC refused a kernel; the message holds its log."""


def _digest(sources: Iterable[str]) -> str:
    """Of kernels and of what compiles them."""
    headers = sorted(path.name for path in KERNELS.glob("*.cuh"))
    text = b"".join((KERNELS / name).read_bytes() for name in (*sources, *headers))
    versions = [importlib.metadata.version(name) for name in ("cuda-core", "cuda-bindings")] + [str(torch.version.cuda)]
    return hashlib.sha256(text + " ".join(versions).encode()).hexdigest()


@functools.cache
def _source_digest(source: str) -> str:
    return _digest([source])


@functools.cache
def kernels_digest() -> str:
    """Names all kernels as they are now: what was found of others says nothing of them."""
    return _digest(sorted(path.name for path in KERNELS.glob("*.cu")))[:12]


@functools.cache
def driver_version() -> int:
    """As the driver numbers itself: 13000 is 13.0."""
    from cuda.bindings import driver

    version: int = _done(driver.cuDriverGetVersion(), "tell its version")
    return version


def _kept(path: Path) -> bytes | None:
    """The machine code in a file that was written whole and is as it was; None for any other."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    code, digest = content[:-DIGEST], content[-DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def _keep(path: Path, code: bytes) -> None:
    """Where nothing can be written, the next process compiles again."""
    with contextlib.suppress(OSError), cache.beside(path) as own:
        own.write_bytes(code + hashlib.sha256(code).digest())
        own.replace(path)


def compile_cubin(step: gpu_plans.Launch, capability: int) -> bytes:
    """Machine code of a launch's kernel for compute capability 10 · major + minor; from the disk if it is there.

    Raises:
        CompilationError: NVRTC refused the source.
    """
    defines = [step.element, *((name, str(value)) for name, value in step.constants)]
    digest = hashlib.sha256(f"{_source_digest(step.source)} {defines}".encode()).hexdigest()[:24]
    folder = cache.folder_if_any("kernels")
    path = folder and folder / f"{step.entry}-sm{capability}-{digest}.cubin"
    if path and (kept := _kept(path)):
        return kept
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(arch=f"sm_{capability}", std="c++17", include_path=str(KERNELS), define_macro=defines)
    try:
        code: bytes = Program((KERNELS / step.source).read_text(encoding="utf-8"), "c++", options).compile("cubin").code
    except Exception as error:
        raise CompilationError(f"NVRTC could not compile {step.source} for sm_{capability}:\n{error}") from error
    if path:
        _keep(path, code)
    return code


def _done(result: tuple[Any, ...], what: str) -> Any:
    """The value of a call to the driver; what it refused is an exception."""
    status, *values = result
    if status.value:
        raise RuntimeError(f"The driver refused to {what}: {status.name}.")
    return values[0] if values else None


@functools.cache
def _primary_context(device: int) -> Any:
    from cuda.bindings import driver

    return _done(driver.cuDevicePrimaryCtxRetain(device), f"use device {device}")


def _enter(device: int) -> None:
    """Make the device's context current in a thread that has none, as torch itself has not used the device there."""
    from cuda.bindings import driver

    if not int(_done(driver.cuCtxGetCurrent(), "tell the current context")):
        _done(driver.cuCtxSetCurrent(_primary_context(device)), f"use device {device}")


@dataclass(frozen=True)
class _Ready:
    """A launch whose kernel is loaded on a device."""

    step: gpu_plans.Launch
    device: int
    kernel: Any
    values: tuple[str | ctypes.c_int64 | ctypes.c_int32, ...]  # of the arguments: tensor names and C values

    def launch(self, addresses: dict[str, int], stream: int) -> None:
        """Run on tensors at these addresses, on the driver's stream."""
        from cuda.bindings import driver

        _enter(self.device)
        values = [ctypes.c_void_p(addresses[v]) if isinstance(v, str) else v for v in self.values]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        threads, shared, where = (self.step.threads, 1, 1), self.step.shared, ctypes.addressof(pointers)
        result = driver.cuLaunchKernel(self.kernel, *self.step.grid, *threads, shared, stream, where, 0)
        _done(result, f"launch {self.step.entry}")


@functools.cache
def _kernel(step: gpu_plans.Launch, device: int, capability: int) -> Any:
    """The loaded kernel of a launch, of whatever grid and arguments: maps of a size class share it."""
    from cuda.bindings import driver

    _enter(device)
    code = compile_cubin(step, capability)
    library = _done(driver.cuLibraryLoadData(code, [], [], 0, [], [], 0), f"load {step.entry}")
    kernel = _done(driver.cuLibraryGetKernel(library, step.entry.encode()), f"find {step.entry}")
    if step.shared > gpu_plans.direct.SHARED:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        result = driver.cuKernelSetAttribute(attribute, step.shared, kernel, device)
        _done(result, f"give {step.shared} bytes of shared memory to {step.entry}")
    return driver.CUfunction(int(kernel))


def _load(step: gpu_plans.Launch, device: int, capability: int) -> _Ready:
    kernel = _kernel(replace(step, grid=(1, 1, 1), arguments=()), device, capability)
    values = tuple(
        a if isinstance(a, str) else ctypes.c_int64(a[1]) if isinstance(a, tuple) else ctypes.c_int32(a)
        for a in step.arguments
    )
    return _Ready(step, device, kernel, values)


@functools.lru_cache(maxsize=4096)
def prepare(function: str, problem: gpu_plans.Problem, bias: bool, device: int) -> tuple[tuple[_Ready, ...], int]:
    """Launches of a function with their kernels loaded, and the floats between them; once a problem and device."""
    plan = gpu_plans.plan(function, problem, bias, target(device))
    capability = target(device).capability
    return tuple(_load(step, device, capability) for step in plan.launches), plan.workspace


def _run(function: str, problem: gpu_plans.Problem, tensors: dict[str, Tensor]) -> None:
    device = next(iter(tensors.values())).device
    with torch.cuda.device(device):
        steps, workspace = prepare(function, problem, "bias" in tensors, device.index)
        if workspace:
            tensors = {**tensors, "partial": torch.empty(workspace, dtype=torch.float32, device=device)}
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        stream = torch.cuda.current_stream(device).cuda_stream
        for step in steps:
            step.launch(addresses, stream)


def problem_of(
    function: str,
    map: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    activation: str | None = None,
) -> gpu_plans.Problem:
    """The problem of an x of `shape`, in the layout of `map`, x or dy, where a kernel takes that."""
    p = gpu_plans.problem(tuple(shape), map.dtype, tuple(kernel), stride, padding, dilation, activation)
    return gpu_plans.in_layout(function, p, layout.is_last(map), _target_of(map))


def _target_of(map: Tensor) -> gpu_plans.Target:
    device = map.device.index
    return target(torch.cuda.current_device() if device is None else device)


def pair_problem_of(x: Tensor, weight: Tensor, small: Tensor) -> gpu_plans.Problem | None:
    """The problem of `forward_pair`, in x's layout; None where no kernel computes both at a time."""
    kernel, one = weight.shape[2:], (1, 1)
    p = gpu_plans.problem(x.shape, x.dtype, kernel, one, same_padding(kernel, one), one)
    return gpu_plans.with_small(p, (small.shape[2], small.shape[3]), layout.is_last(x), _target_of(x))


# --- the backend -----------------------------------------------------------------------------------------------------


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    activation: str | None = None,
) -> Tensor:
    """x (N, C, H, W), weight (C, 1, Kh, Kw), bias (C,) or None → (N, C, H', W'), in x's layout or in planes."""
    problem = problem_of("forward", x, x.shape, weight.shape[2:], stride, padding, dilation, activation)
    y = layout.empty(x, (*x.shape[:2], *problem.output), problem.last)
    tensors = {"x": layout.aligned(x, problem.last), "w": layout.aligned(weight), "y": y}
    _run("forward", problem, tensors if bias is None else tensors | {"bias": layout.aligned(bias)})
    return y


def forward_pair(x: Tensor, weight: Tensor, small: Tensor) -> tuple[Tensor, Tensor] | None:
    """x (N, C, H, W), weight (C, 1, Kh, Kw) and smaller filters → both outputs at stride 1, same size; x is read once.

    None where no kernel computes both at a time.
    """
    problem = pair_problem_of(x, weight, small)
    if problem is None:
        return None
    y, small_y = (layout.empty(x, (*x.shape[:2], *problem.output), problem.last) for _ in range(2))
    filters = {"w": layout.aligned(weight), "small_w": layout.aligned(small)}
    _run("forward_pair", problem, {"x": layout.aligned(x, problem.last), **filters, "y": y, "small_y": small_y})
    return y, small_y


def grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Gradient by x, of `input_shape`, for the output's gradient (N, C, H', W'), in its layout or in planes."""
    problem = problem_of("grad_input", grad, input_shape, weight.shape[2:], stride, padding, dilation)
    dx = layout.empty(grad, input_shape, problem.last)
    _run("grad_input", problem, {"dy": layout.aligned(grad, problem.last), "w": layout.aligned(weight), "dx": dx})
    return dx


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient by weight, (C, 1, Kh, Kw), for the output's gradient (N, C, H', W'); the same bits at every run."""
    problem = problem_of("grad_weight", x, x.shape, kernel_size, stride, padding, dilation)
    dw = x.new_empty((x.shape[1], 1, *kernel_size))
    maps = {"x": layout.aligned(x, problem.last), "dy": layout.aligned(grad, problem.last)}
    _run("grad_weight", problem, maps | {"dw": dw})
    return dw
