"""Sizes and pairs; wrong ones are named by the operator's tests."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from native import geometry


def test_output_size_is_torchs():
    x, weight = torch.randn(1, 1, 11, 12), torch.randn(1, 1, 3, 4)
    for stride, padding, dilation in (((1, 1), (0, 0), (1, 1)), ((3, 2), (1, 2), (2, 3))):
        expected = F.conv2d(x, weight, None, stride, padding, dilation).shape[2:]
        assert geometry.output_size((11, 12), (3, 4), stride, padding, dilation) == tuple(expected)


def test_a_pair_is_an_int_twice_or_two_ints():
    assert geometry.pair("stride", 2) == geometry.pair("stride", [2, 2]) == (2, 2)
    assert geometry.pair("stride", np.int64(3)) == (3, 3)
    assert [type(each) for each in geometry.pair("stride", (np.int32(3), 2))] == [int, int]
    for wrong in (True, np.float32(1), 1.0, "12", (1, 2, 3)):
        with pytest.raises(TypeError, match="stride must be an int or a pair of ints"):
            geometry.pair("stride", wrong)
