"""The description of a variant: the block ``_method`` of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problems
from samfed_monai.core.io import read_json
from samfed_monai.core.validators import schema_problems

METHOD = "_method"
"""Id of the block that describes a variant."""

KINDS = ("method", "ablation", "baseline", "personalised", "heterogeneous", "labelled", "reference")
"""Kinds of variants, in this order: SAM-Fed; SAM-Fed without a part; a compared method; one whose sites keep part of
the network; one with networks of the sites' own; one that learns from labels of the sites; a lower or upper bound."""

EXCHANGES = {
    "weights": "Sites send the weights of their networks, the server those of the global network.",
    "predictions": "Soft masks of the public images are sent; no weights leave a site.",
    "prototypes": "Class prototypes are sent; neither weights nor masks leave a site.",
    "none": "No weights, masks or prototypes are sent: every site trains alone.",
}
"""What a round can exchange, with a description."""

LABELS = {
    "none": "no labels of a site's own images: the public masks are enough",
    "masks": "masks of a site's own images",
    "weak": "weak labels of a site's own images (scribbles, points, boxes or blocks), or masks",
}
"""Labels that a method can need at a site, in addition to those of the public set."""

LEAVES_SITE = {
    "weights": "weights of its network",
    "predictions": "soft masks of the public images",
    "prototypes": "one mean feature per class",
    "spectrum": "amplitude-spectrum windows of its images, each the mean of several",
    "features": "mean features of its images",
    "graph": "a graph descriptor of its images",
    "scores": "counts, means of loss terms and of scores",
}
"""Data that a method can send from a site; the number of images, seconds and steps are always sent."""

CLASSES = {"one": "one class, a binary mask", "several": "one class or several"}
"""Numbers of classes that a method can learn."""

LAST = 10_000
"""Place in tables of a variant without a place of its own."""


@dataclass(frozen=True)
class Method:
    """Description of a variant, from its block ``_method``.

    Args:
        name: name of the variant.
        title: name in tables.
        note: description in one line.
        source: paper or code that it follows.
        published: parts that follow the source, and where it describes them.
        inferred: parts that are not in the source, or differ from it: our reading or our choice.
        left_out: parts of the source that are not implemented.
        base: variant that it builds on.
        kind: one of :data:`KINDS`.
        place: position in tables.
        use: settings to use if the defaults are not those that it was designed for.
        exchange: what a round exchanges, one of :data:`EXCHANGES`; ``None``: as its base.
        labels: labels that a site needs, one of :data:`LABELS`; ``None``: as its base.
        leaves_site: data that may leave a site, of :data:`LEAVES_SITE`; the release filter refuses the rest. ``None``:
            as its base.
        classes: one of :data:`CLASSES`; ``several`` if it learns more than one class. Not inherited.
        unused: ids that a federation with this variant has no use for, although its components receive them.
        networks: client networks of its package, name to builder (``package.module.name``), which `network_name` can
            then use wherever the package is installed.
        where: place of ``leaves_site`` in its own file or that of its base, for messages.
    """

    name: str
    title: str = ""
    note: str = ""
    source: str = ""
    published: str = ""
    inferred: str = ""
    left_out: str = ""
    base: str | None = None
    kind: str = "baseline"
    place: int = LAST
    use: str = ""
    exchange: str | None = None
    labels: str | None = None
    leaves_site: tuple[str, ...] | None = None
    classes: str = "one"
    unused: tuple[str, ...] = ()
    networks: Mapping[str, str] = field(default_factory=dict)
    where: str = ""


INHERITED = {"exchange": EXCHANGES, "labels": LABELS, "leaves_site": LEAVES_SITE}
"""Fields that a variant without them has from its base, with their words."""

_TEXT = {"type": "string"}
_BUILDER = {**_TEXT, "pattern": r"\w\.\w", "description": "the path of its builder, `package.module.name`"}
_SCHEMA = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("title", "note", "source", "published", "inferred", "left_out", "base", "use"), _TEXT),
        **{key: {"enum": list(words)} for key, words in {"kind": KINDS, "classes": CLASSES, **INHERITED}.items()},
        "leaves_site": {"type": "array", "items": {"enum": list(LEAVES_SITE)}},
        "networks": {"type": "object", "additionalProperties": _BUILDER},
        "unused": {"type": "array", "items": _TEXT},
        "place": {"type": "integer"},
    },
    "additionalProperties": False,
}
"""JSON Schema of the block ``_method``."""


def read_method(path: Path) -> Method:
    """Reads the description of a variant from its file, without its bases.

    Raises:
        Refused: the file cannot be read, or its block does not match the schema; all problems at once.
    """
    name, content = path.stem, read_json(path, byte_order_mark=False)
    if not isinstance(content, Mapping):
        return Method(name, title=name)
    where, problems = f"{path.name} -> {METHOD}", Problems()
    block = content.get(METHOD, {})
    problems.extend(schema_problems({METHOD: block}, {"properties": {METHOD: _SCHEMA}}, path.name))
    problems.unless("_base" not in content, f"{path.name} -> _base", content.get("_base"), f"`base` in {METHOD}")
    if METHOD in content and isinstance(block, Mapping) and "base" not in block:
        for key in INHERITED.keys() - block.keys():
            found, hint = "nothing", "add it, or set a base that has it"
            problems.add(f"{where}#{key}", found=found, expected=f"one of {list(INHERITED[key])}", hint=hint)
    problems.refuse_if_any()
    fields: dict[str, Any] = {"title": name, **block}
    if "leaves_site" in fields:
        fields |= {"leaves_site": tuple(fields["leaves_site"]), "where": f"{where}#leaves_site"}
    return Method(name, **fields)
