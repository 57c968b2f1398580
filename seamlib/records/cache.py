"""Results of long steps on disk: kept under a key of everything they depend on, never answered for anything else.

And the state in the middle of one, so that it can go on after a crash.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from . import runtime

LIBRARY = Path(__file__).parents[1]
Stored = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and what JSON can say


def key(by: str, about: Mapping[str, Any]) -> str:
    """Sixteen hex digits over `about` (JSON values), torch's version, and the source of module `by` (its `__name__`)
    and of all files of this library that it builds on."""
    text = json.dumps({**about, "code": _code(by), "torch": torch.__version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache
def _code(module: str) -> str:
    """SHA-256 over the source files of `module` (seamlib.room.file) and of all that it builds on."""
    sources: dict[Path, bytes] = {}
    waiting = [_file(LIBRARY.joinpath(*module.split(".")[1:]))]
    while waiting:
        if (path := waiting.pop()) not in sources:
            sources[path] = path.read_bytes()
            for node in ast.walk(parsed(sources[path])):
                if isinstance(node, ast.ImportFrom) and node.level:
                    start = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                    # a name is a file of a room, or comes from the file or the room's own
                    waiting += [_file(start / a.name, start) for a in node.names]
    return hashlib.sha256(b"".join(sources[path] for path in sorted(sources))).hexdigest()


def parsed(source: str | bytes) -> ast.Module:
    """Its syntax. CPython up to 3.11.7 raises SystemError where another thread parses too (gh-106905): once more."""
    for _ in range(9):
        with contextlib.suppress(SystemError):
            return ast.parse(source)
    return ast.parse(source)


def _file(*places: Path) -> Path:
    """The source of the first of `places` (without suffix) where there is a module or room."""
    files = [p for place in places for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()]
    if not files:
        raise FileNotFoundError(f"no module at {' or '.join(map(str, places))}: a key is made of all sources")
    return files[0]


def cached(folder: Path | str, name: str, by: str, about: Mapping[str, Any], make: Callable[[], Stored]) -> Stored:
    """What `make()`, of module `by`, returned when it was called with `about` last: from `folder`, or made now.

    `make` returns (tensors by name, JSON values); both come back equal. A damaged file is made again.
    """
    path = Path(folder) / f"{name}-{key(by, about)}.safetensors"
    stored = read(path)
    if stored is None:
        stored = make()
        write(path, *stored)
    return stored


def write(path: Path | str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write tensors and JSON values to one safetensors file, atomically."""
    apart = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    with runtime.atomic(path) as part:
        part.write_bytes(safetensors.torch.save(apart, {"seamlib": json.dumps(dict(values))}))


def read(path: Path | str) -> Stored | None:
    """What `write` left at `path`; None if there is nothing, or nothing whole."""
    try:
        with safetensors.safe_open(path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()["seamlib"])  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, json.JSONDecodeError, KeyError, TypeError):
        return None


def checkpoint(path: Path | str, kind: str, about: Mapping[str, Any]) -> Stored | None:
    """What `write` left at `path`, if values[kind] there is `about`; None if there is nothing.

    Raises ValueError, with what differs, for a checkpoint of something else, and for any other file: it would be
    written over.
    """
    stored = read(path)
    if stored is None and (not Path(path).exists() or Path(path).stat().st_size == 0):
        return None
    if stored is None or kind not in stored[1]:
        raise ValueError(f"{path} is there, and is no checkpoint of a {kind}, or is damaged: give a path of its own, "
                         "or remove the file")
    before, now = stored[1][kind], json.loads(json.dumps(dict(about)))
    if other := ", ".join(name for name in {**before, **now} if before.get(name) != now.get(name)):
        raise ValueError(f"the checkpoint was made with other parameters ({other}): remove it, or give those")
    return stored


def progress(train: Any, device: torch.device, optimisers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What the epochs to come depend on beside weights: optimisers, random numbers, and where `train` stands."""
    tensors = {f"{name}/{i}/{key}": torch.as_tensor(value) for name, optimiser in optimisers.items()
               for i, state in optimiser.state_dict()["state"].items() for key, value in state.items()
               if value is not None}
    tensors["random"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["random-cuda"] = torch.cuda.get_rng_state(device)
    if (position := getattr(train, "position", None)) is not None:
        tensors["position"] = position
    return tensors | {f"drawn/{i}": draw.get_state() for i, draw in enumerate(_drawing(train))}


def _drawing(train: Any) -> list[torch.Generator]:
    """The generators of a DataLoader and of its samplers, which draw the order of the images."""
    batches = getattr(train, "batch_sampler", None)
    owners = (train, getattr(train, "sampler", None), batches, getattr(batches, "sampler", None))
    return [draw for owner in owners if isinstance(draw := getattr(owner, "generator", None), torch.Generator)]


def go_on(tensors: Mapping[str, Tensor], train: Any, device: torch.device,
          optimisers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Set all that `progress` read to what it was."""
    for name, optimiser in optimisers.items():
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        state = optimiser.state_dict()
        state["state"] = {}
        for key, value in part(tensors, f"{name}/").items():
            i, _, what = key.partition("/")
            like = parameters[int(i)]  # a file keeps no strides, and a fused step may need its parameter's
            kept = torch.empty_like(like, requires_grad=False).copy_(value) if value.shape == like.shape else value
            state["state"].setdefault(int(i), {})[what] = kept
        optimiser.load_state_dict(state)
    torch.set_rng_state(tensors["random"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random-cuda"], device)
    if "position" in tensors:
        train.position = tensors["position"]
    for k, draw in enumerate(_drawing(train)):
        if f"drawn/{k}" in tensors:  # there was one before, too
            draw.set_state(tensors[f"drawn/{k}"])


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
