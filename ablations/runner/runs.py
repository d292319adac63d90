"""What pre-trained nets are carried over to: segmentation and detection (Tables 3 to 5 and 7 to 9)."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn
from tqdm import tqdm

from ablations.records.record import FROM_SCRATCH, Kind, PredecessorError, Record
from ablations.runner.train import Machine, Run, forget, train
from ablations.spec import DenseRecipe
from replk_lightning.checkpointing import why_unreadable
from replk_lightning.data import DataError, ImageData
from replk_lightning.models.detectors import create_detector
from replk_lightning.models.segmenters import create_segmenter
from replk_lightning.recipes import SegmentRecipe
from replk_lightning.tasks.base import Task
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.segment import SegmentTask

COCO = "coco"


@dataclass(frozen=True)
class Transfer(Run):
    """A run that starts from `init`, or what `pretraining`, the `Run` of the same row and seed, trained, or scratch."""

    pretraining: Run | None = None
    from_scratch: bool = False
    kind: ClassVar[Kind] = "transfer"

    @property
    def recipe(self) -> DenseRecipe:
        """The recipe of segmentation or detection, with what the scale replaces."""
        recipe = self.ablation.transfer_of(self.row, self.scale)
        assert recipe is not None
        return recipe

    def label_of(self, data: ImageData) -> str:
        """The data's name, and that the net was not pre-trained if so."""
        return data.name + FROM_SCRATCH if self.from_scratch else data.name

    def make_model(self, data: ImageData) -> nn.Module:
        """The net under its head as it is before training; raises ModelError."""
        options, recipe = self.scale.options_for(self.row), self.recipe
        if isinstance(recipe, SegmentRecipe):
            return create_segmenter(self.row.model, recipe, self._classes(data), data.in_chans, **options)
        return create_detector(self.row.model, recipe, self._classes(data), data.in_chans, **options)

    def record(self, hardware: str | None, data: ImageData, **measured: Any) -> Record:
        """A record of this run, which says how what it starts from was trained."""
        recipe = asdict(self.pretraining.recipe) if self.pretraining else None
        return super().record(hardware, data, pretraining=recipe, **measured)

    def _classes(self, data: ImageData) -> int:
        try:
            return data.num_classes
        except DataError:  # planned where the data are not: then they are the recipe's own
            return self.recipe.num_classes

    def make_task(self, data: ImageData) -> Task:
        """The net under its head."""
        task = SegmentTask if isinstance(self.recipe, SegmentRecipe) else DetectTask
        options: dict[str, Any] = {
            "model": self.row.model,
            "recipe": self.recipe.name,
            "num_classes": data.num_classes,
            "in_chans": data.in_chans,
            "init": self.init,
            "model_options": self.scale.options_for(self.row),
            "recipe_overrides": dict(self.scale.transfer.get(self.recipe.head, {})),
        }
        return task(**options)


def transfer_of(run: Run, data: str | None, init: str | None, from_scratch: bool = False) -> Transfer | None:
    """What `run`'s row and seed are carried over to, on the scale's data unless `data` names others; None if nothing.

    Where nothing of the table comes of classification, at scale `paper`, `init` is needed, unless `from_scratch`. At
    other scales so is a row's that starts from larger data than it could be trained on, or the row is left out.
    """
    recipe = run.ablation.transfer_of(run.row, run.scale)
    if recipe is None or not run.ablation.has("transfer"):
        return None
    larger = recipe.starts_from != run.ablation.recipe_of(run.row, run.scale).name
    if larger and run.scale.name != "paper" and not init and not from_scratch:
        return None
    own = recipe.data if isinstance(recipe, SegmentRecipe) else COCO
    where = data or run.scale.transfer_data.get(type(recipe), own)
    trained_here = run.ablation.has("train") or run.scale.name != "paper"
    pretraining = run if trained_here and not init and not from_scratch else None
    return Transfer(run.ablation, run.row, run.scale, where, run.seed, init, pretraining, from_scratch)


def pretrained(run: Run, machine: Machine) -> str:
    """Path of the weights that `run` trains, trained now if they are not there; raises PredecessorError."""
    if not run.weights.exists() or why_unreadable(run.weights):
        record = train(run, machine, tqdm(disable=True))
        forget(run)
        if record.status == "failed":
            reason = f"row {run.row.key!r}, seed {run.seed}, has nothing to start from: {record.reason}"
            raise PredecessorError(reason, record)
    return str(run.weights)
