"""One federation, two ways: in one process and on a whole FLARE system of this machine.

The simulator's bits are compared in ``test_spy.py``.

Masks and unlike networks run in one process and *carried* (:mod:`tests.flare.carried`): by all of our part of
FLARE, and real processes at the sites. What FLARE itself adds, the bytes of a message from here to there, is the same
for all.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.cli.main import main
from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, safe_load, write_json
from samfed_monai.data import DataList
from samfed_monai.data.synthetic_volumes import CLASSES, render_volumes
from samfed_monai.flare import local as one_machine
from samfed_monai.flare.job import planned
from samfed_monai.results import validate_results
from tests.flare.carried import hashes, in_both, run_carried

pytestmark = pytest.mark.slow

#: What a round does with its weights takes longer than its steps.
SMALL_NETWORK = {"network_name": "basic_unet", "network_def#features": [8, 8, 8, 8, 8, 8]}
OPTIONS = {
    "rounds": 3,
    "image_size": 32,
    "batch_size": 2,
    "local_steps": 2,
    **SMALL_NETWORK,
    "warm_start_steps": 2,
    "amp": False,
}
TWO_ROUNDS = {**OPTIONS, "rounds": 2}
#: Of ``two_sites``, which has less than five of a kind.
FEW_IMAGES = {"privacy#least_images": 1}


def words(folder: Path, output: Path, **options: Any) -> list[str]:
    given = {**OPTIONS, "overlays": False, **options}
    pairs = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    data = ["--datalist", str(folder / "list.json"), "--data-root", str(folder)]
    return ["samfed_skin", *data, "--output-dir", str(output), *pairs]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_averaged_networks_have_the_same_bits_in_one_process_and_on_a_whole_system(two_sites, tmp_path):
    local, poc = tmp_path / "local", tmp_path / "poc"
    options = {"variant": "no_sam", **TWO_ROUNDS, **FEW_IMAGES}
    assert main(["federate", *words(two_sites, local, **options)]) == 0
    on_flare = ["--threads", "1", "--stop-after", "240", "--port", str(free_port())]
    assert main(["flare", "poc", *words(two_sites, poc, **options), *on_flare]) == 0
    assert list(hashes(local)) == ["000", "001"]
    assert hashes(local) == hashes(poc)
    scores = [read_json(run / "results.json")["models"]["last"] for run in (local, poc)]
    assert scores[0]["sites"] == scores[1]["sites"]
    assert validate_results(read_json(poc / "results.json")) == []
    assert (poc / "report.html").is_file()
    assert len(list((poc / "evaluation" / "best" / "site-2" / "test" / "masks").iterdir())) == 1
    lists = [DataList.load(path) for path in sorted(tmp_path.glob("poc/**/*.list.json"))]
    assert lists == [], "what was made for the sites is removed"


def test_updates_added_under_masks_have_the_same_bits_in_one_process_and_carried(three_sites, tmp_path):
    """Masks are drawn anew in each, and leave no trace: the sum is of whole numbers."""
    pytest.importorskip("cryptography", reason="keys and ciphers are an extra")
    masked = {"privacy#secure_aggregation": {"threshold": 3}}
    _, carried = in_both(three_sites, tmp_path, {**TWO_ROUNDS, "variant": "no_sam", **masked})
    assert read_json(carried / "results.json")["privacy"]["secure_aggregation"]["threshold"] == 3
    (audit,) = carried.glob("**/sites/site-2/audit.jsonl")
    assert audit.read_text().count('"outcome": "masked"') == 2


def test_compressed_differences_have_the_same_bits_in_one_process_and_carried(three_sites, tmp_path):
    runs = in_both(three_sites, tmp_path, {**TWO_ROUNDS, "variant": "no_sam", "compression": 2})
    sites = [read_json(run / "rounds" / "001" / "round.json")["sites"] for run in runs]
    bytes_of_sites = [[(each["up_bytes"], each["down_bytes"]) for each in records.values()] for records in sites]
    for here, there in zip(*bytes_of_sites, strict=True):
        assert here == pytest.approx(there, abs=64), "but for digits of seconds"
    whole = (runs[0] / "rounds" / "001" / "global.safetensors").stat().st_size
    assert max(sum(bytes_of_sites[1], ())) < 0.6 * whole, "of a network so small, half of a message is names"


def test_two_classes_have_the_same_bits_in_one_process_and_carried(tmp_path):
    organs, slices = tmp_path / "organs", tmp_path / "slices"
    render_volumes(organs, volumes=3, public=2, size=(32, 32), depth=6)
    made = ["--slices", str(slices), "--public", "public", "--classes", ",".join(CLASSES), "--no-report"]
    made += ["--validation", "0.3", "--test", "0.3", "--output", str(slices / "list.json")]
    assert main(["prepare", "nifti", str(organs), *made]) == 0
    runs = in_both(slices, tmp_path, {**TWO_ROUNDS, "variant": "no_sam", "classes": list(CLASSES)})
    scores = [read_json(run / "results.json")["models"]["last"]["sites"] for run in runs]
    assert scores[0] == scores[1]
    assert list(scores[1]["mr"]["test"]["classes"]) == list(CLASSES)


def test_unlike_networks_have_the_same_bits_in_one_process_and_carried(three_sites, tmp_path):
    mixed = {"mixed_networks": ["basic_unet", "flexible_unet_resnet18"], "server_network": "basic_unet"}
    options = {name: value for name, value in TWO_ROUNDS.items() if name not in SMALL_NETWORK}
    options |= {"variant": "hssf", "public_steps": 1, **mixed}
    local, carried = in_both(three_sites, tmp_path, options)
    assert read_json(carried / "results.json")["exchange"] == "predictions"
    (state,) = carried.glob("cache/sites/site-2/state/*/site-2/001.safetensors")
    there, here = safe_load(state), safe_load(local / "rounds" / "001" / "clients" / "site-2.safetensors")
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in here), "a site's own network and its optimizer"


def test_a_list_or_bundle_that_differs_is_reported_before_round_0(three_sites, tmp_path, monkeypatch):
    write = one_machine.write_json
    shutil.copytree(find_bundle("samfed_skin"), tmp_path / "samfed_skin")
    train = tmp_path / "samfed_skin" / "configs" / "train.json"
    config = read_json(train)
    write_json(train, {**config, "learning_rate": 2 * config["learning_rate"]})
    divide = DataList.for_site

    def another_list(self: DataList, site: str) -> DataList:
        part = divide(self, site)
        return DataList(part.name, part.public[::-1], part.sites) if site == "site-2" else part

    def another_bundle(path: Path, content: dict[str, Any]) -> None:
        write(path, {**content, "bundle_root": str(tmp_path / "samfed_skin")} if path.stem == "site-3" else content)

    monkeypatch.setattr(one_machine.DataList, "for_site", another_list)
    monkeypatch.setattr(one_machine, "write_json", another_bundle)
    places = {"datalist": str(three_sites / "list.json"), "data_root": str(three_sites)}
    places["output_dir"] = str(tmp_path / "run")
    run = planned(find_bundle("samfed_skin"), {**TWO_ROUNDS, **places, "variant": "no_sam"}, here=False)
    with pytest.raises(Refused) as refused:
        run_carried(run, tmp_path / "run", tmp_path)
    message = str(refused.value)
    assert "site-2: expected a site that can take part, found public part of the data list" in message
    assert "copy the server's list" in message
    assert "site-3: expected a site that can take part, found plan" in message
    assert "site-1:" not in message
    assert not (tmp_path / "run" / "rounds").exists()
