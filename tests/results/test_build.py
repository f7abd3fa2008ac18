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


def test_average_is_over_images_and_worst_is_over_sites():
    results = build()
    assert results["sites"]["big"]["test"]["dice"] == pytest.approx(0.7)
    average, worst = results["average"]["test"], results["worst"]["test"]
    assert (average["dice"], average["n"]) == (pytest.approx(2.2 / 4), 4)
    assert average["empty"] == {"both": 0, "prediction": 1, "label": 0}
    assert (worst["site"], worst["dice"]) == ("small", pytest.approx(0.1))
    assert results["worst"]["validation"]["site"] == "big"


def test_top_level_repeats_best_model():
    other = {site: {"validation": of(row(0.2)), "test": of(row(0.2))} for site in SCORES}
    results = build(scores={"best": SCORES, "last": other}, model_rounds={"best": 1, "last": 2})
    models = results["models"]
    assert results["average"] == models["best"]["average"] != models["last"]["average"]
    assert (models["best"]["round"], models["last"]["round"]) == (1, 2)


@pytest.mark.parametrize("none", [{}, {"validation": None, "test": None}], ids=["no_images", "not_scored"])
def test_site_without_scores_has_no_mean_and_is_not_worst(none):
    results = build(scores={"best": {**SCORES, "new": none}}, unseen={"best": {"far": {"test": None}}})
    found = results["sites"]["new"]["test"]
    assert (found["dice"], found["n"], results["unseen"]["far"]["test"]["n"]) == (None, 0, 0)
    assert results["worst"]["test"]["site"] == "small"
    assert results["average"]["test"]["n"] == 4
    assert build(scores={"best": {"a": none}})["worst"] == {"validation": None, "test": None}


def test_missing_times_are_zero_and_total_is_sum():
    seconds = build(seconds={"training": 3.0, "evaluation": 1.5})["seconds"]
    assert seconds["total"] == 4.5
    assert seconds["teacher"] == 0.0
    assert build(seconds={"training": 3.0, "total": 9.0})["seconds"]["total"] == 9.0


def test_stated_values_are_kept_and_others_omitted():
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
    assert bare["teacher"] is None


def test_teacher_average_is_over_measured_splits_and_sites():
    tables = {"big": {"test": of(row(1.0), row(0.5), row(0.6))}, "small": {"test": of(row(0.1))}}
    about = {"adapt": "lora", "before": {"held_out": 0.2}}
    teacher = build(teacher_scores={**tables, "far": {"test": of(row(0.2))}}, teacher=about)["teacher"]
    assert teacher["average"].keys() == {"test"}
    assert teacher["average"]["test"]["dice"] == pytest.approx(2.2 / 4)
    assert (teacher["adapt"], teacher["before"]) == ("lora", {"held_out": 0.2})
    assert teacher["sites"].keys() == {"big", "small"}
    assert teacher["unseen"]["far"]["test"]["dice"] == 0.2
    assert "unseen" not in build(teacher_scores=tables)["teacher"]


def test_schema_violations_are_reported_together():
    with pytest.raises(Refused, match="2 problems") as refused:
        build(rounds=-1, seeds={"seed": 0.5})
    assert [str(problem) for problem in refused.value.problems] == [
        "results.json -> rounds: expected at least 0, found -1",
        "results.json -> seeds#seed: expected a whole number, found 0.5 (float)",
    ]


def test_unseen_hospitals_are_from_best_model_and_not_averaged():
    unseen = {"best": {"far": {"test": of(row(0.4), row(0.6))}}, "last": {"far": {"test": of(row(0.2))}}}
    results = build(unseen=unseen)
    assert list(results["unseen"]["far"]) == ["test"]
    found = results["unseen"]["far"]["test"]
    assert (found["dice"], found["n"]) == (pytest.approx(0.5), 2)
    assert results["models"]["last"]["unseen"]["far"]["test"]["dice"] == pytest.approx(0.2)
    assert results["average"] == build()["average"]


def test_round_traffic_is_averaged():
    traffic = [{"up_bytes": 10, "down_bytes": 30}, {"up_bytes": 11, "down_bytes": 50}]
    moved = {"up_bytes": 21, "down_bytes": 90}
    means = {"up_bytes_per_round": 10.5, "down_bytes_per_round": 40.0}
    assert build(traffic=moved, rounds_traffic=traffic)["traffic"] == moved | means


def test_unseen_hospitals_of_unknown_model_are_refused():
    with pytest.raises(Refused, match=r"models#swa#sites: expected per site, found no such key"):
        build(unseen={"swa": {"far": {"test": of(row(0.4))}}})


def test_hssf_convention_skips_empty_masks_in_hd95():
    scores = {**SCORES, "small": {"test": of(row(0.1, "prediction"), skip_empty=True)}}
    results = build(scores={"best": scores}, convention={"hd95": "pooled", "empty": "skipped"})
    assert results["sites"]["small"]["test"]["hd95"] is None
    assert results["sites"]["small"]["test"]["dice"] == pytest.approx(0.1)
    assert results["average"]["test"]["hd95"] == pytest.approx(7.0)  # of 8, 6 and 7: the fourth image is empty
    assert build()["average"]["test"]["hd95"] == pytest.approx(22 / 4)
