import numpy as np
import pytest

from seamlib import evaluate, models
from seamlib.problems import data, drawn, tasks


def test_what_is_drawn_follows_from_the_seed_and_no_two_are_alike():
    pixels, labels = drawn.images(3, 32, 0)
    assert pixels.shape == (21, 3, 32, 32)
    assert labels.tolist() == [c for c in sorted(drawn.CLASSES) for _ in range(3)]
    drawn.images.cache_clear()
    again, _ = drawn.images(3, 32, 0)
    others, _ = drawn.images(3, 32, 1)
    assert np.array_equal(pixels, again)
    assert len({image.tobytes() for image in [*pixels, *others]}) == 42


def test_a_model_of_imagenet_knows_them_and_the_restriction_helps():
    source = data.load("drawn", "nowhere")
    assert source.train.images.shape == (420, 3, 96, 96)
    assert len(source.classes) == 1000
    assert data.load("drawn", "nowhere", size=32).test.images.shape == (280, 3, 32, 32)
    task = tasks.multiclass(source, sorted(drawn.CLASSES))
    model = models.pretrained("timm/tf_efficientnet_lite0-drawn", "nowhere")
    every, restricted = (evaluate.accuracy(answer, data.batches(task.test, 64)) for answer in (
        task.original_all(model), task.original_restricted(model)))
    assert 0.6 < every < restricted < 0.95  # two of the seven are hard


def test_classes_that_were_not_drawn():
    source = data.load("drawn", "nowhere", size=32)
    with pytest.raises(ValueError, match="drawn: class n01440764 has no training image: add its folder"):
        tasks.binary(source, 0)
