"""Small networks that find something."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.core.io import save_tensors
from samfed_monai.networks import CLIENT_NETWORKS, client_network

ORGANS = ["kidney", "spleen"]


def small_model(path: Path, name: str = "basic_unet", **arguments: Any) -> Path:
    """Weights of a network at 32 px each of whose logits is centred on 0: of one class, or of ``classes``."""
    torch.manual_seed(0)
    network = client_network(name, **arguments).eval()
    with torch.no_grad():
        network.final_conv.bias -= network(torch.rand(2, 3, 32, 32)).mean(dim=(0, 2, 3))
    header = {"network_name": name, "image_size": "32"}
    header |= {"classes": json.dumps(arguments["classes"])} if "classes" in arguments else {}
    save_tensors(path, network.state_dict(), header)
    return path


def two_layers(path: Path, patch: pytest.MonkeyPatch, **arguments: Any) -> Path:
    """The same of a network of two layers, which is known by that name until the patch is undone."""

    def build(in_channels: int, out_channels: int) -> torch.nn.Module:
        first, last = torch.nn.Conv2d(in_channels, 8, 3, padding=1), torch.nn.Conv2d(8, out_channels, 1)
        return torch.nn.Sequential(OrderedDict(first=first, between=torch.nn.ReLU(), final_conv=last))

    patch.setitem(CLIENT_NETWORKS._entries, "two_layers", build)
    return small_model(path, "two_layers", **arguments)
