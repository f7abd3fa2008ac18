"""Sites with weak labels: partial cross entropy on labelled pixels, and a gated CRF that spreads it to similar ones.

FedICRA (Lin et al., arXiv 2304.05635) trains in this way on scribbles, points, boxes and blocks, one kind per site; its
tree energy and its aggregation are a separate method (``fedicra``).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import Resized
from monai.utils import ensure_tuple
from torch import Tensor, nn

from samfed_monai.core.validators import COUNT, POSITIVE
from samfed_monai.data.weak_labels import IGNORE
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.records import record
from samfed_monai.handlers.term import Term
from samfed_monai.losses import probabilities, without_label


class PartialCrossEntropy(nn.Module):
    """Mean cross entropy over the labelled pixels of a batch; the others are ignored.

    For whole masks it is the cross entropy; without any labelled pixel it is 0, with a gradient of 0 (FedICRA,
    arXiv 2304.05635, its loss L_pCE). It has no overlap loss: an IoU over some pixels means little.

    Raises:
        ValueError: shapes that do not match.

    Example::

        {"_target_": "samfed_monai.methods.weak_labels.PartialCrossEntropy"}
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss as a scalar.

        Args:
            logits: (B, C, H, W) float; C = 1 is a sigmoid, C > 1 a softmax.
            target: the same shape, see :func:`samfed_monai.losses.without_label`.
        """
        if target.shape != logits.shape:
            shapes = f"expected a target of shape {tuple(logits.shape)}, found {tuple(target.shape)}"
            raise ValueError(f"PartialCrossEntropy: {shapes}")
        known = ~without_label(target)
        truth = torch.where(known, target, 0).to(logits.dtype)
        if logits.shape[1] == 1:
            entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        else:
            entropy = F.cross_entropy(logits, truth, reduction="none")[:, None]
        return torch.where(known, entropy, 0.0).sum() / known.sum().clamp(min=1)


def gated_crf(probabilities: Tensor, image: Tensor, *, radius: int, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """Penalises near pixels of similar colour that differ in class; mean over pixels.

    ``1/N sum_i sum_{j in N(i), j != i} k_ij (1 - sum_c p_i^c p_j^c)`` with
    ``k_ij = exp(-|x_i - x_j|^2 / 2 sigma_xy^2 - |I_i - I_j|^2 / 2 sigma_rgb^2)``, over the pairs inside the image that
    are at most ``radius`` apart in each direction (Obukhov et al., arXiv 1906.04651, with one kernel). Each pair is
    computed once and counted twice.

    Args:
        probabilities: (B, C, H, W) float in [0, 1]; C = 1 is the foreground, C > 1 sums to 1.
        image: (B, 3, H, W) float in [0, 1]; it gets no gradient.
        radius: radius of the window, in pixels.
        sigma_xy: spatial sigma, in pixels.
        sigma_rgb: colour sigma, in intensities.

    Returns:
        A scalar >= 0; 0 for one class everywhere.
    """
    image = image.detach()
    total = probabilities.new_zeros(())
    for down, right in _half_window(radius):
        pixel, neighbour = _pairs(probabilities, down, right)
        colour, neighbour_colour = _pairs(image, down, right)
        distance = (down**2 + right**2) / (2 * sigma_xy**2)
        kernel = torch.exp(-(colour - neighbour_colour).square().sum(1, keepdim=True) / (2 * sigma_rgb**2) - distance)
        same = (pixel * neighbour).sum(1, keepdim=True)
        if probabilities.shape[1] == 1:
            same = same + (1 - pixel) * (1 - neighbour)
        total = total + 2 * (kernel * (1 - same)).sum()
    batch, _, height, width = probabilities.shape
    return total / (batch * height * width)


def _half_window(radius: int) -> Iterator[tuple[int, int]]:
    """Yields one of each two opposite offsets in the window."""
    for down in range(radius + 1):
        for right in range(-radius, radius + 1):
            if down > 0 or right > 0:
                yield down, right


def _pairs(tensor: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """Returns the pixels that have a neighbour at this offset, and those neighbours."""
    height, width = tensor.shape[-2:]
    rows, shifted = slice(0, max(height - down, 0)), slice(min(down, height), height)
    left, end = max(-right, 0), max(right, 0)
    return tensor[..., rows, left : max(width - end, left)], tensor[..., shifted, end : max(width - left, end)]


@dataclass(kw_only=True, eq=False)
class GatedCrfTerm(Term):
    """:func:`gated_crf` of the predictions for the labelled batch; labels are not used.

    Args:
        name: name under which the value is logged.
        radius, sigma_xy, sigma_rgb: as in :func:`gated_crf` (FedICRA: 5, 6, 0.1).
        step: uses every ``step``-th pixel of each row and column, which divides the time by its square (ours).
            ``radius`` counts used pixels: with step 2 a radius of 5 reaches 10 pixels of the image; ``sigma_xy`` stays
            in pixels of the image.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: a number out of range.

    Example::

        "terms#crf": {"_target_": "samfed_monai.methods.weak_labels.GatedCrfTerm", "radius": 5}
    """

    unlabelled = False
    checks: ClassVar = dict.fromkeys(("radius", "step"), partial(COUNT, what="a number of pixels"))
    checks |= {"sigma_xy": POSITIVE, "sigma_rgb": POSITIVE}

    name: str = "crf"
    radius: int = 5
    sigma_xy: float = 6.0
    sigma_rgb: float = 0.1
    step: int = 1
    weight: float = 0.1

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """Returns the term; also records ``<name>_labelled``, the share of pixels with a label."""
        output, step = engine.state.output, self.step
        record(engine, f"{self.name}_labelled", (~without_label(output["label"])).float().mean())
        return gated_crf(
            probabilities(output["pred"].float())[..., ::step, ::step],
            output["image"].float()[..., ::step, ::step],
            radius=self.radius,
            sigma_xy=self.sigma_xy / step,
            sigma_rgb=self.sigma_rgb,
        )


_LEAST = 0.25
"""Minimum labelled share of a resized pixel for it to get a label."""


def resize_weak(label: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes a weak label: a pixel gets the label, background or foreground, that covers more of it, if >= a quarter.

    With several classes, the foreground class is the one that covers most. Scribbles thus stay connected, which
    nearest-neighbour resizing would break. A class that would vanish, such as points of a few pixels in a photograph
    of thousands, gets every pixel where it covers most, however little that is.

    Args:
        label: see :func:`samfed_monai.losses.without_label`, (1, H, W) or (K + 1, H, W) float.
        size: height and width in pixels.

    Returns:
        (1, *size) or (K + 1, *size) float, with the same values. A whole mask is resized as by
        :class:`samfed_monai.transforms.ResizeWithLabeld` by area.
    """
    planes = torch.cat([label == 0, label == 1]) if len(label) == 1 else label
    shares = F.interpolate(planes.float()[None], size=tuple(size), mode="area")[0]
    foreground = shares[1:].sum(dim=0)
    chosen = torch.where(shares[0] > foreground, 0, shares[1:].argmax(dim=0) + 1)
    resized = torch.where(torch.maximum(shares[0], foreground) >= _LEAST, chosen, IGNORE)
    for value, share in enumerate(shares):
        if not (resized == value).any():
            resized[(share > 0) & (chosen == value)] = value
    values = resized[None] if len(label) == 1 else resized == torch.arange(len(label))[:, None, None]
    return values.float()


class ResizeWithWeakLabeld(Resized):
    """MONAI's ``Resized`` for an image (by area), and :func:`resize_weak` for its label.

    Args:
        keys: keys of the image and of the label; the label may be missing.
        spatial_size: height and width in pixels.

    Example::

        {"_target_": "samfed_monai.methods.weak_labels.ResizeWithWeakLabeld", "keys": ["image", "label"],
         "spatial_size": ["@image_size", "@image_size"]}
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int]) -> None:
        image, *self.label_keys = ensure_tuple(keys)
        self.size = tuple(spatial_size)
        super().__init__(image, spatial_size, mode="area")

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        result: dict[Hashable, Any] = super().__call__(data, lazy)
        for key in self.label_keys:
            if result.get(key) is not None:
                result[key] = resize_weak(torch.as_tensor(result[key]).as_subclass(Tensor), self.size)
        return result
