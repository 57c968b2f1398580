"""Batch norm with frozen statistics is a scale and a shift: it can be a part of the layer before it, at no cost."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor, fx, nn

from .ordinary import Tracer

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # after nn.Linear a norm's channels need not be the layer's outputs


def fold_norms(model: nn.Module, masked: Collection[str] = ()) -> tuple[nn.Module, dict[str, Tensor]]:
    """(A copy of `model` whose batch norms are folded into the layers before them, offsets).

    With scale s and shift t of a batch norm, s * (w * x + b) + t = (s * w) * x + (s * b + t). A mask on w is one on
    s * w, and as g * w is the same for both, so is the straight-through gradient of its score. A bias named in `masked`
    stays s * b alone, and t is what `offsets` has under its name: to be added after masking.

    The copy answers as `model` does in eval mode, up to rounding, with the parameter names of `model` (and new biases);
    where a norm does not directly follow a layer of its own, where neither of the two has a bias, or the model cannot
    be traced, all stays as it was.
    """
    pairs = {layer: norm for layer, norm in _pairs(model).items()
             if not {f"{norm}.weight", f"{norm}.bias"} & set(masked)}
    model, offsets = copy.deepcopy(model), {}
    for name, norm_name in pairs.items():
        layer, norm = model.get_submodule(name), model.get_submodule(norm_name)
        with torch.no_grad():
            scale = torch.rsqrt(norm.running_var + norm.eps) * (1 if norm.weight is None else norm.weight)  # type: ignore
            shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale  # type: ignore[operator]
            shift = shift.to(layer.weight.dtype)  # type: ignore[arg-type]
            layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))  # type: ignore[operator]
            if layer.bias is None:
                layer.bias = nn.Parameter(shift, requires_grad=False)
            elif f"{name}.bias" in masked:
                layer.bias.mul_(scale)  # type: ignore[operator]
                offsets[f"{name}.bias"] = shift
            else:
                layer.bias.mul_(scale).add_(shift)  # type: ignore[operator]
        owner, _, attribute = norm_name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, nn.Identity())
    return model, offsets


def _pairs(model: nn.Module) -> dict[str, str]:
    """Layer -> the batch norm that alone reads it, whichever mode the model is in; both are used once."""
    model = copy.deepcopy(model)  # tracing runs its own code
    found = []
    for mode in (True, False):
        model.train(mode)
        found.append(_adjacent(model))
    return {layer: norm for layer, norm in found[0].items() if found[1].get(layer) == norm}


def _adjacent(model: nn.Module) -> dict[str, str]:
    try:
        graph = Tracer().trace(model)
    except Exception:  # whatever a model's forward raises at a value that is not there
        return {}
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    names = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    pairs = {}
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1:
            name, norm_name = str(before.target), str(node.target)
            layer, norm = model.get_submodule(name), model.get_submodule(norm_name)
            simple = type(layer) in LAYERS and isinstance(norm, nn.modules.batchnorm._BatchNorm)
            once = calls[before.target] == calls[node.target] == 1 and not {name, norm_name} & read
            alone = all(owners[id(p)] == 1 for m in (layer, norm) for p in m.parameters(recurse=False))
            hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (layer, norm))
            alone = alone and names[id(layer)] == names[id(norm)] == 1
            smaller = simple and (layer.bias is not None or norm.bias is not None)  # else weights would be added
            if smaller and once and alone and not hooked and norm.running_mean is not None:
                pairs[name] = norm_name
    return pairs
