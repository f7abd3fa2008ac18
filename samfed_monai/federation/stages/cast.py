"""Who plays which part in a run: sites that train, hospitals that do not, their networks, the server's strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean
from samfed_monai.core.seeds import derive_seed
from samfed_monai.data import DataList
from samfed_monai.federation.clip import UpdateGuard
from samfed_monai.federation.random_state import own_random_state
from samfed_monai.federation.server import Server
from samfed_monai.federation.stages.networks import (
    NETWORK,
    common_network,
    network_builder,
    network_names,
    require_known,
    site_overrides,
)
from samfed_monai.federation.stages.papers import sam_paper
from samfed_monai.federation.stages.rehearsal import rehearse
from samfed_monai.federation.stages.start import Start
from samfed_monai.federation.stages.workflow_config import WorkflowConfig, client_config
from samfed_monai.federation.strategies.base import Strategy
from samfed_monai.federation.strategies.fedavg import FedAvg
from samfed_monai.metrics import cost_of

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.federation.plan import Places, Plan
    from samfed_monai.federation.sharing.public_masks import PublicMaskSharing

SERVER = "server"


class Cast:
    """Reads from a run's configuration who does what.

    Args:
        config: ``train.json`` with the variant and the run's overrides.
        datalist: the frozen list. One without sites, as a server has it that holds nobody's images, is silent on who
            they are: ``choices`` and ``unseen`` then name every site.
        choices: ``federate.json -> sites``.
        unseen: names of sites that take no part; those without unlabelled images are added.

    Raises:
        Refused: an unknown name; unlike networks with a strategy that averages them.
    """

    def __init__(
        self,
        config: WorkflowConfig,
        datalist: DataList,
        *,
        choices: Mapping[str, Mapping[str, Any]],
        unseen: Sequence[str],
    ) -> None:
        self.config = config
        self.sites, self.unseen = _parts(datalist, choices, unseen)
        self.strategy: Strategy = self._strategy()
        self.overrides = site_overrides(choices, self.sites)
        self.networks = network_names(config, self.sites, self.overrides, personal=not self.strategy.one_network)
        places = {f"network of {site}": name for site, name in self.networks.items()}
        require_known(config, {**places, "network of the server": self.server_network})
        if self.strategy.one_network and self._say_different_things():
            self.rehearse()

    @classmethod
    def of(cls, plan: Plan, places: Places, datalist: DataList) -> Cast:
        """That of a plan on this machine."""
        config = client_config(places.bundle_root, plan.variant, {**plan.client, **places.overrides()})
        choices = {site: {**plan.sites.get(site, {}), **places.sites.get(site, {})} for site in plan.sites}
        return cls(config, datalist, choices=choices, unseen=plan.unseen)

    def rehearse(self) -> None:
        """Builds every network of the run once, before anything is computed.

        Raises:
            Refused: as :func:`rehearse`, or the strategy cannot do with their names.
        """
        server = {SERVER: self.server_network} if self.strategy.has_model else {}
        networks = {**self.networks, **server}
        for each in rehearse(self.config, networks, self.overrides, one_network=self.strategy.one_network):
            self.strategy.require_names(each.split.shared)

    @property
    def exchange(self) -> str:
        """What travels, in the words of ``results.json``."""
        return self.strategy.exchange_name

    @cached_property
    def server_network(self) -> str:
        """The server's network: the sites' where they share one, else ``server_network``, else ``network_name``."""
        if self.strategy.one_network and self.networks:
            return self.networks[self.sites[0]]
        return self.config.optional("server_network") or common_network(self.config)

    @property
    def all_networks(self) -> list[str]:
        """Every network that is trained before round 0, once."""
        return sorted({*self.networks.values(), *([self.server_network] if self.strategy.has_model else [])})

    @property
    def supervised(self) -> bool:
        """Whether sites learn from labels of their own images."""
        train = self.config.parser().get().get("train")
        declared = train.get("dataset") if isinstance(train, Mapping) else None
        return isinstance(declared, Mapping) and declared.get("split") == "labelled"

    def start(self, network: str, warm: Mapping[str, Tensor], seed: int) -> Start:
        """What a network of this run begins with, once it is warmed up."""
        personal = self.config.optional("personal") or ()
        return Start.of(network_builder(self.config, network), warm, personal=personal, seed=seed)

    def costs(self) -> dict[str, dict[str, float]]:
        """What one image costs the sites' networks, by name, see :func:`samfed_monai.metrics.cost_of`; none of SAM's
        own, which would have to be loaded for it."""
        names = set() if self.sam_words() else set(self.networks.values())
        with own_random_state(0):
            return {
                name: cost_of(network_builder(self.config, name)(), self.config.value("image_size"))
                for name in sorted(names)
            }

    def first_weights(self, starts: Mapping[str, Start]) -> dict[str, dict[str, Tensor]]:
        """What sites are sent before round 0, by site: the network, or the part of it, that they keep from then on.

        A hospital that takes no part is given the personal part of the server's network as it was warmed up.
        """
        first = {}
        for site, name in self.networks.items():
            first[site] = starts[name].trained if self.strategy.personal else starts[name].personal
        if self.server_network in starts:
            first |= dict.fromkeys(self.unseen, starts[self.server_network].personal)
        return {site: weights for site, weights in first.items() if weights}

    def sam_words(self, site: str | None = None) -> dict[str, str]:
        """Hash of the SAM under a site's network, as :func:`sam_paper` gives it; ``None`` is the server."""
        return sam_paper(self.config, self.networks.get(site or "", self.server_network))

    def content(self) -> dict[str, Any]:
        """What of this decides the result, for ``run.json``; nothing where all sites are alike and take part."""
        content: dict[str, Any] = {}
        if self.strategy.personal or any(self.overrides.values()):
            content["sites"] = {site: {**self.overrides[site], "network": self.networks[site]} for site in self.sites}
        if self.unseen:
            content["unseen"] = list(self.unseen)
        return content

    def settled(self, plan: Plan) -> Plan:
        """The plan with every site and its network named, so that a site needs no other list than its own."""
        choices = {site: {**plan.sites.get(site, {}), NETWORK: self.networks[site]} for site in self.sites}
        return plan.with_sites(choices, self.unseen)

    def at_server(self) -> WorkflowConfig:
        """The configuration as the server has it: with its own network, and no site."""
        return self.config.with_overrides({"network_name": self.server_network})

    def server(self, *, rounds: int, seed: int, start: Start | None, guard: UpdateGuard) -> Server:
        """What the strategy is given; ``start`` is that of the server's network, where it has one."""
        weights: Mapping[str, Tensor] = {}
        if start is not None:
            weights = start.shared if self.strategy.one_network else start.whole

        def bench() -> PublicMaskSharing:
            overrides = {"site": SERVER, "seed": seed, "standalone": {}}
            with own_random_state(derive_seed(seed, SERVER, "bench")):
                sharing: PublicMaskSharing = (
                    self.at_server().with_overrides(overrides).parser().get_parsed_content("sharing")
                )
            return sharing

        return Server(
            sites=self.sites,
            rounds=rounds,
            seed=seed,
            weights=weights,
            guard=guard,
            bench=bench if self.config.optional_id("sharing") else None,
            networks={
                site: network_builder(self.config, name, self.overrides[site]) for site, name in self.networks.items()
            },
            keeps_parts=start is not None and self.strategy.one_network and bool(start.split.personal),
        )

    def _say_different_things(self) -> bool:
        first, *others = [(self.networks[site], self.overrides[site]) for site in self.sites]
        return any(other != first for other in others)

    def _strategy(self) -> Strategy:
        if not self.config.optional_id("strategy"):
            return FedAvg()
        strategy = self.config.parser().get_parsed_content("strategy")
        if not isinstance(strategy, Strategy):
            found, mend = type(strategy).__name__, "name a class of samfed_monai.federation that is a Strategy"
            raise Refused([Problem("train.json -> strategy", found=found, expected="a Strategy", mend=mend)])
        return strategy


def _parts(
    datalist: DataList, choices: Mapping[str, Mapping[str, Any]], unseen: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sites that train and sites that do not, sorted."""
    known = sorted(datalist.sites)
    if not known and not choices:
        found, mend = "no names, and a list without sites", 'for instance {"site-1": {}, "site-2": {}}'
        where = "federate.json -> sites"
        raise Refused([Problem(where, found=found, expected="the name of every site that trains", mend=mend)])
    if not known:
        away = set(unseen)
        return tuple(site for site in sorted(choices) if site not in away), tuple(sorted(away))
    problems = Problems()
    for name in unseen:
        if name not in known:
            expected = f"a site of the list, one of {known}"
            mend = did_you_mean(str(name), known)
            problems.add("federate.json -> unseen", found=repr(name), expected=expected, mend=mend)
    problems.refuse_if_any()
    idle = {name for name, site in datalist.sites.items() if not site.unlabelled}
    away = set(unseen) | idle
    if len(away) == len(known):
        found = f"{len(known)} sites: {len(set(unseen))} unseen, {len(idle)} without images to train on"
        mend = "leave a site out of `unseen`, or put images into a site's `unlabelled` split"
        raise Refused([Problem("federate.json -> unseen", found=found, expected="a site that trains", mend=mend)])
    return tuple(site for site in known if site not in away), tuple(sorted(away))
