"""A model as an ONNX file, for engines other than torch."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from . import runtime

OPSET = 13  # the newest that DeepSparse 1.8.0 knows in full


def export_onnx(model: nn.Module, example: Tensor, path: Path | str) -> Path:
    """Write `model`, in eval mode, as an ONNX file for inputs of exactly the shape of `example`; return its path.

    The batch size is the example's. Batch normalisation is folded into the convolution before it, which scales whole
    channels: a weight that is zero stays zero. `model` is unchanged; the file is written atomically. Needs the package
    onnx (ModuleNotFoundError says how to get it).
    """
    try:
        import onnx  # noqa: F401 (torch's exporter wants it)
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError("ONNX export needs the package onnx: pip install onnx (beside DeepSparse: "
                                  "pip install onnx==1.14.1 'numpy<2', Python 3.11 or older)") from e
    plain = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with runtime.atomic(path) as part, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that this exporter is the older one
        torch.onnx.export(plain, (example.cpu().contiguous(),), part, opset_version=OPSET, dynamo=False,
                          input_names=["images"], output_names=["logits"])
    return Path(path)
