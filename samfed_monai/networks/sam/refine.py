"""Box refinement: a second pass of SAM, prompted with boxes around the first pass's components (docs/method.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from samfed_monai.core.errors import Problems
from samfed_monai.core.validators import in_range, one_of
from samfed_monai.data.soft_masks import resize_probabilities
from samfed_monai.networks.autocast import Switch
from samfed_monai.networks.sam.build import PromptFreeSam, build_sam, check_size
from samfed_monai.networks.sam.geometry import crop, embed, inner_size
from samfed_monai.networks.sam.tiny_vit import fold_batch_norms

LEAST_SHARE = 5e-4
"""Parts smaller than this share of the image are specks: 6 pixels of a quarter-resolution mask at 512 px."""
MOST = 8
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
    import numpy as np
    from scipy import ndimage

    height, width = mask.shape
    labels, count = ndimage.label(mask.cpu().numpy(), structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-areas, kind="stable")[:MOST] + 1
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


class Refine(str, Enum):
    """What becomes of the second pass."""

    NONE = "none"
    BOXES = "boxes"
    MEAN = "mean"


class RefineWith(str, Enum):
    """Which SAM gives it: as it comes, or the adapted one."""

    BASE = "base"
    ADAPTED = "adapted"


@dataclass(frozen=True)
class Refinement:
    """How a teacher's mask is refined.

    Args:
        refine: ``none``, ``boxes`` (the second pass replaces the first) or ``mean`` of the two. The second pass holds
            the parts that have a box: specks and all but the eight largest parts are not in it, whatever SAM answers.
        refine_with: ``base``, the SAM as it comes, or ``adapted``, the teacher's own.
        refine_size: side of its input in pixels; ``None`` is 1024 for ``base`` and the teacher's own for ``adapted``.
        refine_least_iou: a box's answer counts where SAM itself predicts at least this IoU of it, in [0, 1]; elsewhere
            the part stays as the first pass saw it. An adapted SAM's prediction is not trained and means less.
        refine_least_agreement: likewise, the least IoU of a box's answer with the part that the box was drawn around,
            in [0, 1]: an answer that is something else in the same box is none.

    Raises:
        Refused: an unknown word or a number out of its range; all at once.
    """

    refine: str = Refine.NONE.value
    refine_with: str = RefineWith.BASE.value
    refine_size: int | None = None
    refine_least_iou: float = 0.0
    refine_least_agreement: float = 0.5

    def __post_init__(self) -> None:
        problems = Problems()
        problems.extend(one_of("teacher -> refine", self.refine, Refine))
        problems.extend(one_of("teacher -> refine_with", self.refine_with, RefineWith))
        size = self.refine_size
        if size is not None:
            with problems.collected():
                check_size(size, "teacher -> refine_size", ", or null")
        if size is not None and self.refine_with == RefineWith.ADAPTED:
            hint = "set refine_size to null: the adapted SAM has the size that it was adapted at"
            problems.add(
                "teacher -> refine_size", found=repr(size), expected="null with refine_with 'adapted'", hint=hint
            )
        for name in ("refine_least_iou", "refine_least_agreement"):
            problems.extend(in_range(f"teacher -> {name}", getattr(self, name), least=0, most=1))
        problems.refuse_if_any()

    def content(self) -> dict[str, Any] | None:
        """What decides the refined probabilities, for the teacher's identity; ``None`` without refinement."""
        if self.refine == Refine.NONE:
            return None
        parts = {"least_share": LEAST_SHARE, "most": MOST, "margin": MARGIN}
        return {
            "refine": Refine(self.refine).value,
            "with": RefineWith(self.refine_with).value,
            "size": self.size_for(None),
            "least_iou": float(self.refine_least_iou),
            "least_agreement": float(self.refine_least_agreement),
            "parts": parts,
        }

    def size_for(self, teacher_size: int | None) -> int | None:
        """Side of the second pass's input in pixels, given that of the first."""
        return teacher_size if self.refine_with == RefineWith.ADAPTED else self.refine_size or 1024


class BoxRefiner(nn.Module):
    """Prompts SAM with the box of each part of a mask and joins the answers.

    Args:
        sam: gives the answers; its weights are not trained here.
        size: side of its input in pixels.
        refinement: how.
        bf16: bfloat16 for the encoder.
    """

    def __init__(self, sam: PromptFreeSam, size: int, refinement: Refinement, *, bf16: Switch = "auto") -> None:
        super().__init__()
        self.sam, self.size, self.refinement, self.bf16 = sam, size, refinement, bf16
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor, first: Tensor) -> Tensor:
        """Refines probabilities of the first pass.

        Args:
            images: ``(B, 3, H, W)`` float in [0, 1], RGB.
            first: ``(B, 1, h, w)`` float in [0, 1] that covers exactly the images.

        Returns:
            The same shape and meaning; an image of which no part has a box is left as it is.
        """
        second = torch.cat([self._second(images[i : i + 1], first[i : i + 1]) for i in range(len(images))])
        return (first + second) / 2 if self.refinement.refine == Refine.MEAN else second

    def _second(self, image: Tensor, first: Tensor) -> Tensor:
        parts = connected_components(first[0, 0] > 0.5)
        if not parts.numbers:
            return first
        height, width = image.shape[-2:]
        boxes = prompts(parts.boxes.to(first.device), height, width, self.size)
        logits, predicted_iou = self.sam.decode_boxes(embed(self.sam, image, self.size, self.bf16), boxes)
        answers = crop(logits, height, width, self.size).sigmoid()
        answers = resize_probabilities(answers, first.shape[-2:])
        labels = parts.labels.to(first.device)
        # what the first pass saw of one part: the image without the others and without specks, soft border included
        own = [first[0].masked_fill((labels > 0) & (labels != number), 0) for number in parts.numbers]
        agreement = torch.stack(
            [iou(answer[0] > 0.5, labels == number) for answer, number in zip(answers, parts.numbers, strict=True)]
        )
        kept = predicted_iou >= self.refinement.refine_least_iou
        kept &= agreement >= self.refinement.refine_least_agreement
        return torch.where(kept.view(-1, 1, 1, 1), answers, torch.stack(own)).amax(dim=0, keepdim=True)


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of two bool masks, one of which is not empty; a scalar."""
    return (one & other).sum() / (one | other).sum()


def prompts(boxes: Tensor, height: int, width: int, size: int) -> Tensor:
    """Boxes as shares of an image to SAM's prompts: pixel indices in its input, ``(N, 4)``.

    SAM adds half a pixel to an index to get a position, so half a pixel is taken off a position to get an index.
    """
    inner = inner_size(height, width, size)
    return boxes * boxes.new_tensor([inner[1], inner[0], inner[1], inner[0]]) - 0.5


def make_refiner(
    refinement: Refinement, adapted: PromptFreeSam, size: int, *, base: str, checkpoint: str | Path, bf16: Switch
) -> BoxRefiner | None:
    """The refiner of a teacher, on the device of its SAM; ``None`` where nothing is to be refined.

    Args:
        refinement: how.
        adapted: the teacher's own SAM.
        size: side of its input in pixels.
        base, checkpoint: the SAM as it comes, built only where it is asked for.
        bf16: bfloat16 for the encoder.
    """
    if refinement.refine == Refine.NONE:
        return None
    if refinement.refine_with == RefineWith.ADAPTED:
        return BoxRefiner(adapted, size, refinement, bf16=bf16)
    own_size = refinement.size_for(size) or size
    sam = build_sam(base, checkpoint, own_size).requires_grad_(False)
    fold_batch_norms(sam.image_encoder)
    return BoxRefiner(sam.to(adapted.pixel_mean.device), own_size, refinement, bf16=bf16)
