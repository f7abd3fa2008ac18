from __future__ import annotations

import io

import pytest
from PIL import Image

from samfed_monai.reports import RunData
from samfed_monai.reports.figures import curves, run_figures
from samfed_monai.reports.style import DARK, LIGHT, line_style, spread_labels


def test_a_run_has_four_figures_in_two_themes(run_folder):
    figures = run_figures(RunData.read(run_folder))
    assert [figure.name for figure in figures] == ["curves", "reliability", "losses", "costs"]
    for figure in figures:
        light, dark = (Image.open(io.BytesIO(content)).convert("RGB") for content in (figure.light, figure.dark))
        assert light.size == dark.size
        assert light.getpixel((2, 2)) == (255, 255, 255)
        assert dark.getpixel((2, 2)) == (27, 30, 35)


def test_local_experts_have_a_figure_of_their_own(run_folder):
    run = RunData.read(run_folder)
    for row in run.rounds:
        row.terms.update(expert_1=0.75, expert_2=0.25, expert_least=0.1)
    figures = {figure.name: figure for figure in run_figures(run)}
    assert list(figures) == ["curves", "reliability", "losses", "experts", "costs"]
    widths = [Image.open(io.BytesIO(figures[name].light)).size[0] for name in ("losses", "experts")]
    assert widths[0] >= widths[1], "no panel of the losses is an expert's"


def test_a_run_without_rounds_still_shows_its_costs(run_folder):
    run = RunData.read(run_folder)
    assert [figure.name for figure in run_figures(RunData(run.folder, run.results))] == ["costs"]


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


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_twenty_sites_have_twenty_looks(theme):
    assert len({tuple(line_style(index, theme).values()) for index in range(20)}) == 20
