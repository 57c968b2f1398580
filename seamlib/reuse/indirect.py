"""Indirect reuse: re-engineer a pretrained body for a new target, then fine-tune what is left (SeaM)."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import models
from ..masks.masks import Masks, apply_masks, drawn
from ..plain import sound
from ..problems import data, stream
from ..problems.tasks import Transfer
from ..records import cache, parameters, runtime
from ..search.found import Epoch
from ..search.loop import reengineer
from ..search.settings import Search
from . import remos
from .finetune import History, Training, finetune

METHODS = ("standard", "seam", "retrain", "remos", "random")


@dataclass(frozen=True)
class Reuse:
    """Parameters of indirect reuse. The defaults are the paper's (ResNet18); its epochs are 300 throughout."""

    method: str = "seam"  #: one of METHODS
    lr_s1_output_layer: float = 0.1  #: step 1 (the output layer alone): SGD's rate, > 0
    lr_s2_output_layer: float = 0.001  #: step 2 (the search): Adam's rate for the output layer, > 0
    lr_mask: float = 0.05  #: step 2: Adam's rate for the scores, > 0
    alpha: float = 0.5  #: step 2: weight of the kept fraction in the loss, >= 0
    prune_threshold: float = 0.6  #: share of the body's weights to remove, in [0, 1]; of convolutions' under remos
    lr_s3_output_layer: float = 0.05  #: step 3 (everything): SGD's rate for the output layer, > 0
    lr_s3_hidden_layer: float = 0.005  #: step 3: SGD's rate for the body, >= 0; 0: the output layer alone
    momentum: float = 0.0  #: SGD's, in [0, 1)
    weight_decay: float = 1e-4  #: SGD's, >= 0
    dropout: float = 0.0  #: on the features, in [0, 1)
    epochs_s1: int = 300  #: passes of step 1, >= 1
    epochs_s2: int = 300  #: most passes of step 2, which stops when prune_threshold is reached, >= 1
    epochs_s3: int = 300  #: passes of step 3, of standard fine-tuning and of retraining, >= 1
    patience: int = 30  #: epochs without a better one before a step of seam stops (not the other methods); 0: never
    schedule: str = "constant"  #: of SGD's rates: "constant" (the paper's) or "cosine"
    batch_size: int = 64  #: images a step, >= 1
    precision: str = "fp32"  #: of the training steps: "auto", "fp32" or "bf16", see `records.runtime.precision`
    seed: int = 0  #: draws new layers, the order, the crops and dropout

    def __post_init__(self) -> None:
        parameters.check_types(self)
        parameters.check_choice("method", self.method, METHODS)
        if not 0 <= self.prune_threshold <= 1:
            raise ValueError(f"prune_threshold is {self.prune_threshold}: it must be in [0, 1]")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be in [0, 1)")
        for step, check in (("1", lambda: self.training(1)), ("2", self.search), ("3", lambda: self.training(3))):
            try:
                check()
            except ValueError as e:
                raise ValueError(f"step {step}: {e}") from None

    def training(self, step: int) -> Training:
        """The parameters of step 1 or 3 for the supervised loop."""
        first = step == 1
        return Training(
            lr=0.0 if first else self.lr_s3_hidden_layer,
            lr_output=self.lr_s1_output_layer if first else self.lr_s3_output_layer,
            epochs=self.epochs_s1 if first else self.epochs_s3, patience=self.patience if self.method == "seam" else 0,
            momentum=self.momentum, weight_decay=self.weight_decay, batch_size=self.batch_size,
            schedule=self.schedule, precision=self.precision, seed=self.seed)

    def search(self) -> Search:
        """The parameters of step 2 for the search."""
        return Search(
            lr_mask=self.lr_mask, lr_head=self.lr_s2_output_layer, alpha=self.alpha, epochs=self.epochs_s2,
            batch_size=self.batch_size, head_only_every=0, max_removed=self.prune_threshold, patience=self.patience,
            precision=self.precision, seed=self.seed)


@dataclass(frozen=True)
class Reused:
    """What indirect reuse made."""

    student: nn.Module  #: body, dropout, output layer (see models.student), in eval mode
    masks: Masks  #: boolean, by the body's parameter names; none where nothing was removed
    history: dict[str, History]  #: the epochs of each step that was run, by its name: s1, s2, s3
    masked: nn.Module | None = None  #: seam: what step 2 ended with, masked and not fine-tuned

    def regrown(self) -> float:
        """Share of the removed weights that are not zero in the student, in [0, 1]; 0.0 if none was removed."""
        removed = [self.student.get_parameter(f"body.{name}").cpu()[~mask.cpu()] for name, mask in self.masks.items()]
        total = sum(w.numel() for w in removed)
        return sum(int((w != 0).sum()) for w in removed) / total if total else 0.0


def reuse(body: nn.Module, n_features: int, problem: Transfer, setting: Reuse, *, device: torch.device | str = "cpu",
          flip: bool = True, size: int = 0, folder: Path | str | None = None, about: Mapping[str, Any] | None = None,
          on_epoch: Callable[[str, dict[str, float]], Any] | None = None) -> Reused:
    """A student for `problem` from the pretrained `body` [B, C, H, W] -> [B, n_features], by `setting.method`.

    standard: a new output layer, everything fine-tuned. seam: (1) the output layer alone, while batch norm's
    statistics adapt; (2) the search, on that; (3) the pretrained body again with the mask burnt in, a new output layer,
    everything fine-tuned, so that removed weights may grow again. remos: step 3 with the masks of `remos.relevant`.
    random: step 3 with masks that are drawn, a control. retrain: step 3 on random weights.

    `flip`, `size`: see data.batches. With `folder` each step is kept there under a key of everything that it depends
    on, and unfinished training goes on from its last epoch; `about` must then name problem and data (JSON values).
    `on_epoch` gets the step's name and each epoch's dict. `body` is unchanged; all of its weights are trained, also
    those without requires_grad. Raises ValueError for a folder without
    `about`; SearchStopped and TrainingStopped where a step cannot go on.
    """
    if folder is not None and not about:
        raise ValueError("folder is given without about: name problem and data, or steps of others would be answered")
    device = torch.device(device)
    setting = dataclasses.replace(setting, precision=runtime.precision(setting.precision, device))
    run = _Run(body, n_features, problem, setting, device, flip, size, folder, about, on_epoch)
    if setting.method == "seam":
        first, step_1 = run.output_layer()
        masked, masks, step_2 = run.search(first)
        student, step_3 = run.everything(run.new(masks))
        return Reused(student, masks, {"s1": step_1, "s2": step_2, "s3": step_3}, masked)
    masks = {}
    if setting.method == "remos":
        masks = remos.relevant(run.body, run.batches(problem.train, augmented=False), setting.prune_threshold)
    elif setting.method == "random":
        masks = drawn(run.body, setting.prune_threshold, setting.seed)
    student, step_3 = run.everything(run.new(masks, random=setting.method == "retrain"))
    return Reused(student, masks, {"s3": step_3})


class _Run:
    """The steps of one reuse, each a function of its arguments and the setting alone."""

    def __init__(self, body: nn.Module, n_features: int, problem: Transfer, setting: Reuse, device: torch.device,
                 flip: bool, size: int, folder: Path | str | None, about: Mapping[str, Any] | None,
                 on_epoch: Callable[[str, dict[str, float]], Any] | None):
        self.body = copy.deepcopy(sound(body)).to(device)
        self.body.eval()
        for p in self.body.parameters():
            p.requires_grad_(p.is_floating_point())
        self.n_features, self.problem, self.setting, self.device = n_features, problem, setting, device
        self.flip, self.size, self.folder, self.on_epoch = flip, size, folder, on_epoch
        self.about = {**(about or {}), "device": device.type, "flip": flip, "size": size}

    def batches(self, split: data.Samples, augmented: bool) -> data.Batches | stream.Streamed:
        seed = self.setting.seed if augmented else None
        size = self.setting.batch_size if augmented else 256
        return data.batches(split, size, self.device, seed=seed, flip=self.flip and augmented, size=self.size)

    def new(self, masks: Masks, random: bool = False) -> nn.Module:
        """The pretrained body, masked, or one with random weights, under a new output layer."""
        with runtime.seeded(self.setting.seed, self.device):
            made = models.student(self.body, self.n_features, self.problem.n_classes, self.setting.dropout)
            for name, module in made.named_modules() if random else ():
                reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
                if reset is None and list(module.parameters(recurse=False)):
                    raise ValueError(f"{name}, a {type(module).__name__}, has weights and no way to draw them anew "
                                     "(reset_parameters): this model cannot be retrained from scratch")
                if reset is not None:
                    reset()
        return apply_masks(made, {f"body.{name}": mask for name, mask in masks.items()}).to(self.device)

    def output_layer(self) -> tuple[nn.Module, History]:
        return self._trained("s1", self.new({}), self.setting.training(1))

    def everything(self, made: nn.Module) -> tuple[nn.Module, History]:
        return self._trained("s3", made, self.setting.training(3))

    def _trained(self, step: str, made: nn.Module, training: Training) -> tuple[nn.Module, History]:
        about = {**self.about, "step": step, "training": dataclasses.asdict(training),
                 "dropout": self.setting.dropout, "student": runtime.digest(made.state_dict())}
        checkpoint = Path(self.folder) / f"{step}-{cache.key(__name__, about)}.unfinished" if self.folder else None

        def make() -> cache.Stored:
            student, history = finetune(
                made, self.batches(self.problem.train, True), training, self.batches(self.problem.val, False),
                on_epoch=self._reporter(step), checkpoint=checkpoint)
            return student.state_dict(), {"history": history}
        tensors, values = self._kept(step, about, make)
        if checkpoint:
            checkpoint.unlink(missing_ok=True)
        made.load_state_dict(tensors)
        return made.eval(), values["history"]

    def search(self, first: nn.Module) -> tuple[nn.Module, Masks, list[Epoch]]:
        """Step 2: (what it ended with, masks, history)."""
        setting = self.setting.search()
        head = nn.Sequential(OrderedDict(dropout=first.get_submodule("dropout"), output=first.get_submodule("output")))
        about = {**self.about, "step": "s2", "search": dataclasses.asdict(setting),
                 "dropout": self.setting.dropout, "student": runtime.digest(first.state_dict())}

        same = {**about, "search": {**about["search"], "max_removed": None}}  # other thresholds take the same course
        course = Path(self.folder) / f"s2-course-{cache.key(__name__, same)}.safetensors" if self.folder else None

        def make() -> cache.Stored:
            found = reengineer(
                first.get_submodule("body"), head, self.batches(self.problem.train, True),
                self.batches(self.problem.val, False), setting, on_epoch=self._reporter("s2"), checkpoint=course)
            masks = {f"masks/{name}": mask for name, mask in found.masks.items()}
            return {**masks, **found.picks["paper"].head}, {"history": found.history}
        tensors, values = self._kept("s2", about, make)
        masks = {name.removeprefix("masks/"): t for name, t in tensors.items() if name.startswith("masks/")}
        masked = apply_masks(copy.deepcopy(first), {f"body.{name}": mask for name, mask in masks.items()})
        masked.load_state_dict({name: tensors.get(name, t) for name, t in masked.state_dict().items()})
        return masked, masks, values["history"]

    def _reporter(self, step: str) -> Callable[[dict[str, float]], Any]:
        return lambda epoch: self.on_epoch(step, epoch) if self.on_epoch else None

    def _kept(self, step: str, about: dict[str, Any], make: Callable[[], cache.Stored]) -> cache.Stored:
        return cache.cached(self.folder, step, __name__, about, make) if self.folder else make()
