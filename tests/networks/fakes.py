"""A MobileSAM-like checkpoint with random weights and a handful of public images, for tests without real data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from samfed_monai.core.io import sha256_file
from samfed_monai.networks.sam.build import build_sam


def mobile_sam_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names of a vit_t state dict to MobileSAM's own: the inverse of ``from_mobile_sam``, written independently."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("image_encoder.trunk.", "image_encoder.")
        if name.startswith("image_encoder.") and ".neck." not in name:
            name = re.sub(r"\.conv\.weight$", ".c.weight", name)
            for ours, seq in (("conv1", 0), ("conv2", 2)):
                name = name.replace(f"patch_embed.{ours}.", f"patch_embed.seq.{seq}.")
            name = re.sub(r"stages\.(\d)\.blocks", r"layers.\1.blocks", name)
            name = re.sub(r"stages\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        renamed[name] = tensor
    return renamed


def fake_checkpoint(path: Path, seed: int = 0) -> Path:
    """Writes a vit_t with random weights under MobileSAM's names, class head included."""
    torch.manual_seed(seed)
    state = mobile_sam_names(build_sam("vit_t", size=256).state_dict())
    state["image_encoder.head.weight"] = torch.zeros(2, 320)
    torch.save(state, path)
    return path


def fake_records(folder: Path, count: int, size: tuple[int, int] = (32, 32)) -> list[dict[str, Any]]:
    """Writes images with a dark disc on a noisy ground, with masks, and returns their records."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[0], : size[1]]
    records = []
    for number in range(count):
        centre, radius = random.uniform(10, 22, 2), random.uniform(5, 9)
        mask = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        image = np.where(mask[..., None], 60, 200) + random.integers(0, 20, (*size, 3))
        paths = folder / f"{number}.png", folder / f"{number}_mask.png"
        Image.fromarray(image.astype(np.uint8)).save(paths[0])
        Image.fromarray(mask.astype(np.uint8) * 255).save(paths[1])
        record = {"image": str(paths[0]), "label": str(paths[1]), "id": str(number), "site": ""}
        records.append(record | {"image_sha256": sha256_file(paths[0])})
    return records
