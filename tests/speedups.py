"""What processes of the tests need not do again and again, where no test can see it."""

from __future__ import annotations

import os
import sys
from functools import cache, partial
from typing import Any


def flushed(descriptor: int) -> None:
    """In place of ``os.fsync``: only a power failure would show the difference.

    Tests that a file *is* flushed put a function of their own there.
    """


def search_once() -> None:
    """MONAI's ``ConfigParser`` looks through all its modules, each parser anew; here one does for all.

    It does nothing while MONAI is not imported: that takes seconds, and many tests need none.
    """
    parsing = sys.modules.get("monai.bundle.config_item")
    if parsing is not None and parsing.ComponentLocator._find_classes_or_functions is not _classes:
        _search.append(parsing.ComponentLocator._find_classes_or_functions)
        parsing.ComponentLocator._find_classes_or_functions = _classes


_UNDRAWN: dict[tuple[str, str], Any] = {("samfed_monai.reports.html", "run_figures"): lambda run: []}

_drawn: dict[tuple[str, str], Any] = {}


def pictures(drawn: bool) -> None:
    """A run and its report have their curves, or go without them: up to half of the time that a small run takes.

    It does nothing while what draws them is not imported: that takes a second, and many tests need none.
    """
    for (module, name), undrawn in _UNDRAWN.items():
        if (drawing := sys.modules.get(module)) is not None:
            _drawn.setdefault((module, name), getattr(drawing, name))
            setattr(drawing, name, _drawn[module, name] if drawn else undrawn)


SMALL_NETWORKS = "SAMFED_TESTS_SMALL_NETWORKS"
"""Variable that is set while networks are small, for the processes that tests fork."""

_full_size: dict[str, Any] = {}


def small_networks(small: bool) -> None:
    """Gives federations of the tests networks of some ten thousand parameters instead of millions, or their own again.

    What a round does with weights (initial values, checks, hashes, files, messages) takes longer than its two steps.
    ``basic_unet`` keeps its names; ``flexible_unet_resnet18``, which stands beside it where sites have unlike networks,
    is another one with batch norm. What tests say of a network itself is said of the real one: see ``conftest.py``.
    """
    if small == (SMALL_NETWORKS in os.environ and bool(_full_size)):
        return
    from monai.networks.nets import BasicUNet

    from samfed_monai.networks.catalogue import CLIENT_NETWORKS, require_intake

    def other(in_channels: int, out_channels: int) -> Any:
        network = BasicUNet(2, in_channels, out_channels, features=(12, 12, 12, 12, 12, 12), norm="batch")
        return require_intake(network, multiple=32)

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


search_once()  # for processes that import this module once they have MONAI: tests/forking.py
