"""The depthwise convolution of sequences: the operator on maps one pixel high."""

from torch import Tensor, nn

from native.ops import DepthwiseConv2d, depthwise_conv2d


class DepthwiseConv1d(nn.Conv1d):
    """``nn.Conv1d(channels, channels, kernel_size, groups=channels)`` computed by `depthwise_conv2d`.

    Same parameters, state_dict and repr. Takes (N, C, T), and keeps its layout: fastest where the channels of a step
    lie side by side, as behind ``x.transpose(1, 2)`` of (N, T, C). `padding` None keeps the length at stride 1 for odd
    kernels; "same" and "valid" are torch's. Speech nets have layers of 31 taps (the convolution module of a Conformer).

    Raises:
        ValueError: x is not three-dimensional.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str | None = None,
        dilation: int = 1,
        bias: bool = True,
    ):
        padding = kernel_size // 2 * dilation if padding is None else padding
        super().__init__(channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(input, Tensor) and input.dim() != 3:
            raise ValueError(f"x must be (N, C, T), not of shape {tuple(input.shape)}")
        if self.padding_mode != "zeros":  # set afterwards
            padded: Tensor = super()._conv_forward(input, weight, bias)
            return padded
        y = depthwise_conv2d(
            input.unsqueeze(2),
            weight.unsqueeze(2),
            bias,
            stride=(1, self.stride[0]),
            padding=self.padding if isinstance(self.padding, str) else (0, self.padding[0]),
            dilation=(1, self.dilation[0]),
        )
        return y.squeeze(2)

    __prepare_scriptable__ = DepthwiseConv2d.__prepare_scriptable__
