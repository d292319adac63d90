"""Parameters and multiply-adds as the paper counts them (Tables 5, 6 and 11).

The paper's "FLOPs" are multiply-adds of the merged net, its parameters those with every batch norm folded.
"""

import copy
from typing import Any, NamedTuple

import timm
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import replk_lightning.models  # noqa: F401  (registers the models)
from replk_lightning.deploy import deploy


class Complexity(NamedTuple):
    """Size of a model: parameters, and multiply-adds for one picture."""

    parameters: int
    macs: int


def complexity(
    model: nn.Module | str,
    input_size: tuple[int, int, int] = (3, 224, 224),
    *,
    merged: bool = False,
    folded: bool = False,
    **kwargs: Any,
) -> Complexity:
    """Count parameters and multiply-adds without computing anything: all tensors are on the meta device.

    Args:
        model: A module, which is left alone, or the name of a timm model.
        input_size: (C, H, W) of one picture.
        merged: Count the net after `reparameterize()`.
        folded: Count the net that `deploy` returns: merged, and every batch norm folded.
        **kwargs: Options for `timm.create_model`, if `model` is a name.

    Multiply-adds are those of convolutions, linear layers and matrix products; additions elsewhere are not counted.
    """
    if isinstance(model, str):
        with torch.device("meta"):
            net = timm.create_model(model, **kwargs)
    elif kwargs:
        raise TypeError(f"options {sorted(kwargs)} apply to a model's name only: build the module with them instead")
    else:
        net = copy.deepcopy(model).to("meta")
    if merged:
        net = reparameterize_model(net)
    if folded:
        net = deploy(net)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net.eval()(torch.empty(1, *input_size, device="meta", dtype=next(net.parameters()).dtype))
    return Complexity(sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2)
