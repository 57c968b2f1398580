"""Structure: a gate for each channel, so that whole channels go while the search goes on.

Ours, not the paper's: a zero saves time on any runtime only where a whole channel of them can be taken out (`compact`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .channels import Channels, channel_groups

MEMORY = 0.98  # of what a gate is worth, from one step to the next


class _Gated(torch.autograd.Function):
    """The score where the gate of its output channel is open, else -1.

    The gate of an input channel has the gradients of the kept weights that read it, summed.
    """

    @staticmethod
    def forward(ctx: Any, score: Tensor, out: Tensor, into: Tensor) -> Tensor:
        gated = torch.where(out > 0, score, -1.0)
        ctx.save_for_backward(gated > 0)
        ctx.shape = into.shape
        return gated

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        (kept,) = ctx.saved_tensors
        return grad, None, (grad * kept).sum_to_size(ctx.shape)


class Gates:
    """A *gate* stands for a group of channels, those of which `compact` can take out all or none.

    A weight is kept where its score is above 0 and the gate of its output channel is open. What a gate is worth is the
    squared gradient of scaling what is read of its channels, averaged over steps (Molchanov et al., CVPR 2019).
    Scaling what writes them would not do: batch norm behind a channel undoes it, and the gradient is zero.
    `values` [groups], or [K, groups] for K problems: 1 where a gate is open, 0 where it is shut. `worth`: likewise.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        """`example` [B, ...]: images that `model` takes. Raises ValueError if it does not, or cannot be traced."""
        layers, groups = channel_groups(model, example)
        self.layers = {name: dataclasses.replace(layer, into=layer.into.to(example.device),
                                                 out=layer.out.to(example.device)) for name, layer in layers.items()}
        if away := layers.keys() - dict(model.named_parameters(remove_duplicate=False)).keys():
            raise ValueError(f"{min(away)} has another name in {type(model).__name__}, a part of which is wrapped (by "
                             "DataParallel or torch.compile): take that part out of it before a search for structure")
        self.values = torch.ones(groups, device=example.device, requires_grad=True)
        self.worth = torch.zeros(groups, device=example.device)

    def stacked(self, problems: int) -> Gates:
        """As many, each problem's own."""
        many = copy.copy(self)
        many.values = self.values.detach().repeat(problems, 1).requires_grad_()
        many.worth = self.worth.repeat(problems, 1)
        return many

    def scores(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`scores`, but -1 wherever the gate of the output channel is shut. Differentiable in both."""
        values = _with_fixed(self.values)
        return {name: self._gated(s, values, self.layers[name]) if name in self.layers else s
                for name, s in scores.items()}

    def cost(self, opened: Tensor) -> Tensor:
        """Share of what the model costs, in [0, 1], that is left with the channels of these groups; see `Channels`.

        `opened` [..., groups]: 1 where a group stays, 0 where it goes.
        """
        opened = _with_fixed(opened)
        parts = []
        for layer in self.layers.values():
            into, out = opened[..., layer.into].mean(-1), opened[..., layer.out].mean(-1)
            parts.append(layer.pairs * into * out + layer.read * into + layer.written * out)
        return torch.stack(parts).sum(0)

    def shut(self, left: Tensor) -> None:
        """Shut the gates that are worth least for what they cost, until no more than a share `left` of `cost` is left.

        To be called after a backward pass, whose gradients it takes into `worth`. What goes with two gates is counted
        for both, so a little more may be left until the next step.
        """
        grad, self.values.grad = self.values.grad, None
        if grad is not None:
            self.worth.lerp_(grad.square(), 1 - MEMORY)
        with torch.enable_grad():
            opened = self.values.detach().requires_grad_()
            cost = self.cost(opened)
            (saved,) = torch.autograd.grad(cost.sum(), opened)
        order = (self.worth / saved).masked_fill(self.values == 0, torch.inf).argsort(-1)
        goes = saved.gather(-1, order).cumsum(-1) <= (cost.detach() - left)[..., None]
        with torch.no_grad():
            self.values.scatter_(-1, order, torch.where(goes, 0.0, self.values.gather(-1, order)))

    @staticmethod
    def _gated(score: Tensor, values: Tensor, layer: Channels) -> Tensor:
        *lead, _ = values.shape
        kernel = [1] * (score.dim() - len(lead) - 2)
        out = values.detach()[..., layer.out].reshape(*lead, -1, 1, *kernel)
        gated: Tensor = _Gated.apply(score, out, values[..., layer.into].reshape(*lead, 1, -1, *kernel))
        return gated


def _with_fixed(values: Tensor) -> Tensor:
    """With a last one that is always open: that of the channels that must stay."""
    return torch.cat([values, values.new_ones(*values.shape[:-1], 1)], -1)
