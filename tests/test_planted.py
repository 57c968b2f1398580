"""The page of the planted defect: its words follow from its numbers, and it stands with cells missing."""

import math

import planted
import pytest
import report
from matplotlib.figure import Figure

from seamlib import records

NAN = math.nan


@pytest.mark.parametrize(("own", "before", "word"), [
    ([0.5, 0.45], 0.9, "survives"),
    ([0.5, 0.44], 0.9, "is weaker"),  # not in every seed
    ([0.019, -0.1], 0.9, "is gone"),
    ([0.024, 0.025], 0.9, "is weaker"),
    ([], 0.9, "was not tested"),
    ([NAN], 0.9, "was not tested"),
    ([0.5], NAN, "was not tested"),
])
def test_a_verdict_is_a_fixed_word_by_the_rule_that_the_page_states(own, before, word):
    assert planted.verdict(own, before) == word


def made(experiment, parameters, results, **sha256):
    return records.Record(experiment, "it", parameters, results, parameters.get("seed", 0), "", False, {"kind": "cpu"},
                          1.0, sha256)


def student(method, seed, epochs=8):
    parameters = {"method": method, "seed": seed, "epochs_s2": 20, "epochs_s3": epochs, "lr_s3_hidden_layer": 0.1,
                  "prune_threshold": 0.1}
    return made("indirect_reuse", parameters, {"kept_fraction": 0.4}, student=f"{method}{seed}{epochs}", weights="w")


SURVIVED = {"accuracy": 0.9, "lost": 0.5, "lost_control": 0.1, "success": None, "success_control": None}


@pytest.fixture
def results(monkeypatch):
    """Records by experiment, empty at first, in the place of those on disk."""
    there: dict = {}
    monkeypatch.setattr(report, "of_preset", lambda _, notebook: there.get(notebook, []))
    monkeypatch.setattr(report, "everything", lambda notebook: there.get(notebook, []))
    return there


def test_without_a_record_there_are_empty_tables_no_numbers_and_no_verdict(results):
    assert list(planted.of_students()) == planted.STUDENT
    assert list(planted.of_searches()) == planted.POINT
    assert list(planted.by_layer()) == planted.LAYER
    said = planted.told()
    verdicts = {value for name, value in said.items() if name.endswith("-verdict")}
    assert verdicts == {"was not tested"}
    assert all(math.isnan(value) for value in said.values() if value not in verdicts)


def test_the_fair_control_comes_first_and_only_what_was_measured_has_a_row(results):
    students = [student("standard", 0), student("seam", 0), student("standard", 0, 30), student("retrain", 0)]
    results["indirect_reuse"] = students
    results["planted_survival"] = [
        made("planted_survival", {}, {"models": {"student": SURVIVED}}, student=s.sha256["student"])
        for s in students[:3]]
    results["planted_survival"].append(made("planted_survival", {}, {}, student="of digits"))
    results["planted_defect"] = [made("planted_defect", {}, {
        "before": SURVIVED, "after": {**SURVIVED, "lost": 0.95, "lost_control": 0.05}})]
    table = planted.of_students()
    assert list(table["method"]) == ["standard, 30 epochs", "seam", "standard"]
    assert table["trigger's own"].tolist() == pytest.approx([0.4] * 3)
    assert len(planted.measured()) == 3
    said = planted.told()
    assert said["seam-verdict"] == "is weaker"  # 40 points of 90
    assert said["retrain-verdict"] == "was not tested"
    assert said["standard-30-epochs-trigger"] == pytest.approx(0.5)


def test_a_front_has_the_original_first_and_layers_are_summed_over_the_seeds(results):
    front = [{"alpha": 2.0}, {"alpha": 35.0}]
    point = {"accuracy": 0.8, "success": 0.9, "success_control": 0.1, "lost": 0.3, "lost_control": 0.05}
    layers = {"a.weight": {"weights": 10, "changed": 4, "kept": 5, "changed_kept": 3},
              "b.weight": {"weights": 10, "changed": 0, "kept": 1, "changed_kept": 0},
              "b.bias": {"weights": 2, "changed": 1, "kept": 1, "changed_kept": 1}}
    results["direct_multiclass"] = [
        made("direct_multiclass", {"seed": seed, "lr_mask": 0.05, "norms": "affine"}, {"front": front},
             masks=f"m{seed}") for seed in (0, 1)]
    results["planted_survival"] = [made("planted_survival", {}, {
        "models": {"restricted": point, "2": {**point, "kept": 0.2, "kept_changed": 0.6},
                   "35": {**point, "success": 0.1 + 0.01 * seed, "kept": 0.02, "kept_changed": 0.1}},
        "layers": layers}, **{"masks of the record": f"m{seed}"}) for seed in (0, 1)]
    points = planted.of_searches()
    assert points["kept"].tolist() == [1, 1, 0.2, 0.2, 0.02, 0.02]
    assert points["seed"].tolist() == [0, 1] * 3
    said = planted.told()
    assert (said["first-verdict"], said["last-verdict"]) == ("survives", "is gone")
    assert said["first-most-changed-kept"] == pytest.approx(0.6)
    assert (said["last-turned-wrong"], said["last-by-control"]) == pytest.approx((0.3, 0.05))
    table = planted.by_layer()
    assert table["changed"].tolist() == pytest.approx([0.8, 0])
    assert table["kept"].tolist() == pytest.approx([0.5, 0.1])
    assert table["changed_kept"].tolist() == pytest.approx([0.75, NAN], nan_ok=True)
    results["direct_multiclass"].append(made("direct_multiclass", {"seed": 0, "lr_mask": 1e-6, "norms": "affine"}, {
        "front": front[:1]}, masks="none"))
    results["direct_multiclass"].append(made("direct_multiclass", {"seed": 0, "lr_mask": 0.05, "norms": "frozen"}, {
        "front": front}, masks="frozen"))
    for masks in ("none", "frozen"):
        results["planted_survival"].append(made("planted_survival", {}, {
            "models": {"2": {**point, "success": 0.5}, "35": point}, "layers": layers},
            **{"masks of the record": masks}))
    assert planted.of_searches()["method"].tolist()[0] == "norms alone"
    assert planted.told()["norms-success"] == pytest.approx(0.5)
    assert planted.told()["first-success"] == pytest.approx(0.9)  # the controls are none of the searches
    assert planted.by_layer().equals(table)


def test_the_picture_says_that_it_was_not_run(results, monkeypatch):
    drawn: dict = {}
    monkeypatch.setattr(report, "drawn", lambda figure, name: drawn.update({name: figure}))
    planted.picture("trigger")
    assert isinstance(drawn["trigger"], Figure)
    assert drawn["trigger"].texts[0].get_text() == "not run yet"
