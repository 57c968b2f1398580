import copy
import dataclasses
import math

import pytest
import torch
import torchvision
from hypothesis import given, strategies as st
from torch.nn import functional as F

from seamlib import evaluate, models
from seamlib.masks import kept_fraction
from seamlib.problems import data
from seamlib.reuse.finetune import Training, finetune
from seamlib.search import Search, SearchStopped, crossfit, pick, reengineer, summary, waited

FAST = Search(lr_mask=0.15, lr_head=0.05, alpha=0.1, epochs=4, head_only_every=3)


def epochs(*pairs):
    return [{"accuracy": a, "kept": k} for a, k in pairs]


@pytest.mark.parametrize(("history", "target", "want"), [
    (epochs((0.9, 0.5), (0.95, 0.4), (0.8, 0.1)), 0.9, 1),  # the last keeps less but misses the target
    (epochs((0.9, 0.4), (0.95, 0.4)), 0.9, 1),  # same weights, more accurate
    (epochs((0.9, 0.4), (0.95, 0.4005)), 0.9, 0),  # same step of 1/1000, more accurate, but keeps more
    (epochs((0.95, 0.4005), (0.9, 0.4)), 0.9, 0),  # fewer within the step, but not more accurate
    (epochs((0.95, 0.4005), (0.9, 0.3999)), 0.9, 1),  # the next step: fewer wins
    (epochs((0.5, 0.5), (0.6, 0.2), (0.7, 0.3)), 0.9, 1),  # none reaches: first maximum of accuracy minus kept
    (epochs((0.9, 1.0)), 0.9, 0),
])
def test_pick_by_hand(history, target, want):
    assert pick(history, target) == want


def test_pick_refuses_an_empty_history():
    with pytest.raises(ValueError, match="history is empty"):
        pick([], 0.5)


fractions = st.floats(0, 1)


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)), min_size=1, max_size=20), fractions)
def test_pick_reaches_the_target_if_any_epoch_does_and_keeps_the_fewest(pairs, target):
    history = epochs(*pairs)
    chosen = history[pick(history, target)]
    reached = [e for e in history if e["accuracy"] >= target]
    if reached:
        assert chosen["accuracy"] >= target
        assert int(1000 * chosen["kept"]) == min(int(1000 * e["kept"]) for e in reached)


def test_patience_counts_after_the_target_was_reached_and_starts_anew_when_weights_go():
    assert waited(epochs((0.5, 0.9), (0.5, 0.9)), 0.8) == 0
    assert waited(epochs((0.9, 0.9), (0.5, 0.9), (0.5, 0.9)), 0.8) == 2
    assert waited(epochs((0.9, 0.9), (0.5, 0.9), (0.5, 0.5), (0.5, 0.5)), 0.8) == 1


def test_crossfit_judges_each_half_by_the_pick_of_the_other():
    history = [{"accuracy_a": 0.9, "accuracy_b": 0.8, "kept": 0.5},
               {"accuracy_a": 0.7, "accuracy_b": 0.6, "kept": 0.25}]
    assert crossfit(history, {"a": 0, "b": 1}) == {"accuracy": pytest.approx(0.75), "kept": 0.375}


def plain_search(model, head, train, val, s):
    """The paper's algorithm written out with no library: every weight replaced by w * mask by hand, scores summed."""
    model = copy.deepcopy(model).eval()
    head = copy.deepcopy(head)
    conv, linear = model[0], model[5]
    weights = [conv.weight.detach(), conv.bias.detach(), linear.weight.detach(), linear.bias.detach()]
    scores = [torch.ones_like(w, requires_grad=True) for w in weights]
    both = torch.optim.Adam([{"params": scores, "lr": s.lr_mask}, {"params": head.parameters(), "lr": s.lr_head}])
    alone = torch.optim.Adam(head.parameters(), s.lr_head)
    total = sum(w.numel() for w in weights)

    def call(x):
        masks = [(t > 0).float() for t in scores]
        used = [(w * m).requires_grad_() for w, m in zip(weights, masks, strict=True)]
        z = F.relu(model[1](F.conv2d(x, used[0], used[1]))).flatten(1)
        return head(F.linear(z, used[2], used[3])), used
    history = []
    for epoch in range(s.epochs):
        for x, y in train:
            out, used = call(x)
            grads = torch.autograd.grad(F.cross_entropy(out, y), [*used, *head.parameters()])
            for p, g in zip(head.parameters(), grads[4:], strict=True):
                p.grad = g
            if epoch % s.head_only_every == 0:
                alone.step()
                continue
            for t, g, w in zip(scores, grads, weights, strict=False):
                t.grad = (g * w).clamp(-1, 1) + s.alpha / total
            both.step()
        right = sum(int((call(x)[0].argmax(1) == y).sum()) for x, y in val)
        kept = sum(int((t > 0).sum()) for t in scores) / total
        history.append((right / sum(len(y) for _, y in val), kept))
    return history


def test_search_is_the_papers_algorithm(tiny, problem):
    tiny[4].p = 0.0
    head, s = models.new_head(3, 2), Search(lr_mask=0.1, lr_head=0.05, alpha=0.1, epochs=8, head_only_every=3)
    found = reengineer(tiny, head, *problem, s)
    want = plain_search(tiny, head, *problem, s)
    assert [(e["accuracy"], e["kept"]) for e in found.history] == want
    assert want[-1][1] < 0.9  # the search did remove weights


def test_head_only_epochs_leave_the_masks_alone(tiny, problem):
    kept = [e["kept"] for e in reengineer(tiny, models.new_head(3, 2), *problem, FAST).history]
    assert kept[0] == 1.0  # epoch 0 trains the head alone
    assert kept[3] == kept[2]
    assert kept[2] < 1


def test_the_source_model_comes_out_bit_identical(tiny, problem):
    before, modes = copy.deepcopy(tiny.state_dict()), [m.training for m in tiny.modules()]
    head = models.new_head(3, 2)
    head_before = copy.deepcopy(head.state_dict())
    reengineer(tiny, head, *problem, FAST)
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    assert all(torch.equal(v, head_before[k]) for k, v in head.state_dict().items())
    assert [m.training for m in tiny.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in tiny.parameters())


def test_results_follow_from_the_seed_and_leave_the_callers_generator_alone(tiny, problem):
    head = models.new_head(3, 2)
    state = torch.get_rng_state()
    first, second = (reengineer(tiny, head, *problem, FAST) for _ in range(2))
    assert first.history == second.history
    assert torch.equal(torch.get_rng_state(), state)


def test_picks_are_copies_of_their_epoch(tiny, problem):
    train, val = problem
    found = reengineer(tiny, models.new_head(3, 2), train, {"a": val, "b": train}, Search(
        lr_mask=0.15, epochs=6, head_only_every=0, alpha=0.1), targets={"a": 0.0, "b": 0.0, "paper": math.inf})
    assert set(found.picks) == {"a", "b", "paper"}
    for series in found.picks.values():
        assert kept_fraction(series.masks) == found.history[series.epoch]["kept"]
    epoch = found.history[found.picks["paper"].epoch]
    module = found.module()
    x, y = val[0]
    assert float((module(x).argmax(1) == y).float().mean()) == pytest.approx(epoch["accuracy_a"])
    n_a, n_b = len(y), sum(len(labels) for _, labels in train)
    assert epoch["accuracy"] == pytest.approx((n_a * epoch["accuracy_a"] + n_b * epoch["accuracy_b"]) / (n_a + n_b))


def test_the_delivered_module_holds_exact_zeros(tiny, problem):
    found = reengineer(tiny, models.new_head(3, 2), *problem, FAST)
    body, masks = found.module()[0], found.masks
    for name, weight in body.named_parameters():
        if name in masks:
            assert torch.equal(weight != 0, masks[name])


def test_head_alone_masks_nothing(tiny, problem):
    found = reengineer(tiny, models.new_head(3, 2), *problem, FAST, targets={"paper": 0.0}, names=())
    assert [e["kept"] for e in found.history] == [1.0] * 4
    accuracies = [e["accuracy"] for e in found.history]
    assert found.picks["paper"].epoch == accuracies.index(max(accuracies))


def test_max_removed_stops_the_search_and_takes_the_epoch(tiny, problem):
    found = reengineer(tiny, models.new_head(3, 2), *problem, Search(
        lr_mask=0.1, alpha=0.1, epochs=50, head_only_every=0, max_removed=0.3))
    assert found.picks["paper"].epoch == len(found.history) - 1 < 49
    assert found.history[-1]["kept"] <= 0.7 < found.history[-2]["kept"]


def test_annealing_settles(tiny, problem):
    s = Search(lr_mask=0.1, alpha=0.1, epochs=20, head_only_every=0, schedule="anneal")
    kept = [e["kept"] for e in reengineer(tiny, models.new_head(3, 2), *problem, s).history]
    assert abs(kept[-1] - kept[-2]) <= 0.01


@pytest.mark.parametrize("build", [
    lambda: torchvision.models.mobilenet_v3_small(num_classes=4),
    lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4),
])
def test_any_torch_model(build, bf16):
    model = build().eval()
    for p in model.parameters():  # torchvision starts some layers at zero, where no mask matters
        torch.nn.init.normal_(p, 0, 0.1)
    before = copy.deepcopy(model.state_dict())
    x, y = torch.rand(8, 3, 32, 32), torch.tensor([0, 1] * 4)
    s = Search(lr_mask=0.3, alpha=0.0, epochs=2, head_only_every=0, precision="bf16")
    found = reengineer(model, torch.nn.Linear(4, 2), [(x, y)] * 4, [(x, y)], s)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert found.history[-1]["kept"] < 1
    assert found.module()(x).shape == (8, 2)


def test_a_nan_loss_stops_and_keeps_the_last_good_state(tiny, problem):
    train, val = problem
    bad = [(torch.full_like(x, math.nan), y) for x, y in train]

    class TurnsBad(list):
        passes = 0

        def __iter__(self):
            TurnsBad.passes += 1
            return iter(bad) if TurnsBad.passes == 3 else super().__iter__()
    with pytest.raises(SearchStopped, match="loss of nan at epoch 2: lower alpha or the learning rates") as caught:
        reengineer(tiny, models.new_head(3, 2), TurnsBad(train), val, FAST)
    assert len(caught.value.result.history) == 2
    assert caught.value.result.module()(val[0][0]).isfinite().all()


def test_a_search_that_keeps_nothing_stops(tiny, problem):
    with pytest.raises(SearchStopped, match="keeps no weight any more at epoch"):
        reengineer(tiny, models.new_head(3, 2), *problem, Search(lr_mask=5.0, alpha=1e4, epochs=3, head_only_every=0))


@pytest.mark.parametrize(("field", "value", "text"), [
    ("alpha", -1.0, "alpha is -1.0: it must be 0 or more"),
    ("margin", math.inf, "margin is inf: it must be a finite number"),
    ("epochs", 0, "epochs is 0: it must be 1 or more"),
    ("lr_mask", 0.0, "lr_mask is 0.0: it must be above 0"),
    ("max_removed", 1.5, "max_removed is 1.5: it must be None, or 0 to 1"),
    ("target_accuracy", -0.1, "target_accuracy is -0.1"),
    ("schedule", "cosin", "unknown schedule 'cosin': allowed are constant, anneal"),
    ("precision", "fp8", "unknown precision 'fp8': allowed are auto, fp32, bf16"),
])
def test_bad_parameters(field, value, text):
    with pytest.raises(ValueError, match=text):
        Search(**{field: value})


def test_patience_is_refused_under_crossfit(tiny, problem):
    train, val = problem
    with pytest.raises(ValueError, match="patience is 3: .* under crossfit it must be 0"):
        reengineer(tiny, models.new_head(3, 2), train, {"a": val, "b": val}, Search(patience=3))


def test_a_weight_that_the_answer_does_not_use_is_neither_masked_nor_counted(problem):
    class Partly(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = torch.nn.Linear(36, 3), torch.nn.Linear(36, 3)

        def forward(self, x):
            return self.used(x.flatten(1))
    s = Search(lr_mask=0.3, alpha=0.01, epochs=1, head_only_every=0)
    model = Partly()
    with pytest.warns(UserWarning, match="does not use unused.bias, unused.weight: neither masked nor"):
        found = reengineer(model, models.new_head(3, 2), *problem, s)
    assert set(found.masks) == {"used.weight", "used.bias"}
    assert 0 < found.history[-1]["kept"] == kept_fraction(found.masks) < 1
    assert torch.equal(found.module()[0].unused.weight, model.unused.weight)
    asked = reengineer(model, models.new_head(3, 2), *problem, s, names=["used.weight", "unused.weight"])
    assert kept_fraction({"": asked.masks["unused.weight"]}) == 0  # where it is named, it pays as all do


def test_what_is_found_does_not_follow_the_model_that_was_given(tiny, problem):
    found = reengineer(tiny, models.new_head(3, 2), *problem, FAST)
    x = problem[1][0][0]
    before = found.module()(x)
    with torch.no_grad():
        for p in tiny.parameters():
            p.add_(1)
    assert torch.equal(found.module()(x), before)


@pytest.mark.parametrize(("given", "words"), [(3, "more"), (1, "1")])
def test_a_pass_of_more_or_fewer_batches_than_the_length_says_is_refused(tiny, problem, given, words):
    class Train(list):
        def __len__(self):
            return 2
    train = Train([problem[0][0]] * given)
    with pytest.raises(ValueError, match=f"train gave {words} batches in a pass, and its length says 2"):
        reengineer(tiny, models.new_head(3, 2), train, problem[1], FAST)
    with pytest.raises(ValueError, match=f"train gave {words} batches in a pass"):
        finetune(tiny, train, Training(epochs=2))


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_label_without_an_output_is_found_in_any_batch_of_the_first_pass(tiny, problem, labels):
    x, y = problem[0][0]
    train = [(x, y), (x, torch.full_like(y, 7))]
    with pytest.raises(ValueError, match="train has an image of label 7, and the head has 2 outputs"):
        reengineer(tiny, models.new_head(3, 2), train, problem[1], dataclasses.replace(FAST, labels=labels))
    with pytest.raises(ValueError, match="train has an image of label 7"):
        finetune(torch.nn.Sequential(tiny, models.new_head(3, 2)), train, Training(epochs=1))


@pytest.mark.parametrize("norms", ["frozen", "statistics"])
def test_batches_of_one_image_or_none_are_left_out_where_they_have_no_statistics(tiny, problem, norms):
    x, y = problem[0][0]
    head = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    train = [(x, y), (x[:1], y[:1]), (x[:0], y[:0])]
    found = reengineer(torch.nn.Sequential(tiny, torch.nn.BatchNorm1d(3)), head, train, problem[1],
                       dataclasses.replace(FAST, norms=norms))
    assert math.isfinite(found.history[-1]["loss"])


def test_a_model_or_a_head_that_returns_probabilities_is_refused(tiny, problem):
    softmax, said = torch.nn.Softmax(1), "returns probabilities, which add up to 1: take the softmax at its end off"
    restricted = evaluate.RestrictedHead(evaluate.Restrict([0, 1]), 2)
    with pytest.raises(ValueError, match=said):
        reengineer(torch.nn.Sequential(tiny, softmax), restricted, *problem, FAST)
    with pytest.raises(ValueError, match=f"the head, Sequential, {said}"):
        reengineer(tiny, torch.nn.Sequential(models.new_head(3, 2), softmax), *problem, FAST)
    with pytest.raises(ValueError, match=said):
        finetune(torch.nn.Sequential(tiny, models.new_head(3, 2), softmax), problem[0], Training(epochs=1))
    assert reengineer(torch.nn.Sequential(tiny, softmax), models.new_head(3, 2), *problem, FAST)  # reads them


def test_a_layer_that_is_used_without_a_gradient_is_refused_by_its_name(problem):
    class Stem(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = torch.nn.Linear(36, 8), torch.nn.Linear(8, 3)

        def forward(self, x):
            with torch.no_grad():
                x = self.stem(x.flatten(1))
            return self.head(x)
    with pytest.raises(ValueError, match="no gradient of what Stem returns reaches stem.bias, though its layer"):
        reengineer(Stem(), models.new_head(3, 2), *problem, FAST)
    assert reengineer(Stem(), models.new_head(3, 2), *problem, FAST, names=["head.weight"])


def test_no_training_batch_is_refused(tiny, problem):
    with pytest.raises(ValueError, match="train has no batch"):
        reengineer(tiny, models.new_head(3, 2), [], problem[1], FAST)


def test_a_target_for_an_unknown_series_is_refused(tiny, problem):
    with pytest.raises(ValueError, match="unknown series 'c': allowed are paper"):
        reengineer(tiny, models.new_head(3, 2), *problem, FAST, targets={"c": 0.5})


def test_summary_has_the_names_of_a_record(tiny, problem):
    train, val = problem
    parts = {"a": val, "b": train}
    found = reengineer(tiny, models.new_head(3, 2), train, parts, FAST)
    alone = reengineer(tiny, models.new_head(3, 2), train, parts, FAST, names=())
    results = summary(found, alone, {series: {"all": 0.5, "restricted": 0.6} for series in ("a", "b", "paper")})
    assert (results["front"], results["best"], results["no_loss"]) == ([], None, {"all": None, "restricted": None})
    assert results["weights_total"] == 4 * 9 + 4 + 64 * 3 + 3
    assert set(results["accuracy"]) == {"original_all", "original_restricted", "head_only", "crossfit", "paper"}
    assert set(results["kept_fraction"]) == {"crossfit", "paper"}
    assert len(results["history"]["kept"]) == FAST.epochs


@pytest.mark.parametrize(("more", "names"), [({}, None), ({"schedule": "anneal", "patience": 9}, None), ({}, ())])
def test_a_search_that_was_cut_off_ends_as_it_would_have(tiny, problem, tmp_path, more, names):
    class Crash(Exception):
        pass

    def crash(epoch):
        if epoch["epoch"] == 2:
            raise Crash
    split = data.Split(torch.randint(0, 256, (40, 1, 6, 6), dtype=torch.uint8), torch.arange(40) % 2)
    _, val = problem

    def search(epochs=6, **given):
        train = data.batches(split, 8, seed=3)  # shuffled and cropped anew each epoch
        return reengineer(tiny, torch.nn.Linear(3, 2), train, val, dataclasses.replace(FAST, epochs=epochs, **more),
                          names=names, **given)
    torch.manual_seed(1)
    want = search()
    file = tmp_path / "state"
    torch.manual_seed(1)
    with pytest.raises(Crash):
        search(on_epoch=crash, checkpoint=file)
    seen = []
    torch.manual_seed(7)  # neither the caller's random numbers nor the new head matter now
    found = search(on_epoch=lambda e: seen.append(e["epoch"]), checkpoint=file)
    assert seen == [3, 4, 5]
    assert found.history == want.history
    assert found.picks.keys() == want.picks.keys()
    for series, p in want.picks.items():
        assert found.picks[series].epoch == p.epoch
        assert all(torch.equal(m, found.picks[series].masks[name]) for name, m in p.masks.items())
        assert all(torch.equal(t, found.picks[series].head[name]) for name, t in p.head.items())
    assert search(checkpoint=file).history == want.history  # already at its end
    with pytest.raises(ValueError, match="the checkpoint was made with other parameters"):
        search(epochs=7, checkpoint=file)


def test_a_higher_threshold_goes_on_where_a_lower_one_stopped_and_a_lower_one_starts_anew(tiny, problem, tmp_path):
    train, val = problem
    torch.manual_seed(1)
    head = torch.nn.Linear(3, 2)

    def search(share, checkpoint=None, **given):
        setting = dataclasses.replace(FAST, head_only_every=0, epochs=12, alpha=1.0, max_removed=share)
        return reengineer(tiny, head, train, val, setting, checkpoint=checkpoint, **given)
    file, ran = tmp_path / "state", []
    low, high = search(0.0, file), search(0.4, file, on_epoch=ran.append)
    assert len(low.history) + len(ran) == len(high.history)
    assert 0 < len(low.history) < len(high.history) < 12
    for found, share in ((search(0.0, file), 0.0), (high, 0.4)):
        want = search(share)
        assert found.history == want.history
        assert found.picks["paper"].epoch == len(want.history) - 1
        assert all(torch.equal(m, found.masks[name]) for name, m in want.masks.items())


def test_a_part_of_the_head_that_is_frozen_stays_as_it_is(tiny, problem):
    head = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    head[0].requires_grad_(False)
    found = reengineer(tiny, head, *problem, FAST).head
    assert torch.equal(found[0].weight, head[0].weight)
    assert not torch.equal(found[1].weight, head[1].weight)


@pytest.mark.parametrize("head", [evaluate.Restrict([2, 0]), torch.nn.Linear(3, 2).requires_grad_(False)])
def test_masks_are_searched_under_a_head_that_learns_nothing(tiny, problem, head):
    found = reengineer(tiny, head, *problem, dataclasses.replace(FAST, head_only_every=0))
    assert found.history[-1]["kept"] < 1
    assert all(torch.equal(v, head.state_dict()[k]) for k, v in found.head.state_dict().items())


def test_a_checkpoint_of_another_model_or_of_other_classes_is_refused(tiny, problem, tmp_path):
    def search(model, classes):
        head = evaluate.RestrictedHead(evaluate.Restrict(classes), 2)
        return reengineer(model, head, *problem, FAST, checkpoint=tmp_path / "unfinished")
    found, other = search(tiny, [0, 1]), copy.deepcopy(tiny)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert search(tiny, [0, 1]).history == found.history
    with pytest.raises(ValueError, match=r"the checkpoint was made with other parameters \(model\): remove it"):
        search(other, [0, 1])
    with pytest.raises(ValueError, match=r"made with other parameters \(classes\)"):
        search(tiny, [1, 2])


def test_a_loader_with_a_generator_of_its_own_goes_on_in_its_order(tiny, problem, tmp_path):
    images = torch.utils.data.TensorDataset(*(torch.cat(t) for t in zip(*problem[0], strict=True)))

    def search(epochs, checkpoint=None):
        def stop(epoch):
            if epoch["epoch"] == epochs - 1:
                raise KeyboardInterrupt
        draw = torch.Generator().manual_seed(3)
        train = torch.utils.data.DataLoader(images, 8, shuffle=True, generator=draw)
        return reengineer(tiny, models.new_head(3, 2), train, problem[1], FAST, on_epoch=stop, checkpoint=checkpoint)
    torch.manual_seed(0)
    whole = search(0).history
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        search(2, tmp_path / "unfinished")
    assert search(0, tmp_path / "unfinished").history == whole
