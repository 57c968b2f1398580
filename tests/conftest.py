"""Small models and problems that all tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn

from seamlib.records import runtime

ROOT = Path(__file__).resolve().parent.parent
RUNS = f"runs/test-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"  # each process of tests has its own
SHARED = ROOT.parent / "shared"  # real weights and images, where they are at hand

settings.register_profile("any machine", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tiny inputs: threads would only wait for each other


@pytest.fixture
def runs():
    """An empty folder for records inside the project, as `runs` is relative to it."""
    folder = ROOT / RUNS
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bf16(monkeypatch):
    """bf16 may be asked for, also on a machine that only emulates it: tiny inputs do not mind."""
    monkeypatch.setattr(runtime, "computes_bf16", lambda device: True)


@pytest.fixture
def tiny() -> nn.Module:
    """A convolutional classifier of three classes for images [B, 1, 6, 6], with batch norm and dropout."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1),
                         nn.Linear(64, 3)).eval()


@pytest.fixture
def problem():
    """(train, val): lists of batches of a two-label problem that `tiny` can learn: bright or dark."""
    x = torch.rand(48, 1, 6, 6)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    return [(x[i:i + 8], y[i:i + 8]) for i in range(0, 32, 8)], [(x[32:], y[32:])]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Class folders train/ and test/ of cats and dogs: 6 and 4 PNG images a class, 8x8."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 6), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


def pytest_collection_modifyitems(items):
    """What takes minutes begins first, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: item.path.stem not in ("test_cluster", "test_run"))
