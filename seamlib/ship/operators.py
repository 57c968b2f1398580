"""Multiply-adds of each operator of a traced model; fvcore counts those that are not here."""

from __future__ import annotations

import math
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape

# By their names, whatever the shapes, in place or not: without multiply-adds; and products of matrices.
WITHOUT = ("prelu", "view_as", "reshape_as", "index_put", "index_add", "index_copy", "scatter", "scatter_add",
           "scatter_reduce", "masked_scatter", "select_scatter", "slice_scatter")
PRODUCTS = ("addbmm", "cdist", "chain_matmul", "cholesky_solve", "linalg_lu_solve", "linalg_multi_dot", "linalg_solve",
            "linalg_solve_triangular")


class Counted(FlopCountAnalysis):
    """fvcore's analysis, which leaves out of the total no product of tensors that `_might_multiply` can tell.

    Raises ValueError, with its name and place, at one that has no count. What is made of one matrix alone (its inverse,
    its powers) is not counted, as other operators are that have no count.
    """

    def __init__(self, model: torch.nn.Module, example: torch.Tensor):
        super().__init__(model, example)
        self.set_op_handle(**{f"aten::{name}": count for names, count in COUNTS.items() for name in names.split()})

    def _should_ignore_node(self, node: Any) -> bool:
        """Asked at every operator that has no count."""
        ignored = super()._should_ignore_node(node)
        if not ignored and _might_multiply(node):
            what = node.pyname() if node.kind() == "prim::PythonOp" else node.kind()
            shapes = " and ".join(str(tuple(s)) for s in _shapes(_operands(node)))
            raise ValueError(f"{what}, in {node.scopeName().split('/')[-1] or 'the model itself'!r}, makes {shapes} "
                             "one tensor and has no count, so that the total would be too low: write it as a linear "
                             "layer, a convolution or a product of matrices, or count the model without it")
        return ignored


def _operands(node: Any) -> list[Any]:
    """What it is given, lists of tensors one by one."""
    return [v for given in node.inputs() for v in (
        given.node().inputs() if given.node().kind() == "prim::ListConstruct" else [given])]


def _shapes(values: Any) -> list[list[int]]:
    """Of those that are tensors of floating-point numbers."""
    return [get_shape(v) for v in values if v.isCompleteTensor() and v.type().dtype().is_floating_point]


def _might_multiply(node: Any) -> bool:
    """Whether it makes one of two or more tensors, and not by torch's own code element by element.

    Of torch's own code the shapes say which that is, but for names in WITHOUT and PRODUCTS.
    """
    inputs, outputs = _shapes(node.inputs()), _shapes(node.outputs())
    name = node.kind().removeprefix("aten::").removesuffix("_")
    if name in PRODUCTS:
        return True
    if len(inputs) < 2 or not outputs or name in WITHOUT:
        return False
    try:
        return node.kind().startswith("prim::") or list(torch.broadcast_shapes(*inputs)) != outputs[0]
    except RuntimeError:  # they are no shapes of one such operation
        return True


def _product(inputs: list[Any], outputs: list[Any]) -> int:
    """Of a with b, matrices or vectors: as many for each number of the result as a's last size."""
    return math.prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]


def _added_product(inputs: list[Any], outputs: list[Any]) -> int:
    return _product(inputs[1:], outputs)


def _tensordot(inputs: list[Any], outputs: list[Any]) -> int:
    """Sizes of a are those of the result that are its own times those summed over, k; of b likewise."""
    a, b, out = (math.prod(get_shape(v)) for v in (*inputs[:2], outputs[0]))
    return out * math.isqrt(a * b // out)


def _outer(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(get_shape(outputs[0]))


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Operands one after the other, as torch alone multiplies them: each pair costs the product of all their sizes."""
    terms, arrow, result = inputs[0].toIValue().replace(" ", "").partition("->")
    shapes = [get_shape(v) for v in inputs[1].node().inputs()]
    letters = [_spelt(term, len(shape)) for term, shape in zip(terms.split(","), shapes, strict=True)]
    sizes: dict[str, int] = {}
    for term, shape in zip(letters, shapes, strict=True):
        for letter, n in zip(term, shape, strict=True):
            sizes[letter] = max(n, sizes.get(letter, 1))
    kept = set(_spelt(result, len(get_shape(outputs[0])))) if arrow else {
        c for c in sizes if c.isdigit() or terms.count(c) == 1}
    total, current = 0, set(letters[0])
    for i, term in enumerate(letters[1:], 2):
        current |= set(term)
        total += math.prod(sizes[letter] for letter in current)
        current &= kept.union(*letters[i:])
    return total


def _spelt(term: str, rank: int) -> str:
    """`term` of an einsum with its dots as digits, the last dimension of them 0."""
    n = rank - len(term.replace("...", ""))
    return term.replace("...", "9876543210"[10 - n:])


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """Each weight once at each place of the result; of a transposed one, at each place of the images."""
    x, weight, out = get_shape(inputs[0]), get_shape(inputs[1]), get_shape(outputs[0])
    places = x if inputs[6].toIValue() is True else out
    return x[0] * math.prod(places[2:]) * math.prod(weight)


def _recurrent(inputs: list[Any], outputs: list[Any]) -> int:
    """Each matrix once for each vector of x [..., features]."""
    x = get_shape(inputs[0])
    lists = [v.node().inputs() for v in inputs if v.node().kind() == "prim::ListConstruct"]
    matrices = [get_shape(v) for v in list(lists[-1])]
    return math.prod(x[:-1]) * sum(math.prod(shape) for shape in matrices if len(shape) > 1)


def _bilinear(inputs: list[Any], outputs: list[Any]) -> int:
    """x [..., i] and y [..., j] by weight [n, i, j]: each weight once for each pair of vectors."""
    return math.prod(get_shape(inputs[0])[:-1]) * math.prod(get_shape(inputs[2]))


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Of q [..., L, D], k [..., S, D], v [..., S, Dv]: q with k, and the result with v."""
    q, k, v = (get_shape(i) for i in inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


COUNTS = {
    "matmul mm bmm mv dot inner linear": _product, "addmm baddbmm addmv": _added_product, "tensordot": _tensordot,
    "outer": _outer, "einsum": _einsum, "_convolution _convolution_mode": _convolution, "bilinear": _bilinear,
    "lstm gru rnn_tanh rnn_relu": _recurrent, "scaled_dot_product_attention": _attention,
}
