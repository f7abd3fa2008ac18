"""The same image in two places: a leak where one of them measures, a warning where both only train (faults 16, 17)."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import combinations

from samfed_monai.data.datalist import DataList
from samfed_monai.data.items import Split
from samfed_monai.errors import Problem, Problems

MEASURING = (Split.VALIDATION, Split.TEST)


def leaks(datalist: DataList) -> list[Problem]:
    """Images of a validation or test split whose bytes also stand in another split, of whatever site.

    Every site's training images shape the one global model, so a test image may stand nowhere else.
    """
    problems = Problems()
    first: dict[str, tuple[str, Split, str]] = {}
    for site, split, item in datalist.items():
        here = (site, split, item.image)
        there = first.setdefault(item.sha256, here)
        if (there[0], there[1]) != (site, split) and (split in MEASURING or there[1] in MEASURING):
            problems.add(
                item.image,
                found=f"the same bytes in {_place(*here)} and, as {there[2]}, in {_place(*there)}",
                expected=f"an image of {split.value if split in MEASURING else there[1].value} in no other split",
                mend="take it out of one of them, or results look better than they are",
            )
    return list(problems)


def salted(sha256: str, salt: str) -> str:
    """A hash that two sites can compare without telling a third which image it is, as long as the salt stays theirs."""
    return hashlib.sha256(f"{salt}:{sha256}".encode()).hexdigest()


def shared(hashes: Mapping[str, Collection[str]]) -> dict[tuple[str, str], int]:
    """How many hashes each pair of sites has in common; pairs with none are left out.

    Args:
        hashes: salted hashes of each site's images.
    """
    counts = {
        (one, other): len(set(hashes[one]) & set(hashes[other])) for one, other in combinations(sorted(hashes), 2)
    }
    return {pair: count for pair, count in counts.items() if count}


def warnings(datalist: DataList) -> list[str]:
    """Sentences about images that stand twice, and groups that straddle places, where that is allowed but matters."""
    salt = secrets.token_hex(16)
    places: dict[str, set[str]] = {}
    groups: dict[str, set[tuple[str, Split]]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for site, split, item in datalist.items():
        digest = salted(item.sha256, salt)
        places.setdefault(site or "the public set", set()).add(digest)
        counts[site, digest] += 1
        if item.group:
            groups.setdefault(item.group, set()).add((site, split))
    sentences = [
        f"{count} image(s) stand both at {one} and at {other}" for (one, other), count in shared(places).items()
    ]
    for site in ["", *datalist.sites]:
        twice = sum(count - 1 for (place, _), count in counts.items() if place == site and count > 1)
        if twice:
            sentences.append(f"{twice} image(s) of {site or 'the public set'} repeat the bytes of another one there")
    leaky = sum(1 for where in groups.values() if len(where) > 1 and any(split in MEASURING for _, split in where))
    if leaky:
        sentences.append(
            f"{leaky} of {len(groups)} groups have images in a validation or test split and elsewhere: "
            "frames of one sequence look alike, so scores on this list are optimistic"
        )
    return sentences


def _place(site: str, split: Split, _image: str) -> str:
    return f"{site}'s {split.value} images" if site else "the public images"
