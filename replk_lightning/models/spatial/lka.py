"""VAN's large kernel attention: two depthwise convolutions and a 1×1 one compute factors that the map is multiplied by.

Paper: "Visual Attention Network", https://arxiv.org/abs/2202.09741, Sec. 3.1.
"""

from collections import OrderedDict

from torch import Tensor, nn

from native import DepthwiseConv2d
from replk_lightning.models.reparam import KernelSize, odd_pair
from replk_lightning.models.spatial.base import Place, SpatialLayer, taps_on_map

STEP = 3  # d of the paper, the dilation of the convolution that reaches far
NEAR = 2 * STEP - 1


class LargeKernelAttention(SpatialLayer):
    """y = BN(x ⊙ (W DW-D_F×F(DW_5×5(x)) + b)), ⊙ a product of numbers, W a dense C×C matrix at each pixel, d = 3.

    kernel_size is the K that the paper takes apart: into DW (2d - 1)×(2d - 1) without gaps and DW-D ⌈K/d⌉×⌈K/d⌉ dilated
    by d, together at least K wide: K = 21 gives 5×5 and 7×7. An even ⌈K/d⌉ has no centre: F is then the next odd
    number, so that K = 11 gives 5, as 13 and 15 do. All three convolutions have biases, as the release's have. The
    batch norm is ours: VAN has none in the layer, and a 1×1 convolution next. small_kernel is ignored: there is no such
    branch. dilation multiplies both depthwise convolutions' dilations.
    """

    name = "lka"
    title = "VAN: x ⊙ 1×1(DW-D(DW(x)))"
    paper = "VAN, https://arxiv.org/abs/2202.09741"
    merges_to = "itself: a product of two functions of x is no convolution, and takes no norm's shift"
    kernel_sizes = (21, 21, 21, 21)

    def __init__(self, place: Place) -> None:
        super().__init__()
        channels, dilation = place.channels, place.dilation
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            near=DepthwiseConv2d(channels, NEAR, dilation=dilation),
            far=DepthwiseConv2d(channels, _far(place.kernel_size), dilation=STEP * dilation),
            channels=nn.Conv2d(channels, channels, 1),
        )
        self.attention = nn.Sequential(layers)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        y: Tensor = self.norm(x * self.attention(x))
        return y

    @classmethod
    def multiply_adds(cls, place: Place) -> int:
        """C times the taps of both depthwise convolutions on the map, and C² a pixel.

        The product, like a norm, is left out: convolutions alone are counted.
        """
        near = taps_on_map(place.side, NEAR, place.dilation)
        far = taps_on_map(place.side, _far(place.kernel_size), STEP * place.dilation)
        return place.channels * (near + far + place.channels * place.side**2)


def _far(kernel_size: KernelSize) -> tuple[int, int]:
    """F of the height and of the width: ⌈K/d⌉ if it is odd, else the next odd number."""
    height, width = odd_pair("kernel_size", kernel_size)
    return -(-height // STEP) // 2 * 2 + 1, -(-width // STEP) // 2 * 2 + 1
