"""A federation whose weights travel as compressed differences: the same bits everywhere, through faults and resumes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.core.io import read_json
from samfed_monai.federation import Interrupted
from samfed_monai.privacy import Allowed, Privacy, ReleaseFilter
from samfed_monai.protocol import Kind, Message
from samfed_monai.protocol.compression import Compression, Sender
from tests.federation.test_job import job
from tests.federation.toys import FilteredSite, FixedClient, RogueClient, die, model_of, run_clients, weights

THREE = {"sites": {"site-1": {}, "site-2": {}}, "unseen": ["site-3"]}


def sites(form: str | int, *clients: FixedClient) -> dict[str, FilteredSite]:
    allowed, privacy = Allowed({Kind.WEIGHTS: weights()}), Privacy(least_images=1)
    filters = [
        ReleaseFilter(client.site, allowed=lambda: allowed, privacy=privacy, sender=Sender(Compression(form)))
        for client in clients
    ]
    return {client.site: FilteredSite(client.site, client, each) for client, each in zip(clients, filters, strict=True)}


def hashes(run: Path) -> dict[str, str]:
    return {at.parent.name: read_json(at)["files"]["global.safetensors"] for at in run.glob("rounds/[0-9]*/round.json")}


def test_steps_are_averaged_by_number_of_images(tmp_path):
    clients = sites("int8", FixedClient("a", step=1.0, n=1), FixedClient("b", step=3.0, n=3))
    run_clients(tmp_path, clients, rounds=2, compression=Compression("int8"))
    final = model_of(tmp_path, 1)
    torch.testing.assert_close(final["w"], torch.full((2, 3), 6.0))
    assert final["b"].tolist() == [6.0, 6.0]
    assert final["count"].item() == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda step: step.update({"w:scales": torch.tensor([torch.inf, 1.0])}), "found NaN or infinity"),
        (lambda step: step.update({"w:scales": torch.full((2,), 3e38)}), "found NaN or infinity"),
        (lambda step: step.update({"w:codes": torch.zeros(3, 2, dtype=torch.int8)}), "w:codes: expected shape"),
        (lambda step: step.pop("w:codes"), "w:codes: .*found no such tensor"),
        (lambda step: step.update({"w": torch.ones(2, 3)}), "found 1 with unknown names"),
        (lambda step: step.update({"count": torch.tensor(1.0)}), "count: expected torch.int64"),
    ],
)
def test_invalid_compressed_update_is_skipped(change, reason, tmp_path):
    class Rogue(FilteredSite):
        def answer(self, task: Any, message: Message) -> Message:
            reply = super().answer(task, message)
            if reply.tensors:
                change(reply.tensors)
            return reply

    clients: dict[str, Any] = sites("int8", *(FixedClient(site, step=1.0) for site in "abc"))
    clients["c"] = Rogue("c", clients["c"].client, clients["c"].release)
    entry = run_clients(tmp_path, clients, rounds=1, compression=Compression("int8")).records[0]["sites"]["c"]
    assert entry["status"] == "skipped"
    assert pytest.approx(2.0) == model_of(tmp_path)["w"][0, 0].item()
    assert re.search(reason, entry["reason"]), entry["reason"]


def test_uncompressed_weights_are_refused(tmp_path):
    clients = {**sites("int8", *(FixedClient(site, step=1.0) for site in "ab")), "c": FixedClient("c")}
    result = run_clients(tmp_path, clients, rounds=1, compression=Compression("int8"))
    assert "expected step, which this round exchanges, found weights" in result.records[0]["sites"]["c"]["reason"]


def test_whole_model_sent_to_failed_site_is_counted(tmp_path):
    rogue = RogueClient("c", change=die, rounds=[1], step=1.0)
    clients = sites("int8", FixedClient("a", step=1.0), FixedClient("b", step=1.0), rogue)
    result = run_clients(tmp_path / "steps", clients, rounds=4, compression=Compression("int8"))
    counted = [{site: entry["whole_models"] for site, entry in record["sites"].items()} for record in result.records]
    assert counted == [{**dict.fromkeys("ab", 0), "c": n} for n in (0, 1, 0, 0)]
    plain = run_clients(tmp_path / "plain", {site: FixedClient(site, step=1.0) for site in "ab"}, rounds=1)
    assert not any("whole_models" in entry for entry in plain.records[0]["sites"].values())


@pytest.fixture(scope="module")
def together(three_sites, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A run of two rounds in one process: its folder and its results."""
    folder = tmp_path_factory.mktemp("together")
    return folder, job(three_sites, folder, compression=2, **THREE).run()


def test_interrupted_run_resumes_to_same_hashes(three_sites, together, tmp_path, monkeypatch):
    encode, calls = Sender.encode, []

    def interrupted(self: Sender, *given: Any) -> Any:
        calls.append(self)
        if len(calls) == 5:  # two sites and the server in a round: in the second, after the first site has sent
            raise KeyboardInterrupt
        return encode(self, *given)

    monkeypatch.setattr(Sender, "encode", interrupted)
    with pytest.raises(Interrupted):
        job(three_sites, tmp_path, compression=2, **THREE).run()
    monkeypatch.undo()
    assert len(hashes(tmp_path)) == 1
    job(three_sites, tmp_path, compression=2, **THREE).run()
    assert hashes(tmp_path) == hashes(together[0])


def test_audit_records_size_of_compressed_update(together):
    lines = (together[0] / "sites" / "site-1" / "audit.jsonl").read_text().splitlines()
    sent, _ = [line for line in map(json.loads, lines) if line["task"] == "train"]
    assert sent["kind"] == "step"
    trained = read_json(together[0] / "rounds/000/round.json")["sites"]["site-1"]["up_bytes"]
    assert 0 < trained - sent["bytes"] < 2048, "the rest is its scores"
