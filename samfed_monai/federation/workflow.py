"""The configuration of one bundle workflow: its JSON files, merged, then overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samfed_monai.config.parse import MISSING, follow, is_note, lookup, parsed, reached, resolve, split_id
from samfed_monai.config.targets import is_from_catalogue
from samfed_monai.config.variants import variant_files
from samfed_monai.config.workflow import unwrapped
from samfed_monai.core.errors import refused
from samfed_monai.core.io import canonical_hash, read_json

TRAIN = "train"
"""MONAI's id of a bundle's training section."""

PATHS = frozenset(
    ("bundle_root", "datalist", "data_root", "dataset_dir", "output", "output_dir", "cache_dir", "store_dir")
) | {"checkpoint", "device", "start_from"}
"""Ids that are paths or name a device; they never enter a fingerprint."""

EVALUATION = frozenset(
    ("validate", "test", "standalone", "evaluation", "split", "model", "initialize", "run", "imports")
)
"""Ids that do not affect training, although a trainer's handlers may refer to them."""


@dataclass(frozen=True)
class WorkflowConfig:
    """JSON files of a bundle in merge order, and overrides on top of them.

    Args:
        bundle_root: folder of the bundle.
        files: configuration files, absolute or relative to it, for instance ``("configs/train.json",)``.
        overrides: ids to values, as on the command line (``{"terms#sam_kd#weight": 0.5}``).
    """

    bundle_root: Path
    files: tuple[str, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def paths(self) -> list[str]:
        """The files as absolute paths, as ``ConfigWorkflow`` takes them."""
        return [str(Path(self.bundle_root) / name) for name in self.files]

    def with_files(self, *files: str) -> WorkflowConfig:
        return WorkflowConfig(self.bundle_root, (*self.files, *files), self.overrides)

    def with_overrides(self, overrides: Mapping[str, Any]) -> WorkflowConfig:
        return WorkflowConfig(self.bundle_root, self.files, {**self.overrides, **overrides})

    def without_pretraining(self) -> WorkflowConfig:
        """The same without pretrained weights in a network of the catalogue, see :func:`without_pretraining`."""
        return self.with_overrides(_NO_PRETRAINED_WEIGHTS) if is_from_catalogue(self.parser()) else self

    def without_unknown_overrides(self) -> WorkflowConfig:
        """Drops overrides of ids that only other variants have, such as ``terms#proximal#mu`` without such a term."""
        from samfed_monai.config.monai_parser import ConfigParser

        parser, known = ConfigParser(), {}
        parser.read_config(self.paths())
        for name, value in self.overrides.items():
            try:
                parser[name] = value
            except (KeyError, ValueError, IndexError, TypeError):  # its parent does not exist
                continue
            known[name] = value
        return WorkflowConfig(self.bundle_root, self.files, known)

    def parser(self) -> Any:
        """The merged, unresolved configuration as a MONAI ``ConfigParser``."""
        from samfed_monai.config.monai_parser import ConfigParser

        parser = ConfigParser()
        parser.read_config(self.paths())
        parser.update(pairs=dict(self.overrides))
        return parser

    def workflow(self, kind: str | None) -> Any:
        """MONAI's workflow of these files, of a kind such as ``train``, before it is initialized."""
        from samfed_monai.config.monai_parser import ConfigWorkflow

        return ConfigWorkflow(config_file=self.paths(), logging_file=False, workflow_type=kind, **self.overrides)

    def value(self, name: str) -> Any:
        """An option's value, references resolved.

        Raises:
            Refused: the bundle has no such id, or a component there refuses its arguments.
        """
        parser = self.parser()
        if lookup(parser.config, split_id(name)) is MISSING:
            where = f"{Path(self.files[-1]).name} -> {name}"
            raise refused(where, found="no such id", expected="an option that the federation reads")
        with unwrapped(parser):
            return parser.get_parsed_content(name)

    def values(self, *names: str) -> tuple[Any, ...]:
        """Values of several options, resolved together, so that they share the components they refer to."""
        parser = self.parser()
        with unwrapped(parser):
            return tuple(parser.get_parsed_content(name) for name in names)

    def optional(self, name: str) -> Any:
        """An option's value, or ``None`` if the bundle has no such id."""
        parser = self.parser()
        with unwrapped(parser):
            return parsed(parser, name)

    def optional_id(self, name: str) -> bool:
        """Whether the bundle has this id with a value other than ``null``; nothing is instantiated."""
        return self.parser().get().get(name) is not None

    def content(self, *, without: frozenset[str] = PATHS) -> dict[str, Any]:
        """The merged configuration as JSON content, without paths and notes."""
        return {key: value for key, value in self.parser().get().items() if key not in without and not is_note(key)}

    def fingerprint(self, **extra: Any) -> str:
        """Hash of everything that determines the result of ``train``, without paths, plus ``extra``.

        Settings of disabled components, or of components that the trainer does not refer to, do not count, so that rows
        of a sweep over the agreement share their warm start.
        """
        content = self.content(without=PATHS | EVALUATION)
        return canonical_hash({"config": reached(content, [TRAIN]) if TRAIN in content else content, "extra": extra})


_NO_PRETRAINED_WEIGHTS = {"network_def#load": False}


def without_pretraining(parser: Any) -> Any:
    """Turns off pretrained weights of a network of the catalogue, in place; returns the configuration.

    The server sends the initial weights, so no site needs the files of pretrained weights.
    """
    if is_from_catalogue(parser):
        parser.update(pairs=_NO_PRETRAINED_WEIGHTS)
    return parser


def trained_split(content: Mapping[str, Any]) -> Any:
    """The split that ``train#dataset`` reads, also through references; ``MISSING`` for a dataset without one."""
    _, dataset = follow(content, (), f"@{TRAIN}#dataset")
    return resolve(content, lookup(dataset, ("split",)))


def client_config(bundle_root: str | Path, variant: str, overrides: Mapping[str, Any]) -> WorkflowConfig:
    """The client's ``train.json`` with a variant's override file on top.

    Raises:
        Refused: the bundle has no such variant; the names that exist are listed.
    """
    root = Path(bundle_root)
    variants = (str(path) for path in variant_files(root, variant))
    return WorkflowConfig(root, ("configs/train.json", *variants), dict(overrides))


def evaluation_changes(bundle_root: str | Path) -> dict[str, Any]:
    """Ids of ``train.json`` to other values in ``evaluate.json`` of a bundle, with which a run's sites score.

    The encoder's weights are left out: those from the server replace them.
    """
    train, own = (read_json(Path(bundle_root) / "configs" / f"{name}.json") for name in ("train", "evaluate"))
    ids = [name for name in own if name not in ("run", "encoder_weights") and split_id(name)[0] in train]
    return {name: own[name] for name in ids if own[name] != lookup(train, split_id(name))}


def bundle_content(bundle_root: str | Path, variant: str) -> dict[str, Any]:
    """JSON of every file of a bundle that a run of ``variant`` reads at a site, by file name, without paths and notes.

    Two machines with the same content compute the same, wherever they keep their files.

    Raises:
        Refused: no such variant, or a file that cannot be read.
    """
    root = Path(bundle_root)
    files = [root / "configs" / f"{name}.json" for name in ("train", "evaluate", "teacher")]
    contents = {path.name: read_json(path) for path in files if path.is_file()}
    contents |= {f"variants/{path.name}": read_json(path) for path in variant_files(root, variant)}
    return {
        name: {key: value for key, value in content.items() if key not in PATHS and not is_note(key)}
        for name, content in contents.items()
    }
