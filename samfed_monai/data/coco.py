"""COCO annotations: masks to run lengths, and polygons and run lengths to mask files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from samfed_monai.core.errors import Problems, Refused, refused, with_skip_hint
from samfed_monai.core.io import Created, read_json, require_writable, write_new
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.text import clipped, counted, grouped, normal
from samfed_monai.core.validators import installed, is_number, one_of, require, schema_problems
from samfed_monai.data.checks import stem
from samfed_monai.data.folders import list_images, relative, sites_in
from samfed_monai.data.partitions import parts_in_common
from samfed_monai.data.reading import png_of, read_image

Mask = NDArray[np.bool_]

OUTSIDE = 1.0
"""Pixels that an outline may extend beyond its picture, as hand-drawn ones do; it is clipped there."""


def annotations_of(mask: NDArray[Any]) -> Iterator[dict[str, Any]]:
    """Yields an annotation (``segmentation``, ``area``, ``bbox``, no id) for each connected component of a mask.

    Components (8 neighbours) are compressed run lengths, from which :func:`mask_of` restores the same mask. With
    several classes they are ordered by class, and their ``category_id`` is the class value.

    Args:
        mask: (H, W) bool, or integer class values.
    """
    from pycocotools import mask as coco
    from scipy.ndimage import label

    if mask.dtype != bool:
        for value in range(1, int(mask.max(initial=0)) + 1):
            yield from ({"category_id": value, **annotation} for annotation in annotations_of(mask == value))
        return
    pieces, number = label(mask, np.ones((3, 3)))
    for index in range(1, number + 1):
        runs = coco.encode(np.asfortranarray(pieces == index, dtype=np.uint8))
        size, box = [int(side) for side in runs["size"]], [int(side) for side in coco.toBbox(runs)]
        segmentation = {"size": size, "counts": runs["counts"].decode("ascii")}
        yield {"segmentation": segmentation, "area": int(coco.area(runs)), "bbox": box, "iscrowd": 0}


def coco_of(
    pictures: Sequence[Mapping[str, Any]], annotations: Sequence[Sequence[Mapping[str, Any]]], labels: Sequence[str]
) -> Any:
    """Returns the content of a COCO file; ids count from 1 in the given order.

    Args:
        pictures: ``file_name``, ``height`` and ``width`` of each, and further keys of its entry.
        annotations: those of each picture, from :func:`annotations_of`; the default ``category_id`` is 1.
        labels: names of the categories.
    """
    listed = [(number, each) for number, of_picture in enumerate(annotations, start=1) for each in of_picture]
    entries = [{"id": id, "image_id": of, "category_id": 1, **each} for id, (of, each) in enumerate(listed, start=1)]
    return {
        "info": {"description": "masks of samfed infer"},
        "images": [{"id": number, **picture} for number, picture in enumerate(pictures, start=1)],
        "annotations": entries,
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels, start=1)],
    }


@dataclass(frozen=True)
class AnnotatedImage:
    """A picture of a COCO file with its annotations.

    Args:
        where: the COCO file, for messages.
        file_name: as in the COCO file.
        height: pixels.
        width: pixels.
        annotations: as in the COCO file, by id (or by place, without one), with the name of their ``category``.
        names: all categories of the COCO file.
    """

    where: Path
    file_name: str
    height: int
    width: int
    annotations: dict[Any, Mapping[str, Any]] = field(default_factory=dict)
    names: Collection[str] = ()

    def mask(self) -> Mask:
        """Returns the union of all annotations' pixels, crowds included.

        Raises:
            Refused: all problems of the annotations, for instance an outline that contradicts its box or area.
        """
        problems, drawn = Problems(), np.zeros((self.height, self.width), bool)
        for number, annotation in self.annotations.items():
            with problems.collected():
                place = f"{self.where}: annotation {number} of {self.file_name}"
                mask = mask_of(annotation.get("segmentation"), self.height, self.width, where=place)
                for found, expected in _contradictions(annotation, mask):
                    hint = "they belong to different images or sizes, or a polygon is a hole, which needs run lengths"
                    problems.add(place, found=found, expected=expected, hint=hint)
                drawn |= mask
        problems.refuse_if_any()
        return drawn


SLACK, LEAST_SLACK = 0.1, 2.0
"""Tolerance between a box and its outline, as programs round differently: share of the longer side, pixels (ours)."""


def _contradictions(annotation: Mapping[str, Any], mask: Mask) -> Iterator[tuple[str, str]]:
    """Yields (found, expected) where ``bbox`` or ``area`` contradicts the outline; values of 0 are ignored."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    drawn = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else [0, 0, 0, 0]
    number = int(mask.sum())
    box: Any = annotation.get("bbox")
    area: Any = annotation.get("area")
    sides, areas = np.subtract(drawn[2:], drawn[:2]), [number]
    if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) and box[2] > 0 and box[3] > 0:
        corners = np.clip([box[0], box[1], box[0] + box[2], box[1] + box[3]], 0, [*mask.shape[::-1]] * 2)
        areas.append(box[2] * box[3])  # some programs write the box's area
        if np.abs(corners - drawn).max() > max(LEAST_SLACK, SLACK * max(box[2], box[3])):
            outline_box = [int(side) for side in (*drawn[:2], *sides)]
            yield f"bbox {box}", f"about {outline_box}, x, y, width and height of the outline"
    slack = max(10, SLACK * number, sides.sum())
    if is_number(area) and area > 0 and min(abs(area - possible) for possible in areas) > slack:
        yield f"area {area:g}", f"about {number} pixels, as in the outline"


COCO_SCHEMA: dict[str, Any] = read_json(Path(__file__).with_name("coco.schema.json"))
"""JSON schema of the parts of a COCO file that are read."""


def read_coco(path: Path) -> list[AnnotatedImage]:
    """Returns the pictures of a COCO file in order. Ids may be numbers (also 3.0) or strings (``"3"`` is 3).

    Raises:
        Refused: the content does not match :data:`COCO_SCHEMA`, or has duplicate or dangling ids.
    """
    content, problems = read_json(path, name=str(path)), Problems()  # sites have files of one name
    require(schema_problems(content, COCO_SCHEMA, str(path)))
    pictures: dict[Any, AnnotatedImage] = {}
    names = Counter(entry["file_name"] for entry in content["images"])
    for place, entry in enumerate(content["images"]):
        picture = AnnotatedImage(path, entry["file_name"], int(entry["height"]), int(entry["width"]))
        if pictures.setdefault(_id(entry["id"]), picture) is not picture or names[picture.file_name] > 1:
            problems.add(f"{path} -> images#{place}", f"{picture.file_name!r} or its id twice", "each image once")
    category_names: dict[Any, str] = {}
    for place, entry in enumerate(content["categories"]):
        if (key := _id(entry["id"])) in category_names:
            problems.add(f"{path} -> categories#{place}", found=f"id {key!r} a second time", expected="a unique id")
        category_names.setdefault(key, normal(str(entry.get("name", key))))
    for place, annotation in enumerate(content["annotations"]):
        image, category = _id(annotation["image_id"]), _id(annotation["category_id"])
        number = f"#{place}" if annotation.get("id") is None else _id(annotation["id"])
        if category not in category_names:
            found, expected = f"category_id {category!r}", f"the id of a category in the file, {list(category_names)}"
        elif image not in pictures:
            found, expected = f"image_id {image!r}", "the id of an image in the file"
        elif number in pictures[image].annotations:
            found, expected = f"id {number!r} a second time for this picture", "a unique id"
        else:
            pictures[image].annotations[number] = {**annotation, "category": category_names[category]}
            continue
        problems.add(f"{path} -> annotations#{place}", found=found, expected=expected, hint="export the file again")
    problems.refuse_if_any()
    return [replace(picture, names=category_names.values()) for picture in pictures.values()]


def _id(value: float | str) -> int | str:
    """Normalises an id: whole numbers become int."""
    if not isinstance(value, str):
        return int(value)
    number = re.fullmatch(r"(0|[1-9]\d*)(?:\.0+)?", value.strip())
    return int(number[1]) if number else value.strip()


def select_categories(pictures: Sequence[AnnotatedImage], categories: Sequence[str]) -> list[AnnotatedImage]:
    """Returns the pictures with only the annotations that are foreground.

    Args:
        pictures: from :func:`read_coco`, of one or several files.
        categories: names of the foreground categories; empty takes the only one that has annotations.

    Raises:
        Refused: no category is named, but several have annotations; or a name that no file has.
    """
    known = sorted({name for picture in pictures for name in picture.names})
    require(*(one_of("--category", name, known) for name in categories))
    used = {each["category"]: str(image.where) for image in pictures for each in image.annotations.values()}
    if len(used) > 1 and not categories:
        found, where = f"annotations of several categories: {', '.join(sorted(used))}", dict.fromkeys(used.values())
        hint = "name the foreground categories: --category NAME[,NAME]"
        raise refused(" and ".join(where), found=found, expected="one category", hint=hint)
    wanted = categories or used
    return [
        replace(image, annotations={key: each for key, each in image.annotations.items() if each["category"] in wanted})
        for image in pictures
    ]


def mask_of(segmentation: Any, height: int, width: int, *, where: str = "segmentation") -> Mask:
    """Returns the pixels (H, W) of one annotation, as pycocotools draws it.

    Args:
        segmentation: one polygon or a list of polygons (their union is drawn), each a list of alternating x and y or
            of pairs; or run lengths, as numbers or compressed.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        where: its place, for messages.

    Raises:
        Refused: no polygons or run lengths; a polygon with fewer than three points, more than :data:`OUTSIDE` beyond
            the picture, or in relative coordinates; run lengths of another size, or that do not fill it.
    """
    if isinstance(segmentation, dict):
        return _from_run_lengths(segmentation, height, width, where)
    parts = segmentation if isinstance(segmentation, list) else []  # in the layouts that different programs write
    if parts and (not any(isinstance(part, list) for part in parts) or (len(parts) > 1 and _are_pairs(parts))):
        parts = [parts]
    polygons = [[value for pair in part for value in pair] if _are_pairs(part) else part for part in parts]
    if not polygons:
        hint = "a box is not a mask: see `samfed prepare weak`, or draw outlines"
        raise refused(where, found="no outline", expected="polygons or run lengths", hint=hint)
    for polygon in polygons:
        _check_polygon(polygon, height, width, where)
    values = [value for polygon in polygons for value in polygon]
    if max(height, width) > 1 and min(values) >= -0.05 and max(values) <= 1.05 and any(value % 1 for value in values):
        hint = "multiply x by the width and y by the height, or export in pixels"
        expected = f"an outline in pixels, of {width} x {height}"
        raise refused(where, "coordinates from 0 to 1, relative to the image size", expected, hint)
    from pycocotools import mask as coco

    clipped = [np.clip(np.reshape(each, (-1, 2)), 0, [width, height]).ravel().tolist() for each in polygons]
    return coco.decode(coco.merge(coco.frPyObjects(clipped, height, width))).astype(bool)


def _are_pairs(parts: Any) -> bool:
    return isinstance(parts, list) and all(
        isinstance(pair, list) and len(pair) == 2 and not any(isinstance(value, list) for value in pair)
        for pair in parts or [None]
    )


def _check_polygon(polygon: Any, height: int, width: int, where: str) -> None:
    numbers = polygon if isinstance(polygon, list) else []
    others = [clipped(repr(number)) for number in numbers if not is_number(number)]
    if len(numbers) < 6 or len(numbers) % 2 or others:
        found = f"a polygon with {others[0]}" if others else f"a polygon of {len(numbers)} numbers"
        raise refused(where, found, expected="finite x and y in turn, of at least three points")
    for axis, side, values in (("x", width, numbers[::2]), ("y", height, numbers[1::2])):
        low, high = min(values), max(values)
        if low < -OUTSIDE or high > side + OUTSIDE:
            expected = f"an outline inside the image, {width} x {height} pixels"
            hint = "was it drawn on an image of another size?"
            raise refused(where, found=f"{axis} from {low:g} to {high:g}", expected=expected, hint=hint)


def _from_run_lengths(runs: Mapping[str, Any], height: int, width: int, where: str) -> Mask:
    size, counts = runs.get("size"), runs.get("counts")
    if size != [height, width]:
        raise refused(where, f"run lengths of size {size}", f"[{height}, {width}], height and width of the image")
    lengths: Any = _decode_run_lengths(counts) if isinstance(counts, str) else counts
    whole = isinstance(lengths, list) and all(type(length) is int and length >= 0 for length in lengths)
    if not whole or sum(lengths) != height * width:  # pycocotools leaves missing pixels undefined
        expected = f"run lengths that fill {height * width} pixels"
        found = f"{sum(lengths)} pixels" if whole else "no valid run lengths"
        raise refused(where, found=found, expected=expected, hint="export the file again")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape((height, width), order="F")


def _decode_run_lengths(text: str) -> list[int]:
    """Decodes COCO's compressed run lengths: 5 bits a character; from the 4th on, differences to two before."""
    if not re.fullmatch("(?:[P-o]*[0-O])*", text):  # characters from P to o continue in the next one
        return [-1]
    lengths: list[int] = []
    for number in re.findall("[P-o]*[0-O]", text):
        bits = [ord(character) - 48 for character in number]
        value = sum((each & 31) << 5 * place for place, each in enumerate(bits))
        value -= (bits[-1] >> 4) << 5 * len(bits)  # negative
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths


def draw_coco(
    root: str | Path,
    *,
    categories: Sequence[str] = (),
    blank_is_empty: bool = False,
    skip_unreadable: bool = False,
    output: str | Path | None = None,
    written: Created | None = None,
    check: Callable[[Collection[Path]], object] | None = None,
) -> list[str]:
    """Draws COCO annotations as ``<site>/masks/<stem>.png``, as :mod:`.folders` reads them.

    Args:
        root: folder of sites, or one site's own folder. A site has ``images``, and its annotations in JSON files beside
            that folder or in ``annotations``; a site without any is unchanged.
        categories: see :func:`select_categories`.
        blank_is_empty: whether a listed picture without annotations gets an empty mask; by default it counts as not
            annotated yet and gets none.
        skip_unreadable: whether to leave out pictures that cannot be read.
        output: the data list to write, which is never read as annotations.
        written: mapping to which the new files are added.
        check: called with the paths of all masks to draw, before any image is read; it may refuse them.

    Returns:
        Sentences on pictures and sites left out.

    Raises:
        Refused: all problems of the COCO files, or else of images and annotations; an existing mask differs. Nothing
            is written then.
    """
    root, problems, pictures = Path(root), Problems(), list[AnnotatedImage]()
    require(installed("pycocotools", "coco", str(root), "no pycocotools", "pycocotools, for COCO"))
    files = _annotation_files(root, output)
    for file in [file for paths in files.values() for file in paths]:
        with problems.collected():
            pictures += read_coco(file)
    problems.refuse_if_any()
    pictures = select_categories(pictures, categories)
    for folder in (folder for folder, paths in files.items() if paths):
        require_writable(folder / "masks")  # before any mask is drawn
    of_categories = f" of {' or '.join(categories)}" if categories else ""
    sites = [_Site(folder, of_categories) for folder, paths in files.items() if paths]
    for site, picture in ((s, p) for s in sites for p in sorted(pictures, key=lambda each: not each.annotations)):
        if picture.where in files[site.folder]:
            with problems.collected():
                site.match(picture, blank_is_empty=blank_is_empty)
    if check is not None and not problems:
        check([place for site in sites for _, _, place in site.matched if place is not None])
    masks, sentences = dict[Path, bytes](), list[str]()
    for site in sites:
        for picture, image, place in progress_bar(site.matched, desc=f"drawing {site.folder.name}", unit="mask"):
            with problems.collected():
                masks |= site.draw(picture, image, place, skip_unreadable)
        sentences += site.sentences(root)
    for folder in (folder for folder, paths in files.items() if not paths):
        sentences.append(f"{folder.name} has no COCO file (*.json, annotations/*.json): used without changes")
    problems.refuse_if_any()
    write_new(masks, {} if written is None else written)
    return sentences


def _annotation_files(root: Path, output: str | Path | None) -> dict[Path, list[Path]]:
    """Returns the COCO files of each site's folder, without the list to write."""
    found = {site: sorted([*site.glob("*.json"), *site.glob("annotations/*.json")]) for site in sites_in(root).values()}
    output = Path(output).resolve() if output is not None else None
    files = {site: [path for path in paths if path.resolve() != output] for site, paths in found.items()}
    if not any(files.values()):
        expected, hint = "COCO annotations of a site", "put them into DIR/<site>/annotations, next to DIR/<site>/images"
        raise refused(f"{root}/<site>/annotations/*.json", found="no file", expected=expected, hint=hint)
    return files


class _Site:
    """Draws the masks of a site, whose images it finds by their names in COCO files.

    Paths are compared from their ends, as in :class:`~samfed_monai.data.partitions.Groups`; they may have slashes or
    backslashes and be percent-encoded. A path from a COCO file is never opened.

    Args:
        folder: its folder.
        of_categories: the foreground, for messages.
    """

    def __init__(self, folder: Path, of_categories: str) -> None:
        self.folder, self.of_categories, self.without_annotations = folder, of_categories, 0
        #: Pictures with their images, and the paths of the masks to draw; ``None`` draws none.
        self.matched = list[tuple[AnnotatedImage, Path, Path | None]]()
        self._places, self.unlisted = set[Path](), dict.fromkeys(list_images(folder / "images"))
        self._by_name = grouped((normal(path.name), path) for path in self.unlisted)
        self._stem_counts = Counter(stem(path.name) for path in self.unlisted)

    def match(self, picture: AnnotatedImage, *, blank_is_empty: bool) -> None:
        """Finds a picture's image by its name; arguments as of :func:`draw_coco`."""
        image = self.image_of(picture)
        place, is_drawn = self.mask_of(image), bool(picture.annotations) or blank_is_empty
        if not picture.annotations and place in self._places:
            return  # another file annotates it
        if not is_drawn and place.exists():  # left by an earlier call, it would be used as the picture's mask
            expected = f"none: its image has no annotation{self.of_categories}"
            raise refused(place, "a mask", expected, "move it away, or annotate the image")
        if is_drawn and place in self._places:
            raise refused(f"{picture.where}: {picture.file_name}", "a second entry", "each image once", "remove one")
        self._places.update([place] if is_drawn else [])
        self.matched.append((picture, image, place if is_drawn else None))

    def draw(self, entry: AnnotatedImage, image: Path, place: Path | None, skip_unreadable: bool) -> dict[Path, bytes]:
        """Returns the mask of a picture by its path; none of a picture that is not annotated or cannot be read.

        Raises:
            Refused: the image has another size, or an annotation is wrong.
        """
        try:
            height, width = read_image(image).shape[:2]
        except Refused as refusal:
            if skip_unreadable:  # reported when the list is made
                return {}
            raise Refused(map(with_skip_hint, refusal.problems)) from None
        if (height, width) != (entry.height, entry.width):
            expected, hint = f"{entry.width} x {entry.height}, as annotated", "annotate the image in this folder"
            raise refused(f"{entry.where}: {entry.file_name}", f"{width} x {height} pixels", expected, hint)
        if place is None:
            self.without_annotations += 1
            return {}
        return {place: png_of(entry.mask() * np.uint8(255))}

    def sentences(self, root: Path) -> Iterator[str]:
        """Yields sentences on images without annotations, and on images that no COCO file names."""
        name = self.folder.name
        if self.without_annotations:
            subject = counted(self.without_annotations, f"image of {name} has", f"images of {name} have")
            yield f"{subject} no annotation{self.of_categories}: used as unlabelled"
        if self.unlisted:
            subject = counted(len(self.unlisted), f"image of {name} is", f"images of {name} are")
            yield f"{subject} in no COCO file, such as {relative(next(iter(self.unlisted)), root)}"

    def mask_of(self, image: Path) -> Path:
        """Returns the path of an image's mask; if several images share its name, in a subfolder as the image's."""
        below = relative(image.parent, self.folder / "images") if self._stem_counts[stem(image.name)] > 1 else ""
        return self.folder / "masks" / below / f"{stem(image.name)}.png"

    def image_of(self, entry: AnnotatedImage) -> Path:
        """Returns the image of an entry.

        Raises:
            Refused: no image matches, or several do.
        """
        where = f"{entry.where}: {entry.file_name}"
        found = self._matching_paths(entry.file_name) or self._matching_paths(unquote(entry.file_name))
        if len(found) != 1:
            found_text = "no such image" if not found else f"{len(found)} images of that name"
            expected = f"one image of that name in {self.folder / 'images'}"
            raise refused(where, found=found_text, expected=expected, hint="add the image, or remove its entry")
        self.unlisted.pop(found[0], None)
        return found[0]

    def _matching_paths(self, name: str) -> list[Path]:
        listed = PurePosixPath(normal(name).replace("\\", "/"))
        paths = {path: normal(relative(path, self.folder / "images")) for path in self._by_name.get(listed.name, ())}
        return [path for path, relative_path in paths.items() if parts_in_common(listed, PurePosixPath(relative_path))]
