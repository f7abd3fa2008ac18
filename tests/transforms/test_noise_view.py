"""The noise view: bounded, as strong as said, and nothing but noise."""

from __future__ import annotations

import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose

from samfed_monai.core.errors import Refused
from samfed_monai.methods.hssf import NoiseViewd
from samfed_monai.transforms import WeakViewd

GREY = torch.full((3, 64, 64), 0.5)


def noise(view: NoiseViewd, image: torch.Tensor = GREY) -> torch.Tensor:
    return view({"image": image})["image_strong"] - image


def test_the_deviation_is_the_same_for_every_image_and_the_bound_holds() -> None:
    view = NoiseViewd().set_random_state(0)
    for _ in range(3):
        added = noise(view)
        assert added.abs().max().item() == pytest.approx(0.1, abs=1e-6)  # 4.6 % of 12,288 draws lie beyond two sigma
        # a normal cut off (not redrawn) at two deviations has a deviation of 0.959; 12,288 draws are 1 % exact
        assert added.std().item() == pytest.approx(0.04797, rel=0.03)
        assert added.mean().abs().item() < 0.002


def test_dark_and_bright_pixels_stay_in_range() -> None:
    for value in (0.0, 1.0):
        view = NoiseViewd(limit=1.0).set_random_state(0)
        found = view({"image": torch.full((3, 16, 16), value)})["image_strong"]
        assert 0 <= found.min() <= found.max() <= 1


def test_the_weak_view_is_left_as_it_is_and_the_other_is_plain() -> None:
    before = GREY.clone()
    result = NoiseViewd()({"image": MetaTensor(GREY), "label": 1})
    assert torch.equal(GREY, before)
    assert type(result["image_strong"]) is torch.Tensor
    assert result["label"] == 1
    assert torch.equal(NoiseViewd(deviation=0.0)({"image": GREY})["image_strong"], GREY)


def test_a_seed_repeats_it_also_inside_a_chain() -> None:
    def first_two(seed: int) -> list[torch.Tensor]:
        chain = Compose([WeakViewd(keys="image"), NoiseViewd()]).set_random_state(seed)
        return [chain({"image": GREY})["image_strong"] for _ in range(2)]

    once, again, other = first_two(3), first_two(3), first_two(4)
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])
    assert not torch.equal(once[0], once[1])
    assert not torch.equal(once[0], other[0])


def test_bad_arguments_are_refused_together() -> None:
    with pytest.raises(Refused, match=r"(?s)3 problems.*deviation: .*-0\.1.*limit: .*2.*output_key: .*2 names for 1"):
        NoiseViewd(output_key=("a", "b"), deviation=-0.1, limit=2)
