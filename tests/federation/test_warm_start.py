"""The network before round 0: what it starts from, and when its training on the public set stops."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import safe_load, sha256_bytes, sha256_file
from samfed_monai.data import DataList
from samfed_monai.federation import FederatedJob
from samfed_monai.federation import start as stage
from samfed_monai.federation.run import Run
from samfed_monai.federation.start import warm_start
from samfed_monai.federation.workflow import client_config
from samfed_monai.networks import build_sam, client_network
from samfed_monai.networks.sam.adapter import Adapt, Adapter, prepare, save_adapter
from tests.federation.test_job import CLIENT, job
from tests.federation.toys import same
from tests.methods import pick
from tests.networks.fakes import fake_checkpoint

SMALL = {**CLIENT, "encoder_weights": None}


def config(federation: Path, **overrides):
    paths = {"datalist": str(federation / "list.json"), "data_root": str(federation)}
    return client_config(find_bundle("samfed_skin"), "dp_only", {**SMALL, **paths, **overrides})


@pytest.fixture
def warmed(small_list, small_federation, tmp_path):
    """A warm start with seed 0, of the small list where no other is given: its weights and its key."""

    def start(cache: str = "cache", *, datalist=small_list, **options):
        return warm_start(config(small_federation), datalist=datalist, seed=0, cache_dir=tmp_path / cache, **options)

    return start


def test_warm_start_keeps_weights_of_last_good_evaluation(warmed, monkeypatch):
    def look(steps: int, *good: bool):
        looks = iter(good)
        monkeypatch.setattr(stage, "within_one_standard_error", lambda scores, best: next(looks))
        return warmed(str(good), steps=steps, held_out=0.25)[0]

    early = look(6, True, True, True, False, False, False)
    assert not same(early, look(6, True, True, True, True, True, True))
    assert same(early, look(3, True, True, True)), "the third step of six"


def test_cached_weights_of_another_warm_start_are_not_used(warmed, tmp_path, caplog):
    caplog.set_level("INFO")
    (known, key), (other, its) = warmed(steps=2), warmed(steps=1)
    cache = tmp_path / "cache" / "warm_start"
    shutil.copy(cache / f"{its[:16]}.safetensors", cache / f"{key[:16]}.safetensors")
    assert same(warmed(steps=2)[0], known)
    assert "reusing" not in caplog.text
    assert same(warmed(steps=1)[0], other)
    assert f"warm start: reusing {its[:16]}.safetensors" in caplog.text


@pytest.mark.parametrize("damage", [lambda content: content[:-9] + bytes(9), lambda content: content[:-9]])
def test_fault_52_damaged_warm_start_is_made_again(warmed, tmp_path, caplog, damage):
    known, key = warmed(steps=1)
    file = tmp_path / "cache" / "warm_start" / f"{key[:16]}.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert same(warmed(steps=1)[0], known)
    assert f"warm start: {file.name} is damaged and made again" in caplog.messages
    assert same(safe_load(file), known)


def test_held_out_images_are_not_trained_on(warmed, small_list, tmp_path):
    _, key = warmed(steps=1, held_out=0.25)
    left = DataList.load(tmp_path / "cache" / "warm_start" / f"{key[:16]}.datalist.json")
    assert len(left.public) == 3
    assert {item.sha256 for item in left.public} < {item.sha256 for item in small_list.public}


def test_warm_start_key_depends_on_held_out_share_and_groups(warmed, small_list, caplog):
    public = [replace(item, group=str(place // 2)) for place, item in enumerate(small_list.public)]
    grouped = replace(small_list, public=public)
    whole, part = warmed(steps=1)[1], warmed(steps=1, held_out=0.25)[1]
    caplog.set_level("INFO")
    caplog.clear()
    untrained = warmed(steps=0)[1]
    assert "warm start" not in caplog.text, "there is none"
    assert len({whole, part, untrained, warmed(steps=1, held_out=0.25, datalist=grouped)[1]}) == 4
    assert warmed(steps=1, datalist=grouped)[1] == whole, "all images are trained on"
    assert warmed(steps=0, held_out=0.25, datalist=grouped)[1] == untrained, "without steps nothing is held out"


def test_encoder_file_is_identified_by_content(small_federation, tmp_path):
    path = tmp_path / "encoder.pt"
    found = []
    for content in (b"one", b"another"):
        path.write_bytes(content)
        found.append(stage._encoder_hash(config(small_federation, encoder_weights=str(path))))
    assert found == [{"encoder": sha256_bytes(content)} for content in (b"one", b"another")]
    assert stage._encoder_hash(config(small_federation)) == {}
    lite = {"network_name": "lite0_fpn", "encoder_weights": "pretrained"}
    assert stage._encoder_hash(config(small_federation, **lite)) == {}, "named weights are checked by their hash"


def test_single_group_public_set_uses_all_steps(warmed, small_list, caplog):
    whole, _ = warmed("whole", steps=2)
    one = replace(small_list, public=[replace(item, group="one") for item in small_list.public])
    caplog.set_level("INFO")
    assert same(warmed("one", steps=2, held_out=0.25, datalist=one)[0], whole)
    assert "one group, so none is held out" in caplog.text


@pytest.fixture
def adapter(tmp_path, monkeypatch) -> Path:
    """An adapter whose low-rank updates have moved, and its random MobileSAM where networks look for it."""
    (tmp_path / "weights").mkdir()
    checkpoint = fake_checkpoint(tmp_path / "weights" / "mobile_sam.pt")
    monkeypatch.setenv("SAMFED_WEIGHTS", str(checkpoint.parent))
    torch.manual_seed(1)
    sam = build_sam("vit_t", checkpoint, 64)
    for parameter in prepare(sam, Adapt.LORA, 2)["lora"]:
        nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, sam, Adapter("vit_t", sha256_file(checkpoint), Adapt.LORA, 2, 64, "0" * 64))
    return path


def started(made: FederatedJob) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The weights after a run's warm start, without its rounds, and what run.json has of what they begin with."""
    run = Run(made.plan, made.paths)
    run._check()
    own = {name: value for name, value in run._settings().items() if name == "start_teacher"}
    return run._warm_weights("mobile_sam_fpn"), run._weight_hashes() | own


FPN = {**CLIENT, "image_size": 64, "network_name": "mobile_sam_fpn", "local_steps": 1}


@pytest.mark.parametrize(
    ("variant", "own", "given"),
    pick(
        [
            ("hssf", {"client_algorithm#mask_size": 8, "mixed_networks": None, "public_steps": 1}, True),
            ("no_sam", {"encoder_weights": "pretrained"}, False),
        ]
    ),
)
def test_start_uses_adapted_or_original_sam_trunk(variant, own, given, adapter, small_federation, tmp_path):
    options = {"variant": variant, "warm_start_steps": 0, "adapter": adapter, "train": {**FPN, **own}}
    found, hashes = started(job(small_federation, tmp_path / "run", teacher={"rank": 3}, **options))
    trunk = client_network("mobile_sam_fpn", weights=adapter if given else "mobile_sam").encoder.state_dict()
    assert all(torch.equal(found[f"encoder.{name}"], value) for name, value in trunk.items())
    assert hashes.get("adapter") == (sha256_file(adapter) if given else None)
    assert hashes.get("start_teacher") == ({"rank": 3} if given else None)


def test_no_teacher_is_adapted_without_public_images(adapter, small_federation, tmp_path, caplog):
    replace(DataList.load(small_federation / "list.json"), public=[]).save(tmp_path / "list.json")
    options = {"variant": "supervised", "rounds": 1, "datalist": tmp_path / "list.json", "train": FPN}
    caplog.set_level("INFO")
    found, hashes = started(job(small_federation, tmp_path / "run", **options))
    trunk = client_network("mobile_sam_fpn", weights="mobile_sam").encoder.state_dict()
    assert all(torch.equal(found[f"encoder.{name}"], value) for name, value in trunk.items())
    assert "no public images to adapt a teacher to" in caplog.text
    assert hashes == {}


def test_fault_28_missing_weights_are_refused_before_run(small_federation, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "none"))
    client = {**CLIENT, "image_size": 64, "encoder_weights": "pretrained"}
    options = {"variant": "hssf", "train": {**client, "mixed_networks": ["mobile_sam_fpn", "lite0_fpn"]}}
    with pytest.raises(Refused) as refused:
        job(small_federation, tmp_path / "run", **options).run()
    for name in ("mobile_sam", "efficientnet_lite0"):
        assert f"samfed weights {name}" in str(refused.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(Refused, match="samfed weights mobile_sam"):  # of the teacher
        job(small_federation, tmp_path / "run", variant="samfed").run()
    assert not (tmp_path / "run" / "rounds").exists()


def test_weights_of_other_network_are_refused_before_run(small_federation, tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    own = {"network_name": "deeplabv3plus_resnet18", "encoder_weights": str(tmp_path / "other.safetensors")}
    with pytest.raises(Refused, match=r"other\.safetensors -> .*: expected"):
        job(small_federation, tmp_path / "run", train={**CLIENT, **own}).run()
    assert not (tmp_path / "run").exists()
