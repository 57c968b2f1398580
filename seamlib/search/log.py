"""The log of one search: each epoch measured, the picks kept, and whether it is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..evaluate import Batch, Predict, count_right, measuring, pair
from ..masks.masks import Masks, kept_fraction
from . import checks
from .found import Epoch, Pick, Reengineered, SearchStopped, pick, waited
from .settings import Search


class Log:
    """What one search has found, epoch by epoch: its history, its picks, and whether it is over."""

    def __init__(self, model: nn.Module, head: nn.Module, val: Iterable[Batch] | Mapping[str, Iterable[Batch]],
                 search: Search, targets: Mapping[str, float] | None):
        self.parts = dict(val) if isinstance(val, Mapping) else {"": val}
        examples = [checks.first(f"val {part!r}" if part else "val", batches) for part, batches in self.parts.items()]
        if not examples:
            raise ValueError("val has no part: give batches, or a mapping of parts to them")
        self.example = examples[0][0][:2]  #: one or two images, [B, ...], that the model takes
        self.search, self.targets = search, _targets(search, targets, self.parts)
        self.found = Reengineered(model, head, [], {})
        self.emptied = False  # whether a path has come to where nothing is kept
        taken = {f"{alpha:g}" for alpha in search.path or ()} | ({"paper"} if len(self.parts) > 1 else set())
        if names := taken & set(self.parts):
            raise ValueError(f"val has a part called {min(names)!r}, as what is chosen on all of it, or a point of the "
                             "path, will be: call it otherwise")

    @property
    def history(self) -> list[Epoch]:
        """The epochs so far."""
        return self.found.history

    def answer_once(self, model: nn.Module, device: torch.device) -> None:
        """Let each image of `val` be what `model`, which never changes, says of it: what the head is asked about."""
        with measuring():
            self.parts = {part: [(model(x.to(device)), y) for x, y in map(pair, batches)]
                          for part, batches in self.parts.items()}

    def note(self, loss: float, scores: Masks, predict: Predict, snapshot: Callable[[int], Pick]) -> Epoch:
        """Measure the epoch that has just ended; keep its state where it is the pick of a series."""
        history, picks, search = self.history, self.found.picks, self.search
        epoch, kept = len(history), kept_fraction(scores)
        if kept == 0 and self.found.front and math.isfinite(loss):
            self.emptied = True
            return {"epoch": float(epoch), "loss": loss, "kept": kept}
        if not math.isfinite(loss) or kept == 0:
            what = "keeps no weight any more" if math.isfinite(loss) else f"has a loss of {loss}"
            raise SearchStopped(f"the search {what} at epoch {epoch}: lower alpha or the learning rates",
                                self.found if picks else None)
        alpha, _, after = next(stage for stage in search.stages if epoch < stage[2])
        record = {"epoch": float(epoch), "loss": loss + alpha * kept * bool(scores), "kept": kept}
        counts = {part: count_right(predict, batches) for part, batches in self.parts.items()}
        record["accuracy"] = sum(right for right, _ in counts.values()) / sum(n for _, n in counts.values())
        if len(self.parts) > 1:
            record |= {f"accuracy_{part}": right / n for part, (right, n) in counts.items()}
        history.append(record)
        candidates = history
        if search.path:
            candidates = self.found.front
            if epoch + 1 < after:
                return record  # a path is picked from where its stages end
            candidates.append({"alpha": alpha, **record})
            picks[f"{alpha:g}"] = snapshot(epoch)
        for series, target in self.targets.items():
            if pick(candidates, target, _column(series)) == len(candidates) - 1:
                picks[series] = picks[f"{alpha:g}"] if search.path else snapshot(epoch)
        return record

    @property
    def removed(self) -> bool:
        """Whether the last epoch has removed as much as was asked for."""
        most, history = self.search.max_removed, self.history
        return most is not None and bool(history) and 1 - history[-1]["kept"] >= most

    @property
    def over(self) -> bool:
        """Whether there is to be no other epoch."""
        history, search = self.history, self.search
        impatient = bool(history) and 0 < search.patience <= waited(history, self.targets["paper"])
        return self.emptied or self.removed or impatient or len(history) == search.epochs

    def end(self, snapshot: Callable[[int], Pick]) -> None:
        """A search that has removed what was asked for delivers its last epoch, whatever its accuracy."""
        if self.removed:
            self.found.picks.update(dict.fromkeys(self.targets, snapshot(len(self.history) - 1)))


def _column(series: str) -> str:
    return "accuracy" if series == "paper" else f"accuracy_{series}"


def _targets(search: Search, targets: Mapping[str, float] | None, parts: Mapping[str, Any]) -> dict[str, float]:
    """The target of each series; infinity (picks by accuracy minus kept fraction) where none is given."""
    series = [*parts, "paper"] if len(parts) > 1 else ["paper"]
    checks.check_protocol(search, "crossfit" if len(series) > 1 else "paper")
    if not isinstance(targets or {}, Mapping):
        raise ValueError(f"targets are {targets!r}: give a mapping of series to accuracies, or target_accuracy of the "
                         "search, for all of them")
    if unknown := set(targets or {}) - set(series):
        raise ValueError(f"target for unknown series {sorted(unknown)[0]!r}: allowed are {', '.join(series)}")
    if bad := [t for t in (targets or {}).values() if not (0 <= t <= 1 or t == math.inf)]:
        raise ValueError(f"targets have {bad[0]}: a target must be an accuracy, in [0, 1], or infinity for none")
    if search.target_accuracy is not None:
        return dict.fromkeys(series, search.target_accuracy)
    return {s: (targets or {}).get(s, math.inf) for s in series}
