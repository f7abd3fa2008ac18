"""The participants of a run: sites that train, hospitals that do not, their networks and initial weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from samfed_monai.config.own_images import deviations
from samfed_monai.config.parse import parsed
from samfed_monai.config.targets import in_catalogue
from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import own_random_state
from samfed_monai.data import DataList
from samfed_monai.federation.dry_run import dry_run
from samfed_monai.federation.preparation import sam_fingerprint
from samfed_monai.federation.workflow import WorkflowConfig, client_config, unfilled
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.metrics import cost_of
from samfed_monai.networks import named, starts_from
from samfed_monai.networks.catalogue import network_problems
from samfed_monai.networks.key_patterns import KeySplit, network_split
from samfed_monai.networks.weights import encoder_weights_file
from samfed_monai.protocol.guard import UpdateGuard
from samfed_monai.protocol.strategy import Server, Strategy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samfed_monai.federation.plan import Places, Plan
    from samfed_monai.methods.heterogeneous import PublicMaskSharing


#: Key of ``federate.json -> sites -> <name>`` that names the site's network; every other key is an id of train.json.
NETWORK = "network"


def site_overrides(given: Mapping[str, Mapping[str, Any]], sites: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``federate.json -> sites`` as overrides of each site's ``train.json``.

    Raises:
        Refused: a name that is no site of this run.
    """
    problems = Problems()
    for name in given:
        if name not in sites:
            expected, hint = f"one of {list(sites)}", did_you_mean(name, sites)
            problems.add(f"federate.json -> sites#{name}", found="no such site", expected=expected, hint=hint)
    problems.refuse_if_any()
    return {
        site: {("network_name" if key == NETWORK else key): value for key, value in given.get(site, {}).items()}
        for site in sites
    }


def require_own_images(plan: Plan, places: Places, site: str) -> None:
    """Refuses a plan with which a site would read its images in another way than its own bundle says.

    Raises:
        Refused: every such place, or ids that the bundle does not have.
    """
    own = client_config(places.bundle_root, plan.variant, places.overrides()).with_files("configs/evaluate.json")
    choices = dict(plan.sites.get(site, {}))
    choices.pop(NETWORK, None)
    planned = own.with_overrides({**plan.train, **choices, **places.overrides()})
    try:
        contents = own.parser().get(), planned.parser().get()
    except (KeyError, ValueError, IndexError, TypeError):
        found, hint = "an id that leads nowhere in this site's bundle", "compare it with `samfed show` at the site"
        raise Refused([Problem("plan -> train", found, "ids of the site's own bundle", hint)]) from None
    problems = Problems()
    problems.extend(deviations(*contents))
    problems.refuse_if_any()


def network_names(
    config: WorkflowConfig, sites: Sequence[str], overrides: Mapping[str, Mapping[str, Any]], *, personal: bool
) -> dict[str, str]:
    """Site to the name of its network: its own choice, else the next of ``mixed_networks``, else the common one.

    ``mixed_networks`` is a list that sites take in turn, in the order of their names; it counts only where each site
    keeps a network of its own.
    """
    mixed = (config.optional("mixed_networks") or []) if personal else []
    common = config.value("network_name")
    return {
        site: overrides[site].get("network_name") or (mixed[index % len(mixed)] if mixed else common)
        for index, site in enumerate(sites)
    }


def network_builder(
    config: WorkflowConfig, name: str, overrides: Mapping[str, Any] | None = None
) -> Callable[[], nn.Module]:
    """Builds an empty network of that name as ``train.json``, with a site's own ``overrides``, declares it."""

    def build() -> nn.Module:
        own = config.with_overrides({**(overrides or {}), "network_name": name})
        network: nn.Module = unfilled(own.parser()).get_parsed_content("network_def")
        return network

    return build


def require_known(config: WorkflowConfig, names: Mapping[str, str]) -> None:
    """Refuses names that the catalogue does not have, where the bundle builds its networks from it.

    Args:
        config: the run's ``train.json``.
        names: place of a name (for the message) to the name.

    Raises:
        Refused: with every unknown name, each at the first place that has it.
    """
    if not in_catalogue(config.parser()):
        return
    problems, first = Problems(), dict[str, str]()
    for where, name in names.items():
        if first.setdefault(name, where) == where:
            problems.extend(network_problems(name, where))
    problems.refuse_if_any()


def require_starts(config: WorkflowConfig, names: Sequence[str]) -> None:
    """Refuses pretrained weights that are missing, or of another network, before the teacher is fitted.

    Of weights with a name the file has to be there: its content is known by its hash. A file of one's own is read.

    Args:
        config: the run's ``train.json``.
        names: networks that are trained before round 0.

    Raises:
        Refused: with what is wrong for every network.
    """
    parser, problems = config.parser(), Problems()
    if not in_catalogue(parser):
        return
    weights = parsed(parser, "encoder_weights")
    for name in names:
        start = starts_from(name, weights)
        if start is None:
            continue
        with problems.collected():
            encoder_weights_file(start, name)
            if named(str(start)) is None:
                with own_random_state(0):  # nothing that is drawn here is used
                    config.with_overrides({"network_name": name}).value("network_def")
    problems.refuse_if_any()


@dataclass(frozen=True)
class Start:
    """Initial weights of one network, before round 0.

    Args:
        whole: every tensor.
        split: of its names.
    """

    whole: Mapping[str, Tensor]
    split: KeySplit

    @classmethod
    def of(
        cls, build: Callable[[], nn.Module], warm: Mapping[str, Tensor], *, personal: Sequence[str], seed: int
    ) -> Start:
        """A network with the weights of a warm start.

        Other tensors are initialised as the network is built, with ``seed``: frozen weights, which come from a
        checkpoint, and experts, which add nothing before they are trained. All sites get the same.

        Args:
            build: builds the network.
            warm: of a warm start.
            personal: ``train.json -> personal``.
            seed: the run's seed.

        Raises:
            Refused: patterns that :func:`network_split` refuses; a warm start that trained what is frozen here, or
                another network.
        """
        with own_random_state(derive_seed(seed, "server", "start")):
            network = build()
        split = network_split(network, personal)
        own = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
        alien = sorted(name for name in warm if name not in own or warm[name].shape != own[name].shape)
        if alien:
            raise _refusal(f"{len(alien)} tensors of another network, first {alien[0]}")
        lost = [name for name in split.frozen if name in warm and not warm[name].equal(own[name])]
        if lost:
            raise _refusal(f"{len(lost)} trained tensors that are frozen at the sites, first {lost[0]}")
        return cls({name: warm.get(name, own[name]) for name in own}, split)

    @property
    def shared(self) -> dict[str, Tensor]:
        """What is aggregated."""
        return {name: self.whole[name] for name in self.split.shared}

    @property
    def personal(self) -> dict[str, Tensor]:
        """What stays at a site that takes part in an aggregate."""
        return {name: self.whole[name] for name in self.split.personal}

    @property
    def trained(self) -> dict[str, Tensor]:
        """What a site keeps that keeps its whole network: all but what is frozen."""
        frozen = set(self.split.frozen)
        return {name: tensor for name, tensor in self.whole.items() if name not in frozen}


def _refusal(found: str) -> Refused:
    expected = "a warm start of the run's own network, which trains nothing that is frozen there"
    hint = "let warm_start and network_def agree on rank and decoder, or set warm_start_steps to 0"
    return Refused([Problem("train.json -> warm_start", found=found, expected=expected, hint=hint)])


SERVER = "server"


class Participants:
    """The sites of a run and their networks, read from its configuration.

    Args:
        config: ``train.json`` with the variant and the run's overrides.
        datalist: the frozen list. One without sites, as of a server without images, needs ``choices`` and ``unseen`` to
            name every site.
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
        self.sites, self.unseen = _trains_or_not(datalist, choices, unseen)
        self.strategy: Strategy = self._strategy()
        self.overrides = site_overrides(choices, self.sites)
        self.networks = network_names(config, self.sites, self.overrides, personal=not self.strategy.exchange.alike)
        places = {f"network of {site}": name for site, name in self.networks.items()}
        places |= {
            f"mixed_networks#{place}": name for place, name in enumerate(config.optional("mixed_networks") or ())
        }
        require_known(config, {**places, "network of the server": self.server_network})
        if self.strategy.exchange.alike and self._say_different_things():
            self.dry_run()

    @classmethod
    def of(cls, plan: Plan, places: Places, datalist: DataList) -> Participants:
        """That of a plan on this machine."""
        config = client_config(places.bundle_root, plan.variant, {**plan.train, **places.overrides()})
        choices = {site: {**plan.sites.get(site, {}), **places.sites.get(site, {})} for site in plan.sites}
        return cls(config, datalist, choices=choices, unseen=plan.unseen)

    def dry_run(self) -> None:
        """Builds every network of the run once, before anything is computed.

        Raises:
            Refused: as :func:`dry_run`, or the strategy cannot do with their names.
        """
        server = {SERVER: self.server_network} if self.strategy.exchange.server_model else {}
        networks = {**self.networks, **server}
        for each in dry_run(self.config, networks, self.overrides, one_network=self.strategy.exchange.alike):
            self.strategy.require_names(each.split.shared)
            if each.terms is not None:
                self.strategy.require_terms(each.terms)

    @property
    def exchange(self) -> str:
        """What travels, in the words of ``results.json``."""
        return self.strategy.exchange.word

    @cached_property
    def server_network(self) -> str:
        """The server's network: the sites' where they share one, else ``server_network``, else ``network_name``."""
        if self.strategy.exchange.alike and self.networks:
            return self.networks[self.sites[0]]
        return self.config.optional("server_network") or self.config.value("network_name")

    @property
    def all_networks(self) -> list[str]:
        """Every network that is trained before round 0, once."""
        return sorted(
            {*self.networks.values(), *([self.server_network] if self.strategy.exchange.server_model else [])}
        )

    @property
    def supervised(self) -> bool:
        """Whether sites learn from labels of their own images."""
        train = self.config.parser().get().get("train")
        declared = train.get("dataset") if isinstance(train, Mapping) else None
        return isinstance(declared, Mapping) and declared.get("split") == "labelled"

    def needs_masks(self, site: str) -> bool:
        """Whether a site reads labels of its own images of which only masks will do; weak ones it cannot use."""
        config = self.config.with_overrides(self.overrides.get(site, {}))
        if not isinstance(config.parser().get().get("images"), Mapping):
            return False  # images of the bundle's own, which refuse what they cannot read
        if self.supervised:
            return not config.optional("images#weak_labels")
        return config.optional("oracle") is True

    def start(self, network: str, warm: Mapping[str, Tensor], seed: int) -> Start:
        """What a network of this run begins with, once it is warmed up."""
        personal = self.config.optional("personal") or ()
        return Start.of(network_builder(self.config, network), warm, personal=personal, seed=seed)

    def learned(self) -> frozenset[str]:
        """Names of the parameters of the server's network; the rest of its state is running statistics and counters."""
        with own_random_state(0):  # nothing that is drawn here is used
            network = network_builder(self.config, self.server_network)()
        return frozenset(name for name, _ in network.named_parameters())

    def costs(self) -> dict[str, dict[str, float]]:
        """What one image costs the sites' networks, by name, see :func:`samfed_monai.metrics.cost_of`; none of SAM's
        own, which would have to be loaded for it."""
        names = set() if self.sam_fingerprint() else set(self.networks.values())
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
            first[site] = starts[name].trained if self.strategy.exchange.own_networks else starts[name].personal
        if self.server_network in starts:
            first |= dict.fromkeys(self.unseen, starts[self.server_network].personal)
        return {site: weights for site, weights in first.items() if weights}

    def sam_fingerprint(self, site: str | None = None) -> dict[str, str]:
        """Hash of the SAM under a site's network, as :func:`sam_fingerprint` gives it; ``None`` is the server."""
        return sam_fingerprint(self.config, self.networks.get(site or "", self.server_network))

    def content(self) -> dict[str, Any]:
        """The part that decides the result, for ``run.json``; empty where all sites are alike and take part."""
        content: dict[str, Any] = {}
        if self.strategy.exchange.own_networks or any(self.overrides.values()):
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
            weights = start.shared if self.strategy.exchange.alike else start.whole

        def sharing() -> PublicMaskSharing:
            config = self.at_server().with_overrides({"site": SERVER, "seed": seed, "standalone": {}})
            parser = config.parser()
            with own_random_state(derive_seed(seed, SERVER, "bench")):
                if "initialize" in parser:  # first, as in MONAI's workflow: no other may have run in this process
                    parser.get_parsed_content("initialize")
                made: PublicMaskSharing = parser.get_parsed_content("sharing")
            return made

        return Server(
            sites=self.sites,
            rounds=rounds,
            seed=seed,
            weights=weights,
            guard=guard,
            sharing=sharing if self.config.optional_id("sharing") else None,
            networks={
                site: network_builder(self.config, name, self.overrides[site]) for site, name in self.networks.items()
            },
            keeps_parts=start is not None and self.strategy.exchange.alike and bool(start.split.personal),
        )

    def _say_different_things(self) -> bool:
        first, *others = [(self.networks[site], self.overrides[site]) for site in self.sites]
        return any(other != first for other in others)

    def _strategy(self) -> Strategy:
        if not self.config.optional_id("strategy"):
            return FedAvg()
        strategy = self.config.parser().get_parsed_content("strategy")
        if not isinstance(strategy, Strategy):
            found, hint = (
                type(strategy).__name__,
                "name one of samfed_monai.methods, or another Strategy",
            )
            raise Refused([Problem("train.json -> strategy", found=found, expected="a Strategy", hint=hint)])
        return strategy


def _trains_or_not(
    datalist: DataList, choices: Mapping[str, Mapping[str, Any]], unseen: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sites that train and sites that do not, sorted."""
    known = sorted(datalist.sites)
    if not known and not choices:
        found, hint = "no names, and a list without sites", 'for instance {"site-1": {}, "site-2": {}}'
        where = "federate.json -> sites"
        raise Refused([Problem(where, found=found, expected="the name of every site that trains", hint=hint)])
    if not known:
        away = set(unseen)
        return tuple(site for site in sorted(choices) if site not in away), tuple(sorted(away))
    problems = Problems()
    for name in unseen:
        if name not in known:
            expected = f"a site of the list, one of {known}"
            hint = did_you_mean(str(name), known)
            problems.add("federate.json -> unseen", found=repr(name), expected=expected, hint=hint)
    problems.refuse_if_any()
    idle = {name for name, site in datalist.sites.items() if not site.unlabelled}
    away = set(unseen) | idle
    if len(away) == len(known):
        found = f"{len(known)} sites: {len(set(unseen))} unseen, {len(idle)} without images to train on"
        hint = "leave a site out of `unseen`, or put images into a site's `unlabelled` split"
        raise Refused([Problem("federate.json -> unseen", found=found, expected="a site that trains", hint=hint)])
    return tuple(site for site in known if site not in away), tuple(sorted(away))
