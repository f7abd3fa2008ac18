"""Who gets which of the found images: the public ones, the sites, and each site's splits for measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samfed_monai.data.grouping import clusters
from samfed_monai.data.items import Split
from samfed_monai.data.partitions import Partition, appearance_classes, dirichlet, hold_out, iid, size_classes
from samfed_monai.data.sources.found import Found
from samfed_monai.data.survey import Facts
from samfed_monai.errors import Problem, Problems, Refused

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
        raise Refused([Problem("--public", found=repr(public), expected=expected, mend="for instance 100")])
    hashes = [facts[one.image].sha256 for one in found]
    labelled = [one.label is not None for one in found]
    drawn, rest = hold_out(hashes, [one.group for one in found], labelled, [share], seed=seed)
    if not drawn:
        mend = "unpack the ground truth beside the images"
        raise Refused([Problem("--public", found="no labelled images to draw from", expected="masks", mend=mend)])
    return [found[index] for index in drawn], [found[index] for index in rest]


def divide(
    found: list[Found], facts: Mapping[str, Facts], partition: Partition, sites: int, alpha: float, seed: int
) -> dict[str, list[Found]]:
    """The images of each site: by the folder they lie in, or as ``site-1`` and so on.

    Args:
        found: private images.
        facts: by image.
        partition: how they are divided.
        sites: number of sites, unless folders are.
        alpha: Dirichlet's concentration.
        seed: of the draws.
    """
    if partition is Partition.FOLDER:
        if any(not one.origin for one in found):
            mend = "put each site's images into a folder of its own"
            raise Refused([Problem("--partition folder", found="images in no folder", expected="folders", mend=mend)])
        return {origin: [one for one in found if one.origin == origin] for origin in sorted({o.origin for o in found})}
    looked = [facts[one.image] for one in found]
    together = clusters([fact.sha256 for fact in looked], [one.group for one in found])
    if partition is Partition.IID:
        parts = iid(together, sites, seed=seed)
    elif partition is Partition.DIRICHLET_SIZE:
        sizes = [fact.foreground for fact in looked if fact.foreground is not None]
        if len(sizes) < len(looked):
            unknown = f"{len(looked) - len(sizes)} images without a mask"
            mend = "use --partition dirichlet-appearance"
            raise Refused([Problem("--partition", found=unknown, expected="masks to take sizes from", mend=mend)])
        parts = dirichlet(together, size_classes(sizes), sites, alpha=alpha, seed=seed)
    else:
        classes = appearance_classes([fact.mean_rgb for fact in looked])
        parts = dirichlet(together, classes, sites, alpha=alpha, seed=seed)
    return {f"site-{number}": [found[index] for index in part] for number, part in enumerate(parts, start=1)}


def share_problems(validation: float, test: float) -> list[Problem]:
    """What is wrong with the shares to measure on: each is in [0, 1), and something is left to train on."""
    problems = Problems()
    for option, share in (("--validation", validation), ("--test", test)):
        if not 0 <= share < 1:
            problems.add(option, found=f"{share:g}", expected="a share in [0, 1)", mend="for instance 0.1")
    if not len(problems) and validation + test >= 1:
        where, found = "--validation and --test", f"{validation:g} and {test:g}"
        problems.add(where, found=found, expected="less than 1 together", mend="for instance 0.1 and 0.1")
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

    What also stands elsewhere, by its bytes or its group, stays among the unlabelled, so that no score can leak.

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
            one.label is not None
            and len(owners[digest]) == 1
            and (one.group is None or len(owners[f"group {one.group}"]) == 1)
            for one, digest in zip(ones, hashes, strict=True)
        ]
        groups = [one.group for one in ones]
        drawn = hold_out(hashes, groups, own, [validation, test], seed=seed)
        for split, indices in zip((Split.VALIDATION, Split.TEST, Split.UNLABELLED), drawn, strict=True):
            places[site, split] = [ones[index] for index in indices]
    return places
