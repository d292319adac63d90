"""What a sweep searches: a model, the choices that vary, and the points that are tried first.

A space of your own is a Python file that names one, `space`:

    from ablations.search.space import Space
    from ablations.tables.table5 import table5

    def options(first, later):
        return {"kernel_sizes": (first, later, later, 13)}

    space = Space(
        "two-kernels", table5, "replknet_31b", options,
        choices={"first": range(3, 32, 2), "later": range(3, 32, 2)},
        first=[{"first": 31, "later": 29}],
    )
"""

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from ablations.spec import Ablation, SpecError
from ablations.tables.guideline3 import guideline3
from ablations.tables.table5 import KERNELS, table5
from replk_lightning.models.spatial import get_spatial, spatial_layers

Point = Mapping[str, Any]
Choices = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Space:
    """Models that differ in a few choices and are trained alike.

    Args:
        name: of the space, in studies' names.
        ablation: whose recipe, scales and transfer every model is trained with.
        model: any timm name.
        options: called with a value of each choice by keyword; returns options of the timm model.
        choices: the values of each choice: a `range` where their order means something, as with kernel sizes, or a
            list of numbers, booleans or strings where it does not.
        first: points that are tried before any other.
        notes: what a reader of the tables should know.

    Raises:
        SpecError: something of this does not fit together; the message says what.
    """

    name: str
    ablation: Ablation
    model: str
    options: Callable[..., dict[str, Any]]
    choices: Choices
    first: Sequence[Point] = ()
    notes: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.ablation, Ablation) or not callable(self.options):
            raise SpecError(f"space {self.name!r} needs an ablation, the name of a model and a function of options.")
        if not isinstance(self.choices, Mapping) or not self.choices:
            raise SpecError(f"space {self.name!r} has no choices: give it a dict of ranges and lists.")
        for name, values in self.choices.items():
            _check_choice(self.name, name, values)
        for point in self.first:
            if point.keys() != self.choices.keys() or any(point[name] not in self.choices[name] for name in point):
                raise SpecError(f"space {self.name!r} does not hold {dict(point)}, which it names to be tried first.")
        for point in self.probes():
            self.options_at(point)

    @property
    def size(self) -> int:
        """How many points there are."""
        return prod(len(values) for values in self.choices.values())

    @property
    def start(self) -> Point:
        """The first point that is tried, or that of all first choices."""
        return self.first[0] if self.first else {name: values[0] for name, values in self.choices.items()}

    def probes(self) -> Iterator[Point]:
        """The start, and from there every other value of each choice."""
        yield self.start
        for name, values in self.choices.items():
            yield from ({**self.start, name: value} for value in values)

    def options_at(self, point: Point) -> dict[str, Any]:
        """Options of the timm model at `point`; raises SpecError."""
        try:
            options = self.options(**point)
            json.dumps(options)
        except Exception as error:
            raise SpecError(
                f"space {self.name!r} gives no options of a model at {dict(point)} ({type(error).__name__}: {error})."
            ) from error
        if not isinstance(options, dict):
            raise SpecError(f"space {self.name!r} gives {options!r} at {dict(point)}, which is no dict of options.")
        return options

    def identity(self) -> dict[str, Any]:
        """What the space is, for a study's name: its model and choices, and the options that they lead to."""
        choices = {name: list(values) for name, values in self.choices.items()}
        return {"model": self.model, "choices": choices, "options": [self.options_at(point) for point in self.probes()]}


def _check_choice(space: str, name: str, values: Any) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) == 0:
        raise SpecError(f"space {space!r} gives {name!r} no range or list of values, but {values!r}.")
    if isinstance(values, range) and values.step <= 0:
        raise SpecError(f"space {space!r}: the range of {name!r} goes down.")
    if not all(value is None or isinstance(value, bool | int | float | str) for value in values):
        raise SpecError(f"space {space!r}: values of {name!r} are numbers, booleans or strings, not {values!r}.")
    if any(a == b for a, b in pairwise(sorted(map(repr, values)))):
        raise SpecError(f"space {space!r} names a value of {name!r} twice.")


ODD_KERNELS = range(3, 32, 2)
STAGES = ("k1", "k2", "k3", "k4")


def _kernel_options(**kernels: int) -> dict[str, Any]:
    return {"kernel_sizes": [kernels[stage] for stage in STAGES]}


def _mobilenet_options(kernel: int, branch: int, shortcut: bool) -> dict[str, Any]:
    # a branch as large as the kernel is none: the same net under two names would be trained twice
    return {"kernel_size": kernel, "small_kernel": branch if 0 < branch < kernel else None, "shortcut": shortcut}


EVERY_LAYER = list(spatial_layers())
FIXED = ("global", "none")
"""Layers whose size is no choice."""


def _spatial_options(layer: str, kernel: int) -> dict[str, Any]:
    size = get_spatial(layer).kernel_sizes[-1] if layer in FIXED else kernel  # or the same net had many names
    return {"spatial": layer, "kernel_sizes": [size] * 4}


PAPERS_KERNELS = [dict(zip(STAGES, map(int, label.split("-")), strict=True)) for label in KERNELS.values()]
"""Table 5's nets, [3, 3, 3, 3] to [31, 29, 27, 13]."""

PAPERS_MOBILENETS = [
    {"kernel": kernel, "branch": branch, "shortcut": shortcut}
    for shortcut, nets in ((True, ((3, 0), (9, 0), (9, 3), (13, 0), (13, 3))), (False, ((3, 0), (13, 0))))
    for kernel, branch in nets
]
"""Tables 2 and 3's nets."""


NOISE = (
    "At `small` every model is trained as Table 5's nets are, with one seed. 3-3-3-3 reached 86.3 % here and, with the "
    "same seed on a processor without AVX-512, 90.3 %; with seeds 1 and 2, 91.6 and 91.0 %. Four points are noise."
)


def spaces() -> dict[str, Space]:
    """The spaces that come with the package, by name."""
    stages = dict.fromkeys(STAGES, ODD_KERNELS)
    kernels = Space("kernels", table5, "replknet_31b", _kernel_options, stages, PAPERS_KERNELS, NOISE)
    choices: Choices = {"kernel": ODD_KERNELS, "branch": [0, 3, 5], "shortcut": [True, False]}
    mobilenet = Space("mobilenet", guideline3, "mobilenetv2_lk", _mobilenet_options, choices, PAPERS_MOBILENETS)
    layers: Choices = {"layer": EVERY_LAYER, "kernel": range(7, 32, 6)}
    first = [{"layer": layer, "kernel": 13} for layer in EVERY_LAYER]
    spatial = Space("spatial", table5, "replknet_31b", _spatial_options, layers, first, NOISE)
    return {space.name: space for space in (kernels, mobilenet, spatial)}


def get_space(name: str) -> Space:
    """The space called `name`, or the one in the Python file of that path; raises SpecError."""
    if name.endswith(".py"):
        return _load(Path(name))
    known = spaces()
    if name not in known:
        raise SpecError(f"there is no space {name!r}; choose from {', '.join(known)}, or name a Python file.")
    return known[name]


def _load(path: Path) -> Space:
    """The `space` of a user's file."""
    if not path.is_file():
        raise SpecError(f"there is no file {path} with a space.")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(f"{path} does not run: {type(error).__name__}: {str(error).splitlines()[0]}.") from error
    space = getattr(module, "space", None)
    if not isinstance(space, Space):
        raise SpecError(f"{path} names no space: write `space = Space(…)`, as ablations/search/space.py shows.")
    return space
