"""Parameters and multiply-adds as the paper counts them (Tables 5 to 9 and 11).

The paper's "FLOPs" are multiply-adds of the merged net, its parameters those with every batch norm folded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import replk_lightning.models  # noqa: F401  (registers the models)
from native.copying import copied
from replk_lightning.deploy import deploy
from replk_lightning.models.detectors import create_detector
from replk_lightning.models.rewriting import plain_state
from replk_lightning.models.segmenters import create_segmenter
from replk_lightning.recipes import DetectRecipe, SegmentRecipe


class Complexity(NamedTuple):
    """Size of a model: parameters, and multiply-adds for one picture."""

    parameters: int
    macs: int


@plain_state()
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
        net = copied(model).to("meta")
    net = _inference_form(net, merged, folded)
    return _count(net, lambda: net(_picture_for(net, input_size)))


@plain_state()
def detector_complexity(
    model: str,
    recipe: DetectRecipe,
    *,
    size: tuple[int, int] = (800, 1280),
    merged: bool = False,
    folded: bool = False,
    **options: Any,
) -> Complexity:
    """Count a detector as Table 9 does: 800×1280 pixels, the recipe's settings for testing, the trained form.

    Args:
        model: name of a timm model, which gets `options`.
        recipe: says the head, its sizes and the classes.
        size: H, W of the picture.
        merged, folded: as for `complexity`.

    What the tensors' values decide (which boxes are kept) cannot be computed on the meta device and costs next to no
    multiply-adds: the backbone, the pyramid and the heads are run one by one, every box head on as many regions as the
    recipe has proposals for testing, every mask head on as many as a picture may have detections.
    """
    with torch.device("meta"):
        net: Any = create_detector(model, recipe, recipe.num_classes, **_sized(model, size, options))
    net = _inference_form(net, merged, folded)

    def run() -> None:
        maps = list(net.backbone(_picture_for(net, (3, *size))).values())
        if recipe.head == "fcos":
            net.head(maps)
            return
        net.rpn.head(maps)
        for head in net.roi_heads.box_heads:
            head(maps[0].new_empty(recipe.proposals[1], recipe.channels, 7, 7))
        for head in net.roi_heads.mask_heads:
            head(maps[0].new_empty(recipe.detections, recipe.channels, 14, 14))

    return _count(net, run)


@plain_state()
def segmenter_complexity(
    model: str, recipe: SegmentRecipe, *, merged: bool = False, folded: bool = False, **options: Any
) -> Complexity:
    """Count a segmenter as Tables 5, 7 and 8 do: at the recipe's `count_size`, without the auxiliary head.

    Args:
        model: name of a timm model, which gets `options`; Swin Transformers are built for the size of the picture.
        recipe: says the head, its sizes, the classes and the picture's.
        merged, folded: as for `complexity`.
    """
    with torch.device("meta"):
        net: Any = create_segmenter(model, recipe, recipe.num_classes, **_sized(model, recipe.count_size, options))
    net.auxiliary_head = None
    net = _inference_form(net, merged, folded)
    return _count(net, lambda: net(_picture_for(net, (3, *recipe.count_size))))


def _sized(model: str, size: tuple[int, int], options: dict[str, Any]) -> dict[str, Any]:
    """Options of timm's net for pictures of `size`: a Swin Transformer's windows do not move to another."""
    return ({"img_size": size} if model.startswith("swin") else {}) | options


def _picture_for(net: nn.Module, size: tuple[int, int, int]) -> Tensor:
    return torch.empty(1, *size, device="meta", dtype=next(net.parameters()).dtype)


def _inference_form(net: nn.Module, merged: bool, folded: bool) -> nn.Module:
    if merged:
        with torch.device("meta"):  # where the layers that timm's nets make for it belong
            net = reparameterize_model(net, inplace=True)
    return deploy(net) if folded else net.eval()


def _count(net: nn.Module, run: Callable[[], object]) -> Complexity:
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return Complexity(sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2)
