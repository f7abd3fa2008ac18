"""``results.json``: its JSON Schema (``results.schema.json``), validation, and assembly from tables of scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Refused, Stopped, folded, refused
from samfed_monai.core.io import canonical_hash, read_json
from samfed_monai.core.validators import require, schema_problems
from samfed_monai.metrics import pool, summarise, worst

RESULTS_SCHEMA: dict[str, Any] = read_json(Path(__file__).with_name("results.schema.json"))
_PROPERTIES = RESULTS_SCHEMA["properties"]
SCHEMA_VERSION: int = _PROPERTIES["schema"]["enum"][0]
SPLITS = ("validation", "test")
TIMES = tuple(_PROPERTIES["seconds"]["properties"])

Summaries = Mapping[str, Mapping[str, Mapping[str, Any] | None]]
"""By site and split, the result of :func:`samfed_monai.metrics.summarise`; ``None`` if the site sent nothing."""

BYTES = ("up_bytes", "down_bytes")
BEST, LAST = "best", "last"
MAX_FALL = 0.1
"""Dice that the last model may lose to the best one before training counts as harmful."""

RESTORE = "restore the file from a copy of the run folder and continue, or run again in a new output_dir"
ROUND_SCHEMA = read_json(Path(__file__).with_name("round.schema.json")) | {"$defs": RESULTS_SCHEMA["$defs"]}
_valid = set[str]()  # hashes of valid records, which are read several times: the check takes a millisecond per site


def read_round(folder: Path, number: int, run: str = "") -> dict[str, Any]:
    """``round.json`` of a round, which matches :data:`ROUND_SCHEMA`.

    Args:
        folder: of the round.
        number: of the round.
        run: the run's random name, of ``run.json``; empty if it is not known.

    Raises:
        Stopped: it is missing or damaged.
        Refused: it belongs to another run.
    """
    path = folder / "round.json"
    try:
        record: dict[str, Any] = read_json(path)
    except Refused as error:
        reasons = "; ".join(f"{problem.where}: {problem.found}" for problem in error.problems)
        raise Stopped(f"the record of round {number} cannot be read ({path}: {reasons})", RESTORE) from None
    if (sha256 := canonical_hash([number, record])) not in _valid:
        properties = {"round": {"const": number, "description": f"{number}, as the folder"}}
        schema = {**ROUND_SCHEMA, "properties": {**ROUND_SCHEMA["properties"], **properties}}
        if problems := schema_problems(record, schema, str(path)):
            raise Stopped(f"the record of round {number} is not valid ({'; '.join(folded(problems))})", RESTORE)
        _valid.add(sha256)
    if run and (run_of_record := record.get("run", run)) != run:
        raise refused(path, f"a round of run {run_of_record}", f"one of run {run}", "move this folder away")
    return record


def round_traffic(record: Mapping[str, Any]) -> dict[str, int]:
    """Returns the bytes of a stored round to and from all sites, with the keys of ``results.json``."""
    return {name: sum(entry[name] for entry in record["sites"].values()) for name in BYTES}


def build_results(
    *,
    variant: str,
    rounds: int,
    scores: Mapping[str, Summaries],
    model_rounds: Mapping[str, int | None] | None = None,
    teacher_scores: Summaries | None = None,
    teacher: Mapping[str, Any] | None = None,
    traffic: Mapping[str, int] | None = None,
    seconds: Mapping[str, float] | None = None,
    hashes: Mapping[str, str | None] | None = None,
    versions: Mapping[str, str] | None = None,
    seeds: Mapping[str, int] | None = None,
    skipped: Iterable[Mapping[str, Any]] = (),
    command: str | None = None,
    caveats: Iterable[str] = (),
    unseen: Mapping[str, Summaries] | None = None,
    rounds_traffic: Sequence[Mapping[str, int]] | None = None,
    preparation: Mapping[str, int] | None = None,
    **other: Any,
) -> dict[str, Any]:
    """Returns the content of ``results.json`` (``docs/results-schema.md`` has every key and unit).

    The average is the mean over all images of all sites, the worst is the site with the lowest Dice (docs/method.md).

    Args:
        variant: name of the variant, for instance ``samfed`` or ``dp_only``.
        rounds: number of federated rounds that were run.
        scores: scores by model (``best``, which the top level repeats, and ``last``).
        model_rounds: the round that produced each model.
        teacher_scores: the teacher's scores; ``None`` in runs without a teacher.
        teacher: more about the teacher: ``before`` and ``after`` (Dice by image set), ``adapt``, ``base``, ``size``, …
        traffic: ``up_bytes`` and ``down_bytes``; 0 if missing.
        seconds: by name of :data:`samfed_monai.results.TIMES`; 0 if missing, ``total`` then their sum.
        hashes: SHA-256 by name, including ``datalist``.
        versions: version by package.
        seeds: ``seed`` and others.
        skipped: ``{"round", "site", "reason"}`` of every update that was not aggregated.
        command: command line, for the report.
        caveats: further sentences for the report.
        unseen: scores of unseen hospitals, by model of ``scores``.
        rounds_traffic: ``up_bytes`` and ``down_bytes`` of every round, all sites together.
        preparation: ``up_bytes`` and ``down_bytes`` before round 0: checks, adapter, first weights.
        other: other keys of the schema, unchanged; ``None`` values are omitted.

    Raises:
        Refused: the result does not match the schema; every violation is listed.
    """
    skip = (other.get("convention") or {}).get("empty") == "skipped"
    models = {
        name: {"round": (model_rounds or {}).get(name), **site_tables(tables, skip_empty=skip)}
        for name, tables in scores.items()
    }
    for name, tables in (unseen or {}).items():
        models.setdefault(name, {})["unseen"] = _scores_of_unseen(tables)
    times = {name: float((seconds or {}).get(name, 0.0)) for name in TIMES}
    times["total"] = times["total"] or sum(times.values())
    best = models[BEST]
    traffic_bytes = {key: int((traffic or {}).get(key, 0)) for key in BYTES}
    per_round = rounds_traffic or ()
    means = {f"{key}_per_round": sum(one[key] for one in per_round) / len(per_round) for key in BYTES if per_round}
    before = {f"{key}_before": int(preparation[key]) for key in BYTES} if preparation else {}
    results = {
        "schema": SCHEMA_VERSION,
        "variant": variant,
        "rounds": rounds,
        "selected": BEST,
        **{key: best[key] for key in ("sites", "average", "worst")},
        **({"unseen": best["unseen"]} if "unseen" in best else {}),
        "models": models,
        **{name: value for name, value in other.items() if value is not None},
        "teacher": _teacher(teacher_scores, teacher, set(best["sites"]), skip_empty=skip),
        "traffic": {**traffic_bytes, **means, **before},
        "seconds": times,
        "hashes": dict(hashes or {}),
        "versions": dict(versions or {}),
        "seeds": dict(seeds or {}),
        "skipped": [dict(update) for update in skipped],
        "command": command,
        "caveats": list(caveats),
    }
    require(validate_results(results))
    return results


def fall_of(models: Mapping[str, Any]) -> tuple[float, float] | None:
    """Dice of a run's best and last model if the last lost more than :data:`MAX_FALL`; else ``None``.

    It is validation Dice, or test Dice if no site sent scores of validation images.
    """
    for split in ("validation", "test"):
        best, last = (models[name]["average"][split]["dice"] if name in models else None for name in (BEST, LAST))
        if best is not None and last is not None:
            return (best, last) if best - last > MAX_FALL else None
    return None


def site_tables(tables: Summaries, *, splits: Sequence[str] = SPLITS, skip_empty: bool = False) -> dict[str, Any]:
    """Returns ``sites``, ``average`` and ``worst`` of one model.

    Args:
        tables: scores of its sites; a missing split counts as a split without images.
        splits: the splits to include.
        skip_empty: whether images with an empty mask are left out of HD95, see :func:`samfed_monai.metrics.summarise`.
    """
    sites = {site: {split: dict(row.get(split) or summarise(())) for split in splits} for site, row in tables.items()}
    by_split = {split: {site: row[split] for site, row in sites.items()} for split in splits}
    return {
        "sites": sites,
        "average": {split: pool(row.values(), skip_empty=skip_empty) for split, row in by_split.items()},
        "worst": {split: worst(row) for split, row in by_split.items()},
    }


def _scores_of_unseen(tables: Summaries) -> dict[str, Any]:
    """Returns the scores of unseen hospitals, without missing splits."""
    return {name: {split: dict(found or summarise(())) for split, found in row.items()} for name, row in tables.items()}


def _teacher(
    tables: Summaries | None, about: Mapping[str, Any] | None, trained: set[str], *, skip_empty: bool
) -> dict[str, Any] | None:
    """Returns the teacher's part; its average is over the training sites, as for a model."""
    if tables is None and about is None:
        return None
    of_trained = {site: table for site, table in (tables or {}).items() if site in trained}
    of_unseen = {site: table for site, table in (tables or {}).items() if site not in trained}
    splits = [split for split in SPLITS if any(split in table for table in (tables or {}).values())]
    tables_of_trained = site_tables(of_trained, splits=splits, skip_empty=skip_empty)
    return {
        **dict(about or {}),
        "sites": tables_of_trained["sites"],
        "average": tables_of_trained["average"],
        **({"unseen": _scores_of_unseen(of_unseen)} if of_unseen else {}),
    }


def validate_results(results: Any, *, where: str = "results.json") -> list[Problem]:
    """Returns every violation of :data:`RESULTS_SCHEMA` with its place.

    Unknown keys are allowed, so that a run may record more than this version knows.

    Args:
        results: content of a ``results.json``.
        where: file name for the messages.
    """
    problems = schema_problems(results, RESULTS_SCHEMA, where)
    if problems:
        return problems
    if results["selected"] not in results["models"]:
        found, names = repr(results["selected"]), sorted(results["models"])
        problems.append(Problem(f"{where} -> selected", found=found, expected=f"one of the models {names}"))
    for name in sorted(results.get("unseen", {}).keys() & results["sites"].keys()):
        expected = "a hospital that took no part in training"
        problems.append(Problem(f"{where} -> unseen#{name}", found="a training site", expected=expected))
    return problems
