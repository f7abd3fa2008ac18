"""Use of a fitted teacher: Dice on labelled images, a site's soft-mask store, a network for evaluators."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.core.run_log import progress_bar
from samfed_monai.data.soft_masks import SoftMaskStore, resize_probabilities
from samfed_monai.losses.pixelwise import probabilities
from samfed_monai.metrics import over_classes, scores_by_class
from samfed_monai.networks.inferer import logits_of
from samfed_monai.networks.sam.build import place
from samfed_monai.networks.sam.teacher import Teacher
from samfed_monai.transforms.loading import read_label

Records = Sequence[dict[str, Any]]


class Pair(NamedTuple):
    """An image and its mask in 8 bits.

    Args:
        image: ``(1, 3, H, W)`` uint8.
        mask: ``(1, C, H, W)`` uint8, 0 or 1; for K classes C is K + 1.
    """

    image: Tensor
    mask: Tensor


def read_pair(record: dict[str, Any]) -> Pair:
    """Reads a labelled record of ``load_records``."""
    return Pair(read_image_tensor(record), torch.tensor(read_label(record))[None])


def shrunk(image: Tensor, size: int) -> Tensor:
    """Returns an image scaled into SAM's square input if that is smaller, else unchanged.

    Scaling a photograph of 24 million pixels (72 MB) takes ten times as long as a step of the fit at 224 px, so it is
    done once. Rounding changes an intensity by at most 1/510.

    Args:
        image: ``(1, 3, H, W)`` uint8.
        size: side of the input in pixels.
    """
    if max(image.shape[-2:]) <= size:
        return image
    return place(image.float() / 255, size).mul(255).round().to(torch.uint8)


def read_image_tensor(record: dict[str, Any]) -> Tensor:
    """Reads the image of a record as ``(1, 3, H, W)`` uint8."""
    from samfed_monai.data import read_image

    return torch.tensor(read_image(record["image"])).permute(2, 0, 1)[None]


class TeacherEvaluation:
    """Computes Dice per image at the masks' native size, threshold 0.5; two empty masks count 1 (docs/method.md).

    Args:
        teacher: the teacher to evaluate; it may change between two calls.
        keep_embeddings: cache each image's embedding (float16, ``size ** 2 * 2`` bytes) for the next call. Only for a
            frozen encoder. The cache is for a single view; more test-time views are computed each time.
    """

    def __init__(self, teacher: Teacher, *, keep_embeddings: bool = False) -> None:
        self.teacher, self.keep_embeddings = teacher, keep_embeddings
        self._embeddings: dict[str, Tensor] = {}
        self._pairs: dict[str, Pair] = {}

    def __call__(
        self,
        sets: Mapping[str, Records],
        *,
        views: int = 1,
        done: Callable[[], object] = lambda: None,
        keep: bool = False,
    ) -> dict[str, list[float]]:
        """Returns the Dice of each image of each named set.

        Args:
            sets: labelled records by name.
            views: number of test-time views.
            done: called after every image (a progress bar).
            keep: cache masks, and images at the teacher's input size, for sets that are evaluated repeatedly.
        """
        dice = {}
        for name, records in sets.items():
            scores = []
            for record in records:
                pair = self._pair(record) if keep else read_pair(record)
                scores.append(dice_score(self._probabilities(record["image_sha256"], pair, views), pair.mask))
                done()
            dice[name] = scores
        return dice

    def _pair(self, record: dict[str, Any]) -> Pair:
        key = f"{record['image_sha256']} {record['label']}"
        if key not in self._pairs:
            native = read_pair(record)
            self._pairs[key] = Pair(shrunk(native.image, self.teacher.size), native.mask)
        return self._pairs[key]

    @torch.no_grad()
    def _probabilities(self, key: str, pair: Pair, views: int) -> Tensor:
        image = (pair.image.float() / 255).to(self.teacher.sam.pixel_mean.device)
        if not self.keep_embeddings or views != 1:
            return self.teacher.probabilities(image, views).cpu()
        if key not in self._embeddings:
            self._embeddings[key] = self.teacher.embed(image).half()
        return probabilities(self.teacher.decode(self._embeddings[key].float(), *image.shape[-2:])).cpu()


def dice_score(probabilities: Tensor, mask: Tensor) -> float:
    """Returns the Dice of ``(1, C, h, w)`` probabilities, resized bilinearly, with a binary ``(1, C, H, W)`` mask.

    With several classes it is the mean over those in either of the two, 1 if there are none.
    """
    prediction = F.interpolate(probabilities, mask.shape[-2:], mode="bilinear", align_corners=False)
    if mask.shape[1] > 1:
        predicted_class, true_class = (planes.argmax(dim=1)[0].numpy() for planes in (prediction, mask))
        return over_classes(scores_by_class(predicted_class, true_class, mask.shape[1] - 1)).dice
    prediction = prediction >= 0.5
    area = float(prediction.sum() + mask.sum())
    return 2 * float((prediction * mask).sum()) / area if area else 1.0


def mean(scores: Sequence[float]) -> float:
    """Returns the mean of at least one score."""
    return sum(scores) / len(scores)


def within_one_standard_error(scores: Sequence[float], best: Sequence[float]) -> bool:
    """Whether ``scores`` are better than ``best`` or at most one standard error worse, image by image.

    The standard error is that of the mean difference over the images. (Breiman et al. 1984, section 3.4.3: among models
    within one standard error of the best, take the preferred one. Here that is the one trained longest, because with a
    handful of held-out images the best epoch is mostly due to chance.)
    """
    differences = [old - new for new, old in zip(scores, best, strict=True)]
    if len(differences) < 2:
        return mean(differences) <= 0
    # one worse image and the others equal is exactly one standard error: rounding must not decide
    return mean(differences) <= statistics.stdev(differences) / len(differences) ** 0.5 + 1e-9


class MaskSource(Protocol):
    """The interface of a teacher for :func:`fill_store`."""

    def probabilities(self, images: Tensor) -> Tensor: ...


def fill_store(teacher: MaskSource, records: Sequence[dict[str, Any]], store: SoftMaskStore, *, owner: str = "") -> int:
    """Computes the soft masks that ``store`` lacks; repeated, even after an interruption, it only adds missing ones.

    The stored mask covers exactly the image: its longer side has ``teacher.size / 4`` pixels and its aspect is the
    image's, so that a bilinear resize to the image's size aligns it (see ``Teacher.probabilities``).

    Args:
        teacher: computes the probabilities; ``store`` must have been opened with its ``sha256``.
        records: dicts with ``image`` (path) and ``image_sha256``; labels are not read.
        store: the store, which gets ``(C, h, w)`` float in [0, 1].
        owner: the owner of the images, added to the bar's name.

    Returns:
        The number of masks computed.
    """
    by_hash = {record["image_sha256"]: record for record in records}
    missing = store.missing(list(by_hash))
    description = f"soft masks, {owner}" if owner else "soft masks"
    with progress_bar(total=len(missing), desc=description, unit="image", show=bool(missing)) as bar:
        for sha256 in missing:
            store.put(sha256, teacher.probabilities(read_image_tensor(by_hash[sha256]).float() / 255).cpu()[0])
            bar.update()
    return len(missing)


class TeacherNetwork(nn.Module):
    """Returns a teacher's probabilities as logits, for evaluators, :class:`ScoreHandler` and ``MaskWriter``.

    It takes images at their own size, not at the size of a student's input, and cannot be trained.

    Args:
        teacher: the teacher, whose number of views is used.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Returns the logits of images.

        Args:
            images: ``(B, 3, H, W)`` float in [0, 1], RGB.
            size: height and width of the logits in pixels; the probabilities are resized to it, as the soft masks of
                the store are before a site scores them. ``None`` keeps the size of ``Teacher.probabilities``.

        Returns:
            ``(B, 1, h, w)`` float32, above 0 exactly where the probability is above 0.5; for K classes
            ``(B, K + 1, h, w)``.
        """
        probabilities = self.teacher.probabilities(images)
        resized = probabilities if size is None else resize_probabilities(probabilities, size)
        return torch.logit(resized, eps=1e-6) if resized.shape[1] == 1 else logits_of(resized)
