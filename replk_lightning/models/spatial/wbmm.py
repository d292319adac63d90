"""WBMM's layer: windows that do not overlap, in each of which every place sees every other, by matrix products.

Paper: "WBMM: Windowed Batch Matrix Multiplication for Efficient Large Receptive Field Convolution",
https://arxiv.org/abs/2607.02097. In a window of w×w a channel has a weight for every offset between two places,
(2w - 1)² of them: a depthwise (2w - 1)×(2w - 1) convolution of that window alone, with zeros around it. Written as a
w²×w² matrix it is one product with all windows of all maps.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from native import DepthwiseConv2d
from native.geometry import Pair
from replk_lightning.models.reparam import KernelSize, as_affine, centred, odd_pair, require_batch_norm, small_pair
from replk_lightning.models.rewriting import plain_state, refuse_hooks, settle
from replk_lightning.models.spatial.base import Place, SpatialLayer


class WindowedConv(nn.Module):
    """A depthwise convolution inside windows of h×w, (M, C, h, w) → (M, C, h, w); weight (C, 1, 2h - 1, 2w - 1)."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, windows: Tensor) -> Tensor:
        """y_i = Σ_j weight[j - i] x_j + bias, i and j the places of a window."""
        height, width = windows.shape[-2:]
        # unfolded, its axes are (C, h - 1 - i_h, w - 1 - i_w, j_h, j_w): the last place comes first
        table = self.weight.squeeze(1).unfold(1, height, 1).unfold(2, width, 1)
        matrix = table.reshape(-1, height * width, height * width)
        y = torch.einsum("cij,mcj->mci", matrix, windows.flatten(2)).flip(-1).reshape(windows.shape)
        return y if self.bias is None else y + self.bias.reshape(-1, 1, 1)


class WindowedBMM(SpatialLayer):
    """y = BN(DW_K×K(x) + x) + BN(DW_k×k(x)), both convolutions inside windows of w×w, w = (K + 1) / 2.

    kernel_size is K: 13 gives the 7×7 windows of the paper's nets, 27 the 14×14 ones of its benchmarks. small_kernel is
    the k, at most K, of the branch that is merged; without it the second term is absent. The release has branches, 5×5
    and 3×3, in the last stage of its smaller nets, where a map is one window; here the branch stops at the windows'
    borders, so that it merges exactly on every map. The norms are the release's, one a branch. Maps are padded with
    zeros at the bottom and on the right to whole windows, as in its nets for dense prediction.

    Windows stand in the same place in every layer, and nothing crosses them: in its nets 3×3 depthwise blocks that
    alternate with these do that. RepLKNet's stages have no such blocks: there only the transitions mix windows.

    Raises:
        ValueError: A size is even, the small kernel is larger than the large one, or dilation is not 1.
    """

    name = "wbmm"
    title = "WBMM: K×K in windows of ((K + 1) / 2)²"
    paper = "WBMM, https://arxiv.org/abs/2607.02097"
    merges_to = "one depthwise K×K convolution inside windows, computed as matrix products"
    kernel_sizes = (13, 13, 13, 13)

    def __init__(self, place: Place) -> None:
        super().__init__()
        if place.dilation != 1:
            raise ValueError(f"wbmm has no dilation, but got {place.dilation}: use output_stride=32, or another layer")
        large = odd_pair("kernel_size", place.kernel_size)
        self.window = _window(large)
        weight = torch.empty(place.channels, 1, *large)
        self.table = WindowedConv(nn.Parameter(nn.init.trunc_normal_(weight, std=0.02)))  # the release's start
        self.norm: nn.Module = nn.BatchNorm2d(place.channels)
        if place.small_kernel is not None:
            small = small_pair(place.small_kernel, large)
            self.small_conv = DepthwiseConv2d(place.channels, small, bias=False)
            self.small_norm: nn.Module = nn.BatchNorm2d(place.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        windows = cut(x, self.window)
        if hasattr(self, "table_reparam"):
            return join(self.table_reparam(windows), x)
        y: Tensor = self.norm(join(self.table(windows), x) + x)
        if hasattr(self, "small_conv"):
            y = y + self.small_norm(join(self.small_conv(windows), x))
        return y

    @plain_state()
    def reparameterize(self, name: str = "") -> None:
        """Merge shortcut, small kernel and norms into one table, `table_reparam`, in place; a second call does nothing.

        Raises:
            ValueError: A part carries hooks, or a norm is none that is affine in inference.
        """
        if hasattr(self, "table_reparam"):
            return
        parts: dict[str, Any] = dict(self.named_children())
        for part, module in parts.items():
            full_name = ".".join(filter(None, (name, part)))
            refuse_hooks(full_name, module)
            if "norm" in part:
                require_batch_norm(full_name, module)
        training = self.training
        settle(self.eval())
        merged, learns = self._merged(parts), any(each.requires_grad for each in self.parameters())
        for part in parts:
            delattr(self, part)
        self.table_reparam = WindowedConv(*(nn.Parameter(each, requires_grad=learns) for each in merged))
        self.train(training)

    def _merged(self, parts: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one table that equals the layer, in the dtype of its own."""
        table = parts["table"].weight
        scale, shift = as_affine(parts["norm"], torch.promote_types(table.dtype, torch.float32))
        weight, bias = table.to(scale.dtype), shift
        identity = centred(torch.ones_like(weight[..., :1, :1]), weight.shape[-2:])
        weight = (weight + identity) * scale.reshape(-1, 1, 1, 1)
        if "small_conv" in parts:
            scale, shift = as_affine(parts["small_norm"], scale.dtype)
            small = parts["small_conv"].weight.to(scale.dtype) * scale.reshape(-1, 1, 1, 1)
            weight, bias = weight + centred(small, weight.shape[-2:]), bias + shift
        return weight.to(table.dtype), bias.to(table.dtype)

    @classmethod
    def multiply_adds(cls, place: Place) -> int:
        """C times the taps on the map: a place has one for each of its window that is on the map."""
        height, width = _window(odd_pair("kernel_size", place.kernel_size))
        return place.channels * _pairs(place.side, height) * _pairs(place.side, width)


def cut(x: Tensor, window: Pair) -> Tensor:
    """(N, C, H, W) → (N ⌈H / h⌉ ⌈W / w⌉, C, h, w), padded with zeros to whole windows."""
    (batch, channels, height, width), (h, w) = x.shape, window
    rows, columns = (height + h - 1) // h, (width + w - 1) // w  # ONNX rounds negative quotients up
    x = F.pad(x, (0, columns * w - width, 0, rows * h - height))
    return x.reshape(batch, channels, rows, h, columns, w).permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, h, w)


def join(windows: Tensor, like: Tensor) -> Tensor:
    """`cut` undone: the places of windows (M, C, h, w) that are on the map `like`, (N, C, H, W)."""
    (batch, channels, height, width), (h, w) = like.shape, windows.shape[-2:]
    rows, columns = (height + h - 1) // h, (width + w - 1) // w  # as in `cut`
    x = windows.reshape(batch, rows, columns, channels, h, w).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(batch, channels, rows * h, columns * w)[..., :height, :width]


def _window(kernel_size: KernelSize) -> Pair:
    height, width = odd_pair("kernel_size", kernel_size)
    return (height + 1) // 2, (width + 1) // 2


def _pairs(side: int, window: int) -> int:
    """Pairs of pixels of a line that are in the same window."""
    whole, rest = divmod(side, window)
    return whole * window**2 + rest**2
