"""Models side by side on every engine: each gets its file, and all alternate in one run."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..plain import check_evaluating
from ..records import parameters
from ..trial import answer
from . import export, timing


def latencies(models: Mapping[str, nn.Module], images: Iterable[Tensor], engines: Iterable[str], *,
              device: torch.device | str = "cpu", rounds: int = 30, threads: int | None = None
              ) -> dict[str, dict[str, dict[str, Any] | None]]:
    """Engine -> number of images (as text) -> the fields of `timing.Latency`; None for an engine that is not installed.

    `models`: modules in eval mode on the CPU; `images`: batches, float32 [B, C, H, W] in [0, 1], each timed by itself.
    Engine torch runs on `device`, the others on the CPU, from ONNX files made for the batch. `rounds`, `threads`: as
    for `timing.latency`. Raises ValueError for an engine that there is not, or that answers otherwise than torch, and,
    before any is called, for a model that is in train mode.
    """
    engines = list(engines)
    for engine in engines:
        parameters.check_choice("engine", engine, timing.ENGINES)
    for name, model in models.items():
        check_evaluating(model, repr(name))
    there = set(engines) & set(timing.installed())
    found: dict[str, dict[str, dict[str, Any] | None]] = {engine: {} for engine in engines}
    for x in images:
        expected = {name: answer(model, x) for name, model in models.items()}
        with tempfile.TemporaryDirectory() as folder:
            files = {name: export.export_onnx(model, x, Path(folder) / f"{name}.onnx")
                     for name, model in models.items()} if there - {"torch"} else {}
            for engine in engines:
                here = {name: copy.deepcopy(m).to(device) for name, m in models.items()} if engine == "torch" else files
                found[engine][str(len(x))] = dataclasses.asdict(timing.latency(
                    here, x.to(device) if engine == "torch" else x, engine, expected=expected, rounds=rounds,
                    threads=threads)) if engine in there else None
    return found
