"""Target problems: which samples of a data set belong to one, their labels, and the original's answer to it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .data import Batches, Source, Split
from .evaluate import Predict, accuracy, one_vs_rest, standard_error

HALVES_SEED = 0  # splits the test set in two; part of the protocol, not a parameter


@dataclass(frozen=True)
class Task:
    """A target problem, its labels 0 .. n_classes - 1, and the test set cut in two halves, `a` and `b`, by class."""

    name: str
    n_classes: int
    train: Split
    test: Split
    halves: Mapping[str, Split]
    original_all: Callable[[Predict], Predict]  #: the source model's answer, choosing among all its outputs
    original_restricted: Callable[[Predict], Predict]  #: its answer when told that only the target's classes can occur


def binary(source: Source, target_class: int, seed: int = 0, shots: int = 0) -> Task:
    """Is an image of class `target_class` (label 1) or not (label 0)?

    All images of the class and as many others, drawn with `seed`, from the training and from the test set alike
    (SeaM, section 4.1). `shots` > 0 keeps that many training images of each label.
    """
    n = len(source.classes)
    if not 0 <= target_class < n:
        raise ValueError(f"target_class is {target_class}: {source.name} has classes 0 to {n - 1}")
    train = _shots(_balanced(source.train, target_class, seed), shots, seed)
    test = _balanced(source.test, target_class, seed)
    return Task(f"binary{target_class}", 2, train, test, _halves(test),
                functools.partial(one_vs_rest, target=target_class, corrected=False),
                functools.partial(one_vs_rest, target=target_class, corrected=True))


def originals(task: Task, predict: Predict, device: torch.device | str = "cpu",
              batch_size: int = 256) -> dict[str, dict[str, float]]:
    """Accuracy of the untouched source model on each half and on the whole test set.

    `{"a" | "b" | "paper": {"all": ..., "restricted": ...}}`, each in [0, 1]; `predict`: the source model in eval mode.
    """
    splits = {**task.halves, "paper": task.test}
    answers = {"all": task.original_all(predict), "restricted": task.original_restricted(predict)}
    return {s: {k: accuracy(answer, Batches(split, batch_size, device)) for k, answer in answers.items()}
            for s, split in splits.items()}


def target_accuracies(task: Task, originals: Mapping[str, Mapping[str, float]], margin: float) -> dict[str, float]:
    """The accuracy that a mask has to reach, for each series of images that chooses an epoch.

    On the whole test set (the paper's protocol): the original's over all outputs. On a half: the higher of that and
    the restricted original's, plus `margin` standard errors of it, at most 1.
    """
    found = {"paper": originals["paper"]["all"]}
    for half, split in task.halves.items():
        best = max(originals[half].values())
        found[half] = min(1.0, best + margin * standard_error(best, len(split)))
    return found


def _balanced(split: Split, target: int, seed: int) -> Split:
    labels = split.labels.numpy()
    own, others = np.flatnonzero(labels == target), np.flatnonzero(labels != target)
    if len(others) < len(own):
        raise ValueError(f"class {target} has {len(own)} images, all others together {len(others)}: a binary problem "
                         "needs at least as many others")
    drawn = np.random.default_rng(seed).permutation(others)[: len(own)]
    index = np.sort(np.concatenate([own, drawn]))
    return Split(split.images[index], torch.from_numpy((labels[index] == target).astype(np.int64)))


def _shots(split: Split, shots: int, seed: int) -> Split:
    counts = np.bincount(split.labels.numpy())
    if shots < 0 or shots > counts.min():
        raise ValueError(f"shots is {shots}: allowed are 0 (all) to {counts.min()}, the training images there are of "
                         "each label")
    if shots == 0:
        return split
    order = np.random.default_rng(seed).permutation(len(split))
    labels = split.labels.numpy()[order]
    return split.select(np.sort(np.concatenate([order[labels == c][:shots] for c in range(len(counts))])))


def _halves(test: Split) -> dict[str, Split]:
    rng, labels = np.random.default_rng(HALVES_SEED), test.labels.numpy()
    parts: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    for c in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == c))
        if len(order) < 2:
            raise ValueError(f"label {c} has {len(order)} test image: crossfit needs at least 2, one for each half")
        parts["a"].append(order[: len(order) // 2])
        parts["b"].append(order[len(order) // 2:])
    return {half: test.select(np.sort(np.concatenate(index))) for half, index in parts.items()}
