"""A whole run, from a data list to ``results.json``; results of earlier runs are reused by hash."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.config.check import check_base_weights
from samfed_monai.config.parse import flat, lookup, resolve
from samfed_monai.config.variants import resolved_method
from samfed_monai.core.errors import Problem, Problems
from samfed_monai.core.io import PUBLIC, require_writable, sha256_bytes, sha256_file, write_json
from samfed_monai.core.process_setup import device_name, peak_memory, usable_device
from samfed_monai.core.run_log import COMMAND, RunLog, command_line
from samfed_monai.core.validators import no_file_there, require
from samfed_monai.data import DataList
from samfed_monai.data.checks import among_images, leaks
from samfed_monai.federation.local_transport import LocalTransport
from samfed_monai.federation.participants import Participants, build_network, require_starts, run_config
from samfed_monai.federation.plan import Paths, Plan
from samfed_monai.federation.preparation import (
    check_data,
    class_problems,
    is_sam,
    no_public_images,
    own_fingerprints,
    public_colours,
)
from samfed_monai.federation.process_transport import ProcessTransport, workers_of
from samfed_monai.federation.progress import Clock, Tracking
from samfed_monai.federation.run_folder import START, RunFolder, skipped, total_traffic
from samfed_monai.federation.run_models import RunModels, starting_file
from samfed_monai.federation.server import RoundController, RunResult, quorum_problems
from samfed_monai.federation.site import ProcessContext, Site
from samfed_monai.federation.site_network import Start
from samfed_monai.federation.site_teacher import adapter_message
from samfed_monai.federation.start import StartingPoint, warm_start
from samfed_monai.federation.teacher import MASKS_FROM, StudentTeacher, TeacherStage, pack_model
from samfed_monai.federation.workflow import WorkflowConfig, evaluation_changes
from samfed_monai.metrics import cost_of
from samfed_monai.metrics.quality import MIN_IMAGES, Calibration, Quality, digests_of, write_quality
from samfed_monai.networks.fpn import BASE
from samfed_monai.networks.weights import TEACHER, takes_teacher
from samfed_monai.privacy import (
    CentralNoise,
    Privacy,
    notes_on_statistics,
    privacy_account,
    require_possible,
    stored_settings,
)
from samfed_monai.privacy.secure_aggregation import SecureServer
from samfed_monai.protocol.compression import NONE, Compression, compression_problems
from samfed_monai.protocol.guard import ImageCounts, UpdateGuard
from samfed_monai.protocol.message import Kind
from samfed_monai.protocol.transport import Transport
from samfed_monai.results import build_results, round_traffic

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.networks import Teacher

logger = logging.getLogger(__name__)

PACKAGES = ("samfed-monai", "monai", "torch", "pytorch-ignite", "segment-anything", "timm", "numpy")

_NO_ROUND_BETTER = (
    "No round is better than the initial network ({by} {start:.3f}, in the best round "
    "{rounds:.3f}), so the initial network is the run's model. The sites' training targets may be wrong."
)

_NO_SCORES = (
    "No site sent scores or expected Dice of any round, so the last round's network is the run's model, even if "
    "another round was better. Masks of a few validation images at one site are enough to select a round."
)

_BY_EXPECTED = "No site has masks: the round was chosen by expected Dice, not calibrated and too high if SAM is wrong."

_TRAINED_BEFORE = "The run in {} trained at {}, unseen in this run: scores there are not those of a new hospital."

_UNSCORED = "{} sent no scores of the final models, or not all ({}); averages exclude them. Run the same command again."


class Run:
    """Check, teacher, soft masks, warm start, rounds and evaluation, in this order, over any transport.

    Args:
        plan: the settings that decide the result.
        paths: paths on this machine.
    """

    def __init__(self, plan: Plan, paths: Paths) -> None:
        self.plan, self.paths = plan, paths
        self.guard, self.privacy = _read_rules(plan)
        self.teacher = TeacherStage.of(plan, paths)
        self.clock = Clock()

    @cached_property
    def datalist(self) -> DataList:
        """The frozen list."""
        return DataList.load(self.paths.datalist)

    @cached_property
    def participants(self) -> Participants:
        """The sites of the run and their networks."""
        return Participants.of(self.plan, self.paths, self.datalist)

    @cached_property
    def start(self) -> StartingPoint | None:
        """Initial weights of the network; ``None`` to build it anew."""
        source = self.paths.start_from
        return None if source is None else StartingPoint.read(source, self.participants)

    @cached_property
    def student(self) -> bytes | None:
        """Serialised network of an earlier run that makes the soft masks; ``None`` if SAM makes them."""
        source = self.paths.masks_from
        return None if source is None else pack_model(source, self.participants)

    def _unseen_site_caveats(self) -> list[str]:
        """Caveats on weights or masks of a run in which hospitals trained that are unseen here; also logged."""
        caveats = []
        for name, source in {"start_from": self.paths.start_from, "masks_from": self.paths.masks_from}.items():
            trained = RunModels(source).trained if source and (Path(source) / "run.json").is_file() else ()
            if trained_before := [site for site in self.participants.unseen if site in trained]:
                caveats.append(_TRAINED_BEFORE.format(name, ", ".join(trained_before)))
                logger.warning("%s", caveats[-1])
        return caveats

    @cached_property
    def adapt(self) -> str:
        """How SAM is adapted to the public images; ``off`` means no teacher."""
        return str(self.participants.config.value("teacher_adapt"))

    def run(self, transport: Callable[[Plan], Transport] | None = None) -> dict[str, Any]:
        """See :meth:`FederatedJob.run`."""
        with RunLog().kept(command_line()) as log:
            return self._run(transport, log)

    def _run(self, make_transport: Callable[[Plan], Transport] | None, log: RunLog) -> dict[str, Any]:
        started, plan, paths = time.perf_counter(), self.plan, self.paths
        if make_transport is not None:
            require_no_paths_of_sites(paths)
        datalist, participants = self.datalist, self.participants
        self._check(here=make_transport is None)
        require_writable(paths.cache)
        caveats = self._unseen_site_caveats()
        hashes = {"datalist": datalist.hash, **self._weight_hashes(), **participants.sam_fingerprint()}
        folder, seeds = RunFolder(paths.output_dir), {"seed": plan.seed}
        with folder.open(self._settings(), versions=versions(), hashes=hashes, seeds=seeds):
            log.into(folder.path)
            own_list = datalist if make_transport is None else datalist.for_server()
            require(leaks(own_list))  # also of sites with data roots of their own
            for part, root in own_list.by_root(paths.data_root, paths.sites):
                check_data(part, root, cache_dir=paths.cache, verify=paths.verify)
            resolved, context, start = participants.resolve(plan), ProcessContext(participants, datalist), self.start
            with self._opened_transport(make_transport, resolved, context) as transport:
                require_sites(transport, participants)
                server = self._server(transport, folder)
                server.check(
                    lambda site: own_fingerprints(
                        resolved, paths.bundle_root, datalist, site, participants.sam_fingerprint(site)
                    )
                )
                preparation, teacher_sha256 = self._prepare(server, context)
                caveats += folder.record_teacher(teacher_sha256) if teacher_sha256 is not None else []
                with Tracking(folder.path) as server.on_round:
                    result = server.run()
            # on FLARE, sites have devices of their own
            device = {"device": device_name(participants.config.optional("device"))} if make_transport is None else {}
            results = build_results(
                variant=plan.variant,
                rounds=plan.rounds,
                networks=participants.networks,
                exchange=participants.strategy.exchange.word,
                own_models=participants.strategy.keeps_states,
                own_labels=participants.supervised,
                seconds={**result.seconds, **self.clock.seconds, "total": time.perf_counter() - started},
                versions=versions(),
                seeds=seeds,
                convention=self._convention,
                process={"memory_bytes": peak_memory(), "processor_seconds": time.process_time(), **device},
                command=command_line() if make_transport is None else os.environ.get(COMMAND),  # of samfed flare
                start=start and {"name": start.name, "sha256": start.sha256, "warm_start_steps": self._warm_steps},
                caveats=[*caveats, *self._selection_caveats(result)],
                hashes={
                    **hashes,
                    "teacher": teacher_sha256,
                    **{f"model_{name}": model["sha256"] for name, model in result.models.items()},
                },
                **preparation,
                **self._outcome(server, result),
            )
            write_json(paths.output_dir / "results.json", results, mode=PUBLIC)
            self._write_quality(result.calibration, own_list)
            folder.finish(result.records, keep_states=participants.strategy.keeps_states)
        return results

    def _prepare(self, server: RoundController, context: ProcessContext) -> tuple[dict[str, Any], str | None]:
        """Makes the teacher and its masks, scores it, and sends the sites their initial weights.

        Returns:
            Entries of ``results.json``: ``teacher``, ``teacher_scores``, ``costs`` and ``preparation``; SHA-256 of the
            teacher, ``None`` without one.
        """
        entry, teacher_sha256 = self._teach(server, context)
        costs = self.participants.costs()  # right after the teacher's, so that times are comparable
        scores = None
        if entry is not None:
            costs["teacher"] = {key: entry[key] for key in ("parameters", "milliseconds", "memory_bytes")}
            scores = server.teacher_scores(self.teacher.scored)
        self._start_sites(server)
        traffic = total_traffic([], server.transport.take_traffic().values())
        entries = {"teacher": entry, "teacher_scores": scores, "costs": costs, "preparation": traffic}
        return entries, teacher_sha256

    def _outcome(self, server: RoundController, result: RunResult) -> dict[str, Any]:
        """Entries of ``results.json`` on the rounds and the final evaluation."""
        models, rounds_run = result.models, len(result.records)
        return {
            "scores": {name: model["sites"] for name, model in models.items()},
            "model_rounds": {name: model["round"] for name, model in models.items()},
            "unseen": {name: model["unseen"] for name, model in models.items()} if self.participants.unseen else None,
            "traffic": result.traffic,
            "rounds_traffic": [round_traffic(record) for record in result.records],
            "against_start": result.against_start,
            "skipped": skipped(result.records),
            "unscored": result.failed or None,
            "privacy": privacy_account(
                self.privacy,
                result.records,
                result.withheld,
                central=server.central.account(rounds_run) if server.central else None,
                statistic=self.participants.strategy.statistic,
            ),
        }

    def _selection_caveats(self, result: RunResult) -> Iterator[str]:
        """Caveats on scores that are missing, and on how the run's model was selected; the last is also logged."""
        yield from starmap(_UNSCORED.format, result.failed.items())
        if result.against_start is not None and result.models["best"]["round"] == START:
            yield _NO_ROUND_BETTER.format(**result.against_start)
        sites = [entry for record in result.records for entry in record["sites"].values()]
        if not any(entry["validation"] for entry in sites):
            caveat = _BY_EXPECTED if any(entry.get("expected") for entry in sites) else _NO_SCORES
            logger.warning("%s", caveat)
            yield caveat

    def _write_quality(self, calibration: Calibration | None, datalist: DataList) -> None:
        """Writes ``quality.json``: the calibration of expected Dice, and the colours of the public images."""
        if calibration is None:
            logger.info("expected Dice is not calibrated: fewer than %d validation images are usable", MIN_IMAGES)
        colours = public_colours(self.participants.config, datalist, self.paths.data_root)
        sites = {name: [item.sha256 for item in site.validation] for name, site in datalist.sites.items()}
        write_quality(Quality(calibration, colours, digests_of(sites) if calibration else ()), self.paths.output_dir)

    def _check(self, *, here: bool = True) -> None:
        """Refuses settings that cannot work, before anything is written or sent to a site.

        Args:
            here: whether the sites are on this machine, which must have the weights of SAM that their terms name.
        """
        participants, variant = self.participants, self.plan.variant
        for note in notes_on_statistics(self.privacy, participants.strategy, variant):
            logger.warning("%s", note)
        sites = len(participants.sites)
        problems = Problems(plan_problems(self.plan, self.paths, participants, self.datalist, sites=sites))
        problems.extend(check_base_weights(participants.config.parser().get(), self.paths.bundle_root) if here else ())
        with problems.collected():
            participants.dry_run()
        overrides = participants.overrides.items()
        devices = {f"sites#{site}#device": choices["device"] for site, choices in overrides if "device" in choices}
        for where, device in {"device": participants.config.optional("device"), **devices}.items():
            with problems.collected():
                usable_device(str(device), where)
        with problems.collected():
            if self.start is None:
                require_starts(participants.config, participants.all_networks)
        with problems.collected():
            starts = self.adapt == "off" and self._start_adapt != "none"
            self.teacher.dry_run(self._start_adapt if starts else self.adapt)
        problems.refuse_if_any()

    @cached_property
    def _convention(self) -> dict[str, Any]:
        return dict(self.participants.config.parser().get_parsed_content("validate#scores").convention)

    @contextmanager
    def _opened_transport(
        self, make_transport: Callable[[Plan], Transport] | None, resolved: Plan, context: ProcessContext
    ) -> Iterator[Transport]:
        """Yields the transport; sites on this machine are finalized at the end of the block."""
        all_sites = (*context.participants.sites, *context.participants.unseen)
        workers = workers_of(self.paths, len(all_sites))
        if make_transport is not None:
            yield make_transport(resolved)
        elif workers > 1:
            logger.info("running %d sites in %d processes", len(all_sites), workers)
            with ProcessTransport(resolved, self.paths, workers=workers) as processes:
                yield processes
                processes.finalize()
        else:
            sites = {site: Site(site, resolved, self.paths, context=context) for site in all_sites}
            yield LocalTransport(sites)
            for site in sites.values():
                site.finalize()

    def _settings(self) -> dict[str, Any]:
        plan, adapt = self.plan, self.adapt
        # the teacher that networks start from, if there is no other
        start_teacher = plan.teacher if adapt == "off" and self._start_adapt != "none" else {}
        guard = {name: value for name, value in plan.update_guard.items() if value is not None}
        return {
            "variant": plan.variant,
            "rounds": plan.rounds,
            "warm_start_steps": plan.warm_start_steps,
            **({"warm_start_held_out": plan.warm_start_held_out} if plan.warm_start_held_out else {}),
            "keep_optimizer": plan.keep_optimizer,
            "client": self.participants.config.content(),
            **({"evaluate": changes} if (changes := evaluation_changes(self.paths.bundle_root)) else {}),
            **self.participants.content(),
            "teacher": self.teacher.content() if adapt != "off" else None,
            **({"start_teacher": dict(start_teacher)} if start_teacher else {}),
            **({"privacy": stored_settings(plan.to_json()["privacy"])} if plan.privacy is not None else {}),
            **({"update_guard": guard} if guard else {}),
            **({"compression": plan.compression} if plan.compression != NONE else {}),
        }

    def _weight_hashes(self) -> dict[str, str]:
        hashes = {"start": self.start.sha256} if self.start is not None else {}
        hashes |= {"masks_from": sha256_bytes(self.student)} if self.student is not None else {}
        if self._start_adapt == "none" and (self.adapt == "off" or self.student is not None):
            return hashes
        if not self.paths.adapter and (sha256 := self.teacher.start_sha256) is not None:
            hashes["teacher_start"] = sha256
        adapter = {"adapter": sha256_file(self.paths.adapter)} if self.paths.adapter else {}
        return {**hashes, "sam": sha256_file(self.teacher.checkpoint()), **adapter}

    def _teach(self, server: RoundController, context: ProcessContext) -> tuple[dict[str, Any] | None, str | None]:
        """Finds or fits the teacher and sends it to the sites; returns its part of ``results.json`` and its SHA-256."""
        adapt, paths = self.adapt, self.paths
        if adapt == "off":
            return None, None
        teacher: Teacher | StudentTeacher
        file: Path | None
        sam: str | None
        with self.clock("teacher"):
            if paths.masks_from is not None and self.student is not None:
                file = self.teacher.store(self.student)
                teacher, sam = StudentTeacher.load(file, self.participants.config, self.teacher), None
                entry = {"model": Path(paths.masks_from).name, "size": teacher.size, "views": teacher.views}
            else:
                teacher = self.teacher.load(self.datalist, paths.data_root, adapt=adapt, adapter=paths.adapter)
                file, sam = self.teacher.file, sha256_file(self.teacher.checkpoint())
                entry = self.teacher.about(teacher, adapt)
        with self.clock("soft_masks"):
            tensors, extra = adapter_message(file, sam=sam, teacher=teacher.sha256)
            context.teacher = teacher
            server.send_teacher(tensors, extra)
            context.teacher = None  # frees its memory: the rounds do not need it
        return {**entry, **cost_of(teacher, teacher.size, infer=teacher.probabilities)}, teacher.sha256

    @cached_property
    def _start_adapt(self) -> str:
        """How the teacher whose trunk the networks start from is adapted; ``none`` if no network starts from one.

        A variant without SAM (``dp_only``, ``no_sam``, ``oracle``) starts as ``samfed`` does, so that variants in a
        comparison differ in what they learn from and not in their initial weights.
        """
        config = self.participants.config
        starts = any(map(takes_teacher, self.participants.all_networks))
        if self.start is not None or config.optional("encoder_weights") != TEACHER or not starts:
            return "none"
        plain = WorkflowConfig(self.paths.bundle_root, ("configs/train.json",), config.overrides)
        plain = plain.without_unknown_overrides()  # drops options of components that only this variant has
        adapt = self.adapt if self.adapt != "off" else str(plain.optional("teacher_adapt"))
        if not self.datalist.public and not self.paths.adapter:
            reason = "there are no public images to adapt a teacher to"
        elif adapt != "none" and self.teacher.base != BASE:
            reason = f"the teacher, a {self.teacher.base}, has another trunk"
        else:
            return "lora" if adapt == "off" else adapt
        logger.info("start: MobileSAM's own trunk; %s", reason)
        return "none"

    @cached_property
    def _trunk(self) -> Path | None:
        """The adapter of the teacher that the networks start from; fits it if there is none yet."""
        if (adapt := self._start_adapt) == "none":
            return None
        with self.clock("teacher"):
            return self.teacher.file or self.teacher.adapter(
                self.datalist, self.paths.data_root, adapt=adapt, adapter=self.paths.adapter
            )

    def _server(self, transport: Transport, folder: RunFolder) -> RoundController:
        """Returns the round controller; :meth:`_start_sites` sets the weights that its rounds start from."""
        plan, participants, strategy = self.plan, self.participants, self.participants.strategy
        noise = self.privacy.central_differential_privacy
        learned = participants.learned() if noise is not None else ()
        return RoundController(
            transport=transport,
            strategy=strategy,
            central=None if noise is None else CentralNoise(noise, strategy, learned=learned, folder=folder.path),
            folder=folder,
            rounds=plan.rounds,
            seed=plan.seed,
            unseen=participants.unseen,
            classes=participants.config.optional("classes") or (),
            skip_empty=self._convention["empty"] == "skipped",
            quorum=plan.quorum,
            timeout=plan.timeout,
            allow_single_site=plan.allow_single_site,
            compression=Compression.of(plan.compression),
        )

    def _start_sites(self, server: RoundController) -> None:
        """Runs the warm start and sets the initial weights of every site and of the server's strategy."""
        plan, participants = self.plan, self.participants
        if self.start is not None:
            steps = self._warm_steps or "no"
            logger.info("start: the weights of %s, then %s steps of warm start", self.start.name, steps)
        if self._warm_start_is_late:
            before = participants.strategy.rounds_before_warm_start
            logger.info("rounds 1 to %d come before the warm start: their Dice is that of untrained masks", before)
        with self.clock("warm_start"):
            starts, personal = {}, participants.config.optional("personal") or ()
            for name in participants.all_networks:
                weights = self._warm_weights(name, **({"steps": 0} if self._warm_start_is_late else {}))
                build = partial(build_network, participants.config, name, seed=None)
                starts[name] = Start.of(build, weights, personal=personal, seed=plan.seed)
            images = server.send_initial_weights(participants.first_weights(starts))
        first = starts.get(participants.server_network)
        server_side = participants.server(rounds=plan.rounds, seed=plan.seed, start=first, guard=self.guard)
        if self._warm_start_is_late:
            server_side = replace(server_side, warm_start=self._late_warm_start)
        strategy = participants.strategy.attach(server_side)
        if (secure := self.privacy.secure_aggregation) is not None:
            sum_file = server.folder.path / "secure_sum.json"
            server.secure = SecureServer(secure, strategy, server.transport, sum_file, timeout=plan.timeout)
        trained = self.start is not None or self._warm_steps > 0
        server.score_start = trained and not self._warm_start_is_late and not strategy.keeps_states
        server.counts = ImageCounts({site: n for site, n in images.items() if site in participants.sites}, self.guard)

    @property
    def _warm_start_is_late(self) -> bool:
        return self.participants.strategy.rounds_before_warm_start > 0

    def warm_start_config(self, network: str) -> tuple[WorkflowConfig, int]:
        """``train.json`` and steps of a network's warm start: the run's own, then the variant's ``warm_start``."""
        content = self.participants.config.parser().get()
        # applied on top of dp_only; "@id" is an option of the run
        warm_overrides = {key: resolve(content, value) for key, value in flat(content.get("warm_start") or {}).items()}
        steps = warm_overrides.pop("warm_start_steps", self.plan.warm_start_steps)
        declared = content.get("network_def")
        overrides = {**self.plan.train, **self.paths.overrides(), "network_name": network, "network_def": declared}
        return WorkflowConfig(self.paths.bundle_root, ("configs/train.json",), {**overrides, **warm_overrides}), steps

    @property
    def _warm_steps(self) -> int:
        """Warm-start steps of the server's network on the public images; 0 without such images."""
        return self.warm_start_config(self.participants.server_network)[1] if self.datalist.public else 0

    def _warm_weights(self, network: str, **replaced: Any) -> dict[str, Tensor]:
        """A network's weights after its warm start; ``replaced`` replaces arguments of :func:`warm_start`."""
        config, steps = self.warm_start_config(network)
        options: dict[str, Any] = {
            "datalist": self.datalist,
            "steps": steps,
            "seed": self.plan.seed,
            "cache_dir": self.paths.cache,
            "trunk": self._trunk if takes_teacher(network) else None,
            "held_out": self.plan.warm_start_held_out,
            **replaced,
        }
        initial = self.start.weights if self.start is not None and "initial_weights" not in replaced else {}
        if initial and not (options["steps"] and self.datalist.public):
            return initial
        options |= {"initial_weights": initial} if initial else {}
        return {**initial, **warm_start(config, **options)[0]}

    def _late_warm_start(self, weights_so_far: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Warm start of a run whose strategy starts with other rounds: continues from the weights of those."""
        with self.clock("warm_start"):
            weights = self._warm_weights(self.participants.server_network, initial_weights=weights_so_far)
        return {name: weights[name] for name in weights_so_far}


def versions() -> dict[str, str]:
    """Version by package, and Python's own; a package that is not installed is left out."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def require_no_paths_of_sites(paths: Paths) -> None:
    """Refuses paths of sites that run outside this process.

    Raises:
        Refused: with every such path.
    """
    expected, hint = "no path (paths are configured at each site)", "set it at the site"
    places = [f"federate.json -> sites#{site}#{name}" for site, ids in sorted(paths.sites.items()) for name in ids]
    require(Problem(where, "a path", expected, hint) for where in places)


def require_sites(transport: Transport, participants: Participants) -> None:
    """Refuses a transport whose sites are not exactly those of the run.

    Raises:
        Refused: with every site that is missing, and every client that is not named.
    """
    problems, planned, connected = Problems(), {*participants.sites, *participants.unseen}, set(transport.sites)
    for site in sorted(planned - connected):
        problems.add(f"site {site}", found="no client of that name", expected="a connected client")
    for site in sorted(connected - planned):
        expected, hint = "a site of the plan", "add it to federate.json -> sites, or remove it from the job"
        problems.add(f"site {site}", found="a client that the plan does not name", expected=expected, hint=hint)
    problems.refuse_if_any()


def _read_rules(plan: Plan) -> tuple[UpdateGuard, Privacy]:
    """Reads the limits of updates and the rules for outgoing data; all problems of both are refused at once."""
    problems = Problems()
    with problems.collected():
        guard = UpdateGuard.from_json(plan.update_guard)
    with problems.collected():
        privacy = Privacy.from_json(plan.privacy)
    problems.refuse_if_any()
    return guard, privacy


def plan_problems(
    plan: Plan,
    paths: Paths,
    participants: Participants | None,
    datalist: DataList | None,
    *,
    sites: int | None,
    build: bool = False,
) -> list[Problem]:
    """Problems that block a run of this plan, found before anything is written or sent.

    Args:
        plan, paths: of the run.
        participants: of the plan; ``None`` if they could not be made: only the plan itself is then checked.
        datalist: the frozen list; ``None`` skips checks of its images and labels.
        sites: number of sites that train; ``None`` if unknown.
        build: whether to also build the training components and the teacher's fit, which takes a second or so;
            networks that are SAM itself are not built, since that takes SAM's weights.
    """
    problems, privacy, guard = Problems(), Privacy(), UpdateGuard()
    with problems.collected():
        guard, privacy = _read_rules(plan)
    if build:
        with problems.collected():
            TeacherStage.of(plan, paths).dry_run(run_config(plan, paths).value("teacher_adapt"))
    problems.extend(_unreadable_files(paths))
    problems.extend(no_file_there("federate.json -> cache_dir", paths.cache))
    if participants is None:
        return list(problems)
    strategy, config = participants.strategy, participants.config
    with problems.collected():
        method = resolved_method(paths.bundle_root, plan.variant)
        require_possible(privacy, strategy, method, guard, rounds=plan.rounds, sites=sites)
    with problems.collected():
        strategy.require_rounds(plan.rounds)
    noise, sums = privacy.differential_privacy is not None, privacy.secure_aggregation is not None
    problems.extend(compression_problems(plan.compression, strategy, noise=noise, sums=sums))
    problems.extend(_exchange_problems(participants, paths.start_from))
    problems.extend(_mask_problems(config, paths.masks_from))
    problems.extend(class_problems(datalist or DataList("", [], classes=config.optional("classes") or []), config))
    if datalist is not None:
        for root in sorted({Path(own.get("data_root", paths.data_root)) for own in ({}, *paths.sites.values())}):
            problems.extend(among_images(datalist, root, paths.output_dir))
        problems.extend(no_public_images(datalist, supervised=participants.supervised))
        problems.extend(participants.label_problems(datalist, datalist.name))
    if sites is not None:
        problems.extend(quorum_problems(sites, plan.quorum, allow_single_site=plan.allow_single_site))
        with problems.collected():
            strategy.require_sites(participants.sites)
    if build and not any(is_sam(config, name) for name in participants.networks.values()):
        with problems.collected():
            participants.dry_run()
    return list(problems)


def _unreadable_files(paths: Paths) -> Problems:
    """Problems of the adapter, and of the models that the network starts from and that make the soft masks."""
    from samfed_monai.networks.sam.adapter import read_header

    problems = Problems()
    for name in ("adapter", "start_from", "masks_from"):
        read = read_header if name == "adapter" else partial(starting_file, where=f"federate.json -> {name}")
        if (source := getattr(paths, name)) is not None:
            with problems.collected():
                read(source)
    return problems


def _exchange_problems(participants: Participants, start_from: object) -> Iterator[Problem]:
    """Problems of sites that would send SAM's frozen weights, and of initial weights where sites share no network."""
    config, exchange = participants.config, participants.strategy.exchange
    for site, name in participants.networks.items() if exchange.answer is Kind.WEIGHTS and not exchange.alike else ():
        site_config = config.with_overrides(participants.overrides[site])
        if is_sam(site_config, name) and site_config.optional("network_def#full") is not True:
            found, expected = f"weights, with {name} at {site}", "predictions, as most of SAM never leaves a site"
            hint = "remove exchange, or give that site another network"
            yield Problem("train.json -> exchange", found, expected, hint)
    if start_from is not None and not (exchange.alike and exchange.server_model):
        expected = f"null with {type(participants.strategy).__name__}, as each site has its own network"
        hint = "remove it, or use a variant with one network"
        yield Problem("federate.json -> start_from", repr(str(start_from)), expected, hint)


def _mask_problems(config: WorkflowConfig, masks_from: object) -> Iterator[Problem]:
    """Problems of a run without a teacher: a model that would make masks, and a guide that reads them."""
    if config.value("teacher_adapt") != "off":
        return
    if masks_from is not None:
        expected, hint = "null, as this variant uses no soft masks", "remove it, or use another variant"
        yield Problem(MASKS_FROM, repr(str(masks_from)), expected, hint)
    stream = lookup(config.parser().get(), ("stream", "_disabled_")) is not True
    if stream and (guide := config.optional("soft_mask#masks_for")) is not None:
        found, expected = f"'off', with guides#{guide.name}", "a teacher, as that guide reads its masks"
        hint = "remove it, or use a variant without SAM, such as no_sam"
        yield Problem("train.json -> teacher_adapt", found, expected, hint)
