import pytest
import torch
from hypothesis import given, settings, strategies as st

from seamlib.masks import overlap


def of(*bits):
    return {"weight": torch.tensor(bits, dtype=torch.bool)}


def test_by_hand():
    a, b = of(1, 1, 0, 0), of(0, 1, 1, 0)
    assert overlap.jaccard(a, b) == (1 / 3, 1 / 3)  # one of three; by chance 2 * 2 / 4 = 1 as well
    assert overlap.jaccard(a, a) == (1.0, 1 / 3)
    found, chance = overlap.wanted([a, b])
    assert found.tolist() == [0.25, 0.5, 0.25]
    assert chance.tolist() == [0.25, 0.5, 0.25]


def test_chance_is_by_layer():
    a = {"small": torch.ones(2, dtype=torch.bool), "large": torch.zeros(8, dtype=torch.bool)}
    assert overlap.jaccard(a, a) == (1.0, 1.0)  # all of one layer, nothing of the other: drawing has no choice
    assert overlap.wanted([a, a, a])[1].tolist() == [0.8, 0.0, 0.0, 0.2]


def test_what_masks_keep_between_them_grows_with_their_number():
    assert overlap.grown([0.25, 0.5, 0.25]) == [0.5, 0.75]  # of the two by hand: half each, three of four together
    assert overlap.grown([0.5, 0.25, 0.25, 0.0]) == pytest.approx([0.25, 0.25 * 2 / 3 + 0.25, 0.5])


def test_empty_masks_share_nothing():
    assert overlap.jaccard(of(0, 0), of(0, 0)) == (0.0, 0.0)


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(0, 999))
def test_shares_sum_to_one_and_keep_the_density(n, seed):
    draw = torch.Generator().manual_seed(seed)
    masks = [{"a": torch.rand(5, 4, generator=draw) < 0.3, "b": torch.rand(7, generator=draw) < 0.8} for _ in range(n)]
    density = sum(int(m.sum()) for mask in masks for m in mask.values()) / 27
    for shares in overlap.wanted(masks):
        assert shares.sum() == pytest.approx(1)
        assert shares @ range(n + 1) == pytest.approx(density)
        assert overlap.grown(shares.tolist())[0] == pytest.approx(density / n)
        assert overlap.grown(shares.tolist())[-1] == pytest.approx(1 - shares[0])
    assert overlap.jaccard(masks[0], masks[-1]) == overlap.jaccard(masks[-1], masks[0])


def test_masks_of_two_models_are_refused():
    with pytest.raises(ValueError, match="2 masks that are not of the same parameters: give at least one, all of one"):
        overlap.jaccard(of(1, 0), of(1, 0, 1))
    with pytest.raises(ValueError, match="0 masks that are not of the same parameters"):
        overlap.wanted([])
