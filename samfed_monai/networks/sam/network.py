"""SAM as a client network: shared LoRA, personal experts, a global and a personal path (docs/personalised.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.core.errors import Problems, refused
from samfed_monai.core.validators import one_of, switch
from samfed_monai.networks.inferer import autocast
from samfed_monai.networks.key_patterns import KeySplit, split_keys
from samfed_monai.networks.sam.build import PromptFreeSam, build_sam, clear_caches, crop, pad, place, side_problems
from samfed_monai.networks.sam.experts import ExpertSwitch, LocalExperts, Routing, apply_experts, join_layers
from samfed_monai.networks.sam.lora import apply_checkpointing, apply_lora

LORA_KEYS = ("*.qkv.query_[ab]", "*.qkv.value_[ab]")
"""Patterns of LoRA's matrices."""
EXPERT_KEYS = ("*.mlp.experts.gate", "*.mlp.experts.down", "*.mlp.experts.up")
"""Patterns of L-MoE, which is never in an update."""
DECODER_KEYS = tuple(
    f"sam.mask_decoder.{part}.*"
    for part in ("transformer", "iou_token", "mask_tokens", "output_upscaling", "output_hypernetworks_mlps.0")
)
"""Patterns of the mask decoder's parts for its single mask; its other heads are not used and stay frozen."""
CLASS_KEYS = "sam.mask_decoder.output_hypernetworks_mlps.*"
"""Pattern of the heads of several classes, all of which are used (:meth:`PromptFreeSam.add_class_masks`)."""


class Decoder(str, Enum):
    """How the mask decoder is trained and shared."""

    PERSONAL = "personal"
    """Trained with the experts, never sent."""
    SHARED = "shared"
    """Trained with LoRA and aggregated."""
    FROZEN = "frozen"
    """Not trained."""


def sam_key_patterns(
    *, decoder: str = "personal", experts: bool = True, several: bool = False
) -> dict[str, tuple[str, ...]]:
    """Returns the patterns of the shared and the personal names of a SAM with LoRA.

    Args:
        decoder: see :class:`Decoder`.
        experts: whether it has L-MoE.
        several: whether it has several classes.
    """
    expert_keys = EXPERT_KEYS if experts else ()
    decoder_keys = (*DECODER_KEYS[:-1], CLASS_KEYS) if several else DECODER_KEYS
    return {
        "shared": LORA_KEYS + (decoder_keys if decoder == Decoder.SHARED else ()),
        "personal": expert_keys + (decoder_keys if decoder == Decoder.PERSONAL else ()),
    }


class SamPath(str, Enum):
    """The path of an image through a ``SamNetwork``."""

    GLOBAL = "global"
    """Low-rank updates only."""
    PERSONAL = "personal"
    """Low-rank updates and experts."""

    @property
    def other(self) -> SamPath:
        """The other path."""
        return SamPath.PERSONAL if self is SamPath.GLOBAL else SamPath.GLOBAL


@dataclass(frozen=True)
class SamOutputs:
    """Further outputs of a ``SamNetwork`` in train mode.

    Args:
        path: the path of the prediction.
        routing: the routing to experts; ``None`` on the global path and without gradient.
    """

    path: SamPath
    routing: Routing | None


def sam_outputs(prediction: Tensor) -> SamOutputs:
    """Returns the further outputs of a ``SamNetwork`` in train mode for a prediction.

    Args:
        prediction: the tensor that the network returned; copies and slices of it do not carry the outputs.

    Raises:
        Refused: a prediction of another network, or one made in eval mode.
    """
    outputs = getattr(prediction, "sam_outputs", None)
    if outputs is None:
        hint = "set network_name to sam_vit_t, or disable the terms that need its two paths"
        expected = "the prediction of a sam_vit network in train mode"
        raise refused("network", found="a prediction without two paths", expected=expected, hint=hint)
    return outputs


class SamNetwork(nn.Module):
    """Prompt-free SAM with LoRA and L-MoE in its frozen image encoder, with the interface of the client networks.

    ``network(image)`` uses ``network.path``, ``personal`` by default; ``path`` of a call overrides it. New experts add
    exactly 0: until they are trained, both paths are equal.

    LoRA, the experts and, unless ``decoder`` is ``frozen``, the mask decoder's parts in use are trained. The encoder
    stays in eval mode, so that batch norms of TinyViT keep the checkpoint's statistics.

    Args:
        sam: a SAM of ``build_sam``; it is changed in place.
        size: side in pixels of the input that it was built for.
        rank: rank of LoRA, see ``apply_lora``.
        experts, expert_rank, top: settings of L-MoE, see ``apply_experts``; ``experts`` 0 omits it.
        decoder: ``personal``, ``shared`` or ``frozen``, see :class:`Decoder`.
        full: full fine-tuning instead: every tensor is trained and shared, without LoRA and experts.
        checkpointing: recompute the encoder's blocks for the gradient instead of storing their activations.

    Raises:
        Refused: arguments out of range, all together.
    """

    def __init__(
        self,
        sam: PromptFreeSam,
        size: int,
        *,
        rank: int = 4,
        experts: int = 4,
        expert_rank: int = 4,
        top: int = 2,
        decoder: str = "personal",
        full: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        problems = Problems(one_of("network_def#decoder", decoder, Decoder))
        problems.extend(switch("network_def#full", full) + switch("network_def#checkpointing", checkpointing))
        self.sam, self.size, self.full, self.path = sam, size, full, SamPath.PERSONAL
        self.switch = ExpertSwitch()
        self.key_patterns: dict[str, tuple[str, ...]] = {"shared": ("*",)}
        if not full:
            sam.requires_grad_(False)
            with problems.collected():
                apply_lora(sam.image_encoder, rank, "network_def#rank")
            with problems.collected():
                if experts != 0:
                    self.switch = apply_experts(sam.image_encoder, experts, expert_rank, top)
        problems.refuse_if_any()
        if not full:
            self.key_patterns = sam_key_patterns(
                decoder=decoder, experts=bool(self.expert_layers), several=sam.outputs > 1
            )
            trained = {*self.key_split().shared, *self.key_split().personal}
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name in trained)
        if checkpointing:
            apply_checkpointing(sam.image_encoder, self.switch)
        self.train()

    @property
    def expert_layers(self) -> list[str]:
        """Names of the layers with experts, in the order of ``Routing``."""
        return [name for name, module in self.named_modules() if isinstance(module, LocalExperts)]

    def key_split(self) -> KeySplit:
        """Returns the shared, personal and frozen names of the state dict."""
        return split_keys(self.state_dict(), **self.key_patterns, where=type(self).__name__)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the trained parameters as an optimizer's groups ``shared`` and, unless empty, ``personal``."""
        split, parameters = self.key_split(), dict(self.named_parameters())
        names = {"shared": split.shared, "personal": split.personal}
        groups = {
            name: [parameters[key] for key in keys if key in parameters and parameters[key].is_floating_point()]
            for name, keys in names.items()
        }
        return [{"name": name, "params": group} for name, group in groups.items() if group]

    def train(self, mode: bool = True) -> SamNetwork:
        """Sets the mode of all modules except a frozen encoder, which stays in eval mode."""
        super().train(mode)
        if not self.full:
            self.sam.image_encoder.eval()
        return self

    def forward(self, image: Tensor, path: SamPath | str | None = None) -> Tensor:
        """Returns the logits of an image.

        Args:
            image: (B, 3, H, W) float in [0, 1], RGB, any H and W.
            path: path of this call; ``None`` uses ``network.path``.

        Returns:
            (B, 1, H, W) float32, for K classes (B, K + 1, H, W), upsampled from the decoder's quarter resolution. In
            train mode it carries :func:`sam_outputs`. The encoder runs in the precision of the surrounding autocast,
            the decoder in float32.
        """
        chosen = SamPath(self.path if path is None else path)
        height, width = image.shape[-2:]
        inputs = pad(self.sam.normalise(place(image.float(), self.size)), self.size)
        personal = chosen is SamPath.PERSONAL
        with self.switch.during(on=personal, measure=personal and self.training and torch.is_grad_enabled()) as records:
            if self.full:
                clear_caches(self.sam.image_encoder)
            embeddings = self.sam.encode(inputs)
        with autocast(inputs.device.type, False):
            masks = crop(self.sam.decode(embeddings.float()), height, width, self.size)
            logits = F.interpolate(masks, (height, width), mode="bilinear", align_corners=False)
        if self.training:
            # on the tensor, not the module: other passes may run before a term reads it
            logits.sam_outputs = SamOutputs(chosen, join_layers(records))  # type: ignore[attr-defined]
        return logits


def sam_network(
    base: str,
    *,
    in_channels: int = 3,
    out_channels: int = 1,
    size: int = 256,
    checkpoint: str | Path | None = None,
    **kwargs: Any,
) -> SamNetwork:
    """:class:`SamNetwork` for the catalogue, with SAM's own weights.

    Args:
        base: ``vit_t`` (MobileSAM), ``vit_b``, ``vit_l``, ``vit_h``, or a name added to ``SAM_BUILDERS``.
        in_channels: must be 3.
        out_channels: 1, or K + 1 for K classes, each with its mask token (:meth:`PromptFreeSam.add_class_masks`).
        size: side of SAM's square input in pixels, a multiple of 16 from 64 to 1024; images of any size are scaled into
            it.
        checkpoint: the official weights file; ``None`` searches the weights folder.
        kwargs: see :class:`SamNetwork`.

    Raises:
        Refused: other channels, an unsupported size, weights that are missing or of another network.
    """
    problems = Problems()
    problems.unless(in_channels == 3, "network_def#in_channels", in_channels, "3 for SAM")
    several = out_channels > 2
    problems.unless(several or out_channels == 1, "network_def#out_channels", out_channels, "1 for SAM, or 3 and more")
    problems.extend(side_problems("network_def#size", size))
    problems.refuse_if_any()
    if checkpoint is None:
        from samfed_monai.networks import find_checkpoint

        checkpoint = find_checkpoint(base)
    sam = build_sam(base, checkpoint, size)
    if several:
        sam.add_class_masks(out_channels)
    return SamNetwork(sam, size, **kwargs)


def require_experts(network: Any, where: str) -> None:
    """Refuses a network without L-MoE.

    Args:
        network: the network.
        where: name of the caller, for the message.
    """
    if not isinstance(network, SamNetwork):
        hint = "set network_name to sam_vit_t, sam_vit_b, sam_vit_l or sam_vit_h"
        raise refused(where, type(network).__name__, "a SAM network with experts", hint)
    if not network.expert_layers:
        hint = f"set network_def#experts to 4, or disable {where}"
        raise refused(where, "a SAM network without experts", "a network with experts", hint)
