"""Kvasir-SEG alone as a public set and three hospitals: the images that the polyp bundle's weights are trained from.

HyperKvasir (CC BY 4.0) has these 1,000 images and masks, too. No other collection is trained on, so that CVC-ClinicDB
and CVC-ColonDB are hospitals that took no part.
"""

from __future__ import annotations

from hashlib import sha256

PUBLIC = 300
"""Images with masks that the teacher and the labelled steps learn from."""

HOSPITALS = ("hospital_a", "hospital_b", "hospital_c")
SHARE = 0.15
"""Of a hospital's images, the share to validate on, and as many to test on."""


def split(names: list[str]) -> dict[str, dict[str, list[str]]]:
    """Who has which image, as a published list in HSSF's format; the same names give the same split.

    Args:
        names: names of the image files, without folder.
    """
    drawn = sorted(names, key=lambda name: sha256(name.rsplit(".", 1)[0].encode()).hexdigest())
    parts = {"public": {"labeled_train": drawn[:PUBLIC]}}
    for place, hospital in enumerate(HOSPITALS):
        images = drawn[PUBLIC + place :: len(HOSPITALS)]
        held = round(SHARE * len(images))
        parts[hospital] = {
            "labeled_train": [],
            "unlabeled_train": images[2 * held :],
            "val_list": images[:held],
            "test_list": images[held : 2 * held],
        }
    return parts
