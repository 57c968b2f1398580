import pytest
import torch
from hypothesis import given, settings, strategies as st

from seamlib import data, evaluate, tasks


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
@settings(max_examples=20, deadline=None)
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
