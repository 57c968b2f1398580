"""A smaller model that answers the same: the structure that masks left dead is taken out, exactly.

Three kinds of channel can go. One that nobody reads. One that is the same number for every image, as all of its weights
are zero: what it adds to its readers is a constant, and becomes a part of their biases. And a branch of which nothing
but constants is left. Of the groups of channels that stay or go together (`channels`) whatever the outputs need is
kept, and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..evaluate import measuring
from ..plain import check_evaluating, plain
from ..trial import answer, difference
from .channels import ChannelGraph, Shift, channel_graph
from .ordinary import own_name

BLOCK = 16  #: channels that engines work on at a time, at most; for `multiple`
TOLERANCE = 1e-4  #: largest difference between the logits of both, over the largest logit, that is taken for rounding


@dataclass(frozen=True)
class Compacted:
    """What `compact` did."""

    channels: dict[str, tuple[int, int]]  #: layer -> output channels (features) before and after; 0: the layer is gone
    left: dict[str, str] = field(default_factory=dict)  #: operation that was left as it is -> what it is


def compact(model: nn.Module, example: Tensor, *, multiple: int = 1) -> tuple[nn.Module, Compacted]:
    """(`model` without its dead structure, what was done). Both answer the same, up to rounding, at any input size.

    `example` [B, ...]: images that `model` takes. `multiple`, 1 or more: a layer keeps so many dead channels that their
    number is a multiple of it, as far as it has them; engines work on channels in blocks of up to BLOCK, and DeepSparse
    1.8.0 answers wrongly for some numbers that are no multiples of that. Understood are convolutions (also depthwise),
    linear layers, batch norm, activations, pooling, additions, products, concatenations of channels and flattening;
    anything else keeps all of its channels and is named in the report. Under zero padding a constant channel is not
    constant at the border: all such channels of a tensor become one. There are never more weights than before. `model`,
    in eval mode, is unchanged; the result is a torch.fx.GraphModule.

    Raises ValueError if the model is in train mode, cannot be traced, has weights that are no parameters, does not take
    the example, or one image of it, if `multiple` is below 1, or (a check that is made on several images, on one, and
    on random ones in [0, 1)) the result would answer differently.
    """
    if type(multiple) is not int or multiple < 1:
        raise ValueError(f"multiple is {multiple!r}: it must be 1 (nothing dead stays) or more, such as 16")
    model = plain(model)
    check_evaluating(model)
    channels, examples = channel_graph(model, example)
    rewriting = _Rewriting(channels)
    rewriting.fill_up(multiple)
    with measuring():
        report = rewriting.rewrite()
    noise = torch.rand(examples.shape, generator=torch.Generator().manual_seed(0)).to(examples)
    for x in (examples, examples[:1], *([noise] if examples.is_floating_point() else [])):
        if wrong := _disagreement(channels.graph, model, x):
            raise ValueError(f"the compacted {type(model).__name__} answers differently, by {wrong}, for {len(x)} "
                             "images: it does something that is not understood here, such as changing a tensor in "
                             "place; please report it")
    return channels.graph.eval(), report


def _disagreement(found: nn.Module, model: nn.Module, x: Tensor) -> str:
    """How `found` answers otherwise than `model`, in words; empty if it is rounding.

    A masked network may enlarge roundings, as where large constants cancel: double precision decides.
    """
    wrong = _difference(answer(found, x), answer(model, x))
    if wrong and x.is_floating_point():
        with contextlib.suppress(ValueError):  # of a model that works in one precision alone
            exact = (copy.deepcopy(m).double() for m in (found, model))
            return _difference(*(answer(m, x.double()) for m in exact))
    return wrong


def _difference(found: Tensor, want: Tensor) -> str:
    """Of two answers, in words; empty if it is rounding."""
    if found.shape != want.shape:
        return f"shape {tuple(found.shape)} for {tuple(want.shape)}"
    rounding = max(TOLERANCE, 4 * torch.finfo(want.dtype).eps) if want.is_floating_point() else 0
    largest = difference(found, want)
    return "" if largest <= rounding else f"{largest:.2g} of the largest"


class _Rewriting:
    """Which groups of channels are needed, and the graph, changed in place, without the others."""

    def __init__(self, channels: ChannelGraph):
        self.channels = channels
        self.keep = self._needed()  # of each group: whether it stays

    def _needed(self) -> np.ndarray:
        """Of each group, whether what must stay needs it."""
        keep = np.zeros(self.channels.n, bool)
        for node in self.channels.boundary():
            keep[self.channels.groups_of(node)] = True
        self._follow(keep)
        for node in self.channels.reading():  # no tensor of none
            for n in (node, self.channels.before(node)):
                if n in self.channels.start and not keep[self.channels.groups_of(n)].any():
                    keep[self.channels.groups_of(n)[0]] = True
                    self._follow(keep)
        return keep

    def fill_up(self, multiple: int) -> None:
        """Keep dead channels, whatever they say as nobody asks, where that makes a layer's number a multiple."""
        for node in self.channels.reading():
            groups = self.channels.groups_of(node)
            short = -int(self.keep[groups].sum()) % multiple
            self.keep[groups[~self.keep[groups]][:short]] = True

    def _follow(self, keep: np.ndarray) -> None:
        """Keep whatever that which is kept reads."""
        before = -1
        while before != (before := int(keep.sum())):
            for node in reversed(self.channels.reading()):
                wanted = keep[self.channels.groups_of(node)]
                read = self._read(node, self.channels.weight(node)[0][wanted].any((0, 2)))
                keep[self.channels.groups_of(self.channels.before(node))[read]] = True

    def _read(self, node: fx.Node, used: np.ndarray) -> np.ndarray:
        """Input channels that a layer has to read, of those it uses: the varying ones, and one for the constant."""
        values = self.channels.constant[self.channels.before(node)]
        read = used & np.isnan(values)
        if self.channels.padded(node) and (used & (np.nan_to_num(values) != 0)).any():
            read[self._stand_in(values)] = True
        return read

    @staticmethod
    def _stand_in(values: np.ndarray) -> int:
        """The constant channel that stands for all of its tensor where there is padding."""
        return int(np.abs(np.nan_to_num(values)).argmax())

    def rewrite(self) -> Compacted:
        """Take all other channels out."""
        names = {n: own_name(str(n.target).removeprefix("model.")) for n in self.channels.layers_before}
        before = {n: self.channels.width(n) for n in self.channels.layers_before}
        there = set(self.channels.nodes)
        after = {n: int(self._kept(n).sum()) if n in there else 0 for n in self.channels.layers_before}
        for node in there:
            module = self.channels.module(node)
            if self.channels.kind[node] in ("convolution", "linear"):
                self._narrow(node)
            elif self.channels.kind[node] == "depthwise":
                out = torch.from_numpy(np.flatnonzero(self._kept(node)))
                module.weight = nn.Parameter(module.weight[out], requires_grad=False)
                module.bias = None if module.bias is None else nn.Parameter(module.bias[out], requires_grad=False)
                module.groups = module.in_channels = module.out_channels = len(out)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm) and self.channels.kind[node] == "pointwise":
                out = torch.from_numpy(np.flatnonzero(self._kept(node)))
                for name in ("weight", "bias", "running_mean", "running_var"):
                    t = getattr(module, name)
                    if t is not None:
                        setattr(module, name, nn.Parameter(t[out], requires_grad=False) if name in module._parameters
                                else t[out])
                module.num_features = len(out)
            elif isinstance(module, Shift):
                module.value = module.value[torch.from_numpy(np.flatnonzero(self._kept(node)))]
        self.channels.graph.delete_all_unused_submodules()
        self.channels.graph.recompile()
        return Compacted({names[n]: (before[n], after[n]) for n in self.channels.layers_before}, self.channels.left())

    def _kept(self, node: fx.Node) -> np.ndarray:
        """Of each of a node's channels, whether it stays."""
        return self.keep[self.channels.groups_of(node)]

    def _narrow(self, node: fx.Node) -> None:
        """Leave a layer the rows that are needed and the columns that are there; constants become bias."""
        module, values = self.channels.module(node), self.channels.constant[self.channels.before(node)]
        weight, bias = (torch.from_numpy(t) for t in self.channels.weight(node))
        out, into = (torch.from_numpy(np.flatnonzero(self._kept(n))) for n in (node, self.channels.before(node)))
        gone = torch.from_numpy(~self._kept(self.channels.before(node)) & (np.nan_to_num(values) != 0))
        value = torch.from_numpy(np.nan_to_num(values))
        if gone.any():
            if self.channels.padded(node):
                if weight[:, gone].any():
                    r = self._stand_in(values)
                    weight[:, r] += torch.einsum("oip,i->op", weight[:, gone], value[gone] / value[r])
            else:
                bias += weight[:, gone].sum(2) @ value[gone]
        like = module.weight
        shape = (len(out), len(into), *like.shape[2:])
        module.weight = nn.Parameter(weight[out][:, into].reshape(shape).to(like), requires_grad=False)
        adds = module.bias is not None or bool(bias[out].any())  # a constant that is gone leaves more than its bias
        module.bias = nn.Parameter(bias[out].to(like), requires_grad=False) if adds else None
        for name, n in zip(("out_features", "in_features") if isinstance(module, nn.Linear) else
                           ("out_channels", "in_channels"), shape, strict=False):
            setattr(module, name, n)
