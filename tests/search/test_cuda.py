"""On a GPU, where there is one: a search there is the search that a CPU makes, step for step, up to rounding."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from seamlib import models
from seamlib.evaluate import OneVsRest, RestrictedHead
from seamlib.problems.data import Split, batches
from seamlib.reuse.finetune import Training, finetune
from seamlib.search import Search, capture, many, reengineer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
PATH = Search(path=(0.001, 0.01), epochs=8, lr_mask=0.15, lr_head=0.02, head_only_every=0, schedule="anneal",
              batch_size=8)
SEARCHES = {
    "one alpha": Search(epochs=8, head_only_every=5, lr_mask=0.15, alpha=0.1, schedule="anneal", batch_size=8),
    "path": PATH,
    "norms that adapt": dataclasses.replace(PATH, norms="affine", labels="soft"),
    "statistics": dataclasses.replace(PATH, norms="statistics", labels="soft"),
    "channels": dataclasses.replace(PATH, structure=0.6)}


@pytest.fixture
def exact():
    """Convolutions in full fp32: with TF32 the two devices round differently by a thousandth."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def model(tiny):
    tiny[1].running_mean.normal_(), tiny[1].running_var.uniform_(0.5, 2)
    tiny[4].p = 0.0  # dropout draws in another order
    return tiny


def by_device(model, problem, search, where):
    return reengineer(copy.deepcopy(model).to(where), RestrictedHead(OneVsRest(1), 2).to(where), *problem, search)


def assert_same_course(found, expected):
    for ours, theirs in zip(found.history, expected.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2, abs=1e-3)
        assert ours["kept"] == pytest.approx(theirs["kept"], abs=0.02)
    same = [m.cpu() == expected.masks[name].cpu() for name, m in found.masks.items()]
    assert torch.cat([s.flatten() for s in same]).float().mean() > 0.97  # scores at zero, and the gates next to them


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_is_that_of_a_cpu(model, problem, exact, name):
    there, here = (by_device(model, problem, SEARCHES[name], where) for where in (GPU, torch.device("cpu")))
    assert_same_course(there, here)
    assert there.history[-1]["kept"] < 0.95


@pytest.mark.parametrize("name", SEARCHES)
def test_the_steps_of_the_library_are_recorded(model, problem, monkeypatch, name):
    made = []
    monkeypatch.setattr(capture, "_record", lambda step, record=capture._record: made.append(record(step)) or made[-1])
    by_device(model, problem, SEARCHES[name], GPU)
    assert len(made) == (2 if SEARCHES[name].head_only_every else 1)  # with the head alone, and with all


class Waits(nn.Module):
    def forward(self, x):
        return x / max(1.0, float(x.detach().abs().max()))  # a number that the CPU asks for: no graph can hold it


@pytest.mark.parametrize("name", SEARCHES)
def test_a_model_that_reads_a_number_back_is_searched_all_the_same(model, problem, exact, monkeypatch, name):
    waits, search = nn.Sequential(model, Waits()), dataclasses.replace(SEARCHES[name], structure=0.0)
    monkeypatch.setattr(capture, "_record", lambda step: pytest.fail("recorded"))
    assert_same_course(*(by_device(waits, problem, search, where) for where in (GPU, torch.device("cpu"))))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_step_that_is_replayed_is_the_step(model, problem, monkeypatch, name, precision):
    search = dataclasses.replace(SEARCHES[name], precision=precision)
    replayed = by_device(model, problem, search, GPU)
    monkeypatch.setattr(capture, "Replayed", lambda step: step)
    stepped = by_device(model, problem, search, GPU)
    for ours, theirs in zip(replayed.history, stepped.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    same = [m == stepped.masks[name] for name, m in replayed.masks.items()]
    assert torch.cat([s.flatten() for s in same]).float().mean() > 0.99


def test_problems_that_share_steps_find_what_each_finds_alone(model, problem, exact, monkeypatch):
    train, val = problem
    trains = [train, [(x, 1 - y) for x, y in train], [(x, (x[..., :3].mean((1, 2, 3)) > 0.5).long()) for x, _ in train]]
    vals, heads = [{"a": val}] * 3, [nn.Linear(3, 2).to(GPU) for _ in trains]
    monkeypatch.setattr(many, "one_by_one", lambda *a, **given: pytest.fail("not together"))
    found = many.reengineer_many(model.to(GPU), heads, trains, vals, SEARCHES["one alpha"])
    for ours, head, train in zip(found, heads, trains, strict=True):
        alone = reengineer(model, head, train, {"a": val}, SEARCHES["one alpha"])
        assert_same_course(ours, alone)
        for a, b in zip(ours.history, alone.history, strict=True):
            assert a == pytest.approx(b, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("name", ["resnet20-cifar10", "vgg16_bn-cifar10"])
def test_the_book_s_models_are_searched_and_fine_tuned(name):
    draw = torch.Generator().manual_seed(0)
    split = Split(torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=draw), torch.arange(64) % 2)
    net, train = models.build(name).eval().to(GPU), batches(split, 16, GPU, seed=0, flip=True)
    settings = dataclasses.replace(PATH, epochs=8, norms="affine", labels="soft", precision="bf16", batch_size=16)
    found = reengineer(net, RestrictedHead(OneVsRest(1), 2).to(GPU), train, batches(split, 64, GPU), settings)
    assert found.history[-1]["kept"] < 1
    _, history = finetune(net, train, Training(lr=0.01, epochs=3, batch_size=16, precision="bf16"))
    assert history[-1]["loss"] < history[0]["loss"]
