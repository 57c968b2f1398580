"""ReMoS, the rival: which weights of a pretrained model are relevant to a target, by coverage and size (ICSE 2022).

No search: the images of the target are shown once, and weights that they hardly use although they are large go.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..evaluate import Batch, measuring
from ..masks.masks import Masks

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
COVERED = 0.5  # of the way from a layer's lowest to its highest value: a channel whose mean is above is active


def relevant(model: nn.Module, batches: Iterable[Batch], removed: float) -> Masks:
    """Boolean masks of the convolutions' weights: False for the share `removed`, in [0, 1], that matters least.

    A weight's coverage is how often its input channel plus how often its output channel is active on `batches`. All
    weights are ranked by coverage and, apart, by absolute value; the lowest of (rank by coverage - rank by size) go:
    those that are large but that the target hardly uses. `model` is unchanged; it must be in eval mode. Raises
    ValueError for another share, or a model without a convolution.
    """
    if not 0 <= removed <= 1:
        raise ValueError(f"removed is {removed}: it must be in [0, 1]")
    convolutions = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, CONVOLUTIONS)}
    if not convolutions:
        raise ValueError(f"{type(model).__name__} has no convolution: ReMoS looks at nothing else")
    coverage = _coverage(model, batches, convolutions)
    used, sizes = [], []
    for name, m in convolutions.items():
        inputs, outputs = coverage[name]
        read = inputs.reshape(m.groups, -1).repeat_interleave(m.out_channels // m.groups, 0)  # by each output channel
        pairs = read + outputs[:, None]
        used.append(pairs.reshape(*pairs.shape, *[1] * (m.weight.dim() - 2)).expand_as(m.weight))
        sizes.append(m.weight.detach().abs())
    by_use = [rank.amin(tuple(range(2, rank.dim())), keepdim=True) for rank in _ranks(used)]  # one a pair of channels
    score = [use - size for use, size in zip(by_use, _ranks(sizes), strict=True)]
    n = round(removed * sum(s.numel() for s in score))
    return {name: rank >= n for name, rank in zip(convolutions, _ranks(score), strict=True)}


def _ranks(layers: list[Tensor]) -> list[Tensor]:
    """Position of each value among those of all layers in ascending order, 0 to N - 1; equal ones in order of place."""
    flat = torch.cat([layer.reshape(-1) for layer in layers])
    order = torch.argsort(flat, stable=True)
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(flat), device=flat.device))
    return [r.reshape(layer.shape) for r, layer in zip(ranks.split([x.numel() for x in layers]), layers, strict=True)]


def _coverage(model: nn.Module, batches: Iterable[Batch], layers: dict[str, Convolution]) -> dict[str, list[Tensor]]:
    """For each layer, how many images activate each of its input and each of its output channels."""
    counts: dict[str, list[Tensor]] = {
        name: [m.weight.new_zeros(m.in_channels), m.weight.new_zeros(m.out_channels)] for name, m in layers.items()}

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def count(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            for total, values in zip(counts[name], (args[0], output), strict=True):
                channels = values.flatten(2)
                low, high = (f(channels, dim=(1, 2), keepdim=True) for f in (torch.amin, torch.amax))
                scaled = (channels - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)
                total += (scaled.mean(2) > COVERED).sum(0)
        return layers[name].register_forward_hook(count)
    handles = [hook(name) for name in layers]
    try:
        with measuring():
            for x, _ in batches:
                model(x)
    finally:
        for handle in handles:
            handle.remove()
    return counts
