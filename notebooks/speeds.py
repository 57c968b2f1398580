"""Tables of what costs time: shipped models, and searches against the published loop."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import direct
import pandas as pd
import report

from seamlib import records

UNMEASURED = "not measured"


def shipped() -> tuple[pd.DataFrame, pd.DataFrame]:
    """(A row a point of a front that ship.ipynb has taken, its timings: a row an engine and batch), in order.

    Points: model (name, with its problem), kind ("scattered" or "channels"), alpha, kept, accuracy (compacted, on the
    whole test set; nothing is chosen), its points above the restricted original and the original over all outputs,
    masks (bytes), 1/masks (of the source's file), weights and multiply-adds (shares that compaction leaves),
    difference. Timings: model, kind, alpha, engine, images, noisy, `original, ms` (a call), and how many times as fast
    as the original: `folded, faster` (the restricted original compacted), `masked, faster` and `compacted, faster`.
    """
    points, times = [], []
    for record, search in _ship_records():
        point = next(p for p in search.results["front"] if f"{p['alpha']:g}" == record.parameters["pick"])
        results, size, left = record.results, record.results["bytes"], record.results["compacted"]
        of = {"model": record.task, "kind": "channels" if search.parameters.get("structure") else "scattered",
              "alpha": point["alpha"]}
        points.append(of | {
            "kept": point["kept"], "accuracy": results["accuracy"]["compacted"],
            **{f"points, {control}": 100 * (results["accuracy"]["compacted"]
                                            - search.results["accuracy"][f"original_{control}"])
               for control in ("restricted", "all")},
            "masks": size["masks"], "1/masks": size["source weights"] / size["masks"],
            "weights": left["weights"] / results["original"]["weights"],
            "multiply-adds": left["dense"] / results["original"]["dense"], "difference": results["difference"]})
        for engine, by_batch in results["latency"].items():
            for images, t in by_batch.items():
                if t:
                    median = {name: m["median"] for name, m in t["by_model"].items()}
                    times.append(of | {"engine": engine, "images": int(images), "noisy": t["noisy"],
                                       "original, ms": 1000 * median["original"]} | {
                        f"{name}, faster": median["original"] / median[name]
                        for name in ("folded", "masked", "compacted")})
    order = ["model", "kind", "alpha"]
    return tuple(pd.DataFrame(rows).sort_values(order, ascending=[True, False, True], kind="stable", ignore_index=True)
                 for rows in (points, times))


def smaller_images() -> pd.DataFrame:
    """The original, restricted, on smaller images: a row a model of ship.ipynb, a size, an engine and a batch.

    model, pixels (a side), points (its accuracy above that on whole images), multiply-adds (share of the original's),
    engine, images, faster (times as fast as the original; the median over the model's records).
    """
    rows = []
    for record, search in _ship_records():
        results, whole = record.results, search.results["accuracy"]
        for pixels, rival in results.get("smaller", {}).items():
            rows += [{"model": record.task, "pixels": int(pixels),
                      "points": 100 * (rival["accuracy"] - whole["original_restricted"]),
                      "multiply-adds": rival["dense"] / results["original"]["dense"],
                      "engine": engine, "images": int(images),
                      "faster": t["by_model"]["original"]["median"] / t["by_model"][f"{pixels} pixels"]["median"]}
                     for engine, by_batch in results["latency"].items() for images, t in by_batch.items() if t]
    columns = ["model", "pixels", "points", "multiply-adds", "engine", "images", "faster"]
    return pd.DataFrame(rows, columns=columns).groupby(columns[:-1], sort=False, as_index=False).median()


def deepsparse_again(images: int = 16) -> pd.DataFrame:
    """The models of preset ship-again as each run has timed them on DeepSparse, so many `images` a call: a row a run.

    model, run (where it is from), ms of a call: `original, onnxruntime` (how fast the machine was at that hour),
    `original` and `zeros` (the masked model) on DeepSparse; `time` (zeros over original).
    """
    def which(record: records.Record) -> tuple[str, str]:
        return record.sha256["masks of the record"], record.parameters["pick"]

    twice = report.of_preset("ship-again", "ship")
    rows = []
    for run, preset, notebook, masked in (("Cost and time", "cost", "inference_cost", "reengineered"),
                                          ("Ship it", "ship", "ship", "masked"),
                                          ("Ship it, once more", "ship-again", "ship", "masked")):
        for record in report.of_preset(preset, notebook):
            if which(record) in map(which, twice):
                old, sparse = (record.results["latency"][engine][str(images)]["by_model"]
                               for engine in ("onnxruntime", "deepsparse"))
                rows.append({"model": record.task, "run": run,
                             "original, onnxruntime": 1000 * old["original"]["median"],
                             "original": 1000 * sparse["original"]["median"],
                             "zeros": 1000 * sparse[masked]["median"]})
    return pd.DataFrame(rows).assign(time=lambda t: t["zeros"] / t["original"]).sort_values(
        "model", kind="stable", ignore_index=True)


def _ship_records() -> Iterator[tuple[records.Record, records.Record]]:
    """Each record of preset ship, and that of the search whose masks it has shipped."""
    by_masks = {r.sha256["masks"]: r for r in report.everything("direct_*")}
    for record in report.of_preset("ship", "ship"):
        yield record, by_masks[record.sha256["masks of the record"]]


def targets_of(found: Iterable[records.Record]) -> list[tuple[str, str, str]]:
    """(What, target, measured): the rows of `targets`, each of a speed record whose device answers it, if one does."""
    tables = (targets(record.results, record.device["kind"]) for record in found)
    return [max(rows, key=lambda row: row[2] != UNMEASURED) for rows in zip(*tables, strict=True)]


def targets(results: Mapping[str, Any], kind: str) -> list[tuple[str, str, str]]:
    """(What, target, measured) of a speed record's results: ratios; what the other kind of device answers says so."""
    steps, many = results["steps"], results["growth"]["problems"][-1]
    rows = []
    for model, name, target in (("resnet20", "ResNet20", 3.0), ("vgg16_bn", "VGG16", 2.5)):
        step = steps[f"{model}, batch 64"]
        rows += [(f"{name}: a step, times as fast as published", f"≥ {target}",
                  f"{step['speedup']:.2f}" if kind == "cpu" else UNMEASURED),
                 (f"{name}: a step, more time than plain training", "≤ 8%",
                  f"{step['overhead']:+.1%}" if kind == "cpu" else UNMEASURED)]
    single, mask = steps["resnet20, batch 64"]["speedup"], kept_at_no_loss()
    times = f"{whole_search(results):.0f} for the whole path" if "whole" in results else UNMEASURED
    return [*rows, ("ResNet20: to 12% kept at no loss, times as fast as published", "≥ 10",
                    times if kind == "cpu" else UNMEASURED),
            ("ResNet20: to 12% kept at no loss, times as fast as published, CUDA", "≥ 10",
             times if kind == "cuda" else UNMEASURED),
            ("ResNet20: what the mean of that path's fronts keeps at no loss", "≤ 12%", mask),
            ("ResNet20: a step, times as fast as published, CUDA", "≥ 20",
             f"{single:.2f}" if kind == "cuda" else UNMEASURED),
            (f"{many['problems']} problems together, times as fast as one by one, CUDA", "≥ 5",
             f"{many['one by one'] / many['together']:.2f}" if kind == "cuda" else UNMEASURED)]


def kept_at_no_loss(preset: str = "cifar10") -> str:
    """What the fronts of the default keep at no loss against the original over all outputs, and how that differs."""
    table = direct.front_rows(report.of_preset(preset, "direct_binary"))
    if table.empty:
        return "no records"
    return f"{table['all: kept'].mean():.1%}, {table['all: points'].mean():+.2f} points"


def whole_search(results: Mapping[str, Any], default: str = "cifar10", published: str = "paper") -> float:
    """The time of all epochs of the published settings and loop over that of the whole path of the default.

    Published steps are of 64 images, as the published settings have them; both times are medians of rounds in turns.
    """
    ours, theirs = (report.settings(name, "direct_binary")["epochs"] for name in (default, published))
    seconds = {name: statistics.median(times) for name, times in results["whole"].items()}
    return theirs * seconds["published"] / (ours * seconds["default"])


def published() -> pd.DataFrame:
    """A row a preset and model of SeaM's own settings: `cells`, epochs of each, `seconds an epoch` as records of the
    same notebook, model and data measured them (the median; NaN where there is none), `core hours` of all its cells."""
    everything = report.everything()
    rows = []
    notebooks = ("direct_binary", "direct_multiclass", "indirect_reuse")
    for preset in dict.fromkeys(name for book in notebooks for name in report.run.presets(book) if "paper" in name):
        groups: dict[tuple[str, str, str, int], int] = {}
        for notebook, p in itertools.chain(*report.run.cells(preset, {})):
            steps = (1, 2, 3) if p.get("method") == "seam" else (3,)  # of indirect reuse; the others only fine-tune
            epochs = p["epochs"] if "epochs" in p else sum(p[f"epochs_s{step}"] for step in steps)
            of = notebook, p.get("model", ""), p.get("dataset", ""), epochs
            groups[of] = groups.get(of, 0) + 1
        for (notebook, model, data, epochs), cells in groups.items():
            times = [r.results["search_seconds"] / r.parameters["epochs"] for r in everything
                     if r.experiment == notebook and r.results.get("search_seconds")
                     and (r.parameters["model"], r.parameters["dataset"]) == (model, data)]
            seconds = statistics.median(times) if times else math.nan
            rows.append({"preset": preset, "model": model, "data": data, "cells": cells, "epochs": epochs,
                         "seconds an epoch": seconds, "core hours": cells * epochs * seconds / 3600})
    return pd.DataFrame(rows)
