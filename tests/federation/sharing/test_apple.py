"""APPLE's site: mixture, steps of core model and shares by hand, the plain average at the prior."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.methods.apple import AppleSharing
from samfed_monai.protocol import Kind, MessageRefused
from tests.federation.personal import Six, numbers_of, six, six_trainer

OWN = [1.0, 0.0, 2.0, -1.0, 4.0, 0.0]
OTHER = [0.0, 2.0, 2.0, 1.0, 0.0, 8.0]
TARGET = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]


def made(**options):
    network = Six(OWN)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    settings = {"mu": 0.0, "rate": 0.01, "fraction": 1.0}
    sharing = AppleSharing(network=network, optimizer=optimizer, site="s", **{**settings, **options})
    return sharing, six_trainer(network, optimizer, [sharing], TARGET)


def sent(prior=(0.75, 0.25), *, place: int = 0, other=OTHER):
    cores = {f"core_{1 - place}.{name}": tensor for name, tensor in six(other).items()}
    return {"prior": torch.tensor(prior), "place": torch.tensor(place), **cores}


def trained(sharing, trainer):
    trainer.state.max_epochs = trainer.state.epoch + 1
    trainer.run()
    return numbers_of(sharing.share()[1])


def test_at_the_prior_the_network_is_the_plain_average():
    sharing, _ = made()
    means = sharing.receive(1, 3, Kind.WEIGHTS, sent())
    assert numbers_of(sharing.network.state_dict()) == [0.75, 0.5, 2.0, -0.5, 3.0, 2.0]
    assert means == {"share_0": 0.75, "share_1": 0.25}


def test_a_step_of_core_model_and_shares_by_hand():
    sharing, trainer = made()
    sharing.receive(1, 3, Kind.WEIGHTS, sent())
    answer = trained(sharing, trainer)
    gradient = [-0.25, -0.5, 1.0, -0.5, 2.0, 1.0]  # of the mixture above
    core = [c - 0.1 * 0.75 * g for c, g in zip(OWN, gradient, strict=True)]
    assert answer == pytest.approx(core)
    shares = [0.75 - 0.01 * 10.25, 0.25 - 0.01 * 8.5]
    assert sharing.state_dict()["shares"].tolist() == pytest.approx(shares)
    mixture = [shares[0] * c + shares[1] * o for c, o in zip(core, OTHER, strict=True)]
    assert numbers_of(sharing.network.state_dict()) == pytest.approx(mixture), "what is evaluated"


def test_the_pull_draws_shares_back_to_the_prior():
    moved = {"core": torch.tensor(OWN), "shares": torch.tensor([0.5, 0.5]), "prior": torch.tensor([0.75, 0.25])}
    found = {}
    for mu in (0.0, 4.0):
        sharing, trainer = made(mu=mu, schedule="cosine", fraction=1.0)
        sharing.load_state_dict(moved)
        sharing.receive(2, 4, Kind.WEIGHTS, sent())
        trained(sharing, trainer)
        found[mu] = sharing.state_dict()["shares"]
    # half way the cosine is 1/2: rate * mu / 2 * (0.5 - 0.75)
    torch.testing.assert_close(found[4.0] - found[0.0], torch.tensor([0.005, -0.005]), atol=1e-6, rtol=0)


def test_without_a_step_size_the_shares_stay_at_the_prior():
    sharing, trainer = made(rate=0.0)
    for round in (1, 2):
        sharing.receive(round, 3, Kind.WEIGHTS, sent())
        core = torch.tensor(trained(sharing, trainer))
        assert sharing.state_dict()["shares"].tolist() == [0.75, 0.25]
        average = 0.75 * core + 0.25 * torch.tensor(OTHER)
        torch.testing.assert_close(torch.tensor(numbers_of(sharing.network.state_dict())), average)


def test_what_the_prior_moves_moves_the_shares():
    sharing, _ = made(rate=0.0)
    sharing.load_state_dict(
        {"core": torch.tensor(OWN), "shares": torch.tensor([0.5, 0.5]), "prior": torch.tensor([0.75, 0.25])}
    )
    sharing.receive(1, 3, Kind.WEIGHTS, sent((0.5, 0.5)))
    assert sharing.state_dict()["shares"].tolist() == [0.25, 0.75]


def test_before_anybody_answered_the_site_trains_what_it_was_sent():
    sharing, trainer = made()
    assert sharing.receive(0, 3, Kind.WEIGHTS, six(OTHER)) == {}
    answer = trained(sharing, trainer)
    assert answer == pytest.approx([o - 0.1 * (o - t) for o, t in zip(OTHER, TARGET, strict=True)])
    assert answer == numbers_of(sharing.network.state_dict())
    assert sharing.state_dict()["core"].tolist() == answer


def test_its_state_goes_on_to_the_same_bits():
    sharing, trainer = made(mu=0.1)
    sharing.receive(1, 3, Kind.WEIGHTS, sent())
    trained(sharing, trainer)
    other, others_trainer = made(mu=0.1)
    other.network.load_state_dict(sharing.network.state_dict())
    other.load_state_dict({name: tensor.clone() for name, tensor in sharing.state_dict().items()})
    answers = []
    for each, its in ((sharing, trainer), (other, others_trainer)):
        each.receive(2, 3, Kind.WEIGHTS, sent((0.7, 0.3), other=TARGET))
        answers.append(trained(each, its))
    assert answers[0] == answers[1]
    assert torch.equal(sharing.state_dict()["shares"], other.state_dict()["shares"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prior": torch.tensor([1.0])}, "expected a prior of every site, and this site's place in it"),
        ({"prior": torch.tensor([1.5, -0.5])}, "use the strategy Apple"),
        ({"place": torch.tensor(2)}, "expected a prior of every site"),
        ({"core_1.a": torch.zeros(3)}, r"core_1\.a: expected shape \(4,\), found shape \(3,\)"),
        ({"core_1.c": torch.zeros(3)}, "1 with unknown names"),
        ({"core_1.b": torch.tensor([1.0, float("nan")])}, "NaN"),
    ],
)
def test_messages_that_do_not_fit_are_refused(change, reason):
    sharing, _ = made()
    with pytest.raises(MessageRefused, match=reason):
        sharing.receive(1, 3, Kind.WEIGHTS, {**sent(), **change})
    assert numbers_of(sharing.network.state_dict()) == OWN


def test_the_state_of_another_network_is_refused():
    sharing, _ = made()
    state = {"core": torch.zeros(5), "shares": torch.zeros(2), "prior": torch.zeros(2)}
    sharing.load_state_dict(state)
    with pytest.raises(MessageRefused, match="the core model of another network; start the run again"):
        sharing.receive(1, 3, Kind.WEIGHTS, sent())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mu": -1}, "sharing#mu: expected a number >= 0, found -1"),
        ({"rate": "fast"}, "sharing#rate: expected a number >= 0, found 'fast'"),
        ({"fraction": 2}, r"sharing#fraction: expected a part of the rounds in \[0, 1\], found 2"),
        ({"schedule": "step"}, r"sharing#schedule: expected one of \['exponential', 'cosine'\], found 'step'"),
    ],
)
def test_options_out_of_range_are_refused(options, reason):
    with pytest.raises(Refused, match=reason):
        made(**options)
