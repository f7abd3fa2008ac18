from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from samfed_monai.data.reading import scan_fault
from tests.data.making import jpeg

OPTIONS = [
    {},
    {"progressive": True},
    {"optimize": True},
    {"subsampling": 0},
    {"restart_marker_rows": 1},
    {"quality": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (33, 17), (160, 120)], ids=str)
def test_sound_files_have_no_fault(options, mode, size):
    rng = np.random.default_rng(0)
    for pixels in (rng.integers(0, 256, (*size, 3), dtype=np.uint8), np.full((*size, 3), 7, np.uint8)):
        content = jpeg(Image.fromarray(pixels).convert(mode), **options)
        for tail in (b"", bytes(10), content):  # junk or a second picture after the first
            assert scan_fault(content + tail) is None


def test_real_images_have_no_fault(samfed_data):
    for path in sorted((samfed_data / "data" / "tiny").rglob("*.jpg")):
        assert scan_fault(path.read_bytes()) is None


def test_a_scan_that_lost_or_gained_bytes_is_found():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = jpeg(Image.fromarray(noise))
    middle = len(content) // 2
    early, late = content[:middle] + content[middle + 300 :], content[:middle] + content[middle - 300 :]
    assert scan_fault(early) == "a damaged scan: its data end before the picture does"
    assert scan_fault(late) == "a damaged scan: the picture ends before its data do"
    assert scan_fault(content[:-2]) == "no end-of-image marker"
