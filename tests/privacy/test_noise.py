"""Clipping and noise: at a site on updates and masks; at the server, with an adaptive clip and a budget."""

import json
import math
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Stopped
from samfed_monai.core.io import safe_load
from samfed_monai.federation import Interrupted, RunFolder
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.privacy import epsilon
from samfed_monai.privacy.noise import CentralNoise, SystemNoise, next_clip, noisy_masks, noisy_update, step_noise
from samfed_monai.privacy.rules import CentralPrivacy
from samfed_monai.protocol import Kind, Message, MessageRefused, Server
from samfed_monai.reports import Report
from samfed_monai.results import validate_results
from tests.federation.test_job import job
from tests.federation.toys import FixedClient, controller, weights

LEARNED = ("w", "b")


def nothing(count):
    return np.zeros(count)


def ones(count):
    return np.ones(count)


def attached(folder, settings, *, noise=nothing, sites=("a", "b"), start=None):
    strategy = FedAvg().attach(Server(sites=sites, rounds=3, weights=weights() if start is None else start))
    return CentralNoise(settings, strategy, learned=LEARNED, folder=folder, noise=noise)


def answer(site, steps, old, *, n=1):
    """A step of ``steps`` on the first entry of ``w``, and other statistics than those that were sent."""
    new = {name: tensor.clone() for name, tensor in old.items()}
    new["w"].view(-1)[0] += steps
    new["count"] += 7
    return Message(Kind.WEIGHTS, site, 0, 3, n=n, tensors=new)


def fixed_clip(**more):
    return CentralPrivacy(**{"quantile": None, **more})


def test_central_mean_clips_steps_and_weights_sites_equally(tmp_path):
    central = attached(tmp_path, fixed_clip(clip=5.0))
    long = answer("a", 6.0, weights(), n=1)
    long.tensors["b"].view(-1)[0] += 8.0  # all parameters are one vector, 10 long
    central.take(0, "a", long)
    central.take(0, "b", answer("b", -1.0, weights(), n=99))
    central.finish(0)
    model = central.strategy.global_weights
    assert model["w"].flatten().tolist() == [2.0, 1, 1, 1, 1, 1], "1 + (3 - 1) / 2"
    assert model["b"].tolist() == [3.0, 1], "1 + 4 / 2"
    assert model["count"].item() == 0, "other tensors than parameters are unchanged"


@pytest.mark.parametrize("sites", [1, 4])
def test_central_noise_scales_with_clip_and_site_count(tmp_path, sites):
    central = attached(tmp_path, fixed_clip(clip=0.5, noise_multiplier=4.0), noise=ones)
    central.finish(0)  # a round without answers spends nothing, and moves nothing
    assert central.account(0)["releases"] == 0
    for index in range(sites):
        central.take(0, str(index), answer(str(index), 0.0, weights()))
    central.finish(0)
    model = central.strategy.global_weights
    assert (model["w"] - 1).flatten().tolist() == (model["b"].repeat(3) - 1).tolist() == [4.0 * 0.5 / sites] * 6


def test_clip_follows_quantile(tmp_path):
    settings = CentralPrivacy(clip=2.0, noise_multiplier=1.0, quantile=0.5, clip_rate=0.2, count_noise=1.0)
    central = attached(tmp_path, settings, sites="abcd")
    for site, step in zip("abcd", (1.0, 2.0, 1.5, 8.0), strict=True):
        central.take(0, site, answer(site, step, weights()))
    central.finish(0)
    assert central.clip == pytest.approx(2.0 * math.exp(-0.2 * (3 / 4 - 0.5)))
    noisy = attached(tmp_path, settings, noise=ones, sites="abcd")
    noisy.take(0, "a", answer("a", 8.0, weights()))
    noisy.finish(0)
    # none of one site is within: (0 - 1/2 + 1) / 1 + 1/2 = 1; the noise on the steps grows by what the count takes
    assert noisy.clip == pytest.approx(2.0 * math.exp(-0.2 * (1 - 0.5)))
    assert noisy.strategy.global_weights["b"][0].item() == pytest.approx(1 + 2.0 * (1 - 1 / 4) ** -0.5)


def test_default_count_noise_depends_on_site_count(tmp_path):
    few = attached(tmp_path, CentralPrivacy(noise_multiplier=1.5), sites="abcd")
    many = attached(tmp_path, CentralPrivacy(noise_multiplier=1.5), sites=tuple(map(str, range(200))))
    assert (few.count_noise, many.count_noise) == (1.5, 10.0)
    assert attached(tmp_path, fixed_clip()).count_noise is None


@given(z=st.floats(0.01, 100), ratio=st.floats(0.51, 50))
def test_step_and_count_noise_compose_to_multiplier(z, ratio):
    """Squared sensitivity over squared noise is what composes: 1 / z'^2 + (1/2)^2 / s^2 = 1 / z^2."""
    count = z * ratio
    assert step_noise(z, count) ** -2 + (2 * count) ** -2 == pytest.approx(z**-2)
    assert step_noise(z, None) == z


@given(clip=st.floats(1e-3, 1e3), within=st.floats(-2, 3), quantile=st.floats(0.01, 0.99), rate=st.floats(0.01, 1))
def test_clip_shrinks_above_quantile_and_grows_below(clip, within, quantile, rate):
    after = next_clip(clip, within, quantile=quantile, rate=rate)
    assert (after >= clip) if within <= quantile else (after <= clip)
    assert math.isclose(next_clip(clip, quantile, quantile=quantile, rate=rate), clip)


@given(
    steps=st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8), min_size=2, max_size=5),
    clip=st.floats(0.01, 100),
)
def test_sum_sensitivity_is_bounded_by_clip(steps, clip):
    """The sensitivity that the noise is made for, over all that a site may send."""
    sums = []
    for taken in (steps, steps[1:]):
        central = attached("no folder", fixed_clip(clip=clip))
        for index, values in enumerate(taken):
            moved = weights()
            moved["w"] += torch.tensor(values[:6]).reshape(2, 3)
            moved["b"] += torch.tensor(values[6:])
            central.take(0, str(index), Message(Kind.WEIGHTS, str(index), 0, 3, n=1, tensors=moved))
        sums.append(torch.cat([central._sums[name].flatten() for name in LEARNED]))
    assert float((sums[0] - sums[1]).norm()) <= clip * (1 + 1e-9)


class OwnNamesAlone(FedAvg):
    """A server with a state, as the optimizer of ``semifl``, that accepts no other names."""

    def state_dict(self):
        return {"own": torch.ones(1)}

    def load_state_dict(self, weights, state):
        assert set(state) in (set(), {"own"})
        super().load_state_dict(weights, state)


def run(folder, settings, rounds, *, noise=ones, b=None):
    clients = {"a": FixedClient("a", step=1.0), "b": b or FixedClient("b", step=3.0)}
    with RunFolder(folder).open({}) as opened:
        made = controller(opened, clients, rounds=rounds, strategy=OwnNamesAlone())
        made.central = CentralNoise(settings, made.strategy, learned=LEARNED, folder=folder, noise=noise)
        return made.run(), made.central


def test_resumed_run_keeps_clip_and_account(tmp_path, caplog):
    settings = CentralPrivacy(clip=0.5, noise_multiplier=2.0)
    _, whole = run(tmp_path / "whole", settings, 3)
    run(tmp_path / "stopped", settings, 1)
    _, resumed = run(tmp_path / "stopped", settings, 3)
    assert resumed.account(3) == whole.account(3)
    assert whole.account(3)["releases"] == 3
    assert whole.account(3)["epsilon_total"] == epsilon(2.0, 3, 1e-5)
    assert whole.account(3)["epsilon_replaced"] == epsilon(1.0, 3, 1e-5)
    assert whole.account(3)["clip_last"] != 0.5
    last = [safe_load(tmp_path / name / "rounds/002/global.safetensors")["w"] for name in ("whole", "stopped")]
    assert last[0].equal(last[1])
    whole.ledger.unlink()
    assert whole.account(3)["releases"] == 3, "one for each stored round, at least"
    assert f"{whole.ledger} has 0 of at least 3 releases: repeated rounds are not counted" in caplog.text


def test_repeated_round_counts_as_second_release(tmp_path):

    class Interrupting(FixedClient):
        def evaluate(self, data, extra):
            raise KeyboardInterrupt  # the model has left, and the round is not stored

    with pytest.raises(Interrupted):
        run(tmp_path, fixed_clip(), 1, b=Interrupting("b"))
    _, central = run(tmp_path, fixed_clip(), 1)
    assert central.account(1)["releases"] == 2
    assert central.account(1)["epsilon_total"] == epsilon(1.0, 2, 1e-5) > epsilon(1.0, 1, 1e-5)


def test_run_stops_before_exceeding_budget(tmp_path):
    settings = fixed_clip(epsilon=epsilon(1.0, 2, 1e-5))
    with pytest.raises(Stopped, match=r"epsilon would be \S+ after one more round, above"):
        run(tmp_path, settings, 3)
    lines = [json.loads(line) for line in (tmp_path / "privacy.jsonl").read_text().splitlines()]
    assert [(line["round"], line["noise_multiplier"]) for line in lines] == [(0, 1.0), (1, 1.0)]
    assert [datetime.fromisoformat(line["time"]).utcoffset() for line in lines] == [timedelta(0)] * 2
    assert not (tmp_path / "rounds/002").exists()


def test_central_noise_is_not_seeded(tmp_path):
    models = []
    for _ in range(2):
        central = attached(tmp_path, fixed_clip(), noise=None)
        central.take(0, "a", answer("a", 1.0, weights()))
        central.finish(0)
        models.append(central.strategy.global_weights["w"])
    assert not models[0].equal(models[1])


def test_central_noise_is_reported(small_federation, tmp_path, monkeypatch):
    seen, finish = [], CentralNoise.finish

    def watched(self, round):
        before = {name: tensor.clone() for name, tensor in self.strategy.global_weights.items()}
        finish(self, round)
        seen.append((before, {name: tensor.clone() for name, tensor in self.strategy.global_weights.items()}))

    monkeypatch.setattr(CentralNoise, "finish", watched)
    privacy = {"least_images": 1, "central_differential_privacy": {"clip": 0.1, "noise_multiplier": 8.0}}
    results = job(small_federation, tmp_path, privacy=privacy, rounds=1).run()
    assert validate_results(results) == []
    account = results["privacy"]["central_differential_privacy"]
    assert results["privacy"]["differential_privacy"] is None
    assert (account["releases"], account["noise_multiplier"], account["quantile"]) == (1, 8.0, 0.5)
    assert account["epsilon_total"] == epsilon(8.0, 1, 1e-5)
    assert [json.loads(line)["round"] for line in (tmp_path / "privacy.jsonl").read_text().splitlines()] == [0]
    ((before, after),) = seen
    moved = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    assert moved == {name for name in after if name.rpartition(".")[2] in ("weight", "bias")}
    page = Path(Report(run_folder=tmp_path, overlays=False).write()).read_text()
    assert f"{account['epsilon_total']:.2f} in total" in " ".join(page.split())


def test_noisy_masks_match_hand_computed_values():
    masks = torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
    masks[1] = 255
    sent = noisy_masks(masks, None, clip=0.25, noise_multiplier=1.0, noise=nothing)
    assert sent.flatten().tolist() == [64, 191, 64, 64]  # 0.5 -+ 0.25
    received = torch.full_like(masks, 51)  # 0.2
    sent = noisy_masks(masks, received, clip=0.1, noise_multiplier=0.25, noise=ones)
    assert sent.flatten().tolist() == [51, 102, 51, 51]  # 0.2 -+ 0.1, and 2 * 0.1 * sqrt(4) * 0.25 = 0.1 of noise
    assert sent.dtype is torch.uint8
    white = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    black = noisy_masks(0 * white, white, clip=0.4, noise_multiplier=1.0, noise=nothing)
    assert black.unique().tolist() == [204], "1 and 0.2 of (-1, -1, -1, -1), which is 2 long"
    for noise, left in ((ones, 255), (lambda count: -np.ones(count), 0)):  # 0.5 -+ 2 is a probability still
        grey = torch.full((1, 1, 1, 1), 128, dtype=torch.uint8)
        assert noisy_masks(grey, grey, clip=1.0, noise_multiplier=1.0, noise=noise).item() == left
    # masks of another shape are no reference: 0.5 and all of (0.5, 0.5, 0.5, 0.5)
    other = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    assert noisy_masks(white, other, clip=1.0, noise_multiplier=1.0, noise=nothing).unique().tolist() == [255]


def test_system_noise_is_normal_and_differs_between_draws():
    """Within six standard errors of mean, variance, kurtosis and correlation."""
    for few in (1, 2, 7):
        drawn, again = SystemNoise()(few), SystemNoise()(few)
        assert drawn.shape == (few,)
        assert not np.array_equal(drawn, again)
    drawn = SystemNoise()(count := 200_000)
    assert np.isfinite(drawn).all()
    assert abs(drawn.mean()) < 6 / np.sqrt(count)
    assert abs(drawn.var() - 1) < 6 * np.sqrt(2 / count)
    assert abs((drawn**4).mean() - 3) < 6 * np.sqrt(96 / count)
    assert abs(np.corrcoef(drawn[: count // 2], drawn[count // 2 :])[0, 1]) < 6 / np.sqrt(count / 2)


def test_system_noise_matches_given_random_bytes(monkeypatch):
    # the uniform numbers are those of all bits 0 and of all bits 1: 0.5 / 2^53 and 1 - 0.5 / 2^53
    monkeypatch.setattr("samfed_monai.privacy.noise.os.urandom", lambda count: bytes(8) + b"\xff" * 8)
    assert SystemNoise()(2) == pytest.approx([np.sqrt(-2 * np.log(0.5 * 2.0**-53)), 0.0], abs=1e-12)


OLD = {"a": torch.tensor([1.0]), "b": torch.tensor([[2.0]]), "running_var": torch.ones(1), "count": torch.tensor(3)}
NEW = {"a": torch.tensor([4.0]), "b": torch.tensor([[6.0]]), "running_var": torch.zeros(1), "count": torch.tensor(9)}


@pytest.mark.parametrize(
    ("clip", "noise", "a", "b"),
    [
        (2.5, nothing, 2.5, 4.0),  # a step of (3, 4): norm 5, over all tensors together
        (0.25, nothing, 1.15, 2.2),
        (50.0, nothing, 4.0, 6.0),
        (0.5, ones, 1 + 0.3 + 3.0, 2 + 0.4 + 3.0),  # twice the clip times the multiplier
    ],
)
def test_noisy_update_changes_only_learned_weights(clip, noise, a, b):
    """A mean over private images never leaves, nor a whole number; names of other networks are passed over."""
    given = {"learned": ["a", "b", "count", "frozen"], "clip": clip, "noise_multiplier": 3.0, "noise": noise}
    sent = noisy_update(NEW, {**OLD, "more": torch.ones(1)}, **given)
    expected = {"a": a, "b": b, "running_var": 1.0, "count": 3}
    assert {name: tensor.item() for name, tensor in sent.items()} == pytest.approx(expected)
    assert sent["a"].dtype is torch.float32


def test_invalid_noisy_updates_are_refused():
    given = {"learned": ["a"], "clip": 1.0, "noise_multiplier": 1.0, "noise": ones}
    for received in ({}, {"a": torch.zeros(2)}):
        with pytest.raises(MessageRefused) as error:
            noisy_update({"a": torch.zeros(1)}, received, **given)
        assert str(error.value.problems[0]) == (
            "differential privacy: expected the weights of the same network in the request, for "
            "comparison with the update, found other tensors"
        )
    for value in (float("nan"), float("inf")):
        with pytest.raises(MessageRefused) as error:
            noisy_update({"a": torch.tensor([value])}, {"a": torch.zeros(1)}, **given)
        assert str(error.value.problems[0]) == "message -> tensors: expected finite values, found NaN or infinity"
