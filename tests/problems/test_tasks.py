import pytest
import torch
from hypothesis import given, settings, strategies as st

from seamlib import evaluate
from seamlib.problems import data, tasks


def source(per_class=(20, 20, 20, 8)):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(per_class)])
    images = torch.randint(0, 256, (len(labels), 1, 4, 4), dtype=torch.uint8)
    images[:, 0, 0, 0] = labels
    split = data.Split(images, labels)
    return data.Source("toy", tuple("abcd"), split, split, False, "")


def test_binary_takes_all_of_the_class_and_as_many_others():
    task = tasks.binary(source(), 1)
    assert torch.bincount(task.test.labels).tolist() == [20, 20]
    own = task.test.images[:, 0, 0, 0] == 1
    assert torch.equal(own, task.test.labels == 1)


def test_the_draw_follows_from_the_seed():
    same, again, other = (tasks.binary(source(), 1, seed=s).train for s in (0, 0, 1))
    torch.manual_seed(0)
    assert same.images[:, 0, 0, 0].tolist() == again.images[:, 0, 0, 0].tolist()
    assert same.images[:, 0, 0, 0].tolist() != other.images[:, 0, 0, 0].tolist()


@given(st.integers(0, 3), st.integers(0, 50))
@settings(max_examples=20)
def test_halves_are_disjoint_whole_and_balanced(target, seed):
    task = tasks.binary(source(), target, seed)
    a, b = task.halves["a"], task.halves["b"]
    assert len(a) + len(b) == len(task.test)
    pixels = [i.numpy().tobytes() for i in (*a.images, *b.images)]
    assert sorted(pixels) == sorted(i.numpy().tobytes() for i in task.test.images)
    assert torch.bincount(a.labels).tolist() == torch.bincount(b.labels).tolist()


def test_shots_keep_that_many_training_images_of_each_label():
    task = tasks.binary(source(), 0, shots=5)
    assert torch.bincount(task.train.labels).tolist() == [5, 5]
    assert len(task.test) == 40


def test_others_anew_gives_every_other_training_image_and_the_same_test_images():
    toy = source()
    once, anew = (tasks.binary(toy, 3, others=others) for others in ("once", "anew"))
    assert torch.bincount(anew.train.labels).tolist() == [60, 8]
    assert torch.equal(once.test.images, anew.test.images)
    few = tasks.binary(toy, 3, shots=2, others="anew")
    assert torch.bincount(few.train.labels).tolist() == [60, 2]
    with pytest.raises(ValueError, match="unknown others 'all': allowed are once, anew"):
        tasks.binary(toy, 3, others="all")


@pytest.mark.parametrize(("kwargs", "text"), [
    ({"target_class": 4}, "target_class is 4: toy has classes 0 to 3"),
    ({"target_class": -1}, "target_class is -1"),
    ({"target_class": 3, "shots": 9}, "shots is 9: allowed are 0 .all. to 8"),
])
def test_bad_problems(kwargs, text):
    with pytest.raises(ValueError, match=text):
        tasks.binary(source(), **kwargs)


def test_too_few_others_are_refused():
    with pytest.raises(ValueError, match="class 0 has 20 images, all others together 15: a binary problem needs"):
        tasks.binary(source((20, 5, 5, 5)), 0)


def test_a_label_with_one_test_image_cannot_be_halved():
    with pytest.raises(ValueError, match="label 0 has 1 test image: crossfit needs at least 2"):
        tasks.binary(source((5, 1, 5, 5)), 1)


@given(st.lists(st.floats(-8, 8), min_size=4, max_size=4), st.integers(0, 3))
def test_the_restricted_original_is_the_softmax_with_the_prior_corrected(logits, target):
    logits = torch.tensor([logits], dtype=torch.float64)
    p = logits.softmax(1)[0, target]
    answer = evaluate.one_vs_rest(lambda x: x, target, corrected=True)(logits)
    margin = 3 * p - (1 - p)
    if abs(margin) > 1e-5:  # C = 4 source classes
        assert bool(answer.argmax(1) == 1) == bool(margin > 0)


def test_the_original_over_all_outputs_says_target_when_it_is_the_arg_max():
    logits = torch.tensor([[3.0, 2.0, 2.9], [1.0, 2.0, 0.0]])
    answer = evaluate.one_vs_rest(lambda x: x, 0, corrected=False)(logits)
    assert answer.argmax(1).tolist() == [1, 0]


def test_restrict_keeps_the_columns_in_order():
    assert evaluate.restrict(lambda x: x, (2, 0))(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[3.0, 1.0]]


def test_accuracy_by_hand_and_without_samples():
    batches = [(torch.eye(3), torch.tensor([0, 1, 0])), (torch.eye(3)[:1], torch.tensor([0]))]
    assert evaluate.accuracy(lambda x: x, batches) == 0.75
    with pytest.raises(ValueError, match="no sample to measure accuracy on"):
        evaluate.accuracy(lambda x: x, [])


def test_targets_are_the_originals_on_the_images_that_choose():
    task = tasks.binary(source(), 0)
    original = {"paper": {"all": 0.8, "restricted": 0.9}, "a": {"all": 0.7, "restricted": 0.9},
                "b": {"all": 0.8, "restricted": 0.6}}
    assert tasks.target_accuracies(task, original, margin=0.0) == {"paper": 0.8, "a": 0.9, "b": 0.8}
    se = (0.9 * 0.1 / 20) ** 0.5
    assert tasks.target_accuracies(task, original, margin=0.5)["a"] == pytest.approx(0.9 + 0.5 * se)
    assert tasks.target_accuracies(task, original, margin=2.0)["a"] == 1.0


def test_originals_measure_each_half_and_the_whole():
    task = tasks.binary(source(), 1)

    def predict(x):  # the class stands in the first pixel: an original that is always right
        return torch.nn.functional.one_hot((x[:, 0, 0, 0] * 255).round().long(), 4).float() * 9
    assert tasks.originals(task, predict) == {s: {"all": 1.0, "restricted": 1.0} for s in ("a", "b", "paper")}


def test_multiclass_takes_all_images_of_its_classes_in_the_order_given():
    task = tasks.multiclass(source(), [3, 0])
    assert torch.bincount(task.train.labels).tolist() == [8, 20]
    assert task.train.images[:, 0, 0, 0].tolist() == [3] * 8 + [0] * 20
    assert (task.classes, task.n_classes, task.name) == ((3, 0), 2, "classes3_0")


@given(st.permutations(range(4)), st.integers(2, 4), st.integers(0, 9))
@settings(max_examples=20)
def test_each_label_of_a_multiclass_problem_is_one_class_and_halves_are_balanced(order, n, shots):
    classes = order[:n]
    task = tasks.multiclass(source((20, 20, 20, 10)), classes, shots=shots)
    for split in (task.train, task.test, *task.halves.values()):
        assert [classes[label] for label in split.labels.tolist()] == split.images[:, 0, 0, 0].tolist()
    if shots:
        assert torch.bincount(task.train.labels).tolist() == [shots] * n
    a, b = (torch.bincount(task.halves[h].labels).tolist() for h in "ab")
    assert a == b


def test_shots_follow_from_the_seed():
    toy = source()
    first, again, other = (tasks.multiclass(toy, [0, 1], seed=s, shots=5).train.images for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("kwargs", "text"), [
    ({"classes": [1]}, r"classes are \[1\]: a multi-class problem needs at least two"),
    ({"classes": [1, 4]}, "class 4 is unknown: toy has classes 0 to 3"),
    ({"classes": [1, -1]}, "class -1 is unknown"),
    ({"classes": [1, 2, 1]}, "class 1 is listed 2 times: list each class once"),
    ({"classes": [0, 3], "shots": 9}, "shots is 9: allowed are 0 .all. to 8"),
    ({"classes": [0, 3], "shots": -1}, "shots is -1"),
])
def test_bad_multiclass_problems(kwargs, text):
    with pytest.raises(ValueError, match=text):
        tasks.multiclass(source(), **kwargs)


@pytest.mark.parametrize(("dataset", "n_groups", "n_classes"), [("cifar100", 20, 100), ("imagenet", 67, 1000)])
def test_the_superclasses_hold_every_class_once(dataset, n_groups, n_classes):
    single = [8, 10, 34] if dataset == "imagenet" else []
    groups = [tasks.superclass(dataset, index) for index in range(n_groups) if index not in single]
    for index in single:
        with pytest.raises(ValueError, match=rf"superclass {index} \(.*\) holds a single class"):
            tasks.superclass(dataset, index)
    classes = [c for _, members in groups for c in members]
    assert len(set(classes)) == len(classes) == n_classes - len(single)
    assert len({name for name, _ in groups}) == n_groups - len(single)
    if dataset == "cifar100":
        assert all(len(members) == 5 for _, members in groups)


def test_superclasses_have_the_papers_numbers():
    assert tasks.superclass("cifar100", 0) == ("aquatic_mammals", ("beaver", "dolphin", "otter", "seal", "whale"))
    assert tasks.superclass("cifar100", 19)[0] == "vehicles_2"
    assert tasks.superclass("imagenet", 1) == ("shark", ("n01484850", "n01491361", "n01494475", "n02536864"))
    assert tasks.superclass("imagenet", 66)[0] == "fungus"


@pytest.mark.parametrize(("dataset", "index", "text"), [
    ("cifar100", 20, "target_superclass_idx is 20: cifar100 has superclasses 0 to 19"),
    ("imagenet", 67, "target_superclass_idx is 67: imagenet has superclasses 0 to 66"),
    ("imagenet", 10, r"8 \(dinosaur\), 10 \(trilobite\), 34 \(armadillo\); the other 64 can be run"),
    ("cifar10", 0, "cifar10 has no superclasses: those of cifar100, imagenet and tinyimagenet are known; give classes"),
])
def test_superclasses_that_cannot_be_run(dataset, index, text):
    with pytest.raises(ValueError, match=text):
        tasks.superclass(dataset, index)


def test_a_problem_is_named_in_exactly_one_way():
    assert tasks.problem(source(), target_class=2).name == "binary2"
    assert tasks.problem(source(), classes="d, 0").classes == (3, 0)
    with pytest.raises(ValueError, match="given are none of target_class, target_superclass_idx, classes, n_cl"):
        tasks.problem(source())
    with pytest.raises(ValueError, match="given are classes, n_classes of .* give exactly one"):
        tasks.problem(source(), classes="a,b", n_classes=2)
    with pytest.raises(ValueError, match="class 'e' is unknown to toy: allowed are numbers 0 to 3 and names such as"):
        tasks.problem(source(), classes="a,e")


def test_random_groups_follow_from_the_seed():
    groups = {seed: tasks.problem(source(), n_classes=2, seed=seed).classes for seed in range(8)}
    assert groups[3] == tasks.problem(source(), n_classes=2, seed=3).classes
    assert len(set(groups.values())) > 2
    assert all(len(set(g)) == 2 for g in groups.values())
    for n in (1, 5):
        with pytest.raises(ValueError, match=f"n_classes is {n}: a random group of toy has 2 to 4"):
            tasks.problem(source(), n_classes=n)


def test_the_multiclass_originals_by_hand():
    logits = torch.tensor([[5.0, 1.0, 2.0, 0.0],   # among all: 0; among {2, 1}: 2
                           [0.0, 3.0, 1.0, 2.0],   # both: 1
                           [0.0, 1.0, 2.0, 2.0]])  # a tie of 2 and 3 goes to the target's class
    task = tasks.multiclass(source(), [2, 1])
    assert task.original_all(lambda x: x)(logits).argmax(1).tolist() == [2, 1, 0]  # 2: none of the target's
    assert task.original_restricted(lambda x: x)(logits).argmax(1).tolist() == [0, 1, 0]
    whole = tasks.multiclass(source(), [3, 2, 1, 0])
    assert whole.original_all(lambda x: x)(logits).argmax(1).tolist() == [3, 2, 0]


@given(st.integers(2, 4), st.integers(0, 100))
@settings(max_examples=20)
def test_restricting_never_makes_the_original_worse(n, seed):
    task = tasks.problem(source(), n_classes=n, seed=seed)
    torch.manual_seed(seed)
    weights = torch.randn(16, 4)
    found = tasks.originals(task, lambda x: x.flatten(1) @ weights)
    assert all(part["restricted"] >= part["all"] for part in found.values())


def test_a_head_that_begins_as_the_restricted_original_agrees_with_it():
    from seamlib import models

    logits = torch.rand(50, 6)
    head = models.new_head(6, 3, [4, 0, 5])
    assert torch.equal(head(logits), evaluate.restrict(lambda x: x, [4, 0, 5])(logits))
    assert not torch.equal(models.new_head(6, 3)(logits), head(logits))


def test_a_probe_reads_what_the_outputs_say_and_no_more():
    y = torch.arange(40) % 2
    x = torch.stack([y * 2.0 - 1 + 0.1 * torch.randn(40), torch.randn(40)], 1)
    parts = [(x[:30], y[:30])], [(x[30:], y[30:])]
    assert evaluate.probe(lambda x: x, *parts) == 1.0
    assert evaluate.probe(lambda x: torch.ones(len(x), 3), *parts) == 0.5  # outputs that say nothing: chance
    assert evaluate.probe(lambda x: -x.abs(), *parts) == 0.5  # rectified, they are all 0
