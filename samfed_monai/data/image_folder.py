"""Files of a folder by kind, for all commands; and unlabelled images to segment, each with a unique name."""

from __future__ import annotations

import logging
import mimetypes
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean, name_problems
from samfed_monai.core.io import read_json
from samfed_monai.core.process_setup import usable_cores
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.text import counted, grouped
from samfed_monai.data.archives import ARCHIVES
from samfed_monai.data.dicom import no_image
from samfed_monai.data.reading import DARK, FORMATS, MASK_ENDINGS, STARTS, SUFFIXES, left_out, mask_like, read_image

logger = logging.getLogger(__name__)
not_read_logger = logging.getLogger(f"{__name__}.not_read")
"""Reports files that were not read; disabled by callers that read them in another way."""

IMAGES = (PICTURE, NIFTI, DICOM, VIDEO) = "picture", "NIfTI volume", "DICOM object", "video"
NIFTI_SUFFIXES = (".nii.gz", ".nii")
DICOM_SUFFIXES = (".dcm", ".dicom")

ALSO = f"; for inference also {', '.join((*NIFTI_SUFFIXES, *DICOM_SUFFIXES))}, or a DICOM object with its preamble"

_SYSTEM = frozenset(read_json(Path(__file__).with_name("system_names.json")))
"""Files that macOS, Windows, Linux and NAS devices (Synology, QNAP, Asustor, NetApp) create, in lower case."""
_PREFIXES = ("._", ".trash-", ".nfs", ".fuse_hidden")

FileKinds = Mapping[str, Sequence[Path]]
"""Files by kind: ``PICTURE``, ``NIFTI``, ``DICOM`` or others (``GIF``, ``video``, ``text``, ``hidden``)."""


def is_system(name: str) -> bool:
    """Whether a file or folder belongs to an operating system or a NAS device."""
    return name.casefold() in _SYSTEM or name.casefold().startswith(_PREFIXES)


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden or belongs to a system."""
    return name.startswith(".") or is_system(name)


def kind_of(path: Path) -> str:
    """Returns a file's kind (:data:`FileKinds`) by its suffix, or by its first bytes if the suffix is unknown."""
    name = path.name.lower()
    if not path.is_file() and path.exists() and not path.is_dir():
        return "pipe or device"  # reading it could wait or go on forever
    if path.suffix.lower() in SUFFIXES:
        return PICTURE
    if name.endswith(NIFTI_SUFFIXES):
        return NIFTI
    if name.endswith(DICOM_SUFFIXES) or (head := _head(path))[128:] == b"DICM":
        return DICOM
    if picture := next((kind for start, kind in STARTS.items() if kind in FORMATS and head.startswith(start)), None):
        return f"{picture} without its suffix"
    major = (_TYPES.guess_type(name)[0] or "").partition("/")[0]
    if major in ("audio", "text", VIDEO):
        return major
    ending = path.suffix[1:]
    return ending.upper() if ending.isalnum() and not ending.isdigit() and len(ending) < 9 else "of an unknown kind"


_TYPES = mimetypes.MimeTypes()  # Python's own table, independent of the machine
_TYPES.add_type("video/x-matroska", ".mkv")


def _head(path: Path) -> bytes:
    with suppress(OSError), path.open("rb") as stream:
        return stream.read(132)
    return b""


def walk(folder: Path) -> FileKinds:
    """Returns all files below a folder by kind, sorted, without files and folders of systems.

    Hidden files and folders and links to folders are listed (``hidden``, ``linked folder``) but not entered.

    Raises:
        OSError: a folder cannot be listed.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for path, folders, files in os.walk(folder, onerror=_raise):
        parent = Path(path)
        inside = [name for name in folders if not is_system(name)]
        found["hidden"] += [parent / name for name in (*inside, *files) if name.startswith(".") and not is_system(name)]
        folders[:] = [name for name in inside if not name.startswith(".")]
        found["linked folder"] += [parent / name for name in folders if (parent / name).is_symlink()]
        for name in files:
            if not is_ignored(name):
                found[kind_of(parent / name)].append(parent / name)
    return {kind: sorted(paths) for kind, paths in found.items() if paths}


def _raise(error: OSError) -> None:
    raise error


RESULTS = frozenset({"run.json", "results.json", "compare.json"})
"""Files that mark a folder of runs: pictures in it are results."""


def below(folder: Path) -> list[Path]:
    """Returns images of every kind and archives that are not unpacked below a folder; folders of runs are skipped."""
    found = list[Path]()
    for place, folders, files in os.walk(folder):
        if RESULTS.intersection(files):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        for path in (Path(place, name) for name in sorted(files) if not is_ignored(name)):
            packed = path.suffix.lower() in ARCHIVES and path.stem not in folders
            found += [path] if packed or kind_of(path) in IMAGES else []
    return found


def outside(folder: Path, read: Collection[str]) -> list[str]:
    """Returns a sentence on images and archives (:func:`below`) outside of the subfolders ``read``, or none."""
    found = [relative for path in below(folder) if (relative := path.relative_to(folder)).parts[0] not in read]
    count = counted(len(found), "image or archive", "images or archives") + " outside the folders that are read"
    return [f"{folder.resolve().name}: {count}, such as {found[0].as_posix()}, left out"] if found else []


def volumes_in(sources: Iterable[Path]) -> tuple[list[tuple[str, Path]], FileKinds]:
    """Finds the volumes and DICOM images in files and folders, and other files that are not pictures.

    DICOM objects in folders that are not images are among the other files, by their kind.

    Returns:
        Name and path of each volume, the name being the path below its folder without the suffix; and other files by
        kind.
    """
    found: list[tuple[str, Path]] = []
    others: dict[str, list[Path]] = defaultdict(list)
    for source in sources:
        if not source.is_dir():
            found += [(stem_of(source), source)] if kind_of(source) in (NIFTI, DICOM) else []
            continue
        volumes: list[Path] = []
        for kind, paths in walk(source).items():
            for path in paths:
                if kind == DICOM and (other := no_image(path)):
                    others[f"DICOM without an image: {other}"].append(path)
                elif kind in (NIFTI, DICOM):
                    volumes.append(path)
                elif kind != PICTURE:
                    others[kind].append(path)
        found += [((path.relative_to(source).parent / stem_of(path)).as_posix(), path) for path in sorted(volumes)]
    return found, others


def stem_of(path: PurePath) -> str:
    """Returns the file's name without ``.nii.gz``, ``.nii``, ``.dcm`` or ``.dicom``."""
    suffix = next((each for each in (*NIFTI_SUFFIXES, *DICOM_SUFFIXES) if path.name.lower().endswith(each)), "")
    return path.name[: len(path.name) - len(suffix)]


def not_read(found: FileKinds, read: Collection[str] = ()) -> str:
    """Summarises files that were not read, such as ``not read: 2 GIF (a.gif, …)``; empty if there are none.

    Args:
        found: files by kind.
        read: kinds that are read.
    """
    counts = [(len(paths), kind, paths[0].name) for kind, paths in sorted(found.items()) if paths and kind not in read]
    kinds = ", ".join(f"{count} {kind} ({name}{', …' if count > 1 else ''})" for count, kind, name in counts)
    return f"not read: {kinds}" if kinds else ""


def report_not_read(where: object, found: FileKinds, read: Collection[str] = ()) -> None:
    """Logs :func:`not_read` as a warning unless it is empty."""
    if sentence := not_read(found, read):
        not_read_logger.warning("%s: %s", where, sentence)


Sources = str | Path | Sequence[str | Path]
"""A folder of images, or several folders and images."""


def image_folder(folder: Sources, *, skip_unreadable: bool = False) -> list[dict[str, Any]]:
    """Returns records of all images below a folder, ordered by name; every image is decoded once to check it.

    Args:
        folder: searched with its subfolders; files of other kinds and hidden ones are counted in a warning, and links
            that lead out of the folder are refused. Or a list of folders and of single images, which may be links.
        skip_unreadable: whether to leave out unreadable images, each with a warning, as long as one can be read.

    Returns:
        ``{"image": absolute path, "id": path below its folder without the suffix}`` of each image; the id of a single
        image is its stem.

    Raises:
        Refused: no such folder or image, no image in the folder, names that no list can hold, two images with the same
            name, unreadable images; all are reported together.

    Example::

        "data": {"_target_": "samfed_monai.data.image_folder.image_folder", "folder": "@dataset_dir"}
    """
    problems = Problems()
    for source in _sources(folder):
        if not source.exists() or not (source.is_dir() or kind_of(source) == PICTURE):
            missing = "a broken link" if source.is_symlink() else "no such folder or image"
            found = f"a file of another kind ({kind_of(source)})" if source.exists() else missing
            expected = f"a folder of images, or a file that ends in {', '.join(sorted(SUFFIXES))}{ALSO}"
            readable = not os.path.lexists(source) and source.parent.is_dir() and os.access(source.parent, os.R_OK)
            hint = did_you_mean(source.name, [path.name for path in (source.parent.iterdir() if readable else ())])
            hint = "unpack it" if source.suffix.lower() in ARCHIVES and source.is_file() else hint
            problems.add(str(source), found=found, expected=expected, hint=hint)
    problems.refuse_if_any()
    images = _images(folder)
    by_source = {source: walk(source) for source in _sources(folder) if source.is_dir()}
    if not images:
        where = ", ".join(map(str, _sources(folder))) or "images"
        found = "; ".join(filter(None, ["no image", *map(not_read, by_source.values())]))
        problems.add(where, found=found, expected=f"files that end in {', '.join(sorted(SUFFIXES))}{ALSO}")
    problems.extend(name_problems(f"{name}{path.suffix}" for name, path, _ in images))
    problems.extend(_duplicate_names(images))
    unreadable, mask_like_paths, dark = _check_images(images)
    wrong = [problem for found in unreadable.values() for problem in found]
    problems.extend(left_out(wrong, len(unreadable) < len(images), skip_unreadable=skip_unreadable))
    problems.refuse_if_any()
    for source, kinds in by_source.items():
        report_not_read(source, kinds, (PICTURE,))
    mask_names = {f"{name}{ending}".lower() for name, _, _ in images for ending in MASK_ENDINGS}
    if masks := [path for name, path, _ in images if path in mask_like_paths or name.lower() in mask_names]:
        text = counted(len(masks), "image is a mask by its pixels or name", "images are masks by their pixels or names")
        logger.warning("%s, such as %s: segmented like all others; if so, move them out of the images", text, masks[0])
    if dark:
        text, rest = counted(len(dark), "image is", "images are"), "if 12 bits are stored in 16, scale them to 16 bits"
        logger.warning("%s dark, no value above %d of 255, such as %s: %s", text, DARK, min(dark), rest)
    return [{"image": str(path.resolve()), "id": name} for name, path, _ in images if path not in unreadable]


def image_paths(folder: Sources) -> list[tuple[str, Path]]:
    """Returns the ``id`` and path of each image of :func:`image_folder` without reading them."""
    return [(name, path) for name, path, _ in _images(folder)]


def _sources(folder: Sources) -> list[Path]:
    return [Path(source).expanduser() for source in ([folder] if isinstance(folder, str | Path) else list(folder))]


def _images(folder: Sources) -> list[tuple[str, Path, Path]]:
    """Returns the name, path and source of every image, ordered by source, then by name."""
    found = []
    for source in _sources(folder):
        if source.is_dir():
            paths = walk(source).get(PICTURE, ())
            found += [(path.relative_to(source).with_suffix("").as_posix(), path, source) for path in paths]
        elif kind_of(source) == PICTURE:
            found.append((source.stem, source, source))
    return found


def _duplicate_names(images: Iterable[tuple[str, Path, Path]]) -> Iterator[Problem]:
    """Yields problems of images with one name in two folders or with two suffixes: they share a mask (fault 22)."""
    hint = "rename one image: both masks would have the same name"
    for name, paths in grouped((name, path) for name, path, _ in images).items():
        same_file_name = len({path.name for path in paths}) < len(paths)
        if len(paths) > 1:
            found = " and ".join(str(path) if same_file_name else path.name for path in paths)
            yield Problem(name, found, "one image of that name", hint)


def _check_images(images: list[tuple[str, Path, Path]]) -> tuple[dict[Path, list[Problem]], set[Path], set[Path]]:
    """Returns the problems of images by path, the images that look like masks, and those that are dark."""
    mask_like_paths, dark_paths = set[Path](), set[Path]()

    def check(image: tuple[str, Path, Path]) -> list[Problem]:
        _, path, root = image
        if not Path(os.path.realpath(path)).is_relative_to(root.resolve()):  # realpath does not raise for a loop
            return [Problem(str(path), found="a link that leads out of the folder", expected="a file in the folder")]
        try:
            picture = read_image(path)
            mask_like_paths.update([path] if mask_like(picture) else [])
            dark_paths.update([path] if picture.max() <= DARK else [])
        except Refused as refusal:
            return refusal.problems
        return []

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = progress_bar(pool.map(check, images), total=len(images), desc="reading", unit="image")
        unreadable = {path: problems for (_, path, _), problems in zip(images, found, strict=True) if problems}
    return unreadable, mask_like_paths, dark_paths
