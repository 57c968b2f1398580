import copy
import json

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from seamlib import masks, models, runtime
from seamlib.search import Pick


def test_masked_call_and_gradient_by_hand():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -3.0]]))
    scores = {"weight": torch.tensor([[0.5, 0.0]], requires_grad=True)}  # a score of exactly 0 is dropped
    out = masks.masked_call(model, scores, torch.tensor([[0.25, 10.0]]))
    assert out.item() == 0.5  # 2 * 0.25; the second weight is out
    out.backward()
    # gradient of the output for the masked weight is x = (0.25, 10); times w = (0.5, -30); clipped to [-1, 1]
    assert scores["weight"].grad.tolist() == [[0.5, -1.0]]


def test_masks_cover_all_but_normalisation():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2),
                          nn.LayerNorm(2))
    assert masks.maskable(model) == ["0.weight", "0.bias", "4.weight", "4.bias"]


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no parameter called 'nope' in Linear"):
        masks.new_scores(nn.Linear(2, 2), ["nope"])


@pytest.mark.parametrize("build", [
    lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
    lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5),
    lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(6 * 900, 5)),
])
def test_masked_call_equals_burnt_in_masks_and_leaves_the_model_alone(build):
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    scores = {n: torch.randn_like(s).requires_grad_() for n, s in masks.new_scores(model).items()}
    x = torch.rand(2, 3, 32, 32)
    out = masks.masked_call(model, scores, x)
    F.cross_entropy(out, torch.tensor([0, 1])).backward()
    assert all(s.grad is not None for s in scores.values())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    burnt = masks.apply_masks(copy.deepcopy(model), masks.binarize(scores))
    torch.testing.assert_close(burnt(x), out, rtol=0, atol=1e-6)
    assert burnt.state_dict().keys() == before.keys()


class Tied(nn.Module):
    """An embedding whose weight is also the output layer's."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x).mean(1))


def test_tied_weights_have_one_mask_that_acts_on_both_uses():
    model = Tied()
    scores = masks.new_scores(model)
    assert list(scores) == ["embed.weight"]
    x = torch.tensor([[1, 2], [3, 4]])
    with torch.no_grad():
        scores["embed.weight"][1] = -1.0
    masked = masks.masked_call(model, scores, x)
    assert masked[:, 1].tolist() == [0, 0]  # the output row is out as well
    assert torch.equal(masked, masks.apply_masks(model, masks.binarize(scores))(x))
    assert model.out.weight is model.embed.weight


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


def test_the_largest_are_kept_as_many_in_each_layer(tiny):
    drawn = {"0.weight": torch.rand(4, 1, 3, 3) > 0.7, "5.bias": torch.tensor([True, False, False])}
    found = masks.largest(tiny, drawn)
    for name, kept in found.items():
        weight = tiny.get_parameter(name).detach().abs()
        assert kept.shape == weight.shape
        assert kept.sum() == drawn[name].sum()
        assert weight[kept].min() >= weight[~kept].max()
    with pytest.raises(ValueError, match="the masks cover 'nothing', which this model does not have"):
        masks.largest(tiny, {"nothing": torch.ones(2, dtype=torch.bool)})


def test_a_module_with_two_names_is_left_as_it_was():
    base = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    model = nn.ModuleDict({"base": base, "features": nn.Sequential(*base.children())})
    model.forward = lambda x: model["features"](x)
    x, weight = torch.rand(2, 1, 3, 3), base[0].weight
    before = (weight.clone(), model(x))
    dropped = {"base.0.weight": -torch.ones(2, 1, 1, 1)}
    assert masks.masked_call(model, dropped, x).std(0).max() == 0  # the bias alone
    assert base[0].weight is weight
    assert torch.equal(weight, before[0])
    assert torch.equal(model(x), before[1])
