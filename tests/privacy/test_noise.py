import numpy as np
import pytest
import torch

from samfed_monai.privacy.noise import SeededNoise, SystemNoise, noisy_masks, noisy_update
from samfed_monai.protocol import MessageRefused


def nothing(count: int) -> np.ndarray:
    return np.zeros(count)


def ones(count: int) -> np.ndarray:
    return np.ones(count)


def test_an_update_is_clipped_over_all_tensors_together():
    old = {"a": torch.tensor([1.0]), "b": torch.tensor([[2.0]])}
    new = {"a": torch.tensor([4.0]), "b": torch.tensor([[6.0]])}  # a step of (3, 4): norm 5
    sent = noisy_update(new, old, learned=["a", "b"], clip=2.5, noise_multiplier=1.0, noise=nothing)
    assert (sent["a"].item(), sent["b"].item()) == (2.5, 4.0)
    short = {"a": old["a"] + 0.5, "b": old["b"]}
    sent = noisy_update(short, old, learned=["a", "b"], clip=0.25, noise_multiplier=1.0, noise=nothing)
    assert sent["a"].item() == 1.25
    sent = noisy_update(new, old, learned=["a", "b"], clip=50.0, noise_multiplier=1.0, noise=nothing)
    assert (sent["a"].item(), sent["b"].item()) == (4.0, 6.0)


def test_noise_has_twice_the_clip_times_the_multiplier():
    old = {"a": torch.zeros(2), "running_var": torch.ones(1)}
    new = {"a": torch.zeros(2), "running_var": torch.zeros(1)}
    sent = noisy_update(new, old, learned=["a"], clip=0.5, noise_multiplier=3.0, noise=ones)
    assert sent["a"].tolist() == [3.0, 3.0]
    assert sent["running_var"].item() == 1.0  # as received: a mean over private images never leaves


def test_masks_are_clipped_one_by_one_and_noised_all_together():
    masks = torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
    masks[1] = 255
    sent = noisy_masks(masks, None, clip=0.25, noise_multiplier=1.0, noise=nothing)
    assert sent.flatten().tolist() == [64, 191, 64, 64]  # 0.5 -+ 0.25
    received = torch.full_like(masks, 51)  # 0.2
    sent = noisy_masks(masks, received, clip=0.1, noise_multiplier=0.25, noise=ones)
    assert sent.flatten().tolist() == [51, 102, 51, 51]  # 0.2 -+ 0.1, and 2 * 0.1 * sqrt(4) * 0.25 = 0.1 of noise
    assert sent.dtype is torch.uint8
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    assert noisy_masks(0 * white, white, clip=0.2, noise_multiplier=1.0, noise=nothing).item() == 204  # 1 - 0.2


@pytest.mark.parametrize(("sign", "left"), [(-1, 0), (1, 255)])
def test_a_mask_with_noise_is_a_probability_still(sign, left):
    masks = torch.full((1, 1, 1, 1), 128, dtype=torch.uint8)
    sent = noisy_masks(masks, masks, clip=1.0, noise_multiplier=1.0, noise=lambda count: sign * np.ones(count))
    assert sent.item() == left, "0.5 -+ 2"


def test_masks_of_another_shape_are_no_reference():
    masks = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    other = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    sent = noisy_masks(masks, other, clip=1.0, noise_multiplier=1.0, noise=nothing)
    assert sent.unique().tolist() == [255]  # 0.5 and half of (1, 1, 1, 1), which is 1 long


@pytest.mark.parametrize("count", [1, 2, 7, 200_000])
def test_noise_of_the_system_is_normal_and_never_the_same(count):
    noise = SystemNoise()
    drawn, again = noise(count), noise(count)
    assert drawn.shape == (count,)
    assert np.isfinite(drawn).all()
    assert not np.array_equal(drawn, again)
    if count > 1000:  # six standard errors of mean, variance and kurtosis
        assert abs(drawn.mean()) < 6 / np.sqrt(count)
        assert abs(drawn.var() - 1) < 6 * np.sqrt(2 / count)
        assert abs((drawn**4).mean() - 3) < 6 * np.sqrt(96 / count)
        assert abs(np.corrcoef(drawn[: count // 2], drawn[count // 2 :])[0, 1]) < 6 / np.sqrt(count / 2)


def test_noise_of_a_seed_comes_back():
    assert np.array_equal(SeededNoise(3)(5), SeededNoise(3)(5))


def test_what_is_no_parameter_of_this_network_or_no_float_is_left_as_it_was_received():
    old = {"a": torch.zeros(1), "count": torch.tensor(3)}
    new = {"a": torch.ones(1), "count": torch.tensor(9)}
    given = {"clip": 1.0, "noise_multiplier": 1.0, "noise": ones}
    sent = noisy_update(new, old, learned=["a", "count", "frozen"], **given)
    assert {name: tensor.item() for name, tensor in sent.items()} == {"a": 3.0, "count": 3}
    assert sent["a"].dtype is torch.float32
    assert noisy_update(new, {**old, "more": torch.ones(1)}, learned=["a"], **given).keys() == {"a", "count"}


def test_refusals_in_full():
    given = {"learned": ["a"], "clip": 1.0, "noise_multiplier": 1.0, "noise": ones}
    for received in ({}, {"a": torch.zeros(2)}):
        with pytest.raises(MessageRefused) as error:
            noisy_update({"a": torch.zeros(1)}, received, **given)
        assert str(error.value.problems[0]) == (
            "differential privacy: expected weights of the same network in the request, to which the update is "
            "compared, found other tensors"
        )
    for value in (float("nan"), float("inf")):
        with pytest.raises(MessageRefused) as error:
            noisy_update({"a": torch.tensor([value])}, {"a": torch.zeros(1)}, **given)
        assert str(error.value.problems[0]) == "message -> tensors: expected finite values, found NaN or infinity"


def test_noise_of_the_system_is_that_of_its_bytes(monkeypatch):
    # the uniform numbers are those of all bits 0 and of all bits 1: 0.5 / 2^53 and 1 - 0.5 / 2^53
    monkeypatch.setattr("samfed_monai.privacy.noise.os.urandom", lambda count: bytes(8) + b"\xff" * 8)
    radius = np.sqrt(-2 * np.log(0.5 * 2.0**-53))
    assert SystemNoise()(2) == pytest.approx([radius, 0.0], abs=1e-12)
    assert len(SystemNoise()(1)) == 1
