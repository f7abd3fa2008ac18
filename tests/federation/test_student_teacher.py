"""A second generation: the model of an earlier run makes the soft masks in SAM's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import canonical_hash, read_json, safe_load, save_tensors, sha256_bytes
from samfed_monai.core.model_file import settings_of
from samfed_monai.data import DataList, SoftMaskStore, load_records
from samfed_monai.federation.run import Run
from samfed_monai.federation.teacher import StudentTeacher, packed
from samfed_monai.protocol import Kind, Message, MessageRefused
from samfed_monai.results import validate_results
from samfed_monai.teacher.exam import read_image_tensor
from tests.federation.test_job import CLIENT, job
from tests.federation.test_start import equal
from tests.federation.test_wired_jobs import at_server
from tests.federation.wired import Homes

SMALL = {"size": 64, "views": 4}


def second(federation: Path, output: Path, source: Path | str, **options: Any):
    """A run whose masks are made by ``source``; SAM is not on this machine."""
    settings: dict[str, Any] = {"rounds": 1, "warm_start_steps": 0, "variant": "samfed", "teacher": SMALL}
    return job(federation, output, masks_from=str(source), **{**settings, **options})


class Left(torch.nn.Module):
    """Logit 20 in the left half of what it sees, and -20 in the right one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        side = images.shape[-1]
        row = torch.where(torch.arange(side) < side // 2, self.weight, -self.weight)
        return row.expand(len(images), 1, side, side)


@pytest.mark.parametrize(("views", "left"), [(1, 1.0), (2, 0.5)])
def test_a_mask_is_the_mean_over_views_and_covers_the_image_as_a_teachers_does(views, left):
    teacher = StudentTeacher(Left(), weights_sha256="a" * 64, image_size=16, size=32, views=views, bf16=False)
    masks = teacher.probabilities(torch.zeros(1, 3, 40, 80))
    assert masks.shape == (1, 1, 4, 8), "the longer side is 32 / 4, the aspect is the image's"
    assert torch.allclose(masks[0, 0, :, 0], torch.full((4,), left), atol=1e-6)
    assert torch.allclose(masks[0, 0, :, -1], torch.full((4,), 1 - left), atol=1e-6)
    other = StudentTeacher(Left(), weights_sha256="b" * 64, image_size=16, size=32, views=views)
    assert teacher.sha256 == canonical_hash({"student": "a" * 64, "size": 32, "views": views}) != other.sha256


def test_the_network_sees_images_as_in_training_and_is_not_trained(small_federation, finished, tmp_path):
    run = Run((made := second(small_federation, tmp_path / "b", finished)).plan, made.places)
    teacher = StudentTeacher.load(run.teacher.kept(run.student), run.participants.config, run.teacher)
    assert (teacher.image_size, teacher.size, teacher.views) == (32, 64, 4)
    assert not any(each.requires_grad for each in teacher.parameters())
    kept = safe_load(finished / "rounds" / "000" / "global.safetensors")
    assert equal(kept, teacher.network.state_dict())


def test_sites_store_its_masks_and_learn_from_them_without_sam(small_federation, finished, tmp_path):
    made = second(small_federation, tmp_path / "b", finished)
    run = Run(made.plan, made.places)
    teacher = StudentTeacher.load(run.teacher.kept(run.student), run.participants.config, run.teacher)
    results = made.run()
    assert validate_results(results) == []
    assert {name: results["teacher"][name] for name in ("model", "size", "views")} == {"model": "first", **SMALL}
    assert results["teacher"]["average"]["test"]["n"] == 4, "its own row, by the masks of the sites' test images"
    assert results["hashes"]["teacher"] == teacher.sha256
    assert read_json(tmp_path / "b" / "run.json")["hashes"]["masks_from"] == sha256_bytes(run.student)
    assert "sam" not in results["hashes"]
    datalist = DataList.load(small_federation / "list.json")
    store = SoftMaskStore(tmp_path / "b" / "cache" / "soft_masks" / "site-1", teacher_sha256=teacher.sha256)
    assert len(store) == 4 + 2, "unlabelled and test images"
    for record in load_records(datalist, small_federation, split="unlabelled", site="site-1"):
        wanted = teacher.probabilities(read_image_tensor(record).float() / 255)[0]
        stored = store.get(record["image_sha256"])
        assert stored.shape == wanted.shape == (1, 16, 16)
        assert float((stored - wanted).abs().max()) <= 1 / 510 + 1e-6
    with pytest.raises(Refused, match=r"hashes#masks_from: expected '.*', as in run.json, found '"):
        second(small_federation, tmp_path / "b", tmp_path / "b").run()


def test_over_the_wire_sites_make_the_same_masks_and_the_model_has_the_same_bits(three_sites, finished, tmp_path):
    options: dict[str, Any] = {"unseen": ["site-3"]}
    here = second(three_sites, tmp_path / "here", finished, **options).run()
    homes = Homes(three_sites, tmp_path)
    settings = {"rounds": 1, "warm_start_steps": 0, "variant": "samfed", "teacher": SMALL, "masks_from": str(finished)}
    there = at_server(three_sites, homes, tmp_path / "server" / "run", **settings).run(homes)
    assert there["hashes"]["teacher"] == here["hashes"]["teacher"]
    assert there["hashes"]["model_best"] == here["hashes"]["model_best"]
    assert homes.nodes["site-1"].teacher.sha256 == here["hashes"]["teacher"]
    assert ("prepare", "site-1") in homes.asked


def test_a_network_of_another_kind_can_make_the_masks(small_federation, finished, tmp_path):
    made = second(
        small_federation, tmp_path / "b", finished, train={**CLIENT, "network_name": "flexible_unet_resnet18"}
    )
    run = Run(made.plan, made.places)
    teacher = StudentTeacher.load(run.teacher.kept(run.student), run.participants.config, run.teacher)
    assert type(teacher.network).__name__ == "BasicUNet"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"train": {**CLIENT, "image_size": 64}}, r"masks_from -> image_size: expected 32, as .* trained, found 64"),
        ({"variant": "no_sam"}, r"masks_from: expected null: this variant learns from no soft masks"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(small_federation, finished, tmp_path, options, found):
    with pytest.raises(Refused, match=found):
        second(small_federation, tmp_path / "b", finished, **options).run()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ({"network_name": "sam_vit_t"}, r"masks_from: expected a network without frozen weights of SAM, found sam_vit"),
        (
            {"classes": '["disc", "cup"]'},
            r"masks_from -> classes: expected \['disc', 'cup'\], as .* was trained, found",
        ),
        (
            {"network_name": "flexible_unet_resnet18"},
            r"expected all tensors of this network, found \d+ of them",
        ),
    ],
)
def test_a_file_of_another_kind_makes_no_masks(small_federation, finished, tmp_path, header, found):
    save_tensors(tmp_path / "other.safetensors", safe_load(finished / "rounds" / "000" / "global.safetensors"), header)
    with pytest.raises(Refused, match=found):
        second(small_federation, tmp_path / "b", tmp_path / "other.safetensors").run()


def test_a_file_that_does_not_say_how_it_is_used_is_of_the_runs_own_network(small_federation, finished, tmp_path):
    weights = safe_load(finished / "rounds" / "000" / "global.safetensors")
    save_tensors(tmp_path / "plain.safetensors", weights)
    run = Run((made := second(small_federation, tmp_path / "b", tmp_path / "plain.safetensors")).plan, made.places)
    sent = run.teacher.kept(packed(tmp_path / "plain.safetensors", run.participants))
    assert settings_of(sent) == {"network_name": "basic_unet", "image_size": 32}
    assert equal(safe_load(sent), weights)


def test_a_site_refuses_a_network_that_is_none(three_sites, finished, tmp_path):
    homes = Homes(three_sites, tmp_path)
    made = at_server(three_sites, homes, tmp_path / "server" / "run", variant="samfed", teacher=SMALL)
    run = Run(made.plan, made.places)
    site = homes.node("site-1", run.participants.settled(made.plan)).teacher
    content = packed(finished, run.participants)
    for bad, found in ((b"noise", "a file without network_name and image_size"), (content[:-9], "")):
        message = sent(bad)
        with pytest.raises(MessageRefused, match=found):
            site.take(message)


def sent(content: bytes) -> Message:
    tensors = {"adapter": torch.frombuffer(bytearray(content), dtype=torch.uint8)}
    return Message(Kind.ADAPTER, "site-1", 0, 2, tensors=tensors, extra={"adapter": sha256_bytes(content)})
