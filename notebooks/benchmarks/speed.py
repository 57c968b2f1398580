"""How fast a search step is: against the published loop, and against a plain training step. `make bench`

Everything is timed in one process, in turns, so that what disturbs one disturbs all; a ratio is the median of the
ratios of neighbours. Peak memory is that of a process of its own; of a GPU, that of its own memory. Beside that: what
arithmetic and memory alone would take (the floors), where the time goes, and how it grows with batch, model and number
of problems. Writes a record, runs/speed/*.json, which the page "How fast can it be?" of the book reads once it is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from published import Images, Published
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from seamlib import masks, models, records, search
from seamlib.evaluate import OneVsRest, RestrictedHead
from seamlib.problems import data
from seamlib.records import runtime
from seamlib.reuse.finetune import Training, finetune
from seamlib.search import capture, many
from seamlib.search.loop import Run as SearchRun
from seamlib.ship import cost

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import report
import speeds

MODELS = ("resnet20", "vgg16_bn")
BATCHES = (64, 256)
IMAGES = 512  # an epoch
ROUNDS = 5  # after one to warm up
RIVALS = ("published", "ours", "ours fp32", "training", "training fp32")
GROWING_BATCH = (16, 32, 64, 128, 256, 512)
GROWING_MODEL = ("resnet20", "resnet32", "resnet44", "resnet56")
GROWING_PROBLEMS = (1, 2, 4, 10)
PRODUCTS = ("convolution", "::mm", "::addmm", "gemm", "conv", "wgrad", "dgrad")  # parts of the operators' names
UPDATES = ("adam", "foreach", "multi_tensor")
Run = Callable[[], object]


def problem(model: str, where: torch.device) -> tuple[nn.Module, nn.Module, data.Split]:
    """(Source model, head, images of a binary problem), all drawn at random: time does not ask what they show."""
    draw = torch.Generator().manual_seed(0)
    split = data.Split(torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=draw),
                       torch.randint(0, 2, (IMAGES,), generator=draw))
    return models.build(f"{model}-cifar10").eval().to(where), models.new_head(10, 2).to(where), split


def runs(model: str, batch_size: int, where: torch.device, names: tuple[str, ...] = RIVALS) -> dict[str, Run]:
    """An epoch over the same images, loading included, by each of `names`; each call is one more epoch."""
    net, head, split = problem(model, where)
    settings = search.Search(epochs=1, batch_size=batch_size, head_only_every=0)
    workers = min(8, os.cpu_count() or 1) if where.type == "cuda" else 0  # on a CPU they would take its cores
    train = data.batches(split, batch_size, where, seed=0, flip=True)

    def published() -> Run:
        loader: DataLoader = DataLoader(Images(split), batch_size, shuffle=True, num_workers=workers,
                                        persistent_workers=workers > 0, pin_memory=workers > 0)
        run = Published(net, head, settings)
        return lambda: run.train(loader)

    def ours(precision: str) -> Run:
        run = SearchRun(net, head, None, dataclasses.replace(settings, precision=precision), 10**9)
        return lambda: run.train(train, head_only=False)

    def training(precision: str) -> Run:
        return lambda: finetune(net, train, Training(epochs=1, batch_size=batch_size, precision=precision))
    made: dict[str, Callable[[], Run]] = {
        "published": published, "ours": lambda: ours("auto"),
        "ours fp32": lambda: ours("fp32"), "training": lambda: training("auto"),
        "training fp32": lambda: training("fp32")}
    return {name: made[name]() for name in names}


def default(where: torch.device) -> Run:
    """An epoch of the search that this book uses for CIFAR-10: norms that adapt, soft labels, a restricted head."""
    net, _, split = problem("resnet20", where)
    given = report.settings("cifar10", "direct_binary")
    settings = search.Search(**{f.name: given[f.name] for f in dataclasses.fields(search.Search) if f.name in given}
                             | {"path": search.path_of(given["path"]), "target_accuracy": None, "max_removed": None})
    train = data.batches(split, settings.batch_size, where, seed=0, flip=True)
    run = SearchRun(net, RestrictedHead(OneVsRest(0), 2).to(where), None, settings, 10**9)
    return lambda: run.train(train, head_only=False)


def seconds(run: Run, where: torch.device) -> float:
    begun = time.perf_counter()
    run()
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter() - begun


def timed(rivals: dict[str, Run], where: torch.device, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each round of each rival, in turns; the first is dropped, and on CUDA all until steps are recorded."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    before = 1 if where.type == "cpu" else capture.WARMUP + 2  # an epoch may be one step
    for _ in range(before + rounds):
        for name, run in rivals.items():
            times[name].append(seconds(run, where))
    return {name: found[before:] for name, found in times.items()}


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Median over the rounds of the time of `above` over that of `below`."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def peak(model: str, batch_size: int, device: str, name: str) -> float:
    """MB at the most, of a process (CPU) or of the device's memory (CUDA), that runs one epoch of rival `name`."""
    where = runtime.device(device)
    if where.type == "cuda":
        gc.collect()
        before = torch.cuda.memory_allocated(where)
        torch.cuda.reset_peak_memory_stats(where)
    runs(model, batch_size, where, (name,))[name]()
    if where.type == "cuda":
        return (torch.cuda.max_memory_allocated(where) - before) / 1e6
    status = Path("/proc/self/status")  # ru_maxrss would be the parent's where that was larger
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3


def alone(call: Callable[..., float], *given: object) -> float:
    """What `call` returns in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, given)


def measured(model: str, batch_size: int, where: torch.device, rounds: int = ROUNDS) -> dict[str, Any]:
    """One row of the table."""
    times = timed(runs(model, batch_size, where), where, rounds)
    setting = (model, batch_size, where.type)
    return {
        "speedup": ratio(times, "published", "ours"), "speedup_fp32": ratio(times, "published", "ours fp32"),
        "overhead": ratio(times, "ours", "training") - 1,
        "overhead_fp32": ratio(times, "ours fp32", "training fp32") - 1,
        "images_per_second": {name: IMAGES / statistics.median(t) for name, t in times.items()},
        "seconds": times, "floors": floors(model, batch_size, where),
        "peak_mb": {name: peak(*setting, name) if where.type == "cuda" else alone(peak, *setting, name)
                    for name in RIVALS[:2]},
        "shares": shares(runs(model, batch_size, where, ("ours",))["ours"], where),
    }


def floors(model: str, batch_size: int, where: torch.device) -> dict[str, float]:
    """Seconds an epoch that arithmetic and memory traffic alone would take, at the rates that torch reaches here.

    Arithmetic: three products (forward, gradient of the maps, of the weights; the first layer has no map to derive
    for), at the rate of a large square product in bf16. Traffic: each map and its gradient is written once and read
    twice, in bf16; each score, its gradient and its two moments are read and written once, its weight read once; at
    the rate of copying a large block.
    """
    net, _, _ = problem(model, where)
    found, maps = cost.flops(net, torch.rand(1, 3, 32, 32, device=where)), list[int]()
    for layer in (m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
        layer.register_forward_hook(lambda _, __, output: maps.append(output.numel()))
    net(torch.rand(1, 3, 32, 32, device=where))
    square, block, other = torch.rand(2048, 2048, device=where).bfloat16(), *torch.rand(2, 2**26, device=where)
    product = min(seconds(lambda: square @ square, where) for _ in range(8))
    copy = min(seconds(lambda: other.copy_(block), where) for _ in range(8))
    weights = sum(net.get_parameter(name).numel() for name in masks.maskable(net))
    steps = -(-IMAGES // batch_size)
    multiply_adds = IMAGES * (3 * found.dense - next(iter(found.by_layer.values()))[0])
    moved = IMAGES * sum(maps) * 2 * 6 + steps * weights * 4 * 9
    return {"arithmetic": multiply_adds * product / 2048**3, "traffic": moved * copy / (2 * block.nbytes),
            "multiply_adds_per_second": 2048**3 / product, "bytes_per_second": 2 * block.nbytes / copy}


def shares(run: Run, where: torch.device) -> dict[str, float]:
    """Shares of the time of one epoch: convolutions and matrix products, optimiser, and the rest."""
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (where.type == "cuda")
    with profile(activities=kinds, acc_events=True) as profiled:
        run()
    spent = dict.fromkeys(("products", "optimiser", "rest"), 0.0)
    for event in profiled.key_averages():
        name = event.key.lower()
        part = "products" if any(p in name for p in PRODUCTS) else "optimiser" if any(
            u in name for u in UPDATES) else "rest"
        spent[part] += event.self_device_time_total if where.type == "cuda" else event.self_cpu_time_total
    return {part: t / sum(spent.values()) for part, t in spent.items()}


def growth(where: torch.device, rounds: int) -> dict[str, Any]:
    """Seconds an epoch of our search, with one thing growing at a time."""
    by_batch = timed({str(b): runs("resnet20", b, where, ("ours",))["ours"] for b in GROWING_BATCH}, where, rounds)
    by_model = timed({m: runs(m, 64, where, ("ours",))["ours"] for m in GROWING_MODEL}, where, rounds)
    by_count = timed({f"{k} {how}": run for k in GROWING_PROBLEMS for how, run in problems(k, where).items()}, where,
                     rounds)
    sizes = {m: cost.flops(problem(m, where)[0], torch.rand(1, 3, 32, 32, device=where)).dense for m in by_model}
    return {"batch": [{"batch": int(b), "seconds": statistics.median(t)} for b, t in by_batch.items()],
            "model": {m: {"multiply_adds": sizes[m], "seconds": statistics.median(t)} for m, t in by_model.items()},
            "problems": [{"problems": k, **{how: statistics.median(by_count[f"{k} {how}"])
                                            for how in ("one by one", "together")}} for k in GROWING_PROBLEMS]}


def problems(count: int, where: torch.device) -> dict[str, Run]:
    """An epoch of `count` problems of ResNet20 at batch 64: one after another, and with every step shared."""
    net, head, split = problem("resnet20", where)
    settings = search.Search(epochs=1, head_only_every=0, precision="auto")
    trains = [data.batches(split, settings.batch_size, where, seed=k, flip=True) for k in range(count)]
    single = [SearchRun(net, head, None, settings, 10**9) for _ in trains]
    stack = many._Stack(net, [head] * count, None, settings, 10**9)
    return {"one by one": lambda: [run.train(t, head_only=False) for run, t in zip(single, trains, strict=True)],
            "together": lambda: stack.train(many._stacked(trains, where), head_only=False)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    root, where = runtime.project(), runtime.device(args.device)
    started, steps = time.monotonic(), dict[str, Any]()
    print(f"{'':24}published   ours   speed-up   over training   MB published   MB ours")
    for model in MODELS:
        for batch_size in BATCHES:
            row = steps[f"{model}, batch {batch_size}"] = measured(model, batch_size, where, args.rounds)
            rate, memory = row["images_per_second"], row["peak_mb"]
            print(f"{f'{model}, batch {batch_size}':24}{rate['published']:7.0f}/s {rate['ours']:6.0f}/s "
                  f"{row['speedup']:8.2f} x {row['overhead']:+13.1%} {memory['published']:14.0f} {memory['ours']:9.0f}",
                  flush=True)
    rivals = {**runs("resnet20", 64, where, ("published",)), "default": default(where)}
    results = {"steps": steps, "growth": growth(where, args.rounds), "whole": timed(rivals, where, args.rounds)}
    parameters = {"device": args.device, "rounds": args.rounds, "images": IMAGES}
    record = records.Record("speed", "step", parameters, results, 0, *runtime.commit(root),
                            runtime.describe(where, "auto"), time.monotonic() - started, {})
    path = records.write(record, root / "runs")
    print(f"\n{'':56}{'target':>8}  measured")
    for what, target, value in speeds.targets(results, where.type):
        print(f"{what:56}{target:>8}  {value}")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
