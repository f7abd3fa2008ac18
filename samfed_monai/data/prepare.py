"""From a source to a frozen data list with its report beside it: source, one look at every file, partition, check."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samfed_monai.data.checks import problems_of, repeated_stems
from samfed_monai.data.datalist import DataList
from samfed_monai.data.duplicates import warnings
from samfed_monai.data.grouping import clusters, subset
from samfed_monai.data.groups import read_groups
from samfed_monai.data.items import Item, Site, Split
from samfed_monai.data.partitions import (
    Partition,
    appearance_classes,
    dirichlet,
    hold_out,
    iid,
    size_classes,
)
from samfed_monai.data.quality_report import write_report
from samfed_monai.data.sources.archives import unpack
from samfed_monai.data.sources.folders import find_folders, without_mask
from samfed_monai.data.sources.found import Found
from samfed_monai.data.sources.isic import find_isic
from samfed_monai.data.sources.published import Coverage, find_published
from samfed_monai.data.statistics import doubts
from samfed_monai.data.survey import Facts, survey
from samfed_monai.errors import Problem, Problems, Refused

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What every source understands.

    Args:
        output: the data list to write; the report goes beside it as ``<stem>.report.html`` and ``.report.csv``.
        name: what reports call the list; ``None`` takes the output's stem (a published list keeps its own name).
        groups: CSV that names each image's group, or ``None``.
        group_column: its column.
        limit_per_site: keep that many unlabelled images of each site, chosen by hash; ``None`` keeps all.
        drop_unlabelled_labels: do not record labels of unlabelled images (then there is no oracle variant).
        mask_threshold: grey level from which masks that are not binary count as foreground; ``None`` refuses them.
        seed: of every draw.
        report: whether to write the report.
        progress: whether to show progress bars.
    """

    output: str | Path
    name: str | None = None
    groups: str | Path | None = None
    group_column: str = "group"
    limit_per_site: int | None = None
    drop_unlabelled_labels: bool = False
    mask_threshold: int | None = None
    seed: int = 0
    report: bool = True
    progress: bool = True


@dataclass(frozen=True)
class Prepared:
    """A saved data list, what is worth a warning, and where its report lies."""

    datalist: DataList
    path: Path
    report: Path | None
    warnings: list[str] = field(default_factory=list)
    coverage: list[Coverage] = field(default_factory=list)


def prepare_folders(
    root: str | Path, *, public: str, options: Options, validation: float = 0.1, test: float = 0.1
) -> Prepared:
    """Makes a list from ``root/<site>/{images,masks}``.

    Args:
        root: the folder of sites; it is the data root of the list.
        public: name of the site whose images are public; all of them need masks.
        options: see :class:`Options`.
        validation: share of each site's images to validate on, drawn from the labelled ones. A site without masks has
            only unlabelled images.
        test: likewise, to test on.

    Raises:
        Refused: with everything that is wrong with the folders, the files and the list.
    """
    root = Path(root)
    found = {site: _grouped(ones, options) for site, ones in find_folders(root, public=public).items()}
    facts = _look([one for ones in found.values() for one in ones], root, options, sites=found)
    places = {("", Split.PUBLIC): found.pop(public)}
    places |= _measure(found, facts, validation, test, options, beside=places["", Split.PUBLIC])
    return _finish(places, facts, root, options)


def prepare_isic(
    root: str | Path,
    *,
    options: Options,
    public: str = "100",
    sites: int = 4,
    partition: str = Partition.IID,
    alpha: float = 0.5,
    validation: float = 0.1,
    test: float = 0.1,
    unpack_archives: bool = False,
) -> Prepared:
    """Makes a list from the official archives of an ISIC challenge (2016, 2017 or 2018).

    Args:
        root: folder that the archives were unpacked into; it is the data root of the list.
        options: see :class:`Options`.
        public: the public images: a count (``"100"``), a share (``"0.05"``), or the name of an archive's folder.
        sites: number of sites; with ``partition="folder"`` the remaining folders are the sites.
        partition: ``iid``, ``folder``, ``dirichlet-size`` (of the lesion) or ``dirichlet-appearance`` (mean colour).
        alpha: Dirichlet's concentration: small makes sites unlike each other.
        validation: as in :func:`prepare_folders`.
        test: as in :func:`prepare_folders`.
        unpack_archives: unpack ``root/*.zip`` first, each into ``root``.

    Raises:
        Refused: with everything that is wrong with the archives, the files and the list.
    """
    root = Path(root)
    for archive in sorted(root.glob("*.zip")) if unpack_archives else []:
        unpack(archive, root)
    found = _grouped(find_isic(root), options)
    facts = _look(found, root, options, sites={"": found})
    public_ones, rest = _public(found, facts, public, options.seed)
    by_site = _divide(rest, facts, Partition(partition), sites, alpha, options.seed)
    places = {("", Split.PUBLIC): public_ones}
    places |= _measure(by_site, facts, validation, test, options, beside=public_ones)
    return _finish(places, facts, root, options)


def prepare_list(
    split: str | Path, data_root: str | Path, *, options: Options, folders: Mapping[str, str] | None = None
) -> Prepared:
    """Makes a list from a published one; images that are not at hand are reported, not invented.

    Args:
        split: the published JSON file, or a known name (:data:`~.sources.published.KNOWN`).
        data_root: where the images are; see :func:`~.sources.published.find_published`.
        options: see :class:`Options`.
        folders: client to folder, where names do not tell.

    Raises:
        Refused: with everything that is wrong with the published list, the files and the result.
    """
    root = Path(data_root)
    published = find_published(split, root, folders=dict(folders or {}))
    places = {place: _grouped(found, options) for place, found in published.places.items()}
    sites: dict[str, list[Found]] = {}
    for (site, _), found in places.items():
        sites.setdefault(site, []).extend(found)
    facts = _look([one for found in places.values() for one in found], root, options, sites=sites)
    name = options.name or published.name
    return _finish(places, facts, root, options, name=name, coverage=published.coverage)


Places = dict[tuple[str, Split], list[Found]]


def _grouped(found: Iterable[Found], options: Options) -> list[Found]:
    if options.groups is None:
        return list(found)
    group_of = read_groups(options.groups, column=options.group_column)
    return [one.with_group(group_of(one.image)) for one in found]


def _look(
    found: Sequence[Found], root: Path, options: Options, *, sites: Mapping[str, Sequence[Found]]
) -> dict[str, Facts]:
    """Facts of all files by image; refuses damaged ones before anything is divided."""
    pairs = list(dict.fromkeys((one.image, one.label) for one in found))
    facts = survey(pairs, root, threshold=options.mask_threshold, progress=options.progress)
    problems = Problems()
    for fact in facts:
        problems.extend(fact.problems)
    problems.extend(repeated_stems((site, one.image) for site, ones in sites.items() for one in ones))
    problems.refuse_if_any()
    return {fact.image: fact for fact in facts}


def _public(found: list[Found], facts: Mapping[str, Facts], public: str, seed: int) -> tuple[list[Found], list[Found]]:
    origins = sorted({one.origin for one in found if one.origin})
    if public in origins:
        chosen = [one for one in found if one.origin == public]
        problems = Problems()
        problems.extend(without_mask(chosen))
        problems.refuse_if_any()
        return chosen, [one for one in found if one.origin != public]
    try:
        number = float(public)
    except ValueError:
        number = 0.0
    share = number / len(found) if number >= 1 else number
    if not 0 < share < 1:
        expected = f"a count below {len(found)}, a share in (0, 1), or one of {origins}"
        raise Refused([Problem("--public", found=repr(public), expected=expected, mend="for instance 100")])
    hashes = [facts[one.image].sha256 for one in found]
    labelled = [one.label is not None for one in found]
    drawn, rest = hold_out(hashes, [one.group for one in found], labelled, [share], seed=seed)
    if not drawn:
        mend = "unpack the ground truth beside the images"
        raise Refused([Problem("--public", found="no labelled images to draw from", expected="masks", mend=mend)])
    return [found[index] for index in drawn], [found[index] for index in rest]


def _divide(
    found: list[Found], facts: Mapping[str, Facts], partition: Partition, sites: int, alpha: float, seed: int
) -> dict[str, list[Found]]:
    if partition is Partition.FOLDER:
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


def _measure(
    by_site: Mapping[str, list[Found]],
    facts: Mapping[str, Facts],
    validation: float,
    test: float,
    options: Options,
    *,
    beside: Sequence[Found],
) -> Places:
    """Draws validation and test images; what also stands elsewhere (bytes or group) stays among the unlabelled."""
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
        seed = options.seed
        drawn = hold_out(hashes, groups, own, [validation, test], seed=seed)
        for split, indices in zip((Split.VALIDATION, Split.TEST, Split.UNLABELLED), drawn, strict=True):
            places[site, split] = [ones[index] for index in indices]
    return places


def _finish(
    places: Places,
    facts: Mapping[str, Facts],
    root: Path,
    options: Options,
    *,
    name: str | None = None,
    coverage: Sequence[Coverage] = (),
) -> Prepared:
    output = Path(options.output)
    sites = {site: Site() for site, _ in places if site}
    datalist = DataList(name or options.name or output.stem, [], sites, options.mask_threshold)
    for (site, split), found in places.items():
        items = [_item(one, facts[one.image], split, options) for one in found]
        if split is Split.UNLABELLED:
            items = [items[index] for index in subset([item.sha256 for item in items], options.limit_per_site)]
        (getattr(sites[site], split.value) if site else datalist.public).extend(items)
    kept = [facts[item.image] for _, _, item in datalist.items()]
    problems = Problems()
    problems.extend(problems_of(datalist, kept))
    problems.refuse_if_any()
    datalist.save(output)
    sentences = [*warnings(datalist), *doubts(datalist, kept)]
    for sentence in sentences:
        logger.warning("%s: %s", output.name, sentence)
    page = output.with_suffix(".report.html") if options.report else None
    if page is not None:
        write_report(datalist, kept, root, page, warnings=sentences, coverage=coverage)
    return Prepared(datalist, output, page, sentences, list(coverage))


def _item(one: Found, fact: Facts, split: Split, options: Options) -> Item:
    labelled = one.label is not None and not (split is Split.UNLABELLED and options.drop_unlabelled_labels)
    return Item(
        image=one.image,
        sha256=fact.sha256,
        label=one.label if labelled else None,
        label_sha256=fact.label_sha256 if labelled else None,
        group=one.group,
    )
