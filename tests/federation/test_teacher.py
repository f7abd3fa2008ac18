"""The teacher of a run: given, fitted before or now; the lock on what several runs share."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_bytes, write_json
from samfed_monai.federation.teacher import TeacherStage, single_writer
from samfed_monai.networks.sam import adapter as adapters
from samfed_monai.networks.sam.adapter import Adapt
from tests.forking import start


def test_a_given_adapter_is_called_what_its_header_says(tmp_path, monkeypatch, small_list, small_federation):
    made = SimpleNamespace(size=512, views=1)
    monkeypatch.setattr(adapters, "read_header", lambda path: SimpleNamespace(adapt=Adapt.DECODER))
    monkeypatch.setattr("samfed_monai.networks.sam.teacher.Teacher.load", lambda **_: made)
    monkeypatch.setattr(TeacherStage, "checkpoint", lambda self: tmp_path / "sam.pt")
    stage = TeacherStage(find_bundle("samfed_skin"), {}, tmp_path)
    teacher = stage.load(small_list, small_federation, adapt="lora", adapter=tmp_path / "a.safetensors")
    assert teacher is made
    assert stage.about(teacher, "lora")["adapt"] == "decoder"


@pytest.mark.parametrize("adapt", ["lora", "none"])
def test_without_one_it_is_what_the_bundle_asked_for(adapt, tmp_path):
    stage = TeacherStage(find_bundle("samfed_skin"), {}, tmp_path)
    assert stage.about(SimpleNamespace(size=512, views=1), adapt)["adapt"] == adapt


def test_sam_as_it_comes_leaves_a_given_adapter_aside(loaded, tmp_path, small_list, small_federation):
    stage = TeacherStage(find_bundle("samfed_skin"), {}, tmp_path)
    teacher = stage.load(small_list, small_federation, adapt="none", adapter=tmp_path / "a.safetensors")
    assert (loaded["adapter"], stage.file) == (None, None)
    assert stage.about(teacher, "none")["adapt"] == "none"


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Keywords that ``Teacher.load`` was called with, and a run of the stage with a given adapter."""
    keywords: dict = {}

    def load(**given):
        keywords.update(given)
        return SimpleNamespace(size=512, views=1)

    monkeypatch.setattr(adapters, "read_header", lambda path: SimpleNamespace(adapt=Adapt.LORA))
    monkeypatch.setattr("samfed_monai.networks.sam.teacher.Teacher.load", load)
    monkeypatch.setattr(TeacherStage, "checkpoint", lambda self: tmp_path / "sam.pt")
    (tmp_path / "a.safetensors").write_bytes(b"adapter")
    return keywords


def test_dice_comes_with_a_given_adapter(loaded, tmp_path, small_list, small_federation):
    fitted = {"after": {"held_out": 0.7, "a": 0.8}, "epoch": 3}
    for sha256, told in ((sha256_bytes(b"adapter"), True), (sha256_bytes(b"another"), False)):
        write_json(tmp_path / "a.fit.json", fitted | {"sha256": sha256})
        stage = TeacherStage(find_bundle("samfed_skin"), {}, tmp_path)
        teacher = stage.load(small_list, small_federation, adapt="lora", adapter=tmp_path / "a.safetensors")
        about = stage.about(teacher, "lora")
        assert ("after" in about) is told
        assert not told or about["after"]["a"] == 0.8
        assert "epoch" not in about


def test_a_fit_of_the_same_public_images_is_not_repeated_for_another_list(tmp_path, monkeypatch, small_list):
    given = []

    class Workflow:
        def __init__(self, **overrides):
            given.append(overrides.get("fit#datalist_hash"))

        initialize = run = finalize = lambda self: None

    monkeypatch.setattr("samfed_monai.config.monai_parser.ConfigWorkflow", Workflow)
    monkeypatch.setattr(adapters, "read_header", lambda path: SimpleNamespace(fit={"datalist_hash": "another list's"}))
    stage, output = TeacherStage(find_bundle("samfed_skin"), {}, tmp_path), tmp_path / "a.safetensors"
    for _ in range(2):
        stage._run(stage.config, small_list, tmp_path, checkpoint=tmp_path / "sam.pt", output=output)
        output.touch()
    assert given == [None, "another list's"]


def test_how_an_adapter_is_used_does_not_make_it_another_one(tmp_path, monkeypatch, small_list, small_federation):
    (tmp_path / "sam.pt").write_bytes(b"sam")
    runs = []

    def run(self, config, datalist, data_root, *, checkpoint, output):
        output.parent.mkdir(exist_ok=True)
        output.write_bytes(b"adapter")
        runs.append(output.name)

    monkeypatch.setattr(TeacherStage, "_run", run)

    def fit(**overrides):
        stage = TeacherStage(find_bundle("samfed_skin"), overrides, tmp_path)
        return stage._fit(small_list, small_federation, adapt="lora", checkpoint=tmp_path / "sam.pt").name

    first = fit()
    assert [fit(**one) for one in ({"views": 8}, {"score": False})] == [first] * 2
    assert runs == [first]
    assert fit(rank=8) != first
    assert fit(evaluate_on="test") == first  # the finished fit is examined, which costs no second one
    assert runs == [first, fit(rank=8), first]


def test_whether_it_is_scored_is_no_part_of_its_recipe(tmp_path):
    plain = TeacherStage(find_bundle("samfed_skin"), {}, tmp_path).content()
    assert plain["fit"]["size"] == "@size"
    assert "score" not in plain


def test_the_teachers_row_can_be_left_out(tmp_path):
    off, on = (TeacherStage(find_bundle("samfed_skin"), {"score": score}, tmp_path) for score in (False, True))
    assert (off.scored, on.scored) == ((), ("test",))
    about = [stage.about(SimpleNamespace(size=512, views=1), "lora").get("score") for stage in (off, on)]
    assert about == [False, None]
    assert off.content() == {**on.content(), "score": False}
    with pytest.raises(Refused, match="teacher -> score: expected true or false, found 'test'"):
        TeacherStage(find_bundle("samfed_skin"), {"score": "test"}, tmp_path).dry_run("lora")


def test_masks_read_otherwise_or_other_groups_make_another_adapter(tmp_path, monkeypatch, small_list, small_federation):
    (tmp_path / "sam.pt").write_bytes(b"sam")
    monkeypatch.setattr(TeacherStage, "_run", lambda *_, output, **__: output.parent.mkdir(exist_ok=True))
    stage = TeacherStage(find_bundle("samfed_skin"), {}, tmp_path)

    def fit(datalist):
        return stage._fit(datalist, small_federation, adapt="lora", checkpoint=tmp_path / "sam.pt").name

    grouped = replace(small_list, public=[replace(item, group="video 1") for item in small_list.public])
    names = [fit(small_list), fit(replace(small_list, mask_threshold=16)), fit(replace(small_list, mask_threshold=200))]
    assert len({*names, fit(grouped)}) == 4


@pytest.mark.parametrize("limit", [1, 0, 2.5])
def test_too_few_public_images_are_refused_before_any_work(tmp_path, limit):
    stage = TeacherStage(find_bundle("samfed_skin"), {"public_limit": limit}, tmp_path)
    with pytest.raises(Refused, match=r"teacher\.json -> public_limit: expected a number of images >= 2, or null"):
        stage.dry_run("lora")
    stage.dry_run("off")  # no teacher, nothing to refuse
    TeacherStage(find_bundle("samfed_skin"), {"public_limit": 8}, tmp_path).dry_run("lora")


def test_a_teacher_of_fewer_public_images_is_another_one(monkeypatch, tmp_path, small_list, small_federation):
    monkeypatch.setattr(TeacherStage, "_run", lambda self, *args, output, **more: output.write_bytes(b""))
    monkeypatch.setattr("samfed_monai.federation.teacher._recorded", lambda path: {})
    (tmp_path / "sam.pt").write_bytes(b"sam")
    fitted = {
        limit: TeacherStage(find_bundle("samfed_skin"), {"public_limit": limit}, tmp_path)._fit(
            small_list, small_federation, adapt="lora", checkpoint=tmp_path / "sam.pt"
        )
        for limit in (None, 8, 2)
    }
    assert len(set(fitted.values())) == 3


def make_slowly(path: Path, journal: Path) -> None:
    with single_writer(path) as exists:
        if not exists:
            with journal.open("a") as stream:
                stream.write("made\n")
            time.sleep(0.3)
            path.write_text("ready")


def test_it_says_whether_the_thing_exists(tmp_path):
    path = tmp_path / "deep" / "thing"
    with single_writer(path) as exists:
        assert not exists
        path.write_text("ready")
    with single_writer(path) as exists:
        assert exists


def test_of_three_processes_one_makes_it_and_the_others_wait(tmp_path):
    path, journal = tmp_path / "thing", tmp_path / "journal"
    makers = [start(make_slowly, path, journal) for _ in range(3)]
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert journal.read_text() == "made\n"
