"""Recompute what a record states, from its packed masks and the source model."""

from __future__ import annotations

from pathlib import Path

from seamlib import cost, data, evaluate, masks, records, tasks
from seamlib.restore import restore, source_model

TOLERANCE = 0.0005 + 1e-9  # 0.05 points: another machine may round the last bit of a logit otherwise
Numbers = dict[str, tuple[float, float, float]]


def recompute(record: records.Record, path: Path, root: Path) -> Numbers:
    """Name -> (stated, recomputed, tolerance) of the record at `path`.

    Raises FileNotFoundError where weights, data or masks are not at hand, ValueError where they are not those of the
    record, or where the record was made by training and its model is not kept.
    """
    if record.experiment == "retrain":
        raise ValueError("the model that it trained is not kept: run its cell again")
    if record.experiment == "train_source":
        source, model = source_model(record, root)
        found = evaluate.accuracy(model, data.batches(source.test, 256))
        return {"accuracy.source": (record.results["accuracy"]["source"], found, TOLERANCE)}
    if record.experiment == "inference_cost":
        return _cost(record, path.parent.parent, root)
    return _direct(record, path.with_suffix(".safetensors"), root)


def _direct(record: records.Record, mask_file: Path, root: Path) -> Numbers:
    _, model, task, found = restore(record, mask_file, root)

    def measure(pick: str, split: data.Samples) -> float:
        return evaluate.accuracy(found.module(pick), data.batches(split, 256))
    original = tasks.originals(task, model)["paper"]
    accuracy = {"original_all": original["all"], "original_restricted": original["restricted"],
                "paper": measure("paper", task.test)}
    kept = {"paper": masks.kept_fraction(found.picks["paper"].masks)}
    if "a" in found.picks:
        accuracy["crossfit"] = (measure("a", task.halves["b"]) + measure("b", task.halves["a"])) / 2
        kept["crossfit"] = sum(masks.kept_fraction(found.picks[half].masks) for half in "ab") / 2
    stated = record.results
    return {**{f"accuracy.{k}": (stated["accuracy"][k], v, TOLERANCE) for k, v in accuracy.items()},
            **{f"kept_fraction.{k}": (stated["kept_fraction"][k], v, 0.0) for k, v in kept.items()}}


def _cost(record: records.Record, results: Path, root: Path) -> Numbers:
    """Counts and accuracy; times belong to the machine and its hour, and are not measured again."""
    masks_of = record.sha256["masks of the record"]
    of = next((r for r in records.read_all(results, "direct_*") if r.sha256["masks"] == masks_of), None)
    if of is None:
        raise FileNotFoundError(f"no direct-reuse record with masks {masks_of[:12]}... in {results}")
    _, model, task, found = restore(of, results / f"{of.stem}.safetensors", root)
    example, _ = next(iter(data.batches(task.test, 1)))
    stated, numbers = record.results, {}
    for name, module in (("original", model), ("reengineered", found.module())):
        total, kept = cost.weights(module)
        counts = cost.flops(module, example)
        for what, value in (("weights", total), ("weights_kept", kept), ("dense", counts.dense),
                            ("sparse", counts.sparse)):
            numbers[f"{name}.{what}"] = (stated[name][what], float(value), 1e-6 * value)
    accuracy = evaluate.accuracy(found.module(), data.batches(task.test, 256))
    return {**numbers, "accuracy.delivered": (stated["accuracy"]["delivered"], accuracy, TOLERANCE)}
