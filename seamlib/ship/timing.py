"""Latency: models alternate in one run, on an engine whose outputs were compared with torch's first."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..plain import check_evaluating
from ..records import parameters
from ..trial import first_line

ENGINES = ("torch", "onnxruntime", "deepsparse")
INSTALL = {"torch": "pip install torch", "onnxruntime": "pip install onnxruntime",
           "deepsparse": "pip install deepsparse==1.8.0 'numpy<2' (Python 3.11 or older)"}
WARMUP = 5  # calls of each model before any is timed
TOLERANCE = 1e-3  # absolute and relative: far above fp32's rounding (1e-5), far below what moves an arg max
ROUNDINGS = 16  # the same in rounding steps of the precision, where they are more: of half and bfloat16
BUSY, SPREAD = 0.10, 1.5  # a run is noisy if others had more of the cores, or if p90 is more than so many medians
TOPOLOGY = Path("/sys/devices/system/cpu")
Call = Callable[[], Tensor | np.ndarray]


@dataclass(frozen=True)
class Latency:
    """Times of one run, all of them numbers."""

    by_model: dict[str, dict[str, float]]  #: median, p10 and p90 in seconds a call; error: the largest against torch
    threads: int  #: cores the engine was allowed to use
    others: float | None  #: share of the machine's core time that other work took, from ticks of 0.01 s; or None
    noisy: bool  #: whether `others` or the spread says that these times are not to be trusted


def installed() -> tuple[str, ...]:
    """The engines that can be used here."""
    return tuple(e for e in ENGINES if importlib.util.find_spec(e))


def latency(models: Mapping[str, nn.Module | Path], x: Tensor, engine: str, *, expected: Mapping[str, Tensor],
            rounds: int = 30, threads: int | None = None) -> Latency:
    """Time one call of each of `models` on `x`, images [B, C, H, W] in the models' precision, by `engine`.

    `models`: modules in eval mode for torch, ONNX files for `x`'s batch size (`export.export_onnx`) for the others.
    `expected`: torch's output for each; an engine that gives another is refused with ValueError. After the warm-up come
    `rounds` rounds; in each every model is called once, first to last and last to first in turn. `threads`: default,
    all physical cores that this process may use. With torch, models and `x` may be on a GPU. Raises ModuleNotFoundError
    for an engine that is not installed, FileNotFoundError for an ONNX file that is not there, ValueError for bad
    arguments, or a model that is in train mode or cannot be run on `x`.
    """
    parameters.check_choice("engine", engine, ENGINES)
    if engine not in installed():
        raise ModuleNotFoundError(f"engine {engine!r} is not installed: {INSTALL[engine]}; here are "
                                  f"{', '.join(installed())}")
    if rounds < 1 or len(x) < 1 or not models or (threads is not None and threads < 1):
        raise ValueError(f"rounds is {rounds}, images are {len(x)}, models are {len(models)}, threads is {threads}: "
                         "each must be at least 1")
    if unknown := models.keys() - expected.keys():
        raise ValueError(f"expected has no output for {', '.join(sorted(unknown))}: give torch's output on `x` for "
                         "each of the models")
    threads = threads or _usable_cores()
    with _threads(threads), torch.no_grad():
        calls, errors = {}, {}
        for name, model in models.items():
            try:
                calls[name] = _compiled(name, model, x, engine, threads)
                found = calls[name]()
            except (ValueError, FileNotFoundError):
                raise
            except Exception as e:  # of an engine's own classes
                raise ValueError(f"engine {engine!r} cannot run {name!r} on images of shape {tuple(x.shape)} and "
                                 f"{x.dtype}: {first_line(e)}") from e
            errors[name] = _error(name, found, expected[name], engine)
        for call in calls.values():
            for _ in range(WARMUP):
                call()
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        before = _work()
        for r in range(rounds):
            for name in list(calls)[:: 1 if r % 2 == 0 else -1]:
                begun = time.perf_counter()
                calls[name]()
                seconds[name].append(time.perf_counter() - begun)
        others = _others(before, _work())
    by_model = {name: dict(zip(("p10", "median", "p90"), map(float, np.percentile(s, (10, 50, 90))), strict=True))
                | {"error": errors[name]} for name, s in seconds.items()}
    return Latency(by_model, threads, others, is_noisy(by_model, others))


def is_noisy(by_model: Mapping[str, Mapping[str, float]], others: float | None) -> bool:
    """Whether other work took more than BUSY of the cores, or some p90 is more than SPREAD medians."""
    return (others or 0) > BUSY or any(t["p90"] > SPREAD * t["median"] for t in by_model.values())


def _compiled(name: str, model: nn.Module | Path, x: Tensor, engine: str, threads: int) -> Call:
    if isinstance(model, nn.Module) != (engine == "torch"):
        raise ValueError(f"{name!r} is a {type(model).__name__}: engine torch takes modules, onnxruntime and "
                         "deepsparse take the ONNX files that seamlib.export_onnx writes")
    if isinstance(model, nn.Module):
        check_evaluating(model, repr(name))
        return lambda: model(x).cpu()  # waits for the GPU, if it is one
    if not Path(model).is_file():
        raise FileNotFoundError(f"{name!r} has no file at {model}: write it with seamlib.export_onnx")
    images = np.ascontiguousarray(x.cpu().numpy())
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # or they take the others' cores
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: images}
        return lambda: session.run(None, feed)[0]
    os.environ["NM_DISABLE_ANALYTICS"] = "True"  # before the import: it reports home otherwise
    import deepsparse

    compiled = deepsparse.Engine(str(model), batch_size=len(images), num_cores=threads)
    return lambda: compiled.run([images])[0]


def _error(name: str, found: Tensor | np.ndarray, expected: Tensor, engine: str) -> float:
    """Largest absolute difference of an engine's output from torch's; ValueError if it is more than rounding."""
    found, want = torch.as_tensor(found).double(), expected.detach().cpu().double()
    rounding = max(TOLERANCE, ROUNDINGS * torch.finfo(expected.dtype).eps if expected.is_floating_point() else 0)
    if found.shape != want.shape or not torch.allclose(found, want, rounding, rounding):
        largest = (f"up to {float((found - want).abs().max()):.3g}" if found.shape == want.shape else
                   f"shape {tuple(found.shape)}")
        raise ValueError(f"engine {engine!r} gives another output for {name!r} than torch ({largest}): no time of it "
                         "means anything. DeepSparse 1.8.0 does this under numpy 2 and above (pip install 'numpy<2'), "
                         "and for some numbers of channels (compact(..., multiple=16))")
    return float((found - want).abs().max())


def _usable_cores() -> int:
    """Physical cores that this process may use; CPUs, where the system does not say which of them share a core."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    try:
        return len({(TOPOLOGY / f"cpu{c}/topology/thread_siblings_list").read_text() for c in cpus})
    except OSError:
        return len(cpus)


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _work() -> tuple[float, float, float] | None:
    """Seconds of core time so far: (all, not idle, this process's own); None where the system does not say."""
    try:
        ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    hertz = os.sysconf("SC_CLK_TCK")
    return sum(ticks) / hertz, (sum(ticks) - ticks[3] - ticks[4]) / hertz, time.process_time()


def _others(before: tuple[float, float, float] | None, after: tuple[float, float, float] | None) -> float | None:
    """Share of the core time between two readings that neither idled nor was this process's own; in [0, 1]."""
    if before is None or after is None or after[0] <= before[0]:
        return None
    total, busy, own = (b - a for a, b in zip(before, after, strict=True))
    return min(1.0, max(0.0, (busy - own) / total))
