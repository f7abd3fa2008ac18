"""Published rows to show beside ours: HSSF's tables (Ma et al. 2024), unchanged."""

from __future__ import annotations

from dataclasses import dataclass

from samfed_monai.reports.compare_forms import piped
from samfed_monai.reports.style import MISSING, as_pixels, as_score

CITATION = (
    "Ma et al., Model-Heterogeneous Semi-Supervised Federated Learning for Medical Image Segmentation, "
    "IEEE Transactions on Medical Imaging, 2024"
)
MARK = "published (HSSF, Ma et al. 2024), other scale"
SCALE = (
    "Not our runs: 384 px, 200 rounds, networks from scratch, the authors' splits, batches and augmentation; their "
    "HD95 pools both directions and skips images with an empty mask. Averages are over all test images."
)
COLLECTIONS = {"polyp": "polyp", "skin": "ISIC2018"}
SITES = {
    "polyp": ("CVC-ClinicDB", "EndoTect-ETIS", "CVC-300", "Kvasir"),
    "skin": ("site 1", "site 2", "site 3", "site 4"),
}


@dataclass(frozen=True)
class Published:
    """One published row.

    Args:
        mode: ``Homogeneous`` or ``Heterogeneous``.
        method: as its authors call it.
        dice, hd95: by collection; Dice in per cent as printed there, HD95 in pixels, ``None`` where not given.
        sites: Dice and HD95 of the four sites by collection, where given.
    """

    mode: str
    method: str
    dice: dict[str, float]
    hd95: dict[str, float | None]
    sites: dict[str, tuple[tuple[float, float], ...]]


def _row(
    mode: str,
    method: str,
    polyp: tuple[float, float | None],
    skin: tuple[float, float | None],
    sites: dict[str, tuple[tuple[float, float], ...]] | None = None,
) -> Published:
    dice, hd95 = {"polyp": polyp[0], "skin": skin[0]}, {"polyp": polyp[1], "skin": skin[1]}
    return Published(mode, method, dice, hd95, sites or {})


ROWS = (
    _row("Homogeneous", "Mean Teacher", (21.06, 234.9), (74.39, 50.7)),
    _row("Homogeneous", "FixMatch", (41.60, 68.5), (76.49, None)),
    _row("Homogeneous", "UniMatch", (47.14, 76.2), (80.12, 38.1)),
    _row("Homogeneous", "ELN", (43.27, None), (74.55, None)),
    _row("Homogeneous", "SemiFL", (59.59, 91.3), (80.59, 42.4)),
    _row("Homogeneous", "HSSF's local method (LSSL)", (62.83, 59.2), (83.40, 29.2)),
    _row("Heterogeneous", "FedMD", (45.81, None), (74.78, None)),
    _row("Heterogeneous", "KT-pFL", (53.19, None), (58.23, None)),
    _row("Heterogeneous", "FedDistill", (42.85, None), (74.98, None)),
    _row("Heterogeneous", "FedProto", (42.60, None), (73.46, None)),
    _row("Heterogeneous", "RHFL", (58.18, None), (73.70, None)),
    _row(
        "Heterogeneous",
        "HSSF",
        (66.65, 54.0),
        (79.11, 34.2),
        {
            "polyp": ((66.35, 51.07), (42.73, 83.24), (78.62, 25.30), (72.82, 54.15)),
            "skin": ((72.18, 51.10), (77.91, 41.74), (77.34, 32.30), (81.83, 30.35)),
        },
    ),
)


def published_markdown(collection: str) -> str:
    """The published rows of a collection as a Markdown table of their own, with mark, scale and citation.

    Args:
        collection: ``polyp`` or ``skin``.
    """
    heads = ["Mode", "Method", "Dice", "HD95 px", *(f"{site}: Dice" for site in SITES[collection])]
    lines = [f"*{MARK}*: {COLLECTIONS[collection]}. {SCALE}", ""]
    lines += [piped(heads), piped(["---", "---", *["---:"] * (len(heads) - 2)])]
    lines += [piped(cells) for cells in published_cells(collection)]
    return "\n".join([*lines, "", f"Source: {CITATION}."]) + "\n"


def published_cells(collection: str) -> list[list[str]]:
    """Spelt cells of every published row: Dice as a share of 1, as in our tables."""
    return [
        [
            row.mode,
            row.method,
            as_score(row.dice[collection] / 100, 4),
            as_pixels(row.hd95[collection]),
            *(as_score(dice / 100, 4) for dice, _ in row.sites.get(collection, ())),
            *[MISSING] * (0 if collection in row.sites else len(SITES[collection])),
        ]
        for row in ROWS
    ]
