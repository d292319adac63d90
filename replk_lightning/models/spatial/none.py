"""No spatial layer: a depthwise 1×1 convolution, the lower extreme of what a large kernel can be compared with.

A net with it sees beyond a pixel through its stem and the 3×3 layers between its stages alone.
"""

from torch import Tensor

from native import DepthwiseConv2d
from replk_lightning.models.reparam import ConvBN
from replk_lightning.models.spatial.base import Place, SpatialLayer


class NoSpatial(SpatialLayer):
    """y = BN(DW_1×1(x)), whatever kernel_size and small_kernel are."""

    name = "none"
    title = "No spatial layer: 1×1"
    paper = "the lower extreme"
    merges_to = "a depthwise 1×1 convolution"
    kernel_sizes = (1, 1, 1, 1)

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.point = ConvBN(DepthwiseConv2d(place.channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        y: Tensor = self.point(x)
        return y

    @classmethod
    def multiply_adds(cls, place: Place) -> int:
        """C a pixel."""
        return place.channels * place.side**2
