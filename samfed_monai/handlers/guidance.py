"""The small typed object between guides and terms (ARCHITECTURE, seam 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from samfed_monai.errors import Problem, Problems, Refused, did_you_mean
from samfed_monai.handlers.guide import OWN_VIEWS
from samfed_monai.losses import Agreement, AgreementSettings, RaterRates, agree, probabilities


@dataclass
class Guidance:
    """Everything the terms of one iteration need, for one unlabelled batch.

    Args:
        student: (B, C, H, W) float logits of the strong view, with gradient.
        weak_view: (B, C, H, W) float in [0, 1], the student's own prediction of the weak view, without gradient; or a
            function that makes it, which is called once, and only if somebody asks for ``weak``.
        guides: name to (B, C, H, W) float in [0, 1], without gradient.
        batch: the unlabelled batch itself, for a term that runs the student on a view of its own (not mixed by CutMix).
        mixed: whether CutMix has mixed the other three.
        rates: (teacher, student) to what was learned of them at this site, for the rule ``reliability``.
        trust: settings to the trust in their teacher on each image, (B,) float in [0, 1], for the rule ``adaptive``.
    """

    student: Tensor
    weak_view: Tensor | Callable[[], Tensor]
    guides: dict[str, Tensor]
    batch: Mapping[str, Any] = field(default_factory=dict, repr=False)
    mixed: bool = False
    rates: dict[tuple[str, str], RaterRates] = field(default_factory=dict, repr=False)
    trust: dict[AgreementSettings, Tensor] = field(default_factory=dict, repr=False)
    _agreements: dict[AgreementSettings, Agreement] = field(default_factory=dict, repr=False)

    @property
    def weak(self) -> Tensor:
        """(B, C, H, W) float in [0, 1], the student's own prediction of the weak view, without gradient."""
        if callable(self.weak_view):
            self.weak_view = self.weak_view()
        return self.weak_view

    def probabilities(self, name: str, *, asked_by: str) -> Tensor:
        """A guide's probabilities; ``weak`` and ``strong`` are the student's own views, neither with gradient.

        Raises:
            Refused: no guide of that name.
        """
        if name == "weak":
            return self.weak
        if name == "strong":
            return probabilities(self.student.detach())
        if name not in self.guides:
            raise Refused([unknown_guide(name, self.guides, asked_by)])
        return self.guides[name]

    def view(self, key: str, *, asked_by: str) -> Tensor:
        """A view of the unlabelled images, (B, 3, H, W), for a term that looks at it once more.

        Raises:
            Refused: the batch has no such view, or CutMix has moved the guides away from it.
        """
        problems = Problems()
        if key not in self.batch:
            mend = "let the output_key of the strong view list it"
            found = f"an unlabelled batch with {sorted(self.batch)}"
            problems.add(asked_by, found=found, expected=f"the view {key!r}", mend=mend)
        if self.mixed:
            found, mend = "CutMix, which mixes the first strong view alone", f"set it to 0, or disable {asked_by}"
            problems.add("stream#cutmix", found=found, expected=f"0 beside {asked_by}", mend=mend)
        problems.refuse_if_any()
        return self.batch[key]

    def raters(self, settings: AgreementSettings, *, asked_by: str) -> tuple[Tensor, ...]:
        """Probabilities of teacher and student, and of the guide ``ema`` where there is one (docs/method.md)."""
        third = self.guides.get("ema") if settings.student != "ema" else self.weak
        asked = (settings.teacher, settings.student)
        both = tuple(self.probabilities(name, asked_by=asked_by) for name in asked)
        return both if third is None else (*both, third)

    def agree(self, settings: AgreementSettings, *, asked_by: str) -> Agreement:
        """The agreement of two guides, computed once however many terms ask for it."""
        if settings not in self._agreements:
            self._agreements[settings] = agree(
                *self.raters(settings, asked_by=asked_by),
                tau=settings.tau,
                delta=settings.delta,
                rule=settings.rule,
                rates=self.rates.get((settings.teacher, settings.student)),
                trust=self.trust.get(settings),
            )
        return self._agreements[settings]


def unknown_guide(name: str, known: Iterable[str], asked_by: str) -> Problem:
    """The problem of a term that asks for a guide nobody provides."""
    names = sorted({*OWN_VIEWS, *known})
    mend = did_you_mean(name, names) or f"add a guide of that name, or disable {asked_by}"
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
