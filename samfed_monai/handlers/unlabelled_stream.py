"""Adds an unlabelled batch to each iteration of MONAI's supervised trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.networks.utils import eval_mode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Sampler

from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.validators import in_range, require
from samfed_monai.handlers.guide import Guidance, Guide, is_read
from samfed_monai.handlers.records import record_supervised
from samfed_monai.losses import probabilities
from samfed_monai.transforms import cutmix


class EndlessSampler(Sampler[int]):
    """Yields all images in one random order after another, without end.

    Batches are always full (a last batch of one image would break BatchNorm), and all images are used equally often.
    The order depends only on the seed: a new iteration repeats it. It has no length; give the trainer ``epoch_length``.

    Args:
        dataset: the data set.
        seed: seed of the order; :class:`SeedHandler` sets it for each round.
        indices: the images to use; ``None`` is all of them.

    Example::

        {"_target_": "samfed_monai.handlers.EndlessSampler", "dataset": "@train#dataset"}
    """

    def __init__(self, dataset: Sized, *, seed: int = 0, indices: Sequence[int] | None = None) -> None:
        self.dataset, self.seed, self.indices = dataset, seed, indices

    def set_random_state(self, seed: int) -> None:
        """Sets the seed of the next iteration."""
        self.seed = seed

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while count := len(self.dataset if self.indices is None else self.indices):
            order = torch.randperm(count, generator=generator).tolist()
            yield from order if self.indices is None else (self.indices[position] for position in order)


class SupervisedWeight:
    """Multiplies the supervised loss before any term is added; with 0 a site learns only from its own images.

    List it in ``before``. With weight 0 the public batch has no effect: its gradient is zero, and BatchNorm's running
    statistics do not change in its forward pass (which MONAI still runs). The unweighted loss is recorded under
    ``supervised``.

    Args:
        weight: factor >= 0.

    Raises:
        Refused: a negative weight.

    Example::

        "before#supervised": {"_target_": "samfed_monai.handlers.SupervisedWeight", "weight": 0.0}
    """

    def __init__(self, *, weight: float = 0.0) -> None:
        require(in_range("before#supervised (SupervisedWeight) -> weight", weight, least=0))
        self.weight = weight
        self._momenta: list[tuple[_BatchNorm, float | None]] = []

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        if self.weight == 0:
            engine.add_event_handler(Events.ITERATION_STARTED, self._freeze_statistics)
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._restore_momenta)

    def __call__(self, engine: Any) -> None:
        """Multiplies the loss by the weight."""
        record_supervised(engine)
        engine.state.output["loss"] = engine.state.output["loss"] * self.weight

    def _freeze_statistics(self, engine: Any) -> None:
        self._restore_momenta(engine)  # after a failed step
        norms = [layer for layer in engine.network.modules() if isinstance(layer, _BatchNorm)]
        self._momenta = [(layer, layer.momentum) for layer in norms if layer.track_running_stats]
        for layer, _ in self._momenta:
            layer.momentum = 0.0  # running = running + 0 * (batch - running)

    def _restore_momenta(self, engine: Any) -> None:
        for layer, momentum in self._momenta:
            layer.momentum = momentum
        self._momenta = []


class UnlabelledStream:
    """Draws an unlabelled batch after each supervised forward pass and sets ``engine.state.guidance``.

    Each iteration computes the probabilities of the guides (those that need a forward pass only if a term reads them);
    the student's strong view in train mode with gradient; and, if a term reads it, the student's weak view in eval mode
    without gradient, so that it is the prediction of an evaluation and BatchNorm's running statistics do not change.
    The loader restarts at every ``STARTED`` (a round) and whenever it is exhausted.

    Args:
        loader: batches with ``image`` (weak view), ``image_strong``, both (B, 3, H, W) float, and the guides' entries.
        guides: guides by any key, or a list of them; terms use their ``name``.
        cutmix: probability that an image of the strong view gets a box of its neighbour in the batch; guides and weak
            view are mixed in the same way. 0 is off.

    Raises:
        Refused: two guides with one name; at ``STARTED``, a loader without images; at the first batch, missing keys.

    Example::

        {"_target_": "samfed_monai.handlers.UnlabelledStream", "loader": "@unlabelled#dataloader", "guides": "@guides"}
    """

    def __init__(
        self,
        *,
        loader: Iterable[Mapping[str, Any]],
        guides: Mapping[str, Guide] | Sequence[Guide] = (),
        cutmix: float = 0.0,
    ) -> None:
        all_guides = list(guides.values()) if isinstance(guides, Mapping) else list(guides)
        self.guides = [guide for guide in all_guides if guide is not None]  # a reference to a disabled guide is None
        names = [guide.name for guide in self.guides]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        require(
            (Problem("guides", f"two guides named {name!r}", "unique names", "rename one") for name in duplicates),
            in_range("stream#cutmix", cutmix, "a probability", least=0, most=1),
        )
        self.loader, self.cutmix = loader, cutmix
        self._batches: Iterator[Mapping[str, Any]] | None = None

    def attach(self, engine: Any) -> None:
        """Attaches the guides, then itself."""
        for guide in self.guides:
            guide.attach(engine)
        engine.state.guide_names = [guide.name for guide in self.guides]
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def start(self, engine: Any) -> None:
        """Restarts the loader: the next batch is its first."""
        self._batches = None
        dataset: Any = getattr(self.loader, "dataset", self.loader)
        if hasattr(dataset, "__len__") and len(dataset) == 0:
            hint = "check --site against the data list, or disable stream and every term to train on the public images"
            raise refused("stream#loader", "none at this site", "unlabelled images", f"{hint} alone")

    def __call__(self, engine: Any) -> None:
        """Computes the guidance of one iteration."""
        batch = self._next_batch(engine)
        image, strong, is_mixed = batch["image"], batch["image_strong"], self.cutmix > 0

        def predict() -> torch.Tensor:
            with eval_mode(engine.network):
                return probabilities(engine.inferer(image, engine.network))

        # computed before the strong view, which changes BatchNorm's statistics, if a term is known to read it
        weak = predict() if is_mixed or is_read("weak", engine) else None
        guides = {guide.name: guide(batch, engine) for guide in self.guides if guide.is_needed(engine)}
        if is_mixed and weak is not None:
            strong, weak, *mixed = cutmix(strong, weak, *guides.values(), prob=self.cutmix)
            guides = dict(zip(guides, mixed, strict=True))
        student = engine.inferer(strong, engine.network)
        engine.state.guidance = Guidance(
            student=student, weak_view=predict if weak is None else weak, guides=guides, batch=batch, mixed=is_mixed
        )

    def _next_batch(self, engine: Any) -> dict[str, Any]:
        batch = next(self._batches, None) if self._batches is not None else None
        if batch is None:
            self._batches = iter(self.loader)
            batch = next(self._batches)
        where = "stream#loader (UnlabelledStream)"
        hint = "use WeakViewd for the weak view and StrongViewd for the strong view"
        missing = sorted({"image", "image_strong"} - batch.keys())
        require(Problem(where, f"a batch with {sorted(batch)}", f"the key {key!r}", hint) for key in missing)
        device, non_blocking = engine.state.device, engine.non_blocking
        return {
            key: value.to(device, non_blocking=non_blocking) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }
