"""UniMatch: dropped encoder channels, and the term of two strong views and a feature stream."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import Guidance
from samfed_monai.losses import weighted_pseudo_label_loss
from samfed_monai.methods.unimatch import UniMatchTerm, feature_dropout
from samfed_monai.networks import client_network
from tests.handlers.toy import Shown
from tests.methods import engine_of


class Encoder(nn.Module):
    """Returns the image and 1,000 channels of ones."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, torch.ones(image.shape[0], 1000, 2, 2)]


def toy() -> nn.Module:
    return nn.Sequential(OrderedDict(encoder=Encoder()))


def test_feature_dropout_drops_channels_and_scales_rest() -> None:
    torch.manual_seed(0)
    image, network = torch.ones(2, 3, 4, 4), toy().eval()
    with feature_dropout(network, 0.75):
        seen, features = network(image)
    assert seen is image  # the image is no feature
    assert set(features.unique().tolist()) == {0.0, 4.0}
    assert torch.equal(features[..., 0, 0], features[..., 1, 1])
    # 2,000 draws of a chance of 0.75: standard deviation 0.01, five of them
    assert (features == 0).float().mean().item() == pytest.approx(0.75, abs=0.05)
    assert network(image)[1].unique().tolist() == [1.0]


def test_basic_unet_drops_each_encoder_map_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, channels = client_network("basic_unet", features=(4, 8, 16, 32, 64, 4)), []
    original = nn.functional.dropout2d
    monkeypatch.setattr(
        nn.functional, "dropout2d", lambda x, *a, **k: channels.append(x.shape[1]) or original(x, *a, **k)
    )
    with feature_dropout(network, 0.5):
        network(torch.rand(1, 3, 32, 32))
    assert channels == [64, 32, 16, 8, 4]  # the deepest map and the skip beside it, then one skip for each stage


def test_unsupported_encoder_output_is_refused() -> None:
    network = toy()
    network.encoder.forward = lambda image: {"features": image}  # type: ignore[method-assign]
    with feature_dropout(network, 0.5), pytest.raises(Refused, match="found an encoder that returns dict"):
        network(torch.ones(1, 3, 4, 4))


def given(**kwargs: Any) -> Guidance:
    generator = torch.Generator().manual_seed(0)
    image, second = (torch.rand(2, 3, 4, 4, generator=generator) for _ in range(2))
    weak = torch.rand(2, 1, 4, 4, generator=generator)
    student = torch.randn(2, 1, 4, 4, generator=generator)
    batch = {"image": image, "image_strong2": second}
    return Guidance(student=student, weak_view=weak, guides={}, batch=batch, **kwargs)


def loss(logits: Tensor, weak: Tensor, tau: float) -> Tensor:
    return weighted_pseudo_label_loss(logits, (weak > 0.5).long(), (torch.maximum(weak, 1 - weak) > tau).float())


def test_loss_weights_two_strong_views_and_feature_stream() -> None:
    guidance, network = given(), Shown()
    value = UniMatchTerm(tau=0.8, drop=0.0).value(guidance, engine_of(network))
    streams = [guidance.student, *(network(guidance.batch[key]) for key in ("image_strong2", "image"))]
    first, second, features = (loss(logits, guidance.weak, 0.8) for logits in streams)
    torch.testing.assert_close(value, 0.25 * first + 0.25 * second + 0.5 * features)


def test_only_feature_stream_uses_dropped_features() -> None:
    guidance, seen, network = given(), [], Shown()
    plain = copy.deepcopy(network)
    network.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    UniMatchTerm(drop=0.9).value(guidance, engine_of(network))
    (second, clean), (weak, dropped) = seen
    assert second is guidance.batch["image_strong2"]
    assert weak is guidance.batch["image"]
    assert torch.equal(clean, plain(second))
    assert not torch.allclose(dropped, plain(weak))
