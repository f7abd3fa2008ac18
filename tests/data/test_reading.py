"""Files into arrays: what is read, what is turned upright, what is refused."""

from __future__ import annotations

import io
import itertools
import struct
import sys
import zlib
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps, PngImagePlugin

from samfed_monai.core.errors import Refused
from samfed_monai.data.reading import (
    CCITT,
    TURNS,
    decode_image,
    decode_mask,
    is_turned,
    misfit,
    png_of,
    read_image,
    read_mask,
    scan_fault,
)
from samfed_monai.data.volumes import read_slices
from tests.data.making import disc, jpeg, picture, save


def test_fault_04_16_bit_image_and_mask_levels_are_scaled_by_dtype(tmp_path):
    values = np.array([[0, 257, 2570]], dtype=np.uint16)  # darkest pixels of 16 bit: stay dark
    for suffix in ("png", "tif"):
        path = save(tmp_path / f"a.{suffix}", Image.fromarray(values))
        np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 1, 10])
    assert read_image(save(tmp_path / "b.png", Image.fromarray(np.full((2, 2), 65535, np.uint16)))).min() == 255
    values = np.array([[0, 100, 127 * 257, 128 * 257, 65535]], dtype=np.uint16)
    path = save(tmp_path / "m.png", Image.fromarray(values))
    assert decode_mask(path.read_bytes(), "m.png", 128)[1] == [0, 127, 128, 255]


def test_fault_05_and_fault_06_and_fault_07_colours_become_rgb(tmp_path):
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    image = read_image(save(tmp_path / "a.jpg", red.convert("CMYK"), quality=100))
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - [255, 0, 0]).max() <= 3  # JPEG rounding
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    assert (read_image(save(tmp_path / "p.png", palette)) == [255, 0, 0]).all()
    for mode in ("RGBA", "LA"):
        source = Image.new("RGB", (4, 4), (90, 90, 90)).convert(mode)
        source.putalpha(7)
        assert (read_image(save(tmp_path / "a.png", source)) == 90).all()
    with pytest.raises(Refused, match="a palette mask; save it as 8-bit grey"):
        read_mask(save(tmp_path / "m.png", disc().convert("P")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fault_08_exif_orientation_is_applied_to_image_and_mask(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for image, read, scale in ((picture(1), read_image, 1), (disc(), read_mask, 255)):
        path = save(tmp_path / "a.png", image, exif=exif)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        np.testing.assert_array_equal(read(path), upright // scale)
        assert np.array_equal(upright, np.asarray(image)) is (orientation == 1)


def test_fault_08_exif_with_malformed_entry_is_read_and_unreadable_exif_is_refused(tmp_path):
    width_as_text = struct.pack("<HHI4s", 0x0100, 2, 3, b"ab")
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + width_as_text + orientation + bytes(4)
    assert decode_image(jpeg(picture(0, 24, 32), exif=exif), "a.jpg")[0].shape == (32, 24, 3)
    assert decode_mask(jpeg(disc(24, 32), exif=exif), "m.jpg", 128)[0].shape == (32, 24)
    path = save(tmp_path / "a.png", disc(), exif=b"no EXIF at all")
    for read in (read_image, read_mask):
        with pytest.raises(Refused, match=r"a\.png: expected readable EXIF.*save it upright, without EXIF"):
            read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.png: expected an image, found a file of zero bytes; copy it again"),
        (b"<html>404 Not Found</html>", "expected one of JPEG, PNG, TIFF, BMP, WEBP, found text"),
        (None, "No such file or directory; check the data root"),
    ],
    ids=["fault 9: empty", "fault 12: text", "missing"],
)
def test_files_without_image_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Refused, match=message):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.99])
def test_fault_10_truncated_jpeg_is_refused(keep):
    content = jpeg(picture(3, 200, 200))
    with pytest.raises(Refused, match=r"a damaged file|no end-of-image marker"):
        decode_image(content[: int(keep * len(content))], "a.jpg")


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("damage", [b"\xff" * 20, bytes(200), b"\x55\xaa" * 100])
def test_fault_11_corrupt_scan_is_refused(damage):
    content = bytearray(jpeg(noise(128)))
    content[len(content) // 2 : len(content) // 2 + len(damage)] = damage
    with pytest.raises(Refused, match="a damaged"):
        decode_image(bytes(content), "a.jpg")


WHOLE = "expected whole numbers of 8 or 16 bits, found samples from"
WEAK = r"if 255 means 'not labelled', .*--label-kind \[SITE=\]KIND` with scribble, .* declare `--mask-threshold 1`$"


@pytest.mark.parametrize(
    ("values", "kind", "threshold", "expected"),
    [
        *((np.array([0, 1]) * value, kind, None, [0, 1]) for value, kind in ((1, "u1"), (255, "u1"), (1, "u2"))),
        *((np.array([0, 1]) * value, "u2", None, [0, 1]) for value in (255, 65535)),
        ((0, 0), "u1", None, [0, 0]),  # fault 14
        ((255, 255), "u1", None, [1, 1]),  # fault 15
        ((0, 1), "u1", 128, [0, 1]),  # a threshold leaves binary masks alone
        ((0, 100, 128, 255), "u1", None, r"4 grey levels \(0, 100, 128, 255\).*`--mask-threshold 128`"),
        ((0, 100, 128, 255), "u1", 128, [0, 0, 1, 1]),
        ((0, 1, 255), "u1", None, WEAK),
        ((1, 255), "u1", None, WEAK),
        ((0, 257, 65535), "u2", None, r"3 grey levels \(0, 257, 65535\).*`--mask-threshold 128`"),
        ((0, 100), "u2", None, r"2 grey levels \(0, 100\).*save it with 8 bit"),
        ((9,), "u2", None, r"1 grey levels \(9\).*save it with 8 bit"),
        ((0, 1, 2), "u2", 1, "save it with 8 bits, as 0 and 255: in 16 bits, 2 is nearly black"),
        ((0, 100, 127 * 257, 128 * 257, 65535), "u2", 128, [0, 0, 0, 1, 1]),
        ((0, 65536), "i4", 128, WHOLE),
        ((0, -1), "i4", 128, WHOLE),
    ],
)
def test_fault_13_masks_are_binary_or_thresholded(tmp_path, values, kind, threshold, expected):
    path = save(tmp_path / "m.tif", Image.fromarray(np.array([values]).astype(kind)))
    if isinstance(expected, str):
        with pytest.raises(Refused, match=expected):
            read_mask(path, threshold)
        return
    mask = read_mask(path, threshold)
    assert (mask.tolist(), mask.dtype) == ([expected], np.uint8)


LEVELS = {(0, 2): 2, (1, 2): 2, (1, 2, 3): 2, (0, 1, 2): 1, (0, 100): 100, (0, 200): 128, (0, 3, 254): 128}


@pytest.mark.parametrize(("levels", "threshold"), [*LEVELS.items(), (range(60), 30)])
def test_fault_65_advised_threshold_keeps_foreground(levels, threshold):
    content = png_of(np.array([levels], np.uint8))
    with pytest.raises(Refused, match=rf"`--mask-threshold {threshold}`"):
        decode_mask(content, "m.png", None)
    assert 0 < decode_mask(content, "m.png", threshold)[0].mean() < 1


LOSSY = [("jpg", {"quality": 100}), ("tif", {"compression": "jpeg"}), ("webp", {"quality": 90}), ("heif", {})]


@pytest.mark.parametrize(("suffix", "options"), LOSSY)
def test_fault_13_dark_noise_of_lossy_mask_is_not_foreground(tmp_path, suffix, options):
    if suffix == "heif":
        pytest.importorskip("pillow_heif", reason="pip install samfed-monai[heif]").register_heif_opener()
    path = save(tmp_path / f"m.{suffix}", disc().point(bool), **options)
    with pytest.raises(Refused, match=r"expected a binary mask, {0, 255}, found a lossy mask with .*; export it"):
        read_mask(path)
    assert read_mask(path, 128).sum() == 0


@pytest.mark.parametrize(("suffix", "options"), [("webp", {"lossless": True}), ("tif", {"compression": "tiff_lzw"})])
def test_fault_13_lossless_mask_is_read_with_any_values(tmp_path, suffix, options):
    path = save(tmp_path / f"m.{suffix}", disc().point(bool), icc_profile=b"VP8", **options)
    assert np.array_equal(read_mask(path), np.asarray(disc()) > 0)


def test_brightest_channel_of_coloured_mask_is_thresholded(tmp_path):
    assert read_mask(save(tmp_path / "grey.png", disc().convert("RGB"))).max() == 1
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 0], [90, 127, 60]]], np.uint8)
    path = save(tmp_path / "colours.png", Image.fromarray(colours))
    assert read_mask(path, 128).tolist() == [[1, 1, 0, 0]]
    with pytest.raises(Refused, match="a RGB mask with colours; save it as 8-bit grey, or give --mask-threshold if"):
        read_mask(path)
    with pytest.raises(Refused, match=r"a CMYK mask with colours; save it as 8-bit grey$"):
        read_mask(save(tmp_path / "inks.tif", disc().convert("CMYK")), 128)
    with pytest.raises(Refused, match="a mask whose alpha channel varies; save the mask's channel as 8-bit grey"):
        read_mask(save(tmp_path / "alpha.png", Image.merge("LA", (disc(), disc()))))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_fault_21_oversized_picture_is_refused_before_decoding(tmp_path, monkeypatch, suffix):
    path = save(tmp_path / f"a.{suffix}", picture(0))
    monkeypatch.setattr("samfed_monai.data.reading.MAX_PIXELS", 24 * 32)
    assert read_image(path).shape == (24, 32, 3)
    monkeypatch.setattr("samfed_monai.data.reading.MAX_PIXELS", 24 * 32 - 1)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(Refused, match=r"at most 767 pixels, found a picture too large to decode \(32 x 24 .*; scale"):
        read_image(path)


OPTIONS = [{"progressive": True}, {"optimize": True}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"quality": 5}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_intact_jpegs_have_no_scan_fault(options):
    for mode, size in itertools.product(("RGB", "L", "CMYK"), ((1, 1), (7, 3), (33, 17), (160, 120))):
        rng = np.random.default_rng(0)
        for pixels in (rng.integers(0, 256, (*size, 3), dtype=np.uint8), np.full((*size, 3), 7, np.uint8)):
            content = jpeg(Image.fromarray(pixels).convert(mode), **options)
            for tail in (b"", bytes(10), content):  # junk or a second picture after the first
                assert scan_fault(content + tail) is None, (mode, size)


def test_real_jpegs_have_no_scan_fault(samfed_data):
    for path in sorted((samfed_data / "data" / "tiny").rglob("*.jpg")):
        assert scan_fault(path.read_bytes()) is None


def test_scan_with_missing_or_extra_bytes_is_reported():
    content = jpeg(noise(64))
    early, late = (content[: len(content) // 2] + content[len(content) // 2 + jump :] for jump in (300, -300))
    for short in (early, content[:-22] + content[-2:]):
        assert scan_fault(short) == "a damaged scan: the data end before the last row of pixels"
    assert scan_fault(late) == "a damaged scan: data are left after the last row of pixels"
    assert scan_fault(content[:-2]) == "no end-of-image marker"
    for mode in ("LA", "RGB"):
        noise(64).convert(mode).save(stream := io.BytesIO(), "TIFF", compression="jpeg")
        assert decode_image(stream.getvalue(), "a.tif")[0].shape == (64, 64, 3)
    with pytest.raises(Refused, match=r"a damaged file \(a damaged scan: .* the last row of pixels"):
        decode_image(stream.getvalue().replace(stream.getvalue()[1500:1700], bytes(200)), "a.tif")
    assert scan_fault(early.replace(b"\xff\xc0", b"\xff\xc2")) is None, "of progressive files only the end is checked"
    for filled in (b"\xff\xff\xdb", b"\xff\xd0\xff\xdb"):  # markers may have bytes before them, or be alone
        assert scan_fault(content.replace(b"\xff\xdb", filled, 1)) is None
        assert scan_fault(early.replace(b"\xff\xdb", filled, 1)) == scan_fault(early)


def test_misfit_detects_transposed_mask_of_square_picture():
    mask = np.asarray(disc(64, 64, value=1, radius=12))
    picture = np.repeat((200 - 120 * mask)[..., None], 3, axis=2).astype(np.uint8)
    assert misfit(picture, mask) < -0.5
    assert misfit(picture, np.ascontiguousarray(mask.T)) > 0.5
    for trivial in (0 * mask, 0 * mask + 1):
        assert misfit(picture, trivial) == 0
    assert misfit(0 * picture, mask) == misfit(picture[:32], mask[:32]) == 0


@pytest.mark.parametrize(
    ("reader", "name"),
    [("PIL.PngImagePlugin.PngImageFile.load", "a.png"), ("nibabel.load", "a.nii"), ("pydicom.dcmread", "a.dcm")],
)
def test_fault_50_memory_error_is_not_reported_as_damaged_file(tmp_path, monkeypatch, reader, name):
    pytest.importorskip(reader.partition(".")[0])
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(reader, lambda *_, **__: np.empty(1 << 50))
    with pytest.raises(MemoryError):
        (read_image if name == "a.png" else read_slices)(tmp_path / name)


COLOURS = np.asarray(picture(0))
GREY = np.ascontiguousarray(COLOURS[..., 0])
ALPHA = np.full(GREY.shape, 51, np.uint8)
PLANES = np.moveaxis(COLOURS, -1, 0)
BLACK, WHITE, SEPARATE = {"photometric": "minisblack"}, {"photometric": "miniswhite"}, {"planarconfig": "separate"}
TIMES = {"extrasamples": ["assocalpha"]}
RGB, INKS, ZIP = {"photometric": "rgb"}, {"photometric": "separated"}, ({}, {"compression": "zlib"})
REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)), bitorder="little")


def wide(values: np.ndarray) -> np.ndarray:
    """The same shades in 16 bits."""
    return values.astype(np.uint16) * 257


def tiff(*pages: tuple[np.ndarray, dict[str, Any]], **kinds: Any) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, **kinds) as file:
        for values, tags in pages:
            file.write(values, **{"metadata": None, **tags})
    content = stream.getvalue()
    for tag in (266, 284):  # tifffile does not let them be set
        content = content.replace(*(struct.pack("<HHI", 65000 * own + tag, 3, 1) for own in (1, 0)))
    return content.replace(*(struct.pack("<HHIHH", 530, 3, 2, side, side) for side in (1, 2)))  # nor of YCbCr this one


class TestTiff:
    """What TIFF 6.0's tags say is read as they say it, or refused with the tag."""

    @pytest.mark.parametrize(
        ("values", "tags", "wanted"),
        [
            (GREY, BLACK, GREY),
            (255 - GREY, WHITE, GREY),
            (wide(GREY), BLACK, GREY),
            (65535 - wide(GREY), WHITE, GREY),
            (COLOURS, RGB, COLOURS),
            (PLANES, RGB | SEPARATE, COLOURS),
            (wide(COLOURS), RGB, COLOURS),
            (wide(PLANES), RGB | SEPARATE, COLOURS),
        ],
    )
    def test_samples_of_8_and_16_bits_are_read(self, values, tags, wanted):
        wanted = wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, -1)
        for how in itertools.product(
            (False, True), "<>", ({}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16)})
        ):
            content = tiff((values, tags | how[2]), bigtiff=how[0], byteorder=how[1])
            np.testing.assert_array_equal(decode_image(content, "a.tif")[0], wanted, str(how))

    @pytest.mark.parametrize(
        ("values", "tags", "wanted"),
        [
            (np.stack([GREY // 5, ALPHA], -1), BLACK | TIMES, GREY // 5 * 5),
            (np.stack([GREY, ALPHA], -1), BLACK | {"extrasamples": ["unassalpha"]}, GREY),
            (wide(np.stack([GREY, ALPHA], -1)), BLACK | {"extrasamples": ["unassalpha"]}, GREY),
            (np.dstack([COLOURS // 5, ALPHA]), RGB | TIMES, COLOURS // 5 * 5),
            (np.dstack([COLOURS, ALPHA]), RGB | {"extrasamples": ["unassalpha"]}, COLOURS),
            (wide(np.stack([*PLANES, ALPHA])), RGB | SEPARATE | {"extrasamples": ["unassalpha"]}, COLOURS),
            (wide(np.stack([*(PLANES // 5), ALPHA])), RGB | SEPARATE | TIMES | {"compression": 8}, COLOURS // 5 * 5),
            (np.dstack([COLOURS] + [ALPHA] * 4), RGB | {"extrasamples": ["unspecified"] * 4}, COLOURS),
            (255 - GREY, WHITE | {"extratags": [(65284, 3, 1, 2)]}, GREY),  # separate planes, of which there is one
            (REVERSED[PLANES], RGB | SEPARATE | {"extratags": [(65266, 3, 1, 2)]}, COLOURS),
            (REVERSED[255 - GREY], WHITE | {"extratags": [(65266, 3, 1, 2)]}, GREY),
            (65535 - wide(GREY[:9, :9]), WHITE | {"compression": "zlib", "tile": (64, 64)}, GREY[:9, :9]),
        ],
    )
    def test_extra_samples_are_dropped_and_storage_orders_are_read(self, values, tags, wanted):
        read = decode_image(tiff((values, {"planarconfig": "contig"} | tags)), "a.tif")[0]
        np.testing.assert_array_equal(read, wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, -1))

    @pytest.mark.parametrize("factor", [1, 257], ids=["8-bit values", "16-bit values"])
    def test_palettes_are_read(self, factor):
        palette = np.stack([np.arange(256)[::-1], np.arange(256), np.full(256, 90)]).astype(np.uint16)
        content = tiff((GREY, {"photometric": "palette", "colormap": palette * factor}))
        np.testing.assert_array_equal(decode_image(content, "a.tif")[0], np.moveaxis(palette[:, GREY], 0, -1))

    def test_12_bits_are_scaled_by_type(self):
        packed = np.frombuffer(bytes.fromhex("0007fffff010"), np.uint8)[None]  # 0, 2047, 4095 and 16
        content = bytearray(tiff((packed, BLACK)))
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            for tag, value in ((256, 4), (258, 12)):
                place = file.pages[0].tags[tag].valueoffset
                content[place : place + 2] = struct.pack("<H", value)
        assert decode_image(bytes(content), "a.tif")[0][0, :, 0].tolist() == [0, 127, 255, 1]

    @pytest.mark.parametrize("turn", range(1, 9))
    @pytest.mark.parametrize(
        ("values", "tags"), [(COLOURS, RGB), (wide(PLANES), RGB | SEPARATE), (np.stack([65535 - wide(GREY)]), WHITE)]
    )
    def test_orientation_tag_274_is_applied(self, values, tags, turn):
        upright, stored = decode_image(tiff((values, tags)), "a.tif")
        assert not is_turned(stored)
        read, stored = decode_image(tiff((values, tags | {"extratags": [(274, "H", 1, turn, True)]})), "a.tif")
        expected = Image.fromarray(upright)
        np.testing.assert_array_equal(read, expected.transpose(TURNS[turn]) if turn > 1 else expected)
        assert is_turned(stored) is (turn > 1)

    @pytest.mark.parametrize(
        ("pages", "kinds"),
        [
            ([(COLOURS, {}), (COLOURS[::2, ::2], {"subfiletype": 1}), (COLOURS[::4, ::4], {"subfiletype": 1})], {}),
            ([(COLOURS, {"subifds": 2}), (COLOURS[::2, ::2], {"subfiletype": 1}), (COLOURS[::4, ::4], {})], {}),
            ([(COLOURS[::2, ::2], {"subfiletype": 1}), (COLOURS, {})], {}),
            ([(COLOURS, {"subfiletype": 1})], {}),
            ([(COLOURS, {}), (GREY > 99, BLACK | {"subfiletype": 4})], {"bigtiff": True}),
            ([(COLOURS, {"description": "Aperio Image", "tile": (16, 16)}), (COLOURS[::2, ::2], {})], {}),
        ],
    )
    def test_image_with_pages_of_reduced_size_is_read(self, pages, kinds):
        content = tiff(*((values, RGB | tags) for values, tags in pages), **kinds)
        np.testing.assert_array_equal(decode_image(content, "a.tif")[0], COLOURS)

    @pytest.mark.parametrize(
        ("pages", "kinds", "message"),
        [
            ([(GREY, {}), (GREY, {})], {}, "found 2 images in one file; save the right image, or each"),
            ([(GREY, {}), (GREY, {})], {"bigtiff": True}, "found 2 images"),
            ([(np.stack([GREY] * 3), {"metadata": {}, "truncate": True})], {"shaped": True}, "found 3 images"),
            ([(np.stack([GREY] * 3), {"metadata": {"axes": "ZYX"}})], {"ome": True}, "found 3 images"),
            ([(np.stack([GREY] * 3), {"metadata": {}})], {"imagej": True}, "found 3 images"),
            ([(GREY[::2, ::2], {"subfiletype": 1, "subifds": 1}), (GREY, {})], {}, r"a thumbnail, .* \(tag 330"),
        ],
    )
    def test_several_images_are_refused_as_image_and_mask(self, pages, kinds, message):
        for read in (decode_image, lambda *file: decode_mask(*file, 128)):
            with pytest.raises(Refused, match=message):
                read(tiff(*((values, BLACK | tags) for values, tags in pages), **kinds), "a.tif")

    @pytest.mark.parametrize(
        ("values", "tags", "message"),
        [
            *((GREY.astype(k), BLACK, r"\(tag 339, SampleFormat\)") for k in ("i1", "i2", "i4", "f2", "f8", "c8")),
            (GREY.astype("u4"), BLACK, r"unsigned samples of 32 bits \(tag 258, BitsPerSample\)"),
            (np.dstack([COLOURS] + [ALPHA] * 6), RGB | {"extrasamples": [0] * 6}, r"9 samples per pixel \(tag 277"),
            (np.stack([GREY] * 3, -1), BLACK | {"planarconfig": "contig"}, r"3 grey channels \(tag 277"),
            (np.stack([GREY] * 3), BLACK | {"volumetric": True}, r"a volume of 3 slices \(tag 32997"),
            (COLOURS, {"photometric": "icclab"}, r"ICCLAB pixels \(tag 262, PhotometricInterpretation\)"),
            (GREY, {"photometric": "cfa"}, r"CFA pixels \(tag 262"),
            (PLANES, {"photometric": "cielab"} | SEPARATE, r"separate planes of 8 bits, CIELAB \(tag 262"),
            (COLOURS, {"photometric": "ycbcr"}, r"2 x 2 pixels, .* \(tag 530"),
            (np.dstack([COLOURS, ALPHA]), INKS | {"extratags": [(332, "H", 1, 2, True)]}, "tag 332"),
            (wide(np.stack([*PLANES, ALPHA])), INKS | SEPARATE, r"separate planes .*SEPARATED"),
            (np.stack([*PLANES, ALPHA]), RGB | SEPARATE | TIMES, r"\(tag 338"),
            (wide(GREY), {"photometric": "palette", "colormap": np.ones((3, 65536), "u2")}, "16 bits, PALETTE"),
        ],
    )
    def test_unsupported_tiffs_are_refused_with_tag(self, values, tags, message):
        with pytest.raises(Refused, match=message):
            decode_image(tiff((values, tags)), "a.tif")

    def test_missing_photometric_tag_is_refused(self):
        content = tiff((GREY, BLACK)).replace(struct.pack("<HH", 262, 3), struct.pack("<HH", 60000, 3))
        with pytest.raises(Refused, match=r"no tag that says whether 0 is black \(tag 262"):
            decode_image(content, "a.tif")

    def test_compression_without_codec_names_required_extra(self, monkeypatch):
        content = tiff((65535 - wide(GREY), WHITE | {"compression": "zlib"}), byteorder=">")
        for fault in (ValueError("LZW requires the 'imagecodecs' package"), ImportError("No module 'compression'")):
            monkeypatch.setattr("tifffile.TiffPage.asarray", Mock(side_effect=fault))
            with pytest.raises(Refused, match=r"\(tag 259, Compression\); pip install 'samfed-monai\[tiff\]'"):
                decode_image(content, "a.tif")

    @pytest.mark.parametrize("storage", [{}, {"compression": "zlib", "tile": (16, 16)}], ids=str)
    @pytest.mark.parametrize("keep", [0.2, 0.6, 0.98])
    def test_truncated_file_is_refused(self, storage, keep):
        values = np.random.default_rng(0).integers(0, 65536, (3, 64, 64)).astype(np.uint16)
        content = tiff((values, RGB | SEPARATE | storage))
        with pytest.raises(Refused, match="a damaged file"):
            decode_image(content[: int(keep * len(content))], "a.tif")

    @pytest.mark.parametrize(
        ("tags", "tag", "value"), [({}, 273, 0), ({}, 256, 40), *((tags, 257, 30) for tags in ZIP)]
    )
    def test_missing_strips_are_refused(self, tags, tag, value):  # no offset, wider, more rows
        content = bytearray(tiff((COLOURS, RGB | tags | {"rowsperstrip": 8})) + bytes(range(256)) * 9)
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            place, kind = file.pages[0].tags[tag].valueoffset, file.pages[0].tags[tag].dtype
        struct.pack_into("<H" if kind == 3 else "<I", content, place, value)
        with pytest.raises(Refused, match=r"a damaged file \(missing strips or tiles\)"):
            decode_image(bytes(content), "a.tif")

    def test_strip_larger_than_image_is_refused_before_unpacking(self):
        content = tiff((65535 - wide(GREY), WHITE | {"compression": "zlib"}), byteorder=">")
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            place, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
        bomb = zlib.compress(bytes(1000 * length))[:length].ljust(length, b"\0")
        with pytest.raises(Refused, match="larger than the image"):
            decode_image(content[:place] + bomb + content[place + length :], "a.tif")

    @pytest.mark.parametrize("turn", [1, 6])
    @pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4", "tiff_adobe_deflate"])
    def test_changed_bytes_are_refused_where_data_can_be_verified(self, tmp_path, compression, turn):
        lines = Image.fromarray((np.indices((64, 96)).sum(0) // 7 + disc(64, 96)) % 2 == 1)
        path = save(tmp_path / "m.tif", lines, compression=compression, tiffinfo={274: turn, 278: 16})
        upright = np.rot90(lines, -1) if turn == 6 else np.asarray(lines)
        np.testing.assert_array_equal(read_mask(path), upright)
        content = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as file:
            start, size = file.pages[0].dataoffsets[2], file.pages[0].databytecounts[2]
        content[start + (size // 2 if compression in CCITT.values() else size - 2)] ^= 0x55  # or the checksum
        with pytest.raises(Refused, match=r"m\.tif: expected .*, found (a damaged file|damaged CCITT data)"):
            decode_mask(bytes(content), "m.tif", None)

    @pytest.mark.parametrize("kind", ["i1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"])
    def test_masks_of_whole_numbers_are_read_in_any_type(self, kind):
        mask = np.asarray(disc(value=1))
        for value in (1, 255, 65535):
            if value <= (127 if kind == "i1" else 2048 if kind in ("i2", "f2") else value):
                read = decode_mask(tiff((mask.astype(kind) * np.dtype(kind).type(value), BLACK)), "m.tif", None)[0]
                np.testing.assert_array_equal(read, mask)
        part = -1 if kind[0] == "i" else 0.5 if kind[0] == "f" else 2
        with pytest.raises(Refused, match=r"expected whole numbers|2 grey levels"):
            decode_mask(tiff((mask.astype(kind) * np.dtype(kind).type(part), BLACK)), "m.tif", None)

    @pytest.mark.parametrize(
        ("values", "tags", "message"),
        [
            (GREY.astype("c8"), BLACK, r"expected whole numbers, found other samples of 64 bits \(tag 339"),
            (np.stack([0 * GREY, GREY]), BLACK | SEPARATE | {"extrasamples": [2]}, "a mask whose alpha channel varies"),
            (GREY.astype("i2"), WHITE, r"expected black as zero, found white as zero with signed samples of 16 bits"),
            (np.asarray(disc(value=2), np.float32), BLACK, r"2 grey levels \(0, 2\); save it as 8-bit"),  # has no scale
        ],
    )
    def test_masks_of_unsupported_numbers_are_refused(self, values, tags, message):
        with pytest.raises(Refused, match=message):
            decode_mask(tiff((values, tags)), "m.tif", 1)


def png(values: np.ndarray, kind: int, *chunks: tuple[bytes, bytes], size: Any = None, passes: int = 0) -> bytes:
    """A PNG of 16 bits, of a colour type, with further chunks before its data, and perhaps of another size."""
    header = struct.pack(">IIBBBBB", *(size or values.shape[1::-1]), 16, kind, 0, 0, passes)
    data = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    checked = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(checked)


@pytest.mark.parametrize(("shape", "kind"), [((23, 32), 0), ((23, 32, 3), 2), ((23, 32, 2), 4), ((3, 4), 0)])
def test_png_with_missing_rows_is_refused(shape, kind):  # the last: the first of seven passes of an interlaced one
    with pytest.raises(Refused, match=r"a damaged file \(missing rows\)"):
        decode_image(png(np.zeros(shape), kind, size=(32, 24), passes=int(shape == (3, 4))), "a.png")
    assert decode_image(png(np.zeros((24, *shape[1:])), kind), "a.png")[0].max() == 0


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["rgb", "grey and alpha", "rgba"])
def test_mask_of_16_bit_colours_is_read_unless_dark(kind, channels):
    mask = np.asarray(disc(value=1))
    values = np.repeat(mask[..., None].astype(np.uint16), channels, -1)
    values[..., 3 if channels == 4 else channels :] = 65535
    if channels == 2:
        values[..., 1] = 65535
    colours = values.copy()
    colours[..., : 3 if channels > 2 else 1] *= 65535
    np.testing.assert_array_equal(decode_mask(png(colours, kind), "m.png", None)[0], mask)
    for threshold in (None, 1):
        with pytest.raises(Refused, match="a dark mask with 16-bit colours; save it as 8-bit grey"):
            decode_mask(png(values, kind), "m.png", threshold)


@pytest.mark.parametrize("chunk", [(b"tRNS", b"\0\1"), (b"sBIT", b"\x0c"), (b"gAMA", struct.pack(">I", 100000))])
def test_transparency_gamma_and_significant_bits_are_ignored(chunk):
    assert decode_image(png(wide(GREY), 0, chunk), "a.png")[0][..., 1].tolist() == GREY.tolist()


def test_fault_11_png_with_wrong_checksum_or_palette_is_refused(tmp_path):
    content = save(tmp_path / "a.png", picture(0).quantize(40)).read_bytes()
    data, start = content.index(b"IDAT") + 20, content.index(b"PLTE") - 4
    with pytest.raises(Refused, match="a damaged file"):
        decode_image(content[:data] + bytes([content[data] ^ 0xFF]) + content[data + 1 :], "a.png")
    with pytest.raises(Refused, match=r"a damaged file \(pixels without a colour in the palette\)"):
        decode_image(content[:start] + content[start + 12 + int.from_bytes(content[start:][:4], "big") :], "a.png")


def test_png_text_up_to_64_mib_is_accepted(tmp_path, monkeypatch):
    text = PngImagePlugin.PngInfo()
    text.add_text("report", "x" * 3_000_000, zip=True)
    path = save(tmp_path / "a.png", picture(0), pnginfo=text)
    np.testing.assert_array_equal(read_image(path), COLOURS)
    assert PngImagePlugin.MAX_TEXT_CHUNK == 64 * 2**20
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 2_999_999)
    with pytest.raises(Refused, match=r"MAX_TEXT_CHUNK\); save it without its metadata"):
        read_image(path)


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("png", {"default_image": True}), ("webp", {})], ids=str)
def test_animation_is_refused(tmp_path, suffix, options):
    with pytest.raises(Refused, match="expected one picture, found 2 frames of an animation; save the right frame"):
        read_image(save(tmp_path / f"a.{suffix}", picture(0), save_all=True, append_images=[picture(1)], **options))


def test_undecodable_formats_are_refused_by_name(tmp_path):
    with pytest.raises(Refused, match="found a GIF; save it as 8-bit RGB"):
        read_image(save(tmp_path / "a.gif", picture(0)))
    with pytest.raises(Refused, match="found a JPEG 2000; save it as 8-bit RGB"):
        decode_image(b"\0\0\0\x0cjP  \r\n", "a.jpg")
    content = jpeg(picture(0))
    place = content.index(b"\xff\xc0") + 4  # its precision
    with pytest.raises(
        Refused, match="a JPEG that cannot be decoded; save it as 8-bit RGB or grey; if it is damaged, copy"
    ):
        decode_image(content[:place] + b"\x0c" + content[place + 1 :], "a.jpg")
    header = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 94, 0, 62, 40, 8, 4, 1, 8, 0, 32, 0, 0, 2, 0)
    with pytest.raises(Refused, match="expected a PNG, or a BMP without a palette, found a BMP with a palette of few"):
        decode_image(header + bytes(4) + b"\xff\xff\xff\0" + bytes([0, 1] * 16), "a.bmp")


def test_heic_is_read_with_pillow_heif_or_refused(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif", reason="not installed: pip install samfed-monai[heif]")
    content = np.zeros((64, 96, 3), np.uint8)
    content[:, :48] = (200, 100, 50)
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(Image.fromarray(content)).save(tmp_path / "a.heic", quality=-1, exif=exif.tobytes())
    found = read_image(tmp_path / "a.heic")
    assert found.shape == (96, 64, 3), "as its EXIF turns it"
    assert np.abs(found[:47].astype(int) - (200, 100, 50)).max() <= 3
    assert found[49:].max() <= 3
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(Refused, match=r"a\.heic: .* found a HEIC picture; pip install 'samfed-monai\[heif\]'"):
        read_image(tmp_path / "a.heic")
    for other in (b"\0\0\0\x18ftypisom", b"\0\0\0\x18moovheic"):
        with pytest.raises(Refused, match="found data of unknown format; replace the file, whatever its suffix says"):
            decode_image(other, "a.heic")
