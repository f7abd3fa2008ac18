"""pFedSAM: the balance of experts, its terms, its stages, and the record of expert usage."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.inferers import SimpleInferer

from samfed_monai.config.strict import strict_problems
from samfed_monai.core.errors import Refused
from samfed_monai.methods import pfedsam
from samfed_monai.networks import SamNetwork, SamPath, sam_outputs
from samfed_monai.networks.sam.experts import Routing
from samfed_monai.networks.sam.network import SamOutputs
from tests.handlers.toy import next_round, toy_loader, toy_network, toy_trainer, weights
from tests.methods import engine_of
from tests.networks.sam.tiny import tiny_network, wake

DECODER, PLAIN, TOY = ["sam.mask_decoder.*"], tiny_network(experts=0), toy_network()


def test_load_balance_and_its_gradient_match_hand_computed_values():
    share = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]])
    probability = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]])
    # 4 (0.2 + 0.075 + 0.05 + 0) = 1.3; even use is 1 whatever the probabilities
    torch.testing.assert_close(pfedsam.load_balance(share, probability), torch.tensor((1.3 + 1.0) / 2))
    share = torch.tensor([[0.75, 0.25]], requires_grad=True)
    probability = torch.tensor([[0.6, 0.4]], requires_grad=True)
    pfedsam.load_balance(share, probability).backward()
    assert share.grad is None
    torch.testing.assert_close(probability.grad, torch.tensor([[1.5, 0.5]]))


def engine_with_routing(routing: Routing | None) -> Any:
    prediction: Any = torch.zeros(1, 1, 2, 2)
    prediction.sam_outputs = SamOutputs(SamPath.PERSONAL, routing)
    return engine_of(output={"pred": prediction, "loss": torch.tensor(2.0)})


def test_load_balance_term_adds_weighted_mean_on_personal_path():
    share = torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    engine = engine_with_routing(Routing(share, share, (8, 8)))
    pfedsam.LoadBalanceTerm()(engine)
    assert engine.state.terms["load_balance"] == 1.5  # 4 x 0.5 and 4 x 0.25
    assert engine.state.output["loss"] == pytest.approx(2.015)
    engine = engine_with_routing(None)
    pfedsam.LoadBalanceTerm()(engine)
    assert engine.state.output["loss"] == 2
    assert not hasattr(engine.state, "terms")


def kl(of: torch.Tensor, to: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T^2 KL(of || to)`` of Bernoulli distributions, as in a textbook."""
    p, q = (of / temperature).sigmoid(), (to / temperature).sigmoid()
    return temperature**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()


@pytest.mark.parametrize("path", list(SamPath))
def test_mutual_distillation_teaches_trained_path(path):
    torch.manual_seed(0)
    logits = {SamPath.GLOBAL: torch.randn(2, 1, 4, 4), SamPath.PERSONAL: (4 * torch.randn(2, 1, 4, 4) + 2).clamp(-9, 9)}
    prediction: Any = logits[path].clone().requires_grad_()
    prediction.sam_outputs = SamOutputs(path, None)
    image, calls = torch.rand(2, 3, 4, 4), []

    def network(given: torch.Tensor, path: SamPath) -> torch.Tensor:
        calls.append((given is image, path, torch.is_grad_enabled()))
        return logits[path]

    engine = engine_of(network, output={"pred": prediction, "image": image})
    engine.inferer = SimpleInferer()
    found = pfedsam.MutualDistillationTerm(temperature=3.0).value(None, engine)
    assert calls == [(True, path.other, False)]
    torch.testing.assert_close(found, kl(logits[path.other], logits[path], 3.0), rtol=1e-4, atol=1e-6)
    assert abs(kl(logits[path], logits[path.other], 3.0) - found) > 0.01 * found  # the directions differ
    found.backward()
    assert prediction.grad.any()


@pytest.mark.parametrize(
    ("handler", "network", "message"),
    [
        (pfedsam.LoadBalanceTerm, PLAIN, "terms#load_balance: expected a network with experts"),
        (pfedsam.ExpertUsage, PLAIN, r"after#expert_usage \(ExpertUsage\): expected a network with experts"),
        (pfedsam.MutualDistillationTerm, PLAIN, "found a SAM network without experts; set .*to 4, or disable"),
        (pfedsam.MutualDistillationTerm, TOY, "mutual_kd: expected a SAM network with experts, found Sequential"),
        (pfedsam.DecoupledStages, TOY, r"DecoupledStages\): expected a network with a global and a personal path"),
    ],
)
def test_networks_without_experts_are_refused_before_training(handler, network, message):
    trainer = toy_trainer([handler()], network=network)
    with pytest.raises(Refused, match=message):
        trainer.run()
    assert trainer.state.iteration == 0


def sam_trainer(
    handlers: list[Any], *, network: SamNetwork | None = None, optimizer: Any = None, steps: int = 4
) -> Any:
    """MONAI's trainer of a SAM of two blocks; AdamW has a weight decay too large to overlook."""
    if network is None:
        network = tiny_network()
        wake(network)
    optimizer = optimizer or torch.optim.AdamW(network.parameter_groups(), lr=1e-3, weight_decay=0.5)
    loader = toy_loader(keys=("image", "label"))
    return toy_trainer(handlers, network=network, loader=loader, optimizer=optimizer, steps=steps, decollate=False)


def weights_and_moments(engine: Any) -> dict[str, torch.Tensor]:
    """Weights, and the optimizer's moments of each; their names begin with the weight's."""
    found = weights(engine.network)
    for name, weight in engine.network.named_parameters():
        found |= {f"{name} {key}": each.clone() for key, each in engine.optimizer.state.get(weight, {}).items()}
    return found


@pytest.mark.parametrize(
    ("decoder", "both", "checkpointing"),
    [("shared", [], True), ("personal", DECODER, False), ("shared", DECODER, False)],
)
def test_stages_train_only_selected_parts(decoder, both, checkpointing):
    network, seen = tiny_network(decoder=decoder, checkpointing=checkpointing), []
    before: dict[str, torch.Tensor] = {}

    def look(engine: Any) -> None:
        after, path = weights_and_moments(engine), sam_outputs(engine.state.output["pred"]).path
        moved = {name for name, each in after.items() if name not in before or not torch.equal(each, before[name])}
        seen.append((engine.state.stage, path, {name.partition(" ")[0] for name in moved}))

    terms = [pfedsam.MutualDistillationTerm(), pfedsam.LoadBalanceTerm()]
    trainer = sam_trainer([pfedsam.DecoupledStages(both=both), *terms], network=network, steps=2)
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: before.update(weights_and_moments(engine)))
    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, look)
    for round in range(2):  # in the second one both halves have moments and gradients to drift by
        next_round(trainer, round, 2)
    split = network.key_split()
    always = {name for name in (*split.shared, *split.personal) if both and "mask_decoder" in name}
    first = ("global", SamPath.GLOBAL, {*split.shared, *always})
    assert seen == [first, ("personal", SamPath.PERSONAL, {*split.personal, *always})] * 2


def test_invalid_both_patterns_are_refused():
    message = r"both: expected at least one, found no trained name like 'sam\.decoder\.\*'; corr"
    with pytest.raises(Refused, match=message):
        sam_trainer([pfedsam.DecoupledStages(both=["sam.decoder.*"])], steps=2).run()
    with pytest.raises(Refused, match=r"both: expected a list of patterns, found 'sam\.\*'; for instance"):
        pfedsam.DecoupledStages(both="sam.*")


@pytest.mark.parametrize(("share", "steps", "first"), [(0.5, 5, 3), (0.5, 4, 2), (0.0, 3, 0), (1.0, 3, 3), (0.1, 3, 1)])
def test_global_stage_is_first_part_of_epoch(share, steps, first):
    found = [pfedsam.DecoupledStages(share=share).stage(step, steps) for step in range(steps)]
    assert found == [SamPath.GLOBAL] * first + [SamPath.PERSONAL] * (steps - first)


def test_failed_step_raises_and_restores_personal_path():
    trainer: Any = sam_trainer([pfedsam.DecoupledStages()], steps=2)

    def fail(engine: Any) -> None:
        raise ValueError("no loss today")

    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, fail)
    with pytest.raises(ValueError, match="no loss today"):
        trainer.run()
    assert trainer.network.path is SamPath.PERSONAL
    assert all(p.requires_grad for group in trainer.network.parameter_groups() for p in group["params"])


def test_stage_problems_are_refused_together():
    network = tiny_network(experts=0, decoder="shared")
    optimizer = torch.optim.SGD(network.parameter_groups()[0]["params"][:-1], 0.1)
    trainer = sam_trainer([pfedsam.DecoupledStages()], network=network, steps=1, optimizer=optimizer)
    with pytest.raises(Refused) as refused:
        trainer.run()
    found = [problem.found for problem in refused.value.problems]
    count = len(network.parameter_groups()[0]["params"])
    assert found == [
        "no personal weights",
        f"an optimizer without 1 of the {count} shared tensors",
        "1 steps with a share of 0.5",
    ]
    hint = json.loads(refused.value.problems[1].hint.removeprefix("set its params to "))
    assert hint == {"_target_": "samfed_monai.bundle.parameters_of", "network": "@network"}
    assert strict_problems({"optimizer": {"params": hint}}, file=True) == []


def test_unknown_epoch_length_is_refused():
    trainer = sam_trainer([], steps=2)
    trainer.state.epoch_length = None
    with pytest.raises(Refused, match=r"one step for each part, found an epoch of unknown length; set local_steps"):
        pfedsam.DecoupledStages().check(trainer)


def test_expert_usage_is_weighted_by_tokens():
    usage = pfedsam.ExpertUsage()
    engine = engine_of()
    for share, tokens in [([[0.5, 0.5], [1, 0]], (30, 10)), (None, ()), ([[0.1, 0.9], [0, 1]], (10, 10))]:
        prediction: Any = torch.zeros(1)
        routing = None if share is None else Routing(torch.tensor(share), torch.tensor(share), tokens)
        prediction.sam_outputs = SamOutputs(SamPath.PERSONAL, routing)
        engine.state.output = {"pred": prediction}
        usage(engine)
    usage._epoch_completed(engine)
    means = {"expert_1": 0.45, "expert_2": 0.55, "expert_least": 0.4}
    assert engine.state.term_means == {name: pytest.approx(mean) for name, mean in means.items()}


def test_expert_usage_is_counted_per_round():
    usage = pfedsam.ExpertUsage()
    trainer = sam_trainer([pfedsam.DecoupledStages(), usage], steps=2)
    for round in range(2):
        next_round(trainer, round, 2)
        assert usage._tokens.tolist() == [4 * 16] * len(trainer.network.expert_layers)  # one step of four images
        assert sum(trainer.state.term_means[f"expert_{number}"] for number in range(1, 5)) == pytest.approx(1)
    trainer = sam_trainer([pfedsam.DecoupledStages(share=1.0), pfedsam.ExpertUsage()], steps=1)
    trainer.run()
    assert not getattr(trainer.state, "term_means", None)
