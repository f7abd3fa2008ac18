"""FedGIN: random intensities keep norm and shape, alpha 0 changes nothing, and the whole network is averaged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.federation.workflow import client_config
from samfed_monai.methods import fedgin
from samfed_monai.methods.fedgin import IntensityViewd, mixed_intensities, random_intensities
from samfed_monai.networks import client_network
from samfed_monai.networks.key_patterns import network_split
from samfed_monai.transforms import StrongViewd


def image(seed: int = 0, size: int = 12) -> torch.Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 5))
def test_mixed_intensities_keep_norm_and_shape(seed, alpha, layers):
    changed = random_intensities(image(seed), generator=seeded(seed), layers=layers)
    mixed = mixed_intensities(image(seed), changed, alpha)
    assert mixed.shape == (3, 12, 12)
    assert mixed.norm().item() == pytest.approx(image(seed).norm().item(), rel=1e-5)


def test_mixed_intensities_match_hand_computed_values():
    x, g = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, -3.0]]])
    assert mixed_intensities(x, g, 0.0) is x
    torch.testing.assert_close(mixed_intensities(x, g, 1.0), g)
    torch.testing.assert_close(mixed_intensities(x, g, 0.5), torch.tensor([[[3.5, 0.5]]]) * 5 / 12.5**0.5)
    torch.testing.assert_close(mixed_intensities(x / 10, g / 10, 0.5), torch.tensor([[[0.35, 0.05]]]) * 5 / 12.5**0.5)
    assert mixed_intensities(x, -x, 0.5) is x, "nothing to scale"
    for number in (torch.inf, torch.nan):
        assert mixed_intensities(x, torch.tensor([[[number, 0.0]]]), 0.25) is x, "not finite"


def test_equal_pixels_stay_equal_away_from_border():
    flat = random_intensities(torch.full((3, 20, 20), 0.4), generator=seeded(3))
    assert torch.allclose(flat[:, 8:12, 8:12], flat[:, 10:11, 10:11].expand(3, 4, 4), atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_random_intensities_match_layers_on_single_pixel(seed):
    generator = seeded(seed)

    def layer(pixel, outputs):
        side = [1, 3][torch.randint(2, (1,), generator=generator)]
        middles = torch.randn(outputs, len(pixel), side, side, generator=generator)[:, :, side // 2, side // 2]
        return middles @ pixel + torch.randn(outputs, generator=generator)

    expected = pixel = torch.tensor([0.2, 0.5, 0.9])
    for _ in range(3):
        inner = layer(expected, 2)
        expected = torch.where(inner > 0, inner, inner / 100)
    found = random_intensities(pixel.view(3, 1, 1), generator=seeded(seed))
    expected = layer(expected, 3)
    torch.testing.assert_close(found.flatten(), expected)
    double = random_intensities(pixel.double().view(3, 1, 1), generator=seeded(seed))
    torch.testing.assert_close(double.flatten(), expected.double(), rtol=1e-5, atol=1e-5)


def test_kernel_channels_follow_layers_and_width(monkeypatch):
    convolved, channels = functional.conv2d, []

    def conv2d(images, weights, shifts, **options):
        channels.append(tuple(weights.shape[:2]))
        return convolved(images, weights, shifts, **options)

    monkeypatch.setattr(functional, "conv2d", conv2d)
    random_intensities(image(), generator=seeded(0))
    assert channels == [(2, 3), (2, 2), (2, 2), (3, 2)]
    for options, expected in (
        ({"strength": 0.0}, [(2, 3), (2, 2), (2, 2), (3, 2)]),
        ({"layers": 1, "width": 2}, [(3, 3)]),
        ({"layers": 3, "width": 1}, [(1, 3), (1, 1), (3, 1)]),
        ({"layers": 2, "width": 5}, [(5, 3), (3, 5)]),
    ):
        channels.clear()
        IntensityViewd(**options)({"image": image()})
        assert channels == expected


def test_alpha_is_drawn_uniformly_per_image(monkeypatch):
    alphas, view = [], IntensityViewd(most=0.5).set_random_state(0)

    def mixed(image, changed, alpha):
        alphas.append(alpha)
        return image

    monkeypatch.setattr(fedgin, "mixed_intensities", mixed)
    for _ in range(60):
        view({"image": image(size=4)})
    assert len(set(alphas)) == 60
    assert 0 <= min(alphas) < 0.05
    assert 0.45 < max(alphas) <= 0.5
    assert sum(alphas) / 60 == pytest.approx(0.25, abs=0.05)


def test_intensity_view_is_drawn_anew_and_reproducible():
    def view(made, seed=5):
        return made.set_random_state(seed)({"image": image()})["image_strong"]

    assert torch.equal(view(IntensityViewd()), view(IntensityViewd()))
    assert torch.equal(view(IntensityViewd(most=0.0)), view(StrongViewd()))
    bent = IntensityViewd(strength=0.0).set_random_state(1)
    one, other = (bent({"image": image()})["image_strong"] for _ in range(2))
    assert one.norm().item() == pytest.approx(image().norm().item(), rel=1e-5)
    assert not torch.equal(one, other)
    two = IntensityViewd(("image", "image"), ("image", "second"), strength=0.0)({"image": image()})
    assert two.keys() == {"image", "second"}
    assert not torch.equal(two["image"], two["second"])


def test_options_of_both_views_are_refused_together():
    with pytest.raises(Refused, match=r"(?s)2 problems.*IntensityViewd -> most: .* -1.*StrongViewd -> hue: .* 2"):
        IntensityViewd(most=-1, hue=2)


@pytest.mark.parametrize(("variant", "stays"), [("fedgin", False), ("fedgin_own_norm", True)])
def test_only_own_norm_variant_keeps_norms_personal(variant, stays):
    network = client_network("lite0_fpn", load=False)
    personal = client_config(find_bundle("samfed_skin"), variant, {}).optional("personal") or []
    kinds = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
    norms = {f"{at}.{name}" for at, x in network.named_modules() if isinstance(x, kinds) for name in x.state_dict()}
    assert norms
    assert set(network_split(network, personal).personal) == (norms if stays else set())
