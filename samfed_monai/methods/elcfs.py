"""ELCFS / FedDG (arXiv 2103.06030): sites train on images in the styles of others, in episodes of two steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from samfed_monai.core.validators import FRACTION, NOT_NEGATIVE, POSITIVE, one_of, require, whole
from samfed_monai.handlers.guide import Guidance, register_reads
from samfed_monai.handlers.records import record
from samfed_monai.handlers.rounds import round_of
from samfed_monai.handlers.term import SCHEDULES, FeatureTerm
from samfed_monai.losses import sure_label, weighted_pseudo_label_loss
from samfed_monai.methods.fedavg import FedAvgWithStatistics
from samfed_monai.protocol.statistics import CollectedStatistics, MeansOfGroups, StatisticKind
from samfed_monai.protocol.strategy import require_least

WINDOWS = "windows"
COLOURS = 3


def _window(images: Tensor, half: int) -> tuple[slice, slice]:
    """Returns the rows and columns of the lowest frequencies in a shifted spectrum."""
    row, column = images.shape[-2] // 2, images.shape[-1] // 2
    return slice(row - half, row + half + 1), slice(column - half, column + half + 1)


def spectrum_windows(images: Tensor, half: int) -> Tensor:
    """Returns the amplitudes of the lowest frequencies, divided by the number of pixels to be independent of the size.

    Liu et al. (arXiv 2103.06030, section 3.2): the amplitude of the two-dimensional Fourier transform of each colour,
    at ``|u|, |v| <= half``. The authors' demonstration has ``half = floor(0.003 * 384) = 1``; their training code
    (``fundus_dataloader.py``) has 0, and replaces that amplitude instead of mixing it.

    Args:
        images: (B, C, H, W) float, H and W > 2 half.
        half: half of the window's side, >= 0; 0 is the mean colour alone.

    Returns:
        (B, C, 2 half + 1, 2 half + 1) float >= 0, the frequency 0 in the middle; in [0, 1] for images in [0, 1].
    """
    spectrum = torch.fft.fftshift(torch.fft.fft2(images.float(), norm="forward"), dim=(-2, -1))
    rows, columns = _window(images, half)
    return spectrum[..., rows, columns].abs()


def restyled(images: Tensor, windows: Tensor, keep: Tensor) -> Tensor:
    """Mixes the low amplitudes of images: ``keep`` times their own plus ``1 - keep`` times the given ones.

    Continuous frequency space interpolation (Liu et al., equations 1 and 2); ``keep`` is the authors' ``ratio``. Phases
    are unchanged. Where ``keep`` is 1, the image is returned unchanged to the bit.

    Args:
        images: (B, C, H, W) float.
        windows: (B, C, s, s) float, s odd, from :func:`spectrum_windows`. They are made symmetric and clamped at 0, so
            that the result is real; this only changes windows with noise.
        keep: (B,) float in [0, 1].

    Returns:
        (B, C, H, W) float in the images' dtype; values may leave their range.
    """
    half, own_share = windows.shape[-1] // 2, keep.to(images.device, torch.float32).view(-1, 1, 1, 1)
    target = ((windows + windows.flip(-2, -1)) / 2).clamp(min=0).to(images.device, torch.float32)
    spectrum = torch.fft.fftshift(torch.fft.fft2(images.float(), norm="forward"), dim=(-2, -1))
    rows, columns = _window(images, half)
    lowest = spectrum[..., rows, columns]
    spectrum[..., rows, columns] = torch.polar(own_share * lowest.abs() + (1 - own_share) * target, lowest.angle())
    changed = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1)), norm="forward").real
    return torch.where(own_share == 1, images, changed.to(images.dtype))


class StyleExchange(FedAvgWithStatistics):
    """FedAvg, whose server also keeps every site's amplitude windows and sends each site those of the others.

    Windows are requested from a site until it has sent them once (``privacy#statistics#spectrum``). A single site is
    refused, because without windows of another site no image would be restyled.

    Args:
        entries: number of windows per site, as in :class:`SpectrumWindows`.
        half: half of a window's side, as in :class:`SpectrumWindows`.

    Raises:
        Refused: an option out of its range.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.elcfs.StyleExchange", "entries": 4, "half": 1}
    """

    statistic = StatisticKind.SPECTRUM

    def __init__(self, *, entries: int = 4, half: int = 1) -> None:
        require(whole("strategy#entries", entries, least=1), whole("strategy#half", half, least=0))
        side = 2 * half + 1
        self.collected = CollectedStatistics(self.statistic, {WINDOWS: torch.zeros(entries, COLOURS, side, side)})

    def require_sites(self, sites: Sequence[str]) -> None:
        require_least(sites, 2, "other sites' styles", "choose the variant no_sam or, with labels, supervised")


@dataclass(kw_only=True, eq=False)
class SpectrumWindows(MeansOfGroups):
    """Sends the site's amplitude windows, each the mean over several images, and receives those of the others.

    The paper's bank holds the whole amplitude of every image; ours has ``entries`` windows per site.

    Args:
        term: the term that gets the others' windows before each local epoch.
        entries: number of windows that leave the site.
        half: half of a window's side, in frequencies.
        data, transform, seed, site: see :class:`MeansOfGroups`.

    Raises:
        Refused: a number out of its range.

    Example::

        "statistics": {
            "_target_": "samfed_monai.methods.elcfs.SpectrumWindows", "data": "@images",
            "transform": "@validate#preprocessing", "term": "@terms#episode", "seed": "@seed", "site": "@site"
        }
    """

    kind, name = StatisticKind.SPECTRUM, WINDOWS
    term: EpisodicTerm
    entries: int = 4
    half: int = 1

    def __post_init__(self) -> None:
        require(whole("statistics#entries", self.entries, least=1), whole("statistics#half", self.half, least=0))

    def like(self) -> Mapping[str, Tensor]:
        side = 2 * self.half + 1
        return {WINDOWS: torch.zeros(self.entries, COLOURS, side, side)}

    def entry(self, image: Tensor) -> Tensor:
        return spectrum_windows(image[None], self.half)[0]

    def receive(self, tensors: Mapping[str, Tensor]) -> None:
        self.term.windows = self.taken(tensors)


_OUTER_DILATIONS = 5
"""Number of dilations for the band outside a mask (the authors' code)."""


def boundary_bands(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the foreground next to the border of a mask, and the background next to it (Liu et al., section 3.3).

    The bands are the pixels that one erosion with a cross removes, and those that five dilations with a cross add. The
    image's edge is no border; the authors' code erodes a mask there, too.

    Args:
        masks: (B, 1, H, W) float in {0, 1}.

    Returns:
        two (B, 1, H, W) float in {0, 1}.
    """
    dilated = masks
    for _ in range(_OUTER_DILATIONS):
        dilated = _dilated(dilated)
    return masks - (1 - _dilated(1 - masks)), dilated - masks


def _dilated(masks: Tensor) -> Tensor:
    return torch.maximum(
        functional.max_pool2d(masks, (3, 1), stride=1, padding=(1, 0)),
        functional.max_pool2d(masks, (1, 3), stride=1, padding=(0, 1)),
    )


def band_features(features: Tensor, bands: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean features over each image's band, and whether the image has a band.

    Args:
        features: (B, D, h, w) float.
        bands: (B, 1, H, W) float in [0, 1]; resized to the features by area.

    Returns:
        (B, D) float and (B,) bool.
    """
    weights = functional.interpolate(bands.to(features.dtype), features.shape[-2:], mode="area")
    size = weights.sum(dim=(2, 3))
    return (weights * features).sum(dim=(2, 3)) / size.clamp(min=1e-6), size[:, 0] > 0


def boundary_contrast(vectors: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """NT-Xent over all pairs of one class: ``-log(e^(s_ap / t) / (e^(s_ap / t) + sum_n e^(s_an / t)))``, their mean.

    Cosine similarities; ``n`` are the vectors of the other class (Liu et al., equation 6; the positive pair in the
    denominator is the authors' code).

    Args:
        vectors: (N, D) float.
        labels: (N,) bool, ``True`` for foreground.
        temperature: t > 0.

    Returns:
        a scalar >= 0; 0 if no class has a pair.
    """
    unit = functional.normalize(vectors.float(), dim=1)
    similarity = unit @ unit.T / temperature
    same = labels[:, None] == labels[None, :]
    pairs = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if not bool(pairs.any()):
        return vectors.sum() * 0.0
    negatives = similarity.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
    return (torch.logaddexp(similarity, negatives) - similarity)[pairs].mean()


@dataclass(kw_only=True, eq=False)
class EpisodicTerm(FeatureTerm):
    """The loss after a look-ahead step, on the labelled batch in the styles of other sites, and the boundary contrast.

    Boundary-oriented episodic learning (Liu et al., section 3.3; their public code): the batch's own loss gives
    ``theta' = theta - inner * clamp(gradient)``, a first-order step as in the code. The restyled batch is segmented
    with theta', and ``gamma`` times the contrast of boundary features, before and after the step, is added (summed over
    several classes). The loss of the batch itself is the trainer's. Each image gets one random window of another site
    and keeps a share of its own amplitude that is drawn uniformly from [0, 1].

    In the paper sites have labels (variant ``elcfs_labelled``). Ours, at sites without labels (``elcfs``): the labelled
    images are the public ones; strong views of the site's own images are restyled as well, with the student's confident
    labels; the contrast uses true labels only. In a round without windows, such as the first, the term computes nothing
    and draws no random number. A step costs one more forward pass and two more backward passes.

    Args:
        network: the site's network.
        name: name under which the value is logged.
        inner: size of the look-ahead step, >= 0.
        clip: limit of the gradient's entries in that step, > 0.
        gamma: factor of the contrast, >= 0.
        temperature: temperature of the contrast, > 0.
        tau: minimum confidence of a label of the site's own images, in [0, 1].
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.
        label_schedule: schedule of the factor of the loss of the site's own images, whose labels the student makes.

    Raises:
        Refused: an argument out of range; a network with an unknown head.

    Example::

        {"_target_": "samfed_monai.methods.elcfs.EpisodicTerm", "network": "@network", "inner": 0.001, "gamma": 0.1}
    """

    unlabelled = False
    checks: ClassVar = {
        "inner": NOT_NEGATIVE,
        "gamma": NOT_NEGATIVE,
        "clip": POSITIVE,
        "temperature": POSITIVE,
        "tau": FRACTION,
    }
    checks |= {"label_schedule": partial(one_of, known=SCHEDULES)}

    name: str = "episode"
    inner: float = 1e-3
    clip: float = 100.0
    gamma: float = 0.1
    temperature: float = 0.05
    tau: float = 0.9
    label_schedule: str = "gaussian_ramp"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.windows: Tensor | None = None

    def attach(self, engine: Any) -> None:
        super().attach(engine)
        register_reads(engine, ("weak",))

    def __call__(self, engine: Any) -> None:
        """Adds the term if there are windows."""
        if self.windows is not None and len(self.windows):
            super().__call__(engine)

    def value(self, guidance: Guidance | None, engine: Any) -> Tensor:
        """Returns the outer loss; also records ``<name>_contrast``."""
        network, output = engine.network, engine.state.output
        truth, features_before = output["label"], self._features.inputs[0]
        images, count = [output["image"]], len(truth)
        if guidance is not None:
            images.append(guidance.view("image_strong", where=self.where).to(truth.device))
        changed = self._restyled(torch.cat(images))
        logits = engine.inferer(changed, lambda batch: functional_call(network, self._parameters_ahead(engine), batch))
        loss = engine.loss_function(logits[:count], truth)
        if guidance is not None:
            label, sure = sure_label(guidance.weak, self.tau)
            factor = SCHEDULES[self.label_schedule](*round_of(engine), self.fraction)
            loss = (loss + factor * weighted_pseudo_label_loss(logits[count:], label, sure)) / 2
        features = [features_before, self._features.inputs[-1][:count]]
        planes = truth if truth.shape[1] == 1 else truth[:, 1:]  # each of several classes has its own border
        contrast = torch.stack([self._contrast(features, plane) for plane in planes.split(1, dim=1)]).sum()
        record(engine, f"{self.name}_contrast", contrast)
        return loss + self.gamma * contrast

    def _restyled(self, images: Tensor) -> Tensor:
        windows = self.windows if self.windows is not None else torch.empty(0)
        styles = windows[torch.randint(len(windows), (len(images),))].to(images.device)
        return restyled(images, styles, torch.rand(len(images)).to(images.device)).clamp(0, 1)

    def _parameters_ahead(self, engine: Any) -> dict[str, Tensor]:
        """Returns the network's parameters after a gradient step of the labelled batch's loss."""
        output = engine.state.output
        loss = engine.loss_function(output["pred"], output["label"])
        parameters = {name: weight for name, weight in engine.network.named_parameters() if weight.requires_grad}
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        return {
            name: weight if gradient is None else weight - self.inner * gradient.clamp(-self.clip, self.clip)
            for (name, weight), gradient in zip(parameters.items(), gradients, strict=True)
        }

    def _contrast(self, features: Sequence[Tensor], plane: Tensor) -> Tensor:
        vectors, labels = [], []
        for foreground, bands in zip((True, False), boundary_bands((plane > 0).float()), strict=True):
            for maps in features:
                means, has_band = band_features(maps.float(), bands)
                vectors.append(means[has_band])
                labels.append(torch.full((int(has_band.sum()),), foreground, device=means.device))
        return boundary_contrast(torch.cat(vectors), torch.cat(labels), self.temperature)
