"""Sharings that work on a trainer, on a network of six numbers and on the toy bundle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.fl.utils.constants import ExtraItems
from torch import Tensor, nn

from samfed_monai.core.io import read_json
from samfed_monai.federation import (
    ClientAlgoSite,
    LocalTransport,
    RoundController,
    RunFolder,
    RunResult,
    SamFedAlgo,
)
from samfed_monai.privacy import Privacy, site_release
from samfed_monai.protocol import Server, Strategy
from tests.federation.toys import BUNDLE, QUIET, ToyNet, toy_weights

TERM = {"_target_": "samfed_monai.methods.ditto.AnchoredTerm", "name": "ditto", "mu": 0.1}
#: Overrides of the toy bundle, as the variants of these names have them.
SHARINGS: dict[str, dict[str, Any]] = {
    "ditto": {"_target_": "samfed_monai.methods.ditto.DittoSharing", "term": "@ditto"},
    "fedala": {
        "_target_": "samfed_monai.methods.fedala.AdaptiveMixing",
        "rate": 50.0,
        "batches": 2,
        "first_batches": 3,
    },
    "apple": {"_target_": "samfed_monai.methods.apple.AppleSharing", "rate": 0.05, "fraction": 1.0},
}


class Six(nn.Module):
    """``a`` of four numbers, then ``b`` of two; the forward pass gives all six, whatever goes in."""

    def __init__(self, numbers: Sequence[float]) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(numbers[:4]))
        self.b = nn.Parameter(torch.tensor(numbers[4:]))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.a, self.b]).expand(len(images), 6)


def six(numbers: Sequence[float]) -> dict[str, Tensor]:
    """Weights of :class:`Six`."""
    return {name: tensor.detach() for name, tensor in Six(numbers).state_dict().items()}


def numbers_of(weights: Mapping[str, Tensor]) -> list[float]:
    """The six numbers."""
    return [*weights["a"].tolist(), *weights["b"].tolist()]


def half_square(prediction: Tensor, target: Tensor) -> Tensor:
    """``1/2 |prediction - target|^2`` of one item, whose gradient is their difference."""
    return 0.5 * (prediction - target).square().sum(dim=1).mean()


def six_trainer(network: nn.Module, optimizer: Any, handlers: Sequence[Any], target: Sequence[float], steps: int = 1):
    """A trainer whose loss is the distance of the six numbers from ``target``."""
    items = [{"image": torch.zeros(1), "label": torch.tensor(target)}] * steps
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=torch.utils.data.DataLoader(items, batch_size=1),  # type: ignore[arg-type]
        network=network,
        optimizer=optimizer,
        loss_function=half_square,
        train_handlers=list(handlers),
        decollate=False,
    )


def personal_algo(site: str, name: str, *, output_dir: Path | None = None, **overrides: Any) -> SamFedAlgo:
    """A client on the toy bundle with one of :data:`SHARINGS`."""
    common = {"network": "@network", "optimizer": "@optimizer", "site": "@site"}
    bundle: dict[str, Any] = {"site": site, "sharing": {**SHARINGS[name], **common}}
    bundle |= {"ditto": TERM} if name == "ditto" else {}
    bundle["train#handlers"] = [
        *(["@ditto"] if name == "ditto" else []),
        "@sharing",
        {"_target_": "tests.federation.toys.ToyTerms", "fail_in_round": "@fail_in_round"},
    ]
    bundle |= overrides
    algo = SamFedAlgo(BUNDLE, vetted=True, output_dir=output_dir, train_kwargs=dict(bundle), eval_kwargs=dict(bundle))
    algo.initialize({ExtraItems.CLIENT_NAME: site})
    algo.load_network(toy_weights())
    return algo


def run_personal(
    path: Path, name: str, strategy: Strategy, *, rounds: int = 3, **overrides: Any
) -> tuple[RunResult, dict[str, SamFedAlgo], Strategy]:
    """A federation of two sites, whose answers pass the sites' filter; what it came to."""
    algos = {s: personal_algo(s, name, output_dir=path / "evaluation", **overrides) for s in ("site-1", "site-2")}
    privacy = Privacy(least_images=1)
    workers = {
        site: ClientAlgoSite(site, algo, site_release(site, lambda algo=algo: algo, privacy, path))  # type: ignore[misc]
        for site, algo in algos.items()
    }
    networks = dict.fromkeys(algos, ToyNet)
    strategy.attach(Server(sorted(algos), rounds, weights=toy_weights(), networks=networks))
    with RunFolder(path).open({"rounds": rounds}, seeds={"seed": 0}) as folder:
        controller = RoundController(
            transport=LocalTransport(workers, progress=QUIET),
            strategy=strategy,
            folder=folder,
            rounds=rounds,
            progress=QUIET,
        )
        return controller.run(), algos, strategy


def files(path: Path, round: int) -> dict[str, str]:
    """Hashes of what a run stored of a round."""
    return read_json(path / "rounds" / f"{round:03d}" / "round.json")["files"]


def cut(whole: Path, to: Path) -> None:
    """The same run as it was before its last round of three."""
    shutil.copytree(whole, to)
    shutil.rmtree(to / "rounds" / "002")
