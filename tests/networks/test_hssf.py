"""HSSF's network: its size, what it returns, and what comes with it."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.networks import AutocastInferer, HssfNetwork, client_network, hssf_outputs

PUBLISHED = {"resnet18": 21.4e6, "resnet34": 31.5e6, "resnet101": 65.7e6}  # HSSF, Ma et al., IEEE TMI 2024
CLASSIFIER = {"resnet18": 513_000, "resnet34": 513_000, "resnet101": 2_049_000}  # a ResNet's, for 1000 classes


def a_network(**kwargs) -> HssfNetwork:
    torch.manual_seed(0)
    return HssfNetwork("resnet18", **kwargs)


def an_image(batch: int = 2, height: int = 40, width: int = 52) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("encoder", sorted(PUBLISHED))
def test_parameters_are_the_published_ones_but_for_an_unused_classifier(encoder: str) -> None:
    with torch.device("meta"):
        network = HssfNetwork(encoder)
    count = sum(parameter.numel() for parameter in network.parameters())
    # published to 0.1 million, and by the same rounding or truncation at each encoder
    assert abs(count + CLASSIFIER[encoder] - PUBLISHED[encoder]) < 0.1e6


def test_the_difference_of_two_logits_is_returned_and_the_rest_comes_with_it() -> None:
    network = a_network()
    prediction = network(an_image())
    outputs = hssf_outputs(prediction)
    assert prediction.shape == outputs.confidence.shape == (2, 1, 40, 52)
    assert outputs.logits.shape == (2, 2, 40, 52)
    assert outputs.dropped is None
    torch.testing.assert_close(prediction.sigmoid(), outputs.logits.softmax(dim=1)[:, 1:])
    assert outputs.confidence.requires_grad


def test_classes_are_returned_as_they_are() -> None:
    prediction = a_network(out_channels=3)(an_image())
    assert prediction.shape == (2, 3, 40, 52)
    assert hssf_outputs(prediction).logits is prediction


def test_another_pass_does_not_disturb_what_a_prediction_carries() -> None:
    network = a_network()
    first = network(an_image())
    confidence = hssf_outputs(first).confidence
    with torch.no_grad():
        network.eval()(an_image())
    network.train()(an_image() / 2)
    assert hssf_outputs(first).confidence is confidence


@pytest.mark.parametrize("enabled", [False, True])
def test_the_inferer_hands_it_on_also_under_autocast(enabled: bool) -> None:
    prediction = AutocastInferer(enabled)(an_image(), a_network(), feature_dropout=0.5)
    outputs = hssf_outputs(prediction)
    assert outputs.dropped is not None
    assert {each.dtype for each in (prediction, outputs.logits, outputs.confidence, outputs.dropped)} == {torch.float32}


def test_feature_dropout_changes_the_second_pass_alone() -> None:
    image = an_image()
    network, twin = a_network(), a_network()
    torch.manual_seed(1)  # the decoder has dropout of its own
    plain = network(image)
    torch.manual_seed(1)
    dropped = twin(image, feature_dropout=0.5)
    torch.testing.assert_close(dropped, plain)
    second = hssf_outputs(dropped).dropped
    assert second is not None
    assert second.shape == (2, 2, 40, 52)
    assert (second - hssf_outputs(plain).logits).abs().mean() > 0.01


def test_in_eval_mode_it_carries_nothing_and_costs_no_confidence() -> None:
    network = a_network().eval()
    called = []
    network.confidence_head.register_forward_hook(lambda *_: called.append(1))
    with pytest.raises(Refused, match=r"expected the prediction of an hssf_resnet network in train mode, found .*"):
        hssf_outputs(network(an_image()))
    assert not called


def test_a_network_that_has_predicted_can_be_copied() -> None:
    network = a_network()
    network(an_image()).mean().backward()
    copy = deepcopy(network).eval()
    torch.testing.assert_close(copy(an_image()), network.eval()(an_image()))


def test_logits_are_spread_over_the_pixels_that_they_stand_for() -> None:
    network = a_network().eval()
    low = []
    network.head.register_forward_hook(lambda _module, _inputs, output: low.append(output))
    with torch.no_grad():
        found = network(an_image(height=64, width=32))
    assert low[0].shape[-2:] == (16, 8)
    difference = low[0][:, 1:] - low[0][:, :1]
    # corners not aligned: the first of the four pixels of a logit at the border has that logit's value, as the second
    torch.testing.assert_close(found[:, :, 0, 0], difference[:, :, 0, 0])
    torch.testing.assert_close(found[:, :, 1, 1], difference[:, :, 0, 0])


def test_bad_arguments_are_refused_and_so_are_tiny_images() -> None:
    with pytest.raises(Refused, match=r"network_def#out_channels: expected a whole number >= 1, found '?0"):
        a_network(out_channels=0)
    with pytest.raises(Refused, match=r"image height: expected at least 32 pixels, found 16 pixels"):
        client_network("hssf_resnet18")(torch.rand(2, 3, 16, 40))


def test_imagenet_weights_fit_the_encoder(tmp_path) -> None:
    from safetensors.torch import save_file

    source = a_network()
    save_file(dict(source.encoder.state_dict()), tmp_path / "resnet18.safetensors")
    network = client_network("hssf_resnet18", weights=tmp_path / "resnet18.safetensors")
    assert torch.equal(network.encoder.conv1.weight, source.encoder.conv1.weight)
