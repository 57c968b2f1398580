"""A model as an ONNX file, for engines other than torch."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from ..evaluate import measuring
from ..records import runtime
from ..trial import answer, difference, first_line
from .cost import traceable

OPSET, NEWEST = 13, 20  # that DeepSparse 1.8.0 knows in full; that the exporter knows
NEW_AXES = 18  # from which on the axes of these are an input; OpenVINO 2026.4 ignores them before (its issue 38238)
REDUCE = {"ReduceL1", "ReduceLogSum", "ReduceLogSumExp"}
TOLERANCE = 1e-4  #: largest difference from torch's logits, over the largest of them, that is taken for rounding
ROUNDINGS = 16  #: the same in rounding steps of the model's precision, where they are more: of half


def export_onnx(model: nn.Module, example: Tensor, path: Path | str, *, any_batch: bool = False,
                classes: Sequence[str] = (), about: Mapping[str, str] | None = None) -> Path:
    """Write `model`, in eval mode, as an ONNX file for inputs of exactly the shape of `example`; return its path.

    With `any_batch` the number of images may be another. What the model does to an image first (as `models.Normalise`)
    is inside. Batch normalisation is folded into the convolution before it, which scales whole channels: a weight that
    is zero stays zero. `classes`, as a JSON list, and `about` (such as where the weights are from) are the file's
    metadata. The opset is the lowest from 13 on (the newest of DeepSparse) that has all of the model's operators, or 18
    where OpenVINO would read one of REDUCE otherwise. The file is run under onnxruntime on `example`, and written,
    atomically, only if the logits are torch's.

    `model` is unchanged. Raises ModuleNotFoundError where onnx or onnxruntime is missing, with how to get them, and
    ValueError if the model has weights that are no parameters, does not take the example, has another number of outputs
    than there are `classes`, or operators or a precision (often float64, always bfloat16) that ONNX or onnxruntime does
    not have, or if the file answers differently.
    """
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(f"ONNX export needs the package {e.name}: pip install onnx onnxruntime (beside "
                                  "DeepSparse: pip install onnx==1.14.1 'numpy<2', Python 3.11 or older)") from e
    name = type(model).__name__
    with traceable(model) as ready, measuring():
        ready.eval()
        ready = ready.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        example = example.cpu().contiguous() if isinstance(example, Tensor) else example
        want = answer(ready, example)
        if torch.bfloat16 in (want.dtype, example.dtype):
            raise ValueError(f"{name} computes in bfloat16, which onnxruntime does not: export model.float(), with "
                             "example.float()")
        if isinstance(classes, str) or (classes and len(classes) != want.shape[-1]):
            raise ValueError(f"classes are {classes!r}: they must be a list of {want.shape[-1]} names, one for each "
                             f"output of {name}")
        with runtime.atomic(path) as part:
            _write(ready, example, part, any_batch)
            written = onnx.load(str(part))
            onnx.helper.set_model_props(written, {"classes": json.dumps(list(classes)),
                                                  **{key: str(text) for key, text in (about or {}).items()}})
            onnx.save(written, str(part))
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4  # what it complains of is raised as well
            for x in [example, torch.cat([example, example.flip(0)]), example[:1]][:3 if any_batch else 1]:
                want = answer(ready, x)
                try:
                    session = onnxruntime.InferenceSession(str(part), options, providers=["CPUExecutionProvider"])
                    found = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
                except Exception as e:  # it has a class of its own for each kind
                    cure = "without any_batch" if x.dtype == torch.float32 else "model.float(), with example.float()"
                    raise ValueError(f"onnxruntime cannot run {name} for {len(x)} images of {x.dtype} ({first_line(e)})"
                                     f": export {cure}") from e
                _compare(found, want, f"{path}: onnxruntime's logits, for {len(x)} images,")
    return Path(path)


def _write(model: nn.Module, example: Tensor, path: Path, any_batch: bool) -> None:
    """Export with the lowest opset that has all operators as every engine reads them; ValueError if none has."""
    import onnx
    axes = {"images": {0: "batch"}, "logits": {0: "batch"}} if any_batch else None
    whole = nn.Sequential(model).eval()  # takes images alone: the exporter makes inputs of other arguments as well
    for opset in range(OPSET, NEWEST + 1):
        try:
            # the exporter prints the whole graph when it fails, whatever it is told about its log
            with mock.patch.object(torch._C, "_jit_onnx_log"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that this exporter is the older one
                torch.onnx.export(whole, (example,), path, opset_version=opset, dynamo=False, input_names=["images"],
                                  output_names=["logits"], dynamic_axes=axes)
            if opset >= NEW_AXES or REDUCE.isdisjoint(node.op_type for node in onnx.load(str(path)).graph.node):
                return
        except Exception as e:  # whatever tracing raises
            if not isinstance(e, torch.onnx.errors.UnsupportedOperatorError) or opset == NEWEST:
                raise ValueError(f"{type(model).__name__} cannot be written as ONNX, opset {opset} ({first_line(e)}): "
                                 "write that part of it with other operators") from e


def _compare(found: Tensor, want: Tensor, whose: str) -> None:
    """ValueError if the two differ by more than rounding in their precision."""
    rounding = max(TOLERANCE, ROUNDINGS * torch.finfo(want.dtype).eps if want.is_floating_point() else 0)
    error = difference(found, want) if found.shape == want.shape else math.inf
    if not error <= rounding:
        raise ValueError(f"{whose} differ from torch's by {error:.2g} of the largest: the model does something that "
                         "ONNX export does not carry over")
