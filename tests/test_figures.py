import sys
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from seamlib import figures

mpl.use("agg")
HISTORY = pd.DataFrame({"kept": [1.0, 0.5, 0.25], "accuracy": [0.9, 0.8, 0.85]})


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    fig.canvas.draw()
    plt.close(fig)


def test_course_shows_every_epoch_and_rings_the_chosen(ax):
    assert figures.course(ax, HISTORY, {"original": 0.9}, {"a": 1, "b": 1, "paper": 2}) is ax
    assert ax.collections[0].get_offsets().tolist() == [[1.0, 0.9], [0.5, 0.8], [0.25, 0.85]]
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == ["original", "chosen on a and b", "chosen on paper"]


def test_courses_draw_a_line_a_search(ax):
    figures.courses(ax, {"one": HISTORY, "two": HISTORY.iloc[:2]}, original=0.9)
    assert [len(line.get_xdata()) for line in ax.lines[:2]] == [3, 2]


def test_front_has_a_point_a_search(ax):
    figures.front(ax, HISTORY, original=0.9)
    assert ax.lines[0].get_xdata().tolist() == [1.0, 0.5, 0.25]


def test_fronts_has_a_line_a_problem_and_their_mean_where_all_have_one(ax):
    points = pd.DataFrame({"problem": ["a", "a", "b", "b"], "kept": [1, 0.01, 0.1, 0.01], "difference": [4.0, 0, 3, 1]})
    figures.fronts(ax, points, paper=(0.1, 5.0))
    a, b, mean, _, paper = ax.lines
    assert a.get_xydata().tolist() == [[0.01, 0.0], [1.0, 4.0]]
    assert b.get_xydata().tolist() == [[0.01, 1.0], [0.1, 3.0]]
    assert (mean.get_xdata()[0], mean.get_xdata()[-1]) == (pytest.approx(0.01), pytest.approx(0.1))
    assert (mean.get_ydata()[0], mean.get_ydata()[-1]) == (pytest.approx(0.5), pytest.approx(2.5))  # a has 2 at 0.1
    assert paper.get_xydata().tolist() == [[0.1, 5.0]]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "mean of 2 problems", "restricted original", "SeaM, mean of all its models"]
    figures.fronts(ax, points.iloc[:0])  # there may be none yet


def test_claims_has_a_line_a_group_of_fronts_and_the_papers_point(ax):
    points = pd.DataFrame({"of": ["two"] * 4 + ["one"] * 2, "problem": [*"aabb", *"aa"],
                           "kept": [1, 0.01, 1, 0.01, 0.1, 0.3], "difference": [4.0, 0, 6, 2, -1, 0]})
    figures.claims(ax, points, paper=(0.1, 5.0))
    fronts, one, _, paper = ax.lines
    assert (fronts.get_ydata()[0], fronts.get_ydata()[-1]) == (pytest.approx(1), pytest.approx(5))
    assert one.get_xydata()[[0, -1]].ravel() == pytest.approx([0.1, -1, 0.3, 0])
    assert paper.get_xydata().tolist() == [[0.1, 5.0]]
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == ["two (2)", "one (1)", "SeaM, mean of all its models"]


def test_by_engine_has_two_bars_a_model_in_the_panel_of_each_engine():
    fig, axes = plt.subplots(1, 2, sharey=True)
    times = pd.DataFrame({"engine": ["torch", "torch", "onnxruntime"], "model": ["a", "b", "b"],
                          "masked, faster": [1.0, 1.1, 0.9], "compacted, faster": [2.0, 2.1, 3.0]})
    left, right = figures.by_engine(axes, times)
    assert [bar.get_width() for bar in left.patches] == [1.0, 1.1, 2.0, 2.1]
    assert [(bar.get_y() + 0.2, bar.get_width()) for bar in right.patches] == [
        (pytest.approx(0.8), 0.9), (pytest.approx(1.2), 3.0)]  # model b is the second row there as well
    assert [t.get_text() for t in left.get_yticklabels()] == ["a", "b"]
    plt.close(fig)


def test_together_has_a_panel_a_number_of_classes_and_a_line_a_front():
    fig, axes = plt.subplots(1, 2)
    points = pd.DataFrame({"classes": [2, 2, 2, 3], "problem": ["a", "a", "a", "b"], "kept": [0.5, 0.1, 0.2, 0.3],
                           "how": ["put together"] * 2 + ["at once", "put together"], "difference": [1.0, -1, 2, 0]})
    left, _ = figures.together(axes, points)
    assert left.lines[0].get_xydata().tolist() == [[0.1, -1.0], [0.5, 1.0]]
    assert left.lines[1].get_xydata().tolist() == [[0.2, 2.0]]
    assert [ax.texts[0].get_text() for ax in axes] == ["2 classes", "3 classes"]
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["put together", "at once", "restricted original"]
    figures.together(axes, points[points["how"] == "put together"])  # the searches at once may not have been run
    assert [t.get_text() for t in left.get_legend().get_texts()][-1] == "restricted original"
    plt.close(fig)


def test_grown_has_a_line_an_alpha_and_one_by_chance(ax):
    figures.grown(ax, {"2": {"found": [0.1, 0.15], "chance": [0.1, 0.19]}})
    assert [line.get_ydata().tolist() for line in ax.lines[:2]] == [[0.1, 0.15], [0.1, 0.19]]
    assert ax.lines[0].get_xdata().tolist() == [1, 2]


def test_by_images_has_a_dot_a_search_and_a_line_through_the_means(ax):
    searches = pd.DataFrame({"search": ["no labels"] * 3 + ["labels"], "images": [5, 5, 500, 5],
                             "points": [1.0, 3, 7, 4]})
    figures.by_images(ax, searches, "points", 0.0, ["other", "no labels", "labels"])
    dots, mean, labels, _, control = ax.lines
    assert dots.get_xydata().tolist() == [[5, 1], [5, 3], [500, 7]]
    assert mean.get_xydata().tolist() == [[5, 2], [500, 7]]
    assert set(control.get_ydata()) == {0.0}
    same = figures.by_images(plt.figure().gca(), searches[3:], "points", 0.0, ["other", "no labels", "labels"]).lines[0]
    assert same.get_color() == labels.get_color() != mean.get_color()  # in a panel that has no other search
    assert [t.get_text() for t in ax.get_xticklabels()] == ["5", "500"]
    assert ax.get_legend_handles_labels()[1] == ["no labels", "labels", "restricted original, no image"]


def test_kept_by_layer_has_a_bar_a_layer(ax):
    figures.kept_by_layer(ax, pd.DataFrame({"layer": ["conv1", "fc"], "kept": [0.25, 0.5]}))
    assert [bar.get_height() for bar in ax.patches] == [0.25, 0.5]


def test_examples_have_titles():
    fig, axes = plt.subplots(1, 2)
    figures.examples(axes, np.zeros((2, 3, 4, 4), np.uint8), ["a", "b"])
    assert [ax.get_title() for ax in axes] == ["a", "b"]
    plt.close(fig)


def test_multiply_adds_stand_dense_behind_sparse(ax):
    figures.multiply_adds(ax, pd.DataFrame({"layer": ["conv1", "fc"], "dense": [8, 4], "sparse": [2.0, 1.0]}))
    assert [bar.get_height() for bar in ax.patches] == [8, 4, 2, 1]


def test_speed_shows_the_mean_ratio_of_each_engine_and_batch(ax):
    times = pd.DataFrame({"engine": ["torch", "torch", "deepsparse"], "images": [16, 16, 16], "time": [1.0, 0.8, 0.3]})
    figures.speed(ax, times, multiply_adds=0.1)
    assert [bar.get_height() for bar in ax.patches][:2] == pytest.approx([0.9, 0.3])
    assert [line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1][-1] == 0.1


def test_thresholds_draw_accuracy_and_rate_against_what_is_removed(ax):
    figures.thresholds(ax, pd.DataFrame({
        "removed": [0.0, 0.6], "accuracy": [0.9, 0.85], "dir": [0.5, 0.2], "accuracy_masked": [None, 0.7],
        "dir_masked": [None, 0.3]}).astype(float))
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0.0, 0.6]] * 4
    assert [line.get_ydata()[1] for line in ax.lines] == [0.85, 0.7, 0.2, 0.3]


def test_by_method_has_a_panel_a_column_and_a_point_a_student():
    fig, axes = plt.subplots(1, 2)
    rows = pd.DataFrame({"method": ["standard", "standard", "seam"], "accuracy": [0.9, 0.8, 0.85],
                         "inherited": [0.5, 0.6, 0.2], "noise": [0.1, 0.2, 0.1]})
    left, right = figures.by_method(axes, rows, {"accuracy": None, "inherited": "noise"})
    assert [t.get_text() for t in left.get_yticklabels()] == ["standard", "seam"]
    (points,) = left.lines
    assert (points.get_xdata().tolist(), points.get_ydata().tolist()) == ([0.9, 0.8, 0.85], [0, 0, 1])
    assert {line.get_label(): line.get_xdata().tolist() for line in right.lines} == {
        "noise": [0.1, 0.2, 0.1], "inherited": [0.5, 0.6, 0.2]}
    plt.close(fig)


def test_survival_has_two_lines_a_seed_and_one_legend(ax):
    points = pd.DataFrame({"seed": [0, 0, 1], "kept": [1, 0.1, 0.2], "success": [0.9, 0.8, 0.7],
                           "control": [0.1, 0, 0]})
    figures.survival(ax, points)
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.9, 0.8], [0.1, 0], [0.7], [0]]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["the trigger", "a patch by lot"]


def test_survival_draws_nothing_where_nothing_was_measured(ax):
    figures.survival(ax, pd.DataFrame(columns=["seed", "kept", "success", "control"]))
    assert not ax.lines


def test_carried_has_a_bar_and_two_dots_a_layer(ax):
    figures.carried(ax, pd.DataFrame({"layer": ["a", "b"], "changed": [0.3, 0.7], "kept": [0.1, 0.2],
                                      "changed_kept": [0.5, float("nan")]}))
    assert [bar.get_height() for bar in ax.patches] == [0.3, 0.7]
    assert ax.lines[0].get_ydata()[0] == 0.5
    assert ax.lines[1].get_ydata().tolist() == [0.1, 0.2]


def test_the_drawing_names_teacher_and_student(ax):
    text = " ".join(t.get_text() for t in figures.inheritance(ax).texts)
    assert "teacher" in text
    assert "student" in text


def test_growth_turns_seconds_into_images_a_second_and_draws_both_ways_of_many_problems():
    fig, axes = plt.subplots(1, 3)
    figures.growth(axes, pd.DataFrame({"batch": [16, 64], "seconds": [4.0, 2.0]}),
                   pd.DataFrame({"model": ["a", "b"], "multiply_adds": [1e6, 2e6], "seconds": [1.0, 2.0]}),
                   pd.DataFrame({"problems": [1, 2], "one by one": [1.0, 2.0], "together": [2.0, 3.0]}), images=100)
    fig.canvas.draw()
    assert axes[0].lines[0].get_ydata().tolist() == [25, 50]
    assert [t.get_text() for t in axes[1].texts] == ["a", "b"]
    assert [line.get_ydata().tolist() for line in axes[2].lines] == [[1.0, 2.0], [2.0, 3.0]]
    plt.close(fig)


def test_channels_stand_before_behind_after_and_speed_has_two_bars_a_measurement(ax):
    figures.channels(ax, pd.DataFrame({"layer": ["conv1", "fc"], "before": [16, 10], "after": [3, 10]}))
    assert [bar.get_height() for bar in ax.patches] == [16, 10, 3, 10]
    ax.clear()
    figures.faster(ax, pd.DataFrame({"engine": ["torch", "torch"], "images": [16, 1], "masked, faster": [1.0, 1.1],
                                     "compacted, faster": [2.0, 1.5]}))
    assert [bar.get_height() for bar in ax.patches] == [1.0, 1.1, 2.0, 1.5]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["torch\n16 images", "torch\n1 image"]


def test_matrix_writes_on_its_cells_only_if_they_are_few(ax):
    figures.matrix(ax, pd.DataFrame([[0.25, np.nan], [1.0, 0.5]], ["a", "b"], ["a", "b"]), "kept by both")
    assert [t.get_text() for t in ax.texts] == ["25%", "100%", "50%"]
    figures.matrix(ax, pd.DataFrame(np.ones((11, 11))), "kept by both")
    assert len(ax.texts) == 3


def test_wanted_has_a_bar_and_a_dot_for_each_number_of_problems(ax):
    figures.wanted(ax, [0.5, 0.3, 0.2], [0.4, 0.4, 0.2])
    assert [bar.get_height() for bar in ax.patches] == [0.5, 0.3, 0.2]
    assert list(ax.lines[0].get_ydata()) == [0.4, 0.4, 0.2]


def test_accuracy_by_speed_has_a_line_a_model_a_cross_for_its_scattered_zeros_and_a_dotted_line_for_its_rival(ax):
    kinds = ["channels", "scattered", "channels", "channels", "smaller images"]
    figures.accuracy_by_speed(ax, pd.DataFrame({"model": ["a", "a", "a", "b", "b"], "kind": kinds,
                                    "faster": [3.0, 1.0, 2.0, 1.5, 4.0], "points": [-2.0, 0.5, -1.0, 0.0, -9.0]}))
    first, cross, _, second, _, rival, zero = ax.lines
    assert (list(rival.get_xdata()), rival.get_linestyle()) == ([4.0], ":")
    assert list(first.get_xdata()) == [2.0, 3.0]
    assert list(first.get_ydata()) == [-1.0, -2.0]
    assert (list(cross.get_xdata()), list(second.get_xdata())) == ([1.0], [1.5])
    assert list(zero.get_ydata()) == [0, 0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]


def test_in_a_notebook_figures_are_drawings(monkeypatch):
    magics = []
    shell = SimpleNamespace(run_line_magic=lambda *said: magics.append(said))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    figures.style()
    assert magics == [("config", "InlineBackend.figure_formats = ['svg']")]
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    figures.style()
    assert len(magics) == 1
