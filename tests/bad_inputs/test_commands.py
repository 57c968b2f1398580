"""What people type that is wrong, and the words that the answer must have; or the value that it must give."""

import dataclasses
import json
import shutil

import pytest
import run
from cells import ROOT, check

from seamlib import models, records
from seamlib.records import runtime

CELLS = [  # notebook, parameters, words
    ("direct_binary", "epochs=1:30", "'epochs' of direct_binary is '1:30': it must be of type int"),
    ("direct_binary", "epochs=0x10", "is '0x10': it must be of type int"),
    ("direct_binary", "epochs=1.5", "is '1.5': it must be of type int"),
    ("direct_binary", "epochs=1e3", "is '1e3': it must be of type int"),
    ("direct_binary", "epochs=", "is '': it must be of type int"),
    ("direct_binary", "epochs=true", "is 'true': it must be of type int"),
    ("direct_binary", "epochs=[1,2]", "is '[1,2]': it must be of type int"),
    ("direct_binary", "seed=99999999999", "a whole number of at most 32 bits"),
    ("direct_binary", "seed=" + "9" * 5000, "a whole number of at most 32 bits"),
    ("direct_binary", "alpha=nan", "'alpha' of direct_binary is 'nan': it must be of type float, a finite number"),
    ("direct_binary", "alpha=inf", "a finite number"),
    ("direct_binary", "alpha=.inf", "a finite number"),
    ("direct_binary", "lr_mask=-inf", "a finite number"),
    ("direct_binary", "margin=NaN", "a finite number"),
    ("direct_binary", "temperature=1e999", "a finite number"),
    ("direct_binary", "alpha=1:30", "is '1:30': it must be of type float"),
    ("direct_binary", "alpha=0,5", "is '0,5': it must be of type float"),
    ("direct_binary", "alhpa=1", "direct_binary has no parameter 'alhpa': allowed are model, dataset"),
    ("direct_binary", "epochs=0", "epochs is 0: it must be 1 or more"),
    ("direct_binary", "batch_size=0", "batch_size is 0: it must be 1 or more"),
    ("direct_binary", "lr_mask=0", "lr_mask is 0.0: it must be above 0"),
    ("direct_binary", "lr_head=-1", "lr_head is -1.0: it must be above 0"),
    ("direct_binary", "alpha=-1", "alpha is -1.0: it must be 0 or more"),
    ("direct_binary", "structure=-0.1", "structure is -0.1: it must be 0 or more and below 1"),
    ("direct_binary", "structure=1.5", "structure is 1.5: it must be 0 or more and below 1"),
    ("direct_binary", "temperature=0", "temperature is 0.0: it must be above 0"),
    ("direct_binary", "head_only_every=-1", "head_only_every is -1"),
    ("direct_binary", "target_accuracy=1.5", "target_accuracy is 1.5"),
    ("direct_binary", "max_removed=2", "max_removed is 2.0"),
    ("direct_binary", "patience=3", "patience is 3: it reads the accuracy that is reported"),
    ("direct_binary", "patience=-1 protocol=paper", "patience is -1"),
    ("direct_binary", "protocol=best", "unknown protocol 'best': allowed are crossfit, paper"),
    ("direct_binary", "head=deep", "unknown head 'deep': allowed are linear, restricted"),
    ("direct_binary", "labels=soft", "unknown head 'linear': allowed are restricted"),
    ("direct_binary", "norms=batch", "unknown norms 'batch'"),
    ("direct_binary", "schedule=cosine", "unknown schedule 'cosine': allowed are constant, anneal"),
    ("direct_binary", "precision=half", "unknown precision 'half'"),
    ("direct_binary", "device=gpu", "unknown device 'gpu'"),
    ("direct_binary", "device=cuda:99", "'cuda:99' is not on this machine"),
    ("direct_binary", "path=5,2", "each above the last"),
    ("direct_binary", "path=a", "path is 'a': it must be alphas separated by commas"),
    ("direct_binary", "path=1,2 epochs=1", "path has 2 stages and epochs is 1"),
    ("direct_binary", "path=1,2 max_removed=0.5", "path is given with patience or max_removed"),
    ("direct_binary", "target_class=10", "target_class is 10: mnist5k has classes 0 to 9"),
    ("direct_binary", "target_class=-1", "target_class is -1: mnist5k has classes 0 to 9"),
    ("direct_binary", "model=resnet20 dataset=cifar100 target_class=100", "cifar100 has classes 0 to 99"),
    ("direct_binary", "shots=-1", "shots is -1: it must be 0 or more"),
    ("direct_binary", "repeats=0", "repeats is 0: it must be 1 or more"),
    ("direct_multiclass", "repeats=0", "repeats is 0: it must be 1 or more"),
    ("retrain", "repeats=0", "repeats is 0: it must be 1 or more"),
    ("direct_binary", "seed=-1", "seed is -1: it must be 0 or more"),
    ("direct_binary", "model=resnet21", "unknown model 'resnet21'"),
    ("direct_binary", "dataset=mnist", "unknown data set 'mnist'"),
    ("direct_binary", "dataset=cifar10", "model 'lenet' is not defined for cifar10"),
    ("direct_binary", "model=resnet20 dataset=folder:", "the path '' names no place"),
    ("direct_binary", "model=resnet20 dataset=folder:nowhere", "nowhere/train"),
    ("direct_binary", "runs=", "the path '' names no place"),
    ("direct_binary", "data=", "the path '' names no place"),
    ("direct_binary", "runs=~no-such-user/runs", "the path '~no-such-user/runs' names no place"),
    ("direct_multiclass", "head_init=zero", "unknown head_init 'zero'"),
    ("direct_multiclass", "classes=3", "a multi-class problem needs at least two"),
    ("direct_multiclass", "classes=3,3", "class 3 is listed 2 times"),
    ("direct_multiclass", "classes=3,77", "class 77 is unknown: mnist5k has classes 0 to 9"),
    ("direct_multiclass", "classes=3,-1", "class -1 is unknown"),
    ("direct_multiclass", "classes=3,", "class '' is unknown to mnist5k"),
    ("direct_multiclass", "classes=3,cat", "class 'cat' is unknown to mnist5k"),
    ("direct_multiclass", "classes=", "given are none of"),
    ("direct_multiclass", "n_classes=2", "given are classes, n_classes of"),
    ("direct_multiclass", "classes= n_classes=1", "n_classes is 1: a random group of mnist5k has 2 to 10"),
    ("direct_multiclass", "classes= n_classes=11", "n_classes is 11"),
    ("direct_multiclass", "classes= target_superclass_idx=0", "mnist5k has no superclasses"),
    ("direct_multiclass", "model=resnet20 dataset=cifar100 classes= target_superclass_idx=20", "superclasses 0 to 19"),
    ("retrain", "lr=0", "lr is 0.0: it must be above 0"),
    ("retrain", "momentum=1", "momentum is 1.0: it must be in [0, 1)"),
    ("retrain", "weight_decay=-1", "weight_decay is -1.0"),
    ("retrain", "weight_decay=nan", "a finite number"),
    ("retrain", "classes=1,2", "given are target_class, classes of"),
    ("retrain", "target_class=12", "target_class is 12"),
    ("retrain", "schedule=anneal", "unknown schedule 'anneal': allowed are constant, cosine"),
    ("train_source", "epochs=-3", "epochs is -3"),
    ("train_source", "lr=inf", "a finite number"),
    ("train_source", "dataset=imagenet", "model 'lenet' is not defined for imagenet"),
    ("train_source", "seed=-5", "seed is -5: it must be 0 or more"),
    ("train_source", "model=resnet20 dataset=folder:/nowhere", "/nowhere/train"),
    ("indirect_reuse", "method=magic", "unknown method 'magic'"),
    ("indirect_reuse", "prune_threshold=2", "prune_threshold is 2.0: it must be in [0, 1]"),
    ("indirect_reuse", "dropout=1", "dropout is 1.0"),
    ("indirect_reuse", "epochs_s2=0", "step 2: epochs is 0"),
    ("indirect_reuse", "lr_s1_output_layer=0", "step 1: lr"),
    ("indirect_reuse", "lr_s3_hidden_layer=-1", "step 3: lr is -1.0"),
    ("indirect_reuse", "protocol=crossfit", "unknown protocol 'crossfit': allowed are holdout, paper"),
    ("indirect_reuse", "source=mnist", "unknown data set 'mnist'"),
    ("indirect_reuse", "model=resnet20 source=folder:x dataset=cifar10", "unknown source 'folder:x'"),
    ("indirect_reuse", "dataset=letters", "unknown data set 'letters'"),
    ("indirect_reuse", "dataset=cifar10", "lenet trained on digits0to4 takes images of 1 channel, those of cifar10"),
    ("indirect_reuse", "model=resnet20 source=cifar100", "takes images of 3 channels, those of digits5to9 have 1"),
    ("indirect_reuse", "dataset=folder:nowhere", "nowhere/train"),
    ("threshold_study", "thresholds=", "a value of thresholds ('') is ''"),
    ("threshold_study", "thresholds=0.3,x", "a value of thresholds ('0.3,x') is 'x': it must be of type float"),
    ("threshold_study", "thresholds=0.3,nan", "a finite number"),
    ("threshold_study", "thresholds=0,0.5", "each must be above 0 (nothing removed), and there once"),
    ("threshold_study", "thresholds=0.5,0.5", "and there once"),
    ("threshold_study", "thresholds=0.5,1.5", "prune_threshold is 1.5"),
    ("threshold_study", "attack=fgsm", "unknown attack 'fgsm': allowed are pixel, paper"),
    ("threshold_study", "iterations=0", "iterations is 0: it must be 1 or more"),
    ("threshold_study", "attack_seed=-1", "attack_seed is -1: it must be 0 or more"),
    ("defect_inheritance", "attack=fgsm", "unknown attack 'fgsm'"),
    ("defect_inheritance", "eps=-0.1", "eps is -0.1: it must be above 0"),
    ("defect_inheritance", "eps=inf", "a finite number"),
    ("defect_inheritance", "iterations=-1", "iterations is -1"),
    ("defect_inheritance", "n_images=-1", "n_images is -1: it must be 0 or more"),
    ("defect_inheritance", "white_box_images=-5", "white_box_images is -5: it must be 0 or more"),
    ("planted_defect", "side=0", "side is 0: it must be 1 or more"),
    ("planted_defect", "share=0.5", "share is 0.5: it must be above 0 and below 0.5"),
    ("planted_defect", "target_class=5", "target_class is 5: digits0to4 has classes 0 to 4"),
    ("planted_defect", "dataset=imagenet", "unknown dataset 'imagenet': allowed are digits0to4, digits5to9"),
    ("largest_weights", "epochs=-1", "epochs is -1: it must be 0 or more"),
    ("planted_survival", "changed=0", "changed is 0.0: it must be above 0 and at most 1"),
    ("inference_cost", "batch_sizes=0", "batch_sizes is 0: it must be 1 or more"),
    ("inference_cost", "batch_sizes=16,,1", "a value of batch_sizes ('16,,1') is ''"),
    ("inference_cost", "batch_sizes=16;1", "it must be of type int"),
    ("inference_cost", "engines=tensorrt", "unknown engine 'tensorrt'"),
    ("inference_cost", "rounds=0", "rounds is 0: it must be 1 or more"),
    ("put_together", "classes=6", "a multi-class problem needs at least two"),
    ("put_together", "classes=6,6", "class 6 is listed 2 times"),
    ("put_together", "classes=6,10", "class 10 is unknown: cifar10 has classes 0 to 9"),
    ("put_together", "model=lenet", "model 'lenet' is not defined for cifar10"),
    ("put_together", "runs=", "the path '' names no place"),
    ("ship", "threads=-1", "threads is -1: it must be 0 or more"),
    ("ship", "engines=", "unknown engine ''"),
    ("ship", "batch_sizes=-1", "batch_sizes is -1: it must be 1 or more"),
]
COMMANDS = [  # what is typed, words
    ("cell nope", "unknown notebook 'nope': allowed are defect_inheritance, direct_binary"),
    ("cell ../run", "unknown notebook '../run'"),
    ("cell direct_binary -p epochs", "-p 'epochs' is no NAME=VALUE"),
    ("cell direct_binary -p epochs=1 -p epochs=2", "-p 'epochs=2' gives 'epochs' again: give each once"),
    ("grid nope", "unknown preset 'nope': allowed are quick"),
    ("grid quick -p nope=1", "no notebook of preset 'quick' has a parameter 'nope'"),
    ("grid quick -p epochs=many", "'epochs' of train_source is 'many': it must be of type int"),
    ("grid quick --jobs 0", "--jobs is 0: it must be 1 or more"),
    ("grid quick --jobs -2", "--jobs is -2: it must be 1 or more"),
    ("grid quick --jobs two", "--jobs is 'two': it must be of type int"),
    ("grid quick --jobs 1.5", "--jobs is '1.5': it must be of type int"),
    ("pages --jobs 0", "--jobs is 0: it must be 1 or more"),
    ("pages --jobs many", "--jobs is 'many': it must be of type int"),
    ("verify nowhere.json", "no record at nowhere.json: give the .json file that a run wrote"),
    ("verify .", "no record at .: give the .json file that a run wrote"),
    ("keep runs/nothing/*.json", "no record at runs/nothing/*.json"),
    ("verify notebooks/grid.yml", "notebooks/grid.yml is not a whole record"),
]


def said(capsys) -> str:
    """The error: one line, in our words."""
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(("notebook", "given", "words"), CELLS)
def test_a_cell_that_cannot_be_right_is_refused_before_anything_runs(notebook, given, words, capsys, monkeypatch):
    monkeypatch.setattr(run, "run_cell", lambda *cell: pytest.fail("a cell ran"))
    typed = [text for pair in [*given.split(), "commit=c"] for text in ("-p", pair)]
    assert run.main(["cell", notebook, *typed]) == 1
    assert words in said(capsys)


@pytest.mark.parametrize(("typed", "words"), COMMANDS)
def test_a_command_that_cannot_be_right_says_so_in_one_line(typed, words, capsys, monkeypatch):
    monkeypatch.setattr(run, "run_cell", lambda *cell: pytest.fail("a cell ran"))
    monkeypatch.chdir(ROOT)
    assert run.main(typed.split()) == 1
    assert words in said(capsys)


def test_a_single_cell_has_no_number_of_jobs(capsys):
    with pytest.raises(SystemExit):
        run.main(["cell", "direct_binary", "--jobs", "2"])
    assert "unrecognized arguments: --jobs 2" in capsys.readouterr().err


@pytest.mark.parametrize("notebook", sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb")))
def test_checks_need_no_data_and_write_nothing(notebook, tmp_path):
    places = {"data": f"{tmp_path}/nowhere", "runs": f"{tmp_path}/nowhere", "commit": "c"}
    known = run.declared(notebook)
    check(notebook, run.checked(notebook, {name: value for name, value in places.items() if name in known}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("notebook", "given"), [
    ("inference_cost", {"batch_sizes": 16}), ("ship", {"batch_sizes": 4, "rounds": 3}),
    ("threshold_study", {"thresholds": 0.5}), ("direct_binary", {"path": 5, "alpha": 1}),
    ("retrain", {"target_class": -1, "classes": "1,2", "lr": 1}), ("indirect_reuse", {"weights": 1, "dropout": 0}),
])
def test_what_papermill_makes_of_a_number_is_as_good_as_its_text(notebook, given):
    check(notebook, {**run.checked(notebook, {"commit": "c"}), **given})


@pytest.mark.parametrize(("cell", "words"), [
    ("epochs: 010", 10), ("epochs: 0o17", "it must be of type int"), ("epochs: 1:30", "it must be of type int"),
    ("epochs: .inf", "it must be of type int"), ("alpha: .nan", "a finite number"), ("alpha: 1_0", 10.0),
    ("alpha: yes", "it must be of type float"), ("classes: 010", "010"), ("epochs: ~", "it must be of type int"),
    ("path: 1e1", "1e1"), ("epochs: []", "has a stage without a cell"), ("record: x", "has no parameter 'record'"),
    ("epochs: [3", "notebooks/grid.yml cannot be read: while parsing a flow sequence"),
    ("epochs: {a: 1}", "it must be of type int"),
])
def test_values_of_a_preset_are_what_a_person_means_or_refused(cell, words, tmp_path, monkeypatch, capsys):
    import cells

    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("*.py", "grid.yml"))
    text = f"mine:\n  - notebook: direct_multiclass\n    parameters:\n      {cell}\n"
    (tmp_path / "notebooks" / "grid.yml").write_text(text)
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    if isinstance(words, str) and " " in words:
        assert run.main(["grid", "mine"]) == 1
        assert words in said(capsys)
    else:
        (((_, parameters),),) = cells.cells("mine", {})
        assert parameters[cell.partition(":")[0]] == words


@pytest.mark.parametrize(("text", "words"), [
    ("mine:", "has a stage without a cell"), ("mine: []", "has a stage without a cell"),
    ("mine: [[]]", "has a stage without a cell"), ("mine: [direct_binary]", "must be a mapping of notebook and"),
    ("mine: [{notebook: nope}]", "unknown notebook 'nope'"),
    ("mine: [{notebook: direct_binary, parameter: {epochs: 1}}]", "must be a mapping of notebook and parameters"),
    ("mine: [{notebook: direct_binary, parameters: epochs}]", "must be a mapping of notebook and parameters"),
    ("mine: [{notebook: direct_binary, parameters: [1, 2]}]", "must be a mapping of notebook and parameters"),
    ("mine: [{notebook: ship, parameters: {record: [a, 'records:nope*']}}]", "no record matches 'nope*'"),
    ("mine: [{notebook: ship, parameters: {record: 'records:direct_*/nope*'}}]", "no record matches 'direct_*/nope*'"),
    ("mine: [{notebook: ship, parameters: {record: 'preset:nope/direct_binary'}}]", "unknown preset 'nope'"),
    ("mine: [{notebook: ship, parameters: {record: 'preset:its/retrain'}}]\n"
     "its: [{notebook: retrain, parameters: {seed: 7}}]",
     "no record matches 'its/retrain'"),
    ("mine: [{notebook: ship, parameters: {record: 'preset:its'}}]\n"
     "its: [{notebook: retrain, parameters: {seed: 7}}]",
     "no record matches 'its'"),
])
def test_a_preset_that_says_nothing_or_something_else_is_refused(text, words, tmp_path, monkeypatch, capsys):
    import cells

    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("*.py", "grid.yml"))
    (tmp_path / "notebooks" / "grid.yml").write_text(text)
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    assert run.main(["grid", "mine"]) == 1
    assert words in said(capsys)


@pytest.mark.parametrize("parameters", ["", " {}"])
def test_a_preset_without_parameters_has_the_defaults(parameters, tmp_path, monkeypatch):
    import cells

    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("*.py", "grid.yml"))
    text = f"mine:\n  - notebook: direct_binary\n    parameters:{parameters}\n"
    (tmp_path / "notebooks" / "grid.yml").write_text(text)
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    assert cells.cells("mine", {}) == [[("direct_binary", run.checked("direct_binary", {}))]]


def test_a_list_may_hold_records_by_their_pattern_beside_names(tmp_path, monkeypatch):
    import cells

    monkeypatch.setattr(cells, "KEPT", tmp_path)
    for name in ("a1", "a2", "b"):
        (tmp_path / f"{name}.json").touch()
    assert cells._values(["mine", "records:a*", "records:b"]) == ["mine", "a1", "a2", "b"]
    assert cells._values("records:a*") == ["a1", "a2"]
    assert cells._values([[1], 2]) == [[1], 2]


def test_one_bad_cell_of_a_grid_stops_it_before_the_first_runs(capsys, monkeypatch):
    monkeypatch.setattr(run, "run_cell", lambda *cell: pytest.fail("a cell ran"))
    assert run.main(["grid", "quick", "-p", "eps=-1", "-p", "commit=c"]) == 1
    assert "threshold_study" in said(capsys)


PARAMETERS = {"model": "lenet", "dataset": "mnist5k", "data": "data", "runs": "runs"}
GOOD = records.Record("direct_binary", "binary3", PARAMETERS, {"accuracy": {"paper": 0.5}}, 0, "c", False,
                      {"kind": "cpu"}, 1.0, {"weights": "w" * 64, "data": "d" * 64, "masks": "m" * 64})
RECORDS = [  # what of a record is changed, words of both keep and verify
    ({"experiment": "../../evil"}, "experiment is '../../evil', it must be the name of a notebook"),
    ({"experiment": "/tmp/evil"}, "it must be the name of a notebook"), ({"experiment": ""}, "the name of a notebook"),
    ({"experiment": None}, "the name of a notebook"), ({"experiment": ["a"]}, "the name of a notebook"),
    ({"experiment": "nope"}, "unknown"),
    ({"parameters": None}, "parameters is 'None', it must be a mapping"), ({"parameters": []}, "must be a mapping"),
    ({"results": []}, "results is '[]', it must be a mapping"), ({"results": "good"}, "must be a mapping"),
    ({"results": {"accuracy": {"paper": "0.5"}}}, "a result must be a finite number"),
    ({"results": {"accuracy": {"paper": float("nan")}}}, "a result must be a finite number"),
    ({"results": {"history": [1.0, float("inf")]}}, "a result must be a finite number"),
    ({"device": "cpu"}, "a mapping with kind"), ({"device": {}}, "a mapping with kind"),
    ({"sha256": None}, "a mapping of texts"), ({"sha256": {"weights": 1}}, "a mapping of texts"),
    ({"schema": "seamlib-record-9"}, "record format 'seamlib-record-9': this version reads seamlib-record-1"),
    ({"schema": None}, "record format None"), ({"more": 1}, "is not a whole record"),
    ({"sha256": {"data": "d"}, "experiment": "indirect_reuse"}, "the masks or student of"),
    ({"experiment": "train_source", "sha256": {}, "parameters": {}}, "has no '"),
]


def written(folder, **changed):
    path = folder / "record.json"
    path.write_text(json.dumps({**dataclasses.asdict(GOOD), **changed}))
    return path


@pytest.mark.parametrize("verb", ["keep", "verify"])
@pytest.mark.parametrize(("changed", "words"), RECORDS)
def test_a_record_is_not_trusted(verb, changed, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "KEPT", tmp_path / "kept")
    assert run.main([verb, str(written(tmp_path, **changed))]) == 1
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("kept/*"))


@pytest.mark.parametrize("missing", ["experiment", "parameters", "results", "device", "sha256", "task"])
def test_a_record_without_what_one_must_have_is_refused(missing, tmp_path):
    path = written(tmp_path)
    content = json.loads(path.read_text())
    del content[missing]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"is not a whole record .*{missing}"):
        records.read(path)


@pytest.mark.parametrize("text", ["", "[]", "1", "null", '"record"', "{", "\x00", "[" * 100000])
def test_a_file_that_is_no_record_is_refused(text, tmp_path):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(ValueError, match="is not a whole record"):
        records.read(tmp_path / "record.json")


@pytest.mark.parametrize("masks", ["record.safetensors", None])
def test_a_renamed_record_is_kept_under_its_own_name_with_its_masks(masks, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    own = tmp_path / (masks or f"{GOOD.stem.partition('/')[2]}.safetensors")
    own.write_bytes(b"masks")
    assert run.main(["keep", str(written(tmp_path))]) == 0
    assert sorted(p.relative_to(tmp_path / "kept").as_posix() for p in (tmp_path / "kept").rglob("*.*")) == [
        f"{GOOD.stem}.json", f"{GOOD.stem}.safetensors"]


def test_every_record_of_a_list_is_tried_and_one_bad_one_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "record.safetensors").write_bytes(b"masks")
    good = str(written(tmp_path))
    assert run.main(["keep", "nowhere.json", good, "nowhere2.json"]) == 1
    said = capsys.readouterr()
    assert said.err.count("error: no record at") == 2
    assert "kept" in said.out


@pytest.fixture
def trained(tree, tmp_path):
    """(parameters, weights file) of a cell that has a record, made from a folder's images and a file of weights."""
    weights = tmp_path / "weights.pt"
    model = models.build(f"resnet20-folder:{tree}", 2)
    models.torch.save(model.state_dict(), weights)
    parameters = run.checked("direct_binary", {
        "model": "resnet20", "dataset": f"folder:{tree}", "target_class": 0, "runs": str(tmp_path / "runs"),
        "weights": str(weights), "data": str(tmp_path / "data"), "device": "cpu"})
    source = run.loaded(parameters["dataset"], tmp_path / "data")
    record = records.Record("direct_binary", "binary0", parameters, {}, 0, "c", False, {"kind": "cpu"}, 1.0, {
        "weights": runtime.digest(model.state_dict()), "data": source.digest, "masks": "m"})
    records.write(record, tmp_path / "runs").with_suffix(".safetensors").touch()
    run.loaded.cache_clear()
    return parameters, weights


def test_a_record_counts_while_what_it_was_made_from_is_what_is_there(trained, capsys):
    parameters, weights = trained
    assert run.finished("direct_binary", parameters)
    moved = weights.rename(weights.with_name("moved.pt"))  # the same weights at another place are the same
    assert run.finished("direct_binary", {**parameters, "weights": str(moved)})
    state = models.read_weights(moved)
    state["fc.bias"] += 1e-3
    models.torch.save(state, weights)
    assert run.finished("direct_binary", parameters) is None
    assert "runs again, its record is of other things" in (said := capsys.readouterr().out)
    assert "was made with weights" in said


def test_a_record_whose_images_are_not_at_hand_is_not_said_to_be_of_others(trained, tree, capsys):
    parameters, _ = trained
    tree.rename(tree.with_name("elsewhere"))
    assert run.finished("direct_binary", parameters) is None
    assert "runs again, its record cannot be compared with what is there: " in capsys.readouterr().out


def test_a_record_does_not_count_once_an_image_is_another(trained, tree, capsys):
    parameters, _ = trained
    (tree / "train" / "cat" / "0.png").write_bytes((tree / "train" / "dog" / "0.png").read_bytes())
    assert run.finished("direct_binary", parameters) is None
    assert "was made with data" in capsys.readouterr().out
