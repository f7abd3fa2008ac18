"""How far a mask is to be trusted, what that was worth on labelled images, and the file that holds it."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, set_track_meta
from monai.transforms import Resized

from samfed_monai.cli.infer import dice
from samfed_monai.cli.main import main
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, sha256_file, write_json
from samfed_monai.data import render_synthetic
from samfed_monai.data.partitions import subset
from samfed_monai.handlers import mask_writer
from samfed_monai.handlers.mask_writer import predicted, predictions
from samfed_monai.inference.assessment import (
    COLUMNS,
    Assessment,
    assess,
    calibrated_on,
    flags_of,
    measure,
    scored_pairs,
    sentences,
)
from samfed_monai.inference.forms import COLUMNS as TABLE
from samfed_monai.metrics import quality as files
from samfed_monai.metrics.quality import Calibration, Colours, Quality, digests_of, level_dice, recognised
from tests.inference.models import small_model

CHANCES = np.array([[0.9, 0.8, 0.6, 0.1]], np.float32)
CALIBRATION = Calibration((0.0, 1.0), (0.0, 0.8), 0.5, 40)
"""0.8 of the estimate; the bound is the estimate less half of what is missing to 1.05."""


def assessed(quality: Quality, threshold: float = 0.5, *, chances: np.ndarray = CHANCES, **options: bool) -> Assessment:
    """Of one image (3, 1, 4), all of 0.5, with these probabilities."""
    chances = torch.from_numpy(chances)[None]
    output = [{"pred": (chances > threshold).float(), "probability": chances}]
    (found,) = predictions([{"id": "a"}], output, threshold=threshold)
    return assess(found, torch.full((3, 1, 4), 0.5), quality, threshold=threshold, doubtful_below=0.65, **options)


def test_expected_dice_is_calibrated_for_known_threshold() -> None:
    estimate = level_dice(CHANCES, CHANCES >= 0.5)
    assert assessed(Quality()) == Assessment(pytest.approx(estimate), None, ("touches the border",), 0.65)
    calibrated = assessed(Quality(CALIBRATION))
    known = pytest.approx(0.8 * estimate)  # the bound, too: by the margin it is above the expected Dice
    assert (calibrated.expected_dice, calibrated.lower_bound, calibrated.doubtful_below) == (known, known, 0.65)
    assert (calibrated.doubtful, assessed(Quality()).doubtful) == (0.8 * estimate < 0.65, estimate < 0.65)
    other = assessed(Quality(CALIBRATION), threshold=0.7)  # for which it is not
    assert (other.expected_dice, other.lower_bound) == (pytest.approx(level_dice(CHANCES, CHANCES >= 0.7)), None)


@pytest.mark.parametrize(
    ("quality", "parts", "expected", "bound"),
    [
        (Quality(), False, 0, None),
        (Quality(CALIBRATION), False, 0, 0),
        (Quality(), True, 1, None),
        (Quality(CALIBRATION), True, 0.8, 0.8),
    ],
)
def test_empty_mask_is_doubtful_except_in_slices_and_frames(quality, parts, expected, bound) -> None:
    found = assessed(quality, chances=np.zeros((1, 4), np.float32), parts=parts)
    assert (found.expected_dice, found.lower_bound) == (expected, pytest.approx(bound))
    assert (found.doubtful, found.flags) == (not parts, ("empty",))


def test_estimate_is_computed_from_probabilities() -> None:
    logits = torch.tensor([[[[5.0, 0.5], [-0.5, -5.0]]]])  # 0.99, 0.62, 0.38, 0.01
    (found,) = predictions({"id": ["a"], "native_size": (torch.tensor([2]), torch.tensor([2]))}, {"pred": logits})
    # areas: 3 above 0.05 to 0.35, 2 above 0.45 and 0.55, 1 above 0.65 to 0.95
    assert found.estimate == pytest.approx((4 * 4 / 5 + 2 * 1 + 4 * 2 / 3) / 10)


def test_invalid_postprocessing_output_is_refused() -> None:
    set_track_meta(True)  # as MONAI comes
    image, right, wrong = MetaTensor(torch.zeros(3, 2, 4)), torch.ones(1, 2, 4), torch.ones(1, 3, 3)
    small = Resized("image", (3, 3))({"image": image})["image"]
    assert next(predictions([{"id": "a", "image": small}], [{"pred": right, "probability": right}])).mask.all()
    words = r"both with the image's size \(2, 4\), and probabilities from 0 to 1, found .*; use InvertResized"
    for mask, chances in ((wrong, wrong), (right, wrong), (right, right * 2), (right, right / 0), (right, None)):
        made = {"pred": mask} if chances is None else {"pred": mask, "probability": chances}
        with pytest.raises(Refused, match=f"postprocessing -> pred, probability: expected {words}"):
            next(predictions([{"id": "a", "image": small}], [made]))


def test_handlers_share_estimates_of_batch(monkeypatch, tmp_path) -> None:
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


def test_unusual_colours_are_flagged() -> None:
    grey, spot = Quality(colours=Colours((0.4,) * 3 + (0.0,) * 3, (0.6,) * 3 + (0.1,) * 3)), np.zeros((4, 5))
    spot[1, 2] = 1
    for value, flags in ((0.5, []), (0.7, ["unlike the training images"])):
        assert flags_of(spot, np.full((3, 4, 5), value, np.float32), grey) == flags


@pytest.mark.parametrize(
    ("pixels", "flags"),
    [
        ([], ("empty",)),
        ([(0, 2)], ("touches the border",)),
        ([(1, 1), (2, 2)], ()),
        ([(1, 1), (2, 3)], ("several pieces",)),
        ([(1, 0), (2, 3)], ("touches the border", "several pieces")),
    ],
)
def test_flags_report_empty_border_and_several_pieces(pixels: list[tuple[int, int]], flags: tuple[str, ...]) -> None:
    mask = np.zeros((4, 5), np.uint8)
    for pixel in pixels:
        mask[pixel] = 1
    assert tuple(flags_of(mask)) == flags


@pytest.mark.parametrize(
    ("columns", "touches"),
    [(slice(7, 11), False), (slice(6, 11), True), (slice(2, 5), True), (slice(15, 19), False), (slice(15, 20), True)],
    ids=["inside", "beside the frame", "in the frame", "near the edge", "at the edge"],
)
@pytest.mark.parametrize("enlarged", [1, 3])
def test_border_excludes_black_frame(columns: slice, touches: bool, enlarged: int) -> None:
    """A frame of six columns to the left, as an endoscope's, of a dark picture, and a hair of two rows."""
    image = np.full((3, 20, 20), 0.11, np.float32)
    image[:, :, :6] = 0.09
    image[:, 10:12] = 0.0
    mask = np.zeros((20 * enlarged, 20 * enlarged), np.uint8)
    mask[8 * enlarged : 12 * enlarged, columns.start * enlarged : columns.stop * enlarged] = 255
    assert ("touches the border" in flags_of(mask, image)) is touches


def test_border_of_large_image_is_found_when_downsampled() -> None:
    image = np.full((3, 1200, 900), 0.5, np.float32)
    image[:, :100] = 0.0
    mask = np.zeros((1200, 900), np.uint8)
    mask[120:300, 300:400] = 1
    assert flags_of(mask, image) == []
    mask[102:120, 300:400] = 1
    assert flags_of(mask, image) == ["touches the border"]


def test_small_specks_are_not_counted_as_pieces() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[2:12, 2:12] = 1
    mask[15, 15] = 1  # 1 of 101
    assert flags_of(mask) == []
    mask[15, 16] = mask[16, 15] = 1  # 3 of 103
    assert flags_of(mask) == ["several pieces"]


def test_table_row_content() -> None:
    full = {"expected_dice": 0.7, "lower_bound": 0.4123, "doubtful": "yes", "flags": "empty; several pieces"}
    assert Assessment(0.69999, 0.41234, ("empty", "several pieces")).row() == full
    assert Assessment(0.7).row() == {"expected_dice": 0.7, "doubtful": "", "flags": ""}
    assert set(COLUMNS) < set(TABLE)


HALF = Calibration((0.0, 1.0), (0.0, 0.5), 0.2, 40)
PAIRS = [(0.1 * n, 0.05 * n) for n in range(1, 11)]


def test_quality_without_calibration_uses_raw_estimates():
    found = measure(PAIRS, None)
    assert found == pytest.approx(
        {"images": 10, "calibrated": False, "calibrating": 0, "expected_dice": 0.55, "dice": 0.275, "error": 0.275}
        | {"above_bound": None, "spearman": 1, "worst_in_doubtful": 1, "dice_of_others": 0.325}
    )
    assert sentences(found)[0] == "expected (not calibrated) Dice 0.550, true 0.275, 0.275 apart on average"


def test_share_above_lower_bound_is_counted():
    found = measure([(estimate, true - 0.02) for estimate, true in PAIRS], HALF)
    # bounds: 1.2 e - 0.21, at most e / 2 - 0.02 where e <= 0.27; from 0.3 on the bound is e / 2
    expected = {"calibrated": True, "expected_dice": 0.275, "error": 0.02, "above_bound": 0.2}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert "20% of the masks reach their lower bound (target: 90 %)" in sentences(found)


@pytest.mark.parametrize(
    ("calibrating", "phrases"), [(10, ["on these 10 images"]), (4, ["on 4 of these 10 images"]), (0, [])]
)
def test_images_used_for_calibration_are_reported(calibrating, phrases):
    last = [each for each in sentences(measure(PAIRS, HALF, calibrating=calibrating)) if "was calibrated" in each]
    assert [each.partition(":")[0] for each in last] == [f"the model was calibrated {each}" for each in phrases]


def test_calibration_images_are_recognised_only_in_groups():
    listed = {"a": [f"{n:064x}" for n in range(5)], "b": [f"{n:064x}" for n in range(5, 9)]}
    digests = digests_of(listed)
    assert len(digests) == 2, "of all together and of site a; of the four of site b alone there is none"
    assert recognised({name: hashes[::-1] for name, hashes in listed.items()}, digests) == ["a", "b"]
    assert recognised({"renamed": listed["a"], "c": ["f" * 64] * 9}, digests) == ["renamed"]
    assert recognised({"b": listed["b"]}, digests) == []
    assert recognised({"a": [*listed["a"][:4], "f" * 64]}, digests) == []
    assert recognised(listed, ()) == []


def test_empty_masks_have_zero_estimate_except_in_volumes(tmp_path):
    for site in "ab":
        (tmp_path / site / "test").mkdir(parents=True)
    (tmp_path / "b" / "test" / "scores.csv").write_text("id,dice,empty,estimate\ny,0.25,,1.0\n")
    rows = "x,0,prediction,0.99\ny,1,both,0.98\nz,0.8,,0.9\nw,0,label,0.7\n"
    (tmp_path / "a" / "test" / "scores.csv").write_text(f"id,dice,empty,estimate\n{rows}")
    pairs = scored_pairs(tmp_path, {"split": "test", "sites": {"a": {}, "b": {}}})
    assert pairs == {"a": {"x": (0, 0), "y": (0, 1), "z": (0.9, 0.8), "w": (0.7, 0)}, "b": {"y": (1, 0.25)}}
    assert HALF(0.0) == (0, 0)
    of_volumes = scored_pairs(tmp_path, {"split": "test", "sites": {"a": {"volumes": {}}}})
    assert [of_volumes["a"][name] for name in "xy"] == [(0.99, 0), (0.98, 1)]


def test_missed_worst_and_undefined_spearman_are_reported():
    dice = [0.0, *[0.5] * 9]
    assert measure([(0.9, dice[0]), *((0.5, each) for each in dice[1:])], None)["worst_in_doubtful"] == 0
    assert measure([(0.5, 0.5)] * 10, None)["spearman"] is None
    assert measure(PAIRS[:4], None)["spearman"] is None


def test_too_few_calibration_images_are_refused():
    with pytest.raises(Refused, match="--calibrate: expected at least 20 validation images with masks, found 19 im"):
        calibrated_on([(0.5, 0.5)] * 19, "validation")
    made = calibrated_on([(0.5, 0.4)] * 20 + [(0.0, 1.0)] * 20 + [(0.0, 0.0)] * 4, "test")
    assert (made.images, *made(0.5)) == (20, pytest.approx(0.4), pytest.approx(0.4)), "empty masks calibrate nothing"
    with pytest.raises(Refused, match="20 test images with masks, found 19 images in which the model finds anything;"):
        calibrated_on([(0.5, 0.4)] * 19 + [(0.0, 1.0)] * 4, "test")


def test_quality_file_is_bound_to_weights(tmp_path):
    model = tmp_path / "model.pt"
    model.write_bytes(b"weights")
    assert files.read_quality(model) == Quality()
    path = files.write_quality(Quality(HALF), model)
    assert path == files.quality_path(model) == tmp_path / "model.quality.json"
    assert json.loads(path.read_text())["model_sha256"] == sha256_file(model)
    assert files.read_quality(model) == Quality(HALF)
    model.write_bytes(b"others")
    expected = "model_sha256: expected the SHA-256 of model.pt, found .*, a hash of other weights; delete"
    with pytest.raises(Refused, match=expected):
        files.read_quality(model)
    assert files.write_quality(Quality(HALF), tmp_path) == tmp_path / "quality.json"
    assert files.read_quality(tmp_path) == Quality(HALF)


def test_dice_option_accepts_percentages():
    for word, number in (("0.7", 0.7), ("70%", 0.7), ("62.5%", 0.625), ("100%", 1)):
        assert dice(word) == pytest.approx(number)
    for word in ("7O%", "", "%"):
        expected = f"expected a Dice from 0 to 1, or a percentage such as 70%, found {word!r}"
        with pytest.raises(argparse.ArgumentTypeError, match=expected):
            dice(word)


def test_evaluate_calibrates_model_used_by_infer(tmp_path, capsys, monkeypatch):
    """Twenty images; a calibration of other weights does not keep it from being made anew."""
    monkeypatch.chdir(tmp_path)
    small_model(Path("model.safetensors"))
    listed = render_synthetic("images", sites=2, images_per_site=1, public=2, validation=11, test=1, size=(64, 64))
    listed.save("list.json")
    model = ["--model", "model.safetensors"]
    words = [*model, "--limit", "10", "--datalist", "list.json", "--data-root", "images", "--output-dir", "scores"]
    write_json("model.quality.json", {"schema": 1, "model_sha256": "0" * 64})
    assert main(["evaluate", "samfed_skin", *words]) == 2
    assert "model_sha256: expected the SHA-256 of model.safetensors" in capsys.readouterr().err
    assert main(["evaluate", "samfed_skin", *words, "--split", "test", "--calibrate"]) == 2
    assert "expected at least 20 test images with masks, found 2 images" in capsys.readouterr().err
    assert main(["evaluate", "samfed_skin", *words, "--calibrate", "--views", "4"]) == 2
    assert "--views: expected one view, the default: the bounds of one view also hold" in capsys.readouterr().err
    assert main(["evaluate", "samfed_skin", *words, "--calibrate"]) == 0
    printed = capsys.readouterr().out
    assert "the model was calibrated on these 20 images" in printed
    assert "(replaced the earlier calibration)" in printed
    made = files.read_quality(Path("model.safetensors"))
    assert made.calibration.images == 20
    assert made.colours is not None
    hashes = {name: [item.sha256 for item in site.validation] for name, site in listed.sites.items()}
    used = {name: [own[index] for index in subset(own, 10)] for name, own in hashes.items()}
    assert made.images == digests_of(used), "not those of the split that were left out"
    known = Path("model.quality.json").read_text()
    assert not any(each in known for own in used.values() for each in own), "no image can be recognised"
    words[-1] = "again"
    assert main(["evaluate", "samfed_skin", *words, "--split", "validation", "--site", "site-1"]) == 0
    assert "the model was calibrated on these 10 images" in capsys.readouterr().out
    words[-1] = "test"
    assert main(["evaluate", "samfed_skin", *words]) == 0
    assert "the model was calibrated" not in capsys.readouterr().out, "test images are others"
    assert read_json("test/metrics.json")["quality"]["calibrated"]
    chosen = [*model, "--areas", "areas.csv", "--only-sure", "--flag-below", "100%", "--page", "looks.html"]
    assert main(["infer", "samfed_skin", "images/site-1/images", "--output-dir", "masks", *chosen]) == 0
    assert "doubtful: 13 of 13 masks (expected Dice below 1); look first at" in capsys.readouterr().out
    assert "below 1.0" in " ".join(Path("looks.html").read_text().split()), "the value that was asked for"
    with open("areas.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert all(0 <= float(row["lower_bound"]) <= 1 for row in rows)
    assert not list(Path("masks").glob("*.png"))
    assert len(list(Path("masks/doubtful").glob("*.png"))) == 13
