import copy
import math

import pytest
import torch
from torch.nn import functional as F

from seamlib.evaluate import accuracy
from seamlib.finetune import Training, TrainingStopped, finetune


def test_it_is_sgd(tiny, problem):
    tiny[4].p = 0.0
    want = copy.deepcopy(tiny)
    optimiser = torch.optim.SGD(want.parameters(), 0.1, momentum=0.5, weight_decay=0.01)
    for _ in range(2):
        want.train()
        for x, y in problem[0]:
            optimiser.zero_grad()
            F.cross_entropy(want(x), y).backward()
            optimiser.step()
    found, history = finetune(tiny, problem[0], Training(0.1, 0.5, 0.01, epochs=2, schedule="constant"))
    for a, b in zip(found.state_dict().values(), want.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    assert [e["epoch"] for e in history] == [0, 1]
    assert not found.training


def test_the_model_given_is_unchanged_and_the_best_epoch_on_val_is_returned(tiny, problem):
    before = copy.deepcopy(tiny.state_dict())
    train, val = problem
    found, history = finetune(tiny, train, Training(lr=0.2, epochs=6), val)
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    assert accuracy(found, val) == max(e["accuracy"] for e in history)


def test_a_nan_loss_stops_and_keeps_the_last_good_model(tiny, problem):
    train, val = problem

    class TurnsBad(list):
        passes = 0

        def __iter__(self):
            TurnsBad.passes += 1
            factor = math.nan if TurnsBad.passes == 2 else 1.0
            return iter([(x * factor, y) for x, y in super().__iter__()])
    with pytest.raises(TrainingStopped, match="the loss is nan at epoch 1: lower lr, now 0.05") as caught:
        finetune(tiny, TurnsBad(train), Training(epochs=3))
    assert not caught.value.result.training
    assert caught.value.result(val[0][0]).isfinite().all()


@pytest.mark.parametrize(("field", "value", "text"), [
    ("lr", 0.0, "lr is 0.0: it must be above 0"), ("momentum", 1.0, "momentum is 1.0: it must be in"),
    ("epochs", 0, "epochs is 0"), ("schedule", "step", "unknown schedule 'step': allowed are constant, cosine"),
])
def test_bad_parameters(field, value, text):
    with pytest.raises(ValueError, match=text):
        Training(**{field: value})
