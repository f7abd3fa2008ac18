"""What a run would refuse of its settings is told before there is an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.data import DataList, render_synthetic
from samfed_monai.federation.job import check_job


def told(datalist: DataList | None = None, **overrides) -> list[str]:
    return [str(problem) for problem in check_job(find_bundle("samfed_skin"), overrides, datalist)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> DataList:
    counts = {"images_per_site": 1, "public": 1, "validation": 1, "test": 1}
    return render_synthetic(tmp_path_factory.mktemp("images"), sites=2, size=(64, 64), **counts)


def test_a_good_bundle_has_nothing_to_refuse_with_a_list_and_without(small):
    assert told() == []
    assert told(small, variant="heterogeneous") == []
    assert told(variant="pfedsam") == [], "SAM itself is not built: its weights need not be here"


def test_a_plan_out_of_range():
    assert told(rounds=0, seed=-1) == [
        "plan -> rounds: expected at least 1, found 0",
        "plan -> seed: expected at least 0, found -1",
    ]


def test_privacy_networks_and_teacher_are_told_together():
    found = told(
        privacy={"least_image": 3},
        teacher={"base": "mobile_sam", "size": 300, "lora_targets": "q", "peak": 0.7},
        client={"teacher_adapt": "LoRA", "network_name": "deeplabv3_resnet18"},
    )
    starts = (
        "federate.json -> privacy: expected one of least_images",
        "network of a site: expected one of",
        "teacher -> adapt: expected one of",
        "teacher -> base: expected one of",
        "teacher -> size: expected a multiple of 16 from 64 to 1024 pixels, found 300; the nearest is 304",
        "teacher -> lora_targets: expected one of",
        "teacher -> peak: expected a number above 0",
    )
    assert all(any(problem.startswith(start) for problem in found) for start in starts), found


def test_what_a_network_does_not_take():
    [height, width, batch] = told(client={"network_name": "deeplabv3plus_resnet18", "image_size": 100, "batch_size": 1})
    assert height.endswith("set image_size to 96 or 112")
    assert "image width" in width
    assert "batch_size: expected at least 2" in batch


def test_names_that_the_list_does_not_have(small):
    [unseen] = told(small, unseen=["site-9"])
    assert unseen.startswith("federate.json -> unseen: expected a site of the list, one of ['site-1', 'site-2']")
    [site] = told(small, sites={"site-9": {}})
    assert site.startswith("federate.json -> sites#site-9: expected one of")


def test_too_few_sites_for_the_quorum(small):
    [quorum] = told(small, **{"job#quorum": 3})
    assert quorum == "quorum: expected a number from 1 to 2, the number of sites, found 3"
    [sites] = told(small, unseen=["site-2"])
    assert sites.startswith("sites: expected at least 2")


def test_without_a_teacher_its_settings_are_not_looked_at():
    assert told(client={"teacher_adapt": "off"}, variant="dp_only", teacher={"peak": 0.7}) == []


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert told(output_dir=str(tmp_path / "run")) == []
    assert list(tmp_path.iterdir()) == []
