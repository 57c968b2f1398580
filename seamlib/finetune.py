"""The one supervised loop: SGD on the weights of a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import runtime
from .evaluate import Batch, Loader, accuracy

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Training:
    """Parameters of supervised training by SGD."""

    lr: float = 0.05  #: learning rate, > 0
    momentum: float = 0.9  #: in [0, 1)
    weight_decay: float = 1e-4  #: >= 0
    epochs: int = 10  #: passes over the training batches, >= 1
    batch_size: int = 64  #: images a step, >= 1; for whoever makes the batches
    schedule: str = "cosine"  #: "constant", or "cosine" from lr to 0 over all steps
    precision: str = "fp32"  #: of the training steps: "fp32" or "bf16"
    seed: int = 0  #: of dropout; batches and first weights have their own

    def __post_init__(self) -> None:
        for name, value, ok, allowed in (
            ("lr", self.lr, self.lr > 0, "above 0"),
            ("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more"),
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "1 or more"),
        ):
            if not ok:
                raise ValueError(f"{name} is {value}: it must be {allowed}")
        runtime.check_choice("schedule", self.schedule, SCHEDULES)
        runtime.check_choice("precision", self.precision, runtime.PRECISIONS)


class TrainingStopped(RuntimeError):
    """The loss is not finite any more; `result` is the model in eval mode after the last good epoch (or None)."""

    def __init__(self, message: str, result: nn.Module | None):
        super().__init__(message)
        self.result = result


def finetune(model: nn.Module, train: Loader, training: Training, val: Iterable[Batch] | None = None, *,
             on_epoch: Callable[[dict[str, float]], Any] | None = None) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train a copy of `model`; return it in eval mode, with the history (epoch, loss, and accuracy if `val`).

    With `val` the first epoch of highest accuracy on it is returned, without it the last epoch. `model` is unchanged.
    `train` and `val` yield (images [B, ...], labels [B]). Raises TrainingStopped, with the epoch and the last good
    model, if the loss is not finite.
    """
    device = next(model.parameters()).device
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(model.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay)
    steps, step = training.epochs * len(train), 0
    history: list[dict[str, float]] = []
    best, best_state, good = -1.0, None, None
    with runtime.seeded(training.seed, device):
        for epoch in range(training.epochs):
            model.train()
            sum_loss, n = torch.zeros((), device=device), 0
            for x, y in train:
                if training.schedule == "cosine":
                    optimiser.param_groups[0]["lr"] = training.lr * (1 + math.cos(math.pi * step / steps)) / 2
                with runtime.autocast(device, training.precision):
                    loss = F.cross_entropy(model(x).float(), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                sum_loss += loss.detach() * len(y)
                n, step = n + len(y), step + 1
            record = {"epoch": float(epoch), "loss": float(sum_loss) / n}
            if not math.isfinite(record["loss"]):
                problem = f"the loss is {record['loss']} at epoch {epoch}: lower lr, now {training.lr}"
                raise TrainingStopped(problem, good)
            model.eval()
            good = copy.deepcopy(model)
            if val is not None:
                record["accuracy"] = accuracy(model, val)
                if record["accuracy"] > best:
                    best, best_state = record["accuracy"], copy.deepcopy(model.state_dict())
            history.append(record)
            if on_epoch is not None:
                on_epoch(record)
    if best_state is not None:
        model.load_state_dict(best_state)
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval(), history
