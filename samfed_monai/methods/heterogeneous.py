"""SAM-Fed for sites with different networks: condensation and fusion on the public set (HSSF, IEEE TMI 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, Subset

from samfed_monai.core import training_state
from samfed_monai.core.errors import Problems
from samfed_monai.core.io import canonical_hash
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import own_random_state
from samfed_monai.core.validators import POSITIVE, in_range, one_of, require
from samfed_monai.handlers.public_images import PublicPhase, PublicPredictor
from samfed_monai.handlers.records import record, record_supervised
from samfed_monai.handlers.term import Term
from samfed_monai.losses import distillation_kl, hssf_kl
from samfed_monai.protocol.message import Kind, Message, message_refused
from samfed_monai.protocol.strategy import ClientAlgorithm, Exchange, Server, Strategy
from samfed_monai.transforms.loading import GATE, KEY

MASKS = "masks"


def most_reliable(sites: Tensor, server: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Condensation: selects for each image the site to learn from, and whether to learn from it.

    Args:
        sites: (S, N) reliabilities of S sites on N images.
        server: (N,) reliabilities of the server.
        floor: the reliability that a target must exceed (HSSF: 0.75).

    Returns:
        (N,) long, the most reliable site for each image (the first among equals); (N,) bool, whether that site is
        better than the server and above ``floor``.
    """
    best, site = sites.max(dim=0)
    return site, (best > server) & (best > floor)


class PublicExchange(str, Enum):
    """The data that sites with different networks exchange."""

    PREDICTIONS = "predictions"
    WEIGHTS = "weights"
    NONE = "none"


class Gate(str, Enum):
    """The server's masks that a site learns from."""

    BETTER = "better"
    ALWAYS = "always"


class PublicMaskAlgorithm(PublicPhase, ClientAlgorithm):
    """Fusion (RF): trains on ``D_p`` towards the server's soft masks before the local epoch, then sends the site's own.

    With ``predictions`` soft masks are sent in both directions (8 bits, compressed on the wire) and no weights leave
    the site. With ``weights`` the networks are sent and each side computes the other's masks: the same masks to the
    bit, for a hundred times the bytes (HSSF's own exchange; docs/method.md).

    Args:
        exchange: ``predictions``, ``weights``, or ``none``: the site trains on the labels and sends nothing.
        network, optimizer, device: those of the local training.
        plain: the public items of ``dataset`` without random views.
        server_network: builds an empty network of the server's architecture; required with ``weights``.
        gate: ``better`` learns from the server where it is more reliable (RF), ``always`` everywhere (FedMD).
        reliability: ``dice`` or ``pixel_accuracy``.
        mask_size: side of a soft mask in pixels; ``None`` is a quarter of the image's.
        batch_size: images per step.
        others: arguments of :class:`PublicPhase`; masks of its images are exchanged.

    Example::

        "client_algorithm": {
            "_target_": "samfed_monai.methods.heterogeneous.PublicMaskAlgorithm", "exchange": "predictions", ...
        }
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        optimizer: Optimizer,
        plain: Dataset,
        exchange: str = "predictions",
        device: torch.device | str = "cpu",
        server_network: Callable[[], nn.Module] | None = None,
        gate: str = "better",
        reliability: str = "dice",
        mask_size: int | None = None,
        batch_size: int = 8,
        **others: Any,
    ) -> None:
        problems = Problems(one_of("client_algorithm#exchange", exchange, PublicExchange))
        problems.extend(one_of("client_algorithm#gate", gate, Gate))
        self.network, self.optimizer, self._server_network = network, optimizer, server_network
        with problems.collected():
            super().__init__(network=network, optimizer=optimizer, device=device, batch_size=batch_size, **others)
        with problems.collected():
            # in float32 even with mixed-precision training: the other side must get the same bits
            self.predictor = PublicPredictor(
                dataset=plain if self.indices is None else Subset(plain, self.indices),
                device=device,
                batch_size=batch_size,
                mask_size=mask_size,
                reliability=reliability,
            )
        problems.refuse_if_any()
        self.exchange, self.gate = PublicExchange(exchange), Gate(gate)
        self._all_records = None if self.indices is None else plain.data  # type: ignore[attr-defined]
        self._own_masks: Tensor | None = None

    @property
    def public_hash(self) -> str:  # type: ignore[override]
        if self._all_records is None:
            return self.predictor.public_hash
        names = [str(record["image_sha256"]) for record in self._all_records]  # including images that are not exchanged
        return canonical_hash([names, self.predictor.public_hash])

    def own_masks(self) -> Tensor:
        """Returns this network's masks of ``D_p``, (N, C, h, w) uint8, cached until the network is trained again."""
        if self._own_masks is None:
            self._own_masks = self.predictor.masks(self.network)
        return self._own_masks

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        if not tensors:
            means = self.run(round, rounds)
        else:
            server_masks = self._received_masks(kind, tensors)
            means = self.run(round, rounds, server_masks, self._open_gate(server_masks))
        self._own_masks = None
        return {f"public_{name}" if not name.startswith("public") else name: value for name, value in means.items()}

    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        self._own_masks = None  # the local epoch has changed the network
        if self.exchange is PublicExchange.NONE:
            return Kind.METRICS, {}
        if self.exchange is PublicExchange.WEIGHTS:
            state = self.network.state_dict()
            return Kind.WEIGHTS, {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        return Kind.SOFT_MASKS, {MASKS: self.own_masks()}

    def may_share(self) -> Mapping[Kind, Mapping[str, Tensor]]:
        if self.exchange is PublicExchange.NONE:
            return {}
        if self.exchange is PublicExchange.WEIGHTS:
            return {Kind.WEIGHTS: self.network.state_dict()}
        images = len(self.predictor.dataset)  # type: ignore[arg-type]
        return {Kind.SOFT_MASKS: {MASKS: self.own_masks()[:images]}}

    def max_mask_pixels(self) -> int:
        if self.exchange is not PublicExchange.PREDICTIONS:
            return 0
        return (self.predictor.like(self.network) if self._own_masks is None else self._own_masks).numel()

    def reset(self) -> None:
        self._own_masks = None

    def _open_gate(self, server_masks: Tensor) -> Tensor | None:
        if self.gate is Gate.ALWAYS:
            return None
        return self.predictor.reliability(server_masks) > self.predictor.reliability(self.own_masks())

    def _received_masks(self, kind: Kind, tensors: Mapping[str, Tensor]) -> Tensor:
        message = Message(kind, "", 0, 1, tensors=dict(tensors))
        if kind == Kind.WEIGHTS:
            message.check(up=False, like=self._server_copy.state_dict())
            self._server_copy.load_state_dict(dict(tensors))
            return self.predictor.masks(self._server_copy)
        message.check(up=False, like={MASKS: self.own_masks()})
        return tensors[MASKS]

    @cached_property
    def _server_copy(self) -> nn.Module:
        if self._server_network is None:
            hint = "set client_algorithm#server_network, or exchange predictions"
            raise message_refused("client_algorithm", "no server_network", "the server's architecture", hint)
        return self._server_network().to(self.predictor.device)


@dataclass(kw_only=True, eq=False)
class PublicDistillationTerm(Term):
    """``weight * T^2 KL(p_target || p)`` on the images of the labelled batch with an open gate (docs/method.md).

    The divergence is averaged over all pixels of the batch; images with a closed gate count as 0. It reads
    ``target`` (B, C, H, W) and ``target_gate`` (B,) from the trainer's batch, where :class:`LoadTargetd` puts them;
    a batch without them adds nothing.

    Args:
        name: name under which the value is logged; ``<name>_gate`` is the share of images with an open gate.
        temperature: ``T``.
        convention: ``ours``, or ``hssf`` for the divergence of HSSF's code (no ``T^2``, mean over two channels).
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: a negative weight, a temperature that is not positive, an unknown convention.

    Example::

        {"_target_": "samfed_monai.methods.heterogeneous.PublicDistillationTerm", "weight": 1.0, "temperature": 2.0}
    """

    unlabelled = False
    checks: ClassVar = {"temperature": POSITIVE, "convention": partial(one_of, known=["ours", "hssf"])}

    name: str = "public_kd"
    temperature: float = 2.0
    convention: str = "ours"

    def __call__(self, engine: Any) -> None:
        """Adds the term if the batch has targets."""
        record_supervised(engine)
        if KEY in engine.state.batch:
            super().__call__(engine)

    def value(self, guidance: Any, engine: Any) -> Tensor:
        """Returns the divergence; also records ``<name>_gate``."""
        logits = engine.state.output["pred"]
        target, gate = (torch.as_tensor(engine.state.batch[key]).to(logits.device) for key in (KEY, GATE))
        record(engine, f"{self.name}_gate", gate.mean())
        if self.convention == "hssf":
            return hssf_kl(logits, target, gate, temperature=self.temperature)
        return distillation_kl(logits, target, self.temperature, scale=gate)


class CondensationFusion(Strategy):
    """Heterogeneous SAM-Fed: regularity condensation at the server, regularity fusion at the sites (docs/method.md).

    The server has a network of its own. In each round, each site fuses (RF, :class:`PublicMaskAlgorithm`) towards the
    server's soft masks of ``D_p``, trains on its own images and replies. The server then condenses (RC): it trains on
    ``D_p`` with the soft mask of the most reliable site for each image, if that site beats the server and exceeds
    ``floor``. The masks of the first round are those of the warm-started server.

    Every network runs over ``D_p`` once per round; its masks give its own reliability, the other side's gate and the
    targets.

    Args:
        exchange: ``predictions`` (8-bit soft masks are sent) or ``weights`` (networks are sent; the server builds each
            site's). Both give the same targets to the bit.
        floor: reliability that a site must exceed to be learned from, in [0, 1) (HSSF, Ma et al., TMI 2024: 0.75).

    Raises:
        Refused: an option out of its range; at :meth:`attach`, a bundle without ``client_algorithm``.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.heterogeneous.CondensationFusion", "exchange": "predictions"}
    """

    def __init__(self, *, exchange: str = "predictions", floor: float = 0.75) -> None:
        require(
            one_of("strategy#exchange", exchange, [PublicExchange.PREDICTIONS, PublicExchange.WEIGHTS]),
            in_range("strategy#floor", floor, least=0, below=1),
        )
        kind = Kind.WEIGHTS if PublicExchange(exchange) is PublicExchange.WEIGHTS else Kind.SOFT_MASKS
        self.exchange, self.floor = Exchange(kind, own_networks=True, alike=False), floor
        self._site_networks: dict[str, nn.Module] = {}

    def attach(self, server: Server) -> Strategy:
        self.algorithm = server.make_client_algorithm("heterogeneous")
        return super().attach(server)

    def requirements(self) -> dict[str, str]:
        return {"public": self.algorithm.public_hash}

    def configure(self, round: int) -> dict[str, Message]:
        self._updates: dict[str, Tensor] = {}
        kind, tensors = Kind.SOFT_MASKS, {MASKS: self.algorithm.own_masks()}
        if self.exchange.answer is Kind.WEIGHTS:
            kind, tensors = Kind.WEIGHTS, self.global_weights
        return {site: self.message(site, round, kind, tensors, purpose="distil") for site in self.server.sites}

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        if self.exchange.answer is Kind.WEIGHTS:
            return self._network_of(site).state_dict()
        return {MASKS: self.algorithm.own_masks()}

    def accept(self, round: int, site: str, update: Message) -> None:
        if self.exchange.answer is Kind.WEIGHTS:
            network = self._network_of(site)
            network.load_state_dict(update.tensors)
            self._updates[site] = self.algorithm.predictor.masks(network)
        else:
            self._updates[site] = update.tensors[MASKS]

    def refine(self, round: int) -> None:
        if not self._updates:
            return
        masks = torch.stack([self._updates[site] for site in sorted(self._updates)])
        reliability = torch.stack([self.algorithm.predictor.reliability(each) for each in masks])
        server = self.algorithm.predictor.reliability(self.algorithm.own_masks())
        site, gate = most_reliable(reliability, server, self.floor)
        targets = masks[site, torch.arange(masks.shape[1])]
        with own_random_state(derive_seed(self.server.seed, "server", round, "condense")):
            self.algorithm.run(round, self.server.rounds, targets, gate)
        self.algorithm.reset()
        self.algorithm.own_masks()  # for the next round; computed here to count as the server's time
        super().load_state_dict(self.algorithm.network.state_dict(), {})

    def state_dict(self) -> dict[str, Tensor]:
        return training_state.pack(self.algorithm.optimizer)

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self.algorithm.network.load_state_dict(self.global_weights)
        if state:
            training_state.unpack(self.algorithm.optimizer, state)
        self.algorithm.reset()

    def _network_of(self, site: str) -> nn.Module:
        if site not in self._site_networks:
            self._site_networks[site] = self.server.networks[site]().to(self.algorithm.predictor.device)
        return self._site_networks[site]
