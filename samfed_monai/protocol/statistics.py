"""Image-derived statistics beside weights: the policy under which a site may send one, and their form in messages.

No statistic is sent unless the chosen method sends one (:attr:`.Strategy.statistic`, and ``leaves_site`` of its
declaration); a run reports this before it starts. When the server asks for it, it is sent with a site's trained
weights, under names that start with :data:`PREFIX`, and comes from the site's :class:`Statistic`, the id ``statistics``
of ``train.json``. The release filter applies its :class:`StatisticRule` (``federate.json -> privacy#statistics``) and
writes the audit line. Prototypes are sent in messages of their own, also under a rule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from samfed_monai.core.io import all_finite
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.validators import require, whole
from samfed_monai.data.records import without_duplicates
from samfed_monai.protocol.message import STATISTICS, Message, message_refused

if TYPE_CHECKING:
    import numpy as np

    from samfed_monai.bundle import SiteImages

PREFIX = "statistics."
"""Prefix of a statistic's tensor names in a message that also has weights; no network has such names."""


class StatisticKind(str, Enum):
    """Kinds of statistics that may be sent, as named in ``_method#leaves_site`` and in ``privacy#statistics``."""

    SPECTRUM = "spectrum"
    FEATURES = "features"
    PROTOTYPES = "prototypes"
    GRAPH = "graph"

    @property
    def description(self) -> str:
        """A description for readers."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    StatisticKind.SPECTRUM: "amplitude-spectrum windows",
    StatisticKind.FEATURES: "mean features",
    StatisticKind.PROTOTYPES: "one mean feature per class",
    StatisticKind.GRAPH: "a graph descriptor",
}


@dataclass(frozen=True)
class StatisticRule:
    """Rule under which a site may send one kind of statistic.

    Args:
        clip: largest L2 norm of one entry, which is a row of the tensor's first axis; ``None`` clips nothing.
        noise_multiplier: standard deviation of Gaussian noise over ``2 * clip * sqrt(entries)``, the largest change of
            a message when all of a site's images are replaced; 0 adds none.
        least_images: minimum number of images behind every entry; a larger ``privacy#least_images`` takes precedence.

    Example::

        "privacy": {"statistics": {"spectrum": {"clip": 1.0, "noise_multiplier": 0.0, "least_images": 5}}}
    """

    clip: float | None = None
    noise_multiplier: float = 0.0
    least_images: int = 1

    def describe(self) -> str:
        """The rule in words."""
        clip = "not clipped" if self.clip is None else f"clipped to a norm of {self.clip:g}"
        noise = f"noise multiplier {self.noise_multiplier:g}" if self.noise_multiplier else "without noise"
        return f"each of at least {self.least_images} images, {clip}, {noise}"


def limited(
    tensors: Mapping[str, Tensor], rule: StatisticRule, *, noise: Callable[[int], np.ndarray]
) -> tuple[dict[str, Tensor], float]:
    """Returns a statistic as it may be sent: every entry clipped, noise added.

    Args:
        tensors: names to float tensors; an entry is a row of the first axis. Tensors of one axis are counts and stay
            unchanged.
        rule: clip and noise.
        noise: draws from the standard normal distribution.

    Returns:
        The tensors, and the standard deviation of the noise (0 without). A rule without clip changes nothing.

    Raises:
        MessageRefused: an entry that is not finite, or noise on counts.
    """
    if not all(all_finite(tensor) for tensor in tensors.values()):
        raise message_refused("message -> statistics", "NaN or infinity", "finite values")
    if rule.clip is None:
        return dict(tensors), 0.0
    if rule.noise_multiplier and any(tensor.ndim < 2 for tensor in tensors.values()):
        raise message_refused("message -> statistics", "counts", "tensors of two or more axes (counts get no noise)")
    entries = sum(len(tensor) for tensor in tensors.values() if tensor.ndim > 1)
    deviation = 2.0 * rule.clip * math.sqrt(entries) * rule.noise_multiplier
    limited_tensors = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            limited_tensors[name] = tensor
            continue
        rows = tensor.detach().cpu().double().flatten(1)
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-300)
        rows = rows * (rule.clip / lengths).clamp(max=1.0)
        if deviation:
            rows = rows + deviation * torch.from_numpy(noise(rows.numel())).reshape(rows.shape)
        limited_tensors[name] = rows.reshape(tensor.shape).to(tensor.dtype)
    return limited_tensors, deviation


class Statistic(ABC):
    """A measurement that a site makes of its own images for others; the id ``statistics`` of ``train.json``.

    It neither clips nor adds noise: the release filter does so afterwards.

    Example::

        "statistics": {"_target_": "samfed_monai.methods.elcfs.SpectrumWindows", ...}
    """

    kind: StatisticKind

    @abstractmethod
    def like(self) -> Mapping[str, Tensor]:
        """Names (no :data:`PREFIX`), shapes, dtypes of all that leaves; entries along the first of two axes or more."""

    @abstractmethod
    def images(self, least_images: int) -> int:
        """Smallest number of images behind an entry if ``least_images`` are required; fewer are refused."""

    @abstractmethod
    def measured(self, least_images: int) -> Mapping[str, Tensor]:
        """Returns the statistic of this site's images, see :meth:`like`; it depends only on them and the run's seed."""

    def receive(self, tensors: Mapping[str, Tensor]) -> None:
        """Receives the server's statistics of other sites before a local epoch; empty if there are none yet.

        Raises:
            MessageRefused: unexpected tensors.
        """
        if not tensors:
            return
        raise message_refused("message -> statistics", ", ".join(sorted(tensors)), "none, as this site uses none")


@dataclass(kw_only=True, eq=False)
class MeansOfGroups(Statistic):
    """Entries that are means over groups of the site's images, each at least as large as the policy requires.

    Images are divided into groups at random, without overlap, in the same way every time; a site with few images has
    fewer different entries, which it repeats. The random order derives from seed, site and kind.

    Args:
        data: the site's images.
        transform: reads an image and resizes it to the training size, without random changes.
        entries: number of entries that are sent, >= 1.
        seed, site: of the run.

    Raises:
        Refused: fewer than one entry.
    """

    name: ClassVar[str]
    """Name of its tensor."""
    data: SiteImages
    transform: Callable[[Any], Any]
    entries: int = 1
    seed: int = 0
    site: str = ""

    def __post_init__(self) -> None:
        require(whole("statistics#entries", self.entries, least=1))

    @abstractmethod
    def entry(self, image: Tensor) -> Tensor:
        """Returns the values to average, from an image (3, H, W)."""

    def images(self, least_images: int) -> int:
        count = len(without_duplicates(self.data.records("unlabelled")))
        return count // self._groups(count, least_images)

    def measured(self, least_images: int) -> Mapping[str, Tensor]:
        records = without_duplicates(self.data.records("unlabelled"))
        seed = derive_seed(self.seed, self.site, self.kind.value)
        order, means = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)), []
        for group in order.tensor_split(self._groups(len(records), least_images)):
            images = (torch.as_tensor(self.transform(records[index])["image"]) for index in group.tolist())
            means.append(torch.stack([self.entry(image.as_subclass(torch.Tensor)) for image in images]).mean(dim=0))
        return {self.name: torch.stack([means[entry % len(means)] for entry in range(self.entries)])}

    def taken(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Entries of other sites, any number of this one's shape; ``None`` if there are none.

        Raises:
            MessageRefused: unexpected tensors, or values that are not finite.
        """
        like, entries, where = self.like()[self.name], tensors.get(self.name), "message -> statistics"
        if tensors and (entries is None or len(tensors) > 1 or entries.shape[1:] != like.shape[1:]):
            expected = f"{self.name} of shape (N, {', '.join(map(str, like.shape[1:]))})"
            raise message_refused(where, "other tensors", expected, "give strategy and statistics the same options")
        if entries is not None and not all_finite(entries):
            raise message_refused(where, "NaN or infinity", "finite values")
        return entries

    def _groups(self, count: int, least_images: int) -> int:
        return max(1, min(self.entries, count // max(1, least_images)))


def split_statistics(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Splits a message's tensors into weights, and statistics without :data:`PREFIX`."""
    statistics = {name[len(PREFIX) :]: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}, statistics


def with_statistics(tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``tensors`` and ``statistics`` together, the latter with :data:`PREFIX`."""
    return {**tensors, **{PREFIX + name: tensor for name, tensor in statistics.items()}}


class CollectedStatistics:
    """The server's end: requests a statistic from sites and keeps what they sent.

    A strategy that has one sets :attr:`.Strategy.statistic`, passes its messages through :meth:`with_requests` in
    ``configure``, returns :meth:`expected` in its own ``expected``, splits a reply with :meth:`taken` in ``accept``,
    and stores :meth:`state_dict` with its own. A site is asked until it has sent its statistic once.

    Args:
        kind: kind of statistic.
        like: names, shapes and dtypes of one site's.
    """

    def __init__(self, kind: StatisticKind, like: Mapping[str, Tensor]) -> None:
        self.kind, self.like = kind, dict(like)
        #: Received statistics, by site and name.
        self.by_site: dict[str, dict[str, Tensor]] = {}
        self._requested: set[str] = set()

    def with_requests(self, messages: Mapping[str, Message], *, again: bool = False) -> dict[str, Message]:
        """Returns the messages of a round; messages to sites whose statistic is missing ask for it.

        Args:
            messages: site to message with weights.
            again: ask every site, for statistics that change with the rounds.
        """
        self._requested = {site for site in messages if again or site not in self.by_site}
        request = {STATISTICS: self.kind.value}
        return {
            site: replace(message, extra={**message.extra, **request}) if site in self._requested else message
            for site, message in messages.items()
        }

    def expected(self, site: str, weights: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """Tensors of a site's reply: ``weights``, and its statistic if it was asked for it."""
        return with_statistics(weights or {}, self.like) if site in self._requested else weights

    def taken(self, site: str, update: Message) -> Message:
        """Keeps the statistic of ``update``; returns ``update`` without it."""
        weights, statistics = split_statistics(update.tensors)
        if not statistics:
            return update
        self.by_site[site] = {name: tensor.detach().clone() for name, tensor in statistics.items()}
        return replace(update, tensors=weights)

    def state_dict(self) -> dict[str, Tensor]:
        """All received statistics, by name and site."""
        sent = self.by_site.items()
        return {f"{PREFIX}{name}@{site}": tensor for site, statistics in sent for name, tensor in statistics.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the state of :meth:`state_dict`; other names are ignored."""
        self.by_site, self._requested = {}, set()
        for key, tensor in state.items():
            name, separator, site = key.removeprefix(PREFIX).partition("@")
            if key.startswith(PREFIX) and separator:
                self.by_site.setdefault(site, {})[name] = tensor
