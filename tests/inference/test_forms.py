"""The page of ``samfed infer --page``: complete in one file, bounded, most doubtful first, and used in a browser."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfed_monai.inference import forms
from samfed_monai.inference.assessment import Assessment
from samfed_monai.inference.forms import MaskForms, MaskPage
from samfed_monai.reports.overlays import OUTLINES, area_of
from tests.browser import WIDTHS, is_too_wide, opened

HOSTILE = "<img src=x onerror=\"document.title='run'\">&'\"|"
MASKS = {  # name: expected Dice, flags, rows of the mask
    "b 10": (0.95, (), 5),
    "b 9": (0.95, ("touches the border",), 20),
    HOSTILE: (0.31, ("several pieces",), 10),
    "a": (0.6, ("several pieces", "touches the border"), 30),
}


def look(name: str, dice: float, flags: tuple[str, ...] = (), rows: int = 10, seconds: float | None = None):
    picture, mask = np.full((40, 60, 3), 200, np.uint8), np.zeros((40, 60), bool)
    mask[:rows, 10:50] = True
    bound = None if seconds is None else dice - 0.2
    return picture, mask, area_of(name, mask), Assessment(dice, bound, flags), seconds


@pytest.fixture
def page(tmp_path: Path) -> Path:
    made = MaskPage(["lesion"])
    for name, given in MASKS.items():
        made.add(*look(name, *given))
    (tmp_path / "looks.html").write_text(made.html())
    return tmp_path / "looks.html"


def shown_of(picture: np.ndarray, mask: np.ndarray):
    """The picture on the page, and its outlines."""
    made = MaskPage(["lesion"])
    made.add(picture, mask, area_of("x", mask > 0), Assessment(1.0))
    return made.looks[0]


def pixels(url: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))))


def test_picture_is_small_with_separate_outline_layer():
    picture, mask = np.full((900, 1200, 3), 200, np.uint8), np.zeros((900, 1200), bool)
    mask[300:600, 400:800] = True
    made = shown_of(picture, mask)
    photo, layer = pixels(made["picture"]), pixels(made["outline"])
    assert made["size"] == (448, 336)
    assert (photo.shape, layer.shape) == ((336, 448, 3), (336, 448, 4))
    assert len(made["picture"]) + len(made["outline"]) < 10_000
    shown = layer[..., 3] > 0
    assert tuple(layer[112, 220]) == (*OUTLINES["student"], 255)  # the upper edge, a third of the way down
    assert not shown[168, 220], "inside of the mask"
    assert not shown[20, 20], "outside"


@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_subpixel_mask_is_outlined(kind):
    mask = np.zeros((1344, 1344), kind)
    mask[700, 700] = 1
    assert pixels(shown_of(np.zeros((1344, 1344, 3), np.uint8), mask)["outline"])[233, 233, 3] == 255


def test_page_is_self_contained_escaped_and_sorted(page):
    text = page.read_text()
    assert re.findall(r"(?:src|href)=\"(?!data:)", text) == []
    assert "default-src 'none'" in text
    assert "<img src=x" not in text
    assert re.findall(r'data-dice="([\d.]+)"', text) == ["0.31", "0.6", "0.95", "0.95"]
    assert "4 masks, 2 doubtful" in text
    assert "not calibrated" in text
    assert "20.0&nbsp;% of the image, 480&nbsp;px" not in text
    assert "16.7&nbsp;% of the image, 400&nbsp;px" in text  # 10 rows of 40 columns, of 2400


@pytest.mark.parametrize(
    ("given", "there", "absent"),
    [
        (look("clip/000031", 0.8, seconds=61.26), ["at least 0.60", "at 1:01.3"], ["not calibrated"]),
        (look("a", 0.2, ("empty",), rows=0, seconds=1), ["Nothing is outlined."], ["&nbsp;px", "nine in ten"]),
    ],
    ids=["of a frame", "of an empty mask, of which it is 0"],
)
def test_lower_bound_and_time_are_shown(given, there, absent):
    made = MaskPage(["lesion"])
    made.add(*given)
    text = made.html()
    assert [word for word in there if word not in text] == [word for word in absent if word in text] == []


def test_only_most_doubtful_are_shown(monkeypatch):
    monkeypatch.setattr(forms, "MAX_PICTURES", 3)
    made = MaskPage(["lesion"])
    for n, dice in enumerate((0.9, 0.2, 0.8, 0.5, 0.2, 0.99)):
        made.add(*look(f"{n}", dice))
    assert [each["area"]["name"] for each in made.looks] == ["1", "4", "3"]
    text = made.html()
    assert "6 masks, 3 doubtful" in text
    assert "Only the 3 most doubtful of 6" in text


def test_unknown_form_raises(tmp_path):
    with pytest.raises(TypeError, match=r"MaskForms: expected overlays, .*, page, found looks"):
        MaskForms(tmp_path, ["a", "b"], looks="looks.html")


@pytest.mark.parametrize("width", WIDTHS)
def test_page_is_sorted_filtered_and_printed_in_browser(page, width):
    with opened(page.as_uri(), width) as browser:
        from selenium.webdriver.common.keys import Keys
        from selenium.webdriver.support.ui import Select

        def shown() -> list[str]:
            cards = browser.find_elements("css selector", "#looks article")
            return [card.get_attribute("data-name") for card in cards if card.is_displayed()]

        def field(name: str):
            return browser.find_element("name", name)

        assert not is_too_wide(browser)
        assert shown() == [HOSTILE, "a", "b 9", "b 10"]  # numbers in names count as numbers
        for order, names in {
            "least doubtful first": ["b 9", "b 10", "a", HOSTILE],
            "largest area first": ["a", "b 9", HOSTILE, "b 10"],
            "smallest area first": ["b 10", HOSTILE, "b 9", "a"],
            "most doubtful first": [HOSTILE, "a", "b 9", "b 10"],
        }.items():
            Select(field("sort")).select_by_visible_text(order)
            assert shown() == names
        Select(field("flag")).select_by_visible_text("touches the border")
        assert shown() == ["a", "b 9"]
        field("doubtful").send_keys(Keys.SPACE)
        assert shown() == ["a"]
        assert browser.find_element("css selector", "output").text == "1 of 4 shown"
        Select(field("flag")).select_by_index(0)
        field("name").send_keys("ONERROR")
        assert shown() == [HOSTILE]
        outline = browser.find_element("css selector", ".outline")
        assert outline.is_displayed()
        field("outlines").send_keys(Keys.SPACE)
        assert not outline.is_displayed()
        assert "doubtful" in browser.title
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert not field("sort").is_displayed()
        assert len(base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])) > 5_000
