"""Copies public collections of volumes into the layout of ``samfed prepare nifti``, with a table of patients."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections import Counter
from pathlib import Path

from samfed_monai.core.errors import refused
from samfed_monai.core.io import write_text

PUBLIC = "public"
"""Folder of the public volumes."""


def stage_volumes(source: Path, to: Path, *, public_of: str, share: float = 0.2) -> dict[str, int]:
    """Copies volumes and masks to ``<to>/<site>/{images,masks}``, and writes ``<to>/patients.csv``.

    The public set is a share of one site's patients, chosen by hash. A patient of several sites is kept only at the
    site with the fewest volumes.

    Args:
        source: folder with a ``manifest.csv`` with the columns site, id, image and mask; patient if patients have
            several files.
        to: output folder; created if missing.
        public_of: site whose patients are public in part.
        share: share of its patients that are public, rounded; at least one patient.

    Returns:
        Name of each folder to its number of volumes.

    Raises:
        Refused: the collection has no site ``public_of``.
    """
    with (source / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        rows = [{**row, "patient": row.get("patient") or row["id"]} for row in csv.DictReader(stream)]
    sizes = Counter(row["site"] for row in rows)
    if public_of not in sizes:
        raise refused("--public", repr(public_of), f"a site of {source}, one of {sorted(sizes)}", "name one of them")
    site_of: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: sizes[row["site"]]):
        site_of.setdefault(row["patient"], row["site"])
    rows = [row for row in rows if site_of[row["patient"]] == row["site"]]
    patients = {row["patient"] for row in rows if row["site"] == public_of}
    drawn = sorted(patients, key=lambda patient: hashlib.sha256(patient.encode()).hexdigest())
    public = set(drawn[: max(1, round(share * len(drawn)))])
    lines, count = ["image,patient"], Counter[str]()
    for row in rows:
        folder = PUBLIC if row["patient"] in public else row["site"]
        for kind in ("image", "mask"):
            path = to / folder / f"{kind}s" / f"{row['id']}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / row[kind], path)
        lines.append(f"{folder}/images/{row['id']},{row['patient']}")
        count[folder] += 1
    write_text(to / "patients.csv", "\n".join(lines) + "\n")
    return dict(sorted(count.items()))
