"""Images in, masks and probabilities out: one predictor for every kind of model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, set_track_meta
from monai.engines import SupervisedEvaluator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from samfed_monai.config.options import USE_OF_TEACHER
from samfed_monai.config.parse import split_id
from samfed_monai.config.workflow import run_workflow
from samfed_monai.core.errors import Problems
from samfed_monai.core.io import write_json
from samfed_monai.core.own_process import best_device
from samfed_monai.data import DataList
from samfed_monai.data.image_folder import image_folder
from samfed_monai.handlers import BatchBar, SiteEvaluation
from samfed_monai.handlers.mask_writer import MaskWriter, Prediction, predictions
from samfed_monai.inference.assessment import Assessment, Assessor
from samfed_monai.inference.model import Kind, TrainedModel, checked_config, filled_network, trained_as
from samfed_monai.inference.onnx_network import OnnxNetwork
from samfed_monai.inference.promised import calibrated_on, kept, require_enough, scored_pairs
from samfed_monai.metrics import pool
from samfed_monai.metrics.quality import DOUBTFUL, Quality
from samfed_monai.metrics.quality_file import digests_of, recognised, write_quality
from samfed_monai.teacher.exam import read_image_tensor
from samfed_monai.teacher.inference import TeacherNetwork

if TYPE_CHECKING:
    from samfed_monai.federation.teacher import TeacherStage
    from samfed_monai.federation.workflow import WorkflowConfig
    from samfed_monai.metrics.quality import Colours

TEACHER = "teacher#"
"""Before an id of ``teacher.json``."""
NETWORK_READ = frozenset({"dataloader", "postprocessing", "inferer", "threshold"})
"""Ids of ``inference.json`` that are read for a network that runs without the bundle's own evaluator."""
TEACHER_READ = {
    "evaluate": frozenset({"validate#scores", "validate#preprocessing", "limit", "classes"}),
    "inference": frozenset({"threshold", "classes"}),
}
"""Ids of a bundle's workflows that are read where a teacher is used in place of a student."""
_SETTLED = frozenset({"classes", "network_name", "network_def", "network", "model_path", "amp", "device"})
"""Ids of ``inference.json`` that an exported network has settled."""


class _Ready(NamedTuple):
    """What an evaluator is made of; ``loader`` reads the images when it is called."""

    network: nn.Module
    loader: Callable[[], Any]
    threshold: float
    made_by: Mapping[str, Any]  # for MaskWriter
    device: torch.device
    inferer: Any = None
    postprocessing: Any = None


class Predictor:
    """Segments images with a trained model, as the bundle's ``inference.json`` declares it.

    A teacher reads images at their own size and takes only ``threshold`` and ``classes`` of ``inference.json``. Volumes
    and DICOM objects are not read here: see :func:`samfed_monai.inference.segment`.

    Args:
        bundle: a bundle's folder, or the name of a packaged one.
        model: a finished run's folder, a weights file, a teacher's adapter or an exported ONNX file; ``None``: the
            bundle's own.
        site: of a run: whose model; "" is the server's.
        views: test-time views (1, 2, 4 or 8); ``None``: the bundle's.
        runtime: what runs an ONNX file: ``onnxruntime`` (default) or ``openvino``.
        doubtful_below: expected Dice below which a mask is called doubtful, in [0, 1].
        overrides: ids of ``inference.json``, with ``teacher#`` before them of ``teacher.json``, to values.

    Raises:
        Refused: no such model; an argument that this kind of model does not have. Later: everything that is wrong with
            the bundle, the overrides, the weights or the images.

    Example::

        predictor = Predictor("samfed_skin", overrides={"threshold": 0.4})
        for found in predictor(["a.jpg", picture]):
            print(found.name, found.mask.mean(), found.probability.max())
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
        self.model, self.site, self.views, self.runtime = TrainedModel(bundle, model), site, views, runtime
        self.overrides, self._network = dict(overrides or {}), None  # built at first use
        self.model.require_run(site)
        problems, kind = Problems(), self.model.kind
        self.doubtful_below = doubtful_below
        problems.unless(0 <= doubtful_below <= 1, "--flag-below", doubtful_below, "a Dice, in [0, 1]")
        for name in self.overrides:
            if name.startswith(TEACHER) and kind is not Kind.ADAPTER:
                hint = "leave it out, or name the adapter of a teacher as --model"
                found = f"{self.model.path}, which is no teacher's adapter"
                problems.add(f"--{name}", found=found, expected="a teacher's adapter", hint=hint)
        if runtime and kind is not Kind.ONNX:
            hint = "leave it out, or export the network with `samfed export --to onnx` and name that file"
            problems.add("--runtime", found=str(self.model.path), expected="an ONNX file to run", hint=hint)
        problems.refuse_if_any()

    @cached_property
    def classes(self) -> list[str]:
        """Names of several classes, whose values masks have; empty for one, whose masks have 0 and 255."""
        return self.model.classes(self.overrides.get("classes"))

    def __call__(self, images: str | Path | Sequence[str | Path | NDArray[np.uint8]]) -> list[Prediction]:
        """Masks and probabilities of images, at their own size.

        Args:
            images: a folder, searched with its sub-folders, or a list of folders, image files and arrays (H, W, 3)
                uint8 RGB. An array is called by its place in the list.
        """
        with tempfile.TemporaryDirectory(prefix="samfed-") as folder:
            ready = self._ready(_sources(images, Path(folder)))
            found: list[Prediction] = []

            def keep(engine: Engine) -> None:
                batch, output = engine.state.batch, engine.state.output
                found.extend(predictions(batch, output, threshold=ready.threshold, classes=self.classes))

            evaluator = self._evaluator(ready, [])
            evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
            evaluator.run()
        return found

    def write(
        self,
        images: str | list[str],
        output_dir: str | Path,
        *,
        probabilities: bool = False,
        skip_unreadable: bool = False,
        parts: bool = False,
    ) -> dict[str, Assessment]:
        """Writes a PNG mask of every image (:class:`~samfed_monai.handlers.mask_writer.MaskWriter`).

        Args:
            images: a folder, or a list of folders and images.
            output_dir: folder for the masks.
            probabilities: whether to write 8-bit maps of probabilities, too.
            skip_unreadable: whether to leave out images that cannot be read, each with a warning.
            parts: whether images are slices or frames, whose empty masks are no more doubtful than others.

        Returns:
            how far each mask is to be trusted, by the image's name.
        """
        given = {"dataset_dir": images, "output_dir": str(output_dir), "probabilities": probabilities}
        given |= {"dataset#data#skip_unreadable": True} if skip_unreadable else {}
        assessor = Assessor(self.model.quality, classes=self.classes, doubtful_below=self.doubtful_below, parts=parts)
        if self.model.kind in (Kind.RUN, Kind.WEIGHTS):  # the bundle's own evaluator and handlers
            weights, asked = self.model.weights(self.site), self._asked("views")
            ids = trained_as(weights, self.model.bundle, "inference", asked)

            def attach(job: Any) -> None:
                assessor.threshold = float(job.parser.get("threshold", 0.5))  # at which postprocessing makes masks
                assessor.attach(job.evaluator)

            run_workflow(
                self.model.bundle,
                "inference",
                {"model": str(weights), **given, **ids},
                asked=asked,
                prepared=attach,
            )
            return assessor.found
        ready = self._ready(images, given)
        writer = MaskWriter(
            output_dir=output_dir,
            probabilities=probabilities,
            threshold=ready.threshold,
            images=images,
            classes=self.classes,
            **ready.made_by,
        )
        assessor.threshold = ready.threshold
        self._evaluator(ready, [writer, assessor, BatchBar(what="segmenting")]).run()
        return assessor.found

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

        Sites of a run that have models of their own are each scored on theirs, sites that the run does not know on the
        server's. A teacher is scored as students are, on labels of the bundle's ``image_size``; ``metrics.json`` then
        says what it is.

        Args:
            datalist: file of the list.
            data_root: folder that its paths start from.
            output_dir: folder to write to.
            site: only this one; "" is all of the list.
            split: ``validation`` or ``test``; ``None`` is ``validation`` to calibrate, else ``test``.
            calibrate: whether to write, beside the model, what its estimates were worth on these images; on images
                that it was trained on they look better than they are.

        Raises:
            Refused: too few images to calibrate on, before any is scored.
        """
        split = split or ("validation" if calibrate else "test")
        listed = DataList.load(datalist).sites
        images = {name: getattr(listed[name], split) for name in ([site] if site in listed else listed)}
        hashes = {name: [item.sha256 for item in items] for name, items in images.items() if items}
        if calibrate:
            require_enough(sum(map(len, hashes.values())), split)
        else:
            quality = self.model.quality  # refused before anything is scored, if it is of other weights
        result = self._scores(datalist, data_root, output_dir, site=site, split=split)
        pairs = scored_pairs(Path(output_dir), result)
        everywhere = [pair for of_site in pairs.values() for pair in of_site]
        if calibrate:
            colours = self._public_colours(datalist, data_root)
            quality = Quality(calibrated_on(everywhere, split), colours, digests_of(hashes))
            write_quality(quality, self.model.path)
        calibrating = sum(len(pairs[name]) for name in recognised(hashes, quality.images))
        result = {**result, "quality": kept(everywhere, quality.calibration, calibrating=calibrating)}
        write_json(Path(output_dir) / "metrics.json", result)
        return result

    def _public_colours(self, datalist: str, data_root: str) -> Colours | None:
        """Those of the list's public images as a student sees them; ``None`` of a teacher, which sees whole images."""
        from samfed_monai.federation.quality import public_colours

        if self.model.kind is Kind.ADAPTER:
            return None
        weights, asked = self.model.weights(self.site), self._asked("validate#inferer#views")
        ids = {"model": str(weights), **trained_as(weights, self.model.bundle, "evaluate", asked)}
        reads = {"validate#preprocessing"}
        config = checked_config(self.model.bundle, "evaluate", ids, asked=(), reads=reads, ready=False)
        return public_colours(config, DataList.load(datalist), data_root)

    def _scores(self, datalist: str, data_root: str, output_dir: str, *, site: str, split: str) -> dict[str, Any]:
        given = {"datalist": datalist, "data_root": data_root, "split": split, "output_dir": output_dir, "site": site}
        if self.model.kind is Kind.ADAPTER:
            return self._score_teacher(given)
        run = self.model.run
        if run is None or not run.personal:
            return self._score(given, "")
        listed = DataList.load(datalist).sites
        sites = [site] if site else [name for name in sorted(listed) if getattr(listed[name], split)]
        owners = {name: name if name in run.sites else "" for name in sites}
        for owner in owners.values():  # before the first one takes its time
            run.require(owner)
        results = [self._score({**given, "site": name}, owner) for name, owner in owners.items()]
        if not results:
            return self._score(given, run.sites[0])  # refuses, and says why
        rows = {name: row for result in results for name, row in result["sites"].items()}
        skip = results[0]["convention"]["empty"] == "skipped"
        own = {name: result["model"] for result in results for name in result["sites"]}
        return {**results[0], "sites": rows, "average": pool(rows.values(), skip_empty=skip), "model": own}

    def _score(self, given: Mapping[str, Any], owner: str) -> dict[str, Any]:
        """``metrics.json`` of the model of ``owner``; "" is the server's."""
        weights, asked = self.model.weights(owner), self._asked("validate#inferer#views")
        ids = trained_as(weights, self.model.bundle, "evaluate", self.model.scored_as | asked)
        given = {**given, "model": str(weights)}
        result: dict[str, Any] = run_workflow(self.model.bundle, "evaluate", given | ids, asked=asked)[-1]
        return result

    def _once(self, build: Callable[[], Any]) -> Any:
        """The network, built at the first call."""
        self._network = build() if self._network is None else self._network
        return self._network

    def _asked(self, views: str) -> dict[str, Any]:
        return self.overrides | ({} if self.views is None else {views: self.views})

    def _evaluator(self, ready: _Ready, handlers: list[Any]) -> SupervisedEvaluator:
        set_track_meta(True)  # as the bundle's own `initialize` does
        return SupervisedEvaluator(
            device=ready.device,
            val_data_loader=ready.loader(),
            network=ready.network,
            inferer=ready.inferer,
            postprocessing=ready.postprocessing,
            val_handlers=handlers,
            decollate=ready.postprocessing is not None,
        )

    def _ready(self, images: str | list[str], given: Mapping[str, Any] | None = None) -> _Ready:
        ids = {"dataset_dir": images, **(given or {})}
        if self.model.kind is Kind.ADAPTER:
            return self._teacher_ready(ids)
        return self._network_ready(*self._exported(ids) if self.model.kind is Kind.ONNX else self._student(ids))

    def _student(self, given: Mapping[str, Any]) -> tuple[nn.Module, WorkflowConfig, torch.device]:
        weights, asked = self.model.weights(self.site), self._asked("views")
        ids = {"model": str(weights), **given, **trained_as(weights, self.model.bundle, "inference", asked)}
        reads = NETWORK_READ | {"network_def"}
        config = checked_config(self.model.bundle, "inference", ids, asked=asked, reads=reads)
        device = best_device()
        return self._once(lambda: filled_network(config, weights).to(device)), config, device

    def _exported(self, given: Mapping[str, Any]) -> tuple[nn.Module, WorkflowConfig, torch.device]:
        file, problems = self.model.path, Problems()
        for name, value in self.overrides.items():
            if split_id(name)[0] in _SETTLED:
                hint = "leave it out, or name the weights that were exported"
                problems.add(f"--{name}", found=str(value), expected=f"nothing: {file.name} has settled it", hint=hint)
        problems.refuse_if_any()
        network = self._once(lambda: OnnxNetwork(file, self.runtime or "onnxruntime"))
        height, width = network.size
        if height != width or self.overrides.get("image_size", height) != height:
            found = f"{width} x {height} pixels"
            expected = f"a square of {self.overrides.get('image_size', height)} pixels"
            hint = "leave --image_size out, or export anew"
            problems.add(f"{file} -> input", found=found, expected=expected, hint=hint)
        ids = {"model": str(file), **given, **self._asked("views"), "image_size": height}
        config = checked_config(
            self.model.bundle, "inference", ids, asked=self.overrides, reads=NETWORK_READ, problems=problems
        )
        return network, config, torch.device("cpu")

    def _network_ready(self, network: nn.Module, config: WorkflowConfig, device: torch.device) -> _Ready:
        inferer, postprocessing = config.values("inferer", "postprocessing")
        made_by = {"model": self.model.path, "image_size": config.value("image_size"), "runtime": self.runtime or ""}
        loader, threshold = lambda: config.value("dataloader"), config.value("threshold")
        return _Ready(network, loader, threshold, made_by, device, inferer, postprocessing)

    def _teacher_ready(self, given: Mapping[str, Any]) -> _Ready:
        given = dict(given)
        skip = given.pop("dataset#data#skip_unreadable", False)
        config, stage = self._teacher("inference", given)
        network = self._once(lambda: TeacherNetwork(stage.fitted(self.model.path)))
        return _Ready(
            network,
            lambda: DataLoader(
                Dataset(image_folder(given["dataset_dir"], skip_unreadable=skip), _at_native_size), batch_size=1
            ),
            config.value("threshold"),
            {"model_sha256": network.teacher.sha256, "image_size": network.teacher.size},
            best_device(),
        )

    def _teacher(self, workflow: str, given: Mapping[str, Any]) -> tuple[WorkflowConfig, TeacherStage]:
        """The bundle's workflow, and how its ``teacher.json`` uses the adapter."""
        from samfed_monai.config.check import check_bundle
        from samfed_monai.federation.teacher import TeacherStage
        from samfed_monai.networks.sam import adapter

        bundle, path = self.model.bundle, self.model.path
        of_teacher, own = dict[str, Any](), dict[str, Any]()
        for name, value in self.overrides.items():
            (of_teacher if name.startswith(TEACHER) else own)[name.removeprefix(TEACHER)] = value
        of_teacher |= {} if self.views is None else {"views": self.views}
        problems = check_bundle(bundle, "teacher", overrides=of_teacher, ready=False, reads=USE_OF_TEACHER)
        ids = {"model": str(path), **given, **own}
        reads = TEACHER_READ[workflow]
        config = checked_config(bundle, workflow, ids, asked=own, reads=reads, problems=problems)
        header = adapter.read_header(path)
        named = {"base": header.base, "size": header.size, "adapt": header.adapt.value, **of_teacher}
        return config, TeacherStage(bundle, named, bundle)  # nothing is fitted: no cache is written

    def _score_teacher(self, given: dict[str, Any]) -> dict[str, Any]:
        config, stage = self._teacher("evaluate", given)
        teacher = stage.fitted(self.model.path)
        scores, preprocessing = config.values("validate#scores", "validate#preprocessing")

        def read(record: Mapping[str, Any]) -> dict[str, Any]:
            """The label as students are scored on it, beside the image as it is."""
            return {**_at_native_size(record), "label": torch.as_tensor(preprocessing(dict(record))["label"])}

        evaluation = SiteEvaluation(
            evaluator=SupervisedEvaluator(
                device=best_device(),
                val_data_loader=[],
                network=TeacherNetwork(teacher),
                prepare_batch=_with_size,
                val_handlers=[scores, BatchBar(what="scoring")],
                decollate=False,
            ),
            scores=scores,
            loaded=True,
            preprocessing=read,
            batch_size=1,
            limit=config.optional("limit"),
            model=self.model.path,
            **given,
        )
        about = {**stage.about(teacher, str(stage.overrides["adapt"])), "sha256": teacher.sha256}
        return evaluation.run() | {"teacher": about}


def _sources(images: str | Path | Sequence[str | Path | NDArray[np.uint8]], folder: Path) -> str | list[str]:
    """Folders and files as words; arrays become files in ``folder``."""
    if isinstance(images, str | Path):
        return str(images)
    found = []
    for index, image in enumerate(images):
        if isinstance(image, np.ndarray):
            path = folder / f"{index}.png"
            Image.fromarray(image).save(path)
            image = path
        found.append(str(image))
    return found


def _at_native_size(record: Mapping[str, Any]) -> dict[str, Any]:
    image = read_image_tensor(dict(record))[0].float() / 255
    return {"id": record["id"], "image": image, "native_size": tuple(image.shape[-2:])}


def _with_size(
    batch: Mapping[str, Tensor], device: Any = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[()], dict[str, Any]]:
    """An evaluator's ``prepare_batch`` that gives the network the size of the label."""
    image, label = (batch[name].to(device, non_blocking=non_blocking) for name in ("image", "label"))
    return image, label, (), {"size": tuple(label.shape[-2:])}
