"""RepLKNet: the models, recipes, tasks and measurements of "Scaling Up Your Kernels to 31x31".

Importing this package registers its models with timm and does nothing else.
"""

from importlib.metadata import PackageNotFoundError, version

from native.moved import keep_old_names
from replk_lightning import models
from replk_lightning.deploy import deploy
from replk_lightning.models.weights import load_official

keep_old_names(
    "replk_lightning",
    {
        "callbacks": "trainer.resume",
        "checkpointing": "trainer.checkpoint_io",
        "command_line": "arguments",
        "data.boxes": "data.detection",
        "data.memory": "data.tensor_images",
        "data.reading": "data.decoding",
        "data.soft_labels": "data.label_shards",
        "data.soft_targets": "data.targets",
        "files": "atomic",
        "findings": "predict.predictors",
        "measure.kernels": "measure.kernel_pictures",
        "models.checkpoints": "models.weights",
        "overlays": "predict.draw",
        "sync_batch_norm": "trainer.sync_batch_norm",
        "tasks.choose": "tasks.factory",
        "tasks.optimize": "tasks.optim",
    },
)

try:
    __version__ = version("replk-lightning")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.1.0"

__all__ = ["__version__", "deploy", "load_official", "models"]
