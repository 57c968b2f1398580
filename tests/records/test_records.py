import dataclasses
import json

import pytest

from seamlib import records
from seamlib.records import runtime

PARAMETERS = {"model": "lenet", "dataset": "folder:/a b", "target_class": 3, "device": "auto", "data": "d", "runs": "r"}


def record(**changes):
    base = records.Record("direct_binary", "binary3", PARAMETERS, {"accuracy": {"paper": 0.5}, "none": None}, 0, "abc",
                          False, {"kind": "cpu", "name": "x", "threads": 1}, 1.5, {"weights": "w"})
    return dataclasses.replace(base, **changes)


def test_a_record_comes_back_as_it_was_written(tmp_path):
    path = records.write(record(), tmp_path)
    assert records.read(path) == record(finished=records.read(path).finished)
    assert path.relative_to(tmp_path).as_posix().startswith("direct_binary/lenet-folder_a_b-binary3-cpu-")


def test_the_name_depends_on_what_not_on_where():
    moved = {**PARAMETERS, "device": "cuda", "data": "elsewhere", "runs": "x", "weights": "y"}
    assert records.key(moved) == records.key(PARAMETERS)
    assert records.key({**PARAMETERS, "target_class": 4}) != records.key(PARAMETERS)


def test_a_run_whose_precision_the_machine_chooses_has_the_name_of_one_in_bf16():
    """As before there was a choice: the presets' records keep their names, whatever machine looks for them."""
    auto, half, full = (records.key({**PARAMETERS, "precision": p}) for p in ("auto", "bf16", "fp32"))
    assert auto == half != full


def test_a_parameter_that_came_later_changes_the_name_only_where_it_changes_the_run():
    assert records.key({"seed": 1, "structure": 0.0}) == records.key({"seed": 1})
    assert records.key({"seed": 1, "structure": 0.5}) != records.key({"seed": 1})
    assert records.key({"seed": 0.0}) != records.key({})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5"])
def test_results_must_be_numbers(tmp_path, value):
    with pytest.raises(ValueError, match=r"results.history\[1\] is .*: a result must be a finite number"):
        records.write(record(results={"history": [0.5, value]}), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_crash_while_writing_leaves_the_old_record(tmp_path, monkeypatch):
    path = records.write(record(), tmp_path)
    before = path.read_text()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(runtime.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        records.write(record(seconds=99.0), tmp_path)
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_half_written_record_is_named(tmp_path):
    path = records.write(record(), tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="is not a whole record .*: delete it and run its notebook again"):
        records.read(path)


def test_another_schema_is_refused(tmp_path):
    path = records.write(record(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": "seamlib-record-9"}))
    with pytest.raises(ValueError, match="record format 'seamlib-record-9': this version reads seamlib-record-1"):
        records.read(path)


def test_later_folders_win_and_tables_have_a_row_a_record(tmp_path):
    for seconds, root in ((1.0, "kept"), (2.0, "runs")):
        records.write(record(seconds=seconds), tmp_path / root)
    records.write(record(parameters={**PARAMETERS, "target_class": 4}), tmp_path / "kept")
    found = records.read_all([tmp_path / "kept", tmp_path / "runs"])
    table = records.table(found, {"class": "parameters.target_class", "s": "seconds", "acc": "results.accuracy.paper"})
    assert sorted(map(tuple, table.to_numpy().tolist())) == [(3, 2.0, 0.5), (4, 1.5, 0.5)]
    with pytest.raises(KeyError, match="no 'crossfit' of 'results.accuracy.crossfit' .* there is paper"):
        records.table(found, {"x": "results.accuracy.crossfit"})


def test_a_record_is_found_by_name_or_pattern_in_the_first_folder_that_has_it(tmp_path):
    for name in ("a/direct/x-1.json", "b/direct/x-1.json", "b/direct/x-0.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    roots = [tmp_path / "a", tmp_path / "b"]
    assert records.find("direct/x*", roots) == tmp_path / "a/direct/x-1.json"
    assert records.find("direct/x-0", roots) == tmp_path / "b/direct/x-0.json"
    assert records.find("direct/*", roots[::-1]) == tmp_path / "b/direct/x-0.json"
    with pytest.raises(FileNotFoundError, match="no record direct/y in .*a or .*b: run its notebook first"):
        records.find("direct/y", roots)
