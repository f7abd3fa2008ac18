from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import pytest
from PIL import Image

from samfed_monai.reports import RunData, comparison_table, figures
from samfed_monai.reports.figures import _panels, _site_lines, curves, run_figures
from samfed_monai.reports.style import DARK, LIGHT, PHONE, line_style, spread_labels, subplots
from tests.reports.runs import write_run


def test_a_run_has_four_figures_in_two_themes_and_two_widths(run_folder):
    figures = run_figures(RunData.read(run_folder))
    assert [figure.name for figure in figures] == ["curves", "images", "reliability", "losses"]
    for figure in figures:
        light, dark = (
            Image.open(io.BytesIO(content)).convert("RGB") for content in (figure.light, figure.png(dark=True))
        )
        assert light.size == dark.size
        assert light.getpixel((2, 2)) == (255, 255, 255)
        assert dark.getpixel((2, 2)) == (27, 30, 35)
        narrow, narrow_dark = (
            Image.open(io.BytesIO(content)) for content in (figure.png(narrow=True), figure.png(dark=True, narrow=True))
        )
        assert narrow.size == narrow_dark.size
        assert narrow.size[0] == round(150 * PHONE) < light.size[0]
    heights = {figure.name: Image.open(io.BytesIO(figure.png(narrow=True))).size[1] for figure in figures}
    assert heights["reliability"] > heights["curves"], "two panels below each other, of which the curves have one"


def test_local_experts_have_a_figure_of_their_own(run_folder):
    run = RunData.read(run_folder)
    for row in run.rounds:
        row.terms.update(expert_1=0.75, expert_2=0.25, expert_least=0.1)
    figures = {figure.name: figure for figure in run_figures(run)}
    assert list(figures) == ["curves", "images", "reliability", "losses", "experts"]
    widths = [Image.open(io.BytesIO(figures[name].light)).size[0] for name in ("losses", "experts")]
    assert widths[0] >= widths[1], "no panel of the losses is an expert's"


def test_the_curves_say_whose_model_they_are_of(run_folder):
    run = RunData.read(run_folder)
    told = "Dice of the global model on every site's validation images"
    assert curves(run).text.startswith(told)
    run.results["own_models"] = True
    assert curves(run).text.startswith("Dice of each site's own model on its validation images")


def test_labels_keep_their_distance_and_their_order():
    places = spread_labels([0.5, 0.51, 0.9], gap=0.1, top=0.95)
    assert places[1] - places[0] == pytest.approx(0.1)
    assert places[2] == pytest.approx(0.9)
    assert spread_labels([], gap=0.1) == []
    assert max(spread_labels([0.94, 0.95], gap=0.1, top=0.95)) <= 0.95 + 1e-9


def test_a_site_keeps_its_colour_where_another_has_no_values():
    _, (ax,) = subplots(LIGHT)
    _site_lines(ax, {"b": [(0, 0.5), (1, 0.6)]}, ["a", "b"], LIGHT)
    assert [line.get_color() for line in ax.lines] == [LIGHT.palette[1]]


def test_one_round_has_one_tick():
    _, (ax,) = subplots(LIGHT)
    _site_lines(ax, {"a": [(0, 0.5)], "b": [(0, 0.4)]}, ["a", "b"], LIGHT)
    assert list(ax.get_xticks()) == [1]


def test_small_panels_say_below_them_which_line_is_which_site():
    lines = {site: [(0, 0.5), (1, 0.4)] for site in ("b", "c")}
    figure = _panels({"sam_distillation": lines}, ["a", "b", "c"], LIGHT)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["b", "c"]
    assert [line.get_color() for line in legend.get_lines()] == [LIGHT.palette[1], LIGHT.palette[2]]
    assert figure.axes[0].get_title(loc="left") == "SAM distillation"


def test_many_long_names_are_whole_and_apart_on_a_phone():
    narrow = replace(LIGHT, narrow=True)
    sites = [f"Universitätsklinikum, {'Abteilung für ' * 4} {number:02d}" for number in range(20)]
    figure, (ax,) = subplots(narrow, height=figures._height(3.9, {site: [] for site in sites}, narrow))
    _site_lines(ax, {site: [(0, 0.5), (1, 0.6)] for site in sites}, sites, narrow, labels=True)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 20
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    assert min(box.y0 for box in boxes) >= ax.bbox.y0 - 2
    ordered = sorted(boxes, key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(ordered))


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_twenty_sites_have_twenty_looks(theme):
    assert len({tuple(line_style(index, theme).values()) for index in range(20)}) == 20


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Axes of the figure of runs with these Dice by variant."""

    def draw(**dice):
        axes = []

        def kept(*args, **kwargs):
            figure, made = subplots(*args, **kwargs)
            axes.extend(made)
            return figure, made

        subplots = figures.subplots
        monkeypatch.setattr(figures, "subplots", kept)
        folders = [write_run(tmp_path / variant, variant, 0, value) for variant, value in dice.items()]
        assert figures.comparison_figure(comparison_table(folders)).light
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
