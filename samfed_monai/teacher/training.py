"""Training of SAM in MONAI's trainer: batches, learning rates, averaged weights, choice of the epoch, resuming."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.core import training_state
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import parse_json, safe_load, save_tensors
from samfed_monai.core.model_file import read_header
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import WeightAverage
from samfed_monai.networks.inferer import Switch
from samfed_monai.networks.sam.adapter import adapted_tensors
from samfed_monai.networks.sam.build import PromptFreeSam, encode
from samfed_monai.teacher.evaluation import mean, within_one_standard_error
from samfed_monai.teacher.views import ViewedImages

logger = logging.getLogger(__name__)

_CE_WEIGHT, _DICE_WEIGHT = 0.2, 0.8
_WARM_UP_STEPS = 250  # SAMed's, for tens of thousands of steps; short fits warm up for a tenth of their steps
_DECAY_POWER = 0.9


LORA_LEARNING_RATE = 5e-3
"""Peak for the low-rank matrices: SAMed's default. They start at zero, and at a decoder's rate they hardly change."""


def default_learning_rate(base: str, adapt: str) -> float:
    """Returns the peak for prompt encoder and mask decoder: SAMed's 5e-3 for SAM's ViT; for MobileSAM the best of a few
    values on 66 skin images."""
    if base != "vit_t":
        return 5e-3
    return 5e-4 if adapt == "lora" else 3e-4


def default_epochs(adapt: str) -> int:
    """Returns 24 with LoRA, 12 for the decoder alone, which overfits a small public set with longer training."""
    return 24 if adapt == "lora" else 12


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """``0.2 CE + 0.8 Dice`` (SAMed, section 3.3), Dice per image, or per class over the batch with several classes.

    SAMed's code also computes each class's Dice over the whole batch: if most slices do not contain an organ, a Dice
    per slice would mainly train the network to find none.

    Args:
        logits: ``(B, 1, h, w)``; for K classes ``(B, K + 1, h, w)``, the background first.
        target: the same shape, float in [0, 1]; pixels of no class, including padding, are background.
    """
    if logits.shape[1] == 1:
        cross_entropy, probability = F.binary_cross_entropy_with_logits(logits, target), logits.sigmoid()
        pixels = (1, 2, 3)
    else:
        target, pixels = target[:, 1:], (0, 2, 3)
        cross_entropy = F.cross_entropy(logits, torch.cat([1 - target.sum(dim=1, keepdim=True), target], dim=1))
        probability = logits.softmax(dim=1)[:, 1:]
    overlap = 2 * (probability * target).sum(dim=pixels) + 1
    dice = overlap / ((probability**2).sum(dim=pixels) + (target**2).sum(dim=pixels) + 1)
    return _CE_WEIGHT * cross_entropy + _DICE_WEIGHT * (1 - dice.mean())


def learning_rate_at(step: int, total: int, peak: float) -> float:
    """Linear warm-up, then ``(1 - progress) ** 0.9``; ``step`` is from 0 to ``total - 1``."""
    warm_up = min(_WARM_UP_STEPS, max(1, total // 10))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (1 - (step - warm_up) / max(1, total - warm_up)) ** _DECAY_POWER


def quarter(mask: Tensor) -> Tensor:
    """Returns a mask at the resolution of SAM's logits: the covered share of each 4 x 4 block."""
    return F.avg_pool2d(mask, 4)


Part = tuple[list[torch.nn.Parameter], float]
"""Parameters and the peak of their learning rate."""

_ADAMW: Any = partial(torch.optim.AdamW, weight_decay=0.1, fused=True)  # a builder, where the trainer gets an optimizer
TRAINER = partial(
    SupervisedTrainer,
    optimizer=_ADAMW,
    loss_function=mask_loss,
    train_handlers=[],
    decollate=False,
    optim_set_to_none=True,
)
"""MONAI's trainer of ``teacher.json`` in the packaged bundles, without the arguments that a fit adds: network, batches,
epochs, device, and the parameters of the optimizer, in groups with their peaks as ``initial_lr``."""


@dataclass
class FitState:
    """The state of a fit after a whole epoch.

    Args:
        fit_hash: hash of everything that determines the result; a state of another fit is ignored.
        epoch: number of completed epochs.
        kept_epoch: the epoch whose weights are kept; 0 is before any training.
        best: Dice of each held-out image after the epoch with the best mean.
        history: mean Dice on the held-out part after each epoch.
    """

    fit_hash: str
    epoch: int = 0
    kept_epoch: int = 0
    best: list[float] = field(default_factory=list)
    history: list[float] = field(default_factory=list)


def save_state(
    path: Path, state: FitState, optimizer: torch.optim.Optimizer, weights: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Writes progress, optimizer moments and named sets of weights (current, averaged, kept), atomically."""
    tensors = {f"{part}.{name}": tensor for part, tensors in weights.items() for name, tensor in tensors.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in training_state.pack(optimizer).items()}
    save_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, {"state": json.dumps(asdict(state))})


def load_state(
    path: Path, fit_hash: str, optimizer: torch.optim.Optimizer
) -> tuple[FitState, dict[str, dict[str, Tensor]]] | None:
    """Loads a file of :func:`save_state`: returns the state and the named sets of weights, and restores ``optimizer``.

    Returns ``None`` if the file is missing, unreadable, or of another fit or version; the fit then starts again.
    """
    try:
        tensors = safe_load(path)
        state = FitState(**parse_json(read_header(path)["state"]))
    except (Refused, KeyError, TypeError, ValueError):
        return None
    if state.fit_hash != fit_hash:
        return None
    weights: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        weights.setdefault(part, {})[rest] = tensor
    try:
        training_state.unpack(optimizer, weights.pop("optimizer", {}))
    except Refused:  # damaged
        return None
    return state, weights


class TrainedSam(nn.Module):
    """SAM for a trainer: maps images or embeddings to logits, always in eval mode, as it is evaluated and used.

    Args:
        sam: the network to fit.
        bf16: bfloat16 for the encoder.
    """

    def __init__(self, sam: PromptFreeSam, bf16: Switch) -> None:
        super().__init__()
        self.sam, self.bf16 = sam, bf16

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``(B, 3, size, size)``, or embeddings of :meth:`encode`, to logits ``(B, C, size / 4, size / 4)``."""
        return self.sam.decode(self.encode(inputs) if inputs.shape[1] == 3 else inputs.float())

    def encode(self, inputs: Tensor) -> Tensor:
        """Maps normalised, padded images to float32 embeddings."""
        return encode(self.sam, inputs.to(self.sam.pixel_mean.device), self.bf16)

    def train(self, mode: bool = True) -> TrainedSam:
        """Keeps SAM in eval mode."""
        return self


Batch = dict[str, Tensor]
"""``image``, the input of :class:`TrainedSam`, and ``label``, ``(B, C, size / 4, size / 4)`` float in [0, 1]."""


class ImageBatches:
    """The batches of an epoch: every image once, in a new view.

    Args:
        images: the public images and masks in their views.
        batch_size: images per batch.
        seed: seed of the order, which is a function of (seed, epoch).

    Attributes:
        epoch: the next epoch, counted from 0; set by the trainer.
    """

    def __init__(self, images: ViewedImages, *, batch_size: int, seed: int) -> None:
        self.images, self.batch_size, self.seed, self.epoch = images, batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        yield from self.of(self.epoch)  # read here, since Ignite makes the iterator before the epoch starts

    def of(self, part: Any) -> Iterator[Batch]:
        """Yields the batches of an epoch, or of another part with views of the images."""
        for indices in self._order(part):
            images, masks = zip(*(self.images.view(index, part) for index in indices), strict=True)
            yield {"image": torch.stack(images), "label": quarter(torch.stack(masks))}

    def _order(self, part: Any) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "teacher order", part))
        for indices in torch.randperm(len(self.images), generator=generator).split(self.batch_size):
            yield indices.tolist()


class EmbeddedBatches(ImageBatches):
    """For a frozen encoder: ``views`` views of each image are encoded once; each epoch draws one of them per image.

    The first view is without random steps, the others are random. Embeddings are cached as float16.
    """

    def __init__(
        self, images: ViewedImages, network: TrainedSam, *, views: int, progress: bool = False, **settings: Any
    ) -> None:
        super().__init__(images, **settings)
        self.views = views
        self._embedded: list[list[tuple[Tensor, Tensor]]] = []
        for index in progress_bar(range(len(images)), desc="embeddings", unit="image", show=progress):
            views_of_image = [images.still(index), *(images.view(index, f"view {view}") for view in range(1, views))]
            with torch.no_grad():
                pairs = [(network.encode(image[None]).half(), quarter(mask[None])) for image, mask in views_of_image]
                self._embedded.append(pairs)

    def of(self, part: Any) -> Iterator[Batch]:
        """Yields the batches of an epoch, of embeddings."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "teacher views", part))
        choice = torch.randint(self.views, (len(self.images),), generator=generator).tolist()
        for indices in self._order(part):
            embeddings, masks = zip(*(self._embedded[index][choice[index]] for index in indices), strict=True)
            yield {"image": torch.cat(embeddings), "label": torch.cat(masks)}


SAVE_SECONDS = 60.0
"""Minimum time between two saves of the progress: some 100 MB of weights, averages and moments."""


class Training:
    """Fits ``parts`` of a SAM in MONAI's trainer, and loads the weights of the kept epoch into it.

    Args:
        network: wraps a SAM prepared by ``prepare``.
        parts: the trained parameters, each with the peak of their learning rate.
        batches: the batches of an epoch.
        evaluate: returns the Dice of each held-out image with the SAM's current weights.
        epochs: number of epochs.
        progress_file: file for the progress, written after the first epoch, and then after epochs that end at least
            :data:`SAVE_SECONDS` after the last save; the caller removes it.
        fit_hash: hash of the fit; progress of another fit is ignored.
        progress: show a progress bar of steps.
        trainer: builds the trainer, see :data:`TRAINER`.
    """

    def __init__(
        self,
        network: TrainedSam,
        parts: Sequence[Part],
        batches: ImageBatches,
        evaluate: Callable[[], list[float]],
        *,
        epochs: int,
        progress_file: Path,
        fit_hash: str,
        progress: bool,
        trainer: partial[SupervisedTrainer] = TRAINER,
    ) -> None:
        self.sam, self.batches, self.evaluate, self.progress_file = network.sam, batches, evaluate, progress_file
        self.epochs, self.progress = epochs, progress
        self.optimizer = trainer.keywords["optimizer"](
            [{"params": part, "lr": peak, "initial_lr": peak} for part, peak in parts]
        )
        self.adapted = adapted_tensors(self.sam)  # they share the network's memory, so they are always current
        self.state, self.average = FitState(fit_hash), WeightAverage(self.adapted)
        self.kept: dict[str, Tensor] = {}
        self._last_save = float("-inf")
        self.trainer = trainer(
            network=network,
            optimizer=self.optimizer,
            train_data_loader=batches,
            epoch_length=len(batches),
            max_epochs=epochs,
            device=self.sam.pixel_mean.device,
        )
        self.trainer.logger = logging.getLogger(f"{__name__}.ignite")  # silenced: it would report exceptions again
        self.trainer.logger.setLevel(logging.CRITICAL)
        self.trainer.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)
        self.trainer.add_event_handler(Events.ITERATION_STARTED, self._set_rates)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._end_step)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        self._resume()

    def run(self) -> FitState:
        """Trains the remaining epochs."""
        completed, steps = self.state.epoch, len(self.batches)
        limits: dict[str, Any] = {"initial": completed * steps, "total": self.epochs * steps}
        # no smoothing: the time left includes the exams between epochs
        with progress_bar(show=self.progress, desc="teacher", unit="step", smoothing=0, **limits) as self.bar:
            if completed < self.epochs:  # Ignite would start again
                self.trainer.run()
        self.sam.load_state_dict(self.kept, strict=False)
        return self.state

    def _resume(self) -> None:
        loaded = load_state(self.progress_file, self.state.fit_hash, self.optimizer)
        if loaded is None:
            return
        self.state, weights = loaded
        engine = self.trainer.state
        engine.epoch, engine.iteration = self.state.epoch, self.state.epoch * len(self.batches)
        self.sam.load_state_dict(weights["current"], strict=False)
        self.average = WeightAverage({name: tensor.to(engine.device) for name, tensor in weights["average"].items()})
        self.average.step, self.kept = engine.iteration, weights["kept"]
        logger.info("teacher: resuming after epoch %d of %d", self.state.epoch, self.epochs)

    def _begin_epoch(self, engine: Any) -> None:
        self.batches.epoch = engine.state.epoch - 1

    def _set_rates(self, engine: Any) -> None:
        step, total = engine.state.iteration - 1, engine.state.max_epochs * engine.state.epoch_length
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, total, group["initial_lr"])

    def _end_step(self, engine: Any) -> None:
        self.average.update(self.adapted)
        self.bar.update()

    def _end_epoch(self, engine: Any) -> None:
        self.state.epoch = engine.state.epoch
        self._select_weights()
        if time.monotonic() - self._last_save >= SAVE_SECONDS:
            weights = {"current": self.adapted, "average": self.average.tensors, "kept": self.kept}
            save_state(self.progress_file, self.state, self.optimizer, weights)
            self._last_save = time.monotonic()

    def _select_weights(self) -> None:
        state = self.state
        with self.average.applied(self.sam):
            scores = self.evaluate()
        state.history.append(mean(scores))
        if not state.best or mean(scores) > mean(state.best):
            state.best = scores
        self.bar.set_postfix(held_out=f"{mean(scores):.3f}", refresh=False)  # shown with the next step
        if within_one_standard_error(scores, state.best):
            state.kept_epoch = state.epoch
            self.kept = {name: tensor.clone() for name, tensor in self.average.tensors.items()}
