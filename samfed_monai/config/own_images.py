"""Keeps the reading of images under the site's control; an allow-list limits what a plan may change of it.

A plan that selects, repeats, slices or weights images could obtain scores and updates of a single patient.
:func:`image_problems` checks a plan without a bundle; :func:`deviations` compares it with the site's own bundle.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from samfed_monai.config.options import is_value
from samfed_monai.config.parse import MISSING, follow, join_id, lookup, split_id, walk
from samfed_monai.config.targets import component_schema, resolve_target
from samfed_monai.core.errors import Problem, Refused

ROOTS = frozenset({"train", "unlabelled", "validate", "test"})
"""Ids of MONAI's bundles that contain the reading and scoring of images."""

LOADER = "dataloader"
LOADER_SETTINGS = frozenset({"batch_size", "num_workers", "pin_memory", "persistent_workers", "prefetch_factor"})
"""Settings of a loader that a plan may change: reading speed and batch size."""

IMAGE_SETTINGS = frozenset({"oracle", "classes"})
"""Settings of a source of images that a plan may change: which labels are used."""

VIEW_SETTINGS = frozenset(
    (
        *("spatial_size", "roi_size", "mode", "padding_mode", "prob", "threshold"),
        *("flip", "quarter_turns", "rotate", "zoom", "shear", "shift"),
        *("strength", "brightness", "contrast", "saturation", "hue", "tint", "gamma", "blur", "noise", "cutout"),
        *("jitter_prob", "grey_prob", "blur_prob", "deviation", "limit", "layers", "width", "most"),
    )
)
"""Settings of a transform that a plan may change: sizes, and the strength of augmentation."""

READS = frozenset(
    (
        *("data", "datalist", "data_root", "dataset", "split", "img", "sampler", "batch_sampler", "indices"),
        *("loader", "loaders", LOADER, "data_loader", "train_data_loader", "val_data_loader"),
        *("transform", "transforms", "preprocessing"),
    )
)
"""Arguments of components that read images."""

_EXPECTED = "no value that selects images"
_HINT = "delete it; only a variant that is installed here may set it"
_SETTINGS = f"delete it; a plan may set only these values of a data loader: {', '.join(sorted(LOADER_SETTINGS))}"
_SOURCES = frozenset({"data", "images", "split"})
_PUBLIC = ("client_algorithm", "plain")  # the site restricts these images to its own public list


def image_problems(parts: Sequence[str], value: Any, where: str) -> Iterator[Problem]:
    """Problems of a sent value that could select images, their number of repetitions, or parts of them.

    Args:
        parts: the id within its workflow.
        value: the value sent for it.
        where: file and id, for the message.
    """
    last, hint = parts[-1], _HINT
    is_reading = last in READS or last == "images"
    if parts[0] in ROOTS:
        forbidden, hint = not _sets_loader(parts, value), _SETTINGS
    elif parts[0] in ("images", "limit"):
        forbidden = value is not None
    elif tuple(parts[:2]) == _PUBLIC:
        is_source = isinstance(value, str) and value.startswith("@") and split_id(value[1:])[-1] in _SOURCES
        forbidden = is_reading and not (_is_number(value) or is_source)
    elif last == "_target_":
        is_own_view = getattr(_component(value), "__module__", "").startswith("samfed_monai.transforms.")
        forbidden = reads_images(value) and not is_own_view
    else:
        names = split_id(value[1:]) if isinstance(value, str) and value.startswith("@") else ()
        is_reference = not {"", *ROOTS, "images"}.isdisjoint(names[:1]) or not READS.isdisjoint(names)
        forbidden = is_reference or (is_reading and not _is_number(value))
    if forbidden:
        yield Problem(where, found=short_repr(value), expected=_EXPECTED, hint=hint)


def _sets_loader(parts: Sequence[str], value: Any) -> bool:
    """Whether an id below :data:`ROOTS` is on the allow-list, or only contains ids that are checked separately."""
    if isinstance(value, Mapping):
        return tuple(parts[1:]) in ((), (LOADER,)) and "_target_" not in value and bool(value)
    option = isinstance(value, str) and value.startswith("@") and value[1:].isidentifier()
    return len(parts) == 3 and parts[1] == LOADER and parts[2] in LOADER_SETTINGS and (option or _is_number(value))


def reads_images(target: Any) -> bool:
    """Whether a ``_target_`` reads or prepares images: a data set, sampler, loader or transform, or a user of one."""
    component = _component(target)
    arguments = {} if component is None else component_schema(component)["properties"]
    return _kind(component) != "" or not READS.isdisjoint(arguments)


def _component(target: Any) -> Any:
    try:
        return resolve_target(target, "")
    except Refused:
        return None  # reported by the strict check


def _kind(component: Any) -> str:
    from monai.transforms import Transform
    from torch.utils.data import DataLoader, Dataset, Sampler

    if component is None:
        return ""
    if inspect.isclass(component):
        if issubclass(component, DataLoader):
            return LOADER
        if issubclass(component, Transform):
            return "transform"
        if issubclass(component, Dataset | Sampler):
            return "images"
    modules = ("monai.data.", "torch.utils.data.", "samfed_monai.bundle.images.", "samfed_monai.data.")
    return "images" if f"{component.__module__}.".startswith(modules) else ""


_MAY_SET = {LOADER: LOADER_SETTINGS, "transform": VIEW_SETTINGS, "images": IMAGE_SETTINGS, "": frozenset[str]()}


def deviations(own: Mapping[str, Any], planned: Mapping[str, Any], where: str = "plan") -> list[Problem]:
    """Returns a problem for each place where a plan changes how the site's own bundle reads images.

    Args:
        own: content of the site's configuration: bundle and variant.
        planned: the same with the plan's values.
        where: name of the plan, for the messages.
    """
    problems: dict[Problem, None] = {}
    comparison = _Comparison(own, planned, where)
    for parts, value in walk(own):
        if isinstance(value, Mapping) and reads_images(value.get("_target_")):
            problems |= dict.fromkeys(comparison.problems(value, lookup(planned, parts), parts))
    return list(problems)


class _Comparison:
    """Compares two configurations, starting at a component and following references."""

    def __init__(self, own: Mapping[str, Any], planned: Mapping[str, Any], where: str) -> None:
        self.own, self.planned, self.where = own, planned, where

    def problems(self, mine: Any, theirs: Any, place: tuple[str, ...], *, free: bool = False) -> Iterator[Problem]:
        """Yields the differences at ``place``; ``free`` allows different plain values."""
        same = mine == theirs
        (own_place, mine), (_, theirs) = follow(self.own, place, mine), follow(self.planned, place, theirs)
        if isinstance(mine, Mapping):
            if not (same and own_place != place) or reads_images(mine.get("_target_")):
                yield from self._mapping_differences(mine, theirs, own_place)
        elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
            for index, pair in enumerate(zip(mine, theirs, strict=True)):
                yield from self.problems(*pair, (*own_place, str(index)), free=free)
        elif mine != theirs and not (free and all(each is MISSING or is_value(each) for each in (mine, theirs))):
            yield self._problem(mine, theirs, own_place)

    def _mapping_differences(self, mine: Mapping[str, Any], theirs: Any, place: tuple[str, ...]) -> Iterator[Problem]:
        target = mine.get("_target_")
        kind, has_images = _kind(_component(target)), reads_images(target)
        if has_images and not kind:  # not only for images: compare only the arguments about images
            other_target = theirs.get("_target_") if isinstance(theirs, Mapping) else None
            if other_target != target and not reads_images(other_target):
                return
            names = {*READS, "_target_"} & {*mine, *(theirs or ())}
        elif isinstance(theirs, Mapping):
            names = {*mine, *theirs}
        else:
            yield self._problem(mine, theirs, place)
            return
        for name in sorted(names):
            pair = mine.get(name, MISSING), theirs.get(name, MISSING)
            yield from self.problems(*pair, (*place, name), free=name in _MAY_SET[kind])

    def _problem(self, mine: Any, theirs: Any, place: tuple[str, ...]) -> Problem:
        found = "nothing" if theirs is MISSING else short_repr(theirs)
        expected = "no value" if mine is MISSING else f"{short_repr(mine)}, as in this site's own bundle"
        return Problem(f"{self.where} -> {join_id(place)}", found=found, expected=expected, hint=_HINT)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def short_repr(value: Any) -> str:
    """Shortened ``repr`` of an untrusted value of any length and depth."""
    short = reprlib.Repr()
    short.maxstring = 120
    return short.repr(value)
