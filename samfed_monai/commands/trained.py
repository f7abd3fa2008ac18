"""What ``samfed evaluate`` and ``samfed infer`` make of ``--model`` and ``--site``: weights, and their network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from samfed_monai.config.bundles import find_bundle
from samfed_monai.config.ids import lookup, split_id
from samfed_monai.config.layers import workflow_files
from samfed_monai.errors import Problem, Refused

if TYPE_CHECKING:
    from samfed_monai.federation.run_models import RunModels

MODEL_HELP = "a finished run's folder, a weights file, or the adapter of a fitted teacher"
SCORED_AS = ("label_resize", "validate#scores#pooled", "validate#scores#skip_empty", "validate#inferer#enabled")
"""Ids of ``train.json`` that decide how images are scored, and may differ from the bundle's in a run."""
_WORDS = ("area", "nearest", "auto")


def run_or_file(model: str | Path) -> RunModels | Path:
    """What ``--model`` names.

    Raises:
        Refused: a folder that is no finished run.
    """
    from samfed_monai.federation.run_models import RunModels

    path = Path(model).expanduser().resolve()
    return RunModels(path) if path.is_dir() else path


def scored_as(models: RunModels | Path) -> dict[str, Any]:
    """Those of :data:`SCORED_AS` with which a run took its own scores; nothing of a weights file."""
    if isinstance(models, Path):
        return {}
    client = models.run.get("config", {}).get("client", {})
    found = {name: lookup(client, split_id(name)) for name in SCORED_AS}
    return {name: value for name, value in found.items() if isinstance(value, bool) or value in _WORDS}


def weights_file(models: RunModels | Path, site: str, scratch: str | Path) -> Path:
    """The file with a site's model; one that lies whole on disk is taken as it is.

    Args:
        models: what :func:`run_or_file` gave.
        site: whose model; "" is the server's.
        scratch: folder for a model that has to be put together.

    Raises:
        Refused: there is no such model here.
    """
    if isinstance(models, Path):
        return models
    if models.whole_at_server and not models.personal and (not site or site in models.sites):
        return models.server
    return models.write(Path(scratch) / f"{quote(site or 'server', safe=' ')}.safetensors", site)


def trained_as(model: Path, bundle: str | Path, workflow: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Ids with which a workflow builds the network of a weights file as it was trained, and ``own`` on top of them.

    Raises:
        Refused: the file was trained on another SAM than the one that lies here.
    """
    from samfed_monai.federation.stages.base_sam import base_sam
    from samfed_monai.federation.stages.workflow_config import WorkflowConfig
    from samfed_monai.trained_model import base_sam_of, network_overrides, settings_of

    ids = {**settings_of(model), **network_overrides(model), **own}
    wanted = base_sam_of(model)
    if wanted:
        root = find_bundle(bundle)
        files = tuple(str(path) for path in workflow_files(root, workflow))
        found = base_sam(WorkflowConfig(root, files, ids), str(ids.get("network_name", "")))
        if found not in (wanted, None):
            expected, mend = (
                f"{wanted[:12]}, on which {model.name} was trained",
                "put that one in place: samfed weights",
            )
            raise Refused([Problem("SAM's weights", found=str(found)[:12], expected=expected, mend=mend)])
    return ids
