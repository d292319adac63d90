"""The spatial layers of RepLKNet's skeleton: the paper's, and those of papers since, each in a file of its own.

`timm.create_model("replknet_31b", spatial="slak")` has SLaK's layer in every block. Add one by a file in this folder.
"""

import importlib
import pkgutil
from functools import cache

from replk_lightning.models.spatial.base import Place, SpatialLayer

__all__ = ["Place", "SpatialLayer", "get_spatial", "spatial_layers"]


@cache
def _import_this_folder() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def spatial_layers() -> dict[str, type[SpatialLayer]]:
    """Every layer by its name, those of this folder and imported ones of others."""
    _import_this_folder()
    return dict(sorted(SpatialLayer.known.items()))


def get_spatial(name: str) -> type[SpatialLayer]:
    """The layer called `name`; raises ValueError naming the choices."""
    known = spatial_layers()
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"there is no spatial layer {name!r}: use one of {', '.join(known)}")
    return known[name]
