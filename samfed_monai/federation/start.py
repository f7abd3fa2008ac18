"""Weights that a federation begins with in place of a fresh network: of a bundle, of a finished run, or of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.config.bundles import find_bundle, packaged_bundles
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.core.model_file import BASE_SAM, base_sam_of, read_header, trained_otherwise
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import own_random_state
from samfed_monai.federation.participants import Participants, network_builder
from samfed_monai.federation.run_models import RunModels
from samfed_monai.handlers.model_loader import trained_weights

if TYPE_CHECKING:
    from torch import Tensor

WHERE = "federate.json -> start_from"
_EXPECTED = "a bundle that has weights, a finished run's folder, or a weights file"
_NO_WEIGHTS = {".onnx": "an ONNX file", ".pt2": "an exported program", ".ts": "a traced program"}


@dataclass(frozen=True)
class StartingPoint:
    """Weights that a federation begins with.

    Args:
        name: what reports call it: a bundle, or the last part of a path.
        sha256: of the file.
        weights: names to tensors of the network, frozen ones left out.
    """

    name: str
    sha256: str
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, source: str | Path, participants: Participants) -> StartingPoint:
        """Reads them, and checks that they are those of the run's network and classes.

        The image size may be another one: training adapts a network to its size.

        Args:
            source: name or folder of a bundle, folder of a finished run, or a weights file.
            participants: of the run.

        Raises:
            Refused: there is nothing of that name; another network, other classes, another SAM; a file that is damaged.
        """
        if problems := start_problems(source, participants):
            raise Refused(problems)
        path, name = starting_file(source), participants.server_network
        asked = {"network_name": name, "classes": participants.config.optional("classes") or ["foreground"]}
        problems = trained_otherwise(path, asked)
        trained_on, here = base_sam_of(path), participants.sam_fingerprint().get(BASE_SAM)
        if trained_on and here not in (None, trained_on):
            found, expected = str(here)[:12], f"{trained_on[:12]}, on which {path.name} was trained"
            problems.append(Problem("SAM's weights", found, expected, "put that one in place: samfed weights"))
        if problems:
            raise Refused(problems)
        with own_random_state(derive_seed(0, "server", "start_from")):  # nothing that is drawn here is used
            network = network_builder(participants.config, name)()
        weights = trained_weights(network, path)
        return cls(Path(source).expanduser().resolve().name, sha256_file(path), weights)


def start_problems(source: str | Path | None, participants: Participants) -> list[Problem]:
    """A start that the run's method has no use for; empty without one.

    Args:
        source: as of :meth:`StartingPoint.read`, or ``None``.
        participants: of the run.
    """
    exchange = participants.strategy.exchange
    if source is None or (exchange.alike and exchange.server_model):
        return []
    expected = f"null with {type(participants.strategy).__name__}: each site has a network of its own"
    return [Problem(WHERE, repr(str(source)), expected, "leave it out, or take a variant with one network")]


def starting_file(source: str | Path, where: str = WHERE) -> Path:
    """The weights file that a bundle, a finished run or a path names.

    Args:
        source: as of :meth:`StartingPoint.read`.
        where: the option that names it, for messages.

    Raises:
        Refused: there is none; a teacher's adapter or an exported file; a run without a model for all sites.
    """
    from samfed_monai.bundle.wiring import model_path

    path = Path(source).expanduser().resolve()
    if (path / "run.json").is_file():
        models = RunModels(path)
        models.tensors()  # refused or stopped here: none for all sites, or damaged
        return models.server
    if (path / "configs").is_dir() or (not path.exists() and str(source) in packaged_bundles()):
        bundle = find_bundle(source)
        path = Path(model_path(model=None, bundle_root=bundle))
        if not path.is_file():
            hint = "name a finished run or a weights file"
            raise Refused([Problem(where, f"{bundle.name}, a bundle without weights", _EXPECTED, hint)])
    if not path.is_file():
        found = "a folder that is none of these" if path.is_dir() else "none of that name"
        raise Refused([Problem(where, f"{str(source)!r}, {found}", _EXPECTED, "check the path")])
    kind = _NO_WEIGHTS.get(path.suffix.lower(), "a teacher's adapter" if "adapter" in read_header(path) else "")
    if kind:
        hint = "an adapter is given with --adapter" if "adapter" in kind else "name the weights that it was made from"
        raise Refused([Problem(where, f"{path.name}, {kind}", _EXPECTED, hint)])
    return path
