"""The data report: a self-contained HTML page, and a CSV file with one row per image."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from scipy import ndimage

from samfed_monai import __version__
from samfed_monai.core.io import to_csv, write_page, write_text
from samfed_monai.core.text import counted, normal
from samfed_monai.data.checks import Facts, facts_of
from samfed_monai.data.checks import warnings as duplicate_warnings
from samfed_monai.data.classes import colour_of, read_classes
from samfed_monai.data.datalist import DataList, Item, Split, confine, measuring_notes
from samfed_monai.data.partitions import subset
from samfed_monai.data.public import Coverage
from samfed_monai.data.reading import DARK, Picture, read_image, read_mask
from samfed_monai.data.weak_labels import IGNORE, read_weak_label


def rows(datalist: DataList, facts: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """Summarises the public set and every split of every site, empty ones included.

    Returns:
        Rows with ``site`` (``""`` is the public set) and ``split``; numbers of ``images``, of those with a mask
        (``labelled``) or an EXIF orientation (``turned``), of ``groups``, of ``empty`` and ``full`` masks; ``sizes``
        (width × height) and ``modes`` with their counts, most frequent first; ``mask_values`` of all masks;
        ``foreground``, the quartiles of its share, or ``None``.
    """
    table = [_row("", "public", datalist.public, facts)]
    for name, site in datalist.sites.items():
        table += [_row(name, split.value, items, facts) for split, items in site.splits()]
    return table


def _row(site: str, split: str, items: Sequence[Item], facts: Mapping[str, Facts]) -> dict[str, Any]:
    known = [facts[item.image] for item in items]
    masks = [facts[item.image] for item in items if item.label is not None]
    shares = [fact.foreground for fact in masks if fact.foreground is not None]
    return {
        "site": site,
        "split": split,
        "images": len(items),
        "labelled": len(masks),
        "groups": len({normal(item.group) for item in items if item.group}),
        "sizes": Counter(f"{fact.width} × {fact.height}" for fact in known).most_common(),
        "modes": Counter(fact.mode for fact in known).most_common(),
        "mask_values": sorted({value for fact in masks for value in fact.mask_values}),
        "empty": sum(share == 0 for share in shares),
        "full": sum(share == 1 for share in shares),
        "turned": sum(fact.turned for fact in known),
        "foreground": np.quantile(shares, [0.25, 0.5, 0.75]).tolist() if shares else None,
    }


def notes_on(datalist: DataList, facts: Sequence[Facts]) -> list[str]:
    """Returns the warnings that ``prepare`` and ``check`` print: too few images, repeats, :func:`file_warnings`."""
    return [*measuring_notes(datalist), *duplicate_warnings(datalist), *file_warnings(datalist, facts)]


INVERTED_BORDER = 0.98
"""Share of foreground in a mask's outermost pixels from which it looks inverted, unless it is full."""


def file_warnings(datalist: DataList, facts: Sequence[Facts]) -> list[str]:
    """Returns sentences on images and masks that are readable but look wrong.

    Images: dark (for instance 12 bits stored in 16), black and white like masks, or named like another image with a
    suffix (for instance superpixels). Masks: empty or full, entirely below the list's threshold (fault 65), weak labels
    cut at it, inverted, with an EXIF orientation on the image, or fitting better when turned (fault 3). Classes without
    any label at a site. Different voxel sizes.
    """
    by_image = {fact.image: fact for fact in facts}
    sentences, voxels = list[str](), dict[str, list[list[float]]]()

    def warn(paths: Sequence[str], total: str, fault: str) -> None:
        sentences.extend([f"{len(paths)} of {total}, such as {min(paths)}, are {fault}"] if paths else [])

    for name, items in [("the public set", datalist.public), *_by_site(datalist)]:
        images = [by_image[item.image] for item in items]
        masks = [by_image[item.image] for item in items if item.label is not None]
        if sides := [item.spacing for item in items if item.spacing]:
            voxels[name] = sides
        dark = [fact for fact in images if fact.brightest <= DARK]
        brightest = max((fact.brightest for fact in dark), default=0)
        bits = f", as if {8 + max(brightest - 1, 0).bit_length()} bits were stored in 16: scale them to 16 bits"
        fault = f"dark: their highest value is {brightest} of 255"
        fault += bits if any(fact.mode.startswith("I") for fact in dark) else ""
        warn([fact.image for fact in dark], f"{counted(len(images), 'image')} of {name}", fault)
        fault = "only black and white, like masks: if they are masks, move them out of the images"
        warn([fact.image for fact in images if fact.mask_like], f"{counted(len(images), 'image')} of {name}", fault)
        suffixes = dict(fact.image.rpartition(".")[::2] for fact in images)
        stems = [stem for stem, suffix in suffixes.items() if suffixes.get(stem.rpartition("_")[0], suffix) != suffix]
        derived = [f"{stem}.{suffixes[stem]}" for stem in stems]
        fault = "named like another image plus suffix, in another format: if they were made from it, as superpixels"
        warn(derived, f"{counted(len(images), 'image')} of {name}", f"{fault} are, move them out of the images")
        empty, full = sum(fact.foreground == 0 for fact in masks), sum(fact.foreground == 1 for fact in masks)
        if empty or full:
            sentences.append(f"{name} has {empty} empty and {counted(full, 'full mask')}; scores count them separately")
        threshold, of = datalist.mask_threshold, f"{len(masks)} masks of {name}"
        below = [fact for fact in masks if threshold and fact.foreground == 0 and max(fact.mask_values, default=0) > 0]
        highest = max((max(fact.mask_values) for fact in below), default=0)
        fault = f"empty because all their values are below --mask-threshold {threshold}: their highest value is"
        warn([str(fact.label) for fact in below], of, f"{fault} {highest}")
        weak = [fact for fact in masks if (threshold or 0) > 1 and {1, 255} <= set(fact.mask_values) <= {0, 1, 255}]
        fault = f"of 0, 1 and 255, and --mask-threshold {threshold} makes only 255 foreground: if 255 means"
        warn([str(fact.label) for fact in weak], of, f"{fault} 'not labelled', give --label-kind [SITE=]KIND")
        inverted = [fact for fact in masks if (fact.border or 0) >= INVERTED_BORDER and (fact.foreground or 0) < 1]
        fault = "foreground along the whole border and background inside: they look inverted; if they are, swap black"
        warn([str(fact.label) for fact in inverted], of, f"{fault} and white in them")
        present = {value for fact in masks for value in fact.mask_values}
        lacking = [each for number, each in enumerate(datalist.classes, start=1) if number not in present]
        if lacking and masks:
            absent = f"no label of {name} has {' or '.join(lacking)}: check whether it was annotated; if it was not"
            sentences.append(f"{absent}, training and scores treat it as absent")
        if turned := sum(fact.turned for fact in masks):
            subject = counted(turned, f"labelled image of {name} has", f"labelled images of {name} have")
            sentences.append(f"{subject} an EXIF orientation, which is applied; check that the masks follow it")
        misfits = [fact.misfit for fact in masks if fact.misfit]
        better_turned = sum(misfit > 0.02 for misfit in misfits)
        if len(misfits) >= 8 and better_turned > len(misfits) / 2:
            share = f"{better_turned} of {len(misfits)} square masks of {name}"
            sentences.append(f"{share} fit their images better when transposed or rotated: check the overlays")
    return sentences + different_voxel_sizes(voxels)


MAX_SIDE_RATIO = 1.5
"""Largest ratio between voxel sides of different volumes that is not reported."""


def different_voxel_sizes(voxels: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """Returns a sentence if voxel sizes differ much, as organs then differ in size for a network; else none.

    Args:
        voxels: by site, mm of a row, of a column and between slices, of each of its volumes or slices.
    """
    all_sides = [sides for sizes in voxels.values() for sides in sizes]
    if not any(max(sides) > MAX_SIDE_RATIO * min(sides) for sides in zip(*all_sides, strict=True)):
        return []
    ranges = {site: " x ".join(map(_range, zip(*sizes, strict=True))) for site, sizes in voxels.items()}
    shown = ", ".join(f"{site} {sizes}" for site, sizes in ranges.items())
    return [f"volumes have different voxel sizes (mm of rows, columns, slices): {shown}; slices are not resampled"]


def _range(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values))))


def _by_site(datalist: DataList) -> list[tuple[str, list[Item]]]:
    return [(name, [item for _, items in site.splits() for item in items]) for name, site in datalist.sites.items()]


SIDE = 184  # pixels of the longer side
OUTLINE = (255, 214, 10)  # a yellow that is visible on skin and on mucosa


def overlay(picture: Picture, mask: Picture | None, *, classes: int = 0) -> Picture:
    """Returns the picture, scaled to fit a square, with the mask's outline drawn two pixels wide.

    Args:
        picture: (H, W, 3) in 0..255.
        mask: (H, W) in {0, 1}, or ``None``.
        classes: number of classes; if positive, the mask has values 0 to ``classes``, each outlined in its own colour.
    """
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    regions = [(mask, OUTLINE)] if mask is not None else []
    if mask is not None and classes:
        regions = [((mask == each).astype(np.uint8), colour_of(each)) for each in range(1, classes + 1)]
    for region, colour in regions:
        small[outline(np.asarray(Image.fromarray(region * 255).resize(size, Image.Resampling.BOX)) > 127)] = colour
    return small


def outline(shape: np.ndarray) -> np.ndarray:
    """Returns the foreground pixels within two steps of the background; the picture's edge counts as background."""
    return shape & ~ndimage.binary_erosion(shape, iterations=2)


def data_uri(picture: Picture) -> str:
    """Returns the picture as a JPEG in a ``data:`` URI, with pixels only and no metadata."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


SAMPLES = 6
MEASURED = tuple(each.name for each in fields(Facts) if each.name not in ("unreadable", "problems"))
"""Columns of the table of images, after site, split and group."""


def report_on(datalist: str | Path | DataList, data_root: str | Path, page: str | Path) -> Path:
    """Writes the report of an existing list.

    Args:
        datalist: the list, or its JSON file.
        data_root: folder that its paths are relative to.
        page: HTML file to write; the CSV goes beside it.
    """
    datalist = datalist if isinstance(datalist, DataList) else DataList.load(datalist)
    facts = facts_of(datalist, data_root)
    return write_report(datalist, facts, data_root, page, warnings=notes_on(datalist, facts))


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

    The page contains small pictures, drawn from pixels only, without EXIF data (fault 60).

    Args:
        datalist: a list without problems.
        facts: facts of every item.
        data_root: folder that the list's paths are relative to.
        page: HTML file to write.
        warnings: sentences for the top of the page.
        coverage: for a published list, how many of its images were found.
    """
    page = Path(page)
    by_image = {fact.image: fact for fact in facts}
    table = rows(datalist, by_image)
    galleries = []
    for name, items in [("Public", datalist.public), *_by_site(datalist)]:
        candidates = [item for item in items if item.label] or items
        chosen = [candidates[index] for index in subset([item.sha256 for item in candidates], SAMPLES)]
        galleries.append((name, [_sample(item, by_image[item.image], Path(data_root), datalist) for item in chosen]))
    loader = PackageLoader("samfed_monai.data")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    html = environment.get_template("data_report.html.j2").render(
        datalist=datalist,
        rows=table,
        totals=totals(table),
        coverage=coverage,
        warnings=warnings,
        galleries=galleries,
        colours={name: colour_of(place) for place, name in enumerate(datalist.classes, start=1)},
        csv=page.with_suffix(".csv").name,
        version=__version__,
    )
    write_page(page, html)
    write_text(page.with_suffix(".csv"), table_of_images(datalist, by_image))
    return page


def totals(table: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns the numbers of images in all and by split, for the top of the page."""
    by_split = {split.value: sum(row["images"] for row in table if row["split"] == split.value) for split in Split}
    return {"images": sum(by_split.values()), **by_split}


def table_of_images(datalist: DataList, facts: Mapping[str, Facts]) -> str:
    """Returns CSV with one row per image: site, split, group, and the facts of :data:`MEASURED`."""

    def cell(value: Any) -> Any:
        return " ".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else value

    rows = [
        [site, split.value, item.group or "", *(cell(getattr(facts[item.image], name)) for name in MEASURED)]
        for site, split, item in datalist.items()
    ]
    return to_csv(("site", "split", "group", *MEASURED), rows)


def _sample(item: Item, fact: Facts, root: Path, datalist: DataList) -> dict[str, str]:
    picture = read_image(confine(root, item.image))
    mask, classes, note = None, datalist.classes, f"{fact.width} × {fact.height}"
    path = confine(root, item.label) if item.label else None
    if path and item.weak:
        label = read_weak_label(path, len(classes) or 1)
        mask = np.where(label == IGNORE, 0, label)
        note = f"{note} · {item.label_kind}, {(label != IGNORE).mean():.0%} labelled"
    elif path and classes:
        present = [name for number, name in enumerate(classes, start=1) if number in fact.mask_values]
        mask, note = read_classes(path, classes), f"{note} · {', '.join(present) or 'none'}"
    elif path:
        mask, note = read_mask(path, datalist.mask_threshold), f"{note} · {fact.foreground or 0:.0%} foreground"
    return {
        "name": Path(item.image).stem,
        "picture": data_uri(overlay(picture, mask, classes=len(classes))),
        "note": note,
    }
