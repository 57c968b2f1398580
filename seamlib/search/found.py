"""What a search finds: its epochs, the rule that picks one of them, and the re-engineered model."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..evaluate import OneVsRest, Restrict, RestrictedHead
from ..masks.file import load_masks, save_masks, unsaved
from ..masks.masks import Masks, apply_masks
from ..masks.norms import Norms, apply_norms
from ..models import new_head
from ..plain import copyable
from ..records import parameters, runtime

Epoch = dict[str, float]


@dataclass(frozen=True)
class Pick:
    """What one epoch left behind: copies, never the live tensors."""

    epoch: int  #: -1 if it is not known
    masks: Masks  #: boolean, by parameter name
    head: dict[str, Tensor]  #: state_dict
    norms: Norms = field(default_factory=dict)  #: scale and shift of each batch norm's channels, where they adapted


@dataclass(frozen=True)
class Reengineered:
    """What a search found. `picks["paper"]`, chosen on all of `val`, is the one that is delivered.

    With a path each stage's end is a pick too, called by its alpha ("2", "0.5"), and a point of `front`.
    """

    source: nn.Module  #: of a search a copy of the model that was given; of `load` the model itself
    new_head: nn.Module
    history: list[Epoch]
    picks: dict[str, Pick]
    front: list[Epoch] = field(default_factory=list)  #: the history at the ends of a path's stages, each with its alpha

    def smallest(self, accuracy: float, series: str = "accuracy") -> str | None:
        """The point of the front that keeps the fewest weights of those at least so accurate; None if none is.

        `accuracy`: in [0, 1]. `series`: "accuracy", or "accuracy_<part>" of a part of `val`. Raises ValueError for
        another accuracy, a front without that series, and where there is no front.
        """
        if not self.front:
            raise ValueError("there is no front to choose from: search with a path; and what is loaded has none, so "
                             "note what was chosen when it is saved")
        if series not in self.front[0] or not series.startswith("accuracy"):
            raise ValueError(f"series is {series!r}: allowed are "
                             f"{', '.join(key for key in self.front[0] if key.startswith('accuracy'))}")
        if not 0 <= accuracy <= 1:
            raise ValueError(f"accuracy is {accuracy}: it must be in [0, 1]")
        enough = [point for point in self.front if point[series] >= accuracy]
        return f"{min(enough, key=itemgetter('kept'))['alpha']:g}" if enough else None

    @property
    def masks(self) -> Masks:
        """Boolean masks of the delivered pick."""
        return self.picks["paper"].masks

    @property
    def head(self) -> nn.Module:
        """Head of the delivered pick, a new module in eval mode."""
        return self._head("paper")

    def module(self, pick: str = "paper") -> nn.Module:
        """The re-engineered model as a plain module in eval mode: masked copy of the source, its
        batch norms as they adapted, then the head.

        Norms that adapted have a scale and a shift, and no statistics: to train it further, use `finetune`, which gives
        them those of its images first.
        """
        parameters.check_choice("pick", pick, tuple(self.picks))
        body = apply_norms(apply_masks(copy.deepcopy(self.source), self.picks[pick].masks), self.picks[pick].norms)
        return nn.Sequential(body, self._head(pick)).eval()

    def save(self, path: Path | str, *, source: str = "", classes: Sequence[str] = (),
             preprocessing: Mapping[str, Any] | None = None) -> str:
        """Write masks and heads to a file of at most one bit a weight (see `save_masks`); return its digest.

        `source`: a name for the source model (default: its class's); its weights are named by their digest. `classes`:
        a name for each label.
        """
        names = [classes] if isinstance(classes, str) else list(classes)
        if isinstance(classes, str) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"classes are {classes!r}: give a list of names, one for each label")
        return save_masks(path, self.picks, source=source or type(self.source).__name__,
                          weights=runtime.digest(self.source.state_dict()), classes=names,
                          preprocessing=preprocessing, unsaved=unsaved(self.source),
                          own_head=not _like(self.new_head, _head_of(self.picks["paper"].head)))

    @classmethod
    def load(cls, path: Path | str, source: nn.Module, head: nn.Module | None = None) -> Reengineered:
        """What `save` wrote, for the very weights of `source`; `module()` then answers bit for bit as before.

        `head`: a module of the head's architecture; by default one of `models.new_head` or of
        `evaluate.RestrictedHead`, as the file has it. History, front and epochs are not in the file. Raises what
        `load_masks` raises, and ValueError for a head that does not fit.
        """
        source = copyable(source)
        stored = load_masks(path, source)
        heads = [stored.heads[name] for name in stored.masks]
        if head is None and (stored.own_head or (head := _head_of(heads[0])) is None):
            raise ValueError(f"{path} has a head with {', '.join(heads[0]) or 'no weights'}, which is neither ReLU and "
                             "Linear nor the restricted original's: give a module of its architecture as head")
        picks = {name: Pick(-1, mask, stored.heads[name], stored.norms[name]) for name, mask in stored.masks.items()}
        try:
            copy.deepcopy(head).load_state_dict(heads[0])
        except RuntimeError as e:
            raise ValueError(f"the head does not fit that of {path}: {str(e).splitlines()[-1].strip()}") from e
        return cls(source, head, [], picks)

    def _head(self, pick: str) -> nn.Module:
        head = copy.deepcopy(self.new_head)
        head.load_state_dict(self.picks[pick].head)
        head.eval()
        return head.to(next(self.source.parameters()).device)


def _head_of(state: Mapping[str, Tensor]) -> nn.Module | None:
    """A head that takes this state_dict, of those that the library makes."""
    if set(state) == {"1.weight", "1.bias"} and state["1.weight"].dim() == 2:
        n_out, n_in = state["1.weight"].shape
        return new_head(n_in, n_out).to(state["1.weight"].dtype)
    if set(state) == {"answer.classes", "scale", "shift"}:
        answer: nn.Module = Restrict(state["answer.classes"].tolist())
    elif set(state) == {"answer.target", "scale", "shift"}:
        answer = OneVsRest(int(state["answer.target"]))
    else:
        return None
    return RestrictedHead(answer, len(state["scale"])).to(state["scale"].dtype)


def _like(head: nn.Module, other: nn.Module | None) -> bool:
    """Whether they are of the same modules."""
    return other is not None and [type(m) for m in head.modules()] == [type(m) for m in other.modules()]


class SearchStopped(RuntimeError):
    """The search could not go on; `result` is what it had found by then (None if nothing)."""

    def __init__(self, message: str, result: Reengineered | None):
        super().__init__(message)
        self.result = result


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


Originals = Mapping[str, Mapping[str, float]]  # series -> "all" or "restricted" -> accuracy


def no_loss(front: Sequence[Epoch], originals: Originals, control: str) -> dict[str, float] | None:
    """How much can go at no loss: kept, accuracy, and its difference to the untouched original on the same images.

    Of the points whose accuracy on one half is at least the original's there, the one that keeps fewest, measured on
    the other half; both ways, averaged. Where a half has no such point it takes where the front begins, the restricted
    original, which keeps all. None where neither half has one.
    """
    start = {"kept": 1.0, **{f"accuracy_{half}": originals[half]["restricted"] for half in "ab"}}
    found, reached = [], False
    for chooses, reports in (("a", "b"), ("b", "a")):
        enough = [p for p in front if p[f"accuracy_{chooses}"] >= originals[chooses][control]]
        reached |= bool(enough)
        point = min(enough, key=itemgetter("kept"), default=start)
        found.append((point["kept"], point[f"accuracy_{reports}"],
                      point[f"accuracy_{reports}"] - originals[reports][control]))
    averages = ((a + b) / 2 for a, b in zip(*found, strict=True))
    return dict(zip(("kept", "accuracy", "difference"), averages, strict=True)) if reached else None


def best(front: Sequence[Epoch], originals: Originals) -> dict[str, float]:
    """The point that is most accurate on one half, measured on the other; both ways, averaged.

    Kept, accuracy, and its difference to the restricted original on the same images.
    """
    a, b = (max(front, key=itemgetter(f"accuracy_{half}")) for half in "ab")
    accuracy = (a["accuracy_b"] + b["accuracy_a"]) / 2
    restricted = (originals["b"]["restricted"] + originals["a"]["restricted"]) / 2
    return {"kept": (a["kept"] + b["kept"]) / 2, "accuracy": accuracy, "difference": accuracy - restricted}


def summary(found: Reengineered, head_only: Reengineered, originals: Originals,
            norms_only: Reengineered | None = None) -> dict[str, Any]:
    """The `results` of a direct-reuse record: accuracies, kept fractions and epochs by protocol, front and history.

    `head_only` is the same search with `names=()` and frozen norms, `norms_only` with norms that adapt; `originals` are
    those of `problems.originals`.
    """
    def by_protocol(run: Reengineered) -> dict[str, dict[str, float]]:
        epochs: dict[str, int] = {s: run.picks[s].epoch for s in ("a", "b", "paper") if s in run.picks}
        paper = run.history[epochs["paper"]]
        both = {"paper": {"accuracy": paper["accuracy"], "kept": paper["kept"]}}
        return both if len(epochs) == 1 else {"crossfit": crossfit(run.history, epochs), **both}

    def control(run: Reengineered | None) -> dict[str, float]:
        return {} if run is None else {"head_only" if run is head_only else "norms_only":
                                       next(iter(by_protocol(run).values()))["accuracy"]}
    ours, whole, halves = by_protocol(found), originals["paper"], bool(found.front) and "accuracy_a" in found.front[0]
    return {
        "weights_total": sum(m.numel() for m in found.masks.values()),
        "kept_fraction": {protocol: r["kept"] for protocol, r in ours.items()},
        "accuracy": {"original_all": whole["all"], "original_restricted": whole["restricted"],
                     **control(head_only), **control(norms_only),
                     **{protocol: r["accuracy"] for protocol, r in ours.items()}},
        "epoch": {series: p.epoch for series, p in found.picks.items()},
        "front": found.front,
        "no_loss": {c: no_loss(found.front, originals, c) if halves else None for c in ("all", "restricted")},
        "best": best(found.front, originals) if halves else None,
        "history": {column: [e[column] for e in found.history] for column in found.history[0]},
    }
