from __future__ import annotations

from samfed_monai.data.checks import Facts
from samfed_monai.data.datalist import DataList, Item, Site
from samfed_monai.data.quality_report import doubts, rows


def item(name: str, digest: str, label: bool = True, group: str | None = None) -> Item:
    return Item(name, digest * 64, f"{name}.mask" if label else None, digest * 64 if label else None, group)


def fact(name: str, share: float | None = None, **kwargs) -> Facts:
    return Facts(name, height=3, width=4, mode="RGB", foreground=share, **kwargs)


def test_a_row_counts_what_a_split_holds():
    public = [item("1", "a", group="x"), item("2", "a", group="x"), item("3", "b"), item("4", "c")]
    facts = [
        fact("1", 0.0, mask_values=(0,)),
        fact("2", 1.0, mask_values=(255,)),
        fact("3", 0.25, mask_values=(0, 255), turned=True),
        Facts("4", height=9, width=9, mode="L", foreground=0.5),
    ]
    row = rows(DataList("list", public), {one.image: one for one in facts})[0]
    assert (row.site, row.split, row.images, row.labelled, row.groups) == ("", "public", 4, 4, 1)
    assert (row.empty, row.full, row.repeated, row.turned) == (1, 1, 1, 1)
    assert row.sizes == [("4 × 3", 3), ("9 × 9", 1)]
    assert row.modes == [("RGB", 3), ("L", 1)]
    assert row.mask_values == [0, 255]
    assert row.foreground == (0.1875, 0.375, 0.625)
    assert row.bins == [1, 0, 1, 0, 0, 1, 0, 0, 0, 1]


def test_every_split_of_a_site_has_a_row_and_masks_count_only_where_listed():
    datalist = DataList("list", [], {"a": Site([item("1", "a", label=False)])})
    table = rows(datalist, {"1": fact("1", 0.5)})
    assert [(row.split, row.images, row.labelled) for row in table] == [
        ("public", 0, 0),
        ("unlabelled", 1, 0),
        ("validation", 0, 0),
        ("test", 0, 0),
    ]
    assert table[1].foreground is None


def test_fault_03_square_masks_that_mostly_fit_better_when_turned_are_told():
    public = [item(str(number), f"{number:x}") for number in range(10)]
    facts = [fact(str(number), 0.3, misfit=0.4 if number < 6 else -0.4) for number in range(10)]
    assert doubts(DataList("list", public), facts) == [
        "6 of 10 square masks of the public set fit their images better when transposed or turned: look at the overlays"
    ]
    assert doubts(DataList("list", public), [fact(str(n), 0.3, misfit=-0.1) for n in range(10)]) == []


def test_fault_08_labelled_images_with_an_orientation_are_told():
    (sentence,) = doubts(DataList("list", [item("1", "a")]), [fact("1", 0.3, turned=True)])
    assert sentence.startswith("1 labelled image(s) of the public set carry an EXIF orientation, which is applied")
