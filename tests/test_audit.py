"""The library's numbers, computed again by other code: masks, gradients, counts, the attack, the pick rule."""

import copy

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F

import seamlib
from seamlib.masks import NORMS


class Attends(nn.Module):
    """Patches, their places, one layer of attention, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 4, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 5)

    def forward(self, x):
        z = self.norm(self.patches(x).flatten(2).transpose(1, 2) + self.places)
        return self.out((z + self.attention(z, z, z)[0]).mean(1))


class Recurrent(nn.Module):
    """Rows of an image, one after another."""

    def __init__(self):
        super().__init__()
        self.rows, self.out = nn.GRU(24, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x):
        return self.out(self.rows(x.transpose(1, 2).flatten(2))[0][:, -1])


class Tied(nn.Module):
    """One weight that two layers use, and one that none does."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(F.relu(self.first(x.flatten(1))))[:, :5]


def convolutional():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                          nn.Conv2d(6, 6, 3, groups=2, stride=2), nn.GroupNorm(2, 6), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5))
    model[1].running_mean.normal_(), model[1].running_var.uniform_(0.5, 2)
    return model


NETS = {"convolutional": convolutional, "attention": Attends, "recurrent": Recurrent, "tied": Tied}


@pytest.fixture(params=NETS)
def model(request):
    return NETS[request.param]().eval()


@pytest.fixture
def scores(model):
    drawn = {name: torch.randn(p.shape) for name, p in model.named_parameters() if name in seamlib.maskable(model)}
    next(iter(drawn.values())).view(-1)[:3] = 0.0  # out, as all that is not above
    return drawn


X, Y = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 5


def multiplied(model, scores):
    """A copy of the model, each of its weights times 0 or 1."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if name in scores:
                p.mul_(scores[name].gt(0).to(p.dtype))
    return other


def test_masks_cover_every_parameter_but_those_of_norms(model):
    of_norms = {f"{name}.{key}" for name, m in model.named_modules() if isinstance(m, NORMS) for key, _ in
                m.named_parameters(recurse=False)}
    assert seamlib.maskable(model) == [name for name, _ in model.named_parameters() if name not in of_norms]


def test_the_masked_call_is_the_model_with_its_weights_multiplied(model, scores):
    own = multiplied(model, scores)
    torch.testing.assert_close(seamlib.masked_call(model, scores, X), own(X), rtol=0, atol=1e-6)
    burnt = seamlib.apply_masks(copy.deepcopy(model), seamlib.binarize(scores))
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), burnt.state_dict().values(), strict=True))
    kept = torch.cat([s.flatten() for s in scores.values()]).gt(0).double().mean()
    assert seamlib.kept_fraction(scores) == pytest.approx(float(kept), abs=1e-12)
    counted = seamlib.weights(burnt)
    assert counted == (sum(p.numel() for p in own.parameters()), sum(int(p.count_nonzero()) for p in own.parameters()))


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_gradients_of_scores_are_those_of_the_weights_times_the_weights_clipped(model, scores, scale):
    live, own = {name: s.clone().requires_grad_() for name, s in scores.items()}, multiplied(model, scores)
    for answer in (seamlib.masked_call(model, live, X), own(X)):
        F.cross_entropy(scale * answer, Y).backward()
    for name, score in live.items():
        grad, weight = own.get_parameter(name).grad, model.get_parameter(name).detach()
        if grad is None:
            assert score.grad is None
        else:
            torch.testing.assert_close(score.grad, (grad * weight).clamp(-1, 1), rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_multiply_adds_are_counted_by_the_zeros_of_each_layer():
    model, dense, sparse = convolutional().eval(), 0, 0.0
    small = multiplied(model, {name: torch.randn(model.get_parameter(name).shape) for name in seamlib.maskable(model)})

    def count(module, _, output):
        nonlocal dense, sparse
        each = output.numel() * module.weight[0].numel()
        dense, sparse = dense + each, sparse + each * float(module.weight.count_nonzero()) / module.weight.numel()
    hooks = [m.register_forward_hook(count) for m in small if isinstance(m, nn.Conv2d | nn.Linear)]
    small(X)
    for hook in hooks:
        hook.remove()
    found = seamlib.flops(small, X)
    assert found.dense - dense == pytest.approx(found.sparse - sparse, abs=1e-6)  # norms and pooling have no zeros
    assert found.dense - dense < 0.2 * dense


def test_the_attack_takes_the_steps_of_projected_gradient_ascent(model):
    attack = seamlib.attack("pixel", 7)
    found = seamlib.pgd(model, X, attack, F.cross_entropy, Y, seed=3)
    assert float((found - X).abs().max()) <= attack.eps + 1e-7
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    torch.manual_seed(3)
    at = (X + torch.empty_like(X).uniform_(-1, 1) * attack.eps).clamp(0, 1)
    for _ in range(attack.iterations):
        at.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(at), Y), at)
        at = (at.detach() + attack.step * grad.sign())
        at = torch.minimum(torch.maximum(at, X - attack.eps), X + attack.eps).clamp(0, 1)
    assert float(((found - at).abs() > 1e-5).double().mean()) < 0.01  # where a gradient is nearly 0, signs may differ
    with torch.no_grad():
        ours, wanted = (float(F.cross_entropy(model(x), Y)) for x in (found, at))
    assert ours == pytest.approx(wanted, abs=1e-3)


def test_the_inheritance_rate_is_counted_over_all_images_at_once(model):
    images, labels = [torch.rand(7, 3, 8, 8) for _ in range(3)], [torch.randint(5, (7,)) for _ in range(3)]
    labels[0] = model(images[0]).argmax(1)  # some are right
    changed = [x + 0.5 * torch.randn_like(x) for x in images]
    before, after = (torch.cat([model(x).argmax(1) for x in batches]) for batches in (images, changed))
    y = torch.cat(labels)
    found = seamlib.inheritance(model, zip(images, labels, strict=True), changed)
    right = before == y
    assert found.rate == pytest.approx(float((after != y)[right].double().mean()))
    assert found.accuracy == pytest.approx(float(right.double().mean()))
    assert found.adversarial_accuracy == pytest.approx(float((after == y).double().mean()))


levels = st.sampled_from([0.05, 0.1, 0.1004, 0.1009, 0.2, 0.5, 0.9])


@given(st.lists(st.tuples(levels, st.sampled_from([0.8, 0.85, 0.9, 0.95])), min_size=1, max_size=8),
       st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_pick_is_that_of_a_search_through_all_epochs(pairs, target):
    history = [{"kept": kept, "accuracy": accuracy} for kept, accuracy in pairs]
    chosen, enough = seamlib.pick(history, target), [i for i, (_, a) in enumerate(pairs) if a >= target]
    if not enough:
        gains = [a - k for k, a in pairs]
        assert chosen == gains.index(max(gains))
    else:
        assert chosen in enough
        assert int(1000 * pairs[chosen][0]) == min(int(1000 * pairs[i][0]) for i in enough)
