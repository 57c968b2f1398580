"""Figures of fine-tuned students, what they inherit, and what is left of a planted defect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .style import CONTROL, ORIGINAL, SEAM, above, percent


def thresholds(ax: Axes, table: pd.DataFrame) -> Axes:
    """Accuracy and defect inheritance rate against the share of weights removed.

    Columns, all in [0, 1]: `removed`, `accuracy`, `dir` and, dashed, `accuracy_masked` and `dir_masked`, which are
    missing where nothing was masked; a row a student.
    """
    for column, label, colour, marker in (("accuracy", "accuracy", SEAM, "o"),
                                          ("dir", "defect inheritance rate", CONTROL, "^")):
        ax.plot(table["removed"], table[column], "-" + marker, color=colour, label=label)
        ax.plot(table["removed"], table[f"{column}_masked"], "--" + marker, color=colour, fillstyle="none",
                label=f"{label}, before fine-tuning")
    ax.set_ylim(0, 1)
    percent(ax, "x", "weights removed before fine-tuning")
    percent(ax, "y", "share of test images")
    above(ax)
    return ax


def inheritance(ax: Axes) -> Axes:
    """A drawing, no data: an image changed with the teacher's help fools the student that took over its weights."""
    ax.set(xlim=(0, 10), ylim=(0, 4))
    ax.set_axis_off()
    boxes = {"image\n+ small change": (1.2, 2.0, ORIGINAL), "teacher's body\n(public)": (4.4, 3.2, CONTROL),
             "student's body\n(private)": (4.4, 0.8, SEAM), "student's\nown output layer": (7.2, 0.8, SEAM)}
    for text, (x, y, colour) in boxes.items():
        ax.text(x, y, text, ha="center", va="center", fontsize="small",
                bbox={"boxstyle": "round,pad=0.6", "facecolor": "white", "edgecolor": colour, "linewidth": 2})
    ax.text(9.3, 0.8, "wrong\nanswer", ha="center", va="center", fontsize="small", weight="bold")
    for begin, end, text, place in (
        ((3.4, 3.2), (1.2, 2.6), "1  pushes the features away", (1.2, 3.3)),
        ((4.4, 2.6), (4.4, 1.4), "2  hands on its weights", (4.6, 2.0)),
        ((1.2, 1.4), (3.4, 0.8), "3  the same image", (1.2, 0.55)),
        ((5.4, 0.8), (6.2, 0.8), "", (0, 0)), ((8.2, 0.8), (8.8, 0.8), "", (0, 0)),
    ):
        ax.annotate("", end, begin, arrowprops={"arrowstyle": "->", "color": "black", "linewidth": 1.5})
        ax.text(place[0], place[1], text, fontsize="small", va="center", ha="left" if text[:1] == "2" else "center")
    return ax


def by_method(axes: Sequence[Axes], students: pd.DataFrame, panels: Mapping[str, str | None]) -> Sequence[Axes]:
    """A panel for each column in `panels`, a row a method, a point a student, all in [0, 1].

    `students` has a column `method`; methods are drawn in the order in which they come. A panel's value is the column
    of its control, which is drawn as grey bars, or None.
    """
    methods = list(dict.fromkeys(students["method"]))
    rows = students["method"].map(methods.index)
    for ax, (column, control) in zip(axes, panels.items(), strict=True):
        if control:
            ax.plot(students[control], rows, "|", color=ORIGINAL, markersize=14, markeredgewidth=2, label=control)
        ax.plot(students[column], rows, "o", color=SEAM, markersize=7, alpha=0.7, label=column)
        ax.set_yticks(range(len(methods)), methods)
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        percent(ax, "x", column)
        if control:
            above(ax, columns=1)
    return axes


def survival(ax: Axes, points: pd.DataFrame) -> Axes:
    """What a planted trigger does along the fronts of searches, a line a seed; grey: what a patch by lot does.

    Columns `seed` and, in [0, 1], `kept` (above 0), `success` and `control`; a row a point.
    """
    for i, (_, of) in enumerate(points.groupby("seed")):
        for column, label, colour, marker in (("success", "the trigger", CONTROL, "o"),
                                              ("control", "a patch by lot", ORIGINAL, "s")):
            ax.plot(of["kept"], of[column], "-" + marker, color=colour, markersize=5, label="" if i else label)
    ax.set(xscale="log", ylim=(-0.03, 1.03))
    percent(ax, "x", "weights kept")
    percent(ax, "y", "sent to the wrong class")
    if len(points):
        above(ax)
    return ax


def carried(ax: Axes, layers: pd.DataFrame) -> Axes:
    """Which layers keep the weights that poisoning changed most.

    Columns `layer` and, in [0, 1], `changed`, the layer's share of them, a bar; `changed_kept` and `kept`, how many of
    them and of all its weights are kept, a dot each; a row a layer.
    """
    ax.bar(layers["layer"], layers["changed"], color=ORIGINAL, alpha=0.4, label="its share of the most changed weights")
    ax.plot(layers["layer"], layers["changed_kept"], "o", color=CONTROL, label="kept of those")
    ax.plot(layers["layer"], layers["kept"], "s", color=SEAM, markersize=5, label="kept of all its weights")
    ax.tick_params(axis="x", rotation=90)
    percent(ax, "y", "share")
    above(ax, columns=1)
    return ax
