"""``FederatedJob``, the job that ``federate.json`` names, and checks of a job before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from samfed_monai.config.ids import check_override_ids
from samfed_monai.config.options import pairs_for_monai
from samfed_monai.config.overrides import normal_ids
from samfed_monai.config.parse import COMMAND_LINE, BundleConfig
from samfed_monai.config.variants import variant_files
from samfed_monai.config.workflow import training_values_of_command, unwrapped
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.validators import require
from samfed_monai.data import DataList
from samfed_monai.data.classes import class_mismatch
from samfed_monai.federation.participants import NETWORK, Participants, dry_run
from samfed_monai.federation.plan import Paths, Plan, split_paths
from samfed_monai.federation.preparation import is_sam
from samfed_monai.federation.run import Run, plan_problems
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.federation.workflow import WorkflowConfig
from samfed_monai.privacy import Privacy, unsent_rules
from samfed_monai.protocol.transport import Transport


def job_of(bundle_root: Path, overrides: Mapping[str, Any]) -> tuple[FederatedJob, Any]:
    """Builds the job of ``federate.json`` with command-line values on top; returns it and its MONAI ``ConfigParser``.

    Raises:
        Refused: a value that the job does not accept.
    """
    from samfed_monai.config.monai_parser import ConfigParser

    given = {"bundle_root": str(bundle_root), **normal_ids(dict(overrides))}
    config, parser = BundleConfig.of_workflow(bundle_root, "federate", given), ConfigParser()
    parser.read_config([str(path) for path in config.files])
    parser.update(pairs=pairs_for_monai(config))
    with unwrapped(parser):
        return parser.get_parsed_content("job"), parser


class FederatedJob:
    """Runs a federation over any transport: check, teacher, soft masks, warm start, rounds, evaluation, in this order.

    Args:
        bundle_root: folder of the bundle.
        datalist: file made by ``samfed prepare``.
        data_root: folder that the list's paths are relative to.
        output_dir: the run's folder.
        rounds: number of federated rounds.
        cache_dir: folder of adapters, soft masks and warm starts, shared by runs; ``None`` is ``<output_dir>/cache``.
        variant: name of a variant of the package, or of the bundle's ``configs/variants``.
        seed: random seed of everything except the teacher, which has its own (``teacher#seed``).
        warm_start_steps: optimiser steps on the public set before round 0; 0 unless the bundle sets a number.
        warm_start_held_out: fraction of the public images, in [0, 1), that the warm start does not train on and uses to
            select its weights; 0 takes the last weights.
        adapter: an adapter to use as it is; ``None`` fits one, or reuses one that was fitted before.
        start_from: initial weights of the network: a bundle (name or folder), a finished run's folder or a weights
            file; the warm start continues from them. ``None`` builds a new network.
        masks_from: a model, named as for ``start_from``, that makes the soft masks of the sites' images in place of
            SAM: the student of an earlier run, for a second generation. ``None`` uses SAM.
        train: overrides of ``train.json``, ids to values; ``None`` takes those set by ``federate.json`` and by the
            command line of ``python -m monai.bundle run``, if that started the job.
        teacher: overrides of ``teacher.json``, ids to values.
        sites: site to its own overrides: ``network`` (a name of the catalogue) and ids of ``train.json``.
        unseen: sites of the list that do not train and are evaluated at the end; a site without unlabelled images is
            always one of them.
        keep_optimizer: keep each site's optimizer moments from round to round.
        update_guard: arguments of :class:`UpdateGuard`, which limits the norm of updates and, if asked for, a site's
            share of the mean; ``None`` takes its defaults.
        quorum: number of sites that must reply in a round; ``None`` is more than half.
        timeout: seconds that a round may take; ``None`` sets no limit.
        allow_single_site: permit a federation of one site.
        privacy: rules for outgoing data, see ``docs/privacy.md``; ``None`` takes the package's defaults.
        compression: encoding of sent weights: ``float32`` (uncompressed), ``bfloat16``, ``int8``, or the rank of their
            differences.
        workers: number of processes that run sites in parallel; 1 runs them one after the other in this process,
            ``"auto"`` takes one per site, at most one per core. Only the last bits of results depend on it, through
            the number of threads; a run may be resumed with another number. Not used with a given transport.
        verify: hash every image again, even if its size and date are unchanged since the last check.

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
        warm_start_steps: int = 0,
        warm_start_held_out: float = 0.0,
        adapter: str | Path | None = None,
        start_from: str | Path | None = None,
        masks_from: str | Path | None = None,
        train: Mapping[str, Any] | None = None,
        teacher: Mapping[str, Any] | None = None,
        sites: Mapping[str, Mapping[str, Any]] | None = None,
        unseen: Sequence[str] = (),
        keep_optimizer: bool = True,
        update_guard: Mapping[str, Any] | None = None,
        quorum: int | None = None,
        timeout: float | None = None,
        allow_single_site: bool = False,
        privacy: Mapping[str, Any] | None = None,
        compression: str | int = "float32",
        workers: int | str = 1,
        verify: bool = False,
    ) -> None:
        given = {**locals(), "update_guard": dict(update_guard or {})}
        train_settings, train_paths = split_paths(training_values_of_command(bundle_root) if train is None else train)
        teacher_settings, teacher_paths = split_paths(teacher or {})
        choices = {site: split_paths(choice) for site, choice in (sites or {}).items()}
        split = {"bundle", "train", "teacher", "sites"}
        settings = {each.name: given[each.name] for each in fields(Plan) if each.name not in split}
        machine_settings = {each.name: given[each.name] for each in fields(Paths) if each.name not in split}
        #: All settings that decide the result; sites receive it with every site named (:meth:`Participants.resolve`).
        self.plan = Plan(
            bundle=Path(bundle_root).resolve().name,
            train=train_settings,
            teacher=teacher_settings,
            sites={site: choice for site, (choice, _) in choices.items()},
            **settings,
        )
        #: Paths on this machine.
        self.paths = Paths(
            train=train_paths,
            teacher=teacher_paths,
            sites={site: site_paths for site, (_, site_paths) in choices.items() if site_paths},
            **machine_settings,
        )
        training = train_settings | train_paths
        of_sites = [settings | paths for settings, paths in choices.values() if settings or paths]
        all_training = [training, *(training | own for own in of_sites)]
        problems = [each for values in all_training for each in _unknown_ids(self.paths, "train", values, variant)]
        require(dict.fromkeys([*problems, *_unknown_ids(self.paths, "teacher", teacher_settings | teacher_paths)]))

    def run(self, transport: Callable[[Plan], Transport] | None = None) -> dict[str, Any]:
        """Runs the job, or what is left of it, and writes ``results.json``.

        Args:
            transport: makes the transport from the plan with every site named; its sites set themselves up from that
                plan (:class:`Site`), and only the public images of the list are read here. ``None`` runs all sites on
                this machine.

        Returns:
            The content of ``results.json`` (``docs/results-schema.md``).

        Raises:
            Refused: bad input, here or at a site; no round was computed.
            Stopped: part of the way, with the last complete round kept.
        """
        return Run(self.plan, self.paths).run(transport)


def _unknown_ids(paths: Paths, workflow: str, ids: Mapping[str, Any], variant: str | None = None) -> Iterator[Problem]:
    """Yields a problem for each override of an id that the bundle does not have, which the run would ignore."""
    values = {name: value for name, value in ids.items() if name != NETWORK}
    config = BundleConfig.of_workflow(paths.bundle_root, workflow, values, variant=variant)
    for problem in check_override_ids(config, lazy=True):
        layer, _, name = problem.where.partition(" -> ")
        if layer == COMMAND_LINE:
            yield replace(problem, where=f"FederatedJob -> {name}")


class JobCheck(NamedTuple):
    """Errors that block a run, and settings that it ignores: rules for statistics that its variant does not send.

    Notes are not errors; there are none if there are problems.
    """

    problems: list[Problem]
    notes: list[Problem]


def check_job(
    bundle_root: str | Path, overrides: Mapping[str, Any], datalist: DataList | None, *, build: bool = True
) -> JobCheck:
    """Checks a run of ``federate.json`` without data, and whether its components can be built.

    Components of the bundle are instantiated, so use it only for bundles without code (``samfed check --strict``) or
    bundles that are run anyway.

    Args:
        bundle_root: folder of a bundle in which :func:`samfed_monai.config.check_bundle` found no problem.
        overrides: ids of ``federate.json`` to values.
        datalist: the frozen list; ``None`` takes the sites of ``federate.json``, or assumes one site.
        build: as in :func:`plan_problems`.
    """
    try:
        job, _ = job_of(Path(bundle_root), overrides)
    except Refused as refused:
        return JobCheck(refused.problems, [])
    plan, paths, problems, participants = job.plan, job.paths, Problems(), None
    if datalist is None and not plan.sites:
        plan = replace(plan, sites={"a site": {}})
    with problems.collected():
        participants = Participants.of(plan, paths, datalist or DataList("", []))
    sites = len(participants.sites) if datalist is not None and participants is not None else None
    problems.extend(plan_problems(plan, paths, participants, datalist, sites=sites, build=build))
    if problems or participants is None:
        return JobCheck(list(dict.fromkeys(problems)), [])
    return JobCheck([], unsent_rules(Privacy.from_json(plan.privacy), participants.strategy, plan.variant))


def check_training(
    bundle_root: str | Path, overrides: Mapping[str, Any], variant: str | None = None, datalist: DataList | None = None
) -> list[Problem]:
    """Checks the classes and the training components of ``train.json``; see :func:`check_job`.

    Args:
        bundle_root: folder of a bundle in which :func:`samfed_monai.config.check_bundle` found no problem.
        overrides: ids to values.
        variant: name of a variant; ``None`` is the bundle without one.
        datalist: the frozen list; ``None`` skips the comparison of classes.
    """
    files, problems = variant_files(bundle_root, variant) if variant is not None else [], Problems()
    config = WorkflowConfig(Path(bundle_root), ("configs/train.json", *map(str, files)), normal_ids(dict(overrides)))
    name, classes = str(config.optional("network_name")), config.optional("classes")
    problems.extend(class_mismatch(datalist.classes, classes, f"{datalist.name} -> classes") if datalist else ())
    with problems.collected():
        if config.optional_id("network_def") and not is_sam(config, name):
            dry_run(config, {"the site": name}, {})
    return list(problems)


def check_fit(bundle_root: str | Path, overrides: Mapping[str, Any]) -> list[Problem]:
    """Checks the components of ``teacher.json``, and its ``start_from``; see :func:`check_job`."""
    stage, problems = TeacherStage(Path(bundle_root), normal_ids(dict(overrides)), Path(bundle_root)), Problems()
    with problems.collected():
        stage.dry_run(stage.config.value("adapt"))
    return list(problems)
