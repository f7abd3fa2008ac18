"""SAM without prompts: an image in, one low-resolution mask out; and with boxes, where a mask is refined."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# SAM's own normalisation (segment_anything/build_sam.py), for intensities 0..255
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class PromptFreeSam(nn.Module):
    """SAM's three parts, decoded with the learned "no mask" embedding and no other prompt (docs/method.md).

    Args:
        image_encoder: ``(B, 3, size, size)`` to ``(B, 256, size / 16, size / 16)``.
        prompt_encoder: segment-anything's ``PromptEncoder`` built for that embedding size.
        mask_decoder: segment-anything's ``MaskDecoder``.

    Its parameters carry SAM's own names. It does not resize or pad: see :mod:`samfed_monai.networks.sam.geometry`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, image_encoder: nn.Module, prompt_encoder: nn.Module, mask_decoder: nn.Module) -> None:
        super().__init__()
        self.image_encoder, self.mask_decoder = image_encoder, mask_decoder
        self.prompt_encoder: Any = prompt_encoder
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1) / 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1) / 255, persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] to SAM's zero mean and unit variance; padding comes after, so that it is zero."""
        return (images - self.pixel_mean) / self.pixel_std

    def encode(self, normalised: Tensor) -> Tensor:
        """``(B, 3, size, size)`` normalised to embeddings ``(B, 256, size / 16, size / 16)``."""
        return self.image_encoder(normalised)

    def decode(self, embeddings: Tensor) -> Tensor:
        """Embeddings to logits ``(B, 1, size / 4, size / 4)`` of SAM's single-mask output.

        The decoder is written for many prompts on one image. Here every image shares the one empty prompt, which is
        passed once and broadcast over the batch.
        """
        return self._decode(embeddings)[0]

    def decode_boxes(self, embedding: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """SAM as it was meant: one image, a box for each thing in it.

        Args:
            embedding: ``(1, 256, size / 16, size / 16)``.
            boxes: ``(N, 4)`` left, top, right, bottom: pixel indices in the ``size`` x ``size`` input.

        Returns:
            Logits ``(N, 1, size / 4, size / 4)`` of the single-mask output, and ``(N,)`` the IoU that SAM predicts.
        """
        logits, predicted_iou = self._decode(embedding, boxes)
        return logits, predicted_iou[:, 0]

    def forward(self, normalised: Tensor) -> Tensor:
        """``(B, 3, size, size)`` normalised to logits ``(B, 1, size / 4, size / 4)``."""
        return self.decode(self.encode(normalised))

    def _decode(self, embeddings: Tensor, boxes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        sparse, dense = self.prompt_encoder(points=None, boxes=boxes, masks=None)
        return self.mask_decoder(
            image_embeddings=embeddings,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
