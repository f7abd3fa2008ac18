"""Two sites with image files of their own, each with its own list and folder, and a server that holds neither."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.data import DataList, Item, render_synthetic
from samfed_monai.federation import FederatedJob, LocalTransport, Places, Plan, Progress, SiteNode
from samfed_monai.federation.privacy import read_audit
from tests.federation.privacy.spy import Needles, leaks, pixel_needles, server_files, text_needles, wired

NAME, EXIF = "Jane Doe 1961-04-02", "canary 47.5596N 7.5886E"
SITES = ("site-1", "site-2")
CLIENT = {"image_size": 64, "batch_size": 2, "local_steps": 1, "network_name": "basic_unet", "amp": False}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sites; at the first, all files are named after a patient and carry a place in their EXIF."""
    folder = tmp_path_factory.mktemp("hospital")
    counts: dict[str, Any] = {"images_per_site": 2, "public": 2, "validation": 1, "test": 2, "size": (64, 64)}
    whole = render_synthetic(folder, sites=2, **counts)
    site = whole.sites["site-1"]
    parts = {str(split.value): [_planted(folder, item) for item in items] for split, items in site.splits()}
    whole.sites["site-1"] = dataclasses.replace(site, **parts)
    for name in SITES:
        whole.for_site(name).save(folder / f"{name}.json")
    whole.for_server().save(folder / "server.json")
    return folder


def _planted(folder: Path, item: Item) -> Item:
    old = folder / item.image
    new = old.with_name(f"{NAME} {old.name}")
    exif = Image.Exif()
    exif[0x010E] = EXIF  # ImageDescription
    with Image.open(old) as image:
        image.save(new, quality=95, exif=exif)
    assert EXIF.encode() in new.read_bytes()
    return dataclasses.replace(item, image=str(new.relative_to(folder)), sha256=sha256_file(new))


def needles(hospital: Path) -> Needles:
    images = [np.moveaxis(np.asarray(Image.open(path)), -1, 0) for path in _private(hospital)]
    return {
        "pixels": [form for image in images for form in pixel_needles(image)],
        "name": text_needles("Jane Doe", "1961-04-02"),
        "EXIF": text_needles(EXIF, "47.5596"),
        "folder": text_needles(str(hospital / "site-1")),
    }


def _private(hospital: Path) -> Iterator[Path]:
    for name in SITES:
        listed = DataList.load(hospital / f"{name}.json")
        yield from (hospital / item.image for site, _, item in listed.items() if site)


def federate(hospital: Path, output: Path, sent: list[bytes], **knobs: Any) -> dict[str, Any]:
    """The job of a server that has the public images only, with sites that make themselves ready from its plan."""

    def carried(plan: Plan) -> LocalTransport:
        nodes = {}
        for name in SITES:
            there = {"datalist": hospital / f"{name}.json", "output_dir": output / name}
            places = Places(bundle_root=find_bundle("samfed_skin"), data_root=hospital, **there)
            nodes[name] = wired(SiteNode(name, plan, places), sent)
        return LocalTransport(nodes, progress=Progress(show=False))

    settings: dict[str, Any] = {
        "bundle_root": find_bundle("samfed_skin"),
        "datalist": hospital / "server.json",
        "data_root": hospital,
        "output_dir": output / "server",
        "rounds": 1,
        "variant": "no_sam",
        "warm_start_steps": 1,
        "client": CLIENT,
        "sites": {name: {} for name in SITES},
        "privacy": {"least_images": 1},
    }
    return FederatedJob(**{**settings, **knobs}).run(carried)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "client", "exchange"),
    [
        ("no_sam", {}, "weights"),
        ("hssf", {"public_steps": 1, "mixed_networks": None, "server_network": "basic_unet"}, "predictions"),
    ],
)
def test_fault_55_58_60_no_pixel_name_or_place_of_a_file_reaches_the_server(
    variant, client, exchange, hospital, tmp_path, caplog
):
    sent: list[bytes] = []
    with caplog.at_level(logging.INFO):
        results = federate(hospital, tmp_path, sent, variant=variant, client={**CLIENT, **client})
    assert results["exchange"] == exchange
    assert results["average"]["test"]["n"] == 4
    told = [caplog.text.encode()]  # in this process, the server's log and the sites' are one: names would be the sites'
    held = server_files(tmp_path / "server", site_local=())
    assert {"results.json", "run.json", "round.json", "global.safetensors"} <= {path.name for path in held}
    assert leaks([*sent, *told], held, needles(hospital)) == []
    assert len(sent) >= 2 * 5  # check, prepare, train, validation and test at two sites
    at_site = leaks([], server_files(tmp_path / "site-1", site_local=()), needles(hospital))
    assert any(found.startswith("name in ") for found in at_site)  # its own tables have what the server has not


def test_fault_58_a_file_that_cannot_be_read_is_named_at_its_site_only(hospital, tmp_path, caplog):
    victim = next(_private(hospital))
    whole, sent = victim.read_bytes(), []
    victim.write_bytes(whole[: len(whole) // 2])
    try:
        with caplog.at_level(logging.ERROR), pytest.raises(Refused, match=r"site-1: .*this site's log names") as error:
            federate(hospital, tmp_path, sent)
    finally:
        victim.write_bytes(whole)
    assert NAME in caplog.text
    (line,) = read_audit(tmp_path / "site-1" / "sites" / "site-1" / "audit.jsonl")
    assert (line["task"], line["outcome"]) == ("check", "failed")
    files = server_files(tmp_path / "server", site_local=())
    assert leaks([*sent, str(error.value).encode()], files, needles(hospital)) == []
