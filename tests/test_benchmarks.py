"""The baseline that the benchmark measures against computes what the library computes."""

import dataclasses

import pytest
import torch
from published import Images, Published
from torch import nn

from seamlib import data
from seamlib.masks import binarize, kept_fraction
from seamlib.search import Search, reengineer


def test_the_published_loop_finds_the_same_masks(tiny, problem):
    tiny[4].p = 0.0  # dropout: both would draw, in another order
    train, val = problem
    search = Search(epochs=4, head_only_every=0, lr_mask=0.1, alpha=1.0)
    head = nn.Linear(3, 2)
    published = Published(tiny, head, search)
    for _ in range(search.epochs):
        published.train(train)
    removed = 1 - kept_fraction(published.scores)
    assert 0 < removed < 1
    assert published.log[-1][2] < 1
    found = reengineer(tiny, head, train, val, dataclasses.replace(search, max_removed=removed))  # takes its last epoch
    assert len(found.history) == search.epochs
    for name, mask in binarize(published.scores).items():
        assert torch.equal(found.masks[name], mask)


def test_images_are_what_the_library_loads():
    split = data.Split(torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8), torch.arange(5))
    images = Images(split)
    assert len(images) == 5
    x, label = images[3]
    assert (x.shape, label) == ((3, 8, 8), 3)
    images.transform.transforms[:2] = []  # neither crop nor mirror
    assert images[3][0].mul(255).round().to(torch.uint8).equal(split.images[3])
    with pytest.raises(IndexError):
        images[5]
