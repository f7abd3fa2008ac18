"""pFedSAM (arXiv 2509.15638): personal experts (L-MoE), decoupled stages, mutual distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from ignite.engine import Events
from torch import Tensor

from samfed_monai.core.errors import Problems, refused
from samfed_monai.core.validators import FRACTION, POSITIVE, require
from samfed_monai.handlers.parts_in_turn import PartsInTurn
from samfed_monai.handlers.rounds import when_round_starts
from samfed_monai.handlers.term import Term
from samfed_monai.losses import logits_kl
from samfed_monai.networks.key_patterns import matched_names, pattern_problems
from samfed_monai.networks.sam.network import SamNetwork, SamPath, require_experts, sam_outputs


def load_balance(share: Tensor, probability: Tensor) -> Tensor:
    """``K sum_k f_k P_k``, averaged over layers (Fedus et al., Switch Transformers, arXiv 2101.03961, equation 4).

    Switch routes a token to one expert, GShard (Lepikhin et al., arXiv 2006.16668, section 2.2) to two. With ``k``
    experts per token we count all ``k`` and divide by ``k``, so that ``f`` sums to 1; as in both papers the gradient
    flows through ``P`` only. Equal use gives 1; certain routing of all tokens to the same ``k`` experts at most
    ``K / k``.

    Args:
        share: (..., K) float, ``f``: each expert's share of all token assignments; no gradient.
        probability: (..., K) float, ``P``: mean over tokens of the gate's softmax over all experts.

    Returns:
        a scalar >= 0, without the factor (docs/personalised.md: 0.01).
    """
    return share.shape[-1] * (share.detach() * probability).sum(dim=-1).mean()


@dataclass(kw_only=True, eq=False)
class LoadBalanceTerm(Term):
    """``0.01 K sum_k f_k P_k``, mean over the layers (see ``samfed_monai.methods.pfedsam.load_balance``).

    It uses the supervised prediction only. On the global path, which uses no expert, it adds nothing and records
    nothing.

    Args:
        name: name under which the value is logged; 1 is even use.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: at ``STARTED``, a network without experts.

    Example::

        "terms#load_balance": {"_target_": "samfed_monai.methods.pfedsam.LoadBalanceTerm", "weight": 0.01}
    """

    unlabelled, of_network = False, (require_experts,)

    name: str = "load_balance"
    weight: float = 0.01

    def __call__(self, engine: Any) -> None:
        """Adds the term if experts were used."""
        if sam_outputs(engine.state.output["pred"]).routing is not None:
            super().__call__(engine)

    def value(self, guidance: Any, engine: Any) -> Tensor:
        """Returns ``K sum_k f_k P_k``."""
        routing: Any = sam_outputs(engine.state.output["pred"]).routing  # not None: __call__ has looked
        return load_balance(routing.share, routing.probability)


@dataclass(kw_only=True, eq=False)
class MutualDistillationTerm(Term):
    """``b T^2 KL(other path || trained path)`` on the labelled batch (pFedSAM, docs/personalised.md).

    The trained path is that of the supervised prediction; the other one runs on the same images without gradient. In
    stage G (see ``DecoupledStages``) the term is ``KL(personal || global)``, in stage L ``KL(global || personal)``. It
    costs one forward pass per step and needs no unlabelled stream. It compares logits, unclipped unlike a guide's
    stored masks, so that paths that agree have a value of 0 at any confidence.

    Args:
        name: name under which the value is logged.
        temperature: ``T`` > 0.
        weight: ``b``.
        schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: a temperature that is not positive; at ``STARTED``, a network without paths or without experts.

    Example::

        "terms#mutual": {
            "_target_": "samfed_monai.methods.pfedsam.MutualDistillationTerm", "temperature": 2.0, "weight": 0.5
        }
    """

    unlabelled, of_network = False, (require_experts,)
    checks: ClassVar = {"temperature": POSITIVE}

    name: str = "mutual_kd"
    temperature: float = 2.0
    weight: float = 0.5

    def value(self, guidance: Any, engine: Any) -> Tensor:
        """Returns ``T^2 KL(other || trained)``."""
        output = engine.state.output
        path = sam_outputs(output["pred"]).path.other
        with torch.no_grad():
            other = engine.inferer(output["image"], engine.network, path=path)
        return logits_kl(output["pred"], other, self.temperature)


class DecoupledStages(PartsInTurn):
    """Splits each epoch of a trainer, which is a round, into stage G and stage L (pFedSAM, docs/personalised.md).

    Stage G runs the network's global path and trains the shared weights; stage L runs the personal path and trains the
    personal ones. The frozen weights have no gradient, not even zero, so that neither weight decay nor the optimizer's
    moments change them; their moments are kept. Between iterations the network is on its personal path with everything
    trainable, so that validation and copies use the site's own model.

    Some weights belong to no path: both paths run through the mask decoder. Weights matched by ``both`` are never
    frozen, and take as many steps as without stages.

    Args:
        share: part of an epoch's steps in stage G, rounded up; 0 and 1 omit one stage.
        both: patterns (``*`` also matches dots) of the names of weights to train in both stages.

    Raises:
        Refused: a share outside [0, 1], ``both`` that is no list; at ``STARTED``, a network without paths or without
            personal weights, an optimizer that lacks weights of a stage, a pattern that matches no trained weight, or
            too few steps for both stages.

    Example::

        "before#stages": {
            "_target_": "samfed_monai.methods.pfedsam.DecoupledStages", "share": 0.5, "both": ["sam.mask_decoder.*"]
        }
    """

    where = "before#stages (DecoupledStages)"

    def __init__(self, *, share: float = 0.5, both: Sequence[str] = ()) -> None:
        require(
            FRACTION(f"{self.where} -> share", share, "a part"),
            pattern_problems(f"{self.where} -> both", both, "sam.mask_decoder.*"),
        )
        super().__init__(share)
        self.both = tuple(both)

    def stage(self, step: int, steps: int) -> SamPath:
        """Returns the path to train at ``step`` (from 0) of the ``steps`` of an epoch."""
        return SamPath.GLOBAL if self.is_first(step, steps) else SamPath.PERSONAL

    def check(self, engine: Any) -> None:
        """Refuses, before training, a network or an optimizer that does not fit two stages."""
        network, problems = engine.network, Problems()
        if not isinstance(network, SamNetwork):
            hint = "set network_name to sam_vit_t, sam_vit_b, sam_vit_l or sam_vit_h"
            raise refused(self.where, type(network).__name__, "a network with a global and a personal path", hint)
        groups = {group["name"]: group["params"] for group in network.parameter_groups()}
        if "personal" not in groups:
            hint = "set network_def#experts to 4, or remove this handler"
            problems.add(self.where, found="no personal weights", expected="experts or a personal decoder", hint=hint)
        optimized = {id(weight) for group in engine.optimizer.param_groups for weight in group["params"]}
        for name, weights in groups.items():
            missing = sum(id(weight) not in optimized for weight in weights)
            if missing:
                found = f"an optimizer without {missing} of the {len(weights)} {name} tensors"
                hint = 'set its params to {"_target_": "samfed_monai.bundle.parameters_of", "network": "@network"}'
                problems.add(self.where, found=found, expected="an optimizer of all tensors", hint=hint)
        if self.share < 1 or engine.state.epoch_length is None:
            problems.extend(self.step_problems(engine.state.epoch_length))
        trained = {id(weight) for group in groups.values() for weight in group}
        ids = {name: id(weight) for name, weight in network.named_parameters() if id(weight) in trained}
        parts = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in ids))
        hint = f"correct the pattern or remove it; trained names begin with {parts}"
        with problems.collected():
            matched = matched_names(list(ids), self.both, f"{self.where} -> both", kind="trained name", hint=hint)
            unfrozen = {ids[name] for name in matched}
        problems.refuse_if_any()
        frozen = {name: [weight for weight in group if id(weight) not in unfrozen] for name, group in groups.items()}
        self.resting = {True: frozen["personal"], False: frozen["shared"]}

    def __call__(self, engine: Any) -> None:
        """Sets the path and the trainable weights of one iteration."""
        super().__call__(engine)
        steps = engine.state.epoch_length
        active = self.stage((engine.state.iteration - 1) % steps, steps)
        engine.network.path, engine.state.stage = active, active.value

    def release(self, engine: Any) -> None:
        """Returns to the personal path with everything trainable."""
        engine.network.path = SamPath.PERSONAL
        super().release(engine)


class ExpertUsage:
    """Records how the tokens of a round's supervised passes were distributed over the experts.

    Means over the layers (``expert_1``, ... which sum to 1) and the smallest share of any expert in any layer
    (``expert_least``) are added to ``engine.state.term_means``: statistics of the site's images that are withheld with
    the loss terms. There are none if no pass took the personal path. A trainer without rounds restarts the count in
    every epoch. List it after the handler that sets these means.

    Raises:
        Refused: at ``STARTED``, a network without experts.

    Example::

        "after#expert_usage": {"_target_": "samfed_monai.methods.pfedsam.ExpertUsage"}
    """

    def __init__(self) -> None:
        self._assigned: Tensor | None = None
        self._tokens: Tensor = torch.zeros(0)

    def attach(self, engine: Any) -> None:
        when_round_starts(engine, self._start_round)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _start_round(self, engine: Any) -> None:
        require_experts(engine.network, "after#expert_usage (ExpertUsage)")
        self._assigned = None

    def __call__(self, engine: Any) -> None:
        """Adds one iteration; the sums stay on the device."""
        routing = sam_outputs(engine.state.output["pred"]).routing
        if routing is None:
            return
        tokens = torch.tensor(routing.tokens, dtype=torch.float64, device=routing.share.device)
        assigned = routing.share.double() * tokens[:, None]
        if self._assigned is None:
            self._assigned, self._tokens = assigned, tokens
        else:
            self._assigned, self._tokens = self._assigned + assigned, self._tokens + tokens

    def _epoch_completed(self, engine: Any) -> None:
        if self._assigned is None:
            return
        shares = (self._assigned / self._tokens[:, None]).tolist()
        by_expert = enumerate(zip(*shares, strict=True), start=1)
        means = {f"expert_{number}": sum(layer_shares) / len(layer_shares) for number, layer_shares in by_expert}
        means["expert_least"] = min(map(min, shares))
        engine.state.term_means = {**(getattr(engine.state, "term_means", None) or {}), **means}
