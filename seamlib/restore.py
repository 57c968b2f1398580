"""Models back from their records: problem, source model, and masks with heads or a fine-tuned student."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from . import models
from .masks.file import load_masks
from .problems import data, tasks
from .records import parameters, runtime
from .records.records import Record, find
from .search.found import Pick, Reengineered

CHOICES = ("target_class", "target_superclass_idx", "classes", "n_classes", "seed", "shots")  # they make the problem
loaded = functools.lru_cache(1)(data.load)  # many records of one data set: read it once


class Restored(NamedTuple):
    """What a direct-reuse record is about; all on the CPU."""

    source: data.Source  #: the data set
    model: nn.Module  #: the untouched source model
    task: tasks.Task  #: the target problem
    found: Reengineered  #: its picks, without history


class RestoredStudent(NamedTuple):
    """What an indirect-reuse record is about; all on the CPU, the models in eval mode."""

    source: data.Source  #: the target's data set
    model: nn.Module  #: the untouched source model, with its own outputs
    body: nn.Module  #: the same without its output layer: what attacks are crafted on
    problem: tasks.Transfer  #: the target's images
    student: nn.Module  #: the fine-tuned model


class Answering(NamedTuple):
    """The models that a record of direct or indirect reuse has made, and the images to try them on; on the CPU."""

    test: data.Samples
    models: dict[str, nn.Module]  #: "student"; or "restricted", the original so, and each pick
    source: nn.Module  #: the untouched source model, with its own outputs
    classes: tuple[int, ...]  #: the source model's class of each label; none where the labels are not of its classes


def source(record: Record, root: Path | str) -> data.Source:
    """Data set (of the target problem) of `record`, whose paths are relative to `root`.

    Raises FileNotFoundError where it is not at hand, ValueError where it is not that of the record.
    """
    p = record.parameters
    found = loaded(p["dataset"], parameters.place(p["data"], root), base=root, size=p.get("size", 0),
                   own=models.size(p["model"]))
    _same(record, "data", found.digest)
    return found


def source_model(record: Record, root: Path | str) -> tuple[data.Source, nn.Module]:
    """Data set (of the target problem) and source model of `record`, whose paths are relative to `root`.

    Raises FileNotFoundError where they are not at hand, ValueError where they are not those of the record.
    """
    p, root, images = record.parameters, Path(root), source(record, root)
    name = f"{p['model']}-{p.get('source', p['dataset'])}"
    given = Path(weights_file(p, root) or root)
    try:  # any file will do: the digest says whether its weights are the same
        model = models.pretrained(
            name, parameters.place(p["data"], root), given if given.is_file() else "",
            trained=(parameters.place(p["runs"], root), root / "book/results"),
            n_classes=None if "source" in p else len(images.classes))
    except OSError as e:
        raise FileNotFoundError(f"the weights of {name} are not at hand ({e})") from e
    _same(record, "weights", runtime.digest(model.state_dict()))
    return images, model


def weights_file(p: Mapping[str, Any], root: Path | str) -> Path | str:
    """The file with the source model's weights that the parameters `p` of a notebook name: what the record `planted`
    has left, or `weights`; empty where they name none. Paths are relative to `root`.

    Raises FileNotFoundError where there is no such record.
    """
    if p.get("planted"):
        roots = [parameters.place(p["runs"], root), Path(root) / "book/results"]
        return find(p["planted"], roots).with_suffix(".safetensors")
    return parameters.place(p["weights"], root) if p.get("weights") else ""


def _same(record: Record, what: str, found: str) -> None:
    if found != record.sha256[what]:
        raise ValueError(f"{record.stem} was made with {what} {record.sha256[what][:12]}..., here are "
                         f"{found[:12]}...: no number can be compared")


def restore(record: Record, mask_file: Path | str, root: Path | str) -> Restored:
    """The re-engineered model of a direct_binary or direct_multiclass record, from its masks and its source model.

    Raises FileNotFoundError where weights, data or masks are not at hand, ValueError where they are not those of the
    record.
    """
    images, model = source_model(record, root)
    task = tasks.problem(images, **{k: v for k, v in record.parameters.items() if k in CHOICES})
    stored = load_masks(mask_file, model)
    if stored.digest != record.sha256["masks"]:
        raise ValueError(f"{mask_file} holds masks {stored.digest[:12]}..., the record was made with "
                         f"{record.sha256['masks'][:12]}...")
    picks = {name: Pick(record.results["epoch"][name], mask, stored.heads[name], stored.norms[name])
             for name, mask in stored.masks.items()}
    restricted = record.parameters.get("head") == "restricted"
    head = task.head() if restricted else models.new_head(len(images.classes), task.n_classes)
    return Restored(images, model, task, Reengineered(model, head, [], picks, record.results.get("front", [])))


def save_student(path: Path | str, student: nn.Module) -> tuple[nn.Module, str]:
    """Write a student in float16, atomically; return it as it will be read back, and the digest of its tensors."""
    state = {name: t.detach().cpu().half() if t.is_floating_point() else t.cpu()
             for name, t in student.state_dict().items()}
    with runtime.atomic(path) as part:
        part.write_bytes(safetensors.torch.save(state))
    rounded = copy.deepcopy(student)
    rounded.load_state_dict({name: _float32(t) for name, t in state.items()})
    return rounded, runtime.digest(state)


def restore_student(record: Record, student_file: Path | str, root: Path | str) -> RestoredStudent:
    """The student of an indirect_reuse record, from the file that save_student left, and what it was made from.

    Raises FileNotFoundError where source weights, data or student are not at hand, ValueError where they are not those
    of the record.
    """
    p = record.parameters
    images, model = source_model(record, root)
    state = models.read_weights(student_file)
    if (found := runtime.digest(state)) != record.sha256["student"]:
        raise ValueError(f"{student_file} holds a student {found[:12]}..., the record was made with "
                         f"{record.sha256['student'][:12]}...")
    body, n_features = models.split(model)
    problem = tasks.transfer(images, p["seed"], p["shots"], p["protocol"])
    student = models.student(body, n_features, problem.n_classes, p["dropout"])
    models.load_weights(student, {name: _float32(t) for name, t in state.items()})
    return RestoredStudent(images, model, body, problem, student.eval())


def answering(record: Record, file: Path | str, root: Path | str) -> Answering:
    """What answers in a record of direct or indirect reuse, whose masks or student are in `file`.

    Raises what `restore` and `restore_student` do.
    """
    if "student" in record.sha256:
        made = restore_student(record, file, root)
        return Answering(made.problem.test, {"student": made.student}, made.model, ())
    of = restore(record, file, root)
    picks = {name: of.found.module(name) for name in of.found.picks}
    return Answering(of.task.test, {"restricted": of.task.original_restricted(of.model), **picks}, of.model,
                     of.task.classes)


def _float32(t: Tensor) -> Tensor:
    return t.float() if t.dtype == torch.float16 else t
