"""The frozen teacher: images in, probabilities out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import canonical_hash, sha256_file
from samfed_monai.core.validators import in_range, one_of, require
from samfed_monai.losses.unlabelled import probabilities
from samfed_monai.networks.autocast import Switch
from samfed_monai.networks.sam.adapter import load_adapter
from samfed_monai.networks.sam.build import PromptFreeSam, build_sam
from samfed_monai.networks.sam.geometry import crop, embed
from samfed_monai.networks.sam.refine import BoxRefiner, Refinement, make_refiner
from samfed_monai.networks.sam.tiny_vit import fold_batch_norms
from samfed_monai.networks.views import VIEWS

_LEAST = 1e-6  # keeps logits finite


def check_peak(peak: float | None) -> None:
    """Refuses anything but ``None`` and a number above 0 and at most 0.5."""
    require(in_range("teacher -> peak", peak, above=0, most=0.5, or_null=True))


def relative_to_peak(probabilities: Tensor, peak: float) -> Tensor:
    """Shifts every image's logits so that ``peak`` times its highest probability becomes 0.5.

    Where a teacher is unsure of a whole image (other colours than it was adapted to) its mask is too small or empty at
    a threshold of 0.5, while its order of the pixels is still good. The order stays as it is. On an image without a
    lesion this finds one: it is for sets whose images all show one. Ours, not from a paper.

    Args:
        probabilities: ``(B, 1, H, W)`` float in [0, 1].
        peak: part of the highest probability, in (0, 0.5].

    Returns:
        ``(B, 1, H, W)`` float in [0, 1].
    """
    highest = probabilities.amax(dim=(1, 2, 3), keepdim=True)
    threshold = (peak * highest).clamp(_LEAST, 0.5)
    return torch.sigmoid(probabilities.clamp(_LEAST, 1 - _LEAST).logit() - threshold.logit())


class Teacher(nn.Module):
    """SAM, adapted or not, with test-time augmentation (``M_T`` of docs/method.md); it never trains by itself.

    Args:
        sam: the network, adapter included.
        sha256: identity of everything that decides the probabilities.
        size: side of the square input in pixels.
        views: test-time views whose probabilities are averaged: 1, 2, 4 or 8 (mirror x quarter turns).
        bf16: bfloat16 for the encoder: ``"auto"`` is wherever the processor gains. It moves probabilities by about
            1 % and is no part of the identity.
        refiner: a second look at the mean of the views; ``None`` does without.
        peak: foreground begins at this part of the image's highest probability (see ``relative_to_peak``); ``None``
            takes probabilities as they are.
    """

    def __init__(
        self,
        sam: PromptFreeSam,
        *,
        sha256: str,
        size: int,
        views: int = 1,
        bf16: Switch = "auto",
        refiner: BoxRefiner | None = None,
        peak: float | None = None,
    ) -> None:
        super().__init__()
        check_peak(peak)
        if sam.outputs > 1 and (peak is not None or refiner is not None):
            found, hint = "a peak or a refinement", "set peak to null and refine to none"
            raise Refused([Problem("teacher -> adapter", found, expected="neither with several classes", hint=hint)])
        require(one_of("teacher -> views", views, sorted(VIEWS)))
        self.sam, self.refiner = sam, refiner
        self.sha256, self.size, self.views, self.bf16, self.peak = sha256, size, views, bf16, peak
        self.eval()

    @classmethod
    def load(
        cls,
        base: str = "vit_t",
        checkpoint: str | Path | None = None,
        adapter: str | Path | None = None,
        size: int = 512,
        views: int = 1,
        *,
        bf16: Switch = "auto",
        public_hash: str | None = None,
        device: torch.device | str = "cpu",
        peak: float | None = None,
        refine: str = "none",
        refine_with: str = "base",
        refine_size: int | None = None,
        refine_least_iou: float = 0.0,
        refine_least_agreement: float = 0.5,
    ) -> Teacher:
        """Builds a teacher from files.

        Args:
            base: name of the SAM (see ``build_sam``).
            checkpoint: its weights file; ``None`` looks into the weights folder.
            adapter: an adapter made by ``TeacherFit``; ``None`` is SAM as it comes.
            size, views, bf16: see the class.
            public_hash: the public set that the adapter must have been fitted on; ``None`` takes any.
            device: where it computes; no part of the identity.
            peak: see the class; part of the identity only where it is set.
            refine, refine_with, refine_size, refine_least_iou, refine_least_agreement: see ``Refinement``; part of the
                identity only where ``refine`` is on.

        Raises:
            Refused: weights missing, an adapter of another SAM, size or public set, a refinement that there is not.
        """
        refinement = Refinement(refine, refine_with, refine_size, refine_least_iou, refine_least_agreement)
        if checkpoint is None:
            from samfed_monai.networks import find_checkpoint

            checkpoint = find_checkpoint(base)
        base_sha256 = sha256_file(checkpoint)
        sam = build_sam(base, checkpoint, size).requires_grad_(False)
        if adapter is not None:
            load_adapter(adapter, sam, base=base, base_sha256=base_sha256, size=size, public_hash=public_hash)
            sam.requires_grad_(False)
        fold_batch_norms(sam.image_encoder)
        sha256 = identity(
            base_sha256=base_sha256,
            adapter_sha256="none" if adapter is None else sha256_file(adapter),
            size=size,
            views=views,
            peak=peak,
            refinement=refinement.content(),
        )
        refiner = make_refiner(refinement, sam, size, base=base, checkpoint=checkpoint, bf16=bf16)
        return cls(sam, sha256=sha256, size=size, views=views, bf16=bf16, refiner=refiner, peak=peak).to(device)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Mean probability over test-time views, relative to its peak and refined where that is set.

        Args:
            images: ``(B, 3, H, W)`` float in [0, 1], RGB, any H and W.

        Returns:
            ``(B, 1, h, w)`` float32 in [0, 1] that covers exactly the image: the padding is cut off, the longer side
            is ``size / 4`` and the aspect is the image's (square images: ``(B, 1, size / 4, size / 4)``). A bilinear
            resize to (H, W) puts it in register with the image. Of K classes ``(B, K + 1, h, w)``, the background's
            first, which sum to 1.
        """
        images = images.to(self.sam.pixel_mean.device)
        views = VIEWS[self.views]
        total = sum(view.undo(probabilities(self.logits(view.apply(images)))) for view in views)
        mean = torch.as_tensor(total) / len(views)
        if self.peak is not None:
            mean = relative_to_peak(mean, self.peak)
        return mean if self.refiner is None else self.refiner(images, mean)

    def logits(self, images: Tensor) -> Tensor:
        """One view of :meth:`probabilities`, before the sigmoid and any refinement."""
        height, width = images.shape[-2:]
        return crop(self.sam.decode(embed(self.sam, images, self.size, self.bf16)), height, width, self.size)

    def embed(self, images: Tensor) -> Tensor:
        """Scaled, normalised, padded and encoded: ``(B, 256, size / 16, size / 16)`` float32."""
        return embed(self.sam, images, self.size, self.bf16)

    def decode(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Embeddings of images of ``height`` x ``width`` pixels to logits that cover exactly those; in float32."""
        return crop(self.sam.decode(embeddings), height, width, self.size)

    def forward(self, images: Tensor) -> Tensor:
        """The same as :meth:`probabilities`."""
        return self.probabilities(images)


def identity(
    *,
    base_sha256: str,
    adapter_sha256: str,
    size: int,
    views: int,
    peak: float | None = None,
    refinement: dict[str, Any] | None = None,
) -> str:
    """SHA-256 of what decides a teacher's probabilities; the soft-mask store is keyed by it."""
    content: dict[str, Any] = {"base": base_sha256, "adapter": adapter_sha256, "size": size, "views": views}
    content |= {} if peak is None else {"peak": peak}
    return canonical_hash(content | ({"refinement": refinement} if refinement else {}))
