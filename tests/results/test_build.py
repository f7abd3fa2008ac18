from __future__ import annotations

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.metrics import summarise
from samfed_monai.results import build_results


def row(dice, empty="none"):
    return {"id": "a", "dice": dice, "iou": dice / 2, "hd95": 10 * dice, "empty": empty}


def of(*rows, skip_empty=False):
    return summarise(rows, skip_empty=skip_empty)


SCORES = {
    "big": {"validation": of(row(0.5)), "test": of(row(0.8), row(0.6), row(0.7))},
    "small": {"validation": of(row(0.9)), "test": of(row(0.1, "prediction"))},
}


def build(**changes):
    return build_results(**{"variant": "samfed", "rounds": 3, "scores": {"best": SCORES, "last": SCORES}, **changes})


def test_the_average_is_over_images_and_the_worst_is_a_site():
    results = build()
    assert results["sites"]["big"]["test"]["dice"] == pytest.approx(0.7)
    assert results["average"]["test"]["dice"] == pytest.approx(2.2 / 4)
    assert results["average"]["test"]["n"] == 4
    assert results["average"]["test"]["empty"] == {"both": 0, "prediction": 1, "label": 0}
    assert results["worst"]["test"]["site"] == "small"
    assert results["worst"]["validation"]["site"] == "big"
    assert results["worst"]["test"]["dice"] == pytest.approx(0.1)


def test_the_top_level_repeats_the_selected_model():
    other = {site: {"validation": of(row(0.2)), "test": of(row(0.2))} for site in SCORES}
    results = build(scores={"best": SCORES, "last": other}, model_rounds={"best": 1, "last": 2})
    assert results["average"] == results["models"]["best"]["average"] != results["models"]["last"]["average"]
    assert (results["models"]["best"]["round"], results["models"]["last"]["round"]) == (1, 2)
    chosen = build(scores={"best": SCORES, "last": other}, selected="last")
    assert chosen["average"] == chosen["models"]["last"]["average"]


def test_a_site_without_images_has_no_mean_and_is_not_the_worst():
    results = build(scores={"best": {**SCORES, "new": {}}})
    assert results["sites"]["new"]["test"]["dice"] is None
    assert results["sites"]["new"]["test"]["n"] == 0
    assert results["worst"]["test"]["site"] == "small"
    assert results["average"]["test"]["n"] == 4


def test_no_images_at_all_have_no_worst_site():
    assert build(scores={"best": {"a": {}}})["worst"] == {"validation": None, "test": None}


def test_times_that_were_not_needed_are_zero_and_their_sum_is_the_total():
    seconds = build(seconds={"training": 3.0, "evaluation": 1.5})["seconds"]
    assert seconds["total"] == 4.5
    assert seconds["teacher"] == 0.0
    assert build(seconds={"training": 3.0, "total": 9.0})["seconds"]["total"] == 9.0


def test_what_a_run_states_is_taken_over_and_what_it_does_not_has_no_key():
    stated = {
        "networks": {"big": "deeplabv3plus_resnet34", "small": "basic_unet"},
        "exchange": "predictions",
        "convention": {"hd95": "pooled", "empty": "skipped"},
        "process": {"memory_bytes": None, "processor_seconds": 1.5, "device": "cpu"},
        "own_models": False,
    }
    assert stated.items() <= build(**stated).items()
    bare = build(costs=None)
    assert not {"unseen", "costs", *stated} & bare.keys()
    assert bare["traffic"] == {"up_bytes": 0, "down_bytes": 0}
    assert "unseen" not in bare["models"]["best"]


def test_the_teacher_is_averaged_over_the_splits_it_was_measured_on():
    assert build()["teacher"] is None
    tables = {"big": {"test": of(row(1.0), row(0.5), row(0.6))}, "small": {"test": of(row(0.1))}}
    teacher = build(teacher_scores=tables, teacher={"adapt": "lora", "before": {"held_out": 0.2}})["teacher"]
    assert teacher["average"]["test"]["dice"] == pytest.approx(2.2 / 4)
    assert "validation" not in teacher["average"]
    assert (teacher["adapt"], teacher["before"]) == ("lora", {"held_out": 0.2})


def test_a_teacher_counts_at_hospitals_that_took_no_part_apart():
    tables = {"big": {"test": of(row(1.0))}, "far": {"test": of(row(0.2))}}
    teacher = build(teacher_scores=tables)["teacher"]
    assert (teacher["sites"].keys(), teacher["average"]["test"]["dice"]) == ({"big"}, 1.0)
    assert teacher["unseen"]["far"]["test"]["dice"] == 0.2


def test_what_would_not_follow_the_schema_is_refused_with_every_problem():
    with pytest.raises(Refused, match="2 problems") as refused:
        build(rounds=-1, seeds={"seed": 0.5})
    assert [str(problem) for problem in refused.value.problems] == [
        "results.json -> rounds: expected at least 0, found -1",
        "results.json -> seeds#seed: expected a whole number, found 0.5 (float)",
    ]


def test_unseen_hospitals_are_repeated_from_the_selected_model_and_count_in_no_average():
    unseen = {
        "best": {"far": {"test": of(row(0.4), row(0.6))}},
        "last": {"far": {"test": of(row(0.2))}},
    }
    results = build(unseen=unseen)
    assert results["unseen"]["far"]["test"]["dice"] == pytest.approx(0.5)
    assert results["unseen"]["far"]["test"]["n"] == 2
    assert list(results["unseen"]["far"]) == ["test"]
    assert results["models"]["last"]["unseen"]["far"]["test"]["dice"] == pytest.approx(0.2)
    assert results["average"] == build()["average"]
    assert build(unseen=unseen, selected="last")["unseen"]["far"]["test"]["n"] == 1


def test_traffic_of_the_rounds_is_averaged():
    traffic = [{"up_bytes": 10, "down_bytes": 30}, {"up_bytes": 11, "down_bytes": 50}]
    assert build(traffic={"up_bytes": 21, "down_bytes": 90}, rounds_traffic=traffic)["traffic"] == {
        **{"up_bytes": 21, "down_bytes": 90},
        **{"up_bytes_per_round": 10.5, "down_bytes_per_round": 40.0},
    }


def test_unseen_hospitals_of_a_model_that_is_not_there_are_refused():
    with pytest.raises(Refused, match=r"models#swa#sites: expected per site, found no such key"):
        build(unseen={"swa": {"far": {"test": of(row(0.4))}}})


def test_in_hssfs_convention_hd95_leaves_out_images_with_an_empty_mask():
    scores = {**SCORES, "small": {"test": of(row(0.1, "prediction"), skip_empty=True)}}
    results = build(scores={"best": scores}, convention={"hd95": "pooled", "empty": "skipped"})
    assert results["sites"]["small"]["test"]["hd95"] is None
    assert results["sites"]["small"]["test"]["dice"] == pytest.approx(0.1)
    assert results["average"]["test"]["hd95"] == pytest.approx(7.0)  # of 8, 6 and 7: the fourth image is empty
    assert build()["average"]["test"]["hd95"] == pytest.approx(22 / 4)


def test_summaries_that_skipped_every_image_do_not_break_the_average():
    none = {"dice": 0.0, "iou": 0.0, "hd95": None, "n": 2, "empty": {"both": 0, "prediction": 2, "label": 0}}
    results = build(scores={"best": {"a": {"test": none}, "b": {"test": of(row(0.5))}}})
    assert results["average"]["test"]["hd95"] == 5.0
    assert results["average"]["test"]["dice"] == pytest.approx(0.5 / 3)


def test_a_site_that_could_not_be_scored_has_no_images():
    scores = {"best": {**SCORES, "silent": {"validation": None, "test": None}}}
    results = build(scores=scores, unseen={"best": {"far": {"test": None}}})
    assert results["sites"]["silent"]["test"]["n"] == results["unseen"]["far"]["test"]["n"] == 0
    assert results["average"]["test"]["n"] == 4
