"""Figures of multiply-adds, channels and time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from .style import CONTROL, ORIGINAL, SEAM, above, overlaid, percent


def multiply_adds(ax: Axes, layers: pd.DataFrame) -> Axes:
    """Multiply-adds of each layer, in the order of the model; columns `layer`, `dense` and `sparse`."""
    return overlaid(ax, layers, {"dense": "dense", "sparse": "sparse"}, "multiply-adds")


def channels(ax: Axes, layers: pd.DataFrame) -> Axes:
    """Output channels of each layer, in the order of the model; columns `layer`, `before` and `after`."""
    return overlaid(ax, layers, {"before": "source model", "after": "compacted"}, "output channels")


def speed(ax: Axes, times: pd.DataFrame, multiply_adds: float) -> Axes:
    """Time against the original's, a row a measurement; columns `engine`, `images` (a call) and `time` (a ratio).

    `multiply_adds`: the share of the original's that remains, drawn as a line. Bars are means, whiskers the range.
    """
    calls = times.assign(images=[f"{n} image{'s' * (n > 1)} a call" for n in times["images"]])
    sns.barplot(calls, x="engine", y="time", hue="images", palette="colorblind", errorbar=("pi", 100), ax=ax)
    ax.axhline(1, color=ORIGINAL, linestyle="-", linewidth=1)
    ax.axhline(multiply_adds, color=ORIGINAL, linestyle="--", label="multiply-adds that remain")
    percent(ax, "y", "time against the original's")
    ax.set_xlabel("")
    above(ax, columns=3)
    return ax


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


def accuracy_by_speed(ax: Axes, points: pd.DataFrame) -> Axes:
    """Accuracy against speed, a line a model: what taking channels out costs and gains.

    Columns: `model`, `kind` ("channels", "scattered" or "smaller images"), `faster` (times as fast as the original),
    `points` (accuracy above the restricted original, which is a line at 0). Scattered zeros are crosses beside their
    line; the original on smaller images, which is its rival, is a dotted one.
    """
    for n, (model, rows) in enumerate(points.groupby("model", sort=False)):
        colour = sns.color_palette("colorblind")[n]
        line, cross, rival = (rows[rows["kind"] == kind].sort_values("faster")
                              for kind in ("channels", "scattered", "smaller images"))
        ax.plot(line["faster"], line["points"], "-o", color=colour, markersize=5, label=model)
        ax.plot(cross["faster"], cross["points"], "x", color=colour, markersize=7)
        ax.plot(rival["faster"], rival["points"], ":v", color=colour, markersize=5)
    ax.axhline(0, color=ORIGINAL, linestyle="--")
    ax.set(xlabel="times as fast as the original", ylabel="points above the restricted original")
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
