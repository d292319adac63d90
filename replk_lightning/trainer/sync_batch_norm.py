"""BatchNorm over the batches of all processes together: a plugin of Lightning's Trainer for GPUs and for CPUs."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn


class SyncedBatchNorm(LayerSync):
    """Makes every BatchNorm of a net see all processes' batches while it trains.

    On GPUs it is torch's SyncBatchNorm, with the activation that timm's layers have in them, which Lightning's own
    plugin loses. torch's needs a GPU, so on CPUs (`on_cpu`) it is the definition, in plain torch.
    """

    def __init__(self, on_cpu: bool) -> None:
        self.on_cpu = on_cpu

    def apply(self, model: nn.Module) -> nn.Module:
        """`model` with its BatchNorms replaced."""
        if not self.on_cpu:
            synced: nn.Module = convert_sync_batchnorm(model)
            return synced
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # same state: only `forward` differs
                module.__class__ = _OnCpuAct if isinstance(module, BatchNormAct2d) else _OnCpu
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """`model` as it is: outside training such a layer is a BatchNorm like any other."""
        return model


class _OnCpu(nn.modules.batchnorm._BatchNorm):
    """Mean and variance over all processes' values, however many each has."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # the layer whose place this takes knew its input

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))  # a sum of 16 bits loses or overflows
        count = _SumOfAll.apply(torch.tensor(input.numel() // input.shape[1], dtype=torch.float64)).item()
        mean: Tensor = _SumOfAll.apply(wide.sum(axes)) / count
        centred = wide - mean.view(shape)
        variance: Tensor = _SumOfAll.apply(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach() * count / max(1, count - 1))
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        normed = normed * self.weight.view(shape) + self.bias.view(shape) if self.affine else normed
        return normed.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _OnCpuAct(_OnCpu):
    """timm's layer, with what follows in it."""

    act: nn.Module
    drop: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(input)))
        return y


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
