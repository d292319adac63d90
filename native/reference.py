"""The operator from its definition: three sums over the taps of the kernel, one line of arithmetic each.

The index map is the whole story. Output pixel i sees, through tap u, the input pixel

    r(i, u) = i · stride + u · dilation − padding        (rows; columns alike)

and pixels outside the image count as zero. Over the images n and channels c,

    forward      y[n, c, i, j]  = Σ_{u,v} w[c, u, v] · x[n, c, r(i, u), r(j, v)]
    grad_input   gx[n, c, r, s] = Σ_{u,v} w[c, u, v] · gy[n, c, i, j]   over all (i, j) with r(i, u) = r, r(j, v) = s
    grad_weight  gw[c, u, v]    = Σ_{n,i,j} gy[n, c, i, j] · x[n, c, r(i, u), r(j, v)]

Sums run in the tensors' own dtype: hand over float64 for an exact yardstick.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from native.geometry import Pair, output_size


def why_not(
    x: Tensor | None = None,
    weight: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> str | None:
    """Always None: plain torch runs everywhere."""
    return None


def seen(i: int, u: int, stride: int, padding: int, dilation: int) -> int:
    """Input pixel r(i, u) that output pixel i sees through tap u, along one axis; outside the image it counts as 0."""
    return i * stride + u * dilation - padding


def _window(size: Sequence[int], u: int, v: int, stride: Pair, dilation: Pair) -> tuple[slice, slice]:
    """Where an output of `size` pixels sees the padded input through tap (u, v)."""
    rows, columns = (
        slice(seen(0, tap, s, 0, d), seen(length - 1, tap, s, 0, d) + 1, s)
        for length, tap, s, d in zip(size, (u, v), stride, dilation, strict=True)
    )
    return rows, columns


def _pad(x: Tensor, padding: Pair) -> Tensor:
    return F.pad(x, (padding[1], padding[1], padding[0], padding[0]))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    activation: str | None = None,
) -> Tensor:
    """x (N, C, H, W), weight (C, 1, Kh, Kw), bias (C,) or None → (N, C, H', W')."""
    kh, kw = weight.shape[2:]
    height, width = output_size(x.shape[2:], (kh, kw), stride, padding, dilation)
    padded = _pad(x, padding)
    y = x.new_zeros(*x.shape[:2], height, width)
    for u in range(kh):
        for v in range(kw):
            rows, columns = _window((height, width), u, v, stride, dilation)
            y += weight[:, :, u, v, None] * padded[:, :, rows, columns]
    y = y if bias is None else y + bias[:, None, None]
    return y if activation is None else y.clamp(0, 6 if activation == "relu6" else None)


def grad_input(
    grad: Tensor, weight: Tensor, input_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Gradient by x, of `input_shape`, for the output's gradient (N, C, H', W')."""
    height, width = input_shape[2:]
    padded = grad.new_zeros(*input_shape[:2], height + 2 * padding[0], width + 2 * padding[1])
    for u in range(weight.shape[2]):
        for v in range(weight.shape[3]):
            rows, columns = _window(grad.shape[2:], u, v, stride, dilation)
            padded[:, :, rows, columns] += weight[:, :, u, v, None] * grad
    return padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]


def grad_weight(grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient by weight, (C, 1, Kh, Kw), for the output's gradient (N, C, H', W')."""
    padded = _pad(x, padding)
    gw = grad.new_empty(x.shape[1], 1, *kernel_size)
    for u in range(kernel_size[0]):
        for v in range(kernel_size[1]):
            rows, columns = _window(grad.shape[2:], u, v, stride, dilation)
            gw[:, 0, u, v] = (grad * padded[:, :, rows, columns]).sum(dim=(0, 2, 3))
    return gw
