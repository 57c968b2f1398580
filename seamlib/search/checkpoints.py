"""The state of a search on disk after each epoch, so that one that was stopped goes on and ends as it would have."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..evaluate import Loader
from ..masks.masks import Masks
from ..records import cache
from ..structure.gates import Gates
from .found import Pick
from .log import Log
from .settings import Search


class Live(Protocol):
    """What of a running search is kept: `loop.Run` has it."""

    search: Search
    device: torch.device
    scores: Masks
    gates: Gates | None
    head: nn.Module
    alone: torch.optim.Adam
    both: torch.optim.Adam
    done: int


def save(path: Path | str, run: Live, log: Log, train: Loader) -> None:
    """Everything that the epochs to come depend on."""
    tensors = {f"scores/{name}": t for name, t in run.scores.items()}
    tensors |= {f"head/{name}": t for name, t in run.head.state_dict().items()}
    tensors |= {"gates": run.gates.values} if run.gates else {}
    for series, p in log.found.picks.items():
        tensors |= {f"pick/{series}/masks/{name}": t for name, t in p.masks.items()}
        tensors |= {f"pick/{series}/head/{name}": t for name, t in p.head.items()}
    tensors |= cache.progress(train, run.device, {"alone": run.alone, "both": run.both})
    cache.write(path, tensors, {"search": _settings(run, log), "history": log.history,
                                "picks": {series: p.epoch for series, p in log.found.picks.items()}})


def restore(path: Path | str, run: Live, log: Log, train: Loader) -> None:
    """Set all of these to what they were when `save` wrote `path`; nothing, if nothing is there.

    Raises ValueError for a checkpoint of other parameters.
    """
    if not (stored := cache.read(path)):
        return
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
    run.done = len(values["history"]) * len(train)
    log.history.extend(values["history"])
    for series, epoch in values["picks"].items():
        kept = cache.part(tensors, f"pick/{series}/")
        masks = {name: t.to(run.device) for name, t in cache.part(kept, "masks/").items()}
        log.found.picks[series] = Pick(epoch, masks, cache.part(kept, "head/"))
    cache.go_on(tensors, train, run.device, {"alone": run.alone, "both": run.both})


def _settings(run: Live, log: Log) -> dict[str, Any]:
    """All that an epoch and its picks depend on; when the search stops is not."""
    search = {k: v for k, v in dataclasses.asdict(run.search).items() if k != "max_removed"}
    return {**search, "names": list(run.scores), "targets": {series: str(t) for series, t in log.targets.items()}}
