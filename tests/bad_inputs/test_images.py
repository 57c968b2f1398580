"""Files of images as people have them: read as a viewer shows them, or refused by name; alike in memory and on disk."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from seamlib.problems import data, stream

GREY16 = np.array([[0, 65535], [257 * 100, 32768]], np.uint16)
CORNERS = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [10, 10, 10]]], np.uint8)  # red green / blue black


def oriented(number):
    exif = Image.Exif()
    exif[stream.ORIENTATION] = number
    return exif


def palette():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 0), 1)
    return image


def upright(number):
    """What a viewer shows of CORNERS with this EXIF orientation, by the standard's table."""
    c = CORNERS
    return {1: c, 2: c[:, ::-1], 3: c[::-1, ::-1], 4: c[::-1], 5: c.transpose(1, 0, 2), 6: np.rot90(c, -1),
            7: np.rot90(c, 2).transpose(1, 0, 2), 8: np.rot90(c)}[number]


def grey(values):
    return np.repeat(np.array(values, np.uint8)[..., None], 3, -1)


SHOWN = {  # name -> (the image, how it is saved, what is seen)
    "grey.png": (Image.fromarray(np.array([[3, 200]], np.uint8)), {}, grey([[3, 200]])),
    "grey16.png": (Image.fromarray(GREY16), {}, grey([[0, 255], [100, 128]])),
    "grey16.tif": (Image.fromarray(GREY16), {}, grey([[0, 255], [100, 128]])),
    "grey16.tiff": (Image.fromarray(GREY16), {"compression": "tiff_lzw"}, grey([[0, 255], [100, 128]])),
    "grey16.pgm": (Image.fromarray(GREY16), {}, grey([[0, 255], [100, 128]])),
    "bits.png": (Image.new("1", (2, 1), 1), {}, grey([[255, 255]])),
    "rgb.png": (Image.fromarray(CORNERS), {}, CORNERS),
    "rgb.bmp": (Image.fromarray(CORNERS), {}, CORNERS),
    "rgb.ppm": (Image.fromarray(CORNERS), {}, CORNERS),
    "rgb.pnm": (Image.fromarray(CORNERS), {"format": "ppm"}, CORNERS),
    "rgb.tif": (Image.fromarray(CORNERS), {}, CORNERS),
    "rgb.webp": (Image.fromarray(CORNERS), {"lossless": True}, CORNERS),
    "rgb.PNG": (Image.fromarray(CORNERS), {}, CORNERS),
    "flat.jfif": (Image.new("RGB", (8, 8), (90, 90, 90)), {"format": "jpeg"}, np.full((8, 8, 3), 90, np.uint8)),
    "flat.jpe": (Image.new("RGB", (8, 8), (90, 90, 90)), {"format": "jpeg"}, np.full((8, 8, 3), 90, np.uint8)),
    "cmyk.jpg": (Image.new("CMYK", (8, 8)), {}, np.full((8, 8, 3), 255, np.uint8)),
    "grey-alpha.png": (Image.fromarray(np.array([[[9, 0], [9, 255]]], np.uint8), "LA"), {}, grey([[255, 9]])),
    "alpha.png": (Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255], [0, 0, 0, 51]]], np.uint8)), {},
                  grey([[255, 9, 204]])),
    "alpha.tif": (Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8)), {}, grey([[255, 9]])),
    "alpha.webp": (Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8)),
                   {"lossless": True, "exact": True}, grey([[255, 9]])),
    "palette.png": (palette(), {}, np.array([[[10, 20, 30], [200, 0, 0]]], np.uint8)),
    "palette.gif": (palette(), {}, np.array([[[10, 20, 30], [200, 0, 0]]], np.uint8)),
    "clear-entry.png": (palette(), {"transparency": 0}, np.array([[[255] * 3, [200, 0, 0]]], np.uint8)),
    "clear-entry.gif": (palette(), {"transparency": 0}, np.array([[[255] * 3, [200, 0, 0]]], np.uint8)),
    "half-clear-entries.png": (palette(), {"transparency": bytes([0, 255])},
                               np.array([[[255] * 3, [200, 0, 0]]], np.uint8)),
    "clear-colour.png": (Image.fromarray(CORNERS), {"transparency": (10, 10, 10)},
                         np.where(CORNERS == 10, 255, CORNERS)),
    "moving.gif": (palette(), {"save_all": True, "append_images": [Image.new("P", (2, 1))]},
                   np.array([[[10, 20, 30], [200, 0, 0]]], np.uint8)),
    **{f"turned{n}.{kind}": (Image.fromarray(CORNERS), {"exif": oriented(n), **how}, upright(n))
       for n in range(1, 9) for kind, how in (("png", {}), ("tif", {}), ("webp", {"lossless": True}))},
}


@pytest.mark.parametrize("name", SHOWN)
def test_an_image_is_what_a_viewer_shows(name, tmp_path):
    image, how, shown = SHOWN[name]
    for part, c in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        (tmp_path / part / c).mkdir(parents=True)
        image.save(tmp_path / part / c / name, **how)
    assert np.array_equal(np.asarray(stream.decoded(tmp_path / "train/a" / name)), shown)
    source = data.load(f"folder:{tmp_path}", tmp_path / "cache")  # in memory
    assert np.array_equal(source.test.images[0].permute(1, 2, 0).numpy(), shown)
    files = stream.listed(tmp_path / "train", ["a", "b"])  # on disk: the middle of it, enlarged
    whole = stream.central(Image.fromarray(shown), stream.SIZE)
    (x, _), *_ = stream.Streamed(files, 2, workers=0)
    assert torch.equal((255 * x[0]).round().byte().permute(1, 2, 0), torch.from_numpy(np.array(whole)))


@settings(max_examples=30)
@given(st.integers(0, 65535), st.integers(0, 255))
def test_sixteen_bits_and_transparency_by_hand(value, alpha):
    with np.errstate(all="raise"):
        deep = stream._seen(Image.fromarray(np.array([[value]], np.uint16)))
    assert abs(int(np.asarray(deep)[0, 0, 0]) - value / 257) <= 0.5
    over = stream._seen(Image.fromarray(np.array([[[value % 256] * 3 + [alpha]]], np.uint8)))
    assert abs(int(np.asarray(over)[0, 0, 0]) - (value % 256 * alpha / 255 + 255 - alpha)) <= 1


def png(size=(8, 8)):
    return lambda path: Image.new("RGB", size).save(path, format="png")


def array(values):
    return lambda path: Image.fromarray(values).save(path)


def text(content):
    return lambda path: path.write_bytes(content)


def truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-60])


REFUSED = {  # file beside good ones in train/cat -> (what it holds, what the error says)
    "a.txt": (text(b"labels"), r"train has 1 files that would be passed over, such as .*cat/a.txt"),
    "a.csv": (text(b"1,2"), "passed over, such as .*cat/a.csv"),
    "a": (png(), "passed over, such as .*cat/a: images lie in the class folders"),
    "a.heic": (text(b"no"), "passed over, such as .*cat/a.heic.* and end in .bmp, .gif,.* convert"),
    "a.svg": (text(b"<svg/>"), "passed over, such as .*cat/a.svg"),
    "a.npy": (text(b"no"), "passed over, such as .*cat/a.npy"),
    "a.zip": (text(b"no"), "passed over, such as .*cat/a.zip"),
    "a.png.part": (text(b"no"), "passed over, such as .*cat/a.png.part"),
    "deeper/a.png": (png(), "passed over, such as .*cat/deeper/a.png: images lie in the class folders .*, not deeper"),
    "deeper/still/a.png": (png(), "passed over, such as .*deeper/still/a.png"),
    "../a.png": (png(), "passed over, such as .*train/a.png.*sorted into theirs"),
    "../labels.csv": (text(b"1"), "passed over, such as .*train/labels.csv"),
    "empty.png": (text(b""), "cat/empty.png is damaged or no image"),
    "text.png": (text(b"GIF"), "cat/text.png is damaged or no image"),
    "html.jpg": (text(b"<html>404</html>"), "cat/html.jpg is damaged or no image"),
    "half.png": (truncated, "cat/half.png is damaged or no image .*: replace or remove it"),
    "half.tif": (truncated, "cat/half.tif is damaged or no image"),
    "half.bmp": (truncated, "cat/half.bmp is damaged or no image"),
    "float.tif": (array(np.ones((8, 8), np.float32)), "float.tif is damaged or no image .its 32-bit numbers have no"),
    "int.tif": (array(np.ones((8, 8), np.int32)), "int.tif is damaged or no image .its 32-bit numbers have no range"),
    "wide.png": (png((9, 8)), "cat/wide.png is 9x8 pixels, 0.png is 8x8: all images must have one size"),
    "folder.png/": (lambda path: path.mkdir(), ""),  # nothing in it
    ".hidden.png": (text(b"no"), ""), "Thumbs.db": (text(b"no"), ""), "desktop.ini": (text(b"no"), ""),
    ".ipynb_checkpoints/a.png": (png(), ""), ".DS_Store": (text(b"no"), ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_not_read_is_named_and_hidden_ones_do_not_matter(name, tree, tmp_path):
    write, words = REFUSED[name]
    path = tree / "train/cat" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    with pytest.raises(ValueError, match=words) if words else contextlib.nullcontext():
        assert len(data.load(f"folder:{tree}", tmp_path / "cache").train) == 12
    if "pixels" not in words:  # on disk they may have any size
        with pytest.raises(ValueError, match=words) if words else contextlib.nullcontext():
            stream.check(stream.listed(tree / "train", ["cat", "dog"]), workers=0)


def test_files_that_would_be_passed_over_are_counted(tree, tmp_path):
    for path in (tree / "train/dog").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(ValueError, match=r"train has 6 files that would be passed over, such as .*dog/0.heic"):
        data.load(f"folder:{tree}", tmp_path / "cache")


def test_another_size_in_test_than_in_train(tree, tmp_path):
    for path in (tree / "test").rglob("*.png"):
        Image.new("RGB", (9, 8)).save(path)
    with pytest.raises(ValueError, match="test images are 9x8 pixels, training images 8x8: all images must have one s"):
        data.load(f"folder:{tree}", tmp_path / "cache")


@pytest.mark.parametrize("load", [lambda tree: data.load(f"folder:{tree}", tree / "cache"),
                                  lambda tree: stream.check(stream.listed(tree / "train", ["cat", "dog"]), 0)])
def test_an_image_too_large_to_decode_is_named(load, tree, monkeypatch):
    Image.new("RGB", (400, 400)).save(tree / "train/cat/3.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60000)  # of others only their resized form counts
    with pytest.raises(ValueError, match="cat/3.png is too large to be decoded .*: make it smaller, or remove it"):
        load(tree)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100000)  # Pillow only warns: it is read
    stream.decoded(tree / "train/cat/3.png")
