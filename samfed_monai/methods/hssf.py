"""HSSF's local step where its code differs from ours (Ma et al., IEEE TMI 2024): network, losses, terms, view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from torch import Tensor, nn

from samfed_monai.core.errors import refused
from samfed_monai.core.validators import FRACTION, NOT_NEGATIVE, require, whole
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.records import record
from samfed_monai.handlers.term import Term
from samfed_monai.losses import StructureLoss
from samfed_monai.losses.pixelwise import hard_label, probabilities
from samfed_monai.networks.input_size import require_intake
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators
from samfed_monai.transforms.loading import plain
from samfed_monai.transforms.strong_view import RandomViewd

WIDTH = 256
LOW_WIDTH = 48
DILATIONS = (12, 24, 36)

Part = TypeVar("Part", bound=nn.Module)


class Aspp(nn.Module):
    """Five views of (B, in_channels, h, w), joined to (B, 256, h, w) by a 1x1 convolution with dropout 0.1."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.point = block(in_channels, WIDTH, 1)
        self.dilated = nn.ModuleList(block(in_channels, WIDTH, 3, dilation) for dilation in DILATIONS)
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), block(in_channels, WIDTH, 1))
        self.project = nn.Sequential(block((2 + len(DILATIONS)) * WIDTH, WIDTH, 1), nn.Dropout(0.1))

    def forward(self, features: Tensor) -> Tensor:
        views = [self.point(features), *(branch(features) for branch in self.dilated)]
        return self.project(torch.cat([*views, self.pooled(features).expand_as(views[0])], dim=1))


class ConfidenceBranch(nn.Module):
    """From features and logits, one logit a pixel: is the prediction right there.

    Four 3x3 convolutions of 256, each of which sees two maps side by side: features and logits; the first map and the
    features; the first and the second; the second and the third. The second and third are added to the map before
    them, and the channels of the first two are multiplied by one plus their mean over the image.

    Args:
        classes: channels of the logits.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = block(WIDTH + classes, WIDTH, 3)
        self.second = block(2 * WIDTH, WIDTH, 3)
        self.third = block(2 * WIDTH, WIDTH, 3)
        self.last = nn.Sequential(block(2 * WIDTH, WIDTH, 3), nn.Conv2d(WIDTH, 1, 1))

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Confidence of a prediction.

        Args:
            features: (B, 256, h, w), what the classifier sees.
            logits: (B, classes, h, w), what it says.

        Returns:
            (B, 1, h, w).
        """
        first = stressed(self.first(torch.cat([features, logits], dim=1)))
        second = stressed(first + self.second(torch.cat([first, features], dim=1)))
        third = second + self.third(torch.cat([first, second], dim=1))
        return self.last(torch.cat([third, second], dim=1))


def stressed(features: Tensor) -> Tensor:
    """``x (1 + mean(x))``, the mean of (B, C, h, w) over the pixels of each channel."""
    return features * (1 + features.mean(dim=(2, 3), keepdim=True))


def block(inputs: int, outputs: int, kernel: int, dilation: int = 1, *, bias: bool = False) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def drawn_anew(part: Part) -> Part:
    """A part whose convolutions begin with He's normal numbers (arXiv 1502.01852), scaled by what comes in."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return part


@dataclass(frozen=True)
class HssfOutputs:
    """Everything that one forward pass of :class:`HssfNetwork` gives, at the size of the image.

    Args:
        logits: (B, K, H, W) float, as the head gives them: two channels, also where the network returns their
            difference.
        confidence: (B, 1, H, W) float, logit of "the prediction is right at this pixel".
        dropped: logits of the same image with half of its features left out; ``None`` unless asked for.
    """

    logits: Tensor
    confidence: Tensor
    dropped: Tensor | None = None


class HssfNetwork(nn.Module):
    """The DeepLabV3+ of HSSF's code (Ma et al., IEEE TMI 2024), from its description; written anew.

    Encoder without ImageNet weights, output stride 32; its features of stride 4 are brought to 48 channels, those of
    stride 32 pass an ASPP of five branches of 256 (1x1, 3x3 dilated by 12, 24 and 36, global pooling). The decoder
    takes the 304 channels of both through two 3x3 convolutions and a linear 1x1 one, 256 each, with dropout 0.5 and 0.1
    after the first two; a hidden 1x1 layer and a last one make two logits of that; :class:`ConfidenceBranch` sees the
    decoder's channels and the logits. All is upsampled bilinearly. It has the parameters that are published (21.4, 31.5
    and 65.7 million) but for those of the encoder's ImageNet classifier, which is counted there and used by nothing.

    ``network(image)`` returns (B, 1, H, W), the difference ``z1 - z0`` of the two logits: its sigmoid is their softmax,
    its sign their argmax. In train mode the returned tensor carries the rest of the pass, see :func:`hssf_outputs`; in
    eval mode it carries nothing and the confidence branch is not run.

    Args:
        encoder: a ResNet of segmentation_models_pytorch.
        in_channels: of the images.
        out_channels: 1, or the number of classes, whose logits are then returned as they are.

    Raises:
        Refused: fewer than one channel of output.
    """

    def __init__(self, encoder: str, *, in_channels: int = 3, out_channels: int = 1) -> None:
        super().__init__()
        require(whole("network_def#out_channels", out_channels, least=1))
        declare_torchvision_operators()
        from segmentation_models_pytorch.encoders import get_encoder

        classes = max(2, out_channels)
        self.encoder = get_encoder(encoder, in_channels=in_channels, depth=5, weights=None, output_stride=32)
        self.aspp = drawn_anew(Aspp(self.encoder.out_channels[-1]))
        self.low = drawn_anew(block(self.encoder.out_channels[2], LOW_WIDTH, 1))
        self.decoder = drawn_anew(
            nn.Sequential(
                block(WIDTH + LOW_WIDTH, WIDTH, 3),
                nn.Dropout(0.5),
                block(WIDTH, WIDTH, 3),
                nn.Dropout(0.1),
                nn.Conv2d(WIDTH, WIDTH, 1),
            )
        )
        self.head = drawn_anew(nn.Sequential(block(WIDTH, WIDTH, 1, bias=True), nn.Conv2d(WIDTH, classes, 1)))
        self.confidence_head = drawn_anew(ConfidenceBranch(classes))
        self.difference = out_channels == 1

    def forward(self, image: Tensor, feature_dropout: float = 0.0) -> Tensor:
        """Logits of an image; see the class.

        Args:
            image: (B, 3, H, W) float.
            feature_dropout: chance with which a channel of the encoder's features is left out of a second pass through
                the decoder, the ``dropped`` of :func:`hssf_outputs`; 0 makes none.
        """
        size = image.shape[-2:]
        features = self.encoder(image)
        low, high = features[2], features[-1]
        decoded = self._decode(low, high)
        found = self.head(decoded)
        # float32 also under autocast: the inferer's own .float() then hands on this very tensor, with what it carries
        logits = _upsample(found.float(), size)
        returned = logits[:, 1:] - logits[:, :1] if self.difference else logits
        if not self.training:
            return returned
        dropped = None
        if feature_dropout > 0:
            again = self._decode(F.dropout2d(low, feature_dropout), F.dropout2d(high, feature_dropout))
            dropped = _upsample(self.head(again).float(), size)
        confidence = _upsample(self.confidence_head(decoded, found).float(), size)
        # on the tensor, not on the module: other passes follow before a term reads it, and the module stays copyable
        returned.hssf_outputs = HssfOutputs(logits, confidence, dropped)  # type: ignore[attr-defined]
        return returned

    def _decode(self, low: Tensor, high: Tensor) -> Tensor:
        return self.decoder(torch.cat([_upsample(self.aspp(high), low.shape[-2:]), self.low(low)], dim=1))


def hssf_outputs(prediction: Tensor) -> HssfOutputs:
    """What came with a prediction of :class:`HssfNetwork` in train mode, whatever passes followed it.

    Args:
        prediction: the very tensor that the network returned. A copy or a slice of it carries nothing.

    Raises:
        Refused: a prediction of another network, or one made in eval mode.
    """
    outputs = getattr(prediction, "hssf_outputs", None)
    if outputs is None:
        expected = "the prediction of an hssf_resnet network in train mode"
        hint = "set network_name to hssf_resnet18, or disable the terms that need its confidence"
        raise refused("confidence", found="a prediction without confidence", expected=expected, hint=hint)
    return outputs


def hssf_network(encoder: str, *, in_channels: int, out_channels: int) -> nn.Module:
    """:class:`HssfNetwork` for the catalogue; any image of at least 32 pixels will do."""
    network = HssfNetwork(encoder, in_channels=in_channels, out_channels=out_channels)
    return require_intake(network, multiple=1, least_batch=2)


hssf_resnet18 = partial(hssf_network, "resnet18")
hssf_resnet34 = partial(hssf_network, "resnet34")
hssf_resnet101 = partial(hssf_network, "resnet101")


def _upsample(tensor: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)


CONFIDENCE_WEIGHT = 4.0
"""Factor of :func:`confidence_loss` in HSSF's sum."""


@dataclass(frozen=True)
class LsslLabels:
    """What two views of an unlabelled batch agree to be taught.

    Args:
        label: (B, 1, H, W) long, 0 or 1.
        gate: (B,) bool, images that count.
        flipped: (B, 1, H, W) bool, where the label is the opposite of what was predicted.
    """

    label: Tensor
    gate: Tensor
    flipped: Tensor


def confidence_loss(confidence: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """Cross entropy of "the prediction is right here", wrong pixels counting ``right / wrong`` times as much.

    Both kinds of pixel so have the same sum of weights; the mean is over all pixels of the batch. Where no pixel is
    right the weight of the wrong ones is 0, by the same formula. The gradient reaches the confidence alone, and through
    its features the network; the prediction that is judged is a label.

    Args:
        confidence: (B, 1, H, W) float, logit of being right.
        logits: (B, C, H, W) float, the prediction that is judged.
        label: (B, 1, H, W), class indices (0 or 1 for C = 1).

    Returns:
        a scalar >= 0, without HSSF's factor :data:`CONFIDENCE_WEIGHT`.
    """
    predicted = hard_label(probabilities(logits.detach()))[0]
    right = (predicted == label.long()).to(confidence.dtype)
    rights, wrongs = right.sum(), (1 - right).sum()
    weight = torch.where(right > 0, 1.0, rights / wrongs.clamp(min=1))
    return (weight * F.binary_cross_entropy_with_logits(confidence, right, reduction="none")).mean()


def lssl_labels(
    weak: Tensor,
    weak_confidence: Tensor,
    strong: Tensor,
    strong_confidence: Tensor,
    *,
    flip_below: float,
    least_mean: float,
) -> LsslLabels:
    """The pseudo-label of HSSF's local step: each pixel from the view that is surer of itself there.

    A pixel that even the surer view thinks wrong (confidence below ``flip_below``) gets the opposite label; an image
    counts only if the mean of its surer views' confidences is above ``least_mean``. Equal views: the weak one's.

    Args:
        weak, strong: (B, 1, H, W) float logits of two views with the same geometry.
        weak_confidence, strong_confidence: (B, 1, H, W) float, their logits of being right.
        flip_below: confidence in [0, 1].
        least_mean: confidence in [0, 1].

    Raises:
        ValueError: more than one channel, which has no opposite.
    """
    if weak.shape[1] != 1:
        raise ValueError(
            f"lssl_labels: expected one channel, found {weak.shape[1]}; a class has no opposite to flip to"
        )
    sure, other = weak_confidence.detach().sigmoid(), strong_confidence.detach().sigmoid()
    best = torch.maximum(sure, other)
    foreground = torch.where(sure >= other, weak.detach(), strong.detach()) > 0
    flipped = best < flip_below
    return LsslLabels((foreground ^ flipped).long(), best.mean(dim=(1, 2, 3)) > least_mean, flipped)


def dropout_consistency(logits: Tensor, dropped: Tensor) -> Tensor:
    """Squared difference of the logits of two passes, channels weighted by how much of the image they hold.

    ``mean_{b, c} w_bc mean_pixels (z - d)^2`` with ``w_bc`` the mean over the pixels of ``softmax(d)``. The gradient
    reaches both passes, and the weight.

    Args:
        logits: (B, C, H, W) float, C > 1.
        dropped: the same of the pass with features left out.
    """
    weight = dropped.softmax(dim=1).mean(dim=(2, 3))
    return (weight * ((logits - dropped) ** 2).mean(dim=(2, 3))).mean()


def gated_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, label: Tensor, gate: Tensor) -> Tensor:
    """The mean over all images of a loss that is 0 for images with a closed gate.

    Args:
        loss: of logits and labels, a mean over images.
        logits: (B, C, H, W) float.
        label: (B, 1, H, W), what ``loss`` takes.
        gate: (B,) bool.
    """
    if not bool(gate.any()):
        return logits.sum() * 0.0
    return loss(logits[gate], label[gate]) * gate.to(logits.dtype).mean()


@dataclass(kw_only=True, eq=False)
class ConfidenceTerm(Term):
    """``4 L_conf`` on the labelled batch: HSSF's confidence branch against "argmax = label" (docs/method.md).

    It looks at the supervised prediction alone, so it works with or without an unlabelled stream, at a site and in the
    server's steps on the public images. Also records ``<name>_mean``, the mean confidence on the labelled batch.

    Args:
        name: under which the value is logged.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: at the first step, a network without a confidence branch (``hssf_resnet18`` and its like have one).

    Example::

        {"_target_": "samfed_monai.methods.hssf.ConfidenceTerm", "weight": 4.0}
    """

    unlabelled = False

    name: str = "confidence"
    weight: float = CONFIDENCE_WEIGHT

    def value(self, guidance: Any, engine: Any) -> Tensor:
        """``L_conf``."""
        prediction = engine.state.output["pred"]
        confidence = hssf_outputs(prediction).confidence
        record(engine, f"{self.name}_mean", confidence.detach().sigmoid().mean())
        return confidence_loss(confidence, prediction, engine.state.output["label"])


@dataclass(kw_only=True, eq=False)
class LsslTerm(Term):
    """HSSF's semi-supervised loss on an unlabelled batch: both views against one label, and an MSE (docs/method.md).

    The label of a pixel is that of the view with the higher predicted confidence, flipped where even that is below
    ``flip_below``; an image counts only if its mean confidence is above ``least_mean``. A view costs ``loss`` and, once
    more, its plain cross entropy. Added to both is the weighted squared difference between the weak view's logits and
    those with half of its features dropped (:func:`samfed_monai.methods.hssf.dropout_consistency`).

    The stream gives the student's strong view. The weak one it only runs without gradient, so the term runs the student
    once more, in train mode and with gradient: HSSF learns from both views, and the two passes through the decoder
    share the encoder. Both views must have one geometry: the stream's CutMix has to be 0.

    Also records ``<name>_counted``, the share of images that count, and ``<name>_flipped``, that of flipped pixels.

    Args:
        name: under which the value is logged.
        loss: of logits and labels, a mean over images; ``None`` is :class:`StructureLoss`.
        flip_below: confidence under which a label is turned round (HSSF: 0.3).
        least_mean: mean confidence an image must exceed (HSSF: 0.75).
        feature_dropout: chance with which a channel of the features is dropped (HSSF: 0.5); 0 leaves the MSE out.
        cross_entropy: factor of the plain cross entropy that is added to ``loss`` (HSSF: 1).
        consistency: factor of the squared difference (HSSF: 1).
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: thresholds outside [0, 1], a negative factor; at ``STARTED``, a network that is not HSSF's; in the
            first step, CutMix.

    Example::

        {"_target_": "samfed_monai.methods.hssf.LsslTerm", "loss": "@loss", "flip_below": 0.3, "least_mean": 0.75}
    """

    checks: ClassVar = {"flip_below": FRACTION, "least_mean": FRACTION, "feature_dropout": FRACTION}
    checks |= {"cross_entropy": NOT_NEGATIVE, "consistency": NOT_NEGATIVE}

    name: str = "lssl"
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    flip_below: float = 0.3
    least_mean: float = 0.75
    feature_dropout: float = 0.5
    cross_entropy: float = 1.0
    consistency: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._loss = self.loss or StructureLoss()

    def check(self, engine: Any) -> None:
        """Refuses, before any work, a network without confidence or feature dropout."""
        super().check(engine)
        if not isinstance(engine.network, HssfNetwork):
            found, expected = type(engine.network).__name__, "a network that predicts its confidence"
            hint = "set network_name to hssf_resnet18, hssf_resnet34 or hssf_resnet101"
            raise refused(self.where, found, expected, hint)

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """The loss of both views plus the MSE."""
        image = guidance.view("image", asked_by=self.where)
        weak = engine.inferer(image, engine.network, feature_dropout=self.feature_dropout)
        strong = guidance.student
        of_weak = hssf_outputs(weak)
        chosen = lssl_labels(
            weak,
            of_weak.confidence,
            strong,
            hssf_outputs(strong).confidence,
            flip_below=self.flip_below,
            least_mean=self.least_mean,
        )
        record(engine, f"{self.name}_counted", chosen.gate.float().mean())
        record(engine, f"{self.name}_flipped", chosen.flipped.float().mean())
        first, second = (gated_loss(self._of_view, view, chosen.label, chosen.gate) for view in (weak, strong))
        value = first + second
        if of_weak.dropped is None:
            return value
        return value + self.consistency * dropout_consistency(of_weak.logits, of_weak.dropped)

    def _of_view(self, logits: Tensor, label: Tensor) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype))
        return self._loss(logits, label) + self.cross_entropy * entropy


class NoiseViewd(RandomViewd):
    """Adds Gaussian noise of one fixed deviation, cut off at ``limit``; all else stays (HSSF; docs/method.md).

    It takes the place of :class:`StrongViewd`, whose noise has a deviation drawn anew for every image, in a bundle that
    follows HSSF's conventions.

    Args:
        keys: the image, (C, H, W) in [0, 1].
        output_key: where its noisy view goes.
        deviation: of the noise, in [0, 1] intensities (HSSF: 0.1 on images in [-1, 1], which is 0.05 here).
        limit: no pixel changes by more (HSSF: 0.2 on those, which is 0.1 here).
        allow_missing_keys: whether an item may lack the image.

    The view is (C, H, W) float32, a new tensor, kept in [0, 1] like every view here.

    Raises:
        Refused: a deviation or a limit outside [0, 1]; not one output for each key.

    Example::

        {"_target_": "samfed_monai.methods.hssf.NoiseViewd", "deviation": 0.05, "limit": 0.1}
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        output_key: KeysCollection = "image_strong",
        *,
        deviation: float = 0.05,
        limit: float = 0.1,
        allow_missing_keys: bool = False,
    ) -> None:
        found = [FRACTION("NoiseViewd -> deviation", deviation), FRACTION("NoiseViewd -> limit", limit)]
        super().__init__(keys, output_key, *found, allow_missing_keys=allow_missing_keys)
        self.deviation, self.limit = deviation, limit

    def view(self, image: Any) -> Tensor:
        """The image (C, H, W) with noise."""
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31 - 1)))
        image = plain(image)
        noise = torch.randn(image.shape, generator=generator).mul_(self.deviation).clamp_(-self.limit, self.limit)
        return noise.add_(image).clamp_(0, 1)
