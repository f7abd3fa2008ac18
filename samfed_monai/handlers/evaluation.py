"""Scores every image that an evaluator sees, at one site or at every site of a list."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ignite.engine import Events
from PIL import Image

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import atomic_write, require_writable, to_csv, write_bytes, write_json
from samfed_monai.core.model_file import trained_otherwise
from samfed_monai.data.classes import several
from samfed_monai.data.datalist import SERVER_NAMES
from samfed_monai.handlers.model_loader import trained_weights
from samfed_monai.losses import probabilities
from samfed_monai.metrics import (
    BESIDE,
    NAMES,
    Scores,
    convention,
    over_classes,
    pool,
    scores_by_class,
    segmentation_scores,
    summarise,
    summarise_classes,
)
from samfed_monai.metrics.quality import estimate
from samfed_monai.metrics.volumes import Volume, summarise_volumes

if TYPE_CHECKING:
    from ignite.engine import Engine
    from monai.engines import SupervisedEvaluator
    from torch import Tensor


logger = logging.getLogger(__name__)

NAME_BYTES = 120  # file systems take 255, encrypting ones 143; the rest is for digits, repeat and ending
COLUMNS = ("id", *NAMES, *BESIDE, "empty", "estimate", "mask")


class ScoreHandler:
    """Scores each image of a MONAI ``SupervisedEvaluator``: Dice, IoU, HD95, and what is beside (docs/method.md).

    Reads ``pred`` (logits) and ``label`` of ``engine.state.output``, decollated (a list of dicts) or not (a dict of
    batches), and ``id`` of ``engine.state.batch``; images without one are numbered. After every epoch it leaves on
    ``engine.state``:

    - ``metrics["dice" | "iou" | "hd95" | "sensitivity" | "precision" | "area"]``: means over the images,
    - ``score_summary``: those with ``n``, the counts of empty masks, and the ``convention`` they were made in,
    - ``scores``: a list of ``{"id", "empty", "estimate"}`` and those six, one per image in the order seen; ``estimate``
      is how good the mask is by its own probabilities (:func:`samfed_monai.metrics.quality.estimate`).

    Of K classes ``pred`` has K + 1 logits and ``label`` as many planes, the background's first; a pixel belongs to the
    class of its highest logit. An image's scores are then means over the classes that it holds
    (:func:`samfed_monai.metrics.over_classes`), its row has ``classes``, name to the same, and the summary has
    ``classes``, see :func:`samfed_monai.metrics.summarise_classes`.

    Of slices of volumes (``volume``, ``slice``, ``spacing`` and ``native_size`` in ``engine.state.batch``), the summary
    has ``volumes``, see :func:`samfed_monai.metrics.volumes.summarise_volumes`; their masks are held until the end.

    It compares at the size that arrives: prediction and label must agree, nothing is resized. An image that comes again
    is scored once where :class:`~samfed_monai.handlers.images_seen.ImagesSeen` looks for repeats, as at a site.

    Args:
        output_dir: folder for ``scores.csv`` and ``masks/<id>.png`` (0 and 255, or the classes' values), both readable
            by their owner only; ``None`` writes nothing.
        threshold: probability above which a pixel is foreground; of several classes the highest counts.
        pooled: MedPy's HD95 instead of MONAI's; see :func:`samfed_monai.metrics.hausdorff95`.
        skip_empty: leave images with an empty mask out of HD95's mean; see :func:`samfed_monai.metrics.summarise`. Both
            for tables that shall be compared with HSSF's. The rows keep every image, with the diagonal as HD95.
        classes: names of the classes; ``None`` is one.

    Raises:
        Refused: the threshold is not inside (0, 1), or is none of 0.5 with several classes, or a switch is not true or
            false; later, when an image comes without a label.

    Example::

        {"_target_": "samfed_monai.handlers.ScoreHandler", "pooled": true, "skip_empty": true}
    """

    def __init__(
        self,
        *,
        output_dir: str | Path | None = None,
        threshold: float = 0.5,
        pooled: bool = False,
        skip_empty: bool = False,
        classes: Sequence[str] | None = None,
    ) -> None:
        _check(threshold, classes, pooled=pooled, skip_empty=skip_empty)
        self.classes = list(classes or ()) if several(classes) else []
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.pooled, self.skip_empty = pooled, skip_empty
        # sigmoid(z) > t exactly where z > logit(t): comparing logits needs no sigmoid
        self._threshold = threshold
        self._logit = float(np.log(threshold) - np.log1p(-threshold))
        self._table: list[tuple[str, Scores]] = []
        self._by_class: list[list[Scores]] = []
        self._estimates: list[float] = []
        self._files: list[str] = []
        self._seen: Counter[str] = Counter()
        self._volumes: dict[str, Volume] = {}

    @property
    def convention(self) -> dict[str, str]:
        """What this handler's HD95 means and what an empty mask counts, as ``results.json`` states it."""
        return convention(pooled=self.pooled, skip_empty=self.skip_empty)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Forgets the images of an earlier run."""
        self._table, self._by_class, self._files, self._seen = [], [], [], Counter()
        self._estimates, self._volumes = [], {}

    def __call__(self, engine: Engine) -> None:
        names, repeats = _names(engine.state.batch), getattr(engine.state, "repeats", ())
        for index, (logits, label) in enumerate(_pairs(engine.state.output)):
            if index < len(repeats) and repeats[index]:
                continue
            name = names[index] if index < len(names) else f"image-{len(self._table):05d}"
            prediction = self._drawn(logits, self._logit)
            scores, by_class = self._scored(prediction, label)
            if volume := _slice_of(engine.state.batch, index):
                self._keep(volume, prediction, self._drawn(label, 0.5))
            self._table.append((name, scores))
            self._by_class.append(by_class)
            self._estimates.append(estimate(_chances(logits), self._threshold))
            if self.output_dir is not None:
                self._files.append(self._save(name, prediction, self.output_dir / "masks"))

    def finish(self, engine: Engine) -> None:
        """Leaves means and table on ``engine.state``, and writes ``scores.csv``."""
        summary = summarise((scores for _, scores in self._table), skip_empty=self.skip_empty)
        if not summary["n"]:
            logger.warning("no image was scored: the evaluator's data loader is empty")
        state: Any = engine.state
        rows = zip(self._table, self._estimates, strict=True)
        state.scores = [{"id": name, **scores.as_dict(), "estimate": estimated} for (name, scores), estimated in rows]
        if self.classes:
            for row, by_class in zip(state.scores, self._by_class, strict=True):
                row["classes"] = self._named(by_class)
            summary["classes"] = summarise_classes(self._by_class, self.classes, skip_empty=self.skip_empty)
        if self._volumes:
            summary["volumes"] = summarise_volumes(self._volumes.values(), self.classes)
        state.score_summary = {**summary, "convention": self.convention}
        state.metrics.update({key: summary[key] for key in (*NAMES, *BESIDE) if summary.get(key) is not None})
        if self.output_dir is not None:
            write_scores(self.output_dir / "scores.csv", state.scores, masks=self._files)

    def row_of(self, probabilities: Tensor, label: Tensor) -> dict[str, Any]:
        """The row of an image whose mask came from elsewhere, without its id.

        Args:
            probabilities: (C, H, W) float in [0, 1].
            label: (C, H, W), as an evaluator has it.
        """
        scores, by_class = self._scored(self._drawn(probabilities, 0.5), label)
        return {**scores.as_dict(), **({"classes": self._named(by_class)} if self.classes else {})}

    def _drawn(self, channels: Tensor, above: float) -> np.ndarray:
        """The mask (H, W) of logits or probabilities: bool, or the classes' values."""
        if self.classes:
            values: np.ndarray = _planes(channels, "pred", len(self.classes) + 1).argmax(axis=0)
            return values
        mask: np.ndarray = _planes(channels, "pred", 1)[0] > above
        return mask

    def _scored(self, prediction: np.ndarray, label: Tensor) -> tuple[Scores, list[Scores]]:
        """Scores of an image, and of each of its classes where there are several."""
        if not self.classes:
            truth = _planes(label, "label", 1)[0] > 0.5
            return segmentation_scores(prediction, truth, pooled=self.pooled), []
        values = _planes(label, "label", len(self.classes) + 1).argmax(axis=0)
        by_class = scores_by_class(prediction, values, len(self.classes), pooled=self.pooled)
        return over_classes(by_class, skip_empty=self.skip_empty), by_class

    def _keep(self, of: _Slice, prediction: np.ndarray, label: np.ndarray) -> None:
        """Keeps a slice until its volume is scored; mm of its pixels follow from the size that it is compared at."""
        rows, columns, deep = of.spacing
        sides = (native / side for native, side in zip(of.native_size, label.shape, strict=True))
        down, right = (length * scale for length, scale in zip((rows, columns), sides, strict=True))
        volume = self._volumes.setdefault(of.volume, Volume((deep, down, right) if deep else None))
        volume.slices[of.number] = (prediction.astype(np.uint8), label.astype(np.uint8))

    def _named(self, by_class: Sequence[Scores]) -> dict[str, dict[str, Any]]:
        return {name: each.as_dict() for name, each in zip(self.classes, by_class, strict=True)}

    def _save(self, name: str, prediction: np.ndarray, folder: Path) -> str:
        self._seen[name] += 1
        repeat = f"-{self._seen[name]}" if self._seen[name] > 1 else ""
        file_name = f"{safe_name(name)}{repeat}.png"
        with atomic_write(folder / file_name) as stream:
            values = prediction.astype(np.uint8) * (1 if self.classes else 255)
            Image.fromarray(values).save(stream, format="PNG")
        return file_name


def write_scores(path: str | Path, scores: Sequence[Mapping[str, Any]], *, masks: Sequence[str] = ()) -> None:
    """Writes a table of scores as CSV (UTF-8), atomically and readable by its owner only, since ids are file names.

    Args:
        path: file to write.
        scores: rows with ``id``, ``dice``, ``iou``, ``hd95`` (pixels), ``empty``, and ``classes`` where there are
            several: ``dice <name>`` and so on are columns, too, empty where neither mask holds the class.
        masks: file names of the masks, in the same order; none leaves the column empty.
    """
    named = [{**row, "mask": masks[index] if index < len(masks) else ""} for index, row in enumerate(scores)]
    more: list[str] = []
    for row in named:
        for name, each in row.get("classes", {}).items():
            measures = {f"{key} {name}": each[key] for key in NAMES}
            row.update(measures if each["empty"] != "both" else dict.fromkeys(measures, ""))
            more += [column for column in measures if column not in more]
    write_bytes(path, to_csv((*COLUMNS, *more), named).encode())


def safe_name(identifier: str) -> str:
    """A file name for an image's id: unicode and spaces are kept, what could leave the folder is not.

    Of a long id the first 120 bytes are kept. A changed name carries the first digits of its id's SHA-256, so that two
    ids never share a file.

    Example::

        safe_name("Läsion 7")  # "Läsion 7"
        safe_name("../a")  # "_a-" and eight digits
    """
    name = re.sub(r"[/\\\x00-\x1f\x7f:]+", "_", identifier).lstrip(".")
    name = name.encode(errors="surrogateescape")[:NAME_BYTES].decode(errors="ignore")
    if name == identifier and name.strip():
        return name
    return f"{name}-{hashlib.sha256(identifier.encode(errors='surrogateescape')).hexdigest()[:8]}"


def _check(threshold: float, classes: Sequence[str] | None, **switches: bool) -> None:
    problems = [
        Problem(f"ScoreHandler#{name}", found=repr(value), expected="true or false")
        for name, value in switches.items()
        if not isinstance(value, bool)
    ]
    if not 0 < threshold < 1:
        problems.append(Problem("ScoreHandler#threshold", found=repr(threshold), expected="a number in (0, 1)"))
    elif several(classes) and threshold != 0.5:
        expected = "0.5 with several classes, of which a pixel has the one of its highest probability"
        problems.append(Problem("ScoreHandler#threshold", found=repr(threshold), expected=expected))
    if problems:
        raise Refused(problems)


def _pairs(output: Any) -> Iterator[tuple[Tensor, Tensor]]:
    for item in [output] if isinstance(output, Mapping) else output:
        if item.get("label") is None:
            hint = "evaluate a split whose items have labels, or use inference.json"
            raise Refused([Problem("ScoreHandler", found="an image without a label", expected="a label", hint=hint)])
        if isinstance(output, Mapping):
            yield from zip(item["pred"], item["label"], strict=True)
        else:
            yield item["pred"], item["label"]


def _names(batch: Any) -> list[str]:
    if isinstance(batch, Mapping):
        names = batch.get("id", [])
        return [names] if isinstance(names, str) else [str(name) for name in names]
    if isinstance(batch, (list, tuple)) and all(isinstance(item, Mapping) for item in batch):
        return [str(item["id"]) for item in batch if "id" in item]
    return []


class _Slice(NamedTuple):
    """Which slice of which volume an image is; a spacing of zeros is not known."""

    volume: str
    number: int
    spacing: tuple[float, ...]
    native_size: tuple[float, ...]


def _slice_of(batch: Any, index: int) -> _Slice | None:
    """The slice that one image of a batch is, collated or not; ``None`` of an image that is none."""
    record = batch if isinstance(batch, Mapping) else batch[index]
    if "volume" not in record:
        return None
    one = (lambda value: value[index]) if isinstance(batch, Mapping) else (lambda value: value)
    sides = (tuple(float(one(side)) for side in record[key]) for key in ("spacing", "native_size"))
    return _Slice(one(record["volume"]), int(one(record["slice"])), *sides) if one(record["volume"]) else None


def _chances(logits: Tensor) -> np.ndarray:
    """Probabilities (C, H, W) float32 of logits."""
    chances: np.ndarray = probabilities(logits.detach().float()[None])[0].cpu().numpy()
    return chances


def _planes(tensor: Tensor, what: str, channels: int) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    if array.ndim != 3 or array.shape[0] != channels:
        named = "one channel (1, H, W)" if channels == 1 else f"{channels} channels, the background's and one a class"
        hint = "let `classes` of train.json and of the data list be the same names"
        raise Refused([Problem(f"ScoreHandler, {what}", f"shape {array.shape}", expected=named, hint=hint)])
    return array


class SiteEvaluation:
    """Loads weights, runs the evaluator over a split of one site or of all, and writes what it found.

    ``<output_dir>/<site>/<split>/scores.csv`` has one row per image, and predicted masks lie beside it if wanted;
    ``<output_dir>/metrics.json`` has each site's means, the mean over all images, and the convention of both. Sites
    without images in the split are left out.

    Args:
        evaluator: MONAI evaluator whose handlers include ``scores``.
        scores: the evaluator's :class:`ScoreHandler`; where it writes is set here.
        model: weights, ``.safetensors`` or a torch file of plain tensors; see :func:`trained_weights`.
        datalist: file of the data list.
        data_root: folder that the list's paths start from.
        split: ``validation`` or ``test`` (``unlabelled`` only where the list has labels).
        site: the site's name, or "" for all sites.
        preprocessing: transform of one record.
        batch_size: images in a batch.
        output_dir: folder to write to.
        limit: at most this many images of each site.
        settings: options of this run, compared with those that the weights' header names (``network_name``,
            ``image_size``); what either side does not name is not compared.
        loaded: whether the evaluator's network has its weights already; ``model`` only names them then.

    Raises:
        Refused: weights that were trained with other settings, when it is built; later those that do not fit, an
            unknown site or split, images without a label.

    Example::

        {"_target_": "samfed_monai.handlers.SiteEvaluation", "evaluator": "@validate#evaluator", "model": "@model"}
    """

    def __init__(
        self,
        *,
        evaluator: SupervisedEvaluator,
        scores: ScoreHandler,
        model: str | Path,
        datalist: str | Path,
        data_root: str | Path,
        split: str = "test",
        site: str | None = "",
        preprocessing: Callable[[Mapping[str, Any]], Any],
        batch_size: int = 8,
        output_dir: str | Path,
        limit: int | None = None,
        settings: Mapping[str, Any] | None = None,
        loaded: bool = False,
    ) -> None:
        if problems := trained_otherwise(model, settings or {}):
            raise Refused(problems)
        self.evaluator, self.scores, self.model = evaluator, scores, Path(model)
        self.datalist, self.data_root, self.split, self.site = datalist, data_root, split, site
        self.preprocessing, self.batch_size = preprocessing, batch_size
        self.output_dir, self.limit, self.loaded = Path(output_dir), limit, loaded

    def run(self) -> dict[str, Any]:
        """Evaluates and returns the content of ``metrics.json``."""
        require_writable(self.output_dir)
        if self.output_dir.is_file():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.output_dir))
        records = self._records()
        network = self.evaluator.network
        if not self.loaded:
            network.load_state_dict(trained_weights(network, self.model), strict=False)
        sites = {name: self._one_site(name, items) for name, items in records.items()}
        average = pool(sites.values(), skip_empty=self.scores.skip_empty)
        result = {"model": self.model.name, "split": self.split, "sites": sites, "average": average}
        result["convention"] = self.scores.convention
        write_json(self.output_dir / "metrics.json", result)
        rows: dict[str, Any] = {**sites, "average": average}
        for name, row in rows.items():
            far = "-" if row["hd95"] is None else f"{row['hd95']:.1f} px"
            means = (row["dice"], row["iou"], far, row["n"], sum(row["empty"].values()))
            text = "%s, %s: Dice %.4f, IoU %.4f, HD95 %s, %d images, %d with an empty mask"
            logger.info(text, name, self.split, *means)
            for each, of_class in (row.get("classes") or {}).items():
                if of_class["dice"] is not None:
                    logger.info("  %s: Dice %.4f on %d images that hold it", each, of_class["dice"], of_class["n"])
        return result

    def _records(self) -> dict[str, list[dict[str, Any]]]:
        from samfed_monai.data import DataList, load_records

        listed = DataList.load(self.datalist)
        names = sorted(listed.sites) if self.site is None or self.site in SERVER_NAMES else [self.site]
        found: dict[str, list[dict[str, Any]]] = {
            name: load_records(listed, self.data_root, split=self.split, site=name, with_labels=True, limit=self.limit)
            for name in names
        }
        found = {name: records for name, records in found.items() if records}
        if not found:
            where = f"{self.datalist} -> {self.site or 'sites'} -> {self.split}"
            raise Refused([Problem(where, found="no image", expected="at least one", hint="choose another split")])
        return found

    def _one_site(self, name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
        from monai.data import DataLoader, Dataset

        loader = DataLoader(Dataset(records, self.preprocessing), batch_size=self.batch_size, num_workers=0)
        self.scores.output_dir = self.output_dir / name / self.split
        self.evaluator.data_loader = loader
        self.evaluator.state.epoch_length = len(loader)
        self.evaluator.run()
        summary: dict[str, Any] = self.evaluator.state.score_summary
        return summary
