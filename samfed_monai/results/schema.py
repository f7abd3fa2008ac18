"""The JSON Schema of ``results.json``, and a check that lists every deviation from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from samfed_monai.config.variants import EXCHANGES
from samfed_monai.core.errors import Problem

SCHEMA_VERSION = 1
SPLITS = ("validation", "test")
HD95 = ("max of directed", "pooled")
EMPTY_MASKS = ("diagonal", "skipped")
TIMES = ("training", "server", "controller", "evaluation", "teacher", "soft_masks", "warm_start", "total")

Schema = dict[str, Any]


def _number(description: str, *, most: float | None = None, none: bool = False) -> Schema:
    kind: Any = ["number", "null"] if none else "number"
    return {"type": kind, "minimum": 0, **({} if most is None else {"maximum": most}), "description": description}


def _count(description: str, *, none: bool = False) -> Schema:
    kind: Any = ["integer", "null"] if none else "integer"
    return {"type": kind, "minimum": 0, "description": description}


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _choice(description: str, choices: Iterable[str]) -> Schema:
    return {**_text(description), "enum": list(choices)}


def _object(description: str, required: Iterable[str] | None = None, **properties: Any) -> Schema:
    names = list(properties) if required is None else list(required)
    return {"type": "object", "description": description, "properties": properties, "required": names}


def _map(description: str, values: Schema) -> Schema:
    return {"type": "object", "description": description, "additionalProperties": values}


_SCORES = {
    "dice": _number("mean Dice over the images, in [0, 1]; null where n is 0", most=1, none=True),
    "iou": _number("mean intersection over union, in [0, 1]; null where n is 0", most=1, none=True),
    "hd95": _number("mean 95th percentile of the Hausdorff distance, pixels at the evaluation size", none=True),
    "n": _count("number of images"),
    "empty": _object(
        "images with an empty mask, which the means count (docs/method.md); null where a site withheld so few",
        both=_count("label and prediction empty: Dice 1, HD95 0", none=True),
        prediction=_count("only the prediction empty: Dice 0, HD95 the diagonal", none=True),
        label=_count("only the label empty: Dice 0, HD95 the diagonal", none=True),
    ),
}
_OF_CLASS = _object(
    "scores of one class",
    dice=_number(
        "mean Dice over the images on which label or prediction holds the class, in [0, 1]", most=1, none=True
    ),
    iou=_number("likewise, intersection over union", most=1, none=True),
    hd95=_number("likewise, 95th percentile of the Hausdorff distance, pixels at the evaluation size", none=True),
    n=_count("number of these images; null where a site withheld it", none=True),
)
_CLASSES = _map(
    "of each of several classes, by its name; absent where there is one. The scores above are then means over the "
    "classes that an image holds, and 1 where it holds none",
    _OF_CLASS,
)
SUMMARY = _object("scores of a set of images", tuple(_SCORES), **_SCORES, classes=_CLASSES)
_WORST = _object(
    "the site with the lowest Dice, and its scores",
    ("site", *_SCORES),
    site=_text("its name"),
    **_SCORES,
    classes=_CLASSES,
)


def _splits(description: str, one: Schema, required: tuple[str, ...] | None = None) -> Schema:
    return _object(description, required, **dict.fromkeys(SPLITS, one))


_TABLE: dict[str, Schema] = {
    "sites": _map("per site", _splits("per split", SUMMARY)),
    "average": _splits("means over all images of all sites", SUMMARY),
    "worst": _splits("lowest site by Dice", {**_WORST, "type": ["object", "null"]}),
}
_UNSEEN = _map(
    "per hospital that took no part in training and is only evaluated; it counts in no average",
    _splits("per split", SUMMARY, ()),
)
_MODEL = _object(
    "the global model, or each site's own, evaluated on test images after the final aggregation; its validation scores "
    "are those of its round",
    tuple(_TABLE),
    round={"type": ["integer", "null"], "minimum": 0, "description": "round that produced it, counted from 0"},
    **_TABLE,
    unseen=_UNSEEN,
)


def _dice_by_set(when: str, note: str = "") -> Schema:
    text = f"{when} adaptation. Dice by image set: `held_out` (public images kept out of fitting) and sites{note}"
    return {**_map(text, _number("Dice in [0, 1]", most=1, none=True)), "type": ["object", "null"]}


_MEMORY = "weights, and the most bytes of tensors that live at one time of the pass"
_TEACHER = {
    **_object(
        "the SAM teacher on its own; null in runs without one",
        ("sites", "average"),
        sites=_map("per site", _splits("per split", SUMMARY, ())),
        average=_splits("means over all images of all sites", SUMMARY, ()),
        unseen=_UNSEEN,
        before=_dice_by_set("before", "; absent where nobody asked for it (`examine_before` of `teacher.json`)"),
        after=_dice_by_set("after"),
        adapt=_text("`lora`, `decoder` or `none`"),
        base=_text("SAM variant: `vit_t`, `vit_b`, `vit_l`, `vit_h`"),
        size=_count("input size, pixels"),
        score={
            "description": "false where it was not scored at the sites (`score` of `teacher.json`); otherwise absent",
            "type": "boolean",
        },
        parameters=_count("parameters"),
        milliseconds=_number("time of one image with all views, on one thread, milliseconds"),
        memory_bytes=_count(f"memory of one image with all views, bytes: {_MEMORY}; absent in older runs"),
        self_training_epochs=_count(
            "epochs for which each site trained its own copy, all generations together; absent where none did"
        ),
        renewed_after={
            "description": "numbers of rounds after which sites renewed its masks (`renewal`); absent where none did",
            "type": "array",
            "items": _count("rounds"),
        },
        sha256=_text("identity of base weights, adapter, size and views"),
    ),
    "type": ["object", "null"],
}
_COST = _object(
    "what one image costs",
    ("parameters", "milliseconds"),
    parameters=_count("parameters"),
    milliseconds=_number("time of one image on one thread of the machine of the server, milliseconds"),
    memory_bytes=_count(f"memory of one image, bytes: {_MEMORY}; absent in older runs"),
)
_CONVENTION = _object(
    "how HD95 and empty masks were counted; without it `max of directed` and `diagonal`",
    hd95=_choice("`max of directed` 95th percentiles (MONAI), or both directions `pooled` (MedPy)", HD95),
    empty=_choice("one mask empty: HD95 is the image's `diagonal`, or the image is `skipped` in HD95", EMPTY_MASKS),
)
_SKIPPED = _object(
    "one update that was not aggregated",
    round=_count("round, counted from 0"),
    site=_text("site"),
    reason=_text("why"),
)

_PRIVACY = _object(
    "what the sites kept to themselves, and what noise was added",
    ("least_images", "withheld", "differential_privacy"),
    least_images=_count("statistics of fewer images than this did not leave a site"),
    withheld={
        "type": "array",
        "items": _object(
            "scores of the best or the last model that a site did not send",
            site=_text("site"),
            split=_choice("split", SPLITS),
            reason=_text("why, for instance `withheld: fewer than 5 images`"),
        ),
        "description": "scores that sites did not send; their tables hold 0 images",
    },
    differential_privacy={
        **_object(
            "noise on what sites sent after their local epochs; null without",
            unit=_text("what the guarantee is about"),
            clip=_number("largest L2 norm"),
            noise_multiplier=_number("standard deviation of the noise over the sensitivity"),
            delta=_number("of (epsilon, delta)", most=1),
            epsilon_per_round=_number("epsilon of one message"),
            releases=_map("messages with noise by site, as the site counts them", _count("messages")),
            epsilon=_map("epsilon of all messages of a site", _number("epsilon")),
            epsilon_total=_number("the largest of them; sites hold different images"),
        ),
        "type": ["object", "null"],
    },
    central_differential_privacy={
        **_object(
            "noise on the mean at the server; null without",
            unit=_text("what the guarantee is about"),
            clip=_number("largest L2 norm of a site's step in the first round"),
            clip_last=_number("that of the last round's end"),
            quantile={
                "type": ["number", "null"],
                "description": "part of the sites within the clip; null: it is fixed",
            },
            noise_multiplier=_number("standard deviation of the noise on the sum over the clip"),
            delta=_number("of (epsilon, delta)", most=1),
            releases=_count("means with noise, those of repeated rounds included"),
            epsilon_per_round=_number("epsilon of one mean"),
            epsilon_total=_number("epsilon of all of them"),
            epsilon_replaced=_number("the same for steps replaced by others, which is the unit of noise at the sites"),
        ),
        "type": ["object", "null"],
    },
    secure_aggregation={
        **_object(
            "how updates were added under masks; null where the server saw each",
            threshold={"type": ["integer", "null"], "description": "sites that a sum needs; null: more than half"},
            fraction_bits=_count("binary digits behind the point"),
        ),
        "type": ["object", "null"],
    },
    statistics=_object(
        "the image-derived statistic that sites sent beside or instead of weights; missing where they sent none",
        kind=_text("`spectrum`, `features`, `prototypes` or `graph`"),
        clip=_number("largest L2 norm of an entry; null where entries were left as they were", none=True),
        noise_multiplier=_number("standard deviation of the noise over the sensitivity; 0 without noise"),
        least_images=_count("images behind every entry, at the least"),
        delta=_number("of (epsilon, delta); null without noise", most=1, none=True),
        releases={
            **_map("messages with noise by site, as the site counts them; null without noise", _count("messages")),
            "type": ["object", "null"],
        },
        epsilon={
            **_map("epsilon of the statistics alone, by site; null without noise", _number("epsilon")),
            "type": ["object", "null"],
        },
    ),
)

RESULTS_SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "results.json of a samfed run",
    **_object(
        "results of one federated run",
        (
            *("schema", "variant", "rounds", "selected", "models", *_TABLE, "teacher"),
            *("traffic", "seconds", "hashes", "versions", "seeds"),
        ),
        schema={"type": "integer", "enum": [SCHEMA_VERSION], "description": "version of this layout"},
        variant=_text("name of the variant, `samfed` by default"),
        rounds=_count("federated rounds that were run"),
        selected=_text("model that the top-level tables repeat: `best` by mean validation Dice, or `last`"),
        models=_map("`best` and `last`", _MODEL),
        **_TABLE,
        unseen=_UNSEEN,
        networks=_map("network by site, and `server`'s where it has one of its own", _text("name of the network")),
        costs=_map("one image by itself, by the network's name; nothing of SAM's own", _COST),
        exchange=_choice(
            "what travels between sites and server: " + ", ".join(f"`{e}`" for e in EXCHANGES), tuple(EXCHANGES)
        ),
        own_models={"type": "boolean", "description": "whether the models are each site's own, or a part of them is"},
        own_labels={"type": "boolean", "description": "whether sites learned from labels of their own images"},
        convention=_CONVENTION,
        teacher=_TEACHER,
        privacy=_PRIVACY,
        traffic=_object(
            "all sites together; the first two over all rounds and the final evaluation",
            ("up_bytes", "down_bytes"),
            up_bytes=_count("site to server, bytes"),
            down_bytes=_count("server to site, bytes"),
            up_bytes_per_round=_number("site to server, bytes, mean over rounds"),
            down_bytes_per_round=_number("server to site, bytes, mean over rounds"),
            up_bytes_before=_count("site to server, bytes, before the first round"),
            down_bytes_before=_count("server to site, bytes, before the first round: adapter and first weights"),
        ),
        seconds=_object(
            "wall-clock time, seconds; 0 for what was not needed or was reused",
            TIMES,
            **{name: _number(f"{name.replace('_', ' ')}, seconds") for name in TIMES},
        ),
        process=_object(
            "the process that ran the federation, with server and those sites that are in it; the last one where the "
            "run was resumed",
            ("memory_bytes", "processor_seconds"),  # older results have no device, nor has a server's
            memory_bytes=_count(
                "most memory at one time, libraries too, no GPU's; null where the system does not report it", none=True
            ),
            processor_seconds=_number("time on processors, seconds: other work on the machine does not count"),
            device=_text("what computes for the sites in it: `cpu`, or the model of a GPU"),
        ),
        hashes=_map(
            "SHA-256 by name: `datalist`, `config`, `best`, `last`, `teacher`, …",
            {"type": ["string", "null"], "description": "64 hexadecimal digits"},
        ),
        versions=_map("versions by package", _text("version")),
        seeds=_map("seeds by use; `seed` is the run's, all others derive from it", _count("seed")),
        skipped={"type": "array", "items": _SKIPPED, "description": "updates that were not aggregated"},
        command={"type": ["string", "null"], "description": "command line that made the run"},
        caveats={"type": "array", "items": _text("one sentence"), "description": "what a reader must know"},
    ),
}

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (Mapping,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def validate_results(results: Any, *, where: str = "results.json") -> list[Problem]:
    """Every departure from :data:`RESULTS_SCHEMA`, each with its place; an empty list when there is none.

    Unknown keys are allowed, so that a run may say more than this version knows.

    Args:
        results: content of a ``results.json``.
        where: file name for the messages.
    """
    problems = list(_departures(results, RESULTS_SCHEMA, where, " -> "))
    if problems:
        return problems
    if results["selected"] not in results["models"]:
        found, names = repr(results["selected"]), sorted(results["models"])
        problems.append(Problem(f"{where} -> selected", found=found, expected=f"one of the models {names}"))
    for name in sorted(results.get("unseen", {}).keys() & results["sites"].keys()):
        expected = "a hospital that is no site of the training"
        problems.append(Problem(f"{where} -> unseen#{name}", found="a site of the same name", expected=expected))
    return problems


def _departures(value: Any, schema: Schema, where: str, joint: str) -> Iterator[Problem]:
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    fits = any(isinstance(value, _TYPES[kind]) for kind in kinds)
    if not fits or (isinstance(value, bool) and "boolean" not in kinds):  # to Python True is a number, too
        yield Problem(where, found=f"{value!r} ({type(value).__name__})"[:120], expected=" or ".join(kinds))
        return
    if "enum" in schema and value not in schema["enum"]:
        yield Problem(where, found=str(value), expected=f"one of {schema['enum']}")
    if isinstance(value, (int, float)):
        yield from _out_of_range(value, schema, where)
    if isinstance(value, Mapping):
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        for name in schema.get("required", ()):
            if name not in value:
                yield Problem(f"{where}{joint}{name}", found="no such key", expected=known[name]["description"])
        for name, item in value.items():
            below = known.get(name, other)
            if below is not None:
                yield from _departures(item, below, f"{where}{joint}{name}", "#")
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _departures(item, schema["items"], f"{where}#{index}", "#")


def _out_of_range(value: float, schema: Schema, where: str) -> Iterator[Problem]:
    if not value >= schema.get("minimum", float("-inf")):
        yield Problem(where, found=str(value), expected=f"at least {schema['minimum']}")
    if value > schema.get("maximum", float("inf")):
        yield Problem(where, found=str(value), expected=f"at most {schema['maximum']}")
