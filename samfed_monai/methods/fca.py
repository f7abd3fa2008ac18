"""FCA, our reading (arXiv 2504.18020): units of SAM's adapter are averaged where the sites' updates agree."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from samfed_monai.core.validators import in_range, require
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.networks.key_patterns import matched_names, pattern_problems
from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.strategy import Exchange

logger = logging.getLogger(__name__)


def agreement(updates: Tensor, counts: Tensor) -> Tensor:
    """Returns the cosine between each site's update of a unit and the weighted mean of the others' updates.

    It is 0 if one of the two is 0: nothing then supports the others' values.

    Args:
        updates: (S, U, K) float, the change that each of S sites made to the K numbers of each of U units.
        counts: (S,) float > 0, weights of the sites.

    Returns:
        (S, U) float in [-1, 1].
    """
    weighted = updates * counts[:, None, None]
    others = weighted.sum(dim=0, keepdim=True) - weighted
    lengths = updates.norm(dim=2) * others.norm(dim=2)
    cosine = (updates * others).sum(dim=2) / lengths.clamp(min=torch.finfo(updates.dtype).tiny)
    return cosine.clamp(-1.0, 1.0)


def tailored(values: Tensor, masks: Tensor, counts: Tensor) -> Tensor:
    """Returns each site's units: where its mask is 1, the mean over all sites with a mask of 1; its own elsewhere.

    Args:
        values: (S, U, K) float, the sites' weights.
        masks: (S, U) float, 0 or 1.
        counts: (S,) float > 0.

    Returns:
        (S, U, K) float: with all masks 1 the weighted mean at every site, with all masks 0 ``values``.
    """
    shares = masks * counts[:, None]
    total = shares.sum(dim=0).clamp(min=torch.finfo(values.dtype).tiny)
    common = (values * shares[:, :, None]).sum(dim=0) / total[:, None]
    return torch.lerp(values, common.expand_as(values), masks[:, :, None].expand_as(values))


class ClientTailored(FedAvg):
    """Client-tailored adapters (FCA, Hu et al., arXiv 2504.18020): common and individual units of every site's update.

    From the paper: an adapter in a medical foundation model is split into common, client-invariant units, which are
    updated globally, and individual, client-specific units, which are updated independently; binary updating (BFU)
    decides. Smooth updating (SFU), which weights them, is not implemented. The variant ``fca`` does this with the LoRA
    of SAM. **Our reading**: a unit is one entry of a tensor's first dimension (an output channel, a rank of a LoRA
    matrix); it is common at a site if the site's update of it points in the direction of the others' mean update
    (:func:`agreement`); common units get the mean of the sites where they are common (:func:`tailored`). Integer
    tensors are those of FedAvg.

    The server sends each site its own model, which is trained and scored there. A site without an update in a round
    keeps its model. Unseen hospitals are scored on FedAvg's mean. Bytes are those of FedAvg; memory and each stored
    round at the server are ``2 N`` and ``N`` models.

    Args:
        threshold: agreement, in [-1, 1], above which a unit is common.
        patterns: shell-style patterns of the names that are tailored; ``null`` tailors all shared tensors. The others
            are averaged.

    Raises:
        Refused: an option out of its range; at :meth:`attach`, a pattern that matches nothing.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fca.ClientTailored", "threshold": 0.0}
    """

    exchange = Exchange(tailored=True)

    def __init__(self, *, threshold: float = 0.0, patterns: Sequence[str] | None = None) -> None:
        require(
            in_range("strategy#threshold", threshold, "a cosine", least=-1, most=1),
            [] if patterns is None else pattern_problems("strategy#patterns", patterns, "*_[ab]"),
        )
        self.threshold, self.patterns = float(threshold), None if patterns is None else tuple(patterns)

    def require_names(self, shared: Sequence[str]) -> None:
        self._matched_names(shared)

    def configure(self, round: int) -> dict[str, Message]:
        super().configure(round)
        self._updates: dict[str, tuple[int, dict[str, Tensor]]] = {}
        return {site: self.message(site, round, Kind.WEIGHTS, self.evaluation(site)) for site in self.server.sites}

    def accept(self, round: int, site: str, update: Message) -> None:
        super().accept(round, site, update)
        self._updates[site] = (update.n, dict(update.tensors))

    @torch.no_grad()
    def finish(self, round: int) -> None:
        sites = sorted(self._updates)
        before = {site: self.evaluation(site) for site in sites}
        counts = torch.tensor([float(self._updates[site][0]) for site in sites])
        super().finish(round)
        models: dict[str, dict[str, Tensor]] = {site: dict(self.global_weights) for site in sites}
        units, common = 0, torch.zeros(len(sites))
        for name in self._tailored_names() if sites else ():
            values = torch.stack([self._updates[site][1][name] for site in sites]).float()
            old = torch.stack([before[site][name] for site in sites]).float()
            shape = (len(sites), values.shape[1] if values.ndim > 1 else 1, -1)
            masks = (agreement((values - old).reshape(shape), counts) > self.threshold).to(values.dtype)
            mixed = tailored(values.reshape(shape), masks, counts).reshape(values.shape)
            for site, tensor in zip(sites, mixed.to(self.global_weights[name].dtype), strict=True):
                models[site][name] = tensor
            units, common = units + masks.shape[1], common + masks.sum(dim=1)
        # tensors that are not tailored must not be FedAvg's buffers, which the next round writes to
        tailored_names = set(self._tailored_names())
        for site in sites:
            self._models[site] = {n: t if n in tailored_names else t.clone() for n, t in models[site].items()}
            logger.debug("%s: %.0f of %d units are common", site, float(common[sites.index(site)]), units)
        self._updates = {}

    def evaluation(self, site: str) -> dict[str, Tensor]:
        return self._models.get(site, self.global_weights)

    def state_dict(self) -> dict[str, Tensor]:
        return self._pack_models(self._models)

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self._models = self._unpack_models(state)
        self._pattern_names = self._matched_names(list(self.global_weights))

    def _tailored_names(self) -> list[str]:
        weights = self.global_weights
        return [name for name, tensor in weights.items() if tensor.is_floating_point() and name in self._pattern_names]

    def _matched_names(self, names: Sequence[str]) -> set[str]:
        return set(names) if self.patterns is None else matched_names(names, self.patterns, "strategy#patterns")
