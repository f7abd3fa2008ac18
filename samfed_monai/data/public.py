"""Public collections in their official layouts (polyps with their videos, ISIC's archives), and published splits.

CVC-ClinicDB: 612 frames of 29 sequences (Bernal et al., CMIG 43, 2015). The ranges are those of the collection's page
as transcribed by https://datasetninja.com/cvc-612; the ``sequence_id`` column of the PNG release's ``metadata.csv``
gives the same groups. *Checked*: contiguous, disjoint, 612 frames, 29 sequences.

CVC-ColonDB: 380 frames of 15 sequences, one study each (Bernal et al., Pattern Recognition 45(9), 2012,
https://mv.cvc.uab.es/projects/colon-qa/cvccolondb names the 15 studies; 300 frames were released first, 80 frames of
four of the sequences later). *No table is published*: these ranges were read from the frames (each sequence shows one
polyp in one colon) and not confirmed by the authors. *Checked*: contiguous, disjoint, 380 frames, 15 sequences; a
change of scene at every boundary (mean grey difference 28 to 61 between neighbours, against a median of 18 inside); the
60 frames from 149 on that benchmarks call the test set of CVC-300 are sequences 7, 9 and 10. If you have a better
table, give it with ``--groups``.

CVC-300 is the first 300 frames of CVC-ColonDB again (Vazquez et al., J. Healthc. Eng. 2017, part of EndoSceneStill);
numbered 1 to 300 in the release, and 613 to 912 where it follows the 612 of ClinicDB. It shares ColonDB's groups on
purpose: testing on it with a public ColonDB is a leak.

"Seen" means read in public code or pages that open these files, not in the archives themselves, which are not public.
Every collection is also read as ``images/`` and ``masks/`` with the same stems, as benchmarks redistribute them.

- **CVC-ClinicDB** (612, 384 x 288): ``Original/1.tif`` with ``Ground Truth/1.tif``; a PNG release has the same two
  folders below ``PNG/`` beside ``TIF/``. Seen: https://polyp.grand-challenge.org/CVCClinicDB/ as described by
  openmedlab's catalogue, huggingface.co/datasets/berkaytrhn/cvc-clinicdb, loaders that open both.
- **CVC-ColonDB** (300, later 380; 574 x 500): ``1.bmp``, its mask ``p1.bmp``, non-informative regions ``s1.bmp`` and
  contours ``c1.bmp`` (https://mv.cvc.uab.es/projects/colon-qa/cvccolondb). That they are in one folder is not verified;
  any depth is searched. The 380 are redistributed as ``images/*.png`` and ``masks/*.png``.
- **CVC-300** (300, EndoSceneStill): ``bbdd/1.bmp`` with ``gtpolyp/1.bmp``, beside ``gtlumen``, ``gtspecular`` and
  ``border``. Seen: loaders of CVC-EndoSceneStill. Benchmarks' ``CVC-300`` is 60 of these.
- **ETIS-LaribPolypDB** (196, 1225 x 966): ``ETIS-LaribPolypDB/1.tif`` with ``Ground Truth/p1.tif``, both inside a
  folder of the collection's name. Seen: several loaders, https://polyp.grand-challenge.org/EtisLarib/. It is known to
  have 34 sequences, but not which frames belong to each: no groups.
- **EndoTect** (test set of the segmentation task, 200; https://endotect.com):
  ``EndoTect_2020_Segmentation_Test_Dataset/images`` with ``masks``. Seen: name and ``masks`` folder in loaders; the
  kind of its masks was not verified; grey ones are cut like Kvasir-SEG's.
- **Kvasir-SEG** (1,000): ``Kvasir-SEG/images/*.jpg`` with ``masks/*.jpg`` of the same name; ``kavsir_bboxes.json`` (the
  spelling is theirs) is not needed. Masks are JPEG, with dozens of grey levels at the border: cut at 128.
  Seen: https://datasets.simula.no/kvasir-seg/ as described by loaders. No groups are published.
- **PolypGen** (Ali et al., Sci. Data 10, 2023): ``data_C1/images_C1/x.jpg`` with ``masks_C1/x_mask.jpg``, to C6; one
  image of C3 ends in a stray ``_`` or ``]`` which its mask lacks. ``sequenceData/positive/seq1/images_seq1`` with
  ``masks_seq1``, to seq23. Seen: audits and loaders of the v3 release. The centre of each sequence was not verified:
  the sequences are a separate site, each a group. ``negativeOnly`` has no masks and is not read.
- **BKAI-IGH NeoPolyp** (train part 1,000): ``train/train/x.jpeg`` with ``train_gt/train_gt/x.jpeg``; masks are colour
  JPEG, red neoplastic, green not: every colour is polyp, cut at 128 on the brightest channel. ``test`` has no masks.
  Seen: many loaders of the challenge's archive. No groups are published.

Published splits have HSSF's format: ``{client: {"labeled_train", "unlabeled_train", "val_list", "test_list"}}`` with
file names. The lists of HSSF (Ma et al., IEEE TMI 2024) are recognised by SHA-256; their content is not shipped.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

from samfed_monai.core.errors import Problem, Problems, did_you_mean, refused
from samfed_monai.core.io import read_json, sha256_file
from samfed_monai.core.text import counted, normal
from samfed_monai.core.validators import require, schema_problems
from samfed_monai.data.checks import stem
from samfed_monai.data.datalist import Split
from samfed_monai.data.folders import Found, Listing, list_images, match_masks, relative, unmatched_note, unread_notes
from samfed_monai.data.image_folder import is_ignored, outside, report_not_read, walk
from samfed_monai.data.reading import SUFFIXES, Unreadable, read_image

logger = logging.getLogger(__name__)


def simplify(name: str) -> str:
    """Returns a folder's name in lower case, without spaces, dashes, dots and underscores."""
    return re.sub(r"[\W_]", "", normal(name)).lower()


@dataclass(frozen=True)
class Pairing:
    """A layout of images and masks in folders.

    Args:
        images: regular expression on the plain name of the image folder; named groups are for ``site`` and ``group``
            below.
        masks: regular expression on the plain name of the mask folder beside it; ``None`` if both share a folder.
        image: regular expression on an image's stem; its first group is the key that image and mask share.
        mask: regular expression on a mask's stem; its first group is the key.
        site: suffix for the collection's name, a template with the named groups of ``images``.
        group: group of every image in the folder, a template with the named groups of ``images``.
    """

    images: str
    masks: str | None
    image: str = r"(.+)"
    mask: str = r"(.+?)(?:_mask|_segmentation)?"
    site: str = ""
    group: str = ""


PLAIN = Pairing("images?", "masks?")
"""The layout in which benchmarks redistribute every collection."""


@dataclass(frozen=True)
class Collection:
    """A published collection of polyp images.

    Args:
        name: name of its site.
        folders: regular expressions on the plain name of its folder or archive.
        pairings: its official layouts, best first.
        threshold: grey level to cut its masks at; ``None`` if they are binary.
        videos: name of the table of its videos and prefix of their groups; empty if no table is published.
        numbered_from: offset that is subtracted from larger frame numbers before the table is used.
        frames: its largest frame number in the table.
    """

    name: str
    folders: tuple[str, ...]
    pairings: tuple[Pairing, ...] = ()
    threshold: int | None = None
    videos: str = ""
    numbered_from: int = 0
    frames: int = 1000

    def sequence(self, frame: str) -> str | None:
        """Returns the group of an image whose key is a frame number of a known video, else ``None``."""
        number = int(frame) if frame.isascii() and frame.isdigit() else 0
        if 0 < self.numbered_from < number:
            number -= self.numbered_from
        for video, first, last in VIDEOS.get(self.videos, ()):
            if first <= number <= min(last, self.frames):
                return f"{self.videos}_seq{video}"
        return None


_TABLES = read_json(Path(__file__).with_name("polyp.json"))
VIDEOS: dict[str, list[tuple[int, int, int]]] = _TABLES["videos"]
"""Number, first and last frame of each video; ColonDB's 4, 8, 12 and 13 are only in the later release."""
COLLECTIONS = tuple(
    Collection(name, **{**of, "pairings": tuple(Pairing(**each) for each in of.get("pairings", ()))})
    for name, of in _TABLES["collections"].items()
)


UNPACK = "unpack the archives; --unpack does this for zip files"
MAX_COPY_DIFFERENCE = 4.0  # mean difference of 16 x 16 pixels in 0..255; JPEG and resizing change it by less than 1
DEPTH = 4  # the deepest official layout: PolypGen's sequenceData/positive/seq1/images_seq1


def find_polyps(root: str | Path) -> Listing:
    """Finds the known collections (:data:`COLLECTIONS`) under a folder, each in its own folder.

    A collection is a site (PolypGen: each of its centres), in the order of the registry.

    Args:
        root: folder of collections; case and punctuation of names are ignored (``cvc_clinicdb``, ``Kvasir-SEG``).

    Raises:
        Refused: no collection, one in two folders, or a folder with a known name but an unknown layout.
    """
    root = Path(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    problems, unknown = Problems(), list[str]()
    chosen: dict[str, Path] = {}
    for folder in folders:
        collection = collection_of(folder.name)
        if collection is None:
            unknown += [] if is_ignored(folder.name) else [folder.name]
        elif (other := chosen.setdefault(collection.name, folder)) != folder:
            found, hint = f"{collection.name} also in the folder {other.name}", "move one of the folders elsewhere"
            problems.add(folder.name, found=found, expected="each collection once", hint=hint)
    sites: dict[str, list[Found]] = {}
    present = [one for one in COLLECTIONS if one.name in chosen]
    for collection in present:
        with problems.collected():
            sites |= find_collection(collection, chosen[collection.name], root)
    problems.refuse_if_any()
    if not sites:
        archives = sorted(path.name for path in root.glob("*") if path.suffix.lower() in (".zip", ".rar", ".7z"))
        found = f"only the archives {archives}" if archives else f"the folders {[path.name for path in folders]}"
        hint = UNPACK if archives else "rename each collection's folder to its name"
        names = [collection.name for collection in COLLECTIONS]
        raise refused(root, found=found, expected=f"folders named after any of {names}", hint=hint)
    caveats = [f"the folder {name} is not a known collection and was not read" for name in unknown]
    caveats += outside(root, [path.name for path in folders])
    return Listing(sites, (), caveats, max((one.threshold for one in present if one.threshold), default=None))


def collection_of(name: str) -> Collection | None:
    """Returns the collection with a folder of that name, or ``None``."""
    name = simplify(name)
    return next((each for each in COLLECTIONS if any(re.fullmatch(folder, name) for folder in each.folders)), None)


def find_collection(collection: Collection, folder: Path, root: Path) -> dict[str, list[Found]]:
    """Returns the images of a collection by site, from the first of its layouts that the folder has.

    Args:
        collection: the collection.
        folder: its folder.
        root: the data root that paths are relative to.

    Raises:
        Refused: none of the layouts, a key twice in a folder, or different images with one key in two folders.
    """
    folders = _subfolders(folder)
    sites: dict[str, list[Found]] = {}
    used, copies, unmatched = dict[tuple[str, str, str], str](), dict[str, str](), list[Path]()
    for pairing in (*collection.pairings, PLAIN):
        if sites and not pairing.site:
            break
        for images in folders:
            match = re.fullmatch(pairing.images, simplify(images.name))
            masks = _masks_folder(images, pairing, match) if match else None
            if match is None or masks is None:
                continue
            site = collection.name + pairing.site.format(**{key: of.upper() for key, of in match.groupdict().items()})
            group = pairing.group.format(**match.groupdict())
            found, without_image = _pair_folders(images, masks, pairing, collection, root, site, group)
            keys = {entry.image: (site, group, stem(entry.image).lstrip("0")) for entry in found}
            if repeated := {image: used[key] for image, key in keys.items() if key in used}:
                copies |= repeated  # copies of the same images, for instance PNG beside TIF
                subject = counted(len(repeated), "image")
                logger.info("%s: %s of %s left out as duplicates by name", site, subject, relative(images, root))
            if new := [entry for entry in found if entry.image not in repeated]:
                unmatched += without_image
                used |= {keys[entry.image]: entry.image for entry in new}
                sites.setdefault(site, []).extend(new)
    _refuse_different_copies(copies, root)
    if not sites:
        hint = "see the layouts in the documentation, or use images/ and masks/ with equal stems"
        found_here = f"the folders {[relative(path, folder) for path in folders[1:6]]}"
        raise refused(folder, found_here, f"the released layout of {collection.name}", hint)
    _report_rest(folder, root, [entry for entries in sites.values() for entry in entries], unmatched)
    return dict(sorted(sites.items()))


def _refuse_different_copies(copies: Mapping[str, str], root: Path) -> None:
    """Refuses images that differ from the image with the same name in another folder.

    Format and size may differ. Files that cannot be decoded are reported when the list is checked.

    Args:
        copies: image to the other image with its name.
        root: the data root.
    """
    problems, hint = Problems(), "rename the files of one of the two folders"
    for names in copies.items():
        with suppress(Unreadable):
            small = [Image.fromarray(read_image(root / each)).resize((16, 16), Image.Resampling.BOX) for each in names]
            if max(ImageStat.Stat(ImageChops.difference(*small)).mean) > MAX_COPY_DIFFERENCE:
                problems.add(names[0], f"a different image from {names[1]}", "one image of each name", hint)
    problems.refuse_if_any()


def _subfolders(folder: Path) -> list[Path]:
    """Returns the folder and its subfolders, breadth first, without hidden ones."""
    level, folders = [folder], [folder]
    for _ in range(DEPTH):
        below = [path for parent in level for path in sorted(parent.iterdir()) if path.is_dir()]
        level = [path for path in below if not is_ignored(path.name)]
        folders += level
    return folders


def _masks_folder(images: Path, pairing: Pairing, match: re.Match[str]) -> Path | None:
    if pairing.masks is None:
        return images
    wanted = pairing.masks.format(**match.groupdict())
    siblings = (path for path in sorted(images.parent.iterdir()) if path.is_dir() and path != images)
    sibling = next((path for path in siblings if re.fullmatch(wanted, simplify(path.name))), None)
    if sibling is not None or simplify(images.parent.name) != simplify(images.name):
        return sibling
    # train/train beside train_gt/train_gt, from archives that contain one folder each
    return _masks_folder(images.parent, pairing, match)


def _pair_folders(
    images: Path, masks: Path, pairing: Pairing, collection: Collection, root: Path, site: str, group: str
) -> tuple[list[Found], list[Path]]:
    """Returns images with their masks, and masks without an image."""
    image_of, mask_of = _paths_by_key(images, pairing.image, root), _paths_by_key(masks, pairing.mask, root)
    if pairing.masks is None and not image_of.keys() & mask_of.keys():
        return [], []
    labels = {key: relative(path, root) for key, path in mask_of.items() if key in image_of}
    return [
        Found(relative(path, root), labels.get(key), site, group or collection.sequence(key))
        for key, path in image_of.items()
    ], [path for key, path in mask_of.items() if key not in image_of]


def _paths_by_key(folder: Path, pattern: str, root: Path) -> dict[str, Path]:
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    inner = next((path for path in subfolders if simplify(path.name) == simplify(folder.name)), folder)
    paths = [path for path in sorted(inner.iterdir()) if path.suffix.lower() in SUFFIXES]
    matches = [(path, re.fullmatch(pattern, stem(path.name))) for path in paths if not is_ignored(path.name)]
    problems, hint = Problems(), "delete or rename one of the files"
    by_key = _first_by_name(((match[1], path) for path, match in matches if match), root, problems, hint)
    problems.refuse_if_any()
    return dict(sorted(by_key.items()))


def _first_by_name(named: Iterable[tuple[str, Path]], root: Path, problems: Problems, hint: str) -> dict[str, Path]:
    by_name: dict[str, Path] = {}
    for name, path in named:
        if (first := by_name.setdefault(name, path)) != path:
            problems.add(relative(path, root), f"{name} also in {relative(first, root)}", "each name once", hint)
    return by_name


IMAGE = re.compile(r"(ISIC_\d{7}(?:_downsampled)?)\.jpe?g", re.IGNORECASE)
MASK = re.compile(r"(ISIC_\d{7}(?:_downsampled)?)_segmentation\.png", re.IGNORECASE)


def find_isic(root: str | Path, *, read: Sequence[Path] = ()) -> list[Found]:
    """Finds all ISIC images and masks under a folder, at any depth; other files are counted in a warning.

    Args:
        root: folder that one year's archives were unpacked into. An image's origin is the archive's folder.
        read: files not to count, for instance unpacked archives.

    Raises:
        Refused: no ISIC image, or one image in two places (fault 22: two years in one folder).
    """
    root = Path(root)
    images, masks = isic_files(root)
    if not images:
        archives = sorted(path.name for path in root.glob("*.zip"))
        hint = UNPACK if archives else "for images/ and masks/ folders use `samfed prepare folders`"
        found = f"no ISIC image, but the archives {archives}" if archives else "no file such as ISIC_0000000.jpg"
        raise refused(root, found=found, expected="the official layout, unpacked", hint=hint)
    places = {name: relative(path, root) for name, path in sorted(images.items())}
    labels = {name: relative(path, root) for name, path in masks.items() if name in images}
    origins = {name: path.partition("/")[0] if "/" in path else "" for name, path in places.items()}
    entries = [Found(path, labels.get(name), origins[name]) for name, path in places.items()]
    _report_rest(root, root, entries, [path for name, path in masks.items() if name not in images], read)
    return entries


def isic_files(root: Path, unpacked: Iterable[Path] = ()) -> tuple[dict[str, Path], dict[str, Path]]:
    """Returns ISIC's images and masks below ``root`` by image, with those of archives that will be ``unpacked`` there.

    Raises:
        Refused: one image or mask in two places.
    """
    problems, files = Problems(), sorted({*list_images(root), *unpacked})
    images, masks = (_by_id(files, pattern, root, problems) for pattern in (IMAGE, MASK))
    problems.refuse_if_any()
    return images, masks


def _report_rest(
    folder: Path, root: Path, found: Iterable[Found], unmatched: Sequence[Path], also_read: Sequence[Path] = ()
) -> None:
    """Logs the masks without an image, and the number of files below a folder that were not read."""
    files = [*unmatched, *also_read, *(root / name for entry in found for name in (entry.image, entry.label) if name)]
    read = {place for path in files for place in (path, *path.parents)}  # with parents, as a folder may be a link
    for sentence in unmatched_note(folder.resolve().name, unmatched):
        logger.warning("%s", sentence)
    unread = {kind: [path for path in paths if path not in read] for kind, paths in walk(folder).items()}
    report_not_read(folder, unread)


def _by_id(files: list[Path], pattern: re.Pattern[str], root: Path, problems: Problems) -> dict[str, Path]:
    hint = "move one of the folders out of DIR if it is a copy; if DIR has two years' archives, give one year's folder"
    matches = ((pattern.fullmatch(path.name), path) for path in files)
    named = ((match[1].upper().replace("_DOWNSAMPLED", "_downsampled"), path) for match, path in matches if match)
    return _first_by_name(named, root, problems, hint)


KNOWN: dict[str, str] = _TABLES["lists"]
"""Names of HSSF's lists by their SHA-256."""
COMBINED = {"EndoTect-ETIS": ("EndoTect", "ETIS-LaribPolypDB")}  # a client of HSSF with two collections
PARTS = {
    "labeled_train": Split.PUBLIC,
    "unlabeled_train": Split.UNLABELLED,
    "val_list": Split.VALIDATION,
    "test_list": Split.TEST,
}
PUBLISHED_SCHEMA = read_json(Path(__file__).with_name("published.schema.json"))
"""JSON schema of a published list: by client, parts that are lists of file names."""


@dataclass(frozen=True)
class Coverage:
    """How many images of one published part were found.

    Args:
        client: name of the client in the list.
        split: the split of the part's images.
        listed: number of names in the list.
        missing: names without a matching file.
    """

    client: str
    split: Split
    listed: int
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Published:
    """A published list matched to files: images by client and split (public ones under ``""``), and its coverage."""

    name: str
    places: dict[tuple[str, Split], list[Found]]
    coverage: list[Coverage]


def find_published(split: str | Path, root: str | Path, folders: Mapping[str, str] | None = None) -> Published:
    """Matches a published list to the files under a data root.

    Args:
        split: the list's JSON file. A file named like a list of :data:`KNOWN` with other content is called "changed"
            (fault 29).
        root: either one pool for all clients (``images`` and ``masks``, or an unpacked ISIC archive), or one folder
            per client with ``images`` and ``masks`` or in a polyp collection's official layout, named like the client
            (ignoring case and punctuation; ``Kvasir`` finds ``kvasir_seg``). Groups are the collection's sequences, if
            these are known.
        folders: folder under ``root`` by client, for folders not named like their client.

    Raises:
        Refused: no such list, a list in another format, or none of its images found.
    """
    path, root = Path(split), Path(root)
    clients: dict[str, dict[str, list[str]]] = read_json(path)
    require(schema_problems(clients, PUBLISHED_SCHEMA, path.name))
    clients = {normal(client): parts for client, parts in clients.items()}
    pools = _images_of_clients(list(clients), root, folders or {})
    places: dict[tuple[str, Split], list[Found]] = {}
    coverage = []
    for client, parts in clients.items():
        pool = pools.get(client, {})
        for part, names in parts.items():
            target = PARTS[part]
            missing = [name for name in names if stem(name) not in pool]
            available = [pool[stem(name)] for name in names if stem(name) in pool]
            coverage += [Coverage(client, target, len(names), missing)] if names else []
            if available:
                places.setdefault(("" if target is Split.PUBLIC else client, target), []).extend(available)
    if not places:
        hint = "the layout is ROOT/images with ROOT/masks, or such a folder per client; give other names with --folder"
        raise refused(root, found=f"none of the images of {path.name}", expected="at least one", hint=hint)
    changed = f"{path.stem} (changed)" if path.stem in KNOWN.values() else path.stem
    return Published(KNOWN.get(sha256_file(path), changed), places, coverage)


def _images_of_clients(clients: list[str], root: Path, folders: Mapping[str, str]) -> dict[str, dict[str, Found]]:
    """Returns the images of each client by their stems."""
    if unknown := sorted(folders.keys() - set(clients)):
        raise refused("--folder", str(unknown), f"clients among {clients}", "for instance Kvasir=kvasir_seg")
    folder_names = {normal(path.name): path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else {}
    present = sorted(folder_names.values())
    folders = {client: folder_names.get(normal(name), name) for client, name in folders.items()}
    if lacking := [(client, name) for client, name in folders.items() if not (root / name).is_dir()]:
        client, name = lacking[0]
        raise refused(f"--folder {client}", f"no folder {name!r}", f"a folder in {root}", did_you_mean(name, present))
    if (root / "images").is_dir() and not folders:
        return dict.fromkeys(clients, _by_stem(_match_masks(root, root, "")))
    pools, collections = {}, {name: collection_of(name) for name in present}
    for client in clients:
        folder = folders.get(client) or _folder_named_like(client, present)
        parts = COMBINED.get(client, ())
        names = [folder] if folder else [name for name, known in collections.items() if known and known.name in parts]
        collection = collection_of(client)
        if found := [entry for name in names for entry in _images_in(root / name, root, client)]:
            pools[client] = _by_stem(found, collection.numbered_from if collection else 0)
    return pools or dict.fromkeys(clients, _by_stem(find_isic(root)))


def _match_masks(folder: Path, root: Path, origin: str) -> list[Found]:
    found, unmatched = match_masks(folder, root, origin)
    for sentence in [*unread_notes(folder), *unmatched_note(folder.name, unmatched)]:
        logger.warning("%s", sentence)
    return found


def _by_stem(found: list[Found], shift: int = 0) -> dict[str, Found]:
    count = Counter(stem(entry.image) for entry in found)
    hint = "a published list names images by their stems: move away the images that are not in the list"
    repeated = [entry.image for entry in found if count[stem(entry.image)] > 1]
    require(Problem(image, "a stem that other images also have", "each stem once", hint) for image in repeated)
    pool = {stem(entry.image): entry for entry in found}
    numbers = [name for name in pool if shift and name.isdecimal() and int(name) <= shift]
    return {str(int(name) + shift): pool[name] for name in numbers} | pool


def _images_in(folder: Path, root: Path, client: str) -> list[Found]:
    collection = collection_of(folder.name) or collection_of(client)
    if (folder / "images").is_dir():
        found = _match_masks(folder, root, client)
        return [replace(each, group=collection.sequence(stem(each.image))) for each in found] if collection else found
    if collection is None or not folder.is_dir():
        return []
    return [entry for entries in find_collection(collection, folder, root).values() for entry in entries]


def _folder_named_like(client: str, folders: list[str]) -> str | None:
    """Returns the only folder whose name equals, or else starts with, the client's, ignoring case and punctuation."""
    wanted = simplify(client)
    exact = [folder for folder in folders if simplify(folder) == wanted]
    longer = [folder for folder in folders if simplify(folder).startswith(wanted)]
    return next((found[0] for found in (exact, longer) if len(found) == 1), None)
