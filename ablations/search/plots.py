"""The pictures of a sweep: trade-offs with the Pareto front, the history, and what each choice matters."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.report.plots import COLOURS, STYLE

BLUE, ORANGE, GREEN, BLACK = COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[6]


class Dot(NamedTuple):
    """A trial in a plane of two measures; `name` where it is one of the points that were tried first."""

    x: float
    y: float
    name: str | None
    on_front: bool


class Plane(NamedTuple):
    """Labels of two measures, the trials, what the named ones are, and on which side of x the good ones are."""

    x: str
    y: str
    dots: Sequence[Dot]
    named: str
    right_is_better: bool = False


def trade_offs(planes: Sequence[Plane], title: str) -> Figure:
    """A panel a plane: all trials, the front's joined by steps and outlined, the named ones marked and named."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(6.4, 4.6 * len(planes)), 4.4), layout="constrained")
        for axis, plane in zip(figure.subplots(1, len(planes), squeeze=False)[0], planes, strict=True):
            _plane(axis, plane)
        figure.suptitle(title, fontsize=9)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _plane(axis: Axes, plane: Plane) -> None:
    kinds = {
        "sampled": ([d for d in plane.dots if d.name is None], "o", BLUE),
        plane.named: ([d for d in plane.dots if d.name is not None], "D", ORANGE),
    }
    front = sorted((d.x, d.y) for d in plane.dots if d.on_front)
    if front:
        steps: Literal["pre", "post"] = "pre" if plane.right_is_better else "post"
        axis.step(*zip(*front, strict=True), where=steps, color=GREEN, linewidth=1.2, zorder=1, label="Pareto front")
        axis.plot(*zip(*front, strict=True), "o", color="none", markeredgecolor=GREEN, markersize=10)
    for label, (dots, marker, colour) in kinds.items():
        if dots:
            axis.plot([d.x for d in dots], [d.y for d in dots], marker, color=colour, markersize=5, label=label)
    for dot in plane.dots:
        if dot.name is not None:
            axis.annotate(dot.name, (dot.x, dot.y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axis.margins(0.1)
    axis.set(xlabel=plane.x, ylabel=plane.y)


def history(values: Mapping[str, Sequence[tuple[int, float]]], maximize: Sequence[bool], title: str) -> Figure:
    """A panel a measure: (trial's number, value) as dots, and the best so far as a line."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.9 * len(values) + 0.9), layout="constrained")
        axes = figure.subplots(len(values), 1, squeeze=False, sharex=True)[:, 0]
        for axis, (label, pairs), up in zip(axes, values.items(), maximize, strict=True):
            numbers, measured = [n for n, _ in pairs], [v for _, v in pairs]
            best: np.ndarray = (np.maximum if up else np.minimum).accumulate(measured)
            axis.plot(numbers, measured, "o", color=BLUE, markersize=4, label="trial")
            axis.step(numbers, best, where="post", color=ORANGE, label="best so far")
            axis.set(ylabel=label)
        axes[-1].set(xlabel="trial")
        axes[0].legend(loc="best")
        figure.suptitle(title, fontsize=9)
    return figure


def importances(shares: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """A panel a measure, in it a bar a choice, as long as its share of the variance."""
    with mpl.rc_context(STYLE):
        rows = max(len(of) for of in shares.values())
        figure = Figure(figsize=(3.4 * len(shares) + 0.6, 0.32 * rows + 1.3), layout="constrained")
        axes = figure.subplots(1, len(shares), squeeze=False)[0]
        for axis, (label, of) in zip(axes, shares.items(), strict=True):
            axis.barh(range(len(of)), list(of.values()), color=BLUE, alpha=0.8)
            axis.set(yticks=range(len(of)), yticklabels=list(of), ylim=(len(of) - 0.5, -0.5), title=label)
            axis.set(xlabel="share of the variance", xlim=(0, 1))
        figure.suptitle(title, fontsize=9)
    return figure
