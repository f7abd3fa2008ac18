"""The loop of a teacher's fit: batches, steps, averaged weights, the choice of the epoch, resuming."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.core import training_state
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import safe_load, save_tensors
from samfed_monai.core.moving_average import move_average
from samfed_monai.core.progress import progress_bar
from samfed_monai.core.seeds import derive_seed
from samfed_monai.networks.autocast import Switch, autocast, bf16_possible
from samfed_monai.networks.sam.adapter import adapted_tensors
from samfed_monai.networks.sam.build import PromptFreeSam
from samfed_monai.teacher.exam import as_good_as, mean
from samfed_monai.teacher.views import ViewedImages

logger = logging.getLogger(__name__)


BETAS = (0.9, 0.999)
WEIGHT_DECAY = 0.1
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
    """``0.2 CE + 0.8 Dice`` (SAMed, section 3.3), Dice per image.

    Args:
        logits: ``(B, 1, h, w)``.
        target: ``(B, 1, h, w)`` float in [0, 1].
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target)
    probability = logits.sigmoid()
    overlap = 2 * (probability * target).sum(dim=(1, 2, 3)) + 1
    dice = overlap / ((probability**2).sum(dim=(1, 2, 3)) + (target**2).sum(dim=(1, 2, 3)) + 1)
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


def make_optimizer(parts: Sequence[Part]) -> torch.optim.Optimizer:
    """AdamW, a group for each part; the learning rate is set before every step, from the group's ``peak``."""
    groups = [{"params": parameters, "peak": peak} for parameters, peak in parts]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)


class WeightAverage:
    """Averages tensors over optimiser steps; what is averaged can stand in for a module's own for a while.

    With few held-out images the Dice of single epochs is mostly noise (it jumped by 0.1 between epochs on 7 images);
    the average moves slowly, so that a lucky epoch cannot be picked.

    Args:
        tensors: what to average, by name; the average starts as a copy of it.
        decay: of the average; it starts lower, ``(1 + step) / (10 + step)``, to forget the beginning.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float = 0.98) -> None:
        self.decay, self.step = decay, 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Moves the average towards ``tensors``; call it after every optimiser step."""
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        self.step += 1
        move_average(list(self.tensors.values()), [tensors[name] for name in self.tensors], decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Inside the block ``module`` has the averaged weights, afterwards its own again."""
        state = module.state_dict()
        own = {name: state[name].clone() for name in self.tensors}
        module.load_state_dict(self.tensors, strict=False)
        try:
            yield
        finally:
            module.load_state_dict(own, strict=False)


@dataclass
class FitState:
    """Where a fit stands after a whole epoch.

    Args:
        fit_hash: hash of everything that decides the result; a state of another fit is ignored.
        epoch: epochs done.
        kept_epoch: the one whose weights are kept; 0 is before any training.
        best: Dice of each held-out image after the epoch with the best mean.
        steps: optimiser steps done.
        history: mean Dice on the held-out part after each epoch.
    """

    fit_hash: str
    epoch: int = 0
    kept_epoch: int = 0
    best: list[float] = field(default_factory=list)
    steps: int = 0
    history: list[float] = field(default_factory=list)


def save_state(
    path: Path,
    state: FitState,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Mapping[str, Tensor]],
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
    header: dict[str, str] = {}
    try:
        tensors = safe_load(path, metadata=header.update)
        state = FitState(**json.loads(header["state"]))
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
    except Refused:  # packed by version 0.1, or damaged
        return None
    return state, weights


class ImageBatches:
    """Each call takes a new view of every image and runs the whole network, with gradients.

    Args:
        sam: the network that is being fitted.
        images: the public images and masks, and how they are seen.
        batch_size: images a batch.
        seed: decides their order, as a function of (seed, epoch).
        bf16: bfloat16 for the encoder.
    """

    def __init__(self, sam: PromptFreeSam, images: ViewedImages, *, batch_size: int, seed: int, bf16: Switch) -> None:
        self.sam, self.images, self.batch_size = sam, images, batch_size
        self.seed, self.bf16 = seed, bf16
        self.steps = -(-len(images) // batch_size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields logits and targets, ``(B, 1, size / 4, size / 4)`` each, once over all images."""
        for inputs, targets in self.inputs(epoch):
            yield self.sam.decode(self.encode(inputs)), targets

    def inputs(self, part: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields views of images, ``(B, 3, size, size)``, and targets, once over all; ``part`` names the epoch."""
        for indices in self._order(part):
            inputs, masks = zip(*(self.images.view(index, part) for index in indices), strict=True)
            yield torch.stack(inputs), self._to_device(quarter(torch.stack(masks)))

    def encode(self, inputs: Tensor) -> Tensor:
        """Normalised, padded images to float32 embeddings."""
        inputs = self._to_device(inputs)
        with autocast(inputs.device.type, bf16_possible(self.bf16, inputs.device.type)):
            return self.sam.encode(inputs).float()

    def _order(self, epoch: Any) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "teacher order", epoch))
        for indices in torch.randperm(len(self.images), generator=generator).split(self.batch_size):
            yield indices.tolist()

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.sam.pixel_mean.device)


class EmbeddedBatches(ImageBatches):
    """For a frozen encoder: ``views`` views of each image are encoded once, each epoch draws one of them per image.

    The first view is the image as it is, the others are random. Embeddings are kept as float16.
    """

    def __init__(
        self, sam: PromptFreeSam, images: ViewedImages, *, views: int, progress: bool = False, **settings: Any
    ) -> None:
        super().__init__(sam, images, **settings)
        self.views = views
        self._embedded: list[list[tuple[Tensor, Tensor]]] = []
        for index in progress_bar(range(len(images)), desc="embeddings", unit="image", show=progress):
            made = [images.still(index), *(images.view(index, f"view {view}") for view in range(1, views))]
            with torch.no_grad():
                self._embedded.append([(self.encode(image[None]).half(), quarter(mask[None])) for image, mask in made])

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields logits and targets, ``(B, 1, size / 4, size / 4)`` each, once over all images."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "teacher views", epoch))
        choice = torch.randint(self.views, (len(self.images),), generator=generator).tolist()
        for indices in self._order(epoch):
            embeddings, targets = zip(*(self._embedded[index][choice[index]] for index in indices), strict=True)
            yield self.sam.decode(torch.cat(embeddings).float()), self._to_device(torch.cat(targets))


SAVE_SECONDS = 60.0
"""Between two savings of the progress: some 100 MB of weights, averages and moments, written as long as a few steps."""


class Batches(Protocol):
    """What a fit learns from: ``steps`` pairs of logits and targets an epoch."""

    @property
    def steps(self) -> int: ...

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]: ...


class Training:
    """Trains ``parts`` of ``sam`` and leaves the weights of the kept epoch in it.

    Args:
        sam: a SAM that ``prepare`` made ready.
        parts: what is trained, each with the peak of its learning rate.
        batches: yields logits and targets, an epoch at a time.
        examine: Dice of each held-out image with the weights that ``sam`` has when it is called; ``None`` keeps the
            last epoch.
        epochs: how many.
        progress_file: where progress is kept after the first epoch, and then after those that end :data:`SAVE_SECONDS`
            or more after the last that was kept; removing it is the caller's business.
        fit_hash: what the progress belongs to; that of another fit is ignored.
        progress: show a bar, of steps.
        title: what stands before it.
    """

    def __init__(
        self,
        sam: PromptFreeSam,
        parts: Sequence[Part],
        batches: Batches,
        examine: Callable[[], list[float]] | None,
        *,
        epochs: int,
        progress_file: Path,
        fit_hash: str,
        progress: bool,
        title: str = "teacher",
    ) -> None:
        self.sam, self.batches, self.examine, self.progress_file = sam, batches, examine, progress_file
        self.epochs, self.progress, self.title = epochs, progress, title
        self.optimizer = make_optimizer(parts)
        self.adapted = adapted_tensors(sam)  # they share the network's memory: always its weights of now
        self.state, self.average = FitState(fit_hash), WeightAverage(self.adapted)
        self.kept: dict[str, Tensor] = {}
        self._resume()

    def run(self) -> FitState:
        """Trains the epochs that are left."""
        saved = float("-inf")
        ends: dict[str, Any] = {"initial": self.state.steps, "total": self.epochs * self.batches.steps}
        # no smoothing: what is told of the time left takes in the exams between epochs
        with progress_bar(show=self.progress, desc=self.title, unit="step", smoothing=0, **ends) as bar:
            for epoch in range(self.state.epoch, self.epochs):
                for logits, target in self.batches(epoch):
                    self._step(mask_loss(logits, target))
                    bar.update()
                self.state.epoch = epoch + 1
                self._judge()
                if time.monotonic() - saved >= SAVE_SECONDS:
                    weights = {"current": self.adapted, "average": self.average.tensors, "kept": self.kept}
                    save_state(self.progress_file, self.state, self.optimizer, weights)
                    saved = time.monotonic()
                if self.state.history:
                    bar.set_postfix(held_out=f"{self.state.history[-1]:.3f}", refresh=False)  # shown with the next one
        self.sam.load_state_dict(self.kept, strict=False)
        return self.state

    def seconds_of_a_step(self) -> float:
        """Seconds of a step on this machine, from the second of two that leave everything as it is."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        taken = 0.0
        for _ in range(2):
            started = time.perf_counter()
            logits, target = next(iter(self.batches(self.state.epoch)))
            torch.autograd.grad(mask_loss(logits, target), parameters, allow_unused=True)
            taken = time.perf_counter() - started
        return taken

    def _resume(self) -> None:
        resumed = load_state(self.progress_file, self.state.fit_hash, self.optimizer)
        if resumed is None:
            return
        self.state, weights = resumed
        self.sam.load_state_dict(weights["current"], strict=False)
        device = self.sam.pixel_mean.device
        self.average = WeightAverage({name: tensor.to(device) for name, tensor in weights["average"].items()})
        self.average.step, self.kept = self.state.steps, weights["kept"]
        logger.info("teacher: going on after epoch %d of %d", self.state.epoch, self.epochs)

    def _step(self, loss: Tensor) -> None:
        total = self.epochs * self.batches.steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.state.steps, total, group["peak"])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.average.update(self.adapted)
        self.state.steps += 1

    def _judge(self) -> None:
        state = self.state
        if self.examine is None:
            self._keep()
            return
        with self.average.applied(self.sam):
            scores = self.examine()
        state.history.append(mean(scores))
        if not state.best or mean(scores) > mean(state.best):
            state.best = scores
        if as_good_as(scores, state.best):
            self._keep()
        logger.debug("teacher: epoch %d of %d, held-out Dice %.3f", state.epoch, self.epochs, mean(scores))

    def _keep(self) -> None:
        self.state.kept_epoch = self.state.epoch
        self.kept = {name: tensor.clone() for name, tensor in self.average.tensors.items()}


def seconds_of(action: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def span(seconds: float) -> str:
    """A time for a reader who waits: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
