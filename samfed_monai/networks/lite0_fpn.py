"""``lite0_fpn``: the first five of EfficientNet-Lite0's seven stages with a light decoder, for very small machines."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.networks.fpn import FPNDecoder, PyramidEncoder
from samfed_monai.networks.intake import require_intake
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators
from samfed_monai.networks.weights.efficientnet import set_epsilon

_STAGES = 5
_LEVELS = {1: 24, 2: 40, 4: 112}  # stage to channels: strides 4, 8 and 16


class Lite0Features(PyramidEncoder):
    """EfficientNet-Lite0 (Liu 2020) up to stride 16, level by level; its batch norms keep their statistics.

    Names of its state dict are those of ``deeplabv3plus_efficientnet_lite0``'s encoder: its ImageNet weights fit.

    Args:
        in_channels: of the images.
    """

    truncated = True
    """Later stages, which ImageNet's weights have, are left out."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        declare_torchvision_operators()
        from timm.models import create_model

        whole: Any = set_epsilon(create_model("tf_efficientnet_lite0", pretrained=False, in_chans=in_channels))
        self.conv_stem, self.bn1, self.blocks = whole.conv_stem, whole.bn1, whole.blocks[:_STAGES]

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, H, W)`` in [0, 1] to 24, 40 and 112 channels at strides 4, 8 and 16."""
        x = self.bn1(self.conv_stem(image))
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in _LEVELS:
                features.append(x)
        return features


class Lite0FPN(nn.Module):
    """A segmentation network of 0.8 M parameters that starts from ImageNet.

    Args:
        in_channels, out_channels: of images and logits.
        width: channels of the decoder.
    """

    def __init__(self, *, in_channels: int = 3, out_channels: int = 1, width: int = 64) -> None:
        super().__init__()
        self.encoder = Lite0Features(in_channels)
        self.decoder = FPNDecoder(tuple(_LEVELS.values()), width=width)
        self.segmentation_head = nn.Conv2d(width, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` float in [0, 1] to logits ``(B, out_channels, H, W)``; H and W multiples of 16."""
        logits = self.segmentation_head(self.decoder(self.encoder(image)))
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)


def lite0_fpn(**kwargs: Any) -> nn.Module:
    """:class:`Lite0FPN` for the catalogue, with random weights."""
    return require_intake(Lite0FPN(**kwargs), multiple=16, least=32)
