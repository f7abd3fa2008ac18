"""FedSemiDG's FGASL (arXiv 2501.07378): weights by generalisation gap, labels of two guides, dropout alignment.

The order of steps is that of the authors' code (github.com/dzp2095/FedSemiDG, ``src/fl/server.py``): the first round is
averaged with equal weights, which its gaps then change; from the second round on, the round's own gaps change the
weights before it is averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import torch
from ignite.engine import Events
from monai.networks.utils import eval_mode
from torch import Tensor
from torch.nn import functional

from samfed_monai.core.errors import refused
from samfed_monai.core.validators import BELOW_1, in_range, require, whole
from samfed_monai.handlers.guide import GlobalGuide, Guidance, register_reads
from samfed_monai.handlers.records import record
from samfed_monai.handlers.rounds import round_of, when_round_starts
from samfed_monai.handlers.term import FeatureTerm, Term
from samfed_monai.losses import entropy, hard_label, logits_kl, probabilities, weighted_pseudo_label_loss
from samfed_monai.methods.site_weights import LearnedWeights
from samfed_monai.networks.features import feature_dropout, require_encoder
from samfed_monai.protocol.message import Message

GAP = "generalisation_gap"
_MOST_VALUES = 2**24  # limit of `torch.quantile`; of more numbers, every n-th is used


def gap_weights(weights: Tensor, gaps: Tensor, round: int, rounds: int, step: float) -> Tensor:
    """``a_k += (step / 3) (1 - r / R) g_k / max |g|``, clamped to [0, 1] and divided by their sum (FGASL's code, GAA).

    If all gaps are 0, ``weights`` is returned. Equal gaps make uneven weights more equal, since all grow by the same
    amount.

    Args:
        weights: (N,) float, on the simplex.
        gaps: (N,) float, one per site.
        round, rounds: r from 0, and R.
        step: s >= 0.

    Returns:
        (N,) float64 on the simplex.
    """
    weights, gaps = weights.double(), gaps.double()
    largest = gaps.abs().max()
    if largest == 0:
        return weights
    changed = (weights + step / 3 * (1 - round / rounds) * gaps / largest).clamp(0, 1)
    return changed / changed.sum() if changed.sum() > 0 else torch.full_like(weights, 1 / len(weights))


class GeneralisationAware(LearnedWeights):
    """FedAvg in which sites whose training moved farther from the global model weigh more (GAA).

    Deng et al., arXiv 2501.07378. A site's gap is measured by its :class:`GapMeter`. The weights start equal. A round
    is averaged by its own gaps, so all updates are kept until it ends: two more models in memory than sites.

    Args:
        step: s, >= 0; 0 is the unweighted mean of the sites.

    Raises:
        Refused: a step below 0.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedsemidg.GeneralisationAware", "step": 0.05}
    """

    def __init__(self, *, step: float = 0.05) -> None:
        require(in_range("strategy#step", step, least=0))
        super().__init__(number=GAP, equal_start=True)
        self.step = float(step)

    def configure(self, round: int) -> dict[str, Message]:
        self._updates: dict[str, Message] = {}
        return super().configure(round)

    def accept(self, round: int, site: str, update: Message) -> None:
        self._numbers[site] = self.number_of(update)
        self._updates[site] = update

    def finish(self, round: int) -> None:
        if round > 0:
            self.learn(round)
        for site in sorted(self._updates):
            super().accept(round, site, self._updates.pop(site))
        self.average(round)
        if round == 0:
            self.learn(round)

    def next_weights(self, round: int, weights: Tensor, numbers: Tensor) -> Tensor | None:
        return gap_weights(weights, numbers, round, self.server.rounds, self.step)


class GapMeter:
    """Adds ``KL(global || own)`` on weak views of the site's images, in nats per pixel, to the means of the round.

    It compares the networks at the start and at the end of the round, both in eval mode. The authors' code uses every
    image of the site, including labelled ones, and omits the background's part for a binary mask; this uses the first
    ``batches`` of the round's order, and both parts. List it after ``TermLogger``.

    Args:
        loader: the loader of the unlabelled images.
        guide: the round's global network.
        batches: number of batches, >= 1.

    Raises:
        Refused: fewer than one batch.

    Example::

        "after#gap": {
            "_target_": "samfed_monai.methods.fedsemidg.GapMeter",
            "loader": "@unlabelled#dataloader", "guide": "@guides#global"
        }
    """

    def __init__(self, *, loader: Iterable[Mapping[str, Any]], guide: GlobalGuide, batches: int = 4) -> None:
        require(whole("after#gap#batches", batches, least=1))
        self.loader, self.guide, self.batches = loader, guide, batches

    def attach(self, engine: Any) -> None:
        register_reads(engine, (self.guide.name,))
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Any) -> None:
        """Adds the gap to the means of the round."""
        gaps = []
        for batch in islice(iter(self.loader), self.batches):
            image = batch["image"].to(engine.state.device)
            predicted = self.guide({"image": image}, engine).float()
            several = predicted.shape[1] > 1
            global_logits = predicted.clamp(min=1e-6).log() if several else torch.logit(predicted, eps=1e-6)
            with eval_mode(engine.network):
                local_logits = engine.inferer(image, engine.network).float()
            gaps.append(logits_kl(local_logits, global_logits, temperature=1.0))
        if gaps:
            means = dict(getattr(engine.state, "term_means", None) or {})
            engine.state.term_means = {**means, GAP: float(torch.stack(gaps).mean())}


@dataclass(kw_only=True, eq=False)
class DualGuideTerm(Term):
    """The loss against the mean of two guides where their entropy is within a quantile of the labelled batch's (DR).

    As in FGASL's code, the label is that of ``(p_first + p_second) / 2``; a pixel counts if the mean of both entropies
    is at most a threshold, the ``rho`` quantile of the labelled batch's entropies, averaged over steps with ``memory``;
    rho goes from ``start`` to ``end`` over the run. Ours: the average is reset in each round and starts with its first
    batch (in the code it starts at 0 and continues through the run), and the loss is cross entropy and soft Dice
    (``dice_ce``), normalised by the sum of weights.

    Records ``dual_sure``, the share of pixels that count.

    Args:
        name: name under which the value is logged.
        first, second: the guides: the round's global network, and an average of the student.
        start, end: first and last rho, in (0, 1), ascending.
        memory: part of the old threshold that is kept at each step, in [0, 1).
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: an argument out of range.

    Example::

        {"_target_": "samfed_monai.methods.fedsemidg.DualGuideTerm", "first": "global", "second": "ema"}
    """

    checks: ClassVar = {"memory": BELOW_1}

    name: str = "dual_guide"
    first: str = "global"
    second: str = "ema"
    start: float = 0.15
    end: float = 0.3
    memory: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.start <= self.end < 1:
            found, expected = f"{self.start!r} to {self.end!r}", "two quantiles in (0, 1), ascending"
            raise refused(f"{self.where}#start", found, expected)
        self._threshold: Tensor | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.first, self.second)

    def attach(self, engine: Any) -> None:
        """Binds the term; a round starts without a threshold."""
        super().attach(engine)
        when_round_starts(engine, self._reset_threshold)

    def _reset_threshold(self, engine: Any) -> None:
        self._threshold = None

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """Returns the loss of the strong view against the guides' label."""
        first, second = (guidance.probabilities(name, where=self.where) for name in self.needs)
        with torch.no_grad():
            label, _ = hard_label((first + second) / 2)
            sure = ((entropy(first) + entropy(second)) / 2 <= self._update_threshold(engine)).to(first.dtype)
        record(engine, "dual_sure", sure.mean())
        return weighted_pseudo_label_loss(guidance.student, label, sure)

    def _update_threshold(self, engine: Any) -> Tensor:
        number, rounds = round_of(engine)
        steps = engine.state.epoch_length or 1
        step = (engine.state.iteration - 1) % steps
        quantile = self.start + (self.end - self.start) * (number + step / steps) / rounds
        entropies = entropy(probabilities(engine.state.output["pred"].detach())).flatten()
        entropies = entropies[:: -(-len(entropies) // _MOST_VALUES)].quantile(quantile)
        previous = self._threshold
        self._threshold = entropies if previous is None else self.memory * previous + (1 - self.memory) * entropies
        return self._threshold


@dataclass(kw_only=True, eq=False)
class DropoutAlignmentTerm(FeatureTerm):
    """``mean |f - f'|^2`` of the strong view's last features without and with dropped channels (FGASL, PIA).

    Features are the input of the network's head; for ``f'`` each channel of the encoder's maps is dropped with
    probability ``drop``. Both have a gradient. A step costs one more forward and backward pass. Our reading aligns the
    unlabelled images only, the authors' code also the labelled ones.

    Args:
        network: the site's network.
        name: name under which the value is logged.
        drop: probability to drop a channel, in [0, 1); with 0 only the network's own randomness gives a value.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: an argument out of range; a network whose encoder or head cannot be reached.

    Example::

        {"_target_": "samfed_monai.methods.fedsemidg.DropoutAlignmentTerm", "network": "@network", "weight": 0.3}
    """

    checks: ClassVar = {"drop": partial(BELOW_1, what="a chance")}

    name: str = "alignment"
    drop: float = 0.3
    weight: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_encoder(self.network, self.where)

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """Returns the mean squared difference."""
        clean = self._features.inputs[1]  # after the labelled batch; other terms' passes may follow
        with feature_dropout(engine.network, self.drop):
            engine.inferer(guidance.view("image_strong", where=self.where), engine.network)
        return functional.mse_loss(self._features.inputs[-1].float(), clean.float())
