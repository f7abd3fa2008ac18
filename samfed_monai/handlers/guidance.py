"""The small typed object between guides and terms (ARCHITECTURE, seam 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from samfed_monai.errors import Problem, Refused
from samfed_monai.losses import Agreement, agree


@dataclass
class Guidance:
    """Everything the terms of one iteration need, for one unlabelled batch.

    Args:
        student: (B, C, H, W) float logits of the strong view, with gradient.
        weak: (B, C, H, W) float in [0, 1], the student's own weak view, without gradient.
        guides: name to (B, C, H, W) float in [0, 1], without gradient.
        batch: the unlabelled batch itself, for a term that runs the student on a view of its own (not mixed by CutMix).
    """

    student: Tensor
    weak: Tensor
    guides: dict[str, Tensor]
    batch: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _agreements: dict[tuple, Agreement] = field(default_factory=dict, repr=False)

    def probabilities(self, name: str, *, asked_by: str) -> Tensor:
        """A guide's probabilities; ``weak`` is the student's own view.

        Raises:
            Refused: no guide of that name.
        """
        if name == "weak":
            return self.weak
        if name not in self.guides:
            raise Refused([unknown_guide(name, self.guides, asked_by)])
        return self.guides[name]

    def agree(
        self, teacher: str, *, student: str = "weak", rule: str, tau: float, delta: float, asked_by: str
    ) -> Agreement:
        """The agreement of two guides, computed once however many terms ask for it.

        The reliability compares the student with the guide ``ema`` where there is one (METHOD 3.3).
        """
        question = (teacher, student, rule, tau, delta)
        if question not in self._agreements:
            other = self.guides.get("ema") if student != "ema" else self.weak
            self._agreements[question] = agree(
                self.probabilities(teacher, asked_by=asked_by),
                self.probabilities(student, asked_by=asked_by),
                other,
                tau=tau,
                delta=delta,
                rule=rule,
            )
        return self._agreements[question]


def unknown_guide(name: str, known: Iterable[str], asked_by: str) -> Problem:
    """The problem of a term that asks for a guide nobody provides."""
    names = sorted({"weak", *known})
    close = difflib.get_close_matches(name, names, n=1)
    mend = f"did you mean {close[0]!r}?" if close else f"add a guide of that name, or disable {asked_by}"
    return Problem(asked_by, found=f"the guide {name!r}", expected=f"one of {names}", mend=mend)


def guidance_of(engine: Any, *, asked_by: str) -> Guidance:
    """The current iteration's guidance.

    Raises:
        Refused: no :class:`UnlabelledStream` is attached.
    """
    guidance = getattr(engine.state, "guidance", None)
    if guidance is None:
        raise Refused([no_stream(asked_by)])
    return guidance


def no_stream(asked_by: str) -> Problem:
    """The problem of a term without an unlabelled batch."""
    mend = f"enable stream, or disable {asked_by}"
    return Problem(asked_by, found="no unlabelled batch", expected="an UnlabelledStream on the same trainer", mend=mend)
