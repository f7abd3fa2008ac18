"""The frozen teacher, which maps images to probabilities."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from samfed_monai.core.io import canonical_hash, sha256_file
from samfed_monai.core.validators import require
from samfed_monai.losses.pixelwise import probabilities
from samfed_monai.networks.inferer import VIEWS, Switch, views_problems
from samfed_monai.networks.sam.adapter import load_adapter
from samfed_monai.networks.sam.build import PromptFreeSam, build_sam, crop, embed, encode, fold_batch_norms, pad, place

PIXELS_PER_BATCH = 448**2
"""Pixels of SAM's input per batch: four views of 224 px, in less than three times the time of one
(``benchmarks/light.py``); larger inputs run one by one."""


class Teacher(nn.Module):
    """SAM, adapted or not, with test-time augmentation (``M_T`` of docs/method.md); always in eval mode.

    Args:
        sam: the network, including its adapter.
        sha256: identity of everything that determines the probabilities.
        size: side of the square input in pixels.
        views: number of test-time views whose probabilities are averaged: 1, 2, 4 or 8 (flip x quarter turns).
        bf16: bfloat16 for the encoder; ``"auto"`` enables it where the processor supports it. It changes probabilities
            by about 1 % and is no part of the identity.
    """

    def __init__(self, sam: PromptFreeSam, *, sha256: str, size: int, views: int = 1, bf16: Switch = "auto") -> None:
        super().__init__()
        require(views_problems("teacher -> views", views))
        self.sam, self.sha256, self.size, self.views, self.bf16 = sam, sha256, size, views, bf16
        self.eval()

    @classmethod
    def load(
        cls,
        base: str,
        checkpoint: str | Path,
        adapter: str | Path | None = None,
        size: int = 512,
        views: int = 1,
        *,
        bf16: Switch = "auto",
        device: torch.device | str = "cpu",
    ) -> Teacher:
        """Builds a teacher from files.

        Args:
            base: name of the SAM (see ``build_sam``).
            checkpoint: its weights file.
            adapter: an adapter of ``TeacherFit``; ``None`` is unadapted SAM.
            size, views, bf16: see the class.
            device: device to compute on; no part of the identity.

        Raises:
            Refused: an adapter of another SAM or size.
        """
        base_sha256 = sha256_file(checkpoint)
        sam = build_sam(base, checkpoint, size).requires_grad_(False)
        if adapter is not None:
            load_adapter(adapter, sam, base=base, base_sha256=base_sha256, size=size)
            sam.requires_grad_(False)
        fold_batch_norms(sam.image_encoder)
        sha256 = identity(
            base_sha256=base_sha256,
            adapter_sha256="none" if adapter is None else sha256_file(adapter),
            size=size,
            views=views,
        )
        return cls(sam, sha256=sha256, size=size, views=views, bf16=bf16).to(device)

    @torch.no_grad()
    def probabilities(self, images: Tensor, views: int | None = None) -> Tensor:
        """Returns the mean probability over test-time views.

        Args:
            images: ``(B, 3, H, W)`` float in [0, 1], RGB, any H and W.
            views: number of views, instead of the teacher's own.

        Returns:
            ``(B, 1, h, w)`` float32 in [0, 1] that covers exactly the image: the padding is removed, the longer side
            is ``size / 4`` and the aspect is the image's (square images: ``(B, 1, size / 4, size / 4)``). A bilinear
            resize to (H, W) aligns it with the image. For K classes ``(B, K + 1, h, w)``, the background first, with
            the sum 1.
        """
        images, symmetries = images.to(self.sam.pixel_mean.device).float(), VIEWS[views or self.views]
        normalised = self.sam.normalise(place(images, self.size))
        view_images = [view.apply(normalised) for view in symmetries]
        inputs = torch.cat([pad(each, self.size) for each in view_images])
        batch_size = max(1, PIXELS_PER_BATCH // self.size**2)
        logits = torch.cat([self.sam.decode(encode(self.sam, each, self.bf16)) for each in inputs.split(batch_size)])
        logits_of_views = zip(symmetries, view_images, logits.chunk(len(symmetries)), strict=True)
        masks = [(view, crop(part, each.shape[-2], each.shape[-1], self.size)) for view, each, part in logits_of_views]
        return torch.stack([view.undo(probabilities(mask)) for view, mask in masks]).mean(0)

    def embed(self, images: Tensor) -> Tensor:
        """Scales, normalises, pads and encodes images to ``(B, 256, size / 16, size / 16)`` float32."""
        return embed(self.sam, images, self.size, self.bf16)

    def decode(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Decodes embeddings of images of ``height`` x ``width`` pixels to float32 logits that cover exactly those."""
        return crop(self.sam.decode(embeddings), height, width, self.size)


def identity(*, base_sha256: str, adapter_sha256: str, size: int, views: int) -> str:
    """Returns the SHA-256 of everything that determines a teacher's probabilities; the key of the soft-mask store."""
    return canonical_hash({"base": base_sha256, "adapter": adapter_sha256, "size": size, "views": views})
