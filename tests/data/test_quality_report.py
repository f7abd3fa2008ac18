"""The data report: its numbers by hand, its page, its table."""

from __future__ import annotations

import base64
import csv
import io
import re
import stat
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from samfed_monai.data.checks import Facts, facts_of
from samfed_monai.data.datalist import DataList, Item, Site
from samfed_monai.data.prepare import prepare_folders
from samfed_monai.data.quality_report import OUTLINE, file_warnings, outline, overlay, report_on, rows
from tests.data.making import disc, options, picture, save, site


def item(name: str, digest: str, label: bool = True, group: str | None = None) -> Item:
    return Item(name, digest * 64, f"{name}.mask" if label else None, digest * 64 if label else None, group)


def fact(name: str, share: float | None = None, **kwargs) -> Facts:
    return Facts(name, height=3, width=4, mode="RGB", foreground=share, **kwargs)


def test_row_counts_contents_of_split():
    public = [item("1", "a", group="x"), item("2", "a", group="x"), item("3", "b"), item("4", "c")]
    facts = [
        fact("1", 0.0, mask_values=(0,)),
        fact("2", 1.0, mask_values=(255,)),
        fact("3", 0.25, mask_values=(0, 255), turned=True),
        Facts("4", height=9, width=9, mode="L", foreground=0.5),
    ]
    assert rows(DataList("list", public), {one.image: one for one in facts})[0] == {
        **{"site": "", "split": "public", "images": 4, "labelled": 4, "groups": 1, "empty": 1, "full": 1, "turned": 1},
        "sizes": [("4 × 3", 3), ("9 × 9", 1)],
        "modes": [("RGB", 3), ("L", 1)],
        "mask_values": [0, 255],
        "foreground": [0.1875, 0.375, 0.625],
    }


def test_every_split_has_row_and_only_listed_masks_count():
    table = rows(DataList("list", [], {"a": Site([item("1", "a", label=False)])}), {"1": fact("1", 0.5)})
    found = [(row["split"], row["images"], row["labelled"]) for row in table]
    assert found == [("public", 0, 0), ("unlabelled", 1, 0), ("validation", 0, 0), ("test", 0, 0)]
    assert table[1]["foreground"] is None


@pytest.mark.parametrize(
    ("masks", "better", "misfit", "count"),
    [(10, 6, 0.4, 1), (8, 5, 0.021, 1), (8, 4, 0.4, 0), (7, 7, 0.4, 0), (8, 8, 0.02, 0)],
)
def test_fault_03_square_masks_fitting_better_turned_are_reported(masks, better, misfit, count):
    public = [item(str(number), f"{number:x}") for number in range(masks)]
    facts = [fact(str(number), 0.3, misfit=misfit if number < better else -0.4) for number in range(masks)]
    sentence = f"{better} of {masks} square masks of the public set fit their images better when transposed or rotated"
    assert file_warnings(DataList("list", public), facts) == [f"{sentence}: check the overlays"] * count


@pytest.mark.parametrize(
    ("share", "more", "named"),
    [
        *((0.9, {"border": 0.98}, "they look inverted"), (0.9, {"border": 0.97}, "")),
        (1.0, {"border": 1.0}, "0 empty and 1 full mask;"),
        (0.3, {"mask_values": (0, 1, 255)}, "are of 0, 1 and 255, and --mask-threshold 128 makes only 255"),
        (0.3, {"turned": True}, "1 labelled image of the public set has an EXIF orientation, which is applied"),
    ],
)
def test_fault_08_and_fault_64_doubtful_masks_and_turned_images_are_named(share, more, named):
    sentences = file_warnings(DataList("list", [item("1", "a")], mask_threshold=128), [fact("1", share, **more)])
    assert len(sentences) == bool(named)
    assert named in "".join(sentences)


CANARY = "Jane Doe, Room 7"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    root = folder / "data"
    site(root, "public", 3, 3)
    site(root, "A & <B>", 10, 10, first=100)
    exif = Image.Exif()
    exif[0x010E] = exif[0x8298] = CANARY  # description, copyright
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    for number in range(9):
        save(root / "public" / "images" / f"photo {number}.jpg", picture(50 + number, 24, 24), exif=exif)
        save(root / "public" / "masks" / f"photo {number}.png", disc(24, 24, radius=5))
    save(root / "public" / "masks" / "public_000.png", disc(radius=0))
    return prepare_folders(root, options(folder, public="public", report=True))


def test_page_is_self_contained_and_escaped(made):
    html = made.report.read_text()
    assert made.report.name == "list.report.html"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (made.report, made.report.with_suffix(".csv"))]
    assert modes == [0o600, 0o600], "images, and their names"
    assert not re.search(r'(src|href)="(?!data:|list\.report\.csv)', html)
    assert "A &amp; &lt;B&gt;" in html
    assert "<B>" not in html
    assert made.datalist.hash in html
    assert "the public set has 1 empty and 0 full masks" in html


def test_table_has_one_row_per_image(made):
    with made.report.with_suffix(".csv").open(newline="") as stream:
        rows = {row["image"]: row for row in csv.DictReader(stream)}
    assert len(rows) == 22
    wanted = {"width": "32", "height": "24", "mode": "RGB", "mask_values": "0", "foreground": "0.0"}
    assert wanted.items() <= rows["public/images/public_000.png"].items()
    assert rows["public/images/photo 0.jpg"]["mask_values"] == "0 255"


def test_fault_60_exif_is_not_in_lists_or_reports_and_list_alone_gives_report(made, tmp_path):
    texts = [made.path.read_text(), made.report.read_text(), made.report.with_suffix(".csv").read_text()]
    pictures = [base64.b64decode(code) for code in re.findall(r"base64,([^\"]+)", texts[1])]
    assert not any(b"Jane" in content for content in [*map(str.encode, texts), *pictures])
    assert len(pictures) >= 12
    assert not any(b"Exif" in content or Image.open(io.BytesIO(content)).getexif() for content in pictures)
    page = report_on(made.path, made.path.parent / "data", tmp_path / "again.html")
    assert page.read_text().count("<figure>") == made.report.read_text().count("<figure>")


def test_overlay_draws_outline_of_mask():
    drawn = overlay(np.zeros((10, 20, 3), np.uint8), np.ones((10, 20), np.uint8))
    assert drawn.shape == (92, 184, 3)
    assert (drawn[:2] == OUTLINE).all()
    assert (drawn[2:-2, 2:-2] == 0).all()
    assert outline(np.zeros((3, 3), bool)).sum() == 0


def test_masks_and_derived_pictures_among_images_are_named(tmp_path):
    saved = {"1.png": picture(0), "1_mask.png": disc(), "1_seg.jpg": disc(64, 64, radius=20), "3.png": disc(value=128)}
    for name, image in saved.items():
        save(tmp_path / name, image)
    datalist = DataList("list", [], {"a": Site([Item(name, "0") for name in saved])})
    look = "are only black and white, like masks: if they are masks, move them out of the images"
    masks, made = file_warnings(datalist, facts_of(datalist, tmp_path))
    assert masks == f"2 of 4 images of a, such as 1_mask.png, {look}"
    assert made.startswith("1 of 4 images of a, such as 1_seg.jpg, are named like another image plus suffix, in")


def test_dark_images_are_reported_with_used_bits():
    facts = [Facts(f"{n}.png", mode="I;16", brightest=brightest) for n, brightest in enumerate((16, 12, 255))]
    datalist = DataList("list", [], {"a": Site(unlabelled=[Item(fact.image, "0") for fact in facts])})
    look = "2 of 3 images of a, such as 0.png, are dark: their highest value is 16 of 255, as if 12 bits were stored in"
    assert file_warnings(datalist, facts) == [f"{look} 16: scale them to 16 bits"]
    brighter = [replace(fact, mode="RGB", brightest=value) for fact, value in zip(facts, (65, 64, 255), strict=True)]
    (sentence,) = file_warnings(datalist, brighter)
    assert sentence == "1 of 3 images of a, such as 1.png, are dark: their highest value is 64 of 255"
