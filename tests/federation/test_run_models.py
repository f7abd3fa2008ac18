"""Which model a finished run gives to whom, on folders of a few numbers."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from samfed_monai.core import tensor_file
from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.core.io import safe_load, save_tensors
from samfed_monai.core.model_file import read_header, usage_of
from samfed_monai.federation import RoundStore
from samfed_monai.federation.run_models import RunModels
from tests.federation.toys import RECORD

SHARED = {"body.a": torch.tensor([1.0, 2.0])}
NETWORK = {"network_name": "basic_unet", "image_size": 64}


def own(value: float, name: str = "head.b") -> dict[str, Tensor]:
    """A site's state: what is its own, and a moment of its optimizer."""
    return {f"network.{name}": torch.tensor([value]), "optimizer.0.exp_avg": torch.zeros(1)}


def finished(
    path: Path,
    states: dict[str, dict[str, Tensor]] | None,
    *,
    shared: dict[str, Tensor] = SHARED,
    server: dict[str, Tensor] | None = None,
    unseen: tuple[str, ...] = (),
    **client: Any,
) -> Path:
    """A run of two rounds whose second is selected; ``states`` as its sites left them there, ``None`` let go."""

    def save(folder: Path) -> dict[str, str]:
        digests = {}
        for site, state in (states or {}).items():
            with (folder / f"{site}.safetensors").open("wb") as stream:
                digests[f"{site}.safetensors"] = tensor_file.write_state(stream, state)
        return digests

    store = RoundStore(path / "rounds")
    store.write(0, {name: tensor * 0 for name, tensor in shared.items()}, RECORD)
    store.write(1, shared, RECORD, None if states is None else save, server)
    store.record_states_at_sites()
    sites = {"a": {}, "b": {}}
    results = {"selected": "best", "models": {"best": {"round": 1}, "last": {"round": 0}}, "sites": sites}
    (path / "results.json").write_text(json.dumps({**results, "unseen": {name: {} for name in unseen}}))
    config = {"variant": "mine", "client": {**NETWORK, **client}, "sites": {"b": {"network": "other"}}}
    (path / "run.json").write_text(json.dumps({"config": config, "hashes": {"base_sam": "f" * 64}}))
    return path


def values(models: RunModels, site: str = "", **given: Any) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in sorted(models.tensors(site, **given).items())}


def test_shared_network_gives_server_model_to_all_sites(tmp_path):
    models = RunModels(finished(tmp_path, None, unseen=("c",)))
    assert (models.round, models.sites) == (1, ["a", "b", "c"])
    assert (models.personal, models.server_model_is_complete) == (False, True)
    assert values(models) == values(models, "a") == values(models, "c") == {"body.a": [1.0, 2.0]}


def test_personal_values_are_combined_with_shared_values(tmp_path):
    models = RunModels(finished(tmp_path, {"a": own(3.0), "b": own(4.0), "c": own(5.0)}, unseen=("c",)))
    assert models.personal
    assert [values(models, site)["head.b"] for site in "abc"] == [[3.0], [4.0], [5.0]]
    assert values(models, "a") == {"body.a": [1.0, 2.0], "head.b": [3.0]}
    with pytest.raises(Refused, match=r"a model for all sites, found shared values only; .*with --site: a, b, c"):
        models.tensors()


def test_own_network_of_site_is_returned_whole(tmp_path):
    states = {"a": own(3.0, "body.a"), "b": own(4.0, "stem")}
    models = RunModels(finished(tmp_path / "both", states, client_algorithm={"_target_": "x"}, unseen=("c",)))
    assert [values(models, site) for site in ("a", "b")] == [{"body.a": [3.0]}, {"stem": [4.0]}]
    assert values(models) == values(models, "c") == {"body.a": [1.0, 2.0]}, "who takes no part has the server's"
    assert models.header("b")["network_name"] == "other"
    assert "base_sam" not in models.header("b"), "the hash is that of the server's network"
    assert models.header("a")["base_sam"] == "f" * 64
    alone = RunModels(finished(tmp_path / "alone", states, shared={}, client_algorithm={"_target_": "x"}))
    assert values(alone, "a") == {"body.a": [3.0]}
    with pytest.raises(Refused, match=r"a model for all sites, found no network at the server; choose .* --site: a, b"):
        alone.tensors()


def test_server_tailored_model_is_found_in_server_state(tmp_path):
    server = {"0.body.a": torch.tensor([5.0, 6.0]), "1.body.a": torch.tensor([7.0, 8.0])}
    models = RunModels(finished(tmp_path, {}, server=server))
    assert models.personal
    assert [values(models, site)["body.a"] for site in ("a", "b", "")] == [[5.0, 6.0], [7.0, 8.0], [1.0, 2.0]]


def test_file_header_describes_network_without_paths(tmp_path):
    declared = {"_target_": "samfed_monai.networks.client_network", "name": "@network_name", "experts": 4}
    declared |= {"weights": "/secret/w.pt", "checkpoint": "/secret/sam.pt", "base": "$1", "sizes": [1, 2]}
    run = finished(tmp_path / "run", {"a": own(3.0), "b": own(4.0)}, network_name="sam_vit_t", network_def=declared)
    path = RunModels(run).write(tmp_path / "a.safetensors", "a")
    assert values(RunModels(run), "a") == {name: tensor.tolist() for name, tensor in sorted(safe_load(path).items())}
    assert read_header(path) == {
        "network_name": "sam_vit_t",
        "image_size": "64",
        "network_def": '{"experts": 4, "sizes": [1, 2]}',
        "usage": usage_of(64),
        "base_sam": "f" * 64,
        "site": "a",
        "round": "1",
        "variant": "mine",
    }
    assert path.stat().st_mode & 0o777 == 0o600, "personal values are their owner's to read"


@pytest.fixture
def on_flare(tmp_path) -> Path:
    run = finished(tmp_path / "run", {})
    (run / "flare.run.json").write_text('{"run": "12ab"}')
    (run / "rounds" / "001" / "clients").rmdir()  # as in a copy of a folder: empty folders get lost
    return run


def test_site_state_of_selected_or_earlier_round_is_used(on_flare, tmp_path):
    home, models = tmp_path / "cache" / "state" / "12ab" / "a", RunModels(on_flare)
    save_tensors(home / "-01.safetensors", own(9.0))
    (home / "notes.safetensors").write_bytes(b"")  # not a round
    assert values(models, "a", states=home)["head.b"] == [9.0], "one that has not trained yet began with it"
    for number, value in (("000", 3.0), ("002", 8.0)):
        save_tensors(home / f"{number}.safetensors", own(value))
    assert values(models, "a", states=home) == {"body.a": [1.0, 2.0], "head.b": [3.0]}
    for other in (home.parent / "b", tmp_path / "cache" / "state" / "34cd" / "a"):
        with pytest.raises(Refused, match="expected the folder of this run and site, state/12ab/a"):
            models.tensors("a", states=other)


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        work()
    (problem,) = caught.value.problems
    return str(problem)


def test_refusal_messages(on_flare, tmp_path):
    models = RunModels(on_flare)
    assert refusal(lambda: models.tensors("aa")) == "--site: expected one of ['a', 'b'], found 'aa'; did you mean 'a'?"
    for site, named in (("a", "a"), ("", "SITE")):
        place = f"<cache_dir of samfed_site.json>/state/12ab/{named}"
        assert refusal(lambda site=site: models.tensors(site)) == (
            f"{on_flare}: expected the sites' personal values, found no such values: they never left the sites (a, b); "
            f"each has its own in {place}; at {named}, with a copy of this folder: "
            f"samfed model run --site {named} --states {place}"
        )
    home = tmp_path / "cache" / "state" / "12ab" / "a"
    assert refusal(lambda: models.tensors("a", states=home)) == (
        f"--states: expected a state with the site's own values, of round 1 or before, found none in {home}; "
        "a site keeps the states of its newest three runs; repeat the run"
    )
    for name, found in {
        "nothing": "no such folder; give the run's folder",
        "run/run.json": "a file; give the run's folder",
        ".": "no results.json in it; give a weights file, or wait until the run is finished",
    }.items():
        expected = f"{tmp_path / name}: expected a finished run, found {found}"
        assert refusal(lambda name=name: RunModels(tmp_path / name)) == expected
    shutil.rmtree(on_flare / "rounds")
    assert "rounds/001: expected the round of the run's model, found no" in refusal(RunModels(on_flare).tensors)
    (on_flare / "results.json").write_text("{")
    assert "; run the command of this run again (run.log shows it): no round" in refusal(lambda: RunModels(on_flare))


def test_pt_file_holds_half_precision_state_dict(tmp_path):
    shared = {"body.a": torch.tensor([1.0, 2.0]), "body.count": torch.tensor(70_000)}
    path = RunModels(finished(tmp_path / "run", None, shared=shared)).write(tmp_path / "models" / "model.pt")
    loaded = torch.load(path, weights_only=True)
    assert (loaded["body.a"].tolist(), loaded["body.a"].dtype) == ([1.0, 2.0], torch.float16)
    assert (loaded["body.count"].item(), loaded["body.count"].dtype) == (70_000, torch.int64)
    assert path.stat().st_mode & 0o777 == 0o644


class FullDisk(io.FileIO):
    """A file on a disk with room for 4 kB."""

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > 4096:
            raise OSError(28, "No space left on device")
        return super().write(content)


def test_fault_81_full_disk_is_reported_for_pt_file(tmp_path, monkeypatch):
    models = RunModels(finished(tmp_path / "run", None, shared={"body.a": torch.zeros(9_999)}))
    monkeypatch.setattr(os, "fdopen", FullDisk)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/model.pt'"):
        models.write(tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_folder_with_minimal_metadata_gives_server_model(tmp_path):
    run = finished(tmp_path / "run", None)
    (run / "results.json").write_text(json.dumps({"selected": "best", "models": {"best": {"round": 1}}}))
    (run / "run.json").write_text('{"run": "12ab"}')
    models = RunModels(run)
    assert models.store.run == "12ab", "rounds of another run are refused"
    assert (models.sites, values(models), models.header()) == ([], {"body.a": [1.0, 2.0]}, {"round": "1"})
    (run / "run.json").unlink()
    (run / "rounds" / "001" / "round.json").unlink()
    assert RunModels(run).header() == {"round": "1"}
    with pytest.raises(Stopped, match="the record of round 1 cannot be read"):
        RunModels(run).tensors()
