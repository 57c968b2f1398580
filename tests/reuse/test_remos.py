import pytest
import torch
from torch import nn

from seamlib.reuse import remos


def layer(weights, groups=1):
    conv = nn.Conv2d(len(weights[0]) * groups, len(weights), 1, bias=False, groups=groups)
    conv.weight.data = torch.tensor(weights, dtype=torch.float32)[:, :, None, None]
    return conv


def test_large_weights_that_the_target_does_not_use_go_first():
    """Channel 0 of the input is always at the layer's top, channel 1 at its bottom."""
    x = torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])[None]
    model = nn.Sequential(layer([[1.0, 4.0], [2.0, 3.0]]))  # outputs 1 and 2: the second channel alone is active
    (name, mask), = remos.relevant(model, [(x, torch.zeros(1))], 0.25).items()
    assert name == "0.weight"
    # coverage [[1, 0], [2, 1]] has ranks [[1, 0], [3, 2]], size [[0, 3], [1, 2]]: differences [[1, -3], [2, 0]]
    assert mask.squeeze().tolist() == [[True, False], [True, True]]
    half = remos.relevant(model, [(x, torch.zeros(1))], 0.5)["0.weight"]
    assert half.squeeze().tolist() == [[True, False], [True, False]]


def test_the_share_removed_is_exact_and_groups_and_other_layers_are_no_hindrance(tiny):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 3)).eval()
    x = torch.rand(5, 1, 6, 6)
    before = model(x)
    for removed in (0.0, 0.1, 0.6, 1.0):
        masks = remos.relevant(model, [(x, None)], removed)
        assert list(masks) == ["0.weight", "1.weight"]
        assert sum(int((~m).sum()) for m in masks.values()) == round(removed * (36 + 144))
    assert torch.equal(model(x), before)
    assert not model[0]._forward_hooks


def test_bad_arguments(tiny):
    with pytest.raises(ValueError, match="removed is 1.2: it must be in"):
        remos.relevant(tiny, [], 1.2)
    with pytest.raises(ValueError, match="Linear has no convolution"):
        remos.relevant(nn.Linear(2, 2), [], 0.5)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_convolutions_of_any_dimension(n):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
    model = nn.Sequential(kind(2, 4, 3), nn.ReLU(), kind(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(4 * 2**n, 3))
    masks = remos.relevant(model.eval(), [(torch.rand(3, 2, *[4] * n), torch.zeros(3))], 0.25)
    total = sum(m.numel() for m in masks.values())
    assert sum(int((~m).sum()) for m in masks.values()) == round(0.25 * total)
    assert all(m.shape == model.get_parameter(name).shape for name, m in masks.items())
