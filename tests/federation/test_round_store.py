"""Rounds on disk appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.core.io import atomic_write, read_json, sha256_bytes, write_json
from samfed_monai.core.model_file import read_header
from samfed_monai.federation import RoundStore
from samfed_monai.federation.run_folder import state_file
from tests.federation.toys import RECORD, weights


def state(folder):
    with atomic_write(folder / "a.safetensors") as stream:
        stream.write(b"state")
    return {"a.safetensors": sha256_bytes(b"state")}


@pytest.fixture
def store(tmp_path) -> RoundStore:
    store = RoundStore(tmp_path / "rounds")
    for number in range(3):
        store.write(number, weights(float(number)), RECORD, state)
    return store


def test_rounds_are_written_and_read_back(store, tmp_path):
    empty = RoundStore(tmp_path / "none")
    assert (empty.latest(), list(empty.records(-1))) == (None, [])
    assert torch.equal(store.weights(2)["w"], weights(2.0)["w"])
    assert [record["round"] for record in store.records(2)] == [0, 1, 2]
    stored = store.write(3, weights(), RECORD, state, server_state={"sum": torch.ones(2)})
    assert stored == store.latest()
    assert stored["files"].keys() == {"global.safetensors", "server.safetensors", "clients/a.safetensors"}
    assert read_header(store.path(3) / "global.safetensors") == {"round": "3"}
    assert (store.path(3) / "clients").stat().st_mode & 0o777 == 0o700, "its owner's to read"
    store.write(3, weights(9.0), RECORD, state)
    assert store.weights(3)["w"][0, 0].item() == 9.0, "a round can be written again"


def test_records_are_read_on_access(store, monkeypatch):
    records = store.records(2)
    read = []
    look = store.record
    monkeypatch.setattr(store, "record", lambda number: read.append(number) or look(number))
    assert (len(records), read) == (3, [])
    assert [records[0]["round"], records[-1]["round"], records[2]["round"], records[1]["round"]] == [0, 2, 2, 1]
    assert read == [0, 2, 2, 1]
    records.append(store.write(3, weights(), RECORD, state))
    assert [record["round"] for record in records] == [0, 1, 2, 3]
    assert read[4:] == [0, 1, 2], "the last one is not read again"
    assert records[-1]["files"].keys() == {"global.safetensors", "clients/a.safetensors"}
    for beyond in (4, -5):
        with pytest.raises(IndexError):
            records[beyond]


@pytest.mark.parametrize("name", ["global.safetensors", "clients/a.safetensors", "round.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_fault_52_damaged_round_falls_back_to_previous(store, caplog, name, damage):
    path = store.folder / "002" / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "cut" or name == "round.json":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert store.latest()["round"] == 1
    assert "round 2 is damaged" in caplog.text
    assert "moved to 002.torn, going back one round" in caplog.text
    assert store.rounds() == [0, 1]


@pytest.mark.parametrize(("kept", "latest", "left"), [({1, 2}, 1, [0, 1]), ({0, 2}, None, [0, 1])])
def test_fault_52_fallback_stops_at_round_with_pruned_model(store, kept, latest, left):
    store.prune(keep_models=kept, keep_states=set())
    for number in range(3):  # whose states were let go as well
        path = store.folder / f"{number:03d}" / "round.json"
        record = read_json(path)
        write_json(path, {**record, "files": {"global.safetensors": record["files"]["global.safetensors"]}})
    (store.folder / "002" / "global.safetensors").write_bytes(b"")
    if latest is None:
        with pytest.raises(Stopped, match="no intact round is left"):
            store.latest()
    else:
        assert store.latest()["round"] == latest
    assert store.rounds() == left, "what was let go is not damaged"


@pytest.mark.parametrize("name", ["server.safetensors", "clients/a.safetensors"])
def test_damaged_states_of_round_are_refused(store, name):
    store.write(1, weights(1.0), RECORD, state, server_state={"sum": torch.ones(2)})
    server = store.server_state, "the server's state"
    read, what = server if name == "server.safetensors" else (store.clients, "the state of a")
    read(1)
    path = store.folder / "001" / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Stopped, match=f"{what} of round 1 is missing or damaged"):
        read(1)


def test_fault_49_full_disk_keeps_earlier_rounds_and_no_partial_files(store, monkeypatch):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        store.write(3, weights(), RECORD, state)
    monkeypatch.undo()
    assert sorted(path.name for path in store.folder.iterdir()) == ["000", "001", "002"]
    assert store.latest()["round"] == 2


def test_fault_48_round_is_renamed_after_files_are_flushed(store, monkeypatch):
    flushed, replace, named = [], os.replace, []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))

    def noted(source, target):
        if Path(source).is_dir():
            there = [path for path in Path(source).rglob("*") if path.is_file()]
            assert {path.name for path in there} == {"global.safetensors", "a.safetensors", "round.json"}
            assert {path.stat().st_ino for path in there} <= set(flushed)
            named.append((Path(target).name, len(flushed)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    store.write(3, weights(), RECORD, state)
    [(name, before)] = named
    assert name == "003"
    assert store.folder.stat().st_ino in flushed[before:]


def files(store) -> list[str]:
    return sorted(str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file())


def test_pruning_keeps_records_and_scans_rounds_once(store, monkeypatch):
    store.prune(keep_models={0, 2}, keep_states={2})
    third = ["002/clients/a.safetensors", "002/global.safetensors", "002/round.json"]
    assert files(store) == ["000/global.safetensors", "000/round.json", "001/round.json", *third]
    assert store.latest()["round"] == 2
    monkeypatch.setattr(store, "rounds", lambda: pytest.fail("looked through all of them again"))
    store.write(3, weights(3.0), RECORD, state)
    store.prune(keep_models={3}, keep_states={2, 3})
    fourth = ["003/clients/a.safetensors", "003/global.safetensors", "003/round.json"]
    assert files(store) == ["000/round.json", "001/round.json", third[0], third[2], *fourth]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"round": 0, "fil', "line 1, column 14: "),
        ("[]", r"expected an object, found \[\]"),
        ({"round": 7}, "round: expected 0, as the folder, found 7"),
        ({"sites": {"a": {}}}, "sites#a#status: expected ok, or skipped, found no such key"),
        ({"average": {"validation": {}}}, "average#validation#dice: expected mean Dice over the images, .*no such key"),
        ({"worst": {}}, "worst#validation: expected its scores, or null, found no such key"),
        ({"seconds": {"training": "4"}}, "seconds#training: expected a number, found '4' .*; remove the quotes"),
    ],
)
def test_fault_83_damaged_older_records_are_reported_together(store, content, problem):
    first = store.folder / "000" / "round.json"
    first.write_text(content if isinstance(content, str) else json.dumps(read_json(first) | content))
    (store.folder / "001" / "round.json").unlink()
    assert store.latest()["round"] == 2
    both = rf"the record of round 0 .*000/round\.json.*{problem}.*; the record of round 1 cannot be read"
    with pytest.raises(Stopped, match=both) as caught:
        store.records(2)
    assert caught.value.resume.startswith("restore the file from a copy of the run folder and continue")
    with pytest.raises(Stopped, match="round 1 cannot be read"):
        store.weights(1)


def test_round_of_another_run_is_refused(store):
    store.run = "b"
    store.write(3, weights(), RECORD, state)
    assert [record.get("run") for record in store.records(3)] == [None, None, None, "b"], "older versions name no run"
    store.run = "a"
    other = r"003/round\.json: expected one of run a, found a round of run b; move this folder away"
    for read in (store.latest, lambda: store.weights(3), lambda: store.records(3)):
        with pytest.raises(Refused, match=other):
            read()


def test_round_without_states_has_no_state_files(store):
    assert store.write(3, weights(), RECORD)["files"].keys() == {"global.safetensors"}
    assert store.server_state(3) == {}
    assert not (store.folder / "003" / "clients").exists()
    assert store.write(3, weights(), RECORD, server_state={})["files"].keys() == {"global.safetensors"}


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_fault_52_missing_model_or_records_stop_with_hint(store, damage):
    path = store.folder / "001" / "global.safetensors"
    damage(path)
    with pytest.raises(Stopped) as caught:
        store.weights(1)
    assert caught.value.reason == f"the model of round 1 is missing or damaged ({path})"
    assert caught.value.resume == "run again in a new output_dir"
    for number in (0, 2):
        damage(store.folder / f"{number:03d}" / "round.json")
    with pytest.raises(Stopped) as caught:  # it does not start over
        store.latest()
    assert caught.value.reason == f"no intact round is left in {store.folder}"
    assert caught.value.resume == "start again in another output_dir"


@pytest.mark.parametrize(
    ("site", "name"),
    [
        ("a", "a.safetensors"),
        ("Klinik Süd", "Klinik S%C3%BCd.safetensors"),
        ("../../root", "..%2F..%2Froot.safetensors"),
        ("a\x00b", "a%00b.safetensors"),
        ("..", "...safetensors"),
    ],
)
def test_site_name_is_escaped_in_state_file_name(site, name):
    assert state_file(site) == name
    assert os.sep not in name


def test_deleting_states_keeps_rounds_intact(store):
    store.write(2, weights(2.0), RECORD, state, server_state={"sum": torch.ones(2)})
    store.delete_states()
    for number in range(3):
        assert not (store.folder / f"{number:03d}" / "clients").exists()
    assert store.latest()["files"].keys() == {"global.safetensors", "server.safetensors"}
    assert store.server_state(2)["sum"].tolist() == [1.0, 1.0]


def test_states_of_interrupted_deletion_are_not_used(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.delete_states()
    first = store.folder / "000" / "clients"
    assert any(first.iterdir()), "the record has let go of them, the folder is there"
    assert not store.clients(0).exists()
    assert any(store.clients(1).iterdir())


def test_records_note_states_kept_at_sites(store):
    store.write(2, weights(2.0), RECORD, lambda folder: {})
    store.write(3, weights(3.0), RECORD)
    store.record_states_at_sites()
    assert [record.get("states") for record in store.records(3)] == [None, None, "at the sites", None]
    assert store.latest()["round"] == 3
