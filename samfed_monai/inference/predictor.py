"""Predicts masks and probabilities of images with every kind of model."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, set_track_meta
from monai.engines import SupervisedEvaluator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from samfed_monai.config.options import USE_OF_TEACHER
from samfed_monai.config.workflow import run_job, run_workflow
from samfed_monai.core.errors import Problems, refused
from samfed_monai.core.io import naming, sha256_file, write_json
from samfed_monai.core.process_setup import best_device
from samfed_monai.core.run_log import muted
from samfed_monai.core.validators import require
from samfed_monai.data import DataList
from samfed_monai.data.checks import ids_of
from samfed_monai.data.image_folder import image_folder
from samfed_monai.handlers import BatchBar, SiteEvaluation
from samfed_monai.handlers.mask_writer import ConflictingFiles, MaskFolder, MaskWriter, Prediction, predicted
from samfed_monai.inference.assessment import Assessment, assess, calibrated_on, measure, require_enough, scored_pairs
from samfed_monai.inference.model import Kind, TrainedModel, scored_as, scoring_hash
from samfed_monai.metrics import pool
from samfed_monai.metrics.quality import DOUBTFUL, Colours, Quality, digests_of, recognised, write_quality
from samfed_monai.teacher.evaluation import TeacherNetwork, read_image_tensor

if TYPE_CHECKING:
    from samfed_monai.federation.teacher import TeacherStage
    from samfed_monai.federation.workflow import WorkflowConfig
    from samfed_monai.inference.forms import MaskForms

logger = logging.getLogger(__name__)

SCORED = "evaluation.json"
"""File beside ``metrics.json`` that records the scored model, data and options."""
TEACHER = "teacher#"
"""Prefix of ids of ``teacher.json``."""
EXPORTED_READ = frozenset({"dataloader", "postprocessing", "inferer", "threshold"})
"""Ids of ``inference.json`` that are read for an exported network."""
TEACHER_READ = {
    "evaluate": frozenset({"validate#scores", "validate#preprocessing", "limit", "classes"}),
    "inference": frozenset({"threshold", "classes"}),
}
"""Ids of a bundle's workflows that are read if a teacher is used instead of a student."""
_FIXED = ("amp", "image_size")
"""Ids that an exported network fixes."""


class Predictor:
    """Segments images with a trained model, as configured in the bundle's ``inference.json``.

    A teacher reads images at their own size and uses only ``threshold`` and ``classes`` of ``inference.json``. For
    volumes and DICOM objects see :func:`samfed_monai.inference.segment`.

    Args:
        bundle: a bundle's folder, or the name of a packaged one.
        model: a finished run's folder, a weights file, a teacher's adapter or an exported ONNX file; ``None``: the
            bundle's own.
        site: for a run, the site of the model; "" is the server's.
        views: test-time views (1, 2, 4 or 8); ``None``: the bundle's.
        runtime: runtime of an ONNX file: ``onnxruntime`` (default) or ``openvino``.
        doubtful_below: expected Dice below which a mask is doubtful, in [0, 1].
        overrides: values by id of ``inference.json``, or, with prefix ``teacher#``, of ``teacher.json``.

    Raises:
        Refused: no such model; an argument that does not apply to this kind of model. When called: all problems of the
            bundle, the overrides, the weights or the images.

    Example::

        predictor = Predictor("samfed_skin", overrides={"threshold": 0.4})
        for found in predictor(["mole.jpg"]):
            print(found.name, found.mask.shape, found.probability.max())
    """

    def __init__(
        self,
        bundle: str | Path = "samfed_skin",
        model: str | Path | None = None,
        *,
        site: str = "",
        views: int | None = None,
        runtime: str | None = None,
        doubtful_below: float = DOUBTFUL,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.site, self.views = TrainedModel(bundle, model, runtime), site, views
        self.overrides, self.doubtful_below = dict(overrides or {}), doubtful_below
        self._teacher_network: TeacherNetwork | None = None  # built at first use
        self.model.require_run(site)
        problems = Problems()
        problems.unless(0 <= doubtful_below <= 1, "--flag-below", doubtful_below, "a Dice in [0, 1]")
        if runtime and self.model.kind is not Kind.ONNX:
            hint = "leave it out, or export the network with `samfed export --to onnx` and name that file"
            problems.add("--runtime", found=str(self.model.path), expected="an ONNX file", hint=hint)
        problems.refuse_if_any()

    @cached_property
    def classes(self) -> list[str]:
        """Names of several classes, with class values in masks; empty for one, with 0 and 255 in masks."""
        return self.model.classes(self.overrides.get("classes"))

    def __call__(self, images: str | Path | Sequence[str | Path | NDArray[np.uint8]]) -> list[Prediction]:
        """Returns masks and probabilities of images, at their own size.

        Args:
            images: a folder, searched with its subfolders, or a list of folders, image files and arrays (H, W, 3)
                uint8 RGB. An array is named by its place in the list.
        """
        predictions: list[Prediction] = []
        with tempfile.TemporaryDirectory(prefix="samfed-") as folder, muted("samfed_monai.handlers.mask_writer"):
            sources = _sources(images, Path(folder))
            self._run(sources, f"{folder}/masks", lambda made, image, threshold: predictions.append(made))
        return predictions

    def write(
        self,
        images: str | list[str],
        output_dir: str | Path,
        *,
        probabilities: bool = False,
        skip_unreadable: bool = False,
        parts: bool = False,
        forms: MaskForms | None = None,
    ) -> dict[str, Assessment]:
        """Writes a PNG mask of every image (:class:`~samfed_monai.handlers.mask_writer.MaskWriter`).

        Args:
            images: a folder, or a list of folders and images.
            output_dir: folder for the masks.
            probabilities: whether to write 8-bit probability maps too.
            skip_unreadable: whether to leave out images that cannot be read, each with a warning.
            parts: whether images are slices or frames, whose masks may be empty.
            forms: collects masks whose path holds another file; ``None`` refuses these after writing all others.

        Returns:
            The assessment of each mask by the image's name.
        """
        assessed: dict[str, Assessment] = {}

        def on_prediction(prediction: Prediction, image: Tensor, threshold: float) -> None:
            options: dict[str, Any] = {"doubtful_below": self.doubtful_below, "parts": parts}
            assessed[prediction.name] = assess(prediction, image, self.model.quality, threshold=threshold, **options)

        try:
            options = {"probabilities": probabilities, "skip_unreadable": skip_unreadable}
            self._run(images, str(output_dir), on_prediction, **options)
        except ConflictingFiles as error:
            if forms is None:
                raise
            forms.problems.extend(error.problems)
            forms.unwritten |= error.masks
        return assessed

    def _run(
        self,
        images: str | list[str],
        output_dir: str,
        on_prediction: Callable[[Prediction, Tensor, float], None],
        *,
        probabilities: bool = False,
        skip_unreadable: bool = False,
    ) -> None:
        """Writes masks of images into a folder, and calls ``on_prediction(prediction, image, threshold)`` for each."""

        def attach(engine: Engine, threshold: float) -> None:
            def on_iteration(engine: Engine) -> None:
                batch: Any = engine.state.batch
                inputs = [item["image"] for item in batch] if isinstance(batch, list) else batch["image"]
                predictions = predicted(engine, threshold=threshold, classes=self.classes)
                for found, image in zip(predictions, inputs, strict=True):
                    on_prediction(found, image, threshold)

            engine.add_event_handler(Events.ITERATION_COMPLETED, on_iteration)

        model, overrides = self.model, self._with_views("views")
        given = {"dataset_dir": images, "output_dir": output_dir, "probabilities": probabilities}
        skip = {"dataset#data#skip_unreadable": True} if skip_unreadable else {}
        if model.kind in (Kind.RUN, Kind.WEIGHTS):  # the bundle's own evaluator and handlers
            ids = {**given, **skip, **model.ids("inference", overrides, self.site)}

            def prepared(job: Any) -> None:
                attach(job.evaluator, float(job.parser.get("threshold", 0.5)))

            run_workflow(model.bundle, "inference", ids, given=overrides, on_initialized=prepared)
            return
        network: TeacherNetwork | Any
        if model.kind is Kind.ONNX:
            config, network, device = self._exported_config(given | skip), model.exported, torch.device("cpu")
            inferer, postprocessing, size = config.values("inferer", "postprocessing", "image_size")
            made_by = {"model": model.path, "image_size": size, "runtime": model.runtime}
        else:
            config, stage = self._teacher("inference", given)
            network = self._teacher_network = self._teacher_network or TeacherNetwork(stage.fitted(model.path))
            device, inferer, postprocessing = best_device(), None, None
            made_by = {"model_sha256": network.teacher.sha256, "image_size": network.teacher.size}
        threshold = config.value("threshold")
        options = {"probabilities": probabilities, "threshold": threshold, "classes": self.classes, **made_by}
        views = getattr(inferer, "views", 1)  # a teacher's views are part of its hash
        writer = MaskWriter(output_dir=output_dir, images=images, views=views, **options)
        if model.kind is Kind.ONNX:
            loader = config.value("dataloader")
        else:
            records = image_folder(images, skip_unreadable=skip_unreadable)
            loader = DataLoader(Dataset(records, _at_native_size), batch_size=1)
        set_track_meta(True)  # as the bundle's own `initialize` does
        handlers = [writer, BatchBar(what="segmenting")]
        steps = {"inferer": inferer, "postprocessing": postprocessing, "decollate": postprocessing is not None}
        evaluator = SupervisedEvaluator(device, loader, network, val_handlers=handlers, **steps)
        attach(evaluator, threshold)
        run_job(job=evaluator)

    def _exported_config(self, given: Mapping[str, Any]) -> WorkflowConfig:
        """Returns ``inference.json`` for an exported network, with the network's image size."""
        file, problems = self.model.path, Problems()
        for name in self.overrides.keys() & set(_FIXED):
            expected, hint = f"none: {file.name} has a fixed value", "leave it out, or use the original model"
            problems.add(f"--{name}", found=str(self.overrides[name]), expected=expected, hint=hint)
        height, width = self.model.exported.size
        problems.unless(height == width, f"{file} -> input", f"{width} x {height}", "a square image", "export it again")
        ids = {"model": str(file), **given, **self._with_views("views"), "image_size": height}
        return self.model.config("inference", ids, given=self.overrides, reads=EXPORTED_READ, problems=problems)

    def score(
        self,
        datalist: str,
        data_root: str,
        output_dir: str,
        *,
        site: str = "",
        split: str | None = None,
        calibrate: bool = False,
    ) -> dict[str, Any]:
        """Scores the model on a split of a data list; writes tables and ``metrics.json`` and returns its content.

        Sites of a run with personal models are scored with their own model, sites that did not train in the run with
        the server's, which is logged. A teacher is scored like students, on labels of the bundle's ``image_size``;
        ``metrics.json`` then describes it. A folder holds the scores of one evaluation, which may be repeated.

        Args:
            datalist: file of the list.
            data_root: folder that its paths are relative to.
            output_dir: folder to write to.
            site: a single site to score; "" is all sites of the list.
            split: ``validation`` or ``test``; ``None`` is ``validation`` to calibrate, else ``test``.
            calibrate: whether to calibrate the model's quality on these images and write it beside the model; on
                training images it looks better than it is.

        Raises:
            Refused: before any image is scored: too few images to calibrate on; a folder with scores of another model,
                list or split, or with other options.
        """
        split, data, run = split or ("validation" if calibrate else "test"), DataList.load(datalist), self.model.run
        listed = data.sites
        sites = [site] if site in listed else listed
        images = {name: items for name in sites if (items := getattr(listed[name], split))}
        if calibrate:
            if self.views not in (None, 1):
                expected = "one view, the default: the bounds of one view also hold for more views"
                raise refused("--views", found=f"{self.views} with --calibrate", expected=expected, hint="leave it out")
            require_enough(sum(map(len, images.values())), split)
        else:
            quality = self.model.quality  # refuses the quality of other weights before any image is scored
        given = {"datalist": datalist, "data_root": data_root, "split": split, "output_dir": output_dir, "site": site}
        owners = {"": ""}
        if run is not None and run.personal:
            names = [site] if site else sorted(images)
            owners = {name: name if name in run.sites else "" for name in names} or {"": run.sites[0]}
            if untrained := ", ".join(name for name in names if name not in run.trained):
                logger.warning("scored with the server's model, as no such site trained in the run: %s", untrained)
        conditions = {name: str(value) for name, value in self._with_views("views").items()}
        conditions |= {"bundle": self.model.bundle.name, "scoring": scoring_hash(self.model.bundle)}
        conditions |= {"list": data.hash, "split": split, "site": site or "all"}
        conditions |= {f"model {name}".strip(): sha256_file(self.model.weights(of)) for name, of in owners.items()}
        folder = MaskFolder(output_dir, conditions, SCORED)
        if not any([*Path(output_dir).glob("*/*/scores.csv"), *Path(output_dir).glob("metrics.json")]):
            folder.record.unlink(missing_ok=True)  # left by an evaluation without scores
        require(folder.problems(["metrics.json", *(f"{name}/{split}/scores.csv" for name in listed)]))
        if self.model.kind is Kind.ADAPTER:
            result = self._score_teacher(given, folder)
        elif "" in owners:
            result = self._score(given, owners[""], folder)  # refuses a personal run with a reason
        else:
            result = self._score_each(given, owners, folder)
        pairs = scored_pairs(Path(output_dir), result)
        all_pairs = [pair for of_site in pairs.values() for pair in of_site.values()]
        ids = {name: ids_of([item.image for of, _, item in data.items() if of == name]) for name in pairs}
        hashes = {name: [one.sha256 for one in images[name] if ids[name][one.image] in pairs[name]] for name in pairs}
        if calibrate:
            write_json(Path(output_dir) / "metrics.json", result)  # kept if calibration fails
            colours = self._public_colours(datalist, data_root, result["sites"])
            quality = Quality(calibrated_on(all_pairs, split), colours, digests_of(hashes))
            write_quality(quality, self.model.path)
        calibrating = sum(len(pairs[name]) for name in recognised(hashes, quality.images))
        result = {**result, "quality": measure(all_pairs, quality.calibration, calibrating=calibrating)}
        write_json(Path(output_dir) / "metrics.json", result)
        return result

    def _public_colours(self, datalist: str, data_root: str, scored: Iterable[str]) -> Colours | None:
        """Returns the colours of the list's public images after a student's transforms; ``None`` for a teacher.

        If the server of a run has no whole model, the model of the first site in ``scored`` is used.
        """
        from samfed_monai.federation.preparation import public_colours

        if self.model.kind is Kind.ADAPTER:
            return None
        run = self.model.run
        owner = next((site for site in scored if run is not None and run.personal and site in run.sites), "")
        ids = self.model.ids("evaluate", self._with_views("validate#inferer#views"), owner)
        config = self.model.config("evaluate", ids, given=(), reads={"validate#preprocessing"}, ready=False)
        return public_colours(config, DataList.load(datalist), data_root)

    def _score_each(self, given: Mapping[str, Any], owners: Mapping[str, str], folder: MaskFolder) -> dict[str, Any]:
        """Returns ``metrics.json`` of several models; ``owners`` maps each site to its model's site ("": server)."""
        results = [self._score({**given, "site": name}, owner, folder) for name, owner in owners.items()]
        rows = {name: row for result in results for name, row in result["sites"].items()}
        skip = results[0]["convention"]["empty"] == "skipped"
        model_of_site = {name: result["model"] for result in results for name in result["sites"]}
        return {**results[0], "sites": rows, "average": pool(rows.values(), skip_empty=skip), "model": model_of_site}

    def _score(self, given: Mapping[str, Any], owner: str, folder: MaskFolder) -> dict[str, Any]:
        """Returns ``metrics.json`` of the model of ``owner``; "" is the server's."""
        options = self._with_views("validate#inferer#views")
        of_run = scored_as(self.model.run.run) if self.model.run is not None else {}
        ids = {**given, **self.model.ids("evaluate", of_run | options, owner)}

        def at_start(job: Any) -> None:
            job.parser.get_parsed_content("validate#evaluator").add_event_handler(Events.STARTED, folder.write_record)

        return dict(run_workflow(self.model.bundle, "evaluate", ids, given=options, on_initialized=at_start)[-1])

    def _with_views(self, views: str) -> dict[str, Any]:
        if self.views is not None and views in self.overrides:
            raise refused("--views", found=f"--{views} as well", expected="one of the two", hint="leave one out")
        return self.overrides | ({} if self.views is None else {views: self.views})

    def _teacher(self, workflow: str, given: Mapping[str, Any]) -> tuple[WorkflowConfig, TeacherStage]:
        """Returns the bundle's workflow, and the teacher stage of its ``teacher.json`` for the adapter."""
        from samfed_monai.config.check import check_bundle
        from samfed_monai.federation.teacher import TeacherStage
        from samfed_monai.networks.sam import adapter

        bundle, path = self.model.bundle, self.model.path
        of_teacher, of_workflow = dict[str, Any](), dict[str, Any]()
        for name, value in self._with_views(f"{TEACHER}views").items():
            (of_teacher if name.startswith(TEACHER) else of_workflow)[name.removeprefix(TEACHER)] = value
        found = check_bundle(bundle, "teacher", overrides=of_teacher, ready=False, reads=USE_OF_TEACHER)
        problems = [replace(each, where=each.where.replace("line -> ", f"line -> {TEACHER}")) for each in found]
        ids = {"model": str(path), **given, **of_workflow}
        config = self.model.config(workflow, ids, given=of_workflow, reads=TEACHER_READ[workflow], problems=problems)
        header = adapter.read_header(path)
        options = {"base": header.base, "size": header.size, "adapt": header.adapt.value, **of_teacher}
        return config, TeacherStage(bundle, options, bundle)  # the last argument, a cache, is not used

    def _score_teacher(self, given: dict[str, Any], folder: MaskFolder) -> dict[str, Any]:
        config, stage = self._teacher("evaluate", given)
        teacher = stage.fitted(self.model.path)
        scores, preprocessing = config.values("validate#scores", "validate#preprocessing")

        def read(record: Mapping[str, Any]) -> dict[str, Any]:
            """Reads the label as for students, and the image at its own size."""
            return {**record, **_at_native_size(record), "label": torch.as_tensor(preprocessing(dict(record))["label"])}

        own: dict[str, Any] = {"prepare_batch": _with_size, "val_handlers": [scores, BatchBar(what="scoring")]}
        evaluator = SupervisedEvaluator(best_device(), [], TeacherNetwork(teacher), decollate=False, **own)
        evaluator.add_event_handler(Events.STARTED, folder.write_record)
        options = {"batch_size": 1, "limit": config.optional("limit"), "model": self.model.path}
        evaluation = SiteEvaluation(evaluator=evaluator, scores=scores, preprocessing=read, **options, **given)
        evaluation.loaded = True
        about = {**stage.about(teacher, str(stage.overrides["adapt"])), "sha256": teacher.sha256}
        return evaluation.run() | {"teacher": about}


def _sources(images: str | Path | Sequence[str | Path | NDArray[np.uint8]], folder: Path) -> str | list[str]:
    """Returns folders and files as strings; arrays become files in ``folder``."""
    if isinstance(images, str | Path):
        return str(images)
    sources = []
    for index, image in enumerate(images):
        if isinstance(image, np.ndarray):
            with naming(path := folder / f"{index}.png"):
                Image.fromarray(image).save(path)
            image = path
        sources.append(str(image))
    return sources


def _at_native_size(record: Mapping[str, Any]) -> dict[str, Any]:
    image = read_image_tensor(dict(record))[0].float() / 255
    return {"id": record["id"], "image": image, "native_size": tuple(image.shape[-2:])}


def _with_size(
    batch: Mapping[str, Tensor], device: Any = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[()], dict[str, Any]]:
    """An evaluator's ``prepare_batch`` that gives the network the size of the label."""
    image, label = (batch[name].to(device, non_blocking=non_blocking) for name in ("image", "label"))
    return image, label, (), {"size": tuple(label.shape[-2:])}
