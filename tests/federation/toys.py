"""A bundle's parts, a client and a run so small that a round takes milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from monai.transforms import Compose, RandGaussianNoised
from torch import Tensor, nn
from torch.utils.data import Dataset

from samfed_monai.core.io import safe_load
from samfed_monai.core.seeds import derive_seed
from samfed_monai.federation import LocalTransport, Progress, RoundController, RunFolder, RunResult, SamFedAlgo
from samfed_monai.federation.run_folder import round_record
from samfed_monai.federation.site import ClientAlgoSite
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.privacy.release import ReleaseFilter
from samfed_monai.protocol import Kind, Message, Server, Strategy, UpdateGuard
from samfed_monai.protocol.transport import Task, Transport

BUNDLE = Path(__file__).parent / "toy_bundle"
QUIET = Progress(show=False)
RECORD = round_record(0, 3, {}, {})  # without sites


class FilteredSite(ClientAlgoSite):
    """A site whose replies pass a release filter."""

    def __init__(self, site: str, client: Any, release: ReleaseFilter) -> None:
        super().__init__(site, client)
        self.release = release

    def answer(self, task: Task, message: Message) -> Message:
        return self.release(task, message, super().answer(task, message))


class ToyNet(nn.Sequential):
    """A convolution, a batch norm (with its integer counter) and a convolution: 3 -> 1 channels."""

    def __init__(self, width: int = 4) -> None:
        last = nn.Conv2d(width, 1, 3, padding=1)
        super().__init__(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), last)


class ToyImages(Dataset):
    """Random images with a bright square, different at every site; the square is the label."""

    def __init__(self, site: str, split: str, count: int, noise: float = 0.0) -> None:
        random = np.random.default_rng(derive_seed(0, site, split))
        self.items = []
        for index in range(count):
            image, label = random.random((3, 16, 16), dtype=np.float32) * 0.5, np.zeros((1, 16, 16), dtype=np.float32)
            top, left = random.integers(0, 10, 2)
            label[:, top : top + 6, left : left + 6] = 1
            self.items.append({"image": image + 0.5 * label, "label": label, "id": f"{site}-{split}-{index}"})
        self.transform = Compose([RandGaussianNoised(keys="image", prob=0.5, std=noise)]) if noise else None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = dict(self.items[index])
        # never "if self.transform": the length of a MONAI Compose is found by building another one, which reseeds
        return item if self.transform is None else self.transform(item)


class ToyTerms:
    """Leaves the means of two terms on the trainer's state, and fails in a given round."""

    def __init__(self, fail_in_round: int = -1) -> None:
        self.fail_in_round = fail_in_round

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        if getattr(engine.state, "round", 0) == self.fail_in_round:
            raise FileNotFoundError(2, "No such file or directory", "/secret/Jane Doe/lesion.png")
        engine.state.term_means = {"supervised": engine.state.output["loss"].item(), "agreement": 0.5}


class FixedClient:
    """A MONAI FL client without a bundle: adds a fixed step to every weight it is sent."""

    def __init__(self, site: str, *, step: float = 0.0, n: int = 1, dice: float = 0.5) -> None:
        self.site, self.step, self.n, self.dice = site, step, n, dice
        self.weights: dict[str, Tensor] = {}
        self.trained: list[int] = []

    def train(self, data: ExchangeObject, extra: dict) -> None:
        self.trained.append(extra["round"])
        self.weights = {
            name: tensor + self.step if tensor.is_floating_point() else tensor + 1
            for name, tensor in data.weights.items()
        }

    def get_weights(self, extra: dict) -> ExchangeObject:
        answer = ExchangeObject(weights=self.weights, metrics={"seconds": 0.0})
        answer["samfed"] = self.header(extra, Kind.WEIGHTS)
        return answer

    def evaluate(self, data: ExchangeObject, extra: dict) -> ExchangeObject:
        answer = ExchangeObject(metrics={"dice": self.dice, "iou": 0.25, "hd95": 2.0, "empty_both": 1})
        answer["samfed"] = self.header(extra, Kind.METRICS)
        return answer

    def header(self, extra: dict, kind: Kind) -> dict:
        return Message(kind, self.site, extra["round"], extra["rounds"], extra["seed"], n=self.n).header()


class RogueClient(FixedClient):
    """Changes its answer, or raises, in given rounds."""

    def __init__(self, site: str, *, change: Any, rounds: Sequence[int] = (0,), **options: Any) -> None:
        super().__init__(site, **options)
        self.change, self.rounds = change, rounds

    def get_weights(self, extra: dict) -> ExchangeObject:
        answer = super().get_weights(extra)
        if extra["round"] in self.rounds:
            self.change(answer)
        return answer


def weights(value: float = 1.0) -> dict[str, Tensor]:
    """A model of two tensors and a counter."""
    return {"w": torch.full((2, 3), value), "b": torch.full((2,), value), "count": torch.tensor(0)}


def model_of(folder: Path, round: int = 0) -> dict[str, Tensor]:
    """The model that a run stored after a round."""
    return safe_load(folder / f"rounds/{round:03d}/global.safetensors")


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same names and bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state that does not change with its network."""
    return {name: tensor.clone() for name, tensor in state.items()}


def toy_algo(site: str = "site-1", *, initialize: bool = True, **options: Any) -> SamFedAlgo:
    """A client on the toy bundle."""
    bundle = {"site": site, **options.pop("bundle", {})}
    options.setdefault("vetted", True)
    algo = SamFedAlgo(BUNDLE, train_kwargs=dict(bundle), eval_kwargs=dict(bundle), **options)
    if initialize:
        algo.initialize({ExtraItems.CLIENT_NAME: site})
    return algo


def toy_weights(seed: int = 0) -> dict[str, Tensor]:
    """Weights of a fresh toy network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(ToyNet().state_dict())


def controller(
    folder: RunFolder,
    clients: Mapping[str, Any],
    *,
    start: Mapping[str, Tensor] | None = None,
    guard: UpdateGuard | None = None,
    strategy: Strategy | None = None,
    server: Server | None = None,
    transport: Transport | None = None,
    rounds: int = 2,
    **options: Any,
) -> RoundController:
    """A controller over clients of this process, or over a ``transport`` to sites of these names."""
    sites = [site for site in sorted(clients) if site not in options.get("unseen", ())]
    server = server or Server(sites, rounds, weights=weights() if start is None else start, guard=guard)
    transport = transport or LocalTransport(clients, progress=QUIET)
    strategy = (strategy or FedAvg()).attach(server)
    return RoundController(
        transport=transport, strategy=strategy, folder=folder, rounds=rounds, progress=QUIET, **options
    )


def run_clients(path: Path, clients: Mapping[str, Any], **options: Any) -> RunResult:
    """A whole federation of such clients; ``options`` are those of :func:`controller`."""
    with RunFolder(path).open({}) as folder:
        return controller(folder, clients, **options).run()


def die(answer: ExchangeObject) -> None:
    """What a :class:`RogueClient` does whose site fails."""
    raise RuntimeError("out of luck at /home/site/Jane Doe.png")


def run_toy(path: Path, *, rounds: int, sites: Sequence[str] = ("site-1", "site-2"), **options: Any):
    """A whole federation on the toy bundle, as a user's job would run it."""
    clients = {site: toy_algo(site, output_dir=path / "evaluation") for site in sites}
    return run_clients(path, clients, start=toy_weights(), rounds=rounds, **options)
