"""SEE (arXiv 2506.08955): SAM refines the network's masks of a site's images; the best pseudo-labels are kept.

Scores, selection, the three labels of an image and their weights are those of the public code (ChunmingHe/SEE,
``train_semi_single_withsam.py``); its feature grouping is :class:`~samfed_monai.networks.fpn.FeatureGroups`. Ours: the
mean teacher is the network that a round begins with, which is the mean of the sites'; its views are mirrored and turned
back exactly, as in the paper (the code does not turn them back); SAM is prompted as :class:`SamRefiner` says.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from ignite.engine import Events
from monai.networks.utils import eval_mode
from monai.transforms import Transform
from monai.transforms.traits import RandomizableTrait
from scipy import ndimage
from torch import Tensor

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

if TYPE_CHECKING:
    from samfed_monai.bundle import SiteImages

logger = logging.getLogger(__name__)

KEY = "teacher"
"""Under which an item carries its pseudo-labels: a key that the weak view moves with the image."""
UNKNOWN = 0.5
"""A probability that says nothing: its entropy is 1, so its weight is 0."""
UNSURE = 0.9
"""Entropy in bits above which a pixel is unsure (the public code)."""
KEPT = 3
"""Pseudo-labels of an image (the public code's B)."""
_LOSS = StructureLoss()


def uncertainty(probabilities: Tensor) -> Tensor:
    """Entropy of each pixel in bits, (B, 1, H, W) in [0, 1], of foreground probabilities of that shape."""
    return (entropy(probabilities) / math.log(2)).clamp(0, 1)


class Scores(NamedTuple):
    """How unsure a pseudo-label is; less is better.

    Args:
        absolute: unsure pixels, over all pixels, in [0, 1].
        relative: unsure pixels over the others, >= 0. It is ``absolute / (1 - absolute)``, so that the two agree on
            which of two labels is better: that is the public code's definition.
        change: mean entropy in bits of the distance to the network's prediction of the round before, in [0, 1].
    """

    absolute: float
    relative: float
    change: float

    def better(self, other: Scores) -> bool:
        """Whether at least two of the three are below those of ``other``."""
        return sum(own < old for own, old in zip(self, other, strict=True)) >= 2

    def sure(self, *, absolute: float, relative: float) -> bool:
        """Whether a label is sure enough as a whole to be learned from (entropy-based image-level selection)."""
        return self.absolute < absolute and self.relative < relative


def scored(label: Tensor, previous: Tensor) -> Scores:
    """The three scores of a pseudo-label.

    Args:
        label: (1, h, w) float in [0, 1].
        previous: the network's prediction of the round before, of that shape; in the first round, this one's.
    """
    unsure = int((uncertainty(label[None]) > UNSURE).sum())
    change = float(uncertainty((label - previous).abs()[None]).mean())
    return Scores(unsure / label.numel(), unsure / (label.numel() - unsure + 1e-10), change)


class PseudoLabelStore:
    """The best :data:`KEPT` pseudo-labels of every image, keyed by the SHA-256 of its file; 8 bits a pixel.

    Of an image that has all of them, a new one replaces the first that it is better than. Beside them is the network's
    prediction of the round before. Copies of a store (a data set copies its transforms) are the store itself.
    """

    def __init__(self) -> None:
        self._labels: dict[str, list[tuple[Tensor, Scores]]] = {}
        self._previous: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> PseudoLabelStore:
        return self

    def __len__(self) -> int:
        return len(self._labels)

    def offer(self, image_sha256: str, label: Tensor, scores: Scores) -> bool:
        """Takes a pseudo-label, if its image has fewer than all, or a worse one; whether it was taken.

        Args:
            image_sha256: of the image's file.
            label: (1, h, w) float in [0, 1].
            scores: its own.
        """
        kept = self._labels.setdefault(image_sha256, [])
        worse = [place for place, (_, old) in enumerate(kept) if scores.better(old)]
        if len(kept) == KEPT and not worse:
            return False
        place = worse[0] if len(kept) == KEPT else len(kept)
        kept[place : place + 1] = [(_as_bytes(label), scores)]
        return True

    def get(self, image_sha256: str) -> list[tuple[Tensor, Scores]]:
        """An image's pseudo-labels, (1, h, w) float in [0, 1], and their scores; at most :data:`KEPT`."""
        return [(label.float() / 255, scores) for label, scores in self._labels.get(image_sha256, [])]

    def previous(self, image_sha256: str, prediction: Tensor) -> Tensor:
        """The prediction (1, h, w) that was given here last, or this one where none was; keeps this one."""
        last = self._previous.get(image_sha256)
        self._previous[image_sha256] = _as_bytes(prediction)
        return prediction if last is None else last.to(prediction.device).float() / 255

    def save(self, path: Path) -> None:
        """Writes all of it, for its owner alone: pseudo-labels of private images stay at their site."""
        from safetensors.torch import save

        tensors = {f"{image}.previous": prediction for image, prediction in self._previous.items()}
        for image, kept in self._labels.items():
            tensors[f"{image}.labels"] = torch.stack([label for label, _ in kept])
            tensors[f"{image}.scores"] = torch.tensor([scores for _, scores in kept], dtype=torch.float64)
        make_folder(path.parent)
        os.chmod(path.parent, 0o700)
        write_bytes(path, save(tensors))

    def load(self, path: Path | None) -> None:
        """Goes back to what :meth:`save` wrote; ``None`` empties it."""
        self._labels, self._previous = {}, {}
        tensors = {} if path is None else safe_load(path)
        for name, tensor in tensors.items():
            image, _, what = name.partition(".")
            if what == "previous":
                self._previous[image] = tensor
            elif what == "labels":
                scores = [Scores(*each) for each in tensors[f"{image}.scores"].tolist()]
                self._labels[image] = list(zip(tensor, scores, strict=True))


def _as_bytes(probabilities: Tensor) -> Tensor:
    return (probabilities.detach().cpu() * 255).round().to(torch.uint8)


class LoadPseudoLabeld(Transform, RandomizableTrait):
    """Adds an image's pseudo-labels that are sure enough (:meth:`Scores.sure`); one half, without weight, for others.

    Comes between the reading and the weak view, so that both move together. It counts as random, so that no cache
    keeps a pseudo-label of an earlier round.

    Args:
        term: whose store.

    Example::

        "soft_mask": {"_target_": "samfed_monai.methods.see.LoadPseudoLabeld", "term": "@terms#see"}
    """

    def __init__(self, *, term: RefinedLabelTerm) -> None:
        self.store, self.absolute, self.relative = term.store, term.absolute, term.relative

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Reads ``image_sha256`` and ``image``, (C, h, w); adds ``teacher``, (:data:`KEPT`, h, w) float32."""
        size = data["image"].shape[-2:]
        planes = torch.full((KEPT, *size), UNKNOWN)
        for place, (label, scores) in enumerate(self.store.get(data["image_sha256"])):
            if scores.sure(absolute=self.absolute, relative=self.relative):
                planes[place] = resize_probabilities(label[None], size)[0, 0]
        return {**data, KEY: planes}


LEAST_SHARE = 5e-4
"""Parts smaller than this share of the image are specks: 6 pixels of a quarter-resolution mask at 512 px."""
MOST_PARTS = 8
"""Of more parts only the largest are boxed: an image with more lesions than that is a mask in pieces."""
MARGIN = 0.05
"""A box is wider than its part by this share of its side, at either end."""


class Components(NamedTuple):
    """Connected parts of a mask.

    Args:
        labels: ``(h, w)`` int64: 0 outside, else the number of the part, specks included.
        numbers: numbers of the parts that have a box, largest part first.
        boxes: ``(N, 4)`` float32: left, top, right, bottom of each, as shares of width and height in [0, 1].
    """

    labels: Tensor
    numbers: list[int]
    boxes: Tensor


def connected_components(mask: Tensor) -> Components:
    """Parts of a ``(h, w)`` bool mask that touch at sides or corners, with the boxes of the largest ones."""
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
    """Boxes as shares of an image to SAM's prompts: pixel indices in its input, ``(N, 4)``.

    SAM adds half a pixel to an index to get a position, so half a pixel is taken off a position to get an index.
    """
    inner = inner_size(height, width, size)
    return boxes * boxes.new_tensor([inner[1], inner[0], inner[1], inner[0]]) - 0.5


def spread(mask: Tensor, most: int) -> Tensor:
    """Up to ``most`` pixels of a (h, w) bool mask, evenly over it in the order of its rows: (N, 2) x and y, float."""
    places = mask.nonzero().flip(1).float()
    if len(places) <= most:
        return places
    return places[torch.linspace(0, len(places) - 1, most).round().long()]


def part_points(part: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """The innermost pixel of a part, and the pixel of the background that is farthest from all parts.

    Args:
        part, background: (h, w) bool, the first not empty; of an empty background the point is the part's with label 0
            left out.

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
    """SAM as it comes, prompted with a mask's parts three times, with more each time; the mean of its answers.

    Multi-density prompts: a box of each part, of which there may be eight; the box and points inside and outside; box,
    points and the mask itself. Of the answers to several parts the highest probability counts. Points are the weak
    label's own pixels where it has some (eight of each class, inside of the part's box for the foreground), else the
    innermost ones. The three densities are the paper's kinds in our order: SAM's answers to points alone are poor on
    such images.

    Args:
        sam: the network.
        size: side of its input in pixels.
    """

    MOST = 8

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
            (1, H, W) float in [0, 1]; ``None`` where the mask has no part that is more than a speck.
        """
        parts = connected_components(mask[0] > 0.5)
        if not parts.numbers:
            return None
        height, width = image.shape[-2:]
        embedding = embed(self.sam, image[None], self.size, False)
        boxes = prompts(parts.boxes.to(image), height, width, self.size)
        points = self._points(parts.labels.to(image.device), parts.numbers, parts.boxes, weak)
        low = self._low(mask).expand(len(boxes), -1, -1, -1)
        answers = []
        for given in ((), (points,), (points, low)):
            logits = self.sam.decode(embedding, boxes, *given)
            answers.append(crop(logits, height, width, self.size).sigmoid().amax(dim=0, keepdim=True))
        return resize_probabilities(torch.stack(answers).mean(dim=0), (height, width))[0]

    def _points(
        self, labels: Tensor, numbers: Sequence[int], boxes: Tensor, weak: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(N, P, 2) pixel indices in SAM's input and (N, P) labels; -1 fills up, which SAM takes for no point."""
        height, width = labels.shape
        scale = labels.new_tensor(inner_size(height, width, self.size)).float() / labels.new_tensor([height, width])
        found = []
        for number, box in zip(numbers, boxes, strict=True):
            inner, classes = part_points(labels == number, labels == 0)
            if weak is not None and bool((weak == 1).any()) and bool((weak == 0).any()):
                left, top, right, bottom = (box * box.new_tensor([width, height, width, height])).tolist()
                inside = torch.zeros_like(labels, dtype=torch.bool)
                inside[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = True
                drawn = spread((weak[0] == 1) & inside, self.MOST)
                outside = spread(weak[0] == 0, self.MOST)
                own = drawn if len(drawn) else inner[classes == 1].to(outside)
                inner = torch.cat([own, outside])
                classes = torch.tensor([1] * len(own) + [0] * len(outside))
            found.append((inner, classes))
        most = max(len(classes) for _, classes in found)
        points = torch.zeros(len(found), most, 2, device=labels.device)
        kinds = torch.full((len(found), most), -1, device=labels.device)
        for row, (inner, classes) in enumerate(found):
            points[row, : len(inner)] = (inner.to(labels.device) + 0.5) * scale.flip(0) - 0.5
            kinds[row, : len(classes)] = classes.to(labels.device)
        return points, kinds

    def _low(self, mask: Tensor) -> Tensor:
        """The mask as SAM's prompt: (1, 1, size / 4, size / 4) logits, the padding background."""
        height, width = (side // MASK_STRIDE for side in inner_size(mask.shape[-2], mask.shape[-1], self.size))
        low = torch.zeros(1, 1, self.size // MASK_STRIDE, self.size // MASK_STRIDE, device=mask.device)
        low[..., :height, :width] = resize_probabilities(mask[None], (height, width))
        return torch.logit(low, eps=1e-3)


@lru_cache(maxsize=1)
def _sam(base: str, checkpoint: str, size: int) -> PromptFreeSam:
    """One SAM for all sites of a process; the first one that asks loses no random number to its random weights."""
    with own_random_state(None):
        return build_sam(base, checkpoint, size).requires_grad_(False)


@dataclass(kw_only=True, eq=False)
class RefinedLabelTerm(Term):
    """The loss against stored pseudo-labels that SAM refined, each pixel weighing one minus its entropy.

    At the start of a round, and of every ``every`` rounds alone (of epochs, where a trainer runs on its own), the
    site's images are seen by the network in eval mode in ``views`` mirrored and turned views, whose predictions are
    brought back exactly and averaged; the weak label, where there is one, overrules what they say of its pixels.
    :class:`SamRefiner` makes a pseudo-label of that, :func:`scored` compares it with the network's prediction of the
    round before, and :class:`PseudoLabelStore` keeps the three best. Labels that are too unsure have no weight
    (:meth:`Scores.sure`), and a round without any pseudo-label is one without the term.

    As in the public code the loss is the structure loss of each label times the label's mean weight, summed and divided
    by three, however many labels there are; as in the paper a pixel's weight counts inside of it, too. The code's term
    that pushes predictions away from one half is left out. Its cross entropy is an unweighted mean (``reduce='none'``
    is true, which means ``mean``) and takes probabilities, stretched to [0, 1], for logits; ours is that of
    :class:`~samfed_monai.losses.StructureLoss`.

    The store of a round is in ``folder``, readable for its owner alone, beside those of the two before, from which
    this round and the last one would begin if they had to be repeated; a run that goes on goes on with them. Nothing of
    it leaves the site.
    In memory and on the disk it takes four bytes a pixel and image. Each refinement costs SAM's encoder once an image.

    Records ``<name>_labelled``, the share of the site's images with a pseudo-label, and ``<name>_weight``, the mean
    weight of a pixel.

    Args:
        data: the site's images.
        transform: reads one with its label, if any, and brings both to the training size, without random changes.
        split: ``labelled`` for sites with weak labels, whose batch is then the labelled one; ``unlabelled`` for those
            without, who have the public masks.
        folder: of the stores.
        site: the site's name.
        name: under which the value is logged.
        base, checkpoint: the SAM, and its file; ``None`` looks into the weights folder.
        sam_size: side of its input in pixels.
        views: 1, 2, 4 or 8.
        every: rounds between two refinements, 1 or more.
        absolute, relative: of :meth:`Scores.sure`.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: an argument out of range; at ``STARTED``, and when a site says before round 0 whether it can take part,
            no such SAM here.

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
        """Looks for SAM, too; no path is shown, since the text may leave the site."""
        super().check(engine)
        try:
            self._checkpoint()
        except Refused:
            hint = f"run `samfed weights {self.base} --from FILE|URL` at this site"
            expected = f"its weights, which {self.where} refines pseudo-labels with"
            raise refused(f"SAM {self.base}", found="none here", expected=expected, hint=hint) from None

    def _checkpoint(self) -> str:
        return str(self.checkpoint or find_checkpoint(self.base))

    def value(self, guidance: Guidance | None, engine: Any) -> Tensor:
        """The weighted loss of the batch's pseudo-labels."""
        if guidance is not None and self.unlabelled:
            labels, logits = guidance.view(KEY, asked_by=self.where), guidance.student
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
            self._go_to(number - 1)
        records = self.data.records(self.split)  # type: ignore[arg-type]
        if number % self.every == 0:
            with eval_mode(engine.network):
                taken = sum(self._refined(engine, records))
            line = "%s, round %d: %d of %d images have a pseudo-label, %d of them a new one"
            logger.info(line, self.site or "this site", number + 1, len(self.store), len(records), taken)
        self._labelled = len(self.store) / max(1, len(records))
        self._round = number
        self.store.save(self.stores / f"{number:04d}.safetensors")
        before = [path for path in self._saved() if int(path.stem) < number]
        for path in before[:-2]:  # where this round began, and the one before it, should either have to be repeated
            path.unlink()

    def _refined(self, engine: Any, records: Sequence[Mapping[str, Any]]) -> Iterator[bool]:
        device = engine.state.device
        refiner = SamRefiner(_sam(self.base, self._checkpoint(), self.sam_size).to(device), self.sam_size)
        with progress_bar(total=len(records), desc="pseudo-labels", unit="image") as bar:
            for each in records:
                item = self.transform(dict(each))
                image = torch.as_tensor(item["image"]).as_subclass(Tensor).float().to(device)
                weak = item.get("label") if self.split == "labelled" else None
                weak = None if weak is None else torch.as_tensor(weak).as_subclass(Tensor).to(device)
                coarse = self._coarse(engine, image)
                previous = self.store.previous(each["image_sha256"], coarse)
                if weak is not None:
                    coarse = torch.where(weak == IGNORE, coarse, (weak == 1).float())
                label = refiner(image, coarse, weak)
                if label is not None:
                    yield self.store.offer(each["image_sha256"], label, scored(label, previous))
                bar.update()

    def _coarse(self, engine: Any, image: Tensor) -> Tensor:
        with torch.no_grad():
            return mean_of_views(image[None], lambda batch: engine.inferer(batch, engine.network), self.views)[0]

    def _saved(self) -> list[Path]:
        return sorted(self.stores.glob("[0-9]*.safetensors"))

    def _go_to(self, number: int) -> None:
        """The store as it was after a round, or the newest before it; empty before the first."""
        before = [path for path in self._saved() if int(path.stem) <= number]
        self.store.load(before[-1] if before else None)
