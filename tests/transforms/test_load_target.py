"""Targets of the public images: of this round, beside their own image, and gone afterwards."""

from __future__ import annotations

import torch
from monai.data import CacheDataset
from monai.transforms import Compose, Transform

from samfed_monai.transforms import LoadTargetd, PublicTargets, WeakViewd


def item(index: int = 0, size: int = 4) -> dict:
    return {"index": index, "image": torch.zeros(3, size, size)}


def test_nothing_is_added_where_nothing_is_set():
    given = item()
    assert LoadTargetd(PublicTargets())(given) == given


def test_the_items_own_target_and_gate():
    targets = PublicTargets()
    masks = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    masks[1] = 51
    targets.set(masks, torch.tensor([True, False]))
    first, second = (LoadTargetd(targets)(item(index)) for index in range(2))
    assert (first["target"].sum(), first["target_gate"]) == (0, 1)
    assert torch.equal(second["target"], torch.full((1, 4, 4), 0.2))
    assert (second["target_gate"], second["target_gate"].dtype) == (0, torch.float32)


def test_a_smaller_mask_is_brought_to_the_images_size():
    targets = PublicTargets()
    targets.set(torch.tensor([[[[0, 255]]]], dtype=torch.uint8).expand(1, 1, 2, 2), torch.tensor([True]))
    row = LoadTargetd(targets)(item())["target"][0, 0].tolist()
    assert row == [0, 0.25, 0.75, 1]  # half pixels: the centres lie at 0.25 and 0.75


def test_no_cache_keeps_a_target_of_an_earlier_round():
    calls = []

    class Read(Transform):
        def __call__(self, data):
            calls.append(data["index"])
            return dict(data)

    targets = PublicTargets()
    dataset = CacheDataset([item(0), item(1)], Compose([Read(), LoadTargetd(targets)]), progress=False)
    for value in (0, 255):
        targets.set(torch.full((2, 1, 4, 4), value, dtype=torch.uint8), torch.ones(2, dtype=torch.bool))
        assert [dataset[index]["target"].mean().item() for index in range(2)] == [value / 255] * 2
    targets.clear()
    assert "target" not in dataset[0]
    assert "target_gate" not in dataset[0]
    assert calls == [0, 1], "what comes before it is read once"


def test_a_target_moves_with_its_image_and_label():
    targets = PublicTargets()
    square = torch.zeros(1, 16, 16)
    square[:, 3:9, 5:8] = 1
    targets.set((square * 255).to(torch.uint8)[None], torch.tensor([True]))
    view = WeakViewd(rotate=0, zoom=(1, 1), shear=0, shift=0)
    moves = 0
    for seed in range(8):
        view.set_random_state(seed)
        moved = Compose([LoadTargetd(targets), view])({"index": 0, "image": square.expand(3, -1, -1), "label": square})
        assert torch.allclose(moved["target"], moved["label"])
        assert torch.allclose(moved["image"][:1], moved["label"])
        moves += not torch.equal(moved["label"], square)
    assert moves > 4


def test_a_target_draws_nothing_so_that_views_are_the_same_with_and_without_it():
    targets, views = PublicTargets(), []
    for masks in (None, torch.zeros(1, 1, 8, 8, dtype=torch.uint8)):
        if masks is not None:
            targets.set(masks, torch.tensor([False]))
        transform = Compose([LoadTargetd(targets), WeakViewd()])
        transform.set_random_state(seed=3)
        image = torch.arange(64.0).reshape(1, 8, 8)
        views.append(transform({"index": 0, "image": image})["image"])
    assert torch.equal(*views)
