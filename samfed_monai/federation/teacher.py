"""The teacher of a run: SAM with a given or fitted adapter, or a trained network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samfed_monai.core import tensor_file
from samfed_monai.core.errors import refused
from samfed_monai.core.io import canonical_hash, locked, read_json, sha256_bytes, sha256_file, write_bytes
from samfed_monai.core.model_file import (
    ARGUMENTS,
    SETTINGS,
    full_header,
    network_overrides,
    setting_differences,
    settings_of,
)
from samfed_monai.core.process_setup import best_device
from samfed_monai.core.validators import require, switch
from samfed_monai.data import DataList, public_hash
from samfed_monai.data.records import label_settings
from samfed_monai.data.soft_masks import resize_probabilities
from samfed_monai.federation.participants import Participants, build_network
from samfed_monai.federation.preparation import is_sam
from samfed_monai.federation.run_models import starting_file
from samfed_monai.federation.workflow import EVALUATION, PATHS, WorkflowConfig
from samfed_monai.handlers.model_loader import trained_weights
from samfed_monai.networks.inferer import Switch, autocast, bf16_possible, mean_of_views
from samfed_monai.networks.sam.build import MASK_STRIDE, inner_size

if TYPE_CHECKING:
    from samfed_monai.federation.plan import Paths, Plan
    from samfed_monai.networks import Teacher

logger = logging.getLogger(__name__)


@contextmanager
def single_writer(path: str | Path) -> Iterator[bool]:
    """Holds a lock on ``path`` inside the block; yields whether the path exists already.

    On a platform without locks, two runs may make the same file twice, which only costs time.

    Example::

        with single_writer(path) as exists:
            if not exists:
                make(path)
    """
    with locked(path, waiting=lambda: logger.info("another run is making %s; waiting for it", Path(path).name)):
        yield Path(path).exists()


TEST_TIME = frozenset(("views", "evaluate_on", "evaluate_limit", "progress", "score"))
"""Ids of ``teacher.json`` for the use and evaluation of an adapter, which do not change the adapter itself."""


@dataclass
class TeacherStage:
    """Finds or fits the adapter with the bundle's own ``teacher.json``, and loads the frozen teacher.

    Args:
        bundle_root: folder of the bundle; its ``models/`` is searched for SAM's checkpoint first.
        overrides: ids of ``teacher.json`` to values, from ``federate.json -> teacher``.
        cache_dir: fitted adapters are kept here by the hash of everything that determines them.
    """

    bundle_root: Path
    overrides: Mapping[str, Any]
    cache_dir: Path
    #: The adapter that was loaded last; ``None`` for SAM without one.
    file: Path | None = field(default=None, init=False)
    _fit_record: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, plan: Plan, paths: Paths) -> TeacherStage:
        """Builds the stage of a plan on this machine."""
        return cls(paths.bundle_root, {**plan.teacher, **paths.teacher}, paths.cache)

    @property
    def config(self) -> WorkflowConfig:
        """The bundle's ``teacher.json`` with the run's values."""
        return WorkflowConfig(self.bundle_root, ("configs/teacher.json",), dict(self.overrides))

    @property
    def base(self) -> str:
        """Name of the SAM."""
        return str(self.config.value("base"))

    @property
    def bf16(self) -> Switch:
        """Whether masks are made in bfloat16."""
        return "auto" if (bf16 := self.config.optional("bf16")) is None else bf16

    def store(self, content: bytes) -> Path:
        """Stores bytes that the server sends to the sites in the cache, named by their hash; returns the file."""
        sha256 = sha256_bytes(content)
        path = self.cache_dir / "adapters" / f"{sha256}.safetensors"
        if not path.is_file() or sha256_file(path) != sha256:
            write_bytes(path, content)
        return path

    def content(self) -> dict[str, Any]:
        """The recipe as JSON content, without paths."""
        content = self.config.content()
        if content.get("score") is True:  # the default, and the behaviour of runs before this option existed
            del content["score"]
        return content

    @property
    def start_sha256(self) -> str | None:
        """SHA-256 of the adapter that the fit starts from; ``None`` if it starts from SAM without one."""
        start = self.config.optional("start_from")
        return None if start is None else sha256_file(start)

    @property
    def scored(self) -> tuple[str, ...]:
        """Splits of the sites on which the teacher itself is scored, for its row in tables."""
        return () if self.config.optional("score") is False else ("test",)

    def about(self, teacher: Teacher, adapt: str) -> dict[str, Any]:
        """Entry of reports on the teacher; ``after`` and ``start`` are those that the fit of its adapter recorded."""
        used = {"size": teacher.size, "views": teacher.views, **({} if self.scored else {"score": False})}
        return {"adapt": adapt, "base": self.base, **used, **self._fit_record}

    def dry_run(self, adapt: str) -> None:
        """Builds the fit without images and without weights, so that invalid settings are refused before any work.

        Args:
            adapt: as in :meth:`load`; ``off`` means no teacher.

        Raises:
            Refused: ``score`` is not a switch, or :class:`~samfed_monai.teacher.TeacherFit` does not accept a setting
                of ``teacher.json``.
        """
        if adapt == "off":
            return
        if (score := self.config.optional("score")) is not None:
            require(switch("teacher -> score", score))
        if self.config.optional_id("fit"):
            from samfed_monai.bundle.images import check_public_limit

            check_public_limit(self.config.optional("public_limit"))
            records = [{"label": ""}]
            given = {"train_records": records, "held_out_records": records, "test_records": {}, "datalist_hash": ""}
            pairs = {f"fit#{name}": value for name, value in given.items()}
            self.config.with_overrides({**pairs, "adapt": adapt, "checkpoint": "unread"}).value("fit")

    def checkpoint(self) -> Path:
        """Path of SAM's checkpoint.

        Raises:
            Refused: it is neither in the bundle's ``models/`` nor in the weights folder; the message has the command.
        """
        from samfed_monai.networks import find_checkpoint

        given = self.config.value("checkpoint")
        return Path(given) if given else find_checkpoint(self.base, self.bundle_root)

    def load(self, datalist: DataList, data_root: str | Path, *, adapt: str, adapter: str | Path | None) -> Teacher:
        """Loads the frozen teacher; fits its adapter first if there is none.

        Args:
            datalist: the adapter is fitted on its public part.
            data_root: folder that the list's paths are relative to.
            adapt: ``lora``, ``decoder`` or ``none`` (SAM without an adapter).
            adapter: path of an adapter to use as it is, or ``None``; ignored with ``adapt`` ``none``, so that one
                command can compare runs with and without an adapted SAM.
        """
        return self.fitted(self.adapter(datalist, data_root, adapt=adapt, adapter=adapter))

    def adapter(
        self, datalist: DataList, data_root: str | Path, *, adapt: str, adapter: str | Path | None
    ) -> Path | None:
        """The adapter file of :meth:`load`, fitted first if there is none; ``None`` for SAM without an adapter."""
        from samfed_monai.networks.sam.adapter import read_header

        checkpoint = self.checkpoint()
        if adapt == "none":
            if adapter:
                logger.info("teacher: the original SAM (teacher_adapt is none); the given adapter is ignored")
            return None
        if not adapter:
            return self._fit(datalist, data_root, adapt=adapt, checkpoint=checkpoint)
        self._fit_record["adapt"] = read_header(Path(adapter)).adapt.value  # of the file, whatever the bundle's setting
        return Path(adapter)

    def fitted(self, adapter: Path | None) -> Teacher:
        """Loads a teacher from its adapter file, which must match this ``base``, its weights and this ``size``.

        Raises:
            Refused: another SAM or size, damaged tensors.
        """
        from samfed_monai.networks import Teacher

        self.file = adapter
        self._fit_record |= {} if adapter is None else _read_fit_record(adapter)
        config = self.config
        return Teacher.load(
            base=self.base,
            checkpoint=self.checkpoint(),
            adapter=adapter,
            size=config.value("size"),
            views=config.value("views"),
            bf16=self.bf16,
            device=best_device(),
        )

    def _fit(self, datalist: DataList, data_root: str | Path, *, adapt: str, checkpoint: Path) -> Path:
        config = self.config.with_overrides({"adapt": adapt})
        about = {"config": config.content(without=PATHS | EVALUATION | TEST_TIME), "public": public_hash(datalist)}
        about |= {"checkpoint": sha256_file(checkpoint), **label_settings(datalist)}
        groups = [item.group for item in datalist.public]  # they decide which images are held out
        about |= {} if (sha256 := self.start_sha256) is None else {"start_from": sha256}
        key = canonical_hash(about | ({"groups": groups} if any(groups) else {}))
        path = self.cache_dir / "teacher" / f"{key[:16]}.safetensors"
        with single_writer(path) as exists:
            if exists:
                logger.info("teacher: reusing adapter %s", path.name)
            # an interrupted fit has no record yet, and a file of another fit has another one: the fit refuses that file
            if not exists or self.overrides.get("evaluate_on") or not _read_fit_record(path):
                self._run(config, datalist, data_root, checkpoint=checkpoint, output=path)
        return path

    def _run(
        self, config: WorkflowConfig, datalist: DataList, data_root: str | Path, *, checkpoint: Path, output: Path
    ) -> None:
        from samfed_monai.networks.sam.adapter import read_header

        part = output.with_suffix(".datalist.json")
        datalist.save(part)
        paths = {"bundle_root": self.bundle_root, "datalist": part, "data_root": data_root, "checkpoint": checkpoint}
        overrides: dict[str, Any] = {name: str(path) for name, path in {**paths, "output": output}.items()}
        overrides["evaluate_on"] = config.overrides.get("evaluate_on")
        if output.exists():  # keeps a fit of the same public images, even if the rest of its list differs
            overrides["fit#datalist_hash"] = read_header(output).fit.get("datalist_hash", "")
        workflow = config.with_overrides(overrides).workflow(None)
        workflow.initialize()
        workflow.run()
        workflow.finalize()


def _read_fit_record(adapter: Path) -> dict[str, Any]:
    """Dice by image set, from the file that a fit writes beside its adapter."""
    record_file = adapter.with_suffix(".fit.json")
    record = read_json(record_file) if record_file.is_file() else {}
    if not record or record.get("sha256") != sha256_file(adapter):
        return {}
    return {name: record[name] for name in ("after", "start") if name in record}


MASKS_FROM = "federate.json -> masks_from"


class StudentTeacher(nn.Module):
    """A trained network as a teacher: its mean probability over test-time views, in masks of a teacher's size.

    Args:
        network: images ``(B, 3, S, S)`` float in [0, 1] to logits ``(B, C, S, S)``.
        weights_sha256: of the weights file; with ``size`` and ``views`` it identifies the masks.
        image_size: S, pixels.
        size: the longer side of a mask has ``size / 4`` pixels, as for a teacher with an input of ``size`` pixels.
        views: 1, 2, 4 or 8.
        bf16: bfloat16 for the network; it does not identify the masks.
    """

    def __init__(
        self, network: nn.Module, *, weights_sha256: str, image_size: int, size: int, views: int, bf16: Switch = "auto"
    ) -> None:
        super().__init__()
        self.network, self.image_size, self.size, self.views, self.bf16 = network, image_size, size, views, bf16
        self.sha256 = canonical_hash({"student": weights_sha256, "size": size, "views": views})
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path, config: WorkflowConfig, stage: TeacherStage) -> StudentTeacher:
        """Builds the network that a file's header names, and loads its weights.

        Args:
            path: file with the content that :func:`pack_model` made.
            config: the run's ``train.json``.
            stage: its ``size``, ``views`` and ``bf16`` of ``teacher.json`` are used.

        Raises:
            Refused: other classes or another image size than the run's; weights that do not fit their network.
        """
        _require_alike(path, config)
        trained = settings_of(path)
        if missing := [name for name in ("network_name", "image_size") if name not in trained]:
            found, expected = f"a file without {' and '.join(missing)}", "weights with their settings in the header"
            raise refused(MASKS_FROM, found, expected)
        network = build_network(config, trained["network_name"], network_overrides(path))
        network.load_state_dict(trained_weights(network, path))
        teacher = cls(
            network,
            weights_sha256=sha256_file(path),
            image_size=trained["image_size"],
            size=stage.config.value("size"),
            views=stage.config.value("views"),
            bf16=stage.bf16,
        )
        return teacher.to(best_device())

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Mean probability over the views.

        Args:
            images: ``(B, 3, H, W)`` float in [0, 1], RGB, any H and W.

        Returns:
            ``(B, C, h, w)`` float32 in [0, 1] that covers exactly the image, h and w as those of a teacher
            (``Teacher.probabilities``).
        """
        device = next(self.network.parameters()).device
        height, width = images.shape[-2:]
        resized = functional.interpolate(images.to(device), (self.image_size, self.image_size), mode="area")
        with autocast(device.type, bf16_possible(self.bf16, device.type)):
            mean = mean_of_views(resized, self.network, self.views)
        return resize_probabilities(mean, [side // MASK_STRIDE for side in inner_size(height, width, self.size)])


def pack_model(source: str | Path, participants: Participants) -> bytes:
    """Returns a model as the content of one file, with a header from which every site builds its network.

    Args:
        source: name or folder of a bundle, folder of a finished run, or a weights file.
        participants: of the run, whose network is assumed if the model does not name its own.

    Raises:
        Refused: there is no such model, or the run is not finished; other classes or another image size than the run's;
            a network on SAM's frozen weights; weights that do not fit their network.
    """
    path, config = starting_file(source, MASKS_FROM), participants.config
    _require_alike(path, config)
    header = {name: text for name, text in full_header(path).items() if name in (*SETTINGS, ARGUMENTS)}
    header = {"network_name": participants.server_network, "image_size": str(config.value("image_size")), **header}
    if is_sam(config, header["network_name"]):
        expected, hint = "a network without frozen weights of SAM", "give a run or a weights file of a light network"
        raise refused(MASKS_FROM, header["network_name"], expected, hint)
    network = build_network(config, header["network_name"], network_overrides(path))
    stream = BytesIO()
    tensor_file.write(stream, trained_weights(network, path), header)
    return stream.getvalue()


def _require_alike(path: Path, config: WorkflowConfig) -> None:
    settings = {"image_size": config.value("image_size"), "classes": config.optional("classes") or ["foreground"]}
    require(replace(each, where=f"{MASKS_FROM} -> {each.where}") for each in setting_differences(path, settings))
