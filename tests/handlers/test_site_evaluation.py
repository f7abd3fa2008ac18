"""What an evaluation refuses before it starts, and how it averages (its run is tested with the bundle)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samfed_monai.data import render_synthetic
from samfed_monai.errors import Refused
from samfed_monai.handlers import SiteEvaluation
from samfed_monai.handlers.site_evaluation import _average


def evaluation(folder: Path, **kwargs: Any) -> SiteEvaluation:
    plain: dict[str, Any] = {"evaluator": None, "scores": None, "model": folder / "m.pt", "preprocessing": dict}
    plain |= {"datalist": folder / "list.json", "data_root": folder, "output_dir": folder / "out"}
    return SiteEvaluation(**(plain | kwargs))


def test_a_split_without_images_or_an_unknown_site_is_refused(tmp_path: Path) -> None:
    settings = {"images_per_site": 1, "public": 1, "validation": 0, "test": 1, "size": (64, 64)}
    render_synthetic(tmp_path, sites=1, **settings).save(tmp_path / "list.json")  # type: ignore[arg-type]
    with pytest.raises(Refused, match=r"list.json -> sites -> validation: expected at least one, found no image"):
        evaluation(tmp_path, split="validation").run()
    with pytest.raises(Refused, match="site: expected one of"):
        evaluation(tmp_path, site="sito").run()
    assert not (tmp_path / "out").exists()


def test_the_average_is_over_images_not_over_sites() -> None:
    sites = {
        "a": {"dice": 0.5, "iou": 0.4, "hd95": 10.0, "n": 1},
        "b": {"dice": 0.9, "iou": 0.8, "hd95": 2.0, "n": 3},
    }
    assert _average(sites) == pytest.approx({"dice": 0.8, "iou": 0.7, "hd95": 4.0, "n": 4})
