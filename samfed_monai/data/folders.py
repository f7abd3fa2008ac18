"""Plain folders: ``DIR/<site>/images`` and, for masks or weak labels, ``DIR/<site>/masks``.

Masks are matched to images by name; misnamed or swapped folders are recognised (faults 63 and 66).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISDIR

import numpy as np

from samfed_monai.core.errors import Problem, Problems, Refused, closest, did_you_mean, refused
from samfed_monai.core.io import read_json
from samfed_monai.core.text import counted, grouped, normal
from samfed_monai.core.validators import one_of
from samfed_monai.data.checks import stem
from samfed_monai.data.datalist import LabelKind, confine
from samfed_monai.data.image_folder import NIFTI, PICTURE, below, is_ignored, kind_of, not_read, outside, stem_of, walk
from samfed_monai.data.reading import MASK_ENDINGS, SUFFIXES, Unreadable, decode_grey, decode_mask, read_bytes

Paths = Collection[Path]
RULE = "name each mask after its image: <stem>, " + " or ".join(f"<stem>{ending}" for ending in MASK_ENDINGS)
"""Names that the mask of an image may have, for messages."""
FIRST_CHANNEL = "_0000"  # suffix of nnU-Net's images; masks have none
MAX_GUESSES = 20  # unmatched masks searched for one whose image can be guessed


@dataclass(frozen=True)
class Found:
    """An image on disk: path, mask and origin, before its content is read.

    Args:
        image: path relative to the data root, with forward slashes.
        label: its mask, or ``None``.
        origin: folder it was found under (site, or part of an archive), for partitions by folder; in its normal form.
        group: sequence or patient, if known; in its normal form.
        label_kind: one of :class:`~samfed_monai.data.datalist.LabelKind`; ``None`` is a mask.
        sha256: of the image file, set once it has been read.
    """

    image: str
    label: str | None = None
    origin: str = ""
    group: str | None = None
    label_kind: str | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", normal(self.origin))
        object.__setattr__(self, "group", normal(self.group or "") or None)


@dataclass(frozen=True)
class Listing:
    """Images found by a source with several sites.

    Args:
        sites: images by site name, the public folder included; sites with problems may be missing.
        problems: problems found so far, to be refused together with those of the files.
        caveats: sentences on everything that was not read, for the report.
        threshold: grey level to cut masks at that are not binary; ``None`` if all are binary.
    """

    sites: dict[str, list[Found]]
    problems: Sequence[Problem] = ()
    caveats: Sequence[str] = ()
    threshold: int | None = None


def list_images(folder: Path, kind: str = PICTURE) -> list[Path]:
    """Returns the image files below a folder, sorted (:func:`~.image_folder.walk`); none if there is no folder."""
    return list(walk(folder).get(kind, ())) if folder.is_dir() else []


def relative(path: Path, root: Path) -> str:
    """Returns ``path`` relative to ``root`` with forward slashes."""
    return path.relative_to(root).as_posix()


def mask_stem(path: Path) -> str:
    """Returns the stem of the image that a mask belongs to."""
    name = _stem(path)
    ending = next((known for known in MASK_ENDINGS if name.lower().endswith(known)), "")
    return name[: len(name) - len(ending)]


def _stem(path: Path) -> str:
    """Returns the stem of a picture or volume (``.nii.gz`` included)."""
    return normal(stem_of(path)) if kind_of(path) == NIFTI else stem(path.name)


def _suffix(path: Path) -> str:
    """Returns the suffix of a picture or volume (``.nii.gz`` included)."""
    return path.name[len(stem_of(path)) :] or path.suffix


def site_folders(root: Path) -> dict[str, Path]:
    """Returns the sorted folders of ``root`` that contain ``images``, by normalised name; system folders are skipped.

    Raises:
        Refused: the names of two folders look the same.
    """
    paths = sorted(path for path in root.glob("*") if not is_ignored(path.name) and _is_folder(path / "images"))
    problems, folders = Problems(), dict[str, Path]()
    for path in paths:
        if folders.setdefault(normal(path.name), path) != path:
            expected, hint = "one folder for each site", "move the images of one folder into the other"
            problems.add(str(path), found=f"a second that reads {path.name!r}", expected=expected, hint=hint)
    problems.refuse_if_any()
    return folders


def _is_folder(path: Path) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError):  # pathlib, in patterns too, takes an unreadable one for none
        return S_ISDIR(path.stat().st_mode)
    return False


def sites_in(root: Path) -> dict[str, Path]:
    """Returns the folders with ``images`` in the root, or else the root itself as a single site."""
    return site_folders(root) or ({normal(root.resolve().name): root} if (root / "images").is_dir() else {})


def class_value_problems(root: Path, values: Mapping[str, int]) -> Iterator[Problem]:
    """Yields problems of classes with another value or name in nnU-Net's ``dataset.json`` of the root or of a site.

    Args:
        root: folder of sites, or one site's own.
        values: value in masks by class name.
    """
    hint = "give --classes in this order, or --label for each, at all sites; or correct the file"
    known = {name.casefold(): value for name, value in values.items()}
    class_of = {str(value): name for name, value in values.items()}
    for path in dict.fromkeys(folder / "dataset.json" for folder in (root, *sites_in(root).values())):
        with suppress(Refused, AttributeError, LookupError, TypeError, ValueError):  # no such file, or another format
            for key, value in read_json(path)["labels"].items():
                name, number = (value, int(key)) if isinstance(value, str) else (key, value)  # as nnU-Net 1 has it
                if (wanted := known.get(normal(name).casefold(), class_of.get(str(number), number))) != number:
                    expected = f"{wanted}, as given for the classes {', '.join(values)}"
                    yield Problem(f"{path} -> labels#{key}", f"{number} for {name}", expected, hint)


def find_folders(
    root: str | Path, *, public: str | None, output: str | Path | None = None, kind: str = PICTURE, drawn: Paths = ()
) -> Listing:
    """Finds the images and masks of each site's folder.

    Args:
        root: folder of sites; every subfolder with an ``images`` folder in it is one.
        public: the site with the public images; each of them needs a mask (fault 1), and there must be another site.
            ``None``: no images are public; a single site is enough, and ``root`` may be its folder.
        output: file to write later; its folder, if under ``root``, is not reported as a forgotten site.
        kind: of the images and masks, pictures or volumes.
        drawn: further masks, whose files need not exist yet.

    Raises:
        Refused: no such folder, or no site beside the public one.
    """
    root = Path(root)
    folders = site_folders(root) if public is not None else sites_in(root)
    if not folders or (public is not None and public not in folders):
        raise Refused([_no_site_problem(root, list(folders), public, output)])
    names = [path.name for path in folders.values()]
    caveats = folders_not_read(root, names, output=output) if root not in folders.values() else []
    if len(folders) < 2 and public is not None:
        hint = "; ".join(caveats) or "put each site's images into a folder of its own: DIR/<site>/images"
        raise refused(root, found=f"only {public!r}", expected="at least one more site", hint=hint)
    problems = Problems()
    found: dict[str, list[Found]] = {}
    for name, folder in folders.items():
        with problems.collected():
            found[name], unmatched = match_masks(folder, root, name, kind, drawn)
            if name == public:
                problems.extend(without_mask(found[name], _missing_mask_hint(folder, unmatched, found[name], kind)))
            caveats += [*unread_notes(folder, kind), *unmatched_note(name, unmatched, found[name])]
    return Listing(found, tuple(problems), tuple(caveats))


def _missing_mask_hint(site: Path, unmatched: list[Path], found: list[Found], kind: str) -> str:
    """Returns a hint for public images without masks."""
    if near := _misnamed_masks_folder(site, kind):
        return f"{site.name}/{near} was not read: rename it to {site.name}/masks"
    if unmatched and all(entry.label is None for entry in found):
        return f"{RULE}; {rename_hint(unmatched, found)}"
    if (site / "annotations").is_dir():
        return "add the mask, move the image, or, if nothing is to be seen in it, give --without-annotation empty"
    if (site / "masks").is_dir() and (rest := not_read(walk(site / "masks"), (kind,))):
        return f"convert or rename the masks; {site.name}/masks: {rest}"
    return "add the mask, or move the image" + (f"; {RULE}" if all(entry.label is None for entry in found) else "")


def _no_site_problem(root: Path, names: list[str], public: str | None, output: str | Path | None) -> Problem:
    """Returns the problem of a root without sites, or without the public site among ``names``."""
    if not names and (root / "images").is_dir():
        expected, parent = "a folder of sites, DIR/<site>/images and DIR/<site>/masks", root.resolve().parent
        hint = f"give {parent} if it contains other sites; to measure only, add --public none or --test-only"
        return Problem(str(root), found="the folder 'images' of a single site", expected=expected, hint=hint)
    folders = _folders_in(root)
    expected_sites = [str(public)] if names else folders
    misnamed = {site: near for site in expected_sites if (near := near_miss(root / site, "images"))}
    hints = [f"rename {site}/{near} to {site}/images" for site, near in misnamed.items()]
    if root.is_dir():
        hints += folders_not_read(root, {*folders} - ({*expected_sites} - {*misnamed}), output=output)
    hint = f"name one of {names} with --public" if names else "the layout is DIR/<site>/images and DIR/<site>/masks"
    where = root / (public or "<site>") / "images"
    return Problem(str(where), found="no such folder", expected="a folder of images", hint="; ".join(hints) or hint)


def _folders_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def without_mask(found: list[Found], hint: str = "add the mask, or move the image") -> list[Problem]:
    """Returns a problem for every image without a mask (fault 1)."""
    expected = "a mask, as for every public image"
    return [Problem(entry.image, "no mask", expected, hint) for entry in found if entry.label is None]


def unread_notes(site: Path, kind: str = PICTURE) -> list[str]:
    """Returns sentences on what was not read: files of other kinds, and a folder named almost like ``masks``."""
    folders, name = [name for name in ("images", "masks") if (site / name).is_dir()], site.name or site.resolve().name
    sentences = [f"{name}/{folder}: {rest}" for folder in folders if (rest := not_read(walk(site / folder), (kind,)))]
    if near := _misnamed_masks_folder(site, kind):
        advice = f"if it has {name}'s masks, rename it to {name}/masks"
        sentences.append(f"{name} has no folder 'masks', and {name}/{near} was not read: {advice}")
    return [*sentences, *outside(site, [*folders, near or ""])]


def _misnamed_masks_folder(site: Path, kind: str) -> str | None:
    near = near_miss(site, "masks")
    return near if near and list_images(site / near, kind) else None


def match_masks(
    folder: Path, root: Path, origin: str, kind: str = PICTURE, drawn: Paths = ()
) -> tuple[list[Found], list[Path]]:
    """Matches ``folder/images`` with ``folder/masks`` by stem; returns the images, and the masks without an image.

    A mask may also be named ``<stem>_segmentation`` or ``<stem>_mask``, an nnU-Net volume ``<stem>_0000``. Subfolders
    of ``images`` and ``masks``, for instance of patients, must have the same names. Masks in ``drawn`` need not exist.

    Raises:
        Refused: no ``images`` folder, or an empty one; an image has two masks; a mask matches several images; the
            folders are swapped.
    """
    images, mask_paths = (list_images(folder / name, kind) for name in ("images", "masks"))
    if not images:
        found_here = "; ".join(["no images", *unread_notes(folder, kind)])
        expected, hint = f"images ({', '.join(sorted(SUFFIXES))})", "put the site's images into this folder"
        expected = expected if kind == PICTURE else "NIfTI volumes (.nii, .nii.gz)"
        raise refused(folder / "images", found=found_here, expected=expected, hint=hint)
    if kind == PICTURE:
        _refuse_swapped_folders(folder, images, mask_paths)
    mask_paths = sorted({*mask_paths, *(path for path in drawn if (folder / "masks") in path.parents)})
    subfolders = {path: normal(relative(path.parent, folder).partition("/")[2]) for path in [*images, *mask_paths]}
    by_stem = grouped((_stem(path), path) for path in images)
    masks: dict[Path, Path] = {}
    unmatched: list[Path] = []
    problems = Problems()
    for path in mask_paths:
        names = [_stem(path), mask_stem(path)]  # an image's own may end in _mask
        names += [_stem(path) + FIRST_CHANNEL] if kind == NIFTI else []
        candidates = next((by_stem[name] for name in names if name in by_stem), [])
        matches = [image for image in candidates if subfolders[image] == subfolders[path]]
        if not matches:  # one of the two is in no subfolder
            matches = [image for image in candidates if not subfolders[image] or not subfolders[path]]
        if len({subfolders[image] for image in matches}) > 1:
            first, second = (relative(image, root) for image in matches[:2])
            several = f"the name of {len(matches)} images, such as {first} and {second}"
            mask_folder = f"{relative(folder / 'masks', root)}/{subfolders[matches[1]]}"
            hint = f"move it to the folder named like its image's, {mask_folder}"
            problems.add(relative(path, root), found=several, expected="the name of one image", hint=hint)
        elif not matches:
            unmatched.append(path)
        elif (first_mask := masks.setdefault(matches[0], path)) != path:
            found, hint = f"{relative(first_mask, root)} as well", "move the wrong mask away"
            problems.add(relative(path, root), found=found, expected="one mask for each image", hint=hint)
    problems.refuse_if_any()
    labels = {path: relative(mask, root) for path, mask in masks.items()}
    return [Found(relative(path, root), labels.get(path), origin) for path in images], unmatched


def unmatched_note(site: str, masks: Sequence[Path], found: Sequence[Found] = ()) -> list[str]:
    """Returns a sentence on masks without an image, with a naming hint if images are given; none without such masks."""
    if not masks:
        return []
    subject = counted(len(masks), f"mask of {site} belongs", f"masks of {site} belong")
    parts = [f"{subject} to no image", "left out, such as " + " and ".join(sorted(path.name for path in masks)[:2])]
    parts += [f"{RULE}", rename_hint(masks, found)] if found else []
    return ["; ".join(filter(None, parts))]


def rename_hint(masks: Sequence[Path], found: Sequence[Found]) -> str:
    """Suggests a new name for a mask without an image, if possible one that contains an image's stem.

    Args:
        masks: masks without an image.
        found: images; those with a mask are ignored.
    """
    stems = sorted((_stem(Path(entry.image)) for entry in found if entry.label is None), key=len, reverse=True)
    for path in sorted(masks)[:MAX_GUESSES]:
        if (image := mask_stem(path)) in stems:
            files = f"{path.parent.name}/{path.name} and image {image}"
            return f"{files} are in different folders: if they belong together, give both folders one name"
        for image in stems:  # img_1 is in img_1_gt, but not in img_10_gt
            pattern = re.compile(rf"(?<!\d){re.escape(image)}(?!\d)", re.IGNORECASE)
            if pattern.search(_stem(path)):
                names = [mask.name for mask in sorted(masks) if pattern.search(_stem(mask))]
                wanted = f"{image}{_suffix(path)}"
                hint = f"{' and '.join(names[:2])} may both be of {image}: name the right one, or their union, {wanted}"
                return hint if len(names) > 1 else f"for instance, rename {path.name} to {wanted}"
    return f"for instance, rename the mask of {stems[0]} to {stems[0]}{_suffix(sorted(masks)[0])}" if stems else ""


def folders_not_read(root: Path, sites: Collection[str], *, output: str | Path | None = None) -> list[str]:
    """Returns a sentence on every folder under ``root`` that is not a site but holds images.

    Hidden folders, ``masks``, results of runs, and the folder of ``output`` are ignored.

    Args:
        root: folder of sites.
        sites: names of its subfolders that are sites.
        output: file to write later.
    """
    written = Path(output).resolve().parents if output is not None else ()
    sentences = outside(root, _folders_in(root))
    own_images, own_masks = (None if sites else near_miss(root, name) for name in ("images", "masks"))
    for folder in (root / name for name in _folders_in(root) if name not in sites):
        if folder.name.startswith(".") and list_images(folder / "images"):
            sentences.append(f"{folder.name} is hidden and was not read: if it is a site, rename it without the dot")
        is_masks = folder.name.lower() == "masks" or (own_images is not None and folder.name == own_masks)
        if is_ignored(folder.name) or is_masks or folder.resolve() in written:
            continue
        for image in below(folder)[:1]:
            near = near_miss(folder, "images")
            hint = f"rename {folder.name}/{near}" if near else "unpack, convert or move them"
            place = "<site>" if folder.name == "images" else folder.name
            holds = f"{folder.name} has images or archives, such as {relative(image, root)}, but no folder 'images'"
            advice = f"if it is a site, {hint} to {place}/images"
            if folder.name == own_images:
                advice = f"if {root.resolve().name} is one site, rename {own_images} to images"
                advice += f" and {own_masks} to masks" if own_masks else ""
            sentences.append(f"{holds}, and was not read: {advice}")
    return sentences


NEAR_MISSES: dict[str, list[str]] = read_json(Path(__file__).with_name("near_misses.json"))
"""Names of folders (letters and digits only) that other datasets use for ``images`` and ``masks``, or for neither."""
FILES_TO_OPEN = 4  # files of each folder opened to see whether they are masks
_MIN_SIMILARITY = 0.8  # difflib ratio; "maks" has 0.89 with "masks"


def near_miss(folder: Path, wanted: str) -> str | None:
    """Finds the subfolder that was probably meant as ``wanted`` (fault 66): ``labels``, ``Masks``, ``imgs``, …

    Args:
        folder: of a site.
        wanted: ``images`` or ``masks``.

    Returns:
        Its name; ``None`` if there is none, or if ``wanted`` itself exists.
    """
    names = _folders_in(folder)
    others = {name for key, names in NEAR_MISSES.items() if key != wanted for name in (key, *names)}
    for name in names if wanted not in names else ():
        letters = "".join(letter for letter in name.casefold() if letter.isalnum())
        meant = letters == wanted or letters in NEAR_MISSES[wanted]
        if meant or (letters not in others and closest(letters, [wanted], _MIN_SIMILARITY)):
            return name
    return None


def _refuse_swapped_folders(folder: Path, images: Sequence[Path], masks: Sequence[Path]) -> None:
    """Refuses swapped folders (fault 63): the first few files of ``images`` are all masks, and none of ``masks`` is."""
    if [{_is_mask(path) for path in paths[:FILES_TO_OPEN]} for paths in (images, masks)] == [{True}, {False}]:
        found, expected = "masks in 'images', and pictures in 'masks'", "pictures in 'images', masks in 'masks'"
        raise refused(folder, found, expected, "the two folders are swapped: exchange their names")


def _is_mask(path: Path) -> bool | None:
    """Whether a file has exactly two values, black and white; ``None`` if it cannot be read."""
    try:
        return len(decode_mask(read_bytes(path), path.name, None)[1]) == 2
    except Unreadable:
        return None
    except Refused:
        return False


def declare_kinds(
    found: Mapping[str, Sequence[Found]],
    given: Mapping[str, str],
    root: Path,
    *,
    masks_only: Mapping[str, str],
    classes: int = 1,
) -> tuple[dict[str, list[Found]], list[Problem]]:
    """Sets the declared kind of each site's labels.

    At such a site 255 means "not labelled". A label without 255 covers its whole image, so it is a mask and may be used
    for measuring; all others are of the declared kind. A file with only 0 and 255 could be a mask or scribbles without
    foreground; it is refused when it is read.

    Args:
        found: images of each site.
        given: site to one of :class:`LabelKind`; ``""`` is every site that is neither named nor spared.
        root: the data root.
        masks_only: sites whose labels must be masks, with the reason.
        classes: number of classes; their values are 1, 2, ….

    Returns:
        Images of each site, and the problems of the declaration and of the labels. Other problems of a file are found
        when it is read as its declared kind.
    """
    problems = Problems()
    for site, kind in given.items():
        if site and site not in found:
            hint = did_you_mean(site, found)
            problems.add("--label-kind", found=f"the site {site!r}", expected=f"one of {sorted(found)}", hint=hint)
        elif wrong := one_of(f"--label-kind of {site or 'all sites'}", kind, LabelKind):
            problems.extend(wrong)
        elif site in masks_only and kind != LabelKind.MASK:
            hint = "leave the option out, or name another site with --public or --unseen"
            problems.add(f"--label-kind of {site}", found=repr(kind), expected=f"masks: {masks_only[site]}", hint=hint)
    defaults = {} if "" not in given else dict.fromkeys(found.keys() - masks_only.keys(), given[""])
    kinds = {site: kind for site, kind in {**defaults, **given}.items() if site and kind != LabelKind.MASK}
    declared = {site: list(entries) for site, entries in found.items()}
    for site, kind in sorted(kinds.items()) if not len(problems) else ():
        labels = [entry.label for entry in found[site] if entry.label is not None]
        with ThreadPoolExecutor() as pool:
            values = zip(labels, pool.map(lambda label: _label_values(label, root), labels), strict=True)
            weak = {label for label, present in values if not present <= {*range(classes + 1)}}
        declared[site] = [replace(entry, label_kind=kind) if entry.label in weak else entry for entry in found[site]]
        where = f"--label-kind of {site}"
        if labels and not weak:
            masks = f"{counted(len(labels), 'label')} without the value 255, that is, masks only"
            hint = f"save weak labels with 255 in {site}/masks; if {site} has only masks, give --label-kind {site}=mask"
            problems.add(where, found=masks, expected="the value 255 where nothing is labelled", hint=hint)
        elif not labels and site in given:
            hint = f"put labels into {site}/masks, each named after its image"
            problems.add(where, found="no labels", expected=f"labels of the kind {kind}", hint=hint)
    return declared, list(problems)


def _label_values(label: str, root: Path) -> set[int]:
    """Returns the values of a label file; {-1}, which no mask has, if it cannot be read as grey."""
    with suppress(Refused):
        return set(np.unique(decode_grey(read_bytes(confine(root, label)), label)).tolist())
    return {-1}
