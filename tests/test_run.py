import dataclasses
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import cells
import nbformat
import psutil
import pytest
import run
import verify
from conftest import ROOT, RUNS

from seamlib import records
from seamlib.records import cache

TINY = {"epochs": "1", "shots": "20", "head_only_every": "0"}


@pytest.mark.parametrize(("given", "text"), [
    ({"alhpa": "1"}, "direct_binary has no parameter 'alhpa': allowed are model, dataset, target_class, lr_mask"),
    ({"epochs": "many"}, "parameter 'epochs' of direct_binary is 'many': it must be of type int"),
    ({"epochs": "1.5"}, "'epochs' of direct_binary is '1.5': it must be of type int"),
    ({"alpha": True}, "'alpha' of direct_binary is True: it must be of type float"),
])
def test_unknown_and_ill_typed_parameters_are_refused(given, text):
    with pytest.raises(ValueError, match=text):
        run.checked("direct_binary", given)


def test_values_take_the_declared_type():
    found = run.checked("direct_binary", {"alpha": "2", "epochs": "3", "model": "resnet20", "weights": "1.pt"})
    assert (found["alpha"], found["epochs"], found["model"], found["weights"]) == (2.0, 3, "resnet20", "1.pt")
    assert type(found["alpha"]) is float


def test_the_notebook_of_a_preset_is_read_once_for_all_of_its_cells(monkeypatch):
    read, paths = cells.nbformat.read, []
    monkeypatch.setattr(cells.nbformat, "read", lambda path, version: paths.append(path) or read(path, version))
    (all_classes,) = run.cells("paper", {})
    assert len(all_classes) == 10
    assert [path.stem for path in paths] == ["direct_binary"]


def test_a_default_is_what_python_reads(tmp_path, monkeypatch):
    code = 'text: str = "a # b = 1"  # a text\nrate: float = -1e-3  # a rate, below 0\nmany: int = 1_000  # a number'
    cell = nbformat.v4.new_code_cell(code, metadata={"tags": ["parameters"]})
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebooks/mine.ipynb")
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    assert cells.declared("mine") == {"text": ("str", "a # b = 1"), "rate": ("float", -0.001), "many": ("int", 1000)}


def test_unknown_notebook_and_preset_list_the_known(capsys):
    assert run.main(["cell", "nope"]) == 1
    notebooks = ("defect_inheritance, direct_binary, direct_multiclass, indirect_reuse, inference_cost, "
                 "largest_weights, planted_defect, planted_survival, put_together, retrain, ship, threshold_study, "
                 "train_source")
    assert f"unknown notebook 'nope': allowed are {notebooks}" in capsys.readouterr().err
    assert run.main(["grid", "nope"]) == 1
    presets = ("quick, cifar10, cifar10-long, cifar100, cifar100-short, cifar100-binary, cifar100-binary-short, "
               "together, scratch, vgg16, ")
    assert f"unknown preset 'nope': allowed are {presets}" in capsys.readouterr().err
    assert run.main(["grid", "paper", "-p", "nope=1"]) == 1
    assert "no notebook of preset 'paper' has a parameter 'nope'" in capsys.readouterr().err


def test_a_grid_is_every_combination_and_can_be_narrowed():
    (all_classes,) = run.cells("paper", {})
    assert [p["target_class"] for _, p in all_classes] == list(range(10))
    settings = {(p["epochs"], p["lr_mask"], p["alpha"], p["schedule"]) for _, p in all_classes}
    assert settings == {(300, 0.05, 1.0, "constant")}
    (one,) = run.cells("paper", {"target_class": "4"})
    assert [p["target_class"] for _, p in one] == [4]


def test_a_stage_may_be_of_several_notebooks():
    train, searches, attacks, planted, *timed = run.cells("quick", {})
    assert {n for n, _ in train} == {"train_source"}
    assert {n for n, _ in searches} == {
        "direct_binary", "direct_multiclass", "indirect_reuse", "retrain", "planted_defect"}
    assert {n for n, _ in attacks} == {
        "threshold_study", "defect_inheritance", "indirect_reuse", "largest_weights"}
    assert {n for n, _ in planted} == {"planted_survival"}
    assert [len(stage) for stage in timed] == [1, 1]  # what measures time runs alone


def test_a_grid_runs_its_cells_side_by_side_each_on_a_gpu_of_its_own_and_stops_after_a_stage_that_failed(monkeypatch):
    ran, waiting = [], threading.Barrier(2, timeout=20)

    def cell(notebook, parameters):
        waiting.wait()  # for another one
        ran.append((notebook, parameters["device"]))
        return notebook == "bad"
    stages = [[("good", {"device": "auto"}), ("bad", {"device": "auto"}), ("cpu", {"device": "cpu"}),
               ("good", {"device": "auto"})], [("never", {"device": "auto"})] * 2]
    monkeypatch.setattr(run, "run_cell", cell)
    monkeypatch.setattr(run, "check", lambda *cell: None)
    monkeypatch.setattr(run, "_share", lambda jobs: {})
    monkeypatch.setattr(run, "_gpus", lambda: 2)
    assert run.run_stages(stages, jobs=2) == 1
    assert sorted(ran) == [("bad", "cuda:1"), ("cpu", "cpu"), ("good", "cuda:0"), ("good", "cuda:1")]


def test_a_cell_that_cannot_run_is_said_and_stops_no_other(monkeypatch, capsys):
    ran = []

    def cell(notebook, parameters):
        if notebook == "dies":
            raise OSError("disk full")
        ran.append(notebook)
        return 0
    monkeypatch.setattr(run, "run_cell", cell)
    monkeypatch.setattr(run, "check", lambda *cell: None)
    assert run.run_stages([[("dies", {"a": 1}), ("good", {}), ("good", {})]], jobs=1) == 1
    assert ran == ["good", "good"]
    assert capsys.readouterr().err == f"dies {records.key({'a': 1})}: OSError: disk full\n"


def test_a_kernel_that_dies_is_said_with_its_log(runs, monkeypatch, capsys):
    def dies(*args, **how):
        raise RuntimeError("Kernel died")
    monkeypatch.setattr(run, "execute", dies)
    parameters = run.checked("direct_binary", {**TINY, "runs": RUNS})
    assert run.run_cell("direct_binary", parameters) == 1
    log = runs / "direct_binary" / f"{records.key(parameters)}.log"
    assert capsys.readouterr().err == f"direct_binary {records.key(parameters)}: Kernel died, log in {log}\n"


def test_what_was_kept_in_one_precision_is_not_replaced_by_another(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(run, "ROOT", tmp_path)

    def made(asked, **device):
        parameters = {"model": "m", "precision": asked}
        made = records.Record("retrain", "t", parameters, {}, 0, "c", False, {"kind": "cpu", **device}, 1.0, {})
        return records.write(made, tmp_path / asked)
    assert run.main(["keep", str(made("bf16"))]) == 0  # from before a record's device said it
    assert run.main(["keep", str(made("auto", precision="bf16"))]) == 0
    assert run.main(["keep", str(made("auto", precision="fp32"))]) == 1
    said = capsys.readouterr().err
    assert "was made in fp32, what is kept under its name in bf16: remove kept/retrain/m-t-cpu-" in said


@pytest.mark.parametrize("size", [10, 2_000])
def test_a_record_is_kept_without_a_student_that_is_too_large(size, monkeypatch, tmp_path, capsys):
    for name, value in (("KEPT", tmp_path / "kept"), ("ROOT", tmp_path), ("LARGEST", 1_000)):
        monkeypatch.setattr(run, name, value)
    parameters = {"model": "m", "precision": "fp32"}
    made = records.Record("indirect_reuse", "t", parameters, {}, 0, "c", False, {"kind": "cpu"}, 1.0, {"student": "s"})
    path = records.write(made, tmp_path)
    path.with_suffix(".safetensors").write_bytes(b"0" * size)
    assert run.main(["keep", str(path)]) == 0
    assert (tmp_path / "kept" / f"{made.stem}.json").is_file()
    assert (tmp_path / "kept" / f"{made.stem}.safetensors").is_file() == (size < 1_000)
    assert ("left out m-t" in capsys.readouterr().out.replace(f"{made.stem.split('/')[1]}", "m-t")) == (size > 1_000)


def test_a_cell_runs_once_and_can_be_verified(runs, capfd):
    cell = ["cell", "direct_binary", *(t for k, v in {**TINY, "runs": RUNS}.items() for t in ("-p", f"{k}={v}"))]
    assert run.main(cell) == 0
    assert not list(runs.glob("unfinished/*"))
    (path,) = runs.glob("direct_binary/*.json")
    record = records.read(path)
    assert record.parameters["epochs"] == 1
    assert set(record.results["accuracy"]) == {"original_all", "original_restricted", "head_only", "crossfit", "paper"}
    assert record.sha256.keys() == {"weights", "data", "masks"}
    before = path.stat().st_mtime_ns
    assert run.main(cell) == 0
    assert path.stat().st_mtime_ns == before
    assert "has a record" in capfd.readouterr().out
    assert run.main(["verify", str(path)]) == 0
    assert "accuracy.crossfit" in capfd.readouterr().out

    content = json.loads(path.read_text())  # a record that states another number than its mask gives
    content["results"]["accuracy"]["crossfit"] += 0.01
    path.write_text(json.dumps(content))
    assert run.main(["verify", str(path)]) == 1
    assert "DIFFERS" in capfd.readouterr().out

    other = "bf16" if record.device["precision"] == "fp32" else "fp32"
    asked = {**record.parameters, "precision": other}
    content["parameters"], content["device"]["precision"] = asked, other
    moved = path.with_name(path.name.replace(records.key(record.parameters), records.key(asked)))
    moved.write_text(json.dumps(content))
    shutil.copy(path.with_suffix(".safetensors"), moved.with_suffix(".safetensors"))
    assert run.finished("direct_binary", asked) == moved
    content["device"]["precision"] = record.device["precision"]  # what it was is not what is asked for by name
    moved.write_text(json.dumps(content))
    assert run.finished("direct_binary", asked) is None
    moved.unlink()

    path.write_text(path.read_text()[:100])  # half a record does not count as finished
    assert run.finished("direct_binary", run.checked("direct_binary", {**TINY, "runs": RUNS})) is None


def test_a_record_in_runs_is_verified_with_masks_that_are_kept(tmp_path):
    (kept, *_) = sorted((ROOT / "book/results/inference_cost").glob("*.json"))
    path = tmp_path / "inference_cost" / kept.name
    path.parent.mkdir()
    shutil.copyfile(kept, path)
    digest = records.read(path).sha256["masks of the record"]
    of, file = verify._found(path, ROOT, "direct_*", "masks", digest)
    assert of.sha256["masks"] == digest
    assert file.parents[1] == ROOT / "book/results"
    with pytest.raises(FileNotFoundError, match=f"no direct_.* masks 0000.* in {tmp_path} or {ROOT}/book/results"):
        verify._found(path, ROOT, "direct_*", "masks", "0" * 64)


def test_the_images_of_an_attack_are_verified_where_its_run_kept_them_also_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (path, *_) = sorted((ROOT / "book/results/defect_inheritance").glob("*.json"))
    record = records.read(path)
    record = dataclasses.replace(record, parameters={**record.parameters, "runs": "~/runs"})
    images = SimpleNamespace(batches=lambda *_, **__: [], spread=lambda *_: None)
    restored, folders = SimpleNamespace(problem=SimpleNamespace(test=None), body=None, student=None), []
    monkeypatch.setattr(verify, "data", images)
    monkeypatch.setattr(verify, "restore_student", lambda *_: restored)
    monkeypatch.setattr(verify.defects, "crafted", lambda *given: folders.append(given[-1]))
    monkeypatch.setattr(verify.defects, "inheritance", lambda *_: verify.defects.Inherited(0.5, None, 0.5, 1))
    verify.recompute(record, path, ROOT)
    assert folders == [tmp_path / "home/runs/adversarial"]


def test_a_kernel_that_dies_before_it_answers_is_started_again(monkeypatch, tmp_path):
    outcomes = []

    def start(*args, **kwargs):
        if outcome := outcomes.pop(0):
            raise RuntimeError(outcome)
    monkeypatch.setattr(run.papermill, "execute_notebook", start)
    died = "Kernel died before replying to kernel_info"
    outcomes[:] = [died, died, None]
    run.execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb")
    assert not outcomes
    for failing in ([died] * run.STARTS, ["Kernel died"]):  # the second while it ran: that is not repeated
        outcomes[:] = failing
        with pytest.raises(RuntimeError, match="Kernel died"):
            run.execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb")
        assert not outcomes


def test_a_page_that_fails_is_named_and_the_others_are_executed(monkeypatch, tmp_path, capsys):
    for name, code in (("pages/bad", "1 / 0"), ("walkthroughs/good", "import os; os.environ['OMP_NUM_THREADS']")):
        path = tmp_path / "book" / f"{name}.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), path)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "cells", lambda preset, given: [])
    monkeypatch.setattr(run, "_share", lambda jobs: {"OMP_NUM_THREADS": "1"} if jobs == 2 else {})
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # so that it is put back afterwards
    assert run.main(["pages", "--jobs", "2"]) == 1
    assert capsys.readouterr().err.startswith("book/pages/bad.ipynb: failed at cell 1\nZeroDivisionError")
    cell, _ = nbformat.read(tmp_path / "book/runs/good.ipynb", 4).cells
    assert cell.outputs[0]["data"]["text/plain"] == "'1'"


def test_the_other_direct_notebooks_run_and_can_be_verified(runs, capfd):
    def cell(notebook, **given):
        texts = (t for k, v in {"runs": RUNS, **given}.items() for t in ("-p", f"{k}={v}"))
        assert run.main(["cell", notebook, *texts]) == 0
        return next((runs / notebook).glob("*.json"))
    multi = cell("direct_multiclass", **TINY, classes="", n_classes="2", structure="0.3", norms="statistics")
    assert records.read(multi).task == "random2_seed0"
    assert run.main(["verify", str(multi)]) == 0
    cost = cell("inference_cost", record="direct_multiclass/*", rounds="1", batch_sizes="2")
    latency = records.read(cost).results["latency"]
    assert latency.keys() == {"torch", "onnxruntime", "deepsparse"}
    assert latency["torch"]["2"]["by_model"].keys() == {"original", "reengineered"}
    assert run.main(["verify", str(cost)]) == 0
    assert "reengineered.sparse" in capfd.readouterr().out
    ship = cell("ship", record="direct_multiclass/*", rounds="1", batch_sizes="2", engines="torch", pick="a")
    results = records.read(ship).results
    assert results["same_logits"] == 1
    assert results["accuracy"]["compacted"] == results["accuracy"]["masked"]
    assert results["latency"]["torch"]["2"]["by_model"].keys() == {"original", "folded", "masked", "compacted"}
    assert sorted(p.name for p in ship.parent.glob("*/*/*")) == ["compacted.onnx", "masks.safetensors"]
    assert run.main(["verify", str(ship)]) == 0
    assert "bytes.masks" in capfd.readouterr().out
    scratch = cell("retrain", epochs="1", shots="20")
    assert records.read(scratch).results["accuracy"].keys() == {"last", "paper"}
    assert run.main(["verify", str(scratch)]) == 1
    assert "the model that it trained is not kept: run its cell again" in capfd.readouterr().err


def test_the_notebooks_of_indirect_reuse_run_and_can_be_verified(runs, capfd):
    def cell(notebook, **given):
        texts = (t for k, v in {"runs": RUNS, **given}.items() for t in ("-p", f"{k}={v}"))
        assert run.main(["cell", notebook, *texts]) == 0
        return next((runs / notebook).glob("*.json"))
    cell("train_source", dataset="digits0to4", epochs="1")
    steps = {"epochs_s1": "1", "epochs_s2": "1", "epochs_s3": "1", "shots": "40"}
    student = cell("indirect_reuse", **steps)
    assert student.with_suffix(".safetensors").is_file()
    assert run.main(["verify", str(student)]) == 0
    defects = cell("defect_inheritance", iterations="2", eps="0.2", n_images="40", white_box_images="10")
    results = records.read(defects).results
    assert (results["n"], results["n_white_box"]) == (40, 10)
    assert defects.with_suffix(".png").stat().st_size > 1000
    assert results["dir_pixel"] is None or 0 <= results["dir_pixel"] <= 1
    lost = results["accuracy"] * (results["dir_pixel"] or 0)
    assert results["accuracy_adversarial"] >= results["accuracy"] - lost - 1e-9  # and what turned right by chance
    assert {"dir_pixel_noise", "teacher_turned", "accuracy_white_box"} <= results.keys()
    assert run.main(["verify", str(defects)]) == 0
    assert "accuracy" in capfd.readouterr().out
    study = cell("threshold_study", **steps, thresholds="0.4", iterations="2")
    assert records.read(study).results["threshold"] == [0.0, 0.4]
    assert run.main(["verify", str(study)]) == 1
    assert "the students that it made are not kept" in capfd.readouterr().err


def test_a_planted_defect_is_followed_into_a_student_and_into_masks(runs, capfd):
    def cell(notebook, **given):
        texts = [t for k, v in {"runs": RUNS, **given}.items() for t in ("-p", f"{k}={v}")]
        assert run.main(["cell", notebook, *texts]) == 0
        return max((runs / notebook).glob("*.json"), key=lambda path: path.stat().st_mtime)
    cell("train_source", dataset="digits0to4", epochs="1")
    planted = cell("planted_defect", epochs="1", shots="40")
    assert run.files_of(records.read(planted), planted).keys() == {planted.with_suffix(".safetensors").name}
    digests = records.read(planted).sha256
    few = {"shots": "40", "planted": "planted_defect/lenet-digits0to4-*"}
    student = cell("indirect_reuse", method="standard", epochs_s3="1", **few)
    found = cell("direct_multiclass", **TINY, dataset="digits0to4", classes="0,1,2", planted=few["planted"])
    for path in (student, found):
        of = records.read(path)
        assert of.task.startswith("planted ")
        assert of.sha256["weights"] == digests["poisoned"] != digests["weights"]
        left = cell("planted_survival", record=of.stem)
        assert run.main(["verify", str(planted), str(path), str(left)]) == 0
    models = records.read(left).results["models"]
    assert models["restricted"]["success"] is not None  # class 0 is one of its three
    assert 0 <= models["paper"]["kept_changed"] <= 1
    assert "restricted.success_control" in capfd.readouterr().out
    planted.with_suffix(".safetensors").unlink()
    assert run.main(["verify", str(student)]) == 1
    assert "cannot be recomputed here: needs weights" in capfd.readouterr().err


def test_a_grid_over_records_has_a_cell_for_each():
    (stage,) = run.cells("transfer-defects", {})
    found = {p.relative_to(folder) for folder in (ROOT / "book/results", ROOT / "runs")
             for p in folder.glob("indirect_reuse/resnet20-cifar10-[!p]*.json")}
    assert len(stage) == 2 * len(found) >= 20  # two attacks


def test_a_grid_over_the_records_of_presets_has_a_cell_for_each_of_them_and_for_no_other():
    stages = run.cells("cost", {})
    for stage, (preset, notebook) in zip(stages, [
            ("cifar10", "direct_binary"), ("cifar100-binary", "direct_binary"), ("cifar100", "direct_multiclass"),
            ("vgg16", "direct_binary"), ("imagenette", "direct_multiclass")], strict=True):
        keys = {records.key(p) for cells in run.cells(preset, {}) for book, p in cells if book == notebook}
        assert sorted(p["record"].rpartition("-")[2] for _, p in stage) == sorted(keys)  # all of them are kept
        assert {p["record"].partition("/")[0] for _, p in stage} == {notebook}


def test_a_preset_cannot_take_records_of_its_own_cells(monkeypatch):
    def of(preset):
        return [{"notebook": "inference_cost", "parameters": {"record": f"preset:{preset}/direct_binary"}}]

    monkeypatch.setattr(cells, "_grid", lambda: {"one": of("two"), "two": of("one")})
    with pytest.raises(ValueError, match="preset 'one' takes records of its own cells .one from two from one.: give"):
        run.cells("one", {})


def test_a_path_with_a_restricted_head_gives_a_front_and_verifies_it(runs, capfd):
    cell = {"runs": RUNS, "path": "1,5,20", "epochs": "4", "shots": "40", "head": "restricted", "labels": "soft"}
    assert run.main(["cell", "direct_binary", *(t for k, v in cell.items() for t in ("-p", f"{k}={v}"))]) == 0
    (path,) = runs.glob("direct_binary/*.json")
    results = records.read(path).results
    assert [p["alpha"] for p in results["front"]] == [1.0, 5.0, 20.0]
    assert set(results["no_loss"]) == {"all", "restricted"}
    assert run.main(["verify", str(path)]) == 0
    assert "front.20.accuracy_a" in capfd.readouterr().out

    content = json.loads(path.read_text())
    content["results"]["front"][2]["kept"] += 0.001
    path.write_text(json.dumps(content))
    assert run.main(["verify", str(path)]) == 1
    assert "front.20.kept" in capfd.readouterr().out


def test_the_largest_weights_are_trained_as_long_as_the_search_had_been_and_verified(runs, capfd):
    searched = {"runs": RUNS, "path": "1,5", "epochs": "4", "shots": "40"}
    assert run.main(["cell", "direct_multiclass", *(t for k, v in searched.items() for t in ("-p", f"{k}={v}"))]) == 0
    assert run.main(["cell", "largest_weights", "-p", f"runs={RUNS}", "-p", "pick=1"]) == 0
    (path,), (of,) = runs.glob("largest_weights/*.json"), runs.glob("direct_multiclass/*.json")
    results, (point, _) = records.read(path).results, records.read(of).results["front"]
    assert results["epochs"] == len(results["history"]) == 2  # of the search's four, when it was at alpha 1
    assert (results["kept"], results["accuracy"]["searched"]) == (point["kept"], pytest.approx(point["accuracy"]))
    assert results["accuracy"]["largest"] == results["history"][-1]["accuracy"]
    assert point["kept"] <= results["shared"] <= 1
    assert run.main(["verify", str(path)]) == 0

    content = json.loads(path.read_text())
    content["results"]["accuracy"]["largest"] += 0.01
    path.write_text(json.dumps(content))
    capfd.readouterr()
    assert run.main(["verify", str(path)]) == 1
    assert "accuracy.largest" in capfd.readouterr().out
    path.with_suffix(".safetensors").unlink()
    assert run.finished("largest_weights", run.checked("largest_weights", {"runs": RUNS, "pick": "1"})) is None


def test_binary_models_are_put_together_and_verified(runs, capfd):
    def cell(notebook, **given):
        texts = (t for k, v in {"runs": RUNS, **given}.items() for t in ("-p", f"{k}={v}"))
        return run.main(["cell", notebook, *texts])
    short = {**TINY, "path": "1,5", "epochs": "2", "head": "restricted"}
    assert cell("direct_binary", **short, target_class="3") == cell("direct_binary", **short, target_class="8") == 0
    both = {"model": "lenet", "dataset": "mnist5k", "classes": "8,3",
            "binaries": "direct_binary/*binary3-*, direct_binary/*binary8-*"}
    assert cell("put_together", **both) == 0
    (path,) = runs.glob("put_together/*.json")
    results = records.read(path).results
    assert [p["alpha"] for p in results["front"]] == [1.0, 5.0]
    assert results["n"] == 300
    assert run.main(["verify", str(path)]) == 0
    assert "union.5.found.2" in capfd.readouterr().out

    parameters = run.checked("put_together", {**both, "runs": RUNS})
    assert run.finished("put_together", parameters) == path
    (other,) = runs.glob("direct_binary/*binary8-*.json")
    content = json.loads(other.read_text())
    content["sha256"]["masks"] = "f" * 64
    other.write_text(json.dumps(content))
    assert run.finished("put_together", parameters) is None
    assert "has other masks now" in capfd.readouterr().out
    other.unlink()
    assert cell("put_together", **both) == 1  # what now matches first is a kept record
    assert "has model 'resnet20', not 'lenet': models that are put together are of one" in capfd.readouterr().err


def test_a_failing_cell_says_why_in_the_last_lines(runs):
    done = subprocess.run([sys.executable, ROOT / "notebooks/run.py", "cell", "direct_binary", "-p", "shots=1000",
                           "-p", f"runs={RUNS}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ValueError: shots is 1000: allowed are 0 (all) to 350, the training images there are of each label"
    assert not list(runs.glob("direct_binary/*.json"))


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_record_no_lock_and_no_kernel(runs, by):
    cell = {"runs": RUNS, "epochs": "100000", "shots": "20"}
    given = [text for name, value in cell.items() for text in ("-p", f"{name}={value}")]
    process = subprocess.Popen([sys.executable, ROOT / "notebooks/run.py", "cell", "direct_binary", *given],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # as in a terminal
    log = runs / "direct_binary" / f"{records.key(run.checked('direct_binary', cell))}.log"
    deadline = time.monotonic() + 100
    while not (log.is_file() and "epoch" in log.read_text()):
        assert time.monotonic() < deadline, "the search did not begin"
        time.sleep(0.2)
    kernels = psutil.Process(process.pid).children()
    process.send_signal(by)
    _, said = process.communicate()
    if by == signal.SIGINT:
        assert process.returncode == 130
        assert said == "stopped; what has a record is kept, the same command goes on\n"
    assert kernels
    psutil.wait_procs(kernels, timeout=60)
    assert not any(kernel.is_running() for kernel in kernels)
    assert not list(runs.glob("direct_binary/*.json"))
    assert run.finished("direct_binary", run.checked("direct_binary", cell)) is None
    (search,) = runs.glob("unfinished/*.safetensors")  # from which the next run goes on
    assert len(cache.read(search)[1]["history"]) >= 1
    with open(log.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if somebody still holds it


def test_a_cell_that_is_running_is_waited_for_and_not_started_twice(runs, capsys, monkeypatch):
    parameters = run.checked("direct_binary", {**TINY, "runs": RUNS})
    lock = runs / "direct_binary" / f"{records.key(parameters)}.lock"
    lock.parent.mkdir(parents=True)
    monkeypatch.setattr(run, "execute", lambda *cell, **how: pytest.fail("it was started"))
    monkeypatch.setattr(run, "finished", lambda *cell: held.closed)  # when the other one ends, it has a record
    held = open(lock, "w")  # noqa: SIM115
    fcntl.flock(held, fcntl.LOCK_EX)
    other = threading.Timer(0.2, held.close)
    other.start()
    assert run.run_cell("direct_binary", parameters) == 0
    said = capsys.readouterr().out
    assert said.index("is being run by another process, waits for it") < said.index("has a record")


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_keep_the_rules(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert 10 <= len(notebook.cells) <= 25
    assert all(not c.outputs and c.execution_count is None for c in code)
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert tagged == [code[0]]
    for line in tagged[0].source.splitlines():
        name, _, rest = line.partition(":")
        assert name.isidentifier(), line
        kind, _, value = rest.partition("=")
        assert kind.strip() in ("str", "int", "float"), line
        assert "  # " in value, line
    assert all(len(c.source.splitlines()) <= 20 for c in code[1:])
    assert [c.metadata.get("tags") for c in code].count(["checks"]) == 1
