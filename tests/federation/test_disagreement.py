"""A site without masks compares its student with its teacher, and keeps what it finds."""

from __future__ import annotations

import csv
import dataclasses
import logging
import stat

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from PIL import Image

from samfed_monai.data import DataList, SoftMaskStore
from samfed_monai.federation import site_teacher
from samfed_monai.federation.site_teacher import KEPT, TABLE, Disagreement
from samfed_monai.reports import Report
from tests.federation.test_job import job

TEACHER = "7e" * 32
RECORDS = [{"id": f"image-{index}", "image": "", "image_sha256": f"{index:02d}" * 32} for index in range(KEPT + 2)]


class UpperRows(torch.nn.Module):
    """A student that marks as many upper rows of an image as its red channel says."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(images.shape[-2]).reshape(1, 1, -1, 1).expand(len(images), 1, -1, images.shape[-1])
        return images[:, :1].amax((2, 3), keepdim=True) - rows.float() - 0.5


def evaluator() -> SupervisedEvaluator:
    return SupervisedEvaluator(device=torch.device("cpu"), val_data_loader=[], network=UpperRows(), decollate=False)


def read(record):
    """An image of 8 x 8 whose student mask has ``index`` rows of its 8; the teacher's has 4."""
    return {"id": record["id"], "image": torch.full((3, 8, 8), float(record["id"].split("-")[1]))}


@pytest.fixture
def store(tmp_path):
    store = SoftMaskStore(tmp_path / "store", teacher_sha256=TEACHER)
    mask = torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    for record in RECORDS:
        store.put(record["image_sha256"], mask)
    return store


def test_the_table_has_every_image_lowest_dice_first_and_masks_of_the_lowest(store, tmp_path):
    folder = tmp_path / "own" / "best" / "a" / "unlabelled"
    network = evaluator()
    network.network.train()
    compare = Disagreement(RECORDS, lambda: store, read, batch_size=3, folder=tmp_path / "own", site="a")
    promised = compare(network)
    assert (promised[0], min(promised[1:]) > 0) == (0.0, True), "an empty mask promises nothing"
    of_slices = Disagreement(RECORDS, lambda: store, read, batch_size=3, folder=tmp_path / "3d", site="a", parts=True)
    assert of_slices(network)[0] > 0, "a slice may hold nothing"
    rows = list(csv.DictReader((folder / TABLE).open()))
    expected = {f"image-{n}": 2 * min(n, 4) / (n + 4) for n in range(8)}  # n rows against 4
    assert {row["id"]: float(row["dice"]) for row in rows} == pytest.approx(expected)
    assert [row["id"] for row in rows] == [f"image-{n}" for n in (0, 1, 2, 7, 6, 3, 5, 4)]
    assert [bool(row["mask"]) for row in rows] == [True] * KEPT + [False] * 2
    for whose, rows_of in (("student", 2), ("teacher", 4)):
        path = folder / whose / rows[2]["mask"]
        mask = np.array(Image.open(path))
        assert (mask[:rows_of].min(), mask[rows_of:].max()) == (255, 0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(list((folder / whose).iterdir())) == KEPT
    assert stat.S_IMODE((folder / TABLE).stat().st_mode) == 0o600
    assert network.network.training, "the network's mode is as it was"


def test_a_mask_that_is_missing_ends_no_run(tmp_path, caplog):
    empty = SoftMaskStore(tmp_path / "store", teacher_sha256=TEACHER)
    with caplog.at_level(logging.WARNING):
        Disagreement(RECORDS, lambda: empty, read, batch_size=3, folder=tmp_path / "own", site="a")(evaluator())
    assert "could not be compared" in caplog.text
    assert not (tmp_path / "own").exists()


def without_masks(federation, folder, *sites):
    listed = DataList.load(federation / "list.json")
    for site in sites:
        bare = [dataclasses.replace(item, label=None, label_sha256=None) for item in listed.sites[site].unlabelled]
        listed.sites[site] = dataclasses.replace(listed.sites[site], unlabelled=bare, validation=[], test=[])
    listed.save(folder / "list.json")
    return folder / "list.json"


def test_sites_without_masks_see_their_own_images_and_others_their_scores(small_federation, tmp_path, given):
    listed, run = without_masks(small_federation, tmp_path, "site-1"), tmp_path / "run"
    knobs = {"variant": "samfed", "rounds": 1, "adapter": given.options["adapter"], "datalist": listed}
    job(small_federation, run, **knobs).run()
    own = run / "evaluation" / "best" / "site-1" / "unlabelled"
    assert len(list(csv.DictReader((own / TABLE).open()))) == 4
    assert not (own.parents[1] / "site-2" / "unlabelled").exists(), "its scores say how it does"
    page = Report(run, datalist=listed, data_root=small_federation).write().read_text(encoding="utf-8")
    assert "Images without masks" in page
    assert "No overlays for" not in page
    assert len(list((run / "figures").glob("own-1-*.png"))) == 4
    assert len(list((run / "figures").glob("overlay-2-*.png"))) == 2


def test_a_run_in_which_no_image_of_any_site_has_a_mask_has_a_report(small_federation, tmp_path, given):
    listed, run = without_masks(small_federation, tmp_path, "site-1", "site-2"), tmp_path / "run"
    job(small_federation, run, variant="samfed", rounds=1, adapter=given.options["adapter"], datalist=listed).run()
    page = Report(run, datalist=listed, data_root=small_federation).write().read_text(encoding="utf-8")
    assert page.count("outlines of student and teacher") == 8
    assert "Test images" not in page


def test_a_run_without_a_teacher_says_why_it_shows_nothing(small_federation, tmp_path):
    listed, run = without_masks(small_federation, tmp_path, "site-1"), tmp_path / "run"
    job(small_federation, run, rounds=1, datalist=listed).run()
    page = Report(run, datalist=listed, data_root=small_federation).write().read_text(encoding="utf-8")
    assert "No overlays for: site-1: none of its test images has a mask." in page


def test_a_round_s_model_is_looked_at_too_on_a_part_of_the_images(store, tmp_path, monkeypatch):
    monkeypatch.setattr(site_teacher, "SAMPLE", 4)
    monkeypatch.setattr(site_teacher, "KEPT", 2)
    compare = Disagreement(RECORDS, lambda: store, read, batch_size=3, folder=tmp_path, site="a")
    folder = tmp_path / "current" / "a" / "unlabelled"
    compare(evaluator(), "current")
    (folder / "student" / "old.png").write_bytes(b"")  # of the round before
    compare(evaluator(), "current")
    rows = list(csv.DictReader((folder / TABLE).open()))
    assert [row["id"] for row in rows] == ["image-0", "image-2", "image-6", "image-4"]
    assert sorted(path.name for path in (folder / "student").iterdir()) == sorted(row["mask"] for row in rows[:2])
    compare(evaluator(), "best")
    assert not folder.exists(), "the best model's are all that is left"
