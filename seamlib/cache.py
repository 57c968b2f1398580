"""Results of long steps on disk: kept under a key of everything they depend on, never answered for anything else."""

from __future__ import annotations

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

Stored = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and what JSON can say


def key(about: Mapping[str, Any]) -> str:
    """Sixteen hex digits over `about` (JSON values), the source text of this library and torch's version."""
    text = json.dumps({**about, "code": _code(), "torch": torch.__version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(1)
def _code() -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


def cached(folder: Path | str, name: str, about: Mapping[str, Any], make: Callable[[], Stored]) -> Stored:
    """What `make()` returned when it was called with `about` last: from `folder`, or made now and kept there.

    `make` returns (tensors by name, JSON values); both come back equal. A damaged file is made again.
    """
    path = Path(folder) / f"{name}-{key(about)}.safetensors"
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
