"""Common and individual units, on updates made by hand."""

from __future__ import annotations

import torch

from samfed_monai.methods.fca import agreement, binary_mask, smooth_mask, tailored

ONE = torch.ones(3)
#: Three sites, three units of two numbers: all agree; the last is against; at right angles and still.
UPDATES = torch.tensor(
    [
        [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]],
        [[2.0, 0.0], [1.0, 1.0], [0.0, 1.0]],
        [[3.0, 0.0], [-1.0, -1.0], [0.0, 0.0]],
    ]
)


def test_agreement_is_the_cosine_with_the_mean_of_the_others():
    found = agreement(UPDATES, ONE)
    assert found[:, 0].tolist() == [1.0, 1.0, 1.0]
    # the others of sites 0 and 1 cancel out in unit 1; those of site 2 point the other way
    torch.testing.assert_close(found[:, 1], torch.tensor([0.0, 0.0, -1.0]))
    assert found[:, 2].tolist() == [0.0, 0.0, 0.0], "at right angles; nothing moved"


def test_images_weigh_the_others():
    updates = torch.tensor([[[1.0]], [[1.0]], [[-1.0]]])
    assert agreement(updates, torch.tensor([1.0, 5.0, 1.0]))[:, 0].tolist() == [1.0, 0.0, -1.0]
    assert agreement(updates, torch.tensor([1.0, 1.0, 5.0]))[:, 0].tolist() == [-1.0, -1.0, -1.0]


def test_the_smooth_mask_goes_to_the_binary_one():
    agreed = torch.tensor([-1.0, -0.2, 0.2, 1.0])
    assert binary_mask(agreed, 0.0).tolist() == [0.0, 0.0, 1.0, 1.0]
    torch.testing.assert_close(smooth_mask(agreed, 0.0, 1e-3), binary_mask(agreed, 0.0))
    assert smooth_mask(torch.tensor([0.3]), 0.3, 0.1).tolist() == [0.5]
    assert smooth_mask(agreed, 0.0, 0.1).diff().gt(0).all()


def test_masks_of_one_average_and_masks_of_zero_leave_alone():
    values, counts = UPDATES, torch.tensor([1.0, 1.0, 2.0])
    mean = (values * counts[:, None, None]).sum(dim=0) / 4
    torch.testing.assert_close(tailored(values, torch.ones(3, 3), counts), mean.expand(3, 3, 2))
    assert torch.equal(tailored(values, torch.zeros(3, 3), counts), values)


def test_an_individual_unit_does_not_enter_the_common_one():
    masks = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    found = tailored(UPDATES, masks, ONE)
    assert found[:, 1].tolist() == [[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]
    assert found[0, 0].tolist() == [2.0, 0.0]
