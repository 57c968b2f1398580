"""What makes a training step faster without changing what it computes: a copy of a model is prepared for it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..evaluate import measuring
from ..structure.fold import fold_norms

ROWS = 1024  # output positions of a batch up to which the product wins (measured: 64 images of 2x2 to 4x4, bf16)
Pair = tuple[int, int]
LOWERED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def channels_last(model: nn.Module, x: Tensor | None = None) -> None:
    """Lay the weights of 2-D convolutions out channels last, in place, which is faster.

    They stay as they were if `model` does not take images `x` [B, ...] so: `view` wants the usual order of memory.
    """
    before = {p: p.data for p in model.parameters() if p.dim() == 4}
    for p in before:
        p.data = p.data.to(memory_format=torch.channels_last)
    try:
        with measuring():
            _ = None if x is None else model(x)
    except Exception:  # whatever a forward raises; if it does so either way, who checks the answer says it
        for p, data in before.items():
            p.data = data


def prepared(model: nn.Module, masked: Collection[str], precision: str,
             fold: bool = True) -> tuple[nn.Module, dict[str, Tensor]]:
    """(A copy of `model` for training steps in `precision`, offsets).

    With `fold` its batch norms are in the layers before them; `masked`, offsets: see `structure.fold.fold_norms`.
    """
    ready, offsets = fold_norms(model, masked) if fold else (copy.deepcopy(model), {})
    if precision == "bf16":
        lower(ready)
        offsets = {name: t.to(ready.get_parameter(name).dtype) for name, t in offsets.items()}
    product_gradients(ready)
    return ready, offsets


class _Convolve(torch.autograd.Function):
    """`F.conv2d`, with the gradient of the weight as (output gradient)^T times the patches that it saw."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (x, weight), (stride, padding) = ctx.saved_tensors, ctx.geometry
        for_x = for_weight = for_bias = None
        outputs, inputs, height, width = weight.shape
        if ctx.needs_input_grad[0]:
            for_x = torch.ops.aten.convolution_backward(grad, x, weight, None, stride, padding, (1, 1), False, (0, 0),
                                                        1, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
            patches = padded.unfold(2, height, stride[0]).unfold(3, width, stride[1])  # [B, in, H, W, height, width]
            rows = patches.permute(0, 2, 3, 4, 5, 1).reshape(-1, height * width * inputs)
            product = grad.permute(1, 0, 2, 3).reshape(outputs, -1) @ rows
            for_weight = product.reshape(outputs, height, width, inputs).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            for_bias = grad.sum((0, 2, 3))
        return for_x, for_weight, for_bias, None, None


class Convolution(nn.Conv2d):
    """A Conv2d that, where it runs in bf16 on a batch of few positions, takes the product for its weight's gradient."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        positions = x.numel() // self.in_channels // (self.stride[0] * self.stride[1])
        lowered = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        usual = not lowered or x.device.type != "cpu" or x.dtype == torch.float64  # which autocast leaves alone
        if usual or x.dim() != 4 or positions > ROWS:
            return super()._conv_forward(x, weight, bias)
        low = [None if t is None else t.bfloat16() for t in (x, weight, bias)]
        return _Convolve.apply(*low, self.stride, self.padding)


def product_gradients(model: nn.Module) -> None:
    """Turn the plain convolutions of `model`, in place, into such; any other module stays as it is."""
    for module in model.modules():
        simple = type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1)
        if simple and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = Convolution


def lower(model: nn.Module) -> None:
    """Keep the weights of `model`'s plain layers, in place, in bf16: what autocast would make of them at each call.

    They lower what they are given by themselves, as autocast is not heard inside of vmap. A weight that another kind of
    layer uses too stays as it is. Convolutions that are `slow_in_bf16` stay in fp32.
    """
    slow = [m for m in model.modules() if slow_in_bf16(m)]
    layers = [m for m in model.modules() if type(m) in LOWERED and m.weight.dtype == torch.float32 and m not in slow]
    others = {id(p) for m in model.modules() if type(m) not in LOWERED for p in m.parameters(recurse=False)}
    for layer in layers:
        parameters = list(layer.parameters(recurse=False))
        if not others & {id(p) for p in parameters}:
            for p in parameters:
                p.data = p.data.bfloat16()
            layer.register_forward_pre_hook(_lower_input, with_kwargs=True)
    for module in slow:
        module.forward = functools.partial(_in_fp32, module.forward)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):  # which not every CPU has in bf16
            module.forward = functools.partial(_in_its_own_precision, module, module.forward)


def slow_in_bf16(layer: nn.Module) -> bool:
    """Whether it is a convolution by channel, with a stride or of more than 3x3, on a CPU.

    A gradient of these takes three times as long in bf16 as in fp32 there, or more (measured: EfficientNet-Lite0, 32
    images of 128 pixels; a step of the whole network takes 2.1 times as long as with these in fp32).
    """
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.weight.device.type == "cpu" and (
        max(layer.stride) > 1 or max(layer.kernel_size) > 3) and layer.weight.dtype == torch.float32


def _in_fp32(forward: Callable[..., Tensor], *args: Tensor, **named: Tensor) -> Tensor:
    (x,) = (*args, *named.values())
    with torch.autocast("cpu", enabled=False):
        return forward(*(t.float() for t in args), **{name: t.float() for name, t in named.items()}).to(x.dtype)


def _lower_input(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    dtype = layer.weight.dtype
    return tuple(t.to(dtype) for t in args), {name: t.to(dtype) for name, t in named.items()}


def _in_its_own_precision(layer: nn.RNNBase, forward: Callable[..., Any], x: Any, hx: Any = None) -> Any:
    weight = next(layer.parameters())
    dtype = weight.dtype
    hx = tuple(h.to(dtype) for h in hx) if isinstance(hx, tuple) else hx if hx is None else hx.to(dtype)
    with torch.autocast(weight.device.type, enabled=False):
        return forward(x.to(dtype), hx)
