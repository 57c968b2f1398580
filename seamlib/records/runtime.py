"""What every run needs and no experiment is about: device, seed, identity of things, safe writing."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import glob
import hashlib
import os
import platform
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parameters import check_choice

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16")
FEATURES = ("fma", "avx", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "asimd",
            "bf16")  # the last two: Arm
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


def precision(name: str, device: torch.device) -> str:
    """What training steps of precision `name` run in on `device`: `fp32` or `bf16`.

    `auto`: bf16 where the hardware computes in it (CUDA from Ampere on; CPUs with AVX512-BF16, AMX or Arm's bf16),
    fp32 elsewhere, and where the system does not say what its CPU can.
    Raises ValueError for an unknown name, and for bf16 on a CPU that would have to emulate it.
    """
    check_choice("precision", name, PRECISIONS)
    if name == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    if name == "bf16" and device.type == "cpu" and cpu_features() and not computes_bf16(device):
        raise ValueError("precision is 'bf16', and this CPU has no AVX512-BF16, AMX or Arm bf16: emulated, it would be "
                         "many times slower than fp32; use precision='auto' (fp32 here) or 'fp32'")
    return name


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 in hardware, as far as the system says."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_features()))


def cpu_features() -> list[str]:
    """The vector extensions of this CPU that decide how fast it is; empty where the system does not say."""
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                flags |= set(line.partition(":")[2].split())
    return [f for f in FEATURES if f in flags]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which matrix products run in `precision`: `fp32` (as they are) or `bf16`."""
    import torch

    check_choice("precision", precision, ("fp32", "bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context whose draws from torch's global generators follow from `seed`; the caller's state comes back after."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (64 hex digits) over names, dtypes, shapes and bytes of `tensors` in sorted order.

    The same tensors have the same digest whatever file they came from.
    """
    import torch

    h = hashlib.sha256()
    for name in sorted(n for n, t in tensors.items() if isinstance(t, torch.Tensor)):  # some models keep more
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name}|{str(t.dtype).removeprefix('torch.')}|{tuple(t.shape)}|".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Context that yields a temporary path beside `path`; it becomes `path` only if the block ends well.

    A crash or a full disk inside the block leaves whatever stood at `path` before. What a killed process left of its
    own temporary path is removed by the next that writes to `path`; who still writes holds a lock on his.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    while True:  # until what was made was also locked before another process swept it away
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)  # less what the umask takes
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            break
        os.close(handle)
    try:
        yield part
        with open(part, "rb+") as f:
            os.fsync(f.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove the temporary paths of `path` that nobody writes to."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError), open(left, "rb") as f:  # it is locked, or was removed by another
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def project(start: Path | str = ".") -> Path:
    """The project folder: the nearest from `start` upward that holds notebooks/ and pyproject.toml.

    Where there is none, the checkout that this library is in; if it is in none, `start` itself.
    """
    here = Path(start).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
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


def describe(device: torch.device, trained_in: str = "") -> dict[str, Any]:
    """kind, name, (CPU) threads and vector extensions of `device`, for a record.

    Where there are training steps, also what those of precision `trained_in` run in (see `precision`, which may raise).
    """
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"kind": device.type, "name": name, "threads": torch.get_num_threads(), "features": cpu_features(),
            **({"precision": precision(trained_in, device)} if trained_in else {})}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
