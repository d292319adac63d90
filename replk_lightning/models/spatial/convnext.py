"""ConvNeXt's layer: a depthwise 7×7 convolution, and a norm over the channels of each place.

Paper: "A ConvNet for the 2020s", https://arxiv.org/abs/2201.03545, Sec. 2.5 and 2.6: y = LN(DW_K×K(x) + b), with
LN(z) = γ (z - m) / √(v + 10⁻⁶) + β, m and v the mean and variance over the C channels of one place.
"""

from timm.layers import LayerNorm2d
from torch import Tensor

from native import DepthwiseConv2d
from replk_lightning.models.reparam import odd_pair
from replk_lightning.models.spatial.base import Place, SpatialLayer, taps_on_map


class ConvNeXt(SpatialLayer):
    """kernel_size K, or (K_h, K_w); small_kernel is not used.

    The convolution keeps its bias: the norm subtracts one mean of all channels, which undoes no channel's own bias.
    """

    name = "convnext"
    title = "ConvNeXt: K×K and LayerNorm"
    paper = "ConvNeXt, https://arxiv.org/abs/2201.03545"
    merges_to = "itself: one depthwise K×K convolution and the LayerNorm, which depends on the picture"
    kernel_sizes = (7, 7, 7, 7)

    def __init__(self, place: Place) -> None:
        super().__init__()
        size = odd_pair("kernel_size", place.kernel_size)
        self.conv = DepthwiseConv2d(place.channels, size, dilation=place.dilation)
        self.norm = LayerNorm2d(place.channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        y: Tensor = self.norm(self.conv(x))
        return y

    @classmethod
    def multiply_adds(cls, place: Place) -> int:
        """C times the taps of K×K on the map."""
        return place.channels * taps_on_map(place.side, place.kernel_size, place.dilation)
