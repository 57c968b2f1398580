import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cells
import cluster
import pytest
import run
import status
import yaml
from conftest import ROOT
from kills import result

from seamlib import records
from seamlib.records import runtime

SNAKEMAKE = Path(sys.executable).with_name("snakemake")
PRESETS = list(yaml.safe_load((ROOT / "notebooks/grid.yml").read_text()))
NEEDED = {"paper-defects", "transfer-lite0-flowers"}  # records that were not made here, photos in a folder
local = pytest.mark.skipif(not SNAKEMAKE.is_file(), reason="Snakemake needs Python 3.11")


def snakemake(profile, *config, more=()):
    command = [SNAKEMAKE, "--profile", f"notebooks/profiles/{profile}", *more, "--config", *config]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@local
def test_a_dry_run_of_every_preset_lists_the_cells_of_run_py(runs):
    presets = [preset for preset in PRESETS if preset not in NEEDED]
    done = snakemake("local", f"preset={','.join(presets)}", f"runs={runs}", more=["--dry-run"])
    assert done.returncode == 0, done.stdout + done.stderr
    listed = re.findall(r"^    output: .*/cells/(\w+)-([0-9a-f]{8})$", done.stdout + done.stderr, re.MULTILINE)
    wanted = {(notebook, records.key(p)) for preset in presets
              for notebook, p in itertools.chain(*run.cells(preset, {"runs": str(runs)}))}
    assert len(listed) == len(set(listed))
    assert set(listed) == wanted


@local
def test_a_grid_is_planned_for_kubernetes(runs):
    done = snakemake("kubernetes", "preset=tiny", f"runs={runs}", more=["--dry-run"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall("^rule .*:$", done.stdout + done.stderr, re.MULTILINE)) == 5  # four cells and their sum


@local
@pytest.mark.parametrize(("config", "text"), [
    (["preset=qiuck"], "unknown preset 'qiuck': allowed are quick, cifar10"),
    (["epochs=3"], "no preset: give one of notebooks/grid.yml"),
    (["preset=tiny", "prune_threshold=2"], "prune_threshold is 2.0"),
    (["preset=5"], "unknown preset '5'"),
])
def test_what_cannot_run_is_said_in_a_line_before_any_job(config, text):
    done = snakemake("local", *config)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert text in said
    assert "Traceback" not in said
    assert "Job stats" not in said


@local
def test_a_grid_through_snakemake_is_killed_goes_on_and_makes_the_records_of_run_py(runs):
    command = [SNAKEMAKE, "--profile", "notebooks/profiles/local", "--cores", "2", "--set-threads", "train_source=1",
               "--config", "preset=tiny", f"runs={runs / 'a'}"]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             start_new_session=True)
    until = time.monotonic() + 120
    while not list((runs / "a/train_source").glob("*.json")) and time.monotonic() < until:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert run.main(["grid", "tiny", "--jobs", "2", "-p", f"runs={runs / 'b'}"]) == 0
    assert result(runs / "a") == result(runs / "b")
    links = list((runs / "a/cells").iterdir())
    assert {link.resolve() for link in links} <= {*(runs / "a").glob("*/*.json")}
    assert len(links) >= 3  # the first cell may have been killed between its record and its link
    third = snakemake("local", "preset=tiny", f"runs={runs / 'b'}")  # what run.py made counts here as well
    assert third.returncode == 0
    assert "1 of 1 steps" in third.stdout + third.stderr  # their sum alone


def test_a_machine_that_starts_a_grid_needs_no_gpu_and_no_bf16_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("seamlib.records.runtime.computes_bf16", lambda device: False)
    for given, text in (({"device": "cuda"}, "device 'cuda' is not on this machine"), ({"precision": "bf16"}, "bf16")):
        stages = run.cells("cifar10", {"target_class": "0", **given})
        with pytest.raises(ValueError, match=text):
            run.check_all(stages)
        run.check_all(map(cluster.anywhere, stage) for stage in stages)
        assert [run.finished(*cell, True) for stage in stages for cell in stage] == [None, None]
    with pytest.raises(ValueError, match="unknown device 'cuda:x'"):
        run.check_all([[cluster.anywhere(cell) for cell in run.cells("cifar10", {"device": "cuda:x"})[0]]])


def test_a_stage_waits_for_the_cells_of_earlier_stages_that_are_not_done():
    def cell(name):
        return ("direct_binary", {"runs": "runs", "name": name})
    a, b, c, d = map(cell, "abcd")
    place = {name: cluster.link(*cell(name)) for name in "abcd"}
    found, wanted, before = cluster.plan([[[a, b], [c]], [[b], [d]]], lambda _, p: p["name"] == "a")
    assert set(found) == set(place.values())
    assert wanted == [place[name] for name in "bcd"]
    assert before == {place["a"]: [], place["b"]: [], place["c"]: [place["b"]], place["d"]: [place["b"]]}


def test_a_link_to_a_record_that_is_outdated_is_forgotten(tmp_path):
    record = tmp_path / "direct_binary/it.json"
    cluster.make_link(tmp_path / "cells/a", record)
    cluster.make_link(tmp_path / "cells/a", record)  # in the place of the first
    assert os.readlink(tmp_path / "cells/a") == "../direct_binary/it.json"
    cluster.forget([str(tmp_path / "cells/a"), str(tmp_path / "cells/b")])
    assert not list((tmp_path / "cells").iterdir())


def test_arguments_make_the_same_cell_again():
    for notebook, parameters in itertools.chain(*run.cells("cifar100", {}), *run.cells("ship", {})):
        given = cells.arguments(notebook, parameters)
        assert set(given[::2]) == {"-p"}
        assert run.checked(notebook, run.split_given(given[1::2])) == parameters


@pytest.mark.parametrize(("old", "new", "text"), [
    ("ship: {cpus: 2", "shop: {cpus: 2", "it must have a line for each of defect_inheritance, direct_binary"),
    ("ship: {cpus: 2", "ship: {cores: 2", "for ship: it must give cpus, memory_mb, minutes, gpus"),
    ("ship: {cpus: 2", "ship: {cpus: two", "cpus of ship in notebooks/resources.yml is 'two': it must be of type int"),
    ("ship: {cpus: 2", "ship: {cpus: 0", "cpus of ship in notebooks/resources.yml"),
    ("ship: {cpus: 2", "ship: {cpus: [2", "notebooks/resources.yml cannot be read"),
    ("60, gpus: 0}\nindirect", "60, gpus: 2}\nindirect", "gpus of ship in .* is 2: a cell uses one, or 0"),
])
def test_a_table_of_needs_that_is_wrong_is_said(old, new, text, tmp_path, monkeypatch):
    assert set(cluster.resources()) == {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "notebooks/resources.yml"
    table.write_text(table.read_text().replace(old, new))
    monkeypatch.setattr(cluster, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=text):
        cluster.resources()


def test_two_cells_have_two_gpus_and_a_third_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with cluster.own_gpu(2) as first:
        with cluster.own_gpu(2) as second:
            assert {first, second} == {0, 1}
            third = cluster.own_gpu(2)
            monkeypatch.setattr(time, "sleep", lambda _: (_ for _ in ()).throw(TimeoutError))
            with pytest.raises(TimeoutError):
                third.__enter__()
        with cluster.own_gpu(2) as again:
            assert again == second
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as a scheduler gives each job one of its own
    with cluster.own_gpu(1) as given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
        with cluster.own_gpu(1) as other:
            assert given == other == 0
    with pytest.raises(ValueError, match="no GPU is visible here"), cluster.own_gpu(0):
        pass


def test_a_cell_that_asks_for_a_gpu_is_given_one_and_leaves_a_link(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []
    monkeypatch.setattr(run, "_gpus", lambda: 3)
    monkeypatch.setattr(run, "run_stages", lambda stages, jobs: seen.append(stages[0][0][1]["device"]) or 0)
    monkeypatch.setattr(run, "recorded", lambda *_: tmp_path / "direct_binary/it.json")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "direct_binary").mkdir()
    with open(tmp_path / f"seamlib-gpu-{os.getuid()}-0.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        given = ["cell", "direct_binary", "--gpu", "--link", str(tmp_path / "cells/x")]
        assert run.main(given) == run.main([*given, "-p", "device=cpu"]) == 0
    assert seen == ["cuda:1", "cpu"]
    assert os.readlink(tmp_path / "cells/x") == "../direct_binary/it.json"


def cell_of(runs, **given):
    parameters = cells.checked("direct_binary", {"runs": str(runs), **given})
    return ("direct_binary", parameters), runs / "direct_binary" / f"{records.key(parameters)}.lock"


def test_status_tells_what_is_done_runs_failed_stopped_and_is_missing(tmp_path, capsys):
    names = ("done", "running", "failed", "stopped", "missing")
    made = {name: cell_of(tmp_path, target_class=number) for number, name in enumerate(names)}
    (tmp_path / "direct_binary").mkdir()
    kept = tmp_path / "direct_binary/it.json"
    for name in ("running", "stopped"):
        with open(made[name][1], "a+") as lock:
            status.begin(lock)
    with open(made["failed"][1], "a+") as lock:
        status.failed(lock, "Traceback\nValueError: it\n")
    kept.write_text((sorted((ROOT / "book/results/direct_binary").glob("*.json"))[0]).read_text())

    def recorded(_, parameters, anywhere):
        assert anywhere
        return kept if parameters["target_class"] == 0 else None

    def other(*_):
        raise ValueError("has other weights")
    with open(made["running"][1]) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code = status.told([[cell for cell, _ in made.values()]], recorded, lambda *_: None)
    assert code == 1
    *lines, sums = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("careful")]
    assert [line.split()[2] for line in lines] == list(names)
    assert f"process {os.getpid()} on " in lines[1]
    assert lines[2].endswith("ValueError: it")
    assert sums.startswith("1 done, 1 running, 1 failed, 1 stopped, 1 missing; spent ")
    assert status.told([[made["done"][0]]], recorded, lambda *_: None) == 0
    assert status.told([[made["done"][0]]], recorded, other) == 1
    assert " outdated " in capsys.readouterr().out.split("spent")[1]


def test_status_knows_how_long_cells_of_a_kind_took_and_what_it_does_not_know():
    known, unknown = run.cells("cifar100", {})[0][0], run.cells("paper-imagenet", {})[0][0]
    rows = status.rows([[known, unknown]], lambda *_: None, lambda *_: None)
    assert rows[0]["expected"] > 60
    assert rows[1]["expected"] is None


def test_status_says_when_records_of_one_grid_are_of_other_weights_or_changed_code(tmp_path, capsys):
    stages = [[cell for cell, _ in (cell_of(tmp_path, target_class=n) for n in range(2))]]
    content = json.loads(sorted((ROOT / "book/results/direct_binary").glob("resnet20-cifar10-*.json"))[0].read_text())
    for number, digest in enumerate(("a" * 64, "b" * 64)):
        other = {**content, "sha256": {**content["sha256"], "weights": digest}, "dirty": number == 0}
        (tmp_path / f"{number}.json").write_text(json.dumps(other))
    status.told(stages, lambda _, p, __: tmp_path / f"{p['target_class']}.json", lambda *_: None)
    said = capsys.readouterr().out
    assert "the weights of resnet20-cifar10 are not the same everywhere: aaaaaaaaaaaa in 0.json, bbbbbbbbbbbb" in said
    assert f"1 records are of code that differed from commit {content['commit'][:8]}, such as 0.json" in said


def test_a_cell_that_fails_says_so_in_its_lock(runs, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("Kernel died\n for want of memory")
    monkeypatch.setattr(run, "execute", fails)
    cell, lock = cell_of(runs)
    assert run.run_cell(*cell) == 1
    assert status.state(lock) == {"error": "for want of memory", "running": False}


def test_a_full_disk_is_said_by_run_and_by_status_and_what_was_there_stays(runs, monkeypatch, capsys):
    def full(*_, **__):
        (runs / "direct_binary").mkdir(exist_ok=True)
        with runtime.atomic(runs / "direct_binary/record.json") as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")
    (runs / "direct_binary").mkdir(parents=True)
    (runs / "direct_binary/record.json").write_text("{}")
    monkeypatch.setattr(run, "execute", full)
    assert run.main(["cell", "direct_binary", "-p", f"runs={runs}"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (runs / "direct_binary/record.json").read_text() == "{}"
    assert not list(runs.rglob("*.part"))
    _, lock = cell_of(runs)
    assert status.state(lock) == {"error": "OSError: [Errno 28] No space left on device", "running": False}
