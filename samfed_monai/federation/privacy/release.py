"""The one filter through which every message of a site leaves, on every transport."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Problems
from samfed_monai.federation.envelope import METRIC_NAMES, VERSION, Envelope, Kind, MessageRefused
from samfed_monai.federation.failure import scrub
from samfed_monai.federation.privacy.accountant import epsilon
from samfed_monai.federation.privacy.allowed import Allowed
from samfed_monai.federation.privacy.audit import AuditLog
from samfed_monai.federation.privacy.noise import Noise, SystemNoise, noisy_masks, noisy_update
from samfed_monai.federation.privacy.settings import DifferentialPrivacy, Privacy
from samfed_monai.federation.privacy.small_counts import EFFORT, withhold_small
from samfed_monai.federation.privacy.tensor_problems import tensor_problems
from samfed_monai.federation.transport import Task
from samfed_monai.federation.wire import wire_size
from samfed_monai.networks.key_patterns import KeySplit

#: Bytes of a message beside its tensors: names, shapes and the header.
_HEADER_BYTES = 1024**2
#: More numbers than any bundle's terms need.
_MOST_METRICS = 64
_ECHOED = ("site", "round", "rounds", "seed")


class Release:
    """``release(task, request, reply)``: what of ``reply`` may leave, or :class:`MessageRefused`.

    In this order: the reply is compared with the allow-list (kind, names, shapes, dtypes, size; site, round and seed
    must be those of the request), small counts are withheld, noise is added where it is asked for, and a line is
    written to the audit file. Whatever is not on the list is refused, and its name or value is not repeated. A message
    whose line cannot be written does not leave.

    Args:
        site: the site's name.
        allowed: what may leave now; called for each reply with tensors, because a client's network is made late.
        privacy: the run's settings; ``None`` is their defaults.
        folder: the site's own folder, for ``audit.jsonl``; ``None`` writes to the logger only.
        noise: draws of the standard normal distribution; a seed is for tests, and no JSON can set one.
    """

    def __init__(
        self,
        site: str,
        *,
        allowed: Callable[[], Allowed],
        privacy: Privacy | None = None,
        folder: str | Path | None = None,
        noise: Noise | None = None,
    ) -> None:
        self.site, self.allowed = site, allowed
        self.privacy, self.noise = privacy or Privacy(), noise or SystemNoise()
        self.audit = AuditLog(folder)
        #: Messages with noise that this site has sent in this run, those before a restart included.
        self.releases = self.audit.noised()

    def __call__(self, task: Task, request: Envelope, reply: Envelope) -> Envelope:
        """The message that may leave in answer to ``request``.

        Raises:
            MessageRefused: nothing of it may; the text may travel.
            OSError: the audit file could not be written.
        """
        try:
            allowed = self.allowed() if getattr(reply, "tensors", None) else Allowed()
            self._check(task, request, reply, allowed)
            message, noise = self._noised(task, request, withhold_small(reply, self.privacy.least_images), allowed)
            content = _content(message)
        except MessageRefused as refused:
            self._write(task, request, outcome="refused", problems=[str(each) for each in refused.problems])
            raise
        self._write(task, request, outcome="sent", **content, noise=noise)
        return message

    def declare(self, split: KeySplit) -> None:
        """Writes a line about what of this site's network may leave, where that is not all of it."""
        if split.personal or split.frozen:
            parts = {"shared": len(split.shared), "personal": len(split.personal), "frozen": len(split.frozen)}
            names = _names_hash(split.shared)
            line = {"site": self.site, "round": None, "task": None, "outcome": "declared", "kind": Kind.WEIGHTS.value}
            self.audit.write({**line, "tensors": len(split.shared), "names_sha256": names, **parts})

    def failed(self, task: Task, request: Envelope, error: Exception) -> str:
        """Writes a line about an answer that there is none of; returns the words about it that may leave."""
        words = scrub(error)
        self._write(task, request, outcome="failed", problems=[words])
        return words

    def _write(self, task: Task, request: Envelope, **record: Any) -> None:
        self.audit.write({"site": self.site, "round": request.round, "task": Task(task).value, **record})

    def _check(self, task: Task, request: Envelope, reply: Envelope, allowed: Allowed) -> None:
        if not isinstance(reply, Envelope):
            raise MessageRefused([Problem("message", found="something else", expected="an Envelope")])
        problems = Problems()
        for name, wanted in (("version", VERSION), *((name, getattr(request, name)) for name in _ECHOED)):
            if type(getattr(reply, name)) is not type(wanted) or getattr(reply, name) != wanted:
                problems.add(f"message -> {name}", found="another one", expected="that of the request")
        if request.site != self.site:
            problems.add("message -> site", found="a request to another site", expected="one to this site")
        if reply.extra:
            problems.add("message -> extra", found="words", expected="none from a site")
        if type(reply.n) is not int or reply.n < 0:
            problems.add("message -> n", found="another value", expected="a whole number >= 0")
        if len(reply.metrics) > _MOST_METRICS:
            problems.add("message -> metrics", found="too many", expected=f"at most {_MOST_METRICS}")
        problems.extend(Envelope(Kind.METRICS, self.site, 0, 1, metrics=reply.metrics).problems(up=False))
        if reply.tensors and task != Task.TRAIN:
            problems.add("message -> tensors", found="tensors that were not trained", expected="numbers only")
        problems.extend(tensor_problems(reply, allowed))
        if len(problems):
            raise MessageRefused(problems)

    def _noised(
        self, task: Task, request: Envelope, reply: Envelope, allowed: Allowed
    ) -> tuple[Envelope, dict[str, Any] | None]:
        settings = self.privacy.differential_privacy
        if settings is None or task != Task.TRAIN:
            return reply, None
        # means of loss terms come from the images trained on, and no noise is added to them
        reply = replace(reply, metrics={name: value for name, value in reply.metrics.items() if name in EFFORT})
        if not reply.tensors:
            return reply, None
        self._require_budget(settings)
        how: dict[str, Any] = {
            "clip": settings.clip,
            "noise_multiplier": settings.noise_multiplier,
            "noise": self.noise,
        }
        deviation = 2.0 * settings.clip * settings.noise_multiplier
        if reply.kind == Kind.WEIGHTS:
            tensors = noisy_update(reply.tensors, request.tensors, learned=sorted(allowed.learned), **how)
        elif reply.kind == Kind.SOFT_MASKS and len(reply.tensors) == 1:
            ((name, masks),) = reply.tensors.items()
            tensors = {name: noisy_masks(masks, request.tensors.get(name), **how)}
            deviation *= len(masks) ** 0.5
        else:
            expected = "weights or soft masks, to which noise can be added"
            raise MessageRefused([Problem("differential privacy", found=Kind(reply.kind).value, expected=expected)])
        self.releases += 1
        metrics = {**reply.metrics, "releases": self.releases}
        noise = {"deviation": deviation, **settings.__dict__, "release": self.releases}
        return replace(reply, tensors=tensors, metrics=metrics), noise

    def _require_budget(self, settings: DifferentialPrivacy) -> None:
        if settings.epsilon is None:
            return
        after = epsilon(settings.noise_multiplier, self.releases + 1, settings.delta)
        if after > settings.epsilon:
            found = f"epsilon {after:.3g} after one more message"
            raise MessageRefused([Problem("privacy budget", found=found, expected=f"at most {settings.epsilon:g}")])


def _content(message: Envelope) -> dict[str, Any]:
    names, size = sorted(message.tensors), wire_size(message)
    most = _HEADER_BYTES + sum(tensor.numel() * tensor.element_size() for tensor in message.tensors.values())
    if size > most:
        raise MessageRefused([Problem("message", found=f"{size} bytes", expected=f"at most {most} bytes")])
    return {
        "kind": Kind(message.kind).value,
        "tensors": len(names),
        "names_sha256": _names_hash(names),
        "bytes": size,
        "n": message.n,
        "metrics": sorted(message.metrics, key=lambda name: (name not in METRIC_NAMES, name)),
        "withheld": sorted(message.extra),
    }


def _names_hash(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
