"""What differs at a site, over the FLARE path without FLARE: real transport, workers and checks, before round 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samfed_monai import __version__
from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import canonical_hash, sha256_bytes, sha256_file, write_json
from samfed_monai.data import DataList
from samfed_monai.federation import FederatedJob, Places, Plan, preparation
from samfed_monai.federation.child_process import Answer
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.federation.wire_transport import Request, WireTransport
from samfed_monai.flare.local import write_site_files
from samfed_monai.flare.site_file import read_site_file
from samfed_monai.flare.worker import answering, make_federated_site
from samfed_monai.networks.sam import adapter as adapters
from samfed_monai.networks.sam.adapter import Adapt
from tests.federation.test_job import CLIENT
from tests.federation.test_site_teacher import Half
from tests.federation.toys import QUIET

SITES = ("site-1", "site-2")


class Hospitals:
    """The workers of both sites in this process, each with its own files; ``at`` is who works now, or the server."""

    def __init__(self, federation: Path, folder: Path, **knobs: Any) -> None:
        self.federation, self.folder, self.at = federation, folder, "server"
        self.listed = DataList.load(federation / "list.json")
        given = {"rounds": 1, "variant": "no_sam", "warm_start_steps": 2, "train": CLIENT, **knobs}
        places = {"bundle_root": find_bundle("samfed_skin"), "data_root": federation, "output_dir": folder / "run"}
        self.places = Places(datalist=federation / "list.json", **places)
        privacy = {"least_images": 1}
        self.job = FederatedJob(datalist=federation / "list.json", privacy=privacy, **places, **given)

    def transport(self, plan: Plan) -> WireTransport:
        write_json(self.folder / "samfed_plan.json", plan.to_json())
        files = write_site_files(self.folder / "sites", self.listed, self.places, SITES)
        self.workers = {site: self._worker(site, files) for site in SITES}
        return WireTransport(self, SITES, run="ab", progress=QUIET)

    def _worker(self, site: str, files: Path) -> Callable[[dict[str, Any], bytes], Answer]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SAMFED_SITE", str(files))
            own = read_site_file(files, site)
        settings = {"site": site, "plan": str(self.folder / "samfed_plan.json")}
        settings |= {"run_folder": str(self.folder / site), "state": str(self.folder / "state" / site)}
        return answering(settings, lambda _: make_federated_site(settings, own))

    def send(self, request: Request) -> None:
        self.at = request.site
        try:
            head, content = self.workers[request.site]({"task": request.task}, request.payload)
        finally:
            self.at = "server"
        request.answered(request.site, head.get("failure") or content)

    def cancel(self, ticket: Any) -> bool:
        return False

    def check_stop(self) -> None:
        return None

    def refusal(self) -> str:
        """What the run is refused with, before anything was trained."""
        with pytest.raises(Refused) as caught:
            self.job.run(self.transport)
        assert not (self.folder / "run" / "rounds").exists()
        return str(caught.value)


def test_a_site_with_another_version_is_refused_with_both_versions_and_what_to_do(two_sites, tmp_path, monkeypatch):
    hospitals = Hospitals(two_sites, tmp_path)
    shared = preparation.shared_fingerprints

    def there(*given: Any) -> dict[str, str]:
        return shared(*given) | ({"version": "0.0.9"} if hospitals.at == "site-2" else {})

    monkeypatch.setattr(preparation, "shared_fingerprints", there)
    told = hospitals.refusal()
    hint = "install the same version at both ends"
    assert (
        f"site-2: expected a site that can take part, found samfed-monai: expected the server's {__version__}" in told
    )
    assert f"found 0.0.9; {hint}" in told
    assert "site-1" not in told


def test_a_site_whose_sam_is_not_the_adapters_is_refused_with_both_hashes(two_sites, tmp_path, monkeypatch):
    (tmp_path / "sam.pt").write_bytes(b"sam")
    (tmp_path / "other.pt").write_bytes(b"another sam")
    (tmp_path / "adapter.safetensors").write_bytes(b"adapter")
    hospitals = Hospitals(two_sites, tmp_path, variant="samfed", adapter=tmp_path / "adapter.safetensors")

    def load(**given: Any) -> Half:
        teacher = Half(canonical_hash(sha256_file(given["adapter"])))
        teacher.size, teacher.views = 64, 1  # type: ignore[attr-defined]
        return teacher

    def checkpoint(self: TeacherStage) -> Path:
        return tmp_path / ("other.pt" if hospitals.at == "site-2" else "sam.pt")

    header = SimpleNamespace(adapt=Adapt.LORA, base_sha256=sha256_bytes(b"sam"))
    monkeypatch.setattr("samfed_monai.networks.sam.teacher.Teacher.load", load)
    monkeypatch.setattr(adapters, "read_header", lambda path: header)
    monkeypatch.setattr(TeacherStage, "checkpoint", checkpoint)
    told = hospitals.refusal()
    assert "site-2" in told
    assert f"SAM checkpoint: expected the server's SAM, {sha256_bytes(b'sam')}, found SHA-256" in told
    assert sha256_bytes(b"another sam") in told
    assert "give this site the server's checkpoint of vit_t" in told
    assert str(tmp_path) not in told, "no path of a site travels"
