"""Simulated sites: they reply to a real server with updates of real size, without training.

Sites and network are simulated; controller, checks, strategy, serialized messages and run folder are real. A site's
update is the received model plus one number that depends on site and round, so a test can recompute the mean. Faults
depend only on seed, site and round, so a resumed run has the same faults.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samfed_monai.core.seeds import derive_seed
from samfed_monai.federation.wire_transport import Request
from samfed_monai.protocol import Kind, Message, from_bytes, to_bytes
from samfed_monai.protocol.transport import NOT_HELD, Task


def model(network: str) -> dict[str, Tensor]:
    """Random weights of a client network; for a number such as ``24``, tensors of 24 MB in total."""
    if network.isdecimal():
        return {f"layer{number}.weight": torch.full((250_000,), 0.125) for number in range(int(network))}
    from samfed_monai.networks.catalogue import client_network

    torch.manual_seed(0)
    return {name: tensor.detach().clone() for name, tensor in client_network(network).state_dict().items()}


def site_names(sites: int) -> tuple[str, ...]:
    """``site-001`` and so on, in order."""
    return tuple(f"site-{number + 1:03d}" for number in range(sites))


def images_of(site: str) -> int:
    """The number of images that a site reports."""
    return 20 + derive_seed(0, site, "images") % 200


def step_of(seed: int, site: str, round: int) -> float:
    """The number that a site adds to every weight; a multiple of 2^-12, which keeps sums of few rounds exact."""
    return (derive_seed(seed, site, round, "step") % 65 - 32) / 4096


def update(message: Message, weights: Mapping[str, Tensor]) -> Message:
    """A site's correct reply to a training message."""
    step = step_of(message.seed, message.site, message.round)
    tensors = {
        name: tensor + step if tensor.is_floating_point() and not name.endswith("running_var") else tensor
        for name, tensor in weights.items()
    }
    metrics = {"seconds": 1.0, "iterations": 12, "term_supervised": 0.5}
    return replace(message, n=images_of(message.site), tensors=tensors, metrics=metrics, extra={})


def scores(message: Message) -> Message:
    """A site's reply to an evaluation message."""
    dice = 0.5 + (derive_seed(message.seed, message.site, message.round, "dice") % 1000) / 4000
    metrics = {"dice": dice, "iou": dice / 2, "hd95": 4.0, "empty_both": 0, "empty_prediction": 1, "empty_label": 0}
    return replace(message, kind=Kind.METRICS, n=20, tensors={}, metrics=metrics, extra={})


def _changed(change: Callable[[Message], Message]) -> Callable[[Message], bytes]:
    return lambda reply: to_bytes(change(reply))


def _first_value(value: float) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        name = next(name for name, tensor in reply.tensors.items() if tensor.is_floating_point())
        changed = reply.tensors[name].clone()
        changed.view(-1)[0] = value
        return replace(reply, tensors={**reply.tensors, name: changed})

    return change


def _reshaped(reply: Message) -> Message:
    name = next(name for name, tensor in reply.tensors.items() if tensor.numel() > 1)
    return replace(reply, tensors={**reply.tensors, name: reply.tensors[name].reshape(-1)[:1]})


#: Faults after which the server must leave the update out, each for a different reason.
FAULTS: dict[str, Callable[[Message], bytes | str]] = {
    "crashes": lambda _: "RuntimeError in torch, line 1",
    "runs out of memory": lambda _: "out of memory",
    "sends NaN": _changed(_first_value(float("nan"))),
    "sends infinity": _changed(_first_value(float("inf"))),
    "sends another shape": _changed(_reshaped),
    "leaves tensors out": _changed(lambda reply: replace(reply, tensors={})),
    "sends a step a million times too long": _changed(_first_value(3e38)),
    "sends another round's update": _changed(lambda reply: replace(reply, round=reply.round + 1)),
    "uses another site's name": _changed(lambda reply: replace(reply, site="site-000")),
    "reports ten million images": _changed(lambda reply: replace(reply, n=10_000_000)),
    "reports a Dice of a billion": _changed(lambda reply: replace(reply, metrics={"dice": 1e9})),
    "sends a pickle": lambda _: b"cos\nsystem\n(S'true'\ntR.",
    "sends noise": lambda reply: random.Random(reply.round).randbytes(4096),
    "sends half of the bytes": lambda reply: to_bytes(reply)[: 1 << 16],
}
#: Deviations after which the update still counts.
HARMLESS = ("replies twice", "has restarted without the model")
#: The site does not reply, or replies after the deadline.
ABSENCES = ("is absent", "is late")


@dataclass(frozen=True)
class Behaviour:
    """The behaviour of every site in every round; it depends only on seed, site and round.

    Args:
        seed: seed of the run.
        faults, harmless: probability of :data:`FAULTS` and of :data:`HARMLESS` deviations in a reply, in [0, 1].
        absences: probability per round that a site becomes absent or is late, in [0, 1].
        longest: maximum number of rounds of an absence.
    """

    seed: int
    faults: float = 0.05
    harmless: float = 0.02
    absences: float = 0.005
    longest: int = 8

    def of(self, site: str, round: int) -> str:
        """The fault, deviation or absence of ``site`` in ``round``; empty if it replies correctly."""
        for before in range(self.longest):
            drawn = random.Random(derive_seed(self.seed, site, round - before, "absence"))
            if round >= before and drawn.random() < self.absences:
                kind, rounds = drawn.choice(ABSENCES), drawn.randint(1, self.longest)
                if before < rounds and (kind == "is absent" or not before):
                    return kind
        drawn = random.Random(derive_seed(self.seed, site, round, "behaviour"))
        chance = drawn.random()
        if chance < self.faults:
            return drawn.choice(sorted(FAULTS))
        return drawn.choice(HARMLESS) if chance < self.faults + self.harmless else ""


class SimulatedSites:
    """A :class:`samfed_monai.federation.Post` whose requests are answered by simulated sites.

    Args:
        behaviour: behaviour of the sites in training; replies to evaluations are always correct. ``None``: no faults.
        sites: number of sites.
        reverse: reply in reverse order of names once all requests of a round are sent; the worst case for a server
            that adds updates in the order of names.
        before_reply: called before each reply to a training message, with the round and the number of earlier replies.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        sites: int,
        reverse: bool = False,
        before_reply: Callable[[int, int], None] = lambda round, number: None,
    ) -> None:
        self.behaviour, self.sites, self.reverse, self.before_reply = behaviour, sites, reverse, before_reply
        self._weights: dict[str, Tensor] = {}  # the model that was sent last; all sites share it
        self._repeated: set[tuple[str, int]] = set()
        self._kept: list[Request] = []
        self._late: list[tuple[Request, bytes]] = []
        self._round, self._replies = -1, 0

    def send(self, request: Request) -> str:
        if not self.reverse or request.task != Task.TRAIN.value:
            self._answer(request)
            return request.site
        self._kept.append(replace(request, message=None) if self._kept else request)
        if len(self._kept) == self.sites:
            self._read(self._kept[0])
            for kept in reversed(self._kept):
                self._answer(kept)
            self._kept = []
        return request.site

    def cancel(self, site: str) -> bool:
        """Cancels nothing; a late site still sends its reply in the next round."""
        return False

    def check_stop(self) -> None:
        """Does nothing; the run is never stopped from outside."""

    def _read(self, request: Request) -> Message:
        message = from_bytes(request.payload) if request.message else self._blank(request)
        if message.tensors and message.kind == Kind.WEIGHTS:
            self._weights = message.tensors
        return replace(message, site=request.site)

    def _blank(self, request: Request) -> Message:
        return Message(Kind.WEIGHTS, request.site, request.round, request.round + 1)

    def _answer(self, request: Request) -> None:
        message = self._read(request)
        if request.task == Task.EVALUATE.value:
            request.answered(request.site, to_bytes(scores(message)))
            return
        if request.round != self._round:
            self._round, self._replies = request.round, 0
            for late, content in self._late:
                late.answered(late.site, content)
            self._late = []
        self.before_reply(request.round, self._replies)
        self._replies += 1
        behaviour = self.behaviour.of(request.site, request.round) if self.behaviour else ""
        if behaviour == "is absent":
            return
        reply = update(message, self._weights)
        if behaviour == "is late":
            self._late.append((request, to_bytes(replace(reply, tensors={}))))
        elif behaviour in FAULTS:
            request.answered(request.site, FAULTS[behaviour](reply))
        elif behaviour == HARMLESS[1] and (request.site, request.round) not in self._repeated:
            self._repeated.add((request.site, request.round))
            request.answered(request.site, NOT_HELD)
        else:
            content = to_bytes(reply)
            for _ in range(2 if behaviour == HARMLESS[0] else 1):
                request.answered(request.site, content)


def resident(peak: bool = False) -> float:
    """Resident memory of this process in MiB, current or peak (Linux only)."""
    field = "VmHWM:" if peak else "VmRSS:"
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field)).split()[1]) / 1024


def wrong_entries(record: Mapping[str, Any], behaviour: Behaviour, round: int) -> list[str]:
    """Entries of a round's record that contradict the behaviour of their sites, one line each."""
    wrong = []
    for site, entry in record["sites"].items():
        known = behaviour.of(site, round)
        expected = "skipped" if known in FAULTS or known in ABSENCES else "ok"
        if entry["status"] != expected:
            wrong.append(
                f"round {round}: {site} {known or 'replies correctly'}, but is {entry['status']}: {entry['reason']}"
            )
    return wrong
