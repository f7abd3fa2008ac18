"""Weak labels in training: unlabelled pixels are ignored, and the gated CRF by hand."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.bundle import SiteImages
from samfed_monai.core.errors import Refused
from samfed_monai.data.weak_labels import weaken_list
from samfed_monai.losses import without_label
from samfed_monai.methods import weak_labels
from samfed_monai.transforms import ResizeWithLabeld
from tests.methods import engine_of

LOGITS = torch.tensor([[[[0.0, math.log(3), -2.0, 7.0]]]])


def test_unlabelled_pixels_have_no_loss_or_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    partial, label = weak_labels.PartialCrossEntropy(), torch.tensor([[[[1.0, 0.0, 255.0, 255.0]]]])
    loss = partial(logits, label)
    loss.backward()
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert logits.grad.flatten().tolist() == pytest.approx([-0.25, 0.375, 0.0, 0.0])
    other = torch.cat([LOGITS[..., :2], torch.tensor([[[[1e4, -1e4]]]])], dim=-1)
    assert torch.equal(partial(other, label), loss.detach())
    logits = LOGITS.clone().requires_grad_()
    loss = partial(logits, torch.full((1, 1, 1, 4), 255.0))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    with pytest.raises(ValueError, match=r"expected a target of shape \(1, 1, 1, 4\), found \(1, 1, 2, 2\)"):
        partial(LOGITS, torch.zeros(1, 1, 2, 2))


def test_partial_cross_entropy_of_several_classes() -> None:
    logits = torch.tensor([[[[0.0, 5.0]], [[math.log(3), 5.0]], [[0.0, 9.0]]]], requires_grad=True)
    planes = torch.tensor([[[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]]])
    assert without_label(planes).tolist() == [[[[False, True]]]]
    loss = weak_labels.PartialCrossEntropy()(logits, planes)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(5 / 3))
    assert logits.grad[..., 0].flatten().tolist() == pytest.approx([0.2, -0.4, 0.2])
    assert not logits.grad[..., 1].any()


def test_gated_crf_matches_all_pairs_in_window() -> None:
    generator = torch.Generator().manual_seed(0)
    image, p = torch.rand(2, 3, 5, 4, generator=generator), torch.rand(2, 1, 5, 4, generator=generator)
    total = 0.0
    for b in range(2):
        for i in range(20):
            for j in range(20):
                (r, c), (s, d) = divmod(i, 4), divmod(j, 4)
                if i == j or max(abs(r - s), abs(c - d)) > 2:
                    continue
                colour = float((image[b, :, r, c] - image[b, :, s, d]).square().sum())
                kernel = math.exp(-((r - s) ** 2 + (c - d) ** 2) / (2 * 6.0**2) - colour / (2 * 0.1**2))
                x, y = float(p[b, 0, r, c]), float(p[b, 0, s, d])
                total += kernel * (1 - x * y - (1 - x) * (1 - y))
    for chances in (p, torch.cat([1 - p, p], dim=1)):
        found = weak_labels.gated_crf(chances, image, radius=2, sigma_xy=6.0, sigma_rgb=0.1).item()
        assert found == pytest.approx(total / 40, rel=1e-4)
    assert weak_labels.gated_crf(torch.ones_like(p), image, radius=2, sigma_xy=6.0, sigma_rgb=0.1).item() == 0
    image, p = torch.rand(1, 3, 2, 3), torch.rand(1, 1, 2, 3)
    found = [weak_labels.gated_crf(p, image, radius=radius, sigma_xy=6.0, sigma_rgb=0.1) for radius in (2, 9)]
    assert torch.equal(*found)


def test_crf_term_subsamples_pixels_and_keeps_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    image, logits = torch.rand(2, 3, 9, 8, generator=generator), torch.randn(2, 1, 9, 8, generator=generator)
    label = torch.full((2, 1, 9, 8), float(weak_labels.IGNORE))
    label[:, :, :3] = 1
    engine = engine_of(output={"pred": logits, "image": image, "label": label})
    guidance: Any = {}
    half = [part[..., ::2, ::2] for part in (torch.sigmoid(logits), image)]
    numbers = {"sigma_xy": 6.0, "sigma_rgb": 0.3}
    expected = weak_labels.gated_crf(*half, radius=3, sigma_xy=3.0, sigma_rgb=0.3).item()
    found = weak_labels.GatedCrfTerm(step=2, radius=3, **numbers).value(guidance, engine).item()
    assert found == pytest.approx(expected, rel=1e-6)
    assert weak_labels.GatedCrfTerm(step=2, radius=2, **numbers).value(guidance, engine).item() < 0.9 * expected
    assert engine.state.terms["crf_labelled"].item() == pytest.approx(1 / 3)


def test_multiclass_resize_decides_foreground_then_largest_class() -> None:
    values = torch.full((4, 12), weak_labels.IGNORE)
    values[0, :4], values[1, 0] = torch.tensor([0, 0, 1, 2]), 2  # 2 of 16 pixels are background, 1 and 2 of a class
    values[0, 4:8] = 0  # a quarter is enough
    planes = (values == torch.arange(3)[:, None, None]).float()
    resized = weak_labels.resize_weak(planes, (1, 3))  # class 2 would be, and has the pixel that it decides on
    assert resized[:, 0].tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    planes[2, :2, 8:] = 1.0
    assert weak_labels.resize_weak(planes, (1, 3))[:, 0].tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


@given(st.integers(0, 2**16 - 1))
def test_complete_mask_is_resized_like_mask(bits: int) -> None:
    values = torch.tensor([(bits >> i & 1) * (1 + (bits >> (i + 5) % 16 & 1)) for i in range(16)]).view(4, 4)
    planes = (values == torch.arange(3)[:, None, None]).float()
    item = {"image": torch.zeros(3, 4, 4), "label": planes}
    expected = ResizeWithLabeld(["image", "label"], (2, 2), ["area", "area"])(item)["label"]
    assert torch.equal(weak_labels.resize_weak(planes, (2, 2)), torch.as_tensor(expected))
    mask = torch.tensor([bits >> i & 1 for i in range(16)]).view(1, 4, 4).float()
    expected = (F.interpolate(mask[None], size=(2, 2), mode="area")[0] >= 0.5).float()
    assert torch.equal(weak_labels.resize_weak(mask, (2, 2)), expected)


def test_resize_keeps_small_weak_labels() -> None:
    label = torch.full((1, 8, 12), 255.0)
    label[0, 0, 0] = label[0, 0, 4] = label[0, 1, 4] = label[0, 4, 4] = 1.0  # one, two, none and one of 16 pixels
    label[0, 2, 4] = label[0, 4, 0] = label[0, 5, 4] = 0.0  # none, one, one and one
    assert weak_labels.resize_weak(label, (2, 3)).tolist() == [[[1.0, 1.0, 255.0], [0.0, 1.0, 255.0]]]
    label[0, 4:6, 4:8], label[0, 4, 8:] = 0.0, 0.0  # eight of 16 pixels, and four
    assert weak_labels.resize_weak(label, (2, 3)).tolist() == [[[1.0, 1.0, 255.0], [255.0, 0.0, 0.0]]]


def test_image_is_resized_with_or_without_label() -> None:
    image = torch.arange(16.0).view(1, 4, 4).expand(3, 4, 4)
    resize = weak_labels.ResizeWithWeakLabeld(["image", "label"], (2, 2))
    item = resize({"image": image})
    assert item["image"].tolist() == [[[2.5, 4.5], [10.5, 12.5]]] * 3, "the mean of four pixels"
    assert "label" not in item
    label = torch.full((1, 4, 4), 255.0)
    label[0, 0, 0], label[0, 3] = 1.0, 0.0
    both = resize({"image": image, "label": label})
    assert torch.equal(torch.as_tensor(both["image"]), torch.as_tensor(item["image"]))
    assert both["label"].tolist() == [[[1.0, 255.0], [0.0, 0.0]]]


def test_weak_labels_are_refused_by_other_methods(small_federation, small_list, tmp_path) -> None:
    folder = Path(shutil.copytree(small_federation, tmp_path / "images"))
    weaken_list(small_list, folder, dict.fromkeys(small_list.sites, "points")).save(tmp_path / "list.json")
    images = {"datalist": tmp_path / "list.json", "data_root": folder, "site": "site-1"}
    expected = r"-> site-1 -> unlabelled: expected masks.*found 4 weak labels \(points\); use a method .*--variant weak"
    for oracle, split in ((False, "labelled"), (True, "unlabelled")):
        with pytest.raises(Refused, match=expected):
            SiteImages(**images, oracle=oracle).records(split)
    kinds = [record["label_kind"] for record in SiteImages(**images, weak_labels=True).records("labelled")]
    assert kinds == ["points"] * 4
    assert not any("label_kind" in record for record in SiteImages(**images).records("unlabelled"))
