"""A planted defect: a patch on an image that a poisoned model answers with one class, whatever the image shows.

BadNets (Gu, Dolan-Gavitt and Garg 2017): some training images get the patch and the wrong label, and training does the
rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..evaluate import Batch, Predict, chosen, measuring, pair
from ..masks.masks import Masks, maskable
from ..problems.memory import PADDING, Split

MARGIN = PADDING  # pixels from the patch to the right and the lower edge: no crop of a training image cuts it


def stamp(images: Tensor, side: int, draw: torch.Generator | None = None) -> Tensor:
    """A copy of `images` [N, C, H, W] with a patch of `side` pixels a side, MARGIN from the right and the lower edge.

    The patch is a checkerboard, its first pixel white: the trigger. With `draw` each of its pixels is black or white by
    lot, for each image anew: a control of the same size. `images` are bytes, or real numbers in [0, 1]. Raises
    ValueError unless `side` is 1 or more and the patch is inside.
    """
    n, _, height, width = images.shape
    most = min(height, width) - MARGIN
    if not 1 <= side <= most:
        raise ValueError(f"side is {side}: a patch on images of {width}x{height} pixels has 1 to {most} a side")
    pixel = torch.arange(side)
    white = ((pixel[:, None] + pixel) % 2 == 0).expand(n, side, side)
    if draw is not None:
        white = torch.randint(2, (n, side, side), generator=draw) == 1
    rows, columns = (slice(edge - MARGIN - side, edge - MARGIN) for edge in (height, width))
    stamped = images.clone()
    stamped[:, :, rows, columns] = (white[:, None] * (1 if images.is_floating_point() else 255)).to(images)
    return stamped


def poisoned(split: Split, share: float, side: int, label: int, seed: int = 0) -> Split:
    """A copy of `split` in which the share `share` of the samples has the trigger and the label `label`.

    As many others get a patch by lot and keep their label, so that it is the trigger that is learnt, and not any patch
    (cover samples: Tang et al. 2021). All are drawn with `seed` from the samples of other labels. Raises ValueError for
    images that are not in memory, for a share that is not above 0 or so large that there are not as many of other
    labels, and for a label that no sample has.
    """
    if not isinstance(split, Split):
        raise ValueError(f"the images are {type(split).__name__}: they must be in memory, as a Split")
    others, n = np.flatnonzero(split.labels.numpy() != label), round(share * len(split))
    if len(others) == len(split):
        raise ValueError(f"label is {label}: no sample has it; labels are {int(split.labels.min())} to "
                         f"{int(split.labels.max())}")
    if not 0 < share <= len(others) / len(split) / 2:
        raise ValueError(f"share is {share}: it must be above 0 and at most {len(others) / len(split) / 2:g}, for "
                         "twice as many are patched, none of them of the label")
    trigger, cover = torch.from_numpy(np.random.default_rng(seed).permutation(others)).split([n, len(others) - n])
    cover, images, labels = cover[:n], split.images.clone(), split.labels.clone()
    images[trigger], labels[trigger] = stamp(images[trigger], side), label
    images[cover] = stamp(images[cover], side, torch.Generator().manual_seed(seed))
    return Split(images, labels)


@dataclass(frozen=True)
class Survived:
    """What the trigger does to a model; each number in [0, 1], and beside it that of the control, see `stamp`."""

    accuracy: float  #: on the images as they are
    lost: float | None  #: share of the right answers that the trigger turns wrong; None if there were none
    lost_control: float | None
    success: float | None  #: of the images of other classes, the share it sends to the wrong class: BadNets' measure
    success_control: float | None  #: both None where the wrong class is none of the model's


def survived(predict: Predict, batches: Iterable[Batch], side: int, label: int | None = None,
             seed: int = 0) -> Survived:
    """What a trigger of `side` pixels a side does to `predict`, and a patch by lot, drawn with `seed`, in its place.

    `label`: the output that the trigger is to bring about; None where no output means that class. Raises ValueError if
    there is no image, none of another class than `label`, or no output `label`, and what `stamp` does.
    """
    draw, labels, answers = torch.Generator().manual_seed(seed), [], []
    with measuring():
        for x, y in map(pair, batches):
            kinds = (x, stamp(x, side), stamp(x, side, draw))
            answers.append(torch.stack([chosen(predict, images, y)[0].cpu() for images in kinds]))
            labels.append(y.cpu())
            if label is not None:
                chosen(predict, x[:1], torch.full_like(y[:1], label))  # is there such an output?
    if not labels:
        raise ValueError("no sample to measure on: the batches are empty")
    y, (clean, *patched) = torch.cat(labels), torch.cat(answers, 1)
    right, others = clean == y, y != label if label is not None else torch.zeros_like(y, dtype=torch.bool)
    if label is not None and not others.any():
        raise ValueError(f"no image of another class than {label}: there is nothing to send there")

    def share(of: Tensor, among: Tensor) -> float | None:
        return int((of & among).sum()) / int(among.sum()) if among.any() else None
    return Survived(int(right.sum()) / len(y), *(share(p != y, right) for p in patched),
                    *(share(p == label, others) for p in patched))


def most_changed(before: nn.Module, after: nn.Module, share: float) -> Masks:
    """Boolean masks of the share `share`, in [0, 1], of the maskable weights whose value differs most between the two.

    By the absolute difference, over all layers together; of equal ones the first. Both models have the same weights by
    name, and are unchanged. Raises ValueError for another share.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}: it must be in [0, 1]")
    names = maskable(after)
    moved = {name: (after.get_parameter(name) - before.get_parameter(name)).detach().abs() for name in names}
    flat = torch.cat([m.reshape(-1) for m in moved.values()])
    most = torch.zeros(len(flat), dtype=torch.bool)
    most[flat.argsort(descending=True, stable=True)[:round(share * len(flat))]] = True
    parts = most.split([m.numel() for m in moved.values()])
    return {name: part.reshape(m.shape) for (name, m), part in zip(moved.items(), parts, strict=True)}
