"""Fault 31: of the packages on the strict allow-list, no class that fetches, loads, compiles or writes."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache

import pytest

from samfed_monai.config.strict import CLASSES, DENIED, strict_target

ROOMS = ("ignite.metrics", "monai.inferers", "monai.losses", "monai.networks", "monai.transforms", "monai.metrics")
#: Arguments of constructors that fetch weights, load a file, write to a store, or import what a string names.
TELLING = {"pretrained", "pretrained_path", "pretrained_url", "path_or_repo_id", "checkpoint", "store", "merger_cls"}


def real_name(found: type) -> str:
    return f"{found.__module__}.{found.__qualname__}"


@cache
def spellings() -> dict[str, list[str]]:
    """The real name of every class in :data:`ROOMS` to every path by which a bundle can spell it."""
    found: dict[str, list[str]] = {}
    for module in _modules():
        for name, value in vars(module).items():
            if inspect.isclass(value):
                found.setdefault(real_name(value), []).append(f"{module.__name__}.{name}")
    return found


def _modules() -> Iterator:
    for room in ROOMS:
        package = importlib.import_module(room)
        yield package
        for each in pkgutil.walk_packages(package.__path__, f"{room}."):
            yield importlib.import_module(each.name)


def denied(name: str) -> bool:
    return any(name.startswith(entry) if entry.endswith(".") else name == entry for entry in DENIED)


@pytest.mark.parametrize("entry", DENIED)
def test_a_class_that_fetches_loads_compiles_or_writes_is_refused_however_it_is_spelt(entry):
    names = [name for name in spellings() if (name.startswith(entry) if entry.endswith(".") else name == entry)]
    paths = [path for name in names for path in spellings()[name]]
    assert paths, "it is there, or the entry is misspelt"
    for path in paths:
        [problem] = strict_target(path, "plan -> client#loss#_target_")
        assert problem.expected.startswith("a component of the strict allow-list"), path
        assert path in problem.found


@pytest.mark.parametrize(
    "path",
    [
        *("monai.losses.PerceptualLoss", "monai.losses.perceptual.PerceptualLoss"),
        *("monai.networks.nets.HoVerNet", "monai.networks.nets.Hovernet", "monai.networks.nets.hovernet.HoVerNet"),
        *("monai.networks.layers.GaussianMixtureModel", "monai.networks.layers.gmm.GaussianMixtureModel"),
        *("monai.inferers.ZarrAvgMerger", "monai.inferers.PatchInferer", "monai.networks.nets.Densenet121"),
    ],
)
def test_the_spellings_that_bundles_use_are_among_them(path):
    assert path in {each for name in spellings() if denied(name) for each in spellings()[name]}


@pytest.mark.parametrize(
    "path",
    ["monai.losses.DiceLoss", "monai.networks.nets.UNet", "monai.networks.nets.ResNet", "monai.inferers.AvgMerger"],
)
def test_their_neighbours_pass(path):
    assert strict_target(path, "here") == []


def test_no_listed_class_takes_pretrained_weights_a_store_or_the_name_of_a_class():
    listed = (name for name in spellings() if name.startswith(CLASSES) and not denied(name))
    telling = {}
    for name in listed:
        module, _, path = spellings()[name][0].rpartition(".")
        arguments = inspect.signature(getattr(importlib.import_module(module), path).__init__).parameters
        telling[name] = sorted(TELLING & arguments.keys())
    assert {name: arguments for name, arguments in telling.items() if arguments} == {}
