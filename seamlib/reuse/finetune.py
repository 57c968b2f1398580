"""The one supervised loop: SGD on the weights of a model, all of them or the output layer alone."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..evaluate import Batch, Loader, accuracy
from ..records import cache, runtime

SCHEDULES = ("constant", "cosine")
OUTPUT = "output."  # parameters of the output layer begin with it, see models.student
History = list[dict[str, float]]


@dataclass(frozen=True)
class Training:
    """Parameters of supervised training by SGD."""

    lr: float = 0.05  #: learning rate, >= 0; 0: only the output layer learns, though batch norm's statistics adapt
    lr_output: float | None = None  #: of the output layer (parameters `output.*`), > 0; None: lr
    momentum: float = 0.9  #: in [0, 1)
    weight_decay: float = 1e-4  #: >= 0
    epochs: int = 10  #: passes over the training batches, >= 1
    batch_size: int = 64  #: images a step, >= 1; for whoever makes the batches
    schedule: str = "cosine"  #: "constant", or "cosine" from the rates to 0 over all steps
    patience: int = 0  #: epochs without a better accuracy before training stops; 0: never
    precision: str = "fp32"  #: of the training steps: "auto", "fp32" or "bf16", see `records.runtime.precision`
    seed: int = 0  #: of dropout; batches and first weights have their own

    def __post_init__(self) -> None:
        alone = self.lr_output is not None and self.lr_output > 0
        for name, value, ok, allowed in (
            ("lr", self.lr, self.lr > 0 or (self.lr == 0 and alone), "above 0, or 0 with lr_output above 0"),
            ("lr_output", self.lr_output, self.lr_output is None or alone, "above 0, or None"),
            ("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more"),
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("patience", self.patience, self.patience >= 0, "0 (never) or more"),
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
             on_epoch: Callable[[dict[str, float]], Any] | None = None,
             checkpoint: Path | str | None = None) -> tuple[nn.Module, History]:
    """Train a copy of `model`; return it in eval mode, with the history (epoch, loss, and accuracy if `val`).

    With `val` the first epoch of highest accuracy on it is returned, without it the last epoch. `model` is unchanged.
    `train` and `val` yield (images [B, ...], labels [B]). `checkpoint`: a file that holds the state after each epoch;
    if it is there, training goes on from it and ends with the same weights. Whoever gives it also removes it, and sees
    to it that it is given for the same model and batches. Raises ValueError if there is nothing to train or the
    checkpoint is of other parameters, TrainingStopped, with the epoch and the last good model, if the loss is not
    finite.
    """
    device = next(model.parameters()).device
    training = dataclasses.replace(training, precision=runtime.precision(training.precision, device))
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = _optimiser(model, training)
    rates = [group["lr"] for group in optimiser.param_groups]
    steps, step = training.epochs * len(train), 0
    history: History = []
    best, best_state, good = -1.0, None, None
    with runtime.seeded(training.seed, device):
        if checkpoint is not None and (stored := cache.read(checkpoint)):
            history, best_state = _restore(stored, training, model, optimiser, train, device)
            step, good = len(history) * len(train), copy.deepcopy(model).eval()
            best = max((e["accuracy"] for e in history if "accuracy" in e), default=best)
        for epoch in range(len(history), training.epochs):
            if _waited(history, training.patience):
                break
            model.train()
            sum_loss, n = torch.zeros((), device=device), 0
            for x, y in train:
                if training.schedule == "cosine":
                    for group, rate in zip(optimiser.param_groups, rates, strict=True):
                        group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
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
            if checkpoint is not None:
                _save(checkpoint, training, model, optimiser, train, device, history, best_state)
            if on_epoch is not None:
                on_epoch(record)
    if best_state is not None:
        model.load_state_dict(best_state)
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.requires_grad_(True).eval(), history


def _optimiser(model: nn.Module, training: Training) -> torch.optim.SGD:
    """SGD on the body at lr and the output layer at lr_output; a body at rate 0 is frozen."""
    own = {name: p for name, p in model.named_parameters() if name.startswith(OUTPUT)}
    if training.lr_output is not None and not own:
        raise ValueError(f"lr_output is {training.lr_output}, but no parameter is called {OUTPUT}*: make the model "
                         "with models.student, or leave lr_output at None")
    body = [p for name, p in model.named_parameters() if name not in own]
    for p in body:
        p.requires_grad_(training.lr > 0)
    lr_output = training.lr if training.lr_output is None else training.lr_output
    groups = [{"params": body, "lr": training.lr}] if training.lr > 0 else []
    groups += [{"params": list(own.values()), "lr": lr_output}] if own else []
    return torch.optim.SGD(groups, momentum=training.momentum, weight_decay=training.weight_decay)


def _waited(history: History, patience: int) -> bool:
    """Whether the last `patience` epochs (0: never) have brought no higher accuracy."""
    accuracies = [e["accuracy"] for e in history if "accuracy" in e]
    return 0 < patience < len(accuracies) and max(accuracies[-patience:]) <= max(accuracies[:-patience])


def _save(path: Path | str, training: Training, model: nn.Module, optimiser: torch.optim.SGD, train: Loader,
          device: torch.device, history: History, best: dict[str, Tensor] | None) -> None:
    """Everything that the epochs to come depend on."""
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best/{k}": v for k, v in (best or {}).items()}
    tensors |= cache.progress(train, device, {"optimiser": optimiser})
    cache.write(path, tensors, {"training": dataclasses.asdict(training), "history": history})


def _restore(stored: cache.Stored, training: Training, model: nn.Module, optimiser: torch.optim.SGD, train: Loader,
             device: torch.device) -> tuple[History, dict[str, Tensor] | None]:
    tensors, values = stored
    if values["training"] != dataclasses.asdict(training):
        raise ValueError("the checkpoint was made with other parameters: remove it, or give those parameters")
    model.load_state_dict(cache.part(tensors, "model/"))
    cache.go_on(tensors, train, device, {"optimiser": optimiser})
    return values["history"], cache.part(tensors, "best/") or None
