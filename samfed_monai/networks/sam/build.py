"""SAM: its three parts, image encoders, placement of images in its square input, and ``build_sam``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import check_tensors, safe_load
from samfed_monai.core.registry import Registry
from samfed_monai.core.validators import require
from samfed_monai.networks.inferer import Switch, autocast, bf16_possible
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators


def fit_positions(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Interpolates absolute and relative position tables of a ViT encoder to the shapes of ``like``.

    Args:
        state: the checkpoint; ``pos_embed (1, h, w, C)`` is interpolated bicubically, ``rel_pos_* (2 n - 1, c)``
            linearly, as in SAM's own ``get_rel_pos``. Other tensors, and tables that fit already, are unchanged.
        like: tensors by name of the network that will load the result.
    """
    fitted = dict(state)
    for name, tensor in state.items():
        target = like.get(name)
        if target is None or tensor.shape == target.shape:
            continue
        if name.endswith("pos_embed") and tensor.dim() == 4:
            grid = F.interpolate(tensor.permute(0, 3, 1, 2), target.shape[1:3], mode="bicubic", align_corners=False)
            fitted[name] = grid.permute(0, 2, 3, 1).contiguous()
        elif ".rel_pos_" in name and tensor.dim() == 2:
            fitted[name] = F.interpolate(tensor.T[None], target.shape[0], mode="linear")[0].T.contiguous()
    return fitted


# SAM's own normalisation (segment_anything/build_sam.py), for intensities 0..255
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class PromptFreeSam(nn.Module):
    """SAM's three parts, decoded with the learned "no mask" embedding and no other prompt (docs/method.md).

    Its parameters have SAM's own names. It does not resize or pad: see :mod:`samfed_monai.networks.sam.teacher`.

    Args:
        image_encoder: maps ``(B, 3, size, size)`` to ``(B, 256, size / 16, size / 16)``.
        prompt_encoder: segment-anything's ``PromptEncoder`` built for that embedding size.
        mask_decoder: segment-anything's ``MaskDecoder``.

    Attributes:
        outputs: logits per pixel, 1 unless :meth:`add_class_masks` was called.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, image_encoder: nn.Module, prompt_encoder: nn.Module, mask_decoder: nn.Module) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.mask_decoder: Any = mask_decoder
        self.prompt_encoder: Any = prompt_encoder
        self.outputs = 1
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1) / 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1) / 255, persistent=False)

    def add_class_masks(self, outputs: int) -> None:
        """Gives the mask decoder a mask for each of several classes, in place; these must then be trained.

        Each class, including the background, has a mask token and a small output network (SAMed, Zhang and Liu, arXiv
        2304.13785, section 3.2); transformer and upscaling are shared. The initialisation is ours: every class is a
        copy of SAM's single mask, the background has a logit of 0, so that all classes together start as the foreground
        of SAM's sigmoid. Prompts have no meaning for several classes: ``decode`` refuses them. SAM's three additional
        masks (whole, part, subpart) are dropped.

        Args:
            outputs: K + 1 for K classes, 3 or more.

        Raises:
            ValueError: fewer than 3.
        """
        if outputs < 3:
            raise ValueError(
                f"add_class_masks: expected 3 outputs or more (the background and two classes), found {outputs}"
            )
        decoder, self.outputs = self.mask_decoder, outputs
        token = decoder.mask_tokens.weight.detach()[:1]
        decoder.mask_tokens = nn.Embedding.from_pretrained(token.repeat(outputs, 1), freeze=False)
        networks = [deepcopy(decoder.output_hypernetworks_mlps[0]) for _ in range(outputs)]
        for parameter in networks[0].layers[-1].parameters():
            nn.init.zeros_(parameter)
        decoder.output_hypernetworks_mlps = nn.ModuleList(networks)
        decoder.num_mask_tokens = outputs

    def normalise(self, images: Tensor) -> Tensor:
        """Normalises ``(B, 3, H, W)`` in [0, 1] as SAM does; padding comes after, so that it is zero."""
        return (images - self.pixel_mean) / self.pixel_std

    def encode(self, normalised: Tensor) -> Tensor:
        """Maps normalised ``(B, 3, size, size)`` to embeddings ``(B, 256, size / 16, size / 16)``."""
        return self.image_encoder(normalised)

    def forward(self, normalised: Tensor) -> Tensor:
        """Maps normalised ``(B, 3, size, size)`` to logits ``(B, 1, size / 4, size / 4)``."""
        return self.decode(self.encode(normalised))

    def decode(
        self,
        embeddings: Tensor,
        boxes: Tensor | None = None,
        points: tuple[Tensor, Tensor] | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Decodes embeddings to logits of SAM's single-mask output, with or without prompts.

        The decoder is written for many prompts on one image. Without prompts, the empty prompt is passed once and
        broadcast over the batch.

        Args:
            embeddings: ``(B, 256, size / 16, size / 16)``; with prompts B is 1.
            boxes: ``(N, 4)`` left, top, right, bottom: pixel indices in the ``size`` x ``size`` input.
            points: ``(N, P, 2)`` x and y, pixel indices in the input, and ``(N, P)``: 1 foreground, 0 background.
            masks: ``(N, 1, size / 4, size / 4)`` logits.

        Returns:
            ``(B, 1, size / 4, size / 4)``, or ``(N, 1, …)``; for several classes ``(B, K + 1, …)``, for a softmax.

        Raises:
            ValueError: a prompt for several classes.
        """
        sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=masks)
        inputs = {
            "image_embeddings": embeddings,
            "image_pe": self.prompt_encoder.get_dense_pe(),
            "sparse_prompt_embeddings": sparse,
            "dense_prompt_embeddings": dense,
        }
        if self.outputs == 1:
            logits: Tensor = self.mask_decoder(**inputs, multimask_output=False)[0]
        elif boxes is not None or points is not None or masks is not None:
            raise ValueError("a SAM with several classes takes no prompts: it has no mask of a single object")
        else:
            logits = self.mask_decoder.predict_masks(**inputs)[0]
        return logits


MASK_STRIDE = 4
"""Stride of SAM's mask logits in pixels of the input."""


def inner_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns height and width in pixels of an image scaled into a ``size`` x ``size`` input.

    The longer side becomes ``size``. The shorter one is rounded to a multiple of 4 (SAM itself rounds to 1), so that
    the image ends on a pixel border of the quarter-resolution mask and the mask can be cropped to cover it exactly.
    """
    scale = size / max(height, width)

    def rounded(side: int) -> int:
        return max(MASK_STRIDE, round(side * scale / MASK_STRIDE) * MASK_STRIDE)

    return rounded(height), rounded(width)


def place(images: Tensor, size: int) -> Tensor:
    """Scales ``(B, C, H, W)`` to its :func:`inner_size`, with antialiasing if it becomes smaller."""
    height, width = images.shape[-2:]
    inner = inner_size(height, width, size)
    if (height, width) == inner:
        return images
    shrinks = inner[0] < height or inner[1] < width
    return F.interpolate(images, inner, mode="bilinear", align_corners=False, antialias=shrinks)


def pad(images: Tensor, size: int) -> Tensor:
    """Pads with zeros at the right and at the bottom to ``(B, C, size, size)``."""
    return F.pad(images, (0, size - images.shape[-1], 0, size - images.shape[-2]))


def crop(masks: Tensor, height: int, width: int, size: int) -> Tensor:
    """Crops ``(B, 1, size / 4, size / 4)`` to the part that covers exactly a ``height`` x ``width`` image."""
    inner = inner_size(height, width, size)
    return masks[..., : inner[0] // MASK_STRIDE, : inner[1] // MASK_STRIDE]


def embed(sam: PromptFreeSam, images: Tensor, size: int, bf16: Switch) -> Tensor:
    """Scales, normalises, pads and encodes.

    Args:
        sam: the SAM with the encoder.
        images: ``(B, 3, H, W)`` in [0, 1], RGB.
        size: side of its square input in pixels.
        bf16: bfloat16 for the encoder; float32 where the processor does not support it (``bf16_possible``).

    Returns:
        ``(B, 256, size / 16, size / 16)`` float32.
    """
    return encode(sam, pad(sam.normalise(place(images.float(), size)), size), bf16)


def encode(sam: PromptFreeSam, inputs: Tensor, bf16: Switch) -> Tensor:
    """Encodes ``(B, 3, size, size)``: the last step of :func:`embed`."""
    with autocast(inputs.device.type, bf16_possible(bf16, inputs.device.type)):
        return sam.encode(inputs).float()


STRIDE = 16
"""Stride of the embedding in pixels of the input, for every encoder here."""
LEAST_SIZE, LARGEST_SIZE = 64, 1024
"""Limits of the input's side in pixels: an embedding of at least 4 x 4; SAM was trained with 1024 px."""
WINDOW = 14 * STRIDE
"""Side of the largest attention window in pixels, in SAM's ViT and in TinyViT (whose others, of 56 and 112 px, divide
it): inputs of a multiple of it are divided into whole windows."""

SAM_BUILDERS: Registry[Callable[[int], nn.Module]] = Registry("SAM encoder")
"""Builders of the image encoder by name; the argument is the input's side in pixels."""

_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


def side_problems(where: str, size: Any) -> list[Problem]:
    """Returns the problem of an invalid side of SAM's square input: it must be a multiple of 16 from 64 to 1024."""
    if type(size) is int and size % STRIDE == 0 and LEAST_SIZE <= size <= LARGEST_SIZE:
        return []
    expected, hint = f"a multiple of {STRIDE} from {LEAST_SIZE} to {LARGEST_SIZE} pixels", ""
    if type(size) is int:
        nearest = min(range(LEAST_SIZE, LARGEST_SIZE + 1, STRIDE), key=lambda side: abs(side - size))
        hint = f"the nearest is {nearest}; {WINDOW} and {2 * WINDOW} fit the attention windows of the encoder"
    return [Problem(where, found=repr(size), expected=expected, hint=hint)]


def vit_encoder(size: int, *, width: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> nn.Module:
    """Builds segment-anything's ViT (Kirillov et al. 2023) for an input side that is a multiple of 16."""
    declare_torchvision_operators()
    from segment_anything.modeling import ImageEncoderViT

    return ImageEncoderViT(
        img_size=size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        global_attn_indexes=global_blocks,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        out_chans=256,
    )


_RENAMES = (
    (r"\.c\.weight$", ".conv.weight"),
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^layers\.(\d)\.blocks\.", r"stages.\1.blocks."),
)


def tiny_vit_trunk(conv_norm: Callable[[nn.Conv2d, nn.BatchNorm2d], nn.Module] | None = None) -> Any:
    """Builds MobileSAM's form of timm's TinyViT-5M, with random weights: no head, the last stage at stride 16.

    Args:
        conv_norm: builds the replacement of a convolution and its batch norm; ``None`` keeps timm's.

    Returns:
        a module with ``patch_embed`` (64 channels at stride 4) and ``stages`` (64, 128, 160 and 320 channels at strides
        4, 8, 16 and 16).
    """
    declare_torchvision_operators()
    from timm.models import create_model

    trunk: Any = create_model("tiny_vit_5m_224", pretrained=False, num_classes=0)
    trunk.head = nn.Identity()
    trunk.stages[3].downsample.conv2.conv.stride = (1, 1)  # MobileSAM: the embedding stays at stride 16
    if conv_norm is not None:
        replace_conv_norms(trunk, lambda pair: conv_norm(pair.conv, pair.bn))
    for module in trunk.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return trunk


def clear_caches(encoder: nn.Module) -> None:
    """Clears TinyViT's attention biases, which timm caches in eval mode and keeps when other weights are loaded."""
    for module in encoder.modules():
        getattr(module, "attention_bias_cache", {}).clear()


class TinyViTEncoder(nn.Module):
    """TinyViT-5M at output stride 16 with SAM's neck (Zhang et al. 2023, arXiv 2306.14289).

    Its windowed attention accepts any size, so no position table depends on ``size``. It uses the channels-last format
    and plain attention, which in bfloat16 on a CPU takes about two thirds of the time of timm's own
    (``benchmarks/encoder.py``): torch has no fused kernel for a bias of three dimensions and windows as small as these.

    Args:
        size: side of the square input in pixels; stored as ``img_size``, as in SAM's own encoder.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.img_size, self.trunk = size, tiny_vit_trunk()
        from segment_anything.modeling.common import LayerNorm2d

        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, 1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            LayerNorm2d(256),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Maps ``(B, 3, size, size)``, normalised as in SAM, to ``(B, 256, size / 16, size / 16)``."""
        features: Tensor = self.trunk.forward_features(images.contiguous(memory_format=torch.channels_last))
        return self.neck(features)


def fold_batch_norms(encoder: nn.Module) -> None:
    """Folds the batch norms of a :class:`TinyViTEncoder` into the convolutions before them, in place.

    The same function up to rounding, in less time (``benchmarks/teacher_fit.py``); for encoders whose convolutions are
    never trained. The names of the folded layers' tensors change: load weights before, and save only those of LoRA and
    decoder afterwards. Other encoders have no batch norm and are unchanged.
    """
    if isinstance(encoder, TinyViTEncoder):
        replace_conv_norms(encoder, lambda pair: pair.fuse().requires_grad_(False))


def replace_conv_norms(network: nn.Module, build_replacement: Callable[[Any], nn.Module]) -> None:
    """Replaces every convolution of a TinyViT with its batch norm (timm's ``ConvNorm``)."""
    from timm.models.tiny_vit import ConvNorm

    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ConvNorm):
                setattr(parent, name, build_replacement(child))


def from_mobile_sam(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of MobileSAM's checkpoint to those of :class:`TinyViTEncoder`, and drops its classifier."""
    renamed = {}
    for name, tensor in state.items():
        inner = name.removeprefix(_PARTS[0])
        if inner == name or inner.startswith("neck."):
            renamed[name] = tensor
        elif not inner.startswith(("norm_head.", "head.")):
            for pattern, replacement in _RENAMES:
                inner = re.sub(pattern, replacement, inner)
            inner = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", inner)
            renamed[f"{_PARTS[0]}trunk.{inner}"] = tensor
    return renamed


for _name, _width, _depth, _heads, _global in (
    ("vit_b", 768, 12, 12, (2, 5, 8, 11)),
    ("vit_l", 1024, 24, 16, (5, 11, 17, 23)),
    ("vit_h", 1280, 32, 16, (7, 15, 23, 31)),
):
    _vit = partial(vit_encoder, width=_width, depth=_depth, heads=_heads, global_blocks=_global)
    SAM_BUILDERS.register(_name)(_vit)
SAM_BUILDERS.register("vit_t")(TinyViTEncoder)


def build_sam(name: str, checkpoint: str | Path | None = None, size: int = 512) -> PromptFreeSam:
    """Builds a SAM for prompt-free decoding.

    Args:
        name: ``vit_t`` (MobileSAM), ``vit_b``, ``vit_l``, ``vit_h``, or a name added to ``SAM_BUILDERS``.
        checkpoint: the official weights file; ``None`` keeps random weights (tests, timing). Nothing is downloaded.
        size: side of the square input in pixels, a multiple of 16 from 64 to 1024; position tables are interpolated to
            it. If it is no multiple of 224, attention windows are padded, which costs time.

    Raises:
        Refused: an unknown name or size; a checkpoint that is missing, unreadable, or of another network.
    """
    require(side_problems("teacher -> size", size))
    sam = assemble(SAM_BUILDERS[name](size), size)
    if checkpoint is not None:
        _load(sam, name, Path(checkpoint))
    return sam.eval()


def assemble(image_encoder: nn.Module, size: int) -> PromptFreeSam:
    """Joins an image encoder with SAM's prompt encoder and mask decoder for an input side of ``size`` pixels."""
    declare_torchvision_operators()
    from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

    grid = size // STRIDE
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)
    return PromptFreeSam(
        image_encoder,
        PromptEncoder(256, (grid, grid), (size, size), STRIDE),
        MaskDecoder(transformer_dim=256, transformer=transformer),
    )


def _load(sam: PromptFreeSam, name: str, checkpoint: Path) -> None:
    state: dict[str, Tensor] = safe_load(checkpoint)
    state = {key: tensor for key, tensor in state.items() if key.startswith(_PARTS)}
    if name == "vit_t":
        state = from_mobile_sam(state)
    like = sam.state_dict()
    state = fit_positions(state, like)
    if found := check_tensors(state, like=like, where=checkpoint.name):
        summary = f"another network's weights ({len(found)} such tensors)"
        hint = "set base to the SAM of these weights"
        mismatch = Problem(str(checkpoint), found=summary, expected=f"the weights of {name}", hint=hint)
        raise Refused([*found[:5], mismatch])
    with torch.no_grad():
        sam.load_state_dict(state)
