"""A SAM of two small blocks in the catalogue of a process; as a module: the process that trains, with it."""

from __future__ import annotations

from typing import Any

import torch

from samfed_monai.flare.worker import make_federated_site, serve
from samfed_monai.networks import CLIENT_NETWORKS
from samfed_monai.networks.sam.build import SAM_BUILDERS, build_sam, vit_encoder
from samfed_monai.networks.sam.network import SamNetwork

NAME = "tiny_sam"


def encoder(size: int) -> Any:
    return vit_encoder(size, width=16, depth=2, heads=2, global_blocks=(1,))


def network(in_channels: int = 3, out_channels: int = 1, size: int = 256, **knobs: Any) -> SamNetwork:
    """The same frozen weights in every process: they never travel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sam = build_sam(NAME, None, size)
    return SamNetwork(sam, size, **knobs)


def catalogues() -> list[tuple[dict[str, Any], Any]]:
    """Where the name is to stand, and for what."""
    return [(SAM_BUILDERS._entries, encoder), (CLIENT_NETWORKS._entries, network)]


def register() -> None:
    for entries, builder in catalogues():
        entries[NAME] = builder


if __name__ == "__main__":
    register()
    serve(make_federated_site)
