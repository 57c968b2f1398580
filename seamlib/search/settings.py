"""What a search is told: its parameters, and the course of its rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..records import runtime

SCHEDULES = ("constant", "anneal")


@dataclass(frozen=True)
class Search:
    """Parameters of one search. The defaults are the paper's (ResNet20 on CIFAR-10), in its precision."""

    lr_mask: float = 0.05  #: Adam's rate for the scores, > 0
    lr_head: float = 0.1  #: Adam's rate for the head, > 0
    alpha: float = 1.0  #: weight of the kept fraction in the loss, >= 0
    structure: float = 0.0  #: weight of the share of multiply-adds in the loss, see `Gates`, >= 0; 0: none
    epochs: int = 300  #: passes over the training batches, >= 1
    batch_size: int = 64  #: images a step, >= 1; for whoever makes the batches
    head_only_every: int = 5  #: every n-th epoch, the first included, trains the head alone; 0: never
    target_accuracy: float | None = None  #: in [0, 1], of every series; None: that of `reengineer`'s `targets`
    margin: float = 0.0  #: standard errors above the original that the automatic target asks for under crossfit
    max_removed: float | None = None  #: in [0, 1]; stop at, and take, the first epoch that removed this share
    patience: int = 0  #: epochs below the target before the search gives up, see `waited` (not crossfit); 0: never
    schedule: str = "constant"  #: course of rates and alpha over the search: "constant" or "anneal", see `rates`
    precision: str = "fp32"  #: of training steps: "auto", "fp32" or "bf16", see `records.runtime.precision`
    seed: int = 0  #: of dropout; batches and head have their own

    def __post_init__(self) -> None:
        for name, value, ok, allowed in (
            ("lr_mask", self.lr_mask, self.lr_mask > 0, "above 0"),
            ("lr_head", self.lr_head, self.lr_head > 0, "above 0"),
            ("alpha", self.alpha, self.alpha >= 0, "0 or more"),
            ("structure", self.structure, self.structure >= 0, "0 or more"),
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("head_only_every", self.head_only_every, self.head_only_every >= 0, "0 (never) or more"),
            ("margin", self.margin, math.isfinite(self.margin), "a finite number"),
            ("patience", self.patience, self.patience >= 0, "0 (off) or more"),
            ("target_accuracy", self.target_accuracy, 0 <= (self.target_accuracy or 0) <= 1, "None, or 0 to 1"),
            ("max_removed", self.max_removed, 0 <= (self.max_removed or 0) <= 1, "None, or 0 to 1"),
        ):
            if not ok:
                raise ValueError(f"{name} is {value}: it must be {allowed}")
        runtime.check_choice("schedule", self.schedule, SCHEDULES)
        runtime.check_choice("precision", self.precision, runtime.PRECISIONS)

    def head_only(self, epoch: int) -> bool:
        """Whether this epoch trains the head alone."""
        return self.head_only_every > 0 and epoch % self.head_only_every == 0


def rates(search: Search, done: float) -> tuple[float, float]:
    """Factors of (both learning rates, alpha) when the share `done` in [0, 1) of all steps is behind.

    `constant` (the paper's) leaves all as they are. `anneal` lowers the learning rates to 0 along half a cosine, and
    alpha in a straight line: first weights go, then those that stay settle.
    """
    if search.schedule == "constant":
        return 1.0, 1.0
    return (1 + math.cos(math.pi * done)) / 2, 1 - done
