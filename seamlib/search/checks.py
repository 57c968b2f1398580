"""What a search is given, checked at its door: before the first step, and not later than that."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn

from ..evaluate import measuring


def check_head(model: nn.Module, head: nn.Module, x: Tensor, y: Tensor) -> None:
    """ValueError if `head` does not take what `model`, in eval mode, returns for images `x`, or lacks a label's output.

    `y`: labels [B]. Neither module is changed.
    """
    with measuring():
        logits = model(x[:1].to(next(model.parameters()).device))
        try:
            n = copy.deepcopy(head).eval()(logits).shape[1]
        except (RuntimeError, IndexError, TypeError, ValueError) as e:
            raise ValueError(f"the head does not take what {type(model).__name__} returns, {list(logits.shape)}: "
                             f"{str(e).splitlines()[0]}; give one that does") from e
    if int(y.max()) >= n:
        raise ValueError(f"train has an image of label {int(y.max())}, and the head has {n} output{'s' * (n > 1)}: "
                         "give a head with an output for each label, from 0 on")


def check_names(names: Iterable[str], norms: Iterable[str]) -> None:
    """ValueError if a parameter of one of `norms`, batch norms that adapt, is among the `names` to be masked."""
    if masked := {f"{norm}.{key}" for norm in norms for key in ("weight", "bias")} & set(names):
        raise ValueError(f"names has {min(masked)!r}, of a batch norm that is to adapt: it cannot be masked as well; "
                         "leave it out, or search with norms='frozen'")
