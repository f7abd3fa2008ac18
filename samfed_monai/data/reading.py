"""Files into arrays: what can be read safely is read alike everywhere, and everything else is refused (faults 4 to 21).

Only Pillow decodes. Values are scaled by their type, never by the largest value that happens to be in a picture, and
the orientation that a file's own EXIF asks for is applied to images and masks alike.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from samfed_monai.data.jpeg import scan_fault
from samfed_monai.errors import Problem, Refused

PLUGINS = (JpegImagePlugin, PngImagePlugin, TiffImagePlugin, BmpImagePlugin, WebPImagePlugin)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")  # registered by the plugins above; nothing else is tried
LOSSY = {"JPEG", "MPO"}  # a JPEG that holds several pictures calls itself MPO
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter of a GiB as RGB); the largest ISIC image has 30 million
BINARY = ({0, 1}, {0, 255})

Picture = NDArray[np.uint8]


def read_image(path: str | Path) -> Picture:
    """Reads an image as (H, W, 3) RGB in 0..255.

    Args:
        path: JPEG, PNG, TIFF, BMP or WebP. 16-bit grey is scaled by its type (65,535 becomes 255), CMYK, grey and
            palette become RGB, an alpha channel is dropped, EXIF orientation is applied.

    Raises:
        Refused: missing, empty, truncated or damaged file, not an image, more than 89 million pixels, float values.
    """
    return decode_image(read_bytes(path), str(path))[0]


def read_mask(path: str | Path, threshold: int | None = None) -> Picture:
    """Reads a mask as (H, W) in {0, 1}.

    Args:
        path: as for :func:`read_image`. Binary masks have the values {0, 1} or {0, 255} (JPEG: {0, 255}).
        threshold: grey level (1 to 255, after scaling 16 bit by type) from which a mask that is not binary counts as
            foreground; ``None`` refuses such masks. Of a mask with colours (one for each class) the brightest channel
            counts.

    Raises:
        Refused: as for :func:`read_image`; also palette masks, and without a threshold masks with colours and masks
            that are not binary.
    """
    return decode_mask(read_bytes(path), str(path), threshold)[0]


def read_bytes(path: str | Path) -> bytes:
    """The file's bytes; a file that is not there or cannot be read is refused."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        found = error.strerror or str(error)
        raise _refusal(str(path), found=found, expected="a readable file", mend="check the data root") from None


def decode_image(content: bytes, name: str) -> tuple[Picture, Image.Image]:
    """:func:`read_image` on bytes; also returns the decoded file, for its mode and format."""
    raw = _decode(content, name)
    image = ImageOps.exif_transpose(raw)
    if image.mode == "F" or (image.mode == "I" and raw.format != "PNG"):
        mend = "save it as 8-bit RGB"
        raise _refusal(name, found=f"{image.mode!r} pixels of unknown range", expected="8 or 16 bit", mend=mend)
    if image.mode.startswith("I"):
        return np.repeat(_to_8_bit(image)[..., None], 3, axis=2), raw
    return np.array(image.convert("RGB")), raw


def decode_mask(content: bytes, name: str, threshold: int | None) -> tuple[Picture, list[int], Image.Image]:
    """:func:`read_mask` on bytes; also returns the distinct stored values and the decoded file."""
    raw = _decode(content, name)
    if raw.mode in ("P", "PA"):
        mend = "save it as 8-bit grey: palette entries are indices, not foreground"
        raise _refusal(name, found="a palette mask", expected="a grey mask", mend=mend)
    grey = _grey(ImageOps.exif_transpose(raw), name, threshold)
    values = np.flatnonzero(np.bincount(grey.ravel(), minlength=256)).tolist()
    levels = {0, 255} if raw.format in LOSSY else set(values) | {0}
    if set(values) <= levels and (levels <= BINARY[0] or levels <= BINARY[1]):
        return (grey > 0).astype(np.uint8), values, raw
    if threshold is None:
        shown = ", ".join(map(str, values[:6])) + (", …" if len(values) > 6 else "")
        raise _refusal(
            name,
            found=f"a mask with {len(values)} grey levels ({shown})",
            expected="a binary mask, {0, 1} or {0, 255}",
            mend="threshold it, or declare a threshold for the list: `--mask-threshold 128`",
        )
    return (grey >= threshold).astype(np.uint8), values, raw


def _decode(content: bytes, name: str) -> Image.Image:
    if not content:
        raise _refusal(name, found="a file of zero bytes", expected="an image", mend="copy it again from its source")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        image.load()
        if image.format == "PNG":
            Image.open(io.BytesIO(content), formats=("PNG",)).verify()
        fault = scan_fault(content) if image.format in LOSSY else None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found, expected = f"a picture too large to decode ({error})", f"at most {MAX_PIXELS:,} pixels"
        raise _refusal(name, found=found, expected=expected, mend="scale it down") from None
    except Image.UnidentifiedImageError:
        found = "text" if _is_text(content) else "bytes that are no image"
        expected = "one of " + ", ".join(FORMATS)
        raise _refusal(name, found=found, expected=expected, mend="whatever its name says; replace the file") from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise _refusal(name, found=f"a damaged file ({error})", expected="an image that decodes", mend=RECOPY) from None
    if fault is not None:
        raise _refusal(name, found=fault, expected="an image that decodes", mend=RECOPY)
    return image


RECOPY = "copy it again from its source, or take it out"


def _grey(image: Image.Image, name: str, threshold: int | None) -> Picture:
    if image.mode.startswith("I"):
        return _mask_16_bit(image)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    channels = np.asarray(image)
    if image.mode in ("LA", "RGBA") and np.ptp(channels[..., -1]):
        mend = "save it as 8-bit grey without alpha"
        raise _refusal(name, found="a mask whose alpha channel varies", expected="a grey mask", mend=mend)
    if image.mode in ("LA", "RGBA", "RGB"):
        colours = channels[..., :-1] if image.mode.endswith("A") else channels
        if (colours == colours[..., :1]).all():
            return np.ascontiguousarray(colours[..., 0])
        if threshold is not None:
            return colours.max(axis=-1)
    mend = "save it as 8-bit grey, or declare a threshold for the list if every colour is foreground"
    raise _refusal(name, found=f"a {image.mode} mask with colours", expected="a grey mask", mend=mend)


def _to_8_bit(image: Image.Image) -> Picture:
    values = np.asarray(image).astype(np.uint32)
    return ((values * 255 + 32767) // 65535).astype(np.uint8)


def _mask_16_bit(image: Image.Image) -> Picture:
    values = np.asarray(image)
    return values.astype(np.uint8) if values.max() <= 1 else _to_8_bit(image)


def _is_text(content: bytes) -> bool:
    head = content[:512]
    return b"\0" not in head and all(byte in b"\t\n\r\f\x1b" or byte >= 32 for byte in head)


def _refusal(name: str, *, found: str, expected: str, mend: str) -> Refused:
    return Refused([Problem(name, found=found, expected=expected, mend=mend)])
