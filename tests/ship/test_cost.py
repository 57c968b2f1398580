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
