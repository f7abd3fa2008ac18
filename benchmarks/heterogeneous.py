"""A round with mixed networks: bytes of both kinds of exchange, and time against FedAvg's round with the same steps.

Bytes: 4 sites (2 x ResNet-18, 2 x ResNet-34), ResNet-34 at the server, 100 public images at 384 px. The soft masks are
predictions of a ResNet-18 for synthetic images after a short warm start. Masks of noise, which cannot be compressed,
have a separate figure. Time: the variants ``hssf`` and ``no_sam`` take the same local steps. Their second rounds are
timed in turn, in processor seconds of one process. Each network must run over the public set exactly once per round.
The share of this pass depends on the ratio of a site's images to public images: HSSF's skin sites have 519 to 100 on
average (``104:20`` is a fifth of that). With fewer images per public image (``64:40``) the share is larger.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import BUNDLE, Figure, record

from samfed_monai.data import DataList, render_synthetic
from samfed_monai.federation import FederatedJob, RoundController
from samfed_monai.federation.start import warm_start
from samfed_monai.federation.workflow import WorkflowConfig
from samfed_monai.handlers import PublicPhase, PublicPredictor
from samfed_monai.methods.heterogeneous import CondensationFusion
from samfed_monai.networks import client_network
from samfed_monai.protocol import Kind, Message, wire_size

SITES = ["deeplabv3plus_resnet18"] * 2 + ["deeplabv3plus_resnet34"] * 2
SERVER = "deeplabv3plus_resnet34"


now = time.process_time
"""Processor seconds of this process, which other load on the machine hardly affects."""


class Clock:
    """Measures steps of RC and RF, passes over the public set, and whole rounds without evaluation, in seconds."""

    def __init__(self) -> None:
        self.steps = {"RC": 0.0, "RF": 0.0}
        self.passes: Counter[int] = Counter()
        self.pass_seconds, self.public, self.round = 0.0, 0, 0.0
        self._phase, self._masks, self._round = PublicPhase.run, PublicPredictor.masks, RoundController._round
        self._evaluate, self.evaluation = RoundController.scores, 0.0
        RoundController.scores = lambda *a, **k: self._timed_evaluation(*a, **k)  # type: ignore[method-assign]
        self._refine, self.condensing = CondensationFusion.refine, False
        CondensationFusion.refine = lambda *a: self._condensation(*a)  # type: ignore[method-assign]
        PublicPhase.run = lambda *a, **k: self._timed_phase(*a, **k)  # type: ignore[method-assign]
        PublicPredictor.masks = lambda *a, **k: self._timed_masks(*a, **k)  # type: ignore[method-assign]
        RoundController._round = lambda *a, **k: self._one_round(*a, **k)  # type: ignore[method-assign]

    def reset(self) -> None:
        self.steps, self.passes, self.pass_seconds, self.evaluation = {"RC": 0.0, "RF": 0.0}, Counter(), 0.0, 0.0

    def _timed_phase(self, phase: PublicPhase, *args: Any, **kwargs: Any) -> Any:
        start = now()
        result = self._phase(phase, *args, **kwargs)
        self.steps["RC" if self.condensing else "RF"] += now() - start
        return result

    def _timed_masks(self, predictor: PublicPredictor, network: torch.nn.Module) -> Any:
        seen: list[int] = []
        hook = network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
        start = now()
        result = self._masks(predictor, network)
        self.pass_seconds += now() - start
        hook.remove()
        if sum(seen) != self.public:
            raise AssertionError(f"a pass saw {sum(seen)} images; the public set has {self.public}")
        self.passes[id(network)] += 1
        return result

    def _condensation(self, strategy: CondensationFusion, round: int) -> None:
        self.condensing = True
        self._refine(strategy, round)
        self.condensing = False

    def _one_round(self, controller: RoundController, round: int, *args: Any) -> Any:
        self.reset()
        start = now()
        result = self._round(controller, round, *args)
        self.round = now() - start - self.evaluation
        return result

    def _timed_evaluation(self, *args: Any, **kwargs: Any) -> Any:
        start = now()
        result = self._evaluate(*args, **kwargs)
        self.evaluation += now() - start
        return result


def bytes_of_a_round(folder: Path, steps: int, public: int) -> list[Figure]:
    """Bytes of the messages of one round, counted as transports count them."""
    render_synthetic(folder, sites=1, images_per_site=1, public=public, validation=1, test=1).save(folder / "list.json")
    paths = {"datalist": str(folder / "list.json"), "data_root": str(folder), "bundle_root": str(BUNDLE)}
    given = {"image_size": 128, "network_name": SITES[0], "encoder_weights": None}
    config = WorkflowConfig(BUNDLE, ("configs/train.json",), {**paths, **given})
    datalist = DataList.load(folder / "list.json")
    weights, _ = warm_start(config, datalist=datalist, steps=steps, seed=0, cache_dir=folder)
    plain = config.with_overrides({"image_size": 384, "test#dataset#split": "public", "test#dataset#data": "@images"})
    network = client_network(SITES[0])
    network.load_state_dict(weights)
    dataset = plain.parser().get_parsed_content("test#dataset")
    masks = PublicPredictor(dataset=dataset, batch_size=8).masks(network)
    noise = torch.randint(0, 256, masks.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    states = {name: client_network(name).state_dict() for name in {*SITES, SERVER}}

    def size_of(kind: Kind, tensors: dict[str, torch.Tensor]) -> int:
        return wire_size(Message(kind, "site-1", 0, 30, tensors=dict(tensors)))

    down = {"weights": len(SITES) * size_of(Kind.WEIGHTS, states[SERVER])}
    up = {"weights": sum(size_of(Kind.WEIGHTS, states[name]) for name in SITES)}
    for name, each in (("predictions", masks), ("noise", noise)):
        down[name] = up[name] = len(SITES) * size_of(Kind.SOFT_MASKS, {"masks": each})
    total = {name: down[name] + up[name] for name in down}
    mega = {name: {"down_MB": down[name] / 1e6, "up_MB": up[name] / 1e6} for name in down}
    what = f"a round of 2 x ResNet-18, 2 x ResNet-34, D_p of {public}, 384 px: "
    share = {name: 100 * total[name] / total["weights"] for name in total}
    return [
        Figure(
            what + "bytes of `predictions` against `weights`", share["predictions"], bound=1.0, unit="%", details=mega
        ),
        Figure("the same, masks of noise", share["noise"], unit="%"),
        *(Figure(f"`{name}`: to the sites", down[name] / 1e6, unit="MB") for name in ("predictions", "weights")),
        *(Figure(f"`{name}`: from the sites", up[name] / 1e6, unit="MB") for name in ("predictions", "weights")),
    ]


def seconds_of_a_round(
    folder: Path, clock: Clock, images: int, public: int, options: argparse.Namespace
) -> list[Figure]:
    """Times second rounds of both variants in turn."""
    counts = {"images_per_site": images, "public": public, "validation": 2, "test": 2}
    render_synthetic(folder, sites=options.sites, **counts).save(folder / "list.json")
    clock.public = public
    client = {"image_size": options.size, "network_name": SITES[0], "mixed_networks": None, "server_network": None}

    def one_round(variant: str, repeat: int) -> float:
        FederatedJob(
            bundle_root=BUNDLE,
            datalist=folder / "list.json",
            data_root=folder,
            output_dir=folder / f"{variant}-{repeat}",
            cache_dir=folder / "cache",
            rounds=2,
            variant=variant,
            warm_start_steps=0,
            train=client,
        ).run()
        return clock.round

    # the final evaluation also adds to the clock, but to neither passes nor steps
    measured: list[dict[str, float]] = []
    for repeat in range(options.repeats):
        seconds = {}
        for variant in ("no_sam", "hssf") if repeat % 2 else ("hssf", "no_sam"):
            seconds[variant] = one_round(variant, repeat)
            if variant == "hssf":
                if sorted(clock.passes.values()) != [1] * (options.sites + 1):
                    raise AssertionError(f"passes of each network over the public set: {list(clock.passes.values())}")
                seconds |= {**clock.steps, "passes": clock.pass_seconds}
        print({name: round(value, 2) for name, value in seconds.items()}, flush=True)
        measured.append(seconds)
    where = f"{options.sites} sites, ResNet-18, {images} images each, D_p of {public}, {options.size} px"
    return figures_of(measured, where)


def figures_of(measured: list[dict[str, float]], where: str) -> list[Figure]:
    """Figures with medians over repeats; a ratio is the median of the ratios of single repeats."""

    def ratio(what: str, parts: list[str], bound: float | None) -> Figure:
        ratios = sorted(each["hssf"] / sum(each[part] for part in ["no_sam", *parts]) for each in measured)
        spread = {"low": ratios[len(ratios) // 4], "high": ratios[-1 - len(ratios) // 4]}
        return Figure(what, statistics.median(ratios), bound=bound, details={**median, **spread})

    median = {name: statistics.median(each[name] for each in measured) for name in measured[0]}
    names = {
        "RF": "steps of RF, all sites",
        "RC": "steps of RC, server",
        "passes": "one pass of each network over the public set",
    }
    return [
        ratio(f"{where}: round against FedAvg's plus the steps of RC and RF", ["RC", "RF"], 1.1),
        ratio("the same, with passes over the public set added to those steps", ["RC", "RF", "passes"], None),
        Figure("FedAvg's round, processor time", median["no_sam"], unit="s"),
        Figure("a round with mixed networks, processor time", median["hssf"], unit="s"),
        *(Figure(f"of that: {what}", median[name], unit="s") for name, what in names.items()),
    ]


def scale(text: str) -> tuple[int, int]:
    """Parses ``IMAGES:PUBLIC``, such as ``104:20``."""
    images, public = text.split(":")
    return int(images), int(public)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=4)
    scales = "unlabelled images per site and public images; may be repeated (default: 104:20 and 64:40)"
    parser.add_argument("--scale", type=scale, action="append", metavar="IMAGES:PUBLIC", help=scales)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--warm-start", type=int, default=60, help="steps of warm start before the predictions whose bytes are counted"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = bytes_of_a_round(Path(folder) / "bytes", options.warm_start, 100)
        for figure in figures:
            print(figure, flush=True)
        clock = Clock()
        for images, public in options.scale or [(104, 20), (64, 40)]:
            figures += seconds_of_a_round(Path(folder) / f"{images}-{public}", clock, images, public, options)
    record(__file__, figures)


if __name__ == "__main__":
    main()
