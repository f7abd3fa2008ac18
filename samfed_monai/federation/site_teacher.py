"""The teacher at a site: its soft masks and scores before round 0, and later comparisons with the student."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from samfed_monai.core.errors import Problem, Refused, SamFedError
from samfed_monai.core.io import read_json, sha256_bytes, sha256_file, to_csv, write_bytes, write_json
from samfed_monai.data import DataList, load_records
from samfed_monai.data.reading import png_of
from samfed_monai.data.records import without_duplicates
from samfed_monai.data.soft_masks import SoftMaskStore, resize_probabilities
from samfed_monai.federation.exchange_object import metrics_of_parts
from samfed_monai.federation.teacher import MASKS_FROM, StudentTeacher, TeacherStage, single_writer
from samfed_monai.federation.workflow import WorkflowConfig
from samfed_monai.losses import probabilities
from samfed_monai.metrics import EXTRAS, NAMES, over_classes, scores_by_class, segmentation_scores, summarise
from samfed_monai.metrics.quality import estimate
from samfed_monai.protocol.message import Kind, Message, MessageRefused, message_refused

if TYPE_CHECKING:
    from monai.engines import SupervisedEvaluator

    from samfed_monai.networks import Teacher

logger = logging.getLogger(__name__)


class SharesTeacher(Protocol):
    """An object of all sites of a process, which load their teacher once."""

    teacher: Teacher | StudentTeacher | None


class SiteMasks:
    """The soft masks at one site; they are never sent.

    Args:
        site: its name.
        cache_dir: ``<cache_dir>/soft_masks/<site>`` is its store.
        datalist: a list that has this site.
        data_root: folder that the list's paths are relative to.
        limit: at most this many images of each split, the same that its trainer and evaluator use; ``None`` is all.
    """

    def __init__(
        self, site: str, cache_dir: str | Path, datalist: DataList, data_root: str | Path, *, limit: int | None = None
    ) -> None:
        self.site, self.datalist, self.data_root, self.limit = site, datalist, data_root, limit
        self.folder = Path(cache_dir) / "soft_masks" / site

    def store(self, teacher_sha256: str) -> SoftMaskStore:
        """Store of the masks of one teacher."""
        return SoftMaskStore(self.folder, teacher_sha256=teacher_sha256)

    def fill(self, teacher: Teacher | StudentTeacher, splits: Sequence[str]) -> int:
        """Computes the teacher's masks of all images of ``splits`` that the store lacks; returns their number."""
        from samfed_monai.teacher import fill_store

        computed = 0
        with single_writer(self.folder.parent / f"{self.site}.complete"):
            store = self.store(teacher.sha256)
            for split in splits:
                computed += fill_store(teacher, self.records(split), store, owner=f"{self.site} {split}")
        return computed

    def teacher_scores(self, teacher_sha256: str, config: WorkflowConfig, split: str) -> list[dict[str, Any]]:
        """The teacher's own scores per image, with size, labels and kind of HD95 as in the students' evaluation.

        Returns:
            Rows of ``{"id", "dice", "iou", "hd95", "empty"}``, with ``classes`` if there are several.
        """
        parser = config.parser()
        preprocessing = parser.get_parsed_content("validate#preprocessing")
        handler = parser.get_parsed_content("validate#scores")
        store, rows = self.store(teacher_sha256), []
        for record in without_duplicates(self.records(split)):  # each once, as at the students' evaluation
            label = torch.as_tensor(preprocessing(dict(record))["label"])
            mask = resize_probabilities(store.get(record["image_sha256"])[None], label.shape[-2:])
            rows.append({"id": record["id"], **handler.row_of(mask[0], label)})
        return rows

    def records(self, split: str) -> list[dict[str, Any]]:
        """Records of the images of a split that are used."""
        return load_records(self.datalist, self.data_root, split=split, site=self.site, limit=self.limit)


def adapter_message(file: Path | None, *, sam: str | None, teacher: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and words of a message that sends a teacher to the sites.

    Args:
        file: the adapter, or the file of a :class:`StudentTeacher`; ``None`` for SAM without an adapter.
        sam: SHA-256 of SAM's checkpoint, which every site must have itself; ``None``: none is needed.
        teacher: SHA-256 of the teacher.
    """
    extra = {"teacher": teacher, **({} if sam is None else {"sam": sam})}
    if file is None:
        return {}, extra
    content = file.read_bytes()
    tensors = {_ADAPTER: torch.frombuffer(bytearray(content), dtype=torch.uint8)}
    return tensors, {**extra, _ADAPTER: sha256_bytes(content)}


@dataclass
class SiteTeacher:
    """The teacher at one site.

    Args:
        stage: the plan's teacher settings; its cache keeps received files.
        masks: this site's store.
        adapt: ``teacher_adapt`` of the plan.
        config: the run's ``train.json``, to build the network of an earlier run if that makes the masks.
        memory: file that records that the site is prepared, for a restart of its process.
        trains: whether the site trains on its unlabelled images; those of an unseen site need no masks.
    """

    stage: TeacherStage
    masks: SiteMasks
    adapt: str
    config: WorkflowConfig
    memory: Path
    trains: bool = True
    _sha256: str | None = field(default=None, init=False)

    @property
    def sha256(self) -> str:
        """Identity of the teacher whose masks are in the store.

        Raises:
            MessageRefused: no teacher was received yet.
        """
        if self._sha256 is None and self.memory.is_file():
            self._sha256 = str(read_json(self.memory)["teacher"])
        if self._sha256 is None:
            hint = "start the run again, so that the server sends the adapter"
            raise message_refused("teacher", "none", "the server's adapter", hint)
        return self._sha256

    def take(self, message: Message, shared: SharesTeacher | None = None) -> int:
        """Receives the adapter, or another run's network, and computes missing masks; returns their number.

        They are masks of the unlabelled images, if the site trains, and of those that the teacher is scored on.

        Args:
            message: of kind ``adapter``.
            shared: objects shared by the sites of this process, where the teacher is loaded once.

        Raises:
            MessageRefused: damaged bytes, another SAM than the server's, or a teacher that differs from the server's.
        """
        file = self._file(message)
        teacher = (shared.teacher if shared else None) or self._load(file, message.extra)
        if shared is not None:
            shared.teacher = teacher
        if (expected := message.extra.get("teacher", teacher.sha256)) != teacher.sha256:
            hint = "use the same teacher.json and samfed-monai version at server and site"
            raise message_refused("teacher", teacher.sha256[:12], f"the server's teacher, {expected[:12]}", hint)
        computed = self.masks.fill(teacher, (*(("unlabelled",) if self.trains else ()), *self.stage.scored))
        self._sha256 = teacher.sha256
        write_json(self.memory, {"teacher": teacher.sha256})
        return computed

    def scores(self, split: str) -> dict[str, Any]:
        """``n`` and ``metrics`` of the teacher's own masks on one split, computed like the students'.

        Raises:
            MessageRefused: the plan does not score the teacher on that split.
        """
        if split not in self.stage.scored:
            expected = f"one of {list(self.stage.scored)}, where this plan scores the teacher"
            raise message_refused("teacher's scores -> split", repr(split), expected)
        rows = self.masks.teacher_scores(self.sha256, self.config, split)
        convention = self.config.parser().get_parsed_content("validate#scores").convention
        summary = summarise(rows, skip_empty=convention["empty"] == "skipped")
        means = {name: summary[name] for name in (*NAMES, *EXTRAS) if summary.get(name) is not None}
        empty = {f"empty_{side}": count for side, count in summary["empty"].items()}
        return {"n": summary["n"], "metrics": {**means, **empty, **metrics_of_parts(summary)}}

    def _file(self, message: Message) -> Path | None:
        """Stores the message's adapter in the cache, named by its hash; returns ``None`` if it has none.

        Raises:
            MessageRefused: another kind of message, other names, bytes with another SHA-256, or a missing adapter.
        """
        if message.kind != Kind.ADAPTER or message.tensors.keys() - {_ADAPTER}:
            raise message_refused("message -> tensors", "other tensors", "an adapter")
        if not message.tensors:
            if self.adapt != "none":
                raise message_refused(_ADAPTER, "none", f"an adapter, as teacher_adapt is {self.adapt}")
            return None
        tensor, expected = message.tensors[_ADAPTER], message.extra.get(_ADAPTER) or "its own"
        if tensor.dtype != torch.uint8 or tensor.ndim != 1:
            raise message_refused("message -> adapter", f"{tensor.dtype} of {tensor.ndim} dimensions", "a uint8 vector")
        content = tensor.numpy().tobytes()
        if (sha256 := sha256_bytes(content)) != expected:
            found, hint = f"bytes with SHA-256 {sha256[:12]}", "the adapter was damaged in transit; send it again"
            raise message_refused("message -> adapter", found, expected[:12], hint)
        return self.stage.store(content)

    def _load(self, adapter: Path | None, extra: dict[str, str]) -> Teacher | StudentTeacher:
        from samfed_monai.networks.sam.adapter import read_header

        if adapter is not None and "sam" not in extra:
            try:
                return StudentTeacher.load(adapter, self.config, self.stage)
            except Refused as refused:
                raise MessageRefused(_without_path(each, adapter) for each in refused.problems) from None
        base, hashes = self.stage.base, {"server's SAM": extra.get("sam")}
        if adapter is not None:
            try:
                hashes["SAM that the adapter was fitted on"] = read_header(adapter).base_sha256
            except Refused:
                expected = "an adapter made by `samfed teach`"
                raise message_refused(_ADAPTER, "bytes that are not an adapter", expected) from None
        try:
            sha256_here = sha256_file(self.stage.checkpoint())
        except (Refused, OSError):
            hint = f"run `samfed weights` for {base} at this site"
            raise message_refused("SAM checkpoint", "none", f"{base}, SHA-256 {extra.get('sam')}", hint) from None
        hint = f"give this site the server's checkpoint of {base}"
        problems = [
            Problem("SAM checkpoint", f"SHA-256 {sha256_here}", f"the {what}, {sha256}", hint)
            for what, sha256 in hashes.items()
            if sha256 not in (None, sha256_here)
        ]
        if problems:
            raise MessageRefused(problems)
        return self.stage.load(self.masks.datalist, self.masks.data_root, adapt=self.adapt, adapter=adapter)


def _without_path(problem: Problem, file: Path) -> Problem:
    """Returns a problem of the ``file`` that the server sent without any path, so that it may leave this site."""
    texts = {name: text.replace(str(file), MASKS_FROM) for name, text in asdict(problem).items()}
    texts = {name: text.replace(file.name, MASKS_FROM) for name, text in texts.items() if os.sep not in text}
    return Problem(**{"where": MASKS_FROM, "found": "another file", "expected": "a network of this run", **texts})


_ADAPTER = "adapter"  # name of the tensor, and of the word with its hash


KEPT = 6
"""Number of images per site whose masks are kept: two rows of three on a page, as many as a person looks at."""
SAMPLE = 32
"""Number of images per site that are compared after every round; the best model is compared on all of them."""
TABLE = "disagreement.csv"
ROUND = "current"
"""Name of a round's model, whose files are removed once the best one has been compared."""
COLUMNS = ("id", "image_sha256", "dice", "estimate", "mask")


@dataclass
class Disagreement:
    """Compares a student's masks of a site's unlabelled images with the teacher's soft masks in the site's store.

    It writes ``disagreement.csv``, one row per image with the Dice between the two masks, lowest first, and for the
    :data:`KEPT` lowest the masks themselves, ``student/<mask>`` and ``teacher/<mask>`` (PNG, 0 and 255 or the values of
    classes, at the size of the student's evaluation). All files are readable by their owner only and stay at the site.

    Args:
        records: the site's unlabelled images: ``id``, ``image``, ``image_sha256``.
        store: called when needed, since the teacher may arrive after this object is made.
        preprocessing: of a record, as for evaluation: ``image`` (3, H, W) float in [0, 1].
        batch_size: images per batch.
        folder: ``evaluation`` of the run; files are written to ``<model>/<site>/unlabelled`` in it.
        site: the site.
        parts: whether images are slices of volumes, many of which rightly have an empty mask; any other image has a
            lesion, which an empty mask misses.

    A round's model is compared on :data:`SAMPLE` images, the same in every round; the best one on all.

    Example::

        compare = Disagreement(
            records, lambda: store, preprocessing, batch_size=8, folder=Path("run/evaluation"), site="a"
        )
        compare(evaluator, "best")
    """

    records: Sequence[Mapping[str, Any]]
    store: Callable[[], SoftMaskStore]
    preprocessing: Callable[[Any], Any]
    batch_size: int
    folder: Path
    site: str
    parts: bool = False

    def __call__(self, evaluator: SupervisedEvaluator, model: str = "best") -> list[float]:
        """Compares the evaluator's network with the teacher; only logs failures, since a run does not depend on it.

        Returns:
            The student's estimate of each of its masks (:func:`samfed_monai.metrics.quality.estimate`); 0 for an empty
            one without ``parts``.
        """
        try:
            records = self.records if model == "best" else self.records[:: max(1, -(-len(self.records) // SAMPLE))]
            rows = self._rows(evaluator, records)
            self._write(rows, self.folder / model / self.site / "unlabelled")
            if model == "best":
                shutil.rmtree(self.folder / ROUND / self.site, ignore_errors=True)
            return [row["estimate"] for row in rows]
        except (SamFedError, OSError) as error:
            logger.warning("student and teacher could not be compared on images without masks: %s", error)
            return []

    def _rows(self, evaluator: SupervisedEvaluator, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        from monai.data import DataLoader, Dataset
        from monai.networks.utils import eval_mode

        store, rows, index = self.store(), list[dict[str, Any]](), 0
        loader = DataLoader(Dataset(records, self.preprocessing), batch_size=self.batch_size, num_workers=0)
        with eval_mode(evaluator.network):
            for batch in loader:
                logits = evaluator.inferer(batch["image"].to(evaluator.state.device), evaluator.network)
                maps = probabilities(logits.float()).cpu()
                for student, probability_map in zip(_as_masks(maps).numpy(), maps.numpy(), strict=True):
                    record, index = records[index], index + 1
                    soft = resize_probabilities(store.get(record["image_sha256"])[None], student.shape)
                    teacher = _as_masks(soft)[0].numpy()
                    dice = segmentation_scores(student, teacher).dice
                    if logits.shape[1] > 1:
                        dice = over_classes(scores_by_class(student, teacher, logits.shape[1] - 1)).dice
                    estimated = estimate(probability_map) if student.any() or self.parts else 0.0
                    rows.append({**record, "dice": dice, "estimate": estimated, "student": student, "teacher": teacher})
                rows.sort(key=lambda row: (row["dice"], row["id"]))
                for row in rows[KEPT:]:
                    row["student"] = row["teacher"] = None
        return rows

    def _write(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        table = []
        for row in rows:
            name = "" if row["student"] is None else f"{row['image_sha256'][:16]}.png"
            for source in ("student", "teacher") if name else ():
                values = row[source].astype(np.uint8) * (255 if row[source].dtype == bool else 1)
                write_bytes(folder / source / name, png_of(values))
            table.append({**row, "mask": name})
        write_bytes(folder / TABLE, to_csv(COLUMNS, table).encode())
        current_masks = {row["mask"] for row in table}
        for old in folder.glob("*/*.png"):  # of an earlier round
            if old.name not in current_masks:
                old.unlink()


def _as_masks(channels: Tensor) -> Tensor:
    """Masks (B, H, W) from probabilities (B, C, H, W): bool, or class values if there are several classes."""
    return channels.argmax(dim=1) if channels.shape[1] > 1 else channels[:, 0] >= 0.5
