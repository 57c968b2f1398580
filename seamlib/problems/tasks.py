"""Target problems: which samples of a data set belong to one, their labels, and the original's answer to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..evaluate import (
    AmongAll,
    ArgMaxOrNot,
    OneVsRest,
    Predict,
    Restrict,
    RestrictedHead,
    accuracy,
    standard_error,
    then,
)
from ..records import parameters
from .data import Files, Samples, Source, batches
from .superclasses import groups

HALVES_SEED = 0  # splits the test set in two; part of the protocol, not a parameter
OTHERS = ("once", "anew")  # when a binary problem's images of other classes are drawn: for all passes, or for each
HOLDOUT, HOLDOUT_SEED = 0.1, 0  # share of each class's training images that chooses, and what draws it; likewise


@dataclass(frozen=True)
class Task:
    """A target problem, its labels 0 .. n_classes - 1, and the test set cut in two halves, `a` and `b`, by class."""

    name: str
    n_classes: int
    train: Samples
    test: Samples
    halves: Mapping[str, Samples]
    among_all: nn.Module  #: logits of the source model -> its answer, choosing among all its outputs
    restricted: nn.Module  #: the same -> its answer when told that only the target's classes can occur
    classes: tuple[int, ...] = ()  #: multi-class: the source model's class number of each label

    def original_all(self, predict: Predict) -> nn.Module:
        """The answer of the source model `predict`, choosing among all its outputs."""
        return then(predict, copy.deepcopy(self.among_all))

    def original_restricted(self, predict: Predict) -> nn.Module:
        """The answer of the source model `predict` when told that only the target's classes can occur."""
        return then(predict, copy.deepcopy(self.restricted))

    def head(self) -> nn.Module:
        """A head that begins as the restricted original."""
        return RestrictedHead(copy.deepcopy(self.restricted), self.n_classes)


@dataclass(frozen=True)
class Transfer:
    """All classes of a data set as the target of indirect reuse. `val` chooses epochs, `test` is only reported."""

    name: str
    n_classes: int
    train: Samples
    val: Samples
    test: Samples


def transfer(source: Source, seed: int = 0, shots: int = 0, protocol: str = "holdout") -> Transfer:
    """The classes of `source`, as they are numbered, for a model that was trained on others.

    `shots` > 0 keeps that many training images of each class, drawn with `seed`. `protocol` "holdout": a tenth of the
    training images of each class, always the same, chooses; "paper": the test set does, and all others train. Raises
    ValueError for another protocol, more shots than there are, or a class too small to hold one out.
    """
    parameters.check_choice("protocol", protocol, ("holdout", "paper"))
    train = _shots(source.train, shots, seed)
    if protocol == "paper":
        return Transfer(source.name, len(source.classes), train, source.test, source.test)
    rng, labels = np.random.default_rng(HOLDOUT_SEED), train.labels.numpy()
    out = np.zeros(len(labels), bool)
    for c in range(len(source.classes)):
        of_class = np.flatnonzero(labels == c)
        if len(of_class) < 2:
            raise ValueError(f"class {source.classes[c]!r} has {len(of_class)} training images: "
                             "holdout needs at least 2")
        out[rng.permutation(of_class)[:max(1, round(HOLDOUT * len(of_class)))]] = True
    return Transfer(source.name, len(source.classes), train.select(~out), train.select(out), source.test)


def binary(source: Source, target_class: int, seed: int = 0, shots: int = 0, others: str = "once") -> Task:
    """Is an image of class `target_class` (label 1) or not (label 0)?

    All images of the class and as many others, drawn with `seed`, from the training and from the test set alike
    (SeaM, section 4.1). `shots` > 0 keeps that many training images of each label. `others` "anew": `train` holds
    all others, for batches that are `balanced`; `shots` then keeps that many of the class alone.
    """
    check_class(source.name, source.classes, target_class)
    _present(source, [target_class])
    parameters.check_choice("others", others, OTHERS)
    train = _balanced(source.train, target_class, seed, all_others=others == "anew")
    train = _shots(train, shots, seed, whole=(0,) if others == "anew" else ())
    test = _balanced(source.test, target_class, seed)
    return Task(f"binary{target_class}", 2, train, test, _halves(test),
                ArgMaxOrNot(target_class), OneVsRest(target_class))


def multiclass(source: Source, classes: Sequence[int], seed: int = 0, shots: int = 0, name: str = "") -> Task:
    """Which of `classes` is it? Labels 0, 1, ... in the order given; all images of these classes and no others.

    `classes`: at least two class numbers of `source`, none twice. `shots` > 0 keeps that many training images of each,
    drawn with `seed`. `name`: of the task; empty: made of the numbers. (SeaM, section 4.1)
    """
    _several(source.name, source.classes, classes)
    _present(source, classes)
    test = _relabelled(source.test, classes)
    return Task(name or "classes" + "_".join(map(str, classes)), len(classes),
                _shots(_relabelled(source.train, classes), shots, seed), test, _halves(test),
                AmongAll(classes), Restrict(classes), tuple(classes))


def superclass(dataset: str, index: int) -> tuple[str, tuple[str, ...]]:
    """(name, names of its classes) of superclass `index` of `cifar100` (0 to 19) or `imagenet` (0 to 66).

    CIFAR-100's are its own (Krizhevsky 2009), in order of name; ImageNet's (classes are WordNet ids) are those of
    github.com/noameshed/novelty-detection in the order of SeaM. Three of them hold a single class: ValueError.
    """
    known = groups(dataset)
    if not known:
        raise ValueError(f"{dataset} has no superclasses: those of cifar100, imagenet and tinyimagenet are known; "
                         "give classes or n_classes")
    if not 0 <= index < len(known):
        raise ValueError(f"target_superclass_idx is {index}: {dataset} has superclasses 0 to {len(known) - 1}")
    name, classes = known[index]
    if len(classes) < 2:
        single = ", ".join(f"{i} ({n})" for i, (n, c) in enumerate(known) if len(c) < 2)
        held = "a single class" if classes else "no class"
        raise ValueError(f"superclass {index} ({name}) holds {held}, nothing to tell apart; so do of "
                         f"{dataset}: {single}; the other {sum(len(c) > 1 for _, c in known)} can be run")
    return name, classes


def problem(source: Source, *, target_class: int = -1, target_superclass_idx: int = -1, classes: str = "",
            n_classes: int = 0, seed: int = 0, shots: int = 0, others: str = "once") -> Task:
    """The target problem that a notebook's parameters name: exactly one of the first four must be given.

    `target_class` (0 or more): binary. `target_superclass_idx` (0 or more): a superclass of CIFAR-100 or ImageNet.
    `classes`: numbers or names separated by commas. `n_classes` (2 or more): so many classes, drawn with `seed`.
    `others`: of a binary problem, see `binary`.
    """
    name, numbers = chosen(source.name, source.classes, target_class=target_class, classes=classes, seed=seed,
                           target_superclass_idx=target_superclass_idx, n_classes=n_classes)
    if target_class >= 0:
        return binary(source, target_class, seed, shots, others)
    return multiclass(source, numbers, seed, shots, name)


def chosen(dataset: str, names: Sequence[str], *, target_class: int = -1, target_superclass_idx: int = -1,
           classes: str = "", n_classes: int = 0, seed: int = 0) -> tuple[str, list[int]]:
    """(Name, class numbers) of the problem that `problem` makes of these; `names`: of all classes of `dataset`.

    No image is needed, so that a wrong choice is refused, by ValueError, before any is read.
    """
    given = {"target_class": target_class >= 0, "target_superclass_idx": target_superclass_idx >= 0,
             "classes": bool(classes), "n_classes": n_classes > 0}
    if sum(given.values()) != 1:
        raise ValueError(f"given are {', '.join(k for k, v in given.items() if v) or 'none'} of {', '.join(given)}: "
                         "give exactly one, and leave the others at -1, empty or 0")
    if target_class >= 0:
        check_class(dataset, names, target_class)
        return f"binary{target_class}", [target_class]
    if target_superclass_idx >= 0:
        _, members = superclass(dataset, target_superclass_idx)
        return f"superclass{target_superclass_idx}", [_number(dataset, names, c) for c in members]
    if classes:
        numbers = [_number(dataset, names, c.strip()) for c in classes.split(",")]
        _several(dataset, names, numbers)
        return "", numbers
    if not 2 <= n_classes <= len(names):
        raise ValueError(f"n_classes is {n_classes}: a random group of {dataset} has 2 to {len(names)}")
    drawn = np.random.default_rng(seed).permutation(len(names))[:n_classes]
    return f"random{n_classes}_seed{seed}", drawn.tolist()


def check_class(dataset: str, names: Sequence[str], target_class: int) -> None:
    """ValueError unless `target_class` is the number of one of the classes of `dataset`, called `names`."""
    if not 0 <= target_class < len(names):
        raise ValueError(f"target_class is {target_class}: {dataset} has classes 0 to {len(names) - 1}")


def _several(dataset: str, names: Sequence[str], classes: Sequence[int]) -> None:
    """ValueError unless `classes` are two or more of `dataset`, none twice."""
    if len(classes) < 2:
        raise ValueError(f"classes are {list(classes)}: a multi-class problem needs at least two")
    for c in classes:
        if not 0 <= c < len(names):
            raise ValueError(f"class {c} is unknown: {dataset} has classes 0 to {len(names) - 1}")
        if list(classes).count(c) > 1:
            raise ValueError(f"class {c} is listed {list(classes).count(c)} times: list each class once")


def originals(task: Task, predict: Predict, device: torch.device | str = "cpu",
              batch_size: int = 256) -> dict[str, dict[str, float]]:
    """Accuracy of the untouched source model on each half and on the whole test set.

    `{"a" | "b" | "paper": {"all": ..., "restricted": ...}}`, each in [0, 1]; `predict`: the source model in eval mode.
    """
    splits = {**task.halves, "paper": task.test}
    answers = {"all": task.original_all(predict), "restricted": task.original_restricted(predict)}
    return {s: {k: accuracy(answer, batches(split, batch_size, device)) for k, answer in answers.items()}
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


def _present(source: Source, classes: Sequence[int]) -> None:
    """ValueError unless there are training and test images of each of `classes`: of ImageNet one may hold a part."""
    for part, split in (("training", source.train), ("test", source.test)):
        counts = torch.bincount(split.labels, minlength=len(source.classes))
        for c in classes:
            if counts[c] == 0:
                where = f" in {Path(split.paths[0]).parents[1]}" if isinstance(split, Files) else ""
                raise ValueError(f"{source.name}: class {source.classes[c]} has no {part} image{where}: add its "
                                 "folder, or choose a problem without it")


def _balanced(split: Samples, target: int, seed: int, all_others: bool = False) -> Samples:
    labels = split.labels.numpy()
    own, others = np.flatnonzero(labels == target), np.flatnonzero(labels != target)
    if len(others) < len(own):
        raise ValueError(f"class {target} has {len(own)} images, all others together {len(others)}: a binary problem "
                         "needs at least as many others")
    drawn = others if all_others else np.random.default_rng(seed).permutation(others)[: len(own)]
    index = np.sort(np.concatenate([own, drawn]))
    return split.select(index, (labels[index] == target).astype(np.int64))


def _relabelled(split: Samples, classes: Sequence[int]) -> Samples:
    labels = split.labels.numpy()
    index = [np.flatnonzero(labels == c) for c in classes]
    return split.select(np.concatenate(index), np.repeat(np.arange(len(classes)), [len(i) for i in index]))


def _number(dataset: str, names: Sequence[str], text: str) -> int:
    if text in names:
        return list(names).index(text)
    if text.lstrip("-").isdecimal():
        return int(text)
    raise ValueError(f"class {text!r} is unknown to {dataset}: allowed are numbers 0 to {len(names) - 1} "
                     f"and names such as {', '.join(names[:3])}")


def _shots(split: Samples, shots: int, seed: int, whole: Sequence[int] = ()) -> Samples:
    """So many images of each label, and all of the labels in `whole`; 0: all of each."""
    counts = np.bincount(split.labels.numpy())
    if shots < 0 or shots > counts.min():
        raise ValueError(f"shots is {shots}: allowed are 0 (all) to {counts.min()}, the training images there are of "
                         "each label")
    if shots == 0:
        return split
    order = np.random.default_rng(seed).permutation(len(split))
    labels = split.labels.numpy()[order]
    return split.select(np.sort(np.concatenate([
        order[labels == c][:None if c in whole else shots] for c in range(len(counts))])))


def _halves(test: Samples) -> dict[str, Samples]:
    rng, labels = np.random.default_rng(HALVES_SEED), test.labels.numpy()
    parts: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    for c in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == c))
        if len(order) < 2:
            raise ValueError(f"label {c} has {len(order)} test image: crossfit needs at least 2, one for each half")
        parts["a"].append(order[: len(order) // 2])
        parts["b"].append(order[len(order) // 2:])
    return {half: test.select(np.sort(np.concatenate(index))) for half, index in parts.items()}
