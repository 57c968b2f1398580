"""Tables of indirect reuse: students, what they inherit, and what attacks do to them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import report
import run
from pandas.io.formats.style import Styler

from seamlib import records
from seamlib.reuse.defects import ATTACKS


def transfer(name: str) -> pd.DataFrame:
    """A row a student of preset `name`; all but `method` and `seed` in [0, 1].

    First standard fine-tuning for as long as seam takes, the fair control, then seam, then in order of the stages.

    removed (before fine-tuning), masked (accuracy then, of seam), regrown, accuracy, and for each attack of preset
    `name`-defects: inherited (the rate), noise (the rate for noise), white box (accuracy). NaN where that was not run.
    """
    measured = {(r.sha256["student"], r.parameters["attack"]): r.results
                for r in report.of_preset(f"{name}-defects", "defect_inheritance")}
    found = {records.key(r.parameters): r for r in report.of_preset(name, "indirect_reuse")}
    students = []
    for r in (found[key] for stage in run.cells(name, {}) for _, p in stage if (key := records.key(p)) in found):
        row = {"method": method_of(r.parameters), "seed": r.parameters["seed"],
               "removed": 1 - r.results["kept_fraction"],
               "masked": r.results["accuracy_masked"], "accuracy": r.results["accuracy"],
               "regrown": r.results["regrown"] if r.results["kept_fraction"] < 1 else None}
        for attack in ATTACKS:
            of = measured.get((r.sha256["student"], attack), {})
            row |= {f"inherited, {attack}": of.get(f"dir_{attack}"), f"noise, {attack}": of.get(f"dir_{attack}_noise"),
                    f"white box, {attack}": of.get("accuracy_white_box")}
        students.append(row)
    return in_order(pd.DataFrame(students))


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Students by method and seed: first the fair control, then seam, then as they come. Columns 3 and on are real."""
    methods = list(dict.fromkeys(table["method"]))
    order = sorted(methods, key=lambda m: (not m.startswith("standard, "), m != "seam"))
    table = table.sort_values(by=["method", "seed"], key=lambda c: c.map(order.index) if c.name == "method" else c)
    return table.astype({c: float for c in table.columns[2:]}).reset_index(drop=True)


def told(table: pd.DataFrame) -> dict[str, float | str]:
    """What the text says of a table of `transfer`: numbers in [0, 1], but differences and spreads in points.

    "{method}-{column}": the mean over the students. Of each attack: "less-{attack}", how much fewer right answers seam
    loses than standard; "{method}-over-noise-{attack}", points that the attack adds to noise;
    "less-over-noise-{attack}", how much less that is; both again with "in-time-" for standard fine-tuning of as long,
    of which there are "in-time-seeds-{attack}". How much less is always the mean over seeds of what it is seed by seed
    ("-each", in their order, "-low" and "-high"), with "-sd" (points) and "-se"; NaN of one run.
    "gain", in points, over standard; "seeds" that both have.
    """
    mean = table.groupby("method", sort=False).mean(numeric_only=True)
    said: dict[str, float | str] = {
        _key(f"{method} {column}"): value for method, row in mean.iterrows() for column, value in row.items()}
    pairs = table.set_index(["method", "seed"])
    longer = next(method for method in mean.index if method.startswith("standard, "))
    for attack in ATTACKS:
        rates = pairs[f"inherited, {attack}"]
        over = rates - pairs[f"noise, {attack}"]
        by = over.groupby("method").mean()
        said |= {_key(f"{method} over noise {attack}"): 100 * value for method, value in by.items()}
        said[f"in-time-seeds-{attack}"] = rates[longer].count()
        for (name, lost), (time, control) in itertools.product(
                (("", rates), ("over-noise-", over)), (("", "standard"), ("in-time-", longer))):
            each = (1 - lost["seam"] / lost[control]).dropna().sort_index()
            name = f"less-{name}{time}{attack}"
            said |= {name: each.mean(), f"{name}-low": each.min(), f"{name}-high": each.max(),
                     f"{name}-sd": 100 * each.std(), f"{name}-se": each.sem(),
                     f"{name}-each": ", ".join(f"{100 * share:.0f}%" for share in each)}
    gain = 100 * (pairs["accuracy"]["seam"] - pairs["accuracy"]["standard"]).dropna()
    return {name: value if isinstance(value, str) else float(value) for name, value in said.items()} | {
        "gain": float(gain.mean()), "seeds": len(gain)}


def search_epochs(name: str) -> float:
    """How many epochs the searches of preset `name` took, their mean."""
    return statistics.fmean(len(r.results["history"]["s2"]["loss"]) for r in report.of_preset(name, "indirect_reuse")
                            if r.parameters["method"] == "seam")


def _key(name: str) -> str:
    return name.replace(" ", "-").replace(",", "").replace("%", "")


def method_of(parameters: Mapping[str, Any]) -> str:
    """What the table calls it: settings that a preset varies within a method are a part of the name.

    Standard fine-tuning has its epochs in its name where it takes more than seam's search may: the control of as long.
    """
    method = parameters["method"]
    if method == "standard" and parameters["lr_s3_hidden_layer"] == 0:
        return "frozen body"
    if method == "standard" and parameters["epochs_s3"] > parameters["epochs_s2"]:
        return f"standard, {parameters['epochs_s3']} epochs"
    return f"remos {parameters['prune_threshold']:.0%}" if method == "remos" else method


def styled_transfer(table: pd.DataFrame, columns: Iterable[str]) -> Styler:
    """A row a method: the mean over its students and, in brackets, the standard deviation, in points."""
    by = table[["method", *columns]].groupby("method", sort=False)
    mean, spread = by.mean(), by.std()
    cells = {c: [_mean(m, s) for m, s in zip(mean[c], spread[c], strict=True)] for c in mean}
    return pd.DataFrame({"n": by.size(), **cells}, mean.index).reset_index().style.hide(axis="index")


def _mean(mean: float, spread: float) -> str:
    if pd.isna(mean):
        return ""
    return f"{mean:.1%}" if pd.isna(spread) else f"{mean:.1%} ({100 * spread:.1f})"
