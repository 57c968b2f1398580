import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from seamlib import masks, models
from seamlib.records import runtime
from seamlib.search import Pick, Reengineered, Search, reengineer


@given(st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_mask_files_give_back_every_bit(tmp_path_factory, n, seed):
    rng = np.random.default_rng(seed)
    model = nn.Linear(n, 3)
    path = tmp_path_factory.mktemp("masks") / "m.safetensors"
    kept = {name: torch.from_numpy(rng.random(p.shape) < 0.5) for name, p in model.named_parameters()}
    other = {name: ~m for name, m in kept.items()}
    head = nn.Linear(3, 2).state_dict()
    digest = masks.save_masks(path, {"a": Pick(0, kept, head), "paper": Pick(1, other, head)}, source="s",
                              weights=runtime.digest(model.state_dict()))
    found = masks.load_masks(path, model)
    assert found.digest == digest
    for pick, want in (("a", kept), ("paper", other)):
        assert all(torch.equal(found.masks[pick][name], want[name]) for name in want)
        assert all(torch.equal(found.heads[pick][k], v) for k, v in head.items())
    assert 0 <= masks.kept_fraction(kept) <= 1
    assert masks.kept_fraction(kept) + masks.kept_fraction(other) == pytest.approx(1)


@pytest.fixture
def saved(tiny, tmp_path):
    path = tmp_path / "masks.safetensors"
    pick = Pick(3, masks.binarize(masks.new_scores(tiny)), models.new_head(3, 2).state_dict())
    weights = runtime.digest(tiny.state_dict())
    masks.save_masks(path, {"a": pick, "b": pick, "paper": pick}, source="tiny", weights=weights)
    return path


def test_equal_picks_are_stored_once_and_a_weight_takes_a_bit(tmp_path):
    model = models.build("resnet20-cifar10")
    pick = Pick(0, masks.binarize(masks.new_scores(model)), models.new_head(10, 2).state_dict())
    masks.save_masks(tmp_path / "m", {"a": pick, "b": pick, "paper": pick}, source="s", weights="")
    assert (tmp_path / "m").stat().st_size < 38_000  # 270,906 bits, a head, and names


def test_mask_file_for_other_weights(saved, tiny):
    with torch.no_grad():
        tiny[0].bias[0] += 1
    with pytest.raises(ValueError, match="was made for tiny with weights .* load the weights that the mask belongs to"):
        masks.load_masks(saved, tiny)


def test_mask_file_for_another_architecture(saved):
    with pytest.raises(ValueError, match="belong to another architecture"):
        masks.load_masks(saved, nn.Sequential(nn.Conv2d(1, 5, 3)))


def test_truncated_mask_file(saved):
    saved.write_bytes(saved.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is not a whole mask file"):
        masks.load_masks(saved)


def test_edited_mask_file(saved):
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="was edited"):
        masks.load_masks(saved)


def test_a_mask_file_whose_metadata_was_edited(saved, tmp_path):
    with safetensors.safe_open(saved, "pt") as f:
        meta, tensors = json.loads(f.metadata()["seamlib"]), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    meta["weights"] = "0" * 64
    safetensors.torch.save_file(tensors, saved, {"seamlib": json.dumps(meta)})
    with pytest.raises(ValueError, match="was edited"):
        masks.load_masks(saved)


def test_missing_mask_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no mask file at"):
        masks.load_masks(tmp_path / "none")


SEARCH = Search(lr_mask=0.3, lr_head=0.05, alpha=0.1, epochs=1, head_only_every=0)


@pytest.mark.parametrize("first", [nn.Dropout(0.2), nn.Tanh(), nn.LayerNorm(3, elementwise_affine=False)], ids=repr)
def test_a_head_of_ones_own_is_not_taken_for_one_of_the_librarys(tiny, problem, tmp_path, first):
    """Its weights have the names of ReLU and Linear."""
    head = nn.Sequential(first, nn.Linear(3, 2))
    found = reengineer(tiny, head, *problem, SEARCH)
    found.save(tmp_path / "m")
    with pytest.raises(ValueError, match="neither ReLU and Linear nor the restricted original's: give a module"):
        Reengineered.load(tmp_path / "m", tiny)
    x = problem[1][0][0]
    assert torch.equal(Reengineered.load(tmp_path / "m", tiny, head).module()(x), found.module()(x))


def test_buffers_that_no_state_dict_has_belong_to_the_model(problem, tmp_path):
    def model(mean):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
        net[0].register_buffer("mean", torch.tensor(mean), persistent=False)
        return net
    reengineer(model([0.5, 0.2]), models.new_head(3, 2), *problem, SEARCH).save(tmp_path / "m")
    assert Reengineered.load(tmp_path / "m", model([0.5, 0.2000001])).module()  # the same on another machine
    assert Reengineered.load(tmp_path / "m", model([])).module()  # to be filled by a first call, perhaps
    with pytest.raises(ValueError, match="with another buffer 0.mean, which its state_dict leaves out"):
        Reengineered.load(tmp_path / "m", model([0.5, 0.4]))


def test_names_of_labels_may_come_one_by_one(tiny, problem, tmp_path):
    found = reengineer(tiny, models.new_head(3, 2), *problem, SEARCH)
    found.save(tmp_path / "m", classes=(name for name in "ab"))
    assert masks.load_masks(tmp_path / "m").classes == ("a", "b")


@pytest.mark.parametrize("classes", ["cats", [1, 2]])
def test_names_of_labels_are_a_list_of_texts(tiny, problem, tmp_path, classes):
    with pytest.raises(ValueError, match="give a list of names, one for each label"):
        reengineer(tiny, models.new_head(3, 2), *problem, SEARCH).save(tmp_path / "m", classes=classes)
