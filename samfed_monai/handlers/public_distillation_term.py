"""The term of condensation and fusion: another network's opinion of the public images, where it is the better one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.engines.utils import IterationEvents

from samfed_monai.core.errors import Problems
from samfed_monai.handlers.records import record, record_supervised
from samfed_monai.losses import distillation_kl, hssf_kl
from samfed_monai.transforms.loading import GATE, KEY

if TYPE_CHECKING:
    from ignite.engine import Engine


class PublicDistillationTerm:
    """``weight * T^2 KL(p_target || p)`` on the labelled batch, image by image where its gate is open (docs/method.md).

    The divergence is averaged over all pixels of the batch, images with a closed gate counting as 0. It reads
    ``target`` (B, C, H, W) and ``target_gate`` (B,) from the trainer's batch, where :class:`LoadTargetd` puts them;
    a batch without them adds nothing.

    Args:
        name: under which the value is logged; ``<name>_gate`` is the share of images with an open gate.
        temperature: ``T``.
        weight: factor >= 0.
        convention: ``ours``, or ``hssf`` for the divergence of HSSF's code (no ``T^2``, mean over two channels).

    Raises:
        Refused: a negative weight, a temperature that is not positive, an unknown convention.

    Example::

        {"_target_": "samfed_monai.handlers.PublicDistillationTerm", "weight": 1.0, "temperature": 2.0}
    """

    def __init__(
        self, *, name: str = "public_kd", temperature: float = 2.0, weight: float = 1.0, convention: str = "ours"
    ) -> None:
        problems = Problems()
        if not weight >= 0:
            problems.add(f"{name}#weight", found=repr(weight), expected="a number >= 0")
        if not temperature > 0:
            problems.add(f"{name}#temperature", found=repr(temperature), expected="a number > 0")
        if convention not in ("ours", "hssf"):
            problems.add(f"{name}#convention", found=repr(convention), expected="'ours' or 'hssf'")
        problems.refuse_if_any()
        self.name, self.temperature, self.weight, self.convention = name, temperature, weight, convention

    def attach(self, engine: Engine) -> None:
        """Binds the term to a MONAI trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Adds the term to ``engine.state.output["loss"]``."""
        record_supervised(engine)
        batch = engine.state.batch
        if KEY not in batch:
            return
        logits = engine.state.output["pred"]
        target, gate = (torch.as_tensor(batch[key]).to(logits.device) for key in (KEY, GATE))
        if self.convention == "hssf":
            value = hssf_kl(logits, target, gate, temperature=self.temperature)
        else:
            value = distillation_kl(logits, target, self.temperature, scale=gate)
        record(engine, self.name, value)
        record(engine, f"{self.name}_gate", gate.mean())
        engine.state.output["loss"] = engine.state.output["loss"] + self.weight * value
