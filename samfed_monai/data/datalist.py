"""The hashed data list of a run: images, labels, sites and splits."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from samfed_monai.core.errors import Problem, Problems, Refused, name_problems, refused
from samfed_monai.core.io import canonical_hash, read_json, require_writable, write_json
from samfed_monai.core.text import counted, normal, printable
from samfed_monai.core.validators import require, schema_problems
from samfed_monai.data.classes import list_class_problems


def unsafe(relative: str) -> str | None:
    """Returns why ``relative`` may not be in a data list, or ``None`` if it may.

    Not allowed are absolute paths (POSIX and Windows), ``..``, backslashes, empty paths, control characters and names
    that are not valid Unicode. Spaces and every script are allowed.
    """
    if not relative.strip():
        return "an empty path"
    if name_problems([relative]):
        return f"a control character or invalid UTF-8 in '{printable(relative, keep='')}'"
    if PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).drive:
        return f"the absolute path {relative!r}"
    if "\\" in relative:
        return f"a backslash in {relative!r}"
    return f"'..' in {relative!r}" if ".." in PurePosixPath(relative).parts else None


def confine(root: str | Path, relative: str) -> Path:
    """Returns the absolute path of ``relative`` under ``root``, with links resolved.

    Args:
        root: the data root; it may itself be a link.
        relative: a path from a data list.

    Raises:
        Refused: the path is unsafe (fault 18), or a link leads out of the root (fault 19), in a circle (fault 62), or
            to nothing.
    """
    reason = unsafe(relative)
    if reason is not None:
        hint = "list only paths inside the data root, relative to it, with forward slashes"
        raise refused(relative, found=reason, expected="a relative path inside the data root", hint=hint)
    root = Path(root).resolve()
    path = Path(os.path.realpath(root / relative))  # leaves a circular link unresolved
    if any(map(Path.is_symlink, (path, *path.parents))):
        hint = "put the file itself there, or delete the link"
        raise refused(relative, found="a link that leads back to itself", expected="a file", hint=hint)
    if (root / relative).is_symlink() and not path.exists():
        hint = "restore the file that it leads to, or delete the link"
        raise refused(relative, "a link to a missing file", "a file", hint)
    if not path.is_relative_to(root):
        hint = "copy the file into the data root, or use the folder with the actual files as the data root"
        raise refused(relative, f"{relative!r}, a link out of the data root", "a file inside it", hint)
    return path


class Split(str, Enum):
    """The splits of a data list, as written in JSON."""

    PUBLIC = "public"
    UNLABELLED = "unlabelled"
    VALIDATION = "validation"
    TEST = "test"


class LabelKind(str, Enum):
    """Kinds of labels, as written in JSON; all but ``MASK`` are weak labels."""

    MASK = "mask"
    SCRIBBLE = "scribble"
    POINTS = "points"
    BOX = "box"
    BLOCK = "block"


SITE_SPLITS = (Split.UNLABELLED, Split.VALIDATION, Split.TEST)


@dataclass(frozen=True)
class Item:
    """One image of a data list: its path, its label, and the hashes of both when the list was made.

    Args:
        image: path relative to the data root, with forward slashes.
        sha256: SHA-256 of the image file, 64 hexadecimal digits.
        label: path of its mask, or ``None``. An unlabelled item may have one: only the variant ``oracle`` and
            variants that learn from labels of a site's own images read it.
        label_sha256: SHA-256 of the mask file; present exactly when ``label`` is.
        group: video sequence, patient or lesion of the image; images of one group stay together.
        label_kind: one of :class:`LabelKind`; ``None`` is a mask. Only training images of sites may have weak labels:
            measuring and fitting SAM need masks.
        volume: the volume that a slice was cut from, as a path below the folder of volumes.
        slice: its number in the volume, from 1.
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
    """One site's private images: unlabelled ones for training, labelled ones for validation and test."""

    unlabelled: list[Item] = field(default_factory=list)
    validation: list[Item] = field(default_factory=list)
    test: list[Item] = field(default_factory=list)

    def splits(self) -> Iterator[tuple[Split, list[Item]]]:
        """Yields the three splits with their names, in the order of the JSON file."""
        return ((split, getattr(self, split.value)) for split in SITE_SPLITS)


SERVER = "server"
"""The server's name among the participants of a run."""
SERVER_NAMES = frozenset({"", "public", SERVER})
"""Values of the option ``site`` that mean the public images only; not allowed as names of sites."""
SITE_NAME = re.compile(r"[^\x00-\x1f/\\.@$%][^\x00-\x1f/\\]*")

LIST_SCHEMA: dict[str, Any] = read_json(Path(__file__).with_name("datalist.schema.json"))
"""JSON schema of a data list; :func:`read_list` checks further rules."""


def read_list(content: Any, where: str) -> DataList:
    """Makes a data list from JSON content.

    Args:
        content: as returned by ``read_json``.
        where: the file's name, for messages.

    Raises:
        Refused: the content does not match :data:`LIST_SCHEMA`; or it breaks other rules; or its hash differs.
    """
    require(schema_problems(content, LIST_SCHEMA, where))
    problems = Problems()
    threshold, classes = content.get("mask_threshold"), content.get("classes", [])
    if "classes" in content:
        problems.extend(list_class_problems(classes, threshold, f"{where} -> classes"))
    splits = [("public", Split.PUBLIC, content["public"])]
    problems.extend(site_name_problems(content["sites"], where))
    for name, entry in content["sites"].items():
        splits += [(f"sites#{name}#{split.value}", split, entry[split.value]) for split in SITE_SPLITS]
    seen: dict[str, str] = {}
    for name, split, items in splits:
        place = f"{where} -> {name}"
        for index, item in enumerate(items):
            problems.extend(_item_problems(item, split, f"{place}#{index}"))
            for key in ("image", "label") if item.get("label") else ("image",):
                path = str(PurePosixPath(item[key]))  # ./1.jpg is 1.jpg
                if first_place := seen.get(path):
                    found = f"{item[key]!r}, which is also in {first_place}"
                    hint = "delete one of the entries" if key == "image" else "if two images have one, copy the file"
                    problems.add(place, found=found, expected=f"each {key} once", hint=hint)
                    break
                seen[path] = place
    problems.refuse_if_any()
    sites = {
        name: Site(**{split: [Item(**item) for item in items] for split, items in entry.items()})
        for name, entry in content["sites"].items()
    }
    datalist = DataList(content["name"], [Item(**item) for item in content["public"]], sites, threshold, classes)
    if datalist.hash != content["hash"]:
        found = f"content with hash {datalist.hash[:12]}…"
        hint = "the list was changed after it was made: restore it, or make a new list with `samfed prepare`"
        raise refused(f"{where} -> hash", found, f"the recorded hash {content['hash'][:12]}…", hint)
    return datalist


def site_name_problems(names: Iterable[str], where: str) -> Iterator[Problem]:
    """Yields the problems of names that sites of the data list ``where`` cannot have, alone or together."""
    seen: dict[str, str] = {}
    for name in names:
        place, key = f"{where} -> sites#{name}", normal(name).casefold()
        if not SITE_NAME.fullmatch(name) or unsafe(name):
            hint = "rename the site: its name is used for folders and in the configuration"
            expected = "a name without slashes and drives (C:) that does not begin with . @ $ or %"
            yield Problem(place, repr(name), expected, hint)
        elif key in SERVER_NAMES:
            hint = f"if its images are public, give --public {name}; if not, rename it: the server has this name"
            yield Problem(place, repr(name), "another name", hint)
        elif seen.setdefault(key, name) != name:  # many disks do not distinguish "A" and "a", or the two forms of "ü"
            found, expected = f"{name!r} beside {seen[key]!r}", "names that differ in more than case and spaces"
            yield Problem(place, found, expected, "rename one: many disks give both the same folder")


def _item_problems(item: Mapping[str, Any], split: Split, where: str) -> Iterator[Problem]:
    """Yields problems that the schema cannot express: unsafe paths, and labels that the split does not allow."""
    label, kind = item.get("label"), item.get("label_kind")
    for key in ("image", "label"):
        if item.get(key) is not None and (reason := unsafe(item[key])):
            expected, hint = "a relative path inside the data root", "list only paths inside the data root"
            yield Problem(f"{where}#{key}", reason, expected, hint)
    weak = kind not in (None, LabelKind.MASK.value)
    if split is not Split.UNLABELLED and (label is None or weak):
        key, found = ("label", "no mask") if label is None else ("label_kind", f"a weak label ({kind})")
        hint = f"add the mask of {item.get('image')!r}, or move the image to a site's unlabelled images"
        yield Problem(f"{where}#{key}", found, f"a mask, as for every {split.value} item", hint)
    if weak and label is None:
        yield Problem(f"{where}#label_kind", f"{kind!r} without a label", "a label of this kind")
    if (label is None) != (item.get("label_sha256") is None):
        yield Problem(f"{where}#label_sha256", "only one of the two", "label and label_sha256 together")


SCHEMA = 1


@dataclass(frozen=True)
class DataList:
    """The public images and those of each site, with the hashes of their files.

    Args:
        name: name of the list in reports.
        public: labelled images that the server and every site have.
        sites: private images by site.
        mask_threshold: lowest grey level that is foreground in masks that are not binary; ``None`` refuses such masks.
        classes: names of the classes with the label values 1, 2, …; empty for binary masks.

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
        """SHA-256 of the list's content, independent of the order of keys and of white space."""
        return canonical_hash(self.content())

    def content(self) -> dict[str, Any]:
        """Returns the list as JSON content, without its hash."""
        sites = {
            name: {split.value: _json(items) for split, items in site.splits()} for name, site in self.sites.items()
        }
        return {"schema": SCHEMA, "name": self.name, **self.meaning(), "public": _json(self.public), "sites": sites}

    def for_site(self, name: str) -> DataList:
        """Returns the list of one site: the public images and its own.

        Raises:
            Refused: the list has no such site.
        """
        if name not in self.sites:
            expected = f"one of {sorted(self.sites)}" if self.sites else "no site, as the list has only public images"
            raise refused(f"{self.name} -> sites", found=repr(name), expected=expected)
        return replace(self, sites={name: self.sites[name]})

    def for_server(self) -> DataList:
        """Returns the list of a server without the sites' images: the public ones."""
        return replace(self, sites={})

    def by_root(self, data_root: str | Path, sites: Mapping[str, Any]) -> Iterator[tuple[DataList, str | Path]]:
        """Yields the list in parts, each with its data root.

        Args:
            data_root: default data root; a site with its own ``data_root`` also reads the public images from there.
            sites: options of each site.
        """
        roots = {name: root for name in self.sites if (root := sites.get(name, {}).get("data_root")) is not None}
        yield replace(self, sites={name: site for name, site in self.sites.items() if name not in roots}), data_root
        yield from ((self.for_site(name), str(root)) for name, root in roots.items())

    def public_hash(self) -> str:
        """SHA-256 of the public part; the same in the whole list, in one site's and in the server's."""
        return canonical_hash({**self.meaning(), "public": _json(self.public)})

    def part_hash(self, name: str) -> str:
        """SHA-256 of one site's part; the same in the whole list and in that site's own.

        Raises:
            Refused: the list has no such site.
        """
        return canonical_hash({**self.meaning(), "site": name, **self.for_site(name).content()["sites"][name]})

    def meaning(self) -> dict[str, Any]:
        """Returns the settings that decide the meaning of label values: mask threshold and classes."""
        return {"mask_threshold": self.mask_threshold, **({"classes": list(self.classes)} if self.classes else {})}

    def items(self) -> Iterator[tuple[str, Split, Item]]:
        """Yields every item as (site, split, item); the public ones first, with the site ``""``."""
        for item in self.public:
            yield "", Split.PUBLIC, item
        for name, site in self.sites.items():
            for split, items in site.splits():
                for item in items:
                    yield name, split, item

    def save(self, path: str | Path) -> None:
        """Writes the list with its hash, atomically.

        Raises:
            Refused: the list could not be loaded again (a path outside the root, a public item without a mask, ...).
        """
        content = {"schema": SCHEMA, "name": self.name, "hash": self.hash, **self.content()}
        read_list(content, Path(path).name)
        write_json(path, content)

    @classmethod
    def load(cls, path: str | Path) -> DataList:
        """Reads a list and checks its keys, types, paths, labels and hash.

        It does not check the images; :func:`samfed_monai.data.check_datalist` does.

        Raises:
            Refused: see :func:`read_list`.
        """
        return read_list(read_json(path), Path(path).name)


def _json(items: list[Item]) -> list[dict[str, Any]]:
    return [{key: value for key, value in vars(item).items() if value is not None} for item in items]


OUTPUT_HINT = "choose another name, or delete the file"


def require_free(path: str | Path, *, name: str, files: Collection[tuple[str, str, str, str | None]] = ()) -> None:
    """Checks an output before any image is read: it must not exist, or be a list of the same name.

    Args:
        path: the data list to write.
        name: name of the list to write.
        files: site, split, image and label of each item of it, if these are known.

    Raises:
        Refused: the path holds another file, or a list of another name or with other files.
        OSError: the path cannot be written.
    """
    require_writable(path)
    existing = _existing_list(path)
    if existing is not None and existing.name != name:
        raise refused(path, f"the list {existing.name!r}", f"no file, or the list {name!r}", OUTPUT_HINT)
    listed = {(site, split.value, item.image, item.label) for site, split, item in existing.items()} if existing else ()
    if files and listed and listed != files:
        expected = "no file, or the list of the same images and masks"
        raise refused(path, f"another data list, {name!r} of {counted(len(listed), 'image')}", expected, OUTPUT_HINT)


def freeze(lists: Mapping[Path, DataList]) -> None:
    """Writes data lists; a file that already holds the same list is not rewritten.

    Args:
        lists: data list by file to write.

    Raises:
        Refused: files exist with other content; nothing is written then.
    """
    problems = Problems()
    missing = []
    for path, datalist in lists.items():
        with problems.collected():
            existing = _existing_list(path)
            if existing is None:
                missing.append(path)
            elif existing.hash != datalist.hash:
                found = f"another data list, {existing.name!r} ({existing.hash[:12]})"
                problems.add(str(path), found, f"no file, or the same list ({datalist.hash[:12]})", OUTPUT_HINT)
    problems.refuse_if_any()
    for path in missing:
        lists[path].save(path)


def _existing_list(path: str | Path) -> DataList | None:
    if not Path(path).exists():
        return None
    try:
        return DataList.load(path)
    except Refused as refusal:
        first = refusal.problems[0]
        found = f"no valid data list ({first.where}: {first.found})"
        raise refused(path, found=found, expected="no file, or a data list", hint=OUTPUT_HINT) from refusal


LEAST_IMAGES = 5
"""Fewest images for which a site reports a score, unless ``federate.json -> privacy`` has another number (ours)."""


def measuring_notes(datalist: DataList) -> list[str]:
    """Returns sentences if few or no images can be scored (fault 67), in the whole list or at some of its sites.

    A site without training images is only tested; in a list of such sites alone, few images get no sentence.
    """
    if not any(site.validation or site.test for site in datalist.sites.values()):
        return [
            "no scores: no site has validation or test images (images with masks, drawn by a share of each site; "
            "larger shares: --validation, --test); a run takes the round with the best expected Dice, or "
            "(without a teacher) the last round; only a look at its masks shows whether they are good"
        ]
    unscored, few = [], []
    for name, site in datalist.sites.items():
        measuring = [site.validation, site.test] if site.unlabelled else [site.test]
        if not any(item.label is not None and not item.weak for _, items in site.splits() for item in items):
            unscored.append(name)
        elif any(len(items) < LEAST_IMAGES for items in measuring):
            few.append(name)
    notes = []
    if unscored:
        lacking = f"no scores at {', '.join(unscored)}: no image has a mask"
        notes.append(f"{lacking}; the best round is chosen by the scores of the other sites")
    if few and any(site.unlabelled for site in datalist.sites.values()):
        lacking = f"few images for scores at {', '.join(few)}: fewer than {LEAST_IMAGES} validation or test images"
        shares = "a site reports no score on fewer; larger shares (--validation, --test) give more images"
        option = "if all images are on one machine, `samfed federate --privacy#least_images 1` shows every score"
        notes.append(f"{lacking}; {shares}; {option}")
    return notes
