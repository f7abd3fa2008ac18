"""Components of a configuration: what each ``_target_`` is, and whether its arguments and the knobs in them fit."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from samfed_monai.config.ids import MISSING, lookup, references, split_id, walk
from samfed_monai.config.kinds import describe, mend_for, unlike_annotation, unlike_default
from samfed_monai.config.layers import COMMAND_LINE, BundleConfig
from samfed_monai.config.spelling import COMPONENT_KEYS
from samfed_monai.config.targets import annotations_of, parameters_of, resolve_target
from samfed_monai.errors import Problem, Refused, did_you_mean

_MOST_HOPS = 8  # ids that refer to one another in a circle are MONAI's to refuse


class ComponentCheck:
    """Walks over every component of a configuration once.

    Args:
        config: the merged configuration.

    Attributes:
        judged: knobs whose kind some component's annotation has spoken about, right or wrong.
    """

    def __init__(self, config: BundleConfig) -> None:
        self.config = config
        self.judged: set[tuple[str, ...]] = set()

    def problems(self) -> Iterator[Problem]:
        """Unknown or forbidden components, unexpected, missing and wrongly typed arguments."""
        for parts, value in walk(self.config.content):
            if isinstance(value, dict) and "_target_" in value:
                try:
                    target = resolve_target(value["_target_"], self.config.where((*parts, "_target_")))
                except Refused as refused:
                    yield from refused.problems
                else:
                    yield from self._arguments(parts, value, target)

    def _arguments(self, parts: Sequence[str], component: dict[str, Any], target: Any) -> Iterator[Problem]:
        named, anything = parameters_of(target)
        hints = annotations_of(target)
        for name, value in component.items():
            if name in COMPONENT_KEYS:
                continue
            if name not in named and not anything:
                short = component["_target_"].rpartition(".")[2]
                mend = did_you_mean(name, named) or f"it takes {', '.join(named) or 'no arguments'}"
                where = self.config.where((*parts, name))
                yield Problem(where, found="an unexpected argument", expected=f"an argument of {short}", mend=mend)
            elif name in named:
                yield from self._kind((*parts, name), value, named[name], hints.get(name, inspect.Parameter.empty))
        if component.get("_mode_", "default") == "default":
            yield from self._missing(parts, component, named)

    def _missing(self, parts: Sequence[str], component: dict[str, Any], named: dict[str, Any]) -> Iterator[Problem]:
        for name, parameter in named.items():
            if parameter.default is parameter.empty and name not in component:
                expected = f"the argument {name!r} of {component['_target_'].rpartition('.')[2]}"
                yield Problem(self.config.where(parts), found="nothing of that name", expected=expected)

    def _kind(self, parts: Sequence[str], value: Any, parameter: inspect.Parameter, hint: Any) -> Iterator[Problem]:
        place = tuple(parts)
        for _ in range(_MOST_HOPS):  # "@knob" hands a knob on as it is, perhaps by way of another id
            if not (isinstance(value, str) and value.startswith("@") and references(value)):
                break
            place = references(value)[0]
            value = lookup(self.config.content, place)
        if value is None or value is MISSING or isinstance(value, dict):
            return
        if isinstance(value, str) and value.startswith(("$", "%")):
            return
        if hint is inspect.Parameter.empty:
            default = None if parameter.default is parameter.empty else parameter.default
            expected: str | None = unlike_default(value, default) if default is not None else None
        else:
            expected = unlike_annotation(value, hint)
        if expected is None or place in self.judged:
            return
        self.judged.add(place)
        if expected:
            yield wrong_kind(self.config.where(place), value, expected)


def check_override_kinds(config: BundleConfig, base_layers: int, judged: set[tuple[str, ...]]) -> Iterator[Problem]:
    """Values of a variant or of the command line whose kind differs from that of the value they replace.

    Args:
        config: the layers.
        base_layers: how many of them are the workflow's own files.
        judged: knobs that a component's annotation has spoken about already; it knows better than a default.
    """
    for index, (layer, pairs) in enumerate(config.layers[base_layers:], start=base_layers):
        below = config.below(index)
        for key, value in pairs.items():
            default = lookup(below, split_id(key))
            if split_id(key) in judged or default is MISSING or isinstance(default, (dict, list)):
                continue
            if any(isinstance(text, str) and text.startswith(("$", "@", "%")) for text in (default, value)):
                continue
            expected = unlike_default(value, default)
            if expected:
                yield wrong_kind(f"{layer} -> {key}", value, expected)


def wrong_kind(where: str, value: Any, expected: str) -> Problem:
    """A value of the wrong kind, told in the words of the house: expected a number, found '0.5' (str)."""
    layer, _, name = where.partition(" -> ")
    mend = mend_for(value, expected, option=f"--{name}" if layer == COMMAND_LINE else "")
    return Problem(where, found=describe(value), expected=expected, mend=mend)
