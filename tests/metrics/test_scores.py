"""Surfaces, HD95, Dice and their means by hand, and against MONAI and MedPy on masks of every kind.

The tolerance is 1e-4: MONAI holds distances in float32, which rounds those of these masks by less than 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from samfed_monai.metrics import (
    EXTRAS,
    Scores,
    convention,
    hausdorff95,
    over_classes,
    pool,
    scores_by_class,
    segmentation_scores,
    surface,
    worst,
)
from samfed_monai.metrics import summarise as summarise_rows
from samfed_monai.metrics.scores import Volume, pool_volumes, summarise_volumes, volume_scores
from samfed_monai.results import RESULTS_SCHEMA


def summarise(scores: Iterable[Scores], **how: bool) -> dict[str, Any]:
    return summarise_rows((each.as_dict() for each in scores), **how)


def summarise_classes(table: Iterable[list[Scores]], names: list[str]) -> dict[str, Any]:
    named = [{name: each.as_dict() for name, each in zip(names, row, strict=True)} for row in table]
    rows = [{**over_classes(row).as_dict(), "classes": each} for row, each in zip(table, named, strict=True)]
    return summarise_rows(rows)["classes"]


def blob(seed: int, size: tuple[int, ...] = (96, 128)) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=size), 8)
    return noise > 0.3 * noise.std()


FULL = [np.ones(shape, bool) for shape in ((4, 5), (1, 7), (2, 2), (3, 3))]


@pytest.mark.parametrize("mask", [*(blob(seed, size) for seed in range(2) for size in ((96, 128), (5, 24, 32))), *FULL])
def test_surface_matches_binary_erosion(mask):
    before = mask.copy()
    assert mask[0].any() or mask[:, 0].any()
    assert (surface(mask) == (mask ^ binary_erosion(mask))).all()
    assert (mask == before).all()


def test_directed_and_pooled_hd95_match_hand_calculation():
    a, b = np.zeros((2, 1, 12), bool)
    a[0, :11] = True  # distances to pixel 0 of b: 0 to 10, the 95th percentile at place 9.5
    b[0, 0] = True
    assert hausdorff95(a, b) == pytest.approx(9.5)
    assert hausdorff95(a, b, pooled=True) == pytest.approx(9.45)  # a second 0: place 0.95 x 11 = 10.45 of 12
    square = np.zeros((40, 40), bool)
    square[5:15, 5:15] = True
    for pooled in (False, True):
        assert hausdorff95(square, np.roll(square, 4, axis=1), pooled=pooled) == 4.0
    label = np.zeros((80, 80), bool)
    label[10:50, 10:50] = True
    prediction = label.copy()
    prediction[70:73, 70:74] = True  # 10 of 166 surface pixels of one mask, 10 of 322 of both
    assert hausdorff95(prediction, label) > 28
    assert hausdorff95(prediction, label, pooled=True) == 0.0


@pytest.mark.parametrize(
    ("prediction", "label", "expected"),
    [
        (0, 0, Scores(1.0, 1.0, 0.0, "both")),
        (0, 1, Scores(0.0, 0.0, 5.0, "prediction")),
        (1, 0, Scores(0.0, 0.0, 5.0, "label")),
        (1, 1, Scores(1.0, 1.0, 0.0, "none")),
    ],
)
def test_fault_14_empty_masks_follow_convention(prediction, label, expected):
    assert segmentation_scores(np.full((3, 4), prediction, bool), np.full((3, 4), label, bool)) == expected


def test_size_mismatch_and_hd95_of_empty_mask_are_refused():
    for shape in ((3, 5), (1, 4, 4)):
        with pytest.raises(ValueError, match=r"expected two masks \(H, W\) of one size"):
            segmentation_scores(np.zeros(shape, bool), np.zeros((4, 4), bool))
    for full in (True, False):
        with pytest.raises(ValueError, match="HD95 of an empty mask is undefined"):
            hausdorff95(np.full((4, 4), full), np.full((4, 4), not full))


@pytest.mark.parametrize(
    ("prediction", "label", "expected"),
    [
        ([1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [4 / 7, 2 / 5, 2 / 3, 2 / 4, 3 / 4]),
        ([255, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [2 / 5, 1 / 4, 1 / 4, 1, 1 / 4]),
        ([0] * 6, [0] * 6, [1, 1, 1, 1, 1]),
        ([0] * 6, [1] * 6, [0, 0, 0, 0, 0]),
        ([1] * 6, [0] * 6, [0, 0, 0, 0, 0]),
    ],
)
def test_overlap_scores_match_hand_calculation(prediction, label, expected):
    found = segmentation_scores(np.array([prediction]), np.array([label])).as_dict()
    assert list(found) == ["dice", "iou", "hd95", "empty", "sensitivity", "precision", "area"]
    assert [found[name] for name in ("dice", "iou", *EXTRAS)] == expected


def test_optional_scores_are_averaged_only_if_complete():
    one, other = Scores(0.5, 0.3, 1.0, "none", 0.2, 0.4, 0.6), Scores(0.5, 0.3, 1.0, "none", 0.4, 0.8, 1.0)
    site = summarise([one, other])
    assert {name: site[name] for name in EXTRAS} == pytest.approx({"sensitivity": 0.3, "precision": 0.6, "area": 0.8})
    assert over_classes([one, other]).area == pytest.approx(0.8)
    assert pool([site, summarise([one]), summarise([])])["sensitivity"] == pytest.approx((0.3 * 2 + 0.2) / 3)
    for table in ([one, Scores(0.5, 0.3, 1.0)], []):
        assert not set(EXTRAS) & summarise(table).keys()
    assert not set(EXTRAS) & pool([site, summarise([Scores(0.5, 0.3, 1.0)])]).keys()


TABLE = [Scores(0.8, 0.6, 10.0), Scores(0.0, 0.0, 50.0, "prediction"), Scores(1.0, 1.0, 0.0, "both")]
NO_MASKS = {"both": 0, "prediction": 0, "label": 0}


@pytest.mark.parametrize(("skip_empty", "hd95"), [(False, 20.0), (True, 10.0)])
def test_empty_masks_are_counted_and_optionally_skipped_in_hd95(skip_empty, hd95):
    assert summarise(TABLE, skip_empty=skip_empty) == {
        **{"dice": pytest.approx(0.6), "iou": pytest.approx(1.6 / 3), "hd95": pytest.approx(hd95), "n": 3},
        "empty": {"both": 1, "prediction": 1, "label": 0},
    }
    nothing = {"dice": None, "iou": None, "hd95": None, "n": 0, "empty": NO_MASKS}
    assert summarise([], skip_empty=skip_empty) == nothing, "no image has no mean"


@pytest.mark.parametrize("skip_empty", [False, True])
def test_pooled_sites_equal_summary_of_all_images(skip_empty):
    sites = [TABLE, [Scores(0.5, 0.4, 3.0)] * 4, [Scores(0.0, 0.0, 50.0, "label")], []]
    pooled = pool([summarise(site, skip_empty=skip_empty) for site in sites], skip_empty=skip_empty)
    whole = summarise([score for site in sites for score in site], skip_empty=skip_empty)
    assert pooled == {**whole, **{name: pytest.approx(whole[name]) for name in ("dice", "iou", "hd95")}}


def test_skipped_hd95_is_none_if_all_masks_are_empty():
    site = summarise([Scores(0.0, 0.0, 50.0, "prediction")], skip_empty=True)
    assert site["hd95"] is None
    pooled = {"dice": 0.0, "iou": 0.0, "hd95": None, "n": 2, "empty": {**NO_MASKS, "prediction": 2}}
    assert pool([site, site], skip_empty=True) == pooled


def of_site(dice, n, both=0):
    return {"dice": dice, "iou": 0.5, "hd95": 4.0, "n": n, "empty": {**NO_MASKS, "both": both}}


def test_pool_weights_by_images_and_ignores_missing_scores():
    pooled = pool([of_site(0.2, 1, both=1), of_site(0.6, 3), of_site(None, 5)])
    assert pooled["dice"] == pytest.approx(0.5)
    assert (pooled["n"], pooled["empty"]["both"]) == (9, 1)
    assert pool([of_site(0.2, 1), of_site(0.6, 3, both=None)])["empty"]["both"] is None
    pooled = pool([of_site(0.2, 1), {**of_site(0.6, 3), "iou": None, "hd95": None}])
    assert (pooled["dice"], pooled["iou"], pooled["hd95"]) == (pytest.approx(0.5), None, None), "not of one site's"
    assert pool([])["dice"] is None


def test_worst_site_has_lowest_dice_and_first_name():
    assert worst({"a": of_site(0.6, 1), "b": of_site(0.2, 3), "c": of_site(None, 0)})["site"] == "b"
    assert worst({"b": of_site(0.2, 1), "a": of_site(0.2, 3)}) == {"site": "a", **of_site(0.2, 3)}
    assert worst({"a": of_site(None, 0)}) is None


def test_convention_matches_results_schema():
    assert convention() == {"hd95": "max of directed", "empty": "diagonal"}
    assert convention(pooled=True, skip_empty=True) == {"hd95": "pooled", "empty": "skipped"}
    schema = RESULTS_SCHEMA["properties"]["convention"]["properties"]
    for pooled in (False, True):
        for key, word in convention(pooled=pooled, skip_empty=pooled).items():
            assert word in schema[key]["enum"]


Mask = np.ndarray
TOLERANCE = 1e-4


def monai(prediction: Mask, label: Mask) -> tuple[float, float]:
    a, b = torch.from_numpy(prediction)[None, None], torch.from_numpy(label)[None, None]
    far = compute_hausdorff_distance(a, b, include_background=True, percentile=95)
    return compute_dice(a, b).item(), far.item()


def medpys_definition(prediction: Mask, label: Mask) -> float:
    """What ``medpy.metric.binary.hd95`` computes, on the full frame, so that the tests need no MedPy."""
    edges = [mask ^ binary_erosion(mask) for mask in (prediction, label)]
    there, back = distance_transform_edt(~edges[1])[edges[0]], distance_transform_edt(~edges[0])[edges[1]]
    return float(np.percentile(np.hstack([there, back]), 95))


def drawn(random: np.random.Generator, shape: tuple[int, int]) -> Mask:
    """Rectangles (single pixels, thin lines and the whole frame among them), diagonals and blobs, one to three."""
    mask = np.zeros(shape, bool)
    for kind in random.integers(0, 3, random.integers(1, 4)):
        if kind == 0:
            (top, bottom), (left, right) = (np.sort(random.integers(0, side, 2)) for side in shape)
            mask[top : bottom + 1, left : right + 1] = True
        elif kind == 1:
            rows = np.arange(shape[0])
            mask[rows, (random.integers(shape[1]) + random.choice([-2, -1, 1, 2]) * rows) % shape[1]] = True
        else:
            noise = gaussian_filter(random.normal(size=shape), random.choice([0.5, 2, 5]))
            mask |= noise >= np.quantile(noise, random.uniform(0.1, 0.99))
    return mask


def pair(kind: str, seed: int) -> tuple[Mask, Mask]:
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 49, 2))
    first, second = drawn(random, shape), drawn(random, shape)
    if kind == "shifted":
        second = np.roll(first, random.integers(-5, 6), axis=random.integers(0, 2))
    elif kind == "nested":
        second = first | second
    elif kind == "corners":
        wide = np.zeros((2, 3 * shape[0] + 40, 3 * shape[1] + 90), bool)
        wide[0, : shape[0], : shape[1]], wide[1, -shape[0] :, -shape[1] :] = first, second
        first, second = wide
    return first, second


@pytest.mark.parametrize("kind", ["unrelated", "shifted", "nested", "corners"])
@given(seed=st.integers(0, 2**32 - 1), swap=st.booleans())
def test_scores_match_monai_and_medpy_definition(kind, seed, swap):
    one, other = pair(kind, seed)[:: -1 if swap else 1]
    scores = segmentation_scores(one, other)
    dice, hd95 = monai(one, other)
    assert scores.hd95 == pytest.approx(hd95, abs=TOLERANCE)
    assert scores.dice == pytest.approx(dice, abs=TOLERANCE)
    pooled = hausdorff95(one, other, pooled=True)
    # both are float64: what differs is the order of a root and a line
    assert pooled == pytest.approx(medpys_definition(one, other), abs=1e-9)
    assert segmentation_scores(one, other, pooled=True).hd95 == pooled


KIDNEY_ALONE = np.array([[1, 1, 0], [0, 0, 0]])
BOTH = np.array([[1, 0, 0], [0, 2, 2]])


def test_classes_are_scored_separately_and_single_class_as_binary():
    kidney, spleen = scores_by_class(KIDNEY_ALONE, BOTH, 2)
    assert (kidney.dice, kidney.iou, kidney.empty) == (2 / 3, 1 / 2, "none")
    assert (spleen.dice, spleen.empty) == (0.0, "prediction")
    assert spleen.hd95 == pytest.approx(np.hypot(2, 3))
    label, prediction = BOTH == 2, np.roll(BOTH == 2, 1, axis=1)
    by_class = scores_by_class(prediction.astype(int), label.astype(int), 1)
    assert over_classes(by_class) == segmentation_scores(prediction, label)


def test_image_score_is_mean_over_present_classes():
    found = over_classes(scores_by_class(KIDNEY_ALONE, BOTH, 3))  # the third is nowhere
    assert found.dice == pytest.approx((2 / 3 + 0) / 2)
    assert found.empty == "none"
    nothing = np.zeros((2, 3), int)
    half = scores_by_class(KIDNEY_ALONE, BOTH, 2)  # the second class is missed
    assert over_classes(half).hd95 == pytest.approx((half[0].hd95 + half[1].hd95) / 2)
    assert over_classes(half, skip_empty=True) == replace(over_classes(half), hd95=half[0].hd95)
    swapped = scores_by_class(np.where(BOTH == 2, 1, 0), np.where(BOTH == 1, 2, 0), 2)
    assert [each.empty for each in swapped] == ["label", "prediction"]
    assert over_classes(swapped).empty == "none"
    assert over_classes(swapped, skip_empty=True).empty == "prediction", "left out of HD95 altogether"
    neither = over_classes(scores_by_class(nothing, nothing, 2))
    assert neither.as_dict() == segmentation_scores(nothing, nothing).as_dict()
    assert over_classes(scores_by_class(nothing, BOTH, 2)).empty == "prediction"
    assert over_classes(scores_by_class(BOTH, nothing, 2)).empty == "label"


def test_class_means_are_over_images_and_sites_with_class():
    nothing = np.zeros((2, 3), int)
    one = [scores_by_class(KIDNEY_ALONE, BOTH, 2), scores_by_class(nothing, nothing, 2)]
    classes = summarise_classes(one, ["kidney", "spleen"])
    assert classes["kidney"] == {"dice": 2 / 3, "iou": 1 / 2, "hd95": classes["kidney"]["hd95"], "n": 1}
    assert classes["spleen"]["n"] == 1
    other = summarise_classes([scores_by_class(BOTH, BOTH, 2)] * 3, ["kidney", "spleen"])
    sides = [{**summarise([]), "n": n, "classes": each} for n, each in ((2, classes), (3, other))]
    pooled = pool(sides)["classes"]
    assert pooled["kidney"]["dice"] == pytest.approx((2 / 3 + 3 * 1) / 4)
    assert pooled["spleen"] == {"dice": 0.75, "iou": 0.75, "hd95": pooled["spleen"]["hd95"], "n": 4}
    sites = [{**summarise([]), "classes": each} for each in (classes, other)]
    skipped = pool(sites, skip_empty=True)["classes"]["kidney"]
    assert skipped["hd95"] is None, "the number of images it was measured on is unknown"
    assert pool(sites)["classes"]["kidney"]["hd95"] is not None
    row = scores_by_class(BOTH, KIDNEY_ALONE, 2)
    lacking = summarise_classes([row, scores_by_class(nothing, nothing, 2)], ["kidney", "spleen"])
    assert (lacking["kidney"]["n"], over_classes(row).dice) == (1, pytest.approx(1 / 3)), "predicted, not in the label"
    assert lacking["spleen"] == {"dice": None, "iou": None, "hd95": None, "n": 0}, "no label of this site has it"
    assert pool([*sides, {**summarise([]), "n": 9, "classes": lacking}])["classes"]["spleen"] == pooled["spleen"]


def test_withheld_class_count_falls_back_to_all_images():
    known = {"dice": 0.5, "iou": 0.5, "hd95": 1.0, "n": 2}
    sides = [
        {**summarise([]), "n": 2, "classes": {"kidney": known}},
        {**summarise([]), "n": 6, "classes": {"kidney": {**known, "dice": 0.9, "n": None}}},
    ]
    pooled = pool(sides)["classes"]["kidney"]
    assert pooled["dice"] == pytest.approx((2 * 0.5 + 6 * 0.9) / 8)
    assert pooled["n"] is None
    assert "classes" not in pool([summarise([])])


SHAPE = (4, 8, 8)
SPACING = (6.0, 2.0, 1.0)


def box(*slices: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[slices] = True
    return mask


LABEL = box(slice(0, 2), slice(2, 6), slice(2, 6))
HALF = box(slice(0, 1), slice(2, 6), slice(2, 6))  # of its slices


@pytest.mark.parametrize(
    ("prediction", "dice", "far"),
    [
        (LABEL, 1.0, 0.0),
        (box(slice(1, 3), slice(2, 6), slice(2, 6)), 0.5, 6.0),  # one slice further: a slice is 6 mm
        (box(slice(0, 2), slice(3, 7), slice(2, 6)), 0.75, 2.0),  # one row
        (box(slice(0, 2), slice(2, 6), slice(4, 8)), 0.5, 2.0),  # two columns of 1 mm
        (HALF, 2 / 3, 6.0),
    ],
)
def test_volume_scores_use_all_slices_and_millimetres(prediction, dice, far):
    scores = volume_scores(prediction, LABEL, SPACING)
    assert scores.dice == pytest.approx(dice)
    assert scores.hd95 == pytest.approx(far)
    assert volume_scores(prediction, LABEL, None).hd95 is None


def test_absent_volume_has_no_dice_and_missed_volume_has_0():
    nothing = np.zeros(SHAPE, bool)
    assert volume_scores(LABEL, nothing, SPACING) == volume_scores(nothing, nothing, SPACING) == (None, None)
    assert volume_scores(nothing, LABEL, SPACING) == (0.0, None)


def volume(prediction: np.ndarray, label: np.ndarray, spacing: tuple[float, float, float] | None = SPACING) -> Volume:
    pairs = zip(prediction.astype(np.uint8), label.astype(np.uint8), strict=True)
    return Volume(spacing, dict(enumerate(pairs, start=1)))


def test_volume_means_are_over_volumes_with_class():
    found = summarise_volumes([volume(LABEL, LABEL), volume(HALF, LABEL, None)], ["kidney", "spleen"])
    assert found["classes"] == {
        "kidney": {"dice": pytest.approx(5 / 6), "hd95_mm": 0.0, "n": 2, "measured": 1},
        "spleen": {"dice": None, "hd95_mm": None, "n": 0, "measured": 0},
    }
    assert {key: found[key] for key in ("dice", "hd95_mm", "n", "measured")} == found["classes"]["kidney"]
    single = summarise_volumes([volume(LABEL, LABEL)], ["foreground"])
    assert "classes" not in single
    assert pool([summarise([]), {**summarise([]), "volumes": single}])["volumes"]["n"] == 1
    assert "volumes" not in pool([summarise([])]), "of a site of pictures alone"


def test_missing_slices_keep_their_position():
    prediction, label = Volume(SPACING, {2: (LABEL[0], LABEL[0]), 4: (LABEL[1], LABEL[1])}).stacked()
    assert prediction.shape == (3, 8, 8)
    assert [bool(each.any()) for each in label] == [True, False, True]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=4))
def test_pooled_volumes_equal_summary_of_all_volumes(counts):
    of_sites = [[volume(LABEL, LABEL)] * whole + [volume(HALF, LABEL, None)] * halves for whole, halves in counts]
    pooled = pool_volumes(summarise_volumes(each, ["a", "b"]) for each in of_sites)
    together = summarise_volumes([each for site in of_sites for each in site], ["a", "b"])
    assert pooled == {**together, "dice": pytest.approx(together["dice"]), "classes": pooled["classes"]}
    expected = together["classes"]["a"]
    assert pooled["classes"]["a"] == {**expected, "dice": pytest.approx(expected["dice"])}
