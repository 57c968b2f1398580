"""Recompute what a record states, from its packed masks and the source model."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seamlib import evaluate, masks, models, records, together
from seamlib.problems import data, tasks
from seamlib.restore import answering, restore, restore_student, source_model
from seamlib.reuse import defects
from seamlib.reuse.backdoor import Survived, survived
from seamlib.search import Reengineered, best, no_loss
from seamlib.search.found import Originals, Pick
from seamlib.ship import cost
from seamlib.structure.compaction import BLOCK, compact

TOLERANCE = 0.0005 + 1e-9  # 0.05 points: another machine may round the last bit of a logit otherwise
ATTACKED = 0.001 + 1e-9  # 0.1 points: an attack takes forty steps, each of the sign of a rounded gradient
Numbers = dict[str, tuple[float | None, float, float]]


def recompute(record: records.Record, path: Path, root: Path) -> Numbers:
    """Name -> (stated, recomputed, tolerance) of the record at `path`.

    Raises FileNotFoundError where weights, data or masks are not at hand, ValueError where they are not those of the
    record, or where the record was made by training and its model is not kept.
    """
    how = KINDS[record.experiment]
    if isinstance(how, str):
        raise ValueError(how)
    return how(record, path, root)


def _source(record: records.Record, path: Path, root: Path) -> Numbers:
    source, model = source_model(record, root)
    found = evaluate.accuracy(model, data.batches(source.test, 256))
    return {"accuracy.source": (record.results["accuracy"]["source"], found, TOLERANCE)}


def _direct(record: records.Record, path: Path, root: Path) -> Numbers:
    _, model, task, found = restore(record, records.tensors_of(record, path), root)

    def measure(pick: str, split: data.Samples) -> float:
        return evaluate.accuracy(found.module(pick), data.batches(split, 256))
    originals = tasks.originals(task, model)
    original = originals["paper"]
    accuracy = {"original_all": original["all"], "original_restricted": original["restricted"],
                "paper": measure("paper", task.test)}
    kept = {"paper": masks.kept_fraction(found.picks["paper"].masks)}
    if "a" in found.picks:
        accuracy["crossfit"] = (measure("a", task.halves["b"]) + measure("b", task.halves["a"])) / 2
        kept["crossfit"] = sum(masks.kept_fraction(found.picks[half].masks) for half in "ab") / 2
    stated = record.results
    return {**{f"accuracy.{k}": (stated["accuracy"][k], v, TOLERANCE) for k, v in accuracy.items()},
            **{f"kept_fraction.{k}": (stated["kept_fraction"][k], v, 0.0) for k, v in kept.items()},
            **_front(stated, found, task, originals)}


def _front(stated: Mapping[str, Any], found: Reengineered, task: tasks.Task, originals: Originals) -> Numbers:
    """Every point of a front, and what is chosen from it."""
    numbers: Numbers = {}
    there = [name for name in found.picks if name not in ("a", "b", "paper")]
    points = [f"{point['alpha']:g}" for point in stated["front"]] if there else []
    if missing := set(there) ^ set(points):
        raise ValueError(f"the point {min(missing)} of the front is in the masks or in the record, not in both")
    for point in stated["front"] if there else []:
        name = f"{point['alpha']:g}"
        splits = {"accuracy": task.test, **{f"accuracy_{half}": split for half, split in task.halves.items()}}
        again = {"kept": masks.kept_fraction(found.picks[name].masks)}
        again |= {column: evaluate.accuracy(found.module(name), data.batches(split, 256))
                  for column, split in splits.items() if column in point}
        numbers |= {f"front.{name}.{k}": (point[k], v, TOLERANCE * (k != "kept")) for k, v in again.items()}
    return numbers | (_chosen(stated, originals, "a" in found.picks) if there else {})


def _chosen(stated: Mapping[str, Any], originals: Originals, crossfit: bool = True) -> Numbers:
    """What is chosen from a front: kept at no loss, and the most accurate point."""
    numbers: Numbers = {}
    for control, chosen in stated["no_loss"].items():
        first = no_loss(stated["front"], originals, control) if crossfit else None
        numbers[f"no_loss.{control}.reached"] = (float(chosen is not None), float(first is not None), 0.0)
        if chosen is not None and first is not None:
            numbers |= {f"no_loss.{control}.{k}": (v, first[k], TOLERANCE) for k, v in chosen.items()}
    if stated["best"] is not None:
        again = best(stated["front"], originals)
        numbers |= {f"best.{k}": (v, again[k], TOLERANCE) for k, v in stated["best"].items()}
    return numbers


def _largest(record: records.Record, path: Path, root: Path) -> Numbers:
    """What the largest weights and the searched ones say: the masks follow from those of the search."""
    of, mask_file = _found(path, root, "direct_*", "masks", record.sha256["masks of the record"])
    _, model, task, found = restore(of, mask_file, root)
    pick, test = record.parameters["pick"], data.batches(task.test, 256)
    kept = found.picks[pick].masks
    left = masks.load_masks(records.tensors_of(record, path), model)
    if left.digest != record.sha256["norms"]:
        raise ValueError(f"the norms and head beside {record.stem} are not those of the record")
    trained = dataclasses.replace(found, picks={"last": Pick(
        -1, masks.largest(model, kept), left.heads["last"], left.norms["last"])})
    again = {"searched": found.module(pick), "largest": trained.module("last")}
    return {"kept": (record.results["kept"], masks.kept_fraction(kept), 0.0), **{
        f"accuracy.{name}": (record.results["accuracy"][name], evaluate.accuracy(m, test), TOLERANCE)
        for name, m in again.items()}}


def _together(record: records.Record, path: Path, root: Path) -> Numbers:
    """Every point of the binary models put together, which are restored from their own records."""
    numbers: Numbers = {}
    stated, parts = record.results, []
    for what, digest in record.sha256.items():
        if what.startswith("masks of class"):
            of, mask_file = _found(path, root, "direct_binary", "masks", digest)
            parts.append(restore(of, mask_file, root))
    task = tasks.problem(parts[0].source, classes=record.parameters["classes"])
    originals = tasks.originals(task, parts[0].model)
    for series, accuracies in originals.items():
        numbers |= {f"originals.{series}.{k}": (stated["originals"][series][k], v, TOLERANCE) for k, v in
                    accuracies.items()}
    points = together.front([part.found for part in parts], task)
    if [point["alpha"] for point in points] != [point["alpha"] for point in stated["front"]]:
        raise ValueError(f"the front of {record.stem} has other points than the records of its classes have in common")
    for point, again in zip(stated["front"], points, strict=True):
        numbers |= {f"front.{again['alpha']:g}.{k}": (
            point[k], v, TOLERANCE if k.startswith("accuracy") else 1e-6 * v) for k, v in again.items() if k != "alpha"}
    for alpha, union in together.unions([part.found for part in parts]).items():
        for what, shares in union.items():
            numbers |= {f"union.{alpha}.{what}.{i}": (stated["union"][alpha][what][i - 1], share, 1e-9)
                        for i, share in enumerate(shares, 1)}
    return numbers | _chosen(stated, originals)


def _found(path: Path, root: Path, experiment: str, what: str, digest: str) -> tuple[records.Record, Path]:
    """The record of `experiment` whose `what` (masks, student) has `digest`, and the file of that.

    It is in the folder of results that the record at `path` is in, or it is kept.
    """
    folders = dict.fromkeys((path.resolve().parents[1], root / "book/results"))
    for other in (other for folder in folders for other in sorted(folder.glob(f"{experiment}/*.json"))):
        if (record := records.read(other)).sha256.get(what) == digest:
            return record, records.tensors_of(record, other)
    raise FileNotFoundError(f"no {experiment} record with {what} {digest[:12]}... in {' or '.join(map(str, folders))}")


def _student(record: records.Record, path: Path, root: Path) -> Numbers:
    restored = restore_student(record, records.tensors_of(record, path), root)
    size = record.parameters.get("size", 0) or models.size(record.parameters["model"])
    found = evaluate.accuracy(restored.student, data.batches(restored.problem.test, 256, size=size))
    return {"accuracy": (record.results["accuracy"], found, TOLERANCE)}


def _defects(record: records.Record, path: Path, root: Path) -> Numbers:
    """The attack is made again, unless its images are still in runs/: minutes for each thousand images."""
    of, student_file = _found(path, root, "indirect_reuse", "student", record.sha256["student"])
    restored = restore_student(of, student_file, root)
    p, size = record.parameters, of.parameters.get("size", 0) or models.size(of.parameters["model"])
    attack = defects.attack(p["attack"], p["iterations"], p["eps"] or None)
    test = data.batches(data.spread(restored.problem.test, record.results["n"]), 256, size=size)
    images = records.place(p["runs"], root) / "adversarial"
    adversarial = defects.crafted(restored.body, test, attack, p["seed"], images)
    found = defects.inheritance(restored.student, test, adversarial)
    stated, numbers = record.results, {"accuracy": (record.results["accuracy"], found.accuracy, TOLERANCE)}
    rate = stated[f"dir_{p['attack']}"]
    if (rate, found.rate) != (None, None):
        numbers[f"dir_{p['attack']}"] = (rate, math.nan if found.rate is None else found.rate, ATTACKED)
    return numbers


def _cost(record: records.Record, path: Path, root: Path) -> Numbers:
    """Counts and accuracy; times belong to the machine and its hour, and are not measured again."""
    of, mask_file = _found(path, root, "direct_*", "masks", record.sha256["masks of the record"])
    _, model, task, found = restore(of, mask_file, root)
    example, masked = data.first(task.test, 1), found.module(record.parameters.get("pick", "paper"))
    stated, numbers = record.results, {}
    for name, module in (("original", model), ("reengineered", masked)):
        total, kept = cost.weights(module)
        counts = cost.flops(module, example)
        for what, value in (("weights", total), ("weights_kept", kept), ("dense", counts.dense),
                            ("sparse", counts.sparse)):
            numbers[f"{name}.{what}"] = (stated[name][what], float(value), 1e-6 * value)
    accuracy = evaluate.accuracy(masked, data.batches(task.test, 256))
    return {**numbers, "accuracy.delivered": (stated["accuracy"]["delivered"], accuracy, TOLERANCE)}


def _ship(record: records.Record, path: Path, root: Path) -> Numbers:
    """Counts, accuracies, the difference that compaction makes, and the size of the mask file; no times."""
    of, mask_file = _found(path, root, "direct_*", "masks", record.sha256["masks of the record"])
    _, model, task, found = restore(of, mask_file, root)
    images, pick = data.first(task.test, 64), record.parameters.get("pick", "paper")
    masked = found.module(pick)
    compacted, _ = compact(masked, images[:2], multiple=BLOCK)
    stated, numbers = record.results, {}
    for name, module in (("original", model), ("masked", masked), ("compacted", compacted)):
        counts = cost.flops(module, images[:1])
        values = {**dict(zip(("weights", "weights_kept"), cost.weights(module), strict=True)), **counts._asdict()}
        for what in ("weights", "weights_kept", "dense", "sparse"):
            numbers[f"{name}.{what}"] = (stated[name][what], float(values[what]), 1e-6 * values[what])
        if name != "original":
            accuracy = evaluate.accuracy(module, data.batches(task.test, 256))
            numbers[f"accuracy.{name}"] = (stated["accuracy"][name], accuracy, TOLERANCE)
    folded, _ = compact(task.original_restricted(model), images[:2], multiple=BLOCK)
    for pixels, values in stated.get("smaller", {}).items():
        n = int(pixels)
        accuracy = evaluate.accuracy(folded, data.batches(task.test, 256, size=n))
        numbers[f"smaller.{pixels}.accuracy"] = (values["accuracy"], accuracy, TOLERANCE)
        dense = float(cost.flops(folded, images[:1, :, :n, :n]).dense)
        numbers[f"smaller.{pixels}.dense"] = (values["dense"], dense, 1e-6 * dense)
    with evaluate.measuring():
        difference = (masked(images) - compacted(images)).abs().max() / masked(images).abs().max()
    numbers["difference"] = (stated["difference"], float(difference), 1e-5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks"
        dataclasses.replace(found, picks={"paper": found.picks[pick]}).save(path)
        size = path.stat().st_size  # without class names, and by another compressor's version perhaps
    return {**numbers, "bytes.masks": (stated["bytes"]["masks"], size, 0.03 * size + 500)}


def _planted(record: records.Record, path: Path, root: Path) -> Numbers:
    source, clean = source_model(record, root)
    poisoned = models.load_weights(copy.deepcopy(clean), models.read_weights(records.tensors_of(record, path)))
    p, test = record.parameters, data.batches(source.test, 256)
    again = {when: survived(model, test, p["side"], p["target_class"], p["seed"])
             for when, model in (("before", clean), ("after", poisoned))}
    return _survived(record.results, again)


def _survival(record: records.Record, path: Path, root: Path) -> Numbers:
    experiment, what = ("indirect_reuse", "student") if "student" in record.sha256 else ("direct_multiclass", "masks")
    of, file = _found(path, root, experiment, what, record.sha256[f"{what}{' of the record' * (what == 'masks')}"])
    made = answering(of, file, root)
    planted = records.read(records.find(of.parameters["planted"], [path.resolve().parents[1], root / "book/results"]))
    wrong, side = planted.parameters["target_class"], planted.parameters["side"]
    label = made.classes.index(wrong) if wrong in made.classes else None
    test = data.batches(made.test, 256, size=of.parameters.get("size", 0) or models.size(of.parameters["model"]))
    again = {name: survived(model, test, side, label, record.seed) for name, model in made.models.items()}
    return _survived(record.results["models"], again)


def _survived(stated: Mapping[str, Any], again: Mapping[str, Survived]) -> Numbers:
    """Every number of each model, by its name."""
    return {f"{name}.{what}": (stated[name][what], value, ATTACKED)
            for name, found in again.items() for what, value in dataclasses.asdict(found).items() if value is not None}


KINDS: dict[str, Callable[[records.Record, Path, Path], Numbers] | str] = {  # what to do, or why nothing can be done
    "direct_binary": _direct,
    "direct_multiclass": _direct,
    "train_source": _source,
    "indirect_reuse": _student,
    "defect_inheritance": _defects,
    "planted_defect": _planted,
    "planted_survival": _survival,
    "inference_cost": _cost,
    "ship": _ship,
    "largest_weights": _largest,
    "put_together": _together,
    "retrain": "the model that it trained is not kept: run its cell again",
    "threshold_study": "the students that it made are not kept: run its cell again",
    "speed": "it states times: run make bench again, on a quiet machine",
}
