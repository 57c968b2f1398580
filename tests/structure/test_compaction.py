import copy
import operator
from functools import partial

import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from seamlib import masks, models, trial
from seamlib.structure.compaction import TOLERANCE, compact

SHARES = st.floats(0, 1)


def killed(model, share, seed=0, every=False):
    """`model`, in double precision, with a share of each layer's outputs dead, and norms that are no identity."""
    draw = torch.Generator().manual_seed(seed)
    layers = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    for m in layers[:None if every else -1]:
        dead = torch.rand(len(m.weight), generator=draw) < share
        m.weight.data[dead] = 0
        if m.bias is not None:
            m.bias.data[dead & (torch.rand(len(dead), generator=draw) < 0.5)] = 0
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for t, low, high in ((m.running_mean, -0.5, 0.5), (m.running_var, 0.5, 2), (m.weight, 0.5, 1.5),
                                 (m.bias, -1, 1)):
                if t is not None:
                    t.data.uniform_(low, high, generator=draw)
    return model.double().eval()


def weights(model):
    return sum(p.numel() for p in model.parameters())


def same(model, small, *shape):
    for x in (torch.rand(2, *shape, dtype=torch.float64), 5 * torch.randn(2, *shape, dtype=torch.float64),
              torch.zeros(1, *shape, dtype=torch.float64)):
        torch.testing.assert_close(small(x), model(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "shapes"), [
    ("lenet-mnist5k", [(1, 28, 28)]), ("resnet20-cifar10", [(3, 32, 32), (3, 33, 27)]),
    ("vgg16_bn-cifar10", [(3, 32, 32), (3, 40, 44)])])
def test_the_source_models_answer_the_same_with_fewer_weights(name, shapes):
    model = killed(models.build(name), 0.5)
    before = copy.deepcopy(model.state_dict())
    small, report = compact(model, torch.rand(1, *shapes[0], dtype=torch.float64))
    for shape in shapes:
        same(model, small, *shape)
    assert weights(small) < 0.65 * weights(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert set(report.channels) == set(layers)
    assert all(after <= n == len(model.get_submodule(layer).weight) for layer, (n, after) in report.channels.items())
    assert report.channels[layers[-1]] == (10, 10)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121",
                                  "squeezenet1_0", "shufflenet_v2_x0_5"])
def test_models_of_torchvision(name):
    model = killed(torchvision.models.get_model(name, weights=None), 0.5)
    small, report = compact(model, torch.rand(1, 3, 65, 65, dtype=torch.float64))
    same(model, small, 3, 71, 66)
    assert weights(small) < weights(model)
    assert bool(report.left) == (name == "shufflenet_v2_x0_5")  # shuffles


@pytest.mark.parametrize("removed", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("name", "size"), [("resnet20-cifar10", 32), ("vgg16_bn-cifar10", 32), ("resnet18", 65),
                                            ("mobilenet_v2", 65)])
def test_random_masks(name, size, removed):
    build = models.build if "-" in name else partial(torchvision.models.get_model, weights=None)
    model = killed(build(name), 0.0)
    masks.apply_masks(model, masks.drawn(model, removed, seed=1))
    small, report = compact(model, torch.rand(1, 3, size, size, dtype=torch.float64))
    same(model, small, 3, size, size)
    assert weights(small) <= weights(model)
    if removed == 0.99 and name in ("resnet20-cifar10", "mobilenet_v2"):
        assert sum(after for _, after in report.channels.values()) < sum(n for n, _ in report.channels.values())


class Net(nn.Module):
    """One of everything: padding, strides, a residual addition, squeeze and excitation, a depthwise layer, a
    concatenation, two poolings."""

    def __init__(self, padding, activation):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 5, 3, padding=padding), nn.Conv2d(5, 5, 3, padding=1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(5), activation
        self.squeeze, self.excite = nn.Conv2d(5, 3, 1), nn.Conv2d(3, 5, 1)
        self.deep, self.c = nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.Conv2d(10, 4, 3, stride=2, padding=padding)
        self.late, self.out = nn.BatchNorm2d(4), nn.Linear(4 * 4, 3)

    def forward(self, x):
        x = self.act(self.a(x))
        x = self.act(self.norm(self.b(x)) + x)
        x = x * self.excite(self.act(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        x = torch.cat([self.deep(x), F.max_pool2d(x, 3, 1, 1)], 1)
        x = self.late(self.act(self.c(x)))
        return self.out(F.adaptive_avg_pool2d(x, 2).flatten(1))


@settings(max_examples=60)
@given(SHARES, st.integers(0, 99), st.sampled_from([0, 1]),
       st.sampled_from([nn.ReLU(), nn.Sigmoid(), nn.ReLU(inplace=True), nn.Hardswish()]), st.booleans(),
       st.sampled_from([1, 3, 8]))
def test_whatever_dies_the_answers_are_the_same(share, seed, padding, activation, every, multiple):
    torch.manual_seed(seed)
    model = killed(Net(padding, activation), share, seed, every)
    small, report = compact(model, torch.rand(1, 2, 9, 9, dtype=torch.float64), multiple=multiple)
    for size in (9, 12):
        same(model, small, 2, size, size)
    assert not report.left
    assert all(after % multiple == 0 or after == before for before, after in report.channels.values())
    assert weights(small) <= weights(model)


def test_channels_by_hand():
    first, second = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1)
    first.weight.data, first.bias.data = torch.tensor([1.0, 0, 2]).view(3, 1, 1, 1), torch.tensor([0.0, 5, 0])
    second.weight.data, second.bias.data = torch.tensor([1.0, 3, 0]).view(1, 3, 1, 1), torch.tensor([1.0])
    small, report = compact(nn.Sequential(first, nn.ReLU(), second).eval(), torch.rand(1, 1, 2, 2))
    assert report.channels == {"0": (3, 1), "2": (1, 1)}  # the second is always 5, nobody reads the third
    convolutions = [m for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions[0].weight.flatten().tolist() == [1]
    assert convolutions[1].weight.flatten().tolist() == [1]
    assert convolutions[1].bias.tolist() == [16]  # 1 + 3 * 5


class Call(nn.Module):
    """A function, as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Product(nn.Module):
    """Two branches, multiplied."""

    def __init__(self, left, right, by=operator.mul):
        super().__init__()
        self.left, self.right, self.out, self.by = left, right, nn.Conv2d(3, 2, 1), by

    def forward(self, x):
        return self.out(self.by(self.left(x), self.right(x))).flatten(1)


@pytest.mark.parametrize("by", [operator.mul, operator.imul, torch.mul])
def test_a_product_is_constant_where_a_factor_is_zero_or_both_are_constant(by):
    model = Product(nn.Conv2d(1, 3, 1), nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1)), by).eval()
    left, right = model.left, model.right[0]
    left.weight.data[:, 0, 0, 0], left.bias.data = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 2.0, 1.0])
    right.weight.data[:, 0, 0, 0], right.bias.data = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 3.0, 0.0])
    small, report = compact(model, torch.rand(1, 1, 4, 4))
    assert report.channels == {"left": (3, 1), "right.0": (3, 1), "out": (2, 2)}
    constant = model.out.bias + 6 * model.out.weight[:, 1, 0, 0]  # 0 times anything, and 2 times 3
    torch.testing.assert_close(small.get_submodule("model.out").bias, constant)
    same(model.double(), small.double(), 1, 4, 4)


def test_a_factor_that_is_all_constant_is_gone():
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1),
                         Call(F.hardsigmoid))
    model = Product(nn.Conv2d(1, 3, 1), gate).eval()
    gate[3].weight.data[:] = 0
    gate[3].bias.data = torch.tensor([-9.0, 0.0, 9.0])  # factors 0, 1/2 and 1
    small, report = compact(model, torch.rand(1, 1, 4, 4))
    assert report.channels == {"left": (3, 2), "right.1": (2, 0), "right.3": (3, 0), "out": (2, 2)}
    same(model.double(), small.double(), 1, 4, 4)


def test_a_product_with_other_channels_is_left_alone():
    model = Product(nn.Conv2d(1, 3, 1), nn.Conv2d(1, 1, 1)).eval()  # one map for all three
    model.left.weight.data[0], model.left.bias.data[0] = 0, 0
    _, report = compact(model, torch.rand(1, 1, 4, 4))
    assert list(report.left) == ["mul"]
    assert report.channels["left"] == (3, 3)


def test_under_padding_one_constant_channel_stands_for_all():
    first, second = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 3, padding=1)
    first.weight.data[1:], first.bias.data = torch.zeros(3, 1, 1, 1), torch.tensor([0.0, 2, 4, -1])
    model = nn.Sequential(first, nn.ReLU(), second).eval()
    small, report = compact(model, torch.rand(1, 1, 4, 4))
    assert report.channels["0"] == (4, 2)  # the varying one, one for 2 and 4; after ReLU the last is 0
    x = torch.rand(1, 1, 5, 7)
    torch.testing.assert_close(small(x), model(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.outer = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 9, 3, padding=1), nn.Conv2d(9, 4, 1)

    def forward(self, x):
        x = F.relu(self.first(x))
        return x + self.outer(F.relu(self.inner(x)))


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_a_branch_of_constants_is_gone(bias):
    model = Residual().eval()
    model.outer.weight.data.zero_(), model.outer.bias.data.fill_(bias)
    small, report = compact(model, torch.rand(1, 1, 4, 4))
    assert report.channels == {"first": (4, 4), "inner": (9, 0), "outer": (4, 0)}
    assert sum(isinstance(m, nn.Conv2d) for m in small.modules()) == 1
    x = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(small(x), model(x))


def test_a_model_that_is_all_zero_still_answers():
    model = killed(models.build("lenet-mnist5k"), 1.0, every=True)
    small, _ = compact(model, torch.rand(1, 1, 28, 28, dtype=torch.float64))
    same(model, small, 1, 28, 28)
    assert weights(small) < 0.02 * weights(model)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Pools(nn.Module):
    """Operations with several results."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        x, _ = F.max_pool2d(self.conv(x), 2, return_indices=True)
        a, b = x.chunk(2, 1)
        return (a * b).flatten(1)


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2, divisor_override=3), nn.AvgPool2d(2, 1, 1), nn.MaxPool2d(2, 1, 1)])
def test_averages_that_are_no_means_and_borders(pool):
    model = killed(nn.Sequential(nn.Conv2d(1, 4, 1), pool, nn.Conv2d(4, 2, 1)), 0.7, seed=3)
    small, _ = compact(model, torch.rand(1, 1, 6, 6, dtype=torch.float64))
    same(model, small, 1, 7, 7)


def test_pooling_over_features_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 6), nn.MaxPool1d(2), nn.Linear(3, 2)).eval()
    small, report = compact(model, torch.rand(5, 4))
    assert list(report.left) == ["model_1"]
    x = torch.rand(5, 4)
    torch.testing.assert_close(small(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = killed(models.build("resnet20-cifar10"), 0.4).to(dtype)
    small, _ = compact(model, torch.rand(2, 3, 32, 32, dtype=dtype))
    assert weights(small) < weights(model)


def test_operations_with_several_results_are_left_alone():
    model = Pools().eval()
    model.conv.weight.data[0] = 0
    small, report = compact(model, torch.rand(1, 1, 6, 6))
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(small(x), model(x))
    assert report.channels == {"conv": (4, 4)}
    assert len(report.left) >= 2


class Reads(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_bad_input():
    with pytest.raises(ValueError, match=r"Reads cannot be traced by torch\.fx .*must not depend on the values"):
        compact(Reads().eval(), torch.rand(1, 1))
    with pytest.raises(ValueError, match=r"LeNet does not take float32 images of shape \[1, 3, 28, 28\]"):
        compact(models.build("lenet-mnist5k").eval(), torch.rand(1, 3, 28, 28))
    with pytest.raises(ValueError, match="multiple is 0: it must be 1 .* or more, such as 16"):
        compact(nn.Linear(1, 1).eval(), torch.rand(1, 1), multiple=0)
    with pytest.raises(ValueError, match="Pair returns a tuple, not a tensor: wrap it"):
        compact(Pair().eval(), torch.rand(1, 1))
    with pytest.raises(ValueError, match="or a part of it, is in train mode"):
        compact(nn.Linear(1, 1), torch.rand(1, 1))


class InPlace(nn.Module):
    """A layer, then something in place whose result nobody takes, and the tensor that it has changed."""

    def __init__(self, change, again=False):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Linear(8, 10)
        self.change, self.again = change, again
        self.conv.weight.data[::2] = 0  # channels that are their bias, whose sign the change reads
        self.conv.bias.data.normal_()

    def forward(self, x):
        z = self.conv(x)
        other = self.change(self, z)
        return self.head((other + z if self.again else z).mean((2, 3)))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("change", [
    lambda m, z: z.relu_(), lambda m, z: m.relu(z), lambda m, z: F.relu(z, True), lambda m, z: F.relu(z, inplace=True),
    lambda m, z: z.clamp_(min=0.0), lambda m, z: z.add_(1.0), lambda m, z: torch.relu_(z)])
def test_what_is_changed_in_place_is_read_as_it_was_changed(change, again):
    """Also where the example, of zeros, has no value that the change would change otherwise."""
    torch.manual_seed(0)
    model = InPlace(change, again).eval()
    small, _ = compact(model, torch.zeros(1, 3, 12, 12))
    x = torch.randn(4, 3, 12, 12)
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)


def test_modules_that_are_called_by_keyword_are_compacted():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
            self.conv2, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 2)
            self.conv.weight.data[:3] = 0

        def forward(self, x):
            z = self.relu(input=self.norm(input=self.conv(input=x)))
            return self.head(input=torch.flatten(input=self.conv2(input=z).mean(dim=(2, 3)), start_dim=1))
    model, x = ByName().eval(), torch.randn(2, 3, 8, 8)
    small, report = compact(model, x)
    assert report.channels["conv"] == (8, 5)
    torch.testing.assert_close(small(x), model(x))


def test_what_python_calls_and_and_or_changes_nothing():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            z = self.conv(x)
            a = z > 0
            return self.head((torch.where((a & (z < 0.3)) | (z < -0.2), 2 * z, z) + a.float()).mean((2, 3)))
    model, x = Both().eval(), torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(compact(model, x)[0](x), model(x))


def test_a_change_in_place_that_torch_fx_does_not_see_is_refused():
    model = InPlace(lambda m, z: operator.iadd(z, 1.0)).eval()  # traced as an addition, which changes nothing
    with pytest.raises(ValueError, match="answers differently, by .* of the largest, for 2 images"):
        compact(model, torch.zeros(1, 3, 12, 12))


def test_a_layer_with_a_hook_keeps_its_channels():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, 2))
    model[1].register_forward_hook(lambda _, x, y: y * torch.arange(8).reshape(8, 1, 1))
    with torch.no_grad():
        model[0].weight[:4], model[0].bias[:4], model[1].weight[:4], model[1].bias[:4] = 0, 0, 0, 0
    x = torch.rand(2, 3, 9, 9)
    small, report = compact(model.eval(), x)
    torch.testing.assert_close(small(x), model(x))
    assert any("Conv2d" in what for what in report.left.values())


def test_infinities_that_are_the_same_are_no_difference():
    class Ruled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x) + torch.tensor([0.0, -torch.inf, 0.0])
    model = Ruled().eval()
    small, _ = compact(model, torch.rand(2, 4))
    x = torch.rand(3, 4)
    torch.testing.assert_close(small(x), model(x))
    assert trial.difference(torch.tensor([1.0, -torch.inf]), torch.tensor([2.0, -torch.inf])) == 0.5
    assert trial.difference(torch.tensor([1.0, 3.0]), torch.tensor([2.0, -torch.inf])) == torch.inf


def test_a_result_that_would_answer_differently_is_refused(monkeypatch):
    monkeypatch.setattr("seamlib.structure.compaction._Rewriting.rewrite",
                        lambda self: self.channels.graph.get_submodule("model.fc2").bias.data.add_(1))
    with pytest.raises(ValueError, match="answers differently"):
        compact(models.build("lenet-mnist5k").eval(), torch.rand(1, 1, 28, 28))


class Beside(nn.Module):
    """A layer beside something that does not come from the images, joined as `how` says."""

    def __init__(self, n, how):
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
        self.dead, self.other = kind(2, 3, 3, padding=1), kind(2, 3, 3, padding=1)
        self.position, self.how, self.out = nn.Parameter(torch.randn(1, 3, *[4] * n)), how, nn.LazyLinear(2)

    def forward(self, x):
        return self.out(self.how(self.dead(x), self.position, self.other(x)).flatten(2).mean(2))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("how", [
    lambda dead, position, other: torch.cat([F.relu(dead + position), other], 1),
    lambda dead, position, other: dead + position + other,
    lambda dead, position, other: other + (position + dead),
    lambda dead, position, other: torch.cat([dead, position.expand_as(dead), other], 1),
])
def test_an_example_of_any_number_of_images_will_do_for_all(n, batch, how):
    model = Beside(n, how)
    model(torch.rand(1, 2, *[4] * n))
    model = killed(model, 0.0)
    model.dead.weight.data.zero_()
    small, _ = compact(model, torch.rand(batch, 2, *[4] * n, dtype=torch.float64))
    for images in (1, 2, 3, 4):
        x = torch.rand(images, 2, *[4] * n, dtype=torch.float64)
        torch.testing.assert_close(small(x), model(x))


@settings(max_examples=60)
@given(st.floats(0, 1), st.integers(0, 99), st.booleans(), st.booleans(), st.sampled_from([0, 1]), st.booleans(),
       st.sampled_from([1, 3]))
def test_there_are_never_more_weights_than_before(share, seed, bias, affine, padding, norm, multiple):
    def layers(n, m):
        yield nn.Conv2d(n, m, 3, padding=padding, bias=bias)
        if norm:
            yield nn.BatchNorm2d(m, affine=affine)
        yield nn.ReLU()
    model = killed(nn.Sequential(*layers(2, 5), *layers(5, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                 nn.Linear(4, 3, bias=bias)), share, seed)
    small, _ = compact(model, torch.rand(1, 2, 9, 9, dtype=torch.float64), multiple=multiple)
    same(model, small, 2, 9, 9)
    assert weights(small) <= weights(model)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager"),
                                  lambda m: nn.Sequential(nn.DataParallel(m), nn.Identity()).eval()])
def test_a_wrapped_model_is_compacted_as_the_one_inside(wrap):
    model, x = killed(models.build("lenet-mnist5k"), 0.5), torch.rand(2, 1, 28, 28, dtype=torch.float64)
    inside, around = compact(model, x), compact(wrap(model), x)
    assert list(around[1].channels.values()) == list(inside[1].channels.values())
    assert torch.equal(around[0](x), inside[0](x))


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_any_order_of_memory(form):
    model = killed(Net(1, nn.ReLU()), 0.5, 1).to(memory_format=form)
    small, _ = compact(model, torch.rand(1, 2, 9, 9, dtype=torch.float64).to(memory_format=form))
    same(model, small, 2, 9, 9)


def test_a_model_that_answers_no_number_of_images_but_one_is_refused():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x.reshape(1, 4))
    with pytest.raises(ValueError, match=r"One does not take float32 images of shape \[2, 4\]"):
        compact(One().eval(), torch.rand(1, 4))


class Cancels(nn.Module):
    """Constants of 8192 that cancel: in fp32 a thousandth of what is left is rounded away."""

    def __init__(self, own_precision=False):
        super().__init__()
        self.own_precision = own_precision
        self.write, self.read = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1, bias=False)
        with torch.no_grad():
            self.write.weight.copy_(torch.tensor([1.0, 0, 0]).reshape(3, 1, 1, 1))
            self.write.bias.copy_(torch.tensor([0, 8192.0, 8192.0]))
            self.read.weight.copy_(torch.tensor([0.77, 1, -1]).reshape(1, 3, 1, 1))

    def forward(self, x):
        return self.read(self.write(x.float() if self.own_precision else x)).flatten(1)


def test_roundings_that_a_masked_network_enlarges_are_told_from_another_answer():
    x = torch.rand(4, 1, 3, 3)
    small, report = compact(Cancels().eval(), x)
    assert report.channels["write"] == (3, 1)
    with torch.no_grad():
        assert (small(x) - Cancels()(x)).abs().max() > TOLERANCE * Cancels()(x).abs().max()
        torch.testing.assert_close(small(x), 0.77 * x.flatten(1))
    with pytest.raises(ValueError, match="answers differently"):  # which here cannot be known
        compact(Cancels(own_precision=True).eval(), x)
