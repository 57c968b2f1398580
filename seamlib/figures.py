"""Figures: each function draws a table on axes and returns them. No file is read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

SEAM, CONTROL = sns.color_palette("colorblind")[:2]  # blue, orange
ORIGINAL = sns.color_palette("colorblind")[7]  # grey


def style() -> None:
    """One look for all figures of the book."""
    sns.set_theme("notebook", "whitegrid", "colorblind")
    plt.rcParams.update({"figure.figsize": (7, 4), "figure.dpi": 144, "figure.constrained_layout.use": True,
                         "savefig.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False})


def course(ax: Axes, history: pd.DataFrame, originals: Mapping[str, float], picks: Mapping[str, int]) -> Axes:
    """Accuracy against kept fraction over one search.

    `history` has columns `kept` and `accuracy`, a row an epoch; `originals` maps labels to accuracies drawn as lines;
    `picks` maps labels to the epochs that were chosen.
    """
    ax.plot(history["kept"], history["accuracy"], "-", color=SEAM, alpha=0.35)
    points = ax.scatter(history["kept"], history["accuracy"], c=history.index + 1, cmap="viridis", s=28, zorder=3)
    ax.figure.colorbar(points, ax=ax, label="epoch", ticks=MaxNLocator(6, integer=True))
    for (label, accuracy), dashes in zip(originals.items(), ("--", ":", "-."), strict=False):
        ax.axhline(accuracy, color=ORIGINAL, linestyle=dashes, label=label)
    by_epoch: dict[int, list[str]] = {}
    for label, epoch in picks.items():
        by_epoch.setdefault(epoch, []).append(label)
    for marker, (epoch, labels) in zip("osD", by_epoch.items(), strict=False):
        ax.plot(history["kept"].iloc[epoch], history["accuracy"].iloc[epoch], marker, markersize=14, fillstyle="none",
                color=CONTROL, markeredgewidth=2, linestyle="none", label=f"chosen on {' and '.join(labels)}")
    ax.set_xscale("log")
    _percent(ax, "x", "weights kept (logarithmic scale)")
    _percent(ax, "y", "test accuracy")
    above(ax)
    return ax


def courses(ax: Axes, histories: Mapping[str, pd.DataFrame], original: float) -> Axes:
    """Accuracy against kept fraction of several searches; columns as in `course`, `original` in [0, 1] as a line."""
    for (label, history), colour, marker in zip(histories.items(), sns.color_palette("colorblind"), "o^sDv",
                                                strict=False):
        ax.plot(history["kept"], history["accuracy"], "-" + marker, color=colour, alpha=min(1, 60 / len(history)),
                markersize=4, label=label, zorder=2 + 1 / len(history))  # a short course on top of a long one
    ax.axhline(original, color=ORIGINAL, linestyle="--", label="original, all outputs")
    ax.set_xscale("log")
    _percent(ax, "x", "weights kept (logarithmic scale)")
    _percent(ax, "y", "test accuracy")
    above(ax)
    return ax


def front(ax: Axes, ends: pd.DataFrame, original: float) -> Axes:
    """Where searches ended: a row each, columns `kept` and `accuracy` in [0, 1]; `original` as a line."""
    ax.plot(ends["kept"], ends["accuracy"], "o", color=SEAM)
    ax.axhline(original, color=ORIGINAL, linestyle="--", label="original, all outputs")
    _percent(ax, "x", "weights kept")
    _percent(ax, "y", "test accuracy")
    ax.legend(fontsize="small", loc="lower right")
    return ax


def claims(ax: Axes, problems: pd.DataFrame, paper: tuple[float, float]) -> Axes:
    """Gain in accuracy against kept fraction: a row a problem, columns `kept` in [0, 1], `gain` in points, and `of`.

    Small points are problems, large ones the means of each `of`; the star is `paper`, (kept in [0, 1], points).
    """
    markers = dict(zip(dict.fromkeys(problems["of"]), "os^D", strict=False))
    for (of, marker), colour in zip(markers.items(), sns.color_palette("colorblind"), strict=False):
        mine = problems[problems["of"] == of]
        ax.plot(mine["kept"], mine["gain"], marker, color=colour, alpha=0.35, markersize=5)
        ax.plot(mine["kept"].mean(), mine["gain"].mean(), marker, color=colour, markersize=11, markeredgecolor="black",
                linestyle="none", label=f"{of} (mean of {len(mine)})")
    ax.plot(*paper, "*", color="black", markersize=18, linestyle="none", label="SeaM, mean of all its models")
    ax.axhline(0, color=ORIGINAL, linewidth=1)
    ax.set_xlim(0)
    _percent(ax, "x", "weights kept")
    ax.set_ylabel("points above the original,\nall outputs")
    above(ax)
    return ax


def kept_by_layer(ax: Axes, kept: pd.DataFrame) -> Axes:
    """Share of each layer's weights that is kept; columns `layer`, `kept` in [0, 1], in the order of the model."""
    sns.barplot(kept, x="layer", y="kept", color=SEAM, ax=ax)
    ax.tick_params(axis="x", rotation=90)
    _percent(ax, "y", "weights kept")
    ax.set_xlabel("")
    return ax


def multiply_adds(ax: Axes, layers: pd.DataFrame) -> Axes:
    """Multiply-adds of each layer, in the order of the model; columns `layer`, `dense` and `sparse`."""
    return _overlaid(ax, layers, {"dense": "dense", "sparse": "sparse"}, "multiply-adds")


def speed(ax: Axes, times: pd.DataFrame, multiply_adds: float) -> Axes:
    """Time against the original's, a row a measurement; columns `engine`, `images` (a call) and `time` (a ratio).

    `multiply_adds`: the share of the original's that remains, drawn as a line. Bars are means, whiskers the range.
    """
    calls = times.assign(images=[f"{n} image{'s' * (n > 1)} a call" for n in times["images"]])
    sns.barplot(calls, x="engine", y="time", hue="images", palette="colorblind", errorbar=("pi", 100), ax=ax)
    ax.axhline(1, color=ORIGINAL, linestyle="-", linewidth=1)
    ax.axhline(multiply_adds, color=ORIGINAL, linestyle="--", label="multiply-adds that remain")
    _percent(ax, "y", "time against the original's")
    ax.set_xlabel("")
    above(ax, columns=3)
    return ax


def channels(ax: Axes, layers: pd.DataFrame) -> Axes:
    """Output channels of each layer, in the order of the model; columns `layer`, `before` and `after`."""
    return _overlaid(ax, layers, {"before": "source model", "after": "compacted"}, "output channels")


def faster(ax: Axes, times: pd.DataFrame) -> Axes:
    """How many times as fast as the original, which is a line at 1; a row a measurement.

    Columns: `engine`, `images` (a call), `masked, faster` and `compacted, faster`.
    """
    where = np.arange(len(times))
    for shift, (name, colour) in zip((-0.2, 0.2), (("masked", ORIGINAL), ("compacted", SEAM)), strict=True):
        ax.bar(where + shift, times[f"{name}, faster"], 0.4, color=colour, label=name)
    ax.axhline(1, color="black", linewidth=1)
    ax.set_xticks(where, [f"{e}\n{b} image{'s' * (b > 1)}" for e, b in zip(times["engine"], times["images"],
                                                                          strict=True)], fontsize="small")
    ax.set_ylabel("times as fast as the original")
    above(ax)
    return ax


def by_engine(axes: Sequence[Axes], times: pd.DataFrame) -> Sequence[Axes]:
    """A panel an engine, two bars a model: how many times as fast as the original, which is a line at 1.

    Columns: `engine`, `model`, `masked, faster` and `compacted, faster`, a row a pair. The axes share the vertical one.
    """
    models = list(dict.fromkeys(times["model"]))
    for ax, (engine, rows) in zip(axes, times.groupby("engine", sort=False), strict=True):
        where = rows["model"].map(models.index)
        for shift, (name, colour) in zip((-0.2, 0.2), (("masked", ORIGINAL), ("compacted", SEAM)), strict=True):
            ax.barh(where + shift, rows[f"{name}, faster"], 0.4, color=colour, label=name)
        ax.axvline(1, color="black", linewidth=1)
        ax.set_xlabel(f"{engine}: times as fast", fontsize="small")
        ax.set_yticks(range(len(models)), models, fontsize="small")
    axes[0].invert_yaxis()
    above(axes[0])
    return axes


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
    _percent(ax, "x", "weights removed before fine-tuning")
    _percent(ax, "y", "share of test images")
    above(ax)
    return ax


def growth(axes: Sequence[Axes], batches: pd.DataFrame, models: pd.DataFrame, problems: pd.DataFrame,
           images: int) -> Sequence[Axes]:
    """Three panels of what an epoch of `images` images takes: by batch, by model and by number of problems.

    Columns: `batch`, `seconds`; `model`, `multiply_adds`, `seconds`; `problems`, `one by one`, `together` (seconds).
    """
    left, middle, right = axes
    left.plot(batches["batch"], images / batches["seconds"], "-o", color=SEAM)
    left.set_xscale("log", base=2)
    left.set(xlabel="images a step", ylabel="images a second")
    left.set_ylim(bottom=0)
    middle.plot(models["multiply_adds"] / 1e6, models["seconds"], "o", color=SEAM)
    for _, row in models.iterrows():
        middle.annotate(row["model"], (row["multiply_adds"] / 1e6, row["seconds"]), (-4, 6), ha="right",
                        textcoords="offset points", fontsize="small")
    middle.axline((0, 0), slope=models["seconds"].sum() / models["multiply_adds"].sum() * 1e6, color=ORIGINAL,
                  linestyle="--")
    middle.set(xlabel="million multiply-adds an image", ylabel="seconds an epoch", xlim=(0, None), ylim=(0, None))
    for how, colour, marker in (("one by one", SEAM, "o"), ("together", CONTROL, "^")):
        right.plot(problems["problems"], problems[how], "-" + marker, color=colour, label=how)
    right.set(xlabel="problems", ylabel="seconds an epoch", xlim=(0, None), ylim=(0, None))
    right.legend(fontsize="small")
    return axes


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
    for i, (ax, (column, control)) in enumerate(zip(axes, panels.items(), strict=True)):
        if control:
            ax.plot(students[control], rows, "|", color=ORIGINAL, markersize=14, markeredgewidth=2, label=control)
        ax.plot(students[column], rows, "o", color=SEAM, markersize=7, alpha=0.7, label=column)
        ax.set_yticks(range(len(methods)), methods if i == 0 else [""] * len(methods))
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        _percent(ax, "x", column)
        if control:
            above(ax, columns=1)
    return axes


def by_class(axes: Sequence[Axes], classes: pd.DataFrame) -> Sequence[Axes]:
    """Two panels, a row a target class: accuracy of original and re-engineered, and the share of weights kept.

    Columns: `class`; in [0, 1] `original`, `restricted`, `head only`, `re-engineered` and `kept`.
    """
    left, right = axes
    rows = np.arange(len(classes))
    left.hlines(rows, classes["original"], classes["re-engineered"], color=ORIGINAL, alpha=0.5)
    for column, marker, colour in (("original", "|", "black"), ("head only", "^", CONTROL),
                                   ("re-engineered", "o", SEAM), ("restricted", "x", "black")):  # the control on top
        left.plot(classes[column], rows, marker, color=colour, label=column, markersize=8)
    left.set_yticks(rows, classes["class"])
    left.invert_yaxis()
    _percent(left, "x", "test accuracy")
    above(left, columns=4)
    right.barh(rows, classes["kept"], color=SEAM)
    right.set_yticks(rows, [""] * len(rows))
    right.set_ylim(left.get_ylim())
    _percent(right, "x", "weights kept")
    return axes


def matrix(ax: Axes, table: pd.DataFrame, label: str) -> Axes:
    """A square a cell of shares in [0, 1], written on it where columns are ten at most; NaN stays empty.

    `label`: what the colours mean.
    """
    few = table.shape[1] <= 10
    sns.heatmap(table, ax=ax, cmap="cividis", annot=few, fmt=".0%", annot_kws={"fontsize": 8}, cbar_kws={
        "label": label, "format": PercentFormatter(1, decimals=0)}, xticklabels=True, yticklabels=True)
    ax.tick_params(labelsize=8, length=0)
    ax.grid(visible=False)
    ax.set(xlabel="", ylabel="")
    return ax


def wanted(ax: Axes, found: Sequence[float], chance: Sequence[float]) -> Axes:
    """Shares of the weights, in [0, 1], that 0, 1, ... n problems keep: bars; dots: what chance gives (n + 1 each)."""
    numbers = range(len(found))
    ax.bar(numbers, found, color=SEAM, label="found")
    ax.plot(numbers, chance, "o", color=CONTROL, label="by chance")
    ax.set_yscale("log")
    ax.set_ylim(1e-5, 1)
    ax.set_xticks(list(numbers))
    ax.set_xlabel("problems that keep a weight")
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    ax.set_ylabel("share of the weights")
    ax.legend(fontsize="small", loc="upper right")
    return ax


def examples(axes: Sequence[Axes], images: np.ndarray, titles: Sequence[str]) -> Sequence[Axes]:
    """Images uint8 [n, channels, height, width], one on each of the n axes, under its title."""
    for ax, image, title in zip(axes, images, titles, strict=True):
        ax.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray")
        ax.set_title(title, fontsize="small")
        ax.set_axis_off()
    return axes


def above(ax: Axes, columns: int = 2) -> None:
    """The legend above the axes, where it hides nothing."""
    ax.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False,
              borderaxespad=0.2, columnspacing=1.2, handletextpad=0.5, markerscale=0.7)


def _percent(ax: Axes, which: str, label: str) -> None:
    """Ticks as per cent, with as many digits as they need; on a logarithmic axis a few of them."""
    axis: Any = getattr(ax, f"{which}axis")
    axis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(MaxNLocator(5) if high < 4 * low else LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_minor_formatter(NullFormatter())
    getattr(ax, f"set_{which}label")(label)


def _overlaid(ax: Axes, layers: pd.DataFrame, columns: Mapping[str, str], what: str) -> Axes:
    """A bar a layer: the first of `columns` (column -> label) behind, in grey, the second before it."""
    for (column, label), (colour, alpha) in zip(columns.items(), ((ORIGINAL, 0.4), (SEAM, 1.0)), strict=True):
        ax.bar(layers["layer"], layers[column], color=colour, alpha=alpha, label=label)
    ax.tick_params(axis="x", rotation=90)
    ax.set_ylabel(what)
    ax.legend(fontsize="small")
    return ax
