"""Plain folders: ``DIR/<site>/images`` and, where there are masks, ``DIR/<site>/masks``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from samfed_monai.core.errors import Problem, Problems, Refused, refused
from samfed_monai.core.words import counted
from samfed_monai.data.sources.doctor import near_miss
from samfed_monai.data.sources.found import (
    RULE,
    Found,
    first_two,
    list_images,
    match_masks,
    others_in,
    passed_over,
    renaming,
    site_folders,
)


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
