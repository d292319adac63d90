"""Runs: a row at a scale with a seed, trained from nothing or carried over (Tables 3 to 5 and 7 to 9)."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ablations.records.fingerprint import defined_by
from ablations.records.provenance import commit, versions
from ablations.records.record import FROM_SCRATCH, Kind, Record, record_name
from ablations.spec import Ablation, DenseRecipe, Row, Scale
from replk_lightning.data import DataError, ImageData, data_for_recipe
from replk_lightning.models import create_model
from replk_lightning.models.detectors import create_detector
from replk_lightning.models.segmenters import create_segmenter
from replk_lightning.recipes import Recipe, SegmentRecipe
from replk_lightning.tasks.base import Task
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.multitask import MultiTaskClassify
from replk_lightning.tasks.segment import SegmentTask

WORK = Path("runs")
ARRAYS = "arrays.npz"

TASK = "classes"
"""The one task of these rows."""


class PredecessorError(Exception):
    """What a run was to start from has failed, as `record` says; the message is the reason for the run's own record."""

    def __init__(self, reason: str, record: Record) -> None:
        super().__init__(reason)
        self.record = record


@dataclass(frozen=True)
class Run:
    """One training run of an ablation, by what makes it different from every other."""

    ablation: Ablation
    row: Row
    scale: Scale
    data: str
    seed: int
    init: str | None = None  # checkpoint, for a fine-tuning
    kind: ClassVar[Kind] = "train"

    @property
    def recipe(self) -> Recipe:
        """The recipe, with what the scale replaces; without epochs where a net is measured as it is."""
        return self.ablation.recipe_of(self.row, self.scale, given=self.init is not None)

    @property
    def supervision(self) -> dict[str, Any] | None:
        """Whose labels it trains with, for its record; None where all images have people's."""
        return asdict(self.row.supervision) if self.row.supervision else None

    @property
    def record_name(self) -> str:
        """File name of its record."""
        return record_name(self.row.key, self.kind, self.scale.name, self.label_of(self.make_data()), self.seed)

    def label_of(self, data: ImageData) -> str:
        """What its record and its column call `data`."""
        return data.name

    @property
    def folder(self) -> Path:
        """Checkpoints and logs, git-ignored."""
        return WORK / self.ablation.name / self.record_name.removesuffix(".json")

    def make_data(self) -> ImageData:
        """The data module, at the recipe's resolution and batch size per GPU."""
        return data_for_recipe(self.data, self.recipe)

    @property
    def weights(self) -> Path:
        """Where the trained net's weights are kept for what starts from them, git-ignored."""
        return WORK / "weights" / self.ablation.name / self.record_name.replace(".json", ".pt")

    def make_model(self, data: ImageData) -> nn.Module:
        """The model as it is before training; raises ModelError."""
        return create_model(self.row.model, in_chans=data.in_chans, **self.scale.options_for(self.row))

    def make_task(self, data: ImageData) -> Task:
        """The model under its recipe."""
        options: dict[str, Any] = {
            "model": self.row.model,
            "recipe": (self.row.recipe or self.ablation.recipe)().name,
            "in_chans": data.in_chans,
            "init": self.init,
            "model_options": self.scale.options_for(self.row),
            "recipe_overrides": self.scale.recipe_overrides_for(self.row),
        }
        if self.row.supervision:
            return MultiTaskClassify({TASK: data.num_classes}, **options)
        return ClassifyTask(num_classes=data.num_classes, **options)

    def record(self, hardware: str | None, data: ImageData, **measured: Any) -> Record:
        """A record of this run; `measured` holds what running it gave."""
        record = Record(
            ablation=self.ablation.name,
            row=self.row.key,
            kind=self.kind,
            scale=self.scale.name,
            data=self.label_of(data),
            data_fingerprint=data.fingerprint,
            seed=self.seed,
            model=self.row.model,
            options=self.scale.options_for(self.row),
            recipe=asdict(self.recipe),
            supervision=self.supervision,
            hardware=hardware,
            versions=versions(),
            commit=commit(),
            **measured,
        )
        return replace(record, model_fingerprint=defined_by(record))


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


def predecessors(run: Run) -> list[Run]:
    """The runs that `run` trains first unless it finds their results: its pre-training, its teacher."""
    found: list[Run] = [run.pretraining] if isinstance(run, Transfer) and run.pretraining else []
    if run.row.supervision and run.row.supervision.teacher:
        found.append(replace(run, row=run.ablation.select([run.row.supervision.teacher])[0], init=None))
    return found
