"""The structure loss: cross entropy and IoU, weighted higher at borders (docs/method.md, step 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfed_monai.losses.pixelwise import channels


def border_weight(target: Tensor, kernel_size: int = 31, gain: float = 5.0) -> Tensor:
    """``w = 1 + gain |avgpool(y) - y|``: 1 far from all borders, up to ``1 + gain`` at a border.

    The average is computed in one horizontal and one vertical pass, which gives the same numbers as a square window
    and costs ``2 k`` instead of ``k^2``; pixels outside the image count as 0.

    Args:
        target: (B, K, H, W) float in [0, 1].
        kernel_size: width of the window in pixels, odd.
        gain: additional weight of a border pixel.

    Returns:
        (B, K, H, W) float.
    """
    half = kernel_size // 2
    mean = F.avg_pool2d(target, (kernel_size, 1), stride=1, padding=(half, 0))
    mean = F.avg_pool2d(mean, (1, kernel_size), stride=1, padding=(0, half))
    return 1.0 + gain * (mean - target).abs()


class StructureLoss(nn.Module):
    """``CE_w + IoU_w`` with border weights, mean over the batch.

    This is PraNet's structure loss (Fan et al., arXiv 2006.11392). HSSF (Ma et al., TMI 2024) trains with it and does
    not weight the cross entropy; PraNet and we weight both.

    With C = 1 the prediction is a sigmoid; with C > 1 it is a softmax, the target contains class indices, class 0 is
    the background and the IoU is the mean over the other classes (so two classes with logits ``(0, z)`` equal one class
    with logit ``z``). Nothing is resized: logits and target must have the same size.

    Args:
        kernel_size: window of the border weight in pixels, odd (31: PraNet's code; docs/method.md, step 1).
        gain: additional weight of a border pixel (5, ibid.).
        smoothing: added to numerator and denominator of the IoU, in pixels (1, ibid.).
        weighted_entropy: whether border weights also apply to the cross entropy; false is HSSF's code.

    Raises:
        ValueError: an even or non-positive ``kernel_size``; shapes that do not match.

    Example::

        {"_target_": "samfed_monai.losses.StructureLoss", "kernel_size": 31}
    """

    def __init__(
        self, *, kernel_size: int = 31, gain: float = 5.0, smoothing: float = 1.0, weighted_entropy: bool = True
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"StructureLoss -> kernel_size: expected an odd number of pixels, found {kernel_size}")
        self.kernel_size, self.gain, self.smoothing = kernel_size, gain, smoothing
        self.weighted_entropy = weighted_entropy

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns the loss as a scalar.

        Args:
            logits: (B, C, H, W) float.
            target: (B, 1, H, W), in [0, 1] for C = 1 and class indices for C > 1; or (B, C, H, W), a soft label.
            weight: (B, 1, H, W) float >= 0, a further factor of each pixel; images are then averaged with the sums of
                their weights, and the loss of all-zero weights is exactly 0. ``None`` weights all pixels equally.
        """
        if target.shape not in ((logits.shape[0], 1, *logits.shape[2:]), logits.shape):
            expected = (logits.shape[0], 1, *logits.shape[2:])
            raise ValueError(f"StructureLoss: expected a target of shape {expected}, found {tuple(target.shape)}")
        truth, entropy, prediction = channels(logits, target)
        border = border_weight(truth, self.kernel_size, self.gain).amax(dim=1, keepdim=True)
        pixels = (1, 2, 3)
        entropy_weight = border if self.weighted_entropy else torch.ones_like(border)
        if weight is not None:
            weight = weight.detach().to(border.dtype)
            border, entropy_weight = border * weight, entropy_weight * weight
        total = entropy_weight.sum(pixels)
        mean_entropy = (entropy_weight * entropy).sum(pixels) / torch.where(total > 0, total, 1.0)
        overlap = (border * prediction * truth).sum((2, 3))
        union = (border * (prediction + truth)).sum((2, 3)) - overlap
        iou = (overlap + self.smoothing) / (union + self.smoothing)
        per_image = mean_entropy + 1.0 - iou.mean(dim=1)
        if weight is None:
            return torch.mean(per_image)
        image_weight = weight.sum(pixels)
        return (image_weight * per_image).sum() / torch.where(image_weight.sum() > 0, image_weight.sum(), 1.0)
