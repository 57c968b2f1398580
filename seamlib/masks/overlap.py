"""What the masks of several problems share: is a weight kept for one problem, or for what they have in common?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor


def jaccard(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> tuple[float, float]:
    """(Weights that both masks keep, as a share of those that either keeps; what chance gives), in [0, 1].

    Chance: masks that keep as many weights in each layer, drawn at random: its expected number in both over that in
    either. `a`, `b`: boolean, of one model. Raises ValueError if they are not of the same parameters.
    """
    _check([a, b])
    kept = sum(int(m.sum()) for m in (*a.values(), *b.values()))
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    expected = sum(int(a[name].sum()) * int(b[name].sum()) / a[name].numel() for name in a)
    return both / (kept - both or 1), expected / (kept - expected or 1)


def wanted(masks: Sequence[Mapping[str, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """(Share of the weights that exactly 0, 1, ... n of the n masks keep; what chance gives), float64 [n + 1] each.

    Chance as in `jaccard`: each layer's densities, drawn independently. Raises ValueError as `jaccard` does.
    """
    _check(masks)
    found, chance = np.zeros(len(masks) + 1), np.zeros(len(masks) + 1)
    for name in masks[0]:
        votes = sum(mask[name].int() for mask in masks)
        found += np.bincount(np.asarray(votes).reshape(-1), minlength=len(masks) + 1)
        counts = np.ones(1)
        for mask in masks:
            density = float(mask[name].double().mean())
            counts = np.convolve(counts, [1 - density, density])
        chance += votes.numel() * counts  # type: ignore[union-attr]
    return found / found.sum(), chance / chance.sum()


def grown(shares: Sequence[float]) -> list[float]:
    """Share of the weights that 1, 2, ... n of the n masks keep between them, averaged over which of them these are.

    `shares`: what exactly 0, 1, ... n of them keep, as `wanted` has it, found or by chance.
    """
    n = len(shares) - 1
    return [float(sum(share * (1 - math.comb(n - votes, k) / math.comb(n, k)) for votes, share in enumerate(shares)))
            for k in range(1, n + 1)]


def _check(masks: Sequence[Mapping[str, Tensor]]) -> None:
    if not masks or any({n: m.shape for n, m in mask.items()} != {n: m.shape for n, m in masks[0].items()}
                        for mask in masks):
        raise ValueError(f"{len(masks)} masks that are not of the same parameters: give at least one, all of one model")
