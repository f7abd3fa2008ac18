"""Steps on the public set: with labels alone they are plain steps, and a closed gate changes no bit."""

from __future__ import annotations

import pytest
import torch
from monai.data import Dataset
from monai.transforms import Compose
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import PublicPhase, RoundLearningRate
from samfed_monai.methods.heterogeneous import PublicDistillationTerm
from samfed_monai.transforms import LoadTargetd, PublicTargets, WeakViewd
from tests.handlers.toy import SIZE, same, toy_items, toy_network, weights

COUNT = 6


def phase(network: nn.Module | None = None, *, augment: bool = True, rate: bool = False, **options) -> PublicPhase:
    network = toy_network() if network is None else network
    targets = PublicTargets()
    items = [{**item, "index": index} for index, item in enumerate(toy_items(COUNT, seed=1))]
    views = [LoadTargetd(targets), *([WeakViewd()] if augment else [])]
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    settings = {"batch_size": 4, "steps": 3, "seed": 5, "site": "a", "term": PublicDistillationTerm()}
    return PublicPhase(
        network=network,
        optimizer=optimizer,
        loss=nn.BCEWithLogitsLoss(),
        dataset=Dataset(items, Compose(views)),
        targets=targets,
        learning_rate=RoundLearningRate(optimizer=optimizer) if rate else None,
        **{**settings, **options},
    )


def after(one: PublicPhase, *run) -> dict[str, torch.Tensor]:
    one.run(*run)
    return weights(one.trainer.network)


def masks(value: int = 200) -> torch.Tensor:
    return torch.full((COUNT, 1, SIZE, SIZE), value, dtype=torch.uint8)


def test_with_labels_alone_it_is_plain_supervised_training():
    network = toy_network()
    one = phase(network, augment=False, batch_size=COUNT, steps=4)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    items = toy_items(COUNT, seed=1)
    images, labels = (torch.stack([item[key] for item in items]) for key in ("image", "label"))
    network.train()
    plain = toy_network()
    plain.load_state_dict(network.state_dict())
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    means = one.run(0, 1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(plain(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # batches hold all images in another order: sums differ in the last bits
    assert all(torch.allclose(network.state_dict()[k], v, atol=1e-5) for k, v in plain.state_dict().items())
    assert means == pytest.approx({"supervised": sum(losses) / 4}, abs=1e-6)


def test_closed_gates_change_no_bit_and_open_ones_do():
    nothing = after(phase(), 0, 1)
    closed = after(phase(), 0, 1, masks(), torch.zeros(COUNT, dtype=torch.bool))
    opened = after(phase(), 0, 1, masks())
    some = after(phase(), 0, 1, masks(), torch.tensor([True] + [False] * (COUNT - 1)))
    assert same(nothing, closed)
    assert not same(nothing, opened)
    assert not same(opened, some)


def test_what_it_says_of_its_terms_counts_open_gates():
    means = phase(batch_size=COUNT).run(0, 1, masks(), torch.tensor([True, True, True, False, False, False]))
    assert means.keys() == {"supervised", "public_kd", "public_kd_gate"}
    assert means["public_kd_gate"] == 0.5


def test_a_round_of_one_step_reports_its_own_loss_and_not_the_last_rounds():
    one = phase(steps=1, batch_size=COUNT, augment=False)
    first, second = one.run(0, 2)["supervised"], one.run(1, 2)["supervised"]
    assert second < first


def test_no_steps_leave_everything_alone():
    network = toy_network()
    before = weights(network)
    one = phase(network, steps=0)
    assert one.run(0, 1, masks()) == {}
    assert same(weights(network), before)
    assert one.targets.masks is None


@pytest.mark.parametrize(("batch", "steps"), [(4, 2), (6, 1), (8, 1), (1, 6)])
def test_one_pass_is_the_least_number_of_batches_that_holds_all_images(batch, steps):
    one = phase(steps=None, batch_size=batch)
    one.run(0, 1)
    assert (one.steps, one.trainer.state.iteration) == (steps, steps)


def test_several_passes_are_as_many_times_the_steps_and_a_number_of_steps_goes_before_them():
    assert phase(steps=None, batch_size=4, passes=4).steps == 8
    assert phase(steps=3, passes=4).steps == 3
    with pytest.raises(Refused, match=r"sharing#passes: expected a number of passes >= 1, found 0"):
        phase(passes=0)


@pytest.mark.parametrize("steps", [-1, 2.0, "3"])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    with pytest.raises(Refused, match=r"public_steps: expected a number of steps >= 0, or null"):
        phase(steps=steps)


def test_a_round_is_a_function_of_seed_site_and_number():
    known = after(phase(), 2, 9)
    torch.manual_seed(999)
    worn = phase()
    worn.run(1, 9)
    with torch.no_grad():
        for name, tensor in toy_network().state_dict().items():
            worn.trainer.network.state_dict()[name].copy_(tensor)
    worn.trainer.optimizer.state.clear()
    assert same(after(worn, 2, 9), known), "not of what ran before"
    for other in (phase(seed=6), phase(site="b")):
        assert not same(after(other, 2, 9), known)
    assert not same(after(phase(), 3, 9), known)


def test_the_rate_is_that_of_the_round():
    one = phase(rate=True)
    one.run(1, 2)
    assert one.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)  # cosine at one half


def test_targets_are_gone_after_a_round_that_failed_and_the_next_one_runs():
    one = phase(augment=False)

    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("broken")

    network, one.trainer.network = one.trainer.network, Broken()
    with pytest.raises(ValueError, match="broken"):
        one.run(0, 2, masks())
    assert (one.targets.masks, one.targets.gate) == (None, None)
    one.trainer.network = network
    assert same(after(one, 1, 2), after(phase(augment=False), 1, 2))
    assert one.trainer.state.iteration == 3
