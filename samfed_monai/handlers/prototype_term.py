"""The term that pulls a batch's class prototypes towards those of all sites (FedProto)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents

from samfed_monai.core.errors import Problems
from samfed_monai.handlers.guide import say_read
from samfed_monai.handlers.records import record, record_supervised
from samfed_monai.losses import ClassSums, class_sums, hard_label, prototype_loss
from samfed_monai.networks.intake import head_of

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


class PrototypeTerm:
    """``weight * mean |prototype_c - global_c|^2``, and the site's own prototypes of the round (FedProto, 2105.00243).

    Features are the input of the network's head. A pixel belongs to the class of its label on the public batch, and to
    that of the student's own weak view on the private one, where that is surer than ``tau``. In a round without global
    prototypes it adds nothing and only collects.

    Args:
        network: the site's network.
        name: under which the value is logged.
        tau: how sure a private pixel must be, in [0.5, 1).
        weight: factor >= 0 (lambda).
        classes: the background included.

    Raises:
        Refused: numbers out of range; a network whose head is not known.

    Example::

        {"_target_": "samfed_monai.handlers.PrototypeTerm", "network": "@network", "weight": 1.0}
    """

    def __init__(
        self, *, network: nn.Module, name: str = "prototype", tau: float = 0.9, weight: float = 1.0, classes: int = 2
    ) -> None:
        problems = Problems()
        if not weight >= 0:
            problems.add(f"terms#{name}#weight", found=repr(weight), expected="a number >= 0")
        if not 0.5 <= tau < 1:
            problems.add(f"terms#{name}#tau", found=repr(tau), expected="a number in [0.5, 1)")
        problems.refuse_if_any()
        self.name, self.tau, self.weight, self.classes = name, tau, weight, classes
        self.prototypes: Tensor | None = None
        self.known: Tensor | None = None
        self._features: list[Tensor] = []
        self._collected: ClassSums | None = None
        self._head = head_of(network)
        self._hook: RemovableHandle | None = None

    def attach(self, engine: Engine) -> None:
        """Binds the term to a MONAI trainer."""
        say_read(engine, ("weak",))
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_STARTED, self._listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def pull_to(self, prototypes: Tensor, known: Tensor) -> None:
        """Sets the prototypes of all sites: (K, D) float and (K,) bool."""
        self.prototypes, self.known = prototypes, known

    @property
    def collected(self) -> ClassSums | None:
        """Sums over the round that was trained last; ``None`` before the first step."""
        return self._collected

    def __call__(self, engine: Any) -> None:
        """Adds the term to ``engine.state.output["loss"]``."""
        record_supervised(engine)
        batch = self._batch(engine)
        detached = ClassSums(batch.sums.detach(), batch.counts.detach())
        old = self._collected
        self._collected = detached if old is None else ClassSums(old.sums + detached.sums, old.counts + detached.counts)
        if self.prototypes is None or self.known is None:
            return
        device = batch.sums.device
        value = prototype_loss(batch, self.prototypes.to(device), self.known.to(device))
        record(engine, self.name, value)
        engine.state.output["loss"] = engine.state.output["loss"] + self.weight * value

    def _batch(self, engine: Any) -> ClassSums:
        labels = torch.as_tensor(engine.state.batch["label"]).to(self._features[0].device)
        sums, counts = class_sums(self._features[0].float(), labels, classes=self.classes)
        guidance = getattr(engine.state, "guidance", None)
        if guidance is not None and len(self._features) > 1:
            label, confidence = hard_label(guidance.weak)
            sure = (confidence > self.tau).float()
            more = class_sums(self._features[1].float(), label, sure, classes=self.classes)
            sums, counts = sums + more.sums, counts + more.counts
        return ClassSums(sums, counts)

    def _keep(self, head: nn.Module, inputs: tuple[Any, ...]) -> None:
        # in an iteration the network trains on the public batch first, then on the private strong view
        if head.training and torch.is_grad_enabled():
            self._features.append(inputs[0])

    def _listen(self, engine: Any) -> None:
        # for one iteration at a time: guides copy the network between iterations, and would copy the hook with it
        self._stop(engine)
        self._hook = self._head.register_forward_pre_hook(self._keep)

    def _stop(self, engine: Any) -> None:
        self._features.clear()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _reset(self, engine: Any) -> None:
        self._stop(engine)
        self._collected = None
