"""Assembles ``results.json`` from tables of scores, as a pure function; and its averages."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from samfed_monai.core.errors import Refused
from samfed_monai.metrics import BESIDE, Scores, pool, summarise, summarise_classes, worst
from samfed_monai.results.schema import SCHEMA_VERSION, SPLITS, TIMES, validate_results

Table = Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""Scores of a set of images: rows of ``{"id", "dice", "iou", "hd95", "empty"}``, or an already made summary."""

BYTES = ("up_bytes", "down_bytes")
STATED = (
    *("networks", "costs", "exchange", "convention", "own_models", "own_labels", "privacy", "process"),
    *("start", "against_start"),
)
"""Keys of the schema that a run states as they are."""


def build_results(
    *,
    variant: str,
    rounds: int,
    scores: Mapping[str, Mapping[str, Mapping[str, Table]]],
    selected: str = "best",
    model_rounds: Mapping[str, int | None] | None = None,
    teacher_scores: Mapping[str, Mapping[str, Table]] | None = None,
    teacher: Mapping[str, Any] | None = None,
    traffic: Mapping[str, int] | None = None,
    seconds: Mapping[str, float] | None = None,
    hashes: Mapping[str, str | None] | None = None,
    versions: Mapping[str, str] | None = None,
    seeds: Mapping[str, int] | None = None,
    skipped: Iterable[Mapping[str, Any]] = (),
    command: str | None = None,
    caveats: Iterable[str] = (),
    unseen: Mapping[str, Mapping[str, Mapping[str, Table]]] | None = None,
    rounds_traffic: Sequence[Mapping[str, int]] | None = None,
    preparation: Mapping[str, int] | None = None,
    **stated: Any,
) -> dict[str, Any]:
    """The content of ``results.json`` (``docs/results-schema.md`` has every key and unit).

    The average is the mean over all images of all sites, the worst is the site with the lowest Dice (docs/method.md).

    Args:
        variant: name of the variant, for instance ``samfed`` or ``dp_only``.
        rounds: federated rounds that were run.
        scores: model (``best``, ``last``) to site to split (``validation``, ``test``) to a table: the rows that
            ``ScoreHandler`` leaves in ``engine.state.scores``, or a summary of them.
        selected: the model that the top level repeats.
        model_rounds: the round that produced each model.
        teacher_scores: site to split to a table of the teacher's own scores; ``None`` in runs without a teacher.
        teacher: more about the teacher: ``before`` and ``after`` (Dice by image set), ``adapt``, ``base``, ``size``, …
        traffic: ``up_bytes`` and ``down_bytes``; 0 where missing.
        seconds: by name of :data:`samfed_monai.results.schema.TIMES`; 0 where missing, ``total`` then their sum.
        hashes: SHA-256 by name, ``datalist`` among them.
        versions: version by package.
        seeds: ``seed`` and others.
        skipped: ``{"round", "site", "reason"}`` of every update that was not aggregated.
        command: command line, for the report.
        caveats: sentences for the report, beside those that every report has.
        unseen: model to hospital that took no part to split to a table; a split that a hospital lacks is left out.
        rounds_traffic: ``up_bytes`` and ``down_bytes`` of every round, all sites together.
        preparation: ``up_bytes`` and ``down_bytes`` before round 0: checks, adapter, first weights.
        stated: values of :data:`STATED`; what is ``None`` has no key in the result.

    Raises:
        Refused: the result would not follow the schema; every departure is listed.
    """
    if unknown := stated.keys() - set(STATED):
        raise TypeError(f"build_results: expected keys of {', '.join(STATED)}, found {', '.join(sorted(unknown))}")
    skip = (stated.get("convention") or {}).get("empty") == "skipped"
    models = {
        name: {"round": (model_rounds or {}).get(name), **site_tables(tables, skip_empty=skip)}
        for name, tables in scores.items()
    }
    for name, tables in (unseen or {}).items():
        models.setdefault(name, {})["unseen"] = _unseen(tables, skip_empty=skip)
    times = {name: float((seconds or {}).get(name, 0.0)) for name in TIMES}
    times["total"] = times["total"] or sum(times.values())
    chosen = models.get(selected, {"sites": {}, "average": {}, "worst": {}})
    results = {
        "schema": SCHEMA_VERSION,
        "variant": variant,
        "rounds": rounds,
        "selected": selected,
        **{key: chosen.get(key, {}) for key in ("sites", "average", "worst")},
        **({"unseen": chosen["unseen"]} if "unseen" in chosen else {}),
        "models": models,
        **{name: value for name, value in stated.items() if value is not None},
        "teacher": _teacher(teacher_scores, teacher, trained=chosen["sites"], skip_empty=skip),
        "traffic": {
            **{key: int((traffic or {}).get(key, 0)) for key in BYTES},
            **_more_traffic(rounds_traffic, preparation),
        },
        "seconds": times,
        "hashes": dict(hashes or {}),
        "versions": dict(versions or {}),
        "seeds": dict(seeds or {}),
        "skipped": [dict(update) for update in skipped],
        "command": command,
        "caveats": list(caveats),
    }
    if problems := validate_results(results):
        raise Refused(problems)
    return results


def site_tables(
    tables: Mapping[str, Mapping[str, Table]], *, splits: Sequence[str] = SPLITS, skip_empty: bool = False
) -> dict[str, Any]:
    """``sites``, ``average`` and ``worst`` of one model from its tables by site and split.

    Args:
        tables: site to split to a table; a split that a site lacks has no images.
        splits: which.
        skip_empty: images with an empty mask are left out of HD95, as :func:`samfed_monai.metrics.summarise` does.
    """
    sites = {
        site: {split: as_summary(by_split.get(split) or (), skip_empty=skip_empty) for split in splits}
        for site, by_split in tables.items()
    }
    by_split = {split: {site: summaries[split] for site, summaries in sites.items()} for split in splits}
    return {
        "sites": sites,
        "average": {split: pool(of.values(), skip_empty=skip_empty) for split, of in by_split.items()},
        "worst": {split: worst(of) for split, of in by_split.items()},
    }


def as_summary(table: Table, *, skip_empty: bool = False) -> dict[str, Any]:
    """Means and counts of a table of rows; a summary is passed through."""
    if isinstance(table, Mapping):
        return dict(table)
    summary = summarise(map(_scores, table), skip_empty=skip_empty)
    if table and "classes" in table[0]:
        by_class = [[_scores(each) for each in row["classes"].values()] for row in table]
        summary["classes"] = summarise_classes(by_class, list(table[0]["classes"]), skip_empty=skip_empty)
    return summary


def _scores(row: Mapping[str, Any]) -> Scores:
    beside = {name: float(row[name]) for name in BESIDE if row.get(name) not in (None, "")}
    return Scores(float(row["dice"]), float(row["iou"]), float(row["hd95"]), row["empty"] or "none", **beside)


def _teacher(
    tables: Mapping[str, Mapping[str, Table]] | None,
    about: Mapping[str, Any] | None,
    *,
    trained: Container[str],
    skip_empty: bool,
) -> dict[str, Any] | None:
    """The teacher's part: its average is over the sites that trained, as that of a model."""
    if tables is None and about is None:
        return None
    tables = tables or {}
    splits = [split for split in SPLITS if any(split in by_split for by_split in tables.values())]
    here = {site: by_split for site, by_split in tables.items() if site in trained}
    away = {site: by_split for site, by_split in tables.items() if site not in trained}
    made = site_tables(here, splits=splits, skip_empty=skip_empty)
    unseen = {"unseen": _unseen(away, skip_empty=skip_empty)} if away else {}
    return {**dict(about or {}), "sites": made["sites"], "average": made["average"], **unseen}


def _unseen(tables: Mapping[str, Mapping[str, Table]], *, skip_empty: bool) -> dict[str, Any]:
    return {
        name: {split: as_summary(table or (), skip_empty=skip_empty) for split, table in splits.items()}
        for name, splits in tables.items()
    }


def _more_traffic(
    rounds: Sequence[Mapping[str, int]] | None, preparation: Mapping[str, int] | None
) -> dict[str, float]:
    means = {f"{key}_per_round": sum(one[key] for one in rounds) / len(rounds) for key in BYTES} if rounds else {}
    return {**means, **({f"{key}_before": int(preparation[key]) for key in BYTES} if preparation else {})}
