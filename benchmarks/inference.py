"""Images per second of each client network on the CPU: torch, ONNX Runtime and OpenVINO, in several precisions.

Backends are timed in turn. Each is compared with torch in float32 with eight images per batch. Times are processor
seconds with one thread, and wall-clock seconds with several. Masks are compared for the network with trained weights,
on synthetic skin images. Figures are recorded by network and number of threads; a run replaces only those that it
measures.
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
REFERENCE = "torch float32"
MIN_DICE = 0.995
Run = Callable[[Tensor], Tensor]


def samples(number: int) -> Tensor:
    """(N, 3, 224, 224) float32 in [0, 1], the same on every machine."""
    drawn = [render_scene(np.random.default_rng(seed), (SIZE, SIZE), PUBLIC["skin"])[0] for seed in range(number)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def in_batches(run: Run, size: int, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([run(images[at : at + size]) for at in range(0, len(images), size)])


def backends(network: nn.Module, images: Tensor, folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    runs = {
        REFERENCE: partial(in_batches, network, BATCH),
        "torch bfloat16": partial(in_batches, partial(AutocastInferer(True), network=network), BATCH),
    }
    for name, int8 in (("float32", False), ("int8 (dynamic)", True)):
        path = folder / f"{name}.onnx"
        try:
            export_network(network, "onnx", path, images=images, int8=int8)
        except Refused as refused:
            print(refused)
            return runs
        runs[f"ONNX Runtime {name}"] = partial(in_batches, OnnxNetwork(path), 1)
    if importlib.util.find_spec("openvino"):
        runs["OpenVINO"] = OnnxNetwork(folder / "float32.onnx", "openvino")
    return runs


def dice(logits: Tensor, reference: Tensor) -> float:
    one, other = logits > 0, reference > 0
    return 2 * int((one & other).sum()) / int(one.sum() + other.sum())


def measured(name: str, images: Tensor, repeats: int, threads: int) -> list[Figure]:
    network = client_network(name).eval()
    if name == TRAINED:
        network.load_state_dict(trained_weights(network, BUNDLE / "models" / "model.pt"))
    clock = time.process_time if threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        runs = backends(network, images, Path(folder))
        logits = {backend: run(images) for backend, run in runs.items()}
        times: dict[str, list[float]] = {backend: [] for backend in runs}
        for _ in range(repeats):
            for backend, run in runs.items():
                start = clock()
                run(images)
                times[backend].append(clock() - start)
    where = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
    figures, best = [], 1.0
    for backend, seconds in times.items():
        ratios = sorted(base / own for base, own in zip(times[REFERENCE], seconds, strict=True))
        ratio = statistics.median(ratios)
        details = {"ratio": ratio, "low": ratios[len(ratios) // 4], "high": ratios[-1 - len(ratios) // 4]}
        figures.append(Figure(f"{where}: {backend}", len(images) / statistics.median(seconds), unit="images/s"))
        if backend == REFERENCE:
            continue
        figures.append(Figure(f"{where}: {backend} against {REFERENCE}", ratio, details=details))
        if name == TRAINED:
            same = dice(logits[backend], logits[REFERENCE])
            figures.append(
                Figure(f"{where}: {backend}: Dice of masks to {REFERENCE}", same, MIN_DICE, at_least=True, unit="")
            )
            best = max(best, ratio if same >= MIN_DICE else 0.0)
    if name == TRAINED:
        figures.append(
            Figure(f"{where}: the fastest backend with equal masks against {REFERENCE}", best, 3.0, at_least=True)
        )
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
