"""A federation of unlike toy networks around a labelled public set, so small that a round takes milliseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset
from monai.fl.utils.constants import ExtraItems
from monai.transforms import Compose, RandGaussianNoised
from torch import Tensor

from samfed_monai.federation import RunResult, SamFedAlgo
from samfed_monai.methods.heterogeneous import CondensationFusion, PublicMaskAlgorithm
from samfed_monai.protocol import Server, Strategy
from samfed_monai.transforms import LoadTargetd, PublicTargets, WeakViewd
from tests.federation.toys import BUNDLE, ToyImages, ToyNet, copied, run_clients

FILES = ["configs/train.json", "configs/unlike.json"]
#: Width of each site's network; the server's is 5.
WIDTHS = {"site-1": 4, "site-2": 6, "site-3": 4}
SERVER_WIDTH = 5
IMAGES = 6


class ToyPublic(CacheDataset):
    """Six labelled public images of 16 x 16 pixels, as ``SplitDataset`` gives them.

    Args:
        name: other names are other images, with two exceptions: ``public, turned`` is the same in another order,
            ``public, repainted`` has another file for one image.
        targets: where targets are taken from; ``None`` reads none.
        augment: random geometry and noise after the targets.
    """

    def __init__(self, name: str = "public", targets: PublicTargets | None = None, augment: bool = False) -> None:
        items = ToyImages("public", name.partition(",")[0], IMAGES).items
        if name.endswith("turned"):
            items = items[::-1]
        for index, item in enumerate(items):
            item |= {"index": index, "image_sha256": hashlib.sha256(item["image"].tobytes()).hexdigest()}
        if name.endswith("repainted"):
            items[3]["image_sha256"] = 64 * "0"
        views: list[Any] = [LoadTargetd(targets)] if targets is not None else []
        if augment:
            views += [WeakViewd(), RandGaussianNoised(keys="image", prob=0.5, std=0.1)]
        super().__init__(items, Compose(views), progress=False)


def label_masks() -> Tensor:
    """The labels as soft masks of 8 x 8: their cells' mean, so that they are the most reliable masks of that size."""
    pixels = torch.stack([torch.as_tensor(item["label"]) for item in ToyPublic()])
    return (torch.nn.functional.avg_pool2d(pixels, 2) * 255).to(torch.uint8)


@lru_cache
def toy_net(width: int) -> ToyNet:
    """A network that a short warm start on the public set has taught to see squares; the width decides how well."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ToyNet(width)
    items = ToyPublic()
    images, labels = (torch.stack([torch.as_tensor(item[key]) for item in items]) for key in ("image", "label"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)
    for _ in range(8):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(images), labels).backward()
        optimizer.step()
    return network


def server_algorithm(**overrides: Any) -> PublicMaskAlgorithm:
    """The toy bundle's client algorithm, as the server (or ``site``) has it."""
    parser = ConfigParser()
    parser.read_config([BUNDLE / name for name in FILES])
    parser.update(pairs={"site": "server", "width": SERVER_WIDTH, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return parser.get_parsed_content("client_algorithm")


def unlike_algo(site: str, *, output_dir: Path | None = None, **overrides: Any) -> SamFedAlgo:
    """A client with a network of its own."""
    bundle = {"site": site, "width": WIDTHS[site], **overrides}
    algo = SamFedAlgo(
        BUNDLE,
        vetted=True,
        output_dir=output_dir,
        config_train_filename=FILES,
        config_evaluate_filename=[*FILES, "configs/evaluate.json"],
        train_kwargs=dict(bundle),
        eval_kwargs=dict(bundle),
    )
    algo.initialize({ExtraItems.CLIENT_NAME: site})
    algo.load_network(toy_net(bundle["width"]).state_dict())
    return algo


def unlike_server(sites: Mapping[str, Any], rounds: int, **overrides: Any) -> Server:
    """The server's side, with everything that a strategy may ask for."""
    networks = {site: partial(ToyNet, WIDTHS.get(site, 4)) for site in sites}
    weights: dict[str, Tensor] = {k: t.clone() for k, t in toy_net(SERVER_WIDTH).state_dict().items()}
    return Server(
        sorted(sites), rounds, weights=weights, algorithm=lambda: server_algorithm(**overrides), networks=networks
    )


def run_unlike(
    path: Path,
    *,
    rounds: int = 2,
    strategy: Strategy | None = None,
    clients: Mapping[str, Any] | None = None,
    change: Callable[[dict[str, Any]], None] | None = None,
    server: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> tuple[RunResult, dict[str, Any], Strategy]:
    """A federation of two sites in ``path``; returns its result, its clients and its strategy.

    ``change`` gets the clients before the run; ``server`` overrides only the server's bundle, ``overrides`` all.
    """
    sites = dict(clients or {s: unlike_algo(s, output_dir=path / "evaluation", **overrides) for s in list(WIDTHS)[:2]})
    if change is not None:
        change(sites)
    trained = [site for site in sites if site not in (options or {}).get("unseen", ())]
    strategy = strategy or CondensationFusion(exchange=overrides.get("exchange", "predictions"), floor=0.0)
    own = unlike_server(trained, rounds, **{**overrides, **(server or {})})
    return run_clients(path, sites, rounds=rounds, strategy=strategy, server=own, **(options or {})), sites, strategy


def own_weights(client: SamFedAlgo) -> dict[str, Tensor]:
    """A copy of the weights of a client's own network."""
    return copied(client.trainer.network.state_dict())
