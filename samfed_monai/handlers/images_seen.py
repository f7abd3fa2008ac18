"""Counts the different images that an engine receives, independently of its loaders and datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Events

IMAGE_READ = "image_read"
"""Key of an item's SHA-256 of the image file that was read; empty for a public image."""

_UNKNOWN = "an item without an image"


@dataclass
class SeenCounts:
    """Images seen in one kind of batch, without public ones.

    Args:
        images: identities of the different images.
        drawn: number of images, including repeats.
        hashed: whether all of them came with the hash of their file.
    """

    images: set[str] = field(default_factory=set)
    drawn: int = 0
    hashed: bool = True

    @property
    def repeated(self) -> bool:
        return len(self.images) < self.drawn

    def take(self, batch: Any) -> list[bool]:
        """Counts a batch and returns for each of its items whether the image was seen before."""
        repeats = []
        for identity, hashed in identities(batch):
            repeats.append(identity in self.images)
            if identity:
                self.images.add(identity)
                self.drawn, self.hashed = self.drawn + 1, self.hashed and hashed
        return repeats


def identities(batch: Any) -> Iterator[tuple[str, bool]]:
    """Yields the identity of each image in a batch, and whether it is the hash of its file; else it is the hash of the
    pixels. The identity of a public image is empty. Items without an image have one common identity."""
    if isinstance(batch, Mapping):
        images, read = batch.get("image"), batch.get(IMAGE_READ)
        if isinstance(read, list | tuple) and read and all(isinstance(each, str) for each in read):
            yield from ((each, True) for each in read)
        elif isinstance(read, str):
            yield read, True
        elif isinstance(images, torch.Tensor) and images.ndim > 3:
            yield from ((_hash(image), False) for image in images)
        else:
            yield _hash(images), False
    elif isinstance(batch, list | tuple) and batch and all(isinstance(each, Mapping) for each in batch):
        for each in batch:
            yield from identities(each)
    else:
        yield from identities({"image": batch[0] if isinstance(batch, Sequence) and len(batch) else batch})


def _hash(image: Any) -> str:
    if not isinstance(image, torch.Tensor):
        try:
            image = torch.as_tensor(image)
        except (TypeError, ValueError, RuntimeError):
            return _UNKNOWN
    values = image.detach().cpu().contiguous().as_subclass(torch.Tensor)
    return hashlib.blake2b(values.flatten().view(torch.uint8).numpy(), digest_size=16).hexdigest()


class ImagesSeen:
    """Counts images of an engine's own batches (``batch``) and of its unlabelled stream (``stream``).

    It sets ``engine.state.repeats`` to which items of the current batch were seen before; :class:`ScoreHandler` scores
    each image once. Images that other components read are not counted.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Resets the counts."""
        self.batch, self.stream = SeenCounts(), SeenCounts()

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self._count_batch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count_stream)

    def least(self) -> SeenCounts | None:
        """The one of the two with fewer images; ``None`` if there were only public ones."""
        counts = [seen for seen in (self.batch, self.stream) if seen.drawn]
        return min(counts, key=lambda seen: len(seen.images), default=None)

    def _count_batch(self, engine: Any) -> None:
        engine.state.repeats = self.batch.take(engine.state.batch)

    def _count_stream(self, engine: Any) -> None:
        guidance = getattr(engine.state, "guidance", None)
        if guidance is not None:
            self.stream.take(guidance.batch)
