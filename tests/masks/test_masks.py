import copy
import types

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from seamlib import masks


def test_masked_call_and_gradient_by_hand():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -3.0]]))
    scores = {"weight": torch.tensor([[0.5, 0.0]], requires_grad=True)}  # a score of exactly 0 is dropped
    out = masks.masked_call(model, scores, torch.tensor([[0.25, 10.0]]))
    assert out.item() == 0.5  # 2 * 0.25; the second weight is out
    out.backward()
    # gradient of the output for the masked weight is x = (0.25, 10); times w = (0.5, -30); clipped to [-1, 1]
    assert scores["weight"].grad.tolist() == [[0.5, -1.0]]


def test_masks_cover_all_but_normalisation():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2),
                          nn.LayerNorm(2))
    assert masks.maskable(model) == ["0.weight", "0.bias", "4.weight", "4.bias"]


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no parameter called 'nope' in Linear"):
        masks.new_scores(nn.Linear(2, 2), ["nope"])


@pytest.mark.parametrize("build", [
    lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
    lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5),
    lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(6 * 900, 5)),
])
def test_masked_call_equals_burnt_in_masks_and_leaves_the_model_alone(build):
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    scores = {n: torch.randn_like(s).requires_grad_() for n, s in masks.new_scores(model).items()}
    x = torch.rand(2, 3, 32, 32)
    out = masks.masked_call(model, scores, x)
    F.cross_entropy(out, torch.tensor([0, 1])).backward()
    assert all(s.grad is not None for s in scores.values())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    burnt = masks.apply_masks(copy.deepcopy(model), masks.binarize(scores))
    torch.testing.assert_close(burnt(x), out, rtol=0, atol=1e-6)
    assert burnt.state_dict().keys() == before.keys()


class Tied(nn.Module):
    """An embedding whose weight is also the output layer's."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x).mean(1))


def test_weights_are_back_when_a_pass_returns_and_stay_whoever_lets_go_of_it_later(monkeypatch):
    """As on CUDA, where the thread of the device holds what is called at the end of a pass into the next step."""
    engine, held = torch.autograd.Variable._execution_engine, []
    monkeypatch.setattr(torch.autograd.Variable, "_execution_engine", types.SimpleNamespace(
        run_backward=engine.run_backward, queue_callback=lambda over: held.append(over) or engine.queue_callback(over)))
    own, ours = nn.Linear(2, 1), torch.zeros(1, 2, requires_grad=True)
    weight = own.weight

    class LetsGo(nn.Module):
        def forward(self, x):
            held.clear()
            return own(x)
    model = nn.Sequential(LetsGo())
    model[0].own = own
    for _ in range(2):
        z = masks.masks.call_with(model, {"0.own.weight": ours}, torch.ones(1, 2))
        assert torch.equal(z[0], own.bias)  # the weight in place is ours, also after `held` was let go of
        z.sum().backward()
        assert held
        assert own.weight is weight


def test_tied_weights_have_one_mask_that_acts_on_both_uses():
    model = Tied()
    scores = masks.new_scores(model)
    assert list(scores) == ["embed.weight"]
    x = torch.tensor([[1, 2], [3, 4]])
    with torch.no_grad():
        scores["embed.weight"][1] = -1.0
    masked = masks.masked_call(model, scores, x)
    assert masked[:, 1].tolist() == [0, 0]  # the output row is out as well
    assert torch.equal(masked, masks.apply_masks(model, masks.binarize(scores))(x))
    assert model.out.weight is model.embed.weight


def test_the_largest_are_kept_as_many_in_each_layer(tiny):
    drawn = {"0.weight": torch.rand(4, 1, 3, 3) > 0.7, "5.bias": torch.tensor([True, False, False])}
    found = masks.largest(tiny, drawn)
    for name, kept in found.items():
        weight = tiny.get_parameter(name).detach().abs()
        assert kept.shape == weight.shape
        assert kept.sum() == drawn[name].sum()
        assert weight[kept].min() >= weight[~kept].max()
    with pytest.raises(ValueError, match="the masks cover 'nothing', which this model does not have"):
        masks.largest(tiny, {"nothing": torch.ones(2, dtype=torch.bool)})


def test_a_module_with_two_names_is_left_as_it_was():
    base = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    model = nn.ModuleDict({"base": base, "features": nn.Sequential(*base.children())})
    model.forward = lambda x: model["features"](x)
    x, weight = torch.rand(2, 1, 3, 3), base[0].weight
    before = (weight.clone(), model(x))
    dropped = {"base.0.weight": -torch.ones(2, 1, 1, 1)}
    assert masks.masked_call(model, dropped, x).std(0).max() == 0  # the bias alone
    assert base[0].weight is weight
    assert torch.equal(weight, before[0])
    assert torch.equal(model(x), before[1])
