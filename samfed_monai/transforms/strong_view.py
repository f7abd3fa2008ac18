"""The strong view: photometric augmentation of the weak view that keeps its geometry; CutMix on a batch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import ensure_tuple
from torch import Tensor
from torch.nn import functional

from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.validators import in_range, require
from samfed_monai.transforms.loading import one_each, plain

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def colour_matrix(*, brightness: float = 1.0, saturation: float = 1.0, hue: float = 0.0) -> Tensor:
    """Returns brightness, saturation and hue as one linear map of RGB, which needs only one small matrix product.

    Args:
        brightness: factor of all channels.
        saturation: 0 is grey, 1 is no change.
        hue: turn of the colours about the grey axis, in fractions of a full turn.

    Returns:
        (3, 3) float32; grey pixels stay grey for any hue and saturation.
    """
    angle = 2 * math.pi * hue
    third, root = (1 - math.cos(angle)) / 3, math.sin(angle) / math.sqrt(3)
    main = math.cos(angle) + third
    turn = torch.tensor(
        [[main, third - root, third + root], [third + root, main, third - root], [third - root, third + root, main]]
    )
    return brightness * (saturation * torch.eye(3) + (1 - saturation) * torch.tensor(_LUMA).expand(3, 3)) @ turn


def recolour(image: Tensor, matrix: Tensor, contrast: float = 1.0) -> Tensor:
    """Applies a colour matrix, then contrast about the image's mean luminance; not clamped.

    Args:
        image: (3, H, W) float in [0, 1].
        matrix: (3, 3) from :func:`colour_matrix`.
        contrast: factor of each pixel's distance from the mean luminance.
    """
    mean = float((matrix @ image.mean(dim=(1, 2))) @ torch.tensor(_LUMA))
    flat = torch.addmm(torch.full((1, 1), (1 - contrast) * mean), contrast * matrix, image.reshape(3, -1))
    return flat.view_as(image)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blurs with a Gaussian, reflecting at the border.

    Args:
        image: (C, H, W) float.
        sigma: standard deviation in pixels; below 0.1 the image is returned unchanged. The kernel ends at 2.5 sigma.
    """
    if sigma < 0.1:
        return image
    radius = min(math.ceil(2.5 * sigma), min(image.shape[1:]) - 1)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float32) / sigma) ** 2)
    weights = weights / weights.sum()
    channels = image.shape[0]
    padded = functional.pad(image[None], (radius,) * 4, mode="reflect")
    across = functional.conv2d(padded, weights.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return functional.conv2d(across, weights.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)[0]


def box_fill(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Cutout: fills a box of a copy with the image's mean colour.

    Args:
        image: (C, H, W) float.
        top, left, height, width: the box in pixels; parts outside the image are ignored.
    """
    filled = image.clone()
    box = filled[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    box.copy_(image.mean(dim=(1, 2))[:, None, None].expand_as(box))
    return filled


def cutmix(
    images: Tensor,
    *others: Tensor,
    generator: torch.Generator | None = None,
    prob: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
) -> tuple[Tensor, ...]:
    """Pastes a random box of each image's neighbour in the batch (Yun et al. 2019; UniMatch, arXiv 2208.09910).

    All tensors that are compared pixel by pixel must be mixed together: pseudo-labels, weights, guides' probabilities.
    Values are copied, so binary masks stay binary. A batch of one has no neighbour and is returned unchanged.

    Args:
        images: (B, C, H, W) of any dtype.
        others: further (B, ..., H, W) tensors that get the same boxes.
        generator: random number generator on the CPU; ``None`` uses torch's global one.
        prob: probability of a box, independently for each image.
        area: minimum and maximum area of the box, as a fraction of the image.

    Returns:
        new tensors in the given order, always a tuple.

    Raises:
        ValueError: batch sizes or spatial sizes differ, or a range is out of order.
    """
    batch, (height, width) = images.shape[0], images.shape[-2:]
    for position, other in enumerate(others):
        if other.shape[0] != batch or other.shape[-2:] != (height, width):
            wanted = f"expected ({batch}, ..., {height}, {width}) like the images; resize it first"
            raise ValueError(f"cutmix: tensor {position + 2} has shape {tuple(other.shape)}, {wanted}")
    if not (0 <= prob <= 1 and 0 < area[0] <= area[1] <= 1):
        raise ValueError(f"cutmix: expected prob in [0, 1] and 0 < area[0] <= area[1] <= 1, found {prob} and {area}")
    # Five numbers per image, drawn even if unused, so that boxes do not depend on which images are mixed.
    draws = torch.rand(batch, 5, generator=generator).tolist()
    mixed = tuple(tensor.clone() for tensor in (images, *others))
    if batch < 2:
        return mixed
    for index, (chance, size, stretch, down, right) in enumerate(draws):
        if chance >= prob:
            continue
        side = ((area[0] + (area[1] - area[0]) * size) * height * width) ** 0.5
        ratio = 2.0 ** (stretch - 0.5)
        rows, columns = min(height, max(1, round(side * ratio))), min(width, max(1, round(side / ratio)))
        top, left = round(down * (height - rows)), round(right * (width - columns))
        box = (..., slice(top, top + rows), slice(left, left + columns))
        for target, source in zip(mixed, (images, *others), strict=True):
            target[index][box] = source[index - 1][box]
    return mixed


class RandomViewd(RandomizableTransform, MapTransform):
    """Base class that stores a view of each key, by :meth:`view`, under another name.

    Args:
        keys: images, (3, H, W) in [0, 1].
        output_key: names of the views, one for each key.
        problems: of further options, to be raised together.
        allow_missing_keys: whether an item may lack a key.
        prob: probability of any change.

    Raises:
        Refused: the numbers of names and keys differ, or there are ``problems``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_key: KeysCollection,
        *problems: Iterable[Problem],
        allow_missing_keys: bool = False,
        prob: float = 1.0,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.output_keys = ensure_tuple(output_key)
        require(*problems, one_each(self.output_keys, self.keys, f"{type(self).__name__} -> output_key"))

    @abstractmethod
    def view(self, image: Any) -> Tensor:
        """Returns a view of an image (3, H, W) in [0, 1], of the same shape and range, as a new tensor."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key, output_key in self.key_iterator(data, self.output_keys):
            result[output_key] = self.view(data[key])
        return result


_MAX = {"strength": 2.0, "hue": 0.25, "blur": 20.0, "cutout": 0.45}
_MAX |= dict.fromkeys(("brightness", "contrast", "saturation", "tint"), 0.5)


class StrongViewd(RandomViewd):
    """Colour jitter, grey, blur, noise and cutout: adds the strong view beside the weak one.

    Pixels are not moved, so labels and soft masks of the weak view are also valid for it (except inside the cutout box,
    which the student has to infer from its surroundings). Order and probabilities follow UniMatch (arXiv 2208.09910,
    its public recipe: jitter 0.8, grey 0.2, blur 0.5); hue is milder because colour is informative on skin and mucosa.

    Args:
        keys: the image, (3, H, W) in [0, 1].
        output_key: key of its strong view; ``"image"`` replaces the image (labelled images).
        allow_missing_keys: whether an item may lack a key.
        strength: multiplies all ranges, and all probabilities up to 1; 0 is no change, at most 2.
        brightness, contrast, saturation: maximum relative change to either side.
        hue: maximum turn to either side, in fractions of the colour circle.
        tint: maximum relative change of each channel on its own, to either side.
        gamma: maximum exponent of the intensities, and its inverse the minimum; drawn uniformly on a logarithmic scale.
            1 is off. Part of the jitter, like the five before it.
        blur: maximum standard deviation in pixels at 256 px; smaller images are blurred less.
        noise: maximum standard deviation of Gaussian noise, in [0, 1] intensities (HSSF: 0.1).
        cutout: maximum area of the box that is filled with the mean colour, as a fraction of the image.
        jitter_prob, grey_prob, blur_prob, noise_prob, cutout_prob: probability of each.
        prob: probability of any change.

    Raises:
        Refused: arguments out of range, all at once.

    Example::

        {"_target_": "samfed_monai.transforms.StrongViewd", "keys": "image", "strength": 1.0}
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        output_key: KeysCollection = "image_strong",
        *,
        allow_missing_keys: bool = False,
        strength: float = 1.0,
        brightness: float = 0.35,
        contrast: float = 0.35,
        saturation: float = 0.35,
        hue: float = 0.05,
        tint: float = 0.0,
        gamma: float = 1.0,
        blur: float = 2.0,
        noise: float = 0.06,
        cutout: float = 0.2,
        jitter_prob: float = 0.8,
        grey_prob: float = 0.2,
        blur_prob: float = 0.5,
        noise_prob: float = 0.5,
        cutout_prob: float = 0.5,
        prob: float = 1.0,
    ) -> None:
        self.ranges = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        self.ranges |= {"blur": blur, "noise": noise, "cutout": cutout}
        self.chances = {"jitter": jitter_prob, "grey": grey_prob, "blur": blur_prob, "noise": noise_prob}
        self.chances["cutout"] = cutout_prob
        self.strength, self.tint, self.gamma = strength, tint, gamma
        given = {"strength": strength, **self.ranges, "tint": tint, "prob": prob}
        given |= {f"{name}_prob": chance for name, chance in self.chances.items()}
        found = [in_range(f"StrongViewd -> {name}", given[name], least=0, most=_MAX.get(name, 1.0)) for name in given]
        found.append(in_range("StrongViewd -> gamma", gamma, least=1, most=4))
        super().__init__(keys, output_key, *found, allow_missing_keys=allow_missing_keys, prob=prob)
        self._used: dict[str, bool] = {}
        self._amounts: dict[str, float] = {}

    def randomize(self, data: Any = None) -> None:
        """Draws one view, with a fixed number of draws, so that an option does not change the others' values."""
        super().randomize(None)
        rolls = self.R.rand(len(self.chances)) < np.array(list(self.chances.values())) * self.strength
        self._used = {name: bool(roll) and self._do_transform for name, roll in zip(self.chances, rolls, strict=True)}
        self._amounts = {}
        for name, most in self.ranges.items():
            either_side = name in ("brightness", "contrast", "saturation", "hue")
            self._amounts[name] = float(self.R.uniform(-1 if either_side else 0, 1)) * most * self.strength
        stretch, down, right = self.R.rand(3).tolist()
        self._box = (float(np.exp(1.4 * stretch - 0.7)), down, right)  # ratio of the sides from 1:2 to 2:1
        self._noise_seed = int(self.R.randint(2**31 - 1))
        # a separate generator, so that draws of the next view do not depend on whether these two are on
        more = np.random.RandomState(self._noise_seed).uniform(-1, 1, 4) if self.tint or self.gamma > 1 else np.zeros(4)
        self._channels = torch.from_numpy(1 + self.tint * self.strength * more[:3]).float()
        self._exponent = float(self.gamma ** (self.strength * more[3]))

    def view(self, image: Any) -> Tensor:
        """Draws new values and augments an image, (3, H, W) in [0, 1]."""
        self.randomize()
        image = plain(image)
        if image.ndim != 3 or image.shape[0] != 3:
            raise refused("StrongViewd", found=f"shape {tuple(image.shape)}", expected="an RGB image (3, H, W)")
        if self._used["jitter"] or self._used["grey"]:
            image = self._recolour(image)
        if self._used["blur"]:
            image = gaussian_blur(image, self._amounts["blur"] * min(image.shape[1:]) / 256)
        if self._used["noise"]:
            generator = torch.Generator().manual_seed(self._noise_seed)
            image = torch.add(image, torch.randn(image.shape, generator=generator), alpha=self._amounts["noise"])
        if self._used["cutout"]:
            image = self._cutout(image)
        return image.clamp(0, 1)

    def _recolour(self, image: Tensor) -> Tensor:
        amounts = self._amounts if self._used["jitter"] else dict.fromkeys(self._amounts, 0.0)
        saturation = 0.0 if self._used["grey"] else 1 + amounts["saturation"]
        matrix = colour_matrix(brightness=1 + amounts["brightness"], saturation=saturation, hue=amounts["hue"])
        if not self._used["jitter"]:
            return recolour(image, matrix).clamp_(0, 1)
        if self.tint:
            matrix = matrix * self._channels
        image = recolour(image, matrix, 1 + amounts["contrast"]).clamp_(0, 1)
        return image if self._exponent == 1 else image.pow_(self._exponent)

    def _cutout(self, image: Tensor) -> Tensor:
        ratio, down, right = self._box
        rows, columns = image.shape[1:]
        height = min(rows, round((self._amounts["cutout"] * rows * columns * ratio) ** 0.5))
        width = min(columns, round((self._amounts["cutout"] * rows * columns / ratio) ** 0.5))
        return box_fill(image, round(down * (rows - height)), round(right * (columns - width)), height, width)
