"""What all figures share: the look, the legend's place, ticks in per cent."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

SEAM, CONTROL = sns.color_palette("colorblind")[:2]  # blue, orange
ORIGINAL = sns.color_palette("colorblind")[7]  # grey


def style() -> None:
    """One look for all figures of the book; in a notebook as SVG, which stays sharp, and turns dark with its page."""
    sns.set_theme("notebook", "whitegrid", "colorblind")
    plt.rcParams.update({"figure.figsize": (7, 4), "figure.dpi": 144, "figure.constrained_layout.use": True,
                         "savefig.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False})
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None:
        shell.run_line_magic("config", "InlineBackend.figure_formats = ['svg']")


def above(ax: Axes, columns: int = 2) -> None:
    """The legend above the axes, where it hides nothing."""
    ax.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False,
              borderaxespad=0.2, columnspacing=1.2, handletextpad=0.5, markerscale=0.7)


def percent(ax: Axes, which: str, label: str) -> None:
    """Ticks as per cent, with as many digits as they need; on a logarithmic axis a few of them."""
    axis: Any = getattr(ax, f"{which}axis")
    axis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        subs = (1, 2, 3, 5, 7) if high < 60 * low else (1, 2, 5)
        axis.set_major_locator(MaxNLocator(5) if high < 4 * low else LogLocator(subs=subs))
        axis.set_minor_formatter(NullFormatter())
    getattr(ax, f"set_{which}label")(label)


def overlaid(ax: Axes, layers: pd.DataFrame, columns: Mapping[str, str], what: str) -> Axes:
    """A bar a layer: the first of `columns` (column -> label) behind, in grey, the second before it."""
    for (column, label), (colour, alpha) in zip(columns.items(), ((ORIGINAL, 0.4), (SEAM, 1.0)), strict=True):
        ax.bar(layers["layer"], layers[column], color=colour, alpha=alpha, label=label)
    ax.tick_params(axis="x", rotation=90)
    ax.set_ylabel(what)
    ax.legend(fontsize="small")
    return ax
