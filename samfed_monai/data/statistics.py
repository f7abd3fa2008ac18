"""Figures of the data report: one row per site and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samfed_monai.data.datalist import DataList
from samfed_monai.data.items import Item
from samfed_monai.data.survey import Facts


@dataclass(frozen=True)
class Row:
    """What one split of one site holds.

    Args:
        site: ``""`` for the public set.
        split: its name.
        images: number of images.
        labelled: of these, with a mask.
        groups: number of distinct groups; 0 where none is known.
        sizes: width x height, most frequent first, with counts.
        modes: stored pixel types with counts.
        mask_values: distinct grey levels over all masks.
        empty: masks without foreground.
        full: masks without background.
        repeated: images whose bytes another image of the same site has.
        turned: images that carry an EXIF orientation.
        foreground: quartiles (lower, median, upper) of the foreground's share; ``None`` without masks.
        bins: number of masks in each tenth of the foreground's share.
    """

    site: str
    split: str
    images: int
    labelled: int
    groups: int
    sizes: list[tuple[str, int]]
    modes: list[tuple[str, int]]
    mask_values: list[int]
    empty: int
    full: int
    repeated: int
    turned: int
    foreground: tuple[float, float, float] | None
    bins: list[int]


def rows(datalist: DataList, facts: Mapping[str, Facts]) -> list[Row]:
    """A row for the public set and for every split of every site, empty ones included."""
    table = [_row("", "public", datalist.public, facts, first_seen(datalist.public))]
    for name, site in datalist.sites.items():
        first = first_seen([item for _, items in site.splits() for item in items])
        table += [_row(name, split.value, items, facts, first) for split, items in site.splits()]
    return table


def first_seen(items: Sequence[Item]) -> dict[str, str]:
    """SHA-256 to the first image that has it."""
    first: dict[str, str] = {}
    for item in items:
        first.setdefault(item.sha256, item.image)
    return first


def _row(site: str, split: str, items: Sequence[Item], facts: Mapping[str, Facts], first: Mapping[str, str]) -> Row:
    known = [facts[item.image] for item in items]
    masks = [facts[item.image] for item in items if item.label is not None]
    shares = [fact.foreground for fact in masks if fact.foreground is not None]
    low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75]).tolist() if shares else (0.0, 0.0, 0.0)
    return Row(
        site=site,
        split=split,
        images=len(items),
        labelled=len(masks),
        groups=len({item.group for item in items if item.group}),
        sizes=Counter(f"{fact.width} × {fact.height}" for fact in known).most_common(),
        modes=Counter(fact.mode for fact in known).most_common(),
        mask_values=sorted({value for fact in masks for value in fact.mask_values}),
        empty=sum(share == 0 for share in shares),
        full=sum(share == 1 for share in shares),
        repeated=sum(first[item.sha256] != item.image for item in items),
        turned=sum(fact.turned for fact in known),
        foreground=(low, middle, high) if shares else None,
        bins=np.histogram(shares, bins=10, range=(0, 1))[0].tolist(),
    )


def doubts(datalist: DataList, facts: Sequence[Facts]) -> list[str]:
    """Sentences on masks that exist and decode, but look odd: empty, full, not upright, fitting better when turned."""
    by_image = {fact.image: fact for fact in facts}
    sentences = []
    for name, items in [("the public set", datalist.public), *_by_site(datalist)]:
        masks = [by_image[item.image] for item in items if item.label is not None]
        empty, full = sum(fact.foreground == 0 for fact in masks), sum(fact.foreground == 1 for fact in masks)
        if empty or full:
            sentences.append(f"{name} has {empty} empty and {full} full mask(s); scores count them apart")
        turned = sum(fact.turned for fact in masks)
        if turned:
            sentences.append(
                f"{turned} labelled image(s) of {name} carry an EXIF orientation, which is applied; "
                "look whether their masks follow it"
            )
        square = [fact for fact in masks if fact.misfit]
        better = sum(fact.misfit > 0.02 for fact in square)
        if len(square) >= 8 and better > len(square) / 2:
            sentences.append(
                f"{better} of {len(square)} square masks of {name} fit their images better when transposed or turned: "
                "look at the overlays"
            )
    return sentences


def _by_site(datalist: DataList) -> list[tuple[str, list[Item]]]:
    return [(name, [item for _, items in site.splits() for item in items]) for name, site in datalist.sites.items()]
