"""Counts the different images that an engine is given, whatever its loaders and data sets say of themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Events

IMAGE_READ = "image_read"
"""Key of an item for the SHA-256 of the image file that was read; empty for a public image."""

_UNKNOWN = "an item without an image"


@dataclass
class Seen:
    """Images of one kind of batch; public ones are left out.

    Args:
        images: what tells them apart, one each.
        drawn: how many there were, repeats included.
        hashed: whether every one of them came with the hash of its file.
    """

    images: set[str] = field(default_factory=set)
    drawn: int = 0
    hashed: bool = True

    @property
    def repeated(self) -> bool:
        return len(self.images) < self.drawn

    def take(self, batch: Any) -> list[bool]:
        """Counts a batch; says of each of its items whether its image was there before."""
        repeats = []
        for identity, hashed in identities(batch):
            repeats.append(identity in self.images)
            if identity:
                self.images.add(identity)
                self.drawn, self.hashed = self.drawn + 1, self.hashed and hashed
        return repeats


def identities(batch: Any) -> Iterator[tuple[str, bool]]:
    """What tells each image of a batch from others, and whether it is the hash of its file; else it is that of its
    pixels as they arrive. Empty for a public image. Items without an image count as one."""
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
    """Counts images of an engine's own batches (``batch``) and of its unlabelled stream's (``stream``).

    It leaves on ``engine.state.repeats`` which items of the current batch were there before; :class:`ScoreHandler`
    scores those once. It does not see images that other components read by themselves.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self.batch, self.stream = Seen(), Seen()

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self._batch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stream)

    def least(self) -> Seen | None:
        """Of the two the one with fewer images; ``None`` where there were none but public ones."""
        return min(
            (each for each in (self.batch, self.stream) if each.drawn), key=lambda s: len(s.images), default=None
        )

    def _batch(self, engine: Any) -> None:
        engine.state.repeats = self.batch.take(engine.state.batch)

    def _stream(self, engine: Any) -> None:
        guidance = getattr(engine.state, "guidance", None)
        if guidance is not None:
            self.stream.take(guidance.batch)
