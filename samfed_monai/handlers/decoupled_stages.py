"""Decoupled fine-tuning: within a round first what is shared is trained, then what is personal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.handlers.parts_in_turn import PartsInTurn
from samfed_monai.networks.key_patterns import check_patterns, matched_names
from samfed_monai.networks.sam.network import SamNetwork, SamPath


class DecoupledStages(PartsInTurn):
    """Stage G, then stage L, in every epoch of a trainer (pFedSAM, docs/pfedsam.md; a round of the federation is one).

    Stage G runs the network's global path and trains what is shared; stage L runs the personal path and trains what is
    personal. The resting half takes no gradient at all, not even a zero one, so that neither weight decay nor an
    optimizer's moments move it; its moments wait as they are. Between iterations the network is on its personal path
    with everything trainable, so what validates or copies it there sees the site's own model.

    Some weights belong to no path: both run through the mask decoder. Named by ``both`` they never rest, and so take as
    many steps as where there are no stages.

    It does not go together with ``ProximalTerm``, which looks at all weights that are trained at a round's start.

    Args:
        share: part of an epoch's steps that are stage G, rounded up; 0 and 1 leave one stage out.
        both: patterns (``*`` crosses dots) of names of weights that are trained in both stages.

    Raises:
        Refused: a share outside [0, 1], ``both`` that is no list; at ``STARTED``, a network without paths or without
            personal weights, an optimizer that lacks weights of a stage, a pattern that matches nothing that is
            trained, or too few steps for both stages.

    Example::

        "before#stages": {
            "_target_": "samfed_monai.handlers.DecoupledStages", "share": 0.5, "both": ["sam.mask_decoder.*"]
        }
    """

    where = "before#stages (DecoupledStages)"

    def __init__(self, *, share: float = 0.5, both: Sequence[str] = ()) -> None:
        problems = Problems()
        if type(share) not in (int, float) or not 0 <= share <= 1:
            problems.add(f"{self.where} -> share", found=repr(share), expected="a part in [0, 1]")
        check_patterns(both, f"{self.where} -> both", problems, example="sam.mask_decoder.*")
        problems.refuse_if_any()
        super().__init__(share)
        self.both = tuple(both)

    def stage(self, step: int, steps: int) -> SamPath:
        """The path that is trained at ``step`` (from 0) of the ``steps`` of an epoch."""
        return SamPath.GLOBAL if self.is_first(step, steps) else SamPath.PERSONAL

    def check(self, engine: Any) -> None:
        """Refuses, before any work, what cannot be trained in two stages."""
        network, steps, problems = engine.network, engine.state.epoch_length, Problems()
        if not isinstance(network, SamNetwork):
            mend = "set network_name to sam_vit_t, sam_vit_b, sam_vit_l or sam_vit_h"
            found, expected = type(network).__name__, "a network with a global and a personal path"
            raise Refused([Problem(self.where, found, expected, mend)])
        groups = {group["name"]: group["params"] for group in network.parameter_groups()}
        if "personal" not in groups:
            mend = "set network_def#experts to 4, or leave this handler out"
            problems.add(self.where, found="no personal weights", expected="experts or a personal decoder", mend=mend)
        held = {id(weight) for group in engine.optimizer.param_groups for weight in group["params"]}
        for name, weights in groups.items():
            missing = sum(id(weight) not in held for weight in weights)
            if missing:
                found = f"an optimizer without {missing} of the {len(weights)} {name} tensors"
                mend = 'let its params be {"_target_": "samfed_monai.parts.parameters_of", "network": "@network"}'
                problems.add(self.where, found=found, expected="one that holds them all", mend=mend)
        if steps is None:
            mend = "set local_steps, the trainer's epoch_length"
            problems.add(self.where, found="an epoch of unknown length", expected="a number of steps", mend=mend)
        elif 0 < self.share < 1 and len({self.stage(step, steps) for step in range(steps)}) < 2:
            found = f"{steps} steps with a share of {self.share}"
            mend = "raise local_steps, or set share to 0 or 1"
            problems.add(self.where, found=found, expected="at least one step for each stage", mend=mend)
        never = self._never_resting(network, {id(weight) for group in groups.values() for weight in group}, problems)
        problems.refuse_if_any()
        rest = {name: [weight for weight in group if id(weight) not in never] for name, group in groups.items()}
        self.resting = {True: rest["personal"], False: rest["shared"]}

    def __call__(self, engine: Any) -> None:
        """Sets path and trainable weights of one iteration."""
        super().__call__(engine)
        steps = engine.state.epoch_length
        active = self.stage((engine.state.iteration - 1) % steps, steps)
        engine.network.path, engine.state.stage = active, active.value

    def release(self, engine: Any) -> None:
        """Back to the personal path, everything trainable."""
        engine.network.path = SamPath.PERSONAL
        super().release(engine)

    def _never_resting(self, network: SamNetwork, trained: set[int], problems: Problems) -> set[int]:
        named = {name: id(weight) for name, weight in network.named_parameters() if id(weight) in trained}
        parts = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in named))
        mend = f"correct the pattern or leave it out; trained names begin with {parts}"
        where = f"{self.where} -> both"
        found = matched_names(list(named), self.both, where, problems, kind="trained name", mend=mend)
        return {named[name] for name in found}
