"""What a site does with the adapter that the server sends, with a file of eight bytes in place of SAM."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import canonical_hash, sha256_bytes, sha256_file
from samfed_monai.data import SoftMaskStore
from samfed_monai.federation.site_teacher import SiteMasks, SiteTeacher, adapter_message
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.federation.workflow import client_config
from samfed_monai.networks.sam import adapter as adapters
from samfed_monai.networks.sam.adapter import Adapt
from samfed_monai.protocol import Envelope, Kind, MessageRefused

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
        loaded.append([sha256_file(path) for path in given["adapter"]])
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
        masks = SiteMasks(tmp_path / "cache", small_list.for_site(name), small_federation, limit=limit)
        return SiteTeacher(stage, masks, adapt=adapt, memory=tmp_path / "prepared.json", trains=trains)

    return SimpleNamespace(site=site, folder=tmp_path, loaded=loaded)


def sent(folder, *contents: bytes, sam: str = SAM, **changed) -> Envelope:
    """The server's message with adapters of these contents, each fitted on the SAM whose hash follows its bar."""
    paths = []
    for number, content in enumerate(contents):
        paths.append(folder / f"given-{number}.safetensors")
        paths[-1].write_bytes(content)
    teacher = canonical_hash([sha256_bytes(content) for content in contents])
    tensors, words = adapter_message(paths, sam=sam, teacher=teacher)
    return Envelope(Kind.ADAPTER, "site-1", 0, 1, tensors=tensors, extra={**words, **changed})


def fitted(on: str = SAM, name: str = "one") -> bytes:
    return f"{name}|{on}".encode()


def test_the_adapter_arrives_is_kept_by_its_hash_and_fills_this_sites_store_alone(machine):
    message = sent(machine.folder, fitted(), fitted(name="two"))
    message.check(up=False)
    here = machine.site()
    assert here.take(message) == 4 + 2, "unlabelled images and those of the teacher's row; nothing reads validation"
    assert machine.loaded == [[message.extra["adapter_0"], message.extra["adapter_1"]]]
    kept = machine.folder / "cache" / "adapters" / f"{message.extra['adapter_0']}.safetensors"
    assert kept.read_bytes() == fitted()
    assert len(SoftMaskStore(here.masks.store_dir("site-1"), teacher_sha256=here.sha256)) == 6
    assert not here.masks.store_dir("site-2").exists()
    assert machine.site().take(message) == 0, "a second time there is nothing left to compute"


def test_a_site_that_was_started_again_knows_whose_masks_it_has(machine):
    message = sent(machine.folder, fitted())
    with pytest.raises(MessageRefused, match="teacher: expected the server's adapter first, found none"):
        _ = machine.site().sha256
    machine.site().take(message)
    assert machine.site().sha256 == message.extra["teacher"]


def test_a_teacher_that_this_process_has_is_not_loaded_again(machine):
    message = sent(machine.folder, fitted())
    machine.site().take(message, Half(message.extra["teacher"]))
    assert machine.loaded == []


def test_a_site_with_a_teacher_of_its_own_keeps_that_ones_masks(machine):
    message = sent(machine.folder, fitted())
    here, asked = machine.site(), []

    class Own:
        def of(self, teacher, adapter):
            asked.append((teacher.sha256, adapter.read_bytes()))
            return Half("c" * 64)

    here.own = Own()
    assert here.take(message, Half(message.extra["teacher"])) == 6
    assert asked == [(message.extra["teacher"], fitted())], "it begins with the server's adapter"
    assert here.sha256 == machine.site().sha256 == "c" * 64, "also after the site was started again"
    assert len(SoftMaskStore(here.masks.store_dir("site-1"), teacher_sha256=here.sha256)) == 6


def test_a_base_sam_that_differs_from_the_adapters_is_refused_with_both_hashes(machine):
    other = sha256_bytes(b"another sam")
    with pytest.raises(MessageRefused) as caught:
        machine.site().take(sent(machine.folder, fitted(on=other), sam=other))
    text = str(caught.value)
    assert f"SAM checkpoint: expected the server's SAM, {other}, found SHA-256 {SAM}" in text
    assert f"expected the SAM that adapter_0 was fitted on, {other}, found SHA-256 {SAM}" in text
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
        (lambda m: m.tensors["adapter_0"].__setitem__(0, 0), "message -> adapter_0: .*damaged on the way"),
        (lambda m: m.extra.pop("adapter_0"), "message -> adapter_0: expected its own"),
        (lambda m: m.tensors.update(adapter_2=m.tensors["adapter_0"]), "expected adapter_0, adapter_1"),
        (lambda m: m.tensors.update(adapter_0=m.tensors["adapter_0"].float()), "expected a row of uint8"),
        (lambda m: setattr(m, "kind", Kind.WEIGHTS), "expected adapter_0, adapter_1"),
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
    with pytest.raises(MessageRefused, match="adapter_0: expected an adapter made by `samfed teach`"):
        machine.site().take(sent(machine.folder, b"noise"))


def test_sam_as_it_comes_needs_no_adapter(machine):
    message = sent(machine.folder)
    assert message.tensors == {}
    assert machine.site(adapt="none").take(message) == 6


def test_the_teachers_means_are_those_of_its_masks(machine):
    here = machine.site()
    here.take(sent(machine.folder, fitted()))
    config = client_config(find_bundle("samfed_skin"), "samfed", {"image_size": 32})
    said = here.scores("test", config)
    rows = here.masks.teacher_scores(here.sha256, config, ("test",))["site-1"]["test"]
    assert said["n"] == len(rows) == 2
    assert said["metrics"]["dice"] == pytest.approx(sum(row["dice"] for row in rows) / 2)
    assert set(said["metrics"]) == {"dice", "iou", "hd95", "empty_both", "empty_prediction", "empty_label"}


def test_more_adapters_than_a_message_carries_are_refused(machine):
    with pytest.raises(Refused, match="adapter: expected at most 8, found 9 files"):
        sent(machine.folder, *[fitted()] * 9)


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
    used = here.masks.records("site-1", "unlabelled" if settings.get("trains", True) else "test")
    store = SoftMaskStore(here.masks.store_dir("site-1"), teacher_sha256=here.sha256)
    assert bool(store.missing([record["image_sha256"] for record in used])) is (shown == 0)


def test_scores_that_the_plan_does_not_ask_for_are_refused(machine):
    config = client_config(find_bundle("samfed_skin"), "samfed", {"image_size": 32})
    for settings, split in (({}, "validation"), ({"score": False}, "test")):
        here = machine.site(**settings)
        here.take(sent(machine.folder, fitted()))
        with pytest.raises(MessageRefused, match=rf"teacher's scores -> split: expected one of .*, found '{split}'"):
            here.scores(split, config)
    here = machine.site(limit=1)
    here.take(sent(machine.folder, fitted()))
    assert here.scores("test", config)["n"] == 1
