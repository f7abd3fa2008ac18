"""One site of a federation: how it handles the server's tasks, and the components that it is built from."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai.fl.utils.constants import ExtraItems

from samfed_monai.config.variants import resolved_method
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import as_file_name
from samfed_monai.core.run_log import run_record
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import own_random_state
from samfed_monai.core.validators import one_of, require
from samfed_monai.data import DataList, load_records
from samfed_monai.data.classes import class_mismatch, is_multiclass
from samfed_monai.federation.client import SamFedAlgo
from samfed_monai.federation.exchange_object import call_extra, from_exchange_object, parts_in, to_exchange_object
from samfed_monai.federation.participants import Participants
from samfed_monai.federation.plan import Paths, Plan
from samfed_monai.federation.preparation import differences, image_problems, own_fingerprints, sam_fingerprint
from samfed_monai.federation.site_network import split_state
from samfed_monai.federation.site_teacher import Disagreement, SiteMasks, SiteTeacher
from samfed_monai.federation.teacher import StudentTeacher, TeacherStage
from samfed_monai.federation.workflow import WorkflowConfig
from samfed_monai.metrics.quality import estimate_of, groups_of, metrics_of
from samfed_monai.privacy.accounting import PrivacyLedger
from samfed_monai.privacy.allowed import allowed_of, require_public_images
from samfed_monai.privacy.network_check import require_plain_network
from samfed_monai.privacy.release import ReleaseFilter
from samfed_monai.privacy.rules import Privacy, PrivacyFloor, forbidden_problems, too_few_images
from samfed_monai.privacy.secure_aggregation import STEPS, SecureSite
from samfed_monai.protocol.compression import Compression, Sender
from samfed_monai.protocol.message import STATISTICS, Kind, Message, MessageRefused, message_refused
from samfed_monai.protocol.statistics import Statistic, StatisticRule, split_statistics, with_statistics
from samfed_monai.protocol.transport import Task

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.networks import Teacher

logger = logging.getLogger(__name__)


class ClientAlgoSite:
    """A site that is just a MONAI FL client (``ClientAlgo``).

    Args:
        site: its name.
        client: initialized.
    """

    def __init__(self, site: str, client: Any) -> None:
        self.site, self.client = site, client

    def answer(self, task: Task, message: Message) -> Message:
        """Runs ``task`` and returns the reply, unchecked: a :class:`Site` passes it through its release filter.

        Raises:
            MessageRefused: the message failed a check; the text may leave the site.
            Exception: whatever the client raises; it must be scrubbed before it leaves the site.
        """
        data, extra, client = to_exchange_object(message), call_extra(message), self.client
        match Task(task):
            case Task.CHECK:
                return numeric_reply(message, metrics=client.check(extra) if hasattr(client, "check") else {})
            case Task.PREPARE:
                if message.kind == Kind.WEIGHTS and hasattr(client, "load_network"):
                    client.load_network(message.tensors)
                return numeric_reply(message, n=client.count() if hasattr(client, "count") else 0)
            case Task.EVALUATE:
                return from_exchange_object(client.evaluate(data, extra), request=message)
            case _:
                client.train(data, extra)
                return from_exchange_object(client.get_weights(extra), request=message)

    def engine(self, task: Task) -> Any:
        """The Ignite engine that ``task`` runs, for a progress bar; ``None`` if there is none."""
        return getattr(self.client, {Task.TRAIN: "trainer", Task.EVALUATE: "evaluator"}.get(task, ""), None)

    def state_dict(self) -> dict[str, Tensor]:
        """State that the client needs to continue in another process; empty for a client without state."""
        return dict(self.client.state_dict()) if hasattr(self.client, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the state of :meth:`state_dict`."""
        if hasattr(self.client, "load_state_dict"):
            self.client.load_state_dict(state)

    def finalize(self) -> None:
        """Ends the client."""
        self.client.finalize()


def numeric_reply(request: Message, *, n: int = 0, metrics: Mapping[str, float] | None = None) -> Message:
    """Returns a reply without tensors."""
    return replace(request, kind=Kind.METRICS, n=n, tensors={}, extra={}, metrics=dict(metrics or {}))


@dataclass
class ProcessContext:
    """Objects shared by the sites of one process; a site in a process of its own creates its own.

    Args:
        participants: of the run.
        datalist: the whole list, whose images were checked.
        teacher: the loaded teacher, while it is needed.
    """

    participants: Participants
    datalist: DataList
    teacher: Teacher | StudentTeacher | None = None

    @classmethod
    def of(cls, plan: Plan, paths: Paths) -> ProcessContext:
        """Builds the context of a plan on this machine."""
        datalist = DataList.load(paths.datalist)
        return cls(Participants.of(plan, paths, datalist), datalist)


class Site:
    """A site, built from the server's plan and from the paths of this machine.

    ``CHECK`` compares fingerprints (plan and bundle, version, list, public set) and reads each image once. ``PREPARE``
    receives the adapter and fills the soft-mask store, or receives the initial weights of the site's own network; both
    are needed before ``TRAIN``. ``EVALUATE`` scores a model, this site's own network, or the teacher (``model`` is
    ``teacher``). An unseen site only evaluates.

    A site can be rebuilt after its process died: the soft-mask store on disk records the teacher of its masks, and
    :meth:`load_state_dict` restores the rest.

    Args:
        site: its name, one of the plan's.
        plan: from the server, with every site named (:meth:`Participants.resolve`).
        paths: this machine's.
        context: objects shared by the sites of one process.
        floor: the minimum privacy that this site requires of a plan; ``None`` accepts any.
        run: the run's unique random name; ``""`` takes that of ``run.json`` in its folder, if any.

    Raises:
        Refused: the bundle or the plan cannot be used, the plan has no such site, or less privacy than the floor.

    Example::

        site = Site("site-1", Plan.from_json(content), paths)
        reply = site.answer(Task.TRAIN, from_bytes(payload))
    """

    def __init__(
        self,
        site: str,
        plan: Plan,
        paths: Paths,
        *,
        context: ProcessContext | None = None,
        floor: PrivacyFloor | None = None,
        run: str = "",
    ) -> None:
        self.site, self.plan, self.paths, self.context = site, plan, paths, context
        all_sites = [*self.participants.sites, *self.participants.unseen]
        require(one_of("site", site, all_sites, hint="give the name of a site of the plan"))
        floor = floor or PrivacyFloor()
        self.privacy = floor.tighten(Privacy.from_json(plan.privacy))
        if self.privacy.secure_aggregation is not None:
            self.privacy.secure_aggregation.require_threshold(len(plan.sites))
        self.method = resolved_method(paths.bundle_root, plan.variant)
        compression = Compression.of(plan.compression)
        self._sender = None if compression is None or not self.trains else Sender(compression)
        run = run or str(run_record(paths.output_dir).get("run", ""))  # of a run whose sites share a machine
        self.run = run or paths.output_dir.name
        ledger = PrivacyLedger(paths.cache, site, floor.epsilon, run=self.run)
        self.release = ReleaseFilter(
            site,
            allowed=lambda: allowed_of(self.client),
            privacy=self.privacy,
            folder=paths.output_dir / "sites" / as_file_name(site),
            ledger=ledger,
            method=self.method,
            rounds=plan.rounds,
            least_seen=floor.least_images,
            sender=self._sender,
        )
        if run:  # counts earlier releases even if the run's folder was moved or its audit file removed
            self.release.releases |= ledger.of_run()
        self._algo: ClientAlgoSite | None = None
        self._secure: SecureSite | None = None
        self._has_network = False
        self._check_failed = False

    def answer(self, task: Task, message: Message) -> Message:
        """Runs ``task`` and returns a reply that may leave the site.

        Raises:
            MessageRefused: this site cannot do it; the text may leave the site.
            Exception: anything else; only :func:`scrub` of it may leave the site.
        """
        task = Task(task)
        try:
            self.release.require_answerable(task, message)
            reply = self._run_task(task, message)
        except Exception as error:
            self.release.write_failure(task, message, error)
            raise
        if task in STEPS:
            return self.release.write_secure_step(task, message, reply)
        reply = self.release(task, message, reply)
        return self._secure_site().hold(reply) if task == Task.TRAIN and self.privacy.secure_aggregation else reply

    def engine(self, task: Task) -> Any:
        """The Ignite engine that ``task`` runs, for a progress bar; ``None`` if there is none yet."""
        return self._algo.engine(task) if self._algo is not None else None

    def max_mask_pixels(self) -> int:
        """Maximum number of soft-mask pixels in a message to this site: that of its list's public set.

        A larger message is refused before it is decompressed (fault 79); 0 if the plan exchanges no soft masks.
        """
        algorithm = self.client.own.algorithm if self.client.own is not None else None
        return algorithm.max_mask_pixels() if algorithm is not None else 0

    def state_dict(self) -> dict[str, Tensor]:
        """State that this site needs to continue after the last round in another process; empty if it keeps none."""
        state = self._algo.state_dict() if self._algo is not None else {}
        return {**state, **self._sender.state_dict()} if self._sender is not None else state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the state of :meth:`state_dict`."""
        if state:
            state = self._sender.load_state_dict(state) if self._sender is not None else state
            self._client_site().load_state_dict(state)
            self._has_network = self._has_network or bool(split_state(state)[0])

    def finalize(self) -> None:
        """Ends the client."""
        if self._algo is not None:
            self._algo.finalize()

    def _secure_site(self) -> SecureSite:
        settings = self.privacy.secure_aggregation
        if settings is None or not self.trains:
            expected = "no such request, as the plan has none or this site does not train"
            raise message_refused("secure aggregation", "a request", expected)
        if self._secure is None:
            sums = self.paths.cache / "privacy" / f"{as_file_name(self.site)}.sums.jsonl"
            self._secure = SecureSite(self.site, self.plan.sites, settings, sums, self.plan.updates_hash)
        return self._secure

    def _run_task(self, task: Task, message: Message) -> Message:
        if task not in (Task.CHECK, *STEPS) and self._check_failed:
            hint = "fix the problem at this site and start the run again"
            raise message_refused("site", "a failed check", "a passed check", hint)
        match task:
            case Task.CHECK:
                return self._check(message)
            case Task.PREPARE:
                return self._prepare(message)
            case Task.TRAIN:
                self._require_own_weights(task)
                return self._train(message)
            case Task.EVALUATE if message.extra.get("model") == "teacher":
                if self.teacher is None:
                    raise message_refused("teacher", "no teacher in this plan", "a teacher")
                return numeric_reply(message, **self.teacher.scores(message.extra.get("split", "test")))
            case Task.EVALUATE:
                self._require_own_weights(task)
                return self._evaluate(message)
            case _:
                return self._secure_site().answer(task, message)

    def _evaluate(self, message: Message) -> Message:
        """Scores all images of a split: two means that differ by a single image would reveal that image's score."""
        reply = self._client_site().answer(Task.EVALUATE, message)
        if self.client.scored_partially and reply.n >= self.privacy.least_images:
            hint = "use the data loader of the bundle installed here"
            raise message_refused("scores", "only a part of the images", "all images of the split", hint)
        if message.extra.get("split") != "validation":
            return reply
        # calibrates the estimates on this site's validation images, in groups of `least_images`
        rows = [row for row in self.client.scores.get("validation", []) if "estimate" in row]
        summary = parts_in(reply.metrics, ())
        pairs = [estimate_of(row, summary) for row in rows], [row["dice"] for row in rows]
        quality = metrics_of(groups_of(*pairs, least=max(1, self.privacy.least_images)))
        return replace(reply, metrics={**reply.metrics, **quality})

    def _train(self, message: Message) -> Message:
        """Runs the local epochs; the bundle's ``statistics`` receives and measures the statistics sent with weights."""
        weights, received = split_statistics(message.tensors) if message.kind == Kind.WEIGHTS else ({}, {})
        requested = message.extra.get(STATISTICS)
        if not received and requested is None:  # no statistic is sent: the policy on the bundle's kind does not apply
            if (statistic := self.client.statistic) is not None:
                statistic.receive({})
            return self._client_site().answer(Task.TRAIN, message)
        statistic_source = self._statistic(requested)
        statistic_source.receive(received)
        reply = self._client_site().answer(Task.TRAIN, replace(message, tensors=weights))
        if requested is None:
            return reply
        rule = self.privacy.rule(statistic_source.kind) or StatisticRule()
        with own_random_state(derive_seed(self.plan.seed, self.site, "statistics")):
            measured = statistic_source.measured(rule.least_images)
        return replace(reply, tensors=with_statistics(reply.tensors, measured))

    def _statistic(self, requested: str | None) -> Statistic:
        statistic: Statistic | None = self.client.statistic
        if statistic is None or requested not in (None, statistic.kind.value):
            expected = "`statistics` in train.json that measures what the server requests"
            raise message_refused("statistics", "no such statistics", expected, "use those of the variant")
        require(forbidden_problems(statistic.kind, self.privacy, self.method), error=MessageRefused)
        return statistic

    def _require_own_weights(self, task: Task) -> None:
        """Refuses a task that needs the site's own network, or personal part, before the site received its weights."""
        needed = task == Task.TRAIN and self.participants.strategy.exchange.own_networks
        if not self._has_network and (needed or (self.client.own is not None and self.client.own.split.personal)):
            hint = "start the run again, so that the server sends the first weights"
            raise message_refused("network", "none", "this site's own", hint)

    def _check(self, message: Message) -> Message:
        reply, problems = numeric_reply(message), Problems()
        unfit: list[Problem] = []  # of a list or images with which no client can be built
        has_plan = "plan" in message.extra
        if has_plan:
            self._check_failed = False
            listed, strategy = self.checked_list(), self.participants.strategy
            sam = sam_fingerprint(self.config, self.config.value("network_name")) if "base_sam" in message.extra else {}
            fingerprints = own_fingerprints(self.plan, self.paths.bundle_root, listed, self.site, sam)
            problems.extend(differences(message.extra, fingerprints))
            unfit = self._other_classes() + self.participants.label_problems(listed, "data list")
            if self.context is None:
                paths = self.paths
                unfit += image_problems(listed, self.data_root, cache_dir=paths.cache, verify=paths.verify)
            problems.extend(unfit)
            if self.trains:
                problems.extend(too_few_images(self.training_images(), self.privacy, strategy))
                if strategy.statistic is not None:
                    problems.extend(forbidden_problems(strategy.statistic, self.privacy, self.method))
        builds_client = has_plan and self.trains and self.teacher is None  # such a client needs no soft masks
        with problems.collected():
            if not unfit and (builds_client or "public" in message.extra):
                reply = self._client_site().answer(Task.CHECK, message)
        if problems:
            self._check_failed = True
            raise MessageRefused(list(problems))
        return reply

    def _other_classes(self) -> list[Problem]:
        """Problems of class names that differ from the run's; this site's own names are logged here and not sent."""
        listed, classes = self.checked_list(), self.participants.config.optional("classes")
        problems = class_mismatch(listed.classes, classes, "data list -> classes")
        for problem in problems:
            logger.error("%s: %s", self.site, problem)
        without_names: dict[str, str] = {"found": "other classes (see this site's log)"}
        if not is_multiclass(classes):  # the hint names them, too
            without_names["hint"] = "prepare the list with a single --label"
        return [replace(problem, **without_names) for problem in problems]

    def _prepare(self, message: Message) -> Message:
        started = time.perf_counter()
        if message.kind == Kind.ADAPTER:
            images = self.teacher.take(message, self.context) if self.teacher is not None else 0
        else:
            if self.context is not None:
                self.context.teacher = None  # frees its memory: the rounds do not need it
            images = self._client_site().answer(Task.PREPARE, message).n
            if self.trains and self.participants.strategy.exchange.answer is Kind.WEIGHTS:
                self.release.require_statistics()
            self._has_network = self._has_network or message.kind == Kind.WEIGHTS
        return numeric_reply(message, n=images, metrics={"seconds": time.perf_counter() - started})

    @property
    def client(self) -> SamFedAlgo:
        """The initialized client, created on first use."""
        client: SamFedAlgo = self._client_site().client
        return client

    def _client_site(self) -> ClientAlgoSite:
        if self._algo is None:
            client = self.make_client()
            require_plain_network(client)
            if client.own is not None and client.own.algorithm is not None:
                public = partial(load_records, self.datalist, self.data_root, split="public")
                require_public_images(client.own.algorithm, public)
            self._algo = ClientAlgoSite(self.site, client)
            if client.own is not None:
                self.release.write_split(client.own.split)
        return self._algo

    @property
    def trains(self) -> bool:
        """False for an unseen hospital."""
        return self.site in self.participants.sites

    @cached_property
    def participants(self) -> Participants:
        """The sites of the run and their networks."""
        if self.context is not None:
            return self.context.participants
        return Participants.of(self.plan, self.paths, DataList("", []))  # the plan names every site

    @cached_property
    def datalist(self) -> DataList:
        """The public images and this site's own."""
        own_list = self.paths.sites.get(self.site, {}).get("datalist")
        if self.context is not None and own_list is None:
            return self.context.datalist.for_site(self.site)
        return DataList.load(own_list or self.paths.datalist).for_site(self.site)

    def checked_list(self) -> DataList:
        """Returns :attr:`datalist`; its errors are without details, so that their text may leave the site.

        Raises:
            MessageRefused: there is no list, or it does not have this site.
        """
        try:
            return self.datalist
        except Refused as error:
            logger.error("%s: %s", self.site, error)
            expected, hint = "this site's part", "see this site's log"
            raise message_refused("data list", "no usable list", expected, hint) from None

    def training_images(self) -> int:
        """Number of distinct own images that this site trains on: only labelled ones if it learns from labels."""
        items = self.datalist.sites[self.site].unlabelled
        labelled = self.participants.supervised
        return len({item.sha256 for item in items if item.label is not None or not labelled})

    @cached_property
    def config(self) -> WorkflowConfig:
        """The run's configuration with this site's own network, overrides and paths."""
        if not self.trains:
            return self.participants.at_server().with_overrides(self.paths.sites.get(self.site, {}))
        overrides = {**self.participants.overrides[self.site], "network_name": self.participants.networks[self.site]}
        return self.participants.config.with_overrides(overrides)

    @cached_property
    def teacher(self) -> SiteTeacher | None:
        """The teacher at this site; ``None`` if the plan has none."""
        adapt = self.participants.config.value("teacher_adapt")
        if adapt == "off":
            return None
        stage = TeacherStage.of(self.plan, self.paths)
        prepared_folder = self.paths.cache / "prepared" / self.run  # runs of one plan may differ in their teachers
        record_file = prepared_folder / f"{self.plan.hash[:16]}.{as_file_name(self.site)}.json"
        config = self.participants.config
        return SiteTeacher(stage, self.masks(), adapt=adapt, config=config, memory=record_file, trains=self.trains)

    def make_client(self) -> SamFedAlgo:
        """Returns an initialized client of this site, without parts for a site that trains alone (``standalone``)."""
        logging.getLogger(SamFedAlgo.__module__).setLevel(logging.WARNING)  # MONAI logs some ten lines a round
        seed, folder = self.plan.seed, self.paths.output_dir / "evaluation"
        config = self.config.without_pretraining()
        overrides = {**config.overrides, "site": self.site, "seed": seed, "standalone": {}}
        if self.trains and self.teacher is not None:
            overrides |= {"store_dir": str(self.masks().folder), "teacher_sha256": self.teacher.sha256}
        client = SamFedAlgo(
            config.bundle_root,
            vetted=True,
            keep_optimizer=self.plan.keep_optimizer,
            output_dir=folder,
            local_epochs=1,
            config_train_filename=list(config.files) if self.trains else None,
            config_evaluate_filename=[*config.files, "configs/evaluate.json"],
            train_kwargs=dict(overrides),
            eval_kwargs=dict(overrides),
        )
        client.initialize({ExtraItems.CLIENT_NAME: self.site, "seed": seed})
        client.on_evaluated = self._disagreement(folder)
        return client

    def masks(self) -> SiteMasks:
        """This site's soft-mask store."""
        limit = self.config.optional("limit")
        return SiteMasks(self.site, self.paths.cache, self.datalist, self.data_root, limit=limit)

    def _disagreement(self, folder: Path) -> Disagreement | None:
        """Returns the comparison of student and teacher at a site without masks; ``None`` at any other site."""
        teacher, masks, listed = self.teacher, self.masks(), self.datalist.sites[self.site]
        if teacher is None or not self.trains or any(item.label for item in listed.test):
            return None
        preprocessing, batch_size = self.config.values("validate#preprocessing", "batch_size")
        return Disagreement(
            masks.records("unlabelled"),
            lambda: masks.store(teacher.sha256),
            preprocessing,
            batch_size=batch_size,
            folder=folder,
            site=self.site,
            parts=any(item.volume is not None for item in listed.unlabelled),
        )

    @property
    def data_root(self) -> str:
        """Folder that the list's paths are relative to."""
        return str(self.paths.sites.get(self.site, {}).get("data_root", self.paths.data_root))
