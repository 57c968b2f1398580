"""A model as an ONNX file, for engines other than torch."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..records import runtime

OPSET = 13  # the newest that DeepSparse 1.8.0 knows in full
TOLERANCE = 1e-4  #: largest difference from torch's logits, over the largest of them, that is taken for rounding


def export_onnx(model: nn.Module, example: Tensor, path: Path | str, *, any_batch: bool = False,
                classes: Sequence[str] = (), about: Mapping[str, str] | None = None) -> Path:
    """Write `model`, in eval mode, as an ONNX file for inputs of exactly the shape of `example`; return its path.

    With `any_batch` the number of images may be another. What the model does to an image first (as `models.Normalise`)
    is inside. Batch normalisation is folded into the convolution before it, which scales whole channels: a weight that
    is zero stays zero. `classes`, as a JSON list, and `about` (such as where the weights are from) are the file's
    metadata. The file is run under onnxruntime on `example`, and written, atomically, only if the logits are torch's.

    `model` is unchanged. Raises ModuleNotFoundError where onnx or onnxruntime is missing, with how to get them, and
    ValueError if the file answers differently.
    """
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(f"ONNX export needs the package {e.name}: pip install onnx onnxruntime (beside "
                                  "DeepSparse: pip install onnx==1.14.1 'numpy<2', Python 3.11 or older)") from e
    plain = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example = example.cpu().contiguous()
    with runtime.atomic(path) as part, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that this exporter is the older one
        axes = {"images": {0: "batch"}, "logits": {0: "batch"}} if any_batch else None
        torch.onnx.export(plain, (example,), part, opset_version=OPSET, dynamo=False, input_names=["images"],
                          output_names=["logits"], dynamic_axes=axes)
        written = onnx.load(str(part))
        onnx.helper.set_model_props(written, {"classes": json.dumps(list(classes)), **(about or {})})
        onnx.save(written, str(part))
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        for x in (example, torch.cat([example, example.flip(0)])) if any_batch else (example,):
            want = plain(x.clone())
            (found,) = session.run(None, {"images": x.numpy()})
            error = float((torch.from_numpy(found) - want).abs().max()) / (float(want.abs().max()) or 1.0)
            if not error <= TOLERANCE:
                raise ValueError(f"{path}: onnxruntime's logits differ from torch's by {error:.2g} of the largest, for "
                                 f"{len(x)} images: the model does something that ONNX export does not carry over")
    return Path(path)
