"""BatchNorm over the batches of all processes together: a plugin of Lightning's Trainer for GPUs and for CPUs."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from timm.layers import convert_sync_batchnorm
from timm.layers.norm_act import SyncBatchNormAct
from torch import Tensor, nn


class SyncedBatchNorm(LayerSync):
    """Makes every BatchNorm of a net see all processes' batches while it trains.

    Unlike Lightning's own, it keeps the activation that timm's layers have in them, and it has a slow way for CPUs,
    on which torch's refuses to work.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """`model` with its BatchNorms replaced."""
        model = convert_sync_batchnorm(model)
        for module in model.modules():
            if isinstance(module, SyncBatchNormAct):
                module.__class__ = _AnywhereAct  # same state: only `forward` differs
            elif isinstance(module, nn.SyncBatchNorm):
                module.__class__ = _Anywhere
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """`model` as it is: outside training such a layer is a BatchNorm like any other."""
        return model


class _Anywhere(nn.SyncBatchNorm):
    """torch's, and on CPUs the definition: mean and variance over all processes' values, however many each has."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.device.type != "cpu" or not dist.is_initialized():
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        count = _SumOfAll.apply(input.new_tensor(input.numel() // input.shape[1], dtype=torch.float64)).item()
        mean = _SumOfAll.apply(input.sum(axes)) / count
        centred = input - mean.view(shape)
        variance = _SumOfAll.apply(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach() * count / max(1, count - 1))
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        return normed * self.weight.view(shape) + self.bias.view(shape) if self.affine else normed

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _AnywhereAct(SyncBatchNormAct, _Anywhere):
    """timm's layer with its activation."""


class _SumOfAll(torch.autograd.Function):
    """Sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
