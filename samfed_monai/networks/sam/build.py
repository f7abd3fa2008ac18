"""``build_sam``: SAM without prompts, one small builder per image encoder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import check_tensors, safe_load
from samfed_monai.core.registry import Registry
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators

logger = logging.getLogger(__name__)


def fit_positions(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Interpolates absolute and relative position tables of a ViT encoder to the shapes of ``like``.

    Args:
        state: the checkpoint; ``pos_embed (1, h, w, C)`` bicubically, ``rel_pos_* (2 n - 1, c)`` linearly, as SAM's own
            ``get_rel_pos`` does. Everything else passes unchanged, and tables that fit already are not touched.
        like: names to tensors of the network that will load the result.
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

    Args:
        image_encoder: ``(B, 3, size, size)`` to ``(B, 256, size / 16, size / 16)``.
        prompt_encoder: segment-anything's ``PromptEncoder`` built for that embedding size.
        mask_decoder: segment-anything's ``MaskDecoder``.

    Its parameters carry SAM's own names. It does not resize or pad: see :mod:`samfed_monai.networks.sam.teacher`.

    Attributes:
        outputs: logits of a pixel, 1 unless :meth:`tell_apart` was called.
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

    def tell_apart(self, outputs: int) -> None:
        """Gives the mask decoder a mask for each of several classes, in place; it has to learn what they are.

        One mask token and one small network behind it for each, the background too (SAMed, Zhang and Liu, arXiv
        2304.13785, section 3.2); transformer and upscaling between them are shared. How they begin is ours: every class
        as a copy of SAM's single mask, the background with a logit of 0, so that all classes together are at first what
        SAM's sigmoid takes for foreground. Prompts make no sense to it any more: ``decode_prompts`` refuses them.
        SAM's own three masks of a part, a whole and the like are dropped.

        Args:
            outputs: K + 1 for K classes, 3 or more.

        Raises:
            ValueError: fewer than 3.
        """
        if outputs < 3:
            raise ValueError(
                f"tell_apart: expected 3 outputs or more (the background and two classes), found {outputs}"
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
        """``(B, 3, H, W)`` in [0, 1] to SAM's zero mean and unit variance; padding comes after, so that it is zero."""
        return (images - self.pixel_mean) / self.pixel_std

    def encode(self, normalised: Tensor) -> Tensor:
        """``(B, 3, size, size)`` normalised to embeddings ``(B, 256, size / 16, size / 16)``."""
        return self.image_encoder(normalised)

    def decode(self, embeddings: Tensor) -> Tensor:
        """Embeddings to logits ``(B, 1, size / 4, size / 4)`` of SAM's single-mask output; of several classes
        ``(B, K + 1, …)``, whose softmax counts.

        The decoder is written for many prompts on one image. Here every image shares the one empty prompt, which is
        passed once and broadcast over the batch.
        """
        return self._decode(embeddings)[0]

    def decode_prompts(
        self,
        embedding: Tensor,
        boxes: Tensor,
        points: tuple[Tensor, Tensor] | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """SAM as it was meant: one image, a box for each thing in it, and beside each points and a coarse mask.

        Args:
            embedding: ``(1, 256, size / 16, size / 16)``.
            boxes: ``(N, 4)`` left, top, right, bottom: pixel indices in the ``size`` x ``size`` input.
            points: ``(N, P, 2)`` x and y, pixel indices in the input, and ``(N, P)``: 1 foreground, 0 background.
            masks: ``(N, 1, size / 4, size / 4)`` logits.

        Returns:
            Logits ``(N, 1, size / 4, size / 4)`` of the single-mask output, and ``(N,)`` the IoU that SAM predicts.
        """
        logits, predicted_iou = self._decode(embedding, boxes, points, masks)
        return logits, predicted_iou[:, 0]

    def forward(self, normalised: Tensor) -> Tensor:
        """``(B, 3, size, size)`` normalised to logits ``(B, 1, size / 4, size / 4)``."""
        return self.decode(self.encode(normalised))

    def _decode(
        self,
        embeddings: Tensor,
        boxes: Tensor | None = None,
        points: tuple[Tensor, Tensor] | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=masks)
        given = {
            "image_embeddings": embeddings,
            "image_pe": self.prompt_encoder.get_dense_pe(),
            "sparse_prompt_embeddings": sparse,
            "dense_prompt_embeddings": dense,
        }
        if self.outputs == 1:
            logits, predicted_iou = self.mask_decoder(**given, multimask_output=False)
        elif boxes is not None or points is not None or masks is not None:
            raise ValueError("a SAM that tells classes apart takes no prompts: it has no mask of a single thing")
        else:
            logits, predicted_iou = self.mask_decoder.predict_masks(**given)
        return logits, predicted_iou


STRIDE = 16
"""Pixels of the input to one place of the embedding, along a side, of every encoder here."""
LEAST_SIZE, LARGEST_SIZE = 64, 1024
"""Pixels a side: an embedding of 4 x 4 at least; SAM itself saw nothing larger than 1024 px."""
WINDOW = 14 * STRIDE
"""Pixels a side of the largest attention window, in SAM's ViT and in TinyViT (whose others, of 56 and 112 px, divide
it): an input that it divides is cut into whole windows."""

SAM_BUILDERS: Registry[Callable[[int], nn.Module]] = Registry("SAM encoder")
"""Name to a builder of the image encoder for an input side in pixels."""

_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


def check_size(size: Any, where: str = "teacher -> size", expected: str = "") -> None:
    """Refuses a side that no encoder here takes.

    Args:
        size: side of the square input in pixels.
        where: its place, for the message.
        expected: what is allowed besides, for the message.

    Raises:
        Refused: anything but a multiple of 16 from 64 to 1024.
    """
    if type(size) is int and size % STRIDE == 0 and LEAST_SIZE <= size <= LARGEST_SIZE:
        return
    allowed = f"a multiple of {STRIDE} from {LEAST_SIZE} to {LARGEST_SIZE} pixels{expected}"
    hint = ""
    if type(size) is int:
        nearest = min(range(LEAST_SIZE, LARGEST_SIZE + 1, STRIDE), key=lambda side: abs(side - size))
        hint = f"the nearest is {nearest}; {WINDOW} and {2 * WINDOW} fill the windows of the encoder's attention"
    raise Refused([Problem(where, found=repr(size), expected=allowed, hint=hint)])


@cache  # once a process
def tell_padding(name: str, size: int) -> None:
    """Says that an input side leaves windows of SAM's attention half empty, with the nearest that fill them.

    Args:
        name: of the encoder; one that is not SAM's own has unknown windows.
        size: side of the square input in pixels.
    """
    if size % WINDOW == 0 or name not in ("vit_t", "vit_b", "vit_l", "vit_h"):
        return
    whole = size // WINDOW
    fitting = [side * WINDOW for side in (whole, whole + 1) if 0 < side * WINDOW <= LARGEST_SIZE]
    logger.info(
        "%s at %d px: windows of its attention are filled up with zeros, which costs time; nearest without: %s px",
        *(name, size, " and ".join(map(str, fitting))),
    )


def vit_encoder(size: int, *, width: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> nn.Module:
    """segment-anything's ViT (Kirillov et al. 2023) for any input side that 16 divides."""
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


@SAM_BUILDERS.register("vit_b")
def _vit_b(size: int) -> nn.Module:
    return vit_encoder(size, width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11))


@SAM_BUILDERS.register("vit_l")
def _vit_l(size: int) -> nn.Module:
    return vit_encoder(size, width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))


@SAM_BUILDERS.register("vit_h")
def _vit_h(size: int) -> nn.Module:
    return vit_encoder(size, width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))


@SAM_BUILDERS.register("vit_t")
def _vit_t(size: int) -> nn.Module:
    from samfed_monai.networks.sam.tiny_vit import TinyViTEncoder

    return TinyViTEncoder(size)


def build_sam(name: str, checkpoint: str | Path | None = None, size: int = 512) -> PromptFreeSam:
    """Builds a SAM for prompt-free decoding.

    Args:
        name: ``vit_t`` (MobileSAM), ``vit_b``, ``vit_l``, ``vit_h``, or a name added to ``SAM_BUILDERS``.
        checkpoint: the official weights file; ``None`` leaves the weights random (tests, timing). Nothing is
            downloaded.
        size: side of the square input in pixels, a multiple of 16 from 64 to 1024; position tables are interpolated to
            it. One that 224 does not divide pads windows of the attention, and a warning says so once.

    Raises:
        Refused: an unknown name or size; a checkpoint that is missing, unreadable, or of another network.
    """
    check_size(size)
    builder = SAM_BUILDERS[name]
    tell_padding(name, size)
    sam = assemble(builder(size), size)
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
        from samfed_monai.networks.sam.tiny_vit import from_mobile_sam

        prefix = _PARTS[0]
        encoder = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        state = {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}
        state |= {prefix + key: tensor for key, tensor in from_mobile_sam(encoder).items()}
    like = sam.state_dict()
    state = fit_positions(state, like)
    found = check_tensors(state, like=like, where=checkpoint.name)
    if found:
        expected = f"the weights of {name}"
        shown = Problems()
        shown.extend(found[:5])
        if len(found) > 5:
            shown.add(checkpoint.name, found=f"{len(found) - 5} more such tensors", expected=expected)
        shown.add(
            str(checkpoint), found="another network's weights", expected=expected, hint="name the base that they are of"
        )
        shown.refuse_if_any()
    with torch.no_grad():
        sam.load_state_dict(state)
