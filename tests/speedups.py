"""Shortcuts for the tests' processes that do not affect what tests check."""

from __future__ import annotations

import os
import sys
from functools import cache, partial
from typing import Any


def flushed(descriptor: int) -> None:
    """Replaces ``os.fsync``, which only matters in a power failure.

    Tests that a file *is* flushed use a function of their own.
    """


def search_once() -> None:
    """Makes all of MONAI's ``ConfigParser`` share one search of its modules.

    It does nothing until MONAI is imported, which takes seconds and which many tests do not need.
    """
    parsing = sys.modules.get("monai.bundle.config_item")
    if parsing is not None and parsing.ComponentLocator._find_classes_or_functions is not _classes:
        _search.append(parsing.ComponentLocator._find_classes_or_functions)
        parsing.ComponentLocator._find_classes_or_functions = _classes


_UNDRAWN: dict[tuple[str, str], Any] = {("samfed_monai.reports.html", "run_figures"): lambda run: []}

_drawn: dict[tuple[str, str], Any] = {}


def pictures(drawn: bool) -> None:
    """Enables or disables the curves of runs and reports, which take up to half of the time of a small run.

    It does nothing until the module that draws them is imported, which takes a second and which many tests do not need.
    """
    for (module, name), undrawn in _UNDRAWN.items():
        if (drawing := sys.modules.get(module)) is not None:
            _drawn.setdefault((module, name), getattr(drawing, name))
            setattr(drawing, name, _drawn[module, name] if drawn else undrawn)


SMALL_NETWORKS = "SAMFED_TESTS_SMALL_NETWORKS"
"""Environment variable that is set while networks are small, for the processes that tests fork."""

_full_size: dict[str, Any] = {}


def small_networks(small: bool) -> None:
    """Replaces networks in tests of federations by some with ten thousand parameters instead of millions, or restores.

    Handling the weights in a round (initial values, checks, hashes, files, messages) takes longer than its two steps.
    ``basic_unet`` keeps its tensor names; ``flexible_unet_resnet18``, the second network of heterogeneous federations,
    becomes another one with batch norm. Tests of networks themselves use the real ones: see ``conftest.py``.
    """
    if small == (SMALL_NETWORKS in os.environ and bool(_full_size)):
        return
    from monai.networks.nets import BasicUNet

    from samfed_monai.networks.catalogue import CLIENT_NETWORKS, limit_inputs

    def other(in_channels: int, out_channels: int) -> Any:
        network = BasicUNet(2, in_channels, out_channels, features=(12, 12, 12, 12, 12, 12), norm="batch")
        return limit_inputs(network, multiple=32)

    networks = CLIENT_NETWORKS._entries
    if small:
        _full_size.update({name: networks[name] for name in ("basic_unet", "flexible_unet_resnet18")})
        networks["basic_unet"] = partial(networks["basic_unet"], features=(8, 8, 8, 8, 8, 8))
        networks["flexible_unet_resnet18"] = other
        os.environ[SMALL_NETWORKS] = "1"
    else:
        networks.update(_full_size)
        _full_size.clear()
        del os.environ[SMALL_NETWORKS]


_search: list = []


def _classes(locator: object, names: list[str]) -> dict[str, list[str]]:
    return _of_modules(tuple(names))


@cache
def _of_modules(names: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = _search[0](None, names)
    return found


search_once()  # for processes that import this module after MONAI: tests/forking.py
