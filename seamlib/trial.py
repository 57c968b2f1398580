"""A model before any work is done on it: a copy out of whatever is around it, and what it says about an example."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from .evaluate import measuring
from .plain import copyable, unwrapped


def copied(model: nn.Module) -> nn.Module:
    """A copy of `model`, whose parts too are out of DataParallel and torch.compile; ValueError as `copyable`."""
    model = copy.deepcopy(copyable(model))
    for module in list(model.modules()):
        module._modules |= {name: unwrapped(part) for name, part in module._modules.items() if part is not None}
    return model


def answer(model: nn.Module, example: Tensor) -> Tensor:
    """What `model` says about `example` [B, ...], in full precision and without a gradient.

    Raises ValueError unless the example is a tensor of one image or more, which `model` answers with another tensor.
    """
    if not isinstance(example, Tensor) or example.dim() < 1 or not len(example):
        what: Any = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ValueError(f"the example is a {what}: it must be one tensor [B, ...] of at least one image; wrap a model "
                         "that takes anything else in a module that takes a tensor")
    with measuring():
        said = called(model, example.clone())  # whose forward may change it
    if not isinstance(said, Tensor):
        raise ValueError(f"{type(model).__name__} returns a {type(said).__name__}, not a tensor: wrap it in a module "
                         "that picks the logits out")
    return said


def called(model: nn.Module, x: Tensor) -> Any:
    """What `model` says of images `x` [B, ...]; ValueError, with what it raises, if it raises anything."""
    try:
        return model(x)
    except Exception as e:  # whatever a forward raises at what it cannot use
        raise ValueError(f"{type(model).__name__} does not take {str(x.dtype).removeprefix('torch.')} images of shape "
                         f"{list(x.shape)} on {x.device}: {first_line(e)}") from e


def difference(found: Tensor, want: Tensor) -> float:
    """The largest difference of two answers of one shape, as a share of the largest number of `want`.

    Infinities that are the same, and numbers that neither is, are no difference.
    """
    found, want = found.double(), want.double()
    same = (found == want) | (found.isnan() & want.isnan())
    largest = float(want.abs().masked_fill(~want.isfinite(), 0).max()) or 1.0
    return float((found - want).abs().masked_fill(same, 0).max()) / largest


def first_line(error: Exception) -> str:
    """What an error says first, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
