"""Stand-in sites: they answer a real server with updates of real size, and train nothing.

What is real: the controller, its checks, the strategy, the messages as bytes, the run folder. What stands in: sites and
the network between. Every site's update is the model that it was sent plus one number of its own, so that the mean can
be computed again; a site that misbehaves does so by (seed, site, round), so that a run that goes on after a stop meets
the same.
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
    """Weights of a client network, drawn; of ``24`` (or any number) tensors of so many MB together."""
    if network.isdecimal():
        return {f"layer{number}.weight": torch.full((250_000,), 0.125) for number in range(int(network))}
    from samfed_monai.networks.catalogue import client_network

    torch.manual_seed(0)
    return {name: tensor.detach().clone() for name, tensor in client_network(network).state_dict().items()}


def site_names(sites: int) -> tuple[str, ...]:
    """``site-001`` and so on, in the order of their numbers."""
    return tuple(f"site-{number + 1:03d}" for number in range(sites))


def images_of(site: str) -> int:
    """The number of images that a stand-in says it has."""
    return 20 + derive_seed(0, site, "images") % 200


def step_of(seed: int, site: str, round: int) -> float:
    """What a stand-in adds to every weight; a multiple of 2^-12, so that small models stay exact."""
    return (derive_seed(seed, site, round, "step") % 65 - 32) / 4096


def update(message: Message, weights: Mapping[str, Tensor]) -> Message:
    """A site's honest answer to a training message."""
    step = step_of(message.seed, message.site, message.round)
    tensors = {
        name: tensor + step if tensor.is_floating_point() and not name.endswith("running_var") else tensor
        for name, tensor in weights.items()
    }
    metrics = {"seconds": 1.0, "iterations": 12, "term_supervised": 0.5}
    return replace(message, n=images_of(message.site), tensors=tensors, metrics=metrics, extra={})


def scores(message: Message) -> Message:
    """A site's answer to an evaluation."""
    dice = 0.5 + (derive_seed(message.seed, message.site, message.round, "dice") % 1000) / 4000
    metrics = {"dice": dice, "iou": dice / 2, "hd95": 4.0, "empty_both": 0, "empty_prediction": 1, "empty_label": 0}
    return replace(message, kind=Kind.METRICS, n=20, tensors={}, metrics=metrics, extra={})


def _changed(change: Callable[[Message], Message]) -> Callable[[Message], bytes]:
    return lambda answer: to_bytes(change(answer))


def _poisoned(value: float) -> Callable[[Message], Message]:
    def change(answer: Message) -> Message:
        name = next(name for name, tensor in answer.tensors.items() if tensor.is_floating_point())
        bad = answer.tensors[name].clone()
        bad.view(-1)[0] = value
        return replace(answer, tensors={**answer.tensors, name: bad})

    return change


def _reshaped(answer: Message) -> Message:
    name = next(name for name, tensor in answer.tensors.items() if tensor.numel() > 1)  # one number has no other shape
    return replace(answer, tensors={**answer.tensors, name: answer.tensors[name].reshape(-1)[:1]})


#: Answers whose update must be left out, each for its own reason.
LIES: dict[str, Callable[[Message], bytes | str]] = {
    "crashes": lambda _: "RuntimeError in torch, line 1",
    "runs out of memory": lambda _: "out of memory",
    "sends NaN": _changed(_poisoned(float("nan"))),
    "sends infinity": _changed(_poisoned(float("inf"))),
    "sends another shape": _changed(_reshaped),
    "leaves tensors out": _changed(lambda answer: replace(answer, tensors={})),
    "sends a step a million times too long": _changed(_poisoned(3e38)),
    "sends of another round": _changed(lambda answer: replace(answer, round=answer.round + 1)),
    "takes another's name": _changed(lambda answer: replace(answer, site="site-000")),
    "says ten million images": _changed(lambda answer: replace(answer, n=10_000_000)),
    "says a Dice of a billion": _changed(lambda answer: replace(answer, metrics={"dice": 1e9})),
    "sends a pickle": lambda _: b"cos\nsystem\n(S'true'\ntR.",
    "sends noise": lambda answer: random.Random(answer.round).randbytes(4096),
    "sends half": lambda answer: to_bytes(answer)[: 1 << 16],
}
#: What a site may do without its update being left out.
QUIRKS = ("answers twice", "was started again and holds nothing")
#: What takes it out of rounds: nothing comes, or it comes when the deadline has passed.
ABSENCES = ("is away", "is late")


@dataclass(frozen=True)
class Behaviour:
    """Who does what when: by (seed, site, round), nothing else.

    Args:
        seed: of the run.
        lies, quirks, absences: parts of all answers, in [0, 1].
        longest: rounds that a site stays away.
    """

    seed: int
    lies: float = 0.05
    quirks: float = 0.02
    absences: float = 0.005
    longest: int = 8

    def of(self, site: str, round: int) -> str:
        """What ``site`` does in ``round``; empty where it is honest."""
        for before in range(self.longest):
            drawn = random.Random(derive_seed(self.seed, site, round - before, "absence"))
            if round >= before and drawn.random() < self.absences:
                kind, rounds = drawn.choice(ABSENCES), drawn.randint(1, self.longest)
                if before < rounds and (kind == "is away" or not before):
                    return kind
        drawn = random.Random(derive_seed(self.seed, site, round, "behaviour"))
        chance = drawn.random()
        if chance < self.lies:
            return drawn.choice(sorted(LIES))
        return drawn.choice(QUIRKS) if chance < self.lies + self.quirks else ""


class StandIns:
    """A post office (:class:`samfed_monai.federation.Post`) in whose place stand-ins answer, in any order.

    Args:
        behaviour: what they do in training; they score honestly.
        backwards: requests are kept until all of a round are there, and answered in the opposite order of names: the
            worst for a server, which adds in their order.
        at_answer: called with the round and the number of answers before each answer to a training message.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        sites: int,
        backwards: bool = False,
        at_answer: Callable[[int, int], None] = lambda round, number: None,
    ) -> None:
        self.behaviour, self.sites, self.backwards, self.at_answer = behaviour, sites, backwards, at_answer
        self._weights: dict[str, Tensor] = {}  # what all were sent last: one model, whatever the number of sites
        self._repeated: set[tuple[str, int]] = set()
        self._kept: list[Request] = []
        self._late: list[tuple[Request, bytes]] = []
        self._round, self._answers = -1, 0

    def send(self, request: Request) -> str:
        if not self.backwards or request.task != Task.TRAIN.value:
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
        """Nothing: who is late sends what it has in the next round."""
        return False

    def check_stop(self) -> None:
        """Nobody stops it."""

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
            self._round, self._answers = request.round, 0
            for late, content in self._late:
                late.answered(late.site, content)
            self._late = []
        self.at_answer(request.round, self._answers)
        self._answers += 1
        does = self.behaviour.of(request.site, request.round) if self.behaviour else ""
        if does == "is away":
            return
        answer = update(message, self._weights)
        if does == "is late":
            self._late.append((request, to_bytes(replace(answer, tensors={}))))
        elif does in LIES:
            request.answered(request.site, LIES[does](answer))
        elif does == QUIRKS[1] and (request.site, request.round) not in self._repeated:
            self._repeated.add((request.site, request.round))
            request.answered(request.site, NOT_HELD)
        else:
            content = to_bytes(answer)
            for _ in range(2 if does == QUIRKS[0] else 1):
                request.answered(request.site, content)


def resident(peak: bool = False) -> float:
    """MiB of this process in memory, now or at its highest (Linux)."""
    word = "VmHWM:" if peak else "VmRSS:"
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(word)).split()[1]) / 1024


def honest(record: Mapping[str, Any], behaviour: Behaviour, round: int) -> list[str]:
    """What of a round's record is not as the sites' behaviour says, one line each; empty for a sound round."""
    wrong = []
    for site, entry in record["sites"].items():
        does = behaviour.of(site, round)
        expected = "skipped" if does in LIES or does in ABSENCES else "ok"
        if entry["status"] != expected:
            wrong.append(f"round {round}: {site} {does or 'is honest'} and is {entry['status']}: {entry['reason']}")
    return wrong
