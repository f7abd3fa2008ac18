"""The parts of HSSF's code that differ from ours (Ma et al., IEEE TMI 2024): network, losses, terms, view."""

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
from samfed_monai.networks.input_size import limit_inputs
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators
from samfed_monai.transforms.loading import plain
from samfed_monai.transforms.strong_view import RandomViewd

WIDTH = 256
LOW_WIDTH = 48
DILATIONS = (12, 24, 36)

Part = TypeVar("Part", bound=nn.Module)


class Aspp(nn.Module):
    """Five branches over (B, in_channels, h, w), joined to (B, 256, h, w) by a 1x1 convolution with dropout 0.1."""

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
    """Predicts from features and logits whether the prediction is right, as one logit per pixel.

    Four 3x3 convolutions of 256 channels, each on two concatenated maps: features and logits; the first map and the
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
        """Returns the confidence logit of a prediction.

        Args:
            features: (B, 256, h, w), the classifier's input.
            logits: (B, classes, h, w), the classifier's output.

        Returns:
            (B, 1, h, w).
        """
        first = scaled_by_mean(self.first(torch.cat([features, logits], dim=1)))
        second = scaled_by_mean(first + self.second(torch.cat([first, features], dim=1)))
        third = second + self.third(torch.cat([first, second], dim=1))
        return self.last(torch.cat([third, second], dim=1))


def scaled_by_mean(features: Tensor) -> Tensor:
    """Returns ``x (1 + mean(x))`` for (B, C, h, w), with the mean over the pixels of each channel."""
    return features * (1 + features.mean(dim=(2, 3), keepdim=True))


def block(inputs: int, outputs: int, kernel: int, dilation: int = 1, *, bias: bool = False) -> nn.Sequential:
    """Returns a size-preserving convolution with batch norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def he_initialised(part: Part) -> Part:
    """Initialises the convolutions of a part with He's normal distribution (arXiv 1502.01852), fan-in mode."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return part


@dataclass(frozen=True)
class HssfOutputs:
    """All outputs of one forward pass of :class:`HssfNetwork`, at the size of the image.

    Args:
        logits: (B, K, H, W) float, output of the head: two channels, even if the network returns their difference.
        confidence: (B, 1, H, W) float, logit of "the prediction is right at this pixel".
        dropped: logits of the same image with feature dropout; ``None`` unless requested.
    """

    logits: Tensor
    confidence: Tensor
    dropped: Tensor | None = None


class HssfNetwork(nn.Module):
    """The DeepLabV3+ of HSSF's code (Ma et al., IEEE TMI 2024), reimplemented from its description.

    Encoder without ImageNet weights, output stride 32; its features of stride 4 are projected to 48 channels, those of
    stride 32 pass an ASPP of five branches of 256 (1x1, 3x3 dilated by 12, 24 and 36, global pooling). The decoder
    applies two 3x3 convolutions and a linear 1x1 one, 256 channels each, to the 304 channels of both, with dropout 0.5
    and 0.1 after the first two; a hidden 1x1 layer and a last one turn the result into two logits;
    :class:`ConfidenceBranch` gets the decoder's channels and the logits. All upsampling is bilinear. The numbers of
    parameters are those published (21.4, 31.5 and 65.7 million) without the encoder's unused ImageNet classifier, which
    is counted there.

    ``network(image)`` returns (B, 1, H, W), the difference ``z1 - z0`` of the two logits: its sigmoid is their softmax,
    its sign their argmax. In train mode the returned tensor carries the other outputs, see :func:`hssf_outputs`; in
    eval mode it does not, and the confidence branch is not run.

    Args:
        encoder: a ResNet of segmentation_models_pytorch.
        in_channels: channels of the images.
        out_channels: 1, or the number of classes, whose logits are then returned unchanged.

    Raises:
        Refused: fewer than one output channel.
    """

    def __init__(self, encoder: str, *, in_channels: int = 3, out_channels: int = 1) -> None:
        super().__init__()
        require(whole("network_def#out_channels", out_channels, least=1))
        declare_torchvision_operators()
        from segmentation_models_pytorch.encoders import get_encoder

        classes = max(2, out_channels)
        self.encoder = get_encoder(encoder, in_channels=in_channels, depth=5, weights=None, output_stride=32)
        self.aspp = he_initialised(Aspp(self.encoder.out_channels[-1]))
        self.low = he_initialised(block(self.encoder.out_channels[2], LOW_WIDTH, 1))
        self.decoder = he_initialised(
            nn.Sequential(
                block(WIDTH + LOW_WIDTH, WIDTH, 3),
                nn.Dropout(0.5),
                block(WIDTH, WIDTH, 3),
                nn.Dropout(0.1),
                nn.Conv2d(WIDTH, WIDTH, 1),
            )
        )
        self.head = he_initialised(nn.Sequential(block(WIDTH, WIDTH, 1, bias=True), nn.Conv2d(WIDTH, classes, 1)))
        self.confidence_head = he_initialised(ConfidenceBranch(classes))
        self.difference = out_channels == 1

    def forward(self, image: Tensor, feature_dropout: float = 0.0) -> Tensor:
        """Returns the logits of an image; see the class.

        Args:
            image: (B, 3, H, W) float.
            feature_dropout: probability to drop a channel of the encoder's features in a second pass through the
                decoder, the ``dropped`` of :func:`hssf_outputs`; 0 skips that pass.
        """
        size = image.shape[-2:]
        features = self.encoder(image)
        low, high = features[2], features[-1]
        decoded = self._decode(low, high)
        coarse = self.head(decoded)
        # float32 even under autocast: the inferer's .float() then returns this tensor with its attribute, not a copy
        logits = _upsample(coarse.float(), size)
        prediction = logits[:, 1:] - logits[:, :1] if self.difference else logits
        if not self.training:
            return prediction
        dropped = None
        if feature_dropout > 0:
            decoded_again = self._decode(F.dropout2d(low, feature_dropout), F.dropout2d(high, feature_dropout))
            dropped = _upsample(self.head(decoded_again).float(), size)
        confidence = _upsample(self.confidence_head(decoded, coarse).float(), size)
        # on the tensor, not the module: other passes may run before a term reads it, and the module stays copyable
        prediction.hssf_outputs = HssfOutputs(logits, confidence, dropped)  # type: ignore[attr-defined]
        return prediction

    def _decode(self, low: Tensor, high: Tensor) -> Tensor:
        return self.decoder(torch.cat([_upsample(self.aspp(high), low.shape[-2:]), self.low(low)], dim=1))


def hssf_outputs(prediction: Tensor) -> HssfOutputs:
    """Returns the other outputs of the forward pass in train mode that gave this prediction of :class:`HssfNetwork`.

    Args:
        prediction: the tensor that the network returned; copies and slices of it do not carry the outputs.

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
    """Builds :class:`HssfNetwork` for the catalogue; images need at least 32 pixels a side."""
    network = HssfNetwork(encoder, in_channels=in_channels, out_channels=out_channels)
    return limit_inputs(network, multiple=1, least_batch=2)


hssf_resnet18 = partial(hssf_network, "resnet18")
hssf_resnet34 = partial(hssf_network, "resnet34")
hssf_resnet101 = partial(hssf_network, "resnet101")


def _upsample(tensor: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)


CONFIDENCE_WEIGHT = 4.0
"""Factor of :func:`confidence_loss` in HSSF's sum."""


@dataclass(frozen=True)
class LsslLabels:
    """Pseudo-labels from two views of an unlabelled batch.

    Args:
        label: (B, 1, H, W) long, 0 or 1.
        gate: (B,) bool, images that count.
        flipped: (B, 1, H, W) bool, pixels with the opposite of the predicted label.
    """

    label: Tensor
    gate: Tensor
    flipped: Tensor


def confidence_loss(confidence: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """Cross entropy of "the prediction is right here", with wrong pixels weighted by ``right / wrong``.

    Both kinds of pixels thus have the same sum of weights; the mean is over all pixels of the batch. If no pixel is
    right, the weight of the wrong ones is 0, by the same formula. The gradient flows through the confidence and its
    features only, not through ``logits``.

    Args:
        confidence: (B, 1, H, W) float, logit of being right.
        logits: (B, C, H, W) float, the prediction to assess.
        label: (B, 1, H, W), class indices (0 or 1 for C = 1).

    Returns:
        a scalar >= 0, without HSSF's factor :data:`CONFIDENCE_WEIGHT`.
    """
    right = (hard_label(probabilities(logits.detach()))[0] == label.long()).to(confidence.dtype)
    right_count, wrong_count = right.sum(), (1 - right).sum()
    weight = torch.where(right > 0, 1.0, right_count / wrong_count.clamp(min=1))
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
    """Returns the pseudo-label of HSSF's local step: each pixel from the view with the higher confidence.

    If even that confidence is below ``flip_below``, the pixel gets the opposite label; an image counts only if the mean
    of the higher confidences exceeds ``least_mean``. With equal confidences the weak view is used.

    Args:
        weak, strong: (B, 1, H, W) float logits of two views with the same geometry.
        weak_confidence, strong_confidence: (B, 1, H, W) float, logits of the views' being right.
        flip_below: confidence in [0, 1].
        least_mean: confidence in [0, 1].

    Raises:
        ValueError: more than one channel, which has no opposite.
    """
    if weak.shape[1] != 1:
        raise ValueError(
            f"lssl_labels: expected one channel, found {weak.shape[1]}; a class has no opposite to flip to"
        )
    weak_probability, strong_probability = weak_confidence.detach().sigmoid(), strong_confidence.detach().sigmoid()
    highest = torch.maximum(weak_probability, strong_probability)
    foreground = torch.where(weak_probability >= strong_probability, weak.detach(), strong.detach()) > 0
    flipped = highest < flip_below
    return LsslLabels((foreground ^ flipped).long(), highest.mean(dim=(1, 2, 3)) > least_mean, flipped)


def dropout_consistency(logits: Tensor, dropped: Tensor) -> Tensor:
    """Squared difference of the logits of two passes, with channels weighted by their share of the image.

    ``mean_{b, c} w_bc mean_pixels (z - d)^2`` with ``w_bc`` the mean over the pixels of ``softmax(d)``. The gradient
    flows through both passes and the weight.

    Args:
        logits: (B, C, H, W) float, C > 1.
        dropped: the same from the pass with feature dropout.
    """
    return (dropped.softmax(dim=1).mean(dim=(2, 3)) * ((logits - dropped) ** 2).mean(dim=(2, 3))).mean()


def gated_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, label: Tensor, gate: Tensor) -> Tensor:
    """Returns the mean over all images of a loss that is 0 for images with a closed gate.

    Args:
        loss: a function of logits and labels that returns a mean over images.
        logits: (B, C, H, W) float.
        label: (B, 1, H, W), labels for ``loss``.
        gate: (B,) bool.
    """
    if not bool(gate.any()):
        return logits.sum() * 0.0
    return loss(logits[gate], label[gate]) * gate.to(logits.dtype).mean()


@dataclass(kw_only=True, eq=False)
class ConfidenceTerm(Term):
    """``4 L_conf`` on the labelled batch: trains HSSF's confidence branch on "argmax = label" (docs/method.md).

    It uses the supervised prediction only, so it works with or without an unlabelled stream, at a site and in the
    server's steps on the public images. Also records ``<name>_mean``, the mean confidence on the labelled batch.

    Args:
        name: name under which the value is logged.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: at the first step, a network without a confidence branch (the ``hssf_resnet*`` networks have one).

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
    ``flip_below``; an image counts only if its mean confidence is above ``least_mean``. The loss of a view is ``loss``
    plus its plain cross entropy. The weighted squared difference between the weak view's logits with and without
    feature dropout is added (:func:`samfed_monai.methods.hssf.dropout_consistency`).

    The stream runs the student on the strong view, but on the weak view only without gradient. The term therefore runs
    the student on the weak view again, in train mode and with gradient: HSSF learns from both views, and the two passes
    through the decoder share the encoder. Both views must have the same geometry: the stream's CutMix has to be 0.

    Also records ``<name>_counted``, the share of images that count, and ``<name>_flipped``, that of flipped pixels.

    Args:
        name: name under which the value is logged.
        loss: a function of logits and labels that returns a mean over images; ``None`` is :class:`StructureLoss`.
        flip_below: confidence below which a label is flipped (HSSF: 0.3).
        least_mean: mean confidence that an image must exceed (HSSF: 0.75).
        feature_dropout: probability to drop a channel of the features (HSSF: 0.5); 0 omits the MSE.
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
        """Refuses, before training, a network without confidence or feature dropout."""
        super().check(engine)
        if not isinstance(engine.network, HssfNetwork):
            found, expected = type(engine.network).__name__, "a network that predicts its confidence"
            hint = "set network_name to hssf_resnet18, hssf_resnet34 or hssf_resnet101"
            raise refused(self.where, found, expected, hint)

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """Returns the loss of both views plus the MSE."""
        image = guidance.view("image", where=self.where)
        weak = engine.inferer(image, engine.network, feature_dropout=self.feature_dropout)
        strong = guidance.student
        weak_outputs = hssf_outputs(weak)
        labels = lssl_labels(
            weak,
            weak_outputs.confidence,
            strong,
            hssf_outputs(strong).confidence,
            flip_below=self.flip_below,
            least_mean=self.least_mean,
        )
        record(engine, f"{self.name}_counted", labels.gate.float().mean())
        record(engine, f"{self.name}_flipped", labels.flipped.float().mean())
        first, second = (gated_loss(self._view_loss, view, labels.label, labels.gate) for view in (weak, strong))
        value = first + second
        if weak_outputs.dropped is None:
            return value
        return value + self.consistency * dropout_consistency(weak_outputs.logits, weak_outputs.dropped)

    def _view_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype))
        return self._loss(logits, label) + self.cross_entropy * entropy


class NoiseViewd(RandomViewd):
    """Adds Gaussian noise of a fixed deviation, clamped at ``limit``, and nothing else (HSSF; docs/method.md).

    It replaces :class:`StrongViewd`, which draws the deviation of its noise for each image, in a bundle that follows
    HSSF's conventions. The view is a new (C, H, W) float32 tensor, clamped to [0, 1].

    Args:
        keys: key of the image, (C, H, W) in [0, 1].
        output_key: key of its noisy view.
        deviation: deviation of the noise, in [0, 1] intensities (HSSF: 0.1 on images in [-1, 1], which is 0.05 here).
        limit: maximum change of a pixel (HSSF: 0.2 on those images, which is 0.1 here).
        allow_missing_keys: whether an item may lack the image.

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
        problems = [FRACTION("NoiseViewd -> deviation", deviation), FRACTION("NoiseViewd -> limit", limit)]
        super().__init__(keys, output_key, *problems, allow_missing_keys=allow_missing_keys)
        self.deviation, self.limit = deviation, limit

    def view(self, image: Any) -> Tensor:
        """Returns the image (C, H, W) with noise."""
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31 - 1)))
        image = plain(image)
        noise = torch.randn(image.shape, generator=generator).mul_(self.deviation).clamp_(-self.limit, self.limit)
        return noise.add_(image).clamp_(0, 1)
