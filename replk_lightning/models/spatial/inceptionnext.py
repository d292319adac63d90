"""InceptionNeXt's layer: most channels pass, three eighths go through 3×3, a row of K and a column of K.

Paper: "InceptionNeXt: When Inception Meets ConvNeXt", https://arxiv.org/abs/2303.16900, Sec. 3.2: with x split into
x_id, x_hw, x_w and x_h along the channels, y = BN(concat(x_id, DW_3×3(x_hw), DW_1×K(x_w), DW_K×1(x_h))).
"""

import torch
from torch import Tensor, nn

from native import DepthwiseConv2d
from replk_lightning.models.reparam import odd_pair
from replk_lightning.models.spatial.base import Place, SpatialLayer, taps_on_map

SHARE = 8
"""One channel of so many, rounded down, goes through each of the three convolutions."""

SQUARE = 3


class InceptionNeXt(SpatialLayer):
    """kernel_size K of the row and the column, (K_h, K_w) for K_h×1 and 1×K_w; the square stays 3×3.

    small_kernel is not used. The batch norm is that of the paper's MetaNeXt block. Behind it the convolutions need no
    bias, which it subtracts with the mean; timm's and the release's have one.

    Raises:
        ValueError: There are less than 8 channels.
    """

    name = "inceptionnext"
    title = "InceptionNeXt: identity, 3×3, 1×K, K×1"
    paper = "InceptionNeXt, https://arxiv.org/abs/2303.16900"
    merges_to = "itself: depthwise 3×3, 1×K and K×1 of C/8 channels each, and the batch norm"
    kernel_sizes = (11, 11, 11, 11)

    def __init__(self, place: Place) -> None:
        super().__init__()
        group = place.channels // SHARE
        if group == 0:
            raise ValueError(f'"inceptionnext" splits {SHARE} channels or more, not {place.channels}: use a wider net')
        height, width = odd_pair("kernel_size", place.kernel_size)
        self.groups = (place.channels - 3 * group, group, group, group)
        self.square = DepthwiseConv2d(group, SQUARE, dilation=place.dilation, bias=False)
        self.row = DepthwiseConv2d(group, (1, width), dilation=place.dilation, bias=False)
        self.column = DepthwiseConv2d(group, (height, 1), dilation=place.dilation, bias=False)
        self.norm = nn.BatchNorm2d(place.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        passed, square, row, column = x.split(self.groups, dim=1)
        y = torch.cat((passed, self.square(square), self.row(row), self.column(column)), dim=1)
        normed: Tensor = self.norm(y)
        return normed

    @classmethod
    def multiply_adds(cls, place: Place) -> int:
        """⌊C / 8⌋ times the taps of 3×3, 1×K and K×1 on the map."""
        height, width = odd_pair("kernel_size", place.kernel_size)
        sizes = (SQUARE, SQUARE), (1, width), (height, 1)
        return place.channels // SHARE * sum(taps_on_map(place.side, size, place.dilation) for size in sizes)
