"""A smaller model that answers the same: the structure that masks left dead is taken out, exactly.

Three kinds of channel can go. One that nobody reads. One that is the same number for every image, as all of its weights
are zero: what it adds to its readers is a constant, and becomes a part of their biases. And a branch of which nothing
but constants is left. Every *channel of a tensor* is an atom; those that must stay or go together (an addition's, a
pooling's) are joined into one; then whatever the outputs need is kept, and nothing else.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from .evaluate import measuring
from .fold import fold_norms

BLOCK = 16  #: channels that engines work on at a time, at most; for `multiple`
TOLERANCE = 1e-4  #: largest difference between the logits of both, over the largest logit, that is taken for rounding
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POINTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish,
             nn.Hardsigmoid, nn.Hardtanh, nn.Mish, nn.Softplus, nn.Identity, nn.modules.dropout._DropoutNd,
             nn.modules.batchnorm._BatchNorm)
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
         nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
POINTWISE_CALLS = {F.relu, torch.relu, F.relu6, F.silu, F.gelu, torch.sigmoid, torch.tanh, F.hardswish, F.dropout,
                   "relu", "relu_", "sigmoid", "tanh", "contiguous"}
POOL_CALLS = {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool2d}
WINDOW_CALLS = {F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}
ADDITIONS = {operator.add, operator.iadd, torch.add}


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
    linear layers, batch norm, activations, pooling, additions, concatenations of channels and flattening; anything else
    keeps all of its channels and is named in the report. Under zero padding a constant channel is not constant at the
    border: all such channels of a tensor become one. `model`, in eval mode, is unchanged; the result is a
    torch.fx.GraphModule.

    Raises ValueError if the model is in train mode, cannot be traced, does not take the example, if `multiple` is below
    1, or (a check that is made on the example) the result would answer differently.
    """
    if multiple < 1:
        raise ValueError(f"multiple is {multiple}: it must be 1 (nothing dead stays) or more, such as 16")
    if any(m.training for m in model.modules()):
        raise ValueError(f"{type(model).__name__}, or a part of it, is in train mode: call model.eval() first")
    plan, want = _planned(model, example)
    plan.fill_up(multiple)
    with measuring():
        report = plan.rewrite()
        found = plan.graph(example.clone())
        scale = float(want.abs().max()) or 1.0
        rounding = max(TOLERANCE, 4 * torch.finfo(want.dtype).eps)
        if not float((found - want).abs().max()) <= rounding * scale:
            raise ValueError(f"the compacted {type(model).__name__} answers differently, by "
                             f"{float((found - want).abs().max()):.2g}: it does something that is not understood here, "
                             "such as changing a tensor in place; please report it")
    return plan.graph.eval(), report


@dataclass(frozen=True)
class Channels:
    """A layer's channels by the groups that stay or go together, and what the layer costs."""

    into: Tensor  #: of each input channel (feature), the number of its group, int64
    out: Tensor  #: the same of each output channel
    share: float  #: of the multiply-adds of all such layers, in [0, 1]


def channel_groups(model: nn.Module, example: Tensor) -> tuple[dict[str, Channels], int]:
    """(The channels of each convolution and linear layer, by the name of its weight; the number n of groups).

    Groups are 0 to n - 1; number n stands for all channels that must stay, such as the inputs and the outputs.
    `example` [B, ...]: images that `model` takes. Raises ValueError as `compact` does.
    """
    plan, _ = _planned(model, example)
    layers = plan.reading()
    fixed = {int(atom) for node in plan.graph.graph.nodes if plan.kind[node] in ("placeholder", "output", "other")
             for n in (node, *node.all_input_nodes) if n in plan.start for atom in plan.atoms[plan.of(n)]}
    numbers: dict[int, int] = {}  # of the groups, by atom
    ends = [[[-1 if atom in fixed else numbers.setdefault(atom, len(numbers)) for atom in plan.atoms[plan.of(end)]]
             for end in (plan.before(layer), layer)] for layer in layers]
    costs = [plan.module(layer).weight.numel() * math.prod(plan.shape(layer)[2:]) for layer in layers]
    found, n = {}, len(numbers)
    for layer, (into, out), cost in zip(layers, ends, costs, strict=True):
        name = str(layer.target).removeprefix("model.") + ".weight"
        at = [torch.tensor([n if group < 0 else group for group in end]) for end in (into, out)]
        found[name] = Channels(at[0], at[1], cost / sum(costs))
    return found, n


def _planned(model: nn.Module, example: Tensor) -> tuple[_Plan, Tensor]:
    """(The plan, what `model` says about the example). Raises ValueError if that cannot be had."""
    folded, _ = fold_norms(model)
    graph = _traced(folded.requires_grad_(False), type(model).__name__)
    with measuring():
        try:
            want = model(example.clone())  # whose forward may change it
            if not isinstance(want, Tensor):
                raise ValueError(f"it returns a {type(want).__name__}, not a tensor")
            ShapeProp(graph).propagate(example.clone())
        except (RuntimeError, ValueError) as e:
            raise ValueError(f"{type(model).__name__} does not take an example of shape {tuple(example.shape)}: "
                             f"{str(e).splitlines()[0]}") from e
        return _Plan(graph), want


class _Whole(nn.Module):
    """A model inside another, so that tracing sees its hooks."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _traced(model: nn.Module, name: str) -> fx.GraphModule:
    whole = _Whole(model).eval()
    try:
        return fx.GraphModule(whole, fx.Tracer().trace(whole))
    except Exception as e:  # whatever a model's forward raises at a value that is not there
        raise ValueError(f"{name} cannot be traced by torch.fx ({str(e).splitlines()[0] if str(e) else type(e)}): "
                         "its forward must not depend on the values of tensors") from e


class _Plan:
    """Which channels are constant, which are needed, and the graph without the others."""

    def __init__(self, graph: fx.GraphModule):
        self.graph = graph
        self.left: dict[str, str] = {}
        self.constant: dict[fx.Node, np.ndarray] = {}  # of each channel: its value, NaN where it has none
        self.start: dict[fx.Node, int] = {}  # number of a tensor's first atom
        self.kind = {node: self._kind(node) for node in graph.graph.nodes}
        self.layers = self.reading()
        n = 0
        for node in graph.graph.nodes:
            if self.width(node):
                self.start[node], n = n, n + self.width(node)
        self.n = n
        for node in graph.graph.nodes:
            if node in self.start:
                self.constant[node] = self.constants(node)
        self.drop_constant_branches()
        self.atoms = self.joined()
        self.keep = self.needed()

    # what a node is

    def module(self, node: fx.Node) -> Any:
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    @staticmethod
    def before(node: fx.Node) -> fx.Node:
        """Whose tensor a node takes."""
        return node.all_input_nodes[0]

    @staticmethod
    def shape(node: Any) -> tuple[int, ...]:
        meta: Any = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
        return tuple(meta.shape) if hasattr(meta, "shape") else ()

    def width(self, node: Any) -> int:
        """Channels (features) of a node's tensor [B, channels, ...]; 0 if it is none."""
        shape = self.shape(node)
        return shape[1] if len(shape) > 1 else 0

    def _kind(self, node: fx.Node) -> str:
        """What is understood about a node; `other` if nothing."""
        if node.op in ("placeholder", "output"):
            return node.op
        if not self.width(node):
            return "other"
        module, target = self.module(node), node.target
        tensors = [a for a in node.all_input_nodes if self.width(a)]
        if isinstance(module, CONVOLUTIONS) and self._alone(node):
            if module.groups == 1:
                return "convolution"
            return "depthwise" if module.groups == module.in_channels == module.out_channels else "other"
        if isinstance(module, nn.Linear) and len(self.shape(self.before(node))) == 2 and self._alone(node):
            return "linear"
        if isinstance(module, POINTWISE) or target in POINTWISE_CALLS:
            return "pointwise" if len(tensors) == 1 and (module is None or self._alone(node)) else "other"
        pools = isinstance(module, POOLS) or target in POOL_CALLS | WINDOW_CALLS or self._mean_over_space(node)
        if pools and len(tensors) == 1 and len(self.shape(tensors[0])) > 2 and (
                getattr(module, "divisor_override", None) is None and "divisor_override" not in node.kwargs):
            return "pool"
        if target in ADDITIONS and len(tensors) == len(node.args) == 2 and not node.kwargs and (
                self.shape(tensors[0]) == self.shape(tensors[1])):
            return "addition"
        if (isinstance(module, nn.Flatten) or target in (torch.flatten, "flatten")) and len(tensors) == 1 and (
                len(self.shape(node)) == 2 and self.shape(node)[0] == self.shape(tensors[0])[0]):
            return "flatten"
        if target in (torch.cat, torch.concat) and node.args and node.kwargs.get("dim", (*node.args, 0)[1]) == 1 and (
                len(tensors) == len(node.args[0])):  # type: ignore[arg-type]
            return "concatenation"
        return "other"

    def _alone(self, node: fx.Node) -> bool:
        """Whether the node's module holds nothing, or is called here only and has its parameters to itself."""
        parameters = [id(p) for p in self.module(node).parameters(recurse=False)]
        if not parameters and not list(self.module(node).buffers(recurse=False)):
            return not isinstance(self.module(node), nn.modules.batchnorm._BatchNorm)
        owners = [n for n, m in self.graph.named_modules() if any(id(p) in parameters
                                                                  for p in m.parameters(recurse=False))]
        calls = [n for n in self.graph.graph.nodes if n.op == "call_module" and n.target == node.target]
        return len(calls) == 1 and len(owners) <= 1 and getattr(self.module(node), "running_mean", 0) is not None

    def _mean_over_space(self, node: fx.Node) -> bool:
        if node.target not in ("mean", torch.mean) or not node.args:
            return False
        dims: Any = node.kwargs.get("dim", (*node.args, None)[1])
        dims = (dims,) if isinstance(dims, int) else dims
        rank = len(self.shape(self.before(node)))
        return dims is not None and sorted(d % rank for d in dims) == list(range(2, rank))

    # constants, forward

    def constants(self, node: fx.Node) -> np.ndarray:
        """The value of each channel that is one number for all images and places; NaN for the others."""
        nothing, kind = np.full(self.width(node), np.nan), self.kind[node]
        before = [self.constant[a] for a in node.all_input_nodes if a in self.constant]
        if kind in ("convolution", "linear", "depthwise"):
            weight, bias = self._weight(node)
            values = before[0]
            if kind == "depthwise":
                reach = np.where(weight.any(1), 1.0, 0.0)
                varies = (reach > 0) & (np.isnan(values) | (self._padded(node) & (values != 0)))
                return np.where(varies, np.nan, bias + np.nan_to_num(values) * weight.sum(1))
            unknown = np.isnan(values) | (self._padded(node) & (values != 0))
            varies = weight[:, unknown].any((1, 2))
            return np.where(varies, np.nan, bias + weight.sum(2) @ np.nan_to_num(values))
        if kind == "pointwise":
            return self._apply(node, before[0])
        if kind == "pool":
            return np.where(self._border(node) & (before[0] != 0), np.nan, before[0])
        if kind == "addition":
            return before[0] + before[1]
        if kind == "flatten":
            return np.repeat(before[0], self.width(node) // len(before[0]))
        if kind == "concatenation":
            return np.concatenate([self.constant[a] for a in node.all_input_nodes])
        return nothing

    def _weight(self, node: fx.Node) -> tuple[np.ndarray, np.ndarray]:
        """(weight [out, in, places], bias [out]), in double precision."""
        module = self.module(node)
        weight = module.weight.detach().double().cpu().flatten(2) if module.weight.dim() > 2 else (
            module.weight.detach().double().cpu().unsqueeze(2))
        bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach().double().cpu()
        array = weight.numpy()
        return (array[:, 0] if self.kind[node] == "depthwise" else array), bias.double().numpy()

    def _padded(self, node: fx.Node) -> bool:
        """Whether zeros come in at the border."""
        module = self.module(node)
        padding = getattr(module, "padding", 0)
        none = padding in (0, "valid") or (isinstance(padding, tuple) and not any(padding))
        return not none and module.padding_mode == "zeros"

    def _border(self, node: fx.Node) -> bool:
        """Whether an average takes zeros from outside of the image."""
        if node.target in WINDOW_CALLS:
            average = "avg" in str(getattr(node.target, "__name__", ""))
            return average and (len(node.args) > 3 or "padding" in node.kwargs)
        module = self.module(node)
        padding = getattr(module, "padding", 0)
        some = any(padding) if isinstance(padding, tuple) else bool(padding)
        return isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d) and some

    def _apply(self, node: fx.Node, values: np.ndarray) -> np.ndarray:
        """The node's function on constant maps; NaN stays NaN."""
        rank, value = len(self.shape(node)), torch.from_numpy(np.nan_to_num(values))
        x = value.reshape(1, -1, *[1] * (rank - 2))
        args = [x if isinstance(a, fx.Node) else a for a in node.args]
        if node.op == "call_module":
            found = copy.deepcopy(self.module(node)).cpu().double()(*args)
        elif node.op == "call_method":
            found = getattr(x.clone(), str(node.target))(*args[1:], **node.kwargs)
        else:
            function: Callable[..., Tensor] = node.target  # type: ignore[assignment]
            found = function(*args, **{**node.kwargs, **({"training": False} if function is F.dropout else {})})
        return np.where(np.isnan(values), np.nan, found.reshape(-1).double().numpy())

    def drop_constant_branches(self) -> None:
        """x + b, with b all constant, becomes x + a vector: nobody reads the branch any more."""
        for node in list(self.graph.graph.nodes):
            if self.kind[node] != "addition":
                continue
            a, b = node.all_input_nodes
            for branch, other in ((a, b), (b, a)):
                values = self.constant.get(branch)
                if values is not None and not np.isnan(values).any() and np.isnan(self.constant[other]).any():
                    value = torch.from_numpy(values).to(next(self.graph.parameters()).device,
                                                        node.meta["tensor_meta"].dtype)
                    shift = _Shift(value.reshape(-1, *[1] * (len(self.shape(node)) - 2)))
                    name = f"shift_{node.name}"
                    self.graph.add_submodule(name, shift)
                    with self.graph.graph.inserting_before(node):
                        new = self.graph.graph.call_module(name, (other,))
                    new.meta = dict(node.meta)
                    self.kind[new] = "pointwise"
                    self.start[new], self.constant[new] = self.start[node], self.constant[node]
                    node.replace_all_uses_with(new)
                    self.graph.graph.erase_node(node)
                    break
        self.graph.graph.eliminate_dead_code()

    # needs, backward

    def of(self, node: fx.Node) -> np.ndarray:
        """Numbers of the atoms of a node's channels."""
        return np.arange(self.start[node], self.start[node] + self.width(node))

    def joined(self) -> np.ndarray:
        """Of each atom, the number of the class of those that stay or go together."""
        pairs = []
        for node in self.graph.graph.nodes:
            kind = self.kind[node]
            inputs = [a for a in node.all_input_nodes if a in self.start]
            if kind in ("pointwise", "pool", "depthwise", "addition"):
                pairs += [(self.of(node), self.of(a)) for a in inputs]
            elif kind == "flatten":
                pairs.append((self.of(node), np.repeat(self.of(inputs[0]), self.width(node) // self.width(inputs[0]))))
            elif kind == "concatenation":
                pairs.append((self.of(node), np.concatenate([self.of(a) for a in node.all_input_nodes])))
        a, b = (np.concatenate([np.zeros(0, int), *(pair[i] for pair in pairs)]) for i in (0, 1))
        return connected_components(coo_array((np.ones(len(a)), (a, b)), (self.n, self.n)), directed=False)[1]

    def needed(self) -> np.ndarray:
        """Of each class of atoms, whether it stays."""
        keep = np.zeros(self.n, bool)
        for node in self.graph.graph.nodes:
            kind = self.kind[node]
            if kind in ("placeholder", "output", "other"):
                tensors = [n for n in (node, *node.all_input_nodes) if n in self.start]
                for n in tensors:
                    keep[self.atoms[self.of(n)]] = True
                if kind == "other" and tensors and node.op != "get_attr":
                    self.left[node.name] = str(self.module(node) or node.target)
        self._follow(keep)
        for node in self.reading():  # no tensor of none
            for n in (node, self.before(node)):
                if n in self.start and not keep[self.atoms[self.of(n)]].any():
                    keep[self.atoms[self.of(n)[0]]] = True
                    self._follow(keep)
        return keep

    def fill_up(self, multiple: int) -> None:
        """Keep dead channels, whatever they say as nobody asks, where that makes a layer's number a multiple."""
        for node in self.reading():
            atoms = self.atoms[self.of(node)]
            short = -int(self.keep[atoms].sum()) % multiple
            self.keep[atoms[~self.keep[atoms]][:short]] = True

    def reading(self) -> list[fx.Node]:
        """The layers that are still there."""
        return [n for n in self.graph.graph.nodes if self.kind[n] in ("convolution", "linear")]

    def _follow(self, keep: np.ndarray) -> None:
        """Keep whatever that which is kept reads."""
        before = -1
        while before != (before := int(keep.sum())):
            for node in reversed(self.reading()):
                wanted = keep[self.atoms[self.of(node)]]
                read = self._read(node, self._weight(node)[0][wanted].any((0, 2)))
                keep[self.atoms[self.of(self.before(node))[read]]] = True

    def _read(self, node: fx.Node, used: np.ndarray) -> np.ndarray:
        """Input channels that a layer has to read, of those it uses: the varying ones, and one for the constant."""
        values = self.constant[self.before(node)]
        read = used & np.isnan(values)
        if self._padded(node) and (used & (np.nan_to_num(values) != 0)).any():
            read[self._stand_in(values)] = True
        return read

    @staticmethod
    def _stand_in(values: np.ndarray) -> int:
        """The constant channel that stands for all of its tensor where there is padding."""
        return int(np.abs(np.nan_to_num(values)).argmax())

    # the smaller graph

    def rewrite(self) -> Compacted:
        names = {n: str(n.target).removeprefix("model.") for n in self.layers}
        before = {n: self.width(n) for n in self.layers}
        there = set(self.graph.graph.nodes)
        after = {n: int(self.kept(n).sum()) if n in there else 0 for n in self.layers}
        for node in there:
            module = self.module(node)
            if self.kind[node] in ("convolution", "linear"):
                self._narrow(node)
            elif self.kind[node] == "depthwise":
                out = torch.from_numpy(np.flatnonzero(self.kept(node)))
                module.weight = nn.Parameter(module.weight[out], requires_grad=False)
                module.bias = None if module.bias is None else nn.Parameter(module.bias[out], requires_grad=False)
                module.groups = module.in_channels = module.out_channels = len(out)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm) and self.kind[node] == "pointwise":
                out = torch.from_numpy(np.flatnonzero(self.kept(node)))
                for name in ("weight", "bias", "running_mean", "running_var"):
                    t = getattr(module, name)
                    if t is not None:
                        setattr(module, name, nn.Parameter(t[out], requires_grad=False) if name in module._parameters
                                else t[out])
                module.num_features = len(out)
            elif isinstance(module, _Shift):
                module.value = module.value[torch.from_numpy(np.flatnonzero(self.kept(node)))]
        self.graph.delete_all_unused_submodules()
        self.graph.recompile()
        return Compacted({names[n]: (before[n], after[n]) for n in self.layers}, self.left)

    def kept(self, node: fx.Node) -> np.ndarray:
        return self.keep[self.atoms[self.of(node)]]

    def _narrow(self, node: fx.Node) -> None:
        """Leave a layer the rows that are needed and the columns that are there; constants become bias."""
        module, values = self.module(node), self.constant[self.before(node)]
        weight, bias = (torch.from_numpy(t) for t in self._weight(node))
        out, into = (torch.from_numpy(np.flatnonzero(self.kept(n))) for n in (node, self.before(node)))
        gone = torch.from_numpy(~self.kept(self.before(node)) & (np.nan_to_num(values) != 0))
        value = torch.from_numpy(np.nan_to_num(values))
        if gone.any():
            if self._padded(node):
                if weight[:, gone].any():
                    r = self._stand_in(values)
                    weight[:, r] += torch.einsum("oip,i->op", weight[:, gone], value[gone] / value[r])
            else:
                bias += weight[:, gone].sum(2) @ value[gone]
        like = module.weight
        shape = (len(out), len(into), *like.shape[2:])
        module.weight = nn.Parameter(weight[out][:, into].reshape(shape).to(like), requires_grad=False)
        module.bias = nn.Parameter(bias[out].to(like), requires_grad=False)
        for name, n in zip(("out_features", "in_features") if isinstance(module, nn.Linear) else
                           ("out_channels", "in_channels"), shape, strict=False):
            setattr(module, name, n)


class _Shift(nn.Module):
    """x + a number for each channel: what a constant branch adds."""

    value: Tensor

    def __init__(self, value: Tensor):
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value
