"""Files of re-engineered models: ours, those of SeaM's own code, and those that are neither."""

import json
import os
import pickle
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn

from seamlib import masks, models
from seamlib.masks import file
from seamlib.records import runtime
from seamlib.search import Pick, Reengineered
from seamlib.ship.import_seam import import_seam

X = torch.rand(3, 3, 32, 32)


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    source = models.build("resnet20-cifar10").eval()
    picks = {name: Pick(i, {n: torch.rand_like(source.get_parameter(n)) > 0.9 for n in masks.maskable(source)},
                        models.new_head(10, 2).state_dict()) for i, name in enumerate(("a", "b", "paper"))}
    return Reengineered(source, models.new_head(10, 2), [], picks)


def seam_file(path, found, **more):
    """What SeaM's code writes: scores beside the weights, and its head."""
    content = {f"{name}_mask": torch.where(m, 0.3, -0.2) for name, m in found.masks.items()}
    content |= {f"module_head.1.{name}": t for name, t in found.head[1].state_dict().items()}
    torch.save({**content, **more}, path)
    return path


def complaint(load, path):
    """What `load` says about the file, None if it takes it; anything but a ValueError fails the test."""
    try:
        load(path)
    except ValueError as e:
        return str(e)
    return None


def test_a_model_comes_back_bit_for_bit_from_a_small_file(found, tmp_path):
    path, prepared = tmp_path / "cat.seam", {"size": 32, "range": [0, 1], "names": {"2": "b", "10": "a"}}
    given = {**prepared, "names": {2: "b", 10: "a"}}  # JSON's keys are text
    digest = found.save(path, source="resnet20-cifar10", classes=["other", "cat"], preprocessing=given)
    back = Reengineered.load(path, found.source)
    for pick in found.picks:
        assert torch.equal(back.module(pick)(X), found.module(pick)(X))
    stored = masks.load_masks(path)
    assert (stored.digest, stored.source) == (digest, "resnet20-cifar10")
    assert (stored.classes, stored.preprocessing) == (("other", "cat"), prepared)
    whole = sum(p.numel() * 4 for p in found.source.state_dict().values())
    assert path.stat().st_size < whole / 10  # three picks of random masks, the hardest to pack


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_head_keeps_its_precision_and_needs_no_mask_beside_it(tiny, tmp_path, dtype):
    model, head = tiny.to(dtype), models.new_head(3, 2).to(dtype)
    found = Reengineered(model, head, [], {"paper": Pick(0, {}, head.state_dict())})
    found.save(tmp_path / "f")
    x = torch.rand(2, 1, 6, 6, dtype=dtype)
    assert torch.equal(Reengineered.load(tmp_path / "f", model).module()(x), found.module()(x))


def test_a_head_of_another_kind_is_given_or_asked_for(tiny, tmp_path):
    head = nn.Linear(3, 2, bias=False)
    picks = {"paper": Pick(0, {"0.weight": torch.ones(4, 1, 3, 3, dtype=torch.bool)}, head.state_dict())}
    Reengineered(tiny, head, [], picks).save(tmp_path / "f")
    with pytest.raises(ValueError, match="a head with weight, which is neither ReLU and Linear nor the restricted "
                                         "original's: give a module"):
        Reengineered.load(tmp_path / "f", tiny)
    with pytest.raises(ValueError, match="the head does not fit"):
        Reengineered.load(tmp_path / "f", tiny, nn.Linear(4, 2, bias=False))
    back = Reengineered.load(tmp_path / "f", tiny, nn.Linear(3, 2, bias=False))
    assert torch.equal(back.head.weight, head.weight)


def test_files_of_the_format_before_still_load_and_those_of_a_later_one_say_so(found, tmp_path):
    found.save(tmp_path / "f")
    with safetensors.safe_open(tmp_path / "f", "pt") as f:
        meta, tensors = json.loads(f.metadata()["seamlib"]), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118

    def written(**changed):
        new = {k: v for k, v in {**meta, **changed}.items() if v is not None}
        new["seal"] = file._seal(new)
        safetensors.torch.save_file(tensors, tmp_path / "g", {"seamlib": json.dumps(new)})
        return tmp_path / "g"
    old = masks.load_masks(written(schema="seamlib-masks-2", classes=None, preprocessing=None), found.source)
    assert (old.classes, old.preprocessing) == ((), {})
    assert torch.equal(old.masks["paper"]["conv1.weight"], found.masks["conv1.weight"])
    with pytest.raises(ValueError, match="has mask format 'seamlib-masks-9': this version reads seamlib-masks-2, "):
        masks.load_masks(written(schema="seamlib-masks-9"))


def test_a_folder_that_cannot_be_written_leaves_nothing(found, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        found.save(tmp_path / "file" / "masks")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_of_the_authors_is_the_same_object_as_a_search_of_ours(found, tmp_path):
    back = import_seam(seam_file(tmp_path / "tc_0.pth", found), found.source)
    assert torch.equal(back.module()(X), found.module()(X))
    assert back.masks.keys() == found.masks.keys()
    back.save(tmp_path / "ours")
    assert torch.equal(Reengineered.load(tmp_path / "ours", found.source).module()(X), found.module()(X))


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize(("more", "text"), [
    ({"conv9.weight_mask": torch.ones(2)}, "'conv9.weight_mask', which is neither a mask of a parameter of ResNet"),
    ({"conv1.weight": torch.ones(2)}, "neither a mask"),
    ({"conv1.weight_mask": torch.ones(2)}, "'conv1.weight' has shape (2,), the model's weight (16, 3, 3, 3)"),
    ({"fc.bias_mask": [1.0, 2.0]}, "holds 'fc.bias_mask', a list: all of it must be tensors by name"),
    ({"module_head.1.weight": torch.ones(3)}, "weight and bias of one linear layer, are needed"),
    ({"module_head.1.bias": torch.ones(3)}, "weight and bias of one linear layer, are needed"),
    ({3: torch.ones(2)}, "holds 3, a Tensor"),
    ({"module_head.3.weight": torch.ones(2, 2), "module_head.3.bias": torch.ones(2)}, "of one linear layer"),
])
def test_imports_that_do_not_fit(found, tmp_path, more, text):
    with pytest.raises(ValueError) as caught:
        import_seam(seam_file(tmp_path / "f", found, **{k: v for k, v in more.items() if isinstance(k, str)})
                    if 3 not in more else _saved(tmp_path / "f", more), found.source)
    assert text in str(caught.value)


def _saved(path, content):
    torch.save(content, path)
    return path


def test_nothing_but_tensors_is_unpickled(found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ({"x": Harmful()}, Harmful()):
        with pytest.raises(ValueError, match="is not a whole file of tensors"):
            import_seam(_saved(tmp_path / "f", content), found.source)
    (tmp_path / "g").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match="is not a whole file of tensors"):
        import_seam(tmp_path / "g", found.source)
    assert not (tmp_path / "was-run").exists()
    for content in ([torch.ones(2)], torch.ones(2), {}):
        with pytest.raises(ValueError, match="must be a dict of tensors"):
            import_seam(_saved(tmp_path / "f", content), found.source)
    with pytest.raises(FileNotFoundError, match="no file at"):
        import_seam(tmp_path / "nothing", found.source)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=4)), max_size=5), st.integers(0, 10**6))
def test_no_damage_makes_a_loader_do_anything_but_say_so(tiny, tmp_path, edits, cut):
    picks = {"paper": Pick(0, {"0.weight": torch.arange(36).reshape(4, 1, 3, 3) % 2 == 0},
                           models.new_head(3, 2).state_dict())}
    whole = Reengineered(tiny, models.new_head(3, 2), [], picks)
    for save, load in ((whole.save, lambda p: Reengineered.load(p, tiny)),
                       (lambda p: seam_file(p, whole), lambda p: import_seam(p, tiny))):
        path = tmp_path / "f"
        save(path)
        content = bytearray(path.read_bytes())
        for place, text in edits:
            content[place % len(content):place % len(content) + len(text)] = text
        path.write_bytes(content[:cut % (2 * len(content)) or None])
        said = complaint(load, path)
        if said is None:  # what it takes is what was written
            got = load(path)
            assert torch.equal(got.masks["0.weight"], whole.masks["0.weight"])
            assert torch.equal(got.head[1].weight, whole.head[1].weight)
        else:
            assert str(path) in said


JSON = st.recursive(st.none() | st.integers(-9, 10**12) | st.floats(allow_nan=False) | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["source", "weights", "shapes", "picks", "digest", "classes", "preprocessing"]),
                       JSON, max_size=3))
def test_well_sealed_nonsense_is_refused_or_harmless(tmp_path, changed):
    bits = torch.frombuffer(bytearray(zlib.compress(np.packbits(np.ones(8, bool)).tobytes())), dtype=torch.uint8)
    plain = {"paper/masks": torch.tensor([255], dtype=torch.uint8)}
    meta = {"schema": file.SCHEMA, "source": "s", "weights": "w", "shapes": {"a": [8]}, "picks": {"paper": "paper"},
            "digest": runtime.digest(plain), "classes": [], "preprocessing": {}, **changed}
    meta["seal"] = file._seal(meta)
    safetensors.torch.save_file({"paper/masks": bits}, tmp_path / "f", {"seamlib": json.dumps(meta)})
    path = tmp_path / "f"
    said = complaint(masks.load_masks, path)
    assert said is None or str(path) in said
