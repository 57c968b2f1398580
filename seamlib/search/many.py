"""Many target problems of one source model, searched at once: their scores are stacked, and share every step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from ..evaluate import Batch, Loader, pair
from ..masks.masks import binarize, call_with, masked_weights
from ..plain import sound
from ..records import runtime
from . import checks
from .found import Epoch, Pick, Reengineered
from .log import Log
from .loop import Run, search_in
from .settings import Search

Val = Iterable[Batch] | Mapping[str, Iterable[Batch]]


def reengineer_many(model: nn.Module, heads: Sequence[nn.Module], trains: Sequence[Loader], vals: Sequence[Val],
                    search: Search, *, targets: Sequence[Mapping[str, float]] | None = None,
                    names: Iterable[str] | None = None, on_epoch: Callable[[int, Epoch], Any] | None = None,
                    ) -> list[Reengineered]:
    """`reengineer` for K problems of one source model; result k is that of `heads[k]`, `trains[k]` and `vals[k]` alone.

    On CUDA the K searches share each step: it is one call with a stack of K masks, and the results equal those of
    single searches up to rounding (but for a model with dropout, which draws in another order). On a CPU, where a
    single search already fills the machine, with norms that adapt or soft labels, and for a model that cannot be called
    with a stack of masks (one with an LSTM, for instance), they run one after another.

    The heads must be of one architecture, and the batches of one size: problem by problem as many, of as many images.
    `on_epoch` gets the problem's number and the epoch's dict. `targets`: see `reengineer`, a mapping for each problem.
    Raises ValueError for bad arguments; SearchStopped as soon as one of the searches cannot go on.
    """
    lengths = {"heads": len(heads), "trains": len(trains), "vals": len(vals),
               **({} if targets is None else {"targets": len(targets)})}
    if len(set(lengths.values())) > 1 or not heads:
        raise ValueError("one of each is needed for every problem, and one problem at least, but there are "
                         + ", ".join(f"{n} {what}" for what, n in lengths.items()))
    for train in trains:
        checks.check_length(train)
    if len({len(train) for train in trains}) > 1:
        raise ValueError(f"the problems have {', '.join(str(len(t)) for t in trains)} batches an epoch: they must have "
                         "as many, or be searched one by one")
    model, names = copy.deepcopy(sound(model)), None if names is None else list(names)
    stackable = search.norms == "frozen" and search.labels == "hard"
    how = together if next(model.parameters()).device.type == "cuda" and stackable else one_by_one
    return how(model, heads, trains, vals, search, targets=targets, names=names, on_epoch=on_epoch)


def one_by_one(model: nn.Module, heads: Sequence[nn.Module], trains: Sequence[Loader], vals: Sequence[Val],
               search: Search, *, targets: Sequence[Mapping[str, float]] | None, names: Sequence[str] | None,
               on_epoch: Callable[[int, Epoch], Any] | None) -> list[Reengineered]:
    """What `reengineer_many` does on a CPU, and for what cannot be stacked."""
    return [search_in(model, heads[k], trains[k], vals[k], search, targets=targets[k] if targets else None,
                      names=names, on_epoch=partial(on_epoch, k) if on_epoch else None)
            for k in range(len(heads))]


def together(model: nn.Module, heads: Sequence[nn.Module], trains: Sequence[Loader], vals: Sequence[Val],
             search: Search, *, targets: Sequence[Mapping[str, float]] | None = None,
             names: Sequence[str] | None = None, on_epoch: Callable[[int, Epoch], Any] | None = None,
             ) -> list[Reengineered]:
    """What `reengineer_many` does on CUDA; it runs anywhere."""
    logs = [Log(model, head, val, search, targets[k] if targets else None)
            for k, (head, val) in enumerate(zip(heads, vals, strict=True))]
    run = _Stack(model, heads, names, search, search.epochs * len(trains[0]), logs[0].example)
    if not run.stacks(logs[0].example.to(run.device)):
        return one_by_one(model, heads, trains, vals, search, targets=targets, names=names, on_epoch=on_epoch)
    with runtime.seeded(search.seed, run.device):
        for epoch in range(search.epochs):
            outputs = run.answer(0, logs[0].example).shape[1] if epoch == 0 else 0
            batches = checks.counted(_stacked(trains, run.device, outputs), len(trains[0]))
            losses = run.train(batches, not run.scores or search.head_only(epoch))
            for k, (log, loss) in enumerate(zip(logs, losses.tolist(), strict=True)):
                if not log.over:
                    record = log.note(loss, run.of(run.kept(), k), partial(run.answer, k), partial(run.keep, k))
                    if on_epoch is not None:
                        on_epoch(k, record)
                    if log.over:
                        log.end(partial(run.keep, k))
            if all(log.over for log in logs):
                break
    return [log.found for log in logs]


def _stacked(trains: Sequence[Loader], device: torch.device, outputs: int = 0) -> Iterator[Batch]:
    """The batches of all problems side by side: images [K, B, ...], labels [K, B], checked if told `outputs`."""
    for batch in zip(*(map(pair, train) for train in trains), strict=True):
        if len(sizes := {tuple(x.shape) for x, _ in batch}) > 1:
            raise ValueError(f"the problems have batches of {' and '.join(map(str, sorted(sizes)))} at one step: "
                             "all must be of one shape, or be searched one by one")
        for _, y in batch if outputs else ():
            checks.check_labels(y, outputs)
        yield torch.stack([x.to(device) for x, _ in batch]), torch.stack([y.to(device) for _, y in batch])


class _Stack(Run):
    """The live state of K searches: one frozen model, and scores and heads with a leading dimension of K."""

    def __init__(self, model: nn.Module, heads: Sequence[nn.Module], names: Iterable[str] | None, search: Search,
                 steps: int, example: Tensor | None = None):
        super().__init__(model, heads[0], names, search, steps, example)
        self.problems = len(heads)
        self.gates = self.gates.stacked(len(heads)) if self.gates else None
        self.scores = {name: score.detach().expand(len(heads), *score.shape).clone().requires_grad_()
                       for name, score in self.scores.items()}
        state, self.buffers = stack_module_state([copy.deepcopy(head).to(self.device) for head in heads])
        trained = {name for name, p in heads[0].named_parameters() if p.requires_grad}
        self.heads = {name: t.detach().requires_grad_(name in trained) for name, t in state.items()}
        self._optimise(self.heads.values())

    def stacks(self, x: Tensor) -> bool:
        """Whether the model can be called with a stack of masks, and gives their scores the gradients of single calls.

        `x` [B, ...]: images to try it with; in train mode, where it may draw, it is only called.
        """
        if not self.heads:
            return False
        scores, gradients = checks.some_scores(self.scores.items()), []
        try:
            for mode in (self._train_mode, self.trained.eval):
                mode()
                with runtime.seeded(0, self.device), runtime.autocast(self.device, self.search.precision):
                    masked = masked_weights(self.trained, scores, self.offsets)
                    stacked = vmap(self._features, randomness="different")(masked, x.expand(self.problems, *x.shape))
                    alone = call_with(self.trained, {name: t[0] for name, t in masked.items()}, x)
                gradients = [torch.autograd.grad(z[z.isfinite()].float().square().mean(), list(scores.values()),
                                                 retain_graph=True, allow_unused=True)
                             for z in (stacked[0], alone) if scores]
        except Exception:  # whatever vmap raises at an operation that it does not know
            return False
        return not scores or not checks.apart(zip(*gradients, strict=True), 0.1)

    def losses(self, x: Tensor, y: Tensor, head_only: bool) -> Tensor:
        with torch.set_grad_enabled(not head_only):
            masked = masked_weights(self.trained, self.kept(), self.offsets)
            z = vmap(self._features, randomness="different")(masked, x)
        z = z.to(next(iter(self.heads.values())).dtype)  # autocast is not heard inside of vmap
        answers = vmap(self._head, randomness="different")(self.heads, self.buffers, z)
        losses = F.cross_entropy(answers.flatten(0, 1).float(), y.flatten(), reduction="none")
        return losses.unflatten(0, y.shape).mean(1)

    def _features(self, masked: dict[str, Tensor], x: Tensor) -> Tensor:
        return call_with(self.trained, masked, x)

    def _head(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], z: Tensor) -> Tensor:
        return functional_call(self.head, parameters | buffers, (z,))

    def of(self, stacked: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
        """Those of problem `k`."""
        return {name: t[k].detach() for name, t in stacked.items()}

    def answer(self, k: int, x: Tensor) -> Tensor:
        return self._head(self.of(self.heads, k), self.of(self.buffers, k),
                          call_with(self.model, masked_weights(self.model, self.of(self.kept(), k)), x.to(self.device)))

    def keep(self, k: int, epoch: int) -> Pick:
        head = {**self.of(self.heads, k), **self.of(self.buffers, k)}
        return Pick(epoch, binarize(self.of(self.kept(), k)), {name: t.clone() for name, t in head.items()})
