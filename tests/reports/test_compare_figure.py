from __future__ import annotations

import pytest

from samfed_monai.reports import compare_figure
from samfed_monai.reports.compare import comparison_table
from samfed_monai.reports.run_data import RunData
from tests.reports.runs import write_run


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Axes of the figure of runs with these Dice by variant."""

    def draw(**dice):
        axes = []

        def kept(*args, **kwargs):
            figure, made = subplots(*args, **kwargs)
            axes.extend(made)
            return figure, made

        subplots = compare_figure.subplots
        monkeypatch.setattr(compare_figure, "subplots", kept)
        folders = [write_run(tmp_path / variant, variant, 0, value) for variant, value in dice.items()]
        assert compare_figure.comparison_figure(comparison_table(folders)).light
        return axes[0]

    return draw


def arrows(ax, marker="<"):
    return [line.get_ydata()[0] for line in ax.lines if line.get_marker() == marker]


def test_a_row_far_below_is_an_arrow_and_does_not_squeeze_the_others(drawn):
    ax = drawn(fedsam=0.8, supervised=0.08, local_sam=0.9)
    names = [label.get_text() for label in ax.get_yticklabels()]
    places = dict(zip(names, ax.get_yticks(), strict=True))
    assert arrows(ax) == [places["Small network, own labels"]]
    assert ax.get_xlim()[0] > 0.7
    assert [text.get_text() for text in ax.texts].count("0.080") == 1


def test_a_tenth_of_the_best_row_is_not_far_below(drawn):
    ax = drawn(fedsam=0.8, supervised=0.095, local_sam=0.9)
    assert arrows(ax) == []
    assert ax.get_xlim()[0] < 0.1


def test_a_teacher_far_above_the_rows_that_were_trained_is_an_arrow(drawn):
    ax = drawn(samfed=0.5, dp_only=0.45)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert arrows(ax, ">") == [dict(zip(names, ax.get_yticks(), strict=True))["SAM teacher alone"]]
    assert ax.get_xlim()[1] < 0.55
    assert [text.get_text() for text in ax.texts].count("0.850") == 1


def test_a_teacher_near_them_is_drawn_to_scale(drawn):
    ax = drawn(samfed=0.84, dp_only=0.8)
    assert arrows(ax, ">") == []
    assert ax.get_xlim()[1] > 0.85


def test_parameters_and_milliseconds_stand_beside_the_mean_where_they_were_measured(drawn, monkeypatch):
    costs = {"small": {"parameters": 5_200_000, "milliseconds": 119.6}}

    def read(path):
        run = RunData.read(path)
        run.results["costs"] = costs
        return run

    monkeypatch.setattr("samfed_monai.reports.compare._read_one", read)
    ax = drawn(samfed=0.84)
    assert "0.840   5.2 M, 120 ms" in [text.get_text() for text in ax.texts]
