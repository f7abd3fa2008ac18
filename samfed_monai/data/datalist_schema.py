"""From JSON to the parts of a data list, with every problem told at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from samfed_monai.data.items import SITE_SPLITS, Item, Site, Split
from samfed_monai.data.paths import unsafe
from samfed_monai.errors import Problems, did_you_mean

LIST_KEYS = ("schema", "name", "hash", "mask_threshold", "public", "sites")
ITEM_KEYS = ("image", "sha256", "label", "label_sha256", "group")
SHA256 = re.compile(r"[0-9a-f]{64}")
SERVER_NAMES = frozenset({"", "public", "server"})
"""Values of the knob ``site`` that mean: no site, the public images alone. No site may be called so."""
SITE_NAME = re.compile(r"[^\x00-\x1f/\\.][^\x00-\x1f/\\]*")


def parse(content: Any, where: str) -> tuple[dict[str, Any] | None, Problems]:
    """Arguments of a ``DataList`` out of JSON content, and what is wrong with it.

    Args:
        content: what ``read_json`` returned.
        where: the file's name, for messages.
    """
    problems = Problems()
    if not isinstance(content, Mapping):
        problems.add(where, found=type(content).__name__, expected="a JSON object with the keys of a data list")
        return None, problems
    _check_keys(content, LIST_KEYS, required=("schema", "name", "hash", "public", "sites"), at=where, problems=problems)
    if content.get("schema", 1) != 1:
        mend = "make the list again with this version of `samfed prepare`"
        problems.add(f"{where} -> schema", found=repr(content["schema"]), expected="1", mend=mend)
    for key in ("name", "hash"):
        if key in content and not isinstance(content[key], str):
            problems.add(f"{where} -> {key}", found=repr(content[key]), expected="a string")
    threshold = content.get("mask_threshold")
    if threshold is not None and (type(threshold) is not int or not 1 <= threshold <= 255):
        mend = "for instance 128"
        problems.add(f"{where} -> mask_threshold", found=repr(threshold), expected="null or 1 to 255", mend=mend)
    public = _items(content.get("public", []), Split.PUBLIC, at=f"{where} -> public", problems=problems)
    sites = _sites(content.get("sites", {}), at=f"{where} -> sites", problems=problems)
    _check_once(public, sites, where, problems)
    return {"name": content.get("name"), "public": public, "sites": sites, "mask_threshold": threshold}, problems


def _check_keys(
    entry: Mapping[str, Any], known: Iterable[str], *, required: Iterable[str], at: str, problems: Problems
) -> None:
    known = list(known)
    for key in entry:
        if key not in known:
            mend = did_you_mean(key, known) or "remove it"
            problems.add(f"{at} -> {key}", found="an unknown key", expected=f"one of {known}", mend=mend)
    for key in required:
        if key not in entry:
            problems.add(f"{at} -> {key}", found="no such key", expected="one")


def _sites(content: Any, *, at: str, problems: Problems) -> dict[str, Site]:
    if not isinstance(content, Mapping):
        problems.add(at, found=type(content).__name__, expected="an object of sites")
        return {}
    sites = {}
    for name, entry in content.items():
        here = f"{at} -> {name}"
        if not SITE_NAME.fullmatch(name) or unsafe(name):
            mend = "rename the site: its name becomes a folder"
            problems.add(here, found=repr(name), expected="a name without slashes or a leading dot", mend=mend)
        elif name in SERVER_NAMES:
            mend = "rename the site: the server is called so"
            problems.add(here, found=repr(name), expected="another name", mend=mend)
        if not isinstance(entry, Mapping):
            problems.add(here, found=type(entry).__name__, expected="an object of splits")
            continue
        names = [split.value for split in SITE_SPLITS]
        _check_keys(entry, names, required=names, at=here, problems=problems)
        splits = {
            split.value: _items(entry.get(split.value, []), split, at=f"{here} -> {split.value}", problems=problems)
            for split in SITE_SPLITS
        }
        sites[name] = Site(**splits)
    return sites


def _items(content: Any, split: Split, *, at: str, problems: Problems) -> list[Item]:
    if not isinstance(content, list):
        problems.add(at, found=type(content).__name__, expected="a list of items")
        return []
    items = []
    for index, entry in enumerate(content):
        here = f"{at}[{index}]"
        if not isinstance(entry, Mapping):
            problems.add(here, found=type(entry).__name__, expected="an item such as {'image': ..., 'sha256': ...}")
            continue
        _check_keys(entry, ITEM_KEYS, required=("image", "sha256"), at=here, problems=problems)
        before = len(problems)
        _check_item(entry, split, at=here, problems=problems)
        if len(problems) == before and {"image", "sha256"} <= entry.keys():
            items.append(Item(**{key: entry[key] for key in ITEM_KEYS if key in entry}))
    return items


def _check_item(entry: Mapping[str, Any], split: Split, *, at: str, problems: Problems) -> None:
    present = {key: entry[key] for key in ITEM_KEYS if entry.get(key) is not None}
    for key, value in present.items():
        if not isinstance(value, str):
            problems.add(f"{at} -> {key}", found=repr(value), expected="a string")
        elif key in ("image", "label"):
            reason = unsafe(value)
            if reason:
                mend = "list only paths inside the data root"
                problems.add(f"{at} -> {key}", found=reason, expected="a relative path inside the data root", mend=mend)
        elif key in ("sha256", "label_sha256") and not SHA256.fullmatch(value):
            problems.add(f"{at} -> {key}", found=repr(value), expected="64 lower-case hexadecimal digits")
    if split is not Split.UNLABELLED and "label" not in present:
        mend = f"give the mask of {entry.get('image')!r}, or move the image to a site's unlabelled ones"
        problems.add(f"{at} -> label", found="no mask", expected=f"a mask, as every {split.value} item", mend=mend)
    if ("label" in present) != ("label_sha256" in present):
        problems.add(f"{at} -> label_sha256", found="only one of the two", expected="label and label_sha256 together")


def _check_once(public: list[Item], sites: Mapping[str, Site], where: str, problems: Problems) -> None:
    seen: dict[str, str] = {}
    places = [(f"{where} -> public", public)]
    for name, site in sites.items():
        places += [(f"{where} -> sites -> {name} -> {split.value}", items) for split, items in site.splits()]
    for place, items in places:
        for item in items:
            if item.image in seen:
                found = f"{item.image!r}, which {seen[item.image]} lists too"
                problems.add(place, found=found, expected="each image once", mend="delete one of the two")
            seen.setdefault(item.image, place)
