"""The finding of an attack (table, sentences, pictures), and scores of reconstructed pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

#: An image counts as reconstructed if it is closer to the truth than the blank image by this much in dB (half the
#: error) or in SSIM: a picture with wrong colours may be clearly recognisable.
GAIN_DB, GAIN_SSIM = 3.0, 0.1


@dataclass(frozen=True)
class Shown:
    """A strip of pictures.

    Args:
        name: of its file, without suffix.
        caption: caption of the pictures.
        rows: pictures by label of the row, (N, 3, H, W) float in [0, 1], the same N in each.
    """

    name: str
    caption: str
    rows: Mapping[str, Tensor]

    def png(self) -> bytes:
        """Returns the rows below each other as a PNG; small pictures are enlarged to at least 96 pixels wide."""
        from samfed_monai.data.reading import png_of

        framed = functional.pad(torch.stack(list(self.rows.values())).detach().cpu(), (1, 1, 1, 1), value=1.0)
        rows, count, _, height, width = framed.shape
        pixels = (framed.clamp(0, 1) * 255).round().byte().permute(0, 3, 1, 4, 2)
        factor, picture = math.ceil(96 / width), pixels.reshape(rows * height, count * width, 3)
        return png_of(picture.repeat_interleave(factor, 0).repeat_interleave(factor, 1).numpy())


@dataclass(frozen=True)
class Finding:
    """The result of one attack.

    Args:
        attack: its name on the command line.
        title: heading.
        asks: its method in a sentence, with its source.
        gets: the attacker's knowledge.
        rows: cells by column, in order; JSON content.
        verdict: sentences on what a determined attacker gets, and which defence helps.
        shown: pictures.
    """

    attack: str
    title: str
    asks: str
    gets: str
    rows: Sequence[Mapping[str, Any]]
    verdict: Sequence[str]
    shown: Sequence[Shown] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Returns the finding as JSON content, with file names instead of pictures."""
        pictures = [{"file": f"{one.name}.png", "caption": one.caption, "rows": list(one.rows)} for one in self.shown]
        content = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "shown"}
        return {**content, "columns": list(self.rows[0]) if self.rows else [], "pictures": pictures}


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio of each image in dB, at most 100.

    Args:
        images, truth: (N, C, H, W) float in [0, 1].

    Returns:
        (N,) float.
    """
    return -10 * torch.log10((images.clamp(0, 1) - truth).pow(2).flatten(1).mean(dim=1).clamp(min=1e-10))


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """Returns the structural similarity of each image (Wang et al. 2004), by MONAI; (N,) float."""
    from monai.metrics.regression import SSIMMetric

    size = min(11, images.shape[-1] - (1 - images.shape[-1] % 2))
    measure = SSIMMetric(spatial_dims=2, data_range=1.0, win_size=size)
    return torch.as_tensor(measure(images.clamp(0, 1), truth)).flatten()


def in_order_of_truth(reconstructions: Tensor, truth: Tensor) -> Tensor:
    """Orders the reconstructions of a batch by their best matching images, as a batch has no order."""
    from scipy.optimize import linear_sum_assignment

    score = torch.stack([psnr(each[None].expand_as(truth), truth) for each in reconstructions])
    _, columns = linear_sum_assignment(score.numpy(), maximize=True)
    return reconstructions[columns.argsort()]


def against_blank(found: Tensor, truth: Tensor, blank: Tensor) -> dict[str, Any]:
    """Compares the best reconstruction with the blank image, the guess of an attacker without the update.

    Args:
        found: (N, 3, H, W) float, in the order of ``truth``.
        truth: (N, 3, H, W) float in [0, 1].
        blank: (3, H, W), see :attr:`~samfed_monai.attacks.target.Target.blank`.

    Returns:
        ``psnr`` and ``ssim`` of the image that gained most in PSNR, with the blank image's (``blank_psnr``,
        ``blank_ssim``); number of images (``of``), and of those ``reconstructed``: closer to the truth than the blank
        image by :data:`GAIN_DB` or :data:`GAIN_SSIM`.
    """
    blanks = blank[None].expand_as(truth)
    psnr_found, psnr_blank = psnr(found, truth), psnr(blanks, truth)
    best = int((psnr_found - psnr_blank).argmax())
    ssim_found, ssim_blank = ssim(found, truth), ssim(blanks, truth)
    return {
        "psnr": round(float(psnr_found[best]), 2),
        "blank_psnr": round(float(psnr_blank[best]), 2),
        "ssim": round(float(ssim_found[best]), 3),
        "blank_ssim": round(float(ssim_blank[best]), 3),
        "reconstructed": int(((psnr_found - psnr_blank >= GAIN_DB) | (ssim_found - ssim_blank >= GAIN_SSIM)).sum()),
        "of": len(truth),
    }
