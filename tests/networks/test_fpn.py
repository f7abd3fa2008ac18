"""``mobile_sam_fpn`` and ``lite0_fpn``: starting weights, frozen parts, feature groups and refused arguments."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.networks import build_sam, client_network, starts_from, takes_teacher
from samfed_monai.networks.features import feature_width
from samfed_monai.networks.fpn import FeatureGroups, FoldedConvNorm, FPNDecoder, GroupAttention
from samfed_monai.networks.sam.adapter import Adapt, Adapter, prepare, save_adapter
from samfed_monai.privacy.allowed import allowed_weights

SIZE = 64


@pytest.fixture(scope="module")
def adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with low-rank updates that are not zero."""
    torch.manual_seed(1)
    sam = build_sam("vit_t", checkpoint, SIZE)
    for parameter in prepare(sam, Adapt.LORA, 2)["lora"]:
        nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_adapter(path, sam, Adapter("vit_t", sha256_file(checkpoint), Adapt.LORA, 2, SIZE, "0" * 64))
    return path


SIZES = {"mobile_sam_fpn": (64, 96), "lite0_fpn": (48, 64), "lite0_fpn_small": (32, 48)}
MILLIONS = {"mobile_sam_fpn": 5.2, "lite0_fpn": 0.8, "lite0_fpn_small": 0.28}


@pytest.mark.parametrize("name", SIZES)
def test_networks_are_small_with_frozen_batch_norms(name):
    torch.manual_seed(0)
    network = client_network(name).train()
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(MILLIONS[name], rel=0.1)
    assert feature_width(network) == network.segmentation_head.in_channels
    before = {key: value.clone() for key, value in network.state_dict().items() if "running_" in key}
    images = torch.rand(2, 3, *SIZES[name])
    together = network(images)
    alone = network(images[:1])
    assert before
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items() if key in before)
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)  # one kernel or another: rounding


def test_trunk_comes_from_checkpoint_or_merged_adapter(checkpoint, adapter, monkeypatch):
    monkeypatch.setattr("samfed_monai.networks.fpn.find_checkpoint", lambda *_: checkpoint)
    plain, merged = (client_network("mobile_sam_fpn", weights=x).encoder.state_dict() for x in (checkpoint, adapter))
    trunk = build_sam("vit_t", checkpoint, SIZE).image_encoder.trunk.state_dict()
    assert plain.keys() == merged.keys() == trunk.keys()
    assert all(torch.equal(value, trunk[key]) for key, value in plain.items())
    changed = {key for key, value in merged.items() if not torch.equal(value, plain[key])}
    assert changed == {key for key in merged if key.endswith("attn.qkv.weight")}


def test_adapter_of_other_sam_is_refused(adapter, monkeypatch):
    header = Adapter("vit_b", "0" * 64, Adapt.LORA, 2, SIZE, "0" * 64)
    monkeypatch.setattr("samfed_monai.networks.fpn.read_header", lambda _: header)
    message = r"encoder_weights: expected an adapter of vit_t \(MobileSAM\), found .* of vit_b; fit the teacher with"
    with pytest.raises(Refused, match=message):
        client_network("mobile_sam_fpn", weights=adapter)


def test_eval_mode_uses_last_loaded_weights(checkpoint):
    torch.manual_seed(0)
    network, other = (client_network("mobile_sam_fpn", weights=weights).eval() for weights in (None, checkpoint))
    for name, parameter in other.named_parameters():
        if name.endswith("attention_biases"):
            nn.init.normal_(parameter)
    images = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        network(images)  # gathers attention biases
        network.load_state_dict(other.state_dict())
        assert torch.equal(network(images), other(images))
        assert torch.equal(copy.deepcopy(network)(images), other(images)), "and those of a copy"


def test_folded_norm_matches_convolution_and_norm():
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=False).double(), nn.BatchNorm2d(8).double().eval()
    for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
        tensor.data.uniform_(0.5, 2)
    folded, x = FoldedConvNorm(conv, bn).train(), torch.rand(2, 6, 9, 9, dtype=torch.float64)
    bn.eval()
    assert folded.state_dict().keys() == nn.ModuleDict({"conv": conv, "bn": bn}).state_dict().keys()
    together, apart = folded(x), bn(conv(x))
    torch.testing.assert_close(together, apart)
    parameters = [conv.weight, bn.weight, bn.bias]
    gradients = [torch.autograd.grad(out.square().sum(), parameters) for out in (together, apart)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("weights", "stages", "parts"), [(None, None, 0), ("teacher", None, 3), ("teacher", 1, 2)])
def test_leading_parts_are_frozen_with_pretrained_weights(weights, stages, parts):
    network = client_network(weights=weights, frozen_stages=stages, load=False)
    first = tuple(f"encoder.{part}." for part in ("patch_embed.conv1", "patch_embed.conv2", "stages.0")[:parts])
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in network.named_parameters() if not name.startswith(first)}
    assert allowed_weights(network).learned == trained  # noise in what is not trained would never be undone


def slot_attention(attention: GroupAttention, x: np.ndarray) -> np.ndarray:
    """Slot attention of WS-SAM's public code, for one image (C, h, w), in numpy with loops over the groups."""
    w = {name: value.double().numpy() for name, value in attention.state_dict().items()}

    def linear(name, v):
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, v):
        v = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)
        return v * w[f"{name}.weight"] + w[f"{name}.bias"]

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    channels, height, width = x.shape
    grid = np.array([[i / (height - 1), j / (width - 1)] for i in range(height) for j in range(width)])
    grid = np.concatenate([grid, 1 - grid], axis=1)
    places = norm("before.0", x.reshape(channels, -1).T + linear("position", grid))
    places = norm("before.4", linear("before.3", np.maximum(linear("before.1", places), 0)))
    keys, values, groups = linear("key", places), linear("value", places), w["start"]
    for _ in range(3):
        score = linear("query", norm("norm", groups)) @ keys.T / np.sqrt(channels)
        share = np.exp(score) / np.exp(score).sum(0) + 1e-8
        given = (share / share.sum(1, keepdims=True) @ values) @ w["update.weight_ih"].T + w["update.bias_ih"]
        before = groups @ w["update.weight_hh"].T + w["update.bias_hh"]
        (r1, z1, n1), (r2, z2, n2) = (np.split(each, 3, axis=1) for each in (given, before))
        new, kept = np.tanh(n1 + sigmoid(r1 + r2) * n2), sigmoid(z1 + z2)
        groups = (1 - kept) * new + kept * groups
        groups = groups + linear("after.3", np.maximum(linear("after.1", norm("after.0", groups)), 0))
    spread = np.concatenate([group + linear("placed", grid) for group in groups], axis=1)
    return (spread @ w["join.weight"][:, :, 0, 0].T + w["join.bias"]).T.reshape(channels, height, width)


def test_feature_groups_match_public_code():
    torch.manual_seed(0)
    groups, features = FeatureGroups(6, [4, 2]).double(), torch.randn(2, 6, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        found = groups(features).numpy()
    first, second = (groups.mix[place].weight.detach().numpy()[:, :, 0, 0].T for place in (0, 2))
    for image, x in zip(found, features.numpy(), strict=True):
        fine = slot_attention(groups.fine, x)
        coarse = slot_attention(groups.coarse, fine + x)
        both = np.concatenate([fine, coarse]).reshape(12, -1)
        pooled = [np.maximum(each @ first, 0) @ second for each in (both.mean(1), both.max(1))]
        share = 1 / (1 + np.exp(-sum(pooled)))
        np.testing.assert_allclose(image, x + share * fine + (1 - share) * coarse, atol=1e-6)


@pytest.mark.parametrize("name", ["mobile_sam_fpn", "lite0_fpn"])
def test_feature_groups_only_add_parameters(name):
    torch.manual_seed(0)
    plain, network = client_network(name), client_network(name, feature_groups=[4, 2], frozen_stages=0)
    added = network.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() <= network.state_dict().keys()
    assert {key.split(".")[1] for key in added} == {"groups"}
    assert network.eval()(torch.rand(1, 3, 64, 32)).shape == (1, 1, 64, 32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lite0_fpn", {"feature_groups": [4]}, "#feature_groups: expected two whole numbers of 1 or more"),
        ("lite0_fpn", {"feature_groups": [4, 0]}, "#feature_groups: expected two whole numbers of 1 or more"),
        ("lite0_fpn", {"feature_groups": [4.0, 2]}, "#feature_groups: expected two whole numbers of 1 or more"),
        ("basic_unet", {"feature_groups": [4]}, "#feature_groups -> network_name: expected one of .*lite0_fpn.*found"),
        ("deeplabv3plus_resnet18", {"frozen_stages": 2}, ": expected arguments that deeplab.* 'frozen_stages'"),
        ("mobile_sam_fpn", {"in_channels": 1}, "#in_channels: expected 3: MobileSAM's trunk takes RGB, found 1"),
        ("mobile_sam_fpn", {"frozen_stages": 5}, r"#frozen_stages: expected one of \[0, 1, 2\], found 5"),
        ("lite0_fpn", {"stages": 3}, r"#stages: expected one of \[5, 4\], found 3"),
    ],
)
def test_unsupported_arguments_are_refused(name, options, message):
    with pytest.raises(Refused, match=f"network_def{message}"):
        client_network(name, **options)


@pytest.mark.parametrize(("name", "channels"), [("lite0_fpn", (24, 40, 112)), ("lite0_fpn_small", (24, 40, 80))])
def test_truncated_encoder_takes_full_encoder_weights(tmp_path, name, channels):
    whole = client_network("deeplabv3plus_efficientnet_lite0")
    save_file(whole.encoder.state_dict(), tmp_path / "lite0.safetensors")
    network = client_network(name, weights=tmp_path / "lite0.safetensors").eval()
    assert tuple(level.shape[1] for level in network.encoder(torch.rand(1, 3, 32, 32))) == channels
    state = whole.encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.encoder.state_dict().items())
    assert {m.eps for m in network.encoder.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def test_unloaded_weights_are_not_searched(tmp_path, monkeypatch):
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
def test_starting_weights_of_networks(network, weights, start):
    assert starts_from(network, weights) == start


def test_only_mobile_sam_trunk_takes_teacher_weights():
    assert [takes_teacher(name) for name in ("mobile_sam_fpn", "lite0_fpn", "sam_vit_t")] == [True, False, False]


def test_pyramid_adds_coarse_levels_to_fine_levels():
    decoder = FPNDecoder((1, 1), width=8)
    decoder.smooth = nn.Identity()
    for lateral in decoder.lateral:
        nn.init.ones_(lateral.weight)
        nn.init.zeros_(lateral.bias)
    out = decoder([torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 1, 1), 4.0)])
    assert torch.equal(out, torch.full((1, 8, 2, 2), 7.0))
