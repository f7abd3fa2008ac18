"""Which network each site has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problems, did_you_mean
from samfed_monai.federation.random_state import own_random_state
from samfed_monai.federation.stages.workflow_config import WorkflowConfig, in_catalogue, unfilled
from samfed_monai.networks import CLIENT_NETWORKS, named, starts_from
from samfed_monai.networks.weights import encoder_weights_file

if TYPE_CHECKING:
    from torch import nn

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
            expected, mend = f"one of {list(sites)}", did_you_mean(name, sites)
            problems.add(f"federate.json -> sites#{name}", found="no such site", expected=expected, mend=mend)
    problems.refuse_if_any()
    return {
        site: {("network_name" if key == NETWORK else key): value for key, value in given.get(site, {}).items()}
        for site in sites
    }


def network_names(
    config: WorkflowConfig, sites: Sequence[str], overrides: Mapping[str, Mapping[str, Any]], *, personal: bool
) -> dict[str, str]:
    """Site to the name of its network: its own choice, else the next of ``mixed_networks``, else the common one.

    ``mixed_networks`` is a list that sites take in turn, in the order of their names; it counts only where each site
    keeps a network of its own.
    """
    mixed = (config.optional("mixed_networks") or []) if personal else []
    common = common_network(config)
    return {
        site: overrides[site].get("network_name") or (mixed[index % len(mixed)] if mixed else common)
        for index, site in enumerate(sites)
    }


def common_network(config: WorkflowConfig) -> str:
    """The network of a run: ``sam_network`` where a variant federates SAM itself, else ``network_name``."""
    name: str = config.optional("sam_network") or config.value("network_name")
    return name


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
        names: where a name stands (for the message) to the name.

    Raises:
        Refused: with every unknown name.
    """
    if not in_catalogue(config.parser()):
        return
    problems, known = Problems(), list(CLIENT_NETWORKS)
    for where, name in names.items():
        if name not in CLIENT_NETWORKS:
            problems.add(where, found=repr(name), expected=f"one of {known}", mend=did_you_mean(str(name), known))
    problems.refuse_if_any()


def require_starts(config: WorkflowConfig, names: Sequence[str]) -> None:
    """Refuses pretrained weights that are missing, or of another network, before the teacher takes its time.

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
    weights = parser.get_parsed_content("encoder_weights") if "encoder_weights" in parser else None
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
