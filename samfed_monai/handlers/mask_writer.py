"""Writes an evaluator's predictions as PNG masks of each image's own size, into a folder of one model."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from samfed_monai.core.errors import Problem, Problems, Refused, refused
from samfed_monai.core.io import make_folder, read_json, require_writable, sha256_file, write_bytes, write_json
from samfed_monai.core.text import counted, near
from samfed_monai.core.validators import in_range
from samfed_monai.data.classes import class_threshold_problems, is_multiclass
from samfed_monai.data.image_folder import Sources, image_paths
from samfed_monai.data.reading import png_of
from samfed_monai.handlers.evaluation import images_of
from samfed_monai.metrics.quality import estimate

logger = logging.getLogger(__name__)


RECORD = "inference.json"
"""File beside the masks with the settings that they were made with."""

_HINT = "choose another --output-dir (output_dir)"
_MOST_PENDING = 16  # full-size masks that may wait to be written


class MaskFolder:
    """Writes masks into a folder without ever replacing a file; only new or byte-identical files are accepted.

    The same inference can be repeated, or resumed after an interruption, while labels, images, corrected masks and
    masks of another model are kept.

    Args:
        folder: folder for the masks; names with folders in them create sub-folders.
        made_with: settings that determine the masks, as JSON content; they are written to ``record`` with the first
            mask, and an existing record is compared before anything is computed. Empty: no record.
        record: name of that file.

    Raises:
        Refused: by :meth:`write`, an existing file with other content.
    """

    def __init__(self, folder: str | Path, made_with: Mapping[str, Any] | None = None, record: str = RECORD) -> None:
        self.folder, self.made_with = Path(folder).expanduser(), dict(made_with or {})
        self.record = self.folder / record

    def problems(self, names: Iterable[str] = (), *, images: Sources | None = None) -> list[Problem]:
        """Problems of writing masks with these names, to be checked before any is computed.

        Args:
            names: file names below the folder.
            images: folder of the images, or a list of folders and images; masks inside such a folder would be images
                of the next run.
        """
        for source in [images] if isinstance(images, str | Path) else images or ():
            if self._inside(Path(source).expanduser()):
                expected = f"a folder outside of {source} (all files there are read as images)"
                return [Problem("--output-dir (output_dir)", found=str(self.folder), expected=expected, hint=_HINT)]
        return self._record_problems(names) or self._folder_problems()

    def write(self, name: str, content: bytes) -> None:
        """Writes a file unless it already exists."""
        path = self.folder / name
        if path.exists():
            if path.read_bytes() != content:
                raise refused(path, "another file", "none, or the same mask", _HINT)
            return
        self.write_record()
        write_bytes(path, content)

    def write_record(self) -> None:
        """Writes the record of the settings unless it already exists."""
        if self.made_with and not self.record.exists():
            write_json(self.record, self.made_with)

    def _inside(self, images: Path) -> bool:
        folder = self.folder.resolve()  # samefile: a file system may be case-insensitive
        return images.is_dir() and any(path.exists() and path.samefile(images) for path in (folder, *folder.parents))

    def _record_problems(self, names: Iterable[str]) -> list[Problem]:
        record, problems = self.record, Problems()
        if not self.made_with:
            return []
        if not record.exists():
            existing = [name for name in names if (self.folder / name).exists()]
            if existing:
                found = existing[0] if len(existing) == 1 else f"{existing[0]} and {len(existing) - 1} more"
                problems.add(str(self.folder), found, f"no existing files, or {record.name} beside them", _HINT)
            return list(problems)
        with problems.collected():
            content = read_json(record)
            recorded = content if isinstance(content, dict) else {}
            is_record = recorded.keys() == self.made_with.keys()  # only a record of an inference may be deleted
            hint = f"{_HINT}, or delete this folder" if is_record else _HINT
            for key in {**self.made_with, **recorded}:
                if recorded.get(key) != (value := self.made_with.get(key)):
                    problems.add(f"{record} -> {key}", _short(recorded.get(key)), f"{_short(value)} for this run", hint)
        return list(problems)

    def _folder_problems(self) -> list[Problem]:
        try:
            if self.folder.exists():
                make_folder(self.folder)  # fails for a file
            require_writable(self.folder)
        except OSError as error:
            return [Problem(str(self.folder), error.strerror or str(error), "a folder that can be written to")]
        return []


def _short(value: Any) -> str:
    """A value for a message; hashes are shortened."""
    return "nothing" if value is None else str(value)[:12]


class ConflictingFiles(Refused):
    """Existing files with other content in place of masks; they are kept, and all other masks are written.

    Args:
        problems: one for each file.
        masks: the masks that were not written, PNG by path.
    """

    def __init__(self, problems: Iterable[Problem], masks: Mapping[Path, bytes]) -> None:
        super().__init__(problems)
        self.masks = masks


class Prediction(NamedTuple):
    """Prediction for one image.

    Args:
        name: the image's ``id``.
        mask: (H, W) uint8 of the image's own size: 0 and 255, or the values of several classes.
        probability: (H, W) float32 in [0, 1], of the foreground; with several classes, of any of them.
        estimate: quality of the mask estimated from the probabilities, in [0, 1]
            (:func:`samfed_monai.metrics.quality.estimate`).
    """

    name: str
    mask: NDArray[np.uint8]
    probability: NDArray[np.float32]
    estimate: float


def predictions(
    batch: Any, output: Any, *, threshold: float = 0.5, classes: Sequence[str] = ()
) -> Iterator[Prediction]:
    """Yields the predictions of a batch of a MONAI ``SupervisedEvaluator``.

    Args:
        batch: ``engine.state.batch``; an item has its name in ``id`` and, if its ``pred`` is logits, the size of its
            image in ``native_size``.
        output: ``engine.state.output``; ``pred`` is logits, or the mask (1, H, W) of a postprocessing, with
            ``probability`` (C, H, W).
        threshold: lowest probability of a foreground pixel, for one class.
        classes: names of several classes; empty for one.

    Raises:
        Refused: a number of channels that does not match the classes, a mask of another size than its image, or
            probabilities outside [0, 1].
    """
    for item in images_of(batch, output):
        if "native_size" in item:
            height, width = (int(side) for side in item["native_size"])
            probabilities = _probabilities(item["pred"], (height, width))
            foreground = probabilities[0] >= threshold
        else:
            foreground, probabilities = _postprocessed(item)
        channels = len(classes) + 1
        if len(probabilities) != channels:
            expected = f"{channels} (classes: {list(classes) or 'one'})"
            hint = "set `classes` to those of the network's training"
            raise refused("MaskWriter, pred", f"{len(probabilities)} channels", expected, hint)
        mask = (probabilities.argmax(axis=0) if classes else np.where(foreground, 255, 0)).astype(np.uint8)
        probability = 1 - probabilities[0] if classes else probabilities[0]
        yield Prediction(item["id"], mask, probability, estimate(probabilities, threshold))


def _postprocessed(item: Mapping[str, Any]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Foreground (H, W) and probabilities (C, H, W) of an image from a bundle's own ``postprocessing``."""
    mask, probability = item["pred"], item.get("probability", torch.zeros(1))
    operations = getattr(item.get("image"), "applied_operations", [])  # the first has the size of the image file
    size = tuple(map(int, operations[0].get("orig_size", ()) if operations else mask.shape[1:]))
    if not mask.shape[1:] == probability.shape[1:] == size or not 0 <= probability.min() <= probability.max() <= 1:
        values = f"{probability.min():.3g} to {probability.max():.3g}"
        found = f"{tuple(mask.shape[1:])} and {tuple(probability.shape[1:])}, {values}"
        expected = f"both with the image's size {size}, and probabilities from 0 to 1"
        hint = "use InvertResized, Activationsd and CopyItemsd to `probability`, in this order"
        raise refused("postprocessing -> pred, probability", found, expected, hint)
    return mask[0].cpu().numpy() > 0, probability.cpu().numpy()


def predicted(engine: Engine, *, threshold: float, classes: Sequence[str]) -> list[Prediction]:
    """The :func:`predictions` of an engine's last batch, computed once for handlers with the same settings."""
    state: Any = engine.state
    settings = threshold, tuple(classes)
    output, cached_settings, cached = getattr(state, "predicted", (None, None, []))
    if output is not state.output or cached_settings != settings:
        cached = list(predictions(state.batch, state.output, threshold=threshold, classes=classes))
        state.predicted = state.output, settings, cached
    return cached


def _probabilities(logits: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """Probabilities (C, H, W) of logits (C, h, w): sigmoid for one channel, else softmax.

    Logits are resized bilinearly first, which keeps the contour at 0.5 straight between pixels of a small prediction.
    """
    resized = functional.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)
    activated = torch.sigmoid(resized) if len(logits) == 1 else resized.softmax(dim=1)
    probabilities: NDArray[np.float32] = activated[0].cpu().numpy()
    return probabilities


class MaskWriter:
    """Saves ``<output_dir>/<id>.png`` (0 and 255) for every image of a MONAI ``SupervisedEvaluator``.

    With several classes a mask has the values 1, 2, … in the classes' order, a pixel has the class of its highest
    probability, and a map of probabilities is that of any class.

    The file is written from the prediction only: no EXIF, GPS or colour profile of the image is copied (fault 60). If
    EXIF rotates the image, the mask is that of the upright image. Nothing is scored. Items have ``id`` and ``pred`` as
    for :func:`predictions`.

    A separate thread encodes and writes the masks in order, while the network processes the next images. If a mask
    cannot be written, the run fails at one of the next batches, or at the end.

    Existing files are never replaced, see :class:`MaskFolder`: the same inference can be repeated in the same folder,
    another one is refused; a mask that was corrected since is kept, and refused after all others are written.

    Args:
        output_dir: folder to write to; names with folders in them create sub-folders.
        probabilities: whether to also write ``<id>.probability.png``: 8 bit, 255 is certain foreground.
        threshold: lowest probability of a foreground pixel.
        images: folder of the images, or a list of folders and images; no mask is written into such a folder, and
            existing files with the names of its masks are found before anything is computed.
        model: weights file; its hash is recorded beside the masks, with size and threshold.
        model_sha256: identity of the model for the record, if it is not a single file.
        image_size: side of a prediction in pixels, for the record.
        amp: whether the network computes in bfloat16, for the record if not ``False``.
        runtime: runtime of an exported network, for the record unless ONNX Runtime, which computes like torch.
        classes: names of the classes, for the record if several.
        views: number of test-time views, for the record if several; a teacher's are part of its identity.

    Raises:
        Refused: the threshold is not inside (0, 1), or not 0.5 with several classes; the output folder cannot be
            written to, is in the folder of images, or has files of these names that this inference did not write; one
            image's mask would have the name of another's probabilities.
            Raised at construction if ``images`` and ``model`` are given.
        ConflictingFiles: at the end, for existing files in place of masks.

    Example::

        {"_target_": "samfed_monai.handlers.mask_writer.MaskWriter", "output_dir": "@output_dir"}
    """

    def __init__(
        self,
        *,
        output_dir: str | Path,
        probabilities: bool = False,
        threshold: float = 0.5,
        images: Sources | None = None,
        model: str | Path | None = None,
        model_sha256: str | None = None,
        image_size: int | None = None,
        amp: bool | str = False,
        runtime: str = "",
        classes: Sequence[str] | None = None,
        views: int = 1,
    ) -> None:
        self.classes = list(classes or ()) if is_multiclass(classes) else []
        problems = Problems(class_threshold_problems("MaskWriter#threshold", threshold, self.classes))
        problems.extend(in_range("MaskWriter#threshold", threshold, above=0, below=1))
        self.probabilities, self.threshold = probabilities, threshold
        optional: dict[str, Any] = {"amp": amp, "classes": self.classes, "views": views if views > 1 else None}
        optional["runtime"] = runtime if runtime != "onnxruntime" else None
        made_with = {"image_size": image_size, "threshold": threshold} | {k: v for k, v in optional.items() if v}
        model_hash = sha256_file(model) if model else model_sha256
        self.masks = MaskFolder(output_dir, {"model_sha256": model_hash, **made_with} if model_hash else None)
        ids = [name for name, _ in image_paths(images)] if images else []
        names = [file for name in ids for file in self._files(name)]
        for name in {f"{name}.probability" for name in ids}.intersection(ids) if probabilities else ():
            found, expected = "the mask of one image and the probabilities of another", "a file of one image"
            problems.add(f"{name}.png", found=found, expected=expected, hint=f"rename the image {name}")
        problems.extend(self.masks.problems(names, images=images))
        problems.refuse_if_any()
        self._written = self._empty = 0
        self._conflicts: tuple[Problems, dict[Path, bytes]] = Problems(), {}
        self._pool, self._pending = ThreadPoolExecutor(1, thread_name_prefix="masks"), deque[Future[None]]()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, self._refuse_missing)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._wait_and_raise)

    def __call__(self, engine: Engine) -> None:
        for prediction in predicted(engine, threshold=self.threshold, classes=self.classes):
            self._pending.append(self._pool.submit(self._write, prediction))
        while len(self._pending) > _MOST_PENDING:
            self._pending.popleft().result()

    def _write(self, prediction: Prediction) -> None:
        problems, conflicts = self._conflicts
        pixels = prediction.mask, np.rint(prediction.probability * 255).astype(np.uint8)
        for file, content in zip(self._files(prediction.name), map(png_of, pixels), strict=False):
            conflicts[self.masks.folder / file] = content
            with problems.collected():
                self.masks.write(file, content)
                del conflicts[self.masks.folder / file]
        self._written += 1
        self._empty += not prediction.mask.any()

    def _wait_and_raise(self, engine: Engine, error: BaseException) -> None:
        wait(self._pending)  # so that no mask is left unfinished
        self._pending.clear()
        raise error

    def _refuse_missing(self, engine: Engine) -> None:
        """Refuses a data loader that ends early: MONAI's ``ThreadDataLoader`` only prints an error of its thread."""
        found = f"masks of {engine.state.iteration} of {engine.state.epoch_length} batches"
        raise refused(self.masks.folder, found, "all of them", "fix the error above, and repeat the command")

    def finish(self) -> None:
        """Waits for all masks and logs their number; raises the error of a mask that could not be written."""
        while self._pending:
            self._pending.popleft().result()
        empty = f", {counted(self._empty, 'of them is empty', 'of them are empty')}" if self._empty else ""
        logger.info("%s in %s%s", counted(self._written, "mask"), near(self.masks.folder), empty)
        problems, conflicts = self._conflicts
        self._written, self._empty, self._conflicts = 0, 0, (Problems(), {})
        if problems:
            raise ConflictingFiles(problems, conflicts)

    def _files(self, name: str) -> list[str]:
        return [f"{name}.png", f"{name}.probability.png"][: 2 if self.probabilities else 1]
