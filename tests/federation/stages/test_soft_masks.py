"""Tests of the sites' soft masks and of the teacher's own scores."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.config import find_bundle
from samfed_monai.federation.site_teacher import SiteMasks
from samfed_monai.federation.workflow import client_config


class Everything:
    """A teacher that finds a lesion everywhere, and counts what it is shown."""

    sha256 = "a" * 64

    def __init__(self) -> None:
        self.seen = 0

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return torch.ones(len(images), 1, 16, 16)


@pytest.fixture
def masks(small_federation, small_list, tmp_path) -> SiteMasks:
    return SiteMasks(tmp_path, small_list, small_federation)


def test_each_image_is_shown_once(masks):
    teacher = Everything()
    assert masks.fill(teacher, ("unlabelled", "test")) == 2 * (4 + 2)
    assert masks.fill(teacher, ("unlabelled", "validation", "test")) == 2 * 2
    assert teacher.seen == 2 * (4 + 2 + 2)


def test_sites_have_stores_of_their_own(masks):
    masks.fill(Everything(), ("test",))
    assert {path.name for path in masks.folder.iterdir() if path.is_dir()} == set(masks.datalist.sites)


def test_the_teacher_is_scored_at_the_evaluation_size(masks):
    masks.fill(Everything(), ("test",))
    config = client_config(find_bundle("samfed_skin"), "samfed", {"image_size": 32})
    tables = masks.teacher_scores(Everything.sha256, config, ("test",))
    rows = [row for by_split in tables.values() for row in by_split["test"]]
    assert len(rows) == 4
    for row in rows:  # a full mask: IoU is the foreground's share f, Dice 2 f / (1 + f)
        assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))
        assert 0 < row["iou"] < 1
        assert row["hd95"] <= 32 * 2**0.5


def test_the_teachers_hd95_is_of_the_students_kind(masks):
    masks.fill(Everything(), ("test",))
    config = client_config(find_bundle("samfed_skin"), "samfed", {"image_size": 32})
    pooled = config.with_overrides({"validate#scores#pooled": True})
    ours, theirs = (masks.teacher_scores(Everything.sha256, one, ("test",)) for one in (config, pooled))
    pairs = [(a, b) for site in ours for a, b in zip(ours[site]["test"], theirs[site]["test"], strict=True)]
    assert all(a["dice"] == b["dice"] for a, b in pairs)
    assert any(a["hd95"] > b["hd95"] for a, b in pairs)
