"""Figures of searches, and of the masks that they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .style import CONTROL, ORIGINAL, SEAM, above, percent


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
    percent(ax, "x", "weights kept (logarithmic scale)")
    percent(ax, "y", "test accuracy")
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
    percent(ax, "x", "weights kept (logarithmic scale)")
    percent(ax, "y", "test accuracy")
    above(ax)
    return ax


def front(ax: Axes, ends: pd.DataFrame, original: float) -> Axes:
    """Where searches ended: a row each, columns `kept` and `accuracy` in [0, 1]; `original` as a line."""
    ax.plot(ends["kept"], ends["accuracy"], "o", color=SEAM)
    ax.axhline(original, color=ORIGINAL, linestyle="--", label="original, all outputs")
    percent(ax, "x", "weights kept")
    percent(ax, "y", "test accuracy")
    ax.legend(fontsize="small", loc="lower right")
    return ax


def fronts(ax: Axes, points: pd.DataFrame, paper: tuple[float, float] | None = None) -> Axes:
    """Points of accuracy above the restricted original against weights kept, on a logarithmic scale.

    A row a point of a front: `problem`, `kept` in (0, 1], `difference` in points. A thin line a problem; the thick one
    is their mean where all have one, between the points along straight lines. The star is `paper`, (kept, points).
    """
    for _, line in points.sort_values("kept").groupby("problem", sort=False):
        ax.plot(line["kept"], line["difference"], color=SEAM, alpha=0.35, linewidth=1)
    ax.plot(*_mean(points), color=SEAM, linewidth=3, label=f"mean of {points['problem'].nunique()} problems")
    ax.axhline(0, color=ORIGINAL, linestyle="--", label="restricted original")
    _claimed(ax, paper, "restricted original")
    return ax


def claims(ax: Axes, points: pd.DataFrame, paper: tuple[float, float]) -> Axes:
    """Points of accuracy above the original over all outputs: the mean front of each group of problems.

    A row a point of a front, as in `fronts`, and `of`, its group. The star is `paper`, (kept in [0, 1], points).
    """
    styles = zip(sns.color_palette("colorblind"), ("-", "--", "-.", ":"), strict=False)
    for (of, mine), (colour, dashes) in zip(points.groupby("of", sort=False), styles, strict=False):
        ax.plot(*_mean(mine), dashes, color=colour, linewidth=2.5, label=f"{of} ({mine['problem'].nunique()})")
    ax.axhline(0, color=ORIGINAL, linewidth=1)
    _claimed(ax, paper, "original, all outputs", columns=1)
    return ax


def _mean(points: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(Kept, mean difference) of the fronts of all problems, from the highest of their low ends to the lowest high."""
    lines = [line.sort_values("kept") for _, line in points.groupby("problem")]
    low = max((line["kept"].min() for line in lines), default=1)
    high = min((line["kept"].max() for line in lines), default=1)
    if not low < high:
        return np.empty(0), np.empty(0)
    at = np.geomspace(low, high, 50)
    return at, np.mean([np.interp(np.log(at), np.log(line["kept"]), line["difference"]) for line in lines], axis=0)


def _claimed(ax: Axes, paper: tuple[float, float] | None, over: str, columns: int = 2) -> None:
    """The star, and the axes of a picture of fronts."""
    if paper is not None:
        ax.plot(*paper, "*", color="black", markersize=16, linestyle="none", label="SeaM, mean of all its models")
    ax.set_xscale("log")
    percent(ax, "x", "weights kept (logarithmic scale)")
    ax.set_ylabel(f"points above the\n{over}")
    above(ax, columns)


def by_images(ax: Axes, searches: pd.DataFrame, column: str, control: float, kinds: Sequence[str]) -> Axes:
    """`column` against how many images of each label a search had, on a logarithmic scale.

    A row a search of one problem: `search`, `images`, and `column`; a dot each, and a line through the means of each
    kind of `search`, which looks the same wherever `kinds` are the same. `control`: what the restricted original,
    which needs no image, has instead.
    """
    for of, colour, marker in zip(kinds, sns.color_palette("colorblind"), "os^Dv", strict=False):
        mine = searches[searches["search"] == of]
        if mine.empty:
            continue
        mean = mine.groupby("images")[column].mean().dropna()
        ax.plot(mine["images"], mine[column], marker, color=colour, alpha=0.4, markersize=5, linestyle="none")
        ax.plot(mean.index, mean, f"-{marker}", color=colour, linewidth=2, label=of)
    ax.axhline(control, color=ORIGINAL, linestyle="--", label="restricted original, no image")
    ax.set_xscale("log")
    if ticks := sorted(searches["images"].unique()):
        ax.set_xticks(ticks, [f"{n}" for n in ticks])
        ax.minorticks_off()
    ax.set_xlabel("images of each label")
    return ax


def kept_by_layer(ax: Axes, kept: pd.DataFrame) -> Axes:
    """Share of each layer's weights that is kept; columns `layer`, `kept` in [0, 1], in the order of the model."""
    sns.barplot(kept, x="layer", y="kept", color=SEAM, ax=ax)
    ax.tick_params(axis="x", rotation=90)
    percent(ax, "y", "weights kept")
    ax.set_xlabel("")
    return ax


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


def together(axes: Sequence[Axes], points: pd.DataFrame) -> Sequence[Axes]:
    """A panel a number of classes: points of accuracy above the restricted original against weights kept.

    A row a point of a front: `classes` (how many), `problem`, `how` ("put together" or "at once"), `kept` in (0, 1],
    `difference` in points.
    """
    looks = {"put together": ("-o", SEAM), "at once": ("--^", CONTROL)}
    for ax, (n, mine) in zip(axes, points.groupby("classes"), strict=False):
        for how, (dashes, colour) in looks.items():
            for _, line in mine[mine["how"] == how].sort_values("kept").groupby("problem", sort=False):
                ax.plot(line["kept"], line["difference"], dashes, color=colour, markersize=4, linewidth=1.5)
        ax.axhline(0, color=ORIGINAL, linestyle=":")
        ax.set_xscale("log")
        percent(ax, "x", "weights kept")
        ax.text(0.97, 0.05, f"{n} classes", transform=ax.transAxes, ha="right")
    for how, (dashes, colour) in looks.items():
        if how in set(points["how"]):
            axes[0].plot([], [], dashes, color=colour, markersize=4, label=how)
    axes[0].plot([], [], ":", color=ORIGINAL, label="restricted original")
    axes[0].set_ylabel("points above the\nrestricted original")
    above(axes[0], columns=3)
    return axes


def grown(ax: Axes, unions: Mapping[str, Mapping[str, Sequence[float]]]) -> Axes:
    """Share of the weights that 1, 2, ... n masks keep between them: a line an alpha, found and, dotted, by chance.

    `unions`: alpha -> {"found", "chance"}, each of n shares in [0, 1].
    """
    for (alpha, shares), colour, marker in zip(unions.items(), sns.color_palette("colorblind"), "o^sDvPX",
                                               strict=False):
        numbers = range(1, len(shares["found"]) + 1)
        ax.plot(numbers, shares["found"], "-" + marker, color=colour, markersize=4, label=f"alpha {alpha}")
        ax.plot(numbers, shares["chance"], ":", color=colour, linewidth=1)
    ax.plot([], [], ":", color="black", linewidth=1, label="by chance")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("classes")
    ax.set_ylim(bottom=0)
    percent(ax, "y", "weights kept between them")
    above(ax, columns=3)
    return ax


def examples(axes: Sequence[Axes], images: np.ndarray, titles: Sequence[str]) -> Sequence[Axes]:
    """Images uint8 [n, channels, height, width], one on each of the n axes, under its title."""
    for ax, image, title in zip(axes, images, titles, strict=True):
        ax.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray")
        ax.set_title(title, fontsize="small")
        ax.set_axis_off()
    return axes
