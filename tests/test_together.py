"""Binary models put together: by hand, and what is refused."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from seamlib import evaluate, records, search, together
from seamlib.problems import data, tasks
from seamlib.search.found import Pick
from seamlib.ship import cost
from seamlib.structure.compaction import compact


class Says(nn.Module):
    """Answers [other, class] with the given odds of its class, one an image."""

    def __init__(self, *odds):
        super().__init__()
        self.odds = odds

    def forward(self, x):
        return torch.tensor([[0.0, math.log(odds)] for odds in self.odds])


def test_the_surest_of_the_models_wins():
    both = together.Together([Says(3, 1, 1 / 9), Says(1, 3, 1 / 4)])  # 3 to 1 is a probability of 3/4
    found = both(torch.zeros(3, 1))
    torch.testing.assert_close(found.exp(), torch.tensor([[3 / 4, 1 / 2], [1 / 2, 3 / 4], [1 / 10, 1 / 5]]))
    assert found.argmax(1).tolist() == [0, 1, 1]  # of two that both say no, the one that is less sure of it


def test_untouched_models_put_together_are_the_restricted_original():
    logits = 5 * torch.randn(200, 7)
    wanted = [4, 0, 5]
    whole = together.Together([evaluate.OneVsRest(c) for c in wanted])
    assert torch.equal(whole(logits).argmax(1), evaluate.Restrict(wanted)(logits).argmax(1))


@pytest.fixture
def parts():
    """(Task of classes 0 and 1 of three, what was found for each): a class is a bright pixel, and reads its own row."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).eval()
    model[1].weight.data = 10 * torch.eye(4)[:3]
    images, labels = torch.zeros(16, 1, 2, 2, dtype=torch.uint8), torch.arange(2).repeat(8)
    images.view(16, 4)[torch.arange(16), labels] = 255
    third = data.Split(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([2]))
    split = data.Split(torch.cat([images, third.images]), torch.cat([labels, third.labels]))
    source = data.Source("made up", ("left", "right", "none"), split, split, flip=False, digest="")

    def found(c):
        head = evaluate.RestrictedHead(evaluate.OneVsRest(c), 2)
        rows = {"1": [0, 1, 2], "2": [c], "3": [], "7": [c]}  # what is kept at each alpha
        picks = {alpha: Pick(0, {"1.weight": torch.isin(torch.arange(3), torch.tensor(kept, dtype=torch.long))[
            :, None].expand(3, 4)}, head.state_dict()) for alpha, kept in rows.items()}
        alphas = [1.0, 2.0, 3.0] if c else [1.0, 2.0, 3.0, 7.0]
        return search.Reengineered(model, head, [], picks, [{"alpha": alpha} for alpha in alphas])
    return tasks.multiclass(source, [0, 1]), [found(0), found(1)]


def test_a_front_of_models_put_together_by_hand(parts):
    task, found = parts
    told = []
    whole, own, nothing = points = together.front(found, task, on_point=told.append)
    assert told == points
    assert [p["alpha"] for p in points] == [1, 2, 3]  # the last of the first model has no partner
    assert [p["kept"] for p in points] == pytest.approx([1, 2 / 3, 0])
    assert [p["each"] for p in points] == pytest.approx([1, 1 / 3, 0])
    assert [p["shared"] for p in points] == [1, 0, 0]
    assert [p["accuracy"] for p in points] == [1, 1, 0.5]  # models that know nothing are equally sure: the first wins
    assert [p["accuracy_a"] for p in points] == [p["accuracy_b"] for p in points] == [1, 1, 0.5]
    assert own["own"] == pytest.approx(8 / 12 + 2 / 12)  # two models: scale and shift of two outputs, and a number
    single = [cost.flops(part.module("2"), data.first(task.test, 1)).sparse for part in found]
    assert own["multiply_adds"] == pytest.approx(sum(single))
    assert whole["multiply_adds"] - nothing["multiply_adds"] == pytest.approx(2 * 3)  # of the weights, a row has one


def test_the_union_grows_from_one_mask_to_all(parts):
    _, found = parts
    unions = together.unions(found)
    assert list(unions) == ["1", "2", "3"]
    assert unions["2"]["found"] == pytest.approx([1 / 3, 2 / 3])
    assert unions["2"]["chance"] == pytest.approx([1 / 3, 1 - (2 / 3) ** 2])


def record(target, alphas=(1.0, 2.0), **given):
    parameters = {"model": "lenet", "dataset": "mnist5k", "target_class": target}
    results = {"front": [{"alpha": alpha} for alpha in alphas]}
    made = records.Record("direct_binary", f"binary{target}", parameters, results, 0, "c", False, {"kind": "cpu"}, 1.0,
                          {"weights": "w" * 64, "data": "d" * 64, "masks": "m" * 64})
    return dataclasses.replace(made, **given)


ABOUT = {"model": "lenet", "dataset": "mnist5k"}


def test_the_records_of_the_wanted_classes_are_taken_in_their_order():
    found = [record(3), record(5), record(8)]
    assert together.of_classes(found, [8, 3], ABOUT) == [found[2], found[0]]


@pytest.mark.parametrize(("found", "classes", "words"), [
    ([record(3), record(8)], [3, 5], "class 5 has no record among those given, which are of the classes 3, 8: run "
                                     "direct_binary with a path for it, or leave it out"),
    ([record(3), record(3, (1.0,))], [3, 8], "class 3 has two records, .*: give one of each"),
    ([record(3), record(8, experiment="retrain")], [3, 8], "retrain/.* is no binary problem: give records of direct_b"),
    ([record(3), record(8, parameters={**record(8).parameters, "dataset": "cifar10"})], [3, 8],
     "has dataset 'cifar10', not 'mnist5k': models that are put together are of one source"),
    ([record(3), record(8, sha256={**record(8).sha256, "weights": "f" * 64})], [3, 8],
     "was made with weights ffffffffffff..., .* with wwwwwwwwwwww...: models that are put together are of one source"),
    ([record(3), record(8, sha256={**record(8).sha256, "data": "f" * 64})], [3, 8], "was made with data ffffffffffff"),
    ([record(3), record(8, (3.0,))], [3, 8], "classes 3, 8 have no point of a front in common: search all of them"),
    ([record(3), record(8, results={})], [3, 8], "no point of a front in common"),
])
def test_records_that_cannot_be_put_together_are_refused(found, classes, words):
    with pytest.raises(ValueError, match=words):
        together.of_classes(found, classes, ABOUT)


def test_what_is_put_together_can_be_compacted():
    both = together.Together([nn.Sequential(nn.Flatten(), nn.Linear(4, 2)) for _ in range(2)]).eval()
    x = torch.rand(3, 1, 2, 2)
    torch.testing.assert_close(compact(both, x)[0](x), both(x))


def test_no_model_cannot_be_put_together():
    with pytest.raises(ValueError, match="there is no model to put together"):
        together.Together([])
