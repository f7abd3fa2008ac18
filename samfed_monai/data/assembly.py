"""What every source goes through: options, one look at every file, and the list saved with its report beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samfed_monai.data.allotment import Places, share_problems
from samfed_monai.data.checks import problems_of, repeated_stems
from samfed_monai.data.datalist import DataList
from samfed_monai.data.duplicates import warnings
from samfed_monai.data.freezing import freeze, require_free
from samfed_monai.data.grouping import subset
from samfed_monai.data.groups import read_groups, without_group
from samfed_monai.data.items import Item, Site, Split
from samfed_monai.data.quality_report import write_report
from samfed_monai.data.reshaping import divide_sites, make_unseen
from samfed_monai.data.sources.found import Found
from samfed_monai.data.sources.published import Coverage
from samfed_monai.data.statistics import doubts
from samfed_monai.data.survey import Facts, survey
from samfed_monai.errors import Problem, Problems

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What every source understands.

    Args:
        output: the data list to write; the report goes beside it as ``<stem>.report.html`` and ``.report.csv``. A
            file that is there must hold the same list.
        name: what reports call the list; ``None`` takes the output's stem (a published list keeps its own name).
        groups: CSV that names each image's group, or ``None``.
        group_column: its column.
        limit_per_site: keep that many unlabelled images of each site, chosen by hash; ``None`` keeps all.
        drop_unlabelled_labels: do not record labels of unlabelled images (then there is no oracle variant).
        mask_threshold: grey level from which masks that are not binary count as foreground; ``None`` refuses them.
        unseen: sites that take no part in training: all their labelled images become test images.
        divide: cut every other site into that many; ``None`` leaves them whole.
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
    unseen: Sequence[str] = ()
    divide: int | None = None
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


def grouped(found: Iterable[Found], options: Options, *, known: bool = False) -> list[Found]:
    """The images with the groups that the options' file gives them.

    Args:
        found: images.
        options: see :class:`Options`.
        known: whether an image that the file does not name keeps the group that its source knows.
    """
    group_of = read_groups(options.groups, column=options.group_column) if options.groups else lambda image: None
    return [one.with_group(group_of(one.image) or (one.group if known else None)) for one in found]


def check_first(options: Options, *, validation: float = 0.0, test: float = 0.0, name: str | None = None) -> None:
    """Refuses what needs no image to be seen: impossible shares, and another list where this one is to be written.

    Args:
        options: see :class:`Options`.
        validation: share of each site's images to validate on.
        test: likewise, to test on.
        name: what the list is called, if not as the options say.
    """
    problems = Problems()
    problems.extend(share_problems(validation, test))
    with problems.collected():
        require_free(options.output, name=name or _name(options))
    problems.refuse_if_any()


def look_at(
    found: Sequence[Found],
    root: Path,
    options: Options,
    *,
    sites: Mapping[str, Sequence[Found]],
    known: Iterable[Problem] = (),
) -> dict[str, Facts]:
    """Facts of all files by image; refuses damaged ones, and groups of none of them, before anything is divided.

    Args:
        found: images.
        root: the data root.
        options: see :class:`Options`.
        sites: images of each site, in which a stem may stand once.
        known: what the source saw to be wrong, refused with the rest.
    """
    problems = Problems()
    problems.extend(known)
    with problems.collected():
        _ungrouped(found, options)
    pairs = list(dict.fromkeys((one.image, one.label) for one in found))
    facts = survey(pairs, root, threshold=options.mask_threshold, progress=options.progress)
    for fact in facts:
        problems.extend(fact.problems)
    problems.extend(repeated_stems((site, one.image) for site, ones in sites.items() for one in ones))
    problems.refuse_if_any()
    return {fact.image: fact for fact in facts}


def finish(
    places: Places,
    facts: Mapping[str, Facts],
    root: Path,
    options: Options,
    *,
    name: str | None = None,
    coverage: Sequence[Coverage] = (),
    caveats: Sequence[str] = (),
) -> Prepared:
    """Reshapes the sites as the options say, checks the list, and writes it with its report.

    Args:
        places: images by site and split.
        facts: by image.
        root: the data root.
        options: see :class:`Options`.
        name: what the list is called, if not as the options say.
        coverage: for a published list, what of it is at hand.
        caveats: sentences for the report that the source has to add.
    """
    output = Path(options.output)
    ungrouped = _ungrouped([one for ones in places.values() for one in ones], options)
    places, reshaped = make_unseen(places, facts, options.unseen)
    if options.divide is not None:
        places, divided = divide_sites(places, facts, options.divide, seed=options.seed, spared=options.unseen)
        reshaped += divided
    sites = {site: Site() for site, _ in places if site}
    datalist = DataList(name or _name(options), [], sites, options.mask_threshold)
    for (site, split), found in places.items():
        items = [_item(one, facts[one.image], split, options) for one in found]
        if split is Split.UNLABELLED:
            items = [items[index] for index in subset([item.sha256 for item in items], options.limit_per_site)]
        (getattr(sites[site], split.value) if site else datalist.public).extend(items)
    kept = [facts[item.image] for _, _, item in datalist.items()]
    problems = Problems()
    problems.extend(problems_of(datalist, kept))
    problems.refuse_if_any()
    freeze({output: datalist})
    sentences = [*warnings(datalist), *doubts(datalist, kept), *reshaped, *ungrouped, *caveats]
    for sentence in sentences:
        logger.info("%s: %s", output.name, sentence)
    page = output.with_suffix(".report.html") if options.report else None
    if page is not None:
        write_report(datalist, kept, root, page, warnings=sentences, coverage=coverage)
    return Prepared(datalist, output, page, sentences, list(coverage))


def _name(options: Options) -> str:
    return options.name or Path(options.output).stem


def _ungrouped(found: Iterable[Found], options: Options) -> list[str]:
    """A sentence on images that the options' file gives no group; refuses a file that gives none to any."""
    if not options.groups:
        return []
    images = {one.image for one in found}
    lacking = without_group(sorted(images), options.groups, column=options.group_column)
    name = Path(options.groups).name
    return [f"{len(lacking)} of {len(images)} images have no group in {name}"] if lacking else []


def _item(one: Found, fact: Facts, split: Split, options: Options) -> Item:
    labelled = one.label is not None and not (split is Split.UNLABELLED and options.drop_unlabelled_labels)
    return Item(
        image=one.image,
        sha256=fact.sha256,
        label=one.label if labelled else None,
        label_sha256=fact.label_sha256 if labelled else None,
        group=one.group,
    )
