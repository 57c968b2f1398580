"""Binary re-engineered models put together: each says how sure it is of its class, and the surest wins."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .evaluate import count_right
from .masks import overlap
from .masks.masks import Masks, kept_fraction
from .problems import data, tasks
from .records.records import Record
from .search.found import Epoch, Reengineered
from .ship import cost


class Together(nn.Module):
    """Models that answer [other, class] to images [B, ...], as one that answers [B, n], a column a model.

    A column is the log-probability that its model gives to its class, so the arg max is the class whose model is
    surest. Of untouched models, each told by `evaluate.OneVsRest` what it is asked, that is the restricted original:
    both order the classes by their logits.
    """

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        if not models:
            raise ValueError("there is no model to put together: give one for each class")
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([model(x).float().log_softmax(1)[:, 1] for model in self.models], 1)


def of_classes(found: Sequence[Record], classes: Sequence[int], about: Mapping[str, Any]) -> list[Record]:
    """The binary record of each of `classes`, in this order; `about`: the parameters that all of them must have.

    Raises ValueError for a class without a record or with two, and for records of other models or data, of several
    sources, or without a point of the same alpha on each front.
    """
    by_class: dict[int, Record] = {}
    for record in found:
        if record.experiment != "direct_binary":
            raise ValueError(f"{record.stem} is no binary problem: give records of direct_binary")
        if record.parameters["target_class"] in by_class:
            raise ValueError(f"class {record.parameters['target_class']} has two records, "
                             f"{by_class[record.parameters['target_class']].stem} and {record.stem}: give one of each")
        by_class[record.parameters["target_class"]] = record
    if missing := [c for c in classes if c not in by_class]:
        raise ValueError(f"class {missing[0]} has no record among those given, which are of the classes "
                         f"{', '.join(map(str, sorted(by_class)))}: run direct_binary with a path for it, or leave it "
                         "out")
    chosen = [by_class[c] for c in classes]
    for record in chosen:
        for name, value in about.items():
            if record.parameters[name] != value:
                raise ValueError(f"{record.stem} has {name} {record.parameters[name]!r}, not {value!r}: models that "
                                 "are put together are of one source")
        for what in ("weights", "data"):
            if record.sha256[what] != chosen[0].sha256[what]:
                raise ValueError(f"{record.stem} was made with {what} {record.sha256[what][:12]}..., {chosen[0].stem} "
                                 f"with {chosen[0].sha256[what][:12]}...: models that are put together are of one "
                                 "source")
    if not common([record.results.get("front", []) for record in chosen]):
        raise ValueError(f"the records of classes {', '.join(map(str, classes))} have no point of a front in common: "
                         "search all of them with one path")
    return chosen


def common(fronts: Sequence[Sequence[Epoch]]) -> list[float]:
    """The alphas at which each of `fronts` has a point, rising."""
    return sorted(set.intersection(*({point["alpha"] for point in front} for front in fronts)))


def union(masks: Sequence[Masks]) -> Masks:
    """What the masks keep between them: the weights that must be stored. They are of one model."""
    return {name: torch.stack([mask[name] for mask in masks]).any(0) for name in masks[0]}


def unions(parts: Sequence[Reengineered]) -> dict[str, dict[str, list[float]]]:
    """For each alpha in common, how the `union` grows: {"found", "chance"}, each as `overlap.grown` has it."""
    found = {f"{alpha:g}": overlap.wanted([part.picks[f"{alpha:g}"].masks for part in parts])
             for alpha in common([part.front for part in parts])}
    return {alpha: {"found": overlap.grown(of.tolist()), "chance": overlap.grown(chance.tolist())}
            for alpha, (of, chance) in found.items()}


def front(parts: Sequence[Reengineered], task: tasks.Task, device: torch.device | str = "cpu",
          on_point: Callable[[Epoch], None] | None = None) -> list[Epoch]:
    """A point for each alpha that the fronts of `parts` have in common: the model of each class of `task` at it.

    `accuracy`, `accuracy_a`, `accuracy_b` of `Together`; `kept`: share of the weights that the masks keep between them;
    `each`: what a single one keeps, on average; `own`: scales, shifts and heads, which nobody shares, as a share of the
    weights; `multiply_adds` of an image, which goes through every model; `shared` and `shared_by_chance` of the masks
    of two classes, averaged over the pairs (see `overlap.jaccard`). `on_point` is told each point.
    """
    points = []
    for alpha in common([part.front for part in parts]):
        picks = [part.picks[f"{alpha:g}"] for part in parts]
        model = Together([part.module(f"{alpha:g}") for part in parts]).eval()
        counts = cost.flops(model, data.first(task.test, 1))
        model.to(device)
        right = {half: count_right(model, data.batches(split, 64, device)) for half, split in task.halves.items()}
        pairs = [overlap.jaccard(a.masks, b.masks) for a, b in itertools.combinations(picks, 2)]
        own = sum(t.numel() for pick in picks for t in (*pick.norms.values(), *pick.head.values()))
        total = sum(m.numel() for m in picks[0].masks.values())
        points.append({
            "alpha": alpha, "kept": kept_fraction(union([pick.masks for pick in picks])),
            "each": statistics.fmean(kept_fraction(pick.masks) for pick in picks), "own": own / total,
            "multiply_adds": counts.sparse,
            "shared": statistics.fmean(s for s, _ in pairs), "shared_by_chance": statistics.fmean(c for _, c in pairs),
            "accuracy": sum(r for r, _ in right.values()) / sum(n for _, n in right.values()),
            **{f"accuracy_{half}": r / n for half, (r, n) in right.items()}})
        if on_point is not None:
            on_point(points[-1])
    return points
