"""Rounds from start to end: questions before the first, training, scores, and sites that give none."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.core.errors import ExitCode, Problem, Refused, Stopped
from samfed_monai.core.io import read_json
from samfed_monai.federation import COLUMNS, Interrupted, LocalTransport, RoundController, RunFolder
from samfed_monai.federation.server import expected_scores, log_unscored, quorum_of, quorum_problems, site_scores
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.methods.local_only import LocalOnly
from samfed_monai.privacy.allowed import NO_IMAGES
from samfed_monai.protocol import Kind, Message, MessageRefused, Strategy, Task, UpdateGuard
from samfed_monai.protocol.guard import ImageCounts
from tests.federation.toys import QUIET, FixedClient, RogueClient, controller, die, model_of, run_clients, run_toy


def two_clients(**options):
    return {"a": FixedClient("a", step=1.0, n=1, dice=0.2), "b": FixedClient("b", step=3.0, n=3, dice=0.6, **options)}


def test_rounds_average_weights_and_scores_by_image_count(tmp_path):
    result = run_clients(tmp_path, two_clients(), rounds=2)
    # each round adds (1*1 + 3*3) / 4 = 2.5 to weights that start at 1
    final = model_of(tmp_path, 1)
    assert final["w"].tolist() == [[6.0] * 3] * 2
    assert final["count"].item() == 2
    average = result.records[1]["average"]["validation"]
    assert average["dice"] == pytest.approx((0.2 + 3 * 0.6) / 4)
    assert (average["n"], average["empty"]) == (4, {"both": 2, "prediction": None, "label": None}), "as sent"
    assert result.records[1]["worst"]["validation"]["site"] == "a"
    assert [result.models["last"]["sites"][site]["test"]["dice"] for site in "ab"] == [0.2, 0.6]
    assert result.models["best"]["round"] == 0, "equal scores: the earliest round is the best"
    rows = list(csv.DictReader((tmp_path / "federation.csv").open()))
    assert [(row["round"], row["site"]) for row in rows] == [("0", "a"), ("0", "b"), ("1", "a"), ("1", "b")]
    assert tuple(rows[0]) == COLUMNS
    assert rows[1]["dice"] == "0.6"
    assert int(rows[0]["up_bytes"]) > 0


def test_best_and_last_models_are_scored_on_both_splits(tmp_path):
    began = time.perf_counter()
    result = run_toy(tmp_path, rounds=2)
    for split, images in (("validation", 3), ("test", 2)):
        assert all(result.models[model]["sites"]["site-1"][split]["n"] == images for model in ("best", "last"))
    assert len((tmp_path / "evaluation/best/site-1/test/scores.csv").read_text().splitlines()) == 3
    assert not (tmp_path / "evaluation/best/site-1/validation").exists(), "its round has scored them"
    entry = read_json(tmp_path / "rounds/001/round.json")["sites"]["site-2"]
    assert entry["status"] == "ok"
    assert entry["n"] == 6
    assert entry["terms"].keys() == {"supervised", "agreement"}
    assert result.seconds.keys() == {"training", "server", "controller", "evaluation"}
    trained = sum(record["seconds"]["training"] for record in result.records)
    assert result.seconds["training"] == pytest.approx(trained), "the final evaluation trains nothing"
    assert all(0 <= spent < time.perf_counter() - began for spent in result.seconds.values())
    assert result.traffic["up_bytes"] > 0


class Recorder(FixedClient):
    """Remembers the models that it scored, by name, split and round, and what it was sent for that.

    With ``falls`` it is better in round 0 than later.
    """

    def __init__(self, site: str, *, falls: bool = False, **options) -> None:
        super().__init__(site, **options)
        self.falls, self.scored, self.sent = falls, [], set()

    def evaluate(self, data, extra):
        if self.falls:
            self.dice = 0.9 if extra["round"] == 0 else 0.5
        if extra["model"] != "current":
            self.scored.append((extra["model"], extra["split"], extra["round"]))
            self.sent.add((extra.get("purpose"), bool(data.weights)))
        return super().evaluate(data, extra)


def test_final_evaluation_scores_kept_models_on_test_images(tmp_path):
    clients = {site: Recorder(site, step=1.0, falls=True) for site in "ab"}
    result = run_clients(tmp_path, clients, rounds=4)
    assert clients["a"].scored == [("best", "test", 0), ("last", "test", 3)]
    validation = {name: model["sites"]["a"]["validation"]["dice"] for name, model in result.models.items()}
    assert validation == {"best": 0.9, "last": 0.5}
    kept = sorted(path.parent.name for path in tmp_path.glob("rounds/*/global.safetensors"))
    assert kept == ["000", "002", "003"]
    assert len(list(tmp_path.glob("rounds/*/round.json"))) == 4


def test_model_both_best_and_last_is_scored_once(tmp_path):
    clients = {site: Recorder(site, step=1.0) for site in "ab"}
    result = run_clients(tmp_path, clients, rounds=1)
    assert clients["a"].scored == [("best", "test", 0)]
    assert result.models["best"] == result.models["last"]
    assert result.models["best"]["sites"] is not result.models["last"]["sites"]


def test_fault_41_failing_site_is_skipped_and_returns(tmp_path):
    clients = {**two_clients(), "c": RogueClient("c", change=die, rounds=[0], step=1.0)}
    result = run_clients(tmp_path, clients, rounds=2)
    assert [record["sites"]["c"]["status"] for record in result.records] == ["skipped", "ok"]
    assert result.records[0]["sites"]["c"]["reason"].startswith("RuntimeError in samfed_monai.federation.site")
    assert "Jane" not in (tmp_path / "federation.csv").read_text()


def test_fault_47_missed_quorum_stops_run_and_keeps_rounds(tmp_path):
    clients = {"a": FixedClient("a"), "b": RogueClient("b", change=die, rounds=[1])}
    with pytest.raises(Stopped, match=r"round 2 of 3: 1 of 2 updates, 2 needed\n  - b: RuntimeError") as caught:
        run_clients(tmp_path, clients, rounds=3)
    assert "1 of 3 rounds are kept" in str(caught.value)
    assert caught.value.resume.startswith("fix the problem, then run the same command again")
    assert RunFolder(tmp_path).store.latest()["round"] == 0


def test_fault_61_single_site_and_single_update_are_refused(tmp_path):
    refusal = r"sites: expected at least 2, so that no update is averaged alone.*`--allow_single_site true`"
    with pytest.raises(Refused, match=refusal):
        run_clients(tmp_path, {"a": FixedClient("a")})
    run_clients(tmp_path / "alone", {"a": FixedClient("a", step=1.0)}, allow_single_site=True, rounds=1)
    clients = {"a": FixedClient("a"), "b": RogueClient("b", change=die)}
    with pytest.raises(Stopped, match="1 of 2 updates, 2 needed"):
        run_clients(tmp_path, clients, quorum=1)


def test_ctrl_c_exits_with_130_and_run_resumes(tmp_path):
    def interrupt(answer):
        raise KeyboardInterrupt

    clients = {**two_clients(), "c": RogueClient("c", change=interrupt, rounds=[1])}
    with pytest.raises(Interrupted, match=r"1 of 3 rounds are kept(.|\n)*the same command") as caught:
        run_clients(tmp_path, clients, rounds=3)
    assert caught.value.exit_code == ExitCode.INTERRUPTED
    clients["c"] = FixedClient("c", step=1.0)
    run_clients(tmp_path, clients, rounds=3)
    assert clients["c"].trained == [1, 2], "round 0 is not run again"


def no_scores(data, extra):
    raise ValueError("no labels")


def test_site_without_scores_is_recorded_and_round_continues(tmp_path, caplog):
    clients = {**two_clients(), "c": FixedClient("c", dice=0.4), "d": FixedClient("d")}
    clients["a"].evaluate = clients["d"].evaluate = no_scores
    result = run_clients(tmp_path, clients, rounds=1, unseen=["d"])
    entry = result.records[0]["sites"]["a"]
    assert (entry["status"], entry["validation"]) == ("ok", None)
    assert entry["unscored"].startswith("ValueError in ")
    assert result.models["last"]["sites"]["a"] == {"validation": None, "test": None}
    assert result.models["last"]["sites"]["b"]["test"]["dice"] == 0.6
    assert "a has no test scores of the best model: ValueError" in caplog.text
    assert result.failed == dict.fromkeys("ad", entry["unscored"]), "hospitals that take no part, too"


def test_final_scores_below_quorum_stop_run_and_run_resumes(tmp_path):
    clients = two_clients()
    clients["a"].evaluate = no_scores
    few = r"1 of 2 sites scored the models, 2 needed\n  - a: ValueError(.|\n)*2 of 2 rounds"
    with pytest.raises(Stopped, match=few):
        run_clients(tmp_path, clients, rounds=2)
    assert run_clients(tmp_path, two_clients(), rounds=2).models["last"]["sites"]["a"]["test"]["dice"] == 0.2


def test_truncated_table_is_restored_on_resume(tmp_path):
    run_toy(tmp_path, rounds=2)
    text = (tmp_path / "federation.csv").read_text()
    (tmp_path / "federation.csv").write_text(text[:-20])
    run_toy(tmp_path, rounds=2)
    assert (tmp_path / "federation.csv").read_text() == text


@pytest.mark.parametrize(("action", "status"), [("clip", "ok"), ("skip", "skipped")])
def test_fault_39_huge_update_is_clipped_or_skipped(tmp_path, action, status):
    def explode(answer):
        answer.weights["w"] = answer.weights["w"] * 1e9

    clients = {**two_clients(), "c": RogueClient("c", change=explode)}
    guard = UpdateGuard(limit=4.0, action=action)  # honest steps here are up to three times the norm
    assert run_clients(tmp_path, clients, rounds=1, guard=guard).records[0]["sites"]["c"]["status"] == status
    assert model_of(tmp_path)["w"].abs().max() < 10


def test_faults_32_to_38_bad_updates_are_skipped_with_reason(tmp_path):
    def nan(answer):
        answer.weights["w"] = answer.weights["w"] * float("nan")

    def reshaped(answer):
        answer.weights["w"] = answer.weights["w"].reshape(3, 2)

    def absurd(answer):
        answer["samfed"]["n"] = 10**12

    def stale(answer):
        answer["samfed"]["round"] = -1

    changes = {"nan": nan, "reshaped": reshaped, "absurd": absurd, "stale": stale}
    clients = {**two_clients(), **{name: RogueClient(name, change=change) for name, change in changes.items()}}
    sites = run_clients(tmp_path, clients, rounds=1, quorum=2).records[0]["sites"]
    assert sites["nan"]["reason"] == "message -> w: expected finite values, found NaN or infinity"
    assert sites["reshaped"]["reason"] == "message -> w: expected shape (2, 3), found shape (3, 2)"
    assert sites["absurd"]["reason"].startswith("message -> n: expected a whole number from 1 to 10000000, found 10000")
    assert sites["stale"]["reason"] == "message -> round: expected round 0, found round -1"
    assert model_of(tmp_path)["w"][0, 0].item() == 3.5


class Unwilling(FixedClient):
    def check(self, extra: dict) -> dict:
        raise MessageRefused([Problem("public set", found="another", expected="the server's")])


class Talkative(FixedClient):
    def check(self, extra: dict) -> dict:
        return {"Jane Doe": 1.0}


def check_sites(folder: Path, *clients: FixedClient, **options: Any) -> None:
    made = controller(RunFolder(folder), {client.site: client for client in clients}, **options)
    made.ask(Task.CHECK, {client.site: Message(Kind.METRICS, client.site, 0, 1) for client in clients})


def test_check_requires_all_sites_and_reports_all_reasons(tmp_path):
    check_sites(tmp_path, FixedClient("a"), FixedClient("b"))
    with pytest.raises(Refused) as caught:
        check_sites(tmp_path, FixedClient("a"), Unwilling("b"), Unwilling("c"))
    assert [problem.where for problem in caught.value.problems] == ["b", "c"]
    assert "b: expected a site that can take part, found public set: expected the server's" in str(caught.value)
    with pytest.raises(Refused, match=r"a: expected a site that can take part, found message -> metrics") as caught:
        check_sites(tmp_path, Talkative("a"), FixedClient("b"))
    assert "Jane" not in str(caught.value), "an answer holds numbers of the list alone"


def test_check_requires_only_quorum_on_resume(tmp_path, caplog):
    (tmp_path / "rounds" / "000").mkdir(parents=True)
    check_sites(tmp_path, FixedClient("a"), FixedClient("b"), Unwilling("c"))
    assert "c does not take part for now: public set" in caplog.text
    for unseen in ([], ["d"]):  # a hospital that only evaluates makes no quorum
        others = [FixedClient(site) for site in unseen]
        with pytest.raises(Refused, match="c: expected a site that can take part"):
            check_sites(tmp_path, FixedClient("a"), Unwilling("b"), Unwilling("c"), *others, unseen=unseen)


@pytest.mark.parametrize(
    ("sites", "quorum", "single", "needed"),
    [(4, None, False, 3), (5, None, False, 3), (1, None, True, 1), (2, 1, False, 2), (2, 1, True, 1), (4, 4, False, 4)],
)
def test_quorum_of_sites(sites, quorum, single, needed):
    assert quorum_of(sites, quorum, allow_single_site=single) == needed


def test_invalid_quorum_and_single_site_are_reported():
    assert quorum_problems(2, 1, allow_single_site=False) == quorum_problems(1, None, allow_single_site=True) == []
    [alone] = quorum_problems(1, None, allow_single_site=False)
    assert str(alone).startswith("sites: expected at least 2, so that no update is averaged alone, found 1; `--allow_")
    for quorum in (0, 3):
        [problem] = quorum_problems(2, quorum, allow_single_site=False)
        assert str(problem) == f"quorum: expected a number from 1 to 2, the number of sites, found {quorum}"


def test_site_scores_and_expected_scores_of_answer():
    group = {"images": 10, "estimate": 0.75, "dice": 0.5, "margin": 1.0}
    metrics = {"dice": 0.2, "iou": 0.5, "hd95": 4.0, "empty_both": 1, "expected_dice": 0.5, "expected_images": 7.0}
    metrics |= {f"quality_{name}_0": value for name, value in group.items()}
    empty = {"both": 1, "prediction": None, "label": None}
    scores = site_scores(Message(Kind.METRICS, "a", 0, 1, n=3, metrics=metrics))
    assert scores == {"dice": 0.2, "iou": 0.5, "hd95": 4.0, "n": 3, "empty": empty}
    assert expected_scores(metrics) == {"dice": 0.5, "images": 7, "groups": [group]}
    assert expected_scores({"expected_dice": 0.5}) is None
    for n, unknown in ((5, None), (0, 0)):  # of no image none has an empty mask
        scores = site_scores(Message(Kind.METRICS, "a", 0, 1, n=n, metrics={}))
        assert (scores["dice"], scores["hd95"], scores["n"]) == (None, None, n)
        assert scores["empty"] == dict.fromkeys(empty, unknown)


def test_sites_without_masks_are_logged_in_single_line(caplog):
    caplog.set_level("INFO")
    log_unscored({"a": NO_IMAGES, "b": "late", "c": NO_IMAGES}, "test scores")
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("INFO", "no test scores: no masks at a, c"),
        ("WARNING", "b has no test scores: late"),
    ]


def test_answers_have_byte_limit_and_scores_need_no_quorum(tmp_path):
    quorums = set()

    class Bounded(LocalTransport):
        def send_and_receive(self, task, messages, **options):
            assert all(0 < options["max_bytes"](site) < 2**30 for site in messages)
            quorums.add((task, options["quorum"]))
            return super().send_and_receive(task, messages, **options)

    clients = two_clients()
    run_clients(tmp_path, clients, transport=Bounded(clients, progress=QUIET))
    assert quorums == {(Task.TRAIN, 2), (Task.EVALUATE, 0)}


def evaluation(strategy: Strategy, **clients: Recorder) -> RoundController:
    unseen = [site for site in clients if site == "away"]
    return controller(RunFolder("unread"), clients, strategy=strategy, unseen=unseen, rounds=3)


def test_model_is_scored_on_all_splits_and_unseen_sites_on_test():
    clients = {"a": Recorder("a", dice=0.2, n=1), "b": Recorder("b", dice=0.6, n=3), "away": Recorder("away", dice=0.4)}
    model = evaluation(FedAvg(), **clients).scores_of("best", 1)
    assert clients["a"].scored == [("best", "validation", 1), ("best", "test", 1)]
    assert clients["away"].scored == [("best", "test", 1)]
    assert clients["a"].sent == clients["away"].sent == {(None, True)}
    assert {site: scores["test"]["dice"] for site, scores in model["sites"].items()} == {"a": 0.2, "b": 0.6}
    assert {site: scores.keys() for site, scores in model["unseen"].items()} == {"away": {"test"}}
    assert model["unseen"]["away"]["test"]["dice"] == 0.4


def test_scores_of_round_record_are_not_recomputed():
    clients = {"a": Recorder("a", dice=0.2), "b": Recorder("b", dice=0.6)}
    known = {"a": {"dice": 0.25, "iou": 0.2, "hd95": None, "n": 4, "empty": {}}}
    model = evaluation(FedAvg(), **clients).scores_of("best", 1, known)
    assert clients["a"].scored == [("best", "test", 1)]
    assert clients["b"].scored == [("best", "validation", 1), ("best", "test", 1)]
    assert model["sites"]["a"]["validation"] == known["a"]
    assert model["sites"]["b"]["validation"]["dice"] == 0.6
    assert model["sites"]["a"].keys() == {"validation", "test"}


def test_own_networks_are_scored_without_sending_weights():
    clients = {"a": Recorder("a"), "b": Recorder("b"), "away": Recorder("away")}
    model = evaluation(LocalOnly(), **clients).scores_of("last", 2)
    assert clients["a"].scored == [("last", "validation", 2), ("last", "test", 2)]
    assert clients["a"].sent == {("keep", False)}
    assert (clients["away"].scored, model["unseen"]) == ([], {})


class Boaster(FixedClient):
    """Reports another number of images in given rounds."""

    def __init__(self, site, *, reported, **options):
        super().__init__(site, **options)
        self.reported, self.own = reported, options["n"]

    def header(self, extra, kind):
        self.n = self.reported.get(extra["round"], self.own) if kind == Kind.WEIGHTS else self.own
        return super().header(extra, kind)


def three(**boaster):
    others = {site: FixedClient(site, step=1.0, n=2) for site in ("a", "b")}
    return {**others, "c": Boaster("c", step=7.0, n=2, **boaster)}


@pytest.mark.parametrize("counts", [{}, {"a": 2, "b": 2, "c": 2}])
def test_fault_77_update_with_changed_image_count_is_skipped(tmp_path, counts):
    rounds = run_clients(tmp_path, three(reported={1: 10_000_000}), rounds=2, counts=ImageCounts(counts)).records
    assert model_of(tmp_path, 0)["w"][0, 0].item() == pytest.approx(1 + (1 + 1 + 7) / 3)
    assert model_of(tmp_path, 1)["w"][0, 0].item() == pytest.approx(model_of(tmp_path, 0)["w"][0, 0].item() + 1), (
        "as if c had not answered"
    )
    assert rounds[1]["sites"]["c"]["status"] == "skipped"
    reason = "message -> n: expected 2, as this site reported before, found 10000000"
    assert rounds[1]["sites"]["c"]["reason"].startswith(reason)


def test_fault_77_image_counts_are_kept_on_resume(tmp_path):
    run_clients(tmp_path, three(reported={}), rounds=1)
    counted = ImageCounts({"a": 2, "b": 2, "c": 10_000_000})
    records = run_clients(tmp_path, three(reported={1: 10_000_000}), rounds=2, counts=counted).records
    assert records[1]["sites"]["c"]["status"] == "skipped"


def test_fault_77_capped_share_limits_weight_in_mean(tmp_path, caplog):
    guard = UpdateGuard(largest_share=0.5)
    liar = three(reported=dict.fromkeys(range(2), 10_000_000))
    counted = ImageCounts({"a": 2, "b": 2, "c": 10_000_000}, guard)
    with caplog.at_level("INFO"):
        result = run_clients(tmp_path, liar, rounds=1, counts=counted, guard=guard)
    assert model_of(tmp_path, 0)["w"][0, 0].item() == pytest.approx(1 + (2 * 1 + 2 * 1 + 4 * 7) / 8)
    assert result.records[0]["sites"]["c"]["n"] == 10_000_000, "the record has what was reported"
    assert "c reports 10000000 training images; means weighted by images count 4 of them" in caplog.text
