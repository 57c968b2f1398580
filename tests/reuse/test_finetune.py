import copy
import math

import pytest
import torch
from torch.nn import functional as F

from seamlib import models
from seamlib.evaluate import accuracy
from seamlib.masks import apply_masks, maskable
from seamlib.masks.norms import apply_norms, read_norms
from seamlib.problems import data
from seamlib.records import cache
from seamlib.reuse.finetune import Training, TrainingStopped, finetune


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
    training = Training(lr=0.1, momentum=0.5, weight_decay=0.01, epochs=2, schedule="constant")
    found, history = finetune(tiny, problem[0], training)
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
    ("lr", 0.0, "lr is 0.0: it must be above 0, or 0 with lr_output above 0"), ("lr_output", 0.0, "lr_output is 0.0"),
    ("patience", -1, "patience is -1"), ("momentum", 1.0, "momentum is 1.0: it must be in"),
    ("epochs", 0, "epochs is 0"), ("schedule", "step", "unknown schedule 'step': allowed are constant, cosine"),
])
def test_bad_parameters(field, value, text):
    with pytest.raises(ValueError, match=text):
        Training(**{field: value})


@pytest.fixture
def student(tiny):
    body, n = models.split(tiny)
    return models.student(body, n, 2)


def test_rates_by_group(student, problem):
    """One step of plain SGD moves each weight by its rate times its gradient."""
    want = copy.deepcopy(student).train()
    torch.manual_seed(3)
    F.cross_entropy(want(problem[0][0][0]), problem[0][0][1]).backward()
    training = Training(lr=0.01, lr_output=0.1, momentum=0.0, weight_decay=0.0, epochs=1, schedule="constant", seed=3)
    found, _ = finetune(student, problem[0][:1], training)
    for name, p in found.named_parameters():
        rate = 0.1 if name.startswith("output.") else 0.01
        torch.testing.assert_close(p, want.get_parameter(name) - rate * want.get_parameter(name).grad)


def test_the_output_layer_alone_while_batch_norms_statistics_adapt(student, problem):
    found, _ = finetune(student, problem[0], Training(lr=0.0, lr_output=0.1, epochs=2))
    before, after = student.state_dict(), found.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"output.weight", "output.bias", "body.1.running_mean", "body.1.running_var",
                       "body.1.num_batches_tracked"}
    assert all(p.requires_grad for p in found.parameters())


def test_a_rate_for_an_output_layer_that_is_not_there(tiny, problem):
    with pytest.raises(ValueError, match="no parameter is called output.*: make the model with models.student"):
        finetune(tiny, problem[0], Training(lr_output=0.1))


def test_patience_ends_training_when_nothing_improves(tiny, problem):
    train, val = problem
    wrong = [(x, 1 - y) for x, y in val]  # the better it learns, the worse it does
    _, history = finetune(tiny, train, Training(lr=0.1, epochs=40, patience=3, schedule="constant"), wrong)
    best = max(range(len(history)), key=lambda i: history[i]["accuracy"])
    assert len(history) == best + 4 < 40


class Crash(Exception):
    pass


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_goes_on_after_a_crash_as_if_nothing_had_happened(student, tmp_path, momentum):
    images = torch.randint(0, 256, (20, 1, 6, 6), dtype=torch.uint8)
    split = data.Split(images, (images.float().mean((1, 2, 3)) > 128).long())
    training, val = Training(lr=0.05, momentum=momentum, epochs=5), data.batches(split, 8)
    student.dropout.p = 0.3
    want, told = finetune(student, data.batches(split, 8, seed=0), training, val)

    def crash(epoch):
        if epoch["epoch"] == 2:
            raise Crash
    file = tmp_path / "unfinished"
    with pytest.raises(Crash):
        finetune(student, data.batches(split, 8, seed=0), training, val, on_epoch=crash, checkpoint=file)
    epochs = []
    found, history = finetune(student, data.batches(split, 8, seed=0), training, val, on_epoch=epochs.append,
                              checkpoint=file)
    assert [e["epoch"] for e in epochs] == [3, 4]
    assert history == told
    for name, value in want.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name
    with pytest.raises(ValueError, match="made with other parameters"):
        finetune(student, data.batches(split, 8, seed=0), Training(lr=0.06, epochs=5), val, checkpoint=file)


def test_a_file_that_is_no_checkpoint_is_not_written_over(student, problem, tmp_path):
    file = tmp_path / "resnet.pth"
    file.write_bytes(b"somebody's weights")
    with pytest.raises(ValueError, match=r"resnet.pth is there, and is no checkpoint of a training, or is damaged"):
        finetune(student, problem[0], Training(epochs=1), checkpoint=file)
    assert file.read_bytes() == b"somebody's weights"
    cache.write(file, {}, {"search": {}})
    with pytest.raises(ValueError, match="no checkpoint of a training"):
        finetune(student, problem[0], Training(epochs=1), checkpoint=file)


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm1d(36), torch.nn.BatchNorm2d(1)], ids=repr)
def test_a_batch_of_one_image_is_left_out_where_batch_norm_cannot_take_it(problem, norm, tmp_path):
    """And then, too, training that was stopped ends as it would have."""
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), norm] if norm.num_features == 36 else [norm, torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(36, 2))
    (x, y), single = problem[0][0], isinstance(norm, torch.nn.BatchNorm2d)
    train, training = [(x, y), (x[:1], y[:1])], Training(lr=0.1, epochs=4)
    whole, history = finetune(model, train, training)
    assert whole[0 if single else 1].num_batches_tracked == (8 if single else 4)

    def stop(epoch):
        if epoch["epoch"] == 1:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        finetune(model, train, training, on_epoch=stop, checkpoint=tmp_path / "unfinished")
    again, resumed = finetune(model, train, training, checkpoint=tmp_path / "unfinished")
    assert resumed == history
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_batch_norms_that_share_parameters_are_fine_tuned():
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4),
                                torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    model[3].weight, model[3].bias = model[1].weight, model[1].bias
    assert finetune(model, [(torch.rand(8, 6), torch.arange(8) % 2)], Training(epochs=1))


def test_weights_of_half_precision_are_refused():
    model = torch.nn.Linear(6, 2).bfloat16()
    with pytest.raises(ValueError, match="weight is bfloat16, in which small steps are rounded"):
        finetune(model, [(torch.rand(8, 6).bfloat16(), torch.arange(8) % 2)], Training(epochs=1))


@pytest.mark.parametrize("cast", [lambda m: m, lambda m: m.double(), lambda m: m.half().float()])
def test_training_goes_on_where_a_searched_model_stands(cast):
    """A search that lets norms adapt leaves a scale and a shift: in train mode they would be another network's."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    x = 3 * torch.randn(64, 6) + 1
    for _ in range(50):
        model(x)
    model.eval()
    answers = model(x)
    searched = apply_norms(copy.deepcopy(model), read_norms(model))
    torch.testing.assert_close(searched(x), answers)
    assert (copy.deepcopy(searched).train()(x) - answers).abs().max() > 0.3
    searched = cast(searched)
    x = x.to(searched[0].weight.dtype)
    found, _ = finetune(searched, [(x, answers.argmax(1))], Training(lr=1e-9, epochs=3))
    torch.testing.assert_close(found(x).float(), answers, rtol=0.02, atol=0.02)
    torch.testing.assert_close(found[1].running_mean.float(), model[0](x.float()).mean(0), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("training", [Training(lr=0.1, epochs=2), Training(lr=0.1, epochs=2, momentum=0.0),
                                      Training(lr=0.1, epochs=2, weight_decay=0.1, schedule="constant")])
def test_masks_that_are_held_keep_their_zeros_and_leave_the_rest_to_training(tiny, problem, training):
    kept = {name: torch.rand(tiny.get_parameter(name).shape) > 0.5 for name in maskable(tiny)}
    before = copy.deepcopy(tiny.state_dict())
    held, _ = finetune(tiny, problem[0], training, problem[1], hold=kept)
    free, _ = finetune(apply_masks(copy.deepcopy(tiny), kept), problem[0], training)
    for name, mask in kept.items():
        weight = held.get_parameter(name)
        assert not weight[~mask].count_nonzero()
        assert torch.equal(weight[mask], before[name][mask]) == (not mask.any())
    assert sum(int(free.get_parameter(name)[~mask].count_nonzero()) for name, mask in kept.items()) > 50
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())


def test_a_held_mask_of_everything_changes_nothing(tiny, problem):
    everything = {name: torch.ones_like(p, dtype=torch.bool) for name, p in tiny.named_parameters()}
    a, b = (finetune(tiny, problem[0], Training(epochs=1), hold=hold)[0] for hold in (everything, None))
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("frozen", [["0.weight"], ["0.weight", "0.bias", "1.weight", "1.bias"], ["5.bias"]])
def test_weights_without_requires_grad_stay_as_they_are_and_so_marked(tiny, problem, frozen):
    for name in frozen:
        tiny.get_parameter(name).requires_grad_(False)
    tiny.register_parameter("count", torch.nn.Parameter(torch.tensor(3), requires_grad=False))
    found, _ = finetune(tiny, problem[0], Training(lr=0.1, weight_decay=0.1, epochs=1))
    for name, p in tiny.named_parameters():
        assert torch.equal(found.get_parameter(name), p) == (name in [*frozen, "count"]), name
        assert found.get_parameter(name).requires_grad == p.requires_grad


def test_a_frozen_output_layer_beside_a_body_that_learns(student, problem):
    student.output.requires_grad_(False)
    found, _ = finetune(student, problem[0], Training(lr=0.1, lr_output=0.5, epochs=1))
    assert torch.equal(found.output.weight, student.output.weight)
    assert not torch.equal(found.body[0].weight, student.body[0].weight)
    with pytest.raises(ValueError, match="there is no weight to train"):
        finetune(student, problem[0], Training(lr=0.0, lr_output=0.5, epochs=1))
