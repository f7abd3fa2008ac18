"""The one message between server and sites, and what is checked when it arrives."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import check_tensors

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
#: A site that claims more images than this has a bug or bad intentions (ImageNet-21k has 14 million).
MAX_COUNT = 10_000_000

#: Numbers a site may send. Everything else is refused: a name that is not here cannot leave the site.
METRIC_NAMES = frozenset(
    {
        "dice",
        "iou",
        "hd95",
        "empty_both",
        "empty_prediction",
        "empty_label",
        "loss",
        "seconds",
        "iterations",
        "releases",
    }
)
#: Means of loss terms are named by the bundle's JSON; the pattern has no room for paths, dots or capitals.
TERM_NAME = re.compile(r"term_[a-z][a-z0-9_]{0,39}")
#: Largest number of adapters that one message carries; their probabilities are averaged.
MAX_ADAPTERS = 8
_HASH = re.compile("[0-9a-f]{64}")
#: Words the server may send: key to the pattern of the values it can take.
EXTRA_WORDS = {
    "split": re.compile("validation|test"),
    "withheld": re.compile("[0-9]{1,6}"),  # a site's only word: statistics of fewer images than this were left out
    "model": re.compile("initial|current|best|last|teacher"),
    # what a site does with the tensors: put them in place of its weights, learn from them, or keep its own network
    "purpose": re.compile("replace|distil|keep"),
    "public": _HASH,  # of the public set as networks see it: images, masks at the evaluation size, order
    "public_list": _HASH,  # of the public part of the data list
    "list": _HASH,  # of the site's own part of the data list
    "plan": _HASH,  # of the plan and of the bundle's files
    "version": re.compile(r"[0-9A-Za-z.+]{1,40}"),  # of this package
    "sam": _HASH,  # of the checkpoint of the teacher's SAM
    "base_sam": _HASH,  # of the checkpoint that this site's own network stands on
    "teacher": _HASH,  # of the teacher: checkpoint, adapters, size, views
    **{f"adapter_{number}": _HASH for number in range(MAX_ADAPTERS)},  # of the adapter files that a message carries
}


class Kind(str, Enum):
    """What the tensors of an :class:`Envelope` are."""

    WEIGHTS = "weights"
    SOFT_MASKS = "soft_masks"
    PROTOTYPES = "prototypes"
    ADAPTER = "adapter"
    METRICS = "metrics"


class MessageRefused(Refused):
    """A message that failed its check; its text holds tensor names and numbers only, so it may travel."""


@dataclass
class Envelope:
    """One message, up or down.

    Args:
        kind: what ``tensors`` are; ``metrics`` carries none. An ``adapter`` travels down only: each file's bytes as one
            ``uint8`` tensor ``adapter_0``, …, with its SHA-256 under the same name in ``extra``.
        site: the site it comes from or goes to.
        round: round it belongs to, from 0.
        rounds: number of rounds of the run.
        seed: the run's seed; sites derive theirs from (seed, site, round).
        n: number of images behind the message (private training images, or images evaluated); 0 on the way down.
        tensors: names to tensors, on the CPU; weights by their state-dict names.
        metrics: finite numbers under allow-listed names (:data:`METRIC_NAMES`, or ``term_<name>``).
        extra: allow-listed words of :data:`EXTRA_WORDS`.
        version: format of the message.

    It does not copy tensors, and it does not check itself on creation: call :meth:`check` on receipt.
    """

    kind: Kind
    site: str
    round: int
    rounds: int
    seed: int = 0
    n: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    version: int = VERSION

    def header(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON content."""
        names = ("version", "site", "round", "rounds", "seed", "n")
        fields = {name: getattr(self, name) for name in names}
        return {**fields, "kind": str(Kind(self.kind).value), "metrics": self.metrics, "extra": self.extra}

    def problems(
        self,
        *,
        up: bool,
        like: Mapping[str, Tensor] | None = None,
        site: str | None = None,
        round: int | None = None,
    ) -> list[Problem]:
        """Everything that is wrong with this message.

        Args:
            up: True for a message from a site, which must have a count and may carry no tensor that the server did not
                ask for; False for one from the server.
            like: names, shapes and dtypes expected; upward tensors without ``like`` are refused.
            site: who is known to have sent it.
            round: the round that is running.
        """
        problems = Problems()
        if self.version != VERSION:
            problems.add("message -> version", found=repr(self.version), expected=str(VERSION), mend="update both ends")
        if site is not None and self.site != site:
            problems.add("message -> site", found="another site's name", expected="the sender's own name")
        if round is not None and self.round != round:
            problems.add("message -> round", found=f"round {self.round}", expected=f"round {round}")
        if up:
            least = 0 if self.kind == Kind.METRICS else 1
            if type(self.n) is not int or not least <= self.n <= MAX_COUNT:
                expected = f"a whole number from {least} to {MAX_COUNT}"
                problems.add("message -> n", found=_number(self.n), expected=expected)
            if self.tensors and like is None:
                problems.add("message -> tensors", found="tensors nobody asked for", expected="numbers only")
        problems.extend(_scalar_problems(self.metrics, self.extra))
        problems.extend(_tensor_problems(self.tensors, like))
        return list(problems)

    def check(
        self,
        *,
        up: bool,
        like: Mapping[str, Tensor] | None = None,
        site: str | None = None,
        round: int | None = None,
    ) -> None:
        """Raises :class:`MessageRefused` with every problem of :meth:`problems`, if there is any."""
        found = self.problems(up=up, like=like, site=site, round=round)
        if found:
            raise MessageRefused(found)


def _scalar_problems(metrics: Mapping[Any, Any], extra: Mapping[Any, Any]) -> list[Problem]:
    # names and values that are refused are not repeated: they might be what must not travel
    problems = Problems()
    for name, value in metrics.items():
        if name not in METRIC_NAMES and not (isinstance(name, str) and TERM_NAME.fullmatch(name)):
            problems.add("message -> metrics", found="a name that is not on the list", expected=_names(METRIC_NAMES))
        elif type(value) not in (int, float) or not math.isfinite(value):
            problems.add(f"message -> metrics -> {name}", found=_number(value), expected="a finite number")
    for name, value in extra.items():
        if name not in EXTRA_WORDS:
            problems.add("message -> extra", found="a name that is not on the list", expected=_names(EXTRA_WORDS))
        elif not isinstance(value, str) or not EXTRA_WORDS[name].fullmatch(value):
            problems.add(f"message -> extra -> {name}", found="another value", expected=EXTRA_WORDS[name].pattern)
    return list(problems)


def _tensor_problems(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor] | None) -> list[Problem]:
    if like is None:
        finite = _finite(tensors)
        return [] if finite else [Problem("message -> tensors", found="NaN or infinity", expected="finite values")]
    if _sound(tensors, like):
        return []
    problems = Problems()
    unknown = len(tensors.keys() - like.keys())
    if unknown:
        expected = "the network's own names, and of those what is shared alone"
        mend = "give both ends the same bundle, network and personal"
        problems.add("message -> tensors", found=f"{unknown} with unknown names", expected=expected, mend=mend)
    known = {name: tensor for name, tensor in tensors.items() if name in like}
    problems.extend(check_tensors(known, like=like, where="message"))
    return list(problems)


def _names(names: Any) -> str:
    return "one of " + ", ".join(sorted(names))


def _number(value: Any) -> str:
    return repr(value) if type(value) in (int, float) else type(value).__name__


def _sound(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> bool:
    same_names = tensors.keys() == like.keys()
    return (
        same_names
        and all(tensors[name].shape == like[name].shape and tensors[name].dtype == like[name].dtype for name in like)
        and _finite(tensors)
    )


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    # one read per tensor and no temporary (7x faster than isfinite().all()): a sum with a NaN or an infinity in it
    # is not finite. A sum may overflow without one: False only means "look closer".
    return all(math.isfinite(tensor.sum()) for tensor in tensors.values() if tensor.is_floating_point())
