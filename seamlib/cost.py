"""Weights and multiply-adds, dense and sparse."""

from __future__ import annotations

import logging
from typing import NamedTuple

from torch import Tensor, nn


class Flops(NamedTuple):
    """Multiply-adds of one call, fvcore's counting: one multiply-add is one."""

    dense: int
    sparse: float  #: each layer's dense count times the share of its weights that are not zero
    by_layer: dict[str, tuple[int, float]]  #: name of each module with a weight -> (dense, sparse)
    uncounted: dict[str, int]  #: operators that fvcore has no count for -> how often they occur


def weights(model: nn.Module) -> tuple[int, int]:
    """(parameters, parameters that are not zero) of `model`."""
    return (sum(p.numel() for p in model.parameters()), sum(int(p.count_nonzero()) for p in model.parameters()))


def flops(model: nn.Module, example: Tensor) -> Flops:
    """Count the multiply-adds of `model(example)`; `model` is unchanged and should be in eval mode.

    What has no weight of its own (pooling, normalisation) counts the same in both.
    """
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)  # what it warns of is returned instead
    analysis = FlopCountAnalysis(model, example)
    counts, modules = analysis.by_module(), dict(model.named_modules())
    by_layer = {name: (counts[name], counts[name] * int(m.weight.count_nonzero()) / m.weight.numel())
                for name, m in modules.items() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)}
    dense = analysis.total()
    sparse = dense - sum(d - s for d, s in by_layer.values())
    return Flops(dense, sparse, by_layer, dict(analysis.unsupported_ops()))
