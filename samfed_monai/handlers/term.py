"""What a term is: one named addition to the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from ignite.engine import Events
from monai.engines.utils import IterationEvents

from samfed_monai.errors import Problems
from samfed_monai.handlers.guidance import Guidance, guidance_of, no_stream, unknown_guide
from samfed_monai.handlers.guide import OWN_VIEWS, say_read
from samfed_monai.handlers.records import record, record_supervised
from samfed_monai.handlers.rounds import round_of
from samfed_monai.losses import SCHEDULES

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


class Term(ABC):
    """Adds ``weight * schedule(round, rounds) * value(guidance)`` to the loss before it is back-propagated.

    The value itself, without weight, is recorded under the term's name. A new term subclasses this, says in ``needs``
    which guides it asks for, if any, and is named in the bundle's ``terms``. One that looks at the labelled batch or at
    the weights alone sets ``unlabelled = False``: it works without a stream too, and is then given ``None`` as
    guidance.

    Args:
        name: under which the value is logged.
        weight: factor >= 0.
        schedule: a name in :data:`samfed_monai.losses.SCHEDULES`.
        fraction: part of the rounds in which a ramp rises.

    Raises:
        Refused: a negative weight, an unknown schedule; at ``STARTED``, a guide that nobody provides.
    """

    unlabelled = True

    def __init__(self, *, name: str, weight: float, schedule: str, fraction: float) -> None:
        problems = Problems()
        if not weight >= 0:
            problems.add(f"terms#{name}#weight", found=repr(weight), expected="a number >= 0")
        if not 0 <= fraction <= 1:
            problems.add(f"terms#{name}#fraction", found=repr(fraction), expected="a part in [0, 1]")
        with problems.collected():
            self._schedule = SCHEDULES.named(schedule, where=f"terms#{name}#schedule")
        problems.refuse_if_any()
        self.name, self.weight, self.fraction = name, weight, fraction

    @property
    def where(self) -> str:
        """The term's place in the bundle, for messages."""
        return f"terms#{self.name}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the guides this term asks for; none, unless a subclass says so."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the guides that the value depends on: those of :attr:`needs`, and any that it takes if it is there.

        A network's guide that no term reads is not computed.
        """
        return self.needs

    @abstractmethod
    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """The term as a scalar >= 0 with gradient, without its weight."""

    def attach(self, engine: Any) -> None:
        """Binds the term to a MONAI trainer."""
        say_read(engine, self.reads)
        engine.add_event_handler(Events.STARTED, self.check)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def check(self, engine: Any) -> None:
        """Refuses, before any work, a trainer that cannot give what this term asks for."""
        known = getattr(engine.state, "guide_names", None)
        problems = Problems()
        if known is None and self.unlabelled:
            problems.extend([no_stream(self.where)])
        elif known is not None:
            missing = [name for name in self.needs if name not in known and name not in OWN_VIEWS]
            problems.extend(unknown_guide(name, known, self.where) for name in missing)
        problems.refuse_if_any()

    def __call__(self, engine: Any) -> None:
        """Adds the term to ``engine.state.output["loss"]``."""
        record_supervised(engine)
        given = getattr(engine.state, "guidance", None)
        guidance: Any = guidance_of(engine, asked_by=self.where) if self.unlabelled else given
        value = self.value(guidance, engine)
        record(engine, self.name, value)
        factor = self.weight * self._schedule(*round_of(engine), self.fraction)
        engine.state.output["loss"] = engine.state.output["loss"] + factor * value
