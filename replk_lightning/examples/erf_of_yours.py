"""python -m replk_lightning.examples.erf_of_yours torchvision.models.resnet18 --map layer4: how far your net sees.

The net is a function or class that makes it, by its dotted name, or a name of timm's, which comes with its weights: an
untrained net's field is not the trained one's. The pictures are fifteen photographs that installed packages ship.
"""

import pydoc
import sys
from pathlib import Path
from typing import Any

from matplotlib.image import imsave
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from replk_lightning.arguments import OneLineErrors, positive
from replk_lightning.measure.erf import THRESHOLDS, area_ratio, contribution, photographs
from replk_lightning.models import create_model
from replk_lightning.recipes.base import IMAGENET_MEAN, IMAGENET_STD


class MapOf(nn.Module):
    """The feature map (N, C, h, w) that leaves one node of a net."""

    def __init__(self, net: nn.Module, node: str) -> None:
        super().__init__()
        self.body = create_feature_extractor(net, {node: "map"})

    def forward(self, images: Tensor) -> Any:
        """Images (N, 3, H, W) → the map."""
        return self.body(images)["map"]


def main(argv: list[str] | None = None) -> int:
    """Draw the field and print Table 10's ratios; a wrong argument gives one sentence and 2."""
    p = OneLineErrors(prog="erf_of_yours", description=__doc__)
    p.add_argument("net", nargs="?", default="convnext_tiny", help="package.function, or a name of timm's")
    p.add_argument("--map", help="node whose output is looked at, where the net has no forward_features: layer4, …")
    p.add_argument("--size", type=positive, default=512, help="side of the pictures in pixels (default: 512)")
    p.add_argument("--out", type=Path, default=Path("runs/erf.png"))
    arguments = p.parse_args(argv)
    make = pydoc.locate(arguments.net)
    try:
        net = make() if callable(make) else create_model(arguments.net, pretrained=True)
        looked_at = MapOf(net, arguments.map) if arguments.map else net
        field = contribution(looked_at, photographs(arguments.size, IMAGENET_MEAN, IMAGENET_STD))
    except ValueError as error:  # no such net, no such node, no feature map
        print(f"erf_of_yours: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    imsave(arguments.out, field, cmap="YlGnBu", vmin=0, vmax=1)
    for threshold, ratio in zip(THRESHOLDS, area_ratio(field), strict=True):
        print(f"{threshold:.0%} of the contributions lie in a square of {ratio:.1%} of the area of {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
