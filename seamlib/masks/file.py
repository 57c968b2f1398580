"""The mask file: at most one bit a weight, with heads, norms, the model it belongs to, and seals against edits."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..plain import plain
from ..records import runtime
from .masks import Masks, check_shapes
from .norms import Norms

SCHEMA = "seamlib-masks-4"
READABLE = ("seamlib-masks-2", "seamlib-masks-3", SCHEMA)  # 2: no classes and preprocessing; 3: no norms


class MaskFile(NamedTuple):
    """Content of a mask file."""

    masks: dict[str, Masks]  #: pick name -> parameter name -> boolean mask
    heads: dict[str, dict[str, Tensor]]  #: pick name -> state_dict of the head
    source: str  #: name of the source model
    weights: str  #: digest of its state_dict
    digest: str  #: digest of the file's own tensors
    classes: tuple[str, ...] = ()  #: name of each target label, if the file says them
    preprocessing: Mapping[str, Any] = {}  #: what an image goes through before the model, if the file says it
    norms: Mapping[str, Norms] = {}  #: pick name -> scales and shifts of batch norms; of each pick, maybe none
    own_head: bool = False  #: whether the head is none that the library makes


class Masked(Protocol):
    """Anything with boolean masks by parameter name, the state_dict of a head, and norms: a pick of a search."""

    @property
    def masks(self) -> Masks: ...
    @property
    def head(self) -> dict[str, Tensor]: ...
    @property
    def norms(self) -> Norms: ...


def save_masks(path: Path | str, picks: Mapping[str, Masked], *, source: str, weights: str,
               classes: Sequence[str] = (), preprocessing: Mapping[str, Any] | None = None,
               unsaved: Mapping[str, Any] | None = None, own_head: bool = False) -> str:
    """Write masks, heads and norms to one safetensors file, at most one bit a weight; return its digest.

    `picks` maps a name to a pick; equal ones are stored once. `source` and `weights`
    (the digest of the source model's state_dict) say what the masks belong to, `classes` the names of the target
    labels, `preprocessing` (JSON values) what is done to an image before, `unsaved` is what `unsaved` says of the
    source, and `own_head` says that its head is none that the library makes. Written atomically.

    Bits are packed; those of each further pick are stored as the difference from the pick before, and all are
    deflated. The digest is over the packed bits, the heads and the norms, so it does not depend on the compressor.
    """
    shapes = {n: list(m.shape) for n, m in next(iter(picks.values())).masks.items()}
    tensors: dict[str, Tensor] = {}
    stored: dict[str, str] = {}
    where: dict[str, str] = {}
    for pick, found in picks.items():
        nothing = torch.zeros(0, dtype=torch.bool)  # there may be no mask: the head alone was trained
        bits = np.packbits(torch.cat([nothing, *(found.masks[n].cpu().reshape(-1) for n in shapes)]).numpy())
        group = {"masks": torch.from_numpy(bits),
                 **{f"head.{k}": v.detach().cpu().contiguous().clone() for k, v in found.head.items()},
                 **{f"norms.{k}": v.detach().cpu().contiguous().clone() for k, v in found.norms.items()}}
        first = stored.setdefault(runtime.digest(group), pick)
        where[pick] = first
        if first == pick:
            tensors |= {f"{pick}/{k}": v for k, v in group.items()}
    own = runtime.digest(tensors)
    meta = {"schema": SCHEMA, "source": source, "weights": weights, "shapes": shapes, "picks": where, "digest": own,
            "classes": list(classes), "preprocessing": dict(preprocessing or {}),
            **({"unsaved": dict(unsaved)} if unsaved else {}), **({"own_head": True} if own_head else {})}
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
        heads, norms = ({pick: {k.removeprefix(f"{first}/{part}."): v for k, v in tensors.items()
                                if k.startswith(f"{first}/{part}.")} for pick, first in meta["picks"].items()}
                        for part in ("head", "norms"))
        found = MaskFile(masks, heads, str(meta["source"]), str(meta["weights"]), meta["digest"],
                         tuple(meta.get("classes", ())), dict(meta.get("preprocessing", {})), norms,
                         bool(meta.get("own_head")))
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError, zlib.error) as e:
        raise ValueError(f"{path} was edited or damaged ({e}): make it again") from e
    if not whole:
        raise ValueError(f"{path} was edited: its content does not have the digest it states; make it again")
    if model is not None:
        model = plain(model)
        parameters = {n: tuple(p.shape) for n, p in model.named_parameters()}
        check_shapes({n: tuple(s) for n, s in meta["shapes"].items()}, parameters)
        if (these := runtime.digest(model.state_dict())) != found.weights:
            raise ValueError(f"{path} was made for {found.source} with weights {found.weights[:12]}..., but these "
                             f"are {these[:12]}...: load the weights that the mask belongs to")
        hidden = unsaved(model)
        for name, (shape, *numbers) in meta.get("unsaved", {}).items():
            if name in hidden and hidden[name][0] == shape and not np.allclose(numbers, hidden[name][1:], 1e-3, 1e-6):
                raise ValueError(f"{path} was made for {found.source} with another buffer {name}, which its state_dict "
                                 "leaves out (the mean or deviation of images, perhaps): make the model as it was then")
    return found


def unsaved(model: nn.Module) -> dict[str, list[Any]]:
    """Shape, mean and deviation of each buffer of `model` that its state_dict leaves out (`persistent=False`).

    No digest: of those that a forward fills, such as tables of positions, the last bits differ between machines.
    """
    saved = model.state_dict()
    hidden = {name: b.double().nan_to_num(0, 0, 0) for name, b in model.named_buffers()
              if name not in saved and b.numel() and not b.is_complex()}
    return {name: [list(b.shape), float(b.mean()), float(b.std(correction=0))] for name, b in hidden.items()}


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
