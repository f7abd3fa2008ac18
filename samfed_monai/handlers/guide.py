"""What a guide is: a name, and probabilities for an unlabelled batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from samfed_monai.errors import Problem, Refused

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor

OWN_VIEWS = ("weak", "strong")
"""What a term may ask for by name besides guides: the student's own predictions of an image's two views."""


class Guide(ABC):
    """Gives probabilities for the weak view of an unlabelled batch, under a name that terms ask for.

    A new guide subclasses this, is named in the bundle's ``guides`` and needs nothing else.

    Args:
        name: what terms call it; ``weak`` and ``strong`` are taken by the student's own views.

    Raises:
        Refused: an empty name, or one of the student's own views.
    """

    def __init__(self, name: str) -> None:
        if not name or name in OWN_VIEWS:
            expected = "a name other than 'weak' and 'strong' (the student's own views)"
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


def say_read(engine: Any, names: Iterable[str]) -> None:
    """Has a trainer know that a term's value depends on these guides or own views."""
    engine.state.guides_read = getattr(engine.state, "guides_read", frozenset()) | set(names)


def is_read(name: str, engine: Any) -> bool:
    """Whether the value of a term of this trainer depends on the guide ``name``; True where there is no term to say."""
    return name in getattr(engine.state, "guides_read", {name})
