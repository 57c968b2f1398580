"""Accuracy, and what the untouched original reaches on a smaller problem."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

Predict = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


class Loader(Protocol):
    """Batches (images, labels) that can be passed over again and again, and how many there are in a pass."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Context of every measurement: no gradients, and convolutions in full fp32 (no TF32 on CUDA)."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def count_right(predict: Predict, batches: Iterable[Batch]) -> tuple[int, int]:
    """(samples whose label is the arg max of `predict(x)`, samples), in full fp32; ValueError if there is none."""
    right = total = 0
    with measuring():
        for x, y in batches:
            found = predict(x).argmax(1)
            right += int((found == y.to(found.device)).sum())
            total += len(y)
    if total == 0:
        raise ValueError("no sample to measure accuracy on: the batches are empty")
    return right, total


def accuracy(predict: Predict, batches: Iterable[Batch]) -> float:
    """Share of samples, in [0, 1], whose label is the arg max of `predict(x)`.

    `predict` maps images [B, ...] to outputs [B, n] and must already be in eval mode; `batches` yields (images,
    labels [B]). Raises ValueError if there is no sample.
    """
    right, total = count_right(predict, batches)
    return right / total


def restrict(predict: Predict, classes: Sequence[int]) -> Predict:
    """`predict` with only the outputs of `classes`, in that order: the original with fewer to choose from."""
    columns = list(classes)
    return lambda x: predict(x)[:, columns]


def among_all(predict: Predict, classes: Sequence[int]) -> Predict:
    """Outputs [B, len(classes) + 1] of `predict`: those of `classes`, in that order, then the highest of all others.

    The arg max is the position of the class that `predict` chooses among all, or len(classes) if it is another.
    """
    columns = list(classes)

    def answer(x: Tensor) -> Tensor:
        logits = predict(x)
        others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        others[columns] = False
        none = logits.new_full((len(logits), 1), -torch.inf)  # where `classes` are all there are
        return torch.cat([logits[:, columns], torch.cat([logits[:, others], none], 1).amax(1, keepdim=True)], 1)
    return answer


def one_vs_rest(predict: Predict, target: int, corrected: bool) -> Predict:
    """A many-class `predict` (logits [B, C]) as the two-class answer [other, target] to "is it class `target`?".

    Not corrected: yes if the target is the arg max over all C. Corrected: yes if (C - 1) p_t > 1 - p_t, which is what
    its softmax says when half of the images, not one in C, are of the target class.
    """
    def answer(x: Tensor) -> Tensor:
        logits = predict(x).float()
        others = torch.cat([logits[:, :target], logits[:, target + 1:]], 1)
        rest = others.logsumexp(1) - torch.log(torch.tensor(others.shape[1])) if corrected else others.amax(1)
        return torch.stack([rest, logits[:, target]], 1)
    return answer


def probe(model: Predict, train: Iterable[Batch], test: Iterable[Batch]) -> float:
    """Accuracy on `test`, in [0, 1], of a logistic regression on the rectified outputs of `model`, fitted to `train`.

    What an untrained head over a model that stays as it is can reach, without a choice of rates or epochs. `model` maps
    images [B, ...] to outputs [B, n]; batches are (images, labels [B]).
    """
    from sklearn.linear_model import LogisticRegression  # a second to import

    def outputs(batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        parts = [(model(x).relu().cpu(), y.cpu()) for x, y in batches]
        return torch.cat([z for z, _ in parts]), torch.cat([y for _, y in parts])
    with measuring():
        (x, y), (x_test, y_test) = outputs(train), outputs(test)
    fitted = LogisticRegression(max_iter=2000).fit(x.numpy(), y.numpy())
    return float(fitted.score(x_test.numpy(), y_test.numpy()))


def standard_error(accuracy: float, n: int) -> float:
    """Binomial standard error, in [0, 0.5], of an accuracy measured on `n` samples."""
    return float((accuracy * (1 - accuracy) / n) ** 0.5)
