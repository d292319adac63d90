"""Shape bias: how often a net decides by shape where shape and texture say different things.

The paper shows RepLKNet-31B, Swin-B, RepLKNet-3 and ResNet-152 on Geirhos's 16 classes and prints no numbers; here two
families vary in their kernels alone. On `scenes-cue-conflict`, digits are shapes and photographs are textures: in
training the two agree, in the test never. On ImageNet folders, Geirhos's stimuli are looked for in the folder
`cue-conflict` beside `train` and `val`, and the paper's own nets are measured with weights given by `--init`.

Beside the bias stand the share of the decisions that are for either cue, and the accuracy on test scenes whose cues
agree as in training: a net that has learned nothing has no bias worth the name.

Cost: `python -m ablations.run figure5`, about 2.5 minutes of training a row and seed at `small` on one thread of an AMD
EPYC with AVX512.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ablations.report.plots import scatters
from ablations.report.results import Results, Setting
from ablations.scales import CUE_CONFLICT, CUE_CONFLICT_SMOKE
from ablations.spec import Drawing, Measured, Metric, Number, Row, ablation, least
from replk_lightning import recipes

if TYPE_CHECKING:
    from replk_lightning.data import ImageData

BIAS = Metric("shape_bias", "shape bias (%)", digits=1)
EITHER = Metric("either", "decisions for either cue (%)", digits=1)
AGREEING = Metric("agreeing", "top-1 where cues agree (%)", digits=1)
OF_CLASS = "shape_bias of "
SWIN_B = "swin_base_patch4_window7_224"


def measure_bias(net: nn.Module, data: "ImageData") -> Measured:
    """Shape bias in percent, mean and per class; nothing where the data have no cues in conflict."""
    from replk_lightning.data.imagefolder import ImageFolder  # imports Lightning, which rendering does without
    from replk_lightning.data.scenes import Scenes, compose
    from replk_lightning.measure.shape_bias import measure_stimuli, shape_bias

    metrics = {}
    if isinstance(data, Scenes):
        agree, conflict = (compose("test", data.image_size, cues) for cues in ("agree", "conflict"))
        metrics["agreeing"] = 100 * (_decisions(net, agree.images) == agree.classes[:, 0]).double().mean().item()
        cues = (_decisions(net, conflict.images), conflict.classes[:, 0], conflict.textures[:, 0])
        bias = shape_bias(*([str(label) for label in labels.tolist()] for labels in cues))
    elif isinstance(data, ImageFolder) and (data.root / "cue-conflict").is_dir():
        bias = measure_stimuli(net, data.root / "cue-conflict", data.augmentation.preprocessing(data.image_size))
    else:
        return Measured({}, {})
    metrics[EITHER.key] = 100 * bias.either
    if bias.per_class:  # else no decision was for either cue
        metrics[BIAS.key] = 100 * bias.mean
    return Measured(metrics | {OF_CLASS + name: 100 * value for name, value in bias.per_class.items()}, {})


@torch.no_grad()
def _decisions(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    from replk_lightning.data.scenes import normalise

    device = next(net.parameters()).device
    net.eval()
    return torch.cat([net(normalise(batch.to(device))).argmax(1).cpu() for batch in torch.split(images, 100)])


def draw(results: Results, setting: Setting, runs: Path) -> Drawing:
    """A dot a class and a line a net, means over seeds."""
    values = results.values([setting])
    classes = sorted(metric.removeprefix(OF_CLASS) for metric in values if metric.startswith(OF_CLASS))
    biases = {
        row.label: {
            name: values[OF_CLASS + name][row.key] / 100 for name in classes if row.key in values[OF_CLASS + name]
        }
        for row in results.ablation.rows
        if row.key in values.get(BIAS.key, {})
    }
    numbers: list[list[str | float]] = [["net", "class", "shape bias"]]
    numbers += [[net, name, round(value, 4)] for net, by_class in biases.items() for name, value in by_class.items()]
    title = f"Decisions by shape, of those by shape or texture ({setting.data}, scale {setting.scale})"
    return Drawing(scatters(biases, classes, title, "shape bias"), numbers)


@ablation(
    figure=5,
    recipe=recipes.replknet_120ep,
    metrics=(BIAS, EITHER, AGREEING),
    measure=measure_bias,
    draw=draw,
    scales={"smoke": CUE_CONFLICT_SMOKE, "small": CUE_CONFLICT},
)
def figure5() -> Iterator[Row]:
    """RepLKNets and MobileNetV2s over kernel size; then, at `paper`, the figure's other nets."""
    for kernel in (3, 7, 13, 31):
        yield Row(f"replknet{kernel}", f"replknet_{kernel}{'b' * (kernel == 31)}", label=f"RepLKNet-{kernel}")
    for kernel in (3, 9, 13):
        label = f"MobileNetV2 {kernel}×{kernel}"
        yield Row(f"k{kernel}", "mobilenetv2_lk", label=label, recipe=recipes.mobilenetv2_100ep, kernel_size=kernel)
    yield Row("replknet31-22k", "replknet_31b", label="RepLKNet-31B (ImageNet-22K)", published=True)
    yield Row("swin-b", SWIN_B, label="Swin-B", published=True)
    yield Row("swin-b-22k", SWIN_B, label="Swin-B (ImageNet-22K)", published=True)
    yield Row("resnet152", "resnet152", label="ResNet-152", published=True)


Biases = dict[str, float]


def _lead_in_shape(shape_bias: Biases) -> float:
    return shape_bias["replknet31"] - shape_bias["replknet3"]


@figure5.claim(
    "RepLKNet-31 decides by shape more often than RepLKNet-3",
    Number("RepLKNet-31's shape bias less RepLKNet-3's (points)", _lead_in_shape),
)
def large_kernels_see_shape(shape_bias: Biases) -> float:
    """Sec. 5.2 and Figure 5."""
    return _lead_in_shape(shape_bias)


@figure5.claim("shape bias grows with RepLKNet's kernels: 3 < 7 < 13 < 31")
def bias_grows_with_replknets_kernels(shape_bias: Biases) -> float:
    """Sec. 3, Remark 4: "simply enlarging the kernel size in CNNs can effectively improve the shape bias"."""
    biases = [shape_bias[f"replknet{kernel}"] for kernel in (3, 7, 13, 31)]
    return least(*(larger - smaller for smaller, larger in pairwise(biases)))


@figure5.claim("shape bias grows with MobileNetV2's kernels: 3 < 9 < 13")
def bias_grows_with_mobilenets_kernels(shape_bias: Biases) -> float:
    """Sec. 3, Remark 4."""
    return least(shape_bias["k9"] - shape_bias["k3"], shape_bias["k13"] - shape_bias["k9"])
