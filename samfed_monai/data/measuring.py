"""Sites with so few images to measure on that no score of theirs will be told."""

from __future__ import annotations

from samfed_monai.data.datalist import DataList

LEAST_IMAGES = 5
"""Fewest images of which a site tells a score, unless ``federate.json -> privacy`` has another number (ours)."""


def few_to_measure(datalist: DataList, least: int) -> list[str]:
    """Sites with masks of which a validation or test split holds fewer than ``least`` images.

    A site without any mask has nothing to measure, and one without images to train on is tested only.

    Args:
        datalist: the list.
        least: fewest images of which a site tells a score (``privacy -> least_images``).
    """
    names = []
    for name, site in datalist.sites.items():
        measuring = [site.validation, site.test] if site.unlabelled else [site.test]
        has_masks = any(item.label is not None for _, items in site.splits() for item in items)
        if has_masks and any(len(items) < least for items in measuring):
            names.append(name)
    return names
