"""The study of expected Dice: estimators of views, its record and page; the split of Kvasir-SEG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import write_json
from study import quality
from study.__main__ import main
from study.kvasir import HOSPITALS, PUBLIC, split

ROW = np.array([[0.9, 0.8, 0.6, 0.3, 0.1]], np.float32)
"""Above 0.75: two; above 0.5: three; above 0.25: four."""


def test_estimators_match_hand_calculation():
    mask = ROW > 0.5
    assert quality.soft_dice(ROW, mask) == pytest.approx(2 * 2.3 / (2.7 + 3))
    assert quality.nested_dice(ROW) == pytest.approx(2 * 2 / (2 + 4))
    assert quality.agreement([mask, ROW > 0.7, ROW > 0.7]) == pytest.approx((0.8 + 0.8 + 1) / 3)
    for nothing in (quality.soft_dice(ROW * 0, ROW > 1), quality.nested_dice(ROW * 0), quality.agreement([mask])):
        assert nothing == 1.0
    square = np.zeros((6, 6), np.float32)
    square[2:4, 2:4] = 1
    assert quality.border_certainty(square, square > 0.5) == pytest.approx(1, abs=1e-4)
    assert quality.border_certainty(np.full((6, 6), 0.5, np.float32), square > 0.5) == pytest.approx(0)
    assert quality.border_certainty(square * 0, square > 2) == 0.0
    found = quality.estimates_of([np.array([[0.9, 0.6, 0.1]], np.float32), np.array([[0.9, 0.2, 0.1]], np.float32)])
    assert found["nested"] == pytest.approx(2 * 1 / (1 + 2))
    assert found["nested4"] == pytest.approx(2 * 1 / (1 + 2))
    assert found["soft"] == pytest.approx(2 * 1.5 / (1.6 + 2))
    assert found["soft4"] == pytest.approx(2 * 0.9 / (1.4 + 1))
    assert found["agreement"] == pytest.approx(2 / 3)


def rows(shift: float) -> list[dict]:
    names = [f"{name}{views}" for name in ("nested", "soft", "level", "border") for views in ("", "4")]
    at = np.linspace(0, 1, 30).round(3)
    return [
        {"site": "a", "dice": x, "dice4": x, **dict.fromkeys([*names, "agreement"], min(1, x + shift))}
        for x in at.tolist()
    ]


def test_page_has_row_for_every_part_except_calibration(tmp_path):
    record, about = tmp_path / "r.jsonl", {"collection": "polyps", "seed": "0"}
    quality.add(record, {**about, "part": "validation"}, rows(0.5))
    quality.add(record, {**about, "part": "test lists"}, rows(0.2))
    quality.add(record, {**about, "part": "test lists"}, rows(0.0))
    assert [json.loads(line)["part"] for line in record.read_text().splitlines()] == ["test lists", "validation"]
    quality.add(record, {**about, "seed": "1", "part": "validation"}, rows(0.0))
    halved = [{**row, "dice": row["dice"] / 2} for row in rows(0.0)]
    quality.add(record, {**about, "seed": "1", "part": "test lists"}, halved)
    quality.page(tmp_path / "quality.md", record, command="make quality")
    text = (tmp_path / "quality.md").read_text()
    assert "Made by `make quality`" in text
    promises = [line for line in text.splitlines() if line.startswith("| polyps, test lists")]
    assert [line[:33] for line in promises] == [
        "| polyps, test lists | 0 | 30 | 0",
        "| polyps, test lists | 1 | 30 | 0",
        "| polyps, test lists | mean | 30 ",
        "| polyps, test lists | 0, 1 | 1.0",
    ], "three of promises, one of estimators"
    assert [line.split(" | ")[3] for line in promises[:3]] == ["0.500", "0.250", "0.375"]
    assert "1.00, 100%" in promises[3]
    assert "best round" not in text
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def rounds_in(run: Path, *, dice: list[float | None], expected: list[float]) -> Path:
    for number, (true, promised) in enumerate(zip(dice, expected, strict=True)):
        site = {"expected": {"dice": promised, "images": 10, "groups": []}}
        record = {"round": number, "sites": {"a": site}, "average": {"validation": {"dice": true}}}
        write_json(run / "rounds" / f"{number:03d}" / "round.json", record)
    return run


def test_round_choice_by_expected_dice_is_reported(tmp_path, capsys):
    """The earliest of equals is chosen, and the run's rounds are a table of the page."""
    record = tmp_path / "r.jsonl"
    run = rounds_in(tmp_path / "run", dice=[0.7, 0.8, 0.9, 0.75], expected=[0.6, 0.95, 0.9, 0.95])
    chosen = {rule: row["round"] for rule, row in quality.choices(quality.rounds_of(run)).items()}
    assert chosen == {"dice": 2, "expected": 1, "last": 3}
    main(["quality-rounds", str(run), "--collection", "polyps", "--seed", "0", "--to", str(record)])
    line = "best round 3 (validation Dice 0.900); most promising round 2, which loses 0.100"
    assert line in capsys.readouterr().out
    quality.page(tmp_path / "quality.md", record, command="make quality")
    assert "| polyps | 0 | 4 | 3 | 0.900 | 2 | 0.100 | 0.150 |" in (tmp_path / "quality.md").read_text()


@pytest.mark.parametrize(("dice", "found"), [([], "no round"), ([0.7, None], "round 1 without")])
def test_run_without_validation_scores_is_refused(dice, found, tmp_path):
    run = rounds_in(tmp_path, dice=dice, expected=[0.5] * len(dice))
    with pytest.raises(Refused, match=f"expected rounds with validation scores and expected Dice, found {found}"):
        quality.rounds_of(run)


def test_kvasir_split_depends_only_on_names():
    names = [f"{place}.jpg" for place in range(1000)]
    found = split(names)
    assert found == split(names[::-1])
    assert len(found["public"]["labeled_train"]) == PUBLIC
    every = [name for parts in found.values() for listed in parts.values() for name in listed]
    assert sorted(every) == sorted(names), "each image is in one place"
    assert [len(found[site]["val_list"]) for site in HOSPITALS] == [35, 35, 35]
    assert [len(found[site]["unlabeled_train"]) for site in HOSPITALS] == [164, 163, 163]
