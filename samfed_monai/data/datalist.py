"""The frozen, hashed list of images that every run starts from."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean, name_problems
from samfed_monai.core.io import canonical_hash, read_json, require_writable, write_json
from samfed_monai.core.words import counted, normal, printable

logger = logging.getLogger(__name__)


def unsafe(relative: str) -> str | None:
    """Why ``relative`` may not stand in a data list, or ``None`` when it may.

    Refused are absolute paths (POSIX and Windows), ``..``, backslashes, empty paths, control characters and names
    that are not valid Unicode. Spaces and every script are fine.
    """
    if not relative.strip():
        return "an empty path"
    if name_problems([relative]):
        return f"a control character or bytes that are no UTF-8 in '{printable(relative, keep='')}'"
    if PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).drive:
        return f"the absolute path {relative!r}"
    if "\\" in relative:
        return f"a backslash in {relative!r}"
    if ".." in PurePosixPath(relative).parts:
        return f"'..' in {relative!r}"
    return None


def confine(root: str | Path, relative: str, *, where: str) -> Path:
    """The absolute path of ``relative`` under ``root``, links followed.

    Args:
        root: the data root; it may itself be a link.
        relative: a path from a data list.
        where: what names the path, for the message.

    Raises:
        Refused: the path is unsafe (fault 18), or a link leads out of the root (fault 19) or in a circle (fault 62).
    """
    reason = unsafe(relative)
    if reason is not None:
        hint = "list only paths inside the data root, relative to it, with forward slashes"
        raise Refused([Problem(where, found=reason, expected="a relative path inside the data root", hint=hint)])
    root = Path(root).resolve()
    try:
        path = (root / relative).resolve()
    except (OSError, RuntimeError):  # Python 3.13 raises the one, older ones the other
        raise Refused([_loop(where)]) from None
    if path.is_symlink():  # Python 3.13 leaves a link that leads to itself as it is
        raise Refused([_loop(where)])
    if not path.is_relative_to(root):
        hint = "copy the file into the data root, or make the folder that really holds the files the data root"
        raise Refused(
            [
                Problem(
                    where, found=f"{relative!r} is a link out of the data root", expected="a file inside it", hint=hint
                )
            ]
        )
    return path


def _loop(where: str) -> Problem:
    hint = "put the file itself there, or delete the link"
    return Problem(where, found="a link that leads back to itself", expected="a file", hint=hint)


class Split(str, Enum):
    """The four places an image can have in a data list, as JSON spells them."""

    PUBLIC = "public"
    UNLABELLED = "unlabelled"
    VALIDATION = "validation"
    TEST = "test"


class LabelKind(str, Enum):
    """How much of an image its label says, as JSON spells it; what is not a mask is a weak label."""

    MASK = "mask"
    SCRIBBLE = "scribble"
    POINTS = "points"
    BOX = "box"
    BLOCK = "block"


SITE_SPLITS = (Split.UNLABELLED, Split.VALIDATION, Split.TEST)


@dataclass(frozen=True)
class Item:
    """One image, where it lies under the data root, and what its bytes were when the list was made.

    Args:
        image: path relative to the data root, with forward slashes.
        sha256: SHA-256 of the image file, 64 hexadecimal digits.
        label: path of its mask, or ``None``. An unlabelled item may carry one: only the oracle variant and
            ``samfed evaluate`` read it.
        label_sha256: SHA-256 of the mask file; present exactly when ``label`` is.
        group: video sequence, patient or lesion the image belongs to; images of one group stay together.
        label_kind: of a weak label, one of :class:`LabelKind`; ``None`` is a mask. Training images of sites alone may
            have one: what is measured with, and what SAM is fitted to, needs masks.
        volume: of a slice, the volume that it was cut from, as a path below the folder of volumes.
        slice: its number there, from 1.
        spacing: mm from row to row, from column to column, and from slice to slice.
    """

    image: str
    sha256: str
    label: str | None = None
    label_sha256: str | None = None
    group: str | None = None
    label_kind: str | None = None
    volume: str | None = None
    slice: int | None = None
    spacing: list[float] | None = None

    @property
    def weak(self) -> bool:
        """Whether its label is a weak one."""
        return self.label is not None and self.label_kind not in (None, LabelKind.MASK.value)


@dataclass(frozen=True)
class Site:
    """One site's private images: unlabelled ones to train on, labelled ones to measure with."""

    unlabelled: list[Item] = field(default_factory=list)
    validation: list[Item] = field(default_factory=list)
    test: list[Item] = field(default_factory=list)

    def splits(self) -> Iterator[tuple[Split, list[Item]]]:
        """The three splits with their names, in the order in which the JSON lists them."""
        yield Split.UNLABELLED, self.unlabelled
        yield Split.VALIDATION, self.validation
        yield Split.TEST, self.test


LIST_KEYS = ("schema", "name", "hash", "mask_threshold", "classes", "public", "sites")
ITEM_KEYS = ("image", "sha256", "label", "label_sha256", "group", "label_kind", "volume", "slice", "spacing")
SHA256 = re.compile(r"[0-9a-f]{64}")
SERVER_NAMES = frozenset({"", "public", "server"})
"""Values of the knob ``site`` that mean: no site, the public images alone. No site may be called so."""
SITE_NAME = re.compile(r"[^\x00-\x1f/\\.@$%][^\x00-\x1f/\\]*")


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
        hint = "make the list again with this version of `samfed prepare`"
        problems.add(f"{where} -> schema", found=repr(content["schema"]), expected="1", hint=hint)
    for key in ("name", "hash"):
        if key in content and not isinstance(content[key], str):
            problems.add(f"{where} -> {key}", found=repr(content[key]), expected="a string")
    threshold = content.get("mask_threshold")
    if threshold is not None and (type(threshold) is not int or not 1 <= threshold <= 255):
        hint = "for instance 128"
        problems.add(f"{where} -> mask_threshold", found=repr(threshold), expected="null or 1 to 255", hint=hint)
    classes = content.get("classes", [])
    if "classes" in content:
        problems.extend(_class_problems(classes, threshold, f"{where} -> classes"))
    public = _items(content.get("public", []), Split.PUBLIC, at=f"{where} -> public", problems=problems)
    sites = _sites(content.get("sites", {}), at=f"{where} -> sites", problems=problems)
    _check_once(public, sites, where, problems)
    fields = {"name": content.get("name"), "public": public, "sites": sites, "mask_threshold": threshold}
    return {**fields, "classes": classes}, problems


def _class_problems(classes: Any, threshold: Any, where: str) -> list[Problem]:
    from samfed_monai.data.classes import class_problems

    problems = Problems()
    problems.extend(class_problems(classes, where))
    if isinstance(classes, list) and len(classes) == 1:
        found, hint = f"one name, {classes[0]!r}", "leave classes out: a list of one class has binary masks"
        problems.add(where, found=found, expected="the names of two classes or more", hint=hint)
    if threshold is not None:
        hint = "leave one of them out: a threshold cuts masks of one class"
        problems.add(where, found=f"mask_threshold {threshold} beside it", expected="one of the two", hint=hint)
    return list(problems)


def _check_keys(
    entry: Mapping[str, Any], known: Iterable[str], *, required: Iterable[str], at: str, problems: Problems
) -> None:
    known = list(known)
    for key in entry:
        if key not in known:
            hint = did_you_mean(key, known) or "remove it"
            problems.add(f"{at} -> {key}", found="an unknown key", expected=f"one of {known}", hint=hint)
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
            hint = "rename the site: its name becomes a folder, and a value of the configuration"
            problems.add(
                here, found=repr(name), expected="a name without slashes, or one of . @ $ % in front", hint=hint
            )
        elif name in SERVER_NAMES:
            hint = "rename the site: the server is called so"
            problems.add(here, found=repr(name), expected="another name", hint=hint)
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
        if key == "slice":
            if type(value) is not int or value < 1:
                problems.add(f"{at} -> slice", found=repr(value), expected="a number from 1")
        elif key == "spacing":
            numbers = isinstance(value, list) and [type(side) in (int, float) and side > 0 for side in value]
            if numbers != [True] * 3:
                problems.add(f"{at} -> spacing", found=repr(value), expected="three lengths in mm")
        elif not isinstance(value, str):
            problems.add(f"{at} -> {key}", found=repr(value), expected="a string")
        elif key in ("image", "label"):
            reason = unsafe(value)
            if reason:
                hint = "list only paths inside the data root"
                problems.add(f"{at} -> {key}", found=reason, expected="a relative path inside the data root", hint=hint)
        elif key in ("sha256", "label_sha256") and not SHA256.fullmatch(value):
            problems.add(f"{at} -> {key}", found=repr(value), expected="64 lower-case hexadecimal digits")
    if split is not Split.UNLABELLED and "label" not in present:
        hint = f"give the mask of {entry.get('image')!r}, or move the image to a site's unlabelled ones"
        problems.add(f"{at} -> label", found="no mask", expected=f"a mask, as every {split.value} item", hint=hint)
    kind, kinds = present.get("label_kind"), [each.value for each in LabelKind]
    if kind is not None and kind not in kinds:
        hint = did_you_mean(str(kind), kinds)
        problems.add(f"{at} -> label_kind", found=repr(kind), expected=f"one of {kinds}", hint=hint)
    elif kind not in (None, LabelKind.MASK.value):
        if split is not Split.UNLABELLED:
            hint = f"give the mask of {entry.get('image')!r}, or move the image to a site's unlabelled ones"
            expected = f"a mask, as every {split.value} item"
            problems.add(f"{at} -> label_kind", found=f"a weak label ({kind})", expected=expected, hint=hint)
        if "label" not in present:
            problems.add(f"{at} -> label_kind", found=f"{kind!r} without a label", expected="a label of that kind")
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
                problems.add(place, found=found, expected="each image once", hint="delete one of the two")
            seen.setdefault(item.image, place)


SCHEMA = 1


@dataclass(frozen=True)
class DataList:
    """Which images are public, which lie at which site, and what their bytes were.

    Args:
        name: what reports call the list.
        public: labelled images that the server and every site have.
        sites: private images by site.
        mask_threshold: grey level from which a mask that is not binary counts as foreground; ``None`` refuses such
            masks.
        classes: names of the classes that the values 1, 2, … of its labels stand for; empty where labels are binary
            masks.

    Example::

        datalist = DataList.load("skin.json")
        datalist.sites["site-1"].test[0].label
    """

    name: str
    public: list[Item]
    sites: dict[str, Site] = field(default_factory=dict)
    mask_threshold: int | None = None
    classes: list[str] = field(default_factory=list)

    @property
    def hash(self) -> str:
        """SHA-256 of the list's content, whatever the order of its keys or its white space."""
        return canonical_hash(self.content())

    def content(self) -> dict[str, Any]:
        """The list as JSON content, without its hash."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "mask_threshold": self.mask_threshold,
            **self._of_classes(),
            "public": [_item_json(item) for item in self.public],
            "sites": {
                name: {split.value: [_item_json(item) for item in items] for split, items in site.splits()}
                for name, site in self.sites.items()
            },
        }

    def for_site(self, name: str) -> DataList:
        """What one site needs: the public images and its own.

        Raises:
            Refused: the list has no such site.
        """
        if name not in self.sites:
            expected = f"one of {sorted(self.sites)}" if self.sites else "a site, and the list has only public images"
            raise Refused([Problem(f"{self.name} -> sites", found=repr(name), expected=expected)])
        return replace(self, sites={name: self.sites[name]})

    def for_server(self) -> DataList:
        """What a server needs that holds no site's images: the public ones."""
        return replace(self, sites={})

    def public_hash(self) -> str:
        """SHA-256 of the public part; the same in the whole list, in one site's and in the server's."""
        public = [_item_json(item) for item in self.public]
        return canonical_hash({"mask_threshold": self.mask_threshold, **self._of_classes(), "public": public})

    def part_hash(self, name: str) -> str:
        """SHA-256 of one site's part; the same in the whole list and in that site's own.

        Raises:
            Refused: the list has no such site.
        """
        part = self.for_site(name)
        splits = {split.value: [_item_json(item) for item in items] for split, items in part.sites[name].splits()}
        own = {"mask_threshold": self.mask_threshold, **self._of_classes(), "site": name}
        return canonical_hash({**own, **splits})

    def _of_classes(self) -> dict[str, list[str]]:
        """The key ``classes``, where there are several."""
        return {"classes": list(self.classes)} if self.classes else {}

    def items(self) -> Iterator[tuple[str, Split, Item]]:
        """Every item as (site, split, item); the public ones first, with the site ``""``."""
        for item in self.public:
            yield "", Split.PUBLIC, item
        for name, site in self.sites.items():
            for split, items in site.splits():
                for item in items:
                    yield name, split, item

    def save(self, path: str | Path) -> None:
        """Writes the list with its hash, atomically.

        Raises:
            Refused: the list would not load again (a path out of the root, a labelled item without its mask, ...).
        """
        content = {"schema": SCHEMA, "name": self.name, "hash": self.hash, **self.content()}
        _read(content, Path(path).name)
        write_json(path, content)

    @classmethod
    def load(cls, path: str | Path) -> DataList:
        """Reads a list and checks it: keys, types, paths, labels, and its own hash.

        It does not look at the images; :func:`samfed_monai.data.check_datalist` does.

        Groups that only look the same (a blank at the end) are logged; a partition takes them as one.

        Raises:
            Refused: with every problem of the file at once.
        """
        datalist = _read(read_json(path), Path(path).name)
        for sentence in look_alikes(item.group for _, _, item in datalist.items()):
            logger.warning("%s: %s", Path(path).name, sentence)
        return datalist


def look_alikes(groups: Iterable[str | None]) -> list[str]:
    """A sentence on groups that are spelt in several ways which look the same; they are taken as one."""
    same: dict[str, set[str]] = {}
    for group in groups:
        same.setdefault(normal(group or ""), set()).add(group or "")
    twice = [sorted(spellings) for group, spellings in same.items() if group and len(spellings) > 1]
    if not twice:
        return []
    who = counted(len(twice), "group is", "groups are")
    advice = "they may be in several splits: make the list again with `samfed prepare`"
    return [f"{who} spelt in several ways that look the same, such as {twice[0]}; {advice}"]


def _item_json(item: Item) -> dict[str, Any]:
    return {key: value for key, value in vars(item).items() if value is not None}


def _read(content: Any, where: str) -> DataList:

    parsed, problems = parse(content, where)
    datalist = DataList(**parsed) if parsed is not None else None
    if datalist is not None and not len(problems) and datalist.hash != content["hash"]:
        problems.add(
            f"{where} -> hash",
            found=f"content with hash {datalist.hash[:12]}…",
            expected=f"the recorded {content['hash'][:12]}…",
            hint="the list was changed after it was made: restore it, or make a new one with `samfed prepare`",
        )
    problems.refuse_if_any()
    if datalist is None:
        raise Refused([Problem(where, found="nothing usable", expected="a data list")])
    return datalist


HINT = "choose another name, or delete it"


def require_free(path: str | Path, *, name: str) -> None:
    """What can be said of an output before any image was read: it is not there, or a list of that name.

    Args:
        path: the data list to write.
        name: what the list will be called; one of another name is another list.

    Raises:
        Refused: another file, or another list, is in the way.
        OSError: nothing can be written there.
    """
    require_writable(path)
    there = _there(path)
    if there is not None and there.name != name:
        expected = f"no file, or the list {name!r}"
        raise Refused([Problem(str(path), found=f"the list {there.name!r}", expected=expected, hint=HINT)])


def freeze(lists: Mapping[Path, DataList]) -> None:
    """Writes data lists; a file that holds the same list stays as it is, byte for byte.

    Args:
        lists: by the file to write.

    Raises:
        Refused: with every file that holds something else; then nothing is written.
    """
    problems = Problems()
    missing = []
    for path, datalist in lists.items():
        with problems.collected():
            there = _there(path)
            if there is None:
                missing.append(path)
            elif there.hash != datalist.hash:
                found = f"another data list, {there.name!r} ({there.hash[:12]})"
                expected = f"no file, or the very list to be written ({datalist.hash[:12]})"
                problems.add(str(path), found=found, expected=expected, hint=HINT)
    problems.refuse_if_any()
    for path in missing:
        lists[path].save(path)


def _there(path: str | Path) -> DataList | None:
    if not Path(path).exists():
        return None
    try:
        return DataList.load(path)
    except Refused as refused:
        first = refused.problems[0]
        found = f"something else ({first.where}: {first.found})"
        raise Refused([Problem(str(path), found=found, expected="no file, or a data list", hint=HINT)]) from refused


def cannot_be_scored(datalist: DataList) -> str | None:
    """A sentence where no site has an image to validate or to test on (fault 67), or ``None``."""
    if any(site.validation or site.test for site in datalist.sites.values()):
        return None
    return (
        "nothing here can be scored: no site has a validation or test image, that is one with a mask; rounds are not "
        "compared, the last one is taken, and only looking at its masks shows whether it is good"
    )


LEAST_IMAGES = 5
"""Fewest images of which a site reports a score, unless ``federate.json -> privacy`` has another number (ours)."""


def few_to_measure(datalist: DataList, least: int) -> list[str]:
    """Sites with masks of which a validation or test split holds fewer than ``least`` images.

    A site without any mask, or with weak labels alone, has nothing to measure, and one without images to train on is
    tested only.

    Args:
        datalist: the list.
        least: fewest images of which a site tells a score (``privacy#least_images``).
    """
    names = []
    for name, site in datalist.sites.items():
        measuring = [site.validation, site.test] if site.unlabelled else [site.test]
        has_masks = any(item.label is not None and not item.weak for _, items in site.splits() for item in items)
        if has_masks and any(len(items) < least for items in measuring):
            names.append(name)
    return names


def without_labels(datalist: DataList) -> list[str]:
    """Sites of which no image has a mask or a weak label."""
    every = {name: [item for _, items in site.splits() for item in items] for name, site in datalist.sites.items()}
    return [name for name, items in every.items() if items and all(item.label is None for item in items)]
