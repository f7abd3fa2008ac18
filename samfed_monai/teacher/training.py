"""SAM in MONAI's trainer: its batches, learning rates, averaged weights, the choice of the epoch, resuming."""

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
from samfed_monai.teacher.exam import as_good_as, mean
from samfed_monai.teacher.views import ViewedImages

logger = logging.getLogger(__name__)

_CE, _DICE = 0.2, 0.8
_WARM_UP_STEPS = 250  # SAMed's, for tens of thousands of steps; a short fit warms up for a tenth of its steps
_POLY = 0.9


LORA_LEARNING_RATE = 5e-3
"""Peak of the low-rank matrices: SAMed's default. They start at zero, and at a decoder's rate they hardly move."""


def default_learning_rate(base: str, adapt: str) -> float:
    """Peak of prompt encoder and mask decoder: SAMed's 5e-3 for SAM's ViT; for MobileSAM what was best of a few values
    on 66 skin images."""
    if base != "vit_t":
        return 5e-3
    return 5e-4 if adapt == "lora" else 3e-4


def default_epochs(adapt: str) -> int:
    """24 with LoRA, 12 for the decoder alone, which overfits a small public set when it is trained longer."""
    return 24 if adapt == "lora" else 12


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """``0.2 CE + 0.8 Dice`` (SAMed, section 3.3), Dice per image; of several classes the mean of theirs over the batch.

    SAMed's code takes each class's Dice over the whole batch, too: of slices most of which do not hold an organ, a Dice
    of each would teach first of all to find none.

    Args:
        logits: ``(B, 1, h, w)``; of K classes ``(B, K + 1, h, w)``, the background's first.
        target: of the same shape, float in [0, 1]; what is of no class, the padding too, is background.
    """
    if logits.shape[1] == 1:
        cross_entropy, probability = F.binary_cross_entropy_with_logits(logits, target), logits.sigmoid()
        pixels = (1, 2, 3)
    else:
        target, pixels = target[:, 1:], (0, 2, 3)
        background = 1 - target.sum(dim=1, keepdim=True)
        cross_entropy = F.cross_entropy(logits, torch.cat([background, target], dim=1))
        probability = logits.softmax(dim=1)[:, 1:]
    overlap = 2 * (probability * target).sum(dim=pixels) + 1
    dice = overlap / ((probability**2).sum(dim=pixels) + (target**2).sum(dim=pixels) + 1)
    return _CE * cross_entropy + _DICE * (1 - dice.mean())


def learning_rate_at(step: int, total: int, peak: float) -> float:
    """Linear warm-up, then ``(1 - progress) ** 0.9``; ``step`` counts from 0 to ``total - 1``."""
    warm_up = min(_WARM_UP_STEPS, max(1, total // 10))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (1 - (step - warm_up) / max(1, total - warm_up)) ** _POLY


def quarter(mask: Tensor) -> Tensor:
    """A mask at the resolution of SAM's logits: the share of each 4 x 4 block that it covers."""
    return F.avg_pool2d(mask, 4)


Part = tuple[list[torch.nn.Parameter], float]
"""Parameters and the peak of their learning rate."""

_ADAMW: Any = partial(torch.optim.AdamW, weight_decay=0.1, fused=True)  # in the place of what it will make
TRAINER = partial(
    SupervisedTrainer,
    optimizer=_ADAMW,
    loss_function=mask_loss,
    train_handlers=[],
    decollate=False,
    optim_set_to_none=True,
)
"""MONAI's trainer as ``teacher.json`` of the packaged bundles has it, but for what is there once a fit begins: network,
batches, epochs, device, and the parameters of the optimizer, in groups with their peaks as ``initial_lr``."""


@dataclass
class FitState:
    """The state of a fit after a whole epoch.

    Args:
        fit_hash: hash of everything that decides the result; a state of another fit is ignored.
        epoch: epochs done.
        kept_epoch: the one whose weights are kept; 0 is before any training.
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
    """Writes progress, optimiser moments and named sets of weights (current, averaged, kept), atomically."""
    tensors = {f"{part}.{name}": tensor for part, named in weights.items() for name, tensor in named.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in training_state.pack(optimizer).items()}
    save_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, {"state": json.dumps(asdict(state))})


def load_state(
    path: Path, fit_hash: str, optimizer: torch.optim.Optimizer
) -> tuple[FitState, dict[str, dict[str, Tensor]]] | None:
    """Reads what :func:`save_state` wrote, into ``optimizer`` too: the state and the named sets of weights.

    Returns ``None`` where there is nothing, nothing readable, or the state of another fit or version: it then starts
    anew.
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
    """SAM as a trainer takes it: images or embeddings to logits, and in evaluation mode, as it is examined and used.

    Args:
        sam: the network that is being fitted.
        bf16: bfloat16 for the encoder.
    """

    def __init__(self, sam: PromptFreeSam, bf16: Switch) -> None:
        super().__init__()
        self.sam, self.bf16 = sam, bf16

    def forward(self, inputs: Tensor) -> Tensor:
        """``(B, 3, size, size)``, or what :meth:`encode` made of it, to logits ``(B, C, size / 4, size / 4)``."""
        return self.sam.decode(self.encode(inputs) if inputs.shape[1] == 3 else inputs.float())

    def encode(self, inputs: Tensor) -> Tensor:
        """Normalised, padded images to float32 embeddings."""
        return encode(self.sam, inputs.to(self.sam.pixel_mean.device), self.bf16)

    def train(self, mode: bool = True) -> TrainedSam:
        """Leaves SAM in evaluation mode."""
        return self


Batch = dict[str, Tensor]
"""``image``, which :class:`TrainedSam` takes, and ``label``, ``(B, C, size / 4, size / 4)`` float in [0, 1]."""


class ImageBatches:
    """Once over all images, each in a new view: the batches of an epoch.

    Args:
        images: the public images and masks, and how they are seen.
        batch_size: images a batch.
        seed: decides their order, as a function of (seed, epoch).

    Attributes:
        epoch: the one that comes next, counted from 0; it is for the trainer to say.
    """

    def __init__(self, images: ViewedImages, *, batch_size: int, seed: int) -> None:
        self.images, self.batch_size, self.seed, self.epoch = images, batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        yield from self.of(self.epoch)  # of what it is by then: Ignite makes an iterator before its epoch has begun

    def of(self, part: Any) -> Iterator[Batch]:
        """The batches of an epoch, or of whatever else has a view of the images."""
        for indices in self._order(part):
            images, masks = zip(*(self.images.view(index, part) for index in indices), strict=True)
            yield {"image": torch.stack(images), "label": quarter(torch.stack(masks))}

    def _order(self, part: Any) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "teacher order", part))
        for indices in torch.randperm(len(self.images), generator=generator).split(self.batch_size):
            yield indices.tolist()


class EmbeddedBatches(ImageBatches):
    """For a frozen encoder: ``views`` views of each image are encoded once, each epoch draws one of them per image.

    The first view is the image as it is, the others are random. Embeddings are kept as float16.
    """

    def __init__(
        self, images: ViewedImages, network: TrainedSam, *, views: int, progress: bool = False, **settings: Any
    ) -> None:
        super().__init__(images, **settings)
        self.views = views
        self._embedded: list[list[tuple[Tensor, Tensor]]] = []
        for index in progress_bar(range(len(images)), desc="embeddings", unit="image", show=progress):
            made = [images.still(index), *(images.view(index, f"view {view}") for view in range(1, views))]
            with torch.no_grad():
                self._embedded.append(
                    [(network.encode(image[None]).half(), quarter(mask[None])) for image, mask in made]
                )

    def of(self, part: Any) -> Iterator[Batch]:
        """The batches of an epoch, of embeddings."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "teacher views", part))
        choice = torch.randint(self.views, (len(self.images),), generator=generator).tolist()
        for indices in self._order(part):
            embeddings, masks = zip(*(self._embedded[index][choice[index]] for index in indices), strict=True)
            yield {"image": torch.cat(embeddings), "label": torch.cat(masks)}


SAVE_SECONDS = 60.0
"""Between two savings of the progress: some 100 MB of weights, averages and moments, written as long as a few steps."""


class Training:
    """Has MONAI's trainer fit ``parts`` of a SAM, and leaves the weights of the kept epoch in it.

    Args:
        network: around a SAM that ``prepare`` made ready.
        parts: what is trained, each with the peak of its learning rate.
        batches: of an epoch.
        examine: Dice of each held-out image with the weights that the SAM has when it is called.
        epochs: how many.
        progress_file: where progress is kept after the first epoch, and then after those that end :data:`SAVE_SECONDS`
            or more after the last that was kept; removing it is the caller's business.
        fit_hash: what the progress belongs to; that of another fit is ignored.
        progress: show a bar, of steps.
        trainer: makes it, see :data:`TRAINER`.
    """

    def __init__(
        self,
        network: TrainedSam,
        parts: Sequence[Part],
        batches: ImageBatches,
        examine: Callable[[], list[float]],
        *,
        epochs: int,
        progress_file: Path,
        fit_hash: str,
        progress: bool,
        trainer: partial[SupervisedTrainer] = TRAINER,
    ) -> None:
        self.sam, self.batches, self.examine, self.progress_file = network.sam, batches, examine, progress_file
        self.epochs, self.progress = epochs, progress
        self.optimizer = trainer.keywords["optimizer"](
            [{"params": part, "lr": peak, "initial_lr": peak} for part, peak in parts]
        )
        self.adapted = adapted_tensors(self.sam)  # they share the network's memory: always its weights of now
        self.state, self.average = FitState(fit_hash), WeightAverage(self.adapted)
        self.kept: dict[str, Tensor] = {}
        self._saved = float("-inf")
        self.trainer = trainer(
            network=network,
            optimizer=self.optimizer,
            train_data_loader=batches,
            epoch_length=len(batches),
            max_epochs=epochs,
            device=self.sam.pixel_mean.device,
        )
        self.trainer.logger = logging.getLogger(f"{__name__}.ignite")  # which would tell of every exception once more
        self.trainer.logger.setLevel(logging.CRITICAL)
        self.trainer.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)
        self.trainer.add_event_handler(Events.ITERATION_STARTED, self._set_rates)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._end_step)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        self._resume()

    def run(self) -> FitState:
        """Trains the epochs that are left."""
        done, steps = self.state.epoch, len(self.batches)
        ends: dict[str, Any] = {"initial": done * steps, "total": self.epochs * steps}
        # no smoothing: the time left includes the exams between epochs
        with progress_bar(show=self.progress, desc="teacher", unit="step", smoothing=0, **ends) as self.bar:
            if done < self.epochs:  # Ignite would begin anew
                self.trainer.run()
        self.sam.load_state_dict(self.kept, strict=False)
        return self.state

    def _resume(self) -> None:
        resumed = load_state(self.progress_file, self.state.fit_hash, self.optimizer)
        if resumed is None:
            return
        self.state, weights = resumed
        engine = self.trainer.state
        engine.epoch, engine.iteration = self.state.epoch, self.state.epoch * len(self.batches)
        self.sam.load_state_dict(weights["current"], strict=False)
        self.average = WeightAverage({name: tensor.to(engine.device) for name, tensor in weights["average"].items()})
        self.average.step, self.kept = engine.iteration, weights["kept"]
        logger.info("teacher: going on after epoch %d of %d", self.state.epoch, self.epochs)

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
        self._judge()
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            weights = {"current": self.adapted, "average": self.average.tensors, "kept": self.kept}
            save_state(self.progress_file, self.state, self.optimizer, weights)
            self._saved = time.monotonic()

    def _judge(self) -> None:
        state = self.state
        with self.average.applied(self.sam):
            scores = self.examine()
        state.history.append(mean(scores))
        if not state.best or mean(scores) > mean(state.best):
            state.best = scores
        self.bar.set_postfix(held_out=f"{mean(scores):.3f}", refresh=False)  # shown with the next step
        if as_good_as(scores, state.best):
            state.kept_epoch = state.epoch
            self.kept = {name: tensor.clone() for name, tensor in self.average.tensors.items()}
