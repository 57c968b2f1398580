"""What a search is given, checked at its door: before the first step, and not later than that."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn

from ..evaluate import measuring
from ..records import runtime
from .settings import Search


def check_protocol(search: Search, protocol: str) -> None:
    """ValueError unless `protocol` is "crossfit" or "paper", and one under which `search` may stop as it says."""
    runtime.check_choice("protocol", protocol, ("crossfit", "paper"))
    if protocol == "crossfit" and search.patience:
        raise ValueError(f"patience is {search.patience}: it reads the accuracy that is reported, so under crossfit it "
                         "must be 0; use the paper's protocol or set patience to 0")


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
