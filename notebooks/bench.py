"""What masking costs: a search step against a plain training step, in one run, alternating.

    python notebooks/bench.py

Same network, batch, precision, memory format and threads; median of the ratios of neighbouring runs. Also the time
that `import seamlib` adds to `import torch`. Prints one JSON object.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from seamlib import data, models, runtime, search
from seamlib.finetune import Training, finetune

STEPS, ROUNDS = 8, 7


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def ratio(name: str, batch_size: int, precision: str, where: torch.device) -> dict[str, float]:
    """Median ratio of search to training, and images a second of both."""
    model = models.build(name).to(where)
    split = data.Split(torch.randint(0, 256, (STEPS * batch_size, 3, 32, 32), dtype=torch.uint8),
                       torch.randint(0, 2, (STEPS * batch_size,)))
    train = data.batches(split, batch_size, where, seed=0, flip=True)
    one = data.batches(split.select(torch.tensor([0])), 1, where)
    head = models.new_head(10, 2).to(where)
    chosen = search.Search(epochs=1, batch_size=batch_size, head_only_every=0, precision=precision)
    plain = Training(epochs=1, batch_size=batch_size, precision=precision)
    pairs = [(seconds(lambda: search.reengineer(model, head, train, one, chosen)),
              seconds(lambda: finetune(model, train, plain))) for _ in range(ROUNDS + 1)][1:]
    images = STEPS * batch_size
    return {"ratio": round(statistics.median(a / b for a, b in pairs), 3),
            "search images/s": round(images / statistics.median(a for a, _ in pairs)),
            "training images/s": round(images / statistics.median(b for _, b in pairs))}


def import_seconds() -> float:
    """Median time that `import seamlib` takes after `import torch`."""
    code = "import torch, time; t = time.perf_counter(); import seamlib; print(time.perf_counter() - t)"
    return statistics.median(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                                  check=True).stdout) for _ in range(5))


if __name__ == "__main__":
    where = runtime.device()
    found = {f"{name} batch {b} {precision}": ratio(name, b, precision, where)
             for name in ("resnet20-cifar10", "vgg16_bn-cifar10") for b, precision in ((64, "bf16"), (16, "bf16"))}
    print(json.dumps({"device": runtime.describe(where), "versions": runtime.versions(), "steps": found,
                      "import seamlib, s": round(import_seconds(), 3)}, indent=1))
