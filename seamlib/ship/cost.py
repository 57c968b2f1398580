"""Weights and multiply-adds, dense and sparse."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Flops(NamedTuple):
    """Multiply-adds of one call, fvcore's counting: one multiply-add is one."""

    dense: int  #: all of them
    sparse: float  #: each layer's dense count times the share of its weights that are not zero
    by_layer: dict[str, tuple[int, float]]  #: name of each layer or projection with a weight -> (dense, sparse)
    uncounted: dict[str, int]  #: operators that fvcore has no count for -> how often they occur


def weights(model: nn.Module) -> tuple[int, int]:
    """(parameters, parameters that are not zero) of `model`."""
    return (sum(p.numel() for p in model.parameters()), sum(int(p.count_nonzero()) for p in model.parameters()))


def flops(model: nn.Module, example: Tensor) -> Flops:
    """Count the multiply-adds of `model(example)`; `model`, which must be in eval mode, is unchanged.

    Layers with a density of their own: convolutions (grouped and transposed ones too), linear layers, and the four
    projections of nn.MultiheadAttention. All else (pooling, normalisation, the products of queries with keys and of
    attention with values, bare parameters, a layer's weight used outside of the layer) counts the same in both. Raises
    ValueError for a model in train mode.
    """
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import bmm_flop_jit

    if model.training:
        raise ValueError(f"{type(model).__name__} is in train mode: call model.eval() first")
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)  # what it warns of is returned instead
    with _taken_apart(), ExitStack() as hooks:
        tokens: dict[str, list[int]] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                handle = module.register_forward_pre_hook(_count_tokens(tokens, name), with_kwargs=True)
                hooks.callback(handle.remove)
        analysis = FlopCountAnalysis(model, example)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
        analysis.set_op_handle("aten::baddbmm", lambda inputs, outputs: bmm_flop_jit(inputs[1:3], outputs))
        counts, uncounted = analysis.by_module(), dict(analysis.unsupported_ops())
    by_layer: dict[str, tuple[int, float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and name in tokens:
            for part, n, weight in _projections(module, tokens[name]):
                by_layer[f"{name}.{part}" if name else part] = (n * weight.numel(), n * int(weight.count_nonzero()))
        elif isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and counts[name]:
            by_layer[name] = (counts[name], counts[name] * int(module.weight.count_nonzero()) / module.weight.numel())
    dense = int(counts[""])
    return Flops(dense, dense - sum(d - s for d, s in by_layer.values()), by_layer, uncounted)


@contextmanager
def _taken_apart() -> Iterator[None]:
    """Context in which attention runs as its single operators, not as one that nothing can count."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _attention(inputs: list[Any], outputs: list[Any]) -> float:
    """Multiply-adds of attention on q [..., L, D], k [..., S, D], v [..., S, Dv]: q with k, and the result with v."""
    from fvcore.nn.jit_handles import get_shape

    q, k, v = (get_shape(i) for i in inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _count_tokens(tokens: dict[str, list[int]], name: str) -> Any:
    """A hook that adds the number of query, key and value vectors of each call to `tokens[name]`."""
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        found = [int(given[part].numel() // given[part].shape[-1]) for part in ("query", "key", "value")]
        tokens[name] = [a + b for a, b in zip(tokens.get(name, [0, 0, 0]), found, strict=True)]
    return hook


def _projections(module: nn.MultiheadAttention, tokens: list[int]) -> Iterator[tuple[str, int, Tensor]]:
    """(name, vectors that pass through it, weight) of the four projections of an attention layer."""
    if module.in_proj_weight is None:
        inner = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    else:
        inner = module.in_proj_weight.chunk(3)
    yield from zip(("query", "key", "value"), tokens, inner, strict=True)
    yield "out_proj", tokens[0], module.out_proj.weight
