"""Tables of the report pages: the records of a preset of grid.yml, with their controls beside them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import run

from seamlib import records

COLUMNS = {
    "class": "task", "setting": "parameters.schedule", "epochs": "parameters.epochs",
    "seconds": "results.search_seconds",
    "original": "results.accuracy.original_all", "restricted": "results.accuracy.original_restricted",
    "head only": "results.accuracy.head_only", "re-engineered": "results.accuracy.crossfit",
    "kept": "results.kept_fraction.crossfit", "paper: re-engineered": "results.accuracy.paper",
    "paper: kept": "results.kept_fraction.paper",
}
SHOWN = ["kept", "re-engineered", "original", "restricted", "head only", "from scratch", "random masks",
         "magnitude masks", "paper: re-engineered", "paper: kept"]


def everything(experiment: str = "*") -> list[records.Record]:
    """All records that the book may show: kept, run here, and computed for this build; of `experiment`, or of all."""
    return records.read_all([run.KEPT, run.ROOT / "runs", run.ROOT / run.REPORT], experiment)


def of_preset(name: str, notebook: str) -> list[records.Record]:
    """The records of the cells that preset `name` has for `notebook`, and no others."""
    keys = {records.key(parameters) for stage in run.cells(name, {}) for book, parameters in stage if book == notebook}
    return [record for record in everything(notebook) if records.key(record.parameters) in keys]


def rows(name: str, notebook: str, names: dict[str, str] | None = None) -> pd.DataFrame:
    """A row a record of preset `name`, in order of the problem's number; `names` maps a task to what the table says.

    Columns are those of COLUMNS and, where there is a record of it, `from scratch` (notebook retrain, same preset) and
    `random masks` and `magnitude masks` (notebook inference_cost of this very record).
    """
    found = sorted(of_preset(name, notebook), key=lambda r: int("".join(filter(str.isdigit, r.task)) or 0))
    scratch = {r.task: r.results["accuracy"]["last"] for r in of_preset(name, "retrain")}
    floors = {r.sha256["masks of the record"]: r.results["accuracy"] for r in everything("inference_cost")}
    table = records.table(found, COLUMNS)
    table["from scratch"] = [scratch.get(r.task, float("nan")) for r in found]
    for control in ("random masks", "magnitude masks"):
        table[control] = [floors.get(r.sha256["masks"], {}).get(control.replace(" ", "_"), float("nan")) for r in found]
    table["class"] = [(names or {}).get(task, task) for task in table["class"]]
    return table


def styled(table: pd.DataFrame, tuned: Iterable[str] = ()) -> pd.io.formats.style.Styler:
    """The rows, then their mean, spread, and mean without the problems in `tuned`, which are marked *."""
    tuned = set(tuned)
    others = table[~table["class"].isin(tuned)]
    marked = table.assign(**{"class": [c + ("*" if c in tuned else "") for c in table["class"]]})
    below = pd.concat([
        table[SHOWN].agg(["mean", "std"]).rename({"mean": f"mean of {len(table)}", "std": "standard deviation"}),
        others[SHOWN].agg(["mean"]).rename({"mean": "mean without *"}),
    ]).rename_axis("class").reset_index()
    return pd.concat([marked[["class", *SHOWN]], below], ignore_index=True).style.format(
        "{:.1%}", subset=SHOWN, na_rep="").hide(axis="index")
