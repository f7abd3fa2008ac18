"""The runs for the page of the related systems: parts, their rows, recorded runs, and remaining runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from samfed_monai.config.variants import methods, variant_files
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import read_json
from samfed_monai.core.text import counted
from samfed_monai.reports.rows import CEILING, FLOOR, place_of
from samfed_monai.reports.run_data import RunData
from study.ranks import Ranking, ranking
from study.record import SUFFIX, read_record

PARTS = {
    "polyp": "Polyps, sites without labels",
    "labelled": "Polyps, sites with masks of their own images",
    "weak": "Polyps, sites with scribbles",
    "unseen": "Polyps, trained without Kvasir",
    "skin": "Skin",
    "abdomen": "Organs of the abdomen: a site with CT and one with MR",
    "abdomen_weak": "Organs of the abdomen, sites with scribbles",
    "cardiac": "Chambers of the heart: three sequences of two hospitals",
    "cardiac_unseen": "Chambers of the heart, trained without late enhancement",
}
"""The parts, in the order of their runs; each has a record ``related-<part>.jsonl``."""

VOLUMES = (
    *(
        "local_only",
        "no_sam",
        "self_training",
        "samfed",
        "fedgin",
        "fedda",
        "fedda_cyclic",
        "elcfs",
        "fedsemidg",
        "fca",
        "heterogeneous",
    ),
    *("pfedsam", "pfedsam_two_stage", "oracle"),
)
"""Rows of the parts with several classes. FedICRA, which learns from weak labels, is in ``abdomen_weak``: its tree
energy is 0 with whole masks, where every pixel has a label."""

NO_SHARED_NETWORK = {"local_only", "heterogeneous", "pfedsam", "pfedsam_two_stage"}
"""Of these, rows whose sites keep networks or parts of them, so an unseen hospital has no complete network."""

REFERENCE = "no_sam"
"""The reference row: federated averaging on a student's own confident labels, on which most systems build."""

BEST = 10
"""Number of rows with the best mean ranks on polyps that also run on skin, with floor, reference row and ceiling."""

NO_ROW = {
    "cpss_adapt": "it adapts a finished model at one site, and is no federation",
    "krum": "it needs five sites, and these lists have four",
}
"""Methods without a row, with the reason."""

RENAMED = {"spp_fgc": "clustered_sites"}
"""Rows in records to the current name of their method, which computes the same."""

NOT_UNSEEN = {
    "coordinate_median": "two sites train there, and it needs three",
    "trimmed_mean": "two sites train there, and it needs three",
    "clustered_sites": "two sites train there, and two clusters of two sites need four",
    **dict.fromkeys(("fedmd", "fedproto", "local_only"), "sites keep their networks, and another hospital has none"),
}
"""Rows of polyps without a run without Kvasir, with the reason."""


def rows_to_run(part: str, records: str | Path, *, only: Iterable[str] = (), seed: int | None = None) -> list[str]:
    """Names of a part's rows that are to be run.

    Args:
        part: one of :data:`PARTS`.
        records: folder of the records.
        only: rows to choose from; empty for all. Rows that the part does not have are ignored.
        seed: leaves out rows whose run with this seed is recorded; ``None`` leaves out none.

    Raises:
        Refused: ``only`` has a name that no part has, or the part is ``skin`` and there is no record of polyps.
    """
    only = list(only)
    known = methods()
    if unknown := [row for row in only if row not in known or row in NO_ROW]:
        why = [f"{row!r}, {NO_ROW[row]}" if row in NO_ROW else repr(row) for row in unknown]
        hint = "`python -m study related-rows polyp` lists those of a part"
        raise Refused([Problem("--only", found=text, expected="a row", hint=hint) for text in why])
    rows = [row for row in rows_of(part, records=records) if not only or row in only]
    done = {run.row for run in runs_of(part, records) if run.seed == seed and not earlier_form(run)}
    return [row for row in rows if row not in done]


def rows_of(part: str, *, records: str | Path | None = None) -> list[str]:
    """Names of a part's rows, in the order of tables.

    Args:
        part: one of :data:`PARTS`.
        records: folder of the records; needed for ``skin``, whose rows are the best ones on polyps.

    Raises:
        Refused: the part is ``skin`` and there is no record of polyps.
    """
    known = methods()
    named = sorted(known.keys() - NO_ROW.keys(), key=place_of)
    if part == "skin":
        found = runs_of("polyp", records) if records is not None else []
        if not found:
            hint = "run the part polyp first: this part runs its best rows"
            raise Refused([Problem("skin", found="no record of polyps", expected="a table to choose from", hint=hint)])
        best = [row for row in ranked_rows(found).ranks if row in known][:BEST]
        return list(dict.fromkeys([*best, FLOOR, REFERENCE, CEILING]))
    if part in ("abdomen", "cardiac", "cardiac_unseen"):
        excluded = NO_SHARED_NETWORK if part == "cardiac_unseen" else set()
        return [name for name in named if name in VOLUMES and name not in excluded]
    if part in ("weak", "abdomen_weak"):
        classes = ("one", "several") if part == "weak" else ("several",)
        return [name for name in named if known[name].labels == "weak" and known[name].classes in classes]
    if part == "labelled":
        return [name for name in named if known[name].labels == "masks" and name != CEILING]
    unlabelled = [name for name in named if known[name].labels not in ("masks", "weak")]
    return [*unlabelled, CEILING] if part == "polyp" else [name for name in unlabelled if name not in NOT_UNSEEN]


def options_of(row: str, *, local_steps: int, adapter: str) -> list[str]:
    """Options that only this row needs, as arguments of the command line.

    If sites have different networks, sites and server also take steps on the public set: per round as many as a site
    takes on its own images. The default, one pass, would be four times as many here. The second network is then
    ``lite0_fpn`` from ImageNet instead of the methods' ``basic_unet``, which needs no weights file, but is slower
    (docs/benchmarks.md) and starts untrained. If the sites train SAM itself, there is no teacher, and so no adapter.

    Args:
        row: name of a method.
        local_steps: steps per site and round.
        adapter: file of the teacher's adapter, for all other rows.
    """
    method = methods()[row]
    layers = [read_json(path) for path in variant_files(None, row)]
    options = (
        [] if any(str(layer.get("network_name")).startswith("sam_") for layer in layers) else ["--adapter", adapter]
    )
    networks = [layer["mixed_networks"] for layer in layers if "mixed_networks" in layer]
    if networks[-1:] == [["mobile_sam_fpn", "basic_unet"]]:
        options += ["--mixed_networks", "['mobile_sam_fpn','lite0_fpn']"]
    return [*options, "--public_steps", str(local_steps)] if method.kind == "heterogeneous" else options


def runs_of(part: str, records: str | Path | None) -> list[RunData]:
    """Runs in the record of a part; empty without a record."""
    path = Path(records or ".") / f"related-{part}{SUFFIX}"
    runs = read_record(path) if records is not None and path.is_file() else []
    return [replace(run, about={**run.about, "row": RENAMED.get(run.row, run.row)}) for run in runs]


def device_of(results: Mapping[str, Any]) -> str:
    """The device of a run; earlier results, which do not record it, are from a CPU."""
    return str(results.get("process", {}).get("device", "cpu"))


def on_cpu(results: Mapping[str, Any]) -> bool:
    """Whether a run was on a CPU; only then are its seconds and memory in the table."""
    return device_of(results) == "cpu"


def earlier_form(run: RunData) -> str | None:
    """How the method differed when it was run, from the record; ``None`` if it is unchanged."""
    return run.about.get("earlier")


def newest(runs: Iterable[RunData]) -> list[RunData]:
    """Runs without those of an earlier form of a method that also has runs of its current form."""
    runs = list(runs)
    current = {run.row for run in runs if not earlier_form(run)}
    return [run for run in runs if run.row not in current or not earlier_form(run)]


def dice_of(test: Mapping[str, Any]) -> float | None:
    """A site's test Dice: of whole volumes if it has any, since most slices lack an organ; else of its images."""
    dice: float | None = (test.get("volumes") or test)["dice"]
    return dice


def site_scores(runs: Iterable[RunData]) -> dict[str, dict[tuple[str, int], float]]:
    """Row to block (site, seed) to :func:`dice_of`; sites without scores have no blocks."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    for run in runs:
        of = found.setdefault(run.row, {})
        for site, splits in run.results["sites"].items():
            if (dice := dice_of(splits["test"])) is not None:
                of[site, run.seed] = dice
    return found


def gains_by_site(blocks: Mapping[tuple[str, int], float], base: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """Site to the mean gain of a row over another, over common seeds; sites are sorted.

    Args:
        blocks, base: scores of the two rows (:func:`site_scores`).
    """
    gains: dict[str, list[float]] = {}
    for site, seed in sorted(blocks.keys() & base.keys()):
        gains.setdefault(site, []).append(blocks[site, seed] - base[site, seed])
    return {site: fmean(values) for site, values in gains.items()}


def ranked_rows(runs: Iterable[RunData]) -> Ranking:
    """Ranks the rows of :func:`hospital_scores`."""
    return ranking(hospital_scores(runs))


def hospital_scores(runs: Iterable[RunData]) -> dict[str, dict[tuple[str, int], float]]:
    """:func:`site_scores` of the rows that may be compared: all but :func:`with_more_labels`."""
    runs = list(runs)
    excluded = with_more_labels(runs)
    return {row: of for row, of in site_scores(runs).items() if row not in excluded}


def with_more_labels(runs: Iterable[RunData]) -> set[str]:
    """Rows that use labels of the sites' images, if other rows of the part do not; always the ceiling."""
    own = {run.row: run.row == CEILING or bool(run.results.get("own_labels")) for run in runs}
    return {row for row, labels in own.items() if labels and (row == CEILING or not all(own.values()))}


@dataclass(frozen=True)
class Share:
    """The requested runs of a part (rows x seeds), and which of them are done.

    Args:
        part: one of :data:`PARTS`.
        rows, seeds: requested rows and seeds.
        done: requested runs in the record, as row and seed.
        took: row to mean processor seconds of its recorded runs on a CPU.
    """

    part: str
    rows: Sequence[str]
    seeds: Sequence[int]
    done: frozenset[tuple[str, int]] = frozenset()
    took: Mapping[str, float] = field(default_factory=dict)

    @property
    def todo(self) -> list[tuple[str, int]]:
        return [(row, seed) for seed in self.seeds for row in self.rows if (row, seed) not in self.done]

    @property
    def hours(self) -> float | None:
        """Core-hours of the remaining runs, from the row's seconds or the mean of all rows; ``None`` before any run."""
        if not self.took:
            return None if self.todo else 0.0
        typical = fmean(self.took.values())
        return sum(self.took.get(row, typical) for row, _ in self.todo) / 3600


def share_of(part: str, rows: Sequence[str], seeds: Sequence[int], records: str | Path) -> Share:
    """Reads from the records which runs of a part are done, and how long its rows took."""
    runs, took = runs_of(part, records), dict[str, list[float]]()
    for run in runs:
        if not on_cpu(run.results):
            continue
        seconds = run.results.get("process", {}).get("processor_seconds")
        took.setdefault(run.row, []).append(run.results["seconds"]["total"] if seconds is None else seconds)
    current = {(run.row, run.seed) for run in runs if not earlier_form(run)}
    done = frozenset((row, seed) for row, seed in current if row in rows and seed in seeds)
    return Share(part, rows, seeds, done, {row: fmean(values) for row, values in took.items()})


def plan_text(shares: Sequence[Share]) -> str:
    """The plan: remaining runs and core-hours of each part, and their sum.

    For a part without runs, the time is estimated from the mean time of a row in the other parts.
    """
    ran = [seconds for share in shares for seconds in share.took.values()]
    lines, hours = [], []
    for share in shares:
        needed, known = share.hours, ""
        if needed is None and ran:
            needed, known = len(share.todo) * fmean(ran) / 3600, ", estimated from the other parts"
        text = "unknown, no runs yet" if needed is None else f"{needed:.1f} core-hours{known}"
        size = f"{counted(len(share.rows), 'row')} x {counted(len(share.seeds), 'seed')}"
        lines.append(f"{share.part:9} {size}, {len(share.done)} done, {len(share.todo)} to run: {text}")
        hours.append(needed)
    whole = sum(needed for needed in hours if needed is not None)
    more = ", without the unknown parts" if None in hours else ""
    return "\n".join([*lines, f"{'total':9} {whole:.1f} core-hours{more}"]) + "\n"
