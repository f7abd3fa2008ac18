"""One site of a federation, in this process or in one of its own: it answers every task with an envelope."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from samfed_monai.data import DataList
from samfed_monai.errors import Problem, Refused
from samfed_monai.federation.envelope import Envelope, Kind, MessageRefused
from samfed_monai.federation.own_network import split_state
from samfed_monai.federation.plan import Places, Plan
from samfed_monai.federation.privacy.settings import Privacy
from samfed_monai.federation.privacy.site import site_release, too_few_images
from samfed_monai.federation.site_worker import Release, SiteWorker, said
from samfed_monai.federation.stages.cast import Cast
from samfed_monai.federation.stages.clients import make_client
from samfed_monai.federation.stages.data_check import image_problems
from samfed_monai.federation.stages.papers import differences, own_papers
from samfed_monai.federation.stages.site_teacher import SiteTeacher
from samfed_monai.federation.stages.soft_masks import SiteMasks
from samfed_monai.federation.stages.teacher import TeacherStage
from samfed_monai.federation.stages.workflow_config import WorkflowConfig
from samfed_monai.federation.transport import Task

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.networks import Teacher

logger = logging.getLogger(__name__)


@dataclass
class Shared:
    """What the sites of one process have in common; a site in a process of its own makes its own.

    Args:
        cast: who takes part.
        datalist: the whole list, whose images were checked.
        teacher: the loaded teacher, while it is needed.
    """

    cast: Cast
    datalist: DataList
    teacher: Teacher | None = None


class SiteNode:
    """A site made from a plan and from where things lie here.

    ``CHECK`` compares papers (plan and bundle, version, list, public set) and reads every image of this site once.
    ``PREPARE`` takes the adapter and fills the soft-mask store, or takes the weights that a network of one's own starts
    from; both are needed before ``TRAIN``. ``EVALUATE`` scores a model, this site's own network, or the teacher
    (``model`` is ``teacher``). A site that takes no part evaluates only.

    A node that is made again, after its process died, goes on: the store is on disk and remembers whose masks it has,
    and :meth:`load_state_dict` brings back the rest.

    Args:
        site: its name, one of the plan's.
        plan: from the server, with every site named (:meth:`Cast.settled`).
        places: this machine's.
        release: what every answer passes last; ``None`` is the plan's (:func:`site_release`).
        shared: what the sites of one process have in common.

    Raises:
        Refused: the bundle or the plan cannot be used, or the plan has no such site.

    Example::

        node = SiteNode("site-1", Plan.from_json(content), places)
        reply = node.answer(Task.TRAIN, from_bytes(payload))
    """

    def __init__(
        self,
        site: str,
        plan: Plan,
        places: Places,
        *,
        release: Release | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.site, self.plan, self.places = site, plan, places
        self._shared = shared
        if site not in (*self.cast.sites, *self.cast.unseen):
            expected = f"one of {[*self.cast.sites, *self.cast.unseen]}"
            raise Refused([Problem("site", found=repr(site), expected=expected, mend="name a site of the plan")])
        self.release = release or site_release(site, lambda: self._client().client, plan.privacy, places.output_dir)
        self._worker: SiteWorker | None = None
        self._has_network = False
        self._refused = ""

    def answer(self, task: Task, message: Envelope) -> Envelope:
        """Does ``task`` and returns what may leave.

        Raises:
            MessageRefused: this site cannot do it; the text may travel.
            Exception: anything else; only :func:`scrub` of it may travel.
        """
        task = Task(task)
        reply = self._work(task, message)
        return self.release(task, message, reply)

    def engine(self, task: Task) -> Any:
        """The Ignite engine that ``task`` runs, for a progress bar; ``None`` where there is none yet."""
        return self._worker.engine(task) if self._worker is not None else None

    def state_dict(self) -> dict[str, Tensor]:
        """What this site needs to go on after the last round in another process; empty where it keeps nothing."""
        return self._worker.state_dict() if self._worker is not None else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`state_dict` returned."""
        if state:
            self._client().load_state_dict(state)
            self._has_network = self._has_network or bool(split_state(state)[0])

    def finalize(self) -> None:
        """Ends the client."""
        if self._worker is not None:
            self._worker.finalize()

    @cached_property
    def cast(self) -> Cast:
        """Who takes part, and with which network."""
        if self._shared is not None:
            return self._shared.cast
        return Cast.of(self.plan, self.places, DataList("", []))  # the plan names everybody

    @cached_property
    def datalist(self) -> DataList:
        """The public images and this site's own."""
        own = self.places.sites.get(self.site, {}).get("datalist")
        if self._shared is not None and own is None:
            return self._shared.datalist.for_site(self.site)
        return DataList.load(own or self.places.datalist).for_site(self.site)

    @cached_property
    def teacher(self) -> SiteTeacher | None:
        """The teacher at this site; ``None`` where the plan has none."""
        adapt = self.cast.config.value("teacher_adapt")
        if adapt == "off":
            return None
        cache, alone = self.places.cache, self._shared is None
        stage = TeacherStage(self.places.bundle_root, {**self.plan.teacher, **self.places.teacher}, cache)
        memory = cache / "prepared" / f"{self.plan.hash[:16]}.{self.site}.json" if alone else None
        return SiteTeacher(stage, self._masks(), adapt=adapt, memory=memory)

    def _work(self, task: Task, message: Envelope) -> Envelope:
        if task == Task.CHECK:
            return self._check(message)
        if self._refused:
            mend = "mend it at this site and start the run again"
            raise MessageRefused([Problem("site", found=self._refused, expected="a check that passed", mend=mend)])
        if task == Task.PREPARE:
            return self._prepare(message)
        if task == Task.EVALUATE and message.extra.get("model") == "teacher":
            return self._teacher_scores(message)
        if task == Task.TRAIN and self.cast.strategy.personal and not self._has_network:
            mend = "start the run again: the server sends the first weights"
            raise MessageRefused([Problem("network", found="none", expected="this site's own", mend=mend)])
        return self._client().answer(task, message)

    def _check(self, message: Envelope) -> Envelope:
        reply, problems = said(message), []
        if "plan" in message.extra:
            self._refused = ""
            own = own_papers(self.plan, self.places.bundle_root, self._listed(), self.site)
            problems += differences(message.extra, own)
            if self.site in self.cast.sites:
                images = len(self.datalist.sites[self.site].unlabelled)
                problems += too_few_images(images, Privacy.from_json(self.plan.privacy), self.cast.strategy)
            if self._shared is None:
                problems += image_problems(self.datalist, self._data_root, cache_dir=self.places.cache)
        try:
            if "public" in message.extra:
                reply = self._client().answer(Task.CHECK, message)
        except MessageRefused as error:
            problems += error.problems
        if problems:
            self._refused = "a check that failed"
            raise MessageRefused(problems)
        return reply

    def _listed(self) -> DataList:
        try:
            return self.datalist
        except Refused as refused:
            logger.error("%s: %s", self.site, refused)
            found, mend = "none that can be used", "this site's log says why"
            raise MessageRefused(
                [Problem("data list", found=found, expected="one with this site's part", mend=mend)]
            ) from None

    def _prepare(self, message: Envelope) -> Envelope:
        started, shown = time.perf_counter(), 0
        if message.kind == Kind.ADAPTER:
            if self.teacher is not None:
                shown = self.teacher.take(message, self._shared.teacher if self._shared else None)
        else:
            self._client().answer(Task.PREPARE, message)
            self._has_network = self._has_network or message.kind == Kind.WEIGHTS
        return said(message, n=shown, metrics={"seconds": time.perf_counter() - started})

    def _teacher_scores(self, message: Envelope) -> Envelope:
        if self.teacher is None:
            raise MessageRefused([Problem("teacher", found="none in this plan", expected="one")])
        return said(message, **self.teacher.scores(message.extra.get("split", "validation"), self.cast.config))

    def _client(self) -> SiteWorker:
        if self._worker is None:
            trains = self.site in self.cast.sites
            client = make_client(
                self._config(trains),
                self.site,
                seed=self.plan.seed,
                output_dir=self.places.output_dir / "evaluation",
                trains=trains,
                keep_optimizer=self.plan.keep_optimizer,
            )
            self._worker = SiteWorker(self.site, client)
        return self._worker

    def _config(self, trains: bool) -> WorkflowConfig:
        if not trains:
            return self.cast.at_server().with_overrides(self.places.sites.get(self.site, {}))
        stored: dict[str, Any] = {}
        if self.teacher is not None:
            stored = {"store_dir": str(self._masks().store_dir(self.site)), "teacher_sha256": self.teacher.sha256}
        own = {**self.cast.overrides[self.site], "network_name": self.cast.networks[self.site]}
        return self.cast.config.with_overrides({**stored, **own})

    def _masks(self) -> SiteMasks:
        return SiteMasks(self.places.cache, self.datalist, self._data_root)

    @property
    def _data_root(self) -> str:
        return str(self.places.sites.get(self.site, {}).get("data_root", self.places.data_root))
