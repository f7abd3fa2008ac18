"""What a run's numbers ask for, in words."""

from __future__ import annotations

import pytest

from samfed_monai.reports import RunData
from samfed_monai.reports.advice import advice_on
from samfed_monai.reports.run_data import RoundRow


def told(run: RunData) -> list[str]:
    return [str(advice) for advice in advice_on(run)]


def set_teacher(run: RunData, **dices: float) -> None:
    for site, dice in dices.items():
        run.results["teacher"]["sites"][site]["test"]["dice"] = dice


def test_nothing_is_said_where_nothing_is_out_of_order(run):
    assert told(run) == []
    run.results["teacher"] = None
    assert told(run) == []


def test_a_teacher_below_one_half_is_told_with_its_sites_and_what_helps(run):
    set_teacher(run, Porto=0.0, Basel=0.4996)
    (text,) = told(run)
    assert "wrong more often than right at 2 of 4 sites (Dice 0.500 at Basel and 0 at Porto)" in text
    assert "--teacher#self_training#epochs 10" in text
    run.results["teacher"]["adapt"] = "none"
    assert "--teacher_adapt lora" in told(run)[0]
    set_teacher(run, Porto=0.5, Basel=0.5)
    assert told(run) == []


def test_a_fit_that_failed_is_told_where_no_site_has_a_mask(run):
    run.results["teacher"]["sites"], run.results["teacher"]["after"] = {}, {"held_out": 0.2}
    (text,) = told(run)
    assert text.startswith("On public images that it was not fitted on, the teacher's Dice is 0.200")


@pytest.mark.parametrize(("teacher", "told_so"), [(0.84, False), (0.851, True)])
def test_a_student_more_than_0_05_behind_is_told(run, teacher, told_so):
    set_teacher(run, Basel=teacher)
    texts = " ".join(told(run))
    assert ("far behind its teacher (test Dice 0.800 and 0.851 at Basel)" in texts) is told_so


@pytest.mark.parametrize(
    ("rule", "network", "weights", "told_so"),
    [
        ("trusted_average", "deeplabv3plus_resnet18", None, True),
        ("average", "deeplabv3plus_resnet18", "teacher", True),  # which has no weights of its own
        ("trusted_average", "mobile_sam_fpn", None, True),
        ("trusted_average", "mobile_sam_fpn", "teacher", False),
        ("trusted_average", "lite0_fpn", "pretrained", False),
        ("trusted_average", "sam_vit_t", None, False),
        ("trusted_average", "deeplabv3plus_resnet18", "resnet18.pth", False),
        ("teacher", "deeplabv3plus_resnet18", None, False),
    ],
)
def test_a_student_from_random_numbers_that_shares_its_labels_is_told_of_sams_alone(
    run, rule, network, weights, told_so
):
    client = {"agreement": {"rule": rule}, "network_name": network, "encoder_weights": weights}
    client["network_def"] = {"_target_": "samfed_monai.networks.client_network"}
    run.run["config"] = {"client": client}
    assert told(run) == []
    set_teacher(run, Basel=0.851)

    def told_of_the_rule() -> bool:
        (text,) = [text for text in told(run) if "far behind" in text]
        return "(--agreement#rule teacher), with the full colour" in text

    assert told_of_the_rule() is told_so
    client["network_def"]["_target_"] = "another_package.Network"  # of whose start nothing is known
    assert not told_of_the_rule()


def test_a_better_teacher_can_be_run_and_the_command_says_how(run):
    set_teacher(run, **dict.fromkeys(run.results["sites"], 0.81))
    run.results["teacher"].update(milliseconds=409.4, parameters=9_830_000)
    run.results["costs"] = {"mobile_sam_fpn": {"parameters": 5_220_000, "milliseconds": 93.6}}
    (text,) = told(run)
    assert "better than the student on the same test images (Dice 0.810, the student's 0.800)" in text
    assert "An image takes it 409 ms on one thread, the student 94 ms." in text
    assert text.endswith("samfed infer bundles/samfed_skin IMAGES --output-dir MASKS --model ADAPTER.safetensors")
    run.results["command"] = None
    assert "samfed infer BUNDLE IMAGES" in told(run)[0]
    (run.folder / "cache" / "teacher").mkdir(parents=True)
    fitted = run.folder / "cache" / "teacher" / "ab.safetensors"
    fitted.write_bytes(b"")
    assert told(run)[0].endswith(f"--model {fitted}")
    run.results["command"] = "samfed federate samfed_skin --adapter 'my teacher.safetensors'"
    assert told(run)[0].endswith("--model 'my teacher.safetensors'")
    assert "samfed infer samfed_skin IMAGES" in told(run)[0]
    run.results["costs"]["mobile_sam_fpn"]["milliseconds"] = 0.3
    assert "An image takes it 409 ms on one thread, the student less than 1 ms." in told(run)[0]


def test_masks_far_apart_where_nobody_knows_are_told(run):
    own = run.folder / "evaluation" / "best" / "Porto" / "unlabelled"
    own.mkdir(parents=True)
    (own / "disagreement.csv").write_text("id,image_sha256,dice,mask\na,00,0.2,\nb,01,0.6,\n")
    (text,) = told(run)
    assert "(Dice between them 0.400 at Porto)" in text
    assert "Where it is the teacher that is wrong: what helps, in this order: public images" in text
    run.results["teacher"]["adapt"] = "none"
    run.rounds[:] = [RoundRow(n, site, terms={"trust": 0.3 - 0.25 * n}) for n in (0, 1) for site in ("Porto", "Basel")]
    (text,) = told(run)
    assert "In the last round SAM had a say of 0.05 at Porto (1 is full, 0 is none)." in text
    assert "Where it is the teacher that is wrong: SAM as it comes was the teacher: --teacher_adapt lora" in text


def test_sites_whose_updates_were_left_out_in_the_end_or_half_of_the_time_are_told(run):
    def skip(site, *rounds):
        return [{"round": number, "site": site, "reason": "no answer"} for number in rounds]

    assert run.results["rounds"] == 16
    run.results["skipped"] = skip("Porto", *range(7)) + skip("Basel", 3)
    assert told(run) == []
    run.results["skipped"] += skip("Porto", 7) + skip("Basel", 15)
    (text,) = told(run)
    assert text.startswith("Updates were left out: Porto in 8 of 16 rounds, Basel in 2 of 16 rounds.")
