"""Batches of logits and targets for fitting a teacher: through the encoder, or from embeddings made once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from samfed_monai.bars import progress_bar
from samfed_monai.networks.autocast import Switch, autocast, bf16_possible
from samfed_monai.networks.sam.augment import Augmentation, augment
from samfed_monai.networks.sam.geometry import pad, place
from samfed_monai.networks.sam.model import PromptFreeSam
from samfed_monai.networks.teacher.pairs import Pair
from samfed_monai.networks.teacher.recipe import quarter
from samfed_monai.seeds import derive_seed


class ImageBatches:
    """Each call augments every image anew and runs the whole network, with gradients.

    Args:
        sam: the network that is being fitted.
        pairs: the public images and masks.
        size: side of its input in pixels.
        batch_size: images a batch.
        seed: decides order and augmentation, as a function of (seed, epoch, image).
        bf16: bfloat16 for the encoder.
        augmentation: how far images are changed; ``None`` is the defaults.
    """

    def __init__(
        self,
        sam: PromptFreeSam,
        pairs: Sequence[Pair],
        *,
        size: int,
        batch_size: int,
        seed: int,
        bf16: Switch,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.sam, self.pairs, self.size, self.batch_size = sam, pairs, size, batch_size
        self.seed, self.bf16, self.augmentation = seed, bf16, augmentation
        self.steps = -(-len(pairs) // batch_size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields logits and targets, ``(B, 1, size / 4, size / 4)`` each, once over all images."""
        for inputs, targets in self.inputs(epoch):
            yield self.sam.decode(self.encode(inputs)), targets

    def inputs(self, part: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields augmented images, ``(B, 3, size, size)``, and targets, once over all; ``part`` names the epoch."""
        for indices in self._order(part):
            inputs, targets = zip(*(self.augmented(index, part) for index in indices), strict=True)
            yield torch.cat(inputs), self._to_device(torch.cat(targets))

    def encode(self, inputs: Tensor) -> Tensor:
        """Normalised, padded images to float32 embeddings."""
        inputs = self._to_device(inputs)
        with autocast(inputs.device.type, bf16_possible(self.bf16, inputs.device.type)):
            return self.sam.encode(inputs).float()

    def augmented(self, index: int, part: Any) -> tuple[Tensor, Tensor]:
        """Image ``index`` as a normalised ``(1, 3, size, size)`` and its target; ``part`` names the random numbers."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "teacher", part, index))
        return self._finish(*augment(*self.pairs[index].floats(), self.size, generator, self.augmentation))

    def plain(self, index: int) -> tuple[Tensor, Tensor]:
        """The same without augmentation."""
        image, mask = self.pairs[index].floats()
        return self._finish(place(image, self.size), place(mask, self.size))

    def _finish(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.sam.pixel_mean.cpu(), self.sam.pixel_std.cpu()
        return pad((image - mean) / std, self.size), quarter(pad(mask, self.size))

    def _order(self, epoch: Any) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "teacher order", epoch))
        for indices in torch.randperm(len(self.pairs), generator=generator).split(self.batch_size):
            yield indices.tolist()

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.sam.pixel_mean.device)


class EmbeddedBatches(ImageBatches):
    """For a frozen encoder: ``views`` views of each image are encoded once, each epoch draws one of them per image.

    The first view is the image as it is, the others are augmented. Embeddings are kept as float16.
    """

    def __init__(
        self, sam: PromptFreeSam, pairs: Sequence[Pair], *, views: int, progress: bool = False, **settings: Any
    ) -> None:
        super().__init__(sam, pairs, **settings)
        self.views = views
        self._embedded: list[list[tuple[Tensor, Tensor]]] = []
        for index in progress_bar(range(len(pairs)), desc="embeddings", unit="image", show=progress):
            made = [self.plain(index), *(self.augmented(index, f"view {view}") for view in range(1, views))]
            with torch.no_grad():
                self._embedded.append([(self.encode(inputs).half(), target) for inputs, target in made])

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields logits and targets, ``(B, 1, size / 4, size / 4)`` each, once over all images."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "teacher views", epoch))
        choice = torch.randint(self.views, (len(self.pairs),), generator=generator).tolist()
        for indices in self._order(epoch):
            embeddings, targets = zip(*(self._embedded[index][choice[index]] for index in indices), strict=True)
            yield self.sam.decode(torch.cat(embeddings).float()), self._to_device(torch.cat(targets))
