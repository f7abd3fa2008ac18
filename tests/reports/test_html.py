from __future__ import annotations

import logging
import re
import shutil
import stat
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from samfed_monai.core.io import read_json, write_json
from samfed_monai.reports import CAVEATS, Report, RunData
from samfed_monai.reports.html import render

VOID = {"meta", "img", "source", "br", "link"}


class Balance(HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "R"
    shutil.copytree(run_folder, folder)
    return Report(folder).write()


@pytest.fixture(scope="module")
def page(written):
    return written.read_text(encoding="utf-8")


def test_the_page_stands_alone(page):
    assert not re.findall(r'(?:src|href|srcset)="(?!data:image/png;base64,)[^"]*"', page)
    assert "@import" not in page
    assert "url(" not in page


def test_its_tags_are_balanced(page):
    balance = Balance()
    balance.feed(page)
    assert balance.open == []


def test_it_shows_the_numbers_of_the_results(page, written):
    results = read_json(written.parent / "results.json")
    for summary in (*(splits["test"] for splits in results["sites"].values()), results["average"]["test"]):
        assert f"{summary['dice']:.3f}" in page
        assert f"{summary['hd95']:.1f}" in page
    for text in (
        "São Paulo",
        "Teacher alone",
        "10 min 51 s",
        "6.31 GB",
        "<span>samfed</span> <span>federate</span>",
        "NaN or infinity",
        "4be1" * 16,
    ):
        assert text in page


def test_it_carries_the_marks_and_the_run_s_own_caveats(page):
    for caveat in (*CAVEATS, "A subset of the published lists, with ISIC-2017 masks.", "This file shows images"):
        assert caveat in page


def test_pictures_lie_beside_it(written):
    names = {path.name for path in (written.parent / "figures").iterdir()}
    assert {"curves.png", "reliability.png", "losses.png", "overlay-1-best.png"} <= names
    assert len(names) == 3 + 12
    assert stat.S_IMODE((written.parent / "figures" / "overlay-1-best.png").stat().st_mode) == 0o600
    assert stat.S_IMODE(written.stat().st_mode) == 0o600, "it shows them, too"


def test_names_from_a_run_cannot_become_markup(run_folder, tmp_path):
    results = read_json(run_folder / "results.json")
    results["skipped"] = [{"round": 0, "site": "<script>alert(1)</script>", "reason": "<b>"}]
    write_json(tmp_path / "results.json", results)
    page = Report(tmp_path).write().read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_bare_run_without_teacher_or_rounds_has_a_report(run_folder, tmp_path):
    results = read_json(run_folder / "results.json")
    results.update(teacher=None, skipped=[], models={"best": results["models"]["best"]}, command=None)
    write_json(tmp_path / "results.json", results)
    page = Report(tmp_path).write().read_text(encoding="utf-8")
    assert "Teacher alone" not in page
    assert "<h2>Teacher</h2>" not in page
    assert "None: every site" in page
    assert "give --datalist and --data-root to `samfed report`" in page


def test_overlays_can_be_left_out(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "R", ignore=shutil.ignore_patterns("federation.csv"))
    page = Report(tmp_path / "R", overlays=False).write().read_text(encoding="utf-8")
    assert "Basel test" not in page
    assert "left out on request" in page
    assert "This file shows images" not in page


def test_networks_exchange_and_unseen_hospitals_have_their_place(run_folder, tmp_path):
    results = read_json(run_folder / "results.json")
    far = {"test": {"dice": 0.612, "iou": 0.5, "hd95": 33.3, "n": 9, "empty": {"both": 0, "prediction": 2, "label": 0}}}
    worse = {"test": {**far["test"], "dice": 0.587}}
    results["networks"] = {"Basel": "flexible_unet", "Porto": "deeplabv3plus_resnet34"}
    results["exchange"], results["own_models"], results["unseen"] = "predictions", True, {"Coimbra": far}
    results["models"]["best"]["unseen"], results["models"]["last"]["unseen"] = {"Coimbra": far}, {"Coimbra": worse}
    results["traffic"].update(up_bytes_per_round=2_621_440.0, down_bytes_per_round=655_360.0)
    results["convention"] = {"hd95": "pooled", "empty": "skipped"}
    write_json(tmp_path / "results.json", results)
    page = Report(tmp_path).write().read_text(encoding="utf-8")
    for text in (
        "<code>deeplabv3plus_resnet34</code>",
        "<p>Each site's own model, the <em>best</em> one (round",
        "no weights leave a site. A round moves 2.62 MB to the",
        "655 kB back",
        "Unseen hospitals",
        "Coimbra, it took no part",
        "<td>Coimbra, <em>last</em> model</td>",
        "0.612",
        "0.587",
        "both directions pooled (MedPy), in pixels at the evaluation size; images with an empty mask",
    ):
        assert text in page
    balance = Balance()
    balance.feed(page)
    assert balance.open == []


def test_a_run_that_says_nothing_of_them_shows_nothing(page):
    assert "<p>The <em>best</em> global model (round" in page
    assert "Unseen hospitals" not in page
    assert "Networks and exchange" not in page
    assert "the larger of the two directed 95th percentiles (MONAI)" in page


def test_what_it_cost_stands_in_tables(page):
    for cell in (
        "<td>Training at the sites</td><td>6 min 42 s</td><td>62 %</td>",
        "<td>Soft masks</td><td>1 min 14 s</td><td>11 %</td>",
        "<td>Evaluation</td><td>22 s</td><td>3 %</td>",
        "<td>Aggregation and storing</td><td>4.1 s</td><td>1 %</td>",
        '<tr class="strong"><td>All</td><td>10 min 51 s</td>',
        "<td>Rounds, evaluation</td><td>3.15 GB</td><td>3.16 GB</td>",
    ):
        assert cell in page
    assert "Training at the server" not in page, "it took no time"
    assert "Checks and the rest" not in page, "less than a thousandth"


def test_time_and_traffic_add_up_to_the_whole(run_folder, tmp_path):
    results = read_json(run_folder / "results.json")
    results["seconds"].update(dict.fromkeys(results["seconds"], 0.0), teacher=10.0, training=50.0, total=100.0)
    results["traffic"] = {"up_bytes": 100, "down_bytes": 300, "up_bytes_before": 1, "down_bytes_before": 20}
    write_json(tmp_path / "results.json", results)
    page = Report(tmp_path).write().read_text(encoding="utf-8")
    for row in (
        "<td>Checks and the rest</td><td>40 s</td><td>40 %</td>",
        "<td>Before the rounds</td><td>1 B</td><td>20 B</td>",
        '<tr class="strong"><td>All</td><td>101 B</td><td>320 B</td>',
    ):
        assert row in page


def test_what_an_image_costs_has_its_memory_where_a_run_measured_it(run_folder, tmp_path):
    results = read_json(run_folder / "results.json")
    results["costs"] = {"small": {"parameters": 749_281, "milliseconds": 30.2}}
    write_json(tmp_path / "results.json", results)
    older = Report(tmp_path).write().read_text(encoding="utf-8")
    assert "<td>small</td><td>0.7 M</td><td>30 ms</td></tr>" in older
    assert "<th>Memory</th>" not in older
    results["costs"]["large"] = {"parameters": 5_219_253, "milliseconds": 99.0, "memory_bytes": 34_715_860}
    write_json(tmp_path / "results.json", results)
    page = Report(tmp_path).write().read_text(encoding="utf-8")
    assert "<td>large</td><td>5.2 M</td><td>99 ms</td><td>34.7 MB</td></tr>" in page
    assert "<td>small</td><td>0.7 M</td><td>30 ms</td><td>–</td></tr>" in page


def test_of_an_older_run_the_teacher_says_itself_what_an_image_costs_it(run_folder, tmp_path):
    results = read_json(run_folder / "results.json")
    results["costs"] = {"small": {"parameters": 749_281, "milliseconds": 30.2}}
    results["teacher"] |= {"parameters": 9_800_000, "milliseconds": 2407.0}
    write_json(tmp_path / "results.json", results)
    assert "<td>teacher</td><td>9.8 M</td><td>2407 ms</td></tr>" in Report(tmp_path).write().read_text(encoding="utf-8")


def test_the_verdict_comes_first_then_test_scores_before_validation(page):
    places = [page.index(text) for text in ('<p class="verdict">', "<h2>Scores</h2>", ">Test</th>", ">Validation</th>")]
    assert places == sorted(places)
    assert page.index('<p class="verdict">') < page.index('<dl class="headlines">')


def test_rounds_of_one_reason_share_a_row(run_folder, tmp_path):
    results = read_json(run_folder / "results.json")
    results["skipped"] = [{"round": number, "site": "Porto", "reason": "no answer"} for number in (5, 6, 7, 9)]
    write_json(tmp_path / "results.json", results)
    page = Report(tmp_path).write().read_text(encoding="utf-8")
    assert '<tr><td>Porto</td><td class="left">6–8, 10</td><td class="left warn">no answer</td></tr>' in page


def test_advice_stands_on_top_and_ends_the_command(run_folder, tmp_path, caplog):
    results = read_json(run_folder / "results.json")
    results["teacher"]["sites"]["Porto"]["test"]["dice"] = 0.0
    write_json(tmp_path / "results.json", results)
    with caplog.at_level(logging.INFO):
        page = Report(tmp_path).write().read_text(encoding="utf-8")
    assert page.index("What to do") < page.index("<h2>Scores</h2>")
    told = [record.getMessage() for record in caplog.records if record.name == "samfed_monai.reports.html"]
    assert told[0].startswith("report: ")
    assert told[1].startswith("The teacher is wrong more often than right at 1 of 4 sites (Dice 0.000 at Porto)")


def test_a_run_in_order_is_given_no_advice(page):
    assert "What to do" not in page


def test_a_run_without_any_mask_says_so_instead_of_a_table_of_dashes(run_folder, tmp_path):
    folder = tmp_path / "R"
    shutil.copytree(run_folder, folder)
    results = read_json(folder / "results.json")
    none = {"dice": None, "iou": None, "hd95": None, "n": 0, "empty": {"both": 0, "prediction": 0, "label": 0}}
    for level in (results, *results["models"].values()):
        level["sites"] = {site: {"validation": none, "test": none} for site in level["sites"]}
        level["average"], level["worst"] = {"validation": none, "test": none}, {"validation": None, "test": None}
    results["teacher"] = None
    run = replace(RunData.read(folder), results=results)
    page = render(run, [], [], [])
    assert "None: no site has a mask to measure with" in page
    assert "HD95 px" not in page
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
