"""How far a mask is to be trusted, by its own probabilities."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from samfed_monai.handlers import mask_writer
from samfed_monai.handlers.mask_writer import predicted, predictions
from samfed_monai.inference.assessment import COLUMNS, Assessment, assess, flags_of
from samfed_monai.inference.forms import COLUMNS as TABLE
from samfed_monai.metrics.quality import Calibration, Colours, Quality, level_dice

CHANCES = np.array([[0.9, 0.8, 0.6, 0.1]], np.float32)
CALIBRATION = Calibration((0.0, 1.0), (0.0, 0.8), 0.5, 40)
"""0.8 of the estimate; the bound is the estimate less half of what is missing to 1.05."""


def assessed(quality: Quality, threshold: float = 0.5, *, chances: np.ndarray = CHANCES, **options: bool) -> Assessment:
    """Of one image (3, 1, 4), all of 0.5, with these probabilities."""
    chances = torch.from_numpy(chances)[None]
    output = [{"pred": (chances > threshold).float(), "probability": chances}]
    (found,) = predictions([{"id": "a"}], output, threshold=threshold)
    return assess(found, torch.full((3, 1, 4), 0.5), quality, threshold=threshold, doubtful_below=0.65, **options)


def test_expected_dice_is_calibrated_where_that_is_known() -> None:
    estimate = level_dice(CHANCES, CHANCES >= 0.5)
    assert assessed(Quality()) == Assessment(pytest.approx(estimate), None, ("touches the border",), 0.65)
    calibrated = assessed(Quality(CALIBRATION))
    assert calibrated.expected_dice == pytest.approx(0.8 * estimate)
    assert calibrated.lower_bound == pytest.approx(0.8 * estimate), "by the margin it is above the expected Dice"
    assert calibrated.doubtful_below == 0.65
    assert (calibrated.doubtful, assessed(Quality()).doubtful) == (0.8 * estimate < 0.65, estimate < 0.65)


@pytest.mark.parametrize(
    ("quality", "parts", "expected", "bound"),
    [
        (Quality(), False, 0, None),
        (Quality(CALIBRATION), False, 0, 0),
        (Quality(), True, 1, None),
        (Quality(CALIBRATION), True, 0.8, 0.8),
    ],
)
def test_an_empty_mask_is_doubtful_but_for_one_of_a_slice_or_frame(quality, parts, expected, bound) -> None:
    found = assessed(quality, chances=np.zeros((1, 4), np.float32), parts=parts)
    assert (found.expected_dice, found.lower_bound) == (expected, pytest.approx(bound))
    assert (found.doubtful, found.flags) == (not parts, ("empty",))


def test_a_calibration_is_not_used_for_another_threshold() -> None:
    found = assessed(Quality(CALIBRATION), threshold=0.7)
    assert (found.expected_dice, found.lower_bound) == (pytest.approx(level_dice(CHANCES, CHANCES >= 0.7)), None)


def test_the_estimate_of_a_prediction_is_that_of_its_probabilities() -> None:
    logits = torch.tensor([[[[5.0, 0.5], [-0.5, -5.0]]]])  # 0.99, 0.62, 0.38, 0.01
    batch = {"id": ["a"], "native_size": (torch.tensor([2]), torch.tensor([2]))}
    (found,) = predictions(batch, {"pred": logits})
    # areas: 3 above 0.05 to 0.35, 2 above 0.45 and 0.55, 1 above 0.65 to 0.95
    assert found.estimate == pytest.approx((4 * 4 / 5 + 2 * 1 + 4 * 2 / 3) / 10)


def test_handlers_share_the_predictions_of_a_batch(monkeypatch, tmp_path) -> None:
    made = []
    monkeypatch.setattr(mask_writer, "estimate", lambda *_: made.append(1) or 0.5)
    chances = torch.from_numpy(CHANCES)[None]
    state = SimpleNamespace(batch=[{"id": "a", "image": torch.full((3, 1, 4), 0.5)}])
    for count, threshold in ((1, 0.5), (2, 0.5), (4, 0.6)):  # another threshold is another estimate
        state.output = [{"pred": (chances > 0.5).float(), "probability": chances}]
        writer = mask_writer.MaskWriter(output_dir=tmp_path)
        writer(SimpleNamespace(state=state))
        writer.finish()
        predicted(SimpleNamespace(state=state), threshold=threshold, classes=())
        assert len(made) == count


def test_an_image_of_other_colours_is_flagged() -> None:
    grey = Quality(colours=Colours((0.4,) * 3 + (0.0,) * 3, (0.6,) * 3 + (0.1,) * 3))
    for value, flags in ((0.5, []), (0.7, ["unlike the training images"])):
        image = np.full((3, 4, 5), value, np.float32)
        assert flags_of(_spot(), image, grey) == flags


def _spot() -> np.ndarray:
    mask = np.zeros((4, 5))
    mask[1, 2] = 1
    return mask


@pytest.mark.parametrize(
    ("places", "flags"),
    [
        ([], ("empty",)),
        ([(0, 2)], ("touches the border",)),
        ([(1, 1), (2, 2)], ()),
        ([(1, 1), (2, 3)], ("several pieces",)),
        ([(1, 0), (2, 3)], ("touches the border", "several pieces")),
    ],
)
def test_flags_say_what_is_unusual(places: list[tuple[int, int]], flags: tuple[str, ...]) -> None:
    mask = np.zeros((4, 5), np.uint8)
    for place in places:
        mask[place] = 1
    assert tuple(flags_of(mask)) == flags


@pytest.mark.parametrize(
    ("columns", "touches"),
    [(slice(7, 11), False), (slice(6, 11), True), (slice(2, 5), True), (slice(15, 19), False), (slice(15, 20), True)],
    ids=["inside", "beside the frame", "in the frame", "near the edge", "at the edge"],
)
@pytest.mark.parametrize("enlarged", [1, 3])
def test_the_border_is_that_of_the_content_without_a_black_frame(columns: slice, touches: bool, enlarged: int) -> None:
    """A frame of six columns to the left, as an endoscope's, and a hair of two rows."""
    image = np.full((3, 20, 20), 0.5, np.float32)
    image[:, :, :6] = 0.05
    image[:, 10:12] = 0.0
    mask = np.zeros((20 * enlarged, 20 * enlarged), np.uint8)
    mask[8 * enlarged : 12 * enlarged, columns.start * enlarged : columns.stop * enlarged] = 255
    assert ("touches the border" in flags_of(mask, image)) is touches


def test_the_border_of_a_large_picture_is_found_on_a_coarser_one() -> None:
    image = np.full((3, 1200, 900), 0.5, np.float32)
    image[:, :100] = 0.0
    mask = np.zeros((1200, 900), np.uint8)
    mask[120:300, 300:400] = 1
    assert flags_of(mask, image) == []
    mask[102:120, 300:400] = 1
    assert flags_of(mask, image) == ["touches the border"]


def test_a_speck_is_no_piece_of_its_own() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[2:12, 2:12] = 1
    mask[15, 15] = 1  # 1 of 101
    assert flags_of(mask) == []
    mask[15, 16] = mask[16, 15] = 1  # 3 of 103
    assert flags_of(mask) == ["several pieces"]


def test_a_row_of_the_table() -> None:
    assert Assessment(0.69999, 0.41234, ("empty", "several pieces")).row() == {
        "expected_dice": 0.7,
        "lower_bound": 0.4123,
        "doubtful": "yes",
        "flags": "empty; several pieces",
    }
    assert Assessment(0.7).row() == {"expected_dice": 0.7, "doubtful": "", "flags": ""}
    assert set(COLUMNS) < set(TABLE)
