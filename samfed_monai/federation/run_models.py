"""The models of a finished run: the server's and each site's own, assembled from the run's folder."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from torch import Tensor

from samfed_monai.config.bundles import find_bundle, packaged_bundles
from samfed_monai.config.parse import lookup
from samfed_monai.core import tensor_file
from samfed_monai.core.errors import did_you_mean, refused
from samfed_monai.core.io import PRIVATE, PUBLIC, atomic_write, read_json, safe_load
from samfed_monai.core.model_file import BASE_SAM, USAGE, read_header, run_settings, tensor_names, usage_of
from samfed_monai.core.run_log import NO_ROUNDS, RESTORE_RESULTS, run_record
from samfed_monai.federation.run_folder import AT_SITES, CLIENTS, SERVER, STATES, WEIGHTS, RoundStore, state_file
from samfed_monai.federation.site_network import split_state
from samfed_monai.federation.site_worker import stored_states


def site_state(folder: str | Path, *, site: str, run: str, round: int) -> dict[str, Tensor]:
    """Loads a site's own values as of a round, or of the newest round before it if the site missed that one.

    Args:
        folder: ``<cache_dir>/state/<run>/<site>``.
        site: name of the site that the folder must belong to.
        run: identifier of the run that the folder must belong to; "" if the run's folder does not have it.
        round: of the run's selected model.

    Raises:
        Refused: the folder of another site or run, or one without values of a network.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.name != site or (run and folder.parent.name != run):
        expected = f"the folder of this run and site, state/{run or 'RUN'}/{site} in the site's cache_dir"
        raise refused("--states", found=str(folder), expected=expected)
    states = [path for number, path in stored_states(folder).items() if number <= round]
    weights = split_state(safe_load(states[-1]))[0] if states else {}
    if not weights:
        expected = f"a state with the site's own values, of round {round} or before"
        hint = "a site keeps the states of its newest three runs; repeat the run"
        raise refused("--states", found=f"none in {folder}", expected=expected, hint=hint)
    return weights


class RunModels:
    """Models of a finished run's selected round: for each site, the model with which the run itself scored it.

    A site's own model is, depending on what the run kept for it: its whole network; the shared weights with its
    personal ones; the model that the server tailored for it; or the server's model, if it keeps nothing of its own.
    Frozen tensors are not included: they are those of the SAM under the network.

    Args:
        folder: of the run.

    Raises:
        Refused: it is not a finished run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().resolve()
        if not (self.folder / "results.json").is_file():
            found, hint = "no results.json in it", "give a weights file, or wait until the run is finished"
            if not self.folder.is_dir():
                found, hint = ("a file" if self.folder.exists() else "no such folder"), "give the run's folder"
            raise refused(str(self.folder), found=found, expected="a finished run", hint=hint)
        results = read_json(self.folder / "results.json", hint=RESTORE_RESULTS)
        selected = lookup(results, ("models", str(lookup(results, ("selected",))), "round"))
        if type(selected) is not int or not all(isinstance(results.get(key, {}), dict) for key in ("sites", "unseen")):
            found, expected = "no round of the selected model, or no sites", "results of a finished run"
            raise refused(self.folder / "results.json", found, expected, RESTORE_RESULTS)
        #: The selected round, the sites that train, and the unseen ones.
        self.round: int = selected
        self.trained, self.unseen = sorted(results.get("sites", {})), sorted(results.get("unseen", {}))
        self.run = run_record(self.folder)
        #: The command that started the run, if it was one of this package's.
        self.command: str | None = results.get("command")
        self.store = RoundStore(self.folder / "rounds")
        self.store.run = str(self.run.get("run", ""))
        self._round_folder = self.store.path(self.round)
        self._record = self.store.record(self.round) if (self._round_folder / "round.json").is_file() else {}
        self._whole_networks = self.run.get("config", {}).get("client", {}).get("client_algorithm") is not None
        self._shared = tensor_names(self.server)
        tailored = set(tensor_names(self._round_folder / SERVER)) if not self._whole_networks else set()
        self._tailored = {
            site: str(index)
            for index, site in enumerate(self.trained)
            if self._shared and all(f"{index}.{name}" in tailored for name in self._shared)
        }

    @property
    def server(self) -> Path:
        """File of the server's model as the run stored it: shared names only, and no names if it has no network."""
        return self._round_folder / WEIGHTS

    @property
    def sites(self) -> list[str]:
        """Names of all sites of the run."""
        return sorted({*self.trained, *self.unseen})

    @property
    def personal(self) -> bool:
        """Whether sites have models of their own, here or at the sites."""
        return bool(self._tailored) or self._states_at_sites or any(self._has_state(site) for site in self.sites)

    @property
    def server_model_is_complete(self) -> bool:
        """Whether the server's model works without values of a site."""
        return bool(self._shared) and (self._whole_networks or not self.personal or bool(self._tailored))

    def write(self, path: str | Path, site: str = "", *, states: str | Path | None = None) -> Path:
        """Writes a model as one file; returns its path.

        Args:
            path: file to write, replaced atomically; a site's model is readable by the file's owner only. A safetensors
                file has a header that describes its network; a ``.pt`` file, ``models/model.pt`` of a bundle, is a
                state dict in half precision that loads with ``weights_only=True``.
            site: site of the model; "" is the server's.
            states: at a site of a run over FLARE, that site's folder of states.

        Raises:
            Refused: no such site; its own values are not here; the server has no model.
            Stopped: a damaged file.
        """
        tensors = self.tensors(site, states=states)
        with atomic_write(path, mode=PRIVATE if site else PUBLIC) as stream:
            if Path(path).suffix == ".pt":
                halves = {name: each.half() if each.is_floating_point() else each for name, each in tensors.items()}
                buffer = io.BytesIO()  # of a full disk, torch's own writer raises an error without a cause
                torch.save(halves, buffer)
                stream.write(buffer.getbuffer())
            else:
                tensor_file.write(stream, tensors, self.header(site))
        return Path(path)

    def tensors(self, site: str = "", *, states: str | Path | None = None) -> dict[str, Tensor]:
        """Tensors that :meth:`write` stores, by name."""
        self.require(site, states=states)
        if not site:
            return self.store.weights(self.round)
        site_tensors = self._site_tensors(site, states)
        if self._whole_networks and site_tensors:
            return site_tensors
        shared = self.store.weights(self.round)
        if site in self._tailored and states is None:
            index, state = self._tailored[site], self.store.server_state(self.round)
            shared = {name: state[f"{index}.{name}"] for name in shared}
        return {**shared, **site_tensors}

    @property
    def _flare_run(self) -> str:
        """Identifier under which sites keep their states of this run; "" if the folder does not have it."""
        run_id_file = self.folder / "flare.run.json"
        return str(read_json(run_id_file)["run"]) if run_id_file.is_file() else ""

    def require(self, site: str = "", *, states: str | Path | None = None) -> None:
        """Refuses arguments that :meth:`write` would refuse before it reads any tensor."""
        if site and site not in self.sites:
            hint = did_you_mean(site, self.sites)
            raise refused("--site", found=repr(site), expected=f"one of {self.sites}", hint=hint)
        keeps_own = bool(site) and (site in self.trained or not self._whole_networks)
        if keeps_own and (states is not None or self._has_state(site) or site in self._tailored):
            return
        if not self._round_folder.is_dir():
            raise refused(self._round_folder, "no such folder", "the round of the run's model", NO_ROUNDS)
        if keeps_own or not self.server_model_is_complete:
            self._require_local_states(site or "SITE")
        if not self.server_model_is_complete and (not site or not self._shared):
            found = "shared values only" if self._shared else "no network at the server"
            hint = f"choose the model of a site with --site: {', '.join(self.sites)}"
            raise refused(str(self.folder), found=found, expected="a model for all sites", hint=hint)

    def header(self, site: str = "") -> dict[str, str]:
        """Header of a model's file: how its network is built, its site, round and variant."""
        config = self.run.get("config", {})
        network = run_settings(config, site if site in self.trained else "")
        alike = network.get("network_name") == run_settings(config).get("network_name")
        size, classes = network.get("image_size"), json.loads(network.get("classes", "[]"))
        values = {
            **network,
            USAGE: usage_of(int(size), classes) if size else None,
            BASE_SAM: self.run.get("hashes", {}).get(BASE_SAM) if alike else None,
            "site": site,
            "round": self.round,
            "variant": config.get("variant"),
        }
        return {key: str(value) for key, value in values.items() if value not in (None, "")}

    @property
    def _states_at_sites(self) -> bool:
        """Whether the sites kept their own values."""
        return self._record.get(STATES) == AT_SITES and not self._tailored

    def _require_local_states(self, site: str) -> None:
        if not self._states_at_sites:
            return
        states = f"<cache_dir of samfed_site.json>/state/{self._flare_run or 'RUN'}/{site}"
        hint = f"at {site}, with a copy of this folder: samfed model {self.folder.name} --site {site} --states {states}"
        found = f"no such values: they never left the sites ({', '.join(self.trained)}); each has its own in {states}"
        raise refused(str(self.folder), found=found, expected="the sites' personal values", hint=hint)

    def _site_tensors(self, site: str, states: str | Path | None) -> dict[str, Tensor]:
        if states is not None:
            return site_state(states, site=site, run=self._flare_run, round=self.round)
        if not self._has_state(site):
            return {}
        path = self.store.intact(self.round, f"{CLIENTS}/{state_file(site)}", f"the state of {site}")
        return split_state(safe_load(path))[0]

    def _has_state(self, site: str) -> bool:
        names = tensor_names(self._round_folder / CLIENTS / state_file(site))
        return bool(split_state(dict.fromkeys(names, torch.empty(0)))[0])


_EXPECTED = "a bundle with weights, a finished run's folder, or a weights file"
_NO_WEIGHTS = {".onnx": "an ONNX file", ".pt2": "an exported program", ".ts": "a traced program"}


def starting_file(source: str | Path, where: str = "federate.json -> start_from") -> Path:
    """Finds the weights file of a bundle, of a finished run, or at a path.

    Args:
        source: name or folder of a bundle, folder of a finished run, or a weights file.
        where: the option that names it, for messages.

    Raises:
        Refused: there is none; a teacher's adapter or an exported file; a run without a model for all sites.
    """
    from samfed_monai.bundle.wiring import model_path

    path = Path(source).expanduser().resolve()
    if (path / "run.json").is_file():
        models = RunModels(path)
        models.tensors()  # raises if there is no model for all sites, or it is damaged
        return models.server
    if (path / "configs").is_dir() or (not path.exists() and str(source) in packaged_bundles()):
        bundle = find_bundle(source)
        path = Path(model_path(model=None, bundle_root=bundle))
        if not path.is_file():
            hint = "give a finished run or a weights file"
            raise refused(where, f"{bundle.name}, a bundle without weights", _EXPECTED, hint)
    if not path.is_file():
        found = "a folder of another kind" if path.is_dir() else "which does not exist"
        raise refused(where, f"{str(source)!r}, {found}", _EXPECTED, "check the path")
    kind = _NO_WEIGHTS.get(path.suffix.lower(), "a teacher's adapter" if "adapter" in read_header(path) else "")
    if kind:
        hint = "use --adapter for an adapter" if "adapter" in kind else "give the weights that it was made from"
        raise refused(where, f"{path.name}, {kind}", _EXPECTED, hint)
    return path
