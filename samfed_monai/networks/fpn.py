"""Client networks with a light feature pyramid on MobileSAM's trunk or EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.core.errors import refused
from samfed_monai.core.io import sha256_file
from samfed_monai.core.validators import one_of, require
from samfed_monai.networks.input_size import limit_inputs
from samfed_monai.networks.sam.adapter import load_adapter, read_header
from samfed_monai.networks.sam.build import PIXEL_MEAN, PIXEL_STD, build_sam, clear_caches, tiny_vit_trunk
from samfed_monai.networks.sam.lora import merge_lora
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators
from samfed_monai.networks.weights import find_checkpoint, set_epsilon

if TYPE_CHECKING:
    from typing_extensions import Self


_GROUPS = 8


class PyramidEncoder(nn.Module):
    """An encoder whose batch norms keep their pretrained statistics: batches of a few images would degrade them."""

    if TYPE_CHECKING:  # torch.jit.script does not read annotations that are strings
        out_channels: tuple[int, ...]

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all modules except the batch norms, which stay in eval mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class GroupAttention(nn.Module):
    """Slot attention with learned initial slots (Locatello et al., arXiv 2006.15055), decoded at every position.

    As in WS-SAM's public code (``SlotAttentionModule``): positions compete for groups by a softmax over the groups, in
    three iterations, and each group's result is added to a projection of each position's coordinates.

    Args:
        width: channels.
        groups: number of groups, >= 1.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.position, self.placed = nn.Linear(4, width), nn.Linear(4, width)
        self.before = nn.Sequential(nn.LayerNorm(width), *_two_layers(width), nn.LayerNorm(width))
        self.start = nn.Parameter(torch.randn(groups, width))
        self.norm, self.query = nn.LayerNorm(width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.update, self.after = nn.GRUCell(width, width), nn.Sequential(nn.LayerNorm(width), *_two_layers(width))
        self.join = nn.Conv2d(groups * width, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(B, width, h, w)`` to the same shape."""
        batch, width, height, breadth = features.shape
        rows = torch.linspace(0, 1, height, device=features.device).view(-1, 1).expand(height, breadth)
        columns = torch.linspace(0, 1, breadth, device=features.device).expand(height, breadth)
        grid = torch.stack([rows, columns, 1 - rows, 1 - columns], dim=-1).flatten(0, 1).to(features.dtype)
        tokens = self.before(features.flatten(2).transpose(1, 2) + self.position(grid))
        keys, values = self.key(tokens), self.value(tokens)
        groups = self.start.expand(batch, -1, -1)
        for _ in range(3):
            attention = (self.query(self.norm(groups)) @ keys.transpose(1, 2) * width**-0.5).softmax(dim=1) + 1e-8
            updates = attention / attention.sum(dim=2, keepdim=True) @ values
            groups = self.update(updates.flatten(0, 1), groups.flatten(0, 1)).view(groups.shape)
            groups = groups + self.after(groups)
        decoded = groups.unsqueeze(2) + self.placed(grid)
        mixed: Tensor = self.join(decoded.transpose(2, 3).flatten(1, 2).unflatten(2, (height, breadth)))
        return mixed


def _two_layers(width: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)


class FeatureGroups(nn.Module):
    """Hybrid-granularity feature grouping (SEE: He et al., arXiv 2506.08955; WS-SAM, NeurIPS 2023).

    ``x + a F + (1 - a) C`` with ``F`` the finer groups of ``x``, ``C`` the coarser ones of ``x + F``, and ``a`` in
    (0, 1), predicted per image by a small network from mean and maximum of both (WS-SAM's public code, ``ODE``).

    Args:
        width: channels.
        groups: numbers of finer and of coarser groups (4 and 2 in the public code).

    Raises:
        Refused: ``groups`` is not two integers >= 1.
    """

    def __init__(self, width: int, groups: Sequence[int]) -> None:
        super().__init__()
        if len(groups) != 2 or any(type(number) is not int or number < 1 for number in groups):
            expected, hint = "two whole numbers of 1 or more, or none", "published are [4, 2]"
            raise refused("network_def#feature_groups", repr(groups), expected, hint)
        self.fine, self.coarse = GroupAttention(width, groups[0]), GroupAttention(width, groups[1])
        self.mix = nn.Sequential(
            nn.Conv2d(2 * width, width, 1, bias=False), nn.ReLU(), nn.Conv2d(width, 1, 1, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(B, width, h, w)`` to the same shape."""
        fine = self.fine(features)
        coarse = self.coarse(fine + features)
        both = torch.cat([fine, coarse], dim=1)
        means, maxima = both.mean((2, 3), keepdim=True), both.amax((2, 3), keepdim=True)
        fine_share = torch.sigmoid(self.mix(means) + self.mix(maxima))
        mixed: Tensor = features + fine_share * fine + (1 - fine_share) * coarse
        return mixed


class FPNDecoder(nn.Module):
    """Combines features of several strides to one map at the finest stride.

    Each level is projected to ``width`` channels and added to the upsampled coarser ones; a 3 x 3 convolution smooths
    the sum. It uses group norm (Wu and He 2018) instead of batch norm: an image's prediction then depends on no other
    image, and a federation does not average running statistics of different hospitals.

    Args:
        channels: channels of the levels, from the finest to the coarsest.
        width: channels of the decoder; a multiple of 8.
        feature_groups: numbers of :class:`FeatureGroups` at the coarsest level; empty for none.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 96, feature_groups: Sequence[int] = ()) -> None:
        super().__init__()
        self.groups = FeatureGroups(width, feature_groups) if feature_groups else nn.Identity()
        self.lateral = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)
        smooth = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.smooth = nn.Sequential(smooth, nn.GroupNorm(_GROUPS, width), nn.SiLU())

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps features ``(B, channels[i], h_i, w_i)`` to ``(B, width, h_0, w_0)``."""
        levels = []
        for index, lateral in enumerate(self.lateral):
            levels.append(lateral(features[index]))
        coarse = self.groups(levels.pop())
        for _ in range(len(levels)):
            level = levels.pop()
            coarse = level + F.interpolate(coarse, level.shape[-2:], mode="bilinear", align_corners=False)
        smoothed: Tensor = self.smooth(coarse)
        return smoothed


class FoldedConvNorm(nn.Module):
    """A convolution and its batch norm, computed as one convolution; both are trained, under their own names.

    The norm's statistics are fixed, so it only scales and shifts the convolution's output: the same function up to
    rounding, and neither forward nor backward pass processes the maps twice.

    Args:
        conv: a convolution without bias.
        bn: its batch norm, whose running statistics are used even in train mode.
    """

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.bn = conv, bn

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``bn(conv(x))``."""
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert variance is not None
        scale = self.bn.weight * torch.rsqrt(variance + self.bn.eps)
        weight, bias = self.conv.weight * scale.view(-1, 1, 1, 1), self.bn.bias - mean * scale
        # self.conv is not assigned to a variable, of which torch.jit.script would not find the constants
        return F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding, self.conv.dilation, self.conv.groups)


BASE = "vit_t"
"""Name of the SAM with this trunk."""
_CHANNELS = (64, 128, 160, 320)


class TinyViTFeatures(PyramidEncoder):
    """MobileSAM's TinyViT-5M, which returns the map of each stage; its batch norms keep their pretrained statistics.

    Its state dict has the names of :class:`~samfed_monai.networks.sam.build.TinyViTEncoder`'s trunk.

    Args:
        frozen_stages: number of leading parts that are not trained: 0 none, 1 the patch embedding, 2 also the first
            stage, both convolutions at stride 4.
    """

    if TYPE_CHECKING:  # torch.jit.script does not read annotations that are strings
        pixel_mean: Tensor
        pixel_std: Tensor

    def __init__(self, frozen_stages: int = 0) -> None:
        super().__init__()
        require(one_of("network_def#frozen_stages", frozen_stages, (0, 1, 2)))
        trunk = tiny_vit_trunk(FoldedConvNorm)
        self.patch_embed, self.stages, self.out_channels = trunk.patch_embed, trunk.stages, _CHANNELS
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1) / 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1) / 255, persistent=False)
        for part in (self.patch_embed, *self.stages)[:frozen_stages]:
            part.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps ``(B, 3, H, W)`` in [0, 1] to 64, 128, 160 and 320 channels at strides 4, 8, 16 and 16."""
        x = (image - self.pixel_mean) / self.pixel_std
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class FPN(nn.Module):
    """A pixel-wise segmentation network: an encoder with a pyramid of feature maps, and a light decoder.

    Args:
        encoder: see :class:`TinyViTFeatures` and :class:`Lite0Features`.
        out_channels: channels of the logits.
        width: channels of the decoder.
        feature_groups: see :class:`FPNDecoder`.
    """

    def __init__(
        self, encoder: PyramidEncoder, *, out_channels: int, width: int, feature_groups: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = FPNDecoder(encoder.out_channels, width=width, feature_groups=feature_groups)
        self.segmentation_head = nn.Conv2d(width, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Maps ``(B, in_channels, H, W)`` float in [0, 1] to logits ``(B, out_channels, H, W)``."""
        if not torch.jit.is_scripting() and not self.training:  # there is no cache in train mode
            clear_caches(self.encoder)
        logits = self.segmentation_head(self.decoder(self.encoder(image)))
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)


def mobile_sam_fpn(
    *,
    in_channels: int = 3,
    out_channels: int = 1,
    width: int = 96,
    frozen_stages: int = 0,
    feature_groups: Sequence[int] = (),
) -> nn.Module:
    """Builds a network of 5.2 M parameters on MobileSAM's trunk, here with random weights.

    It has no prompts, neck or mask decoder, about half of the MobileSAM teacher's parameters. Its whole state dict is
    part of an update: the statistics of the frozen batch norms are less than 1 % of it, and a model is complete without
    SAM's checkpoint.

    Args:
        in_channels: must be 3.
        out_channels, width, feature_groups: see :class:`FPN`.
        frozen_stages: see :class:`TinyViTFeatures`.

    Raises:
        Refused: other channels, an argument out of range.
    """
    if in_channels != 3:
        raise refused("network_def#in_channels", repr(in_channels), "3: MobileSAM's trunk takes RGB")
    encoder = TinyViTFeatures(frozen_stages)
    network = FPN(encoder, out_channels=out_channels, width=width, feature_groups=feature_groups)
    return limit_inputs(network, multiple=32)


def load_trunk(network: nn.Module, weights: str | Path) -> None:
    """Loads the trunk, in place, from MobileSAM's checkpoint or from a teacher's adapter.

    With an adapter, the trunk is the teacher's with its low-rank updates merged into the weights, so that the network
    starts from the teacher's training on the public images. This requires SAM's own checkpoint as well.

    Args:
        network: a network of :func:`mobile_sam_fpn`.
        weights: the checkpoint, or an adapter made from it by ``samfed teach``.

    Raises:
        Refused: weights of another network, an adapter of another SAM or of another checkpoint.
    """
    header = read_header(weights) if Path(weights).suffix == ".safetensors" else None
    if header is None:
        sam = build_sam(BASE, weights, 256)
    else:
        if header.base != BASE:
            found = f"{Path(weights).name}, an adapter of {header.base}"
            hint = f"fit the teacher with --base {BASE}, or set encoder_weights to mobile_sam"
            raise refused("encoder_weights", found, f"an adapter of {BASE} (MobileSAM)", hint)
        checkpoint = find_checkpoint(BASE)
        sam = build_sam(BASE, checkpoint, header.size)
        load_adapter(weights, sam, base=BASE, base_sha256=sha256_file(checkpoint), size=header.size)
        merge_lora(sam.image_encoder)
    trunk: Any = sam.image_encoder.trunk
    encoder: Any = network.encoder
    encoder.load_state_dict(trunk.state_dict())


_LEVELS = {5: {1: 24, 2: 40, 4: 112}, 4: {1: 24, 2: 40, 3: 80}}  # by stages: block to channels at strides 4, 8 and 16


class Lite0Features(PyramidEncoder):
    """EfficientNet-Lite0 (Liu 2020) up to stride 16, with a map for each stride; batch norms keep their statistics.

    Its state dict has the names of ``deeplabv3plus_efficientnet_lite0``'s encoder, so that its ImageNet weights fit.

    Args:
        in_channels: channels of the images.
        stages: 5, or 4 with 80 channels at stride 16.
    """

    truncated = True
    """The ImageNet weights have further stages, which are dropped."""

    def __init__(self, in_channels: int = 3, stages: int = 5) -> None:
        super().__init__()
        require(one_of("network_def#stages", stages, _LEVELS))
        declare_torchvision_operators()
        from timm.models import create_model

        network: Any = set_epsilon(create_model("tf_efficientnet_lite0", pretrained=False, in_chans=in_channels))
        self.conv_stem, self.bn1, self.blocks = network.conv_stem, network.bn1, network.blocks[:stages]
        self.levels, self.out_channels = list(_LEVELS[stages]), tuple(_LEVELS[stages].values())

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps ``(B, in_channels, H, W)`` in [0, 1] to 24, 40 and 112 (or 80) channels at strides 4, 8 and 16."""
        # channels last: with depthwise convolutions on a CPU, 0.8 of the training time, 0.6 of bfloat16 inference
        x = self.bn1(self.conv_stem(image.contiguous(memory_format=torch.channels_last)))
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.levels:
                features.append(x)
        return features


def lite0_fpn(
    *, in_channels: int = 3, out_channels: int = 1, width: int = 64, stages: int = 5, feature_groups: Sequence[int] = ()
) -> nn.Module:
    """Builds a network of 0.8 M (or 0.28 M) parameters for an ImageNet encoder, here with random weights.

    Args:
        in_channels, stages: see :class:`Lite0Features`.
        out_channels, width, feature_groups: see :class:`FPN`.
    """
    encoder = Lite0Features(in_channels, stages)
    network = FPN(encoder, out_channels=out_channels, width=width, feature_groups=feature_groups)
    return limit_inputs(network, multiple=16)
