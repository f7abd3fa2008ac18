"""FedDA: the reversed gradient, the discriminator, and the rotation of target networks."""

from __future__ import annotations

import pytest
import torch
from monai.engines.utils import IterationEvents
from torch import nn
from torch.nn.functional import softplus

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import GlobalGuide, Guidance, TermLogger, UnlabelledStream
from samfed_monai.methods import fedda
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Kind, Message, MessageRefused, Server
from tests.handlers.toy import Dilated, Shown, next_round, same, toy_loader, toy_trainer, weights
from tests.methods import engine_of
from tests.methods.rounds import a_round, update


def test_reversed_gradient_negates_gradient_and_keeps_values():
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    passed = fedda.reversed_gradient(values)
    assert torch.equal(passed, values)
    (passed * torch.tensor([3.0, 5.0])).sum().backward()
    assert values.grad.tolist() == [-3.0, -5.0]


def train(network: nn.Module, rounds: int = 1, **options):
    guide = GlobalGuide()
    term = fedda.DomainAlignmentTerm(guide=guide, **options)
    handlers = [UnlabelledStream(loader=toy_loader(), guides=[guide]), term, TermLogger()]
    trainer = toy_trainer(handlers, network=network, steps=2, learning_rate=0.05)
    for number in range(rounds):
        torch.manual_seed(number)
        next_round(trainer, number, rounds)
    return trainer, term


def test_encoder_gets_reversed_gradient_of_domain_loss():
    network, guide = Dilated(), GlobalGuide()
    guide._copy.sync(network)
    with torch.no_grad():
        guide.network.encoder.last.weight.add_(1.0)
    term = fedda.DomainAlignmentTerm(guide=guide)
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    guidance = Guidance(student=torch.zeros(()), weak_view=torch.zeros(()), guides={}, batch={"image": image})
    engine = engine_of(network)
    value = term.value(guidance, engine)
    encoder = [*network.encoder.parameters()]
    own = [weight for weight in term._discriminator.parameters() if weight.requires_grad]
    found = torch.autograd.grad(value, [*encoder, *own])
    both = torch.cat([network.encoder(image)[-1], guide.network.encoder(image)[-1]])
    source, target = term._discriminator(both)[-1].chunk(2)
    expected = (softplus(source).mean() + softplus(-target).mean()) / 2  # 0 is the site, 1 is the target
    torch.testing.assert_close(value, expected)
    assert source.shape[1] == 1
    assert engine.state.terms["separated"] == torch.cat([source < 0, target > 0]).float().mean()
    plain = torch.autograd.grad(expected, [*encoder, *own])
    torch.testing.assert_close([*found], [*[-gradient for gradient in plain[: len(encoder)]], *plain[len(encoder) :]])
    assert found[2].abs().sum() > 0, "the encoder's last layer is reached"


def test_discriminator_takes_own_adam_step_per_iteration():
    guide = GlobalGuide()
    term = fedda.DomainAlignmentTerm(guide=guide, rate=0.01, weight=5.0)
    stream = UnlabelledStream(loader=toy_loader(), guides=[guide])
    trainer = toy_trainer([stream, term, TermLogger()], network=Shown(), steps=1)
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda _: before.extend((w.detach().clone(), w.grad.clone()) for w in term._discriminator.parameters()),  # type: ignore[union-attr]
    )
    next_round(trainer, 0, 1)
    assert before
    for (start, gradient), weight in zip(before, term._discriminator.parameters(), strict=True):
        torch.testing.assert_close(weight.detach(), start - 0.01 * gradient / (gradient.abs() + 1e-8))  # Adam's first
        assert weight.grad is None or not weight.grad.any()


def test_minimum_size_applies_to_map_sides_not_channels():
    assert train(Shown(channels=4))[0].state.term_means["domain"] > 0


def test_too_small_feature_maps_are_refused():
    message = r"terms#domain: expected a feature map of at least 8 .*found images of 16 pixels, .*; raise image_size"
    with pytest.raises(Refused, match=message):
        train(Shown(stride=4))


def test_discriminator_is_recreated_each_round():
    network = Shown()
    trainer, term = train(network, rounds=2, rate=0.01, weight=1.0)
    assert 0 <= trainer.state.term_means["separated"] <= 1
    assert not network.encoder._forward_hooks
    last = term._discriminator
    next_round(trainer, 2, 3)
    assert term._discriminator is not last
    assert not same(weights(train(Shown(), weight=0.0)[0].network), weights(train(Shown(), weight=5.0)[0].network))


SITES = ("a", "b", "c")


def answers(round: int, **values: float) -> dict[str, Message]:
    return {site: update(site, round=round, w=[value], steps=at) for at, (site, value) in enumerate(values.items())}


def attach(strategy, sites=SITES):
    return strategy.attach(Server(sites, 9, weights={"w": torch.zeros(1), "steps": torch.tensor(-1)}))


def targets(strategy, round: int) -> dict[str, float | None]:
    sent = strategy.configure(round)
    for site, message in sent.items():
        assert (message.kind, message.site, message.round, message.rounds) == (Kind.WEIGHTS, site, round, 9)
        assert message.extra == {"purpose": "distil"}
        assert torch.equal(message.tensors["w"], strategy.global_weights["w"])
    found = {site: message.tensors.get("target.w") for site, message in sent.items()}
    return {site: None if tensor is None else tensor.item() for site, tensor in found.items()}


def test_targets_rotate_and_aggregate_equals_fedavg():
    strategy, plain = attach(fedda.CyclicTargets()), attach(FedAvg())
    expected = [dict.fromkeys(SITES), {"a": 2.0, "b": 3.0, "c": 1.0}, {"a": 3.0, "b": 1.0, "c": 2.0}]
    for round in range(4):
        assert targets(strategy, round) == [*expected, expected[1]][round]
        plain.configure(round)
        for each in (strategy, plain):
            for site, answer in reversed(answers(round, a=1.0, b=2.0, c=3.0).items()):
                each.take(round, site, answer)
            each.finish(round)
        assert same(strategy.global_weights, plain.global_weights)
        assert strategy.global_weights["steps"] == 0, "a counter is the first site's, in any order of replies"
    assert torch.equal(strategy.evaluation("a")["w"], plain.global_weights["w"]), "sites are scored on the global one"


@pytest.mark.parametrize(
    ("sites", "of_a", "of_last"), [("ab", [2, 2, 2, 2], [1, 1, 1, 1]), ("abcd", [2, 3, 4, 2], [1, 2, 3, 1])]
)
def test_target_order_starts_at_next_site(sites, of_a, of_last):
    strategy = attach(fedda.CyclicTargets(), tuple(sites))
    strategy.require_sites(tuple(sites))
    found = []
    for round in range(5):
        found.append(targets(strategy, round))
        strategy.aggregate(round, answers(round, **{site: at + 1.0 for at, site in enumerate(sites)}))
    assert [each["a"] for each in found] == [None, *of_a]
    assert [each[sites[-1]] for each in found] == [None, *of_last]


def test_missing_target_is_global_and_single_site_is_refused():
    strategy = attach(fedda.CyclicTargets())
    a_round(strategy, answers(0, a=1.0, c=3.0))
    assert targets(strategy, 1) == {"a": None, "b": 3.0, "c": 1.0}
    with pytest.raises(Refused, match=r"strategy: expected 2 sites or more, .* found 1; choose the variant fedda"):
        strategy.require_sites(["a"])


def test_received_target_and_global_weights_are_loaded():
    network, guide = Shown(), fedda.TargetGuide()
    client = fedda.TargetAlgorithm(network=network, optimizer=torch.optim.SGD(network.parameters(), 0.1), guide=guide)
    term = fedda.DomainAlignmentTerm(guide=guide, weight=0.0)
    stream = UnlabelledStream(loader=toy_loader(), guides=[guide])
    trainer = toy_trainer([stream, term, TermLogger()], network=network, steps=1, learning_rate=0.0)
    common = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    mine = {name: torch.ones_like(tensor) for name, tensor in common.items()}
    sent = {**common, **{f"target.{name}": tensor for name, tensor in mine.items()}}
    assert client.receive(1, 9, Kind.WEIGHTS, sent) == {}
    assert same(weights(network), common)
    next_round(trainer, 1, 9)
    assert same(weights(guide.network), mine)
    assert client.share() == (Kind.WEIGHTS, {name: pytest.approx(tensor) for name, tensor in common.items()})
    client.receive(2, 9, Kind.WEIGHTS, common)
    next_round(trainer, 2, 9)
    assert same(weights(guide.network), common), "none was sent"
    with pytest.raises(MessageRefused, match="message"):
        client.receive(3, 9, Kind.WEIGHTS, {**common, "target.head.bias": torch.zeros(7)})


def test_target_guide_combines_sent_and_personal_weights():
    network, guide, other = Shown(), fedda.TargetGuide(), GlobalGuide(name="other")
    client = fedda.TargetAlgorithm(network=network, optimizer=torch.optim.SGD(network.parameters(), 0.1), guide=guide)
    shared = {name: tensor for name, tensor in weights(network).items() if name.startswith("encoder.")}
    theirs = {f"target.{name}": torch.ones_like(tensor) for name, tensor in shared.items()}
    client.receive(1, 9, Kind.WEIGHTS, {**shared, **theirs})
    for read, provided in ((other, [guide, other]), (guide, [guide])):
        term = fedda.DomainAlignmentTerm(guide=read, weight=0.0)
        stream = UnlabelledStream(loader=toy_loader(), guides=provided)
        next_round(toy_trainer([stream, term], network=network, steps=1, learning_rate=0.0), 1, 9)
    assert torch.equal(guide.network.encoder.weight, torch.ones(8, 3, 3, 3))
    assert torch.equal(guide.network.head.weight, network.head.weight)
