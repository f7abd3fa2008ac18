"""APPLE (arXiv 2110.08394): each site learns a weight for every other site's core model.

A site's step is that of the authors' code (github.com/ljaiverson/pFL-APPLE): the pull is ``lambda(r) mu |p_i - p_0|^2``
with the gradient ``2 lambda(r) mu (p_i - p_0)``; shares are trained with a momentum of 0.9, reset in each round. The
authors train core models by SGD with momentum, the bundle by AdamW as in all other methods. AdamW normalises gradients,
so the factor ``p_ii`` of a core model's gradient has no effect, and its step is multiplied by ``p_ii`` instead:
otherwise core models move apart until their mixture fails.

Shares keep their sum here (``keep_sum``): core models that start from one network are nearly parallel, so the gradients
of all shares are nearly equal, and free shares at the authors' rate scale the whole network until it predicts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.engines.utils import IterationEvents
from monai.networks.utils import get_state_dict
from torch import Tensor

from samfed_monai.core.validators import in_range, require, switch
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol.message import Kind, Message, message_refused
from samfed_monai.protocol.strategy import Exchange, TrainerAlgorithm, require_least

#: Final value of the exponential schedule, and momentum of the steps of shares (the authors' code).
_EPSILON, _MOMENTUM = 0.001, 0.9


def shares_gradient(gradient: Tensor, cores: Tensor, shares: Tensor, prior: Tensor, pull: float) -> Tensor:
    """Gradient of ``L(w_i) + pull |p_i - p_0|^2`` with respect to ``p_i``: ``<dL/dw_i, c_j> + 2 pull (p_ij - p_0j)``.

    Args:
        gradient: (P,) float, ``dL/dw_i``.
        cores: (N, P) float, every site's core model.
        shares: (N,) float, ``p_i``; not bounded.
        prior: (N,) float, ``p_0``.
        pull: ``lambda(r) mu``.

    Returns:
        (N,) float.
    """
    return cores @ gradient + 2 * pull * (shares - prior)


def annealed(round: int, rounds: int, fraction: float) -> float:
    """Returns ``lambda(r)``: 1 in round 0, 0 after the first ``fraction`` of the rounds (APPLE's loss scheduler).

    ``0.001^(r / L)`` for ``r < L``, with ``L = int(fraction * rounds)``.
    """
    length = int(fraction * rounds)
    return float(_EPSILON ** (round / length)) if round < length else 0.0


PRIOR, PLACE = "prior", "place"
#: Up to this many sites all shares are reported, else the site's own alone: a message holds few numbers.
_MOST_SHARES = 16


def core_name(place: int, name: str) -> str:
    """Returns the name in a message of tensor ``name`` of the core model of the site at ``place``."""
    return f"core_{place}.{name}"


class AppleAlgorithm(TrainerAlgorithm):
    """APPLE (Luo and Wu, arXiv 2110.08394): ``w_i = sum_j p_ij c_j``; the site learns ``p_i`` and ``c_i``.

    The network holds ``w_i``, which is trained and evaluated. After each backward pass the bundle's optimizer gets the
    gradient of the core model ``c_i``, ``p_ii dL/dw_i`` (an optimizer other than SGD takes ``p_ii`` times its step),
    and ``p_i`` takes a step of gradient descent with momentum; then ``w_i`` is mixed again. The core models of others
    stay unchanged. Only ``c_i`` leaves the site, and the values of ``p_i`` in the records (``term_share_<place>``:
    sites in the order of names).

    Running statistics are the site's own, gathered on ``w_i``. In round 0, when no number of images is known, the site
    trains the weights that it receives. ``p_i`` starts at the prior; when the prior changes, ``p_i`` moves by as much.

    Args:
        mu: weight of the pull towards the prior (authors' code: 0.1).
        rate: step size of ``p_i`` (authors' code: 0.001); 0 keeps it at the prior, which is the plain average.
        fraction: part of the rounds in which the pull fades, in [0, 1] (authors' code: 0.1).
        keep_sum: whether steps of ``p_i`` leave the sum of its entries as it is (authors' code: no).
        others: arguments of :class:`TrainerAlgorithm`.

    Raises:
        Refused: an option out of its range.

    Example::

        "client_algorithm": {"_target_": "samfed_monai.methods.apple.AppleAlgorithm", "mu": 0.1, "rate": 0.001, …}
    """

    _cores: Tensor | None

    def __init__(
        self, *, mu: float = 0.1, rate: float = 0.001, fraction: float = 0.1, keep_sum: bool = True, **others: Any
    ) -> None:
        require(
            in_range("client_algorithm#mu", mu, least=0),
            in_range("client_algorithm#rate", rate, least=0),
            in_range("client_algorithm#fraction", fraction, "a part of the rounds", least=0, most=1),
            switch("client_algorithm#keep_sum", keep_sum),
        )
        super().__init__(**others)
        self.mu, self.rate, self.fraction, self.keep_sum = float(mu), float(rate), float(fraction), keep_sum
        self.reset()

    def attach(self, engine: Any) -> None:
        super().attach(engine)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._before_step)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._after_step)

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        self._cores = None
        if PRIOR not in tensors:
            self.put(self.taken(kind, tensors))
            return {}
        self._load_cores(tensors)
        self._pull = self.mu * annealed(round, rounds, self.fraction)
        shares = self._shares.tolist()
        reported = range(len(shares)) if len(shares) <= _MOST_SHARES else [self._place]
        return {f"share_{place}": shares[place] for place in reported}

    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        if self._cores is None:
            self._core = _flattened(self.trained().values())
            return Kind.WEIGHTS, self.named()
        self._core = self._cores[self._place].clone()
        self._put_trained(self._core)
        weights = self.named()
        self._mix()
        self._cores = None
        return Kind.WEIGHTS, weights

    def state_dict(self) -> dict[str, Tensor]:
        tensors = {"core": self._core, "shares": self._shares, PRIOR: self._prior}
        return {name: tensor for name, tensor in tensors.items() if tensor.numel()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.reset()
        self._core, self._shares, self._prior = (
            state[name].clone() if name in state else torch.zeros(0) for name in ("core", "shares", PRIOR)
        )

    def reset(self) -> None:
        self._core = self._shares = self._prior = self._velocity = torch.zeros(0)
        self._cores = None
        self._place, self._pull, self._step_factor = 0, 0.0, 1.0

    @torch.no_grad()
    def _load_cores(self, tensors: Mapping[str, Tensor]) -> None:
        prior, names, self._place = self._parsed(tensors)
        self._names = tuple(name for name in get_state_dict(self.network) if name in names)
        trained = self.trained()
        core = self._core if self._core.numel() else _flattened(trained.values())
        if core.numel() != sum(weight.numel() for weight in trained.values()):
            hint = "start the run again with another output_dir"
            raise message_refused("site", "the core model of another network", "the core model of this network", hint)
        device = next(iter(trained.values())).device
        rows = []
        for place in range(len(prior)):
            received = (tensors[core_name(place, name)].to(device) for name in trained)
            rows.append(core.to(device) if place == self._place else _flattened(received))
        if len(self._prior) != len(prior):
            self._shares = self._prior = torch.zeros_like(prior)
        self._shares, self._prior = self._shares + (prior - self._prior), prior.clone()
        self._cores, self._velocity = torch.stack(rows), torch.zeros_like(self._shares)
        self._mix()

    def _parsed(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, set[str], int]:
        prior, place = tensors[PRIOR], tensors.get(PLACE)
        is_valid = prior.ndim == 1 and len(prior) > 1 and prior.is_floating_point() and bool((prior >= 0).all())
        if not is_valid or place is None or place.numel() != 1 or not 0 <= int(place) < len(prior):
            expected, hint = "a prior for each site, and this site's index", "use the strategy Apple"
            raise message_refused("message -> prior", "another content", expected, hint)
        others = [other for other in range(len(prior)) if other != int(place)]
        prefix, state = core_name(others[0], ""), get_state_dict(self.network)
        names = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)} & state.keys()
        like = {core_name(other, name): state[name] for other in others for name in names}
        cores = {name: tensor for name, tensor in tensors.items() if name not in (PRIOR, PLACE)}
        Message(Kind.WEIGHTS, "", 0, 1, tensors=cores).check(up=False, like=like)
        return prior.float(), names, int(place)

    @torch.no_grad()
    def _mix(self) -> None:
        if self._cores is not None:
            self._put_trained(self._shares.to(self._cores.device) @ self._cores)

    @torch.no_grad()
    def _put_trained(self, flat: Tensor) -> None:
        trained = list(self.trained().values())
        for weight, part in zip(trained, flat.split([weight.numel() for weight in trained]), strict=True):
            weight.copy_(part.view_as(weight))

    @torch.no_grad()
    def _before_step(self, engine: Any) -> None:
        if self._cores is None:
            return
        trained, cores = list(self.trained().values()), self._cores
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in trained]
        shares, prior = self._shares.to(cores.device), self._prior.to(cores.device)
        step = shares_gradient(_flattened(gradients), cores, shares, prior, self._pull)
        step = step - step.mean() if self.keep_sum else step
        self._put_trained(cores[self._place])  # the optimizer moves the core model
        own = shares[self._place]
        for weight in trained:
            if weight.grad is not None:
                weight.grad.mul_(own)
        self._step_factor = 1.0 if isinstance(self.optimizer, torch.optim.SGD) else float(own.abs())
        self._velocity = _MOMENTUM * self._velocity + step.cpu()
        self._shares = self._shares - self.rate * self._velocity

    @torch.no_grad()
    def _after_step(self, engine: Any) -> None:
        if self._cores is not None:
            core, moved = self._cores[self._place], _flattened(self.trained().values())
            self._cores[self._place] = torch.lerp(core, moved, self._step_factor)
            self._mix()


def _flattened(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])


_COUNTS = "counts"


class Apple(FedAvg):
    """Sends core models to all sites, each of which learns how to mix them (APPLE, Luo and Wu, arXiv 2110.08394).

    The site's side is :class:`AppleAlgorithm`. From the second round on, a site receives the core models of the
    ``N - 1`` others and the prior ``p_0``, the sites' shares of all images. For a site without an update so far, the
    prior uses the mean of the others' numbers, and its core model is the weights before round 0. As long as no site's
    number is known, those weights are sent.

    **Bytes**: ``N (N - 1)`` models down per round (FedAvg: ``N``) and ``N`` up. Memory and each stored round at the
    server: ``N`` models. With only LoRA shared that is little.

    The server's own model, for unseen hospitals, is the mean of the core models: a mixture with shares at the prior.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.apple.Apple"}
    """

    exchange = Exchange(own_networks=True)

    def require_sites(self, sites: Sequence[str]) -> None:
        require_least(sites, 2, "a mixture of their core models", "choose the variant local_only")

    def prior(self) -> Tensor:
        """Returns ``p_0``, each site's share of all images: (N,) float32, in the order of :attr:`Server.sites`."""
        mean = sum(self._counts.values()) / len(self._counts)
        counts = torch.tensor([float(self._counts.get(site, mean)) for site in self.server.sites])
        return counts / counts.sum()

    def configure(self, round: int) -> dict[str, Message]:
        messages = super().configure(round)
        sites = self.server.sites
        tensors = {
            site: self._mixture(place) if self._counts else messages[site].tensors for place, site in enumerate(sites)
        }
        return {site: self.message(site, round, Kind.WEIGHTS, tensors[site], purpose="distil") for site in sites}

    def reference(self, site: str) -> Mapping[str, Tensor]:
        return self._cores.get(site, self.server.weights)

    def accept(self, round: int, site: str, update: Message) -> None:
        super().accept(round, site, update)
        self._cores[site], self._counts[site] = dict(update.tensors), update.n

    def state_dict(self) -> dict[str, Tensor]:
        counts = torch.tensor([self._counts.get(site, 0) for site in self.server.sites])
        return {_COUNTS: counts, **self._pack_models(self._cores, "core_")}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self._cores = self._unpack_models(state, "core_")
        counts = state.get(_COUNTS, torch.zeros(0)).tolist()
        self._counts = {site: int(n) for site, n in zip(self.server.sites, counts, strict=False) if int(n)}

    def _mixture(self, place: int) -> dict[str, Tensor]:
        others = {
            core_name(number, name): tensor
            for number, site in enumerate(self.server.sites)
            if number != place
            for name, tensor in self._cores.get(site, self.server.weights).items()
        }
        return {PRIOR: self.prior(), PLACE: torch.tensor(place), **others}
