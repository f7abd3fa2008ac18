"""From a data list to records for MONAI's datasets, to public sets and to lists of single sites."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from samfed_monai.core.errors import Problem, Problems, Refused, refused
from samfed_monai.core.io import canonical_hash, sha256_file
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.text import counted
from samfed_monai.core.validators import in_range, one_of, require, whole
from samfed_monai.data.checks import NO_FILE, RESTORE, hash_problems, ids_of, wrong_root
from samfed_monai.data.datalist import DataList, Item, LabelKind, Split, confine, freeze
from samfed_monai.data.partitions import clusters, draw, subset

_warn_once = lru_cache(logging.getLogger(__name__).warning)


def public_hash(public: DataList | Sequence[Mapping[str, Any]], *, ordered: bool = True) -> str:
    """Returns the SHA-256 over the SHA-256 of each public image and mask, independent of names and folders.

    Soft masks of the public set are sent as rows of a stack, so server and sites must have the same images in the same
    order; they compare this hash before they start.

    Args:
        public: a data list (its recorded hashes are used), or records of its public images
            (``load_records(..., split="public")``; the masks' bytes are then read and hashed).
        ordered: whether the order counts; the teacher's adapter records the hash without order.

    Returns:
        64 hexadecimal digits; the same for a list and for its records as long as no mask has changed.

    Raises:
        Refused: an image without a mask, or a mask that cannot be read.
    """
    if isinstance(public, DataList):
        public = [{"image": i.image, "image_sha256": i.sha256, "label_sha256": i.label_sha256} for i in public.public]
    pairs = [[image, label] for image, label in map(_hashes, public)]
    return canonical_hash(pairs if ordered else sorted(pairs))


def label_settings(datalist: DataList) -> dict[str, Any]:
    """Returns the settings that define foreground besides the file bytes of :func:`public_hash`; usually empty.

    Part of the keys of models trained on the public set.
    """
    return {name: value for name, value in datalist.meaning().items() if value is not None}


def _hashes(entry: Mapping[str, Any]) -> tuple[str, str]:
    if entry.get("label_sha256"):
        return entry["image_sha256"], entry["label_sha256"]
    if not entry.get("label"):
        hint = "every public image needs a mask; read the records with their labels"
        raise refused(str(entry.get("image")), found="no mask", expected="the mask's file", hint=hint)
    try:
        return entry["image_sha256"], sha256_file(entry["label"])
    except OSError as error:
        raise refused(str(entry["label"]), error.strerror or str(error), "a readable mask") from None


Record = dict[str, Any]

NO_SPACING = [0.0, 0.0, 0.0]
"""Spacing of a slice with unknown spacing, and of an image that is not a slice."""


def load_records(
    datalist: str | Path | DataList,
    data_root: str | Path,
    *,
    split: str,
    site: str | None = None,
    with_labels: bool | None = None,
    limit: int | None = None,
    weak_labels: bool = False,
    verify: bool | Collection[str] = False,
) -> list[Record]:
    """Returns records of one split, with absolute paths, which are checked to be inside the data root.

    Files must exist; their content is not decoded (:func:`samfed_monai.data.check_datalist` does that).

    Args:
        datalist: the list, or its JSON file.
        data_root: folder that the list's paths are relative to.
        split: ``"public"``, or one of a site's ``"unlabelled"``, ``"validation"`` and ``"test"``.
        site: name of the site; ``None`` for the public images.
        with_labels: whether records name their masks. ``None`` means yes, except for unlabelled images, whose labels
            must be requested (as the oracle variant does).
        limit: number of images to keep, chosen by hash, in the list's order; ``None`` keeps all.
        weak_labels: whether the caller can use labels of other kinds than masks.
        verify: whether to check the files' SHA-256 against the list; or the ids of the images to check.

    Returns:
        One dictionary per image with ``image``, ``id`` (:func:`~.checks.ids_of`), ``image_sha256`` and ``site`` (``""``
        if public); ``index``, the position of a public image in the result; ``label``, ``mask_threshold`` and
        ``classes`` (the number of several classes), if any. If one image has a ``group`` or weak label, all records
        have these keys: ``""`` is no group, and the ``label_kind`` of a mask is ``mask``. Validation and test images
        that are slices of a volume have ``volume``, ``slice`` and ``spacing`` (zeros if unknown) if all slices of the
        volume are in the result; other volumes are reported in a warning.

    Raises:
        Refused: unknown site or split, missing files, paths outside the data root, and weak labels that the caller
            cannot use, all together; if the data root has none of the files, only that.

    JSON::

        "train_records": "$samfed_monai.data.load_records(@datalist, @data_root, split='public')"
    """
    datalist = datalist if isinstance(datalist, DataList) else DataList.load(datalist)
    if with_labels is None:
        with_labels = split != Split.UNLABELLED
    require(
        one_of("split", split, Split, "check its spelling"),
        [] if split == Split.PUBLIC else one_of("site", site, sorted(datalist.sites), "name one of them"),
        whole("limit", limit, "a number of images", least=1, or_null=True),
    )
    items = datalist.public if split == Split.PUBLIC else getattr(datalist.sites[str(site)], split)
    items = [items[index] for index in subset([item.sha256 for item in items], limit)]
    place = f"{datalist.name} -> {site or 'public'} -> {split}"
    files = [name for item in items for name in (item.image, item.label if with_labels else None) if name is not None]
    require(wrong_root(files, data_root, place))
    owner = "" if split == Split.PUBLIC else site
    owned = [item for name, _, item in datalist.items() if name == owner]
    ids, problems, records = ids_of([item.image for item in owned]), Problems(), list[Record]()
    volumes = _whole_volumes(items, owned, place) if split in (Split.VALIDATION, Split.TEST) else set[str]()
    for index, item in enumerate(items):
        record: Record = {"id": ids[item.image], "image_sha256": item.sha256, "site": site or ""}
        if split == Split.PUBLIC:
            record["index"] = index
        checked = verify if isinstance(verify, bool) else record["id"] in verify
        record["image"] = _existing_path(data_root, item.image, problems, item.sha256 if checked else None)
        if with_labels and item.label is not None:
            record["label"] = _existing_path(data_root, item.label, problems, item.label_sha256 if checked else None)
            record |= _label_keys(item, datalist)
        if item.group is not None:
            record["group"] = item.group
        if item.volume in volumes:
            record |= {"volume": item.volume, "slice": item.slice or 1, "spacing": item.spacing or NO_SPACING}
        records.append(record)
    if not weak_labels:
        problems.extend(weak_problems([str(item.label_kind) for item in items if with_labels and item.weak], place))
    problems.refuse_if_any()
    _equalize_keys(records)
    return records


def _whole_volumes(items: Sequence[Item], owned: Sequence[Item], place: str) -> set[str]:
    """Returns the volumes with all of their owned slices among the items; others are reported in a warning."""
    slices = {(item.volume, item.slice) for item in items}
    volumes = {item.volume for item in items if item.volume is not None}
    incomplete = {item.volume for item in owned if (item.volume, item.slice) not in slices} & volumes
    if incomplete:
        _warn_once(f"{place}: {counted(len(incomplete), 'volume')} cut by a limit or split, not scored as a whole")
    return volumes - incomplete


def _label_keys(item: Item, datalist: DataList) -> Record:
    keys = {
        "label_kind": item.label_kind if item.weak else None,
        "mask_threshold": datalist.mask_threshold,
        "classes": len(datalist.classes) or None,
    }
    return {key: value for key, value in keys.items() if value is not None}


def _equalize_keys(records: Sequence[Record]) -> None:
    """Adds optional keys that one record has to all, as a batch is made of equal keys."""
    no_volume = {"volume": "", "slice": 0, "spacing": NO_SPACING}
    for key, default in {"group": "", "label_kind": LabelKind.MASK.value, **no_volume}.items():
        if any(key in record for record in records):
            for record in records:
                record.setdefault(key, default)


def without_duplicates(records: Sequence[Record]) -> list[Record]:
    """Returns the records without duplicates: of images with the same bytes, one is kept."""
    return list({record.get("image_sha256", index): record for index, record in enumerate(records)}.values())


def weak_problems(kinds: Sequence[str], where: str) -> list[Problem]:
    """Returns a problem if there are weak labels where only masks can be used.

    Args:
        kinds: kind of every weak label.
        where: the place in the list, for the message.
    """
    if not kinds:
        return []
    found = f"{counted(len(kinds), 'weak label')} ({', '.join(sorted(set(kinds)))})"
    hint = "use a method that learns from weak labels (`--variant weak_labels`), or a list with masks"
    return [Problem(where, found, "masks, the only labels that this method uses", hint)]


def split_public(records: list[Record], fraction: float = 0.1, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """Divides records into training and held-out ones; images of one group or with the same bytes stay together.

    Args:
        records: from :func:`load_records`.
        fraction: share to hold out, in [0, 1), rounded to whole groups; at least one group if positive.
        seed: the result depends only on it and on the images' hashes.

    Raises:
        Refused: ``fraction`` out of range, no records, or everything is one group.
    """
    require(in_range("fraction", fraction, least=0, below=1, hint="for instance 0.1"))
    if not records:
        hint = "make the list again with `samfed prepare ... --public`"
        raise refused("public", found="none", expected="public images with masks", hint=hint)
    groups = clusters([r["image_sha256"] for r in records], [r.get("group") for r in records])
    if fraction > 0 and len(groups) < 2:
        found = f"{counted(len(groups), 'independent group')} of images"
        raise refused("public", found, "at least 2, one to hold out", "add public images of other groups")
    random = np.random.default_rng(derive_seed(seed, "held-out"))
    drawn = draw([len(cluster) for cluster in groups], round(fraction * len(records)) or int(fraction > 0), random)
    held_out = {index for cluster in drawn for index in groups[cluster]}
    train = [record for index, record in enumerate(records) if index not in held_out]
    return train, [records[index] for index in sorted(held_out)]


def _existing_path(root: str | Path, relative: str, problems: Problems, sha256: str | None) -> str:
    try:
        path = confine(root, relative)
    except Refused as refusal:
        problems.extend(refusal.problems)
        return ""
    if not path.is_file():
        problems.add(str(path), found=NO_FILE, expected="a file that the list names", hint=RESTORE)
    elif sha256 is not None:
        problems.extend(hash_problems(relative, sha256_file(path), sha256))
    return str(path)


def write_site_lists(datalist: DataList, output_dir: str | Path) -> dict[str, Path]:
    """Writes ``<site>.json`` with the public images and that site's own, and ``server.json`` with the public ones.

    The parts keep their hashes, which server and sites compare before a run.

    Args:
        datalist: the list of all sites.
        output_dir: folder to write to; it is created.

    Returns:
        File by site, or ``server``.

    Raises:
        Refused: the list has no sites, or files exist with other content.
    """
    if not datalist.sites:
        raise refused(f"{datalist.name} -> sites", "no sites", "sites to divide by", "give the list of all sites")
    parts = {"server": datalist.for_server(), **{site: datalist.for_site(site) for site in datalist.sites}}
    written = {name: Path(output_dir) / f"{name}.json" for name in parts}
    freeze({written[name]: part for name, part in parts.items()})
    return written
