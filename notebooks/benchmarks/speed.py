"""How fast a search step is: against the published loop, and against a plain training step. `make bench`

Everything is timed in one process, in turns, so that what disturbs one disturbs all; a ratio is the median of the
ratios of neighbours. Peak memory is that of a process of its own. Writes a record, runs/speed/*.json, which the page
"How fast can it be?" of the book reads once it is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from torch.utils.data import DataLoader

from seamlib import data, models, records, runtime, search
from seamlib.finetune import Training, finetune

MODELS = ("resnet20", "vgg16_bn")
BATCHES = (64, 256)
IMAGES = 512  # an epoch
ROUNDS = 5  # after one to warm up
RIVALS = ("published", "ours", "ours fp32", "training", "training fp32")
Run = Callable[[], object]


def runs(model: str, batch_size: int, where: torch.device, names: tuple[str, ...] = RIVALS) -> dict[str, Run]:
    """An epoch over the same images, loading included, by each of `names`; each call is one more epoch."""
    net = models.build(f"{model}-cifar10").to(where)
    draw = torch.Generator().manual_seed(0)
    split = data.Split(torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=draw),
                       torch.randint(0, 2, (IMAGES,), generator=draw))
    head = models.new_head(10, 2).to(where)
    settings = search.Search(epochs=1, batch_size=batch_size, head_only_every=0)
    workers = min(8, os.cpu_count() or 1) if where.type == "cuda" else 0  # on a CPU they would take its cores
    train = data.batches(split, batch_size, where, seed=0, flip=True)

    def published() -> Run:
        loader: DataLoader = DataLoader(Images(split), batch_size, shuffle=True, num_workers=workers,
                                        persistent_workers=workers > 0, pin_memory=workers > 0)
        run = Published(net, head, settings)
        return lambda: run.train(loader)

    def ours(precision: str) -> Run:
        run = search._Run(net, head, None, dataclasses.replace(settings, precision=precision), 10**9)
        return lambda: run.train(train, head_only=False)

    def training(precision: str) -> Run:
        return lambda: finetune(net, train, Training(epochs=1, batch_size=batch_size, precision=precision))
    made: dict[str, Callable[[], Run]] = {
        "published": published, "ours": lambda: ours("bf16"),
        "ours fp32": lambda: ours("fp32"), "training": lambda: training("bf16"),
        "training fp32": lambda: training("fp32")}
    return {name: made[name]() for name in names}


def seconds(run: Run, where: torch.device) -> float:
    begun = time.perf_counter()
    run()
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter() - begun


def timed(rivals: dict[str, Run], where: torch.device, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each round of each rival, in turns; the first round is dropped."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds + 1):
        for name, run in rivals.items():
            times[name].append(seconds(run, where))
    return {name: found[1:] for name, found in times.items()}


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Median over the rounds of the time of `above` over that of `below`."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def peak(model: str, batch_size: int, device: str, name: str) -> float:
    """MB at the most, of a process (CPU) or of the device's memory (CUDA), that runs one epoch of rival `name`."""
    where = runtime.device(device)
    runs(model, batch_size, where, (name,))[name]()
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 1e6
    status = Path("/proc/self/status")  # ru_maxrss would be the parent's where that was larger
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3


def measured(model: str, batch_size: int, where: torch.device, rounds: int = ROUNDS) -> dict[str, Any]:
    """One row of the table."""
    times = timed(runs(model, batch_size, where), where, rounds)
    memory = {}
    for name in RIVALS[:2]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory[name] = pool.apply(peak, (model, batch_size, where.type, name))
    return {
        "speedup": ratio(times, "published", "ours"), "speedup_fp32": ratio(times, "published", "ours fp32"),
        "overhead": ratio(times, "ours", "training") - 1,
        "overhead_fp32": ratio(times, "ours fp32", "training fp32") - 1,
        "images_per_second": {name: IMAGES / statistics.median(t) for name, t in times.items()},
        "seconds": times, "peak_mb": memory,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    root, where = runtime.project(), runtime.device(args.device)
    started, results = time.monotonic(), dict[str, Any]()
    print(f"{'':24}published   ours   speed-up   over training   MB published   MB ours")
    for model in MODELS:
        for batch_size in BATCHES:
            row = results[f"{model}, batch {batch_size}"] = measured(model, batch_size, where, args.rounds)
            rate, memory = row["images_per_second"], row["peak_mb"]
            print(f"{f'{model}, batch {batch_size}':24}{rate['published']:7.0f}/s {rate['ours']:6.0f}/s "
                  f"{row['speedup']:8.2f} x {row['overhead']:+13.1%} {memory['published']:14.0f} {memory['ours']:9.0f}",
                  flush=True)
    parameters = {"device": args.device, "rounds": args.rounds, "images": IMAGES}
    record = records.Record("speed", "step", parameters, results, 0, *runtime.commit(root), runtime.describe(where),
                            time.monotonic() - started, {})
    print(records.write(record, root / "runs"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
