"""The folder of a run: its owner and settings, what is written of a round, and what stays in it."""

from __future__ import annotations

import csv
import os
import signal
import time
from unittest.mock import Mock

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, save_tensors, sha256_file, write_json
from samfed_monai.federation import COLUMNS, RunFolder
from samfed_monai.federation.run_folder import (
    LOCK,
    START,
    BestRounds,
    against_start,
    best_round,
    calibration_of,
    expected_dice,
    round_line,
    round_record,
    site_record,
    skipped,
    take_lock,
    total_traffic,
)
from samfed_monai.metrics import pool
from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.transport import Failure, Traffic
from samfed_monai.results import round_traffic
from tests.federation.toys import RECORD

CONFIG = {"rounds": 3, "client": {"learning_rate": 0.1, "sizes": (1, 2)}}


def record(round: int, dice: float | None) -> dict:
    return {**RECORD, "round": round, "average": {"validation": {**SCORES, "dice": dice}}}


HASHES, SEEDS, VERSIONS = {"datalist": "f0"}, {"seed": 0}, {"torch": "2.12"}


def opened(path, config=CONFIG, *, hashes=HASHES, seeds=SEEDS, versions=VERSIONS) -> None:
    RunFolder(path).open(config, hashes=hashes, seeds=seeds, versions=versions).close()


def begun(path) -> None:
    """A folder whose run has a complete round."""
    opened(path)
    (path / "rounds/000").mkdir(parents=True)


def test_run_json_records_configuration(tmp_path):
    opened(tmp_path / "a/b")
    content = read_json(tmp_path / "a/b/run.json")
    assert len(content.pop("config_hash")) == 64
    assert len(content.pop("run")) == 16
    config = {"rounds": 3, "client": {"learning_rate": 0.1, "sizes": [1, 2]}}
    parts = {"config": config, "hashes": HASHES, "seeds": SEEDS, "versions": VERSIONS}
    assert content == {"schema": 1, **parts}


def test_changed_configuration_is_refused_and_versions_are_logged(tmp_path, caplog):
    begun(tmp_path)
    other = {"rounds": 4, "client": {"learning_rate": 0.1, "sizes": (1, 3)}, "new": True}
    with pytest.raises(Refused) as caught:
        opened(tmp_path, other, hashes={"datalist": "f1"}, seeds={"seed": 1})
    text = str(caught.value)
    assert "refused: 5 problems" in text
    kept = "resume with the old value, or choose another output_dir"
    on = f"{kept}; there, --start-from RUN continues from this run's model"
    assert f"config#rounds: expected 3, as in run.json, found 4; {on}" in text
    assert f"config#sizes: expected [1, 2], as in run.json, found [1, 3]; {kept}\n" in text
    assert "config#new: expected nothing, as in run.json, found True" in text
    assert "hashes#datalist: expected 'f0', as in run.json, found 'f1'" in text
    assert "seeds#seed: expected 0, as in run.json, found 1; resume with the old value" in text
    opened(tmp_path, versions={"torch": "2.13"})  # the lock was given back
    assert "torch was 2.12 when this run began and is 2.13 now" in caplog.text


def test_folder_without_finished_round_accepts_new_configuration(tmp_path):
    RunFolder(tmp_path).open(CONFIG).close()
    (tmp_path / "rounds/.000.7.tmp").mkdir(parents=True)  # killed while it wrote its first round
    (tmp_path / ".states").mkdir()  # of its sites' processes
    RunFolder(tmp_path).open({**CONFIG, "rounds": 9}).close()
    assert read_json(tmp_path / "run.json")["config"]["rounds"] == 9
    assert not (tmp_path / ".states").exists()


@pytest.mark.parametrize("held", ["rounds/000.torn/round.json", "results.json"])
def test_computed_rounds_and_results_are_not_overwritten(tmp_path, held):
    RunFolder(tmp_path).open(CONFIG).close()
    (tmp_path / held).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / held).write_text("{}")
    with pytest.raises(Refused, match=r"config#rounds: expected 3, as in run.json, found 9"):
        RunFolder(tmp_path).open({**CONFIG, "rounds": 9})
    if held == "results.json":
        with pytest.raises(Refused, match=r"rounds: expected the rounds of results.json, found no rounds; restore the"):
            RunFolder(tmp_path).open(CONFIG)
    (tmp_path / "run.json").write_text('{"schema')
    with pytest.raises(Refused, match=r"valid JSON, .*; restore the file from a copy; else copy rounds/NNN/glob"):
        RunFolder(tmp_path).open(CONFIG)
    for damaged, where in (("[]", "json"), ('{"config": {"client": []}}', "config#client"), ('{"seeds": []}', "seeds")):
        (tmp_path / "run.json").write_text(damaged)
        message = rf"{where}: expected an object, found \[\] \(list\); restore the file from a"
        with pytest.raises(Refused, match=message):
            RunFolder(tmp_path).open(CONFIG)
    (tmp_path / "run.json").unlink()
    with pytest.raises(Refused, match=r"run.json: expected settings of the rounds or results .* no such file; restore"):
        RunFolder(tmp_path).open({**CONFIG, "rounds": 9})


def test_fault_51_second_run_in_same_process_is_refused(tmp_path):
    with RunFolder(tmp_path).open(CONFIG):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
        with pytest.raises(Refused) as caught:
            RunFolder(tmp_path).open(CONFIG)
        assert str(caught.value.problems[0]) == (
            f"{tmp_path}: expected an unused folder, found a folder used by another run (process {os.getpid()}); "
            "wait for that run, stop it, or choose another output_dir"
        )
    RunFolder(tmp_path).open(CONFIG).close()


def test_fault_51_disk_without_locks_is_not_taken_for_other_run(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.lockf", Mock(side_effect=OSError(37, "No locks available")))
    with pytest.raises(OSError, match=f"No locks available: '{tmp_path}/.lock'"):
        take_lock(tmp_path)


def test_fault_51_lock_held_by_other_process_is_refused_or_awaited(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    if not (holder := os.fork()):
        try:
            signal.signal(signal.SIGTERM, lambda *_: time.sleep(0.3))  # as long as the memory of a killed one is freed
            take_lock(tmp_path)
            os.write(writer, b"held")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 4) == b"held"
        monkeypatch.setattr("samfed_monai.federation.run_folder.PATIENCE", 0.1)
        with pytest.raises(Refused, match=rf"a folder used by another run \(process {holder}\)"):
            RunFolder(tmp_path).open(CONFIG)
    finally:
        monkeypatch.undo()
        os.kill(holder, signal.SIGTERM)
        os.close(reader)
    RunFolder(tmp_path).open(CONFIG).close()
    os.waitpid(holder, 0)


@pytest.mark.parametrize(
    ("dice", "start", "expected"),
    [
        ([0.5, 0.7, 0.7, None], None, (1, 1, 0)),  # the earliest among equals
        ([None, 0.5, 0.4, 0.9], None, (1, 3, 0)),
        ([None, None], None, (0, 1, 0)),
        ([], None, (0, 0, 0)),
        ([0.8, 0.7, 0.79], 0.8, (START, START, 2)),  # a tie is not better
        ([0.7, 0.875, 0.7, 0.7], 0.8, (1, 1, 2)),
        ([0.5], 0.0, (0, 0, 0)),
        ([None, None], 0.8, (0, 1, 0)),  # nothing is known of the rounds
        ([None, 0.7, None], 0.8, (START, START, 0)),
    ],
)
def test_best_round_is_earliest_of_highest_or_start(dice, start, expected):
    records = [scored(number, a=value) for number, value in enumerate(dice)]
    begun = None if start is None else scored(START, a=start)
    assert best_round(records, begun) == expected[1]
    bests = BestRounds()
    for count in range(1, len(records) + 1):
        bests.follow(records[:count], begun)
    assert (bests.before, bests.now, bests.below) == expected
    known = [value for value in dice if value is not None]
    compared = {"by": "validation Dice", "start": start, "rounds": max(known)} if known and start is not None else None
    assert against_start(records, begun) == compared


def scored(round: int, **dice: float | None) -> dict:
    """A round after which these sites, of three, have these scores."""
    summaries = {site: {**SCORES, "dice": value, "n": 20} for site, value in dice.items() if value is not None}
    sites = {site: {"validation": summaries.get(site)} for site in ("a", "b", "hard")}
    return {"round": round, "average": {"validation": pool(summaries.values())}, "sites": sites}


def promised(round: int, **dice: float) -> dict:
    """A round without masks; sites looked at 10 images each, ``b`` at 30."""
    record = scored(round)
    for site, value in dice.items():
        record["sites"][site]["expected"] = {"dice": value, "images": 30 if site == "b" else 10, "groups": []}
    return record


def test_best_round_without_masks_uses_expected_dice():
    rounds = [promised(0, a=0.9, b=0.5), promised(1, a=0.5, b=0.9), promised(2, a=0.9, b=0.6)]
    assert [expected_dice(each) for each in rounds] == pytest.approx([0.6, 0.8, 0.675])
    assert best_round(rounds) == 1
    assert best_round([*rounds[:2], scored(2, a=0.1)]) == 2, "true scores are believed first"
    assert expected_dice(promised(0)) is None
    for start, best in ((0.9, START), (0.7, 1)):
        begun = promised(START, a=start, b=start)
        assert best_round(rounds, begun) == best
        compared = {"by": "expected Dice", "start": pytest.approx(start), "rounds": pytest.approx(0.8)}
        assert against_start(rounds, begun) == compared
    assert against_start([scored(0)], promised(START, a=0.9)) is None


def test_calibration_pools_groups_of_all_sites():
    group = {"images": 10, "estimate": 0.9, "dice": 0.7, "margin": 2.0}
    record = promised(0, a=0.9, b=0.9)
    record["sites"]["a"]["expected"]["groups"] = [group]
    assert calibration_of(record) is None, "ten images are too few"
    record["sites"]["b"]["expected"]["groups"] = [group]
    assert calibration_of(record)(0.9) == (pytest.approx(0.7), pytest.approx(0.9 - 2 * 0.15))


def test_absent_hard_site_does_not_make_round_best():
    first, away = scored(0, a=0.6, b=0.6, hard=0.3), scored(1, a=0.7, b=0.7)
    better = scored(2, a=0.84, b=0.84, hard=0.39)
    assert away["average"]["validation"]["dice"] > better["average"]["validation"]["dice"]
    assert best_round([first, away, better]) == 2
    assert best_round([first, away]) == 1, "its last scores count while it is away"
    assert best_round([first, scored(1, a=0.9, b=0.9), scored(2, a=0.8, b=0.8, hard=0.3)]) == 1
    assert best_round([scored(0, a=0.9), scored(1, a=0.8, b=0.2)]) == 1, "before, not all sites were known"
    assert best_round([scored(0, a=0.5, b=0.5)], scored(START, a=0.9)) == 0, "nor by the start"
    first, away = promised(0, a=0.8, b=0.5), promised(1, a=0.85)  # the same where no site has masks
    assert best_round([first, away, promised(2, a=0.84, b=0.7)]) == 2
    assert best_round([first, promised(1, a=0.7)], promised(START, a=0.8, b=0.4)) == 0


def save_state(folder):
    save_tensors(folder / "a.safetensors", {"x": torch.ones(1)})
    return {"a.safetensors": sha256_file(folder / "a.safetensors")}


@pytest.mark.parametrize(("keep_states", "clients"), [(False, []), (True, [1, 3])])
def test_finished_run_keeps_best_and_last_model(tmp_path, keep_states, clients):
    records = [record(0, 0.5), record(1, 0.9), record(2, 0.6), record(3, 0.7)]
    with RunFolder(tmp_path).open(CONFIG) as folder:
        stored = folder.store.records(-1)
        for each in records:
            folder.write_round({"w": torch.ones(2)}, stored, each, save_state, keep_best_states=True)
        folder.finish(stored, keep_states=keep_states)
        assert [r for r in range(4) if (folder.store.folder / f"{r:03d}" / "global.safetensors").exists()] == [1, 3]
        assert [r for r in range(4) if list(folder.store.clients(r).glob("*"))] == clients
        assert folder.store.latest()["round"] == 3
        assert len(folder.store.records(3)) == 4
        assert folder.store.latest()["run"] == read_json(tmp_path / "run.json")["run"]


@pytest.mark.parametrize(("options", "states"), [({}, [4, 5]), ({"keep_best_states": True}, [1, 4, 5])])
def test_running_run_keeps_last_two_and_best_rounds(tmp_path, options, states):
    # the last round makes itself the best; until then it was round 1, to which a run goes back that loses the last
    dice = [0.1, 0.5, 0.4, 0.3, 0.2, 0.9]
    with RunFolder(tmp_path).open(CONFIG) as folder:
        stored = folder.store.records(-1)
        for number, value in enumerate(dice):
            state = {"sum": torch.full((1,), value)}
            last = folder.write_round(
                {"w": torch.ones(2)}, stored, record(number, value), save_state, server_state=state, **options
            )
        assert (last["round"], len(stored), stored[-1]) == (5, 6, last)
        assert folder.store.server_state(5)["sum"].item() == pytest.approx(0.9)
        kept = [r for r in range(len(dice)) if (folder.store.folder / f"{r:03d}" / "global.safetensors").exists()]
        assert kept == [1, 4, 5]
        assert [r for r in range(len(dice)) if list(folder.store.clients(r).glob("*"))] == states


SCORES = {"dice": 0.5, "iou": 0.4, "hd95": 3.0, "n": 2, "empty": {"both": 0, "prediction": 0, "label": 0}}


def test_table_has_documented_columns_and_term_columns(tmp_path):
    validation = {**SCORES, "empty": {"both": 1, "prediction": 0, "label": 0}}
    ok = {"status": "ok", "reason": None, "n": 4, "seconds": 1.5, "terms": {"sam_kd": 0.25}, "validation": validation}
    ok |= {"expected": {"dice": 0.75, "images": 4, "groups": []}, "up_bytes": 10, "down_bytes": 20}
    bare = {**ok, "status": "skipped", "reason": "late", "n": None, "terms": {}, "validation": None, "expected": None}
    RunFolder(tmp_path).write_table([{"round": 0, "sites": {"a": ok, "b, c": bare}}])
    first, second = csv.DictReader((tmp_path / "federation.csv").open())
    assert tuple(first) == (*COLUMNS, "term_sam_kd")
    assert ";".join(first.values()) == "0;a;ok;;4;0.5;0.4;3.0;2;1;0;0;0.75;1.5;10;20;0.25"
    assert ";".join(second.values()) == "0;b, c;skipped;late;;;;;;;;;;1.5;10;20;"


def test_table_appended_by_round_equals_table_written_at_once(tmp_path, monkeypatch):
    def record_of(round: int, **terms: float) -> dict:
        entry = {"status": "ok", "reason": "a, b", "terms": terms, "validation": None}
        return {**record(round, None), "sites": {"=a": entry, "b": {"status": "skipped", "reason": "x\ny"}}}

    records = [record_of(0), record_of(1, kd=0.5), record_of(2, kd=0.25), record_of(3), record_of(4, kd=1.0, hard=2.0)]
    once = RunFolder(tmp_path / "once")
    once.path.mkdir()
    growing = RunFolder(tmp_path / "growing")
    growing.path.mkdir()
    wholes = []
    monkeypatch.setattr(
        "samfed_monai.federation.run_folder.io.write_text",
        lambda path, text, mode: (wholes.append(path.parent.name), path.write_text(text)),
    )
    for last in range(1, 6):
        growing.write_table(records[:last])
        RunFolder(once.path).write_table(records[:last])
        assert (growing.path / "federation.csv").read_bytes() == (once.path / "federation.csv").read_bytes()
    assert wholes.count("growing") == 3, "the first round, and two with a term that had no head"
    assert (growing.path / "federation.csv").stat().st_mode & 0o777 == 0o644, "readable by all"
    (growing.path / "federation.csv").write_text("of another process\n")
    RunFolder(growing.path).write_table(records[:2])
    assert len((growing.path / "federation.csv").read_text().splitlines()) == 1 + 2 * 3


def test_round_line_summarizes_round():
    missing = site_record(Failure("b", "ValueError"), None, "ValueError", None)
    scored = {**missing, "status": "ok", "validation": SCORES}
    record = round_record(2, 30, {"a": scored, "b": missing}, {"training": 17.2, "controller": 0.4})
    assert round_line(record) == "round 3 of 30: validation Dice 0.500, lowest 0.500 (a), skipped b, 18 s"
    missing["expected"] = {"dice": 0.75, "images": 4, "groups": []}
    assert "validation Dice 0.500, expected 0.750 (not calibrated), lowest 0.500 (a), skipped b," in round_line(record)
    del missing["expected"]
    assert round_line(round_record(0, 1, {"b": missing}, {})) == "round 1 of 1: no validation scores, skipped b, 0 s"


def test_traffic_totals_and_skipped_answers():
    record = {"sites": {"a": {"up_bytes": 1, "down_bytes": 2}, "b": {"up_bytes": 10, "down_bytes": 20}}}
    assert round_traffic(record) == {"up_bytes": 11, "down_bytes": 22}
    assert total_traffic([record, record], [Traffic(up=100, down=0)]) == {"up_bytes": 122, "down_bytes": 44}
    assert total_traffic([], []) == {"up_bytes": 0, "down_bytes": 0}
    sites = {"a": {"status": "ok", "reason": None}, "b": {"status": "skipped", "reason": "late"}}
    assert skipped([{"round": 4, "sites": sites}]) == [{"round": 4, "site": "b", "reason": "late"}]


def test_site_record_fields():
    metrics = {"term_sam_kd": 0.5, "term_dice": 2.0, "seconds": 1.5, "iterations": 3, "releases": 4.0, "loss": 9.0}
    update = Message(Kind.WEIGHTS, "a", 1, 3, n=7, metrics=metrics)
    full = {
        "status": "ok",
        "reason": None,
        "n": 7,
        "seconds": 1.5,
        "terms": {"sam_kd": 0.5, "dice": 2.0},
        "releases": 4,
        "validation": SCORES,
        "unscored": None,
        "up_bytes": 10,
        "down_bytes": 20,
    }
    assert site_record(update, SCORES, None, Traffic(up=10, down=20)) == full
    assert type(site_record(update, None, None, None)["releases"]) is int
    full |= {"status": "skipped", "reason": "late", "terms": {}, "unscored": "away", "up_bytes": 0, "down_bytes": 0}
    full |= dict.fromkeys(("n", "seconds", "validation"))
    assert site_record(Failure("a", "late"), None, "away", None) | {"releases": 4} == full
    bare = site_record(Message(Kind.WEIGHTS, "a", 1, 3, n=7), None, None, None)
    assert (bare["seconds"], bare["terms"], "releases" in bare) == (None, {}, False)


def test_round_record_fields():
    low = {**SCORES, "dice": 0.25, "hd95": 9.0, "n": 6, "empty": {"both": 4, "prediction": 0, "label": 0}}
    sites = {"a": {"validation": SCORES}, "b": {"validation": low}, "c": {"validation": None}}
    found = round_record(2, 30, sites, {"training": 1.0})
    average = found.pop("average")
    assert found == {
        "schema": 1,
        "round": 2,
        "rounds": 30,
        "sites": sites,
        "worst": {"validation": {**low, "site": "b"}},
        "seconds": {"training": 1.0},
    }
    assert average["validation"]["dice"] == (2 * 0.5 + 6 * 0.25) / 8
    assert average["validation"]["hd95"] == (2 * 3.0 + 6 * 9.0) / 8, "by images, those without a mask among them"
    skipping = round_record(2, 30, sites, {}, skip_empty=True)["average"]["validation"]["hd95"]
    assert skipping == (2 * 3.0 + 2 * 9.0) / 4, "by images with a mask"


def test_other_teacher_in_resumed_run_is_caveat(tmp_path, caplog):
    begun(tmp_path)
    with RunFolder(tmp_path).open(CONFIG, hashes=HASHES, seeds=SEEDS) as folder:
        assert folder.record_teacher("a" * 64) == folder.record_teacher("a" * 64) == []
    with RunFolder(tmp_path).open(CONFIG, hashes=HASHES, seeds=SEEDS) as folder:
        (caveat,) = folder.record_teacher("b" * 64)
    assert caveat.startswith(f"The teacher was {'a' * 12} when this run began and is {'b' * 12} now; the rounds before")
    assert caveat in caplog.text


@pytest.mark.parametrize("gone", ["config", "hashes", "seeds", "versions"])
def test_run_json_without_part_is_compared_as_empty(tmp_path, caplog, gone):
    begun(tmp_path)
    content = read_json(tmp_path / "run.json")
    content.pop(gone)
    write_json(tmp_path / "run.json", content)
    if gone == "versions":
        opened(tmp_path)
        assert "torch was None when this run began and is 2.12 now: last bits may differ" in caplog.text
    else:
        with pytest.raises(Refused, match=rf"{gone}.*: expected nothing, as in run\.json"):
            opened(tmp_path)


def test_fault_54_unwritable_output_is_refused_with_system_reason(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(Refused) as caught:
        RunFolder(tmp_path / "file").open(CONFIG)
    assert str(caught.value.problems[0]) == (
        f"{tmp_path / 'file'}: expected a writable folder, found a folder that cannot be written (File exists); "
        "choose another output_dir, or fix its permissions"
    )

    gone = Mock(side_effect=OSError("the share went away"))  # an error without a number
    monkeypatch.setattr("samfed_monai.core.io.tempfile.TemporaryFile", gone)
    with pytest.raises(Refused, match=r"a folder that cannot be written \(the share went away\)"):
        RunFolder(tmp_path / "new").open(CONFIG)
