"""One federation, two ways: in one process and on a whole FLARE system of this machine.

The simulator's bits are compared in ``test_spy.py``.

Masks, and classes in compressed differences, run in one process and *carried* (:mod:`tests.flare.carried`): by all of
our part of FLARE, and real processes at the sites. What FLARE itself adds, the bytes of a message from here to there,
is the same for all.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.cli.main import main
from samfed_monai.core.io import read_json
from samfed_monai.data import DataList
from samfed_monai.data.synthetic import CLASSES
from samfed_monai.results import validate_results
from tests.flare.carried import hashes, in_both

pytestmark = pytest.mark.slow

#: What a round does with its weights takes longer than its steps.
SMALL_NETWORK = {"network_name": "basic_unet", "network_def#features": [8, 8, 8, 8, 8, 8]}
SHORT = {"rounds": 2, "image_size": 32, "batch_size": 2, "local_steps": 2, "warm_start_steps": 2, "amp": False}
OPTIONS = {**SHORT, **SMALL_NETWORK}
#: Of ``two_sites``, which has less than five of a kind.
FEW_IMAGES = {"privacy#least_images": 1}


def words(folder: Path, output: Path, **options: Any) -> list[str]:
    given = {**OPTIONS, "overlays": False, **options}
    pairs = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    data = ["--datalist", str(folder / "list.json"), "--data-root", str(folder)]
    return ["samfed_skin", *data, "--output-dir", str(output), *pairs]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_weights_are_equal_in_one_process_and_on_flare_poc(two_sites, tmp_path):
    local, poc = tmp_path / "local", tmp_path / "poc"
    options = {"variant": "no_sam", **OPTIONS, **FEW_IMAGES, "rounds": 1}
    assert main(["federate", *words(two_sites, local, **options)]) == 0
    on_flare = ["--threads", "1", "--stop-after", "240", "--port", str(free_port())]
    assert main(["flare", "poc", *words(two_sites, poc, **options), *on_flare]) == 0
    assert list(hashes(local)) == ["000"]
    assert hashes(local) == hashes(poc)
    scores = [read_json(run / "results.json")["models"]["last"] for run in (local, poc)]
    assert scores[0]["sites"] == scores[1]["sites"]
    assert validate_results(read_json(poc / "results.json")) == []
    assert (poc / "report.html").is_file()
    assert len(list((poc / "evaluation" / "best" / "site-2" / "test" / "masks").iterdir())) == 1
    lists = [DataList.load(path) for path in sorted(tmp_path.glob("poc/**/*.list.json"))]
    assert lists == [], "what was made for the sites is removed"


def test_secure_aggregation_is_equal_in_one_process_and_carried(three_sites, tmp_path):
    """Masks are drawn anew in each, and leave no trace: the sum is of whole numbers."""
    pytest.importorskip("cryptography", reason="keys and ciphers are an extra")
    masked = {"privacy#secure_aggregation": {"threshold": 3}}
    _, carried = in_both(three_sites, tmp_path, {**OPTIONS, "variant": "no_sam", **masked})
    assert read_json(carried / "results.json")["privacy"]["secure_aggregation"]["threshold"] == 3
    (audit,) = carried.glob("**/sites/site-2/audit.jsonl")
    assert audit.read_text().count('"outcome": "masked"') == 2


def test_compressed_classes_are_equal_in_one_process_and_carried(organs, tmp_path):
    runs = in_both(organs, tmp_path, {**OPTIONS, "variant": "no_sam", "classes": list(CLASSES), "compression": 2})
    scores = [read_json(run / "results.json")["models"]["last"]["sites"] for run in runs]
    assert scores[0] == scores[1]
    assert list(scores[1]["mr"]["test"]["classes"]) == list(CLASSES)
    sites = [read_json(run / "rounds" / "001" / "round.json")["sites"] for run in runs]
    bytes_of_sites = [[(each["up_bytes"], each["down_bytes"]) for each in records.values()] for records in sites]
    for here, there in zip(*bytes_of_sites, strict=True):
        assert here == pytest.approx(there, abs=64), "but for digits of seconds"
    whole = (runs[0] / "rounds" / "001" / "global.safetensors").stat().st_size
    assert max(sum(bytes_of_sites[1], ())) < 0.6 * whole, "of a network so small, half of a message is names"
