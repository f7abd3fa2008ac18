"""Time of fitting a teacher (LoRA and decoder), by part, in processor milliseconds per image.

Images are rendered, with the size that ``--height`` and ``--width`` set. The fit starts from MobileSAM's weights. A fit
of one epoch is subtracted from one of three, so that times are those of an epoch without setup. A further figure
compares the encoder with batch norms to the encoder with folded ones, which the fit and the frozen teacher use.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Figure, record, side_by_side
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from teacher_precision import checkpoint

from samfed_monai.config import find_bundle
from samfed_monai.data import load_records, render_synthetic
from samfed_monai.networks.sam.build import build_sam, embed, fold_batch_norms
from samfed_monai.teacher import TeacherFit, training
from samfed_monai.teacher.views import ViewedImages

TOTAL = "all"
PARTS = {
    "views": (ViewedImages, "view"),
    "encoder, forward": (training.TrainedSam, "encode"),
    "step: encoder, decoder, backward, optimizer": (SupervisedTrainer, "_iteration"),
    "average": (training.Training, "_end_step"),
    "held-out exam": (training.Training, "_select_weights"),
    "progress on disk": (training, "save_state"),
    TOTAL: (TeacherFit, "_fit"),
}


def timed(spent: Counter[str], name: str, do: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Calls ``do`` and adds its processor seconds to ``spent``."""
    started = time.process_time()
    try:
        return do(*given, **named)
    finally:
        spent[name] += time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--height", type=int, default=768)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    spent: Counter[str] = Counter()
    for name, (owner, method) in PARTS.items():
        own = getattr(owner, method)
        # a closure, since a partial object on a class would not bind the instance
        setattr(owner, method, lambda *given, own=own, name=name, **named: timed(spent, name, own, *given, **named))
    parser = ConfigParser()
    parser.read_config(find_bundle("samfed_skin") / "configs" / "teacher.json")
    parser["size"] = options.size
    settings: dict[str, Any] = {"transform": parser.get_parsed_content("preprocessing"), "size": options.size}
    settings |= {"checkpoint": checkpoint(), "progress": False}
    totals = []
    with tempfile.TemporaryDirectory() as folder:
        size = (options.height, options.width)
        held_out = max(1, options.images // 10)
        datalist = render_synthetic(folder, sites=1, images_per_site=4, public=options.images + held_out, size=size)
        records = load_records(datalist, folder, split="public", with_labels=True)
        parts = {"train_records": records[held_out:], "held_out_records": records[:held_out]}
        for epochs in (1, 3):
            spent.clear()
            output = Path(folder) / f"{epochs}.safetensors"
            TeacherFit(**parts, output=output, epochs=epochs, **settings).run()
            totals.append(Counter(spent))
    more = {name: (totals[1][name] - totals[0][name]) / 2 for name in PARTS}  # per epoch
    what = f"{options.size} px, images of {options.width} x {options.height}"
    figures = [Figure(f"{what}: {name}", 1e3 * more[name] / options.images, unit="ms") for name in PARTS]

    plain, folded = (build_sam("vit_t", checkpoint(), options.size).requires_grad_(False) for _ in range(2))
    fold_batch_norms(folded.image_encoder)
    image = torch.rand(1, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    encode = partial(embed, images=image, size=options.size, bf16="auto")
    times = side_by_side(
        partial(encode, folded), partial(encode, plain), repeats=options.repeats, clock=time.process_time
    )
    figures.append(
        Figure(f"encoder, {options.size} px: with batch norms against folded ones", times["ratio"], details=times)
    )
    record(__file__, figures)


if __name__ == "__main__":
    main()
