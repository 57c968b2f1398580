"""The published groups of classes: 20 of CIFAR-100 (Krizhevsky 2009), 67 of ImageNet in the order of SeaM.

Those of `tinyimagenet` are ImageNet's, with the classes alone that it has.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources


@functools.lru_cache
def groups(dataset: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(name, names of its classes) of each superclass of `dataset`, in order of their numbers; () if it has none."""
    with (importlib.resources.files(__package__) / "superclasses.csv").open() as f:
        return tuple((row["name"], tuple(row["classes"].split())) for row in csv.DictReader(f)
                     if row["dataset"] == dataset)


def classes(dataset: str) -> tuple[str, ...]:
    """All classes of `dataset` in official order, that of names; of `tinyimagenet` and `drawn`, ImageNet's."""
    of = "imagenet" if dataset in ("tinyimagenet", "drawn") else dataset
    return tuple(sorted(c for _, members in groups(of) for c in members))
