"""The operator in the frequency domain, on any device: stride and dilation 1, sums in fp32 or float64.

A map is padded with zeros on one side only, as the period wraps around, and to a period of small prime factors. The
cost hardly grows with the kernel, so for large kernels on large maps it may be the fastest way; results differ from the
others' by round-off, relative to the whole map's largest numbers, and a NaN or an infinity reaches all of a plane. 16
bits are computed in fp32 and rounded once. The same call gives the same bits.

A few channels are computed at a time: beside the result a call needs about `MEMORY` bytes, or eight times the padded
maps of a single channel in fp32 where that is more.
"""

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from native.activation import activated
from native.geometry import Pair, Shape
from native.layout import empty, is_last

MEMORY = 2**28  # bytes
COPIES = 8  # of the padded maps of the channels at hand, at most: as pixels, as spectra, and what the library takes


def period(size: Shape, kernel_size: Shape, padding: Pair) -> Pair:
    """Of the circular convolution whose wanted outputs see zeros where the padding is; small prime factors only."""
    outputs = (size[a] + 2 * padding[a] - kernel_size[a] + 1 for a in (0, 1))
    height, width = (_smooth(max(size[a] + padding[a], kernel_size[a], o)) for a, o in enumerate(outputs))
    return height, width


def channel_bytes(images: int, size: Shape, kernel_size: Shape, padding: Pair) -> int:
    """What a channel takes beside its result, in fp32."""
    height, width = period(size, kernel_size, padding)
    return COPIES * 4 * images * height * width


@functools.cache
def _smooth(least: int) -> int:
    """The smallest product of 2s, 3s, 5s and 7s that is at least `least`."""
    odd: Iterator[int] = (3**a * 5**b * 7**c for a, b, c in itertools.product(range(12), range(8), range(7)))
    return min(o << (-(-least // o) - 1).bit_length() for o in odd)


def _parts(shape: Shape, kernel_size: Shape, padding: Pair) -> Iterator[slice]:
    """The channels, as many at a time as `MEMORY` holds."""
    step = max(1, MEMORY // max(1, channel_bytes(shape[0], shape[2:], kernel_size, padding)))
    return (slice(first, first + step) for first in range(0, shape[1], step))


def _spectrum(x: Tensor, offset: Pair, size: Pair) -> Tensor:
    """Of maps with `offset` zero rows and columns before them and as many behind as fill the period `size`."""
    dtype = torch.float32 if x.dtype.itemsize == 2 else x.dtype
    padded = torch.zeros(*x.shape[:-2], *size, dtype=dtype, device=x.device)
    padded[..., offset[0] : offset[0] + x.shape[-2], offset[1] : offset[1] + x.shape[-1]] = x
    spectrum: Tensor = torch.fft.rfft2(padded)
    return spectrum


def _pixels(spectrum: Tensor, size: Pair) -> Tensor:
    pixels: Tensor = torch.fft.irfft2(spectrum, s=size)
    return pixels


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    activation: str | None = None,
) -> Tensor:
    """x (N, C, H, W), weight (C, 1, Kh, Kw), bias (C,) or None → (N, C, H', W'): correlation theorem."""
    kernel_size = weight.shape[2:]
    size = period(x.shape[2:], kernel_size, padding)
    height, width = (x.shape[2 + a] + 2 * padding[a] - kernel_size[a] + 1 for a in (0, 1))
    y = empty(x, (*x.shape[:2], height, width), is_last(x))
    for part in _parts(x.shape, kernel_size, padding):
        product = _spectrum(x[:, part], padding, size).mul_(_spectrum(weight[part, 0], (0, 0), size).conj())
        sums = _pixels(product, size)[:, :, :height, :width]
        y[:, part] = activated(sums if bias is None else sums + bias[part, None, None], activation)
    return y


def grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Gradient by x, of `input_shape`, for the output's gradient (N, C, H', W'): convolution theorem."""
    size = period(input_shape[2:], weight.shape[2:], padding)
    rows, columns = (slice(padding[a], padding[a] + input_shape[2 + a]) for a in (0, 1))
    gx = empty(grad, input_shape, is_last(grad))
    for part in _parts(input_shape, weight.shape[2:], padding):
        product = _spectrum(grad[:, part], (0, 0), size).mul_(_spectrum(weight[part, 0], (0, 0), size))
        gx[:, part] = _pixels(product, size)[:, :, rows, columns]
    return gx


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient by weight, (C, 1, Kh, Kw), for the output's gradient: summed over images before the way back."""
    size = period(x.shape[2:], kernel_size, padding)
    gw = x.new_empty((x.shape[1], 1, *kernel_size))
    for part in _parts(x.shape, kernel_size, padding):
        product = _spectrum(x[:, part], padding, size).mul_(_spectrum(grad[:, part], (0, 0), size).conj()).sum(0)
        gw[part, 0] = _pixels(product, size)[:, : kernel_size[0], : kernel_size[1]]
    return gw
