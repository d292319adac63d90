"""RepLKNet's own layer: a depthwise K×K convolution, and a k×k one beside it that is merged into it.

Paper: "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs", https://arxiv.org/abs/2203.06717,
Sec. 3, Guideline 3: y = BN(DW_K×K(x)) + BN(DW_k×k(x)).
"""

from replk_lightning.models.reparam import LargeKernelConv
from replk_lightning.models.spatial.base import Place, SpatialLayer, taps_on_map


class RepLK(LargeKernelConv, SpatialLayer):
    """`LargeKernelConv` as an option: kernel_size K, small_kernel k."""

    name = "replk"
    title = "RepLKNet: K×K beside k×k"
    paper = "RepLKNet, https://arxiv.org/abs/2203.06717"
    merges_to = "one depthwise K×K convolution"
    kernel_sizes = (31, 29, 27, 13)

    def __init__(self, place: Place) -> None:
        super().__init__(place.channels, place.kernel_size, 1, place.small_kernel, place.dilation)

    @classmethod
    def multiply_adds(cls, place: Place) -> int:
        """C times the taps of K×K on the map."""
        return place.channels * taps_on_map(place.side, place.kernel_size, place.dilation)
