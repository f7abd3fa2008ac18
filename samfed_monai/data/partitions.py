"""Who gets which images: the public set, the sites, each site's splits, and sites made out of sites.

Every function covers each index exactly once, keeps clusters (one group, or the same bytes) in one place, and depends
only on its arguments and the seed, not on file names or the order of the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np

from samfed_monai.core.errors import Problem, Problems, refused
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.words import counted
from samfed_monai.data.checks import Facts
from samfed_monai.data.datalist import SITE_SPLITS, Split
from samfed_monai.data.grouping import clusters, draw
from samfed_monai.data.sources.found import Found

Clusters = list[list[int]]


class Partition(str, Enum):
    """How one collection is divided among sites."""

    IID = "iid"
    FOLDER = "folder"


def iid(together: Clusters, sites: int, *, seed: int = 0) -> list[list[int]]:
    """Divides clusters at random into parts of about equal size.

    Args:
        together: clusters of indices (:func:`~.grouping.clusters`).
        sites: number of parts.
        seed: of the order.

    Returns:
        Indices of each part, ascending.
    """
    _enough(together, sites)
    order = _random(seed, "iid").permutation(len(together))
    largest_first = sorted((int(index) for index in order), key=lambda index: -len(together[index]))
    parts: list[list[int]] = [[] for _ in range(sites)]
    for index in largest_first:
        min(parts, key=len).extend(together[index])
    return [sorted(part) for part in parts]


def hold_out(
    hashes: Sequence[str],
    groups: Sequence[str | None],
    labelled: Sequence[bool],
    shares: Sequence[float],
    *,
    seed: int = 0,
) -> list[list[int]]:
    """Draws splits for measuring out of one site's labelled images.

    Only clusters whose images all have labels are drawn from, and something is always left to train on. A share counts
    against all images of the site; where labels do not suffice for all shares, they are divided in proportion.

    Args:
        hashes: SHA-256 of every image.
        groups: group of every image, or ``None``.
        labelled: whether the image has a mask.
        shares: of each split, in [0, 1), together less than 1.
        seed: of the draws.

    Returns:
        Indices of each split in the order of ``shares``, then of all the rest.
    """
    everything = clusters(hashes, groups)
    together = [cluster for cluster in everything if all(labelled[index] for index in cluster)]
    leave = int(len(together) == len(everything))
    available = sum(map(len, together))
    scale = min(1.0, available / (sum(shares) * len(hashes))) if sum(shares) and hashes else 1.0
    splits: list[list[int]] = []
    for number, share in enumerate(shares):
        target = round(share * scale * len(hashes))
        random = _random(seed, f"hold-out-{number}")
        drawn = draw([len(cluster) for cluster in together], target, random, leave=leave)
        splits.append(sorted(index for cluster in drawn for index in together[cluster]))
        together = [cluster for index, cluster in enumerate(together) if index not in drawn]
    taken = {index for split in splits for index in split}
    return [*splits, [index for index in range(len(hashes)) if index not in taken]]


def _random(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, purpose))


def _enough(together: Clusters, sites: int) -> None:
    if not 1 <= sites <= len(together):
        found = f"{sites} sites for {len(together)} independent groups of images"
        raise refused("sites", found=found, expected="at least one group for each", hint="ask for fewer sites")


Places = dict[tuple[str, Split], list[Found]]


def draw_public(
    found: list[Found], facts: Mapping[str, Facts], public: str | None, seed: int
) -> tuple[list[Found], list[Found]]:
    """The public images, and the rest.

    Args:
        found: all images.
        facts: by image.
        public: a count, a share, or the name of the folder whose images are public (whether they have masks is for
            :func:`~.sources.folders.without_mask` to say); ``None``: no image is.
        seed: of the draw; only labelled images are drawn.
    """
    if public is None:
        return [], found
    origins = sorted({one.origin for one in found if one.origin})
    if public in origins:
        chosen = [one for one in found if one.origin == public]
        return chosen, [one for one in found if one.origin != public]
    try:
        number = float(public)
    except ValueError:
        number = 0.0
    share = number / len(found) if number >= 1 else number
    if not 0 < share < 1:
        expected = f"a count below {len(found)}, a share in (0, 1), one of {origins}, or none"
        raise refused("--public", found=repr(public), expected=expected, hint="for instance 100")
    hashes = [facts[one.image].sha256 for one in found]
    labelled = [one.label is not None for one in found]
    drawn, rest = hold_out(hashes, [one.group for one in found], labelled, [share], seed=seed)
    if not drawn:
        hint = "unpack the ground truth beside the images"
        raise refused("--public", found="no labelled images to draw from", expected="masks", hint=hint)
    return [found[index] for index in drawn], [found[index] for index in rest]


def divide(
    found: list[Found], facts: Mapping[str, Facts], partition: Partition, sites: int, seed: int
) -> dict[str, list[Found]]:
    """The images of each site: by the folder that they are in, or as ``site-1`` and so on.

    Args:
        found: private images.
        facts: by image.
        partition: how they are divided.
        sites: number of sites, unless folders are.
        seed: of the draws.
    """
    if partition is Partition.FOLDER:
        if any(not one.origin for one in found):
            hint = "put each site's images into a folder of its own"
            raise refused("--partition folder", found="images in no folder", expected="folders", hint=hint)
        return {origin: [one for one in found if one.origin == origin] for origin in sorted({o.origin for o in found})}
    looked = [facts[one.image] for one in found]
    together = clusters([fact.sha256 for fact in looked], [one.group for one in found])
    parts = iid(together, sites, seed=seed)
    return {f"site-{number}": [found[index] for index in part] for number, part in enumerate(parts, start=1)}


def share_problems(validation: float, test: float) -> list[Problem]:
    """What is wrong with the shares to measure on: each is in [0, 1), and something is left to train on."""
    problems = Problems()
    for option, share in (("--validation", validation), ("--test", test)):
        if not 0 <= share < 1:
            problems.add(option, found=f"{share:g}", expected="a share in [0, 1)", hint="for instance 0.1")
    if not len(problems) and validation + test >= 1:
        where, found = "--validation and --test", f"{validation:g} and {test:g}"
        problems.add(where, found=found, expected="less than 1 together", hint="for instance 0.1 and 0.1")
    return list(problems)


def draw_measuring(
    by_site: Mapping[str, list[Found]],
    facts: Mapping[str, Facts],
    validation: float,
    test: float,
    *,
    beside: Sequence[Found],
    seed: int,
) -> Places:
    """Draws each site's validation and test images; the rest is unlabelled.

    What is also elsewhere, by its bytes or its group, stays among the unlabelled, so that no score can leak; so
    does what has a weak label.

    Args:
        by_site: images of each site.
        facts: by image.
        validation: share of the site's images, in [0, 1).
        test: likewise.
        beside: the public images.
        seed: of the draws.
    """
    owners: dict[str, set[str]] = {}
    for site, ones in [("", beside), *by_site.items()]:
        for one in ones:
            for key in (facts[one.image].sha256, f"group {one.group}" if one.group else ""):
                owners.setdefault(key, set()).add(site)
    places: Places = {}
    for site, ones in by_site.items():
        hashes = [facts[one.image].sha256 for one in ones]
        own = [
            one.has_mask and len(owners[digest]) == 1 and (one.group is None or len(owners[f"group {one.group}"]) == 1)
            for one, digest in zip(ones, hashes, strict=True)
        ]
        groups = [one.group for one in ones]
        drawn = hold_out(hashes, groups, own, [validation, test], seed=seed)
        for split, indices in zip((Split.VALIDATION, Split.TEST, Split.UNLABELLED), drawn, strict=True):
            places[site, split] = [ones[index] for index in indices]
    return places


def make_unseen(places: Places, facts: Mapping[str, Facts], names: Sequence[str]) -> tuple[Places, list[str]]:
    """Turns sites into unseen hospitals: all their labelled images become test images, nothing is left to train on.

    Images without a mask are left out, and so are those with the bytes, or the group (patient, video), of images
    elsewhere: no site may have trained on what an unseen hospital measures.

    Args:
        places: images by site and split.
        facts: by image.
        names: the sites; the others stay as they are.

    Returns:
        The new places, and sentences on what was left out.

    Raises:
        Refused: no such site, no site left to train on, or nothing left to measure with.
    """
    sites = _sites(places)
    problems = Problems()
    for name in names:
        if name not in sites:
            hint = "give names of sites, with commas between them"
            problems.add("--unseen", found=repr(name), expected=f"one of {sites}", hint=hint)
    if names and not set(sites) - set(names):
        problems.add("--unseen", found="every site", expected="at least one site left to train at")
    problems.refuse_if_any()
    changed: Places = {place: ones for place, ones in places.items() if place[0] not in names}
    sentences = []
    for name in sites:
        if name not in names:
            continue
        everything = [one for split in SITE_SPLITS for one in places.get((name, split), [])]
        others = [one for place, ones in places.items() if place[0] != name for one in ones]
        hashes, groups = {facts[one.image].sha256 for one in others}, {one.group for one in others} - {None, ""}
        labelled = [one for one in everything if one.label is not None]
        new = [one for one in labelled if facts[one.image].sha256 not in hashes]
        kept = [one for one in new if one.group not in groups]
        for count, one, many, why in (
            (len(everything) - len(labelled), "has", "have", "no mask"),
            (len(labelled) - len(new), "is also", "are also", "elsewhere, and the site is to be unseen"),
            (len(new) - len(kept), "shares", "share", "a patient or video with others, and the site is to be unseen"),
        ):
            if count:
                who = counted(count, f"image of {name} {one}", f"images of {name} {many}")
                sentences.append(f"{who} {why}: left out")
        if not kept:
            hint = "give masks of images that are nowhere else, or leave it out of --unseen"
            problems.add(f"--unseen {name}", found="no image to measure with", expected="some with masks", hint=hint)
        changed[name, Split.TEST] = kept
    problems.refuse_if_any()
    return changed, sentences


def divide_sites(
    places: Places, facts: Mapping[str, Facts], parts: int, *, seed: int = 0, spared: Sequence[str] = ()
) -> tuple[Places, list[str]]:
    """Cuts every site into ``<name>-1`` to ``<name>-<parts>``, all three splits in about equal shares.

    Images of one group, or with the same bytes, come to one part, whatever split they are in. The result depends on
    the images' hashes, the groups and the seed, not on names or order.

    Args:
        places: images by site and split; the public ones stay as they are.
        facts: by image.
        parts: number of sites to make of each.
        seed: of the order in which clusters are dealt out.
        spared: sites that stay whole.

    Returns:
        The new places, and sentences on splits that did not suffice for every part.

    Raises:
        Refused: ``parts`` is not positive, or a site has fewer independent groups of images than parts, or
            one of its parts would be called like another site.
    """
    if parts < 1:
        raise refused("--divide", found=str(parts), expected="a positive number", hint="for instance 2")
    problems = Problems()
    changed: Places = {}
    sentences = []
    sites = _sites(places, public=True)
    for site in sites:
        mine = [(split, one) for (name, split), ones in places.items() if name == site for one in ones]
        if not site or site in spared:
            changed.update({place: ones for place, ones in places.items() if place[0] == site})
            continue
        for name in sorted({f"{site}-{part + 1}" for part in range(parts)} & set(sites)):
            found, expected = f"a site {name!r}", f"names from {site}-1 to {site}-{parts} free for its parts"
            problems.add(f"--divide {parts}: {site}", found=found, expected=expected, hint="rename the site")
        together = clusters([facts[one.image].sha256 for _, one in mine], [one.group for _, one in mine])
        if len(together) < parts:
            found = f"{counted(len(together), 'independent group')} of images"
            hint = "ask for fewer parts, or leave the site whole"
            problems.add(f"--divide {parts}: {site}", found=found, expected=f"at least {parts}", hint=hint)
            continue
        owner = _deal([[mine[index][0] for index in cluster] for cluster in together], parts, seed)
        part_of = {index: part for cluster, part in zip(together, owner, strict=True) for index in cluster}
        for split in SITE_SPLITS:
            indices = [index for index, (where, _) in enumerate(mine) if where is split]
            for part in range(parts):
                chosen = [mine[index][1] for index in indices if part_of[index] == part]
                changed[f"{site}-{part + 1}", split] = chosen
                if indices and not chosen:
                    sentences.append(f"{site}-{part + 1} has no {split.value} images: whole groups did not suffice")
    problems.refuse_if_any()
    return changed, sentences


def _deal(contents: Sequence[Sequence[Split]], parts: int, seed: int) -> list[int]:
    """Part of each cluster: the large ones first, each to where it evens out the splits' shares most."""
    sizes = np.array([[cluster.count(split) for split in SITE_SPLITS] for cluster in map(list, contents)], dtype=float)
    shares = sizes / np.maximum(sizes.sum(axis=0), 1)
    order = np.random.default_rng(derive_seed(seed, "divide")).permutation(len(sizes))
    load = np.zeros((parts, len(SITE_SPLITS)))
    owner = [0] * len(sizes)
    for index in sorted(order.tolist(), key=lambda index: -shares[index].sum()):
        cost = ((load + shares[index]) ** 2 - load**2).sum(axis=1)
        part = min(range(parts), key=lambda part: (round(cost[part], 12), round(load[part].sum(), 12), part))
        load[part] += shares[index]
        owner[index] = part
    return owner


def _sites(places: Places, *, public: bool = False) -> list[str]:
    return list(dict.fromkeys(site for site, _ in places if site or public))
