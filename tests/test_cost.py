import torch
from torch import nn

from seamlib import cost


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


def test_what_could_not_be_counted_is_listed():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1)
    assert cost.flops(Odd(), torch.rand(1, 4)).uncounted == {"aten::cumsum": 1}
