"""Makes a data list and its report from a source: finds, inspects, divides, checks and writes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from samfed_monai.core.errors import Problem, Problems, Refused, name_problems, refused, with_skip_hint
from samfed_monai.core.io import undo_on_error
from samfed_monai.core.text import counted, normal
from samfed_monai.core.validators import require, whole
from samfed_monai.data import partitions
from samfed_monai.data.archives import unpack_all
from samfed_monai.data.checks import Facts, foreground_problem, leaks, repeated_stems, stem, survey
from samfed_monai.data.classes import list_class_problems
from samfed_monai.data.coco import draw_coco
from samfed_monai.data.datalist import DataList, Item, Site, Split, freeze, require_free, site_name_problems
from samfed_monai.data.folders import Found, class_value_problems, declare_kinds, find_folders, sites_in, without_mask
from samfed_monai.data.image_folder import NIFTI, PICTURE
from samfed_monai.data.partitions import Groups, Places, subset
from samfed_monai.data.public import Coverage, collection_of, find_isic, find_polyps, find_published, isic_files
from samfed_monai.data.quality_report import notes_on, write_report
from samfed_monai.data.volumes import cut_nifti, volumes_of

logger = logging.getLogger(__name__)

Sites = Mapping[str, Sequence[Found]]
"""Images by site."""


@dataclass(frozen=True)
class Options:
    """Options of a data list; a source ignores those that it does not use.

    Args:
        output: the data list to write; the report goes beside it as ``<stem>.report.html`` and ``.report.csv``. An
            existing file must hold the same list.
        public: the public images, which all need masks: a site; for one pool a count (``"100"``), a share (``"0.05"``)
            or the name of a folder in it; ``None``: no image is public.
        validation: share of each site's images for validation, drawn from the labelled ones, in [0, 1).
        test: share of each site's images for testing, drawn from the labelled ones, in [0, 1).
        sites: for one pool, the number of sites, or ``"folder"``: each folder in it is a site.
        name: name of the list in reports; ``None`` takes the output's stem (a published list keeps its own name).
        groups: CSV that names each image's group, or ``None``.
        group_column: column of the group in that file.
        by_folder: whether all images below one folder of ``images`` are a group; slices of volumes always are.
        volumes: folder of slices to the path of their volume, which ``groups`` may name.
        by_sequence: for a published list, whether to record the video of each image. Its splits do not change; later
            draws from the list keep videos together.
        label_kinds: kind of labels by site; ``""`` is every site that trains. See :func:`~.folders.declare_kinds`.
        leave_out: collections to leave out.
        unpack: whether to unpack ``root/*.zip`` first.
        limit_per_site: number of unlabelled images to keep of each site, chosen by hash; ``None`` keeps all.
        mask_threshold: lowest grey level that is foreground in masks that are not binary; ``None`` refuses such masks.
        classes: names of the classes with the label values 1, 2, …; empty for binary masks.
        unseen: sites that take no part in training: all their labelled images become test images.
        test_only: for folders, whether every image with a mask is a test image; no image is public then.
        divide: number of parts to divide each site into, except ``unseen`` ones; ``None`` does not divide.
        seed: seed of every draw.
        skip_unreadable: whether to leave out images that cannot be decoded, or whose mask cannot.
        report: whether to write the report.
    """

    output: str | Path
    public: str | None = None
    validation: float = 0.1
    test: float = 0.1
    sites: int | str = 4
    name: str | None = None
    groups: str | Path | None = None
    group_column: str = "group"
    by_folder: bool = False
    volumes: Mapping[str, str] = field(default_factory=dict)
    by_sequence: bool = False
    label_kinds: Mapping[str, str] = field(default_factory=dict)
    leave_out: Sequence[str] = ()
    unpack: bool = False
    limit_per_site: int | None = None
    mask_threshold: int | None = None
    classes: Sequence[str] = ()
    unseen: Sequence[str] = ()
    test_only: bool = False
    divide: int | None = None
    seed: int = 0
    skip_unreadable: bool = False
    report: bool = True

    @cached_property
    def groups_table(self) -> Groups | None:
        """The content of the groups file."""
        return Groups(self.groups, self.group_column, self.volumes if self.by_folder else None) if self.groups else None

    @property
    def draw_options(self) -> dict[str, Any]:
        """Arguments for drawing validation and test images."""
        return {"shares": (self.validation, self.test), "seed": self.seed, "unseen": self.unseen}

    @property
    def list_name(self) -> str:
        """The list's name."""
        return self.name or Path(self.output).stem

    def with_groups(self, found: Iterable[Found], *, keep_known: bool = False) -> list[Found]:
        """Returns the images with their groups from the groups file.

        Args:
            found: images.
            keep_known: whether an image that is not in the file keeps the group from its source. Images of one folder
                (``by_folder``) stay together: all get the group that the file gives to some of them.

        Raises:
            Refused: the file has two groups for images of one folder.
        """
        found = [entry if keep_known else replace(entry, group=None) for entry in found]
        groups: dict[str | None, str] = {}
        for entry in found:
            unit = (entry.group if self.by_folder else None) or entry.image
            group = self.groups_table.group_of(entry.image) if self.groups_table else None
            if group and groups.setdefault(unit, group) != group:
                both, expected = f"{groups[unit]!r} and {group!r} for images of {unit}", "one group for all of them"
                raise refused(self.groups, both, expected, "correct the rows of this volume or folder")
        return [replace(entry, group=groups.get(entry.image, groups.get(entry.group, entry.group))) for entry in found]


@dataclass(frozen=True)
class Prepared:
    """A saved data list with its file, its report, warnings, and the coverage of a published list."""

    datalist: DataList
    path: Path
    report: Path | None
    warnings: list[str] = field(default_factory=list)
    coverage: list[Coverage] = field(default_factory=list)


NOT_WITH_TEST_ONLY = ("public", "validation", "test", "unseen", "label_kinds", "limit_per_site")
NOTHING = "nothing with --test-only, which makes every image with a mask a test image"


def check_options(options: Options) -> None:
    """Refuses wrong options before any image is read, for instance impossible shares or an output in use."""
    problems = Problems(partitions.share_problems(options.validation, options.test))
    for name in ("limit_per_site", "mask_threshold", "divide", "sites"):
        number, most = getattr(options, name), 255 if name == "mask_threshold" else None
        if number is not None and not (name == "sites" and isinstance(number, str)):
            problems.extend(whole(f"--{name.replace('_', '-')}", number, least=1, most=most))
    if options.classes:
        problems.extend(list_class_problems(options.classes, options.mask_threshold, "--classes"))
    given, default = vars(options), vars(Options(options.output))
    for name in NOT_WITH_TEST_ONLY if options.test_only else ():
        if (given[name] or None) != (default[name] or None):
            problems.add(f"--{name.replace('_kinds', '-kind').replace('_', '-')}", "a value", NOTHING, "leave it out")
    if options.groups is None and options.group_column != default["group_column"]:
        expected, hint = "--groups FILE.csv as well", "give both options, or neither"
        problems.add("--group-column", found=repr(options.group_column), expected=expected, hint=hint)
    with problems.collected():
        _ = options.groups_table
    with problems.collected():
        require_free(options.output, name=options.list_name)
    problems.refuse_if_any()


def check_folders(root: str | Path, options: Options, kind: str, masks: Collection[Path] = ()) -> None:
    """Refuses folders, and options that do not fit them, before masks are drawn or volumes cut.

    Args:
        root: folder of sites, or one site's own.
        options: see :class:`Options`.
        kind: of the images and masks, pictures or volumes.
        masks: masks that will be drawn.
    """
    folders = find_folders(root, public=options.public, output=options.output, kind=kind, drawn=masks)
    sites: Sites = dict.fromkeys(sites_in(Path(root)), ())  # also those with problems
    sites = {**sites, **_with_groups(folders.sites, options, options.by_folder)}
    problems = Problems([*folders.problems, *site_problems(sites, options)])
    if options.test_only and not folders.problems:
        with problems.collected():
            all_as_tests(folders.sites, root, folders.caveats)
    problems.refuse_if_any()


def site_problems(sites: Sites, options: Options) -> Iterator[Problem]:
    """Yields the problems of ``unseen`` and ``divide``, and of names that a list cannot have.

    Args:
        sites: images by site; there are no problems without sites, and none of ``divide`` at sites without images.
        options: see :class:`Options`.
    """
    private = {site: found for site, found in sites.items() if site not in ("", options.public)}
    if private:
        yield from partitions.unseen_problems(options.unseen, list(private))
    if options.divide is not None:
        yield from partitions.divide_problems(private, options.divide, skip=options.unseen)
    else:  # parts have other names
        yield from site_name_problems(private, Path(options.output).name)


@dataclass(frozen=True)
class InspectedImages:
    """Images with their facts, after all files have been read.

    Args:
        found: images by site, or by (site, split), without those left out.
        facts: facts by image.
        sentences: sentences on images without a group and on images left out.
    """

    found: dict[Any, list[Found]]
    facts: dict[str, Facts]
    sentences: list[str]


def inspect_images(
    found: Mapping[Any, Sequence[Found]], root: Path, options: Options, known: Iterable[Problem] = ()
) -> InspectedImages:
    """Reads all files; refuses damaged ones, and a groups file that matches no image, before images are divided.

    Args:
        found: images by site, or by (site, split).
        root: the data root.
        options: see :class:`Options`; with ``skip_unreadable`` unreadable images are left out, with a warning each.
        known: problems of the source, refused together with those found here.
    """
    everything = [entry for entries in found.values() for entry in entries]
    problems, sentences, by_site = Problems(known), list[str](), dict[str, list[Found]]()
    for place, entries in found.items():
        by_site.setdefault(place if isinstance(place, str) else place[0], []).extend(entries)
    faults = name_problems(name for entry in everything for name in (entry.image, entry.label) if name)
    faults += [] if problems else site_problems(by_site, options)
    if faults:
        raise Refused([*problems, *faults])
    with problems.collected():
        sentences += options.groups_table.sentences(entry.image for entry in everything) if options.groups_table else []
    facts_of_all = survey(everything, root, threshold=options.mask_threshold, classes=options.classes)
    facts = {fact.image: fact for fact in facts_of_all if not (options.skip_unreadable and fact.unreadable)}
    if skipped := [fact for fact in facts_of_all if fact.image not in facts]:
        for problem in (problem for fact in skipped for problem in fact.problems):
            logger.warning("left out: %s", problem)
        subject = counted(len(skipped), "unreadable image was", "unreadable images were")
        sentences.append(f"{subject} left out, such as {skipped[0].image}")
        if not facts:
            problems.add(str(root), found="no readable image", expected="at least one")
    some_readable = not all(fact.unreadable for fact in facts.values())
    for fact in facts.values():
        problems.extend(map(with_skip_hint, fact.problems) if fact.unreadable and some_readable else fact.problems)
    problems.extend(foreground_problem(facts.values(), options.mask_threshold))
    problems.extend(repeated_stems((site, entry.image) for site, entries in by_site.items() for entry in entries))
    problems.refuse_if_any()
    kept = {
        place: [replace(entry, sha256=facts[entry.image].sha256) for entry in entries if entry.image in facts]
        for place, entries in found.items()
    }
    return InspectedImages(kept, facts, sentences)


def all_as_tests(found: Sites, root: str | Path, caveats: Sequence[str]) -> tuple[Places, list[str]]:
    """Returns every image with a mask as a test image, and the caveats with the numbers of images without one.

    Raises:
        Refused: no image has a mask.
    """
    places, caveats = dict[tuple[str, Split], list[Found]](), list(caveats)
    for site, entries in found.items():
        if labelled := [entry for entry in entries if entry.label is not None]:
            places[site, Split.TEST] = labelled
        if lacking := len(entries) - len(labelled):
            subject = counted(lacking, f"image of {site} has", f"images of {site} have")
            caveats.append(f"{subject} no mask: left out")
    if not places:
        found_here, hint = "; ".join(caveats), "put masks into DIR/<site>/masks, each named after its image"
        raise refused(root, found_here or "no image", expected="images with masks for testing", hint=hint)
    return places, caveats


def make_site_list(
    found: Sites, root: Path, options: Options, *, known: Sequence[Problem] = (), caveats: Sequence[str] = ()
) -> Prepared:
    """Makes a list from images of sites, one of which may be public.

    Args:
        found: images by site.
        root: the data root.
        options: see :class:`Options`.
        known: problems of the source.
        caveats: sentences of the source for the report.
    """
    if options.test_only and not known:
        all_as_tests(found, root, caveats)  # refuses before reading
    inspected = inspect_images(found, root, options, known)
    if options.test_only:
        places, caveats = all_as_tests(inspected.found, root, caveats)
    else:
        private = {site: entries for site, entries in inspected.found.items() if site != options.public}
        public = inspected.found.get(options.public, []) if options.public is not None else []
        places, draw_notes = partitions.draw_measuring(private, public=public, **options.draw_options)
        caveats = [*caveats, *draw_notes]
    return write_list(places, inspected, root, options, caveats=caveats)


def make_pool_list(found: Sequence[Found], root: Path, options: Options, *, known: Iterable[Problem] = ()) -> Prepared:
    """Makes a list from one pool: draws public images and divides the rest among sites.

    Args:
        found: images, with their groups.
        root: the data root.
        options: see :class:`Options`.
        known: problems of the source.
    """
    enough = isinstance(options.sites, int) and options.sites <= len(partitions.clusters_of(found))
    rest = partitions.draw_public(list(found), options.public, options.seed)[1]
    partitions.divide(rest, 1 if enough else options.sites, options.seed)  # refuses before reading
    inspected = inspect_images({"": found}, root, options, known)
    public, rest = partitions.draw_public(inspected.found[""], options.public, options.seed)
    sites = partitions.divide(rest, options.sites, options.seed)
    places, caveats = partitions.draw_measuring(sites, public=public, **options.draw_options)
    return write_list(places, inspected, root, options, caveats=caveats)


def write_list(
    places: Places,
    inspected: InspectedImages,
    root: Path,
    options: Options,
    *,
    coverage: Sequence[Coverage] = (),
    caveats: Sequence[str] = (),
) -> Prepared:
    """Applies ``unseen``, ``divide`` and ``limit_per_site``, checks the list, and writes it with its report.

    Args:
        places: images by site and split.
        inspected: their facts.
        root: the data root.
        options: see :class:`Options`.
        coverage: for a published list, how many of its images were found.
        caveats: sentences of the source for the report.
    """
    output, facts = Path(options.output), inspected.facts
    places, reshape_notes = partitions.make_unseen(places, options.unseen)
    if options.divide is not None:
        places, divide_notes = partitions.divide_sites(places, options.divide, seed=options.seed, skip=options.unseen)
        reshape_notes += divide_notes
    sites = {site: Site() for site, _ in places if site}
    datalist = DataList(options.list_name, [], sites, options.mask_threshold, list(options.classes))
    notes = volumes_of(root)
    for (site, split), found in places.items():
        items = [_item(entry, facts[entry.image], notes) for entry in found]
        if split is Split.UNLABELLED:
            items = [items[index] for index in subset([item.sha256 for item in items], options.limit_per_site)]
        (getattr(sites[site], split.value) if site else datalist.public).extend(items)
    listed = [facts[item.image] for _, _, item in datalist.items()]
    require(leaks(datalist))
    freeze({output: datalist})
    sentences = [*notes_on(datalist, listed), *reshape_notes, *caveats, *inspected.sentences]
    page = output.with_suffix(".report.html") if options.report else None
    if page is not None:
        write_report(datalist, listed, root, page, warnings=sentences, coverage=coverage)
    return Prepared(datalist, output, page, sentences, list(coverage))


def _item(entry: Found, fact: Facts, volumes: Mapping[str, Mapping[str, Any]]) -> Item:
    path = PurePosixPath(entry.image)
    volume, number = volumes.get(path.parent.as_posix(), {}), path.stem.rpartition("_")[2]
    files = entry.image, fact.sha256, entry.label, fact.label_sha256
    place = {**volume, "slice": int(number) if volume and number.isdigit() else None}
    return Item(*files, group=entry.group, label_kind=entry.label_kind, **place)


def prepare_folders(root: str | Path, options: Options, *, caveats: Sequence[str] = ()) -> Prepared:
    """Makes a list from ``root/<site>/{images,masks}``; a site without masks has only unlabelled images.

    Images with weak labels are used for training; validation and test images are drawn from those with masks.

    Args:
        root: the folder of sites, and the data root of the list. Without public images it may be one site's own folder,
            with ``images`` and ``masks``.
        options: see :class:`Options`; ``public`` is a site.
        caveats: further sentences for the report, for instance from the step that made the folders.

    Raises:
        Refused: all problems of the folders, the files and the list.
    """
    check_options(options)
    root = Path(root)
    by_folder, volumes = options.by_folder, {folder: note["volume"] for folder, note in volumes_of(root).items()}
    options = replace(options, by_folder=by_folder or bool(volumes), volumes=volumes)
    folders = find_folders(root, public=options.public, output=options.output)
    found = _with_groups(folders.sites, options, by_folder)
    reasons = dict.fromkeys(options.unseen, "images of a site of --unseen are used for testing")
    reasons |= {options.public: "its images are public"} if options.public is not None else {}
    classes = len(options.classes) or 1
    found, problems = declare_kinds(found, options.label_kinds, root, masks_only=reasons, classes=classes)
    all_caveats = [*folders.caveats, *caveats]
    all_caveats += [] if by_folder or options.groups or options.test_only else _repeated_name_note(found)
    problems += class_value_problems(root, {name: value for value, name in enumerate(options.classes, start=1)})
    return make_site_list(found, root, options, known=[*folders.problems, *problems], caveats=all_caveats)


def _with_groups(sites: Sites, options: Options, by_folder: bool) -> dict[str, list[Found]]:
    """Returns the images with their groups: of the groups file, else, ``by_folder`` or of slices, their folder."""

    def of_folder(entry: Found) -> Found:
        """Returns the image with its first folder below ``images`` as its group, for instance a patient's folder."""
        path = PurePosixPath(entry.image)
        start = normal(path.parts[0]), *path.parts[1:2]
        end = 3 if start == (entry.origin, "images") else 2  # else the root is the site
        grouped = by_folder or path.parent.as_posix() in options.volumes
        return replace(entry, group="/".join(path.parts[:end])) if grouped and len(path.parts) > end else entry

    keep = options.by_folder
    return {site: options.with_groups(map(of_folder, entries), keep_known=keep) for site, entries in sites.items()}


def _repeated_name_note(sites: Sites) -> list[str]:
    """Returns a sentence on images with the same name in several folders of a site, which may be patients' folders."""
    images = [(site, entry.image) for site, entries in sites.items() for entry in entries]
    count = Counter((site, stem(image)) for site, image in images)
    repeated = [(site, image) for site, image in images if count[site, stem(image)] > 1]
    subject = ", ".join(dict.fromkeys(site for site, _ in repeated))
    sentence = f"{len(repeated)} images of {subject} have the same names as images in other folders, such as"
    hint = "if each folder is one patient, --by-folder keeps its images in one split"
    return [f"{sentence} {repeated[0][1]}: {hint}"] if repeated else []


def prepare_coco(
    root: str | Path, options: Options, *, categories: Sequence[str] = (), without_annotation: str = "unlabelled"
) -> Prepared:
    """Draws COCO annotations as masks into their sites' folders, then calls :func:`prepare_folders`.

    Args:
        root: the folder of sites; see :func:`~.coco.draw_coco`.
        options: see :class:`Options`.
        categories: names of the foreground categories; empty takes the only one that has annotations.
        without_annotation: how to treat pictures without annotations, ``unlabelled`` or ``empty``.
    """
    check_options(options)
    find_folders(root, public=options.public, output=options.output)  # refuses a root without sites
    with undo_on_error() as written:
        caveats = draw_coco(
            root,
            categories=categories,
            blank_is_empty=without_annotation == "empty",
            skip_unreadable=options.skip_unreadable,
            output=options.output,
            written=written,
            check=partial(check_folders, root, options, PICTURE),
        )
        return prepare_folders(root, options, caveats=caveats)


def prepare_nifti(
    root: str | Path,
    options: Options,
    *,
    slices: str | Path,
    labels: Sequence[int] = (),
    reorient: bool = False,
    without_spacing: Sequence[str] = (),
) -> Prepared:
    """Cuts NIfTI volumes into slices, then calls :func:`prepare_folders`; slices of a volume stay together.

    Args:
        root: folder of sites, or one site's own; see :func:`~.volumes.cut_nifti`, also for the other arguments.
        options: see :class:`Options`.
        slices: folder for the slices, and the data root of the list.
    """
    check_options(options)
    check_folders(root, options, NIFTI)
    with undo_on_error() as written:
        caveats = cut_nifti(
            root,
            slices,
            labels=labels,
            classes=options.classes,
            reorient=reorient,
            without_spacing=without_spacing,
            skip_unreadable=options.skip_unreadable,
            written=written,
        )
        return prepare_folders(slices, options, caveats=caveats)


def prepare_isic(root: str | Path, options: Options) -> Prepared:
    """Makes a list from the official archives of an ISIC challenge (2016, 2017 or 2018).

    Args:
        root: folder that the archives were unpacked into, and the data root of the list.
        options: see :class:`Options`; "folder" means the folder of an archive.

    Raises:
        Refused: all problems of the archives, the files and the list.
    """
    check_options(options)
    root = Path(root)
    read = unpack_all(root, check=partial(isic_files, root)) if options.unpack else []
    found = options.with_groups(find_isic(root, read=read))
    lacking = without_mask([entry for entry in found if entry.origin and entry.origin == options.public])
    return make_pool_list(found, root, options, known=lacking)


def prepare_source(find: Callable[[str | Path], Sequence[Found]], root: str | Path, options: Options) -> Prepared:
    """Makes a list from a source of another package; its groups are never divided.

    Args:
        find: function from ``root`` to the images below it, with paths relative to it.
        root: the source's folder, and the data root of the list.
        options: see :class:`Options`; "folder" means an ``origin``.

    Raises:
        Refused: all problems of the found images, the files and the list.
    """
    check_options(options)
    images = list(find(root))
    others = [image for image in images if not isinstance(image, Found)]
    if others or not images:
        found = f"{type(others[0]).__name__} in the list" if others else f"no image below {root}"
        raise refused(getattr(find, "__name__", "source"), found, "a list of samfed_monai.data.folders.Found")
    return make_pool_list(options.with_groups(images, keep_known=True), Path(root), options)


def prepare_list(
    split: str | Path, data_root: str | Path, options: Options, *, folders: Mapping[str, str] | None = None
) -> Prepared:
    """Makes a list from a published one; missing images are reported.

    Args:
        split: the published JSON file.
        data_root: folder of the images; see :func:`~.public.find_published`.
        options: see :class:`Options`.
        folders: folder by client, for folders not named like their client.

    Raises:
        Refused: all problems of the published list, the files and the result.
    """
    root = Path(data_root)
    published = find_published(split, root, folders)
    options = replace(options, name=options.name or published.name)
    check_options(options)
    known = options.by_sequence
    found = {place: options.with_groups(entries, keep_known=known) for place, entries in published.places.items()}
    inspected = inspect_images(found, root, options)
    return write_list(inspected.found, inspected, root, options, coverage=published.coverage)


def prepare_polyp(root: str | Path, options: Options) -> Prepared:
    """Makes a list from the polyp collections in a folder, each in its own folder in the released layout.

    Every collection is a site (PolypGen: each of its centres, and its sequences); frames of one video stay in one
    split if the videos are known. Masks that are not binary are cut at their collection's threshold, unless
    ``mask_threshold`` is set.

    Args:
        root: folder of collections, and the data root of the list. See :func:`~.public.find_polyps`.
        options: see :class:`Options`. A ``groups`` file replaces the known groups of the images it names.

    Raises:
        Refused: all problems of the collections, the files and the list.
    """
    check_options(options)
    root = Path(root)
    if options.unpack:
        unpack_all(root, folder_each=True)
    polyps = find_polyps(root)
    sites = {site: options.with_groups(entries, keep_known=True) for site, entries in polyps.sites.items()}
    for name in options.leave_out:
        for site in _sites_of(name, sites, "--leave-out"):
            del sites[site]
    public = _public_site(options.public, sites) if options.public is not None else None
    unseen = [site for name in options.unseen for site in _sites_of(name, sites, "--unseen")]
    threshold = polyps.threshold if options.mask_threshold is None else options.mask_threshold
    options = replace(options, public=public, unseen=unseen, mask_threshold=threshold)
    lacking = without_mask(sites[public]) if public is not None else []
    return make_site_list(sites, root, options, known=lacking, caveats=polyps.caveats)


def _sites_of(name: str, sites: Mapping[str, list[Found]], where: str) -> list[str]:
    """Returns the site of that name, or the sites of the collection of that name."""
    collection = collection_of(name)
    if name in sites:
        return [name]
    found = [site for site in sites if collection is not None and collection_of(site) == collection]
    if not found:
        raise refused(where, repr(name), f"one of {list(sites)}", "give the name of a collection in the folder")
    return found


def _public_site(public: str, sites: Mapping[str, list[Found]]) -> str:
    found = _sites_of(public, sites, "--public")
    if len(found) > 1:
        raise refused("--public", found=repr(public), expected=f"one of {found}", hint="name one centre")
    if len(sites) < 2:
        raise refused("--public", f"only {found[0]}", "at least one more site", "add at least one more collection")
    return found[0]
