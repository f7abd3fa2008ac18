"""Hashes that server and site compare before round 0: plan, bundle, version, data list, frozen weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai import __version__
from samfed_monai.config.targets import in_catalogue
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.data import DataList
from samfed_monai.federation.workflow import WorkflowConfig
from samfed_monai.networks import find_checkpoint

if TYPE_CHECKING:
    from samfed_monai.federation.plan import Plan

logger = logging.getLogger(__name__)


_PREFIX = "sam_"


def is_sam(config: WorkflowConfig, network: str) -> bool:
    """Whether a network of the catalogue is SAM itself, which needs a checkpoint."""
    return network.startswith(_PREFIX) and in_catalogue(config.parser())


def base_sam(config: WorkflowConfig, network: str) -> str | None:
    """SHA-256 of the checkpoint under a client network; ``None`` for one that is no SAM.

    Args:
        config: a run's or a site's ``train.json``.
        network: name of the network.

    Raises:
        Refused: there is no such file here; the message has the command that fetches it.
    """
    if not is_sam(config, network):
        return None
    given = config.parser().get()["network_def"].get("checkpoint")
    path = Path(given) if given else find_checkpoint(network.removeprefix(_PREFIX))
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256(path: Path, size: int, changed: int) -> str:
    return sha256_file(path)


#: Word of the message to its name in messages, and how to fix a difference.
_MEANING = {
    "plan": ("plan and bundle", "give both the same bundle and the same job; paths may differ, nothing else"),
    "version": ("samfed-monai", "install the same version at both ends"),
    "public_list": (
        "public part of the data list",
        "copy the server's list: public images, masks, their order and mask_threshold must be the same",
    ),
    "list": (
        "this site's part of the data list",
        "write it from the server's list again, with `samfed prepare split`, or give the server this one",
    ),
    "base_sam": (
        "SAM's weights under this site's network",
        "put the server's checkpoint in place with `samfed weights`: frozen weights do not travel",
    ),
}


def shared_fingerprints(plan: Plan, bundle_root: str | Path, datalist: DataList) -> dict[str, str]:
    """Words that are the same for every site: hash of plan and bundle, version, hash of the public images."""
    public = datalist.public_hash()
    return {"plan": plan.fingerprint(bundle_root), "version": __version__, "public_list": public}


def list_fingerprint(datalist: DataList, site: str) -> dict[str, str]:
    """The hash of a site's part of the list, where the list has one."""
    return {"list": datalist.part_hash(site)} if site in datalist.sites else {}


def sam_fingerprint(config: WorkflowConfig, network: str) -> dict[str, str]:
    """The hash of the SAM under a site's network, where it is one; none where the file is missing."""
    try:
        found = base_sam(config, network)
    except (Refused, OSError) as error:
        logger.error("%s", error)
        return {}
    return {} if found is None else {"base_sam": found}


def own_fingerprints(
    plan: Plan, bundle_root: str | Path, datalist: DataList, site: str, sam: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Everything that this site can be asked for; ``sam`` is its :func:`sam_fingerprint`."""
    return {**shared_fingerprints(plan, bundle_root, datalist), **list_fingerprint(datalist, site), **(sam or {})}


def differences(wanted: Mapping[str, str], own: Mapping[str, str]) -> list[Problem]:
    """One problem for each word of ``wanted`` in which this site differs; words of other kinds are passed over."""
    return [
        Problem(name, found=_short(own.get(word)), expected=f"the server's {_short(wanted[word])}", hint=hint)
        for word, (name, hint) in _MEANING.items()
        if word in wanted and own.get(word) != wanted[word]
    ]


def _short(value: str | None) -> str:
    return "none" if value is None else value[:12]
