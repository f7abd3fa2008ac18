"""Reads image and mask files into arrays; files that cannot be read reliably are refused.

Pillow decodes; for TIFF, ``tifffile`` reads the tags, and the pixels that Pillow does not decode correctly. Values are
scaled by their type, never by the largest value in a picture. EXIF orientation is applied to images and masks.
"""

from __future__ import annotations

import io
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from samfed_monai.core.errors import Problem, Refused, error_text, is_out_of_memory, refused, with_skip_hint
from samfed_monai.core.validators import installed, require

logger = logging.getLogger(__name__)
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # unreadable files are refused here
MASK_ENDINGS = ("_segmentation", "_mask")  # appended to the stem of the image
TO_8_BIT = "save it as 8-bit RGB or grey"
END, START_OF_SCAN = 0xD9, 0xDA
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
SEQUENTIAL = {0xC0, 0xC1}
PADDING, SPARE = b"\xfe" * 16, 64  # libjpeg reads up to 8 bytes ahead, and ones are long codes; bytes that may be left


def scan_fault(content: bytes) -> str | None:
    """Finds damage in the compressed data of a JPEG that decodes without an error; ``None`` if there is none.

    If a damaged scan ends early, libjpeg fills the rest of the picture with grey; if it ends late, libjpeg drops the
    rest; it reports both only on its own error stream. An intact scan needs all of its bytes and no more: it decodes
    completely if its end marker is replaced by a few other bytes, and does not if its last bytes are missing. The check
    costs two decodes at 1/8 size.

    It does not find damage that leaves the number of decoded blocks right (most single flipped bytes); progressive
    files are only checked for an end marker. The SHA-256 in the data list finds all changes after the list was made.
    """
    found = list(segments(content))
    kinds, (last, end) = [kind for kind, _ in found], (found or [(0, 0)])[-1]
    if last != END:
        return "no end-of-image marker"
    if not SEQUENTIAL & set(kinds) or kinds.count(START_OF_SCAN) != 1:
        return None
    scan = content[:end]
    if not _decodes(scan + PADDING):
        return "a damaged scan: the data end before the last row of pixels"
    if _decodes(scan.rstrip(b"\0\xff")[:-SPARE]):
        return "a damaged scan: data are left after the last row of pixels"
    return None


def _decodes(content: bytes) -> bool:
    with suppress(OSError, SyntaxError, ValueError), Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
        return True
    return False


def segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yields the kind and offset of each segment of a JPEG's first image; its end marker, if any, is the last."""
    position = 2
    while position + 1 < len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF or 0xD0 <= marker < 0xD8:  # a filling byte, or a restart marker, which has no data
            position += 1 if marker == 0xFF else 2
        else:
            yield marker, position
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
            if marker == START_OF_SCAN and (found := NEXT_MARKER.search(content, position)):
                position = found.start()
            elif marker in (START_OF_SCAN, END):
                return


PLUGINS = (JpegImagePlugin, PngImagePlugin, TiffImagePlugin, BmpImagePlugin, WebPImagePlugin)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")  # registered by the plugins above; no other is tried
JPEGS = {"JPEG", "MPO"}  # a JPEG that holds several pictures calls itself MPO
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".heic", ".heif", ".png", ".tif", ".tiff", ".bmp", ".webp"}
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB; Pillow refuses pictures with more than 1
MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter of a GiB as RGB); the largest ISIC image has 30 million
BINARY = ({0, 1}, {0, 255}, {0, 65535})
DARK = 64  # highest value (of 255) of a dark image, which uses at most 14 of 16 bits, or 6 of 8
FEW_LEVELS, HALF = 16, 128  # few, dark levels are class values; other masks are cut in the middle
ORIENTATION = 0x0112  # the only EXIF entry that is used
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Picture = NDArray[np.uint8]


class Unreadable(Refused):
    """A file that cannot be decoded."""


_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def _formats(content: bytes, name: str) -> tuple[str, ...]:
    """Returns the formats that Pillow tries: :data:`FORMATS`, or HEIF (iPhone pictures) with ``pillow-heif``."""
    if content[4:8] != b"ftyp" or content[8:12] not in _HEIC:
        return FORMATS
    require(installed("pillow_heif", "heif", name, "a HEIC picture", "pillow-heif to read it with, or a JPEG or PNG"))
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return ("HEIF",)


def read_image(path: str | Path) -> Picture:
    """Reads an image as (H, W, 3) RGB in 0..255.

    Args:
        path: JPEG, PNG, TIFF, BMP, WebP or HEIC. 16-bit values are scaled by their type (65,535 becomes 255), CMYK,
            grey and palette become RGB, an alpha channel is dropped, EXIF orientation is applied.

    Raises:
        Refused: missing, empty, truncated or damaged file, not an image, more than 89 million pixels, several images or
            frames, values without a fixed range (float, signed, 32 bits).
    """
    return decode_image(read_bytes(path), str(path))[0]


def read_mask(path: str | Path, threshold: int | None = None) -> Picture:
    """Reads a mask as (H, W) in {0, 1}.

    Args:
        path: as for :func:`read_image`. Binary masks have the values {0, 1} or {0, 255} (lossy JPEG, TIFF, WebP
            and HEIC: {0, 255}; 16 bits and more also {0, 65535}); integers may be of any type.
        threshold: lowest grey level (1 to 255, after scaling 16 bit by type) that is foreground in a mask that is not
            binary; ``None`` refuses such masks. For a mask with colours (one for each class), the brightest channel is
            used.

    Raises:
        Refused: as for :func:`read_image`; palette masks; without a threshold, masks with colours and masks that are
            not binary.
    """
    return decode_mask(read_bytes(path), str(path), threshold)[0]


def left_out(problems: Sequence[Problem], some: bool, *, skip_unreadable: bool) -> list[Problem]:
    """Returns the problems of unreadable files; with ``skip_unreadable`` and ``some`` readable, logs them instead."""
    if not (some and skip_unreadable):
        return [with_skip_hint(problem) if some else problem for problem in problems]
    for problem in problems:
        logger.warning("left out: %s", problem)
    return []


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """Encodes pixels as PNG: (H, W), (H, W, 3), or (H, W, 4) with an alpha channel."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def read_bytes(path: str | Path) -> bytes:
    """Returns the file's bytes; refuses a missing or unreadable file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        found = error.strerror or str(error)
        raise Unreadable([Problem(str(path), found, "a readable file", "check the data root")]) from None


def decode_image(content: bytes, name: str) -> tuple[Picture, Image.Image]:
    """Decodes an image as :func:`read_image` does; also returns the stored image, for its mode and format."""
    raw = _decode(content, name)
    image = _upright(raw, name)
    if image.mode.startswith("I"):
        return np.repeat(to_8_bit(np.asarray(image))[..., None], 3, axis=2), raw
    return np.array(image.convert("RGB")), raw


def decode_mask(content: bytes, name: str, threshold: int | None) -> tuple[Picture, list[int]]:
    """Decodes a mask as :func:`read_mask` does; also returns its distinct values.

    The values are the stored ones, or, if a threshold was applied, those after scaling to 8 bits.
    """
    raw = _decode(content, name, numbers=True)
    if raw.mode in ("P", "PA"):
        hint = "save it as 8-bit grey: palette entries are indices, not foreground"
        raise refused(name, found="a palette mask", expected="a grey mask", hint=hint)
    grey = _grey(_upright(raw, name), name, threshold)
    values = _grey_levels(grey)
    if raw.info.get("deep") and max(values) < (threshold or 255):
        raise refused(name, "a dark mask with 16-bit colours", "8-bit or grey", "save it as 8-bit grey")
    lossy = raw.info["lossy"]
    levels = {0, 255} if lossy else set(values) | {0}
    if set(values) <= levels and any(levels <= binary for binary in BINARY):
        return (grey > 0).astype(np.uint8), values
    if threshold is None or raw.mode == "F" or not to_8_bit(grey).any():
        shown = ", ".join(map(str, values[:6])) + (", …" if len(values) > 6 else "")
        hint = TO_8_BIT if raw.mode == "F" else _threshold_hint(grey, lossy=lossy)
        found = f"a {'lossy ' if lossy else ''}mask with {len(values)} grey levels ({shown})"
        raise refused(name, found, "a binary mask, {0, 255}" if lossy else "a binary mask, {0, 1} or {0, 255}", hint)
    grey = to_8_bit(grey)
    return (grey >= threshold).astype(np.uint8), _grey_levels(grey)


def decode_grey(content: bytes, name: str) -> Picture:
    """Returns the stored values of an 8-bit grey image, (H, W), upright; refuses colours, palettes and lossy files."""
    raw = _decode(content, name, numbers=True)
    if raw.info["lossy"] or raw.mode not in ("1", "L"):
        found = f"{'lossy ' if raw.info['lossy'] else ''}{raw.format} with {raw.mode!r} pixels"
        raise refused(name, found=found, expected="8-bit grey without loss", hint="save it as an 8-bit grey PNG")
    return np.array(_upright(raw, name).convert("L"))


def _threshold_hint(grey: NDArray[Any], *, lossy: bool) -> str:
    """Returns a hint for a mask that is not binary, with a threshold that leaves foreground in it (fault 65).

    Values 0, 1 and 255 may be a weak label; a threshold would make its 255 foreground.
    """
    if not lossy and grey.dtype == np.uint8 and {1, 255} <= set(_grey_levels(grey)) <= {0, 1, 255}:
        return (
            "if 255 means 'not labelled', use `samfed prepare folders … --label-kind [SITE=]KIND` with "
            "scribble, points, box or block; if 1 and 255 are both foreground, declare `--mask-threshold 1`"
        )
    levels = _grey_levels(to_8_bit(grey))
    highest = max(levels)
    if lossy and highest < HALF:
        return "export it again without loss, as PNG: compression changes pixels with values this low"
    if highest == 0:
        return f"save it with 8 bits, as 0 and 255: in 16 bits, {int(grey.max())} is nearly black"
    if len(levels) <= FEW_LEVELS and highest < HALF:
        lowest = min(level for level in levels if level)
        if 0 not in levels and len(levels) > 1:  # the lowest value would make the whole mask foreground
            return f"if {lowest} is the background, give `--mask-threshold {levels[1]}`; if not, save it as 0 and 255"
        rest = "" if len(levels) <= 2 else "; if only one value is foreground, save it as 255"
        return f"if all values above 0 are foreground, give `--mask-threshold {lowest}`{rest}"
    return f"threshold the mask, or give `--mask-threshold {HALF if highest >= HALF else (highest + 1) // 2}`"


def _decode(content: bytes, name: str, *, numbers: bool = False) -> Image.Image:
    """Decodes a file; ``info["deep"]`` is set for 16-bit colours, of which only the upper 8 bits are kept.

    ``info["lossy"]`` says whether it was compressed with loss, which is assumed for JPEG 2000 and HEIC.
    """
    kind, expected = next((kind for start, kind in STARTS.items() if content.startswith(start)), ""), "an intact image"
    try:
        return _decode_tiff(content, name, numbers) if kind == "TIFF" else _decode_non_tiff(content, name)
    except Refused as refusal:
        raise Unreadable(refusal.problems) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found, expected = f"a picture too large to decode ({error})", f"at most {MAX_PIXELS:,} pixels"
        hint = "scale it down"
    except Image.UnidentifiedImageError:
        other = f"a {kind}{' that cannot be decoded' if kind in FORMATS else ''}" if kind else "data of unknown format"
        found = "text" if _is_text(content) else other
        expected = "one of " + ", ".join(FORMATS)
        hint = TO_8_BIT if kind else "replace the file, whatever its suffix says"
        hint += f"; if it is damaged, {COPY_AGAIN}" if kind in FORMATS else ""
    except Exception as error:  # decoders raise many kinds for damaged files
        if is_out_of_memory(error):
            raise
        found = f"a damaged file ({error})"
        hint = "save it without its metadata" if "MAX_TEXT" in str(error) else COPY_AGAIN
    raise Unreadable([Problem(name, found, expected, hint)])


def _decode_non_tiff(content: bytes, name: str) -> Image.Image:
    if not content:
        raise refused(name, found="a file of zero bytes", expected="an image", hint="copy it again from its source")
    image = Image.open(io.BytesIO(content), formats=_formats(content, name))
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
    if image.format not in JPEGS and (frames := getattr(image, "n_frames", 1)) > 1:  # an MPO's picture is its first
        found, hint = f"{frames} frames of an animation", "save the right frame, or each frame, as a file"
        raise refused(name, found=found, expected="one picture", hint=hint)
    bits = BITS_OF_BMP.get(image.mode) if image.format == "BMP" else None
    if bits and content[28 if content[14] > 12 else 24] != bits:
        raise refused(name, "a BMP with a palette of few greys", "a PNG, or a BMP without a palette", TO_8_BIT)
    image.load()
    image.info["lossy"] = image.format in {*JPEGS, "HEIF"} or (image.format == "WEBP" and b"VP8 " in content)
    image.info["deep"] = image.format == "PNG" and content[24] == SIXTEEN and content[25] != GREY
    if image.mode == "P" and int(np.asarray(image).max()) >= len(image.getpalette() or ()) // len("RGB"):
        raise ValueError("pixels without a colour in the palette")
    if image.format == "PNG":
        Image.open(io.BytesIO(content), formats=("PNG",)).verify()
        if (content[28] or not np.asarray(image)[-1].any()) and _lacks_rows(content, *image.size):
            raise ValueError("missing rows")
    if image.format in JPEGS and (fault := scan_fault(content)):
        raise refused(name, found=fault, expected="an intact image", hint=COPY_AGAIN)
    return image


def _lacks_rows(content: bytes, width: int, height: int) -> bool:
    """Whether the data of a PNG end before its last row, which Pillow leaves black.

    The size is exact without interlacing; interlaced data have up to two bytes more for each row.
    """
    bits = content[24] * SAMPLES.get(content[25], 1)
    missing = height * (1 + (width * bits + 7) // 8)  # each row begins with the number of its filter
    unpacking, at = zlib.decompressobj(), 8
    while missing > 0 and at < len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] == b"IDAT":
            missing -= len(unpacking.decompress(content[at + 8 : end], missing))
        at = end + 4  # the checksum
    return missing > 0


COPY_AGAIN = "copy it again from its source, or remove it"
BITS_OF_BMP = {"1": 1, "L": 8}  # Pillow reads pixels of other bits wrongly if all colours of the palette are grey
SIXTEEN, GREY, SAMPLES = 16, 0, {2: 3, 4: 2, 6: 4}  # in a PNG's header: bits; colour type; samples of other types
STARTS = {
    **dict.fromkeys((b"II*\0", b"II+\0", b"II\0*", b"MM\0*", b"MM\0+", b"MM*\0"), "TIFF"),
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    **dict.fromkeys((b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"), "JPEG 2000"),
}


def _upright(image: Image.Image, name: str) -> Image.Image:
    """Returns the image with its EXIF orientation applied; other EXIF entries are ignored."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception as error:  # Pillow's parser raises many kinds for damaged EXIF
        hint = "save it upright, without EXIF"
        raise Unreadable([Problem(name, f"damaged EXIF ({error_text(error)})", "readable EXIF", hint)]) from None
    return image if turn is None else image.transpose(turn)


def is_turned(stored: Image.Image) -> bool:
    """Whether a stored image (from :func:`decode_image`) has an EXIF orientation that is not upright."""
    return stored.info.get("turned", False) or stored.getexif().get(ORIENTATION) in TURNS


def _grey(image: Image.Image, name: str, threshold: int | None) -> Picture | NDArray[np.uint16]:
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 65535 and (values % 1 == 0).all()):
            found = f"{'float samples' if image.mode == 'F' else 'samples'} from {values.min():g} to {values.max():g}"
            raise refused(name, found, "whole numbers of 8 or 16 bits", "save its foreground as 255, in 8-bit grey")
        return values.astype(np.uint16)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    channels, hint = np.asarray(image), "save it as 8-bit grey"
    if image.mode in ("LA", "RGBA") and np.ptp(channels[..., -1]):
        raise refused(name, "a mask whose alpha channel varies", "a grey mask", "save the mask's channel as 8-bit grey")
    if image.mode in ("LA", "RGBA", "RGB"):
        colours = channels[..., :-1] if image.mode.endswith("A") else channels
        if (colours == colours[..., :1]).all():
            return np.ascontiguousarray(colours[..., 0])
        if threshold is not None:
            return colours.max(axis=-1)
        hint += ", or give --mask-threshold if every colour is foreground"
    raise refused(name, found=f"a {image.mode} mask with colours", expected="a grey mask", hint=hint)


def _grey_levels(grey: NDArray[Any]) -> list[int]:
    levels: list[int] = np.flatnonzero(np.bincount(grey.ravel())).tolist()
    return levels


def _is_text(content: bytes) -> bool:
    head = content[:512]
    return b"\0" not in head and all(byte in b"\t\n\r\f\x1b" or byte >= 32 for byte in head)


SIDE = 64


def misfit(picture: Picture, mask: Picture) -> float:
    """Measures how much better the mask fits the picture after the best of five transpositions and turns.

    The fit is the share of the grey variance between foreground and background (Otsu's criterion), on 64 x 64 pixels.
    It is a hint, not a proof: a round lesion in the middle fits in every direction.

    Args:
        picture: (H, W, 3) in 0..255.
        mask: (H, W) in {0, 1}.

    Returns:
        A difference in [-1, 1]; positive if another direction fits better. 0 for pictures that are not square and for
        empty or full masks.
    """
    if mask.shape[0] != mask.shape[1]:
        return 0.0
    grey = np.asarray(Image.fromarray(picture).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float)
    as_is = np.asarray(Image.fromarray(mask * 255).resize((SIDE, SIDE), Image.Resampling.BOX)) > 127
    if not 0 < as_is.mean() < 1 or grey.var() == 0:
        return 0.0
    others = (as_is.T, np.rot90(as_is), np.rot90(as_is, 2), np.rot90(as_is, 3), np.rot90(as_is.T, 2))
    distances = [(grey[each].mean() - grey[~each].mean()) ** 2 for each in (as_is, *others)]
    return float(as_is.mean() * (1 - as_is.mean()) * (max(distances[1:]) - distances[0]) / grey.var())


def mask_like(picture: Picture) -> bool:
    """Whether a picture (H, W, 3) looks like a mask: 95 % of its values are within 15 of 0 or 255, some of each.

    The tolerance allows for JPEG artefacts at borders. None of our photographs and slices has more than 90 % (ours).
    """
    black, white = (picture < 16).mean(), (picture > 239).mean()
    return bool(black and white and black + white > 0.95)


UNSIGNED, SIGNED, FLOAT = 1, 2, 3
KINDS = {UNSIGNED: "unsigned", SIGNED: "signed", FLOAT: "float"}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
DECODED = {WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB}
BY_PILLOW = {(UNSIGNED, 1), (UNSIGNED, 2), (UNSIGNED, 4), (UNSIGNED, 8), (UNSIGNED, 12), (UNSIGNED, 16)}
NUMBERS_BY_PILLOW = BY_PILLOW | {(SIGNED, 16), (UNSIGNED, 32), (SIGNED, 32), (FLOAT, 32)}
REDUCED, TRANSPARENCY = 1, 4  # bits of tag 254
OLD_REDUCED = 2  # of tag 255
ASSOCIATED, UNASSOCIATED = 1, 2  # of tag 338; the first has colours multiplied by alpha
UNCOMPRESSED, JPEG, DEFLATE = 1, 7, (8, 32946)  # of tag 259
LOSSLESS = {UNCOMPRESSED, *DEFLATE, 2, 3, 4, 5, 32771, 32773, 34925, 34933, 50000}  # also CCITT, LZW, LZMA, PNG, ZSTD
CCITT = {2: "tiff_ccitt", 3: "group3", 4: "group4"}
SPARE_CCITT = 4  # bytes of the end of a strip, which encoders may leave out
MOST_SAMPLES = 8
WEBP = 50001  # a compression that Pillow's libtiff may not support
SPLIT = "save the right image, or each image, as a separate file (for instance with `tiffsplit`)"


def _decode_tiff(content: bytes, name: str, numbers: bool) -> Image.Image:
    """Decodes the only image of a TIFF file; pages of reduced size are ignored.

    16-bit grey has mode ``I;16`` with black as 0, and 12-bit grey is scaled to it; 16-bit colours are reduced to 8 bits
    and have ``info["deep"]``. ``info["turned"]`` says whether tag 274 turns the image, which Pillow has applied.

    Args:
        content: the file's bytes.
        name: the file's name, for messages.
        numbers: whether samples may have any range, as in masks: signed, 32-bit and float samples are read too (modes
            ``I`` and ``F``).

    Raises:
        Refused: several images, or unsupported samples; the message names the tag.
        Exception: many kinds, for a damaged file.
    """
    from tifffile import TiffFile

    with TiffFile(io.BytesIO(content)) as file:
        index, page = _only_image(file, name)
        tags = _Tags(page, name)
        if page.imagewidth * page.imagelength > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{page.imagewidth} x {page.imagelength} pixels")
        tags.refuse_unsupported(numbers)
        _check_strips(page, tags)
        image = None
        if tags.by_pillow:
            with suppress(Image.UnidentifiedImageError, ValueError):  # ValueError for pixels that Pillow does not read
                image = _tiff_by_pillow(content, index, tags, numbers)
        image = image or _tiff_by_tifffile(page, tags)
        if page.compression in CCITT and not page.is_tiled and not _is_encoding_of(page, image):
            hint = "copy it again; if it is intact, save it without compression"
            raise tags.refusal(259, "damaged CCITT data, or another encoding", "the standard encoding", hint)
    if 0 in image.size:
        raise ValueError("no pixels")
    image.format = "TIFF"
    image.info |= {"lossy": page.compression not in LOSSLESS}
    image.info |= {"deep": tags.deep, "turned": page.tags.valueof(274, 1) in range(2, 9)}
    return image


def _check_strips(page: Any, tags: _Tags) -> None:
    """Finds missing, too large and damaged strips or tiles that decoders would not report."""
    lost = page.compression == UNCOMPRESSED and tags.bits % 8 == 0 and sum(page.databytecounts) < page.nbytes
    if lost or not all([*page.dataoffsets, *page.databytecounts]) or len(page.dataoffsets) < prod(page.chunked):
        raise ValueError("missing strips or tiles")
    if page.compression in DEFLATE:  # libtiff does not compare the checksum, and tifffile does not limit the size
        most = prod(page.chunks) * -(-tags.bits // 8)
        if any(len(zlib.decompressobj().decompress(strip, most + 1)) > most for strip in _strips(page)):
            raise ValueError("strips or tiles that are larger than the image")
    elif page.compression == JPEG and tags.bits == 8 and (tags.planar or tags.samples in (1, 3, 4)):
        for strip in _strips(page):
            jpeg = (page.jpegtables[:-2] + strip[2:] if page.jpegtables else strip) + b"\xff\xd9"
            if fault := scan_fault(jpeg):
                raise ValueError(fault)


class _Tags:
    """The tags of an image that describe its samples."""

    def __init__(self, page: Any, name: str) -> None:
        self.page, self.name = page, name
        self.photometric = page.tags.valueof(262)
        self.samples = int(page.samplesperpixel)
        self.planar = int(page.planarconfig or 1) == 2 and self.samples > 1
        kinds = {UNSIGNED if kind == 4 else int(kind) for kind in _all(page.tags.valueof(339, UNSIGNED))}
        bits = set(_all(page.tags.valueof(258, 1))[: self.samples])
        if len(kinds) > 1 or len(bits) > 1:
            raise self.refusal(258, f"samples of {sorted(bits)} bits and formats {sorted(kinds)}", "the same for all")
        (self.kind,), (self.bits,) = kinds, bits
        self.extra = tuple(int(each) for each in page.extrasamples)
        self.deep = self.samples > 1 and self.bits == 16

    @property
    def by_pillow(self) -> bool:
        """Whether Pillow reads the samples; it misreads some uncompressed separate planes."""
        is_plain = self.page.compression == UNCOMPRESSED
        is_misread = self.planar and is_plain and (self.deep or self.photometric != CMYK)
        return not is_misread and self.page.compression != WEBP and (self.kind, self.bits) in NUMBERS_BY_PILLOW

    def refusal(self, tag: int, found: str, expected: str, hint: str = TO_8_BIT) -> Refused:
        from tifffile import TIFF

        return refused(self.name, f"{found} (tag {tag}, {TIFF.TAGS.get(tag, 'unknown')})", expected, hint)

    def refuse_unsupported(self, numbers: bool) -> None:
        """Refuses samples that neither Pillow nor :func:`_tiff_by_tifffile` reads correctly."""
        if self.photometric is None:
            raise self.refusal(262, "no tag that says whether 0 is black", "this tag")
        if int(self.photometric) not in DECODED:
            found = getattr(self.photometric, "name", str(self.photometric))
            raise self.refusal(262, f"{found} pixels", "grey, RGB, palette, CMYK, YCbCr or CIELab")
        what = f"{KINDS.get(self.kind, 'other')} samples of {self.bits} bits"
        if self.kind not in KINDS or not (numbers or (self.kind, self.bits) in BY_PILLOW):
            expected = "whole numbers" if numbers else "unsigned samples of 1, 2, 4, 8, 12 or 16 bits"
            raise self.refusal(258 if self.kind == UNSIGNED else 339, what, expected)
        if self.photometric == WHITE_IS_ZERO and (self.kind != UNSIGNED or self.bits not in (1, 2, 4, 8, 16)):
            raise self.refusal(262, f"white as zero with {what}", "black as zero")
        self._refuse_channels()

    def _refuse_channels(self) -> None:
        alpha = sum(each in (ASSOCIATED, UNASSOCIATED) for each in self.extra)
        if self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and self.samples - alpha > 1:
            raise self.refusal(277, f"{self.samples} grey channels", "one", SPLIT)
        if self.samples > MOST_SAMPLES:
            raise self.refusal(277, f"{self.samples} samples per pixel", f"at most {MOST_SAMPLES}")
        if self.photometric == CMYK and self.page.tags.valueof(332, 1) != 1:
            raise self.refusal(332, "inks that are not CMYK", "CMYK or RGB")
        shares = self.page.tags.valueof(530, (1, 1))
        if self.photometric == YCBCR and self.page.compression == UNCOMPRESSED and shares != (1, 1):
            raise self.refusal(530, f"one colour for {shares[0]} x {shares[1]} pixels, uncompressed", "one for each")
        if int(self.page.tags.valueof(32997, 1)) > 1:
            raise self.refusal(32997, f"a volume of {self.page.imagedepth} slices", "one image", SPLIT)


def _only_image(file: Any, name: str) -> tuple[int, Any]:
    """Returns the index and page of the only image, ignoring pages of reduced size and transparency masks."""
    file.pages.useframes = False  # frames have no tags
    first = file.pages[0]
    pages = [(index, file.pages[index]) for index in range(1 if first.is_svs else len(file.pages))]
    inner = [(-1, each) for _, page in pages for each in page.pages or () if not _is_smaller(each, page)]
    images = [(index, page) for index, page in (*pages, *inner) if not _is_reduced(page)] or pages
    shaped: dict[str, Any] = file.shaped_metadata[0] if file.shaped_metadata else {}
    stacked = [int((file.imagej_metadata or {}).get("images", 1))]
    stacked += [prod(shaped.get("shape", ())) // max(prod(first.shape), 1)]
    stacked += [first.tags[33629].count] if 33629 in first.tags else []  # MetaMorph's planes
    number = max(len(images), *stacked)
    index, page = images[0]
    if number > 1:
        found, expected = f"{number} images in one file", "one image, apart from thumbnails (tag 254, NewSubfileType)"
        raise refused(name, found=found, expected=expected, hint=SPLIT)
    if index < 0:
        raise refused(name, "a thumbnail, and the image after it (tag 330, SubIFDs)", "the image first", TO_8_BIT)
    return index, page


def _is_reduced(page: Any) -> bool:
    return bool(int(page.tags.valueof(254, 0)) & (REDUCED | TRANSPARENCY)) or page.tags.valueof(255) == OLD_REDUCED


def _is_smaller(page: Any, than: Any) -> bool:
    return bool(page.imagewidth < than.imagewidth and page.imagelength < than.imagelength)


def _tiff_by_pillow(content: bytes, index: int, tags: _Tags, numbers: bool) -> Image.Image:
    if tags.page.planarconfig == 2 and tags.samples == 1:  # else Pillow does not invert it, or reverse its bits
        at, order = tags.page.tags[284].valueoffset, tags.page.parent.byteorder
        content = content[:at] + np.array(1, f"{order}u2").tobytes() + content[at + 2 :]
    image: Image.Image = Image.open(io.BytesIO(content), formats=("TIFF",))
    if index:
        image.seek(index)
    image.load()
    if tags.photometric == PALETTE and np.max(tags.page.tags.valueof(320)) < 256:  # 8 bits instead of TIFF's 16
        image.putpalette(np.reshape(tags.page.tags.valueof(320), (3, -1)).T.astype(np.uint8).tobytes())
    if image.mode == "La":
        return image.convert("LA")
    if tags.bits == 16 and tags.photometric == WHITE_IS_ZERO:
        return Image.fromarray(65535 - np.asarray(image).astype(np.uint16))
    if tags.bits == 12 and not (numbers and np.asarray(image).max() <= 1):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16))
    return image


def _is_encoding_of(page: Any, image: Image.Image) -> bool:
    """Whether the CCITT data of a page are the encoding of its pixels; libtiff only prints an error if they are not."""
    from tifffile import TiffFile

    turn, stream = page.tags.valueof(274, 1), io.BytesIO()
    stored = image.transpose(TURNS[{6: 8, 8: 6}.get(turn, turn)]) if turn in TURNS else image
    tags = {tag: page.tags.valueof(tag) for tag in (262, 266, 292) if tag in page.tags} | {278: page.chunks[0]}
    Image.fromarray(np.asarray(stored)).save(stream, "TIFF", compression=CCITT[page.compression], tiffinfo=tags)
    with TiffFile(io.BytesIO(stream.getvalue())) as file:
        pairs = zip(_strips(page), _strips(file.pages[0]), strict=True)
        return all(strip.startswith(encoded[:-SPARE_CCITT]) for strip, encoded in pairs)


def _strips(page: Any) -> list[bytes]:
    """Returns the stored bytes of a page's strips or tiles."""
    file, places = page.parent.filehandle, (page.dataoffsets, page.databytecounts)
    return [bytes(content) for content, _ in file.read_segments(*places)]


def _tiff_by_tifffile(page: Any, tags: _Tags) -> Image.Image:
    """Reads grey and RGB of 8 and 16 bits, and sample types that Pillow does not have."""
    unsigned = tags.kind == UNSIGNED and tags.bits in (8, 16)
    if not (tags.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) or (unsigned and tags.photometric == RGB)):
        planes = "separate planes" if tags.planar else "samples"
        raise tags.refusal(262, f"{planes} of {tags.bits} bits, {tags.photometric.name}", "grey or RGB of 8 or 16 bits")
    if ASSOCIATED in tags.extra:
        raise tags.refusal(338, "colours multiplied by alpha", "separate alpha, or none")
    if tags.bits % 8 or (tags.photometric == RGB and tags.samples < len("RGB")):
        raise tags.refusal(258, f"{tags.samples} samples of {tags.bits} bits", "grey or RGB of 8 or 16 bits")
    values = _stored_values(page, tags)
    if tags.samples > 1:
        colours = len("RGB") if tags.photometric == RGB else 1
        alpha = [colours + place for place, kind in enumerate(tags.extra) if kind == UNASSOCIATED]
        values = values[..., [*range(colours), *alpha[:1]] if unsigned else 0]
    if values.ndim > 2:
        values = to_8_bit(values)
    elif unsigned or (tags.bits == 8 and values.min() >= 0):
        values = values.astype(f"u{values.itemsize}")
    elif tags.kind == FLOAT:
        values = values.astype(np.float32)
    else:
        values = np.clip(values, -1, 65536).astype(np.int32)
    image = Image.fromarray(values)
    image.getexif()[274] = int(page.tags.valueof(274, 1))
    return image


def _stored_values(page: Any, tags: _Tags) -> NDArray[Any]:
    """Returns the samples, (H, W) or (H, W, samples), with black as 0."""
    try:
        values = page.asarray()
    except (ImportError, ValueError) as error:
        if isinstance(error, ValueError) and "imagecodecs" not in str(error):
            raise
        hint = "pip install 'samfed-monai[tiff]', or save it without compression"
        raise tags.refusal(259, f"the compression {page.compression.name}", "a supported compression", hint) from None
    values = np.moveaxis(values, 0, -1) if tags.planar else values
    return np.iinfo(values.dtype).max - values if tags.photometric == WHITE_IS_ZERO else values


def to_8_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scales 16-bit values to 8 bits by their type (65,535 becomes 255); returns 8-bit values unchanged."""
    if values.dtype == np.uint8:
        return values
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _all(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
