"""What a site does with the server's adapter: its soft masks, a teacher of its own, how good it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import canonical_hash, sha256_bytes, sha256_file
from samfed_monai.federation.site_teacher import SiteMasks, SiteTeacher, adapter_message
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.federation.workflow import client_config
from samfed_monai.networks.sam import adapter as adapters
from samfed_monai.networks.sam.adapter import Adapt
from samfed_monai.protocol import Kind, Message, MessageRefused

SAM = sha256_bytes(b"sam")


class Half(torch.nn.Module):
    """A teacher whose masks are the left half of every image."""

    def __init__(self, sha256: str) -> None:
        super().__init__()
        self.sha256 = sha256

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        masks = torch.zeros(len(images), 1, 16, 16)
        masks[..., :8] = 1
        return masks


@pytest.fixture
def machine(tmp_path, monkeypatch, small_list, small_federation):
    """Makes sites whose SAM is a file; the teacher is known by its adapters alone."""
    (tmp_path / "sam.pt").write_bytes(b"sam")
    loaded = []

    def load(**given):
        loaded.append(sha256_file(given["adapter"]) if given["adapter"] else "none")
        return Half(canonical_hash(loaded[-1]))

    def read_header(path):
        if path.read_bytes() == b"noise":
            raise Refused([])
        return SimpleNamespace(adapt=Adapt.LORA, base_sha256=path.read_bytes().partition(b"|")[2].decode())

    monkeypatch.setattr("samfed_monai.networks.sam.teacher.Teacher.load", load)
    monkeypatch.setattr(adapters, "read_header", read_header)
    monkeypatch.setattr(TeacherStage, "checkpoint", lambda self: tmp_path / "sam.pt")

    def site(name: str = "site-1", adapt: str = "lora", limit=None, trains=True, **overrides) -> SiteTeacher:
        stage = TeacherStage(find_bundle("samfed_skin"), overrides, tmp_path / "cache")
        masks = SiteMasks(name, tmp_path / "cache", small_list.for_site(name), small_federation, limit=limit)
        config = client_config(find_bundle("samfed_skin"), "samfed", {"image_size": 32})
        return SiteTeacher(stage, masks, adapt=adapt, config=config, memory=tmp_path / "prepared.json", trains=trains)

    return SimpleNamespace(site=site, folder=tmp_path, loaded=loaded)


def sent(folder, content: bytes | None = None, *, sam: str = SAM, **changed) -> Message:
    """The server's message with an adapter of this content, fitted on the SAM whose hash follows its bar."""
    path = None if content is None else folder / "given.safetensors"
    if path is not None:
        path.write_bytes(content)
    teacher = canonical_hash("none" if content is None else sha256_bytes(content))
    tensors, words = adapter_message(path, sam=sam, teacher=teacher)
    return Message(Kind.ADAPTER, "site-1", 0, 1, tensors=tensors, extra={**words, **changed})


def fitted(on: str = SAM, name: str = "one") -> bytes:
    return f"{name}|{on}".encode()


def test_the_adapter_arrives_is_kept_by_its_hash_and_fills_this_sites_store_alone(machine):
    message = sent(machine.folder, fitted())
    message.check(up=False)
    here = machine.site()
    assert here.take(message) == 4 + 2, "unlabelled images and those of the teacher's row; nothing reads validation"
    assert machine.loaded == [message.extra["adapter"]]
    kept = machine.folder / "cache" / "adapters" / f"{message.extra['adapter']}.safetensors"
    assert kept.read_bytes() == fitted()
    assert len(here.masks.store(here.sha256)) == 6
    assert not (here.masks.folder.parent / "site-2").exists()
    assert machine.site().take(message) == 0, "a second time there is nothing left to compute"


def test_a_site_that_was_started_again_knows_whose_masks_it_has(machine):
    message = sent(machine.folder, fitted())
    with pytest.raises(MessageRefused, match="teacher: expected the server's adapter first, found none"):
        _ = machine.site().sha256
    machine.site().take(message)
    assert machine.site().sha256 == message.extra["teacher"]


def test_a_teacher_that_this_process_has_is_not_loaded_again(machine):
    message = sent(machine.folder, fitted())
    machine.site().take(message, SimpleNamespace(teacher=Half(message.extra["teacher"])))
    assert machine.loaded == []


def test_a_base_sam_that_differs_from_the_adapters_is_refused_with_both_hashes(machine):
    other = sha256_bytes(b"another sam")
    with pytest.raises(MessageRefused) as caught:
        machine.site().take(sent(machine.folder, fitted(on=other), sam=other))
    text = str(caught.value)
    assert f"SAM checkpoint: expected the server's SAM, {other}, found SHA-256 {SAM}" in text
    assert f"expected the SAM that the adapter was fitted on, {other}, found SHA-256 {SAM}" in text
    assert "give this site the server's checkpoint of vit_t" in text
    assert machine.loaded == []


def test_a_site_without_sam_is_told_what_to_fetch_and_no_path_travels(machine, monkeypatch):
    monkeypatch.setattr(TeacherStage, "checkpoint", lambda self: machine.folder / "Jane Doe" / "sam.pt")
    with pytest.raises(MessageRefused, match=r"SAM checkpoint: .*found none; run `samfed weights` for vit_t") as caught:
        machine.site().take(sent(machine.folder, fitted()))
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.tensors["adapter"].__setitem__(0, 0), "message -> adapter: .*damaged on the way"),
        (lambda m: m.extra.pop("adapter"), "message -> adapter: expected its own"),
        (lambda m: m.tensors.update(adapter_2=m.tensors["adapter"]), "tensors: expected an adapter, found other"),
        (lambda m: m.tensors.update(adapter=m.tensors["adapter"].float()), "expected a row of uint8"),
        (lambda m: setattr(m, "kind", Kind.WEIGHTS), "tensors: expected an adapter, found other"),
        (lambda m: m.tensors.clear(), "adapter: expected one, as teacher_adapt is lora, found none"),
        (lambda m: m.extra.update(teacher="0" * 64), "teacher: expected the server's, 000000000000"),
    ],
)
def test_what_is_not_the_servers_adapter_is_refused(machine, change, reason):
    message = sent(machine.folder, fitted())
    change(message)
    with pytest.raises(MessageRefused, match=reason):
        machine.site().take(message)
    assert not (machine.folder / "cache" / "soft_masks").exists()
    assert not (machine.folder / "prepared.json").exists()


def test_bytes_that_are_no_adapter_are_refused(machine):
    with pytest.raises(MessageRefused, match="adapter: expected an adapter made by `samfed teach`"):
        machine.site().take(sent(machine.folder, b"noise"))


def test_sam_as_it_comes_needs_no_adapter(machine):
    message = sent(machine.folder)
    assert message.tensors == {}
    assert machine.site(adapt="none").take(message) == 6


def test_the_teachers_means_are_those_of_its_masks(machine):
    here = machine.site()
    here.take(sent(machine.folder, fitted()))
    said = here.scores("test")
    rows = here.masks.teacher_scores(here.sha256, here.config, "test")
    assert said["n"] == len(rows) == 2
    assert said["metrics"]["dice"] == pytest.approx(sum(row["dice"] for row in rows) / 2)
    assert set(said["metrics"]) == {
        *("dice", "iou", "hd95", "sensitivity", "precision", "area"),
        *("empty_both", "empty_prediction", "empty_label"),
    }


@pytest.mark.parametrize("skipped", [False, True])
def test_the_teachers_empty_masks_count_as_the_students_do(machine, monkeypatch, skipped):
    here = machine.site()
    here.take(sent(machine.folder, fitted()))
    here.config = here.config.with_overrides({"validate#scores#skip_empty": skipped})
    one, other = here.masks.teacher_scores(here.sha256, here.config, "test")
    rows = [one, {**other, "empty": "prediction", "hd95": 45.0}]
    monkeypatch.setattr(here.masks, "teacher_scores", lambda *_: rows)
    assert here.scores("test")["metrics"]["hd95"] == pytest.approx(one["hd95"] if skipped else (one["hd95"] + 45) / 2)


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
def test_the_teacher_sees_what_is_trained_on_and_what_it_is_scored_on(machine, settings, shown):
    here = machine.site(**settings)
    assert here.take(sent(machine.folder, fitted())) == shown
    used = here.masks.records("unlabelled" if settings.get("trains", True) else "test")
    store = here.masks.store(here.sha256)
    assert bool(store.missing([record["image_sha256"] for record in used])) is (shown == 0)


def test_scores_that_the_plan_does_not_ask_for_are_refused(machine):
    for settings, split in (({}, "validation"), ({"score": False}, "test")):
        here = machine.site(**settings)
        here.take(sent(machine.folder, fitted()))
        with pytest.raises(MessageRefused, match=rf"teacher's scores -> split: expected one of .*, found '{split}'"):
            here.scores(split)
    here = machine.site(limit=1)
    here.take(sent(machine.folder, fitted()))
    assert here.scores("test")["n"] == 1


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
    return SiteMasks("site-1", tmp_path, small_list, small_federation)


def test_each_image_is_shown_once(masks):
    teacher = Everything()
    assert masks.fill(teacher, ("unlabelled", "test")) == 4 + 2
    assert masks.fill(teacher, ("unlabelled", "validation", "test")) == 2
    assert teacher.seen == 4 + 2 + 2


def test_sites_have_stores_of_their_own(masks):
    masks.fill(Everything(), ("test",))
    assert [path.name for path in masks.folder.parent.iterdir() if path.is_dir()] == ["site-1"]


def test_the_teacher_is_scored_at_the_evaluation_size(masks):
    masks.fill(Everything(), ("test",))
    config = client_config(find_bundle("samfed_skin"), "samfed", {"image_size": 32})
    rows = masks.teacher_scores(Everything.sha256, config, "test")
    assert len(rows) == 2
    for row in rows:  # a full mask: IoU is the foreground's share f, Dice 2 f / (1 + f)
        assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))
        assert 0 < row["iou"] < 1
        assert row["hd95"] <= 32 * 2**0.5


def test_the_teachers_hd95_is_of_the_students_kind(masks):
    masks.fill(Everything(), ("test",))
    config = client_config(find_bundle("samfed_skin"), "samfed", {"image_size": 32})
    pooled = config.with_overrides({"validate#scores#pooled": True})
    ours, theirs = (masks.teacher_scores(Everything.sha256, one, "test") for one in (config, pooled))
    pairs = list(zip(ours, theirs, strict=True))
    assert all(a["dice"] == b["dice"] for a, b in pairs)
    assert any(a["hd95"] > b["hd95"] for a, b in pairs)
