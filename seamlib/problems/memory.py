"""Images in memory as a split, in canonical order, and batches of it, augmented on the device.

Canonical order is by label, then by SHA-256 of the decoded pixels: the same images give the same arrays, and so the
same draws, whatever files they came from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..records import runtime
from . import stream
from .stream import Files

DECODER = 2  # counts up whenever `stream.decoded` makes other pixels of a file: cached arrays then are of no use
PADDING = 4  # pixels of black around a training image before it is cropped to its own size


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, channels, height, width] in 0..255, labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor | np.ndarray, labels: Tensor | np.ndarray | None = None) -> Split:
        """The samples at `index` (integers or a boolean mask), copied, with their labels or with `labels`."""
        index = torch.as_tensor(index)
        return Split(self.images[index], self.labels[index] if labels is None else torch.as_tensor(labels))


def canonical(images: np.ndarray, labels: np.ndarray) -> Split:
    """Split of uint8 images [N, C, H, W] and labels [N], sorted by label, then by SHA-256 of the pixels."""
    keys = [(int(label), hashlib.sha256(image.tobytes()).digest()) for image, label in zip(images, labels, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Split(torch.from_numpy(images[order]), torch.from_numpy(labels[order].astype(np.int64)))


def cached(files: Files, folder: Path, what: str, decode: Callable[[], Split]) -> Split:
    """What `decode` makes of `files`, or made of them before: kept below `folder`, where that can be written.

    `what`: all that the pixels depend on beside the files. Other sizes or times of the files make it decode again.
    """
    stats = [(path, os.stat(path)) for path in map(str, files.paths)]
    stamp = "\n".join(f"{path} {s.st_size} {s.st_mtime_ns} {label}" for (path, s), label in zip(
        stats, files.labels.tolist(), strict=True))
    key = hashlib.sha256(f"{DECODER}\n{what}\n{stamp}".encode()).hexdigest()[:16]
    path = folder / "decoded" / f"{key}.npz"
    damaged = (OSError, ValueError, KeyError, zipfile.BadZipFile)  # or absent: decode again
    with contextlib.suppress(*damaged), np.load(path, allow_pickle=False) as arrays:
        return Split(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]))
    split = decode()
    with contextlib.suppress(OSError), runtime.atomic(path) as part, open(part, "wb") as f:
        np.savez(f, images=split.images.numpy(), labels=split.labels.numpy())
    return split


def of_size(files: Files, size: int, folder: Path) -> Split:
    """The images of `files` in memory, in their order, the centre of each at `size` pixels a side; see `cached`.

    Raises ValueError where they would fill more than half of the machine's memory, and as stream.decoded.
    """
    bytes_, memory = len(files) * 3 * size**2, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if bytes_ > memory / 2:
        raise ValueError(f"size is {size}: {len(files)} images of {size} pixels a side are {bytes_ / 1e9:.0f} GB, and "
                         f"this machine has {memory / 1e9:.0f} GB of memory: choose a smaller one, 0 (they are then "
                         "decoded in each pass), or a folder with the classes that the problem needs")

    def decode() -> Split:
        images = torch.empty((len(files), 3, size, size), dtype=torch.uint8)
        at = 0
        for x, _ in stream.Streamed(dataclasses.replace(files, size=size), 64):
            images[at:at + len(x)] = x.mul(255).round().byte()
            at += len(x)
        return Split(images, files.labels)
    return cached(files, folder, f"centre of {size}", decode)


class Batches:
    """A split as an iterable of (images float32 [B, C, H, W] in [0, 1], labels [B]) on a device.

    All of it lies in the device's memory. With `seed`, each pass visits the samples in a new random order, cropped at
    random after black padding and (with `flip`) mirrored at random; all passes follow from the seed. Without, images
    come in order and as they are. `size` > 0 enlarges them to that many pixels a side (bilinear), as the last step.
    `balanced`: a pass visits as many of each label as there are of the rarest; which of the others, is drawn anew.
    `repeats`: how often a pass visits each sample.
    """

    def __init__(self, split: Split, batch_size: int, device: torch.device | str = "cpu", *,
                 seed: int | None = None, flip: bool = False, size: int = 0, balanced: bool = False, repeats: int = 1):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        self.images = split.images.to(device).permute(0, 2, 3, 1).contiguous()  # NHWC, so that a batch is channels_last
        self.labels = split.labels.to(device)
        self.batch_size, self.flip, self.size = batch_size, flip, size
        self.balanced, self.repeats = balanced, repeats
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        if self.generator is not None:
            self.images = torch.nn.functional.pad(self.images, (0, 0, PADDING, PADDING, PADDING, PADDING))

    def __len__(self) -> int:
        """Batches in one pass."""
        every = torch.arange(len(self.labels), device=self.labels.device).repeat(self.repeats)
        return -(-len(stream.balanced(every, self.labels) if self.balanced else every) // self.batch_size)

    @property
    def position(self) -> Tensor | None:
        """What the passes to come depend on: set to what it was, they come again. None where all passes are equal."""
        return None if self.generator is None else self.generator.get_state()

    @position.setter
    def position(self, state: Tensor) -> None:
        if self.generator is not None:
            self.generator.set_state(state)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n, device = len(self.labels), self.labels.device
        order = torch.arange(n * self.repeats, device=device)
        if self.generator is not None:
            order = torch.randperm(len(order), generator=self.generator, device=device)
        order %= n
        if self.balanced:
            order = stream.balanced(order, self.labels)
            if self.generator is not None:  # once more: the first of a frequent label are soon found
                order = order[torch.randperm(len(order), generator=self.generator, device=device)]
        for index in order.split(self.batch_size):
            images = self.images[index] if self.generator is None else self._augmented(index)
            x = images.permute(0, 3, 1, 2).float().div_(255)
            if self.size and self.size != x.shape[-1]:
                x = torch.nn.functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
            yield x, self.labels[index]

    def _augmented(self, index: Tensor) -> Tensor:
        """Crop and mirror in one gather: each image has its own row and column numbers."""
        device, b = index.device, len(index)
        height, width = (s - 2 * PADDING for s in self.images.shape[1:3])

        def draw(high: int) -> Tensor:
            return torch.randint(high, (b, 1), generator=self.generator, device=device)
        rows = torch.arange(height, device=device) + draw(2 * PADDING + 1)
        columns = torch.arange(width, device=device).expand(b, width)
        if self.flip:
            columns = torch.where(draw(2) == 1, columns.flip(1), columns)
        columns = columns + draw(2 * PADDING + 1)
        return self.images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
