import copy

import pytest
import torch
from torch import nn

from seamlib import masks, models
from seamlib.structure.fold import fold_norms


def frozen(model):
    """`model` in eval mode, with statistics and weights of batch norm that are no identity."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(), m.running_var.uniform_(0.5, 2)
            if m.affine:
                m.weight.data.uniform_(-1, 2), m.bias.data.normal_()
    return model.eval()


def norms(model):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@pytest.mark.parametrize(("name", "there"), [("resnet20-cifar10", 0), ("vgg16_bn-cifar10", 0)])
def test_the_source_models_fold_whole_and_answer_the_same(name, there):
    model, x = frozen(models.build(name)).double(), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    folded, offsets = fold_norms(model)
    assert norms(model) > 10
    assert norms(folded) == there
    assert not offsets
    torch.testing.assert_close(folded(x), model(x))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(masks.maskable(model)) <= set(dict(folded.named_parameters()))


@pytest.mark.parametrize("bias", [False, True])
def test_scores_get_the_same_gradient_through_either(bias):
    model = frozen(nn.Sequential(nn.Conv2d(1, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                                 nn.Unflatten(1, (4, 16)), nn.Conv1d(4, 5, 3), nn.BatchNorm1d(5, affine=False)))
    folded, offsets = fold_norms(model.double(), masks.maskable(model))
    assert norms(folded) == 0
    assert set(offsets) == ({"0.bias", "5.bias"} if bias else {"5.bias"})
    x, grads = torch.rand(3, 1, 6, 6, dtype=torch.float64), []
    for net, add in ((model, {}), (folded, offsets)):
        torch.manual_seed(1)
        scores = {n: torch.randn_like(p).requires_grad_() for n, p in model.named_parameters()
                  if n in masks.maskable(model)}
        out = masks.masked_call(net, scores, x, add)
        out.pow(2).sum().backward()
        grads.append((out.detach(), {n: s.grad for n, s in scores.items()}))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    assert grads[0][1].keys() == grads[1][1].keys()
    for name, grad in grads[0][1].items():
        assert grad.abs().sum() > 0
        torch.testing.assert_close(grad, grads[1][1][name])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)

    def forward(self, x):
        return self.a(self.conv(x)) + self.b(self.conv(x))


class Read(Twice):
    def forward(self, x):
        y = self.conv(x)
        return self.a(y) + self.b(y)


class Weight(Twice):
    def forward(self, x):
        return self.a(self.conv(x)) + self.conv.weight


class Branch(Twice):
    def forward(self, x):
        y = self.conv(x)
        return self.a(y) if x.sum() > 0 else self.b(y)


class Mode(Twice):
    def forward(self, x):
        y = self.conv(x)
        return self.a(y + 1 if self.training else y)


@pytest.mark.parametrize("model", [
    Twice(), Read(), Weight(), Branch(), Mode(), nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1)),
    nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.BatchNorm2d(1)),
    nn.Sequential(nn.Conv2d(1, 1, 1), nn.GroupNorm(1, 1)),
    nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, track_running_stats=False)),
    nn.Sequential(nn.ConvTranspose2d(1, 1, 1), nn.BatchNorm2d(1)), nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)),
], ids=lambda m: type(m).__name__)
def test_what_cannot_be_folded_stays_as_it_is(model):
    model[1].eval() if isinstance(model, nn.Sequential) else None
    modes = [m.training for m in model.modules()]
    folded, offsets = fold_norms(model)
    assert not offsets
    assert {k: v.tolist() for k, v in folded.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()}
    assert [m.training for m in model.modules()] == modes


def test_masked_norms_other_precisions_and_second_names_are_respected():
    model = frozen(nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)))
    assert norms(fold_norms(model, ["1.weight"])[0]) == 1
    model[0].bfloat16()
    assert fold_norms(model)[0][0].bias.dtype == torch.bfloat16
    twice = nn.ModuleDict({"base": frozen(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)))})
    twice["features"] = nn.Sequential(*twice["base"].children())
    twice.forward = lambda x: twice["features"](x)
    assert norms(fold_norms(twice)[0]) == 1


def test_tied_weights_and_hooks_are_not_folded():
    tied = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    tied[2].weight = tied[0].weight
    assert norms(fold_norms(tied)[0]) == 2
    hooked = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    hooked[0].register_forward_hook(lambda *_: None)
    assert norms(fold_norms(hooked)[0]) == 1
