"""A transport that serialises every message; sites know nothing but their plan, their list and their images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from samfed_monai.config import find_bundle
from samfed_monai.core.io import safe_load, save_tensors
from samfed_monai.data import DataList
from samfed_monai.data.records import write_site_lists
from samfed_monai.federation import Places, Plan, Site
from samfed_monai.protocol import Failure, Message, Task, Traffic, from_bytes, scrub, to_bytes
from samfed_monai.protocol.message import wire_size
from samfed_monai.protocol.sent_once import SentWeights
from tests.forking import forking
from tests.speedups import small_networks

Answer = Callable[[Task, bytes], bytes]


class WireTransport:
    """Bytes out, bytes in; sites keep their state at home, by round.

    Every message is sent whole, and counted as in transports that send weights once.

    Args:
        sites: site to what answers its bytes: bytes, or an exception.
        homes: called with a site and ``save`` or ``load`` and a round's folder name; ``None`` where nothing is kept.
    """

    def __init__(self, sites: Mapping[str, Answer], homes: Callable[[str, str, str], None] | None = None) -> None:
        self.answers, self.homes = dict(sorted(sites.items())), homes
        self.asked: list[tuple[str, str]] = []
        self._traffic: dict[str, Traffic] = {}
        self._sent = SentWeights()

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.answers)

    def send_and_receive(self, task: Task, messages: Mapping[str, Message], *, on_reply: Any = None, **_: Any) -> dict:
        replies: dict[str, Message | Failure] = {}
        for site, message in sorted(messages.items()):
            self.asked.append((Task(task).value, site))
            payload, down = to_bytes(message), wire_size(self._sent.shortened(site, message))
            try:
                answer = self.answers[site](task, payload)
                traffic = self._traffic.setdefault(site, Traffic())
                traffic.down, traffic.up = traffic.down + down, traffic.up + len(answer)
                replies[site] = from_bytes(answer)
                if on_reply is not None:
                    on_reply(site, replies[site])
            except Exception as error:
                replies[site] = Failure(site, scrub(error))
        return replies

    def take_traffic(self) -> dict[str, Traffic]:
        taken, self._traffic = self._traffic, {}
        return taken

    def save_state(self, folder: Path) -> dict[str, str]:
        for site in self.answers if self.homes else ():
            self.homes(site, "save", folder.parent.name.strip(".").partition(".")[0])
        return {}

    def load_state(self, folder: Path) -> None:
        for site in self.answers if self.homes else ():
            self.homes(site, "load", folder.parent.name)


def apart(federation: Path, folder: Path) -> dict[str, Path]:
    """Each site's own list, and the server's."""
    return write_site_lists(DataList.load(federation / "list.json"), folder)


def places(federation: Path, datalist: Path, home: Path) -> Places:
    return Places(find_bundle("samfed_skin"), datalist, federation, home)


class Homes:
    """Nodes made from their plan alone, each with a folder of its own."""

    def __init__(self, federation: Path, folder: Path) -> None:
        self.federation, self.folder, self.lists = federation, folder, apart(federation, folder / "lists")
        self.nodes: dict[str, Site] = {}
        self.transport: WireTransport | None = None

    def node(self, site: str, plan: Plan) -> Site:
        return Site(site, plan, places(self.federation, self.lists[site], self.folder / site))

    def __call__(self, plan: Plan) -> WireTransport:
        plan = Plan.from_json(plan.to_json())
        self.nodes = {site: self.node(site, plan) for site in (*plan.sites, *plan.unseen)}

        def answering(site: str) -> Answer:
            return lambda task, payload: to_bytes(self.nodes[site].answer(task, from_bytes(payload)))

        self.transport = WireTransport({site: answering(site) for site in self.nodes}, self.keep)
        return self.transport

    def keep(self, site: str, what: str, round: str) -> None:
        path = self.folder / site / "states" / f"{round}.safetensors"
        if what == "save":
            save_tensors(path, {**self.nodes[site].state_dict()})
        elif path.is_file():
            self.nodes[site].load_state_dict(safe_load(path))


class Children(Homes):
    """Each node in a process of its own, which a kill ends for good; another one goes on from the state on disk.

    Args:
        federation, folder: as :class:`Homes`.
        killed_after: site to the round whose state is the last thing that its first process writes.
    """

    def __init__(self, federation: Path, folder: Path, *, killed_after: Mapping[str, str]) -> None:
        super().__init__(federation, folder)
        self.killed_after, self.started, self.plan = killed_after, dict.fromkeys(self.lists, 0), None
        del self.started["server"]
        self._children: dict[str, tuple[Any, Any]] = {}

    def __call__(self, plan: Plan) -> WireTransport:
        self.plan = plan
        sites = {site: lambda task, payload, site=site: self._tell(site, task.value, payload) for site in self.started}
        return WireTransport(sites, self.keep)

    def keep(self, site: str, what: str, round: str) -> None:
        self._tell(site, what, round)
        if what == "save" and self.killed_after.get(site) == round:
            process, _ = self._children.pop(site)
            process.kill()
            process.join()
            self._tell(site, "load", round)

    def end(self) -> None:
        for process, pipe in self._children.values():
            pipe.close()
            process.join()

    def _tell(self, site: str, what: str, content: Any) -> Any:
        if site not in self._children:
            context = forking()
            ours, theirs = context.Pipe()
            given = (theirs, site, self.plan.to_json(), self.federation, self.folder, self.lists)
            process = context.Process(target=_child, args=given)
            process.start()
            theirs.close()
            self._children[site] = (process, ours)
            self.started[site] += 1
        pipe = self._children[site][1]
        pipe.send((what, content))
        kind, answer = pipe.recv()
        if kind == "failed":
            raise RuntimeError(answer)
        return answer


def _child(pipe: Any, site: str, plan: Any, federation: Path, folder: Path, lists: dict[str, Path]) -> None:
    import torch

    torch.set_num_threads(1)
    small_networks(True)  # as in the process of the tests
    homes = Homes.__new__(Homes)
    homes.federation, homes.folder, homes.lists = federation, folder, lists
    node = homes.node(site, Plan.from_json(plan))
    homes.nodes = {site: node}
    while True:
        try:
            what, content = pipe.recv()
        except EOFError:
            return
        try:
            if what in ("save", "load"):
                homes.keep(site, what, content)
                pipe.send(("done", None))
            else:
                pipe.send(("done", to_bytes(node.answer(Task(what), from_bytes(content)))))
        except Exception as error:
            pipe.send(("failed", repr(error)))
