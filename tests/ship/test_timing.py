import copy
import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from seamlib.ship import export, timing

OTHERS = [pytest.param(e, marks=pytest.mark.skipif(e not in timing.installed(), reason=f"{e} is not installed here"))
          for e in ("onnxruntime", "deepsparse")]


@pytest.fixture
def pair():
    """Two small networks, their input and their outputs."""
    def network():
        return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
                             nn.Flatten(), nn.Linear(16 * 16, 5)).eval()
    models, x = {"one": network(), "two": network()}, torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        return models, x, {name: model(x) for name, model in models.items()}


def test_torch_is_timed_in_order_and_leaves_the_threads_alone(pair):
    models, x, expected = pair
    threads = torch.get_num_threads()
    found = timing.latency(models, x, "torch", expected=expected, rounds=9, threads=2)
    assert torch.get_num_threads() == threads
    assert found.threads == 2
    for times in found.by_model.values():
        assert 0 < times["p10"] <= times["median"] <= times["p90"]
        assert times["error"] == 0
    assert found.others is None or 0 <= found.others <= 1
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_a_wrapper_that_says_train_around_a_model_in_eval_mode_is_timed(pair):
    models, x, expected = pair
    wrapped = {"one": nn.DataParallel(models["one"]), "two": torch.jit.script(models["two"])}
    assert wrapped["one"].training
    found = timing.latency(wrapped, x, "torch", expected=expected, rounds=1)
    assert found.by_model["one"]["median"] > 0


def test_models_alternate_after_the_warm_up(pair):
    _, x, _ = pair
    calls = []

    class Noted(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            calls.append(self.name)
            return x
    timing.latency({n: Noted(n).eval() for n in "ab"}, x, "torch", expected=dict.fromkeys("ab", x), rounds=4)
    warm = ["a", "b"] + ["a"] * timing.WARMUP + ["b"] * timing.WARMUP  # the first two were compared with `expected`
    assert calls == warm + ["a", "b", "b", "a"] * 2


@pytest.mark.parametrize("engine", OTHERS)
def test_every_engine_gives_torchs_output(pair, engine, tmp_path):
    models, x, expected = pair
    files = {name: export.export_onnx(model, x, tmp_path / f"{name}.onnx") for name, model in models.items()}
    found = timing.latency(files, x, engine, expected=expected, rounds=3, threads=1)
    assert all(t["error"] < 1e-4 for t in found.by_model.values())


@pytest.mark.parametrize("engine", ["torch", *OTHERS])
def test_an_engine_that_gives_another_output_is_refused(pair, engine, tmp_path):
    models, x, expected = pair
    if engine != "torch":
        models = {name: export.export_onnx(model, x, tmp_path / f"{name}.onnx") for name, model in models.items()}
    wrong = {**expected, "two": expected["two"] + 0.08}
    with pytest.raises(ValueError, match=rf"engine '{engine}' gives another output for 'two' than torch \(up to 0.08"):
        timing.latency(models, x, engine, expected=wrong, rounds=1)
    with pytest.raises(ValueError, match=r"for 'two' than torch \(shape \(2, 5\)\)"):
        timing.latency(models, x, engine, expected={**expected, "two": torch.zeros(2, 4)}, rounds=1)


def test_bad_arguments_say_what_is_allowed(pair, tmp_path, monkeypatch):
    models, x, expected = pair
    with pytest.raises(ValueError, match="unknown engine 'tvm': allowed are torch, onnxruntime, deepsparse"):
        timing.latency(models, x, "tvm", expected=expected)
    with pytest.raises(ValueError, match="rounds is 0, images are 2"):
        timing.latency(models, x, "torch", expected=expected, rounds=0)
    with pytest.raises(ValueError, match="images are 0"):
        timing.latency(models, x[:0], "torch", expected=expected)
    with pytest.raises(ValueError, match=r"'one' is a PosixPath: engine torch takes modules, .*export_onnx writes"):
        timing.latency({"one": tmp_path}, x, "torch", expected=expected)
    with pytest.raises(ValueError, match="expected has no output for two: give torch's output"):
        timing.latency(models, x, "torch", expected={"one": expected["one"]})
    with pytest.raises(ValueError, match="'two', or a part of it, is in train mode: call model.eval"):
        timing.latency({**models, "two": copy.deepcopy(models["two"]).train()}, x, "torch", expected=expected)
    monkeypatch.setattr(timing, "installed", lambda: ("torch",))
    missing = r"engine 'deepsparse' is not installed: pip install deepsparse==1.8.0 'numpy<2' .*; here are torch"
    with pytest.raises(ModuleNotFoundError, match=missing):
        timing.latency(models, x, "deepsparse", expected=expected)


@pytest.mark.parametrize(("p90", "others", "noisy"), [
    (1.0, 0.0, False), (1.5, 0.10, False), (1.51, 0.0, True), (1.0, 0.11, True), (1.0, None, False)])
def test_a_run_is_noisy_by_spread_or_by_other_work(p90, others, noisy):
    times = {"a": {"median": 1.0, "p90": 1.0}, "b": {"median": 1.0, "p90": p90}}
    assert timing.is_noisy(times, others) is noisy


def test_other_work_is_what_neither_idled_nor_was_ours():
    assert timing._others((0, 0, 0), (10, 6, 4)) == pytest.approx(0.2)
    assert timing._others((0, 0, 0), (10, 4, 5)) == 0
    assert timing._others(None, (10, 4, 5)) is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU affinity")
def test_two_threads_of_one_core_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(timing.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(timing, "TOPOLOGY", tmp_path)
    assert timing._usable_cores() == 4  # nothing is known of who shares what
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{siblings}\n")
    assert timing._usable_cores() == 2


@pytest.mark.skipif("deepsparse" not in timing.installed(), reason="deepsparse is not installed here")
def test_deepsparse_does_not_report_home(tmp_path):
    # Its own word does not count: where its look-up of the country fails, it calls itself disabled, but it has asked.
    code = '''
import atexit, sys
tries = []
def refuse(event, args):
    if event in ("socket.getaddrinfo", "socket.connect"):
        tries.append(event)
        raise OSError("no network in this test")
sys.addaudithook(refuse)
atexit.register(lambda: print("tries:", len(tries)))  # after its threads have ended
import torch
from seamlib.ship import export, timing
m, x = torch.nn.Linear(4, 2).eval(), torch.rand(1, 4)
f = export.export_onnx(m, x, sys.argv[1])
timing.latency({"m": f}, x, "deepsparse", expected={"m": m(x)}, rounds=1)
from deepsparse.analytics import deepsparse_analytics
print("disabled:", bool(deepsparse_analytics._disabled))
'''
    unset = {k: v for k, v in os.environ.items() if k != "NM_DISABLE_ANALYTICS"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.onnx")], capture_output=True, text=True,
                          check=True, env=unset)
    assert done.stdout.splitlines()[-2:] == ["disabled: True", "tries: 0"]
