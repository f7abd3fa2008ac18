"""The teacher at a site: its soft masks and scores, a teacher of its own, and where a student segments differently."""

from __future__ import annotations

import csv
import dataclasses
import logging
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from PIL import Image
from safetensors.torch import save

from samfed_monai.config import find_bundle
from samfed_monai.core.io import canonical_hash, read_json, sha256_bytes
from samfed_monai.data import DataList, SoftMaskStore
from samfed_monai.federation import site_teacher
from samfed_monai.federation.site_teacher import KEPT, TABLE, Disagreement, SiteMasks, SiteTeacher, adapter_message
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.federation.workflow import client_config
from samfed_monai.protocol import Kind, Message, MessageRefused
from samfed_monai.reports import Report
from tests.federation.fake_sam import SAM, Half, fake_sam, fitted
from tests.federation.test_job import job


@pytest.fixture
def machine(tmp_path, monkeypatch, small_list, small_federation):
    """Makes sites with :mod:`.fake_sam`."""
    loaded = fake_sam(tmp_path, monkeypatch)

    def site(name: str = "site-1", adapt: str = "lora", limit=None, trains=True, **overrides) -> SiteTeacher:
        stage = TeacherStage(find_bundle("samfed_skin"), overrides, tmp_path / "cache")
        masks = SiteMasks(name, tmp_path / "cache", small_list.for_site(name), small_federation, limit=limit)
        config = client_config(find_bundle("samfed_skin"), "samfed", {"image_size": 32})
        return SiteTeacher(stage, masks, adapt=adapt, config=config, memory=tmp_path / "prepared.json", trains=trains)

    return SimpleNamespace(site=site, folder=tmp_path, loaded=loaded)


def sent(folder, content: bytes | None = None, *, sam: str | None = SAM, **changed) -> Message:
    """The server's message with an adapter of this content, fitted on the SAM whose hash follows its bar."""
    path = None if content is None else folder / "given.safetensors"
    if path is not None:
        path.write_bytes(content)
    teacher = canonical_hash("none" if content is None else sha256_bytes(content))
    tensors, words = adapter_message(path, sam=sam, teacher=teacher)
    return Message(Kind.ADAPTER, "site-1", 0, 1, tensors=tensors, extra={**words, **changed})


@pytest.fixture
def filled(machine) -> SiteTeacher:
    """A site that took the server's adapter."""
    here = machine.site()
    here.take(sent(machine.folder, fitted()))
    return here


def test_adapter_is_stored_by_hash_and_fills_mask_store(machine):
    message = sent(machine.folder, fitted())
    message.check(up=False)
    with pytest.raises(MessageRefused, match="teacher: expected the server's adapter, found none"):
        _ = machine.site().sha256
    here = machine.site()
    assert here.take(message) == 4 + 2, "unlabelled images and those of the teacher's row; nothing reads validation"
    assert machine.loaded == [message.extra["adapter"]]
    kept = machine.folder / "cache" / "adapters" / f"{message.extra['adapter']}.safetensors"
    assert kept.read_bytes() == fitted()
    assert len(here.masks.store(here.sha256)) == 6
    assert [path.name for path in here.masks.folder.parent.iterdir() if path.is_dir()] == ["site-1"]
    assert here.masks.fill(Half(here.sha256), ("unlabelled", "validation", "test")) == 2, "each image is shown once"
    again = machine.site()
    assert again.sha256 == message.extra["teacher"], "a site that was started again knows whose masks it has"
    assert again.take(message) == 0, "there is nothing left to compute"


def test_loaded_teacher_is_reused(machine):
    message = sent(machine.folder, fitted())
    machine.site().take(message, SimpleNamespace(teacher=Half(message.extra["teacher"])))
    assert machine.loaded == []


def test_different_base_sam_is_refused_with_both_hashes(machine):
    other = sha256_bytes(b"another sam")
    with pytest.raises(MessageRefused) as caught:
        machine.site().take(sent(machine.folder, fitted(on=other), sam=other))
    text = str(caught.value)
    assert f"SAM checkpoint: expected the server's SAM, {other}, found SHA-256 {SAM}" in text
    assert f"expected the SAM that the adapter was fitted on, {other}, found SHA-256 {SAM}" in text
    assert "give this site the server's checkpoint of vit_t" in text
    assert machine.loaded == []


def test_missing_sam_is_refused_without_path(machine, monkeypatch):
    monkeypatch.setattr(TeacherStage, "checkpoint", lambda self: machine.folder / "Jane Doe" / "sam.pt")
    with pytest.raises(MessageRefused, match=r"SAM checkpoint: .*found none; run `samfed weights` for vit_t") as caught:
        machine.site().take(sent(machine.folder, fitted()))
    assert "Jane" not in str(caught.value)


def test_fault_58_server_network_problem_is_reported_without_path(machine):
    content = save({}, {"network_name": "lite0_fpn_small", "image_size": "32"})
    for part, problem in ((content, "all tensors of this network"), (content[:-1], "a readable weights file")):
        message = sent(machine.folder, part, sam=None)
        with pytest.raises(MessageRefused, match=rf"\n  - federate\.json -> masks_from: expected {problem}") as caught:
            machine.site().take(message)
        assert "/" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.tensors["adapter"].__setitem__(0, 0), "message -> adapter: .*damaged in transit"),
        (lambda m: m.extra.pop("adapter"), "message -> adapter: expected its own"),
        (lambda m: m.tensors.update(adapter_2=m.tensors["adapter"]), "tensors: expected an adapter, found other"),
        (lambda m: m.tensors.update(adapter=m.tensors["adapter"].float()), "expected a uint8 vector"),
        (lambda m: setattr(m, "kind", Kind.WEIGHTS), "tensors: expected an adapter, found other"),
        (lambda m: m.tensors.clear(), "adapter: expected an adapter, as teacher_adapt is lora, found none"),
        (lambda m: m.extra.update(teacher="0" * 64), "teacher: expected the server's teacher, 000000000000"),
    ],
)
def test_invalid_adapter_message_is_refused(machine, change, reason):
    message = sent(machine.folder, fitted())
    change(message)
    with pytest.raises(MessageRefused, match=reason):
        machine.site().take(message)
    with pytest.raises(MessageRefused, match="adapter: expected an adapter made by `samfed teach`"):
        machine.site().take(sent(machine.folder, b"noise"))
    assert not (machine.folder / "cache" / "soft_masks").exists()
    assert not (machine.folder / "prepared.json").exists()


def test_unadapted_sam_needs_no_adapter(machine):
    message = sent(machine.folder)
    assert message.tensors == {}
    assert machine.site(adapt="none").take(message) == 6


def test_teacher_scores_are_means_of_mask_scores(filled):
    answer = filled.scores("test")
    rows = filled.masks.teacher_scores(filled.sha256, filled.config, "test")
    assert answer["n"] == len(rows) == 2
    assert answer["metrics"]["dice"] == pytest.approx(sum(row["dice"] for row in rows) / 2)
    assert set(answer["metrics"]) == {
        *("dice", "iou", "hd95", "sensitivity", "precision", "area"),
        *("empty_both", "empty_prediction", "empty_label"),
    }


@pytest.mark.parametrize("skipped", [False, True])
def test_empty_teacher_masks_follow_skip_empty_setting(filled, monkeypatch, skipped):
    filled.config = filled.config.with_overrides({"validate#scores#skip_empty": skipped})
    one, other = filled.masks.teacher_scores(filled.sha256, filled.config, "test")
    rows = [one, {**other, "empty": "prediction", "hd95": 45.0}]
    monkeypatch.setattr(filled.masks, "teacher_scores", lambda *_: rows)
    expected = one["hd95"] if skipped else (one["hd95"] + 45) / 2
    assert filled.scores("test")["metrics"]["hd95"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, 4 + 2),
        ({"score": False}, 4),
        ({"limit": 1}, 1 + 1),
        ({"limit": 3, "score": False}, 3),
        ({"trains": False}, 2),
        ({"trains": False, "score": False}, 0),
    ],
)
def test_teacher_predicts_training_and_scored_images_only(machine, settings, shown):
    here = machine.site(**settings)
    assert here.take(sent(machine.folder, fitted())) == shown
    used = here.masks.records("unlabelled" if settings.get("trains", True) else "test")
    store = here.masks.store(here.sha256)
    assert bool(store.missing([record["image_sha256"] for record in used])) is (shown == 0)


def test_unrequested_teacher_scores_are_refused(machine):
    for settings, split in (({}, "validation"), ({"score": False}, "test")):
        here = machine.site(**settings)
        here.take(sent(machine.folder, fitted()))
        with pytest.raises(MessageRefused, match=rf"teacher's scores -> split: expected one of .*, found '{split}'"):
            here.scores(split)
    here = machine.site(limit=1)
    here.take(sent(machine.folder, fitted()))
    assert here.scores("test")["n"] == 1


class Everything(Half):
    """A teacher that finds a lesion everywhere."""

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 1, 16, 16)


def test_teacher_scores_use_evaluation_size_and_hd95_setting(machine):
    here = machine.site()
    here.masks.fill(Everything("a" * 64), ("test",))
    pooled = here.config.with_overrides({"validate#scores#pooled": True})
    rows, others = (here.masks.teacher_scores("a" * 64, config, "test") for config in (here.config, pooled))
    assert len(rows) == 2
    for row in rows:  # a full mask: IoU is the foreground's share f, Dice 2 f / (1 + f)
        assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))
        assert 0 < row["iou"] < 1
        assert row["hd95"] <= 32 * 2**0.5
    assert [row["dice"] for row in rows] == [row["dice"] for row in others]
    assert any(row["hd95"] > other["hd95"] for row, other in zip(rows, others, strict=True))


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


def test_disagreement_table_lists_lowest_dice_first(store, tmp_path):
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
    for source, rows_of in (("student", 2), ("teacher", 4)):
        path = folder / source / rows[2]["mask"]
        mask = np.array(Image.open(path))
        assert (mask[:rows_of].min(), mask[rows_of:].max()) == (255, 0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(list((folder / source).iterdir())) == KEPT
    assert stat.S_IMODE((folder / TABLE).stat().st_mode) == 0o600
    assert network.network.training, "the network's mode is as it was"


def test_missing_mask_is_logged_and_comparison_skipped(tmp_path, caplog):
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


def page_of(run, listed, federation) -> str:
    return Report(run, datalist=listed, data_root=federation).write().read_text(encoding="utf-8")


def test_report_shows_own_images_of_sites_without_masks(small_federation, tmp_path, given):
    listed, run = without_masks(small_federation, tmp_path, "site-1"), tmp_path / "run"
    results = job(small_federation, run, **given.options, datalist=listed).run()
    assert read_json(run / "run.json")["teacher"] == results["hashes"]["teacher"]
    own = run / "evaluation" / "best" / "site-1" / "unlabelled"
    assert len(list(csv.DictReader((own / TABLE).open()))) == 4
    assert not (own.parents[1] / "site-2" / "unlabelled").exists(), "its scores say how it does"
    page = page_of(run, listed, small_federation)
    assert "Images without masks" in page
    assert "No overlays for" not in page
    assert len(list((run / "figures").glob("own-1-*.png"))) == 4
    assert len(list((run / "figures").glob("overlay-2-*.png"))) == 2


def test_report_of_run_without_any_masks(small_federation, tmp_path, given):
    listed, run = without_masks(small_federation, tmp_path, "site-1", "site-2"), tmp_path / "run"
    job(small_federation, run, **given.options, datalist=listed).run()
    page = page_of(run, listed, small_federation)
    assert page.count("outlines of student and teacher") == 8
    assert "Test images" not in page
    assert "No site sent scores" not in page, "its masks promise something"
    assert "the round was chosen by expected Dice, not calibrated" in page


def test_report_without_teacher_explains_missing_scores(small_federation, tmp_path):
    listed, run = without_masks(small_federation, tmp_path, "site-1", "site-2"), tmp_path / "run"
    job(small_federation, run, rounds=1, warm_start_steps=0, datalist=listed).run()
    page = page_of(run, listed, small_federation)
    assert page.count("none of its test images has a mask") == 2
    assert "No site sent scores or expected Dice of any round" in page


def test_round_disagreement_is_sampled_and_replaced(store, tmp_path, monkeypatch):
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
