import pytest
import torch
from torch import nn

from seamlib.ship import compare, timing


def models():
    return {"wide": nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 2)).eval(),
            "narrow": nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()}


def test_every_engine_times_every_model_at_every_batch():
    found = compare.latencies(models(), [torch.rand(b, 3, 2, 2) for b in (2, 1)], ["torch", "onnxruntime"], rounds=2,
                              threads=1)
    assert list(found) == ["torch", "onnxruntime"]
    for by_batch in found.values():
        assert list(by_batch) == ["2", "1"]
        for timed in by_batch.values():
            assert timed["threads"] == 1
            assert set(timed["by_model"]) == {"wide", "narrow"}
            assert all(t["median"] > 0 and t["error"] < 1e-5 for t in timed["by_model"].values())


def test_an_engine_that_is_not_installed_is_none(monkeypatch):
    monkeypatch.setattr(timing, "installed", lambda: ("torch",))
    found = compare.latencies(models(), [torch.rand(1, 3, 2, 2)], ["deepsparse", "torch"], rounds=1)
    assert found["deepsparse"] == {"1": None}
    assert found["torch"]["1"] is not None


def test_one_file_serves_all_engines_that_read_one(monkeypatch):
    written = []
    monkeypatch.setattr(compare.export, "export_onnx", lambda model, x, path: written.append(path))
    monkeypatch.setattr(compare.timing, "latency", lambda *_, **__: timing.Latency({}, 1, None, False))
    monkeypatch.setattr(timing, "installed", lambda: timing.ENGINES)
    compare.latencies(models(), [torch.rand(1, 3, 2, 2)], timing.ENGINES)
    assert sorted(path.name for path in written) == ["narrow.onnx", "wide.onnx"]


def test_an_unknown_engine_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="engine.*'tensorrt'.*torch, onnxruntime, deepsparse"):
        compare.latencies({"broken": nn.Linear(1, 1)}, [torch.rand(1, 3, 2, 2)], ["torch", "tensorrt"])
