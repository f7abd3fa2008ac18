"""DICOM objects as pictures: every step of PS3.3's grey scale pipeline by hand, colours, and what is refused."""

from __future__ import annotations

import io
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data.dicom import no_image, numbers_of, read_object
from samfed_monai.data.volumes import read_slices
from tests.data.making import jpeg

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install samfed-monai[dicom]")

VL_PHOTO, SEG, SR, SPECTRUM = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("77.1.4", "66.4", "88.11", "4.2"))
LITTLE, BIG, JPEG, JPEG2000, RLE = (f"1.2.840.10008.1.2.{end}" for end in ("1", "2", "4.50", "4.90", "5"))
MPEG4 = "1.2.840.10008.1.2.4.102"


def item(**elements: Any) -> Any:
    content = pydicom.Dataset()
    for name, value in elements.items():
        setattr(content, name, value)
    return content


def table(entries: list[int], *, first: int, bits: int, count: int | None = None) -> Any:
    content = item(LUTDescriptor=[count or len(entries), first, bits])
    content["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    content.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return content


def palette(descriptor: list[int], data: bytes, *, segmented: str = "") -> dict[str, Any]:
    """The same table for red, green and blue."""
    colours: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        colours[f"{name}PaletteColorLookupTableDescriptor"] = descriptor
        colours[f"{segmented}{name}PaletteColorLookupTableData"] = data
    return colours


def made(
    place: Path, pixels: Any, *, syntax: str = LITTLE, text: dict[str, str] | None = None, **elements: Any
) -> Path:
    """An object of (H, W) or (H, W, 3) stored values, a.dcm of a folder; ``text`` are elements stored as UT."""
    content = item(SOPClassUID=VL_PHOTO, SOPInstanceUID="1.2.3", Modality="XC")
    content.file_meta = pydicom.dataset.FileMetaDataset()
    content.file_meta.TransferSyntaxUID = syntax
    content.file_meta.MediaStorageSOPClassUID, content.file_meta.MediaStorageSOPInstanceUID = VL_PHOTO, "1.2.3"
    bits = 8 * pixels.itemsize
    content.Rows, content.Columns = pixels.shape[:2]
    content.SamplesPerPixel = 3 if pixels.ndim > 2 else 1
    content.PhotometricInterpretation = "RGB" if pixels.ndim > 2 else "MONOCHROME2"
    if pixels.ndim > 2:
        content.PlanarConfiguration = 0
    content.BitsAllocated, content.BitsStored, content.HighBit = bits, bits, bits - 1
    content.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == BIG else "<"
    content.add_new("PixelData", "OW", pixels.astype(pixels.dtype.newbyteorder(order)).tobytes())
    for name, value in elements.items():
        if value is None:
            del content[name]
        else:
            setattr(content, name, value)
    for name, value in (text or {}).items():
        content.add_new(name, "UT", value)
    path, content.preamble = place / "a.dcm" if place.is_dir() else place, bytes(128)
    pydicom.dcmwrite(path, content)
    return path


def grey(path: Path) -> list[int]:
    found = read_slices(path).pictures
    assert np.ptp(found, axis=-1).max() == 0
    return found[..., 0].ravel().tolist()


def row(*values: int, dtype: str = "u2") -> Any:
    return np.array([values], dtype)


TWELVE = {"BitsStored": 12, "HighBit": 11}
RAMP = [n * 255 // 599 for n in range(600)]
INVERTED = {"PhotometricInterpretation": "MONOCHROME1"}
HUNDRED = {"WindowCenter": 100.5, "WindowWidth": 201}  # 0 is black, 200 is white
NARROW = {"WindowCenter": 100, "WindowWidth": 51}
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


@pytest.mark.parametrize(
    ("pixels", "elements", "expected"),
    [
        (row(0, 1000, 4000), TWELVE, [0, 64, 255]),  # by the range: 1000 / 4000 * 255
        (row(0xF000, 0x1FFF, 0x0800), {**TWELVE, **WINDOW}, [0, 255, 128]),  # unused bits are no part of the value
        (row(-2048, 0, 2047, dtype="i2"), TWELVE, [0, 128, 255]),
        (row(10, 20, 250, dtype="u1"), {}, [10, 20, 250]),
        (row(0, 31, 63, dtype="u1"), {"BitsStored": 6, "HighBit": 5}, [0, 125, 255]),
        (row(0, 100, 200), {"RescaleSlope": "2", "RescaleIntercept": "-100", **HUNDRED}, [0, 128, 255]),
        # C.11.2.1.2.1: of center 100 and width 51, black to 74.5 and white from 124.5; LINEAR_EXACT to 74.5, from 125.5
        (row(74, 100, 125, dtype="u1"), NARROW, [0, 130, 255]),
        (row(74, 100, 125, dtype="u1"), {**NARROW, "VOILUTFunction": "LINEAR_EXACT"}, [0, 128, 252]),
        (row(0, 100, 200, dtype="u1"), {**NARROW, "WindowWidth": 100, "VOILUTFunction": "SIGMOID"}, [5, 128, 250]),
        (row(0, 50, 100, dtype="u1"), {"WindowCenter": [50, 9], "WindowWidth": [101, 1]}, [1, 129, 255]),
        (row(0, 100, 255, dtype="u1"), INVERTED, [255, 155, 0]),
        (row(0, 100, 255, dtype="u1"), {**INVERTED, "PresentationLUTShape": "INVERSE"}, [255, 155, 0]),
        (row(0, 1, 2), {"ModalityLUTSequence": [table([40, 20, 0], first=0, bits=16)]}, [255, 128, 0]),
        (row(0, 1, 7), {"VOILUTSequence": [table([0, 100, 255], first=1, bits=8)]}, [0, 0, 255]),
        (row(0, 1), {"RescaleIntercept": "-2", "VOILUTSequence": [table([9, 255], first=65534, bits=8)]}, [9, 255]),
        (row(0, 300, 599), {"VOILUTSequence": [table(RAMP, first=0, bits=8)]}, [0, 127, 255]),
        (row(-5, 0, 5, dtype="i2"), {"VOILUTSequence": [table([0, 4095, 2048], first=-5, bits=12)]}, [0, 128, 128]),
        (row(0, 500, 1000), {"PixelPaddingValue": 0}, [0, 0, 255]),  # the range is 500 to 1000
        (row(0, 500, 1000), {"PixelPaddingValue": 1000, "syntax": BIG}, [0, 255, 0]),
        (row(-2000, 0, 100, dtype="i2"), {"PixelPaddingValue": -2000}, [0, 0, 255]),
        (row(0, 3, 9, 20), {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 3}, [0, 0, 0, 255]),
        (row(0, 100, 255, dtype="u1"), {**INVERTED, "PixelPaddingValue": 0}, [0, 155, 0]),
        # 8 bits that are rescaled to themselves, and a window that is the identity by DICOM's formula
        (row(90, 100, 120, dtype="u1"), {"RescaleSlope": 1, "RescaleIntercept": 0}, [90, 100, 120]),
        (row(90, 100, 120, dtype="u1"), {"WindowCenter": 128, "WindowWidth": 256}, [90, 100, 120]),
        # headers that say half of it
        (row(0, 1, 2), {"WindowCenter": "", "WindowWidth": "", "NumberOfFrames": ""}, [0, 128, 255]),
        (row(0, 1, 2), {"WindowWidth": 200}, [0, 128, 255]),
        (row(1, 2, 0), {"Columns": 2}, [0, 255]),  # padded with zeros
    ],
)  # fmt: skip
def test_grey_values_follow_dicom_pipeline(tmp_path: Path, pixels: Any, elements: Any, expected: list[int]) -> None:
    assert grey(made(tmp_path, pixels, **elements)) == expected


def test_negative_padding_stored_as_unsigned_is_black(tmp_path: Path) -> None:
    path = made(tmp_path, row(-2000, 0, 100, dtype="i2"))
    content = pydicom.dcmread(path)
    content.add_new("PixelPaddingValue", "US", 63536)
    content.save_as(path)
    assert grey(path) == [0, 0, 255]


@pytest.mark.parametrize(("center", "width"), [("40.5", "400"), ("40,5", "400,0"), (" 40.5\0", "400\\7")])
def test_numbers_as_text_and_with_decimal_comma_are_read(tmp_path: Path, center: str, width: str) -> None:
    values = row(0, 40, 239, dtype="u1")
    whole = grey(made(tmp_path, values, WindowCenter="40.5", WindowWidth="400"))
    assert whole == [102, 128, 255]  # (0 - 40 + 199.5) / 399 * 255 = 101.9
    assert grey(made(tmp_path, values, text={"WindowCenter": center, "WindowWidth": width})) == whole


@pytest.mark.parametrize(
    ("spacing", "area"), [("0.5\\0.25", 0.125), ("0,5\\0,25", 0.125), ("0\\0", None), ("0.5", None), ("", None)]
)
def test_pixel_area_is_read_from_spacing(tmp_path: Path, spacing: str, area: float | None) -> None:
    assert read_slices(made(tmp_path, row(1), text={"PixelSpacing": spacing})).pixel_area == area


RED = np.array([[[4095, 0, 2048]]], "u2")


def test_colours_are_scaled_by_stored_bits(tmp_path: Path) -> None:
    assert read_slices(made(tmp_path, RED, **TWELVE)).pictures.ravel().tolist() == [255, 0, 128]
    assert read_slices(made(tmp_path, RED)).pictures.ravel().tolist() == [16, 0, 8]
    with pytest.raises(Refused, match=r"expected 8 bits, found PhotometricInterpretation .* YBR_FULL of 16 bits"):
        read_slices(made(tmp_path, RED, PhotometricInterpretation="YBR_FULL"))


@pytest.mark.parametrize("syntax", [LITTLE, BIG])
@pytest.mark.parametrize(
    ("bits", "red", "expected"),
    [
        (16, [0, 0x8080, 0xFFFF], [0, 128, 255]),
        (16, [0, 0x8000, 0xFF00], [0, 128, 255]),
        (16, [0, 128, 255], [0, 128, 255]),  # entries of 8 bits in words of 16
        (8, [0, 128, 255], [0, 128, 255]),
    ],
)
def test_palettes_of_8_and_16_bits_are_read(
    tmp_path: Path, bits: int, red: list[int], expected: list[int], syntax: str
) -> None:
    data = np.array(red, ">u2" if syntax == BIG else "<u2").tobytes()
    pixels = row(0, 10, 11, 12, 400)  # below the first and above the last are the first and the last
    path = made(tmp_path, pixels, syntax=syntax, **palette([3, 10, bits], data))
    assert grey(path) == [expected[0], *expected, expected[2]]


def test_long_and_segmented_palettes_are_read_or_refused(tmp_path: Path) -> None:
    colours = palette([512, 0, 8], bytes(n // 2 for n in range(512)))
    assert grey(made(tmp_path, row(0, 256, 300, 511), **colours)) == [0, 128, 150, 255]
    # C.7.9.2.1: a discrete segment (0) of one entry, then a linear one (1) of two entries up to 200
    three, many = (palette([n, 0, 8], bytes([0, 1, 100, 1, 2, 200]), segmented="Segmented") for n in (3, 300))
    assert grey(made(tmp_path, row(0, 1, 2), **three)) == [100, 150, 200]
    with pytest.raises(Refused, match=r"expected at most 256, found Segmented.* \(0028,1221\) of 300 entries of 8"):
        read_slices(made(tmp_path, row(0, 1, 2), **many))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"HighBit": 15, "BitsStored": 12}, r"expected 11, as BitsStored is 12, found HighBit \(0028,0102\) 15"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, r"found PhotometricInterpretation \(0028,0004\) 'YBR_PART"),
        ({"PresentationLUTShape": "INVERSE"}, r"expected IDENTITY, as the object is MONOCHROME2, found Presentation"),
        ({"PixelPresentation": "COLOR"}, r"PixelPresentation \(0008,9205\) 'COLOR'"),
        ({"WindowCenter": 1, "WindowWidth": 0}, r"WindowCenter \(0028,1050\) LINEAR, 1 and 0 \(The \(0028,1051\)"),
        ({"WindowCenter": 1, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, r"\(0028,1050\) CUBIC, 1 and 9"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, r"RescaleSlope \(0028,1053\) 0"),
        ({"text": {"RescaleSlope": "nan"}}, r"expected finite numbers, found RescaleSlope \(0028,1053\) 'nan'"),
        ({"text": {"WindowCenter": "wide", "WindowWidth": "2"}}, r"WindowCenter \(0028,1050\) 'wide'"),
        ({"text": {"WindowCenter": "\\40", "WindowWidth": "9\\9"}}, r"finite numbers, found WindowCenter .* '', '40'"),
        ({"SOPClassUID": SPECTRUM, "PixelData": None}, r"found no pixels \(XC\)"),
        ({"text": {"PixelSpacing": "-1\\1"}}, r"PixelSpacing \(0028,0030\) \[-1.0, 1.0\]"),
        ({"VOILUTSequence": [table([0, 300], first=0, bits=8)]}, r"\(0028,3002\) 8 bits with entries up to 300"),
        ({"NumberOfFrames": 3}, r"cannot be decoded \(ValueError: The number of bytes of pixel data is less than"),
        ({"Columns": 2}, r"expected 4, for 1 x 1 x 2 pixels, found PixelData \(7FE0,0010\) of 6 bytes"),
        ({"Columns": 1}, r"expected 3, as in the pixels, found NumberOfFrames \(0028,0008\) 1"),
        ({"PixelData": None}, r"expected an object with pixel data, found no pixels \(XC\)"),
        ({"PixelData": None, "FloatPixelData": bytes(12)}, r"found float pixels \(XC\); leave it out"),
        ({"SOPClassUID": SEG}, "expected a DICOM image, found Segmentation Storage"),
        ({"Modality": "RTDOSE"}, "expected a DICOM image, found VL Photographic Image Storage of RTDOSE"),
        ({"SOPClassUID": SR, "Rows": None, "PixelData": None}, r"found no pixels \(XC\)"),
        ({"VOILUTSequence": [item(LUTDescriptor=[3, 0, 8])]}, r"expected a table, .* \[3, 0, 8\] without LUTData"),
        ({"VOILUTSequence": [table([1], first=0, bits=8, count=3)]}, r"3 entries of 8 or 16 bits, found .* of 2 bytes"),
        ({"SamplesPerPixel": None}, r"a value, which the pixels need, found SamplesPerPixel \(0028,0002\) missing"),
        ({"BitsAllocated": None}, r"found BitsAllocated \(0028,0100\) missing or empty; copy it again"),
        ({"BitsStored": ""}, r"found BitsStored \(0028,0101\) missing or empty"),
    ],
)  # fmt: skip
def test_unsupported_elements_are_refused_by_tag(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=rf"a\.dcm: .*{message}"):
        read_slices(made(tmp_path, row(0, 1, 2), **elements))


def test_compressed_frames_need_decoder_and_must_match_header(tmp_path: Path) -> None:
    path = made(tmp_path, np.zeros((64, 64), np.uint8), NumberOfFrames=1)
    frames = [jpeg(Image.radial_gradient("L").resize((64, 64)), quality=quality) for quality in (90, 100)]
    content, narrow = pydicom.dcmread(path), jpeg(Image.new("L", (32, 128)))
    for syntax, there, offsets, message in (
        (MPEG4, [bytes(8)], True, r"found TransferSyntaxUID \(0002,0010\) MPEG-4 .*; save the frames of the video"),
        (JPEG, frames, True, "expected 2, as in the pixels, found NumberOfFrames"),
        (JPEG, frames, False, "expected 2, as in the pixels, found NumberOfFrames"),  # not one frame of four fragments
        (JPEG, [narrow], True, r"expected 128 x 32, as in a frame, found Rows \(0028,0010\) 64 x 64 columns"),
        (JPEG, [frames[0].replace(b"\0\x0b\x08", b"\0\x0b\x0c")], True, r"expected 12, as in .* BitsAllocated \(.* 8"),
        (JPEG, [frames[1][:-99] + frames[1][-2:]], True, r"PixelData \(7FE0,0010\) a damaged scan: the data end"),
    ):
        content.file_meta.TransferSyntaxUID = syntax
        content.PixelData = pydicom.encaps.encapsulate(there, fragments_per_frame=2, has_bot=offsets)
        content.save_as(path)
        with pytest.raises(Refused, match=message):
            read_slices(path)
    content.PixelData = pydicom.encaps.encapsulate(frames[:1], fragments_per_frame=2, has_bot=False)
    content.save_as(path)
    assert read_slices(path).pictures.shape == (1, 64, 64, 3)


COLOUR, ADOBE = Image.new("RGB", (8, 8), (200, 120, 60)), b"\xff\xee\0\x0eAdobe\0d" + bytes(4) + b"\1"
OF_YCBCR, OF_RGB = jpeg(COLOUR, quality=100), jpeg(COLOUR, quality=100, keep_rgb=True)  # with JFIF, Adobe's marker


def jpeg_2000(*size: int, **options: Any) -> bytes:
    COLOUR.resize(size).save(stream := io.BytesIO(), "JPEG2000", **options)
    return stream.getvalue()


def rle(padding: int) -> bytes:
    """A frame of :data:`COLOUR`: for each colour one run of 64 pixels and of bytes of padding."""
    runs = bytes(byte for value in (200, 120, 60) for byte in (257 - 64 - padding, value))
    return struct.pack("<16L", 3, 64, 66, 68, *[0] * 12) + runs


RAW, BARE = b"\xff\xd8" + OF_RGB[18:], b"\xff\xd8" + OF_YCBCR[20:]  # without markers


@pytest.mark.parametrize(
    ("syntax", "frame", "header", "bits", "message"),
    [
        *((JPEG, *each, 8, "") for each in ((OF_YCBCR, "RGB"), (OF_RGB, "YBR_FULL"), (RAW, "RGB"), (BARE, "YBR_FULL"))),
        *((JPEG, BARE[:2] + ADOBE + BARE[2:], header, 8, "") for header in ("RGB", "YBR_FULL_422")),
        (JPEG, OF_YCBCR[:20] + ADOBE + BARE[2:], "YBR_FULL_422", 8, ""),
        *((JPEG, jpeg(COLOUR, quality=100, progressive=True), header, 8, "") for header in ("YBR_ICT", "RGB")),
        (JPEG, BARE, "RGB", 8, r"found PhotometricInterpretation \(0028,0004\) RGB with frames of subsampled"),
        *((JPEG2000, jpeg_2000(4, 16, no_jp2=raw), "RGB", 8, "expected 16 x 4, .* 8 x 8 columns") for raw in (0, 1)),
        *((RLE, rle(padding), "RGB", 8, "") for padding in (0, 7)),
        (RLE, rle(8), "RGB", 8, r"expected 9, as in the pixels, found Rows \(0028,0010\) 8"),
        (JPEG2000, jpeg_2000(8, 8), "RGB", 12, r"expected 8, as in a frame, found BitsStored \(0028,0101\) 12"),
        (JPEG2000, jpeg_2000(8, 8, mct=1), "YBR_FULL", 8, "expected YBR_RCT or YBR_ICT, found .* YBR_FULL of"),
    ],
)
def test_frames_decide_colours_and_must_match_header(
    tmp_path: Path, syntax: str, frame: bytes, header: str, bits: int, message: str
) -> None:
    path = made(tmp_path, np.zeros((8, 8, 3), np.uint8), PhotometricInterpretation=header)
    content = pydicom.dcmread(path)
    content.file_meta.TransferSyntaxUID, content.PixelData = syntax, pydicom.encaps.encapsulate([frame])
    content.BitsAllocated, content.BitsStored, content.HighBit = 8 * (1 + bits // 9), bits, bits - 1
    content.save_as(path)
    if message:
        with pytest.raises(Refused, match=message):
            read_slices(path)
    else:
        assert np.abs(read_slices(path).pictures.astype(int) - (200, 120, 60)).max() <= 2


def test_objects_without_preamble_and_meta_information_are_read(tmp_path: Path) -> None:
    path = made(tmp_path, row(0, 1, 2))
    content = pydicom.dcmread(path)
    path.write_bytes(path.read_bytes()[132:])
    assert grey(path) == [0, 128, 255]
    content.file_meta, content.preamble = pydicom.dataset.FileMetaDataset(), None
    content.save_as(path, implicit_vr=True, little_endian=True)
    assert grey(path) == [0, 128, 255]


def test_functional_groups_override_top_level_elements(tmp_path: Path) -> None:
    groups = {
        "SharedFunctionalGroupsSequence": [
            item(
                PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-100)],
                PixelMeasuresSequence=[item(PixelSpacing=["0.5", "0.25"])],
            )
        ],
        "PerFrameFunctionalGroupsSequence": [item(FrameVOILUTSequence=[item(**HUNDRED)])],
    }
    path = made(tmp_path, row(0, 100, 200), RescaleSlope=9, **NARROW, **groups)
    assert grey(path) == [0, 128, 255]
    assert read_slices(path).pixel_area == 0.125


def test_no_image_describes_objects_without_image(tmp_path: Path) -> None:
    assert no_image(made(tmp_path, row(1))) == ""
    assert no_image(made(tmp_path, row(1), SOPClassUID=SEG)) == "Segmentation Storage"
    assert no_image(made(tmp_path, row(1), SOPClassUID=SR, Rows=None)) == "Basic Text SR Storage"
    (tmp_path / "a.dcm").write_bytes(b"damaged")
    assert no_image(tmp_path / "a.dcm") == ""
    with pytest.raises(Refused, match=r"a\.dcm: expected a DICOM object, found a file of another kind"):
        read_slices(tmp_path / "a.dcm")


def test_missing_pydicom_is_reported_with_install_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert no_image(made(tmp_path, row(1), SOPClassUID=SEG)) == ""
    with pytest.raises(Refused, match=r"pip install 'samfed-monai\[dicom\]'"):
        read_slices(tmp_path / "a.dcm")


def shipped(name: str) -> Path:
    """An object that pydicom ships."""
    return Path(str(pydicom.data.get_testdata_file(name)))


def test_library_warnings_are_not_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    path = made(tmp_path, row(0, 1), text={"WindowCenter": "1,5", "WindowWidth": "4"}, PixelSpacing=["0.5", "0.5"])
    path.write_bytes(path.read_bytes().replace(b"0.5\\0.5", b"0,5\\0,5"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_slices(path).pixel_area == 0.25
    assert numbers_of(read_object(path), "PixelSpacing") == [0.5, 0.5]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of an implicit VR where the header says explicit
        assert read_object(shipped("SC_rgb_jpeg.dcm"), pixels=False).Rows == 256


@pytest.mark.parametrize(
    ("name", "shape", "colours"),
    [
        ("CT_small.dcm", (1, 128, 128, 3), False),
        ("examples_rgb_color.dcm", (1, 240, 320, 3), True),
        ("examples_palette.dcm", (1, 350, 800, 3), True),
        ("SC_ybr_full_422_uncompressed.dcm", (1, 100, 100, 3), True),
        ("SC_rgb_small_odd_jpeg.dcm", (1, 3, 3, 3), True),
        ("SC_rgb_rle_2frame.dcm", (2, 100, 100, 3), True),
    ],
)
def test_all_pixel_kinds_are_converted_to_rgb(name: str, shape: tuple[int, ...], colours: bool) -> None:
    found = read_slices(shipped(name)).pictures
    assert (found.shape, found.dtype) == (shape, np.uint8)
    assert bool(np.ptp(found, axis=-1).max()) is colours
    assert found.max() > 100
