"""``samfed prepare``: from every source to a frozen data list, and the sentences that it ends with."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core.words import counted

if TYPE_CHECKING:
    from samfed_monai.data.datalist import DataList
    from samfed_monai.data.prepare import Options, Prepared


MORE = 0.3  # share of the images to validate, and to test on, where a tenth is too little; as docs/own-data.md says


def _options(arguments: argparse.Namespace) -> Options:
    from samfed_monai.data.prepare import Options

    return Options(
        output=arguments.output,
        name=arguments.name,
        groups=arguments.groups,
        group_column=arguments.group_column,
        limit_per_site=arguments.limit_per_site,
        drop_unlabelled_labels=arguments.drop_unlabelled_labels,
        mask_threshold=arguments.mask_threshold,
        classes=_names(arguments.classes),
        unseen=_names(getattr(arguments, "unseen", [])),
        divide=getattr(arguments, "divide", None),
        seed=arguments.seed,
        skip_unreadable=arguments.skip_unreadable,
        report=not arguments.no_report,
    )


def run_folders(arguments: argparse.Namespace, caveats: Sequence[str] = ()) -> int:
    from samfed_monai.core.errors import Problem, Refused
    from samfed_monai.data.prepare import prepare_folders, prepare_to_test

    kinds = _by_site(getattr(arguments, "label_kind", ()), "--label-kind")
    if arguments.test_only and kinds:
        found, hint = "it beside --test-only", "leave it out: what is measured with needs masks"
        raise Refused([Problem("--label-kind", found=found, expected="one of the two", hint=hint)])
    if arguments.test_only:
        given = {
            "validation": arguments.validation != SHARE,
            "test": arguments.test != SHARE,
            "unseen": arguments.unseen,
            "by-folder": arguments.by_folder and arguments.source != "nifti",
        }
        _refuse_unheeded(given, "nothing beside --test-only, with which every image that has a mask is a test image")
        prepared = prepare_to_test(arguments.root, options=_options(arguments), caveats=caveats)
        return _tell(prepared, root=arguments.root)
    prepared = prepare_folders(
        arguments.root,
        public=_public(arguments.public),
        options=_options(arguments),
        validation=arguments.validation,
        test=arguments.test,
        by_folder=arguments.by_folder,
        label_kinds=kinds,
        caveats=caveats,
    )
    return _tell(prepared, shares=(arguments.validation, arguments.test))


def _refuse_unheeded(given: Mapping[str, Any], expected: str, hint: str = "leave it out") -> None:
    """Refuses options that would do nothing."""
    from samfed_monai.core.errors import Problem, Refused

    names = [name for name, asked in given.items() if asked]
    if names:
        raise Refused([Problem(f"--{name}", found="it", expected=expected, hint=hint) for name in names])


def _refuse_unheeded_of_partition(arguments: argparse.Namespace) -> None:
    how = arguments.partition
    alone = {"alpha": arguments.alpha != ALPHA and not how.startswith("dirichlet")}
    _refuse_unheeded(alone, f"nothing with --partition {how}: it is Dirichlet's concentration")
    _refuse_unheeded({"sites": arguments.sites != SITES and how == "folder"}, "nothing with --partition folder")


def run_coco(arguments: argparse.Namespace) -> int:
    from samfed_monai.data.prepare import check_first
    from samfed_monai.data.sources.rendered import draw_coco, taken_back_if_refused

    check_first(_options(arguments), validation=arguments.validation, test=arguments.test)
    with taken_back_if_refused() as written:
        said = draw_coco(
            arguments.root,
            categories=_names(arguments.category),
            blank_is_empty=arguments.without_annotation == "empty",
            skip_unreadable=arguments.skip_unreadable,
            output=arguments.output,
            written=written,
        )
        return run_folders(arguments, said)


def run_nifti(arguments: argparse.Namespace) -> int:
    from samfed_monai.data.prepare import check_first
    from samfed_monai.data.sources.rendered import cut_nifti, taken_back_if_refused

    check_first(_options(arguments), validation=arguments.validation, test=arguments.test)
    with taken_back_if_refused(arguments.slices) as written:
        said = cut_nifti(
            arguments.root,
            arguments.slices,
            labels=arguments.label,
            classes=_names(arguments.classes),
            reorient=arguments.reorient,
            skip_unreadable=arguments.skip_unreadable,
            written=written,
        )
        arguments.root, arguments.by_folder = arguments.slices, True
        return run_folders(arguments, said)


def run_isic(arguments: argparse.Namespace) -> int:
    from samfed_monai.data.prepare import prepare_isic

    _refuse_unheeded_of_partition(arguments)
    prepared = prepare_isic(
        arguments.root,
        options=_options(arguments),
        public=_public(arguments.public),
        sites=arguments.sites,
        partition=arguments.partition,
        alpha=arguments.alpha,
        validation=arguments.validation,
        test=arguments.test,
        unpack_archives=arguments.unpack,
    )
    return _tell(prepared, shares=(arguments.validation, arguments.test))


def run_list(arguments: argparse.Namespace) -> int:
    from samfed_monai.core.errors import Problems
    from samfed_monai.data.prepare import prepare_list

    problems = Problems()
    folders = {}
    for pair in arguments.folder:
        client, equals, folder = pair.partition("=")
        if not (client and equals and folder):
            problems.add("--folder", found=repr(pair), expected="CLIENT=FOLDER", hint="for instance Kvasir=kvasir_seg")
        folders[client] = folder
    problems.refuse_if_any()
    prepared = prepare_list(
        arguments.split,
        arguments.data_root,
        options=_options(arguments),
        folders=folders,
        by_sequence=arguments.by_sequence,
    )
    return _tell(prepared)


def run_polyp(arguments: argparse.Namespace) -> int:
    from samfed_monai.data.prepare import prepare_polyp

    prepared = prepare_polyp(
        arguments.root,
        options=_options(arguments),
        public=_public(arguments.public),
        leave_out=_names(arguments.leave_out),
        validation=arguments.validation,
        test=arguments.test,
        by_sequence=arguments.by_sequence,
        unpack_archives=arguments.unpack,
    )
    return _tell(prepared, shares=(arguments.validation, arguments.test))


def run_source(arguments: argparse.Namespace) -> int:
    from samfed_monai.config.entry_points import brought
    from samfed_monai.data.prepare import prepare_source

    _refuse_unheeded_of_partition(arguments)
    prepared = prepare_source(
        brought("sources").named(arguments.name_of_source, (), "source"),
        arguments.root,
        options=_options(arguments),
        public=_public(arguments.public),
        sites=arguments.sites,
        partition=arguments.partition,
        alpha=arguments.alpha,
        validation=arguments.validation,
        test=arguments.test,
    )
    return _tell(prepared, shares=(arguments.validation, arguments.test))


def run_split(arguments: argparse.Namespace) -> int:
    from samfed_monai.data.datalist import DataList
    from samfed_monai.data.records import write_site_lists

    for name, path in write_site_lists(DataList.load(arguments.datalist), arguments.output_dir).items():
        sys.stdout.write(f"{name}: {path}\n")
    return 0


def run_weak(arguments: argparse.Namespace) -> int:
    from samfed_monai.data.datalist import DataList, require_free
    from samfed_monai.data.weak_labels import weaken_list

    datalist = DataList.load(arguments.datalist)
    given = _by_site(arguments.kind, "--kind")
    kinds = (dict.fromkeys(datalist.sites, given.pop("")) if "" in given else {}) | given
    require_free(arguments.output, name=datalist.name)
    drawn = weaken_list(
        datalist, arguments.data_root, kinds, seed=arguments.seed, points=arguments.points, width=arguments.width
    )
    return _freeze(drawn, arguments.data_root, arguments)


def _by_site(words: Sequence[str], option: str) -> dict[str, str]:
    """What ``[SITE=]KIND`` says, by site; ``""`` is every site that is not named."""
    from samfed_monai.core.errors import Problems

    problems, given = Problems(), dict[str, str]()
    for word in words:
        site, _, kind = word.rpartition("=")
        if site in given:
            problems.add(option, found=f"two kinds for {site or 'all sites'}", expected="one for each site")
        given[site] = kind
    problems.refuse_if_any()
    return given


def run_synthetic(arguments: argparse.Namespace) -> int:
    from samfed_monai.core.errors import Problem, Refused
    from samfed_monai.data.datalist import require_free
    from samfed_monai.data.synthetic import list_name, render_synthetic

    if arguments.scene == VOLUMES:
        return _volumes(arguments)
    if arguments.output is None:
        expected = "the data list to write, which only volumes do without"
        raise Refused([Problem("--output", found="none", expected=expected, hint="--output list.json")])
    require_free(arguments.output, name=list_name(arguments.scene, arguments.seed))
    chosen: dict[str, Any] = {"images_per_site": arguments.images_per_site, "public": arguments.public}
    chosen["size"] = tuple(arguments.size) if arguments.size else None
    given = {key: value for key, value in chosen.items() if value is not None}
    datalist = render_synthetic(
        arguments.root,
        scene=arguments.scene,
        sites=arguments.sites,
        labelled=arguments.labelled,
        seed=arguments.seed,
        **given,
    )
    return _freeze(datalist, arguments.root, arguments)


def _volumes(arguments: argparse.Namespace) -> int:
    """NIfTI files of two sites and a public set, and the command that makes a list of them."""
    from samfed_monai.data.synthetic_volumes import CLASSES, render_volumes

    unheeded = {"output": arguments.output is not None, "sites": arguments.sites != SITES}
    unheeded |= {"labelled": arguments.labelled, "no-report": arguments.no_report}
    hint = "leave it out; `samfed prepare nifti` makes the list of the two sites"
    _refuse_unheeded(unheeded, "none: the scene volumes writes NIfTI files", hint)
    chosen: dict[str, Any] = {"volumes": arguments.images_per_site, "public": arguments.public}
    chosen["size"] = tuple(arguments.size) if arguments.size else None
    given = {key: value for key, value in chosen.items() if value is not None}
    sites = render_volumes(arguments.root, seed=arguments.seed, progress=True, **given)
    words = ["samfed", "prepare", "nifti", str(arguments.root), "--slices", f"{arguments.root}_slices"]
    words += ["--public", "public", "--classes", ",".join(CLASSES), "--validation", str(MORE), "--test", str(MORE)]
    sys.stdout.write(f"volumes of {', '.join(sites)} in {arguments.root}\n")
    sys.stdout.write(f"next    {shlex.join(words)} --output list.json\n")
    return 0


def _freeze(datalist: DataList, root: Path, arguments: argparse.Namespace) -> int:
    """Writes a list that was made without a source, with its report, and tells of both."""
    from samfed_monai.data.datalist import freeze
    from samfed_monai.data.prepare import Prepared
    from samfed_monai.data.quality_report import report_on

    freeze({arguments.output: datalist})
    page = None
    if not arguments.no_report:
        page = report_on(datalist, root, arguments.output.with_suffix(".report.html"))
    return _tell(Prepared(datalist, arguments.output, page))


def _public(given: str) -> str | None:
    return None if given == "none" else given


def _names(given: list[str]) -> list[str]:
    return [name for names in given for name in names.split(",") if name]


def _tell(prepared: Prepared, *, shares: tuple[float, float] | None = None, root: Path | None = None) -> int:
    """Prints what was made: this is the command line's part of the room.

    Args:
        prepared: the list.
        shares: what ``--validation`` and ``--test`` were, for a source that has them.
        root: the data root of a list that only measures.
    """
    datalist = prepared.datalist
    lines = [
        f"{datalist.name}: {counted(len(datalist.public), 'public image')}, {counted(len(datalist.sites), 'site')}"
    ]
    for name, site in datalist.sites.items():
        counts = ", ".join(f"{len(items)} {split.value}" for split, items in site.splits())
        lines.append(f"  {name}: {counts}")
    for part in prepared.coverage:
        if part.missing:
            place = f"{part.client} ({part.split.value})"
            lines.append(f"  not at hand: {len(part.missing)} of {part.listed} images of {place}")
    lines += [f"  worth a look: {sentence}" for sentence in prepared.warnings]
    lines += _few_to_measure(datalist, shares) if root is None else []
    lines += [f"list    {prepared.path}  ({datalist.hash[:12]})"]
    lines += [f"report  {prepared.report}"] if prepared.report else []
    if root is not None:
        there = shlex.join(["--datalist", str(prepared.path), "--data-root", str(root)])
        lines += [f"next    samfed evaluate BUNDLE --model MODEL {there} --output-dir SCORES"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _few_to_measure(datalist: DataList, shares: tuple[float, float] | None) -> list[str]:
    from samfed_monai.data.datalist import LEAST_IMAGES, few_to_measure, without_labels

    names = few_to_measure(datalist, LEAST_IMAGES)
    bare = without_labels(datalist)
    lines = []
    if bare and len(bare) < len(datalist.sites):  # of no site at all the warnings have said it
        lines.append(
            f"  nothing to measure with: {', '.join(bare)}: no image has a mask, so that no score is reported there, "
            "and the choice of the best round goes by the other sites"
        )
    if not names:
        return lines
    more = f"--validation {MORE} --test {MORE} gives more; " if shares and min(shares) < MORE else ""
    return [
        *lines,
        f"  few to measure with: {', '.join(names)}: fewer than {LEAST_IMAGES} validation or test images, and a site "
        f"reports no score of fewer; {more}where all images lie on one machine, --privacy#least_images 1 of "
        "`samfed federate` shows every score",
    ]


PARTITIONS = ("iid", "folder", "dirichlet-size", "dirichlet-appearance")
VOLUMES = "volumes"
SCENES = ("skin", "polyp", VOLUMES)
SITES, SHARE, ALPHA = 4, 0.1, 0.5  # unless that is said


def add_prepare_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds ``prepare`` and its sources; each sets ``run``, a function from the parsed arguments to an exit code.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` returned.
    """
    about = "Turn images into a frozen data list, with a report to look at."
    prepare: argparse.ArgumentParser = subparsers.add_parser("prepare", help=about.lower()[:-1], description=about)
    sources = prepare.add_subparsers(dest="source", required=True, metavar="SOURCE")
    _folders(sources)
    _coco(sources)
    _nifti(sources)
    _isic(sources)
    _list(sources)
    _polyp(sources)
    _of_a_package(sources)
    _split(sources)
    _synthetic(sources)
    _weak(sources)
    return prepare


def _folders(sources: Any) -> None:
    parser = _source(sources, "folders", "DIR/<site>/{images,masks}; masks may be missing except for the public one")
    parser.add_argument("root", metavar="DIR", type=Path, help="folder of sites; becomes the data root")
    about = (
        "labels of all sites, or of one, are scribble, points, box or block (0 background, 1 foreground, 255 not "
        "labelled), or mask; may be repeated"
    )
    parser.add_argument("--label-kind", action="append", default=[], metavar="[SITE=]KIND", help=about)
    _of_sites(parser)
    _by_folder(parser)
    parser.set_defaults(run=run_folders)


def _coco(sources: Any) -> None:
    about = "COCO annotations, DIR/<site>/{images,annotations/*.json}, drawn as masks into DIR/<site>/masks"
    parser = _source(sources, "coco", about)
    parser.add_argument("root", metavar="DIR", type=Path, help="folder of sites; becomes the data root")
    about = "categories that are foreground (default: the only one that has annotations)"
    parser.add_argument("--category", action="append", default=[], metavar="NAME[,NAME]", help=about)
    about = "what pictures without any are: unlabelled (default), or empty masks, where all were annotated"
    parser.add_argument("--without-annotation", choices=("unlabelled", "empty"), default="unlabelled", help=about)
    _of_sites(parser)
    _by_folder(parser)
    parser.set_defaults(run=run_coco)


def _nifti(sources: Any) -> None:
    about = "NIfTI volumes, DIR/<site>/{images,masks}/*.nii.gz, cut into slices; those of one volume stay together"
    parser = _source(sources, "nifti", about)
    parser.add_argument("root", metavar="DIR", type=Path, help="folder of sites, or with --test-only a single site")
    about = "where the slices go, as <site>/{images,masks}; becomes the data root"
    parser.add_argument("--slices", required=True, metavar="DIR", type=Path, help=about)
    about = (
        "value of masks that is foreground; may be repeated (default: the only one beside 0); with --classes, the "
        "value of each class in their order (default: 1, 2, …)"
    )
    parser.add_argument("--label", action="append", default=[], metavar="N", type=int, help=about)
    about = "turn volumes and masks to RAS+ before they are cut, so that slices run from feet to head"
    parser.add_argument("--reorient", action="store_true", help=about)
    _of_sites(parser)
    parser.set_defaults(run=run_nifti)


def _by_folder(parser: argparse.ArgumentParser) -> None:
    about = "images in one folder below images, as of a patient, stay in one split"
    parser.add_argument("--by-folder", action="store_true", help=about)


def _of_sites(parser: argparse.ArgumentParser) -> None:
    use = parser.add_mutually_exclusive_group(required=True)
    use.add_argument("--public", metavar="NAME", help="the site whose images are public, or none")
    about = "the list is to measure with: every image that has a mask is a test image (DIR may be a single site)"
    use.add_argument("--test-only", action="store_true", help=about)
    _measuring(parser)
    _reshaping(parser)
    _common(parser)


def _isic(sources: Any) -> None:
    parser = _source(sources, "isic", "the official archives of the ISIC challenge 2016, 2017 or 2018, unpacked")
    parser.add_argument("root", metavar="DIR", type=Path, help="folder they were unpacked into; becomes the data root")
    parser.add_argument(
        "--public", default="100", metavar="N|SHARE|NAME", help="count, share or archive folder, or none (default: 100)"
    )
    _dividing(parser)
    parser.add_argument("--unpack", action="store_true", help="unpack DIR/*.zip first")
    _measuring(parser)
    _common(parser)
    parser.set_defaults(run=run_isic)


def _of_a_package(sources: Any) -> None:
    parser = _source(sources, "source", "what a source of another installed package finds, by its name")
    parser.add_argument("name_of_source", metavar="NAME", help="of an entry point of the group samfed_monai.sources")
    parser.add_argument("root", metavar="DIR", type=Path, help="folder that it looks through; becomes the data root")
    parser.add_argument(
        "--public", default="0.25", metavar="N|SHARE|NAME", help="count, share or origin, or none (default: 0.25)"
    )
    _dividing(parser)
    _measuring(parser)
    _common(parser)
    parser.set_defaults(run=run_source)


def _list(sources: Any) -> None:
    parser = _source(sources, "list", "a published list of who had which image (HSSF's format)")
    parser.add_argument("--split", required=True, metavar="FILE", help="the JSON file, or isic_hssf or polyp_hssf")
    parser.add_argument("--data-root", required=True, metavar="DIR", type=Path, help="where the images are")
    parser.add_argument(
        "--folder", action="append", default=[], metavar="CLIENT=FOLDER", help="a client's folder; may be repeated"
    )
    about = "record the videos that a polyp collection's images come from, where they are known"
    parser.add_argument("--by-sequence", action="store_true", help=about)
    _reshaping(parser)
    _common(parser)
    parser.set_defaults(run=run_list)


def _polyp(sources: Any) -> None:
    about = "public polyp collections as they unpack, one folder each: one hospital, one site"
    parser = _source(sources, "polyp", about)
    parser.add_argument("root", metavar="DIR", type=Path, help="folder of collections; becomes the data root")
    parser.add_argument(
        "--public", default="CVC-ColonDB", metavar="NAME", help="the public collection, or none (default: %(default)s)"
    )
    parser.add_argument(
        "--leave-out", action="append", default=[], metavar="NAME[,NAME]", help="collections to pass over"
    )
    parser.add_argument(
        "--by-sequence",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="frames of one video stay in one split, where the videos are known (default: yes)",
    )
    parser.add_argument("--unpack", action="store_true", help="unpack DIR/*.zip first, each into a folder of its name")
    _measuring(parser)
    _reshaping(parser)
    _common(parser)
    parser.set_defaults(run=run_polyp)


def _split(sources: Any) -> None:
    parser = _source(
        sources, "split", "one list per site out of a list of all, for sites that do not share their lists"
    )
    parser.add_argument("datalist", metavar="LIST.json", type=Path, help="a list made by `samfed prepare`")
    about = "where to write <site>.json, and server.json with the public images alone"
    parser.add_argument("--output-dir", required=True, metavar="DIR", type=Path, help=about)
    parser.set_defaults(run=run_split)


def _synthetic(sources: Any) -> None:
    parser = _source(sources, "synthetic", "render dermoscopy- or colonoscopy-like sites, for demos and tests")
    parser.add_argument("root", metavar="DIR", type=Path, help="folder to render into; becomes the data root")
    parser.add_argument("--output", metavar="LIST.json", type=Path, help="the data list to write; none for volumes")
    about = "what is rendered (default: %(default)s); volumes: NIfTI files of a CT-like and an MR-like site, two organs"
    parser.add_argument("--scene", choices=SCENES, default="skin", help=about)
    parser.add_argument("--sites", type=int, default=SITES, metavar="N", help="number of sites (default: 4)")
    parser.add_argument("--labelled", action="store_true", help="give unlabelled images masks, too (for the oracle)")
    parser.add_argument("--images-per-site", type=int, metavar="N", help="unlabelled images, or volumes, of each site")
    parser.add_argument("--public", type=int, metavar="N", help="public images, or volumes")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels of each image (default: 192 256)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default: 0)")
    parser.add_argument("--no-report", action="store_true", help="write no data report")
    parser.set_defaults(run=run_synthetic)


def _weak(sources: Any) -> None:
    about = "scribbles, points, boxes or blocks out of the masks of a list, for the sites' training images"
    parser = _source(sources, "weak", about)
    parser.add_argument("datalist", metavar="LIST.json", type=Path, help="a list whose sites have masks")
    about = "where the images are; the labels are written there, into weak/"
    parser.add_argument("--data-root", required=True, metavar="DIR", type=Path, help=about)
    about = "scribble, points, box or block, of all sites or of one; may be repeated"
    parser.add_argument("--kind", action="append", required=True, metavar="[SITE=]KIND", help=about)
    parser.add_argument("--output", required=True, metavar="NEW.json", type=Path, help="the data list to write")
    parser.add_argument("--points", type=int, default=5, metavar="N", help="points of each class (default: 5)")
    about = "of scribbles and points, in pixels of the image, odd (default: 3)"
    parser.add_argument("--width", type=int, default=3, metavar="N", help=about)
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default: 0)")
    parser.add_argument("--no-report", action="store_true", help="write no data report")
    parser.set_defaults(run=run_weak)


def _source(sources: Any, name: str, about: str) -> argparse.ArgumentParser:
    description = about[0].upper() + about[1:] + "."
    parser: argparse.ArgumentParser = sources.add_parser(name, help=about, description=description)
    return parser


def _dividing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sites", type=int, default=SITES, metavar="N", help="number of sites (default: 4)")
    parser.add_argument(
        "--partition", choices=PARTITIONS, default="iid", help="who gets which images (default: %(default)s)"
    )
    parser.add_argument(
        "--alpha", type=float, default=ALPHA, help="Dirichlet's concentration; small makes sites unlike (default: 0.5)"
    )


def _measuring(parser: argparse.ArgumentParser) -> None:
    for split, use in (("validation", "validate"), ("test", "test")):
        about = f"share of each site's images to {use} on, drawn from the labelled ones (default: 0.1)"
        parser.add_argument(f"--{split}", type=float, default=SHARE, metavar="SHARE", help=about)


def _reshaping(parser: argparse.ArgumentParser) -> None:
    about = "sites that take no part in training: all their labelled images become test images"
    parser.add_argument("--unseen", action="append", default=[], metavar="NAME[,NAME]", help=about)
    about = "cut each site (but the unseen ones) into N, NAME-1 to NAME-N; a group is never divided"
    parser.add_argument("--divide", type=int, metavar="N", help=about)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="LIST.json", type=Path, help="the data list to write")
    parser.add_argument("--name", help="what reports call it (default: the file's name)")
    parser.add_argument("--groups", metavar="CSV", type=Path, help="image (or id) and group; a group is never divided")
    parser.add_argument("--group-column", default="group", metavar="NAME", help="the CSV's column (default: group)")
    parser.add_argument(
        "--limit-per-site", type=int, metavar="N", help="keep N unlabelled images of each site, chosen by hash"
    )
    parser.add_argument(
        "--drop-unlabelled-labels",
        action="store_true",
        help="record no labels of unlabelled images (no oracle then)",
    )
    parser.add_argument(
        "--mask-threshold", type=int, metavar="1..255", help="grey level from which masks that are not binary count"
    )
    about = (
        "names of the classes that the values 1, 2, … of label files stand for (default: binary masks, of one class)"
    )
    parser.add_argument("--classes", action="append", default=[], metavar="NAME,NAME", help=about)
    about = "leave out images that cannot be decoded, or whose mask cannot; otherwise one of them refuses all"
    parser.add_argument("--skip-unreadable", action="store_true", help=about)
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default: 0)")
    parser.add_argument("--no-report", action="store_true", help="write no data report")
