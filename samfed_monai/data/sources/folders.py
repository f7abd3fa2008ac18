"""Plain folders: ``DIR/<site>/images`` and, where there are masks or weak labels, ``DIR/<site>/masks``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean, refused
from samfed_monai.core.words import counted
from samfed_monai.data.datalist import LabelKind, confine
from samfed_monai.data.reading import decode_grey, read_bytes
from samfed_monai.data.sources.found import (
    RULE,
    Found,
    first_two,
    list_images,
    match_masks,
    near_miss,
    others_in,
    passed_over,
    renaming,
    site_folders,
)
from samfed_monai.data.weak_labels import IGNORE


@dataclass(frozen=True)
class Folders:
    """What was found in a folder of sites.

    Args:
        sites: site name to its images; a public folder is among them, one with problems of its own may not be.
        problems: what is wrong with what was found, to be refused together with what its files show.
        passed_over: a sentence on every other folder that holds images, or was probably to hold masks (fault 66), and
            on the masks of each site that belong to no image; they were not read.
    """

    sites: dict[str, list[Found]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    passed_over: tuple[str, ...] = ()


def find_folders(root: str | Path, *, public: str | None, output: str | Path | None = None) -> Folders:
    """What each site's folder holds.

    Args:
        root: folder of sites; every subfolder with an ``images`` folder in it is one.
        public: the one whose images are public; each of them needs a mask (fault 1), and another site is beside it.
            ``None``: every folder is a site, and one will do, whose own folder ``root`` may be.
        output: file that is to be written; the folder that it is in, if it is under ``root``, is no forgotten site.

    Raises:
        Refused: no such folder, or nothing beside the public one.
    """
    root = Path(root)
    names = [path.name for path in site_folders(root)]
    if not names and public is None and (root / "images").is_dir():
        return _one_site(root)
    if not names or (public is not None and public not in names):
        raise Refused([_not_there(root, names, public, output)])
    others = passed_over(root, names, output=output)
    if len(names) < 2 and public is not None:
        hint = "; ".join(others) or "put each site's images into a folder of its own: DIR/<site>/images"
        raise refused(root, found=f"only {names[0]!r}", expected="at least one site beside it", hint=hint)
    problems = Problems()
    found: dict[str, list[Found]] = {}
    for name in names:
        with problems.collected():
            found[name], lonely = match_masks(root / name, root, name)
            near = near_miss(root / name, "masks")
            near = near if near and list_images(root / name / near) else None
            if name == public:
                problems.extend(without_mask(found[name], _hint(root / name, near, lonely, found[name])))
            elif near:
                others.append(
                    f"{name} has no folder 'masks', and {name}/{near} was not read: if it holds {name}'s masks, rename "
                    f"it to {name}/masks"
                )
            others += [*others_in(root / name), *_lonely_sentence(name, lonely, found[name])]
    return Folders(found, tuple(problems), tuple(others))


def _hint(site: Path, near: str | None, lonely: list[Path], found: list[Found]) -> str:
    """What to do about public images without masks."""
    if near:
        return f"{site.name}/{near} was not read: rename it to {site.name}/masks"
    if lonely and all(one.label is None for one in found):
        return f"a mask is called by {RULE}; {renaming(lonely, found)}"
    if (site / "annotations").is_dir():
        return "add it, move the image, or, if it was inspected and shows nothing, give --without-annotation empty"
    return "add it, or move the image"


def _one_site(folder: Path) -> Folders:
    """What a single site's own folder holds, with ``images`` and ``masks`` in it."""
    name = folder.resolve().name
    found, lonely = match_masks(folder, folder, name)
    return Folders({name: found}, passed_over=(*others_in(folder), *_lonely_sentence(name, lonely, found)))


def _not_there(root: Path, names: list[str], public: str | None, output: str | Path | None) -> Problem:
    """Why there is no site among the folders of ``root``, or not the public one among those of ``names``."""
    if not names and (root / "images").is_dir():
        expected, parent = "a folder of sites, DIR/<site>/images and DIR/<site>/masks", root.resolve().parent
        hint = f"give {parent}, where it lies beside other sites; or, to measure only, --public none or --test-only"
        return Problem(str(root), found="the folder 'images' of a single site", expected=expected, hint=hint)
    folders = _folders(root)
    asked = [str(public)] if names else folders
    missed = {site: near for site in asked if (near := near_miss(root / site, "images"))}
    hints = [f"rename {site}/{near} to {site}/images" for site, near in missed.items()]
    if root.is_dir():
        read = [site for site in folders if site in missed or site not in asked]
        hints += passed_over(root, read, output=output)
    hint = f"name one of {names} with --public" if names else "expected is DIR/<site>/images and DIR/<site>/masks"
    where = root / (public or "<site>") / "images"
    return Problem(str(where), found="no such folder", expected="images", hint="; ".join(hints) or hint)


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _lonely_sentence(site: str, masks: list[Path], found: list[Found]) -> list[str]:
    if not masks:
        return []
    who = counted(len(masks), f"mask of {site} belongs", f"masks of {site} belong")
    parts = [f"{who} to no image", f"left out, such as {first_two(masks)}", f"a mask is called by {RULE}"]
    return ["; ".join(filter(None, [*parts, renaming(masks, found)]))]


def without_mask(found: list[Found], hint: str = "add it, or move the image") -> list[Problem]:
    """A problem for every image that needs a mask and has none (fault 1)."""
    return [
        Problem(one.image, found="no mask", expected="a mask, as every public image", hint=hint)
        for one in found
        if one.label is None
    ]


def declare_kinds(
    found: Mapping[str, Sequence[Found]],
    given: Mapping[str, str],
    root: Path,
    *,
    spared: Mapping[str, str],
    classes: int = 1,
) -> tuple[dict[str, list[Found]], list[Problem]]:
    """The images with the kinds that are declared of their sites' labels.

    At such a site 255 is "not labelled" in every file. A label without it says all of its image, so it is a mask, which
    may be measured with; every other one is of the declared kind. One of 0 and 255 alone could be a mask or scribbles
    without foreground, and is refused.

    Args:
        found: images of each site.
        given: site to one of :class:`LabelKind`; ``""`` is every site that is neither named nor spared.
        root: the data root.
        spared: sites whose labels have to be masks, with what for.
        classes: how many classes labels have, which are the values 1, 2, ….

    Returns:
        Images of each site, and what is wrong with the declaration or with the labels. What else is wrong with a file
        is found where it is read as what it is declared to be.
    """
    problems, names = Problems(), [kind.value for kind in LabelKind]
    for site, kind in given.items():
        if site and site not in found:
            hint = did_you_mean(site, found)
            problems.add("--label-kind", found=f"the site {site!r}", expected=f"one of {sorted(found)}", hint=hint)
        elif kind not in names:
            where, hint = f"--label-kind of {site or 'all sites'}", did_you_mean(kind, names)
            problems.add(where, found=repr(kind), expected=f"one of {names}", hint=hint)
        elif site in spared and kind != LabelKind.MASK:
            hint = "leave it out, or let another site's images be those"
            problems.add(f"--label-kind of {site}", found=repr(kind), expected=f"masks: {spared[site]}", hint=hint)
    every = {} if "" not in given else dict.fromkeys(found.keys() - spared.keys(), given[""])
    kinds = {site: kind for site, kind in {**every, **given}.items() if site and kind != LabelKind.MASK}
    declared = {site: list(ones) for site, ones in found.items()}
    if not len(problems):
        for site in sorted(kinds):
            declared[site], wrong = _of_site(site, found[site], kinds[site], root, site in given, classes)
            problems.extend(wrong)
    return declared, list(problems)


def _of_site(
    site: str, ones: Sequence[Found], kind: str, root: Path, named: bool, classes: int
) -> tuple[list[Found], list[Problem]]:
    labels = [one.label for one in ones if one.label is not None]
    with ThreadPoolExecutor() as pool:
        values = dict(zip(labels, pool.map(lambda label: _values(label, root), labels), strict=True))
    unclear = sorted(label for label, there in values.items() if IGNORE in there and there <= {0, IGNORE})
    weak = {label for label, there in values.items() if not there <= {*range(classes + 1)}} - set(unclear)
    marks = "1" if classes == 1 else f"1 to {classes}"
    expected = f"0 background, {marks} foreground, 255 not labelled, in masks as in weak labels"
    where, problems = f"--label-kind of {site}", Problems()
    masks = f"if {site} has masks alone, give --label-kind {site}=mask"
    if unclear:
        who = counted(len(unclear), "label has", "labels have")
        found_here = f"{who} the values 0 and 255 alone, such as {unclear[0]}: masks, or weak labels without foreground"
        hint = f"write foreground as {marks}, that of masks, too; {masks}"
        problems.add(where, found=found_here, expected=expected, hint=hint)
    elif labels and not weak:
        found_here = f"{counted(len(labels), 'label')} without any 255: masks alone"
        problems.add(where, found=found_here, expected=expected, hint=f"write what is not labelled as 255; {masks}")
    elif named and not labels:
        hint = f"put labels into {site}/masks, each called as its image"
        problems.add(where, found="no labels", expected=f"some of the kind {kind}", hint=hint)
    return [one.with_kind(kind) if one.label in weak else one for one in ones], list(problems)


def _values(label: str, root: Path) -> set[int]:
    """Values of a label's file; of one that is no weak label, because it cannot be read as grey, none of a mask's."""
    try:
        return set(np.unique(decode_grey(read_bytes(confine(root, label, where=label)), label)).tolist())
    except Refused:
        return {-1}
