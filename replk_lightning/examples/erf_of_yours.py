"""python -m replk_lightning.examples.erf_of_yours torchvision.models.resnet18 --map layer4: how far your net sees.

The net is a function or class that makes it, by its dotted name, or a name of timm's, which comes with its weights: an
untrained net's field is not the trained one's. The pictures are fifteen photographs that installed packages ship.
"""

import pydoc
import sys
from pathlib import Path

from matplotlib.image import imsave
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from replk_lightning.arguments import OneLineErrors, positive
from replk_lightning.measure.erf import FieldError, area_ratio, contribution, photographs
from replk_lightning.models import ModelError, create_model
from replk_lightning.recipes.base import IMAGENET_MEAN, IMAGENET_STD

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


class MapOf(nn.Module):
    """The feature map (N, C, h, w) that leaves one node of a net."""

    def __init__(self, net: nn.Module, node: str) -> None:
        super().__init__()
        self.body = create_feature_extractor(net, {node: "map"})

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) → the map."""
        features: Tensor = self.body(images)["map"]
        return features


def main(argv: list[str] | None = None) -> int:
    """Draw the field and print Table 10's ratios; a wrong argument gives one sentence and 2."""
    p = OneLineErrors(prog="erf_of_yours", description=__doc__)
    p.add_argument("net", nargs="?", default="convnext_tiny", help="package.function, or a name of timm's")
    p.add_argument("--map", help="node whose output is looked at, where the net has no forward_features: layer4, …")
    p.add_argument("--size", type=positive, default=512, help="side of the pictures in pixels (default: 512)")
    p.add_argument("--out", type=Path, default=Path("runs/erf.png"), help="default: runs/erf.png")
    arguments = p.parse_args(argv)
    make = pydoc.locate(arguments.net)
    try:
        net = make() if callable(make) else create_model(arguments.net, pretrained=True)
        net = MapOf(net, arguments.map) if arguments.map else net
        field = contribution(net, photographs(arguments.size, IMAGENET_MEAN, IMAGENET_STD))
    except (ModelError, FieldError, ValueError) as error:  # the last for a node that there is not
        print(f"erf_of_yours: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    imsave(arguments.out, field, cmap="YlGnBu", vmin=0, vmax=1)
    for threshold, ratio in zip(THRESHOLDS, area_ratio(field, THRESHOLDS), strict=True):
        print(f"{threshold:.0%} of the contributions lie in a square of {ratio:.1%} of the area")
    print(f"drawn to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
