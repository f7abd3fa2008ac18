"""Tests of what a run says of its teacher."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.federation.stages.teacher import TeacherStage
from samfed_monai.networks.sam import adapter as adapters
from samfed_monai.networks.sam.adapter import Adapt


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
