"""The strong view: colour, blur, boxes and CutMix by hand; its range, seeds and strength."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from scipy import ndimage

from samfed_monai.core.errors import Refused
from samfed_monai.transforms import StrongViewd, box_fill, colour_matrix, cutmix, gaussian_blur
from samfed_monai.transforms.strong_view import recolour


def test_colour_matrix_and_contrast_match_hand_calculation():
    assert torch.allclose(colour_matrix(), torch.eye(3), atol=1e-6)
    grey = colour_matrix(saturation=0.0) @ torch.tensor([1.0, 0.5, 0.0])
    assert grey.tolist() == pytest.approx([0.299 + 0.2935] * 3, abs=1e-6), "the luminance"
    red = torch.tensor([1.0, 0, 0])
    assert (colour_matrix(hue=1 / 3) @ red).tolist() == pytest.approx([0, 1, 0], abs=1e-6), "green"
    image = torch.tensor([0.2, 0.6]).expand(3, 1, 2)
    assert recolour(image, torch.eye(3), 0.5)[0, 0].tolist() == pytest.approx([0.3, 0.5]), "about the mean"
    assert recolour(image, colour_matrix(brightness=0.5), 1.0)[0, 0].tolist() == pytest.approx([0.1, 0.3])


def test_blur_matches_scipy_and_fits_image():
    image = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0))
    expected = ndimage.gaussian_filter(image.numpy(), (0, 1.5, 1.5), mode="mirror", radius=(0, 4, 4))
    assert abs(gaussian_blur(image, 1.5).numpy() - expected).max() < 1e-5  # float32 sums of 81 products
    image = torch.rand(3, 4, 4)
    assert gaussian_blur(image, 0.05) is image
    assert gaussian_blur(image, 10.0).shape == image.shape


def test_box_is_filled_with_mean_colour():
    image = torch.zeros(2, 2, 4)
    image[0, :, 0] = 1  # mean 0.25
    filled = box_fill(image, 0, 3, 1, 9)
    assert filled[0].tolist() == [[1, 0, 0, 0.25], [1, 0, 0, 0]]
    assert filled[1].sum() == 0
    assert image[0, 0, 3] == 0
    for box in ((-3, 0, 2, 4), (0, -3, 2, 2), (2, 0, 1, 1)):  # above, left of and below the image
        assert torch.equal(box_fill(image, *box), image)


def a_batch(size: int, channels: int = 3, height: int = 16, width: int = 24) -> torch.Tensor:
    """(B, C, H, W) where every pixel of image i is i."""
    return torch.arange(float(size)).view(-1, 1, 1, 1).expand(size, channels, height, width).clone()


@given(size=st.integers(2, 5), seed=st.integers(0, 2**31))
def test_cutmix_pastes_box_of_neighbour_into_every_tensor(size, seed):
    images, weights = a_batch(size), a_batch(size, 1)
    generator = torch.Generator().manual_seed(seed)
    mixed, mixed_weights = cutmix(images, weights, generator=generator, prob=1.0, area=(0.1, 0.4))
    for index in range(size):
        changed = mixed[index, 0] != index
        rows, columns = changed.any(dim=1).sum(), changed.any(dim=0).sum()
        assert changed.sum() == rows * columns  # one box
        assert 0.05 < changed.float().mean() < 0.46  # 0.1 to 0.4, and rounding of the sides
        assert 0.4 < rows / columns < 2.3  # 1:2 to 2:1, likewise
        assert (mixed[index, :, changed] == (index - 1) % size).all()
        assert torch.equal(mixed[index, :1], mixed_weights[index])
    assert torch.equal(images, a_batch(size))


def test_cutmix_is_reproducible_and_keeps_masks_and_single_images():
    images = a_batch(3)
    first, second = (cutmix(images, generator=torch.Generator().manual_seed(3), prob=0.5)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(cutmix(images, prob=0.0)[0], images)
    assert torch.equal(cutmix(images[1:2], prob=1.0)[0], images[1:2])
    labels = torch.randint(0, 2, (4, 1, 16, 16), dtype=torch.uint8)
    mixed = cutmix(torch.rand(4, 3, 16, 16), labels, prob=1.0)[1]
    assert mixed.dtype == torch.uint8
    assert mixed.max() <= 1


def test_cutmix_shape_mismatch_and_invalid_area_are_refused():
    with pytest.raises(ValueError, match=r"tensor 3 has shape \(2, 1, 8, 8\), expected \(2, \.\.\., 16, 24\)"):
        cutmix(a_batch(2), a_batch(2, 1), torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"found 0\.5 and \(0\.4, 0\.1\)"):
        cutmix(a_batch(2), area=(0.4, 0.1))


NOTHING = {"jitter_prob": 0, "grey_prob": 0, "blur_prob": 0, "noise_prob": 0, "cutout_prob": 0}


def an_image(seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 2**31), strength=st.floats(0, 2), height=st.integers(4, 40), width=st.integers(4, 40))
def test_view_is_plain_tensor_in_range(seed, strength, height, width):
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed % 999))
    before = image.clone()
    view = StrongViewd(strength=strength).set_random_state(seed).view(MetaTensor(image))
    assert type(view) is torch.Tensor
    assert view.dtype == torch.float32
    assert view.shape == image.shape
    assert view.min() >= 0
    assert view.max() <= 1
    assert torch.equal(image, before)


def test_view_depends_only_on_seed():
    view, again = StrongViewd(), StrongViewd()
    for seed in range(3):
        view.view(an_image())
        torch.manual_seed(seed)  # the global state must not matter
        assert torch.equal(view.set_random_state(7).view(an_image()), again.set_random_state(7).view(an_image()))


def test_strength_zero_keeps_image_unchanged():
    view = StrongViewd(strength=0.0).set_random_state(0)
    for _ in range(5):
        assert torch.equal(view.view(an_image()), an_image())


def test_grey_has_equal_channels():
    view = StrongViewd(**{**NOTHING, "grey_prob": 1}).set_random_state(0).view(an_image())
    assert torch.allclose(view[0], view[1], atol=1e-6)
    assert torch.allclose(view[0], view[2], atol=1e-6)


def test_cutout_box_has_drawn_area():
    view = StrongViewd(**{**NOTHING, "cutout_prob": 1}, cutout=0.25).set_random_state(0)
    for _ in range(10):
        changed = (view.view(an_image()) != an_image()).any(dim=0)
        assert changed.sum() == changed.any(dim=1).sum() * changed.any(dim=0).sum()  # one box
        assert changed.sum().item() == pytest.approx(view._amounts["cutout"] * 32 * 32, abs=20)  # rounding of the sides


def test_strong_view_is_added_and_weak_view_unchanged():
    item = {"image": an_image(), "teacher": torch.rand(1, 32, 32)}
    view = StrongViewd().set_random_state(0)(item)
    assert view["image"] is item["image"]
    assert view["teacher"] is item["teacher"]
    assert view["image_strong"].shape == (3, 32, 32)
    assert "image_strong" not in item
    labelled = StrongViewd(output_key="image", strength=2.0).set_random_state(0)(item)
    assert set(labelled) == {"image", "teacher"}
    assert not torch.equal(labelled["image"], item["image"]), "of a labelled image it takes the place"


def test_noise_setting_does_not_change_other_draws():
    few, many = StrongViewd(noise=0.0).set_random_state(4), StrongViewd(noise=0.1).set_random_state(4)
    for _ in range(10):
        few.randomize()
        many.randomize()
        assert few._amounts["brightness"] == many._amounts["brightness"]
        assert few._box == many._box


def test_invalid_arguments_and_images_are_refused():
    ranges = r"strength: .*in \[0, 2\], found 3\n.* tint: .*in \[0, 0\.5\], found 0\.6\n.*\n.* gamma: .*in \[1, 4\], f"
    with pytest.raises(Refused, match=rf"4 problems\n.*{ranges}"):
        StrongViewd(strength=3, grey_prob=1.5, gamma=0.5, tint=0.6)
    with pytest.raises(Refused, match="2 names for 1 keys"):
        StrongViewd(output_key=("a", "b"))
    with pytest.raises(Refused, match=r"expected an RGB image \(3, H, W\), found shape \(1, 8, 8\)"):
        StrongViewd().view(torch.zeros(1, 8, 8))


def test_tint_and_gamma_are_per_channel_with_separate_draws():
    image = torch.full((3, 8, 8), 0.25)
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "blur": 0.0, "noise": 0.0, "cutout": 0.0}
    sure = {"jitter_prob": 1.0, "grey_prob": 0.0}
    tinted = StrongViewd(**off, **sure, tint=0.2).set_random_state(0)
    means = torch.stack([tinted.view(image).mean(dim=(1, 2)) for _ in range(60)])
    assert 0.2 - 1e-6 <= means.min() < 0.21  # 0.25 x (1 +- 0.2)
    assert 0.29 < means.max() <= 0.3 + 1e-6
    assert (means.max(dim=1).values - means.min(dim=1).values).max() > 0.05, "each channel on its own"
    bent = StrongViewd(**off, **sure, gamma=2.0).set_random_state(0)
    levels = torch.stack([bent.view(image)[0, 0, 0] for _ in range(60)])
    assert 0.0625 - 1e-6 <= levels.min() < 0.08  # 0.25 to a power from 1/2 to 2
    assert 0.46 < levels.max() <= 0.5 + 1e-6
    plain, more = (StrongViewd(**numbers).set_random_state(4) for numbers in ({}, {"tint": 0.2, "gamma": 2.0}))
    for _ in range(5):
        plain.view(image), more.view(image)
        assert (plain._amounts, plain._used, plain._noise_seed) == (more._amounts, more._used, more._noise_seed)
