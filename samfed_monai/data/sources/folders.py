"""Plain folders: ``DIR/<site>/images`` and, as far as there are any, ``DIR/<site>/masks``."""

from __future__ import annotations

from pathlib import Path

from samfed_monai.data.sources.found import Found, pair_up
from samfed_monai.errors import Problem, Problems, Refused


def find_folders(root: str | Path, *, public: str | None) -> dict[str, list[Found]]:
    """What each site's folder holds.

    Args:
        root: folder of sites; every subfolder with an ``images`` folder in it is one.
        public: the one whose images are public; each of them needs a mask. ``None``: every folder is a site.

    Returns:
        Site name to its images; a public folder is among them.

    Raises:
        Refused: no such folder, fewer than two sites, or public images without a mask (fault 1).
    """
    root = Path(root)
    names = sorted(path.parent.name for path in root.glob("*/images") if path.is_dir()) if root.is_dir() else []
    if not names or (public is not None and public not in names):
        mend = f"name one of {names} with --public" if names else "expected is DIR/<site>/images and DIR/<site>/masks"
        where = root / (public or "<site>") / "images"
        raise Refused([Problem(str(where), found="no such folder", expected="images", mend=mend)])
    if len(names) < 2:
        mend = "put each site's images into a folder of its own: DIR/<site>/images"
        raise Refused(
            [Problem(str(root), found=f"only {names[0]!r}", expected="at least one site beside it", mend=mend)]
        )
    problems = Problems()
    found: dict[str, list[Found]] = {}
    for name in names:
        with problems.collected():
            found[name] = pair_up(root / name, root, name)
    problems.extend(without_mask(found.get(public or "", [])))
    problems.refuse_if_any()
    return found


def without_mask(found: list[Found]) -> list[Problem]:
    """A problem for every image that needs a mask and has none (fault 1)."""
    return [
        Problem(one.image, found="no mask", expected="a mask, as every public image", mend="add it, or move the image")
        for one in found
        if one.label is None
    ]
