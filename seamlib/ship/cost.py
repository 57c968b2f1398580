"""Weights and multiply-adds, dense and sparse."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..plain import check_evaluating, plain
from ..trial import answer, copied


class Flops(NamedTuple):
    """Multiply-adds of one call, fvcore's counting: one multiply-add is one."""

    dense: int  #: all of them
    sparse: float  #: each layer's dense count times the share of its weights that are not zero
    by_layer: dict[str, tuple[int, float]]  #: name of each layer or projection with a weight -> (dense, sparse)
    uncounted: dict[str, int]  #: operators that fvcore has no count for -> how often they occur


def weights(model: nn.Module) -> tuple[int, int]:
    """(parameters, parameters that are not zero) of `model`; ValueError for weights that are no parameters."""
    model = plain(model)
    return (sum(p.numel() for p in model.parameters()), sum(int(p.count_nonzero()) for p in model.parameters()))


def flops(model: nn.Module, example: Tensor) -> Flops:
    """Count the multiply-adds of `model(example)`; `model`, which must be in eval mode, is unchanged.

    Layers with a density of their own: convolutions (grouped and transposed ones too), linear and bilinear layers, and
    each matrix of recurrent ones and of nn.MultiheadAttention. All else (pooling, normalisation, the products of
    queries with keys and of attention with values, bare parameters, a layer's weight used outside of the layer, a layer
    that multiplies by another weight than its own, such as a standardised one) counts the same in both.

    Raises ValueError for a model in train mode, with weights that are no parameters, or that does not take the example,
    and for an operator that combines tensors as a product of matrices does and has no count.
    """
    from .operators import Counted  # fvcore takes seconds to import

    model = plain(model)
    check_evaluating(model)
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)  # what it warns of is returned instead
    with traceable(model) as traced:
        with _Multiplying() as multiplying:
            answer(traced, example)
        tokens: dict[str, list[int]] = {}
        for name, module in traced.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                module.register_forward_pre_hook(_count_tokens(tokens, name), with_kwargs=True)
        analysis = Counted(traced, example)
        counts, uncounted = analysis.by_module(), dict(analysis.unsupported_ops())
    by_layer: dict[str, tuple[int, float]] = {}
    for name, module in traced.named_modules():
        if isinstance(module, nn.MultiheadAttention) and name in tokens:
            parts = list(_projections(module, tokens[name]))
        elif isinstance(module, nn.RNNBase | nn.RNNCellBase) and counts[name]:
            matrices = {part: p for part, p in module.named_parameters() if p.dim() > 1}
            vectors = int(counts[name]) // sum(p.numel() for p in matrices.values())
            parts = [(part, vectors, p) for part, p in matrices.items()]
        elif isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.Bilinear) and counts[name]:
            share = int(module.weight.count_nonzero()) / module.weight.numel()
            by_layer[name] = (counts[name], counts[name] * (share if id(module.weight) in multiplying.weights else 1))
            continue
        else:
            continue
        for part, n, weight in parts:
            by_layer[f"{name}.{part}" if name else part] = (n * weight.numel(), n * int(weight.count_nonzero()))
    dense = int(counts[""])
    return Flops(dense, dense - sum(d - s for d, s in by_layer.values()), by_layer, uncounted)


class _Multiplying(TorchFunctionMode):
    """Context that notes which parameters are multiplied by as they are, or a view of them."""

    PRODUCTS = ("conv", "linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "addmm", "mv", "einsum")

    def __init__(self) -> None:
        super().__init__()
        self.weights: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "").startswith(self.PRODUCTS):
            for given in (*args, *(kwargs or {}).values()):
                tensors = [a for a in (given if isinstance(given, list | tuple) else [given]) if isinstance(a, Tensor)]
                self.weights |= {id(a if a._base is None else a._base) for a in tensors}
        return function(*args, **(kwargs or {}))


@contextmanager
def traceable(model: nn.Module) -> Iterator[nn.Module]:
    """Context of a copy of `model` that torch can trace; ValueError as `plain.plain`.

    Attention runs as its single operators, not as one that nothing can count, an einsum multiplies its operands in
    their order, and state that is no tensor is left out.
    """
    ready, before = copied(model), torch.backends.mha.get_fastpath_enabled()
    for module in ready.modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            module.get_extra_state = lambda: torch.empty(0)  # type: ignore[method-assign]
    torch.backends.mha.set_fastpath_enabled(False)
    reorders, _ = torch.backends.opt_einsum.set_flags(_enabled=False)
    try:
        yield ready
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        torch.backends.opt_einsum.set_flags(_enabled=reorders)


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
