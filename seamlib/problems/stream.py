"""Images on disk as a split, and batches that are decoded from it in parallel, never held in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = 224  # pixels a side that a model sees, if nothing else is said
CROP = 0.875  # of the short side, that the central crop shows
SUFFIXES = {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
SYSTEM = {"Thumbs.db", "desktop.ini"}  # what file managers leave, beside hidden files
TURNED = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}  # EXIF orientation -> what makes it upright
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Files:
    """Image files on disk with labels int64 [N]: a split that is decoded when it is needed."""

    paths: np.ndarray  #: of str, [N]
    labels: Tensor
    size: int = SIZE  #: pixels a side at which they are decoded

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor | np.ndarray, labels: Tensor | np.ndarray | None = None) -> Files:
        """The files at `index` (integers or a boolean mask), with their labels or with `labels`."""
        index = torch.as_tensor(index)
        return dataclasses.replace(self, paths=self.paths[index.numpy()],
                                   labels=self.labels[index] if labels is None else torch.as_tensor(labels))


def listed(folder: Path, classes: Sequence[str]) -> Files:
    """The files in the class folders of `folder`, by class, then by name. A class without a folder has no file.

    Raises FileNotFoundError if there is no folder or no image in any, ValueError for a folder that is no class, or as
    `class_files`.
    """
    layout = (f"expected {folder}/<WordNet id>/*.JPEG, a folder for each class; ten of ImageNet's, Imagenette, are in "
              "the public repository thunderInfy/imagenette on GitHub")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: {layout}")
    if unknown := {p.name for p in folder.iterdir() if p.is_dir()} - set(classes):
        raise ValueError(f"{folder} has a folder {min(unknown)!r} that is no class of this data set: remove it")
    found = [(str(p), label) for p, label in class_files(folder, classes)]
    if not found:
        raise FileNotFoundError(f"no image in the class folders of {folder}: {layout}")
    return Files(np.array([p for p, _ in found], dtype=np.str_), torch.tensor([y for _, y in found], dtype=torch.int64))


class Damaged(ValueError):
    """A file that is no whole image. Its one argument is the message, so that it survives a worker process."""


def class_files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """(file, class number) of each image in the class folders of `folder`, by class, then by name.

    Raises ValueError, with their number and the first, if there are files that would be passed over: of another kind,
    in folders within the class folders, or beside them. Hidden ones do not count.
    """
    numbers = {str(folder / c): label for label, c in enumerate(classes)}
    found, others = [], []
    for at, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if at in numbers and Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                found.append((Path(at, name), numbers[at]))
            elif not name.startswith(".") and name not in SYSTEM:
                others.append(Path(at, name))
    if others:
        raise ValueError(f"{folder} has {len(others)} files that would be passed over, such as {min(others)}: images "
                         "lie in the class folders (those that come in one folder have to be sorted into theirs), not "
                         f"deeper, and end in {', '.join(sorted(SUFFIXES))}; move, convert or remove the others")
    return sorted(found, key=lambda file: (file[1], str(file[0])))


def decoded(path: Path | str) -> Image.Image:
    """The image in a file, as RGB with 8 bits, as a viewer shows it; of a moving one the first frame.

    It is turned as its EXIF data say, 16-bit grey is scaled, what is transparent lies on white. Raises ValueError, with
    the path, for a file that is no whole image, or one of numbers whose range nobody knows (32 bits, floating point).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, and of odd metadata
            with Image.open(path) as opened:
                return _seen(opened)
    except Image.DecompressionBombError as e:
        raise Damaged(f"{path} is too large to be decoded ({e}): make it smaller, or remove it") from None
    except Exception as e:  # whatever a decoder meets in a damaged file
        raise Damaged(f"{path} is damaged or no image ({' '.join(str(e).split()) or type(e).__name__}): replace or "
                      "remove it") from None


def _seen(image: Image.Image) -> Image.Image:
    image.load()  # which turns some kinds of file, and says so
    turn = TURNED.get(image.getexif().get(ORIENTATION, 1))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its 32-bit numbers have no range that is known; images have 8 or 16 bits")
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return (image if turn is None else image.transpose(turn)).convert("RGB")


def digest(*parts: Files) -> str:
    """SHA-256 (64 hex digits) over label, name and size in bytes of every file: to read them all would take an hour."""
    h = hashlib.sha256()
    for part in parts:
        for path, label in zip(part.paths, part.labels.tolist(), strict=True):
            h.update(f"{label} {Path(path).name} {Path(path).stat().st_size}\n".encode())
        h.update(b"\n")
    return h.hexdigest()


class Streamed:
    """Files as an iterable of (images float32 [B, 3, size, size] in [0, 1], labels [B]) on a device.

    With `seed`, each pass visits the samples in a new random order, in random crops of random size and shape and (with
    `flip`) mirrored at random; all passes follow from the seed, whatever the number of `workers`. Without, images come
    in order, the short side at size / 0.875 pixels and the centre cut out. `balanced`: see `balanced`. `repeats`: how
    often a pass visits each sample, in a crop of its own every time. `workers`: processes that decode; default: one a
    core; 0: none, this process decodes. Raises ValueError, with its path, at a file that is no whole image.
    """

    def __init__(self, files: Files, batch_size: int, device: torch.device | str = "cpu", *,
                 seed: int | None = None, flip: bool = False, workers: int | None = None, balanced: bool = False,
                 repeats: int = 1):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        self.files, self.batch_size, self.device = files, batch_size, torch.device(device)
        self.seed, self.flip, self.passes = seed, flip, 0
        self.workers = _usable_cores() if workers is None else workers
        self.balanced, self.labels = balanced, files.labels.repeat(repeats)

    def __len__(self) -> int:
        """Batches in one pass."""
        every = torch.arange(len(self.labels))
        return -(-len(balanced(every, self.labels) if self.balanced else every) // self.batch_size)

    @property
    def position(self) -> Tensor:
        """What the passes to come depend on: set to what it was, they come again."""
        return torch.tensor(self.passes)

    @position.setter
    def position(self, passes: Tensor) -> None:
        self.passes = int(passes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.labels)
        order = np.arange(n)
        if self.seed is not None:
            rng = np.random.default_rng((self.seed, self.passes))
            order = rng.permutation(n)
        if self.balanced:
            order = balanced(torch.from_numpy(order), self.labels).numpy()
            if self.seed is not None:  # once more: the first of a frequent label are soon found
                order = rng.permutation(order)
        images = _Images(self.files, self.seed, self.passes, self.flip)
        self.passes += 1
        batches = [order[i:i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size)]
        draw = torch.Generator().manual_seed(0)  # the loader draws from it, not from the caller's
        loader = torch.utils.data.DataLoader(images, batch_sampler=batches, num_workers=self.workers, generator=draw,
                                             pin_memory=self.device.type == "cuda")
        try:
            for x, y in loader:
                x = x.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # made NHWC, so that it is channels_last
                yield x.float().div_(255), y.to(self.device)
        except Damaged as e:  # a worker's comes with its traceback: the last line says it
            raise ValueError(str(e).strip().splitlines()[-1].partition("Damaged: ")[2] or str(e)) from None


def balanced(order: Tensor, labels: Tensor) -> Tensor:
    """Of sample numbers in an `order`, the first of each label, as many as there are of the rarest; in that order."""
    ordered = labels[order]
    counts = torch.bincount(ordered)
    first, rarest = torch.zeros_like(ordered, dtype=torch.bool), counts[counts > 0].min()
    for label in counts.nonzero():
        first[(ordered == label).nonzero()[:rarest]] = True
    return order[first]


def check(split: object, workers: int | None = None) -> None:
    """Decode every image of a split on disk once, in parallel; ValueError names the first that is damaged.

    For before a long search. A split in memory has been decoded already.
    """
    for _ in Streamed(split, 64, workers=workers) if isinstance(split, Files) else ():
        pass


class _Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Decoded, cropped images uint8 [size, size, 3]; sample i of pass p is drawn from (seed, p, i) alone.

    Of n files, sample i + n is file i once more.
    """

    def __init__(self, files: Files, seed: int | None, number: int, flip: bool):
        self.files, self.seed, self.number, self.flip = files, seed, number, flip

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        file = i % len(self.files)
        image = decoded(str(self.files.paths[file]))
        image = central(image, self.files.size) if self.seed is None else self._augmented(image, i)
        return torch.from_numpy(np.array(image)), int(self.files.labels[file])

    def _augmented(self, image: Image.Image, i: int) -> Image.Image:
        from torchvision.transforms import RandomResizedCrop, functional as vision

        seed = np.random.default_rng((self.seed or 0, self.number, i)).integers(2**63)
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would seed the caller's CUDA too
            top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
            mirrored = self.flip and bool(torch.rand(()) < 0.5)
        image = vision.resized_crop(image, top, left, height, width, [self.files.size] * 2)
        return vision.hflip(image) if mirrored else image


def central(image: Image.Image, size: int) -> Image.Image:
    """The centre of an image, `size` pixels a side, after its short side was made size / CROP."""
    from torchvision.transforms import functional as vision

    return vision.center_crop(vision.resize(image, round(size / CROP)), [size, size])


def _usable_cores() -> int:
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
