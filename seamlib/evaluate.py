"""Accuracy, and what the untouched original reaches on a smaller problem."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import index
from typing import Protocol

import torch
from torch import Tensor, nn

from .plain import check_evaluating

Predict = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, Tensor]
LARGEST = torch.finfo(torch.float32).max


class Loader(Protocol):
    """Batches (images, labels) that can be passed over again and again, and how many there are in a pass."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Context of every measurement: no gradients, and convolutions in full fp32 (no TF32 on CUDA)."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def pair(batch: object) -> Batch:
    """(images [B, ...], labels int64 [B]) of a batch; ValueError, with the cure, for anything else."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = f"{type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        raise ValueError(f"a batch is a {what}: it must be a pair, (images, labels)")
    for what, t in zip(("images", "labels"), batch, strict=True):
        if not isinstance(t, Tensor):
            raise ValueError(f"the {what} of a batch are a {type(t).__name__}: they must be one tensor; wrap the model "
                             "in a module that takes one, or stack them")
    x, y = batch
    if y.dim() != 1 or x.dim() == 0 or len(y) != len(x):
        raise ValueError(f"a batch has labels of shape {list(y.shape)} for images of shape {list(x.shape)}: labels "
                         "must be [B], one for each image; a column [B, 1] becomes that by labels.flatten()")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels are {str(y.dtype).removeprefix('torch.')}: they must be whole numbers from 0 on; "
                         "convert them by labels.long()")
    return x, y.long()


def check_answer(answer: object, n: int) -> Tensor:
    """`answer`, which a model gave to `n` images; ValueError unless it is a tensor [n, outputs] without a NaN."""
    if not isinstance(answer, Tensor):
        raise ValueError(f"the model returns a {type(answer).__name__}: it must return one tensor [B, outputs]; wrap "
                         "it in a module that does")
    if answer.dim() != 2 or len(answer) != n or answer.shape[1] == 0:
        raise ValueError(f"the model returns {list(answer.shape)} for {n} image{'s' * (n > 1)}: it must be "
                         "[B, outputs]; wrap it in a module that returns that")
    if answer.isnan().any():
        raise ValueError("the model returns NaN: look for it in the images, in the weights and in the running averages "
                         "of its norms")
    return answer


def chosen(predict: Predict, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(The arg max of `predict(x)`, `y` on its device), both [B].

    Raises ValueError for an answer that is not [B, outputs] or has a NaN, and for a label without an output.
    """
    answer = check_answer(predict(x), len(x))
    y = y.to(answer.device)
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < answer.shape[1]:
        raise ValueError(f"there are labels from {int(y.min())} to {int(y.max())}, and {answer.shape[1]} outputs: "
                         "labels must be 0 or more, and below the number of outputs")
    return answer.argmax(1), y


def _check_evaluating(predict: Predict) -> None:
    """ValueError for a module in train mode; a function is asked as it is."""
    if isinstance(predict, nn.Module):
        check_evaluating(predict, otherwise="; to measure it as it is, give lambda x: model(x)")


def count_right(predict: Predict, batches: Iterable[Batch]) -> tuple[int, int]:
    """(samples whose label is the arg max of `predict(x)`, samples), in full fp32; ValueError if there is none, or if
    `predict` is a module in train mode."""
    _check_evaluating(predict)
    right = total = 0
    with measuring():
        for x, y in map(pair, batches):
            found, y = chosen(predict, x, y)
            right += int((found == y).sum())
            total += len(y)
    if total == 0:
        raise ValueError("no sample to measure accuracy on: the batches are empty")
    return right, total


def accuracy(predict: Predict, batches: Iterable[Batch]) -> float:
    """Share of samples, in [0, 1], whose label is the arg max of `predict(x)`.

    `predict` maps images [B, ...] to outputs [B, n] and must already be in eval mode; `batches` yields (images,
    whole numbers [B]). Raises ValueError for a module in train mode, which would also change its running averages, if
    there is no sample, for labels or outputs of another shape, labels without an output, and outputs that are NaN.
    """
    right, total = count_right(predict, batches)
    return right / total


def whole_number(value: object) -> int:
    """`value` as an int; TypeError unless it is a whole number, of Python, numpy or torch, and no truth value."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        raise TypeError
    return index(value)  # type: ignore[arg-type]


def _no_output(logits: Tensor, number: Tensor) -> ValueError:
    """What to raise where `logits` have no column of class `number`."""
    return ValueError(f"the model returns {list(logits.shape)}, no output for class {int(number)}: it must return "
                      "[B, outputs], and classes are their numbers, from 0 on")


class Restrict(nn.Module):
    """Logits [B, C] of the source classes -> those of `classes` [B, n], in that order."""

    classes: Tensor

    def __init__(self, classes: Sequence[int]):
        super().__init__()
        try:
            numbers = [whole_number(c) for c in classes]
        except TypeError:
            numbers = []
        if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
            raise ValueError(f"classes are {classes!r}: they must be one or more whole numbers from 0 on, each once")
        self.register_buffer("classes", torch.tensor(numbers))

    def forward(self, logits: Tensor) -> Tensor:
        try:  # no comparison, which torch.fx could not trace
            return logits[:, self.classes.to(logits.device)]
        except IndexError as e:
            raise _no_output(logits, self.classes.max()) from e


class AmongAll(Restrict):
    """Logits [B, C] -> [B, n + 1]: those of `classes`, in that order, then the highest of all others.

    The arg max is the position of the class that is chosen among all, or n if it is another.
    """

    def forward(self, logits: Tensor) -> Tensor:
        own = super().forward(logits)
        others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        others[self.classes] = False
        none = logits.new_full((len(logits), 1), -torch.inf)  # where `classes` are all there are
        return torch.cat([own, torch.cat([logits[:, others], none], 1).amax(1, keepdim=True)], 1)


class OneVsRest(nn.Module):
    """Logits [B, C] -> the two-class answer [other, target], in fp32, to "is it class `target`?".

    Yes if (C - 1) p_t > 1 - p_t, which is what the softmax p says when half of the images, not one in C, are of it.
    """

    target: Tensor

    def __init__(self, target: int):
        super().__init__()
        try:
            number = whole_number(target)
        except TypeError:
            number = -1
        if number < 0:
            raise ValueError(f"target is {target!r}: it must be a whole number from 0 on, of a class")
        self.register_buffer("target", torch.tensor(number))

    def forward(self, logits: Tensor) -> Tensor:
        logits, target = logits.float(), self.target.to(logits.device).reshape(1)
        try:
            return torch.cat([self.rest(logits.index_fill(1, target, -torch.inf)), logits[:, target]], 1)
        except IndexError as e:
            raise _no_output(logits, self.target) from e

    def rest(self, others: Tensor) -> Tensor:
        """[B, 1]: what stands for all others; `others` [B, C] are their logits, and -infinity for the target."""
        # not torch.logsumexp: its ONNX operator needs a newer opset than DeepSparse has, see ship.export; clamped, as
        # infinity less infinity is no number
        high = others.amax(1, keepdim=True).clamp(-LARGEST, LARGEST)
        total = (others - high).exp().sum(1, keepdim=True)
        return high + total.log() - (torch.ones_like(others).sum(1, keepdim=True) - 1).log()


class ArgMaxOrNot(OneVsRest):
    """The same without a correction: yes if the target is the arg max over all C."""

    def rest(self, others: Tensor) -> Tensor:
        return others.amax(1, keepdim=True)


class RestrictedHead(nn.Module):
    """A head that begins as the restricted original: its `answer` (Restrict or OneVsRest), then for each of the `n`
    labels a factor, at first 1, and a shift, at first 0, that are learnt. Takes logits [B, C], returns [B, n].

    Raises ValueError for another kind of answer: a mask file could not say what it was; and for another number of
    labels than the answer has, or less than two.
    """

    def __init__(self, answer: nn.Module, n: int):
        super().__init__()
        if type(answer) not in (Restrict, OneVsRest):
            raise ValueError(f"the answer is a {type(answer).__name__}: a head begins as a Restrict or an OneVsRest")
        if n != (has := len(answer.classes) if isinstance(answer, Restrict) else 2) or n < 2:
            raise ValueError(f"a head of {n!r} labels is to begin as the answer among {has}: they must be as many, and "
                             "two at least; for one class against all others give OneVsRest(class) and 2")
        self.answer, self.scale, self.shift = answer, nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))

    def forward(self, logits: Tensor) -> Tensor:
        return self.answer(logits.to(self.scale.dtype)) * self.scale + self.shift


class _Then(nn.Module):
    """A function that is no module, then a module."""

    def __init__(self, predict: Predict, answer: nn.Module):
        super().__init__()
        self.predict, self.answer = predict, answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.predict(x))


def then(predict: Predict, answer: nn.Module) -> nn.Module:
    """`predict`, then `answer`, as one module, which can be compacted and exported as its parts can.

    It holds `predict` itself, not a copy, in the mode that it is in.
    """
    both = nn.Sequential(predict, answer) if isinstance(predict, nn.Module) else _Then(predict, answer)
    both.training = False  # of `predict` this is its owner's to say
    answer.eval()
    return both


def restrict(predict: Predict, classes: Sequence[int]) -> nn.Module:
    """`predict` with only the outputs of `classes`, in that order: the original with fewer to choose from."""
    return then(predict, Restrict(classes))


def one_vs_rest(predict: Predict, target: int, corrected: bool) -> nn.Module:
    """A many-class `predict` (logits [B, C]) as the answer [other, target] to: is it class `target`?

    Corrected: as `OneVsRest` has it, for a problem half of whose images are; else by the arg max over all C.
    """
    return then(predict, OneVsRest(target) if corrected else ArgMaxOrNot(target))


def probe(model: Predict, train: Iterable[Batch], test: Iterable[Batch]) -> float:
    """Accuracy on `test`, in [0, 1], of a logistic regression on the rectified outputs of `model`, fitted to `train`.

    What an untrained head over a model that stays as it is can reach, without a choice of rates or epochs. `model` maps
    images [B, ...] to outputs [B, n]; batches are (images, labels [B]). Raises ValueError for a module in train mode.
    """
    from sklearn.linear_model import LogisticRegression  # a second to import

    def outputs(batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        parts = [(check_answer(model(x), len(x)).relu().cpu(), y.cpu()) for x, y in map(pair, batches)]
        return torch.cat([z for z, _ in parts]), torch.cat([y for _, y in parts])
    _check_evaluating(model)
    with measuring():
        (x, y), (x_test, y_test) = outputs(train), outputs(test)
    fitted = LogisticRegression(max_iter=2000).fit(x.numpy(), y.numpy())
    return float(fitted.score(x_test.numpy(), y_test.numpy()))


def standard_error(accuracy: float, n: int) -> float:
    """Binomial standard error, in [0, 0.5], of an accuracy measured on `n` samples."""
    return float((accuracy * (1 - accuracy) / n) ** 0.5)
