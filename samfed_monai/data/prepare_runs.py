"""What each source of ``samfed prepare`` does with its arguments, and the sentences that it ends with."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samfed_monai.data.assembly import Options, Prepared
    from samfed_monai.data.datalist import DataList

MORE = 0.3  # share of the images to validate, and to test on, where a tenth is too little; as docs/own-data.md says


def _options(arguments: argparse.Namespace) -> Options:
    from samfed_monai.data.assembly import Options

    return Options(
        output=arguments.output,
        name=arguments.name,
        groups=arguments.groups,
        group_column=arguments.group_column,
        limit_per_site=arguments.limit_per_site,
        drop_unlabelled_labels=arguments.drop_unlabelled_labels,
        mask_threshold=arguments.mask_threshold,
        unseen=_names(getattr(arguments, "unseen", [])),
        divide=getattr(arguments, "divide", None),
        seed=arguments.seed,
        report=not arguments.no_report,
    )


def run_folders(arguments: argparse.Namespace) -> int:
    from samfed_monai.data.prepare import prepare_folders

    prepared = prepare_folders(
        arguments.root,
        public=_public(arguments.public),
        options=_options(arguments),
        validation=arguments.validation,
        test=arguments.test,
    )
    return _tell(prepared, shares=(arguments.validation, arguments.test))


def run_isic(arguments: argparse.Namespace) -> int:
    from samfed_monai.data.prepare import prepare_isic

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
    from samfed_monai.data.prepare import prepare_list
    from samfed_monai.errors import Problems

    problems = Problems()
    folders = {}
    for pair in arguments.folder:
        client, equals, folder = pair.partition("=")
        if not (client and equals and folder):
            problems.add("--folder", found=repr(pair), expected="CLIENT=FOLDER", mend="for instance Kvasir=kvasir_seg")
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
    from samfed_monai.data.prepare_collections import prepare_polyp

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


def run_split(arguments: argparse.Namespace) -> int:
    from samfed_monai.data.datalist import DataList
    from samfed_monai.data.split_lists import write_site_lists

    for name, path in write_site_lists(DataList.load(arguments.datalist), arguments.output_dir).items():
        print(f"{name}: {path}")
    return 0


def run_synthetic(arguments: argparse.Namespace) -> int:
    from samfed_monai.data.assembly import Prepared
    from samfed_monai.data.freezing import freeze, require_free
    from samfed_monai.data.quality_report import report_on
    from samfed_monai.data.synthetic import list_name, render_synthetic

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
    freeze({arguments.output: datalist})
    page = None
    if not arguments.no_report:
        page = report_on(datalist, arguments.root, arguments.output.with_suffix(".report.html"))
    return _tell(Prepared(datalist, arguments.output, page))


def _public(given: str) -> str | None:
    return None if given == "none" else given


def _names(given: list[str]) -> list[str]:
    return [name for names in given for name in names.split(",") if name]


def _tell(prepared: Prepared, *, shares: tuple[float, float] | None = None) -> int:
    """Prints what was made: this is the command line's part of the room.

    Args:
        prepared: the list.
        shares: what ``--validation`` and ``--test`` were, for a source that has them.
    """
    datalist = prepared.datalist
    lines = [f"{datalist.name}: {len(datalist.public)} public images, {len(datalist.sites)} sites"]
    for name, site in datalist.sites.items():
        counts = ", ".join(f"{len(items)} {split.value}" for split, items in site.splits())
        lines.append(f"  {name}: {counts}")
    for part in prepared.coverage:
        if part.missing:
            place = f"{part.client} ({part.split.value})"
            lines.append(f"  not at hand: {len(part.missing)} of {part.listed} images of {place}")
    lines += [f"  worth a look: {sentence}" for sentence in prepared.warnings]
    lines += _few_to_measure(datalist, shares)
    lines += [f"list    {prepared.path}  ({datalist.hash[:12]})"]
    lines += [f"report  {prepared.report}"] if prepared.report else []
    print("\n".join(lines))
    return 0


def _few_to_measure(datalist: DataList, shares: tuple[float, float] | None) -> list[str]:
    from samfed_monai.data.measuring import LEAST_IMAGES, few_to_measure

    names = few_to_measure(datalist, LEAST_IMAGES)
    if not names:
        return []
    more = f"--validation {MORE} --test {MORE} gives more; " if shares and min(shares) < MORE else ""
    return [
        f"  few to measure with: {', '.join(names)}: fewer than {LEAST_IMAGES} validation or test images, and a site "
        f"tells no score of fewer; {more}where all images lie on one machine, --privacy#least_images 1 of "
        "`samfed federate` shows every score"
    ]
