"""Layers of timm that are two of torch's in one, taken apart: so that a traced model is made of what is understood."""

from __future__ import annotations

import copy
from collections import OrderedDict

from torch import Tensor, fx, nn
from torch.nn import functional as F

INNER = "layer_of_torch"  # name of torch's layer in what takes the place of timm's


class Same(nn.Module):
    """Zeros around an image [B, channels, height, width], so that a layer of this kernel gives 1 / stride of its size.

    As TensorFlow's "SAME": where their number is odd, the last row and column get one more.
    """

    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]):
        super().__init__()
        self.window = [(s, d * (k - 1) + 1) for k, s, d in zip(kernel, stride, dilation, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        around: list[int] = []
        for side, (stride, reach) in zip(x.shape[2:], self.window, strict=True):
            missing = max((-(-int(side) // stride) - 1) * stride + reach - int(side), 0)
            around = [missing // 2, missing - missing // 2, *around]
        return F.pad(x, around, value=0.0)  # said: onnxruntime 1.32 fuses no Pad whose value is left out


class Tracer(fx.Tracer):
    """torch.fx's, which takes `Same` as a layer."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Same) or super().is_leaf_module(m, module_qualified_name)


def ordinary(model: nn.Module) -> nn.Module:
    """A copy of `model` in which timm's Conv2dSame and BatchNormAct2d are sequences of layers, that of torch called
    INNER; any other module stays as it is. The parameters are the same ones."""
    model = copy.copy(model)
    model._modules = OrderedDict((name, child if child is None else ordinary(child))
                                 for name, child in model._modules.items())
    if type(model).__name__ == "Conv2dSame" and isinstance(model, nn.Conv2d):
        plain = nn.Conv2d.__new__(nn.Conv2d)
        plain.__dict__ = {**model.__dict__, "padding": (0, 0), "_reversed_padding_repeated_twice": [0] * 4}
        same = Same(model.kernel_size, model.stride, model.dilation)
        return nn.Sequential(OrderedDict([("same", same), (INNER, plain)]))
    if type(model).__name__ == "BatchNormAct2d" and isinstance(model, nn.BatchNorm2d):
        norm = nn.BatchNorm2d.__new__(nn.BatchNorm2d)
        norm.__dict__ = {**model.__dict__, "_modules": OrderedDict()}
        return nn.Sequential(OrderedDict([(INNER, norm), *model.named_children()]))
    return model


def own_name(name: str) -> str:
    """What `model` calls the layer that is called `name` in `ordinary(model)`."""
    return name.removesuffix(f".{INNER}")
