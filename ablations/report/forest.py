"""The picture of all verdicts: one line a claim, our interval and point, the paper's mark, a panel a unit."""

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ablations.paper import paper_values
from ablations.report.plots import COLOURS, STYLE
from ablations.report.results import Results
from ablations.report.verdicts import Judged

WORDS = {"holds": (COLOURS[0], "o"), "fails": (COLOURS[5], "X"), "undecided": ("#777777", "D")}
"""Colour and marker of each word, told apart without colours too."""

PAPER = "|"
LONGEST = 74


def forest(found: Sequence[tuple[Results, Judged]]) -> Figure:
    """Margins with their 95 % intervals; what has one seed only is left out, as it has neither interval nor word."""
    shown = [(results, judged) for results, judged in found if judged.word in WORDS]
    units = list(dict.fromkeys(judged.claim.unit for _, judged in shown))
    heights = [sum(judged.claim.unit == unit for _, judged in shown) for unit in units]
    with mpl.rc_context(STYLE | {"font.size": 7.5}):
        figure = Figure(figsize=(8.6, 0.165 * sum(heights) + 0.55 * len(units) + 0.5), layout="constrained")
        panels = figure.subplots(len(units), 1, squeeze=False, height_ratios=[n + 1.5 for n in heights])[:, 0]
        for axis, unit in zip(panels, units, strict=True):
            _panel(axis, unit, [(r, judged) for r, judged in shown if judged.claim.unit == unit])
        keys = [Line2D([], [], color=c, marker=m, linestyle="-", label=word) for word, (c, m) in WORDS.items()]
        keys.append(Line2D([], [], color="black", marker=PAPER, markersize=8, linestyle="", label="the paper's"))
        figure.legend(handles=keys, loc="outside upper right", ncols=len(keys))
    return figure


def _panel(axis: Axes, unit: str, lines: Sequence[tuple[Results, Judged]]) -> None:
    axis.axvline(0, color="black", linewidth=0.8)
    for place, (results, judged) in enumerate(lines):
        verdict, (colour, marker) = judged.verdict, WORDS[judged.word]
        assert verdict
        if not math.isnan(verdict.low):
            axis.plot((verdict.low, verdict.high), (place, place), color=colour, linewidth=1.6)
        axis.plot(verdict.margin, place, marker, color=colour, markersize=4.5)
        paper = judged.claim.margin(paper_values(results.ablation))
        if paper is not None:
            axis.plot(paper, place, PAPER, color="black", markersize=8, markeredgewidth=1.4)
    labels = [_label(results, judged) for results, judged in lines]
    axis.set_xscale("symlog", linthresh=1, linscale=0.6)  # effects of 0.2 points beside intervals of 100
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(yticks=range(len(lines)), yticklabels=labels, ylim=(len(lines) - 0.4, -0.6))
    axis.set_xlabel(f"margin ({unit}); right of zero the paper's sentence holds", labelpad=1)
    axis.grid(axis="x", linewidth=0.3)


def _label(results: Results, judged: Judged) -> str:
    where = f" [{(judged.setting.hardware or '').partition(',')[0]}]" if judged.setting.kind == "timing" else ""
    sentence = judged.claim.sentence
    room = LONGEST - len(where)
    if len(sentence) > room:
        sentence = sentence[: room - 1].rstrip() + "…"
    return f"{sentence}{where}  {results.ablation.source}"
