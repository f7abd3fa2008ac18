"""The teacher's encoder in float32 against bfloat16: times, and the difference of their masks.

Uses MobileSAM's weights from ``$SAMFED_DATA/weights/mobile_sam.pt`` or the weights folder, on synthetic images.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
from common import Figure, record, side_by_side

from samfed_monai.data import load_records, render_synthetic
from samfed_monai.networks import Teacher, bf16_gains, find_checkpoint
from samfed_monai.teacher.evaluation import read_image_tensor


def checkpoint() -> Path:
    path = Path(os.environ.get("SAMFED_DATA", "")) / "weights" / "mobile_sam.pt"
    return path if path.is_file() else find_checkpoint("vit_t")


def images(count: int) -> list[torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        datalist = render_synthetic(folder, sites=1, images_per_site=4, public=count)
        records = load_records(datalist, folder, split="public")
        return [read_image_tensor(record).float() / 255 for record in records[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--images", type=int, default=12)
    options = parser.parse_args()
    path = checkpoint()
    exact, fast = (Teacher.load("vit_t", path, size=options.size, bf16=bf16) for bf16 in (False, True))
    pixels = images(options.images)
    if torch.cuda.is_available():
        exact, fast = exact.cuda(), fast.cuda()
    device = next(exact.parameters()).device

    pairs = [(exact.probabilities(image), fast.probabilities(image)) for image in pixels]
    errors = torch.stack([(a - b).abs().mean() for a, b in pairs])
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    flipped = torch.stack([((a > 0.5) != (b > 0.5)).float().mean() for a, b in pairs])

    turn = iter(range(10**9))
    times = side_by_side(
        lambda: fast.probabilities(pixels[next(turn) % len(pixels)]),
        lambda: exact.probabilities(pixels[next(turn) % len(pixels)]),
        repeats=len(pixels),
    )
    gains = bf16_gains(device.type)
    details = times | {"worst_probability_error": worst, "auto_uses_bf16": gains, "device": device.type}
    what = f"MobileSAM teacher, {options.size} px"
    record(
        __file__,
        [
            Figure(
                f"{what}, seconds in fp32 against bf16 (`auto` uses {'bf16' if gains else 'fp32'} here)",
                times["ratio"],
                details=details,
            ),
            Figure(f"{what}, mean error of bf16 on probabilities", 100 * float(errors.mean()), unit="%"),
            Figure(f"{what}, mask pixels that bf16 flips", 100 * float(flipped.mean()), unit="%"),
        ],
    )


if __name__ == "__main__":
    main()
