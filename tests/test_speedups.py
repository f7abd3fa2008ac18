"""The shortcuts of the tests' processes do not change what tests check."""

from __future__ import annotations

import math
import os
import sys
from types import ModuleType

from monai.bundle.config_item import ComponentLocator

from samfed_monai.networks import client_network
from tests import speedups


def test_class_search_matches_monai_and_finds_new_modules(monkeypatch):
    speedups.search_once()
    locator = ComponentLocator(excludes=["monai.networks"])
    names = locator._find_module_names()
    assert locator._find_classes_or_functions(names) == speedups._search[0](locator, names)
    assert locator.get_component_module_name("Compose") == "monai.transforms.compose"
    assert locator.get_component_module_name("UNet") is None
    new = ModuleType("monai_of_a_test")
    new.Late = type("Late", (), {"__module__": new.__name__})
    monkeypatch.setitem(sys.modules, new.__name__, new)
    assert ComponentLocator().get_component_module_name("Late") == new.__name__


def test_class_search_is_cached_for_all_parsers(monkeypatch):
    speedups.search_once()
    monkeypatch.setattr(speedups, "_search", [lambda locator, names: searched.append(names) or {"A": ["monai.a"]}])
    searched: list[tuple[str, ...]] = []
    for _ in range(2):
        assert ComponentLocator(excludes=["of this test alone"]).get_component_module_name("A") in ("monai.a", None)
        ComponentLocator()._find_classes_or_functions(["monai.of_this_test"])
    assert searched.count(("monai.of_this_test",)) == 1


def test_fsync_is_replaced():
    assert os.fsync is speedups.flushed


def test_small_networks_are_reverted():
    names = ("basic_unet", "flexible_unet_resnet18")
    real = {name: shapes(name) for name in names}
    try:
        speedups.small_networks(True)
        small = {name: shapes(name) for name in names}
        assert os.environ[speedups.SMALL_NETWORKS]
    finally:
        speedups.small_networks(False)
    assert speedups.SMALL_NETWORKS not in os.environ
    assert {name: shapes(name) for name in names} == real
    assert all(sum(map(math.prod, found.values())) < 30_000 for found in small.values())
    assert small["basic_unet"].keys() == real["basic_unet"].keys()
    assert any("running_mean" in name for name in small["flexible_unet_resnet18"]), "batch norm"


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in client_network(name).state_dict().items()}


def test_figures_are_disabled_and_restored():
    from samfed_monai.reports import html

    try:
        speedups.pictures(False)
        assert html.run_figures(None) == []
    finally:
        speedups.pictures(True)
    assert html.run_figures.__module__ == "samfed_monai.reports.figures"
