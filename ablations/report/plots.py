"""What the paper's figures are drawn with: matplotlib without a display, one style, colours that the colour-blind see.

Panels are small multiples of half a page's width; dark is much, as in the paper.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Okabe and Ito's palette."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

DARK_IS_MUCH = "YlGnBu"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 160,
    "legend.frameon": False,
}


class Panel(NamedTuple):
    """One matrix (H, W) with entries in [0, 1], what it is, and a line under it."""

    title: str
    matrix: np.ndarray
    caption: str


def heat_maps(panels: Sequence[Panel], columns: int, title: str, label: str) -> Figure:
    """Matrices side by side, on one scale from 0 to 1."""
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.95 * columns + 0.7, 2.35 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, panel in zip(axes, panels, strict=False):
            image = axis.imshow(panel.matrix, cmap=DARK_IS_MUCH, vmin=0, vmax=1, interpolation="nearest")
            axis.set_axis_on()
            axis.set(xticks=[], yticks=[], xlabel=panel.caption, title=panel.title)
            axis.spines[:].set_visible(True)
        figure.colorbar(image, ax=axes, label=label, shrink=0.7, aspect=30)
        figure.suptitle(title, fontsize=9)
    return figure


def scatters(values: Mapping[str, Mapping[str, float]], classes: Sequence[str], title: str, label: str) -> Figure:
    """One colour and marker a net, one line of the y axis a class, and a vertical line at each net's mean.

    Args:
        values: net → class → value in [0, 1].
        classes: from top to bottom.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.28 * len(classes) + 1.6), layout="constrained")
        axis = figure.subplots()
        for (net, by_class), colour, marker in zip(values.items(), COLOURS, MARKERS, strict=False):
            mean = float(np.mean(list(by_class.values())))
            places = [classes.index(name) for name in by_class]
            axis.plot(list(by_class.values()), places, marker, color=colour, alpha=0.8, label=f"{net}: {mean:.2f}")
            axis.axvline(mean, color=colour, linewidth=1.5)
        axis.set(yticks=range(len(classes)), yticklabels=classes, xlim=(-0.02, 1.02), xlabel=label)
        axis.invert_yaxis()
        axis.set(ylabel="class of the shape")
        figure.suptitle(title, fontsize=9)
        figure.legend(loc="outside right center", title="mean over classes")
    return figure


def gains(groups: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Figure:
    """A panel a group, in it a bar a name as long as the mean of its values, and a dot a value."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.5 * len(groups) + 0.9), layout="constrained")
        axes = figure.subplots(len(groups), 1, squeeze=False, sharex=True)[:, 0]
        for axis, (name, bars) in zip(axes, groups.items(), strict=True):
            for place, (values, colour) in enumerate(zip(bars.values(), COLOURS, strict=False)):
                if values:
                    axis.barh(place, float(np.mean(values)), color=colour, alpha=0.8)
                    axis.plot(values, [place] * len(values), "o", color="black", markersize=3)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set(yticks=range(len(bars)), yticklabels=list(bars), ylim=(len(bars) - 0.5, -0.5), title=name)
        axes[-1].set(xlabel="gain (points)")
        figure.suptitle(title, fontsize=9)
    return figure


def lines(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], places: Sequence[str], title: str, x: str, y: str
) -> Figure:
    """A panel a group, in it a line a name through the means of its values at each place, and bars of their deviation.

    Args:
        panels: group → name → place → values, which may be none.
        places: what is written under them, from left to right.
    """
    with mpl.rc_context(STYLE):
        rows = max(1, -(-len(panels) // 2))
        figure = Figure(figsize=(7.2, 3.0 * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, (group, named) in zip(axes, panels.items(), strict=False):
            axis.set_axis_on()
            for (name, values), colour, marker in zip(named.items(), COLOURS, MARKERS, strict=False):
                there = [place for place, found in enumerate(values) if found]
                means = [float(np.mean(values[place])) for place in there]
                spread = [float(np.std(values[place], ddof=1)) if len(values[place]) > 1 else 0.0 for place in there]
                axis.errorbar(there, means, spread, color=colour, marker=marker, markersize=4, capsize=2, label=name)
            axis.set(xticks=range(len(places)), xticklabels=places, xlim=(-0.4, len(places) - 0.6), title=group)
            axis.tick_params(axis="x", labelsize=7)
            axis.set(xlabel=x, ylabel=y)
            axis.legend(fontsize=7)
        figure.suptitle(title, fontsize=9)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; the same figure gives the same bytes with the same matplotlib."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
