"""A path of rising alphas, heads that begin as the restricted original, norms that adapt: ours, not the paper's."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from seamlib import evaluate, masks, models
from seamlib.search import Reengineered, Search, best, no_loss, reengineer
from seamlib.search.loop import Run
from seamlib.search.settings import NORMS, path_of, rates

PATH = Search(path=(0.5, 4.0, 30.0), epochs=7, lr_mask=0.1, lr_head=0.05, head_only_every=0, schedule="anneal",
              batch_size=8)
ORIGINALS = {"a": {"all": 0.5, "restricted": 0.6}, "b": {"all": 0.5, "restricted": 0.6}}


@pytest.fixture
def halves(problem):
    train, val = problem
    x, y = val[0]
    return train, {"a": [(x[::2], y[::2])], "b": [(x[1::2], y[1::2])]}


def search(model, halves, settings=PATH, head=None, **given):
    train, val = halves
    torch.manual_seed(0)
    return reengineer(model, head or models.new_head(3, 2), train, val, settings, **given)


def with_norms(norms: str, **changes) -> Search:
    return Search(**{**PATH.__dict__, "norms": norms, **changes})


def test_stages_share_the_epochs_and_each_is_annealed():
    assert PATH.stages == [(0.5, 0, 3), (4.0, 3, 5), (30.0, 5, 7)]
    assert rates(PATH, 0.0) == (1.0, 0.5, 1.0)
    assert rates(PATH, 1.5) == (pytest.approx(0.5), 0.25, 1.0)
    assert rates(PATH, 3.0) == (1.0, 4.0, 1.0)
    assert rates(PATH, 6.0) == (pytest.approx(0.5), 15.0, 1.0)
    for schedule in ("anneal", "constant"):
        one = Search(epochs=10, structure=0.8, schedule=schedule)
        assert [rates(one, e)[2] for e in (0.0, 1.0, 4.0, 7.0, 9.9)] == pytest.approx([1.0, 1.0, 0.3, 0.2, 0.2])
    two = Search(epochs=20, structure=0.75, path=(1.0, 2.0))
    assert [rates(two, e)[2] for e in (4.0, 9.0, 10.5, 14.0, 17.5)] == pytest.approx([0.5625, 0.5, 0.5, 0.28125, 0.25])
    assert Search(alpha=3.0, epochs=5).stages == [(3.0, 0, 5)]


@given(st.integers(3, 60), st.integers(1, 6), st.integers(1, 7))
def test_each_step_is_of_its_own_stage(epochs, stages, steps):
    """What a step is given follows from whole numbers: the first of a stage has its alpha, and the full rate."""
    search = Search(path=tuple(range(1, min(stages, epochs) + 1)), epochs=epochs, schedule="anneal")
    run = Run(nn.Linear(1, 1), nn.Identity(), (), search, epochs * steps)
    seen = []
    run.step = lambda x, y, head_only: seen.append(float(run.rent)) or torch.zeros(())
    run.n_scores = 1
    for _ in range(epochs):
        run.train([(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))] * steps, False)
    for alpha, first, after in search.stages:
        assert seen[first * steps] == alpha
        assert all(0 < rent <= alpha for rent in seen[first * steps:after * steps])


def test_one_search_gives_a_point_for_each_alpha(tiny, halves):
    found = search(tiny, halves)
    assert [p["alpha"] for p in found.front] == [0.5, 4.0, 30.0]
    assert [p["epoch"] for p in found.front] == [2, 4, 6]
    assert [{k: v for k, v in p.items() if k != "alpha"} for p in found.front] == [found.history[i] for i in (2, 4, 6)]
    kept = [masks.kept_fraction(found.picks[name].masks) for name in ("0.5", "4", "30")]
    assert kept == [pytest.approx(p["kept"]) for p in found.front]
    assert kept[0] > kept[2]
    assert found.picks.keys() == {"0.5", "4", "30", "a", "b", "paper"}
    ends = {found.picks[name].epoch for name in ("a", "b", "paper")}
    assert ends <= {2, 4, 6}  # a path is picked from its points alone
    for name, point in zip(("0.5", "4", "30"), found.front, strict=True):
        right = evaluate.accuracy(found.module(name), [b for part in halves[1].values() for b in part])
        assert right == pytest.approx(point["accuracy"])


def test_the_smallest_point_of_an_accuracy():
    front = [{"alpha": 1.0, "kept": 0.5, "accuracy": 0.9}, {"alpha": 2.0, "kept": 0.2, "accuracy": 0.95},
             {"alpha": 3.0, "kept": 0.1, "accuracy": 0.8}]
    found = Reengineered(nn.Identity(), nn.Identity(), [], {}, front)
    assert (found.smallest(0.85), found.smallest(0.8), found.smallest(0.96)) == ("2", "3", None)


def test_no_loss_is_chosen_on_one_half_and_measured_on_the_other():
    front = [{"kept": 0.5, "accuracy_a": 0.7, "accuracy_b": 0.8}, {"kept": 0.2, "accuracy_a": 0.6, "accuracy_b": 0.5},
             {"kept": 0.1, "accuracy_a": 0.55, "accuracy_b": 0.4}]
    found = no_loss(front, ORIGINALS, "restricted")  # a chooses 0.2, b chooses 0.5
    assert found == {"kept": pytest.approx(0.35), "accuracy": pytest.approx((0.5 + 0.7) / 2),
                     "difference": pytest.approx((0.5 - 0.6 + 0.7 - 0.6) / 2)}
    assert no_loss(front, ORIGINALS, "all")["kept"] == pytest.approx((0.1 + 0.2) / 2)
    found = no_loss(front[1:], ORIGINALS, "restricted")  # half b has no point: it takes the restricted original
    assert found == {"kept": pytest.approx((0.2 + 1) / 2), "accuracy": pytest.approx((0.5 + 0.6) / 2),
                     "difference": pytest.approx((0.5 - 0.6 + 0.6 - 0.6) / 2)}
    assert no_loss(front[2:], ORIGINALS, "restricted") is None
    assert best(front, ORIGINALS) == {"kept": 0.5, "accuracy": pytest.approx(0.75), "difference": pytest.approx(0.15)}


@pytest.mark.parametrize("norms", ["frozen", "statistics", "affine"])
def test_the_source_stays_and_what_is_measured_is_what_is_handed_on(tiny, halves, norms, tmp_path):
    before = copy.deepcopy(tiny.state_dict())
    found = search(tiny, halves, with_norms(norms))
    assert all(torch.equal(t, before[name]) for name, t in tiny.state_dict().items())
    x = torch.rand(9, 1, 6, 6)
    assert all(bool(p.norms) == (norms != "frozen") for p in found.picks.values())
    if norms != "frozen":
        assert not torch.equal(found.picks["30"].norms["1.scale"], found.picks["0.5"].norms["1.scale"])
    found.save(tmp_path / "m", classes=["dark", "bright"])
    again = Reengineered.load(tmp_path / "m", tiny)
    assert again.picks.keys() == found.picks.keys()
    for name in found.picks:
        assert torch.equal(again.module(name)(x), found.module(name)(x)), name
    for point in found.front:
        right = evaluate.accuracy(found.module(f"{point['alpha']:g}"), halves[1]["a"])
        assert right == pytest.approx(point["accuracy_a"])


@pytest.mark.parametrize("affine", [True, False])
def test_norms_that_adapt_leave_a_network_without_a_mask_as_it_was(tiny, halves, affine):
    """However far the statistics that it came with are from those of the problem's images."""
    if not affine:
        tiny[1] = nn.BatchNorm2d(tiny[1].num_features, affine=False)
    with torch.no_grad():
        tiny[1].running_mean.normal_(), tiny[1].running_var.uniform_(0.01, 9)
    tiny.eval()
    still = Search(norms="statistics", alpha=0.0, lr_mask=1e-9, epochs=40, head_only_every=0)  # nothing is dropped
    pick = search(tiny, halves, still).picks["paper"]
    want = masks.read_norms(tiny)
    torch.testing.assert_close(pick.norms["1.scale"], want["1.scale"], rtol=0.1, atol=0)
    torch.testing.assert_close(pick.norms["1.shift"], want["1.shift"], rtol=0.1, atol=0.05)


def test_statistics_follow_the_masked_model_by_hand(tiny, halves):
    """A channel of the masked model has the mean and the spread that the whole one's had."""
    with torch.no_grad():
        tiny[1].weight.uniform_(0.5, 2), tiny[1].bias.normal_()
    images = torch.cat([x for x, _ in halves[0]])
    settings = Search(norms="statistics", alpha=0.0, lr_mask=1e-9, epochs=40, head_only_every=0)
    run = Run(tiny, models.new_head(3, 2), None, settings, 40 * len(halves[0]))
    run.begin(halves[0])
    dropped = torch.rand_like(run.scores["0.weight"]) < 0.4
    run.scores["0.weight"].data[dropped] = -1
    for _ in range(20):
        run.train(halves[0], False)
    masked = copy.deepcopy(tiny[0])
    with torch.no_grad():
        masked.weight[dropped] = 0
        want, new = tiny[:2](images), masked(images)
    norms = masks.read_norms(run.model)
    got = new * norms["1.scale"].reshape(-1, 1, 1) + norms["1.shift"].reshape(-1, 1, 1)
    torch.testing.assert_close(got.mean((0, 2, 3)), want.mean((0, 2, 3)), rtol=0.05, atol=0.05)
    torch.testing.assert_close(got.std((0, 2, 3)), want.std((0, 2, 3)), rtol=0.1, atol=0)


def test_soft_labels_are_the_untouched_models_by_hand(tiny, halves):
    """With nothing dropped and the head as it was there is nothing to learn; the labels of the images do not matter."""
    train, val = halves
    wrong = [(x, 1 - y) for x, y in train]
    soft = Search(labels="soft", temperature=3.0, epochs=2, lr_mask=0.1, alpha=0.0, head_only_every=0)
    head = evaluate.RestrictedHead(evaluate.Restrict([2, 0]), 2)
    still = nn.Sequential(*(nn.Identity() if isinstance(m, nn.Dropout) else m for m in tiny)).eval()
    alone = dataclasses.replace(soft, lr_head=1e-6)
    assert max(e["loss"] for e in search(still, (train, val), alone, head=head, names=()).history) < 1e-6
    ours, other = (search(tiny, (images, val), soft, head=head).history for images in (train, wrong))
    assert ours == other
    run = Run(still, head, None, soft, 10)
    with torch.no_grad():
        run.head.shift.copy_(torch.tensor([0.5, -1.0]))
    x, y = train[0]
    p = (head(still(x)) / 3).softmax(1)
    q = (run.head(still(x)) / 3).softmax(1)
    by_hand = 9 * float((p * (p / q).log()).sum(1).mean().detach())
    assert run.losses(x, y, False).item() == pytest.approx(by_hand, rel=1e-4)


def test_head_only_epochs_leave_norms_alone(tiny, halves):
    alone = with_norms("affine", path=None, epochs=1, head_only_every=1, schedule="constant")
    pick = search(tiny, halves, alone).picks["paper"]
    run = Run(tiny, models.new_head(3, 2), None, alone, len(halves[0]))
    run.begin(halves[0])
    assert all(torch.equal(t, pick.norms[name]) for name, t in masks.read_norms(run.trained).items())
    torch.testing.assert_close(pick.norms, masks.read_norms(tiny))  # said in other statistics: rounding


def test_a_last_batch_of_one_image_has_no_statistics_and_is_left_out(halves):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4, momentum=1.0), nn.Linear(4, 3))
    model(halves[0][0][0]), model.eval()
    train = [*halves[0], (halves[0][0][0][:1], halves[0][0][1][:1])]
    found = search(model, (train, halves[1]), with_norms("affine"))
    assert len(found.history) == PATH.epochs
    run = Run(model, models.new_head(3, 2), None, with_norms("affine"), PATH.epochs * len(train))
    run.train(train, False)
    assert run.done == len(train)  # or the stages would come late
    with pytest.raises(ValueError, match="train has no batch of two images or more"):
        search(model, (train[-1:], halves[1]), with_norms("affine"))


def test_a_norm_that_adapts_cannot_be_masked(tiny, halves):
    with pytest.raises(ValueError, match=r"names has '1.weight', of a batch norm that is to adapt: it cannot be"):
        search(tiny, halves, with_norms("affine"), names=["0.weight", "1.weight"])
    search(tiny, halves, names=["0.weight", "1.weight"])


def test_a_path_on_which_nothing_is_kept_any_more_ends_with_the_points_that_it_has(tiny, halves):
    found = search(tiny, halves, with_norms("frozen", path=(0.5, 1e6), epochs=8, lr_mask=0.5))
    assert [p["alpha"] for p in found.front] == [0.5]
    assert found.picks.keys() == {"0.5", "a", "b", "paper"}


def test_norms_adapt_without_a_mask_as_a_control(tiny, halves):
    found = search(tiny, halves, with_norms("affine"), names=())
    assert found.masks == {}
    assert all(e["kept"] == 1 for e in found.history)
    assert not torch.equal(found.picks["30"].norms["1.shift"], found.picks["0.5"].norms["1.shift"])


@pytest.mark.parametrize("norms", ["frozen", "affine"])
def test_a_path_that_was_stopped_goes_on_and_ends_as_it_would_have(tiny, halves, norms, tmp_path):
    class Stop(Exception):
        pass

    def stop(epoch):
        if epoch["epoch"] == 3:
            raise Stop
    settings, file = with_norms(norms), tmp_path / "state"
    whole = search(tiny, halves, settings)
    with pytest.raises(Stop):
        search(tiny, halves, settings, checkpoint=file, on_epoch=stop)
    again = search(tiny, halves, settings, checkpoint=file)
    assert (again.history, again.front) == (whole.history, whole.front)
    for name, pick in whole.picks.items():
        other = again.picks[name]
        assert all(torch.equal(m, other.masks[k]) for k, m in pick.masks.items())
        assert all(torch.equal(t, other.norms[k]) for k, t in pick.norms.items())
        assert all(torch.equal(t, other.head[k]) for k, t in pick.head.items())


@pytest.mark.parametrize("answer", [evaluate.Restrict([2, 0]), evaluate.OneVsRest(1)])
def test_a_restricted_head_begins_as_the_restricted_original(tiny, halves, answer, tmp_path):
    x = torch.rand(5, 1, 6, 6)
    head = evaluate.RestrictedHead(answer, 2)
    original = evaluate.then(tiny, copy.deepcopy(answer))
    assert torch.equal(nn.Sequential(tiny, head)(x), original(x))
    found = search(tiny, halves, head=head)
    assert not torch.equal(found.head.scale, head.scale)
    found.save(tmp_path / "m")
    assert torch.equal(Reengineered.load(tmp_path / "m", tiny).module()(x), found.module()(x))


@pytest.mark.parametrize(("changed", "text"), [
    ({"path": ()}, r"path is \(\): it must be one or more finite alphas from 0 on, each above the last"),
    ({"path": (1.0, 1.0)}, r"path is \(1.0, 1.0\): it must be"),
    ({"path": (2.0, 1.0)}, "each above the last"),
    ({"path": (-1.0, 1.0)}, "from 0 on"),
    ({"path": (1.0, float("inf"))}, "finite"),
    ({"path": (float("nan"),)}, "finite"),
    ({"path": (1.0, 2.0, 3.0), "epochs": 2}, "path has 3 stages and epochs is 2: a stage needs an epoch at least"),
    ({"path": (0.1234561, 0.1234562)}, "two of its alphas are alike in six digits"),
    ({"path": (1.0,), "patience": 3}, "path is given with patience or max_removed: a path goes to its end"),
    ({"norms": "learnt"}, "unknown norms 'learnt': allowed are frozen, statistics, affine"),
    ({"labels": "mixed"}, "unknown labels 'mixed': allowed are hard, soft"),
    ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
    ({"lr_norms": 0.0}, "lr_norms is 0.0: it must be above 0"),
])
def test_bad_settings_are_refused(changed, text):
    with pytest.raises(ValueError, match=text):
        Search(**changed)


def test_a_path_as_text():
    assert path_of("2, 5,10") == (2.0, 5.0, 10.0)
    assert path_of("") is None
    with pytest.raises(ValueError, match="path is '2;5': it must be alphas separated by commas, such as 2,5,10"):
        path_of("2;5")


def test_a_model_without_batch_norm_has_nothing_to_adapt(halves):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()
    ours, frozen = (search(model, halves, with_norms(norms)) for norms in ("affine", "frozen"))
    assert ours.picks["30"].norms == {}
    assert ours.history == frozen.history


def test_the_smallest_point_is_asked_for_as_the_front_can_answer(tiny, halves):
    found = search(tiny, halves)
    with pytest.raises(ValueError, match=r"accuracy is 93: it must be in \[0, 1\]"):
        found.smallest(93)
    with pytest.raises(ValueError, match="series is 'kept': allowed are accuracy, accuracy_a, accuracy_b"):
        found.smallest(0.5, "kept")
    with pytest.raises(ValueError, match="there is no front to choose from: search with a path"):
        dataclasses.replace(found, front=[]).smallest(0.5)


def test_a_part_called_like_a_point_is_refused(tiny, halves):
    with pytest.raises(ValueError, match="val has a part called '4', as what is chosen on all of it, or a point"):
        search(tiny, (halves[0], {"4": halves[1]["a"]}))


def test_checking_the_head_changes_nothing_of_a_model_in_train_mode(tiny, halves):
    before = copy.deepcopy(tiny.train().state_dict())
    search(tiny, halves)
    assert all(torch.equal(t, before[name]) for name, t in tiny.state_dict().items())


def test_a_head_that_does_not_fit_is_refused(tiny, halves):
    with pytest.raises(ValueError, match="the answer is a AmongAll: a head begins as a Restrict or an OneVsRest"):
        evaluate.RestrictedHead(evaluate.AmongAll([1]), 2)
    head = evaluate.RestrictedHead(evaluate.Restrict([0, 7]), 2)
    with pytest.raises(ValueError, match=r"the head does not take what Sequential returns, \[1, 3\]"):
        search(tiny, halves, head=head)
    with pytest.raises(ValueError, match="train has an image of label 1, and the head has 1 output: give"):
        search(tiny, halves, head=nn.Linear(3, 1))


@pytest.mark.parametrize("norms", NORMS)
def test_a_label_without_an_output_is_found_in_the_first_batch(tiny, halves, norms):
    class Batches:
        seen = 0

        def __len__(self):
            return 4

        def __iter__(self):
            for x, y in halves[0]:
                self.seen += 1
                yield x, y + 1
    train = Batches()
    with pytest.raises(ValueError, match="train has an image of label 2, and the head has 2 outputs: give"):
        search(tiny, (train, halves[1]), settings=with_norms(norms))
    assert train.seen == 1
