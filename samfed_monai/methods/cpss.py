"""CPSS (arXiv 2106.03422): patches of feature maps swap their styles; adaptation at a new site without source data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from ignite.engine import Events
from torch import Tensor, nn

from samfed_monai.core.errors import refused
from samfed_monai.core.validators import COUNT, FRACTION, one_of
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.model_loader import trained_weights
from samfed_monai.handlers.rounds import in_federation, round_of
from samfed_monai.handlers.term import SCHEDULES, GuidedTerm
from samfed_monai.losses import sure_label, weighted_pseudo_label_loss
from samfed_monai.networks.features import changed_features, require_encoder

# relative to 1 and the mean; smaller deviations are rounding errors of a constant patch and become 0
_MIN_DEVIATION = 1e-6


def patches_of(features: Tensor, side: int) -> list[Tensor]:
    """Returns views of the patches of a batch, ``side * side`` per image, image by image and row by row.

    Args:
        features: (B, C, h, w) float.
        side: patches along each side; their sizes differ by one pixel if it does not divide the map's.

    Returns:
        ``B side^2`` views (C, h', w') of ``features``.
    """
    return [
        patch
        for image in features
        for row in image.tensor_split(side, dim=1)
        for patch in row.tensor_split(side, dim=2)
    ]


def swap_styles(features: Tensor, order: Tensor, side: int) -> Tensor:
    """Gives patch ``i`` the channels' means and deviations of patch ``order[i]``: ``s_j (x - m_i) / s_i + m_j``.

    Zhao et al. (arXiv 2106.03422, Cross-Patch Style Swap); a style is AdaIN's (Huang and Belongie, arXiv 1703.06868,
    equation 8), over the patch instead of the image. A patch with ``order[i] = i`` is unchanged to the bit; a constant
    patch becomes the other's mean. Styles carry no gradient, as in the public code; contents do.

    Args:
        features: (B, C, h, w) float.
        order: (B side^2,) int, a permutation of the patches of :func:`patches_of`.
        side: patches along each side.

    Returns:
        (B, C, h, w) of the type of ``features``, new; half precision is computed in float32.
    """
    whole = features.to(torch.promote_types(features.dtype, torch.float32))
    with torch.no_grad():
        centre, scale, shift = (torch.full_like(whole, value) for value in (0.0, 1.0, 0.0))
        patches, *changes = (patches_of(each, side) for each in (whole, centre, scale, shift))
        means = [patch.mean(dim=(1, 2), keepdim=True) for patch in patches]
        deviations = [patch.std(dim=(1, 2), keepdim=True, correction=0) for patch in patches]
        for index, source in enumerate(order.tolist()):
            if source != index:
                varies = deviations[index] > _MIN_DEVIATION * (1 + means[index].abs())
                ratio = torch.where(varies, deviations[source] / deviations[index], 0.0)
                for change, value in zip(changes, (means[index], ratio, means[source]), strict=True):
                    change[index].copy_(value.expand_as(change[index]))
    return ((whole - centre) * scale + shift).to(features.dtype)


@dataclass(kw_only=True, eq=False)
class StyleSwapTerm(GuidedTerm):
    """The loss of public and own images after a random swap of styles among the patches of their features.

    Both batches run through the network together once more; the styles of the patches of their fine feature maps are
    permuted at random, so that public images also get the site's styles. Public images are compared with their labels,
    the site's strong views with the guide's label where its confidence exceeds ``tau``. The paper swaps within its
    labelled source images, which our sites do not have; sites as domains, and both batches in one, are our reading. The
    decoder gets swapped maps; the encoder's deeper layers get their input unswapped, unlike in the public code.

    Args:
        name: name under which the value is logged.
        guide: the guide that gives the site's labels; ``weak`` is the student itself.
        tau: minimum confidence of such a label.
        side: patches along each side of a map, >= 1; 1 swaps the styles of whole images.
        stride: feature maps of at most this stride are swapped; the deeper ones are content.
        labelled: whether public images are used.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.
        label_schedule: schedule of the factor of the loss of the site's own images, whose labels the student makes.

    Raises:
        Refused: an argument out of range; at ``STARTED``, a network whose encoder cannot be reached.

    Example::

        {"_target_": "samfed_monai.methods.cpss.StyleSwapTerm", "side": 2, "stride": 4, "weight": 1.0}
    """

    of_network = (require_encoder,)
    checks: ClassVar = {
        "tau": FRACTION,
        "side": COUNT,
        "stride": COUNT,
        "label_schedule": partial(one_of, known=SCHEDULES),
    }

    name: str = "style_swap"
    guide: str = "weak"
    tau: float = 0.9
    side: int = 2
    stride: int = 4
    labelled: bool = True
    label_schedule: str = "gaussian_ramp"

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """Returns the mean of both batches' losses, that of the site's own images times its factor."""
        private = guidance.view("image_strong", where=self.where)
        label, sure = sure_label(guidance.probabilities(self.guide, where=self.where), self.tau)
        images, count = private, 0
        if self.labelled:
            public = torch.as_tensor(engine.state.batch["image"]).to(private)
            images, count = torch.cat([public, private]), len(public)
        with changed_features(engine.network, lambda features: self._swapped(features, images)):
            logits = engine.inferer(images, engine.network)
        factor = SCHEDULES[self.label_schedule](*round_of(engine), self.fraction)
        value = factor * weighted_pseudo_label_loss(logits[count:], label, sure)
        if not self.labelled:
            return value
        truth = torch.as_tensor(engine.state.batch["label"]).to(private.device)
        return (engine.loss_function(logits[:count], truth) + value) / 2

    def _swapped(self, features: Tensor, images: Tensor) -> Tensor:
        if features.shape[-1] * self.stride < images.shape[-1] or min(features.shape[-2:]) < 2 * self.side:
            return features
        return swap_styles(features, torch.randperm(len(features) * self.side**2), self.side)


class NoLabels(nn.Module):
    """The trainer's loss at a site without any labelled image: 0, with a gradient of 0.

    MONAI's ``SupervisedTrainer`` calls its loss for every batch; the site's own images have no label to compare with,
    so only the terms train the network.

    Example::

        "loss": {"_target_": "samfed_monai.methods.cpss.NoLabels"}
    """

    def forward(self, logits: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns a scalar 0 on the graph of ``logits``, of any shape; ``label`` is ignored."""
        return 0.0 * logits.sum()


class AdaptFrom:
    """Starts a site's own run from the model of a federation that it took no part in (Zhao et al., stage 2).

    Args:
        path: a model file; ``None`` starts from the bundle's own network.

    Raises:
        Refused: at ``STARTED``, in a federation, whose rounds start from the server's model; weights of another
            network.

    Example::

        "before#adapt": {"_target_": "samfed_monai.methods.cpss.AdaptFrom", "path": "@model"}
    """

    def __init__(self, *, path: str | Path | None = None) -> None:
        self.path = path

    def attach(self, engine: Any) -> None:
        """Binds to a trainer, before everything that copies its network."""
        if self.path is not None:
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Loads the model."""
        if in_federation(engine):
            expected, hint = "the run of a single site", "remove `model` for samfed federate, or run train.json alone"
            raise refused("before#adapt (AdaptFrom)", found="a federation", expected=expected, hint=hint)
        engine.network.load_state_dict(trained_weights(engine.network, str(self.path)), strict=False)
