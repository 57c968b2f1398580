"""The baseline that the benchmark measures against computes what the library computes."""

import dataclasses
import sys
import types

import pytest
import speed
import speeds
import torch
from published import Images, Published
from torch import nn

from seamlib import records
from seamlib.masks import binarize, kept_fraction
from seamlib.problems import data
from seamlib.search import Search, reengineer


def test_the_published_loop_finds_the_same_masks(tiny, problem):
    tiny[4].p = 0.0  # dropout: both would draw, in another order
    train, val = problem
    search = Search(epochs=4, head_only_every=0, lr_mask=0.1, alpha=1.0)
    head = nn.Linear(3, 2)
    published = Published(tiny, head, search)
    for _ in range(search.epochs):
        published.train(train)
    removed = 1 - kept_fraction(published.scores)
    assert 0 < removed < 1
    assert published.log[-1][2] < 1
    found = reengineer(tiny, head, train, val, dataclasses.replace(search, max_removed=removed))  # takes its last epoch
    assert len(found.history) == search.epochs
    for name, mask in binarize(published.scores).items():
        assert torch.equal(found.masks[name], mask)


def test_images_are_what_the_library_loads():
    split = data.Split(torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8), torch.arange(5))
    images = Images(split)
    assert len(images) == 5
    x, label = images[3]
    assert (x.shape, label) == ((3, 8, 8), 3)
    images.transform.transforms[:2] = []  # neither crop nor mirror
    assert images[3][0].mul(255).round().to(torch.uint8).equal(split.images[3])
    with pytest.raises(IndexError):
        images[5]


def test_the_table_of_targets_measures_only_what_this_kind_of_device_can_answer():
    steps = {f"{model}, batch 64": {"speedup": 3.14, "overhead": -0.05} for model in ("resnet20", "vgg16_bn")}
    results = {"steps": steps, "growth": {"problems": [{"problems": 10, "one by one": 6.0, "together": 1.0}]},
               "whole": {"published": [1.0, 2.0, 9.0], "default": [0.5, 0.5, 7.0]}}
    on = {kind: [value for _, _, value in speeds.targets(results, kind)] for kind in ("cpu", "cuda")}
    mask, whole = speeds.kept_at_no_loss(), 300 * 2.0 / (30 * 0.5)  # the epochs of the two presets
    path = f"{whole:.0f} for the whole path"
    assert on["cpu"] == ["3.14", "-5.0%", "3.14", "-5.0%", path, "not measured", mask, "not measured", "not measured"]
    assert on["cuda"] == ["not measured"] * 5 + [path, mask, "3.14", "6.00"]
    both = [types.SimpleNamespace(results=results, device={"kind": kind}) for kind in ("cpu", "cuda")]
    assert [value for _, _, value in speeds.targets_of(both)] == [*on["cpu"][:5], path, mask, "3.14", "6.00"]
    assert [value for _, _, value in speeds.targets_of(both[:1])] == on["cpu"]


def test_what_is_kept_at_no_loss_is_a_mean_over_the_records(monkeypatch):
    monkeypatch.setattr(speeds.report, "of_preset", lambda *_: [])
    assert speeds.kept_at_no_loss() == "no records"
    table = speeds.pd.DataFrame({"all: kept": [0.05, 0.1], "all: points": [-0.5, 0.2]})
    monkeypatch.setattr(speeds.direct, "front_rows", lambda *_: table)
    assert speeds.kept_at_no_loss() == "7.5%, -0.15 points"


def test_rivals_take_turns_and_a_ratio_is_that_of_neighbours(monkeypatch):
    order, clock = [], iter([0, 9, 10, 19, 20, 24, 30, 32, 40, 46, 50, 52])  # begin and end of each call
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    times = speed.timed({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, torch.device("cpu"), rounds=2)
    assert order == ["a", "b"] * 3
    assert times == {"a": [4, 6], "b": [2, 2]}  # the first round is dropped
    assert speed.ratio(times, "a", "b") == 2.5


def test_the_floor_of_arithmetic_is_three_products_a_layer_but_two_of_the_first(monkeypatch):
    monkeypatch.setattr(speed, "seconds", lambda run, where: 1.0)
    found = speed.floors("resnet20", 64, torch.device("cpu"))
    assert found["multiply_adds_per_second"] == 2048**3
    whole, first = 41214592 - 0, 3 * 16 * 9 * 32 * 32
    assert found["arithmetic"] == pytest.approx(speed.IMAGES * (3 * whole - first) / 2048**3, rel=1e-3)


def test_shares_of_an_epoch_add_up_and_products_have_the_most():
    where = torch.device("cpu")
    square = torch.rand(400, 400)
    found = speed.shares(lambda: [square @ square for _ in range(20)] + [square + 1], where)
    assert sum(found.values()) == pytest.approx(1)
    assert found["products"] > found["rest"] > found["optimiser"] == 0


def test_the_benchmark_leaves_a_record_and_prints_its_table(monkeypatch, tmp_path, capsys):
    small = {"BATCHES": (64,), "IMAGES": 4, "GROWING_BATCH": (2, 16), "GROWING_MODEL": ("resnet20",),
             "GROWING_PROBLEMS": (1, 2)}
    for name, value in small.items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(speed, "alone", lambda *_: 1.0)  # a process of its own takes seconds to start
    monkeypatch.setattr(speed.runtime, "project", lambda: tmp_path)
    monkeypatch.setattr(speed.runtime, "commit", lambda _: ("0" * 40, False))
    monkeypatch.setattr(sys, "argv", ["speed.py", "--device", "cpu", "--rounds", "1"])
    assert speed.main() == 0
    (record,) = records.read_all(tmp_path / "runs", "speed")
    said = capsys.readouterr().out
    for what, target, value in speeds.targets(record.results, "cpu"):
        assert f"{what:56}{target:>8}  {value}\n" in said
    assert list(record.results["growth"]["model"]) == ["resnet20"]
