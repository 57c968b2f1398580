"""Tables and figures of the planted defect: what the patch does to each model that was made from the poisoned one."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from typing import Any

import pandas as pd
import report
import run
import students
from matplotlib.figure import Figure

from seamlib import records

PRESET = "planted"
STUDENT = ["method", "seed", "removed", "accuracy", "trigger", "control", "trigger's own"]
POINT = ["method", "search", "seed", "alpha", "kept", "accuracy", "success", "control", "turned wrong", "by control",
         "most changed kept"]
SEARCH, NO_MASK = "masks and norms", 1e-4  # a rate of the scores below it masks nothing
LAYER = ["layer", "changed", "kept", "changed_kept"]
METHODS = ("standard, 30 epochs", "seam", "standard", "remos 10%", "retrain")
ORDER = ("norms alone", SEARCH, "masks alone")
GONE = 0.025  # of the images: more than in any network without a backdoor
HALF = 0.5  # of what the trigger does to the poisoned model


def poisoned() -> records.Record | None:
    """The record of the poisoned model; None where there is none."""
    return next(iter(report.of_preset(PRESET, "planted_defect")), None)


def measured() -> dict[str, records.Record]:
    """Digest of a student or of masks that the preset has made -> the record of what the patch does to them."""
    made = {digest for notebook in ("indirect_reuse", "direct_multiclass") for r in report.of_preset(PRESET, notebook)
            for digest in r.sha256.values()}
    found = {r.sha256.get("student") or r.sha256["masks of the record"]: r
             for r in report.everything("planted_survival")}
    return {digest: r for digest, r in found.items() if digest in made}


def picture(name: str) -> None:
    """Put the poisoned model's picture of the trigger where pages show it; one that says so, where it was not made."""
    target = run.ROOT / "book/generated" / f"{name}.png"
    if made := poisoned():
        path = records.find(made.stem, reversed(report.ROOTS)).with_suffix(".png")
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    else:
        figure = Figure(figsize=(6, 1))
        figure.text(0.5, 0.5, "not run yet", ha="center")
        report.drawn(figure, name)


def of_students() -> pd.DataFrame:
    """A row a student, columns STUDENT; first standard fine-tuning for as long as seam takes, the fair control.

    trigger, control: the share of its right answers that each patch turns wrong; trigger's own: their difference.
    """
    found, rows = measured(), []
    for r in report.of_preset(PRESET, "indirect_reuse"):
        if of := found.get(r.sha256["student"]):
            model = of.results["models"]["student"]
            rows.append({"method": students.method_of(r.parameters), "seed": r.seed,
                         "removed": 1 - r.results["kept_fraction"], "accuracy": model["accuracy"],
                         "trigger": model["lost"], "control": model["lost_control"],
                         "trigger's own": (model["lost"] or 0) - (model["lost_control"] or 0)})
    return students.in_order(pd.DataFrame(rows, columns=STUDENT))


def of_searches() -> pd.DataFrame:
    """A row a point of each front, and a first one a seed for the restricted original, columns POINT, by alpha.

    search: "masks and norms", or a control: "norms alone" or "masks alone". success, control: the share of images of
    the other classes that each patch sends to the wrong class; turned wrong, by control: the share of the right answers
    that each turns wrong, whatever the answer then is.
    """
    found, rows = measured(), []
    for r in report.of_preset(PRESET, "direct_multiclass"):
        if of := found.get(r.sha256["masks"]):
            p, alphas = r.parameters, {f"{point['alpha']:g}": point["alpha"] for point in r.results["front"]}
            search = "norms alone" if p["lr_mask"] < NO_MASK else "masks alone" if p["norms"] == "frozen" else SEARCH
            for name, alpha in [*([("restricted", 0.0)] if search == SEARCH else []), *alphas.items()]:
                model = of.results["models"][name]
                label = search if search == "norms alone" else f"{search}, alpha {alpha:g}"
                rows.append({"method": label if alpha else "poisoned, restricted", "search": search, "seed": r.seed,
                             "alpha": alpha, "kept": model.get("kept", 1.0), "accuracy": model["accuracy"],
                             "success": model["success"], "control": model["success_control"],
                             "turned wrong": model["lost"], "by control": model["lost_control"],
                             "most changed kept": model.get("kept_changed", 1.0)})
    table = pd.DataFrame(rows, columns=POINT).sort_values(["search", "alpha", "seed"], key=lambda c: c.map(
        ORDER.index) if c.name == "search" else c).reset_index(drop=True)
    return table.astype(dict.fromkeys(POINT[3:], float))


def by_layer() -> pd.DataFrame:
    """A row a layer's weights, in the order of the model: `changed`, their share of all that poisoning changed most;
    `kept` and `changed_kept`, the shares of its weights, and of those among them, that the delivered masks keep."""
    default = {r.sha256["masks"] for r in report.of_preset(PRESET, "direct_multiclass")
               if r.parameters["norms"] != "frozen" and r.parameters["lr_mask"] >= NO_MASK}
    searches = [r for digest, r in measured().items() if digest in default]
    counts: dict[str, dict[str, float]] = {}
    for r in searches:
        for name, layer in r.results["layers"].items():
            total = counts.setdefault(name, dict.fromkeys(layer, 0.0))
            for what, n in layer.items():
                total[what] += n
    everywhere = sum(layer["changed"] for layer in counts.values())
    return pd.DataFrame([
        {"layer": name.removesuffix(".weight"), "changed": of["changed"] / everywhere,
         "kept": of["kept"] / of["weights"],
         "changed_kept": of["changed_kept"] / of["changed"] if of["changed"] else math.nan}
        for name, of in counts.items() if name.endswith("weight")], columns=LAYER)


def verdict(own: Sequence[float], before: float) -> str:
    """In fixed words what became of the defect, from what is the trigger's own, in [-1, 1], a value a seed, and what
    that was `before`: "survives" with HALF of it or more in every seed, "is gone" below GONE in every seed, else "is
    weaker"; "was not tested" without a value.
    """
    values = [v for v in own if not math.isnan(v)]
    if not values or math.isnan(before):
        return "was not tested"
    return "survives" if min(values) >= HALF * before else "is gone" if max(values) < GONE else "is weaker"


def ends(points: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The points of the searches, and of the controls, at the first and at the last alpha of fronts, a row a seed."""
    masked = {name: points[(points["search"] == name) & (points["alpha"] > 0)] for name in ORDER}
    first = {name: of[of["alpha"] == of["alpha"].min()] for name, of in masked.items()}
    last = {name: of[of["alpha"] == of["alpha"].max()] for name, of in masked.items()}
    return {"first": first[SEARCH], "last": last[SEARCH], "norms": first["norms alone"],
            "frozen-first": first["masks alone"], "frozen-last": last["masks alone"]}


def told() -> dict[str, Any]:
    """What the text says: numbers in [0, 1], and verdicts; NaN and "was not tested" where nothing was measured."""
    made, nan = poisoned(), math.nan
    said: dict[str, Any] = {f"{when}-{what}": made.results[when][what] if made else nan for when in ("before", "after")
                            for what in ("accuracy", "lost", "lost_control", "success", "success_control")}
    table, points = of_students(), of_searches()
    null = [*table[table["method"] == "retrain"]["trigger's own"], said["before-lost"] - said["before-lost_control"]]
    said |= {"null-low": 100 * min(null), "null-high": 100 * max(null)}  # points, of networks without a backdoor
    own = said["after-lost"] - said["after-lost_control"]
    for method in METHODS:
        of, name = table[table["method"] == method], method.replace(", ", "-").replace(" ", "-").replace("%", "")
        said |= {f"{name}-{what}": float(of[what].mean()) for what in ("accuracy", "trigger", "control")}
        said[f"{name}-verdict"] = verdict(list(of["trigger's own"]), own)
    whole = points[points["alpha"] == 0].set_index("seed")
    own = float((whole["success"] - whole["control"]).mean()) if len(whole) else nan
    said |= {"restricted-success": float(whole["success"].mean()), "restricted-control": float(whole["control"].mean()),
             "restricted-accuracy": float(whole["accuracy"].mean())}
    for where, of in ends(points).items():
        said |= {f"{where}-{c.replace(' ', '-')}": float(of[c].mean()) for c in POINT[4:]}
        said[f"{where}-success-each"] = ", ".join(f"{v:.0%}" for v in of["success"]) or "was not tested"
        said[f"{where}-verdict"] = verdict(list(of["success"] - of["control"]), own)
    return said
