"""One site of a federation, in this process or in one of its own: it answers every task with an envelope."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problem
from samfed_monai.federation.envelope import Envelope, Kind, MessageRefused
from samfed_monai.federation.own_network import split_state
from samfed_monai.federation.plan import Places, Plan
from samfed_monai.federation.privacy.public_images import require_public_images
from samfed_monai.federation.privacy.release import Release as Filter
from samfed_monai.federation.privacy.settings import Privacy, PrivacyFloor
from samfed_monai.federation.privacy.site import site_release, too_few_images
from samfed_monai.federation.site_parts import Shared, SiteParts
from samfed_monai.federation.site_worker import Release, SiteWorker, said
from samfed_monai.federation.stages.data_check import image_problems, no_labels
from samfed_monai.federation.stages.papers import differences, own_papers
from samfed_monai.federation.transport import Task

if TYPE_CHECKING:
    from torch import Tensor


logger = logging.getLogger(__name__)


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
        floor: what this site asks of the run's privacy, whatever the plan says; ``None`` leaves it to the plan.

    Raises:
        Refused: the bundle or the plan cannot be used, the plan has no such site, or promises less than the floor.

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
        floor: PrivacyFloor | None = None,
    ) -> None:
        self.site, self.plan = site, plan
        self.parts = SiteParts(site, plan, places, shared)
        self.privacy = (floor or PrivacyFloor()).under(Privacy.from_json(plan.privacy))
        self.release = release or site_release(site, lambda: self._client().client, self.privacy, places.output_dir)
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
        try:
            reply = self._work(task, message)
        except Exception as error:
            if isinstance(self.release, Filter):
                self.release.failed(task, message, error)
            raise
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
        if not self._has_network and self._keeps_some(task):
            mend = "start the run again: the server sends the first weights"
            raise MessageRefused([Problem("network", found="none", expected="this site's own", mend=mend)])
        return self._client().answer(task, message)

    def _keeps_some(self, task: Task) -> bool:
        """Whether ``task`` needs a network, or a part of one, that this site keeps."""
        if task == Task.TRAIN and self.parts.cast.strategy.personal:
            return True
        return task in (Task.TRAIN, Task.EVALUATE) and bool(self._client().client.parts)

    def _check(self, message: Envelope) -> Envelope:
        reply, problems = said(message), []
        if "plan" in message.extra:
            self._refused = ""
            sam = self.parts.sam_paper() if "base_sam" in message.extra else {}
            own = own_papers(self.plan, self.parts.places.bundle_root, self.parts.listed(), self.site, sam)
            problems += differences(message.extra, own)
            if self.parts.trains:
                images = self.parts.training_images()
                problems += no_labels(images) if self.parts.cast.supervised else []
                problems += too_few_images(images, self.privacy, self.parts.cast.strategy)
            if self.parts.shared is None:
                problems += image_problems(self.parts.datalist, self.parts.data_root, cache_dir=self.parts.places.cache)
        try:
            early = "plan" in message.extra and self.parts.trains and self.parts.teacher is None  # needs no soft masks
            if early or "public" in message.extra:
                reply = self._client().answer(Task.CHECK, message)
        except MessageRefused as error:
            problems += error.problems
        if problems:
            self._refused = "a check that failed"
            raise MessageRefused(problems)
        return reply

    def _prepare(self, message: Envelope) -> Envelope:
        started, shown = time.perf_counter(), 0
        if message.kind == Kind.ADAPTER:
            if self.parts.teacher is not None:
                shown = self.parts.teacher.take(message, self.parts.shared.teacher if self.parts.shared else None)
        else:
            self._client().answer(Task.PREPARE, message)
            self._has_network = self._has_network or message.kind == Kind.WEIGHTS
        return said(message, n=shown, metrics={"seconds": time.perf_counter() - started})

    def _teacher_scores(self, message: Envelope) -> Envelope:
        if self.parts.teacher is None:
            raise MessageRefused([Problem("teacher", found="none in this plan", expected="one")])
        return said(message, **self.parts.teacher.scores(message.extra.get("split", "test"), self.parts.cast.config))

    def _client(self) -> SiteWorker:
        if self._worker is None:
            client = self.parts.client()
            if client.own is not None:
                require_public_images(client.own.sharing, self.parts.public_records)
            self._worker = SiteWorker(self.site, client)
            if client.parts is not None and isinstance(self.release, Filter):
                self.release.declare(client.parts.split)
        return self._worker
