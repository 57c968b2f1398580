"""The tables of *How few images?*, against values computed by hand."""

import math

import direct
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import report
import shots

from seamlib import figures, records

mpl.use("agg")


def search(task, few, at, kept, labels="soft", norms="affine", norms_only=0.7):
    """A record of a search whose restricted original is right on 0.8, with `at` at 10.11% of the weights."""
    parameters = {"model": "resnet20", "dataset": "cifar100", "shots": few, "labels": labels, "norms": norms,
                  "epochs": 1, "schedule": "anneal"}
    accuracy = {"original_all": 0.7, "original_restricted": 0.8, "head_only": 0.8, "crossfit": 0.8, "paper": 0.8}
    accuracy |= {"norms_only": norms_only} if norms == "affine" else {}
    results = {"front": [{"alpha": 1.0, "kept": 0.1011, "accuracy": at}], "accuracy": accuracy, "search_seconds": 1.0,
               "no_loss": {"all": None, "restricted": kept and {"kept": kept, "accuracy": 0.8, "difference": 0.02}},
               "best": {"kept": 0.1011, "accuracy": at, "difference": at - 0.8},
               "kept_fraction": {"crossfit": 0.1011, "paper": 0.1011}}
    return records.Record("direct_multiclass", task, parameters, results, 0, "", False, {"kind": "cpu"}, 1.0,
                          {"masks": task})


@pytest.fixture
def rows(monkeypatch):
    found = {("shots", "direct_multiclass"): [
        search("superclass2", 5, 0.5, None), search("superclass3", 5, 0.6, 0.3),
        search("superclass2", 0, 0.82, 0.1), search("superclass2", 5, 0.7, 0.5, norms="frozen")],
             ("shots", "direct_binary"): [search("binary2", 20, 0.9, 0.2, "hard")],
             ("shots-photos", "direct_multiclass"): [search("classes0_217", 200, 0.75, 0.4)]}
    anew = [records.Record("retrain", "superclass2", {"model": "resnet20", "dataset": "cifar100", "shots": few},
                           {"accuracy": {"last": last}}, 0, "", False, {"kind": "cpu"}, 1.0, {})
            for few, last in ((5, 0.3), (0, 0.6))]
    monkeypatch.setattr(report, "of_preset", lambda *of: found.get(of, []))
    monkeypatch.setattr(report, "of_any_preset", lambda notebook: anew if notebook == "retrain" else [])
    return shots.searches()


def test_a_search_is_told_by_its_images_labels_and_norms_and_has_controls_of_as_few_images(rows):
    first = rows[(rows["images"] == 5) & (rows["search"] == "no labels")].set_index("class")
    assert first[shots.AT].to_dict() == pytest.approx({"superclass2": -30, "superclass3": -20})
    assert first["restricted: kept"].to_dict() == {"superclass2": 1.0, "superclass3": 0.3}
    assert first["restricted: points"].to_dict() == pytest.approx({"superclass2": 0, "superclass3": 2})
    assert first["norms only: points"].tolist() == pytest.approx([-10, -10])
    scratch = rows.set_index(["class", "search", "images"])["from scratch: points"]
    assert scratch["superclass2", "no labels", 5] == pytest.approx(-50)  # 0.3 against 0.8
    assert scratch["superclass2", "no labels", 500] == pytest.approx(-20)
    assert math.isnan(scratch["superclass3", "no labels", 5])
    assert set(rows["search"]) == {"no labels", "labels", "no labels, norms frozen"}
    assert rows[rows["search"] == "labels"][["problem", "images"]].to_numpy().tolist() == [["one class", 20]]


def test_what_is_said_is_the_mean_over_the_problems_with_its_standard_error(rows):
    said = shots.told(rows)
    assert said["five-no-labels-5-at"] == "-25.00 (5.00)"  # half the difference of two
    assert said["five-no-labels-5-kept"] == "65.0% (35.0)"
    assert said["five-no-labels-norms-frozen-5-at"] == "-10.00"  # of one
    assert said["one-no-labels-5-at"] == "not run"
    assert said["ten-no-labels-200-at"] == "-5.00"


def test_the_fair_control_comes_first_and_what_was_not_run_is_left_out(rows):
    lines = shots.styled(rows).data
    assert lines["search"].tolist() == [
        "none: restricted original", "no labels", "no labels, norms frozen", "no labels",
        "none: restricted original", "labels", "none: restricted original", "no labels"]
    assert lines["images"].tolist() == [0, 5, 5, 500, 0, 20, 0, 200]
    assert lines["n"].tolist() == [2, 2, 1, 1, 1, 1, 1, 1]
    assert lines[shots.AT].tolist() == [
        "+0.00", "-25.00 (5.00)", "-10.00", "+2.00", "+0.00", "+10.00", "+0.00", "-5.00"]
    assert lines["norms only: points"].tolist()[:3] == ["", "-10.00 (0.00)", ""]  # frozen norms have no such control


def test_what_searches_gain_over_others_is_told_problem_by_problem():
    of_two, of_three = "superclass2", "superclass3"
    found = [search(of_two, 0, 0.82, 0.1), search(of_three, 0, 0.8, 0.3), search("superclass4", 0, 0.1, None)]
    others = [search(of_three, 0, 0.8, None), search(of_two, 0, 0.8, 0.2), search("superclass5", 0, 0.9, 0.9)]
    assert direct.gained(found, others) == pytest.approx({  # superclasses 2 and 3 are in both
        "at-points": 1, "at-points-se": 1, "kept": 0.6, "less-kept": 0.4, "less-kept-se": 0.3})


def test_pages_render_before_any_search_is_there(monkeypatch):
    monkeypatch.setattr(report, "of_preset", lambda *_: [])
    rows = shots.searches()
    assert isinstance(shots.styled(rows).to_html(), str)
    assert set(shots.told(rows).values()) == {"not run"}
    figures.by_images(plt.subplots()[1], rows, shots.AT, 0.0, list(shots.WAYS.values()))
