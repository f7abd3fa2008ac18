from __future__ import annotations

import torch

from samfed_monai.networks.sam.augment import augment


def disc(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright disc off the centre on black, and its mask."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mask = ((rows - height * 0.4) ** 2 + (columns - width * 0.6) ** 2 < (min(height, width) * 0.2) ** 2).float()
    return (mask * 0.8).expand(1, 3, -1, -1), mask[None, None]


def test_image_and_mask_move_together():
    image, mask = disc(64, 48)
    for seed in range(12):
        moved, moved_mask = augment(image, mask, 256, torch.Generator().manual_seed(seed))
        assert moved.shape[2:] == moved_mask.shape[2:]
        assert sorted(moved.shape[2:]) == [192, 256]
        inside, outside = moved_mask[0, 0] > 0.99, moved_mask[0, 0] < 0.01
        grey = moved.mean(dim=1)[0]
        # blur of at most 2 px leaves the most of both sides alone
        assert grey[inside].median() > grey[outside].median() + 0.2
        assert 0 <= moved.min() <= moved.max() <= 1


def test_the_generator_is_the_only_source_of_randomness():
    image, mask = disc(32, 32)
    made = [augment(image, mask, 256, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_the_area_stays_within_the_zoom():
    image, mask = disc(64, 64)
    shares = [
        float(augment(image, mask, 256, torch.Generator().manual_seed(seed))[1].mean() / mask.mean())
        for seed in range(20)
    ]
    # zoom exp(+-0.25) in both directions gives areas in [0.60, 1.65]; reflection may show a border twice
    assert min(shares) > 0.55
    assert max(shares) < 2.2
