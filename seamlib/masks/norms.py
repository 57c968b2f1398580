"""What batch norm became of: one scale and one shift for each channel, beside the masks.

The statistics of a network are not those of its masked self. In eval mode a batch norm is x * scale + shift; a search
that lets norms adapt hands on these two numbers a channel, and leaves the source model as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm
Norms = dict[str, Tensor]  # "<module>.scale" and "<module>.shift", [channels] each


def batch_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """The batch norms of `model` that keep running statistics, by name.

    Raises ValueError where two of them share a parameter: a change of one would change the other.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, BatchNorm) and m.running_mean is not None}
    owner: dict[int, str] = {}
    for name, norm in found.items():
        for p in norm.parameters(recurse=False):
            if (other := owner.setdefault(id(p), name)) != name:
                raise ValueError(f"batch norms {other!r} and {name!r} share a parameter: they cannot adapt each on its "
                                 "own; give each a copy, or search with norms='frozen'")
    return found


def read_norms(model: nn.Module) -> Norms:
    """Scale and shift of each of `batch_norms(model)` in eval mode; new tensors."""
    found = {}
    with torch.no_grad():
        for name, norm in batch_norms(model).items():
            scale = torch.rsqrt(norm.running_var + norm.eps) * (1 if norm.weight is None else norm.weight)  # type: ignore
            found[f"{name}.scale"] = scale
            found[f"{name}.shift"] = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale  # type: ignore
    return found


def apply_norms(model: nn.Module, norms: Mapping[str, Tensor]) -> nn.Module:
    """Give `model`, in place, these scales and shifts; its eval mode then is theirs. Returns `model`.

    Raises ValueError if they are not of the batch norms of this model.
    """
    if not norms:
        return model
    there = batch_norms(model)
    for name in {key.rpartition(".")[0] for key in norms}:
        norm = there.get(name)
        shapes = [tuple(norms[key].shape) if key in norms else None for key in (f"{name}.scale", f"{name}.shift")]
        if norm is None or shapes != 2 * [tuple(norm.running_var.shape)]:  # type: ignore[union-attr]
            raise ValueError(f"the norms have {name!r} with scale and shift of shapes {shapes}, which this model does "
                             "not: they belong to another architecture")
        like, trained = norm.running_var, norm.weight is None or norm.weight.requires_grad
        norm.weight = nn.Parameter(norms[f"{name}.scale"].to(like, copy=True), requires_grad=trained)
        norm.bias = nn.Parameter(norms[f"{name}.shift"].to(like, copy=True), requires_grad=trained)
        norm.running_mean, norm.running_var = torch.zeros_like(like), torch.full_like(like, 1 - norm.eps)  # type: ignore
    return model
