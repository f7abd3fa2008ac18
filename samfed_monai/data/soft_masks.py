"""The soft-mask store: the frozen teacher's probabilities for each private image, computed once and reused."""

from __future__ import annotations

import logging
import os
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional

from samfed_monai.core.errors import AGAIN, refused
from samfed_monai.core.io import make_folder, write_bytes

logger = logging.getLogger(__name__)


def resize_probabilities(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes soft masks bilinearly, with antialiasing when shrinking and without aligned corners.

    Args:
        masks: ``(B, C, H, W)`` float in [0, 1].
        size: height and width in pixels.

    Returns:
        ``(B, C, *size)``, clamped to [0, 1], as the weights of a resize may add up to slightly more than 1. ``masks``
        itself if it already has that size.
    """
    height, width = masks.shape[-2:]
    if (height, width) == tuple(size):
        return masks
    shrinks = height > size[0] or width > size[1]
    resized = functional.interpolate(masks, tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)
    return resized.clamp_(0, 1)


_SUFFIX = ".mask"
_MAGIC = b"SFM3"
_HEADER = struct.Struct("<4sHHHI")  # magic, planes, height, width, CRC-32 of the key and the pixels
_LEVELS = np.float32(255)
_HASH = re.compile(r"[0-9a-f]{64}")


class SoftMaskStore:
    """Teacher probabilities of images, one small file each, keyed by (image hash, teacher hash).

    A probability p is stored as ``round(255 p)``, so it is restored within 1/510, up to float32 rounding. Pixels are
    not compressed: 10,000 masks of 256 x 256 take 0.7 GB, with K classes K + 1 times as much. Masks are written
    atomically: after a crash a mask is complete or missing. A damaged file counts as missing, with a warning, and the
    next :meth:`put` replaces it. Files have mode 0600 and folders 0700: private soft masks stay at their site. The
    store does not run the teacher; ``fill_store`` does.

    Args:
        folder: the store; each teacher has its own subfolder, so several teachers can share a store.
        teacher_sha256: identity of the teacher, 64 hexadecimal digits.

    Raises:
        Refused: ``teacher_sha256`` is not a hash.

    Example::

        store = SoftMaskStore("run/store", teacher_sha256=teacher.sha256)
        for image in store.missing(hashes):
            store.put(image, probabilities)
    """

    def __init__(self, folder: str | Path, *, teacher_sha256: str) -> None:
        self.teacher_sha256 = _require_hash(teacher_sha256, "teacher_sha256", "Teacher.sha256")
        self.folder, self._masks = Path(folder), Path(folder) / teacher_sha256

    def missing(self, image_sha256s: Iterable[str]) -> list[str]:
        """Returns the given hashes without a readable mask, in order, without duplicates."""
        return [image for image in dict.fromkeys(image_sha256s) if image not in self]

    def put(self, image_sha256: str, probabilities: Tensor) -> None:
        """Writes one image's mask atomically, replacing an older one.

        Args:
            image_sha256: SHA-256 of the image file, 64 hexadecimal digits.
            probabilities: (C, h, w) float in [0, 1], on any device; at most 65,535 pixels wide and high. C is 1, or
                K + 1 for K classes, the background first.

        Raises:
            Refused: wrong shape, NaN, or values outside [0, 1]. Nothing is written then.
        """
        path = self._path(image_sha256)
        values = probabilities.detach().float().cpu().numpy()
        if values.ndim != 3 or len(values) == 2 or not 0 < min(values.shape) <= max(values.shape) < 2**16:
            expected = "shape (1, h, w), or of K classes (K + 1, h, w)"
            raise refused(f"soft mask of {image_sha256[:12]}", found=f"shape {values.shape}", expected=expected)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN fails both comparisons
            found = f"values from {values.min():.9g} to {values.max():.9g}"
            raise refused(f"soft mask of {image_sha256[:12]}", found=found, expected="probabilities in [0, 1]")
        pixels = np.rint(values.astype(np.float64) * 255).astype(np.uint8).tobytes()
        for folder in (self.folder, self._masks, path.parent):
            make_folder(folder)
            if folder.stat().st_mode & 0o077:
                os.chmod(folder, 0o700)
        write_bytes(path, _HEADER.pack(_MAGIC, *values.shape, self._checksum(image_sha256, pixels)) + pixels)

    def get(self, image_sha256: str) -> Tensor:
        """Reads one image's mask.

        Returns:
            (C, h, w) float32 in [0, 1], as written by :meth:`put`.

        Raises:
            Refused: this teacher's mask of the image is missing or damaged.
        """
        import torch

        pixels = self._read(image_sha256)
        if pixels is None:
            where = f"soft-mask store {self.folder} -> image {image_sha256[:12]}…"
            found = f"no readable mask by teacher {self.teacher_sha256[:12]}…"
            hint = f"{AGAIN}: it computes only what is missing; or set teacher_sha256 to the teacher that filled it"
            raise refused(where, found, "a soft mask of every unlabelled image", hint)
        return torch.from_numpy(pixels / _LEVELS)

    def __contains__(self, image_sha256: object) -> bool:
        """Whether there is a readable mask; its checksum is verified."""
        return isinstance(image_sha256, str) and self._read(image_sha256) is not None

    def __len__(self) -> int:
        """Number of this teacher's masks in the store, damaged ones included."""
        return sum(1 for _ in self._masks.glob(f"??/*{_SUFFIX}"))

    def _path(self, image_sha256: str) -> Path:
        name = _require_hash(image_sha256, "image_sha256", "the image file")
        return self._masks / name[:2] / f"{name}{_SUFFIX}"

    def _checksum(self, image_sha256: str, pixels: bytes) -> int:
        """Returns a CRC-32 that also covers the key: a file copied to another image's or teacher's name is detected."""
        return zlib.crc32(pixels, zlib.crc32(bytes.fromhex(image_sha256 + self.teacher_sha256)))

    def _read(self, image_sha256: str) -> np.ndarray | None:
        """Returns the quantised pixels (C, h, w), or ``None`` if the file is missing or damaged."""
        path = self._path(image_sha256)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if len(content) >= _HEADER.size:
            magic, *shape, checksum = _HEADER.unpack_from(content)
            pixels = content[_HEADER.size :]
            if (magic, len(pixels), checksum) == (_MAGIC, prod(shape), self._checksum(image_sha256, pixels)):
                return np.frombuffer(pixels, np.uint8).reshape(shape)
        logger.warning("soft mask %s is damaged: it counts as missing and will be computed again", path)
        return None


def _require_hash(text: object, name: str, source: str) -> str:
    if not isinstance(text, str) or not _HASH.fullmatch(text):  # a command line reads digits as a number
        expected, hint = "64 lower-case hexadecimal digits", f"give the SHA-256 of {source}"
        raise refused(f"soft-mask store -> {name}", found=repr(text), expected=expected, hint=hint)
    return text
