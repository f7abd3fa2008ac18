"""Image-derived statistics beside weights: the policy under which one may leave its site, and how it travels.

A statistic is off unless the method that is named sends one (:attr:`.Strategy.statistic`, and ``leaves_site`` of its
declaration); a run says so before it begins. It travels with a site's trained weights, in names that begin with
:data:`PREFIX`, where the server asked for it, and it comes from the site's :class:`Statistic`, the id ``statistics`` of
``train.json``. The release filter holds it to its :class:`StatisticRule` (``federate.json -> privacy#statistics``)
and writes the audit line. Prototypes travel in messages of their own and are held to a rule as well.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from samfed_monai.core.io import all_finite
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.validators import require, whole
from samfed_monai.data.records import different
from samfed_monai.protocol.message import STATISTICS, Message, message_refused

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from samfed_monai.bundle import SiteImages

PREFIX = "statistics."
"""What names of a statistic's tensors begin with in a message that has weights, too; no network's name does."""


class StatisticKind(str, Enum):
    """What can leave, in the words of ``_method#leaves_site`` and of ``privacy#statistics``."""

    SPECTRUM = "spectrum"
    FEATURES = "features"
    PROTOTYPES = "prototypes"
    GRAPH = "graph"

    @property
    def words(self) -> str:
        """What it is, for readers."""
        return _WORDS[self]


_WORDS = {
    StatisticKind.SPECTRUM: "amplitude-spectrum windows",
    StatisticKind.FEATURES: "mean features",
    StatisticKind.PROTOTYPES: "one mean feature per class",
    StatisticKind.GRAPH: "a graph descriptor",
}


@dataclass(frozen=True)
class StatisticRule:
    """How one kind of statistic may leave a site.

    Args:
        clip: largest L2 norm of one entry, which is a row of the tensor's first axis; ``None`` leaves entries as they
            are.
        noise_multiplier: standard deviation of Gaussian noise over ``2 * clip * sqrt(entries)``, by which a message
            changes at most when all of a site's images are replaced; 0 adds none.
        least_images: images behind every entry, at the least; ``privacy#least_images`` counts where it is larger.

    Example::

        "privacy": {"statistics": {"spectrum": {"clip": 1.0, "noise_multiplier": 0.0, "least_images": 5}}}
    """

    clip: float | None = None
    noise_multiplier: float = 0.0
    least_images: int = 1

    def in_words(self) -> str:
        """The rule in words."""
        clip = "as they are" if self.clip is None else f"clipped to a norm of {self.clip:g}"
        noise = f"noise multiplier {self.noise_multiplier:g}" if self.noise_multiplier else "without noise"
        return f"each of at least {self.least_images} images, {clip}, {noise}"


def limited(
    tensors: Mapping[str, Tensor], rule: StatisticRule, *, noise: Callable[[int], np.ndarray]
) -> tuple[dict[str, Tensor], float]:
    """A statistic as it may leave: every entry clipped, noise added.

    Args:
        tensors: names to float tensors; an entry is a row of the first axis. Those of one axis are counts and are
            left alone.
        rule: clip and noise.
        noise: draws of the standard normal distribution.

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
        expected = "entries of two axes or more, to which noise can be added"
        raise message_refused("message -> statistics", "counts", expected)
    entries = sum(len(tensor) for tensor in tensors.values() if tensor.ndim > 1)
    deviation = 2.0 * rule.clip * math.sqrt(entries) * rule.noise_multiplier
    left = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            left[name] = tensor
            continue
        rows = tensor.detach().cpu().double().flatten(1)
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-300)
        rows = rows * (rule.clip / lengths).clamp(max=1.0)
        if deviation:
            rows = rows + deviation * torch.from_numpy(noise(rows.numel())).reshape(rows.shape)
        left[name] = rows.reshape(tensor.shape).to(tensor.dtype)
    return left, deviation


class Statistic(ABC):
    """What a site measures of its own images for others; the id ``statistics`` of ``train.json``.

    It neither clips nor adds noise: the release filter does, after it.

    Example::

        "statistics": {"_target_": "samfed_monai.methods.elcfs.SpectrumWindows", ...}
    """

    kind: StatisticKind

    @abstractmethod
    def like(self) -> Mapping[str, Tensor]:
        """Names, shapes and dtypes of what it measures, without :data:`PREFIX`; entries along the first of two axes or
        more. Nothing else leaves."""

    @abstractmethod
    def images(self, least_images: int) -> int:
        """Images behind the entry that has fewest, if there are to be ``least_images``; fewer are refused."""

    @abstractmethod
    def measured(self, least_images: int) -> Mapping[str, Tensor]:
        """The statistic of this site's images, as :meth:`like` says; a function of them and of the run's seed."""

    def receive(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what the server makes of other sites' statistics, before a local epoch; none where it has none yet.

        Raises:
            MessageRefused: tensors that are not those.
        """
        if not tensors:
            return
        names = ", ".join(sorted(tensors))
        raise message_refused("message -> statistics", names, "none: this site takes none")


@dataclass(kw_only=True, eq=False)
class MeansOfGroups(Statistic):
    """Entries that are each the mean over several of the site's images, as many as the policy asks for, at least.

    Images are dealt out at random, none twice, in the same way every time it is measured; a site with few of them has
    fewer different entries, which it repeats. The random order derives from seed, site and kind.

    Args:
        data: the site's images.
        transform: reads one and brings it to the training size, without random changes.
        entries: that leave, >= 1.
        seed, site: of the run.

    Raises:
        Refused: no entry.
    """

    name: ClassVar[str]
    """Of its tensor."""
    data: SiteImages
    transform: Callable[[Any], Any]
    entries: int = 1
    seed: int = 0
    site: str = ""

    def __post_init__(self) -> None:
        require(whole("statistics#entries", self.entries, least=1))

    @abstractmethod
    def entry(self, image: Tensor) -> Tensor:
        """What is averaged, of an image (3, H, W)."""

    def images(self, least_images: int) -> int:
        count = len(different(self.data.records("unlabelled")))
        return count // self._groups(count, least_images)

    def measured(self, least_images: int) -> Mapping[str, Tensor]:
        records = different(self.data.records("unlabelled"))
        seed = derive_seed(self.seed, self.site, self.kind.value)
        order, means = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)), []
        for group in order.tensor_split(self._groups(len(records), least_images)):
            images = (torch.as_tensor(self.transform(records[index])["image"]) for index in group.tolist())
            entries = [self.entry(image.as_subclass(torch.Tensor)) for image in images]
            means.append(torch.stack(entries).mean(dim=0))
        return {self.name: torch.stack([means[entry % len(means)] for entry in range(self.entries)])}

    def taken(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Entries of other sites, any number of this one's shape; ``None`` where none came.

        Raises:
            MessageRefused: tensors that are not those, or not finite.
        """
        own, others, where = self.like()[self.name], tensors.get(self.name), "message -> statistics"
        if tensors and (others is None or len(tensors) > 1 or others.shape[1:] != own.shape[1:]):
            expected = f"{self.name} of shape (N, {', '.join(map(str, own.shape[1:]))})"
            hint = "give strategy and statistics the same options"
            raise message_refused(where, "others", expected, hint)
        if others is not None and not all_finite(others):
            raise message_refused(where, "NaN or infinity", "finite values")
        return others

    def _groups(self, count: int, least_images: int) -> int:
        return max(1, min(self.entries, count // max(1, least_images)))


def split_statistics(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A message's weights, and its statistics without :data:`PREFIX`."""
    own = {name[len(PREFIX) :]: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}, own


def with_statistics(tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` and ``statistics``, these with :data:`PREFIX`."""
    return {**tensors, **{PREFIX + name: tensor for name, tensor in statistics.items()}}


class Collected:
    """The server's end: whom to ask, what to expect, and what each site has sent.

    A strategy that has one sets :attr:`.Strategy.statistic`, passes its messages through :meth:`asking` in
    ``configure``, answers ``expected`` by :meth:`expected`, takes an answer apart by :meth:`taken` in ``accept``, and
    keeps :meth:`state_dict` with its own. A site is asked until it has answered once.

    Args:
        kind: which statistic.
        like: names, shapes and dtypes of one site's.
    """

    def __init__(self, kind: StatisticKind, like: Mapping[str, Tensor]) -> None:
        self.kind, self.like = kind, dict(like)
        #: What came, by site and name.
        self.by_site: dict[str, dict[str, Tensor]] = {}
        self._asked: set[str] = set()

    def asking(self, messages: Mapping[str, Message], *, again: bool = False) -> dict[str, Message]:
        """Messages of a round; those of sites whose statistic is missing ask for it.

        Args:
            messages: site to message with weights.
            again: ask everybody, for statistics that change with the rounds.
        """
        self._asked = {site for site in messages if again or site not in self.by_site}
        word = {STATISTICS: self.kind.value}
        return {
            site: replace(message, extra={**message.extra, **word}) if site in self._asked else message
            for site, message in messages.items()
        }

    def expected(self, site: str, weights: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """What a site answers: ``weights``, and its statistic where it was asked."""
        return with_statistics(weights or {}, self.like) if site in self._asked else weights

    def taken(self, site: str, update: Message) -> Message:
        """``update`` without its statistic, which is kept."""
        weights, statistics = split_statistics(update.tensors)
        if not statistics:
            return update
        self.by_site[site] = {name: tensor.detach().clone() for name, tensor in statistics.items()}
        return replace(update, tensors=weights)

    def state_dict(self) -> dict[str, Tensor]:
        """All that came, by name and site."""
        sent = self.by_site.items()
        return {f"{PREFIX}{name}@{site}": tensor for site, own in sent for name, tensor in own.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`state_dict` returned; other names are passed over."""
        self.by_site, self._asked = {}, set()
        for key, tensor in state.items():
            name, found, site = key.removeprefix(PREFIX).partition("@")
            if key.startswith(PREFIX) and found:
                self.by_site.setdefault(site, {})[name] = tensor
