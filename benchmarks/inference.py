"""Images a second of each catalogue network on the CPU: torch, ONNX Runtime and OpenVINO, in several precisions.

Forms are timed in turn; each is compared with torch in float32 and eight images at a time, as ``samfed infer`` runs it
unless set otherwise. On one thread the clock counts what a form takes of the processor, not what it waits for it; on
more it is the wall's. Masks are compared for the network that has trained weights, on its own kind of images.
``--networks`` and ``--threads`` choose a part, whose figures replace those of the same part alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import BUNDLE, Figure, record
from torch import Tensor, nn

from samfed_monai.core.errors import Refused
from samfed_monai.data.synthetic import PUBLIC, render_scene
from samfed_monai.handlers.model_loader import trained_weights
from samfed_monai.inference.export import OnnxNetwork, export_network
from samfed_monai.networks import CLIENT_NETWORKS, AutocastInferer, client_network

TRAINED = "mobile_sam_fpn"
SIZE, BATCH = 224, 8
TODAY = "torch float32"
LEAST_DICE = 0.995
Run = Callable[[Tensor], Tensor]


def samples(number: int) -> Tensor:
    """(N, 3, 224, 224) float32 in [0, 1], the same on every machine."""
    drawn = [render_scene(np.random.default_rng(seed), (SIZE, SIZE), PUBLIC["skin"])[0] for seed in range(number)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def in_batches(run: Run, size: int, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([run(images[at : at + size]) for at in range(0, len(images), size)])


def forms(network: nn.Module, images: Tensor, folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    made = {
        TODAY: partial(in_batches, network, BATCH),
        "torch bfloat16": partial(in_batches, partial(AutocastInferer(True), network=network), BATCH),
    }
    for name, int8 in (("float32", False), ("int8 (dynamic)", True)):
        path = folder / f"{name}.onnx"
        try:
            export_network(network, "onnx", path, images=images, int8=int8)
        except Refused as refused:
            print(refused)
            return made
        made[f"ONNX Runtime {name}"] = partial(in_batches, OnnxNetwork(path), 1)
    if importlib.util.find_spec("openvino"):
        made["OpenVINO"] = OnnxNetwork(folder / "float32.onnx", "openvino")
    return made


def dice(found: Tensor, wanted: Tensor) -> float:
    ours, theirs = found > 0, wanted > 0
    return 2 * int((ours & theirs).sum()) / int(ours.sum() + theirs.sum())


def measured(name: str, images: Tensor, repeats: int, threads: int) -> list[Figure]:
    network = client_network(name).eval()
    if name == TRAINED:
        network.load_state_dict(trained_weights(network, BUNDLE / "models" / "model.pt"))
    clock = time.process_time if threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        runs = forms(network, images, Path(folder))
        logits = {form: run(images) for form, run in runs.items()}
        times: dict[str, list[float]] = {form: [] for form in runs}
        for _ in range(repeats):
            for form, run in runs.items():
                begun = clock()
                run(images)
                times[form].append(clock() - begun)
    where = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
    figures, best = [], 1.0
    for form, taken in times.items():
        ratios = sorted(base / own for base, own in zip(times[TODAY], taken, strict=True))
        ratio = statistics.median(ratios)
        details = {"ratio": ratio, "low": ratios[len(ratios) // 4], "high": ratios[-1 - len(ratios) // 4]}
        figures.append(Figure(f"{where}: {form}", len(images) / statistics.median(taken), unit="images/s"))
        if form == TODAY:
            continue
        figures.append(Figure(f"{where}: {form} against {TODAY}", ratio, details=details))
        if name == TRAINED:
            same = dice(logits[form], logits[TODAY])
            figures.append(
                Figure(f"{where}: {form}: Dice of masks to {TODAY}", same, LEAST_DICE, at_least=True, unit="")
            )
            best = max(best, ratio if same >= LEAST_DICE else 0.0)
    if name == TRAINED:
        figures.append(Figure(f"{where}: the fastest with equal masks against {TODAY}", best, 3.0, at_least=True))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [name for name in CLIENT_NETWORKS if not name.startswith("sam_")]
    parser.add_argument("--networks", nargs="+", default=every, choices=every, metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = samples(BATCH)
    for name in options.networks:
        figures = measured(name, images, options.repeats, options.threads)
        record(__file__, figures, part=f"{name}, {options.threads} threads")


if __name__ == "__main__":
    main()
