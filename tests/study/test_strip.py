"""The strip of pictures on the documentation's first page."""

from PIL import Image

from study.strip import strip


def test_strip_crops_to_centre_and_joins_images():
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste((0, 0, 255), (10, 0, 20, 10))  # the middle third
    row = strip([wide, Image.new("L", (10, 10), 0)], side=5, gap=2)
    assert row.size == (12, 5)
    assert [row.getpixel((x, 2)) for x in (2, 5, 8)] == [(0, 0, 255), (255, 255, 255), (0, 0, 0)]
