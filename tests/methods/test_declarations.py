"""What a method declares is what its strategy and its data do."""

from __future__ import annotations

from pathlib import Path

import pytest

from samfed_monai.config.variants import declared, known_variants, methods
from samfed_monai.data import DataList
from samfed_monai.federation.participants import Participants
from samfed_monai.federation.workflow import client_config

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "samfed_skin"


@pytest.mark.parametrize("name", known_variants())
def test_a_method_exchanges_and_needs_what_it_declares(name: str) -> None:
    method, choices = declared(BUNDLE, name), {"a": {}, "b": {}}
    participants = Participants(client_config(BUNDLE, name, {}), DataList("", []), choices=choices, unseen=())
    if method.leaves_site:  # else it is of one site alone, and no federation
        assert participants.exchange == method.exchange
    own_labels = participants.supervised or participants.config.optional("oracle") is True
    assert own_labels == (method.labels in ("masks", "weak"))
    assert bool(participants.config.optional("images#weak_labels")) == (method.labels == "weak")


def test_every_variant_has_a_place_of_its_own_in_tables() -> None:
    places: dict[int, str] = {}
    for method in methods().values():
        assert places.setdefault(method.place, method.name) == method.name
    order = list(methods())
    for one, other in (("elcfs", "fedca"), ("fedca", "see_few"), ("elcfs_labelled", "fedicra"), ("fedicra", "see")):
        assert order.index(other) == order.index(one) + 1
