"""The search: which weights of a trained model does a smaller problem need? (SeaM, section 3)

From the outside in: a search is epochs, an epoch is steps, a step moves scores and head down one loss.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..evaluate import Batch, Loader, Predict, measuring, pair
from ..masks.masks import NORMS, Masks, binarize, call_with, masked_weights, new_scores
from ..masks.norms import BatchNorm, apply_norms, batch_norms, read_norms, restate
from ..plain import sound, takes_train_mode, train_mode
from ..records import runtime
from ..structure.gates import Gates
from . import capture, checkpoints, checks, lowering
from .found import Epoch, Pick, Reengineered
from .log import Log
from .settings import Search, rates


def reengineer(model: nn.Module, head: nn.Module, train: Loader, val: Iterable[Batch] | Mapping[str, Iterable[Batch]],
               search: Search, *, targets: Mapping[str, float] | None = None, names: Iterable[str] | None = None,
               on_epoch: Callable[[Epoch], Any] | None = None, checkpoint: Path | str | None = None) -> Reengineered:
    """Search for the weights of `model` that, with a new `head` behind it, solve the target problem.

    `train` yields batches (images [B, ...], labels [B]) of the target problem and has a length; `val` likewise, or a
    mapping of parts (`{"a": ..., "b": ...}`), each of which then picks an epoch of its own beside the whole
    (`"paper"`). `targets`: the accuracy in [0, 1] that each series has to reach, unless `search.target_accuracy` says
    one for all; a series without a target picks by accuracy minus kept fraction. `names`: the parameters to mask
    (default: `maskable(model)`, but for those that the answer does not use, which are named in a warning; none: the
    head alone is trained). `on_epoch` gets each epoch's dict: epoch, loss, kept, accuracy, accuracy_<part>; its loss is
    the epoch's mean of `Run.losses` plus, where there is a mask, alpha (on a path that of its stage) times kept. A path
    on which nothing is kept any more ends with the points that it has.

    `checkpoint`: a file that holds the state after each epoch; if it is there, the search goes on from it, and ends as
    it would have; `max_removed` may be another by then. Whoever gives it also removes it, and sees to it that it
    is given for the same images.

    `model` and `head` are unchanged; weights of the head without requires_grad stay as they are. The search runs on the
    device of the model's weights. Before the first step the model is tried on an image or two of `val`: ValueError for
    one that does not return [B, outputs], or on which masks or their gradients would not act as on a copy with zeros,
    as for other bad arguments or a checkpoint of other parameters. SearchStopped, with the last good state, if the loss
    is not finite or nothing is kept.
    """
    checks.check_length(train)
    return search_in(copy.deepcopy(sound(model)), head, train, val, search, targets=targets, names=names,
                     on_epoch=on_epoch, checkpoint=checkpoint)


def search_in(model: nn.Module, head: nn.Module, train: Loader, val: Iterable[Batch] | Mapping[str, Iterable[Batch]],
              search: Search, *, targets: Mapping[str, float] | None, names: Iterable[str] | None,
              on_epoch: Callable[[Epoch], Any] | None, checkpoint: Path | str | None = None) -> Reengineered:
    """`reengineer` in a `model` that is the caller's no more: what is found holds it."""
    log = Log(model, head, val, search, targets)
    run = Run(model, head, names, search, search.epochs * len(train), log.example)
    predict: Predict = run.predict
    alone = not (run.scores or run.norms)  # is the head
    if alone:  # the model never changes: what it says of each image of val is asked once
        log.answer_once(run.model, run.device)
        predict = run.head
    with runtime.seeded(search.seed, run.device):
        if checkpoint is not None:
            about = checkpoints.told(run, log, train)
            checkpoints.restore(checkpoint, run, log, train, about)
        if run.norms and run.done == 0:
            run.begin(map(pair, train))
        while not log.over:
            head_only = alone or search.head_only(epoch=len(log.history))
            loss = run.train(checks.counted(map(pair, train), len(train)), head_only)
            record = log.note(float(loss), run.kept(), predict, run.snapshot)
            if log.emptied:
                break
            if checkpoint is not None:
                checkpoints.save(checkpoint, run, log, train, about)
            if on_epoch is not None:
                on_epoch(record)
        log.end(run.snapshot)
    return log.found


class Run:
    """The live state of one search: frozen model, scores, head, and the optimisers that move them."""

    def __init__(self, model: nn.Module, head: nn.Module, names: Iterable[str] | None, search: Search, steps: int,
                 example: Tensor | None = None):
        """`steps`: in all; `example` [B, ...]: an image or two on which `model` is tried."""
        self.device = next(model.parameters()).device
        self.search = dataclasses.replace(search, precision=runtime.precision(search.precision, self.device))
        self.done, self.all_steps = 0, steps
        if not isinstance(head, nn.Module):
            raise ValueError(f"the head is a {type(head).__name__}: it must be a torch.nn.Module")
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.eval()
        example = None if example is None else example.detach().to(self.device)
        lowering.channels_last(self.model, example)
        self.head = copy.deepcopy(head).to(self.device)
        names = None if names is None else list(names)
        self.scores = new_scores(self.model, names)
        self.norms = batch_norms(self.model) if search.norms != "frozen" else {}
        checks.check_precision([*((name, self.model.get_parameter(name)) for name in self.scores),
                                *((f"the norm {name}", norm.running_var) for name, norm in self.norms.items()),
                                *((f"the head's {name}", p) for name, p in self.head.named_parameters()
                                  if p.requires_grad)])
        self.whole = True  # is in train mode, not its layers alone
        if example is not None:
            checks.check_learns(self.head, bool(self.scores) and not search.head_only_every)
            checks.check_answers(self.model, example)
            unused = checks.check_masks_reach(self.model, self.scores, example)
            if names is None and unused:  # whose rent alone would move them
                warnings.warn(f"the answer does not use {', '.join(sorted(unused))}: neither masked nor counted; give "
                              "names to mask them all the same", stacklevel=4)
                self.scores = {name: score for name, score in self.scores.items() if name not in unused}
            self.whole = takes_train_mode(self.model, example)
        self.gates = Gates(self.model, example[:1]) if search.structure and example is not None else None
        checks.check_gated(self.scores, self.gates.layers if self.gates else ())
        if self.gates is not None:
            checks.check_structure(search.structure, self.gates)
        checks.check_names(self.scores, self.norms)
        # images that a step takes: one has no statistics
        self.least = 1 + bool(self.norms or any(isinstance(m, BatchNorm) for m in self.head.modules()))
        self.trained, self.offsets = lowering.prepared(self.model, self.scores, self.search.precision, not self.norms)
        if example is not None and self.search.precision == "bf16":
            checks.check_bf16(self.trained, example)
        for norm in batch_norms(self.trained).values() if self.norms else ():
            norm.momentum = min(0.1, max(0.01, 2 * search.epochs / steps))  # running averages of half an epoch
            if norm.weight is None:
                norm.weight, norm.bias = (nn.Parameter(make(norm.running_var), requires_grad=False)
                                          for make in (torch.ones_like, torch.zeros_like))
        self.teacher: Predict | None = None
        if search.labels == "soft":
            body, _ = lowering.prepared(self.model, (), self.search.precision)
            self.teacher = nn.Sequential(body, copy.deepcopy(self.head).requires_grad_(False)).eval()
        self.n_scores = sum(s.numel() for s in self.scores.values())
        self._optimise(self.head.parameters())

    def _optimise(self, heads: Iterable[Tensor]) -> None:
        """Two optimisers, each with its own moments: of scores and head together, and of the head alone."""
        cuda = self.device.type == "cuda"
        top = {"params": [p for p in heads if p.requires_grad], "lr": self.search.lr_head, "name": "lr_head"}
        moved = {"lr_mask": list(self.scores.values()),
                 "lr_norms": [p for name in self.norms for p in self.trained.get_submodule(name).parameters()
                              if self.search.norms == "affine"]}
        groups = [{"params": params, "lr": getattr(self.search, name), "name": name}
                  for name, params in moved.items() if params]
        for group in groups:
            for p in group["params"]:
                p.requires_grad_()
        self.alone = torch.optim.Adam([dict(top)], fused=True, capturable=cuda)
        self.both = torch.optim.Adam([*groups, dict(top)], fused=True, capturable=cuda) if groups else self.alone
        self.rent = torch.zeros((), device=self.device)  # alpha, for each score
        self.left = torch.ones((), device=self.device)  # share of what channels cost, that may be left
        self.rates = {name: torch.zeros((), device=self.device) for name in ("lr_mask", "lr_norms", "lr_head")}
        self.step: capture.Step = capture.Replayed(self._step) if cuda else self._step

    def begin(self, batches: Iterable[Batch]) -> None:
        """Before the first step: batch norms that adapt take the statistics of the target's images, see `restate`."""
        with measuring(), runtime.autocast(self.device, self.search.precision):
            restate(batch_norms(self.trained), self.trained.eval(), (x for x, _ in self._here(batches)))

    def _here(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches on the model's device; the first of all is tried on the head before it is used."""
        outputs = 0
        for n, (x, y) in enumerate(batches):
            if y.dim() == 1 and self.done * self.search.epochs < self.all_steps:  # in the first pass
                if n == 0:
                    outputs = checks.check_head(self.model, self.head, x.to(self.device))
                checks.check_labels(y, outputs)
            yield x.to(self.device), y.to(self.device)

    def train(self, batches: Iterable[Batch], head_only: bool) -> Tensor:
        """One epoch: move the head and, unless `head_only`, the scores. Returns the mean of `losses`."""
        sum_losses, n, begun = torch.zeros((), device=self.device), 0, self.done
        self._train_mode(adapting=bool(self.norms) and not head_only)
        for x, y in self._here(batches):
            epoch, step = divmod(self.done, self.all_steps // self.search.epochs)
            self.done += 1
            if y.shape[-1] < self.least:
                continue
            rate, alpha, left = rates(self.search, epoch + step * self.search.epochs / self.all_steps)
            self.rent.fill_(alpha / max(self.n_scores, 1))
            self.left.fill_(left)
            for name, lr in self.rates.items():
                lr.fill_(rate * getattr(self.search, name))
            losses = self.step(x, y, head_only)
            sum_losses = sum_losses + losses * y.shape[-1]  # labels [B]; of many problems [K, B]
            n += y.shape[-1]
        if self.least > 1 and n == 0 < self.done - begun:
            raise ValueError("train has no batch of two images or more: batch norms that learn, or the head's, need "
                             "some")
        checks.check_images(n, begun // (self.all_steps // self.search.epochs))
        self.head.eval()
        if self.norms:  # what is measured, and handed on, is scale and shift
            apply_norms(self.model, read_norms(self.trained))
        return sum_losses / n

    def _step(self, x: Tensor, y: Tensor, head_only: bool) -> Tensor:
        """One step, of the head alone if `head_only`. What differs between steps is in tensors (see `capture`)."""
        optimiser = self.alone if head_only else self.both
        for group in optimiser.param_groups:
            group["lr"] = self.rates[group["name"]]
        with runtime.autocast(self.device, self.search.precision):
            losses = self.losses(x, y, head_only)
        optimiser.zero_grad()
        losses.sum().backward()
        if self.scores and not head_only:  # the kept fraction is a mean: straight through, its gradient is 1 / total
            for score in self.scores.values():  # also where the call did not use the weight
                score.grad = (torch.zeros_like(score) if score.grad is None else score.grad).add_(self.rent)
            if self.gates:
                self.gates.shut(self.left)
        optimiser.step()
        return losses.detach()

    def losses(self, x: Tensor, y: Tensor, head_only: bool) -> Tensor:
        """The mean cross-entropy of a batch; of each problem, where there are many.

        Under soft labels the divergence from what the untouched model said with the head as it was given, logits over a
        temperature T, times T^2 (Hinton et al., 2015): with a restricted head, from the restricted original.
        """
        with torch.set_grad_enabled(not head_only):
            z = call_with(self.trained, masked_weights(self.trained, self.kept(), self.offsets), x)
        answer = self.head(z).float()
        if self.teacher is None:
            return F.cross_entropy(answer, y)
        with torch.no_grad():
            wanted = self.teacher(x).float()
        t = self.search.temperature
        return t**2 * F.kl_div((answer / t).log_softmax(1), (wanted / t).log_softmax(1), reduction="batchmean",
                               log_target=True)

    def kept(self) -> Masks:
        """The scores, below 0 also where a gate shuts the weight out."""
        return self.gates.scores(self.scores) if self.gates else self.scores

    def predict(self, x: Tensor) -> Tensor:
        """What the masked model, in fp32, and the head say now."""
        return self.head(call_with(self.model, masked_weights(self.model, self.kept()), x.to(self.device)))

    def snapshot(self, epoch: int) -> Pick:
        """Copies of masks, head and norms as they are now."""
        head = {k: v.detach().clone() for k, v in self.head.state_dict().items()}
        return Pick(epoch, binarize(self.kept()), head, read_norms(self.trained) if self.norms else {})

    def _train_mode(self, adapting: bool = False) -> None:
        """Train mode (dropout on), but normalisation with its stored statistics, unless batch norm is `adapting`."""
        train_mode(self.trained, self.whole)
        self.head.train()
        for module in self.trained.modules():
            if isinstance(module, NORMS) and not (adapting and isinstance(module, BatchNorm)):
                module.eval()
