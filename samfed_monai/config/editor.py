"""Schemas of a bundle's files for editors, which complete options and underline what does not fit.

They are made of what the code says: which component reads an option, and with which type; a component's arguments, with
the lines of its docstring; the defaults that the bundle's file holds; texts and ranges of ``options.json``. A schema
describes one file at a time. It does not know which reference leads nowhere, nor what a variant changes:
:func:`samfed_monai.config.check_bundle` does, and refuses nothing that fits the schema for its kind alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samfed_monai.config.options import (
    GIVEN,
    MONAI_IDS,
    SITES,
    TEACHER,
    TEACHER_FILE,
    Schema,
    is_plain,
    is_value,
    options_in,
)
from samfed_monai.config.parse import FEDERATE, WORKFLOWS, is_note, join_id, lookup, reached, walk
from samfed_monai.config.schema import NAMES, argument_texts, component_schema
from samfed_monai.config.targets import parameters_of, resolve_target
from samfed_monai.config.variants import known_variants
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import PUBLIC, atomic_write, read_json

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FOLDER = "schemas"
"""Folder of a bundle in which its schemas are, beside ``configs``."""

_LAYERS = frozenset(files[-1] for files in WORKFLOWS.values() if len(files) > 1)
_NOT_OF_FEDERATION = frozenset({"epochs", "val_interval", "site", "store_dir", "teacher_sha256"})

_ANY = {"$ref": "#/$defs/any"}
_MADE: list[Schema] = [{"type": "string", "pattern": "^[@$%]"}, {"type": "object"}]  # by reference, or a component
_OTHERS: Schema = {  # a component of one's own, no unknown option; VS Code and Monaco know ``errorMessage``
    "type": ["array", "object", "string"],
    "pattern": "^[@$%]",
    "allOf": [_ANY],
    "errorMessage": 'Unknown option. Names of your own are for components, lists of them, and references ("@...").',
}
_OWN_KEYS: Schema = {"^_(target|disabled|requires|desc|mode)_$": {}}  # of COMPONENT_KEYS
_IDS: Schema = {r"^(_|\+)|#|::": _ANY}  # notes, and ids of parts


def _said(file: str) -> dict[str, Schema]:
    """Keywords of each option of a file, without links in their texts."""
    options = options_in(file)
    texts = {
        name: re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", keywords["description"]) for name, keywords in options.items()
    }
    return {name: {**keywords, "description": texts[name]} for name, keywords in options.items()}


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
        options = {name: _value(file, contents[file], (name,)) for name in names}
        own = {
            name: {key: value for key, value in option.items() if key != "default"} for name, option in options.items()
        }
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
    schema, texts, named = component_schema(found), argument_texts(found), parameters_of(found)[0]
    arguments: dict[str, Schema] = {}
    for name, parameter in named.items():
        typed, default = schema["properties"][name], parameter.default
        arguments[name] = {"description": texts[name]} if name in texts else {}
        if default is not parameter.empty and is_plain(default):
            arguments[name]["default"] = default
        arguments[name] |= {"anyOf": [typed, *_MADE]} if typed else {}
    closed = {} if schema["additionalProperties"] else {"additionalProperties": False}
    return {"properties": arguments, "patternProperties": _OWN_KEYS, **closed}


def _value(file: str, content: Mapping[str, Any], parts: tuple[str, ...]) -> Schema:
    """What may be at an id: an option with its type, default and text, or a group of options, or components.

    Args:
        file: where ``options.json`` speaks of it.
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
    typed: Schema = {} if value is None or {"type", "enum", "anyOf"} & said.keys() else {"type": NAMES[type(value)]}
    typed = {"enum": _networks()} if parts[-1] == "network_name" else typed
    return {**typed, **said, "default": value}


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
