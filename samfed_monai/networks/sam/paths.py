"""The two ways through a SAM with personal experts, and what comes with a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from samfed_monai.errors import Problem, Refused
from samfed_monai.networks.sam.routing import Routing


class SamPath(str, Enum):
    """Which way an image takes through a ``SamNetwork``."""

    GLOBAL = "global"
    """Low-rank updates alone."""
    PERSONAL = "personal"
    """Low-rank updates and experts."""

    @property
    def other(self) -> SamPath:
        """The other path."""
        return SamPath.PERSONAL if self is SamPath.GLOBAL else SamPath.GLOBAL


@dataclass(frozen=True)
class SamOutputs:
    """What comes with a prediction of ``SamNetwork`` in train mode.

    Args:
        path: the path it took.
        routing: how the experts were used; ``None`` on the global path and without gradient.
    """

    path: SamPath
    routing: Routing | None


def sam_outputs(prediction: Tensor) -> SamOutputs:
    """What came with a prediction of ``SamNetwork`` in train mode.

    Args:
        prediction: the very tensor that the network returned. A copy or a slice of it carries nothing.

    Raises:
        Refused: a prediction of another network, or one made in eval mode.
    """
    outputs = getattr(prediction, "sam_outputs", None)
    if outputs is None:
        mend = "set network_name to sam_vit_t, or disable the terms that need its two paths"
        expected = "the prediction of a sam_vit network in train mode"
        raise Refused([Problem("network", found="a prediction without paths", expected=expected, mend=mend)])
    return outputs
