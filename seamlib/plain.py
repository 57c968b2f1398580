"""What a model must be before its weights are masked, trained or counted: a plain module that holds them itself.

And, as models differ in it, how one is put in train mode so that it answers as it does in eval mode.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTS = (torch.bool, torch.int16, torch.int32, torch.int64)  # a parameter that counts or indexes is left alone


def unwrapped(model: nn.Module) -> nn.Module:
    """`model` itself, or what `DataParallel`, `DistributedDataParallel` or `torch.compile` has wrapped."""
    while isinstance(model, PARALLEL) or "_orig_mod" in getattr(model, "_modules", {}):
        model = model.module if isinstance(model, PARALLEL) else model.get_submodule("_orig_mod")
    return model


def plain(model: nn.Module) -> nn.Module:
    """`unwrapped(model)`.

    Raises ValueError, with the cure, for what is no module, a scripted module, a quantised layer, a weight that is not
    there yet (lazy, or on the meta device), and one that is computed from others (a parametrization, pruning, weight
    norm or spectral norm): a mask of its parts would not be a mask of the weight.
    """
    model = unwrapped(model)
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is of type {type(model).__name__}: it must be a torch.nn.Module")
    for name, module in model.named_modules():
        what = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{what} is scripted or traced, so its weights cannot be exchanged: give the model that "
                             "it was made from")
        if type(module).__module__.startswith("torch.ao.nn.") and "quantized" in type(module).__module__:
            raise ValueError(f"{what} is quantised, so its weights are packed: give the model from before it was "
                             "quantised, and quantise the result")
        if parametrize.is_parametrized(module):
            key = next(iter(module.parametrizations))
            raise ValueError(f"{what} has a {key} that is computed by a parametrization: make it a parameter first, by "
                             f"torch.nn.utils.parametrize.remove_parametrizations(layer, {key!r})")
        _check_not_computed(what, module)
    for name, p in model.named_parameters():
        if is_lazy(p) or p.is_meta:
            raise ValueError(f"{name} has no values yet (a {type(p).__name__} on {p.device}): call the model once, or "
                             "load its weights")
    return model


def _check_not_computed(what: str, module: nn.Module) -> None:
    """ValueError if one of the module's tensors is what a hook makes of its parameters before each call."""
    own = module._parameters.keys()
    for key in (key for key, t in vars(module).items() if isinstance(t, Tensor)):
        cure = ""
        if {f"{key}_g", f"{key}_v"} <= own:
            cure = "remove_weight_norm"
        elif f"{key}_orig" in own:
            cure = "prune.remove" if f"{key}_mask" in module._buffers else "remove_spectral_norm"
        if cure:
            raise ValueError(f"{what} has a {key} that is computed before each call: make it a parameter first, by "
                             f"torch.nn.utils.{cure}(layer, {key!r})")


def check_evaluating(model: nn.Module, name: str = "", otherwise: str = "") -> None:
    """ValueError if `model`, or a part of it, is in train mode; `name`: what to call it (default: its type).

    `otherwise`: what to do where it is meant to be.
    """
    model = unwrapped(model)
    if any(getattr(m, "training", False) for m in model.modules()):  # a frozen script has no mode
        raise ValueError(f"{name or type(model).__name__}, or a part of it, is in train mode: call model.eval() "
                         f"first{otherwise}")


def copyable(model: nn.Module) -> nn.Module:
    """`plain(model)`; ValueError also if a part of it holds on to what it computed, and to the graph of that."""
    model = plain(model)
    for name, module in model.named_modules():
        for key, t in {**vars(module), **module._buffers}.items():
            if isinstance(t, Tensor) and t.grad_fn is not None:
                raise ValueError(f"{name or 'the model'} ({type(module).__name__}) holds {key!r}, a tensor that was "
                                 "computed from others with gradients, so the model cannot be copied: make it a "
                                 f"Parameter, or detach it ({key}.detach())")
    return model


def sound(model: nn.Module) -> nn.Module:
    """`copyable(model)`; ValueError also unless it has weights, and all of them are real numbers that are finite."""
    model = copyable(model)
    parameters = dict(model.named_parameters())
    for name, p in parameters.items():
        if p.dtype not in FLOATS + COUNTS or p.layout != torch.strided:
            kind = str(p.dtype if p.layout == torch.strided else p.layout).removeprefix("torch.")
            raise ValueError(f"the weight {name} is {kind}: it must be a dense tensor of float16, bfloat16, float32 or "
                             "float64; convert it, or give the model from before it was converted")
        if not p.isfinite().all():
            raise ValueError(f"the weight {name} has {int((~p.isfinite()).sum())} of {p.numel()} values that are NaN "
                             "or infinite: load or train the model again")
    for name, b in model.named_buffers():
        if b.is_floating_point() and b.isnan().any():
            raise ValueError(f"the buffer {name} has {int(b.isnan().sum())} of {b.numel()} values that are NaN: load "
                             "or train the model again")
    if not any(p.dtype in FLOATS for p in parameters.values()):
        raise ValueError(f"{type(model).__name__} has no weights: there is nothing to mask or to train")
    return model


def takes_train_mode(model: nn.Module, x: Tensor) -> bool:
    """Whether `model` returns for images `x` [B, ...] in train mode a tensor of the shape that it returns in eval mode.

    If not (some return the answers of auxiliary heads as well, or ask for labels), `train_mode` leaves out its own
    code. Raises ValueError if it returns something else even then.
    """
    model, x = copy.deepcopy(model), torch.cat([x[:1], x[:1]])

    def shape() -> torch.Size | None:
        with torch.no_grad(), torch.random.fork_rng([x.device] if x.is_cuda else []):
            try:
                return getattr(model(x), "shape", None)
            except Exception:  # whatever a model's forward raises in a mode that it is not asked in alone
                return None
    model.eval()
    wanted = shape()
    for whole in (True, False):
        train_mode(model, whole)
        if shape() == wanted:
            return whole
    raise ValueError(f"{type(model).__name__} does not return in train mode what it does in eval mode, also with only "
                     "its layers in train mode: wrap it in a module that returns logits [B, outputs] in both")


def takes_one(model: nn.Module, x: Tensor, whole: bool) -> bool:
    """Whether `model` in train mode takes a single one of images `x` [B, ...]; batch norm of one value does not."""
    model = copy.deepcopy(model)
    train_mode(model, whole)
    with torch.no_grad(), torch.random.fork_rng([x.device] if x.is_cuda else []):
        try:
            model(x[:1])
        except ValueError:  # torch's, of batch norm
            return False
    return True


def train_mode(model: nn.Module, whole: bool = True) -> None:
    """Put `model` in train mode; unless `whole`, only its layers (dropout, norms), and not the modules around them."""
    model.train(whole)
    for module in model.modules():
        if not whole and (isinstance(module, nn.MultiheadAttention) or next(module.children(), None) is None):
            module.train()
