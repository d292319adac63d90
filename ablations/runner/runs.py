"""Runs: a row at a scale with a seed, trained from nothing or carried over (Tables 3 to 5 and 7 to 9)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ablations.records.record import FROM_SCRATCH, Kind, record_name
from ablations.scales import get_scale
from ablations.spec import Ablation, Row, Scale
from replk_lightning.data import DataError, ImageData, data_for_recipe
from replk_lightning.data.multitask import Labelled, MultiTaskData, PseudoLabelled
from replk_lightning.data.pools import pool_of
from replk_lightning.models import create_model
from replk_lightning.models.detectors import create_detector
from replk_lightning.models.segmenters import create_segmenter
from replk_lightning.recipes import DetectRecipe, Recipe, SegmentRecipe
from replk_lightning.tasks.base import Task
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.multitask import MultiTaskClassify
from replk_lightning.tasks.segment import SegmentTask

WORK = Path("runs")
ARRAYS = "arrays.npz"

TASK = "classes"
"""The one task of these rows."""


def data_name(data: str) -> str:
    """What records call the data set that `data` describes: the name of its data module, which is not made for it."""
    kind, _, where = data.partition(":")
    if kind in ("imagefolder", "masks"):
        return f"{kind}-{Path(where).expanduser().resolve().name}"
    return where.rstrip("/").rsplit("/")[-1] if kind == "hf" else kind.removesuffix("-smoke")


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

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process by names, as ablations and scales hold functions; it has its own of those names."""
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("ablation", "row", "scale")}
        return _named, (type(self), self.ablation, self.row.key, self.scale.name, rest)

    @property
    def recipe(self) -> Recipe:
        """The recipe, with what the scale replaces; without epochs where a net is measured as it is."""
        return self.ablation.recipe_of(self.row, self.scale, given=self.init is not None)

    @property
    def supervision(self) -> dict[str, Any] | None:
        """Whose labels it trains with, for its record; None where all images have people's."""
        return asdict(self.row.supervision) if self.row.supervision else None

    @property
    def needs(self) -> "tuple[Run, ...]":
        """The runs that come before it, as it starts from what they trained: here its teacher, if it has one."""
        teacher = self.row.supervision and self.row.supervision.teacher
        return tuple(replace(self, row=row, init=None) for row in self.ablation.select([teacher])) if teacher else ()

    @property
    def is_taught(self) -> bool:
        """Whether it trains with labels of the net that it needs, and does not start from that net."""
        return self.kind == "train" and bool(self.needs)

    @property
    def is_needed(self) -> bool:
        """Whether other runs may start from what it trains: a transfer, or the row that it is the teacher of."""
        teachers = {row.supervision.teacher for row in self.ablation.rows if row.supervision}
        carried = self.ablation.transfer_of(self.row, self.scale) is not None
        return self.kind == "train" and (carried or self.row.key in teachers)

    @property
    def start(self) -> str | None:
        """Checkpoint that its training starts from; None where it starts from nothing."""
        return self.init

    @property
    def data_name(self) -> str:
        """What its record and its column call its data."""
        return data_name(self.data)

    @property
    def record_name(self) -> str:
        """File name of its record."""
        return record_name(self.row.key, self.kind, self.scale.name, self.data_name, self.seed)

    @property
    def title(self) -> str:
        """Its ablation and the name of its record, by which people and loggers tell runs apart."""
        return f"{self.ablation.name}/{self.record_name.removesuffix('.json')}"

    @property
    def folder(self) -> Path:
        """Checkpoints, git-ignored."""
        return WORK / self.title

    @property
    def logs(self) -> Path:
        """Where loggers write, for each run into a folder of its title, git-ignored; it stays when the run is over."""
        return WORK / "logs"

    def make_data(self) -> ImageData:
        """The data module, at the recipe's resolution and batch size per GPU."""
        return data_for_recipe(self.data, self.recipe)

    def make_training_data(self, data: ImageData) -> ImageData:
        """`data` as they are trained on: under the row's supervision, with its teacher's labels out of `labels`.

        An epoch is as long as one of the whole set. Raises DataError where labels are missing.
        """
        supervision = self.row.supervision
        if supervision is None:
            return data
        kept = Labelled(TASK, data, supervision.labelled)
        return MultiTaskData(
            [PseudoLabelled(self.labels, pool_of(data)) if supervision.teacher else kept],
            {TASK: data},
            epoch_size=data.train_size,
            name=data.name,
            in_chans=data.in_chans,
            image_size=data.image_size,
            batch_size=data.batch_size,
            augmentation=getattr(data, "augmentation", None),
            num_workers=data.num_workers,
        )

    @property
    def labels(self) -> Path:
        """Where the labels of its teacher lie, like its checkpoint: a run that was killed goes on from either."""
        return self.folder / "labels"

    @property
    def weights(self) -> Path:
        """Where what it trained is kept for the runs that need it, git-ignored: a checkpoint without an optimizer."""
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
            "init": self.start,
            "model_options": self.scale.options_for(self.row),
            "recipe_overrides": self.scale.recipe_overrides_for(self.row),
        }
        if self.row.supervision:
            return MultiTaskClassify({TASK: data.num_classes}, **options)
        return ClassifyTask(num_classes=data.num_classes, **options)


def _named(kind: type[Run], ablation: Ablation, row: str, scale: str, rest: dict[str, Any]) -> Run:
    return kind(ablation, ablation.select([row])[0], get_scale(scale, ablation), **rest)


COCO = "coco"


@dataclass(frozen=True)
class Transfer(Run):
    """A run that starts from `init`, or what `pretraining`, the `Run` of the same row and seed, trained, or scratch."""

    pretraining: Run | None = None
    from_scratch: bool = False
    kind: ClassVar[Kind] = "transfer"

    @property
    def recipe(self) -> SegmentRecipe | DetectRecipe:
        """The recipe of segmentation or detection, with what the scale replaces."""
        recipe = self.ablation.transfer_of(self.row, self.scale)
        assert recipe is not None
        return recipe

    @property
    def needs(self) -> tuple[Run, ...]:
        """Its pre-training, unless its weights are given or it does without."""
        return (self.pretraining,) if self.pretraining else ()

    @property
    def start(self) -> str | None:
        """The checkpoint that is given, or what its pre-training leaves."""
        return str(self.pretraining.weights) if self.pretraining else self.init

    @property
    def data_name(self) -> str:
        """The data's name, and that the net was not pre-trained if so."""
        return data_name(self.data) + (FROM_SCRATCH if self.from_scratch else "")

    def make_model(self, data: ImageData) -> nn.Module:
        """The net under its head as it is before training; raises ModelError."""
        options, recipe = self.scale.options_for(self.row), self.recipe
        if isinstance(recipe, SegmentRecipe):
            return create_segmenter(self.row.model, recipe, self._classes(data), data.in_chans, **options)
        return create_detector(self.row.model, recipe, self._classes(data), data.in_chans, **options)

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
            "init": self.start,
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


def with_needs(run: Run) -> Iterator[Run]:
    """`run` after all that it needs."""
    for need in run.needs:
        yield from with_needs(need)
    yield run
