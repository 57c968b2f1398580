import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from seamlib.problems import data, layouts, stream, superclasses

N = {name: n for name, (_, n, _, _) in layouts.SETS.items()}


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (len(path.name), 20, 200)).save(path)


def names(values):
    """A MATLAB cell array of texts."""
    return np.array([[v] for v in values], dtype=object)


def flower102(root):
    """Two images a class; the first trains or validates, the second tests. Image numbers run against the classes."""
    folder, n = root / "flowers-102", N["flower102"]
    labels = np.concatenate([np.arange(n, 0, -1), np.arange(n, 0, -1)])
    folder.mkdir(parents=True)
    savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    parts = {"trnid": range(1, 51), "valid": range(51, n + 1), "tstid": range(n + 1, 2 * n + 1)}
    savemat(folder / "setid.mat", {name: [numbers] for name, numbers in parts.items()})
    for i in range(1, 2 * n + 1):
        image(folder / "jpg" / f"image_{i:05d}.jpg")
    return folder


def mit67(root):
    folder, scenes = root / "MIT_67", [f"scene{i:02d}" for i in range(N["mit67"])]
    for scene in reversed(scenes):  # not in the order of their names
        image(folder / "Images" / scene / "a.jpg"), image(folder / "Images" / scene / "b.jpg")
    (folder / "TrainImages.txt").write_text("\n".join(f"{s}/a.jpg" for s in reversed(scenes)))
    (folder / "TestImages.txt").write_text("\n".join(f"{s}/b.jpg" for s in scenes) + "\n")
    return folder


def cub200(root):
    folder, birds = root / "CUB_200_2011", [f"{i + 1:03d}.Bird" for i in range(N["cub200"])]
    rows = [(2 * c + k + 1, f"{bird}/{k}.jpg", c + 1, k) for c, bird in enumerate(birds) for k in (0, 1)]
    for _, path, _, _ in rows:
        image(folder / "images" / path)
    (folder / "images.txt").write_text("".join(f"{i} {path}\n" for i, path, _, _ in rows))
    (folder / "image_class_labels.txt").write_text("".join(f"{i} {c}\n" for i, _, c, _ in rows))
    (folder / "train_test_split.txt").write_text("".join(f"{i} {1 - k}\n" for i, _, _, k in rows))
    (folder / "classes.txt").write_text("".join(f"{c + 1} {bird}\n" for c, bird in enumerate(birds)))
    return folder


def dog120(root):
    folder, breeds = root / "stanford_dog", [f"n{i:05d}-dog" for i in range(N["dog120"])]
    for part, file in (("train", "a.jpg"), ("test", "b.jpg")):
        paths = [f"{b}/{file}" for b in breeds]
        for path in paths:
            image(folder / "Images" / path)
        labels = np.arange(1, len(breeds) + 1)[:, None]
        savemat(folder / f"{part}_list.mat", {"file_list": names(paths), "labels": labels})
    return folder


def action40(root):
    folder, actions = root / "stanford_40", [f"action_{i:02d}" for i in range(N["action40"])]
    (folder / "ImageSplits").mkdir(parents=True)
    (folder / "ImageSplits" / "actions.txt").write_text(
        "action_name\tnumber_of_images\n" + "".join(f"{a}\t2\n" for a in actions))
    for a in actions:
        for part, number in (("train", 1), ("test", 2)):
            image(folder / "JPEGImages" / f"{a}_{number:03d}.jpg")
            (folder / "ImageSplits" / f"{a}_{part}.txt").write_text(f"{a}_{number:03d}.jpg\n")
    return folder


def tinyimagenet(root):
    """Every fifth class of ImageNet: numbers 0, 5, 10 ..."""
    folder, wnids = root / "tiny-imagenet-200", superclasses.classes("imagenet")[::5]
    for w in wnids:
        image(folder / "train" / w / "images" / f"{w}_0.JPEG"), image(folder / "val" / "images" / f"val_{w}.JPEG")
    (folder / "val" / "val_annotations.txt").write_text("".join(f"val_{w}.JPEG\t{w}\t0\t0\t62\t57\n" for w in wnids))
    return folder


TREES = {f.__name__: f for f in (flower102, mit67, cub200, dog120, tinyimagenet, action40)}


@pytest.mark.parametrize("name", layouts.NAMES)
def test_the_official_layout(name, tmp_path):
    TREES[name](tmp_path)
    source = data.load(name, tmp_path, download=False)
    n, of = (1000, range(0, 1000, 5)) if name == "tinyimagenet" else (N[name], range(N[name]))
    assert len(source.classes) == len(set(source.classes)) == n
    assert source.train.labels.tolist() == source.test.labels.tolist() == list(of)
    assert not set(source.train.paths) & set(source.test.paths)
    x, y = next(iter(stream.Streamed(source.test, 2, workers=0)))
    assert x.shape == (2, 3, 224, 224)
    assert y.tolist() == [of[0], of[1]]
    small = data.load(name, tmp_path, download=False, size=16)
    assert small.train.images.shape == (N[name], 3, 16, 16)
    assert small.train.labels.tolist() == source.train.labels.tolist()


def test_class_numbers(tmp_path):
    """Those of the official lists; of mit67, which has none, the order of names."""
    for name in layouts.NAMES:
        TREES[name](tmp_path)
    paths = {name: layouts.read(name, tmp_path, download=False)[1].paths for name in layouts.NAMES}
    assert "image_00102" in paths["flower102"][0]
    for name, first, last in (("mit67", "scene00", "scene66"), ("cub200", "001.Bird", "200.Bird"),
                              ("dog120", "n00000-dog", "n00119-dog"), ("action40", "action_00", "action_39")):
        assert first in paths[name][0]
        assert last in paths[name][-1]


@pytest.mark.parametrize("name", layouts.NAMES)
def test_absent(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{name} is not at hand or not whole .*expected .* with "):
        layouts.read(name, tmp_path, download=False)


def test_a_download_that_fails_says_where_to_put_the_files(tmp_path, monkeypatch):
    import torchvision

    def offline(*_, **__):
        raise RuntimeError("no network")
    monkeypatch.setattr(torchvision.datasets, "Flowers102", offline)
    with pytest.raises(FileNotFoundError, match="none could be downloaded .no network.: expected .*flowers-102/ with"):
        layouts.read("flower102", tmp_path)


def test_a_wrong_number_of_classes(tmp_path):
    folder = mit67(tmp_path)
    image(folder / "Images" / "another" / "a.jpg")
    with pytest.raises(ValueError, match="68 classes, 67 of them with training images: the official set has 67"):
        layouts.read("mit67", tmp_path)


def test_a_missing_image(tmp_path):
    folder = mit67(tmp_path)
    (folder / "Images" / "scene05" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="scene05/b.jpg is in a list of mit67 but not on disk"):
        layouts.read("mit67", tmp_path)


def test_a_list_that_is_damaged(tmp_path):
    folder = mit67(tmp_path)
    (folder / "TestImages.txt").write_text("nowhere/a.jpg")
    with pytest.raises(ValueError, match="a list of mit67 in .* cannot be read"):
        layouts.read("mit67", tmp_path)


def test_digits_are_halved_by_class():
    whole, low, high = (data.load(name, "") for name in ("mnist5k", "digits0to4", "digits5to9"))
    assert (low.classes, high.classes) == (tuple("01234"), tuple("56789"))
    for half, first in ((low, 0), (high, 5)):
        for part in ("train", "test"):
            mine, all_ = getattr(half, part), getattr(whole, part)
            chosen = (all_.labels >= first) & (all_.labels < first + 5)
            assert torch.equal(mine.images, all_.images[chosen])
            assert torch.equal(mine.labels, all_.labels[chosen] - first)
