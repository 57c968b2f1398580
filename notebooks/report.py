"""Tables of the report pages: the records of a preset of grid.yml, with their controls beside them."""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import run
from IPython.display import HTML
from pandas.io.formats.style import Styler

from seamlib import masks, records
from seamlib.reuse.defects import ATTACKS

COLUMNS = {
    "class": "task", "setting": "parameters.schedule", "epochs": "parameters.epochs",
    "seconds": "results.search_seconds",
    "original": "results.accuracy.original_all", "restricted": "results.accuracy.original_restricted",
    "head only": "results.accuracy.head_only", "re-engineered": "results.accuracy.crossfit",
    "kept": "results.kept_fraction.crossfit", "paper: re-engineered": "results.accuracy.paper",
    "paper: kept": "results.kept_fraction.paper",
}
CONTROLS = ["original", "restricted", "head only", "norms only", "from scratch", "paper: re-engineered", "paper: kept"]

WIDE = [0.05 * 10 ** (i / 10) for i in range(11)]  # shares of the weights, 5 to 50%, in equal steps of the logarithm
SHARE, GAIN = 0.1011, 5.85  # what SeaM keeps, and gains over the original, in points: the means of all its models
FRONT = ["all: kept", "all: points", "restricted: kept", "restricted: points", f"at {SHARE:.2%}: points", "best: kept",
         "best: points"]


ROOTS = [run.KEPT, run.ROOT / "runs", run.ROOT / run.REPORT]  # where the book looks for records; a later one wins


def everything(experiment: str = "*") -> list[records.Record]:
    """All records that the book may show: kept, run here, and computed for this build; of `experiment`, or of all."""
    return records.read_all(ROOTS, experiment)


def of_preset(name: str, notebook: str) -> list[records.Record]:
    """The records of the cells that preset `name` has for `notebook`, and no others.

    One a cell: where several kinds of device have made it, that of the last by name.
    """
    keys = {records.key(parameters) for stage in run.cells(name, {}) for book, parameters in stage if book == notebook}
    found = {records.key(record.parameters): record for record in everything(notebook)}
    return [record for key, record in found.items() if key in keys]


def of_any_preset(notebook: str) -> list[records.Record]:
    """The records of all cells that grid.yml has for `notebook`, and none that was made with settings of its own."""
    return list({r.stem: r for name in run.presets(notebook) for r in of_preset(name, notebook)}.values())


def of_presets(*names: str) -> list[records.Record]:
    """The records of all notebooks of the presets, in their order, each once."""
    books = {(name, book): None for name in names for stage in run.cells(name, {}) for book, _ in stage}
    return list({r.stem: r for name, book in books for r in of_preset(name, book)}.values())


def rows(name: str, notebook: str, names: dict[str, str] | None = None) -> pd.DataFrame:
    """A row a record of preset `name`, in order of the problem's number; `names` maps a task to what the table says.

    Columns are those of COLUMNS, `record` (its stem) and, where there is a record of it, `norms only`, `from scratch`
    (notebook retrain) and `random masks` and `magnitude masks` (notebook inference_cost of this very record); of these
    two notebooks, those of the cells that a preset has.
    """
    found = sorted(of_preset(name, notebook), key=number)
    scratch = from_scratch()
    floors = {r.sha256["masks of the record"]: r.results["accuracy"] for r in of_any_preset("inference_cost")}
    table = records.table(found, COLUMNS)
    table["from scratch"] = [scratch.get(_problem(r), float("nan")) for r in found]
    for control in ("random masks", "magnitude masks"):
        table[control] = [floors.get(r.sha256["masks"], {}).get(control.replace(" ", "_"), float("nan")) for r in found]
    table["norms only"] = [r.results["accuracy"].get("norms_only", float("nan")) for r in found]
    table["class"] = [(names or {}).get(task, task) for task in table["class"]]
    table["record"] = [r.stem for r in found]
    return table


def from_scratch() -> dict[tuple[str, ...], float]:
    """Accuracy in [0, 1] of the network trained anew, as a preset has it, on the images of a `_problem`; last epoch."""
    return {_problem(r): r.results["accuracy"]["last"] for r in of_any_preset("retrain")}


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
    for r in sorted(found, key=number):
        best, row = r.results["best"], {"class": (names or {}).get(r.task, r.task), "record": r.stem}
        whole, restricted = (r.results["accuracy"][f"original_{control}"] for control in ("all", "restricted"))
        for control, untouched in (("all", restricted - whole), ("restricted", 0.0)):
            found_at = r.results["no_loss"][control] or {"kept": 1.0, "difference": untouched}
            row |= {f"{control}: kept": found_at["kept"], f"{control}: points": 100 * found_at["difference"]}
        rows.append(row | {f"at {SHARE:.2%}: points": 100 * (at(r) - restricted), "best: kept": best["kept"],
                           "best: points": 100 * best["difference"]})
    return pd.DataFrame(rows, columns=["class", "record", *FRONT])


def told(found: Iterable[records.Record]) -> dict[str, float]:
    """What the text says of a group of fronts: means of FRONT ("all-kept", "at-points" ...), each with its standard
    error over the problems ("...-se"); of accuracies, in [0, 1], "re-engineered" `at` SHARE; of the smallest share
    of a front ("last"); differences in points; and counts."""
    found = list(found)
    table = front_rows(found)
    values = table[FRONT].assign(**{"at-all: points": [
        100 * (at(r) - r.results["accuracy"]["original_all"]) for r in found]})
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
    said["gain-scratch"] = 100 * (said["re-engineered"] - said["from-scratch"])
    said["last"] = statistics.fmean(r.results["front"][-1]["kept"] for r in found)
    seconds = [r.results["search_seconds"] for r in found if r.results["search_seconds"]]
    return said | {
        "problems": len(found), "epochs": found[0].parameters["epochs"],
        "minutes": statistics.median(seconds) / 60 if seconds else math.nan,
        "paper-kept": statistics.fmean(r.results["kept_fraction"]["paper"] for r in found),
        **{f"{control}-reached": sum(r.results["no_loss"][control] is not None for r in found)
           for control in ("all", "restricted")}}


def seeded(of: str, notebook: str, seeds: str = "seeds") -> dict[str, list[records.Record]]:
    """Task -> its records with several seeds: those of preset `seeds`, and the one of preset `of`; by seed."""
    first, more = of_preset(of, notebook), of_preset(seeds, notebook)
    tasks = sorted({r.task for r in first} & {r.task for r in more})
    found = [r for r in [*first, *more] if r.parameters["dataset"] == first[0].parameters["dataset"]]
    return {task: sorted((r for r in found if r.task == task), key=lambda r: r.seed) for task in tasks}


def between_seeds(groups: Mapping[str, Iterable[records.Record]]) -> tuple[float, float]:
    """Standard deviation of (kept, accuracy) between the seeds of a problem; root mean square over the problems.

    Of a front: kept at no loss against the original over all outputs, and accuracy `at` SHARE; else of crossfit.
    """
    variances = [[statistics.variance(values) for values in zip(*map(_kept_and_accuracy, group), strict=True)]
                 for group in groups.values()] or [[math.nan, math.nan]]
    kept, accuracy = (statistics.fmean(values) ** 0.5 for values in zip(*variances, strict=True))
    return kept, accuracy


def _kept_and_accuracy(record: records.Record) -> tuple[float, float]:
    results = record.results
    if not results.get("front"):
        return results["kept_fraction"]["crossfit"], results["accuracy"]["crossfit"]
    return (results["no_loss"]["all"] or {"kept": 1.0})["kept"], at(record)


def repeated(of: str, notebook: str, seeds: str = "seeds") -> dict[str, float]:
    """What the text says of repeated searches: how many problems, of at least how many seeds; the spread, in points."""
    groups = seeded(of, notebook, seeds)
    kept, accuracy = between_seeds(groups)
    return {"seeded": len(groups), "seeds": min(map(len, groups.values()), default=0),
            "between-seeds-kept": 100 * kept, "between-seeds-accuracy": 100 * accuracy}


def _problem(record: records.Record) -> tuple[str, ...]:
    p = record.parameters
    return p["model"], p["dataset"], record.task, p.get("others", records.LATER["others"])


def number(record: records.Record) -> int:
    """That of the record's problem: 3 for binary3; 0 where it has none."""
    return int("".join(filter(str.isdigit, record.task)) or 0)


def masks_of(record: records.Record) -> masks.Masks:
    """The delivered masks of a record of `everything`."""
    path = records.find(record.stem, reversed(ROOTS))
    return masks.load_masks(path.with_suffix(".safetensors")).masks["paper"]


def linked(stem: str, text: str) -> str:
    """`text` as a link to the record in the book as it is built; as it is where the record is not a kept one."""
    return f'<a href="../{stem}.json">{text}</a>' if (run.KEPT / f"{stem}.json").is_file() else text


def sources(found: Iterable[records.Record]) -> HTML:
    """The records that a page is made of, folded: each a link, and the command that makes it again."""
    lines = [f"<li>{linked(r.stem, r.stem)}<br><code>{html.escape(run.command(r))}</code></li>" for r in found]
    return HTML(folded("", len(lines), f"<ul>{''.join(lines)}</ul>"))


def folded(what: str, n: int, inside: str) -> str:
    """HTML that is shown when its line, `what` and that it is n records, is clicked; `inside` is HTML, `what` text."""
    return f"<details><summary>{html.escape(what)}{n} record{'s' * (n > 1)}</summary>{inside}</details>"


def reached(record: records.Record) -> int:
    """How many of the two crossfit picks of a search (0 to 2) have an epoch that reached the target accuracy."""
    target, history, front = record.results["target"], record.results["history"], record.results.get("front")
    found = {half: [p[f"accuracy_{half}"] for p in front] if front else history[f"accuracy_{half}"] for half in "ab"}
    return sum(max(found[half]) >= target[half] for half in "ab")


def picks(found: Iterable[records.Record]) -> dict[str, int]:
    """How many crossfit picks these searches made, two each, and how many of them had no epoch at the target."""
    counts = [reached(r) for r in found]
    return {"picks": 2 * len(counts), "unreached": 2 * len(counts) - sum(counts)}


def neat(table: Styler) -> Styler:
    """The table without its index; columns of words to the left, as prose is read."""
    words = [c for c in table.data if not pd.api.types.is_numeric_dtype(table.data[c])]
    left: list[Any] = [{"selector": "th", "props": "text-align: left"}]
    return table.hide(axis="index").set_properties(subset=words, **{"text-align": "left"}).set_table_styles(
        dict.fromkeys(words, left))


def styled(table: pd.DataFrame, columns: list[str], tuned: Iterable[str] = (), heading: str = "class") -> Styler:
    """A row a problem, then mean, its standard error, median, and the mean without the problems in `tuned`, marked *.

    Columns that end in "points" are differences in points, all others shares in [0, 1]. Each problem links to its
    record, see `linked`; `heading` says what a problem is.
    """
    tuned = set(tuned)
    others = table[~table["class"].isin(tuned)]
    problems = zip(table["record"], table["class"], strict=True)
    marked = table.assign(**{"class": [linked(stem, c) + "*" * (c in tuned) for stem, c in problems]})
    below = pd.concat([
        table[columns].agg(["mean", "sem", "median"]).rename({"mean": f"mean of {len(table)}", "sem": "st. error"}),
        others[columns].agg(["mean"]).rename({"mean": "mean without\u00a0*"}),
    ]).rename_axis("class").reset_index()
    rows = pd.concat([marked[["class", *columns]], below], ignore_index=True).rename(columns={"class": heading})
    style = _points(neat(rows.style), columns).set_properties(
        subset=pd.IndexSlice[len(table):, :], **{"font-weight": "600"})
    points = [c for c in columns if c.endswith("points")]  # a standard error has no sign
    return style.format("{:.2f}", subset=pd.IndexSlice[[len(table) + 1], points], na_rep="")


def styled_searches(searches: Mapping[str, Iterable[records.Record]]) -> Styler:
    """A row a way to search: the means over the problems that all of them have, of `told` or, where a search has one
    point, of that: kept at no loss, accuracy at SHARE, and the best against the restricted original."""
    groups = {name: {r.task: r for r in found} for name, found in searches.items()}
    tasks = set.intersection(*(set(found) for found in groups.values()))
    rows = []
    for name, found in groups.items() if tasks else ():
        row: dict[str, Any] = {"search": name, "problems": len(tasks)}
        if all(found[t].results.get("front") for t in tasks):
            row |= dict(front_rows(found[t] for t in tasks)[FRONT].mean())
        else:
            row |= {"one point: kept": statistics.fmean(found[t].results["kept_fraction"]["crossfit"] for t in tasks),
                    "one point: points": 100 * statistics.fmean(
                        found[t].results["accuracy"]["crossfit"] - found[t].results["accuracy"]["original_restricted"]
                        for t in tasks)}
        rows.append(row)
    table = pd.DataFrame(rows, columns=["search", "problems", *FRONT, "one point: kept", "one point: points"])
    return _points(neat(table.style), list(table.columns[2:]))


def ablation(preset: str, notebook: str, varied: Iterable[str] = ("target_superclass_idx",)) -> pd.DataFrame:
    """A row a setting of `preset`, by what it changes in the first of its cells; `varied` says what makes a problem.

    Means over the problems, in points above the restricted original: at SHARE, and over the front from 5 to 50% of the
    weights; `smallest`, the share that its last point keeps. Searches of a single alpha are the points of one front. A
    setting of which a cell has not been run is left out: means over other problems are not to be compared.
    """
    cells = [p for stage in run.cells(preset, {}) for book, p in stage if book == notebook]
    found = {records.key(r.parameters): r for r in of_preset(preset, notebook)}
    groups: dict[str, list[records.Record | None]] = {}
    for p in cells:
        apart = "," not in p["path"]
        ignored = {*varied, *(("path", "epochs") if apart else ())}
        changes = [f"{k} {v}" for k, v in p.items() if v != cells[0][k] and k not in ignored]
        label = "each alpha by itself" if apart else ", ".join(changes) or "default"
        groups.setdefault(label, []).append(found.get(records.key(p)))
    rows = []
    for label, of in groups.items():
        whole = [r for r in of if r is not None]
        if len(whole) < len(of):
            continue
        fronts = [dataclasses.replace(r, results={**r.results, "front": [
            p for other in whole if other.task == r.task for p in other.results["front"]]})
            for r in {r.task: r for r in whole}.values()]
        above = {share: statistics.fmean(100 * (at(r, share) - r.results["accuracy"]["original_restricted"])
                                         for r in fronts) for share in (SHARE, *WIDE)}
        rows.append({"setting": label, "problems": len(fronts), "5% to 50%: points": statistics.fmean(
            above[share] for share in WIDE), f"at {SHARE:.2%}: points": above[SHARE], "smallest": statistics.fmean(
                min(p["kept"] for p in r.results["front"]) for r in fronts)})
    return pd.DataFrame(rows)


def _points(style: Styler, columns: Iterable[str]) -> Styler:
    return style.format({c: "{:+.2f}" if c.endswith("points") else "{:.1%}" for c in columns}, na_rep="")


def results_first(trials: pd.DataFrame) -> list[str]:
    """The columns of a table of trials in the order of reading: of what, what came out, with which settings."""
    of = [c for c in trials if c in ("form", "model", "problem", "class")]
    results = [c for c in trials if c in ("kept", "accuracy", "original", "restricted", "loss", "multiply-adds")]
    return [*of, *results, *(c for c in trials if c not in of + results)]


def transfer(name: str) -> pd.DataFrame:
    """A row a student of preset `name`, in order of its stages; all but `method` and `seed` in [0, 1].

    removed (before fine-tuning), masked (accuracy then, of seam), regrown, accuracy, and for each attack of preset
    `name`-defects: inherited (the rate), noise (the rate for noise), white box (accuracy). NaN where that was not run.
    """
    measured = {(r.sha256["student"], r.parameters["attack"]): r.results
                for r in of_preset(f"{name}-defects", "defect_inheritance")}
    found = {records.key(r.parameters): r for r in of_preset(name, "indirect_reuse")}
    students = []
    for r in (found[key] for stage in run.cells(name, {}) for _, p in stage if (key := records.key(p)) in found):
        row = {"method": _method(r.parameters), "seed": r.parameters["seed"], "removed": 1 - r.results["kept_fraction"],
               "masked": r.results["accuracy_masked"], "accuracy": r.results["accuracy"],
               "regrown": r.results["regrown"] if r.results["kept_fraction"] < 1 else None}
        for attack in ATTACKS:
            of = measured.get((r.sha256["student"], attack), {})
            row |= {f"inherited, {attack}": of.get(f"dir_{attack}"), f"noise, {attack}": of.get(f"dir_{attack}_noise"),
                    f"white box, {attack}": of.get("accuracy_white_box")}
        students.append(row)
    table = pd.DataFrame(students)
    order = list(dict.fromkeys(table["method"]))
    table = table.sort_values(by=["method", "seed"], key=lambda c: c.map(order.index) if c.name == "method" else c)
    return table.astype({c: float for c in table.columns[2:]}).reset_index(drop=True)


def _method(parameters: Mapping[str, Any]) -> str:
    """What the table calls it: settings that `transfer` varies within a method are a part of the name."""
    method = parameters["method"]
    if method == "standard" and parameters["lr_s3_hidden_layer"] == 0:
        return "frozen body"
    if method == "standard" and parameters["epochs_s3"] > 15:
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


def shipped() -> tuple[pd.DataFrame, pd.DataFrame]:
    """(A row a model that ship.ipynb has taken, its timings: a row an engine and batch), in order of the models.

    Models: model (name, with its problem), structure, epochs, alpha and kept (of the search), original, crossfit,
    masked and compacted (accuracies), weights and multiply-adds (shares that are left), masks (bytes), 1/masks (of the
    source's file), difference. Timings: model, structure, engine, images, and `masked, faster` and `compacted, faster`.
    """
    by_masks = {r.sha256["masks"]: r for r in everything("direct_*")}
    found = [(by_masks[r.sha256["masks of the record"]], r) for r in of_preset("ship", "ship")]
    found.sort(key=lambda pair: (pair[1].task, pair[0].parameters.get("structure", 0)))
    models, times = [], []
    for direct, record in found:
        results, of = record.results, {"model": record.task, "structure": direct.parameters.get("structure", 0.0)}
        accuracy, size, left = results["accuracy"], results["bytes"], results["compacted"]
        models.append(of | {
            "epochs": direct.parameters["epochs"], "alpha": direct.parameters["alpha"],
            "kept": direct.results["kept_fraction"]["crossfit"],
            "original": accuracy["original_all"], "crossfit": direct.results["accuracy"]["crossfit"],
            "masked": accuracy["masked"], "compacted": accuracy["compacted"],
            "weights": left["weights"] / results["original"]["weights"],
            "multiply-adds": left["dense"] / results["original"]["dense"],
            "masks": size["masks"], "1/masks": size["source weights"] / size["masks"],
            "difference": results["difference"]})
        for engine, by_batch in results["latency"].items():
            for images, t in by_batch.items():
                if t:
                    median = {name: m["median"] for name, m in t["by_model"].items()}
                    times.append(of | {"engine": engine, "images": int(images)} | {
                        f"{name}, faster": median["original"] / median[name] for name in ("masked", "compacted")})
    return pd.DataFrame(models), pd.DataFrame(times)


def targets(results: Mapping[str, Any], kind: str) -> list[tuple[str, str, str]]:
    """(What, target, measured) of a speed record's results: ratios; what the other kind of device answers says so."""
    steps, many = results["steps"], results["growth"]["problems"][-1]
    rows, unmeasured = [], "not measured"
    for model, name, target in (("resnet20", "ResNet20", 3.0), ("vgg16_bn", "VGG16", 2.5)):
        step = steps[f"{model}, batch 64"]
        rows += [(f"{name}: a step, times as fast as published", f"≥ {target}",
                  f"{step['speedup']:.2f}" if kind == "cpu" else unmeasured),
                 (f"{name}: a step, more time than plain training", "≤ 8%",
                  f"{step['overhead']:+.1%}" if kind == "cpu" else unmeasured)]
    single, mask = steps["resnet20, batch 64"]["speedup"], kept_at_no_loss()
    times = f"{whole_search(results):.0f} for the whole path" if kind == "cpu" and "whole" in results else unmeasured
    return [*rows, ("ResNet20: to 12% kept at no loss, times as fast as published", "≥ 10", times),
            ("ResNet20: what the mean of that path's fronts keeps at no loss", "≤ 12%", mask),
            ("ResNet20: a step, times as fast as published, CUDA", "≥ 20",
             f"{single:.2f}" if kind == "cuda" else unmeasured),
            (f"{many['problems']} problems together, times as fast as one by one, CUDA", "≥ 5",
             f"{many['one by one'] / many['together']:.2f}" if kind == "cuda" else unmeasured)]


def kept_at_no_loss(preset: str = "cifar10") -> str:
    """What the fronts of the default keep at no loss against the original over all outputs, and how that differs."""
    table = front_rows(of_preset(preset, "direct_binary"))
    if table.empty:
        return "no records"
    return f"{table['all: kept'].mean():.1%}, {table['all: points'].mean():+.2f} points"


def settings(preset: str, notebook: str) -> dict[str, Any]:
    """The parameters of the first cell that `preset` has for `notebook`."""
    return next(p for stage in run.cells(preset, {}) for book, p in stage if book == notebook)


def whole_search(results: Mapping[str, Any], default: str = "cifar10", published: str = "paper") -> float:
    """The time of all epochs of the published settings and loop over that of the whole path of the default.

    Published steps are of 64 images, as the published settings have them; both times are medians of rounds in turns.
    """
    ours, theirs = (settings(name, "direct_binary")["epochs"] for name in (default, published))
    seconds = {name: statistics.median(times) for name, times in results["whole"].items()}
    return theirs * seconds["published"] / (ours * seconds["default"])
