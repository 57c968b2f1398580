"""Re-engineered models that the authors of SeaM published, in the format of their own code."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..masks.masks import check_shapes
from ..models import new_head
from ..plain import plain
from ..search.found import Pick, Reengineered
from ..trial import first_line

MASK, HEAD = "_mask", "module_head."


def import_seam(path: Path | str, source: nn.Module) -> Reengineered:
    """The re-engineered model in a file of SeaM's own code, as if a search of ours on `source` had found it.

    The file is a pickled dict of score tensors `<parameter>_mask` (a weight is kept where its score is above 0) and of
    the head, ReLU and Linear, `module_head.<n>.weight` and `.bias`. Nothing but tensors is unpickled. Parameter names
    and shapes must be those of `source`; that its weights are those of the search cannot be seen from such a file.

    Raises FileNotFoundError, or ValueError for a file that holds anything else or belongs to another architecture.
    """
    path, source = Path(path), plain(source)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        if zipfile.is_zipfile(path) and (part := zipfile.ZipFile(path).testzip()):  # torch does not look
            raise ValueError(f"its part {part} is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a damaged file looks like one of another protocol
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # what an unpickler meets in a damaged file may be anything
        raise ValueError(f"{path} is not a whole file of tensors ({first_line(e)}): it must be a "
                         "dict of tensors that torch.save wrote") from e
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}: it must be a dict of tensors")
    masks, head = {}, {}
    parameters = dict(source.named_parameters())
    for name, t in content.items():
        if not isinstance(name, str) or not isinstance(t, Tensor):
            raise ValueError(f"{path} holds {name!r}, a {type(t).__name__}: all of it must be tensors by name")
        if name.startswith(HEAD):
            head[name.removeprefix(HEAD)] = t
        elif name.endswith(MASK) and name.removesuffix(MASK) in parameters:
            masks[name.removesuffix(MASK)] = t > 0
        else:
            raise ValueError(f"{path} holds {name!r}, which is neither a mask of a parameter of {type(source).__name__}"
                             f" nor {HEAD}*: it belongs to another architecture")
    try:
        check_shapes({n: tuple(m.shape) for n, m in masks.items()}, {n: tuple(p.shape) for n, p in parameters.items()})
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    layer = {name.rpartition(".")[2]: t for name, t in head.items()}
    if not masks or set(layer) != {"weight", "bias"} or len(head) != 2 or layer["weight"].dim() != 2 or (
            layer["bias"].shape != layer["weight"].shape[:1]):
        raise ValueError(f"{path} holds {len(masks)} masks and a head of {', '.join(head) or 'nothing'}: at least one "
                         "mask, and weight and bias of one linear layer, are needed")
    n_out, n_in = layer["weight"].shape
    return Reengineered(source, new_head(n_in, n_out).to(layer["weight"].dtype), [],
                        {"paper": Pick(-1, masks, {"1.weight": layer["weight"], "1.bias": layer["bias"]})})
