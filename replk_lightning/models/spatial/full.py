"""A global filter: every place of a map sees every other one, the upper extreme of a large kernel.

On a map of H×H a filter of (2H - 1)² has one weight for every offset between two places, the spatial form of the
"global filter" of Rao et al. (https://arxiv.org/abs/2107.00645), which multiplies in the frequency domain, but with
zeros around the map where theirs goes round it.
"""

from torch import Tensor

from native import DepthwiseConv2d
from replk_lightning.models.reparam import ConvBN
from replk_lightning.models.spatial.base import Place, SpatialLayer, taps_on_map


class Global(SpatialLayer):
    """y = BN(DW_(2H-1)×(2H-1)(x)), H the map's side for pictures of the net's `img_size`, whatever kernel_size is.

    Larger pictures are seen as far as that filter reaches. Without a small kernel: with one it is "replk".
    """

    name = "global"
    title = "Global filter: (2H - 1)×(2H - 1)"
    paper = "the upper extreme; in the frequency domain: GFNet, https://arxiv.org/abs/2107.00645"
    merges_to = "one depthwise (2H - 1)×(2H - 1) convolution"
    kernel_sizes = (111, 55, 27, 13)

    def __init__(self, place: Place) -> None:
        super().__init__()
        conv = DepthwiseConv2d(place.channels, _size(place), dilation=place.dilation, bias=False)
        self.everything = ConvBN(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        y: Tensor = self.everything(x)
        return y

    @classmethod
    def multiply_adds(cls, place: Place) -> int:
        """C H⁴: every place sees every other."""
        return place.channels * taps_on_map(place.side, _size(place), place.dilation)


def _size(place: Place) -> int:
    return 2 * -(-place.side // place.dilation) - 1  # a dilated filter reaches as far with fewer taps
