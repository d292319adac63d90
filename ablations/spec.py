"""What an ablation is: rows, scales, claims, and the decorator that turns a generator of rows into one.

An ablation file reads like the paper's table. It yields a `Row` per line of the table and states the paper's
sentences as margins over the measured numbers; everything else (training, counting, recording, rendering) is
shared by all ablations.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from lightning import Trainer
    from matplotlib.figure import Figure
    from torch import nn

    from replk_lightning.data import ImageData
    from replk_lightning.recipes import DetectRecipe, Recipe, SegmentRecipe
    from replk_lightning.tasks.segment import SegmentTask

SOURCES = ("Table", "Guideline", "Figure", "Appendix")
"""Where in the paper an ablation is from, in the order of the list; arguments of `@ablation` in lower case."""

ADDITION = "Addition"
"""The source of what is not in the paper."""


@dataclass(frozen=True)
class Supervision:
    """Which training images a row has people's labels of, and who labels the others.

    `labelled` is the share of every class whose labels are kept, always of the same images; `teacher` the row whose
    net, trained with the same seed, labels the rest softly (None: the rest is left out). An epoch is as long as one of
    the whole set, so that all rows take the same steps.
    """

    labelled: float = 1.0
    teacher: str | None = None

    def __str__(self) -> str:
        who = f"; for the rest, soft ones of the row {self.teacher!r}" if self.teacher else ""
        return f"people's for {self.labelled:.0%} of the images{who}"


DenseRecipe: TypeAlias = "SegmentRecipe | DetectRecipe"
Entries = Mapping[str, Mapping[str, Any]]  # model, family or head → options or fields of a recipe


class SpecError(ValueError):
    """A wrong argument; its message is one sentence for the user."""


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    `source` says what produces it: `train` (a training run at some scale), `transfer` (the trained net carried over to
    segmentation or detection), `count` (parameters and multiply-adds of the paper's model, by arithmetic) or `timing`
    (measured on the device at hand, or with `on_gpus` where that is a GPU). With `deviation`, a column says by how much
    ours differs from the paper's.
    """

    key: str
    label: str
    source: str = "train"
    digits: int = 2
    deviation: bool = False
    more_is_better: bool = True
    on_gpus: bool = False

    @property
    def trained(self) -> bool:
        """Whether a net must be trained to know it."""
        return self.source in ("train", "transfer")


TOP1 = Metric("top1", "top-1 (%)")
PARAMETERS = Metric("parameters", "parameters (M)", "count", 1, more_is_better=False)
MACS = Metric("macs", "multiply-adds (G)", "count", 1, more_is_better=False)
MIOU = Metric("miou", "segmentation, mIoU (%)", "transfer")
MIOU_MS = Metric("miou_ms", "with several scales, mIoU (%)", "transfer")
DENSE_PARAMETERS = Metric("dense_parameters", "parameters with the head (M)", "count", 1, deviation=True)
DENSE_MACS = Metric("dense_macs", "multiply-adds with the head (G)", "count", 0, deviation=True)
THROUGHPUT = Metric("throughput", "images/s", "timing", 1)
LATENCY = Metric("latency", "latency (ms an image)", "timing", 3, more_is_better=False)


class Row:
    """A line of a table: a model and its options.

    Args:
        key: name of the row in records, in `paper.toml` and on the command line.
        model: any timm name.
        label: how the table prints it (default: the key).
        recipe: replaces the ablation's recipe for this row.
        resolution: side of the square input at which the paper counts and times (default: the recipe's).
        trained: False for a baseline that is only counted, timed, or measured as it was initialised.
        published: a net whose weights come with `--init` and are measured as they are, at scale `paper` only.
        transfer: replaces the ablation's recipe of segmentation or detection for this row.
        gain: two rows; this one shows by how much the first is ahead of the second, seed by seed.
        supervision: which training images have labels and whose (default: all have people's).
        options: passed to `timm.create_model`.
    """

    def __init__(
        self,
        key: str,
        model: str,
        *,
        label: str | None = None,
        recipe: Callable[[], "Recipe"] | None = None,
        resolution: int | None = None,
        trained: bool = True,
        published: bool = False,
        transfer: Callable[[], DenseRecipe] | None = None,
        supervision: Supervision | None = None,
        gain: tuple[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.key, self.model, self.options = key, model, options
        self.label = label or key
        self.recipe, self.resolution = recipe, resolution
        self.trained, self.published = trained, published
        self.transfer, self.supervision = transfer, supervision
        self.gain = gain


@dataclass(frozen=True)
class Scale:
    """How much of the paper's experiment is run: data and overrides, never the code path.

    `model_options` and `recipe` are keyed by timm name or by model family (the name up to its first underscore), the
    more special adding to the more general; `model_options` also by row, for widths that make rows cost alike;
    `transfer` by the recipe's head; `transfer_data` by the recipe's class,
    where it is not the recipe's own. What has no entry is not run, unless the scale runs it `as_printed`. `timed` names
    the rows that `reproduce` times, by ablation, where it is not to time them all.
    """

    name: str
    cost: str
    data: str
    results: Path
    seeds: tuple[int, ...]
    model_options: Entries = field(default_factory=dict)
    recipe: Entries = field(default_factory=dict)
    transfer: Entries = field(default_factory=dict)
    transfer_data: Mapping[type["Recipe"], str] = field(default_factory=dict)
    as_printed: bool = False
    timed: Mapping[str, tuple[str, ...]] | None = None

    def options_for(self, row: Row) -> dict[str, Any]:
        """The row's model options at this scale, its own before the scale's; raises SpecError without an entry."""
        return self._of_model(self.model_options, "model options", row.model, row.key) | row.options

    def recipe_overrides_for(self, row: Row) -> dict[str, Any]:
        """Fields of the recipe that this scale replaces; raises SpecError without an entry."""
        return self._of_model(self.recipe, "recipe", row.model)

    def transfer_overrides_for(self, recipe: DenseRecipe) -> dict[str, Any]:
        """Fields of a recipe of segmentation or detection likewise."""
        what = f"transfer for the head {recipe.head!r} of the recipe {recipe.name!r}"
        return self._entries(self.transfer, what, recipe.head)

    def _of_model(self, entries: Entries, what: str, model: str, *more: str) -> dict[str, Any]:
        what = f"{what} for the model {model!r} of the family {family(model)!r}"
        return self._entries(entries, what, family(model), model, *more)

    def _entries(self, entries: Entries, what: str, *keys: str) -> dict[str, Any]:
        if not (self.as_printed or entries.keys() & set(keys)):
            raise SpecError(f"scale {self.name!r} has no {what}; give it an entry (see ablations/scales.py).")
        return {name: value for key in keys for name, value in entries.get(key, {}).items()}


def family(model: str) -> str:
    """`replknet_31b` → `replknet`."""
    return model.split("_")[0]


Margin = Callable[..., float]


def least(*margins: float) -> float:
    """The least of several margins, where a sentence holds if all its conditions do; arrays give one for each draw."""
    import numpy as np  # which a list of the ablations does without

    found: float = functools.reduce(np.minimum, margins)
    return found


@dataclass(frozen=True)
class Measured:
    """What an ablation measures of a trained net: numbers for its record, and arrays for its figure."""

    metrics: dict[str, float]
    arrays: dict[str, "np.ndarray"]


@dataclass(frozen=True)
class Drawing:
    """A figure, and the numbers in it as rows of a CSV file, head first."""

    figure: "Figure"
    numbers: list[list[Any]]


Measure = Callable[["nn.Module", "ImageData"], Measured]
MeasureTransfer = Callable[["Trainer", "SegmentTask", "ImageData"], dict[str, float]]
Draw = Callable[..., Drawing | None]  # results, one of their settings, the folder of the records; None: nothing yet
Timing = Callable[[Sequence[Row]], Mapping[str, Mapping[str, float]]]  # rows → {row: {metric: value}}


@dataclass(frozen=True)
class Number:
    """The number that says most of a table, for the index: what it is, and a function like a claim's margin."""

    label: str
    function: Callable[..., float]
    digits: int = 1


class _MissingError(Exception):
    """A number of a known row and metric is not there."""


class _Column(dict[str, float]):
    """Numbers by row, as a claim looks them up: one that is missing is told from a row that the table does not have."""

    def __init__(self, ablation: "Ablation", metric: str, values: Mapping[str, Mapping[str, float]]) -> None:
        super().__init__(values.get(ablation.metric(metric).key, {}))
        self.ablation = ablation

    def __missing__(self, row: str) -> float:
        self.ablation.select([row])
        raise _MissingError


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper as a margin over `{metric: {row: value}}`, above zero where the sentence holds.

    The margin's parameters are named by metrics, and it is in their unit: points of what is in percent, or times. The
    claim with a `number` is the one that stands for the whole table in the index.
    """

    sentence: str
    function: Margin
    ablation: "Ablation" = field(repr=False, compare=False)
    number: Number | None = None
    unit: str = "points"

    def margin(self, values: Mapping[str, Mapping[str, float]]) -> float | None:
        """The margin, or None where a number that the claim needs is missing, or one that it divides by is zero.

        Values may be arrays of one length; so is the margin then. Raises SpecError if the claim names a row or a metric
        that its table does not have.
        """
        return self._of(self.function, values)

    def value(self, values: Mapping[str, Mapping[str, float]]) -> float | None:
        """The claim's number likewise; None too where it has none."""
        return self._of(self.number.function, values) if self.number else None

    def _of(self, function: Callable[..., float], values: Mapping[str, Mapping[str, float]]) -> float | None:
        names = inspect.signature(function).parameters
        try:
            return function(**{name: _Column(self.ablation, name, values) for name in names})
        except (_MissingError, ZeroDivisionError):
            return None
        except SpecError as error:
            raise SpecError(f"the claim {self.sentence!r} cannot be decided: {error}") from error


@dataclass
class Ablation:
    """One table or figure of the paper. Build it with `@ablation`."""

    name: str
    title: str
    notes: str
    source: str
    recipe: Callable[[], "Recipe"]
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    transfer: Callable[[], DenseRecipe] | None = None
    timing: Timing | None = None
    measure: Measure | None = None
    measure_transfer: MeasureTransfer | None = None
    draw: Draw | None = None
    scales: Mapping[str, Scale] = field(default_factory=dict)
    records_of: "tuple[Ablation, ...]" = ()
    claims: list[Claim] = field(default_factory=list)

    @property
    def homes(self) -> "tuple[Ablation, ...]":
        """The ablations whose runs and printed numbers this one shows: itself, unless it shows others'."""
        return self.records_of or (self,)

    def claim(self, sentence: str, number: Number | None = None, unit: str = "points") -> Callable[[Margin], Margin]:
        """Decorator: register the function below as the margin of `sentence`; `number` makes it the index's."""

        def register(function: Margin) -> Margin:
            self.claims.append(Claim(sentence, function, self, number, unit))
            return function

        return register

    @property
    def headline(self) -> Claim:
        """The claim that the index shows: the one with a number, else the first."""
        return next((claim for claim in self.claims if claim.number), self.claims[0])

    def select(self, keys: list[str] | None) -> tuple[Row, ...]:
        """The rows named, or all; raises SpecError naming the choices."""
        keys = list(dict.fromkeys(keys or ()))
        known = {row.key: row for row in self.rows}
        unknown = [key for key in keys if key not in known]
        if unknown:
            raise SpecError(f"{self.name} has no row {unknown[0]!r}; choose from {', '.join(known)}.")
        return tuple(known[key] for key in keys) if keys else self.rows

    def metric(self, key: str) -> Metric:
        """The column called `key`; raises SpecError naming the choices."""
        known = {metric.key: metric for metric in self.metrics}
        if key not in known:
            raise SpecError(f"{self.name} has no metric {key!r}; choose from {', '.join(known)}.")
        return known[key]

    def recipe_of(self, row: Row, scale: Scale, given: bool = False) -> "Recipe":
        """The recipe that trains `row` at `scale`; without epochs where a net, or its `given` weights, are measured."""
        recipe = (row.recipe or self.recipe)().with_overrides(**scale.recipe_overrides_for(row))
        as_it_is = not row.trained or (self.measure and (given or row.published))
        return recipe.with_overrides(epochs=0) if as_it_is else recipe

    def transfer_of(self, row: Row, scale: Scale) -> "SegmentRecipe | DetectRecipe | None":
        """The recipe that carries `row` over to segmentation or detection at `scale`, if one does."""
        make = row.transfer or self.transfer
        recipe = make() if make else None
        return recipe and recipe.with_overrides(**scale.transfer_overrides_for(recipe))

    def resolution_of(self, row: Row) -> int:
        """Side in pixels of the input at which the paper counts and times `row`."""
        return row.resolution or (row.recipe or self.recipe)().resolution

    def keys(self, source: str) -> set[str]:
        """The columns that come from `source`."""
        return {metric.key for metric in self.metrics if metric.source == source}

    def has(self, source: str) -> bool:
        """Whether a column comes from `source`."""
        return bool(self.keys(source))


def ablation(
    *,
    recipe: Callable[[], "Recipe"],
    metrics: tuple[Metric, ...],
    transfer: Callable[[], DenseRecipe] | None = None,
    table: int | None = None,
    figure: int | None = None,
    guideline: int | None = None,
    appendix: str | None = None,
    timing: Timing | None = None,
    measure: Measure | None = None,
    measure_transfer: MeasureTransfer | None = None,
    draw: Draw | None = None,
    scales: Mapping[str, Scale] | None = None,
    records_of: tuple[Ablation, ...] = (),
) -> Callable[[Callable[[], Iterator[Row]]], Ablation]:
    """Turn a generator of rows into an `Ablation` named after it; its module's docstring is title and notes.

    A paragraph of the docstring that begins with `Cost:` is for who reads the file, and stays out of the notes.
    `table`, `figure`, `guideline` or `appendix` says where in the paper it is from; without, it is an addition.
    `transfer` is the recipe of segmentation or detection for columns of source `transfer`, which starts from what
    `recipe` trained. `timing` measures the columns of source `timing`, all rows in one run so that they can be
    compared. `measure` looks at each net once it is trained, with its data; untrained rows are measured as they were
    initialised. `measure_transfer` does so where a net has been carried over to segmentation. `draw` makes a figure of
    one setting's records. `scales` replaces some of the common scales by name. `records_of` is the ablation that runs
    for this one.
    """

    def build(rows: Callable[[], Iterator[Row]]) -> Ablation:
        title, *notes = inspect.cleandoc(inspect.getmodule(rows).__doc__ or rows.__name__).split("\n\n")
        notes = [paragraph for paragraph in notes if not paragraph.startswith("Cost: ")]
        numbers = dict(zip(SOURCES, (table, guideline, figure, appendix), strict=True))
        source = next((f"{kind} {number}" for kind, number in numbers.items() if number), ADDITION)
        built = Ablation(
            rows.__name__, title, "\n\n".join(notes), source, recipe, metrics, tuple(rows()),
            transfer, timing, measure, measure_transfer, draw, scales or {}, records_of,
        )  # fmt: skip
        teachers = [row.supervision.teacher for row in built.rows if row.supervision and row.supervision.teacher]
        built.select([key for row in built.rows for key in row.gain or ()] + teachers)  # rows that there are not
        return built

    return build
