"""Cost of SAM's guidance per iteration, with soft masks from the store and with SAM in the training loop."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import Figure, record, side_by_side
from torch.nn import functional
from training import NO_SAM, READ_AVERAGE, Training, prepare

from samfed_monai.handlers import Guide
from samfed_monai.networks import Teacher, build_sam

SELF_LABELS = {
    "guides#sam#_disabled_": True,
    "terms#sam_kd#_disabled_": True,
    "terms#pseudo_label#teacher": "weak",
    "terms#pseudo_label#rule": "student",
}


class SamInTheLoop(Guide):
    """Runs the teacher on every batch instead of reading the store. Random weights take as long as trained ones."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__("sam")
        self.teacher = Teacher(build_sam(name, size=size), sha256="0" * 64, size=size)

    def __call__(self, batch: Mapping[str, Any], engine: Any) -> torch.Tensor:
        image = batch["image"]
        self.teacher.to(image.device)
        mask = self.teacher.probabilities(image)
        return functional.interpolate(mask, size=image.shape[2:], mode="bilinear", align_corners=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[128, 256], help="sizes of the student's images in pixels"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="iterations per timed call")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sam-size", type=int, default=512)
    parser.add_argument(
        "--teachers", nargs="*", default=["vit_t", "vit_b"], help="teachers to run in the loop, with random weights"
    )
    options = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        base = prepare(Path(folder), images=options.batch * options.steps)
        for size in options.sizes:
            base |= {"image_size": size, "batch_size": options.batch, "local_steps": options.steps}
            with_store = Training(base)
            for what, changes in (
                ("without any term that reads SAM", NO_SAM),
                ("with self pseudo-labels instead", SELF_LABELS),
            ):
                # both sides compute the averaged student, since its cost is not a cost of SAM's guidance
                times = side_by_side(Training(base, {**changes, **READ_AVERAGE}), with_store, repeats=options.repeats)
                what = f"student {size} px: iteration with the store against the same {what}"
                figures.append(Figure(what, times["ratio"], bound=1.05, details=times))
            for name in options.teachers:
                in_loop = Training(base)
                in_loop.replace_guide(SamInTheLoop(name, options.sam_size))
                repeats = options.repeats if name == "vit_t" else 3  # larger teachers are slow and have no bound
                times = side_by_side(with_store, in_loop, repeats=repeats)
                title = "MobileSAM" if name == "vit_t" else f"SAM ViT-{name[-1].upper()}"
                what = f"student {size} px: epoch with {title} ({options.sam_size} px) in the loop against the store"
                bound = 3.0 if name == "vit_t" else None
                figures.append(Figure(what, times["ratio"], bound=bound, at_least=True, details=times))
    record(__file__, figures)


if __name__ == "__main__":
    main()
