"""Shared and personal parts of a network, as patterns of its state dict's names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problem, Problems, refused
from samfed_monai.core.validators import require

if TYPE_CHECKING:
    from torch import nn

PERSONAL = "train.json -> personal"
"""Id of the patterns of personal names, which stay at their sites."""
NORM_LAYERS = "<norm>"
"""Matches every tensor of every normalisation layer; their names follow no pattern (FedBN, arXiv 2102.07623)."""


@dataclass(frozen=True)
class KeySplit:
    """Names of a state dict, each in exactly one part, in the state dict's order."""

    shared: tuple[str, ...]
    personal: tuple[str, ...]
    frozen: tuple[str, ...]


def split_keys(
    names: Iterable[str], *, shared: Sequence[str], personal: Sequence[str] = (), where: str = "network"
) -> KeySplit:
    """Sorts the names of a state dict by two lists of patterns; names that neither matches are frozen.

    Args:
        names: names of the state dict.
        shared: shell-style patterns (``*``, ``?``, ``[ab]``; ``*`` also matches dots) of names that are aggregated.
        personal: patterns of names that never leave their site.
        where: name of the network, for messages.

    Raises:
        Refused: a pattern that matches no name; a name that is both shared and personal.
    """
    all_names = list(names)
    shared_names = matched_names(all_names, shared, f"{where} -> shared")
    personal_names = matched_names(all_names, personal, f"{where} -> personal")
    for name in all_names:
        if name in shared_names & personal_names:
            raise refused(where, f"{name!r} both shared and personal", "only one of them", "match it with one pattern")
    return KeySplit(
        shared=tuple(name for name in all_names if name in shared_names),
        personal=tuple(name for name in all_names if name in personal_names),
        frozen=tuple(name for name in all_names if name not in shared_names | personal_names),
    )


def network_split(network: nn.Module, personal: Sequence[str] = ()) -> KeySplit:
    """Returns the shared, personal and frozen names of a network, as used by server, site and release filter.

    A network declares them by ``key_split()``, or shares its whole state dict. ``personal`` removes names from the
    shared ones; frozen names stay frozen.

    Args:
        network: the network.
        personal: patterns as in :func:`split_keys`, or :data:`NORM_LAYERS`.

    Raises:
        Refused: no list of patterns; a pattern that matches nothing, or only frozen names; nothing left to share.

    Example::

        "personal": ["segmentation_head.*", "<norm>"]
    """
    names, declared = list(network.state_dict()), getattr(network, "key_split", None)
    split: KeySplit = declared() if declared is not None else KeySplit(tuple(names), (), ())
    problems, matched = Problems(), set[str]()
    require(pattern_problems(PERSONAL, personal, "segmentation_head.*"))
    for pattern in personal:
        matches = _norm_names(network) if pattern == NORM_LAYERS else {n for n in names if fnmatchcase(n, pattern)}
        if not matches - set(split.frozen):
            missing = f"no trained name like {pattern!r}" if matches else f"no name like {pattern!r}"
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names if name not in split.frozen))
            hint = f"correct the pattern or remove it; names begin with {parts}"
            problems.add(PERSONAL, missing, "at least one", hint)
        matched |= matches
    shared = tuple(name for name in split.shared if name not in matched)
    if matched and not shared:
        hint = "to exchange nothing, choose the variant local_sam or local_only"
        problems.add(PERSONAL, found="every name", expected="at least one shared name", hint=hint)
    problems.refuse_if_any()
    personal_names = {*split.personal, *(matched - set(split.frozen))}
    return KeySplit(shared, tuple(name for name in names if name in personal_names), split.frozen)


def _norm_names(network: nn.Module) -> set[str]:
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase

    layers: tuple[Any, ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in network.named_modules()
        # LayerNorm2d is segment_anything's own: by name, so that others need not import it
        if isinstance(module, layers) or type(module).__name__ == "LayerNorm2d"
        for name in module.state_dict()
    }


def pattern_problems(where: str, patterns: Any, example: str) -> list[Problem]:
    """Returns the problem of an invalid list of patterns, with ``example`` as hint; an empty list is valid."""
    is_valid = isinstance(patterns, (list, tuple)) and all(isinstance(pattern, str) for pattern in patterns)
    return [] if is_valid else [Problem(where, repr(patterns), "a list of patterns", f'for instance ["{example}"]')]


def matched_names(
    names: Sequence[str],
    patterns: Any,
    where: str,
    *,
    kind: str = "name",
    example: str = "encoder.*",
    hint: str = "correct the pattern or remove it",
) -> set[str]:
    """Returns the names that any of the patterns matches.

    Args:
        names: the names to match.
        patterns: as in :func:`split_keys`.
        where: id of the patterns, for messages.
        kind: kind of the names, for messages.
        example: a valid pattern, for messages.
        hint: advice for a pattern without a match.

    Raises:
        Refused: no list of patterns; patterns that match nothing, all together.
    """
    require(pattern_problems(where, patterns, example))
    matches = {pattern: {name for name in names if fnmatchcase(name, pattern)} for pattern in patterns}
    unmatched = [pattern for pattern in matches if not matches[pattern]]
    require([Problem(where, f"no {kind} like {pattern!r}", "at least one", hint) for pattern in unmatched])
    return set().union(*matches.values())
