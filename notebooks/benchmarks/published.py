"""The search as the paper describes it, written plainly: what the library's speed is measured against.

Masked layers in single precision, images one at a time through PIL, all scores joined for the kept fraction, four
numbers read back each step. It computes what `seamlib.search` computes (tests/test_benchmarks.py): only slower.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torchvision import transforms

from seamlib import masks
from seamlib.evaluate import Batch
from seamlib.problems.data import Split
from seamlib.problems.memory import PADDING
from seamlib.search import Search


class _Binary(torch.autograd.Function):
    """1 where the score is above 0, else 0; its gradient passes, clipped to [-1, 1]."""

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        return (score > 0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return F.hardtanh(grad)


class Score(nn.Module):
    """A score beside a weight; called with the weight, it returns what the mask leaves of it."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.score = nn.Parameter(torch.ones_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * _Binary.apply(self.score)


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """`split` as an artefact of the time loads it: each image through PIL, cropped and mirrored on its own."""

    def __init__(self, split: Split):
        self.split = split
        self.transform = transforms.Compose([
            transforms.RandomCrop(split.images.shape[-1], padding=PADDING), transforms.RandomHorizontalFlip(),
            transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.split.images[i].permute(1, 2, 0).numpy())
        return self.transform(image), int(self.split.labels[i])


class Published:
    """The live state of one search by the published loop; `model` and `head` are copied, never changed."""

    def __init__(self, model: nn.Module, head: nn.Module, search: Search):
        self.search, self.device = search, next(model.parameters()).device
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.head = copy.deepcopy(head).requires_grad_(True).to(self.device)
        self.scores: dict[str, nn.Parameter] = {}
        for name in masks.maskable(model):
            owner, _, kind = name.rpartition(".")
            layer, score = self.model.get_submodule(owner), Score(model.get_parameter(name))
            parametrize.register_parametrization(layer, kind, score)
            self.scores[name] = score.score
        self.optimiser = torch.optim.Adam([{"params": list(self.scores.values()), "lr": search.lr_mask},
                                           {"params": list(self.head.parameters()), "lr": search.lr_head}])
        self.log: list[list[float]] = []

    def train(self, batches: Iterable[Batch]) -> None:
        """One epoch in which scores and head learn."""
        self.model.train(), self.head.train()
        for module in self.model.modules():
            if isinstance(module, masks.NORMS):
                module.eval()
        for x, y in batches:
            x, y = x.to(self.device), y.to(self.device)
            self.optimiser.zero_grad()
            z = self.head(self.model(x))
            entropy = F.cross_entropy(z, y)
            joined = torch.cat([_Binary.apply(score).reshape(-1) for score in self.scores.values()])
            loss = entropy + self.search.alpha * joined.sum() / joined.numel()
            loss.backward()
            self.optimiser.step()
            right = (z.argmax(1) == y).sum()
            self.log.append([right.item(), entropy.item(), joined.mean().item(), loss.item()])
