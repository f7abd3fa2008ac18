"""Initial weights of a federation: those of a bundle, a run or a file, and a warm start on the public images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from samfed_monai.config.variants import find_variant
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import safe_load, save_tensors, sha256_file
from samfed_monai.core.model_file import BASE_SAM, base_sam_of, read_header, setting_differences
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.tensor_file import checksum
from samfed_monai.core.training_state import own_random_state
from samfed_monai.core.validators import require
from samfed_monai.data import DataList, load_records, public_hash, split_public
from samfed_monai.data.datalist import SERVER
from samfed_monai.data.records import label_settings
from samfed_monai.federation.participants import Participants, build_network
from samfed_monai.federation.preparation import base_sam
from samfed_monai.federation.progress import Progress
from samfed_monai.federation.run_models import starting_file
from samfed_monai.federation.teacher import single_writer
from samfed_monai.federation.workflow import WorkflowConfig
from samfed_monai.handlers.model_loader import trained_weights
from samfed_monai.networks.key_patterns import network_split
from samfed_monai.networks.weights import known_weights, starts_from
from samfed_monai.teacher.evaluation import mean, within_one_standard_error

logger = logging.getLogger(__name__)

_EVALUATIONS = 6  # evaluations in a warm start: enough to see when scores fall, a few seconds each


@dataclass(frozen=True)
class StartingPoint:
    """Weights that a federation starts from.

    Args:
        name: its name in reports: a bundle, or the last part of a path.
        sha256: of the file.
        weights: names to tensors of the network, without frozen ones.
    """

    name: str
    sha256: str
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, source: str | Path, participants: Participants) -> StartingPoint:
        """Reads the weights, and checks that they fit the run's network and classes.

        The image size may differ: training adapts a network to its size.

        Args:
            source: name or folder of a bundle, folder of a finished run, or a weights file.
            participants: of the run.

        Raises:
            Refused: nothing of that name; another network, other classes, another SAM; a damaged file.
        """
        path, name = starting_file(source), participants.server_network
        settings = {"network_name": name, "classes": participants.config.optional("classes") or ["foreground"]}
        problems = setting_differences(path, settings)
        trained_on, sam_here = base_sam_of(path), participants.sam_fingerprint().get(BASE_SAM)
        if trained_on and sam_here not in (None, trained_on):
            found, expected = str(sam_here)[:12], f"{trained_on[:12]}, on which {path.name} was trained"
            problems.append(Problem("SAM's weights", found, expected, "install that checkpoint: samfed weights"))
        require(problems)
        network = build_network(participants.config, name)
        return cls(Path(source).expanduser().resolve().name, sha256_file(path), trained_weights(network, path))


def warm_start(
    config: WorkflowConfig,
    *,
    datalist: DataList,
    steps: int,
    seed: int,
    cache_dir: str | Path,
    trunk: Path | None = None,
    held_out: float = 0.0,
    initial_weights: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], str]:
    """Trains the client network on the public set for ``steps`` optimiser steps, or loads what it trained before.

    It runs the sites' ``train.json`` with the variant ``dp_only`` in place of the run's own, so that every variant of a
    comparison starts from the same weights.

    Args:
        config: the client's ``train.json`` with the run's overrides and its variant's settings of the warm start.
        datalist: the frozen list; only its public part is read.
        steps: optimiser steps; with 0, or without public images, the network keeps its initial weights of ``seed``.
        seed: the run's seed.
        cache_dir: folder of finished weights, by the hash of everything that determines them.
        trunk: an adapter whose trunk the network's encoder starts from, in place of its own ``encoder_weights``.
        held_out: fraction of the public images, whole groups at a time, that is not trained on and decides when to
            stop: the weights of the last evaluation that is as good as the best one are kept (within a standard error).
            The teacher's own fit with seed 0 holds out the same images.
            0 trains on all images for all steps.
        initial_weights: shared weights of the network to start from in place of those that it is built with: the result
            of rounds before the warm start.

    Returns:
        Names to tensors of the network, without frozen ones, and their fingerprint (hexadecimal).
    """
    config = config.with_files(str(find_variant(config.bundle_root, "dp_only"))).without_unknown_overrides()
    public = public_hash(datalist)
    steps = steps if datalist.public else 0
    sam = base_sam(config, config.value("network_name"))  # its frozen weights are not stored
    inputs: dict[str, Any] = label_settings(datalist) | ({} if sam is None else {"base_sam": sam})
    inputs |= {} if trunk is None else {"trunk": sha256_file(trunk)}
    inputs |= {"held_out": held_out} if held_out and steps else {}
    groups = [item.group for item in datalist.public]  # they decide which images are held out
    inputs |= {"groups": groups} if held_out and steps and any(groups) else {}
    inputs |= {} if trunk is not None else _encoder_hash(config)
    inputs |= {} if initial_weights is None else {"begin": checksum(initial_weights)}
    key = config.fingerprint(public=public, steps=steps, seed=seed, **inputs)
    path = Path(cache_dir) / "warm_start" / f"{key[:16]}.safetensors"
    with single_writer(path) as exists:
        if exists and (stored := read_header(path)).get("key") == key:  # a file of another warm start is replaced
            with suppress(Refused):
                weights = safe_load(path)
                if stored.get("checksum", known := checksum(weights)) == known:
                    if steps:
                        logger.info("warm start: reusing %s", path.name)
                    return weights, key
            logger.warning("warm start: %s is damaged and made again", path.name)
        if steps:
            logger.info("warm start: %d steps on %d public images", steps, len(datalist.public))
        elif not datalist.public:
            logger.info("warm start: none, the list has no public images")
        started = config if trunk is None else config.with_overrides({"encoder_weights": str(trunk)})
        judge = _HeldOut(datalist, started, held_out, path) if held_out and steps else None
        weights = _train(started, steps, seed, judge, initial_weights)
        about = {"steps": str(steps), "seed": str(seed), "public": public, "key": key}
        save_tensors(path, weights, {**about, "checksum": checksum(weights)})
    return weights, key


def _encoder_hash(config: WorkflowConfig) -> dict[str, str]:
    """Hash of a user's own file that the encoder starts from; empty for weights given by name."""
    start = starts_from(config.value("network_name"), config.optional("encoder_weights"))
    return {} if start is None or known_weights(str(start)) is not None else {"encoder": sha256_file(start)}


class _HeldOut:
    """Evaluates on held-out public images at intervals, and keeps the last weights that are as good as the best.

    Args:
        datalist: its public part is divided.
        config: names the folder of the images.
        fraction: part that is held out.
        file: file beside which the list without the held-out images is written.
    """

    def __init__(self, datalist: DataList, config: WorkflowConfig, fraction: float, file: Path) -> None:
        public = load_records(datalist, config.overrides.get("data_root", "."), split="public")
        try:
            _, self.records = split_public(public, fraction, 0)
        except Refused:  # one group of images cannot be divided
            logger.info("warm start: the public images are one group, so none is held out and all steps are kept")
            self.records = []
        held_out_hashes = {record["image_sha256"] for record in self.records}
        remaining = replace(datalist, public=[item for item in datalist.public if item.sha256 not in held_out_hashes])
        self.path = file.with_suffix(".datalist.json")
        remaining.save(self.path)
        self.best: list[float] = []
        self.kept: dict[str, Tensor] = {}
        self.step = 0

    def attach(self, trainer: Any, parser: Any, steps: int) -> None:
        """Binds to a trainer that takes ``steps`` steps, with the evaluator of the same bundle."""
        if not self.records:
            return
        from ignite.engine import Events
        from monai.data import DataLoader, Dataset

        evaluator = parser.get_parsed_content("validate#evaluator")
        preprocessing = parser.get_parsed_content("validate#preprocessing")
        batch = parser.get_parsed_content("batch_size")
        loader = DataLoader(Dataset(self.records, preprocessing), batch_size=batch, num_workers=0)

        def evaluate(engine: Any) -> None:
            evaluator.data_loader, evaluator.state.epoch_length = loader, len(loader)
            evaluator.run()
            scores = [row["dice"] for row in evaluator.state.scores]
            if not self.best or mean(scores) > mean(self.best):
                self.best = scores
            if within_one_standard_error(scores, self.best):
                self.step = engine.state.iteration
                self.kept = {name: value.detach().clone() for name, value in engine.network.state_dict().items()}

        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=max(1, steps // _EVALUATIONS)), evaluate)


def _train(
    config: WorkflowConfig, steps: int, seed: int, judge: _HeldOut | None, initial: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    from monai.networks.utils import get_state_dict

    overrides = {"site": SERVER, "local_steps": max(steps, 1), "epochs": 1, "seed": seed, "standalone": {}}
    overrides |= {"datalist": str(judge.path)} if judge else {}
    with own_random_state(derive_seed(seed, SERVER, "initialisation")):
        workflow = config.with_overrides(overrides).workflow("train")
        workflow.initialize()
        trainer = workflow.trainer
        if initial is not None:
            trainer.network.load_state_dict(dict(initial), strict=False)
        if judge:
            judge.attach(trainer, workflow.parser, steps)
        if steps:
            with Progress().iterations(trainer):
                trainer.run()
        if judge and judge.kept:
            trainer.network.load_state_dict(judge.kept)
            numbers = judge.step, steps, mean(judge.best), len(judge.records)
            logger.info("warm start: step %d of %d is kept; best Dice %.3f on %d held-out public images", *numbers)
        frozen = set(network_split(trainer.network).frozen)  # from a checkpoint that every machine has
        state = get_state_dict(trainer.network)
        weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if name not in frozen}
        workflow.finalize()
    return weights
