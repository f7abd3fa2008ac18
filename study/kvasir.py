"""Divides Kvasir-SEG into a public set and three hospitals, the images on which the polyp bundle's weights are trained.

HyperKvasir (CC BY 4.0) also has these 1,000 images and masks. No other collection is used in training, so CVC-ClinicDB
and CVC-ColonDB are unseen hospitals.
"""

from __future__ import annotations

from hashlib import sha256

PUBLIC = 300
"""Number of public images with masks, for the teacher and the labelled steps."""

HOSPITALS = ("hospital_a", "hospital_b", "hospital_c")
SHARE = 0.15
"""Share of a hospital's images for validation, and again for test."""


def split(names: list[str]) -> dict[str, dict[str, list[str]]]:
    """Divides images into a public set and hospitals, in HSSF's list format; the same names give the same split.

    Args:
        names: names of the image files without folder.
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
