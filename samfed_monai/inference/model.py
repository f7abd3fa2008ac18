"""A trained model named by the user: a run, weights, a teacher's adapter, an ONNX file, or the bundle's own weights."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.config import parse
from samfed_monai.config.bundles import find_bundle
from samfed_monai.config.parse import COMMAND_LINE, lookup
from samfed_monai.core import model_file
from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.io import as_file_name, canonical_hash
from samfed_monai.core.validators import require
from samfed_monai.data.classes import class_problems, is_multiclass, outputs_of
from samfed_monai.metrics.quality import Quality, read_quality

if TYPE_CHECKING:
    from torch import nn

    from samfed_monai.federation.workflow import WorkflowConfig
    from samfed_monai.inference.export import OnnxNetwork

SCORED_AS = ("label_resize", "validate#scores#pooled", "validate#scores#skip_empty", "validate#inferer#enabled")
"""Ids of ``train.json`` that affect scoring, in which a run may differ from the bundle."""
_TEXT_VALUES = ("area", "nearest", "auto")


class Kind(str, Enum):
    """Kinds of models."""

    RUN = "run"
    WEIGHTS = "weights"
    ADAPTER = "adapter"
    ONNX = "onnx"


class TrainedModel:
    """A model with the bundle that configures its use.

    Args:
        bundle: a bundle's folder, or the name of a packaged one.
        path: a finished run's folder, a weights file, a teacher's adapter or an exported ONNX file; ``None``: the file
            in the bundle's ``models/``.
        runtime: runtime of an ONNX file, see :class:`~samfed_monai.inference.export.OnnxNetwork`.

    Raises:
        Refused: no such bundle; a folder that is not a finished run; no path, and a bundle without weights.
    """

    def __init__(self, bundle: str | Path, path: str | Path | None = None, runtime: str | None = None) -> None:
        self.bundle, self.run, self.runtime = find_bundle(bundle), None, runtime or "onnxruntime"
        self.path = Path(path).expanduser().resolve() if path else shipped_model(self.bundle)
        if self.path.is_dir():
            from samfed_monai.federation.run_models import RunModels

            self.kind, self.run = Kind.RUN, RunModels(self.path)
        elif self.path.suffix.lower() == ".onnx":
            self.kind = Kind.ONNX
        else:
            self.kind = Kind.ADAPTER if "adapter" in model_file.read_header(self.path) else Kind.WEIGHTS

    def require_run(self, site: str) -> None:
        """Refuses a site if the model is a single file."""
        if site and self.run is None:
            hint = "leave it out, or name the folder of the run"
            raise refused("--site", found="a weights file, which is one model", expected="a run", hint=hint)

    def weights(self, site: str = "") -> Path:
        """Returns the file of a site's model; one stored in parts is assembled in a folder deleted with this object.

        Args:
            site: site of a run; "" is the server's model.

        Raises:
            Refused: there is no such model; an ONNX file, from which no network can be built.
        """
        self.require_run(site)
        if self.kind is Kind.ONNX:
            expected = "a run or weights: only `samfed infer` runs ONNX files"
            raise refused("--model", self.path.name, expected, "name the weights that it was exported from")
        if self.run is None:
            return self.path
        if self.run.server_model_is_complete and not self.run.personal and (not site or site in self.run.sites):
            return self.run.server
        return self.run.write(Path(self._folder.name) / f"{as_file_name(site or 'server')}.safetensors", site)

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="samfed-", ignore_cleanup_errors=True)

    def classes(self, given: Any = None) -> list[str]:
        """Returns the names of the model's classes; empty for one class, or if no names are known.

        Args:
            given: names from the user, which take precedence.

        Raises:
            Refused: an adapter has another number of classes.
        """
        if given is not None and not class_problems(given, "--classes"):
            names = list(given)
        elif self.kind is Kind.ONNX:
            names = self.exported.classes
        elif self.run is not None:
            names = self.run.run.get("config", {}).get("client", {}).get("classes") or []
        else:
            names = model_file.settings_of(self.path).get("classes", [])
        if self.kind is Kind.ADAPTER:
            from samfed_monai.networks.sam.adapter import read_header as read_adapter

            outputs = read_adapter(self.path).outputs
            if outputs_of(names) != outputs:
                expected = f"names of the adapter's classes ({max(1, outputs - 1)}), in the order of its labels"
                hint = "write --classes \"['A', 'B']\"" if outputs > 1 else "leave --classes out"
                raise refused("--classes", found=str(names or "none"), expected=expected, hint=hint)
        return names if is_multiclass(names) else []

    @cached_property
    def quality(self) -> Quality:
        """The model's quality; an exported file contains it."""
        return self.exported.quality if self.kind is Kind.ONNX else read_quality(self.path)

    @cached_property
    def exported(self) -> OnnxNetwork:
        """The network of an ONNX file."""
        from samfed_monai.inference.export import OnnxNetwork

        return OnnxNetwork(self.path, self.runtime)

    def ids(self, workflow: str, overrides: Mapping[str, Any], site: str = "") -> dict[str, Any]:
        """Returns the ids with which a workflow builds a site's network as trained, overridden by ``overrides``.

        Raises:
            Refused: the file was trained on another SAM than the one present, or at another image size than that of the
                bundle or ``overrides``.
        """
        from samfed_monai.federation.preparation import base_sam
        from samfed_monai.federation.workflow import WorkflowConfig

        weights, files = self.weights(site), parse.workflow_files(self.bundle, workflow)
        ids = {
            "model": str(weights),
            **model_file.settings_of(weights),
            **model_file.network_overrides(weights),
            **overrides,
        }
        require(size_problems(parse.BundleConfig.of_workflow(self.bundle, workflow, ids), weights))
        if wanted := model_file.base_sam_of(weights):
            found = base_sam(WorkflowConfig(self.bundle, tuple(map(str, files)), ids), str(ids.get("network_name", "")))
            if found not in (wanted, None):
                expected = f"{wanted[:12]}, on which {weights.name} was trained"
                raise refused("SAM's weights", str(found)[:12], expected, "install that checkpoint: samfed weights")
        return ids

    def config(
        self,
        workflow: str,
        ids: Mapping[str, Any],
        *,
        given: Collection[str],
        reads: Set[str],
        ready: bool = True,
        problems: Iterable[Problem] = (),
    ) -> WorkflowConfig:
        """Returns the configuration of the bundle's workflow with overrides.

        Args:
            workflow: ``inference``, ``evaluate``, …
            ids: ids and values that override the bundle's.
            given: those of ``ids`` that the user gave, each of which must be used.
            reads: ids that are read by name.
            ready: whether all files that the workflow names must exist.
            problems: further problems, refused together with those of the bundle.
        """
        from samfed_monai.config.check import check_bundle
        from samfed_monai.federation.workflow import WorkflowConfig

        require(check_bundle(self.bundle, workflow, overrides=ids, reads=reads, ready=ready, given=given), problems)
        files = parse.workflow_files(self.bundle, workflow)
        return WorkflowConfig(self.bundle, tuple(map(str, files)), {"bundle_root": str(self.bundle), **ids})


def size_problems(config: parse.BundleConfig, weights: Path) -> Iterator[Problem]:
    """Yields a problem for each image size of a workflow, at any id, at which its weights were not trained.

    Args:
        config: merged configuration, with the command line's ids.
        weights: weights file; if it does not record its image size, the bundle's is expected.
    """
    content, trained = config.content, model_file.settings_of(weights).get("image_size")
    size = trained or config.below(len(config.layers) - 1).get("image_size")
    expected = f"{trained}, used to train {weights.name}" if trained else f"{size}, the size in the bundle"
    unknown = "" if trained else f"; {weights.name} does not record its training size"
    for place, side in () if model_file.ANY_SIZE.get() else parse.numbers_at(content, parse.SIZES, ["run"]):
        if side != size:
            where, found = config.where(place).replace(f"{COMMAND_LINE} -> ", "--"), repr(lookup(content, place))
            remedy = "leave it out" if where.startswith("--") else "write @image_size"
            hint = f"{remedy}{unknown}; scores are lower at another size; --allow-other-size accepts it"
            yield Problem(where, found, expected, hint)


def scored_as(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the ids of :data:`SCORED_AS` that have plain values in the ``run.json`` of a run."""
    found = {name: lookup(run.get("config", {}).get("client", {}), parse.split_id(name)) for name in SCORED_AS}
    return {name: value for name, value in found.items() if isinstance(value, bool) or value in _TEXT_VALUES}


def scoring_hash(bundle: Path) -> str:
    """Returns the SHA-256 of all that ``evaluate.json`` of a bundle uses to read and score images, without paths."""
    from samfed_monai.federation.workflow import PATHS

    used = parse.reached(parse.BundleConfig.of_workflow(bundle, "evaluate", {}).content, ["evaluation"])
    return canonical_hash({name: value for name, value in used.items() if name not in PATHS})


def shipped_model(bundle: Path) -> Path:
    """Returns the weights file in a bundle's folder ``models``.

    Raises:
        Refused: there is none.
    """
    from samfed_monai.bundle.wiring import model_path

    path = Path(model_path(model=None, bundle_root=bundle))
    if not path.is_file():
        hint = "name a model: a finished run's folder, a weights file, or a teacher's adapter"
        raise refused("--model", found="none", expected=f"a model, as {bundle.name} ships no weights", hint=hint)
    return path


def trained_network(config: WorkflowConfig) -> nn.Module:
    """Returns the network that a bundle declares, with the weights of its ``model``, in eval mode.

    Raises:
        Refused: weights of another network, or trained with other settings.
    """
    from samfed_monai.handlers.model_loader import trained_weights

    weights = config.value("model")
    require(model_file.setting_differences(weights, {name: config.optional(name) for name in model_file.SETTINGS}))
    network: nn.Module = config.value("network_def")
    network.load_state_dict(trained_weights(network, weights), strict=False)
    return network.eval()
