"""FedGIN (arXiv 2508.05137): random non-linear intensities as a view, and plain federated averaging.

The authors' client sends its whole state, normalisation layers included, and the server is Flower's FedAvg
(github.com/sachugowda/FedGIN). Domain-specific normalisation is an alternative that GIN beats in arXiv 2602.20773; the
variant ``fedgin_own_norm`` combines both. Their code changes images of one channel and uses no other augmentation; ours
changes three channels, so that a grey image gets colours, after the bundle's own strong view.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from samfed_monai.core.errors import Problems
from samfed_monai.core.validators import COUNT, FRACTION
from samfed_monai.transforms import StrongViewd


def random_intensities(image: Tensor, *, generator: torch.Generator, layers: int = 4, width: int = 2) -> Tensor:
    """Passes an image through a small convolutional network of random weights, which blurs little and moves no pixel.

    Ouyang et al. (arXiv 2111.12525, section III-B, GIN): each layer has kernels of 1 or 3 pixels a side and weights and
    biases drawn from N(0, 1); all but the last are followed by a leaky ReLU.

    Args:
        image: (C, H, W) float.
        generator: source of all weights, on the CPU.
        layers: number of convolutions, >= 1.
        width: channels between them.

    Returns:
        ``g(x)``, (C, H, W) float, unbounded.
    """
    changed = image[None]
    for layer in range(layers):
        inputs, last = changed.shape[1], layer == layers - 1
        outputs = image.shape[0] if last else width
        side = 1 + 2 * int(torch.randint(2, (1,), generator=generator))
        weights = torch.randn(outputs, inputs, side, side, generator=generator).to(image)
        shifts = torch.randn(outputs, generator=generator).to(image)
        changed = functional.conv2d(changed, weights, shifts, padding=side // 2)
        if not last:
            changed = functional.leaky_relu(changed)
    return changed[0]


def mixed_intensities(image: Tensor, changed: Tensor, alpha: float) -> Tensor:
    """Returns ``y = alpha g(x) + (1 - alpha) x``, scaled so that ``|y| = |x|`` (Frobenius; GIN, equation 3).

    With ``alpha = 0``, or if the mixture has norm 0 or is not finite, ``image`` is returned.

    Args:
        image, changed: (C, H, W) float.
        alpha: in [0, 1].

    Returns:
        (C, H, W) float; values may leave [0, 1].
    """
    if alpha == 0:
        return image
    mixed = torch.lerp(image, changed, alpha)
    norm = torch.linalg.vector_norm(mixed)
    return mixed * (torch.linalg.vector_norm(image) / norm) if 0 < float(norm) < float("inf") else image


class IntensityViewd(StrongViewd):
    """The strong view with intensities changed by a random network: FedGIN's augmentation (Nagaraju et al.).

    alpha is drawn uniformly from ``[0, most]`` for each image. No pixel is moved, so labels and soft masks of the weak
    view remain valid. Values may leave [0, 1], since the norm is kept. Random numbers are the transform's own, so a
    round stays a function of (seed, site, round).

    Args:
        keys, output_key: see :class:`StrongViewd`.
        most: maximum alpha, in [0, 1]; 0 is :class:`StrongViewd` to the bit.
        layers, width: see :func:`random_intensities` (GIN: 4 and 2).
        strong: further arguments of :class:`StrongViewd`.

    Raises:
        Refused: an argument out of range.

    Example::

        "strong_view#_target_": "samfed_monai.methods.fedgin.IntensityViewd", "strong_view#most": 1.0
    """

    def __init__(
        self,
        keys: Any = "image",
        output_key: Any = "image_strong",
        *,
        most: float = 1.0,
        layers: int = 4,
        width: int = 2,
        **strong: Any,
    ) -> None:
        problems = Problems(FRACTION("IntensityViewd -> most", most))
        problems.extend([*COUNT("IntensityViewd -> layers", layers), *COUNT("IntensityViewd -> width", width)])
        with problems.collected():
            super().__init__(keys, output_key, **strong)
        problems.refuse_if_any()
        self.most, self.layers, self.width = float(most), layers, width

    def view(self, image: Any) -> Tensor:
        """Returns the strong view of an image, (3, H, W) in [0, 1], with other intensities."""
        strong = super().view(image)
        if self.most == 0:
            return strong
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31 - 1)))
        alpha = self.most * float(torch.rand(1, generator=generator))
        changed = random_intensities(strong, generator=generator, layers=self.layers, width=self.width)
        return mixed_intensities(strong, changed, alpha)
