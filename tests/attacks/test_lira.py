"""LiRA: overfitted shadow models are detected, and saved ones are used again."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from samfed_monai.attacks import lira
from samfed_monai.attacks.lira import attack_lira, likelihood_ratio, signal
from samfed_monai.core.errors import Refused
from tests.attacks.test_membership import memory as memory_of
from tests.attacks.toys import QUICK
from tests.attacks.toys import target as any_target

target = partial(any_target, size=8, count=12)
memory = partial(memory_of, 8)


def test_likelihood_ratio_and_signal_match_hand_calculation():
    signals = np.array([[2.0], [4.0], [-1.0], [1.0]])
    inside = np.array([[True], [True], [False], [False]])
    # means 3 and 0, both with variance 1: ((x - 0)^2 - (x - 3)^2) / 2
    assert likelihood_ratio(np.array([3.0]), signals, inside) == pytest.approx([4.5])
    assert likelihood_ratio(np.array([1.5]), signals, inside) == pytest.approx([0.0])
    assert signal(np.array([np.log(2)])) == pytest.approx([0.0])
    assert signal(-np.log(np.array([0.9]))) == pytest.approx([np.log(9)])
    assert np.isfinite(signal(np.array([0.0, 50.0]))).all()


def test_overfitted_models_are_detected_and_untrained_are_not(tmp_path):
    found = attack_lira(target(memory), dataclasses.replace(QUICK, shadow_steps=100), tmp_path)
    assert len(list(tmp_path.iterdir())) == 16
    assert found.rows[1]["auc"] > 0.8
    assert "16 shadow models" in found.asks
    # 16 models x 36 images, half of them inside: standard deviation below 0.03, images being shared by the models
    assert abs(attack_lira(target(memory), QUICK, tmp_path).rows[1]["auc"] - 0.5) < 0.1


def test_lira_resumes_from_saved_shadow_models(tmp_path, monkeypatch):
    toy, quick = target(memory), dataclasses.replace(QUICK, shadow_steps=2)
    _, inside = lira.shadow_signals(toy, toy.groups[1], quick, tmp_path / "one group")
    assert (inside.sum(axis=0) == 8).all(), "half of the models see an image"
    whole = attack_lira(toy, quick, tmp_path)
    for index in (3, 9):
        (tmp_path / f"{index:03d}.json").unlink()
    trained = []
    train = lira.train
    monkeypatch.setattr(lira, "train", lambda *args, **kwargs: trained.append(1) or train(*args, **kwargs))
    assert attack_lira(toy, quick, tmp_path).rows == whole.rows
    assert len(trained) == 2
    attack_lira(toy, dataclasses.replace(quick, shadow_steps=3), tmp_path)
    assert len(trained) == 18, "those of another number of steps are made again"


@pytest.mark.parametrize(
    ("shadows", "count", "refusal"),
    [
        (14, 12, "--shadows: expected an even number from 16, as each image is in half of the models, found 14"),
        (17, 12, "--shadows: expected an even number from 16, as each image is in half of the models, found 17"),
        (16, 4, "lira: expected at least 8 of each, found 8 training and 4 test images with masks"),
    ],
)
def test_too_few_images_or_invalid_shadow_count_is_refused(tmp_path, shadows, count, refusal):
    with pytest.raises(Refused, match=refusal):
        attack_lira(target(count=count), dataclasses.replace(QUICK, shadows=shadows), tmp_path)
