"""Images on disk as a split, and batches that are decoded from it in parallel, never held in memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE, RESIZED = 224, 256  # pixels: of the crop that the model sees, and of the short side before the central one
SUFFIXES = {".jpeg", ".jpg", ".png"}


@dataclass(frozen=True)
class Files:
    """Image files on disk with labels int64 [N]: a split that is decoded when it is needed."""

    paths: np.ndarray  #: of str, [N]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor | np.ndarray, labels: Tensor | np.ndarray | None = None) -> Files:
        """The files at `index` (integers or a boolean mask), with their labels or with `labels`."""
        index = torch.as_tensor(index)
        return Files(self.paths[index.numpy()], self.labels[index] if labels is None else torch.as_tensor(labels))


def listed(folder: Path, classes: Sequence[str]) -> Files:
    """The files in the class folders of `folder`, by class, then by name. A class without a folder has no file.

    Raises FileNotFoundError if there is no folder or no image in any, ValueError for a folder that is no class.
    """
    layout = f"expected {folder}/<WordNet id>/*.JPEG, a folder for each class"
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: {layout}")
    if unknown := {p.name for p in folder.iterdir() if p.is_dir()} - set(classes):
        raise ValueError(f"{folder} has a folder {min(unknown)!r} that is no class of this data set: remove it")
    found = [(str(p), label) for label, c in enumerate(classes)
             for p in sorted((folder / c).glob("*")) if p.suffix.lower() in SUFFIXES]
    if not found:
        raise FileNotFoundError(f"no image in the class folders of {folder}: {layout}; ImageNet's validation images "
                                "come in one folder and have to be sorted into theirs")
    return Files(np.array([p for p, _ in found], dtype=np.str_), torch.tensor([y for _, y in found], dtype=torch.int64))


def digest(*parts: Files) -> str:
    """SHA-256 (64 hex digits) over label, name and size in bytes of every file: to read them all would take an hour."""
    h = hashlib.sha256()
    for part in parts:
        for path, label in zip(part.paths, part.labels.tolist(), strict=True):
            h.update(f"{label} {Path(path).name} {Path(path).stat().st_size}\n".encode())
        h.update(b"\n")
    return h.hexdigest()


class Damaged(ValueError):
    """A file that is no whole image. Its one argument is the message, so that it survives a worker process."""


class Streamed:
    """Files as an iterable of (images float32 [B, 3, 224, 224] in [0, 1], labels [B]) on a device.

    With `seed`, each pass visits the samples in a new random order, in random crops of random size and shape and (with
    `flip`) mirrored at random; all passes follow from the seed, whatever the number of `workers`. Without, images come
    in order, the short side at 256 pixels and the centre cut out. `workers`: processes that decode; default: one a
    core; 0: none, this process decodes. Raises ValueError, with its path, at a file that is no whole image.
    """

    def __init__(self, files: Files, batch_size: int, device: torch.device | str = "cpu", *,
                 seed: int | None = None, flip: bool = False, workers: int | None = None):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        self.files, self.batch_size, self.device = files, batch_size, torch.device(device)
        self.seed, self.flip, self.passes = seed, flip, 0
        self.workers = _usable_cores() if workers is None else workers

    def __len__(self) -> int:
        """Batches in one pass."""
        return -(-len(self.files) // self.batch_size)

    @property
    def position(self) -> Tensor:
        """What the passes to come depend on: set to what it was, they come again."""
        return torch.tensor(self.passes)

    @position.setter
    def position(self, passes: Tensor) -> None:
        self.passes = int(passes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.files)
        order = np.arange(n)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.passes)).permutation(n)
        images = _Images(self.files, self.seed, self.passes, self.flip)
        self.passes += 1
        batches = [order[i:i + self.batch_size].tolist() for i in range(0, n, self.batch_size)]
        draw = torch.Generator().manual_seed(0)  # the loader draws from it, not from the caller's
        loader = torch.utils.data.DataLoader(images, batch_sampler=batches, num_workers=self.workers, generator=draw,
                                             pin_memory=self.device.type == "cuda")
        try:
            for x, y in loader:
                x = x.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # made NHWC, so that it is channels_last
                yield x.float().div_(255), y.to(self.device)
        except Damaged as e:  # a worker's comes with its traceback: the last line says it
            raise ValueError(str(e).strip().splitlines()[-1].partition("Damaged: ")[2] or str(e)) from None


def check(files: Files, workers: int | None = None) -> None:
    """Decode every file once, in parallel; ValueError at the first that is no whole image."""
    for _ in Streamed(files, 64, workers=workers):
        pass


class _Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Decoded, cropped images uint8 [224, 224, 3]; sample i of pass p is drawn from (seed, p, i) alone."""

    def __init__(self, files: Files, seed: int | None, number: int, flip: bool):
        self.files, self.seed, self.number, self.flip = files, seed, number, flip

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path = str(self.files.paths[i])
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError) as e:
            raise Damaged(f"{path} is damaged or no image ({e}): replace or remove it") from None
        image = _central(image) if self.seed is None else self._augmented(image, i)
        return torch.from_numpy(np.array(image)), int(self.files.labels[i])

    def _augmented(self, image: Image.Image, i: int) -> Image.Image:
        from torchvision.transforms import RandomResizedCrop, functional as vision

        seed = np.random.default_rng((self.seed or 0, self.number, i)).integers(2**63)
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would seed the caller's CUDA too
            top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
            mirrored = self.flip and bool(torch.rand(()) < 0.5)
        image = vision.resized_crop(image, top, left, height, width, [SIZE, SIZE])
        return vision.hflip(image) if mirrored else image


def _central(image: Image.Image) -> Image.Image:
    from torchvision.transforms import functional as vision

    return vision.center_crop(vision.resize(image, RESIZED), [SIZE, SIZE])


def _usable_cores() -> int:
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
