from types import SimpleNamespace

import pytest
import torch
from torch import nn

from seamlib.ship import cost


def zero(weight, share):
    """Set the first `share` of the rows of `weight` to zero."""
    with torch.no_grad():
        weight[:round(share * len(weight))] = 0


def test_counts_by_hand():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 25, 3)).eval()
    found = cost.flops(model, torch.rand(1, 4, 5, 5))
    assert found.by_layer["0"][0] == 25 * 6 * 2 * 9  # positions, output channels, input channels a group, kernel
    assert found.by_layer["3"][0] == 150 * 3
    assert found.dense == 2700 + 450
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[3].weight[0, :50] = 0
    sparse = cost.flops(model, torch.rand(1, 4, 5, 5))
    assert sparse.dense == found.dense
    assert sparse.by_layer["0"][1] == 1350
    assert sparse.by_layer["3"][1] == 400
    assert sparse.sparse == 1750
    assert cost.weights(model) == (108 + 6 + 450 + 3, 54 + 6 + 400 + 3)


def test_grouped_convolutions_in_three_dimensions_by_hand():
    model = nn.Sequential(nn.Conv3d(2, 4, 2, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2)).eval()
    zero(model[0].weight, 0.25)
    found = cost.flops(model[0], torch.rand(2, 2, 3, 3, 3))
    assert found.by_layer == {"": (2 * 8 * 4 * 1 * 8, 384)}  # images, positions, channels out, in a group, kernel
    found = cost.flops(model[1], torch.rand(1, 4, 5, 5))
    assert found.dense == 25 * 4 * 3 * 9  # positions of the input, channels in, out a group, kernel


def test_transposed_and_one_dimensional_convolutions_by_hand():
    model = nn.Sequential(nn.ConvTranspose1d(2, 4, 3, stride=2), nn.Conv1d(4, 2, 3)).eval()
    zero(model[0].weight, 0.5)
    found = cost.flops(model, torch.rand(1, 2, 5))  # 5 -> 11 -> 9
    assert found.by_layer == {"0": (5 * 2 * 4 * 3, 60), "1": (9 * 4 * 2 * 3, 216)}


class Attend(nn.Module):
    """Attention of 5 queries to 7 others: what has to be counted is in the module's four projections."""

    def __init__(self, **sizes):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)
        self.sizes = sizes

    def forward(self, x):
        b = len(x)
        key = torch.ones(b, 7, self.sizes.get("kdim", 8))
        return self.attention(x, key, torch.ones(b, 7, self.sizes.get("vdim", 8)), need_weights=False)[0]


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 4}])
def test_attention_projections_by_hand(sizes):
    model = Attend(**sizes).eval()
    kdim, vdim = sizes.get("kdim", 8), sizes.get("vdim", 8)
    own = dict(query=2 * 5 * 8 * 8, key=2 * 7 * kdim * 8, value=2 * 7 * vdim * 8, out_proj=2 * 5 * 8 * 8)
    products = 2 * 2 * 5 * 7 * (4 + 4)  # batch, heads, queries, keys, both products of size 4 a head
    found = cost.flops(model, torch.rand(2, 5, 8))
    assert {k: d for k, (d, _) in found.by_layer.items()} == {f"attention.{k}": n for k, n in own.items()}
    assert found.dense == sum(own.values()) + products
    assert "aten::scaled_dot_product_attention" not in found.uncounted
    if sizes:
        zero(model.attention.k_proj_weight, 0.75)
    else:
        zero(model.attention.in_proj_weight[8:16], 0.75)  # the key's part of it
    zero(model.attention.out_proj.weight, 0.5)
    sparse = cost.flops(model, torch.rand(2, 5, 8))
    assert sparse.dense - sparse.sparse == 0.75 * own["key"] + 0.5 * own["out_proj"]


@pytest.mark.parametrize("mask", [None, torch.ones(5, 5).triu(1).bool()])
@pytest.mark.parametrize("need_weights", [True, False])
def test_the_products_of_attention_are_counted_in_each_way_it_is_computed(mask, need_weights):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.idle = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)

        def forward(self, x):
            return self.attention(x, x, x, attn_mask=mask, need_weights=need_weights)[0]
    found = cost.flops(Own().eval(), torch.rand(5, 1, 8))
    assert found.dense == 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8
    assert set(found.by_layer) == {f"attention.{part}" for part in ("query", "key", "value", "out_proj")}


def test_shared_weights_and_bare_parameters():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.tied, self.bare = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.zeros(4, 4))
            self.same, self.tied.weight = self.one, self.one.weight

        def forward(self, x):
            x = self.tied(self.same(self.one(x)))
            return nn.functional.linear(x, self.one.weight) @ self.bare
    model = Odd().eval()
    zero(model.one.weight, 0.25)
    found = cost.flops(model, torch.rand(1, 4))
    assert found.by_layer == {"one": (32, 24), "tied": (16, 12)}  # twice the one layer, once its twin
    assert (found.dense, found.sparse) == (80, 24 + 12 + 16 + 16)  # what no layer computes has no density of its own


def test_an_encoder_layer_is_counted_operator_by_operator():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        found = cost.flops(model, torch.rand(1, 5, 8))
    assert torch.backends.mha.get_fastpath_enabled()
    assert sum(d for d, _ in found.by_layer.values()) == 5 * (4 * 8 * 8 + 2 * 8 * 16)
    projections = {f"self_attn.{part}" for part in ("query", "key", "value", "out_proj")}
    assert set(found.by_layer) == projections | {"linear1", "linear2"}
    assert not any("attention" in op or "encoder" in op for op in found.uncounted)


@pytest.mark.parametrize("fast", [True, False])
def test_attentions_fast_path_is_as_before_even_after_an_error(fast):
    class Odd(nn.Module):
        def forward(self, x):
            assert not torch.backends.mha.get_fastpath_enabled()
            raise RuntimeError("no")
    try:
        torch.backends.mha.set_fastpath_enabled(fast)
        with pytest.raises(ValueError, match="no$"):
            cost.flops(Odd().eval(), torch.rand(1, 4))
        assert torch.backends.mha.get_fastpath_enabled() is fast
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_what_could_not_be_counted_is_listed():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1)
    assert cost.flops(Odd().eval(), torch.rand(1, 4)).uncounted == {"aten::cumsum": 1}


def test_a_model_in_train_mode_is_refused_and_one_in_eval_mode_is_unchanged(tiny):
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    cost.flops(tiny, torch.rand(1, 1, 6, 6))
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    with pytest.raises(ValueError, match="Sequential, or a part of it, is in train mode: call model.eval"):
        cost.flops(tiny.train(), torch.rand(1, 1, 6, 6))


@pytest.mark.parametrize("name", ["resnet20-cifar10", "vgg16_bn-cifar10"])
def test_the_papers_models_have_their_published_counts(name):
    from seamlib import models

    found = cost.flops(models.build(name), torch.rand(1, 3, 32, 32))
    layers = sum(d for d, _ in found.by_layer.values())
    # by hand: sum over convolutions of positions x kernel x channels in x channels out, and the linear layers
    assert layers == {"resnet20-cifar10": 40_813_184, "vgg16_bn-cifar10": 313_725_952}[name]
    assert found.uncounted.keys() <= {"aten::add_", "aten::add", "aten::max_pool2d", "aten::mean", "aten::sub",
                                      "aten::div", "aten::mul"}


class Calls(nn.Module):
    """A layer, or None, and a weight [3, 4], and what is done with them."""

    def __init__(self, call, layer=None):
        super().__init__()
        self.layer, self.weight, self.call = layer, nn.Parameter(torch.rand(3, 4)), call

    def forward(self, x):
        return self.call(self, x)


@pytest.mark.parametrize(("call", "shape", "count"), [
    (lambda m, x: x @ m.weight, (3,), 12),
    (lambda m, x: m.weight @ x, (4,), 12),
    (lambda m, x: torch.mv(m.weight, x), (4,), 12),
    (lambda m, x: torch.addmv(torch.zeros(3), m.weight, x), (4,), 12),
    (lambda m, x: torch.dot(x, m.weight[0]), (4,), 4),
    (lambda m, x: m.weight @ x, (2, 4, 7), 2 * 3 * 4 * 7),  # the weight is broadcast over the images
    (lambda m, x: x @ m.weight, (2, 5, 3), 2 * 5 * 3 * 4),
    (lambda m, x: torch.inner(x, m.weight), (5, 4), 5 * 3 * 4),
    (lambda m, x: torch.outer(x, x), (5,), 25),
    (lambda m, x: torch.tensordot(x, m.weight, 1), (2, 5, 3), 2 * 5 * 3 * 4),
    (lambda m, x: torch.tensordot(x, m.weight, ([1, 2], [0, 1])), (2, 3, 4), 2 * 12),
    (lambda m, x: torch.einsum("bi,ij->bj", x, m.weight), (2, 3), 2 * 12),
    (lambda m, x: torch.einsum("bi, ij", x, m.weight), (2, 3), 2 * 12),
    (lambda m, x: torch.einsum("bi,ij->ij", x, m.weight), (2, 3), 2 * 12),
    (lambda m, x: torch.einsum("...i,ij,kj->...k", x, m.weight, torch.ones(6, 4)), (2, 5, 3), 10 * (12 + 24)),
    (lambda m, x: torch.einsum("bi,ij,kj", x, m.weight, torch.ones(6, 4)), (2, 3), 2 * (12 + 24)),
    (lambda m, x: torch.einsum("...ij,jk,lk", x, m.weight, torch.ones(6, 4)), (2, 5, 3), 10 * (12 + 24)),
])
def test_products_of_matrices_and_vectors_by_hand(call, shape, count):
    found = cost.flops(Calls(call).eval(), torch.rand(shape))
    assert (found.dense, found.sparse, found.by_layer) == (count, count, {})


@pytest.mark.parametrize(("layer", "shape", "matrices"), [
    (nn.LSTM(3, 4), (5, 2, 3), {"weight_ih_l0": 10 * 48, "weight_hh_l0": 10 * 64}),
    (nn.LSTM(3, 4, proj_size=2), (5, 2, 3), {"weight_ih_l0": 10 * 48, "weight_hh_l0": 10 * 32, "weight_hr_l0": 10 * 8}),
    (nn.GRU(3, 4, 2, batch_first=True), (5, 2, 3), {"weight_ih_l0": 360, "weight_hh_l0": 480, "weight_ih_l1": 480,
                                                    "weight_hh_l1": 480}),
    (nn.RNN(3, 4, bidirectional=True), (5, 2, 3), {f"weight_{k}_l0{r}": n for k, n in (("ih", 120), ("hh", 160))
                                                   for r in ("", "_reverse")}),
    (nn.RNN(3, 4, nonlinearity="relu"), (5, 3), {"weight_ih_l0": 60, "weight_hh_l0": 80}),
    (nn.GRUCell(3, 4), (2, 3), {"weight_ih": 72, "weight_hh": 96}),
    (nn.LSTMCell(3, 4), (2, 3), {"weight_ih": 96, "weight_hh": 128}),
])
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # computed in another way
def test_recurrent_layers_by_hand(layer, shape, matrices):
    found = cost.flops(Calls(lambda m, x: said if isinstance(said := m.layer(x), torch.Tensor) else said[0],
                             layer).eval(), torch.rand(shape))
    assert {k: d for k, (d, _) in found.by_layer.items()} == {f"layer.{k}": n for k, n in matrices.items()}
    assert found.dense == sum(matrices.values())
    name = next(iter(matrices))
    zero(getattr(layer, name), 0.5)
    sparse = cost.flops(Calls(lambda m, x: said if isinstance(said := m.layer(x), torch.Tensor) else said[0],
                              layer).eval(), torch.rand(shape))
    assert sparse.dense - sparse.sparse == matrices[name] / 2


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "circular"}])
def test_padding_by_name_counts_as_by_number(n, options):
    kind, x = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1], torch.rand(2, 4, *[6] * n)
    same, one = (kind(4, 6, 3, padding=p, **options).eval() for p in ("same", options.get("dilation", 1)))
    assert cost.flops(same, x).by_layer == cost.flops(one, x).by_layer == {"": (c := 2 * 6**n * one.weight.numel(), c)}
    assert cost.flops(kind(4, 6, 3, padding="valid").eval(), x).dense == 2 * 4**n * 24 * 3**n
    assert cost.flops(one, x[0]).dense == c / 2  # one image without its dimension


def test_a_bilinear_layer_by_hand():
    layer = nn.Bilinear(3, 4, 5)
    zero(layer.weight, 0.4)
    found = cost.flops(Calls(lambda m, x: m.layer(x[..., :3], x[..., 3:]), layer).eval(), torch.rand(2, 7))
    assert found.by_layer == {"layer": (2 * 60, 72)}


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x @ weight


@pytest.mark.parametrize(("call", "what"), [
    (lambda m, x: torch.cdist(x, m.weight[:, :3]), "aten::cdist"),
    (lambda m, x: Product.apply(x, m.weight), "Product"),
    (lambda m, x: Product.apply(x, m.weight[:, :3]), "Product"),
    (lambda m, x: torch.addbmm(torch.zeros(5, 4), x[None], m.weight[None]), "aten::addbmm"),
    (lambda m, x: torch.cdist(x[:3], x[:3]), "aten::cdist"),  # the result is of the operands' shape
    (lambda m, x: torch.linalg.solve(x[:3] + torch.eye(3), m.weight[:, :3]), "aten::linalg_solve"),
    (lambda m, x: torch.linalg.solve_triangular(x[:3] + torch.eye(3), m.weight[:, :3], upper=True),
     "aten::linalg_solve_triangular"),
    (lambda m, x: torch.linalg.multi_dot([x, m.weight, m.weight.T]),
     r"aten::linalg_multi_dot, in 'the model itself', makes \(5, 3\) and \(3, 4\) and \(4, 3\) one tensor"),
    (lambda m, x: torch.chain_matmul(x, m.weight), r"makes \(5, 3\) and \(3, 4\) one tensor"),
    (lambda m, x: m.layer(x[None, :3, :, None].expand(1, 3, 3, 3), torch.zeros(1, 18, 3, 3)), "torchvision::deform"),
])
@pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated")
def test_what_multiplies_and_has_no_count_is_refused_with_its_name(call, what):
    import torchvision

    model = Calls(call, torchvision.ops.DeformConv2d(3, 4, 3, padding=1)).eval()
    with pytest.raises(ValueError, match=f"{what}.* has no count, so that the total would be too low: write it as"):
        cost.flops(model, torch.rand(5, 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("layer", [nn.PReLU(3), nn.RMSNorm([3, 4]), nn.LayerNorm([3, 4]), nn.GroupNorm(3, 3),
                                   nn.InstanceNorm1d(3, affine=True), nn.BatchNorm1d(3), nn.Softmax(1),
                                   nn.Upsample(scale_factor=2)])
def test_layers_without_a_product_are_no_reason_to_refuse(layer):
    found = cost.flops(nn.Sequential(layer, nn.Conv1d(3, 2, 1)).eval(), torch.rand(2, 3, 4))
    assert set(found.by_layer) == {"1"}


ROWS = torch.tensor([0, 2])


@pytest.mark.parametrize("call", [
    lambda m, x: m.weight.view_as(x), lambda m, x: m.weight.reshape_as(x),
    lambda m, x: m.weight.index_add(0, ROWS, x[0, :, :2].T), lambda m, x: m.weight.index_copy(0, ROWS, x[0, :, :2].T),
    lambda m, x: m.weight.clone().index_add_(0, ROWS, x[0, :, :2].T),
    lambda m, x: m.weight.scatter_add(0, ROWS[None], x[0]), lambda m, x: m.weight.scatter(0, ROWS[None], x[0]),
    lambda m, x: m.weight.clone().scatter_(0, ROWS[None], x[0]),
    lambda m, x: m.weight.scatter_reduce(0, ROWS[None], x[0], "amax"),
    lambda m, x: m.weight.masked_scatter(m.weight > 0.5, x), lambda m, x: m.weight.select_scatter(x[0, :, 0], 0, 1),
    lambda m, x: m.weight.slice_scatter(x[0, :, :2].T, 0, 0, 2),
])
def test_operators_that_move_numbers_are_no_reason_to_refuse(call):
    assert cost.flops(Calls(call).eval(), torch.rand(1, 4, 3)).dense == 0


def test_an_einsum_is_counted_in_the_order_of_its_operands_whatever_would_reorder_them(monkeypatch):
    flags = torch.backends.opt_einsum.m  # as if opt_einsum, which looks for a cheaper order, were installed
    reorder = SimpleNamespace(contract_path=lambda *operands, **how: pytest.fail("another order was looked for"))
    for name, value in (("is_available", lambda: True), ("get_opt_einsum", lambda: reorder), ("enabled", True),
                        ("strategy", "auto")):
        monkeypatch.setattr(flags, name, value)
    model = Calls(lambda m, x: torch.einsum("bi,ij,kj->bk", x, m.weight, torch.ones(6, 4))).eval()
    assert cost.flops(model, torch.rand(2, 3)).dense == 2 * (12 + 24)
    assert torch.backends.opt_einsum.enabled is True


def test_a_layer_that_multiplies_by_another_weight_than_its_own_counts_as_dense():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    class Padded(nn.Conv2d):  # as timm's: by its own weight
        def forward(self, x):
            return nn.functional.conv2d(nn.functional.pad(x, (0, 2, 0, 2)), self.weight, self.bias)
    model = nn.Sequential(Standardised(3, 4, 3), Padded(4, 4, 3)).eval()
    with torch.no_grad():
        for layer in model:
            layer.weight[:2] = 0
    found = cost.flops(model, torch.rand(1, 3, 8, 8))
    assert found.by_layer == {"0": (3888, 3888), "1": (5184, 2592)}  # 36 places, 108 and 144 weights


@pytest.mark.parametrize("multiply", [lambda x, w: x @ w.T, lambda x, w: torch.einsum("bi,oi->bo", x, w),
                                      lambda x, w: torch.matmul(x, w.t()), lambda x, w: nn.functional.linear(x, w)])
def test_a_layer_that_multiplies_by_its_own_weight_counts_its_zeros_however_it_does(multiply):
    class Own(nn.Linear):
        def forward(self, x):
            return multiply(x, self.weight)
    model = Own(6, 4, bias=False).eval()
    with torch.no_grad():
        model.weight[:2] = 0
    assert cost.flops(model, torch.rand(1, 6))[:2] == (24, 12)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager"),
                                  lambda m: nn.Sequential(nn.DataParallel(m), nn.Identity()).eval()])
def test_a_wrapped_model_costs_what_it_holds(tiny, wrap):
    x = torch.rand(1, 1, 6, 6)
    assert cost.flops(wrap(tiny), x)[:2] == cost.flops(tiny, x)[:2]
    assert cost.weights(wrap(tiny)) == cost.weights(tiny)


def test_state_that_is_no_tensor_does_not_matter(tiny):
    class Versioned(nn.Sequential):
        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            pass
    model, x = Versioned(tiny).eval(), torch.rand(1, 1, 6, 6)
    assert cost.flops(model, x)[:2] == cost.flops(tiny, x)[:2]
    assert model.get_extra_state() == {"version": 1}
