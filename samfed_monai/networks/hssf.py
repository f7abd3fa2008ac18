"""HSSF's own network: ResNet, ASPP, and a branch that predicts where the prediction is right (docs/method.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.networks.intake import require_intake
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators

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
        problems = Problems()
        if out_channels < 1:
            problems.add("network_def#out_channels", found=repr(out_channels), expected="a whole number >= 1")
        problems.refuse_if_any()
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
        mend = "set network_name to hssf_resnet18, or disable the terms that need its confidence"
        raise Refused([Problem("confidence", found="a prediction without confidence", expected=expected, mend=mend)])
    return outputs


def hssf_network(encoder: str, *, in_channels: int, out_channels: int) -> nn.Module:
    """:class:`HssfNetwork` for the catalogue; any image of at least 32 pixels will do."""
    network = HssfNetwork(encoder, in_channels=in_channels, out_channels=out_channels)
    return require_intake(network, multiple=1, least=32, least_batch=2)


def _upsample(tensor: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
