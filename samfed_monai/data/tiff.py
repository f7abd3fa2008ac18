"""TIFF files into pictures: one image of a file, by what its tags say (TIFF 6.0); what they say of others is refused.

``tifffile`` reads the tags and what Pillow decodes in part; Pillow decodes the rest.
"""

from __future__ import annotations

import io
import logging
import zlib
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from samfed_monai.core.errors import Refused, refused

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
KINDS = {UNSIGNED: "unsigned", SIGNED: "signed", FLOAT: "float"}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
DECODED = {WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB}
BY_PILLOW = {(UNSIGNED, 1), (UNSIGNED, 2), (UNSIGNED, 4), (UNSIGNED, 8), (UNSIGNED, 12), (UNSIGNED, 16)}
NUMBERS_BY_PILLOW = BY_PILLOW | {(SIGNED, 16), (UNSIGNED, 32), (SIGNED, 32), (FLOAT, 32)}
REDUCED, TRANSPARENCY = 1, 4  # bits of tag 254
OLD_REDUCED = 2  # of tag 255
ASSOCIATED, UNASSOCIATED = 1, 2  # of tag 338; the first has colours multiplied by alpha
UNCOMPRESSED, DEFLATE = 1, (8, 32946)  # of tag 259
MOST_SAMPLES = 8
WEBP = 50001  # a compression that Pillow's libtiff may lack
TO_8_BIT = "save it as 8-bit RGB or grey"
SPLIT = "save the one you mean, or each, as a file of its own (for instance with `tiffsplit`)"

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it cannot read is refused here


def decode_tiff(content: bytes, name: str, *, max_pixels: int, numbers: bool) -> Image.Image:
    """The only image of a TIFF file, with its pages of reduced size left out.

    Grey of 16 bits has the mode ``I;16`` and black as 0, of 12 bits scaled to 16; colours of 16 bits have 8 and
    ``info["deep"]``. ``info["turned"]`` says whether tag 274 turns it; Pillow has done so already.

    Args:
        content: the file.
        name: for messages.
        max_pixels: the largest width times height.
        numbers: whether the samples are numbers whatever their range, as masks have them: signed ones, whole ones of 32
            bits and floats are read, too (modes ``I`` and ``F``).

    Raises:
        Refused: several images, or samples that are not read, with the tag that says so.
        Exception: of many kinds, for a damaged file.
    """
    from tifffile import TiffFile

    with TiffFile(io.BytesIO(content)) as file:
        index, page = _only_image(file, name)
        tags = _Tags(page, name)
        if page.imagewidth * page.imagelength > max_pixels:
            raise Image.DecompressionBombError(f"{page.imagewidth} x {page.imagelength} pixels")
        tags.refuse_unread(numbers)
        colours = tags.samples > 1 and tags.bits == 16
        if (
            (colours and tags.loose_planes)
            or (tags.kind, tags.bits) not in NUMBERS_BY_PILLOW
            or page.compression == WEBP
        ):
            image = _by_tifffile(page, tags)
        else:
            try:
                image = _by_pillow(content, index, tags, numbers)
            except UnidentifiedImageError:
                image = _by_tifffile(page, tags)
    if 0 in image.size:
        raise ValueError("no pixels")
    image.format = "TIFF"
    image.info |= {"deep": colours, "turned": page.tags.valueof(274, 1) in range(2, 9)}
    return image


class _Tags:
    """What the tags of an image say of its samples."""

    def __init__(self, page: Any, name: str) -> None:
        self.page, self.name = page, name
        self.photometric = page.tags.valueof(262)
        self.samples = int(page.samplesperpixel)
        self.planar = int(page.planarconfig or 1) == 2 and self.samples > 1
        #: Pillow misreads some separate planes where they are not compressed.
        self.loose_planes = self.planar and page.compression == UNCOMPRESSED
        kinds = {UNSIGNED if kind == 4 else int(kind) for kind in _all(page.tags.valueof(339, UNSIGNED))}
        bits = set(_all(page.tags.valueof(258, 1))[: self.samples])
        if len(kinds) > 1 or len(bits) > 1:
            raise self.refusal(258, f"samples of {sorted(bits)} bits and formats {sorted(kinds)}", "all alike")
        (self.kind,), (self.bits,) = kinds, bits
        self.extra = tuple(int(each) for each in page.extrasamples)

    def refusal(self, tag: int, found: str, expected: str, hint: str = TO_8_BIT) -> Refused:
        from tifffile import TIFF

        shown = f"{found} (tag {tag}, {TIFF.TAGS.get(tag, 'unknown')})"
        return refused(self.name, found=shown, expected=expected, hint=hint)

    def _alpha(self) -> list[int]:
        return [each for each in self.extra if each in (ASSOCIATED, UNASSOCIATED)]

    def refuse_unread(self, numbers: bool) -> None:
        """Refuses what neither Pillow nor :func:`_by_tifffile` reads rightly."""
        if self.photometric is None:
            raise self.refusal(262, "nothing that says whether 0 is black", "that tag")
        if int(self.photometric) not in DECODED:
            found = getattr(self.photometric, "name", str(self.photometric))
            raise self.refusal(262, f"pixels of the kind {found}", "grey, RGB, palette, CMYK, YCbCr or CIELab")
        what = f"{KINDS.get(self.kind, 'other')} samples of {self.bits} bits"
        if not numbers and (self.kind, self.bits) not in BY_PILLOW:
            expected = "unsigned samples of 1, 2, 4, 8, 12 or 16 bits"
            raise self.refusal(258 if self.kind == UNSIGNED else 339, what, expected)
        if self.kind not in KINDS:
            raise self.refusal(339, what, "whole numbers")
        if self.photometric == WHITE_IS_ZERO and (self.kind != UNSIGNED or self.bits not in (1, 2, 4, 8, 16)):
            raise self.refusal(262, f"white as zero with {what}", "black as zero")
        if self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and self.samples - len(self._alpha()) > 1:
            raise self.refusal(277, f"{self.samples} channels of grey", "one", SPLIT)
        if self.samples > MOST_SAMPLES:
            raise self.refusal(277, f"{self.samples} samples in a pixel", f"at most {MOST_SAMPLES}")
        if self.loose_planes and ASSOCIATED in self.extra:
            raise self.refusal(338, "separate planes of colours multiplied by alpha", "alpha apart, or none")
        if self.photometric == CMYK and self.page.tags.valueof(332, 1) != 1:
            raise self.refusal(332, "inks that are not CMYK", "CMYK or RGB")
        if int(self.page.tags.valueof(32997, 1)) > 1:
            raise self.refusal(32997, f"a volume of {self.page.imagedepth} slices", "one image", SPLIT)


def _only_image(file: Any, name: str) -> tuple[int, Any]:
    """Which page of a file is its image, and that page; those of reduced size and transparency masks are none."""
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
        found, expected = f"{number} images in one file", "one image, beside thumbnails (tag 254, NewSubfileType)"
        raise refused(name, found=found, expected=expected, hint=SPLIT)
    if index < 0:
        found = "a thumbnail, and the image behind it (tag 330, SubIFDs)"
        raise refused(name, found=found, expected="the image as the first", hint=TO_8_BIT)
    return index, page


def _is_reduced(page: Any) -> bool:
    kind = int(page.tags.valueof(254, 0))
    return bool(kind & (REDUCED | TRANSPARENCY)) or page.tags.valueof(255) == OLD_REDUCED


def _is_smaller(page: Any, than: Any) -> bool:
    return bool(page.imagewidth < than.imagewidth and page.imagelength < than.imagelength)


def _by_pillow(content: bytes, index: int, tags: _Tags, numbers: bool) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(content), formats=("TIFF",))
    if index:
        image.seek(index)
    image.load()
    if tags.photometric == PALETTE and np.max(tags.page.tags.valueof(320)) < 256:  # 8 bits instead of TIFF's 16
        colours = np.reshape(tags.page.tags.valueof(320), (3, -1))
        image.putpalette(colours.T.astype(np.uint8).tobytes())
    if image.mode == "La":
        return image.convert("LA")
    if tags.bits == 16 and tags.photometric == WHITE_IS_ZERO:
        return Image.fromarray(65535 - np.asarray(image).astype(np.uint16))
    if tags.bits == 12 and not (numbers and np.asarray(image).max() <= 1):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16))
    return image


def _by_tifffile(page: Any, tags: _Tags) -> Image.Image:
    """Grey and RGB of 8 and 16 bits, and numbers that Pillow has no type for."""
    unsigned = tags.kind == UNSIGNED and tags.bits in (8, 16)
    if not (tags.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) or (unsigned and tags.photometric == RGB)):
        planes = "separate planes" if tags.planar else "samples"
        raise tags.refusal(262, f"{planes} of {tags.bits} bits, {tags.photometric.name}", "grey or RGB of 8 or 16 bits")
    if ASSOCIATED in tags.extra:
        raise tags.refusal(338, "colours multiplied by alpha", "alpha apart, or none")
    if tags.bits % 8 or (tags.photometric == RGB and tags.samples < len("RGB")):
        raise tags.refusal(258, f"{tags.samples} samples of {tags.bits} bits", "grey or RGB of 8 or 16 bits")
    if not all(page.databytecounts):
        raise ValueError("strips or tiles without bytes")
    if page.compression in DEFLATE:  # tifffile puts no bound on what a strip becomes
        for content, _ in page.parent.filehandle.read_segments(page.dataoffsets, page.databytecounts):
            unpacking = zlib.decompressobj()
            unpacking.decompress(content, page.nbytes + 1)
            if unpacking.unconsumed_tail:
                raise ValueError("strips or tiles that are larger than the image")
    try:
        values: NDArray[Any] = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        hint = "pip install 'samfed-monai[tiff]', or save it without compression"
        raise tags.refusal(259, f"the compression {page.compression.name}", "one that is read", hint) from None
    values = np.moveaxis(values, 0, -1) if tags.planar else values
    if tags.photometric == RGB:
        values = values[..., :3]
        image = Image.fromarray(values if tags.bits == 8 else to_8_bit(values))
    elif unsigned or (tags.bits == 8 and values.min() >= 0):
        values = values[..., 0] if tags.samples > 1 else values
        values = values.astype(f"u{values.itemsize}")
        image = Image.fromarray(values if tags.photometric == BLACK_IS_ZERO else np.iinfo(values.dtype).max - values)
    elif tags.kind == FLOAT:
        image = Image.fromarray(values.astype(np.float32))
    else:
        image = Image.fromarray(np.clip(values, -1, 65536).astype(np.int32))
    image.getexif()[274] = int(page.tags.valueof(274, 1))
    return image


def to_8_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    """16-bit values by their type: 65,535 becomes 255; 8-bit ones as they are."""
    if values.dtype == np.uint8:
        return values
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _all(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
