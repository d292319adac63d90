"""The definition against a triple loop, against autograd, and against torch's convolution."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from native import reference

GEOMETRIES = [  # size, kernel, stride, padding, dilation
    ((5, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((4, 7), (2, 5), (1, 2), (0, 3), (1, 1)),
    ((7, 5), (3, 2), (3, 1), (4, 0), (2, 3)),
    ((1, 1), (5, 4), (1, 1), (2, 2), (1, 1)),
    ((3, 4), (1, 1), (4, 4), (0, 0), (1, 1)),
]


def tensors(size, kernel, stride, padding, dilation):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 1, *kernel, dtype=torch.float64, generator=generator)
    bias = torch.randn(3, dtype=torch.float64, generator=generator)
    y = reference.forward(x, weight, bias, stride, padding, dilation)
    return x, weight, bias, torch.randn(y.shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), GEOMETRIES)
def test_the_index_map_is_the_convolution(size, kernel, stride, padding, dilation):
    x, weight, bias, grad = tensors(size, kernel, stride, padding, dilation)
    y = bias[None, :, None, None].expand_as(grad).clone()
    for i, j in itertools.product(range(y.shape[2]), range(y.shape[3])):
        for u, v in itertools.product(range(kernel[0]), range(kernel[1])):
            r = reference.seen(i, u, stride[0], padding[0], dilation[0])
            s = reference.seen(j, v, stride[1], padding[1], dilation[1])
            if 0 <= r < size[0] and 0 <= s < size[1]:
                y[:, :, i, j] += weight[:, 0, u, v] * x[:, :, r, s]
    torch.testing.assert_close(reference.forward(x, weight, bias, stride, padding, dilation), y)


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), GEOMETRIES)
def test_all_three_functions_are_torchs(size, kernel, stride, padding, dilation):
    x, weight, bias, grad = tensors(size, kernel, stride, padding, dilation)
    x.requires_grad_(), weight.requires_grad_()
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups=3)
    gx, gw = torch.autograd.grad(y, (x, weight), grad)
    x, weight = x.detach(), weight.detach()
    geometry = (stride, padding, dilation)
    torch.testing.assert_close(reference.forward(x, weight, bias, *geometry), y)
    torch.testing.assert_close(reference.grad_input(grad, weight, tuple(x.shape), *geometry), gx)
    torch.testing.assert_close(reference.grad_weight(grad, x, kernel, *geometry), gw)
