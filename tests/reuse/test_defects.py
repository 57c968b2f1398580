import builtins
from collections import OrderedDict

import pytest
import torch
from torch import nn

from seamlib import models
from seamlib.problems import data
from seamlib.reuse import defects
from seamlib.reuse.finetune import Training, finetune


@pytest.fixture(scope="module")
def trained():
    """(digit classifier for 0 to 4, its body, 60 test digits and labels)."""
    torch.manual_seed(1)  # a seed whose first feature is alive, for the attack to push
    source = data.load("digits0to4", "")
    model, _ = finetune(models.build("lenet-digits0to4"), data.batches(source.train, 32, seed=0), Training(epochs=6))
    test = source.test.select(torch.arange(0, len(source.test), len(source.test) // 60)[:60])
    return model, models.split(model)[0], *next(iter(data.batches(test, 60)))


@pytest.mark.parametrize("name", ["pixel", "paper"])
def test_the_attack_stays_in_its_ball_and_in_range(trained, name):
    _, body, x, _ = trained
    attack = defects.attack(name, 5)
    found = defects.craft(body, x, attack, seed=1)
    assert found.shape == x.shape
    mean, std = (0.0, 1.0) if name == "pixel" else (0.1307, 0.3081)
    before, after = (x - mean) / std, (found - mean) / std
    inside = before.clamp(attack.low, attack.high)  # the paper's bounds cut off bright pixels before the ball is drawn
    assert (after - inside).abs().max() <= attack.eps + 1e-5
    assert after.min() >= attack.low - 1e-5
    assert after.max() <= attack.high + 1e-5
    assert torch.equal(found, defects.craft(body, x, attack, seed=1))
    assert not torch.equal(found, defects.craft(body, x, attack, seed=2))


@pytest.mark.parametrize("name", ["pixel", "paper"])
def test_it_beats_noise_of_the_same_size(trained, name):
    body = nn.Sequential(OrderedDict(normalise=models.Normalise(models.DIGITS), conv=nn.Conv2d(1, 8, 5),
                                     soft=nn.Softplus(), mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))
    x, attack = trained[2], defects.attack(name, 10)
    with torch.no_grad():
        found, by_noise = (body(images)[:, 0] for images in (defects.craft(body, x, attack),
                                                             defects.noise(body, x, attack)))
    assert (found > by_noise).all()


def test_noise_is_of_the_size_of_the_attack(trained):
    _, body, x, _ = trained
    attack = defects.attack("pixel")
    found = defects.noise(body, x, attack, 3)
    assert ((found - x).abs() <= attack.eps + 1e-6).all()
    assert (found[x > 0.5] - x[x > 0.5]).abs().mean() > 0.5 * attack.eps
    assert (found >= 0).all()
    assert (found <= 1).all()


def test_the_loss_by_hand():
    features, target = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[1000.0, 0.0, 0.0]])
    assert defects.feature_loss(features, target).item() == pytest.approx(-(999**2 + 0.1 * (4 + 16) / 2))


def test_the_model_is_unchanged_and_gathers_no_gradient(trained):
    _, body, x, _ = trained
    before = {k: v.clone() for k, v in body.state_dict().items()}
    defects.craft(body, x[:4], defects.attack("paper", 2))
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())
    assert all(p.grad is None for p in body.parameters())
    assert torch.equal(body.normalise(x), (x - 0.1307) / 0.3081)


def test_the_rate_by_hand():
    right = torch.eye(3)[[0, 1, 2, 0]]  # the student answers as its input says
    changed = torch.eye(3)[[0, 2, 2, 1]]
    found = defects.inheritance(lambda x: x, [(right, torch.tensor([0, 1, 1, 0]))], [changed])
    assert (found.accuracy, found.rate, found.n) == (0.75, 2 / 3, 4)  # of three right ones two turn wrong
    assert found.adversarial_accuracy == 0.25


def test_a_student_that_has_nothing_right_has_no_rate():
    x = torch.eye(2)
    found = defects.inheritance(lambda x: x, [(x, torch.tensor([1, 0]))], [x])
    assert (found.accuracy, found.rate, found.adversarial_accuracy) == (0.0, None, 0.0)


def test_a_student_equal_to_its_teacher_inherits_nearly_what_an_attack_on_itself_does(trained):
    model, body, x, y = trained
    attack = defects.attack("pixel", 20, eps=0.3)
    batches = [(x, y)]
    own = defects.white_box(model, batches, attack)
    through = defects.inheritance(model, batches, defects.crafted(body, batches, attack))
    by_noise = defects.inheritance(model, batches, [defects.noise(body, x, attack)])
    assert through.accuracy > 0.9
    assert own <= through.adversarial_accuracy + 0.05  # it knows the output layer, so it does no worse
    assert through.rate > 2 * by_noise.rate
    assert through.rate > 0.5 * (1 - own)


def test_adversarial_images_are_kept_by_everything_that_they_depend_on(trained, tmp_path):
    _, body, x, y = trained
    attack, batches, computed = defects.attack("pixel", 2), [(x[:8], y[:8]), (x[8:16], y[8:16])], []

    def ask(body=body, attack=attack, batches=batches, seed=0):
        computed.clear()
        return list(defects.crafted(body, batches, attack, seed, tmp_path, on_batch=computed.append))
    first = ask()
    assert computed == [0, 1]
    assert all(torch.equal(a, b) for a, b in zip(first, ask(), strict=True))
    assert computed == []
    other = nn.Sequential(body, nn.ReLU()).eval()
    for changed in ({"body": other}, {"attack": defects.attack("pixel", 3)}, {"seed": 1},
                    {"batches": [(1 - a, b) for a, b in batches]}):
        ask(**changed)
        assert computed == [0, 1], changed


def test_bad_arguments(trained):
    with pytest.raises(ValueError, match="unknown attack 'fgsm': allowed are pixel, paper"):
        defects.attack("fgsm")
    with pytest.raises(ValueError, match="iterations is 0: it must be 1 or more"):
        defects.attack("pixel", 0)
    with pytest.raises(ValueError, match="eps is 0.0: it must be above 0"):
        defects.attack("pixel", eps=0.0)
    with pytest.raises(ValueError, match="has no module called normalise, .*: use the attack 'pixel'"):
        defects.craft(nn.Flatten(), torch.rand(1, 1, 2, 2), defects.attack("paper", 1))
    with pytest.raises(ValueError, match="the batches are empty"):
        defects.inheritance(trained[0], [], [])
    with pytest.raises(ValueError, match="the batches are empty"):
        defects.white_box(trained[0], [], defects.attack("pixel", 1))


def test_advertorch_missing(monkeypatch, trained):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("advertorch"):
            raise ImportError("No module named 'advertorch'")
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="the attacks need advertorch .*pip install"):
        defects.craft(trained[1], trained[2][:1], defects.attack("pixel", 1))
