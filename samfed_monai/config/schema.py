"""JSON Schema (draft 2020-12) of a bundle's files: for editors, which complete keys and underline what does not fit.

It is made of what the code says: which component reads a knob, and with which type; a component's arguments, with the
lines of its docstring; the defaults that the bundle's file holds. What a knob does, and its range, stand in
``knobs.json`` (:mod:`samfed_monai.config.ranges`), of which the tables of ``docs/options.md`` are made as well.

A schema describes one file at a time. It does not know which reference leads nowhere, nor what a variant changes:
:func:`samfed_monai.config.check_bundle` does, and refuses nothing that fits the schema for its kind alone.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union

from samfed_monai.config.components import plain_kind
from samfed_monai.config.knobs import GIVEN, MONAI_IDS, SITES, TEACHER, TEACHER_FILE, is_plain, is_value
from samfed_monai.config.parse import FEDERATE, WORKFLOWS, is_note, join_id, lookup, reached, walk
from samfed_monai.config.ranges import Schema, knobs_in
from samfed_monai.config.targets import annotations_of, parameters_of, resolve_target
from samfed_monai.config.variants import known_variants
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import PUBLIC, atomic_write, read_json

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FOLDER = "schemas"
"""Folder of a bundle in which its schemas lie, beside ``configs``."""

_LAYERS = frozenset(files[-1] for files in WORKFLOWS.values() if len(files) > 1)
_NOT_OF_FEDERATION = frozenset({"epochs", "val_interval", "site", "store_dir", "teacher_sha256"})

_NAMES: dict[Any, str] = {
    **{bool: "boolean", int: "integer", float: "number", str: "string"},
    **{list: "array", dict: "object", type(None): "null"},
}
_ANY = {"$ref": "#/$defs/any"}
_MADE: list[Schema] = [{"type": "string", "pattern": "^[@$%]"}, {"type": "object"}]  # by reference, or a component
_OTHERS: Schema = {  # a component of one's own, no unknown knob; VS Code and Monaco know ``errorMessage``
    "type": ["array", "object", "string"],
    "pattern": "^[@$%]",
    "allOf": [_ANY],
    "errorMessage": 'Unknown knob. Names of your own are those of components, lists of them, and references ("@...").',
}
_OWN_KEYS: Schema = {"^_(target|disabled|requires|desc|mode)_$": {}}  # of COMPONENT_KEYS
_IDS: Schema = {r"^(_|\+)|#|::": _ANY}  # notes, and ids of parts


def _said(file: str) -> dict[str, Schema]:
    """Keywords of each knob of a file, without links in their texts."""
    knobs = knobs_in(file)
    texts = {name: re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", keywords["description"]) for name, keywords in knobs.items()}
    return {name: {**keywords, "description": texts[name]} for name, keywords in knobs.items()}


def file_name(config: str) -> str:
    """``train.schema.json`` for ``train.json``."""
    return f"{Path(config).stem}.schema.json"


def schemas(bundle_root: str | Path) -> dict[str, Schema]:
    """Schema of every config file that a bundle has, by the name of the file; ``metadata.json`` has MONAI's own.

    Args:
        bundle_root: folder of the bundle. Its components are imported, and none is built.

    Raises:
        Refused: a file that cannot be read.
    """
    root = Path(bundle_root)
    names = [files[-1] for files in WORKFLOWS.values() if (root / "configs" / files[-1]).is_file()]
    contents = {name: read_json(root / "configs" / name) for name in names}
    return {name: _file(name, contents, root) for name in names}


def _file(name: str, contents: Mapping[str, Mapping[str, Any]], root: Path) -> Schema:
    content = contents[name]
    below = {} if name not in _LAYERS else contents.get("train.json", {})
    merged = {**below, **content}
    properties = {id_: _value(name, merged, (id_,)) for id_ in content if not is_note(id_)}
    if name == FEDERATE:
        others = [id_ for id_ in _plain_ids(below) if id_ not in content and id_ not in _NOT_OF_FEDERATION]
        properties |= _groups(contents)
        properties["variant"] = {**properties.get("variant", {}), "enum": known_variants(root)}
    else:  # on top of train.json, whose ids it may set as far as what it runs reads them
        others = [id_ for id_ in reached(merged, MONAI_IDS) if id_ in below and id_ not in content]
        others = [id_ for id_ in others if is_value(merged[id_])]
    properties |= {id_: _value("train.json", merged, (id_,)) for id_ in others}
    targets = {value["_target_"] for _, value in walk(content) if isinstance(value, dict) and "_target_" in value}
    components = {target: found for target in sorted(map(str, targets)) if (found := _component(target)) is not None}
    return {
        "$schema": DIALECT,
        "title": f"configs/{name} of {root.name}",
        "$comment": "Made by `samfed schema`. It knows names, types and ranges; `samfed check` knows the rest.",
        "type": "object",
        "properties": {"$schema": {"type": "string"}, **properties},
        "patternProperties": _IDS,
        "additionalProperties": _OTHERS,
        "$defs": {"any": _any(components), **components},
    }


def _groups(contents: Mapping[str, Mapping[str, Any]]) -> dict[str, Schema]:
    """Of ``federate.json``: ids of ``teacher.json``, and ids of ``train.json`` that a site may have its own of."""
    said, found = _said(FEDERATE), dict[str, Schema]()
    for group, file, given in ((TEACHER, TEACHER_FILE, frozenset({"imports"})), (SITES, "train.json", GIVEN)):
        names = [id_ for id_ in _plain_ids(contents.get(file, {})) if id_ not in given | {"imports"}]
        knobs = {name: _value(file, contents[file], (name,)) for name in names}
        own = {name: {key: value for key, value in knob.items() if key != "default"} for name, knob in knobs.items()}
        own |= {"network": own.get("network_name", {})} if group == SITES else {}
        ids = {"type": "object", "properties": own, "patternProperties": _IDS, "additionalProperties": _OTHERS}
        ids = {"type": "object", "additionalProperties": ids} if group == SITES else ids
        found[group] = {**said.get(group, {}), **ids}
    return {name: schema for name, schema in found.items() if name in contents[FEDERATE]}


def _plain_ids(content: Mapping[str, Any]) -> list[str]:
    return [id_ for id_, value in content.items() if is_value(value) and not is_note(id_)]


def _any(components: Mapping[str, Schema]) -> Schema:
    """Any value; in it, an object that names a component of :func:`_component` has no arguments but that one's."""
    chosen = [
        {
            "if": {"patternProperties": {"^_target_$": {"const": target}}, "required": ["_target_"]},
            "then": {"$ref": f"#/$defs/{target}"},
        }
        for target in components
    ]
    inside = {"allOf": chosen, "additionalProperties": _ANY}
    return {"if": {"type": "object"}, "then": inside, "else": {"if": {"type": "array"}, "then": {"items": _ANY}}}


def _component(target: str) -> Schema | None:
    """What a component of this package takes; ``None`` for others, which differ from version to version."""
    if not target.startswith("samfed_monai."):
        return None
    try:
        found = resolve_target(target, "")
    except Refused:
        return None
    named, anything = parameters_of(found)
    hints, texts = annotations_of(found), argument_texts(found)
    arguments: dict[str, Schema] = {}
    for name, parameter in named.items():
        typed, default = typed_as(hints.get(name, parameter.empty)), parameter.default
        arguments[name] = {"description": texts[name]} if name in texts else {}
        if default is not parameter.empty and is_plain(default):
            arguments[name]["default"] = default
        arguments[name] |= {"anyOf": [typed, *_MADE]} if typed else {}
    schema = {"properties": arguments, "patternProperties": _OWN_KEYS}
    return schema if anything else {**schema, "additionalProperties": False}


def argument_texts(component: Any) -> dict[str, str]:
    """What a docstring says of each argument, in its section ``Args:``, on one line and without marks of Sphinx."""
    section = re.search(r"^ *Args:\n((?: *\S.*\n|\n)*?)(?= *\w+::?\n|\Z)", f"{inspect.getdoc(component) or ''}\n", re.M)
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else ():
        begins = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if begins:
            names = begins[1].split(", ")
            texts |= dict.fromkeys(names, begins[2])
        else:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names if line.strip()}
    return {name: _plain_text(text) for name, text in texts.items()}


def _plain_text(text: str) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)
    return text.replace("``", "`")


def typed_as(annotation: Any) -> Schema | None:
    """The schema of the JSON values that an annotation takes; ``None`` where it says nothing about them."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        choices = [typed_as(choice) for choice in typing.get_args(annotation)]
        known = [choice for choice in choices if choice is not None]
        if len(known) < len(choices):
            return None
        if all(choice.keys() == {"type"} for choice in known):
            names = list(dict.fromkeys(choice["type"] for choice in known))
            return {"type": names if len(names) > 1 else names[0]}
        return {"anyOf": known}
    if origin is Literal:
        return {"enum": list(typing.get_args(annotation))}
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {"enum": [item.value for item in annotation]}
    kind = plain_kind(origin or annotation)
    return None if kind is None else {"type": _NAMES[kind]}


def _value(file: str, content: Mapping[str, Any], parts: tuple[str, ...]) -> Schema:
    """What may stand at an id: a knob with its type, default and text, or a group of knobs, or components.

    Args:
        file: where ``knobs.json`` speaks of it.
        content: the configuration that reads it.
        parts: the id.
    """
    value, said = lookup(content, parts), _said(file).get(join_id(parts), {})
    if not is_plain(value):
        inside = value if isinstance(value, dict) and "_target_" not in value else {}
        own = {name: _value(file, content, (*parts, name)) for name, part in inside.items() if is_value(part)}
        named = _said(file)
        own = own if set(own) == set(inside) or any(join_id((*parts, name)) in named for name in own) else {}
        return {"allOf": [_ANY], **({"type": "object", "properties": own} if own else {}), **said}
    if not is_value(value):
        return said
    read = _as_read(content, parts)
    typed = {key: each for key, each in read.items() if key != "description"}
    if {"type", "enum", "anyOf"} & said.keys():
        typed = {}
    elif not typed and value is not None:
        typed = {"type": _NAMES[type(value)]}
    typed = {"enum": _networks()} if parts[-1] == "network_name" else typed
    text = {"description": read["description"]} if "description" in read else {}
    return {**text, **typed, **said, "default": value}


def _as_read(content: Mapping[str, Any], parts: tuple[str, ...]) -> Schema:
    """Type and text of the argument to which a component is handed a knob, where one says them."""
    for place, reference in walk(content):
        component = lookup(content, place[:-1]) if reference == f"@{join_id(parts)}" else None
        if not (isinstance(component, dict) and isinstance(component.get("_target_"), str)):
            continue
        try:
            found = resolve_target(component["_target_"], "")
        except Refused:
            continue
        typed = typed_as(annotations_of(found).get(place[-1], inspect.Parameter.empty))
        if typed is not None:
            text = argument_texts(found).get(place[-1])
            return {**typed, **({"description": text} if text else {})}
    return {}


def _networks() -> list[str]:
    from samfed_monai.networks import CLIENT_NETWORKS

    return list(CLIENT_NETWORKS)


def write(bundle_root: str | Path, folder: str | Path | None = None) -> list[Path]:
    """Writes the schemas of a bundle, and names them in its files: a line ``"$schema"`` on top, if there is none.

    Args:
        bundle_root: folder of the bundle.
        folder: where to; ``None`` is the bundle's own ``schemas``. With another one, no file of the bundle is changed.

    Raises:
        Refused: as :func:`schemas`.
    """
    root, written = Path(bundle_root), list[Path]()
    target = root / FOLDER if folder is None else Path(folder)
    for name, schema in schemas(root).items():
        path = target / file_name(name)
        with atomic_write(path, mode=PUBLIC) as stream:
            stream.write(json.dumps(schema, indent=1, ensure_ascii=False).encode() + b"\n")
        written.append(path)
        config = root / "configs" / name
        text = config.read_text(encoding="utf-8")
        content = read_json(config)
        if folder is None and "$schema" not in content:
            line = f'"$schema": "../{FOLDER}/{file_name(name)}"'
            with atomic_write(config, mode=PUBLIC) as stream:
                stream.write(re.sub(r"\{(\s*)", rf"{{\1{line}{',' if content else ''}\1", text, count=1).encode())
    return written
