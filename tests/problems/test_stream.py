import random

import numpy as np
import pytest
import torch
from PIL import Image

from seamlib.problems import data, stream, tasks

SHARKS = ("n01484850", "n01491361", "n01494475", "n02536864")  # superclass 1


@pytest.fixture
def root(tmp_path):
    """A folder with imagenet/train and imagenet/val: four classes of JPEG files of several sizes."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 5), ("val", 2)):
        for wnid in SHARKS:
            folder = tmp_path / "imagenet" / part / wnid
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (20 + 7 * i, 40 - 5 * i, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((300 + 20 * i, 260 - 3 * i)).save(folder / f"{wnid}_{i}.JPEG")
    return tmp_path


def test_class_numbers_are_those_of_sorted_wordnet_ids(root):
    source = data.load("imagenet", root)
    assert len(source.classes) == 1000
    assert source.classes == tuple(sorted(source.classes))
    assert sorted(set(source.train.labels.tolist())) == [source.classes.index(w) for w in SHARKS]
    assert (source.classes[0], source.classes[999]) == ("n01440764", "n15075141")  # tench, toilet tissue


def test_the_papers_own_folder_name_will_do(root):
    before = data.load("imagenet", root)
    (root / "imagenet").rename(root / "ILSVRC2012")
    assert data.load("imagenet", root).digest == before.digest


def test_a_superclass_has_its_labels_halves_and_shots(root):
    task = tasks.problem(data.load("imagenet", root), target_superclass_idx=1, shots=3)
    assert torch.bincount(task.train.labels).tolist() == [3] * 4
    assert [torch.bincount(task.halves[h].labels).tolist() for h in "ab"] == [[1] * 4] * 2
    for path, label in zip(task.train.paths, task.train.labels.tolist(), strict=True):
        assert SHARKS[label] in path


def test_a_selection_keeps_its_labels_or_takes_others(root):
    files = data.load("imagenet", root).train
    some = files.select(torch.tensor([7, 2]))
    assert some.paths.tolist() == [files.paths[7], files.paths[2]]
    assert some.labels.tolist() == files.labels[[7, 2]].tolist()
    masked = files.select(files.labels.numpy() == files.labels[0].item(), np.arange(5))
    assert masked.paths.tolist() == files.paths[:5].tolist()
    assert masked.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(masked) == 5


def test_a_balanced_pass_has_as_many_of_each_label_as_of_the_rarest(root):
    source = data.load("imagenet", root)
    task = tasks.binary(source, source.classes.index(SHARKS[0]), others="anew")
    batches = data.batches(task.train, 4, seed=0, balanced=True)
    passed = torch.cat([y for _, y in batches])
    assert torch.bincount(task.train.labels).tolist() == [15, 5]
    assert torch.bincount(passed).tolist() == [5, 5]
    assert len(batches) == 3
    passes = [torch.cat([y for _, y in stream.Streamed(task.train, 4, seed=seed, balanced=True, workers=0)])
              for seed in range(20)]
    assert 3 < np.mean([place.item() for y in passes for place in y.nonzero()]) < 6  # of 0 to 9: labels are mixed


def test_a_pass_that_repeats_visits_each_file_so_often_in_crops_of_its_own(root):
    few = data.load("imagenet", root).train.select([0, 7])
    batches = stream.Streamed(few, 3, seed=0, workers=0, repeats=4)
    passed = list(batches)
    images, labels = torch.cat([x for x, _ in passed]), torch.cat([y for _, y in passed])
    assert len(passed) == len(batches) == 3
    assert sorted(labels.tolist()) == sorted(few.labels.tolist() * 4)
    assert len(images.flatten(1).unique(dim=0)) == 8
    passed = torch.cat([y for _, y in stream.Streamed(few, 3, seed=0, workers=0, balanced=True, repeats=4)])
    assert sorted(passed.tolist()) == sorted(few.labels.tolist() * 4)


def test_the_callers_generators_are_left_alone(root, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded the CUDA devices"))
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    list(stream.Streamed(data.load("imagenet", root).train, 8, seed=5, flip=True, workers=0))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on a machine with one core
def test_batches_follow_from_the_seed_and_not_from_the_workers(root):
    files = data.load("imagenet", root).train
    state = torch.get_rng_state()
    passes = {workers: [list(b) for b in [stream.Streamed(files, 8, seed=5, flip=True, workers=workers)] for _ in "12"]
              for workers in (0, 2)}
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(passes[0], passes[2], strict=True):
        assert all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(ours, theirs, strict=True))
    first, second = passes[0]
    assert not torch.equal(first[0][0], second[0][0])
    for batches in passes[0]:
        assert [len(y) for _, y in batches] == [8, 8, 4]
        assert sorted(y.item() for _, ys in batches for y in ys) == sorted(files.labels.tolist())
        assert all(x.shape[1:] == (3, 224, 224) and x.min() >= 0 and x.max() <= 1 for x, _ in batches)
    other = next(iter(stream.Streamed(files, 8, seed=6, flip=True, workers=0)))
    assert not torch.equal(other[0], first[0][0])


def test_test_images_are_the_centre_of_the_resized_file(root):
    files = data.load("imagenet", root).test
    x, y = next(iter(data.batches(files, 2)))
    assert y.tolist() == files.labels[:2].tolist()
    with Image.open(str(files.paths[1])) as image:
        width, height = image.size
        scale = 256 / min(width, height)
        size = (int(width * scale), int(height * scale))
        left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
        expected = np.asarray(image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224)))
    assert torch.equal((255 * x[1]).round().byte().permute(1, 2, 0), torch.from_numpy(expected.copy()))


def test_files_come_at_the_size_of_their_split_and_another_is_refused(root):
    split = data.load("imagenet", root).test
    (x, _), *_ = data.batches(split, 2, size=split.size)
    assert x.shape[-1] == split.size
    with pytest.raises(ValueError, match=rf"size is 96: these images come from disk at {split.size} pixels a side; "
                                         "load the data set with size=96"):
        data.batches(split, 2, size=96)


def test_the_digest_changes_with_a_files_size_and_name(root):
    before = data.load("imagenet", root).digest
    assert data.load("imagenet", root).digest == before
    path = root / "imagenet/val" / SHARKS[0] / f"{SHARKS[0]}_0.JPEG"
    path.rename(path.with_name("other.JPEG"))
    renamed = data.load("imagenet", root).digest
    path.with_name("other.JPEG").write_bytes(b"12")
    assert len({before, renamed, data.load("imagenet", root).digest}) == 3


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"no image", None])
def test_a_damaged_file_is_named_before_the_search(root, workers, content):
    files = data.load("imagenet", root).train
    path = root / "imagenet/train" / SHARKS[2] / f"{SHARKS[2]}_3.JPEG"
    path.write_bytes(path.read_bytes()[:600] if content is None else content)
    with pytest.raises(ValueError, match=rf"^{path} is damaged or no image \(.*\): replace or remove it$"):
        stream.check(files, workers)


def test_missing_classes_and_folders(root, tmp_path):
    (root / "imagenet/val" / SHARKS[1]).rename(tmp_path / "gone")
    source = data.load("imagenet", root)
    with pytest.raises(ValueError, match="imagenet: class n01491361 has no test image in .*/val: add its folder"):
        tasks.problem(source, target_superclass_idx=1)
    with pytest.raises(ValueError, match="imagenet: class n01440764 has no training image in .*/train: add"):
        tasks.problem(source, target_superclass_idx=0)
    with pytest.raises(ValueError, match="class n01491361 has no test image in .*imagenet/val"):
        tasks.problem(source, target_class=source.classes.index("n01491361"))
    assert tasks.problem(source, classes="n01484850,n01494475").n_classes == 2
    (root / "imagenet/val/sharks").mkdir()
    with pytest.raises(ValueError, match="has a folder 'sharks' that is no class of this data set: remove it"):
        data.load("imagenet", root)
    with pytest.raises(FileNotFoundError, match="no folder .*train: expected .*<WordNet id>.* thunderInfy/imagenette"):
        data.load("imagenet", tmp_path / "empty")


def test_validation_images_in_one_folder_are_refused(root):
    for path in (root / "imagenet/val").glob("*/*"):
        path.rename(root / "imagenet/val" / path.name)
    with pytest.raises(ValueError, match="/val has 8 files that would be passed over, such as .*/val/n01484850_0.JPEG: "
                                         "images lie in the class folders .*have to be sorted into theirs"):
        data.load("imagenet", root)


def test_resnet50_takes_a_batch_and_its_masks(root):
    from seamlib import masks, models

    model = models.build("resnet50-imagenet")
    files = data.load("imagenet", root).test
    x, _ = next(iter(data.batches(files, 1)))
    with torch.no_grad():
        assert model(x).shape == (1, 1000)
        mean, std = models.IMAGENET
        by_hand = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        handles = model._forward_pre_hooks.copy()
        model._forward_pre_hooks.clear()
        plain = model(by_hand)
        model._forward_pre_hooks.update(handles)
        torch.testing.assert_close(model(x), plain)
        torch.testing.assert_close(masks.masked_call(model, masks.new_scores(model), x), plain)
    assert not any("normalise" in name for name in model.state_dict())
