"""The page of related systems: figures, ranks and sentences from records, and the remaining runs."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from samfed_monai.config.variants import methods
from samfed_monai.core.io import read_json, write_json
from study.__main__ import main
from study.advice import advice
from study.ranks import ranking
from study.record import add_to_record
from study.related import figures_of, rank_sentences, related_page
from study.related_plan import (
    NO_ROW,
    NO_SHARED_NETWORK,
    NOT_UNSEEN,
    RENAMED,
    VOLUMES,
    options_of,
    plan_text,
    rows_of,
    rows_to_run,
    runs_of,
    share_of,
    site_scores,
)
from tests.methods import present
from tests.reports.runs import write_row

DICE = {"no_sam": [0.70, 0.72], "samfed": [0.80, 0.80], "fedper": [0.75, 0.76], "oracle": [0.90, 0.90]}
ONE_ROUND = [{"up_bytes": 1_000_000, "down_bytes": 3_000_000}]


def process(memory: float, seconds: float = 36.0) -> dict:
    return {"memory_bytes": int(memory * 1e6), "processor_seconds": seconds}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Records of two parts: four rows with two seeds, and one row of them without a hospital."""
    tmp_path = tmp_path_factory.mktemp("runs")
    runs = [
        write_row(
            tmp_path / row / f"seed-{seed}",
            row,
            row,
            seed,
            dice,
            rounds=4,
            process=process(500 if row == "samfed" else 400, 72.0 if row == "samfed" else 36.0),
            rounds_traffic=ONE_ROUND,
            seconds={"training": 6.0, "server": 1.0, "controller": 1.0, "evaluation": 9.0, "total": 144.0},
            own_models=row == "fedper",
        )
        for row, dices in DICE.items()
        for seed, dice in enumerate(dices)
    ]
    folder = tmp_path / "records"
    add_to_record(folder / "related-polyp.jsonl", runs)
    away = [
        write_row(tmp_path / "away" / row / "seed-0", row, row, 0, 0.7, unseen=dice)
        for row, dice in {"no_sam": 0.60, "samfed": 0.66}.items()
    ]
    add_to_record(folder / "related-unseen.jsonl", away)
    return folder


def test_every_method_has_one_row_or_is_excluded():
    named = [*rows_of("polyp"), *rows_of("labelled"), *rows_of("weak")]
    assert len(named) == len(set(named))
    assert NO_ROW.keys() == {"cpss_adapt", "krum"}
    assert set(named) | set(present(*NO_ROW)) == set(methods())
    assert not set(named) & NO_ROW.keys()
    assert {*NOT_UNSEEN} == {"clustered_sites", "coordinate_median", "fedmd", "fedproto", "local_only", "trimmed_mean"}
    assert rows_of("unseen") == [row for row in rows_of("polyp") if row not in ("oracle", *NOT_UNSEEN)]


@pytest.mark.parametrize(("before", "now"), [*RENAMED.items(), ("fedper", "fedper")])
def test_records_of_renamed_method_are_kept(tmp_path, before, now):
    add_to_record(tmp_path / "related-polyp.jsonl", [write_row(tmp_path / "run/seed-0", before, before, 0, 0.7)])
    assert [run.row for run in runs_of("polyp", tmp_path)] == [now]
    assert now not in rows_to_run("polyp", tmp_path, seed=0)


def test_multiclass_parts_have_multiclass_methods():
    rows = rows_of("cardiac")
    assert rows == rows_of("abdomen") == [name for name in methods() if name in VOLUMES]
    assert all(methods()[name].classes == "several" for name in rows)
    assert set(rows_of("cardiac_unseen")) == set(rows) - NO_SHARED_NETWORK
    assert rows_of("abdomen_weak") == present("weak_labels", "fedicra")


@pytest.mark.parametrize(("best", "named"), [(0.69, True), (0.7, True), (0.71, False)])
def test_organs_are_ranked_by_volumes_and_start_model_is_noted(tmp_path, best, named):
    """Slices have another order; pfedsam learns from masks of the sites, fedgin's run on polyps is an earlier form.

    Advice is of the seed that all have: samfed's second one is not in it.
    """
    organ, absent = ({"dice": dice, "hd95_mm": None, "n": 4, "measured": 0} for dice in (0.8125, None))
    dices = {"samfed": (0.7, 0.4), "fedgin": (0.6, 0.5), "no_sam": (0.8, 0.3), "pfedsam": (0.9, 0.9)}
    for row, seed, (slices, volumes) in [*((row, 0, both) for row, both in dices.items()), ("samfed", 1, (0.7, 0.9))]:
        scores = {"by": "validation Dice", "start": 0.7, "rounds": best if row == "samfed" else 0.8}
        if row == "fedgin":
            before = write_row(tmp_path / "before", row, row, 0, slices, earlier="sites kept a part")
            add_to_record(tmp_path / "related-polyp.jsonl", [before])
        run = write_row(tmp_path / row / f"seed-{seed}", row, row, seed, slices, against_start=scores)
        results = read_json(run / "results.json")
        sites, last = (each["sites"].values() for each in (results, results["models"]["last"]))
        parts = results["average"], *sites, *last
        for part, gap in zip(parts, (0.0, 0.05, -0.05, 0.0, -0.25), strict=True):
            part["test"]["volumes"] = {**organ, "dice": volumes + gap, "classes": {"liver": organ, "spleen": absent}}
        new = {**results["average"]["test"], "volumes": {**organ, "dice": volumes - 0.25}}
        write_json(run / "results.json", {**results, "unseen": {"c": {"test": new}}})
        add_to_record(tmp_path / "related-abdomen.jsonl", [run])
    text, hints = related_page(tmp_path, [0])[0], advice(tmp_path)
    assert ("which is therefore the model, in a run of `samfed`." in text) is named
    assert "`fedgin` has the best mean rank of 3 rows over 2 blocks." in text
    assert "| FedGIN (`fedgin`) | 1.00 | 1 | 0.500 | 0.450 | 0.375 | 0.250 |" in text
    assert "| FedGIN (`fedgin`) | 0.812 | – | 0.812 | – |" in text
    assert text.count("| Dice of whole volumes | a: liver | a: spleen | b: liver | b: spleen |") == 1
    line = "| FedGIN (`fedgin`) | Polyps, sites without labels | 0.600 | 0.580 | – | sites kept a part |"
    assert text.count(line) == 1
    assert text.count("| FedGIN (`fedgin`) |") == 3, "and it is in no table of polyps"
    assert {"fedgin", "no_sam"} <= set(rows_to_run("polyp", tmp_path, seed=0)), "the method of now has not been run"
    start = " (the network at the start; its last round 0.275)" if named else ""
    order = f": `fedgin` 0.500, `samfed` 0.400{start}, `no_sam` 0.300; with masks of the sites' images: `pfedsam`"
    assert order in hints
    assert ("began with that network, `no_sam` ended below it" in hints) is named


def test_row_figures_match_hand_calculation(records):
    cells = figures_of(runs_of("polyp", records), runs_of("unseen", records))
    samfed = {key: cell.mean for key, cell in cells["samfed"].items()}
    # of 144 s of the whole run its process had a processor for 72 s: half of (6 + 1 + 1) s in 4 rounds
    expected = {
        "dice": 0.8,
        "worst": 0.78,
        "last": 0.75,
        "unseen": 0.66,
        "megabytes": 4.0,
        "seconds": 1.0,
        "memory": 100,
    }
    assert samfed == pytest.approx(expected)
    assert cells["no_sam"]["memory"].by_seed == {0: 0.0, 1: 0.0}
    assert cells["fedper"]["unseen"].n == 0
    best_first = "`samfed` 0.660, `no_sam` 0.600, `no_global_kd`, `fedsemidg`, `elcfs`, `dp_only`."
    assert best_first in advice(records), "those without runs last"


def test_time_and_memory_come_from_cpu_runs(records, tmp_path):
    records = shutil.copytree(records, tmp_path / "records")
    write_row(
        tmp_path / "gpu" / "samfed" / "seed-2",
        "samfed",
        "samfed",
        2,
        0.83,
        rounds=4,
        process={**process(9000, 1.0), "device": "H100"},
        rounds_traffic=ONE_ROUND,
        seconds={"training": 0.1, "controller": 0.1, "total": 1.0},
    )
    add_to_record(records / "related-polyp.jsonl", [tmp_path / "gpu" / "samfed" / "seed-2"])
    cells = figures_of(runs_of("polyp", records))["samfed"]
    assert [cells[key].by_seed for key in ("seconds", "memory")] == [{0: 1.0, 1: 1.0}, {0: 100.0, 1: 100.0}]
    assert cells["dice"].by_seed[2] == pytest.approx(0.83)
    assert share_of("polyp", ["samfed"], [0, 1, 2], records).took["samfed"] == 72.0
    assert "- device: H100 (1 run), cpu (10 runs)" in related_page(records, [0, 1, 2])[0]
    other = write_row(
        tmp_path / "gpu" / "seed-1", "no_sam", "no_sam", 1, 0.71, process={**process(9000, 1.0), "device": "H100"}
    )
    add_to_record(records / "related-polyp.jsonl", [other])
    cells = figures_of(runs_of("polyp", records))["samfed"]
    assert [cells[key].by_seed for key in ("seconds", "memory")] == [{0: 1.0}, {0: 100.0}], "another day's CPU"
    assert cells["dice"].by_seed.keys() == {0, 1, 2}
    own = [replace(run, results={**run.results, "hashes": {"adapter": run.row}}) for run in runs_of("polyp", records)]
    assert not figures_of(own)["samfed"]["seconds"].by_seed, "another adapter, so another machine"


@pytest.mark.parametrize(("total", "expected"), [(4.0, {0: 18.0}), (3.9, {})], ids=["half", "less"])
def test_time_is_unknown_if_most_work_preceded_resume(tmp_path, total, expected):
    seconds = {"training": 6.0, "server": 1.0, "controller": 1.0, "total": total}
    run = write_row(tmp_path / "run", "no_sam", "no_sam", 0, 0.7, rounds=4, process=process(400), seconds=seconds)
    add_to_record(tmp_path / "related-polyp.jsonl", [run])
    assert figures_of(runs_of("polyp", tmp_path))["no_sam"]["seconds"].by_seed == expected  # 8 s in 4 rounds x 36 / 4


UNLIKE = "--adapter a --mixed_networks ['mobile_sam_fpn','lite0_fpn']"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        *((row, f"{UNLIKE} --public_steps 7") for row in ("hssf", "local_only")),
        *(("fedproto", "--adapter a --public_steps 7"), ("samfed", "--adapter a"), ("fca", "")),
    ],
)
def test_options_depend_on_networks_of_row(row, words):
    assert options_of(row, local_steps=7, adapter="a") == words.split()


def test_ranking_blocks_are_sites_and_seeds_without_oracle(records):
    scores = site_scores(runs_of("polyp", records))
    assert scores["fedper"] == pytest.approx({("a", 0): 0.77, ("b", 0): 0.73, ("a", 1): 0.78, ("b", 1): 0.74})
    text, pictures = related_page(records, [0, 1])
    # the same order in each of 4 blocks: chi-square 8, critical difference 2.343 * sqrt(12 / 24)
    assert "`samfed` has the best mean rank of 3 rows over 4 blocks. Friedman's χ² is 8.0, p 0.018" in text
    assert "more than 1.66 apart (Nemenyi); different from the best: `no_sam`." in text
    assert pictures.keys() == {"polyp"}
    lines = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert [line.rpartition("(")[2] for line in lines[2:6]] == ["`samfed`)", "`fedper`)", "`no_sam`)", "`oracle`)"]


def test_rank_sentences_make_no_unsupported_claim():
    level = rank_sentences(ranking({"a": {0: 1.0, 1: 0.0}, "b": {0: 0.0, 1: 1.0}, "c": {0: 0.5, 1: 0.5}}))
    assert "this order may be chance" in level
    assert "no row differs from the best" in level
    assert rank_sentences(ranking({"a": {0: 1.0}})) == "There are fewer than two rows to rank yet."
    one = rank_sentences(ranking({"a": {0: 1.0}, "b": {0: 0.5}, "c": {0: 0.2}, "late": {}}))
    assert one == "`a` has the best mean rank of 3 rows over 1 block; a test needs three rows and two blocks."


def test_page_without_records_lists_planned_rows(tmp_path):
    text, pictures = related_page(tmp_path, [0], commands={"polyp": "do it"}, caveats=["Short."])
    assert pictures == {}
    assert "**Nothing has been run yet**" in text
    assert "```\ndo it\n```" in text
    weak = present("weak_labels", "fedicra", "see")
    assert f"| Polyps, sites with scribbles | all | `{'`, `'.join(weak)}` | – |" in text
    assert "- Short." in text
    assert not any(word in text for word in ("In short", "Mean rank", "Provenance"))


def test_plan_counts_remaining_core_hours(records):
    share = share_of("polyp", ["no_sam", "samfed", "cpss"], [0, 1, 2], records)
    assert share.todo == [("cpss", 0), ("cpss", 1), ("no_sam", 2), ("samfed", 2), ("cpss", 2)]
    # 36 s, 72 s, and three times the mean of the four rows that ran: (36 + 72 + 36 + 36) / 4 = 45
    assert share.hours == pytest.approx((36 + 72 + 3 * 45) / 3600)
    assert plan_text([share, share_of("weak", ["weak_labels"], [0], records)]) == (
        "polyp     3 rows x 3 seeds, 4 done, 5 to run: 0.1 core-hours\n"
        "weak      1 row x 1 seed, 0 done, 1 to run: 0.0 core-hours, estimated from the other parts\n"
        "total     0.1 core-hours\n"
    )
    nothing = records.parent / "nothing"
    assert plan_text([share_of("weak", ["weak_labels"], [0], nothing)]).splitlines() == [
        "weak      1 row x 1 seed, 0 done, 1 to run: unknown, no runs yet",
        "total     0.0 core-hours, without the unknown parts",
    ]


def test_recorded_rows_are_not_run_again(records):
    assert rows_to_run("polyp", records, only=["samfed", "cpss"], seed=0) == ["cpss"]
    assert rows_to_run("polyp", records, only=["samfed", "weak_labels"], seed=2) == ["samfed"], "those have scribbles"
    assert rows_to_run("skin", records) == ["samfed", "fedper", "no_sam", "dp_only", "oracle"], "the best, ordered"


def test_commands_write_page_rows_plan_and_options(records, tmp_path, capsys):
    page = tmp_path / "pages" / "related.md"
    words = ["--records", str(records)]
    assert main(["related", str(page), *words, "--caveat", "Short.", "--part-command", "polyp=do it"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "![Mean ranks and critical difference](related-polyp.png)" in text
    assert "```\ndo it\n```" in text
    assert (page.parent / "related-polyp.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["related-rows", "polyp", *words, "--only", "cpss,samfed", "--seed", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "cpss"
    assert main(["related-plan", *words, "--parts", "polyp,skin", "--seeds", "0", "--only", "samfed"]) == 0
    printed = capsys.readouterr().out
    assert "polyp     1 row x 1 seed, 1 done, 0 to run: 0.0 core-hours\n" in printed
    assert "skin      10 rows x 1 seed, 0 done, 10 to run: 0.1 core-hours, estimated" in printed
    assert main(["related-options", "hssf", "--local-steps", "24", "--adapter", "a"]) == 0
    assert capsys.readouterr().out == f"{UNLIKE} --public_steps 24\n"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["related-rows", "skin", "--records", "."], "run the part polyp first"),
        (["related-rows", "polyp", "--records", ".", "--only", "fedavgg"], "found 'fedavgg'"),
        (["related-rows", "polyp", "--records", ".", "--only", "krum"], "found 'krum', it needs five sites"),
        (["related-rows", "lungs", "--records", "."], "'cardiac', 'cardiac_unseen'], found 'lungs'"),
        (["related-plan", "--records", ".", "--seeds", "a"], "whole numbers with commas"),
        (["related", "P.md", "--records", ".", "--part-command", "polyp"], "expected PART=TEXT, found 'polyp'"),
    ],
)
def test_invalid_commands_are_refused(words, match, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert match in capsys.readouterr().err
