"""Reads DICOM objects as RGB pictures, following their tags (PS3.3, sections C.7.6.3, C.7.9 and C.11)."""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from samfed_monai.core.errors import error_text, refused
from samfed_monai.core.run_log import without_warnings
from samfed_monai.core.validators import installed, require
from samfed_monai.data.reading import SEQUENTIAL, Picture, scan_fault, segments

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
GREYS = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_FIRST_BYTES = b"\xff\xd8\xff", b"\xff\x4f\xff\x51"  # first bytes of a JPEG or JPEG-LS frame, and of JPEG 2000
_FRAME_HEADERS = frozenset({0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # of JPEG-LS, and of all JPEGs
_NO_IMAGES = frozenset(f"{_STORAGE}{end}" for end in ("30", "4.2", "66.4", "66.5", "66.7", "66.8", "481.2", "481.3"))
"""Storage classes with rows that are not images: parametric maps, spectra, segmentations, doses."""
_PIXELS = "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation"


_CORRECT_TAG = "correct the tag, or export the image again"
_EXPORT_AGAIN = "copy it again, or export the image again"
_DECOMPRESS = "decompress it, for instance with gdcmconv --raw, or pip install 'pylibjpeg[all]' pyjpegls"


class _Unsupported(ValueError):
    """A problem of an object as (found, expected, hint); :func:`read_frames` adds the file."""


def _fault(name: str, found: object, expected: str, hint: str = _CORRECT_TAG) -> _Unsupported:
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    return _Unsupported(f"{name} {Tag(tag_for_keyword(name) or 0)} {found}", expected, hint)


def read_object(path: str | Path | BinaryIO, *, pixels: bool = True) -> Any:
    """Reads a DICOM object; errors that pydicom corrects (a wrong transfer syntax, odd lengths) are not reported.

    Args:
        path: its file.
        pixels: whether to read the pixel data.

    Raises:
        Exception: pydicom's many kinds, for a file that is not a DICOM object.
    """
    import pydicom

    with without_warnings():
        content = pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
        if content.preamble is None:
            if not str(content.get("SOPClassUID") or "").startswith(_STORAGE):
                raise pydicom.errors.InvalidDicomError
            if "TransferSyntaxUID" not in content.file_meta:
                implicit, little = content.original_encoding  # without file meta information, pixels are uncompressed
                explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
                content.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
        return content


def no_image(path: Path) -> str:
    """Returns the kind of a DICOM object that is not an image, such as ``Segmentation Storage``.

    Empty for an image, for a file that pydicom cannot read, and without pydicom.
    """
    with suppress(Exception):  # reading its pixels reports the problem
        return _no_image(read_object(path, pixels=False))
    return ""


def _no_image(content: Any) -> str:
    kind = content.get("SOPClassUID") or content.file_meta.get("MediaStorageSOPClassUID")
    modality = str(content.get("Modality") or "no modality")
    if kind not in _NO_IMAGES and modality not in ("SEG", "RTDOSE") and "Rows" in content:
        return ""
    name = str(getattr(kind, "name", "") or modality)
    return name if kind in _NO_IMAGES or "Rows" not in content else f"{name} of {modality}"


def read_frames(path: Path) -> tuple[Picture, float | None]:
    """Reads an object's frames as displayed, with the first of several windows.

    Grey values: unused bits are cleared; then the modality LUT or rescaling, the VOI LUT or window (LINEAR,
    LINEAR_EXACT, SIGMOID) and the inversion of MONOCHROME1 are applied. Without VOI LUT and window, 8-bit values are
    kept and others scaled by their range over all frames. Padding is black and excluded from that range. Colours are
    scaled by the stored bits. Overlays, ICC profiles and presentation states are not applied.

    Returns:
        (N, H, W, 3) uint8, RGB; and the area of a pixel in mm², ``None`` unless all frames have the same.

    Raises:
        Refused: pydicom is not installed; not a DICOM object, not an image, pixels that cannot be decoded, or a tag
            with an unsupported value.
    """
    require(installed("pydicom", "dicom", str(path), "a DICOM file", "pydicom to read it"))
    from pydicom.errors import InvalidDicomError

    try:
        with without_warnings():
            content = read_object(path)
            _require_supported_image(content)
            frames = _decoded(content)
            if content.PhotometricInterpretation in GREYS:
                pictures = np.repeat(_displayed_grey(frames, content)[..., None], 3, axis=-1)
            elif content.PhotometricInterpretation == PALETTE:
                pictures = _from_palette(frames, content)
            else:
                pictures = _to_8_bit(frames, 0, 2**content.BitsStored - 1)
            return pictures, _pixel_area(content, len(frames))
    except InvalidDicomError:
        raise refused(path, "a file of another kind", "a DICOM object", "copy it again, or leave it out") from None
    except _Unsupported as error:
        raise refused(path, *error.args) from None
    except Exception as error:  # pydicom raises many kinds for damaged elements
        found = f"a header that cannot be read ({error_text(error)})"
        raise refused(path, found, "a DICOM image", "export the image again") from None


def _require_supported_image(content: Any) -> None:
    """Refuses objects that are not images, and unsupported images."""
    floats = "FloatPixelData" in content or "DoubleFloatPixelData" in content
    other = _no_image(content)
    if "PixelData" not in content:
        found = f"{'float' if floats else 'no'} pixels ({content.get('Modality') or other})"
        raise _Unsupported(found, "an object with pixel data", "leave it out")
    if other:
        raise _Unsupported(other, "a DICOM image", "leave it out")
    for name in _PIXELS:
        if content.get(name) in (None, ""):
            raise _fault(name, "missing or empty", "a value, which the pixels need", _EXPORT_AGAIN)
    samples, stored, photometric = content.SamplesPerPixel, content.BitsStored, content.PhotometricInterpretation
    readable = {1: (*GREYS, PALETTE), 3: COLOURS}.get(samples, ())
    inverse = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    for name, right, expected in (
        ("PhotometricInterpretation", readable, f"a colour type that is supported with {samples} samples per pixel"),
        ("PixelRepresentation", (0, 1) if samples == 1 else (0,), "0 or 1, and 0 for colours"),
        ("HighBit", (stored - 1,), f"{stored - 1}, as BitsStored is {stored}"),
        ("PixelPresentation", ("MONOCHROME", "TRUE_COLOR"), "grey values, or RGB"),
        ("PresentationLUTShape", (inverse,), f"{inverse}, as the object is {photometric}"),
        ("PresentationLUTSequence", (), "no such table"),
    ):
        if name in content and content[name].value not in (None, "", *right):
            raise _fault(name, content[name].repval, expected)
    if photometric.startswith("YBR") and content.BitsAllocated != 8:
        raise _fault("PhotometricInterpretation", f"{photometric} of {content.BitsAllocated} bits", "8 bits")


def _decoded(content: Any) -> NDArray[Any]:
    """Returns (N, H, W) for grey values and palettes, (N, H, W, 3) RGB for RGB and YCbCr; unused bits are cleared."""
    from pydicom.encaps import generate_frames
    from pydicom.pixels import pixel_array

    syntax, wanted = content.file_meta.get("TransferSyntaxUID"), int(content.get("NumberOfFrames") or 1)
    hint = _require_decoder(syntax)
    colours = content.SamplesPerPixel > 1
    try:
        coded = list(generate_frames(content.PixelData, number_of_frames=wanted)) if syntax.is_encapsulated else []
        by_pillow = [_is_8_bit_jpeg(frame, content) for frame in coded]
        if colours and coded and all(by_pillow):
            pixels = np.stack([_decoded_jpeg(frame, content) for frame in coded])
        else:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                pixels = pixel_array(content)
            _require_rows(content, (str(warning.message) for warning in caught))
    except _Unsupported:
        raise
    except Exception as error:
        found = f"{syntax.name}, but pixels that cannot be decoded ({' '.join(error_text(error).split())})"
        raise _fault("TransferSyntaxUID", found, "pixels that pydicom decodes", hint) from None
    shape = (content.Rows, content.Columns, 3) if colours else (content.Rows, content.Columns)
    frames: NDArray[Any] = pixels.astype(pixels.dtype.newbyteorder("="), copy=False).reshape(-1, *shape)
    _check_frame_count(content, len(frames), wanted)
    return frames


def _require_rows(content: Any, messages: Iterable[str]) -> None:
    """Refuses RLE frames with more rows than the header, of which pydicom only warns; a few bytes are padding."""
    for found in filter(None, map(re.compile(r"(\d+) vs\. (\d+) bytes expected").search, messages)):
        if int(found[1]) - int(found[2]) >= content.Columns:
            raise _fault("Rows", content.Rows, f"{int(found[1]) // content.Columns}, as in the pixels")


def _require_decoder(syntax: Any) -> str:
    """Refuses an encoding without an installed decoder; returns the hint for pixels that the decoder refuses."""
    from pydicom.pixels import get_decoder

    if syntax is None:
        raise _fault("TransferSyntaxUID", "missing", "the encoding of the pixels")
    hint = _DECOMPRESS if syntax.is_compressed else _EXPORT_AGAIN
    with suppress(NotImplementedError):
        if get_decoder(syntax).is_available:
            return hint
    hint = "save the frames of the video as pictures" if "MPEG" in syntax.name or "HEVC" in syntax.name else hint
    raise _fault("TransferSyntaxUID", syntax.name, "an encoding for which a decoder is installed", hint)


def _check_frame_count(content: Any, there: int, wanted: int) -> None:
    """Refuses another number of frames than the header's, and uncompressed data after them; zeros are padding."""
    from pydicom.encaps import generate_fragmented_frames
    from pydicom.pixels.utils import get_expected_length

    syntax, size = content.file_meta.TransferSyntaxUID, get_expected_length(content)
    if syntax.is_encapsulated and wanted == 1:  # without offsets, pydicom assigns all fragments to one frame
        fragments = next(generate_fragmented_frames(content.PixelData, number_of_frames=1))
        there = max(there, sum("RLE" in syntax.name or each.startswith(_FIRST_BYTES) for each in fragments))
    if there != wanted:
        raise _fault("NumberOfFrames", wanted, f"{there}, as in the pixels")
    if not syntax.is_encapsulated and any(content.PixelData[size + size % 2 :]):
        expected = f"{size}, for {wanted} x {content.Rows} x {content.Columns} pixels"
        raise _fault("PixelData", f"of {len(content.PixelData)} bytes", expected)


def _is_8_bit_jpeg(frame: bytes, content: Any) -> bool:
    """Whether a compressed frame is a JPEG of 8 bits with discrete cosine transform, which Pillow decodes.

    Raises:
        _Unsupported: another size, other bits or another colour transform than in the header, or a damaged scan;
            decoders read these without an error.
    """
    is_dct, colours = False, content.SamplesPerPixel > 1
    if frame.startswith((_FIRST_BYTES[1], b"\0\0\0\x0cjP")):  # a JP2 file has boxes before its JPEG 2000 codestream
        rows, columns, bits, transformed = _jpeg_2000_header(frame[frame.index(_FIRST_BYTES[1]) :])
        if transformed and content.PhotometricInterpretation.startswith("YBR_FULL"):
            found = f"{content.PhotometricInterpretation} of transformed colours"
            raise _fault("PhotometricInterpretation", found, "YBR_RCT or YBR_ICT")
    elif header := next((each for each in segments(frame) if each[0] in _FRAME_HEADERS), None):
        bits, rows, columns = struct.unpack_from(">B2H", frame, header[1] + 4)
        is_dct = bits == 8 and header[0] in {*SEQUENTIAL, 0xC2}  # the last is progressive
    else:
        return False
    if (rows, columns) != (content.Rows, content.Columns):
        raise _fault("Rows", f"{content.Rows} x {content.Columns} columns", f"{rows} x {columns}, as in a frame")
    if colours and bits != content.BitsStored:
        raise _fault("BitsStored", content.BitsStored, f"{bits}, as in a frame")
    if bits > content.BitsAllocated:
        raise _fault("BitsAllocated", content.BitsAllocated, f"{bits}, as in a frame")
    if is_dct and (fault := scan_fault(frame)):
        raise _fault("PixelData", fault, "intact frames", _EXPORT_AGAIN)
    return is_dct


def _jpeg_2000_header(codestream: bytes) -> tuple[int, int, int, bool]:
    """Returns rows, columns and bits of a JPEG 2000 codestream, and whether its colours are transformed."""
    right, bottom, left, top = struct.unpack_from(">4L", codestream, 8)
    coding = codestream.index(b"\xff\x52", 42)  # the segment COD
    return bottom - top, right - left, codestream[42] % 128 + 1, bool(codestream[coding + 8])


def _decoded_jpeg(frame: bytes, content: Any) -> Picture:
    """Decodes a JPEG to (H, W, 3) RGB; its own markers say whether it is YCbCr, or else the header.

    pydicom converts colours twice or not at all if markers and header differ, and with an Adobe marker.
    """
    with JpegImagePlugin.JpegImageFile(io.BytesIO(frame)) as image:
        if image.mode != "RGB":
            raise ValueError(f"{image.mode} pixels")
        marked = "adobe_transform" in image.info or [each[0] for each in image.layer] == [*b"RGB"]
        ycbcr = "jfif" in image.info or image.info.get("adobe_transform")
        if not ycbcr and (marked or content.PhotometricInterpretation == "RGB"):
            if len({each[1:3] for each in image.layer}) > 1:
                found = f"{content.PhotometricInterpretation} with frames of subsampled RGB"
                raise _fault("PhotometricInterpretation", found, "frames of YCbCr if they are subsampled")
            image.draft(None if marked else "YCbCr", image.size)  # decodes without a conversion
        return np.asarray(image)


def _displayed_grey(frames: NDArray[Any], content: Any) -> Picture:
    """Converts stored grey values (N, H, W) to displayed ones (N, H, W)."""
    padded = _padding(frames, content)
    transformed = [_frame_group(content, "PixelValueTransformationSequence", place) for place in range(len(frames))]
    values = np.stack([_rescaled(*each) for each in zip(frames, transformed, strict=True)])
    imaged = values if padded.all() else values[~padded]
    plain = values.dtype == frames.dtype == np.uint8 and content.BitsStored == 8
    low, high = (0.0, 255.0) if plain else (float(imaged.min()), float(imaged.max()))
    shown = np.empty(frames.shape, np.uint8)
    for place, numbers in enumerate(values):
        found = _windowed(numbers, _frame_group(content, "FrameVOILUTSequence", place))
        shown[place] = _to_8_bit(*(found or (numbers, low, high)))
    shown = 255 - shown if content.PhotometricInterpretation == "MONOCHROME1" else shown
    shown[padded] = 0
    return shown


def _padding(frames: NDArray[Any], content: Any) -> NDArray[np.bool_]:
    """Returns the mask of padding pixels (PS3.3, section C.7.5.1.1.2)."""
    ends = [int(n) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit") for n in numbers_of(content, name)[:1]]
    if not ends or "PixelPaddingValue" not in content:
        return np.zeros(frames.shape, bool)
    bits = 8 * frames.itemsize  # a negative value may be stored as an unsigned number
    ends = [int(np.array(end % 2**bits, f"u{frames.itemsize}").view(frames.dtype)) for end in ends]
    return (frames >= min(ends)) & (frames <= max(ends))


def _rescaled(frame: NDArray[Any], group: Any) -> NDArray[Any]:
    """Applies the modality LUT, or else the rescale slope and intercept."""
    for table in group.get("ModalityLUTSequence") or ():
        return _from_lut(frame, table, "LUT")[0]
    slope, intercept = (numbers_of(group, f"Rescale{name}")[:1] for name in ("Slope", "Intercept"))
    if slope == [0.0]:
        raise _fault("RescaleSlope", 0, "a number other than 0")
    identity = slope in ([], [1.0]) and intercept in ([], [0.0])
    return frame if identity else frame * (slope or [1.0])[0] + (intercept or [0.0])[0]


def _windowed(numbers: NDArray[Any], group: Any) -> tuple[NDArray[Any], float, float] | None:
    """Applies the VOI LUT, or else the first window; returns the values with those of black and white, or ``None``."""
    from pydicom import Dataset
    from pydicom.pixels import apply_windowing

    for table in group.get("VOILUTSequence") or ():
        entries, bits = _from_lut(numbers, table, "LUT")
        return entries, 0, 2**bits - 1
    center, width = numbers_of(group, "WindowCenter"), numbers_of(group, "WindowWidth")
    if not center or not width:
        return None
    window = Dataset()
    window.PhotometricInterpretation, window.BitsStored, window.PixelRepresentation = "MONOCHROME2", 8, 0
    window.WindowCenter, window.WindowWidth = center[0], width[0]
    window.VOILUTFunction = str(group.get("VOILUTFunction") or "LINEAR").strip()
    try:
        return apply_windowing(numbers, window), 0, 255
    except ValueError as error:
        found = f"{window.VOILUTFunction}, {center[0]:g} and {width[0]:g} ({error})"
        raise _fault("WindowCenter", found, "a window of PS3.3, section C.11.2") from None


def _from_lut(numbers: NDArray[Any], item: Any, name: str) -> tuple[NDArray[np.uint16], int]:
    """Looks numbers up in a table (PS3.3, section C.11.1.1); returns the entries and their bits.

    pydicom's own functions take indices into 8-bit tables modulo 256, and read big-endian bytes as little-endian.
    """
    described = [int(number) for number in numbers_of(item, f"{name}Descriptor")]
    data = item.get(f"{name}Data")
    if len(described) != 3 or data is None:
        raise _fault(f"{name}Descriptor", f"{described} without {name}Data" if data is None else described, "a table")
    count, first, bits = described[0] % 2**16 or 2**16, *described[1:]
    first -= 2**16 * int(first >= 2**15 > numbers.max())  # without VRs, pydicom assumes the sign of the pixels
    order = "<" if item.original_encoding[1] is not False else ">"
    raw = data if isinstance(data, bytes) else np.atleast_1d(data).astype("u2").astype(f"{order}u2").tobytes()
    size = len(raw) // count
    if size not in (1, 2):
        raise _fault(f"{name}Data", f"of {len(raw)} bytes", f"{count} entries of 8 or 16 bits")
    entries = np.frombuffer(raw, f"{order}u{size}", count).astype(np.uint16)
    if not 8 <= bits <= 16 or int(entries.max()) >= 2**bits:
        raise _fault(f"{name}Descriptor", f"{bits} bits with entries up to {entries.max()}", "the bits of the entries")
    return entries[np.clip(np.rint(numbers).astype(np.int64) - first, 0, count - 1)], bits


def _from_palette(frames: NDArray[Any], content: Any) -> Picture:
    """Applies palettes, to (N, H, W, 3); a palette declared as 16 bits may have 8-bit entries."""
    from pydicom.pixels import apply_color_lut

    segmented = "SegmentedRedPaletteColorLookupTableData"
    if segmented in content:
        count, _, bits = content.RedPaletteColorLookupTableDescriptor
        if bits == 8 and not 0 < count <= 256:
            raise _fault(segmented, f"of {count} entries of 8 bits", "at most 256")
        colours = np.stack([apply_color_lut(frame, content)[..., :3] for frame in frames])
    else:
        channels = [_from_lut(frames, content, f"{name}PaletteColorLookupTable") for name in ("Red", "Green", "Blue")]
        colours, bits = np.stack([channel for channel, _ in channels], axis=-1), channels[0][1]
    return (colours >> (bits - 8 if colours.max() > 255 else 0)).astype(np.uint8)


def _pixel_area(content: Any, frames: int) -> float | None:
    areas = set()
    for place in range(frames):
        spacing = numbers_of(_frame_group(content, "PixelMeasuresSequence", place), "PixelSpacing")
        if any(side < 0 for side in spacing):
            raise _fault("PixelSpacing", spacing, "two lengths in mm")
        areas.add(spacing[0] * spacing[1] if len(spacing) == 2 else 0.0)
    return (areas.pop() or None) if len(areas) == 1 else None


def _frame_group(content: Any, name: str, place: int) -> Any:
    """Returns the dataset that describes a frame: its functional group, the shared one, or else the object itself.

    Enhanced objects have functional groups (PS3.3, section C.7.6.16), classic ones do not.
    """
    for groups, of in (("PerFrameFunctionalGroupsSequence", place), ("SharedFunctionalGroupsSequence", 0)):
        items = content.get(groups) or ()
        if of < len(items) and items[of].get(name):
            return items[of].get(name)[0]
    return content


def numbers_of(content: Any, name: str) -> list[float]:
    """Returns the numbers of an element, also if stored as text or with decimal commas; none if it is empty.

    Raises:
        ValueError: a value is not a finite number, or only some are empty.
    """
    try:
        value = content.get(name)
    except Exception:  # text that the VR does not allow
        value = content.get_item(name).value
    value = value.decode("latin-1") if isinstance(value, bytes) else value
    value = value.split("\\") if isinstance(value, str) else value
    values = value if isinstance(value, Sequence) else [value]
    listed = [str("" if each is None else each).strip(" \0").replace(",", ".") for each in values]
    with suppress(ValueError):
        numbers = [float(text) for text in listed] if any(listed) else []
        if all(map(math.isfinite, numbers)):
            return numbers
    raise _fault(name, ", ".join(map(repr, listed)), "finite numbers")


def _to_8_bit(numbers: NDArray[Any], low: float, high: float) -> Picture:
    if numbers.dtype == np.uint8 and (low, high) == (0, 255):
        return numbers
    return np.rint(np.clip((numbers.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)
