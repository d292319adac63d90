"""Images per second of whole networks, measured side by side."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from replk_lightning.deploy import deploy


def throughput(
    jobs: Mapping[str, tuple[str, int, dict[str, Any]]],
    batch_size: int = 4,
    rounds: int = 5,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Median images/s of each job `{name: (timm model, side of the input, model options)}` in float32 inference.

    The nets take turns, one batch each a round, so that a drift of the machine's speed hits all alike. This
    package's models are deployed first; every net runs channels_last, which suits the CPU and GPU libraries best.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    nets = {name: _inference_net(model, options).to(device) for name, (model, _, options) in jobs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, (_, side, _) in jobs.items():
            images = torch.randn(batch_size, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
            elapsed = _timed(nets[name], images)
            if turn > 0:  # the first round warms up
                seconds[name].append(elapsed)
    return {name: batch_size / statistics.median(times) for name, times in seconds.items()}


def _inference_net(model: str, options: dict[str, Any]) -> nn.Module:
    net = timm.create_model(model, **options).eval()
    if model.startswith(("replknet", "mobilenetv2_lk")):
        return deploy(net)
    return net.to(memory_format=torch.channels_last)


@torch.inference_mode()
def _timed(net: nn.Module, images: Tensor) -> float:
    """Seconds of one forward pass, waiting for the device."""
    _synchronize(images.device)
    start = time.perf_counter()
    net(images)
    _synchronize(images.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
