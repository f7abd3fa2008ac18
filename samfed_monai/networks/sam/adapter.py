"""The adapter: the adapted weights of SAM in a small file, with the hash of the SAM that it belongs to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.io import check_tensors, parse_json, require_no_folder, safe_load, save_tensors
from samfed_monai.core.tensor_file import checksum
from samfed_monai.core.validators import require
from samfed_monai.networks.sam.build import PromptFreeSam
from samfed_monai.networks.sam.lora import apply_lora

_FORMAT = "samfed-adapter-1"
_HINT = "fit a new adapter with `samfed teach`, or choose the adapter made for this teacher"


class Adapt(str, Enum):
    """The part of SAM that is trained on the public images."""

    LORA = "lora"
    DECODER = "decoder"
    NONE = "none"


@dataclass(frozen=True)
class Adapter:
    """Header of an adapter file.

    Args:
        base: SAM's name, for instance ``vit_t``.
        base_sha256: SHA-256 of the checkpoint that the adapter was fitted on.
        adapt: the part that was trained.
        rank: LoRA rank; 0 without LoRA.
        size: side of the input in pixels.
        public_hash: hash of the public images and labels that it was fitted on.
        outputs: logits per pixel, K + 1 for K classes (``PromptFreeSam.add_class_masks``); not in files for one class.
        fit: the fit (settings, seed, history of the held-out Dice); for records only.
        checksum: checksum of the tensors, from :func:`save_adapter`.
    """

    base: str
    base_sha256: str
    adapt: Adapt
    rank: int
    size: int
    public_hash: str
    fit: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    checksum: str = field(default="", compare=False)


def prepare(sam: PromptFreeSam, adapt: Adapt, rank: int) -> dict[str, list[torch.nn.Parameter]]:
    """Freezes ``sam`` except for the parameters that ``adapt`` trains, and returns these.

    Returns:
        ``lora``, the low-rank matrices, if trained; ``decoder``, the prompt encoder and the mask decoder.
    """
    sam.requires_grad_(False)
    if adapt is Adapt.NONE:
        return {}
    low_rank = apply_lora(sam.image_encoder, rank) if adapt is Adapt.LORA else []
    sam.prompt_encoder.requires_grad_(True)
    sam.mask_decoder.requires_grad_(True)
    decoder = [*sam.prompt_encoder.parameters(), *sam.mask_decoder.parameters()]
    return {"lora": low_rank, "decoder": decoder} if low_rank else {"decoder": decoder}


def adapted_tensors(sam: PromptFreeSam) -> dict[str, Tensor]:
    """Returns the tensors of a :func:`prepare`-d SAM for its adapter: LoRA, prompt encoder, mask decoder."""
    return {
        name: tensor
        for name, tensor in sam.state_dict().items()
        if name.startswith(("prompt_encoder.", "mask_decoder.")) or name.endswith(("_a", "_b"))
    }


def save_adapter(path: str | Path, sam: PromptFreeSam, header: Adapter) -> None:
    """Writes the adapted tensors with their header as safetensors, atomically."""
    # a single key: safetensors writes several in random order, but the same adapter must give the same file
    tensors = adapted_tensors(sam)
    fields = asdict(header) | {"format": _FORMAT, "adapt": header.adapt.value, "checksum": checksum(tensors)}
    if header.outputs == 1:
        del fields["outputs"]
    save_tensors(path, tensors, {"adapter": json.dumps(fields, sort_keys=True)})


def read_header(path: str | Path) -> Adapter:
    """Reads the header of an adapter file without its tensors.

    Raises:
        Refused: the file is missing, unreadable or no adapter.
    """
    from safetensors import SafetensorError, safe_open

    require_no_folder(path, "a teacher's adapter")
    try:
        with safe_open(Path(path), framework="pt") as stream:
            metadata = stream.metadata() or {}
    except FileNotFoundError:
        hint = "check the path, or create the adapter with `samfed teach`"
        raise refused(str(path), found="no such file", expected="a teacher's adapter", hint=hint) from None
    except (SafetensorError, OSError) as error:
        raise refused(str(path), f"no safetensors file ({error})", "a teacher's adapter", _HINT) from None
    try:
        if "adapter" not in metadata:
            raise ValueError("no adapter header")
        fields = parse_json(metadata["adapter"])
        if fields.pop("format") != _FORMAT:
            raise ValueError("another format")
        return Adapter(**fields | {"adapt": Adapt(fields["adapt"])})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise refused(str(path), found=str(error), expected=f"format {_FORMAT!r}", hint=_HINT) from None


def load_adapter(path: str | Path, sam: PromptFreeSam, *, base: str, base_sha256: str, size: int) -> Adapter:
    """Loads an adapter into ``sam``, in place, after checking that it was made for it.

    Args:
        path: the adapter file.
        sam: a newly built SAM.
        base, base_sha256, size: those of ``sam``; the adapter's must be the same.

    Raises:
        Refused: all mismatches together; tensors that are missing, of another shape, not finite, or changed since they
            were written (a flipped bit).
    """
    header = read_header(path)
    expected = {"base": base, "base_sha256": base_sha256, "size": size}
    require(
        Problem(f"{path} -> {key}", repr(found), repr(value), _hint(header, key))
        for key, value in expected.items()
        if value != (found := getattr(header, key))
    )
    if header.outputs > 1:
        sam.add_class_masks(header.outputs)
    prepare(sam, header.adapt, header.rank)
    load_adapted(path, sam, header)
    return header


def load_adapted(path: str | Path, sam: PromptFreeSam, header: Adapter) -> None:
    """Loads an adapter's tensors into a :func:`prepare`-d SAM, in place.

    Raises:
        Refused: tensors that are missing, of another shape, not finite, or changed since they were written.
    """
    like = adapted_tensors(sam)
    tensors = safe_load(path)
    require(check_tensors(tensors, like=like, where=Path(path).name))
    if checksum(tensors) != header.checksum:
        hint = f"copy the file again from its source, or {_HINT}"
        raise refused(str(path), found="another checksum", expected="the tensors as written", hint=hint)
    sam.load_state_dict(tensors, strict=False)


def _hint(header: Adapter, key: str) -> str:
    """Returns the hint for an adapter with another ``key``."""
    if key == "base_sha256":
        return f"install the SAM weights that it was fitted on (`samfed weights`), or {_HINT}"
    value = getattr(header, key)
    return f"set {key} of teacher.json to {value} (in a federation --teacher#{key} {value}), or {_HINT}"
