from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from seamlib.problems import data
from seamlib.problems.memory import Split
from seamlib.reuse import backdoor


def test_the_trigger_by_hand():
    grey = torch.full((1, 1, 8, 9), 100, dtype=torch.uint8)
    found = backdoor.stamp(grey, 3)[0, 0]
    want = grey[0, 0].clone()
    want[1:4, 2:5] = torch.tensor([[255, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=torch.uint8)
    assert torch.equal(found, want)  # four pixels from the right and from below
    assert (grey == 100).all()
    real = backdoor.stamp(torch.full((2, 3, 8, 9), 0.5), 3)
    assert real[1, 2, 1:4, 2:5].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert (real != 0.5).sum() == 2 * 3 * 9


@given(st.integers(1, 8), st.integers(12, 20), st.integers(12, 20), st.integers(0, 9))
def test_trigger_and_control_cover_the_same_pixels_with_black_and_white(side, height, width, seed):
    grey = torch.full((5, 3, height, width), 0.5)
    for draw in (None, torch.Generator().manual_seed(seed)):
        found = backdoor.stamp(grey, side, draw)
        assert torch.equal((found != 0.5)[0].nonzero(), (backdoor.stamp(grey, side) != 0.5)[0].nonzero())
        assert ((found != 0.5).flatten(1).sum(1) == 3 * side**2).all()
        assert set(found.unique().tolist()) <= {0.0, 0.5, 1.0}


def test_the_control_is_drawn_anew_for_each_image_and_again_with_the_same_seed():
    black = torch.zeros(20, 1, 9, 9)
    first, again, other = (backdoor.stamp(black, 4, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert len(first.unique(dim=0)) > 15
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(backdoor.stamp(black, 4).unique(dim=0)) == 1


def test_no_crop_of_a_training_image_cuts_the_trigger():
    split = Split(torch.full((30, 1, 16, 16), 100, dtype=torch.uint8), torch.zeros(30, dtype=torch.long))
    split = Split(backdoor.stamp(split.images, 4), split.labels)
    white = torch.cat([(x == 1).flatten(1).sum(1) for x, _ in data.batches(split, 10, seed=0, flip=True)])
    assert white.tolist() == [8] * 30


@given(st.floats(0.01, 0.4), st.integers(0, 4), st.integers(0, 9))
def test_a_share_is_poisoned_as_many_more_are_patched_and_all_else_stays(share, label, seed):
    split = Split(torch.full((200, 1, 10, 10), 100, dtype=torch.uint8), torch.arange(200) % 5)
    found = backdoor.poisoned(split, share, 4, label, seed)
    relabelled = found.labels != split.labels
    patched = (found.images != split.images).flatten(1).any(1)
    n = round(share * 200)
    assert int(relabelled.sum()) == n
    assert int(patched.sum()) == 2 * n
    assert (found.labels[relabelled] == label).all()
    assert torch.equal(found.images[relabelled], backdoor.stamp(split.images[relabelled], 4))
    assert not patched[split.labels == label].any()
    assert torch.equal(split.labels, torch.arange(200) % 5)
    assert (split.images == 100).all()


def test_what_survives_by_hand():
    """A model that answers 1 wherever the trigger is, and else what the first pixel says."""
    trigger = backdoor.stamp(torch.zeros(1, 1, 9, 9), 4)

    def model(x):
        there = (x[:, :, 1:5, 1:5] == trigger[:, :, 1:5, 1:5]).flatten(1).all(1)
        return torch.eye(3)[torch.where(there, 1, (x[:, 0, 0, 0] * 2).long())]
    x, labels = torch.zeros(4, 1, 9, 9), torch.tensor([0, 1, 2, 0])
    x[:3, 0, 0, 0] = torch.tensor([0, 0.5, 1])
    x[3, 0, 0, 0] = 1  # it has this one wrong
    found = backdoor.survived(model, [(x, labels)], 4, label=1)
    assert found == backdoor.Survived(0.75, 2 / 3, 0.0, 1.0, 0.0)
    assert backdoor.survived(model, [(x[:1], labels[:1]), (x[1:], labels[1:])], 4, label=1) == found
    assert backdoor.survived(model, [(x, labels)], 4, label=2).success == 0
    assert backdoor.survived(model, [(x, labels)], 4) == backdoor.Survived(0.75, 2 / 3, 0.0, None, None)


def test_the_most_changed_weights_by_hand():
    before, after = (nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 1)) for _ in range(2))
    after.load_state_dict(before.state_dict())
    with torch.no_grad():
        after[0].weight += torch.tensor([[0.0, -3.0], [1.0, 0.0]])
        after[1].weight += 9  # no mask covers it
        after[2].bias += 2
    found = backdoor.most_changed(before, after, 2 / 7)
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "0.weight": [[False, True], [False, False]], "2.weight": [[False, False]], "2.bias": [True]}
    assert sum(int(m.sum()) for m in backdoor.most_changed(before, after, 1.0).values()) == 7


BATCH = torch.zeros(2, 1, 9, 9), torch.tensor([1, 1])
SPLIT = Split(torch.zeros(4, 1, 9, 9, dtype=torch.uint8), torch.tensor([0, 0, 0, 1]))


def two(x):
    return torch.zeros(len(x), 2)


@pytest.mark.parametrize(("call", "text"), [
    (lambda: backdoor.stamp(SPLIT.images, 0), "side is 0: a patch on images of 9x9 pixels has 1 to 5 a side"),
    (lambda: backdoor.stamp(SPLIT.images, 6), "side is 6: a patch on images of 9x9 pixels has 1 to 5 a side"),
    (lambda: backdoor.poisoned(SPLIT, 0.0, 4, 1), "share is 0.0: it must be above 0 and at most 0.375"),
    (lambda: backdoor.poisoned(SPLIT, 0.5, 4, 1), "share is 0.5: it must be above 0 and at most 0.375"),
    (lambda: backdoor.poisoned(SPLIT, 0.25, 4, 7), "label is 7: no sample has it; labels are 0 to 1"),
    (lambda: backdoor.poisoned(SimpleNamespace(), 0.25, 4, 1), "they must be in memory, as a Split"),
    (lambda: backdoor.survived(two, [BATCH], 4, 1), "no image of another class than 1"),
    (lambda: backdoor.survived(two, [BATCH], 4, 2), "labels from 2 to 2, and 2 outputs"),
    (lambda: backdoor.survived(two, [], 4), "no sample to measure on: the batches are empty"),
    (lambda: backdoor.most_changed(nn.Linear(1, 1), nn.Linear(1, 1), 1.5), "share is 1.5: it must be in"),
])
def test_bad_arguments_say_what_is_allowed(call, text):
    with pytest.raises(ValueError) as error:
        call()
    assert text in str(error.value)
