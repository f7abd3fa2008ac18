"""Which files of a folder count: one walk for all commands, and a sentence on what it left out."""

from __future__ import annotations

import logging
import mimetypes
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from samfed_monai.data.dicom import no_image
from samfed_monai.data.reading import SUFFIXES

logger = logging.getLogger(__name__)

PICTURE, NIFTI, DICOM, VIDEO = "picture", "NIfTI volume", "DICOM object", "video"
NIFTI_SUFFIXES = (".nii.gz", ".nii")
DICOM_SUFFIXES = (".dcm", ".dicom")

_SYSTEM = frozenset(
    """__macosx|.ds_store|.appledouble|.trashes|.trash|.fseventsd|.temporaryitems|.spotlight-v100|.documentrevisions-v100
.apdisk|.volumeicon.icns|icon\r|network trash folder|$recycle.bin|recycler|recycled|system volume information
thumbs.db|ehthumbs.db|ehthumbs_vista.db|desktop.ini|@eadir|@tmp|@recycle|@recently-snapshot|@appstore|#recycle
#snapshot|.@__thumb|@sharebin|.snapshot|.snapshots|.zfs|~snapshot|lost+found|.directory|.nfs""".replace(
        "\n", "|"
    ).split("|")
)
"""What macOS, Windows, Linux and storage boxes (Synology, QNAP, Asustor, NetApp) put beside files, in small letters."""
_PREFIXES = ("._", ".trash-", ".nfs", ".fuse_hidden")

FileKinds = Mapping[str, Sequence[Path]]
"""Files by kind: ``PICTURE``, ``NIFTI``, ``DICOM``, or another (``GIF``, ``video``, ``text``, ``hidden``)."""


def is_system(name: str) -> bool:
    """Whether a file or folder belongs to an operating system or a storage box."""
    return name.casefold() in _SYSTEM or name.casefold().startswith(_PREFIXES)


def is_left_out(name: str) -> bool:
    """Whether a file or folder is hidden, or a system's."""
    return name.startswith(".") or is_system(name)


def kind_of(path: Path) -> str:
    """A file's kind (:data:`FileKinds`), by its name; of a name without a suffix of ours, by its first bytes."""
    name = path.name.lower()
    if path.suffix.lower() in SUFFIXES:
        return PICTURE
    if name.endswith(NIFTI_SUFFIXES):
        return NIFTI
    head = b"" if name.endswith(DICOM_SUFFIXES) else _head(path)
    if name.endswith(DICOM_SUFFIXES) or head[128:] == b"DICM":
        return DICOM
    picture = next((kind for start, kind in _STARTS.items() if head.startswith(start)), None)
    if picture:
        return f"{picture} without its suffix"
    major = (_TYPES.guess_type(name)[0] or "").partition("/")[0]
    if major in ("audio", "text", VIDEO):
        return major
    ending = path.suffix[1:]
    return ending.upper() if ending.isalnum() and not ending.isdigit() and len(ending) < 9 else "of an unknown kind"


_TYPES = mimetypes.MimeTypes()  # Python's own table, without the machine's
_TYPES.add_type("video/x-matroska", ".mkv")


_STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF"}


def _head(path: Path) -> bytes:
    try:
        if path.is_file():  # no pipe, which would have to be waited for
            with path.open("rb") as stream:
                return stream.read(132)
    except OSError:
        pass
    return b""


def walk(folder: Path) -> FileKinds:
    """All files below a folder, sorted, by kind; files and folders of systems are not there at all.

    Hidden files and folders, and links to folders, are counted (``hidden``, ``linked folder``) and not looked into.

    Raises:
        OSError: a folder that cannot be listed.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for place, folders, files in os.walk(folder, onerror=_raise):
        here = Path(place)
        inside = [name for name in folders if not is_system(name)]
        found["hidden"] += [here / name for name in (*inside, *files) if name.startswith(".") and not is_system(name)]
        folders[:] = [name for name in inside if not name.startswith(".")]
        found["linked folder"] += [here / name for name in folders if (here / name).is_symlink()]
        for name in files:
            if not is_left_out(name):
                found[kind_of(here / name)].append(here / name)
    return {kind: sorted(paths) for kind, paths in found.items() if paths}


def _raise(error: OSError) -> None:
    raise error


def volumes_in(sources: Iterable[Path]) -> tuple[list[tuple[str, Path]], FileKinds]:
    """Every volume and DICOM image in files and folders, and what else is in the folders but pictures.

    DICOM objects of folders that have no image are among the latter, by what they are.

    Returns:
        Name and path of each, a name being the path below its folder without the suffix, as images have it; and other
        files by kind.
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
                other = no_image(path) if kind == DICOM else ""
                if other:
                    others[f"DICOM without an image: {other}"].append(path)
                elif kind in (NIFTI, DICOM):
                    volumes.append(path)
                elif kind != PICTURE:
                    others[kind].append(path)
        found += [((path.relative_to(source).parent / stem_of(path)).as_posix(), path) for path in sorted(volumes)]
    return found, others


def stem_of(path: Path) -> str:
    """The file's name without ``.nii.gz``, ``.nii``, ``.dcm`` or ``.dicom``."""
    lower = path.name.lower()
    suffix = next((each for each in (*NIFTI_SUFFIXES, *DICOM_SUFFIXES) if lower.endswith(each)), "")
    return path.name[: len(path.name) - len(suffix)]


def not_read(found: FileKinds, read: Collection[str] = ()) -> str:
    """How many files of which kind were not read, such as ``not read: 2 GIF (a.gif, …)``; empty where all were.

    Args:
        found: files by kind.
        read: kinds that are read.
    """
    left = [(len(paths), kind, paths[0].name) for kind, paths in sorted(found.items()) if paths and kind not in read]
    kinds = ", ".join(f"{count} {kind} ({name}{', …' if count > 1 else ''})" for count, kind, name in left)
    return f"not read: {kinds}" if kinds else ""


def report_not_read(where: object, found: FileKinds, read: Collection[str] = ()) -> None:
    """Logs a warning with :func:`not_read`, if there is anything to say."""
    sentence = not_read(found, read)
    if sentence:
        logger.warning("%s: %s", where, sentence)
