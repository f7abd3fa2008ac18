"""One site of a federation: its components, and how it answers each task of the server with a message."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai.fl.utils.constants import ExtraItems

from samfed_monai.config.variants import declared
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import as_file_name
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import own_random_state
from samfed_monai.data import DataList, SoftMaskStore, load_records
from samfed_monai.data.classes import other_classes, several
from samfed_monai.federation.client import SamFedAlgo
from samfed_monai.federation.disagreement import Disagreement
from samfed_monai.federation.exchange_object import call_extra, from_exchange_object, to_exchange_object
from samfed_monai.federation.fingerprint import differences, own_fingerprints, sam_fingerprint
from samfed_monai.federation.own_network import split_state
from samfed_monai.federation.participants import Participants
from samfed_monai.federation.plan import Places, Plan
from samfed_monai.federation.preparation import image_problems, label_problems
from samfed_monai.federation.renewal import Renewal, SiteRenewal
from samfed_monai.federation.site_teacher import OwnTeacher, SiteMasks, SiteTeacher
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.federation.workflow import WorkflowConfig
from samfed_monai.privacy.allowed import forbidden_problems, require_public_images
from samfed_monai.privacy.ledger import PrivacyLedger
from samfed_monai.privacy.network_check import require_plain_network
from samfed_monai.privacy.possible import too_few_images
from samfed_monai.privacy.release import ReleaseFilter, site_release
from samfed_monai.privacy.secure_aggregation import STEPS, SecureSite, SumsOfUpdates
from samfed_monai.privacy.settings import WITHHELD, Privacy, PrivacyFloor
from samfed_monai.protocol.message import STATISTICS, Kind, Message, MessageRefused
from samfed_monai.protocol.statistics import Statistic, StatisticRule, split_statistics, with_statistics
from samfed_monai.protocol.transport import Task

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.networks import Teacher

logger = logging.getLogger(__name__)


Filter = Callable[[Task, Message, Message], Message]
"""The last check of an answer before it leaves the site: ``release(task, request, reply)`` returns what may leave, or
raises :class:`MessageRefused`."""


class ClientAlgoExecutor:
    """Runs the task of a message on a MONAI FL client (``ClientAlgo``).

    Args:
        site: its name.
        client: initialized.
        release: the last check of every answer; ``None`` sends it unchecked.
    """

    def __init__(self, site: str, client: Any, release: Filter | None = None) -> None:
        self.site, self.client, self.release = site, client, release

    def answer(self, task: Task, message: Message) -> Message:
        """Does ``task`` and returns the answer.

        Raises:
            MessageRefused: the message or the answer failed a check; the text may leave the site.
            Exception: whatever the client raises; it must be scrubbed before it leaves the site.
        """
        reply = self._work(Task(task), message)
        return reply if self.release is None else self.release(Task(task), message, reply)

    def engine(self, task: Task) -> Any:
        """The Ignite engine that ``task`` runs, for a progress bar; ``None`` where there is none."""
        return getattr(self.client, {Task.TRAIN: "trainer", Task.EVALUATE: "evaluator"}.get(task, ""), None)

    def state_dict(self) -> dict[str, Tensor]:
        """What the client needs to go on in another process; empty for a client that keeps nothing."""
        return dict(self.client.state_dict()) if hasattr(self.client, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`state_dict` returned."""
        if hasattr(self.client, "load_state_dict"):
            self.client.load_state_dict(state)

    def finalize(self) -> None:
        """Ends the client."""
        if hasattr(self.client, "finalize"):
            self.client.finalize()

    def _work(self, task: Task, message: Message) -> Message:
        data, extra = to_exchange_object(message), call_extra(message)
        if task == Task.CHECK:
            answer = self.client.check(extra) if hasattr(self.client, "check") else {}
            return numeric_reply(message, metrics=answer)
        if task == Task.PREPARE:
            if message.kind == Kind.WEIGHTS and hasattr(self.client, "load_network"):
                self.client.load_network(message.tensors)
            return numeric_reply(message, n=self.client.count() if hasattr(self.client, "count") else 0)
        if task == Task.EVALUATE:
            return from_exchange_object(self.client.evaluate(data, extra), request=message)
        self.client.train(data, extra)
        return from_exchange_object(self.client.get_weights(extra), request=message)


_KINDS = {
    Task.CHECK: frozenset({Kind.METRICS}),
    Task.PREPARE: frozenset({Kind.ADAPTER, Kind.WEIGHTS, Kind.METRICS}),
    Task.TRAIN: frozenset({Kind.WEIGHTS, Kind.SOFT_MASKS, Kind.PROTOTYPES, Kind.METRICS}),
    Task.EVALUATE: frozenset({Kind.WEIGHTS, Kind.METRICS}),
    **dict.fromkeys(STEPS, frozenset({Kind.SECURE})),
}
"""What a request of each task may carry."""


def require_request(task: Task, request: Message, site: str, rounds: int) -> None:
    """Refuses a request by its header, before anything is computed for it.

    Args:
        task: what is asked for.
        request: from the server.
        site: the site's own name.
        rounds: of the plan.

    Raises:
        MessageRefused: another version, kind, site or round; numbers, words or a count that a request does not have.
    """
    problems = Problems()
    problems.extend(replace(request, tensors={}).problems(up=False, site=site))
    if request.kind not in (kinds := _KINDS[task]):
        expected = f"one of {', '.join(sorted(kind.value for kind in kinds))} to {task.value}"
        problems.add("message -> kind", found=Kind(request.kind).value, expected=expected)
    if not (request.rounds == rounds and type(request.round) is int and 0 <= request.round < rounds):
        problems.add("message -> round", found="one that the plan does not have", expected=f"{rounds} rounds")
    if request.metrics:
        problems.add("message -> metrics", found="numbers", expected="none in a request")
    if request.n:
        problems.add("message -> n", found="another number", expected="0 in a request")
    if WITHHELD in request.extra:
        problems.add("message -> extra", found=WITHHELD, expected="words of a server")
    if problems:
        raise MessageRefused(list(problems))


def numeric_reply(request: Message, *, n: int = 0, metrics: Mapping[str, float] | None = None) -> Message:
    """An answer without tensors."""
    return replace(request, kind=Kind.METRICS, n=n, tensors={}, extra={}, metrics=dict(metrics or {}))


def make_client(
    config: WorkflowConfig,
    site: str,
    *,
    seed: int,
    output_dir: str | Path,
    trains: bool = True,
    keep_optimizer: bool = True,
) -> SamFedAlgo:
    """An initialized client.

    The handlers of ``train.json -> standalone`` (validation, saving, tables of a site that trains alone) are left out:
    in a federation the controller does what they do.

    Args:
        config: ``train.json`` with the variant and the overrides of the run and of this site.
        site: its name.
        seed: the run's seed.
        output_dir: per-image scores and masks of the best and the last model are written below it, at the site.
        trains: False for a hospital that takes no part: it evaluates what it is sent, and cannot train.
        keep_optimizer: keep the optimizer's moments from round to round.
    """
    logging.getLogger(SamFedAlgo.__module__).setLevel(logging.WARNING)  # MONAI logs some ten lines a round
    config = config.filled_by_the_server()
    overrides = {**config.overrides, "site": site, "seed": seed, "standalone": {}}
    client = SamFedAlgo(
        config.bundle_root,
        vetted=True,
        keep_optimizer=keep_optimizer,
        output_dir=output_dir,
        local_epochs=1,
        config_train_filename=list(config.files) if trains else None,
        config_evaluate_filename=[*config.files, "configs/evaluate.json"],
        train_kwargs=dict(overrides),
        eval_kwargs=dict(overrides),
    )
    client.initialize({ExtraItems.CLIENT_NAME: site, "seed": seed})
    return client


@dataclass
class ProcessContext:
    """What the sites of one process have in common; a site in a process of its own makes its own.

    Args:
        participants: who takes part.
        datalist: the whole list, whose images were checked.
        teacher: the loaded teacher, while it is needed.
    """

    participants: Participants
    datalist: DataList
    teacher: Teacher | None = None


class SiteComponents:
    """Builds each component of a site when it is first used.

    Args:
        site, plan, places, context: as :class:`FederatedSite` takes them.

    Raises:
        Refused: the plan has no such site, or the bundle cannot be used.
    """

    def __init__(self, site: str, plan: Plan, places: Places, context: ProcessContext | None) -> None:
        self.site, self.plan, self.places, self.context = site, plan, places, context
        if site not in (*self.participants.sites, *self.participants.unseen):
            expected = f"one of {[*self.participants.sites, *self.participants.unseen]}"
            raise Refused([Problem("site", found=repr(site), expected=expected, hint="name a site of the plan")])

    @property
    def trains(self) -> bool:
        """False for a hospital that takes no part."""
        return self.site in self.participants.sites

    @cached_property
    def participants(self) -> Participants:
        """Who takes part, and with which network."""
        if self.context is not None:
            return self.context.participants
        return Participants.of(self.plan, self.places, DataList("", []))  # the plan names everybody

    @cached_property
    def datalist(self) -> DataList:
        """The public images and this site's own."""
        own = self.places.sites.get(self.site, {}).get("datalist")
        if self.context is not None and own is None:
            return self.context.datalist.for_site(self.site)
        return DataList.load(own or self.places.datalist).for_site(self.site)

    def listed(self) -> DataList:
        """:attr:`datalist`, refused in words that may leave the site.

        Raises:
            MessageRefused: there is no list, or it does not have this site.
        """
        try:
            return self.datalist
        except Refused as refused:
            logger.error("%s: %s", self.site, refused)
            found, hint = "none that can be used", "this site's log says why"
            raise MessageRefused(
                [Problem("data list", found=found, expected="one with this site's part", hint=hint)]
            ) from None

    def public_records(self) -> list[dict[str, Any]]:
        """The public images of this site's own list, as files here."""
        return load_records(self.datalist, self.data_root, split="public")

    def training_images(self) -> int:
        """How many different images of its own this site trains on: all, or those with a label where it learns from
        labels."""
        items = self.datalist.sites[self.site].unlabelled
        labelled = self.participants.supervised
        return len({item.sha256 for item in items if item.label is not None or not labelled})

    def sam_fingerprint(self) -> dict[str, str]:
        """Hash of the SAM under this site's network, as it lies here."""
        participants = self.participants
        config = participants.config.with_overrides(participants.overrides.get(self.site, {}))
        return sam_fingerprint(config, participants.networks.get(self.site, participants.server_network))

    @cached_property
    def teacher(self) -> SiteTeacher | None:
        """The teacher at this site; ``None`` where the plan has none."""
        adapt = self.participants.config.value("teacher_adapt")
        if adapt == "off":
            return None
        cache, alone = self.places.cache, self.context is None
        stage = TeacherStage.of(self.plan, self.places)
        memory = cache / "prepared" / f"{self.plan.hash[:16]}.{as_file_name(self.site)}.json" if alone else None
        recipe = stage.self_training if self.trains and adapt != "none" else None
        own = None if recipe is None else OwnTeacher(self.site, recipe, stage, self.masks())
        return SiteTeacher(stage, self.masks(), adapt=adapt, memory=memory, own=own, trains=self.trains)

    @cached_property
    def renewal(self) -> SiteRenewal | None:
        """What renews this site's soft masks; ``None`` where the plan does not, or has no teacher."""
        recipe = Renewal.from_json(self.plan.renewal, self.plan.rounds)
        if recipe is None or self.teacher is None or not self.trains:
            return None
        run = self.places.output_dir
        return SiteRenewal(recipe, run=run, site=self.site, teacher=self.teacher, masks=self.masks())

    def client(self) -> SamFedAlgo:
        """An initialized client of this site."""
        config, folder = self._config(), self.places.output_dir / "evaluation"
        client = make_client(
            config,
            self.site,
            seed=self.plan.seed,
            output_dir=folder,
            trains=self.trains,
            keep_optimizer=self.plan.keep_optimizer,
        )
        client.on_evaluated = self._disagreement(config, folder)
        return client

    def masks(self) -> SiteMasks:
        """This site's soft-mask store."""
        participants = self.participants
        config = (
            participants.config.with_overrides(participants.overrides.get(self.site, {}))
            if self.trains
            else participants.at_server()
        )
        return SiteMasks(self.places.cache, self.datalist, self.data_root, limit=config.optional("limit"))

    def _disagreement(self, config: WorkflowConfig, folder: Path) -> Disagreement | None:
        """Compares student and teacher at a site without masks; ``None`` where there are scores, or no training."""
        teacher, masks = self.teacher, self.masks()
        if teacher is None or not self.trains or any(item.label for item in self.datalist.sites[self.site].test):
            return None
        preprocessing, batch_size = config.values("validate#preprocessing", "batch_size")
        return Disagreement(
            masks.records(self.site, "unlabelled"),
            lambda: SoftMaskStore(masks.store_dir(self.site), teacher_sha256=teacher.sha256),
            preprocessing,
            batch_size=batch_size,
            folder=folder,
            site=self.site,
        )

    @property
    def data_root(self) -> str:
        """Folder that the list's paths are relative to."""
        return str(self.places.sites.get(self.site, {}).get("data_root", self.places.data_root))

    def _config(self) -> WorkflowConfig:
        if not self.trains:
            return self.participants.at_server().with_overrides(self.places.sites.get(self.site, {}))
        stored: dict[str, Any] = {}
        if self.teacher is not None:
            stored = {"store_dir": str(self.masks().store_dir(self.site)), "teacher_sha256": self.teacher.sha256}
        own = {**self.participants.overrides[self.site], "network_name": self.participants.networks[self.site]}
        return self.participants.config.with_overrides({**stored, **own})


class FederatedSite:
    """A site, built from the server's plan and from the paths of this machine.

    ``CHECK`` compares fingerprints (plan and bundle, version, list, public set) and reads each image once.
    ``PREPARE`` takes the adapter and fills the soft-mask store, or takes the weights that a network of one's own starts
    from; both are needed before ``TRAIN``. ``EVALUATE`` scores a model, this site's own network, or the teacher
    (``model`` is ``teacher``). A site that takes no part evaluates only.

    After its process died, a site can be built again: the soft-mask store on disk records which teacher its masks are
    of, and :meth:`load_state_dict` restores the rest.

    Args:
        site: its name, one of the plan's.
        plan: from the server, with every site named (:meth:`Participants.settled`).
        places: this machine's.
        release: the last check of every answer; ``None`` is the plan's (:func:`site_release`).
        context: what the sites of one process have in common.
        floor: the least privacy that this site requires of a plan; ``None`` accepts any.

    Raises:
        Refused: the bundle or the plan cannot be used, the plan has no such site, or promises less than the floor.

    Example::

        site = FederatedSite("site-1", Plan.from_json(content), places)
        reply = site.answer(Task.TRAIN, from_bytes(payload))
    """

    def __init__(
        self,
        site: str,
        plan: Plan,
        places: Places,
        *,
        release: Filter | None = None,
        context: ProcessContext | None = None,
        floor: PrivacyFloor | None = None,
    ) -> None:
        self.site, self.plan = site, plan
        self.components = SiteComponents(site, plan, places, context)
        self.privacy = (floor or PrivacyFloor()).under(Privacy.from_json(plan.privacy))
        if self.privacy.secure_aggregation is not None:
            self.privacy.secure_aggregation.require_threshold(len(plan.sites))
        floor = floor or PrivacyFloor()
        self.method = declared(places.bundle_root, plan.variant)
        self.release = release or site_release(
            site,
            lambda: self._client().client,
            self.privacy,
            places.output_dir,
            PrivacyLedger(places.cache, site, floor),
            self.method,
            plan.rounds,
            floor.least_images,
        )
        self._worker: ClientAlgoExecutor | None = None
        self._secure: SecureSite | None = None
        self._has_network = False
        self._refused = ""

    def answer(self, task: Task, message: Message) -> Message:
        """Does ``task`` and returns what may leave.

        Raises:
            MessageRefused: this site cannot do it; the text may leave the site.
            Exception: anything else; only :func:`scrub` of it may leave the site.
        """
        task = Task(task)
        try:
            require_request(task, message, self.site, self.plan.rounds)
            if isinstance(self.release, ReleaseFilter):
                self.release.require_answerable(task, message)
            step = task in STEPS
            reply = self._adder().answer(task, message) if step else self._work(task, message)
        except Exception as error:
            if isinstance(self.release, ReleaseFilter):
                self.release.failed(task, message, error)
            raise
        if step:
            return self.release.hidden(task, message, reply) if isinstance(self.release, ReleaseFilter) else reply
        reply = self.release(task, message, reply)
        return self._adder().hold(reply) if task == Task.TRAIN and self.privacy.secure_aggregation else reply

    def engine(self, task: Task) -> Any:
        """The Ignite engine that ``task`` runs, for a progress bar; ``None`` where there is none yet."""
        return self._worker.engine(task) if self._worker is not None else None

    def masks_taken(self) -> int:
        """Largest number of soft-mask pixels in a message to this site: those of its list's public set.

        A message with more is refused before it is inflated (fault 79); 0 where the plan exchanges none.
        """
        own = self._client().client.own
        return own.sharing.masks_taken() if own is not None else 0

    def state_dict(self) -> dict[str, Tensor]:
        """What this site needs to go on after the last round in another process; empty where it keeps nothing."""
        renewed = self.components.renewal.state_dict() if self.components.renewal is not None else {}
        return {**(self._worker.state_dict() if self._worker is not None else {}), **renewed}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`state_dict` returned."""
        if self.components.renewal is not None:
            state = self.components.renewal.take_state(state)
        if state:
            self._client().load_state_dict(state)
            self._has_network = self._has_network or bool(split_state(state)[0])

    def finalize(self) -> None:
        """Ends the client."""
        if self._worker is not None:
            self._worker.finalize()

    def _adder(self) -> SecureSite:
        settings = self.privacy.secure_aggregation
        if settings is None or not self.components.trains:
            found, expected = "a step of it", "none: the plan does not have it, or this site does not train"
            raise MessageRefused([Problem("secure aggregation", found=found, expected=expected)])
        if self._secure is None:
            sums = SumsOfUpdates(
                Path(self.components.places.cache) / "privacy" / f"{as_file_name(self.site)}.sums.jsonl"
            )
            self._secure = SecureSite(self.site, self.plan.sites, settings, sums, self.plan.updates_hash)
        return self._secure

    def _work(self, task: Task, message: Message) -> Message:
        if task == Task.CHECK:
            return self._check(message)
        if self._refused:
            hint = "fix it at this site and start the run again"
            raise MessageRefused([Problem("site", found=self._refused, expected="a check that passed", hint=hint)])
        if task == Task.PREPARE:
            return self._prepare(message)
        if task == Task.EVALUATE and message.extra.get("model") == "teacher":
            return self._teacher_scores(message)
        if not self._has_network and self._needs_own_weights(task):
            hint = "start the run again: the server sends the first weights"
            raise MessageRefused([Problem("network", found="none", expected="this site's own", hint=hint)])
        if self.components.renewal is not None:
            if task == Task.TRAIN:
                self.components.renewal.before(message, self._client().client)
            elif message.extra.get("model") in ("best", "last"):  # the rounds are over
                self.components.renewal.remove()
        return self._train(message) if task == Task.TRAIN else self._evaluate(message)

    def _evaluate(self, message: Message) -> Message:
        """Scores of all images of a split: two means, one of them without a single image, would give its score away."""
        reply = self._client().answer(Task.EVALUATE, message)
        if self._client().client.scored_a_part and reply.n >= self.privacy.least_images:
            hint = "leave the loader to the bundle that was installed here"
            raise MessageRefused([Problem("scores", "those of a part of the images", "all images of the split", hint)])
        return reply

    def _train(self, message: Message) -> Message:
        """The local epoch; statistics beside weights go to, and come from, the bundle's ``statistics``."""
        weights, received = split_statistics(message.tensors) if message.kind == Kind.WEIGHTS else ({}, {})
        asked = message.extra.get(STATISTICS)
        if not received and asked is None:  # nothing leaves: what the policy says of the bundle's kind does not matter
            if (statistic := self._client().client.statistic) is not None:
                statistic.receive({})
            return self._client().answer(Task.TRAIN, message)
        own = self._statistic(asked)
        own.receive(received)
        reply = self._client().answer(Task.TRAIN, replace(message, tensors=weights))
        if asked is None:
            return reply
        rule = self.privacy.rule(own.kind) or StatisticRule()
        with own_random_state(derive_seed(self.plan.seed, self.site, "statistics")):
            measured = own.measured(rule.least_images)
        return replace(reply, tensors=with_statistics(reply.tensors, measured))

    def _statistic(self, asked: str | None) -> Statistic:
        own: Statistic | None = self._client().client.statistic
        if own is None or asked not in (None, own.kind.value):
            expected = "`statistics` of train.json, which measures what the server asks for"
            hint = "leave strategy and statistics to the variant"
            raise MessageRefused([Problem("statistics", found="none here", expected=expected, hint=hint)])
        if problems := forbidden_problems(own.kind, self.privacy, self.method):
            raise MessageRefused(problems)
        return own

    def _needs_own_weights(self, task: Task) -> bool:
        """Whether ``task`` needs a network, or a part of one, that this site keeps."""
        if task == Task.TRAIN and self.components.participants.strategy.exchange.own_networks:
            return True
        return task in (Task.TRAIN, Task.EVALUATE) and bool(self._client().client.parts)

    def _check(self, message: Message) -> Message:
        reply = numeric_reply(message)
        problems: list[Problem] = []
        unfit: list[Problem] = []  # of a list on which no client can be built
        if "plan" in message.extra:
            self._refused = ""
            sam = self.components.sam_fingerprint() if "base_sam" in message.extra else {}
            own = own_fingerprints(
                self.plan, self.components.places.bundle_root, self.components.listed(), self.site, sam
            )
            problems += differences(message.extra, own)
            listed, participants = self.components.listed(), self.components.participants
            unfit = self._other_classes() + label_problems(listed, participants, "data list")
            problems += unfit
            if self.components.trains:
                images = self.components.training_images()
                strategy = self.components.participants.strategy
                problems += too_few_images(images, self.privacy, strategy)
                if strategy.statistic is not None:
                    problems += forbidden_problems(strategy.statistic, self.privacy, self.method)
            if self.components.context is None:
                here = self.components.places
                problems += image_problems(
                    self.components.datalist, self.components.data_root, cache_dir=here.cache, verify=here.verify
                )
        try:
            early = (
                "plan" in message.extra and self.components.trains and self.components.teacher is None
            )  # needs no soft masks
            if not unfit and (early or "public" in message.extra):
                reply = self._client().answer(Task.CHECK, message)
        except MessageRefused as error:
            problems += error.problems
        if problems:
            self._refused = "a check that failed"
            raise MessageRefused(problems)
        return reply

    def _other_classes(self) -> list[Problem]:
        """Problems of class names that differ from the run's; this site's own names are logged here and not sent."""
        listed, classes = self.components.listed(), self.components.participants.config.optional("classes")
        problems = other_classes(listed.classes, classes, "data list -> classes")
        for problem in problems:
            logger.error("%s: %s", self.site, problem)
        unnamed: dict[str, str] = {"found": "others, which this site's log names"}
        if not several(classes):  # the hint names them, too
            unnamed["hint"] = "make the list with a single --label"
        return [replace(problem, **unnamed) for problem in problems]

    def _prepare(self, message: Message) -> Message:
        started, shown = time.perf_counter(), 0
        if message.kind == Kind.ADAPTER:
            if self.components.teacher is not None:
                shown = self.components.teacher.take(
                    message, self.components.context.teacher if self.components.context else None
                )
        else:
            shown = self._client().answer(Task.PREPARE, message).n
            weights = self.components.trains and self.components.participants.strategy.exchange.answer is Kind.WEIGHTS
            if isinstance(self.release, ReleaseFilter) and weights:
                self.release.require_statistics()
            self._has_network = self._has_network or message.kind == Kind.WEIGHTS
        return numeric_reply(message, n=shown, metrics={"seconds": time.perf_counter() - started})

    def _teacher_scores(self, message: Message) -> Message:
        if self.components.teacher is None:
            raise MessageRefused([Problem("teacher", found="none in this plan", expected="one")])
        return numeric_reply(
            message,
            **self.components.teacher.scores(message.extra.get("split", "test"), self.components.participants.config),
        )

    def _client(self) -> ClientAlgoExecutor:
        if self._worker is None:
            client = self.components.client()
            require_plain_network(client)
            if client.own is not None:
                require_public_images(client.own.sharing, self.components.public_records)
            self._worker = ClientAlgoExecutor(self.site, client)
            if client.parts is not None and isinstance(self.release, ReleaseFilter):
                self.release.declare(client.parts.split)
        return self._worker
