"""Tables of direct reuse: searches and their fronts, with their controls beside them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import report
import run
from pandas.io.formats.style import Styler

from seamlib import records

COLUMNS = {
    "class": "task", "setting": "parameters.schedule", "epochs": "parameters.epochs",
    "seconds": "results.search_seconds",
    "original": "results.accuracy.original_all", "restricted": "results.accuracy.original_restricted",
    "head only": "results.accuracy.head_only", "re-engineered": "results.accuracy.crossfit",
    "kept": "results.kept_fraction.crossfit", "paper: re-engineered": "results.accuracy.paper",
    "paper: kept": "results.kept_fraction.paper",
}
CONTROLS = ["original", "restricted", "head only", "norms only", "from scratch", "paper: re-engineered", "paper: kept"]
WIDE = [0.1 * 5 ** (i / 10) for i in range(11)]  # shares of the weights, 10 to 50%, in equal steps of the logarithm
CONTROLLED = {"all": "original_all", "head-only": "head_only", "norms-only": "norms_only"}  # beside the restricted one
SHARE, GAIN = 0.1011, 5.85  # what SeaM keeps, and gains over the original, in points: the means of all its models
FRONT = ["all: kept", "all: points", "restricted: kept", "restricted: points", f"at {SHARE:.2%}: points", "best: kept",
         "best: points"]


def rows(name: str, notebook: str, names: dict[str, str] | None = None) -> pd.DataFrame:
    """A row a record of preset `name`, in order of the problem's number; `names` maps a task to what the table says.

    Columns are those of COLUMNS, `record` (its stem) and, where there is one, `norms only` and `from scratch`: that of
    a record of notebook retrain that a preset has.
    """
    found = sorted(report.of_preset(name, notebook), key=report.number)
    scratch = from_scratch()
    table = records.table(found, COLUMNS)
    table["from scratch"] = [scratch.get(_problem(r), float("nan")) for r in found]
    table["norms only"] = [r.results["accuracy"].get("norms_only", float("nan")) for r in found]
    table["class"] = [(names or {}).get(task, task) for task in table["class"]]
    table["record"] = [r.stem for r in found]
    return table


def from_scratch(long: bool = False) -> dict[tuple[str, ...], float]:
    """Accuracy in [0, 1] of the network trained anew, as a preset has it, on the images of a `_problem`; last epoch.

    `long`: for as many epochs as the search, those of preset scratch; else the others.
    """
    found = report.of_preset("scratch", "retrain")
    if not long:
        longer = {r.stem for r in found}
        found = [r for r in report.of_any_preset("retrain") if r.stem not in longer]
    return {_problem(r): r.results["accuracy"]["last"] for r in found}


def anew_as_long(found: Iterable[records.Record]) -> list[tuple[records.Record, float]]:
    """(Record, `from_scratch` for as many epochs), by problem, of the records whose problem has such a training."""
    anew = from_scratch(long=True)
    return [(r, anew[_problem(r)]) for r in sorted(found, key=report.number) if _problem(r) in anew]


def fronts(found: Iterable[records.Record], control: str = "restricted") -> pd.DataFrame:
    """A row a point of the records' fronts, on the whole test set: problem, alpha, kept, and difference, in points, to
    the `control`, "restricted" or "all"."""
    return pd.DataFrame([
        {"problem": r.task, "alpha": point["alpha"], "kept": point["kept"],
         "difference": 100 * (point["accuracy"] - r.results["accuracy"][f"original_{control}"])}
        for r in found for point in r.results["front"] if point["kept"] > 0])


def claimed(found: Iterable[records.Record]) -> tuple[float, float]:
    """SeaM's average, (kept, points above the original over all outputs), as points above the restricted original."""
    gained = [r.results["accuracy"]["original_restricted"] - r.results["accuracy"]["original_all"] for r in found]
    return SHARE, GAIN - 100 * statistics.fmean(gained)


def at(record: records.Record, kept: float = SHARE) -> float:
    """Accuracy of a front at so many weights, on the whole test set: between two points along the logarithm.

    Above the first point the line goes to the restricted original, which keeps all; NaN below the last point.
    """
    points = sorted((p["kept"], p["accuracy"]) for p in record.results["front"] if p["kept"] > 0)
    points.append((1.0, record.results["accuracy"]["original_restricted"]))
    for (low, below), (high, above) in itertools.pairwise(points):
        if low <= kept <= high:
            return below + (above - below) * math.log(kept / low) / math.log(high / low)
    return float("nan")


def front_rows(found: Iterable[records.Record], names: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A row a record with a front: class, record, and FRONT; kept shares in [0, 1], differences in points.

    Where no point reached the original the restricted original itself is what loses nothing: it keeps all.
    """
    rows = []
    for r in sorted(found, key=report.number):
        best, row = r.results["best"], {"class": (names or {}).get(r.task, r.task), "record": r.stem}
        whole, restricted = (r.results["accuracy"][f"original_{control}"] for control in ("all", "restricted"))
        for control, untouched in (("all", restricted - whole), ("restricted", 0.0)):
            found_at = r.results["no_loss"][control] or {"kept": 1.0, "difference": untouched}
            row |= {f"{control}: kept": found_at["kept"], f"{control}: points": 100 * found_at["difference"]}
        rows.append(row | {f"at {SHARE:.2%}: points": 100 * (at(r) - restricted), "best: kept": best["kept"],
                           "best: points": 100 * best["difference"]})
    return pd.DataFrame(rows, columns=["class", "record", *FRONT])


def told(found: Iterable[records.Record]) -> dict[str, float]:
    """What the text says of a group of fronts: means of FRONT ("all-kept", "at-points" ...) and, against CONTROLLED, of
    accuracy `at` SHARE in points ("at-head-only-points" ...), each with its standard error over the problems
    ("...-se"); of accuracies, in [0, 1], "re-engineered" `at` SHARE; of the smallest share of a front ("last");
    differences in points; and counts. "gain-long" and "long-n", against as long a training from scratch, where two
    problems have one."""
    found = list(found)
    table = front_rows(found)
    values = table[FRONT].assign(**{
        f"at-{name}: points": [100 * (at(r) - r.results["accuracy"][control]) for r in found]
        for name, control in CONTROLLED.items() if all(control in r.results["accuracy"] for r in found)})
    short = {c: c.replace(f" {SHARE:.2%}", "").replace(": ", "-") for c in values}
    said = {name: round(float(values[c].mean()), 12) + 0.0 for c, name in short.items()}  # no -0.00
    said |= {f"{name}-se": float(values[c].sem()) for c, name in short.items()}
    said |= {f"{name}-median": float(values[c].median()) for c, name in short.items() if name.endswith("kept")}
    said |= {name.replace("_", "-"): statistics.fmean(r.results["accuracy"][name] for r in found)
             for name in ("original_all", "original_restricted", "head_only", "norms_only", "paper")
             if all(name in r.results["accuracy"] for r in found)}
    said["re-engineered"] = statistics.fmean(map(at, found))
    said["gain-explained"] = 100 * (said["original-restricted"] - said["original-all"])
    anew = from_scratch()
    said["from-scratch"] = statistics.fmean(anew.get(_problem(r), math.nan) for r in found)
    gains = pd.Series([100 * (at(r) - anew.get(_problem(r), math.nan)) for r in found])
    said |= {"gain-scratch": float(gains.mean(skipna=False)), "gain-scratch-se": float(gains.sem(skipna=False))}
    gains = pd.Series([100 * (at(r) - accuracy) for r, accuracy in anew_as_long(found)], dtype=float)
    if len(gains) > 1:
        said |= {"gain-long": float(gains.mean()), "gain-long-se": float(gains.sem()), "long-n": len(gains)}
    said["last"] = statistics.fmean(r.results["front"][-1]["kept"] for r in found)
    seconds = [r.results["search_seconds"] for r in found if r.results["search_seconds"]]
    return said | {
        "problems": len(found), "epochs": found[0].parameters["epochs"],
        "minutes": statistics.median(seconds) / 60 if seconds else math.nan,
        "paper-kept": statistics.fmean(r.results["kept_fraction"]["paper"] for r in found),
        **{f"{control}-reached": sum(r.results["no_loss"][control] is not None for r in found)
           for control in ("all", "restricted")}}


def gained(found: Iterable[records.Record], others: Iterable[records.Record]) -> dict[str, float]:
    """What `found` gain over `others`, problem by problem: accuracy `at` SHARE in points ("at-points"), and how many
    fewer weights are kept at no loss against the restricted original ("less-kept"), each with "...-se"; "kept" of
    `others`."""
    by_task = {r.task: r for r in others}
    pairs = [(r, by_task[r.task]) for r in found if r.task in by_task]
    kept = [front_rows(of)["restricted: kept"] for of in zip(*pairs, strict=True)]
    points = pd.Series([100 * (at(r) - at(other)) for r, other in pairs])
    return {"at-points": float(points.mean()), "at-points-se": float(points.sem()), "kept": float(kept[1].mean()),
            "less-kept": float((kept[1] - kept[0]).mean()), "less-kept-se": float((kept[1] - kept[0]).sem())}


def told_of_one(name: str, notebook: str) -> dict[str, float]:
    """What the text says of preset `name`, whose searches have one point each: how many ("n"), what they keep, and
    points gained over the original, the restricted original and the network from scratch, each with "...-se"."""
    table = rows(name, notebook)
    values = {"kept": table["kept"], **{f"gain-{control}": 100 * (table["re-engineered"] - table[column]) for
              control, column in (("all", "original"), ("restricted", "restricted"), ("scratch", "from scratch"))}}
    return {"n": len(table), **{what: float(v.mean()) for what, v in values.items()},
            **{f"{what}-se": float(v.sem()) for what, v in values.items()}}


def seeded(of: str, notebook: str, seeds: str = "seeds") -> dict[str, list[records.Record]]:
    """Task -> its records with several seeds: those of preset `seeds`, and the one of preset `of`; by seed."""
    first, more = report.of_preset(of, notebook), alike(of, seeds, notebook)
    tasks = sorted({r.task for r in first} & {r.task for r in more})
    return {task: sorted((r for r in [*first, *more] if r.task == task), key=lambda r: r.seed) for task in tasks}


def alike(of: str, preset: str, notebook: str) -> list[records.Record]:
    """The records of `preset` on the data set of preset `of`: a task of another may have the same name."""
    sets = {r.parameters["dataset"] for r in report.of_preset(of, notebook)}
    return [r for r in report.of_preset(preset, notebook) if r.parameters["dataset"] in sets]


def by_seed(of: str, notebook: str) -> dict[str, list[records.Record]]:
    """"seed 0" and so on -> the records of the problems that all of these seeds have: rows for `styled_searches`."""
    groups = seeded(of, notebook).values()
    seeds = sorted({r.seed for group in groups for r in group})
    whole = [group for group in groups if len(group) == len(seeds)]
    return {f"seed {seed}": [r for group in whole for r in group if r.seed == seed] for seed in seeds}


def between_seeds(groups: Mapping[str, Iterable[records.Record]]) -> tuple[float, float]:
    """Standard deviation of (kept, difference) between the seeds of a problem; root mean square over the problems.

    Kept at no loss against the original over all outputs, and accuracy `at` SHARE minus the restricted original's: the
    seed of a binary problem draws test images as well, so that accuracies by themselves are not of the same ones.
    """
    variances = [[statistics.variance(values) for values in zip(*map(_kept_and_difference, group), strict=True)]
                 for group in groups.values()] or [[math.nan, math.nan]]
    kept, difference = (statistics.fmean(values) ** 0.5 for values in zip(*variances, strict=True))
    return kept, difference


def _kept_and_difference(record: records.Record) -> tuple[float, float]:
    no_loss, restricted = record.results["no_loss"]["all"], record.results["accuracy"]["original_restricted"]
    return (no_loss or {"kept": 1.0})["kept"], at(record) - restricted


def repeated(of: str, notebook: str) -> dict[str, float]:
    """What the text says of repeated searches: how many problems, of at least how many seeds; the spread, in points;
    the lowest and the highest mean of a seed of what is kept at no loss against the restricted original ("again-low",
    "again-high"); and how many of all these fronts have no point at no loss against the original over all outputs, and
    so keep all."""
    groups = seeded(of, notebook)
    kept, difference = between_seeds(groups)
    again = [float(front_rows(of_seed)["restricted: kept"].mean()) for of_seed in by_seed(of, notebook).values()]
    return {"again-low": min(again, default=math.nan), "again-high": max(again, default=math.nan),
            "seeded": len(groups), "seeds": min(map(len, groups.values()), default=0),
            "between-seeds-kept": 100 * kept, "between-seeds-points": 100 * difference,
            "seeds-keeping-all": sum(r.results["no_loss"]["all"] is None for group in groups.values() for r in group)}


def _problem(record: records.Record) -> tuple[str, ...]:
    p = record.parameters
    return p["model"], p["dataset"], record.task, p.get("others", records.LATER["others"]), str(p.get("shots", 0))


def reached(record: records.Record) -> int:
    """How many of the two crossfit picks of a search (0 to 2) have an epoch that reached the target accuracy."""
    target, history, front = record.results["target"], record.results["history"], record.results.get("front")
    found = {half: [p[f"accuracy_{half}"] for p in front] if front else history[f"accuracy_{half}"] for half in "ab"}
    return sum(max(found[half]) >= target[half] for half in "ab")


def picks(found: Iterable[records.Record]) -> dict[str, int]:
    """How many crossfit picks these searches made, two each, and how many of them had no epoch at the target."""
    counts = [reached(r) for r in found]
    return {"picks": 2 * len(counts), "unreached": 2 * len(counts) - sum(counts)}


def styled_searches(searches: Mapping[str, Iterable[records.Record]]) -> Styler:
    """A row a way to search: the means over the problems that all of them have, of `told` or, where a search has one
    point, of that: kept at no loss, accuracy at SHARE, and the best against the restricted original; in brackets the
    standard error over the problems."""
    groups = {name: {r.task: r for r in found} for name, found in searches.items()}
    tasks = set.intersection(*map(set, groups.values())) if groups else set()
    rows = []
    for name, found in groups.items() if tasks else ():
        row: dict[str, Any] = {"search": name, "problems": len(tasks)}
        if all(found[t].results.get("front") for t in tasks):
            values = front_rows(found[t] for t in tasks)[FRONT]
        else:
            values = pd.DataFrame([{
                "one point: kept": found[t].results["kept_fraction"]["crossfit"],
                "one point: points": 100 * (found[t].results["accuracy"]["crossfit"]
                                            - found[t].results["accuracy"]["original_restricted"])} for t in tasks])
        rows.append(row | {c: with_error(c, float(v.mean()), float(v.sem())) for c, v in values.items()})
    columns = ["search", "problems", *FRONT, "one point: kept", "one point: points"]
    table = pd.DataFrame(rows, columns=[c for c in columns if any(c in row for row in rows)])
    return report.neat(table.fillna("").style)


def with_error(column: Any, mean: float, error: float) -> str:
    """A mean as `report.points` has a number of this column, and in brackets its standard error, unless that is NaN.

    Columns that end in "points" are in points, all others in [0, 1], and their errors then in percent. Empty of NaN.
    """
    if math.isnan(mean):
        return ""
    mean, points = round(mean, 12), str(column).endswith("points")
    number, scatter = (f"{mean:+.2f}", f"{error:.2f}") if points else (f"{mean:.1%}", f"{100 * error:.1f}")
    return number if math.isnan(error) else f"{number} ({scatter})"


def ablation(preset: str, notebook: str, problem: str = "target_superclass_idx") -> pd.DataFrame:
    """A row a setting of `preset`, by what it changes in the first of its cells; `problem`: the parameter that says it.

    Means over problems and seeds, in points above the restricted original: at SHARE, and over the front from 10 to 50%
    of the weights; `smallest`, the share that its last point keeps; `searches`, how many there were. Searches of a
    single alpha are the points of one front. `standard error`: over the searches, of the points from 10 to 50%; NaN of
    one. A setting of which a cell has not been run is left out: means over other problems are not to be compared.
    """
    cells = [p for stage in run.cells(preset, {}) for book, p in stage if book == notebook]
    found = {records.key(r.parameters): r for r in report.of_preset(preset, notebook)}
    groups: dict[str, list[records.Record | None]] = {}
    for p in cells:
        apart = "," not in p["path"]
        ignored = {problem, "seed", *(("path", "epochs") if apart else ())}
        changes = [f"{k} {v}" for k, v in p.items() if v != cells[0][k] and k not in ignored]
        label = "each alpha by itself" if apart else ", ".join(changes) or "unchanged"
        groups.setdefault(label, []).append(found.get(records.key(p)))
    rows = []
    for label, of in groups.items():
        whole = [r for r in of if r is not None]
        if len(whole) < len(of):
            continue
        parts: dict[tuple[str, int], list[records.Record]] = {}
        for r in whole:
            parts.setdefault((r.task, r.seed), []).append(r)
        fronts = [dataclasses.replace(part[0], results={**part[0].results, "front": [
            p for r in part for p in r.results["front"]]}) for part in parts.values()]
        above = {share: [100 * (at(r, share) - r.results["accuracy"]["original_restricted"]) for r in fronts]
                 for share in (SHARE, *WIDE)}
        wide = pd.DataFrame({share: above[share] for share in WIDE}).mean(axis="columns")
        rows.append({"setting": label, "searches": len(fronts),
                     "10% to 50%: points": float(wide.mean()), "standard error": float(wide.sem()),
                     f"at {SHARE:.2%}: points": statistics.fmean(above[SHARE]),
                     "smallest": statistics.fmean(min(p["kept"] for p in r.results["front"]) for r in fronts)})
    return pd.DataFrame(rows)
