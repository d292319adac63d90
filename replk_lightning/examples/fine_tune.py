"""python -m replk_lightning.examples.fine_tune FOLDER --model convnext_atto: a net of timm's fine-tuned on your images.

FOLDER holds train/CLASS/*.jpg and val/CLASS/*.jpg. Training starts from timm's pretrained weights, or from --weights
FILE, and follows a recipe of the paper, made shorter. The checkpoint it names is one for `predict` and `fit`.
"""

import sys

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from replk_lightning.arguments import OneLineErrors, positive
from replk_lightning.data import DataError, data_for_recipe
from replk_lightning.models import ModelError
from replk_lightning.models.weights import CheckpointError
from replk_lightning.recipes import get_recipe
from replk_lightning.tasks.classify import ClassifyTask


def main(argv: list[str] | None = None) -> int:
    """Train and say how well; a wrong argument gives one sentence and 2."""
    p = OneLineErrors(prog="fine_tune", description=__doc__)
    p.add_argument("folder")
    p.add_argument("--model", default="replknet_31b", help="any name of timm's or this package's")
    p.add_argument("--weights", help="a checkpoint of this package's nets instead; its head is left out")
    p.add_argument("--size", type=positive, default=224, help="side of the pictures in pixels (default: 224)")
    p.add_argument("--batch-size", type=positive, default=32, help="the learning rate scales with it (default: 32)")
    p.add_argument("--epochs", type=positive, default=10)
    p.add_argument("--workers", type=int, default=4, help="processes that read pictures (default: 4)")
    p.add_argument("--out", default="runs/fine_tune", help="folder of the checkpoint and the curves")
    arguments = p.parse_args(argv)
    # averaged weights would hardly have left where they started after so few steps
    changes = {"epochs": arguments.epochs, "resolution": arguments.size, "ema": None, "drop_path": 0.0}
    recipe = get_recipe("replknet_22k_finetune_224", **changes)
    try:
        loading = {"batch_size": arguments.batch_size, "num_workers": arguments.workers}
        data = data_for_recipe(f"imagefolder:{arguments.folder}", recipe, **loading)
        data.setup()
        options = {"pretrained": arguments.weights is None}
        task = ClassifyTask(arguments.model, recipe.name, data.num_classes, 3, arguments.weights, options, changes)
        best = ModelCheckpoint(monitor="val_top1", mode="max")
        trainer = L.Trainer(**recipe.length, default_root_dir=arguments.out, callbacks=[best])
        trainer.fit(task, data)
    except (DataError, ModelError, CheckpointError) as error:
        print(f"fine_tune: {error}", file=sys.stderr)
        return 2
    print(f"best top-1 {float(best.best_model_score or 0):.1f} % on {data.num_classes} classes: {best.best_model_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
