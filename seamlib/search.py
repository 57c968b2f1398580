"""The search: which weights of a trained model does a smaller problem need? (SeaM, section 3)"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import cache, capture, runtime
from .evaluate import Batch, Loader, Predict, count_right, measuring
from .fold import fold_norms
from .lowering import lower, product_gradients
from .masks import (
    NORMS,
    Masks,
    apply_masks,
    binarize,
    kept_fraction,
    load_masks,
    masked_call,
    new_scores,
    save_masks,
)
from .models import new_head
from .structure import Gates

SCHEDULES = ("constant", "anneal")
Epoch = dict[str, float]


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
    precision: str = "fp32"  #: of the training steps: "fp32" or "bf16"; accuracies are always measured in fp32
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


class SearchStopped(RuntimeError):
    """The search could not go on; `result` is what it had found by then (None if nothing)."""

    def __init__(self, message: str, result: Reengineered | None):
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Pick:
    """What one epoch left behind: copies, never the live tensors."""

    epoch: int  #: -1 if it is not known
    masks: Masks  #: boolean, by parameter name
    head: dict[str, Tensor]  #: state_dict


@dataclass(frozen=True)
class Reengineered:
    """What a search found. `picks["paper"]`, chosen on all of `val`, is the one that is delivered."""

    source: nn.Module
    new_head: nn.Module
    history: list[Epoch]
    picks: dict[str, Pick]

    @property
    def masks(self) -> Masks:
        """Boolean masks of the delivered pick."""
        return self.picks["paper"].masks

    @property
    def head(self) -> nn.Module:
        """Head of the delivered pick, a new module in eval mode."""
        return self._head("paper")

    def module(self, pick: str = "paper") -> nn.Module:
        """The re-engineered model as a plain module in eval mode: masked copy of the source, then the head."""
        runtime.check_choice("pick", pick, tuple(self.picks))
        body = apply_masks(copy.deepcopy(self.source), self.picks[pick].masks)
        return nn.Sequential(body, self._head(pick)).eval()

    def save(self, path: Path | str, *, source: str = "", classes: Sequence[str] = (),
             preprocessing: Mapping[str, Any] | None = None) -> str:
        """Write masks and heads to a file of at most one bit a weight (see `save_masks`); return its digest.

        `source`: a name for the source model (default: its class's); its weights are named by their digest.
        """
        return save_masks(path, self.picks, source=source or type(self.source).__name__,
                          weights=runtime.digest(self.source.state_dict()), classes=classes,
                          preprocessing=preprocessing)

    @classmethod
    def load(cls, path: Path | str, source: nn.Module, head: nn.Module | None = None) -> Reengineered:
        """What `save` wrote, for the very weights of `source`; `module()` then answers bit for bit as before.

        `head`: a module of the head's architecture; default: that of `models.new_head`. History and epochs are not
        in the file. Raises what `load_masks` raises, and ValueError for a head that does not fit.
        """
        stored = load_masks(path, source)
        heads = [stored.heads[name] for name in stored.masks]
        if head is None:
            shapes = {tuple(t.shape) for t in heads[0].values() if t.dim() == 2}
            if len(shapes) != 1 or set(heads[0]) != {"1.weight", "1.bias"}:
                raise ValueError(f"{path} has a head with {', '.join(heads[0])}, which is not ReLU and Linear: give "
                                 "a module of its architecture as head")
            n_out, n_in = shapes.pop()
            head = new_head(n_in, n_out).to(heads[0]["1.weight"].dtype)
        picks = {name: Pick(-1, mask, stored.heads[name]) for name, mask in stored.masks.items()}
        try:
            copy.deepcopy(head).load_state_dict(heads[0])
        except RuntimeError as e:
            raise ValueError(f"the head does not fit that of {path}: {str(e).splitlines()[-1].strip()}") from e
        return cls(source, head, [], picks)

    def _head(self, pick: str) -> nn.Module:
        head = copy.deepcopy(self.new_head)
        head.load_state_dict(self.picks[pick].head)
        return head.to(next(self.source.parameters()).device).eval()


def pick(history: Sequence[Epoch], target: float, series: str = "accuracy") -> int:
    """Index of the epoch to keep (SeaM's rule): the fewest weights among those that reach `target`.

    Kept fractions are compared in steps of 1/1000; within a step the more accurate epoch wins if it keeps no more. If
    no epoch reaches `target`, the first with the highest accuracy minus kept fraction. Raises ValueError if empty.
    """
    if not history:
        raise ValueError("no epoch to pick from: the history is empty")
    best, kept, accuracy = None, 1.0, 0.0
    for i, epoch in enumerate(history):
        if epoch[series] < target:
            continue
        fewer = int(1000 * epoch["kept"]) < int(1000 * kept)
        if fewer or (epoch["kept"] <= kept and epoch[series] > accuracy):
            best, kept, accuracy = i, epoch["kept"], epoch[series]
    if best is not None:
        return best
    return max(range(len(history)), key=lambda i: history[i][series] - history[i]["kept"])


def waited(history: Sequence[Epoch], target: float) -> int:
    """Epochs below `target` since it was first reached, counted anew when int(1000 * kept) falls (SeaM's patience).

    Without a target (infinity, as in indirect reuse): epochs since the highest accuracy minus kept fraction.
    """
    if math.isinf(target):
        return len(history) - 1 - pick(history, target)
    reached, count, lowest = False, 0, 1000
    for epoch in history:
        reached = reached or epoch["accuracy"] >= target
        count += reached and epoch["accuracy"] < target
        if int(1000 * epoch["kept"]) < lowest:
            count, lowest = 0, int(1000 * epoch["kept"])
    return count


def crossfit(history: Sequence[Epoch], picks: Mapping[str, int]) -> dict[str, float]:
    """Accuracy and kept fraction, in [0, 1], with each half of the test set judged by the pick of the other."""
    a, b = history[picks["a"]], history[picks["b"]]
    return {"accuracy": (a["accuracy_b"] + b["accuracy_a"]) / 2, "kept": (a["kept"] + b["kept"]) / 2}


def summary(found: Reengineered, head_only: Reengineered, originals: Mapping[str, float]) -> dict[str, Any]:
    """The `results` of a direct-reuse record: accuracies, kept fractions and epochs by protocol, and the history.

    `head_only` is the same search with `names=()`; `originals` has `all` and `restricted`, on the whole test set.
    """
    def by_protocol(run: Reengineered) -> dict[str, dict[str, float]]:
        epochs = {series: p.epoch for series, p in run.picks.items()}
        paper = run.history[epochs["paper"]]
        both = {"paper": {"accuracy": paper["accuracy"], "kept": paper["kept"]}}
        return both if len(epochs) == 1 else {"crossfit": crossfit(run.history, epochs), **both}
    ours, control = by_protocol(found), by_protocol(head_only)
    return {
        "weights_total": sum(m.numel() for m in found.masks.values()),
        "kept_fraction": {protocol: r["kept"] for protocol, r in ours.items()},
        "accuracy": {"original_all": originals["all"], "original_restricted": originals["restricted"],
                     "head_only": next(iter(control.values()))["accuracy"],
                     **{protocol: r["accuracy"] for protocol, r in ours.items()}},
        "epoch": {series: p.epoch for series, p in found.picks.items()},
        "history": {column: [e[column] for e in found.history] for column in found.history[0]},
    }


def rates(search: Search, done: float) -> tuple[float, float]:
    """Factors of (both learning rates, alpha) when the share `done` in [0, 1) of all steps is behind.

    `constant` (the paper's) leaves all as they are. `anneal` lowers the learning rates to 0 along half a cosine, and
    alpha in a straight line: first weights go, then those that stay settle.
    """
    if search.schedule == "constant":
        return 1.0, 1.0
    return (1 + math.cos(math.pi * done)) / 2, 1 - done


class _Run:
    """The live state of one search: frozen model, scores, head, and the optimisers that move them."""

    def __init__(self, model: nn.Module, head: nn.Module, names: Iterable[str] | None, search: Search, steps: int,
                 gates: Gates | None = None):
        self.search, self.step, self.steps = search, 0, steps
        self.device = next(model.parameters()).device
        self.model = copy.deepcopy(model).eval().requires_grad_(False).to(  # type: ignore[call-overload]
            memory_format=torch.channels_last)
        self.head = copy.deepcopy(head).requires_grad_(True).to(self.device)
        self.scores = new_scores(self.model, names)
        self.gates = gates
        self.folded, self.offsets = fold_norms(self.model, self.scores)  # what is trained on; self.model is measured
        if search.precision == "bf16":
            lower(self.folded)
            self.offsets = {name: t.to(self.folded.get_parameter(name).dtype) for name, t in self.offsets.items()}
        product_gradients(self.folded)
        self.total = sum(s.numel() for s in self.scores.values())
        self._optimise(self.head.parameters())

    def _optimise(self, heads: Iterable[Tensor]) -> None:
        cuda = self.device.type == "cuda"
        top = {"params": list(heads), "lr": self.search.lr_head, "name": "lr_head"}
        moved = [*self.scores.values(), *([self.gates.values] if self.gates else [])]
        scores = {"params": moved, "lr": self.search.lr_mask, "name": "lr_mask"}
        self.alone = torch.optim.Adam([dict(top)], fused=True, capturable=cuda)
        self.both = torch.optim.Adam([scores, dict(top)], fused=True, capturable=cuda) if self.scores else self.alone
        self.course = torch.zeros((), device=self.device)  # of alpha and structure, a weight of the model
        self.rates = {name: torch.zeros((), device=self.device) for name in ("lr_mask", "lr_head")}
        self.update: capture.Step = capture.Replayed(self._update) if cuda else self._update

    def kept(self) -> Masks:
        """The scores, below 0 also where a gate shuts the weight out."""
        return self.gates.scores(self.scores) if self.gates else self.scores

    def predict(self, x: Tensor) -> Tensor:
        return self.head(masked_call(self.model, self.kept(), x.to(self.device)))

    def losses(self, x: Tensor, y: Tensor, head_only: bool) -> Tensor:
        """The mean cross-entropy of a batch; of each problem, where there are many."""
        with torch.set_grad_enabled(not head_only):
            z = masked_call(self.folded, self.kept(), x, self.offsets)
        return F.cross_entropy(self.head(z).float(), y)

    def train(self, batches: Iterable[Batch], head_only: bool) -> Tensor:
        """One epoch: move the head and, unless `head_only`, the scores. Returns the mean of `losses`."""
        sum_losses, n = torch.zeros((), device=self.device), 0
        _train_mode(self.folded, self.head)
        for x, y in batches:
            rate, course = rates(self.search, self.step / self.steps)
            self.course.fill_(course / max(self.total, 1))
            for name, lr in self.rates.items():
                lr.fill_(rate * getattr(self.search, name))
            losses = self.update(x.to(self.device), y.to(self.device), head_only)
            sum_losses = sum_losses + losses * y.shape[-1]
            n, self.step = n + y.shape[-1], self.step + 1
        self.head.eval()
        return sum_losses / n

    def _update(self, x: Tensor, y: Tensor, head_only: bool) -> Tensor:
        """One step, of the head alone if `head_only`. What differs between steps is in tensors (see `capture`)."""
        optimiser = self.alone if head_only else self.both
        for group in optimiser.param_groups:
            group["lr"] = self.rates[group["name"]]
        with runtime.autocast(self.device, self.search.precision):
            losses = self.losses(x, y, head_only)
        optimiser.zero_grad()
        losses.sum().backward()
        if not head_only:  # the kept fraction is a mean: straight through, its gradient is 1 / total
            grads = [torch.zeros_like(s) if s.grad is None else s.grad for s in self.scores.values()]
            torch._foreach_add_(grads, self.course * self.search.alpha)
            for score, grad in zip(self.scores.values(), grads, strict=True):
                score.grad = grad  # also where the call did not use the weight
            if self.gates:
                self.gates.add_pressure(self.course * self.total * self.search.structure)
        optimiser.step()
        return losses.detach()

    def frozen(self, batches: Iterable[Batch]) -> list[Batch]:
        """What the untouched model says about each batch."""
        with measuring():
            return [(self.model(x.to(self.device)), y) for x, y in batches]

    def snapshot(self, epoch: int) -> Pick:
        return Pick(epoch, binarize(self.kept()), {k: v.detach().clone() for k, v in self.head.state_dict().items()})


def reengineer(model: nn.Module, head: nn.Module, train: Loader, val: Iterable[Batch] | Mapping[str, Iterable[Batch]],
               search: Search, *, targets: Mapping[str, float] | None = None, names: Iterable[str] | None = None,
               on_epoch: Callable[[Epoch], Any] | None = None, checkpoint: Path | str | None = None) -> Reengineered:
    """Search for the weights of `model` that, with a new `head` behind it, solve the target problem.

    `train` yields batches (images [B, ...], labels [B]) of the target problem and has a length; `val` likewise, or a
    mapping of parts (`{"a": ..., "b": ...}`), each of which then picks an epoch of its own beside the whole
    (`"paper"`). `targets`: the accuracy in [0, 1] that each series has to reach, unless `search.target_accuracy` says
    one for all; a series without a target picks by accuracy minus kept fraction. `names`: the parameters to mask
    (default: `maskable(model)`; none: the head alone is trained). `on_epoch` gets each epoch's dict: epoch, loss, kept,
    accuracy, accuracy_<part>; its loss is the epoch's mean cross-entropy plus, where there is a mask, `search.alpha`
    times kept (the term of `search.structure` is not in it).

    `checkpoint`: a file that holds the state after each epoch; if it is there, the search goes on from it, and ends as
    it would have; `max_removed` may be another by then. Whoever gives it also removes it, and sees to it that it
    is given for the same model and batches.

    `model` and `head` are unchanged; the search runs on the device of the model's weights. Raises ValueError for bad
    arguments or a checkpoint of other parameters, and SearchStopped, with the last good state, if the loss is not
    finite or nothing is kept.
    """
    if len(train) == 0:
        raise ValueError("train has no batch: give at least one")
    log = _Log(model, head, val, search, targets)
    run = _Run(model, head, names, search, search.epochs * len(train), _gates(model, log, search))
    predict: Predict = run.predict
    if not run.scores:  # the model never changes: ask it once what it says about each image of val
        log.parts = {part: run.frozen(batches) for part, batches in log.parts.items()}
        predict = run.head
    with runtime.seeded(search.seed, run.device):
        if checkpoint is not None and (stored := cache.read(checkpoint)):
            _restore(stored, run, log, train)
        while not log.over:
            epoch = len(log.found.history)
            loss = run.train(train, head_only=not run.scores or search.head_only(epoch))
            record = log.note(float(loss), run.kept(), predict, run.snapshot)
            if checkpoint is not None:
                _save(checkpoint, run, log, train)
            if on_epoch is not None:
                on_epoch(record)
        log.end(run.snapshot)
    return log.found


class _Log:
    """What one search has found, epoch by epoch: its history, its picks, and whether it is over."""

    def __init__(self, model: nn.Module, head: nn.Module, val: Iterable[Batch] | Mapping[str, Iterable[Batch]],
                 search: Search, targets: Mapping[str, float] | None):
        self.parts = dict(val) if isinstance(val, Mapping) else {"": val}
        self.search, self.targets = search, _targets(search, targets, self.parts)
        self.found = Reengineered(model, head, [], {})

    def note(self, loss: float, scores: Masks, predict: Predict, snapshot: Callable[[int], Pick]) -> Epoch:
        """Measure the epoch that has just ended; keep its state where it is the pick of a series."""
        history, picks, search = self.found.history, self.found.picks, self.search
        epoch, kept = len(history), kept_fraction(scores)
        if not math.isfinite(loss) or kept == 0:
            what = "keeps no weight any more" if math.isfinite(loss) else f"has a loss of {loss}"
            raise SearchStopped(f"the search {what} at epoch {epoch}: lower alpha or the learning rates",
                                self.found if picks else None)
        record = {"epoch": float(epoch), "loss": loss + search.alpha * kept * bool(scores), "kept": kept}
        counts = {part: count_right(predict, batches) for part, batches in self.parts.items()}
        record["accuracy"] = sum(right for right, _ in counts.values()) / sum(n for _, n in counts.values())
        if len(self.parts) > 1:
            record |= {f"accuracy_{part}": right / n for part, (right, n) in counts.items()}
        history.append(record)
        for series, target in self.targets.items():
            if pick(history, target, _column(series)) == epoch:
                picks[series] = snapshot(epoch)
        return record

    @property
    def removed(self) -> bool:
        """Whether the last epoch has removed as much as was asked for."""
        most, history = self.search.max_removed, self.found.history
        return most is not None and bool(history) and 1 - history[-1]["kept"] >= most

    @property
    def over(self) -> bool:
        history, search = self.found.history, self.search
        impatient = bool(history) and 0 < search.patience <= waited(history, self.targets["paper"])
        return self.removed or impatient or len(history) == search.epochs

    def end(self, snapshot: Callable[[int], Pick]) -> None:
        """A search that has removed what was asked for delivers its last epoch, whatever its accuracy."""
        if self.removed:
            self.found.picks.update(dict.fromkeys(self.targets, snapshot(len(self.found.history) - 1)))


def _gates(model: nn.Module, log: _Log, search: Search) -> Gates | None:
    """The gates that `search` moves, if any; the example that they need is an image of `val`."""
    if not search.structure:
        return None
    x, _ = next(iter(next(iter(log.parts.values()))))
    return Gates(model, x[:1].to(next(model.parameters()).device))


def _save(path: Path | str, run: _Run, log: _Log, train: Loader) -> None:
    """Everything that the epochs to come depend on."""
    tensors = {f"scores/{name}": t for name, t in run.scores.items()}
    tensors |= {f"head/{name}": t for name, t in run.head.state_dict().items()}
    tensors |= {"gates": run.gates.values} if run.gates else {}
    for series, p in log.found.picks.items():
        tensors |= {f"pick/{series}/masks/{name}": t for name, t in p.masks.items()}
        tensors |= {f"pick/{series}/head/{name}": t for name, t in p.head.items()}
    tensors |= cache.progress(train, run.device, {"alone": run.alone, "both": run.both})
    cache.write(path, tensors, {"search": _settings(run, log), "history": log.found.history,
                                "picks": {series: p.epoch for series, p in log.found.picks.items()}})


def _restore(stored: cache.Stored, run: _Run, log: _Log, train: Loader) -> None:
    tensors, values = stored
    if values["search"] != _settings(run, log):
        raise ValueError("the checkpoint was made with other parameters: remove it, or give those parameters")
    if run.search.max_removed is not None and any(1 - e["kept"] >= run.search.max_removed
                                                  for e in values["history"][:-1]):
        return  # it is further than this search should go
    with torch.no_grad():
        for name, score in run.scores.items():
            score.copy_(tensors[f"scores/{name}"])
        if run.gates:
            run.gates.values.copy_(tensors["gates"])
    run.head.load_state_dict(cache.part(tensors, "head/"))
    run.step = len(values["history"]) * len(train)
    log.found.history.extend(values["history"])
    for series, epoch in values["picks"].items():
        kept = cache.part(tensors, f"pick/{series}/")
        masks = {name: t.to(run.device) for name, t in cache.part(kept, "masks/").items()}
        log.found.picks[series] = Pick(epoch, masks, cache.part(kept, "head/"))
    cache.go_on(tensors, train, run.device, {"alone": run.alone, "both": run.both})


def _settings(run: _Run, log: _Log) -> dict[str, Any]:
    """All that an epoch and its picks depend on; when the search stops is not."""
    search = {k: v for k, v in dataclasses.asdict(run.search).items() if k != "max_removed"}
    return {**search, "names": list(run.scores), "targets": {series: str(t) for series, t in log.targets.items()}}


def _column(series: str) -> str:
    return "accuracy" if series == "paper" else f"accuracy_{series}"


def _targets(search: Search, targets: Mapping[str, float] | None, parts: Mapping[str, Any]) -> dict[str, float]:
    """The target of each series; infinity (picks by accuracy minus kept fraction) where none is given."""
    series = [*parts, "paper"] if len(parts) > 1 else ["paper"]
    if len(series) > 1 and search.patience:
        raise ValueError(f"patience is {search.patience}: it reads the accuracy that is reported, so under crossfit it "
                         "must be 0; use the paper's protocol or set patience to 0")
    if unknown := set(targets or {}) - set(series):
        raise ValueError(f"target for unknown series {sorted(unknown)[0]!r}: allowed are {', '.join(series)}")
    if search.target_accuracy is not None:
        return dict.fromkeys(series, search.target_accuracy)
    return {s: (targets or {}).get(s, math.inf) for s in series}


def _train_mode(model: nn.Module, head: nn.Module) -> None:
    """Train mode (dropout on), but normalisation with its stored statistics."""
    model.train(), head.train()
    for module in model.modules():
        if isinstance(module, NORMS):
            module.eval()
