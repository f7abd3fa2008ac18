"""What the tests' processes leave out changes nothing that a test can see."""

from __future__ import annotations

import os
import sys
from types import ModuleType

from monai.bundle.config_item import ComponentLocator

from tests import speedups


def test_monais_classes_are_found_where_its_own_search_finds_them_and_new_modules_count(monkeypatch):
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


def test_one_search_is_made_for_all_parsers_of_the_same_modules(monkeypatch):
    speedups.search_once()
    monkeypatch.setattr(speedups, "_search", [lambda locator, names: searched.append(names) or {"A": ["monai.a"]}])
    searched: list[tuple[str, ...]] = []
    for _ in range(2):
        assert ComponentLocator(excludes=["of this test alone"]).get_component_module_name("A") in ("monai.a", None)
        ComponentLocator()._find_classes_or_functions(["monai.of_this_test"])
    assert searched.count(("monai.of_this_test",)) == 1


def test_no_disk_is_waited_for():
    assert os.fsync is speedups.flushed
