"""The state of a search on disk after each epoch, so that one that was stopped goes on and ends as it would have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..evaluate import Loader
from ..masks.masks import Masks
from ..masks.norms import BatchNorm
from ..records import cache, runtime
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
    norms: dict[str, BatchNorm]
    trained: nn.Module
    alone: torch.optim.Adam
    both: torch.optim.Adam
    done: int


def save(path: Path | str, run: Live, log: Log, train: Loader, about: Mapping[str, Any]) -> None:
    """Everything that the epochs to come depend on; `about`: what `told` says of the search."""
    tensors = {f"scores/{name}": t for name, t in run.scores.items()}
    tensors |= {f"head/{name}": t for name, t in run.head.state_dict().items()}
    tensors |= {"gates": run.gates.values, "worth": run.gates.worth} if run.gates else {}
    tensors |= {f"norms/{name}": t for name, t in _norms(run).items()}
    for series, p in log.found.picks.items():
        tensors |= {f"pick/{series}/masks/{name}": t for name, t in p.masks.items()}
        tensors |= {f"pick/{series}/head/{name}": t for name, t in p.head.items()}
        tensors |= {f"pick/{series}/norms/{name}": t for name, t in p.norms.items()}
    tensors |= cache.progress(train, run.device, {"alone": run.alone, "both": run.both})
    cache.write(path, tensors, {"search": dict(about), "history": log.history, "front": log.found.front,
                                "picks": {series: p.epoch for series, p in log.found.picks.items()}})


def restore(path: Path | str, run: Live, log: Log, train: Loader, about: Mapping[str, Any]) -> None:
    """Set all of these to what they were when `save` wrote `path`; nothing, if nothing is there.

    Raises ValueError for a checkpoint of a search of which `told` says something else, and for any other file.
    """
    if not (stored := cache.checkpoint(path, "search", about)):
        return
    tensors, values = stored
    if run.search.max_removed is not None and any(1 - e["kept"] >= run.search.max_removed
                                                  for e in values["history"][:-1]):
        return  # it is further than this search should go
    with torch.no_grad():
        for name, score in run.scores.items():
            score.copy_(tensors[f"scores/{name}"])
        if run.gates:
            run.gates.values.copy_(tensors["gates"])
            run.gates.worth.copy_(tensors["worth"])
        for name, t in _norms(run).items():
            t.copy_(tensors[f"norms/{name}"])
    run.head.load_state_dict(cache.part(tensors, "head/"))
    run.done = len(values["history"]) * len(train)
    log.history.extend(values["history"])
    log.found.front.extend(values["front"])
    for series, epoch in values["picks"].items():
        kept = cache.part(tensors, f"pick/{series}/")
        masks, norms = ({name: t.to(run.device) for name, t in cache.part(kept, part).items()}
                        for part in ("masks/", "norms/"))
        log.found.picks[series] = Pick(epoch, masks, cache.part(kept, "head/"), norms)
    cache.go_on(tensors, train, run.device, {"alone": run.alone, "both": run.both})


def _norms(run: Live) -> dict[str, torch.Tensor]:
    """The live tensors of the batch norms that adapt."""
    return {f"{name}.{key}": t for name in run.norms
            for key, t in run.trained.get_submodule(name).state_dict(keep_vars=True).items()}


def told(run: Live, log: Log, train: Loader) -> dict[str, Any]:
    """All that an epoch and its picks depend on, but for the images; when the search stops is not."""
    search = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(run.search).items()
              if k != "max_removed"}  # as JSON will have it
    return {**search, "names": list(run.scores), "targets": {series: str(t) for series, t in log.targets.items()},
            "model": runtime.digest(log.found.source.state_dict()), "batches": len(train),
            "head": {name: list(p.shape) for name, p in log.found.new_head.named_parameters()},  # begins anew each time
            "classes": runtime.digest(dict(log.found.new_head.named_buffers()))}
