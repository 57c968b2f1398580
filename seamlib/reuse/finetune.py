"""The one supervised loop: SGD on the weights of a model, all of them or the output layer alone."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..evaluate import Batch, Loader, accuracy, chosen, measuring, pair
from ..masks.masks import apply_masks
from ..masks.norms import restate, without_statistics
from ..plain import sound, takes_one, takes_train_mode, train_mode
from ..records import cache, parameters, runtime
from ..search import checks, lowering

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
        parameters.check_types(self)
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
        parameters.check_choice("schedule", self.schedule, SCHEDULES)
        parameters.check_choice("precision", self.precision, runtime.PRECISIONS)


class TrainingStopped(RuntimeError):
    """The loss is not finite any more; `result` is the model in eval mode after the last good epoch (or None)."""

    def __init__(self, message: str, result: nn.Module | None):
        super().__init__(message)
        self.result = result


def finetune(model: nn.Module, train: Loader, training: Training, val: Iterable[Batch] | None = None, *,
             hold: Mapping[str, Tensor] | None = None, on_epoch: Callable[[dict[str, float]], Any] | None = None,
             checkpoint: Path | str | None = None) -> tuple[nn.Module, History]:
    """Train a copy of `model`; return it in eval mode, with the history (epoch, loss, and accuracy if `val`).

    With `val` the first epoch of highest accuracy on it is returned, without it the last epoch. `model` is unchanged.
    `train` and `val` yield (images [B, ...], labels [B]). Weights without requires_grad stay as they are, and those
    outside the masks `hold` (boolean, by the names of `model`'s parameters) are zero from the first step to the last;
    without it they are free to grow again. Batch norms that a search has left with a scale and a shift alone take the
    statistics of `train` first, so that training begins where the model stands.

    `checkpoint`: a file that holds the state after each epoch; if it is there, training goes on from it and ends with
    the same weights. Whoever gives it also removes it, and sees to it that it is given for the same model and images.
    Raises ValueError if there is nothing to train or the file is no checkpoint of these parameters, TrainingStopped,
    with the epoch and the last good model, if the loss is not finite.
    """
    checks.check_length(train)
    if val is not None:
        checks.first("val", val)
    model = copy.deepcopy(sound(model))
    device = next(model.parameters()).device
    training = dataclasses.replace(training, precision=runtime.precision(training.precision, device))
    apply_masks(model, hold or {})
    held = [(model.get_parameter(name), ~mask.to(device)) for name, mask in (hold or {}).items()]
    trained = [p for p in model.parameters() if p.requires_grad]
    checks.check_precision((name, p) for name, p in model.named_parameters() if p.requires_grad)
    optimiser = _optimiser(model, training)
    rates = [group["lr"] for group in optimiser.param_groups]
    steps, step = training.epochs * len(train), 0
    about = {**dataclasses.asdict(training), "batches": len(train),
             "model": {name: list(p.shape) for name, p in model.named_parameters()},  # an output layer begins anew
             "hold": runtime.digest(hold or {})}
    history: History = []
    best, best_state, good = -1.0, None, None
    tried: _Tried | None = None  # not known before the first batch
    with runtime.seeded(training.seed, device):
        if checkpoint is not None and (stored := cache.checkpoint(checkpoint, "training", about)):
            history, best_state = _restore(stored, model, optimiser, train, device)
            step, good = len(history) * len(train), copy.deepcopy(model.state_dict())
            best = max((e["accuracy"] for e in history if "accuracy" in e), default=best)
        elif norms := without_statistics(model):
            with measuring():
                restate(norms, model.eval(), (x.to(device) for x, _ in map(pair, train)))
        for epoch in range(len(history), training.epochs):
            if _waited(history, training.patience):
                break
            sum_loss, n = torch.zeros((), device=device), 0
            for x, y in checks.counted(map(pair, train), len(train)):
                tried = _tried(model, x.to(device), y.to(device), training.precision) if tried is None else tried
                if n == 0:
                    train_mode(model, tried.whole)
                if epoch == 0:
                    checks.check_labels(y, tried.outputs)
                x, y = x.to(device), y.to(device)
                if training.schedule == "cosine":
                    for group, rate in zip(optimiser.param_groups, rates, strict=True):
                        group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
                step += 1
                if len(y) < tried.least:
                    continue
                with runtime.autocast(device, training.precision):
                    loss = F.cross_entropy(model(x).float(), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                with torch.no_grad():
                    for p, out in held:
                        p.masked_fill_(out, 0.0)
                sum_loss += loss.detach() * len(y)
                n += len(y)
            checks.check_images(n, epoch)
            record = {"epoch": float(epoch), "loss": float(sum_loss) / n}
            model.eval()
            if not math.isfinite(record["loss"]):
                if good is not None:
                    model.load_state_dict(good)
                raise TrainingStopped(f"the loss is {record['loss']} at epoch {epoch}: lower lr, now {training.lr}",
                                      None if good is None else model)
            good = copy.deepcopy(model.state_dict())
            if val is not None:
                record["accuracy"] = accuracy(model, val)
                if record["accuracy"] > best:
                    best, best_state = record["accuracy"], good
            history.append(record)
            if checkpoint is not None:
                _save(checkpoint, about, model, optimiser, train, device, history, best_state)
            if on_epoch is not None:
                on_epoch(record)
    if best_state is not None:
        model.load_state_dict(best_state)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for p in trained:
        p.requires_grad_()
    model.eval()
    return model, history


class _Tried(NamedTuple):
    """What the first batch has said of a model."""

    whole: bool  #: what `takes_train_mode` says
    least: int  #: images that a step takes: two where one would leave batch norm a single number a channel
    outputs: int


def _tried(model: nn.Module, x: Tensor, y: Tensor, precision: str) -> _Tried:
    """Try the first batch before any training, and lay weights out as it allows."""
    model.eval()
    with runtime.seeded(0, x.device), measuring():
        answers = checks.answer(model, x[:2])
        checks.check_logits(answers, type(model).__name__)
        chosen(model, x, y)
    if precision == "bf16":
        checks.check_bf16(model, x[:2])
    lowering.channels_last(model, x[:2])
    whole = takes_train_mode(model, x)
    return _Tried(whole, 1 if takes_one(model, x, whole) else 2, answers.shape[1])


def _optimiser(model: nn.Module, training: Training) -> torch.optim.SGD:
    """SGD on the body at lr and the output layer at lr_output; a body at rate 0 is frozen."""
    own = {name: p for name, p in model.named_parameters() if name.startswith(OUTPUT)}
    if training.lr_output is not None and not own:
        raise ValueError(f"lr_output is {training.lr_output}, but no parameter is called {OUTPUT}*: make the model "
                         "with models.student, or leave lr_output at None")
    body = [p for name, p in model.named_parameters() if name not in own and p.requires_grad]
    if training.lr == 0:
        for p in body:
            p.requires_grad_(False)
    lr_output = training.lr if training.lr_output is None else training.lr_output
    groups = [{"params": [p for p in params if p.requires_grad], "lr": lr}
              for params, lr in ((body, training.lr), (own.values(), lr_output))]
    if not any(group["params"] for group in groups):
        raise ValueError("there is no weight to train: all that have a rate have requires_grad=False; set it to True "
                         "on those that are to learn")
    return torch.optim.SGD([group for group in groups if group["params"]], momentum=training.momentum,
                           weight_decay=training.weight_decay)


def _waited(history: History, patience: int) -> bool:
    """Whether the last `patience` epochs (0: never) have brought no higher accuracy."""
    accuracies = [e["accuracy"] for e in history if "accuracy" in e]
    return 0 < patience < len(accuracies) and max(accuracies[-patience:]) <= max(accuracies[:-patience])


def _save(path: Path | str, about: Mapping[str, Any], model: nn.Module, optimiser: torch.optim.SGD, train: Loader,
          device: torch.device, history: History, best: dict[str, Tensor] | None) -> None:
    """Everything that the epochs to come depend on."""
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best/{k}": v for k, v in (best or {}).items()}
    tensors |= cache.progress(train, device, {"optimiser": optimiser})
    cache.write(path, tensors, {"training": dict(about), "history": history})


def _restore(stored: cache.Stored, model: nn.Module, optimiser: torch.optim.SGD, train: Loader,
             device: torch.device) -> tuple[History, dict[str, Tensor] | None]:
    tensors, values = stored
    model.load_state_dict(cache.part(tensors, "model/"))
    cache.go_on(tensors, train, device, {"optimiser": optimiser})
    return values["history"], cache.part(tensors, "best/") or None
