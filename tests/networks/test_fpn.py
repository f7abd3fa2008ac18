"""``mobile_sam_fpn`` and ``lite0_fpn``: what they start from, what stays as it is, what they take."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.networks import build_sam, client_network, starts_from, takes_teacher
from samfed_monai.networks.fpn import FPNDecoder
from samfed_monai.networks.input_size import feature_width, size_advice, size_problems
from samfed_monai.networks.sam.adapter import Adapt, Adapter, prepare, save_adapter

SIZE = 64


@pytest.fixture(scope="module")
def adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose low-rank updates have moved."""
    torch.manual_seed(1)
    sam = build_sam("vit_t", checkpoint, SIZE)
    for parameter in prepare(sam, Adapt.LORA, 2)["lora"]:
        nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_adapter(path, sam, Adapter("vit_t", sha256_file(checkpoint), Adapt.LORA, 2, SIZE, "0" * 64))
    return path


def test_light_networks_are_light():
    millions = {name: sum(p.numel() for p in client_network(name).parameters()) / 1e6 for name in SIZES}
    assert millions["mobile_sam_fpn"] <= 6
    assert millions["lite0_fpn"] < 2


SIZES = {"mobile_sam_fpn": (64, 96), "lite0_fpn": (48, 64)}


@pytest.mark.parametrize("name", SIZES)
def test_statistics_of_batch_norms_stay_and_an_image_does_not_feel_its_neighbours(name):
    torch.manual_seed(0)
    network = client_network(name).train()
    before = {key: value.clone() for key, value in network.state_dict().items() if "running_" in key}
    images = torch.rand(2, 3, *SIZES[name])
    together = network(images)
    alone = network(images[:1])
    assert before
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items() if key in before)
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)  # one kernel or another: rounding


def test_the_trunk_is_the_checkpoints(checkpoint):
    network = client_network("mobile_sam_fpn", weights=checkpoint)
    trunk = build_sam("vit_t", checkpoint, SIZE).image_encoder.trunk.state_dict()
    assert network.encoder.state_dict().keys() == trunk.keys()
    assert all(torch.equal(value, trunk[key]) for key, value in network.encoder.state_dict().items())


def test_of_an_adapter_it_is_the_teachers_with_lora_merged(checkpoint, adapter, monkeypatch):
    monkeypatch.setattr("samfed_monai.networks.weights.find_checkpoint", lambda *_: checkpoint)
    plain = client_network("mobile_sam_fpn", weights=checkpoint).encoder
    merged = client_network("mobile_sam_fpn", weights=adapter).encoder
    changed = {key for key, value in merged.state_dict().items() if not torch.equal(value, plain.state_dict()[key])}
    assert changed == {key for key in merged.state_dict() if key.endswith("attn.qkv.weight")}


def test_an_adapter_of_another_sam_is_refused(adapter, monkeypatch):
    header = Adapter("vit_b", "0" * 64, Adapt.LORA, 2, SIZE, "0" * 64)
    monkeypatch.setattr("samfed_monai.networks.fpn.read_header", lambda _: header)
    message = r"encoder_weights: expected an adapter of vit_t \(MobileSAM\), found .* of a vit_b; fit the teacher with"
    with pytest.raises(Refused, match=message):
        client_network("mobile_sam_fpn", weights=adapter)


def test_weights_in_eval_mode_are_those_that_were_loaded_last(checkpoint):
    torch.manual_seed(0)
    network, other = (
        client_network("mobile_sam_fpn").eval(),
        client_network("mobile_sam_fpn", weights=checkpoint).eval(),
    )
    for name, parameter in other.named_parameters():
        if name.endswith("attention_biases"):
            nn.init.normal_(parameter)
    images = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        network(images)  # gathers attention biases
        network.load_state_dict(other.state_dict())
        assert torch.equal(network(images), other(images))


def test_leading_parts_can_be_frozen(checkpoint):
    network = client_network("mobile_sam_fpn", frozen_stages=2)
    frozen = {name.split(".")[1] + name.split(".")[2] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embedconv1", "patch_embedconv2", "stages0"}
    with pytest.raises(Refused, match=r"network_def#frozen_stages: expected 0, 1 or 2, found 5"):
        client_network("mobile_sam_fpn", frozen_stages=5)


def test_it_takes_rgb_alone():
    with pytest.raises(Refused, match=r"in_channels: expected 3: MobileSAM's trunk takes RGB, found 1"):
        client_network("mobile_sam_fpn", in_channels=1)


def test_a_truncated_encoder_takes_the_weights_of_the_whole_one(tmp_path):
    whole = client_network("deeplabv3plus_efficientnet_lite0")
    save_file(whole.encoder.state_dict(), tmp_path / "lite0.safetensors")
    network = client_network("lite0_fpn", weights=tmp_path / "lite0.safetensors")
    state = whole.encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.encoder.state_dict().items())
    assert {m.eps for m in network.encoder.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def test_weights_that_are_not_loaded_are_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    assert client_network("mobile_sam_fpn", weights="teacher", load=False).pretrained == "encoder"
    with pytest.raises(Refused, match="samfed weights mobile_sam"):
        client_network("mobile_sam_fpn", weights="teacher")


@pytest.mark.parametrize(
    ("network", "weights", "start"),
    [
        ("mobile_sam_fpn", "pretrained", "mobile_sam"),
        ("mobile_sam_fpn", "teacher", "mobile_sam"),
        ("lite0_fpn", "teacher", "efficientnet_lite0"),
        ("deeplabv3plus_efficientnet_lite0", "pretrained", "efficientnet_lite0"),
        ("basic_unet", "teacher", None),
        ("mobile_sam_fpn", None, None),
        ("mobile_sam_fpn", "mine.pt", "mine.pt"),
    ],
)
def test_what_a_network_starts_from(network, weights, start):
    assert starts_from(network, weights) == start


def test_only_a_trunk_of_mobile_sam_can_be_the_teachers():
    assert takes_teacher("mobile_sam_fpn")
    assert not takes_teacher("lite0_fpn")
    assert not takes_teacher("sam_vit_t")


@pytest.mark.parametrize("name", SIZES)
def test_their_head_and_encoder_are_where_methods_look(name):
    network = client_network(name)
    assert feature_width(network) == network.segmentation_head.in_channels
    assert [f.shape[1] for f in network.encoder(torch.rand(1, 3, 64, 64))] == [
        lateral.in_channels for lateral in network.decoder.lateral
    ]


def test_a_size_that_pads_windows_is_told_with_the_nearest_that_fit():
    network = client_network("mobile_sam_fpn")
    assert size_problems(network, height=256) == []
    assert size_advice(network, 224) == size_advice(network, 448) == []
    (told,) = size_advice(network, 256)
    assert told == "image_size 256 pads the windows of MobileSamFPN, which costs time; 224 or 448 px fit exactly"
    assert "224 px fit" in size_advice(network, 96)[0]
    (problem,) = size_problems(network, height=100)
    assert problem.hint == "set image_size to 96 or 128"


@given(widths=st.lists(st.integers(1, 5), min_size=1, max_size=4), side=st.sampled_from([8, 12, 16]))
def test_a_pyramid_has_the_size_of_its_finest_level(widths, side):
    decoder = FPNDecoder(widths, width=8)
    features = [torch.rand(1, width, max(1, side // 2**level), side) for level, width in enumerate(widths)]
    assert decoder(features).shape == (1, 8, side, side)


def test_a_pyramid_adds_coarse_levels_to_fine_ones():
    decoder = FPNDecoder((1, 1), width=8)
    decoder.smooth = nn.Identity()
    for lateral in decoder.lateral:
        nn.init.ones_(lateral.weight)
        nn.init.zeros_(lateral.bias)
    out = decoder([torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 1, 1), 4.0)])
    assert torch.equal(out, torch.full((1, 8, 2, 2), 7.0))


def test_a_copy_computes_the_same():
    torch.manual_seed(0)
    network, images = client_network("mobile_sam_fpn").eval(), torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(network)(images), network(images))
