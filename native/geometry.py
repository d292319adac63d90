"""Sizes, strides, paddings and dilations, one number for the height and one for the width."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

Pair = tuple[int, int]
Shape = Sequence[int]  # of a tensor, or a map's height and width
Geometry = tuple[Pair, Pair, Pair]  # stride, padding, dilation
INTEGERS: tuple[Any, ...] = (int, torch.SymInt)
ALONE = 32  # the most pixels of a height or width that is a size class of its own


def pair(name: str, value: object) -> Pair:
    """An int or two of them, NumPy's too, → two, for height and width.

    Raises:
        TypeError: `value` is neither; the message calls it `name`.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, (tuple, Sequence)) and len(value) == 2:  # a tuple is found faster than any Sequence
        first, second = value
        if isinstance(first, INTEGERS) and isinstance(second, INTEGERS):
            return (first, second)
        if isinstance(first, Integral) and isinstance(second, Integral):
            return (int(first), int(second))
    if isinstance(value, Integral) and not isinstance(value, bool):
        return (int(value), int(value))
    raise TypeError(f"{name} must be an int or a pair of ints, not {value!r}")


def same_padding(kernel_size: Shape, dilation: Pair) -> Pair:
    """The padding that keeps the size at stride 1 for odd kernels."""
    return (kernel_size[0] // 2 * dilation[0], kernel_size[1] // 2 * dilation[1])


def size_class(pixels: int) -> int:
    """The height or width that maps of nearby ones share choices and kernels with: itself, above `ALONE` in eights."""
    return pixels if pixels <= ALONE else -(-pixels // 8) * 8


def output_size(size: Shape, kernel_size: Shape, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """(H, W) of the input → (H', W') of the output."""
    height, width = (
        (size[a] + 2 * padding[a] - dilation[a] * (kernel_size[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)
    )
    return height, width


def check(size: Shape, kernel_size: Shape, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Raise a ValueError that names what leaves no output pixel."""
    for name, given, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if given[0] < least or given[1] < least:  # min() of symbols is a graph of its own
            raise ValueError(f"{name} must be at least {least}, not {tuple(given)}")
    if kernel_size[0] < 1 or kernel_size[1] < 1:
        raise ValueError(f"weight must hold at least one tap, not {tuple(kernel_size)}")
    if size[0] < 1 or size[1] < 1:
        raise ValueError(f"x must be at least one pixel high and wide, not {tuple(size)}")
    height, width = output_size(size, kernel_size, stride, padding, dilation)
    if height < 1 or width < 1:
        raise ValueError(
            f"weight's {tuple(kernel_size)} taps, dilated by {tuple(dilation)}, do not fit into x's "
            f"{tuple(size)} pixels padded by {tuple(padding)}"
        )
