"""What batch norm became of: one scale and one shift for each channel, beside the masks.

The statistics of a network are not those of its masked self. In eval mode a batch norm is x * scale + shift; a search
that lets norms adapt hands on these two numbers a channel, and leaves the source model as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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


def without_statistics(model: nn.Module) -> dict[str, BatchNorm]:
    """Those of `batch_norms(model)` that `apply_norms` has left with a scale and a shift alone, by name.

    In train mode they would make another network of `model`: `restate` gives them statistics first. They are told by
    their variances, also after a cast to double; after one to half by what `apply_norms` has written on them.
    """
    def alone(norm: BatchNorm) -> bool:
        if norm.running_var is None or norm.running_mean is None or norm.weight is None or norm.running_mean.any():
            return False
        var = norm.running_var.float()
        return bool((var == torch.full_like(var, 1 - norm.eps)).all() or (hasattr(norm, "alone") and (var == 1).all()))
    return {name: m for name, m in model.named_modules() if isinstance(m, BatchNorm) and alone(m)}


def restate(norms: Mapping[str, BatchNorm], model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give these batch norms of `model`, in place, the statistics of these images [B, ...], and scales and shifts with
    which eval mode says what it said.

    Where one image in ten is of a class that was one in a thousand, a channel that tells this class varies far more. In
    train mode, which divides by that, the network would be another before any weight is gone. `model` is in eval mode,
    and its norms have scales and shifts (`affine=True`).
    """
    seen: dict[str, tuple[int, Tensor, Tensor]] = {}  # numbers a channel, their sum, that of their squares

    def note(name: str, x: Tensor) -> None:
        var, mean = torch.var_mean(x.float(), dim=[0, *range(2, x.dim())], correction=0)
        var, mean, n = var.double(), mean.double(), x.numel() // x.shape[1]
        before, total, squares = seen.get(name, (0, torch.zeros_like(mean), torch.zeros_like(mean)))
        seen[name] = before + n, total + n * mean, squares + n * (var + mean**2)

    hooks = [norm.register_forward_pre_hook(lambda _, x, named, name=name: note(name, *x, *named.values()),
                                            with_kwargs=True) for name, norm in norms.items()]
    try:
        with torch.no_grad():
            for x in batches:
                if len(x):
                    model(x)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for name, (n, total, squares) in seen.items():
            norm, mean, var = norms[name], total / n, (squares / n - (total / n)**2).clamp_min(0)
            scale = norm.weight * torch.rsqrt(norm.running_var.double() + norm.eps)  # type: ignore[union-attr]
            norm.bias.add_(scale * (mean - norm.running_mean))  # type: ignore[operator]
            norm.weight.copy_(scale * (var + norm.eps).sqrt())
            norm.running_mean.copy_(mean), norm.running_var.copy_(var)  # type: ignore[union-attr]


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
        norm.alone = True  # type: ignore[assignment]
    return model
