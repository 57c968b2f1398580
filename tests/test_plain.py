"""Models as other people have them: wrapped, in other dimensions, and with other manners in train mode."""

import collections
import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import seamlib
from seamlib.masks import drawn
from seamlib.plain import plain, takes_train_mode, train_mode
from seamlib.structure.fold import fold_norms

SEARCH = seamlib.Search(lr_mask=0.3, lr_head=0.05, alpha=0.0, epochs=2, head_only_every=0)
X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4) % 2
DATA = [(X, Y)] * 2


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
                         nn.Linear(144, 5)).eval()


def outcome(model, head, data=DATA):
    found = seamlib.reengineer(model, head, data, data, SEARCH)
    return found.history, {name: mask.tolist() for name, mask in found.masks.items()}


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager"),
                                  lambda m: nn.DataParallel(torch.compile(m, backend="eager"))])
def test_a_wrapped_model_is_taken_out_and_named_by_its_own_names(wrap, tmp_path):
    model, head = net(), seamlib.new_head(5, 2)
    wrapped = wrap(model)
    assert plain(wrapped) is model
    assert seamlib.maskable(wrapped) == seamlib.maskable(model)
    assert outcome(wrapped, head) == outcome(model, head)
    found = seamlib.reengineer(wrapped, head, DATA, DATA, dataclasses.replace(SEARCH, norms="affine"))
    found.save(tmp_path / "masks")
    for other in (model, wrapped):
        again = seamlib.Reengineered.load(tmp_path / "masks", other)
        assert torch.equal(again.module()(X), found.module()(X))
        again.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "masks").read_bytes()
    scores = {name: torch.randn(model.get_parameter(name).shape) for name in seamlib.maskable(model)}
    assert torch.equal(seamlib.masked_call(wrapped, scores, X), seamlib.masked_call(model, scores, X))
    seamlib.apply_masks(wrapped, found.masks)
    assert torch.equal(model[0].weight != 0, found.masks["0.weight"])


def test_structure_is_not_asked_of_a_model_with_a_wrapped_part():
    model = nn.Sequential(nn.DataParallel(net()[:3]), *net()[3:]).eval()
    with pytest.raises(ValueError, match="0.0.weight has another name in Sequential, a part of which is wrapped"):
        seamlib.reengineer(model, seamlib.new_head(5, 2), DATA, DATA, dataclasses.replace(SEARCH, structure=0.5))


class Manners(nn.Module):
    """A classifier that does something of its own to its answer in train mode."""

    def __init__(self, how):
        super().__init__()
        self.net, self.how = net(), how

    def forward(self, x):
        return self.how(self.net(x)) if self.training else self.net(x)


Answers = collections.namedtuple("Answers", ["logits", "auxiliary"])


def refuses(z):
    raise ValueError("in train mode labels are needed as well")


@pytest.mark.parametrize("how", [lambda z: (z, z), lambda z: {"logits": z}, lambda z: Answers(z, z), lambda z: [z],
                                 lambda z: None, lambda z: z.sum(), lambda z: z[:, :2], refuses])
def test_a_model_that_answers_otherwise_in_train_mode_is_searched_and_trained_as_the_one_inside(how):
    model, head = Manners(how).eval(), seamlib.new_head(5, 2)
    assert not takes_train_mode(model, X)
    inside, around = outcome(model.net, head), outcome(model, head)
    assert around[0] == [pytest.approx(e) for e in inside[0]]
    assert list(around[1].values()) == list(inside[1].values())
    training = seamlib.Training(lr=0.1, epochs=2)
    (a, history_a), (b, history_b) = (seamlib.finetune(m, DATA, training) for m in (model, model.net))
    assert history_a == history_b
    assert all(torch.equal(p, q) for p, q in zip(a.net.state_dict().values(), b.state_dict().values(), strict=True))


def test_one_that_answers_otherwise_even_then_is_refused():
    class Stubborn(nn.Linear):
        def forward(self, x):
            return (super().forward(x),) if self.training else super().forward(x)
    model = nn.Sequential(nn.Flatten(), Stubborn(192, 5)).eval()
    for call in (lambda: outcome(model, seamlib.new_head(5, 2)),
                 lambda: seamlib.finetune(model, DATA, seamlib.Training(epochs=1))):
        with pytest.raises(ValueError, match="does not return in train mode what it does in eval mode"):
            call()


def test_dropout_that_is_no_module_stays_on_in_a_model_that_answers_alike():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.seen = nn.Linear(192, 5), []

        def forward(self, x):
            self.seen.append(self.training)
            return self.out(F.dropout(x.flatten(1), 0.5, self.training))
    model = Functional().eval()
    assert takes_train_mode(model, X)
    train_mode(model)
    assert model.training
    assert not takes_train_mode(Manners(lambda z: (z,)), X)


class Silent(nn.Module):
    """`inner`, with a train and an eval that return nothing, as nothing says that they must."""

    def __init__(self, inner):
        super().__init__()
        self.net = inner

    def train(self, mode=True):
        super().train(mode)
        for norm in (m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.eval()

    def eval(self):
        self.train(False)

    def forward(self, x):
        return self.net(x)


def test_train_and_eval_that_return_nothing_and_keep_a_layer_in_eval_mode():
    model, head = Silent(net()), seamlib.new_head(5, 2)
    model.eval()
    assert outcome(model, head)[0] == [pytest.approx(e) for e in outcome(model.net, head)[0]]
    tuned, _ = seamlib.finetune(model, DATA, seamlib.Training(epochs=1))
    assert torch.equal(tuned.net[1].running_mean, model.net[1].running_mean)  # as its own train() will have it
    assert not torch.equal(tuned.net[0].weight, model.net[0].weight)


def test_train_and_eval_that_return_nothing_everywhere_else(tmp_path):
    model, head = Silent(net()), Silent(seamlib.new_head(5, 2))
    model.eval()
    found = seamlib.reengineer(model, head, DATA, DATA, SEARCH)
    assert isinstance(found.head, Silent)
    assert torch.equal(found.module()(X), found.head(seamlib.apply_masks(copy.deepcopy(model), found.masks)(X)))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fold_norms(model)[0].modules())
    assert seamlib.export_onnx(model, X, tmp_path / "m.onnx").is_file()
    dense, _ = seamlib.compact(model, X)
    torch.testing.assert_close(dense(X), model(X))


class Views(nn.Module):
    """A classifier with `view`, which wants the usual order of memory."""

    def __init__(self, n):
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
        self.conv, self.out = kind(2, 3, 3, padding=1), nn.Linear(3 * 4**n, 5)

    def forward(self, x):
        z = torch.relu(self.conv(x))
        return self.out(z.view(len(z), -1))


@pytest.mark.parametrize("view", [True, False], ids=["view", "flatten"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_any_number_of_dimensions_and_order_of_memory(n, view):
    model = Views(n)
    if not view:
        model = nn.Sequential(model.conv, nn.ReLU(), nn.Flatten(), model.out)
    x = torch.rand(4, 2, *[4] * n)
    data, head = [(x, Y)] * 2, seamlib.new_head(5, 2)
    found = seamlib.reengineer(model, head, data, data, SEARCH)
    assert 0 < found.history[-1]["kept"] < 1
    assert found.module()(x).shape == (4, 2)
    assert len(seamlib.finetune(found.module(), data, seamlib.Training(epochs=1))[1]) == 1
    assert seamlib.pgd(model, x, seamlib.attack("pixel", 1), F.cross_entropy, Y).shape == x.shape


def test_masks_are_the_same_in_any_order_of_memory():
    model = net()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for name, mask in drawn(model, 0.4, 3).items():
        assert torch.equal(mask, drawn(other, 0.4, 3)[name])
        assert int((~mask).sum()) == round(0.4 * mask.numel())
    assert outcome(model, head := seamlib.new_head(5, 2)) == outcome(other, head)


class Recomputed(nn.Module):
    """Two layers, the first of which may be computed anew in the backward pass."""

    def __init__(self, **how):
        super().__init__()
        self.first, self.out, self.how = nn.Linear(192, 6), nn.Linear(6, 5), how

    def forward(self, x):
        def begin(x):
            return torch.tanh(self.first(x.flatten(1)))
        return self.out(checkpoint(begin, x, **self.how) if self.how else begin(x))


class Anew(torch.autograd.Function):
    """A layer that keeps its input alone, and is called again for its gradient, as reversible networks do."""

    @staticmethod
    def forward(ctx, x, layer, *weights):
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            weights = [ctx.layer.weight, ctx.layer.bias]
            answer = ctx.layer(*ctx.saved_tensors)
        return None, None, *torch.autograd.grad(answer, weights, grad)


class Reversed(Recomputed):
    def forward(self, x):
        return self.out(torch.tanh(Anew.apply(x.flatten(1), self.first, self.first.weight, self.first.bias)))


@pytest.mark.parametrize("build", [lambda: Recomputed(use_reentrant=False), Reversed], ids=["checkpoint", "reversible"])
def test_what_is_computed_anew_in_the_backward_pass_sees_the_masked_weights(build):
    model, straight = build(), Recomputed()
    straight.load_state_dict(model.state_dict())
    scores = [{n: torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).requires_grad_()
               for i, (n, p) in enumerate(model.named_parameters())} for _ in range(2)]
    for m, s in zip((model, straight), scores, strict=True):
        F.cross_entropy(seamlib.masked_call(m, s, X), Y).backward()
    for name, score in scores[0].items():
        torch.testing.assert_close(score.grad, scores[1][name].grad)
    assert all(isinstance(p, nn.Parameter) for p in (model.first.weight, model.out.bias))
    head = seamlib.new_head(5, 2)
    assert outcome(model, head) == outcome(straight, head)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpoints_that_lose_the_gradient_are_refused():
    with pytest.raises(ValueError, match="gradients of masks on Recomputed are not those .*use_reentrant"):
        outcome(Recomputed(use_reentrant=True), seamlib.new_head(5, 2))


def test_a_model_that_rules_classes_out_by_minus_infinity_is_searched():
    class Rules(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.mask = net(), torch.tensor([0.0, 0.0, -torch.inf, -torch.inf, 0.0])

        def forward(self, x):
            return self.net(x) + self.mask
    model, head = Rules().eval(), seamlib.RestrictedHead(seamlib.Restrict([0, 4]), 2)
    assert outcome(model, head)[0] == [pytest.approx(e) for e in outcome(model.net, head)[0]]


def test_the_weights_are_back_after_an_error_in_the_backward_pass():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("out of memory")
    model = nn.Sequential(nn.Linear(3, 2))
    weight, scores = model[0].weight, {"0.weight": torch.ones(2, 3, requires_grad=True)}
    model.register_forward_hook(lambda *a: Fails.apply(a[-1]))
    with pytest.raises(RuntimeError, match="out of memory"):
        seamlib.masked_call(model, scores, torch.rand(1, 3)).sum().backward()
    assert model[0].weight is weight


def test_a_model_that_remembers_what_it_said():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            self.last = self.net(x)
            return self.last
    model, head = Remembers().eval(), seamlib.new_head(5, 2)
    assert outcome(model, head)[0] == outcome(model.net, head)[0]
    assert len(seamlib.finetune(model, DATA, seamlib.Training(epochs=2), DATA)[1]) == 2
    scores = {"net.0.weight": torch.ones(model.net[0].weight.shape, requires_grad=True)}
    first, second = (seamlib.masked_call(model, scores, X) for _ in range(2))  # the second finds what the first left
    assert torch.equal(first, second)
    assert seamlib.maskable(model)


def test_weights_of_double_precision():
    data = [(X.double(), Y)] * 2
    found = seamlib.reengineer(net().double(), seamlib.new_head(5, 2).double(), data, data, SEARCH)
    assert found.history[-1]["kept"] < 1
    assert found.module()(X.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_refused(dtype):
    """A step of 0.001 from a score of 1 is none in bfloat16, and in float16 Adam's second moments are zero."""
    data = [(X.to(dtype), Y)] * 2
    with pytest.raises(ValueError, match=r"0.weight is .*float16, in which small steps .* give model.float\(\)"):
        seamlib.reengineer(net().to(dtype), seamlib.new_head(5, 2).to(dtype), data, data, SEARCH)
    with pytest.raises(ValueError, match=r"the head's 1.weight is .*float16"):
        seamlib.reengineer(net(), seamlib.new_head(5, 2).to(dtype), DATA, DATA, SEARCH)


def test_state_that_is_no_tensor(tmp_path):
    class More(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            pass

        def forward(self, x):
            return self.net(x)
    model = More().eval()
    found = seamlib.reengineer(model, seamlib.new_head(5, 2), DATA, DATA, SEARCH)
    found.save(tmp_path / "masks")
    assert torch.equal(seamlib.Reengineered.load(tmp_path / "masks", model).module()(X), found.module()(X))
    assert len(seamlib.finetune(model, DATA, seamlib.Training(epochs=1), DATA)[1]) == 1
