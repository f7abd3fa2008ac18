from dataclasses import replace

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.federation.privacy import DifferentialPrivacy, Privacy
from samfed_monai.federation.privacy.settings import PrivacyFloor
from samfed_monai.protocol import MessageRefused


def test_what_is_left_out_is_the_default():
    assert Privacy.from_json(None) == Privacy.from_json({}) == Privacy(least_images=5, differential_privacy=None)
    some = Privacy.from_json({"least_images": 1, "differential_privacy": {"clip": 2}})
    assert some == Privacy(1, DifferentialPrivacy(clip=2, noise_multiplier=1.0, delta=1e-5, epsilon=None))
    assert Privacy.from_json(some.to_json()) == some


def test_every_problem_is_listed_at_once():
    content = {
        "least_image": 5,
        "least_images": 0,
        "differential_privacy": {"clip": -1, "noise_multiplier": True, "delta": 1.0, "epsilon": 0, "seed": 3},
    }
    with pytest.raises(Refused) as error:
        Privacy.from_json(content)
    text = str(error.value)
    assert len(error.value.problems) == 7
    assert "did you mean 'least_images'?" in text
    assert "privacy -> least_images: expected a whole number >= 1, found 0" in text
    assert "differential_privacy: expected one of clip, noise_multiplier, delta, epsilon, found 'seed'" in text
    assert "delta: expected a number between 0 and 1, found 1.0" in text


def test_something_else_than_an_object_is_refused():
    with pytest.raises(Refused, match=r"federate\.json -> privacy: expected an object, found str"):
        Privacy.from_json("strict")


NOISE = DifferentialPrivacy(noise_multiplier=2.0, delta=1e-3, epsilon=8.0)


@pytest.mark.parametrize(
    ("floor", "plan", "expected"),
    [
        (PrivacyFloor(), Privacy(5, NOISE), Privacy(5, NOISE)),
        (PrivacyFloor(3), Privacy(5), Privacy(5)),
        (PrivacyFloor(8), Privacy(1), Privacy(8)),
        (PrivacyFloor(8, 2.0), Privacy(1, NOISE), Privacy(8, replace(NOISE, epsilon=2.0, delta=1e-5))),
        (PrivacyFloor(1, 9.0), Privacy(1, NOISE), Privacy(1, replace(NOISE, epsilon=8.0, delta=1e-5))),
        (PrivacyFloor(1, 9.0), Privacy(1, replace(NOISE, epsilon=None, delta=1e-6)), (9.0, 1e-6)),
    ],
)
def test_of_plan_and_site_the_stricter_counts(floor, plan, expected):
    found = floor.under(plan)
    if isinstance(expected, tuple):
        assert (found.differential_privacy.epsilon, found.differential_privacy.delta) == expected
    else:
        assert found == expected


def test_a_site_with_an_epsilon_takes_no_part_in_a_run_without_noise():
    with pytest.raises(MessageRefused, match=r"differential_privacy: expected noise: .* found none; set it in"):
        PrivacyFloor(epsilon=2.0).under(Privacy())
