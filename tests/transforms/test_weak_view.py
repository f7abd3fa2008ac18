"""The weak view: image, label and soft mask are warped together; its geometry by hand."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import set_rnd
from monai.transforms import Compose
from scipy import ndimage
from torch.nn import functional

from samfed_monai.core.errors import Refused
from samfed_monai.transforms import WeakViewd, output_to_input, warp


def warp_one(picture, matrix, size, nearest=False):
    return warp({"": picture}, matrix, size, nearest=("",) if nearest else ())[""]


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_flips_and_quarter_turns_match_torch(picture, flip, turns, nearest):
    view = warp_one(picture, output_to_input((6, 6), flip=flip, quarter_turns=turns), (6, 6), nearest=nearest)
    assert torch.allclose(view, torch.rot90(picture.flip(2) if flip else picture, turns, (1, 2)), atol=1e-5)


def test_shift_zoom_and_border_match_hand_computed_values():
    picture = torch.zeros(1, 8, 8)
    picture[0, 3, 2] = 1
    view = warp_one(picture, output_to_input((8, 8), shift=(1 / 8, 2 / 8)), (8, 8), nearest=True)
    assert view[0].nonzero().tolist() == [[4, 4]]
    picture = torch.zeros(1, 8, 8)
    picture[0, 3:5, 3:5] = 1  # 2 x 2
    view = warp_one(picture, output_to_input((8, 8), zoom=2.0), (8, 8), nearest=True)
    expected = torch.zeros(1, 8, 8)
    expected[0, 2:6, 2:6] = 1
    assert torch.equal(view, expected)
    view = warp_one(torch.arange(4.0).expand(1, 4, 4), output_to_input((4, 4), shift=(0, 0.5)), (4, 4), nearest=True)
    assert view[0, 0].tolist() == [1, 0, 0, 1]


def test_rotation_angle_is_preserved_in_non_square_view():
    picture = torch.zeros(1, 40, 80)
    picture[0, 20, 20:60] = 1  # a level line of 40 pixels
    rows, columns = (warp_one(picture, output_to_input((40, 80), degrees=30), (40, 80))[0] > 0.3).nonzero().T
    left, right = columns.argmin(), columns.argmax()
    slope = (rows[left] - rows[right]) / (columns[right] - columns[left])  # rows count downwards
    assert slope.item() == pytest.approx(0.577, abs=0.06)  # tan 30 degrees; a pixel over 35 is 0.03


def test_warp_matches_torch_grid_sample(picture):
    matrix = output_to_input((5, 9), degrees=20, zoom=1.1, shear=7, shift=(0.1, -0.05), flip=True)
    grid = functional.affine_grid(matrix[None], [1, 1, 5, 9], align_corners=False)
    expected = functional.grid_sample(picture[None], grid, padding_mode="reflection", align_corners=False)[0]
    assert torch.allclose(warp_one(picture, matrix, (5, 9)), expected, atol=1e-5)


def test_joint_warp_equals_separate_warps(picture):
    mask, low = picture[:1] > 0.5, torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(1))
    tensors = {"image": picture, "label": mask.float(), "teacher": picture[1:], "low": low}
    matrix = output_to_input((4, 5), degrees=20, zoom=0.9, shift=(0.1, -0.05))
    views = warp(tensors, matrix, (4, 5), nearest={"label"})
    for key, tensor in tensors.items():
        assert torch.equal(views[key], warp_one(tensor, matrix, (4, 5), nearest=key == "label"))


def test_shrinking_averages_pixels():
    stripes = torch.zeros(1, 64, 64)
    stripes[:, :, ::4] = 1  # every fourth column: a mean of 0.25 everywhere
    assert warp_one(stripes, output_to_input((16, 16)), (16, 16))[0, 4:12, 4:12].sub(0.25).abs().max() < 0.05


def an_item(seed: int, height: int = 48, width: int = 64) -> dict:
    """An image; its channels, label and soft mask are the same blobs."""
    noise = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)).numpy()
    smooth = ndimage.gaussian_filter(noise, 4)
    blobs = torch.from_numpy(smooth > smooth.mean()).float()[None]
    return {"image": blobs.repeat(3, 1, 1), "label": blobs, "teacher": blobs.clone(), "id": "a"}


sizes = st.sampled_from([None, 32, (32, 32), (40, 56), 64])


@given(seed=st.integers(0, 2**31), size=sizes, prob=st.sampled_from([0.0, 1.0]))
def test_image_label_and_soft_mask_are_transformed_together(seed, size, prob):
    view = WeakViewd(size=size, prob=prob).set_random_state(seed)(an_item(seed % 1000))
    expected = (48, 64) if size is None else (size, size) if isinstance(size, int) else size
    assert view["image"].shape == (3, *expected)
    assert view["label"].shape == view["teacher"].shape == (1, *expected)
    assert torch.equal(view["image"][:1], view["teacher"])
    assert set(view["label"].unique().tolist()) <= {0.0, 1.0}
    # Where the interpolated image is (nearly) pure, all its neighbours agree, so the nearest one must agree as well.
    image, label = view["image"][:1], view["label"]
    if min(48 / expected[0], 64 / expected[1]) <= 1.5:
        assert (label[image > 0.999] == 1).all()
        assert (label[image < 0.001] == 0).all()
    assert ((image > 0.5) != (label > 0.5)).float().mean() < 0.06
    assert image.min() >= 0
    assert image.max() <= 1 + 1e-6


def test_view_depends_only_on_seed():
    item, before = an_item(1), an_item(1)
    expected = WeakViewd(size=32).set_random_state(7)(item)
    view = WeakViewd(size=32)
    view(item)  # an earlier call
    set_rnd(SimpleNamespace(transform=view), seed=7)
    again = view(item)
    assert all(torch.equal(again[key], expected[key]) for key in ("image", "label"))
    chains = [Compose([WeakViewd(size=32)]).set_random_state(5) for _ in range(2)]
    assert torch.equal(*(chain(item)["image"] for chain in chains))
    assert torch.equal(item["image"], before["image"]), "the given item is unchanged"
    assert again["id"] == "a"


def test_missing_keys_are_skipped_unless_disallowed():
    item = {"image": torch.rand(3, 16, 16)}
    assert set(WeakViewd()(item)) == {"image"}
    with pytest.raises(KeyError, match="label"):
        WeakViewd(allow_missing_keys=False)(item)


def test_output_is_plain_float32_tensor():
    item = {"image": MetaTensor(torch.rand(3, 16, 16, dtype=torch.float64)), "label": torch.ones(1, 16, 16).byte()}
    view = WeakViewd()(item)
    for key in ("image", "label"):
        assert type(view[key]) is torch.Tensor
        assert view[key].dtype == torch.float32


def test_switches_do_not_change_other_draws():
    plain, flipping = WeakViewd(flip=False).set_random_state(3), WeakViewd().set_random_state(3)
    flips = set()
    for _ in range(20):
        plain.randomize()
        flipping.randomize()
        assert plain._values["zoom"] == flipping._values["zoom"]
        assert 0.8 <= plain._values["zoom"] <= 1.25
        assert not plain._values["flip"]
        flips.add(flipping._values["flip"])
    assert flips == {True, False}


def test_non_square_view_only_makes_half_turns():
    item = torch.arange(8.0).expand(1, 4, 8)
    view = WeakViewd(prob=0.0, flip=False).set_random_state(0)
    seen = {tuple(view({"image": item})["image"][0, 0].round().int().tolist()) for _ in range(30)}
    assert seen == {tuple(range(8)), tuple(reversed(range(8)))}


def test_invalid_arguments_are_refused_together():
    with pytest.raises(Refused, match=r"3 problems(.|\n)*size(.|\n)*zoom(.|\n)*rotate: .*in \[0, 180\], found -1"):
        WeakViewd(size=0, zoom=(1.2, 0.8), rotate=-1)
    for size in ([64], [64, 64, 64], [64, 0], True):
        with pytest.raises(Refused, match=rf"size: expected one or two whole .* 1, found {re.escape(str(size))}"):
            WeakViewd(size=size)
