import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from seamlib import models
from seamlib.masks import apply_masks, binarize
from seamlib.search import Search, many, reengineer
from seamlib.search.loop import Run
from seamlib.ship import cost
from seamlib.structure import Gates, channel_groups, compact


@pytest.fixture
def chain():
    """Two convolutions without padding and two linear layers: 1 -> 4 -> 6 channels, 6 * 4 -> 5 -> 3 features."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


IMAGE = torch.zeros(1, 1, 8, 8)


def moved(model):
    """Numbers that the convolutions and linear layers of `model` read and write for an image."""
    sizes = []
    hooks = [m.register_forward_hook(lambda _, x, y: sizes.append(x[0].numel() + y.numel()))
             for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    model(IMAGE)
    for hook in hooks:
        hook.remove()
    return sum(sizes)


def closed(gates, share, seed):
    draw = torch.Generator().manual_seed(seed)
    gates.values.data[torch.rand(gates.values.shape, generator=draw) < share] = 0
    return gates


def test_groups_of_a_chain_by_hand(chain):
    layers, n = channel_groups(chain, IMAGE)
    assert n == 4 + 6 + 5
    assert list(layers) == ["0.weight", "3.weight", "7.weight", "9.weight"]
    assert layers["0.weight"].into.tolist() == layers["9.weight"].out[:1].tolist() == [n]
    assert layers["0.weight"].out.tolist() == layers["3.weight"].into.tolist() == [0, 1, 2, 3]
    assert layers["7.weight"].into.tolist() == [g for g in layers["3.weight"].out.tolist() for _ in range(4)]
    adds, reads, writes = [9 * 4 * 36, 9 * 24 * 16, 24 * 5, 15], [64, 4 * 36, 24, 5], [4 * 36, 6 * 16, 5, 3]
    total = sum(adds) + 20 * (sum(reads) + sum(writes))
    for want, name, each in ((adds, "pairs", 1), (reads, "read", 20), (writes, "written", 20)):
        assert [getattr(layer, name) for layer in layers.values()] == pytest.approx([each * c / total for c in want])


def test_a_depthwise_convolution_goes_with_the_channels_it_reads_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    layers, n = channel_groups(model.eval(), IMAGE)
    assert n == 4
    assert layers["2.weight"].into.tolist() == [n]
    assert layers["2.weight"].out.tolist() == layers["0.weight"].out.tolist() == layers["4.weight"].into.tolist()
    total = 9 * 4 * 36 + 9 * 4 * 16 + 8 * 16 + 20 * (64 + 4 * 36 + 4 * 36 + 4 * 16 + 4 * 16 + 2 * 16)
    assert (layers["2.weight"].pairs, layers["2.weight"].read) == (0, 0)
    assert layers["2.weight"].written == pytest.approx((9 * 4 * 16 + 20 * (4 * 36 + 4 * 16)) / total)
    gates = Gates(model, IMAGE)
    gates.values.data[1] = 0
    masks = binarize(gates.scores({name: torch.ones_like(model.get_parameter(name)) for name in layers}))
    assert [mask.flatten(1).all(1).tolist() for name, mask in masks.items() if name != "4.weight"] == (
        2 * [[True, False, True, True]])
    small, _ = compact(apply_masks(copy.deepcopy(model), masks), IMAGE)
    assert [tuple(p.shape) for p in small.parameters() if p.dim() == 4] == [(3, 1, 3, 3), (3, 1, 3, 3), (2, 3, 1, 1)]
    assert float(gates.cost(gates.values.detach())) == pytest.approx(
        (9 * 3 * 36 + 9 * 3 * 16 + 6 * 16 + 20 * (64 + 3 * 36 + 3 * 36 + 3 * 16 + 3 * 16 + 2 * 16)) / total)


def test_what_an_addition_joins_is_one_group():
    layers, n = channel_groups(models.build("resnet20-cifar10").eval(), torch.zeros(1, 3, 32, 32))
    stream = layers["conv1.weight"].out.tolist()
    assert all(layers[f"layer1.{b}.conv2.weight"].out.tolist() == stream for b in range(3))
    assert n == (16 + 32 + 64) * 4  # in each stage the stream, and the middle of three blocks
    assert set(layers["fc.weight"].out.tolist()) == {n}


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.8), st.integers(0, 99))
def test_what_the_gates_promise_compaction_delivers(share, seed):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                          nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    gates = closed(Gates(model, IMAGE), share, seed)
    opened = gates.values.detach()
    parts = [opened[:4], opened[4:10], opened[10:]]
    if any(not part.any() for part in parts):
        return  # a layer without any channel keeps one, as no tensor has none
    masks = binarize(gates.scores({name: torch.ones_like(model.get_parameter(name)) for name in gates.layers}))
    small, _ = compact(apply_masks(copy.deepcopy(model), masks), IMAGE)
    before, after = (sum(dense for dense, _ in cost.flops(m, IMAGE).by_layer.values()) + 20 * moved(m)
                     for m in (model, small))
    assert float(gates.cost(opened)) == pytest.approx(after / before)


def test_a_gate_has_the_gradients_of_the_kept_weights_that_read_its_channel(chain):
    gates = Gates(chain, IMAGE)
    gates.layers = {"3.weight": gates.layers["3.weight"]}
    score = torch.randn(6, 4, 3, 3, requires_grad=True)
    gates.values.data[[1, 5]] = 0  # the second channel that it reads, the second that it writes
    weight = torch.randn(6, 4, 3, 3)
    out = gates.scores({"3.weight": score, "3.bias": score})
    assert out["3.bias"] is score  # a channel without weights is a constant whatever its bias
    assert (out["3.weight"][1] == -1).all()
    assert torch.equal(out["3.weight"][0], score[0])
    (out["3.weight"] * weight).sum().backward()
    torch.testing.assert_close(score.grad, weight)  # straight through the shut gate as well
    kept = (score > 0) & (torch.arange(6) != 1).reshape(6, 1, 1, 1)
    torch.testing.assert_close(gates.values.grad[:4], (weight * kept).sum((0, 2, 3)))
    assert not gates.values.grad[4:].any()


def test_a_gate_learns_what_its_channel_is_worth_behind_a_norm_of_the_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3),
                          nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    x, y = torch.randn(8, 1, 8, 8), torch.randint(3, (8,))
    gates = Gates(model, IMAGE)
    weights = {name: model.get_parameter(name).detach() for name in gates.layers}
    opened = gates.scores({name: torch.ones_like(w) for name, w in weights.items()})
    model.train()
    masked = {name: w * opened[name] for name, w in weights.items()}
    nn.functional.cross_entropy(torch.func.functional_call(model, masked, (x,)), y).backward()
    scale = torch.ones(4, 1, 1, requires_grad=True)
    model[3].register_forward_pre_hook(lambda _, read: read[0] * scale)
    nn.functional.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(gates.values.grad[:4], scale.grad.flatten())
    assert float(scale.grad.abs().min()) > 1e-4  # scaling what writes the channel has none: the norm undoes it


def costs(chain):
    """What the cost falls by when one of the channels of a layer goes, of each of its layers but the last."""
    first, second, third, fourth = channel_groups(chain, IMAGE)[0].values()
    return [(first.pairs + first.written + second.pairs + second.read) / 4,
            (second.pairs + second.written + third.pairs + third.read) / 6,
            (third.pairs + third.written + fourth.pairs + fourth.read) / 5]


def test_the_gates_that_are_worth_least_for_their_cost_are_shut_by_hand(chain):
    gates, (a, b, c) = Gates(chain, IMAGE), costs(chain)
    worth = [3.0 * a, 9 * a, 9 * a, 9 * a, 2 * b, *[9 * b] * 5, c, *[9 * c] * 4]  # for the cost: 3, 9, ..., 2, ..., 1
    gates.values.grad = torch.tensor(worth).sqrt()
    gates.shut(torch.tensor(1.0))
    assert gates.values.all()
    assert gates.values.grad is None
    torch.testing.assert_close(gates.worth, 0.02 * torch.tensor(worth))
    gates.shut(torch.tensor(1 - 0.99 * c))
    assert gates.values.all()
    gates.shut(torch.tensor(1 - 1.01 * (b + c)))
    assert gates.values.nonzero().flatten().tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 11, 12, 13, 14]
    gates.values.grad = torch.zeros(15)  # nothing is worth anything in this step: the average forgets a fiftieth
    gates.shut(torch.tensor(0.0))
    torch.testing.assert_close(gates.worth, 0.98 * 0.02 * torch.tensor(worth))


@settings(max_examples=50, deadline=None)
@given(st.floats(0.05, 1), st.integers(0, 99))
def test_no_more_is_left_than_was_asked_for_but_for_one_channel(left, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()
    gates = Gates(model, IMAGE)
    before, largest = 1.0, 0.0
    for _ in range(40):
        gates.values.grad = torch.randn(16)
        shut = gates.values == 0
        gates.shut(torch.tensor(left))
        assert not gates.values[shut].any()
        now = float(gates.cost(gates.values.detach()))
        assert now <= before
        before = now
    for n in range(16):
        without = gates.values.detach().clone()
        without[n] = 0
        largest = max(largest, before - float(gates.cost(without)))
    assert left - 1e-6 <= before <= left + largest + 1e-6


SEARCH = Search(epochs=4, lr_mask=0.2, alpha=0.0, structure=0.7, head_only_every=0)


@pytest.fixture
def problem(chain):
    draw = torch.Generator().manual_seed(1)
    x, y = torch.rand(64, 1, 8, 8, generator=draw), torch.randint(0, 2, (64,), generator=draw)
    train = [(x[i:i + 8], y[i:i + 8]) for i in range(0, 64, 8)]
    return chain, models.new_head(3, 2), train, train[:2]


def test_a_search_for_structure_takes_out_the_share_that_was_asked_for(problem):
    model, head, train, val = problem
    for share in (0.3, 0.7):
        found = reengineer(model, head, train, val, dataclasses.replace(SEARCH, structure=share))
        small, _ = compact(found.module(), IMAGE)
        before, after = (sum(dense for dense, _ in cost.flops(m, IMAGE).by_layer.values()) + 20 * moved(m)
                         for m in (model, small))
        rows = found.masks["3.weight"].flatten(1)
        assert (rows.any(1) != rows.all(1)).sum() < len(rows)  # whole channels
        assert after / before == pytest.approx(1 - share, abs=0.15)


def test_a_search_for_structure_masks_all_layers_that_read_channels(problem):
    model, head, train, val = problem
    with pytest.raises(ValueError, match="names leaves 0.weight out: a search for structure masks all convolutions"):
        reengineer(model, head, train, val, SEARCH, names=["3.weight", "7.weight", "9.weight"])


class Unknown(nn.Module):
    """Channels that are read by what is not understood."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 6)

    def forward(self, x):
        return self.after(self.before(x).softmax(1)).flatten(1)


def test_more_structure_than_can_go_is_refused_before_the_search_as_nothing_would_be_left(problem):
    _, head, train, val = problem
    for model in (Unknown(), nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Flatten(1, 2), nn.Flatten(2), nn.Linear(64, 6),
                                           nn.Flatten(), nn.Unflatten(1, (3, 2)), nn.AvgPool1d(2), nn.Flatten())):
        with pytest.raises(ValueError, match="structure is 0.7, but no channel of this model can go: it has no conv"):
            reengineer(model, head, train, val, SEARCH)
    chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 6), nn.Flatten())
    layers, _ = channel_groups(chain, IMAGE)
    most = 1 - layers["0.weight"].read - layers["2.weight"].written  # the image and the answers stay
    assert 0.1 < most < 0.99
    with pytest.raises(ValueError, match=f"structure is 0.99, but at most {str(most)[:5]} .* with nothing left that"):
        reengineer(chain, head, train, val, dataclasses.replace(SEARCH, structure=0.99))
    assert Run(chain, head, None, dataclasses.replace(SEARCH, structure=most - 0.01), 8, IMAGE).gates is not None


class Squeezed(nn.Module):
    """Channels that are multiplied by one another, as squeeze and excitation does it."""

    def __init__(self):
        super().__init__()
        self.before, self.gate, self.after = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 6)

    def forward(self, x):
        x = self.before(x).relu()
        return self.after(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()).flatten(1)


def test_channels_that_are_multiplied_by_one_another_go_together(problem):
    _, head, train, val = problem
    torch.manual_seed(0)
    model = Squeezed()
    found = reengineer(model, head, train, val, dataclasses.replace(SEARCH, structure=0.4))
    stays = found.masks["before.weight"].flatten(1).any(1)
    assert 0 < stays.sum() < 4
    assert not found.masks["gate.weight"][~stays].any()
    _, report = compact(found.module(), IMAGE)
    assert not report.left
    assert {after for _, after in (report.channels[f"0.{n}"] for n in ("before", "gate"))} == {int(stays.sum())}


def test_without_structure_there_are_no_gates(problem):
    model, head, train, _ = problem
    assert Run(model, head, None, SEARCH, 8).gates is None
    found = reengineer(model, head, train, train, dataclasses.replace(SEARCH, structure=0.0))
    assert len(found.history) == 4


def test_a_search_for_structure_goes_on_from_its_checkpoint(problem, tmp_path):
    model, head, train, val = problem

    def stop(epoch):
        if epoch["epoch"] == 1:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        reengineer(model, head, train, val, SEARCH, checkpoint=tmp_path / "state", on_epoch=stop)
    resumed = reengineer(model, head, train, val, SEARCH, checkpoint=tmp_path / "state")
    whole = reengineer(model, head, train, val, SEARCH)
    assert resumed.history == whole.history
    assert all(torch.equal(m, resumed.masks[name]) for name, m in whole.masks.items())


def test_many_searches_for_structure_have_gates_of_their_own(problem):
    model, head, train, _ = problem
    trains = [train, [(x, 1 - y) for x, y in train[::-1]]]
    for k, ours in enumerate(many.together(model, [head, head], trains, trains, SEARCH)):
        alone = reengineer(model, head, trains[k], trains[k], SEARCH)
        assert all(torch.equal(m, alone.masks[name]) for name, m in ours.masks.items())
        assert ours.history[-1]["kept"] == alone.history[-1]["kept"] < 1


def test_a_model_that_cannot_be_traced_has_no_gates(problem):
    _, head, train, val = problem

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def forward(self, x):
            return self.layer(x.flatten(1)) if x.sum() > 0 else self.layer(x.flatten(1) + 1)
    with pytest.raises(ValueError, match="Branches cannot be traced"):
        reengineer(Branches().eval(), head, train, val, SEARCH)
