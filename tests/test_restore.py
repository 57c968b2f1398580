"""A re-engineered model comes back from its record: the committed ones where their sources are at hand."""

import dataclasses

import pytest
import torch
from conftest import ROOT

from seamlib import evaluate, masks, models, records, search
from seamlib.problems import data, tasks
from seamlib.records import runtime
from seamlib.restore import restore


@pytest.fixture
def made(tmp_path):
    """A record of three digits, its mask file and its root: one epoch on the kept digit classifier."""
    root = tmp_path
    (root / "data").mkdir()
    parameters = {"model": "lenet", "dataset": "mnist5k", "classes": "3,5,8", "seed": 0, "shots": 0, "data": "data",
                  "weights": str(ROOT / "book/results/train_source/lenet_mnist5k.safetensors"), "runs": "runs"}
    source = data.load("mnist5k", root / "data")
    model = models.pretrained("lenet-mnist5k", root / "data", parameters["weights"])
    task = tasks.problem(source, classes="3,5,8")
    found = search.reengineer(model, models.new_head(10, 3, task.classes), data.batches(task.train, 64, seed=0),
                              data.batches(task.test, 256), search.Search(epochs=1, head_only_every=0, lr_mask=0.2))
    identity = {"weights": runtime.digest(model.state_dict()), "data": source.digest}
    path = root / "masks.safetensors"
    identity["masks"] = masks.save_masks(path, found.picks, source="lenet-mnist5k", weights=identity["weights"])
    results = {"epoch": {"paper": 0}, "accuracy": {"paper": found.history[0]["accuracy"]}}
    record = records.Record("direct_multiclass", task.name, parameters, results, 0, "0" * 40, False,
                            {"kind": "cpu", "name": "", "threads": 1}, 1.0, identity)
    return record, path, root


def test_the_restored_model_is_the_one_that_was_recorded(made):
    record, path, root = made
    source, model, task, found = restore(record, path, root)
    assert (source.name, task.classes) == ("mnist5k", (3, 5, 8))
    accuracy = evaluate.accuracy(found.module(), data.batches(task.test, 256))
    assert accuracy == record.results["accuracy"]["paper"]
    assert not any(torch.equal(p, q) for p, q in zip(model.fc1.parameters(), found.module()[0].fc1.parameters(),
                                                     strict=True) if p.dim() > 1)


def test_other_weights_data_or_masks_are_refused(made):
    record, path, root = made
    for what in ("weights", "data"):
        other = dataclasses.replace(record, sha256={**record.sha256, what: "f" * 64})
        with pytest.raises(ValueError, match=f"was made with {what} ffffffffffff..., here are"):
            restore(other, path, root)
    other = dataclasses.replace(record, sha256={**record.sha256, "masks": "f" * 64})
    with pytest.raises(ValueError, match="the record was made with ffffffffffff"):
        restore(other, path, root)
    with pytest.raises(FileNotFoundError, match="no mask file"):
        restore(record, root / "none", root)


def test_absent_weights_are_named(made):
    record, path, root = made
    other = dataclasses.replace(record, parameters={**record.parameters, "weights": "none.pt"})
    with pytest.raises(FileNotFoundError, match="the weights of lenet-mnist5k are not at hand .*train_source.ipynb"):
        restore(other, path, root)
