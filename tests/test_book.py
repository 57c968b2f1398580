"""The committed results, and the check that the build of the book ends with."""

import dataclasses
import html
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import direct
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import report
import run
import speeds
import students
import torch
import worksheets
import yaml
from check import notebook_faults, page_faults
from conftest import ROOT, SHARED
from PIL import Image
from scipy import stats

from seamlib import masks, records, search, together

RESULTS = ROOT / "book" / "results"
DIRECT = sorted(RESULTS.glob("direct_*/*.json"))


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda p: p.stem)
def test_every_kept_record_is_whole_and_named_by_its_content(path):
    record = records.read(path)
    assert path.relative_to(RESULTS).with_suffix("").as_posix() == record.stem
    assert not record.dirty
    assert not str(record.parameters.get("weights", "")).startswith("/")


def test_each_records_command_is_that_of_its_cell():
    for path in RESULTS.rglob("*.json"):
        record = records.read(path)
        words = shlex.split(run.command(record))
        if record.experiment == "speed":
            assert words == ["make", "bench"]
            continue
        assert words[:4] == ["python", "notebooks/run.py", "cell", record.experiment]
        assert set(words[4::2]) <= {"-p"}
        parameters = run.checked(record.experiment, run.split_given(words[5::2]))
        assert records.key(parameters) == records.key(record.parameters), path.stem


@pytest.mark.parametrize("path", DIRECT, ids=lambda p: p.stem)
def test_a_records_numbers_follow_from_its_history_and_its_masks(path):
    record = records.read(path)
    results = record.results
    stored = masks.load_masks(path.with_suffix(".safetensors"))
    assert stored.digest == record.sha256["masks"]
    assert stored.weights == record.sha256["weights"]
    columns = results["history"]
    history = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    points = results.get("front") or history  # a path is picked from where its stages end
    chosen = {series: search.pick(points, target, "accuracy" if series == "paper" else f"accuracy_{series}")
              for series, target in results["target"].items()}
    epochs = {series: int(points[i]["epoch"]) if "epoch" in points[i] else i for series, i in chosen.items()}
    assert epochs.items() <= results["epoch"].items()
    for name, mask in stored.masks.items():
        assert masks.kept_fraction(mask) == history[results["epoch"][name]]["kept"]
        assert sum(m.numel() for m in mask.values()) == results["weights_total"]
    assert results["kept_fraction"]["paper"] == history[epochs["paper"]]["kept"]
    crossfit = search.crossfit(history, epochs)
    assert results["accuracy"]["crossfit"] == crossfit["accuracy"]
    assert results["kept_fraction"]["crossfit"] == crossfit["kept"]


@pytest.mark.skipif(not (SHARED / "weights/cifar10_resnet20.pt").is_file(), reason="the source weights are not at hand")
def test_kept_masks_belong_to_the_papers_source_models():
    from seamlib import models

    sources = {f"resnet20-{data}": models.pretrained(f"resnet20-{data}", "", SHARED / f"weights/{data}_resnet20.pt")
               for data in ("cifar10", "cifar100")}
    found = 0
    for path in DIRECT:
        p = records.read(path).parameters
        if (model := sources.get(f"{p['model']}-{p['dataset']}")) and not p.get("planted"):
            masks.load_masks(path.with_suffix(".safetensors"), model)
            found += 1
    assert found >= 41


@pytest.mark.parametrize(("preset", "n"), [("cifar10", 10), ("cifar100", 20), ("cifar100-binary", 10), ("vgg16", 3)])
def test_all_problems_are_there_with_one_alpha_and_each_control(preset, n):
    (ours,), scratch = ({records.key(p) for _, p in stage} for stage in run.cells(
        "annealed" if preset == "cifar10" else f"annealed-{preset}", {})), {
        records.key(p) for _, p in run.cells(preset, {})[1]}
    found = {records.key(r.parameters): r for r in map(records.read, RESULTS.rglob("*.json"))}
    assert len(ours) == len(scratch) == n
    assert ours | scratch <= found.keys()


@pytest.mark.parametrize(("preset", "notebook", "n"), [
    ("cifar10", "direct_binary", 10), ("cifar100", "direct_multiclass", 20), ("cifar100-binary", "direct_binary", 10),
    ("vgg16", "direct_binary", 3), ("imagenette", "direct_multiclass", 1)])
def test_masks_without_a_search_fall_short_of_every_front_at_a_tenth(preset, notebook, n):
    floors = {r.sha256["masks of the record"]: r.results["accuracy"]
              for r in report.of_preset("cost", "inference_cost")}
    found = report.of_preset(preset, notebook)
    assert len(found) == n
    for record in found:
        floor, chance = floors[record.sha256["masks"]], {"cifar100": 0.2, "imagenette": 0.1}.get(preset, 0.5)
        margin = 0.01 if preset == "vgg16" else 0.02  # its largest weights come near
        for norms in ("masks", "anew"):
            assert chance - 0.03 < floor[f"random_{norms}"] < floor["delivered"] - 0.1
            assert chance - 0.03 < floor[f"magnitude_{norms}"] < floor["delivered"] - margin


# presets whose fronts the book shows, and how many problems each
FRONTS = [("cifar100", "direct_multiclass", 20), ("cifar100-binary", "direct_binary", 10),
          ("cifar10", "direct_binary", 10), ("imagenette-binary", "direct_binary", 10)]


@pytest.mark.parametrize(("preset", "notebook", "n"), FRONTS)
def test_all_fronts_are_there_and_say_what_their_points_say(preset, notebook, n):
    found = report.of_preset(preset, notebook)
    assert len({r.task for r in found}) == len(found) == n
    for r in found:
        front, accuracy = r.results["front"], r.results["accuracy"]
        kept = [point["kept"] for point in front]
        assert kept == sorted(kept, reverse=True)
        assert r.results["best"]["kept"] in [(a + b) / 2 for a in kept for b in kept]
        if no_loss := r.results["no_loss"]["all"]:
            choices = [*kept, 1.0]  # of a half; 1: the restricted original
            assert no_loss["kept"] in [(a + b) / 2 for a in choices for b in choices]
        assert min(p["accuracy"] for p in front) - 1e-9 <= direct.at(r) <= max(
            [p["accuracy"] for p in front] + [accuracy["original_restricted"]]) + 1e-9


def test_accuracy_at_a_share_lies_on_the_logarithmic_line_between_two_points():
    record = SimpleNamespace(results={"front": [{"kept": 0.4, "accuracy": 0.8}, {"kept": 0.1, "accuracy": 0.6}],
                                      "accuracy": {"original_restricted": 0.9}})
    assert direct.at(record, 0.2) == pytest.approx(0.7)  # half-way in octaves
    assert direct.at(record, 0.4) == pytest.approx(0.8)
    assert direct.at(record, 1.0) == pytest.approx(0.9)  # the restricted original keeps all
    assert np.isnan(direct.at(record, 0.05))


def test_an_ablation_has_a_row_a_setting_and_joins_searches_of_single_alphas(monkeypatch):
    first = {"path": "1,2", "epochs": 8, "norms": "affine", "target_superclass_idx": 0, "seed": 0}
    cells = [first, {**first, "target_superclass_idx": 1}, {**first, "norms": "frozen"},
             {**first, "path": "1", "epochs": 4}, {**first, "path": "2", "epochs": 4}, {**first, "norms": "statistics"}]

    def record(parameters, points):
        front = [{"kept": kept, "accuracy": accuracy} for kept, accuracy in points]
        return records.Record("direct_multiclass", f"superclass{parameters['target_superclass_idx']}", parameters,
                              {"front": front, "accuracy": {"original_restricted": 0.7}}, 0, "", False,
                              {"kind": "cpu"}, 1.0, {})
    flat = [(0.6, 0.8), (0.02, 0.8)]
    found = [record(p, points) for p, points in zip(cells, [flat, [(0.6, 0.7), (0.04, 0.7)], [(0.6, 0.6), (0.01, 0.6)],
                                                            flat[:1], flat[1:]], strict=False)]  # the last was not run
    monkeypatch.setattr(report.run, "cells", lambda *_: [[("direct_multiclass", p) for p in cells]])
    monkeypatch.setattr(report, "of_preset", lambda *_: found)
    table = direct.ablation("x", "direct_multiclass").set_index("setting")
    assert list(table.index) == ["unchanged", "norms frozen", "each alpha by itself"]
    assert table["10% to 50%: points"].tolist() == pytest.approx([5, -10, 10])  # of the unchanged: 10 and 0
    assert table["at 10.11%: points"].tolist() == pytest.approx([5, -10, 10])
    assert table["smallest"].tolist() == pytest.approx([0.03, 0.01, 0.02])
    assert table["searches"].tolist() == [2, 1, 1]


@pytest.mark.parametrize("preset", ["cifar100", "annealed-cifar100"])
def test_the_settings_of_the_superclasses_are_one_and_their_original_is_the_published_model(preset):
    found = report.of_preset(preset, "direct_multiclass")
    assert len(found) == 20  # problems of 500 images: the test set
    assert len({records.key({**r.parameters, "target_superclass_idx": 0}) for r in found}) == 1
    mean = np.mean([r.results["accuracy"]["original_all"] for r in found])
    assert mean == pytest.approx(0.6883)


def test_a_cost_record_counts_what_its_masks_keep():
    for path in RESULTS.glob("inference_cost/*.json"):
        record = records.read(path)
        (of,) = [p for p in DIRECT if records.read(p).sha256["masks"] == record.sha256["masks of the record"]]
        stored = masks.load_masks(of.with_suffix(".safetensors"))
        new, old = record.results["reengineered"], record.results["original"]
        pick = record.parameters["pick"]
        mask = stored.masks[pick].values()
        kept, covered = sum(int(m.sum()) for m in mask), sum(m.numel() for m in mask)
        head = sum(t.numel() for t in stored.heads[pick].values() if t.is_floating_point())  # not the classes' numbers
        assert new["weights"] == old["weights"] + head
        most = kept + old["weights"] - covered + head  # normalisation is not masked; some kept weights may be 0
        assert 0.99 * most <= new["weights_kept"] <= most
        assert 0 < new["sparse"] < new["dense"]
        (point,) = [p for p in records.read(of).results["front"] if f"{p['alpha']:g}" == pick]
        assert record.results["accuracy"]["delivered"] == pytest.approx(point["accuracy"], abs=0.0005)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("put_together/*.json")), ids=lambda p: p.stem)
def test_what_is_said_of_models_put_together_follows_from_their_masks(path):
    record = records.read(path)
    results, kept = record.results, {records.read(p).sha256["masks"]: p for p in DIRECT}
    classes = record.parameters["classes"].split(",")
    parts = [masks.load_masks(kept[record.sha256[f"masks of class {c}"]].with_suffix(".safetensors")).masks
             for c in classes]
    for point in results["front"]:
        alpha = f"{point['alpha']:g}"
        mine, union = [part[alpha] for part in parts], results["union"][alpha]
        assert point["kept"] == masks.kept_fraction(together.union(mine)) == pytest.approx(union["found"][-1])
        assert point["each"] == pytest.approx(np.mean([*map(masks.kept_fraction, mine)])) == union["found"][0]
        assert point["shared_by_chance"] < point["shared"]
        assert point["accuracy"] == pytest.approx((point["accuracy_a"] + point["accuracy_b"]) / 2)
    for control, chosen in results["no_loss"].items():
        assert chosen == search.no_loss(results["front"], results["originals"], control)
    assert results["best"] == search.best(results["front"], results["originals"])
    assert results["n"] == 1000 * len(classes)


def test_the_largest_weights_are_compared_with_the_point_of_a_search_that_had_as_many_epochs():
    found = report.of_preset("largest", "largest_weights")
    assert len(found) == 5
    fronts = {r.sha256["masks"]: r for r in map(records.read, DIRECT)}
    for record in found:
        results, of = record.results, fronts[record.sha256["masks of the record"]]
        (point,) = [p for p in of.results["front"] if f"{p['alpha']:g}" == record.parameters["pick"]]
        assert results["kept"] == pytest.approx(point["kept"])
        assert results["epochs"] == len(results["history"]) == point["epoch"] + 1
        assert results["accuracy"]["searched"] == pytest.approx(point["accuracy"], abs=0.0005)
        assert results["accuracy"]["largest"] == pytest.approx(results["history"][-1]["accuracy"], abs=0.0005)
        for name in ("original_all", "original_restricted"):
            assert results["accuracy"][name] == of.results["accuracy"][name]


def test_the_groups_that_are_put_together_are_drawn_and_searched_at_once_as_their_classes_were():
    rng, (apart, once) = np.random.default_rng(0), run.cells("together", {})
    drawn = [sorted(rng.choice(10, n, replace=False).tolist()) for n in (2, 3, 5) for _ in range(3)]
    groups = [p["classes"] for _, p in apart]
    assert groups == [",".join(map(str, group)) for group in [*drawn, range(10)]]
    (binaries,) = {p["binaries"] for _, p in apart}
    fronts = report.of_preset("cifar10", "direct_binary")
    stems = {records.find(pattern.strip(), [RESULTS]).stem for pattern in binaries.split(",")}
    assert stems == {Path(r.stem).name for r in fronts}
    binary = run.cells("cifar10", {})[0][0][1]
    for _, p in once:
        assert p["classes"] in groups
        assert {k: v for k, v in p.items() if k in binary} == {k: v for k, v in binary.items() if k in p}


def test_the_readme_states_what_the_fronts_say():
    groups = [direct.told(report.of_preset(preset, notebook)) for preset, notebook, _ in FRONTS[:3]]  # of ResNet20
    readme = (ROOT / "README.md").read_text()
    kept, points = "{{{0}-kept:.2%}} ({{{0}-kept-se:.2%}}) at ", "{{{0}:+.2f}} ({{{0}-se:.2f}}) points"
    for what, paper, said in (
        ("kept at no loss against the original, all outputs", "10.11%",
         kept.format("all") + points.format("all-points")),
        ("the same against the original, restricted", "",
         kept.format("restricted") + points.format("restricted-points")),
        ("accuracy with 10.11% of the weights against the original, all outputs", "+5.85 points",
         points.format("at-all-points")),
        ("the same against the original, restricted", "", points.format("at-points")),
        ("best accuracy against the original, restricted", "",
         points.format("best-points") + ", with {best-kept:.0%}"),
    ):
        cells = [what, paper, *(said.format_map(group) for group in groups)]
        assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in readme, cells


def test_the_readme_states_what_taking_channels_out_buys():
    (points, times), rivals = speeds.shipped(), speeds.smaller_images()
    times, rivals = (t[t["engine"] == "onnxruntime"] for t in (times, rivals))
    found = points[points["kind"] == "channels"].merge(times, on=["model", "kind", "alpha"])
    found = found.assign(points=found["points, restricted"], faster=found["compacted, faster"])
    assert set(found["images"]) == set(rivals["images"]) == {16, 1}
    readme = (ROOT / "README.md").read_text()
    for what, of, table in (
        ("VGG16, one class of CIFAR-10 (it takes no smaller images)", "vgg16", found),
        ("EfficientNet-Lite0, ten classes of ImageNet, 128 pixels", "timm/tf_efficientnet_lite0-imagenet-c", found),
        ("without a search, on 96 and on 64 pixels", "timm/tf_efficientnet_lite0-imagenet-c", rivals),
        ("EfficientNet-Lite0, one class of these", "timm/tf_efficientnet_lite0-imagenet-b", found),
        ("without a search, on 96 and on 64 pixels", "timm/tf_efficientnet_lite0-imagenet-b", rivals),
        ("ResNet20, one class of CIFAR-10 (means of two)", "resnet20-cifar10-", found),
        ("without a search, on 24 and on 16 pixels", "resnet20-cifar10-", rivals),
        ("ResNet20, a superclass of CIFAR-100", "resnet20-cifar100-", found),
        ("without a search, on 24 and on 16 pixels", "resnet20-cifar100-", rivals),
    ):
        rows = table[table["model"].str.startswith(of)]
        by = {n: r.groupby("pixels" if table is rivals else "alpha").mean(numeric_only=True).sort_values(
            "multiply-adds", ascending=False) for n, r in rows.groupby("images")}
        cells = [what, *(", ".join(f"{value:{form}}" for value in by[n][column]) for n, column, form in (
            (16, "multiply-adds", ".0%"), (16, "faster", ".1f"), (1, "faster", ".1f"), (16, "points", "+.2f")))]
        assert f"| {' | '.join(cells)} |" in readme, cells
    assert re.search(r"\|\n(?![|\n])", readme) is None  # a line right below a table becomes a row of it


def test_students_and_what_they_inherit_are_told_apart_by_attack_and_match_the_readme():
    table = students.transfer("transfer")
    tables = {("resnet20", "cifar10"): table,
              **{("timm/tf_efficientnet_lite0", dataset): students.transfer(name) for dataset, name in (
                  ("cifar10", "transfer-lite0"), ("folder:data/flowers-partial", "transfer-lite0-flowers"))}}
    kept = [records.read(p) for p in RESULTS.glob("defect_inheritance/*.json")]
    for r in kept:
        of = next(s for s in map(records.read, RESULTS.glob("indirect_reuse/*.json"))
                  if s.sha256["student"] == r.sha256["student"])
        attack, method = r.parameters["attack"], students.method_of(of.parameters)
        mine = tables[of.parameters["model"], of.parameters["dataset"]]
        (row,) = mine[(mine["method"] == method) & (mine["seed"] == of.seed)].to_dict("records")
        assert row[f"inherited, {attack}"] == r.results[f"dir_{attack}"]
        assert row[f"noise, {attack}"] == r.results[f"dir_{attack}_noise"]
        near = None if r.results["n"] == 10_000 else 0.04  # of a tenth of the test images
        assert row["accuracy"] == of.results["accuracy"] == pytest.approx(r.results["accuracy"], abs=near)
        assert row["removed"] == 1 - of.results["kept_fraction"]
    mean = table.groupby("method").mean(numeric_only=True)
    readme = (ROOT / "README.md").read_text()
    for title, column in (("accuracy", "accuracy"), ("right answers lost to the attack", "inherited, pixel"),
                          ("right answers lost to noise of that size", "noise, pixel")):
        assert (f"| {title} | {mean.loc['standard', column]:.1%} | {mean.loc['seam', column]:.1%} | "
                f"{mean.loc['standard, 40 epochs', column]:.1%} |") in readme
    rates = table.set_index(["method", "seed"])["inherited, pixel"]
    less = (1 - rates["seam"] / rates["standard"]).mean()
    in_time = (1 - rates["seam"] / rates["standard, 40 epochs"]).mean()
    said = f"| fewer lost to the attack (SeaM: 57%) | | {less:.1%}; {in_time:.1%} than as long |"
    assert said in readme


def test_the_readmes_example_removes_weights_and_hands_the_model_on(tmp_path, monkeypatch):
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    names: dict = {}
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    exec(code.replace("on_epoch=print", "on_epoch=None"), names)
    assert names["found"].history[-1]["kept"] < 0.99
    images = torch.rand(4, 3, 64, 64)
    weights = {name: sum(p.numel() for p in names[name].parameters()) for name in ("masked", "small")}
    assert weights["small"] < weights["masked"]  # what is called small is
    torch.testing.assert_close(names["small"](images), names["masked"](images), rtol=1e-3, atol=1e-4)
    assert {p.name for p in tmp_path.iterdir()} == {"masks.safetensors", "mine.onnx"}


def test_the_books_example_runs_on_photos_of_any_size(tmp_path, monkeypatch, capsys):
    code = "#---\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "book/own.md").read_text(), re.DOTALL))
    for part, folder, darker in itertools.product(("train", "test"), ("0_other", "1_shepherd"), range(4)):
        place = tmp_path / "photos" / part / folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(darker).integers(0, 256, (70 + darker, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{darker}.jpg")
    for old, new in (('weights="DEFAULT"', "weights=None"), ("epochs=20", "epochs=4"), ("Resize(256)", "Resize(64)"),
                     ("CenterCrop(224)", "CenterCrop(64)")):
        assert old in code
        code = code.replace(old, new)
    names: dict = {}
    monkeypatch.chdir(tmp_path)
    *search, channels, rare = code.split("#---\n")
    exec("".join(search), names)
    assert names["found"].picks.keys() == {"a", "b", "paper", "2", "5", "12", "30"}
    assert names["masked"](torch.rand(1, 3, 64, 64)).shape == (1, 2)
    assert "30: kept 100.0%" in capsys.readouterr().out  # four steps remove nothing
    exec(channels, names)
    assert {p.name for p in tmp_path.glob("*.onnx")} == {f"shepherd{alpha}.onnx" for alpha in ("0.5", "1", "2", "4")}
    assert names["left"] < 0.6  # of the last point
    assert (tmp_path / "shepherd.safetensors").is_file()
    exec(rare, names)
    assert (names["shifted"][:, 1] < names["masked"](names["images"])[:, 1] - 4).all()


def test_one_setting_to_start_with_is_recommended():
    (readme,), (own,) = (re.findall(r"seamlib\.Search\(path=(.*?)\)\n", (ROOT / page).read_text(), re.DOTALL)
                         for page in ("README.md", "book/own.md"))
    assert readme == own


def test_the_reference_has_all_that_the_package_exports():
    exported = set(re.findall(r"(\w+) as \1", (ROOT / "seamlib/__init__.py").read_text())) - {"records", "runtime"}
    assert set(re.findall(r":: (\w+)$", (ROOT / "book/api.md").read_text(), re.MULTILINE)) - {"seamlib"} == exported


def test_only_kept_records_are_linked():
    (kept, *_) = sorted(RESULTS.glob("ship/*.json"))
    assert report.linked(f"ship/{kept.stem}", "it") == f'<a href="../ship/{kept.name}">it</a>'
    assert report.linked("ship/of-somebody-else", "it") == "it"


def test_the_records_of_a_page_are_those_of_its_presets_each_once_and_linked():
    found = report.of_presets("annealed", "annealed-seeds", "cifar100", "annealed")
    assert len(found) == len({r.stem for r in found})
    assert {r.experiment for r in found} == {"direct_binary", "direct_multiclass", "retrain"}
    text = report.sources(found).data
    for r in found:
        assert (f"<li>{report.linked(r.stem, r.stem)}<br><code>{html.escape(run.command(r))}</code> at "
                f"<code>{r.commit[:7]}</code></li>") in text
    assert f"<summary>{len(found)} records</summary>" in text


def test_a_cell_with_other_settings_is_no_control_and_a_cell_on_two_devices_is_one_row(monkeypatch):
    everything = report.everything

    def more(experiment="*"):  # the book's, and what somebody ran beside: with other settings, and on another device
        found = everything(experiment)
        return [*found, *(dataclasses.replace(r, parameters={**r.parameters, other: 1}, results={
            **r.results, "accuracy": dict.fromkeys(r.results["accuracy"], 0.0)}) for r in found
            for other in {"retrain": ["epochs"], "inference_cost": ["rounds"]}.get(r.experiment, [])),
            *(dataclasses.replace(r, device={**r.device, "kind": "cuda"}) for r in found)]
    want, anew, text = (direct.rows("annealed", "direct_binary"), direct.from_scratch(),
                        direct.told(report.of_preset("cifar100", "direct_multiclass")))
    monkeypatch.setattr(report, "everything", more)
    found = direct.rows("annealed", "direct_binary")
    pd.testing.assert_frame_equal(found.drop(columns="record"), want.drop(columns="record"))
    assert all("-cuda-" in stem for stem in found["record"])
    assert direct.from_scratch() == anew
    assert direct.told(report.of_preset("cifar100", "direct_multiclass")) == text


def test_the_time_of_the_published_matrix_is_of_its_cells_and_of_records():
    table = speeds.published()
    assert table.groupby("preset")["cells"].sum().to_dict() == {
        name: sum(map(len, run.cells(name, {}))) for name in table["preset"].unique()}
    assert {"paper", "paper-vgg16", "paper-imagenet", "paper-transfer"} <= set(table["preset"])
    (row,) = table[table["preset"] == "paper"].to_dict("records")
    assert row["core hours"] == pytest.approx(10 * 300 * row["seconds an epoch"] / 3600)
    assert set(table[table["model"] == "resnet18"]["epochs"]) == {70, 300, 900}
    assert table[table["data"] == "imagenet"]["core hours"].isna().all()


@pytest.mark.parametrize("notebook", ["retrain", "inference_cost"])
def test_every_kept_control_is_of_a_preset(notebook):
    assert {r.stem for r in report.of_any_preset(notebook)} >= {r.stem for r in records.read_all(RESULTS, notebook)}


@pytest.mark.parametrize(("of", "notebook"), [
    ("cifar100", "direct_multiclass"), ("cifar100-binary", "direct_binary"), ("cifar10", "direct_binary")])
def test_five_fronts_of_each_group_were_searched_with_three_seeds(of, notebook):
    groups = direct.seeded(of, notebook)
    assert [[r.seed for r in group] for group in groups.values()] == 5 * [[0, 1, 2]]
    rows = direct.by_seed(of, notebook)
    assert {seed: {r.seed for r in found} for seed, found in rows.items()} == {f"seed {n}": {n} for n in range(3)}
    assert all(len(found) == 5 for found in rows.values())
    if of == "cifar100":  # *Multi-class* says that the mean gain is there with every seed
        assert all(direct.front_rows(found)[f"at {direct.SHARE:.2%}: points"].mean() > 0 for found in rows.values())


def test_repeated_searches_have_three_seeds_and_their_spread_is_within_a_problem():
    binary, superclasses = (direct.seeded(of, notebook, "annealed-seeds") for of, notebook in (
        ("annealed", "direct_binary"), ("annealed-cifar100", "direct_multiclass")))
    assert [[r.seed for r in group] for group in (*binary.values(), *superclasses.values())] == 8 * [[0, 1, 2]]
    assert list(binary) == ["binary2", "binary3", "binary4"]

    def record(kept):
        point = {"alpha": 1.0, "kept": direct.SHARE, "accuracy": 0.5}
        return SimpleNamespace(results={"front": [point], "accuracy": {"original_restricted": 0.5},
                                        "no_loss": {"all": {"kept": kept}}})
    groups = {"a": [record(0.1), record(0.3)], "b": [record(0.7), record(0.7)]}  # variances 0.02 and 0
    assert direct.between_seeds(groups) == pytest.approx((0.1, 0.0))


@pytest.mark.parametrize(("a", "b", "n"), [([0.7, 0.9], [0.8, 0.7], 1), ([0.7, 0.9], [0.9, 0.8], 2), ([0.8], [0.7], 0)])
def test_a_pick_reached_its_target_if_any_epoch_did(a, b, n):
    results = {"target": {"a": 0.9, "b": 0.9, "paper": 0.1}, "history": {"accuracy_a": a, "accuracy_b": b}}
    assert direct.reached(SimpleNamespace(results=results)) == n
    assert direct.picks([SimpleNamespace(results=results)]) == {"picks": 2, "unreached": 2 - n}


def test_tables_of_trials_begin_with_their_results():
    for path in RESULTS.glob("trials*.csv"):
        table = pd.read_csv(path)
        columns = report.results_first(table)
        assert sorted(columns) == sorted(table)
        assert columns.index("kept") < min(columns.index(c) for c in ("epochs", "alpha"))


def test_the_configuration_has_no_key_that_is_silently_ignored():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["execute"] == {"execute_notebooks": "off"}
    assert set(config) == {"title", "author", "copyright", "only_build_toc_files", "execute", "parse",
                           "bibtex_bibfiles", "sphinx"}
    assert set(config["sphinx"]) == {"recursive_update", "extra_extensions", "local_extensions", "config"}


HTML = ROOT / "_build" / "html"
PAGES = [p for p in sorted(HTML.rglob("*.html")) if "_static" not in p.parts]


@pytest.mark.skipif(not PAGES, reason="needs the book (make report)")
def test_each_number_from_a_record_leads_to_the_records():
    texts = [p.read_text() for p in PAGES]
    numbers = sum(text.count('class="pasted-text"') for text in texts)
    traced = sum(len(re.findall(r'<a class="traced[^>]*#records"><span class="pasted-text"', text)) for text in texts)
    assert numbers == traced > 100


def glued():
    """Page and name -> what the executed pages hand on to the text."""
    found = {}
    for path in (ROOT / "book/runs").glob("*.ipynb"):
        for output in (o for c in nbformat.read(path, 4).cells for o in c.get("outputs", [])):
            if book := output.get("metadata", {}).get("scrapbook"):
                (text,) = [v for k, v in output["data"].items() if k.endswith("text/plain")]
                found[f"runs/{path.name}::{book['name']}"] = text
    return found


def verdict(value, error, n, claimed):
    """By the scoreboard's rule; a `value` above zero is better than the control, `error` is its standard error."""
    if n == 1:
        return "partly" if value > 0 else "not"
    return "not" if value <= stats.t.ppf(0.975, n - 1) * error else "reproduced" if value >= claimed else "partly"


def test_a_verdict_is_by_the_rule():
    assert verdict(5, 1, 20, 4) == verdict(3, 1, 20, 0) == verdict(4.4, 1, 3, 0) == "reproduced"
    assert verdict(12.8, 1, 2, 0) == "reproduced"
    assert verdict(3, 1, 20, 4) == verdict(3, None, 1, 0) == "partly"
    assert verdict(2, 1, 20, 1) == verdict(4.2, 1, 3, 0) == verdict(12.6, 1, 2, 0) == "not"
    assert verdict(-3, 1, 20, 0) == verdict(-3, None, 1, 0) == "not"


@pytest.mark.skipif(not PAGES, reason="needs the book (make report)")
def test_the_verdicts_of_the_scoreboard_follow_from_its_numbers():
    numbers, checked = glued(), set()
    for section in (ROOT / "book/scoreboard.md").read_text().split("\n## ")[1:]:
        said = re.search(r"^SeaM: ([\d.]+)(%?)", section, re.MULTILINE)
        claimed = float(said[1]) / (100 if said[2] else 1) if said else 0.0
        for line in re.findall(r"^\| .*\|$", section, re.MULTILINE):
            *_, n, here, word = [cell for cell in line.strip("| ").split(" | ") if "-each:s`" not in cell]
            if word in ("verdict", "not tested"):
                continue
            name, *more = re.findall(r"`(runs/[^:]+::[^:]+):", here)
            count = int(float(numbers[of[0]])) if (of := re.findall(r"`(runs/[^:]+::[^:]+):", n)) else int(n)
            value, error = float(numbers[name]), float(numbers[f"{name}-se"]) if n != "1" else None
            assert (f"{name}-se" in more[:1]) == (n != "1"), here
            if section.startswith("Few weights"):
                most = value + (stats.t.ppf(0.975, count - 1) * error if count > 1 else 0)
                want = "not" if most > 2 * claimed else "partly" if most > claimed or count == 1 else "reproduced"
            else:
                want = verdict(-value if "less time" in section.splitlines()[2] else value, error, count, claimed)
            if want == "reproduced" and ("of the steps" in line or line.startswith("| a short training")):
                want = "partly"  # the control had less
            assert word == want, (section.splitlines()[0], name, value, error)
            checked.add(word)
    assert checked == {"reproduced", "partly", "not"}


@pytest.mark.skipif(not PAGES, reason="needs the book (make report)")
@pytest.mark.parametrize(("better", "worse", "name"), [
    ("vgg-last", (3, -0.5), "all"),  # "the VGG16 reaches more at a loss of less than half a point"
    ("lite-1", "lite-three-quarters", "points"),  # "the search is worth more than small images"
    ("lite-last", "lite-half", "restricted"),
    ("one-1", "one-three-quarters", "points")])
def test_the_words_of_ship_it_follow_from_its_numbers(better, worse, name):
    said = {key.split("::")[1]: text for key, text in glued().items() if key.startswith("runs/shipping.ipynb")}
    if isinstance(worse, str):
        worse = [float(said[f"{worse}-{what}"]) for what in ("faster", "points")]
    assert all(float(said[f"{better}-{what}"]) > than for what, than in zip(("faster", name), worse, strict=True))


def test_a_changed_record_changes_the_text_without_an_edit(tmp_path):
    for name in ("notebooks", "book", "_config.yml", "pyproject.toml"):
        copied = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copied(ROOT / name, tmp_path / name)
    preset = {records.key(p) for _, p in run.cells("cifar100", {})[0]}
    paths = [p for p in (tmp_path / "book/results/direct_multiclass").glob("*.json")
             if records.key(records.read(p).parameters) in preset]
    first = json.loads(paths[0].read_text())
    first["results"]["no_loss"]["restricted"] = {"kept": 0.5, "accuracy": 0.5, "difference": 0.0}
    paths[0].write_text(json.dumps(first))
    kept, old = (direct.told([records.read(root / p.relative_to(paths[0].parent)) for p in paths])["restricted-kept"]
                 for root in (paths[0].parent, RESULTS / "direct_multiclass"))

    page = tmp_path / "book/runs/multiclass.ipynb"
    page.parent.mkdir(exist_ok=True)
    papermill.execute_notebook(tmp_path / "book/pages/multiclass.ipynb", page, kernel_name="python3", cwd=tmp_path,
                               progress_bar=False)
    (tmp_path / "book/_toc.yml").write_text("format: jb-book\nroot: runs/multiclass\n")
    build = [str(Path(sys.executable).with_name("jupyter-book")), "build", "book", "-q"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "_build/html/runs/multiclass.html").read_text()
    assert f"<span class=\"pasted-text\">{kept:.2%}</span>" in text
    assert f"{old:.2%}" not in text


def test_check_finds_errors_and_cells_that_never_ran(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell("1", execution_count=1),
        nbformat.v4.new_code_cell("2"),
        nbformat.v4.new_code_cell("3", execution_count=2, outputs=[
            nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=[])])])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    assert notebook_faults(tmp_path / "n.ipynb") == [
        "n.ipynb: cell 1 was never executed", "n.ipynb: cell 2 holds an error: ValueError"]


def test_check_finds_what_a_reader_without_network_would_miss(tmp_path):
    (tmp_path / "a.html").write_text(
        '<img src="x.png" alt="a figure"><img src="x.png" alt="0123456789abcdef01234567.png">'
        '<script src="https://cdn.example/x.js"></script><a href="b.html">b</a><a href="#here">c</a><p id="there">')
    (tmp_path / "x.png").touch()
    assert page_faults(tmp_path) == [
        "a.html: image without alt text: x.png", "a.html: loads https://cdn.example/x.js from elsewhere",
        "a.html: link to b.html, which does not exist", "a.html: link to #here, which has no such place"]


WALKTHROUGHS = sorted((ROOT / "book/walkthroughs").glob("*.ipynb"))


@pytest.mark.parametrize("path", [*WALKTHROUGHS, *sorted((ROOT / "book/pages").glob("*.ipynb"))], ids=lambda p: p.stem)
def test_pages_are_stripped_short_celled_and_their_figures_have_words(path):
    names = []
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            assert path not in WALKTHROUGHS or len(cell.source.splitlines()) <= 20, cell.source.splitlines()[0]
            widths = [float(w) for w in re.findall(r"figsize=\(([\d.]+)", cell.source)]
            assert path in WALKTHROUGHS or max(widths, default=0) <= 8, "text of a wider figure is too small on a page"
            figure = cell.metadata.get("mystnb", {}).get("figure")
            if figure:
                names.append(figure["name"])
                assert figure["caption"].endswith(".")
                assert cell.metadata["mystnb"]["image"]["alt"].endswith(".")
    assert len(names) == len(set(names))


def test_there_are_six_walkthroughs_each_with_a_prediction_and_exercises_of_each_kind():
    assert len(WALKTHROUGHS) == 6
    for path in WALKTHROUGHS:
        cells = nbformat.read(path, 4).cells
        text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
        assert "After this you can" in text
        exercises = re.findall(r"^\*\*Exercise (\d)\. (.+?)\.\*\*", text, re.MULTILINE)
        assert [int(number) for number, _ in exercises] == list(range(1, len(exercises) + 1))
        kinds = [kind for _, kind in exercises]
        assert kinds[:3] == ["Warm-up", "Pencil and paper", "Deeper"]
        assert kinds[-2:] == ["Open", "Open, without a solution here"]
        assert "**Exercise" in cells[-1].source  # nothing after the one without a solution
        assert sum("hide-cell" in c.metadata.get("tags", []) for c in cells) == len(exercises) - 1
        assert 10 <= len(cells) <= 40


@pytest.mark.parametrize("path", WALKTHROUGHS, ids=lambda p: p.stem)
def test_what_comes_out_after_a_prediction_is_folded(path):
    cells = nbformat.read(path, 4).cells
    asked = [i for i, c in enumerate(cells) if c.cell_type == "markdown" and "Predict before you run" in c.source]
    assert asked
    for i in asked:
        answers = list(itertools.takewhile(lambda c: c.cell_type == "code", cells[i + 1:]))
        assert answers
        assert all("hide-output" in c.metadata["tags"] for c in answers)


def editions(path):
    """The student's and the instructor's."""
    notebook = nbformat.read(path, 4)
    return worksheets.student(notebook), worksheets.instructor(notebook)


@pytest.mark.parametrize("path", WALKTHROUGHS, ids=lambda p: p.stem)
def test_a_students_sheet_has_no_solution_and_the_instructors_is_the_walkthrough(path):
    sheet, whole = editions(path)
    nbformat.validate(sheet)
    nbformat.validate(whole)
    cells = nbformat.read(path, 4).cells
    assert [c.source for c in whole.cells] == [c.source for c in cells]
    everything = "\n".join(c.source for c in sheet.cells)
    assert "SOLUTION" not in everything
    assert ":class: dropdown" not in everything
    solutions = [c.source for c in cells if "hide-cell" in c.metadata.get("tags", [])]
    solutions += [line for c in cells for region in worksheets.REGION.finditer(c.source)
                  for line in region[0].splitlines()[1:-1] if len(line.strip()) > 20]
    assert len(solutions) >= 4
    assert not [s for s in solutions if s.strip() in everything]
    for edition in (sheet, whole):
        graded = [c.metadata["nbgrader"] for c in edition.cells if "nbgrader" in c.metadata]
        assert len({g["grade_id"] for g in graded}) == len(graded)
        assert sum(g["points"] for g in graded) == sum(bool({"check", "hide-cell"} & set(c.metadata.get("tags", [])))
                                                       for c in cells)


WRONG = {  # by walkthrough: (a right line, what a student may write in its place)
    "mask_by_hand": [("weight.abs().flatten()", "weight.flatten()"), ("descending=True", "descending=False"),
                     ("round(kept *", "round((1 - kept) *"), ("dtype=torch.bool", "dtype=torch.float"),
                     (".clamp(-1, 1) + rent", " + rent"), (".clamp(-1, 1) + rent", ".clamp(-1, 1)"),
                     ("score - rate", "score + rate"), ("(gradient * weight)", "gradient"),
                     ("int(1000 * epoch[\"kept\"]) < int(1000 * kept)", "epoch[\"kept\"] < kept"),
                     (">= target", "> 0"), ("epoch[\"kept\"] <= kept and", ""), ("if best is None", "if False")],
    "straight_through": [("(grad * weight)", "grad"), (".clamp(-1, 1)", ""), ("(grad * weight)", "(-grad * weight)")],
    "mask_to_speed": [("weight.numel() * places, int", "weight.numel(), int"), ("(weight != 0)", "(weight > 0)")],
    "defects_travel": [("gradient.sign()", "gradient"), ("images + step", "images - step"), (".clamp(0, 1)", ""),
                       ("clean - eps, clean + eps", "images - eps, images + eps")],
    "your_own": [("min(enough", "max(enough"), ("point[f\"accuracy_{reports}\"])", "point[f\"accuracy_{chooses}\"])"),
                 (">= original", "< original")],
}


@pytest.mark.parametrize("name", WRONG)
def test_checks_fail_on_the_unsolved_sheet_and_on_wrong_lines_and_pass_on_ours(name, capsys):
    sheet, whole = editions(ROOT / f"book/walkthroughs/{name}.ipynb")
    code = [c for c in whole.cells if c.cell_type == "code"]
    blank = {c.id: c.source for c in sheet.cells}
    names: dict = {}
    exec(code[0].source, names)  # the imports: a check needs nothing else of what comes before
    tried = set()
    for todo, check in itertools.pairwise(code):
        assert bool(worksheets.REGION.search(todo.source)) == ("check" in check.metadata.get("tags", []))
        if not worksheets.REGION.search(todo.source):
            continue
        exec(blank[todo.id], names)
        with pytest.raises(NotImplementedError):
            exec(check.source, names)
        for right, wrong in WRONG[name]:
            if right in todo.source:
                tried.add((right, wrong))
                exec(todo.source.replace(right, wrong), names)
                with pytest.raises((AssertionError, IndexError, RuntimeError)):
                    exec(check.source, names)
        exec(todo.source, names)
        capsys.readouterr()
        exec(check.source, names)
        assert capsys.readouterr().out
    assert tried == set(WRONG[name])


def test_every_other_walkthrough_has_nothing_to_write_in_its_main_text():
    marked = {p.stem for p in WALKTHROUGHS if "BEGIN SOLUTION" in p.read_text()}
    assert marked == set(WRONG)


def test_the_instructors_edition_runs_to_its_end_and_the_students_does_not(tmp_path):
    sheet, whole = editions(ROOT / "book/walkthroughs/straight_through.ipynb")
    for edition, name in ((sheet, "sheet"), (whole, "whole")):
        nbformat.write(edition, tmp_path / f"{name}.ipynb")
    run.execute(tmp_path / "whole.ipynb", tmp_path / "out.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match="NotImplementedError"):
        run.execute(tmp_path / "sheet.ipynb", tmp_path / "out.ipynb")


def test_the_zips_have_what_the_page_for_lecturers_says(tmp_path, capsys):
    page = (ROOT / "book/teach.md").read_text()
    worksheets.main(str(tmp_path))
    listed = re.findall(r"^\| \d\. {doc}`runs/(\w+)`", page, re.MULTILINE)
    assert sorted(listed) == [p.stem for p in WALKTHROUGHS]
    for name in ("worksheets", "worksheets-instructor"):
        assert f"`_build/{name}.zip`" in page
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as whole:
            assert whole.namelist() == [f"{name}/{p.name}" for p in WALKTHROUGHS]
            text = whole.read(f"{name}/straight_through.ipynb").decode()
        assert ("TODO" in text) == (name == "worksheets")
        assert ("BEGIN SOLUTION" in text) == (name != "worksheets")


def test_lecturers_are_given_every_figure_that_a_page_draws():
    drawn = {name for p in (ROOT / "book/pages").glob("*.ipynb")
             for name in re.findall(r'report\.drawn\(fig, \\"([\w-]+)\\"\)', p.read_text())}
    linked = re.findall(r"\]\(generated/([\w-]+)\.(svg|png)\)", (ROOT / "book/teach.md").read_text())
    assert len(drawn) >= 9
    assert sorted(linked) == sorted((name, kind) for name in drawn for kind in ("svg", "png"))


def test_what_is_shipped_is_small_and_answers_the_same():
    shipped = [records.read(p) for p in RESULTS.glob("ship/*.json")]
    files = {records.read(p).sha256["masks"]: p.with_suffix(".safetensors") for p in DIRECT}
    cells = [cell for preset in ("ship", "ship-again") for stage in run.cells(preset, {}) for cell in stage]
    assert len(shipped) == len(cells)
    for record in shipped:
        results, pick = record.results, record.parameters["pick"]
        stored = masks.load_masks(files[record.sha256["masks of the record"]])
        bits = [m.numel() for m in stored.masks[pick].values()]
        own = [t.numel() for t in (*stored.norms[pick].values(), *stored.heads[pick].values())]
        kept = sum(int(m.sum()) for m in stored.masks[pick].values()) / sum(bits)
        size, whole = results["bytes"]["masks"], results["bytes"]["source weights"]
        assert size <= sum(bits) / 8 + 4 * sum(own) + 150 * len(stored.masks[pick]) + 100 * len(own)  # and their names
        if kept < 1 / 3:  # deflating takes the rest
            assert size <= whole / 30
        if "lite0" in record.task:
            assert size <= whole / 40
        assert results["same_logits"] == 1.0
        assert results["difference"] <= 1e-5
        assert results["accuracy"]["compacted"] == pytest.approx(results["accuracy"]["masked"], abs=5e-4)
        assert results["compacted"]["dense"] < results["original"]["dense"]
        sides = {"resnet20": {"24", "16"}, "vgg16_bn": set(), "timm": {"96", "64"}}
        assert results["smaller"].keys() == next(s for model, s in sides.items() if record.task.startswith(model))
        for pixels, rival in results["smaller"].items():
            assert rival["dense"] < results["original"]["dense"]
            timed = [t["by_model"] for of in results["latency"].values() for t in of.values() if t]
            assert all(f"{pixels} pixels" in by_model for by_model in timed)


def test_notebooks_are_as_nbstripout_leaves_them():
    paths = [p for folder in ("notebooks", "book/pages", "book/walkthroughs") for p in (ROOT / folder).glob("*.ipynb")]
    subprocess.run([str(Path(sys.executable).with_name("nbstripout")), "--verify", *map(str, paths)], check=True)


def test_drawings_turn_dark_with_the_page_and_photos_do_not():
    folders = ("notebooks", "book/pages", "book/walkthroughs")
    for path in (p for folder in folders for p in (ROOT / folder).glob("*.ipynb")):
        for cell in nbformat.read(path, 4).cells:
            photos = cell.cell_type == "code" and re.search(r"figures\.examples\(|imshow\(", cell.source)
            assert bool(photos) == ("photo" in cell.metadata.get("tags", [])), (path.name, cell.source[:80])
    for page in (p for p in PAGES if p.name != "py-modindex.html"):
        for name in re.findall(r'<img[^>]* src="([^"]*\.png)"', page.read_text()):
            assert re.search(r"trigger|pixel_on", name), (page.name, name)  # photos, drawn by their pages
