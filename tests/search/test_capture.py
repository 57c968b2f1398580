"""Without a GPU: what is replayed, when, and that a search by replay is the search."""

import contextlib
import dataclasses
import warnings

import pytest
import torch

from seamlib.search import Search, capture, loop, reengineer


@pytest.fixture
def recorded(monkeypatch):
    """Recording as on CUDA, but for the GPU: nothing is computed, and each replay fills the same memory."""
    made = []

    def record(step):
        result = torch.full((), torch.nan)
        made.append(result)
        return lambda: result.copy_(step()), result
    monkeypatch.setattr(capture, "_record", record)
    monkeypatch.setattr(capture, "_aside", contextlib.nullcontext)
    monkeypatch.setattr(capture, "_watched", lambda: contextlib.nullcontext([]))
    return made


def test_the_first_steps_are_taken_as_they_are_and_the_others_from_its_own_memory(recorded):
    seen = []

    def step(x, y, flag):
        seen.append((x.data_ptr(), flag))
        return (x.sum() * 10 + y.sum()) * (-1 if flag else 1)
    replayed = capture.Replayed(step)
    given = [torch.tensor([float(i)]) for i in range(6)]
    assert [float(replayed(x, torch.tensor([i]), flag=False)) for i, x in enumerate(given)] == [
        0, 11, 22, 33, 44, 55]
    assert [p for p, _ in seen[:3]] == [x.data_ptr() for x in given[:3]]
    assert len({p for p, _ in seen[3:]}) == 1
    assert len(recorded) == 1
    assert [float(replayed(x, torch.tensor([0]), flag=True)) for x in given[:4]] == [0, -10, -20, -30]
    assert float(replayed(torch.ones(2), torch.ones(2), flag=False)) == 22  # another shape: not the recorded one
    assert len(recorded) == 2


def test_a_step_that_waits_for_the_gpu_is_taken_each_time(recorded, monkeypatch):
    taken = []
    monkeypatch.setattr(capture, "_watched", lambda: contextlib.nullcontext(["called a synchronizing CUDA operation"]))
    replayed = capture.Replayed(lambda x, y, flag: taken.append(float(x)) or x * 2)
    assert [float(replayed(torch.tensor(float(i)), torch.tensor(0), flag=False)) for i in range(6)] == [
        0, 2, 4, 6, 8, 10]
    assert taken == [0, 1, 2, 3, 4, 5]
    assert not recorded


def test_what_waits_is_told_from_other_warnings(monkeypatch):
    modes = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])

    def set_mode(mode):
        modes.append(mode)
        if mode:
            warnings.warn("a prototype", stacklevel=1)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)

    def watch():
        with capture._watched() as waits:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("a word of the model's own", stacklevel=1)
        return waits
    with pytest.warns(UserWarning, match="a word of the model's own") as said:
        waits = watch()
    assert waits == ["called a synchronizing CUDA operation"]
    assert modes == [0, "warn", 0]
    assert [str(w.message) for w in said] == ["a word of the model's own"]


@pytest.mark.parametrize("schedule", ["constant", "anneal"])
def test_a_search_by_replay_finds_the_same(tiny, problem, recorded, monkeypatch, schedule):
    tiny[4].p = 0.0
    train, val = problem
    settings = Search(epochs=6, head_only_every=3, lr_mask=0.1, alpha=0.5, schedule=schedule)
    head = torch.nn.Linear(3, 2)
    plain = reengineer(tiny, head, train, val, settings)
    before = loop.Run._optimise

    def by_replay(run, heads):
        before(run, heads)
        run.step = capture.Replayed(run._step)
    monkeypatch.setattr(loop.Run, "_optimise", by_replay)
    found = reengineer(tiny, head, train, val, dataclasses.replace(settings))
    assert len(recorded) == 2 * len({x.shape for x, _ in train})  # with the head alone, and with all
    assert found.history == plain.history
    assert all(torch.equal(m, plain.masks[name]) for name, m in found.masks.items())
