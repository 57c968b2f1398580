"""Recompute what a record states, from its packed masks and the source model."""

from __future__ import annotations

import functools
from pathlib import Path

from seamlib import data, evaluate, masks, models, records, runtime, search, tasks

TOLERANCE = 0.0005 + 1e-9  # 0.05 points: another machine may round the last bit of a logit otherwise


_load = functools.lru_cache(1)(data.load)  # many records of one data set: read it once


def recompute(record: records.Record, mask_file: Path, root: Path) -> dict[str, tuple[float, float, float]]:
    """Name -> (stated, recomputed, tolerance), each in [0, 1], of a direct_binary or train_source record.

    Raises FileNotFoundError where weights, data or masks are not at hand, ValueError where they are not those of the
    record.
    """
    p = record.parameters
    source = _load(p["dataset"], root / p["data"])
    given = root / p.get("weights", "")
    model = models.pretrained(f"{p['model']}-{p['dataset']}", root / p["data"],
                              given if given.is_file() else "",  # the digest below says whether they are the same
                              trained=(root / p["runs"], root / "book/results"), n_classes=len(source.classes))
    for what, found in (("weights", runtime.digest(model.state_dict())), ("data", source.digest)):
        if found != record.sha256[what]:
            raise ValueError(f"{record.stem} was made with {what} {record.sha256[what][:12]}..., here are "
                             f"{found[:12]}...: no number can be compared")
    if record.experiment == "train_source":
        found_accuracy = evaluate.accuracy(model, data.batches(source.test, 256))
        return {"accuracy.source": (record.results["accuracy"]["source"], found_accuracy, TOLERANCE)}
    task = tasks.binary(source, p["target_class"], seed=p["seed"], shots=p["shots"])
    stored = masks.load_masks(mask_file, model)
    if stored.digest != record.sha256["masks"]:
        raise ValueError(f"{mask_file} holds masks {stored.digest[:12]}..., the record was made with "
                         f"{record.sha256['masks'][:12]}...")
    head = models.new_head(len(source.classes), task.n_classes)
    epochs = record.results["epoch"]
    picks = {name: search.Pick(epochs[name], mask, stored.heads[name]) for name, mask in stored.masks.items()}
    reengineered = search.Reengineered(model, head, [], picks)

    def measure(pick: str, split: data.Split) -> float:
        return evaluate.accuracy(reengineered.module(pick), data.batches(split, 256))
    whole = data.batches(task.test, 256)
    accuracy = {"original_all": evaluate.accuracy(task.original_all(model), whole),
                "original_restricted": evaluate.accuracy(task.original_restricted(model), whole),
                "paper": measure("paper", task.test)}
    kept = {"paper": masks.kept_fraction(picks["paper"].masks)}
    if "a" in picks:
        accuracy["crossfit"] = (measure("a", task.halves["b"]) + measure("b", task.halves["a"])) / 2
        kept["crossfit"] = sum(masks.kept_fraction(picks[half].masks) for half in "ab") / 2
    stated = record.results
    return {**{f"accuracy.{k}": (stated["accuracy"][k], v, TOLERANCE) for k, v in accuracy.items()},
            **{f"kept_fraction.{k}": (stated["kept_fraction"][k], v, 0.0) for k, v in kept.items()}}

