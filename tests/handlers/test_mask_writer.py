"""Folders of masks: names, records, existing files and order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json
from samfed_monai.handlers.mask_writer import _MOST_PENDING, RECORD, ConflictingFiles, MaskFolder, MaskWriter

MADE_WITH = {"model_sha256": "a" * 64, "threshold": 0.5}


def check(folder: MaskFolder, *names: str, images: Path | None = None) -> list[str]:
    return [str(problem) for problem in folder.problems(names, images=images)]


def test_record_is_written_with_first_mask_and_reused(tmp_path: Path) -> None:
    assert check(MaskFolder(tmp_path / "out", MADE_WITH)) == []
    assert not (tmp_path / "out").exists(), "a check does not create the folder"
    for _ in range(2):
        folder = MaskFolder(tmp_path / "out", MADE_WITH)
        assert check(folder, "deep/a.png", images=tmp_path / "out" / "in") == [], "the folder above the images is taken"
        folder.write("deep/a.png", b"mask")
    assert read_json(tmp_path / "out" / RECORD) == MADE_WITH
    assert (tmp_path / "out" / "deep" / "a.png").read_bytes() == b"mask"


def test_existing_files_are_reported_beforehand(tmp_path: Path) -> None:
    for name in ("b.png", "c.png", "other.png"):
        (tmp_path / name).write_bytes(b"label")
    folder = MaskFolder(tmp_path, MADE_WITH)
    expected = f"{tmp_path}: expected no existing files, or inference.json beside them, found "
    hint = "; choose another --output-dir (output_dir)"
    assert check(folder, "a.png", "b.png") == [f"{expected}b.png{hint}"]
    assert check(folder, "a.png", "b.png", "c.png") == [f"{expected}b.png and 1 more{hint}"]
    assert check(folder, "a.png") == []
    [problem] = check(MaskFolder(tmp_path / "b.png" / "out"))
    assert "b.png/out: expected a folder that can be written to, found" in problem


def test_masks_of_other_model_or_threshold_are_reported(tmp_path: Path) -> None:
    MaskFolder(tmp_path, MADE_WITH).write("a.png", b"mask")
    other = MaskFolder(tmp_path, {"model_sha256": "b" * 64, "threshold": 0.7})
    hint = "choose another --output-dir (output_dir), or delete this folder"
    assert check(other, "new.png") == [
        f"{tmp_path}/inference.json -> model_sha256: expected bbbbbbbbbbbb for this run, found aaaaaaaaaaaa; {hint}",
        f"{tmp_path}/inference.json -> threshold: expected 0.7 for this run, found 0.5; {hint}",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", r"threshold: expected 0.5 for this run, found nothing; choose another --output-dir \(output_dir\)$"),
        ('{"threshold": 0.7}', r"threshold: expected 0.5 .* found 0.7; choose another --output-dir \(output_dir\)$"),
        ("{", "expected valid JSON"),
    ],
)
def test_foreign_record_file_is_reported_and_unchanged(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / RECORD).write_text(content)
    assert re.search(problem, check(MaskFolder(tmp_path, MADE_WITH), "a.png")[-1])
    assert (tmp_path / RECORD).read_text() == content


@pytest.mark.parametrize("place", ["images", "images/masks", "link", "link/new/masks", "images/../images"])
def test_output_inside_image_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    [problem] = check(MaskFolder(tmp_path / place), images=tmp_path / "images")
    assert problem == (
        f"--output-dir (output_dir): expected a folder outside of {tmp_path}/images (all files there are read as "
        f"images), found {tmp_path / place}; choose another --output-dir (output_dir)"
    )
    assert list((tmp_path / "images").iterdir()) == []


def test_clash_of_mask_and_probability_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "a.probability.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    made = {"output_dir": tmp_path / "out", "images": tmp_path / "images"}
    with pytest.raises(Refused, match=r"a\.probability\.png: .* found the mask of one image and the probabilities of"):
        MaskWriter(**made, probabilities=True)
    MaskWriter(**made)


def prediction_of(name: int) -> dict[str, object]:
    """A batch of one image, 4 x 6 px; its left half is foreground."""
    mask = torch.zeros(1, 1, 4, 6)
    mask[..., :3] = 1
    return {"id": f"{name:03d}", "pred": mask[0], "probability": mask[0]}


def engine_with(writer: MaskWriter) -> Engine:
    engine = Engine(lambda _, name: [prediction_of(name)])
    writer.attach(engine)
    return engine


def test_all_masks_are_written_in_order(tmp_path: Path) -> None:
    writer, written = MaskWriter(output_dir=tmp_path / "out"), []
    write = writer.masks.write
    writer.masks.write = lambda name, content: (written.append(name), write(name, content))[1]  # type: ignore[assignment, func-returns-value]
    number = 3 * _MOST_PENDING
    engine_with(writer).run(range(number))
    assert written == [f"{name:03d}.png" for name in range(number)]
    assert len(list((tmp_path / "out").glob("*.png"))) == number


def test_failed_write_stops_run(tmp_path: Path) -> None:
    (tmp_path / "002.png").mkdir()
    writer, seen = MaskWriter(output_dir=tmp_path), []
    engine = Engine(lambda _, name: [prediction_of(seen.append(name) or name)])  # type: ignore[func-returns-value]
    writer.attach(engine)
    with pytest.raises(IsADirectoryError):
        engine.run(range(20 * _MOST_PENDING))
    assert len(seen) <= 3 + _MOST_PENDING


def test_data_that_end_early_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="out: expected all of them, found masks of 2 of 3 batches; fix the error above"):
        engine_with(MaskWriter(output_dir=tmp_path / "out")).run(range(2), epoch_length=3)


def test_other_mask_file_is_kept_and_refused_after_other_masks(tmp_path: Path) -> None:
    (tmp_path / "001.png").write_bytes(b"corrected by hand")
    message = rf"1 problem\n  - {tmp_path}/001\.png: expected none, or the same mask, found another file; choose"
    with pytest.raises(ConflictingFiles, match=message) as stays:
        engine_with(MaskWriter(output_dir=tmp_path)).run(range(3))
    first, corrected, last = ((tmp_path / f"00{name}.png").read_bytes() for name in range(3))
    assert (corrected, last, stays.value.masks) == (b"corrected by hand", first, {tmp_path / "001.png": first})


@pytest.mark.parametrize(("option", "value", "usual"), [("amp", "auto", False), ("views", 4, 1)])
def test_non_default_options_are_in_record(tmp_path: Path, option: str, value: Any, usual: Any) -> None:
    made: Any = {"output_dir": tmp_path / "out", "model_sha256": "a" * 64, "image_size": 8}
    engine_with(MaskWriter(**made, **{option: value})).run([0])
    assert read_json(tmp_path / "out" / RECORD)[option] == value
    with pytest.raises(Refused, match=f"-> {option}: expected nothing for this run, found {value}; choose another"):
        MaskWriter(**made, **{option: usual})
    made["output_dir"] = tmp_path / "plain"
    engine_with(MaskWriter(**made, **{option: usual})).run([0])
    assert option not in read_json(tmp_path / "plain" / RECORD), "as in older records"
