import copy
import dataclasses
import os
import signal

import pytest
import torch

from seamlib import models
from seamlib.evaluate import accuracy
from seamlib.masks import kept_fraction
from seamlib.problems import data, tasks
from seamlib.reuse import indirect
from seamlib.reuse.indirect import Reuse, reuse

FAST = {"epochs_s1": 3, "epochs_s2": 6, "epochs_s3": 3, "batch_size": 8, "lr_mask": 0.08, "alpha": 0.5, "patience": 0,
        "prune_threshold": 0.3}


@pytest.fixture
def body(tiny):
    return models.split(tiny)[0]


@pytest.fixture
def problem():
    """Bright, middling or dark: 30 training, 6 validation and 18 test images of 6x6 pixels."""
    images = torch.randint(0, 80, (54, 1, 6, 6)) + 85 * torch.arange(3).repeat(18)[:, None, None, None]
    whole = data.Split(images.to(torch.uint8), torch.arange(3).repeat(18))
    return tasks.Transfer("brightness", 3, *(whole.select(torch.arange(*r)) for r in ((0, 30), (30, 36), (36, 54))))


def run(body, problem, method="seam", **given):
    more = {k: given.pop(k) for k in ("folder", "about", "on_epoch") if k in given}
    return reuse(body, 64, problem, Reuse(method=method, **{**FAST, **given}), **more)


def test_masked_weights_are_zero_after_step_2_and_may_grow_again_in_step_3(body, problem):
    found = run(body, problem)
    for name, mask in found.masks.items():
        assert found.masked.get_parameter(f"body.{name}")[~mask].eq(0).all()
        kept = found.masked.get_parameter(f"body.{name}")[mask]
        assert torch.equal(kept, body.get_parameter(name)[mask])  # the search moves no weight
    removed = {name: ~mask for name, mask in found.masks.items()}
    assert any(found.student.get_parameter(f"body.{name}")[out].ne(0).any() for name, out in removed.items())
    assert found.regrown() > 0
    assert dataclasses.replace(found, student=found.masked).regrown() == 0
    assert run(body, problem, "standard").regrown() == 0
    assert 1 - kept_fraction(found.masks) >= 0.3
    assert list(found.history) == ["s1", "s2", "s3"]


def test_step_2_stops_at_the_threshold_and_not_before(body, problem):
    removed = [1 - epoch["kept"] for epoch in run(body, problem).history["s2"]]
    assert removed[-1] >= 0.3
    assert all(r < 0.3 for r in removed[:-1])
    assert len(run(body, problem, prune_threshold=1.0, alpha=0.0).history["s2"]) == 6


def test_step_3_starts_from_the_pretrained_weights_and_statistics(body, problem, monkeypatch):
    started = []
    real = indirect.finetune
    monkeypatch.setattr(indirect, "finetune",
                        lambda model, *a, **k: (started.append(copy.deepcopy(model)), real(model, *a, **k))[1])
    found = run(body, problem)
    first, third = started
    for name, p in body.state_dict().items():
        mask = found.masks.get(name, torch.ones_like(p, dtype=torch.bool))
        assert torch.equal(third.state_dict()[f"body.{name}"], p * mask)
        assert torch.equal(first.state_dict()[f"body.{name}"], p)
    assert torch.equal(first.output.weight, third.output.weight)  # new, from the same seed


def test_standard_is_step_3_without_a_mask_at_the_same_rates(body, problem):
    found = run(body, problem, "standard")
    nothing = run(body, problem, "remos", prune_threshold=0.0)
    assert not found.masks
    for name, value in found.student.state_dict().items():
        assert torch.equal(value, nothing.student.state_dict()[name])


def test_retraining_takes_nothing_over(body, problem):
    a, b = (run(other, problem, "retrain") for other in (body, copy.deepcopy(body).requires_grad_(False)))
    other = copy.deepcopy(body)
    for p in other.parameters():
        p.data.normal_()
    other[1].running_mean.fill_(3)
    c = run(other, problem, "retrain")
    for name, value in a.student.state_dict().items():
        assert torch.equal(value, b.student.state_dict()[name])
        assert torch.equal(value, c.student.state_dict()[name])


def test_remos_removes_its_share_of_the_convolutions(body, problem):
    masks = run(body, problem, "remos", prune_threshold=0.5).masks
    assert list(masks) == ["0.weight"]
    assert kept_fraction(masks) == 0.5


def test_a_model_whose_weights_cannot_be_drawn_anew_is_not_retrained(problem):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.scale * x
    with pytest.raises(ValueError, match=r"body\.0, a Scaled, has weights and no way to draw them anew"):
        reuse(torch.nn.Sequential(Scaled(), torch.nn.Flatten()), 36, problem, Reuse("retrain", **FAST))


def test_random_masks_remove_the_share_of_every_layer(body, problem):
    a, b, c = (run(body, problem, "random", prune_threshold=0.5, seed=s).masks for s in (0, 0, 1))
    assert {name: kept_fraction({name: m}) for name, m in a.items()} == pytest.approx(dict.fromkeys(a, 0.5), abs=0.05)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_the_body_is_unchanged_and_the_result_follows_from_the_seed(body, problem):
    before = copy.deepcopy(body.state_dict())
    a, b, c = run(body, problem), run(body, problem), run(body, problem, seed=1)
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())
    assert torch.equal(a.student.output.weight, b.student.output.weight)
    assert not torch.equal(a.student.output.weight, c.student.output.weight)
    val = data.batches(problem.val, 6)
    assert accuracy(a.student, val) == max(e["accuracy"] for e in a.history["s3"])


def test_steps_are_kept_and_never_answered_for_other_parameters(body, problem, tmp_path):
    def ask(body=body, about=None, **given):
        ran = []
        found = run(body, problem, folder=tmp_path, about=about or {"problem": "brightness"},
                    on_epoch=lambda step, _: ran.append(step), **given)
        return found, sorted(set(ran))
    want = run(body, problem)
    first, ran = ask()
    assert ran == ["s1", "s2", "s3"]
    again, ran = ask()
    assert ran == []
    for found in (first, again):
        assert found.history == want.history
        for name, value in want.student.state_dict().items():
            assert torch.equal(value, found.student.state_dict()[name])
        x = problem.test.images.float() / 255
        assert torch.equal(found.masked(x), want.masked(x))
    assert ask(lr_s3_hidden_layer=0.01)[1] == ["s3"]
    assert "s1" not in ask(lr_mask=0.3)[1]
    other = copy.deepcopy(body)
    other[0].bias.data += 0.1
    for changed in ({"lr_s1_output_layer": 0.2}, {"weight_decay": 0.1}, {"seed": 2}, {"epochs_s1": 2},
                    {"about": {"problem": "another"}}, {"body": other}, {"dropout": 0.5}):
        assert "s1" in ask(**changed)[1], changed
    assert ask(momentum=0.5)[1] == ["s1", "s2", "s3"]
    assert not list(tmp_path.glob("*.unfinished"))


def test_training_that_was_cut_off_goes_on(body, problem, tmp_path):
    class Crash(Exception):
        pass

    def crash(step, epoch):
        if step == "s3" and epoch["epoch"] == 1:
            raise Crash
    where = {"folder": tmp_path, "about": {"problem": "brightness"}}
    with pytest.raises(Crash):
        run(body, problem, on_epoch=crash, **where)
    ran = []
    found = run(body, problem, on_epoch=lambda step, e: ran.append((step, e["epoch"])), **where)
    assert ran == [("s3", 2.0)]
    want = run(body, problem)
    assert all(torch.equal(v, found.student.state_dict()[k]) for k, v in want.student.state_dict().items())


def test_steps_that_are_killed_go_on_inside_a_step_and_end_as_if_they_had_not_been(body, problem, tmp_path):
    given = {"dropout": 0.2, "momentum": 0.9, "prune_threshold": 1.0}  # all that a step has to remember
    want = run(body, problem, **given)
    resumed = []  # (step, epoch) that each process began with
    for kill in range(6):
        read, write = os.pipe()
        process = os.fork()
        if not process:
            try:
                run(body, problem, **given, folder=tmp_path, about={"data": "d"},
                    on_epoch=lambda step, e: os.write(write, f"{step} {e['epoch']:.0f}\n".encode()))  # noqa: B023
            finally:
                os._exit(0)
        os.close(write)
        with open(read) as said:
            resumed.append(said.readline().split())
            if kill % 2:
                said.readline()
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert any(epoch and epoch[1] != "0" for epoch in resumed)
    found = run(body, problem, **given, folder=tmp_path, about={"data": "d"})
    assert found.history == want.history
    for part in ("student", "masked"):
        states = (getattr(reused, part).state_dict() for reused in (found, want))
        assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".unfinished", ".part")]


def test_searches_of_other_thresholds_share_their_course(body, problem, tmp_path):
    where, ran = {"folder": tmp_path, "about": {"problem": "brightness"}}, []
    low = run(body, problem, prune_threshold=0.0, **where)
    high = run(body, problem, **where, on_epoch=lambda step, e: ran.append(step))
    assert 0 < len(low.history["s2"]) < len(high.history["s2"])
    assert ran.count("s2") == len(high.history["s2"]) - len(low.history["s2"])
    want = run(body, problem)
    assert high.history == want.history
    assert all(torch.equal(m, high.masks[name]) for name, m in want.masks.items())


@pytest.mark.parametrize(("given", "text"), [
    ({"method": "magic"}, "unknown method 'magic': allowed are standard, seam, retrain, remos, random"),
    ({"prune_threshold": 1.5}, "prune_threshold is 1.5: it must be in [0, 1]"),
    ({"prune_threshold": -0.1}, "prune_threshold is -0.1"), ({"dropout": 1.0}, "dropout is 1.0: it must be in [0, 1)"),
    ({"lr_s3_hidden_layer": -1.0}, "step 3: lr is -1.0"), ({"epochs_s2": 0}, "step 2: epochs is 0"),
    ({"lr_s1_output_layer": 0.0}, "step 1: lr is 0.0"), ({"alpha": -1.0}, "step 2: alpha is -1.0"),
])
def test_bad_parameters(given, text):
    with pytest.raises(ValueError) as caught:
        Reuse(**given)
    assert text in str(caught.value)


def test_a_folder_needs_to_be_told_what_the_problem_is(body, problem, tmp_path):
    with pytest.raises(ValueError, match="folder is given without about: name problem and data"):
        run(body, problem, folder=tmp_path)


def test_the_holdout_is_a_tenth_of_each_class_and_always_the_same():
    source = data.load("digits5to9", "")
    a, b = tasks.transfer(source), tasks.transfer(source, seed=5)
    assert torch.bincount(a.val.labels).tolist() == [35] * 5
    assert torch.bincount(a.train.labels).tolist() == [315] * 5
    assert torch.equal(a.val.images, b.val.images)
    seen = {image.numpy().tobytes() for image in a.train.images}
    assert not any(image.numpy().tobytes() in seen for image in a.val.images)
    assert a.test is source.test
    few = tasks.transfer(source, shots=50)
    assert (len(few.train), len(few.val)) == (45 * 5, 5 * 5)
    paper = tasks.transfer(source, protocol="paper")
    assert paper.val is paper.test
    assert len(paper.train) == 350 * 5


def test_transfer_refuses(tree):
    source = data.load(f"folder:{tree}", tree)
    with pytest.raises(ValueError, match="unknown protocol 'crossfit': allowed are holdout, paper"):
        tasks.transfer(source, protocol="crossfit")
    with pytest.raises(ValueError, match="class 'cat' has 1 training images: holdout needs at least 2"):
        tasks.transfer(source, shots=1)


def test_a_classifier_is_split_before_its_last_linear_layer():
    for name, n in (("lenet-mnist5k", 64), ("resnet20-cifar10", 64), ("vgg16_bn-cifar10", 512),
                    ("resnet18-imagenet", 512)):
        model = models.build(name)
        body, features = models.split(model)
        size = {"lenet": 28, "resnet18": 64}.get(name.partition("-")[0], 32)
        x = torch.rand(2, 1 if "mnist" in name else 3, size, size)
        assert features == n
        assert body(x).shape == (2, n)
        output = next(m for m in reversed(list(model.modules())) if isinstance(m, torch.nn.Linear))
        torch.testing.assert_close(output(body(x)), model(x))
    with pytest.raises(ValueError, match="Flatten has no linear layer"):
        models.split(torch.nn.Flatten())


def test_what_an_attention_layer_holds_is_no_output_layer():
    class Attending(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.attention = torch.nn.Linear(4, 3), torch.nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0].mean(1))
    body, features = models.split(Attending())
    assert features == 4
    assert body(torch.rand(2, 5, 4)).shape == (2, 4)


def test_images_in_memory_are_enlarged_for_a_model_that_wants_it():
    split = data.Split(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.arange(3))
    (x, _), = data.batches(split, 8, size=224)
    assert x.shape == (3, 3, 224, 224)
    assert 0 <= x.min() <= x.max() <= 1
    torch.testing.assert_close(x.mean((2, 3)), split.images.float().mean((2, 3)) / 255, atol=0.01, rtol=0)


def test_every_parameter_is_used():
    """A field of Reuse that reaches neither the loop nor the search would be a setting that does nothing."""
    default, names = Reuse(), {f.name for f in dataclasses.fields(Reuse)}
    other = {"method": "standard", "schedule": "cosine", "precision": "bf16", "patience": 7, "batch_size": 9, "seed": 3,
             "prune_threshold": 0.5, "momentum": 0.5}
    silent = {"dropout"}  # goes into the student itself
    for name in names - silent:
        value = other[name] if name in other else getattr(default, name) * 1.5
        value = int(value) if isinstance(getattr(default, name), int) and name not in other else value
        changed = dataclasses.replace(default, **{name: value})
        steps = [(s.training(1), s.training(3), s.search()) for s in (changed, default)]
        assert steps[0] != steps[1], name
