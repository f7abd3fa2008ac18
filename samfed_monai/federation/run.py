"""A whole run, from a data list to ``results.json``; results of earlier runs are reused by hash."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.config.parse import MISSING, flat, follow
from samfed_monai.config.variants import declared
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import PUBLIC, sha256_bytes, sha256_file, write_json
from samfed_monai.core.own_process import device_name, peak_memory
from samfed_monai.core.run_log import RunLog, command_line
from samfed_monai.core.words import counted
from samfed_monai.data import DataList
from samfed_monai.federation.local_transport import LocalTransport
from samfed_monai.federation.participants import Participants, require_starts
from samfed_monai.federation.plan import Places, Plan
from samfed_monai.federation.preparation import (
    Preparation,
    check_data,
    class_problems,
    label_problems,
    list_fingerprint,
    no_public_images,
    shared_fingerprints,
)
from samfed_monai.federation.process_transport import ProcessTransport, workers_of
from samfed_monai.federation.progress import Tracking
from samfed_monai.federation.quality import write_quality_of_run
from samfed_monai.federation.round_store import START
from samfed_monai.federation.run_folder import RunFolder, round_traffic, skipped
from samfed_monai.federation.server import RoundController, quorum_of, quorum_problems
from samfed_monai.federation.site import ProcessContext, Site
from samfed_monai.federation.site_teacher import adapter_message
from samfed_monai.federation.start import StartingPoint, start_problems
from samfed_monai.federation.student_teacher import StudentTeacher, masks_from_problems, packed
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.federation.warm_start import warm_start
from samfed_monai.federation.workflow import WorkflowConfig
from samfed_monai.metrics import cost_of
from samfed_monai.networks.fpn import BASE
from samfed_monai.networks.weights import TEACHER, takes_teacher
from samfed_monai.privacy import (
    CentralNoise,
    Privacy,
    notes_on_statistics,
    privacy_account,
    require_possible,
    settings_of,
)
from samfed_monai.privacy.secure_aggregation import SecureServer
from samfed_monai.protocol.compression import NONE, Compression, compression_problems
from samfed_monai.protocol.guard import Counts, UpdateGuard
from samfed_monai.protocol.transport import Transport
from samfed_monai.results import build_results

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.federation.server import RunResult
    from samfed_monai.networks import Teacher

logger = logging.getLogger(__name__)


def outcome(result: RunResult, participants: Participants) -> dict[str, Any]:
    """The arguments of :func:`samfed_monai.results.build_results` that the rounds give."""
    return {
        "scores": {name: model["sites"] for name, model in result.models.items()},
        "model_rounds": {name: model["round"] for name, model in result.models.items()},
        "unseen": {name: model["unseen"] for name, model in result.models.items()} if participants.unseen else None,
        "networks": participants.networks,
        "exchange": participants.exchange,
        "own_models": participants.strategy.keeps_states,
        "own_labels": participants.supervised,
        "traffic": result.traffic,
        "against_start": result.against_start,
        "rounds_traffic": [round_traffic(record) for record in result.records],
        "skipped": skipped(result.records),
    }


def fell_back(result: RunResult) -> list[str]:
    """What a report says where the best model is the network that the run began with."""
    if result.models["best"]["round"] != START or result.against_start is None:
        return []
    return [_NO_ROUND_BETTER.format(**result.against_start)]


def model_hashes(result: RunResult) -> dict[str, str]:
    """SHA-256 of the stored models, under the names of ``results.json -> hashes``."""
    return {f"model_{name}": model["sha256"] for name, model in result.models.items()}


PACKAGES = ("samfed-monai", "monai", "torch", "pytorch-ignite", "segment-anything", "timm", "numpy")


def versions() -> dict[str, str]:
    """Version by package, and Python's own; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def require_no_paths_of_sites(places: Places) -> None:
    """Refuses a path that was set for a site outside of this process.

    Raises:
        Refused: with every such path.
    """
    problems = Problems()
    for site, there in sorted(places.sites.items()):
        for name in there:
            expected, hint = "nothing: paths are configured at each site", "set it at the site"
            problems.add(f"federate.json -> sites#{site}#{name}", found="a path", expected=expected, hint=hint)
    problems.refuse_if_any()


def require_sites(transport: Transport, participants: Participants) -> None:
    """Refuses a transport whose sites are not exactly those of the run.

    Raises:
        Refused: with every site that is missing, and every client that is not named.
    """
    problems, known = Problems(), {*participants.sites, *participants.unseen}
    for site in sorted(known - set(transport.sites)):
        problems.add(f"site {site}", found="none of that name", expected="a client that the transport can reach")
    for site in sorted(set(transport.sites) - known):
        expected, hint = "a site of the plan", "name it in federate.json -> sites, or leave it out of the job"
        problems.add(f"site {site}", found="a client that the plan does not name", expected=expected, hint=hint)
    problems.refuse_if_any()


def plan_problems(
    plan: Plan, places: Places, participants: Participants | None, datalist: DataList | None, *, sites: int | None
) -> list[Problem]:
    """What a run of this plan cannot work with, before anything is built, written or sent.

    Args:
        plan, places: of the run.
        participants: of the plan; ``None`` where they could not be made, and only the plan itself is looked at.
        datalist: the frozen list; ``None`` where there is none here, and its images and labels are not asked.
        sites: number of sites that train; ``None`` where it is not known.
    """
    problems, privacy = Problems(), Privacy()
    with problems.collected():
        privacy = Privacy.from_json(plan.privacy)
    guard = None
    with problems.collected():
        guard = UpdateGuard.from_json(plan.update_guard)
    if participants is None:
        return list(problems)
    with problems.collected():
        method = declared(places.bundle_root, plan.variant)
        require_possible(privacy, participants.strategy, method, guard, rounds=plan.rounds, sites=sites)
    classes = participants.config.optional("classes") or []
    noise, sums = privacy.differential_privacy is not None, privacy.secure_aggregation is not None
    problems.extend(compression_problems(plan.compression, participants.strategy, noise=noise, sums=sums))
    problems.extend(start_problems(places.start_from, participants))
    problems.extend(masks_from_problems(places.masks_from, participants.config.value("teacher_adapt")))
    problems.extend(class_problems(datalist or DataList("", [], classes=classes), participants.config))
    if datalist is not None:
        problems.extend(no_public_images(datalist, supervised=participants.supervised))
        problems.extend(label_problems(datalist, participants, datalist.name))
    if sites is not None:
        problems.extend(quorum_problems(sites, plan.quorum, allow_single_site=plan.allow_single_site))
        with problems.collected():
            participants.strategy.require_sites(participants.sites)
    return list(problems)


SPLITS = ("validation", "test")


_NO_ROUND_BETTER = (
    "No round is better than the network that the run began with ({by} {start:.3f}, in the best round "
    "{rounds:.3f}): that network is the run's model. What the sites learned from may have misled them."
)
_MORE_ROUNDS = (
    "The run was finished after {} and then given more: the later rounds follow the learning-rate schedule of a run of "
    "{} rounds."
)


class Run:
    """Check, teacher, soft masks, warm start, rounds, evaluation, in this order, over any transport.

    Args:
        plan: the settings that decide the result.
        places: paths on this machine.
    """

    def __init__(self, plan: Plan, places: Places) -> None:
        self.plan, self.places = plan, places
        self.guard, self.privacy = UpdateGuard.from_json(plan.update_guard), Privacy.from_json(plan.privacy)
        self.teacher = TeacherStage.of(plan, places)
        self.seconds: dict[str, float] = {}

    @cached_property
    def datalist(self) -> DataList:
        """The frozen list."""
        return DataList.load(self.places.datalist)

    @cached_property
    def participants(self) -> Participants:
        """Who takes part, and with which network."""
        return Participants.of(self.plan, self.places, self.datalist)

    @cached_property
    def start(self) -> StartingPoint | None:
        """Weights that the network begins with; ``None`` where it is built anew."""
        source = self.places.start_from
        return None if source is None else StartingPoint.read(source, self.participants)

    @cached_property
    def student(self) -> bytes | None:
        """The network of an earlier run that makes the soft masks, as it is sent; ``None`` where SAM makes them."""
        source = self.places.masks_from
        return None if source is None else packed(source, self.participants)

    @cached_property
    def adapt(self) -> str:
        """How SAM is adapted to the public images; ``off`` has no teacher."""
        adapt: str = self.participants.config.value("teacher_adapt")
        return adapt

    def run(self, transport: Callable[[Plan], Transport] | None = None) -> dict[str, Any]:
        """See :meth:`FederatedJob.run`."""
        with RunLog().kept(command_line()) as log:
            return self._run(transport, log)

    def _run(self, transport: Callable[[Plan], Transport] | None, log: RunLog) -> dict[str, Any]:
        started, plan, places = time.perf_counter(), self.plan, self.places
        process: dict[str, float | str | None] = {}
        if transport is None:
            process["device"] = device_name(places.train.get("device"))
        else:
            require_no_paths_of_sites(places)
        datalist, participants, begins = self.datalist, self.participants, self._check()
        hashes = {"datalist": datalist.hash, **self._weight_hashes(begins), **participants.sam_fingerprint()}
        folder, seeds = RunFolder(places.output_dir), {"seed": plan.seed}
        with folder.open(self._settings(), versions=versions(), hashes=hashes, seeds=seeds):
            log.into(folder.path)
            own = datalist if transport is None else datalist.for_server()
            check_data(own, places.data_root, cache_dir=places.cache, verify=places.verify)
            settled, context = participants.settled(plan), ProcessContext(participants, datalist)
            with self._carrier(transport, settled, context) as carrier:
                require_sites(carrier, participants)
                before = self._preparation(carrier, going_on=bool(folder.store.rounds()))
                common = shared_fingerprints(settled, places.bundle_root, datalist)
                before.check(
                    lambda site: {**common, **list_fingerprint(datalist, site), **participants.sam_fingerprint(site)}
                )
                about, teacher_sha256 = self._teach(before, context)
                costs = participants.costs()  # right after the teacher's, so that the times may be compared
                if about is not None:
                    costs["teacher"] = {key: about[key] for key in ("parameters", "milliseconds", "memory_bytes")}
                teacher_scores = before.teacher_scores(self.teacher.scored) if about is not None else None
                controller = self._ready(before, folder, carrier, self._trunk(begins))
                prepared = before.traffic()
                with Tracking(folder.path) as controller.on_round:
                    result = controller.run()
            results = build_results(
                variant=plan.variant,
                rounds=plan.rounds,
                **outcome(result, participants),
                costs=costs,
                teacher_scores=teacher_scores,
                teacher=about,
                preparation=prepared,
                privacy=privacy_account(
                    self.privacy,
                    result.records,
                    result.withheld,
                    central=controller.central.account() if controller.central else None,
                    statistic=participants.strategy.statistic,
                ),
                seconds={**result.seconds, **self.seconds, "total": time.perf_counter() - started},
                hashes={**hashes, "teacher": teacher_sha256, **model_hashes(result)},
                versions=versions(),
                seeds=seeds,
                convention=self._convention,
                process={"memory_bytes": peak_memory(), "processor_seconds": time.process_time(), **process},
                command=command_line(),
                start=self._started_from(),
                caveats=[
                    *(_MORE_ROUNDS.format(counted(before, "round"), plan.rounds) for before in folder.rounds_before),
                    *fell_back(result),
                ],
            )
            write_json(places.output_dir / "results.json", results, mode=PUBLIC)
            write_quality_of_run(result.calibration, participants.config, own, places)
            folder.finish(result.records, keep_states=participants.strategy.keeps_states)
        return results

    def _check(self) -> str:
        """Refuses what could not work, before anything is written and any site is asked.

        Returns:
            How the teacher is adapted that networks start from, see :meth:`_start_adapt`.
        """
        participants, variant = self.participants, self.plan.variant
        for note in notes_on_statistics(self.privacy, participants.strategy, variant):
            logger.warning("%s", note)
        problems = plan_problems(self.plan, self.places, participants, self.datalist, sites=len(participants.sites))
        if problems:
            raise Refused(problems)
        participants.dry_run()
        if self.start is None:
            require_starts(participants.config, participants.all_networks)
        self.teacher.dry_run(self.adapt)
        begins = self._start_adapt()
        if self.adapt == "off" and begins != "none":
            self.teacher.dry_run(begins)
        return begins

    @cached_property
    def _convention(self) -> dict[str, Any]:
        convention: dict[str, Any] = self.participants.config.parser().get_parsed_content("validate#scores").convention
        return convention

    @cached_property
    def _classes(self) -> Sequence[str]:
        return self.participants.config.optional("classes") or ()

    def _preparation(self, transport: Transport, *, going_on: bool) -> Preparation:
        plan, participants = self.plan, self.participants
        least = quorum_of(len(participants.sites), plan.quorum, allow_single_site=plan.allow_single_site)
        everybody = sorted((*participants.sites, *participants.unseen))
        return Preparation(
            transport, everybody, plan.rounds, plan.seed, least if going_on else None, classes=self._classes
        )

    @contextmanager
    def _carrier(
        self, transport: Callable[[Plan], Transport] | None, settled: Plan, context: ProcessContext
    ) -> Iterator[Transport]:
        """The transport and, where sites are on this machine, the sites, finalized at the end of the block."""
        everybody = (*context.participants.sites, *context.participants.unseen)
        workers = workers_of(self.places, len(everybody))
        if transport is not None:
            yield transport(settled)
        elif workers > 1:
            logger.info("%d sites in %d processes", len(everybody), workers)
            with ProcessTransport(settled, self.places, workers=workers) as processes:
                yield processes
                processes.finalize()
        else:
            sites = {site: Site(site, settled, self.places, context=context) for site in everybody}
            yield LocalTransport(sites)
            for site in sites.values():
                site.finalize()

    def _settings(self) -> dict[str, Any]:
        plan, adapt = self.plan, self.adapt
        guard = {name: value for name, value in plan.update_guard.items() if value is not None}
        return {
            "variant": plan.variant,
            "rounds": plan.rounds,
            "warm_start_steps": plan.warm_start_steps,
            **({"warm_start_held_out": plan.warm_start_held_out} if plan.warm_start_held_out else {}),
            "keep_optimizer": plan.keep_optimizer,
            "client": self.participants.config.content(),
            **self.participants.content(),
            "teacher": self.teacher.content() if adapt != "off" else None,
            **({"privacy": settings_of(plan.to_json()["privacy"])} if plan.privacy is not None else {}),
            **({"update_guard": guard} if guard else {}),
            **({"compression": plan.compression} if plan.compression != NONE else {}),
        }

    def _started_from(self) -> dict[str, Any] | None:
        """What the report says of weights that the run began with; ``None`` without any."""
        if self.start is None:
            return None
        steps = self.warm_config(self.participants.server_network)[1] if self.datalist.public else 0
        return {"name": self.start.name, "sha256": self.start.sha256, "warm_start_steps": steps}

    def _weight_hashes(self, begins: str) -> dict[str, str]:
        start = {"start": self.start.sha256} if self.start is not None else {}
        start |= {"masks_from": sha256_bytes(self.student)} if self.student is not None else {}
        if begins == "none" and (self.adapt == "off" or self.student is not None):
            return start
        if not self.places.adapter and (sha256 := self.teacher.start_sha256) is not None:
            start["teacher_start"] = sha256
        given = {"adapter": sha256_file(self.places.adapter)} if self.places.adapter else {}
        return {**start, "sam": sha256_file(self.teacher.checkpoint()), **given}

    def _teach(self, before: Preparation, context: ProcessContext) -> tuple[dict[str, Any] | None, str | None]:
        """Finds or fits the teacher and sends it to the sites; returns its part of the report, and its identity."""
        adapt, places = self.adapt, self.places
        if adapt == "off":
            return None, None
        teacher: Teacher | StudentTeacher
        file: Path | None
        sam: str | None
        with self._timed("teacher"):
            if places.masks_from is not None and self.student is not None:
                file = self.teacher.kept(self.student)
                teacher, sam = StudentTeacher.load(file, self.participants.config, self.teacher), None
                about = {"model": Path(places.masks_from).name, "size": teacher.size, "views": teacher.views}
            else:
                teacher = self.teacher.load(self.datalist, places.data_root, adapt=adapt, adapter=places.adapter)
                file, sam = self.teacher.file, sha256_file(self.teacher.checkpoint())
                about = self.teacher.about(teacher, adapt)
        with self._timed("soft_masks"):
            tensors, words = adapter_message(file, sam=sam, teacher=teacher.sha256)
            context.teacher = teacher
            before.hand_out(tensors, words)
            context.teacher = None  # frees it: the rounds do not need it
        return {**about, **cost_of(teacher, teacher.size, infer=teacher.probabilities)}, teacher.sha256

    def _start_adapt(self) -> str:
        """How the teacher whose trunk the networks start from is adapted; ``none`` where no network starts from one.

        A variant without SAM (``dp_only``, ``no_sam``, ``oracle``) starts as ``samfed`` does, so that rows of a
        comparison differ in what they learn from and not in what they begin with.
        """
        config = self.participants.config
        starts = any(map(takes_teacher, self.participants.all_networks))
        if self.start is not None or config.optional("encoder_weights") != TEACHER or not starts:
            return "none"
        if not self.datalist.public and not self.places.adapter:
            logger.info("start: MobileSAM's own trunk; there are no public images to adapt a teacher to")
            return "none"
        plain = WorkflowConfig(self.places.bundle_root, ("configs/train.json",), config.overrides)
        plain = plain.without_lost()  # options of what only this variant has
        adapt = self.adapt if self.adapt != "off" else str(plain.optional("teacher_adapt"))
        if adapt != "none" and self.teacher.base != BASE:
            logger.info(
                "start: MobileSAM's own trunk; the trunk of the teacher, a %s, is another network", self.teacher.base
            )
            return "none"
        return "lora" if adapt == "off" else adapt

    def _trunk(self, adapt: str) -> Path | None:
        """The adapter of the teacher that the networks start from, fitted first where that is not done yet."""
        if adapt == "none":
            return None
        with self._timed("teacher"):
            return self.teacher.file or self.teacher.adapter(
                self.datalist, self.places.data_root, adapt=adapt, adapter=self.places.adapter
            )

    def _ready(
        self, before: Preparation, folder: RunFolder, transport: Transport, trunk: Path | None
    ) -> RoundController:
        """Warm start and initial weights for every site; the controller of the rounds."""
        plan, participants = self.plan, self.participants
        later = participants.strategy.rounds_before_warm_start > 0
        if (begun := self._started_from()) is not None:
            steps = begun["warm_start_steps"] or "no"
            logger.info("start: the weights of %s, then %s steps of warm start", begun["name"], steps)
        with self._timed("warm_start"):
            starts = {}
            for name in participants.all_networks:
                weights = self._warmed(name, trunk, **({"steps": 0} if later else {}))
                starts[name] = participants.start(name, weights, plan.seed)
            images = before.start_from(participants.first_weights(starts))
        server = participants.server(
            rounds=plan.rounds, seed=plan.seed, start=starts.get(participants.server_network), guard=self.guard
        )
        if later:
            server = replace(server, warm_start=partial(self._warm_up_later, trunk))
        strategy, noise = participants.strategy.attach(server), self.privacy.central_differential_privacy
        learned, secure = participants.learned() if noise is not None else (), self.privacy.secure_aggregation
        kept: dict[str, Any] = {"timeout": plan.timeout, "begun": folder.path / "secure_sum.json"}
        return RoundController(
            transport=transport,
            strategy=strategy,
            secure=None if secure is None else SecureServer(secure, strategy, transport, **kept),
            central=None if noise is None else CentralNoise(noise, strategy, learned=learned, folder=folder.path),
            folder=folder,
            rounds=plan.rounds,
            seed=plan.seed,
            splits=SPLITS,
            unseen=participants.unseen,
            classes=self._classes,
            skip_empty=self._convention["empty"] == "skipped",
            quorum=plan.quorum,
            timeout=plan.timeout,
            allow_single_site=plan.allow_single_site,
            score_start=not later and not strategy.keeps_states and self._begins_trained,
            compression=Compression.of(plan.compression),
            counts=Counts({site: n for site, n in images.items() if site in participants.sites}, self.guard),
        )

    def warm_config(self, network: str) -> tuple[WorkflowConfig, int]:
        """``train.json`` and the steps that a network is warmed up with: the run's own, then what its variant says."""
        content = self.participants.config.parser().get()
        said = flat(content.get("warm_start") or {}).items()  # over dp_only; "@id" is an option of the run
        own = {key: value if MISSING is (there := follow(content, (), value)[1]) else there for key, value in said}
        steps = own.pop("warm_start_steps", self.plan.warm_start_steps)
        declared = content.get("network_def")
        overrides = {**self.plan.train, **self.places.overrides(), "network_name": network, "network_def": declared}
        return WorkflowConfig(self.places.bundle_root, ("configs/train.json",), {**overrides, **own}), steps

    @property
    def _begins_trained(self) -> bool:
        """Whether the network that the rounds begin with was trained: on the public images, or before this run."""
        steps = self.warm_config(self.participants.server_network)[1] if self.datalist.public else 0
        return self.start is not None or steps > 0

    def _warmed(self, network: str, trunk: Path | None, **instead: Any) -> dict[str, Tensor]:
        """A network after its warm start; ``instead`` are arguments of :func:`warm_start` in place of the run's."""
        config, steps = self.warm_config(network)
        options: dict[str, Any] = {
            "datalist": self.datalist,
            "steps": steps,
            "seed": self.plan.seed,
            "cache_dir": self.places.cache,
            "trunk": trunk if takes_teacher(network) else None,
            "held_out": self.plan.warm_start_held_out,
            **instead,
        }
        begun = self.start.weights if self.start is not None and "begin" not in instead else {}
        if begun and not (options["steps"] and self.datalist.public):
            return begun
        options |= {"begin": begun} if begun else {}
        return {**begun, **warm_start(config, **options)[0]}

    def _warm_up_later(self, trunk: Path | None, begin: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The warm start of a run whose strategy begins with other rounds: from the weights that those came to."""
        with self._timed("warm_start"):
            weights = self._warmed(self.participants.server_network, trunk, begin=begin)
        return {name: weights[name] for name in begin}

    @contextmanager
    def _timed(self, activity: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - started
