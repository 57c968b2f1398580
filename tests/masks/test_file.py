import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from seamlib import masks, models
from seamlib.records import runtime
from seamlib.search import Pick


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
