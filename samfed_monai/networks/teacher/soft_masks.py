"""Fills a site's soft-mask store: the frozen teacher sees each image once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from samfed_monai.bars import progress_bar
from samfed_monai.networks.sam.teacher import Teacher
from samfed_monai.networks.teacher.pairs import read_image_tensor


class Store(Protocol):
    """What :func:`fill_store` needs of a ``samfed_monai.data.SoftMaskStore``."""

    def missing(self, image_sha256s: Sequence[str]) -> list[str]: ...

    def put(self, image_sha256: str, probabilities: Tensor) -> None: ...


def fill_store(teacher: Teacher, records: Sequence[dict[str, Any]], store: Store, *, progress: bool = True) -> int:
    """Computes the soft masks that ``store`` lacks; repeating it, also after a kill, computes only what is missing.

    The stored mask covers exactly the image: its longer side has ``teacher.size / 4`` pixels and its aspect is the
    image's, so that a bilinear resize to the image's size puts it in register (see ``Teacher.probabilities``).

    Args:
        teacher: gives the probabilities; ``store`` must have been opened with its ``sha256``.
        records: dicts with ``image`` (path) and ``image_sha256``; labels are not read.
        store: where to put ``(1, h, w)`` float in [0, 1].
        progress: show a bar with the time left.

    Returns:
        How many masks were computed.
    """
    by_hash = {record["image_sha256"]: record for record in records}
    missing = store.missing(list(by_hash))
    with progress_bar(total=len(missing), desc="soft masks", unit="image", show=progress and bool(missing)) as bar:
        for sha256 in missing:
            image = read_image_tensor(by_hash[sha256]).float() / 255
            store.put(sha256, teacher.probabilities(image).cpu()[0])
            bar.update()
    return len(missing)
