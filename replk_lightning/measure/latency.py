"""Speed of whole networks, measured side by side: images a second, training steps, and what depthwise layers take.

Nets that are compared take turns, one batch each a round, so that a drift of the machine's speed hits all alike;
medians over the rounds are reported. A net is timed in the layouts that may suit it, and the faster one counts: on CPUs
channels_last, which suits the libraries best, on GPUs both.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import replk_lightning.models  # noqa: F401  (registers the models)
from native import DepthwiseConv2d
from native.activation import activated
from native.rows import Rows, code
from replk_lightning.deploy import deploy
from replk_lightning.devices import default_device
from replk_lightning.measure.layouts import Clock, Key, turns
from replk_lightning.models.classifier import Classifier
from replk_lightning.models.layout import LAYOUTS
from replk_lightning.models.rewriting import plain_state

Job = tuple[str, int, dict[str, Any]]  # timm model, side of the square input in pixels, model options
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""fp32 is strict, without tf32. In 16 bits inference casts the net, training steps run under autocast."""


IN_A_ROW = 8  # calls of a layer that are timed as one, so that what was in a cache before matters little


@dataclass(frozen=True)
class Form:
    """The form in which a net is timed: a name of PRECISIONS, a name of LAYOUTS, and whether by torch.compile."""

    precision: str = "fp32"
    layout: str = "channels_last"
    compiled: bool = False


def layouts_on(device: torch.device) -> tuple[str, ...]:
    """Those that are worth timing there."""
    return tuple(LAYOUTS) if device.type == "cuda" else ("channels_last",)


@plain_state()
def throughput(
    jobs: Mapping[str, Job],
    batch_size: int = 4,
    rounds: int = 5,
    device: torch.device | None = None,
    clock: Clock = time.perf_counter,
    precision: str = "fp32",
    compiled: bool = False,
) -> dict[str, float]:
    """Images/s of each named job in inference, in seconds of `clock`; this package's models are deployed first."""
    device = device or default_device()
    forms = [Form(precision, layout, compiled) for layout in layouts_on(device)]
    seconds = inference_seconds(jobs, forms, batch_size, rounds, device, clock)
    return {name: batch_size / min(seconds[name, form] for form in forms) for name in jobs}


@plain_state()
def inference_seconds(
    jobs: Mapping[str, Job],
    forms: Sequence[Form],
    batch_size: int,
    rounds: int,
    device: torch.device,
    clock: Clock = time.perf_counter,
) -> dict[tuple[str, Form], float]:
    """Median seconds of a batch of each job in each form, all of them taking turns."""
    steps = {}
    for name, (model, side, options) in jobs.items():
        for form in forms:
            net = _inference_net(model, options, device, form)
            steps[name, form] = _inference_step(net, _images(batch_size, side, device, form), form)
    return medians(steps, rounds, device, clock)


@plain_state()
def training_seconds(
    jobs: Mapping[str, Job],
    forms: Sequence[Form],
    batch_size: int = 2,
    rounds: int = 5,
    device: torch.device | None = None,
) -> dict[tuple[str, Form], float]:
    """Median seconds of a forward and backward pass of each job in each form, its BatchNorms in training mode."""
    device = device or default_device()
    steps = {}
    for name, (model, side, options) in jobs.items():
        for form in forms:
            images = _images(batch_size, side, device, replace(form, precision="fp32"))
            steps[name, form] = _training_step(_formed(_create(model, options, device), form), images, form)
    return medians(steps, rounds, device)


class _Stock(nn.Conv2d):
    """A deployed depthwise layer without our operator: torch's convolution, then the activation in place."""

    activation: str | None = None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return activated(super()._conv_forward(input, weight, bias), self.activation, inplace=True)


@plain_state()
def depthwise_share(
    model: str,
    side: int,
    batch_size: int,
    *,
    stock: bool,
    precision: str = "fp32",
    compiled: bool = False,
    rounds: int = 5,
    **options: Any,
) -> float:
    """Share of a deployed net's inference time that its depthwise layers take, in percent (Sec. 3, Remark 1).

    With the ReLU behind them, which a deployed layer computes. With `stock`, torch's own convolution computes them, in
    the same memory format, that of the rule (`replk_lightning.models.layout`).

    With `compiled`, of the time that torch.compile's net takes. The layers' own is measured in the eager net, in turns
    with it: a stopwatch inside would cut the graph into pieces, and a compiled net calls the same convolutions.
    """
    device = default_device()
    planes = device.type == "cuda" and precision == "fp32"
    form = Form(precision, "nchw" if planes else "channels_last", compiled)
    images, net = _images(batch_size, side, device, form), _inference_net(model, options, device, form)
    layers = [module for module in net.modules() if isinstance(module, DepthwiseConv2d)]
    inside, whole = Stopwatch(device), Stopwatch(device)
    for layer in layers if stock else ():
        layer.__class__ = _Stock  # type: ignore[assignment]
    alone = _inference_step(copy.deepcopy(net), images, form) if compiled else None
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: inside.start())
        layer.register_forward_hook(lambda *_: inside.stop())
    watched, shares = _inference_step(net, images, replace(form, compiled=False)), []
    with strict_float32():
        for turn in range(rounds + 1):
            if alone:
                watched()
            whole.start()
            (alone or watched)()
            whole.stop()
            share = 100 * inside.seconds() / whole.seconds()
            if turn > 0:  # the first round warms up
                shares.append(share)
    return statistics.median(shares)


@plain_state()
def spatial_seconds(
    jobs: Mapping[str, Job], batch_size: int = 1, rounds: int = 5, device: torch.device | None = None
) -> dict[tuple[str, bool], float]:
    """Seconds that all spatial layers of each deployed RepLKNet take for a batch, without the ReLU behind them.

    Keys are a job's name and whether torch's own convolution computes the depthwise ones. One layer a stage is timed,
    several times in a row on a map of its own, ours before torch's and then after it, all of them taking turns; it
    counts as often as the stage has blocks.
    """
    device = device or default_device()
    form, steps, depths = Form(layout=layouts_on(device)[-1]), {}, {}
    for name, (model, side, options) in jobs.items():
        net: Any = _inference_net(model, options, device, form)
        for stage, (blocks, feature) in enumerate(zip(net.stages, net.feature_info, strict=True)):
            block = blocks.blocks[0]
            size = (batch_size, block.pw2.conv.in_channels, *[-(-side // feature["reduction"])] * 2)
            x = torch.randn(size, device=device).contiguous(memory_format=LAYOUTS[form.layout])
            for place, stock in enumerate((False, True, True, False)):
                layer = copy.deepcopy(block.large_kernel)
                for each in layer.modules():
                    if isinstance(each, DepthwiseConv2d):
                        each.activation = None
                        if stock:
                            each.__class__ = _Stock  # type: ignore[assignment]
                steps[name, stock, stage, place] = torch.inference_mode()(partial(_repeatedly, layer, x.clone()))
                depths[name, stock, stage, place] = len(blocks.blocks) / 4  # a block is two layers, each timed twice
    seconds = medians(steps, rounds, device)
    return {
        (name, stock): sum(depths[key] * seconds[key] / IN_A_ROW for key in steps if key[:2] == (name, stock))
        for name, stock, *_ in steps
    }


def _repeatedly(layer: nn.Module, x: Tensor) -> None:
    for _ in range(IN_A_ROW):
        layer(x)


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
    steps: Mapping[Key, Callable[[], object]], rounds: int, device: torch.device, clock: Clock = time.perf_counter
) -> dict[Key, float]:
    """Median seconds of each step, the steps taking turns after one unmeasured round."""
    with strict_float32():
        seconds = turns(steps, rounds, device, clock)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _inference_net(model: str, options: dict[str, Any], device: torch.device, form: Form) -> nn.Module:
    """In eval mode and in the form's precision and layout, ours deployed."""
    net = _create(model, options, device).eval()
    ours = any(isinstance(module, DepthwiseConv2d) for module in net.modules())
    return _formed((deploy(net) if ours else net).to(PRECISIONS[form.precision]), form)


def _create(model: str, options: dict[str, Any], device: torch.device) -> nn.Module:
    with device:
        return timm.create_model(model, **options).float()


def _formed(net: nn.Module, form: Form) -> nn.Module:
    net = net.to(memory_format=LAYOUTS[form.layout])
    if isinstance(net, Classifier):
        net.layout = form.layout
    return net


def _called(net: nn.Module, form: Form) -> Callable[[Tensor], Tensor]:
    """What calls the net: itself, or torch.compile's code for its one shape."""

    def alone(images: Tensor) -> Tensor:
        logits: Tensor = net(images)
        return logits

    # torch counts compilations by code object, leaves a ninth eager, and takes a second shape for a dynamic one
    alone.__code__ = alone.__code__.replace()
    return torch.compile(alone, dynamic=False) if form.compiled else net


def _images(batch_size: int, side: int, device: torch.device, form: Form) -> Tensor:
    images = torch.randn(batch_size, 3, side, side, device=device, dtype=torch.float32)
    return images.to(PRECISIONS[form.precision]).contiguous(memory_format=LAYOUTS[form.layout])


def _inference_step(net: nn.Module, images: Tensor, form: Form) -> Callable[[], Tensor]:
    call = _called(net, form)
    return torch.inference_mode()(lambda: call(images))


def _training_step(net: nn.Module, images: Tensor, form: Form) -> Callable[[], None]:
    labels, dtype = torch.zeros(len(images), dtype=torch.long, device=images.device), PRECISIONS[form.precision]
    call = _called(net, form)
    mixed = torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32)

    def step() -> None:
        net.zero_grad()
        with torch.enable_grad():
            with mixed:
                loss = F.cross_entropy(call(images), labels)
            loss.backward()

    return step


BASELINES = {
    "RepLKNet-31B": "replknet_31b",
    "Swin-B": "swin_base_patch4_window7_224",
    "ConvNeXt-B": "convnext_base",
    "ResNet-152": "resnet152",
}
TRAINED = {"RepLKNet-3": "replknet_3", "RepLKNet-31B": "replknet_31b"}
GROUP = ("pass", "side", "batch", "precision", "compiled", "code")  # what is measured side by side
FIELDS = (*GROUP, "net", "layout", "ms", "images/s")


def groups(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is measured side by side, in turn: inference at each side, a training step at the first."""
    sides = {"inference": options.sides, "training": options.sides[:1]}
    batches = {"inference": options.batch_size, "training": options.training_batch_size}
    for of in options.passes:
        for precision, side in ((p, s) for p in options.precision for s in sides[of]):
            yield dict(zip(GROUP, (of, side, batches[of], precision, options.compile, code()), strict=True))


def compare(group: Mapping[str, Any], rounds: int, device: torch.device) -> Iterator[dict[str, object]]:
    """A row a net and layout: inference beside timm's baselines, a training step of RepLKNet-31 beside RepLKNet-3's."""
    side, batch = group["side"], group["batch"]
    forms = [Form(group["precision"], layout, group["compiled"]) for layout in layouts_on(device)]
    named, measure = (BASELINES, inference_seconds) if group["pass"] == "inference" else (TRAINED, training_seconds)
    jobs: dict[str, Job] = {n: (m, side, {"img_size": side} if "swin" in m else {}) for n, m in named.items()}
    for (net, form), took in measure(jobs, forms, batch, rounds, device).items():
        yield {**group, "net": net, "layout": form.layout, "ms": f"{1e3 * took:.3f}", "images/s": f"{batch / took:.2f}"}


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m native bench --models", description=__doc__)
    p.add_argument("--passes", nargs="+", default=["inference", "training"], choices=["inference", "training"])
    p.add_argument("--precision", nargs="+", default=["fp32"], choices=[*PRECISIONS], help="default: fp32, strict")
    p.add_argument("--sides", nargs="+", type=int, default=[224, 384], help="of inference; training takes the first")
    p.add_argument("--compile", action="store_true", help="by torch.compile")
    p.add_argument("--batch-size", type=int, default=4, help="images a batch in inference (default: 4)")
    p.add_argument("--training-batch-size", type=int, default=2, help="default: 2")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument(
        "--csv", type=Path, help="also write there what is measured, at once; what is there is not measured again"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    """Print the comparison, and write it as CSV where asked, going on with a table that is there."""
    options = _parser().parse_args(argv)
    table = Rows(options.csv, FIELDS, GROUP)
    for group in groups(options):
        if group in table:
            continue
        for row in list(compare(group, options.rounds, default_device())):
            print(*row.values(), sep="  ", flush=True)
            table.add(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
