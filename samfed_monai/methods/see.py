"""SEE (arXiv 2506.08955): SAM refines the network's masks of a site's images; the best pseudo-labels are kept.

The paper and its predecessor WS-SAM (He et al., NeurIPS 2023), of which we had abstracts and public summaries, not
the code: a mean teacher's masks of several augmentations are brought back and averaged; points, boxes and the mask
itself prompt SAM; the best pseudo-labels are stored; images and pixels are chosen by entropy. Which three scores
decide, and what an uncertain pixel is, are our reading, and so is the mean teacher: the network that a round begins
with, which is the mean of the sites'. Its feature grouping is not here.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Events
from monai.networks.utils import eval_mode
from monai.transforms import Transform
from monai.transforms.traits import RandomizableTrait
from scipy import ndimage
from torch import Tensor

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import as_file_name, make_folder, safe_load, write_bytes
from samfed_monai.core.progress import progress_bar
from samfed_monai.core.training_state import own_random_state
from samfed_monai.core.validators import in_range, one_of, whole
from samfed_monai.data.soft_masks import resize_probabilities
from samfed_monai.data.weak_labels import IGNORE
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.records import record
from samfed_monai.handlers.rounds import in_federation, round_of
from samfed_monai.handlers.term import Term
from samfed_monai.losses import entropy, weighted_pseudo_label_loss
from samfed_monai.networks.sam.build import PromptFreeSam, build_sam, check_size
from samfed_monai.networks.sam.geometry import MASK_STRIDE, crop, embed, inner_size
from samfed_monai.networks.sam.refine import connected_components, prompts
from samfed_monai.networks.views import VIEWS, mean_of_views
from samfed_monai.networks.weights import find_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from samfed_monai.bundle import SiteImages

logger = logging.getLogger(__name__)

KEY = "teacher"
"""Under which an item carries its pseudo-label: a key that the weak view moves with the image."""
UNKNOWN = 0.5
"""A probability that says nothing: its entropy is 1, so its weight is 0."""


def uncertainty(probabilities: Tensor) -> Tensor:
    """Entropy of each pixel in bits, (B, 1, H, W) in [0, 1], of foreground probabilities of that shape."""
    return (entropy(probabilities) / math.log(2)).clamp(0, 1)


def is_kept(probabilities: Tensor, *, absolute: float = 0.1, relative: float = 0.5, unsure: float = 0.9) -> bool:
    """Whether a pseudo-label is sure enough as a whole (WS-SAM, entropy-based image-level selection).

    Pixels of an entropy above ``unsure`` bits are unsure: they must be less than ``absolute`` of the image, and less
    than ``relative`` of its foreground. The two thresholds are the paper's, ``unsure`` is our reading.

    Args:
        probabilities: (1, h, w) float in [0, 1].
        absolute, relative, unsure: in (0, 1].
    """
    doubtful = int((uncertainty(probabilities[None]) > unsure).sum())
    foreground = int((probabilities > 0.5).sum())
    return doubtful < absolute * probabilities.numel() and doubtful < relative * max(foreground, 1)


class Scores(NamedTuple):
    """How good a pseudo-label is; more is better, each in [0, 1].

    Args:
        certainty: 1 minus the mean entropy.
        agreement: IoU with the network's own mask, from which it was made.
        fidelity: what of the weak label it says rightly, the mean over its two classes; without one, the IoU that SAM
            predicts of itself.
    """

    certainty: float
    agreement: float
    fidelity: float

    def better(self, other: Scores) -> bool:
        """Whether at least two of the three are above those of ``other``."""
        return sum(own > old for own, old in zip(self, other, strict=True)) >= 2


def scored(refined: Tensor, coarse: Tensor, weak: Tensor | None, predicted_iou: float) -> Scores:
    """The three scores of a pseudo-label.

    Args:
        refined, coarse: (1, h, w) float in [0, 1].
        weak: (1, h, w) in {0, 1, 255}, or ``None``.
        predicted_iou: of SAM, in [0, 1].
    """
    mask, before = refined > 0.5, coarse > 0.5
    union = int((mask | before).sum())
    agreement = int((mask & before).sum()) / union if union else 1.0
    classes = [] if weak is None else [(weak == value, mask if value else ~mask) for value in (1, 0)]
    right = [float(said[there].float().mean()) for there, said in classes if bool(there.any())]
    fidelity = sum(right) / len(right) if right else predicted_iou
    return Scores(1 - float(uncertainty(refined[None]).mean()), agreement, fidelity)


class PseudoLabelStore:
    """The best pseudo-label of every image so far, keyed by the SHA-256 of the image's file; 8 bits a pixel.

    A new one replaces the old one where at least two of its three scores are better. Copies of it (a data set copies
    its transforms) are the store itself.
    """

    def __init__(self) -> None:
        self._labels: dict[str, tuple[Tensor, Scores]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> PseudoLabelStore:
        return self

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, image_sha256: object) -> bool:
        return image_sha256 in self._labels

    def offer(self, image_sha256: str, probabilities: Tensor, scores: Scores) -> bool:
        """Takes a pseudo-label, if it is the first of its image or better; whether it was taken.

        Args:
            image_sha256: of the image's file.
            probabilities: (1, h, w) float in [0, 1].
            scores: its own.
        """
        old = self._labels.get(image_sha256)
        if old is not None and not scores.better(old[1]):
            return False
        # scores as they are stored, so that a run that goes on compares the same numbers
        kept = Scores(*torch.tensor(scores, dtype=torch.float64).tolist())
        self._labels[image_sha256] = ((probabilities.detach().cpu() * 255).round().to(torch.uint8), kept)
        return True

    def get(self, image_sha256: str) -> Tensor | None:
        """An image's pseudo-label, (1, h, w) float in [0, 1]; ``None`` where there is none."""
        found = self._labels.get(image_sha256)
        return None if found is None else found[0].float() / 255

    def scores(self, image_sha256: str) -> Scores:
        """Those of an image's pseudo-label."""
        return self._labels[image_sha256][1]

    def save(self, path: Path) -> None:
        """Writes all of it, for its owner alone: pseudo-labels of private images stay at their site."""
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        for image, (label, scores) in self._labels.items():
            tensors |= {f"{image}.label": label, f"{image}.scores": torch.tensor(scores, dtype=torch.float64)}
        make_folder(path.parent)
        os.chmod(path.parent, 0o700)
        write_bytes(path, save(tensors))

    def load(self, path: Path | None) -> None:
        """Goes back to what :meth:`save` wrote; ``None`` empties it."""
        tensors = {} if path is None else safe_load(path)
        images = [name.removesuffix(".label") for name in tensors if name.endswith(".label")]
        self._labels = {
            image: (tensors[f"{image}.label"], Scores(*tensors[f"{image}.scores"].tolist())) for image in images
        }


class LoadPseudoLabeld(Transform, RandomizableTrait):
    """Adds an image's pseudo-label, where it is sure enough (:func:`is_kept`); elsewhere one half, which has no weight.

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
        """Reads ``image_sha256`` and ``image``, (C, h, w); adds ``teacher``, (1, h, w) float32."""
        size = data["image"].shape[-2:]
        label = self.store.get(data["image_sha256"])
        if label is None or not is_kept(label, absolute=self.absolute, relative=self.relative):
            return {**data, KEY: torch.full((1, *size), UNKNOWN)}
        return {**data, KEY: resize_probabilities(label[None], size)[0]}


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


class Refined(NamedTuple):
    """What SAM makes of a mask.

    Args:
        probabilities: (1, h, w) float in [0, 1].
        predicted_iou: in [0, 1], mean over the parts.
    """

    probabilities: Tensor
    predicted_iou: float


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
    def __call__(self, image: Tensor, mask: Tensor, weak: Tensor | None) -> Refined | None:
        """Refines one image's mask.

        Args:
            image: (3, H, W) float in [0, 1].
            mask: (1, H, W) float in [0, 1].
            weak: (1, H, W) in {0, 1, 255}, or ``None``.

        Returns:
            ``None`` where the mask has no part that is more than a speck.
        """
        parts = connected_components(mask[0] > 0.5)
        if not parts.numbers:
            return None
        height, width = image.shape[-2:]
        embedding = embed(self.sam, image[None], self.size, False)
        boxes = prompts(parts.boxes.to(image), height, width, self.size)
        points = self._points(parts.labels.to(image.device), parts.numbers, parts.boxes, weak)
        low = self._low(mask).expand(len(boxes), -1, -1, -1)
        answers, sure = [], []
        for given in ((), (points,), (points, low)):
            logits, predicted = self.sam.decode_prompts(embedding, boxes, *given)
            answers.append(crop(logits, height, width, self.size).sigmoid().amax(dim=0, keepdim=True))
            sure.append(float(predicted.clamp(0, 1).mean()))
        mean = resize_probabilities(torch.stack(answers).mean(dim=0), (height, width))[0]
        return Refined(mean, sum(sure) / len(sure))

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
    site's images are seen by the network in eval mode
    in ``views`` mirrored and turned views, whose predictions are brought back exactly and averaged; the weak label,
    where there is one, overrules what they say of its pixels. :class:`SamRefiner` makes a pseudo-label of that, and
    :class:`PseudoLabelStore` keeps the better one of it and the one before. Images whose pseudo-label is too unsure
    have no say (:func:`is_kept`), and a round without any pseudo-label is one without the term.

    The store of a round is in ``folder``, readable for its owner alone, beside those of the two before, from which
    this round and the last one would begin if they had to be repeated; a run that goes on goes on with them. Nothing of
    it leaves the site.
    In memory and on the disk it takes one byte a pixel and image. Each refinement costs SAM's encoder once an image.

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
        absolute, relative: of :func:`is_kept`.
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
        problems = Problems()
        problems.extend(one_of(f"{self.where}#split", self.split, ["labelled", "unlabelled"]))
        problems.extend(one_of(f"{self.where}#views", self.views, sorted(VIEWS)))
        problems.extend(whole(f"{self.where}#every", self.every, least=1))
        problems.extend(in_range(f"{self.where}#absolute", self.absolute, "a share", above=0, most=1))
        problems.extend(in_range(f"{self.where}#relative", self.relative, "a share", above=0, most=1))
        with problems.collected():
            check_size(self.sam_size, f"{self.where}#sam_size")
        problems.refuse_if_any()
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
            raise Refused([Problem(f"SAM {self.base}", found="none here", expected=expected, hint=hint)]) from None

    def _checkpoint(self) -> str:
        return str(self.checkpoint or find_checkpoint(self.base))

    def value(self, guidance: Guidance | None, engine: Any) -> Tensor:
        """The weighted loss of the batch's pseudo-labels."""
        if guidance is not None and self.unlabelled:
            label, logits = guidance.view(KEY, asked_by=self.where), guidance.student
        else:
            label, logits = torch.as_tensor(engine.state.batch[KEY]), engine.state.output["pred"]
        label = label.to(logits.device).float()
        weight = 1 - uncertainty(label)
        record(engine, f"{self.name}_labelled", label.new_tensor(self._labelled))
        record(engine, f"{self.name}_weight", weight.mean())
        return weighted_pseudo_label_loss(logits, (label > 0.5).long(), weight)

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
                if weak is not None:
                    coarse = torch.where(weak == IGNORE, coarse, (weak == 1).float())
                refined = refiner(image, coarse, weak)
                if refined is not None:
                    scores = scored(refined.probabilities, coarse, weak, refined.predicted_iou)
                    yield self.store.offer(each["image_sha256"], refined.probabilities, scores)
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
