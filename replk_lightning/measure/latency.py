"""Speed of whole networks, measured side by side: images a second, training steps, and what depthwise layers take.

Nets that are compared take turns, one batch each a round, so that a drift of the machine's speed hits all alike;
medians over the rounds are reported.
"""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import replk_lightning.models  # noqa: F401  (registers the models)
from native import DepthwiseConv2d
from replk_lightning.deploy import deploy
from replk_lightning.devices import default_device
from replk_lightning.models.rewriting import plain_state

Job = tuple[str, int, dict[str, Any]]  # timm model, side of the square input in pixels, model options
Clock = Callable[[], float]


@plain_state()
def throughput(
    jobs: Mapping[str, Job],
    batch_size: int = 4,
    rounds: int = 5,
    device: torch.device | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Images/s of each named job in float32 inference, in seconds of `clock`.

    This package's models are deployed first; nets run channels_last, which suits the libraries best, but ours on GPUs.
    """
    device = device or default_device()
    steps = {}
    for name, (model, side, options) in jobs.items():
        net = _inference_net(model, options, device)
        steps[name] = _inference_step(net, _images(batch_size, side, net, device))
    return {name: batch_size / seconds for name, seconds in medians(steps, rounds, device, clock).items()}


@plain_state()
def training_seconds(
    jobs: Mapping[str, Job], batch_size: int = 2, rounds: int = 5, device: torch.device | None = None
) -> dict[str, float]:
    """Seconds of a forward and backward pass of each job in float32, its BatchNorms in training mode."""
    device = device or default_device()
    steps = {}
    for name, (model, side, options) in jobs.items():
        net = _create(model, options, device)
        steps[name] = _training_step(net, _images(batch_size, side, net, device))
    return medians(steps, rounds, device)


@plain_state()
def depthwise_share(model: str, side: int, batch_size: int, *, stock: bool, rounds: int = 5, **options: Any) -> float:
    """Share of a deployed net's inference time that its depthwise layers take, in percent (Sec. 3, Remark 1).

    With `stock`, torch's own convolution computes them, in the same memory format.
    """
    device = default_device()
    net = _inference_net(model, options, device)
    layers = [module for module in net.modules() if isinstance(module, DepthwiseConv2d)]
    inside, whole = Stopwatch(device), Stopwatch(device)
    for layer in layers:
        if stock:
            layer.__class__ = nn.Conv2d  # type: ignore[assignment] # the same layer without our operator
        layer.register_forward_pre_hook(lambda *_: inside.start())
        layer.register_forward_hook(lambda *_: inside.stop())
    step, shares = _inference_step(net, _images(batch_size, side, net, device)), []
    with strict_float32():
        for turn in range(rounds + 1):
            whole.start()
            step()
            whole.stop()
            share = 100 * inside.seconds() / whole.seconds()
            if turn > 0:  # the first round warms up
                shares.append(share)
    return statistics.median(shares)


def strict_float32() -> Any:
    """Within it, cuDNN computes float32 as float32, as torch's matrix products do anyway, and picks its fastest way."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False)


class Stopwatch:
    """Adds up the time between `start` and `stop`: the device's own on a GPU, which is not made to wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: list[Any] = []

    def _mark(self) -> None:
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    start = stop = _mark

    def seconds(self) -> float:
        """The sum since the last call."""
        marks, self.marks = self.marks, []
        pairs = list(zip(marks[::2], marks[1::2], strict=True))
        if self.on_gpu:
            torch.cuda.synchronize()
            return float(sum(begin.elapsed_time(end) for begin, end in pairs)) / 1000
        return float(sum(end - begin for begin, end in pairs))


def medians(
    steps: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each step, the steps taking turns after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with strict_float32():
        for turn in range(rounds + 1):
            for name, step in steps.items():
                elapsed = _seconds(step, device, clock)
                if turn > 0:
                    seconds[name].append(elapsed)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _seconds(step: Callable[[], object], device: torch.device, clock: Clock) -> float:
    _synchronize(device)
    start = clock()
    step()
    _synchronize(device)
    return clock() - start


def _inference_net(model: str, options: dict[str, Any], device: torch.device) -> nn.Module:
    """The fastest form of a net: ours deployed; channels_last but where our CUDA kernels work on planes."""
    net = _create(model, options, device).eval()
    ours = _is_ours(net)
    if ours:
        net = deploy(net)
    planes = ours and device.type == "cuda"
    return net.to(memory_format=torch.contiguous_format if planes else torch.channels_last)


def _create(model: str, options: dict[str, Any], device: torch.device) -> nn.Module:
    with device:
        return timm.create_model(model, **options).float()


def _is_ours(net: nn.Module) -> bool:
    return any(isinstance(module, DepthwiseConv2d) for module in net.modules())


def _images(batch_size: int, side: int, net: nn.Module, device: torch.device) -> Tensor:
    planes = _is_ours(net) and device.type == "cuda"
    images = torch.randn(batch_size, 3, side, side, device=device, dtype=torch.float32)
    return images.contiguous(memory_format=torch.contiguous_format if planes else torch.channels_last)


def _inference_step(net: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    return torch.inference_mode()(lambda: net(images))


def _training_step(net: nn.Module, images: Tensor) -> Callable[[], None]:
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        net.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(net(images), labels).backward()

    return step


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


BASELINES = {
    "RepLKNet-31B, deployed": "replknet_31b",
    "Swin-B": "swin_base_patch4_window7_224",
    "ConvNeXt-B": "convnext_base",
    "ResNet-152": "resnet152",
}


def compare(batch_size: int, rounds: int) -> list[tuple[str, int, str, float]]:
    """RepLKNet-31B beside timm's baselines at 224² and 384², then its training step beside RepLKNet-3's (batch 2).

    Rows of (net, side, unit, value).
    """
    rows = []
    for side in (224, 384):
        jobs: dict[str, Job] = {
            label: (name, side, {"img_size": side} if "swin" in name else {}) for label, name in BASELINES.items()
        }
        rates = throughput(jobs, batch_size, rounds)
        rows += [(label, side, "images/s", rate) for label, rate in rates.items()]
    steps = training_seconds({n: (n, 224, {}) for n in ("replknet_3", "replknet_31b")}, 2, rounds)
    return rows + [(f"{name}, training step, batch 2", 224, "s", seconds) for name, seconds in steps.items()]


def main(argv: list[str] | None = None) -> int:
    """Print the comparison, and write it as CSV where asked."""
    parser = argparse.ArgumentParser(prog="python -m replk_lightning.measure.latency", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4, help="images a batch in inference (default: 4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    arguments = parser.parse_args(argv)
    rows = compare(arguments.batch_size, arguments.rounds)
    for net, side, unit, value in rows:
        print(f"{net:<40} {side}²  {value:8.3f} {unit}")
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("net", "side", "unit", "value"), *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
