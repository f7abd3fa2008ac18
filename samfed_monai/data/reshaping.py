"""Sites made out of sites: some that only measure (unseen hospitals), and one hospital cut into several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from samfed_monai.data.allotment import Places
from samfed_monai.data.grouping import clusters
from samfed_monai.data.items import SITE_SPLITS, Split
from samfed_monai.data.survey import Facts
from samfed_monai.errors import Problem, Problems, Refused
from samfed_monai.seeds import derive_seed


def make_unseen(places: Places, facts: Mapping[str, Facts], names: Sequence[str]) -> tuple[Places, list[str]]:
    """Turns sites into unseen hospitals: all their labelled images become test images, nothing is left to train on.

    Images without a mask are left out, and so are those whose bytes, or whose group (patient, video), also stand
    elsewhere: nobody may have trained on what an unseen hospital measures.

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
            mend = "give names of sites, with commas between them"
            problems.add("--unseen", found=repr(name), expected=f"one of {sites}", mend=mend)
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
        for count, why in (
            (len(everything) - len(labelled), "have no mask and are left out"),
            (len(labelled) - len(new), "also stand elsewhere and are left out: it is to be unseen"),
            (len(new) - len(kept), "share a patient or video with others and are left out: it is to be unseen"),
        ):
            if count:
                sentences.append(f"{count} image(s) of {name} {why}")
        if not kept:
            mend = "give masks of images that stand nowhere else, or leave it out of --unseen"
            problems.add(f"--unseen {name}", found="no image to measure with", expected="some with masks", mend=mend)
        changed[name, Split.TEST] = kept
    problems.refuse_if_any()
    return changed, sentences


def divide_sites(
    places: Places, facts: Mapping[str, Facts], parts: int, *, seed: int = 0, spared: Sequence[str] = ()
) -> tuple[Places, list[str]]:
    """Cuts every site into ``<name>-1`` to ``<name>-<parts>``, all three splits in about equal shares.

    Images of one group, or with the same bytes, come to one part, whatever split they stand in. The result depends on
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
        raise Refused([Problem("--divide", found=str(parts), expected="a positive number", mend="for instance 2")])
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
            problems.add(f"--divide {parts}: {site}", found=found, expected=expected, mend="rename the site")
        together = clusters([facts[one.image].sha256 for _, one in mine], [one.group for _, one in mine])
        if len(together) < parts:
            found = f"{len(together)} independent group(s) of images"
            mend = "ask for fewer parts, or leave the site whole"
            problems.add(f"--divide {parts}: {site}", found=found, expected=f"at least {parts}", mend=mend)
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
