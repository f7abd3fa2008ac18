"""The public images in exchanges of predictions: soft masks by a network, and training on given targets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from samfed_monai.core.errors import refused
from samfed_monai.core.validators import one_of, require, whole
from samfed_monai.data.soft_masks import resize_probabilities
from samfed_monai.handlers.records import TermLogger
from samfed_monai.handlers.rounds import DivergenceGuard, SeedHandler, forget_unfinished_run
from samfed_monai.handlers.unlabelled_stream import EndlessSampler
from samfed_monai.losses import Reliability, image_reliability, probabilities
from samfed_monai.transforms.loading import PublicTargets


class PublicPredictor:
    """Runs networks over the unaugmented public set; all soft masks on ``D_p`` are computed here.

    Server and site use the same code, so that a network gives the same bytes on both sides.

    Args:
        dataset: labelled public items without random transforms, all of one size.
        device: device of the networks, which run in float32, so that the other side can reproduce the result.
        batch_size: images in a batch; it must be the same on both sides for equal bits.
        mask_size: side of a mask in pixels; ``None`` is a quarter of the image's side, the resolution of the networks'
            own logits (DeepLabV3+).
        reliability: ``dice`` or ``pixel_accuracy``.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        device: torch.device | str = "cpu",
        batch_size: int = 8,
        mask_size: int | None = None,
        reliability: str = "dice",
    ) -> None:
        require(
            one_of("client_algorithm#reliability", reliability, Reliability),
            whole("client_algorithm#mask_size", mask_size, "a number of pixels", least=1, or_null=True),
        )
        self.dataset, self.device = dataset, torch.device(device)
        self.batch_size, self.mask_size, self.reliability_measure = batch_size, mask_size, reliability

    @property
    def labels(self) -> Tensor:
        """(N, 1, H, W) uint8, or the planes (N, K + 1, H, W) of several classes; read once."""
        return self._labels_and_hash[0]

    @property
    def public_hash(self) -> str:
        """SHA-256 of ``D_p`` as used: image files, labels at the evaluation size, and their order."""
        return self._labels_and_hash[1]

    def masks(self, network: nn.Module) -> Tensor:
        """The network's soft masks of all public images.

        Returns:
            (N, C, h, w) uint8 on the CPU, 255 for a probability of 1; the error of a probability is at most 1/510.

        Raises:
            Refused: the network gives NaN or infinity.
        """
        masks = []
        with eval_mode(network):
            for batch in self._batches():
                predicted = probabilities(network(batch["image"].to(self.device))).float().cpu()
                if not torch.isfinite(predicted).all():
                    hint = "lower the learning rate; the network has diverged"
                    raise refused("soft masks", "NaN or infinity", "probabilities in [0, 1]", hint)
                predicted = resize_probabilities(predicted, self._size(predicted))
                # without MONAI's metadata, with which they could not be collated to batches
                masks.append((predicted * 255).round().to(torch.uint8).as_subclass(torch.Tensor))
        return torch.cat(masks)

    def like(self, network: nn.Module) -> Tensor:
        """A tensor with shape and dtype of :meth:`masks`, from one image and without memory; values are meaningless."""
        with eval_mode(network):
            predicted = probabilities(network(torch.as_tensor(self.dataset[0]["image"])[None].to(self.device)))
        images = len(self.dataset)  # type: ignore[arg-type]
        return torch.zeros((), dtype=torch.uint8).expand(images, predicted.shape[1], *self._size(predicted))

    def reliability(self, masks: Tensor) -> Tensor:
        """(N,) float in [0, 1] of (N, C, h, w) uint8 masks, at the labels' size."""
        size = self.labels.shape[-2:]
        values = []
        for chunk, labels in zip(masks.split(64), self.labels.split(64), strict=True):
            resized = resize_probabilities(chunk.float() / 255, size)
            values.append(image_reliability(resized, labels, self.reliability_measure))
        return torch.cat(values)

    def _size(self, predicted: Tensor) -> tuple[int, int]:
        height, width = (self.mask_size or max(1, side // 4) for side in predicted.shape[-2:])
        return height, width

    def _batches(self) -> Any:
        # iterating a loader draws a seed; with its own generator no other random numbers change
        return DataLoader(self.dataset, batch_size=self.batch_size, num_workers=0, generator=torch.Generator())

    @cached_property
    def _labels_and_hash(self) -> tuple[Tensor, str]:
        labels, digest = [], hashlib.sha256()
        for batch in self._batches():
            part = (batch["label"] > 0.5).to(torch.uint8) if batch["label"].is_floating_point() else batch["label"]
            labels.append(part.cpu().to(torch.uint8).as_subclass(torch.Tensor))
            for name, label in zip(batch["image_sha256"], labels[-1], strict=True):
                digest.update(name.encode())
                digest.update(label.contiguous().numpy().data)
        return torch.cat(labels), digest.hexdigest()


def evenly_spaced(count: int, wanted: int | None) -> list[int] | None:
    """Returns ``wanted`` of ``count`` indices at equal distances, starting with 0; ``None`` if that is all of them."""
    if wanted is None or wanted >= count:
        return None
    return [index * count // wanted for index in range(wanted)]


class PublicPhase:
    """Trains a network on ``D_p``: on its labels, and on soft targets whose gate is open (RC and RF of HSSF).

    It is a separate MONAI trainer with the network, optimiser, loss and labelled views of the site (or the server). Its
    random numbers depend only on (seed, site, round).

    Args:
        network, optimizer, loss, device, inferer: those of the local training.
        dataset: labelled public items with random views, whose transforms include a ``LoadTargetd`` on ``targets``.
        targets: holds the round's targets during the steps.
        term: handler that adds the targets' loss, such as :class:`PublicDistillationTerm`.
        learning_rate: handler that sets the learning rate of a round; ``None`` does not change it.
        batch_size: images in a step.
        steps: optimiser steps in a round; ``None`` means ``passes`` over the images.
        passes: passes over the images in a round if no steps are given (HSSF: 4).
        images: number of images to use, evenly spaced over the list, to which the targets belong; ``None`` is all.
            Frames of a video are similar, and every network processes each image in every round.
        seed, site: source of the random numbers.
    """

    indices: list[int] | None = None
    """Positions in the list of the images that are used; ``None`` is all."""

    def __init__(
        self,
        *,
        network: nn.Module,
        optimizer: Optimizer,
        loss: Callable[..., Tensor],
        dataset: Dataset,
        targets: PublicTargets,
        device: torch.device | str = "cpu",
        inferer: Inferer | None = None,
        term: Any = None,
        learning_rate: Any = None,
        batch_size: int = 8,
        steps: int | None = None,
        passes: int = 1,
        images: int | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        require(
            whole("public_steps", steps, "a number of steps", least=0, or_null=True),
            whole("client_algorithm#passes", passes, "a number of passes", least=1),
            whole("client_algorithm#images", images, "a number of images", least=1, or_null=True),
        )
        self.targets, self._all_images = targets, len(dataset)  # type: ignore[arg-type]
        self.indices = indices = evenly_spaced(self._all_images, images)
        count = self._all_images if indices is None else len(indices)
        self.steps = passes * max(1, -(-count // batch_size)) if steps is None else steps
        sampler = EndlessSampler(dataset, indices=indices)  # type: ignore[arg-type]
        loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=0)
        handlers = [SeedHandler(seed=seed, site=f"{site}, public", loaders=[loader]), learning_rate, term]
        self.trainer = SupervisedTrainer(
            device=torch.device(device),
            max_epochs=1,
            train_data_loader=loader,
            epoch_length=max(self.steps, 1),
            network=network,
            optimizer=optimizer,
            loss_function=loss,
            inferer=inferer,
            train_handlers=[each for each in (*handlers, DivergenceGuard(site=site), TermLogger()) if each is not None],
            decollate=False,
        )

    def run(self, round: int, rounds: int, masks: Tensor | None = None, gate: Tensor | None = None) -> dict[str, float]:
        """Runs the steps of one round.

        Args:
            round, rounds: number of the round, from 0, and number of rounds.
            masks: (N, C, h, w) uint8, the targets of ``indices`` in the public list's order; ``None`` trains only on
                the labels.
            gate: (N,) bool, the targets to use; ``None`` uses all.

        Returns:
            Means of the loss's parts over the steps, by name.
        """
        if not self.steps:
            return {}
        state = self.trainer.state  # every round is a fresh run of one epoch
        state.round, state.rounds = round, rounds
        state.epoch, state.iteration, state.max_epochs = 0, 0, 1
        forget_unfinished_run(self.trainer)
        if masks is not None:
            gate = torch.ones(len(masks), dtype=torch.bool) if gate is None else gate
            self.targets.set(*self._for_all_images(masks, gate))
        try:
            self.trainer.run()
        finally:
            self.targets.clear()
        return dict(getattr(self.trainer.state, "term_means", None) or {})

    def _for_all_images(self, masks: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        if self.indices is None:
            return masks, gate
        all_masks, all_gates = masks.new_zeros(self._all_images, *masks.shape[1:]), gate.new_zeros(self._all_images)
        all_masks[self.indices], all_gates[self.indices] = masks, gate
        return all_masks, all_gates
