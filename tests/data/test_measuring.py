from __future__ import annotations

from samfed_monai.data.datalist import DataList, Item, Site, few_to_measure


def items(name: str, count: int, *, masks: bool = True) -> list[Item]:
    label = ("m.png", "b" * 64) if masks else (None, None)
    return [Item(f"{name}/{number}.png", "a" * 64, *label) for number in range(count)]


def test_sites_with_a_small_split_to_measure_on_are_named():
    sites = {
        "enough": Site(items("u", 3, masks=False), items("v", 5), items("t", 5)),
        "few to validate": Site(items("u", 3), items("v", 4), items("t", 5)),
        "few to test": Site(items("u", 3), items("v", 5), items("t", 4)),
        "none drawn": Site(items("u", 3), [], []),
        "no masks": Site(items("u", 3, masks=False), [], []),
        "unseen": Site([], [], items("t", 5)),
        "few unseen": Site([], [], items("t", 4)),
    }
    named = ["few to validate", "few to test", "none drawn", "few unseen"]
    assert few_to_measure(DataList("list", [], sites), 5) == named
    assert few_to_measure(DataList("list", [], sites), 1) == ["none drawn"]
