"""RepLKNet: the models, recipes, tasks and measurements of "Scaling Up Your Kernels to 31x31".

Importing this package registers its models with timm and does nothing else.
"""

from importlib.metadata import PackageNotFoundError, version

from replk_lightning import models
from replk_lightning.deploy import deploy
from replk_lightning.models.weights import load_official

try:
    __version__ = version("replk-lightning")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.1.0"

__all__ = ["__version__", "deploy", "load_official", "models"]
