"""Checks of a reply at the server: its sender and kind, its step and its weight. ``message.py`` checks its content."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from samfed_monai.core.errors import Problems
from samfed_monai.core.validators import in_range, one_of, require, schema_problems
from samfed_monai.protocol.message import Kind, Message, message_refused

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Inbox:
    """Checks the replies of one round as they arrive.

    Args:
        round: the current round.
        sites: the sites that were sent a request.
        like: site to names, shapes and dtypes of the requested tensors; ``None``, for all sites or for one, if only
            numbers were requested.
        kind: required kind of these tensors; ``None`` accepts every kind.
    """

    round: int
    sites: Container[str]
    like: Callable[[str], Mapping[str, Tensor] | None] | None
    kind: Kind | None = None
    _replied: set[str] = field(default_factory=set, init=False)

    def max_bytes(self, sender: str) -> int:
        """Maximum bytes of ``sender``'s reply: twice the size of its tensors, and 1 MiB for the header.

        A transport does not decode or inflate more than that (fault 37).
        """
        like = self.like(sender) if self.like and sender in self.sites else None
        return 2 * sum(tensor.numel() * tensor.element_size() for tensor in (like or {}).values()) + 1024**2

    def check(self, sender: str, message: Message) -> None:
        """Checks ``sender``'s reply and records that it arrived.

        Raises:
            MessageRefused: an unknown sender (fault 46), a second reply (43), another kind, another round's (44, 45),
                or a message whose content does not pass :meth:`Message.check` (32 to 36, 38).
        """
        if sender in self._replied:
            raise message_refused("message", "a second answer", "one answer per site and round")
        if sender not in self.sites:
            raise message_refused("message", "an unknown sender", "a site of this federation")
        if self.kind is not None and message.kind != self.kind:
            raise message_refused("message", Kind(message.kind).value, f"{self.kind.value}, which this round exchanges")
        message.check(up=True, like=self.like(sender) if self.like else None, site=sender, round=self.round)
        self._replied.add(sender)


class Action(str, Enum):
    """Treatment of an update whose step exceeds the limit."""

    CLIP = "clip"
    SKIP = "skip"


class UpdateGuard:
    """Limits the effect of one site's update on the mean: the norm of its step, and its weight.

    The norm is limited by ``|update - global| <= limit * |global|``, over all floating-point tensors. The weight is the
    site's share of all training images, by the number that it reports: the server cannot count them, and a site that
    reports ten million would dominate the mean. Or it is learned from a loss or a gap that the site reports
    (:class:`~samfed_monai.methods.site_weights.LearnedWeights`), which could be overstated, too. Shares refer to all
    sites that train: if some do not reply in a round, the others have more of that round's mean.

    Args:
        limit: largest ratio of the two L2 norms. An honest round moves weights by a fraction of their norm; 10 leaves
            room for the batch-norm statistics of a network that starts from scratch.
        action: ``clip`` scales the step back to the limit, ``skip`` leaves the update out.
        largest_share: largest weight of one site, in (0, 1]; below one over the number of sites, all weights are equal.
            ``None`` and 1 weigh by the reported numbers. It is off by default: the weights are part of FedAvg's
            definition, two honest sites may have four fifths and one fifth of the images, and a cap that never changed
            such a run would still leave a dishonest site most of the mean.

    Raises:
        Refused: a limit or a share out of its range, or an unknown action.
    """

    def __init__(self, *, limit: float = 10.0, action: str = "clip", largest_share: float | None = None) -> None:
        require(
            in_range("UpdateGuard#limit", limit, above=0),
            one_of("UpdateGuard#action", action, Action),
            in_range("UpdateGuard#largest_share", largest_share, above=0, most=1, or_null=True),
        )
        self.limit, self.action, self.largest_share = float(limit), Action(action), largest_share

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> UpdateGuard:
        """Reads ``federate.json -> job#update_guard``.

        Raises:
            Refused: an unknown key, or a value out of its range; all problems at once.
        """
        known = ("limit", "action", "largest_share")
        schema = {"additionalProperties": False, "properties": dict.fromkeys(known, True)}
        problems = Problems(schema_problems(dict(content), schema, "federate.json -> job#update_guard"))
        with problems.collected():
            guard = cls(**{name: value for name, value in content.items() if name in known})
        problems.refuse_if_any()
        return guard

    def counted(self, images: Mapping[str, int]) -> dict[str, int]:
        """Caps the number of images that each site counts as, so that none exceeds ``largest_share`` of their sum.

        Sites above the cap all count as the same number; the others keep their own.

        Args:
            images: site to number of images that it trains on.
        """
        if self.largest_share is None:
            return dict(images)
        most = max(1, int(_cap(images.values(), self.largest_share)))
        return {site: min(n, most) for site, n in images.items()}

    def capped(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Caps weights at ``largest_share``; the excess goes to the other sites in proportion to their weights.

        With too few sites for that, all weights are equal, as in :meth:`counted`. If all others have a weight of 0,
        they share the excess equally.

        Args:
            weights: site to weight >= 0; their sum is 1. If none is too large, they are returned unchanged.
        """
        most = self.largest_share
        if most is None or all(weight <= most for weight in weights.values()):
            return dict(weights)
        weights = {site: max(weight, _LEAST_WEIGHT) for site, weight in weights.items()}
        limit = _cap(weights.values(), most)
        lowered = {site: min(weight, limit) if limit else 1.0 for site, weight in weights.items()}
        total = sum(lowered.values())
        return {site: weight / total for site, weight in lowered.items()}

    def share(self, update: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
        """Fraction of the step from ``reference`` to ``update`` that is allowed, in (0, 1].

        Args:
            update: the received weights, finite.
            reference: the global weights.

        Raises:
            MessageRefused: the step is too long and ``action`` is ``skip``.
        """
        base = max(norm(reference), 1e-12)
        allowed = self.limit * base
        # |u - g| <= |u| + |g|: this usually suffices, with one read and no temporary
        if norm(update) + base <= allowed:
            return 1.0
        steps = (update[name] - old for name, old in reference.items() if old.is_floating_point())
        length = math.sqrt(sum(float(torch.linalg.vector_norm(step, dtype=torch.float64)) ** 2 for step in steps))
        if length <= allowed:
            return 1.0
        if self.action == Action.CLIP:
            return allowed / length
        raise message_refused("message -> tensors", f"a step of norm {length:.3g}", f"at most {allowed:.3g}")

    @torch.no_grad()
    def limited(self, update: Message, reference: Mapping[str, Tensor]) -> Message:
        """Returns ``update`` with its step from ``reference`` shortened to :meth:`share`; integers are unchanged.

        Args:
            update: a checked reply; names that ``reference`` lacks are not part of the step and stay unchanged.
            reference: the weights that the step is measured from.

        Raises:
            MessageRefused: the step is too long and ``action`` is ``skip``.
        """
        before = {name: reference[name] for name in update.tensors if name in reference}
        share = self.share({name: update.tensors[name] for name in before}, before)
        if share == 1:
            return update
        text = "round %d: the update of %s was scaled down to %.2g of its size"
        logger.warning(text, update.round + 1, update.site, share)
        steps = {name: shortened(old, update.tensors[name], share) for name, old in before.items()}
        return replace(update, tensors={**update.tensors, **steps})


def shortened(old: Tensor, new: Tensor, share: float) -> Tensor:
    """``old + share (new - old)`` in ``new``'s dtype, share in (0, 1]; ``new`` itself for 1 and for integers."""
    return torch.lerp(old.to(new.dtype), new, share) if share < 1 and new.is_floating_point() else new


def norm(tensors: Mapping[str, Tensor]) -> float:
    """L2 norm over all floating-point tensors, at least in float32; infinite if the sum of squares overflows."""
    flat = (tensor.reshape(-1) for tensor in tensors.values() if tensor.is_floating_point())
    flat = (values.to(torch.promote_types(values.dtype, torch.float32)) for values in flat)
    return math.sqrt(sum(float(torch.dot(values, values)) for values in flat))  # a dot is 2x faster than vector_norm


#: Replaces a weight of 0 that gets a part of another's excess; as small as FedAvg's weight of such a site.
_LEAST_WEIGHT = 2.0**-40


def _cap(counts: Iterable[float], share: float) -> float:
    """Cap for the largest of ``counts``, so that none exceeds ``share`` of the new sum; 0 if there are too few."""
    ordered = sorted(counts, reverse=True)
    for larger, count in enumerate(ordered):
        rest = 1 - larger * share
        if rest <= 0:
            break
        limit = share * sum(ordered[larger:]) / rest
        if count <= limit:  # this and later counts are below the cap, earlier ones are lowered to it
            return limit
    return 0.0


#: A site that reports more than nine times as many images as all others together is named in the log.
_DOMINANT_SHARE = 0.9


class ImageCounts:
    """The number of images that each site trains on, as first reported: before round 0, or in its first update.

    It is the weight in the mean, only the site can count it, and it is the same in every round: an update with another
    number is refused (fault 77).

    Args:
        reported: site to the number that it reported before round 0; 0 means none.
        guard: caps a site's share of the mean (:attr:`UpdateGuard.largest_share`).
    """

    def __init__(self, reported: Mapping[str, int], guard: UpdateGuard | None = None) -> None:
        self.reported = {site: n for site, n in reported.items() if n}
        self.guard = guard

    def remember(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Restores the numbers of stored rounds, which take precedence over later reports."""
        for record in records:
            for site, entry in record["sites"].items():
                if entry["status"] == "ok" and entry["n"]:
                    self.reported[site] = int(entry["n"])

    def log_shares(self) -> None:
        """Logs sites whose weight is capped, and warns of one that dominates the mean."""
        total = sum(self.reported.values())
        capped = self.guard.counted(self.reported) if self.guard else dict(self.reported)
        for site, n in sorted(self.reported.items()):
            if capped[site] < n:
                text = "%s reports %d training images; means weighted by images count %d of them"
                logger.info(text, site, n, capped[site])
            elif len(self.reported) > 1 and n > _DOMINANT_SHARE * total:
                hint = "if this is wrong, limit its weight with job#update_guard#largest_share"
                logger.warning("%s reports %d training images, %.0f %% of all; %s", site, n, 100 * n / total, hint)

    def counted(self, site: str, update: Message) -> Message:
        """Returns ``update`` with the number of images that it counts as.

        Raises:
            MessageRefused: the number differs from the one before, or there was none before and weights are capped.
        """
        known = self.reported.get(site)
        cap = self.guard if self.guard is not None and self.guard.largest_share is not None else None
        if known is None and cap is None and update.n:
            self.reported[site] = known = update.n
        if update.n != (known or 0):
            before = "none" if known is None else str(known)
            expected, hint = f"{before}, as this site reported before", "start a new run if the site's images changed"
            raise message_refused("message -> n", str(update.n), expected, hint)
        return replace(update, n=cap.counted(self.reported)[site]) if cap is not None and known else update
