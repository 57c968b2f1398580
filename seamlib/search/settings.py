"""What a search is told: its parameters, and the course of its rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from ..records import parameters, runtime

SCHEDULES = ("constant", "anneal")
NORMS = ("frozen", "statistics", "affine")
LABELS = ("hard", "soft")


@dataclass(frozen=True)
class Search:
    """Parameters of one search. The defaults are the paper's (ResNet20 on CIFAR-10), in its precision."""

    lr_mask: float = 0.05  #: Adam's rate for the scores, > 0
    lr_head: float = 0.1  #: Adam's rate for the head, > 0
    alpha: float = 1.0  #: weight of the kept fraction in the loss, >= 0
    structure: float = 0.0  #: share of what channels cost, see `Gates.cost`, that is to go, in [0, 1); 0: none
    epochs: int = 300  #: passes over the training batches, >= 1
    batch_size: int = 64  #: images a step, >= 1; for whoever makes the batches
    head_only_every: int = 5  #: every n-th epoch, the first included, trains the head alone; 0: never
    target_accuracy: float | None = None  #: in [0, 1], of every series; None: that of `reengineer`'s `targets`
    margin: float = 0.0  #: standard errors above the original that the automatic target asks for under crossfit
    max_removed: float | None = None  #: in [0, 1]; stop at, and take, the first epoch that removed this share
    patience: int = 0  #: epochs below the target before the search gives up, see `waited` (not crossfit); 0: never
    schedule: str = "constant"  #: course of rates and alpha over each stage: "constant" or "anneal", see `rates`
    precision: str = "fp32"  #: of training steps: "auto", "fp32" or "bf16", see `records.runtime.precision`
    seed: int = 0  #: of dropout; batches and head have their own
    path: tuple[float, ...] | None = None  #: rising alphas, one a stage of the epochs, instead of `alpha`; None: none
    norms: str = "frozen"  #: "frozen", "statistics" (those of the masked model) or "affine" (scale, shift learnt too)
    lr_norms: float = 0.01  #: Adam's rate for scales and shifts under norms "affine", > 0
    labels: str = "hard"  #: those of the images, or "soft": what the untouched model says of them, see `Run.losses`
    temperature: float = 2.0  #: by which logits are divided under soft labels, > 0

    def __post_init__(self) -> None:
        parameters.check_types(self)
        for name, value, ok, allowed in (
            ("lr_mask", self.lr_mask, self.lr_mask > 0, "above 0"),
            ("lr_head", self.lr_head, self.lr_head > 0, "above 0"),
            ("alpha", self.alpha, self.alpha >= 0, "0 or more"),
            ("structure", self.structure, 0 <= self.structure < 1, "0 or more and below 1"),
            ("lr_norms", self.lr_norms, self.lr_norms > 0, "above 0"),
            ("temperature", self.temperature, self.temperature > 0, "above 0"),
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("head_only_every", self.head_only_every, self.head_only_every >= 0, "0 (never) or more"),
            ("patience", self.patience, self.patience >= 0, "0 (off) or more"),
            ("target_accuracy", self.target_accuracy, 0 <= (self.target_accuracy or 0) <= 1, "None, or 0 to 1"),
            ("max_removed", self.max_removed, 0 <= (self.max_removed or 0) <= 1, "None, or 0 to 1"),
        ):
            if not ok:
                raise ValueError(f"{name} is {value}: it must be {allowed}")
        if self.path is not None:
            self._check_path()
        parameters.check_choice("schedule", self.schedule, SCHEDULES)
        parameters.check_choice("norms", self.norms, NORMS)
        parameters.check_choice("labels", self.labels, LABELS)
        parameters.check_choice("precision", self.precision, runtime.PRECISIONS)

    def _check_path(self) -> None:
        path = self.path or ()
        if not path or path[0] < 0 or not all(a < b for a, b in pairwise(path)):
            raise ValueError(f"path is {path}: it must be one or more finite alphas from 0 on, each above the last")
        if len({f"{alpha:g}" for alpha in path}) < len(path):
            raise ValueError(f"path is {path}: two of its alphas are alike in six digits, by which they are called")
        if len(path) > self.epochs:
            raise ValueError(f"path has {len(path)} stages and epochs is {self.epochs}: a stage needs an epoch at "
                             "least; raise epochs, or leave stages out")
        if self.patience or self.max_removed is not None:
            raise ValueError("path is given with patience or max_removed: a path goes to its end; leave these out")

    @property
    def stages(self) -> list[tuple[float, int, int]]:
        """(alpha, first epoch, epoch after the last) of each stage; all of as many epochs, the first get the rest."""
        path = self.path or (self.alpha,)
        each, rest = divmod(self.epochs, len(path))
        starts = [i * each + min(i, rest) for i in range(len(path) + 1)]
        return list(zip(path, starts, starts[1:], strict=False))

    def head_only(self, epoch: int) -> bool:
        """Whether this epoch trains the head alone."""
        return self.head_only_every > 0 and epoch % self.head_only_every == 0


def rates(search: Search, epochs: float) -> tuple[float, float, float]:
    """(Factor of all learning rates, alpha, share of the channels' cost that may be left) when so many `epochs`, in
    [0, search.epochs), are behind.

    `constant` (the paper's) leaves all as they are. `anneal` lowers the learning rates to 0 along half a cosine, and
    alpha in a straight line, in each stage: first weights go, then those that stay settle. Under either each of K
    stages takes the same factor of the channels' cost; they go between 10 and 70% of a stage, ever fewer (a cubic: Zhu
    and Gupta, 2017).
    """
    stages = search.stages
    k, (alpha, first, after) = next(stage for stage in reversed([*enumerate(stages)]) if epochs >= stage[1][1])
    done = (epochs - first) / (after - first)
    before, wanted = ((1 - search.structure) ** (n / len(stages)) for n in (k, k + 1))
    left = wanted + (before - wanted) * (1 - min(1.0, max(0.0, (done - 0.1) / 0.6))) ** 3
    if search.schedule == "constant":
        return 1.0, alpha, left
    return (1 + math.cos(math.pi * done)) / 2, alpha * (1 - done), left


def path_of(text: str) -> tuple[float, ...] | None:
    """A path as a notebook's parameter has it: alphas separated by commas; None if empty. Raises ValueError."""
    try:
        return tuple(float(alpha) for alpha in text.split(",")) if text else None
    except ValueError:
        raise ValueError(f"path is {text!r}: it must be alphas separated by commas, such as 2,5,10, or empty") from None
