from __future__ import annotations

import io

import pytest
from PIL import Image

from samfed_monai.reports import RunData, comparison_table, figures
from samfed_monai.reports.figures import LEAST_SPAN, _site_lines, curves, panels, run_figures
from samfed_monai.reports.style import PALETTE, line_style, subplots
from tests.reports.runs import write_run


def test_a_run_has_three_figures_on_white(run_folder):
    figures = run_figures(RunData.read(run_folder))
    assert [figure.name for figure in figures] == ["curves", "reliability", "losses"]
    for figure in figures:
        assert Image.open(io.BytesIO(figure.png)).convert("RGB").getpixel((2, 2)) == (255, 255, 255)


def test_local_experts_have_a_figure_of_their_own(run_folder):
    run = RunData.read(run_folder)
    for row in run.rounds:
        row.values.update(term_expert_1=0.75, term_expert_2=0.25, term_expert_least=0.1)
    figures = {figure.name: figure for figure in run_figures(run)}
    assert list(figures) == ["curves", "reliability", "losses", "experts"]
    widths = [Image.open(io.BytesIO(figures[name].png)).size[0] for name in ("losses", "experts")]
    assert widths[0] >= widths[1], "no panel of the losses is an expert's"


def test_the_curves_say_whose_model_they_are_of(run_folder):
    run = RunData.read(run_folder)
    told = "Dice of the global model on every site's validation images"
    assert curves(run).text.startswith(told)
    run.results["own_models"] = True
    assert curves(run).text.startswith("Dice of each site's own model on its validation images")


def test_a_site_keeps_its_colour_where_another_has_no_values():
    _, (ax,) = subplots()
    _site_lines(ax, {"b": [(0, 0.5), (1, 0.6)]}, ["a", "b"])
    assert [line.get_color() for line in ax.lines] == [PALETTE[1]]


@pytest.mark.parametrize(
    ("values", "expected"), [((0.79, 0.81), (0.75, 0.85)), ((0.2, 0.8), (0.17, 0.83)), ((0.5, 0.5), (0.45, 0.55))]
)
def test_an_axis_does_not_turn_noise_into_a_collapse(values, expected):
    _, (ax,) = subplots()
    _site_lines(ax, {"a": list(enumerate(values))}, ["a"])
    assert ax.get_ylim() == pytest.approx(expected, abs=0.006)
    assert LEAST_SPAN == 0.1


def test_one_round_has_one_tick():
    _, (ax,) = subplots()
    _site_lines(ax, {"a": [(0, 0.5)], "b": [(0, 0.4)]}, ["a", "b"])
    assert list(ax.get_xticks()) == [1]


def test_small_panels_say_below_them_which_line_is_which_site():
    lines = {site: [(0, 0.5), (1, 0.4)] for site in ("b", "c")}
    figure = panels({"sam_distillation": lines}, ["a", "b", "c"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["b", "c"]
    assert [line.get_color() for line in legend.get_lines()] == [PALETTE[1], PALETTE[2]]
    assert figure.axes[0].get_title(loc="left") == "SAM distillation"


def test_many_long_names_are_whole_and_below_the_axes():
    sites = [f"Universitätsklinikum, {'Abteilung für ' * 4} {number:02d}" for number in range(20)]
    figure = panels({"dice": {site: [(0, 0.5), (1, 0.6)] for site in sites}}, sites)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert len(boxes) == 20
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    assert 0 <= min(box.y0 for box in boxes) <= max(box.y1 for box in boxes) <= figure.axes[0].bbox.y0


def test_twenty_sites_have_twenty_looks():
    assert len({tuple(line_style(index).values()) for index in range(20)}) == 20


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
        assert figures.comparison_figure(comparison_table(folders)).png
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


def test_parameters_are_beside_the_mean_where_they_are_known(drawn, monkeypatch):
    costs = {"small": {"parameters": 5_200_000, "milliseconds": 119.6}}

    def read(path):
        run = RunData.read(path)
        run.results["costs"] = costs
        return run

    monkeypatch.setattr("samfed_monai.reports.compare._read_one", read)
    ax = drawn(samfed=0.84)
    assert "0.840   5.2 M" in [text.get_text() for text in ax.texts]
