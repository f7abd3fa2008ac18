"""A run folder is read and checked, with its table of rounds."""

from dataclasses import replace

import pytest

from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.core.io import write_json, write_text
from samfed_monai.federation.run_folder import COLUMNS, round_record, site_record
from samfed_monai.protocol import Kind, Message
from samfed_monai.protocol.transport import Traffic
from samfed_monai.reports import RunData
from samfed_monai.reports.run_data import RoundRow, read_federation, series
from tests.reports.conftest import SKIPPED
from tests.reports.runs import summary


def test_run_scores_and_skipped_updates_are_read(run_folder, tmp_path):
    run = RunData.read(run_folder)
    assert run.sites == ["Basel", "Lübeck", "Porto", "São Paulo"]
    assert run.seed == 0
    assert len(run.rounds) == 64
    for skipped in ([SKIPPED], []):
        run.results["skipped"] = skipped
        assert run.skipped == [SKIPPED]
    rows = run.image_scores("Lübeck")
    assert len(rows) == 7
    assert all(isinstance(row["dice"], float) and row["mask"] for row in rows)
    assert run.image_scores("nowhere") == []
    run = replace(run, folder=tmp_path)
    for damaged in ("id,dice\na,0.5\n", "id,dice,hd95\na\n", "dice,hd95\n0.5,1\n", "id,dice,hd95\na,x,1\n"):
        write_text(run.evaluation("Lübeck") / "scores.csv", damaged)
        with pytest.raises(Refused, match=r"scores\.csv: expected a table of a site's images, found .*; restore the"):
            run.image_scores("Lübeck")


def test_settings_are_read_from_command_and_results(tmp_path):
    run = RunData(tmp_path, {"command": "python -m monai.bundle run --datalist 'my list.json' --data_root=D"})
    assert [run.setting(name) for name in ("datalist", "data_root", "data")] == ["my list.json", "D", None]
    for results, own in (({"own_models": True}, True), ({"own_models": False}, False), ({}, False)):
        assert RunData(tmp_path, results).own_models is own


def test_missing_or_invalid_results_are_refused(tmp_path):
    with pytest.raises(Refused, match=r"expected a finished run folder, found no results\.json; name a finished run"):
        RunData.read(tmp_path)
    for text, message in (("{}", " -> variant: expected name of the variant"), ("{", ", line 1, column 2: ")):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(Refused, match=f"{tmp_path}/results.json{message}"):
            RunData.read(tmp_path)


def test_unfinished_run_is_read_from_stored_rounds(tmp_path):
    for number, dice in enumerate((0.9, 0.8)):
        own = site_record(Message(Kind.WEIGHTS, "a", 0, 3), summary(dice), None, Traffic(up=10, down=20 + number))
        record = {**round_record(number, 3, {"a": own}, {"training": 4.0}), "run": "12ab", "files": {}}
        write_json(tmp_path / "rounds" / f"{number:03d}" / "round.json", record)
    about = {"seeds": {"seed": 7}, "hashes": {"datalist": "d" * 64}, "versions": {"torch": "2.13.0"}}
    write_json(tmp_path / "run.json", {"config": {"variant": "no_sam", "rounds": 3}, **about})
    (tmp_path / "run.log").write_text("1 2 INFO samfed federate A\n1 3 INFO samfed federate B\n1 4 INFO done\n")
    run = RunData.read(tmp_path, unfinished=True)
    assert (run.planned, run.seconds_left, run.sites) == (3, 4.0, ["a"])
    assert replace(run, planned=None).seconds_left is None
    expected = {"variant": "no_sam", "rounds": 2, "command": "samfed federate B", **about}
    assert run.results.items() >= expected.items()
    assert {name: model["round"] for name, model in run.results["models"].items()} == {"best": 0, "last": 1}
    moved, means = {"up_bytes": 20, "down_bytes": 41}, {"up_bytes_per_round": 10.0, "down_bytes_per_round": 20.5}
    assert run.results["traffic"] == moved | means
    assert (run.results["seconds"]["training"], run.results["seconds"]["total"]) == (8.0, 8.0)
    for about, message in (([], ": expected an object"), ({"place": "x"}, " -> place: expected a whole number")):
        write_json(tmp_path / "compare.json", about)
        with pytest.raises(Refused, match=rf"compare\.json{message}, found .*; restore the file from a copy"):
            RunData.read(tmp_path, unfinished=True)
    (tmp_path / "compare.json").unlink()
    (tmp_path / "run.json").unlink()
    assert RunData.read(tmp_path, unfinished=True).planned == 2, "the stored rounds, if run.json is lost"
    write_json(tmp_path / "run.json", {"run": "34cd"})
    with pytest.raises(Refused, match="expected one of run 34cd, found a round of run 12ab; move this folder away"):
        RunData.read(tmp_path, unfinished=True)
    write_json(tmp_path / "rounds" / "000" / "round.json", [])
    with pytest.raises(Stopped, match="the record of round 0 is not valid"):
        RunData.read(tmp_path, unfinished=True)


CSV = """round,site,status,reason,n,dice,term_supervised,term_reliability
1,b,ok,,10,0.8,0.2,0.7
0,b,skipped,NaN or infinity,,,,
0,a,ok,,20,0.5,nan,0.6
"""


def test_federation_rows_are_sorted_and_nan_is_dropped(tmp_path):
    assert read_federation(tmp_path / "federation.csv") == [], "a run without rounds"
    (tmp_path / "federation.csv").write_text(CSV)
    rows = read_federation(tmp_path / "federation.csv")
    assert rows == [
        RoundRow(0, "a", values={"n": 20.0, "dice": 0.5, "term_reliability": 0.6}),
        RoundRow(0, "b", status="skipped", reason="NaN or infinity"),
        RoundRow(1, "b", values={"n": 10.0, "dice": 0.8, "term_supervised": 0.2, "term_reliability": 0.7}),
    ]
    assert series(rows, "dice") == {"a": [(0, 0.5)], "b": [(1, 0.8)]}
    assert series(rows, "term_supervised") == {"b": [(1, 0.2)]}
    assert series(rows, "term_agreement") == {}
    assert {"round", "site", "status", "reason", "dice", "n"} <= set(COLUMNS), "the controller's"
