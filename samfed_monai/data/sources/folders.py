"""Plain folders: ``DIR/<site>/images`` and, where there are masks, ``DIR/<site>/masks``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.data.sources.doctor import near_miss
from samfed_monai.data.sources.found import Found, list_images, pair_up, passed_over


@dataclass(frozen=True)
class Folders:
    """What was found in a folder of sites.

    Args:
        sites: site name to its images; a public folder is among them, one with problems of its own may not be.
        problems: what is wrong with what was found, to be refused together with what its files show.
        passed_over: a sentence on every other folder that holds images, or was probably to hold masks (fault 66); they
            were not read.
    """

    sites: dict[str, list[Found]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    passed_over: tuple[str, ...] = ()


def find_folders(
    root: str | Path, *, public: str | None, output: str | Path | None = None, alone: bool = False
) -> Folders:
    """What each site's folder holds.

    Args:
        root: folder of sites; every subfolder with an ``images`` folder in it is one.
        public: the one whose images are public; each of them needs a mask (fault 1). ``None``: every folder is a site.
        output: file that is to be written; the folder it lies in, if it is under ``root``, is no forgotten site.
        alone: whether one site will do.

    Raises:
        Refused: no such folder, or fewer than two sites.
    """
    root = Path(root)
    names = sorted(path.parent.name for path in root.glob("*/images") if path.is_dir()) if root.is_dir() else []
    if not names or (public is not None and public not in names):
        hint = f"name one of {names} with --public" if names else "expected is DIR/<site>/images and DIR/<site>/masks"
        missed = {site: near_miss(root / site, "images") for site in _folders(root) if public in (None, site)}
        hint = "; ".join(f"rename {site}/{near} to {site}/images" for site, near in missed.items() if near) or hint
        where = root / (public or "<site>") / "images"
        raise Refused([Problem(str(where), found="no such folder", expected="images", hint=hint)])
    others = passed_over(root, names, output=output)
    if len(names) < 2 and not alone:
        hint = "; ".join(others) or "put each site's images into a folder of its own: DIR/<site>/images"
        raise Refused(
            [Problem(str(root), found=f"only {names[0]!r}", expected="at least one site beside it", hint=hint)]
        )
    problems = Problems()
    found: dict[str, list[Found]] = {}
    for name in names:
        with problems.collected():
            found[name] = pair_up(root / name, root, name)
    for name in found:
        near = near_miss(root / name, "masks")
        if near is None or not list_images(root / name / near):
            continue
        if name == public:
            place, hint = f"{root / name / 'masks'}", f"rename {name}/{near} to {name}/masks"
            problems.add(place, found=f"no such folder, but {near!r}", expected="the public images' masks", hint=hint)
        else:
            others.append(
                f"{name} has no folder 'masks', and {name}/{near} was not read: if it holds {name}'s masks, rename it "
                f"to {name}/masks"
            )
    if not any(problem.where.endswith("masks") for problem in problems):
        inspected = "add it, move the image, or, if it was inspected and shows nothing, give --without-annotation empty"
        annotated = public is not None and (root / public / "annotations").is_dir()
        problems.extend(without_mask(found.get(public or "", []), **({"hint": inspected} if annotated else {})))
    return Folders(found, tuple(problems), tuple(others))


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def without_mask(found: list[Found], hint: str = "add it, or move the image") -> list[Problem]:
    """A problem for every image that needs a mask and has none (fault 1)."""
    return [
        Problem(one.image, found="no mask", expected="a mask, as every public image", hint=hint)
        for one in found
        if one.label is None
    ]
