"""Trust in masks by their own probabilities, in a report."""

from __future__ import annotations

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import write_json
from samfed_monai.metrics.quality import Calibration, Quality
from samfed_monai.reports.html import Trust, render, trust
from samfed_monai.reports.run_data import RunData
from tests.reports.runs import write_disagreement, write_run


@pytest.fixture
def run(tmp_path) -> RunData:
    """A site with labelled test images, and one with unlabelled images."""
    folder = write_run(tmp_path, "samfed", 0, 0.8)
    tested = folder / "evaluation" / "best" / "a" / "test"
    tested.mkdir(parents=True)
    (tested / "scores.csv").write_text("id,dice,iou,hd95,estimate\nx,0.5,0.4,1,0.6\ny,0.9,0.8,1,0.9\n")
    write_disagreement(folder, "b", "<u>,00,0.2,0.75,", "v,01,0.6,1.0,")
    return RunData.read(folder)


def test_trust_counts_doubtful_masks_per_site(run):
    assert trust(run) == [
        Trust("a", 2, True, pytest.approx(0.75), 1, [("x", 0.6), ("y", 0.9)]),
        Trust("b", 2, False, pytest.approx(0.875), 0, [("<u>", 0.75), ("v", 1.0)]),
    ]


def test_trust_uses_calibration_of_run(run):
    write_json(run.folder / "quality.json", Quality(Calibration((0.0, 1.0), (0.0, 0.8), 0.5, 40)).as_dict())
    assert [(each.expected, each.doubtful) for each in trust(run)] == [(pytest.approx(0.6), 1), (pytest.approx(0.7), 1)]


def test_empty_mask_is_doubtful_except_in_volumes(run):
    table = run.folder / "evaluation" / "best" / "a" / "test" / "scores.csv"
    table.write_text("id,dice,iou,hd95,empty,estimate\nx,0,0,9,prediction,0.99\ny,0.9,0.8,1,,0.8\n")
    assert trust(run)[0] == Trust("a", 2, True, pytest.approx(0.4), 1, [("x", 0.0), ("y", 0.8)])
    run.results["sites"]["a"]["test"]["volumes"] = {}
    assert trust(run)[0].doubtful == 0


def test_invalid_calibration_is_refused(run):
    (run.folder / "quality.json").write_text("{")
    with pytest.raises(Refused, match=r"quality\.json"):
        render(run, [], [], [])


def test_page_shows_trust_escaped_and_calibration_state(run):
    page = " ".join(render(run, [], [], [], []).split())
    assert "2 without labels" in page
    assert "1 (50 %)" in page
    assert "&lt;u&gt; (0.750)" in page
    assert "not calibrated" in page
    assert "treat it as you treat the images" in page, "ids are private"


def test_tables_without_estimates_have_no_trust(run):
    for path in run.folder.rglob("*.csv"):
        path.write_text(path.read_text().replace("estimate", "older"))
    assert trust(run) == []
    assert 'id="trust"' not in render(run, [], [], [])
