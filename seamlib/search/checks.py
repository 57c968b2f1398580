"""What a search is given, checked at its door: before the first step, and not later than that."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ..evaluate import Batch, RestrictedHead, check_answer, measuring, pair
from ..masks.masks import Masks, apply_masks, binarize, masked_call
from ..records import parameters, runtime
from ..structure.gates import Gates
from ..trial import called, first_line
from .settings import Search

OFF = 0.01  # of their size: how far gradients may be from those of a masked copy, by rounding


def first(what: str, batches: Iterable[Batch]) -> Batch:
    """The first batch, checked; the caller's random numbers stay as they were. ValueError if there can be no other."""
    check_repeats(what, batches)
    with torch.random.fork_rng([]):
        batch = next(iter(batches), None)
    if batch is None:
        raise ValueError(f"{what} has no sample to measure accuracy on: its batches are empty")
    return pair(batch)


def check_repeats(what: str, batches: object) -> None:
    """ValueError for an iterator, which can be passed over only once."""
    if isinstance(batches, Iterator):
        raise ValueError(f"{what} is a {type(batches).__name__}, which can be passed over only once: give a list or a "
                         "DataLoader")


def check_length(train: object) -> None:
    """ValueError unless `train` says how many batches it has, one at least, and is no iterator."""
    try:
        length = len(train)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"train is a {type(train).__name__} without a length: give a list or a DataLoader of a data "
                         "set that has one") from None
    if length == 0:
        raise ValueError("train has no batch: give at least one")
    check_repeats("train", train)


def check_images(n: int, epoch: int) -> None:
    """ValueError if the pass over `train` in `epoch`, counted from 0, gave no image; `n`: how many it gave."""
    if n == 0:
        raise ValueError(f"train gave no image in epoch {epoch}: it must give its batches in each pass, again and "
                         "again; give a list or a DataLoader. Where there is batch norm a batch must have two images")


def counted(batches: Iterable[Batch], said: int) -> Iterator[Batch]:
    """The same batches; ValueError if there are more than `said`, or some but fewer: rates and alpha follow that."""
    n = 0
    for n, batch in enumerate(batches, 1):
        if n > said:
            break
        yield batch
    if n not in (0, said):
        raise ValueError(f"train gave {'more' if n > said else n} batches in a pass, and its length says {said}: rates "
                         "and alpha follow that. Give a list or a DataLoader; one of an IterableDataset with workers "
                         "only estimates its length: give num_workers=0 or drop_last=True")


def check_protocol(search: Search, protocol: str) -> None:
    """ValueError unless `protocol` is "crossfit" or "paper", and one under which `search` may stop as it says."""
    parameters.check_choice("protocol", protocol, ("crossfit", "paper"))
    if protocol == "crossfit" and search.patience:
        raise ValueError(f"patience is {search.patience}: it reads the accuracy that is reported, so under crossfit it "
                         "must be 0; use the paper's protocol or set patience to 0")


def check_head(model: nn.Module, head: nn.Module, x: Tensor) -> int:
    """How many outputs `head` has; neither module is changed.

    ValueError if it does not take what `model`, in eval mode, returns for images `x` [B, ...], or returns
    probabilities.
    """
    with measuring():
        logits = model(x[:1])
        if isinstance(head, RestrictedHead):
            check_logits(logits, type(model).__name__)
        own = copy.deepcopy(head)
        own.eval()
        try:
            answers = own(logits)
        except Exception as e:  # whatever its forward raises
            raise ValueError(f"the head does not take what {type(model).__name__} returns, {list(logits.shape)}: "
                             f"{first_line(e)}; give one that does") from e
        check_logits(check_answer(answers, 1), f"the head, {type(head).__name__},")
    return answers.shape[1]


def check_labels(y: Tensor, outputs: int) -> None:
    """ValueError for labels [B] of training images without an output, of so many `outputs`."""
    if len(y) and int(y.min()) < 0:
        raise ValueError(f"train has an image of label {int(y.min())}: labels must be 0 or more")
    if len(y) and int(y.max()) >= outputs:
        raise ValueError(f"train has an image of label {int(y.max())}, and the head has {outputs} "
                         f"output{'s' * (outputs > 1)}: give a head with an output for each label, from 0 on")


def check_learns(head: nn.Module, without: bool) -> None:
    """ValueError unless `head` has a weight to train, or the search does `without` epochs of the head alone."""
    if not without and not any(p.requires_grad for p in head.parameters()):
        raise ValueError("the head has no weight that can be trained, and there are epochs that train it alone: set "
                         "requires_grad on one, or head_only_every to 0 and mask the model")


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """What `model` says of images `x` [B, ...]; ValueError if it raises anything, or says it in another form."""
    return check_answer(called(model, x), len(x))


def check_answers(model: nn.Module, x: Tensor) -> None:
    """ValueError unless `model`, frozen and in eval mode, answers images `x` [B, ...] by its own parameters alone."""
    if answer(copy.deepcopy(model), x).requires_grad:
        raise ValueError(f"{type(model).__name__} answers by weights that are not among its parameters, so no mask "
                         "would reach them: hold layers in an nn.ModuleList, weights in an nn.Parameter, and bind no "
                         "forward to another model")


def check_logits(answers: Tensor, whose: str) -> None:
    """ValueError if `answers` [B, outputs] are probabilities: each positive, and of an image they add up to one."""
    if answers.shape[1] > 1 and (answers >= 0).all() and ((answers.float().sum(1) - 1).abs() < 1e-3).all():
        raise ValueError(f"{whose} returns probabilities, which add up to 1: take the softmax at its end off, so that "
                         "it returns logits")


def check_bf16(model: nn.Module, x: Tensor) -> None:
    """ValueError if `model` has an operation that cannot take images `x` [B, ...] in bf16."""
    try:
        with measuring(), runtime.seeded(0, x.device), runtime.autocast(x.device, "bf16"):
            model(x)
    except RuntimeError as e:
        raise ValueError(f"{type(model).__name__} has an operation that cannot run in bf16: {first_line(e)}; set "
                         " precision to 'fp32'") from e


def check_precision(weights: Iterable[tuple[str, Tensor | None]]) -> None:
    """ValueError if one of these weights, named, is of half precision: what is learnt would be rounded away."""
    for name, t in weights:
        if t is not None and t.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"{name} is {str(t.dtype).removeprefix('torch.')}, in which small steps are rounded "
                             "away: give model.float(), a head of float32, and float32 images; precision='bf16' makes "
                             "steps fast without that, and the result may be halved again")


def some_scores(weights: Iterable[tuple[str, Tensor]]) -> Masks:
    """Scores to try a model with: one weight in ten is out, drawn alike each time."""
    draw = torch.Generator().manual_seed(0)
    return {name: (torch.rand(w.shape, generator=draw) - 0.1).to(w).requires_grad_() for name, w in weights}


def check_masks_reach(model: nn.Module, names: Iterable[str], x: Tensor) -> set[str]:
    """Those of `names` whose weights the answer for images `x` does not use, such as those of auxiliary heads.

    ValueError if one is of a layer that is called, and so used without a gradient; and unless masks do to that answer
    what zeros do in a copy, and gradients reach the scores. They do not where a part of the model is computed anew in
    the backward pass in a way that loses its weights, or where an answer is made without gradients. `model`: frozen, in
    eval mode; it is unchanged.
    """
    model, what = copy.deepcopy(model), type(model).__name__
    scores = some_scores((name, model.get_parameter(name)) for name in names)
    if not scores:
        return set()
    own = apply_masks(copy.deepcopy(model), binarize(scores))
    weights = {name: own.get_parameter(name).requires_grad_() for name in scores}
    used = {name: False for name, layer in own.named_modules() if next(layer.children(), None) is None}
    for name in used:
        own.get_submodule(name).register_forward_hook(lambda *_, name=name: used.update({name: True}))
    images = x.clone().requires_grad_(x.is_floating_point())  # without, some checkpointing gives no gradient at all
    with torch.backends.cudnn.flags(enabled=False):  # whose recurrent layers have no gradient in eval mode
        for call in (lambda: masked_call(model, scores, x), lambda: own(images)):
            with runtime.seeded(0, x.device):
                z = call()
                if z.requires_grad:
                    z[z.isfinite()].float().square().mean().backward()
    pairs = [(score.grad, None if (grad := weights[name].grad) is None else
              (grad * model.get_parameter(name)).clamp(-1, 1)) for name, score in scores.items()]
    if all(found is None for found, _ in pairs):
        raise ValueError(f"no gradient of what {what} returns reaches the weights that are to be masked: is it "
                         "computed under no_grad, by a reentrant checkpoint (give use_reentrant=False), or by "
                         "weights of another module?")
    if apart(pairs, OFF):
        raise ValueError(f"the gradients of masks on {what} are not those of a masked copy: a part of it is "
                         "computed anew in the backward pass; switch checkpointing off, or give it use_reentrant=False")
    unused = {name for name, score in scores.items() if score.grad is None}
    if called_on := [name for name in unused if used.get(name.rpartition(".")[0])]:
        raise ValueError(f"no gradient of what {what} returns reaches {min(called_on)}, though its layer is called: it "
                         "is computed under no_grad, or its result is not used; leave it out of names")
    return unused


def apart(pairs: Iterable[tuple[Tensor | None, Tensor | None]], tolerance: float) -> bool:
    """Whether two sets of gradients differ by more than `tolerance` of their size, or one lacks what the other has."""
    off = size = 0.0
    for a, b in pairs:
        if a is None or b is None:
            if a is not b:
                return True
        else:
            off, size = off + float((a - b).square().sum()), size + float(b.square().sum())
    return not off <= tolerance**2 * size


def check_gated(names: Iterable[str], layers: Iterable[str]) -> None:
    """ValueError if one of `layers`, whose channels have gates, is not among the `names` to be masked."""
    if left := set(layers) - set(names):
        raise ValueError(f"names leaves {min(left)} out: a search for structure masks all convolutions and linear "
                         "layers, as a channel is worth what reads it")


def check_structure(structure: float, gates: Gates) -> None:
    """ValueError if no channel has a gate, or if less of what channels cost can go than `structure` asks for."""
    if not gates.values.numel():
        raise ValueError(f"structure is {structure:g}, but no channel of this model can go: it has no convolution or "
                         "linear layer that `compact` follows between others; give 0, for a mask without structure")
    most = 1 - float(gates.cost(torch.zeros_like(gates.values)))
    if structure > most:
        raise ValueError(f"structure is {structure:g}, but at most {math.floor(1000 * most) / 1000:g} of what the "
                         "channels of this model cost can go, with nothing left that tells images apart: the others "
                         "must stay, as they are in grouped convolutions, or read by attention, layer norms or what "
                         "else `compact` does not follow. Give far less, or 0 for a mask without structure; ResNet, "
                         "VGG, MobileNet and EfficientNet can lose most")


def check_names(names: Iterable[str], norms: Iterable[str]) -> None:
    """ValueError if a parameter of one of `norms`, batch norms that adapt, is among the `names` to be masked."""
    if masked := {f"{norm}.{key}" for norm in norms for key in ("weight", "bias")} & set(names):
        raise ValueError(f"names has {min(masked)!r}, of a batch norm that is to adapt: it cannot be masked as well; "
                         "leave it out, or search with norms='frozen'")
