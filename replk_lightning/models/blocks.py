"""What a RepLKNet is built of (Sec. 4.1, Fig. 4): stem, two kinds of block, stage, transition."""

from collections.abc import Sequence

from timm.layers import DropPath
from timm.models import checkpoint
from torch import Tensor, nn

from native import DepthwiseConv2d
from replk_lightning.models.reparam import ConvBN
from replk_lightning.models.spatial import Place, get_spatial


def pointwise(in_channels: int, out_channels: int, relu: bool = False) -> ConvBN:
    """1×1 convolution and batch norm, with ReLU or not."""
    return ConvBN(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.ReLU() if relu else None)


def depthwise_3x3(channels: int, stride: int = 1, dilation: int = 1) -> ConvBN:
    """Depthwise 3×3 convolution, batch norm and ReLU (stem and transitions)."""
    return ConvBN(DepthwiseConv2d(channels, 3, stride, dilation=dilation, bias=False), nn.ReLU())


def stem(in_channels: int, channels: int) -> nn.ModuleList:
    """The four layers that take a picture (N, in_channels, H, W) to (N, channels, H / 4, W / 4)."""
    return nn.ModuleList(
        [
            ConvBN(nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False), nn.ReLU()),
            depthwise_3x3(channels),
            pointwise(channels, channels, relu=True),
            depthwise_3x3(channels, stride=2),
        ]
    )


def transition(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Sequential:
    """Between two stages: 1×1 to the next one's channels, then a depthwise 3×3 to its resolution."""
    return nn.Sequential(pointwise(in_channels, out_channels, relu=True), depthwise_3x3(out_channels, stride, dilation))


class RepLKBlock(nn.Module):
    """Batch norm, 1×1, a spatial layer, 1×1, and a shortcut around all (Fig. 4; Guidelines 1–3).

    Args:
        channels: C; input and output (N, C, H, W).
        place: Where the spatial layer stands; its channels are C, or 1.5 times as many in RepLKNet-XL.
        spatial: Name of the spatial layer; RepLKNet's is a depthwise K×K convolution beside k×k.
        drop_path: Probability that stochastic depth drops the branch.
    """

    def __init__(self, channels: int, place: Place, spatial: str = "replk", drop_path: float = 0.0):
        super().__init__()
        self.prelkb_bn: nn.Module = nn.BatchNorm2d(channels)
        self.pw1 = pointwise(channels, place.channels, relu=True)
        self.large_kernel = get_spatial(spatial)(place)
        self.lk_nonlinear = nn.ReLU()
        self.pw2 = pointwise(place.channels, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        y: Tensor = self.pw1(self.prelkb_bn(x))
        y = self.drop_path(self.pw2(self.lk_nonlinear(self.large_kernel(y))))
        return x + y


class ConvFFN(nn.Module):
    """Batch norm and two 1×1 convolutions with GELU between them, and a shortcut (Sec. 4.1).

    Args:
        channels: C; input and output (N, C, H, W).
        ffn_ratio: Hidden channels over C.
        drop_path: Probability that stochastic depth drops the branch.
    """

    def __init__(self, channels: int, ffn_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        hidden = int(channels * ffn_ratio)
        self.preffn_bn: nn.Module = nn.BatchNorm2d(channels)
        self.pw1 = pointwise(channels, hidden)
        self.nonlinear = nn.GELU()
        self.pw2 = pointwise(hidden, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        y: Tensor = self.drop_path(self.pw2(self.nonlinear(self.pw1(self.preffn_bn(x)))))
        return x + y


class RepLKNetStage(nn.Module):
    """B pairs of RepLK block and ConvFFN at one resolution; a pair shares its drop-path rate.

    `norm` is a batch norm that only dense prediction applies to the stage's output (RepLKNet-XL), else the identity.
    """

    def __init__(
        self,
        channels: int,
        place: Place,
        spatial: str,
        drop_paths: Sequence[float],
        ffn_ratio: float,
        norm_output: bool,
    ):
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList()
        for rate in drop_paths:
            self.blocks.append(RepLKBlock(channels, place, spatial, rate))
            self.blocks.append(ConvFFN(channels, ffn_ratio, rate))
        self.norm = nn.BatchNorm2d(channels) if norm_output else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W), without `norm`."""
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing and self.training else block(x)
        return x
