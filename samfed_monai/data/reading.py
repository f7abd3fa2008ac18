"""Files into arrays: what can be read safely is read alike everywhere, and everything else is refused.

Pillow decodes, of TIFF with ``tifffile`` (:mod:`.tiff`). Values are scaled by their type, never by the largest value
that happens to be in a picture, and the orientation that a file's own EXIF asks for is applied to images and masks.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from samfed_monai.core.errors import Refused, is_out_of_memory, refused
from samfed_monai.data.tiff import TO_8_BIT, decode_tiff, to_8_bit

END, START_OF_SCAN = 0xD9, 0xDA
STANDALONE = {0x01, *range(0xD0, 0xD9)}
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
SEQUENTIAL = {0xC0, 0xC1}
PADDING = bytes(64)


def scan_fault(content: bytes) -> str | None:
    """What is wrong with the compressed data of a JPEG that decodes without an error, or ``None``.

    libjpeg paints the rest of a picture grey when a damaged scan ends early, drops what is left over when it ends late,
    and says so only on its own error stream. A sound scan, in contrast, needs all of its bytes and no more: it decodes
    completely when its end marker is replaced by a few zero bytes, and does not when its last bytes are missing. Costs
    two decodes at 1/8 size.

    It does not find damage after which the number of decoded blocks happens to be right (most single flipped bytes),
    and of progressive files it checks only that they end; the SHA-256 in the data list finds everything that changes
    after the list was made.
    """
    markers = _markers(content)
    if markers is None:
        return "no end-of-image marker"
    end, kinds = markers
    if not SEQUENTIAL & set(kinds) or kinds.count(START_OF_SCAN) != 1:
        return None
    scan = content[:end]
    if not _complete(scan + PADDING):
        return "a damaged scan: its data end before the picture does"
    if _complete(scan.rstrip(b"\0\xff")[: -len(PADDING)]):
        return "a damaged scan: the picture ends before its data do"
    return None


def _complete(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _markers(content: bytes) -> tuple[int, list[int]] | None:
    """Offset of the end marker of the file's first image, and the kinds of the segments before it."""
    position = 2
    kinds: list[int] = []
    while position + 1 < len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == END:
            return position, kinds
        if marker == 0xFF:
            position += 1
        elif marker in STANDALONE:
            position += 2
        else:
            kinds.append(marker)
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
            if marker == START_OF_SCAN:
                found = NEXT_MARKER.search(content, position)
                if found is None:
                    return None
                position = found.start()
    return None


PLUGINS = (JpegImagePlugin, PngImagePlugin, TiffImagePlugin, BmpImagePlugin, WebPImagePlugin)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")  # registered by the plugins above; nothing else is tried
LOSSY = {"JPEG", "MPO"}  # a JPEG that holds several pictures calls itself MPO
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".heic", ".heif", ".png", ".tif", ".tiff", ".bmp", ".webp"}
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB; Pillow refuses pictures with more than 1
MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter of a GiB as RGB); the largest ISIC image has 30 million
BINARY = ({0, 1}, {0, 255}, {0, 65535})
FEW_LEVELS, MIDDLE = 16, 128  # a mask of few and dark levels numbers classes; others are cut in the middle
ORIENTATION = 0x0112  # the only EXIF entry that is ever looked at
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
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def _formats(content: bytes, name: str) -> tuple[str, ...]:
    """What Pillow tries: :data:`FORMATS`, or HEIF for what iPhones write, which ``pillow-heif`` decodes."""
    if content[4:8] != b"ftyp" or content[8:12] not in _HEIC:
        return FORMATS
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        hint = "pip install 'samfed-monai[heif]', or save it as JPEG or PNG"
        raise refused(name, found="a HEIC picture", expected="pillow-heif to read it with", hint=hint) from None
    register_heif_opener()
    return ("HEIF",)


def read_image(path: str | Path) -> Picture:
    """Reads an image as (H, W, 3) RGB in 0..255.

    Args:
        path: JPEG, PNG, TIFF, BMP, WebP or HEIC. 16-bit values are scaled by their type (65,535 becomes 255), CMYK,
            grey and palette become RGB, an alpha channel is dropped, EXIF orientation is applied.

    Raises:
        Refused: missing, empty, truncated or damaged file, not an image, more than 89 million pixels, several images or
            frames, values without a range (float, signed, 32 bits).
    """
    return decode_image(read_bytes(path), str(path))[0]


def read_mask(path: str | Path, threshold: int | None = None) -> Picture:
    """Reads a mask as (H, W) in {0, 1}.

    Args:
        path: as for :func:`read_image`. Binary masks have the values {0, 1} or {0, 255} (JPEG: {0, 255}; of
            16 bit and more also {0, 65535}); whole numbers may be of any type.
        threshold: grey level (1 to 255, after scaling 16 bit by type) from which a mask that is not binary counts as
            foreground; ``None`` refuses such masks. Of a mask with colours (one for each class) the brightest channel
            counts.

    Raises:
        Refused: as for :func:`read_image`; also palette masks, and without a threshold masks with colours and masks
            that are not binary.
    """
    return decode_mask(read_bytes(path), str(path), threshold)[0]


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """PNG bytes of pixels (H, W), of (H, W, 3), or of (H, W, 4) with their opacity."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def read_bytes(path: str | Path) -> bytes:
    """The file's bytes; a file that is not there or cannot be read is refused."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        found = error.strerror or str(error)
        raise refused(path, found=found, expected="a readable file", hint="check the data root") from None


def decode_image(content: bytes, name: str) -> tuple[Picture, Image.Image]:
    """:func:`read_image` on bytes; also returns the decoded file, for its mode and format."""
    raw = _decode(content, name)
    image = _upright(raw, name)
    if image.mode.startswith("I"):
        return np.repeat(to_8_bit(np.asarray(image))[..., None], 3, axis=2), raw
    return np.array(image.convert("RGB")), raw


def decode_mask(content: bytes, name: str, threshold: int | None) -> tuple[Picture, list[int], Image.Image]:
    """:func:`read_mask` on bytes; also returns the distinct values and the decoded file.

    The values are those stored; of a mask that was cut at a threshold, those it was cut in (8 bit).
    """
    raw = _decode(content, name, numbers=True)
    if raw.mode in ("P", "PA"):
        hint = "save it as 8-bit grey: palette entries are indices, not foreground"
        raise refused(name, found="a palette mask", expected="a grey mask", hint=hint)
    grey = _grey(_upright(raw, name), name, threshold)
    values = _levels(grey)
    if raw.info.get("deep") and max(values) < (threshold or 255):
        hint = "save it as 8-bit grey"
        raise refused(name, found="a dark mask of 16-bit colours", expected="8-bit or grey", hint=hint)
    levels = {0, 255} if raw.format in LOSSY else set(values) | {0}
    if set(values) <= levels and any(levels <= binary for binary in BINARY):
        return (grey > 0).astype(np.uint8), values, raw
    if threshold is None or raw.mode == "F" or not to_8_bit(grey).any():
        shown = ", ".join(map(str, values[:6])) + (", …" if len(values) > 6 else "")
        raise refused(
            name,
            found=f"a mask with {len(values)} grey levels ({shown})",
            expected="a binary mask, {0, 1} or {0, 255}",
            hint=TO_8_BIT if raw.mode == "F" else _threshold_for(grey, lossy=raw.format in LOSSY),
        )
    grey = to_8_bit(grey)
    return (grey >= threshold).astype(np.uint8), _levels(grey), raw


def decode_grey(content: bytes, name: str) -> Picture:
    """The grey values of an 8-bit image as they are stored, (H, W), upright; colours and palettes are refused."""
    raw = _decode(content, name, numbers=True)
    if raw.format in LOSSY or raw.mode not in ("1", "L"):
        found = f"{raw.format} with {raw.mode!r} pixels"
        raise refused(name, found=found, expected="8-bit grey without loss", hint="save it as an 8-bit grey PNG")
    return np.array(_upright(raw, name).convert("L"))


def _threshold_for(grey: NDArray[Any], *, lossy: bool) -> str:
    """What to do about a mask that is not binary, so that something is left in it (fault 65).

    One of 0, 1 and 255 may be a weak label, whose 255 no threshold may make foreground.
    """
    if not lossy and grey.dtype == np.uint8 and {1, 255} <= set(_levels(grey)) <= {0, 1, 255}:
        return (
            "if 255 is what was not labelled, say so: `samfed prepare folders … --label-kind [SITE=]KIND` with "
            "scribble, points, box or block; if 1 and 255 are both foreground, declare `--mask-threshold 1`"
        )
    levels = _levels(to_8_bit(grey))
    highest = max(levels)
    if highest == 0:
        return f"save it as 8 bit with 0 and 255: of 16 bits, {int(grey.max())} is nearly black"
    if len(levels) <= FEW_LEVELS and highest < MIDDLE:
        lowest = min(level for level in levels if level)
        rest = "" if len(levels) <= 2 else "; if only one of them is, save that one as 255"
        return f"if all but 0 is foreground, declare that for the list: `--mask-threshold {lowest}`{rest}"
    middle = MIDDLE if highest >= MIDDLE else (highest + 1) // 2
    return f"threshold it, or declare a threshold for the list: `--mask-threshold {middle}`"


def _decode(content: bytes, name: str, *, numbers: bool = False) -> Image.Image:
    """A decoded file; ``info["deep"]`` says of colours that they had 16 bits, and have the upper 8 of them now."""
    if not content:
        raise refused(name, found="a file of zero bytes", expected="an image", hint="copy it again from its source")
    kind = next((kind for start, kind in STARTS.items() if content.startswith(start)), "")
    fault = None
    try:
        if kind == "TIFF":
            return decode_tiff(content, name, max_pixels=MAX_PIXELS, numbers=numbers)
        image = Image.open(io.BytesIO(content), formats=_formats(content, name))
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        frames = getattr(image, "n_frames", 1) if image.format not in LOSSY else 1  # an MPO's first is its picture
        image.load()
        image.info["deep"] = image.format == "PNG" and content[24] == SIXTEEN and content[25] != GREY
        if image.format == "PNG":
            Image.open(io.BytesIO(content), formats=("PNG",)).verify()
        fault = scan_fault(content) if image.format in LOSSY else None
    except Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found, expected = f"a picture too large to decode ({error})", f"at most {MAX_PIXELS:,} pixels"
        raise refused(name, found=found, expected=expected, hint="scale it down") from None
    except Image.UnidentifiedImageError:
        other = (
            f"a {kind} that is not decoded" if kind in FORMATS else f"a {kind}" if kind else "bytes that are no image"
        )
        found = "text" if _is_text(content) else other
        expected = "one of " + ", ".join(FORMATS)
        hint = TO_8_BIT if kind else "whatever its name says; replace the file"
        raise refused(name, found=found, expected=expected, hint=hint) from None
    except Exception as error:  # damaged files make the decoders raise nearly anything
        if is_out_of_memory(error):
            raise
        hint = "save it without its metadata" if "MAX_TEXT" in str(error) else RECOPY
        raise refused(name, found=f"a damaged file ({error})", expected="an image that decodes", hint=hint) from None
    if fault is not None:
        raise refused(name, found=fault, expected="an image that decodes", hint=RECOPY)
    if frames > 1:
        found = f"{frames} frames of an animation"
        raise refused(name, found=found, expected="one picture", hint="save the frame you mean, or each, as a file")
    return image


RECOPY = "copy it again from its source, or take it out"
SIXTEEN, GREY = 16, 0  # of a PNG's header
STARTS = {
    **dict.fromkeys((b"II*\0", b"II+\0", b"II\0*", b"MM\0*", b"MM\0+", b"MM*\0"), "TIFF"),
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
}


def _upright(image: Image.Image, name: str) -> Image.Image:
    """The image as its EXIF turns it, whatever the other entries hold."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception as error:  # damaged EXIF makes Pillow's parser raise nearly anything
        if is_out_of_memory(error):
            raise
        hint = "save it upright, without EXIF"
        raise refused(name, found=f"damaged EXIF ({error})", expected="EXIF that can be read", hint=hint) from None
    return image if turn is None else image.transpose(turn)


def is_turned(stored: Image.Image) -> bool:
    """Whether the file's EXIF turns its picture: of what :func:`decode_image` returns second."""
    return stored.info.get("turned", False) or stored.getexif().get(ORIENTATION) in TURNS


def _grey(image: Image.Image, name: str, threshold: int | None) -> Picture | NDArray[np.uint16]:
    if image.mode == "F" or image.mode.startswith("I"):
        return _mask_16_bit(image, name)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    channels = np.asarray(image)
    if image.mode in ("LA", "RGBA") and np.ptp(channels[..., -1]):
        hint = "save it as 8-bit grey without alpha"
        raise refused(name, found="a mask whose alpha channel varies", expected="a grey mask", hint=hint)
    if image.mode in ("LA", "RGBA", "RGB"):
        colours = channels[..., :-1] if image.mode.endswith("A") else channels
        if (colours == colours[..., :1]).all():
            return np.ascontiguousarray(colours[..., 0])
        if threshold is not None:
            return colours.max(axis=-1)
    hint = "save it as 8-bit grey, or declare a threshold for the list if every colour is foreground"
    raise refused(name, found=f"a {image.mode} mask with colours", expected="a grey mask", hint=hint)


def _levels(grey: NDArray[Any]) -> list[int]:
    levels: list[int] = np.flatnonzero(np.bincount(grey.ravel())).tolist()
    return levels


def _mask_16_bit(image: Image.Image, name: str) -> NDArray[np.uint16]:
    values = np.asarray(image)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 65535 and (values % 1 == 0).all()):
        found = f"{'float samples' if image.mode == 'F' else 'samples'} from {values.min():g} to {values.max():g}"
        raise refused(name, found=found, expected="whole numbers of 8 or 16 bits", hint="save it as 8-bit grey")
    return values.astype(np.uint16)


def _is_text(content: bytes) -> bool:
    head = content[:512]
    return b"\0" not in head and all(byte in b"\t\n\r\f\x1b" or byte >= 32 for byte in head)


SIDE = 64


def misfit(picture: Picture, mask: Picture) -> float:
    """How much better the mask separates the picture's grey values after the best of five transpositions and turns.

    "Separates" is the share of the grey variance between foreground and background (Otsu's criterion), on 64 x 64
    pixels. A hint that orders the overlay page, not a proof: a round lesion in the middle fits in every direction.

    Args:
        picture: (H, W, 3) in 0..255.
        mask: (H, W) in {0, 1}.

    Returns:
        A difference in [-1, 1]; positive where another direction fits better. 0 for pictures that are not square and
        for empty or full masks.
    """
    height, width = mask.shape
    if height != width or not 0 < mask.mean() < 1:
        return 0.0
    grey = np.asarray(Image.fromarray(picture).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float)
    small = Image.fromarray(mask * 255).resize((SIDE, SIDE), Image.Resampling.BOX)
    as_is = np.asarray(small) > 127
    others = (as_is.T, np.rot90(as_is), np.rot90(as_is, 2), np.rot90(as_is, 3), np.rot90(as_is.T, 2))
    return max(_separation(grey, other) for other in others) - _separation(grey, as_is)


def _separation(grey: np.ndarray, foreground: np.ndarray) -> float:
    share = foreground.mean()
    variance = grey.var()
    if not 0 < share < 1 or variance == 0:
        return 0.0
    distance = grey[foreground].mean() - grey[~foreground].mean()
    return float(share * (1 - share) * distance**2 / variance)
