"""FedICRA (arXiv 2304.05635): channels chosen by site, a decoder that each site mixes anew, a tree energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.validators import COUNT, POSITIVE, in_range, require, whole
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.parts_in_turn import PartsInTurn
from samfed_monai.handlers.term import Term
from samfed_monai.losses import probabilities, without_label
from samfed_monai.losses.tree_energy import tree_energy
from samfed_monai.methods.fedala import AdaptiveMixing
from samfed_monai.methods.fedavg import PersonalFedAvg
from samfed_monai.networks.features import CODES, LastFeatures, head_of, selection_of
from samfed_monai.networks.key_patterns import check_patterns, matched_names
from samfed_monai.protocol.message import Kind, Message

if TYPE_CHECKING:
    from torch import nn

    from samfed_monai.protocol.strategy import Server


def decoder_names(network: nn.Module, patterns: Sequence[str] | None = None) -> frozenset[str]:
    """Names of the parameters between encoder and logits, the head's among them.

    Args:
        network: with an ``encoder``, or MONAI's BasicUNet; any other with ``patterns``.
        patterns: shell-style, in place of what the network shows.

    Raises:
        Refused: no list of patterns, one that matches nothing, or a network that does not show its decoder.
    """
    where, names = "sharing#decoder", [name for name, _ in network.named_parameters()]
    problems = Problems()
    if patterns is not None:
        found: set[str] = set()
        if check_patterns(patterns, where, problems, example="decoder.*"):
            found = matched_names(names, patterns, where, problems)
        problems.refuse_if_any()
        return frozenset(found)
    if isinstance(getattr(network, "encoder", None), torch.nn.Module):
        return frozenset(name for name in names if not name.startswith("encoder."))
    if hasattr(network, "upcat_1"):
        return frozenset(name for name in names if name.startswith(("upcat_", "final_conv.")))
    expected, hint = "a network with an encoder, or BasicUNet", 'name its decoder, for instance ["decoder.*", "head.*"]'
    raise Refused([Problem(where, found=type(network).__name__, expected=expected, hint=hint)])


class DecoderMixing(AdaptiveMixing):
    """FedICRA's adaptive aggregation (Lin et al., arXiv 2304.05635), as its public code does it.

    A round: encoder and running statistics are replaced by the global ones; the whole decoder starts from
    ``global + W (local - global)``, with ``W`` of ones in every round, so from the site's own. Before the local epoch
    ``W`` alone learns from a few batches, ``W <- clip(W - rate dL/dW, 0, 1)``, and is then forgotten. What leaves the
    site are all weights, as in FedAvg. The first rounds, and one in which both sides are alike, mix nothing.

    Channels are chosen by site inside of the encoder (:mod:`samfed_monai.networks.features`), so they arrive with
    it. Its code differs from the form of FedALA, which ``fedala`` is: that mixes the last layers alone, starts from the
    global ones (``W`` is the share of the global weights), and keeps ``W``. Ours: ``L`` is the bundle's whole loss,
    where the code takes the partial cross entropy alone. The mean of ``W`` is reported as ``term_own``.

    Args:
        decoder: patterns of the decoder's parameters; ``None`` takes what the network shows (:func:`decoder_names`).
        rate: step size of ``W`` (the code: 1).
        batches: batches a round from which ``W`` learns (the code: one epoch).
        first_batches: the same in the first round that mixes; the code goes on until the loss no longer changes.
        after: rounds that pass before the first that mixes (the code: 50 steps, of 20 a round).
        others: arguments of :class:`TrainerSharing`.

    Raises:
        Refused: an option out of its range; a network whose decoder is not known.

    Example::

        "sharing": {"_target_": "samfed_monai.methods.fedicra.DecoderMixing", "batches": 4, "after": 2, …}
    """

    def __init__(
        self,
        *,
        decoder: Sequence[str] | None = None,
        rate: float = 1.0,
        batches: int = 4,
        first_batches: int = 16,
        after: int = 2,
        **others: Any,
    ) -> None:
        problems = Problems()
        problems.extend(whole("sharing#after", after, "a number of rounds", least=0))
        with problems.collected():
            super().__init__(upper=1.0, rate=rate, batches=batches, first_batches=first_batches, **others)
            self.decoder = decoder_names(self.network, decoder)
        problems.refuse_if_any()
        self.after, self._begun = after, False

    @property
    def mixing(self) -> bool:
        """Whether the trainer runs for ``W`` now, and not for the local epoch."""
        return bool(self._ends)

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        arrived = self.taken(kind, tensors)
        decoder = {name: weight for name, weight in self.trained().items() if name in self.decoder}
        own = {name: weight.detach().clone() for name, weight in decoder.items()}
        self.put(arrived)
        ends = {name: (weight.detach().clone(), own[name]) for name, weight in decoder.items()}
        if round < self.after or all(torch.equal(theirs, mine) for theirs, mine in ends.values()):
            return {}
        batches, self._begun = self.batches if self._begun else self.first_batches, True
        self._weights = {name: torch.ones_like(mine) for name, mine in own.items()}
        try:
            return {"own": self.learn(round, ends, batches, arrived)}
        finally:
            self._weights = {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"begun": torch.tensor(self._begun)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.reset()
        self._begun = bool(state["begun"]) if "begun" in state else False

    def reset(self) -> None:
        super().reset()
        self._begun = False


class HeadThenBody(PartsInTurn):
    """Trains the head with the rest of the network at rest, then the rest with the head at rest (FedICRA's code).

    The code: the last convolution in all steps of a round but the last three of twenty. It is passed over while the
    sharing learns its mixture, which looks at the whole decoder.

    Args:
        sharing: the bundle's, which says when it mixes.
        share: part of an epoch's steps that train the head, rounded up; in (0, 1).

    Raises:
        Refused: a share outside (0, 1); at ``STARTED``, a network without a head, nothing to train in one of the two,
            or too few steps for both.

    Example::

        "before#parts": {"_target_": "samfed_monai.methods.fedicra.HeadThenBody", "sharing": "@sharing", "share": 0.85}
    """

    where = "before#parts (HeadThenBody)"

    def __init__(self, *, sharing: DecoderMixing, share: float = 0.85) -> None:
        require(in_range(f"{self.where} -> share", share, "a part", above=0, below=1))
        super().__init__(share)
        self.sharing = sharing

    def check(self, engine: Any) -> None:
        """Finds the two parts, and refuses what cannot be trained in turn."""
        if self.sharing.mixing:
            return
        head = set(head_of(engine.network).parameters())
        trained = [weight for weight in engine.network.parameters() if weight.requires_grad]
        parts = {
            "head": [weight for weight in trained if weight in head],
            "body": [weight for weight in trained if weight not in head],
        }
        self.settle(engine, parts, hint="leave this handler out")

    def __call__(self, engine: Any) -> None:
        """Sets what one iteration trains."""
        if not self.sharing.mixing:
            super().__call__(engine)


@dataclass(kw_only=True, eq=False)
class TreeEnergyTerm(Term):
    """:func:`tree_energy` of the labelled batch: pixels without a label follow those of like colour and features.

    FedICRA's network has three more heads whose outputs guide three filters in turn; ours has none: the features are
    the input of the network's head, one filter. They get no gradient through the tree.

    Args:
        network: the site's network.
        name: under which the value is logged.
        sigma: of colours (FedICRA's code: 0.02).
        step: looks at every ``step``-th pixel of each row and column (ours): trees are built on the processor.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: a number out of range; a network without a head.

    Example::

        "terms#tree": {"_target_": "samfed_monai.methods.fedicra.TreeEnergyTerm", "network": "@network", "step": 2}
    """

    unlabelled = False
    checks: ClassVar = {"sigma": POSITIVE, "step": partial(COUNT, what="a number of pixels")}

    network: nn.Module
    name: str = "tree"
    sigma: float = 0.02
    step: int = 1
    weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._features = LastFeatures(self.network)

    def attach(self, engine: Any) -> None:
        super().attach(engine)
        self._features.attach(engine)

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """The tree energy."""
        output, step = engine.state.output, self.step
        chances, image, unknown = (
            each[..., ::step, ::step]
            for each in (probabilities(output["pred"].float()), output["image"].float(), without_label(output["label"]))
        )
        return tree_energy(chances, image, unknown, self._features.kept[0], sigma=self.sigma)


class SiteCodes(PersonalFedAvg):
    """Federated averaging that tells each site who it is: its place among the sites, in the network's own buffer.

    Every message has the site's code in the buffer ``codes`` of the network's channel selection, 1 at its place, and 1
    in the second line at every place that is taken; all else is :class:`PersonalFedAvg`. The mean of what sites send
    back is the mean of their codes: a hospital that took no part is looked at as one that is a little of each (ours;
    the public code has no such hospital). Where the server adds noise to the mean, it has that of learned parameters
    alone, and such a hospital is none of them. Places follow the order of the sites' names.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedicra.SiteCodes"}
    """

    def require_names(self, shared: Sequence[str]) -> None:
        if not any(name.endswith(CODES) for name in shared):
            expected, hint = "a network that knows its site", "set network_def#site_channels, for instance to 16"
            raise Refused([Problem("strategy", found=f"no weights {CODES}", expected=expected, hint=hint)])

    def attach(self, server: Server) -> SiteCodes:
        super().attach(server)
        self.require_names(list(self.global_weights))
        (self.name,) = (name for name in self.global_weights if name.endswith(CODES))
        places, sites = self.global_weights[self.name].shape[1], sorted(server.sites)
        if len(sites) > places:
            where, hint = "network_def#site_channels", f"set it to {len(sites)} or more"
            raise Refused([Problem(where, f"{len(sites)} sites", f"at most {places}, the places of the network", hint)])
        taken = torch.zeros(places)
        taken[: len(sites)] = 1
        self.codes = {site: torch.stack([torch.eye(places)[place], taken]) for place, site in enumerate(sites)}
        return self

    def configure(self, round: int) -> dict[str, Message]:
        return {
            site: replace(message, tensors={**message.tensors, self.name: self.codes[site].clone()})
            for site, message in super().configure(round).items()
        }


@dataclass(kw_only=True, eq=False)
class SiteContrastTerm(Term):
    """FedICRA's site contrast: channels are chosen unlike those that another site would choose of the same images.

    ``-1/(S - 1) sum_j mean (h(x, own) - h(x, j))^2`` over the other sites j, with ``h`` the channel weights of the
    labelled images' deepest features and no gradient through those of another site: the public code's ``loss_lc``,
    which runs the whole network again for each of them and has the same value. It is 0 for a site alone.

    Args:
        network: the site's network, with ``site_channels``.
        name: under which the value is logged; it is <= 0.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: a number out of range; a network without channel selection.

    Example::

        "terms#sites": {"_target_": "samfed_monai.methods.fedicra.SiteContrastTerm", "network": "@network", …}
    """

    unlabelled = False

    network: nn.Module
    name: str = "sites"
    weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.selection = selection_of(self.network, self.where)
        self._features = LastFeatures(self.network, self.selection)

    def attach(self, engine: Any) -> None:
        super().attach(engine)
        self._features.attach(engine)

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """The mean squared distance to the other sites' channel weights, negative."""
        selection, features = self.selection, self._features.kept[0].float()  # other batches may follow
        own, others = selection.heat(features, selection.codes[0]), selection.others()
        with torch.no_grad():
            theirs = [selection.heat(features, code) for code in others]
        apart = [(own - each).square().mean() for each in theirs]
        return -torch.stack(apart).mean() if apart else own.sum() * 0
