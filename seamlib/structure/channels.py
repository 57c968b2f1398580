"""The graph of channels: which are constant, and which must stay or go together.

Every *channel of a tensor* is an atom; those that must stay or go together (an addition's, a pooling's) are joined into
one group.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from ..evaluate import measuring
from ..trial import answer, copied
from .fold import fold_norms
from .nodes import Nodes, traced
from .ordinary import ordinary, own_name

TRAFFIC = 20  #: multiply-adds that take as long as one number read or written (onnxruntime, one core with AVX512)


@dataclass(frozen=True)
class Channels:
    """A layer's channels by the groups that stay or go together, and what it costs, in [0, 1].

    Costs are shares of those of all such layers together, in multiply-adds; a number read or written costs `TRAFFIC`.
    """

    into: Tensor  #: of each input channel (feature) of its weight, the number of its group, int64
    out: Tensor  #: the same of each output channel
    pairs: float  #: what falls with the input channels and with the output channels: multiply-adds
    read: float  #: what falls with the input channels
    written: float  #: what falls with the output channels; of a depthwise convolution, all


def channel_groups(model: nn.Module, example: Tensor) -> tuple[dict[str, Channels], int]:
    """(The channels of each convolution and linear layer, by the name of its weight; the number n of groups).

    Groups are 0 to n - 1; number n stands for all channels that must stay, such as the inputs and the outputs, and for
    the one input channel in each filter of a depthwise convolution, which goes where its output goes. `example`
    [B, ...]: images that `model` takes. Raises ValueError as `compact` does.
    """
    channels, _ = channel_graph(model, example)
    fixed = {int(group) for node in channels.boundary() for group in channels.groups_of(node)}
    numbers: dict[int, int] = {}  # from 0 on, of the groups that are not fixed

    def groups(node: fx.Node) -> list[int]:
        return [-1 if group in fixed else numbers.setdefault(group, len(numbers)) for group in channels.groups_of(node)]

    layers: dict[str, tuple[list[int], list[int]]] = {}
    costs: dict[str, tuple[int, int, int]] = {}
    for layer in channels.reading(depthwise=True):
        name = own_name(str(layer.target).removeprefix("model.")) + ".weight"
        adds = channels.module(layer).weight.numel() * math.prod(channels.shape(layer)[2:])
        read, written = (TRAFFIC * math.prod(channels.shape(node)[1:]) for node in (channels.before(layer), layer))
        if channels.kind[layer] == "depthwise":
            layers[name], costs[name] = ([-1], groups(layer)), (0, 0, adds + read + written)
        else:
            layers[name], costs[name] = (groups(channels.before(layer)), groups(layer)), (adds, read, written)
    n, total = len(numbers), sum(map(sum, costs.values()))
    found = {}
    for name, ends in layers.items():
        into, out = (torch.tensor([n if group < 0 else group for group in end]) for end in ends)
        found[name] = Channels(into, out, *(cost / total for cost in costs[name]))
    return found, n


def channel_graph(model: nn.Module, example: Tensor) -> tuple[ChannelGraph, Tensor]:
    """(The graph of a copy of `model`, norms folded; the example, and its mirror image if it is a single one).

    Beside one image alone a parameter [1, ...] has the shape of what comes from it, and would be taken for that. Raises
    ValueError as `plain.plain` does, or if the model cannot be traced, or does not take one image or more.
    """
    model = copied(model)
    answer(model, example)
    if len(example) == 1:
        example = torch.cat([example, example.flip(-1)])
        answer(model, example)
    graph = traced(fold_norms(ordinary(model))[0].requires_grad_(False), type(model).__name__)
    with measuring():
        ShapeProp(graph).propagate(example.clone())
        return ChannelGraph(graph), example


class ChannelGraph(Nodes):
    """What is known about each node's channels; a branch that is constant has become a shift or a scale."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.constant: dict[fx.Node, np.ndarray] = {}  # of each channel: its value, NaN where it has none
        self.start: dict[fx.Node, int] = {}  # number of a tensor's first atom
        self.n = 0  # atoms
        for node in self.nodes:
            if self.width(node):
                self.start[node], self.n = self.n, self.n + self.width(node)
        for node in self.nodes:
            if node in self.start:
                self.constant[node] = self._constants(node)
        self._take_constant_branches()
        self.group = self._joined()  # of each atom: the number of those that stay or go together

    # constants, forward

    def _constants(self, node: fx.Node) -> np.ndarray:
        """The value of each channel that is one number for all images and places; NaN for the others."""
        nothing, kind = np.full(self.width(node), np.nan), self.kind[node]
        before = [self.constant[a] for a in node.all_input_nodes if a in self.constant]
        if kind in ("convolution", "linear", "depthwise"):
            weight, bias = self.weight(node)
            values = before[0]
            if kind == "depthwise":
                reach = np.where(weight.any(1), 1.0, 0.0)
                varies = (reach > 0) & (np.isnan(values) | (self.padded(node) & (values != 0)))
                return np.where(varies, np.nan, bias + np.nan_to_num(values) * weight.sum(1))
            unknown = np.isnan(values) | (self.padded(node) & (values != 0))
            varies = weight[:, unknown].any((1, 2))
            return np.where(varies, np.nan, bias + weight.sum(2) @ np.nan_to_num(values))
        if kind == "pointwise":
            return self._apply(node, before[0])
        if kind == "pool":
            return np.where(self.border(node) & (before[0] != 0), np.nan, before[0])
        if kind == "addition":
            return before[0] + before[1]
        if kind == "product":  # also of what is not constant
            return np.where((before[0] == 0) | (before[1] == 0), 0.0, before[0] * before[1])
        if kind == "flatten":
            return np.repeat(before[0], self.width(node) // len(before[0]))
        if kind == "concatenation":
            return np.concatenate([self.constant[a] for a in node.all_input_nodes])
        return nothing

    def _apply(self, node: fx.Node, values: np.ndarray) -> np.ndarray:
        """The node's function on constant maps; NaN stays NaN."""
        rank, value = len(self.shape(node)), torch.from_numpy(np.nan_to_num(values))
        x = value.reshape(1, -1, *[1] * (rank - 2))
        args = [x if isinstance(a, fx.Node) else a for a in node.args]
        given = {name: x if isinstance(a, fx.Node) else a for name, a in node.kwargs.items()}
        if node.op == "call_module":
            found = copy.deepcopy(self.module(node)).cpu().double()(*args, **given)
        elif node.op == "call_method":
            found = getattr(x.clone(), str(node.target))(*args[1:], **given)
        else:
            function: Callable[..., Tensor] = node.target  # type: ignore[assignment]
            found = function(*args, **{**given, **({"training": False} if function is F.dropout else {})})
        return np.where(np.isnan(values), np.nan, found.reshape(-1).double().numpy())

    def _take_constant_branches(self) -> None:
        """x + b or x * b, with b all constant, has a vector for b: nobody reads the branch any more."""
        for node in list(self.nodes):
            if self.kind[node] not in ("addition", "product"):
                continue
            a, b = node.all_input_nodes
            for branch, other in ((a, b), (b, a)):
                values = self.constant.get(branch)
                if values is not None and not np.isnan(values).any() and np.isnan(self.constant[other]).any() and (
                        self.shape(other) == self.shape(node)):
                    value = torch.from_numpy(values).to(next(self.graph.parameters()).device,
                                                        node.meta["tensor_meta"].dtype)
                    kind = Shift if self.kind[node] == "addition" else Scale
                    name = f"{kind.__name__.lower()}_{node.name}"
                    self.graph.add_submodule(name, kind(value.reshape(-1, *[1] * (len(self.shape(node)) - 2))))
                    with self.graph.graph.inserting_before(node):
                        new = self.graph.graph.call_module(name, (other,))
                    new.meta = dict(node.meta)
                    self.kind[new] = "pointwise"
                    self.start[new], self.constant[new] = self.start[node], self.constant[node]
                    node.replace_all_uses_with(new)
                    self.graph.graph.erase_node(node)
                    break
        self.graph.graph.eliminate_dead_code()

    # groups

    def _of(self, node: fx.Node) -> np.ndarray:
        """Numbers of the atoms of a node's channels."""
        return np.arange(self.start[node], self.start[node] + self.width(node))

    def groups_of(self, node: fx.Node) -> np.ndarray:
        """Numbers of the groups of a node's channels."""
        return self.group[self._of(node)]

    def _joined(self) -> np.ndarray:
        """Of each atom, the number of the class of those that stay or go together."""
        pairs = []
        for node in self.nodes:
            kind = self.kind[node]
            inputs = [a for a in node.all_input_nodes if a in self.start]
            if kind in ("pointwise", "pool", "depthwise", "addition", "product"):
                pairs += [(self._of(node), self._of(a)) for a in inputs]
            elif kind == "flatten":
                each = self.width(node) // self.width(inputs[0])
                pairs.append((self._of(node), np.repeat(self._of(inputs[0]), each)))
            elif kind == "concatenation":
                pairs.append((self._of(node), np.concatenate([self._of(a) for a in node.all_input_nodes])))
        a, b = (np.concatenate([np.zeros(0, int), *(pair[i] for pair in pairs)]) for i in (0, 1))
        return connected_components(coo_array((np.ones(len(a)), (a, b)), (self.n, self.n)), directed=False)[1]


class Shift(nn.Module):
    """x + a number for each channel: what a constant branch adds."""

    value: Tensor

    def __init__(self, value: Tensor):
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


class Scale(Shift):
    """x times a number for each channel: what a constant branch multiplies by."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value
