"""A re-engineered model back from its record: problem, source model, masks and heads."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

from torch import nn

from . import data, masks, models, runtime, tasks
from .records import Record
from .search import Pick, Reengineered

CHOICES = ("target_class", "target_superclass_idx", "classes", "n_classes", "seed", "shots")  # they make the problem
_load = functools.lru_cache(1)(data.load)  # many records of one data set: read it once


class Restored(NamedTuple):
    """What a direct-reuse record is about; all on the CPU."""

    source: data.Source
    model: nn.Module  #: the untouched source model
    task: tasks.Task
    found: Reengineered  #: its picks, without history


def source_model(record: Record, root: Path | str) -> tuple[data.Source, nn.Module]:
    """Data set and source model of `record`, whose paths are relative to `root`.

    Raises FileNotFoundError where they are not at hand, ValueError where they are not those of the record.
    """
    p, root = record.parameters, Path(root)
    name = f"{p['model']}-{p['dataset']}"
    source = _load(p["dataset"], root / p["data"])
    given = root / p.get("weights", "")
    try:  # any file will do: the digest says whether its weights are the same
        model = models.pretrained(name, root / p["data"], given if given.is_file() else "",
                                  trained=(root / p["runs"], root / "book/results"), n_classes=len(source.classes))
    except OSError as e:
        raise FileNotFoundError(f"the weights of {name} are not at hand ({e})") from e
    for what, found in (("weights", runtime.digest(model.state_dict())), ("data", source.digest)):
        if found != record.sha256[what]:
            raise ValueError(f"{record.stem} was made with {what} {record.sha256[what][:12]}..., here are "
                             f"{found[:12]}...: no number can be compared")
    return source, model


def restore(record: Record, mask_file: Path | str, root: Path | str) -> Restored:
    """The re-engineered model of a direct_binary or direct_multiclass record, from its masks and its source model.

    Raises FileNotFoundError where weights, data or masks are not at hand, ValueError where they are not those of the
    record.
    """
    source, model = source_model(record, root)
    task = tasks.problem(source, **{k: v for k, v in record.parameters.items() if k in CHOICES})
    stored = masks.load_masks(mask_file, model)
    if stored.digest != record.sha256["masks"]:
        raise ValueError(f"{mask_file} holds masks {stored.digest[:12]}..., the record was made with "
                         f"{record.sha256['masks'][:12]}...")
    picks = {name: Pick(record.results["epoch"][name], mask, stored.heads[name]) for name, mask in stored.masks.items()}
    head = models.new_head(len(source.classes), task.n_classes)
    return Restored(source, model, task, Reengineered(model, head, [], picks))
