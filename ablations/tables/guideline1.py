"""Guideline 1: large depthwise convolutions can be efficient in practice.

Latency of a depthwise layer of 384 channels over kernel size, at three resolutions: torch's own convolution (NCHW, as
the paper timed it), torch's in channels_last, and ours. The paper's cells are a stack of 24 layers at batch 64 on a
2080 Ti in FP32; here a cell is one forward pass of 24 layers too (one layer timed, times 24), at batch 64 on a GPU and
at batch 8, 2 and 1 for 16², 32² and 64² on a CPU. `--timing` measures them in float32 on the device at hand.

Cost: `python -m ablations.run guideline1 --timing` trains nothing.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

from ablations.spec import Metric, Number, Row, ablation, least
from native import bench, bench_gpu
from native.layers import BATCHES, KERNELS
from replk_lightning.recipes import replknet_120ep

LAYERS = 24
RESOLUTIONS = (16, 32, 64)
TORCH = Metric("torch_ms", "PyTorch (ms)", "timing", 1)
CHANNELS_LAST = Metric("channels_last_ms", "PyTorch channels_last (ms)", "timing", 1)
OURS = Metric("ours_ms", "ours (ms)", "timing", 1)


def time_layers(rows: Sequence[Row]) -> Mapping[str, Mapping[str, float]]:
    """Milliseconds of 24 layers of each row, the three ways taking turns on one layer."""
    return {row.key: _time(row.resolution or 0, row.options["kernel_size"]) for row in rows}


def _time(size: int, kernel: int) -> dict[str, float]:
    if torch.cuda.is_available():
        cell = bench_gpu.bench(bench_gpu.Cell("forward", "float32", 64, 384, size, kernel), rounds=10)
        found = {"torch_ms": "torch_ms", "channels_last_ms": "torch_channels_last_ms", "ours_ms": "ours_ms"}
    else:
        shape = bench.Shape("table 1", BATCHES[size], 384, size, kernel)
        cell = bench.measure(shape, backward=False, budget=1.0, sgemm=bench.sgemm_flops())
        found = {"torch_ms": "nchw ms", "channels_last_ms": "channels_last ms", "ours_ms": "ours ms"}
    return {metric: LAYERS * float(str(cell[name])) for metric, name in found.items()}


@ablation(table=1, recipe=replknet_120ep, metrics=(TORCH, CHANNELS_LAST, OURS), timing=time_layers)
def guideline1() -> Iterator[Row]:
    """Resolution × kernel size."""
    for size in RESOLUTIONS:
        for kernel in KERNELS:
            key, label = f"r{size}-k{kernel}", f"{size}×{size}, {kernel}×{kernel}"
            yield Row(key, "depthwise_conv2d", label=label, resolution=size, trained=False, kernel_size=kernel)


def _lead(torch_ms: dict[str, float], ours_ms: dict[str, float], kernel: str) -> list[float]:
    return [torch_ms[f"r{size}-{kernel}"] / ours_ms[f"r{size}-{kernel}"] for size in RESOLUTIONS]


def _least_lead(torch_ms: dict[str, float], ours_ms: dict[str, float]) -> float:
    return least(*_lead(torch_ms, ours_ms, "k31"))


@guideline1.claim(
    "at 31×31, our layer is at least five times faster than PyTorch's at every resolution",
    Number(
        "least lead of our layer at 31×31 (times)", lambda torch_ms, ours_ms: least(*_lead(torch_ms, ours_ms, "k31"))
    ),
    unit="times",
)
def far_more_efficient(torch_ms: dict[str, float], ours_ms: dict[str, float]) -> float:
    """Table 1, last column: 20, 7.6 and 7.2 times ("far more efficient", Remark 1)."""
    return _least_lead(torch_ms, ours_ms) - 5


@guideline1.claim("the larger the kernel, the larger our lead: it is larger at 31×31 than at 7×7", unit="times")
def lead_grows(torch_ms: dict[str, float], ours_ms: dict[str, float]) -> float:
    """Table 1, columns 7 and 31."""
    at_7, at_31 = _lead(torch_ms, ours_ms, "k7"), _lead(torch_ms, ours_ms, "k31")
    return least(*(large - small for large, small in zip(at_31, at_7, strict=True)))


@guideline1.claim("latency grows more slowly than the number of taps, from 3×3 to 31×31", unit="times")
def latency_grows_slower_than_flops(ours_ms: dict[str, float]) -> float:
    """Sec. 3, Guideline 1: "the actual latency should not increase as much as the increasing of FLOPs"."""
    taps = 31**2 / 3**2
    return least(*(taps - ours_ms[f"r{size}-k31"] / ours_ms[f"r{size}-k3"] for size in RESOLUTIONS))
