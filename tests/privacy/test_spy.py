"""A curious server: every byte that two sites send and every file at the server is searched for private data."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.fl.utils.exchange_object import ExchangeObject
from PIL import Image

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.data import DataList, Item, render_synthetic
from samfed_monai.federation import LocalTransport, Paths, Plan, Progress, RunFolder, Site
from samfed_monai.federation.site import ClientAlgoSite
from samfed_monai.privacy import Privacy, ReleaseFilter, read_audit
from samfed_monai.privacy.allowed import allowed_of
from samfed_monai.protocol import Kind, Message, MessageRefused, Task, to_bytes
from tests.federation.test_job import job
from tests.federation.toys import FilteredSite, ToyImages, controller, toy_algo, toy_weights
from tests.federation.unlike import unlike_algo
from tests.privacy.spy import Needles, leaks, pixel_needles, server_files, text_needles, wired

SITES = ("site-1", "site-2")
#: The toy bundle's trainer raises a FileNotFoundError with this path on request.
NAMES = text_needles("Jane Doe", "lesion.png", "/secret")


def toy_needles() -> dict[str, list[bytes]]:
    """Every private image of the toy sites, their ids, and the file that an error names."""
    splits = (("unlabelled", 6), ("validation", 3), ("test", 2))
    items = [item for site in SITES for split, count in splits for item in ToyImages(site, split, count).items]
    return {
        "pixels": [form for item in items for form in pixel_needles(item["image"])],
        "ids": text_needles(*(str(item["id"]) for item in items)),
        "names": NAMES,
    }


def worker(site: str, client: Any, folder: Path, sent: list[bytes]) -> ClientAlgoSite:
    privacy, own = Privacy(least_images=2), folder / "sites" / site
    release = ReleaseFilter(site, allowed=lambda: allowed_of(client), privacy=privacy, folder=own)
    return wired(FilteredSite(site, client, release), sent)


def test_spy_finds_packed_leaks(tmp_path):
    image = ToyImages("site-1", "unlabelled", 1).items[0]["image"]
    needles = {"pixels": pixel_needles(image), "names": NAMES}
    message = Message(Kind.WEIGHTS, "site-1", 0, 1, tensors={"w": torch.as_tensor(image)})
    bits = (torch.as_tensor(image)[None] * 255).round().to(torch.uint8)
    masks = Message(Kind.SOFT_MASKS, "site-1", 0, 1, tensors={"masks": bits})
    Image.fromarray(np.moveaxis(bits[0].numpy(), 0, -1)).save(tmp_path / "overlay.png")
    (tmp_path / "log.txt.z").write_bytes(zlib.compress(b"could not read /data/Jane Doe.png"))
    found = leaks([b"nothing", to_bytes(message), to_bytes(masks)], sorted(tmp_path.iterdir()), needles)
    assert found == ["pixels in message 1", "pixels in message 2", "names in log.txt.z", "pixels in overlay.png"]


def test_fault_55_58_weights_exchange_leaks_no_private_data(tmp_path, caplog):
    sent: list[bytes] = []
    clients = {site: toy_algo(site, output_dir=tmp_path / "evaluation") for site in ("site-1", "site-3")}
    clients["site-2"] = toy_algo("site-2", output_dir=tmp_path / "evaluation", bundle={"fail_in_round": 0})
    workers = {site: worker(site, client, tmp_path, sent) for site, client in clients.items()}
    with caplog.at_level(logging.ERROR), RunFolder(tmp_path).open({"rounds": 1}, seeds={"seed": 0}) as folder:
        result = controller(folder, workers, start=toy_weights(), rounds=1).run()
    reason = result.records[0]["sites"]["site-2"]["reason"]
    assert reason.startswith("FileNotFoundError (No such file or directory) in ")
    assert "Jane Doe" in caplog.text  # the site's own log has everything
    models = len({model["round"] for model in result.models.values()})
    assert len(sent) == 2 * 3 + models * 3  # training and validation, then each model on test images
    assert leaks(sent, server_files(tmp_path), toy_needles()) == []
    assert len(server_files(tmp_path)) > 4


def private_masks(count: int) -> torch.Tensor:
    """Soft masks of a site's own images, of the size of those of the public set."""
    return torch.arange(count * 64, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(count, 1, 8, 8)


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({"image": torch.as_tensor(ToyImages("site-1", "unlabelled", 1).items[0]["image"])}, Kind.WEIGHTS),
        ({"masks": private_masks(6)}, Kind.SOFT_MASKS),  # as many, and as large, as those of the public set
        ({"masks": private_masks(7)}, Kind.SOFT_MASKS),
    ],
)
def test_fault_55_private_images_and_masks_are_blocked(tensors, kind, tmp_path, monkeypatch):
    """Of a client that answers with something else than it was asked for."""
    client, sent = unlike_algo("site-1"), list[bytes]()
    get_weights = client.get_weights

    def leaking(extra: dict[str, Any] | None = None) -> ExchangeObject:
        answer = get_weights(extra)
        answer.weights = {**(answer.weights or {}), **tensors}
        answer["samfed"] = {**answer["samfed"], "kind": kind.value}
        return answer

    monkeypatch.setattr(client, "get_weights", leaking)
    received = Message(Kind.METRICS, "site-1", 0, 1, extra={"purpose": "distil"})
    needles = {**toy_needles(), "soft masks": [private_masks(2).numpy().tobytes()[:32]]}
    with pytest.raises(MessageRefused):
        worker("site-1", client, tmp_path, sent).answer(Task.TRAIN, received)
    assert leaks(sent, server_files(tmp_path), needles) == []
    wired(ClientAlgoSite("site-1", client), sent).answer(Task.TRAIN, received)
    assert leaks(sent, [], needles) == [f"{'pixels' if 'image' in tensors else 'soft masks'} in message 1"]


NAME, EXIF = "Jane Doe 1961-04-02", "canary 47.5596N 7.5886E"
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
    old, exif = folder / item.image, Image.Exif()
    new = old.with_name(f"{NAME} {old.name}")
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


def federate(hospital: Path, output: Path, sent: list[bytes], **options: Any) -> dict[str, Any]:
    """The job of a server that has the public images only, with sites that make themselves ready from its plan."""

    def carried(plan: Plan) -> LocalTransport:
        nodes = {}
        for name in SITES:
            there = {"datalist": hospital / f"{name}.json", "output_dir": output / name}
            paths = Paths(bundle_root=find_bundle("samfed_skin"), data_root=hospital, **there)
            nodes[name] = wired(Site(name, plan, paths), sent)
        return LocalTransport(nodes, progress=Progress(show=False))

    settings = {"rounds": 1, "warm_start_steps": 1, "train": CLIENT, "sites": {name: {} for name in SITES}}
    settings |= {"datalist": hospital / "server.json", **options}
    return job(hospital, output / "server", **settings).run(carried)


@pytest.mark.slow
def test_fault_55_58_60_predictions_leak_no_private_data(hospital, tmp_path, caplog):
    """Where weights are exchanged, ``tests/flare/test_spy.py`` looks."""
    client = {**CLIENT, "public_steps": 1, "mixed_networks": None, "server_network": "basic_unet"}
    sent: list[bytes] = []
    with caplog.at_level(logging.INFO):
        results = federate(hospital, tmp_path, sent, variant="hssf", train=client)
    assert results["exchange"] == "predictions"
    assert results["average"]["test"]["n"] == 4
    logs = [caplog.text.encode()]  # in this process, the server's log and the sites' are one: names would be the sites'
    held = server_files(tmp_path / "server", site_local=())
    assert {"results.json", "run.json", "round.json", "global.safetensors"} <= {path.name for path in held}
    assert leaks([*sent, *logs], held, needles(hospital)) == []
    assert len(sent) >= 2 * 5  # check, prepare, train, validation and test at two sites
    at_site = leaks([], server_files(tmp_path / "site-1", site_local=()), needles(hospital))
    assert any(found.startswith("name in ") for found in at_site)  # its own tables have what the server has not


def test_fault_58_unreadable_file_is_named_only_at_site(hospital, tmp_path, caplog):
    victim = next(_private(hospital))
    whole, sent = victim.read_bytes(), []
    victim.write_bytes(whole[: len(whole) // 2])
    try:
        with caplog.at_level(logging.ERROR), pytest.raises(Refused, match=r"site-1: .*see this site's log") as error:
            federate(hospital, tmp_path, sent)
    finally:
        victim.write_bytes(whole)
    assert NAME in caplog.text
    (line,) = read_audit(tmp_path / "site-1" / "sites" / "site-1" / "audit.jsonl")
    assert (line["task"], line["outcome"]) == ("check", "failed")
    # server and sites are one process here, and run.log is that process's: readable by its owner alone
    assert (tmp_path / "server" / "run.log").stat().st_mode & 0o777 == 0o600
    files = server_files(tmp_path / "server", site_local=("run.log",))
    assert leaks([*sent, str(error.value).encode()], files, needles(hospital)) == []
