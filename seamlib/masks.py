"""Masks over the weights of any module: scores, the masked call, and the one file format.

A *score* is a real number beside each weight; the *mask* keeps the weight where its score is above zero.
The module itself is never changed: its weights are replaced for the length of one call.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.func import functional_call

from . import runtime

Masks = dict[str, Tensor]
SCHEMA = "seamlib-masks-3"
READABLE = ("seamlib-masks-2", SCHEMA)  # 2: without classes and preprocessing
NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,  # _NormBase: batch and instance norm
)


def maskable(model: nn.Module, skip: tuple[type[nn.Module], ...] = NORMS) -> list[str]:
    """Names of the parameters that masks cover: all but those of the module types in `skip`.

    Tied weights appear once, under the name that `model.named_parameters()` gives them.
    """
    skipped = {id(p) for m in model.modules() if isinstance(m, skip) for p in m.parameters(recurse=False)}
    return [name for name, p in model.named_parameters() if id(p) not in skipped and p.is_floating_point()]


def new_scores(model: nn.Module, names: Iterable[str] | None = None) -> Masks:
    """Scores of 1 (everything kept) for the parameters `names` (default: `maskable(model)`), each in its shape."""
    parameters = dict(model.named_parameters())
    names = maskable(model) if names is None else list(names)
    if unknown := [n for n in names if n not in parameters]:
        raise ValueError(f"no parameter called {unknown[0]!r} in {type(model).__name__}: see model.named_parameters()")
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
    `offsets` are added to the masked weights of their names (see `fold.fold_norms`).
    """
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return call_with(model, weights | masked_weights(model, scores, offsets), x)


def call_with(model: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """`model(x)` with `weights`, by parameter name, in place of its own, wherever a tied one is used."""
    parameters = dict(model.named_parameters())
    places: dict[int, list[str]] = {}  # of each parameter, once a module, whatever names the module has
    for owner, module in model.named_modules():
        for name, p in module._parameters.items():
            places.setdefault(id(p), []).append(f"{owner}.{name}" if owner else name)
    everywhere = {place: t for name, t in weights.items() for place in places[id(parameters[name])]}
    return functional_call(model, everywhere, (x,), tie_weights=False)


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
    """Random masks of `model` without the share `removed`, in [0, 1], of every layer, rounded: a control."""
    full = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in maskable(model)}
    for mask in full.values():
        mask.view(-1)[:round(removed * mask.numel())] = False
    return shuffled(full, seed)


def largest(model: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """Masks of the same density in every layer that keep the largest weights: pruning by magnitude, without a search.

    As many entries of each of `masks` are True as before, where `model`'s weight has the highest absolute value.
    Raises ValueError for masks of another architecture.
    """
    parameters, found = dict(model.named_parameters()), {}
    check_shapes({n: tuple(m.shape) for n, m in masks.items()}, {n: tuple(p.shape) for n, p in parameters.items()})
    for name, m in masks.items():
        weight = parameters[name].detach().abs().reshape(-1)
        kept = torch.zeros_like(weight, dtype=torch.bool)
        found[name] = kept.scatter_(0, weight.topk(int(m.sum())).indices, True).reshape(m.shape)
    return found


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Burn `masks` into `model`, in place: every weight outside its mask becomes exactly 0. Returns `model`."""
    parameters = dict(model.named_parameters())
    check_shapes({n: tuple(m.shape) for n, m in masks.items()}, {n: tuple(p.shape) for n, p in parameters.items()})
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)
    return model


class MaskFile(NamedTuple):
    """Content of a mask file."""

    masks: dict[str, Masks]  #: pick name -> parameter name -> boolean mask
    heads: dict[str, dict[str, Tensor]]  #: pick name -> state_dict of the head
    source: str  #: name of the source model
    weights: str  #: digest of its state_dict
    digest: str  #: digest of the file's own tensors
    classes: tuple[str, ...] = ()  #: name of each target label, if the file says them
    preprocessing: Mapping[str, Any] = {}  #: what an image goes through before the model, if the file says it


class Masked(Protocol):
    """Anything with boolean masks by parameter name and the state_dict of a head: a pick of a search."""

    @property
    def masks(self) -> Masks: ...
    @property
    def head(self) -> dict[str, Tensor]: ...


def save_masks(path: Path | str, picks: Mapping[str, Masked], *, source: str, weights: str,
               classes: Sequence[str] = (), preprocessing: Mapping[str, Any] | None = None) -> str:
    """Write masks and heads to one safetensors file, at most one bit a weight; return its digest.

    `picks` maps a name to a pick; equal ones are stored once. `source` and `weights`
    (the digest of the source model's state_dict) say what the masks belong to, `classes` the names of the target
    labels, `preprocessing` (JSON values) what is done to an image before. Written atomically.

    Bits are packed; those of each further pick are stored as the difference from the pick before, and all are
    deflated. The digest is over the packed bits and the heads, so it does not depend on the compressor.
    """
    shapes = {n: list(m.shape) for n, m in next(iter(picks.values())).masks.items()}
    tensors: dict[str, Tensor] = {}
    stored: dict[str, str] = {}
    where: dict[str, str] = {}
    for pick, found in picks.items():
        nothing = torch.zeros(0, dtype=torch.bool)  # there may be no mask: the head alone was trained
        bits = np.packbits(torch.cat([nothing, *(found.masks[n].cpu().reshape(-1) for n in shapes)]).numpy())
        group = {"masks": torch.from_numpy(bits),
                 **{f"head.{k}": v.detach().cpu().contiguous().clone() for k, v in found.head.items()}}
        first = stored.setdefault(runtime.digest(group), pick)
        where[pick] = first
        if first == pick:
            tensors |= {f"{pick}/{k}": v for k, v in group.items()}
    own = runtime.digest(tensors)
    meta = {"schema": SCHEMA, "source": source, "weights": weights, "shapes": shapes, "picks": where, "digest": own,
            "classes": list(classes), "preprocessing": dict(preprocessing or {})}
    meta = json.loads(json.dumps(meta))  # as it will be read
    meta["seal"] = _seal(meta)
    before: Any = 0
    for key in [k for k in tensors if k.endswith("/masks")]:
        bits = tensors[key].numpy()
        tensors[key] = _bytes(zlib.compress((bits ^ before).tobytes(), 9))
        before = bits
    with runtime.atomic(path) as part:
        part.write_bytes(safetensors.torch.save(tensors, {"seamlib": json.dumps(meta)}))
    return own


def load_masks(path: Path | str, model: nn.Module | None = None) -> MaskFile:
    """Read a mask file; with `model`, also check that it belongs to exactly these weights.

    Raises FileNotFoundError, or ValueError for a file that is truncated, edited, of another format, or made for
    other weights than the model's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mask file at {path}")
    try:
        with safetensors.safe_open(path, "pt") as f:
            meta = json.loads((f.metadata() or {}).get("seamlib", "{}"))
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, json.JSONDecodeError) as e:
        raise ValueError(f"{path} is not a whole mask file ({e}): copy or compute it again") from e
    if not isinstance(meta, dict) or meta.get("schema") not in READABLE:
        found = meta.get("schema") if isinstance(meta, dict) else meta
        raise ValueError(f"{path} has mask format {found!r}: this version reads {', '.join(READABLE)}")
    if meta.get("seal") != _seal(meta):
        raise ValueError(f"{path} was edited: its metadata are not those that it was sealed with; make it again")
    try:
        _inflate(tensors, meta)
        whole = runtime.digest(tensors) == meta["digest"]
        masks = {pick: _unpack(tensors[f"{first}/masks"], meta["shapes"]) for pick, first in meta["picks"].items()}
        heads = {pick: {k.removeprefix(f"{first}/head."): v for k, v in tensors.items()
                        if k.startswith(f"{first}/head.")} for pick, first in meta["picks"].items()}
        found = MaskFile(masks, heads, str(meta["source"]), str(meta["weights"]), meta["digest"],
                         tuple(meta.get("classes", ())), dict(meta.get("preprocessing", {})))
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError, zlib.error) as e:
        raise ValueError(f"{path} was edited or damaged ({e}): make it again") from e
    if not whole:
        raise ValueError(f"{path} was edited: its content does not have the digest it states; make it again")
    if model is not None:
        parameters = {n: tuple(p.shape) for n, p in model.named_parameters()}
        check_shapes({n: tuple(s) for n, s in meta["shapes"].items()}, parameters)
        if (these := runtime.digest(model.state_dict())) != found.weights:
            raise ValueError(f"{path} was made for {found.source} with weights {found.weights[:12]}..., but these "
                             f"are {these[:12]}...: load the weights that the mask belongs to")
    return found


def _inflate(tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Replace the masks of each pick, in place, by their packed bits: as many as the shapes say, and no more."""
    n = -(-sum(math.prod(shape) for shape in meta["shapes"].values()) // 8)
    before: Any = 0
    for pick in dict.fromkeys(meta["picks"].values()):
        deflated = zlib.decompressobj()
        bits = np.frombuffer(deflated.decompress(tensors[f"{pick}/masks"].numpy().tobytes(), n + 1), np.uint8)
        if len(bits) != n or not deflated.eof:
            raise ValueError(f"pick {pick!r} does not have {n} bytes of bits")
        before = bits ^ before
        tensors[f"{pick}/masks"] = torch.from_numpy(before)


def _seal(meta: Mapping[str, Any]) -> str:
    """SHA-256 over all metadata but the seal itself."""
    text = json.dumps({k: v for k, v in meta.items() if k != "seal"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _unpack(packed: Tensor, shapes: Mapping[str, list[int]]) -> Masks:
    sizes = [int(np.prod(s)) for s in shapes.values()]
    flat = torch.from_numpy(np.unpackbits(packed.numpy(), count=sum(sizes)).astype(bool))
    return {n: m.reshape(s) for (n, s), m in zip(shapes.items(), flat.split(sizes), strict=True)}


def check_shapes(masks: Mapping[str, tuple[int, ...]], parameters: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError unless each of `masks` has the name and the shape of one of `parameters`."""
    for name, shape in masks.items():
        if name not in parameters:
            raise ValueError(f"the masks cover {name!r}, which this model does not have: they belong to another "
                             "architecture")
        if shape != parameters[name]:
            raise ValueError(f"the mask of {name!r} has shape {shape}, the model's weight {parameters[name]}: they "
                             "belong to another architecture")
