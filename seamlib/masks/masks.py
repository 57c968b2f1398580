"""Masks over the weights of any module: scores, the masked call, and masks to compare with.

A *score* is a real number beside each weight; the *mask* keeps the weight where its score is above zero.
The module itself is never changed: its weights are replaced for the length of one call.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..plain import plain

Masks = dict[str, Tensor]
NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,  # _NormBase: batch and instance norm
)


def maskable(model: nn.Module, skip: tuple[type[nn.Module], ...] = NORMS) -> list[str]:
    """Names of the parameters that masks cover: all but those of the module types in `skip`.

    Tied weights appear once, under the name that `model.named_parameters()` gives them. Here and below a model may be
    wrapped by DataParallel or torch.compile: names are those of what is inside. Raises ValueError for a model whose
    weights are not parameters of its own (see `plain.plain`).
    """
    model = plain(model)
    skipped = {id(p) for m in model.modules() if isinstance(m, skip) for p in m.parameters(recurse=False)}
    return [name for name, p in model.named_parameters() if id(p) not in skipped and p.is_floating_point()]


def new_scores(model: nn.Module, names: Iterable[str] | None = None) -> Masks:
    """Scores of 1 (everything kept) for the parameters `names` (default: `maskable(model)`), each in its shape."""
    parameters = dict(model.named_parameters())
    names = maskable(model) if names is None else list(names)
    if unknown := [n for n in names if n not in parameters]:
        raise ValueError(f"no parameter called {unknown[0]!r} in {type(model).__name__}: see model.named_parameters()")
    if counts := [n for n in names if not parameters[n].is_floating_point()]:
        raise ValueError(f"the parameter {counts[0]!r} is {str(parameters[counts[0]].dtype).removeprefix('torch.')}, "
                         "which has no gradient: leave it out of the names")
    return {n: torch.ones_like(parameters[n]).requires_grad_() for n in names}


def binarize(scores: Mapping[str, Tensor]) -> Masks:
    """Boolean masks: True where the score is above 0. New tensors; `scores` is unchanged."""
    return {name: score.detach() > 0 for name, score in scores.items()}


class _Masked(torch.autograd.Function):
    """w * [score > 0], with the straight-through gradient clip(grad * w, -1, 1) for the score."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.where(score > 0, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return (grad * weight).clamp_(-1, 1), None


def masked_call(model: nn.Module, scores: Mapping[str, Tensor], x: Tensor,
                offsets: Mapping[str, Tensor] | None = None) -> Tensor:
    """`model(x)` with each weight named in `scores` kept where its score is above 0, else zero.

    Differentiable in the scores (straight through); `model` and its weights are neither changed nor differentiated.
    `offsets` are added to the masked weights of their names (see `structure.fold.fold_norms`). Raises ValueError for
    scores of another architecture.
    """
    model = plain(model)
    parameters = dict(model.named_parameters())
    check_shapes({n: tuple(s.shape) for n, s in scores.items()}, {n: tuple(p.shape) for n, p in parameters.items()})
    weights = {name: p.detach() for name, p in parameters.items() if p.requires_grad}
    return call_with(model, weights | masked_weights(model, scores, offsets), x)


def call_with(model: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """`model(x)` with `weights`, by parameter name, in place of its own, wherever a tied one is used.

    They are in place again for the length of a backward pass, in which layers may be computed anew (checkpointing).
    """
    given = {id(model.get_parameter(name)): t for name, t in weights.items()}
    places = [(m._parameters, key, p, given[id(p)]) for m in model.modules() for key, p in m._parameters.items()
              if id(p) in given]

    def put(ours: bool) -> None:
        for where, key, own, new in places:
            where[key] = new if ours else own  # type: ignore[assignment]

    def backward_begins(_: Tensor) -> None:
        put(ours=True)

        def over() -> None:
            """Called when the pass is over; by an error it is let go of, and then, or later, does the same."""
            undo()
        undo = weakref.finalize(over, put, ours=False)  # once: a thread of CUDA may hold `over` into the next step
        torch.autograd.Variable._execution_engine.queue_callback(over)
    put(ours=True)
    try:
        z = model(x)
    finally:
        put(ours=False)
    if isinstance(z, Tensor) and z.requires_grad:
        z.register_hook(backward_begins)
    return z


def masked_weights(model: nn.Module, scores: Mapping[str, Tensor],
                   offsets: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights that `masked_call` calls with, of the names in `scores`.

    A score may have dimensions before its weight's: those of many masks; the result then has them as well.
    """
    masked = {name: _Masked.apply(score, model.get_parameter(name).detach()) for name, score in scores.items()}
    return masked | {name: masked[name] + offset for name, offset in (offsets or {}).items()}


def kept_fraction(scores: Mapping[str, Tensor]) -> float:
    """Share of mask entries that are kept, in [0, 1]; of scores or of boolean masks. 1.0 if there are none."""
    total = sum(s.numel() for s in scores.values())
    return sum(int((s > 0).sum()) for s in scores.values()) / total if total else 1.0


def shuffled(masks: Mapping[str, Tensor], seed: int) -> Masks:
    """Random masks of the same density in every layer: the entries of each of `masks` in an order drawn with `seed`."""
    draw = torch.Generator().manual_seed(seed)
    return {name: m.reshape(-1)[torch.randperm(m.numel(), generator=draw).to(m.device)].reshape(m.shape)
            for name, m in masks.items()}


def drawn(model: nn.Module, removed: float, seed: int) -> Masks:
    """Random masks of `model` without the share `removed`, in [0, 1], of every layer, rounded: a control.

    Raises ValueError for another share.
    """
    if not 0 <= removed <= 1:
        raise ValueError(f"removed is {removed}: it must be in [0, 1]")
    weights = {name: plain(model).get_parameter(name) for name in maskable(model)}
    return shuffled({name: (torch.arange(w.numel(), device=w.device) >= round(removed * w.numel())).reshape(w.shape)
                     for name, w in weights.items()}, seed)


def largest(model: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """Masks of the same density in every layer that keep the largest weights: pruning by magnitude, without a search.

    As many entries of each of `masks` are True as before, where `model`'s weight has the highest absolute value.
    Raises ValueError for masks of another architecture.
    """
    parameters, found = check_masks(model, masks), {}
    for name, m in masks.items():
        weight = parameters[name].detach().abs().reshape(-1)
        kept = torch.zeros_like(weight, dtype=torch.bool)
        found[name] = kept.scatter_(0, weight.topk(int(m.sum())).indices, True).reshape(m.shape)
    return found


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Burn `masks` into `model`, in place: every weight outside its mask becomes exactly 0. Returns `model`.

    Raises ValueError for masks that are not boolean or belong to another architecture.
    """
    parameters = check_masks(model, masks)
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)
    return model


def check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The parameters of `model` by name; ValueError unless `masks` are boolean, each in the shape of one of them."""
    parameters = dict(plain(model).named_parameters())
    check_shapes({n: tuple(m.shape) for n, m in masks.items()}, {n: tuple(p.shape) for n, p in parameters.items()})
    if other := [n for n, m in masks.items() if m.dtype != torch.bool]:
        raise ValueError(f"the mask of {other[0]!r} is {str(masks[other[0]].dtype).removeprefix('torch.')}: it must be "
                         "boolean, True where the weight is kept; of scores, `binarize` makes masks")
    return parameters


def check_shapes(masks: Mapping[str, tuple[int, ...]], parameters: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError unless each of `masks` has the name and the shape of one of `parameters`."""
    for name, shape in masks.items():
        if name not in parameters:
            raise ValueError(f"the masks cover {name!r}, which this model does not have: they belong to another "
                             "architecture")
        if shape != parameters[name]:
            raise ValueError(f"the mask of {name!r} has shape {shape}, the model's weight {parameters[name]}: they "
                             "belong to another architecture")
