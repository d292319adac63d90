"""Which task a recipe is of, and tasks out of checkpoints."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from replk_lightning.data.augment import Augmentation, Preprocessing, Transform
from replk_lightning.models.weights import CheckpointError
from replk_lightning.recipes import DetectRecipe, RecipeError, SegmentRecipe, get_recipe
from replk_lightning.tasks.base import CLASS_NAMES, PIXELS, Task
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.multitask import MultiTaskClassify
from replk_lightning.tasks.segment import SegmentTask

TASKS: tuple[type[ClassifyTask | SegmentTask | DetectTask], ...] = (ClassifyTask, SegmentTask, DetectTask)


class Trained(NamedTuple):
    """A task out of a checkpoint, in eval mode, and how pixels were normalised, one number a channel.

    `as_recipe` is False where the data had numbers of their own, as the small sets held in memory do. `class_names` are
    in the order of the classes' numbers; None where the checkpoint has none.
    """

    task: Task
    mean: tuple[float, ...]
    std: tuple[float, ...]
    as_recipe: bool
    class_names: tuple[str, ...] | None = None

    def view(self) -> Transform:
        """How a photograph becomes what a classifier was validated on, float32 (C, resolution, resolution)."""
        return self.preprocessing().transform()

    def preprocessing(self) -> Preprocessing:
        """What `view` does; of a segmenter or detector at the size that it is tested at, the picture as a whole."""
        recipe = self.task.recipe
        looks = Augmentation(
            interpolation=recipe.interpolation,
            mean=self.mean,  # type: ignore[arg-type] # or one number, for one channel
            std=self.std,  # type: ignore[arg-type] # as the mean
            crop_pct=None if self.as_recipe else 1.0,  # sets held in memory are not cropped
        )
        if isinstance(recipe, SegmentRecipe | DetectRecipe):
            size = recipe.crop if isinstance(recipe, SegmentRecipe) else (recipe.test_size, recipe.max_size)
            return replace(looks.preprocessing(recipe.resolution), size=size, crop_pct=1.0, crop_mode="squash")
        return looks.preprocessing(recipe.resolution)


def named_task(
    model: str,
    recipe: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    init: str | None = None,
    model_options: dict[str, Any] | None = None,
    recipe_overrides: dict[str, Any] | None = None,
) -> Task:
    """Classification, segmentation or detection, as the recipe says.

    Args:
        model: any timm name, this package's included.
        recipe: its name; upernet_… and deeplabv3plus_… are of segmentation, fcos_… and cascade_mask_rcnn_… of
            detection, all others of classification.
        num_classes, in_chans: of the data, which tell.
        init: checkpoint of a classifier that training starts from.
        model_options: passed to timm; the recipe's drop path and dropout are added where it has them.
        recipe_overrides: fields of the recipe to replace, for example {"epochs": 2}.
    """
    found = type(get_recipe(recipe, **(recipe_overrides or {})))
    task = next(each for each in TASKS if each.recipe_class is found)
    return task(model, recipe, num_classes, in_chans, init, model_options, recipe_overrides)


REMEDY = "name one that `fit` wrote, such as last.ckpt"


def read_checkpoint(path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """What `fit` or an ablation wrote: of its hyper-parameters a task's only; raises CheckpointError.

    Only tensors and plain containers are unpickled.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        options = {name: value for name, value in content["hyper_parameters"].items() if not name.startswith("_")}
        content["state_dict"], options["recipe"]
        return {**content, "hyper_parameters": options}
    except Exception as error:  # whatever the unpickler makes of a file that is no checkpoint
        raise CheckpointError(f"{path} is not a checkpoint of this package's tasks: {remedy}.") from error


def load_task(path: Path, remedy: str = REMEDY) -> Trained:
    """What `fit` or an ablation trained, out of its checkpoint.

    Pixels are normalised as the checkpoint says, or by the recipe's numbers where it says nothing. Raises
    CheckpointError, with `remedy` where the file is of something else, or ModelError where this version no longer has
    its model.
    """
    content = read_checkpoint(path, remedy)
    options, weights = content["hyper_parameters"], content["state_dict"]
    name = options["recipe"]
    try:
        task = _several_tasks(options) if "tasks" in options else named_task(**options)
        task.load_state_dict(weights)
    except (TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise CheckpointError(f"{path} does not fit the recipe {name} of this version ({reason}).") from error
    except RecipeError as error:
        raise CheckpointError(f"{path} was trained by another version: {error}.") from error
    own = content.get(PIXELS)
    mean, std = (own["mean"], own["std"]) if own else (task.recipe.mean, task.recipe.std)
    names = content.get(CLASS_NAMES)
    if not isinstance(names, list) or len(names) != task.hparams["num_classes"]:
        names = None
    return Trained(task.eval(), tuple(mean), tuple(std), own is None, tuple(map(str, names)) if names else None)


def _several_tasks(options: dict[str, Any]) -> Task:
    known = inspect.signature(MultiTaskClassify).parameters  # Lightning keeps what ClassifyTask is given as well
    return MultiTaskClassify(**{name: value for name, value in options.items() if name in known})
