"""Guides, sources of probabilities for an unlabelled batch, and ``Guidance``, which passes them to the loss terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean, refused
from samfed_monai.core.training_state import move_average
from samfed_monai.core.validators import in_range, require
from samfed_monai.handlers.rounds import when_round_starts
from samfed_monai.losses import Agreement, AgreementSettings, agree, probabilities


class NetworkCopy:
    """A frozen copy of a network's parameters and buffers, in eval mode.

    The copy is allocated at the first :meth:`sync` and reused by later ones.
    """

    def __init__(self) -> None:
        self._network: nn.Module | None = None

    @property
    def network(self) -> nn.Module:
        if self._network is None:
            raise RuntimeError("NetworkCopy: no weights were copied yet; attach the guide to a trainer and train")
        return self._network

    @torch.no_grad()
    def sync(self, source: nn.Module) -> None:
        """Makes the copy equal to ``source``."""
        if self._network is None:
            self._network = deepcopy(source).requires_grad_(False).eval()
            return
        for copied, current in zip(_tensors(self._network), _tensors(source), strict=True):
            copied.copy_(current)

    def average(self, source: nn.Module, decay: float) -> None:
        """``copy = decay copy + (1 - decay) source``."""
        move_average(_tensors(self.network), _tensors(source), decay)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


OWN_VIEWS = ("weak", "strong")
"""Names that terms may use besides those of guides: the student's own predictions of the two views of an image."""


class Guide(ABC):
    """Provides probabilities for the weak view of an unlabelled batch, under a name that terms use.

    A new guide subclasses this and is named in the bundle's ``guides``; nothing else is needed.

    Args:
        name: name for terms; ``weak`` and ``strong`` are reserved for the student's own views.

    Raises:
        Refused: an empty name, or one of the student's own views.
    """

    def __init__(self, name: str) -> None:
        if not name or name in OWN_VIEWS:
            raise refused("guide name", repr(name), "a name other than 'weak' and 'strong' (the student's own views)")
        self.name = name

    def attach(self, engine: Engine) -> None:  # noqa: B027 - a guide without state binds to nothing
        """Binds the guide's state to the trainer; called by :class:`UnlabelledStream`."""

    def is_needed(self, engine: Any) -> bool:
        """Whether this iteration computes it; expensive guides are computed only if a term reads them."""
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


def register_reads(engine: Any, names: Iterable[str]) -> None:
    """Registers with a trainer that a term's value depends on these guides or own views."""
    engine.state.guides_read = getattr(engine.state, "guides_read", frozenset()) | set(names)


def is_read(name: str, engine: Any) -> bool:
    """Whether a term of this trainer depends on the guide ``name``; True if no term has registered its guides."""
    return name in getattr(engine.state, "guides_read", {name})


class BatchGuide(Guide):
    """Reads a guide's probabilities from the unlabelled batch; subclasses may compute more from them.

    Args:
        name: name for terms.
        key: the batch's key, (B, C, H, W) float in [0, 1], with the same spatial transforms as the image.

    Raises:
        Refused: at the first batch, when the key is missing or its size is not the image's.

    Example::

        {"_target_": "samfed_monai.handlers.BatchGuide", "name": "sam", "key": "teacher"}
    """

    def __init__(self, *, name: str = "sam", key: str = "teacher") -> None:
        super().__init__(name)
        self.key = key

    def __call__(self, batch: Mapping[str, Any], engine: Engine) -> Tensor:
        """The batch's own entry; see :class:`Guide`."""
        where = f"guides#{self.name} ({type(self).__name__}) -> key"
        if self.key not in batch:
            hint = "fill the soft-mask store and give store_dir and teacher_sha256 (LoadSoftMaskd writes 'teacher'), "
            hint += f"or disable guides#{self.name} and the terms that use it"
            raise refused(where, f"an unlabelled batch with {sorted(batch)}", f"the key {self.key!r}", hint)
        probabilities: Tensor = batch[self.key]
        size, expected = tuple(probabilities.shape[2:]), tuple(batch["image"].shape[2:])
        if size != expected:
            hint = f"add {self.key!r} to the keys of WeakViewd, to transform image and guide together"
            raise refused(where, f"{size} pixels", f"the image's {expected}", hint)
        return probabilities


class CopyGuide(Guide):
    """Probabilities of a frozen copy of the trainer's network, buffers included, in eval mode.

    The copy is taken at ``STARTED``, when the client has just loaded the global weights, and only if a term reads the
    guide.

    Args:
        name: name for terms.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._copy = NetworkCopy()

    def attach(self, engine: Engine) -> None:
        """Takes a copy of ``engine.network`` whenever a round starts."""
        engine.add_event_handler(Events.STARTED, self._copy_network)

    def is_needed(self, engine: Any) -> bool:
        """Whether a term reads it."""
        return is_read(self.name, engine)

    def _copy_network(self, engine: Any) -> None:
        if self.is_needed(engine):
            self._copy.sync(engine.network)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any], engine: Any) -> Tensor:
        """The copy's probabilities for the weak view; see :class:`Guide`."""
        return probabilities(engine.inferer(batch["image"], self._copy.network))


class EmaGuide(CopyGuide):
    """Probabilities of an exponential moving average of the student, buffers included, in eval mode (docs/method.md).

    At ``STARTED`` the average is set to the student, since global weights have just arrived and an older average would
    pull towards the previous round; after every optimizer step it moves by ``1 - decay``.

    Args:
        name: name for terms.
        decay: weight of the old average at each step, in [0, 1).

    Raises:
        Refused: a decay outside [0, 1).

    Example::

        {"_target_": "samfed_monai.handlers.EmaGuide", "name": "ema", "decay": 0.99}
    """

    def __init__(self, *, name: str = "ema", decay: float = 0.99) -> None:
        super().__init__(name)
        require(in_range(f"guides#{name} (EmaGuide) -> decay", decay, least=0, below=1))
        self.decay = decay

    def attach(self, engine: Engine) -> None:
        """Copies the student at the start of a run and updates the average after each step."""
        super().attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update_average)

    def _update_average(self, engine: Any) -> None:
        if self.is_needed(engine):
            self._copy.average(engine.network, self.decay)


class GlobalGuide(CopyGuide):
    """Probabilities of the round's global network, frozen in eval mode (docs/method.md, step 2, homogeneous mode).

    A trainer without rounds takes a new copy at the start of every epoch.

    Args:
        name: name for terms.

    Example::

        {"_target_": "samfed_monai.handlers.GlobalGuide", "name": "global"}
    """

    def __init__(self, *, name: str = "global") -> None:
        super().__init__(name)

    @property
    def network(self) -> nn.Module:
        """The frozen copy, for a term that needs more than its probabilities; the term must read this guide."""
        return self._copy.network

    def attach(self, engine: Engine) -> None:
        """Takes a copy of ``engine.network`` at the start of every round, or without rounds of every epoch."""
        when_round_starts(engine, self._copy_network)


@dataclass
class Guidance:
    """Inputs of the terms in one iteration, for one unlabelled batch.

    Args:
        student: (B, C, H, W) float logits of the strong view, with gradient.
        weak_view: (B, C, H, W) float in [0, 1], the student's own prediction of the weak view, without gradient; or a
            function that returns it, called at most once, when a term uses ``weak``.
        guides: name to (B, C, H, W) float in [0, 1], without gradient.
        batch: the unlabelled batch itself (not mixed by CutMix), for a term that runs the student on another view.
        mixed: whether CutMix has mixed the other three.
        trust: settings to the trust in the teacher on each image, (B,) float in [0, 1], for the rule
            ``trusted_average``.
    """

    student: Tensor
    weak_view: Tensor | Callable[[], Tensor]
    guides: dict[str, Tensor]
    batch: Mapping[str, Any] = field(default_factory=dict, repr=False)
    mixed: bool = False
    trust: dict[AgreementSettings, Tensor] = field(default_factory=dict, repr=False)
    _agreements: dict[AgreementSettings, Agreement] = field(default_factory=dict, repr=False)

    @property
    def weak(self) -> Tensor:
        """(B, C, H, W) float in [0, 1], the student's own prediction of the weak view, without gradient."""
        if callable(self.weak_view):
            self.weak_view = self.weak_view()
        return self.weak_view

    def probabilities(self, name: str, *, where: str) -> Tensor:
        """A guide's probabilities; ``weak`` and ``strong`` are the student's own views, neither with gradient.

        Raises:
            Refused: no guide of that name.
        """
        if name == "weak":
            return self.weak
        if name == "strong":
            return probabilities(self.student.detach())
        if name not in self.guides:
            raise Refused([unknown_guide(name, self.guides, where)])
        return self.guides[name]

    def view(self, key: str, *, where: str) -> Tensor:
        """Returns a view of the unlabelled images, (B, 3, H, W), for a term that runs a network on it.

        Raises:
            Refused: the batch has no such view, or the guides no longer match it because of CutMix.
        """
        problems = Problems()
        if key not in self.batch:
            hint = "add this view to the output_key of the strong view"
            problems.add(where, f"an unlabelled batch with {sorted(self.batch)}", f"the view {key!r}", hint)
        if self.mixed:
            found, hint = "CutMix, which mixes only the first strong view", f"set it to 0, or disable {where}"
            problems.add("stream#cutmix", found=found, expected=f"0 with {where}", hint=hint)
        problems.refuse_if_any()
        return self.batch[key]

    def agreement_inputs(self, settings: AgreementSettings, *, where: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Probabilities of teacher and student, and of the guide ``ema`` if there is one (docs/method.md)."""
        ema = self.guides.get("ema") if settings.student != "ema" else self.weak
        teacher = self.probabilities(settings.teacher, where=where)
        return teacher, self.probabilities(settings.student, where=where), ema

    def agree(self, settings: AgreementSettings, *, where: str) -> Agreement:
        """The agreement of two guides, computed once for all terms."""
        if settings not in self._agreements:
            self._agreements[settings] = agree(
                *self.agreement_inputs(settings, where=where),
                tau=settings.tau,
                delta=settings.delta,
                rule=settings.rule,
                trust=self.trust.get(settings),
            )
        return self._agreements[settings]


def unknown_guide(name: str, known: Iterable[str], where: str) -> Problem:
    """The problem of a term that uses an unknown guide."""
    names = sorted({*OWN_VIEWS, *known})
    hint = did_you_mean(name, names) or f"add or enable a guide of that name, or disable {where}"
    return Problem(where, found=f"the guide {name!r}", expected=f"one of {names}", hint=hint)


def no_stream(where: str) -> Problem:
    """The problem of a term without an unlabelled batch."""
    hint = f"enable stream, or disable {where}"
    return Problem(where, found="no unlabelled batch", expected="an UnlabelledStream on the same trainer", hint=hint)
