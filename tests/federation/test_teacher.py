"""The teacher of a run: given, fitted before or now, or the model of an earlier run in SAM's place."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import canonical_hash, read_json, safe_load, save_tensors, sha256_bytes, write_json
from samfed_monai.core.model_file import settings_of
from samfed_monai.data import DataList, SoftMaskStore, load_records
from samfed_monai.federation import FederatedJob
from samfed_monai.federation.run import Run
from samfed_monai.federation.teacher import StudentTeacher, TeacherStage, pack_model, single_writer
from samfed_monai.networks.sam import adapter as adapters
from samfed_monai.networks.sam.adapter import Adapt
from samfed_monai.protocol import Kind, Message, MessageRefused
from samfed_monai.results import validate_results
from samfed_monai.teacher.evaluation import read_image_tensor
from tests.federation.test_job import CLIENT, job
from tests.federation.test_wired_jobs import at_server
from tests.federation.toys import model_of, same
from tests.federation.wired import Homes

MADE = SimpleNamespace(size=512, views=1)


def stage(folder: Path, **overrides) -> TeacherStage:
    return TeacherStage(find_bundle("samfed_skin"), overrides, folder)


@pytest.fixture
def load(tmp_path, monkeypatch, small_list, small_federation):
    """Loads the teacher of a stage with a given adapter; ``load.keywords`` are those of ``Teacher.load``."""

    def loaded(**keywords):
        load.keywords = keywords
        return MADE

    def load(stage, adapt):
        return stage.load(small_list, small_federation, adapt=adapt, adapter=tmp_path / "a.safetensors")

    monkeypatch.setattr(adapters, "read_header", lambda path: SimpleNamespace(adapt=Adapt.LORA))
    monkeypatch.setattr("samfed_monai.networks.sam.teacher.Teacher.load", loaded)
    monkeypatch.setattr(TeacherStage, "checkpoint", lambda self: tmp_path / "sam.pt")
    (tmp_path / "a.safetensors").write_bytes(b"adapter")
    return load


def test_adapt_kind_is_taken_from_header_or_bundle(load, tmp_path):
    given = stage(tmp_path)
    assert load(given, "decoder") is MADE
    assert (given.about(MADE, "decoder")["adapt"], given.file) == ("lora", tmp_path / "a.safetensors")
    assert stage(tmp_path).about(MADE, "decoder")["adapt"] == "decoder"


def test_unadapted_sam_ignores_given_adapter(load, tmp_path):
    plain = stage(tmp_path)
    load(plain, "none")
    assert (load.keywords["adapter"], plain.file) == (None, None)
    assert plain.about(MADE, "none")["adapt"] == "none"


@pytest.mark.parametrize(("adapter", "dice"), [(b"adapter", {"held_out": 0.7, "a": 0.8}), (b"another", None)])
def test_fit_dice_is_reported_only_for_matching_adapter(load, tmp_path, adapter, dice):
    fitted = {"after": {"held_out": 0.7, "a": 0.8}, "epoch": 3}
    write_json(tmp_path / "a.fit.json", fitted | {"sha256": sha256_bytes(adapter)})
    given = stage(tmp_path)
    load(given, "lora")
    about = given.about(MADE, "lora")
    assert (about.get("after"), "epoch" in about) == (dice, False)


def test_fit_of_same_public_images_is_reused_for_other_list(tmp_path, monkeypatch, small_list):
    given = []

    class Workflow:
        def __init__(self, **overrides):
            given.append(overrides.get("fit#datalist_hash"))

        initialize = run = finalize = lambda self: None

    monkeypatch.setattr("samfed_monai.config.monai_parser.ConfigWorkflow", Workflow)
    monkeypatch.setattr(adapters, "read_header", lambda path: SimpleNamespace(fit={"datalist_hash": "another list's"}))
    own, output = stage(tmp_path), tmp_path / "a.safetensors"
    for _ in range(2):
        own._run(own.config, small_list, tmp_path, checkpoint=tmp_path / "sam.pt", output=output)
        output.touch()
    assert given == [None, "another list's"]


@pytest.fixture
def fit(tmp_path, monkeypatch, small_list, small_federation):
    """Fits an adapter of a list with some overrides, and returns its name; ``fit.runs`` are those that were made."""
    (tmp_path / "sam.pt").write_bytes(b"sam")

    def run(self, config, datalist, data_root, *, checkpoint, output):
        output.write_bytes(b"adapter")
        write_json(output.with_suffix(".fit.json"), {"after": {"a": 0.8}, "sha256": sha256_bytes(b"adapter")})
        fit.runs.append(output.name)

    def fit(datalist=small_list, **overrides):
        checkpoint = tmp_path / "sam.pt"
        return stage(tmp_path, **overrides)._fit(datalist, small_federation, adapt="lora", checkpoint=checkpoint).name

    monkeypatch.setattr(TeacherStage, "_run", run)
    fit.runs = []
    return fit


@pytest.mark.parametrize("damage", ["the record is not written yet", "another adapter"])
def test_adapter_without_matching_record_is_checked_by_fit(fit, tmp_path, damage):
    [adapter] = (tmp_path / "teacher").glob(fit())
    adapter.write_bytes(b"foreign") if "another" in damage else adapter.with_suffix(".fit.json").unlink()
    assert [fit() for _ in range(2)] == [adapter.name] * 2
    assert fit.runs == [adapter.name] * 2


def test_usage_options_keep_adapter_name(fit):
    first = fit()
    assert [fit(**one) for one in ({"views": 8}, {"score": False})] == [first] * 2
    assert fit.runs == [first]
    assert fit(evaluate_on="test") == first  # the finished fit is examined, which costs no second one
    assert fit.runs == [first, first]


def test_rank_threshold_groups_and_limit_change_adapter_name(fit, small_list):
    grouped = replace(small_list, public=[replace(item, group="video 1") for item in small_list.public])
    names = [fit(replace(small_list, mask_threshold=threshold)) for threshold in (16, 200)]
    names += [fit(**one) for one in ({}, {"rank": 8}, {"public_limit": 8}, {"public_limit": 2})]
    assert len({*names, fit(grouped)}) == 7


def test_score_option_disables_teacher_scores(tmp_path):
    plain, off, on = stage(tmp_path), stage(tmp_path, score=False), stage(tmp_path, score=True)
    assert (off.scored, on.scored) == ((), ("test",))
    assert [each.about(MADE, "lora").get("score") for each in (off, on)] == [False, None]
    assert off.content() == {**on.content(), "score": False}
    assert plain.content() == on.content()
    assert plain.content()["fit"]["size"] == "@size"
    with pytest.raises(Refused, match="teacher -> score: expected true or false, found 'test'"):
        stage(tmp_path, score="test").dry_run("lora")


@pytest.mark.parametrize("limit", [1, 0, 2.5])
def test_invalid_public_limit_is_refused(tmp_path, limit):
    few = stage(tmp_path, public_limit=limit)
    expected = rf"teacher\.json -> public_limit: expected a number of images >= 2, or null, found {limit}; null uses"
    with pytest.raises(Refused, match=expected):
        few.dry_run("lora")
    few.dry_run("off")  # no teacher, nothing to refuse
    stage(tmp_path, public_limit=8).dry_run("lora")


def test_single_writer_creates_file_once(tmp_path):
    path, found = tmp_path / "deep" / "thing", []

    def make():
        with single_writer(path) as exists:
            found.append(exists)
            if not exists:
                time.sleep(0.1)
                path.write_text("ready")

    makers = [threading.Thread(target=make) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert found == [False, True, True]


SMALL = {"size": 64, "views": 4}


@pytest.fixture(scope="module")
def here(three_sites, finished, tmp_path_factory) -> tuple[FederatedJob, dict[str, Any]]:
    """A job of one process whose masks the model of ``finished`` made, and its results."""
    made = second(three_sites, tmp_path_factory.mktemp("here") / "b", finished, unseen=["site-3"])
    return made, made.run()


def teacher_of(made: FederatedJob) -> StudentTeacher:
    run = Run(made.plan, made.paths)
    return StudentTeacher.load(run.teacher.store(run.student), run.participants.config, run.teacher)


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
def test_student_teacher_mask_is_mean_over_views(views, left):
    teacher = StudentTeacher(Left(), weights_sha256="a" * 64, image_size=16, size=32, views=views, bf16=False)
    masks = teacher.probabilities(torch.zeros(1, 3, 40, 80))
    assert masks.shape == (1, 1, 4, 8), "the longer side is 32 / 4, the aspect is the image's"
    assert torch.allclose(masks[0, 0, :, 0], torch.full((4,), left), atol=1e-6)
    assert torch.allclose(masks[0, 0, :, -1], torch.full((4,), 1 - left), atol=1e-6)
    other = StudentTeacher(Left(), weights_sha256="b" * 64, image_size=16, size=32, views=views)
    assert teacher.sha256 == canonical_hash({"student": "a" * 64, "size": 32, "views": views}) != other.sha256


def test_student_teacher_loads_frozen_training_network(small_federation, finished, tmp_path):
    teacher = teacher_of(second(small_federation, tmp_path / "b", finished))
    assert (teacher.image_size, teacher.size, teacher.views) == (32, 64, 4)
    assert not any(each.requires_grad for each in teacher.parameters())
    assert same(model_of(finished), teacher.network.state_dict())
    other = {**CLIENT, "network_name": "flexible_unet_resnet18"}
    teacher = teacher_of(second(small_federation, tmp_path / "b", finished, train=other))
    assert type(teacher.network).__name__ == "BasicUNet", "a network of another kind can make the masks"


def test_sites_store_student_masks_and_train_without_sam(three_sites, here):
    made, results = here
    folder, teacher = made.paths.output_dir, teacher_of(made)
    assert validate_results(results) == []
    assert {name: results["teacher"][name] for name in ("model", "size", "views")} == {"model": "first", **SMALL}
    assert results["teacher"]["average"]["test"]["n"] == 4, "its own row, by the masks of the sites' test images"
    assert results["hashes"]["teacher"] == teacher.sha256
    student = Run(made.plan, made.paths).student
    assert read_json(folder / "run.json")["hashes"]["masks_from"] == sha256_bytes(student)
    assert "sam" not in results["hashes"]
    datalist = DataList.load(three_sites / "list.json")
    store = SoftMaskStore(folder / "cache" / "soft_masks" / "site-1", teacher_sha256=teacher.sha256)
    assert len(store) == 4 + 2, "unlabelled and test images"
    for record in load_records(datalist, three_sites, split="unlabelled", site="site-1"):
        wanted = teacher.probabilities(read_image_tensor(record).float() / 255)[0]
        stored = store.get(record["image_sha256"])
        assert stored.shape == wanted.shape == (1, 16, 16)
        assert float((stored - wanted).abs().max()) <= 1 / 510 + 1e-6
    with pytest.raises(Refused, match=r"hashes#masks_from: expected '.*', as in run.json, found '"):
        second(three_sites, folder, folder, unseen=["site-3"]).run()


def test_wire_run_gives_same_masks_and_model(three_sites, finished, here, tmp_path):
    homes = Homes(three_sites, tmp_path)
    settings = {"rounds": 1, "warm_start_steps": 0, "variant": "samfed", "teacher": SMALL, "masks_from": str(finished)}
    there = at_server(three_sites, homes, tmp_path / "server" / "run", **settings).run(homes)
    for name in ("teacher", "model_best"):
        assert there["hashes"][name] == here[1]["hashes"][name]
    assert homes.nodes["site-1"].teacher.sha256 == there["hashes"]["teacher"]
    assert ("prepare", "site-1") in homes.requests


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"train": {**CLIENT, "image_size": 64}}, r"masks_from -> image_size: expected 32, as .* trained, found 64"),
        ({"variant": "no_sam"}, r"masks_from: expected null, as this variant uses no soft masks"),
    ],
)
def test_mismatched_mask_source_is_refused_before_run(small_federation, finished, tmp_path, options, found):
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
        ({"network_name": "flexible_unet_resnet18"}, r"expected all tensors of this network, found \d+ missing"),
    ],
)
def test_incompatible_mask_source_file_is_refused(small_federation, finished, tmp_path, header, found):
    save_tensors(tmp_path / "other.safetensors", model_of(finished), header)
    with pytest.raises(Refused, match=found):
        second(small_federation, tmp_path / "b", tmp_path / "other.safetensors").run()


def test_plain_weights_file_uses_network_of_run(small_federation, finished, tmp_path):
    weights = model_of(finished)
    save_tensors(tmp_path / "plain.safetensors", weights)
    run = Run((made := second(small_federation, tmp_path / "b", tmp_path / "plain.safetensors")).plan, made.paths)
    sent = run.teacher.store(pack_model(tmp_path / "plain.safetensors", run.participants))
    assert settings_of(sent) == {"network_name": "basic_unet", "image_size": 32}
    assert same(safe_load(sent), weights)


def test_site_refuses_invalid_network_file(three_sites, finished, tmp_path):
    homes = Homes(three_sites, tmp_path)
    made = at_server(three_sites, homes, tmp_path / "server" / "run", variant="samfed", teacher=SMALL)
    run = Run(made.plan, made.paths)
    site = homes.node("site-1", run.participants.resolve(made.plan)).teacher
    content = pack_model(finished, run.participants)
    for bad, found in ((b"noise", "a file without network_name and image_size"), (content[:-9], "not fully covered")):
        message = sent(bad)
        with pytest.raises(MessageRefused, match=found):
            site.take(message)


def sent(content: bytes) -> Message:
    tensors = {"adapter": torch.frombuffer(bytearray(content), dtype=torch.uint8)}
    return Message(Kind.ADAPTER, "site-1", 0, 2, tensors=tensors, extra={"adapter": sha256_bytes(content)})
