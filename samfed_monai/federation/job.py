"""The main job: from a data list to ``results.json``, with everything that exists already reused by hash."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.config.ids import flat
from samfed_monai.data import DataList
from samfed_monai.federation.clip import UpdateGuard
from samfed_monai.federation.controller import RoundController, RunResult
from samfed_monai.federation.local_transport import LocalTransport
from samfed_monai.federation.run_folder import RunFolder
from samfed_monai.federation.stages.cast import Cast
from samfed_monai.federation.stages.clients import make_clients, make_evaluators
from samfed_monai.federation.stages.data_check import check_data
from samfed_monai.federation.stages.outcome import model_hashes, outcome
from samfed_monai.federation.stages.provenance import versions
from samfed_monai.federation.stages.soft_masks import SiteMasks
from samfed_monai.federation.stages.teacher import TeacherStage
from samfed_monai.federation.stages.warm_start import warm_start
from samfed_monai.federation.stages.workflow_config import WorkflowConfig, client_config
from samfed_monai.io import sha256_file, write_json
from samfed_monai.results import build_results

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.networks import Teacher

logger = logging.getLogger(__name__)

SPLITS = ("validation", "test")
RESUME = "type the same command again"


class FederatedJob:
    """Check, warm start, teacher, soft masks, rounds, evaluation, in this order, in one process.

    Args:
        bundle_root: folder of the bundle.
        datalist: file made by ``samfed prepare``.
        data_root: folder that the list's paths are relative to.
        output_dir: the run's folder.
        rounds: federated rounds.
        cache_dir: adapters, soft masks and warm starts, shared by runs; ``None`` is ``<output_dir>/cache``.
        variant: an override file of ``configs/variants``.
        seed: of everything but the teacher, which has its own (``teacher#seed``).
        warm_start_steps: optimiser steps on the public set before round 0.
        adapter: an adapter to use as it is; ``None`` fits one, or finds the one that was fitted before.
        client: ids of ``train.json`` to values.
        teacher: ids of ``teacher.json`` to values.
        sites: site to its own choices: ``network`` (a name of the catalogue) and ids of ``train.json``.
        unseen: sites of the list that take no part and are evaluated at the end; a site without unlabelled images is
            one in any case.
        keep_optimizer: keep each site's optimizer moments from round to round.
        update_guard: arguments of :class:`UpdateGuard`, which limits the norm of updates; ``None`` is its defaults.
        quorum: sites that must answer in a round; ``None`` is more than half.
        timeout: seconds that a round may take; ``None`` waits.
        allow_single_site: permit a federation of one site.

    Example::

        {"_target_": "samfed_monai.federation.FederatedJob", "bundle_root": "@bundle_root", "rounds": "@rounds", ...}
    """

    def __init__(
        self,
        *,
        bundle_root: str | Path,
        datalist: str | Path,
        data_root: str | Path,
        output_dir: str | Path,
        rounds: int,
        cache_dir: str | Path | None = None,
        variant: str = "samfed",
        seed: int = 0,
        warm_start_steps: int = 300,
        adapter: str | Path | None = None,
        client: Mapping[str, Any] | None = None,
        teacher: Mapping[str, Any] | None = None,
        sites: Mapping[str, Mapping[str, Any]] | None = None,
        unseen: Sequence[str] = (),
        keep_optimizer: bool = True,
        update_guard: Mapping[str, Any] | None = None,
        quorum: int | None = None,
        timeout: float | None = None,
        allow_single_site: bool = False,
    ) -> None:
        self.bundle_root, self.datalist_file, self.data_root = Path(bundle_root), Path(datalist), Path(data_root)
        self.output_dir = Path(output_dir)
        self.cache_dir = Path(cache_dir) if cache_dir else self.output_dir / "cache"
        self.rounds, self.variant, self.seed, self.warm_start_steps = rounds, variant, seed, warm_start_steps
        self.adapter, self.keep_optimizer = adapter, keep_optimizer
        self.site_choices, self.unseen = {site: flat(choice) for site, choice in (sites or {}).items()}, tuple(unseen)
        self.guard = UpdateGuard(**dict(update_guard or {}))
        self.quorum, self.timeout, self.allow_single_site = quorum, timeout, allow_single_site
        places = {"datalist": str(datalist), "data_root": str(data_root), "bundle_root": str(bundle_root)}
        self.client_overrides = {**flat(client or {}), **places, "output_dir": str(self.output_dir)}
        self.teacher = TeacherStage(self.bundle_root, flat(teacher or {}), self.cache_dir)
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Runs what is left to do and writes ``results.json``.

        Returns:
            The content of ``results.json`` (``docs/results-schema.md``).

        Raises:
            Refused: bad input; nothing was computed.
            Stopped: half-way, with the last complete round kept.
        """
        started = time.perf_counter()
        datalist = DataList.load(self.datalist_file)
        config = client_config(self.bundle_root, self.variant, self.client_overrides)
        cast = Cast(config, datalist, choices=self.site_choices, unseen=self.unseen)
        adapt = config.value("teacher_adapt")
        hashes = {"datalist": datalist.hash}
        if adapt != "off":
            hashes["sam"] = sha256_file(self.teacher.checkpoint())
            if self.adapter:
                hashes["adapter"] = sha256_file(self.adapter)
        folder = RunFolder(self.output_dir)
        settings = {
            "variant": self.variant,
            "rounds": self.rounds,
            "warm_start_steps": self.warm_start_steps,
            "keep_optimizer": self.keep_optimizer,
            "client": config.content(),
            **cast.content(),
            "teacher": self.teacher.content() if adapt != "off" else None,
        }
        seeds = {"seed": self.seed}
        with folder.open(settings, versions=versions(), hashes=hashes, seeds=seeds):
            check_data(datalist, self.data_root, cache_dir=self.cache_dir)
            teacher, masks = self._teacher(datalist, adapt)
            result = self._federate(folder, datalist, cast, teacher, masks)
            results = build_results(
                variant=self.variant,
                rounds=self.rounds,
                **outcome(result, cast),
                teacher_scores=masks.teacher_scores(teacher.sha256, config, SPLITS) if teacher else None,
                teacher=self.teacher.about(teacher, adapt) if teacher else None,
                seconds={**result.seconds, **self.seconds, "total": time.perf_counter() - started},
                hashes={**hashes, "teacher": teacher.sha256 if teacher else None, **model_hashes(result)},
                versions=versions(),
                seeds=seeds,
                convention=config.parser().get_parsed_content("validate#scores").convention,
                command=shlex.join(sys.argv),
            )
            write_json(self.output_dir / "results.json", results)
        return results

    def _teacher(self, datalist: DataList, adapt: str) -> tuple[Teacher | None, SiteMasks]:
        masks = SiteMasks(self.cache_dir, datalist, self.data_root)
        if adapt == "off":
            return None, masks
        with self._timed("teacher"):
            teacher = self.teacher.load(datalist, self.data_root, adapt=adapt, adapter=self.adapter)
        with self._timed("soft_masks"):
            masks.fill(teacher, ("unlabelled", *SPLITS))
        return teacher, masks

    def _federate(
        self, folder: RunFolder, datalist: DataList, cast: Cast, teacher: Teacher | None, masks: SiteMasks
    ) -> RunResult:
        with self._timed("warm_start"):
            starts = {name: self._warm_start(datalist, name) for name in cast.all_networks}

        def of_site(site: str) -> dict[str, Any]:
            stored = {"store_dir": str(masks.store_dir(site)), "teacher_sha256": teacher.sha256} if teacher else {}
            return {**stored, **cast.overrides[site], "network_name": cast.networks[site]}

        evaluation = self.output_dir / "evaluation"
        clients = make_clients(
            cast.config,
            list(cast.sites),
            seed=self.seed,
            output_dir=evaluation,
            of_site=of_site,
            keep_optimizer=self.keep_optimizer,
        )
        for site, client in clients.items():
            client.load_network(starts[cast.networks[site]])
        others = make_evaluators(cast.at_server(), list(cast.unseen), seed=self.seed, output_dir=evaluation)
        server = cast.server(
            rounds=self.rounds, seed=self.seed, weights=starts.get(cast.server_network, {}), guard=self.guard
        )
        controller = RoundController(
            transport=LocalTransport({**clients, **others}),
            strategy=cast.strategy.attach(server),
            folder=folder,
            rounds=self.rounds,
            seed=self.seed,
            splits=SPLITS,
            unseen=cast.unseen,
            resume_hint=RESUME,
            quorum=self.quorum,
            timeout=self.timeout,
            allow_single_site=self.allow_single_site,
        )
        result = controller.run()
        for client in (*clients.values(), *others.values()):
            client.finalize()
        return result

    def _warm_start(self, datalist: DataList, network: str) -> dict[str, Tensor]:
        overrides = {**self.client_overrides, "network_name": network}
        config = WorkflowConfig(self.bundle_root, ("configs/train.json",), overrides)
        weights, _ = warm_start(
            config, datalist=datalist, steps=self.warm_start_steps, seed=self.seed, cache_dir=self.cache_dir
        )
        return weights

    @contextmanager
    def _timed(self, activity: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[activity] = time.perf_counter() - started
