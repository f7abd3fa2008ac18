"""The participants of a run: sites that train, hospitals that do not, their networks and initial weights.

Their components are built once, without data, so that errors are found before anything is computed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from samfed_monai.bundle.images import SiteImages, SplitName
from samfed_monai.config.own_images import deviations
from samfed_monai.config.parse import MISSING, follow, is_disabled, join_id, lookup, parsed, reached, split_id
from samfed_monai.config.targets import is_from_catalogue
from samfed_monai.config.workflow import component_refusal, unwrap_own, unwrapped
from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean, refused
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import own_random_state
from samfed_monai.core.validators import one_of, require
from samfed_monai.data import DataList
from samfed_monai.data.classes import outputs_of
from samfed_monai.data.datalist import SERVER
from samfed_monai.data.records import weak_problems
from samfed_monai.data.weak_labels import IGNORE
from samfed_monai.federation.client import LOADER_IDS
from samfed_monai.federation.preparation import sam_fingerprint
from samfed_monai.federation.site_network import SiteNetwork, Start
from samfed_monai.federation.workflow import TRAIN, WorkflowConfig, client_config, trained_split, without_pretraining
from samfed_monai.handlers import HandlerGroup, ScoreHandler
from samfed_monai.handlers.guide import GlobalGuide, Guide
from samfed_monai.handlers.term import PseudoLabelTerm, Term
from samfed_monai.losses import without_label
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.metrics import cost_of
from samfed_monai.networks import known_weights, starts_from
from samfed_monai.networks.catalogue import network_problems
from samfed_monai.networks.input_size import batch_problems, size_problems
from samfed_monai.networks.weights import encoder_weights_file
from samfed_monai.protocol.guard import UpdateGuard
from samfed_monai.protocol.strategy import Server, Strategy, trained_weights

if TYPE_CHECKING:
    from samfed_monai.federation.plan import Paths, Plan
    from samfed_monai.methods.heterogeneous import PublicMaskAlgorithm

logger = logging.getLogger(__name__)

#: Key of ``federate.json -> sites -> <name>`` that names the site's network; every other key is an id of train.json.
NETWORK = "network"


def run_config(plan: Plan, paths: Paths) -> WorkflowConfig:
    """``train.json`` of a plan on this machine, with its variant and overrides."""
    return client_config(paths.bundle_root, plan.variant, {**plan.train, **paths.overrides()})


def require_own_images(plan: Plan, paths: Paths, site: str) -> None:
    """Refuses a plan that changes how a site reads its images, compared with the site's own bundle.

    Raises:
        Refused: every such change, or ids that the bundle does not have.
    """
    local = client_config(paths.bundle_root, plan.variant, paths.overrides()).with_files("configs/evaluate.json")
    choices = {name: value for name, value in plan.sites.get(site, {}).items() if name != NETWORK}
    planned = local.with_overrides({**plan.train, **choices, **paths.overrides()})
    try:
        contents = local.parser().get(), planned.parser().get()
    except (KeyError, ValueError, IndexError, TypeError):
        found, hint = "an id that does not exist in this site's bundle", "compare with `samfed show` at the site"
        raise refused("plan -> train", found, "ids of this site's bundle", hint) from None
    require(deviations(*contents))


def build_network(
    config: WorkflowConfig, name: str, overrides: Mapping[str, Any] | None = None, *, seed: int | None = 0
) -> nn.Module:
    """Builds a network as ``train.json`` declares it, without loading weights.

    Args:
        config: the run's ``train.json``.
        name: of the network.
        overrides: a site's.
        seed: of the random numbers drawn here, 0 if they are not used; ``None`` continues from the present state.
    """
    changed = config.with_overrides({**(overrides or {}), "network_name": name})
    with own_random_state(seed):
        network: nn.Module = without_pretraining(changed.parser()).get_parsed_content("network_def")
    return network


def require_starts(config: WorkflowConfig, names: Sequence[str]) -> None:
    """Refuses pretrained weights that are missing, or of another network, before the teacher is fitted.

    Weights with a name only have to exist, since their content is known by its hash. A user's own file is read.

    Args:
        config: the run's ``train.json``.
        names: networks that are trained before round 0.

    Raises:
        Refused: with the problems of every network.
    """
    parser, problems = config.parser(), Problems()
    if not is_from_catalogue(parser):
        return
    weights = parsed(parser, "encoder_weights")
    for name in names:
        start = starts_from(name, weights)
        if start is None:
            continue
        with problems.collected():
            encoder_weights_file(start, name)
            if known_weights(str(start)) is None:
                with own_random_state(0):  # random numbers drawn here are not used
                    config.with_overrides({"network_name": name}).value("network_def")
    problems.refuse_if_any()


class Participants:
    """The sites of a run and their networks, read from its configuration.

    Args:
        config: ``train.json`` with the variant and the run's overrides.
        datalist: the frozen list. If it has no sites (a server without images), ``choices`` and ``unseen`` must name
            every site.
        choices: ``federate.json -> sites``.
        unseen: names of sites that do not train; those without unlabelled images are added.

    Raises:
        Refused: an unknown name, or different networks with a strategy that averages them.
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
        self.sites, self.unseen = _split_sites(datalist, choices, unseen)
        self.strategy: Strategy = self._strategy()
        require(*(one_of(f"federate.json -> sites#{name}", name, self.sites) for name in choices))
        self.overrides = {
            site: {("network_name" if key == NETWORK else key): value for key, value in choices.get(site, {}).items()}
            for site in self.sites
        }
        mixed, common = config.optional("mixed_networks") or [], config.value("network_name")
        if not isinstance(mixed, list):
            raise refused("mixed_networks", found=repr(mixed), expected="a list of networks, or null")
        choices_in_turn = [common] if self.strategy.exchange.alike or not mixed else mixed
        #: Site to the name of its network: its own choice, else the next of ``mixed_networks`` (only if each site
        #: keeps a network of its own), else the common one.
        self.networks: dict[str, str] = {
            site: self.overrides[site].get("network_name") or choices_in_turn[place % len(choices_in_turn)]
            for place, site in enumerate(self.sites)
        }
        if is_from_catalogue(config.parser()):
            networks = [(f"network of {site}", name) for site, name in self.networks.items()]
            networks += [(f"mixed_networks#{place}", name) for place, name in enumerate(mixed)]
            first: dict[str, str] = {}
            for where, name in (*networks, ("network of the server", self.server_network)):
                first.setdefault(name, where)
            require(*(network_problems(name, where) for name, where in first.items()))
        choices_of_sites = [(self.networks[site], self.overrides[site]) for site in self.sites]
        if self.strategy.exchange.alike and any(choice != choices_of_sites[0] for choice in choices_of_sites):
            self.dry_run()

    @classmethod
    def of(cls, plan: Plan, paths: Paths, datalist: DataList) -> Participants:
        """Reads the participants of a plan on this machine."""
        choices = {site: {**plan.sites.get(site, {}), **paths.sites.get(site, {})} for site in plan.sites}
        return cls(run_config(plan, paths), datalist, choices=choices, unseen=plan.unseen)

    def dry_run(self) -> None:
        """Builds every network of the run once, before anything is computed.

        Raises:
            Refused: as :func:`dry_run`.
        """
        dry_run(self.config, self._network_names, self.overrides, self.strategy)

    @cached_property
    def server_network(self) -> str:
        """The server's network: the sites' if they share one, else ``server_network``, else ``network_name``."""
        if self.strategy.exchange.alike and self.networks:
            return self.networks[self.sites[0]]
        return self.config.optional("server_network") or self.config.value("network_name")

    @property
    def all_networks(self) -> list[str]:
        """Names of the networks that are trained before round 0, sorted, each once."""
        return sorted({*self._network_names.values()})

    @property
    def _network_names(self) -> dict[str, str]:
        """Participant (a site, or the server if it has a model) to the name of its network."""
        return self.networks | ({SERVER: self.server_network} if self.strategy.exchange.server_model else {})

    @property
    def supervised(self) -> bool:
        """Whether sites learn from labels of their own images."""
        return bool(trained_split(self.config.parser().get()) == "labelled")

    def needs_masks(self, site: str) -> bool:
        """Whether a site reads labels of its own images that must be masks, not weak labels."""
        config = self.config.with_overrides(self.overrides.get(site, {}))
        if not isinstance(config.parser().get().get("images"), Mapping):
            return False  # the bundle's own image reader, which refuses unsuitable labels itself
        return not config.optional("images#weak_labels") if self.supervised else config.optional("oracle") is True

    def label_problems(self, datalist: DataList, where: str) -> list[Problem]:
        """Problems of labels at sites whose method learns from them, all sites at once.

        These are weak labels where masks are needed, no labels at all, or images without one where all need a label.

        Args:
            datalist: the frozen list, or a site's or the server's part of it; sites that it does not have are skipped.
            where: the list, for the messages.
        """
        problems = Problems()
        for site in filter(datalist.sites.__contains__, self.sites):
            images, place, masks = datalist.sites[site].unlabelled, f"{where} -> {site}", self.needs_masks(site)
            if masks and (kinds := [str(item.label_kind) for item in images if item.weak]):
                problems.extend(weak_problems(kinds, f"{place} -> unlabelled"))
            labelled = sum(item.label is not None for item in images)
            if not labelled if self.supervised else masks and labelled < len(images):
                found = f"{labelled} of this site's {len(images)} images with a label"
                expected = f"labels{'' if self.supervised else ' of all images'} (this variant learns from them)"
                hint = "add labels with `samfed prepare`, list the site in `unseen`, or choose a variant without labels"
                problems.add(f"{place} -> labels", found=found, expected=expected, hint=f"{hint}, for instance samfed")
        return list(problems)

    def learned(self) -> frozenset[str]:
        """Names of the server network's trained weights; the rest is frozen, or running statistics and counters."""
        return frozenset(trained_weights(build_network(self.config, self.server_network)))

    def costs(self) -> dict[str, dict[str, float]]:
        """Cost of one image for each of the sites' networks (:func:`.cost_of`); empty for SAM, which is not built."""
        names = set() if self.sam_fingerprint() else set(self.networks.values())
        with own_random_state(0):
            size = self.config.value("image_size")
            return {name: cost_of(build_network(self.config, name), size) for name in sorted(names)}

    def first_weights(self, starts: Mapping[str, Start]) -> dict[str, dict[str, Tensor]]:
        """Weights sent to sites before round 0, by site: the network, or the part of it, that they keep from then on.

        An unseen hospital gets the personal part of the server's network after the warm start.
        """
        first = {}
        for site, name in self.networks.items():
            first[site] = starts[name].trained if self.strategy.exchange.own_networks else starts[name].personal
        if self.server_network in starts:
            first |= dict.fromkeys(self.unseen, starts[self.server_network].personal)
        return {site: weights for site, weights in first.items() if weights}

    def sam_fingerprint(self, site: str | None = None) -> dict[str, str]:
        """Hash of the SAM under a site's network, see :func:`sam_fingerprint`; ``None`` is the server's."""
        return sam_fingerprint(self.config, self.networks.get(site or "", self.server_network))

    def content(self) -> dict[str, Any]:
        """Settings that decide the result, for ``run.json``; empty if all sites are alike and train."""
        content: dict[str, Any] = {}
        if self.strategy.exchange.own_networks or any(self.overrides.values()):
            content["sites"] = {site: {**self.overrides[site], "network": self.networks[site]} for site in self.sites}
        if self.unseen:
            content["unseen"] = list(self.unseen)
        return content

    def resolve(self, plan: Plan) -> Plan:
        """The plan with every site and its network named, so that a site needs no list but its own."""
        choices = {site: {**plan.sites.get(site, {}), NETWORK: self.networks[site]} for site in self.sites}
        return replace(plan, sites=choices, unseen=self.unseen)

    def at_server(self) -> WorkflowConfig:
        """The configuration at the server: with its own network, and without sites."""
        return self.config.with_overrides({"network_name": self.server_network})

    def server(self, *, rounds: int, seed: int, start: Start | None, guard: UpdateGuard) -> Server:
        """Returns what the strategy is attached to; ``start`` is that of the server's network, if it has one."""
        weights: Mapping[str, Tensor] = {}
        if start is not None:
            weights = start.shared if self.strategy.exchange.alike else start.whole

        def algorithm() -> PublicMaskAlgorithm:
            parser = self.at_server().with_overrides({"site": SERVER, "seed": seed, "standalone": {}}).parser()
            with own_random_state(derive_seed(seed, SERVER, "bench")):
                if "initialize" in parser:  # first, as in MONAI's workflow, which may not have run in this process
                    parser.get_parsed_content("initialize")
                client_algorithm: PublicMaskAlgorithm = parser.get_parsed_content("client_algorithm")
            return client_algorithm

        return Server(
            sites=self.sites,
            rounds=rounds,
            seed=seed,
            weights=weights,
            guard=guard,
            algorithm=algorithm if self.config.optional_id("client_algorithm") else None,
            networks={
                site: partial(build_network, self.config, name, self.overrides[site], seed=None)
                for site, name in self.networks.items()
            },
            has_personal_part=start is not None and self.strategy.exchange.alike and bool(start.split.personal),
        )

    def _strategy(self) -> Strategy:
        if not self.config.optional_id("strategy"):
            return FedAvg()
        strategy = self.config.parser().get_parsed_content("strategy")
        if not isinstance(strategy, Strategy):
            found, hint = type(strategy).__name__, "use one of samfed_monai.methods, or another Strategy"
            raise refused("train.json -> strategy", found=found, expected="a Strategy", hint=hint)
        return strategy


def _split_sites(
    datalist: DataList, choices: Mapping[str, Mapping[str, Any]], unseen: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sites that train and sites that do not, sorted."""
    all_sites, unseen_sites = set(datalist.sites) or {*choices, *unseen}, set(unseen)
    if not datalist.sites and not choices:
        found, hint = "no names here and no sites in a list", 'give --datalist, or {"site-1": {}, "site-2": {}}'
        raise refused("federate.json -> sites", found, "the name of every site that trains", hint)
    require(*(one_of("federate.json -> unseen", name, sorted(all_sites)) for name in unseen))
    idle = {name for name, site in datalist.sites.items() if not site.unlabelled}
    if unseen_sites | idle == all_sites:
        found = f"{len(all_sites)} sites: {len(unseen_sites)} unseen, {len(idle)} without images to train on"
        hint = "remove a site from `unseen`, or add images to a site's `unlabelled` split"
        raise refused("federate.json -> unseen", found, "a site that trains", hint)
    return tuple(sorted(all_sites - unseen_sites - idle)), tuple(sorted(unseen_sites | idle))


NetworkShapes = tuple[str, dict[str, list[int]]]
#: Ids of the batch sizes that a client network is trained with.
BATCHES = "train#dataloader#batch_size", "unlabelled#dataloader#batch_size", "client_algorithm#batch_size"
#: Ids of the components that process a site's labels before the loss.
LABEL_TRANSFORMS = "resize", "binary_label"
#: Ids of the components that decide how a site's images are scored.
SCORES = "validate#preprocessing", "validate#scores"
#: Ids of components that read no image and compute nothing when they are built, to their defaults. The trainer refers
#: to most of the others, but building it finds its first problem only.
PARTS: dict[str, Any] = {
    **dict.fromkeys(("optimizer", "images", "terms", "loss", "weak_view", "strong_view")),
    **dict.fromkeys(("before", "stream", "client_algorithm", "statistics", "train#trainer", "validate#evaluator")),
    "validate#scores": None,
    **{"guides": {}, **dict.fromkeys(LABEL_TRANSFORMS, dict)},
}


class _PlaceholderImages(SiteImages):
    """Placeholder for a site's images in a dry run: one record per split, which is never read."""

    def records(self, split: SplitName) -> list[dict[str, Any]]:
        return [{"image": "", "label": "", "image_sha256": ""}]


def dry_run(
    config: WorkflowConfig,
    networks: Mapping[str, str],
    overrides: Mapping[str, Mapping[str, Any]],
    strategy: Strategy | None = None,
) -> None:
    """Builds each network of a run once, with its optimizer, terms and image readers, and checks that they fit.

    Args:
        config: the run's ``train.json``.
        networks: participant (a site, or the server) to the name of its network.
        overrides: participant to its changes of ``train.json``; sites without changes may be missing.
        strategy: of the run; ``None`` for a site that trains alone.

    Raises:
        Refused: an image size or a batch that a network cannot take (the message has the nearest possible one), a
            pattern of ``personal`` or of the optimizer's groups that matches nothing, values that the optimizer or a
            term does not accept, a network or a number of steps that a handler does not accept, a missing guide that a
            term names, a term that reads the server's network where each site trains its own, a trainer, data loader or
            score handler that is missing or disabled, weak labels (``images#weak_labels``) whose unlabelled pixels the
            loss would learn from, missing weights of SAM, names or networks that the strategy cannot use, different
            networks where it averages weights, or a single site that would score images of another size or in another
            way.
    """
    own_networks: dict[str, nn.Module] = {}
    problems, built, first_with = Problems(), dict[str, NetworkShapes](), dict[str, str]()
    for site, name in networks.items():
        changes = {**overrides.get(site, {}), "network_name": name}
        key = json.dumps(changes, sort_keys=True, default=repr)
        if (first := first_with.setdefault(key, site)) != site:
            own_networks[site] = own_networks[first]
            continue
        # without a device, and without the components of a site that trains alone
        own_config = config.with_overrides({**changes, "network": "@network_def", "standalone": {}})
        parser = without_pretraining(own_config.parser())
        if lookup(parser.config, ("images", "_target_")) == "samfed_monai.bundle.SiteImages":
            parser["images#_target_"] = _PlaceholderImages
        problems.extend(_scoring_problems(config.parser().get(), parser.get(), site, overrides.get(site, {})))
        with own_random_state(0), unwrapped(parser):  # random numbers drawn here are not used
            network = own_networks[site] = parser.get_parsed_content("network_def")
            common = network if len(changes) == 1 else build_network(config, name)
        size = parsed(parser, "image_size")
        if isinstance(size, int):
            problems.extend(size_problems(network, height=size, width=size))
        problems.extend(batch_problems(network, **_batches(parser)))
        parts = {part: _build_part(parser, part, problems) for part in PARTS}
        terms = _terms(parser, parts["terms"])
        problems.extend(_guide_problems(parts["guides"], terms or (), {**config.overrides, **changes}, strategy))
        problems.extend(_optimizer_problems(parts["optimizer"]))
        problems.extend(_label_problems(parser, parts, terms or ()))
        problems.extend(_engine_problems(parser, parts, federates=strategy is not None) if site != SERVER else ())
        if site != SERVER and (trainer := parts["train#trainer"]) is not None:
            if parsed(parser, "local_steps") is None:  # the number of steps depends on the site's images
                trainer.state.epoch_length = 10**6
            with problems.collected():
                HandlerGroup(handlers=parsed(parser, "train#handlers") or ()).check(trainer)
        with problems.collected():
            split = SiteNetwork.of(network, parser, trains=False).split
            if strategy is not None:
                strategy.require_names(split.shared)
        if strategy is not None and terms is not None:
            with problems.collected():
                strategy.require_terms([term.name for term in terms])
        built[key], other = (f"{site} ({name})", _shapes(network)), (f"the run's {name}", _shapes(common))
        if strategy is not None and strategy.exchange.alike:
            problems.extend(_unlike_sites(next(iter(built.values())), built[key], name))
        elif unlike := _difference(other, built[key]):
            where, expected = f"federate.json -> sites#{site}#network_def", f"the {name} that the run starts with"
            hint = "set network_def#... for the run and not for a site, or give this site another network"
            problems.add(where, found=unlike, expected=expected, hint=hint)
    if strategy is not None:
        with problems.collected():
            strategy.require_networks({site: network for site, network in own_networks.items() if site != SERVER})
    problems.refuse_if_any()


def _shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def _scoring_problems(run: Any, own: Any, site: str, overrides: Mapping[str, Any]) -> Iterator[Problem]:
    """Overrides of a single site that change the meaning of its scores and so invalidate averages over sites."""
    run_scoring, site_scoring = (reached(content, SCORES) for content in (run, own))
    for name, value in overrides.items():
        if lookup(run_scoring, split_id(name)) != lookup(site_scoring, split_id(name)):
            where, hint = f"federate.json -> sites#{site}#{name}", f"set --{name} for the run, or leave it out"
            yield Problem(where, repr(value), "the run's value, as scores of all sites are averaged", hint)


def _build_part(parser: Any, name: str, problems: Problems) -> Any:
    """Builds a part of ``train.json``; returns ``None`` if it cannot be built without a site.

    A refusal by the part is added to ``problems``. Other errors are reported when a site builds the part, except those
    of the optimizer, which needs nothing from a site.
    """
    try:
        built = parsed(parser, name, PARTS[name])
        return PARTS[name] if built is None else built  # null counts as missing
    except (RuntimeError, ValueError) as error:  # ValueError: a reference to an id that does not exist
        refusal = unwrap_own(error)
        if refusal is None and name == "optimizer":
            refusal = component_refusal(error, parser.get(), file="train.json")
        if isinstance(refusal, Refused):
            problems.extend(each for each in refusal.problems if each not in problems)
    return None


def _engine_problems(parser: Any, parts: Mapping[str, Any], *, federates: bool) -> Iterator[Problem]:
    """Problems of a trainer, data loaders and scores that a site lacks, and of an evaluator that computes no scores."""
    for name in ("train#trainer", *(("validate#scores", *LOADER_IDS.values()) if federates else ())):
        _, value = follow(parser.get(), (), f"@{name}")
        if value in (None, MISSING) or is_disabled(value):
            found = "null" if value is None else "no such id" if value is MISSING else "a disabled component"
            yield Problem(f"train.json -> {name}", found, "a component, which every site uses", "undo the change")
    evaluator, handlers = parts["validate#evaluator"], [parts["validate#scores"]]
    handlers += parsed(parser, "validate#handlers") or () if evaluator is not None else ()
    finished = [each.finish for each in handlers if isinstance(each, ScoreHandler)]
    if federates and evaluator is not None and finished and not any(map(evaluator.has_event_handler, finished)):
        where, hint = "train.json -> validate#evaluator", 'set validate#handlers to ["@validate#scores"]'
        yield Problem(where, "an evaluator without ScoreHandler", "validate#scores among its handlers", hint)


def _terms(parser: Any, built: Any) -> list[Term] | None:
    """The terms that a site trains with; ``None`` if one cannot be built."""
    if "terms" not in reached(parser.get(), [TRAIN]):
        return []
    return [term for term in built.values() if isinstance(term, Term)] if isinstance(built, Mapping) else None


def _guide_problems(
    guides: Any, terms: Sequence[Term], given: Mapping[str, Any], strategy: Strategy | None
) -> Iterator[Problem]:
    """Problems of guides and the terms that read them.

    These are guides that are missing, guides that the run's own values (``given``) enable or change although no term
    reads them, and, where each site trains a network of its own, terms that read the server's.
    """
    if guides is None:
        return
    by_key = {key: guide for key, guide in guides.items() if guide is not None} if isinstance(guides, Mapping) else {}
    names = [guide.name for guide in by_key.values()]
    for term in terms:
        yield from term.missing_guides(names)
    read = {name for term in terms for name in term.reads}
    for parts in map(split_id, given):
        guide = lookup(by_key, parts[1:2]) if parts[:1] == ("guides",) else None
        if terms and isinstance(guide, Guide) and guide.name not in read:
            yield Problem(join_id(parts), "a guide that no term reads", f"one of {sorted(read)}", "leave it out")
    if strategy is not None and strategy.exchange.own_networks:
        copies = {guide.name for guide in by_key.values() if isinstance(guide, GlobalGuide)}
        found, expected = "a term that would get the site's own", "a term that does not read the server's network"
        for term in terms:
            if term.of_server or copies & {*term.reads}:
                hint = f"set {term.where}#_disabled_ to true, or, if its student is global, agreement#student to weak"
                yield Problem(term.where, found, f"{expected}, as each site trains its own", hint)


def _optimizer_problems(optimizer: Any) -> list[Problem]:
    """Problems of learning rates outside [0, 1] (no network here learned with one) and group options torch ignores."""
    groups, where = getattr(optimizer, "param_groups", ()), "train.json -> optimizer"
    rates = {float(group["lr"]) for group in groups if "lr" in group}
    hint = "set learning_rate, or lr of the optimizer and of its groups"
    wrong = [rate for rate in sorted(rates) if not 0 <= rate <= 1]
    problems = [Problem(where, f"a learning rate of {rate:g}", "0 to 1", hint) for rate in wrong]
    known = {"params", "param_names", "initial_lr", *getattr(optimizer, "defaults", ())}
    for name in sorted({name for group in groups for name in group} - known):
        hint = did_you_mean({"learning_rate": "lr"}.get(name, name), known)
        problems.append(Problem(where, f"{name!r} in a group", f"options of {type(optimizer).__name__}", hint))
    return problems


def _label_problems(parser: Any, parts: Mapping[str, Any], terms: Sequence[Term]) -> Iterator[Problem]:
    """Problems of losses, and of weak labels whose unlabelled pixels the loss would learn from."""
    classes = outputs_of(parsed(parser, "classes"))
    pseudo_label_terms = [term for term in terms if isinstance(term, PseudoLabelTerm)]
    losses = [(parts["loss"], None), *((term.loss, term) for term in pseudo_label_terms)]
    for loss, term in losses:
        if callable(loss):
            yield from _loss_problems(loss, classes, term)
    are_built = all(parts[part] is not None for part in (*LABEL_TRANSFORMS, "loss"))
    if are_built and parsed(parser, "images#weak_labels") is True:
        yield from _weak_label_problems(parts, classes)


def _loss_problems(loss: Any, outputs: int, term: PseudoLabelTerm | None) -> list[Problem]:
    """Problems of a loss that expects probabilities instead of logits; for a ``term``, also one without pixel weights.

    For the same label, logits of 4 and -4 must not give a higher loss than logits of 1 and 0. The label has few
    foreground pixels: otherwise a Dice of logits could fall below zero and appear to be the best.
    """
    label = torch.zeros(1, 1, 32, max(32, 8 * outputs))
    for value in range(1, max(2, outputs)):  # one corner per class
        label[..., 8 * (value - 1) : 8 * (value - 1) + 4, :4] = value
    truth = label if outputs == 1 else torch.cat([(label == value).float() for value in range(outputs)], dim=1)
    arguments: tuple[torch.Tensor, ...] = (label,)
    where, takes, other = "train.json -> loss", "the network's logits", "a loss with logits, such as BCEWithLogitsLoss"
    if term is not None:
        arguments = truth if term.labels == "soft" else label.long(), torch.ones_like(label)
        where, takes, other = f"{term.where}#loss", f"{takes}, labels and weights of pixels", "structure or dice_ce"
    values, found = list[float](), ""
    for logits in (truth, 8 * truth - 4):
        try:
            values.append(float(loss(logits, *arguments)))
        except Exception as error:  # a loss of the user's own may raise anything
            if not values and (term is None or not isinstance(error, TypeError)):
                return []  # it fails on both, or needs another size: reported when a site trains
            found = f"{type(loss).__name__}, which does not accept them ({(str(error) or repr(error)).splitlines()[0]})"
    if len(values) == 2 and values[1] > values[0]:
        found = f"{type(loss).__name__}: {values[1]:.3g} for the right answer, {values[0]:.3g} for an undecided one"
    hint = f"set sigmoid, or softmax for several classes, to true, or use {other}"
    return [Problem(where, found, f"a loss that accepts {takes}", hint)] if found else []


def _weak_label_problems(parts: Mapping[str, Any], outputs: int) -> list[Problem]:
    """Problems of components that treat unlabelled pixels of weak labels as labelled.

    A label with all three kinds of pixels goes through the site's transforms and its loss. With several classes it has
    a plane per class, and unlabelled pixels are in none of them.
    """
    label = torch.full((1, 17, 17), float(IGNORE))  # a size that resizing always changes
    label[:, :4], label[:, 4:8] = 0, 1
    if outputs > 1:
        label = torch.cat([label == value for value in range(outputs)]).float()
    item: dict[str, Any] = {"image": torch.zeros(3, 17, 17), "label": label}
    found = dict[str, str]()
    for name in LABEL_TRANSFORMS:
        item = parts[name](item)
        values = sorted(set(torch.as_tensor(item["label"]).flatten().tolist()))
        if outputs == 1 and values != [0, 1, IGNORE]:
            shown = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")
            found[name] = f"a component that turns labels 0, 1 and {IGNORE} into {shown}"
        elif not without_label(item["label"]).any():
            found[name] = "a component that gives every pixel a class"
    if not found and (description := _describe_unlabelled_gradient(parts["loss"], item["label"], outputs)):
        found["loss"] = description
    expected = f"a component that ignores unlabelled pixels ({IGNORE}), as images#weak_labels is true"
    hint = "use the variant weak_labels or one built on it, or masks with images#weak_labels set to false"
    return [Problem(f"train.json -> {name}", text, expected, hint) for name, text in list(found.items())[:1]]


def _describe_unlabelled_gradient(loss: Any, label: torch.Tensor, outputs: int) -> str:
    """Describes how a loss learns from unlabelled pixels; empty if no gradient reaches them."""
    logits = torch.zeros(1, outputs, *label.shape[1:], requires_grad=True)
    try:
        loss(logits, label[None]).backward()
    except (ValueError, IndexError, RuntimeError) as error:
        return f"a loss that does not accept them ({error})"
    reached = logits.grad is not None and logits.grad[:, :, without_label(label)[0]].any()
    return f"{type(loss).__name__}, which learns from unlabelled pixels" if reached else ""


def _batches(parser: Any) -> dict[str, int]:
    """Batch sizes of training: by the option ``batch_size`` if that sets them, else by id."""
    option, sizes = parsed(parser, "batch_size"), {name: parsed(parser, name) for name in BATCHES}
    return {"batch_size" if n == option else name: n for name, n in sizes.items() if isinstance(n, int)}


def _unlike_sites(first: NetworkShapes, other: NetworkShapes, name: str) -> Iterator[Problem]:
    """The problem of two sites with different networks, of which the second is called ``name``."""
    if unlike := _difference(first, other):
        hint = "give all sites the same network, or use --variant heterogeneous, which allows different ones"
        if first[0].endswith(f" ({name})"):
            hint = "set network_def#..., such as the rank of LoRA, for the run and not for a site"
        yield Problem("sites", unlike, "the same network at all sites (FedAvg averages weights)", hint)


def _difference(first: NetworkShapes, other: NetworkShapes) -> str:
    """Describes the first tensor in which two networks differ; empty if they are alike."""
    name = next((name for name in {**first[1], **other[1]} if first[1].get(name) != other[1].get(name)), "")
    sides = (f"{part} has {f'shape {net[name]}' if name in net else 'no such tensor'}" for part, net in (first, other))
    return name and f"{name}: {', '.join(sides)}"
