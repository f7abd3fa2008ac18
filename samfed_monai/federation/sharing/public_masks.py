"""A site that learns from the server's opinion of the public images and answers with its own (HSSF's fusion)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Subset

from samfed_monai.core.errors import Problem, Problems
from samfed_monai.core.io import canonical_hash
from samfed_monai.federation.envelope import Envelope, Kind, MessageRefused
from samfed_monai.federation.sharing.base import Sharing
from samfed_monai.handlers.public_images import PublicPhase, PublicPredictor
from samfed_monai.losses import where_better

if TYPE_CHECKING:
    from monai.inferers import Inferer
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.data import Dataset

    from samfed_monai.transforms import PublicTargets

MASKS = "masks"


def evenly_spaced(count: int, wanted: int | None) -> list[int] | None:
    """``wanted`` of ``count`` places, the first and then at equal distances; ``None`` where that is all of them."""
    if wanted is None or wanted >= count:
        return None
    return [place * count // wanted for place in range(wanted)]


class Exchange(str, Enum):
    """How knowledge travels between unlike networks."""

    PREDICTIONS = "predictions"
    WEIGHTS = "weights"
    NONE = "none"


class Gate(str, Enum):
    """Which of the server's masks a site learns from."""

    BETTER = "better"
    ALWAYS = "always"


class PublicMaskSharing(Sharing):
    """Fusion (RF): steps on ``D_p`` towards the server's soft masks, then the local epoch, then the site's own masks.

    With ``predictions`` soft masks travel both ways (8 bits, compressed on the wire) and no weight leaves the site.
    With ``weights`` the networks themselves travel and each side computes the other's masks: the same masks to the
    bit, for a hundred times the bytes (HSSF's own exchange; docs/method.md).

    Args:
        exchange: ``predictions``, ``weights``, or ``none``: the site takes its steps on the labels and gives nothing.
        network, optimizer, loss, device, inferer: those of the local training.
        dataset: labelled public items with random views; its transforms hold a ``LoadTargetd`` on ``targets``.
        plain: the same items without random views.
        targets: the holder of the round's targets.
        term: what a target adds to the loss.
        learning_rate: the handler that sets the rate of a round.
        server_network: builds an empty network of the server's architecture; needed with ``weights``.
        gate: ``better`` learns where the server is the more reliable one (RF), ``always`` everywhere (FedMD).
        reliability: ``dice`` or ``pixel_accuracy``.
        mask_size: side of a soft mask in pixels; ``None`` is a quarter of the image's.
        batch_size: images a step.
        steps: steps on ``D_p`` a round; ``None`` is ``passes`` over it.
        passes: how many times a round goes over ``D_p`` where no steps are given (HSSF: 4).
        images: exchange masks of that many public images, evenly spaced over the list, and take the steps on those;
            ``None`` is all. Frames of a video are much alike, and every network looks at each of them in every round.
        seed, site: what the random numbers derive from.

    Example::

        {"_target_": "samfed_monai.federation.PublicMaskSharing", "exchange": "predictions", "network": "@network", ...}
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        optimizer: Optimizer,
        loss: Callable[..., Tensor],
        dataset: Dataset,
        plain: Dataset,
        targets: PublicTargets,
        exchange: str = "predictions",
        device: torch.device | str = "cpu",
        inferer: Inferer | None = None,
        term: Any = None,
        learning_rate: Any = None,
        server_network: Callable[[], nn.Module] | None = None,
        gate: str = "better",
        reliability: str = "dice",
        mask_size: int | None = None,
        batch_size: int = 8,
        steps: int | None = None,
        passes: int = 1,
        images: int | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        problems = Problems()
        for name, value, kind in (("exchange", exchange, Exchange), ("gate", gate, Gate)):
            if value not in {each.value for each in kind}:
                expected = f"one of {[each.value for each in kind]}"
                problems.add(f"sharing#{name}", found=repr(value), expected=expected)
        if images is not None and (not isinstance(images, int) or images < 1):
            problems.add("sharing#images", found=repr(images), expected="a number of images >= 1, or null")
        problems.refuse_if_any()
        indices = evenly_spaced(len(plain), images)  # type: ignore[arg-type]
        self.exchange, self.gate = Exchange(exchange), Gate(gate)
        self.network, self.optimizer, self._server_network = network, optimizer, server_network
        self.phase = PublicPhase(
            network=network,
            optimizer=optimizer,
            loss=loss,
            dataset=dataset,
            targets=targets,
            device=device,
            inferer=inferer,
            term=term,
            learning_rate=learning_rate,
            batch_size=batch_size,
            steps=steps,
            passes=passes,
            indices=indices,
            seed=seed,
            site=site,
        )
        # in float32 whatever the training does: the other side must get the same bits
        self.predictor = PublicPredictor(
            dataset=plain if indices is None else Subset(plain, indices),
            device=device,
            batch_size=batch_size,
            mask_size=mask_size,
            reliability=reliability,
        )
        self._whole = None if indices is None else plain.data  # type: ignore[attr-defined]
        self._own: Tensor | None = None

    @property
    def public_hash(self) -> str:  # type: ignore[override]
        if self._whole is None:
            return self.predictor.public_hash
        names = [str(record["image_sha256"]) for record in self._whole]  # of the images that are not exchanged, too
        return canonical_hash([names, self.predictor.public_hash])

    def own_masks(self) -> Tensor:
        """This network's masks of ``D_p``, (N, C, h, w) uint8; computed once until the network is trained again."""
        if self._own is None:
            self._own = self.predictor.masks(self.network)
        return self._own

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        if not tensors:
            means = self.phase.run(round, rounds)
        else:
            theirs = self._masks_of(kind, tensors)
            means = self.phase.run(round, rounds, theirs, self._open(theirs))
        self._own = None
        return {f"public_{name}" if not name.startswith("public") else name: value for name, value in means.items()}

    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        self._own = None  # the local epoch came in between
        if self.exchange is Exchange.NONE:
            return Kind.METRICS, {}
        if self.exchange is Exchange.WEIGHTS:
            state = self.network.state_dict()
            return Kind.WEIGHTS, {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        return Kind.SOFT_MASKS, {MASKS: self.own_masks()}

    def may_share(self) -> Mapping[Kind, Mapping[str, Tensor]]:
        if self.exchange is Exchange.NONE:
            return {}
        if self.exchange is Exchange.WEIGHTS:
            return {Kind.WEIGHTS: self.network.state_dict()}
        images = len(self.predictor.dataset)  # type: ignore[arg-type]
        return {Kind.SOFT_MASKS: {MASKS: self.own_masks()[:images]}}

    def reset(self) -> None:
        self._own = None

    def _open(self, theirs: Tensor) -> Tensor | None:
        if self.gate is Gate.ALWAYS:
            return None
        return where_better(self.predictor.reliability(theirs), self.predictor.reliability(self.own_masks()))

    def _masks_of(self, kind: Kind, tensors: Mapping[str, Tensor]) -> Tensor:
        message = Envelope(kind, "", 0, 1, tensors=dict(tensors))
        if kind == Kind.WEIGHTS:
            message.check(up=False, like=self._server.state_dict())
            self._server.load_state_dict(dict(tensors))
            return self.predictor.masks(self._server)
        message.check(up=False, like={MASKS: self.own_masks()})
        return tensors[MASKS]

    @cached_property
    def _server(self) -> nn.Module:
        if self._server_network is None:
            mend = "set sharing#server_network, or exchange predictions"
            found = "no server_network"
            raise MessageRefused([Problem("sharing", found=found, expected="the server's architecture", mend=mend)])
        return self._server_network().to(self.predictor.device)
