"""Cost of secure aggregation: bytes per site and round, and time for masks at a site and at the server."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Figure, record
from torch import Tensor

from samfed_monai.federation import ClientAlgoSite, LocalTransport
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.networks import CLIENT_NETWORKS
from samfed_monai.privacy import SecureAggregation
from samfed_monai.privacy.secure_aggregation import STEPS, SecureServer, SecureSite
from samfed_monai.protocol import Kind, Message, MessageRefused, Server, Task

IMAGES = 40


class Site(ClientAlgoSite):
    """A site that replies with fixed weights, plain or masked, and measures its processor seconds."""

    def __init__(
        self, site: str, sites: list[str], weights: Mapping[str, Tensor], sums: Path, *, last: Task | None = None
    ) -> None:
        super().__init__(site, None)
        self.adder, self.weights, self.last = SecureSite(site, sites, SecureAggregation(), sums, ""), weights, last
        self.seconds, self.plain = 0.0, False

    def answer(self, task: Task, message: Message) -> Message:
        if task == self.last:
            raise MessageRefused([])
        started = time.process_time()
        if task in STEPS:
            reply = self.adder.answer(task, message)
        else:
            reply = replace(message, kind=Kind.WEIGHTS, n=IMAGES, tensors=dict(self.weights), extra={})
            reply = reply if self.plain else self.adder.hold(reply)
        self.seconds += time.process_time() - started
        return reply


def round_of(weights: Mapping[str, Tensor], sites: int, *, plain: bool = False, dropped: int = 0) -> dict[str, float]:
    """Bytes and processor seconds of one round, in which ``dropped`` sites fail before they send masked weights."""
    folder = Path(tempfile.mkdtemp())
    names = [f"site-{index:02d}" for index in range(sites)]
    workers = {
        name: Site(name, names, weights, folder / name, last=Task.MASKED if index < dropped else None)
        for index, name in enumerate(names)
    }
    for worker in workers.values():
        worker.plain = plain
    strategy = FedAvg().attach(Server(names, 1, weights=weights))
    transport = LocalTransport(workers)
    server = SecureServer(SecureAggregation(), strategy, transport, folder / "secure_sum.json")
    take: Callable[[str, Message], None] = lambda site, reply: (strategy if plain else server).take(0, site, reply)  # noqa: E731
    started = time.process_time()
    transport.send_and_receive(Task.TRAIN, strategy.configure(0), on_reply=take)
    (strategy if plain else server).finish(0)
    total = time.process_time() - started
    at_sites = sum(worker.seconds for worker in workers.values())
    traffic: dict[str, Any] = transport.take_traffic()
    last = traffic[names[-1]]
    return {"up": last.up, "down": last.down, "site": at_sites / sites, "server": total - at_sites}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="mobile_sam_fpn")
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 12])
    options = parser.parse_args()
    network = CLIENT_NETWORKS[options.network](in_channels=3, out_channels=1)
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    figures = []
    for sites in options.sites:
        plain, secure = round_of(weights, sites, plain=True), round_of(weights, sites)
        dropped = round_of(weights, sites, dropped=1)
        what = f"{options.network}, {sites} sites"
        figures += [
            Figure(
                f"{what}: bytes sent per site and round, against FedAvg", secure["up"] / plain["up"], details=secure
            ),
            Figure(f"{what}: bytes sent per site and round", secure["up"] / 1e6, unit="MB"),
            Figure(f"{what}: bytes received per site and round, against FedAvg", secure["down"] / plain["down"]),
            Figure(
                f"{what}: keys and shares received per site and round",
                (secure["down"] - plain["down"]) / 1e3,
                unit="kB",
            ),
            Figure(f"{what}: processor time at a site", secure["site"] - plain["site"], unit="s"),
            Figure(f"{what}: processor time at the server", secure["server"] - plain["server"], unit="s"),
            Figure(f"{what}, one lost after the keys: processor time at the server", dropped["server"], unit="s"),
        ]
    record(__file__, figures)


if __name__ == "__main__":
    main()
