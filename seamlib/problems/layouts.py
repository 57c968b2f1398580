"""Data sets in the folders of their official archives: which file is of which class, and trains or tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from . import superclasses
from .stream import Files

Listed = list[tuple[Path, int]]  # (file, class number)
Read = tuple[tuple[str, ...], Listed, Listed]  # class names, training files, test files


def read(name: str, root: Path | str, download: bool = True) -> tuple[tuple[str, ...], Files, Files]:
    """(class names, training files, test files) of the data set `name`, with its official split, below `root`.

    Files are in order of class, then of name. Only flower102 can be downloaded. Raises FileNotFoundError, with the
    layout that is expected, where a folder, a list or an image is missing; ValueError for a wrong number of classes.
    """
    folders, n_classes, layout, reader = SETS[name]
    folder = next((Path(root) / f for f in folders if (Path(root) / f).is_dir()), Path(root) / folders[0])
    expected = f"expected {folder}/ with {layout}"
    if not folder.is_dir() and name == "flower102" and download:
        _download_flowers(Path(root), expected)
    try:
        classes, *parts = reader(folder)
    except OSError as e:
        raise FileNotFoundError(f"{name} is not at hand or not whole ({e}): {expected}") from e
    except (ValueError, KeyError, IndexError) as e:
        raise ValueError(f"a list of {name} in {folder} cannot be read ({e!r}): {expected}") from e
    for part, listed in zip(("training", "test"), parts, strict=True):
        found = len({label for _, label in listed})
        if found != n_classes or (len(classes) != n_classes and name != "tinyimagenet"):
            raise ValueError(f"{name} in {folder} has {len(classes)} classes, {found} of them with {part} images: the "
                             f"official set has {n_classes}; {expected}")
        if missing := next((p for p, _ in listed if not p.is_file()), None):
            raise FileNotFoundError(f"{missing} is in a list of {name} but not on disk: {expected}")
    return classes, _files(parts[0]), _files(parts[1])


def _files(listed: Listed) -> Files:
    ordered = sorted((label, str(path)) for path, label in listed)
    return Files(np.array([p for _, p in ordered], np.str_), torch.tensor([y for y, _ in ordered], dtype=torch.int64))


def _download_flowers(root: Path, expected: str) -> None:
    import torchvision

    try:
        torchvision.datasets.Flowers102(root, download=True)
    except Exception as e:  # torchvision raises RuntimeError, URLError, OSError, ...
        raise FileNotFoundError(f"no flower102 in {root} and none could be downloaded ({e}): {expected}") from e


def _matlab(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    return loadmat(path)


def _flower102(folder: Path) -> Read:
    labels = _matlab(folder / "imagelabels.mat")["labels"][0].astype(int) - 1
    sets = _matlab(folder / "setid.mat")

    def of(*parts: str) -> Listed:
        numbers = np.concatenate([sets[part][0].astype(int) for part in parts])
        return [(folder / "jpg" / f"image_{i:05d}.jpg", int(labels[i - 1])) for i in numbers]
    return tuple(f"flower {c + 1}" for c in range(labels.max() + 1)), of("trnid", "valid"), of("tstid")


def _mit67(folder: Path) -> Read:
    classes = tuple(sorted(p.name for p in (folder / "Images").iterdir() if p.is_dir()))

    def of(list_name: str) -> Listed:
        lines = (folder / list_name).read_text().split()
        return [(folder / "Images" / line, classes.index(line.split("/")[-2])) for line in lines]
    return classes, of("TrainImages.txt"), of("TestImages.txt")


def _cub200(folder: Path) -> Read:
    def column(list_name: str) -> dict[str, str]:
        return dict(line.split(maxsplit=1) for line in (folder / list_name).read_text().strip().splitlines())
    paths, labels, trains = (column(f"{n}.txt") for n in ("images", "image_class_labels", "train_test_split"))
    parts: tuple[Listed, Listed] = ([], [])
    for i, path in paths.items():
        parts[trains[i] == "0"].append((folder / "images" / path, int(labels[i]) - 1))
    return tuple(column("classes.txt").values()), *parts


def _dog120(folder: Path) -> Read:
    def of(list_name: str) -> Listed:
        content = _matlab(folder / list_name)
        names, labels = content["file_list"].ravel(), content["labels"].ravel()
        return [(folder / "Images" / str(n.item()), int(y) - 1) for n, y in zip(names, labels, strict=True)]
    train, test = of("train_list.mat"), of("test_list.mat")
    return tuple(sorted({p.parent.name for p, _ in train})), train, test


def _action40(folder: Path) -> Read:
    lines = (folder / "ImageSplits" / "actions.txt").read_text().strip().splitlines()[1:]  # the first is a heading
    classes = tuple(line.split("\t")[0].strip() for line in lines)

    def of(part: str) -> Listed:
        lists = (folder / "ImageSplits" / f"{c}_{part}.txt" for c in classes)
        return [(folder / "JPEGImages" / line, y) for y, f in enumerate(lists) for line in f.read_text().split()]
    return classes, of("train"), of("test")


def _tinyimagenet(folder: Path) -> Read:
    """Numbers are those of ImageNet, of whose 1,000 classes it has 200."""
    classes = superclasses.classes("imagenet")
    train = [(path, classes.index(path.parts[-3])) for path in (folder / "train").glob("*/images/*.JPEG")]
    lines = (folder / "val" / "val_annotations.txt").read_text().strip().splitlines()
    test = [(folder / "val" / "images" / name, classes.index(wnid)) for name, wnid, *_ in map(str.split, lines)]
    return classes, train, test


SETS: dict[str, tuple[tuple[str, ...], int, str, Callable[[Path], Read]]] = {  # folders, classes, layout, reader
    "flower102": (("flowers-102", "Flower_102"), 102, "jpg/, imagelabels.mat and setid.mat", _flower102),
    "mit67": (("MIT_67", "mit67"), 67, "Images/<scene>/, TrainImages.txt and TestImages.txt", _mit67),
    "cub200": (("CUB_200_2011",), 200, "images/<bird>/, images.txt, image_class_labels.txt, train_test_split.txt and "
               "classes.txt", _cub200),
    "dog120": (("stanford_dog", "dog120"), 120, "Images/<breed>/, train_list.mat and test_list.mat", _dog120),
    "tinyimagenet": (("tiny-imagenet-200",), 200, "train/<WordNet id>/images/, val/images/ and val/val_annotations.txt,"
                     " as in the public repository seshuad/IMagenet on GitHub", _tinyimagenet),
    "action40": (("stanford_40", "Stanford40"), 40, "JPEGImages/ and ImageSplits/", _action40),
}
NAMES = tuple(SETS)
