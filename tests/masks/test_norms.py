import copy

import pytest
import torch
from torch import nn

from seamlib.masks.norms import apply_norms, batch_norms, read_norms, restate


def trained(model: nn.Module) -> nn.Module:
    """`model` with batch norms whose statistics, scales and shifts are no identity."""
    for norm in batch_norms(model).values():
        norm.running_mean.normal_(), norm.running_var.uniform_(0.2, 3)
        if norm.affine:
            nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return model.eval()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_scale_and_shift_are_what_a_batch_norm_does_in_eval_mode(dims, affine):
    kind = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    model = trained(nn.Sequential(kind(4, affine=affine)))
    x = torch.randn(5, 4, *[3] * dims)
    norms = read_norms(model)
    assert {name: t.shape for name, t in norms.items()} == {"0.scale": (4,), "0.shift": (4,)}
    by_hand = x * norms["0.scale"].reshape(1, 4, *[1] * dims) + norms["0.shift"].reshape(1, 4, *[1] * dims)
    torch.testing.assert_close(model(x), by_hand)
    other = apply_norms(nn.Sequential(kind(4, affine=affine)).eval(), norms)
    torch.testing.assert_close(other(x), by_hand)
    again = apply_norms(nn.Sequential(kind(4, affine=affine)).eval(), norms)
    assert torch.equal(again(x), other(x))


def test_what_is_read_and_given_are_copies():
    model = trained(nn.Sequential(nn.BatchNorm1d(2)))
    norms = read_norms(model)
    before = copy.deepcopy(norms)
    other = apply_norms(nn.Sequential(nn.BatchNorm1d(2)), norms)
    with torch.no_grad():
        model[0].weight.add_(1), other[0].weight.add_(1), other[0].running_mean.add_(1)
    assert all(torch.equal(norms[name], before[name]) for name in norms)


def test_norms_take_the_statistics_of_images_and_say_what_they_said():
    """In train mode the network then says it too, of these very images."""
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3),
                                  nn.BatchNorm2d(3), nn.BatchNorm2d(3)))  # the last one's input is the one's before
    x = 3 * torch.randn(12, 2, 7, 7) + 1
    before, other = model(x), copy.deepcopy(model).train()(x)
    restate(batch_norms(model), model, x.split(5))  # parts of unequal size
    torch.testing.assert_close(model[1].running_mean, model[0](x).mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, model[0](x).var((0, 2, 3), correction=0))
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(model.train()(x), before, rtol=1e-3, atol=1e-3)
    assert (other - before).abs().max() > 1
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_channel_that_is_the_same_in_all_images_stays_what_it_was():
    model = trained(nn.Sequential(nn.BatchNorm1d(2)))
    x = torch.stack([torch.full((6,), 0.7), torch.randn(6)], 1)
    before = model(x)
    restate(batch_norms(model), model, [x])
    torch.testing.assert_close(model(x), before)
    assert float(model[0].running_var[0]) == pytest.approx(0, abs=1e-12)
    restate(batch_norms(model), model, [])  # no images: nothing to learn
    torch.testing.assert_close(model(x), before)


def test_norms_without_statistics_are_none_of_these():
    assert batch_norms(nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False))) == {}


def test_norms_that_share_a_parameter_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="batch norms '0' and '1' share a parameter: .*search with norms='frozen'"):
        batch_norms(model)
    once = nn.BatchNorm1d(2)
    assert list(batch_norms(nn.Sequential(once, once))) == ["0"]  # one module, used twice, is one


@pytest.mark.parametrize("model", [nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.Linear(2, 2))])
def test_norms_of_another_architecture_are_refused(model):
    norms = read_norms(nn.Sequential(nn.BatchNorm1d(2)))
    with pytest.raises(ValueError, match=r"have '0' with scale and shift of shapes \[\(2,\), \(2,\)\].*another archi"):
        apply_norms(model, norms)
    with pytest.raises(ValueError, match=r"shapes \[None, \(2,\)\]"):
        apply_norms(nn.Sequential(nn.BatchNorm1d(2)), {"0.shift": norms["0.shift"]})
    shared = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    shared[1].weight = shared[0].weight
    assert apply_norms(shared, {}) is shared  # nothing adapted: nothing to refuse
