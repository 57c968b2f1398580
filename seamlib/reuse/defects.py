"""Defects that travel: inputs that fool a pretrained body, given to the models that were made from it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..evaluate import Batch, Predict, accuracy, chosen, measuring, pair
from ..plain import copyable
from ..records import cache, parameters, runtime
from ..search import lowering

PER_SEED = 100003  # seeds of their own for so many batches
TARGET = 1000.0  # what the attack pushes the first feature to; the others to 0
ROUNDED = 1e-4  # so far resized images may leave [0, 1]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Attack:
    """Projected gradient ascent on the input, within eps of it in every value (L-infinity PGD)."""

    normalised: bool  #: units of eps, step, low and high: of the normalised input, or of pixels in [0, 1]
    eps: float  #: largest change of a value
    step: float  #: change of a value in one iteration
    low: float  #: smallest value that may come out
    high: float  #: largest
    iterations: int = 40  #: steps, >= 1

    def __post_init__(self) -> None:
        parameters.check_types(self)
        for name, ok, allowed in (
            ("eps", self.eps > 0, "above 0"), ("step", self.step > 0, "above 0"),
            ("high", self.high > self.low, f"above low, {self.low}"), ("iterations", self.iterations >= 1, "1 or more"),
        ):
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {allowed}")


ATTACKS = {
    "pixel": Attack(False, 6 / 255, 0.6 / 255, 0.0, 1.0),
    "paper": Attack(True, 0.1, 0.01, -2.2, 2.2),  # SeaM's and ReMoS's
}


def attack(name: str, iterations: int = 40, eps: float | None = None) -> Attack:
    """The attack called `pixel` or `paper`, with so many iterations (1 or more); `eps` (above 0) in place of its own.

    A step is a tenth of eps.
    """
    parameters.check_choice("attack", name, tuple(ATTACKS))
    eps = ATTACKS[name].eps if eps is None else eps
    return replace(ATTACKS[name], iterations=iterations, eps=eps, step=eps / 10)


def feature_loss(features: Tensor, target: Tensor) -> Tensor:
    """-((f_0 - t_0)^2 + 0.1 mean_i>0 (f_i - t_i)^2), mean over the batch; features and target [B, n].

    To be maximised: it is 0 where the features are the target (ReMoS; SeaM takes it over).
    """
    distance = (features - target) ** 2
    return -(distance[:, 0] + 0.1 * distance[:, 1:].mean(1)).mean()


def pgd(predict: nn.Module, x: Tensor, attack: Attack, loss: Loss, target: Tensor, seed: int = 0) -> Tensor:
    """Images near `x` that raise `loss(predict(images), target)`, found by advertorch from a random start.

    `x` [B, C, H, W] in [0, 1], else ValueError; the result has its shape and unit. With `attack.normalised`, `predict`
    must have a module `normalise`, else ValueError; the ball and its bounds are then in what that hands on, so the
    result may leave [0, 1]. `predict` is unchanged; it must be in eval mode. Raises ImportError where advertorch is not
    installed.
    """
    if not (x.is_floating_point() and -ROUNDED <= float(x.min()) <= float(x.max()) <= 1 + ROUNDED):
        raise ValueError(f"images are {str(x.dtype).removeprefix('torch.')} from {float(x.min()):g} to "
                         f"{float(x.max()):g}: they must be real numbers in [0, 1]; divide bytes by 255")
    inner = copy.deepcopy(copyable(predict)).requires_grad_(False)
    lowering.channels_last(inner, x[:1])
    mean, std = _units(inner, attack)
    if attack.normalised:
        inner.get_submodule(_normalise(inner)).forward = nn.Identity().forward
    attacker = _advertorch().LinfPGDAttack(inner, loss_fn=loss, eps=attack.eps, nb_iter=attack.iterations,
                                           eps_iter=attack.step, rand_init=True, clip_min=attack.low,
                                           clip_max=attack.high)
    with runtime.seeded(seed, x.device), measuring(), torch.enable_grad():
        return attacker.perturb((x - mean) / std, target) * std + mean


def craft(body: nn.Module, x: Tensor, attack: Attack, seed: int = 0) -> Tensor:
    """Images near `x` whose features, as `body` [B, C, H, W] -> [B, n] sees them, are far from any that it learned.

    `body`: the pretrained model without its output layer, in eval mode. See `pgd` for units.
    """
    with measuring():
        target = torch.zeros_like(body(x))
    target[:, 0] = TARGET
    return pgd(body, x, attack, feature_loss, target, seed)


def crafted(body: nn.Module, batches: Iterable[Batch], attack: Attack, seed: int = 0, folder: Path | str | None = None,
            on_batch: Callable[[int], Any] | None = None) -> Iterator[Tensor]:
    """`craft` for each batch in turn. They depend on body, images, attack and seed alone, never on a student.

    With `folder` they are kept there, a file a batch, and read again the next time. `on_batch` gets the batch's number
    after each one that was computed.
    """
    digest = runtime.digest(body.state_dict())
    for i, (x, _) in enumerate(batches):
        def make(i: int = i, x: Tensor = x) -> cache.Stored:
            adversarial = craft(body, x, attack, seed * PER_SEED + i)
            if on_batch is not None:
                on_batch(i)
            return {"images": adversarial}, {}
        about = {"body": digest, "images": runtime.digest({"x": x}), "attack": asdict(attack), "seed": seed, "batch": i,
                 "device": x.device.type}
        tensors, _ = cache.cached(folder, "adversarial", __name__, about, make) if folder is not None else make()
        yield tensors["images"].to(x.device)


def noise(body: nn.Module, x: Tensor, attack: Attack, seed: int = 0) -> Tensor:
    """`x` with every value moved by eps, up or down at random, within the attack's bounds: what size alone does."""
    mean, std = _units(body, attack)
    draw = torch.Generator(x.device).manual_seed(seed)
    sign = 2 * torch.randint(2, x.shape, generator=draw, device=x.device) - 1
    return ((x - mean) / std + attack.eps * sign).clamp(attack.low, attack.high) * std + mean


@dataclass(frozen=True)
class Inherited:
    """How a student answers clean and changed images."""

    accuracy: float  #: on the clean ones, in [0, 1]
    rate: float | None  #: share of those it had right that turn wrong, in [0, 1]; None if it had none right
    adversarial_accuracy: float  #: on the changed ones, in [0, 1]
    n: int  #: images


def inheritance(student: Predict, batches: Iterable[Batch], changed: Iterable[Tensor]) -> Inherited:
    """The defect inheritance rate: of the images that `student` has right, the share it has wrong once changed.

    `changed` yields, for each batch of `batches`, its images as an attack on another model left them (`crafted`).
    Raises ValueError if there is no image, not as many batches or images of both, and what `accuracy` raises. (SeaM,
    third research question)
    """
    right = lost = fooled = n = 0
    with measuring():
        for (x, y), other in zip(map(pair, batches), changed, strict=True):
            if len(other) != len(y):
                raise ValueError(f"changed has a batch of {len(other)} for one of {len(y)} images: it must have each "
                                 "of the images, changed, in their order")
            before, after = (found == wanted for found, wanted in (chosen(student, t, y) for t in (x, other)))
            right, n = right + int(before.sum()), n + len(y)
            lost, fooled = lost + int((before & ~after).sum()), fooled + int(after.sum())
    if n == 0:
        raise ValueError("no sample to measure on: the batches are empty")
    return Inherited(right / n, lost / right if right else None, fooled / n, n)


def white_box(student: nn.Module, batches: Iterable[Batch], attack: Attack, seed: int = 0) -> float:
    """Accuracy, in [0, 1], of `student` on images crafted against itself (cross-entropy): how robust it is.

    Beside the rate above it tells "inherits less" from "is robust". Raises ValueError if there is no image.
    """
    return accuracy(student, ((pgd(student, x, attack, F.cross_entropy, y, seed * PER_SEED + i), y)
                              for i, (x, y) in enumerate(batches)))


def _units(model: nn.Module, attack: Attack) -> tuple[Any, Any]:
    """(mean, deviation) that take pixels to the attack's unit."""
    if not attack.normalised:
        return 0.0, 1.0
    constants = model.get_submodule(_normalise(model))
    return constants.mean.clone(), constants.std.clone()  # type: ignore[operator]


def _normalise(model: nn.Module) -> str:
    """Name of the module that normalises; ValueError if there is none."""
    found = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "normalise"]
    if not found:
        raise ValueError(f"{type(model).__name__} has no module called normalise, in whose unit the attack could be: "
                         "use the attack 'pixel'")
    return found[0]


def _advertorch() -> Any:
    """advertorch's attacks. It asks torch for a function that torch removed in 1.9, which none of ours needs."""
    gradcheck: Any = sys.modules["torch.autograd.gradcheck"]
    missing = not hasattr(gradcheck, "zero_gradients")
    if missing:
        gradcheck.zero_gradients = None
    try:
        from advertorch import attacks
    except ImportError as e:
        raise ImportError(f"the attacks need advertorch ({e}): pip install 'seamlib[robustness]'") from e
    finally:
        if missing:
            del gradcheck.zero_gradients
    return attacks
