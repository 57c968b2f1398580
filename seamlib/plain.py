"""A model as it has to come: modules of torch whose weights are parameters, and not wrapped in anything."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .evaluate import measuring

REMOVED_BY = {BasePruningMethod: "prune.remove", WeightNorm: "remove_weight_norm", SpectralNorm: "remove_spectral_norm"}


def check(model: nn.Module) -> None:
    """ValueError, with the layer, the cause and the cure, for a model whose weights are not plain parameters.

    These are TorchScript, quantised layers, layers that have not met their first input, and weights that are computed
    anew in each call: parametrizations, and what torch.nn.utils does by hooks (prune, weight_norm, spectral_norm).
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is a {type(model).__name__}: it must be a torch.nn.Module")
    for name, module in model.named_modules():
        where = f"layer {name!r} of {type(model).__name__}" if name else type(model).__name__
        layer = f"model.get_submodule({name!r})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{where} is TorchScript, which nothing can look into: give the torch.nn.Module that it "
                             "was made from")
        if ".quantized" in type(module).__module__:
            raise ValueError(f"{where} is quantised, its weights are no parameters: give the model as it was before, "
                             "and quantise the result")
        if any(nn.parameter.is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values())):
            raise ValueError(f"{where} has no weights yet, as it has not met its first input: call the model once")
        if parametrize.is_parametrized(module):
            part = next(iter(module.parametrizations))
            raise ValueError(f"{where} has a parametrization: its {part} is computed anew in each call and is no "
                             f"parameter; call torch.nn.utils.parametrize.remove_parametrizations({layer}, {part!r})")
        for hook in module._forward_pre_hooks.values():
            if call := next((c for kind, c in REMOVED_BY.items() if isinstance(hook, kind)), ""):
                part = getattr(hook, "_tensor_name", "") or hook.name
                raise ValueError(f"{where} has a hook of torch.nn.utils, {type(hook).__name__}: its {part} is computed "
                                 "anew in each call and is no parameter; call "
                                 f"torch.nn.utils.{call}({layer}, {part!r})")


def plain(model: nn.Module) -> nn.Module:
    """A copy of `model`, without DataParallel and torch.compile around it or a part of it; ValueError as `check`."""
    check(model)
    model = copy.deepcopy(_unwrapped(model))
    for module in list(model.modules()):
        module._modules |= {name: _unwrapped(child) for name, child in module._modules.items() if child is not None}
    return model


def _unwrapped(model: nn.Module) -> nn.Module:
    """`model` out of whatever is around it: torch.compile's module has it as _orig_mod."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    return model


def first_line(error: Exception) -> str:
    """What an error says first, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def answer(model: nn.Module, example: Tensor) -> Tensor:
    """What `model` says about `example` [B, ...], in full precision and without a gradient.

    Raises ValueError unless the example is a tensor of one image or more, which `model` answers with another tensor.
    """
    name = type(model).__name__
    if not isinstance(example, Tensor) or example.dim() < 1 or not len(example):
        what: Any = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ValueError(f"the example is a {what}: it must be one tensor [B, ...] of at least one image; wrap a model "
                         "that takes anything else in a module that takes a tensor")
    with measuring():
        try:
            said = model(example.clone())  # whose forward may change it
        except Exception as e:  # whatever a forward raises at what it cannot use
            raise ValueError(f"{name} does not take an example of shape {tuple(example.shape)} and {example.dtype} on "
                             f"{example.device}: {first_line(e)}") from e
    if not isinstance(said, Tensor):
        raise ValueError(f"{name} returns a {type(said).__name__}, not a tensor: wrap it in a module that picks the "
                         "logits out")
    return said
