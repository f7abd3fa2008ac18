"""Sites that know nothing but their plan, their list and their images, behind the transport that carries bytes."""

from __future__ import annotations

from pathlib import Path

from samfed_monai.config import find_bundle
from samfed_monai.data import DataList
from samfed_monai.data.records import write_site_lists
from samfed_monai.federation import Paths, Plan, Site, WireTransport
from samfed_monai.federation.site_worker import SiteWorker
from samfed_monai.federation.wire_transport import Request
from samfed_monai.protocol import Task, scrub
from tests.federation.toys import QUIET


def paths(federation: Path, datalist: Path, home: Path) -> Paths:
    return Paths(find_bundle("samfed_skin"), datalist, federation, home)


class Homes:
    """Nodes made from their plan alone, each with a list and a folder of its own; and what carries bytes to them."""

    def __init__(self, federation: Path, folder: Path, listed: str = "list.json") -> None:
        self.federation, self.folder = federation, folder
        self.lists = write_site_lists(DataList.load(federation / listed), folder / "lists")
        self.nodes: dict[str, Site] = {}
        self.requests: list[tuple[str, str]] = []
        self.away: set[str] = set()

    def node(self, site: str, plan: Plan) -> Site:
        return Site(site, plan, paths(self.federation, self.lists[site], self.folder / site))

    def __call__(self, plan: Plan) -> WireTransport:
        plan = Plan.from_json(plan.to_json())
        self.nodes = {site: self.node(site, plan) for site in (*plan.sites, *plan.unseen)}
        self.worker = SiteWorker(lambda site: self.nodes[site], lambda site: self.folder / site / "states")
        return WireTransport(self, tuple(self.nodes), progress=QUIET)

    def send(self, request: Request) -> None:
        self.requests.append((request.task, request.site))
        try:
            if request.site in self.away:
                raise ConnectionError
            keep = request.metadata["keep"]
            answer: bytes | str = self.worker.answer(request.site, Task(request.task), request.payload, keep)
        except Exception as error:
            answer = scrub(error)
        request.answered(request.site, answer)

    def cancel(self, ticket: None) -> bool:
        return True

    def check_stop(self) -> None:
        return None
