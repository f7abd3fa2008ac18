"""Masks leave a site of its own public images only, whatever data set a plan has them made of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from monai.data import Dataset
from torch.utils.data import Subset

from samfed_monai.federation.privacy.release import require_public_images
from samfed_monai.protocol import MessageRefused

PUBLIC = [{"image": f"/data/{name}.png", "image_sha256": name * 64, "id": name} for name in "abcd"]
PRIVATE = {"image": "/data/private.png", "image_sha256": "9" * 64}
#: A private file under the hash of a public one: a plan may write down records, too.
FORGED = {**PUBLIC[1], "image": PRIVATE["image"]}


def required(dataset: Any) -> None:
    require_public_images(SimpleNamespace(predictor=SimpleNamespace(dataset=dataset)), lambda: PUBLIC)


def test_the_public_images_pass_and_so_do_some_of_them_in_their_order():
    required(Dataset(PUBLIC))
    required(Subset(Dataset(PUBLIC), [0, 2, 3]))
    required(Subset(Subset(Dataset(PUBLIC), [0, 2, 3]), [1, 2]))


def test_a_sharing_that_makes_no_masks_is_not_asked():
    require_public_images(object(), lambda: 1 / 0)


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([PRIVATE], "1 other images"),
        ([*PUBLIC, PRIVATE], "1 other images"),
        ([FORGED, PRIVATE], "2 other images"),
        ([{**PUBLIC[0], "image": ["/data/a.png"]}, {}], "2 other images"),
        (PUBLIC[::-1], "another order"),
        ([PUBLIC[0], PUBLIC[0]], "another order"),
    ],
)
def test_others_are_refused_by_their_number(records, found):
    with pytest.raises(MessageRefused) as refused:
        required(Dataset(records))
    [problem] = refused.value.problems
    assert str(problem) == (
        f"images that masks are exchanged of: expected images of this site's own public list alone, found {found}; "
        "leave the data of sharing#plain to the variant"
    )


def test_a_part_of_a_data_set_is_looked_through():
    required(Subset(Dataset([PRIVATE, *PUBLIC]), [1, 2]))
    with pytest.raises(MessageRefused, match="found 1 other images"):
        required(Subset(Dataset([PRIVATE, *PUBLIC]), [0, 1]))


@pytest.mark.parametrize("dataset", [object(), Dataset([1, 2]), SimpleNamespace(data=iter(PUBLIC))])
def test_a_data_set_whose_records_are_not_to_be_seen_is_refused(dataset):
    with pytest.raises(MessageRefused, match="expected a data set whose records are to be seen, found a "):
        required(dataset)
