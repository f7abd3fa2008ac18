"""What a curious server could read: every byte that leaves two sites, and every file that lies at the server."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.fl.utils.exchange_object import ExchangeObject
from PIL import Image

from samfed_monai.federation import RunFolder
from samfed_monai.federation.privacy import Privacy, Release
from samfed_monai.federation.privacy.release import allowed_of, allowed_weights
from samfed_monai.federation.site import SiteWorker
from samfed_monai.networks.key_patterns import network_split
from samfed_monai.protocol import Envelope, Kind, MessageRefused, Task, to_bytes
from tests.federation.privacy.spy import leaks, pixel_needles, server_files, text_needles, wired
from tests.federation.toys import ToyImages, ToyNet, controller, toy_algo, toy_weights
from tests.federation.unlike import run_unlike, unlike_algo

SITES = ("site-1", "site-2")
#: The toy bundle's trainer raises a FileNotFoundError with this path when it is told to.
NAMES = text_needles("Jane Doe", "lesion.png", "/secret")


def planted() -> dict[str, list[bytes]]:
    """Every private image of the toy sites, their ids, and the file that an error names."""
    splits = (("unlabelled", 6), ("validation", 3), ("test", 2))
    items = [item for site in SITES for split, count in splits for item in ToyImages(site, split, count).items]
    return {
        "pixels": [form for item in items for form in pixel_needles(item["image"])],
        "ids": text_needles(*(str(item["id"]) for item in items)),
        "names": NAMES,
    }


def worker(site: str, client: Any, folder: Path, sent: list[bytes], **settings: Any) -> SiteWorker:
    release = Release(
        site,
        allowed=lambda: allowed_of(client),
        privacy=Privacy(least_images=settings.pop("least_images", 2)),
        folder=folder / "sites" / site,
        **settings,
    )
    return wired(SiteWorker(site, client, release), sent)


def test_the_spy_finds_what_is_there_whatever_it_is_packed_in(tmp_path):
    image = ToyImages("site-1", "unlabelled", 1).items[0]["image"]
    needles = {"pixels": pixel_needles(image), "names": NAMES}
    message = Envelope(Kind.WEIGHTS, "site-1", 0, 1, tensors={"w": torch.as_tensor(image)})
    bits = (torch.as_tensor(image)[None] * 255).round().to(torch.uint8)
    masks = Envelope(Kind.SOFT_MASKS, "site-1", 0, 1, tensors={"masks": bits})
    Image.fromarray(np.moveaxis(bits[0].numpy(), 0, -1)).save(tmp_path / "overlay.png")
    (tmp_path / "log.txt.z").write_bytes(zlib.compress(b"could not read /data/Jane Doe.png"))
    found = leaks([b"nothing", to_bytes(message), to_bytes(masks)], sorted(tmp_path.iterdir()), needles)
    assert found == ["pixels in message 1", "pixels in message 2", "names in log.txt.z", "pixels in overlay.png"]


def test_fault_55_58_no_pixel_id_or_path_leaves_sites_that_exchange_weights(tmp_path, caplog):
    sent: list[bytes] = []
    clients = {
        "site-1": toy_algo("site-1", output_dir=tmp_path / "evaluation"),
        "site-2": toy_algo("site-2", output_dir=tmp_path / "evaluation", bundle={"fail_in_round": 1}),
        "site-3": toy_algo("site-3", output_dir=tmp_path / "evaluation"),
    }
    workers = {site: worker(site, client, tmp_path, sent) for site, client in clients.items()}
    with caplog.at_level(logging.ERROR), RunFolder(tmp_path).open({"rounds": 2}, seeds={"seed": 0}) as folder:
        result = controller(folder, workers, start=toy_weights(), rounds=2).run()
    assert result.records[1]["sites"]["site-2"]["reason"].startswith(
        "FileNotFoundError (No such file or directory) in "
    )
    assert "Jane Doe" in caplog.text  # the site's own log has everything
    models = len({model["round"] for model in result.models.values()})
    assert len(sent) == 2 * 3 * 2 + models * 3  # training and validation, then each model on test images
    assert leaks(sent, server_files(tmp_path), planted()) == []
    assert len(server_files(tmp_path)) > 4


def test_fault_55_58_no_pixel_id_or_path_leaves_sites_that_exchange_predictions(tmp_path):
    sent: list[bytes] = []
    clients = {site: unlike_algo(site, output_dir=tmp_path / "evaluation") for site in SITES}
    workers = {site: worker(site, client, tmp_path, sent) for site, client in clients.items()}
    run_unlike(tmp_path, clients=workers, rounds=2)
    assert leaks(sent, server_files(tmp_path), planted()) == []
    kinds = [line.split('"kind": ')[1].split(",")[0] for line in _audit(tmp_path, "site-1")]
    assert kinds.count('"soft_masks"') == 2
    assert '"weights"' not in kinds


class Leaking:
    """A client that answers with something else than it was asked for."""

    def __init__(self, client: Any, tensors: dict[str, torch.Tensor], kind: Kind) -> None:
        self.client, self.tensors, self.kind = client, tensors, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def get_weights(self, extra: dict | None = None) -> ExchangeObject:
        answer = self.client.get_weights(extra)
        answer.weights = {**(answer.weights or {}), **self.tensors}
        answer["samfed"] = {**answer["samfed"], "kind": self.kind.value}
        return answer


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
def test_fault_55_private_images_and_soft_masks_are_blocked_at_the_site(tensors, kind, tmp_path):
    sent: list[bytes] = []
    client = Leaking(unlike_algo("site-1"), tensors, kind)
    workers = {"site-1": worker("site-1", client, tmp_path, sent)}
    workers |= {site: worker(site, unlike_algo(site), tmp_path, sent) for site in ("site-2", "site-3")}
    result, *_ = run_unlike(tmp_path, clients=workers, rounds=1)
    assert result.records[0]["sites"]["site-1"]["status"] == "skipped"
    assert result.records[0]["sites"]["site-2"]["status"] == "ok"
    needles = {**planted(), "soft masks": [private_masks(2).numpy().tobytes()[:32]]}
    assert leaks(sent, server_files(tmp_path), needles) == []


def test_without_the_filter_the_spy_sees_the_same_masks_leave():
    sent: list[bytes] = []
    client = Leaking(unlike_algo("site-1"), {"masks": private_masks(6)}, Kind.SOFT_MASKS)
    site = wired(SiteWorker("site-1", client), sent)
    site.answer(Task.TRAIN, Envelope(Kind.METRICS, "site-1", 0, 1, extra={"purpose": "distil"}))
    needles = {"soft masks": [private_masks(2).numpy().tobytes()[:32]]}
    assert leaks(sent, [], needles) == ["soft masks in message 0"]


def test_fault_56_personal_keys_do_not_leave(tmp_path):
    client, personal = toy_algo("site-1"), ["3.*"]
    release = Release("site-1", allowed=lambda: allowed_weights(client.trainer.network, personal=personal))
    sent: list[bytes] = []
    request = Envelope(Kind.WEIGHTS, "site-1", 0, 1, tensors=toy_weights(), extra={})
    site = wired(SiteWorker("site-1", client, release), sent)
    with pytest.raises(MessageRefused, match="2 with names that may not leave"):
        site.answer(Task.TRAIN, request)
    head = client.trainer.network.state_dict()["3.weight"].numpy().tobytes()
    assert leaks(sent, [], {"head": [head], "its name": [b"3.weight"]}) == []
    assert network_split(ToyNet(), personal).personal == ("3.weight", "3.bias")


def _audit(run: Path, site: str) -> list[str]:
    return [line for line in (run / "sites" / site / "audit.jsonl").read_text().splitlines() if '"sent"' in line]
