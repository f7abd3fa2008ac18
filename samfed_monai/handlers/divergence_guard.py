"""Stops a site whose training has diverged, before it can hurt the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ignite.engine import Events
from monai.engines.utils import IterationEvents

from samfed_monai.errors import Stopped
from samfed_monai.handlers.rounds import round_of

if TYPE_CHECKING:
    from ignite.engine import Engine


class DivergenceGuard:
    """Raises before back-propagation when the loss is NaN or infinite, naming site, round, step and the terms at fault.

    List it after the terms. At the end of an epoch it also looks at the weights, because the last step may have broken
    them after a finite loss. Unlike Ignite's ``TerminateOnNan`` it makes the round fail: a federation must not take the
    weights of a trainer that merely ended early.

    Args:
        site: the site's name, for the message.

    Raises:
        Stopped: during the run.

    Example::

        {"_target_": "samfed_monai.handlers.DivergenceGuard", "site": "@site"}
    """

    def __init__(self, *, site: str = "") -> None:
        self.site = site

    def attach(self, engine: Engine) -> None:
        """Binds the guard to a trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check_weights)

    def __call__(self, engine: Any) -> None:
        """Looks at the loss that is about to be back-propagated."""
        if bool(engine.state.output["loss"].isfinite().all()):
            return
        terms = getattr(engine.state, "terms", {})
        guilty = [name for name, value in terms.items() if not bool(value.isfinite().all())]
        self._stop(engine, f"the loss is NaN or infinite (terms at fault: {', '.join(guilty) or 'their sum'})")

    def check_weights(self, engine: Any) -> None:
        """Looks at the weights after the epoch's last step."""
        for name, tensor in engine.network.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                self._stop(engine, f"the weights hold NaN or infinity (first at {name})")

    def _stop(self, engine: Any, what: str) -> None:
        number, rounds = round_of(engine)
        raise Stopped(
            f"training diverged at site {self.site!r}, round {number + 1} of {rounds}, step {engine.state.iteration}: "
            f"{what}",
            "lower learning_rate, or the weight of that term",
        )
