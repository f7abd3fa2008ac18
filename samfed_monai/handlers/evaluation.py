"""Scores every image that an evaluator sees, at one site or at every site of a list."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ignite.engine import Engine, Events
from monai.data import decollate_batch
from monai.engines import SupervisedEvaluator

from samfed_monai.core.errors import refused
from samfed_monai.core.io import require_writable, to_csv, write_bytes, write_json
from samfed_monai.core.model_file import setting_differences
from samfed_monai.core.text import aligned
from samfed_monai.core.validators import require, switch
from samfed_monai.data.classes import is_multiclass
from samfed_monai.data.datalist import SERVER_NAMES
from samfed_monai.data.reading import png_of
from samfed_monai.handlers.model_loader import trained_weights
from samfed_monai.losses import probabilities
from samfed_monai.metrics import EXTRAS, NAMES, convention, over_classes, pool, scores_by_class, segmentation_scores
from samfed_monai.metrics.quality import estimate
from samfed_monai.metrics.scores import Volume, summarise, summarise_volumes

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.data import DataList


logger = logging.getLogger(__name__)

NAME_BYTES = 120  # file systems allow 255, encrypting ones 143; the rest is for digits, repeat and extension
COLUMNS = ("id", *NAMES, *EXTRAS, "empty", "estimate", "mask")


class ScoreHandler:
    """Scores each image of a MONAI ``SupervisedEvaluator``: Dice, IoU, HD95 and further measures (docs/method.md).

    Reads ``pred`` (logits) and ``label`` of ``engine.state.output``, decollated (a list of dicts) or not (a dict of
    batches), and ``id`` of ``engine.state.batch``; images without one are numbered. After every epoch it sets on
    ``engine.state``:

    - ``metrics["dice" | "iou" | "hd95" | "sensitivity" | "precision" | "area"]``: means over the images,
    - ``score_summary``: these means with ``n``, the counts of empty masks, and their ``convention``,
    - ``scores``: a list of ``{"id", "empty", "estimate"}`` and the six scores, one per image in the order seen;
      ``estimate`` is the mask's quality estimated from probabilities (:func:`samfed_monai.metrics.quality.estimate`).

    With K classes ``pred`` has K + 1 logits and ``label`` as many planes, the background first; a pixel belongs to the
    class of its highest probability. An image's scores are means over the classes that it contains
    (:func:`samfed_monai.metrics.over_classes`). Its row then has ``classes``, the scores by class name, and so does the
    summary, see :func:`samfed_monai.metrics.summarise`.

    For slices of volumes (``volume``, ``slice``, ``spacing`` and ``native_size`` in ``engine.state.batch``) the summary
    has ``volumes``, see :func:`samfed_monai.metrics.scores.summarise_volumes`; masks are kept until the epoch's end.

    Nothing is resized: prediction and label must have the same size. Repeated images are scored once if
    :class:`~samfed_monai.handlers.images_seen.ImagesSeen` is attached, as at a site; a volume keeps all of its slices,
    but a copy of a volume does not count.

    Args:
        output_dir: folder for ``scores.csv`` and ``masks/<id>.png`` (0 and 255, or the classes' values), both readable
            by their owner only; ``None`` writes nothing.
        pooled: MedPy's HD95 instead of MONAI's; see :func:`samfed_monai.metrics.hausdorff95`.
        skip_empty: leave images with an empty mask out of HD95's mean; see :func:`samfed_monai.metrics.summarise`. Both
            are for comparison with HSSF's tables. The rows include all images, with the diagonal as HD95.
        classes: names of the classes; ``None`` is one.

    Raises:
        Refused: a switch that is not true or false; later, an image without a label.

    Example::

        {"_target_": "samfed_monai.handlers.ScoreHandler", "pooled": true, "skip_empty": true}
    """

    def __init__(
        self,
        *,
        output_dir: str | Path | None = None,
        pooled: bool = False,
        skip_empty: bool = False,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.classes = list(classes or ()) if is_multiclass(classes) else []
        require(switch("ScoreHandler#pooled", pooled), switch("ScoreHandler#skip_empty", skip_empty))
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.pooled, self.skip_empty = pooled, skip_empty
        self.start()

    @property
    def convention(self) -> dict[str, str]:
        """Definition of this handler's HD95 and of scores of empty masks, as in ``results.json``."""
        return convention(pooled=self.pooled, skip_empty=self.skip_empty)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def start(self) -> None:
        """Forgets the images of an earlier run."""
        self._rows: list[dict[str, Any]] = []
        self._files: list[str] = []
        self._name_counts: Counter[str] = Counter()
        self._volumes: dict[str, Volume] = {}
        self._new_volumes: set[str] = set()

    def __call__(self, engine: Engine) -> None:
        repeats = getattr(engine.state, "repeats", ())
        for index, item in enumerate(images_of(engine.state.batch, engine.state.output)):
            if item.get("label") is None:
                hint = "evaluate a split with labels, or use inference.json"
                raise refused("ScoreHandler", "an image without a label", "a label", hint)
            name = str(item.get("id", f"image-{len(self._rows):05d}"))
            channels = probabilities(item["pred"].detach().float()[None])[0]
            prediction, repeated = self._to_mask(channels), index < len(repeats) and repeats[index]
            if item.get("volume"):
                self._keep_slice(item, prediction)
            if repeated:
                continue
            self._new_volumes.add(item.get("volume", ""))
            row = self._row(prediction, item["label"], {"estimate": estimate(channels.cpu().numpy())})
            self._rows.append({"id": name, **row})
            if self.output_dir is not None:
                self._files.append(self._save(name, prediction, self.output_dir / "masks"))

    def finish(self, engine: Engine) -> None:
        """Sets means and table on ``engine.state``, and writes ``scores.csv``."""
        summary = summarise(self._rows, skip_empty=self.skip_empty)
        if not summary["n"]:
            logger.warning("no image was scored: the evaluator's data loader is empty")
        # a volume that only has images of others is a copy
        if volumes := [volume for name, volume in self._volumes.items() if name in self._new_volumes]:
            summary["volumes"] = summarise_volumes(volumes, self.classes)
        state: Any = engine.state
        state.scores, state.score_summary = self._rows, {**summary, "convention": self.convention}
        state.metrics.update({key: summary[key] for key in (*NAMES, *EXTRAS) if summary.get(key) is not None})
        if self.output_dir is not None:
            write_scores(self.output_dir / "scores.csv", self._rows, masks=self._files)

    def row_of(self, probabilities: Tensor, label: Tensor) -> dict[str, Any]:
        """Returns the row of an image, without its id, for a mask of another origin.

        Args:
            probabilities: (C, H, W) float in [0, 1].
            label: (C, H, W), as from an evaluator.
        """
        return self._row(self._to_mask(probabilities), label)

    def _row(self, prediction: np.ndarray, label: Tensor, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Scores of an image, with those of each class if there are several."""
        truth = self._to_mask(label, is_label=True)
        if not self.classes:
            return {**segmentation_scores(prediction, truth, pooled=self.pooled).as_dict(), **(extra or {})}
        by_class = scores_by_class(prediction, truth, len(self.classes), pooled=self.pooled)
        classes = {name: scores.as_dict() for name, scores in zip(self.classes, by_class, strict=True)}
        return {**over_classes(by_class, skip_empty=self.skip_empty).as_dict(), **(extra or {}), "classes": classes}

    def _to_mask(self, channels: Tensor, *, is_label: bool = False) -> np.ndarray:
        """Converts probabilities or a label (C, H, W) to a mask (H, W): bool, or the classes' values.

        A probability of 0.5 is foreground, as in written masks; a label's pixel of which half is foreground is not.
        """
        array: np.ndarray = channels.detach().float().cpu().numpy()
        count = len(self.classes) + 1
        if array.ndim != 3 or array.shape[0] != count:
            expected = f"{count} channels (the background and each class)" if self.classes else "one channel (1, H, W)"
            hint = "give train.json and the data list the same `classes`"
            where = f"ScoreHandler, {'label' if is_label else 'pred'}"
            raise refused(where, f"shape {array.shape}", expected, hint)
        foreground = array[0] > 0.5 if is_label else array[0] >= 0.5
        return array.argmax(axis=0) if self.classes else foreground

    def _keep_slice(self, item: Mapping[str, Any], prediction: np.ndarray) -> None:
        """Keeps a slice until its volume is scored; its pixel size in mm is scaled to the size of the label."""
        truth = self._to_mask(item["label"], is_label=True)
        (rows, columns, slices), native = ([float(side) for side in item[key]] for key in ("spacing", "native_size"))
        row_mm, column_mm = (rows * native[0] / truth.shape[0], columns * native[1] / truth.shape[1])
        volume = self._volumes.setdefault(item["volume"], Volume((slices, row_mm, column_mm) if slices else None))
        volume.slices[int(item["slice"])] = (prediction.astype(np.uint8), truth.astype(np.uint8))

    def _save(self, name: str, prediction: np.ndarray, folder: Path) -> str:
        self._name_counts[name] += 1
        repeat = f"-{self._name_counts[name]}" if self._name_counts[name] > 1 else ""
        file_name = f"{safe_name(name)}{repeat}.png"
        write_bytes(folder / file_name, png_of(prediction.astype(np.uint8) * (1 if self.classes else 255)))
        return file_name


def write_scores(path: str | Path, scores: Sequence[Mapping[str, Any]], *, masks: Sequence[str] = ()) -> None:
    """Writes a table of scores as CSV (UTF-8), atomically and readable by its owner only, since ids are file names.

    Args:
        path: file to write.
        scores: rows with ``id``, ``dice``, ``iou``, ``hd95`` (pixels) and ``empty``. Rows with ``classes`` also fill
            columns ``dice <name>`` and so on, which are empty if neither mask contains the class.
        masks: file names of the masks, in the same order; without them the column is empty.
    """
    rows = [{**row, "mask": masks[index] if index < len(masks) else ""} for index, row in enumerate(scores)]
    class_columns: list[str] = []
    for row in rows:
        for name, class_scores in row.get("classes", {}).items():
            measures = {f"{key} {name}": class_scores[key] for key in NAMES}
            row.update(measures if class_scores["empty"] != "both" else dict.fromkeys(measures, ""))
            class_columns += [column for column in measures if column not in class_columns]
    write_bytes(path, to_csv((*COLUMNS, *class_columns), rows).encode())


def safe_name(identifier: str) -> str:
    """Returns a file name for an image's id; Unicode and spaces are kept, path separators are not.

    Only the first 120 bytes of a long id are kept. A changed name ends with the first digits of the id's SHA-256, so
    that two ids never share a file.

    Example::

        safe_name("Läsion 7")  # "Läsion 7"
        safe_name("../a")  # "_a-" and eight digits
    """
    name = re.sub(r"[/\\\x00-\x1f\x7f:]+", "_", identifier).lstrip(".")
    name = name.encode(errors="surrogateescape")[:NAME_BYTES].decode(errors="ignore")
    if name == identifier and name.strip():
        return name
    return f"{name}-{hashlib.sha256(identifier.encode(errors='surrogateescape')).hexdigest()[:8]}"


def images_of(batch: Any, output: Any) -> list[dict[str, Any]]:
    """Merges batch and output of an evaluator, decollated or not, into one dictionary per image."""
    items, results = (decollate_batch(dict(of)) if isinstance(of, Mapping) else of for of in (batch, output))
    has_items = isinstance(items, (list, tuple)) and all(isinstance(item, Mapping) for item in items)
    return [{**fields, **of} for fields, of in zip(items if has_items else [{}] * len(results), results, strict=True)]


def labelled_records(
    datalist: DataList, data_root: str | Path, sites: Iterable[str], *, split: str, limit: int | None
) -> dict[str, list[dict[str, Any]]]:
    """Labelled records of a split by site, with files verified against the list; sites without records are left out.

    Args:
        datalist: the data list.
        data_root: folder that its paths are relative to.
        sites: names of sites.
        split: ``"validation"`` or ``"test"``.
        limit: maximum number of images per site, chosen by hash; ``None`` takes all.

    Raises:
        Refused: unknown site or split, images without a label, files that have changed since the list was made.
    """
    from samfed_monai.data import load_records

    options: dict[str, Any] = {"split": split, "with_labels": True, "limit": limit, "verify": True}
    by_site = {site: load_records(datalist, data_root, site=site, **options) for site in sites}
    return {site: records for site, records in by_site.items() if records}


@dataclass(kw_only=True)
class SiteEvaluation:
    """Loads weights, runs the evaluator over a split of one site or of all, and writes the scores.

    ``<output_dir>/<site>/<split>/scores.csv`` has one row per image, and the predicted masks are beside it;
    ``<output_dir>/metrics.json`` has each site's means, the mean over all images, and the convention of both. Sites
    without images in the split are left out.

    Args:
        evaluator: MONAI evaluator whose handlers include ``scores``.
        scores: the evaluator's :class:`ScoreHandler`; its output folder is set here.
        model: weights, ``.safetensors`` or a torch file of plain tensors; see :func:`trained_weights`.
        datalist: file of the data list.
        data_root: folder that the list's paths are relative to.
        split: ``validation`` or ``test`` (``unlabelled`` only if the list has labels).
        site: the site's name, or "" for all sites.
        preprocessing: transform of one record.
        batch_size: images in a batch.
        output_dir: folder to write to.
        limit: maximum number of images of each site.
        settings: options of this run; those that the weights' header has, too (``network_name``, ``image_size``), must
            be equal.

    Attributes:
        loaded: whether the evaluator's network already has its weights; ``model`` is then only their name. It is set in
            Python only.

    Raises:
        Refused: weights that were trained with other settings, when it is built; later an evaluator without ``scores``,
            weights that do not fit, an unknown site or split, images without a label, files that have changed since the
            list was made.

    Example::

        {"_target_": "samfed_monai.handlers.SiteEvaluation", "evaluator": "@validate#evaluator", "model": "@model"}
    """

    evaluator: SupervisedEvaluator
    scores: ScoreHandler
    model: str | Path
    datalist: str | Path
    data_root: str | Path
    split: str = "test"
    site: str | None = ""
    preprocessing: Callable[[Mapping[str, Any]], Any]
    batch_size: int = 8
    output_dir: str | Path
    limit: int | None = None
    settings: Mapping[str, Any] | None = None
    loaded: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        require(setting_differences(self.model, self.settings or {}))
        self.folder = Path(self.output_dir)

    def run(self) -> dict[str, Any]:
        """Evaluates and returns the content of ``metrics.json``."""
        require_writable(self.folder / "metrics.json")
        records = self._records()
        if not self.evaluator.has_event_handler(self.scores):
            raise refused("validate#evaluator#val_handlers", "other handlers only", "a list with @validate#scores")
        network = self.evaluator.network
        if not self.loaded:
            network.load_state_dict(trained_weights(network, self.model), strict=False)
        (self.folder / "metrics.json").unlink(missing_ok=True)  # it would not belong to the new tables
        sites = {name: self._evaluate_site(name, items) for name, items in records.items()}
        scored = {"sites": sites, "average": pool(sites.values(), skip_empty=self.scores.skip_empty)}
        result = {"model": Path(self.model).name, "split": self.split, **scored, "convention": self.scores.convention}
        write_json(self.folder / "metrics.json", result)
        logger.info("%s", tables_of(result).rstrip())
        return result

    def _records(self) -> dict[str, list[dict[str, Any]]]:
        from samfed_monai.data import DataList
        from samfed_monai.data.checks import among_images

        datalist = DataList.load(self.datalist)
        require(among_images(datalist, self.data_root, self.folder))
        names = sorted(datalist.sites) if self.site is None or self.site in SERVER_NAMES else [self.site]
        records = labelled_records(datalist, self.data_root, names, split=self.split, limit=self.limit)
        if not records:
            where = f"{self.datalist} -> {self.site or 'sites'} -> {self.split}"
            raise refused(where, "none", "at least one image", "choose another split")
        return records

    def _evaluate_site(self, name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
        from monai.data import DataLoader, Dataset

        loader = DataLoader(Dataset(records, self.preprocessing), batch_size=self.batch_size, num_workers=0)
        self.scores.output_dir = self.folder / name / self.split
        self.evaluator.data_loader = loader
        self.evaluator.state.epoch_length = len(loader)
        self.evaluator.run()
        return dict(self.evaluator.state.score_summary)


def tables_of(result: Mapping[str, Any]) -> str:
    """Formats a row for each site, its classes, and all images; ``empty`` counts empty masks. For slices of volumes, a
    second table has the scores of whole volumes; ``of`` is the number of volumes with an HD95."""
    rows: list[tuple[str, ...]] = [(result["split"], "n", "Dice", "IoU", "HD95", "empty")]
    volumes: list[tuple[str, ...]] = [("whole volumes", "n", "Dice", "HD95 mm", "of")]
    for site, row in {**result["sites"], "average": result["average"]}.items():
        for name, part in _with_classes(site, row).items():
            scores = (_formatted(part[key], form) for key, form in (("dice", ".3f"), ("iou", ".3f"), ("hd95", ".1f")))
            rows.append((name, str(part["n"]), *scores, str(sum(part["empty"].values())) if part is row else ""))
        for name, part in _with_classes(site, row["volumes"]).items() if row.get("volumes") else ():
            dice, hd95 = _formatted(part["dice"], ".3f"), _formatted(part["hd95_mm"], ".1f")
            volumes.append((name, str(part["n"]), dice, hd95, str(part["measured"])))
    return aligned(rows) + (aligned(volumes) if len(volumes) > 1 else "")


def _with_classes(site: str, summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {site: summary, **{f"{site} {name}": part for name, part in (summary.get("classes") or {}).items()}}


def _formatted(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
