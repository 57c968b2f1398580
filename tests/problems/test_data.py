import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from seamlib.problems import data


def test_mnist5k_is_the_embedded_default(tmp_path):
    source = data.load("mnist5k", tmp_path)
    assert source.train.images.shape == (3500, 1, 28, 28)
    assert torch.bincount(source.train.labels).tolist() == [350] * 10
    assert torch.bincount(source.test.labels).tolist() == [150] * 10
    assert not source.flip
    together = {image.numpy().tobytes() for image in source.train.images}
    assert sum(image.numpy().tobytes() in together for image in source.test.images) == 0


def test_canonical_order_does_not_depend_on_the_files(tree, tmp_path):
    first = data.load(f"folder:{tree}", tmp_path / "cache")
    copy = tmp_path / "renamed"
    shutil.copytree(tree, copy)
    for i, path in enumerate(sorted(copy.glob("train/cat/*.png"), reverse=True)):
        path.rename(path.with_name(f"other{i}.png"))
    second = data.load(f"folder:{copy}", tmp_path / "cache")
    assert first.digest == second.digest
    assert torch.equal(first.train.images, second.train.images)
    assert first.classes == ("cat", "dog")


def test_decoded_images_are_cached_until_a_file_changes(tree, tmp_path, monkeypatch):
    before = data.load(f"folder:{tree}", tmp_path / "cache")
    with monkeypatch.context() as m:
        m.setattr(data, "_pixels", lambda path: pytest.fail("decoded again"))
        assert data.load(f"folder:{tree}", tmp_path / "cache").digest == before.digest
    Image.new("RGB", (8, 8), "red").save(tree / "train/cat/0.png")
    assert data.load(f"folder:{tree}", tmp_path / "cache").digest != before.digest


def test_where_no_cache_can_be_written_images_are_decoded_each_time(tree, tmp_path):
    (tmp_path / "file").touch()  # nothing can be written below it
    found = data.load(f"folder:{tree}", tmp_path / "file")
    assert found.digest == data.load(f"folder:{tree}", tmp_path / "cache").digest


def test_a_folder_is_relative_to_the_base_that_is_given(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    found = data.load("folder:images", tmp_path / "cache", base=tmp_path)
    assert found.digest == data.load(f"folder:{tree}", tmp_path / "cache").digest
    assert data.class_names("folder:images", tmp_path) == ("cat", "dog")


def test_a_damaged_cache_is_made_again(tree, tmp_path):
    before = data.load(f"folder:{tree}", tmp_path / "cache")
    for path in (tmp_path / "cache").rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert data.load(f"folder:{tree}", tmp_path / "cache").digest == before.digest


def test_a_damaged_image_is_named(tree, tmp_path):
    path = tree / "train/dog/3.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="dog/3.png is damaged or no image .* replace or remove it"):
        data.load(f"folder:{tree}", tmp_path / "cache")


def test_another_size_is_named(tree, tmp_path):
    Image.new("RGB", (9, 8)).save(tree / "train/dog/3.png")
    with pytest.raises(ValueError, match="dog/3.png is 9x8 pixels, 0.png is 8x8: all images must have one size"):
        data.load(f"folder:{tree}", tmp_path / "cache")


def test_a_class_without_test_image_is_named(tree, tmp_path):
    for path in (tree / "test/dog").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="test/dog is missing or has no image"):
        data.load(f"folder:{tree}", tmp_path / "cache")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere/train: expected one folder a class"):
        data.load(f"folder:{tmp_path}/nowhere", tmp_path)


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="has 0 class folders: at least 2"):
        data.load(f"folder:{tmp_path}", tmp_path)


def test_an_unknown_data_set_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'cifar11': allowed are mnist5k, .*, cifar10, cifar100, ima"):
        data.load("cifar11", tmp_path)


def fake_cifar10(root, per_class):
    rng = np.random.default_rng(0)
    for part, n in per_class.items():
        for name in data.CIFAR10_CLASSES:
            folder = root / "cifar10" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def test_an_incomplete_cifar10_names_class_and_count(tmp_path):
    fake_cifar10(tmp_path, {"train": 2, "test": 1})
    with pytest.raises(ValueError, match="incomplete: class 'airplane' has 2 train images, the official set 5000"):
        data.load("cifar10", tmp_path)


def test_cifar_that_cannot_be_had_says_where_to_put_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="no cifar10 in .*: put class folders at .*cifar10/train/<class>"):
        data.load("cifar10", tmp_path, download=False)


def test_torchvisions_layout_gives_the_official_numbers_in_canonical_order(tmp_path, monkeypatch):
    class Official:
        base_folder = "cifar-10-batches-py"
        classes = data.CIFAR10_CLASSES

        def __init__(self, root, train, download):
            n = 50000 if train else 10000
            self.data = np.zeros((n, 32, 32, 3), np.uint8)
            self.data[:, 0, 1, 2] = np.arange(n) % 251
            self.targets = (np.arange(n) % 10).tolist()
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Official)
    source = data.load("cifar10", tmp_path)
    assert source.classes == data.CIFAR10_CLASSES
    assert source.train.images.shape == (50000, 3, 32, 32)
    assert torch.equal(source.test.labels, torch.arange(10).repeat_interleave(1000))
    assert int(source.test.images[:, 2, 0, 1].max()) == 250  # height 0, width 1, channel 2
    assert source.flip


def split(n=10, size=6):
    images = torch.arange(1, n + 1, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, size, size).contiguous()
    return data.Split(images, torch.arange(n))


def test_batches_without_a_seed_are_in_order_and_untouched():
    found = list(data.batches(split(), 4))
    assert [len(y) for _, y in found] == [4, 4, 2]
    assert torch.cat([y for _, y in found]).tolist() == list(range(10))
    torch.testing.assert_close(torch.cat([x for x, _ in found]), split().images.float() / 255)


@given(st.integers(1, 13), st.integers(0, 1000), st.booleans())
@settings(max_examples=30)
def test_each_augmented_pass_visits_every_sample_once(batch_size, seed, flip):
    batches = data.batches(split(), batch_size, seed=seed, flip=flip)
    for _ in range(2):
        pairs = list(batches)
        labels = torch.cat([y for _, y in pairs])
        assert sorted(labels.tolist()) == list(range(10))
        for x, y in pairs:
            assert x.shape[1:] == (3, 6, 6)
            values = (x * 255).round()
            assert ((values == 0) | (values == (y + 1).view(-1, 1, 1, 1))).all()  # its own pixels, or black padding


def test_a_crop_is_a_window_of_the_padded_image_and_a_flip_mirrors_it():
    image = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6) + 1
    padded = torch.nn.functional.pad(image[0, 0], (4, 4, 4, 4))
    windows = {padded[r:r + 6, c:c + 6].numpy().tobytes() for r in range(9) for c in range(9)}
    mirrored = {padded[r:r + 6, c:c + 6].flip(1).numpy().tobytes() for r in range(9) for c in range(9)}
    batches = data.batches(data.Split(image, torch.zeros(1, dtype=torch.long)), 1, seed=0, flip=True)
    seen = {(x[0, 0] * 255).round().to(torch.uint8).numpy().tobytes() for _ in range(400) for x, _ in batches}
    assert seen <= windows | mirrored
    assert len(seen & windows) > 50
    assert len(seen & mirrored) > 50


def test_passes_differ_and_follow_from_the_seed():
    def passes(seed):
        batches = data.batches(split(), 4, seed=seed)
        return [torch.cat([y for _, y in batches]).tolist() for _ in range(2)]
    assert passes(1) == passes(1)
    assert passes(1)[0] != passes(1)[1]
    assert passes(1) != passes(2)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=30)
def test_a_balanced_pass_has_as_many_of_each_label_as_of_the_rarest(counts, batch_size, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 9, 9).contiguous()
    batches = data.Batches(data.Split(images, labels), batch_size, seed=seed, balanced=True)
    for _ in range(2):
        passed = list(batches)
        assert len(passed) == len(batches)
        assert torch.bincount(torch.cat([y for _, y in passed])).tolist() == [min(counts)] * len(counts)


def test_a_balanced_pass_draws_anew_which_of_the_others_it_visits():
    labels = torch.tensor([0] * 40 + [1] * 4)
    images = torch.arange(44, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    batches = data.Batches(data.Split(images, labels), 8, seed=0, balanced=True)
    first, second = (torch.cat([y * 0 + (255 * x).amax((1, 2, 3)).round().long() for x, y in batches]).sort().values
                     for _ in range(2))
    assert not torch.equal(first, second)


def test_the_labels_of_a_balanced_pass_are_mixed():
    labels = torch.tensor([0] * 960 + [1] * 40)
    images = torch.zeros(1000, 1, 2, 2, dtype=torch.uint8)
    for _, y in data.Batches(data.Split(images, labels), 40, seed=0, balanced=True):
        assert 10 < y.sum() < 30


def test_batch_size_zero_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0: it must be at least 1"):
        data.batches(split(), 0)


def test_a_spread_has_as_many_of_each_class():
    split = data.Split(torch.arange(12).reshape(12, 1, 1, 1), torch.tensor([0] * 2 + [1] * 6 + [2] * 4))
    assert data.spread(split, 7).images.flatten().tolist() == [0, 1, 2, 3, 4, 8, 9]
    assert len(data.spread(split, 12)) == 12
    assert len(data.spread(split, 0)) == 0
    with pytest.raises(ValueError, match="13 samples are wanted: there are 0 to 12"):
        data.spread(split, 13)


def test_class_names_are_known_without_loading():
    assert data.class_names("digits5to9") == tuple("56789")
    assert data.class_names("cifar10")[3] == "cat"
    assert (len(data.class_names("cifar100")), len(data.class_names("imagenet"))) == (100, 1000)


def test_large_images_come_in_small_batches_where_they_are_measured_and_the_first_ones_all_together():
    large, small = (data.Split(torch.zeros(40, 3, side, side, dtype=torch.uint8), torch.arange(40)) for side in (64, 8))
    assert [len(y) for _, y in data.batches(small, 40)] == [40]
    assert [len(y) for _, y in data.batches(small, 40, size=256)] == [16, 16, 8]
    assert [len(y) for _, y in data.batches(large, 40, seed=0)] == [40]  # a step has the size that was asked for
    assert data.first(large, 33).shape == (33, 3, 64, 64)
    with pytest.raises(ValueError, match="41 images are wanted at once: there are 1 to 40"):
        data.first(large, 41)


@pytest.mark.parametrize("balanced", [False, True])
def test_a_pass_that_repeats_visits_each_image_so_often_in_crops_of_its_own(balanced):
    labels = torch.tensor([0] * 6 + [1] * 2)
    images = torch.rand(8, 1, 9, 9, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    batches = data.batches(data.Split(images, labels), 7, seed=0, balanced=balanced, repeats=5)
    passed = list(batches)
    assert len(passed) == len(batches) == (3 if balanced else 6)  # batches of 20 or 40 images
    assert torch.bincount(torch.cat([y for _, y in passed])).tolist() == ([10, 10] if balanced else [30, 10])
    of_class = torch.cat([x[y == 1] for x, y in passed]).flatten(1)
    assert len(of_class.unique(dim=0)) > 2  # images


def test_no_repeat_is_refused():
    with pytest.raises(ValueError, match="repeats is 0: it must be 1 or more"):
        data.batches(split(), 8, repeats=0)
