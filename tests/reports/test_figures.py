import io
from functools import partial

import pytest
from PIL import Image

from samfed_monai.reports import RunData, comparison_table, figures
from samfed_monai.reports.figures import _average, _site_lines, curves, panels, run_figures
from samfed_monai.reports.style import PALETTE, line_style, subplots
from tests.reports.runs import write_run


def test_run_figures_are_white_and_experts_have_own_figure(run_folder):
    run = RunData.read(run_folder)
    for row in run.rounds:
        row.values.update(term_expert_1=0.75, term_expert_2=0.25, term_expert_least=0.1)
    figures = run_figures(run)
    assert [figure.name for figure in figures] == ["curves", "reliability", "losses", "experts"]
    pictures = [Image.open(io.BytesIO(figure.png)) for figure in figures]
    assert {picture.convert("RGB").getpixel((2, 2)) for picture in pictures} == {(255, 255, 255)}
    assert pictures[2].size[0] >= pictures[3].size[0], "no panel of the losses is an expert's"


def test_curve_caption_names_evaluated_model(run_folder, monkeypatch):
    monkeypatch.setattr(figures, "png", lambda figure: b"")
    run = RunData.read(run_folder)
    for own, who in ((False, "the global model on every"), (True, "each site's own model on its")):
        run.results["own_models"] = own
        assert curves(run).text.startswith(f"Dice of {who}")


def test_average_line_is_weighted_by_images():
    lines = {"a": [(0, 0.5)], "b": [(0, 0.8), (1, 0.2)]}
    assert _average(lines, {"a": 1, "b": 2}) == [(1, pytest.approx(0.7)), (2, pytest.approx(0.2))]


@pytest.mark.parametrize(
    ("values", "expected"), [((0.79, 0.81), (0.75, 0.85)), ((0.2, 0.8), (0.17, 0.83)), ((0.5, 0.5), (0.45, 0.55))]
)
def test_axis_has_minimum_range(values, expected):
    _, (ax,) = subplots()
    _site_lines(ax, {"a": list(enumerate(values))}, ["a"])
    assert ax.get_ylim() == pytest.approx(expected, abs=0.006)


def test_single_round_has_one_tick_and_colours_are_stable():
    _, (ax,) = subplots()
    _site_lines(ax, {"b": [(0, 0.4)]}, ["a", "b"])
    assert list(ax.get_xticks()) == [1]
    assert [line.get_color() for line in ax.lines] == [PALETTE[1]]
    assert len({tuple(line_style(index).values()) for index in range(20)}) == 20


def test_panels_have_legend_of_sites():
    figure = panels({"sam_distillation": {site: [(0, 0.5), (1, 0.4)] for site in ("b", "c")}}, ["a", "b", "c"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["b", "c"]
    assert [line.get_color() for line in legend.get_lines()] == [PALETTE[1], PALETTE[2]]
    assert figure.axes[0].get_title(loc="left") == "SAM distillation"


def test_long_legend_fits_below_axes():
    sites = [f"Universitätsklinikum, {'Abteilung für ' * 4} {number:02d}" for number in range(20)]
    figure = panels({"dice": {site: [(0, 0.5), (1, 0.6)] for site in sites}}, sites)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert len(boxes) == 20
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    assert 0 <= min(box.y0 for box in boxes) <= max(box.y1 for box in boxes) <= figure.axes[0].bbox.y0


@pytest.fixture
def draw_figure(monkeypatch, tmp_path):
    """Axes of the figure of runs with these Dice by variant."""

    def draw(**dice):
        made = []
        monkeypatch.setattr(figures, "subplots", lambda **size: made.append(subplots(**size)) or made[0])
        monkeypatch.setattr(figures, "png", lambda figure: b"drawn")
        folders = [write_run(tmp_path / variant, variant, 0, value) for variant, value in dice.items()]
        assert figures.comparison_figure(comparison_table(folders)).png
        (_, (ax,)) = made[0]
        return ax

    return draw


def arrows(ax, marker):
    """Titles of the rows that are arrows."""
    titles = dict(zip(ax.get_yticks(), (label.get_text() for label in ax.get_yticklabels()), strict=True))
    return [titles[line.get_ydata()[0]] for line in ax.lines if line.get_marker() == marker]


@pytest.mark.parametrize(
    ("dices", "below", "above", "label"),
    [
        ({"fedsam": 0.8, "supervised": 0.08, "local_sam": 0.9}, ["Small network, own labels"], [], "0.080"),
        ({"fedsam": 0.8, "supervised": 0.095, "local_sam": 0.9}, [], [], None),
        ({"samfed": 0.5, "dp_only": 0.45}, [], ["SAM teacher alone"], "0.850"),
        ({"samfed": 0.84, "dp_only": 0.8}, [], [], None),
    ],
    ids=["a_row_far_below", "a_tenth_of_the_best", "a_teacher_far_above", "a_teacher_near"],
)
def test_outlying_row_is_drawn_as_arrow(draw_figure, dices, below, above, label):
    ax = draw_figure(**dices)
    assert (arrows(ax, "<"), arrows(ax, ">")) == (below, above)
    low, high = ax.get_xlim()
    values = [*dices.values(), *([0.85] if "samfed" in dices else [])]
    assert (low > 0.4, high < 0.7) == (min(values) > 0.4 or bool(below), max(values) < 0.7 or bool(above))
    assert [text.get_text() for text in ax.texts].count(label) == bool(label)


def test_comparison_figure_shows_means_and_parameters(draw_figure, monkeypatch):
    costs = {"small": {"parameters": 5_200_000, "milliseconds": 119.6}}
    monkeypatch.setattr("tests.reports.test_figures.write_run", partial(write_run, costs=costs))
    ax = draw_figure(samfed=0.84)
    assert "0.840   5.2 M" in [text.get_text() for text in ax.texts]
    assert ax.figure.get_size_inches() == pytest.approx([8.6, 1.1 + 2 * 0.42]), "a line a row"
    assert (ax.get_xlabel(), ax.xaxis.label.get_fontsize()) == ("average test Dice", 9)
    ticks = [y for line in ax.lines if line.get_zorder() == 4 for y in line.get_ydata()]
    assert ticks == pytest.approx([0.76, 1.24, -0.24, 0.24])  # of the teacher, and of its student below
