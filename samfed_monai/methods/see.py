"""SEE (arXiv 2506.08955): SAM refines the network's masks of a site's images; the best pseudo-labels are kept.

Scores, selection, the three labels of an image and their weights are those of the public code (ChunmingHe/SEE,
``train_semi_single_withsam.py``); its feature grouping is :class:`~samfed_monai.networks.fpn.FeatureGroups`. Ours: the
mean teacher is the network at the start of a round, which is the mean of the sites'; predictions of flipped and rotated
views are transformed back exactly, as in the paper (the code does not); :class:`SamRefiner` describes SAM's prompts.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from ignite.engine import Events
from monai.networks.utils import eval_mode
from monai.transforms import Transform
from monai.transforms.traits import RandomizableTrait
from scipy import ndimage
from torch import Tensor

from samfed_monai.bundle import SiteImages
from samfed_monai.core.errors import Refused, refused
from samfed_monai.core.io import as_file_name, make_folder, safe_load, write_bytes
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.training_state import own_random_state
from samfed_monai.core.validators import COUNT, in_range, one_of
from samfed_monai.data.soft_masks import resize_probabilities
from samfed_monai.data.weak_labels import IGNORE
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.records import record
from samfed_monai.handlers.rounds import in_federation, round_of
from samfed_monai.handlers.term import Term
from samfed_monai.losses import StructureLoss, entropy
from samfed_monai.networks.inferer import mean_of_views, views_problems
from samfed_monai.networks.sam.build import (
    MASK_STRIDE,
    PromptFreeSam,
    build_sam,
    crop,
    embed,
    inner_size,
    side_problems,
)
from samfed_monai.networks.weights import find_checkpoint

logger = logging.getLogger(__name__)

KEY = "teacher"
"""Key of an item's pseudo-labels, which the weak view transforms with the image."""
UNKNOWN = 0.5
"""Probability of an unknown pixel: its entropy is 1 bit, so its weight is 0."""
UNSURE = 0.9
"""Entropy in bits above which a pixel is unsure (the public code)."""
KEPT = 3
"""Number of pseudo-labels per image (the public code's B)."""
_LOSS = StructureLoss()


def uncertainty(probabilities: Tensor) -> Tensor:
    """Returns each pixel's entropy in bits, (B, 1, H, W) in [0, 1], of foreground probabilities of that shape."""
    return (entropy(probabilities) / math.log(2)).clamp(0, 1)


class Scores(NamedTuple):
    """Uncertainty of a pseudo-label; lower is better.

    Args:
        absolute: unsure pixels divided by all pixels, in [0, 1].
        relative: unsure pixels divided by the others, >= 0: ``absolute / (1 - absolute)``, so both rank labels alike.
            This is the public code's definition.
        change: mean entropy in bits of the distance to the network's prediction of the previous round, in [0, 1].
    """

    absolute: float
    relative: float
    change: float

    def better(self, other: Scores) -> bool:
        """Whether at least two of the three are below those of ``other``."""
        return sum(new < old for new, old in zip(self, other, strict=True)) >= 2

    def sure(self, *, absolute: float, relative: float) -> bool:
        """Whether the label as a whole is sure enough for training (entropy-based image-level selection)."""
        return self.absolute < absolute and self.relative < relative


def label_scores(label: Tensor, previous: Tensor) -> Scores:
    """Returns the three scores of a pseudo-label.

    Args:
        label: (1, h, w) float in [0, 1].
        previous: the network's prediction of the previous round, of the same shape; in the first round, this round's.
    """
    unsure = int((uncertainty(label[None]) > UNSURE).sum())
    change = float(uncertainty((label - previous).abs()[None]).mean())
    return Scores(unsure / label.numel(), unsure / (label.numel() - unsure + 1e-10), change)


class PseudoLabelStore:
    """The best :data:`KEPT` pseudo-labels of every image, keyed by the SHA-256 of its file; 8 bits per pixel.

    Once an image has :data:`KEPT` labels, a new one replaces the first that is worse. The network's prediction of the
    previous round is stored as well. Copying a store returns the store itself, since a dataset copies its transforms.
    """

    def __init__(self) -> None:
        self._labels: dict[str, list[tuple[Tensor, Scores]]] = {}
        self._previous: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> PseudoLabelStore:
        return self

    def __len__(self) -> int:
        return len(self._labels)

    def offer(self, image_sha256: str, label: Tensor, scores: Scores) -> bool:
        """Stores a pseudo-label if its image has fewer than :data:`KEPT` or a worse one; returns whether it did.

        Args:
            image_sha256: SHA-256 of the image's file.
            label: (1, h, w) float in [0, 1].
            scores: scores of the label.
        """
        stored = self._labels.setdefault(image_sha256, [])
        worse = [index for index, (_, old) in enumerate(stored) if scores.better(old)]
        if len(stored) == KEPT and not worse:
            return False
        index = worse[0] if len(stored) == KEPT else len(stored)
        stored[index : index + 1] = [(_as_bytes(label), scores)]
        return True

    def get(self, image_sha256: str) -> list[tuple[Tensor, Scores]]:
        """Returns an image's pseudo-labels, (1, h, w) float in [0, 1], and their scores; at most :data:`KEPT`."""
        return [(label.float() / 255, scores) for label, scores in self._labels.get(image_sha256, [])]

    def previous(self, image_sha256: str, prediction: Tensor) -> Tensor:
        """Stores a prediction (1, h, w) and returns the one before it, or the same if there is none."""
        last = self._previous.get(image_sha256)
        self._previous[image_sha256] = _as_bytes(prediction)
        return prediction if last is None else last.to(prediction.device).float() / 255

    def save(self, path: Path) -> None:
        """Writes the store, readable by its owner only: pseudo-labels of private images stay at their site."""
        from safetensors.torch import save

        tensors = {f"{image}.previous": prediction for image, prediction in self._previous.items()}
        for image, stored in self._labels.items():
            tensors[f"{image}.labels"] = torch.stack([label for label, _ in stored])
            tensors[f"{image}.scores"] = torch.tensor([scores for _, scores in stored], dtype=torch.float64)
        make_folder(path.parent)
        os.chmod(path.parent, 0o700)
        write_bytes(path, save(tensors))

    def load(self, path: Path | None) -> None:
        """Restores the store from a file of :meth:`save`; ``None`` empties it."""
        self._labels, self._previous = {}, {}
        tensors = {} if path is None else safe_load(path)
        for name, tensor in tensors.items():
            image, _, field = name.partition(".")
            if field == "previous":
                self._previous[image] = tensor
            elif field == "labels":
                scores = [Scores(*values) for values in tensors[f"{image}.scores"].tolist()]
                self._labels[image] = list(zip(tensor, scores, strict=True))


def _as_bytes(probabilities: Tensor) -> Tensor:
    return (probabilities.detach().cpu() * 255).round().to(torch.uint8)


class LoadPseudoLabeld(Transform, RandomizableTrait):
    """Adds an image's pseudo-labels that are sure enough (:meth:`Scores.sure`); the others are 0.5, with weight 0.

    It belongs between loading and the weak view, which then transforms image and labels together. It counts as random,
    so that no cache keeps a pseudo-label of an earlier round.

    Args:
        term: the term whose store is read.

    Example::

        "soft_mask": {"_target_": "samfed_monai.methods.see.LoadPseudoLabeld", "term": "@terms#see"}
    """

    def __init__(self, *, term: RefinedLabelTerm) -> None:
        self.store, self.absolute, self.relative = term.store, term.absolute, term.relative

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Reads ``image_sha256`` and ``image``, (C, h, w); adds ``teacher``, (:data:`KEPT`, h, w) float32."""
        size = data["image"].shape[-2:]
        planes = torch.full((KEPT, *size), UNKNOWN)
        for index, (label, scores) in enumerate(self.store.get(data["image_sha256"])):
            if scores.sure(absolute=self.absolute, relative=self.relative):
                planes[index] = resize_probabilities(label[None], size)[0, 0]
        return {**data, KEY: planes}


LEAST_SHARE = 5e-4
"""Minimum share of the image for a part to get a box: 6 pixels of a quarter-resolution mask at 512 px."""
MOST_PARTS = 8
"""Maximum number of boxes, for the largest parts: a mask with more parts is fragmented rather than of many lesions."""
MARGIN = 0.05
"""Margin of a box at each end, as a share of its side."""


class Components(NamedTuple):
    """Connected parts of a mask.

    Args:
        labels: ``(h, w)`` int64: 0 outside, else the number of the part, including parts without a box.
        numbers: numbers of the parts with a box, largest part first.
        boxes: ``(N, 4)`` float32: left, top, right, bottom of each, as shares of width and height in [0, 1].
    """

    labels: Tensor
    numbers: list[int]
    boxes: Tensor


def connected_components(mask: Tensor) -> Components:
    """Returns the 8-connected parts of a ``(h, w)`` bool mask, with boxes for the largest ones."""
    height, width = mask.shape
    labels, count = ndimage.label(mask.cpu().numpy(), structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-areas, kind="stable")[:MOST_PARTS] + 1
    numbers = [int(number) for number in order if areas[number - 1] >= LEAST_SHARE * height * width]
    slices = ndimage.find_objects(labels)
    boxes = [_box(slices[number - 1], mask.shape) for number in numbers]
    return Components(torch.from_numpy(labels).long(), numbers, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))


def _box(part: tuple[slice, slice], shape: torch.Size) -> list[float]:
    (top, bottom), (left, right) = (_side(found, length) for found, length in zip(part, shape, strict=True))
    return [left, top, right, bottom]


def _side(part: slice, length: int) -> tuple[float, float]:
    margin = MARGIN * (part.stop - part.start)
    return max(0.0, part.start - margin) / length, min(float(length), part.stop + margin) / length


def prompts(boxes: Tensor, height: int, width: int, size: int) -> Tensor:
    """Converts boxes from shares of an image to SAM's prompts: pixel indices in its input, ``(N, 4)``.

    SAM adds half a pixel to an index to get a position, so half a pixel is subtracted here.
    """
    inner = inner_size(height, width, size)
    return boxes * boxes.new_tensor([inner[1], inner[0], inner[1], inner[0]]) - 0.5


def spaced_pixels(mask: Tensor, limit: int) -> Tensor:
    """Returns up to ``limit`` pixels of a (h, w) bool mask, evenly spaced in row order: (N, 2) float, x and y."""
    pixels = mask.nonzero().flip(1).float()
    if len(pixels) <= limit:
        return pixels
    return pixels[torch.linspace(0, len(pixels) - 1, limit).round().long()]


def part_points(part: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the innermost pixel of a part, and the background pixel farthest from all parts.

    Args:
        part, background: (h, w) bool; the part is not empty. An empty background has no point.

    Returns:
        (P, 2) x and y in pixels, and (P,) labels.
    """
    points, labels = [], []
    for mask, label in ((part, 1), (background, 0)):
        if bool(mask.any()):
            depth = ndimage.distance_transform_edt(np.pad(mask.cpu().numpy(), 1))[1:-1, 1:-1]
            row, column = np.unravel_index(int(depth.argmax()), depth.shape)
            points.append([float(column), float(row)])
            labels.append(label)
    return torch.tensor(points), torch.tensor(labels)


class SamRefiner:
    """Refines a mask by unadapted SAM: the mean of its masks for three sets of prompts of increasing density.

    Multi-density prompts: a box for each part (at most eight); the box with points inside and outside; box, points and
    the mask itself. The masks of several parts are joined by their maximum. Points are pixels of the weak label if it
    has both classes (eight of each, the foreground's inside the part's box), else the innermost ones. The three
    densities are the paper's kinds in our order: SAM's masks for points alone are poor on such images.

    Args:
        sam: the network.
        size: side of its input in pixels.
    """

    MOST_POINTS = 8

    def __init__(self, sam: PromptFreeSam, size: int) -> None:
        self.sam, self.size = sam, size

    @torch.no_grad()
    def __call__(self, image: Tensor, mask: Tensor, weak: Tensor | None) -> Tensor | None:
        """Refines one image's mask.

        Args:
            image: (3, H, W) float in [0, 1].
            mask: (1, H, W) float in [0, 1].
            weak: (1, H, W) in {0, 1, 255}, or ``None``.

        Returns:
            (1, H, W) float in [0, 1]; ``None`` if the mask has no part large enough for a box.
        """
        parts = connected_components(mask[0] > 0.5)
        if not parts.numbers:
            return None
        height, width = image.shape[-2:]
        embedding = embed(self.sam, image[None], self.size, False)
        boxes = prompts(parts.boxes.to(image), height, width, self.size)
        points = self._points(parts.labels.to(image.device), parts.numbers, parts.boxes, weak)
        mask_prompt = self._mask_prompt(mask).expand(len(boxes), -1, -1, -1)
        masks = []
        for prompt in ((), (points,), (points, mask_prompt)):
            logits = self.sam.decode(embedding, boxes, *prompt)
            masks.append(crop(logits, height, width, self.size).sigmoid().amax(dim=0, keepdim=True))
        return resize_probabilities(torch.stack(masks).mean(dim=0), (height, width))[0]

    def _points(
        self, labels: Tensor, numbers: Sequence[int], boxes: Tensor, weak: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns (N, P, 2) pixel indices in SAM's input and (N, P) labels, padded with -1 (SAM: not a point)."""
        height, width = labels.shape
        scale = labels.new_tensor(inner_size(height, width, self.size)).float() / labels.new_tensor([height, width])
        selected = []
        for number, box in zip(numbers, boxes, strict=True):
            inner, classes = part_points(labels == number, labels == 0)
            if weak is not None and bool((weak == 1).any()) and bool((weak == 0).any()):
                left, top, right, bottom = (box * box.new_tensor([width, height, width, height])).tolist()
                in_box = torch.zeros_like(labels, dtype=torch.bool)
                in_box[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = True
                foreground = spaced_pixels((weak[0] == 1) & in_box, self.MOST_POINTS)
                background = spaced_pixels(weak[0] == 0, self.MOST_POINTS)
                inner_points = foreground if len(foreground) else inner[classes == 1].to(background)
                inner = torch.cat([inner_points, background])
                classes = torch.tensor([1] * len(inner_points) + [0] * len(background))
            selected.append((inner, classes))
        most = max(len(classes) for _, classes in selected)
        points = torch.zeros(len(selected), most, 2, device=labels.device)
        point_labels = torch.full((len(selected), most), -1, device=labels.device)
        for row, (inner, classes) in enumerate(selected):
            points[row, : len(inner)] = (inner.to(labels.device) + 0.5) * scale.flip(0) - 0.5
            point_labels[row, : len(classes)] = classes.to(labels.device)
        return points, point_labels

    def _mask_prompt(self, mask: Tensor) -> Tensor:
        """Returns the mask as SAM's prompt: (1, 1, size / 4, size / 4) logits, padded with background."""
        height, width = (side // MASK_STRIDE for side in inner_size(mask.shape[-2], mask.shape[-1], self.size))
        low = torch.zeros(1, 1, self.size // MASK_STRIDE, self.size // MASK_STRIDE, device=mask.device)
        low[..., :height, :width] = resize_probabilities(mask[None], (height, width))
        return torch.logit(low, eps=1e-3)


@lru_cache(maxsize=1)
def _shared_sam(base: str, checkpoint: str, size: int) -> PromptFreeSam:
    """Builds one SAM for all sites of a process, without consuming random numbers of the caller."""
    with own_random_state(None):
        return build_sam(base, checkpoint, size).requires_grad_(False)


@dataclass(kw_only=True, eq=False)
class RefinedLabelTerm(Term):
    """The loss against stored pseudo-labels refined by SAM, with one minus its entropy as the weight of a pixel.

    At the start of every ``every``-th round (or epoch, for a trainer without rounds), the network predicts the site's
    images in eval mode in ``views`` flipped and rotated views, whose predictions are transformed back exactly and
    averaged; a weak label, if there is one, replaces the prediction of its pixels. :class:`SamRefiner` turns the result
    into a pseudo-label, :func:`label_scores` compares it with the network's prediction of the previous round, and
    :class:`PseudoLabelStore` keeps the three best. Labels that are too unsure have no weight (:meth:`Scores.sure`), and
    a round without any pseudo-label equals one without the term.

    As in the public code the loss is the structure loss of each label times the label's mean weight, summed and divided
    by three, however many labels there are; as in the paper the structure loss uses the pixels' weights, too. The
    code's term that pushes predictions away from 0.5 is left out. Its cross entropy is an unweighted mean
    (``reduce='none'`` is true, which means ``mean``) and uses probabilities, rescaled to [0, 1], as logits; ours is
    that of :class:`~samfed_monai.losses.StructureLoss`.

    ``folder`` has the stores of this round and of the two before it, to repeat this round or the previous one and to
    resume a run. They are readable by their owner only and never leave the site. A store takes four bytes per pixel and
    image in memory and on disk. Each refinement runs SAM's encoder once per image.

    Records ``<name>_labelled``, the share of the site's images with a pseudo-label, and ``<name>_weight``, the mean
    weight of a pixel.

    Args:
        data: the site's images.
        transform: loads an image with its label, if any, at the training size, without random changes.
        split: ``labelled`` for sites with weak labels, which are then the labelled batch; ``unlabelled`` for sites
            without, which use the public masks.
        folder: folder of the stores.
        site: the site's name.
        name: name under which the value is logged.
        base, checkpoint: the SAM, and its file; ``None`` searches the weights folder.
        sam_size: side of its input in pixels.
        views: number of views: 1, 2, 4 or 8.
        every: number of rounds from one refinement to the next, >= 1.
        absolute, relative: thresholds, see :meth:`Scores.sure`.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: an argument out of range; at ``STARTED``, and when the site is checked before round 0, no such SAM at
            the site.

    Example::

        "terms#see": {
            "_target_": "samfed_monai.methods.see.RefinedLabelTerm", "data": "@images", "site": "@site",
            "transform": "@validate#preprocessing", "split": "labelled", "folder": "@output_dir"
        }
    """

    checks: ClassVar = {"split": partial(one_of, known=["labelled", "unlabelled"]), "views": views_problems}
    checks |= {"every": COUNT, "sam_size": side_problems}
    checks |= dict.fromkeys(("absolute", "relative"), partial(in_range, what="a share", above=0, most=1))

    data: SiteImages
    transform: Callable[[Any], Any]
    split: str = "labelled"
    folder: str | Path = "."
    site: str = ""
    name: str = "see"
    base: str = "vit_t"
    checkpoint: str | Path | None = None
    sam_size: int = 512
    views: int = 4
    every: int = 1
    absolute: float = 0.1
    relative: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.unlabelled = self.split == "unlabelled"
        self.stores = Path(self.folder) / "pseudo_labels" / as_file_name(self.site or "site")
        self.store = PseudoLabelStore()
        self._round: int | None = None
        self._labelled = 0.0

    def attach(self, engine: Any) -> None:
        """Binds the term; pseudo-labels are made before the round's first batch is read."""
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self._refine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)

    def check(self, engine: Any) -> None:
        """Also checks that SAM is available at a site; the message shows no path, since it may leave the site."""
        super().check(engine)
        with suppress(Refused):
            if not self.site or Path(self._checkpoint()).is_file():
                return
        hint = f"run `samfed weights {self.base} --from FILE|URL` at this site"
        expected = f"its weights, with which {self.where} refines pseudo-labels"
        raise refused(f"SAM {self.base}", found="none here", expected=expected, hint=hint)

    def _checkpoint(self) -> str:
        return str(self.checkpoint or find_checkpoint(self.base))

    def value(self, guidance: Guidance | None, engine: Any) -> Tensor:
        """Returns the weighted loss of the batch's pseudo-labels."""
        if guidance is not None and self.unlabelled:
            labels, logits = guidance.view(KEY, where=self.where), guidance.student
        else:
            labels, logits = torch.as_tensor(engine.state.batch[KEY]), engine.state.output["pred"]
        labels = labels.to(logits.device).float()
        weights = [1 - uncertainty(label) for label in labels.split(1, dim=1)]
        record(engine, f"{self.name}_labelled", labels.new_tensor(self._labelled))
        record(engine, f"{self.name}_weight", torch.stack(weights).mean())
        pairs = zip(labels.split(1, dim=1), weights, strict=True)
        return torch.stack([weight.mean() * _LOSS(logits, label, weight) for label, weight in pairs]).sum() / KEPT

    def _epoch_started(self, engine: Any) -> None:
        if not in_federation(engine) and round_of(engine)[0] != self._round:
            self._refine(engine)

    def _refine(self, engine: Any) -> None:
        number, _ = round_of(engine)
        if self._round != number - 1:  # another process, or rounds that this site took no part in
            self._restore_store(number - 1)
        records = self.data.records(self.split)  # type: ignore[arg-type]
        if number % self.every == 0:
            with eval_mode(engine.network):
                new = sum(self._refine_images(engine, records))
            line = "%s, round %d: %d of %d images have a pseudo-label, of which %d are new"
            logger.info(line, self.site or "this site", number + 1, len(self.store), len(records), new)
        self._labelled = len(self.store) / max(1, len(records))
        self._round = number
        self.store.save(self.stores / f"{number:04d}.safetensors")
        earlier = [path for path in self._store_files() if int(path.stem) < number]
        for path in earlier[:-2]:  # two are kept, to repeat this round or the previous one
            path.unlink()

    def _refine_images(self, engine: Any, records: Sequence[Mapping[str, Any]]) -> Iterator[bool]:
        device = engine.state.device
        refiner = SamRefiner(_shared_sam(self.base, self._checkpoint(), self.sam_size).to(device), self.sam_size)
        with progress_bar(total=len(records), desc="pseudo-labels", unit="image") as bar:
            for image_record in records:
                item = self.transform(dict(image_record))
                image = torch.as_tensor(item["image"]).as_subclass(Tensor).float().to(device)
                weak = item.get("label") if self.split == "labelled" else None
                weak = None if weak is None else torch.as_tensor(weak).as_subclass(Tensor).to(device)
                coarse = self._coarse(engine, image)
                previous = self.store.previous(image_record["image_sha256"], coarse)
                if weak is not None:
                    coarse = torch.where(weak == IGNORE, coarse, (weak == 1).float())
                label = refiner(image, coarse, weak)
                if label is not None:
                    yield self.store.offer(image_record["image_sha256"], label, label_scores(label, previous))
                bar.update()

    def _coarse(self, engine: Any, image: Tensor) -> Tensor:
        with torch.no_grad():
            return mean_of_views(image[None], lambda batch: engine.inferer(batch, engine.network), self.views)[0]

    def _store_files(self) -> list[Path]:
        return sorted(self.stores.glob("[0-9]*.safetensors"))

    def _restore_store(self, number: int) -> None:
        """Restores the store of a round, or the latest one before it; empties it if there is none."""
        stored = [path for path in self._store_files() if int(path.stem) <= number]
        self.store.load(stored[-1] if stored else None)
