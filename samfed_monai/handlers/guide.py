"""What a guide is: a name, and probabilities for an unlabelled batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from samfed_monai.errors import Problem, Refused

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


class Guide(ABC):
    """Gives probabilities for the weak view of an unlabelled batch, under a name that terms ask for.

    A new guide subclasses this, is named in the bundle's ``guides`` and needs nothing else.

    Args:
        name: what terms call it; ``weak`` is taken by the student's own weak view.

    Raises:
        Refused: an empty name, or ``weak``.
    """

    def __init__(self, name: str) -> None:
        if not name or name == "weak":
            expected = "a name other than 'weak' (the student's own view)"
            raise Refused([Problem("guide name", found=repr(name), expected=expected)])
        self.name = name

    def attach(self, engine: Engine) -> None:  # noqa: B027 - a guide without state binds to nothing
        """Binds what the guide keeps to the trainer; called by :class:`UnlabelledStream`."""

    def is_needed(self, engine: Any) -> bool:
        """Whether this iteration computes it; a guide that costs something is, where a term reads it."""
        return True

    @abstractmethod
    def __call__(self, batch: Mapping[str, Any], engine: Engine) -> Tensor:
        """Probabilities of the batch's weak view.

        Args:
            batch: the unlabelled batch on the engine's device, ``image`` is (B, 3, H, W) float in [0, 1].
            engine: the trainer.

        Returns:
            (B, C, H, W) float in [0, 1], without gradient.
        """


def is_read(name: str, engine: Any) -> bool:
    """Whether the value of a term of this trainer depends on the guide ``name``; True where there is no term to say."""
    return name in getattr(engine.state, "guides_read", {name})
