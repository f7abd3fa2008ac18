"""The page of one run: it needs no other file, shows the run's numbers, and omits missing parts."""

from __future__ import annotations

import logging
import re
import shutil
import stat
from html.parser import HTMLParser

import pytest

from samfed_monai.core.io import read_json, write_json
from samfed_monai.reports import CAVEATS, Report, RunData
from samfed_monai.reports.html import render
from tests.reports.runs import EMPTY, NO_MASKS, summary

VOID = {"meta", "img", "source", "br", "link"}


class Balance(HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self, page: str):
        super().__init__()
        self.open = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report_path(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "R"
    shutil.copytree(run_folder, folder)
    return Report(folder).write()


@pytest.fixture(scope="module")
def page(report_path):
    return report_path.read_text(encoding="utf-8")


@pytest.fixture
def rendered(run_folder, tmp_path):
    """The page of that run without its folder, some of its results changed."""

    def draw(**changed) -> str:
        results = read_json(run_folder / "results.json")
        for name, value in changed.items():
            results[name] = {**results[name], **value} if isinstance(value, dict) and name in results else value
        return render(RunData(tmp_path, results), [], [], [])

    return draw


def test_page_is_self_contained_and_tags_are_balanced(page):
    assert not re.findall(r'(?:src|href|srcset)="(?!data:image/png;base64,)[^"]*"', page)
    assert "@import" not in page
    assert "url(" not in page
    assert Balance(page).open == []


def test_page_shows_scores_and_caveats(page, report_path):
    results = read_json(report_path.parent / "results.json")
    for found in (*(splits["test"] for splits in results["sites"].values()), results["average"]["test"]):
        assert f"{found['dice']:.3f}" in page
        assert f"{found['hd95']:.1f}" in page
    for text in (
        *("São Paulo", "Teacher alone", "10 min 51 s", "6.31 GB", "NaN or infinity", "07ac" * 16),
        *("<span>samfed</span> <span>federate</span>", *CAVEATS, "This file shows images"),
        "A subset of the published lists, with ISIC-2017 masks.",
    ):
        assert text in page
    order = ('<p class="verdict">', '<dl class="headlines">', "<h2>Scores</h2>", ">Test</th>", ">Validation</th>")
    positions = [page.index(text) for text in order]
    assert positions == sorted(positions), "the verdict first, and test scores before validation"


def test_figures_are_beside_page_and_private_files_have_mode_600(report_path):
    names = {path.name for path in (report_path.parent / "figures").iterdir()}
    assert {"curves.png", "reliability.png", "losses.png", "overlay-1-best.png"} <= names
    assert len(names) == 3 + 12
    for path in (report_path.parent / "figures" / "overlay-1-best.png", report_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_names_are_escaped(rendered):
    page = rendered(skipped=[{"round": 0, "site": "<script>alert(1)</script>", "reason": "<b>"}])
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_minimal_run_has_report(run_folder, tmp_path):
    results = read_json(run_folder / "results.json")
    results.update(teacher=None, skipped=[], models={"best": results["models"]["best"]}, command=None)
    write_json(tmp_path / "results.json", results)
    page = Report(tmp_path).write().read_text(encoding="utf-8")
    assert "Teacher alone" not in page
    assert "<h2>Teacher</h2>" not in page
    assert "None: every site" in page
    assert "give --datalist and --data-root to `samfed report`" in page


def test_overlays_are_optional(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "R", ignore=shutil.ignore_patterns("federation.csv"))
    table = tmp_path / "R" / "evaluation" / "best" / "Basel" / "test" / "scores.csv"
    table.write_text("id,dice,iou,hd95,empty,estimate\n" + "Basel test 00,0.5,0.4,1,none,0.6\n" * 7)
    path = Report(tmp_path / "R", overlays=False).write()
    page = path.read_text(encoding="utf-8")
    assert '<td class="left minor">left out on request</td>' in page
    assert ("Basel test" in page, stat.S_IMODE(path.stat().st_mode)) == (False, 0o644)
    assert "all sites: left out on request" in page
    assert "This file shows images" not in page


def test_networks_exchange_and_unseen_hospitals_are_shown(rendered, run_folder, page):
    models = read_json(run_folder / "results.json")["models"]
    far = {"Coimbra": {"test": {**summary(0.612), "n": 9, "empty": {"both": None, "prediction": 6, "label": 0}}}}
    withheld = {"test": {**summary(0.587), "empty": dict.fromkeys(EMPTY)}}
    models["best"]["unseen"], models["last"]["unseen"] = far, {"Coimbra": withheld}
    other = rendered(
        networks={"Basel": "flexible_unet", "Porto": "deeplabv3plus_resnet34"},
        exchange="predictions",
        own_models=True,
        unseen=far,
        models=models,
        traffic={"up_bytes_per_round": 2_621_440.0, "down_bytes_per_round": 655_360.0},
        convention={"hd95": "pooled", "empty": "skipped"},
    )
    for text in (
        "<code>deeplabv3plus_resnet34</code>",
        "<p>Each site's own model, the <em>best</em> one (round",
        "no weights leave a site. A round moves 2.62 MB to the",
        "655 kB back",
        "Unseen hospitals",
        "Coimbra, it took no part",
        "<td>Coimbra, <em>last</em> model</td>",
        *("0.612", "0.587"),
        *('–<span class="minor"> / </span>6<span', '–<span class="minor"> / </span>–</td>'),
        "both directions pooled (MedPy), in pixels at the evaluation size; images with an empty mask",
    ):
        assert text in other
    assert Balance(other).open == []
    assert "<p>The <em>best</em> global model (round" in page
    assert "Unseen hospitals" not in page
    assert "Networks and exchange" not in page
    assert "the larger of the two directed 95th percentiles (MONAI)" in page


def test_time_and_memory_are_shown_in_tables(page):
    for cell in (
        "<td>Training at the sites</td><td>6 min 42 s</td><td>62 %</td>",
        "<td>Soft masks</td><td>1 min 14 s</td><td>11 %</td>",
        "<td>Evaluation</td><td>22 s</td><td>3 %</td>",
        "<td>Aggregation and storing</td><td>4.1 s</td><td>1 %</td>",
        "<td>Rounds, evaluation</td><td>3.15 GB</td><td>3.16 GB</td>",
    ):
        assert cell in page
    assert "Training at the server" not in page, "it took no time"
    assert "Checks and the rest" not in page, "less than a thousandth"


def test_time_and_traffic_sum_to_total(rendered):
    none = dict.fromkeys(("soft_masks", "warm_start", "controller", "evaluation"), 0.0)
    page = rendered(
        seconds={**none, "teacher": 10.0, "training": 50.0, "total": 100.0},
        traffic={"up_bytes": 100, "down_bytes": 300, "up_bytes_before": 1, "down_bytes_before": 20},
    )
    for row in (
        "<td>Checks and the rest</td><td>40 s</td><td>40 %</td>",
        "<td>Before the rounds</td><td>1 B</td><td>20 B</td>",
        '<tr class="strong"><td>All</td><td>101 B</td><td>320 B</td>',
    ):
        assert row in page


def test_costs_show_memory_if_measured(rendered):
    small = {"parameters": 749_281, "milliseconds": 30.2}
    older = rendered(costs={"small": small}, teacher={"parameters": 9_800_000, "milliseconds": 2407.0})
    assert "<td>small</td><td>0.7 M</td><td>30 ms</td></tr>" in older
    assert "<td>teacher</td><td>9.8 M</td><td>2407 ms</td></tr>" in older
    assert "<th>Memory</th>" not in older
    large = {"parameters": 5_219_253, "milliseconds": 99.0, "memory_bytes": 34_715_860}
    page = rendered(costs={"small": small, "large": large})
    assert "<td>large</td><td>5.2 M</td><td>99 ms</td><td>34.7 MB</td></tr>" in page
    assert "<td>small</td><td>0.7 M</td><td>30 ms</td><td>–</td></tr>" in page


def test_skipped_rounds_with_same_reason_share_row(rendered):
    skipped = [{"round": number, "site": "Porto", "reason": "no answer"} for number in (5, 6, 7, 9)]
    page = rendered(skipped=skipped, unscored={"Porto": "no answer"})
    assert "all images of all sites that sent scores (missing, all or some: Porto); the worst is" in page
    assert '<tr><td>Porto</td><td class="left">6–8, 10</td><td class="left warn">no answer</td></tr>' in page


def test_advice_is_first_on_page_and_last_in_log(run_folder, tmp_path, caplog, page):
    assert "What to do" not in page, "that run is in order"
    results = read_json(run_folder / "results.json")
    results["teacher"]["sites"]["Porto"]["test"]["dice"] = 0.0
    write_json(tmp_path / "results.json", results)
    with caplog.at_level(logging.INFO):
        advised = Report(tmp_path).write().read_text(encoding="utf-8")
    assert advised.index("What to do") < advised.index("<h2>Scores</h2>")
    messages = [record.getMessage() for record in caplog.records if record.name == "samfed_monai.reports.html"]
    assert messages[0].startswith("report: ")
    assert messages[1].startswith("The teacher is wrong more often than right at 1 of 4 sites (Dice 0.000 at Porto)")
    assert messages[-3].startswith("test Dice 0.")
    assert messages[-1].startswith("next: samfed infer bundles/samfed_skin IMAGES --model ")


def test_run_without_masks_has_no_score_table(rendered, run_folder):
    sites = dict.fromkeys(read_json(run_folder / "results.json")["sites"], NO_MASKS)
    none = {"sites": sites, "average": NO_MASKS, "worst": dict.fromkeys(NO_MASKS)}
    page = rendered(**none, models={"best": {"round": 12, **none}, "last": {"round": 15, **none}}, teacher=None)
    assert "None: no site has a mask, neither for validation" in page
    assert "HD95 px" not in page
    assert Balance(page).open == []
