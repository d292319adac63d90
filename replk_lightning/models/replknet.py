"""RepLKNet: a pure convolutional network whose depthwise kernels are as large as 31×31 (Sec. 4, Fig. 4).

Paper: "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs", https://arxiv.org/abs/2203.06717

A stem (stride 4), four stages of [RepLK block, ConvFFN] pairs with a transition (stride 2) between two stages, a head.
Parameter names are the official release's, so that its checkpoints load; every kernel, depth and width is an argument.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from native.geometry import pair
from replk_lightning.models.blocks import RepLKNetStage, stem, transition
from replk_lightning.models.build import build
from replk_lightning.models.classifier import Classifier
from replk_lightning.models.layout import in_fast_layout
from replk_lightning.models.reparam import KernelSize, odd_pair
from replk_lightning.models.spatial import Place


class RepLKNet(Classifier):
    """RepLKNet of free depths, widths and kernels: B, C and K of Sec. 4.1.

    Args:
        kernel_sizes: K of each stage, odd; (31, 29, 27, 13) is RepLKNet-31.
        depths: B, the pairs of RepLK block and ConvFFN of each stage.
        dims: C of each stage.
        small_kernel: Kernel that trains beside each large one; stages whose kernel is smaller do without. 0 or None:
            none (`timm.create_model` hands no None on, and would leave the 5 standing).
        dw_ratio: Channels of the large depthwise convolutions over C.
        ffn_ratio: Hidden channels of a ConvFFN over C.
        num_classes: Outputs of the head; 0 for none.
        in_chans: Channels of the picture.
        global_pool: Pooling before the head, as in timm ("avg", "max", …).
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0 at the first.
        norm_outputs: A batch norm on each feature map for dense prediction (`stages.i.norm`), as RepLKNet-XL has.
        output_stride: 8, 16 or 32: beyond it, strides become dilations of all depthwise kernels behind them, so that
            the finer map holds the coarser one's values, and others between them. None keeps all strides.
        spatial: Name of the layer between a RepLK block's 1×1 convolutions: "replk" is the paper's; `models.spatial`
            has those of papers since, and what they make of `kernel_sizes` and `small_kernel`.
        img_size: H = W, or (H, W), of the pictures for which "global" is global.

    Input (N, in_chans, H, W), output (N, num_classes); stage i is 2^(i+2) times smaller than the picture, or
    `output_stride` times. It computes in the device's fast layout: `memory_format`.

    Raises:
        ValueError: A kernel size is even, kernel_sizes, depths and dims differ in length, output_stride is another, or
            there is no such spatial layer.
    """

    def __init__(
        self,
        kernel_sizes: Sequence[KernelSize] = (31, 29, 27, 13),
        depths: Sequence[int] = (2, 2, 18, 2),
        dims: Sequence[int] = (128, 256, 512, 1024),
        small_kernel: KernelSize | None = 5,
        dw_ratio: float = 1.0,
        ffn_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_outputs: bool = False,
        output_stride: int | None = None,
        spatial: str = "replk",
        img_size: int | tuple[int, int] = 224,
    ):
        super().__init__()
        if not len(kernel_sizes) == len(depths) == len(dims):
            raise ValueError(
                f"kernel_sizes {kernel_sizes}, depths {depths} and dims {dims} need one entry for each stage"
            )
        longer = max(pair("img_size", img_size))
        if longer < 1:
            raise ValueError(f"img_size is {img_size}: use the side of the pictures in pixels")
        reductions, dilations = _reductions(len(dims), output_stride)
        self.in_chans, self.depths = in_chans, tuple(depths)
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"}
            for i, (dim, reduction) in enumerate(zip(dims, reductions, strict=True))
        ]
        self.stem = stem(in_chans, dims[0])
        self.stages = nn.ModuleList()
        rates = _drop_paths(drop_path_rate, depths)
        settings = zip(dims, kernel_sizes, rates, dilations, reductions, strict=True)
        for dim, kernel_size, own_rates, dilation, reduction in settings:
            small = small_kernel if _fits(small_kernel, kernel_size) else None
            place = Place(int(dim * dw_ratio), kernel_size, small, dilation, -(-longer // reduction))
            self.stages.append(RepLKNetStage(dim, place, spatial, own_rates, ffn_ratio, norm_outputs))
        strides = [after // before for before, after in pairwise(reductions)]
        self.transitions = nn.ModuleList(
            transition(dim, wider, stride, dilation)
            for (dim, wider), stride, dilation in zip(pairwise(dims), strides, dilations[:-1], strict=True)
        )
        self.norm: nn.Module = nn.BatchNorm2d(dims[-1])
        self.add_head(dims[-1], num_classes, global_pool, drop_rate)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations.

        Gradients stay the same; batch norms see each batch twice, so their running statistics move twice as fast.
        """
        for stage in self.modules():
            if isinstance(stage, RepLKNetStage):
                stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int, int]]:
        """Layer of each parameter, by its name, for layer-wise learning-rate decay in timm.

        Fine: the stem; every two pairs of RepLK block and ConvFFN, the last of a stage with the transition after it;
        the head: 14 layers in RepLKNet-31, as in the official fine-tuning. Coarse: the stem, the stages, the head (the
        "stage-wise learning rate decay" of Appendix A).
        """
        last_group = [(pairs - 1) // 2 for pairs in self.depths]

        def layer(name: str) -> tuple[int, int]:
            part, *path = name.split(".")
            if part == "stem":
                return 0, 0
            if part not in ("stages", "transitions"):
                return len(last_group) + 1, 0
            stage = int(path[0])
            if coarse:
                return stage + 1, 0
            in_block = part == "stages" and path[1] == "blocks"
            return stage + 1, int(path[2]) // 4 if in_block else last_group[stage]

        return layer

    def _stem(self, x: Tensor) -> Tensor:
        for layer in self.stem:
            x = layer(in_fast_layout(x, self.memory_format))
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, C_4, H / 32, W / 32), normalised, before pooling."""
        x = self._stem(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i < len(self.transitions):
                x = self.transitions[i](x)
        x = self.norm(x)
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
        """The outputs of the stages, each (N, C_i, H / 2^(i+2), W / 2^(i+2)), before the transitions.

        Args:
            x: (N, in_chans, H, W).
            indices: Stages to return; an int for the last ones, None for all.
            norm: Also apply the final batch norm to the last stage's map.
            stop_early: Compute no stage beyond the last one asked for.
            output_fmt: Only "NCHW".
            intermediates_only: Return the list alone, without the final features.

        A model with `norm_outputs` returns each map after its own batch norm.
        """
        if output_fmt != "NCHW":
            raise ValueError(f'output_fmt is {output_fmt!r}, but feature maps are "NCHW" only')
        take, last = feature_take_indices(len(self.stages), indices)
        maps = []
        x = self._stem(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in take:
                y = stage.get_submodule("norm")(x)
                maps.append(self.norm(y) if norm and i == len(self.transitions) else y)
            if stop_early and i == last:
                break
            if i < len(self.transitions):
                x = self.transitions[i](x)
        if intermediates_only:
            return maps
        return (self.norm(x) if i == len(self.transitions) else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last one of `indices`, and norm and head; returns the indices counted from 0.

        `prune_head` False keeps the head where no stage is dropped.
        """
        take, last = feature_take_indices(len(self.stages), indices)
        prune_head |= last < len(self.stages) - 1
        if prune_norm or last < len(self.stages) - 1:
            self.norm = nn.Identity()
        self.stages = self.stages[: last + 1]
        self.transitions = self.transitions[:last]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head:
            self.reset_classifier(0, "")
        return take


def _reductions(stages: int, output_stride: int | None) -> tuple[list[int], list[int]]:
    """How many times smaller than the picture each stage is, and its dilation; raises ValueError."""
    if output_stride not in (None, 8, 16, 32):
        raise ValueError(f"output_stride is {output_stride}: use 8, 16 or 32")
    full = [4 * 2**i for i in range(stages)]
    reductions = [min(reduction, output_stride or reduction) for reduction in full]
    return reductions, [own // kept for own, kept in zip(full, reductions, strict=True)]


def _drop_paths(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth of the pairs of each stage: from 0 at the first to `last`."""
    rates = iter(last * i / max(1, sum(depths) - 1) for i in range(sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _fits(small: KernelSize | None, large: KernelSize) -> bool:
    if small is None or small == 0:
        return False
    pairs = zip(odd_pair("small_kernel", small), odd_pair("kernel_sizes", large), strict=True)
    return all(k <= K for k, K in pairs)


def _cfg(**fields: Any) -> dict[str, Any]:
    """timm's data settings: what the official evaluation does below 384 pixels, unless told otherwise."""
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}
    sizes = {"input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.875, "num_classes": 1000}
    names = {"first_conv": "stem.0.conv", "classifier": "head", "paper_ids": "arXiv:2203.06717", "license": "mit"}
    return imagenet | sizes | names | fields


# At 384 the official evaluation resizes the whole picture to 384×384 and crops nothing.
_AT_384 = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0, "crop_mode": "squash"}
_HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

_CONVERTED = "https://download.openmmlab.com/mmclassification/v0/replknet/replknet-"


def _released(file: str | None, drive: str, **fields: Any) -> dict[str, Any]:
    """One of the release's nets: as OpenMMLab serves it, eight digits of its SHA-256 at the end, and its origin.

    The release's own place, Google Drive, answers programs with a page that asks whether one is sure. Nets that
    OpenMMLab does not serve are there alone.
    """
    address = file and f"{_CONVERTED}{file}.pth"
    return _cfg(url=address, origin_url=f"https://drive.google.com/file/d/{drive}/view", **fields)


default_cfgs = generate_default_cfgs(
    {
        "replknet_3.untrained": _cfg(),
        "replknet_7.untrained": _cfg(),
        "replknet_13.untrained": _cfg(),
        "replknet_25.untrained": _cfg(),
        "replknet_31b.in1k": _released("31B_3rdparty_in1k_20221118-fd08e268", "1azQUiCxK9feYVkkrPqwVPBtNsTzDrX7S"),
        "replknet_31b.in1k_384": _released(
            "31B_3rdparty_in1k-384px_20221118-03a170ce", "1vo-P3XB6mRLUeDzmgv90dOu73uCeLfZN", **_AT_384
        ),
        "replknet_31b.in22k_ft_in1k": _released(
            "31B_in21k-pre_3rdparty_in1k_20221118-54ed5c46", "1DslZ2voXZQR1QoFY9KnbsHAeF84hzS0s"
        ),
        "replknet_31b.in22k_ft_in1k_384": _released(
            "31B_in21k-pre_3rdparty_in1k-384px_20221118-76c92b24", "1Sc46BWdXXm2fVP-K_hKKU_W8vAB-0duX", **_AT_384
        ),
        "replknet_31b.in22k": _released(None, "1PYJiMszZYNrkZOeYwjccvxX8UHMALB7z", num_classes=21841),
        "replknet_31l.in22k_ft_in1k_384": _released(
            "31L_in21k-pre_3rdparty_in1k-384px_20221118-dc3fc07c", "1JYXoNHuRvC33QV1pmpzMTKEni1hpWfBl", **_AT_384
        ),
        "replknet_31l.in22k": _released(None, "16jcPsPwo5rko7ojWS9k_W-svHX-iFknY", num_classes=21841),
        "replknet_xl.meg73m_ft_in1k": _released(
            "XL_meg73m-pre_3rdparty_in1k-320px_20221118-88259b1d",
            "1tPC60El34GntXByIRHb-z-Apm4Y5LX1T",
            **{**_HALVES, "input_size": (3, 320, 320), "pool_size": (10, 10)},
        ),
    }
)


def _create_replknet(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    return build(RepLKNet, variant, pretrained, len(kwargs.get("dims", (1, 2, 3, 4))), **(defaults | kwargs))


@register_model
def replknet_3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-3: all kernels 3×3, the small-kernel baseline (Table 5)."""
    return _create_replknet("replknet_3", pretrained, {"kernel_sizes": (3, 3, 3, 3)}, kwargs)


@register_model
def replknet_7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-7: all kernels 7×7 (Table 5)."""
    return _create_replknet("replknet_7", pretrained, {"kernel_sizes": (7, 7, 7, 7)}, kwargs)


@register_model
def replknet_13(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-13: all kernels 13×13 (Sec. 4.2, Table 5)."""
    return _create_replknet("replknet_13", pretrained, {"kernel_sizes": (13, 13, 13, 13)}, kwargs)


@register_model
def replknet_25(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-25: kernels 25, 25, 25, 13 (Sec. 4.2, Table 5)."""
    return _create_replknet("replknet_25", pretrained, {"kernel_sizes": (25, 25, 25, 13)}, kwargs)


@register_model
def replknet_31b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-31B: kernels 31, 29, 27, 13 and widths 128 to 1024 (Sec. 4.2, Tables 5 and 6)."""
    return _create_replknet("replknet_31b", pretrained, {"kernel_sizes": (31, 29, 27, 13)}, kwargs)


@register_model
def replknet_31l(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-31L: RepLKNet-31B with widths 192 to 1536 (Sec. 4.2, Table 6)."""
    defaults = {"kernel_sizes": (31, 29, 27, 13), "dims": (192, 384, 768, 1536)}
    return _create_replknet("replknet_31l", pretrained, defaults, kwargs)


@register_model
def replknet_xl(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-XL: kernels 27, 27, 27, 13, widths 256 to 2048, 1.5 times as many depthwise channels (Appendix A).

    It trains without small kernels. As a feature extractor it normalises each map (`norm_outputs`).
    """
    defaults: dict[str, Any] = {"kernel_sizes": (27, 27, 27, 13), "dims": (256, 512, 1024, 2048)}
    defaults |= {"small_kernel": None, "dw_ratio": 1.5, "norm_outputs": kwargs.get("features_only", False)}
    return _create_replknet("replknet_xl", pretrained, defaults, kwargs)
