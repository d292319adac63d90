"""MobileNetV2 whose depthwise kernels are a parameter: the network of the guidelines (Sec. 3, Tables 2, 3, 4 and 11).

Papers: "MobileNetV2: Inverted Residuals and Linear Bottlenecks", https://arxiv.org/abs/1801.04381, and
"Scaling Up Your Kernels to 31x31", https://arxiv.org/abs/2203.06717.

All 17 depthwise layers change, those of stride 2 too ("simply replace all the DW 3×3 layers with 13×13", Guideline 2).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from timm.layers import DropPath, make_divisible
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from replk_lightning.models.build import build
from replk_lightning.models.classifier import Classifier
from replk_lightning.models.layout import in_fast_layout
from replk_lightning.models.reparam import ConvBN, LargeKernelConv, odd_pair

# Expansion t, channels c and blocks n of each stage (MobileNetV2's Table 2); its strides s are an argument.
_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
_LAYERS = sum(blocks for _, _, blocks in _STAGES)
# Stages whose outputs are feature maps: the last ones at strides 2, 4, 8, 16 and 32.
_FEATURE_STAGES = (0, 1, 2, 4, 6)
# Table 4's "last stage": the layers of 960 channels, at 7×7 for a picture of 224.
_LAST_LAYERS = 3


class DepthwiseOptions(NamedTuple):
    """The arguments of a `LargeKernelConv` beyond its channels."""

    kernel_size: int
    stride: int = 1
    small_kernel: int | None = None
    dilation: int = 1


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise layer, linear 1×1 projection and, if wanted, a shortcut around them.

    Args:
        in_channels: C of the input (N, C, H, W).
        out_channels: C' of the output (N, C', ⌈H / stride⌉, ⌈W / stride⌉).
        expansion: Hidden channels over C; with 1 there is no expanding convolution.
        depthwise: Kernel size, stride, small kernel and dilation of the depthwise layer.
        shortcut: Whether to add the input to the output, which then has its shape.
        drop_path: Probability that stochastic depth drops all but the shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        depthwise: DepthwiseOptions,
        shortcut: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__()
        hidden = in_channels * expansion
        expand = ConvBN(nn.Conv2d(in_channels, hidden, 1, bias=False), nn.ReLU6())
        self.expand: nn.Module = expand if expansion > 1 else nn.Identity()
        self.depthwise = LargeKernelConv(hidden, *depthwise)
        self.nonlinear = nn.ReLU6()
        self.project = ConvBN(nn.Conv2d(hidden, out_channels, 1, bias=False))
        self.shortcut = shortcut
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        y: Tensor = self.project(self.nonlinear(self.depthwise(self.expand(x))))
        return x + self.drop_path(y) if self.shortcut else y


class MobileNetV2(Classifier):
    """MobileNetV2 with free depthwise kernels.

    Args:
        kernel_size: K of all 17 depthwise layers, odd (Tables 2 and 3).
        shortcut: False removes all ten shortcuts (Table 2).
        small_kernel: k of a parallel depthwise branch in every layer with k < K (Table 3), or None.
        dilation: Dilation of the 3×3 depthwise layers (Table 11); larger kernels are never dilated by it.
        last_stage_kernel: K of the three layers with 960 channels instead (Table 4), or None.
        width: Multiplier of the channels, which are rounded to multiples of 8; `num_features` do not shrink.
        num_features: Channels of the last convolution; `width` above 1 multiplies them too.
        output_stride: 8, 16 or 32: beyond it, strides become dilations for dense prediction. As in MMSegmentation, the
            first layer of such a stage is dilated and the others are not.
        dilate_large: Whether those dilations apply to kernels beyond 3×3 too. The paper does not say; 13×13 dilated by
            4 would span 49 pixels of a map an eighth as wide as the picture.
        stem_stride: 1 doubles the size of every feature map, for small pictures.
        strides: Of the seven stages, for small pictures.
        num_classes: Outputs of the head; 0 for none.
        in_chans: Channels of the picture.
        global_pool: Pooling before the head, as in timm ("avg", "max", …).
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the blocks with a shortcut: block i of 17 has i / 17 of it, as in timm.

    Input (N, in_chans, H, W), output (N, num_classes), computed in the device's fast layout: `memory_format`.

    Raises:
        ValueError: A kernel is even, `dilation` finds no 3×3 layer, or `strides` or `output_stride` is none of these.
    """

    def __init__(
        self,
        kernel_size: int = 3,
        shortcut: bool = True,
        small_kernel: int | None = None,
        dilation: int = 1,
        last_stage_kernel: int | None = None,
        width: float = 1.0,
        num_features: int = 1280,
        output_stride: int = 32,
        dilate_large: bool = False,
        stem_stride: int = 2,
        strides: Sequence[int] = (1, 2, 2, 2, 1, 2, 1),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        kernels = _kernels(kernel_size, last_stage_kernel, small_kernel, dilation)
        steps = _steps(strides, stem_stride, output_stride)
        self.in_chans = in_chans
        self.grad_checkpointing = False
        channels = make_divisible(32 * width)
        self.stem = ConvBN(nn.Conv2d(in_chans, channels, 3, stem_stride, padding=1, bias=False), nn.ReLU6())
        self.stages = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        options = _depthwise_options(kernels, steps, small_kernel, dilation, dilate_large)
        rates = (drop_path_rate * layer / _LAYERS for layer in range(_LAYERS))
        for index, ((expansion, base, blocks), (*_, reduction)) in enumerate(zip(_STAGES, steps, strict=True)):
            stage = nn.Sequential()
            for block in range(blocks):
                before, channels = channels, make_divisible(base * width)
                stage.append(
                    InvertedResidual(before, channels, expansion, next(options), shortcut and block > 0, next(rates))
                )
            self.stages.append(stage)
            if index in _FEATURE_STAGES:
                self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{index}"})
        features = make_divisible(num_features * max(1.0, width))
        self.final: nn.Module = ConvBN(nn.Conv2d(channels, features, 1, bias=False), nn.ReLU6())
        self.add_head(features, num_classes, global_pool, drop_rate)
        self.apply(_initialise)

    def new_head(self) -> nn.Module:
        """A fresh head for `num_classes`, N(0, 0.01²)."""
        return super().new_head().apply(_initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass; running statistics of batch norms then move twice as fast."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int, int]]:
        """Layer of each parameter, by its name, for learning-rate decay in timm: stem, blocks or stages, head."""

        def layer(name: str) -> tuple[int, int]:
            part, *path = name.split(".")
            if part == "stages":
                return 1 + int(path[0]), 0 if coarse else int(path[1])
            return (0, 0) if part == "stem" else (1 + len(_STAGES), 0)

        return layer

    def _stem(self, x: Tensor) -> Tensor:
        return in_fast_layout(self.stem(in_fast_layout(x, self.memory_format)), self.memory_format)

    def _stage(self, index: int, x: Tensor) -> Tensor:
        stage = self.stages[index]
        x = checkpoint_seq(stage, x) if self.grad_checkpointing and self.training else stage(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, num_features, H / 32, W / 32), before pooling."""
        x = self._stem(x)
        for index in range(len(self.stages)):
            x = self._stage(index, x)
        x = self.final(x)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Five feature maps: 16, 24, 32, 96 and 320 channels (at width 1) at strides 2, 4, 8, 16 and 32.

        Args:
            x: (N, in_chans, H, W).
            indices: Maps to return; an int for the last ones, None for all.
            norm: No effect: every map comes out of a batch norm.
            stop_early: Compute no stage beyond the last one asked for.
            output_fmt: Only "NCHW".
            intermediates_only: Return the list alone, without the final features.
        """
        if output_fmt != "NCHW":
            raise ValueError(f'output_fmt is {output_fmt!r}, but feature maps are "NCHW" only')
        take, last = feature_take_indices(len(self.feature_info), indices)
        wanted = [_FEATURE_STAGES[i] for i in take]
        stages = _FEATURE_STAGES[last] + 1 if stop_early else len(self.stages)
        maps = []
        x = self._stem(x)
        for index in range(stages):
            x = self._stage(index, x)
            if index in wanted:
                maps.append(x)
        if intermediates_only:
            return maps
        return (self.final(x) if stages == len(_STAGES) else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what follows the last map of `indices`, the head included; returns the indices as counted from 0.

        `prune_head` False keeps the head where nothing before it is dropped.
        """
        take, last = feature_take_indices(len(self.feature_info), indices)
        self.stages = self.stages[: _FEATURE_STAGES[last] + 1]
        if prune_head or len(self.stages) < len(_STAGES):
            self.final = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return take


def _kernels(kernel_size: int, last_stage_kernel: int | None, small_kernel: int | None, dilation: int) -> list[int]:
    """Kernel sizes of the 17 depthwise layers, from the picture to the head."""
    last = kernel_size if last_stage_kernel is None else last_stage_kernel
    for name, size in (("kernel_size", kernel_size), ("last_stage_kernel", last), ("small_kernel", small_kernel)):
        if size is not None:
            odd_pair(name, size)
    kernels = [kernel_size] * (_LAYERS - _LAST_LAYERS) + [last] * _LAST_LAYERS
    if dilation > 1 and 3 not in kernels:
        remedy = "leave it at 1 or use kernel_size=3"
        raise ValueError(f"dilation is {dilation}, but it applies to 3×3 kernels only: {remedy}")
    return kernels


class _Step(NamedTuple):
    """Stride and dilation of a stage's first layer, and how many times smaller than the picture its map is."""

    stride: int
    dilation: int
    reduction: int


def _steps(strides: Sequence[int], reduction: int, output_stride: int) -> list[_Step]:
    """Of each stage, behind a stem of stride `reduction`: beyond `output_stride`, strides become dilations."""
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride is {output_stride}: use 8, 16 or 32")
    if len(strides) != len(_STAGES):
        raise ValueError(f"strides is {strides}, but there are seven stages: give one stride for each")
    steps, dilation = [], 1
    for stride in strides:
        if reduction * stride > output_stride:
            dilation, stride = dilation * stride, 1
        reduction *= stride
        steps.append(_Step(stride, dilation, reduction))
    return steps


def _depthwise_options(
    kernels: Sequence[int], steps: Sequence[_Step], small_kernel: int | None, dilation: int, dilate_large: bool
) -> Iterator[DepthwiseOptions]:
    """Of the 17 layers, from the picture to the head."""
    sizes = iter(kernels)
    for (*_, blocks), step in zip(_STAGES, steps, strict=True):
        for block in range(blocks):
            kernel = next(sizes)
            stride, kept = (step.stride, step.dilation) if block == 0 else (1, 1)
            small = small_kernel if small_kernel is not None and small_kernel < kernel else None
            own = dilation if kernel == 3 else 1
            yield DepthwiseOptions(kernel, stride, small, own * (kept if kernel == 3 or dilate_large else 1))


def _initialise(module: nn.Module) -> None:
    """Kaiming's normal by fan-out for convolutions, N(0, 0.01²) for the head, as MobileNetV2 is usually trained."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs(
    {
        "mobilenetv2_lk.untrained": {
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "num_classes": 1000,
            "first_conv": "stem.conv",
            "classifier": "head",
            "paper_ids": "arXiv:2203.06717",
        }
    }
)


@register_model
def mobilenetv2_lk(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 with large depthwise kernels (Sec. 3, Guidelines 2, 3 and 5); the options are `MobileNetV2`'s."""
    return build(MobileNetV2, "mobilenetv2_lk", pretrained, len(_FEATURE_STAGES), **kwargs)
