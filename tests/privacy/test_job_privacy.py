"""Privacy settings in a whole job on two small synthetic sites."""

import logging
from pathlib import Path

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json
from samfed_monai.privacy import read_audit
from samfed_monai.privacy.audit import json_lines
from samfed_monai.reports import Report
from samfed_monai.results import validate_results
from tests.federation.test_job import job


def test_fault_59_withheld_scores_and_noise_are_reported(small_federation, tmp_path, caplog):
    """Two images in each split: no site sends a score, and the last round is used as the best."""
    noise = {"clip": 1.0, "noise_multiplier": 8.0, "delta": 1e-5}
    with caplog.at_level(logging.INFO, logger="samfed_monai.audit"):
        results = job(small_federation, tmp_path, privacy={"least_images": 3, "differential_privacy": noise}).run()
    assert validate_results(results) == []
    assert results["models"]["best"]["round"] == results["models"]["last"]["round"] == 1
    assert (results["average"]["test"]["n"], results["average"]["test"]["dice"]) == (0, None)
    assert results["worst"]["test"] is None
    account, reason = results["privacy"].pop("differential_privacy"), "withheld: fewer than 3 images"
    splits = [(site, split) for site in ("site-1", "site-2") for split in ("test", "validation")]
    assert results["privacy"] == {
        "least_images": 3,
        "withheld": [{"site": site, "split": split, "reason": reason} for site, split in splits],
        "central_differential_privacy": None,
        "secure_aggregation": None,
    }
    assert account["releases"] == {"site-1": 2, "site-2": 2}
    assert 0 < account["epsilon_per_round"] < account["epsilon_total"] == account["epsilon"]["site-1"] < 1
    page = Path(Report(run_folder=tmp_path, overlays=False).write()).read_text()
    assert reason in page
    assert f"{account['epsilon_total']:.2f}" in page
    audit = read_audit(tmp_path / "sites" / "site-2" / "audit.jsonl")
    trained = [(line["noise"]["release"], line["metrics"]) for line in audit if line["kind"] == "weights"]
    assert trained == [(release, ["iterations", "releases", "seconds"]) for release in (1, 2)]
    assert {line["n"] for line in audit if line["task"] == "evaluate"} == {0}
    entered = {line["run"] for line in json_lines(tmp_path / "cache/privacy/site-2.jsonl")}
    assert entered == {read_json(tmp_path / "run.json")["run"]}, "by which a run's noise counts without an audit file"
    logged = [record for record in caplog.records if record.name == "samfed_monai.audit"]
    files = [path.read_text() for path in tmp_path.glob("sites/*/audit.jsonl")]
    assert len(logged) == sum(text.count("\n") for text in files) > 8, "lines go to a logger of their own, too"


def test_fault_59_too_few_images_are_refused_before_start(small_federation, tmp_path):
    with pytest.raises(Refused, match=r"site-1: .*at least 5 training images") as error:
        job(small_federation, tmp_path, privacy=None).run()
    assert len(error.value.problems) == 2
    assert not (tmp_path / "rounds" / "000").exists()
