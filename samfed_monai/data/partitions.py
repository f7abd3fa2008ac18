"""Partitions of images: the public set, the sites, each site's splits, and division of sites.

A partition never splits a group (one sequence, patient or lesion, or identical bytes). Every function covers each index
exactly once, and depends only on its arguments and the seed, not on file names or the order of the input.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from samfed_monai.core.errors import Problem, Problems, refused
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.text import counted, grouped, normal
from samfed_monai.core.validators import in_range, one_of, require, whole
from samfed_monai.data.checks import stem
from samfed_monai.data.datalist import SITE_SPLITS, Split
from samfed_monai.data.folders import Found
from samfed_monai.data.image_folder import stem_of
from samfed_monai.data.reading import SUFFIXES

Clusters = list[list[int]]
Places = dict[tuple[str, Split], list[Found]]
"""Images by site and split; those of the site ``""`` are public."""
Names = Sequence[str]
SHARED = "also used elsewhere; if these are different patients, give each site its own names of groups"
FOLDER = "folder"
"""Value instead of a number of sites: each folder of a pool is a site."""


def clusters(hashes: Sequence[str], groups: Sequence[str | None]) -> list[list[int]]:
    """Groups the indices of images that must stay together.

    Two images belong together if they share a group or their bytes, directly or through others.

    Args:
        hashes: SHA-256 of every image.
        groups: group of every image, or ``None``.

    Returns:
        Lists of indices that cover every image exactly once, ordered by their smallest hash and so independent of file
        names and of the order of the input.
    """
    first, joined = dict[tuple[str, str], int](), DisjointSet(range(len(hashes)))
    for index, (digest, group) in enumerate(zip(hashes, groups, strict=True)):
        joined.merge(index, first.setdefault(("bytes", digest), index))
        if name := normal(group or ""):
            joined.merge(index, first.setdefault(("group", name), index))
    return sorted(map(sorted, joined.subsets()), key=lambda cluster: min(hashes[index] for index in cluster))


def draw(sizes: Sequence[int], target: int, random: np.random.Generator, *, leave: int = 1) -> list[int]:
    """Draws clusters at random until their sizes add up to about ``target``.

    Args:
        sizes: number of images in each cluster.
        target: number of images wanted; 0 draws nothing.
        random: generator for the order in which clusters are tried.
        leave: number of clusters that are never drawn.

    Returns:
        Indices of the drawn clusters, ascending; at least one if ``target`` is positive and enough are left.
    """
    drawn: list[int] = []
    total = 0
    order = [int(index) for index in random.permutation(len(sizes))]
    for index in order:
        if len(drawn) < len(sizes) - leave and abs(total + sizes[index] - target) < abs(total - target):
            drawn.append(index)
            total += sizes[index]
    if target > 0 and not drawn and len(sizes) > leave:
        drawn = [min(order, key=lambda index: sizes[index])]
    return sorted(drawn)


def subset(hashes: Sequence[str], limit: int | None) -> list[int]:
    """Returns the ascending indices of ``limit`` images (``None``: of all), chosen by hash, independent of names.

    A smaller subset is part of a larger one.
    """
    chosen = sorted(range(len(hashes)), key=lambda index: (hashes[index], index))
    return sorted(chosen if limit is None else chosen[:limit])


def iid(members: Clusters, sites: int, *, seed: int = 0) -> list[list[int]]:
    """Divides clusters at random into parts of about equal size.

    Args:
        members: clusters of indices (:func:`clusters`).
        sites: number of parts.
        seed: seed of the order.

    Returns:
        Indices of each part, ascending.
    """
    if not 1 <= sites <= len(members):
        found = f"{sites} sites for {len(members)} independent groups of images"
        raise refused("--sites", found=found, expected="at least one group per site", hint="choose fewer sites")
    order = np.random.default_rng(derive_seed(seed, "iid")).permutation(len(members))
    parts: list[list[int]] = [[] for _ in range(sites)]
    for index in sorted(order.tolist(), key=lambda index: -len(members[index])):
        min(parts, key=len).extend(members[index])
    return [sorted(part) for part in parts]


def hold_out(
    found: Sequence[Found], eligible: Sequence[bool], shares: Sequence[float], *, seed: int = 0
) -> list[list[Found]]:
    """Draws validation and test splits from one site's labelled images.

    Only clusters whose images are all eligible are drawn, and at least one cluster is left for training. Shares refer
    to all images of the site; if there are too few eligible ones, they are divided in proportion to the shares.

    Args:
        found: images.
        eligible: whether each image may be drawn, that is, has a mask.
        shares: share of each split, in [0, 1), together less than 1.
        seed: seed of the draws.

    Returns:
        Images of each split in the order of ``shares``, then all the rest.
    """
    everything = clusters_of(found)
    candidates = [cluster for cluster in everything if all(eligible[index] for index in cluster)]
    leave = int(len(candidates) == len(everything))
    scale = min(1.0, sum(map(len, candidates)) / (sum(shares) * len(found))) if sum(shares) and found else 1.0
    splits: list[set[int]] = []
    for number, share in enumerate(shares):
        random = np.random.default_rng(derive_seed(seed, f"hold-out-{number}"))
        drawn = draw([len(cluster) for cluster in candidates], round(share * scale * len(found)), random, leave=leave)
        splits.append({index for cluster in drawn for index in candidates[cluster]})
        candidates = [cluster for index, cluster in enumerate(candidates) if index not in drawn]
    splits.append(set(range(len(found))).difference(*splits))
    return [[entry for index, entry in enumerate(found) if index in split] for split in splits]


def clusters_of(found: Sequence[Found]) -> Clusters:
    """Returns the clusters of images; of images that were not read (without SHA-256), copies are not recognised."""
    return clusters([entry.sha256 or entry.image for entry in found], [entry.group for entry in found])


def draw_public(found: list[Found], public: str | None, seed: int) -> tuple[list[Found], list[Found]]:
    """Returns the public images and the rest.

    Args:
        found: all images.
        public: a count, a share, or the name of the folder whose images are public (:func:`~.folders.without_mask`
            checks that these have masks); ``None``: no image is public.
        seed: seed of the draw; only labelled images are drawn.
    """
    if public is None:
        return [], found
    origins = sorted({image.origin for image in found if image.origin})
    if public in origins:
        chosen = [image for image in found if image.origin == public]
        return chosen, [image for image in found if image.origin != public]
    number = 0.0
    with suppress(ValueError):
        number = float(public)
    share = number / len(found) if number >= 1 else number
    if not 0 < share < 1 or (number > 1 and number % 1):
        expected = f"a count below {len(found)}, a share in (0, 1), one of {origins}, or none"
        raise refused("--public", found=repr(public), expected=expected, hint="for instance 100")
    drawn, rest = hold_out(found, [image.label is not None for image in found], [share], seed=seed)
    if not drawn:
        hint = "unpack the ground truth next to the images"
        raise refused("--public", found="none to draw from", expected="images with masks", hint=hint)
    return drawn, rest


def divide(found: list[Found], sites: int | str, seed: int) -> dict[str, list[Found]]:
    """Divides images into sites: by folder, or at random into ``site-1``, ``site-2``, …

    Args:
        found: private images.
        sites: number of sites, or :data:`FOLDER`.
        seed: seed of the draws.
    """
    if isinstance(sites, int):
        parts = iid(clusters_of(found), sites, seed=seed)
        return {f"site-{number}": [found[index] for index in part] for number, part in enumerate(parts, start=1)}
    require(one_of("--sites", sites, [FOLDER], "give a number, or this word"))
    origins = sorted({image.origin for image in found})
    if "" in origins:
        hint = "put each site's images into a folder of its own"
        raise refused("--sites folder", found="images in no folder", expected="a folder for each site", hint=hint)
    return {name: [image for image in found if image.origin == name] for name in origins}


def share_problems(validation: float, test: float) -> list[Problem]:
    """Returns the problems of the validation and test shares: each in [0, 1), together less than 1."""
    problems = Problems()
    for option, share in (("--validation", validation), ("--test", test)):
        problems.extend(in_range(option, share, "a share", least=0, below=1, hint="for instance 0.1"))
    if not len(problems) and validation + test >= 1:
        where, found = "--validation and --test", f"{validation:g} and {test:g}"
        problems.add(where, found=found, expected="less than 1 together", hint="for instance 0.1 and 0.1")
    return list(problems)


def draw_measuring(
    by_site: Mapping[str, list[Found]], shares: Sequence[float], public: Sequence[Found], seed: int, unseen: Names = ()
) -> tuple[Places, list[str]]:
    """Draws each site's validation and test images; the rest is unlabelled.

    Images whose bytes or group are also at another site or public stay unlabelled, so that no score leaks; so do images
    with weak labels.

    Args:
        by_site: images of each site.
        shares: shares of the site's images for validation and test, each in [0, 1).
        public: the public images.
        seed: seed of the draws.
        unseen: sites whose splits :func:`make_unseen` joins again.

    Returns:
        Images by site and split, the public ones included, and sentences on masks not used because of their groups.
    """
    owners: dict[str, set[str]] = {}

    def keys(entry: Found) -> list[str]:
        return [entry.sha256, *([f"group {entry.group}"] if entry.group else [])]

    def has_mask(entry: Found) -> bool:
        return entry.label is not None and entry.label_kind is None

    for site, entries in [("", public), *by_site.items()]:
        for key in (key for entry in entries for key in keys(entry)):
            owners.setdefault(key, set()).add(site)
    places: Places = {("", Split.PUBLIC): list(public)}
    sentences = list[str]()
    for site, entries in by_site.items():
        eligible = [has_mask(entry) and all(len(owners[key]) == 1 for key in keys(entry)) for entry in entries]
        drawn = hold_out(entries, eligible, shares, seed=seed)
        places |= zip([(site, split) for split in (Split.VALIDATION, Split.TEST, Split.UNLABELLED)], drawn, strict=True)
        groups = Counter(entry.group for entry in entries if entry.group and has_mask(entry))
        unmasked_groups = {entry.group for entry in entries if not has_mask(entry)}
        shared = {group for group in groups if len(owners[f"group {group}"]) > 1}
        partly_masked = groups.keys() & unmasked_groups - shared
        for excluded, reason in ((shared, SHARED), (partly_masked, "also used by images without a mask")):
            if excluded and any(shares) and site not in unseen:
                count = sum(groups[group] for group in excluded)
                subject = counted(count, f"image of {site} has a mask but is", f"images of {site} have masks but are")
                reason = f"their groups, such as {min(excluded)!r}, are {reason}"
                sentences.append(f"{subject} not used for validation or test: {reason}")
    return places, sentences


def unseen_problems(names: Names, sites: Names) -> Iterator[Problem]:
    """Yields the problems of ``--unseen``: names that are not among the sites, or every site."""
    for name in names:
        yield from one_of("--unseen", name, sites, "give names of sites, separated by commas")
    if names and not set(sites) - set(names):
        yield Problem("--unseen", "every site", "at least one site left for training")


def make_unseen(places: Places, names: Sequence[str]) -> tuple[Places, list[str]]:
    """Turns sites into unseen hospitals: all their labelled images become test images, none are used for training.

    Images without a mask are left out, and so are images that share bytes or group (patient, video, volume) with images
    elsewhere, and their whole group: no site may train on test images of an unseen hospital.

    Args:
        places: images by site and split.
        names: the unseen sites; other sites are unchanged.

    Returns:
        Images by site and split, and sentences on images left out.

    Raises:
        Refused: no such site, no site left for training, or no test image left.
    """
    sites = list(dict.fromkeys(site for site, _ in places if site))
    require(unseen_problems(names, sites))
    changed: Places = {place: entries for place, entries in places.items() if place[0] not in names}
    problems, sentences = Problems(), list[str]()
    for name in [site for site in sites if site in names]:
        everything = [entry for split in SITE_SPLITS for entry in places.get((name, split), [])]
        others = [entry for place, entries in places.items() if place[0] != name for entry in entries]
        hashes, groups = {entry.sha256 for entry in others}, {entry.group for entry in others}
        groups = {*groups, *(entry.group for entry in everything if entry.sha256 in hashes)} - {None}
        labelled = [entry for entry in everything if entry.label is not None]
        new = [entry for entry in labelled if entry.sha256 not in hashes]
        kept = [entry for entry in new if entry.group not in groups]
        site_sentences = list[str]()
        for count, singular, plural, reason in (
            (len(everything) - len(labelled), "has", "have", "no mask"),
            (len(labelled) - len(new), "is also", "are also", "elsewhere, but the site must be unseen"),
            (len(new) - len(kept), "shares", "share", "a patient or video with others, but the site must be unseen"),
        ):
            if count:
                subject = counted(count, f"image of {name} {singular}", f"images of {name} {plural}")
                site_sentences.append(f"{subject} {reason}: left out")
        sentences += site_sentences
        if not kept:
            hint = "add masks of images that are nowhere else, or leave the site out of --unseen"
            found = "; ".join(["no image for testing", *site_sentences])
            problems.add(f"--unseen {name}", found=found, expected="images with masks", hint=hint)
        changed[name, Split.TEST] = kept
    problems.refuse_if_any()
    return changed, sentences


def divide_problems(by_site: Mapping[str, Sequence[Found]], parts: int, *, skip: Names = ()) -> Iterator[Problem]:
    """Yields the problems of :func:`divide_sites`: a part with the name of a site, and sites with too few groups.

    Args:
        by_site: images of each site, if any; before they are read, copies count as different images.
        parts: number of parts of each site.
        skip: sites that are not divided.
    """
    for site in [site for site, found in by_site.items() if site and found and site not in skip]:
        groups, where = len(clusters_of(by_site[site])), f"--divide {parts}: {site}"
        if groups < parts:
            hint = "choose fewer parts, or leave the site whole"
            yield Problem(where, f"{counted(groups, 'independent group')} of images", f"at least {parts}", hint)
            continue
        for name in sorted({f"{site}-{part + 1}" for part in range(parts)} & by_site.keys()):
            expected = f"free names {site}-1 to {site}-{parts} for its parts"
            yield Problem(where, f"a site {name!r}", expected, "rename the site")


def divide_sites(places: Places, parts: int, *, seed: int = 0, skip: Sequence[str] = ()) -> tuple[Places, list[str]]:
    """Divides every site into ``<name>-1`` to ``<name>-<parts>``, each with about equal shares of all three splits.

    Images of one group or with the same bytes go to the same part, across splits. The result depends on the images'
    hashes, the groups and the seed, not on names or order.

    Args:
        places: images by site and split; the public ones are unchanged.
        parts: number of parts of each site.
        seed: seed of the order in which clusters are assigned.
        skip: sites that are not divided.

    Returns:
        Images by site and split, and sentences on splits too small for every part.

    Raises:
        Refused: ``parts`` is not positive, a site has fewer independent groups of images than parts, or a part would
            have the name of another site.
    """
    require(whole("--divide", parts, least=1))
    by_site: dict[str, list[Found]] = {}
    for (site, _), entries in places.items():
        by_site.setdefault(site, []).extend(entries)
    require(divide_problems(by_site, parts, skip=skip))
    changed: Places = {}
    sentences = []
    for site, found in by_site.items():
        of_site = {place: entries for place, entries in places.items() if place[0] == site}
        if not site or site in skip:
            changed |= of_site
            continue
        images = [(split, entry) for (_, split), entries in of_site.items() for entry in entries]
        groups = clusters_of(found)
        assigned = _assign_parts([[images[index][0] for index in group] for group in groups], parts, seed)
        part_of = {index: part for group, part in zip(groups, assigned, strict=True) for index in group}
        for split in SITE_SPLITS:
            indices = [index for index, (split_of_image, _) in enumerate(images) if split_of_image is split]
            for part in range(parts):
                chosen = [images[index][1] for index in indices if part_of[index] == part]
                changed[f"{site}-{part + 1}", split] = chosen
                if indices and not chosen:
                    sentences.append(f"{site}-{part + 1} has no {split.value} images: too few groups to divide")
    return changed, sentences


def _assign_parts(contents: Sequence[Sequence[Split]], parts: int, seed: int) -> list[int]:
    """Returns the part of each cluster: largest first, each to the part where it balances the splits most."""
    sizes = np.array([[cluster.count(split) for split in SITE_SPLITS] for cluster in map(list, contents)], dtype=float)
    shares = sizes / np.maximum(sizes.sum(axis=0), 1)
    order = np.random.default_rng(derive_seed(seed, "divide")).permutation(len(sizes))
    load = np.zeros((parts, len(SITE_SPLITS)))
    part_of = [0] * len(sizes)
    for index in sorted(order.tolist(), key=lambda index: -shares[index].sum()):
        cost = ((load + shares[index]) ** 2 - load**2).sum(axis=1)
        part = min(range(parts), key=lambda part: (round(cost[part], 12), round(load[part].sum(), 12), part))
        load[part] += shares[index]
        part_of[index] = part
    return part_of


class Groups:
    """The groups of images, from a CSV file.

    Args:
        path: CSV with a header: the group's column, and one of :data:`NAMES` (the first one present is used). A name is
            a path (with slashes or backslashes) or a file name, with or without its suffix. Paths are compared from
            their ends: a row ``a/1.png`` matches ``site/a/1.png`` but not ``b/1.png``. An empty group means none. Names
            and groups are compared after :func:`normal`.
        column: name of the group's column (``lesion_id``, ``patient`` ...); case is ignored.
        volumes: folder of slices to the path of their volume; if no row names an image, a row may name its folder or
            volume. ``None``: rows name images only.

    Raises:
        Refused: no such file or column, not a CSV file, a row without a name or with values that do not fit its
            columns, two rows that contradict each other.
    """

    def __init__(self, path: str | Path, column: str = "group", volumes: Mapping[str, str] | None = None) -> None:
        self.path, self.column, self.by_folder, self.volumes = Path(path), column, volumes is not None, volumes or {}
        self.rows = _read_groups(self.path, column)
        named = ((name, listed, group) for listed, group in self.rows for name in _stems(listed))
        self._by_stem = grouped((name, (PurePosixPath(listed), group)) for name, listed, group in named)

    def group_of(self, image: str) -> str | None:
        """Returns the group of an image by its relative path, or ``None``.

        Raises:
            Refused: rows with different groups match it equally well.
        """
        path = PurePosixPath(normal(image))
        rows = self._by_stem.get(stem(image), [])
        if not rows and self.by_folder:
            path = path.parent
            rows = self._by_stem.get(path.name, [])
        if not rows and (volume := self.volumes.get(PurePosixPath(image).parent.as_posix())):
            path = PurePosixPath(normal(volume))
            rows = self._by_stem.get(stem_of(path), [])
        counts = [(parts_in_common(path, listed), group) for listed, group in rows]
        longest = max((1, *(count for count, _ in counts)))  # a row of another folder has 0 and is another image
        groups = {group for count, group in counts if count == longest}
        if len(groups) > 1:
            raise refused(self.path, f"{sorted(groups)} for {image}", "one group", "add an 'image' column with paths")
        return (groups.pop() or None) if groups else None

    def sentences(self, images: Iterable[str]) -> list[str]:
        """Returns sentences on images without a group or with a doubtful one, and on ambiguous and unmatched names.

        Raises:
            Refused: none of the images has a group.
        """
        images = sorted(set(images))
        groups = {image: self.group_of(image) for image in images}
        lacking = [image for image, group in groups.items() if group is None]
        if images and len(lacking) == len(images):
            named = [name for name, group in self.rows if group]
            found = f"only groups for names like {named[0]!r}" if named else f"nothing in the column {self.column!r}"
            hint = "add an 'image' column with paths, or an 'id' column with file names without their endings"
            raise refused(self.path, found=found, expected=f"groups for images like {images[0]!r}", hint=hint)
        count = Counter([*map(stem, images), *(stem_of(PurePosixPath(normal(path))) for path in self.volumes.values())])
        folders = {PurePosixPath(normal(image)).parent.name for image in images if self.by_folder}
        bare_names = {name for name, group in self.rows if group and "/" not in name}
        ambiguous = sorted(name for name in bare_names if sum(count[each] for each in _stems(name)) > 1)
        unmatched = [name for name in dict(self.rows) if not _stems(name) & (count.keys() | folders)]
        shared = "without a folder, for several images each, such as {}: all these images get the group of that row"
        shared += "; give paths to tell them apart"
        sentences = [f"{len(lacking)} of {len(images)} images have no group in {self.path.name}"] if lacking else []
        used = dict.fromkeys(filter(None, groups.values()))
        spellings = grouped((_SPELLING.sub("", group.casefold()), group) for group in used)
        if alike := [sorted(same) for same in spellings.values() if len(same) > 1]:
            first = " and ".join(map(repr, alike[0][:2]))
            sentences.append(f"{first} are different groups in {self.path.name}: if they are one, write them alike")
        if dates := [group for group in used if _DATE_OF_EXCEL.fullmatch(group)]:
            text = f"a group in {self.path.name} is {dates[0]!r}: if Excel made this date of a name such as 1-2"
            sentences.append(f"{text}, format the column as text, and enter the names again")
        if doubtful := [group for group in groups.values() if group and group.casefold() in POSSIBLY_NONE]:
            subject = counted(len(doubtful), "image has a group", "images have groups") + " that may mean none"
            sentences.append(f"{subject}, such as {doubtful[0]!r}, and stay together: if so, leave these groups empty")
        for names, what in ((ambiguous, shared), (unmatched, "without a matching image, such as {}")):
            subject = counted(len(names), "name is", "names are")
            sentences += [f"{subject} in {self.path.name} {what.format(repr(names[0]))}"] if names else []
        return sentences


NAMES = ("image", "image_name", "image_path", "path", "file", "file_name", "filename", "image_id", "isic_id", "id")
"""Columns that name images; case is ignored, and spaces and hyphens count as underscores."""
MISSING = frozenset({"", "nan", "NaN", "NaT", "<NA>", "None", "NULL", "null", "#N/A", "#NV"})
"""Values that mean no group: missing values as written by pandas, R, databases and Excel."""
POSSIBLY_NONE = frozenset({"na", "n/a", "nan", "none", "null", "nil", "unknown", "missing", "-", "?", "."})
"""Groups in lower case that mean none in some tables and are a patient's name in others."""
_FLOAT_INTEGER = re.compile(r"^(\d+)\.0+$")  # pandas writes integers of a column with missing values so
_CHANGED_BY_EXCEL = re.compile(r"\d(?:[.,]\d+)?E\+\d+|#[A-ZÄÖÜ/0]{2,}[!?]|#{3,}")
_SPELLING = re.compile(r"(?<![\d.,])0+(?=\d)|[.,]0+$|[\s_-]+(?!\d)|(?<!\d)[\s_-]+")  # that may differ by mistake
_DATE_OF_EXCEL = re.compile(r"\d{1,2}[-. ]+[A-Z][a-zä]{2}\.?(?:[-. ]+\d{2,4})?|[A-Z][a-zä]{2}[-. ]+\d{2,4}")
_FORMULA = re.compile(r'="?(.*?)"?')  # ="001" prevents Excel from reading a number
QUOTES_HINT = "close the quotes, or double quotes that are part of a value"
_BINARY = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"PAR1", b"\x1f\x8b", b"%PDF")
"""First bytes of workbooks (.xlsx, .ods, .xls), Parquet, gzip and PDF."""
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, as its BOM starts with UTF-16's
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "'|'"}


def _read_groups(path: Path, column: str) -> list[tuple[str, str]]:
    """Returns the name and group of every row, in their normal form."""
    text, encoding = _decode(path)
    lines = list(io.StringIO(text, newline=""))
    declared = re.fullmatch(r'"?sep=(.)"?[;,]*', lines[0].strip("\r\n"), re.IGNORECASE) if lines else None
    start = 1 if declared else 0
    wanted = _column_key(column)
    first = next((line for line in lines[start:] if normal(line)), "")
    headers = {candidate: next(csv.reader([first], delimiter=candidate), []) for candidate in _DELIMITERS}
    matching = [candidate for candidate, header in headers.items() if wanted in map(_column_key, header)]
    delimiter = declared[1] if declared else max(matching or headers, key=lambda candidate: len(headers[candidate]))
    layout = f"{encoding}, separated by {_DELIMITERS.get(delimiter, repr(delimiter))}"
    rows = _rows(lines[start:], delimiter, path, start)
    header = [normal(title) for title in rows[0][1]] if rows else []
    titles = [_column_key(title) for title in header]
    key = next((name for name in NAMES if name in titles and name != wanted), None)
    repeated = any(titles.count(str(title)) > 1 for title in (wanted, key))
    if wanted not in titles or key is None or repeated:
        hint = "name the group's column with --group-column"
        expected = f"columns {column!r} and one of {', '.join(map(repr, NAMES))}, each once"
        raise refused(path, found=f"the columns {header} ({layout})", expected=expected, hint=hint)
    columns = titles.index(key), titles.index(wanted)
    problems, seen, groups = Problems(), dict[str, tuple[int, str]](), list[tuple[str, str]]()
    for line, row in rows[1:]:
        where = f"{path}, line {line}"
        name, group = (_cell(row[place]) if place < len(row) else "" for place in columns)
        name, group = name.replace("\\", "/"), "" if group in MISSING else _FLOAT_INTEGER.sub(r"\1", group)
        if len(row) > len(header) and any(candidate.strip() for candidate in row[len(header) :]):
            found, hint = f"{len(row)} values ({layout})", "put values that contain the separator into quotes"
            problems.add(where, found=found, expected=f"{len(header)}, as in the header", hint=hint)
        elif any("\n" in row[place] or "\r" in row[place] for place in columns if place < len(row)):
            problems.add(where, found="a value with a line break", expected="a name and a group", hint=QUOTES_HINT)
        elif not name:
            problems.add(where, "none", f"a name in the column {key!r}", "complete the row, or delete it")
        elif changed := next(filter(_CHANGED_BY_EXCEL.fullmatch, (name, group)), None):
            hint = "Excel has changed it: format the column as text, and enter the values again"
            problems.add(where, found=repr(changed), expected="the original name and group", hint=hint)
        elif seen.setdefault(name, (line, group))[1] != group:
            found = f"{group!r} for {name!r}, and {seen[name][1]!r} in line {seen[name][0]}"
            problems.add(where, found=found, expected="one group per image", hint="correct one of the two rows")
        else:
            groups.append((name, group))
    problems.refuse_if_any()
    return groups


def _decode(path: Path) -> tuple[str, str]:
    """Returns a file's text and its encoding."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise refused(path, str(error), "a CSV file", "check the path") from None
    if content.startswith(_BINARY):
        raise refused(path, "a workbook or another binary file", "a CSV file", "save the sheet as CSV (UTF-8)")
    bom = next((encoding for bom, encoding in _BOMS.items() if content.startswith(bom)), None)
    encodings = [bom] if bom else ["utf-8", "cp1252"]
    for encoding in encodings:
        with suppress(UnicodeDecodeError):
            if "\0" not in (text := content.decode(encoding)):
                return text, encoding
    raise refused(path, f"text that is not {' or '.join(encodings)}", "a CSV file", "save it as CSV (UTF-8)")


def _rows(lines: Sequence[str], delimiter: str, path: Path, skipped: int) -> list[tuple[int, list[str]]]:
    """Returns the line number and values of every row that is not empty."""
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        return [(reader.line_num + skipped, row) for row in reader if any(normal(value) for value in row)]
    except csv.Error as error:
        where = f"{path}, line {reader.line_num + skipped}"
        raise refused(where, str(error), "a row of a CSV file", QUOTES_HINT) from None


def _column_key(name: str) -> str:
    return re.sub(r"[ -]", "_", normal(name).casefold())


def _cell(text: str) -> str:
    formula = _FORMULA.fullmatch(normal(text))
    return normal(formula[1] if formula else text)


def _stems(name: str) -> set[str]:
    """Returns the image stems that a name can match; the part after its last dot may not be a suffix."""
    path = PurePosixPath(name)
    without_suffix = path.stem if path.suffix.lower() in SUFFIXES else stem_of(path)  # of a volume without .nii.gz
    return {path.name, _FLOAT_INTEGER.sub(r"\1", without_suffix) if without_suffix == path.name else without_suffix}


def parts_in_common(one: PurePosixPath, other: PurePosixPath) -> int:
    """Returns the number of parts of the shorter path if the longer one ends in them (stems are equal), else 0."""
    count = min(len(one.parts), len(other.parts))
    return count if one.parts[-count:-1] == other.parts[-count:-1] else 0
