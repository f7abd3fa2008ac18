"""What of a network is shared and what is personal, as patterns of its state dict's names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problems

if TYPE_CHECKING:
    from torch import nn

PERSONAL = "train.json -> personal"
"""Id of the patterns of names that stay at their sites."""
NORM_LAYERS = "<norm>"
"""Every tensor of every normalisation layer; their names follow no pattern (FedBN, arXiv 2102.07623)."""


@dataclass(frozen=True)
class KeySplit:
    """Names of one state dict, each in exactly one part, in the state dict's order."""

    shared: tuple[str, ...]
    personal: tuple[str, ...]
    frozen: tuple[str, ...]


def split_keys(
    names: Iterable[str], *, shared: Sequence[str], personal: Sequence[str] = (), where: str = "network"
) -> KeySplit:
    """Sorts the names of a state dict by two allow-lists; what neither matches is frozen.

    Args:
        names: of the state dict.
        shared: shell-style patterns (``*``, ``?``, ``[ab]``; ``*`` crosses dots) of names that are aggregated.
        personal: of names that never leave their site.
        where: whose names they are, for messages.

    Raises:
        Refused: a pattern that matches no name; a name that is both shared and personal; all at once.
    """
    listed, problems = list(names), Problems()
    sent = matched_names(listed, shared, f"{where} -> shared", problems)
    kept = matched_names(listed, personal, f"{where} -> personal", problems)
    for name in listed:
        if name in sent & kept:
            hint = "let one pattern alone match it"
            problems.add(where, found=f"{name!r} both shared and personal", expected="one of both", hint=hint)
    problems.refuse_if_any()
    return KeySplit(
        shared=tuple(name for name in listed if name in sent),
        personal=tuple(name for name in listed if name in kept),
        frozen=tuple(name for name in listed if name not in sent | kept),
    )


def network_split(network: nn.Module, personal: Sequence[str] = (), *, where: str = PERSONAL) -> KeySplit:
    """What of a network is shared, personal and frozen: the one answer that server, site and filter go by.

    A network declares it itself (``key_split()``), or shares its whole state dict. ``personal`` takes names out of what
    is shared; what is frozen stays frozen.

    Args:
        network: the network.
        personal: patterns as in :func:`split_keys`, or :data:`NORM_LAYERS`.
        where: where the patterns are, for messages.

    Raises:
        Refused: no list of patterns; a pattern that matches nothing, or frozen names alone; nothing left to share.

    Example::

        "personal": ["segmentation_head.*", "<norm>"]
    """
    names, declared = list(network.state_dict()), getattr(network, "key_split", None)
    split: KeySplit = declared() if declared is not None else KeySplit(tuple(names), (), ())
    problems, chosen = Problems(), set[str]()
    check_patterns(personal, where, problems, example="segmentation_head.*")
    problems.refuse_if_any()
    for pattern in personal:
        found = _norm_names(network) if pattern == NORM_LAYERS else {n for n in names if fnmatchcase(n, pattern)}
        if not found - set(split.frozen):
            kind = f"no trained name like {pattern!r}" if found else f"no name like {pattern!r}"
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names if name not in split.frozen))
            hint = f"correct the pattern or leave it out; names begin with {parts}"
            problems.add(where, found=kind, expected="at least one", hint=hint)
        chosen |= found
    shared = tuple(name for name in split.shared if name not in chosen)
    if chosen and not shared:
        hint = "a variant that exchanges nothing is local_sam, or local_only"
        problems.add(where, found="every name", expected="at least one that is shared", hint=hint)
    problems.refuse_if_any()
    stay = {*split.personal, *(chosen - set(split.frozen))}
    return KeySplit(shared, tuple(name for name in names if name in stay), split.frozen)


def _norm_names(network: nn.Module) -> set[str]:
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase

    layers: tuple[Any, ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
    plain = "LayerNorm2d"  # segment_anything's is a module of its own kind; named, so that others need not import it
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in network.named_modules()
        if isinstance(module, layers) or type(module).__name__ == plain
        for name in module.state_dict()
    }


def check_patterns(patterns: Any, where: str, problems: Problems, *, example: str) -> bool:
    """Whether ``patterns`` is a list of strings; where it is not, a problem says so.

    Args:
        patterns: whatever the JSON has.
        where: its place, for messages.
        problems: takes what is wrong.
        example: a pattern that fits there.
    """
    fits = isinstance(patterns, (list, tuple)) and all(isinstance(pattern, str) for pattern in patterns)
    if not fits:
        hint = f'for instance ["{example}"]'
        problems.add(where, found=repr(patterns), expected="a list of patterns", hint=hint)
    return fits


def matched_names(
    names: Sequence[str],
    patterns: Sequence[str],
    where: str,
    problems: Problems,
    *,
    kind: str = "name",
    hint: str = "correct the pattern or leave it out",
) -> set[str]:
    """Names that a pattern matches; a pattern that matches none becomes a problem.

    Args:
        names: to choose from.
        patterns: as in :func:`split_keys`.
        where: where the patterns are, for messages.
        problems: takes what is wrong.
        kind: what the names are, for messages.
        hint: what to do about a pattern without a name.
    """
    found: set[str] = set()
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            problems.add(where, found=f"no {kind} like {pattern!r}", expected="at least one", hint=hint)
        found.update(matching)
    return found
