"""The page of the related systems: all methods in one table, ranks with their test, and gains by kind of method.

All text is computed from records (``study.record``), so the page can be written when only some rows have been run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from samfed_monai.config.variants import methods
from samfed_monai.core.io import write_bytes, write_text
from samfed_monai.core.text import counted
from samfed_monai.metrics import pool
from samfed_monai.reports.compare_forms import Block, block_markdown
from samfed_monai.reports.rows import CEILING, FLOOR, Cell, place_of, title_of
from samfed_monai.reports.run_data import RunData
from samfed_monai.reports.style import CAVEATS, MISSING, as_difference, as_score
from study.page import table
from study.ranks import ALPHA, Ranking, against, ranks_figure
from study.related_plan import (
    BEST,
    NO_ROW,
    NOT_UNSEEN,
    PARTS,
    REFERENCE,
    device_of,
    dice_of,
    earlier_form,
    hospital_scores,
    on_cpu,
    ranked_rows,
    rows_of,
    runs_of,
    share_of,
)

TITLE = "The related systems"

HEADS = {
    "rank": "Mean rank",
    "seeds": "Seeds",
    "dice": "Dice",
    "worst": "Worst site",
    "last": "Last round",
    "unseen": "Unseen hospital",
    "megabytes": "MB a round",
    "seconds": "processor s a round",
    "memory": "extra MB",
}
_DIGITS = {"rank": 2, "megabytes": 2, "seconds": 0, "memory": 0}


def figures_of(runs: Sequence[RunData], unseen: Sequence[RunData] = ()) -> dict[str, dict[str, Cell]]:
    """Row to column of :data:`HEADS` to values by seed.

    ``seconds`` are processor seconds of a round (training, server, aggregation). ``memory`` is the peak memory of the
    run's process in MB, less that of the reference row with the same seed. Both are only of runs on a CPU
    (:func:`~study.related_plan.on_cpu`), and only if the reference row with the same seed ran on a CPU with the same
    adapter, since other runs may have used a slower processor.

    Args:
        runs: runs of one part.
        unseen: runs of the same rows without one hospital; only its Dice is used.
    """
    table: dict[str, dict[str, dict[int, float | None]]] = {}
    base = {run.seed: run for run in runs if run.row == REFERENCE}
    for run in runs:
        results, of = run.results, table.setdefault(run.row, {})
        for name, value in _values(results).items():
            of.setdefault(name, {})[run.seed] = value
        other = base.get(run.seed)
        if other and not (on_cpu(other.results) and _adapter_of(run) in (None, _adapter_of(other))):
            of["seconds"][run.seed] = of["memory"][run.seed] = None
    for run in unseen:
        tests = [splits["test"] for splits in run.results.get("unseen", {}).values() if "test" in splits]
        if run.row in table and tests:
            table[run.row].setdefault("unseen", {})[run.seed] = pool(tests)["dice"]
    cells = {
        row: {name: Cell({s: v for s, v in sorted(by.items()) if v is not None}) for name, by in of.items()}
        for row, of in table.items()
    }
    reference = cells.get(REFERENCE, {}).get("memory", Cell())
    for row_cells in cells.values():
        row_cells["memory"] = row_cells["memory"].minus(reference)
    return cells


def _values(results: Mapping[str, Any]) -> dict[str, float | None]:
    traffic, process = results["traffic"], results.get("process", {})
    each = ("up_bytes_per_round", "down_bytes_per_round")
    memory = process.get("memory_bytes")
    measured = {"seconds": _processor_seconds(results), "memory": None if memory is None else memory / 1e6}
    dice, worst = results["average"]["test"]["dice"], (results["worst"]["test"] or {}).get("dice")
    last = results["models"]["last"]["average"]["test"]["dice"]
    if results["average"]["test"].get("volumes"):
        best, of_last = _dice_of_sites(results["sites"]), _dice_of_sites(results["models"]["last"]["sites"])
        dice, worst = fmean(best) if best else None, min(best, default=None)
        last = fmean(of_last) if of_last else None
    hospitals = _dice_of_sites(results.get("unseen", {}))
    return {
        "dice": dice,
        "worst": worst,
        "last": last,
        "unseen": fmean(hospitals) if hospitals else None,
        "megabytes": sum(traffic[key] for key in each) / 1e6 if all(key in traffic for key in each) else None,
        **(measured if on_cpu(results) else dict.fromkeys(measured)),
    }


def _dice_of_sites(sites: Mapping[str, Any]) -> list[float]:
    tests = [splits["test"] for splits in sites.values() if splits.get("test")]
    return [dice for test in tests if (dice := dice_of(test)) is not None]


def _processor_seconds(results: Mapping[str, Any]) -> float | None:
    """Processor seconds of a round: wall-clock seconds times the processor share of the run's process.

    Other work on the machine, and pauses, lengthen only wall-clock time. The share is that of the process that ended
    the run. An earlier process that was stopped recorded only the seconds of its rounds. If these are more than half,
    the result is ``None``.
    """
    seconds, used = results["seconds"], results.get("process", {}).get("processor_seconds")
    working: float = seconds["training"] + seconds.get("server", 0.0) + seconds["controller"]
    total, rounds = seconds.get("total"), results["rounds"]
    if used is None or not total or not rounds or total < working / 2:
        return None
    return working / rounds * used / total


def table_block(cells: Mapping[str, Mapping[str, Cell]], ranked: Ranking, seeds: Mapping[str, int]) -> Block:
    """The table of a part: ranked rows first, best on top; empty columns are left out."""
    order = [*ranked.ranks, *(row for row in sorted(cells, key=place_of) if row not in ranked.ranks)]
    keys = [key for key in HEADS if key in ("rank", "seeds") or any(of.get(key, Cell()).n for of in cells.values())]
    rows = {}
    for row in order:
        whole = {"rank": as_score(ranked.ranks.get(row), 2), "seeds": str(seeds[row])}
        rows[row] = [whole[key] if key in whole else _formatted(key, cells[row].get(key), seeds[row]) for key in keys]
    titles = {row: title_of(row) for row in order}
    return Block("Row", [HEADS[key] for key in keys], rows, titles, frozenset())


def volumes_table(runs: Sequence[RunData]) -> list[str]:
    """Lines of a table with the Dice of whole volumes by row, site and class; none for a part without volumes.

    Args:
        runs: runs of one part.
    """
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for run in runs:
        unseen = run.results.get("unseen", {})
        for site, splits in {**run.results["sites"], **unseen}.items():
            volumes = (splits.get("test") or {}).get("volumes") or {}
            for name, part in (volumes.get("classes") or {}).items():
                dice = {run.seed: part["dice"]} if part["dice"] is not None else {}
                found.setdefault((site, name), {}).setdefault(run.row, {}).update(dice)
    if not found:
        return []
    order = sorted({row for of in found.values() for row in of}, key=place_of)
    rows = {row: [_formatted("dice", Cell(of.get(row, {})), 0) for of in found.values()] for row in order}
    heads, titles = [f"{site}: {name}" for site, name in found], {row: title_of(row) for row in order}
    block = block_markdown(Block("Dice of whole volumes", heads, rows, titles, frozenset()))
    return ["Dice of whole volumes, by site and class:", "", block, ""]


def _formatted(key: str, cell: Cell | None, seeds: int) -> str:
    if cell is None or cell.mean is None:
        return MISSING
    digits = _DIGITS.get(key, 3)
    mean = as_difference(cell.mean, digits) if key == "memory" else f"{cell.mean:.{digits}f}"
    text = mean if cell.spread is None else f"{mean} ± {cell.spread:.{digits}f}"
    return f"{text} ({cell.n})" if key == "unseen" and cell.n != seeds else text


def rank_sentences(ranked: Ranking) -> str:
    """The ranks and their test, in sentences."""
    rows = list(ranked.ranks)
    if len(rows) < 2:
        return "There are fewer than two rows to rank yet."
    of, over = counted(len(rows), "row"), counted(len(ranked.blocks), "block")
    text = f"{_name(rows[0])} has the best mean rank of {of} over {over}"
    if ranked.statistic is None or ranked.p is None or ranked.critical_difference is None:
        return f"{text}; a test needs three rows and two blocks."
    differ = ranked.p < ALPHA
    verdict = "not all rows are equally good" if differ else "this order may be chance"
    text += f". Friedman's χ² is {ranked.statistic:.1f}, p {_as_p(ranked.p)}: {verdict}."
    text += f" Two rows differ if their mean ranks are more than {ranked.critical_difference:.2f} apart (Nemenyi)"
    worse = ranked.beyond(rows[0])
    if not worse:
        text += "; no row differs from the best."
    elif not differ:
        text += f"; different from the best: {_names(worse)}, which Friedman's test does not support."
    else:
        text += f"; different from the best: {_names(worse)}."
    if REFERENCE in ranked.ranks and rows[0] != REFERENCE:
        beyond = [row for row in ranked.beyond(REFERENCE) if ranked.ranks[row] < ranked.ranks[REFERENCE]]
        text += f" Better than {_name(REFERENCE)} by more than that: {_names(beyond) if beyond else 'none'}."
    if ranked.missing:
        text += f" Not ranked, for lack of common runs: {_names(ranked.missing)}."
    return text


def against_reference(runs: Iterable[RunData]) -> list[str]:
    """Lines with the rows that are higher or lower than the reference row, each compared with it alone."""
    scores = hospital_scores(runs)
    base = scores.get(REFERENCE)
    if len(scores) < 2 or not base:
        return []
    blocks = {row: len(base.keys() & of.keys()) for row, of in scores.items() if row != REFERENCE}
    most = max(blocks.values())
    few = [row for row, number in blocks.items() if number < most]  # too few for a small p
    found = against({row: of for row, of in scores.items() if row not in few}, REFERENCE)
    text = f"**Against {_name(REFERENCE)}**, which federates without SAM, over {counted(most, 'block')} each, "
    text += f"{counted(len(found), 'row')}{f' (not {_names(few)}, of fewer)' if few else ''}: "
    if 2 / 2**most * len(found) >= ALPHA:
        return [f"{text}too few blocks to show a difference.", ""]
    differ = {row: of for row, of in found.items() if of.p < ALPHA}
    texts = [
        f"- {word}: {', '.join(f'{_name(row)} ({of.ahead} of {of.blocks})' for row, of in those.items())}"
        for word, higher in (("higher", True), ("lower", False))
        if (those := {row: of for row, of in differ.items() if (of.gain > 0) is higher})
    ]
    if not texts:
        return [f"{text}no row shows a difference.", ""]
    return [text.rstrip(), "", *texts, f"- no difference shown: {counted(len(found) - len(differ), 'row')}", ""]


def _as_p(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


GROUPS = {
    "method": "SAM-Fed, with different rules of averaging",
    "ablation": "SAM-Fed with a part removed or replaced",
    "personalised": "sites keep part of the network",
    "heterogeneous": "sites have different networks, every second one small",
    "baseline": "other rows",
}
"""Kinds of methods (``_method -> kind``), in words."""


def what_helps(cells: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    """Lines with the rows at or above the public set alone, and gains over the reference row by kind of method."""
    base = cells.get(REFERENCE)
    if base is None:
        return [f"{_name(REFERENCE)} has not been run, so the other rows have no reference.", ""]
    text = f"{_name(REFERENCE)} has Dice {as_score(base['dice'].mean, 3)}"
    floor = cells.get(FLOOR, {}).get("dice", Cell())
    over = {row: gap for row, of in cells.items() if (gap := of["dice"].minus(floor).mean) is not None}
    above = [row for row, gap in over.items() if gap >= 0 and row not in (FLOOR, CEILING)]
    if over:
        text += f", the public set alone {as_score(floor.mean, 3)}. At or above the latter, over the seeds in common: "
        text += _names(above) if above else "no row"
    gains = {row: of for row, of in _gains(cells).items() if of["dice"] is not None and row != FLOOR}
    rows = _by_kind(gains)
    heads = [f"Median gain over {_name(REFERENCE)}", "Rows", *(HEADS[key] for key in GAINS)]
    return [f"{text}.", "", *(table(heads, rows) if rows else [])]


GAINS = ("dice", "worst", "unseen")
"""Columns with a gain over the reference row."""


def _gains(cells: Mapping[str, Mapping[str, Cell]]) -> dict[str, dict[str, float | None]]:
    """Gains over the reference row, paired by seed, of all rows except it and the ceiling."""
    base = cells.get(REFERENCE, {})
    return {
        row: {key: of.get(key, Cell()).minus(base.get(key, Cell())).mean for key in GAINS}
        for row, of in cells.items()
        if row not in (REFERENCE, CEILING)
    }


def _by_kind(gains: Mapping[str, Mapping[str, float | None]]) -> list[list[str]]:
    """Formatted median gains of kinds with at least three rows, so that one failed row has little effect."""
    known, table = methods(), []
    for kind, what in GROUPS.items():
        rows = [row for row in gains if row in known and known[row].kind == kind]
        values = [[gain for row in rows if (gain := gains[row][key]) is not None] for key in GAINS]
        if len(rows) > 2:  # the middle one of three is not the worst
            table.append([what, str(len(rows)), *(as_difference(median(of)) if of else MISSING for of in values)])
    return table


def _name(row: str) -> str:
    return f"`{row}`"


def _names(rows: Iterable[str]) -> str:
    return ", ".join(map(_name, rows))


def related_page(
    records: str | Path,
    seeds: Sequence[int],
    *,
    title: str | None = None,
    command: str | None = None,
    commands: Mapping[str, str] | None = None,
    caveats: Iterable[str] = (),
) -> tuple[str, dict[str, bytes]]:
    """The page in Markdown, and its figures by part; the same records and arguments give the same bytes.

    Args:
        records: folder of ``related-<part>.jsonl``.
        seeds: seeds of the complete table.
        title: heading (default: :data:`TITLE`).
        command: command line that makes all runs.
        commands: part to the command that made its runs.
        caveats: further caveats, as sentences.

    Raises:
        Refused: a record that cannot be read.
    """
    found = {part: runs_of(part, records) for part in PARTS}
    parts, pictures = [f"# {title or TITLE}", ""], {}
    parts += ["```", command, "```", ""] if command else []
    now = {part: [run for run in runs if not earlier_form(run)] for part, runs in found.items()}
    cells = figures_of(now["polyp"], now["unseen"])
    ranks = {part: ranked_rows(runs) for part, runs in now.items()}
    if not any(found.values()):
        parts += ["**Nothing has been run yet**: the command above runs the rows below, and writes their tables.", ""]
        parts += ["```", *dict.fromkeys((commands or {}).values()), "```", ""] if commands else []
    if found["polyp"]:
        parts += ["## In short: polyps, sites without labels", "", *against_reference(now["polyp"]), *what_helps(cells)]
    for part, runs in now.items():
        if part == "unseen" or not runs:  # its column is in the first table
            continue
        ranked = ranks[part]
        of = cells if part == "polyp" else figures_of(runs)
        count = {row: len({run.seed for run in runs if run.row == row}) for row in of}
        parts += [f"## {PARTS[part]}", ""]
        shown = [part, *(["unseen"] if part == "polyp" and found["unseen"] else [])]
        parts += ["```", *(text for key in shown if (text := (commands or {}).get(key))), "```", ""]
        parts += [block_markdown(table_block(of, ranked, count)), ""]
        parts += volumes_table(runs)
        parts += [rank_sentences(ranked), "", *(against_reference(runs) if part != "polyp" else [])]
        if len(ranked.ranks) > 1:
            pictures[part] = ranks_figure(ranked)
            parts += [f"![Mean ranks and critical difference]({{{part}}})", ""]
    parts += ["## What has not been run", "", *_not_run(found, seeds, records), "", *_earlier(found)]
    parts += ["## How to read the tables", "", READING, ""] if any(found.values()) else []
    texts = [
        *_machines(found),
        *(text for describe in (_adapters, _starts) for part, runs in found.items() for text in describe(part, runs)),
    ]
    parts += ["## Caveats", "", *(f"- {caveat}" for caveat in [*CAVEATS, *caveats]), *texts]
    parts += ["", "## Provenance", "", *_provenance(found)] if any(found.values()) else []
    return "\n".join(parts) + "\n", pictures


READING = f"""\
- [Runs of an earlier form](#runs-of-an-earlier-form) of a method are in a separate table, and not ranked.
- *Mean rank*: mean over blocks (a site with a seed) of the rank by test Dice; 1 is the best. Only rows that have all
  blocks in common are ranked. Not ranked are the oracle, which no hospital has, and rows that use masks of the
  sites' images in a part where other rows use none.
- *Dice*: mean over the test images of all sites, for the model that was best on validation. *Worst site*: the lowest
  mean of a site. *Last round*: Dice of the last round's model; far below *Dice*, training made the network worse.
  *Unseen hospital*: Dice at a hospital that took no part, from separate runs without it. Each is the mean ± sample
  standard deviation over seeds.
- For organs and chambers, ranks, tests, *Dice* and *worst site* are of whole volumes, not images: a site's Dice is the
  mean over patients and classes, and *Dice* the mean over sites.
- *MB a round*: in both directions, for all sites. A run that was stopped sends its model once more, which counts.
- *processor s a round*: training at all sites, server and aggregation, in processor seconds: wall-clock seconds times
  the share of the processors that the run had, since other work on the machine lengthens wall-clock time. Missing for
  a run that was stopped after most of its work.
- *extra MB*: peak memory of the run's process above that of `{REFERENCE}`, with all sites in one process. Seconds and
  memory are of runs on a CPU, with seeds for which `{REFERENCE}` ran on one with the same adapter of SAM: another
  adapter means another machine. All other columns use all runs.
- *Against a row, higher, lower*: Wilcoxon's signed-rank test over blocks with Holm's correction for the number of rows;
  in brackets, the number of blocks in which a row is higher. Sites of one seed share a network, and seeds of one site
  share images, so blocks are not independent, and the tests find differences too easily."""


def _not_run(found: Mapping[str, Sequence[RunData]], seeds: Sequence[int], records: str | Path) -> list[str]:
    """Lines with the missing runs of each part, and with the rows that are not meant to run."""
    rows = []
    for part, title in PARTS.items():
        if part == "skin" and not found["skin"]:
            best = f"the {BEST} rows with the best mean ranks on polyps, {_names([FLOOR, REFERENCE, CEILING])}"
            rows.append([title, "all", best, MISSING])
            continue
        share = share_of(part, rows_of(part, records=records), seeds, records)
        never = [row for row in share.rows if all((row, seed) not in share.done for seed in seeds)]
        partly = dict.fromkeys(row for row, _ in share.todo if row not in never)
        if share.todo:
            missing = f"{len(share.todo)} of {len(share.rows) * len(seeds)}" if share.done else "all"
            rows.append([title, missing, *(_names(of) if of else MISSING for of in (never, partly))])
    heads = ["Part", "Runs missing", "Rows without a run", f"Rows with fewer than {counted(len(seeds), 'seed')}"]
    texts = table(heads, rows, texts=len(heads)) if rows else []
    texts += [f"- No row {_name(row)}: {why}." for row, why in NO_ROW.items() if row in methods()]
    texts += [f"- No unseen hospital for {_name(row)}: {why}." for row, why in NOT_UNSEEN.items() if row in methods()]
    return texts


def _earlier(found: Mapping[str, Sequence[RunData]]) -> list[str]:
    """Lines of a table of rows whose runs are of an earlier form of their method, with the difference; or none."""
    rows = []
    earlier = {part: [run for run in runs if earlier_form(run)] for part, runs in found.items()}
    for part, runs in earlier.items():
        if part == "unseen":  # its column is in the rows of polyps
            continue
        cells = figures_of(runs, earlier["unseen"] if part == "polyp" else ())
        forms = {run.row: str(earlier_form(run)) for run in runs}
        for row in sorted(cells, key=place_of):
            scores = [_formatted(key, cells[row].get(key), cells[row]["dice"].n) for key in GAINS]
            rows.append([f"{title_of(row)} ({_name(row)})", PARTS[part], *scores, forms[row]])
    heads = ["Row", "Part", *(HEADS[key] for key in GAINS), "What the runs are of"]
    return ["### Runs of an earlier form", "", *table(heads, rows, texts=len(heads))] if rows else []


def _provenance(found: Mapping[str, Sequence[RunData]]) -> list[str]:
    lines = []
    for part, runs in found.items():
        lists = dict.fromkeys(str(run.results["hashes"].get("datalist")) for run in runs)
        adapters = dict.fromkeys(adapter for run in runs if (adapter := _adapter_of(run)))
        lines += [f"- {PARTS[part]}: data list `{datalist}` (SHA-256)" for datalist in lists]
        lines += [f"- {PARTS[part]}: adapter `{', '.join(adapters)}`"] if adapters else []
    everything = [run for runs in found.values() for run in runs]
    devices = Counter(device_of(run.results) for run in everything)
    texts = (f"{device} ({counted(number, 'run')})" for device, number in sorted(devices.items()))
    lines.append(f"- device: {', '.join(texts)}")
    for name in sorted({name for run in everything for name in run.results["versions"]}):
        values = sorted({run.results["versions"].get(name, "unknown") for run in everything})
        lines.append(f"- {name}: {', '.join(values)}")
    return lines


def _starts(part: str, runs: Sequence[RunData]) -> list[str]:
    """Rows whose model is the network at the start, since no round is better on validation images."""
    rows = dict.fromkeys(run.row for run in runs if is_the_start(run))
    text = "no round is better than the network at the start, which is therefore the model, in a run of"
    return [f"- {PARTS[part]}: {text} {_names(rows)}."] if rows else []


def is_the_start(run: RunData) -> bool:
    """Whether a run's model is the network at its start, since no round is better on validation images."""
    found = run.results.get("against_start")
    return found is not None and found["rounds"] <= found["start"]


TWINS = ("coordinate_median", "trimmed_mean")
"""Two rules that are equal with four sites: the mean of the middle two of four numbers."""


def _machines(found: Mapping[str, Sequence[RunData]]) -> list[str]:
    """Parts that ran on several devices, and the differences between runs of one rule there."""
    mixed = [part for part, runs in found.items() if len({device_of(run.results) for run in runs}) > 1]
    if not mixed:
        return []
    text = f"- Runs of these parts were made on more than one machine: {'; '.join(PARTS[part] for part in mixed)}. "
    text += "Each machine fitted its own warm starts, so runs on different machines start from different weights."
    dice = {
        (part, run.seed, run.row): run.results["average"]["test"]["dice"]
        for part in mixed
        for run in found[part]
        if run.row in TWINS
    }
    differences = [
        abs(dice[part, seed, TWINS[0]] - dice[part, seed, TWINS[1]])
        for part, seed, row in dice
        if row == TWINS[1] and (part, seed, TWINS[0]) in dice
    ]
    if differences:
        text += (
            f" With four sites {_names(TWINS)} are the same rule; their runs differ by up to {max(differences):.4f}."
        )
    return [text]


def _adapters(part: str, runs: Sequence[RunData]) -> list[str]:
    """The adapters of SAM in a part's runs by seed, and their Dice, if the adapter was fitted more than once."""
    texts = _seed_by_seed([(run, f"with `{adapter}`") for run in runs if (adapter := _adapter_of(run))])
    if texts is None:
        return []
    dice = {
        str(_adapter_of(run)): scored["test"]["dice"]
        for run in runs
        if (scored := (run.results["teacher"] or {}).get("average"))
    }
    text = (
        f"- {PARTS[part]}: the adapter of SAM was fitted more than once from one recipe: {texts}. Students start from "
    )
    text += "its trunk, so differences between seeds include those of the adapters."
    if dice:
        text += f" Dice of the adapted SAM itself: {', '.join(f'{of:.3f} (`{name}`)' for name, of in dice.items())}."
    return [text]


def _adapter_of(run: RunData) -> str | None:
    sha256 = run.results["hashes"].get("adapter")
    return None if sha256 is None else str(sha256)[:12]


def _seed_by_seed(values: Sequence[tuple[RunData, str]]) -> str | None:
    """The most frequent value of each seed, and rows with another one; ``None`` if all runs have the same value."""
    if len({value for _, value in values}) < 2:
        return None
    seeds: dict[int, dict[str, list[str]]] = {}
    for run, value in values:
        seeds.setdefault(run.seed, {}).setdefault(value, []).append(run.row)
    texts = []
    for seed, of in sorted(seeds.items()):
        (usual, _), *others = sorted(of.items(), key=lambda item: (-len(item[1]), item[0]))
        texts.append(f"seed {seed} {usual}{''.join(f', but {_names(rows)} {value}' for value, rows in others)}")
    return "; ".join(texts)


def write_related(page: str | Path, text: str, pictures: Mapping[str, bytes]) -> None:
    """Writes the result of :func:`related_page`, with its figures next to it as ``<page>-<part>.png``."""
    path = Path(page)
    for part, png in pictures.items():
        name = f"{path.stem}-{part}.png"
        write_bytes(path.with_name(name), png)
        text = text.replace(f"({{{part}}})", f"({name})")
    write_text(path, text)
