"""Masks that are not pictures: COCO annotations drawn beside their images, NIfTI volumes cut into slices."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from samfed_monai.core.errors import Problem, Problems, Refused, or_skip, refused
from samfed_monai.core.io import read_json, write_bytes, write_json
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.words import counted, normal
from samfed_monai.data.checks import stem
from samfed_monai.data.coco import Annotated, read_coco, require_pycocotools
from samfed_monai.data.grouping import parts_in_common
from samfed_monai.data.reading import png_of, read_image
from samfed_monai.data.sources.found import list_images, mask_stem, relative, site_folders
from samfed_monai.data.volumes import different_orientations, read_mask_slices, read_slices
from samfed_monai.data.walk import NIFTI, not_read, stem_of, walk

logger = logging.getLogger(__name__)


def draw_coco(
    root: str | Path,
    *,
    categories: Sequence[str] = (),
    blank_is_empty: bool = False,
    skip_unreadable: bool = False,
    output: str | Path | None = None,
    written: list[Path] | None = None,
    progress: bool = True,
) -> list[str]:
    """Draws COCO annotations as ``<site>/masks/<stem>.png``, as :mod:`.folders` reads them.

    Args:
        root: folder of sites, or one site's own folder. A site has ``images``, and its annotations in JSON files beside
            that folder or in ``annotations``; one without any is left as it is.
        categories: see :func:`samfed_monai.data.coco.read_coco`.
        blank_is_empty: whether a picture of the file without an annotation shows nothing, and gets an empty mask;
            otherwise it is not annotated yet, and gets none.
        skip_unreadable: whether pictures that cannot be read get no mask.
        output: a data list that is to be written, which is no annotation wherever it lies.
        written: takes the new files.
        progress: whether to show a progress bar.

    Returns:
        Sentences on what was left out.

    Raises:
        Refused: everything that is wrong with any file, image or annotation; a mask of another content is in the way.
            Nothing is written then.
    """
    root, problems = Path(root), Problems()
    problems.extend(require_pycocotools(str(root)))
    problems.refuse_if_any()
    sites = _sites(root)
    files = {
        site: [
            path for path in sorted([*site.glob("*.json"), *site.glob("annotations/*.json")]) if not _is(path, output)
        ]
        for site in sites
    }
    if not any(files.values()):
        expected, hint = "COCO annotations of a site", "put them into DIR/<site>/annotations, beside DIR/<site>/images"
        raise refused(f"{root}/<site>/annotations/*.json", found="no file", expected=expected, hint=hint)
    masks: dict[Path, bytes] = {}
    sentences = []
    for site in [site for site in sites if files[site]]:
        known = _Images(site)
        blank = 0
        pictures: list[Annotated] = []
        for file in files[site]:
            with problems.collected():
                pictures += read_coco(file, categories=categories)
        for one in progress_bar(pictures, desc=f"drawing {site.name}", unit="mask", show=progress):
            with problems.collected():
                path = known.image_of(one, skip_unreadable)
                if path is None:
                    continue
                place = known.mask_of(path)
                if not one.annotations and not blank_is_empty:
                    blank += 1
                    if place.exists():  # of an earlier call: it would be taken for the picture's mask
                        expected, hint = "none: its picture has no annotation", "move it away, or annotate the picture"
                        raise refused(str(place), found="a mask", expected=expected, hint=hint)
                elif place in masks:
                    hint = "keep one of them"
                    raise refused(str(one.where), f"{one.file_name} a second time", "each picture once", hint)
                else:
                    masks[place] = _mask_png(one.mask())
        if blank:
            who = counted(blank, f"picture of {site.name} has", f"pictures of {site.name} have")
            sentences.append(f"{who} no annotation: taken as unlabelled")
        if known.unnamed:
            who = counted(len(known.unnamed), f"picture of {site.name} is", f"pictures of {site.name} are")
            sentences.append(f"{who} in no COCO file, such as {relative(next(iter(known.unnamed)), root)}")
    problems.refuse_if_any()
    _write_new(masks, written)
    return sentences


VOLUMES = "volumes.json"
"""File beside the slices that says which volume they are of, and how far their pixels lie apart."""


def volumes_of(slices: str | Path) -> dict[str, dict[str, Any]]:
    """Folder of slices to ``{"volume": path, "spacing": [mm of a row, of a column, between slices]}``.

    Args:
        slices: where :func:`cut_nifti` put them; another folder has none.
    """
    path = Path(slices) / VOLUMES
    return dict(read_json(path)) if path.is_file() else {}


def cut_nifti(
    root: str | Path,
    slices: str | Path,
    *,
    labels: Sequence[int] = (),
    classes: Sequence[str] = (),
    reorient: bool = False,
    without_spacing: Sequence[str] = (),
    skip_unreadable: bool = False,
    written: list[Path] | None = None,
    progress: bool = True,
) -> list[str]:
    """Cuts NIfTI volumes and their masks into pictures, as :mod:`.folders` reads them.

    A volume ``<site>/images/NAME.nii.gz`` becomes ``<slices>/<site>/images/NAME/NAME_0001.png`` and so on, along its
    last axis, with the grey values of ``samfed infer`` (:func:`samfed_monai.data.volumes.read_slices`); likewise its
    mask, called as masks of images are. Slices without foreground have empty masks; those of a single grey value, which
    are the same in every volume and would tie patients together, are left out. :data:`VOLUMES` notes where they
    come from.

    Args:
        root: folder of sites, or one site's own folder.
        slices: where the pictures go; the data root of a list.
        labels, classes: see :func:`samfed_monai.data.volumes.read_mask_slices`; slices of several classes hold their
            values.
        reorient: see :func:`samfed_monai.data.volumes.read_slices`.
        without_spacing: sites of which the headers' voxel sizes are not true; no distance in mm is measured there.
        skip_unreadable: whether to leave out volumes that cannot be read, or whose mask cannot, each with a warning.
        written: takes the new files.
        progress: whether to show a progress bar.

    Returns:
        Sentences on what was left out.

    Raises:
        Refused: everything that is wrong with any volume, and files of another content that are in the way. Nothing
            that was written is left then.
    """
    root, slices, problems = Path(root), Path(slices), Problems()
    if slices.resolve().is_relative_to(root.resolve()):
        expected, hint = f"a folder outside of {root}", "choose another folder"
        problems.add("--slices", found=str(slices), expected=expected, hint=hint)
    if classes and labels and len(labels) != len(classes):
        found, expected = f"{len(labels)} values", f"one for each of {list(classes)}, in their order"
        problems.add("--label", found=found, expected=expected, hint="give it once for each class, or leave it out")
    pairs, sentences = _pairs(root, slices, problems)
    problems.extend(_of_no_volume(pairs))
    unreadable: list[Path] = []
    blank = 0
    voxels: dict[str, list[Sequence[float]]] = {}
    named = {where.name for where, *_ in pairs}
    for site in set(without_spacing) - named:
        problems.add("--without-spacing", found=repr(site), expected=f"one of {sorted(named)}", hint="name a site")
    notes = volumes_of(slices)
    with taken_back_if_refused(slices) as files:
        for where, name, path, drawn in progress_bar(pairs, desc="cutting", unit="volume", show=progress):
            cut: dict[str, Sequence[bytes]] = {}
            kept: list[int] = []
            with problems.collected():
                try:
                    volume = read_slices(path, reorient=reorient)
                    cut["images"] = [png_of(picture) for picture in volume.pictures]
                    showing = volume.pictures.min((1, 2, 3)) < volume.pictures.max((1, 2, 3))
                    if drawn is not None:
                        values = read_mask_slices(drawn, path, labels=labels, classes=classes, reorient=reorient)
                        cut["masks"] = [png_of(mask) if classes else _mask_png(mask > 0) for mask in values]
                        showing |= values.any((1, 2))
                    kept = [number for number, shows in enumerate(showing) if shows or not showing.any()]
                    blank += len(showing) - len(kept)
                except Refused as refusal:
                    if not any(_is_unreadable(file) for file in (path, drawn) if file):
                        raise
                    if not skip_unreadable:
                        raise Refused(map(or_skip, refusal.problems)) from None
                    unreadable.append(path)
                    for problem in refusal.problems:
                        logger.warning("left out: %s", problem)
                    continue
                if len(problems):
                    continue  # nothing will be kept
                _write_new(
                    {
                        where / kind / name / f"{name}_{number + 1:04d}.png": contents[number]
                        for kind, contents in cut.items()
                        for number in kept
                    },
                    files,
                )
                folder = (where / "images" / name).relative_to(slices).as_posix()
                spacing = list(volume.voxel) if volume.voxel and where.name not in without_spacing else None
                if spacing:
                    voxels.setdefault(where.name, []).append(spacing)
                notes[folder] = {"volume": relative(path, root), "spacing": spacing}
        problems.refuse_if_any()
        files += [] if (slices / VOLUMES).exists() else [slices / VOLUMES]
    if written is not None:
        written += files
    write_json(slices / VOLUMES, notes)
    if unreadable:
        who = counted(len(unreadable), "unreadable volume was", "unreadable volumes were")
        sentences.append(f"{who} left out, such as {relative(unreadable[0], root)}")
    sentences += [f"{counted(blank, 'slice')} of a single grey value left out"] if blank else []
    sentences += unlike_voxels(voxels)
    read = [path for _, _, path, _ in pairs if path not in unreadable]
    return sentences if reorient else [*sentences, *different_orientations(read)]


UNLIKE = 1.5
"""How many times as long as another volume's a side of a voxel may be before it is said."""


def unlike_voxels(voxels: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """A sentence where voxels differ much in a side, at one site or between sites: a network sees organs of another
    size there.

    Args:
        voxels: site to mm of a row, of a column and between slices, of each of its volumes.
    """
    every = [sides for of_site in voxels.values() for sides in of_site]
    if not any(max(sides) > UNLIKE * min(sides) for sides in zip(*every, strict=True)):
        return []
    shown = ", ".join(
        f"{site} {' x '.join(_range(sides) for sides in zip(*of_site, strict=True))}"
        for site, of_site in voxels.items()
    )
    return [f"volumes have unlike voxels (mm of rows, columns, slices): {shown}; slices keep their pixels"]


def _range(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values))))


def _is_unreadable(volume: Path) -> bool:
    try:
        read_slices(volume)
    except Refused:
        return True
    return False


def _of_no_volume(pairs: Sequence[tuple[Path, str, Path, Path | None]]) -> list[Problem]:
    """Folders of slices that an earlier call has cut, of volumes or masks that are not there any more."""
    kept = {where / "images" / name for where, name, _, _ in pairs}
    kept |= {where / "masks" / name for where, name, _, drawn in pairs if drawn is not None}
    there = [path for where in dict.fromkeys(pair[0] for pair in pairs) for path in where.glob("*/*")]
    expected, hint = "slices of volumes and masks of DIR alone", "delete them, or cut into a new folder"
    return [Problem(str(path), "slices of none", expected, hint) for path in sorted(there) if path not in kept]


def _pairs(root: Path, slices: Path, problems: Problems) -> tuple[list[tuple[Path, str, Path, Path | None]], list[str]]:
    """Of each volume where its slices go, its name, its file and its mask's; and sentences on masks without one."""
    sites = _sites(root)
    single = sites == [root]
    pairs: list[tuple[Path, str, Path, Path | None]] = []
    sentences: list[str] = []
    found = {
        site: (
            _volumes(site / "images", sentences),
            {mask_stem(Path(f"{name}.nii")): path for name, path in _volumes(site / "masks", sentences)},
        )
        for site in sites
    }
    if any(_channel(name, masks) for volumes, masks in found.values() for name, _ in volumes):
        found = {site: (_of_one_channel(site, *of, problems), of[1]) for site, of in found.items()}
    for site, (volumes, masks) in found.items():
        if not volumes:
            expected, hint = "NIfTI volumes (.nii, .nii.gz)", "put them there, or move the site elsewhere"
            problems.add(str(site / "images"), found="none", expected=expected, hint=hint)
        for name, path in volumes:
            where = slices / (site.resolve().name if single else site.name)
            if any(name == other and where == there for there, other, _, _ in pairs):
                problems.add(str(path), found=f"a second {name}", expected="one volume of that name in a site")
            pairs.append((where, name, path, masks.pop(name, None)))
        if masks:
            names = " and ".join(sorted(path.name for path in masks.values())[:2])
            who = counted(len(masks), f"mask of {site.name} belongs", f"masks of {site.name} belong")
            sentences.append(f"{who} to no volume; left out, such as {names}")
    if not sites:
        expected, hint = "NIfTI volumes (.nii, .nii.gz)", "expected is DIR/<site>/images and DIR/<site>/masks"
        problems.add(f"{root}/<site>/images", found="none", expected=expected, hint=hint)
    return pairs, sentences


CHANNEL = re.compile(r"(.+)_(\d{4})")
FIRST = "0000"


def _channel(name: str, masks: Mapping[str, Path]) -> bool:
    """Whether a volume is called as nnU-Net calls a channel: its mask has its name without ``_0000``."""
    match = CHANNEL.fullmatch(name)
    return match is not None and name not in masks and match[1] in masks


def _of_one_channel(
    site: Path, volumes: list[tuple[str, Path]], masks: Mapping[str, Path], problems: Problems
) -> list[tuple[str, Path]]:
    """nnU-Net's volumes under the names of their masks, without ``_0000``; further channels are a problem."""
    split = [(CHANNEL.fullmatch(name) if name not in masks else None, name, path) for name, path in volumes]
    further = [path.name for match, _, path in split if match and match[2] != FIRST]
    if further:
        expected, hint = "volumes of one channel (nnU-Net's _0000)", "move the other channels out of the folder"
        who = counted(len(further), "volume of a further channel", "volumes of further channels")
        problems.add(str(site / "images"), found=f"{who}, such as {further[0]}", expected=expected, hint=hint)
    return [(match[1] if match else name, path) for match, name, path in split if not match or match[2] == FIRST]


def _volumes(folder: Path, sentences: list[str]) -> list[tuple[str, Path]]:
    """NIfTI volumes below a folder, named by their path in it, in one word; adds a sentence on files of other kinds."""
    found = walk(folder) if folder.is_dir() else {}
    others = not_read(found, (NIFTI,))
    sentences += [f"{folder.parent.name}/{folder.name}: {others}"] if others else []
    return [("_".join((*path.relative_to(folder).parent.parts, stem_of(path))), path) for path in found.get(NIFTI, ())]


def _sites(root: Path) -> list[Path]:
    """Folders with ``images``: the root itself, which is then a site's own, or those in it."""
    return [root] if (root / "images").is_dir() else site_folders(root)


def _is(path: Path, output: str | Path | None) -> bool:
    return output is not None and path.resolve() == Path(output).resolve()


class _Images:
    """The images of a site, by the names that COCO files have for them.

    A name is compared from its end, as in :class:`~samfed_monai.data.grouping.Groups`, whatever folder it starts
    at: with slashes or backslashes, as it is or percent-encoded. It is never opened.
    """

    def __init__(self, site: Path) -> None:
        self.site = site
        self.named: dict[str, list[Path]] = {}
        self.unnamed = dict.fromkeys(list_images(site / "images"))
        for path in self.unnamed:
            self.named.setdefault(normal(path.name), []).append(path)
        count = Counter(stem(path.name) for path in self.unnamed)
        self._repeated = {name for name, times in count.items() if times > 1}

    def mask_of(self, image: Path) -> Path:
        """Where its mask goes: into a folder like its own, where another image has its name."""
        below = relative(image.parent, self.site / "images") if stem(image.name) in self._repeated else ""
        return self.site / "masks" / below / f"{stem(image.name)}.png"

    def image_of(self, one: Annotated, skip_unreadable: bool) -> Path | None:
        """The one image that an entry is of; ``None`` if it cannot be read and is to be skipped.

        Raises:
            Refused: none, several, or one of another size.
        """
        where = f"{one.where}: {one.file_name}"
        found = next(filter(None, map(self._like, (one.file_name, unquote(one.file_name)))), [])
        if len(found) != 1:
            there = "no such image" if not found else f"{len(found)} images of that name"
            expected = f"one image of that name in {self.site / 'images'}"
            raise refused(where, found=there, expected=expected, hint="add it, or take its entry out")
        self.unnamed.pop(found[0], None)
        try:
            height, width = read_image(found[0]).shape[:2]
        except Refused as refusal:
            if skip_unreadable:  # the source that makes the list names it
                return None
            raise Refused(map(or_skip, refusal.problems)) from None
        if (height, width) != (one.height, one.width):
            expected, hint = f"{one.width} x {one.height}, as annotated", "annotate the image that lies here"
            raise refused(where, found=f"{width} x {height} pixels", expected=expected, hint=hint)
        return found[0]

    def _like(self, name: str) -> list[Path]:
        listed = PurePosixPath(normal(name).replace("\\", "/"))
        paths = self.named.get(listed.name, [])
        return [
            path
            for path in paths
            if parts_in_common(listed, PurePosixPath(normal(relative(path, self.site / "images"))))
        ]


def _mask_png(mask: NDArray[np.bool_]) -> bytes:
    return png_of(np.where(mask, 255, 0).astype(np.uint8))


@contextmanager
def taken_back_if_refused(slices: Path | None = None) -> Iterator[list[Path]]:
    """A list for ``written`` whose files are deleted, with the folders that are empty then, if anything is refused.

    Args:
        slices: folder whose notes on volumes become what they were.
    """
    written: list[Path] = []
    notes = volumes_of(slices) if slices else {}
    try:
        yield written
    except Refused:
        for path in written:
            path.unlink(missing_ok=True)
        for folder in sorted({folder for path in written for folder in path.parents}, reverse=True):
            with suppress(OSError):
                folder.rmdir()
        if slices and notes:
            write_json(slices / VOLUMES, notes)
        raise


def _write_new(files: Mapping[Path, bytes], written: list[Path] | None) -> None:
    """Writes what is not there yet; refuses all of it where a file has another content."""
    problems, hint = Problems(), "move it away, or do without what it would be drawn of"
    for path, content in files.items():
        if path.exists() and path.read_bytes() != content:
            problems.add(str(path), found="another file", expected="none, or the very one to be drawn", hint=hint)
    problems.refuse_if_any()
    for path, content in files.items():
        if not path.exists():
            write_bytes(path, content)
            if written is not None:
                written.append(path)
