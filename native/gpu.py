"""The CUDA kernels on NVIDIA GPUs: compiled by NVRTC (through cuda.core) at first use, kept on disk.

Launches go to torch's current stream of the tensor's device and may be captured in a CUDA graph once a first call
(outside the capture) has compiled them. Importing this module needs neither a driver nor cuda-python. What is on disk
is loaded and launched with the driver's own functions (cuda.bindings): to import cuda.core takes longer than all the
rest of a start, and torch imports cuda.bindings anyway.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from native import cache, gpu_plans
from native.geometry import Pair

KERNELS = Path(__file__).parent / "kernels"
GRID_LIMIT = 65535  # blocks in y and in z


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
    if x.shape[0] > GRID_LIMIT:
        return f"The CUDA kernels take up to {GRID_LIMIT} images at a time, not {x.shape[0]}."
    return gpu_plans.why_no_plan(
        gpu_plans.problem(x.shape, x.dtype, weight.shape[2:], stride, padding, dilation), target(device)
    )


# --- compile ---------------------------------------------------------------------------------------------------------


@functools.cache
def _sources_digest(source: str) -> str:
    text = (KERNELS / source).read_bytes() + (KERNELS / "ptx.cuh").read_bytes()
    versions = [importlib.metadata.version(name) for name in ("cuda-core", "cuda-bindings")] + [str(torch.version.cuda)]
    return hashlib.sha256(text + " ".join(versions).encode()).hexdigest()


def compile_cubin(step: gpu_plans.Launch, capability: int) -> bytes:
    """Machine code of a launch's kernel for compute capability 10 · major + minor; from the disk if it is there.

    Raises:
        RuntimeError: NVRTC refused the source; the message holds its log.
    """
    defines = [step.element, *((name, str(value)) for name, value in step.constants)]
    digest = hashlib.sha256(f"{_sources_digest(step.source)} {defines}".encode()).hexdigest()[:24]
    kept = cache.folder("kernels") / f"{step.entry}-sm{capability}-{digest}.cubin"
    if kept.exists():
        return kept.read_bytes()
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(arch=f"sm_{capability}", std="c++17", include_path=str(KERNELS), define_macro=defines)
    try:
        code: bytes = Program((KERNELS / step.source).read_text(), "c++", options).compile("cubin").code
    except Exception as error:
        raise RuntimeError(f"NVRTC could not compile {step.source} for sm_{capability}:\n{error}") from error
    with cache.beside(kept) as own:
        own.write_bytes(code)
        own.replace(kept)
    return code


def _done(result: tuple[Any, ...], what: str) -> Any:
    """The value of a call to the driver; what it refused is an exception."""
    status, *values = result
    if status.value:
        raise RuntimeError(f"The driver refused to {what}: {status.name}.")
    return values[0] if values else None


@dataclass(frozen=True)
class _Ready:
    """A launch whose kernel is loaded on a device."""

    step: gpu_plans.Launch
    kernel: Any
    values: tuple[str | ctypes.c_int64 | ctypes.c_int32, ...]  # of the arguments: tensor names and C values

    def launch(self, addresses: dict[str, int], stream: int) -> None:
        """Run on tensors at these addresses, on the driver's stream."""
        from cuda.bindings import driver

        values = [ctypes.c_void_p(addresses[v]) if isinstance(v, str) else v for v in self.values]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        threads, shared, where = (self.step.threads, 1, 1), self.step.shared, ctypes.addressof(pointers)
        result = driver.cuLaunchKernel(self.kernel, *self.step.grid, *threads, shared, stream, where, 0)
        _done(result, f"launch {self.step.entry}")


def _load(step: gpu_plans.Launch, device: int, capability: int) -> _Ready:
    from cuda.bindings import driver

    context = _done(driver.cuDevicePrimaryCtxRetain(device), f"use device {device}")
    _done(driver.cuCtxSetCurrent(context), f"use device {device}")
    code = compile_cubin(step, capability)
    library = _done(driver.cuLibraryLoadData(code, [], [], 0, [], [], 0), f"load {step.entry}")
    kernel = _done(driver.cuLibraryGetKernel(library, step.entry.encode()), f"find {step.entry}")
    if step.shared > gpu_plans.direct.SHARED:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        result = driver.cuKernelSetAttribute(attribute, step.shared, kernel, device)
        _done(result, f"give {step.shared} bytes of shared memory to {step.entry}")
    values = tuple(
        a if isinstance(a, str) else ctypes.c_int64(a[1]) if isinstance(a, tuple) else ctypes.c_int32(a)
        for a in step.arguments
    )
    return _Ready(step, driver.CUfunction(int(kernel)), values)


@functools.lru_cache(maxsize=4096)
def _prepare(function: str, problem: gpu_plans.Problem, bias: bool, device: int) -> tuple[tuple[_Ready, ...], int]:
    planner = gpu_plans.PLANS[function]
    plan = planner(problem, bias, target(device)) if function == "forward" else planner(problem, target(device))
    capability = target(device).capability
    return tuple(_load(step, device, capability) for step in plan.launches), plan.workspace


def _run(function: str, problem: gpu_plans.Problem, tensors: dict[str, Tensor]) -> None:
    device = next(iter(tensors.values())).device
    with torch.cuda.device(device):
        steps, workspace = _prepare(function, problem, "bias" in tensors, device.index)
        if workspace:
            tensors = {**tensors, "partial": torch.empty(workspace, dtype=torch.float32, device=device)}
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        stream = torch.cuda.current_stream(device).cuda_stream
        for step in steps:
            step.launch(addresses, stream)


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, at an address that every vector access may use."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


# --- the backend -----------------------------------------------------------------------------------------------------


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """x (N, C, H, W), weight (C, 1, Kh, Kw), bias (C,) or None → (N, C, H', W'), contiguous."""
    problem = gpu_plans.problem(x.shape, x.dtype, weight.shape[2:], stride, padding, dilation)
    y = x.new_empty((*x.shape[:2], *problem.output))
    tensors = {"x": _aligned(x), "w": _aligned(weight), "y": y}
    _run("forward", problem, tensors if bias is None else tensors | {"bias": _aligned(bias)})
    return y


def grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Gradient by x, of `input_shape`, for the output's gradient (N, C, H', W')."""
    problem = gpu_plans.problem(input_shape, grad.dtype, weight.shape[2:], stride, padding, dilation)
    dx = grad.new_empty(input_shape)
    _run("grad_input", problem, {"dy": _aligned(grad), "w": _aligned(weight), "dx": dx})
    return dx


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient by weight, (C, 1, Kh, Kw), for the output's gradient (N, C, H', W'); the same bits at every run."""
    problem = gpu_plans.problem(x.shape, x.dtype, kernel_size, stride, padding, dilation)
    dw = x.new_empty((x.shape[1], 1, *kernel_size))
    _run("grad_weight", problem, {"x": _aligned(x), "dy": _aligned(grad), "dw": dw})
    return dw
