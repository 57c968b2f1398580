import copy
import dataclasses

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from seamlib import evaluate
from seamlib.search import Search, SearchStopped, many, reengineer

SEARCH = Search(epochs=8, head_only_every=5, lr_mask=0.15, alpha=0.1, schedule="anneal")


@pytest.fixture
def model(tiny):
    tiny[1].running_mean.normal_(), tiny[1].running_var.uniform_(0.5, 2)
    tiny[4].p = 0.0  # dropout draws in another order
    return tiny


@pytest.fixture
def three(problem):
    """Three problems of the same images: bright or dark, left or right, top or bottom; and a head for each."""
    train, val = problem
    sides = (lambda x: x.mean((1, 2, 3)) > 0.5, lambda x: x[..., :3].mean((1, 2, 3)) > x[..., 3:].mean((1, 2, 3)),
             lambda x: x[..., :3, :].mean((1, 2, 3)) > x[..., 3:, :].mean((1, 2, 3)))
    trains = [[(x, side(x).long()) for x, _ in train] for side in sides]
    vals = [{part: [(x[i], side(x[i]).long()) for x, _ in val] for part, i in (("a", slice(0, 8)), ("b", slice(8, 16)))}
            for side in sides]
    return [nn.Sequential(nn.ReLU(), nn.Linear(3, 2)) for _ in sides], trains, vals


@pytest.mark.parametrize("names", [None, ["0.weight"], ()])
def test_each_result_is_that_of_its_own_search(model, three, names):
    heads, trains, vals = three
    before, seen = copy.deepcopy(model.state_dict()), []
    targets = [{"a": 0.5, "b": 0.5, "paper": t} for t in (0.5, 0.6, 0.7)]
    given = dict(targets=targets, names=names)
    found = many.together(model, heads, trains, vals, SEARCH, **given, on_epoch=lambda k, e: seen.append((k, e)))
    assert [k for k, _ in seen] == [0, 1, 2] * SEARCH.epochs
    one_by_one = many.reengineer_many(model, heads, trains, vals, SEARCH, **given)  # on a CPU
    for k, ours in enumerate(found):
        alone = reengineer(model, heads[k], trains[k], vals[k], SEARCH, targets=targets[k], names=names)
        assert [e for j, e in seen if j == k] == ours.history
        for theirs in (alone, one_by_one[k]):
            for a, b in zip(ours.history, theirs.history, strict=True):
                assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
            assert ours.picks.keys() == theirs.picks.keys()
            for series, pick in ours.picks.items():
                assert pick.epoch == theirs.picks[series].epoch
                assert all(torch.equal(m, theirs.picks[series].masks[name]) for name, m in pick.masks.items())
                torch.testing.assert_close(pick.head, theirs.picks[series].head, rtol=1e-3, atol=1e-5)
        x = trains[0][0][0]
        torch.testing.assert_close(ours.module()(x), alone.module()(x), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    if names is None:
        assert min(f.history[-1]["kept"] for f in found) < 0.95
        assert len({tuple(m.flatten().tolist()) for m in (f.masks["0.weight"] for f in found)}) > 1


def test_in_bf16_as_well_up_to_its_rounding(model, three, bf16):
    heads, trains, vals = three
    search = dataclasses.replace(SEARCH, precision="bf16")
    for k, ours in enumerate(many.together(model, heads, trains, vals, search)):
        alone = reengineer(model, heads[k], trains[k], vals[k], search)
        for a, b in zip(ours.history, alone.history, strict=True):
            assert (a["kept"], a["loss"]) == (pytest.approx(b["kept"], abs=0.1), pytest.approx(b["loss"], abs=0.05))
        assert ours.history[-1]["kept"] < 1


def test_masked_biases_before_a_batch_norm_in_bf16(model, three, bf16):
    heads, trains, vals = three
    assert model[0].bias is not None  # folded: its mask keeps the bias, the norm's shift is added after
    search = dataclasses.replace(SEARCH, precision="bf16", epochs=1)
    found = many.together(model, heads, trains, vals, search, names=["0.bias", "0.weight"])
    assert all(f.history[0]["loss"] > 0 for f in found)


def test_heads_of_different_classes_are_each_its_own(model, three):
    _, trains, vals = three
    heads = [evaluate.RestrictedHead(evaluate.OneVsRest(c), 2) for c in (0, 1, 2)]
    found = many.together(model, heads, trains, vals, SEARCH)
    for ours, head, train, val in zip(found, heads, trains, vals, strict=True):
        alone = reengineer(model, head, train, val, SEARCH)
        assert [e["accuracy"] for e in ours.history] == [e["accuracy"] for e in alone.history]
        assert [e["loss"] for e in ours.history] == pytest.approx([e["loss"] for e in alone.history], rel=1e-4)


def test_a_model_that_rules_a_class_out_by_minus_infinity_is_stacked(model, three, monkeypatch):
    class Without(nn.Module):
        def forward(self, z):
            return z + torch.tensor([0.0, -torch.inf, 0.0])
    _, trains, vals = three
    heads = [evaluate.RestrictedHead(evaluate.Restrict([0, 2]), 2) for _ in range(3)]
    monkeypatch.setattr(many, "one_by_one", lambda *given, **how: pytest.fail("they were searched one by one"))
    found = many.together(nn.Sequential(model, Without()).eval(), heads, trains, vals, SEARCH)
    assert all(f.history[-1]["kept"] < 1 for f in found)


def test_a_search_that_is_over_waits_for_the_others(model, three):
    heads, trains, vals = three
    search = Search(epochs=14, head_only_every=0, lr_mask=0.05, alpha=0.02, max_removed=0.3)
    vals = [[b for part in val.values() for b in part] for val in vals]
    found = many.together(model, heads, trains, vals, search)
    alone = [reengineer(model, h, t, v, search) for h, t, v in zip(heads, trains, vals, strict=True)]
    lengths = [len(f.history) for f in alone]
    assert [len(f.history) for f in found] == lengths
    assert min(lengths) < max(lengths)
    for ours, theirs in zip(found, alone, strict=True):
        assert ours.picks["paper"].epoch == theirs.picks["paper"].epoch
        assert all(torch.equal(m, theirs.masks[name]) for name, m in ours.masks.items())


def test_bf16_stays_near(model, three, bf16):
    heads, trains, vals = three
    half = Search(epochs=4, head_only_every=0, lr_mask=0.05, alpha=1.0, precision="bf16")
    for ours, k in zip(many.together(model, heads, trains, vals, half), range(3), strict=True):
        alone = reengineer(model, heads[k], trains[k], vals[k], half)
        assert ours.history[-1]["kept"] == pytest.approx(alone.history[-1]["kept"], abs=0.03)


def test_bad_input(model, three):
    heads, trains, vals = three
    with pytest.raises(ValueError, match="there are 2 heads, 3 trains, 3 vals"):
        many.reengineer_many(model, heads[:2], trains, vals, SEARCH)
    with pytest.raises(ValueError, match="0 heads"):
        many.reengineer_many(model, [], [], [], SEARCH)
    with pytest.raises(ValueError, match="the problems have 4, 3, 4 batches an epoch"):
        many.reengineer_many(model, heads, [trains[0], trains[1][:3], trains[2]], vals, SEARCH)
    uneven = [trains[0], [(x[:5], y[:5]) for x, y in trains[1]], trains[2]]
    with pytest.raises(ValueError, match=r"batches of \(5, 1, 6, 6\) and \(8, 1, 6, 6\) at one step"):
        many.together(model, heads, uneven, vals, SEARCH)
    with pytest.raises(SearchStopped, match="keeps no weight any more"):
        many.together(model, heads, trains, vals, Search(epochs=30, lr_mask=1.0, alpha=1e4, head_only_every=0))


class Rows(nn.Module):
    """A recurrent layer over the rows of an image, and a layer that is called by keyword."""

    def __init__(self, kind):
        super().__init__()
        self.rows, self.out = kind(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(input=self.rows(x[:, 0])[0].mean(1))


class Around(nn.Module):
    """A linear layer with something around it."""

    def __init__(self, how):
        super().__init__()
        self.first, self.out, self.how = nn.Linear(36, 6), nn.Linear(6, 3), how

    def forward(self, x):
        return self.out(input=self.how(lambda z: torch.tanh(self.first(input=z)), x.flatten(1)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("build", [
    lambda: Rows(nn.LSTM), lambda: Rows(nn.GRU), lambda: Around(lambda f, x: f(x)),
    lambda: Around(lambda f, x: checkpoint(f, x, use_reentrant=False)),
    lambda: Around(lambda f, x: f(x) if x.mean() > 0.5 else 2 * f(x)),
    lambda: torchvision.models.SwinTransformer([2, 2], 8, [2], [2], [2, 2], num_classes=3, stochastic_depth_prob=0.0),
    lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 6), StochasticDepth(0.5, "row"), nn.Linear(6, 3)),
], ids=["lstm", "gru", "keyword", "checkpoint", "branch", "swin", "stochastic depth"])
def test_a_model_that_cannot_be_stacked_is_searched_problem_by_problem(build, precision, three, bf16):
    model, (heads, trains, vals) = build().eval(), three
    if isinstance(model, torchvision.models.SwinTransformer):
        model = nn.Sequential(Wide(), model)
    search = dataclasses.replace(SEARCH, epochs=2, precision=precision)
    before = copy.deepcopy(model.state_dict())
    for k, ours in enumerate(many.together(model, heads, trains, vals, search)):
        alone = reengineer(model, heads[k], trains[k], vals[k], search)
        for a, b in zip(ours.history, alone.history, strict=True):
            assert (a["kept"], a["loss"]) == (pytest.approx(b["kept"], abs=0.02), pytest.approx(b["loss"], abs=0.02))
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


class Wide(nn.Module):
    def forward(self, x):
        return x.expand(-1, 3, -1, -1)
