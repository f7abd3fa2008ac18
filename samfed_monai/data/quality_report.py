"""The data report: one self-contained HTML page to look at, and one CSV row per image to compute with."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from scipy import ndimage

from samfed_monai import __version__
from samfed_monai.core.io import write_page, write_text
from samfed_monai.core.table import to_csv
from samfed_monai.core.words import counted, normal
from samfed_monai.data.checks import Facts, survey_list
from samfed_monai.data.checks import warnings as duplicate_warnings
from samfed_monai.data.classes import colour_of, read_classes
from samfed_monai.data.datalist import DataList, Item, Split, confine
from samfed_monai.data.grouping import subset
from samfed_monai.data.reading import Picture, read_image, read_mask
from samfed_monai.data.sources.published import Coverage
from samfed_monai.data.weak_labels import IGNORE, read_weak_label


@dataclass(frozen=True)
class Row:
    """What one split of one site holds.

    Args:
        site: ``""`` for the public set.
        split: its name.
        images: number of images.
        labelled: of these, with a mask.
        groups: number of distinct groups; 0 where none is known.
        sizes: width x height, most frequent first, with counts.
        modes: stored pixel types with counts.
        mask_values: distinct grey levels over all masks.
        empty: masks without foreground.
        full: masks without background.
        repeated: images whose bytes another image of the same site has.
        turned: images that carry an EXIF orientation.
        foreground: quartiles (lower, median, upper) of the foreground's share; ``None`` without masks.
        bins: number of masks in each tenth of the foreground's share.
    """

    site: str
    split: str
    images: int
    labelled: int
    groups: int
    sizes: list[tuple[str, int]]
    modes: list[tuple[str, int]]
    mask_values: list[int]
    empty: int
    full: int
    repeated: int
    turned: int
    foreground: tuple[float, float, float] | None
    bins: list[int]


def rows(datalist: DataList, facts: Mapping[str, Facts]) -> list[Row]:
    """A row for the public set and for every split of every site, empty ones included."""
    table = [_row("", "public", datalist.public, facts, first_seen(datalist.public))]
    for name, site in datalist.sites.items():
        first = first_seen([item for _, items in site.splits() for item in items])
        table += [_row(name, split.value, items, facts, first) for split, items in site.splits()]
    return table


def first_seen(items: Sequence[Item]) -> dict[str, str]:
    """SHA-256 to the first image that has it."""
    first: dict[str, str] = {}
    for item in items:
        first.setdefault(item.sha256, item.image)
    return first


def _row(site: str, split: str, items: Sequence[Item], facts: Mapping[str, Facts], first: Mapping[str, str]) -> Row:
    known = [facts[item.image] for item in items]
    masks = [facts[item.image] for item in items if item.label is not None]
    shares = [fact.foreground for fact in masks if fact.foreground is not None]
    low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75]).tolist() if shares else (0.0, 0.0, 0.0)
    return Row(
        site=site,
        split=split,
        images=len(items),
        labelled=len(masks),
        groups=len({normal(item.group) for item in items if item.group}),
        sizes=Counter(f"{fact.width} × {fact.height}" for fact in known).most_common(),
        modes=Counter(fact.mode for fact in known).most_common(),
        mask_values=sorted({value for fact in masks for value in fact.mask_values}),
        empty=sum(share == 0 for share in shares),
        full=sum(share == 1 for share in shares),
        repeated=sum(first[item.sha256] != item.image for item in items),
        turned=sum(fact.turned for fact in known),
        foreground=(low, middle, high) if shares else None,
        bins=np.histogram(shares, bins=10, range=(0, 1))[0].tolist(),
    )


RIM = 0.98
"""Share of a mask's outermost pixels from which it is taken for inverted, unless it is full."""


DARK = 64
"""Of 255: images without anything brighter use 14 of 16 bits at most, or 6 of 8."""


def doubts(datalist: DataList, facts: Sequence[Facts]) -> list[str]:
    """Sentences on images and masks that exist and decode, but look odd.

    Images: dark, as of 12 bits in 16. Masks: empty or full, with nothing as bright as the list's threshold, inverted,
    not upright, or fitting better when turned.
    """
    by_image = {fact.image: fact for fact in facts}
    sentences = []
    for name, items in [("the public set", datalist.public), *_by_site(datalist)]:
        sentences += _dark(name, [by_image[item.image] for item in items])
        masks = [by_image[item.image] for item in items if item.label is not None]
        empty, full = sum(fact.foreground == 0 for fact in masks), sum(fact.foreground == 1 for fact in masks)
        if empty or full:
            sentences.append(f"{name} has {empty} empty and {counted(full, 'full mask')}; scores count them apart")
        sentences += _cut_to_nothing(name, masks, datalist.mask_threshold)
        sentences += _lacking(name, masks, datalist.classes)
        inverted = [fact for fact in masks if (fact.border or 0) >= RIM and (fact.foreground or 0) < 1]
        if inverted:
            sentences.append(
                f"{len(inverted)} of {len(masks)} masks of {name}, such as {_first(inverted)}, are foreground "
                "all along the border and background inside: they look inverted; "
                "if they are, exchange black and white in them"
            )
        turned = sum(fact.turned for fact in masks)
        if turned:
            sentences.append(
                f"{counted(turned, f'labelled image of {name} carries', f'labelled images of {name} carry')} an EXIF "
                "orientation, which is applied; look whether the masks follow it"
            )
        square = [fact for fact in masks if fact.misfit]
        better = sum(fact.misfit > 0.02 for fact in square)
        if len(square) >= 8 and better > len(square) / 2:
            sentences.append(
                f"{better} of {len(square)} square masks of {name} fit their images better when transposed or turned: "
                "look at the overlays"
            )
    return sentences


def _dark(name: str, images: Sequence[Facts]) -> list[str]:
    dark = [fact for fact in images if fact.brightest <= DARK]
    if not dark:
        return []
    brightest = max(fact.brightest for fact in dark)
    deep = any(fact.mode.startswith("I") for fact in dark)
    bits = (
        f", as where {8 + max(brightest - 1, 0).bit_length()} bits are stored in 16: scale them to 16" if deep else ""
    )
    return [
        f"{len(dark)} of {counted(len(images), 'image')} of {name}, such as {min(fact.image for fact in dark)}, are "
        f"dark: nothing in them is brighter than {brightest} of 255{bits}"
    ]


def _lacking(name: str, masks: Sequence[Facts], classes: Sequence[str]) -> list[str]:
    """Classes that no label of a site has: its labels may be of other organs than the others'."""
    there = {value for fact in masks for value in fact.mask_values}
    lacking = [each for number, each in enumerate(classes, start=1) if number not in there]
    if not lacking or not masks:
        return []
    return [
        f"no label of {name} has {' or '.join(lacking)}: look whether it was drawn there; where it was not, a network "
        "is taught, and scored as if, it were absent"
    ]


def _first(masks: Sequence[Facts]) -> str:
    return min(str(fact.label) for fact in masks)


def _cut_to_nothing(name: str, masks: Sequence[Facts], threshold: int | None) -> list[str]:
    """Fault 65: masks that have something in them, and none of it as bright as the threshold."""
    lost = [fact for fact in masks if threshold and fact.foreground == 0 and max(fact.mask_values, default=0) > 0]
    if not lost:
        return []
    highest = max(max(fact.mask_values) for fact in lost)
    return [
        f"{len(lost)} of {len(masks)} masks of {name}, such as {_first(lost)}, are empty because nothing in them is as "
        f"bright as --mask-threshold {threshold}: their highest value is {highest}"
    ]


def _by_site(datalist: DataList) -> list[tuple[str, list[Item]]]:
    return [(name, [item for _, items in site.splits() for item in items]) for name, site in datalist.sites.items()]


SIDE = 184
OUTLINE = (255, 214, 10)  # a yellow that is seen on skin and on mucosa


def overlay(picture: Picture, mask: Picture | None, *, classes: int = 0, side: int = SIDE) -> Picture:
    """The picture, scaled to fit a square, with the mask's outline drawn two pixels wide.

    Args:
        picture: (H, W, 3) in 0..255.
        mask: (H, W) in {0, 1}, or ``None``.
        classes: how many classes the mask has, whose values are then 0 to that, each outlined in its own colour.
        side: longest side of the result in pixels.
    """
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    regions = [(mask, OUTLINE)] if mask is not None else []
    if mask is not None and classes:
        regions = [((mask == each).astype(np.uint8), colour_of(each)) for each in range(1, classes + 1)]
    for region, colour in regions:
        shape = np.asarray(Image.fromarray(region * 255).resize(size, Image.Resampling.BOX)) > 127
        small[outline(shape)] = colour
    return small


def outline(shape: np.ndarray) -> np.ndarray:
    """Foreground pixels within two steps of the background; the picture's own edge counts as background."""
    return shape & ~ndimage.binary_erosion(shape, iterations=2)


def data_uri(picture: Picture) -> str:
    """The picture as a JPEG inside a ``data:`` address; the pixels are all that it carries."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


SAMPLES = 6
SQUARES = 24
COLUMNS = (
    *("site", "split", "image", "sha256", "width", "height", "mode", "label", "label_sha256", "mask_values"),
    *("foreground", "empty", "full", "group", "duplicate_of", "exif_orientation", "misfit"),
)


@dataclass(frozen=True)
class Sample:
    """One picture of the report."""

    name: str
    picture: str
    note: str


def report_on(
    datalist: str | Path | DataList, data_root: str | Path, page: str | Path, *, progress: bool = True
) -> Path:
    """Writes the report of a list that exists already.

    Args:
        datalist: the list, or its JSON file.
        data_root: folder that its paths are relative to.
        page: HTML file to write; the CSV goes beside it.
        progress: whether to show a progress bar.
    """
    datalist = datalist if isinstance(datalist, DataList) else DataList.load(datalist)
    facts = survey_list(datalist, data_root, progress=progress)
    sentences = [*duplicate_warnings(datalist), *doubts(datalist, facts)]
    return write_report(datalist, facts, data_root, page, warnings=sentences)


def write_report(
    datalist: DataList,
    facts: Sequence[Facts],
    data_root: str | Path,
    page: str | Path,
    *,
    warnings: Sequence[str] = (),
    coverage: Sequence[Coverage] = (),
) -> Path:
    """Writes ``page`` and, with the suffix ``.csv``, the table of all images.

    The page carries small pictures, drawn from pixels only: nothing of a file's EXIF gets into it (fault 60).

    Args:
        datalist: a list without problems.
        facts: of every item.
        data_root: folder that the list's paths are relative to.
        page: HTML file to write.
        warnings: sentences to print on top.
        coverage: for a published list, what of it is at hand.
    """
    page = Path(page)
    by_image = {fact.image: fact for fact in facts}
    table = rows(datalist, by_image)
    environment = Environment(
        loader=PackageLoader("samfed_monai.data"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["bars"] = bars
    html = environment.get_template("data_report.html.j2").render(
        datalist=datalist,
        rows=table,
        totals=totals(table),
        coverage=coverage,
        warnings=warnings,
        galleries=_galleries(datalist, by_image, Path(data_root)),
        squares=_squares(datalist, by_image, Path(data_root)),
        csv=page.with_suffix(".csv").name,
        version=__version__,
    )
    write_page(page, html)
    write_text(page.with_suffix(".csv"), table_of_images(datalist, by_image))
    return page


def totals(table: Sequence[Row]) -> dict[str, int]:
    """Sums over all rows, for the top of the page."""
    by_split = {split.value: sum(row.images for row in table if row.split == split.value) for split in Split}
    return {"images": sum(by_split.values()), "masks": sum(row.labelled for row in table), **by_split}


def bars(counts: Sequence[int], width: int = 100, height: int = 22) -> str:
    """Points of an SVG path that draws counts as adjacent bars, the highest filling the height."""
    step, top = width / len(counts), max([*counts, 1])
    return " ".join(
        f"M{index * step:g},{height}v{-height * count / top:.1f}h{step - 1.5:g}V{height}z"
        for index, count in enumerate(counts)
        if count
    )


def table_of_images(datalist: DataList, facts: Mapping[str, Facts]) -> str:
    """CSV with one row per image; the foreground is a share in [0, 1]."""
    first = first_seen([item for _, _, item in datalist.items()])
    rows = []
    for site, split, item in datalist.items():
        fact = facts[item.image]
        share = fact.foreground if item.label else None
        file = [site, split.value, item.image, item.sha256, fact.width, fact.height, fact.mode]
        values = " ".join(map(str, fact.mask_values)) if item.label else ""
        scored = ["", "", ""] if share is None else [f"{share:.5f}", int(share == 0), int(share == 1)]
        repeats = first[item.sha256] if first[item.sha256] != item.image else ""
        misfit = f"{fact.misfit:.4f}" if item.label else ""
        label = [item.label or "", item.label_sha256 or "", values, *scored]
        rows.append([*file, *label, item.group or "", repeats, int(fact.turned), misfit])
    return to_csv(COLUMNS, rows)


def _galleries(datalist: DataList, facts: Mapping[str, Facts], root: Path) -> list[tuple[str, list[Sample]]]:
    galleries = []
    for name, items in [("Public", datalist.public), *_by_site(datalist)]:
        candidates = [item for item in items if item.label] or items
        chosen = [candidates[index] for index in subset([item.sha256 for item in candidates], SAMPLES)]
        galleries.append((name, [_sample(item, facts[item.image], root, datalist) for item in chosen]))
    return galleries


def _squares(datalist: DataList, facts: Mapping[str, Facts], root: Path) -> list[Sample]:
    """Square pictures, those first whose masks would fit better if they were turned."""
    square = [
        item
        for _, _, item in datalist.items()
        if item.label and facts[item.image].width == facts[item.image].height and facts[item.image].foreground
    ]
    square.sort(key=lambda item: (-facts[item.image].misfit, item.sha256))
    return [_sample(item, facts[item.image], root, datalist) for item in square[:SQUARES]]


def _sample(item: Item, fact: Facts, root: Path, datalist: DataList) -> Sample:
    picture = read_image(confine(root, item.image, where=item.image))
    note = f"{fact.width} × {fact.height}"
    if item.label and item.weak:
        label = read_weak_label(confine(root, item.label, where=item.label))
        note += f" · {item.label_kind}, {(label != IGNORE).mean():.0%} labelled"
        return Sample(Path(item.image).stem, data_uri(overlay(picture, (label == 1).astype(label.dtype))), note)
    mask, classes = None, datalist.classes
    if item.label:
        path = confine(root, item.label, where=item.label)
        mask = read_classes(path, classes) if classes else read_mask(path, datalist.mask_threshold)
    if fact.foreground is not None and item.label:
        there = [name for number, name in enumerate(classes, start=1) if number in fact.mask_values]
        note += f" · {', '.join(there) or 'none'}" if classes else f" · {fact.foreground:.0%} lesion"
    return Sample(Path(item.image).stem, data_uri(overlay(picture, mask, classes=len(classes))), note)
