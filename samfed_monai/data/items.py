"""What a data list is made of: one item, one site, the four splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum


class Split(str, Enum):
    """The four places an image can have in a data list, as JSON spells them."""

    PUBLIC = "public"
    UNLABELLED = "unlabelled"
    VALIDATION = "validation"
    TEST = "test"


SITE_SPLITS = (Split.UNLABELLED, Split.VALIDATION, Split.TEST)


@dataclass(frozen=True)
class Item:
    """One image, where it lies under the data root, and what its bytes were when the list was made.

    Args:
        image: path relative to the data root, with forward slashes.
        sha256: SHA-256 of the image file, 64 hexadecimal digits.
        label: path of its mask, or ``None``. An unlabelled item may carry one: only the oracle variant and
            ``samfed evaluate`` read it.
        label_sha256: SHA-256 of the mask file; present exactly when ``label`` is.
        group: video sequence, patient or lesion the image belongs to; images of one group stay together.
    """

    image: str
    sha256: str
    label: str | None = None
    label_sha256: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Site:
    """One site's private images: unlabelled ones to train on, labelled ones to measure with."""

    unlabelled: list[Item] = field(default_factory=list)
    validation: list[Item] = field(default_factory=list)
    test: list[Item] = field(default_factory=list)

    def splits(self) -> Iterator[tuple[Split, list[Item]]]:
        """The three splits with their names, in the order in which the JSON lists them."""
        yield Split.UNLABELLED, self.unlabelled
        yield Split.VALIDATION, self.validation
        yield Split.TEST, self.test
