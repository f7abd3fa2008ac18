"""Tests per image: their numbers by hand, their sentences, and reasons for missing tests."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.io import read_json, to_csv, write_json, write_text
from samfed_monai.reports import RunData
from samfed_monai.reports.compare import comparison_table
from samfed_monai.reports.compare_forms import blocks, reading, to_text, verdicts, write_comparison
from samfed_monai.reports.rows import bootstrap_interval, holm, interval, signed_rank
from tests.reports.runs import write_run


def test_signed_rank_matches_hand_calculation():
    # 2 of the 2^6 ways to give six different ranks their signs are as extreme as all of one sign
    assert signed_rank([0.01, 0.02, 0.03, 0.04, 0.05, 0.06]) == pytest.approx(2 / 64)
    assert signed_rank([-0.01, -0.02, -0.03, -0.04, -0.05, -0.06]) == pytest.approx(2 / 64)
    # the smallest rank against the others: sums 1 and 20; 4 of 64 ways have a sum of at most 1 on either side
    assert signed_rank([-0.01, 0.02, 0.03, 0.04, 0.05, 0.06]) == pytest.approx(4 / 64)
    # images that are equal say nothing
    assert signed_rank([0.0, 0.0]) == 1
    assert signed_rank([0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06]) == pytest.approx(2 / 64)


def test_holm_matches_hand_calculation():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_keeps_order_and_never_lowers_p(values):
    pairs = sorted(zip(values, holm(values), strict=True))
    assert all(before <= after <= 1 for before, after in pairs)
    assert all(one <= next for (_, one), (_, next) in itertools.pairwise(pairs))


def test_bootstrap_interval_is_reproducible_and_contains_mean():
    differences = [0.01 * number for number in range(-3, 9)]
    low, high = bootstrap_interval(differences)
    assert (low, high) == bootstrap_interval(differences)
    assert low < sum(differences) / len(differences) < high
    assert bootstrap_interval([0.02] * 6) == (0.02, 0.02)
    # the standard error of the mean is 0.01 here: 1.96 of them on both sides, less what resamples scatter
    assert high - low == pytest.approx(3.92 * 0.00995, rel=0.1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([0.5], None),
        ([0.2, 0.4], (0.2, 0.4)),  # of two, Student's t leaves their whole range
        ([0.5, 0.5, 0.5], (0.5, 0.5)),
        ([0.2, 0.4, 0.6, 0.8], (0.2, 0.8)),
    ],
)
def test_interval_of_few_images_is_wide(values, expected):
    assert interval(values) == (expected if expected is None else pytest.approx(expected))


def test_interval_of_many_images_matches_standard_error():
    low, high = interval([0.0, 1.0] * 50)  # standard error 0.05, of 100 images
    assert (low, high) == pytest.approx((0.5 - 1.98 * 0.0502, 0.5 + 1.98 * 0.0502), abs=0.011)


def with_images(folder, variant, dices, *, seed=0, images=None, **more):
    """A run; its sites a and b have half of these test images each."""
    write_run(folder, variant, seed, 0.8, **more)
    results = read_json(folder / "results.json")
    half = len(dices) // 2
    for site, those in {"a": dices[:half], "b": dices[half:]}.items():
        results["sites"][site]["test"]["n"] = images or len(those)
        path = folder / "evaluation" / "best" / site / "test" / "scores.csv"
        path.parent.mkdir(parents=True)
        write_text(path, to_csv(["id", "dice", "hd95"], [(f"{site}-{i}", dice, 1.0) for i, dice in enumerate(those)]))
    write_json(folder / "results.json", results)
    return folder


def pair(tmp_path, mine, others, **more):
    return [with_images(tmp_path / "A", "samfed", mine), with_images(tmp_path / "B", "dp_only", others, **more)]


BETTER = [0.81, 0.82, 0.83, 0.84, 0.85, 0.86]
PRIVACY = {"least_images": 7, "withheld": [], "differential_privacy": None}


def test_rows_are_compared_image_by_image(tmp_path):
    table = comparison_table(pair(tmp_path, BETTER, [0.8] * 6))
    (test,) = table.groups[0].tests
    assert (test.row.name, test.other.name, test.images, test.better, test.worse) == ("samfed", "dp_only", 6, 6, 0)
    assert test.difference == pytest.approx(0.035)
    assert test.holm == test.p == pytest.approx(2 / 64)
    (sentence,) = [text for text in verdicts(table) if "same" in text]
    start = "SAM-Fed and Public set only on the same 6 test images: Dice is higher by 0.035 on average (95 %"
    assert sentence.startswith(start)
    end = "higher on 6 images and lower on 0. Such a difference is unlikely to be chance among images (p = 0.031)."
    assert sentence.endswith(end)
    block = next(block for block in blocks(table) if "image by image" in block.title)
    assert block.rows["dp_only"][0:2] == ["6", "+0.035"]
    assert block.rows["dp_only"][3:5] == ["6 / 0", "0.031"]
    assert "Wilcoxon" in reading([table])[2]


def test_insignificant_difference_is_reported(tmp_path):
    table = comparison_table(pair(tmp_path, [0.79, 0.82, 0.77, 0.84, 0.75, 0.86], [0.8] * 6))
    assert "These images show no significant difference (p = " in to_text(table)


@pytest.mark.parametrize(
    ("mine", "expected"),
    [
        ([0.8] * 6, "the same on every image."),
        ([0.7996, 0.8, 0.8006, 0.8, 0.8, 0.8], "equal to three decimals on average (95 % interval"),
    ],
)
def test_zero_difference_is_neither_higher_nor_lower(tmp_path, mine, expected):
    text = to_text(comparison_table(pair(tmp_path, mine, [0.8] * 6)))
    assert f"SAM-Fed and Public set only on the same 6 test images: Dice is {expected}" in " ".join(text.split())
    assert "by 0.000" not in text


def test_p_values_of_several_rows_are_corrected(tmp_path):
    runs = [*pair(tmp_path, BETTER, [0.8] * 6), with_images(tmp_path / "C", "no_sam", [0.8] * 6)]
    tests = comparison_table(runs).groups[0].tests
    assert [test.holm for test in tests] == pytest.approx([4 / 64, 4 / 64])
    assert "show no significant difference" in tests[0].sentence()


def test_image_is_counted_once_with_mean_over_seeds(tmp_path):
    runs = [
        with_images(tmp_path / f"{variant}{seed}", variant, [dice + 0.01 * seed for dice in dices], seed=seed)
        for variant, dices in {"samfed": BETTER, "dp_only": [0.8] * 6}.items()
        for seed in (0, 1)
    ]
    (test,) = comparison_table(runs).groups[0].tests
    assert (test.images, test.seeds) == (6, 2)
    assert test.difference == pytest.approx(0.035)


def test_runs_of_same_variant_are_tested_and_settings_noted(tmp_path):
    runs = [with_images(tmp_path / name, "dp_only", dices) for name, dices in {"A": BETTER, "B": [0.8] * 6}.items()]
    for run, rate in zip(runs, (0.1, 0.2), strict=True):
        write_json(run / "run.json", {"config": {"client": {"learning_rate": rate}}})
    (test,) = comparison_table(runs).groups[0].tests
    assert (test.row.name, test.other.name) == ("A", "B")
    assert "unlike A: learning_rate 0.2 instead of 0.1" in write_comparison(tmp_path / "C", runs).read_text()
    (written,) = read_json(tmp_path / "C" / "comparison.json")["paired"]
    assert (written["row"], written["other"], written["images"]) == ("A", "B", 6)


def test_sites_without_image_scores_are_named(tmp_path):
    runs = pair(tmp_path, BETTER, [0.8] * 6)
    (tmp_path / "B" / "evaluation" / "best" / "b" / "test" / "scores.csv").unlink()
    (found,) = comparison_table(runs).groups
    assert found.tests == []
    assert found.untested == [
        "No test per image of SAM-Fed against Public set only: B has no scores of the single images of b (on NVIDIA "
        "FLARE they stay at the site)."
    ]
    assert found.untested[0] in to_text(comparison_table(runs))


@pytest.mark.parametrize(
    ("dices", "more", "why"),
    [
        ([0.8] * 4, {}, "they have 4 test images in common, but a test needs at least 6"),
        ([0.8] * 6, {"images": 4}, "B has scores of 3 of 4 images of a"),
        ([0.8] * 6, {"seed": 1}, "they have no seed in common"),
        ([0.8] * 6, {"privacy": PRIVACY}, "they have 6 test images in common, but a test needs at least 7"),
    ],
)
def test_reason_for_missing_test_is_reported(tmp_path, dices, more, why):
    (missing,) = comparison_table(pair(tmp_path, BETTER, dices, **more)).groups[0].untested
    assert why in missing


def test_record_without_folder_has_no_paired_tests(tmp_path):
    assert comparison_table(pair(tmp_path, BETTER, [0.8] * 6)).groups[0].tests
    runs = [RunData.read(tmp_path / name) for name in "AB"]
    for name in "AB":
        (tmp_path / name / "results.json").unlink()
    (group,) = comparison_table(runs).groups
    assert (group.tests, group.untested) == ([], [])
