"""What each operation of a traced model does to the channels of its tensors, as far as it is understood."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..trial import first_line
from .ordinary import Same, Tracer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POINTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish,
             nn.Hardsigmoid, nn.Hardtanh, nn.Mish, nn.Softplus, nn.Identity, nn.modules.dropout._DropoutNd,
             nn.modules.batchnorm._BatchNorm)
POOLS = (Same, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
         nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
POINTWISE_CALLS = {F.relu, torch.relu, F.relu6, F.silu, F.gelu, torch.sigmoid, torch.tanh, F.hardswish, F.hardsigmoid,
                   F.dropout, "relu", "relu_", "sigmoid", "tanh", "contiguous"}
DEPTH = "stochastic_depth"  # torchvision's function, by its name: to import it would take seconds
POOL_CALLS = {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool2d}
WINDOW_CALLS = {F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}
ADDITIONS = {operator.add, operator.iadd, torch.add}
PRODUCTS = {operator.mul, torch.mul}  # torch.fx writes *= as mul


class _Whole(nn.Module):
    """A model inside another, so that tracing sees its hooks."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def traced(model: nn.Module, name: str) -> fx.GraphModule:
    """The graph of `model`, its names with "model." before; ValueError, with `name`, if it cannot be traced."""
    whole = _Whole(model).eval()
    try:
        return _out_of_place(fx.GraphModule(whole, Tracer().trace(whole)))
    except Exception as e:  # whatever a model's forward raises at a value that is not there
        raise ValueError(f"{name} cannot be traced by torch.fx ({first_line(e)}): "
                         "its forward must not depend on the values of tensors") from e


def _out_of_place(graph: fx.GraphModule) -> fx.GraphModule:
    """`graph`, whose operations in place are read by all that reads their tensor after them, as if they were not."""
    nodes = list(graph.graph.nodes)
    for i, node in enumerate(nodes, 1):
        if node.all_input_nodes and _in_place(node, graph):
            changed = node.all_input_nodes[0]
            for later in nodes[i:]:
                later.replace_input_with(changed, node)
    return graph


def _in_place(node: fx.Node, graph: fx.GraphModule) -> bool:
    """Whether the node changes its first tensor."""
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_module":
        return getattr(graph.get_submodule(str(node.target)), "inplace", False) is True
    if node.op not in ("call_method", "call_function"):
        return False
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a method by its name, or one of torch's own in C++
        given = dict(node.kwargs)
    return given.get("inplace") is True or (name.endswith("_") and not name.endswith("__") and (
        getattr(node.target, "__module__", "") != operator.and_.__module__))  # Python's & and |


class Nodes:
    """The nodes of a traced model, and the kind of each: what is understood about it."""

    def __init__(self, graph: fx.GraphModule):
        """`graph`: after torch.fx's ShapeProp, so that shapes are known."""
        self.graph = graph
        self.kind = {node: self._kind(node) for node in self.nodes}
        self.layers_before = self.reading()

    @property
    def nodes(self) -> fx.graph._node_list:
        return self.graph.graph.nodes

    def boundary(self) -> list[fx.Node]:
        """Tensors whose channels must stay: inputs, outputs, and those of operations that are not understood."""
        fixed = [node for node in self.nodes if self.kind[node] in ("placeholder", "output", "other")]
        return [n for node in fixed for n in (node, *node.all_input_nodes) if self.width(n)]

    def left(self) -> dict[str, str]:
        """Operation on channels that is not understood -> what it is."""
        return {node.name: str(self.module(node) or node.target) for node in self.nodes
                if self.kind[node] == "other" and node.op != "get_attr"
                and any(self.width(n) for n in (node, *node.all_input_nodes))}

    def reading(self, depthwise: bool = False) -> list[fx.Node]:
        """The layers that are still there; depthwise convolutions, whose outputs read one channel each, if wanted."""
        kinds = ("convolution", "linear", "depthwise") if depthwise else ("convolution", "linear")
        return [n for n in self.nodes if self.kind[n] in kinds]

    def module(self, node: fx.Node) -> Any:
        """The module that a node calls; None if it calls none."""
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    @staticmethod
    def before(node: fx.Node) -> fx.Node:
        """Whose tensor a node takes."""
        return node.all_input_nodes[0]

    @staticmethod
    def shape(node: Any) -> tuple[int, ...]:
        """Of a node's tensor; () if it is none."""
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
        module, target = self.module(node), node.target
        if not self.width(node) or (module is not None and (module._forward_hooks or module._forward_pre_hooks)):
            return "other"
        tensors = [a for a in node.all_input_nodes if self.width(a)]
        if isinstance(module, CONVOLUTIONS) and self._alone(node):
            if module.groups == 1:
                return "convolution"
            return "depthwise" if module.groups == module.in_channels == module.out_channels else "other"
        if isinstance(module, nn.Linear) and len(self.shape(self.before(node))) == 2 and self._alone(node):
            return "linear"
        if isinstance(module, POINTWISE) or target in POINTWISE_CALLS or getattr(target, "__name__", "") == DEPTH:
            return "pointwise" if len(tensors) == 1 and (module is None or self._alone(node)) else "other"
        pools = isinstance(module, POOLS) or target in POOL_CALLS | WINDOW_CALLS or self._mean_over_space(node)
        if pools and len(tensors) == 1 and len(self.shape(tensors[0])) > 2 and (
                getattr(module, "divisor_override", None) is None and "divisor_override" not in node.kwargs):
            return "pool"
        shapes = [self.shape(a) for a in tensors] if len(tensors) == len(node.args) == 2 and not node.kwargs else []
        if shapes and target in ADDITIONS and shapes[0] == shapes[1]:
            return "addition"
        if shapes and target in PRODUCTS and self._one_each(*shapes):
            return "product"
        if (isinstance(module, nn.Flatten) or target in (torch.flatten, "flatten")) and len(tensors) == 1 and (
                len(self.shape(node)) == 2 and self.shape(node)[0] == self.shape(tensors[0])[0]):
            return "flatten"
        if target in (torch.cat, torch.concat) and node.args and node.kwargs.get("dim", (*node.args, 0)[1]) == 1 and (
                len(tensors) == len(node.args[0])):  # type: ignore[arg-type]
            return "concatenation"
        return "other"

    @staticmethod
    def _one_each(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        """Whether both have the same channels, and each as many places as the other or one."""
        return len(a) == len(b) and a[:2] == b[:2] and all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True))

    def _alone(self, node: fx.Node) -> bool:
        """Whether the node's module holds nothing, or is called here only and has its parameters to itself."""
        parameters = [id(p) for p in self.module(node).parameters(recurse=False)]
        if not parameters and not list(self.module(node).buffers(recurse=False)):
            return not isinstance(self.module(node), nn.modules.batchnorm._BatchNorm)
        owners = [n for n, m in self.graph.named_modules() if any(id(p) in parameters
                                                                  for p in m.parameters(recurse=False))]
        calls = [n for n in self.nodes if n.op == "call_module" and n.target == node.target]
        return len(calls) == 1 and len(owners) <= 1 and getattr(self.module(node), "running_mean", 0) is not None

    def _mean_over_space(self, node: fx.Node) -> bool:
        if node.target not in ("mean", torch.mean) or not node.args:
            return False
        dims: Any = node.kwargs.get("dim", (*node.args, None)[1])
        dims = (dims,) if isinstance(dims, int) else dims
        rank = len(self.shape(self.before(node)))
        return dims is not None and sorted(d % rank for d in dims) == list(range(2, rank))

    def weight(self, node: fx.Node) -> tuple[np.ndarray, np.ndarray]:
        """(weight [out, in, places], bias [out]), in double precision."""
        module = self.module(node)
        weight = module.weight.detach().double().cpu().flatten(2) if module.weight.dim() > 2 else (
            module.weight.detach().double().cpu().unsqueeze(2))
        bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach().double().cpu()
        array = weight.numpy()
        return (array[:, 0] if self.kind[node] == "depthwise" else array), bias.double().numpy()

    def padded(self, node: fx.Node) -> bool:
        """Whether zeros come in at the border."""
        module = self.module(node)
        padding = getattr(module, "padding", 0)
        none = padding in (0, "valid") or (isinstance(padding, tuple) and not any(padding))
        return not none and module.padding_mode == "zeros"

    def border(self, node: fx.Node) -> bool:
        """Whether zeros from outside of the image come in."""
        if node.target in WINDOW_CALLS:
            average = "avg" in str(getattr(node.target, "__name__", ""))
            return average and (len(node.args) > 3 or "padding" in node.kwargs)
        module = self.module(node)
        if isinstance(module, Same):
            return True
        padding = getattr(module, "padding", 0)
        some = any(padding) if isinstance(padding, tuple) else bool(padding)
        return isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d) and some
