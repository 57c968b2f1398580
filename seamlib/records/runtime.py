"""What every run needs and no experiment is about: device, seed, identity of things, safe writing."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "bf16")
PACKAGES = ("seamlib", "torch", "torchvision", "numpy", "safetensors", "fvcore", "mlxtend", "papermill",
            "jupyter-book", "onnx", "onnxruntime", "deepsparse")


def device(name: str = "auto") -> torch.device:
    """The torch device called `name`: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises ValueError for any other name, and for a CUDA device that this machine does not have.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"unknown device {name!r}: allowed are auto, cpu, cuda and cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not on this machine, which has {torch.cuda.device_count()} CUDA "
                         "devices: use device='auto' or 'cpu'")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which matrix products run in `precision`: `fp32` (as they are) or `bf16`."""
    import torch

    check_choice("precision", precision, PRECISIONS)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context whose draws from torch's global generators follow from `seed`; the caller's state comes back after."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def check_choice(what: str, value: str, allowed: tuple[str, ...] | list[str]) -> None:
    """Raise ValueError, with the allowed values, unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}: allowed are {', '.join(allowed)}")


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (64 hex digits) over names, dtypes, shapes and bytes of `tensors` in sorted order.

    The same tensors have the same digest whatever file they came from.
    """
    import torch

    h = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name}|{str(t.dtype).removeprefix('torch.')}|{tuple(t.shape)}|".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Context that yields a temporary path beside `path`; it becomes `path` only if the block ends well.

    A crash or a full disk inside the block leaves whatever stood at `path` before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "rb+") as f:
            os.fsync(f.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def project(start: Path | str = ".") -> Path:
    """The project folder around `start`: the nearest one upward that holds notebooks/ and pyproject.toml.

    Where there is none (the library used elsewhere), `start` itself.
    """
    here = Path(start).resolve()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


def commit(root: Path | str = ".") -> tuple[str, bool]:
    """(commit id, whether tracked files differ from it) of the git checkout at `root`, or ("unknown", True)."""
    try:
        def git(*args: str) -> str:
            return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True).stdout
        return git("rev-parse", "HEAD").strip(), bool(git("status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def now() -> str:
    """The time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Version of Python and of each package a result can depend on; `not installed` where one is missing."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe(device: torch.device) -> dict[str, Any]:
    """kind, name and (CPU) threads of `device`, for a record."""
    import torch

    if device.type == "cuda":
        return {"kind": "cuda", "name": torch.cuda.get_device_name(device), "threads": torch.get_num_threads()}
    return {"kind": device.type, "name": _cpu_name(), "threads": torch.get_num_threads()}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
